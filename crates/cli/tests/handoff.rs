//! What happens when something breaks at a given message of the handoff: the source runs
//! on, or it is in doubt; the destination discards, holds or runs; never do both run.

mod stage;

use stage::relay::{At, Relay, Then};
use stage::{Ended, Guest, Machine, Process};

use serde_json::Value;
use wire::FrameType;
use wire::message::MessageKind;

/// Would throw away what is here.
const RECEIVE: [&str; 3] = ["receive", "--from", "tcp:127.0.0.1:0"];

/// A source, a destination, and a wire between them.
struct Scene {
    _folder: tempfile::TempDir,
    here: Guest,
    there: Guest,
    relay: Relay,
}

impl Scene {
    fn new(at: impl Into<At>, then: Then) -> Scene {
        let folder = stage::folder();
        let here = Guest::run(folder.path(), &Machine::default());
        let there = Guest::receive(folder.path(), &Machine::default());
        let relay = Relay::start(there.place(), at, then);
        Scene { _folder: folder, here, there, relay }
    }

    /// The command that migrates over the relay.
    fn command(&self) -> Vec<String> {
        let control = self.here.control.display().to_string();
        ["guest", "ctl", &control, "migrate", "--to", &self.relay.place, "--json"]
            .map(str::to_owned)
            .into_iter()
            .chain(["--downtime-limit=2000".to_owned()])
            .collect()
    }

    fn migrate(&self) -> Ended {
        let command = self.command();
        stage::run(&command.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn begin(&self) -> Process {
        let command = self.command();
        Process::start(&command.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The source has the guest and runs it.
    fn source_runs(&self, ended: &Ended) {
        assert_eq!(ended.status, 1, "{ended:?}");
        let report = ended.json();
        assert_ne!(report["outcome"], "completed", "{report}");
        assert_eq!(self.here.state(), "running", "{report}");
        assert!(self.here.works(), "{report}");
    }

    /// The source gave the guest away and heard nothing.
    fn source_in_doubt(&mut self, ended: &Ended) {
        assert_eq!(ended.status, 3, "{ended:?}");
        let report = ended.json();
        assert_eq!(report["outcome"], "in-doubt", "{report}");
        assert_eq!(report["recovery"], "in-doubt", "{report}");
        self.here.outlives_a_signal("in-doubt");
        for command in ["resume", "pause", "cancel", "quit"] {
            refused(&self.here.ctl(&[command]), command);
        }
        refused(&self.here.ctl(&RECEIVE), "receive");
        let pages = self.here.pages();
        assert_eq!(self.here.pages(), pages, "a guest in doubt does not run");
    }

    /// The destination has a whole guest, and neither runs nor throws it away.
    fn destination_holds(&mut self) {
        self.there.becomes("holding");
        self.there.outlives_a_signal("holding");
        for command in ["resume", "pause", "cancel", "quit"] {
            refused(&self.there.ctl(&[command]), command);
        }
        refused(&self.there.ctl(&RECEIVE), "receive");
        let pages = self.there.pages();
        assert_eq!(self.there.pages(), pages, "a held guest does not run");
        assert_eq!(self.there.ctl(&["quit", "--discard"]).status, 0);
        assert!(self.there.process.wait(stage::LONGEST).is_some());
    }

    fn destination_runs(&self) {
        self.there.becomes("running");
        assert!(self.there.works());
    }
}

fn refused(ended: &Ended, command: &str) {
    assert_eq!(ended.status, 1, "{command}: {ended:?}");
    let json: Value = ended.json();
    assert_eq!(json["error"]["code"], "refused", "{command}: {json}");
}

#[test]
fn a_connection_cut_in_the_negotiation_leaves_the_source_running() {
    for kind in [MessageKind::HELLO, MessageKind::ACCEPT] {
        let scene = Scene::new(kind, Then::CutBefore);
        scene.source_runs(&scene.migrate());
    }
}

#[test]
fn a_connection_cut_in_precopy_leaves_the_source_running() {
    let scene = Scene::new(MessageKind::ROUND_APPLIED, Then::CutBefore);
    scene.source_runs(&scene.migrate());
}

#[test]
fn data_that_is_cut_off_leaves_the_source_running() {
    for kind in [
        FrameType::MEMORY_RUNS,
        FrameType::DEVICE_DATA,
        FrameType::ROUND_END,
        FrameType::SECTION_DATA,
        FrameType::CHANNEL_END,
    ] {
        let scene = Scene::new(kind, Then::Truncate);
        scene.source_runs(&scene.migrate());
    }
}

#[test]
fn corrupted_data_leaves_the_source_running() {
    for kind in [
        FrameType::MEMORY_RUNS,
        FrameType::DEVICE_BEGIN,
        FrameType::DEVICE_DATA,
        FrameType::DEVICE_END,
        FrameType::CONFIG,
        FrameType::INTERRUPTS,
        FrameType::SECTION_BEGIN,
        FrameType::CHANNEL_END,
    ] {
        let scene = Scene::new(kind, Then::Corrupt);
        scene.source_runs(&scene.migrate());
    }
}

#[test]
fn a_connection_cut_at_the_switchover_leaves_the_source_running() {
    for kind in [MessageKind::SWITCHOVER_REQUEST, MessageKind::SWITCHOVER_READY] {
        let scene = Scene::new(kind, Then::CutBefore);
        scene.source_runs(&scene.migrate());
    }
}

#[test]
fn a_truncated_message_leaves_the_source_running() {
    for kind in [MessageKind::HELLO, MessageKind::ACCEPT, MessageKind::SWITCHOVER_READY] {
        let scene = Scene::new(kind, Then::Truncate);
        scene.source_runs(&scene.migrate());
    }
}

#[test]
fn a_corrupted_message_leaves_the_source_running() {
    for kind in [MessageKind::HELLO, MessageKind::ACCEPT, MessageKind::SWITCHOVER_READY] {
        let scene = Scene::new(kind, Then::Corrupt);
        scene.source_runs(&scene.migrate());
    }
}

#[test]
fn a_lost_prepared_leaves_the_source_running_and_the_destination_holding() {
    let mut scene = Scene::new(MessageKind::PREPARED, Then::CutBefore);
    let ended = scene.migrate();
    scene.source_runs(&ended);
    scene.destination_holds();
}

#[test]
fn a_lost_commit_leaves_neither_side_running() {
    let mut scene = Scene::new(MessageKind::COMMIT, Then::CutBefore);
    let ended = scene.migrate();
    scene.source_in_doubt(&ended);
    scene.destination_holds();
}

#[test]
fn a_connection_lost_after_the_commit_leaves_one_side_running() {
    let mut scene = Scene::new(MessageKind::COMMIT, Then::CutAfter);
    let ended = scene.migrate();
    scene.source_in_doubt(&ended);
    scene.destination_runs();
}

#[test]
fn a_lost_running_leaves_one_side_running() {
    let mut scene = Scene::new(MessageKind::RUNNING, Then::CutBefore);
    let ended = scene.migrate();
    scene.source_in_doubt(&ended);
    scene.destination_runs();
}

#[test]
fn a_destination_killed_at_any_message_before_commit_leaves_the_source_running() {
    for kind in [
        MessageKind::HELLO,
        MessageKind::ACCEPT,
        MessageKind::ROUND_APPLIED,
        MessageKind::SWITCHOVER_REQUEST,
        MessageKind::SWITCHOVER_READY,
        MessageKind::PREPARED,
    ] {
        let mut scene = Scene::new(kind, Then::Hold);
        let mut migration = scene.begin();
        scene.relay.reached();
        scene.there.process.kill();
        let status = migration.wait(stage::LONGEST).expect("an end");
        let ended = Ended { status, out: migration.out(), err: migration.err() };
        scene.source_runs(&ended);
    }
}

#[test]
fn a_destination_killed_after_commit_leaves_the_source_in_doubt() {
    let mut scene = Scene::new(MessageKind::RUNNING, Then::Hold);
    let mut migration = scene.begin();
    scene.relay.reached();
    scene.there.process.kill();
    let status = migration.wait(stage::LONGEST).expect("an end");
    let ended = Ended { status, out: migration.out(), err: migration.err() };
    scene.source_in_doubt(&ended);
    assert_eq!(scene.here.ctl(&["quit", "--discard"]).status, 0);
}

#[test]
fn a_source_killed_before_prepared_leaves_nothing_at_the_destination() {
    let mut scene = Scene::new(MessageKind::SWITCHOVER_READY, Then::Hold);
    let _migration = scene.begin();
    scene.relay.reached();
    scene.here.process.kill();
    assert_eq!(scene.there.process.wait(stage::LONGEST), Some(1));
    let err = scene.there.process.err();
    assert!(err.contains("discarded"), "{err}");
}

#[test]
fn a_source_killed_while_prepared_leaves_the_destination_holding() {
    let mut scene = Scene::new(MessageKind::PREPARED, Then::Hold);
    let _migration = scene.begin();
    scene.relay.reached();
    scene.here.process.kill();
    scene.destination_holds();
}
