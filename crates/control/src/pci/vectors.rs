//! The vectors of MSI or MSI-X, between the device that signals and the guest that hears.
//!
//! ```text
//!   device --> eventfd --> raw --+-- not masked --> due (exact) --> delivered
//!                                +-- masked ------> pending (one bit) -- unmask --> due
//! ```
//!
//! [`Signals`] are sorted when somebody has to know: when the guest takes interrupts,
//! right before a mask changes, when it looks at pending bits, and when all is saved.
//! Until then the mask has not changed, so it does not matter when they are sorted.

use std::io;

use super::signals::Signals;
use super::view::{Message, VectorCounts};

/// One vector.
#[derive(Debug, Default)]
pub(super) struct Vector {
    pub(super) signals: Signals,
    pub(super) heard: Heard,
}

/// What became of a vector's signals: all of it travels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// Interrupts that are the guest's once the vector is not masked.
    pub(super) due: u64,
    /// Whether one waits for the mask to go away.
    pub(super) pending: bool,
    /// Interrupts that were delivered.
    pub(super) delivered: u64,
    /// Signals that came while the vector was masked.
    pub(super) absorbed: u64,
    /// Times that the vector was masked and at least one came.
    pub(super) windows: u64,
}

impl Heard {
    /// Takes signals in, as the mask is now.
    fn sort(&mut self, signals: u64, masked: bool) {
        if signals == 0 {
            return;
        }
        if masked {
            self.absorbed = self.absorbed.saturating_add(signals);
            self.windows = self.windows.saturating_add(u64::from(!self.pending));
            self.pending = true;
        } else {
            // A count from another host may be anything; it only has to stay a count.
            self.due = self.due.saturating_add(signals);
        }
    }

    /// The mask is gone: what waited is one interrupt.
    fn release(&mut self) {
        if std::mem::take(&mut self.pending) {
            self.due = self.due.saturating_add(1);
        }
    }

    fn take(&mut self) -> u64 {
        let due = std::mem::take(&mut self.due);
        self.delivered = self.delivered.saturating_add(due);
        due
    }
}

impl Vector {
    /// Sorts what the device signalled, with the mask as it is.
    pub(super) fn sort(&mut self, masked: bool) -> io::Result<()> {
        self.signals.collect()?;
        self.heard.sort(self.signals.take(), masked);
        Ok(())
    }

    /// The mask went away.
    pub(super) fn unmasked(&mut self) {
        self.heard.release();
    }

    /// What the guest is to hear now, of what was collected. Nothing where the vector is
    /// masked, whose signals may stay where they are.
    pub(super) fn take(&mut self, masked: bool) -> u64 {
        if masked {
            return 0;
        }
        self.heard.sort(self.signals.take(), false);
        self.heard.take()
    }

    /// Undoes the sorting of what is the guest's and was not taken.
    pub(super) fn put_back(&mut self, masked: bool) {
        if !masked {
            self.signals.put_back(std::mem::take(&mut self.heard.due));
        }
    }

    /// The account as it will be when everything was sorted. Changes nothing of it.
    pub(super) fn counts(&self, masked: bool) -> VectorCounts {
        let mut heard = self.heard;
        heard.sort(self.signals.unsorted(), masked);
        let Heard { due, pending, delivered, absorbed, windows } = heard;
        VectorCounts {
            delivered,
            absorbed,
            windows,
            rises: 0,
            pending: due.saturating_add(u64::from(pending)),
            held: pending,
            masked,
        }
    }

    /// After a reset of the device: nothing was ever heard.
    pub(super) fn forget(&mut self) -> io::Result<()> {
        self.heard = Heard::default();
        self.signals.forget()
    }
}

/// An entry of the MSI-X table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) message: Message,
    pub(super) masked: bool,
}

impl Entry {
    /// As after a reset.
    pub(super) const FRESH: Entry =
        Entry { message: Message { address: 0, data: 0 }, masked: true };

    /// One of its four registers.
    pub(super) fn register(&self, number: u64) -> u32 {
        match number {
            0 => self.message.address as u32,
            1 => (self.message.address >> 32) as u32,
            2 => self.message.data,
            _ => u32::from(self.masked),
        }
    }

    pub(super) fn set_register(&mut self, number: u64, value: u32) {
        let address = &mut self.message.address;
        match number {
            0 => *address = *address & !0xffff_ffff | u64::from(value & !3),
            1 => *address = *address & 0xffff_ffff | u64::from(value) << 32,
            2 => self.message.data = value,
            _ => self.masked = value & 1 != 0,
        }
    }
}
