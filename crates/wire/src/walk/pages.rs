//! Which pages of a guest came: in a file each comes once, and all of them do.

use std::collections::BTreeMap;

use super::story::Contradiction;
use crate::memory::MemoryRuns;
use crate::message::MemoryRegion;

/// The most ranges that are remembered. What is written has one for each region at most:
/// it goes up through the memory. A file may have them in any order, and may not make a
/// reader remember each of its runs.
pub(super) const MOST: usize = 64 << 10;

/// Ranges that do not touch: where each begins and where it ends.
#[derive(Debug, Default)]
pub(super) struct Pages {
    ranges: BTreeMap<u64, u64>,
    /// There were too many of them, and nothing is known any more.
    lost: bool,
}

impl Pages {
    /// The pages of a frame, which are to be in the regions: those ascend.
    pub(super) fn take(
        &mut self,
        runs: &MemoryRuns<'_>,
        regions: &[MemoryRegion],
    ) -> Option<Contradiction> {
        let page = u64::from(runs.page_size().get());
        runs.iter().find_map(|(run, _)| {
            let (gpa, length) = (run.gpa, u64::from(run.pages).saturating_mul(page));
            // A run may go from one region into the next where they touch.
            let mut left = length;
            for region in regions {
                let at = gpa.saturating_add(length - left);
                if at >= region.gpa {
                    left -= left.min((region.gpa + region.length).saturating_sub(at));
                }
            }
            let inside = left == 0;
            if !inside {
                return Some(Contradiction::Memory { gpa, pages: run.pages });
            }
            // A region ends in the address space, and so does what is in it.
            self.add(gpa, gpa + length)
        })
    }

    fn add(&mut self, mut start: u64, mut end: u64) -> Option<Contradiction> {
        if self.lost {
            return None;
        }
        let before = self.ranges.range(..=start).next_back().map(|(&s, &e)| (s, e));
        if before.is_some_and(|(_, ends)| ends > start) {
            return Some(Contradiction::MemoryTwice { gpa: start });
        }
        let after = self.ranges.range(start..).next().map(|(&s, &e)| (s, e));
        if let Some((begins, _)) = after
            && begins < end
        {
            return Some(Contradiction::MemoryTwice { gpa: begins });
        }
        if let Some((begins, _)) = before.filter(|(_, ends)| *ends == start) {
            start = begins;
        }
        if let Some((begins, ends)) = after.filter(|(begins, _)| *begins == end) {
            self.ranges.remove(&begins);
            end = ends;
        }
        self.ranges.insert(start, end);
        if self.ranges.len() > MOST {
            self.lost = true;
            self.ranges.clear();
            return Some(Contradiction::MemoryScattered);
        }
        None
    }

    /// The first pages of the regions that did not come.
    pub(super) fn missing(&self, regions: &[MemoryRegion]) -> Option<Contradiction> {
        if self.lost {
            return None;
        }
        let gap = regions.iter().find_map(|region| {
            let end = region.gpa + region.length;
            let mut at = region.gpa;
            // Regions that touch may share a range.
            while at < end {
                let there = self.ranges.range(..=at).next_back();
                match there.filter(|(_, ends)| **ends > at) {
                    Some((_, ends)) => at = *ends,
                    None => {
                        let next = self.ranges.range(at..end).next();
                        return Some((at, next.map_or(end, |(begins, _)| *begins) - at));
                    }
                }
            }
            None
        });
        gap.map(|(gpa, bytes)| Contradiction::MemoryMissing { gpa, bytes })
    }
}
