//! How long the main loop waits.

use std::time::Duration;

use crate::migration::source::Patience;

/// A wait under way, or none.
#[derive(Debug, Default)]
pub(super) struct Watch(Option<Wait>);

#[derive(Debug)]
struct Wait {
    patience: Patience,
    until: Duration,
    moved: u64,
}

impl Watch {
    /// Waits from now on. `moved` is a number that changes when bulk data moves.
    pub(super) fn new(patience: Patience, now: Duration, moved: u64) -> Watch {
        let (Patience::Answer(limit) | Patience::Progress(limit)) = patience;
        Watch(Some(Wait { patience, until: now + limit, moved }))
    }

    /// When to look again.
    pub(super) fn until(&self) -> Option<Duration> {
        self.0.as_ref().map(|wait| wait.until)
    }

    /// Whether the wait is over: the time has come, and nothing moved where moving is
    /// enough. A wait is over once.
    pub(super) fn is_over(&mut self, now: Duration, moved: u64) -> bool {
        let Some(wait) = self.0.as_mut().filter(|wait| wait.until <= now) else {
            return false;
        };
        if let Patience::Progress(limit) = wait.patience
            && wait.moved != moved
        {
            wait.moved = moved;
            wait.until = now + limit;
            return false;
        }
        self.0 = None;
        true
    }
}
