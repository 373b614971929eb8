//! Programs that run beside us and never longer than we do.
//!
//! Whoever drops a [`Running`] kills its program. Nobody drops anything where we are
//! killed ourselves, so each is started by util-linux's `setpriv`, which asks the kernel
//! to kill it when the thread that started it is gone (`PR_SET_PDEATHSIG`), and becomes
//! the program: the same process, the same exit status.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::failed;
use crate::{Failure, process};

/// What asks for it, and becomes the program that follows.
const DIE_WITH_US: [&str; 4] = ["setpriv", "--pdeathsig", "KILL", "--"];

/// A program whose standard output is read line by line. It is killed, by its own id,
/// when this goes away, and by the kernel when the thread ends that started it.
#[derive(Debug)]
pub(crate) struct Running {
    name: String,
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    /// Starts it; its standard error goes to a file.
    ///
    /// # Errors
    ///
    /// When it cannot be started. A program that is not there ends at once instead, with
    /// the reason in that file.
    pub(crate) fn start(
        name: &str,
        command: &Command,
        errors: &Path,
    ) -> Result<Running, Failure> {
        let file =
            File::create(errors).map_err(|error| failed("write", errors, &error))?;
        let mut child = bound(command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .map_err(|error| {
                let spelled = process::spelled(command);
                let [setpriv, ..] = DIE_WITH_US;
                Failure::Failed(format!(
                    "cannot run `{spelled}` by `{setpriv}`: {error}\nremedy: {setpriv} is \
                     part of util-linux; nothing is left behind when this is killed \
                     only with it"
                ))
            })?;
        let (sender, lines) = channel();
        let output = child.stdout.take();
        // Ends with the program, or when nobody listens any more.
        thread::spawn(move || {
            let mut output = BufReader::new(output?);
            let mut line = Vec::new();
            while output.read_until(b'\n', &mut line).ok()? > 0 {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                sender.send(text).ok()?;
                line.clear();
            }
            Some(())
        });
        Ok(Running { name: name.to_owned(), child, lines })
    }

    /// The next line; `None` when there will be no more.
    ///
    /// # Errors
    ///
    /// When none came in time.
    pub(crate) fn line(&mut self, until: Instant) -> Result<Option<String>, Failure> {
        match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                Err(Failure::Failed(format!("{} does not end in time", self.name)))
            }
        }
    }

    /// Asks it to end, as a terminal would.
    ///
    /// # Errors
    ///
    /// When it cannot be told.
    pub(crate) fn terminate(&self) -> Result<(), Failure> {
        let mut kill = Command::new("kill");
        process::output(kill.args(["-TERM", &self.child.id().to_string()])).map(drop)
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_none())
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// When that does not come in time.
    pub(crate) fn end(mut self, until: Instant) -> Result<ExitStatus, Failure> {
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if Instant::now() < until => {
                    thread::sleep(Duration::from_millis(5));
                }
                Ok(None) => {
                    return Err(Failure::Failed(format!("{} does not end", self.name)));
                }
                Err(error) => {
                    return Err(Failure::Failed(format!("{}: {error}", self.name)));
                }
            }
        }
    }
}

/// The same command, as a program that ends with us.
fn bound(command: &Command) -> Command {
    let [setpriv, words @ ..] = DIE_WITH_US;
    let mut bound = Command::new(setpriv);
    bound.args(words).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => bound.env(name, value),
            None => bound.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        bound.current_dir(folder);
    }
    bound
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.runs() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::Running;

    #[test]
    fn guest_that_hangs_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two; exec sleep 600"]);
        let errors = folder.path().join("errors");
        let mut running = Running::start("guest", &command, &errors).unwrap();
        let soon = Instant::now() + Duration::from_secs(20);
        assert_eq!(running.line(soon), Ok(Some("one".to_owned())));
        assert_eq!(running.line(soon), Ok(Some("two".to_owned())));
        assert!(running.line(Instant::now() + Duration::from_millis(20)).is_err());
        assert!(running.runs());
        running.terminate().unwrap();
        assert_eq!(running.line(soon), Ok(None));
        assert!(!running.end(soon).unwrap().success());
    }
    #[test]
    fn program_does_not_outlive_whoever_was_killed_over_it() {
        let folder = tempfile::tempdir().unwrap();
        let errors = folder.path().join("errors");
        let mut command = Command::new("sh");
        command.args(["-c", "echo up; exec sleep 600"]);
        let soon = Instant::now() + Duration::from_secs(20);
        // A thread that ends without dropping it is what a killed process is to it.
        let started = thread::spawn(move || {
            let mut running = Running::start("guest", &command, &errors).unwrap();
            assert_eq!(running.line(soon), Ok(Some("up".to_owned())));
            running
        });
        let mut running = started.join().unwrap();
        assert_eq!(running.line(soon), Ok(None));
        assert!(!running.end(soon).unwrap().success());
    }
}
