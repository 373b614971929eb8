//! Standard output: lines for people, or with `--json` one JSON object a line.
//!
//! Whoever reads it may stop reading (`| head -1`): what is then still said goes
//! nowhere, and the command ends as it would have.

use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

/// Whether `--json` was given: set once, before anything is said.
static JSON: AtomicBool = AtomicBool::new(false);

/// From here on [`say`] speaks JSON.
pub fn speak_json() {
    JSON.store(true, Ordering::Relaxed);
}

/// Says something in the way that was asked for: `text` for people, or `value`.
///
/// # Errors
/// As [`line()`].
pub fn say(text: &str, value: &Value) -> io::Result<()> {
    if JSON.load(Ordering::Relaxed) { json(value) } else { line(text) }
}

/// Prints one text, with a line end if it has none.
///
/// # Errors
/// When standard output fails otherwise than by nobody reading it.
pub fn line(text: &str) -> io::Result<()> {
    let end = if text.ends_with('\n') { "" } else { "\n" };
    let mut out = io::stdout().lock();
    let written =
        out.write_all(format!("{text}{end}").as_bytes()).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(error) => {
            let text = format!("cannot write to standard output: {error}");
            Err(io::Error::new(error.kind(), text))
        }
        Ok(()) => Ok(()),
    }
}

/// Prints one JSON object as one line.
///
/// # Errors
/// As [`line()`].
pub fn json(value: &Value) -> io::Result<()> {
    line(&value.to_string())
}

/// Prints one line to standard error. Whether anybody reads it changes nothing.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
