//! Devices without a guest go into a file, and come out of it as they were.

mod stage;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use abi::errno::Errno;
use control::Transport;
use device::{Bus, Description, Migratable, Runner, Settle, StateArc, Work};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use stage::alone::{Alone, run_with};
use stage::{Ended, Process, run};
use sys::socket::Listener;
use vfio_user::client::{Client, ClientOptions, NoDma};
use vfio_user::server::{Server, ServerOptions, Stop};

/// The example, as it is shown.
#[path = "../../../examples/counter.rs"]
#[allow(dead_code, unreachable_pub, reason = "a program, whose main is not called")]
mod counter;

/// How much the devices of these tests hold.
const FULL: usize = 3 << 20;

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

fn done(arguments: &[&str]) -> Ended {
    let ended = run(arguments);
    assert_eq!(ended.status, 0, "{arguments:?}: {ended:?}");
    ended
}

#[test]
fn what_was_saved_is_what_is_restored() {
    let folder = stage::folder();
    let here = Alone::filled(folder.path(), "here", FULL);
    let there = Alone::empty(folder.path(), "there");
    assert_ne!(here.holds(), there.holds());
    let file = folder.path().join("a.vfm");
    let saved = done(&["save", &here.uri, "--output", text(&file), "--json"]).json();
    assert_eq!(saved["outcome"], "saved");
    assert_eq!(saved["left"], "running");
    assert_eq!(saved["file"], text(&file));
    let found = std::fs::metadata(&file).expect("a file");
    assert_eq!(saved["file_bytes"], found.len());
    assert!(found.len() > FULL as u64, "{saved}");
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    assert!(saved["stopped_ms"].as_f64() > Some(0.0), "{saved}");
    assert_eq!(here.state(), "RUNNING");

    let restored = done(&["restore", &there.uri, "--input", text(&file), "--json"]);
    let restored = restored.json();
    assert_eq!(restored["outcome"], "restored");
    assert_eq!(restored["left"], "stopped");
    assert_eq!(restored["devices"][0]["crc32c"], saved["devices"][0]["crc32c"]);
    assert_eq!(restored["devices"][0]["name"], "here");
    assert_eq!(there.state(), "STOP");
    assert_eq!(here.holds(), there.holds());
}

#[test]
fn devices_are_left_as_they_were_asked_to_be() {
    let folder = stage::folder();
    let here = Alone::filled(folder.path(), "here", 64 << 10);
    let there = Alone::empty(folder.path(), "there");
    let file = folder.path().join("a.vfm");
    let file = text(&file);
    let saved = done(&["save", &here.uri, "--output", file, "--stop"]);
    assert!(saved.out.contains("are stopped"), "{saved:?}");
    assert_eq!(here.state(), "STOP");
    // One that is stopped can be saved as well, and stays so.
    done(&["save", &here.uri, "--output", file, "--replace"]);
    assert_eq!(here.state(), "STOP");
    done(&["restore", &there.uri, "--input", file, "--start"]);
    assert_eq!(there.state(), "RUNNING");
    assert_eq!(here.holds(), there.holds());
    done(&["start", &here.uri]);
    assert_eq!(here.state(), "RUNNING");
    assert_eq!(here.holds(), there.holds());
}

#[test]
fn several_devices_share_a_file_and_keep_their_order() {
    let folder = stage::folder();
    let devices = |side: &str| ["a", "b", "c"].map(|name| format!("{side}-{name}"));
    let here = devices("here").map(|name| Alone::filled(folder.path(), &name, 1 << 20));
    let there = devices("there").map(|name| Alone::empty(folder.path(), &name));
    let file = folder.path().join("a.vfm");
    let mut save = vec!["save", "--output", text(&file)];
    save.extend(here.iter().map(|device| device.uri.as_str()));
    done(&save);
    let mut restore = vec!["restore", "--input", text(&file), "--start"];
    restore.extend(there.iter().map(|device| device.uri.as_str()));
    // One too few is refused before any is touched.
    let few = run(&restore[..restore.len() - 1]);
    assert_eq!(few.status, 1);
    assert!(few.err.contains('3') && few.err.contains('2'), "{}", few.err);
    assert_eq!(there[0].state(), "RUNNING");
    done(&restore);
    for (here, there) in here.iter().zip(&there) {
        assert_eq!(here.holds(), there.holds());
        assert_eq!((here.state(), there.state()), ("RUNNING".into(), "RUNNING".into()));
    }
    assert_ne!(there[0].holds(), there[1].holds());
}

#[test]
fn several_devices_without_p2p_need_the_operators_word() {
    let folder = stage::folder();
    let set = &["--capabilities", "1"];
    let a = Alone::with(folder.path(), "a", set);
    let b = Alone::with(folder.path(), "b", set);
    let file = folder.path().join("a.vfm");
    let save = ["save", &a.uri, &b.uri, "--output", text(&file)];
    let refused = run(&save);
    assert_eq!(refused.status, 1, "{refused:?}");
    assert!(refused.err.contains("P2P"), "{}", refused.err);
    assert!(!file.exists());
    done(&[&save[..], &["--independent"]].concat());
}

#[test]
fn a_file_goes_through_a_pipe() {
    let folder = stage::folder();
    let here = Alone::filled(folder.path(), "here", FULL);
    let there = Alone::empty(folder.path(), "there");
    let saved = Command::new(env!("CARGO_BIN_EXE_vfio-migrate"))
        .args(["save", &here.uri, "--output", "-"])
        .stdin(Stdio::null())
        .output()
        .expect("the command starts");
    assert!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
    assert!(saved.stdout.len() > FULL);
    let said = String::from_utf8_lossy(&saved.stderr);
    assert!(said.contains("standard output"), "{said}");
    let restore = ["restore", &there.uri, "--input", "-"];
    let restored = run_with(&restore, &saved.stdout);
    assert_eq!(restored.status, 0, "{restored:?}");
    assert_eq!(here.holds(), there.holds());
    // The report would be in the middle of the file.
    let both = run(&["save", &here.uri, "--output", "-", "--json"]);
    assert_eq!(both.status, 2, "{both:?}");
}

/// A save into a pipe that nobody reads, once it is stuck in the middle.
fn stuck(device: &Alone) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_vfio-migrate"))
        .args(["save", &device.uri, "--output", "-", "-v"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    hear(&mut child, "to STOP_COPY");
    child
}

/// Reads what it says on standard error, byte by byte, until it said that.
fn hear(child: &mut Child, words: &str) {
    let stderr = child.stderr.as_mut().expect("piped");
    let mut said = Vec::new();
    while !said.ends_with(words.as_bytes()) {
        let mut byte = [0];
        stderr.read_exact(&mut byte).expect("it says more");
        said.extend(byte);
    }
}

#[test]
fn a_cancelled_save_leaves_the_device_running() {
    let folder = stage::folder();
    let here = Alone::filled(folder.path(), "here", FULL);
    let before = here.holds();
    let mut save = stuck(&here);
    let pid = Pid::from_child(&save);
    kill_process(pid, Signal::INT).expect("a child of ours");
    // Nobody reads on, and it ends all the same.
    assert!(ended_soon(&mut save).contains("cancelled; the devices are as before"));
    let mut read = Vec::new();
    save.stdout.take().expect("piped").read_to_end(&mut read).expect("an end");
    assert!(read.len() < FULL, "{} bytes", read.len());
    assert_eq!(here.state(), "RUNNING");
    assert_eq!(here.holds(), before);
}

/// What a cancelled command says. It ends long before its patience with a pipe does.
fn ended_soon(child: &mut Child) -> String {
    let began = Instant::now();
    let mut said = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    assert_eq!(child.wait().expect("an end").code(), Some(1), "{said}");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}: {said}", began.elapsed());
    said
}

/// Starts a command that will wait for something, and interrupts it once it can hear it.
fn interrupted(arguments: &[&str], input: &[u8], words: &str) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_vfio-migrate"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    // Open until the end, and silent after this.
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input).expect("somebody reads");
    if words.is_empty() {
        hears(&child);
    } else {
        hear(&mut child, words);
    }
    kill_process(Pid::from_child(&child), Signal::INT).expect("a child of ours");
    ended_soon(&mut child)
}

/// Waits until it catches SIGINT.
fn hears(child: &Child) {
    let deadline = Instant::now() + stage::LONGEST;
    let path = format!("/proc/{}/status", child.id());
    loop {
        let status = std::fs::read_to_string(&path).expect("a child of ours");
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = u64::from_str_radix(caught.expect("a mask").trim(), 16);
        if caught.expect("a number") & 1 << (Signal::INT.as_raw() - 1) != 0 {
            return;
        }
        assert!(Instant::now() < deadline, "it does not listen");
        std::thread::yield_now();
    }
}

#[test]
fn a_cancelled_restore_leaves_the_device_fresh_or_as_it_was() {
    let folder = stage::folder();
    let here = Alone::filled(folder.path(), "here", FULL);
    let there = Alone::filled(folder.path(), "there", FULL);
    let before = there.holds();
    let file = folder.path().join("a.vfm");
    done(&["save", &here.uri, "--output", text(&file)]);
    let restore = ["restore", &there.uri, "--input", "-", "-v"];
    // Nothing came.
    let said = interrupted(&restore, &[], "negotiate");
    assert!(said.contains("cancelled"), "{said}");
    assert_eq!((there.state(), there.holds()), ("RUNNING".into(), before.clone()));
    // Half of it came.
    let bytes = std::fs::read(&file).expect("a file");
    let said = interrupted(&restore, &bytes[..bytes.len() / 2], "to RESUMING");
    assert!(said.contains("cancelled; the devices were reset"), "{said}");
    assert_eq!(there.state(), "RUNNING");
    let fresh = Alone::empty(folder.path(), "fresh");
    assert_eq!(there.holds()["crc32c"], fresh.holds()["crc32c"]);
}

#[test]
fn a_named_pipe_with_nobody_at_the_other_end_is_given_up_at_once() {
    let folder = stage::folder();
    let here = Alone::filled(folder.path(), "here", 64 << 10);
    let before = here.holds();
    let pipe = folder.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
    for way in [["save", "--output"], ["restore", "--input"]] {
        let said = interrupted(&[way[0], &here.uri, way[1], text(&pipe)], &[], "");
        assert!(said.contains("cancelled"), "{said}");
        assert_eq!((here.state(), here.holds()), ("RUNNING".into(), before.clone()));
    }
}

/// A counter whose data takes as long as a test wants.
struct Slow {
    counter: counter::Counter,
    asked: Sender<()>,
    go: Receiver<()>,
}

impl Migratable for Slow {
    fn describe(&self) -> Description {
        self.counter.describe()
    }

    fn read(&mut self, region: u32, at: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.counter.read(region, at, into)
    }

    fn write(
        &mut self,
        region: u32,
        at: u64,
        data: &[u8],
        bus: &mut dyn Bus,
    ) -> Result<(), Errno> {
        self.counter.write(region, at, data, bus)
    }

    fn reset(&mut self) {
        self.counter.reset();
    }

    fn enter(&mut self, arc: StateArc, bus: &mut dyn Bus) -> Result<Settle, Errno> {
        self.counter.enter(arc, bus)
    }

    fn save(&mut self, into: &mut [u8]) -> Result<usize, Errno> {
        // Once: afterwards nobody is there to hear or to say it.
        if self.asked.send(()).is_ok() {
            let _ = self.go.recv_timeout(stage::LONGEST);
        }
        self.counter.save(into)
    }

    fn stop_copy_bytes(&self) -> u64 {
        self.counter.stop_copy_bytes()
    }

    fn load(&mut self, data: &[u8]) -> Result<(), Errno> {
        self.counter.load(data)
    }

    fn loaded(&mut self) -> Result<(), Errno> {
        self.counter.loaded()
    }

    fn work(&mut self, bus: &mut dyn Bus, now: Instant) -> Work {
        self.counter.work(bus, now)
    }
}

/// Whether a file in this folder can be one without a name.
fn has_unnamed(folder: &Path) -> bool {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR).is_ok()
}

#[test]
fn a_killed_save_leaves_nothing_beside_its_output() {
    let folder = stage::folder();
    let files = folder.path().join("files");
    std::fs::create_dir(&files).expect("a folder");
    if !has_unnamed(&files) {
        eprintln!("skipped: every file has a name here");
        return;
    }
    let output = files.join("a.vfm");
    for replace in [false, true] {
        let ((asked, reached), (go, told)) = (channel(), channel());
        let counter = counter::Counter::default();
        let slow = Box::new(Slow { counter, asked, go: told });
        let here = Counting::serve(folder.path(), "here.sock", slow);
        let mut arguments = vec!["save", &here.uri, "--output", text(&output)];
        if replace {
            std::fs::write(&output, "precious").expect("a file");
            arguments.push("--replace");
        }
        let mut save = Process::start(&arguments);
        reached.recv_timeout(stage::LONGEST).expect("it is half way");
        let open = std::fs::read_dir(format!("/proc/{}/fd", save.pid())).expect("ours");
        let mut open = open.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        assert!(open.any(|path| path.starts_with(&files)), "no file is open");
        save.kill();
        drop((reached, go));
        let left: Vec<_> = std::fs::read_dir(&files)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        let expected = if replace { vec![output.clone()] } else { Vec::new() };
        assert_eq!(left, expected);
    }
    assert_eq!(std::fs::read(&output).expect("the old one"), b"precious");
}

#[test]
fn a_killed_save_leaves_the_device_to_be_started() {
    let folder = stage::folder();
    let here = Alone::filled(folder.path(), "here", FULL);
    let before = here.holds();
    let mut save = stuck(&here);
    save.kill().expect("a child of ours");
    save.wait().expect("an end");
    // Nobody was there to let it go on; it still holds everything.
    assert_eq!(here.state(), "STOP_COPY");
    let output = folder.path().join("a.vfm");
    let again = run(&["save", &here.uri, "--output", text(&output)]);
    assert_eq!(again.status, 1, "{again:?}");
    assert!(again.err.contains("STOP_COPY") && !output.exists(), "{again:?}");
    done(&["start", &here.uri]);
    assert_eq!(here.holds(), before);
    done(&["save", &here.uri, "--output", text(&output)]);
}

#[test]
fn a_device_that_dies_in_a_save_is_named_as_lost() {
    let folder = stage::folder();
    let mut here = Alone::filled(folder.path(), "here", FULL);
    let mut save = stuck(&here);
    here.server.process.kill();
    // The end of what it wrote, and of its waiting.
    drop(save.stdout.take());
    assert_eq!(save.wait().expect("an end").code(), Some(4));
}

/// A counter that is served in this process.
struct Counting {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
    path: std::path::PathBuf,
    uri: String,
}

impl Counting {
    fn start(folder: &Path, name: &str) -> Counting {
        Counting::serve(folder, name, Box::new(counter::Counter::default()))
    }

    fn serve(folder: &Path, name: &str, model: Box<dyn Migratable>) -> Counting {
        let path = folder.join(name);
        let listener = Listener::bind(&path).expect("a socket");
        let runner = Runner::new(model).expect("a device");
        let mut server = Server::new(runner, ServerOptions::default()).expect("a server");
        let stop = Stop::new().expect("an event");
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            server.serve(listener, &told).expect("a loop");
        });
        let uri = format!("vfio-user:{}", path.display());
        Counting { stop, thread: Some(thread), path, uri }
    }

    fn client(&self) -> Client {
        let options = ClientOptions::new("counter", Arc::new(NoDma));
        Client::connect(&self.path, options).expect("a server")
    }

    fn add(&self, number: u64) {
        let client = self.client();
        client.region_write(0, 0, &number.to_le_bytes()).expect("a register");
    }

    fn value(&self) -> u64 {
        let mut value = [0; 8];
        self.client().region_read(0, 0, &mut value).expect("a register");
        u64::from_le_bytes(value)
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn the_example_device_off_pci_is_saved_and_restored_too() {
    let folder = stage::folder();
    let here = Counting::start(folder.path(), "here.sock");
    let there = Counting::start(folder.path(), "there.sock");
    here.add(40);
    here.add(2);
    there.add(7);
    let file = folder.path().join("counter.vfm");
    let saved = done(&["save", &here.uri, "--output", text(&file), "--json"]).json();
    let identity = &saved["devices"][0]["identity"];
    assert_ne!(identity["bus"], "pci", "{saved}");
    assert_eq!(identity["model"], "counter", "{saved}");
    done(&["restore", &there.uri, "--input", text(&file)]);
    done(&["start", &there.uri]);
    assert_eq!((here.value(), there.value()), (42, 42));
    there.add(1);
    assert_eq!((here.value(), there.value()), (42, 43));
    // And it is no accelerator.
    let accel = Alone::empty(folder.path(), "accel");
    let refused = run(&["restore", &accel.uri, "--input", text(&file)]);
    assert_eq!(refused.status, 1, "{refused:?}");
    assert!(refused.err.contains("counter"), "{}", refused.err);
    assert_eq!(accel.state(), "RUNNING");
}
