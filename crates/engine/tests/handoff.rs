//! Laws 1 and 2: the right to run is a token, and nobody has it twice.

mod rig;

use port::{Decision, Phase};
use rig::{Rig, Wires, at, laws, migrate};
use states::v2::{Capabilities, State};
use testkit::{Break, Breaker, Side};
use vfio_migrate_engine::migration::sink::Ending;
use vfio_migrate_engine::migration::{Cause, Outcome, Recovery};

const SET: [Capabilities; 2] = [Capabilities::ALL, Capabilities::STOP_COPY];

/// A migration in which one call breaks.
fn breaking(call: &str, occurrence: usize, how: Break) -> (Rig, Rig, rig::Went) {
    let breaker = Breaker::call(call, occurrence, how);
    let (near, far) = Side::pair();
    let mut source = Rig::source(&near, &SET);
    let mut destination = Rig::destination(&far, &SET);
    source.busy_guest();
    source.broken_by(&breaker);
    destination.broken_by(&breaker);
    let wires = Wires { breaker: breaker.clone(), ..Wires::impatient() };
    let went = migrate(&mut source, &mut destination, wires, |_, _| {});
    assert_eq!(breaker.broken().as_deref(), Some(call));
    assert_eq!(laws::broken(&source, &destination, &went, Some(call)), [""; 0]);
    (source, destination, went)
}

/// A migration whose connections break when a side enters a phase.
fn cut_at(
    source_phase: Option<Phase>,
    destination_phase: Option<Phase>,
) -> (Rig, Rig, rig::Went) {
    let (near, far) = Side::pair();
    let mut source = Rig::source(&near, &SET);
    let mut destination = Rig::destination(&far, &SET);
    source.busy_guest();
    let mut wires = Wires::impatient();
    let (one, two) = (wires.cutter.clone(), wires.cutter.clone());
    wires.watchers = (
        source_phase.and_then(|phase| at(phase, move || one.cut())),
        destination_phase.and_then(|phase| at(phase, move || two.cut())),
    );
    let went = migrate(&mut source, &mut destination, wires, |_, _| {});
    assert_eq!(laws::broken(&source, &destination, &went, None), [""; 0]);
    (source, destination, went)
}

fn recovery(went: &rig::Went) -> Option<Recovery> {
    went.sent.result.as_ref().err().map(|error| error.recovery())
}

#[test]
fn commit_is_said_before_anybody_wrote_down_that_the_guest_was_given_away() {
    let never = Breaker::never();
    let (near, far) = Side::pair();
    let mut source = Rig::source(&near, &SET);
    let mut destination = Rig::destination(&far, &SET);
    source.broken_by(&never);
    destination.broken_by(&never);
    let wires = Wires { breaker: never.clone(), ..Wires::default() };
    let went = migrate(&mut source, &mut destination, wires, |_, _| {});
    went.sent.result.expect("completed");
    let calls = never.calls();
    let position = |name: &str| calls.iter().position(|call| call == name);
    let last = |name: &str| calls.iter().rposition(|call| call == name);
    let order = [
        last("destination dev1: set state STOP"),
        position("destination store: record PREPARED"),
        position("source store: record YIELDED"),
        last("source control: send"),
        last("destination dev1: state"),
        position("destination store: record RAN"),
        position("destination dev1: set state RUNNING"),
        position("destination vcpus: resume"),
    ];
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{order:?}");
}

#[test]
fn the_source_resumes_although_the_destination_ran() {
    // The word RUNNING never arrives: whoever guesses runs twice.
    for phase in [Phase::Commit, Phase::Start] {
        let (source, destination, went) = cut_at(None, Some(phase));
        assert_eq!(recovery(&went), Some(Recovery::InDoubt), "{phase:?}");
        assert_eq!(went.sent.report.outcome, Outcome::InDoubt);
        assert_eq!(went.received.ending, Ending::Running { paused: false });
        assert!(source.vcpus.paused() && !destination.vcpus.paused());
    }
}

#[test]
fn a_returned_guest_is_left_paused_at_its_source() {
    // The second look at the devices, after COMMIT, finds one that does not answer.
    let (source, _, went) = breaking("destination dev0: state", 2, Break::Before);
    assert!(went.committed());
    let error = went.sent.result.expect_err("returned");
    assert!(matches!(error.cause, Cause::Returned(_)), "{error}");
    assert_eq!(error.recovery, Recovery::SourceResumed);
    assert_eq!(went.decisions.1, Some(Decision::Returned));
    assert!(!source.vcpus.paused());
}

#[test]
fn a_store_that_does_not_know_what_it_wrote_lets_both_sides_run() {
    for how in [Break::Before, Break::After, Break::ForGood] {
        let (source, destination, went) =
            breaking("destination store: record RAN", 0, how);
        assert_eq!(recovery(&went), Some(Recovery::InDoubt), "{how:?}");
        assert!(matches!(went.received.ending, Ending::InDoubt(_)), "{how:?}");
        assert!(source.vcpus.paused() && destination.vcpus.paused(), "{how:?}");
        let held = destination.devices.iter().all(|device| device.holds_guest());
        assert!(held, "nothing is thrown away either");
    }
}

#[test]
fn a_guest_that_does_not_start_over_there_is_started_here_as_well() {
    for (call, at) in [
        // The first time is on its way to RESUMING.
        ("destination dev0: set state RUNNING_P2P", 1),
        ("destination dev1: set state RUNNING", 0),
        ("destination vcpus: resume", 0),
    ] {
        for how in [Break::Before, Break::After] {
            let (source, _, went) = breaking(call, at, how);
            assert_eq!(recovery(&went), Some(Recovery::Moved), "{call}");
            assert!(matches!(went.received.ending, Ending::NotStarted(_)), "{call}");
            assert_eq!(went.decisions.1, Some(Decision::Ran));
            assert!(source.vcpus.paused());
        }
    }
}

#[test]
fn a_source_that_cannot_write_that_it_yielded_yields() {
    for how in [Break::Before, Break::After] {
        let (source, _, went) = breaking("source store: record YIELDED", 0, how);
        assert!(!went.committed());
        assert_eq!(recovery(&went), Some(Recovery::SourceResumed));
        assert!(matches!(went.received.ending, Ending::Discarded(_)));
        assert_eq!(went.decisions.1, Some(Decision::Returned), "it had said PREPARED");
        assert!(!source.vcpus.paused());
    }
}

#[test]
fn a_held_guest_is_thrown_away_when_its_source_is_gone() {
    let (_, destination, went) = cut_at(Some(Phase::Commit), None);
    assert!(went.held, "it held until its operator said otherwise");
    // Then RETURNED came first.
    assert_eq!(went.decisions.1, Some(Decision::Returned));
    assert!(destination.devices.iter().all(|device| !device.holds_guest()));
    let notes = went.told.1.notes();
    assert!(notes.iter().any(|note| note.starts_with("holding")), "{notes:?}");
}

#[test]
fn a_held_guest_whose_return_cannot_be_recorded_is_thrown_away() {
    let breaker = Breaker::call("destination store: record RETURNED", 0, Break::After);
    let (near, far) = Side::pair();
    let mut source = Rig::source(&near, &SET);
    let mut destination = Rig::destination(&far, &SET);
    let mut wires = Wires { breaker, ..Wires::impatient() };
    let cutter = wires.cutter.clone();
    wires.watchers.0 = at(Phase::Commit, move || cutter.cut());
    let went = migrate(&mut source, &mut destination, wires, |_, _| {});
    assert!(matches!(went.received.ending, Ending::InDoubt(_)));
    for device in &destination.devices {
        assert_eq!((device.holds_guest(), device.state()), (true, State::Stop));
    }
    assert!(destination.vcpus.paused());
}

#[test]
fn a_source_that_dies_before_prepared_leaves_half_a_guest_behind() {
    let (setup, precopy) = (Some(Phase::Setup), Some(Phase::Precopy));
    for (here, there) in
        [(None, setup), (None, precopy), (precopy, None), (Some(Phase::Prepare), None)]
    {
        let phase = (here, there);
        let (_, destination, went) = cut_at(here, there);
        assert!(matches!(went.received.ending, Ending::Discarded(_)), "{phase:?}");
        assert!(!went.held && went.decisions.1 != Some(Decision::Ran), "{phase:?}");
        assert!(destination.devices.iter().all(|device| !device.holds_guest()));
        assert_eq!(recovery(&went).map(|r| r == Recovery::InDoubt), Some(false));
    }
}

#[test]
fn a_destination_that_is_thrown_away_runs_on_its_way_out() {
    // Never by way of RUNNING while guest mappings and vectors are in place.
    let (_, destination, went) = breaking("destination section: load", 1, Break::Before);
    assert!(matches!(went.received.ending, Ending::Discarded(_)));
    let entries = destination.side.journal().entries();
    let after_load = entries.iter().position(|e| e == "destination cpu: load");
    let rest = &entries[after_load.expect("loaded")..];
    assert!(
        !rest.iter().any(|e| e.starts_with("destination") && e.contains("to RUNNING"))
    );
    let order = ["destination interrupts of dev0: unbind", "destination dev0: reset"];
    assert!(destination.side.journal().in_order(&order), "{rest:#?}");
}
