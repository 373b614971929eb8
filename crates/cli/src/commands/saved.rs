//! `vfio-migrate save` and `restore`: devices without a guest, and a file.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow};
use engine::drive::{self, Leave, Offered, RestoreOptions, SaveOptions};
use engine::migration::Options;
use engine::migration::compat::{Field, Side, differences};
use store::{FileError, SavedFile};

use super::decode::begins_as_ours;
use crate::args::{Global, Restore, Save};
use crate::devices::{open_all, open_lasting, open_offered};
use crate::exit::{Exit, Found, Nonsense, status};
use crate::output;
use crate::progress::Show;
use crate::report::saved::FileReport;
use crate::signals::{Watching, cancel_once};

/// Saves devices into a file.
pub(super) fn save(save: &Save, global: &Global) -> Result<Exit> {
    let output = save.output.as_path();
    let to_stdout = store::is_standard_output(output);
    if to_stdout && global.json {
        return Err(Nonsense(
            "--output - takes standard output for the file: leave --json out, or name a \
             file"
                .to_owned(),
        )
        .into());
    }
    let devices = match save.stop {
        true => open_lasting(&save.devices.devices)?,
        false => open_all(&save.devices.devices)?,
    };
    let (cancel, _watching) = cancelled_by_signals()?;
    let mut file =
        SavedFile::create_unless(output, save.replace, &cancel).map_err(|error| {
            match error {
                FileError::Exists { .. } => anyhow!("{error} with --replace"),
                error => error.into(),
            }
        })?;
    let options = SaveOptions {
        leave: if save.stop { Leave::Stopped } else { Leave::AsBefore },
        peer_to_peer: !save.devices.independent,
        patience: Options::default().patience,
        cancel,
    };
    let id = store::new_attempt()?;
    let show = Arc::new(Show::new(global.json, global.verbose > 0));
    let saved = drive::save(devices, id, &mut file, &options, show);
    let report = FileReport::saved(output, &saved.result?);
    if to_stdout {
        output::note(report.text().trim_end());
    } else {
        tell(&report, global)?;
    }
    Ok(status(Found::Done))
}

/// Restores devices from a file.
pub(super) fn restore(restore: &Restore, global: &Global) -> Result<Exit> {
    let input = restore.input.as_path();
    let (cancel, _watching) = cancelled_by_signals()?;
    let mut file = store::open_unless(input, &cancel)?;
    let options = RestoreOptions {
        start: restore.start,
        peer_to_peer: !restore.devices.independent,
        patience: Options::default().patience,
        cancel,
    };
    let named = || format!("cannot restore {}", name(input));
    let mut known = Vec::new();
    if file.is_regular() {
        begins_as_ours(input).with_context(named)?;
        known = drive::saved_sides(&mut file, options.patience).with_context(named)?;
        file.rewind()?;
    }
    let show = Arc::new(Show::new(global.json, global.verbose > 0));
    let open = |offered: &[Offered]| {
        let devices = open_offered(&restore.devices.devices, offered.len())?;
        // The rest is compared in any case; this is known only of a whole file.
        let pairs = known.iter().zip(&devices);
        let reasons =
            pairs.flat_map(|(saved, into)| differences(saved, &Side::of(&**into)));
        let long = reasons.filter(|(field, _)| *field == Field::Transactions);
        let long: Vec<String> = long.map(|(_, what)| what).collect();
        if long.is_empty() { Ok(devices) } else { Err(long) }
    };
    let restored = drive::restore(&mut file, open, &options, show);
    let report = restored.result.with_context(named)?;
    tell(&FileReport::restored(input, &report), global)?;
    Ok(status(Found::Done))
}

fn tell(report: &FileReport, global: &Global) -> Result<()> {
    let told = match global.json {
        true => output::json(&report.to_json()),
        false => output::line(&report.text()),
    };
    told.context("all of it is done, and only the report of it is lost")
}

/// A flag that the first signal sets, for as long as the second value lives.
fn cancelled_by_signals() -> Result<(Arc<AtomicBool>, Watching)> {
    let cancel = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&cancel);
    let watching = cancel_once(move || {
        set.store(true, Ordering::Release);
        output::note("cancelling");
    })?;
    Ok((cancel, watching))
}

fn name(input: &Path) -> String {
    if input == Path::new("-") {
        "from standard input".to_owned()
    } else {
        format!("from {}", input.display())
    }
}
