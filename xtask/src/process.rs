//! Running other programs: where, how long, and what to show when they fail.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::{Failure, Outcome};

/// The folder of the workspace.
pub(crate) fn root() -> PathBuf {
    // Set by `cargo run`; the folder at compile time serves a binary run by hand.
    let own = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    own.parent().map_or_else(|| own.clone(), Path::to_path_buf)
}

/// Cargo, the one that runs us, in the given folder.
pub(crate) fn cargo(folder: &Path) -> Command {
    let mut command =
        Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(folder);
    command
}

/// Whether `cargo nextest` is installed.
pub(crate) fn has_nextest(folder: &Path) -> bool {
    cargo(folder)
        .args(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The command as one would type it.
pub(crate) fn spelled(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_stem().unwrap_or_default();
    let mut text = program.to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// Runs a command with our own output streams, and says how long it took.
///
/// # Errors
///
/// When the command cannot be started, or ends with anything but success.
pub(crate) fn step(name: &str, command: &mut Command) -> Outcome {
    println!("== {name}: {}", spelled(command));
    let start = Instant::now();
    let status = command.status().map_err(|error| {
        Failure::Failed(format!("{name}: cannot run `{}`: {error}", spelled(command)))
    })?;
    println!("== {name}: {:.1} s", start.elapsed().as_secs_f64());
    if status.success() {
        Ok(())
    } else {
        Err(Failure::Failed(format!("{name}: `{}`: {status}", spelled(command))))
    }
}

/// Runs a command and returns its standard output, without the last line end.
///
/// # Errors
///
/// When the command cannot be started or fails; the text is then its standard error.
pub(crate) fn output(command: &mut Command) -> Result<String, Failure> {
    let done = command.output().map_err(|error| {
        Failure::Failed(format!("cannot run `{}`: {error}", spelled(command)))
    })?;
    if !done.status.success() {
        return Err(Failure::Failed(format!(
            "`{}` failed: {}",
            spelled(command),
            String::from_utf8_lossy(&done.stderr).trim_end()
        )));
    }
    Ok(String::from_utf8_lossy(&done.stdout).trim_end().to_owned())
}
