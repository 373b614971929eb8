//! Law 4: what cannot work is refused with its reason before the guest is touched.

mod rig;

use port::{
    BarKind, Model, MsiLayout, MsixLayout, Order, PciBar, PciCapability, PciExtended,
    PciLayout,
};
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

fn laid_out() -> PciLayout {
    let bar = |number, kind, size| PciBar { number, kind, size };
    PciLayout {
        bars: vec![
            bar(0, BarKind::MEMORY, 4096),
            bar(2, BarKind::MEMORY_64, 16 << 20),
            bar(PciBar::ROM, BarKind(0), 2048),
        ],
        capabilities: [(0x05, 0xa0), (0x10, 0x60), (0x11, 0x50)]
            .map(|(id, at)| PciCapability { id, at })
            .to_vec(),
        extended: vec![PciExtended { id: 0x01, version: 2, at: 0x100 }],
        intx: true,
        msi: Some(MsiLayout { vectors: 8, wide: true, maskable: true }),
        msix: Some(MsixLayout { vectors: 8, table: 0, pending: 0x800 }),
    }
}

#[test]
fn a_driver_finds_a_register_elsewhere_than_it_saw_it() {
    type Change = fn(&mut PciLayout);
    let changes: [(Change, &str); 14] = [
        (
            |to| to.bars[0].size = 8192,
            "BAR 0 of device dev0 is 32-bit memory of 4096 bytes at the source and 32-bit \
             memory of 8192 bytes here",
        ),
        (
            |to| to.bars[1].kind = BarKind(BarKind::MEMORY_64.0 | BarKind::PREFETCHABLE),
            "and 64-bit prefetchable memory of 16777216 bytes here",
        ),
        (|to| to.bars[0].kind = BarKind::IO, "and I/O of 4096 bytes here"),
        (
            |to| (to.bars[0].size, to.bars[1].size) = (16 << 20, 4096),
            "BAR 2 of device dev0 is 64-bit memory of 16777216 bytes at the source and \
             64-bit memory of 4096 bytes here",
        ),
        (
            |to| _ = to.bars.pop(),
            "the ROM of device dev0 is of 2048 bytes at the source and not there here",
        ),
        (
            |to| _ = to.capabilities.remove(0),
            "device dev0 has the capability MSI at 0xa0 at the source and not here",
        ),
        (
            |to| to.capabilities[2].at = 0x54,
            "device dev0 has the capability MSIX at 0x54 here and not at the source",
        ),
        (
            |to| to.extended[0].version = 1,
            "the extended capability ERROR REPORTING, version 1, at 0x100 here and not",
        ),
        (
            |to| to.extended.push(PciExtended { id: 0x77, version: 1, at: 0x140 }),
            "the extended capability 0x77, version 1, at 0x140 here",
        ),
        (|to| to.intx = false, "the line (INTx) of device dev0 is there at the source"),
        (
            |to| to.msi = to.msi.map(|msi| MsiLayout { vectors: 4, ..msi }),
            "MSI of device dev0 is MSI of 8 vectors, 64-bit addresses, with masks at the \
             source and MSI of 4 vectors",
        ),
        (
            |to| to.msi = to.msi.map(|msi| MsiLayout { wide: false, ..msi }),
            "and MSI of 8 vectors, 32-bit addresses, with masks here",
        ),
        (
            |to| to.msix = to.msix.map(|msix| MsixLayout { vectors: 1, ..msix }),
            "and MSI-X of 1 vector, table in BAR 0 at 0x0",
        ),
        (
            |to| to.msix = to.msix.map(|msix| MsixLayout { pending: 0x1002, ..msix }),
            "pending bits in BAR 2 at 0x1000 here",
        ),
    ];
    for (change, reason) in changes {
        let (near, far) = sides();
        let mut other = laid_out();
        change(&mut other);
        let here = device(&near, ALL).with_identity(|one| one.layout = Some(laid_out()));
        let there = blank(&far, ALL).with_identity(|one| one.layout = Some(other));
        refused(Rig::used(&near, vec![here]), waiting(&far, vec![there]), reason);
    }
}

#[test]
fn what_no_guest_sees_refuses_a_migration() {
    let mut other = laid_out();
    other.capabilities.reverse();
    // One that has not told, as sources of an earlier day; and another order of the list.
    let told = Some(laid_out());
    for (from, to) in [(None, told.clone()), (told.clone(), None), (Some(other), told)] {
        let (near, far) = sides();
        let here = device(&near, ALL).with_identity(|one| one.layout = from);
        let there = blank(&far, ALL).with_identity(|one| one.layout = to);
        let (mut source, mut destination) =
            (Rig::used(&near, vec![here]), waiting(&far, vec![there]));
        let went = migrate(&mut source, &mut destination, Wires::default(), |_, _| {});
        went.sent.result.as_ref().expect("a guest sees no difference");
    }
}

#[test]
fn a_hundred_differences_are_more_than_a_refusal_holds() {
    let (near, far) = sides();
    let mut other = laid_out();
    other.extended = (0..96)
        .map(|n| PciExtended { id: 0x1000 + n, version: 1, at: 0x100 + 8 * n })
        .collect();
    let here = device(&near, ALL).with_identity(|one| one.layout = Some(laid_out()));
    let there = blank(&far, ALL).with_identity(|one| one.layout = Some(other));
    let source = Rig::used(&near, vec![here]);
    refused(source, waiting(&far, vec![there]), "device dev0 differs in 81 more places");
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
fn a_section_too_many_is_said_to_be_the_other_sides_mistake() {
    let (near, far) = sides();
    let mut source = Rig::source(&near, &[ALL]);
    for n in source.sections.len()..65 {
        let more =
            FakeSection::new(&near, &format!("cpu{n}"), Order::BeforeDevices, vec![1]);
        source.sections.push(more.handle());
        source.machine().sections.push(Box::new(more));
    }
    let blockers = Outgoing::blockers(source.machine());
    assert_eq!(blockers.len(), 1, "{blockers:?}");
    let destination = Rig::destination(&far, &[ALL]);
    refused(
        source,
        destination,
        "65 sections of the VMM's own, and a stream has at most 64",
    );
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
