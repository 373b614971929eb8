//! The control socket: one request a connection, in JSON lines.
//!
//! A request is one object with a `command`. Any number of objects come back, and at
//! last `{"done": true}` or `{"error": {"text": …, "code": …}}`. Every connection has a
//! thread, so that `status` is answered while a migration runs.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use sys::socket::Listener;

use super::process::Guest;
use super::token::Refusal;
use super::{arrival, departure, snapshot};

/// The longest request, in bytes.
const LONGEST: u64 = 64 << 10;
/// How long a client may take to make its request, and to take a line.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most connections at once.
const CONNECTIONS: usize = 32;

/// What can be asked.
#[derive(Debug, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
enum Request {
    Status,
    Counters,
    Cancel,
    Pause,
    Resume,
    Freeze {
        digests: Option<PathBuf>,
    },
    Quit {
        #[serde(default)]
        discard: bool,
    },
    #[serde(rename = "set-rate")]
    SetRate {
        /// Null for no limit.
        bytes_per_s: Option<u64>,
    },
    Migrate(departure::Request),
    Snapshot(snapshot::Request),
    Receive(arrival::Request),
}

/// Serves the socket until the guest's process is to end.
pub(super) fn serve(guest: &Arc<Guest>, listener: &Listener) -> Result<()> {
    let connections = Arc::new(AtomicUsize::new(0));
    loop {
        let fds = [guest.over.as_fd(), listener.as_fd()];
        let ready = sys::wait_readable(&fds, Duration::from_secs(3600))
            .context("wait for the control socket")?;
        if ready.first() == Some(&true) {
            return Ok(());
        }
        if ready.get(1) != Some(&true) {
            continue;
        }
        let Ok(socket) = listener.accept() else { continue };
        if connections.load(Ordering::Acquire) >= CONNECTIONS {
            let text = format!("{CONNECTIONS} others are asking this guest: try again");
            let stream = UnixStream::from(socket);
            // The line has room in a new socket: nothing is waited for.
            if stream.set_nonblocking(true).is_ok() {
                tell(&stream, &error_json(&text, "busy"));
            }
            continue;
        }
        connections.fetch_add(1, Ordering::AcqRel);
        let (guest, count) = (Arc::clone(guest), Arc::clone(&connections));
        let thread = std::thread::Builder::new().name("control".to_owned());
        let started = thread.spawn(move || {
            answer(&guest, socket);
            count.fetch_sub(1, Ordering::AcqRel);
        });
        if started.is_err() {
            connections.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Answers one connection. A client that went away changes nothing.
fn answer(guest: &Arc<Guest>, socket: OwnedFd) {
    let stream = UnixStream::from(socket);
    let ready = stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_read_timeout(Some(PATIENCE)))
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
    if ready.is_err() {
        return;
    }
    let mut line = Vec::new();
    let read = BufReader::new((&stream).take(LONGEST)).read_until(b'\n', &mut line);
    if read.is_err() || line.last() != Some(&b'\n') {
        tell(&stream, &error_json("a request is one line of JSON", "usage"));
        return;
    }
    let request = match serde_json::from_slice(&line) {
        Ok(request) => request,
        Err(error) => {
            let text = format!("the request is not understood: {error}");
            tell(&stream, &error_json(&text, "usage"));
            return;
        }
    };
    let quits = matches!(request, Request::Quit { .. });
    match perform(guest, request, &|value| tell(&stream, &value)) {
        Ok(()) => {
            tell(&stream, &json!({ "done": true }));
            if quits {
                guest.end(0);
            }
        }
        Err(error) => {
            let refused = error.is::<Refusal>();
            let code = if refused { "refused" } else { "failed" };
            tell(&stream, &error_json(&format!("{error:#}"), code));
        }
    }
}

fn perform(guest: &Arc<Guest>, request: Request, say: &dyn Fn(Value)) -> Result<()> {
    match request {
        Request::Status => say(guest.status()),
        Request::Counters => say(guest.counters()?),
        Request::Cancel => guest.cancel()?,
        Request::Pause => guest.pause()?,
        Request::Resume => guest.resume()?,
        Request::SetRate { bytes_per_s } => guest.set_rate(bytes_per_s)?,
        Request::Freeze { digests } => say(guest.freeze(digests)?),
        Request::Quit { discard } => guest.quit(discard)?,
        Request::Migrate(request) => {
            let report = departure::migrate(guest, &request, &|event| {
                say(json!({ "progress": event }));
            })?;
            say(json!({ "report": report }));
        }
        Request::Snapshot(request) => {
            let report = snapshot::snapshot(guest, &request, &|event| {
                say(json!({ "progress": event }));
            })?;
            say(json!({ "report": report }));
        }
        Request::Receive(request) => say(arrival::again(guest, &request)?),
    }
    Ok(())
}

fn error_json(text: &str, code: &str) -> Value {
    json!({ "error": { "text": text, "code": code } })
}

fn tell(mut stream: &UnixStream, value: &Value) {
    let _ = stream.write_all(format!("{value}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Request, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn every_command_is_understood_as_it_is_sent() {
        for text in [
            r#"{"command":"status"}"#,
            r#"{"command":"counters"}"#,
            r#"{"command":"cancel"}"#,
            r#"{"command":"pause"}"#,
            r#"{"command":"resume"}"#,
            r#"{"command":"freeze"}"#,
            r#"{"command":"quit"}"#,
            r#"{"command":"set-rate","bytes_per_s":1048576}"#,
            r#"{"command":"set-rate","bytes_per_s":null}"#,
            r#"{"command":"migrate","to":"unix:/a","rate_bytes_per_s":1048576}"#,
            r#"{"command":"quit","discard":true}"#,
            r#"{"command":"migrate","to":"tcp:127.0.0.1:7600","downtime_limit_ms":300,
                "max_time_s":300,"on_timeout":"fail","channels":1}"#,
            r#"{"command":"migrate","to":"unix:/run/a"}"#,
            r#"{"command":"snapshot","file":"/a"}"#,
            r#"{"command":"snapshot","file":"/a","stop":true,"replace":true}"#,
            r#"{"command":"receive","from":"tcp:127.0.0.1:0"}"#,
        ] {
            parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
    }

    #[test]
    fn a_request_that_is_not_fully_understood_is_not_carried_out() {
        for text in [
            "{}",
            "[]",
            r#"{"command":"explode"}"#,
            r#"{"command":"quit","discard":1}"#,
            r#"{"command":"quit","discart":true}"#,
            r#"{"command":"migrate"}"#,
            r#"{"command":"snapshot"}"#,
            r#"{"command":"receive"}"#,
            r#"{"command":"receive","from":"here"}"#,
            r#"{"command":"snapshot","file":"/a","halt":true}"#,
            r#"{"command":"set-rate","bytes_per_s":-1}"#,
            r#"{"command":"migrate","to":"nowhere"}"#,
            r#"{"command":"migrate","to":"unix:/a","on_timeout":"never"}"#,
            r#"{"command":"migrate","to":"unix:/a","channels":-1}"#,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
