//! What a device writes is counted, drawn, and watched without leaving a trace.
#![allow(clippy::panic, reason = "a test's way to fail")]

mod stage;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use abi::pci::{config, region_index};
use control::Transport;
use models::accel::BAR0;
use models::accel::registers as reg;
use rustix::process::Signal;
use serde_json::Value;
use stage::{Guest, Machine, Process, Server, folder, run, serve};
use vfio_user::client::{Client, ClientOptions, NoDma};

/// A device server and what it is called.
fn served(folder: &Path, more: &[&str]) -> (Server, String) {
    let socket = folder.join("a.sock");
    let server = serve(&socket, more);
    (server, format!("vfio-user:{}", socket.display()))
}

fn objects(out: &str) -> Vec<Value> {
    let object = |line: &str| {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    };
    out.lines().map(object).collect()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// What can be read of a device without touching it: everything but its counters.
fn digest(device: &str) -> (Value, u64) {
    let probe = run(&["probe", device, "--digest", "--json"]);
    assert_eq!(probe.status, 0, "{probe:?}");
    let probe = probe.json();
    assert_eq!(probe["state"], "RUNNING", "{probe}");
    let counters = &probe["digest"]["counters"];
    (probe["digest"]["crc32c"].clone(), number(&counters["ring_sent"]))
}

/// What the ring is programmed to do, and the PCI command register.
fn programmed(device: &str) -> (Vec<[u8; 8]>, [u8; 2]) {
    let path = Path::new(device.trim_start_matches("vfio-user:"));
    let options = ClientOptions::new("test", Arc::new(NoDma));
    let client = Client::connect(path, options).expect("the server listens");
    let read = |at: u64| {
        let mut value = [0; 8];
        client.region_read(BAR0, reg::RING + at, &mut value).expect("a register");
        value
    };
    let ring = [
        reg::IOVA,
        reg::SLOTS,
        reg::RATE,
        reg::VECTOR,
        reg::BATCH,
        reg::CONTROL,
        reg::OWN_OFFSET,
        reg::OWN_SLOTS,
    ];
    let mut command = [0; 2];
    let at = config::COMMAND.into();
    client.region_read(region_index::CONFIG, at, &mut command).expect("config");
    (ring.map(read).to_vec(), command)
}

/// The names of elements that are open and not closed, of a text that is XML.
fn elements(svg: &str) -> Vec<String> {
    let (mut open, mut seen, mut rest) = (Vec::new(), Vec::new(), svg);
    while let Some((text, tag)) = rest.split_once('<') {
        assert!(!text.contains('>'), "{text}");
        let (tag, after) = tag.split_once('>').unwrap_or_else(|| panic!("open: {tag}"));
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name));
            continue;
        }
        seen.push(tag.to_owned());
        if !tag.ends_with('/') {
            open.push(tag.split(' ').next().unwrap_or_default().to_owned());
        }
    }
    assert!(open.is_empty(), "{open:?}");
    assert_eq!(rest.trim(), "");
    seen
}

#[test]
fn every_page_that_the_ring_wrote_is_counted_once_and_the_device_left_as_it_was() {
    let folder = folder();
    let (_server, device) = served(folder.path(), &[]);
    let (before, sent_before) = digest(&device);
    let program = programmed(&device);
    let picture = folder.path().join("heat.svg");
    // The ring cannot go round in an interval: 8 MiB in 1.2 s, of 64 MiB.
    let ended = run(&[
        "dirty",
        &device,
        "--json",
        "--interval",
        "100ms",
        "--duration",
        "1200ms",
        "--rate",
        "8M",
        "--iova",
        "0x40000000",
        "--picture",
        &picture.display().to_string(),
    ]);
    assert_eq!(ended.status, 0, "{ended:?}");
    let lines = objects(&ended.out);
    let (summary, lines) = lines.split_last().expect("a summary");
    let summary = &summary["summary"];
    let intervals: Vec<&Value> = lines.iter().map(|line| &line["interval"]).collect();
    assert_eq!(number(&summary["intervals"]), intervals.len() as u64);
    let pages: u64 = intervals.iter().map(|it| number(&it["pages"])).sum();
    let bytes: u64 = intervals.iter().map(|it| number(&it["bytes"])).sum();
    let wrote = &summary["made_to_write"];
    assert_eq!(wrote["errors"], 0, "{summary}");
    assert!(pages > 100, "{summary}");
    assert_eq!(pages, number(&wrote["blocks"]), "{summary}");
    assert_eq!((pages, bytes), (number(&summary["pages"]), pages * 4096));
    assert_eq!(number(&summary["ever_bytes"]), bytes, "{summary}");
    // One run an interval, each behind the one before.
    let mut next = 0x4000_0000;
    for interval in intervals.iter().filter(|it| number(&it["pages"]) > 0) {
        let hottest = &interval["hottest"];
        assert_eq!(number(&hottest[0]["iova"]), next, "{interval}");
        assert_eq!(hottest[0]["bytes"], interval["bytes"], "{interval}");
        next += number(&interval["bytes"]);
    }

    let svg = std::fs::read_to_string(&picture).expect("a picture");
    let elements = elements(&svg);
    let columns = |tag: &&String| tag.starts_with("g class=\"column\"");
    assert_eq!(elements.iter().filter(columns).count(), intervals.len());
    assert!(svg.contains(&device) && svg.contains("0x40000000"));

    // It has stopped, and nothing but its counters is different.
    let (after, sent) = digest(&device);
    assert_eq!((before, sent_before + pages), (after, sent));
    assert_eq!(digest(&device).1, sent, "it goes on");
    assert_eq!(programmed(&device), program);
}

#[test]
fn a_signal_stops_the_log_and_the_ring_and_still_says_what_was_seen() {
    let folder = folder();
    let (_server, device) = served(folder.path(), &[]);
    let picture = folder.path().join("heat.svg").display().to_string();
    let arguments = ["dirty", &device, "--duration", "24h", "--interval", "50ms"];
    let mut process =
        Process::start(&[&arguments[..], &["--picture", &picture, "--json"]].concat());
    let first = process.line();
    assert!(first.contains("interval"), "{first}");
    process.signal(Signal::INT);
    assert_eq!(process.wait(stage::LONGEST), Some(0), "{}", process.err());
    let last = objects(&process.out()).pop().expect("a summary");
    assert_eq!(last["summary"]["cut_short"], true, "{last}");
    elements(&std::fs::read_to_string(&picture).expect("a picture"));
    let (_, sent) = digest(&device);
    assert_eq!(digest(&device).1, sent, "it goes on");
    // A log that were on would refuse, and a ring that ran would not be started.
    let again = run(&["dirty", &device, "--duration", "100ms", "--interval", "50ms"]);
    assert_eq!(again.status, 0, "{again:?}");
    assert!(again.out.contains("it was made to write"), "{again:?}");
}

#[test]
fn a_device_that_is_stopped_is_refused_and_stays_so() {
    let folder = folder();
    let (_server, device) = served(folder.path(), &[]);
    let file = folder.path().join("a.vfm").display().to_string();
    assert_eq!(run(&["save", &device, "--output", &file, "--stop"]).status, 0);
    let picture = folder.path().join("heat.svg");
    let ended = run(&["dirty", &device, "--picture", &picture.display().to_string()]);
    assert_eq!(ended.status, 1, "{ended:?}");
    assert!(ended.err.contains("it is in STOP") && ended.err.contains("`start`"));
    assert!(!picture.exists());
    let probe = run(&["probe", &device, "--json"]);
    assert_eq!(probe.json()["state"], "STOP");
}

#[test]
fn a_device_that_nobody_makes_write_is_not_said_to_write() {
    let folder = folder();
    let socket = folder.path().join("a.sock").display().to_string();
    let mut server = Process::start(&["serve", "--model", "uart", "--socket", &socket]);
    assert!(server.line().contains("served"));
    let device = format!("vfio-user:{socket}");
    let arguments = ["dirty", &device, "--duration", "40ms", "--interval", "20ms"];
    for more in [&[][..], &["--watch-only"]] {
        let ended = run(&[&arguments[..], more].concat());
        assert_eq!(ended.status, 0, "{ended:?}");
        assert!(ended.out.contains("nobody is known to make it write"), "{ended:?}");
    }
}

#[test]
fn a_device_that_somebody_has_programmed_is_not_programmed_again() {
    let folder = folder();
    let mut guest = Guest::run(folder.path(), &Machine::default());
    assert!(guest.works());
    // As after a crash: nobody has stopped the ring.
    guest.process.kill();
    let device = format!("vfio-user:{}", folder.path().join("here0.sock").display());
    let arguments = ["dirty", &device, "--duration", "1s", "--json"];
    for (more, writes) in [(&[][..], true), (&["--watch-only"], false)] {
        let ended = run(&[&arguments[..], more].concat());
        assert_eq!(ended.status, 0, "{ended:?}");
        let summary = &ended.json()["summary"];
        assert_eq!(summary["made_to_write"], Value::Null, "{summary}");
        // Where it was told to write there is memory again, or none.
        assert_eq!(number(&summary["pages"]) > 0, writes, "{summary}");
        assert_eq!(summary["programmed_before"], writes, "{summary}");
    }
}

#[test]
fn a_server_that_dies_takes_what_was_seen_along_or_leaves_half_a_picture() {
    let folder = folder();
    let (mut server, device) = served(folder.path(), &[]);
    let picture = folder.path().join("heat.svg");
    let shown = picture.display().to_string();
    let arguments = ["dirty", &device, "--duration", "1h", "--interval", "50ms"];
    let mut process = Process::start(&[&arguments[..], &["--picture", &shown]].concat());
    assert!(process.line().contains("pages"));
    server.process.kill();
    assert_eq!(process.wait(stage::LONGEST), Some(1), "{}", process.err());
    let why = process.err();
    for words in ["the device is gone", "cannot be watched any more", &shown] {
        assert!(why.contains(words), "{why}");
    }
    let svg = std::fs::read_to_string(&picture).expect("a picture");
    assert!(elements(&svg).iter().any(|tag| tag.contains("class=\"column\"")));
    assert!(svg.contains("until it could not be watched any more"));
    let mut left: Vec<_> = std::fs::read_dir(folder.path())
        .expect("the folder")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    left.sort();
    assert_eq!(left, ["a.sock", "heat.svg"]);
}

#[test]
fn a_picture_that_is_lost_with_its_device_is_not_spoken_of() {
    let folder = folder();
    let (mut server, device) = served(folder.path(), &[]);
    let pictures = folder.path().join("pictures");
    std::fs::create_dir(&pictures).expect("a folder");
    let shown = pictures.join("heat.svg").display().to_string();
    let arguments = ["dirty", &device, "--duration", "1h", "--interval", "50ms"];
    let mut process = Process::start(&[&arguments[..], &["--picture", &shown]].concat());
    assert!(process.line().contains("pages"));
    std::fs::remove_dir_all(&pictures).expect("it goes");
    server.process.kill();
    assert_eq!(process.wait(stage::LONGEST), Some(1), "{}", process.err());
    let why = process.err();
    for words in ["the device is gone", "cannot be watched any more, nor its picture"] {
        assert!(why.contains(words), "{why}");
    }
}

#[test]
fn a_picture_whose_name_is_no_text_ends_the_watch_in_a_panic() {
    let folder = folder();
    let (_server, device) = served(folder.path(), &[]);
    let picture = folder.path().join(OsStr::from_bytes(b"heat\xff.svg"));
    let watch = ["dirty", &device, "--duration", "40ms", "--interval", "20ms", "--json"];
    let mut watch: Vec<&OsStr> = watch.map(OsStr::new).to_vec();
    watch.extend([OsStr::new("--picture"), picture.as_os_str()]);
    let ended = run(&watch);
    assert_eq!(ended.status, 0, "{ended:?}");
    let summary = ended.json();
    let named = summary["summary"]["picture"].as_str().expect("a name");
    assert!(named.ends_with("heat\u{fffd}.svg"), "{named}");
    assert!(picture.exists());
}

/// In every generation: the log is not part of any.
#[test]
fn a_device_with_a_migration_region_is_watched_too() {
    for generation in ["v1", "rfc2018"] {
        let folder = folder();
        let (_server, device) = served(folder.path(), &["--generation", generation]);
        let arguments = ["dirty", &device, "--duration", "60ms", "--interval", "20ms"];
        let ended = run(&[&arguments[..], &["--json"]].concat());
        assert_eq!(ended.status, 0, "{ended:?}");
        let summary = &ended.json()["summary"];
        assert_eq!(summary["pages"], summary["made_to_write"]["blocks"], "{summary}");
    }
}

#[test]
fn nonsense_is_refused_before_any_device_is_looked_for() {
    for (more, says) in [
        (&["--interval", "2s", "--duration", "1s"][..], "no interval would end"),
        (&["--picture", "-"], "name a file"),
        (&["--iova", "0xfffffffffffff000"], "past the address space"),
    ] {
        let ended = run(&[&["dirty", "vfio-user:/nowhere"], more].concat());
        assert_eq!(ended.status, 2, "{ended:?}");
        assert!(ended.err.contains(says), "{ended:?}");
    }
    let ended = run(&["dirty", "vfio-user:/nowhere"]);
    assert_eq!(ended.status, 1, "{ended:?}");
}

#[test]
fn a_picture_that_finds_no_room_takes_what_was_counted_along() {
    let folder = folder();
    let (_server, device) = served(folder.path(), &[]);
    let command = ["dirty", &device, "--interval", "100ms", "--duration", "200ms"];
    let full = ["--picture", "/dev/full", "--json"];
    let said = run(&[&command[..], &full[..]].concat());
    assert_eq!(said.status, 1, "{said:?}");
    let objects = objects(&said.out);
    let summary = objects.iter().find_map(|object| object.get("summary"));
    let summary = summary.unwrap_or_else(|| panic!("no summary: {said:?}"));
    assert!(number(&summary["pages"]) > 0, "{summary}");
    assert!(summary["picture"].is_null(), "{summary}");
    let error = &objects.last().expect("an end")["error"]["text"];
    let error = error.as_str().unwrap_or_else(|| panic!("no error: {said:?}"));
    assert!(error.contains("picture") && error.contains("No space left"), "{error}");
}
