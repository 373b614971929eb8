//! The processes that a demo starts: ready when they say so, gone when it ends.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{
    Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal,
};
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

/// How long a process may take to end once it was asked to.
const GRACE: Duration = Duration::from_secs(5);

/// How much of what a process said at last is shown when it failed, in bytes.
const TAIL: u64 = 2048;

/// One process of this program, in a process group of its own so that Ctrl-C reaches
/// the demo alone. It ends with this value, or with the demo's process.
pub(super) struct Process {
    name: String,
    child: Child,
    /// Ready to be read once the process ended.
    ended: OwnedFd,
    lines: Receiver<String>,
    log: Option<PathBuf>,
    /// What ends it.
    last: Signal,
    crew: Crew,
}

impl Process {
    /// What to call it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it says that it is ready; what it says then.
    pub(super) fn ready(&mut self, deadline: Instant) -> Result<Value> {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = match self.lines.recv_timeout(left) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                bail!("the {} was not ready in time{}", self.name, self.last_words())
            }
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the {} ended before it was ready{}", self.name, self.last_words())
            }
        };
        let mut said: Value = serde_json::from_str(&line).unwrap_or_default();
        if let Some(why) = said.pointer("/error/text").and_then(Value::as_str) {
            bail!("the {} did not get ready: {why}", self.name);
        }
        match said.get_mut("ready") {
            Some(ready) => Ok(ready.take()),
            None => bail!("the {} said `{line}` instead of ready", self.name),
        }
    }

    /// Whether it ends within `wait`.
    pub(super) fn ends_within(&self, wait: Duration) -> bool {
        // A wait that fails tells nothing; the caller has a deadline of its own.
        let ready = sys::wait_readable(&[self.ended.as_fd()], wait);
        ready.is_ok_and(|ready| ready == [true])
    }

    /// What it said at last, to be put behind an error.
    pub(super) fn last_words(&self) -> String {
        let words = self.log.as_deref().and_then(tail).unwrap_or_default();
        if words.is_empty() { String::new() } else { format!("; it said: {words}") }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = pidfd_send_signal(&self.ended, self.last);
        if !self.ends_within(GRACE) {
            tracing::warn!(process = self.name, "did not end when asked to");
            let _ = self.child.kill();
        }
        // From here on its id may become somebody else's.
        self.crew.forget(self.pid());
        let _ = self.child.wait();
    }
}

fn tail(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    Some(lines[lines.len().saturating_sub(5)..].join("; "))
}

/// The program that runs here, even where another was put in its place since.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// Starts processes of this program.
pub(super) struct Starter {
    /// What it is called.
    program: PathBuf,
    folder: PathBuf,
    verbose: u8,
    log: Option<PathBuf>,
    crew: Crew,
}

impl Starter {
    /// Logs go to `log`, to standard error where `verbose`, else to `folder`.
    pub(super) fn new(
        folder: &Path,
        verbose: u8,
        log: Option<&Path>,
        crew: Crew,
    ) -> Result<Starter> {
        Ok(Starter {
            program: std::env::current_exe().context("cannot find this program")?,
            folder: folder.to_owned(),
            verbose,
            log: log.map(Path::to_owned),
            crew,
        })
    }

    /// Starts one.
    pub(super) fn start(&self, name: &str, arguments: &[String]) -> Result<Process> {
        let starting = || format!("cannot start {name}");
        let mut command = Command::new(THIS_PROGRAM);
        command
            .arg0(&self.program)
            .args(["--json", "--with-parent"])
            .arg(std::process::id().to_string())
            .args((0..self.verbose).map(|_| "-v"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0);
        if let Some(log) = &self.log {
            command.arg("--log").arg(log);
        }
        let mut own_log = None;
        if self.verbose == 0 {
            let path = self.folder.join(format!("{name}.log"));
            command.stderr(File::create(&path).with_context(starting)?);
            own_log = Some(path);
        }
        let mut child = self.crew.spawn(&mut command).with_context(starting)?;
        let ended = Pid::from_raw(child.id().cast_signed())
            .context("a process without an id")
            .and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?));
        let (ended, stdout) = match (ended, child.stdout.take()) {
            (Ok(ended), Some(stdout)) => (ended, stdout),
            (ended, _) => {
                let _ = child.kill();
                self.crew.forget(child.id());
                let _ = child.wait();
                ended.with_context(starting)?;
                bail!("cannot hear {name}");
            }
        };
        let (said, lines) = channel();
        // A guest that has moved or migrates would refuse to end; its copy is ours.
        let guest = arguments.first().is_some_and(|word| word == "guest");
        let process = Process {
            name: name.to_owned(),
            last: if guest { Signal::KILL } else { Signal::TERM },
            child,
            ended,
            lines,
            log: own_log,
            crew: self.crew.clone(),
        };
        std::thread::Builder::new()
            .name(format!("hears {name}"))
            .spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    // Read on all the same, so that it never waits for a reader.
                    let _ = said.send(line);
                }
            })
            .with_context(starting)?;
        Ok(process)
    }
}

/// All living processes of a demo, so that Ctrl-C can end them: whoever waits for one
/// of them then hears that it is gone.
#[derive(Clone, Default)]
pub(super) struct Crew(Arc<Mutex<Members>>);

#[derive(Default)]
struct Members {
    pids: Vec<u32>,
    interrupted: bool,
}

impl Crew {
    fn lock(&self) -> std::sync::MutexGuard<'_, Members> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, command: &mut Command) -> Result<Child> {
        // Under the lock, so that none is started behind an interrupt's back.
        let mut members = self.lock();
        anyhow::ensure!(!members.interrupted, "interrupted");
        let child = command.spawn()?;
        members.pids.push(child.id());
        Ok(child)
    }

    fn forget(&self, pid: u32) {
        self.lock().pids.retain(|member| *member != pid);
    }

    /// Whether Ctrl-C was pressed.
    pub(super) fn interrupted(&self) -> bool {
        self.lock().interrupted
    }

    fn interrupt(&self) {
        let mut members = self.lock();
        members.interrupted = true;
        for pid in &members.pids {
            // Not reaped yet: the id is still theirs.
            if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }

    /// While the result lives, SIGINT, SIGTERM and SIGHUP end the processes.
    pub(super) fn watch_signals(&self) -> Result<Watch> {
        let mut signals =
            Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot catch Ctrl-C")?;
        let handle = signals.handle();
        let crew = self.clone();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for _ in signals.forever() {
                    crew.interrupt();
                }
            })
            .context("cannot start a thread")?;
        Ok(Watch(handle))
    }
}

/// See [`Crew::watch_signals`].
pub(super) struct Watch(Handle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A folder for this user alone, gone with this value.
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Makes one where temporary files go.
    pub(super) fn new() -> Result<Folder> {
        use std::os::unix::fs::DirBuilderExt;
        let parent = std::env::temp_dir();
        let id = ::store::new_attempt().context("cannot choose a name for a folder")?;
        let tag: String = id.0[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        let path = parent.join(format!("vfio-migrate-{tag}"));
        std::fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| {
            format!("cannot make the folder {}: set TMPDIR to another", path.display())
        })?;
        let folder = Folder(path);
        // The longest name that is put in it.
        let longest = folder.0.join("destination7.sock").as_os_str().len();
        anyhow::ensure!(
            longest <= link::Uri::LONGEST_PATH,
            "{} is too long for sockets: set TMPDIR to a shorter one",
            parent.display()
        );
        Ok(folder)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "cannot be removed");
        }
    }
}
