//! Our command, as a user runs it, with a deadline, and what it says as JSON.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::said;

/// Where it is.
const PROGRAM: &str = "/bin/vfio-migrate";

/// The longest that a command may take: a guest is slow.
const DEADLINE: Duration = Duration::from_secs(60);

/// What it said in the end.
#[derive(Debug)]
pub(crate) struct Said {
    /// Exit status; -1 after a signal.
    pub(crate) status: i32,
    /// The lines of its standard output.
    pub(crate) answers: Vec<Value>,
    /// Its standard error.
    pub(crate) errors: String,
}

impl Said {
    /// Its last answer, if it ended well.
    pub(crate) fn well(&self) -> Result<&Value, String> {
        match (self.status, self.answers.last()) {
            (0, Some(answer)) => Ok(answer),
            _ => Err(self.everything()),
        }
    }

    /// Why it refused, if it did, in its words, among which must be this one.
    pub(crate) fn refused(&self, word: &str) -> Result<String, String> {
        let error = self.answers.last().map(|answer| &answer["error"]);
        let text = error.and_then(|error| error["text"].as_str().or(error.as_str()));
        match (self.status, text) {
            (1, Some(text)) if text.contains(word) => Ok(text.to_owned()),
            _ => Err(format!("it did not refuse for `{word}`: {}", self.everything())),
        }
    }

    /// The changes of state that it reported, by their targets.
    pub(crate) fn transitions(&self) -> Vec<String> {
        let lines = self.errors.lines().filter_map(|line| line.strip_prefix('{'));
        let lines = lines.filter_map(|line| {
            let value: Value = serde_json::from_str(&format!("{{{line}")).ok()?;
            let progress = &value["progress"];
            (progress["event"] == "transition").then(|| words(&progress["to"]))
        });
        lines.collect()
    }

    fn everything(&self) -> String {
        let answers: Vec<_> = self.answers.iter().map(Value::to_string).collect();
        format!("exit {}: {} {}", self.status, answers.join(" "), self.errors)
    }
}

/// A string of JSON as it is, everything else as JSON.
pub(crate) fn words(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Runs it to its end.
pub(crate) fn run(words: &[&str]) -> Result<Said, String> {
    Running::start(words)?.end()
}

/// One that runs beside us; killed when this goes away.
#[derive(Debug)]
pub(crate) struct Running {
    spelled: String,
    child: Child,
    answers: Receiver<Value>,
    errors: Option<JoinHandle<String>>,
}

impl Running {
    pub(crate) fn start(words: &[&str]) -> Result<Running, String> {
        let spelled = words.join(" ");
        let mut child = Command::new(PROGRAM)
            .arg("--json")
            .args(words)
            .current_dir("/tmp")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(said(&spelled))?;
        let output = child.stdout.take().ok_or("no output")?;
        let (sender, answers) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(value).is_err() {
                    break;
                }
            }
        });
        let errors = child.stderr.take().map(|mut errors| {
            thread::spawn(move || {
                let mut bytes = Vec::new();
                let _ = errors.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        });
        Ok(Running { spelled, child, answers, errors })
    }

    /// What it says when it is ready for others.
    pub(crate) fn ready(&mut self) -> Result<Value, String> {
        match self.answers.recv_timeout(DEADLINE) {
            Ok(mut answer) if answer["ready"].is_object() => Ok(answer["ready"].take()),
            Ok(other) => Err(format!("`{}` is not ready: {other}", self.spelled)),
            Err(_) => {
                let errors = self.stop();
                Err(format!("`{}` does not get ready: {errors}", self.spelled))
            }
        }
    }

    /// Asks it to end, as a service manager would.
    pub(crate) fn terminate(&self) -> Result<(), String> {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(id.ok_or("no process")?, Signal::TERM).map_err(said(&self.spelled))
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Result<Said, String> {
        let until = Instant::now() + DEADLINE;
        let status = loop {
            match self.child.try_wait().map_err(said(&self.spelled))? {
                Some(status) => break status,
                None if Instant::now() < until => thread::sleep(Duration::from_millis(2)),
                None => {
                    let errors = self.stop();
                    return Err(format!("`{}` does not end: {errors}", self.spelled));
                }
            }
        };
        // Its lines are all there as soon as the other end is closed.
        let answers = self.answers.iter().collect();
        let errors = self.stop();
        Ok(Said { status: status.code().unwrap_or(-1), answers, errors })
    }

    /// Ends it, and returns its standard error.
    fn stop(&mut self) -> String {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let errors = self.errors.take();
        errors.and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}
