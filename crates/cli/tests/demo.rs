//! The demo: what it migrates arrives, and what it breaks it finds.

mod stage;

use stage::{Ended, LONGEST, Process, run};

use std::collections::BTreeSet;

use rustix::process::{Pid, Signal, kill_process};
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

/// All pairs, and each report.
fn matrix(status: i32, more: &[&str]) -> Vec<Value> {
    let mut process =
        Process::start(&[&["demo", "--matrix", "--json"][..], more].concat());
    // As long as 18 migrations may take where everything else is tested, too.
    let ended = process.wait(3 * LONGEST);
    let (out, err) = (process.out(), process.err());
    assert_eq!(ended, Some(status), "{out} {err}");
    out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
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
fn a_uart_arrives_only_in_its_own_generation() {
    for generation in ["v1:rfc2018", "v2:v1"] {
        let report = arrives(&demo(&["--model=uart", "--generation", generation]));
        let (source, destination) = generation.split_once(':').expect("two");
        assert_eq!(report["model"], "uart", "{report}");
        assert_eq!(report["source_generation"], source, "{report}");
        assert_eq!(report["destination_generation"], destination, "{report}");
        assert_eq!(report["devices"].as_array().map(Vec::len), Some(2), "{report}");
        // A header, and two ports with what waits in them.
        assert_eq!(report["devices"][0]["bytes"], 96, "{report}");
    }
    let report = arrives(&demo(&["--model=uart", "--ports=1", "--devices=3"]));
    assert_eq!(report["devices"][2]["identity"]["model"], "uart-1", "{report}");
}

#[test]
fn a_byte_in_a_fifo_is_broken_and_not_found() {
    // So there is one, in each generation, when the guest stops.
    for generation in ["v2", "v1:rfc2018", "rfc2018:v2"] {
        let ended =
            demo(&["--model=uart", "--inject=device", "--generation", generation]);
        finds(&ended, "counter port1_fifo of uart");
    }
}

#[test]
fn a_generation_without_p2p_moves_peers_or_refuses_them_without_a_reason() {
    for generation in ["v1", "v2:rfc2018"] {
        let ended = demo(&["--p2p", "--generation", generation]);
        assert_eq!(ended.status, 1, "{ended:?}");
        let report = ended.json();
        assert_eq!(report["outcome"], "refused", "{report}");
        let error = report["error"].to_string();
        let region = generation.rsplit(':').next().expect("a name");
        let why = format!("the generation {region} has no P2P state");
        for says in [why.as_str(), "leave --p2p out", "--generation v2"] {
            assert!(error.contains(says), "{says}: {error}");
        }
    }
}

#[test]
fn a_pair_of_the_matrix_does_not_arrive() {
    let reports = matrix(0, &["--downtime-limit=5000"]);
    let names: BTreeSet<String> = reports
        .iter()
        .map(|report| {
            assert_eq!(report["outcome"], "completed", "{report}");
            assert_eq!(report["verified"], true, "{report}");
            // Live: while it was copied, everything changed.
            assert_ne!(report["rounds"], 0, "{report}");
            for changed in ["pages_changed", "blocks_changed"] {
                assert_eq!(report[changed]["changed"], report[changed]["of"], "{report}");
                assert_ne!(report[changed]["of"], 0, "{report}");
            }
            let name = |key: &str| report[key].as_str().expect("a name").to_owned();
            let devices = report["devices"].as_array().expect("devices");
            assert_eq!(devices.len(), 1, "{report}");
            let generation = &devices[0]["identity"]["generation"];
            assert_eq!(*generation, name("source_generation"), "{report}");
            ["model", "source_generation", "destination_generation"].map(name).join(" ")
        })
        .collect();
    let generations = ["v2", "v1", "rfc2018"];
    let pairs = generations.iter().flat_map(|a| generations.map(|b| format!("{a} {b}")));
    let all: BTreeSet<String> = pairs
        .flat_map(|pair| ["accel", "uart"].map(|model| format!("{model} {pair}")))
        .collect();
    assert_eq!((reports.len(), names), (18, all));
}

#[test]
fn one_broken_pair_ends_the_matrix_or_is_no_failure() {
    // Only an accelerator is made from its memory: the first nine do not even start.
    let reports = matrix(1, &["--device-memory=3M", "--guest-memory=8M"]);
    assert_eq!(reports.len(), 18, "{reports:?}");
    for report in &reports {
        if report["model"] == "accel" {
            assert_eq!(report["outcome"], "failed", "{report}");
            assert!(report["error"].to_string().contains("source0"), "{report}");
        } else {
            assert_eq!(report["verified"], true, "{report}");
        }
        assert!(report["destination_generation"].is_string(), "{report}");
    }
}

#[test]
fn ctrl_c_in_the_matrix_leaves_processes_and_files_behind() {
    let folder = stage::folder();
    let files = format!("TMPDIR={}", folder.path().display());
    let program = env!("CARGO_BIN_EXE_vfio-migrate");
    let arguments = [&files, program, "demo", "--matrix", "--json"];
    let mut process = Process::start_other("env", &arguments);
    // One pair is over, and some process of the next is there.
    process.line();
    let parent = process.pid().to_string();
    while children(&parent).is_empty() {
        std::thread::yield_now();
    }
    process.signal(Signal::INT);
    assert_eq!(process.wait(LONGEST), Some(1));
    assert_eq!(children(&parent), Vec::<String>::new());
    let left = std::fs::read_dir(folder.path()).expect("a folder").count();
    assert_eq!(left, 0, "files");
    let (out, err) = (process.out(), process.err());
    assert!(out.lines().last().is_some_and(|line| line.contains("interrupted")), "{out}");
    // What did not run was not found wrong.
    assert!(!err.contains("not verified"), "{err}");
}

#[test]
fn a_program_that_is_replaced_meanwhile_fails_the_rest_of_the_matrix() {
    let folder = stage::folder();
    let program = folder.path().join("vfio-migrate");
    std::fs::copy(env!("CARGO_BIN_EXE_vfio-migrate"), &program).expect("a copy");
    let name = program.to_str().expect("text");
    let arguments = ["demo", "--matrix", "--json", "--downtime-limit=5000"];
    let mut process = Process::start_other(name, &arguments);
    process.line();
    std::fs::remove_file(&program).expect("a file");
    // Some of the second pair's processes may have been started before that.
    for _ in 0..2 {
        let report: Value = serde_json::from_str(&process.line()).expect("JSON");
        assert_eq!(report["verified"], true, "{report}");
    }
    process.signal(Signal::INT);
    assert_eq!(process.wait(LONGEST), Some(1));
}

/// A demo that goes there and back: each report, and what they come to.
fn repeated(status: i32, more: &[&str]) -> (Vec<Value>, Value) {
    let ended = demo(more);
    assert_eq!(ended.status, status, "{ended:?}");
    let json = |line| serde_json::from_str(line).expect("JSON");
    let mut all: Vec<Value> = ended.out.lines().map(json).collect();
    let total = all.pop().expect("what they come to");
    (all, total)
}

#[test]
fn a_guest_is_verified_on_the_way_there_only() {
    let (all, total) = repeated(0, &["--repeat=3", "--generation=v2:v1"]);
    assert_eq!(all.len(), 3);
    let source = &all[0]["source_pid"];
    for (number, report) in (1..).zip(&all) {
        assert_eq!(report["migration"], number, "{report}");
        assert_eq!(report["outcome"], "completed", "{report}");
        assert_eq!(report["verified"], true, "{report}");
        // Live, and everything changed, each time.
        assert_ne!(report["rounds"], 0, "{report}");
        for changed in ["pages_changed", "blocks_changed"] {
            assert_eq!(report[changed]["changed"], report[changed]["of"], "{report}");
        }
        assert!(report["downtime_guest_ms"].is_f64(), "{report}");
        let (from, to) = if number % 2 == 1 { ("v2", "v1") } else { ("v1", "v2") };
        assert_eq!(report["source_generation"], from, "{report}");
        assert_eq!(report["destination_generation"], to, "{report}");
        assert_eq!(report["devices"][0]["identity"]["generation"], from, "{report}");
        assert_eq!(report["source_pid"] == *source, number % 2 == 1, "{report}");
        assert_eq!(report["destination_pid"] == *source, number % 2 == 0, "{report}");
    }
    assert_eq!(total["outcome"], "completed", "{total}");
    assert_eq!(total["verified"], true, "{total}");
    assert_eq!((&total["repeat"], &total["migrations"]), (&3.into(), &3.into()));
    let time = |key: &str| number(&total[key]);
    let (min, max) = (time("downtime_min_ms"), time("downtime_max_ms"));
    let median = time("downtime_median_ms");
    assert!(0.0 < min && min <= median && median <= max, "{total}");
    let took: f64 = all.iter().map(|report| number(&report["total_ms"])).sum();
    assert!(time("total_ms") > took, "{total}");
    assert!(total.get("error").is_none(), "{total}");
}

#[test]
fn peers_or_a_uart_come_back_broken() {
    for more in [&["--p2p"][..], &["--model=uart", "--generation=rfc2018:v1"]] {
        let (all, total) = repeated(0, &[more, &["--repeat=2"]].concat());
        assert_eq!((all.len(), &total["verified"]), (2, &true.into()), "{total}");
    }
}

#[test]
fn a_demo_goes_on_after_a_migration_that_was_not_verified() {
    let (all, total) = repeated(1, &["--repeat=3", "--inject=page"]);
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(all[0]["verified"], false, "{all:?}");
    assert_eq!((&total["migrations"], &total["verified"]), (&0.into(), &false.into()));
    let error = total["error"].to_string();
    assert!(error.contains("migration 1 of 3: "), "{error}");
    assert!(error.contains("page 0x"), "{error}");
}

#[test]
fn nobody_says_in_which_migration_a_guest_died() {
    let sizes = ["--guest-memory=8M", "--device-memory=16M", "--dirty-rate=32M"];
    let more = ["--devices=1", "--downtime-limit=5000", "--repeat=1000"];
    let mut process = Process::start(&[&["demo", "--json"][..], &sizes, &more].concat());
    let first: Value = serde_json::from_str(&process.line()).expect("JSON");
    let pid = first["destination_pid"].as_i64().expect("an id");
    let pid = Pid::from_raw(pid.try_into().expect("an id")).expect("an id");
    // The demo has not waited for it, so the id is still its own.
    kill_process(pid, Signal::KILL).expect("the guest is there");
    assert!(process.wait(LONGEST).is_some_and(|status| status != 0));
    let out = process.out();
    let total: Value =
        serde_json::from_str(out.lines().last().unwrap_or_default()).expect("JSON");
    let done = total["migrations"].as_u64().expect("a number");
    let error = total["error"].as_str().expect("an error");
    assert!(error.starts_with(&format!("migration {} of 1000: ", done + 1)), "{error}");
    assert_ne!(total["verified"], true, "{total}");
}

/// The processes that end with `parent`, by their command lines.
fn children(parent: &str) -> Vec<String> {
    let with = format!("--with-parent\0{parent}\0");
    let all = std::fs::read_dir("/proc").expect("processes").flatten();
    all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .filter(|line| line.contains(&with))
        .collect()
}

#[test]
fn a_guest_that_dies_where_it_arrived_takes_the_report_with_it() {
    // So slow that it is waited for there for seconds.
    let sizes = ["--guest-memory=4M", "--dirty-rate=1M", "--downtime-limit=5000"];
    let model = ["demo", "--json", "--model=uart", "--devices=1"];
    let mut process = Process::start(&[&model[..], &sizes].concat());
    let note = process.notes("is awaited in process");
    let number = |c: char| !c.is_ascii_digit();
    let pid = note.split(number).rfind(|word| !word.is_empty()).expect("an id");
    let pid = Pid::from_raw(pid.parse().expect("an id")).expect("an id");
    process.notes("\"phase\":\"cleanup\"");
    // The demo has not waited for it, so the id is still its own.
    kill_process(pid, Signal::KILL).expect("the guest is there");
    assert_eq!(process.wait(LONGEST), Some(1));
    let out = process.out();
    let report: Value = serde_json::from_str(out.trim()).expect("one report");
    assert_eq!(report["outcome"], "completed", "{report}");
    assert_eq!(report["verified"], false, "{report}");
    let problem = &report["problems"][0];
    assert_eq!(problem["place"], "the guest after it arrived", "{report}");
    assert!(problem["text"].to_string().contains("the destination guest"), "{report}");
}

#[test]
fn options_that_no_demo_can_have_are_found_out_by_its_processes() {
    for (option, says) in [
        ("--guest-memory=1M", "4M"),
        ("--generation=v1:", "`` is no generation: write v2, v1 or rfc2018"),
        ("--generation=v1:v2:v1", "`v2:v1` is no generation"),
        ("--generation=v3", "`v3` is no generation"),
    ] {
        let ended = run(&["demo", "--json", option]);
        assert_eq!(ended.status, 2, "{ended:?}");
        let error = ended.json()["error"].to_string();
        assert!(error.contains(says), "{option}: {error}");
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
