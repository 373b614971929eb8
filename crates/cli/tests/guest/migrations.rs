//! Whole migrations, checked to the byte.

use serde_json::{Value, json};
use states::v2::Capabilities;
use vfio_migrate_cli::guest::options::{Inject, MOST_VCPUS};

use crate::rig::{Rig, Side, migrate};

/// The guest on `side` goes on for a while and is then exactly what it should be.
pub(crate) fn runs_on(side: &Side) {
    let before = side.tell(json!({ "command": "counters" }))["counters"].clone();
    let more = |now: &Value, pointer: &str| {
        let at = |value: &Value| value.pointer(pointer).and_then(Value::as_u64);
        at(now) > at(&before).map(|count| count + 32)
    };
    side.counts("the guest goes on", |now| {
        more(now, "/vcpus/0/pages")
            && more(now, "/vcpus/1/pages")
            && more(now, "/devices/0/blocks")
    });
    assert_eq!(side.freeze(), Vec::<Value>::new());
}

#[test]
fn a_guest_with_two_devices_arrives_to_the_byte_and_runs_on() {
    let (rig, source, destination) = Rig::pair();
    let report = source.migrate(&destination);
    assert_eq!(report["outcome"], "completed", "{report}");
    for what in ["pages_changed", "blocks_changed"] {
        assert_eq!(report[what]["changed"], report[what]["of"], "{what}");
    }
    let same = rig.compare().expect("both sides the same");
    assert_eq!(same.pages, 4096);
    assert!(same.blocks > 0 && same.interrupts > 0, "{same:?}");
    runs_on(&destination);
    let counters = destination.tell(json!({ "command": "counters" }));
    let gap = counters["counters"]["downtime_guest_ms"].as_f64().expect("a gap");
    let downtime = report["downtime_ms"].as_f64().expect("a downtime");
    assert!(gap > 0.0 && gap <= downtime * 1.1 + 10.0, "{gap} of {downtime}");
    assert_eq!((source.quit(), destination.quit()), (0, 0));
}

#[test]
fn a_guest_with_every_vcpu_that_it_may_have_can_never_move() {
    let rig = Rig::new(&[Capabilities::ALL]);
    let (mut run, mut receive) = (rig.source(), rig.destination());
    run.machine.vcpus = MOST_VCPUS;
    receive.machine.vcpus = MOST_VCPUS;
    let (source, destination) = (rig.run(run), rig.receive(receive));
    let report = source.migrate(&destination);
    assert_eq!(report["outcome"], "completed", "{report}");
    rig.compare().expect("both sides the same");
    runs_on(&destination);
}

#[test]
fn peers_that_write_into_each_other_at_full_rate_lose_nothing() {
    let rig = Rig::new(&[Capabilities::ALL; 3]);
    let (mut run, mut receive) = (rig.source(), rig.destination());
    run.machine.p2p = true;
    receive.machine.p2p = true;
    let (source, destination) = (rig.run(run), rig.receive(receive));
    let report = source.migrate(&destination);
    assert_eq!(report["outcome"], "completed", "{report}");
    rig.compare().expect("both sides the same");
    runs_on(&destination);
}

#[test]
fn whatever_is_broken_behind_the_streams_back_is_found_at_its_place() {
    for (inject, place) in [
        (Inject::Page, "page 0x"),
        (Inject::Device, "memory of accel0 at 0x0"),
        (Inject::DirtyBit, "page 0x"),
        (Inject::Interrupt, "interrupts of accel"),
        (Inject::P2pLate, "peer-to-peer from accel"),
    ] {
        let rig = Rig::new(&[Capabilities::ALL; 2]);
        let (mut run, mut receive) = (rig.source(), rig.destination());
        let p2p = inject == Inject::P2pLate;
        run.inject = Some(inject);
        run.hold = false;
        run.machine.dirty_rate = 1 << 20;
        run.machine.p2p = p2p;
        receive.machine.p2p = p2p;
        let (source, destination) = (rig.run(run), rig.receive(receive));
        source.counts("peers write", |now| {
            !p2p || now.pointer("/devices/0/handled/2").and_then(Value::as_u64) > Some(0)
        });
        let report = source.migrate(&destination);
        assert_eq!(report["outcome"], "completed", "{inject}: {report}");
        let problems = rig.compare().expect_err("one thing is broken");
        let found = problems.iter().any(|problem| problem.place.starts_with(place));
        assert!(found, "{inject}: {problems:?}");
        let plain = matches!(inject, Inject::Page | Inject::Device | Inject::DirtyBit);
        assert!(!plain || problems.len() == 1, "{inject}: {problems:?}");
    }
}

#[test]
fn a_paused_guest_migrates_and_arrives_paused() {
    let (rig, source, destination) = Rig::pair();
    source.tell(json!({ "command": "pause" }));
    assert_eq!(source.state(), "paused");
    let report = source.migrate(&destination);
    assert_eq!(report["outcome"], "completed", "{report}");
    assert!(report["downtime_ms"].is_null());
    destination.becomes("paused");
    rig.compare().expect("both sides the same");
    destination.tell(json!({ "command": "resume" }));
    runs_on(&destination);
}

#[test]
fn pause_and_resume_by_themselves_lose_nothing() {
    let rig = Rig::new(&[Capabilities::PRE_COPY, Capabilities::ALL]);
    let mut run = rig.source();
    run.paused = true;
    let source = rig.run(run);
    assert_eq!(source.state(), "paused");
    for _ in 0..3 {
        source.tell(json!({ "command": "resume" }));
        assert_eq!(source.state(), "running");
        runs_on(&source);
        assert_eq!(source.state(), "paused");
    }
}

#[test]
fn devices_that_cannot_be_stopped_in_order_are_refused_before_anything() {
    let rig = Rig::new(&[Capabilities::STOP_COPY; 2]);
    let (mut run, mut receive) = (rig.source(), rig.destination());
    run.machine.p2p = true;
    receive.machine.p2p = true;
    let (source, destination) = (rig.run(run), rig.receive(receive));
    let blockers = source.status()["blockers"].clone();
    assert!(blockers[0].as_str().expect("a blocker").contains("P2P"), "{blockers}");
    let report = source.migrate(&destination);
    assert_eq!(report["outcome"], "refused", "{report}");
    assert_eq!(source.state(), "running");
    assert!(source.ask(&json!({ "command": "pause" })).is_err());
    assert_eq!(source.state(), "running");
}

#[test]
fn without_peer_access_devices_of_set_one_migrate() {
    let rig = Rig::new(&[Capabilities::STOP_COPY; 2]);
    let (source, destination) = (rig.run(rig.source()), rig.receive(rig.destination()));
    let report = source.migrate(&destination);
    assert_eq!(report["outcome"], "completed", "{report}");
    rig.compare().expect("both sides the same");
    runs_on(&destination);
}

#[test]
fn a_refused_guest_runs_on_and_finds_another_destination() {
    let rig = Rig::new(&[Capabilities::ALL; 2]);
    let source = rig.run(rig.source());
    let nobody = rig.path("nobody.sock");
    let report = source.tell(migrate(&format!("unix:{}", nobody.display())));
    assert_eq!(report["report"]["outcome"], "refused", "{report}");

    let mut small = rig.destination();
    small.machine.memory = 8 << 20;
    let destination = rig.receive(small);
    let report = source.migrate(&destination);
    assert_eq!(report["outcome"], "refused", "{report}");
    assert_eq!(source.state(), "running");
    // The destination goes on waiting, and says what it refused.
    let status = destination.until("it waits", |status| status["state"] == "waiting");
    assert!(status["note"].as_str().expect("a note").contains("refused"), "{status}");
    assert_eq!(destination.quit(), 0);

    let destination = rig.receive(rig.destination());
    let report = source.migrate(&destination);
    assert_eq!(report["outcome"], "completed", "{report}");
    rig.compare().expect("both sides the same");
}
