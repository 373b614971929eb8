//! A process that a guest has left takes one in again: what dies on the way, and what is
//! left of each guest that went.

mod stage;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::Value;
use stage::relay::{Relay, Then};
use stage::{Guest, LONGEST, Machine, Process};
use wire::message::MessageKind;

/// Two guests of which the second has one that came from the first.
struct Scene {
    _folder: tempfile::TempDir,
    here: Guest,
    there: Guest,
}

impl Scene {
    fn new() -> Scene {
        let folder = stage::folder();
        let here = Guest::run(folder.path(), &Machine::default());
        let there = Guest::receive(folder.path(), &Machine::default());
        migrate(&here, &there, there.place());
        Scene { _folder: folder, here, there }
    }
}

/// The command that migrates a guest.
fn command(from: &Guest, to: &str) -> Vec<String> {
    let control = from.control.display().to_string();
    ["guest", "ctl", &control, "migrate", "--to", to, "--json", "--downtime-limit=5000"]
        .map(str::to_owned)
        .to_vec()
}

fn migrate(from: &Guest, at: &Guest, to: &str) {
    let command = command(from, to);
    let ended = stage::run(&command.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(ended.status, 0, "{ended:?}");
    at.becomes("running");
}

/// Where a guest is awaited in a process that one has left.
fn awaits(guest: &Guest) -> String {
    let ended = guest.ctl(&["receive", "--from", "tcp:127.0.0.1:0"]);
    assert_eq!(ended.status, 0, "{ended:?}");
    ended.json()["waiting"]["from"].as_str().expect("a place").to_owned()
}

/// A guest that migrates by way of a relay, which holds at a message.
fn held(from: &Guest, to: &str, at: MessageKind) -> (Relay, Process) {
    let relay = Relay::start(to, at, Then::Hold);
    let command = command(from, &relay.place);
    let migration =
        Process::start(&command.iter().map(String::as_str).collect::<Vec<_>>());
    relay.reached();
    (relay, migration)
}

#[test]
fn a_source_that_dies_half_way_takes_a_process_with_it_that_is_to_receive() {
    let mut scene = Scene::new();
    let to = awaits(&scene.here);
    let (_relay, _migration) = held(&scene.there, &to, MessageKind::SWITCHOVER_READY);
    scene.there.process.kill();
    scene.here.process.notes("discarded what was received");
    scene.here.becomes("waiting");
    let status = scene.here.ctl(&["status"]).json();
    let note = status["status"]["note"].to_string();
    assert!(note.contains("discarded what was received"), "{status}");
    // The next one finds the same place.
    let folder = stage::folder();
    let other = Guest::run(folder.path(), &Machine::default());
    migrate(&other, &scene.here, &to);
    assert!(scene.here.works());
}

#[test]
fn the_only_copy_is_thrown_away_for_another_guest() {
    let mut scene = Scene::new();
    let to = awaits(&scene.here);
    let (_relay, _migration) = held(&scene.there, &to, MessageKind::PREPARED);
    scene.there.process.kill();
    scene.here.becomes("holding");
    scene.here.outlives_a_signal("holding");
    for command in [&["receive", "--from", &to][..], &["cancel"], &["quit"]] {
        let ended = scene.here.ctl(command);
        assert_eq!(ended.status, 1, "{ended:?}");
        let error = ended.json()["error"].clone();
        assert_eq!(error["code"], "refused", "{error}");
        assert!(error["text"].to_string().contains("--discard"), "{error}");
    }
    assert_eq!(scene.here.state(), "holding");
    assert_eq!(scene.here.ctl(&["quit", "--discard"]).status, 0);
    assert_eq!(scene.here.process.wait(LONGEST), Some(0));
}

/// What a process has: what its descriptors are, and the names of its threads.
type Has = BTreeMap<String, usize>;

fn has(pid: u32) -> Has {
    let mut has = Has::new();
    let mut add = |what: String| *has.entry(what).or_default() += 1;
    let entries = |of: &str| {
        let all = std::fs::read_dir(format!("/proc/{pid}/{of}")).expect("a process");
        all.flatten().map(|entry| entry.path()).collect::<Vec<PathBuf>>()
    };
    for path in entries("fd") {
        let Ok(target) = std::fs::read_link(path) else { continue };
        let target = target.display().to_string();
        // A socket or a memfd is one of many: by its kind.
        add(target.split(['[', ' ']).next().unwrap_or_default().to_owned());
    }
    for path in entries("task") {
        // Whoever asks for the status has a thread, too.
        let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        if !name.is_empty() && name.trim() != "control" {
            add(format!("thread {}", name.trim()));
        }
    }
    has
}

/// Whether there is more of anything than there was.
fn more(now: &Has, had: &Has) -> bool {
    now.iter().any(|(what, count)| *count > had.get(what).copied().unwrap_or(0))
}

/// Memory that a process uses, in KiB.
fn uses(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
    let status = status.expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.expect("a line").parse().expect("a number")
}

#[test]
fn each_guest_that_went_leaves_something_behind() {
    let Scene { _folder, here, there } = Scene::new();
    let mut before: Option<(Has, u64)> = None;
    for round in 1..=4 {
        migrate(&there, &here, &awaits(&here));
        let now = {
            let began = Instant::now();
            loop {
                let now = has(here.process.pid());
                match &before {
                    // What a migration has is gone soon after its report.
                    Some((before, _))
                        if more(&now, before) && began.elapsed() < LONGEST =>
                    {
                        std::thread::yield_now();
                    }
                    None if now.contains_key("thread arrival")
                        && began.elapsed() < LONGEST =>
                    {
                        std::thread::yield_now();
                    }
                    _ => break now,
                }
            }
        };
        let memory = uses(here.process.pid());
        let least = match &before {
            None => memory,
            Some((had, least)) => {
                assert!(!more(&now, had), "{now:?} after round {round}, not {had:?}");
                assert!(memory < least + (8 << 10), "{least} KiB, then {memory} KiB");
                *least
            }
        };
        // Whoever asked last may still have been connected: the next round has to do
        // with what is left without them.
        before = Some((now, least));
        migrate(&here, &there, &awaits(&there));
    }
    let counters: Value = there.ctl(&["counters"]).json();
    assert_eq!(counters["counters"]["faults"], 0, "{counters}");
}
