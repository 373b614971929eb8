//! A guest copied into a file and run from one, and everything that breaks on the way.

mod rig;

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use port::{
    Archive, ChannelError, Gpa, GuestMemory as _, Phase, Progress, Receive, Transmit,
};
use rig::{ATTEMPT, BOUND, Opening, Rig, assert_moved, contents};
use states::v2::{Capabilities, State};
use testkit::{
    Break, Breaker, Failure, FakeDmaMap, FakeFile, FakeMemory, FakeStored, FileHandle,
    Recorder, Side, When,
};
use vfio_migrate_engine::drive::{
    FileCause, Played, Playing, RecordOptions, Recorded, Recording, SourceHandle,
    restore, verify, verify_guest,
};
use vfio_migrate_engine::migration::sink::Ending;
use vfio_migrate_engine::migration::{Cause, Outcome, Recovery};

const ALL: Capabilities = Capabilities::ALL;
const SET: [Capabilities; 2] = [Capabilities::ALL, Capabilities::STOP_COPY];
const PATIENCE: Duration = Duration::from_secs(5);

fn options(stopped: bool) -> RecordOptions {
    RecordOptions { stopped, patience: PATIENCE }
}

/// Records, and looks on.
fn record_watched(
    rig: &mut Rig,
    into: Box<dyn Archive>,
    options: RecordOptions,
    watch: impl Fn(&SourceHandle, &Progress) + Send + Sync + 'static,
) -> Recorded {
    let machine = rig.machine.take().expect("a machine");
    let recording = Recording::new(machine, into, ATTEMPT, options);
    let handle = recording.handle();
    let recording = recording.observer(Arc::new(Watch(move |progress: &Progress| {
        watch(&handle, progress);
    })));
    bounded(move || recording.run())
}

fn record(rig: &mut Rig, into: FakeFile, options: RecordOptions) -> Recorded {
    record_watched(rig, Box::new(into), options, |_, _| {})
}

/// Plays into the machine of a rig.
fn play(rig: &mut Rig, from: Vec<u8>, paused: bool) -> Played {
    let machine = rig.machine.take().expect("a machine");
    play_into(Box::new(move |_| Ok(machine)), from, paused)
}

fn play_into(open: Opening, from: Vec<u8>, paused: bool) -> Played {
    let playing = Playing::new(Box::new(FakeStored::new(from)), PATIENCE, open, paused);
    bounded(move || playing.run())
}

struct Watch<F>(F);

impl<F: Fn(&Progress) + Send + Sync> port::Observer for Watch<F> {
    fn progress(&self, progress: &Progress) {
        (self.0)(progress);
    }
}

fn bounded<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, end) = channel();
    thread::spawn(move || done.send(act()));
    end.recv_timeout(BOUND).expect("it comes to an end")
}

fn check_file(file: &[u8]) -> Result<(), String> {
    verify_guest(&mut FakeStored::new(file.to_vec()), PATIENCE)
        .map(|_| ())
        .map_err(|error| error.to_string())
}

/// A guest that ran, and the file of it.
fn recorded(set: &[Capabilities]) -> (Rig, Vec<u8>) {
    let mut source = Rig::source(&Side::alone("source"), set);
    source.interrupts.iter().for_each(|lines| assert!(lines.raise(2)));
    let file = FakeFile::new();
    let handle = file.handle();
    let recorded = record(&mut source, file, options(false));
    recorded.result.expect("recorded");
    let file = handle.contents().expect("a file");
    assert_eq!(recorded.file.expect("a file").bytes, file.len() as u64);
    source.machine = Some(recorded.machine);
    (source, file)
}

fn as_before(source: &Rig, paused: bool, file: &FileHandle) {
    assert!(file.contents().is_none(), "half a file");
    assert_eq!(source.vcpus.paused(), paused);
    let home = if paused { State::Stop } else { State::Running };
    for (n, device) in source.devices.iter().enumerate() {
        assert_eq!(device.state(), home);
        assert_eq!(device.contents(), contents(n));
    }
    assert!(!source.log.started(), "still tracking");
}

#[test]
fn a_guest_that_was_recorded_goes_on_and_its_copy_is_the_same() {
    for set in [&SET[..], &[Capabilities::STOP_COPY], &[]] {
        let (source, file) = recorded(set);
        assert!(!source.vcpus.paused());
        assert!(source.devices.iter().all(|device| device.state() == State::Running));
        check_file(&file).expect("whole");
        let far = Side::alone("destination");
        let mut destination = Rig::destination(&far, set);
        let played = play(&mut destination, file, false);
        assert_eq!(played.ending, Ending::Running { paused: false });
        played.file.expect("a whole file");
        assert_moved(&source, &destination);
        assert!(!destination.vcpus.paused());
        assert!(destination.devices.iter().all(|one| one.state() == State::Running));
        for lines in &destination.interrupts {
            assert_eq!(lines.pending()[2], 1, "the pending interrupt");
        }
        // And the guest that was recorded has not lost it.
        for lines in &source.interrupts {
            assert_eq!(lines.pending()[2], 1, "the interrupt of the guest that goes on");
        }
    }
}

#[test]
fn a_recorded_guest_is_stopped_once_and_the_report_says_how_long() {
    let mut source = Rig::source(&Side::alone("source"), &SET);
    let phases = Recorder::default();
    let told = phases.clone();
    let watch = move |_: &SourceHandle, progress: &Progress| {
        port::Observer::progress(&told, progress);
    };
    let file = Box::new(FakeFile::new());
    let recorded = record_watched(&mut source, file, options(false), watch);
    recorded.result.expect("recorded");
    let report = recorded.report;
    assert_eq!(report.outcome, Outcome::Completed);
    assert_eq!(report.rounds, 0, "no pre-copy");
    let sum: Duration = report.phases.iter().map(|phase| phase.took).sum();
    assert_eq!(Some(sum), report.downtime);
    assert!(report.phases.iter().any(|phase| phase.phase == Phase::Start));
    assert_eq!(report.memory_bytes, 24 * 4096);
    assert!(!phases.phases().contains(&Phase::Precopy));
    assert!(!phases.phases().contains(&Phase::Commit), "nothing is given away");
    assert!(source.side.witness().violations().is_empty());
}

#[test]
fn a_guest_that_is_suspended_stays_stopped_and_runs_on_from_its_file() {
    let mut source = Rig::source(&Side::alone("source"), &SET);
    let file = FakeFile::new();
    let handle = file.handle();
    let recorded = record(&mut source, file, options(true));
    recorded.result.expect("recorded");
    assert!(recorded.report.downtime.is_none(), "it has not ended");
    assert!(source.vcpus.paused());
    assert!(source.devices.iter().all(|device| device.state() == State::Stop));
    let file = handle.contents().expect("a file");
    // It ran when it was recorded.
    let found = verify_guest(&mut FakeStored::new(file.clone()), PATIENCE).unwrap();
    assert!(!found.paused);
    assert_eq!((found.id, found.devices.len()), (ATTEMPT, 2));
    let far = Side::alone("destination");
    let mut destination = Rig::destination(&far, &SET);
    let played = play(&mut destination, file.clone(), false);
    assert_eq!(played.ending, Ending::Running { paused: false });
    assert_moved(&source, &destination);
    // Or stays so, where that is asked for.
    let other = Side::alone("other");
    let mut other = Rig::destination(&other, &SET);
    let played = play(&mut other, file, true);
    assert_eq!(played.ending, Ending::Running { paused: true });
    assert!(other.vcpus.paused());
    assert!(other.devices.iter().all(|device| device.state() == State::Stop));
}

#[test]
fn a_paused_guest_stays_paused_here_and_in_its_file() {
    for stopped in [false, true] {
        let mut source = Rig::paused(&Side::alone("source"), &SET);
        let file = FakeFile::new();
        let handle = file.handle();
        let recorded = record(&mut source, file, options(stopped));
        recorded.result.expect("recorded");
        assert!(recorded.report.downtime.is_none(), "a paused guest has no downtime");
        assert!(source.vcpus.paused());
        assert!(source.devices.iter().all(|device| device.state() == State::Stop));
        let far = Side::alone("destination");
        let mut destination = Rig::destination(&far, &SET);
        let played = play(&mut destination, handle.contents().expect("a file"), false);
        assert_eq!(played.ending, Ending::Running { paused: true });
        assert_moved(&source, &destination);
    }
}

#[test]
fn a_full_disk_leaves_no_half_file_and_the_guest_goes_on() {
    let (_, whole) = recorded(&SET);
    for stopped in [false, true] {
        for room in [0, 63, 64, 500, whole.len() / 2, whole.len() - 1] {
            let mut source = Rig::source(&Side::alone("source"), &SET);
            let file = FakeFile::with_room(room);
            let handle = file.handle();
            let recorded = record(&mut source, file, options(stopped));
            let error = recorded.result.expect_err("full");
            assert!(matches!(error.cause, Cause::File(_)), "{room}: {error}");
            let before = room <= 500;
            let recovery = if before { Recovery::Retry } else { Recovery::SourceResumed };
            assert_eq!(error.recovery, recovery, "{room}: {error}");
            assert_eq!(recorded.report.outcome, Outcome::Failed);
            assert!(recorded.file.is_none());
            as_before(&source, false, &handle);
        }
    }
}

/// A file that cannot be made durable.
struct NotDurable(FakeFile);

impl Transmit for NotDurable {
    fn send(&mut self, parts: &[std::io::IoSlice<'_>]) -> Result<(), ChannelError> {
        self.0.send(parts)
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.0.set_deadline(deadline);
    }
}

impl Archive for NotDurable {
    fn commit(&mut self) -> Result<(), ChannelError> {
        Err(ChannelError::Io(std::io::ErrorKind::StorageFull.into()))
    }
}

#[test]
fn a_copy_that_is_not_durable_does_not_pass_for_one() {
    for stopped in [false, true] {
        let mut source = Rig::source(&Side::alone("source"), &SET);
        let file = FakeFile::new();
        let handle = file.handle();
        let file = Box::new(NotDurable(file));
        let recorded = record_watched(&mut source, file, options(stopped), |_, _| {});
        let error = recorded.result.expect_err("not durable");
        assert!(matches!(error.cause, Cause::File(_)), "{error}");
        assert_eq!(error.recovery, Recovery::SourceResumed);
        assert!(recorded.file.is_none());
        as_before(&source, false, &handle);
    }
}

#[test]
fn a_cancelled_copy_leaves_nothing_and_the_guest_as_it_was() {
    for phase in [Phase::Setup, Phase::VcpuStop, Phase::Stop, Phase::Memory] {
        for paused in [false, true] {
            let near = Side::alone("source");
            let mut source =
                if paused { Rig::paused(&near, &SET) } else { Rig::source(&near, &SET) };
            let file = FakeFile::new();
            let handle = file.handle();
            let watch = move |steer: &SourceHandle, progress: &Progress| {
                if *progress == Progress::Phase(phase) {
                    steer.cancel();
                }
            };
            let file = Box::new(file);
            let recorded = record_watched(&mut source, file, options(true), watch);
            let error = recorded.result.expect_err("cancelled");
            assert_eq!(error.cause, Cause::Cancelled, "{phase:?}");
            assert_eq!(recorded.report.outcome, Outcome::Cancelled);
            assert!(recorded.file.is_none());
            as_before(&source, paused, &handle);
        }
    }
}

#[test]
fn whatever_breaks_once_the_guest_goes_on_or_its_copy_is_whole() {
    let mut source = Rig::source(&Side::alone("source"), &[ALL]);
    let never = Breaker::never();
    source.broken_by(&never);
    record(&mut source, FakeFile::new(), options(false)).result.expect("recorded");
    let targets = never.targets();
    assert!(targets.len() > 20, "{targets:?}");
    for (call, occurrence) in targets {
        for how in [Break::Before, Break::After, Break::ForGood] {
            let breaker = Breaker::call(&call, occurrence, how);
            let mut source = Rig::source(&Side::alone("source"), &[ALL]);
            source.broken_by(&breaker);
            let file = FakeFile::new();
            let handle = file.handle();
            let patience = Duration::from_secs(1);
            let options = RecordOptions { patience, stopped: false };
            let recorded = record(&mut source, file, options);
            let what = format!("{call} {occurrence} {how:?}: {:?}", recorded.result);
            assert_eq!(recorded.file.is_some(), handle.contents().is_some(), "{what}");
            if let Some(file) = handle.contents() {
                check_file(&file).unwrap_or_else(|error| panic!("{what}: {error}"));
            }
            let lost = match &recorded.result {
                Ok(()) => false,
                Err(error) => error.recovery == Recovery::DeviceLost,
            };
            if lost {
                // vCPUs that fail to say whether they run may do so.
                assert!(source.vcpus.paused() || call.contains("vcpus"), "{what}");
            } else {
                assert!(!source.vcpus.paused(), "{what}");
                assert_eq!(source.devices[0].state(), State::Running, "{what}");
                assert_eq!(source.devices[0].contents(), contents(0), "{what}");
                let tried = recorded.result.is_ok();
                assert_eq!(recorded.file.is_some(), tried, "{what}");
            }
            assert!(source.side.witness().violations().is_empty(), "{what}");
        }
    }
}

#[test]
fn a_device_that_does_not_come_back_is_in_the_file_and_nowhere_else() {
    let set = [Capabilities::STOP_COPY];
    let mut source = Rig::source(&Side::alone("source"), &set);
    for state in [State::Stop, State::Running] {
        let failure = Failure::of(When::SetState(state), port::Fault::Gone);
        source.devices[0].fail(failure);
    }
    let file = FakeFile::new();
    let handle = file.handle();
    let recorded = record(&mut source, file, options(false));
    let error = recorded.result.expect_err("a device is lost");
    assert_eq!(error.recovery, Recovery::DeviceLost, "{error}");
    assert!(source.vcpus.paused(), "its guest does not go on without it");
    assert!(recorded.file.is_some());
    let file = handle.contents().expect("the only copy");
    let far = Side::alone("destination");
    let mut destination = Rig::destination(&far, &set);
    let played = play(&mut destination, file, false);
    assert_eq!(played.ending, Ending::Running { paused: false });
    assert_eq!(destination.devices[0].contents(), contents(0));
}

#[test]
fn a_damaged_file_is_refused_before_a_device_is_touched() {
    let (_, whole) = recorded(&[ALL]);
    check_file(&whole).expect("whole");
    let mut places: Vec<usize> = (0..whole.len().min(2_000)).collect();
    places.extend((2_000..whole.len()).step_by(397));
    for at in places {
        let mut changed = whole.clone();
        changed[at] ^= 0x10;
        assert!(check_file(&changed).is_err(), "byte {at}");
        assert!(check_file(&whole[..at]).is_err(), "cut at {at}");
    }
    let mut longer = whole.clone();
    longer.push(0);
    let text = check_file(&longer).expect_err("too long");
    assert!(text.contains("something follows its end"), "{text}");
}

#[test]
fn a_damaged_file_from_a_pipe_runs_nothing() {
    let (_, whole) = recorded(&[ALL]);
    let places = (0..whole.len()).step_by(whole.len() / 40).chain([whole.len() - 1]);
    for at in places {
        for cut in [false, true] {
            let mut file = whole.clone();
            if cut {
                file.truncate(at);
            } else {
                file[at] ^= 0x10;
            }
            let far = Side::alone("destination");
            let mut destination = Rig::destination(&far, &[ALL]);
            let machine = destination.machine.take().expect("a machine");
            let played = play_into(Box::new(move |_| Ok(machine)), file, false);
            let cause = played.file.expect_err("damaged");
            let named = matches!(
                cause,
                FileCause::Damaged { .. } | FileCause::Refused(_) | FileCause::File(_)
            );
            assert!(named, "{at} {cut}: {cause}");
            assert!(
                matches!(played.ending, Ending::Discarded(_) | Ending::Refused(_)),
                "{at} {cut}: {:?}",
                played.ending
            );
            assert!(destination.vcpus.paused(), "{at} {cut}");
            assert!(!destination.devices[0].holds_guest(), "{at} {cut}");
            assert!(far.witness().violations().is_empty());
        }
    }
}

#[test]
fn a_file_that_does_not_fit_is_refused_with_the_fields_of_both_sides() {
    let (_, file) = recorded(&[ALL]);
    let refused = |mut destination: Rig, reason: &str| {
        let side = destination.side.clone();
        let played = play(&mut destination, file.clone(), false);
        let Ending::Refused(reasons) = &played.ending else {
            panic!("{:?} instead of {reason}", played.ending);
        };
        let text = reasons.join("; ");
        assert!(text.contains(reason), "{reason:?} is not in {text:?}");
        let moved = |e: &&String| e.contains(" to RESUMING");
        assert_eq!(side.journal().entries().iter().find(moved), None, "{reason}");
    };
    let far = || Side::alone("destination");
    let mut smaller = Rig::destination(&far(), &[ALL]);
    smaller.machine().memory = Arc::new(FakeMemory::new(&[(0, 16 * 4096)]));
    refused(smaller, "guest memory is");
    refused(Rig::destination(&far(), &[ALL, ALL]), "1 devices");
    let fake = testkit::FakeDevice::blank(&far(), "dev0", ALL, rig::CONTENTS);
    let fake = fake.with_identity(|identity| identity.model = None);
    let side = far();
    let vcpus = testkit::FakeVcpus::paused(&side);
    refused(Rig::new(&side, vec![fake], vcpus), "model");
}

#[test]
fn a_file_of_devices_and_one_of_a_guest_are_not_taken_for_each_other() {
    let (_, guest) = recorded(&[ALL]);
    let mut from = FakeStored::new(guest.clone());
    let text = verify(&mut from, PATIENCE).expect_err("a guest").to_string();
    assert!(text.contains("run the guest from it"), "{text}");
    let mut from = FakeStored::new(guest);
    let restored = restore(
        &mut from,
        |_| unreachable!("refused before anything is opened"),
        &Default::default(),
        Arc::new(port::Silent),
    );
    let text = restored.result.expect_err("a guest").to_string();
    assert!(text.contains("run the guest from it"), "{text}");
    let golden = include_bytes!("golden/v1/saved.bin").to_vec();
    let text = check_file(&golden).expect_err("devices alone");
    assert!(text.contains("restore the devices"), "{text}");
    let open: Opening = Box::new(|_| unreachable!("refused before anything is opened"));
    let played = play_into(open, golden, false);
    let text = played.file.expect_err("devices alone").to_string();
    assert!(text.contains("restore the devices"), "{text}");
}

#[test]
fn a_reader_that_stops_giving_does_not_hold_the_destination_for_ever() {
    struct Silent(FakeStored, usize);
    impl Receive for Silent {
        fn receive(&mut self, into: &mut [u8]) -> Result<(), ChannelError> {
            if self.1 == 0 {
                return Err(ChannelError::TimedOut(1));
            }
            self.1 -= 1;
            self.0.receive(into)
        }

        fn set_deadline(&mut self, _: Duration) {}
    }
    let (_, file) = recorded(&[ALL]);
    for reads in [0, 1, 3, 7] {
        let far = Side::alone("destination");
        let mut destination = Rig::destination(&far, &[ALL]);
        let machine = destination.machine.take().expect("a machine");
        let from = Box::new(Silent(FakeStored::new(file.clone()), reads));
        let playing = Playing::new(from, PATIENCE, Box::new(move |_| Ok(machine)), false);
        let played = bounded(move || playing.run());
        assert!(played.file.is_err(), "{reads}");
        assert!(destination.vcpus.paused());
        assert!(!destination.devices[0].holds_guest());
    }
}

/// A small guest, the same every time.
fn small_guest() -> Rig {
    let mut rig = Rig::source(&Side::alone("source"), &[ALL]);
    let memory = FakeMemory::new(&[(0, 4 * 4096)]);
    for page in 0..3 {
        let bytes = [page as u8 + 1; 4096];
        memory.write(Gpa(page * 4096), &bytes).expect("inside");
    }
    rig.machine().dma = Arc::new(FakeDmaMap::identity(&memory));
    rig.machine().memory = Arc::new(memory.clone());
    rig.memory = memory;
    assert!(rig.interrupts[0].raise(3));
    rig
}

#[test]
fn a_guest_that_version_1_saved_runs_on_for_ever() {
    let source = small_guest();
    let golden = include_bytes!("golden/v1/guest.bin").to_vec();
    let found = verify_guest(&mut FakeStored::new(golden.clone()), PATIENCE).unwrap();
    assert_eq!((found.id, found.paused), (ATTEMPT, false));
    assert_eq!((found.memory_bytes, found.devices), (4 * 4096, vec!["dev0".to_owned()]));
    let far = Side::alone("destination");
    let mut destination = Rig::destination(&far, &[ALL]);
    let memory = FakeMemory::new(&[(0, 4 * 4096)]);
    destination.machine().memory = Arc::new(memory.clone());
    destination.memory = memory;
    let played = play(&mut destination, golden, false);
    assert_eq!(played.ending, Ending::Running { paused: false });
    assert_moved(&source, &destination);
    assert_eq!(destination.interrupts[0].pending()[3], 1);
}
