//! What the guest does with its bus is in motion while it moves: masks, addresses,
//! interrupts of every kind, and each of these is accounted for on both sides.

use models::accel::{Msi, Parameters};
use serde_json::{Value, json};
use states::v2::Capabilities;
use vfio_migrate_cli::guest::digests::{Device, Digests};
use vfio_migrate_cli::guest::options::{Inject, InterruptKind};
use vfio_migrate_cli::guest::run;

use crate::migrations::runs_on;
use crate::rig::{Model, Rig, Side};

const ACCELS: [Model; 2] = [Model::Accel(Capabilities::ALL); 2];

/// Masks and moves so far.
fn in_motion(side: &Side) -> [u64; 2] {
    let counters = side.tell(json!({ "command": "counters" }))["counters"].clone();
    ["masks", "moves"].map(|what| counters[what].as_u64().expect("a count"))
}

/// A guest that is interrupted by `kind` moves once, with everything in motion. What the
/// source's devices were at the stop.
fn moves_by(rig: &Rig, kind: Option<InterruptKind>, masks: bool) -> Vec<Device> {
    let mut run = rig.source();
    run.interrupts = kind;
    let (source, destination) = (rig.run(run), rig.receive(rig.destination()));
    let before = in_motion(&source);
    let report = source.migrate(&destination);
    assert_eq!(report["outcome"], "completed", "{report}");
    rig.compare().expect("both sides the same");
    destination.becomes("running");
    // The counts have travelled too.
    let after = in_motion(&destination);
    assert!(after[1] > before[1] + 2, "no BAR moved meanwhile: {before:?}, {after:?}");
    assert_eq!(after[0] > before[0] + 2, masks, "{before:?}, {after:?}");
    destination.counts("a BAR moves here, too", |now| {
        now["moves"].as_u64().is_some_and(|moves| moves > after[1] + 2)
    });
    runs_on(&destination);
    let counters = destination.tell(json!({ "command": "counters" }));
    for (name, other) in InterruptKind::ALL {
        let came = counters["counters"]["interrupts"][name].as_u64();
        let used = kind.is_none_or(|kind| kind == other);
        assert!(!used || kind.is_none() || came > Some(0), "{name}: {counters}");
        assert!(used || came == Some(0), "{name}: {counters}");
    }
    let digests = Digests::read(&rig.path("source.digests")).expect("digests");
    digests.header.devices
}

#[test]
fn msix_that_is_masked_and_moved_meanwhile_loses_a_message() {
    let devices = moves_by(&Rig::of(&ACCELS), Some(InterruptKind::Msix), true);
    // What came while it was masked is in the account, or nothing was checked.
    let windows = devices.iter().flat_map(|device| &device.vectors);
    assert!(windows.map(|vector| vector.windows).sum::<u64>() > 0, "{devices:?}");
}

#[test]
fn msi_that_is_masked_and_moved_meanwhile_loses_a_message() {
    let devices = moves_by(&Rig::of(&ACCELS), Some(InterruptKind::Msi), true);
    let windows = devices.iter().flat_map(|device| &device.vectors);
    assert!(windows.map(|vector| vector.windows).sum::<u64>() > 0, "{devices:?}");
}

#[test]
fn a_line_that_is_off_and_on_meanwhile_rises_twice_or_never() {
    let devices = moves_by(&Rig::of(&ACCELS), Some(InterruptKind::Intx), true);
    let rises = devices.iter().filter_map(|device| device.line);
    assert!(rises.map(|line| line.rises).sum::<u64>() > 0, "{devices:?}");
}

#[test]
fn one_message_for_everything_and_no_mask_for_it_is_too_little() {
    let msi = Some(Msi { wide: false, masks: false });
    let parameters = Parameters { msi, vectors: 1, ..Parameters::default() };
    let devices =
        moves_by(&Rig::of(&[Model::Chosen(parameters)]), Some(InterruptKind::Msi), false);
    assert_eq!(devices[0].vectors.len(), 1, "{devices:?}");
}

#[test]
fn each_device_gets_the_best_that_it_has_unless_it_is_said() {
    let rig = Rig::of(&[Model::Uart(2), Model::Accel(Capabilities::ALL)]);
    let devices = moves_by(&rig, None, true);
    let kinds = devices.iter().map(|device| device.interrupts);
    let best = [InterruptKind::Intx, InterruptKind::Msix].map(Some);
    assert!(kinds.eq(best), "{devices:?}");
}

#[test]
fn a_device_without_the_kind_that_is_asked_for_is_used_by_another() {
    let rig = Rig::of(&[Model::Uart(1)]);
    for (kind, name) in [(InterruptKind::Msi, "msi"), (InterruptKind::Msix, "msix")] {
        let mut options = rig.source();
        options.interrupts = Some(kind);
        let error = format!("{:#}", run(options).expect_err("no such interrupt"));
        for says in ["uart0", name, "--interrupts intx", "leave it out"] {
            assert!(error.contains(says), "{says}: {error}");
        }
    }
}

#[test]
fn peers_that_move_while_they_are_written_into_lose_a_block() {
    for kind in [InterruptKind::Msix, InterruptKind::Intx] {
        let rig = Rig::new(&[Capabilities::ALL; 3]);
        let (mut run, mut receive) = (rig.source(), rig.destination());
        run.machine.p2p = true;
        run.interrupts = Some(kind);
        receive.machine.p2p = true;
        let (source, destination) = (rig.run(run), rig.receive(receive));
        let before = in_motion(&source);
        let report = source.migrate(&destination);
        assert_eq!(report["outcome"], "completed", "{report}");
        rig.compare().expect("both sides the same");
        assert!(in_motion(&destination)[1] > before[1] + 3);
        runs_on(&destination);
    }
}

#[test]
fn a_dropped_interrupt_passes_for_none_in_some_kind() {
    for (_, kind) in InterruptKind::ALL {
        let rig = Rig::of(&ACCELS);
        let mut run = rig.source();
        run.interrupts = Some(kind);
        run.inject = Some(Inject::Interrupt);
        run.hold = false;
        let (source, destination) = (rig.run(run), rig.receive(rig.destination()));
        let report = source.migrate(&destination);
        assert_eq!(report["outcome"], "completed", "{kind}: {report}");
        let problems = rig.compare().expect_err("an interrupt is missing");
        let place = |place: &str| place.starts_with("interrupts of accel");
        assert!(problems.iter().all(|one| place(&one.place)), "{kind}: {problems:?}");
        destination.becomes("running");
        // By the destination alone, too, which has nothing to compare with.
        let found: Vec<Value> = destination.freeze();
        let alone = found.iter().any(|one| place(one["place"].as_str().unwrap_or("")));
        assert!(alone, "{kind}: {found:?}");
    }
}

#[test]
fn a_device_keeps_another_one_of_its_vcpu_from_every_command() {
    let rig = Rig::of(&[ACCELS[0]; 4]);
    let mut run = rig.source();
    run.machine.vcpus = 1;
    let source = rig.run(run);
    let pairs = |counters: &Value| {
        [0, 1, 2, 3].map(|n| counters["devices"][n]["commands"].as_u64().unwrap_or(0))
    };
    let now = source.counts("some commands are over", |now| pairs(now)[0] >= 60);
    let [first, others @ ..] = pairs(&now);
    assert!(others.iter().all(|count| 2 * count >= first), "{now}");
}
