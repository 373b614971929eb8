//! The steps of document 001 against its chart, its flow and its mistakes.
#![allow(clippy::panic, reason = "a test's way to fail")]

use abi::rfc2018::FlowState;
use std::collections::BTreeMap;
use vfio_migrate_states::rfc2018::{
    Act, ChartLine, RESUME_CHART, RfcState, SAVE_CHART, StepRefusal, act, front,
};
use vfio_migrate_states::v2::{Capabilities, State};

const MODEL: Capabilities = Capabilities::PRE_COPY;

#[test]
fn the_ten_states_keep_their_numbers_and_names() {
    assert_eq!(RfcState::ALL.len(), FlowState::NAMED.len());
    for (state, number) in RfcState::ALL.into_iter().zip(FlowState::NAMED) {
        assert_eq!(state.number(), *number);
        assert_eq!(RfcState::from_number(*number), Some(state));
        assert_eq!(Some(state.to_string().as_str()), number.name());
    }
    for number in [10, 11, 255, u32::MAX] {
        assert_eq!(RfcState::from_number(FlowState(number)), None);
        let refusal = front(MODEL, RfcState::Running, FlowState(number));
        assert_eq!(refusal, Err(StepRefusal::Unknown(FlowState(number))));
    }
}

/// The whole table: what is not listed is refused.
#[test]
fn no_step_differs_from_the_table() {
    let list = "
        NONE: RUNNING=RUNNING SETUP=- RESUME=RESUMING FAILED=- CANCELLED=-
        RUNNING: SETUP=- RESUME=RESUMING FAILED=- CANCELLED=-
        SETUP: RUNNING=RUNNING PRECOPY=PRE_COPY STOPNCOPY=STOP_COPY FAILED=- CANCELLED=-
        PRECOPY: RUNNING=RUNNING STOPNCOPY=STOP_COPY FAILED=RUNNING CANCELLED=RUNNING
        STOPNCOPY: RUNNING=RUNNING SAVE_COMPLETED=STOP FAILED=RUNNING CANCELLED=RUNNING
        SAVE_COMPLETED: RUNNING=RUNNING SETUP=- RESUME=RESUMING FAILED=RUNNING CANCELLED=RUNNING
        RESUME: RUNNING=RUNNING RESUME_COMPLETED=STOP FAILED=reset CANCELLED=reset
        RESUME_COMPLETED: RUNNING=RUNNING SETUP=- RESUME=RESUMING FAILED=reset CANCELLED=reset
        FAILED: RUNNING=RUNNING SETUP=- RESUME=RESUMING CANCELLED=-
        CANCELLED: RUNNING=RUNNING SETUP=- RESUME=RESUMING FAILED=-";
    let mut expected = BTreeMap::new();
    for line in list.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (from, steps) = line.split_once(':').expect("a row");
        for step in steps.split_whitespace() {
            let (to, asks) = step.split_once('=').expect("a step");
            let act = match asks {
                "-" => Act::Nothing,
                "reset" => Act::Reset,
                state => Act::Enter(state.parse().expect("a v2 state")),
            };
            expected.insert((from.to_owned(), to.to_owned()), act);
        }
    }
    for from in RfcState::ALL {
        for to in RfcState::ALL {
            let key = (from.to_string(), to.to_string());
            let listed = match expected.remove(&key) {
                None if from == to => Some(Act::Nothing),
                listed => listed,
            };
            assert_eq!(act(from, to), listed, "{from} to {to}");
            let answer = front(MODEL, from, to.number());
            match listed {
                Some(act) => {
                    let stepped = answer.expect("listed");
                    assert_eq!((stepped.then, stepped.act), (to, act));
                }
                None => assert_eq!(answer, Err(StepRefusal::NoStep { from, to })),
            }
        }
    }
    assert!(expected.is_empty(), "rows of no state: {expected:?}");
}

fn walk(path: &[RfcState]) -> State {
    let mut state = State::Running;
    for step in path.windows(2) {
        match act(step[0], step[1]) {
            Some(Act::Enter(next)) => state = next,
            Some(Act::Nothing) => {}
            Some(Act::Reset) => state = State::Running,
            None => panic!("no step from {} to {}", step[0], step[1]),
        }
    }
    state
}

fn devices(chart: &[ChartLine]) -> Vec<RfcState> {
    chart.iter().map(|line| line.2).collect()
}

#[test]
fn the_chart_of_document_001_saves_resumes_cancels_and_fails() {
    let save = devices(&SAVE_CHART);
    assert_eq!(walk(&save), State::Stop);
    let (vm, migration, _) = SAVE_CHART[SAVE_CHART.len() - 1];
    assert_eq!((vm, migration), ("POST_MIGRATE", "_COMPLETED"));
    // At every line of it the operator may cancel, or something may fail; then the
    // device runs, at once or when the VM runs again.
    for length in 1..=save.len() {
        for undo in [RfcState::Cancelled, RfcState::Failed] {
            let mut path = save[..length].to_vec();
            path.push(undo);
            assert_eq!(walk(&path), State::Running, "{path:?}");
            path.push(RfcState::Running);
            assert_eq!(walk(&path), State::Running, "{path:?}");
            // A VMM that starts its vCPUs before it tells of the failure.
            path.swap(length, length + 1);
            assert_eq!(walk(&path), State::Running, "{path:?}");
            // The next attempt goes on from there, RUNNING written or not.
            for skip in [0, 1] {
                let mut again = path[..path.len() - skip].to_vec();
                again.extend([RfcState::Setup, RfcState::PreCopy]);
                assert_eq!(walk(&again), State::PreCopy, "{again:?}");
            }
        }
    }
    let resume = |first| {
        let mut path = vec![first];
        path.extend(devices(&RESUME_CHART));
        path
    };
    for first in [RfcState::None, RfcState::Running] {
        assert_eq!(walk(&resume(first)), State::Running);
        // The chart itself has no RESUME_COMPLETED.
        assert_eq!(walk(&[first, RfcState::Resume, RfcState::Running]), State::Running);
    }
    assert_eq!(walk(&resume(RfcState::None)[..2]), State::Resuming);
    assert_eq!(walk(&resume(RfcState::None)[..3]), State::Stop);
}

#[test]
fn part_of_a_state_is_reset_and_never_runs() {
    for at in [RfcState::Resume, RfcState::ResumeCompleted] {
        for undo in [RfcState::Failed, RfcState::Cancelled] {
            assert_eq!(act(at, undo), Some(Act::Reset));
        }
    }
}

#[test]
fn the_device_of_a_paused_guest_does_not_run_to_be_saved() {
    for stopped in [RfcState::SaveCompleted, RfcState::ResumeCompleted] {
        assert_eq!(act(stopped, RfcState::Setup), Some(Act::Nothing));
    }
}

/// Patch 3/5 sets RESUME whenever a migration becomes active and the device is not in
/// SETUP: on a source, in the middle of a save.
#[test]
fn error_16_resume_is_set_on_a_source() {
    for saving in [RfcState::Setup, RfcState::PreCopy, RfcState::StopNCopy] {
        let refused = front(MODEL, saving, RfcState::Resume.number());
        let refusal = StepRefusal::NoStep { from: saving, to: RfcState::Resume };
        assert_eq!(refused, Err(refusal));
    }
}

#[test]
fn a_model_without_pre_copy_takes_precopy_and_goes_on_running() {
    for model in Capabilities::EVERY {
        let stepped = front(model, RfcState::Setup, FlowState::PRECOPY).expect("must");
        let enters = if model.pre_copy() { State::PreCopy } else { State::Running };
        assert_eq!((stepped.then, stepped.act), (RfcState::PreCopy, Act::Enter(enters)));
    }
}
