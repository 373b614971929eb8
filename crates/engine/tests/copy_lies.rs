//! Files of a guest that are in order frame by frame, and are no guest; and commits that
//! take their time.

mod rig;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use port::{Archive, ChannelError, Phase, Progress, Transmit};
use rig::{ATTEMPT, BOUND, CONTENTS, Rig, contents};
use states::v2::Capabilities;
use testkit::{FakeDevice, FakeFile, FakeStored, FakeVcpus, Side};
use vfio_migrate_engine::drive::{
    FileCause, Played, Playing, RecordOptions, Recording, verify_guest,
};
use vfio_migrate_engine::migration::Cause;
use vfio_migrate_engine::migration::sink::Ending;
use wire::device::DeviceBegin;
use wire::memory::{Content, MemoryRuns, Run, RunKind, RunTable};
use wire::preamble::{Preamble, Role};
use wire::{Decoder, Encoder, FrameType, Header};

const ALL: Capabilities = Capabilities::ALL;
const PATIENCE: Duration = Duration::from_secs(5);

fn bounded<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, end) = channel();
    thread::spawn(move || done.send(act()));
    end.recv_timeout(BOUND).expect("it comes to an end")
}

/// The file of this guest.
fn recorded(rig: &mut Rig) -> Vec<u8> {
    let file = FakeFile::new();
    let handle = file.handle();
    let options = RecordOptions { stopped: false, patience: PATIENCE };
    let machine = rig.machine.take().expect("a machine");
    let recording = Recording::new(machine, Box::new(file), ATTEMPT, options);
    bounded(move || recording.run()).result.expect("recorded");
    handle.contents().expect("a file")
}

fn play(rig: &mut Rig, file: &[u8], verified: bool) -> Played {
    let machine = rig.machine.take().expect("a machine");
    let from = Box::new(FakeStored::new(file.to_vec()));
    let playing = Playing::new(from, PATIENCE, Box::new(move |_| Ok(machine)), false);
    let playing = if verified {
        let mut from = FakeStored::new(file.to_vec());
        playing.verified(&verify_guest(&mut from, PATIENCE).expect("whole"))
    } else {
        playing
    };
    bounded(move || playing.run())
}

/// A frame: its type, and its payload.
type Parts = (FrameType, Vec<u8>);

/// The file with other frames instead of each of its own, all of it numbered and summed
/// up anew.
fn rewritten(file: &[u8], mut other: impl FnMut(Parts) -> Vec<Parts>) -> Vec<u8> {
    let (head, mut rest) = file.split_first_chunk().expect("a preamble");
    let preamble = Preamble::decode(head).expect("a preamble");
    let mut decoder = Decoder::new(Role::File, preamble.page_size);
    let mut encoder = Encoder::new(Role::File);
    let mut written = head.to_vec();
    while let Some((head, tail)) = rest.split_first_chunk::<{ Header::SIZE }>() {
        let header = decoder.header(head).expect("a header");
        let (payload, tail) = tail.split_at(header.length as usize);
        decoder.payload(&header, payload).expect("a frame");
        rest = tail;
        if header.kind == FrameType::CHANNEL_END {
            written.extend(encoder.channel_end().expect("the end"));
            continue;
        }
        for (kind, payload) in other((header.kind, payload.to_vec())) {
            let head = encoder.header(kind, header.flags, &[&payload]).expect("it fits");
            written.extend(head);
            written.extend(payload);
        }
    }
    written
}

/// The runs of a payload that are wanted, as another payload.
fn with_runs(payload: &[u8], wanted: impl Fn(usize, Run) -> Option<Run>) -> Vec<u8> {
    let page = wire::preamble::PageSize::KIB_4;
    let runs = MemoryRuns::decode(payload, page).expect("runs");
    let (mut table, mut data) = (RunTable::new(page), Vec::new());
    for (n, (run, content)) in runs.iter().enumerate() {
        let Some(run) = wanted(n, run) else { continue };
        table.push(run.gpa, run.pages, run.kind).expect("it fits");
        if let (RunKind::Data, Content::Data(bytes)) = (run.kind, content) {
            data.extend_from_slice(&bytes[..run.pages as usize * 4096]);
        }
    }
    [table.prefix(), &data].concat()
}

/// It is refused at once where it can be read twice, and by a pipe it runs nothing.
fn runs_nothing(file: &[u8], why: &str) {
    let found = verify_guest(&mut FakeStored::new(file.to_vec()), PATIENCE);
    let text = found.expect_err("it is no guest").to_string();
    assert!(text.contains(why), "{why:?} is not in {text:?}");
    let far = Side::alone("destination");
    let mut destination = Rig::destination(&far, &[ALL]);
    let played = play(&mut destination, file, false);
    let cause = played.file.expect_err("it is no guest").to_string();
    assert!(cause.contains(why), "{why:?} is not in {cause:?}");
    assert!(matches!(played.ending, Ending::Discarded(_)), "{:?}", played.ending);
    assert!(destination.vcpus.paused());
    assert!(!destination.devices[0].holds_guest());
    assert!(far.witness().violations().is_empty());
}

#[test]
fn a_guest_does_not_run_with_zeros_where_its_file_has_no_pages() {
    let file = recorded(&mut Rig::source(&Side::alone("source"), &[ALL]));
    let mut runs = 0;
    let same = rewritten(&file, |(kind, payload)| {
        if kind == FrameType::MEMORY_RUNS {
            let page = wire::preamble::PageSize::KIB_4;
            runs = MemoryRuns::decode(&payload, page).expect("runs").iter().count();
        }
        vec![(kind, payload)]
    });
    assert_eq!(same, file);
    assert!(runs > 1);
    let without = rewritten(&file, |(kind, payload)| {
        if kind == FrameType::MEMORY_RUNS { vec![] } else { vec![(kind, payload)] }
    });
    runs_nothing(&without, "did not come");
    for n in 0..runs {
        let less = |wanted: &dyn Fn(usize, Run) -> Option<Run>| {
            rewritten(&file, |(kind, payload)| match kind {
                FrameType::MEMORY_RUNS => vec![(kind, with_runs(&payload, wanted))],
                _ => vec![(kind, payload)],
            })
        };
        let gone = less(&|at, run| (at != n).then_some(run));
        runs_nothing(&gone, "did not come");
        let shorter = less(&|at, run| match run {
            Run { pages: 2.., .. } if at == n => {
                Some(Run { pages: run.pages - 1, ..run })
            }
            _ if at == n => None,
            _ => Some(run),
        });
        runs_nothing(&shorter, "did not come");
    }
}

#[test]
fn a_file_that_never_stops_giving_the_same_pages_is_not_read_for_ever() {
    let file = recorded(&mut Rig::source(&Side::alone("source"), &[ALL]));
    let twice = rewritten(&file, |part| {
        let again = part.0 == FrameType::MEMORY_RUNS;
        if again { vec![part.clone(), part] } else { vec![part] }
    });
    runs_nothing(&twice, "comes twice");
}

#[test]
fn a_device_that_begins_again_in_a_file_is_not_taken_for_one_that_was_reset() {
    let file = recorded(&mut Rig::source(&Side::alone("source"), &[ALL]));
    let mut begin = None;
    let again = rewritten(&file, |(kind, payload)| {
        let mut parts = vec![(kind, payload.clone())];
        if kind == FrameType::DEVICE_BEGIN {
            let next = DeviceBegin::decode(&payload).expect("a begin");
            let next = DeviceBegin { attempt: 1, ..next };
            let frame = Encoder::new(Role::File).device_begin(&next).expect("it fits");
            begin = Some(frame[Header::SIZE..].to_vec());
        } else if kind == FrameType::DEVICE_DATA
            && let Some(begin) = begin.take()
        {
            parts.push((FrameType::DEVICE_BEGIN, begin));
        }
        parts
    });
    let found = verify_guest(&mut FakeStored::new(again.clone()), PATIENCE);
    found.expect_err("it begins twice");
    let mut destination = Rig::destination(&Side::alone("destination"), &[ALL]);
    let played = play(&mut destination, &again, false);
    played.file.expect_err("it begins twice");
    assert!(destination.vcpus.paused());
    assert!(!destination.devices[0].holds_guest());
}

#[test]
fn frames_of_a_file_in_another_order_or_missing_never_run_half_a_guest() {
    let file = recorded(&mut Rig::source(&Side::alone("source"), &[ALL]));
    let mut kinds = Vec::new();
    rewritten(&file, |(kind, payload)| {
        kinds.push(kind);
        vec![(kind, payload)]
    });
    assert!(kinds.len() > 6, "{kinds:?}");
    for (n, kind) in kinds.iter().enumerate() {
        // Only what each is missing for is another: that it does not run is the same.
        let mut at = 0;
        let without = rewritten(&file, |part| {
            at += 1;
            if at == n + 1 { vec![] } else { vec![part] }
        });
        let mut at = 0;
        let twice = rewritten(&file, |part| {
            at += 1;
            if at == n + 1 { vec![part.clone(), part] } else { vec![part] }
        });
        // The same config or the same interrupts once more change nothing.
        let harmless = [FrameType::CONFIG, FrameType::INTERRUPTS].contains(kind);
        let wrong = [Some(without), (!harmless).then_some(twice)];
        for (what, file) in wrong.into_iter().enumerate() {
            let Some(file) = file else { continue };
            let mut destination = Rig::destination(&Side::alone("destination"), &[ALL]);
            let played = play(&mut destination, &file, false);
            let what = format!("{kind} {n} {what}: {:?}", played.ending);
            assert!(!matches!(played.ending, Ending::Running { .. }), "{what}");
            assert!(destination.vcpus.paused(), "{what}");
            assert!(!destination.devices[0].holds_guest(), "{what}");
        }
    }
}

#[test]
fn a_transaction_that_a_device_has_no_room_for_is_refused_before_it_gets_any_data() {
    let near = Side::alone("source");
    let device = FakeDevice::new(&near, "dev0", ALL, contents(0)).with_transactions();
    let mut source = Rig::used(&near, vec![device]);
    let file = recorded(&mut source);
    let found =
        verify_guest(&mut FakeStored::new(file.clone()), PATIENCE).expect("whole");
    let [Some(longest)] = found.transactions[..] else { panic!("{found:?}") };
    assert!(longest > 0);
    for (room, fits) in [(longest - 1, false), (longest, true)] {
        let far = Side::alone("destination");
        let device = FakeDevice::blank(&far, "dev0", ALL, CONTENTS)
            .with_transactions()
            .with_longest_transaction(room);
        let vcpus = FakeVcpus::paused(&far);
        let mut destination = Rig::new(&far, vec![device], vcpus);
        let played = play(&mut destination, &file, true);
        if fits {
            assert_eq!(played.ending, Ending::Running { paused: false });
            continue;
        }
        let cause = played.file.expect_err("no room");
        assert!(matches!(cause, FileCause::Refused(_)), "{cause}");
        let text = cause.to_string();
        for named in ["dev0", "data section", &longest.to_string(), &room.to_string()] {
            assert!(text.contains(named), "{named} is not in {text:?}");
        }
        assert!(matches!(played.ending, Ending::Discarded(_)), "{:?}", played.ending);
        assert!(!destination.devices[0].holds_guest());
        let entries = far.journal().entries();
        assert!(!entries.iter().any(|entry| entry.contains("write")), "{entries:?}");
    }
}

/// A file that becomes durable when somebody says so, or after some time.
struct Slow {
    file: FakeFile,
    takes: Duration,
    reached: Sender<()>,
    go_on: Receiver<()>,
}

impl Transmit for Slow {
    fn send(&mut self, parts: &[std::io::IoSlice<'_>]) -> Result<(), ChannelError> {
        self.file.send(parts)
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.file.set_deadline(deadline);
    }
}

impl Archive for Slow {
    fn commit(&mut self) -> Result<(), ChannelError> {
        let _ = self.reached.send(());
        let _ = self.go_on.recv_timeout(self.takes);
        self.file.commit()
    }
}

/// Hears of the phases.
struct Phases(Mutex<Sender<Phase>>);

impl port::Observer for Phases {
    fn progress(&self, progress: &Progress) {
        if let Progress::Phase(phase) = progress {
            let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).send(*phase);
        }
    }
}

#[test]
fn a_file_that_became_durable_after_the_cancel_is_not_denied() {
    let mut source = Rig::source(&Side::alone("source"), &[ALL]);
    let file = FakeFile::new();
    let handle = file.handle();
    let ((reached, at_commit), (let_go, go_on)) = (channel(), channel());
    let slow = Slow { file, takes: BOUND, reached, go_on };
    let (phases, heard) = channel();
    let options = RecordOptions { stopped: true, patience: PATIENCE };
    let machine = source.machine.take().expect("a machine");
    let recording = Recording::new(machine, Box::new(slow), ATTEMPT, options)
        .observer(Arc::new(Phases(Mutex::new(phases))));
    let steer = recording.handle();
    let (done, end) = channel();
    thread::spawn(move || {
        let _ = done.send(recording.run());
    });
    at_commit.recv_timeout(BOUND).expect("all of it is written");
    steer.cancel();
    while heard.recv_timeout(BOUND).expect("it goes back") != Phase::Cleanup {}
    // The guest is on again, and nobody listens to whoever writes the file.
    let until = Instant::now() + BOUND;
    while source.vcpus.paused() && Instant::now() < until {
        thread::yield_now();
    }
    let_go.send(()).expect("the commit goes on");
    let recorded = end.recv_timeout(BOUND).expect("it comes to an end");
    let error = recorded.result.expect_err("cancelled");
    assert_eq!(error.cause, Cause::Cancelled);
    assert!(!source.vcpus.paused());
    let there = handle.contents().expect("it was durable");
    let said = recorded.file.expect("and it is said to be there");
    assert_eq!(said.bytes, there.len() as u64);
    verify_guest(&mut FakeStored::new(there), PATIENCE).expect("whole");
}

#[test]
fn a_disk_that_takes_longer_than_any_patience_does_not_undo_a_suspend() {
    let mut source = Rig::source(&Side::alone("source"), &[ALL]);
    let file = FakeFile::new();
    let handle = file.handle();
    let patience = Duration::from_millis(400);
    let ((reached, _at_commit), (_let_go, go_on)) = (channel(), channel());
    let slow = Slow { file, takes: patience * 5, reached, go_on };
    let options = RecordOptions { stopped: true, patience };
    let machine = source.machine.take().expect("a machine");
    let recording = Recording::new(machine, Box::new(slow), ATTEMPT, options);
    let recorded = bounded(move || recording.run());
    recorded.result.expect("it only took its time");
    assert!(recorded.file.is_some() && handle.contents().is_some());
    assert!(source.vcpus.paused(), "it stays stopped");
}
