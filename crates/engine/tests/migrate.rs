//! Whole migrations over fakes: everything arrives, and in order.

mod rig;

use port::{ConfigStage, Phase};
use rig::{Rig, Wires, assert_moved, laws, migrate};
use states::v2::{Capabilities, State};
use testkit::{FakeDevice, FakeVcpus, Side};
use vfio_migrate_engine::migration::{Outcome, sink::Ending};

fn both(capabilities: &[Capabilities]) -> (Rig, Rig) {
    let (near, far) = Side::pair();
    (Rig::source(&near, capabilities), Rig::destination(&far, capabilities))
}

#[test]
fn everything_moves_for_every_capability_set() {
    for set in Capabilities::EVERY {
        let (mut source, mut destination) = both(&[set]);
        source.interrupts[0].raise(2);
        let went = migrate(&mut source, &mut destination, Wires::default(), |_, _| {});
        went.sent.result.as_ref().expect("completed");
        assert_eq!(went.sent.report.outcome, Outcome::Completed, "{set}");
        assert_eq!(went.received.ending, Ending::Running { paused: false });
        assert_moved(&source, &destination);
        assert_eq!(destination.devices[0].state(), State::Running);
        assert_eq!(source.devices[0].state(), State::Stop);
        assert!(source.vcpus.paused() && !destination.vcpus.paused());
        assert_eq!(destination.interrupts[0].pending()[2], 1, "the pending interrupt");
        assert_eq!(
            destination.configs[0].loaded(),
            [ConfigStage::Resuming, ConfigStage::Power]
        );
        assert!(source.side.witness().violations().is_empty());
        let report = &went.sent.report;
        let sum: std::time::Duration = report.phases.iter().map(|p| p.took).sum();
        assert_eq!(Some(sum), report.downtime);
        assert!(report.phases.iter().any(|p| p.phase == Phase::Commit));
        assert!(report.rounds >= 1);
    }
}

#[test]
fn everything_moves_over_several_connections() {
    for channels in [2, 5] {
        let set = [Capabilities::ALL, Capabilities::STOP_COPY, Capabilities::P2P];
        let (mut source, mut destination) = both(&set);
        source.busy_guest();
        let wires = Wires::default().channels(channels);
        let went = migrate(&mut source, &mut destination, wires, |_, _| {});
        assert_eq!(laws::broken(&source, &destination, &went, None), [""; 0]);
        went.sent.result.as_ref().expect("completed");
        assert_moved(&source, &destination);
        let report = &went.sent.report;
        assert!(report.rounds >= 2 && report.memory_bytes >= 24 * 4096);
        assert!(report.devices.iter().all(|device| device.bytes > 0));
        assert!(report.device_bytes >= 3 * rig::CONTENTS as u64);
    }
}

#[test]
fn devices_without_a_guest_stay_behind() {
    let set = [Capabilities::ALL, Capabilities::STOP_COPY, Capabilities::P2P];
    for channels in [1, 3] {
        let (near, far) = Side::pair();
        let mut source = Rig::devices_in_use(&near, &set);
        let mut destination = Rig::devices_waiting(&far, &set);
        source.busy_devices();
        let wires = Wires::default().channels(channels);
        let went = migrate(&mut source, &mut destination, wires, |_, _| {});
        assert_eq!(laws::broken(&source, &destination, &went, None), [""; 0]);
        went.sent.result.as_ref().expect("completed");
        assert_eq!(went.received.ending, Ending::Running { paused: false });
        assert_moved(&source, &destination);
        let report = &went.sent.report;
        assert!(report.downtime.is_some() && report.rounds >= 2);
        assert_eq!(report.memory_bytes, 0);
        // What pre-copy can move, it moved while the device ran.
        assert!(report.devices.iter().all(|device| device.bytes >= rig::CONTENTS as u64));
        assert!(source.side.journal().in_order(&[
            "source dev0: RUNNING to PRE_COPY",
            "source dev0: PRE_COPY to PRE_COPY_P2P",
            "source dev1: RUNNING to STOP_COPY",
            "source dev0: PRE_COPY_P2P to STOP_COPY",
        ]));
    }
}

#[test]
fn stopped_devices_without_a_guest_are_started_by_their_move() {
    let set = [Capabilities::ALL, Capabilities::STOP_COPY];
    let (near, far) = Side::pair();
    let fakes = set.iter().enumerate().map(|(n, set)| {
        let bytes = rig::contents(n);
        let mut fake = FakeDevice::new(&near, &format!("dev{n}"), *set, bytes);
        port::Device::set_state(&mut fake, State::Stop).expect("a legal arc");
        fake
    });
    let fakes = fakes.collect();
    let mut source = Rig::devices_only(&near, fakes, FakeVcpus::paused(&near));
    let mut destination = Rig::devices_waiting(&far, &set);
    let went = migrate(&mut source, &mut destination, Wires::default(), |_, _| {});
    went.sent.result.as_ref().expect("completed");
    assert_eq!(went.received.ending, Ending::Running { paused: true });
    assert_moved(&source, &destination);
    for device in source.devices.iter().chain(&destination.devices) {
        assert_eq!(device.state(), State::Stop);
    }
    assert_eq!(went.sent.report.downtime, None);
}

#[test]
fn a_device_that_is_validated_at_its_start_is_named_in_the_report() {
    let (near, far) = Side::pair();
    let set = Capabilities::ALL;
    let mut source = Rig::source(&near, &[set, set]);
    let blank = |n| FakeDevice::blank(&far, &format!("dev{n}"), set, rig::CONTENTS);
    let devices = vec![blank(0), blank(1).validated_late()];
    let mut destination = Rig::new(&far, devices, FakeVcpus::paused(&far));
    let went = migrate(&mut source, &mut destination, Wires::default(), |_, _| {});
    went.sent.result.as_ref().expect("completed");
    let late = went.sent.report.devices.iter().map(|device| device.validated_at_start);
    assert_eq!(late.collect::<Vec<_>>(), [false, true]);
}
