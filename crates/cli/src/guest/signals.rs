//! SIGINT, SIGTERM and SIGHUP: each asks what the command `quit` asks.
//!
//! A process that holds a guest, or may have the only copy of one, is not ended by a
//! Ctrl-C in its terminal. Whoever means it says `quit --discard`.

use std::sync::Arc;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use signal_hook::low_level::signal_name;

use super::process::Guest;
use crate::output;

/// Signals that are caught. One that comes before there is a guest waits for it.
pub(super) struct Caught(Signals);

impl Caught {
    /// From here on no signal ends the process by itself.
    pub(super) fn new() -> Result<Caught> {
        let signals = Signals::new([SIGINT, SIGTERM, SIGHUP]);
        Ok(Caught(signals.context("cannot catch signals")?))
    }

    /// While the result lives, a signal ends the guest's process where `quit` would;
    /// where not, standard error says why.
    pub(super) fn quit(mut self, guest: &Arc<Guest>) -> Result<Quitting> {
        let handle = self.0.handle();
        let guest = Arc::clone(guest);
        let thread = std::thread::Builder::new().name("signals".to_owned());
        let run = move || {
            for signal in self.0.forever() {
                match guest.quit(false) {
                    Ok(()) => guest.end(0),
                    Err(error) => {
                        let name = signal_name(signal).unwrap_or("a signal");
                        output::note(&format!(
                            "vfio-migrate: {name} does not end this process: {error:#}"
                        ));
                    }
                }
            }
        };
        thread.spawn(run).context("cannot start a thread")?;
        Ok(Quitting(handle))
    }
}

/// See [`Caught::quit`].
pub(super) struct Quitting(Handle);

impl Drop for Quitting {
    fn drop(&mut self) {
        self.0.close();
    }
}
