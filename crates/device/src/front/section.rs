//! The data section: where it lies, and what of it can be mapped.

use super::{DataSection, FrontError};
use crate::Window;
use abi::errno::Errno;
use sys::SharedMemory;

/// The unit of what can be mapped, in bytes.
const PAGE: u64 = 4096;

/// The longest section, in bytes.
const LONGEST: u64 = 64 << 20;

/// The data section of a migration region.
///
/// The memory stands for the whole region, so that a window lies as far into its file as
/// into its region; the part before the section is never touched.
pub(super) struct Section {
    memory: SharedMemory,
    /// In the region, in bytes.
    at: u64,
    length: u64,
    /// What can be mapped starts here; the end where nothing can.
    mapped: u64,
}

impl Section {
    /// A section of `length` bytes behind `registers` bytes.
    pub(super) fn new(
        registers: u64,
        kind: DataSection,
        length: u64,
    ) -> Result<Section, FrontError> {
        let least = if kind == DataSection::Split { 2 * PAGE } else { PAGE };
        if !(least..=LONGEST).contains(&length) || !length.is_multiple_of(PAGE) {
            return Err(FrontError::SectionBytes(length));
        }
        let at = match kind {
            DataSection::Trapped => registers.next_multiple_of(8),
            DataSection::Mapped | DataSection::Split => registers.next_multiple_of(PAGE),
        };
        let end = at + length;
        let mapped = match kind {
            DataSection::Trapped => end,
            DataSection::Mapped => at,
            DataSection::Split => at + PAGE,
        };
        let size = end.next_multiple_of(PAGE);
        let memory =
            SharedMemory::create("migration region", size).map_err(FrontError::Memory)?;
        Ok(Section { memory, at, length, mapped })
    }

    /// Where it starts in the region, in bytes; never 0.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Its size in bytes.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Where it ends in the region, in bytes.
    pub(super) fn end(&self) -> u64 {
        self.at + self.length
    }

    pub(super) fn windows(&self) -> Vec<Window> {
        let memory = self.memory.slice(self.mapped, self.end() - self.mapped).ok();
        memory
            .filter(|memory| !memory.is_empty())
            .map(|memory| Window { offset: self.mapped, memory })
            .into_iter()
            .collect()
    }

    /// Whether `length` bytes at `offset` of the region are some of it, and in it.
    pub(super) fn holds(&self, offset: u64, length: usize) -> bool {
        let end = offset.checked_add(length as u64);
        length > 0 && offset >= self.at && end.is_some_and(|end| end <= self.end())
    }

    /// Leaves nothing in it.
    pub(super) fn clear(&self) {
        // All of the memory, which cannot be left.
        let cleared = self.memory.zero(0, self.memory.len());
        debug_assert!(cleared.is_ok(), "the memory is as long as it says");
    }

    /// Reads at `offset` of the region, which [`holds`](Self::holds).
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.memory.read(offset, into).map_err(|_| Errno::EFAULT)
    }

    /// Writes at `offset` of the region, which [`holds`](Self::holds).
    pub(super) fn write(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.memory.write(offset, data).map_err(|_| Errno::EFAULT)
    }
}
