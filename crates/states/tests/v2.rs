//! The v2 state machine against the kernel's, pair by pair.

use serde::Deserialize;
use std::collections::{BTreeMap, HashSet};
use vfio_migrate_states::v2::{
    Capabilities, Refusal, Session, State, arcs, next, plan, session,
};

#[derive(Deserialize)]
struct Pair {
    capabilities: u64,
    from: String,
    to: String,
    path: Option<Vec<String>>,
    #[serde(default)]
    opens_session: bool,
    error: Option<String>,
}

fn state(name: &str) -> State {
    name.parse().expect("a state's name")
}

fn every_pair() -> impl Iterator<Item = (Capabilities, State, State)> {
    Capabilities::EVERY.into_iter().flat_map(|capabilities| {
        State::ALL.into_iter().flat_map(move |from| {
            State::ALL.into_iter().map(move |to| (capabilities, from, to))
        })
    })
}

#[test]
fn no_pair_differs_from_the_kernel() {
    let pairs: Vec<Pair> =
        serde_json::from_str(include_str!("v2-transitions.json")).expect("valid JSON");
    let mut seen = HashSet::new();
    for pair in &pairs {
        let capabilities = Capabilities::try_from_flags(pair.capabilities).unwrap();
        let (from, to) = (state(&pair.from), state(&pair.to));
        let planned = plan(capabilities, from, to);
        let what = format!("set {capabilities}, {from} to {to}");
        seen.insert((capabilities, from, to));
        match (&pair.path, &pair.error) {
            (Some(path), None) => {
                let planned = planned.unwrap_or_else(|e| panic!("{what}: {e}"));
                let path: Vec<State> = path.iter().map(|name| state(name)).collect();
                assert_eq!(planned.as_slice(), path, "{what}");
                assert_eq!(planned.opens_session(), pair.opens_session, "{what}");
                assert_eq!(
                    next(capabilities, from, to),
                    Ok(*path.first().unwrap_or(&to))
                );
            }
            (None, Some(error)) => {
                assert_eq!(error, "EINVAL", "{what}");
                assert!(planned.is_err(), "{what}: {planned:?}");
            }
            _ => panic!("{what}: either a path or an error"),
        }
    }
    // What the file leaves out starts where the device cannot be, or in ERROR.
    for (capabilities, from, to) in every_pair() {
        if !seen.contains(&(capabilities, from, to)) {
            assert!(!capabilities.supports(from));
            assert!(plan(capabilities, from, to).is_err());
        }
    }
    assert_eq!(pairs.len(), seen.len(), "no pair stands twice");
}

/// "If all optional features are supported then the coding will step through
/// multiple states for these combination transitions", as document 002 lists them.
#[test]
fn the_combination_transitions_of_document_002() {
    let list = "
        RESUMING -> STOP -> RUNNING_P2P
        RESUMING -> STOP -> RUNNING_P2P -> RUNNING
        RESUMING -> STOP -> STOP_COPY
        RUNNING -> RUNNING_P2P -> STOP
        RUNNING -> RUNNING_P2P -> STOP -> RESUMING
        RUNNING -> RUNNING_P2P -> STOP -> STOP_COPY
        RUNNING_P2P -> STOP -> RESUMING
        RUNNING_P2P -> STOP -> STOP_COPY
        STOP -> RUNNING_P2P -> RUNNING
        STOP_COPY -> STOP -> RESUMING
        STOP_COPY -> STOP -> RUNNING_P2P
        STOP_COPY -> STOP -> RUNNING_P2P -> RUNNING";
    assert_eq!(combinations(Capabilities::P2P), listed(list));
}

/// The same list before document 002, with the lines that it takes out.
#[test]
fn the_combination_transitions_before_document_002() {
    let list = "
        RESUMING -> STOP -> RUNNING
        RESUMING -> STOP -> STOP_COPY
        RUNNING -> STOP -> RESUMING
        RUNNING -> STOP -> STOP_COPY
        STOP_COPY -> STOP -> RESUMING
        STOP_COPY -> STOP -> RUNNING";
    assert_eq!(combinations(Capabilities::STOP_COPY), listed(list));
}

/// What the kernel's list says since `PRE_COPY` came (Linux 6.2), in full: its own
/// comment leaves some of them out.
#[test]
fn the_combination_transitions_with_pre_copy() {
    let list = "
        PRE_COPY -> PRE_COPY_P2P -> STOP_COPY
        PRE_COPY -> RUNNING -> RUNNING_P2P
        PRE_COPY -> RUNNING -> RUNNING_P2P -> STOP
        PRE_COPY -> RUNNING -> RUNNING_P2P -> STOP -> RESUMING
        PRE_COPY_P2P -> RUNNING_P2P -> RUNNING
        PRE_COPY_P2P -> RUNNING_P2P -> STOP
        PRE_COPY_P2P -> RUNNING_P2P -> STOP -> RESUMING
        RESUMING -> STOP -> RUNNING_P2P
        RESUMING -> STOP -> RUNNING_P2P -> PRE_COPY_P2P
        RESUMING -> STOP -> RUNNING_P2P -> RUNNING
        RESUMING -> STOP -> RUNNING_P2P -> RUNNING -> PRE_COPY
        RESUMING -> STOP -> STOP_COPY
        RUNNING -> RUNNING_P2P -> PRE_COPY_P2P
        RUNNING -> RUNNING_P2P -> STOP
        RUNNING -> RUNNING_P2P -> STOP -> RESUMING
        RUNNING -> RUNNING_P2P -> STOP -> STOP_COPY
        RUNNING_P2P -> RUNNING -> PRE_COPY
        RUNNING_P2P -> STOP -> RESUMING
        RUNNING_P2P -> STOP -> STOP_COPY
        STOP -> RUNNING_P2P -> PRE_COPY_P2P
        STOP -> RUNNING_P2P -> RUNNING
        STOP -> RUNNING_P2P -> RUNNING -> PRE_COPY
        STOP_COPY -> STOP -> RESUMING
        STOP_COPY -> STOP -> RUNNING_P2P
        STOP_COPY -> STOP -> RUNNING_P2P -> RUNNING";
    assert_eq!(combinations(Capabilities::ALL), listed(list));
}

/// Every path of more than one arc, by its ends.
fn combinations(capabilities: Capabilities) -> BTreeMap<(State, State), Vec<State>> {
    every_pair()
        .filter(|pair| pair.0 == capabilities)
        .filter_map(|(_, from, to)| {
            let path = plan(capabilities, from, to).ok()?;
            (path.len() > 1).then(|| ((from, to), path.as_slice().to_vec()))
        })
        .collect()
}

fn listed(list: &str) -> BTreeMap<(State, State), Vec<State>> {
    list.trim()
        .lines()
        .map(|line| {
            let states: Vec<State> = line.trim().split(" -> ").map(state).collect();
            ((states[0], states[states.len() - 1]), states[1..].to_vec())
        })
        .collect()
}

#[test]
fn a_capability_set_nobody_defined_is_not_guessed_at() {
    for flags in [0, 2, 4, 6, 8, 9, 15, 1 << 63 | 7, u64::MAX] {
        let refused = Capabilities::try_from_flags(flags).unwrap_err();
        assert_eq!(refused.0, flags);
        assert!(refused.to_string().contains(&flags.to_string()), "{refused}");
    }
    for capabilities in Capabilities::EVERY {
        assert_eq!(Capabilities::try_from_flags(capabilities.flags()), Ok(capabilities));
    }
}

#[test]
fn a_plan_walks_only_arcs_that_the_driver_has_and_arrives() {
    for (capabilities, from, to) in every_pair() {
        let Ok(path) = plan(capabilities, from, to) else { continue };
        let have: HashSet<_> = arcs(capabilities).collect();
        let mut at = from;
        for (before, after) in path.arcs() {
            assert_eq!(before, at);
            assert!(have.contains(&(before, after)), "{before} to {after}");
            assert_eq!(next(capabilities, before, to), Ok(after), "memoryless");
            at = after;
        }
        assert_eq!(at, to);
        assert_eq!(path.into_iter().collect::<Vec<_>>(), path.as_slice());
        assert_eq!((&path).into_iter().count(), path.len());
        assert!(path.len() <= 4);
    }
}

#[test]
fn no_save_session_is_opened_and_lost_on_the_way() {
    for (capabilities, from, to) in every_pair() {
        let Ok(path) = plan(capabilities, from, to) else { continue };
        let Some((_, interior)) = path.as_slice().split_last() else { continue };
        assert!(!interior.contains(&State::Resuming));
        if !(from.is_saving() && to.is_saving()) {
            assert!(interior.iter().all(|s| !s.is_saving()), "{from} to {to}");
        }
        let opened = path.arcs().filter(|(a, b)| session(*a, *b).opens()).count();
        assert_eq!(opened, usize::from(path.opens_session()));
    }
}

#[test]
fn no_other_path_is_as_short() {
    fn count(c: Capabilities, at: State, to: State, left: usize, inside: bool) -> usize {
        if at == to {
            return 1;
        }
        if left == 0 {
            return 0;
        }
        arcs(c)
            .filter(|arc| arc.0 == at)
            .filter(|arc| inside || arc.1 == to || !arc.1.is_saving())
            .map(|arc| count(c, arc.1, to, left - 1, inside))
            .sum()
    }
    for (capabilities, from, to) in every_pair() {
        let Ok(path) = plan(capabilities, from, to) else { continue };
        let inside = from.is_saving() && to.is_saving();
        assert_eq!(
            count(capabilities, from, to, path.len(), inside),
            1,
            "set {capabilities}: {from} to {to}"
        );
    }
}

#[test]
fn error_is_left_by_reset_alone() {
    for (capabilities, from, to) in every_pair() {
        if from == State::Error {
            assert_eq!(plan(capabilities, from, to), Err(Refusal::FromError));
        } else if to == State::Error {
            assert_eq!(plan(capabilities, from, to), Err(Refusal::ToError));
        }
    }
    for state in [State::PreCopy, State::PreCopyP2p] {
        assert_eq!(
            plan(Capabilities::ALL, State::StopCopy, state),
            Err(Refusal::BackToPreCopy { to: state })
        );
    }
}

#[test]
fn a_device_in_error_is_never_taken_for_stopped() {
    for state in State::ALL {
        assert!(!(state.is_running() && state.is_stopped()));
        let known = state.is_running() || state.is_stopped();
        assert_eq!(known, state != State::Error);
    }
    assert!(!State::Error.is_p2p_quiescent());
}

#[test]
fn the_number_of_arcs_is_the_kernels() {
    let counts = Capabilities::EVERY.map(|capabilities| arcs(capabilities).count());
    assert_eq!(counts, [6, 8, 9, 15]);
}

#[test]
fn numbers_and_names_go_there_and_back() {
    for state in State::ALL {
        assert_eq!(State::from_number(state.number()), Some(state));
        assert_eq!(state.to_string().parse(), Ok(state));
    }
    for number in [8, 255, 256, u32::MAX] {
        assert_eq!(State::from_number(number), None);
    }
    assert!("running".parse::<State>().is_err());
    assert!("".parse::<State>().is_err());
}

#[test]
fn one_save_session_covers_pre_copy_and_stop_copy() {
    use State::{PreCopy, PreCopyP2p, Resuming, Running, Stop, StopCopy};
    assert_eq!(session(Running, PreCopy), Session::OpensSave);
    assert_eq!(session(PreCopy, PreCopyP2p), Session::KeepsSave);
    assert_eq!(session(PreCopyP2p, StopCopy), Session::KeepsSave);
    assert_eq!(session(StopCopy, Stop), Session::EndsSave);
    assert_eq!(session(Stop, StopCopy), Session::OpensSave);
    assert_eq!(session(Stop, Resuming), Session::OpensResume);
    assert_eq!(session(Resuming, Stop), Session::EndsResume);
    assert_eq!(session(Running, Stop), Session::None);
    assert_eq!(session(PreCopy, PreCopy), Session::None);
}
