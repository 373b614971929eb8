//! `decode` as people use it: on whole streams, damaged ones, and what is no stream.

mod stage;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::Value;
use stage::{Ended, LONGEST, folder, run};
use wire::device::{DeviceBegin, DeviceData, DeviceEnd, Phase};
use wire::memory::{RunKind, RunTable};
use wire::message::{Bus, DeviceIdentity, Generation, Model, PciIds};
use wire::preamble::{
    Architecture, ByteOrder, Features, MigrationId, PageSize, Preamble, Role,
};
use wire::{Crc, Encoder, Header};

fn golden(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wire/tests/golden/v1");
    fs::read(folder.join(name).with_extension("bin")).expect("a golden file")
}

/// The frames of the golden data stream, in the order in which they were sent.
const FRAMES: [&str; 12] = [
    "memory-runs",
    "round-end-frame",
    "device-begin",
    "device-data",
    "device-data-transaction",
    "device-end",
    "config",
    "interrupts",
    "section-begin",
    "section-data",
    "unknown",
    "channel-end",
];

/// What version 1 wrote, as one stream, and where its frames begin.
fn golden_stream() -> (Vec<u8>, Vec<usize>) {
    let mut stream = golden("preamble-data");
    let mut places = Vec::new();
    for name in FRAMES {
        places.push(stream.len());
        stream.extend(golden(&format!("frame-{name}")));
    }
    (stream, places)
}

fn preamble() -> Vec<u8> {
    let preamble = Preamble {
        byte_order: ByteOrder::LITTLE,
        architecture: Architecture::X86_64,
        page_size: PageSize::KIB_4,
        required: Features::NONE,
        optional: Features::NONE,
        migration: MigrationId([9; 16]),
        role: Role::File,
    };
    preamble.encode().to_vec()
}

/// A file with a device of `pieces` pieces of 1000 bytes.
fn file(pieces: usize) -> Vec<u8> {
    let mut encoder = Encoder::new(Role::File);
    let mut bytes = preamble();
    let identity = DeviceIdentity {
        slot: "accel0".into(),
        bus: Bus::PCI,
        pci: Some(PciIds {
            vendor: 0x1af4,
            device: 0x10f0,
            subsystem_vendor: 0,
            subsystem: 0,
            class: 0x12_00_00,
            revision: 1,
        }),
        generation: Generation::V2,
        capabilities: 7,
        model: Some(Model { name: "accel".into(), data_version: 1 }),
        stop_copy_bytes: None,
        layout: None,
    };
    let begin = DeviceBegin { device: 0, attempt: 0, identity, expected_bytes: None };
    bytes.extend(encoder.device_begin(&begin).expect("a begin"));
    let (piece, mut crc) = ([0xa5; 1000], Crc::new());
    for n in 0..pieces {
        let phase = if n < pieces / 2 { Phase::PreCopy } else { Phase::StopCopy };
        let offset = (n * piece.len()) as u64;
        let data = DeviceData {
            device: 0,
            phase,
            offset,
            ends_transaction: false,
            bytes: &piece,
        };
        bytes.extend(encoder.device_data(&data).expect("a piece"));
        bytes.extend(piece);
        crc.add(&piece);
    }
    let length = (pieces * piece.len()) as u64;
    let end = DeviceEnd { device: 0, length, crc: crc.value() };
    bytes.extend(encoder.device_end(&end).expect("an end"));
    bytes.extend(encoder.channel_end().expect("an end"));
    bytes
}

fn written(folder: &tempfile::TempDir, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join("a.vfm");
    fs::write(&path, bytes).expect("written");
    path
}

fn decode(bytes: &[u8], more: &[&str]) -> Ended {
    let folder = folder();
    let path = written(&folder, bytes);
    let mut arguments = vec!["decode", path.to_str().expect("text")];
    arguments.extend(more);
    run(&arguments)
}

/// The objects on standard output.
fn objects(ended: &Ended) -> Vec<Value> {
    let lines = ended.out.lines();
    lines.map(|line| serde_json::from_str(line).expect("a JSON object")).collect()
}

/// With both ends of the pipes in the test's hands.
fn piped(more: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_vfio-migrate"))
        .args(["decode", "-"])
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts")
}

/// Waits for its end, which comes in time or not at all.
fn ended(mut child: Child) -> (Option<i32>, String) {
    let (done, waited) = std::sync::mpsc::channel();
    let pid = rustix::process::Pid::from_child(&child);
    let killer = std::thread::spawn(move || {
        if waited.recv_timeout(LONGEST).is_err() {
            // The child is not waited for yet, so the id is still its own.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    });
    let mut error = String::new();
    let _ = child.stderr.take().expect("piped").read_to_string(&mut error);
    let _ = done.send(());
    killer.join().expect("a thread");
    (child.wait().expect("a status").code(), error)
}

#[test]
fn what_version_1_wrote_is_shown_frame_by_frame() {
    let (stream, places) = golden_stream();
    let text = decode(&stream, &[]);
    assert_eq!((text.status, &text.err[..]), (0, ""), "{}", text.out);
    assert!(text.out.ends_with("verdict   whole\n"), "{}", text.out);
    let kinds = [
        "MEMORY_RUNS",
        "ROUND_END",
        "DEVICE_BEGIN",
        "DEVICE_DATA",
        "DEVICE_DATA",
        "DEVICE_END",
        "CONFIG",
        "INTERRUPTS",
        "SECTION_BEGIN",
        "SECTION_DATA",
        "0x7777",
        "CHANNEL_END",
    ];
    for (sequence, (place, kind)) in places.iter().zip(kinds).enumerate() {
        let start =
            [&place.to_string(), &format!("{place:#x}"), &sequence.to_string(), kind]
                .map(ToString::to_string);
        let found = text.out.lines().any(|line| {
            line.split_whitespace().take(4).map(str::to_owned).eq(start.iter().cloned())
        });
        assert!(found, "{start:?} in {}", text.out);
    }
    for said in [
        "data connection 3 of version 1, x86_64, little-endian, pages of 4096 bytes",
        "3 runs: 3 pages with 12288 bytes, 300 of zeros, from 0x1000 on",
        "device 1 begins: accel0, pci 1af4:10f0, v2, set 7, model accel, data version 1",
        "stop-copy: 42 bytes at 42, the end of a transaction",
        "section 1 begins: timer, version 4, loaded after the devices",
    ] {
        assert!(text.out.contains(said), "{said} in {}", text.out);
    }

    let json = decode(&stream, &["--json"]);
    assert_eq!((json.status, &json.err[..]), (0, ""));
    let objects = objects(&json);
    assert_eq!(objects.len(), 2 + FRAMES.len());
    assert_eq!(objects[0]["preamble"]["role"], "data");
    let mut next = Preamble::SIZE as u64;
    for object in &objects[1..=FRAMES.len()] {
        let frame = &object["frame"];
        assert_eq!(frame["offset"], next, "{frame}");
        next += Header::SIZE as u64 + frame["length"].as_u64().expect("a length");
    }
    let summary = &objects[objects.len() - 1]["summary"];
    assert_eq!(summary["verdict"], "whole");
    assert_eq!(
        (&summary["bytes"], next),
        (&Value::from(stream.len()), stream.len() as u64)
    );
    assert_eq!(summary["devices"][0]["state"], "whole");
}

#[test]
fn every_message_that_version_1_wrote_is_shown() {
    let messages = [
        ("hello", "Hello: vfio-migrate 0.1.0, running, 2 devices, 2 sections"),
        ("hello-bare", "Hello: , paused, 0 devices"),
        ("accept", "Accept: 2 devices"),
        ("refuse", "Refuse: 2 reasons"),
        ("round-applied", "RoundApplied: round 3"),
        ("run-state", "RunState: paused"),
        ("switchover-request", "SwitchoverRequest"),
        ("switchover-ready", "SwitchoverReady"),
        ("not-ready", "NotReady: accel0 has initial data left"),
        ("prepared", "Prepared: 1 device"),
        ("commit", "Commit"),
        ("running", "Running: 1 device, the vCPUs ran 900 µs after Commit"),
        ("returned", "Returned"),
        ("not-started", "NotStarted: device 1: EIO in RUNNING"),
        ("abort", "Abort: cancelled: by the operator"),
        ("failed", "Failed: failure code 77: a later failure"),
    ];
    for (name, said) in messages {
        let message = golden(&format!("message-{name}"));
        let stream = [golden("preamble-control"), message].concat();
        let text = decode(&stream, &[]);
        assert_eq!(text.status, 0, "{name}: {}", text.err);
        assert!(text.out.contains(said), "{said} in {}", text.out);
        let json = objects(&decode(&stream, &["--json"]));
        let kind = said.split(':').next().expect("a kind");
        assert_eq!(json[1]["frame"]["content"]["message"], kind);
    }
}

#[test]
fn a_token_is_not_told() {
    let stream = [golden("preamble-control"), golden("message-accept")].concat();
    for more in [&[][..], &["-v"], &["--json", "-v"]] {
        let said = decode(&stream, more).out;
        for token in ["8 bytes!", "3820627974657321", "token"] {
            assert!(!said.contains(token), "{said}");
        }
    }
}

#[test]
fn a_stream_that_is_cut_off_says_where() {
    let (stream, places) = golden_stream();
    let whole = file(3);
    for (stream, length) in [
        (&stream, 1),
        (&stream, 63),
        (&stream, 64),
        (&stream, 70),
        (&stream, 13_000),
        (&stream, places[11]),
        (&stream, stream.len() - 1),
        (&whole, 1000),
    ] {
        let mut child = piped(&["--json"]);
        let mut input = child.stdin.take().expect("piped");
        input.write_all(&stream[..length]).expect("taken");
        drop(input);
        let mut said = String::new();
        let mut output = child.stdout.take().expect("piped");
        output.read_to_string(&mut said).expect("text");
        let (status, error) = ended(child);
        assert_eq!(status, Some(1), "{length}: {error}");
        let place = format!("standard input is damaged at byte {length}: ");
        assert!(error.starts_with(&format!("vfio-migrate: {place}")), "{error}");
        let objects: Vec<Value> =
            said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let [.., summary, last] = &objects[..] else { panic!("{said}") };
        assert_eq!(summary["summary"]["verdict"], "damaged");
        assert_eq!(summary["summary"]["first_damage"]["offset"], length);
        assert_eq!(last["error"]["code"], "damaged");
    }
}

#[test]
fn a_damaged_frame_is_named_and_those_behind_it_are_shown() {
    let (stream, places) = golden_stream();
    for (n, place) in places.iter().enumerate() {
        let mut damaged = stream.clone();
        damaged[place + Header::SIZE] ^= 1;
        let text = decode(&damaged, &[]);
        assert_eq!(text.status, 1, "{n}: {}", text.out);
        let said = format!("verdict   damaged at byte {place} ({place:#x}): ");
        assert!(text.out.contains(&said), "{n}: {}", text.out);
        assert!(text.err.contains(&format!("damaged at byte {place}: ")), "{}", text.err);
        assert!(text.out.contains("! damaged: "), "{}", text.out);
        let json = objects(&decode(&damaged, &["--json"]));
        let frames = json.iter().filter_map(|object| object.get("frame"));
        assert_eq!(frames.count(), FRAMES.len(), "{n}");
        let damage = &json[1 + n]["frame"]["damage"];
        assert_eq!(damage["goes_on"], true);
        assert_eq!(damage["offset"], *place);
    }
}

#[test]
fn a_length_that_cannot_be_is_where_it_stops() {
    let (mut stream, places) = golden_stream();
    stream[places[3] + 19] = 0xff;
    let text = decode(&stream, &[]);
    assert_eq!(text.status, 1);
    assert!(text.out.contains("the walk stops here"), "{}", text.out);
    assert!(text.out.contains("over the ceiling of 1048592"), "{}", text.out);
    assert!(text.out.contains("unread"), "{}", text.out);
    let json = objects(&decode(&stream, &["--json"]));
    let stopped = json.iter().find_map(|object| object.get("stopped")).expect("a stop");
    assert_eq!(stopped["offset"], places[3]);
    assert_eq!(stopped["goes_on"], false);
}

#[test]
fn a_summary_has_one_line_for_a_device_s_frames() {
    let bytes = file(500);
    let every = decode(&bytes, &[]);
    assert!(every.out.lines().count() > 500);
    let text = decode(&bytes, &["--summary"]);
    assert_eq!(text.status, 0, "{}", text.err);
    let said = "device 0, pre-copy: 250 frames, 250000 bytes from 0 on";
    assert!(text.out.contains(said), "{}", text.out);
    let said = "device 0, stop-copy: 250 frames, 250000 bytes from 250000 on";
    assert!(text.out.contains(said), "{}", text.out);
    assert!(text.out.lines().count() < 15, "{}", text.out);
    let json = objects(&decode(&bytes, &["--summary", "--json"]));
    assert_eq!(json[2]["frames"]["count"], 250);
    assert_eq!(json[2]["frames"]["bytes"], 250_000);

    // A damaged frame stands alone, at its place.
    let mut damaged = bytes.clone();
    let begin = Header::decode(bytes[64..88].first_chunk().expect("24 bytes"));
    let second = 64 + 24 + begin.length as usize + 24 + 1016;
    damaged[second + 100] ^= 1;
    let text = decode(&damaged, &["--summary"]);
    let said = format!("verdict   damaged at byte {second} ");
    assert!(text.out.contains(&said), "{}", text.out);
    assert!(text.out.contains("DEVICE_DATA number 2 has checksum"), "{}", text.out);
}

#[test]
fn verbose_shows_every_run_of_memory() {
    let mut table = RunTable::new(PageSize::KIB_4);
    for n in 0..9u64 {
        table.push(n << 20, 3, RunKind::Zero).expect("a run");
    }
    let mut encoder = Encoder::new(Role::File);
    let header = encoder.memory(&table, &[]).expect("a frame");
    let bytes = [
        &preamble()[..],
        &header,
        table.prefix(),
        &encoder.channel_end().expect("an end"),
    ]
    .concat();
    let plain = decode(&bytes, &[]).out;
    assert!(plain.contains("9 runs: 0 pages with 0 bytes, 27 of zeros"), "{plain}");
    assert!(!plain.contains("0x800000: 3 pages, zero"), "{plain}");
    let verbose = decode(&bytes, &["-v"]).out;
    assert!(verbose.contains("0x800000: 3 pages, zero"), "{verbose}");
    let json = objects(&decode(&bytes, &["-v", "--json"]));
    assert_eq!(json[1]["frame"]["content"]["list"][8]["address"], 8 << 20);
}

#[test]
fn what_is_no_stream_is_refused_by_name() {
    let folder = folder();
    let refused = |path: &Path, word: &str| {
        let path = path.to_str().expect("text");
        let text = run(&["decode", path]);
        assert_eq!((text.status, &text.out[..]), (1, ""), "{path}");
        assert!(text.err.contains(path) && text.err.contains(word), "{}", text.err);
        let json = run(&["decode", path, "--json"]).json();
        assert_eq!(json["error"]["code"], "failed", "{json}");
    };
    let script = folder.path().join("script");
    fs::write(&script, "#!/bin/sh\necho\n").expect("written");
    refused(&script, "it starts with 23 21 2f 62 69 6e");
    fs::write(&script, vec![0; 100_000]).expect("written");
    refused(&script, "is not a vfio-migrate stream");
    let empty = folder.path().join("empty");
    fs::write(&empty, "").expect("written");
    refused(&empty, "is empty");
    refused(folder.path(), "is a directory");
    refused(&folder.path().join("missing"), "there is no file");

    // One of a later version is not damaged.
    let mut later = preamble();
    later[8] = 2;
    let crc = Crc::of(&later[..60]).value();
    later[60..].copy_from_slice(&crc.to_le_bytes());
    fs::write(&script, later).expect("written");
    refused(&script, "container version 2, this side reads 1");
}

#[test]
fn a_file_that_may_not_be_read_is_not_called_missing() {
    use std::os::unix::process::CommandExt;
    let folder = folder();
    let path = written(&folder, &file(1));
    let set = |path: &Path, mode| {
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(path, mode).expect("changed");
    };
    set(folder.path(), 0o755);
    set(&path, 0o000);
    // Root may read everything: somebody else has to try, with a copy of the command
    // that is in reach.
    let command = folder.path().join("vfio-migrate");
    fs::copy(env!("CARGO_BIN_EXE_vfio-migrate"), &command).expect("copied");
    set(&command, 0o755);
    let mut somebody = Command::new(&command);
    if rustix::process::geteuid().is_root() {
        somebody.uid(65_534).gid(65_534);
    }
    let output = somebody.arg("decode").arg(&path).output().expect("it runs");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("may not be read by this user"), "{error}");
    assert!(error.contains(path.to_str().expect("text")), "{error}");
}

#[test]
fn a_reader_that_goes_away_ends_it_without_a_word() {
    let bytes = file(3000);
    for more in [&[][..], &["--json"]] {
        let mut child = piped(more);
        let mut input = child.stdin.take().expect("piped");
        let mut output = child.stdout.take().expect("piped");
        // As `head -1` would: what was read is enough.
        input.write_all(&bytes[..1000]).expect("taken");
        let mut byte = [0];
        output.read_exact(&mut byte).expect("a first line");
        drop(output);
        // More comes, but no end: it has to end by itself.
        let begun = Instant::now();
        while input.write_all(&bytes[1000..]).is_ok() {
            assert!(begun.elapsed() < LONGEST, "it goes on reading");
        }
        let (status, error) = ended(child);
        assert_ne!(status, None, "it was killed");
        assert!(error.is_empty() || status == Some(1), "{status:?}: {error}");
    }
}

#[test]
fn a_reader_of_three_lines_gets_three_lines_of_a_whole_file() {
    let folder = folder();
    let path = written(&folder, &file(20_000));
    let mut child = Command::new(env!("CARGO_BIN_EXE_vfio-migrate"))
        .arg("decode")
        .arg(&path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let mut output = child.stdout.take().expect("piped");
    output.read_exact(&mut [0; 300]).expect("some lines");
    drop(output);
    assert_eq!(ended(child), (Some(0), String::new()));
}

#[test]
fn a_full_disk_under_the_output_is_no_success() {
    let folder = folder();
    let path = written(&folder, &file(3));
    let full = fs::File::options().write(true).open("/dev/full").expect("a full disk");
    let output = Command::new(env!("CARGO_BIN_EXE_vfio-migrate"))
        .arg("decode")
        .arg(&path)
        .stdout(full)
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("cannot write to standard output"), "{error}");
}

#[test]
fn a_graph_is_shown_as_the_library_draws_it() {
    for capabilities in states::v2::Capabilities::EVERY {
        let set = capabilities.to_string();
        let graph = run(&["states", "--capabilities", &set, "--format", "dot"]);
        let expected = states::chart::dot(capabilities);
        assert_eq!((graph.status, graph.out), (0, expected));
    }
}
