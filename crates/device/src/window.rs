//! What a client lends to a device: memory to reach, and somebody to interrupt.

use abi::errno::Errno;
use std::fmt;
use sys::{EventFd, SharedMemory};

/// Memory that a device reaches by DMA.
pub trait DmaWindow: Send {
    /// Reads at `offset` bytes from the start of the window; the runner has checked
    /// that it lies inside.
    ///
    /// # Errors
    ///
    /// What the model gets as the errno of the access.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno>;

    /// Writes at `offset` bytes from the start of the window.
    ///
    /// # Errors
    ///
    /// What the model gets as the errno of the access.
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno>;
}

/// Where a range of IOVAs leads.
pub enum DmaTarget {
    /// To memory that is reached at once.
    Window(Box<dyn DmaWindow>),
    /// To the client, by messages: a peer's BAR, or memory that was not shared.
    Messages,
}

impl fmt::Debug for DmaTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DmaTarget::Window(_) => "Window",
            DmaTarget::Messages => "Messages",
        })
    }
}

impl DmaWindow for SharedMemory {
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        SharedMemory::read(self, offset, into).map_err(|_| Errno::EFAULT)
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        SharedMemory::write(self, offset, from).map_err(|_| Errno::EFAULT)
    }
}

/// Somebody who is told that an interrupt was raised: an eventfd, mostly.
pub trait Trigger: Send {
    /// Tells it, without blocking.
    fn fire(&self);
}

impl Trigger for EventFd {
    fn fire(&self) {
        // A counter that is full stays readable: the interrupt is not lost, only its
        // count, as on any eventfd.
        if let Err(error) = self.signal(1) {
            tracing::warn!(%error, "an interrupt was not delivered");
        }
    }
}
