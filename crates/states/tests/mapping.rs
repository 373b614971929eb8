//! The engine's states on devices of the older generations: what the VMM side plans,
//! written into what the device side understands.
#![allow(clippy::panic, reason = "a test's way to fail")]

use proptest::prelude::{any, prop, proptest};
use std::collections::{BTreeSet, HashSet};
use std::fmt::Debug;
use std::hash::Hash;
use vfio_migrate_states::mapping::{CAPABILITIES, Ending, NoRoute, Position, Route};
use vfio_migrate_states::rfc2018::{self, Act, RfcState};
use vfio_migrate_states::v1::{self, V1State};
use vfio_migrate_states::v2::{self, Capabilities, State};

/// Both generations, for tests that hold for both.
trait Generation: Copy + Eq + Hash + Debug + 'static {
    const RUNNING: Self;
    const START: Position<Self>;
    fn route(
        at: &Position<Self>,
        to: State,
        ending: Ending,
    ) -> Result<Route<Self>, NoRoute>;
    /// What the runner of a model with pre-copy is in, behind a device that is at `at`.
    fn runner(at: &Position<Self>) -> State;
    /// One write into a region with a v2 model behind it, which is in `runner`.
    fn write(model: Capabilities, at: Self, to: Self, runner: State) -> Option<State>;
}

fn enter(model: Capabilities, from: State, to: State) -> State {
    let path = v2::plan(model, from, to).expect("what the front asks, the runner can");
    path.iter().last().unwrap_or(from)
}

impl Generation for V1State {
    const RUNNING: Self = V1State::Running;
    const START: Position<Self> = Position::<V1State>::start();

    fn route(
        at: &Position<Self>,
        to: State,
        ending: Ending,
    ) -> Result<Route<Self>, NoRoute> {
        at.route(to, ending)
    }

    fn runner(at: &Position<Self>) -> State {
        if at.validates_at_start() { State::Resuming } else { at.engine() }
    }

    fn write(model: Capabilities, at: Self, to: Self, runner: State) -> Option<State> {
        let written = v1::front(model, at.bits(), to.bits()).ok()?;
        assert_eq!(written.then, to);
        Some(written.enter.map_or(runner, |target| enter(model, runner, target)))
    }
}

impl Generation for RfcState {
    const RUNNING: Self = RfcState::Running;
    const START: Position<Self> = Position::<RfcState>::start();

    fn route(
        at: &Position<Self>,
        to: State,
        ending: Ending,
    ) -> Result<Route<Self>, NoRoute> {
        at.route(to, ending)
    }

    fn runner(at: &Position<Self>) -> State {
        // How a device is stopped for an engine that wants no more than that.
        if at.written() == RfcState::StopNCopy { State::StopCopy } else { at.engine() }
    }

    fn write(model: Capabilities, at: Self, to: Self, runner: State) -> Option<State> {
        let stepped = rfc2018::front(model, at, to.number()).ok()?;
        assert_eq!(stepped.then, to);
        Some(match stepped.act {
            Act::Nothing => runner,
            Act::Enter(target) => enter(model, runner, target),
            Act::Reset => State::Running,
        })
    }
}

/// Every position that routes lead to, refusals of 000 among them.
fn positions<W: Generation>() -> Vec<Position<W>> {
    let mut found = vec![W::START];
    let mut seen: HashSet<Position<W>> = found.iter().copied().collect();
    let mut next = 0;
    while let Some(at) = found.get(next).copied() {
        next += 1;
        for to in State::ALL {
            for ending in Ending::ALL {
                let Ok(route) = W::route(&at, to, ending) else { continue };
                for then in [Some(route.then()), route.if_refused()] {
                    found.extend(then.filter(|then| seen.insert(*then)));
                }
            }
        }
    }
    found
}

/// The state of a model without pre-copy where one with it is in `state`.
fn without_pre_copy(model: Capabilities, state: State) -> State {
    match state {
        State::PreCopy if !model.pre_copy() => State::Running,
        _ => state,
    }
}

fn check_generation<W: Generation>() {
    for at in positions::<W>() {
        for to in State::ALL {
            for ending in Ending::ALL {
                let what = format!("{at:?} to {to}, {ending:?}");
                let refusal = match W::route(&at, to, ending) {
                    Err(refusal) => refusal,
                    Ok(route) => {
                        check_route(&at, to, &route, &what);
                        continue;
                    }
                };
                let expected = match (at.engine(), to) {
                    (_, State::Error) => NoRoute::ToError,
                    (_, State::RunningP2p | State::PreCopyP2p) => {
                        NoRoute::NotOffered { state: to }
                    }
                    (State::StopCopy, State::PreCopy) => NoRoute::BackToPreCopy,
                    (State::Stop, State::StopCopy | State::Resuming) => {
                        NoRoute::OnlyStart { state: to }
                    }
                    _ => NoRoute::LoadGivenUp,
                };
                assert_eq!(refusal, expected, "{what}");
                // What v2 can do, the older ones can, but for a load that is undone.
                let undone =
                    matches!(refusal, NoRoute::LoadGivenUp | NoRoute::OnlyStart { .. });
                assert!(
                    undone || v2::plan(CAPABILITIES, at.engine(), to).is_err(),
                    "{what}"
                );
                assert!(
                    refusal != NoRoute::LoadGivenUp || ending != Ending::Complete,
                    "{what}"
                );
            }
        }
    }
}

fn check_route<W: Generation>(at: &Position<W>, to: State, route: &Route<W>, what: &str) {
    assert!(v2::plan(CAPABILITIES, at.engine(), to).is_ok(), "{what}");
    assert_eq!(route.then().engine(), to, "{what}");
    let last = route.writes().last().copied().unwrap_or(at.written());
    assert_eq!(route.then().written(), last, "{what}");
    assert!(route.writes().len() <= 4, "{what}");
    // Only who goes to run, runs on the way.
    let runs = route.writes().contains(&W::RUNNING);
    assert!(!runs || matches!(to, State::Running | State::PreCopy), "{what}");
    for model in Capabilities::EVERY {
        let mut believed = at.written();
        let mut state = without_pre_copy(model, W::runner(at));
        for write in route.writes() {
            let moved = W::write(model, believed, *write, state);
            state =
                moved.unwrap_or_else(|| panic!("{what}: the front refuses {write:?}"));
            believed = *write;
        }
        let expected = without_pre_copy(model, W::runner(&route.then()));
        assert_eq!(state, expected, "{what}: {model}");
        assert_eq!(state.is_stopped(), to.is_stopped(), "{what}: {model}");
    }
}

#[test]
fn no_route_of_v1_ends_elsewhere_than_the_engine_believes() {
    check_generation::<V1State>();
}

#[test]
fn no_route_of_rfc2018_ends_elsewhere_than_the_engine_believes() {
    check_generation::<RfcState>();
}

/// The five states and the refused 000; the five and two more ways to be stopped, and
/// NONE beside RUNNING.
#[test]
fn a_device_is_nowhere_else() {
    let names = |list: Vec<String>| list.into_iter().collect::<BTreeSet<_>>();
    let v1 = positions::<V1State>();
    assert_eq!(v1.iter().filter(|at| at.validates_at_start()).count(), 1);
    assert_eq!(v1.len(), 6);
    let rfc = positions::<RfcState>();
    let found =
        names(rfc.iter().map(|at| format!("{} {}", at.engine(), at.written())).collect());
    let expected = [
        "RUNNING NONE",
        "RUNNING RUNNING",
        "PRE_COPY PRECOPY",
        "STOP_COPY STOPNCOPY",
        "STOP STOPNCOPY",
        "STOP SAVE_COMPLETED",
        "STOP RESUME_COMPLETED",
        "RESUMING RESUME",
    ];
    assert_eq!(found, names(expected.map(str::to_owned).to_vec()));
}

fn table<W: Generation>(rows: &str, names: impl Fn(&W) -> String) {
    let mut listed = HashSet::new();
    for row in rows.lines().map(str::trim).filter(|row| !row.is_empty()) {
        let (ends, writes) = row.split_once(':').expect("a row");
        let words: Vec<&str> = ends.split_whitespace().collect();
        let [from, at, to] = words[..] else { panic!("{row}") };
        let position = positions::<W>()
            .into_iter()
            .find(|p| p.engine().name() == from && names(&p.written()) == at)
            .unwrap_or_else(|| panic!("no such position: {row}"));
        let target: State = to.parse().expect("a state");
        let route = W::route(&position, target, Ending::Complete);
        let planned = match route {
            Ok(route) => route.writes().iter().map(&names).collect::<Vec<_>>().join(" "),
            Err(refusal) => format!("refused {}", short(refusal)),
        };
        assert_eq!(planned, writes.trim(), "{row}");
        assert!(listed.insert((position, target)), "twice: {row}");
    }
    let offered = CAPABILITIES.states().count();
    assert_eq!(listed.len(), positions::<W>().len() * offered, "not every pair");
}

fn short(refusal: NoRoute) -> &'static str {
    match refusal {
        NoRoute::BackToPreCopy => "back",
        NoRoute::OnlyStart { .. } => "only start",
        _ => "?",
    }
}

/// Every pair of the engine's states, for a device on which nothing is undone.
#[test]
fn the_writes_of_v1_are_those_of_the_table() {
    table::<V1State>(
        "
        RUNNING 001 RUNNING:
        RUNNING 001 PRE_COPY: 011
        RUNNING 001 STOP_COPY: 010
        RUNNING 001 STOP: 000
        RUNNING 001 RESUMING: 100
        PRE_COPY 011 RUNNING: 001
        PRE_COPY 011 PRE_COPY:
        PRE_COPY 011 STOP_COPY: 010
        PRE_COPY 011 STOP: 010 000
        PRE_COPY 011 RESUMING: 010 000 100
        STOP_COPY 010 RUNNING: 001
        STOP_COPY 010 PRE_COPY: refused back
        STOP_COPY 010 STOP_COPY:
        STOP_COPY 010 STOP: 000
        STOP_COPY 010 RESUMING: 000 100
        STOP 000 RUNNING: 001
        STOP 000 PRE_COPY: 001 011
        STOP 000 STOP_COPY: 010
        STOP 000 STOP:
        STOP 000 RESUMING: 100
        STOP 100 RUNNING: 001
        STOP 100 PRE_COPY: 001 011
        STOP 100 STOP_COPY: refused only start
        STOP 100 STOP:
        STOP 100 RESUMING: refused only start
        RESUMING 100 RUNNING: 001
        RESUMING 100 PRE_COPY: 001 011
        RESUMING 100 STOP_COPY: 000 010
        RESUMING 100 STOP: 000
        RESUMING 100 RESUMING:",
        |state| format!("{:03b}", state.bits().bits()),
    );
}

#[test]
fn the_writes_of_rfc2018_are_those_of_the_table() {
    table::<RfcState>(
        "
        RUNNING NONE RUNNING:
        RUNNING NONE PRE_COPY: SETUP PRECOPY
        RUNNING NONE STOP_COPY: SETUP STOPNCOPY
        RUNNING NONE STOP: SETUP STOPNCOPY
        RUNNING NONE RESUMING: RESUME
        RUNNING RUNNING RUNNING:
        RUNNING RUNNING PRE_COPY: SETUP PRECOPY
        RUNNING RUNNING STOP_COPY: SETUP STOPNCOPY
        RUNNING RUNNING STOP: SETUP STOPNCOPY
        RUNNING RUNNING RESUMING: RESUME
        PRE_COPY PRECOPY RUNNING: CANCELLED RUNNING
        PRE_COPY PRECOPY PRE_COPY:
        PRE_COPY PRECOPY STOP_COPY: STOPNCOPY
        PRE_COPY PRECOPY STOP: STOPNCOPY SAVE_COMPLETED
        PRE_COPY PRECOPY RESUMING: STOPNCOPY SAVE_COMPLETED RESUME
        STOP_COPY STOPNCOPY RUNNING: SAVE_COMPLETED RUNNING
        STOP_COPY STOPNCOPY PRE_COPY: refused back
        STOP_COPY STOPNCOPY STOP_COPY:
        STOP_COPY STOPNCOPY STOP: SAVE_COMPLETED
        STOP_COPY STOPNCOPY RESUMING: SAVE_COMPLETED RESUME
        STOP STOPNCOPY RUNNING: CANCELLED RUNNING
        STOP STOPNCOPY PRE_COPY: CANCELLED RUNNING SETUP PRECOPY
        STOP STOPNCOPY STOP_COPY:
        STOP STOPNCOPY STOP:
        STOP STOPNCOPY RESUMING: SAVE_COMPLETED RESUME
        STOP SAVE_COMPLETED RUNNING: RUNNING
        STOP SAVE_COMPLETED PRE_COPY: RUNNING SETUP PRECOPY
        STOP SAVE_COMPLETED STOP_COPY: SETUP STOPNCOPY
        STOP SAVE_COMPLETED STOP:
        STOP SAVE_COMPLETED RESUMING: RESUME
        STOP RESUME_COMPLETED RUNNING: RUNNING
        STOP RESUME_COMPLETED PRE_COPY: RUNNING SETUP PRECOPY
        STOP RESUME_COMPLETED STOP_COPY: SETUP STOPNCOPY
        STOP RESUME_COMPLETED STOP:
        STOP RESUME_COMPLETED RESUMING: RESUME
        RESUMING RESUME RUNNING: RESUME_COMPLETED RUNNING
        RESUMING RESUME PRE_COPY: RESUME_COMPLETED RUNNING SETUP PRECOPY
        RESUMING RESUME STOP_COPY: RESUME_COMPLETED SETUP STOPNCOPY
        RESUMING RESUME STOP: RESUME_COMPLETED
        RESUMING RESUME RESUMING:",
        |state| state.name().to_owned(),
    );
}

#[test]
fn a_rollback_says_whether_it_was_cancelled_or_failed() {
    let mut undone = 0;
    for at in positions::<RfcState>() {
        for (ending, word) in
            [(Ending::Cancelled, RfcState::Cancelled), (Ending::Failed, RfcState::Failed)]
        {
            let route = at.route(State::Running, ending);
            match (at.engine(), at.written()) {
                (State::Running, _) => assert!(route.expect("there").writes().is_empty()),
                (State::Resuming, _) | (_, RfcState::ResumeCompleted) => {
                    assert_eq!(
                        route,
                        Err(NoRoute::LoadGivenUp),
                        "never by way of RUNNING"
                    );
                }
                _ => {
                    let writes = route.expect("a rollback").writes();
                    assert_eq!(writes, [word, RfcState::Running]);
                    undone += 1;
                }
            }
        }
    }
    assert_eq!(undone, 8, "pre-copy, stop-and-copy and two ways to be stopped");
}

#[test]
fn part_of_a_state_is_never_started() {
    let loading = Position::<V1State>::start()
        .route(State::Resuming, Ending::Complete)
        .expect("a load")
        .then();
    let held = loading
        .route(State::Stop, Ending::Complete)
        .expect("an end")
        .if_refused()
        .expect("000 may be refused");
    assert!(held.validates_at_start() && !loading.validates_at_start());
    for at in [loading, held] {
        for ending in [Ending::Cancelled, Ending::Failed] {
            assert_eq!(at.route(State::Running, ending), Err(NoRoute::LoadGivenUp));
            assert_eq!(at.route(State::PreCopy, ending), Err(NoRoute::LoadGivenUp));
        }
        let start = at.route(State::Running, Ending::Complete).expect("a start");
        assert_eq!(start.writes(), [V1State::Running]);
    }
}

#[test]
fn only_the_end_of_a_load_may_be_refused() {
    for at in positions::<V1State>() {
        for to in State::ALL {
            let Ok(route) = at.route(to, Ending::Complete) else { continue };
            let end = (at.engine(), to) == (State::Resuming, State::Stop);
            assert_eq!(route.if_refused().is_some(), end);
        }
    }
}

#[test]
fn a_v1_device_is_what_it_reads() {
    for (number, state) in (0..).zip(v1::COMBINATIONS) {
        for reserved in [0, 0xffff_fff8_u32] {
            let bits = abi::v1::StateBits::from_bits_retain(reserved | number);
            let at = Position::<V1State>::read(bits);
            assert_eq!(at.ok().map(|at| at.written()), state);
            assert_eq!(at.ok().map(|at| at.engine()), state.map(V1State::engine));
            assert!(at.ok().is_none_or(|at| !at.validates_at_start()));
        }
    }
    let error = Position::<V1State>::read(V1State::Error.bits()).expect("110");
    for to in State::ALL {
        assert_eq!(error.route(to, Ending::Failed), Err(NoRoute::FromError));
    }
}

proptest! {
    /// Any order of requests and endings keeps the model behind the region where the
    /// engine believes it, in both generations and for every model.
    #[test]
    fn no_sequence_of_requests_loses_the_device(
        asked in prop::collection::vec((0..8_usize, 0..3_usize, any::<bool>()), 0..40),
        set in 0..4_usize,
    ) {
        let model = Capabilities::EVERY[set];
        follow::<V1State>(model, &asked);
        follow::<RfcState>(model, &asked);
    }
}

fn follow<W: Generation>(model: Capabilities, asked: &[(usize, usize, bool)]) {
    let (mut at, mut state) = (W::START, State::Running);
    for (to, ending, refuse) in asked {
        let (to, ending) = (State::ALL[*to], Ending::ALL[*ending]);
        let Ok(route) = W::route(&at, to, ending) else { continue };
        if let Some(held) = route.if_refused().filter(|_| *refuse) {
            at = held;
            continue;
        }
        let mut believed = at.written();
        for write in route.writes() {
            let moved = W::write(model, believed, *write, state);
            state = moved.expect("what is planned is understood");
            believed = *write;
        }
        at = route.then();
        let works = at.engine() == State::Running || at.engine() == State::PreCopy;
        assert_eq!(state.is_running(), works, "{at:?} {state}");
        let session = matches!(at.engine(), State::StopCopy | State::Resuming);
        assert!(!session || state == at.engine(), "{at:?} {state}");
    }
}
