//! The runner, with a model that does what the test says.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests, and what they share")]

mod puppet;

use abi::errno::Errno;
use abi::irq::IrqInfoFlags;
use puppet::{Act, PEER, Puppet, rig};
use states::v2::{Capabilities, State};
use std::sync::Arc;
use std::time::Duration;
use sys::SharedMemory;
use vfio_migrate_device::{
    BusError, Description, Direction, Dma, Irq, Migratable, Moved, PciIds,
    QUIESCE_DEADLINE, Settle, Window, Work,
};

#[test]
fn a_request_is_walked_arc_by_arc_and_sessions_are_numbered() {
    let mut rig = rig(Capabilities::ALL);
    let first = rig.go(State::StopCopy).unwrap();
    assert_eq!((first.number(), first.direction()), (1, Direction::Save));
    assert_eq!(
        std::mem::take(&mut rig.script.lock().unwrap().arcs),
        [
            (State::Running, State::RunningP2p),
            (State::RunningP2p, State::Stop),
            (State::Stop, State::StopCopy)
        ]
    );
    assert_eq!(rig.go(State::StopCopy), None, "the state it is in");
    assert_eq!(rig.runner.session(), Some(first));
    for bad in [State::Error, State::PreCopy, State::PreCopyP2p] {
        assert_eq!(rig.ask(bad), Err(Errno::EINVAL));
        assert_eq!(rig.runner.session(), Some(first), "{bad}");
    }
    let resume = rig.go(State::Resuming).unwrap();
    assert_eq!((resume.number(), resume.direction()), (2, Direction::Resume));
    let mut buffer = [0; 4];
    assert_eq!(rig.runner.read_data(first, &mut buffer), Err(Errno::ENODEV));
    assert_eq!(rig.runner.read_data(resume, &mut buffer), Err(Errno::EBADF));
    rig.go(State::Running);
    let pre = rig.go(State::PreCopy).unwrap();
    assert_eq!(rig.go(State::PreCopyP2p), None);
    assert_eq!(rig.go(State::StopCopy), None);
    assert_eq!(rig.runner.session(), Some(pre), "one session from PRE_COPY on");
    assert_eq!(rig.runner.precopy_info(pre), Err(Errno::EINVAL));
    assert_eq!(rig.runner.read_data(pre, &mut []), Err(Errno::EINVAL));
    assert_eq!(rig.runner.read_data(pre, &mut buffer), Ok(1));
    assert_eq!(rig.runner.write_data(pre, &buffer), Err(Errno::EBADF));
}

#[test]
fn states_that_the_device_does_not_have_are_refused() {
    let mut rig = rig(Capabilities::STOP_COPY);
    for state in [State::PreCopy, State::RunningP2p, State::PreCopyP2p, State::Error] {
        assert_eq!(rig.ask(state), Err(Errno::EINVAL));
        assert_eq!(rig.runner.state(), State::Running);
    }
}

#[test]
fn a_device_that_settles_later_is_in_the_old_state_until_then() {
    let mut rig = rig(Capabilities::STOP_COPY);
    rig.script.lock().unwrap().enter.push_back(Ok(Settle::Later));
    assert_eq!(rig.ask(State::StopCopy), Ok(Moved::Pending));
    assert_eq!(rig.runner.state(), State::Running);
    assert_eq!(rig.runner.pending(), Some(State::StopCopy));
    assert_eq!(rig.ask(State::Stop), Err(Errno::EBUSY));
    assert!(matches!(rig.runner.work(rig.now), Work::At(_)));
    assert_eq!(rig.script.lock().unwrap().works, 0, "work while it quiesces");
    assert_eq!(rig.runner.settle(rig.now), None);
    rig.script.lock().unwrap().settled.push_back(Ok(Settle::Now));
    let Some(Ok(Some(session))) = rig.runner.settle(rig.now) else {
        panic!("not settled")
    };
    assert_eq!(session.direction(), Direction::Save);
    assert_eq!(rig.runner.state(), State::StopCopy);
    assert_eq!(rig.runner.settle(rig.now), None, "told once");
}

#[test]
fn a_device_that_never_settles_ends_in_error_until_it_is_reset() {
    let mut rig = rig(Capabilities::STOP_COPY);
    rig.script.lock().unwrap().enter.push_back(Ok(Settle::Later));
    assert_eq!(rig.ask(State::Stop), Ok(Moved::Pending));
    rig.now += QUIESCE_DEADLINE - Duration::from_nanos(1);
    assert_eq!(rig.runner.settle(rig.now), None);
    rig.now += Duration::from_nanos(1);
    assert_eq!(rig.runner.settle(rig.now), Some(Err(Errno::ETIMEDOUT)));
    assert_eq!(rig.runner.state(), State::Error);
    for state in State::ALL {
        assert_eq!(rig.ask(state), Err(Errno::EINVAL), "{state}");
    }
    assert_eq!(rig.runner.read_region(0, 0, &mut [0]), Err(Errno::EINVAL));
    assert_eq!(rig.runner.work(rig.now), Work::Idle);
    rig.runner.reset();
    assert_eq!(rig.runner.state(), State::Running);
    rig.go(State::Stop);
}

#[test]
fn a_failed_arc_leaves_the_device_where_that_arc_began() {
    let mut rig = rig(Capabilities::P2P);
    rig.script.lock().unwrap().enter = [Ok(Settle::Now), Err(Errno::EIO)].into();
    assert_eq!(rig.ask(State::StopCopy), Err(Errno::EIO));
    assert_eq!(rig.runner.state(), State::RunningP2p);
    assert_eq!(rig.runner.pending(), None);
    rig.go(State::Running);
    assert!(matches!(rig.act(Act::Write(PEER, 8)), Ok(Dma::Later(_))));
}

#[test]
fn no_device_counts_as_stopped_while_its_writes_are_on_their_way() {
    for state in [State::RunningP2p, State::Stop, State::PreCopyP2p] {
        let mut rig = rig(Capabilities::ALL);
        let Ok(Dma::Later(token)) = rig.act(Act::Write(PEER, 8)) else { panic!() };
        assert_eq!(rig.ask(state), Ok(Moved::Pending));
        assert!(rig.script.lock().unwrap().arcs.is_empty());
        // Memory and interrupts still work; new messages do not.
        assert_eq!(rig.act(Act::Write(PEER, 8)), Err(BusError::Quiescing));
        assert_eq!(rig.act(Act::Write(0, 8)), Ok(Dma::Done));
        let request = rig.runner.next_request().unwrap();
        assert_eq!(request.token, token);
        rig.runner.complete(token, Ok(&[])).unwrap();
        assert!(matches!(rig.runner.settle(rig.now), Some(Ok(_))), "{state}");
        assert_eq!(rig.runner.state(), state);
        assert_eq!(rig.script.lock().unwrap().completions, [(token, Ok(vec![]))]);
    }
}

#[test]
fn a_peer_that_never_answers_leaves_the_device_running() {
    let mut rig = rig(Capabilities::STOP_COPY);
    assert!(matches!(rig.act(Act::Read(PEER, 8)), Ok(Dma::Later(_))));
    assert_eq!(rig.ask(State::Stop), Ok(Moved::Pending));
    rig.now += QUIESCE_DEADLINE;
    assert_eq!(rig.runner.settle(rig.now), Some(Err(Errno::ETIMEDOUT)));
    assert_eq!(rig.runner.state(), State::Running);
    assert!(matches!(rig.act(Act::Write(PEER, 8)), Ok(Dma::Later(_))));
}

#[test]
fn a_stopped_device_reaches_nothing_and_nothing_reaches_it() {
    let mut rig = rig(Capabilities::ALL);
    for state in [State::Stop, State::StopCopy, State::Resuming] {
        rig.runner.reset();
        rig.go(state);
        let before = rig.runner.counters();
        for act in [Act::Read(0, 4), Act::Write(0, 4), Act::Write(PEER, 4)] {
            assert_eq!(rig.act_at(7, act), Err(BusError::Stopped), "{state}");
        }
        assert_eq!(rig.act_at(7, Act::Raise(0)), Err(BusError::Stopped));
        assert_eq!(rig.runner.read_region(0, 0, &mut [0; 4]), Err(Errno::EINVAL));
        assert_eq!(rig.runner.write_region(0, 0, &[0; 4]), Err(Errno::EINVAL));
        assert_eq!(rig.runner.read_region(7, 0, &mut [0; 4]), Ok(()));
        let after = rig.runner.counters();
        assert_eq!(after.dma_while_stopped - before.dma_while_stopped, 3);
        assert_eq!(after.interrupts_while_stopped - before.interrupts_while_stopped, 1);
        assert_eq!(after.accesses_while_stopped - before.accesses_while_stopped, 2);
        assert_eq!(rig.runner.work(rig.now), Work::Idle);
    }
}

#[test]
fn a_load_that_failed_once_is_never_accepted() {
    for (load, loaded) in [(Some(Errno::EBADMSG), None), (None, Some(Errno::EBADMSG))] {
        let mut rig = rig(Capabilities::ALL);
        let session = rig.go(State::Resuming).unwrap();
        {
            let mut script = rig.script.lock().unwrap();
            script.load = load;
            script.loaded = loaded;
        }
        let _ = rig.runner.write_data(session, &[1]);
        assert_eq!(rig.ask(State::Running), Err(Errno::EBADMSG));
        {
            let mut script = rig.script.lock().unwrap();
            script.load = None;
            script.loaded = None;
        }
        assert_eq!(rig.runner.write_data(session, &[1]), Err(Errno::EBADMSG));
        rig.runner.disconnect();
        assert_eq!(rig.ask(State::Stop), Err(Errno::EBADMSG));
        assert_eq!(rig.runner.state(), State::Resuming);
        rig.runner.reset();
        rig.go(State::Resuming).unwrap();
        rig.go(State::Stop);
    }
}

#[test]
fn a_reset_overtakes_a_pending_request_and_old_messages() {
    let mut rig = rig(Capabilities::ALL);
    let Ok(Dma::Later(token)) = rig.act(Act::Write(PEER, 8)) else { panic!() };
    assert_eq!(rig.ask(State::Stop), Ok(Moved::Pending));
    rig.runner.reset();
    assert_eq!(rig.runner.state(), State::Running);
    assert_eq!(rig.ask(State::Stop), Err(Errno::EBUSY), "the answer is not fetched yet");
    assert_eq!(rig.runner.settle(rig.now), Some(Err(Errno::ENODEV)));
    assert_eq!(rig.runner.complete(token, Ok(&[])), Err(Errno::ENOENT));
    assert_eq!(rig.runner.counters().late_completions, 1);
    assert_eq!(rig.runner.next_request(), None);
    assert!(rig.script.lock().unwrap().completions.is_empty());
    rig.go(State::Stop);
}

#[test]
fn a_client_that_goes_away_leaves_nothing_behind_but_the_device() {
    let mut rig = rig(Capabilities::ALL);
    rig.runner.log_start(4096, &[]).unwrap();
    let session = rig.go(State::PreCopy).unwrap();
    let Ok(Dma::Later(token)) = rig.act(Act::Write(PEER, 8)) else { panic!() };
    rig.runner.disconnect();
    assert_eq!(rig.runner.state(), State::PreCopy);
    assert_eq!(rig.script.lock().unwrap().completions, [(token, Err(Errno::ENODEV))]);
    assert_eq!(rig.runner.read_data(session, &mut [0]), Err(Errno::ENODEV));
    assert_eq!(rig.act(Act::Write(0, 8)), Err(BusError::Unmapped));
    assert_eq!(rig.act(Act::Raise(0)), Err(BusError::Unbound));
    assert_eq!(rig.runner.log_report(0, 4096, 4096, 1), Err(Errno::EINVAL));
    rig.go(State::Running);
    rig.script.lock().unwrap().enter.push_back(Ok(Settle::Later));
    assert_eq!(rig.ask(State::RunningP2p), Ok(Moved::Pending));
    rig.runner.disconnect();
    rig.script.lock().unwrap().settled.push_back(Ok(Settle::Now));
    assert_eq!(rig.runner.settle(rig.now), None, "nobody waits for it");
    assert_eq!(rig.runner.state(), State::RunningP2p);
}

#[test]
fn the_next_client_gets_a_session_that_a_client_which_went_away_had_asked_for() {
    for target in [State::PreCopy, State::StopCopy, State::Resuming] {
        let mut rig = rig(Capabilities::ALL);
        rig.script.lock().unwrap().enter.push_back(Ok(Settle::Later));
        assert_eq!(rig.ask(target), Ok(Moved::Pending));
        rig.runner.disconnect();
        rig.script.lock().unwrap().settled.push_back(Ok(Settle::Now));
        assert_eq!(rig.runner.settle(rig.now), None);
        assert_eq!((rig.runner.state(), rig.runner.session()), (target, None));
    }
}

#[test]
fn accesses_outside_of_regions_are_refused() {
    let mut rig = rig(Capabilities::ALL);
    for (index, offset, len) in
        [(0, 64, 1), (0, 60, 5), (0, u64::MAX, 1), (0, 0, 0), (2, 0, 1), (0, 0, 65)]
    {
        let mut bytes = vec![0; len];
        let read = rig.runner.read_region(index, offset, &mut bytes);
        let write = rig.runner.write_region(index, offset, &bytes);
        assert_eq!((read, write), (Err(Errno::EINVAL), Err(Errno::EINVAL)));
    }
    assert_eq!(rig.runner.read_region(1, 0, &mut [0; 8]), Ok(()));
    assert_eq!(rig.runner.write_region(1, 0, &[0; 8]), Err(Errno::EINVAL));
    assert_eq!(rig.runner.counters().accesses_while_stopped, 0);
}

const PCI: PciIds = PciIds {
    vendor: 1,
    device: 2,
    subsystem_vendor: 0,
    subsystem: 0,
    class: 0,
    revision: 0,
};

#[test]
fn descriptions_that_no_device_can_have_are_refused() {
    struct Odd(Description);
    let puppet = Puppet(Arc::default(), Capabilities::ALL);
    let good = puppet.describe();
    let memory = SharedMemory::create("window", 8192).unwrap();
    let window = |offset| Window { offset, memory: memory.clone() };
    let mut bad = Vec::new();
    let mut spoil = |change: &dyn Fn(&mut Description)| {
        let mut description = good.clone();
        change(&mut description);
        bad.push(Odd(description));
    };
    spoil(&|d| d.identity.model.clear());
    spoil(&|d| d.identity.model = "x".repeat(65));
    spoil(&|d| d.regions[0].size = 0);
    spoil(&|d| d.regions[0].index = 7);
    spoil(&|d| d.regions[0].windows = vec![window(0)]);
    spoil(&|d| d.regions[0].windows = vec![window(u64::MAX - 4095)]);
    spoil(&|d| {
        d.regions[0].size = 1 << 20;
        d.regions[0].windows = vec![window(0), window(4096)];
    });
    spoil(&|d| {
        d.regions[0].size = 1 << 20;
        d.regions[0].windows = vec![window(100)];
    });
    spoil(&|d| d.irqs[0].count = 0);
    spoil(&|d| d.irqs.push(Irq::new(2, 1)));
    // Flags that no index has, and more vectors than such an index of PCI has.
    spoil(&|d| d.irqs[0].flags = IrqInfoFlags::MASKABLE);
    spoil(&|d| d.irqs[0].flags = IrqInfoFlags::EVENTFD | IrqInfoFlags::AUTOMASKED);
    for index in [0, 3, 4] {
        spoil(&|d| {
            d.identity.pci = Some(PCI);
            d.irqs = vec![Irq::new(index, 2)];
        });
    }
    assert!(good.validate().is_ok());
    for Odd(description) in bad {
        assert!(description.validate().is_err(), "{description:?}");
    }
}
