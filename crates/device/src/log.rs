//! The software DMA log: which pages the device wrote.

use abi::errno::Errno;
use dirty::{Bitmap, IovaRange, PageSize};
use std::collections::BTreeMap;
use std::fmt;

/// The smallest page the log keeps, in bytes: the kernel reports no finer.
pub const PAGE_SMALLEST: u64 = 4096;

/// The largest page the log keeps, in bytes. A larger hint is answered with this one.
pub const PAGE_LARGEST: u64 = 2 << 20;

/// Most ranges of one START: what the kernel takes with 4 KiB pages.
pub const RANGES_MAX: usize = 256;

/// Pages of one piece of the bitmap, which is made when something in it is written.
const CHUNK_PAGES: u64 = 1 << 15;

/// Most pieces: 64 MiB of bits, for 2 TiB written in 4 KiB pages. Beyond them the log
/// says that everything is dirty, which is true enough for whoever asks.
const CHUNKS_MAX: usize = 1 << 14;

/// A DMA log as `VFIO_DEVICE_FEATURE_DMA_LOGGING_*` describes it, kept in software.
///
/// It is independent of the migration state: START, STOP and REPORT work in every one,
/// so that the last report can be taken after the device stopped. A device reset leaves
/// it running with its bits: the guest can reset a device in the middle of a migration,
/// and what the device wrote before must not be lost with it. A disconnect ends it,
/// because the client that would have asked is gone.
///
/// Only writes by DMA to shared memory are logged. Writes by message are served by the
/// client, which marks its own bitmap.
#[derive(Default)]
pub struct DmaLog {
    active: Option<Active>,
}

struct Active {
    page: PageSize,
    /// What is logged; empty means everything.
    ranges: Vec<IovaRange>,
    /// By the number of the chunk.
    chunks: BTreeMap<u64, Bitmap>,
    /// More was written than there may be chunks for.
    everything_dirty: bool,
}

impl DmaLog {
    /// Starts logging writes to `ranges`, given as start and length in bytes; no range
    /// at all means everything (as in vfio-user; the kernel refuses it). Returns the
    /// page size that the log keeps: the hint, brought into 4 KiB to 2 MiB.
    ///
    /// # Errors
    ///
    /// As the kernel (7.3, `vfio_main.c`): `EINVAL` for a hint that is not a power of
    /// two, a range that is empty, not aligned to the hint or overlaps another, and
    /// for a log that runs already; `EOVERFLOW` for a range that ends at 2^64 or
    /// behind it; `E2BIG` above [`RANGES_MAX`] ranges. Nothing changes then.
    pub fn start(
        &mut self,
        page_size: u64,
        ranges: &[(u64, u64)],
    ) -> Result<PageSize, Errno> {
        if self.active.is_some() || !page_size.is_power_of_two() {
            return Err(Errno::EINVAL);
        }
        if ranges.len() > RANGES_MAX {
            return Err(Errno::E2BIG);
        }
        let mut checked = Vec::with_capacity(ranges.len());
        for (start, length) in ranges {
            if (start | length) & (page_size - 1) != 0 {
                return Err(Errno::EINVAL);
            }
            checked.push(range_of(*start, *length)?);
        }
        checked.sort_unstable();
        if checked.windows(2).any(|pair| pair[0].overlaps(pair[1])) {
            return Err(Errno::EINVAL);
        }
        let page = PageSize::new(page_size.clamp(PAGE_SMALLEST, PAGE_LARGEST))
            .map_err(|_| Errno::EINVAL)?;
        self.active = Some(Active {
            page,
            ranges: checked,
            chunks: BTreeMap::new(),
            everything_dirty: false,
        });
        Ok(page)
    }

    /// Ends logging and forgets what was logged. Fine when there is none.
    pub fn stop(&mut self) {
        self.active = None;
    }

    /// The page size while it runs.
    pub fn page_size(&self) -> Option<PageSize> {
        self.active.as_ref().map(|active| active.page)
    }

    /// Reads and clears what was written in `length` bytes from `start` on: bit `n` of
    /// the answer (bit `n % 64` of word `n / 64`) stands for the `page_size` bytes at
    /// `start + n * page_size`. What was not to be logged is clean. The answer has at
    /// most `words_max` words.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a page size below 4096 or not a power of two, an empty range, and
    /// when nothing is logged; `EOVERFLOW` for a range that ends at 2^64 or behind it;
    /// `E2BIG` for an answer that is too long. Nothing is cleared then.
    pub fn report(
        &mut self,
        start: u64,
        length: u64,
        page_size: u64,
        words_max: usize,
    ) -> Result<Vec<u64>, Errno> {
        if page_size < PAGE_SMALLEST {
            return Err(Errno::EINVAL);
        }
        let page = PageSize::new(page_size).map_err(|_| Errno::EINVAL)?;
        let range = range_of(start, length)?;
        let active = self.active.as_ref().ok_or(Errno::EINVAL)?;
        let words = length.div_ceil(page_size).div_ceil(64);
        if words > words_max as u64 {
            return Err(Errno::E2BIG);
        }
        let mut out = vec![0; words as usize];
        if active.everything_dirty {
            out.fill(u64::MAX);
            return Ok(out);
        }
        let span = active.chunk_bytes();
        for (_, chunk) in active.chunks.range(range.start() / span..=range.last() / span)
        {
            chunk.report(range, page, &mut out).map_err(|_| Errno::EIO)?;
        }
        Ok(out)
    }

    /// Marks what was written.
    pub(crate) fn mark(&mut self, written: IovaRange) {
        if let Some(active) = &mut self.active {
            active.mark(written);
        }
    }
}

impl Active {
    /// Bytes that one chunk stands for.
    fn chunk_bytes(&self) -> u64 {
        CHUNK_PAGES * self.page.bytes()
    }

    fn mark(&mut self, written: IovaRange) {
        if self.everything_dirty {
            return;
        }
        if self.ranges.is_empty() {
            self.mark_chunks(written);
            return;
        }
        // Sorted and without overlap: the first that can matter is the last one to
        // start at or before the write.
        let first = self.ranges.partition_point(|range| range.start() <= written.start());
        for at in first.saturating_sub(1)..self.ranges.len() {
            let range = self.ranges[at];
            if range.start() >= written.end() {
                break;
            }
            if let Some(both) = range.intersection(written) {
                self.mark_chunks(both);
            }
        }
    }

    fn mark_chunks(&mut self, written: IovaRange) {
        let span = self.chunk_bytes();
        for number in written.start() / span..=written.last() / span {
            if !self.chunks.contains_key(&number) {
                let start = number * span;
                let length = span.min(u64::MAX - start);
                let bitmap = IovaRange::new(start, length)
                    .ok()
                    .filter(|_| self.chunks.len() < CHUNKS_MAX)
                    .and_then(|range| Bitmap::new(range, self.page).ok());
                let Some(bitmap) = bitmap else {
                    tracing::warn!("the DMA log is full: everything counts as dirty");
                    self.everything_dirty = true;
                    self.chunks.clear();
                    return;
                };
                self.chunks.insert(number, bitmap);
            }
            self.chunks[&number].mark(written);
        }
    }
}

fn range_of(start: u64, length: u64) -> Result<IovaRange, Errno> {
    if length == 0 {
        return Err(Errno::EINVAL);
    }
    IovaRange::new(start, length).map_err(|_| Errno::EOVERFLOW)
}

impl fmt::Debug for DmaLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let active = self.active.as_ref();
        f.debug_struct("DmaLog")
            .field("page_size", &self.page_size().map(PageSize::bytes))
            .field("ranges", &active.map(|active| &active.ranges))
            .field("chunks", &active.map_or(0, |active| active.chunks.len()))
            .finish()
    }
}
