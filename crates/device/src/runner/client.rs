//! What a client reaches, and what it lends: regions, interrupts, memory, the DMA log.

use super::Runner;
use crate::{DmaTarget, Trigger};
use abi::errno::Errno;
use dirty::{IovaRange, PageSize};

/// The index of config space (`VFIO_PCI_CONFIG_REGION_INDEX`), which answers in every
/// state.
const CONFIG: u32 = 7;

impl Runner {
    /// Reads a region.
    ///
    /// # Errors
    ///
    /// `EINVAL` outside of the region, for no bytes at all, and for anything but config
    /// space while the device is stopped or in ERROR; else what the model said.
    pub fn read_region(
        &mut self,
        index: u32,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), Errno> {
        self.check_access(index, offset, into.len(), false)?;
        self.model.read(index, offset, into)
    }

    /// Writes a region.
    ///
    /// # Errors
    ///
    /// As [`read_region`](Self::read_region), and for a region that is read-only.
    pub fn write_region(
        &mut self,
        index: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Errno> {
        self.check_access(index, offset, data.len(), true)?;
        self.model.write(index, offset, data, &mut self.wires)
    }

    fn check_access(
        &mut self,
        index: u32,
        offset: u64,
        len: usize,
        writes: bool,
    ) -> Result<(), Errno> {
        let region = self.description.region(index).ok_or(Errno::EINVAL)?;
        let end = offset.checked_add(len as u64).ok_or(Errno::EINVAL)?;
        if len == 0 || end > region.size || (writes && !region.writable) {
            return Err(Errno::EINVAL);
        }
        if index == CONFIG || self.state.is_running() {
            return Ok(());
        }
        if self.state.is_stopped() {
            self.wires.counters.accesses_while_stopped += 1;
            tracing::warn!(index, offset, len, writes, state = %self.state, "access while stopped");
        }
        Err(Errno::EINVAL)
    }

    /// Binds a trigger to an interrupt, or with `None` takes it away. In any state.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a vector that is not there.
    pub fn bind(
        &mut self,
        index: u32,
        vector: u32,
        trigger: Option<Box<dyn Trigger>>,
    ) -> Result<(), Errno> {
        self.check_vector(index, vector)?;
        self.wires.bind(index, vector, trigger);
        Ok(())
    }

    /// Takes all triggers of an index away.
    pub fn unbind_index(&mut self, index: u32) {
        self.wires.unbind_index(index);
    }

    /// Fires a trigger for the client (`SET_IRQS` with `DATA_NONE` and `TRIGGER`).
    /// Nothing happens where none is bound.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a vector that is not there.
    pub fn trigger(&mut self, index: u32, vector: u32) -> Result<(), Errno> {
        self.check_vector(index, vector)?;
        self.wires.fire(index, vector);
        Ok(())
    }

    fn check_vector(&self, index: u32, vector: u32) -> Result<(), Errno> {
        match self.description.irq(index) {
            Some(irq) if vector < irq.count => Ok(()),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Lets the device reach `range`. In any state.
    ///
    /// # Errors
    ///
    /// `EEXIST` where a window overlaps it, `ENOSPC` where there are too many.
    pub fn map(
        &mut self,
        range: IovaRange,
        writable: bool,
        target: DmaTarget,
    ) -> Result<(), Errno> {
        self.wires.map(range, writable, target)
    }

    /// Takes the window at exactly `range` away. Messages to it that were not sent yet
    /// fail with `EFAULT`; the client answers the others.
    ///
    /// # Errors
    ///
    /// `ENOENT` where there is no such window.
    pub fn unmap(&mut self, range: IovaRange) -> Result<(), Errno> {
        for token in self.wires.unmap(range)? {
            self.complete(token, Err(Errno::EFAULT))?;
        }
        Ok(())
    }

    /// Takes all windows away, as [`unmap`](Self::unmap).
    pub fn unmap_all(&mut self) {
        for token in self.wires.unmap_all() {
            // The token was on its way until now, so the answer is not late.
            let _ = self.complete(token, Err(Errno::EFAULT));
        }
    }

    /// Starts the DMA log; see [`DmaLog::start`](crate::DmaLog::start). In any state.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn log_start(
        &mut self,
        page_size: u64,
        ranges: &[(u64, u64)],
    ) -> Result<PageSize, Errno> {
        self.wires.log.start(page_size, ranges)
    }

    /// Ends the DMA log.
    pub fn log_stop(&mut self) {
        self.wires.log.stop();
    }

    /// Reads and clears the DMA log; see [`DmaLog::report`](crate::DmaLog::report). In
    /// any state.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn log_report(
        &mut self,
        start: u64,
        length: u64,
        page_size: u64,
        words_max: usize,
    ) -> Result<Vec<u64>, Errno> {
        self.wires.log.report(start, length, page_size, words_max)
    }
}
