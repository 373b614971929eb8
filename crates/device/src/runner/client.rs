//! What a client reaches, and what it lends: regions, interrupts, memory, the DMA log.

use super::Runner;
use crate::{DmaTarget, Trigger, WINDOWS_MAX};
use abi::errno::Errno;
use abi::irq::IrqInfoFlags;
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

    /// Binds a trigger to an interrupt, or with `None` takes it away, together with the
    /// vector's mask. In any state.
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
        self.wires.bind((index, vector), trigger);
        Ok(())
    }

    /// Takes all triggers and masks of an index away.
    pub fn unbind_index(&mut self, index: u32) {
        self.wires.irqs.unbind_index(index);
    }

    /// Fires a trigger for the client (`SET_IRQS` with `DATA_NONE` and `TRIGGER`),
    /// masked or not. Nothing happens where none is bound.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a vector that is not there.
    pub fn trigger(&mut self, index: u32, vector: u32) -> Result<(), Errno> {
        self.check_vector(index, vector)?;
        self.wires.irqs.fire((index, vector));
        Ok(())
    }

    /// Masks a vector: what the device raises from now on waits.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a vector that is not there, `ENOTTY` for an index that cannot be
    /// masked.
    pub fn mask(&mut self, index: u32, vector: u32) -> Result<(), Errno> {
        self.check_maskable(index, vector)?;
        self.wires.irqs.mask((index, vector));
        Ok(())
    }

    /// Unmasks a vector. Where interrupts waited, or its level is up, one is heard now.
    ///
    /// # Errors
    ///
    /// As [`mask`](Self::mask).
    pub fn unmask(&mut self, index: u32, vector: u32) -> Result<(), Errno> {
        self.check_maskable(index, vector)?;
        self.wires.unmask((index, vector));
        Ok(())
    }

    fn check_maskable(&self, index: u32, vector: u32) -> Result<(), Errno> {
        self.check_vector(index, vector)?;
        match self.description.irq(index) {
            Some(irq) if irq.flags.contains(IrqInfoFlags::MASKABLE) => Ok(()),
            _ => Err(Errno::ENOTTY),
        }
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
    /// `EEXIST` where a window overlaps it, `ENOSPC` where there are as many as
    /// [allowed](Self::set_windows_limit).
    pub fn map(
        &mut self,
        range: IovaRange,
        writable: bool,
        target: DmaTarget,
    ) -> Result<(), Errno> {
        self.wires.windows.map(range, writable, target)
    }

    /// Sets how many windows there may be at once, as agreed with the client; never more
    /// than [`WINDOWS_MAX`].
    pub fn set_windows_limit(&mut self, windows: usize) {
        self.wires.windows.most = windows.min(WINDOWS_MAX);
    }

    /// Takes the window at exactly `range` away. Accesses of which something was still
    /// to be sent to it fail with `EFAULT`; the client answers what was sent.
    ///
    /// # Errors
    ///
    /// `ENOENT` where there is no such window.
    pub fn unmap(&mut self, range: IovaRange) -> Result<(), Errno> {
        for token in self.wires.unmap(range)? {
            self.deliver(token, Err(Errno::EFAULT));
        }
        Ok(())
    }

    /// As [`unmap`](Self::unmap), and puts what the DMA log had of the range, which is
    /// drained, behind the words of `into`; see
    /// [`DmaLog::report_into`](crate::DmaLog::report_into).
    ///
    /// # Errors
    ///
    /// `ENOENT` where there is no such window, and as the report, `EINVAL` where nothing
    /// is logged among them. The window stays then, and so do the bits.
    pub fn unmap_dirty(
        &mut self,
        range: IovaRange,
        page_size: u64,
        words_max: usize,
        into: &mut Vec<u64>,
    ) -> Result<(), Errno> {
        if !self.wires.windows.is_mapped(range) {
            return Err(Errno::ENOENT);
        }
        let (start, length) = (range.start(), range.length());
        self.log_report_into(start, length, page_size, words_max, into)?;
        self.unmap(range)
    }

    /// Takes all windows away, as [`unmap`](Self::unmap).
    pub fn unmap_all(&mut self) {
        for token in self.wires.unmap_all() {
            self.deliver(token, Err(Errno::EFAULT));
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

    /// The page size of the DMA log while it runs.
    pub fn log_page_size(&self) -> Option<PageSize> {
        self.wires.log.page_size()
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

    /// As [`log_report`](Self::log_report), but puts the words behind those of `into`;
    /// see [`DmaLog::report_into`](crate::DmaLog::report_into).
    ///
    /// # Errors
    ///
    /// As there; `into` stays as it is then.
    pub fn log_report_into(
        &mut self,
        start: u64,
        length: u64,
        page_size: u64,
        words_max: usize,
        into: &mut Vec<u64>,
    ) -> Result<(), Errno> {
        self.wires.log.report_into(start, length, page_size, words_max, into)
    }
}
