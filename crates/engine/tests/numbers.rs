//! The estimate before a stop, the bill after it, and what errors say.

use std::time::Duration;

use port::Phase;
use proptest::prelude::{Strategy, prop, prop_assert, prop_assert_eq, proptest};
use vfio_migrate_engine::migration::{Budget, Cause, Error, Ledger, Outcome, Recovery};

const MS: fn(u64) -> Duration = Duration::from_millis;

#[test]
fn a_first_round_that_was_slow_holds_a_guest_back_for_ever() {
    let mut budget = Budget::default();
    // All latency: it says nothing of the link, and 1 Gbit/s is assumed.
    budget.moved(100 << 10, MS(1000));
    let assumed = budget.estimate(100 << 10, 0, 0).downtime;
    assert!(assumed <= MS(1), "{assumed:?}");
    // Nothing at all to move: a device's data is estimated all the same.
    let mut idle = Budget::default();
    idle.moved(0, MS(1));
    assert!(idle.estimate(0, 64 << 20, 64 << 20).downtime < MS(600));
    // A small round that is fast proves a fast link.
    budget.moved(2 << 20, MS(1));
    let fast = budget.estimate(100 << 10, 0, 0).downtime;
    assert!(fast < assumed, "{fast:?}");
    budget.moved(10, MS(500));
    assert_eq!(budget.estimate(100 << 10, 0, 0).downtime, fast);
    // A large one counts, either way.
    budget.moved(8 << 20, MS(8000));
    assert!(budget.estimate(100 << 10, 0, 0).downtime > fast);
}

#[test]
fn a_guest_is_stopped_at_a_speed_that_nobody_measured() {
    let budget = Budget::default();
    assert!(budget.estimate(1, 0, 0).downtime > Duration::from_secs(1_000_000));
    assert!(budget.estimate(0, 1, 1).fixed > Duration::from_secs(1_000_000));
    assert_eq!(budget.estimate(0, 0, 0).downtime, Duration::ZERO);
    let huge = budget.estimate(u64::MAX, u64::MAX, u64::MAX);
    assert_eq!(huge.remaining, u64::MAX);
}

#[test]
fn what_stopping_itself_costs_is_forgotten() {
    let mut budget = Budget::default();
    budget.transition(MS(10));
    budget.transition(MS(3));
    budget.load(MS(20));
    budget.round_trip(MS(4));
    budget.round_trip(MS(2));
    let estimate = budget.estimate(0, 0, 0);
    // Two waves here, two there, three questions.
    assert_eq!(estimate.downtime, MS(2 * 10 + 2 * 20 + 3 * 2));
    // Only the questions were measured: setup's transitions are no part of a stop.
    assert_eq!((estimate.fixed, estimate.guessed), (MS(3 * 2), MS(2 * 10 + 2 * 20)));
    budget.doubt();
    assert_eq!(budget.estimate(0, 0, 0).downtime, MS(10 + 20 + 3 * 2));
    // After a round the answer is a guess as well, until a small one is acknowledged.
    budget.round_begins();
    budget.acknowledged(1 << 20, MS(900));
    assert_eq!(budget.estimate(0, 0, 0).downtime, MS(10 + 20 + 3));
    budget.acknowledged(4096, MS(9));
    assert_eq!(budget.estimate(0, 0, 0).fixed, MS(3 * 9));
    (0..100).for_each(|_| budget.doubt());
    assert!(budget.estimate(0, 0, 0).guessed < MS(1));
}

#[test]
fn one_small_round_makes_a_slow_link_a_fast_one() {
    let slow = |second: u64| {
        let mut budget = Budget::default();
        budget.moved(8 << 20, MS(8000));
        budget.moved(second, Duration::from_millis(second / 1000));
        budget.moved(4096, MS(1));
        budget
    };
    // It was told twice: nothing but a large round says otherwise.
    let mut twice = slow(8 << 20);
    (0..9).for_each(|_| twice.doubt());
    assert!(twice.bandwidth() < 5_000_000, "{}", twice.bandwidth());
    assert_eq!(twice.estimate(1 << 20, 0, 0).guessed, Duration::ZERO);
    // It was told once, which may have been a bad moment: no better than assumed.
    let mut once = slow(0);
    assert!(once.bandwidth() < 5_000_000, "{}", once.bandwidth());
    (0..9).for_each(|_| once.doubt());
    assert_eq!(once.bandwidth(), 125_000_000);
    // It may send no faster than it is let.
    once.limited(Some(1000));
    assert_eq!(once.bandwidth(), 1000);
}

const PHASES: [Phase; 10] = [
    Phase::VcpuStop,
    Phase::P2p,
    Phase::Stop,
    Phase::Dirty,
    Phase::Memory,
    Phase::Devices,
    Phase::Config,
    Phase::Prepare,
    Phase::Commit,
    Phase::Start,
];

fn stretches() -> impl Strategy<Value = Vec<(usize, u64)>> {
    prop::collection::vec((0..PHASES.len(), 0..5_000u64), 1..40)
}

proptest! {
    #[test]
    fn a_moment_is_billed_twice_or_not_at_all(stretches in stretches(), lie in 0..9_000u64) {
        let mut ledger = Ledger::default();
        // What came before the stop is nobody's downtime.
        ledger.turn(Phase::Precopy, MS(7));
        let mut now = MS(100);
        ledger.begin(Phase::VcpuStop, now);
        for (phase, took) in &stretches {
            now += MS(*took);
            ledger.turn(PHASES[*phase], now);
        }
        // Whatever the peer says it spent, no time appears or disappears.
        ledger.shift(Phase::Prepare, Phase::Verify, MS(lie));
        prop_assert!(ledger.downtime().is_none());
        now += MS(1);
        ledger.end(now);
        let sum: Duration = ledger.phases().iter().map(|entry| entry.took).sum();
        prop_assert_eq!(Some(sum), ledger.downtime());
        prop_assert_eq!(sum, now - MS(100));
        let mut names: Vec<_> = ledger.phases().iter().map(|e| e.phase).collect();
        names.sort();
        names.dedup();
        prop_assert_eq!(names.len(), ledger.phases().len(), "a phase stands twice");
    }
}

#[test]
fn an_error_leaves_its_caller_guessing_who_has_the_guest() {
    let error = |recovery, devices: &[&str]| Error {
        cause: Cause::Cancelled,
        recovery,
        devices: devices.iter().map(|&name| name.to_owned()).collect(),
    };
    for (error, says) in [
        (error(Recovery::SourceResumed, &[]), "goes on at the source"),
        (error(Recovery::DeviceLost, &["dev0", "dev3"]), "dev0, dev3"),
        (error(Recovery::DeviceLost, &[]), "stays paused"),
        (error(Recovery::InDoubt, &[]), "look at the destination"),
        (error(Recovery::Moved, &[]), "is the destination's"),
    ] {
        let text = error.to_string();
        assert!(text.starts_with("cancelled; ") && text.contains(says), "{text}");
    }
    assert_eq!(error(Recovery::Retry, &[]).to_string(), "cancelled");
    let names = [
        Outcome::Completed,
        Outcome::Refused,
        Outcome::Failed,
        Outcome::Cancelled,
        Outcome::InDoubt,
    ]
    .map(Outcome::name);
    assert_eq!(names, ["completed", "refused", "failed", "cancelled", "in-doubt"]);
}
