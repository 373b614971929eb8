//! The bus: DMA to windows and by message, and interrupts with their masks.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests, and what they share")]

mod puppet;

use abi::errno::Errno;
use dirty::IovaRange;
use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};
use puppet::{Act, MASKABLE, PEER, Rig, rig};
use states::v2::{Capabilities, State};
use std::sync::{Arc, Mutex};
use sys::SharedMemory;
use vfio_migrate_device::{
    ACCESS_MAX, BusError, Dma, DmaTarget, REQUESTS_MAX, Request, RequestKind, Token,
    Trigger,
};

#[test]
fn dma_goes_where_windows_are_and_nowhere_else() {
    let mut rig = rig(Capabilities::ALL);
    rig.runner.log_start(4096, &[]).unwrap();
    assert_eq!(rig.act(Act::Write(4090, 12)), Ok(Dma::Done), "over two windows");
    assert_eq!(rig.runner.log_report(0, 1 << 16, 4096, 1).unwrap(), [0b11]);
    for (act, error) in [
        (Act::Write(8190, 4), BusError::Unmapped),
        (Act::Read(1 << 30, 4), BusError::Unmapped),
        (Act::Write(u64::MAX - 1, 4), BusError::Unmapped),
        (Act::Write(0, 0), BusError::Unmapped),
        (Act::Write(1 << 20, 4), BusError::ReadOnly),
        (Act::Write(PEER + 4090, 8), BusError::Unmapped),
    ] {
        assert_eq!(rig.act(act), Err(error));
    }
    assert_eq!(rig.act(Act::Read(1 << 20, 4)), Ok(Dma::Done));
    // Longer than what goes by message at all.
    let range = IovaRange::new(1 << 40, 2 * ACCESS_MAX as u64).unwrap();
    rig.runner.map(range, true, DmaTarget::Messages).unwrap();
    let long = rig.act(Act::Write(1 << 40, ACCESS_MAX + 1));
    assert_eq!(long, Err(BusError::TooLong(ACCESS_MAX)));
    for _ in 0..4 {
        assert!(matches!(rig.act(Act::Read(1 << 40, ACCESS_MAX)), Ok(Dma::Later(_))));
    }
    assert_eq!(rig.act(Act::Read(1 << 40, 1)), Err(BusError::Busy), "64 MiB in all");
    assert_eq!(rig.runner.log_report(0, 1 << 16, 4096, 1).unwrap(), [0]);
}

#[test]
fn windows_do_not_overlap_and_are_unmapped_exactly() {
    let mut rig = rig(Capabilities::ALL);
    let range = |start, length| IovaRange::new(start, length).unwrap();
    for (start, length) in [(0, 4096), (4095, 2), (0, 1 << 40), (PEER + 4095, 4096)] {
        let mapped = rig.runner.map(range(start, length), true, DmaTarget::Messages);
        assert_eq!(mapped, Err(Errno::EEXIST), "{start:#x}");
    }
    for (start, length) in [(0, 8192), (0, 4095), (1, 4095), (8192, 4096)] {
        assert_eq!(rig.runner.unmap(range(start, length)), Err(Errno::ENOENT));
    }
    rig.runner.unmap(range(0, 4096)).unwrap();
    assert_eq!(rig.act(Act::Read(4000, 4)), Err(BusError::Unmapped));
    assert_eq!(rig.act(Act::Read(4096, 4)), Ok(Dma::Done));
    // Messages that were not sent yet die with the window.
    let Ok(Dma::Later(token)) = rig.act(Act::Write(PEER, 8)) else { panic!() };
    rig.runner.unmap(range(PEER, 4096)).unwrap();
    assert_eq!(rig.script.lock().unwrap().completions, [(token, Err(Errno::EFAULT))]);
    assert_eq!((rig.runner.next_request(), rig.runner.outstanding()), (None, 0));
}

#[test]
fn messages_are_bounded_and_their_answers_checked() {
    let mut rig = rig(Capabilities::ALL);
    for _ in 0..REQUESTS_MAX {
        assert!(matches!(rig.act(Act::Read(PEER, 8)), Ok(Dma::Later(_))));
    }
    assert_eq!(rig.act(Act::Read(PEER, 8)), Err(BusError::Busy));
    let tokens: Vec<Token> =
        std::iter::from_fn(|| rig.runner.next_request()).map(|r| r.token).collect();
    rig.runner.complete(tokens[1], Ok(&[3; 8])).unwrap();
    rig.runner.complete(tokens[0], Ok(&[3; 7])).unwrap();
    rig.runner.complete(tokens[2], Err(Errno::EFAULT)).unwrap();
    assert_eq!(rig.runner.complete(tokens[0], Ok(&[3; 8])), Err(Errno::ENOENT));
    assert_eq!(
        rig.script.lock().unwrap().completions,
        [
            (tokens[1], Ok(vec![3; 8])),
            (tokens[0], Err(Errno::EIO)),
            (tokens[2], Err(Errno::EFAULT))
        ]
    );
}

#[test]
fn interrupts_go_to_whoever_is_bound() {
    struct Bell(Arc<Mutex<u32>>);
    impl Trigger for Bell {
        fn fire(&self) {
            *self.0.lock().unwrap() += 1;
        }
    }
    let rung = Arc::new(Mutex::new(0));
    let mut rig = rig(Capabilities::ALL);
    assert_eq!(rig.act(Act::Raise(1)), Err(BusError::Unbound));
    let bell = || Some(Box::new(Bell(Arc::clone(&rung))) as Box<dyn Trigger>);
    assert_eq!(rig.runner.bind(2, 2, bell()), Err(Errno::EINVAL));
    assert_eq!(rig.runner.bind(1, 0, bell()), Err(Errno::EINVAL));
    rig.go(State::Resuming);
    rig.runner.bind(2, 1, bell()).unwrap();
    rig.runner.trigger(2, 1).unwrap();
    rig.go(State::Running);
    assert_eq!(rig.act(Act::Raise(1)), Ok(Dma::Done));
    assert_eq!(*rung.lock().unwrap(), 2);
    rig.runner.unbind_index(2);
    assert_eq!(rig.act(Act::Raise(1)), Err(BusError::Unbound));
    assert_eq!(rig.runner.counters().interrupts, 1);
}

fn requests(rig: &mut Rig) -> Vec<Request> {
    std::iter::from_fn(|| rig.runner.next_request()).collect()
}

#[test]
fn an_access_in_pieces_is_one_for_the_model() {
    let mut rig = rig(Capabilities::ALL);
    rig.runner.set_message_limit(16);
    let Ok(Dma::Later(token)) = rig.act(Act::Read(PEER, 40)) else { panic!() };
    let pieces = requests(&mut rig);
    let told: Vec<_> =
        pieces.iter().map(|piece| (piece.at.0 - PEER, piece.kind.clone())).collect();
    let read = RequestKind::Read;
    assert_eq!(told, [(0, read(16)), (16, read(16)), (32, read(8))]);
    assert_eq!(rig.runner.outstanding(), 1);
    for n in [2, 0, 1] {
        assert!(rig.script.lock().unwrap().completions.is_empty());
        let bytes = vec![n as u8; if n == 2 { 8 } else { 16 }];
        rig.runner.complete(pieces[n].token, Ok(&bytes)).unwrap();
    }
    let whole = [vec![0; 16], vec![1; 16], vec![2; 8]].concat();
    assert_eq!(rig.script.lock().unwrap().completions, [(token, Ok(whole))]);
    assert_eq!(rig.runner.counters().dma_bytes_read, 40);
    assert_eq!(rig.runner.outstanding(), 0);
}

#[test]
fn the_first_error_wins_and_ends_what_was_not_sent() {
    let mut rig = rig(Capabilities::ALL);
    rig.runner.set_message_limit(8);
    let Ok(Dma::Later(token)) = rig.act(Act::Write(PEER, 4096)) else { panic!() };
    let pieces = requests(&mut rig);
    assert_eq!(pieces.len(), REQUESTS_MAX, "no more at once");
    let Ok(Dma::Later(second)) = rig.act(Act::Write(PEER, 8)) else { panic!() };
    rig.runner.complete(pieces[5].token, Err(Errno::ENODEV)).unwrap();
    // What was to come of the first is not sent; the second one's turn has come.
    let next = requests(&mut rig);
    assert_eq!((next.len(), next[0].token), (1, second));
    for (n, piece) in pieces.iter().enumerate().filter(|(n, _)| *n != 5) {
        assert!(rig.script.lock().unwrap().completions.is_empty());
        let answer = if n == 7 { Err(Errno::EFAULT) } else { Ok(&[][..]) };
        rig.runner.complete(piece.token, answer).unwrap();
    }
    let done = std::mem::take(&mut rig.script.lock().unwrap().completions);
    assert_eq!(done, [(token, Err(Errno::ENODEV))]);
    assert_eq!(rig.runner.counters().dma_bytes_written, 0);
}

#[test]
fn no_device_counts_as_stopped_before_the_last_piece_is_back() {
    let mut rig = rig(Capabilities::ALL);
    rig.runner.set_message_limit(4);
    assert!(matches!(rig.act(Act::Write(PEER, 4096)), Ok(Dma::Later(_))));
    rig.ask(State::Stop).map(|_| ()).unwrap();
    let mut answered = 0;
    while rig.runner.pending().is_some() {
        assert_eq!(rig.runner.state(), State::Running);
        for piece in requests(&mut rig) {
            rig.runner.complete(piece.token, Ok(&[])).unwrap();
            answered += 1;
        }
        let _ = rig.runner.settle(rig.now);
    }
    assert_eq!((answered, rig.runner.state()), (1024, State::Stop));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever windows an access meets, and however its pieces come back, it moves the
    /// bytes that one over plain memory moves.
    #[test]
    fn an_access_over_any_windows_moves_the_same_bytes(
        kinds in proptest::collection::vec(proptest::bool::ANY, 1..5),
        start in 0..4096_usize,
        len in 1..16_384_usize,
        limit in 1..6000_usize,
        backwards: bool,
    ) {
        const BASE: u64 = 1 << 30;
        let len = len.min(4096 * kinds.len() - start);
        let mut rig = rig(Capabilities::ALL);
        rig.runner.set_message_limit(limit.max(len / 60 + 1));
        let memory = SharedMemory::create("guest", 4096 * kinds.len() as u64).unwrap();
        for (n, by_message) in kinds.iter().enumerate() {
            let at = 4096 * n as u64;
            let target = if *by_message {
                DmaTarget::Messages
            } else {
                DmaTarget::Window(Box::new(memory.slice(at, 4096).unwrap()))
            };
            let range = IovaRange::new(BASE + at, 4096).unwrap();
            rig.runner.map(range, true, target).unwrap();
        }
        let wanted: Vec<u8> = (0..memory.len()).map(|n| (n % 251) as u8).collect();
        // The client's own memory is the same, whichever way it is reached.
        let answer = |request: &Request, memory: &SharedMemory| match &request.kind {
            RequestKind::Read(len) => {
                let mut bytes = vec![0; *len];
                memory.read(request.at.0 - BASE, &mut bytes).unwrap();
                bytes
            }
            RequestKind::Write(data) => {
                memory.write(request.at.0 - BASE, data).unwrap();
                Vec::new()
            }
        };
        for act in [
            Act::Write(BASE + start as u64, len),
            Act::Read(BASE + start as u64, len),
        ] {
            let done = rig.act(act).unwrap();
            let mut pieces = requests(&mut rig);
            if backwards {
                pieces.reverse();
            }
            for piece in pieces {
                let bytes = answer(&piece, &memory);
                rig.runner.complete(piece.token, Ok(&bytes)).unwrap();
            }
            let completions = std::mem::take(&mut rig.script.lock().unwrap().completions);
            match (act, done) {
                (_, Dma::Done) => prop_assert!(completions.is_empty()),
                (Act::Read(..), Dma::Later(token)) => {
                    let read = wanted[start..start + len].to_vec();
                    prop_assert_eq!(completions, [(token, Ok(read))]);
                }
                (_, Dma::Later(token)) => {
                    prop_assert_eq!(completions, [(token, Ok(vec![]))]);
                }
            }
            // The puppet writes sevens.
            let mut now = vec![0; wanted.len()];
            memory.read(0, &mut now).unwrap();
            let sevens = now.iter().enumerate().all(|(n, byte)| {
                let inside = (start..start + len).contains(&n);
                *byte == if inside { 7 } else { 0 } || matches!(act, Act::Read(..))
            });
            prop_assert!(sevens);
            memory.write(0, &wanted).unwrap();
        }
        prop_assert_eq!(rig.runner.outstanding(), 0);
    }
}

/// Counts how often it was rung.
#[derive(Clone, Default)]
struct Bell(Arc<Mutex<u32>>);

impl Trigger for Bell {
    fn fire(&self) {
        *self.0.lock().unwrap() += 1;
    }
}

impl Bell {
    fn bind(&self, rig: &mut Rig, index: u32, vector: u32) {
        rig.runner.bind(index, vector, Some(Box::new(self.clone()))).unwrap();
    }

    fn rung(&self) -> u32 {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[test]
fn an_interrupt_behind_a_mask_is_not_lost_and_not_doubled() {
    let mut rig = rig(Capabilities::ALL);
    let bell = Bell::default();
    let index = MASKABLE.index;
    bell.bind(&mut rig, index, 1);
    assert_eq!(rig.runner.mask(2, 0), Err(Errno::ENOTTY));
    assert_eq!(rig.runner.unmask(2, 0), Err(Errno::ENOTTY));
    assert_eq!(rig.runner.mask(index, 3), Err(Errno::EINVAL));
    rig.runner.mask(index, 1).unwrap();
    rig.runner.mask(index, 1).unwrap();
    for _ in 0..3 {
        assert_eq!(rig.act(Act::RaiseOn(index, 1)), Ok(Dma::Done));
    }
    assert_eq!(bell.rung(), 0);
    // The VMM takes the mask away when the device is stopped already.
    rig.go(State::Stop);
    rig.runner.unmask(index, 1).unwrap();
    rig.runner.unmask(index, 1).unwrap();
    assert_eq!(bell.rung(), 1);
    let counters = rig.runner.counters();
    assert_eq!((counters.interrupts, counters.interrupts_masked), (1, 3));
    assert_eq!(counters.interrupts_while_stopped, 0);
    // A reset forgets what waits, and keeps the mask.
    rig.go(State::Running);
    rig.runner.mask(index, 1).unwrap();
    assert_eq!(rig.act(Act::RaiseOn(index, 1)), Ok(Dma::Done));
    rig.runner.reset();
    assert_eq!(rig.act(Act::RaiseOn(index, 1)), Ok(Dma::Done));
    assert_eq!(bell.rung(), 0);
    rig.runner.unmask(index, 1).unwrap();
    assert_eq!(bell.rung(), 1);
}

#[test]
fn a_line_that_is_up_over_a_stop_is_heard_where_the_device_goes_on() {
    let mut rig = rig(Capabilities::ALL);
    let bell = Bell::default();
    bell.bind(&mut rig, 0, 0);
    assert_eq!(rig.act(Act::Level(true)), Ok(Dma::Done));
    assert_eq!(rig.act(Act::Level(true)), Ok(Dma::Done));
    assert_eq!(bell.rung(), 1);
    // It masked itself; unmasked while stopped it waits for the start.
    rig.go(State::Stop);
    rig.runner.unmask(0, 0).unwrap();
    assert_eq!(bell.rung(), 0);
    rig.go(State::RunningP2p);
    assert_eq!(bell.rung(), 1);
    rig.go(State::Running);
    assert_eq!(bell.rung(), 0);
    // Another client, which binds it while the device is stopped.
    rig.go(State::Stop);
    rig.runner.disconnect();
    bell.bind(&mut rig, 0, 0);
    assert_eq!(bell.rung(), 0);
    rig.go(State::Running);
    assert_eq!(bell.rung(), 1);
    // Set while it is stopped, by a write to config space, it is no violation.
    rig.runner.unmask(0, 0).unwrap();
    assert_eq!(bell.rung(), 1);
    rig.go(State::Stop);
    assert_eq!(rig.act_at(7, Act::Level(false)), Ok(Dma::Done));
    assert_eq!(rig.act_at(7, Act::Level(true)), Ok(Dma::Done));
    rig.runner.unmask(0, 0).unwrap();
    rig.runner.reset();
    assert_eq!(bell.rung(), 0, "a reset takes the line down");
    assert_eq!(rig.act(Act::Level(true)), Ok(Dma::Done));
    assert_eq!(bell.rung(), 1);
    assert_eq!(rig.runner.counters().interrupts_while_stopped, 0);
    assert_eq!(rig.act(Act::RaiseOn(0, 0)), Ok(Dma::Done), "an edge waits as well");
    rig.runner.unmask(0, 0).unwrap();
    assert_eq!(bell.rung(), 1);
}

#[test]
fn a_window_goes_with_its_bits_or_not_at_all() {
    let mut rig = rig(Capabilities::ALL);
    let range = IovaRange::new(0, 4096).unwrap();
    let mut words = vec![7];
    let mut unmap = |rig: &mut Rig, range, most| {
        rig.runner.unmap_dirty(range, 4096, most, &mut words).map(|()| words.clone())
    };
    assert_eq!(unmap(&mut rig, range, 1), Err(Errno::EINVAL));
    rig.runner.log_start(4096, &[]).unwrap();
    assert_eq!(rig.act(Act::Write(8, 8)), Ok(Dma::Done));
    let half = IovaRange::new(0, 2048).unwrap();
    assert_eq!(unmap(&mut rig, half, 1), Err(Errno::ENOENT));
    assert_eq!(unmap(&mut rig, range, 0), Err(Errno::E2BIG));
    assert_eq!(rig.act(Act::Write(8, 8)), Ok(Dma::Done), "it is still there");
    assert_eq!(unmap(&mut rig, range, 1), Ok(vec![7, 1]));
    assert_eq!(rig.act(Act::Write(8, 8)), Err(BusError::Unmapped));
    assert_eq!(rig.runner.log_report(0, 8192, 4096, 1), Ok(vec![0]));
}
