//! A device's interrupts as this VMM routes them: an eventfd a vector, and counts of
//! what is pending and what was handled. An accelerator has three vectors of MSI-X, a
//! uart one line that is a level (`INTx`).
//!
//! ```text
//!   device --> eventfd --+
//!                        +--> handled (by a vCPU)       saved in a section
//!              pending --+--> drained (at the stop) --> the other side's pending
//! ```

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use abi::pci::irq_index;
use control::Transport;
use port::{Interrupts, VmmError};
use sys::EventFd;

/// The most vectors that the guest uses of a device.
pub(super) const VECTORS: usize = 3;
/// A batch of the ring is there. Of a device with a line, that is up.
pub(super) const RING: usize = 0;
/// A command is over.
pub(super) const COMMAND: usize = 1;
/// A batch of peer writes has arrived.
pub(super) const PEER: usize = 2;

/// The interrupts of one device.
pub(super) struct Lines {
    /// What kind they are, as an interrupt index.
    index: u32,
    /// How many there are.
    vectors: usize,
    events: [EventFd; VECTORS],
    pending: [AtomicU64; VECTORS],
    handled: [AtomicU64; VECTORS],
    /// What the last drain took, as long as nobody delivered it again.
    drained: Mutex<[u64; VECTORS]>,
    /// Whether the guest takes interrupts.
    enabled: AtomicBool,
}

impl Lines {
    /// All vectors, of MSI-X. Nothing was raised yet.
    pub(super) fn msix() -> io::Result<Lines> {
        Lines::new(irq_index::MSIX, VECTORS)
    }

    /// One line, which is a level: however often it is heard, it says only that something
    /// waits. Nothing was raised yet.
    pub(super) fn intx() -> io::Result<Lines> {
        Lines::new(irq_index::INTX, 1)
    }

    fn new(index: u32, vectors: usize) -> io::Result<Lines> {
        Ok(Lines {
            index,
            vectors,
            events: [EventFd::new()?, EventFd::new()?, EventFd::new()?],
            pending: Default::default(),
            handled: Default::default(),
            drained: Mutex::default(),
            enabled: AtomicBool::new(true),
        })
    }

    /// A vCPU handles what is there; how much, by vector.
    pub(super) fn handle(&self) -> io::Result<[u64; VECTORS]> {
        let mut taken = [0; VECTORS];
        if !self.enabled.load(Ordering::Acquire) {
            return Ok(taken);
        }
        for (vector, taken) in taken.iter_mut().enumerate() {
            *taken = self.take(vector)?;
            self.handled[vector].fetch_add(*taken, Ordering::Relaxed);
        }
        Ok(taken)
    }

    /// Whether the guest takes interrupts from now on.
    pub(super) fn enable(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Release);
    }

    /// How many vectors there are.
    pub(super) fn vectors(&self) -> usize {
        self.vectors
    }

    /// What was handled so far, by vector.
    pub(super) fn handled(&self) -> [u64; VECTORS] {
        [0, 1, 2].map(|n: usize| self.handled[n].load(Ordering::Relaxed))
    }

    /// What was raised and not handled, by vector. Exact while vCPUs and device are
    /// stopped.
    pub(super) fn pending(&self) -> io::Result<[u64; VECTORS]> {
        let drained = *self.drained.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pending = [0; VECTORS];
        for (vector, pending) in pending.iter_mut().enumerate() {
            let taken = self.take(vector)?;
            self.pending[vector].store(taken, Ordering::Relaxed);
            *pending = taken.saturating_add(drained[vector]);
        }
        Ok(pending)
    }

    /// Takes over what another host had handled. Nothing is pending then.
    pub(super) fn restore(&self, handled: [u64; VECTORS]) {
        for (counter, value) in self.handled.iter().zip(handled) {
            counter.store(value, Ordering::Relaxed);
        }
        self.pending.iter().for_each(|counter| counter.store(0, Ordering::Relaxed));
    }

    fn take(&self, vector: usize) -> io::Result<u64> {
        let pending = self.pending[vector].swap(0, Ordering::Relaxed);
        Ok(pending.saturating_add(self.events[vector].take()?))
    }

    fn drain(&self) -> io::Result<[u64; VECTORS]> {
        let mut taken = [0; VECTORS];
        for (vector, taken) in taken.iter_mut().enumerate() {
            *taken = self.take(vector)?;
        }
        *self.drained.lock().unwrap_or_else(PoisonError::into_inner) = taken;
        Ok(taken)
    }

    fn deliver(&self, counts: &[u64]) -> Result<(), TooMany> {
        if counts.len() > self.vectors {
            return Err(TooMany { counts: counts.len(), vectors: self.vectors });
        }
        *self.drained.lock().unwrap_or_else(PoisonError::into_inner) = [0; VECTORS];
        for (pending, count) in self.pending.iter().zip(counts) {
            // A count from another host may be anything; it only has to stay a count.
            let total = pending.load(Ordering::Relaxed).saturating_add(*count);
            pending.store(total, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Counts for more vectors than there are.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("counts of {counts} vectors, and the guest uses {vectors}")]
struct TooMany {
    counts: usize,
    vectors: usize,
}

/// The engine's way to the interrupts of one device.
pub(super) struct Routed {
    transport: Arc<dyn Transport>,
    lines: Arc<Lines>,
}

impl Routed {
    /// Interrupts of the device behind `transport`, not bound yet.
    pub(super) fn new(transport: Arc<dyn Transport>, lines: Arc<Lines>) -> Routed {
        Routed { transport, lines }
    }

    fn failed(
        &self,
        operation: &str,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> VmmError {
        VmmError::new(
            format!("interrupts of {}", self.transport.name()),
            operation,
            error,
        )
    }
}

impl Interrupts for Routed {
    fn bind(&mut self) -> Result<(), VmmError> {
        let lines = &self.lines;
        let events: Vec<&EventFd> = lines.events[..lines.vectors].iter().collect();
        let bound = self.transport.set_irqs(lines.index, 0, &events);
        bound.map_err(|error| self.failed("bind", error))
    }

    fn unbind(&mut self) -> Result<(), VmmError> {
        let unbound = self.transport.set_irqs(self.lines.index, 0, &[]);
        unbound.map_err(|error| self.failed("unbind", error))
    }

    fn drain(&mut self) -> Result<Vec<u64>, VmmError> {
        let taken = self.lines.drain();
        let vectors = self.lines.vectors;
        taken
            .map(|all| all[..vectors].to_vec())
            .map_err(|error| self.failed("drain", error))
    }

    fn deliver(&mut self, pending: &[u64]) -> Result<(), VmmError> {
        let delivered = self.lines.deliver(pending);
        delivered.map_err(|error| self.failed("deliver", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_is_handled_once_whatever_way_it_takes() {
        let lines = Lines::msix().unwrap();
        lines.events[RING].signal(2).unwrap();
        assert_eq!(lines.handle().unwrap(), [2, 0, 0]);
        lines.events[RING].signal(3).unwrap();
        lines.events[PEER].signal(1).unwrap();
        // Looking at what is pending takes nothing away.
        assert_eq!(lines.pending().unwrap(), [3, 0, 1]);
        assert_eq!(lines.pending().unwrap(), [3, 0, 1]);
        let drained = lines.drain().unwrap();
        assert_eq!(drained, [3, 0, 1]);
        assert_eq!(lines.pending().unwrap(), [3, 0, 1]);

        let other = Lines::msix().unwrap();
        other.restore(lines.handled());
        other.deliver(&drained).unwrap();
        assert_eq!(other.pending().unwrap(), [3, 0, 1]);
        assert_eq!(other.handle().unwrap(), [3, 0, 1]);
        assert_eq!(other.handled(), [5, 0, 1]);

        // And back on the source after a failure.
        lines.deliver(&drained).unwrap();
        assert_eq!(lines.handle().unwrap(), [3, 0, 1]);
        assert_eq!(lines.handled(), other.handled());
    }

    #[test]
    fn absurd_counts_from_another_host_are_refused_or_stay_counts() {
        let lines = Lines::msix().unwrap();
        assert!(lines.deliver(&[0; VECTORS + 1]).is_err());
        lines.deliver(&[u64::MAX, 1]).unwrap();
        lines.deliver(&[u64::MAX, 1]).unwrap();
        assert_eq!(lines.pending[0].load(Ordering::Relaxed), u64::MAX);
    }
}
