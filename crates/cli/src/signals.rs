//! SIGINT, SIGTERM and SIGHUP for commands that end by themselves, and SIGXFSZ for
//! all.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::{Handle, Signals};
use signal_hook::low_level::emulate_default_handler;

/// From here on a file that grows beyond what this process may write (`ulimit -f`) is an
/// error of the write, as a full disk is. Otherwise it would end the process, and with it
/// the guest of which a snapshot is made.
pub(crate) fn outlive_long_files() {
    // What is heard is not needed. Without it the process is as it always was.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::<AtomicBool>::default());
}

/// While this lives, signals are heard.
#[derive(Debug)]
pub(crate) struct Watching(Handle);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Calls `hear` at every signal, in a thread of its own, instead of ending the process.
pub(crate) fn watch(mut hear: impl FnMut(i32) + Send + 'static) -> Result<Watching> {
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot catch signals")?;
    let handle = signals.handle();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || signals.forever().for_each(&mut hear))
        .context("cannot start a thread")?;
    Ok(Watching(handle))
}

/// Calls `cancel` at the first signal; the second ends the process as usual.
pub(crate) fn cancel_once(mut cancel: impl FnMut() + Send + 'static) -> Result<Watching> {
    let mut asked = false;
    watch(move |signal| {
        if asked {
            let _ = emulate_default_handler(signal);
        }
        asked = true;
        cancel();
    })
}
