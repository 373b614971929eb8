//! A source of dirty bits that is a set of page numbers, and everything it may get wrong.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use dirty::{IovaRange, PageSize};
use port::{DirtyReport, DirtySource, SourceError, Space};
use proptest::prelude::{Just, Strategy, any, prop_oneof};

use super::{PLACE, PLACES, range};

/// How a source behaves.
#[derive(Clone, Debug)]
pub(super) struct Manner {
    pub(super) space: Space,
    pub(super) page: PageSize,
    /// Reads without clearing.
    pub(super) keeps: bool,
    /// Has no bits of what is not mapped, as an IOMMU.
    forgets_unmapped: bool,
    /// Never tells of the mapping in this place.
    deaf: Option<u64>,
    /// Pages in one report.
    most: u64,
    /// How many of its starts are refused.
    refusals: u32,
}

/// A source that is a set of page numbers.
#[derive(Clone)]
pub(super) struct Fake(Arc<Mutex<Inner>>);

pub(super) struct Inner {
    pub(super) manner: Manner,
    /// What it records, while it does.
    pub(super) covers: Option<Vec<IovaRange>>,
    pub(super) pages: BTreeSet<u64>,
    /// The next question goes wrong, and takes its bits with it.
    pub(super) fails: bool,
    pub(super) starts: u32,
    /// What it did not tell when it was asked last.
    pub(super) lost: Vec<IovaRange>,
}

impl Fake {
    pub(super) fn new(manner: Manner) -> Fake {
        Fake(Arc::new(Mutex::new(Inner {
            manner,
            covers: None,
            pages: BTreeSet::new(),
            fails: false,
            starts: 0,
            lost: Vec::new(),
        })))
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// It sees a write.
    pub(super) fn write(&self, at: IovaRange) {
        let inner = &mut *self.inner();
        let page = inner.manner.page;
        let covered = |n: &u64| {
            let whole = range(n << page.shift(), page.bytes());
            inner.covers.iter().flatten().any(|one| one.overlaps(whole))
        };
        let pages = numbers(at, page);
        inner.pages.extend(pages.filter(covered));
    }

    pub(super) fn forget(&self, at: IovaRange) {
        let inner = &mut *self.inner();
        if inner.manner.forgets_unmapped && inner.manner.space == Space::Iova {
            let page = inner.manner.page;
            inner.pages.retain(|n| !at.covers(range(n << page.shift(), page.bytes())));
        }
    }
}

pub(super) fn numbers(at: IovaRange, page: PageSize) -> std::ops::RangeInclusive<u64> {
    at.start() >> page.shift()..=at.last() >> page.shift()
}

fn error(operation: &str) -> SourceError {
    SourceError::new("fake", operation, "as the test says")
}

impl DirtySource for Fake {
    fn name(&self) -> &str {
        "fake"
    }

    fn space(&self) -> Space {
        self.inner().manner.space
    }

    fn goes_with_mappings(&self) -> Option<PageSize> {
        None
    }

    fn start(&mut self, ranges: &[IovaRange], _: PageSize) -> Result<(), SourceError> {
        let inner = &mut *self.inner();
        assert!(inner.covers.is_none(), "it is stopped before it is started again");
        assert!(!ranges.is_empty());
        inner.starts += 1;
        if inner.manner.refusals > 0 {
            inner.manner.refusals -= 1;
            return Err(error("start"));
        }
        inner.covers = Some(ranges.to_vec());
        inner.pages.clear();
        inner.lost.clear();
        Ok(())
    }

    fn collect(
        &mut self,
        asked: IovaRange,
        found: &mut dyn FnMut(DirtyReport<'_>),
    ) -> Result<(), SourceError> {
        let inner = &mut *self.inner();
        let page = inner.manner.page;
        let deaf = inner.manner.deaf.is_some_and(|place| asked.start() / PLACE == place);
        let covers = inner.covers.iter().flatten();
        let covered = covers.copied().any(|one| one.covers(asked));
        let (first, last) = numbers(asked, page).into_inner();
        if deaf || !covered || inner.fails {
            if inner.fails {
                inner.pages.retain(|n| !(first..=last).contains(n));
                let pages = asked.align_out(page).unwrap();
                inner.lost.push(pages);
                found(DirtyReport::lost(pages));
            }
            inner.fails = false;
            inner.lost.push(asked);
            return Err(error("collect"));
        }
        for start in (first..=last).step_by(inner.manner.most as usize) {
            let count = inner.manner.most.min(last - start + 1);
            let mut words = vec![0_u64; count.div_ceil(64) as usize];
            for n in 0..count {
                let there = inner.pages.contains(&(start + n));
                words[n as usize / 64] |= u64::from(there) << (n % 64);
                if !inner.manner.keeps {
                    // All of the page, whatever of it was asked for.
                    inner.pages.remove(&(start + n));
                }
            }
            let range = range(start << page.shift(), count << page.shift());
            found(DirtyReport { range, page, words: &words });
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), SourceError> {
        self.inner().covers = None;
        Ok(())
    }
}

fn pages() -> impl Strategy<Value = PageSize> {
    let shift = prop_oneof![2 => 9_u32..=15, 1 => 16_u32..=17];
    shift.prop_map(|shift| PageSize::new(1 << shift).unwrap())
}

pub(super) fn manners() -> impl Strategy<Value = Manner> {
    let space = prop_oneof![3 => Just(Space::Iova), 1 => Just(Space::GuestPhysical)];
    let deaf = prop_oneof![3 => Just(None), 1 => (0..PLACES).prop_map(Some)];
    let refusals = prop_oneof![4 => Just(0), 1 => 1_u32..3];
    let most = prop_oneof![Just(1_u64), Just(3), Just(64), Just(1000)];
    (space, pages(), any::<bool>(), any::<bool>(), deaf, most, refusals).prop_map(
        |(space, page, keeps, forgets_unmapped, deaf, most, refusals)| {
            let deaf = deaf.filter(|_| space == Space::Iova);
            Manner { space, page, keeps, forgets_unmapped, deaf, most, refusals }
        },
    )
}
