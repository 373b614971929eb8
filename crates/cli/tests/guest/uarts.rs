//! Guests with serial ports: whatever waits in a FIFO arrives, in order, once.

use std::time::Instant;

use serde_json::{Value, json};
use states::v2::Capabilities;
use vfio_migrate_cli::guest::check::consistent;
use vfio_migrate_cli::guest::digests::Digests;
use vfio_migrate_cli::guest::options::Inject;
use vfio_migrate_cli::guest::run;

use crate::migrations::runs_on;
use crate::rig::{LONG, Model, Rig};

const ACCEL: Model = Model::Accel(Capabilities::ALL);

/// Bytes in the FIFO of a port, when the source was stopped.
fn waited(rig: &Rig, device: usize, port: u32) -> u64 {
    let digests = Digests::read(&rig.path("source.digests")).expect("digests");
    digests.header.devices[device].counter(&format!("port{port}_waiting"))
}

#[test]
fn bytes_in_a_fifo_get_lost_on_the_way() {
    let rig = Rig::of(&[Model::Uart(2)]);
    let (source, destination) = (rig.run(rig.source()), rig.receive(rig.destination()));
    let report = source.migrate(&destination);
    assert_eq!(report["outcome"], "completed", "{report}");
    for what in ["pages_changed", "blocks_changed"] {
        assert_eq!(report[what]["changed"], report[what]["of"], "{what}");
    }
    // No page is the card's: all of them are the vCPUs'.
    assert_eq!(report["pages_changed"]["of"], 4096);
    assert_eq!(report["devices"][0]["name"], "uart0");
    let same = rig.compare().expect("both sides the same");
    assert!(same.interrupts > 0, "{same:?}");
    for port in [1, 2] {
        assert!((1..=16).contains(&waited(&rig, 0, port)));
    }
    runs_on(&destination);
    assert_eq!((source.quit(), destination.quit()), (0, 0));
}

#[test]
fn a_uart_takes_the_memory_of_an_accelerator() {
    let rig = Rig::of(&[Model::Uart(1), ACCEL, Model::Uart(2), ACCEL]);
    let (source, destination) = (rig.run(rig.source()), rig.receive(rig.destination()));
    let report = source.migrate(&destination);
    assert_eq!(report["outcome"], "completed", "{report}");
    let names: Vec<&Value> = report["devices"]
        .as_array()
        .expect("devices")
        .iter()
        .map(|d| &d["name"])
        .collect();
    assert_eq!(names, ["uart0", "accel1", "uart2", "accel3"]);
    rig.compare().expect("both sides the same");
    assert!(waited(&rig, 0, 1) > 0 && waited(&rig, 2, 2) > 0);
    runs_on(&destination);
}

#[test]
fn a_byte_or_an_interrupt_of_a_uart_is_broken_and_nobody_sees_it() {
    for (inject, places) in [
        (Inject::Page, &["page 0x"][..]),
        (
            Inject::Device,
            &["counter port1_fifo of uart0", "counter port1_state of uart0"],
        ),
        (Inject::Interrupt, &["interrupts of uart0, the line"]),
    ] {
        let rig = Rig::of(&[Model::Uart(2)]);
        let mut run = rig.source();
        run.inject = Some(inject);
        run.hold = false;
        let (source, destination) = (rig.run(run), rig.receive(rig.destination()));
        let report = source.migrate(&destination);
        assert_eq!(report["outcome"], "completed", "{inject}: {report}");
        let problems = rig.compare().expect_err("one thing is broken");
        for problem in &problems {
            let known = places.iter().any(|place| problem.place.starts_with(place));
            assert!(known, "{inject}: {problems:?}");
        }
        if inject == Inject::Device {
            assert_eq!(problems.len(), 2, "{problems:?}");
            // And by the guest itself, without another copy to compare with.
            destination.becomes("running");
            destination.counts("the guest reads the byte", |now| now["faults"] != 0);
            let found = destination.freeze();
            let read =
                found.iter().any(|problem| problem["place"] == "what the guest read");
            assert!(read, "{found:?}");
        }
    }
}

#[test]
fn a_uart_that_was_paused_never_interrupts_again() {
    let rig = Rig::of(&[Model::Uart(1)]);
    let mut run = rig.source();
    run.paused = true;
    let (source, destination) = (rig.run(run), rig.receive(rig.destination()));
    for _ in 0..3 {
        source.tell(json!({ "command": "resume" }));
        runs_on(&source);
        assert_eq!(source.state(), "paused");
    }
    let report = source.migrate(&destination);
    assert_eq!(report["outcome"], "completed", "{report}");
    destination.becomes("paused");
    rig.compare().expect("both sides the same");
    destination.tell(json!({ "command": "resume" }));
    runs_on(&destination);
}

#[test]
fn an_idle_uart_is_waited_for_and_arrives_empty() {
    let rig = Rig::of(&[Model::Uart(2)]);
    let mut run = rig.source();
    run.machine.dma_rate = 0;
    let (source, destination) = (rig.run(run), rig.receive(rig.destination()));
    let report = source.migrate(&destination);
    assert_eq!(report["outcome"], "completed", "{report}");
    rig.compare().expect("both sides the same");
    assert_eq!((waited(&rig, 0, 1), waited(&rig, 0, 2)), (16, 16));
    destination.becomes("running");
    assert_eq!(destination.freeze(), Vec::<Value>::new());
}

#[test]
fn a_uart_among_peers_is_refused_without_saying_which() {
    let rig = Rig::of(&[ACCEL, Model::Uart(2)]);
    let mut options = rig.source();
    options.machine.p2p = true;
    let error = format!("{:#}", run(options).expect_err("no peer"));
    assert!(error.contains("source1.sock"), "{error}");
    assert!(error.contains("uart") && error.contains("leave out --p2p"), "{error}");
}

#[test]
fn registers_for_two_ports_drive_a_card_with_one() {
    let rig = Rig::of(&[Model::Uart(2)]);
    let other = Rig::of(&[Model::Uart(1)]);
    let source = rig.run(rig.source());
    let destination = other.receive(other.destination());
    let report = source.migrate(&destination);
    assert_eq!(report["outcome"], "refused", "{report}");
    assert!(report["error"].to_string().contains("uart-2"), "{report}");
    runs_on(&source);
}

#[test]
fn a_line_that_was_drained_is_never_heard_again_after_a_rollback() {
    // At the stop an event of the line was drained and the card had masked itself: only
    // who delivers the event again ever unmasks it.
    let rig = Rig::of(&[Model::Uart(2); 3]);
    let mut run = rig.source();
    run.hold = false;
    let source = rig.run(run);
    let mut drained = [0; 3];
    let began = Instant::now();
    for attempt in 0.. {
        // Every third stop or so finds a line up; the others find it turned off by the
        // guest, on a busy machine nearly always: only rounds that end so are long then.
        assert!(began.elapsed() < LONG, "nothing was ever drained: {drained:?}");
        let mut refuses = rig.destination();
        // It cannot write down what came: after the stop, before the commit.
        refuses.digests = Some(rig.path("no folder/digests"));
        let destination = rig.receive(refuses);
        let report = source.migrate(&destination);
        assert_eq!(report["outcome"], "failed", "{report}");
        assert_eq!(destination.ended(), 1);
        assert_eq!(source.state(), "running", "{report}");
        let stopped = Digests::read(&rig.path("source.digests")).expect("digests");
        // What waits is up, or off: nothing that nobody will ever kick.
        assert_eq!(consistent(&stopped, "source"), []);
        for (seen, device) in drained.iter_mut().zip(&stopped.header.devices) {
            let pending = device.line.is_some_and(|line| line.pending);
            *seen += device.counter("irq_waits_0").min(pending.into());
        }
        runs_on(&source);
        source.tell(json!({ "command": "resume" }));
        let blocks = |counters: &Value, card: usize| {
            let blocks = counters.pointer(&format!("/devices/{card}/blocks"));
            blocks.and_then(Value::as_u64)
        };
        let before = source.counts("each card", |now| {
            (0..drained.len()).all(|card| blocks(now, card).is_some())
        });
        source.counts("each card goes on", |now| {
            let more = |card| blocks(&before, card).map(|count| count + 32);
            (0..drained.len()).all(|card| blocks(now, card) > more(card))
        });
        if attempt >= 2 && drained.iter().sum::<u64>() >= 3 {
            return;
        }
    }
}
