//! The demo: what it migrates arrives, and what it breaks it finds.

mod stage;

use stage::{Ended, run};

use serde_json::Value;

/// A demo with small sizes: some seconds.
fn demo(more: &[&str]) -> Ended {
    let mut arguments = vec![
        "demo",
        "--json",
        "--guest-memory=32M",
        "--device-memory=16M",
        "--dirty-rate=32M",
        "--dma-rate=16M",
        // Debug builds, many at once.
        "--downtime-limit=2000",
    ];
    arguments.extend(more);
    run(&arguments)
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

fn arrives(ended: &Ended) -> Value {
    assert_eq!(ended.status, 0, "{ended:?}");
    let report = ended.json();
    assert_eq!(report["outcome"], "completed", "{report}");
    assert_eq!(report["verified"], true, "{report}");
    let phases = report["downtime"].as_array().expect("phases");
    let sum: f64 = phases.iter().map(|phase| number(&phase["ms"])).sum();
    let downtime = number(&report["downtime_ms"]);
    assert!((sum - downtime).abs() < 0.01, "{report}");
    assert!(phases.iter().any(|phase| phase["phase"] == "verify"), "{report}");
    let guest = number(&report["downtime_guest_ms"]);
    assert!(guest <= downtime * 1.1 + 10.0, "the guest saw more: {report}");
    for changed in ["pages_changed", "blocks_changed"] {
        assert_eq!(report[changed]["changed"], report[changed]["of"], "{report}");
        assert_ne!(report[changed]["of"], 0, "{report}");
    }
    for pid in ["source_pid", "destination_pid"] {
        assert!(report[pid].is_u64(), "{report}");
    }
    for device in report["devices"].as_array().expect("devices") {
        assert_ne!(device["bytes"], 0, "{report}");
    }
    report
}

fn finds(ended: &Ended, place: &str) {
    assert_eq!(ended.status, 1, "{ended:?}");
    let report = ended.json();
    assert_eq!(report["outcome"], "completed", "{report}");
    assert_eq!(report["verified"], false, "{report}");
    let problems = report["problems"].as_array().expect("problems");
    let named = problems
        .iter()
        .any(|problem| problem["place"].as_str().is_some_and(|p| p.contains(place)));
    assert!(named, "{place}: {report}");
}

#[test]
fn one_device_of_capabilities_1_arrives() {
    arrives(&demo(&["--devices=1", "--capabilities=1"]));
}

#[test]
fn one_device_of_capabilities_3_arrives() {
    arrives(&demo(&["--devices=1", "--capabilities=3"]));
}

#[test]
fn one_device_of_capabilities_5_arrives() {
    arrives(&demo(&["--devices=1", "--capabilities=5"]));
}

#[test]
fn one_device_of_capabilities_7_arrives() {
    let report = arrives(&demo(&["--devices=1", "--capabilities=7"]));
    assert_eq!(report["devices"].as_array().map(Vec::len), Some(1));
}

#[test]
fn two_devices_over_three_channels_arrive() {
    let report = arrives(&demo(&["--channels=3"]));
    assert_eq!(report["devices"].as_array().map(Vec::len), Some(2));
}

#[test]
fn two_devices_without_p2p_arrive_where_they_do_not_reach_each_other() {
    arrives(&demo(&["--capabilities=1"]));
}

#[test]
fn two_devices_that_write_into_each_other_arrive() {
    arrives(&demo(&["--p2p"]));
}

#[test]
fn two_devices_without_p2p_that_reach_each_other_are_refused() {
    let ended = demo(&["--p2p", "--capabilities=5"]);
    assert_eq!(ended.status, 1, "{ended:?}");
    let report = ended.json();
    assert_eq!(report["outcome"], "refused", "{report}");
    assert!(report["error"].to_string().contains("P2P"), "{report}");
}

#[test]
fn an_idle_guest_and_idle_devices_are_not_waited_for() {
    for idle in [&["--dirty-rate=0"][..], &["--dma-rate=0"]] {
        let arguments = ["demo", "--json", "--guest-memory=32M", "--device-memory=16M"];
        let more = ["--downtime-limit=2000", "--max-time=60"];
        let ended = run(&[&arguments[..], &more, idle].concat());
        assert_eq!(ended.status, 0, "{ended:?}");
        let report = ended.json();
        assert_eq!(report["outcome"], "completed", "{report}");
        assert_eq!(report["verified"], true, "{report}");
    }
}

#[test]
fn a_page_broken_in_its_copy_is_found() {
    finds(&demo(&["--inject=page"]), "page 0x");
}

#[test]
fn device_memory_broken_before_its_save_is_found() {
    finds(&demo(&["--inject=device"]), "memory of ");
}

#[test]
fn a_forgotten_dirty_bit_is_found() {
    finds(&demo(&["--inject=dirty-bit"]), "page 0x");
}

#[test]
fn a_dropped_interrupt_is_found() {
    finds(&demo(&["--inject=interrupt"]), "interrupts of ");
}

#[test]
fn a_peer_write_after_the_stop_is_found() {
    let ended = demo(&["--inject=p2p-late"]);
    assert_eq!(ended.status, 1, "{ended:?}");
    assert_eq!(ended.json()["verified"], false, "{ended:?}");
}

#[test]
fn a_device_that_never_rests_never_leaves_pre_copy() {
    // A migration region does not say which bytes are the initial ones.
    for generation in ["rfc2018:v1", "v1:v2"] {
        let report = arrives(&demo(&["--generation", generation]));
        for device in report["devices"].as_array().expect("devices") {
            let said = device["identity"].to_string();
            assert!(said.contains(&generation[..2]), "{said}");
        }
    }
}
