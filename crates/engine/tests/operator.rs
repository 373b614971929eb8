//! What an operator does while a migration runs: cancel, pause, change things, wait.

mod rig;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use port::{Channel, ChannelError, Dial, Phase};
use rig::{ATTEMPT, BOUND, Rig, TOKEN, Wires, at, at_first, contents, laws, migrate};
use states::v2::{Capabilities, State};
use testkit::{MemoryChannel, Side, network, pair};
use vfio_migrate_engine::drive::{Incoming, Outgoing, SourceHandle};
use vfio_migrate_engine::migration::sink::Ending;
use vfio_migrate_engine::migration::{Cause, OnTimeout, Outcome, Recovery};

const SET: [Capabilities; 2] = [Capabilities::ALL, Capabilities::STOP_COPY];

fn sides() -> (Rig, Rig) {
    let (near, far) = Side::pair();
    let mut source = Rig::source(&near, &SET);
    source.busy_guest();
    (source, Rig::destination(&far, &SET))
}

/// Runs a migration in which something is done with the handle when a phase begins.
fn in_phase(
    phase: Phase,
    act: impl Fn(&SourceHandle) + Send + Sync + 'static,
) -> (Rig, Rig, rig::Went) {
    let (mut source, mut destination) = sides();
    let handle = Arc::new(OnceLock::<SourceHandle>::new());
    let here = Arc::clone(&handle);
    let wires = Wires {
        watchers: (at(phase, move || act(here.wait())), None),
        ..Wires::default()
    };
    let went = migrate(&mut source, &mut destination, wires, |source, _| {
        handle.set(source).expect("once");
    });
    assert_eq!(laws::broken(&source, &destination, &went, None), [""; 0], "{phase:?}");
    (source, destination, went)
}

#[test]
fn a_cancel_before_commit_stops_nothing_that_does_not_start_again() {
    for phase in [
        Phase::Negotiate,
        Phase::Setup,
        Phase::Precopy,
        Phase::Switchover,
        Phase::VcpuStop,
        Phase::Config,
        Phase::P2p,
        Phase::Stop,
        Phase::Dirty,
        Phase::Verify,
        Phase::Memory,
        Phase::Devices,
        Phase::Prepare,
        Phase::Commit,
    ] {
        let (source, _, went) = in_phase(phase, SourceHandle::cancel);
        if !went.told.0.phases().contains(&phase) {
            // The devices were done before the memory: nobody waited for them.
            assert_eq!(phase, Phase::Devices);
            continue;
        }
        let error = went.sent.result.expect_err("cancelled");
        assert_eq!(error.cause, Cause::Cancelled, "{phase:?}");
        assert_eq!(went.sent.report.outcome, Outcome::Cancelled, "{phase:?}");
        assert!(!source.vcpus.paused(), "{phase:?}");
    }
}

#[test]
fn a_cancel_after_commit_cannot_take_the_guest_back() {
    for phase in [Phase::Start, Phase::Cleanup] {
        let (_, destination, went) = in_phase(phase, |handle| {
            assert!(handle.yielded() && !handle.interruptible());
            handle.cancel();
            handle.pause();
            handle.changed("too late");
        });
        went.sent.result.expect("completed");
        assert_eq!(went.received.ending, Ending::Running { paused: false });
        assert!(!destination.vcpus.paused());
    }
}

#[test]
fn a_pause_during_pre_copy_is_lost_on_the_way() {
    for phase in [Phase::Setup, Phase::Precopy, Phase::Switchover] {
        let (_, destination, went) = in_phase(phase, SourceHandle::pause);
        went.sent.result.expect("completed");
        assert_eq!(went.received.ending, Ending::Running { paused: true }, "{phase:?}");
        assert!(destination.vcpus.paused());
        assert!(destination.devices.iter().all(|d| d.state() == State::Stop));
        let report = went.sent.report;
        assert_eq!((report.downtime, report.downtime_estimate), (None, None));
        assert!(report.phases.is_empty());
    }
}

#[test]
fn a_pause_that_came_too_late_does_not_half_pause_the_guest() {
    let (_, destination, went) = in_phase(Phase::VcpuStop, SourceHandle::pause);
    went.sent.result.expect("completed");
    assert_eq!(went.received.ending, Ending::Running { paused: false });
    assert!(!destination.vcpus.paused());
}

#[test]
fn a_guest_that_was_paused_before_its_migration_failed_runs_again_by_itself() {
    let (mut source, mut destination) = sides();
    let handle = Arc::new(OnceLock::<SourceHandle>::new());
    let here = Arc::clone(&handle);
    let act = move || {
        here.wait().pause();
        here.wait().changed("a device was plugged in");
    };
    let wires = Wires { watchers: (at(Phase::Precopy, act), None), ..Wires::default() };
    let went = migrate(&mut source, &mut destination, wires, |source, _| {
        handle.set(source).expect("once");
    });
    let error = went.sent.result.expect_err("changed");
    assert_eq!(error.recovery(), Recovery::SourceResumed);
    // It was told to pause and is paused, its devices with it, after the vCPUs.
    assert!(source.vcpus.paused());
    for device in &source.devices {
        assert_eq!((device.state(), device.touched_while_stopped()), (State::Stop, 0));
    }
    let journal = source.side.journal();
    let order = ["source vCPUs: pause", "source dev1: RUNNING to STOP"];
    assert!(journal.in_order(&order), "{:#?}", journal.entries());
    assert!(!journal.has("source vCPUs: resume"));
}

#[test]
fn a_paused_guest_starts_by_itself_where_it_arrives() {
    let (near, far) = Side::pair();
    let mut source = Rig::paused(&near, &SET);
    let mut destination = Rig::destination(&far, &SET);
    let went = migrate(&mut source, &mut destination, Wires::default(), |_, _| {});
    assert_eq!(laws::broken(&source, &destination, &went, None), [""; 0]);
    went.sent.result.expect("completed");
    assert_eq!(went.received.ending, Ending::Running { paused: true });
    assert!(source.vcpus.paused() && destination.vcpus.paused());
    assert_eq!(went.sent.report.rounds, 0);
    assert_eq!(went.sent.report.downtime, None);
    let entries = near.journal().entries();
    assert!(!entries.iter().any(|e| e.contains("PRE_COPY")), "{entries:#?}");
    assert!(!entries.iter().any(|e| e.contains("vCPUs: resume")), "{entries:#?}");
}

#[test]
fn a_paused_guest_whose_migration_fails_stays_as_it_was() {
    let (near, far) = Side::pair();
    let mut source = Rig::paused(&near, &SET);
    let mut destination = Rig::destination(&far, &SET);
    let mut wires = Wires::impatient();
    let cutter = wires.cutter.clone();
    wires.watchers.0 = at(Phase::Memory, move || cutter.cut());
    let went = migrate(&mut source, &mut destination, wires, |_, _| {});
    assert_eq!(went.sent.result.expect_err("cut").recovery(), Recovery::SourceResumed);
    assert!(source.vcpus.paused() && destination.vcpus.paused());
    for (n, device) in source.devices.iter().enumerate() {
        assert_eq!((device.state(), device.contents()), (State::Stop, contents(n)));
    }
}

#[test]
fn memory_that_changed_its_layout_arrives_with_a_hole() {
    let (mut source, mut destination) = sides();
    let memory = source.memory.clone();
    source.at_gate(move |_| {
        memory.change_layout();
        false
    });
    let went = migrate(&mut source, &mut destination, Wires::default(), |_, _| {});
    assert_eq!(laws::broken(&source, &destination, &went, None), [""; 0]);
    let error = went.sent.result.expect_err("changed");
    assert!(matches!(error.cause, Cause::Changed(_)), "{error}");
    assert_eq!(error.recovery(), Recovery::SourceResumed);
}

#[test]
fn a_device_that_was_plugged_in_meanwhile_stays_behind() {
    let (_, _, went) =
        in_phase(Phase::Precopy, |handle| handle.changed("a device was plugged in"));
    let error = went.sent.result.expect_err("changed");
    assert!(matches!(error.cause, Cause::Changed(_)), "{error}");
}

fn never_fits(on_timeout: OnTimeout) -> (Rig, Rig, rig::Went) {
    let (mut source, mut destination) = sides();
    let mut wires = Wires::default();
    wires.options.downtime_limit = Duration::ZERO;
    wires.options.max_time = Duration::from_millis(50);
    wires.options.on_timeout = on_timeout;
    let went = migrate(&mut source, &mut destination, wires, |_, _| {});
    assert_eq!(laws::broken(&source, &destination, &went, None), [""; 0]);
    (source, destination, went)
}

#[test]
fn pre_copy_that_never_fits_goes_on_for_ever() {
    let (_, _, went) = never_fits(OnTimeout::Fail);
    let error = went.sent.result.expect_err("late");
    let Cause::NotConverged { over_ms, estimate_ms, .. } = error.cause else {
        panic!("{error}");
    };
    assert!(over_ms == estimate_ms, "the shortfall is named");
    assert_eq!(error.recovery, Recovery::SourceResumed);
}

#[test]
fn a_guest_that_never_fits_is_stopped_where_its_operator_said_so() {
    let (_, _, went) = never_fits(OnTimeout::Switch);
    went.sent.result.expect("completed");
    assert!(went.sent.report.rounds > 1);
}

#[test]
fn a_limit_that_is_raised_on_the_way_is_not_heard() {
    let (mut source, mut destination) = sides();
    let handle = Arc::new(OnceLock::<SourceHandle>::new());
    let here = Arc::clone(&handle);
    source.at_gate(move |look| {
        if look == 3 {
            here.wait().set_downtime_limit(Duration::from_secs(60));
        }
        true
    });
    let mut wires = Wires::default();
    wires.options.downtime_limit = Duration::ZERO;
    let went = migrate(&mut source, &mut destination, wires, |source, _| {
        handle.set(source).expect("once");
    });
    went.sent.result.as_ref().expect("completed");
    assert!(went.sent.report.rounds >= 4);
    // Said after round 1: no round helps where the part that cannot shrink is too much.
    let notes = went.told.0.notes();
    assert!(notes.iter().any(|note| note.contains("cannot shrink")), "{notes:?}");
}

/// Connects to where nobody takes connections, as behind a firewall.
struct Nowhere(Vec<MemoryChannel>);

impl Dial for Nowhere {
    fn dial(&mut self, _: Duration) -> Result<Box<dyn Channel>, ChannelError> {
        let (here, there) = pair(1 << 20);
        self.0.push(there);
        Ok(Box::new(here))
    }
}

#[test]
fn a_destination_that_waits_for_connections_cannot_be_reached() {
    for by_source in [false, true] {
        let (mut source, mut destination) = sides();
        let here = destination.machine.take().expect("a machine");
        let there = source.machine.take().expect("a machine");
        let store = || Box::new(store::Memory::new().expect("random bytes"));
        let (near, far) = pair(1 << 20);
        let (_dial, accept) = network(1 << 20);
        // Far longer than this test is allowed to take.
        let patience = 2 * BOUND;
        let (far, accept) = (Box::new(far), Box::new(accept));
        let open = Box::new(move |_: &[_]| Ok(here));
        let incoming = Incoming::new(far, accept, store(), TOKEN, patience, open);
        let options = vfio_migrate_engine::migration::Options {
            patience,
            ..Wires::default().options
        };
        let dial = Box::new(Nowhere(Vec::new()));
        let outgoing =
            Outgoing::new(there, Box::new(near), dial, store(), ATTEMPT, options);
        let (from, to) = (outgoing.handle(), incoming.handle());
        let Some(watcher) =
            at_first(
                Phase::Setup,
                move || {
                    if by_source { from.cancel() } else { to.cancel() }
                },
            )
        else {
            unreachable!("a watcher");
        };
        let outgoing = outgoing.observer(Arc::new(Watches(watcher)));
        let sending = std::thread::spawn(move || outgoing.run());
        let (ended, ending) = std::sync::mpsc::channel();
        std::thread::spawn(move || ended.send(incoming.run().ending));
        let ending = ending.recv_timeout(BOUND).expect("it ends at once");
        assert!(matches!(ending, Ending::Discarded(_)), "{ending:?}");
        let sent = sending.join().expect("no panic");
        sent.result.expect_err("cancelled");
        assert!(!source.vcpus.paused() && destination.vcpus.paused());
    }
}

struct Watches(rig::Watcher);

impl port::Observer for Watches {
    fn progress(&self, progress: &port::Progress) {
        (self.0)(progress);
    }
}
