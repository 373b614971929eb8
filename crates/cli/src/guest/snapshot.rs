//! The guest is copied into a file, from the request to the report.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use engine::drive::{RecordOptions, Recorded, Recording};
use serde::Deserialize;
use serde_json::Value;
use store::{FileError, SavedFile};

use super::process::{Guest, Remember};
use super::vm::Vm;
use crate::report::snapshot::SnapshotReport;

/// How often it is looked whether it ended without a word.
const LOOK: Duration = Duration::from_millis(200);

/// What is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    /// The file to make, as this process sees it.
    file: PathBuf,
    /// Whether the guest stays stopped.
    #[serde(default)]
    stop: bool,
    /// Whether a file of that name is replaced.
    #[serde(default)]
    replace: bool,
}

/// Copies the guest, and gives the report. `tell` hears of progress meanwhile.
pub(super) fn snapshot(
    guest: &Arc<Guest>,
    request: &Request,
    tell: &dyn Fn(Value),
) -> Result<Value> {
    let Request { file, stop, replace } = request;
    if store::is_standard_output(file) {
        bail!("a guest's standard output is not for its snapshot: name a file");
    }
    // Before the guest is touched.
    let opening = guest.opening()?;
    let into =
        SavedFile::create_unless(file, *replace, &opening.unless).map_err(|error| {
            match error {
                FileError::Exists { .. } => anyhow!("{error} with --replace"),
                error => error.into(),
            }
        })?;
    let id = store::new_attempt()?;
    let (events, heard) = channel();
    let remember = Remember {
        guest: Arc::clone(guest),
        tell: move |event| {
            let _ = events.send(event);
        },
    };
    let options = RecordOptions { stopped: *stop, ..RecordOptions::default() };
    // Before the guest is lent: where there is no thread, it has lost nothing.
    let (lend, lent) = channel::<Recording>();
    let driver = std::thread::Builder::new()
        .name("snapshot".to_owned())
        .spawn(move || lent.recv().map(Recording::run))
        .context("cannot start a thread")?;
    let unless = Arc::clone(&opening.unless);
    let (recording, vm) = guest.copied(unless, move |machine| {
        let recording = Recording::new(machine, Box::new(into), id, options)
            .observer(Arc::new(remember));
        let handle = recording.handle();
        (recording, handle)
    })?;
    drop(opening);
    let _ = lend.send(recording);
    loop {
        match heard.recv_timeout(LOOK) {
            Ok(event) => tell(event),
            Err(RecvTimeoutError::Timeout) if !driver.is_finished() => {}
            Err(_) => break,
        }
    }
    let Ok(Ok(recorded)) = driver.join() else {
        let text = "the engine panicked in a snapshot";
        guest.arrived(None, Some(text.to_owned()));
        bail!("{text}");
    };
    let report = SnapshotReport::new(file, &recorded);
    settle(guest, &vm, recorded, &report);
    Ok(report.to_json())
}

/// Takes back what was lent.
fn settle(guest: &Guest, vm: &Vm, recorded: Recorded, report: &SnapshotReport) {
    let Recorded { machine, result, pause_pending, .. } = recorded;
    match (result, &report.error) {
        (Err(error), Some(note)) => {
            guest.back(vm, machine, &error, note.clone(), pause_pending);
        }
        _ => guest.arrived(Some(machine), None),
    }
}
