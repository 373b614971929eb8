//! Commands obey the right to run, in each phase and on both sides.

use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use states::v2::Capabilities;
use vfio_migrate_cli::commands::ctl::Refused;

use crate::rig::{Rig, Side, exists, migrate};

fn command(name: &str) -> Value {
    json!({ "command": name })
}

#[test]
fn before_a_migration_and_while_waiting() {
    let (rig, source, destination) = Rig::pair();
    source.refuses(command("cancel"));
    for name in ["counters", "pause", "resume", "freeze", "cancel"] {
        destination.refuses(command(name));
    }
    destination.refuses(migrate("tcp:127.0.0.1:1"));
    assert_eq!(destination.state(), "waiting");
    assert!(exists(&rig.path("destination.ctl")));
    destination.tell(command("quit"));
    assert_eq!(destination.ended(), 0);
    source.tell(command("quit"));
    assert_eq!(source.ended(), 0);
    assert!(!exists(&rig.path("source.ctl")));
}

/// A source that goes on with pre-copy until somebody ends it: its gate never opens,
/// since it takes for ever to write all of memory.
fn endless() -> (Rig, Side, Side) {
    let rig = Rig::new(&[Capabilities::ALL; 2]);
    let mut run = rig.source();
    run.machine.dirty_rate = 4096 * 16;
    let (source, destination) = (rig.run(run), rig.receive(rig.destination()));
    (rig, source, destination)
}

#[test]
fn during_pre_copy_and_after_a_cancel() {
    let (_rig, source, destination) = endless();
    std::thread::scope(|scope| {
        let migration = scope.spawn(|| source.migrate(&destination));
        source.until("rounds", |status| status["progress"]["event"] == "round");
        destination.until("it receives", |status| status["state"] == "receiving");
        for name in ["counters", "pause", "resume", "freeze"] {
            destination.refuses(command(name));
        }
        for name in ["freeze", "quit"] {
            source.refuses(command(name));
        }
        source.refuses(migrate("tcp:127.0.0.1:1"));
        // The guest runs already: that is what was asked for.
        source.tell(command("resume"));
        source.tell(command("counters"));
        source.tell(command("cancel"));
        let report = migration.join().expect("a report");
        assert_eq!(report["outcome"], "cancelled", "{report}");
    });
    assert_eq!(source.state(), "running");
    assert_eq!(source.freeze(), Vec::<Value>::new());
    // What was received is thrown away, and the process says so by its status.
    assert_eq!(destination.ended(), 1);
}

#[test]
fn a_pause_during_pre_copy_travels() {
    let (rig, source, destination) = endless();
    std::thread::scope(|scope| {
        let migration = scope.spawn(|| source.migrate(&destination));
        source.until("rounds", |status| status["progress"]["event"] == "round");
        source.tell(command("pause"));
        let report = migration.join().expect("a report");
        assert_eq!(report["outcome"], "completed", "{report}");
    });
    destination.becomes("paused");
    rig.compare().expect("both sides the same");
}

#[test]
fn after_the_guest_moved_nothing_starts_it_here() {
    let (_rig, source, destination) = Rig::pair();
    let report = source.migrate(&destination);
    assert_eq!(report["outcome"], "completed", "{report}");
    assert_eq!(source.state(), "moved");
    for name in ["pause", "resume", "cancel", "freeze", "quit"] {
        let why = source.refuses(command(name));
        assert!(why.contains("runs on the destination"), "{name}: {why}");
    }
    source.refuses(migrate("tcp:127.0.0.1:1"));
    source.tell(command("counters"));
    assert_eq!(source.quit(), 0);
    destination.becomes("running");
    destination.tell(command("pause"));
    destination.tell(command("resume"));
    destination.refuses(command("cancel"));
}

#[test]
fn a_destination_may_give_up_what_it_receives() {
    let (_rig, source, destination) = endless();
    let request = migrate(&destination.place());
    std::thread::scope(|scope| {
        let migration = scope.spawn(|| source.tell(request)["report"].clone());
        source.until("rounds", |status| status["progress"]["event"] == "round");
        assert_eq!(destination.quit(), 0);
        let report = migration.join().expect("a report");
        assert_eq!(report["outcome"], "failed", "{report}");
    });
    assert_eq!(source.state(), "running");
    assert_eq!(source.freeze(), Vec::<Value>::new());
}

#[test]
fn one_client_too_many_is_told_so_instead_of_hung_up_on() {
    let rig = Rig::new(&[Capabilities::ALL; 2]);
    let source = rig.run(rig.source());
    let silent = || UnixStream::connect(rig.path("source.ctl")).expect("a guest");
    let silent: Vec<UnixStream> = (0..32).map(|_| silent()).collect();
    let error = source.ask(&command("status")).expect_err("nobody to answer");
    let refused = error.downcast_ref::<Refused>();
    let refused = refused.unwrap_or_else(|| panic!("{error:#}"));
    assert_eq!(refused.code, "busy", "{refused}");
    drop(silent);
    source.until("it answers again", |status| status["state"] == "running");
}
