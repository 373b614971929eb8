//! Other processes: this program again, told to be one side of a measurement.
//!
//! ```text
//!   bench                    side
//!     |--- a line: command --->|   on its standard input
//!     |<-- a line: answer -----|   on its standard output: `ok WORDS` or `error TEXT`
//!     |--- end of file ------->|   and it ends
//! ```

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::{SIDE, text};

/// Says that a side is ready, then answers commands with what `obey` makes of them.
pub(super) fn answer(
    ready: &str,
    mut obey: impl FnMut(&str) -> Result<String, String>,
) -> Result<(), String> {
    let mut out = std::io::stdout();
    writeln!(out, "ok {ready}").and_then(|()| out.flush()).map_err(text)?;
    for command in std::io::stdin().lines() {
        let answer = match obey(&command.map_err(text)?) {
            Ok(answer) => format!("ok {answer}"),
            Err(error) => format!("error {}", error.replace('\n', " ")),
        };
        writeln!(out, "{answer}").and_then(|()| out.flush()).map_err(text)?;
    }
    Ok(())
}

/// A side that runs.
#[derive(Debug)]
pub(super) struct Side {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    /// What it said when it was ready.
    pub(super) ready: String,
}

impl Side {
    /// Starts one and waits until it is ready.
    pub(super) fn start(side: &str, arguments: &[String]) -> Result<Side, String> {
        let mut child = Command::new(std::env::current_exe().map_err(text)?)
            .args(["bench", SIDE, side])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(text)?;
        let commands = child.stdin.take();
        let answers = child.stdout.take().ok_or("a side without standard output")?;
        let answers = BufReader::new(answers);
        let mut side = Side { child, commands, answers, ready: String::new() };
        side.ready = side.hear()?;
        Ok(side)
    }

    /// Tells it what to do. Its answer is to be heard.
    pub(super) fn tell(&mut self, command: &str) -> Result<(), String> {
        let commands = self.commands.as_mut().ok_or("the side was told to end")?;
        writeln!(commands, "{command}").and_then(|()| commands.flush()).map_err(text)
    }

    /// Hears the answer to the oldest command.
    pub(super) fn hear(&mut self) -> Result<String, String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(text)?;
        let line = line.trim_end();
        match line.split_once(' ').unwrap_or((line, "")) {
            ("ok", answer) => Ok(answer.to_owned()),
            ("error", error) => Err(error.to_owned()),
            _ => Err(format!("a side ended, or said `{line}`")),
        }
    }

    /// Tells it what to do and hears the answer.
    pub(super) fn ask(&mut self, command: &str) -> Result<String, String> {
        self.tell(command)?;
        self.hear()
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.commands = None;
        // A side that is stuck in a migration that failed would not hear of the end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
