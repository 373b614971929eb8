//! The line of a function, `INTx`: a level, as the guest's interrupt controller sees it.
//!
//! A device says once that the line is up, and keeps quiet until it is unmasked
//! (`VFIO_IRQ_INFO_AUTOMASKED`); the VMM unmasks it when the guest's controller is told
//! that the interrupt is over, and a device that still wants says so again. Between the
//! two the line stays up, however often the device speaks. One that did speak again then
//! has no level (the kernel's mtty sample, whatever its flags say): the line rises once
//! more, since an interrupt for nothing harms nobody and a lost one does.

use std::io;

use super::signals::Signals;
use super::view::VectorCounts;

#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) signals: Signals,
    pub(super) heard: Level,
}

/// What became of the signals: all of it travels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Level {
    /// The line is up until it is acknowledged.
    pub(super) asserted: bool,
    /// The device spoke while its line was turned off in the command register: it rises
    /// when that is over.
    pub(super) latched: bool,
    /// The device spoke again while the line was up.
    pub(super) again: bool,
    /// How often the line rose.
    pub(super) rises: u64,
}

impl Level {
    /// Whether the device has spoken and keeps quiet until it is let through.
    pub(super) fn quiet(&self) -> bool {
        self.asserted || self.latched
    }

    fn sort(&mut self, signals: u64, off: bool) {
        if signals != 0 {
            if self.asserted {
                self.again = true;
            } else {
                self.latched = true;
            }
        }
        if self.latched && !off && !self.asserted {
            self.latched = false;
            self.asserted = true;
            self.rises = self.rises.saturating_add(1);
        }
    }
}

impl Line {
    pub(super) fn sort(&mut self, off: bool) -> io::Result<()> {
        self.signals.collect()?;
        self.heard.sort(self.signals.take(), off);
        Ok(())
    }

    /// The end of an interrupt: the line falls.
    pub(super) fn acknowledge(&mut self) {
        self.heard.asserted = false;
    }

    /// The device was let through again.
    pub(super) fn let_through(&mut self, off: bool) {
        self.heard.latched |= std::mem::take(&mut self.heard.again);
        self.heard.sort(0, off);
    }

    /// The account as it will be when everything was looked at. Changes nothing of it.
    pub(super) fn counts(&self, off: bool) -> VectorCounts {
        let mut heard = self.heard;
        heard.sort(self.signals.unsorted(), off);
        VectorCounts {
            rises: heard.rises,
            pending: u64::from(heard.asserted || heard.latched),
            held: heard.latched,
            masked: off,
            ..VectorCounts::default()
        }
    }

    pub(super) fn forget(&mut self) -> io::Result<()> {
        self.heard = Level::default();
        self.signals.forget()
    }
}
