//! What a VMM keeps in its hand while a migration runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::heard::{FromSink, FromSource};
use crate::migration::{Cause, sink, source};

/// Steers a source from any thread.
///
/// How fast it may send is not steered here: the connections are the VMM's, and so is
/// their limit (`link::RateLimit`, changed at any time). The estimate of the downtime
/// asks for it, by [`port::Dial::limit`].
#[derive(Clone)]
pub struct SourceHandle {
    pub(super) events: Arc<Mutex<Sender<FromSource>>>,
    pub(super) flags: Arc<SourceFlags>,
}

/// Where the source is, readable at any time.
#[derive(Debug, Default)]
pub(super) struct SourceFlags {
    pub(super) locked: AtomicBool,
    pub(super) yielded: AtomicBool,
}

impl std::fmt::Debug for SourceHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourceHandle").field("flags", &self.flags).finish()
    }
}

impl SourceHandle {
    /// Gives the migration up; the guest goes on here. Nothing happens once the guest
    /// was given away.
    pub fn cancel(&self) {
        self.tell(source::Event::Cancel);
    }

    /// The operator pauses the guest: it is stopped, moved, and arrives paused. Nothing
    /// happens once the stop began.
    pub fn pause(&self) {
        self.tell(source::Event::Pause);
    }

    /// The operator takes a pause back that has not taken effect. Nothing happens once
    /// the stop began.
    pub fn resume(&self) {
        self.tell(source::Event::Resume);
    }

    /// Another downtime limit, from the next decision on.
    pub fn set_downtime_limit(&self, limit: Duration) {
        self.tell(source::Event::DowntimeLimit(limit));
    }

    /// The set of devices or the memory of the VM changed: the migration ends, with the
    /// guest going on here.
    pub fn changed(&self, what: impl Into<String>) {
        self.tell(source::Event::Failed(Cause::Changed(what.into())));
    }

    /// Whether the operator may still pause, resume and cancel.
    pub fn interruptible(&self) -> bool {
        !self.flags.locked.load(Ordering::Acquire)
    }

    /// Whether the right to run was given away, or may have been.
    pub fn yielded(&self) -> bool {
        self.flags.yielded.load(Ordering::Acquire)
    }

    fn tell(&self, event: source::Event) {
        // A migration that ended hears nothing any more.
        let _ = self
            .events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send(FromSource::Event(event));
    }
}

/// Steers a destination from any thread.
#[derive(Clone)]
pub struct SinkHandle {
    pub(super) events: Arc<Mutex<Sender<FromSink>>>,
    pub(super) holding: Arc<AtomicBool>,
}

impl std::fmt::Debug for SinkHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SinkHandle").field("holding", &self.holding).finish()
    }
}

impl SinkHandle {
    /// Throws a held guest away: RETURNED is recorded first. Only where PREPARED was
    /// said and the source is gone.
    pub fn discard(&self) {
        self.tell(sink::Event::Discard);
    }

    /// Gives up: what was received is thrown away. A guest that was prepared is returned
    /// to its source first (RETURNED is recorded); one that is held alone is not thrown
    /// away by this, see [`SinkHandle::discard`]. Nothing happens after COMMIT.
    pub fn cancel(&self) {
        if !self.holding() {
            self.tell(sink::Event::Cancel);
        }
    }

    /// Whether PREPARED was said, the source is gone, and nothing is decided.
    pub fn holding(&self) -> bool {
        self.holding.load(Ordering::Acquire)
    }

    fn tell(&self, event: sink::Event) {
        let _ = self
            .events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send(FromSink::Event(event));
    }
}
