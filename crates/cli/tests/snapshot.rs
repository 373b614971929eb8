//! A guest saved in a file and run from one, by the command.

mod stage;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit};
use serde_json::json;
use stage::{Ended, Guest, LONGEST, Machine, Process};

const TWO: Machine<'static> =
    Machine { memory: "32M", devices: 2, device: &[], more: &[] };

fn snapshot(guest: &Guest, file: &Path, more: &[&str]) -> Ended {
    let mut command = vec!["snapshot", text(file)];
    command.extend(more);
    guest.ctl(&command)
}

fn text(file: &Path) -> &str {
    file.to_str().expect("text")
}

/// A guest from a file, with devices of its own.
fn run_from(folder: &Path, file: &Path, machine: &Machine<'_>, more: &[&str]) -> Guest {
    let mut all = vec!["--from", text(file)];
    all.extend(more);
    Guest::run(folder, &Machine { more: &all, ..*machine })
}

/// Everything that can be known of the guest is as it should be.
fn sound(guest: &Guest) {
    let json = guest.ctl(&["freeze"]).json();
    assert_eq!(json["frozen"], true, "{json}");
    assert_eq!(json["problems"], json!([]), "{json}");
}

/// A guest that ran, and its file.
fn saved(folder: &Path, more: &[&str]) -> (Guest, PathBuf) {
    let guest = Guest::run(folder, &TWO);
    assert!(guest.works());
    let file = folder.join("guest.vfm");
    let ended = snapshot(&guest, &file, more);
    assert_eq!(ended.status, 0, "{ended:?}");
    (guest, file)
}

#[test]
fn a_guest_goes_on_after_its_snapshot_and_runs_from_it_elsewhere() {
    let (near, far) = (stage::folder(), stage::folder());
    let here = Guest::run(near.path(), &TWO);
    assert!(here.works());
    let file = near.path().join("guest.vfm");
    let ended = snapshot(&here, &file, &[]);
    assert_eq!(ended.status, 0, "{ended:?}");
    let report = ended.json();
    assert_eq!(report["outcome"], "completed", "{report}");
    assert_eq!(report["left"], "running");
    assert_eq!(report["file_bytes"], fs::metadata(&file).expect("a file").len());
    let phases = report["stopped"].as_array().expect("phases");
    let micros = |ms: &serde_json::Value| (ms.as_f64().expect("ms") * 1e3).round() as u64;
    let sum: u64 = phases.iter().map(|phase| micros(&phase["ms"])).sum();
    assert_eq!(sum, micros(&report["stopped_ms"]), "{report}");
    assert_eq!(report["devices"].as_array().map(Vec::len), Some(2));
    assert_eq!(here.state(), "running");
    assert!(here.works());
    // It is not written over, unless somebody says so.
    let ended = snapshot(&here, &file, &[]);
    assert_eq!(ended.status, 1, "{ended:?}");
    assert!(ended.err.contains("--replace"), "{ended:?}");
    assert_eq!(snapshot(&here, &file, &["--replace"]).status, 0);
    let shown = stage::run(&["decode", text(&file), "--json"]);
    assert_eq!(shown.status, 0, "{shown:?}");
    sound(&here);

    let there = run_from(far.path(), &file, &TWO, &[]);
    assert_eq!(there.ready["ready"]["guest"], "running");
    assert!(there.works());
    sound(&there);
}

#[test]
fn a_suspended_guest_runs_on_from_its_file_alone() {
    let (near, far) = (stage::folder(), stage::folder());
    let (mut here, file) = saved(near.path(), &["--stop"]);
    assert_eq!(here.state(), "paused");
    let pages = here.pages();
    assert_eq!(here.ctl(&["quit"]).status, 0);
    assert_eq!(here.process.wait(LONGEST), Some(0));
    drop(here);
    let there = run_from(far.path(), &file, &TWO, &["--paused"]);
    assert_eq!(there.ready["ready"]["guest"], "paused");
    assert_eq!(there.state(), "paused");
    assert_eq!(there.pages(), pages, "it is where it was stopped");
    assert_eq!(there.ctl(&["resume"]).status, 0);
    assert!(there.works());
    sound(&there);
}

#[test]
fn a_guest_from_a_file_can_be_saved_and_moved_again() {
    let (near, far, farther) = (stage::folder(), stage::folder(), stage::folder());
    let (_here, file) = saved(near.path(), &["--stop"]);
    let there = run_from(far.path(), &file, &TWO, &[]);
    assert!(there.works());
    let second = far.path().join("second.vfm");
    assert_eq!(snapshot(&there, &second, &[]).status, 0);
    let last = Guest::receive(farther.path(), &TWO);
    let moved = there.ctl(&["migrate", "--to", last.place(), "--downtime-limit", "3000"]);
    assert_eq!(moved.status, 0, "{moved:?}");
    assert!(last.works());
    sound(&last);
}

#[test]
fn a_file_that_does_not_fit_runs_nothing_and_says_what_to_give() {
    let near = stage::folder();
    let (_here, file) = saved(near.path(), &["--stop"]);
    let far = stage::folder();
    let sockets = ["a.sock", "b.sock"].map(|name| far.path().join(name));
    let servers = sockets.each_ref().map(|at| stage::serve(at, &["--memory", "16M"]));
    let [device, other] = sockets.map(|at| format!("vfio-user:{}", at.display()));
    let control = far.path().join("ctl");
    let refused = |arguments: &[&str], words: &[&str]| {
        let mut all = vec!["guest", "run", "--control", text(&control)];
        all.extend(arguments);
        let ended = stage::run(&all);
        assert_eq!(ended.status, 1, "{ended:?}");
        for word in words {
            assert!(ended.err.contains(word), "{word}: {ended:?}");
        }
        assert!(!control.exists(), "the control socket stays");
    };
    let two = ["--device", &device, "--device", &other];
    let whole = ["--from", text(&file), "--memory", "32M"];
    refused(&[&whole[..2], &["--memory", "64M"], &two].concat(), &["same memory"]);
    refused(&[&whole[..], &two[..2]].concat(), &["2 devices", "--device"]);

    let damaged = near.path().join("damaged.vfm");
    let mut bytes = fs::read(&file).expect("the file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, &bytes).expect("a file");
    let from = ["--from", text(&damaged), "--memory", "32M"];
    refused(&[&from[..], &two].concat(), &["damaged at byte"]);
    fs::write(&damaged, &bytes[..middle]).expect("a file");
    refused(&[&from[..], &two].concat(), &["damaged.vfm"]);

    let alone = near.path().join("alone.vfm");
    let ended = stage::run(&["save", &device, "--output", text(&alone)]);
    assert_eq!(ended.status, 0, "{ended:?}");
    let from = ["--from", text(&alone), "--memory", "32M"];
    refused(&[&from[..], &two].concat(), &["vfio-migrate restore"]);
    let ended = stage::run(&["restore", &device, "--input", text(&file)]);
    assert_eq!(ended.status, 1, "{ended:?}");
    assert!(ended.err.contains("run the guest from it"), "{ended:?}");
    drop(servers);
}

#[test]
fn a_full_disk_and_a_place_that_cannot_be_leave_the_guest_running() {
    let folder = stage::folder();
    let here = Guest::run(folder.path(), &TWO);
    for more in [&[][..], &["--stop"]] {
        let ended = snapshot(&here, Path::new("/dev/full"), more);
        assert_eq!(ended.status, 1, "{ended:?}");
        let report = ended.json();
        assert_eq!(report["outcome"], "failed", "{report}");
        assert!(report["file_bytes"].is_null(), "{report}");
        assert!(ended.err.contains("/dev/full"), "{ended:?}");
        assert_eq!(here.state(), "running");
        assert!(here.works());
    }
    let nowhere = folder.path().join("missing/guest.vfm");
    let ended = snapshot(&here, &nowhere, &[]);
    assert_eq!(ended.status, 1, "{ended:?}");
    let ended = snapshot(&here, Path::new("-"), &[]);
    assert_eq!(ended.status, 2, "{ended:?}");
    // The guest's process is told of the file by a text, which this cannot be.
    let ctl = ["guest", "ctl", text(&here.control), "snapshot"].map(OsStr::new);
    let name = OsStr::from_bytes(b"guest\xff.vfm");
    let ended = stage::run(&[&ctl[..], &[name]].concat());
    assert_eq!(ended.status, 2, "{ended:?}");
    assert!(ended.err.contains("not UTF-8: name another file"), "{ended:?}");
    assert!(here.works());
    sound(&here);
}

#[test]
fn a_snapshot_that_is_cancelled_lets_the_guest_run_on() {
    let folder = stage::folder();
    let here = Guest::run(folder.path(), &TWO);
    for by_signal in [false, true] {
        // Somebody who reads a little of it, and then no more.
        let pipe = pipe(folder.path(), &format!("pipe{by_signal}"));
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let reading = pipe.clone();
        let reader = thread::spawn(move || {
            let mut file = File::open(reading).expect("the pipe");
            assert!(file.read(&mut [0; 4096]).expect("the beginning") > 0);
            let _ = held.recv();
        });
        let control = text(&here.control);
        let arguments = ["guest", "ctl", control, "snapshot", text(&pipe), "--json"];
        let mut under_way = Process::start(&arguments);
        // More than a pipe holds is on its way.
        under_way.notes("memory");
        assert_eq!(here.state(), "copying");
        let refused = here.ctl(&["pause"]);
        assert_eq!(refused.status, 1, "{refused:?}");
        if by_signal {
            under_way.signal(rustix::process::Signal::INT);
        } else {
            assert_eq!(here.ctl(&["cancel"]).status, 0);
        }
        assert_eq!(under_way.wait(LONGEST), Some(1));
        let report: serde_json::Value =
            serde_json::from_str(under_way.out().trim()).expect("a report");
        assert_eq!(report["outcome"], "cancelled", "{report}");
        drop(hold);
        reader.join().expect("the reader");
        here.becomes("running");
        assert!(here.works());
    }
    sound(&here);
}

#[test]
fn a_limit_on_the_length_of_files_does_not_end_the_guest() {
    let folder = stage::folder();
    let here = Guest::run(folder.path(), &TWO);
    assert!(here.works());
    let pid = i32::try_from(here.process.pid()).expect("a pid");
    let pid = rustix::process::Pid::from_raw(pid);
    let limit = |bytes| {
        let limit = Rlimit { current: bytes, maximum: None };
        rustix::process::prlimit(pid, Resource::Fsize, limit).expect("a limit");
    };
    let file = folder.path().join("guest.vfm");
    limit(Some(1 << 20));
    for more in [&[][..], &["--stop"]] {
        let ended = snapshot(&here, &file, more);
        assert_eq!(ended.status, 1, "{ended:?}");
        assert!(ended.err.contains("no room for it"), "{ended:?}");
        assert!(!file.exists());
        assert_eq!(here.state(), "running");
        assert!(here.works());
    }
    limit(None);
    assert_eq!(snapshot(&here, &file, &[]).status, 0);
    sound(&here);
}

#[test]
fn a_snapshot_that_waits_for_a_reader_is_cancelled_at_once() {
    let folder = stage::folder();
    let here = Guest::run(folder.path(), &TWO);
    let pipe = pipe(folder.path(), "pipe");
    let (control, pipe) = (text(&here.control), text(&pipe));
    let mut waiting = Process::start(&["guest", "ctl", control, "snapshot", pipe]);
    assert!(here.works());
    let began = Instant::now();
    // Nothing tells that it waits but that it can be cancelled.
    while here.ctl(&["cancel"]).status != 0 {
        assert!(began.elapsed() < SOON, "the snapshot cannot be cancelled");
    }
    assert_eq!(waiting.wait(SOON), Some(1));
    assert!(waiting.err().contains("cancelled"));
    assert_eq!(here.state(), "running");
    assert_eq!(here.ctl(&["cancel"]).status, 1, "there is none any more");
    sound(&here);
}

#[test]
fn a_file_that_goes_silent_does_not_hold_whoever_quits() {
    let near = stage::folder();
    let (_here, file) = saved(near.path(), &["--stop"]);
    let half = fs::read(&file).expect("the file");
    let half = half[..half.len() / 2].to_vec();
    let far = stage::folder();
    let pipe = pipe(far.path(), "pipe");
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let writing = pipe.clone();
    let writer = thread::spawn(move || {
        let mut into = File::options().write(true).open(writing).expect("the pipe");
        // Whoever reads may be gone before all of it is written.
        let _ = into.write_all(&half);
        let _ = held.recv();
    });
    let sockets = ["a.sock", "b.sock"].map(|name| far.path().join(name));
    let _servers = sockets.each_ref().map(|at| stage::serve(at, &["--memory", "16M"]));
    let [device, other] = sockets.map(|at| format!("vfio-user:{}", at.display()));
    let control = far.path().join("ctl");
    let mut there = Process::start(&[
        "guest",
        "run",
        "--from",
        text(&pipe),
        "--memory",
        "32M",
        "--device",
        &device,
        "--device",
        &other,
        "--control",
        text(&control),
    ]);
    let until = Instant::now() + LONGEST;
    while !stage::run(&["guest", "ctl", text(&control), "status"])
        .out
        .contains("receiving")
    {
        assert!(Instant::now() < until, "it never began");
    }
    let began = Instant::now();
    let quit = stage::run(&["guest", "ctl", text(&control), "quit"]);
    assert_eq!(quit.status, 0, "{quit:?}");
    assert_eq!(there.wait(LONGEST), Some(0));
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    drop(hold);
    writer.join().expect("the writer");
}

/// Sooner than any patience ends.
const SOON: Duration = Duration::from_secs(15);

fn pipe(folder: &Path, name: &str) -> PathBuf {
    let pipe = folder.join(name);
    let made = Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
    assert!(made.success());
    pipe
}
