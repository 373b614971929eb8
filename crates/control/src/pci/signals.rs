//! What a device signals by one eventfd, on its way to whoever sorts it.
//!
//! Signals are *raw* until somebody has to know what they come to. What is drained is
//! what is raw, and what is delivered on the other side is raw there: nothing is sorted
//! twice, and nothing in between.

use std::io;

use sys::EventFd;

#[derive(Debug, Default)]
pub(super) struct Signals {
    /// Made when it is first bound.
    event: Option<EventFd>,
    /// Taken from the eventfd and not sorted.
    raw: u64,
    /// What the last drain took, as long as nobody put it back.
    drained: u64,
}

impl Signals {
    /// The eventfd to bind.
    pub(super) fn event(&mut self) -> io::Result<&EventFd> {
        if self.event.is_none() {
            self.event = Some(EventFd::new()?);
        }
        self.event.as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Takes what the device signalled.
    pub(super) fn collect(&mut self) -> io::Result<()> {
        if let Some(event) = &self.event {
            self.raw = self.raw.saturating_add(event.take()?);
        }
        Ok(())
    }

    /// What was collected, for sorting.
    pub(super) fn take(&mut self) -> u64 {
        std::mem::take(&mut self.raw)
    }

    /// Undoes a sorting.
    pub(super) fn put_back(&mut self, signals: u64) {
        // A count from another host may be anything; it only has to stay a count.
        self.raw = self.raw.saturating_add(signals);
    }

    pub(super) fn drain(&mut self) -> u64 {
        let raw = self.take();
        self.drained = self.drained.saturating_add(raw);
        self.drained
    }

    pub(super) fn deliver(&mut self, signals: u64) {
        self.drained = 0;
        self.put_back(signals);
    }

    /// What was not sorted, wherever it is.
    pub(super) fn unsorted(&self) -> u64 {
        self.raw.saturating_add(self.drained)
    }

    /// Nothing was ever signalled.
    pub(super) fn forget(&mut self) -> io::Result<()> {
        self.collect()?;
        *self = Signals { event: self.event.take(), ..Signals::default() };
        Ok(())
    }
}
