//! Dirty pages as the page table of an IOMMU notes them: iommufd, Linux 6.7 and later.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use control::{Transport, TransportError};
use dirty::{IovaRange, PageSize};
use port::{DirtyReport, DirtySource, SourceError, Space as Addresses};
use sys::vfio::DmaSpace;
use sys::vfio::iommufd::DirtyRange;
use thiserror::Error;

use crate::device::{Deadlines, Host, refused};
use crate::kernel::Space;
use crate::workers::Workers;

/// The most pages of one query, which are 32 MiB of bits: so many pages of 4 KiB are as
/// large as no page of an IOMMU, and a query ends where none is cut.
const MOST_PAGES: u64 = DmaSpace::LARGEST_PAGE / PageSize::FOUR_K.bytes();

/// The page table that a device is attached to, as a source of dirty bits.
///
/// It notes the writes of every device behind it, by pages as large as the IOMMU maps:
/// one write makes all of a page of 2 MiB dirty, or of 1 GiB. Such a page is told where
/// a query has its begin, and forgotten where it has any of it: so mappings are asked for,
/// and told, whole.
///
/// The kernel succeeds, and finds nothing, where it does not track and behind a hole in
/// what is mapped; here both are errors, and everything that was asked for is dirty.
pub struct IommuLog {
    // Let go of before the device is: what is mapped can be unmapped only then.
    space: Arc<dyn Space>,
    calls: Calls,
    name: String,
    /// What a bit is to stand for at most; `None` before it was started.
    page: Option<PageSize>,
    /// Used for every query in turn, and never for two at once.
    bits: Vec<u64>,
}

/// Who makes the calls, and gives up one that does not come back.
enum Calls {
    Host(Host),
    Own { workers: Workers, limit: Duration },
}

impl Calls {
    fn make<T: Send + 'static>(
        &self,
        operation: &'static str,
        job: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, TransportError> {
        match self {
            Calls::Host(host) => host.slow(operation, move |_| job()),
            Calls::Own { workers, limit } => workers
                .run(operation, *limit, job)?
                .map_err(|error| refused(operation, &error)),
        }
    }
}

/// What went wrong besides the kernel's errno.
#[derive(Debug, Error)]
enum Trouble {
    #[error("it was not started")]
    NotStarted,
    #[error("a part of the range is not mapped")]
    NotMapped,
    #[error(transparent)]
    Kernel(#[from] TransportError),
}

impl Host {
    /// The page table that it is attached to, where its IOMMU tracks dirty pages.
    pub(crate) fn iommu_log(&self) -> Result<Option<IommuLog>, TransportError> {
        let Some(space) = self.inner.descriptors().space.clone() else { return Ok(None) };
        // A call that hangs holds what tells it.
        let asked = Arc::clone(&space);
        let table =
            self.slow("ask for the page table", move |_| Ok(asked.page_table()))?;
        let name = format!("{} IOMMU", self.name());
        let log = || IommuLog::with(space, Calls::Host(self.clone()), name);
        Ok(table.map(|_| log()))
    }
}

impl IommuLog {
    /// The page table of an address space that devices of others are attached to; `None`
    /// where [`DmaSpace::make_page_table`] made none.
    pub fn of(
        name: &str,
        space: Arc<DmaSpace>,
        deadlines: Deadlines,
    ) -> Option<IommuLog> {
        space.page_table()?;
        let calls = Calls::Own { workers: Workers::new(name), limit: deadlines.slow };
        Some(IommuLog::with(space, calls, format!("{name} IOMMU")))
    }

    fn with(space: Arc<dyn Space>, calls: Calls, name: String) -> IommuLog {
        IommuLog { space, calls, name, page: None, bits: Vec::new() }
    }

    fn track(&self, operation: &'static str, on: bool) -> Result<(), TransportError> {
        let space = Arc::clone(&self.space);
        self.calls.make(operation, move || space.set_tracking(on))
    }

    fn try_to_collect(
        &mut self,
        range: IovaRange,
        found: &mut dyn FnMut(DirtyReport<'_>),
    ) -> Result<(), Trouble> {
        let largest = self.page.ok_or(Trouble::NotStarted)?;
        // A call that hangs holds what is mapped.
        let space = Arc::clone(&self.space);
        let mappings =
            self.calls.make("ask what is mapped", move || Ok(space.mappings(range)))?;
        let asked = reach(range, &mappings).ok_or(Trouble::NotMapped)?;
        let page = fitting(asked, largest.max(PageSize::FOUR_K));
        for piece in pieces(asked, MOST_PAGES.saturating_mul(page.bytes())) {
            if let Err(error) = self.ask(piece, page) {
                // It may be forgotten all the same, and is more than was asked for.
                if !range.covers(piece) {
                    found(DirtyReport::lost(piece));
                }
                return Err(error.into());
            }
            let words = piece.length().div_ceil(page.bytes()).div_ceil(64) as usize;
            found(DirtyReport { range: piece, page, words: &self.bits[..words] });
        }
        Ok(())
    }

    /// Has the bits of a range, and forgets them in the page table.
    fn ask(&mut self, range: IovaRange, page: PageSize) -> Result<(), TransportError> {
        let words = range.length().div_ceil(page.bytes()).div_ceil(64) as usize;
        let space = Arc::clone(&self.space);
        // A call that is given up keeps them, so that the kernel has where to write.
        let mut bits = std::mem::take(&mut self.bits);
        self.bits = self.calls.make("ask the page table", move || {
            bits.resize(words.max(bits.len()), 0);
            let (iova, length) = (range.start(), range.length());
            let asked = DirtyRange { iova, length, page: page.bytes() };
            space.dirty(asked, false, &mut bits[..words])?;
            Ok(bits)
        })?;
        Ok(())
    }

    fn error(&self, operation: &str, trouble: impl Into<Trouble>) -> SourceError {
        SourceError::new(&self.name, operation, trouble.into())
    }
}

impl std::fmt::Debug for IommuLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IommuLog")
            .field("name", &self.name)
            .field("started", &self.page.is_some())
            .finish_non_exhaustive()
    }
}

impl DirtySource for IommuLog {
    fn name(&self) -> &str {
        &self.name
    }

    fn space(&self) -> Addresses {
        Addresses::Iova
    }

    fn goes_with_mappings(&self) -> Option<PageSize> {
        // Of those that it takes for any mapping.
        Some(PageSize::FOUR_K)
    }

    fn start(&mut self, _: &[IovaRange], page: PageSize) -> Result<(), SourceError> {
        // All that is mapped, and will be. What was noted before is forgotten.
        self.page = None;
        self.track("track dirty pages", true)
            .map_err(|error| self.error("start", error))?;
        self.page = Some(page);
        Ok(())
    }

    fn collect(
        &mut self,
        range: IovaRange,
        found: &mut dyn FnMut(DirtyReport<'_>),
    ) -> Result<(), SourceError> {
        self.try_to_collect(range, found)
            .map_err(|trouble| self.error("collect", trouble))
    }

    fn stop(&mut self) -> Result<(), SourceError> {
        self.page = None;
        self.track("track no dirty pages", false)
            .map_err(|error| self.error("stop", error))
    }
}

/// What mappings reach together, in rising order, where they have no hole in `range`.
pub(crate) fn reach(range: IovaRange, mappings: &[IovaRange]) -> Option<IovaRange> {
    let first = mappings.first()?;
    let mut end = first.end();
    for mapping in &mappings[1..] {
        if mapping.start() > end {
            return None;
        }
        end = end.max(mapping.end());
    }
    let reach = IovaRange::new(first.start(), end - first.start()).ok()?;
    reach.covers(range).then_some(reach)
}

/// A range cut at the multiples of `size`.
fn pieces(range: IovaRange, size: u64) -> impl Iterator<Item = IovaRange> {
    let mut at = range.start();
    std::iter::from_fn(move || {
        let next = (at / size).checked_add(1).and_then(|next| next.checked_mul(size));
        let end = next.unwrap_or(u64::MAX).min(range.end());
        let piece = IovaRange::new(at, end.checked_sub(at)?).ok()?;
        at = end;
        Some(piece)
    })
}

/// The largest page, of `largest` at most, that a range consists of.
fn fitting(range: IovaRange, largest: PageSize) -> PageSize {
    let aligned = (range.start() | range.end()).trailing_zeros();
    let bytes = 1_u64.checked_shl(aligned).unwrap_or(u64::MAX);
    PageSize::new(bytes.min(largest.bytes())).unwrap_or(PageSize::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, length: u64) -> IovaRange {
        IovaRange::new(start, length).unwrap()
    }

    #[test]
    fn a_page_that_sticks_out_of_the_range_is_never_asked_for() {
        // The kernel refuses it, and with it everything would be dirty each time.
        let large = PageSize::new(2 << 20).unwrap();
        let fits = |start, length| fitting(range(start, length), large).bytes();
        assert_eq!(fits(2 << 20, 4 << 20), 2 << 20);
        assert_eq!(fits(0, 1 << 40), 2 << 20);
        assert_eq!(fits(2 << 20, 0x3000), 0x1000);
        assert_eq!(fits(0x3000, 2 << 20), 0x1000);
        assert_eq!(fits(0x1_0000, 0x3_0000), 0x1_0000);
    }

    #[test]
    fn a_page_of_the_iommu_is_never_cut_by_two_queries() {
        let (tib, half) = (1 << 40, 1 << 39);
        let cut: Vec<_> = pieces(range(half, 3 * tib), tib).collect();
        let rest = [range(tib, tib), range(2 * tib, tib), range(3 * tib, half)];
        assert_eq!(cut, [&[range(half, half)], &rest[..]].concat());
        let last = u64::MAX - 0xfff;
        let one: Vec<_> = pieces(range(last, 0xfff), tib).collect();
        assert_eq!(one, [range(last, 0xfff)]);
        let all: Vec<_> = pieces(range(0, 4096), u64::MAX).collect();
        assert_eq!(all, [range(0, 4096)]);
    }

    #[test]
    fn a_range_with_a_hole_is_told_from_one_without() {
        let (a, b, c) = (range(0, 0x2000), range(0x2000, 0x1000), range(0x5000, 0x1000));
        let asked = range(0x1000, 0x2000);
        assert_eq!(reach(asked, &[a, b]), Some(range(0, 0x3000)));
        assert_eq!(reach(asked, &[a]), None);
        assert_eq!(reach(asked, &[b]), None);
        assert_eq!(reach(range(0, 0x6000), &[a, b, c]), None);
        assert_eq!(reach(asked, &[]), None);
    }
}
