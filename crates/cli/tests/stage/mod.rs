//! What the tests run: the built command, with an end to every wait.
#![allow(dead_code, reason = "each file of tests uses a part of it")]
#![allow(clippy::panic, reason = "a helper of tests")]

pub(crate) mod alone;
pub(crate) mod relay;

use std::ffi::OsStr;
use std::fmt::Debug;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// The longest that anything may take; a test that waits so long has failed.
pub(crate) const LONGEST: Duration = Duration::from_secs(90);

/// How a command ended, and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    /// The last line of standard output, as JSON.
    pub(crate) fn json(&self) -> Value {
        let line = self.out.lines().last().unwrap_or_else(|| panic!("no line: {self:?}"));
        serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }
}

/// A folder for sockets, gone at the end.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// Runs the command to its end.
pub(crate) fn run<A: AsRef<OsStr> + Debug>(arguments: &[A]) -> Ended {
    let mut process = Process::start(arguments);
    let status = process.wait(LONGEST).unwrap_or_else(|| {
        panic!("{arguments:?} did not end: {:?} {:?}", process.out(), process.err())
    });
    Ended { status, out: process.out(), err: process.err() }
}

/// A command that runs. It is killed, and only it, where the test leaves it.
pub(crate) struct Process {
    child: Child,
    lines: Receiver<String>,
    said: String,
    errors: Receiver<String>,
    noted: String,
}

impl Process {
    pub(crate) fn start<A: AsRef<OsStr>>(arguments: &[A]) -> Process {
        Process::start_other(env!("CARGO_BIN_EXE_vfio-migrate"), arguments)
    }

    /// Another program than ours, or ours by way of one.
    pub(crate) fn start_other<A: AsRef<OsStr>>(
        program: &str,
        arguments: &[A],
    ) -> Process {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        let out = lines(child.stdout.take().expect("piped"));
        let errors = lines(child.stderr.take().expect("piped"));
        Process { child, lines: out, said: String::new(), errors, noted: String::new() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of standard output.
    pub(crate) fn line(&mut self) -> String {
        match self.lines.recv_timeout(LONGEST) {
            Ok(line) => line,
            Err(error) => panic!("no line: {error}; it said {:?}", self.err()),
        }
    }

    /// The status, if it ends in time; a signal counts as -1. Standard output is at its
    /// end then too.
    pub(crate) fn wait(&mut self, limit: Duration) -> Option<i32> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.said += &(line + "\n"),
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        Some(self.child.wait().expect("a status").code().unwrap_or(-1))
    }

    /// Everything on standard output that was not taken by [`Process::line`].
    pub(crate) fn out(&self) -> String {
        self.said.clone()
    }

    /// Everything on standard error; ends a process that is not at its end.
    pub(crate) fn err(&mut self) -> String {
        let _ = self.child.kill();
        while let Ok(line) = self.errors.recv_timeout(LONGEST) {
            self.noted += &(line + "\n");
        }
        self.noted.clone()
    }

    /// Waits until it says something on standard error; the line.
    pub(crate) fn notes(&mut self, word: &str) -> String {
        loop {
            let line = self.errors.recv_timeout(LONGEST);
            let line = line.unwrap_or_else(|_| panic!("no {word} in {:?}", self.noted));
            self.noted += &format!("{line}\n");
            if line.contains(word) {
                return line;
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).expect("an id");
        // Not waited for yet, so the id is still its own.
        kill_process(pid, signal).expect("a signal reaches a child");
    }

    /// Asks it to end, and waits for that.
    pub(crate) fn end(&mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.wait(LONGEST)
    }

    /// Kills it, as a crash would.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        assert_eq!(self.wait(LONGEST), Some(-1));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(stdout: impl Read + Send + 'static) -> Receiver<String> {
    let (said, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if said.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

/// A device server that is ready.
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) ready: Value,
}

/// Serves an accelerator at `socket`.
pub(crate) fn serve(socket: &Path, more: &[&str]) -> Server {
    let socket = socket.to_str().expect("text");
    let mut arguments = vec!["serve", "--model", "accel", "--socket", socket];
    arguments.extend(more);
    let mut process = Process::start(&arguments);
    let line = process.line();
    let ready = serde_json::from_str(&line).unwrap_or(Value::String(line));
    Server { process, ready }
}

/// A guest that is ready, with its device servers.
pub(crate) struct Guest {
    pub(crate) process: Process,
    pub(crate) control: PathBuf,
    pub(crate) ready: Value,
    pub(crate) servers: Vec<Server>,
}

/// What a guest is made of.
pub(crate) struct Machine<'a> {
    pub(crate) memory: &'a str,
    pub(crate) devices: usize,
    pub(crate) device: &'a [&'a str],
    pub(crate) more: &'a [&'a str],
}

impl Default for Machine<'_> {
    fn default() -> Self {
        Machine { memory: "32M", devices: 1, device: &[], more: &[] }
    }
}

impl Guest {
    /// Runs a guest.
    pub(crate) fn run(folder: &Path, machine: &Machine<'_>) -> Guest {
        Guest::start(folder, "here", &["guest", "run"], machine)
    }

    /// Waits for a guest at a port that the system chooses.
    pub(crate) fn receive(folder: &Path, machine: &Machine<'_>) -> Guest {
        Guest::receive_at(folder, "tcp:127.0.0.1:0", machine)
    }

    /// Waits for a guest at a place.
    pub(crate) fn receive_at(folder: &Path, from: &str, machine: &Machine<'_>) -> Guest {
        let receive = &["guest", "receive", "--from", from];
        Guest::start(folder, "there", receive, machine)
    }

    fn start(folder: &Path, side: &str, what: &[&str], machine: &Machine<'_>) -> Guest {
        let sockets: Vec<PathBuf> = (0..machine.devices)
            .map(|n| folder.join(format!("{side}{n}.sock")))
            .collect();
        let servers = sockets
            .iter()
            .map(|socket| {
                let mut more = vec!["--memory", "16M"];
                more.extend(machine.device);
                serve(socket, &more)
            })
            .collect();
        let control = folder.join(format!("{side}.ctl"));
        let mut arguments: Vec<String> =
            what.iter().map(|word| (*word).to_owned()).collect();
        arguments.extend(
            ["--json", "--memory", machine.memory, "--dirty-rate", "8M", "--dma-rate"]
                .map(str::to_owned),
        );
        arguments.push("4M".to_owned());
        arguments.push(format!("--control={}", control.display()));
        for socket in &sockets {
            arguments.push(format!("--device=vfio-user:{}", socket.display()));
        }
        arguments.extend(machine.more.iter().map(|word| (*word).to_owned()));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut process = Process::start(&arguments);
        let line = process.line();
        let ready = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{error}: {line}; {}", process.err()));
        Guest { process, control, ready, servers }
    }

    /// Where a destination listens.
    pub(crate) fn place(&self) -> &str {
        self.ready["ready"]["from"].as_str().unwrap_or_else(|| panic!("{}", self.ready))
    }

    /// `guest ctl` with JSON.
    pub(crate) fn ctl(&self, command: &[&str]) -> Ended {
        let mut arguments = vec!["guest", "ctl", self.control.to_str().expect("text")];
        arguments.extend(command);
        arguments.push("--json");
        run(&arguments)
    }

    /// Whether a signal to end is refused, with the reason, and changes nothing.
    pub(crate) fn outlives_a_signal(&mut self, state: &str) {
        assert_eq!(self.state(), state);
        for signal in [Signal::TERM, Signal::INT] {
            self.process.signal(signal);
            let why = self.process.notes("does not end this process");
            assert!(why.contains("--discard") || why.contains("cancel"), "{why}");
        }
        assert_eq!(self.state(), state);
        assert!(self.control.exists());
    }

    /// `running`, `paused`, `migrating`, `holding` and so on.
    pub(crate) fn state(&self) -> String {
        let ended = self.ctl(&["status"]);
        assert_eq!(ended.status, 0, "{ended:?}");
        ended.json()["status"]["state"].as_str().expect("a state").to_owned()
    }

    /// Pages that the vCPUs wrote so far.
    pub(crate) fn pages(&self) -> u64 {
        let json = self.ctl(&["counters"]).json();
        // None while the guest is not quite here yet.
        let vcpus = json["counters"]["vcpus"].as_array().cloned().unwrap_or_default();
        vcpus.iter().filter_map(|vcpu| vcpu["pages"].as_u64()).sum()
    }

    /// Whether it gets on, within a bounded number of questions.
    pub(crate) fn works(&self) -> bool {
        let before = self.pages();
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if self.pages() > before {
                return true;
            }
        }
        false
    }

    /// Waits until its state is `wanted`, asking again and again.
    pub(crate) fn becomes(&self, wanted: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let state = self.state();
            if state == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "{state} instead of {wanted}");
        }
    }

    /// Starts a migration by hand and returns the connection, once it is under way and
    /// reports a first round.
    pub(crate) fn begin(&self, to: &str, more: Value) -> BufReader<UnixStream> {
        let mut request = json!({ "command": "migrate", "to": to });
        if let (Value::Object(request), Value::Object(more)) = (&mut request, more) {
            request.extend(more);
        }
        let mut stream = UnixStream::connect(&self.control).expect("a guest");
        stream.set_read_timeout(Some(LONGEST)).expect("a deadline");
        writeln!(stream, "{request}").expect("a request");
        let mut stream = BufReader::new(stream);
        loop {
            let answer = next(&mut stream);
            assert!(answer.get("error").is_none(), "{answer}");
            assert!(answer.get("report").is_none(), "{answer}");
            if answer["progress"]["event"] == "round" {
                return stream;
            }
        }
    }
}

/// The report at the end of a migration that was begun by hand.
pub(crate) fn report(stream: &mut BufReader<UnixStream>) -> Value {
    loop {
        let mut answer = next(stream);
        assert!(answer.get("error").is_none(), "{answer}");
        if let Some(report) = answer.get_mut("report") {
            return report.take();
        }
    }
}

fn next(stream: &mut BufReader<UnixStream>) -> Value {
    let mut line = String::new();
    let length = stream.read_line(&mut line).expect("an answer in time");
    assert!(length > 0, "the guest went away");
    serde_json::from_str(&line).expect("JSON")
}
