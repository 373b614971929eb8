//! What a device reaches by DMA: ranges of IOVAs, and where each leads.

use crate::{BusError, DmaLog, DmaTarget, DmaWindow};
use abi::errno::Errno;
use dirty::IovaRange;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// Most DMA windows at once: what vfio-user allows where nothing else is agreed.
pub const WINDOWS_MAX: usize = 65535;

/// A range of IOVAs and where it leads.
struct Mapping {
    range: IovaRange,
    writable: bool,
    target: DmaTarget,
}

impl Mapping {
    fn takes_messages(&self) -> bool {
        matches!(self.target, DmaTarget::Messages)
    }
}

/// The windows of a device; none overlaps another.
pub(crate) struct Windows {
    /// How many there may be.
    pub(crate) most: usize,
    by_start: BTreeMap<u64, Mapping>,
}

impl Windows {
    pub(crate) fn new() -> Windows {
        Windows { most: WINDOWS_MAX, by_start: BTreeMap::new() }
    }

    pub(crate) fn map(
        &mut self,
        range: IovaRange,
        writable: bool,
        target: DmaTarget,
    ) -> Result<(), Errno> {
        // Only the last one that starts before the end can overlap.
        let before = self.by_start.range(..range.end()).next_back();
        if before.is_some_and(|(_, mapping)| mapping.range.overlaps(range)) {
            return Err(Errno::EEXIST);
        }
        if self.by_start.len() >= self.most {
            return Err(Errno::ENOSPC);
        }
        self.by_start.insert(range.start(), Mapping { range, writable, target });
        Ok(())
    }

    /// Whether there is a window at exactly `range`.
    pub(crate) fn is_mapped(&self, range: IovaRange) -> bool {
        let found = self.by_start.get(&range.start());
        found.is_some_and(|mapping| mapping.range == range)
    }

    pub(crate) fn unmap(&mut self, range: IovaRange) -> Result<(), Errno> {
        if !self.is_mapped(range) {
            return Err(Errno::ENOENT);
        }
        self.by_start.remove(&range.start());
        Ok(())
    }

    pub(crate) fn clear(&mut self) {
        self.by_start.clear();
    }

    /// The windows that `range` meets, in order, each with the part of the access that
    /// lies in it.
    fn parts(&self, range: IovaRange) -> impl Iterator<Item = (&Mapping, Range<usize>)> {
        // Of those that start before it only the last can reach into it.
        let before = self.by_start.range(..range.start()).next_back();
        let inside = self.by_start.range(range.start()..range.end());
        before.into_iter().chain(inside).filter_map(move |(_, mapping)| {
            let part = mapping.range.intersection(range)?;
            let start = (part.start() - range.start()) as usize;
            Some((mapping, start..start + part.length() as usize))
        })
    }

    /// Checks that windows cover `range` without a gap. Whether it takes messages.
    pub(crate) fn cover(&self, range: IovaRange, writes: bool) -> Result<bool, BusError> {
        let (mut covered, mut messages) = (0, false);
        for (mapping, part) in self.parts(range) {
            if part.start != covered {
                return Err(BusError::Unmapped);
            }
            if writes && !mapping.writable {
                return Err(BusError::ReadOnly);
            }
            messages |= mapping.takes_messages();
            covered = part.end;
        }
        if covered as u64 == range.length() {
            Ok(messages)
        } else {
            Err(BusError::Unmapped)
        }
    }

    /// The parts of an access that only messages reach, a window each.
    pub(crate) fn by_message(
        &self,
        range: IovaRange,
    ) -> (Range<usize>, VecDeque<Range<usize>>) {
        let mut parts = self
            .parts(range)
            .filter(|(mapping, _)| mapping.takes_messages())
            .map(|(_, part)| part);
        (parts.next().unwrap_or(0..0), parts.collect())
    }

    /// Reads the parts of an access that lie in memory.
    pub(crate) fn read(&self, range: IovaRange, into: &mut [u8]) -> Result<(), BusError> {
        self.in_memory(range, |window, offset, part| window.read(offset, &mut into[part]))
    }

    /// Writes the parts of an access that lie in memory, and marks them. What goes by
    /// message the client marks in its own bitmap.
    pub(crate) fn write(
        &self,
        range: IovaRange,
        data: &[u8],
        log: &mut DmaLog,
    ) -> Result<(), BusError> {
        self.in_memory(range, |window, offset, part| {
            let at = range.start() + part.start as u64;
            let written = window.write(offset, &data[part.clone()]);
            // Even if it failed: a part of it may have been written.
            if let Ok(part) = IovaRange::new(at, part.len() as u64) {
                log.mark(part);
            }
            written
        })
    }

    fn in_memory(
        &self,
        range: IovaRange,
        mut step: impl FnMut(&dyn DmaWindow, u64, Range<usize>) -> Result<(), Errno>,
    ) -> Result<(), BusError> {
        for (mapping, part) in self.parts(range) {
            let DmaTarget::Window(window) = &mapping.target else { continue };
            let offset = range.start() + part.start as u64 - mapping.range.start();
            step(window.as_ref(), offset, part).map_err(BusError::Failed)?;
        }
        Ok(())
    }
}
