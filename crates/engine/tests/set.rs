//! `DeviceSet` alone: the flow of the 2018 RFC, for a VMM that keeps its own loop.

use abi::errno::Errno;
use port::{Device, Fault, Read};
use states::v2::{Capabilities, State};
use testkit::{DeviceHandle, Failure, FakeDevice, Recorder, Side, When};
use vfio_migrate_engine::devices::{DeviceId, DeviceSet, Goal, Rollback, SetError};

const ALL: Capabilities = Capabilities::ALL;
const STOP_COPY: Capabilities = Capabilities::STOP_COPY;
const SIZE: usize = 10_000;

fn source(side: &Side, set: &[Capabilities]) -> (DeviceSet, Vec<DeviceHandle>) {
    devices(set, |n, set| {
        FakeDevice::new(side, &format!("dev{n}"), set, vec![n as u8 + 1; SIZE])
    })
}

fn destination(side: &Side, set: &[Capabilities]) -> (DeviceSet, Vec<DeviceHandle>) {
    devices(set, |n, set| FakeDevice::blank(side, &format!("dev{n}"), set, SIZE))
}

fn devices(
    set: &[Capabilities],
    each: impl Fn(usize, Capabilities) -> FakeDevice,
) -> (DeviceSet, Vec<DeviceHandle>) {
    let fakes: Vec<_> = set.iter().enumerate().map(|(n, set)| each(n, *set)).collect();
    let handles = fakes.iter().map(FakeDevice::handle).collect();
    let boxed = fakes.into_iter().map(|fake| Box::new(fake) as Box<dyn Device>);
    (DeviceSet::new(boxed.collect(), true).expect("a sound set"), handles)
}

fn states(handles: &[DeviceHandle]) -> Vec<State> {
    handles.iter().map(DeviceHandle::state).collect()
}

/// Moves what one device has now; whether it came to an end.
fn some(from: &mut DeviceSet, to: &mut DeviceSet, id: DeviceId) -> u64 {
    let mut buffer = [0; 1000];
    let mut moved = 0;
    while let Read::Data { bytes, ends_transaction } =
        from.iterate(id, &mut buffer).expect("it saves")
    {
        to.write(id, &buffer[..bytes], ends_transaction).expect("it loads");
        moved += bytes as u64;
    }
    moved
}

#[test]
fn a_loop_of_its_own_moves_every_device_whole() {
    let (near, far) = Side::pair();
    let set = [ALL, STOP_COPY, Capabilities::P2P];
    let (from, here) = source(&near, &set[..2]);
    let (to, there) = destination(&far, &set[..2]);
    let recorder = Recorder::default();
    let mut from = from.with_observer(Box::new(recorder.clone()));
    let mut to = to;
    to.load().expect("resume sessions");
    from.setup().expect("save sessions");
    assert_eq!(states(&here), [State::PreCopy, State::Running]);

    let pending = from.pending().expect("it tells");
    assert!(pending[0].precopy.is_some_and(|info| info.initial_bytes > SIZE as u64));
    assert!(pending[1].precopy.is_none() && pending[1].stop_copy_bytes.is_some());
    assert!(some(&mut from, &mut to, DeviceId(0)) > SIZE as u64);
    assert!(here[0].work(77, b"dirty"));
    let pending = from.pending().expect("it tells");
    let info = pending[0].precopy.expect("in pre-copy");
    assert!(info.initial_bytes == 0 && info.dirty_bytes > 0);

    from.quiesce().expect("stopped");
    assert_eq!(states(&here), [State::StopCopy; 2]);
    for id in [DeviceId(0), DeviceId(1)] {
        let mut buffer = [0; 700];
        from.complete(id, &mut buffer, |bytes, ends| to.write(id, bytes, ends))
            .expect("the rest");
    }
    to.loaded().expect("whole");
    from.finish().expect("tidy");
    to.start().expect("runs");
    assert_eq!(states(&here), [State::Stop; 2]);
    assert_eq!(states(&there), [State::Running; 2]);
    for (here, there) in here.iter().zip(&there) {
        assert_eq!(here.contents(), there.contents());
        assert!(!here.in_session() && !there.in_session());
    }
    assert!(near.witness().violations().is_empty());
    assert!(!recorder.heard().is_empty(), "every transition is told");
    assert_eq!(from.into_devices().len(), 2);
}

#[test]
fn a_pause_leaves_a_window_in_which_a_peer_writes() {
    let side = Side::alone("source");
    let (mut set, handles) = source(&side, &[ALL, STOP_COPY]);
    set.pause().expect("stopped");
    set.start().expect("running");
    let order = [
        "source dev0: RUNNING to RUNNING_P2P",
        "source dev1: RUNNING to STOP",
        "source dev0: RUNNING_P2P to STOP",
        "source dev0: STOP to RUNNING_P2P",
        "source dev1: STOP to RUNNING",
    ];
    assert!(side.journal().in_order(&order), "{:#?}", side.journal().entries());
    assert_eq!(states(&handles), [State::Running; 2]);
}

#[test]
fn a_rollback_throws_sound_devices_away() {
    // From wherever a loop gave up, every device runs with what it held.
    for give_up in 0..4 {
        let side = Side::alone("source");
        let (mut set, handles) = source(&side, &[ALL, STOP_COPY]);
        if give_up > 0 {
            set.setup().expect("pre-copy");
        }
        if give_up > 1 {
            set.quiesce().expect("stop-copy");
        }
        if give_up > 2 {
            set.iterate(DeviceId(1), &mut [0; 100]).expect("some");
            set.finish().expect("stop");
        }
        assert_eq!(set.rollback(), Rollback::default(), "{give_up}");
        assert_eq!(states(&handles), [State::Running; 2]);
        for (n, device) in handles.iter().enumerate() {
            assert_eq!(device.contents(), vec![n as u8 + 1; SIZE]);
            assert!(!device.in_session());
        }
    }
}

#[test]
fn a_device_that_is_gone_after_a_rollback_is_not_named() {
    let side = Side::alone("source");
    let (mut set, handles) = source(&side, &[ALL, ALL, STOP_COPY]);
    let refused = Fault::Refused(Errno::EIO);
    let fails = Failure::of(When::SetState(State::StopCopy), refused);
    handles[0].fail(fails.landing_in(State::Error));
    handles[2].fail(Failure::of(When::SetState(State::StopCopy), Fault::TimedOut(9)));
    handles[2].fail(Failure::of(When::Reset, Fault::Gone));
    set.setup().expect("pre-copy");
    let Err(SetError::Stuck { goal: Goal::StopCopy, failures }) = set.quiesce() else {
        panic!("it stopped")
    };
    // The device without P2P stops first: nobody else was asked after it failed.
    assert_eq!(failures.len(), 1);
    assert_eq!(failures[0].0, "dev2");
    assert_eq!(set.rollback(), Rollback { reset: vec![], lost: vec![DeviceId(2)] });
    assert_eq!(states(&handles[..2]), [State::Running; 2]);
    // Asked again without that one being there, nothing moves.
    assert!(matches!(set.quiesce(), Err(SetError::Stuck { .. })));
    assert_eq!(states(&handles[..2]), [State::Running; 2]);

    let (mut set, handles) = source(&side, &[ALL, ALL]);
    let fails = Failure::of(When::SetState(State::StopCopy), Fault::Refused(Errno::EIO));
    handles[0].fail(fails.landing_in(State::Error));
    assert!(set.quiesce().is_err());
    assert_eq!(set.rollback(), Rollback { reset: vec![DeviceId(0)], lost: vec![] });
    assert_eq!(states(&handles), [State::Running; 2]);
    assert_eq!(handles[1].contents(), vec![2; SIZE]);
}

#[test]
fn a_device_with_half_its_data_starts() {
    let (near, far) = Side::pair();
    let (mut from, _) = source(&near, &[ALL]);
    let (mut to, there) = destination(&far, &[ALL]);
    to.load().expect("a resume session");
    from.quiesce().expect("stopped");
    let mut buffer = [0; 500];
    from.iterate(DeviceId(0), &mut buffer).expect("some");
    to.write(DeviceId(0), &buffer, false).expect("some");
    let error = to.loaded().expect_err("half of it");
    assert!(error.to_string().contains("dev0"), "{error}");
    assert!(to.start().is_err());
    assert!(!states(&there).iter().any(|state| state.is_running()));
}

#[test]
fn bytes_without_a_session_go_nowhere() {
    let side = Side::alone("source");
    let (mut set, _) = source(&side, &[ALL]);
    let none = |which: &str, error: SetError| {
        let text = error.to_string();
        assert!(text.contains("dev0") && text.contains(which), "{text}");
    };
    none("save", set.iterate(DeviceId(0), &mut [0; 9]).expect_err("no session"));
    none("resume", set.write(DeviceId(0), &[0; 9], false).expect_err("no session"));
}

#[test]
fn two_devices_without_p2p_are_taken_in() {
    let side = Side::alone("source");
    let pair = || {
        let fake = |n| FakeDevice::new(&side, &format!("dev{n}"), STOP_COPY, vec![1]);
        vec![Box::new(fake(0)) as Box<dyn Device>, Box::new(fake(1))]
    };
    assert!(matches!(DeviceSet::new(pair(), true), Err(SetError::PeerToPeer(_))));
    assert!(DeviceSet::new(pair(), false).is_ok());
}
