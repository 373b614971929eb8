//! Devices saved to a file and restored from one, and everything that breaks on the way.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use abi::errno::Errno;
use port::{Archive, AttemptId, Device, Fault, Model, Silent};
use states::v2::{Capabilities, State};
use testkit::{
    Break, Breaker, DeviceHandle, Failure, FakeDevice, FakeFile, FakeStored, Faulty,
    FileHandle, Side, When,
};
use vfio_migrate_engine::drive::{
    FileCause, Leave, Offered, RestoreOptions, Restored, SaveOptions, Saved, restore,
    save, save_blockers, verify,
};
use vfio_migrate_engine::migration::Recovery;

const ALL: Capabilities = Capabilities::ALL;
const STOP_COPY: Capabilities = Capabilities::STOP_COPY;
const ID: AttemptId = AttemptId([7; 16]);
const PATIENCE: Duration = Duration::from_secs(5);

fn contents(n: usize, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i * 7 + n * 13) as u8).collect()
}

struct Set {
    side: Side,
    devices: Vec<Box<dyn Device>>,
    handles: Vec<DeviceHandle>,
}

impl Set {
    /// Devices of a guest that runs.
    fn used(set: &[Capabilities], bytes: usize) -> Set {
        Set::of(set, |side, name, capabilities, n| {
            FakeDevice::new(side, name, capabilities, contents(n, bytes))
        })
    }

    /// Devices that hold nothing.
    fn blank(set: &[Capabilities], bytes: usize) -> Set {
        Set::of(set, |side, name, capabilities, _| {
            FakeDevice::blank(side, name, capabilities, bytes)
        })
    }

    fn of(
        set: &[Capabilities],
        each: impl Fn(&Side, &str, Capabilities, usize) -> FakeDevice,
    ) -> Set {
        let side = Side::alone("here");
        let one =
            |(n, set): (usize, &Capabilities)| each(&side, &format!("dev{n}"), *set, n);
        let fakes: Vec<FakeDevice> = set.iter().enumerate().map(one).collect();
        let handles = fakes.iter().map(FakeDevice::handle).collect();
        let devices =
            fakes.into_iter().map(|fake| Box::new(fake) as Box<dyn Device>).collect();
        Set { side, devices, handles }
    }

    /// All of them were stopped by their operator.
    fn stopped(mut self) -> Set {
        for device in &mut self.devices {
            device.set_state(State::Stop).expect("a legal arc");
        }
        self
    }

    fn broken_by(mut self, breaker: &Breaker) -> Set {
        let faulty = |(n, device)| -> Box<dyn Device> {
            Box::new(Faulty::new(&format!("dev{n}"), breaker, device))
        };
        self.devices = self.devices.into_iter().enumerate().map(faulty).collect();
        self
    }

    fn states(&self) -> Vec<State> {
        self.handles.iter().map(DeviceHandle::state).collect()
    }

    fn contents(&self) -> Vec<Vec<u8>> {
        self.handles.iter().map(DeviceHandle::contents).collect()
    }

    fn save(&mut self, file: FakeFile, options: &SaveOptions) -> (Saved, FileHandle) {
        let handle = file.handle();
        (self.save_to(&mut { file }, options), handle)
    }

    fn save_to(&mut self, file: &mut dyn Archive, options: &SaveOptions) -> Saved {
        let devices = std::mem::take(&mut self.devices);
        save(devices, ID, file, options, Arc::new(Silent))
    }

    fn restore(&mut self, file: Vec<u8>, options: &RestoreOptions) -> Restored {
        let devices = std::mem::take(&mut self.devices);
        let mut from = FakeStored::new(file);
        restore(&mut from, |_| Ok(devices), options, Arc::new(Silent))
    }
}

/// The file of a set that was saved while it ran.
fn file_of(set: &[Capabilities], bytes: usize) -> Vec<u8> {
    let mut set = Set::used(set, bytes);
    let (saved, file) = set.save(FakeFile::new(), &SaveOptions::default());
    saved.result.expect("saved");
    file.contents().expect("a file")
}

fn leave(leave: Leave) -> SaveOptions {
    SaveOptions { leave, ..SaveOptions::default() }
}

fn start(start: bool) -> RestoreOptions {
    RestoreOptions { start, ..RestoreOptions::default() }
}

#[test]
fn a_device_that_is_saved_does_not_run_on() {
    let mut source = Set::used(&[ALL, STOP_COPY, ALL], 3_000_000);
    let before = source.contents();
    let (saved, file) = source.save(FakeFile::new(), &SaveOptions::default());
    let report = saved.result.expect("saved");
    assert_eq!(source.states(), [State::Running; 3]);
    assert_eq!(source.contents(), before);
    assert!(report.running && report.stopped.is_some());
    assert_eq!(saved.devices.len(), 3);
    let file = file.contents().expect("a file");
    assert_eq!(report.bytes, file.len() as u64);

    let found = verify(&mut FakeStored::new(file.clone()), PATIENCE).expect("whole");
    assert_eq!((found.bytes, found.frames, found.id), (report.bytes, report.frames, ID));
    for (read, saved) in found.devices.iter().zip(&report.devices) {
        assert_eq!((&read.name, read.bytes), (&saved.name, saved.bytes));
        assert_eq!((&read.identity, read.crc), (&saved.identity, saved.crc));
    }

    let mut there = Set::blank(&[ALL, STOP_COPY, ALL], 3_000_000);
    let restored = there.restore(file, &start(true));
    let report = restored.result.expect("restored");
    assert!(report.running);
    assert_eq!(there.states(), [State::Running; 3]);
    assert_eq!(there.contents(), before);
}

#[test]
fn a_restored_device_runs_before_anybody_says_so() {
    let file = file_of(&[ALL, ALL], 10_000);
    let mut there = Set::blank(&[ALL, ALL], 10_000);
    let restored = there.restore(file, &start(false));
    assert!(!restored.result.expect("restored").running);
    assert_eq!(there.states(), [State::Stop; 2]);
    assert_eq!(there.contents(), [contents(0, 10_000), contents(1, 10_000)]);
    assert_eq!(there.side.witness().running(), Vec::<String>::new());
}

#[test]
fn a_device_that_was_stopped_runs_after_its_save() {
    for how in [Leave::AsBefore, Leave::Stopped] {
        let mut set = Set::used(&[ALL, STOP_COPY], 10_000).stopped();
        let (saved, file) = set.save(FakeFile::new(), &leave(how));
        let report = saved.result.expect("saved");
        assert_eq!(set.states(), [State::Stop; 2]);
        assert!(!report.running && report.stopped.is_none());
        assert!(file.contents().is_some());
        assert_eq!(set.contents(), [contents(0, 10_000), contents(1, 10_000)]);
    }
}

/// An archive whose commit looks at the devices.
struct Looks<F>(FakeFile, F);

impl<F: Send> port::Transmit for Looks<F> {
    fn send(&mut self, parts: &[std::io::IoSlice<'_>]) -> Result<(), port::ChannelError> {
        self.0.send(parts)
    }

    fn set_deadline(&mut self, _: Duration) {}
}

impl<F: Fn() + Send> Archive for Looks<F> {
    fn commit(&mut self) -> Result<(), port::ChannelError> {
        (self.1)();
        self.0.commit()
    }
}

#[test]
fn a_slow_disk_is_part_of_the_stop() {
    for (how, state) in [(Leave::AsBefore, State::Running), (Leave::Stopped, State::Stop)]
    {
        let mut set = Set::used(&[ALL, STOP_COPY], 10_000);
        let handles = set.handles.clone();
        let look = move || {
            assert!(handles.iter().all(|handle| handle.state() == state));
        };
        let saved = set.save_to(&mut Looks(FakeFile::new(), look), &leave(how));
        assert_eq!(saved.result.expect("saved").running, how == Leave::AsBefore);
        assert_eq!(set.states(), [state; 2]);
    }
}

#[test]
fn peers_are_stopped_and_started_one_after_the_other() {
    let mut set = Set::used(&[ALL, STOP_COPY], 10_000);
    let (saved, _) = set.save(FakeFile::new(), &SaveOptions::default());
    saved.result.expect("saved");
    assert!(set.side.journal().in_order(&[
        "here dev0: RUNNING to RUNNING_P2P",
        "here dev1: RUNNING to STOP_COPY",
        "here dev0: RUNNING_P2P to STOP_COPY",
        "here dev0: STOP_COPY to RUNNING_P2P",
        "here dev1: STOP_COPY to RUNNING",
    ]));
}

#[test]
fn what_cannot_be_saved_is_touched() {
    let mut two = Set::used(&[STOP_COPY, STOP_COPY], 100);
    let reasons = save_blockers(&mut two.devices, true);
    assert!(reasons[0].contains("P2P"), "{reasons:?}");
    assert!(save_blockers(&mut two.devices, false).is_empty());
    assert_eq!(save_blockers(&mut [], true).len(), 1);

    let mut mixed = Set::used(&[ALL, ALL], 100);
    mixed.devices[1].set_state(State::Stop).expect("a legal arc");
    let reasons = save_blockers(&mut mixed.devices, true);
    assert!(reasons[0].contains("dev0 runs and dev1 is stopped"), "{reasons:?}");

    let mut busy = Set::used(&[ALL], 100);
    busy.devices[0].set_state(State::PreCopy).expect("a legal arc");
    let asked = busy.side.journal().entries();
    let (saved, file) = busy.save(FakeFile::new(), &SaveOptions::default());
    let error = saved.result.expect_err("refused");
    assert!(error.to_string().contains("dev0 is in PRE_COPY"), "{error}");
    assert_eq!((error.recovery(), file.contents()), (Recovery::Retry, None));
    assert_eq!(busy.side.journal().entries(), asked);
    assert_eq!(saved.devices.len(), 1);
}

#[test]
fn a_disk_that_is_full_at_any_byte_leaves_a_device_stopped() {
    let set = [ALL, STOP_COPY];
    let whole = file_of(&set, 5000).len();
    for room in (0..whole).step_by(97).chain([whole - 1]) {
        for how in [Leave::AsBefore, Leave::Stopped] {
            let mut source = Set::used(&set, 5000);
            let (saved, file) = source.save(FakeFile::with_room(room), &leave(how));
            let error = saved.result.expect_err("full");
            assert!(matches!(error.cause, FileCause::File(_)), "{error}");
            assert_ne!(error.recovery(), Recovery::DeviceLost, "{error}");
            assert_eq!(file.contents(), None);
            assert_eq!(source.states(), [State::Running; 2]);
            assert_eq!(source.contents(), [contents(0, 5000), contents(1, 5000)]);
        }
    }
}

/// What must hold after a save in which one call broke.
fn after_a_save(set: &Set, was: State, how: Leave, saved: &Saved, file: Option<Vec<u8>>) {
    let before = [contents(0, 9000), contents(1, 9000)];
    match &saved.result {
        Ok(_) => {
            let file = file.expect("a report without a file");
            let mut there = Set::blank(&[ALL, STOP_COPY], 9000);
            there.restore(file, &start(false)).result.expect("a file that is not whole");
            assert_eq!(there.contents(), before);
            let left = if how == Leave::Stopped { State::Stop } else { was };
            assert_eq!(set.states(), [left; 2]);
            assert_eq!(set.contents(), before);
        }
        Err(error) => match error.recovery() {
            Recovery::Retry | Recovery::SourceResumed => {
                assert_eq!(set.states(), [was; 2], "{error}");
                assert_eq!(set.contents(), before, "{error}");
                assert_eq!(file, None, "{error}");
            }
            Recovery::DeviceLost => {
                assert_eq!(error.kept(), file.is_some(), "{error}");
                // Every device that is not as it was is named, and no other.
                for (n, handle) in set.handles.iter().enumerate() {
                    let whole = (handle.state(), handle.contents().len()) == (was, 9000)
                        && handle.contents() == before[n];
                    let named = error.devices.contains(&format!("dev{n}"));
                    assert!(whole || named, "dev{n}: {error}");
                }
                if let Some(file) = file {
                    verify(&mut FakeStored::new(file), PATIENCE).expect("whole");
                }
            }
            other => unreachable!("{other:?}: {error}"),
        },
    }
    assert_eq!(saved.devices.len(), 2);
    assert!(set.handles.iter().all(|handle| !handle.in_session()));
}

#[test]
fn every_call_of_a_save_breaks_once() {
    for (was, how) in [
        (State::Running, Leave::AsBefore),
        (State::Running, Leave::Stopped),
        (State::Stop, Leave::AsBefore),
    ] {
        let run = |breaker: &Breaker| {
            let set = Set::used(&[ALL, STOP_COPY], 9000);
            let set = if was == State::Stop { set.stopped() } else { set };
            let mut set = set.broken_by(breaker);
            let file = FakeFile::new();
            let handle = file.handle();
            let mut file = Faulty::new("file", breaker, Box::new(file));
            let saved = set.save_to(&mut file, &leave(how));
            drop(file);
            (set, saved, handle.contents())
        };
        let never = Breaker::never();
        run(&never).1.result.expect("saved");
        let targets = never.targets();
        assert!(targets.len() > 25, "only {} calls", targets.len());
        for (name, occurrence) in targets {
            for kind in [Break::Before, Break::After, Break::ForGood] {
                let breaker = Breaker::call(&name, occurrence, kind);
                let (set, saved, file) = run(&breaker);
                assert_eq!(breaker.broken().as_deref(), Some(&*name));
                if name == "file: commit" {
                    // It is done and nobody knows: a real one removes what it made.
                    let none = None;
                    after_a_save(&set, was, how, &saved, none);
                } else {
                    after_a_save(&set, was, how, &saved, file);
                }
            }
        }
    }
}

#[test]
fn the_only_copy_of_a_device_is_thrown_away() {
    let mut set = Set::used(&[ALL], 9000);
    let refuse = |state| Failure::of(When::SetState(state), Fault::Refused(Errno::EIO));
    for state in [State::RunningP2p, State::Running] {
        set.handles[0]
            .fail(refuse(state).times(9).after(u32::from(state.is_p2p_quiescent())));
    }
    let (saved, file) = set.save(FakeFile::new(), &SaveOptions::default());
    let error = saved.result.expect_err("it does not start");
    assert_eq!(error.recovery(), Recovery::DeviceLost);
    assert!(error.kept(), "{error}");
    assert!(error.to_string().contains("the file is whole and has it"), "{error}");
    let mut there = Set::blank(&[ALL], 9000);
    let file = file.contents().expect("the only copy");
    there.restore(file, &start(true)).result.expect("restored");
    assert_eq!(there.contents(), [contents(0, 9000)]);
}

#[test]
fn every_call_of_a_restore_breaks_once() {
    let set = [ALL, STOP_COPY];
    let file = file_of(&set, 9000);
    let run = |breaker: &Breaker| {
        let mut there = Set::blank(&set, 9000).broken_by(breaker);
        let restored = there.restore(file.clone(), &start(true));
        (there, restored)
    };
    let never = Breaker::never();
    run(&never).1.result.expect("restored");
    assert!(never.targets().len() > 12);
    for (name, occurrence) in never.targets() {
        for kind in [Break::Before, Break::After, Break::ForGood] {
            let (there, restored) = run(&Breaker::call(&name, occurrence, kind));
            let error = restored.result.expect_err("it broke");
            assert_eq!(restored.devices.len(), 2);
            match error.recovery() {
                Recovery::Retry | Recovery::SourceResumed => {
                    fresh(&there, &error.to_string());
                }
                other => unreachable!("{kind:?} {name} {occurrence}: {other:?}: {error}"),
            }
        }
    }
}

/// Nothing of a half-loaded device is left, and nothing of it ever ran.
fn fresh(there: &Set, why: &str) {
    for handle in &there.handles {
        assert_eq!(handle.state(), State::Running, "{why}");
        assert!(!handle.holds_guest() && !handle.in_session(), "{why}");
        assert!(handle.contents().iter().all(|byte| *byte == 0), "{why}");
    }
    assert!(there.side.witness().violations().is_empty());
}

#[test]
fn a_reset_that_fails_is_passed_over() {
    let file = file_of(&[ALL], 9000);
    let mut there = Set::blank(&[ALL], 9000);
    there.handles[0].fail(Failure::of(When::Write, Fault::Refused(Errno::EIO)));
    there.handles[0].fail(Failure::of(When::Reset, Fault::Refused(Errno::EIO)));
    let error = there.restore(file, &start(false)).result.expect_err("it broke");
    assert_eq!(error.recovery(), Recovery::DeviceLost);
    assert_eq!(error.devices, ["dev0"]);
    assert!(error.to_string().contains("dev0 could not be reset"), "{error}");
}

#[test]
fn a_file_that_was_cut_off_at_any_byte_is_loaded_by_half() {
    let set = [ALL, STOP_COPY];
    let file = file_of(&set, 300);
    for length in 0..file.len() {
        let cut = file[..length].to_vec();
        verify(&mut FakeStored::new(cut.clone()), PATIENCE).expect_err("cut off");
        let mut there = Set::blank(&set, 300);
        let error = there.restore(cut, &start(true)).result.expect_err("cut off");
        let text = error.to_string();
        let damaged = matches!(error.cause, FileCause::Damaged { .. });
        assert!(damaged && text.contains("ends before"), "{length}: {text}");
        fresh(&there, &text);
    }
}

#[test]
fn a_byte_that_changed_anywhere_is_believed() {
    let set = [ALL, STOP_COPY];
    let file = file_of(&set, 300);
    for at in 0..file.len() {
        let mut bad = file.clone();
        bad[at] ^= 1 << (at % 8);
        verify(&mut FakeStored::new(bad.clone()), PATIENCE).expect_err("changed");
        let mut there = Set::blank(&set, 300);
        let error = there.restore(bad, &start(true)).result.expect_err("changed");
        fresh(&there, &error.to_string());
    }
}

#[test]
fn what_follows_the_end_is_ignored() {
    let mut file = file_of(&[ALL], 300);
    let whole = file.len() as u64;
    file.push(0);
    let mut there = Set::blank(&[ALL], 300);
    let error = there.restore(file, &start(true)).result.expect_err("too long");
    let FileCause::Damaged { offset, what, .. } = &error.cause else {
        unreachable!("{error}");
    };
    assert_eq!((*offset, &**what), (whole, "something follows its end"));
    fresh(&there, &error.to_string());
}

#[test]
fn another_device_takes_data_that_it_does_not_know() {
    let known =
        |name: &str, version| Model { name: name.to_owned(), data_version: version };
    let with = |model: Model| {
        Set::of(&[ALL], move |side, name, set, n| {
            FakeDevice::new(side, name, set, contents(n, 500))
                .with_identity(|identity| identity.model = Some(model.clone()))
        })
    };
    let mut source = with(known("accel", 1));
    let (saved, file) = source.save(FakeFile::new(), &SaveOptions::default());
    saved.result.expect("saved");
    let file = file.contents().expect("a file");
    for (model, says) in [
        (known("uart", 1), "is a model accel in the file and a model uart here"),
        (known("accel", 2), "saves data of version 1 in the file, and version 2"),
    ] {
        let mut there = with(model);
        let asked = there.side.journal().entries();
        let restored = there.restore(file.clone(), &start(true));
        let error = restored.result.expect_err("another device");
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(error.recovery(), Recovery::Retry);
        assert_eq!(there.side.journal().entries(), asked);
        assert_eq!(there.contents(), [contents(0, 500)]);
    }
    let mut two = Set::blank(&[ALL, ALL], 500);
    let error = two.restore(file, &start(true)).result.expect_err("two devices");
    assert!(error.to_string().contains("there are 1 devices in the file and 2 here"));
}

#[test]
fn a_device_that_cannot_be_opened_is_not_named() {
    let mut from = FakeStored::new(file_of(&[ALL, STOP_COPY], 500));
    let mut seen = Vec::new();
    let open = |offered: &[Offered]| {
        seen.extend(offered.iter().map(|one| one.name.clone()));
        Err(vec!["dev1: nobody serves it".to_owned()])
    };
    let restored = restore(&mut from, open, &start(false), Arc::new(Silent));
    let error = restored.result.expect_err("not opened");
    assert_eq!(error.to_string(), "refused: dev1: nobody serves it");
    assert!(restored.devices.is_empty());
    assert_eq!(seen, ["dev0", "dev1"]);
}

#[test]
fn a_save_that_is_cancelled_leaves_a_device_stopped() {
    let mut set = Set::used(&[ALL, STOP_COPY], 10_000);
    let options = SaveOptions::default();
    let cancel = Arc::clone(&options.cancel);
    cancel.store(true, Ordering::Relaxed);
    let (saved, file) = set.save(FakeFile::new(), &options);
    let error = saved.result.expect_err("cancelled");
    assert_eq!(error.cause, FileCause::Cancelled);
    assert_eq!((set.states(), file.contents()), (vec![State::Running; 2], None));
}

#[test]
fn a_transaction_is_torn_apart() {
    let with = |bytes: Vec<u8>| {
        Set::of(&[ALL], move |side, name, set, _| {
            FakeDevice::new(side, name, set, bytes.clone()).with_transactions()
        })
    };
    let mut source = with(contents(3, 3_000_000));
    let (saved, file) = source.save(FakeFile::new(), &SaveOptions::default());
    saved.result.expect("saved");
    let mut there = with(vec![0; 3_000_000]);
    let file = file.contents().expect("a file");
    there.restore(file, &start(true)).result.expect("restored");
    assert_eq!(there.contents(), [contents(3, 3_000_000)]);
}

#[test]
fn a_restored_device_that_is_validated_at_its_start_is_said_to_be() {
    let file = file_of(&[ALL, ALL], 10_000);
    let mut there = Set::of(&[ALL, ALL], |side, name, set, n| {
        let device = FakeDevice::blank(side, name, set, 10_000);
        if n == 1 { device.validated_late() } else { device }
    });
    let report = there.restore(file, &start(false)).result.expect("restored");
    let late = report.devices.iter().map(|device| device.validated_at_start);
    assert_eq!(late.collect::<Vec<_>>(), [false, true]);
}
