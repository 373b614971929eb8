//! A guest comes in, or is awaited: at first, or again where one has moved away.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::Result;
use engine::Machine;
use engine::drive::SinkHandle;

use super::{At, Guest, Inner, TURN};
use crate::guest::token::{Command, Refusal};
use crate::guest::vm::Vm;

/// What a machine was made of; the engine's part goes first.
type Left = (Option<Machine>, Option<Arc<Vm>>);

impl Guest {
    /// A destination's machine was opened.
    pub(in crate::guest) fn opened(&self, vm: Arc<Vm>) {
        self.locked().vm = Some(vm);
    }

    /// A source has connected, or is read from a file: the flag ends every wait for
    /// another. `false` where it is set already, and nobody is to come in.
    pub(in crate::guest) fn receiving(
        &self,
        handle: SinkHandle,
        unless: Arc<AtomicBool>,
    ) -> bool {
        let mut inner = self.locked();
        // Whoever sets it waits for this process to wait no more: under the lock.
        if unless.load(Ordering::Acquire) {
            return false;
        }
        inner.at = At::In(handle, unless);
        inner.progress = None;
        drop(inner);
        self.changed.notify_all();
        true
    }

    /// A destination goes back to listening, until the flag is set.
    pub(in crate::guest) fn listening(
        &self,
        unless: Arc<AtomicBool>,
        again: bool,
        note: String,
    ) {
        self.leave();
        self.settle(At::Waiting { unless, again }, None, None, Some(note));
    }

    /// Nothing is here, and nobody is waited for any more.
    pub(in crate::guest) fn emptied(&self, note: Option<String>) {
        self.leave();
        self.settle(At::Empty, None, None, note);
    }

    /// A guest that has moved away leaves its place to another, which is awaited at
    /// `from` until the flag is set.
    ///
    /// # Errors
    /// Where it has not moved.
    pub(in crate::guest) fn again(
        &self,
        from: String,
        unless: Arc<AtomicBool>,
    ) -> Result<()> {
        let left = {
            let mut inner = self.locked();
            self.permit(&inner, Command::Receive)?;
            inner.at = At::Waiting { unless, again: true };
            inner.from = Some(from);
            inner.note = None;
            inner.progress = None;
            // What was to be broken was, or was not: in a migration that is over.
            inner.inject = None;
            inner.leave()
        };
        // Not under the lock: threads and connections end with it.
        drop(left);
        Ok(())
    }

    fn leave(&self) {
        let left = self.locked().leave();
        drop(left);
    }

    /// Whether a guest may come here, with a look only.
    pub(in crate::guest) fn may_receive(&self) -> Result<(), Refusal> {
        self.permit(&self.locked(), Command::Receive)
    }

    /// Ends the wait for a guest, where there is one: its place is nobody's any more then.
    pub(super) fn unawait<'a>(
        &'a self,
        mut inner: MutexGuard<'a, Inner>,
    ) -> MutexGuard<'a, Inner> {
        let At::Waiting { unless: this, .. } = &inner.at else { return inner };
        let this = Arc::clone(this);
        this.store(true, Ordering::Release);
        let until = Instant::now() + TURN;
        while matches!(&inner.at, At::Waiting { unless, .. } if Arc::ptr_eq(unless, &this))
        {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(inner, left);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        inner
    }
}

impl Inner {
    /// Forgets the machine and what was known of it; what is left of it.
    fn leave(&mut self) -> Left {
        self.blockers.clear();
        self.lost.clear();
        self.gone = None;
        (self.machine.take(), self.vm.take())
    }
}
