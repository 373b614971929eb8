//! The addresses that devices know guest memory by.

use dirty::{Bitmap, IovaRange, set_runs};

use crate::{DirtyReport, Gpa};

/// How the devices' addresses (IOVA) reach guest memory.
pub trait DmaMap: Send + Sync {
    /// Every mapping there is. Several may reach the same memory (aliases).
    fn mappings(&self) -> Mappings;

    /// Whether the guest controls a virtual IOMMU. Such a guest is refused.
    fn virtual_iommu(&self) -> bool;

    /// Whether any device may reach another's memory (peer-to-peer). `false` is the
    /// VMM's declaration that no device maps another's BAR, which law 5 asks for before
    /// it lets several devices without a P2P state migrate.
    fn peer_to_peer(&self) -> bool;
}

/// One range of device addresses and where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mapping {
    /// The device addresses.
    pub iova: IovaRange,
    /// The guest-physical address of the first of them.
    pub gpa: Gpa,
}

impl Mapping {
    /// Where the part of the mapping that is in `range` leads; what would lie past the
    /// end of guest-physical addresses is nowhere.
    fn leads_to(&self, range: IovaRange) -> Option<IovaRange> {
        let part = self.iova.intersection(range)?;
        let start = self.gpa.0.checked_add(part.start() - self.iova.start())?;
        IovaRange::new(start, part.length().min(u64::MAX - start)).ok()
    }

    /// All of the guest memory that it leads to.
    pub fn guest(&self) -> Option<IovaRange> {
        self.leads_to(self.iova)
    }
}

/// All mappings at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mappings {
    /// In rising order.
    all: Vec<Mapping>,
    /// The largest end of each and those before it: they may overlap.
    ends: Vec<u64>,
    changes: u64,
}

impl Mappings {
    /// The mappings there are, and how many were added and removed since the beginning,
    /// one by one: to move one is to remove it and to add another. So 0 where none ever
    /// was, or where those from the beginning stay.
    ///
    /// By that number the engine knows of mappings that came and went while it did not
    /// look.
    pub fn new(mut all: Vec<Mapping>, changes: u64) -> Mappings {
        all.sort_unstable();
        let ends = all.iter().scan(0, |end: &mut u64, mapping| {
            *end = mapping.iova.end().max(*end);
            Some(*end)
        });
        let ends = ends.collect();
        Mappings { all, ends, changes }
    }

    /// Every mapping, in rising order of device addresses.
    pub fn all(&self) -> &[Mapping] {
        &self.all
    }

    /// How many were added and removed since the beginning.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Whether there is this one.
    pub fn has(&self, mapping: &Mapping) -> bool {
        self.all.binary_search(mapping).is_ok()
    }

    /// The mappings that `range` touches.
    pub fn touched_by(&self, range: IovaRange) -> impl Iterator<Item = &Mapping> {
        let first = self.ends.partition_point(|end| *end <= range.start());
        let rest = self.all[first..].iter();
        rest.take_while(move |mapping| mapping.iova.start() < range.end())
            .filter(move |mapping| mapping.iova.overlaps(range))
    }

    /// Merges a report over device addresses into bitmaps over guest-physical ones,
    /// through every mapping that it touches.
    ///
    /// That is more than the mapping that somebody asked for: where the pages of a source
    /// are larger than a mapping, one bit speaks of several, and it is cleared for all of
    /// them. It is never more than the mappings: what of a page lies outside is nobody's.
    pub fn merge(&self, report: DirtyReport<'_>, into: &[Bitmap]) {
        let DirtyReport { range, page, words } = report;
        // With all of its last page, which may end past the address space.
        let pages = range.length().div_ceil(page.bytes());
        let length = pages.saturating_mul(page.bytes()).min(u64::MAX - range.start());
        let Ok(reach) = IovaRange::new(range.start(), length) else { return };
        for mapping in self.touched_by(reach) {
            // The same bits stand for the guest's addresses, as long as the mapping has
            // them all.
            let whole = mapping.leads_to(reach).filter(|led| {
                mapping.iova.covers(reach) && led.length() == reach.length()
            });
            let whole =
                whole.and_then(|led| IovaRange::new(led.start(), range.length()).ok());
            if let Some(led) = whole {
                into.iter().for_each(|bitmap| bitmap.merge(led, page, words));
                continue;
            }
            for run in set_runs(range, page, words, mapping.iova) {
                let Some(led) = mapping.leads_to(run) else { continue };
                into.iter().for_each(|bitmap| bitmap.mark(led));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use dirty::PageSize;

    use super::*;

    fn range(start: u64, length: u64) -> IovaRange {
        IovaRange::new(start, length).unwrap()
    }

    fn mapping(start: u64, length: u64, gpa: u64) -> Mapping {
        Mapping { iova: range(start, length), gpa: Gpa(gpa) }
    }

    fn dirty(mappings: &[Mapping], report: DirtyReport<'_>) -> Vec<(u64, u64)> {
        let bitmap = Bitmap::new(range(0, 1 << 24), PageSize::FOUR_K).unwrap();
        let bitmaps = [bitmap];
        Mappings::new(mappings.to_vec(), 0).merge(report, &bitmaps);
        bitmaps[0].drain().runs().map(|run| (run.start(), run.length())).collect()
    }

    #[test]
    fn one_bit_for_two_mappings_is_cleared_and_told_of_one() {
        let page = PageSize::new(1 << 16).unwrap();
        let two = [mapping(0, 0x1000, 0x10_0000), mapping(0x1000, 0x1000, 0x20_0000)];
        let report = DirtyReport { range: range(0, 0x1_0000), page, words: &[1] };
        // Nothing beside them either.
        assert_eq!(dirty(&two, report), [(0x10_0000, 0x1000), (0x20_0000, 0x1000)]);
    }

    #[test]
    fn a_mapping_behind_a_longer_one_that_overlaps_it_is_not_found() {
        let all = [
            mapping(0, 0x8000, 0),
            mapping(0x1000, 0x1000, 0),
            mapping(0x2000, 0x1000, 0),
        ];
        let mappings = Mappings::new(all.to_vec(), 0);
        let touched = |at: u64| mappings.touched_by(range(at, 1)).count();
        assert_eq!([0, 0x1000, 0x2000, 0x4000, 0x8000].map(touched), [1, 2, 2, 1, 0]);
    }

    #[test]
    fn a_mapping_that_leads_past_the_last_address_marks_what_is_there() {
        let top = u64::MAX - 0x1fff;
        let bitmap = Bitmap::new(range(top, 0x1000), PageSize::FOUR_K).unwrap();
        let bitmaps = [bitmap];
        let mappings = Mappings::new(vec![mapping(0, 0x8000, top)], 0);
        let page = PageSize::FOUR_K;
        mappings
            .merge(DirtyReport { range: range(0, 0x8000), page, words: &[1] }, &bitmaps);
        assert_eq!(bitmaps[0].count(), 1);
    }

    #[test]
    fn a_source_that_knows_nothing_reports_nothing() {
        let all = [mapping(0x1000, 0x2000, 0x10_0000)];
        let found = dirty(&all, DirtyReport::lost(range(0, 0x10_0000)));
        assert_eq!(found, [(0x10_0000, 0x2000)]);
    }
}
