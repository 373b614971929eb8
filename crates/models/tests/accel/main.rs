//! The accelerator, driven as a server drives it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests, and what they share")]

mod interrupts;

use abi::errno::Errno;
use device::{
    Contract, Direction, DmaTarget, Moved, RequestKind, Runner, Session, Trigger, Work,
};
use dirty::IovaRange;
use states::v2::{Capabilities, State};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use sys::SharedMemory;
use vfio_migrate_models::accel::registers as reg;
use vfio_migrate_models::accel::{
    Accel, BAR0, BAR2, BAR4, CONFIG, DATA_VERSION, DIGEST_CHUNK, MSIX, Parameters, block,
    block::BLOCK,
};

const GUEST: u64 = 1 << 20;
const PEER_AT: u64 = 1 << 32;

fn small(capabilities: Capabilities) -> Parameters {
    Parameters { capabilities, ..Parameters::default() }
}

fn write(runner: &mut Runner, register: u64, value: u64) {
    runner.write_region(BAR0, register, &value.to_le_bytes()).unwrap();
}

fn read(runner: &mut Runner, register: u64) -> u64 {
    let mut bytes = [0; 8];
    runner.read_region(BAR0, register, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

fn bus_master(runner: &mut Runner) {
    runner.write_region(CONFIG, 4, &[6, 0]).unwrap();
}

#[derive(Clone, Default)]
struct Count(Arc<AtomicU64>);

impl Trigger for Count {
    fn fire(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A device with guest memory at 0, a peer behind messages, and listeners.
struct Rig {
    runner: Runner,
    guest: SharedMemory,
    irqs: Vec<Count>,
    now: Instant,
}

impl Rig {
    fn new(parameters: Parameters) -> Rig {
        let mut runner = Runner::new(Box::new(Accel::new(parameters).unwrap())).unwrap();
        let guest = SharedMemory::create("guest", GUEST).unwrap();
        let range = IovaRange::new(0, GUEST).unwrap();
        runner.map(range, true, DmaTarget::Window(Box::new(guest.clone()))).unwrap();
        let peer = IovaRange::new(PEER_AT, GUEST).unwrap();
        runner.map(peer, true, DmaTarget::Messages).unwrap();
        let irqs: Vec<Count> =
            (0..parameters.vectors).map(|_| Count::default()).collect();
        for (vector, irq) in irqs.iter().enumerate() {
            runner.bind(2, vector as u32, Some(Box::new(irq.clone()))).unwrap();
        }
        bus_master(&mut runner);
        let mut rig = Rig { runner, guest, irqs, now: Instant::now() };
        rig.config(MSIX + 2, &0x8000_u16.to_le_bytes());
        rig
    }

    fn config(&mut self, at: usize, bytes: &[u8]) {
        self.runner.write_region(CONFIG, at as u64, bytes).unwrap();
    }

    fn set(&mut self, state: State) -> Option<Session> {
        match self.runner.set_state(state, self.now) {
            Ok(Moved::Done(session)) => session,
            other => panic!("{state}: {other:?}"),
        }
    }

    fn turns(&mut self, turns: u32) {
        for _ in 0..turns {
            self.now += Duration::from_millis(1);
            while self.runner.work(self.now) == Work::Again {}
        }
    }
}

/// Everything that the device has, at work at once.
fn exercise(runner: &mut Runner, round: u32) {
    let round = u64::from(round);
    bus_master(runner);
    // Trapped writes: into the window, behind it, and a block that becomes 0 again.
    for (n, offset) in [100, 70_000, 5 << 20, (16 << 20) - 8].into_iter().enumerate() {
        let value = round * 10 + n as u64 + 1;
        runner.write_region(BAR2, offset, &value.to_le_bytes()).unwrap();
    }
    runner.write_region(BAR2, 6 << 20, &[round as u8 & 1; 4096]).unwrap();
    for (engine, iova) in [(reg::RING, 0), (reg::PEER, Contract::MESSAGES)] {
        write(runner, engine + reg::IOVA, iova);
        write(runner, engine + reg::SLOTS, 16);
        write(runner, engine + reg::RATE, 1 << 20);
        write(runner, engine + reg::BATCH, 3);
        write(runner, engine + reg::VECTOR, 1);
        write(runner, engine + reg::CONTROL, reg::RUN);
    }
    if round > 3 {
        write(runner, reg::RING + reg::CONTROL, 0);
    }
    let _ =
        runner.write_region(BAR0, reg::COMMAND_KIND, &reg::COPY_TO_DEVICE.to_le_bytes());
    let _ = runner.write_region(BAR0, reg::COMMAND_OFFSET, &(3_u64 << 20).to_le_bytes());
    let _ = runner.write_region(BAR0, reg::COMMAND_BYTES, &100_000_u64.to_le_bytes());
    let _ = runner.write_region(BAR0, reg::COMMAND_DOORBELL, &1_u64.to_le_bytes());
}

#[test]
fn the_accelerator_keeps_the_contract_with_every_capability_set() {
    for (capabilities, pairs) in Capabilities::EVERY.into_iter().zip([32, 40, 40, 56]) {
        let report = Contract::new(|| Box::new(Accel::new(small(capabilities)).unwrap()))
            .exercise(exercise)
            .check()
            .unwrap();
        assert_eq!(report.pairs, pairs, "{report:?}");
        assert!(report.state_bytes > 100_000, "{report:?}");
        assert_eq!(report.checks.len(), if capabilities.pre_copy() { 6 } else { 5 });
    }
}

#[test]
fn an_empty_device_of_16_gib_does_not_stream_16_gib() {
    let parameters = Parameters { memory_bytes: 16 << 30, ..Parameters::default() };
    let mut rig = Rig::new(parameters);
    rig.runner.write_region(BAR2, 15 << 30, &[1; 4096]).unwrap();
    let session = rig.set(State::StopCopy).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let read = rig.runner.read_data(session, &mut buffer).unwrap();
    assert!(read < 40_000, "{read} bytes");
    let mut other = Rig::new(parameters);
    let session = other.set(State::Resuming).unwrap();
    other.runner.write_data(session, &buffer[..read]).unwrap();
    other.set(State::Stop);
    other.set(State::Running);
    let mut byte = [0; 2];
    other.runner.read_region(BAR2, (15 << 30) + 4095, &mut byte).unwrap();
    assert_eq!(byte, [1, 0]);
}

#[test]
fn the_ring_writes_whole_blocks_at_its_rate_and_says_so() {
    let mut rig = Rig::new(Parameters::default());
    write(&mut rig.runner, reg::RING + reg::SLOTS, 64);
    write(&mut rig.runner, reg::RING + reg::RATE, 4 << 20);
    write(&mut rig.runner, reg::RING + reg::BATCH, 10);
    write(&mut rig.runner, reg::RING + reg::VECTOR, 3);
    write(&mut rig.runner, reg::RING + reg::CONTROL, reg::RUN);
    rig.turns(501);
    let sent = read(&mut rig.runner, reg::RING + reg::SENT);
    assert!((505..=512).contains(&sent), "{sent} blocks in half a second");
    assert_eq!(read(&mut rig.runner, reg::RING + reg::ACKNOWLEDGED), sent);
    assert_eq!(rig.irqs[3].0.load(Ordering::Relaxed), sent / 10);
    assert_eq!(read(&mut rig.runner, reg::IRQ_SENT + 8 * 3), sent / 10);
    let mut bytes = [0; BLOCK];
    for slot in 0..64 {
        rig.guest.read(slot * BLOCK as u64, &mut bytes).unwrap();
        let found = block::check(&bytes).unwrap();
        assert_eq!((found.kind, found.index), (block::Kind::GUEST, slot));
        assert_eq!(found.sequence % 64, slot);
        assert!(found.sequence + 64 >= sent);
    }
    rig.runner.read_region(BAR2, 65536 + 7 * BLOCK as u64, &mut bytes).unwrap();
    let found = block::check(&bytes).unwrap();
    assert_eq!((found.kind, found.sequence, found.index), (block::Kind::DEVICE, 7, 7));
}

#[test]
fn a_device_that_is_not_bus_master_does_nothing() {
    let mut rig = Rig::new(Parameters::default());
    rig.runner.write_region(CONFIG, 4, &[2, 0]).unwrap();
    write(&mut rig.runner, reg::RING + reg::RATE, 1 << 30);
    write(&mut rig.runner, reg::RING + reg::CONTROL, reg::RUN);
    rig.turns(50);
    assert_eq!(read(&mut rig.runner, reg::RING + reg::SENT), 0);
    bus_master(&mut rig.runner);
    rig.turns(5);
    assert!(read(&mut rig.runner, reg::RING + reg::SENT) > 0);
}

#[test]
fn commands_copy_both_ways_and_tell_when_they_are_over() {
    let mut rig = Rig::new(Parameters::default());
    let data: Vec<u8> = (0..300_001_u32).map(|n| ((n * 7) >> 3) as u8).collect();
    rig.guest.write(13, &data).unwrap();
    let run = |rig: &mut Rig, kind, iova, offset, bytes| {
        write(&mut rig.runner, reg::COMMAND_KIND, kind);
        write(&mut rig.runner, reg::COMMAND_IOVA, iova);
        write(&mut rig.runner, reg::COMMAND_OFFSET, offset);
        write(&mut rig.runner, reg::COMMAND_BYTES, bytes);
        write(&mut rig.runner, reg::COMMAND_VECTOR, 5);
        write(&mut rig.runner, reg::COMMAND_DOORBELL, 1);
        assert_eq!(read(&mut rig.runner, reg::COMMAND_STATUS), reg::BUSY);
        let again = rig.runner.write_region(BAR0, reg::COMMAND_DOORBELL, &[1; 8]);
        assert_eq!(again, Err(Errno::EBUSY));
        rig.turns(20);
        read(&mut rig.runner, reg::COMMAND_STATUS)
    };
    let len = data.len() as u64;
    assert_eq!(run(&mut rig, reg::COPY_TO_DEVICE, 13, 1_000_001, len), reg::DONE);
    assert_eq!(run(&mut rig, reg::COPY_TO_GUEST, 500_000, 1_000_001, len), reg::DONE);
    let mut back = vec![0; data.len()];
    rig.guest.read(500_000, &mut back).unwrap();
    assert_eq!(back, data);
    // Guest addresses that lead nowhere.
    assert_eq!(run(&mut rig, reg::COPY_TO_GUEST, GUEST - 5, 0, 10), reg::FAILED);
    assert_eq!(rig.irqs[5].0.load(Ordering::Relaxed), 3);
    assert_eq!(read(&mut rig.runner, reg::COMMAND_COUNT), 3);
    // Commands that make no sense are refused at the doorbell.
    for (register, value) in [
        (reg::COMMAND_BYTES, 0),
        (reg::COMMAND_BYTES, u64::MAX),
        (reg::COMMAND_OFFSET, u64::MAX - 3),
        (reg::COMMAND_IOVA, u64::MAX - 3),
        (reg::COMMAND_KIND, 3),
        (reg::COMMAND_VECTOR, 8),
    ] {
        let before = read(&mut rig.runner, register);
        write(&mut rig.runner, register, value);
        let rung = rig.runner.write_region(BAR0, reg::COMMAND_DOORBELL, &[1; 8]);
        assert_eq!(rung, Err(Errno::EINVAL), "{register:#x} {value:#x}");
        write(&mut rig.runner, register, before);
    }
}

#[test]
fn the_dma_log_has_every_page_that_the_ring_wrote() {
    let mut rig = Rig::new(Parameters::default());
    rig.runner.log_start(4096, &[(0, GUEST)]).unwrap();
    write(&mut rig.runner, reg::RING + reg::IOVA, 4096 * 9);
    write(&mut rig.runner, reg::RING + reg::SLOTS, 5);
    write(&mut rig.runner, reg::RING + reg::RATE, 1 << 20);
    write(&mut rig.runner, reg::RING + reg::CONTROL, reg::RUN);
    rig.turns(100);
    rig.set(State::StopCopy);
    let report = rig.runner.log_report(0, GUEST, 4096, 16).unwrap();
    assert_eq!(report, [0b11111 << 9, 0, 0, 0]);
    assert_eq!(rig.runner.log_report(0, GUEST, 4096, 16).unwrap(), [0; 4]);
}

/// Hands the messages of one device to the other, as their client does.
fn carry(from: &mut Rig, to: &mut Rig, offset: u64) -> u64 {
    let mut carried = 0;
    while let Some(request) = from.runner.next_request() {
        let at = request.at.0 - PEER_AT + offset;
        let result = match request.kind {
            RequestKind::Write(data) => to.runner.write_region(BAR2, at, &data),
            RequestKind::Read(_) => panic!("peers are written only"),
        };
        from.runner.complete(request.token, result.map(|()| &[][..])).unwrap();
        carried += 1;
    }
    carried
}

#[test]
fn peers_writing_at_full_rate_reach_no_stopped_device() {
    let mut rigs = [Rig::new(Parameters::default()), Rig::new(Parameters::default())];
    for rig in &mut rigs {
        write(&mut rig.runner, reg::PEER + reg::IOVA, PEER_AT);
        write(&mut rig.runner, reg::PEER + reg::SLOTS, 256);
        write(&mut rig.runner, reg::PEER + reg::RATE, 1 << 40);
        write(&mut rig.runner, reg::PEER + reg::CONTROL, reg::RUN);
    }
    let [a, b] = &mut rigs;
    for _ in 0..100 {
        a.turns(1);
        b.turns(1);
        assert!(a.runner.outstanding() <= 4);
        carry(a, b, 8 << 20);
        carry(b, a, 8 << 20);
    }
    a.turns(1);
    b.turns(1);
    // Both have writes on their way: neither gets to its P2P state before they landed.
    for rig in [&mut *a, &mut *b] {
        assert!(rig.runner.outstanding() > 0);
        let moved = rig.runner.set_state(State::RunningP2p, rig.now);
        assert_eq!(moved, Ok(Moved::Pending));
        assert_eq!(rig.runner.state(), State::Running);
        assert_eq!(rig.runner.settle(rig.now), None);
    }
    carry(a, b, 8 << 20);
    assert_eq!(a.runner.settle(a.now), Some(Ok(None)));
    // It takes what its peer still sends, and sends nothing itself.
    a.turns(20);
    assert_eq!(a.runner.outstanding(), 0);
    assert!(carry(b, a, 8 << 20) > 0);
    assert_eq!(b.runner.settle(b.now), Some(Ok(None)));
    for rig in [&mut *a, &mut *b] {
        rig.set(State::Stop);
        rig.set(State::RunningP2p);
        rig.turns(5);
        assert_eq!(rig.runner.outstanding(), 0);
    }
    for (one, other) in [(0, 1), (1, 0)] {
        let sent = read(&mut rigs[one].runner, reg::PEER + reg::SENT);
        assert!(sent > 300, "{sent}");
        assert_eq!(read(&mut rigs[one].runner, reg::PEER + reg::ACKNOWLEDGED), sent);
        assert_eq!(read(&mut rigs[one].runner, reg::PEER + reg::ERRORS), 0);
        let received = read(&mut rigs[other].runner, reg::RECEIVED);
        let sum = read(&mut rigs[other].runner, reg::RECEIVED_SUM);
        assert_eq!((received, sum), (sent, sent * (sent - 1) / 2));
        assert_eq!(rigs[one].runner.counters().accesses_while_stopped, 0);
    }
    let [a, b] = &mut rigs;
    a.set(State::Running);
    a.turns(5);
    b.set(State::Stop);
    // One that comes too late is refused, and seen.
    assert!(carry(a, b, 8 << 20) > 0);
    let late = b.runner.counters().accesses_while_stopped;
    assert!(late > 0);
    let counters = b.runner.digest().unwrap().counters;
    assert!(counters.contains(&("accesses_while_stopped".to_owned(), late)));
    assert!(read(&mut a.runner, reg::PEER + reg::ERRORS) > 0);
}

#[test]
fn a_flipped_bit_in_device_memory_is_in_the_digest() {
    let mut rig = Rig::new(Parameters::default());
    let before = rig.runner.digest().unwrap();
    let at = 5 * DIGEST_CHUNK + 17;
    rig.runner.write_region(BAR2, at, &[4]).unwrap();
    let after = rig.runner.digest().unwrap();
    let place = before.difference(&after).unwrap();
    assert!(place.starts_with("device memory at 0x50000"), "{place}");
    // What is written through the window is seen as well.
    let window = rig.runner.description().region(BAR2).unwrap().windows[0].clone();
    window.memory.write(100, &[1]).unwrap();
    let place = after.difference(&rig.runner.digest().unwrap()).unwrap();
    assert!(place.starts_with("device memory at 0x0"), "{place}");
}

#[test]
fn what_was_written_through_the_window_travels() {
    for most in [0, 1 << 20] {
        let mut rig = Rig::new(Parameters::default());
        let window = rig.runner.description().region(BAR2).unwrap().windows[0].clone();
        let session = rig.set(State::PreCopy).unwrap();
        assert_eq!(session.direction(), Direction::Save);
        let mut data = vec![0; most];
        let read = match most {
            0 => 0,
            _ => rig.runner.read_data(session, &mut data).unwrap(),
        };
        data.truncate(read);
        window.memory.write(4096 * 3, b"unseen").unwrap();
        rig.set(State::StopCopy);
        let mut buffer = vec![0; 1 << 20];
        loop {
            match rig.runner.read_data(session, &mut buffer).unwrap() {
                0 => break,
                read => data.extend_from_slice(&buffer[..read]),
            }
        }
        let mut other = Rig::new(Parameters::default());
        let session = other.set(State::Resuming).unwrap();
        other.runner.write_data(session, &data).unwrap();
        other.set(State::Stop);
        assert_eq!(rig.runner.digest(), other.runner.digest());
    }
}

#[test]
fn another_size_window_or_version_is_refused() {
    let mut rig = Rig::new(Parameters::default());
    let session = rig.set(State::StopCopy).unwrap();
    let mut data = vec![0; 1 << 20];
    let read = rig.runner.read_data(session, &mut data).unwrap();
    for other in [
        Parameters { memory_bytes: 32 << 20, ..Parameters::default() },
        Parameters { mapped_window: 4096, ..Parameters::default() },
        Parameters { data_version: DATA_VERSION - 1, ..Parameters::default() },
    ] {
        let mut rig = Rig::new(other);
        let session = rig.set(State::Resuming).unwrap();
        let taken = rig.runner.write_data(session, &data[..read]);
        assert_eq!(taken, Err(Errno::EINVAL), "{other:?}");
        let stopped = rig.runner.set_state(State::Stop, rig.now);
        assert_eq!(stopped, Err(Errno::EINVAL));
        assert_ne!(
            rig.runner.description().identity,
            Runner::new(Box::new(Accel::new(Parameters::default()).unwrap()))
                .unwrap()
                .description()
                .identity
        );
    }
}

#[test]
fn sizes_that_no_bar_can_have_are_refused() {
    for (memory_bytes, mapped_window) in [
        (8 << 20, 0),
        (24 << 20, 0),
        (32 << 30, 0),
        (16 << 20, 4095),
        (16 << 20, (8 << 20) + 4096),
    ] {
        let parameters =
            Parameters { memory_bytes, mapped_window, ..Parameters::default() };
        Accel::new(parameters).unwrap_err();
    }
    let without = Parameters { mapped_window: 0, ..Parameters::default() };
    let rig = Rig::new(without);
    assert!(rig.runner.description().region(BAR2).unwrap().windows.is_empty());
}

#[test]
fn odd_register_accesses_and_the_msix_table_are_refused_or_empty() {
    let mut rig = Rig::new(Parameters::default());
    for (offset, len) in [(0, 1), (2, 2), (1, 4), (4, 8), (0, 16)] {
        let mut bytes = vec![0; len];
        assert_eq!(rig.runner.read_region(BAR0, offset, &mut bytes), Err(Errno::EINVAL));
    }
    let mut half = [0; 4];
    rig.runner.read_region(BAR0, reg::ID, &mut half).unwrap();
    assert_eq!(&half, b"ACCE");
    rig.runner.write_region(BAR0, reg::RING + reg::RATE + 4, &[1, 0, 0, 0]).unwrap();
    assert_eq!(read(&mut rig.runner, reg::RING + reg::RATE), 1 << 32);
    let rung = rig.runner.write_region(BAR0, reg::RING + reg::CONTROL, &[2; 8]);
    assert_eq!(rung, Err(Errno::EINVAL));
    assert_eq!(rig.runner.write_region(BAR4, 0, &[1; 4]), Err(Errno::EINVAL));
    rig.runner.read_region(BAR4, 0, &mut half).unwrap();
    assert_eq!(half, [0; 4]);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]

    /// Whatever is written when, and however the stream is cut: the other device holds
    /// the same.
    #[test]
    fn nothing_is_lost_whenever_it_is_written(
        writes in proptest::collection::vec(
            (0_u64..(16 << 20) - 20_000, 1_usize..20_000, 0_u8..3, 0_usize..100_000), 0..24),
        cut in 1_usize..70_000,
    ) {
        let mut rig = Rig::new(Parameters::default());
        let mut data = Vec::new();
        let mut session = None;
        for (n, (offset, len, value, read)) in writes.iter().enumerate() {
            if n == writes.len() / 3 {
                session = rig.set(State::PreCopy);
            }
            rig.runner.write_region(BAR2, *offset, &vec![*value; *len]).unwrap();
            if let (Some(session), true) = (session, *read > 0) {
                let mut buffer = vec![0; *read];
                let read = rig.runner.read_data(session, &mut buffer).unwrap();
                data.extend_from_slice(&buffer[..read]);
            }
        }
        let stopped = rig.set(State::StopCopy);
        let session = session.or(stopped).unwrap();
        let mut buffer = vec![0; 100_000];
        loop {
            match rig.runner.read_data(session, &mut buffer).unwrap() {
                0 => break,
                read => data.extend_from_slice(&buffer[..read]),
            }
        }
        let mut other = Rig::new(Parameters::default());
        other.runner.write_region(BAR2, 77_777, &[9; 50_000]).unwrap();
        let session = other.set(State::Resuming).unwrap();
        for part in data.chunks(cut) {
            other.runner.write_data(session, part).unwrap();
        }
        other.set(State::Stop);
        let difference =
            rig.runner.digest().unwrap().difference(&other.runner.digest().unwrap());
        proptest::prop_assert_eq!(difference, None);
    }
}

#[test]
fn no_peer_write_begins_in_a_p2p_state_even_where_the_peer_is_mapped() {
    let mut rig = Rig::new(Parameters::default());
    for (engine, iova) in [(reg::RING, 0), (reg::PEER, GUEST / 2)] {
        write(&mut rig.runner, engine + reg::IOVA, iova);
        write(&mut rig.runner, engine + reg::SLOTS, 8);
        write(&mut rig.runner, engine + reg::RATE, 1 << 24);
        write(&mut rig.runner, engine + reg::CONTROL, reg::RUN);
    }
    rig.turns(10);
    for (p2p, state) in
        [(State::RunningP2p, State::Running), (State::PreCopyP2p, State::PreCopy)]
    {
        let _ = rig.set(p2p);
        let ring = read(&mut rig.runner, reg::RING + reg::SENT);
        let peer = read(&mut rig.runner, reg::PEER + reg::SENT);
        assert!(peer > 0);
        rig.turns(10);
        assert!(read(&mut rig.runner, reg::RING + reg::SENT) > ring, "{p2p}");
        assert_eq!(read(&mut rig.runner, reg::PEER + reg::SENT), peer, "{p2p}");
        let _ = rig.set(state);
        rig.turns(10);
        assert!(read(&mut rig.runner, reg::PEER + reg::SENT) > peer, "{state}");
    }
}
