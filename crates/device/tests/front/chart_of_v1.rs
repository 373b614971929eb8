//! `device_state` of document 000: the chart, every combination, the reserved bits.

use crate::bench::{Bench, SECTIONS, bench, options, plain, v1};
use abi::errno::Errno;
use states::v1::{Arc, CHART, V1State, arc};
use states::v2::{Capabilities, State};
use vfio_migrate_device::front::{FrontOptions, Generation};

fn device() -> Bench {
    plain(Generation::V1)
}

/// Brings a new device to a state, by legal writes.
fn at(state: V1State) -> Bench {
    let mut bench = device();
    let way: &[u32] = match state {
        V1State::Running => &[],
        V1State::Stop => &[0],
        V1State::StopCopy => &[v1::STOP_COPY],
        V1State::PreCopy => &[v1::PRE_COPY],
        V1State::Resuming => &[v1::RESUMING],
        V1State::Error => panic!("nobody asks for it"),
    };
    for step in way {
        bench.go(*step).unwrap();
    }
    assert_eq!(bench.state(), state.bits().bits());
    bench
}

#[test]
fn a_transition_of_the_chart_is_refused() {
    for capabilities in Capabilities::EVERY {
        for (number, path) in CHART.iter().enumerate() {
            let mut source = device();
            let state = source.save();
            let options = options(Generation::V1, SECTIONS[0]);
            let mut bench = bench(options, capabilities);
            if path[0] == V1State::Resuming {
                bench.go(v1::RESUMING).unwrap();
                for transaction in &state {
                    bench.load(transaction).unwrap();
                }
            }
            assert_eq!(bench.state(), path[0].bits().bits(), "0: the default");
            for step in &path[1..] {
                bench.go(step.bits().bits()).unwrap();
                let read = bench.state();
                assert_eq!(read, step.bits().bits(), "{number}, set {capabilities}");
            }
        }
    }
}

#[test]
fn a_combination_leads_where_nothing_does() {
    let from = V1State::ALL.into_iter().filter(|state| *state != V1State::Error);
    for from in from {
        for bits in 0..8_u32 {
            let mut bench = at(from);
            let before = bench.runner.state();
            let to = V1State::from_bits(abi::v1::StateBits::from_bits_retain(bits));
            let outcome = bench.go(bits);
            // Nothing was loaded, so nothing can be started.
            let unloaded = from == V1State::Resuming
                && to.is_ok_and(|to| matches!(to, V1State::Running | V1State::Stop));
            let legal = to.is_ok_and(|to| arc(from, to) != Arc::Refused);
            if legal && !unloaded {
                assert_eq!(outcome, Ok(()), "{from} to {bits:03b}");
                assert_eq!(bench.state(), bits);
            } else {
                assert_eq!(outcome, Err(Errno::EINVAL), "{from} to {bits:03b}");
                if unloaded {
                    assert_eq!(bench.state(), 0b110, "nothing was loaded");
                    continue;
                }
                assert_eq!(bench.runner.state(), before, "{from} to {bits:03b}");
                assert_eq!(bench.state(), from.bits().bits());
            }
        }
    }
}

#[test]
fn an_error_is_left_without_a_reset() {
    let mut bench = device();
    bench.fate.lock().unwrap().lazy = u32::MAX;
    assert_eq!(bench.write(v1::STATE, &v1::PRE_COPY.to_ne_bytes()).map(drop), Ok(()));
    bench.now += vfio_migrate_device::QUIESCE_DEADLINE;
    let outcome = bench.front.settle(&mut bench.runner, bench.now);
    assert_eq!(outcome, Some(Err(Errno::ETIMEDOUT)));
    assert_eq!(bench.state(), 0b110);
    bench.fate.lock().unwrap().lazy = 0;
    for bits in 0..8 {
        assert_eq!(bench.go(bits), Err(Errno::EINVAL), "{bits:03b}");
        assert_eq!(bench.state(), 0b110);
    }
    bench.runner.reset();
    assert_eq!(bench.state(), v1::RUNNING);
    bench.go(v1::PRE_COPY).unwrap();
}

#[test]
fn reserved_bits_are_lost_or_taken_for_a_request() {
    let reserved_bits = 0xabcd_ef98;
    let options = FrontOptions {
        reserved_bits: reserved_bits | 0b111,
        ..options(Generation::V1, SECTIONS[0])
    };
    let mut bench = bench(options, Capabilities::ALL);
    assert_eq!(bench.state(), reserved_bits | v1::RUNNING);
    for bit in 3..32 {
        let other = (reserved_bits ^ (1 << bit)) | v1::STOP_COPY;
        assert_eq!(bench.go(other), Err(Errno::EINVAL), "bit {bit}");
        assert_eq!(bench.state(), reserved_bits | v1::RUNNING);
    }
    for state in [v1::PRE_COPY, v1::STOP_COPY, 0, v1::RESUMING] {
        bench.go(reserved_bits | state).unwrap();
        assert_eq!(bench.state(), reserved_bits | state);
    }
    bench.runner.reset();
    assert_eq!(bench.state(), reserved_bits | v1::RUNNING);
}

#[test]
fn stop_and_copy_is_reached_through_a_stop() {
    for from in [V1State::Running, V1State::PreCopy] {
        let mut bench = at(from);
        bench.go(v1::STOP_COPY).unwrap();
        assert_eq!(bench.runner.state(), State::StopCopy);
        assert!(bench.word(v1::PENDING) > 0);
    }
    // The model's own way there is the runner's matter.
    let arcs = at(V1State::StopCopy).fate.lock().unwrap().arcs.clone();
    assert_eq!(arcs.last().map(|arc| arc.1), Some(State::StopCopy));
}

#[test]
fn a_rollback_loses_what_the_guest_wrote() {
    let mut bench = device();
    for state in [v1::PRE_COPY, v1::STOP_COPY] {
        bench.go(state).unwrap();
        bench.buffer().unwrap();
        bench.go(v1::RUNNING).unwrap();
        assert_eq!(bench.word(v1::PENDING), 0);
        bench.scribble(u64::from(state));
    }
    // The next save begins anew.
    let transactions = bench.save();
    let mut target = device();
    target.restore(&transactions).unwrap();
    let (was, is) = (bench.runner.digest().unwrap(), target.runner.digest().unwrap());
    assert_eq!(was.difference(&is), None);
}

#[test]
fn a_load_is_believed_without_being_checked() {
    let state = device().save();
    // Not whole, too long, and damaged.
    let short = state[..state.len() - 1].to_vec();
    let mut long = state.clone();
    long.push(vec![0; 9]);
    for broken in [short, long] {
        for then in [v1::RUNNING, 0] {
            let mut bench = device();
            bench.go(v1::RESUMING).unwrap();
            let loaded: Result<(), Errno> =
                broken.iter().try_for_each(|transaction| bench.load(transaction));
            let after = if loaded.is_ok() { v1::RESUMING } else { 0b110 };
            assert_eq!(bench.state(), after, "{loaded:?}");
            assert_eq!(bench.go(then), Err(Errno::EINVAL), "{loaded:?}");
            assert_eq!(
                bench.state(),
                0b110,
                "100 would say that {then:03b} is not there"
            );
            assert_eq!(bench.put_word(v1::SIZE, 8), Err(Errno::EINVAL), "dead for good");
            bench.runner.reset();
            bench.restore(&state).unwrap();
        }
    }
    // Validated before the start, for who asks for 000.
    let mut bench = device();
    bench.go(v1::RESUMING).unwrap();
    state.iter().for_each(|transaction| bench.load(transaction).unwrap());
    bench.go(0).unwrap();
    bench.go(v1::RUNNING).unwrap();
}

#[test]
fn a_client_that_never_touches_migration_notices_it() {
    for generation in crate::bench::GENERATIONS {
        let mut with = plain(generation);
        let mut without = plain(generation);
        assert_eq!(with.runner.state(), State::Running);
        for seed in 0..20 {
            with.scribble(seed);
            without.scribble(seed);
            // Looking at it is not touching it.
            let mut bytes = [0; 8];
            for at in [8, 16, 24] {
                let _ = with.read(at, &mut bytes);
            }
        }
        let (a, b) = (with.runner.digest().unwrap(), without.runner.digest().unwrap());
        assert_eq!(a.difference(&b), None);
        assert_eq!(with.runner.state(), State::Running);
        assert_eq!(with.fate.lock().unwrap().arcs, []);
        assert_eq!(with.runner.log_page_size(), None);
    }
}
