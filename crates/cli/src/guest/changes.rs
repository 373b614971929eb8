//! How much of the guest changed since a migration began, and the gate that waits for
//! all of it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use control::TransportError;
use port::Gate;

use super::board::Board;
use super::options::MachineOptions;
use super::round::Round;
use crate::report::Changed;

/// Counts what changed since [`Changes::begin`]; with `hold`, keeps the guest from being
/// stopped until that is everything that is not idle by option.
pub(super) struct Changes {
    board: Arc<Board>,
    hold: bool,
    idle: Idle,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// `None` where nothing can be counted: a paused guest, or no migration.
    since: Option<Counts>,
    seen: Option<Seen>,
}

/// Who writes nothing, because the operator has it so: not to be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Idle {
    vcpus: bool,
    devices: bool,
}

impl Idle {
    /// Who is idle in a guest that boots with these options.
    pub(super) fn new(options: &MachineOptions) -> Idle {
        let each = options.dirty_rate / u64::from(options.vcpus.max(1));
        Idle { vcpus: each == 0, devices: options.dma_rate == 0 }
    }

    /// Whether everything changed that ever will. The devices own `theirs` of all pages,
    /// and all blocks.
    fn all(self, seen: &Seen, theirs: u64) -> bool {
        let Seen { pages, blocks } = seen;
        let vcpus = if self.vcpus { pages.of.saturating_sub(theirs) } else { 0 };
        let devices = if self.devices { theirs } else { 0 };
        let pages = pages.changed.saturating_add(vcpus + devices) >= pages.of;
        pages && (self.devices || blocks.changed >= blocks.of)
    }
}

/// How much changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Pages of RAM.
    pub(super) pages: Changed,
    /// Blocks of device memory, all devices together.
    pub(super) blocks: Changed,
}

/// Everything that counts writes.
struct Counts {
    vcpus: Vec<u64>,
    /// In an order that does not change.
    devices: Vec<Round>,
}

impl Changes {
    /// Nothing is counted yet.
    pub(super) fn new(board: Arc<Board>, hold: bool, idle: Idle) -> Changes {
        Changes { board, hold, idle, inner: Mutex::default() }
    }

    /// A migration begins. The devices must run, or nothing is counted.
    pub(super) fn begin(&self) {
        let running = self.board.barrier.is_open();
        let since = running.then(|| self.counts().ok()).flatten();
        *self.locked() = Inner { since, seen: None };
    }

    /// What changed, as last looked at.
    pub(super) fn seen(&self) -> Option<Seen> {
        self.locked().seen
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counts(&self) -> Result<Counts, TransportError> {
        let board = &self.board;
        let next = |shown: &super::vcpu::Shown| shown.next.load(Ordering::Acquire);
        let mut devices = Vec::new();
        for device in &board.devices {
            devices.extend(device.rounds()?);
        }
        Ok(Counts { vcpus: board.shown.iter().map(next).collect(), devices })
    }

    fn look(&self, since: &Counts) -> Result<Seen, TransportError> {
        let (board, now) = (&self.board, self.counts()?);
        let mut pages = 0;
        let own = board.shown.iter().map(|shown| shown.pages);
        for (own, (before, after)) in own.zip(since.vcpus.iter().zip(&now.vcpus)) {
            // Any stretch of that many writes touches each page once.
            pages += own.min(after.saturating_sub(*before));
        }
        let (mut blocks, mut all) = (0, 0);
        for (before, after) in since.devices.iter().zip(&now.devices) {
            let new = after.count.saturating_sub(before.count).saturating_sub(after.lag);
            pages += after.pages.min(new);
            blocks += after.blocks.min(new);
            all += after.blocks;
        }
        Ok(Seen {
            pages: Changed { changed: pages, of: board.ram.layout().pages() },
            blocks: Changed { changed: blocks, of: all },
        })
    }
}

impl Gate for Changes {
    fn open(&self) -> bool {
        let mut inner = self.locked();
        let Some(since) = &inner.since else { return true };
        // The engine asks once more after the stop; devices answer nobody then.
        if !self.board.barrier.is_open() {
            return true;
        }
        // A device that does not answer fails the migration by itself.
        let Ok(seen) = self.look(since) else { return true };
        inner.seen = Some(seen);
        let theirs = self.board.ram.layout().first_vcpu_page();
        !self.hold || self.idle.all(&seen, theirs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_idle_by_option_is_not_waited_for() {
        let seen = |pages, blocks| Seen {
            pages: Changed { changed: pages, of: 100 },
            blocks: Changed { changed: blocks, of: 50 },
        };
        let (busy, idle) = (false, true);
        // Of 100 pages 30 are the devices'.
        for (vcpus, devices, pages, blocks, opens) in [
            (busy, busy, 100, 50, true),
            (busy, busy, 99, 50, false),
            (busy, busy, 100, 49, false),
            (idle, busy, 30, 50, true),
            (idle, busy, 29, 50, false),
            (idle, busy, 30, 49, false),
            (busy, idle, 70, 0, true),
            (busy, idle, 69, 0, false),
            (idle, idle, 0, 0, true),
        ] {
            let idle = Idle { vcpus, devices };
            let open = idle.all(&seen(pages, blocks), 30);
            assert_eq!(open, opens, "{idle:?}: {pages} pages, {blocks} blocks");
        }
    }
}
