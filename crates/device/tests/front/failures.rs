//! Transitions that take their time, and those that fail half-way.

use crate::bench::{Bench, GENERATIONS, bench, options, rfc, v1};
use abi::errno::Errno;
use states::v2::{Capabilities, State};
use vfio_migrate_device::front::{DataSection, Generation};
use vfio_migrate_device::{Moved, QUIESCE_DEADLINE};

fn device(generation: Generation) -> Bench {
    bench(options(generation, DataSection::Trapped), Capabilities::ALL)
}

/// The first write that does something, on a running device.
fn first(generation: Generation) -> u32 {
    if generation == Generation::V1 { v1::PRE_COPY } else { rfc::RESUME }
}

#[test]
fn a_transition_is_answered_before_it_is_done() {
    for generation in GENERATIONS {
        let mut bench = device(generation);
        bench.fate.lock().unwrap().lazy = 3;
        let state = first(generation).to_ne_bytes();
        assert_eq!(bench.write(0, &state), Ok(Moved::Pending));
        assert_eq!(bench.write(0, &state), Err(Errno::EBUSY), "one at a time");
        for _ in 0..2 {
            assert_eq!(bench.front.settle(&mut bench.runner, bench.now), None);
            if generation == Generation::V1 {
                assert_eq!(bench.state(), v1::RUNNING, "where it was");
            }
        }
        let mut outcome = None;
        for _ in 0..4 {
            outcome = outcome.or(bench.front.settle(&mut bench.runner, bench.now));
        }
        assert_eq!(outcome, Some(Ok(())));
        assert_eq!(bench.front.settle(&mut bench.runner, bench.now), None, "once");
        if generation == Generation::V1 {
            assert_eq!(bench.state(), v1::PRE_COPY);
        } else {
            assert_eq!(bench.runner.state(), State::Resuming);
        }
    }
}

#[test]
fn a_reset_leaves_a_transition_without_an_answer() {
    for generation in GENERATIONS {
        let mut bench = device(generation);
        bench.fate.lock().unwrap().lazy = 3;
        let state = first(generation).to_ne_bytes();
        assert_eq!(bench.write(0, &state), Ok(Moved::Pending));
        bench.runner.reset();
        bench.fate.lock().unwrap().lazy = 0;
        let outcome = bench.front.settle(&mut bench.runner, bench.now);
        assert_eq!(outcome, Some(Err(Errno::ENODEV)));
        if generation == Generation::V1 {
            assert_eq!(bench.state(), v1::RUNNING);
        }
        bench.put(0, &state).unwrap();
    }
}

#[test]
fn a_client_that_goes_leaves_registers_that_lie() {
    for generation in GENERATIONS {
        let mut bench = device(generation);
        bench.fate.lock().unwrap().lazy = 2;
        let state = first(generation).to_ne_bytes();
        assert_eq!(bench.write(0, &state), Ok(Moved::Pending));
        bench.runner.disconnect();
        bench.front.disconnect();
        for _ in 0..8 {
            assert_eq!(bench.front.settle(&mut bench.runner, bench.now), None);
        }
        // It went on, and the next one sees where it is.
        if generation == Generation::V1 {
            assert_eq!(bench.state(), v1::PRE_COPY);
            bench.go(v1::RUNNING).unwrap();
        } else {
            assert_eq!(bench.runner.state(), State::Resuming);
            assert_eq!(bench.load(&[0; 8]), Err(Errno::ENODEV));
            bench.go(rfc::FAILED).unwrap();
            bench.go(rfc::RUNNING).unwrap();
        }
    }
}

#[test]
fn a_failure_half_way_leaves_a_state_without_a_name() {
    // From 001 and 011 to 010 there is a peer-to-peer state, and a stop.
    for from in [v1::RUNNING, v1::PRE_COPY] {
        for (refused, read) in [
            (State::RunningP2p, v1::RUNNING),
            (State::PreCopyP2p, v1::PRE_COPY),
            (State::Stop, v1::RUNNING),
            (State::StopCopy, if from == v1::RUNNING { 0 } else { v1::PRE_COPY }),
        ] {
            let mut bench = device(Generation::V1);
            bench.go(from).unwrap();
            bench.fate.lock().unwrap().refuse = vec![(refused, Errno::EIO)];
            let outcome = bench.go(v1::STOP_COPY);
            if outcome.is_ok() {
                // Not on the way from here.
                let passes = bench.fate.lock().unwrap().arcs.clone();
                assert!(passes.iter().all(|arc| arc.1 != refused), "{refused}");
                continue;
            }
            assert_eq!(outcome, Err(Errno::EIO));
            assert_eq!(bench.state(), read, "{from:03b}, {refused} refused");
            assert!(!matches!(
                bench.runner.state(),
                State::RunningP2p | State::PreCopyP2p
            ));
            bench.fate.lock().unwrap().refuse.clear();
            bench.go(v1::STOP_COPY).unwrap();
            assert!(bench.buffers().len() > 2);
        }
    }
}

#[test]
fn a_way_back_that_takes_its_time_is_not_waited_for() {
    let mut bench = device(Generation::V1);
    {
        let mut fate = bench.fate.lock().unwrap();
        fate.refuse = vec![(State::Stop, Errno::ENOSPC)];
        (fate.lazy, fate.lazy_to) = (2, Some(State::Running));
    }
    assert_eq!(bench.write(0, &0_u32.to_ne_bytes()), Ok(Moved::Pending));
    assert_eq!(bench.runner.pending(), Some(State::Running), "on its way back");
    assert_eq!(bench.write(0, &0_u32.to_ne_bytes()), Err(Errno::EBUSY));
    assert_eq!(bench.front.settle(&mut bench.runner, bench.now), None);
    let outcome = bench.front.settle(&mut bench.runner, bench.now);
    assert_eq!(outcome, Some(Err(Errno::ENOSPC)), "what failed, not how it ended");
    assert_eq!(bench.state(), v1::RUNNING);
    assert_eq!(bench.runner.state(), State::Running);
}

#[test]
fn a_device_that_finds_no_way_back_passes_for_one_that_runs() {
    for late in [false, true] {
        let mut bench = device(Generation::V1);
        {
            let mut fate = bench.fate.lock().unwrap();
            fate.refuse = vec![(State::Stop, Errno::ENOSPC)];
            if late {
                (fate.lazy, fate.lazy_to) = (u32::MAX, Some(State::Running));
            } else {
                fate.refuse.push((State::Running, Errno::EIO));
            }
        }
        let mut outcome = bench.write(0, &0_u32.to_ne_bytes());
        if late {
            assert_eq!(outcome, Ok(Moved::Pending));
            bench.now += QUIESCE_DEADLINE;
            let settled = bench.front.settle(&mut bench.runner, bench.now).unwrap();
            outcome = settled.map(|()| Moved::Pending);
        }
        assert_eq!(outcome, Err(Errno::ENOSPC));
        assert_eq!(bench.runner.state(), State::Error);
        assert_eq!(bench.state(), 0b110);
        bench.fate.lock().unwrap().lazy = 0;
        bench.runner.reset();
        assert_eq!(bench.state(), v1::RUNNING);
    }
}

#[test]
fn a_model_that_fails_to_save_seems_to_be_at_its_end() {
    for generation in GENERATIONS {
        let mut bench = device(generation);
        let pending = if generation == Generation::V1 { v1::PENDING } else { 20 };
        for state in if generation == Generation::V1 { vec![2] } else { vec![2, 4] } {
            bench.go(state).unwrap();
        }
        bench.buffer().unwrap();
        bench.fate.lock().unwrap().save = Some(Errno::ENOMEM);
        let mut word = [0; 8];
        for _ in 0..2 {
            assert_eq!(bench.read(pending, &mut word), Err(Errno::ENOMEM));
        }
        // Dead for good, as in v2.
        bench.fate.lock().unwrap().save = None;
        assert_eq!(bench.read(pending, &mut word), Err(Errno::ENOMEM));
        bench.go(1).unwrap();
        assert!(bench.save().len() > 3);
    }
}

#[test]
fn a_device_in_error_takes_a_step() {
    let mut bench = device(Generation::Rfc2018);
    bench.fate.lock().unwrap().lazy = u32::MAX;
    assert_eq!(bench.write(0, &rfc::RESUME.to_ne_bytes()), Ok(Moved::Pending));
    bench.now += QUIESCE_DEADLINE;
    let outcome = bench.front.settle(&mut bench.runner, bench.now);
    assert_eq!(outcome, Some(Err(Errno::ETIMEDOUT)));
    bench.fate.lock().unwrap().lazy = 0;
    for step in 0..10 {
        assert_eq!(bench.go(step), Err(Errno::EIO));
    }
    bench.runner.reset();
    bench.go(rfc::RUNNING).unwrap();
}
