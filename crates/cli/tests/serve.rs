//! A device server outlives its clients, whatever they do, and leaves nothing behind.
#![allow(clippy::panic, reason = "a test's way to fail")]

mod stage;

use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use abi::feature::{Feature, FeatureFlags, FeatureHeader};
use abi::irq::{IrqSet, IrqSetFlags};
use abi::v2::DeviceState;
use abi::vfio_user::{DmaMap, DmaMapFlags, RegionAccess};
use rustix::process::Signal;
use stage::{Process, Server, run, serve};
use sys::{EventFd, SharedMemory};
use vfio_user::codec::{Capabilities, Request, Version, parse_header};

/// How many clients come and go.
const CLIENTS: usize = 10_000;
/// How many of them come before the first count: buffers reach their size.
const FIRST: usize = 600;
/// How many of them are processes of their own that are killed.
const KILLED: usize = 100;
/// How long all of them may take.
const SOON: Duration = Duration::from_secs(80);
/// How much larger a server may be after all of them, in KiB. A client that left a
/// page behind would cost 40 MB.
const GROWTH: u64 = 4 << 10;

/// What a process has.
#[derive(Clone, Copy, Debug)]
struct Usage {
    descriptors: usize,
    mappings: usize,
    threads: usize,
    resident: u64,
}

impl Usage {
    fn of(pid: u32) -> Usage {
        let count = |name: &str| {
            let entries = std::fs::read_dir(format!("/proc/{pid}/{name}"));
            entries.expect("a living process").count()
        };
        let read = |name: &str| {
            let text = std::fs::read_to_string(format!("/proc/{pid}/{name}"));
            text.expect("a living process")
        };
        let status = read("status");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|line| line.split_whitespace().next());
        Usage {
            descriptors: count("fd"),
            mappings: read("maps").lines().count(),
            threads: count("task"),
            resident: resident.and_then(|kib| kib.parse().ok()).expect("a size"),
        }
    }
}

/// What a client has at hand to send along.
struct Baggage {
    memory: SharedMemory,
    event: EventFd,
}

/// A client that knows the protocol and no manners.
struct Rude(UnixStream);

impl Rude {
    fn connect(path: &Path) -> Rude {
        let stream = UnixStream::connect(path).expect("the server listens");
        stream.set_read_timeout(Some(SOON)).expect("a deadline");
        stream.set_write_timeout(Some(SOON)).expect("a deadline");
        Rude(stream)
    }

    /// Sends what it can: the server may have had enough.
    fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    fn send_with(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let parts = [IoSlice::new(bytes)];
        let _ = sys::socket::send_with_fds(self.0.as_fd(), &parts, fds, false);
    }

    fn ask(&mut self, id: u16, request: &Request<'_>) {
        self.send(&request.message(id).bytes());
    }

    fn hear(&mut self) {
        let mut header = [0; 16];
        self.0.read_exact(&mut header).expect("an answer");
        let size = parse_header(&header).msg_size as usize;
        let mut body = vec![0; size - header.len()];
        self.0.read_exact(&mut body).expect("the rest of it");
    }

    fn agree(&mut self) {
        self.send(&version());
        self.hear();
    }

    fn enter(&mut self, state: DeviceState) {
        let data = [state.0.to_ne_bytes(), (-1_i32).to_ne_bytes()].concat();
        let feature = Feature::MIG_DEVICE_STATE;
        let header = FeatureHeader::new(feature, FeatureFlags::SET, data.len() as u32);
        self.ask(9, &Request::Feature(header, &data));
        self.hear();
    }
}

fn version() -> Vec<u8> {
    let text = Capabilities { max_msg_fds: 16, ..Capabilities::default() }.text();
    Request::Version(Version { major: 0, minor: 0, text: &text }).message(1).bytes()
}

fn map() -> Vec<u8> {
    let map = DmaMap {
        argsz: 32,
        flags: (DmaMapFlags::READ | DmaMapFlags::WRITE).bits(),
        offset: 0,
        addr: 1 << 20,
        size: 64 << 10,
    };
    Request::DmaMap(map).message(2).bytes()
}

/// Binds three vectors of MSI-X.
fn bind() -> Vec<u8> {
    let set = IrqSet {
        argsz: 20,
        flags: (IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER).bits(),
        index: 2,
        start: 0,
        count: 3,
    };
    Request::SetIrqs(set, &[]).message(3).bytes()
}

fn read(id: u16, count: u32) -> Vec<u8> {
    Request::RegionRead(RegionAccess { offset: 0, region: 2, count }).message(id).bytes()
}

/// One client comes, gets as far as `stage` says, and is gone.
fn visit(path: &Path, stage: usize, baggage: &Baggage) {
    let mut client = Rude::connect(path);
    let event = baggage.event.as_fd();
    match stage {
        // Before a word.
        0 => {}
        // In the middle of a header, and of a body.
        1 => client.send(&version()[..7]),
        2 => client.send(&version()[..30]),
        // With a reply on its way, and after it.
        3 => client.send(&version()),
        4 => client.agree(),
        // In the middle of a later message.
        5 => {
            client.agree();
            client.send(&map()[..40]);
        }
        // With memory mapped, and while it is.
        6 | 7 => {
            client.agree();
            client.send_with(&map(), &[baggage.memory.fd()]);
            if stage == 6 {
                client.hear();
            }
        }
        // With descriptors beside half a header, and beside a message for none.
        8 => client.send_with(&version()[..7], &[event; 4]),
        9 => {
            client.agree();
            client.send_with(&read(4, 4), &[event; 2]);
        }
        // With eventfds bound.
        10 => {
            client.agree();
            client.send_with(&bind(), &[event; 3]);
            client.hear();
        }
        // With more replies queued than the socket holds.
        11 => {
            client.agree();
            for id in 0..8 {
                client.send(&read(id, 64 << 10));
            }
        }
        // With a data session, and back.
        12 => {
            client.agree();
            client.enter(DeviceState::PRE_COPY);
        }
        13 => {
            client.agree();
            client.enter(DeviceState::RUNNING);
        }
        // Nonsense.
        _ => client.send(&[0xa5; 64]),
    }
}

/// A process that holds a connection, mappings and all, is killed.
fn kill_one(path: &Path, baggage: &Baggage) {
    let mut client = Rude::connect(path);
    client.agree();
    client.send_with(&map(), &[baggage.memory.fd()]);
    client.hear();
    let mut process = Command::new("sleep")
        .arg("100")
        .stdin(Stdio::from(OwnedFd::from(client.0)))
        .spawn()
        .expect("a process");
    process.kill().expect("a child of ours");
    process.wait().expect("its end");
}

fn answers(socket: &Path) {
    let device = format!("vfio-user:{}", socket.display());
    let probed = run(&["probe", &device, "--json"]);
    assert_eq!(probed.status, 0, "{probed:?}");
}

#[test]
fn ten_thousand_clients_that_come_go_and_die_leave_nothing_in_the_server() {
    let folder = stage::folder();
    let socket = folder.path().join("a.sock");
    let log = folder.path().join("log");
    // The log would be as long as the visits are many.
    let log = log.to_str().expect("text");
    let mut server = serve(&socket, &["--memory", "16M", "--log", log]);
    let baggage = Baggage {
        memory: SharedMemory::create("a client's", 64 << 10).expect("memory"),
        event: EventFd::new().expect("an eventfd"),
    };
    let deadline = Instant::now() + SOON;
    let visits = |range: std::ops::Range<usize>| {
        for number in range {
            assert!(Instant::now() < deadline, "only {number} visits in {SOON:?}");
            match number % (CLIENTS / KILLED) {
                0 => kill_one(&socket, &baggage),
                number => visit(&socket, number % 15, &baggage),
            }
        }
        answers(&socket);
    };
    visits(0..FIRST);
    let before = Usage::of(server.process.pid());
    visits(FIRST..CLIENTS);
    let after = Usage::of(server.process.pid());
    let counts = |usage: Usage| (usage.descriptors, usage.mappings, usage.threads);
    // Whether the prober's end was seen yet is the scheduler's: one socket more or less.
    assert!(after.descriptors <= before.descriptors + 1, "{before:?} {after:?}");
    assert!(after.mappings <= before.mappings + 4, "{before:?} {after:?}");
    assert!(after.threads <= before.threads, "{before:?} {after:?}");
    assert!(after.resident <= before.resident + GROWTH, "{before:?} {after:?}");
    assert!(counts(before).0 < 32, "{before:?}");
    assert_eq!(server.process.end(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn every_signal_that_ends_a_server_removes_its_socket() {
    let folder = stage::folder();
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let socket = folder.path().join("a.sock");
        let mut server: Server = serve(&socket, &["--memory", "16M"]);
        server.process.signal(signal);
        assert_eq!(server.process.wait(stage::LONGEST), Some(0), "{signal:?}");
        assert!(!socket.exists(), "{signal:?}");
    }
}

#[test]
fn a_generous_umask_does_not_open_the_socket_to_others() {
    let folder = stage::folder();
    let socket = folder.path().join("a.sock");
    let serve = format!(
        "umask 0; exec {} serve --memory 16M --socket {}",
        env!("CARGO_BIN_EXE_vfio-migrate"),
        socket.display()
    );
    let mut process = Process::start_other("sh", &["-c", &serve]);
    process.line();
    let mode = std::fs::metadata(&socket).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(process.end(), Some(0));
}

#[test]
fn a_socket_in_use_is_left_alone_and_a_stale_one_is_replaced() {
    let folder = stage::folder();
    let socket = folder.path().join("a.sock");
    let path = socket.to_str().expect("text");
    let mut server = serve(&socket, &["--memory", "16M"]);
    let second = run(&["serve", "--socket", path, "--json"]);
    assert_eq!(second.status, 1);
    let text = second.json()["error"]["text"].to_string();
    assert!(text.contains(path) && text.contains("another process listens"), "{text}");
    // The one that listens there has noticed nothing.
    answers(&socket);
    server.process.kill();
    assert!(socket.exists(), "a killed server cannot remove anything");
    let mut server = serve(&socket, &["--memory", "16M"]);
    answers(&socket);
    assert_eq!(server.process.end(), Some(0));
    std::fs::write(&socket, "precious").expect("a file");
    let third = run(&["serve", "--socket", path]);
    assert_eq!(third.status, 1);
    assert!(third.err.contains("no socket"), "{}", third.err);
    assert_eq!(std::fs::read(&socket).expect("the file"), b"precious");
}
