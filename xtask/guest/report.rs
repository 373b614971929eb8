//! The line to the host.
//!
//! ```text
//! check NAME ok DETAIL
//! check NAME skipped REASON
//! check NAME FAILED DETAIL
//! done N
//! ```
//!
//! with `N` the number of checks, so that a guest that stops half-way is not taken for
//! one that found nothing.

use std::fs::{File, OpenOptions};
use std::io::Write;

use crate::{Found, said};

/// `/dev/ttyS1`.
pub(crate) struct Report {
    line: File,
    checks: u32,
}

impl Report {
    pub(crate) fn open() -> Result<Report, String> {
        let line = OpenOptions::new().write(true).open("/dev/ttyS1");
        Ok(Report { line: line.map_err(said("/dev/ttyS1"))?, checks: 0 })
    }

    /// Tells what came of a check.
    pub(crate) fn check(&mut self, name: &str, found: Found) {
        match found {
            Ok(detail) => self.say(name, "ok", &detail),
            Err(error) => self.say(name, "FAILED", &error),
        }
    }

    /// Tells why a check was not made.
    pub(crate) fn skip(&mut self, name: &str, reason: &str) {
        self.say(name, "skipped", reason);
    }

    fn say(&mut self, name: &str, word: &str, detail: &str) {
        self.checks += 1;
        // One check is one line, whatever a program said.
        let detail: Vec<_> = detail.lines().map(str::trim).collect();
        // Whoever does not hear this misses the number at the end.
        let _ = writeln!(self.line, "check {name} {word} {}", detail.join(" | "));
    }

    pub(crate) fn end(mut self) -> Result<(), String> {
        writeln!(self.line, "done {}", self.checks).map_err(said("report"))?;
        // What is still in the buffer of the line would be lost with the power.
        rustix::termios::tcdrain(&self.line).map_err(said("report"))
    }
}
