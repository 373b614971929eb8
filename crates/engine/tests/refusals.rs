//! Law 4: what cannot work is refused with its reason before the guest is touched.

mod rig;

use port::{Model, Order};
use rig::{CONTENTS, Rig, Went, Wires, contents, laws, migrate};
use states::v2::{Capabilities, State};
use testkit::{FakeDevice, FakeMemory, FakeSection, FakeVcpus, Side};
use vfio_migrate_engine::drive::Outgoing;
use vfio_migrate_engine::migration::{Outcome, Recovery};

const ALL: Capabilities = Capabilities::ALL;

fn sides() -> (Side, Side) {
    Side::pair()
}

/// A migration that is refused for `reason`, its guest untouched.
fn refused(mut source: Rig, mut destination: Rig, reason: &str) {
    let went = migrate(&mut source, &mut destination, Wires::default(), |_, _| {});
    untouched(&source, &destination, &went, reason);
}

fn untouched(source: &Rig, destination: &Rig, went: &Went, reason: &str) {
    let error = went.sent.result.as_ref().expect_err(reason);
    assert_eq!(error.recovery(), Recovery::Retry, "{error}");
    assert_eq!(went.sent.report.outcome, Outcome::Refused, "{error}");
    let text = error.to_string();
    assert!(text.contains(reason), "{reason:?} is not in {text:?}");
    assert_eq!(laws::broken(source, destination, went, None), [""; 0], "{reason}");
    // Not a device was moved, no write recorded, on neither side.
    let entries = source.side.journal().entries();
    let moved = |e: &&String| e.contains(" to PRE_COPY") || e.contains(" to RESUMING");
    assert_eq!(entries.iter().find(moved), None, "{reason}");
    assert!(!entries.iter().any(|e| e.contains("log: start")), "{reason}");
}

fn device(side: &Side, set: Capabilities) -> FakeDevice {
    FakeDevice::new(side, "dev0", set, contents(0))
}

fn blank(side: &Side, set: Capabilities) -> FakeDevice {
    FakeDevice::blank(side, "dev0", set, CONTENTS)
}

fn waiting(side: &Side, devices: Vec<FakeDevice>) -> Rig {
    Rig::new(side, devices, FakeVcpus::paused(side))
}

#[test]
fn another_number_of_devices_loses_one() {
    let (near, far) = sides();
    refused(Rig::source(&near, &[ALL, ALL]), Rig::destination(&far, &[ALL]), "2 devices");
    let (near, far) = sides();
    refused(
        Rig::source(&near, &[]),
        Rig::destination(&far, &[ALL]),
        "0 devices at the source",
    );
}

#[test]
fn memory_of_another_size_loses_pages() {
    for other in [&[(0, 16 * 4096)][..], &[(0, 16 * 4096), (4 << 20, 8 * 4096)]] {
        let (near, far) = sides();
        let mut destination = Rig::destination(&far, &[ALL]);
        destination.machine().memory = std::sync::Arc::new(FakeMemory::new(other));
        refused(Rig::source(&near, &[ALL]), destination, "guest memory is");
    }
}

type Change = fn(&mut port::Identity);

#[test]
fn another_device_takes_data_that_it_does_not_know() {
    let changes: [(Change, &str); 6] = [
        (
            |one| one.model = Some(Model { name: "other".into(), data_version: 1 }),
            "model",
        ),
        (
            |one| one.model = Some(Model { name: "fake".into(), data_version: 2 }),
            "data of version 1",
        ),
        (|one| one.model = None, "unknown"),
        (|one| one.bus = port::Bus::Other("platform".into()), "subsystem"),
        (
            |one| {
                if let port::Bus::Pci(ids) = &mut one.bus {
                    ids.device += 1;
                }
            },
            "1b36:fa4f",
        ),
        (|one| one.bus = port::Bus::Other("ccw".into()), "ccw"),
    ];
    for (change, reason) in changes {
        let (near, far) = sides();
        let there = blank(&far, ALL).with_identity(change);
        refused(Rig::source(&near, &[ALL]), waiting(&far, vec![there]), reason);
    }
}

#[test]
fn another_capability_set_of_a_device_nobody_knows_is_hoped_for() {
    let unknown = |one: &mut port::Identity| one.model = None;
    let (near, far) = sides();
    let here = device(&near, ALL).with_identity(unknown);
    let there = blank(&far, Capabilities::STOP_COPY).with_identity(unknown);
    let reason = "capability set";
    refused(Rig::used(&near, vec![here]), waiting(&far, vec![there]), reason);
    let (near, far) = sides();
    let v1 = |one: &mut port::Identity| {
        one.model = None;
        one.generation = port::Generation::V1;
    };
    let here = device(&near, Capabilities::STOP_COPY).with_identity(v1);
    let there = blank(&far, Capabilities::STOP_COPY).with_identity(unknown);
    refused(Rig::used(&near, vec![here]), waiting(&far, vec![there]), "generation");
}

#[test]
fn another_capability_set_of_a_known_device_is_refused_without_need() {
    for there in Capabilities::EVERY {
        let (near, far) = sides();
        let mut source = Rig::source(&near, &[ALL]);
        let mut destination = Rig::destination(&far, &[there]);
        let went = migrate(&mut source, &mut destination, Wires::default(), |_, _| {});
        went.sent.result.as_ref().expect("the same model");
        assert_eq!(laws::broken(&source, &destination, &went, None), [""; 0]);
    }
}

#[test]
fn a_section_that_nobody_takes_is_dropped() {
    let (near, far) = sides();
    let mut destination = Rig::destination(&far, &[ALL]);
    destination.machine().sections.pop();
    refused(Rig::source(&near, &[ALL]), destination, "section timer");
    let (near, far) = sides();
    let mut source = Rig::source(&near, &[ALL]);
    source.machine().sections.pop();
    source.sections.pop();
    let reason = "does not bring the sections timer";
    refused(source, Rig::destination(&far, &[ALL]), reason);
    let (near, far) = sides();
    let mut source = Rig::source(&near, &[ALL]);
    let newer = FakeSection::new(&near, "cpu", Order::BeforeDevices, vec![1]);
    source.machine().sections[0] = Box::new(newer.with_version(2));
    refused(source, Rig::destination(&far, &[ALL]), "section cpu has version 2");
}

#[test]
fn a_set_that_cannot_stop_in_order_is_stopped_anyhow() {
    let set = [Capabilities::STOP_COPY, Capabilities::PRE_COPY];
    for there in [false, true] {
        let (near, far) = sides();
        let source = Rig::source(&near, &set);
        let mut destination = Rig::destination(&far, &set);
        if there {
            destination.dma.set_peer_to_peer(true);
        } else {
            source.dma.set_peer_to_peer(true);
            assert!(
                !Outgoing::blockers(source.machine.as_ref().expect("there")).is_empty()
            );
        }
        let mut source = source;
        let went = migrate(&mut source, &mut destination, Wires::impatient(), |_, _| {});
        untouched(&source, &destination, &went, "2 devices without the P2P state");
    }
    let (near, far) = sides();
    let mut source = Rig::source(&near, &set);
    let mut destination = Rig::destination(&far, &set);
    let went = migrate(&mut source, &mut destination, Wires::default(), |_, _| {});
    went.sent.result.expect("declared that no device maps another's BAR");
}

#[test]
fn writes_behind_a_virtual_iommu_are_guessed() {
    for there in [false, true] {
        let (near, far) = sides();
        let source = Rig::source(&near, &[ALL]);
        let destination = Rig::destination(&far, &[ALL]);
        let side = if there { &destination } else { &source };
        side.dma.set_virtual_iommu(true);
        refused(source, destination, "virtual IOMMU");
    }
}

#[test]
fn a_machine_that_runs_already_takes_a_second_guest_in() {
    let (near, far) = sides();
    let device = FakeDevice::blank(&far, "dev0", ALL, CONTENTS);
    let destination = Rig::new(&far, vec![device], FakeVcpus::running(&Side::alone("x")));
    let mut source = Rig::source(&near, &[ALL]);
    let mut destination = destination;
    let went = migrate(&mut source, &mut destination, Wires::default(), |_, _| {});
    let error = went.sent.result.expect_err("it runs");
    assert!(error.to_string().contains("is running"), "{error}");
    assert_eq!(error.recovery, Recovery::Retry);
}

#[test]
fn a_destination_that_cannot_open_its_devices_says_nothing() {
    let (near, _) = sides();
    let mut source = Rig::source(&near, &[ALL]);
    let open = |offered: &[_]| {
        assert_eq!(offered.len(), 1);
        Err(vec!["no such device on this host".to_owned()])
    };
    let went =
        rig::migrate_into(&mut source, Box::new(open), Wires::default(), |_, _| {})
            .expect("both end");
    let error = went.sent.result.expect_err("refused");
    assert!(error.to_string().contains("no such device on this host"), "{error}");
    assert!(!source.vcpus.paused() && went.received.machine.is_none());
}

#[test]
fn a_transaction_that_the_destination_has_no_room_for_is_found_before_the_stop() {
    for (gives, takes, refused) in
        [(8193, Some(8192), true), (8192, Some(8192), false), (8193, None, false)]
    {
        let (near, far) = sides();
        let gives =
            device(&near, ALL).with_transactions().with_longest_transaction(gives);
        let mut source = Rig::used(&near, vec![gives]);
        let into = blank(&far, ALL).with_transactions();
        let into = match takes {
            Some(takes) => into.with_longest_transaction(takes),
            None => into,
        };
        let mut destination = waiting(&far, vec![into]);
        let went = migrate(&mut source, &mut destination, Wires::default(), |_, _| {});
        assert_eq!(laws::broken(&source, &destination, &went, None), [""; 0]);
        if !refused {
            went.sent.result.expect("it fits");
            continue;
        }
        let error = went.sent.result.as_ref().expect_err("too long");
        assert_eq!(error.recovery(), Recovery::Retry, "{error}");
        assert_eq!(went.sent.report.outcome, Outcome::Refused, "{error}");
        let text = error.to_string();
        for named in ["dev0", "8193", "8192", "data section"] {
            assert!(text.contains(named), "{named} is not in {text:?}");
        }
        let entries = source.side.journal().entries();
        assert!(!entries.iter().any(|e| e.contains(" to PRE_COPY")), "{entries:?}");
        assert!(!entries.iter().any(|e| e.contains("log: start")), "{entries:?}");
        assert_eq!(source.devices[0].state(), State::Running);
        // What was opened over there is closed again, and empty.
        assert!(!destination.devices[0].holds_guest());
    }
}
