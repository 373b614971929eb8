//! Every call of a migration breaks once, in every way, and the laws hold.
//!
//! A migration is run once to learn the calls that it makes: to devices and their
//! sessions, guest memory, dirty sources, vCPUs, config spaces, interrupts, sections,
//! stores and connections, on both sides. Then it is run again for each of them.

mod rig;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rig::{Rig, Wires, laws, migrate_into};
use states::v2::Capabilities;
use testkit::{Break, Breaker, Damage, Side};

const ALL: Capabilities = Capabilities::ALL;
const STOP_COPY: Capabilities = Capabilities::STOP_COPY;

/// A few at a time: most of what a broken run does is waiting.
const AT_ONCE: usize = 4;

/// What migrates.
#[derive(Clone, Copy, Debug)]
enum World {
    Guest,
    DevicesOnly,
}

/// One run, and what it did against the laws.
fn run(
    world: World,
    set: &[Capabilities],
    wires: Wires,
    breaker: &Breaker,
    how: Break,
) -> (Option<rig::Went>, Vec<String>) {
    let (near, far) = Side::pair();
    let (mut source, mut destination) = match world {
        World::Guest => (Rig::source(&near, set), Rig::destination(&far, set)),
        World::DevicesOnly => {
            (Rig::devices_in_use(&near, set), Rig::devices_waiting(&far, set))
        }
    };
    source.dma.set_peer_to_peer(true);
    match world {
        World::Guest => source.busy_guest(),
        World::DevicesOnly => source.busy_devices(),
    }
    source.broken_by(breaker);
    destination.broken_by(breaker);
    let here = destination.machine.take().expect("a machine");
    let open = Box::new(move |_: &[_]| Ok(here));
    let wires = Wires { breaker: breaker.clone(), ..wires };
    match migrate_into(&mut source, open, wires, |_, _| {}) {
        Ok(went) => {
            let excused = breaker.broken();
            // What broke for good does nothing any more, whatever it is asked.
            let excused =
                excused.as_deref().map(|name| match (how, name.split_once(':')) {
                    (Break::ForGood, Some((label, _))) => label,
                    _ => name,
                });
            let broken = laws::broken(&source, &destination, &went, excused);
            (Some(went), broken)
        }
        Err(hangs) => (None, vec![hangs.to_owned()]),
    }
}

fn wires(channels: u16) -> Wires {
    let mut wires = Wires::impatient().channels(channels);
    wires.options.patience = Duration::from_secs(1);
    wires
}

/// Runs every case, some at once, and fails with the first ones that broke a law.
fn all<T: Sync>(cases: &[T], each: impl Fn(&T) -> Vec<String> + Sync) {
    let next = AtomicUsize::new(0);
    let bad = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let broken = each(case);
                    if !broken.is_empty() {
                        bad.lock().expect("no panic").push(broken.join("\n    "));
                    }
                }
            });
        }
    });
    let bad = bad.into_inner().expect("no panic");
    assert!(
        bad.is_empty(),
        "{} of {} runs broke a law:\n{}",
        bad.len(),
        cases.len(),
        bad[..bad.len().min(12)].join("\n")
    );
}

fn every_call_breaks(world: World, set: &[Capabilities], channels: u16) {
    let never = Breaker::never();
    let (went, broken) = run(world, set, wires(channels), &never, Break::Before);
    assert_eq!(broken, Vec::<String>::new());
    went.expect("an end").sent.result.expect("completed");
    let mut cases = Vec::new();
    for (name, occurrence) in never.targets() {
        for how in [Break::Before, Break::After, Break::ForGood] {
            // By its contract a drain that fails took nothing.
            if how == Break::After && name.ends_with(": drain") {
                continue;
            }
            cases.push((name.clone(), occurrence, how));
        }
    }
    assert!(cases.len() > 150, "only {} calls", cases.len());
    let happened = AtomicUsize::new(0);
    all(&cases, |(name, occurrence, how)| {
        let breaker = Breaker::call(name, *occurrence, *how);
        let (went, mut broken) = run(world, set, wires(channels), &breaker, *how);
        happened.fetch_add(usize::from(breaker.broken().is_some()), Ordering::SeqCst);
        if !broken.is_empty() {
            let ended = went.map(|w| (w.sent.result, w.received.ending));
            broken.insert(0, format!("{how:?} {name} #{occurrence}: {ended:?}"));
        }
        broken
    });
    // A few calls come in another number from run to run (a round more, a round less).
    let happened = happened.load(Ordering::SeqCst);
    assert!(happened * 10 > cases.len() * 9, "{happened} of {} broke", cases.len());
}

#[test]
fn every_call_breaks_once_with_two_devices_of_all_capabilities() {
    every_call_breaks(World::Guest, &[ALL, ALL], 1);
}

#[test]
fn every_call_breaks_once_with_a_device_that_lacks_p2p() {
    every_call_breaks(World::Guest, &[ALL, STOP_COPY], 2);
}

#[test]
fn every_call_breaks_once_with_a_device_that_can_only_stop() {
    every_call_breaks(World::Guest, &[STOP_COPY], 1);
}

#[test]
fn every_call_breaks_once_with_devices_without_a_guest() {
    every_call_breaks(World::DevicesOnly, &[ALL, STOP_COPY], 2);
}

/// Byte places over `0..length`, about `count` of them, the first and last ones included.
fn places(length: u64, count: u64) -> Vec<u64> {
    let step = (length / count).max(1);
    (0..length).step_by(step as usize).chain([1, length - 1]).collect()
}

#[derive(Debug)]
enum Where {
    FromSource,
    FromDestination,
    Data(usize),
}

fn damaged(channels: u16, at: &Where, damage: Damage) -> Vec<String> {
    let mut wires = wires(channels);
    match at {
        Where::FromSource => wires.control.0 = damage,
        Where::FromDestination => wires.control.1 = damage,
        Where::Data(n) => {
            wires.data = vec![Damage::None; *n];
            wires.data.push(damage);
        }
    }
    let (went, mut broken) =
        run(World::Guest, &[ALL, STOP_COPY], wires, &Breaker::never(), Break::Before);
    if !broken.is_empty() {
        let ended = went.map(|w| (w.sent.result, w.received.ending));
        broken.insert(0, format!("{damage:?} {at:?}: {ended:?}"));
    }
    broken
}

fn lengths(channels: u16) -> ((u64, u64), Vec<u64>) {
    let set = [ALL, STOP_COPY];
    let (went, _) =
        run(World::Guest, &set, wires(channels), &Breaker::never(), Break::Before);
    went.expect("an end").bytes
}

type Kind = fn(u64) -> Damage;

const KINDS: [Kind; 3] =
    [Damage::Cut, Damage::Truncate, |at| Damage::Corrupt(at, 1 << (at % 8))];

#[test]
fn a_control_connection_that_breaks_or_lies_at_any_byte_loses_no_guest() {
    let ((there, back), _) = lengths(1);
    let mut cases = Vec::new();
    for kind in KINDS {
        cases.extend(
            places(there, 90).into_iter().map(|at| (Where::FromSource, kind(at))),
        );
        cases.extend(
            places(back, 60).into_iter().map(|at| (Where::FromDestination, kind(at))),
        );
    }
    all(&cases, |(at, damage)| damaged(1, at, *damage));
}

#[test]
fn a_data_connection_that_breaks_or_lies_at_any_byte_loses_no_guest() {
    let (_, data) = lengths(2);
    let mut cases = Vec::new();
    for (n, length) in data.into_iter().enumerate() {
        for kind in KINDS {
            cases.extend(
                places(length, 60).into_iter().map(|at| (Where::Data(n), kind(at))),
            );
        }
    }
    all(&cases, |(at, damage)| damaged(2, at, *damage));
}

#[test]
fn a_connection_that_falls_silent_is_noticed() {
    let ((there, back), data) = lengths(2);
    let mut cases = Vec::new();
    let silent = |at| Damage::Swallow(at);
    cases.extend(places(there, 12).into_iter().map(|at| (Where::FromSource, silent(at))));
    cases.extend(
        places(back, 12).into_iter().map(|at| (Where::FromDestination, silent(at))),
    );
    for (n, length) in data.into_iter().enumerate() {
        cases
            .extend(places(length, 6).into_iter().map(|at| (Where::Data(n), silent(at))));
    }
    all(&cases, |(at, damage)| damaged(2, at, *damage));
}
