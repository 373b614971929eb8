//! `device_state` of document 001: its chart, for save, resume, cancel and failure.

use crate::bench::{Bench, bench, options, plain, rfc};
use abi::errno::Errno;
use abi::rfc2018::DataSection as Data;
use states::rfc2018::{Act, RESUME_CHART, RfcState, SAVE_CHART, act};
use states::v2::{Capabilities, State};
use vfio_migrate_device::front::{DataSection, Generation};
use zerocopy::IntoBytes;

fn device() -> Bench {
    plain(Generation::Rfc2018)
}

/// A way to each step from a new device.
fn way(to: RfcState) -> &'static [u32] {
    match to {
        RfcState::None => &[],
        RfcState::Running => &[1],
        RfcState::Setup => &[2],
        RfcState::PreCopy => &[2, 3],
        RfcState::StopNCopy => &[2, 3, 4],
        RfcState::SaveCompleted => &[2, 3, 4, 5],
        RfcState::Resume => &[6],
        RfcState::ResumeCompleted => &[6, 7],
        RfcState::Failed => &[2, 8],
        RfcState::Cancelled => &[2, 9],
    }
}

fn at(step: RfcState, state: &[Vec<u8>]) -> Bench {
    let mut bench = device();
    for write in way(step) {
        bench.go(*write).unwrap();
        if *write == rfc::RESUME {
            state.iter().for_each(|transaction| bench.load(transaction).unwrap());
        }
    }
    bench
}

#[test]
fn a_step_of_the_chart_is_refused() {
    for capabilities in Capabilities::EVERY {
        let new =
            || bench(options(Generation::Rfc2018, DataSection::Split), capabilities);
        let mut source = new();
        for (vm, _, step) in SAVE_CHART {
            source.go(step.number().0).unwrap();
            // RUNNING is the VM's state; it stops before its devices do.
            let runs = source.runner.state().is_running();
            assert_eq!(runs, vm == "RUNNING", "{step} of set {capabilities}");
        }
        let state = plain(Generation::Rfc2018).save();
        let mut target = new();
        for (_, _, step) in RESUME_CHART {
            target.go(step.number().0).unwrap();
            if step == RfcState::Resume {
                state.iter().for_each(|transaction| target.load(transaction).unwrap());
            }
        }
        assert_eq!(target.runner.state(), State::Running);
    }
}

#[test]
fn a_step_is_taken_out_of_the_flow() {
    let state = device().save();
    for from in RfcState::ALL {
        for to in 0..12 {
            let mut bench = at(from, &state);
            let before = bench.runner.state();
            let resets = bench.runner.resets();
            let act = RfcState::ALL.get(to as usize).and_then(|to| act(from, *to));
            let outcome = bench.go(to);
            match act {
                Some(act) => {
                    assert_eq!(outcome, Ok(()), "{from} to {to}");
                    let reset = bench.runner.resets() > resets;
                    assert_eq!(reset, act == Act::Reset);
                    let is = bench.runner.state();
                    match act {
                        Act::Nothing => assert_eq!(is, before),
                        Act::Enter(state) => assert_eq!(is, state),
                        Act::Reset => assert_eq!(is, State::Running),
                    }
                }
                None => {
                    assert_eq!(outcome, Err(Errno::EINVAL), "{from} to {to}");
                    assert_eq!(bench.runner.state(), before);
                    // The step is the old one: it can be written again.
                    if from != RfcState::None {
                        assert_eq!(bench.go(from.number().0), Ok(()), "{from}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_cancelled_or_failed_migration_leaves_the_source_stopped() {
    for end in [rfc::CANCELLED, rfc::FAILED] {
        for stopped in [false, true] {
            let mut bench = device();
            bench.scribble(1);
            bench.go(rfc::SETUP).unwrap();
            bench.go(rfc::PRECOPY).unwrap();
            bench.buffer().unwrap();
            if stopped {
                bench.go(rfc::STOPNCOPY).unwrap();
                bench.buffer().unwrap();
            }
            bench.go(end).unwrap();
            assert_eq!(bench.runner.state(), State::Running);
            assert_eq!(bench.pending().precopy_only, 0);
            bench.go(rfc::RUNNING).unwrap();
            // And it can be tried again.
            bench.scribble(2);
            let transactions = bench.save();
            let mut target = device();
            target.restore(&transactions).unwrap();
            let (was, is) =
                (bench.runner.digest().unwrap(), target.runner.digest().unwrap());
            assert_eq!(was.difference(&is), None);
        }
    }
}

#[test]
fn a_load_that_was_given_up_runs() {
    let state = device().save();
    let fresh = device().runner.digest().unwrap();
    for end in [rfc::CANCELLED, rfc::FAILED] {
        for loaded in [1, state.len()] {
            let mut bench = device();
            bench.go(rfc::RESUME).unwrap();
            state[..loaded].iter().for_each(|part| bench.load(part).unwrap());
            bench.go(end).unwrap();
            let data = Data { offset: bench.word(rfc::DATA), size: 8 };
            assert_eq!(bench.put(rfc::DATA, data.as_bytes()), Err(Errno::EINVAL));
            bench.go(rfc::RUNNING).unwrap();
            let is = bench.runner.digest().unwrap();
            assert_eq!(fresh.difference(&is), None, "nothing of it is left");
        }
    }
}

#[test]
fn a_paused_device_runs_while_it_is_saved() {
    let mut bench = device();
    for write in [rfc::SETUP, rfc::STOPNCOPY, rfc::SAVE_COMPLETED] {
        bench.go(write).unwrap();
    }
    let arcs = bench.fate.lock().unwrap().arcs.len();
    for write in [rfc::SETUP, rfc::STOPNCOPY] {
        bench.go(write).unwrap();
        assert!(bench.runner.state().is_stopped());
    }
    assert!(bench.buffers().len() > 2);
    let since = bench.fate.lock().unwrap().arcs[arcs..].to_vec();
    assert!(since.iter().all(|arc| arc.1 != State::Running), "{since:?}");
    // Loaded, and still paused.
    let state = device().save();
    let mut target = device();
    target.go(rfc::RESUME).unwrap();
    state.iter().for_each(|part| target.load(part).unwrap());
    target.go(rfc::RESUME_COMPLETED).unwrap();
    assert_eq!(target.runner.state(), State::Stop);
}

#[test]
fn a_reset_is_not_noticed() {
    for step in
        [RfcState::Setup, RfcState::PreCopy, RfcState::StopNCopy, RfcState::Resume]
    {
        let mut bench = at(step, &[]);
        bench.runner.reset();
        // From there only a new migration begins.
        assert_eq!(bench.go(rfc::PRECOPY), Err(Errno::EINVAL), "after {step}");
        assert_eq!(bench.pending().precopy_only, 0);
        bench.go(rfc::SETUP).unwrap();
        bench.go(rfc::PRECOPY).unwrap();
    }
}
