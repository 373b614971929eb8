//! Devices without a guest move between processes; whoever dies, at most one side runs.

mod stage;

use std::path::Path;

use serde_json::Value;
use stage::alone::Alone;
use stage::relay::{At, Relay, Then};
use stage::{Ended, Process, run};
use wire::FrameType;
use wire::message::MessageKind;

/// What the devices of these tests hold.
const FULL: usize = 3 << 20;

/// A `receive` that listens.
struct Receiving {
    process: Process,
    place: String,
}

impl Receiving {
    fn start(device: &Alone, from: &str) -> Receiving {
        let mut process =
            Process::start(&["receive", &device.uri, "--from", from, "--json"]);
        let ready: Value = serde_json::from_str(&process.line()).expect("JSON");
        let place = ready["ready"]["from"].as_str().expect("a place").to_owned();
        Receiving { process, place }
    }

    fn tcp(device: &Alone) -> Receiving {
        Receiving::start(device, "tcp:127.0.0.1:0")
    }

    /// Its status and its last line.
    fn ends(mut self) -> (i32, Value) {
        let status = self.process.wait(stage::LONGEST).expect("it ends");
        let out = self.process.out();
        let line = out.lines().last().expect("a report");
        (status, serde_json::from_str(line).expect("JSON"))
    }
}

fn unix(folder: &Path) -> String {
    format!("unix:{}", folder.join("link").display())
}

fn send(device: &Alone, to: &str) -> Ended {
    run(&["send", &device.uri, "--to", to, "--json"])
}

/// A `send` that takes long, once data is on its way.
fn send_slowly(device: &Alone, to: &str) -> Process {
    // All of it would take three seconds, and then there is no end.
    let slow = ["--rate", "1M", "--downtime-limit", "0", "--max-time", "30"];
    let arguments = ["send", &device.uri, "--to", to, "--json"];
    let mut sending = Process::start(&[&arguments[..], &slow].concat());
    sending.notes("precopy");
    sending
}

fn ended(mut process: Process) -> Ended {
    let status = process.wait(stage::LONGEST).expect("it ends");
    Ended { status, out: process.out(), err: process.err() }
}

#[test]
fn devices_move_over_tcp_and_over_unix_sockets() {
    let folder = stage::folder();
    let here = Alone::filled(folder.path(), "here", FULL);
    let there = Alone::empty(folder.path(), "there");
    let before = here.holds();
    let receiving = Receiving::tcp(&there);
    assert!(!receiving.place.ends_with(":0"), "{}", receiving.place);
    let sent = send(&here, &receiving.place);
    assert_eq!(sent.status, 0, "{sent:?}");
    let report = sent.json();
    assert_eq!(report["outcome"], "completed");
    assert!(report["device_bytes"].as_u64() >= Some(FULL as u64), "{report}");
    assert_eq!(report["memory_bytes"], 0, "{report}");
    let (status, arrival) = receiving.ends();
    assert_eq!((status, &arrival["outcome"]), (0, &"completed".into()), "{arrival}");
    assert_eq!(arrival["left"], "running", "{arrival}");
    assert_eq!((here.state(), there.state()), ("STOP".into(), "RUNNING".into()));
    assert_eq!(before, there.holds());

    // And back, over four connections of another kind.
    let receiving = Receiving::start(&here, &unix(folder.path()));
    let to = receiving.place.clone();
    let sent = run(&["send", &there.uri, "--to", &to, "--channels", "4", "--json"]);
    assert_eq!(sent.status, 0, "{sent:?}");
    assert_eq!(receiving.ends().0, 0);
    assert_eq!((here.state(), there.state()), ("RUNNING".into(), "STOP".into()));
    assert_eq!(before, here.holds());
    assert!(!folder.path().join("link").exists());
}

#[test]
fn a_device_that_is_stopped_arrives_stopped() {
    let folder = stage::folder();
    let here = Alone::filled(folder.path(), "here", 64 << 10);
    let there = Alone::empty(folder.path(), "there");
    let file = folder.path().join("a.vfm");
    let file = file.to_str().expect("text");
    assert_eq!(run(&["save", &here.uri, "--output", file, "--stop"]).status, 0);
    let receiving = Receiving::tcp(&there);
    let sent = send(&here, &receiving.place);
    assert_eq!(sent.status, 0, "{sent:?}");
    assert!(sent.json()["downtime_ms"].is_null(), "{sent:?}");
    let (status, arrival) = receiving.ends();
    assert_eq!((status, &arrival["left"]), (0, &"stopped".into()), "{arrival}");
    assert_eq!(there.state(), "STOP");
    assert_eq!(here.holds(), there.holds());
}

#[test]
fn a_rate_limit_holds_over_all_connections() {
    let folder = stage::folder();
    let here = Alone::filled(folder.path(), "here", FULL);
    let there = Alone::empty(folder.path(), "there");
    let receiving = Receiving::tcp(&there);
    let slow = ["--rate", "2M", "--channels", "2", "--downtime-limit", "10000"];
    let arguments = ["send", &here.uri, "--to", &receiving.place, "--json"];
    let sent = run(&[&arguments[..], &slow].concat());
    assert_eq!(sent.status, 0, "{sent:?}");
    // 3 MiB at 2 MiB a second, less what a limiter lets through at once.
    let rate = sent.json()["throughput_bytes_per_s"].as_f64().expect("a number");
    assert!(rate < 1.5 * f64::from(2 << 20), "{rate} bytes/s");
    assert_eq!(receiving.ends().0, 0);
}

#[test]
fn a_receiver_killed_on_the_way_leaves_the_source_running() {
    let folder = stage::folder();
    let here = Alone::filled(folder.path(), "here", FULL);
    let there = Alone::empty(folder.path(), "there");
    let before = here.holds();
    let place = unix(folder.path());
    let mut receiving = Receiving::start(&there, &place);
    let sending = send_slowly(&here, &place);
    receiving.process.kill();
    let sent = ended(sending);
    assert_eq!(sent.status, 1, "{sent:?}");
    let report = sent.json();
    assert_eq!(report["outcome"], "failed", "{report}");
    assert_eq!(report["recovery"], "source-resumed", "{report}");
    assert_eq!(here.state(), "RUNNING");
    assert_eq!(before, here.holds());
    assert_ne!(there.state(), "RUNNING", "half of another device is in it");
    // A second attempt at the same place, where the first left its socket.
    let receiving = Receiving::start(&there, &place);
    let sent = send(&here, &place);
    assert_eq!(sent.status, 0, "{sent:?}");
    assert_eq!(receiving.ends().0, 0);
    assert_eq!(before, there.holds());
}

#[test]
fn a_sender_killed_on_the_way_leaves_its_device_to_be_started() {
    let folder = stage::folder();
    let here = Alone::filled(folder.path(), "here", FULL);
    let there = Alone::empty(folder.path(), "there");
    let before = here.holds();
    let receiving = Receiving::tcp(&there);
    let mut sending = send_slowly(&here, &receiving.place);
    sending.kill();
    let (status, arrival) = receiving.ends();
    assert_eq!(status, 1, "{arrival}");
    assert_eq!(arrival["outcome"], "failed", "{arrival}");
    assert_eq!(arrival["recovery"], "retry", "{arrival}");
    // Nobody was there to take it out of pre-copy, in which it works.
    assert_eq!(here.state(), "PRE_COPY");
    let refused = send(&here, "tcp:127.0.0.1:1");
    assert_eq!(refused.status, 1, "{refused:?}");
    assert!(refused.err.contains("PRE_COPY") && refused.err.contains("start"));
    assert_eq!(run(&["start", &here.uri]).status, 0);
    assert_eq!(here.state(), "RUNNING");
    assert_eq!(before, here.holds());
    let receiving = Receiving::tcp(&there);
    let sent = send(&here, &receiving.place);
    assert_eq!(sent.status, 0, "{sent:?}");
    assert_eq!(receiving.ends().0, 0);
    assert_eq!(before, there.holds());
}

#[test]
fn a_server_killed_on_the_way_is_named_as_lost() {
    let folder = stage::folder();
    let mut here = Alone::filled(folder.path(), "here", FULL);
    let there = Alone::empty(folder.path(), "there");
    let receiving = Receiving::tcp(&there);
    let sending = send_slowly(&here, &receiving.place);
    here.server.process.kill();
    let sent = ended(sending);
    assert_eq!(sent.status, 4, "{sent:?}");
    assert_eq!(sent.json()["lost_devices"][0], "here", "{sent:?}");
    assert_eq!(receiving.ends().0, 1);
}

#[test]
fn a_cancelled_send_leaves_the_device_running() {
    let folder = stage::folder();
    let here = Alone::filled(folder.path(), "here", FULL);
    let there = Alone::empty(folder.path(), "there");
    let before = here.holds();
    let receiving = Receiving::tcp(&there);
    let sending = send_slowly(&here, &receiving.place);
    sending.signal(rustix::process::Signal::INT);
    let sent = ended(sending);
    assert_eq!(sent.status, 1, "{sent:?}");
    assert_eq!(sent.json()["outcome"], "cancelled", "{sent:?}");
    assert_eq!(here.state(), "RUNNING");
    assert_eq!(before, here.holds());
    assert_eq!(receiving.ends().0, 1);
}

#[test]
fn a_receiver_that_is_told_to_end_ends_and_leaves_no_socket() {
    let folder = stage::folder();
    let there = Alone::empty(folder.path(), "there");
    let receiving = Receiving::start(&there, &unix(folder.path()));
    receiving.process.signal(rustix::process::Signal::TERM);
    let (status, said) = receiving.ends();
    assert_eq!(status, 1);
    assert!(said["error"]["text"].to_string().contains("interrupted"), "{said}");
    assert!(!folder.path().join("link").exists());
    assert_eq!(there.state(), "RUNNING");
}

/// Two devices, and a wire between them that broke.
struct Broken {
    _folder: tempfile::TempDir,
    here: Alone,
    there: Alone,
    sent: Ended,
    arrived: (i32, Value),
}

fn broken(at: impl Into<At>, then: Then) -> Broken {
    let folder = stage::folder();
    let here = Alone::filled(folder.path(), "here", 64 << 10);
    let there = Alone::empty(folder.path(), "there");
    let receiving = Receiving::tcp(&there);
    let relay = Relay::start(&receiving.place, at, then);
    let sent = send(&here, &relay.place);
    let arrived = receiving.ends();
    Broken { _folder: folder, here, there, sent, arrived }
}

#[test]
fn damage_on_the_way_leaves_the_source_running() {
    for kind in [FrameType::DEVICE_DATA, FrameType::DEVICE_END, FrameType::CHANNEL_END] {
        let Broken { _folder, here, there, sent, arrived } = broken(kind, Then::Corrupt);
        assert_eq!(sent.status, 1, "{kind:?}: {sent:?}");
        assert_eq!(arrived.0, 1, "{kind:?}: {arrived:?}");
        assert_eq!(here.state(), "RUNNING", "{kind:?}");
        // Fresh, and not half of another device.
        assert_eq!(there.holds()["crc32c"], empty(), "{kind:?}");
    }
}

/// The digest of a device that holds nothing.
fn empty() -> Value {
    let folder = stage::folder();
    Alone::empty(folder.path(), "empty").holds()["crc32c"].take()
}

#[test]
fn a_lost_commit_leaves_neither_device_running_and_both_say_doubt() {
    let Broken { _folder, here, there, sent, arrived } =
        broken(MessageKind::COMMIT, Then::CutBefore);
    assert_eq!(sent.status, 3, "{sent:?}");
    assert_eq!(sent.json()["outcome"], "in-doubt", "{sent:?}");
    assert_eq!(arrived.0, 3, "{arrived:?}");
    assert_eq!(arrived.1["outcome"], "in-doubt", "{arrived:?}");
    for device in [&here, &there] {
        assert!(["STOP", "STOP_COPY"].contains(&device.state().as_str()));
    }
    assert_eq!(here.holds(), there.holds());
    // The operator has looked, and decides.
    assert_eq!(run(&["start", &there.uri]).status, 0);
    assert_eq!(there.state(), "RUNNING");
    let before = there.holds();
    assert_eq!(run(&["start", &here.uri, "--reset"]).status, 0);
    assert_eq!(here.state(), "RUNNING");
    assert_ne!(here.holds(), before);
}

#[test]
fn a_lost_running_leaves_the_destination_running_and_the_source_in_doubt() {
    let Broken { _folder, here, there, sent, arrived } =
        broken(MessageKind::RUNNING, Then::CutBefore);
    assert_eq!(sent.status, 3, "{sent:?}");
    assert_eq!(arrived.0, 0, "{arrived:?}");
    assert_eq!(there.state(), "RUNNING");
    assert!(["STOP", "STOP_COPY"].contains(&here.state().as_str()));
}

/// Two commands, and a message between them that does not arrive.
struct Held {
    _folder: tempfile::TempDir,
    here: Alone,
    there: Alone,
    sending: Process,
    receiving: Receiving,
    _relay: Relay,
}

fn held(at: MessageKind) -> Held {
    let folder = stage::folder();
    let here = Alone::filled(folder.path(), "here", 64 << 10);
    let there = Alone::empty(folder.path(), "there");
    let receiving = Receiving::tcp(&there);
    let relay = Relay::start(&receiving.place, at, Then::Hold);
    let arguments = ["send", &here.uri, "--to", &relay.place, "--json"];
    let sending = Process::start(&arguments);
    relay.reached();
    Held { _folder: folder, here, there, sending, receiving, _relay: relay }
}

#[test]
fn a_receiver_killed_at_any_message_before_commit_leaves_the_source_running() {
    for kind in [
        MessageKind::HELLO,
        MessageKind::ACCEPT,
        MessageKind::SWITCHOVER_READY,
        MessageKind::PREPARED,
    ] {
        let mut scene = held(kind);
        scene.receiving.process.kill();
        let sent = ended(scene.sending);
        assert_eq!(sent.status, 1, "{kind:?}: {sent:?}");
        assert_eq!(scene.here.state(), "RUNNING", "{kind:?}");
        assert!(kind == MessageKind::HELLO || scene.there.state() != "RUNNING");
    }
}

#[test]
fn a_receiver_killed_after_commit_leaves_the_source_stopped() {
    let mut scene = held(MessageKind::RUNNING);
    scene.receiving.process.kill();
    let sent = ended(scene.sending);
    assert_eq!(sent.status, 3, "{sent:?}");
    assert!(["STOP", "STOP_COPY"].contains(&scene.here.state().as_str()));
    // Its server goes on without the command that started it.
    assert_eq!(scene.there.state(), "RUNNING");
}

#[test]
fn a_sender_killed_while_the_other_side_is_prepared_leaves_both_stopped() {
    for kind in [MessageKind::PREPARED, MessageKind::COMMIT] {
        let mut scene = held(kind);
        scene.sending.kill();
        let (status, arrival) = scene.receiving.ends();
        assert_eq!(status, 3, "{kind:?}: {arrival}");
        let error = arrival["error"].as_str().expect("a reason");
        assert!(error.contains("Look at the source"), "{error}");
        assert_eq!(scene.there.state(), "STOP", "{kind:?}");
        assert!(["STOP", "STOP_COPY"].contains(&scene.here.state().as_str()));
        assert_eq!(scene.here.holds(), scene.there.holds());
    }
}
