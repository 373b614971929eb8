//! `vfio-migrate guest ctl`: the client of a guest's control socket.
//!
//! One request a connection, JSON lines: the request, then any number of answers, then
//! `{"done": true}` or `{"error": {"text": …, "code": …}}`.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value, json};

use crate::args::{Budget, Control, Ctl, Global, Migrate, Snapshot};
use crate::exit::{Exit, Found, Nonsense, status};
use crate::output;
use crate::progress::Show;
use crate::report::snapshot::SnapshotReport;
use crate::report::{self, Summary};
use crate::signals::{Watching, cancel_once};
use crate::units::Rate;

/// How long a guest may be silent in the middle of an answer. A migration says
/// something at every round; a guest that is frozen reads all its memory first.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How long a guest may take to say how it is, which it does whatever it does besides.
const SHORT: Duration = Duration::from_secs(20);

/// The longest line of an answer.
const LINE: u64 = 4 << 20;

/// The guest refused a command.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Why, in the guest's words.
    pub text: String,
    /// What kind of refusal: `refused`, `usage`, `failed`, `busy`.
    pub code: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Refused {}

/// Runs `guest ctl`.
///
/// # Errors
/// When the guest is not there, refuses, or answers nonsense.
pub fn run(ctl: &Ctl, global: &Global) -> Result<Exit> {
    let socket = &ctl.socket;
    let simple = |request: Value| talk(socket, &request, PATIENCE, &mut |_| {});
    let answer = match &ctl.command {
        Control::Migrate(migrate) => return self::migrate(socket, migrate, global),
        Control::Snapshot(snapshot) => return self::snapshot(socket, snapshot, global),
        Control::Status => {
            talk(socket, &json!({ "command": "status" }), SHORT, &mut |_| {})?
        }
        Control::Receive { from } => {
            simple(json!({ "command": "receive", "from": from.to_string() }))?
        }
        Control::Cancel => simple(json!({ "command": "cancel" }))?,
        Control::SetRate { rate } => {
            let rate = rate.0.map(Rate::bytes_per_second);
            simple(json!({ "command": "set-rate", "bytes_per_s": rate }))?
        }
        Control::Pause => simple(json!({ "command": "pause" }))?,
        Control::Resume => simple(json!({ "command": "resume" }))?,
        Control::Quit { discard } => {
            simple(json!({ "command": "quit", "discard": discard }))?
        }
        Control::Counters => simple(json!({ "command": "counters" }))?,
        Control::Freeze => simple(json!({ "command": "freeze" }))?,
    };
    if global.json {
        output::json(&answer)?;
    } else {
        let mut text = String::new();
        readable(&answer, 0, &mut text);
        output::line(if text.is_empty() { "done" } else { &text })?;
    }
    Ok(status(Found::Done))
}

fn migrate(socket: &Path, migrate: &Migrate, global: &Global) -> Result<Exit> {
    let _cancelling = cancel_on_signal(socket)?;
    let show = Show::new(global.json, global.verbose > 0);
    let answer = talk(
        socket,
        &migrate_request(&migrate.to.to_string(), &migrate.budget),
        PATIENCE,
        &mut |progress| show.json(progress),
    )?;
    drop(show);
    tell(&summary(&answer)?, global.json)
}

fn snapshot(socket: &Path, snapshot: &Snapshot, global: &Global) -> Result<Exit> {
    if store::is_standard_output(&snapshot.file) {
        let text = "a snapshot is made by the guest's process: name a file";
        bail!(Nonsense(text.to_owned()));
    }
    // The guest's process has a folder of its own.
    let file = std::path::absolute(&snapshot.file)
        .with_context(|| format!("cannot name {}", snapshot.file.display()))?;
    // And it is told which by a text.
    let file = file.to_str().ok_or_else(|| {
        let text = format!(
            "the guest's process cannot be told of {}, which is not UTF-8: name another file",
            file.display()
        );
        Nonsense(text)
    })?;
    let _cancelling = cancel_on_signal(socket)?;
    let show = Show::new(global.json, global.verbose > 0);
    let request = json!({
        "command": "snapshot",
        "file": file,
        "stop": snapshot.stop,
        "replace": snapshot.replace,
    });
    let answer = talk(socket, &request, PATIENCE, &mut |progress| show.json(progress))?;
    drop(show);
    let report = answer
        .get("report")
        .ok_or_else(|| anyhow!("the guest ended the snapshot without a report"))?;
    let report: SnapshotReport = serde_json::from_value(report.clone())
        .context("the guest's report is not one that this version understands")?;
    if global.json {
        output::json(&report.to_json())?;
    } else {
        output::line(&report.text())?;
    }
    let exit = status(report.found());
    if exit != Exit::Done {
        let why = report.error.unwrap_or(report.outcome);
        output::note(&format!("vfio-migrate: {why}"));
    }
    Ok(exit)
}

/// Prints the report of a migration; what went wrong goes to standard error as well.
///
/// # Errors
/// When standard output fails.
pub fn tell(summary: &Summary, json: bool) -> Result<Exit> {
    if json {
        output::json(&summary.to_json())?;
    } else {
        output::line(&report::text(summary))?;
    }
    let exit = status(summary.found());
    if exit != Exit::Done {
        output::note(&format!("vfio-migrate: {}", summary.why()));
    }
    Ok(exit)
}

/// The request that starts a migration.
pub fn migrate_request(to: &str, budget: &Budget) -> Value {
    json!({
        "command": "migrate",
        "to": to,
        "downtime_limit_ms": budget.downtime_limit,
        "max_time_s": budget.max_time,
        "on_timeout": budget.on_timeout.to_string(),
        "channels": budget.channels,
        "rate_bytes_per_s": budget.rate.map(Rate::bytes_per_second),
    })
}

/// The report in the answer to a migration.
///
/// # Errors
/// When there is none.
pub fn summary(answer: &Value) -> Result<Summary> {
    let report = answer
        .get("report")
        .ok_or_else(|| anyhow!("the guest ended the migration without a report"))?;
    serde_json::from_value(report.clone())
        .context("the guest's report is not one that this version understands")
}

/// Asks a guest something and waits for the end of its answer: all lines of it, put
/// together in one object. `progress` hears of progress meanwhile.
///
/// # Errors
/// When nobody listens at `socket`, the guest refuses ([`Refused`]), is silent for
/// `patience`, goes away, or answers nonsense.
pub fn talk(
    socket: &Path,
    request: &Value,
    patience: Duration,
    progress: &mut dyn FnMut(&Value),
) -> Result<Value> {
    let at = || format!("the guest at {}", socket.display());
    let mut stream = UnixStream::connect(socket).with_context(|| {
        format!("cannot reach {}: is a guest running with this control socket?", at())
    })?;
    stream.set_read_timeout(Some(patience)).with_context(at)?;
    stream.set_write_timeout(Some(patience)).with_context(at)?;
    let asked = stream.write_all(format!("{request}\n").as_bytes());
    let mut answers = BufReader::new(stream);
    let mut all = Map::new();
    loop {
        let answer = match (next(&mut answers, patience), &asked) {
            // A guest that is busy says so without hearing the request.
            (Err(_), Err(error)) => {
                return Err(anyhow!("{error}").context("cannot ask").context(at()));
            }
            (answer, _) => answer.with_context(at)?,
        };
        let Value::Object(mut answer) = answer else {
            bail!("{} answered something that is no JSON object", at());
        };
        if let Some(value) = answer.remove("progress") {
            progress(&value);
        }
        if let Some(error) = answer.remove("error") {
            let text = |key| error.get(key).and_then(Value::as_str).map(str::to_owned);
            return Err(anyhow::Error::new(Refused {
                text: text("text").unwrap_or_else(|| error.to_string()),
                code: text("code").unwrap_or_else(|| "failed".to_owned()),
            }));
        }
        let done = answer.remove("done").is_some();
        all.append(&mut answer);
        if done {
            return Ok(Value::Object(all));
        }
    }
}

fn next(answers: &mut BufReader<UnixStream>, patience: Duration) -> Result<Value> {
    let mut line = Vec::new();
    match answers.by_ref().take(LINE).read_until(b'\n', &mut line) {
        Ok(0) => bail!("it went away in the middle of its answer"),
        Ok(_) if line.last() != Some(&b'\n') => {
            bail!("it went away in the middle of a line, or the line is too long")
        }
        Ok(_) => Ok(serde_json::from_slice(&line).context("its answer is no JSON")?),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            bail!(
                "it was silent for {} s: is this the control socket of a guest?",
                patience.as_secs()
            )
        }
        Err(error) => Err(error.into()),
    }
}

/// While this lives, the first signal cancels the migration of the guest at `socket`.
fn cancel_on_signal(socket: &Path) -> Result<Watching> {
    let socket = socket.to_owned();
    cancel_once(move || {
        let request = json!({ "command": "cancel" });
        match talk(&socket, &request, PATIENCE, &mut |_| {}) {
            Ok(_) => output::note("cancelling"),
            Err(error) => output::note(&format!("cannot cancel: {error:#}")),
        }
    })
}

/// `key: value` lines, deeper ones indented.
fn readable(value: &Value, depth: usize, into: &mut String) {
    let Value::Object(map) = value else { return };
    for (key, value) in map {
        let plain = match value {
            // The outermost object only says what was asked.
            Value::Object(_) if depth == 0 && map.len() == 1 => {
                return readable(value, 0, into);
            }
            Value::Object(_) => {
                into.push_str(&format!("{:indent$}{key}:\n", "", indent = depth * 2));
                readable(value, depth + 1, into);
                continue;
            }
            Value::Array(items) if items.is_empty() => "none".to_owned(),
            Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join("; "),
            other => plain(other),
        };
        into.push_str(&format!("{:indent$}{key}: {plain}\n", "", indent = depth * 2));
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{LINE, Refused, readable, talk};
    use serde_json::{Value, json};
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    /// A guest that answers one request with `answer`, and what the client made of it.
    fn told(answer: &[u8]) -> (anyhow::Result<Value>, Vec<Value>) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ctl");
        let listener = UnixListener::bind(&path).expect("a socket");
        let answer = answer.to_vec();
        let guest = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a client");
            let mut reader = BufReader::new(stream);
            let mut request = String::new();
            reader.read_line(&mut request).expect("a request");
            // The client may hang up first.
            let _ = reader.get_mut().write_all(&answer);
            request
        });
        let mut progress = Vec::new();
        let request = json!({ "command": "status" });
        let result = talk(&path, &request, Duration::from_secs(5), &mut |value| {
            progress.push(value.clone());
        });
        assert_eq!(guest.join().expect("no panic"), "{\"command\":\"status\"}\n");
        (result, progress)
    }

    #[test]
    fn progress_is_told_and_answers_are_put_together() {
        let (result, progress) = told(
            b"{\"progress\":{\"event\":\"note\",\"text\":\"hm\"}}\n\
              {\"status\":{\"state\":\"running\"}}\n{\"done\":true}\n",
        );
        assert_eq!(result.expect("an answer"), json!({"status":{"state":"running"}}));
        assert_eq!(progress.len(), 1);
    }

    #[test]
    fn a_refusal_keeps_its_reason() {
        let (result, _) =
            told(b"{\"error\":{\"text\":\"the guest moved\",\"code\":\"refused\"}}\n");
        let error = result.expect_err("a refusal");
        let refused = error.downcast_ref::<Refused>().expect("a refusal");
        assert_eq!(refused.code, "refused");
        assert_eq!(error.to_string(), "the guest moved");
    }

    #[test]
    fn a_guest_that_dies_in_its_answer_is_no_success() {
        for answer in [&b""[..], b"{\"status\":{}}\n", b"{\"status\"", b"[]\n", b"x\n"] {
            let (result, _) = told(answer);
            assert!(result.is_err(), "{:?}", String::from_utf8_lossy(answer));
        }
    }

    #[test]
    fn a_line_without_end_is_not_held_in_memory() {
        let (result, _) = told(&vec![b' '; LINE as usize + 1]);
        assert!(result.is_err());
    }

    #[test]
    fn nobody_there_is_said_with_the_remedy() {
        let path = std::path::Path::new("/nonexistent/ctl");
        let error = talk(path, &json!({}), Duration::from_secs(1), &mut |_| {})
            .expect_err("nobody");
        let text = format!("{error:#}");
        assert!(text.contains("/nonexistent/ctl") && text.contains("is a guest running"));
    }

    #[test]
    fn answers_are_shown_as_lines() {
        let mut text = String::new();
        let answer = json!({"status": {
            "state": "running", "blockers": [], "progress": null, "extra": {"n": 1},
        }});
        readable(&answer, 0, &mut text);
        for line in ["state: running\n", "blockers: none\n", "progress: -\n", "  n: 1\n"]
        {
            assert!(text.contains(line), "{text}");
        }
    }
}
