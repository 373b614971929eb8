//! A process that a guest has left takes one in again.

use std::net::{TcpListener, TcpStream};

use serde_json::{Value, json};
use states::v2::Capabilities;

use crate::migrations::runs_on;
use crate::rig::{Model, Rig, Side, migrate};

const ANYWHERE: &str = "tcp:127.0.0.1:0";

fn receive(from: &str) -> Value {
    json!({ "command": "receive", "from": from })
}

fn command(name: &str) -> Value {
    json!({ "command": name })
}

/// Where `side`, which its guest has left, awaits another.
fn awaits(side: &Side) -> String {
    let answer = side.tell(receive(ANYWHERE));
    let place = answer["waiting"]["from"].as_str().expect("a place").to_owned();
    assert!(!place.ends_with(":0"), "{answer}");
    let status = side.status();
    assert_eq!((&status["state"], &status["from"]), (&json!("waiting"), &json!(place)));
    for of_the_guest_before in ["blockers", "note", "progress", "faults"] {
        let left = &status[of_the_guest_before];
        assert!(left.is_null() || *left == json!([]), "{status}");
    }
    place
}

/// Both sides, and the guest has moved to the second.
fn moved(rig: &Rig) -> (Side, Side) {
    let (source, destination) = (rig.run(rig.source()), rig.receive(rig.destination()));
    let report = source.migrate(&destination);
    assert_eq!(report["outcome"], "completed", "{report}");
    destination.becomes("running");
    (source, destination)
}

#[test]
fn a_guest_that_comes_back_is_not_the_one_that_left() {
    for model in [Model::Accel(Capabilities::ALL), Model::Uart(2)] {
        let rig = Rig::of(&[model; 2]);
        let (mut here, mut there) =
            (rig.run(rig.source()), rig.receive(rig.destination()));
        let mut to = there.place();
        for round in 1..=3 {
            let report = here.tell(migrate(&to))["report"].clone();
            assert_eq!(report["outcome"], "completed", "{round}: {report}");
            // Live, each time.
            for what in ["pages_changed", "blocks_changed"] {
                assert_eq!(report[what]["changed"], report[what]["of"], "{report}");
            }
            rig.compare().expect("both sides the same");
            there.becomes("running");
            assert_eq!(there.status()["from"], Value::Null);
            runs_on(&there);
            to = awaits(&here);
            there.tell(command("resume"));
            std::mem::swap(&mut here, &mut there);
        }
        assert_eq!(here.quit(), 0);
        there.tell(command("quit"));
        assert_eq!(there.ended(), 0);
    }
}

#[test]
fn a_process_that_has_a_guest_throws_it_away_for_another() {
    let (_rig, source, destination) = Rig::pair();
    let says = |side: &Side, words: &str| {
        let why = side.refuses(receive(ANYWHERE));
        assert!(why.contains(words), "{why}");
    };
    says(&source, "guest receive");
    source.tell(command("pause"));
    says(&source, "moved away");
    says(&destination, "waits for a guest already");
    let report = source.migrate(&destination);
    assert_eq!(report["outcome"], "completed", "{report}");
    // It says so a moment before it has the guest.
    destination.becomes("paused");
    says(&destination, "moved away");
    awaits(&source);
    says(&source, "waits for a guest already");
}

#[test]
fn a_place_that_is_taken_costs_what_the_guest_left_behind() {
    let rig = Rig::new(&[Capabilities::ALL]);
    let (source, destination) = moved(&rig);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let place = format!("tcp:{}", taken.local_addr().expect("an address"));
    let error = format!("{:#}", source.ask(&receive(&place)).expect_err("taken"));
    assert!(error.contains(&place), "{error}");
    assert_eq!(source.state(), "moved");
    source.tell(command("counters"));
    let to = awaits(&source);
    let report = destination.tell(migrate(&to))["report"].clone();
    assert_eq!(report["outcome"], "completed", "{report}");
}

#[test]
fn whoever_only_knocks_or_is_refused_ends_the_wait() {
    let rig = Rig::new(&[Capabilities::ALL]);
    let (source, destination) = moved(&rig);
    let to = awaits(&source);
    drop(TcpStream::connect(&to["tcp:".len()..]).expect("somebody listens"));
    let knocked = |status: &Value| {
        let note = status["note"].as_str().unwrap_or_default();
        status["state"] == "waiting" && note.contains("brought no guest")
    };
    source.until("it says who knocked", knocked);
    let other = Rig::of(&[Model::Uart(1)]);
    let stranger = other.run(other.source());
    let report = stranger.tell(migrate(&to))["report"].clone();
    assert_eq!(report["outcome"], "refused", "{report}");
    let refused = |status: &Value| {
        let note = status["note"].as_str().unwrap_or_default();
        status["state"] == "waiting" && note.contains("refused a guest")
    };
    source.until("it says whom it refused", refused);
    let report = destination.tell(migrate(&to))["report"].clone();
    assert_eq!(report["outcome"], "completed", "{report}");
    source.becomes("running");
    assert_eq!(source.status()["note"], Value::Null);
    runs_on(&source);
}

#[test]
fn half_a_guest_that_is_thrown_away_ends_a_process_that_is_to_receive() {
    let rig = Rig::new(&[Capabilities::ALL]);
    let mut run = rig.source();
    // It would take for ever until everything changed: the way back never ends.
    run.machine.dirty_rate = 4096 * 16;
    run.hold = false;
    let (source, destination) = (rig.run(run), rig.receive(rig.destination()));
    let report = source.migrate(&destination);
    assert_eq!(report["outcome"], "completed", "{report}");
    destination.becomes("running");
    let to = awaits(&source);
    let halfway = |cancelled: &Side| {
        std::thread::scope(|scope| {
            let migration = scope.spawn(|| destination.tell(migrate(&to)));
            source.until("it receives", |status| status["state"] == "receiving");
            destination.until("rounds", |status| status["progress"]["event"] == "round");
            cancelled.tell(command("cancel"));
            migration.join().expect("a report")["report"]["outcome"].clone()
        })
    };
    // The source gives up: whoever waits waits on.
    assert_eq!(halfway(&destination), "cancelled");
    let discarded = |status: &Value| {
        let note = status["note"].as_str().unwrap_or_default();
        status["state"] == "waiting" && note.contains("discarded what was received")
    };
    let status = source.until("it waits again", discarded);
    assert_eq!(status["from"], json!(to));
    // The destination gives up: nobody is waited for any more.
    assert_eq!(halfway(&source), "failed");
    source.becomes("empty");
    assert_eq!(destination.state(), "running");
    destination.tell(command("pause"));
    let to = awaits(&source);
    let report = destination.tell(migrate(&to))["report"].clone();
    assert_eq!(report["outcome"], "completed", "{report}");
    source.becomes("paused");
    rig.compare().expect("both sides the same");
    source.tell(command("resume"));
    runs_on(&source);
}

#[test]
fn nobody_can_end_the_wait_for_a_guest() {
    let rig = Rig::new(&[Capabilities::ALL]);
    let (source, _destination) = moved(&rig);
    let to = format!("unix:{}", rig.path("again").display());
    for _ in 0..3 {
        source.tell(receive(&to));
        assert!(rig.path("again").exists());
        source.tell(command("cancel"));
        // At once, and the place is free.
        let status = source.status();
        assert_eq!((&status["state"], &status["from"]), (&json!("empty"), &Value::Null));
        assert!(!rig.path("again").exists());
        for name in ["counters", "pause", "resume", "freeze", "cancel"] {
            source.refuses(command(name));
        }
        source.refuses(migrate("tcp:127.0.0.1:1"));
    }
    source.tell(receive(&to));
    source.tell(command("quit"));
    assert_eq!(source.ended(), 0);
    assert!(!rig.path("again").exists());
}
