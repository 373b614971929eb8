//! What the guest says over its second serial line: a line for every check.

use std::time::Instant;

use super::child::Running;
use super::table::{Found, Row};
use crate::Failure;

/// The checks of one boot.
#[derive(Debug)]
pub(crate) struct Report {
    /// What was checked, in the order in which it was heard.
    pub(crate) rows: Vec<Row>,
    run: &'static str,
    /// When the last line came.
    since: Instant,
    /// How many checks of the guest were heard.
    heard: usize,
    /// How many checks the guest says it made.
    done: Option<usize>,
}

impl Report {
    /// Of a boot that begins now.
    pub(crate) fn new(run: &'static str, since: Instant) -> Report {
        Report { rows: Vec::new(), run, since, heard: 0, done: None }
    }

    /// Listens until QEMU has ended, or until the time is over, which ends it. `console`
    /// and `errors` are the names of the logs that the rows point to.
    pub(crate) fn listen(
        &mut self,
        mut qemu: Running,
        until: Instant,
        verbose: bool,
        console: &str,
        errors: &str,
    ) {
        let ended = loop {
            match qemu.line(until) {
                Ok(Some(line)) => {
                    if verbose {
                        eprintln!("{}: {line}", self.run);
                    }
                    self.line(&line);
                }
                Ok(None) => break qemu.end(until),
                Err(failure) => break Err(failure),
            }
        };
        self.end(console);
        let ended = match ended {
            Ok(status) if status.success() => Ok("ended by itself".to_owned()),
            Ok(status) => Err(format!("QEMU: {status}, see {errors}")),
            Err(failure) => Err(failure.text()),
        };
        self.row("power-off", ended);
    }

    /// Adds a check of ours.
    pub(crate) fn row(&mut self, check: &str, found: Result<String, String>) {
        self.push(check, Found::of(found));
    }

    fn push(&mut self, check: &str, found: Found) {
        let now = Instant::now();
        let seconds = (now - self.since).as_secs_f64();
        self.since = now;
        self.rows.push(Row { run: self.run, check: check.to_owned(), seconds, found });
    }

    fn line(&mut self, line: &str) {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("check"), Some(name), Some(word)) => {
                let detail = words.next().unwrap_or_default().to_owned();
                self.heard += 1;
                self.push(
                    name,
                    match word {
                        "ok" => Found::Ok(detail),
                        "skipped" => Found::Skipped(detail),
                        _ => Found::Failed(detail),
                    },
                );
            }
            (Some("done"), Some(count), None) => self.done = count.parse().ok(),
            // Whatever else firmware and kernel print there.
            _ => {}
        }
    }

    /// The guest has ended: whether it had said all that it checked.
    fn end(&mut self, console: &str) {
        let checks = self.heard;
        let said = match self.done {
            Some(0) => Err("the guest checked nothing".to_owned()),
            Some(count) if count == checks => Ok(format!("{count} checks in the guest")),
            Some(count) => Err(format!("{checks} of {count} checks were heard")),
            None => Err(format!("the guest did not come to its end, see {console}")),
        };
        self.row("guest", said);
    }

    /// Adds a failure for every one of `names` that was not heard of.
    pub(crate) fn expect<'n>(&mut self, names: impl IntoIterator<Item = &'n str>) {
        for name in names {
            if !self.rows.iter().any(|row| row.check == name) {
                self.row(name, Err("did not report".to_owned()));
            }
        }
    }
}

impl Failure {
    /// What it says.
    pub(crate) fn text(self) -> String {
        match self {
            Failure::Usage(text) | Failure::Failed(text) => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::Report;

    fn report() -> Report {
        Report::new("shared", Instant::now())
    }

    fn failures(report: &Report) -> Vec<&str> {
        let failed = report.rows.iter().filter(|row| row.found.is_failed());
        failed.map(|row| row.check.as_str()).collect()
    }

    #[test]
    fn guest_that_stops_half_way_has_failed() {
        let mut cut = report();
        cut.line("SeaBIOS (version 1)");
        cut.line("check one ok all of it");
        cut.end("console");
        assert_eq!(failures(&cut), ["guest"]);
        let mut whole = report();
        whole.line("check one ok");
        whole.line("check two FAILED 1 instead of 2");
        whole.line("check three skipped no such thing");
        whole.line("done 3");
        whole.end("console");
        assert_eq!(failures(&whole), ["two"]);
        let mut lost = report();
        lost.line("check one ok");
        lost.line("done 2");
        lost.end("console");
        assert_eq!(failures(&lost), ["guest"]);
        let mut nothing = report();
        nothing.line("done 0");
        nothing.end("console");
        assert_eq!(failures(&nothing), ["guest"]);
    }

    #[test]
    fn check_that_never_reports_has_failed() {
        let mut report = report();
        report.line("check one ok");
        report.line("check two skipped");
        report.line("done 2");
        report.end("console");
        report.expect(["one", "two", "three"]);
        assert_eq!(failures(&report), ["three"]);
    }
}
