//! The software DMA log: which pages the device wrote.

use abi::errno::Errno;
use dirty::{IovaRange, PageSize};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::ops::Range;

/// The smallest page the log keeps, in bytes: the kernel reports no finer.
pub const PAGE_SMALLEST: u64 = 4096;

/// The largest page the log keeps, in bytes. A larger hint is answered with this one.
pub const PAGE_LARGEST: u64 = 2 << 20;

/// Most ranges of one START: what the kernel takes with 4 KiB pages.
pub const RANGES_MAX: usize = 256;

/// Pages of one piece of the bitmap, which is made when something in it is written: 1 GiB
/// in 4 KiB pages. Its 32 KiB lie in one place, as memory gives what follows what was just
/// read for half of what it takes for single pages from everywhere.
const CHUNK_PAGES: u64 = 1 << 18;

/// Words of a chunk, and of each of its lines.
const WORDS: usize = CHUNK_PAGES as usize / 64;
const LINE: usize = WORDS / 64;

/// Most pieces: 64 MiB of bits, for 2 TiB written in 4 KiB pages. Beyond them the log
/// says that everything is dirty, which is true enough for whoever asks.
const CHUNKS_MAX: usize = 1 << 11;

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
    chunks: BTreeMap<u64, Chunk>,
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
        let mut words = Vec::new();
        self.report_into(start, length, page_size, words_max, &mut words)?;
        Ok(words)
    }

    /// As [`report`](Self::report), but puts the words behind those of `into`, which a
    /// caller that asks often can use again.
    ///
    /// # Errors
    ///
    /// As there; `into` stays as it is then.
    pub fn report_into(
        &mut self,
        start: u64,
        length: u64,
        page_size: u64,
        words_max: usize,
        into: &mut Vec<u64>,
    ) -> Result<(), Errno> {
        if page_size < PAGE_SMALLEST {
            return Err(Errno::EINVAL);
        }
        let page = PageSize::new(page_size).map_err(|_| Errno::EINVAL)?;
        let range = range_of(start, length)?;
        let active = self.active.as_mut().ok_or(Errno::EINVAL)?;
        let words = length.div_ceil(page_size).div_ceil(64);
        if words > words_max as u64 {
            return Err(Errno::E2BIG);
        }
        // It is at most `words_max`.
        let (begin, end) = (into.len(), into.len() + words as usize);
        if active.everything_dirty {
            into.resize(end, u64::MAX);
            return Ok(());
        }
        into.resize(end, 0);
        let span = CHUNK_PAGES * active.page.bytes();
        let numbers = range.start() / span..=range.last() / span;
        for (number, chunk) in active.chunks.range_mut(numbers) {
            let asked = Asked { range, page, out: &mut into[begin..] };
            chunk.report(number * CHUNK_PAGES, active.page, asked);
        }
        Ok(())
    }

    /// Marks what was written.
    pub(crate) fn mark(&mut self, written: IovaRange) {
        if let Some(active) = &mut self.active {
            active.mark(written);
        }
    }
}

impl Active {
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
        let shift = self.page.shift();
        let (first, last) = (written.start() >> shift, written.last() >> shift);
        for number in first / CHUNK_PAGES..=last / CHUNK_PAGES {
            let room = self.chunks.len() < CHUNKS_MAX;
            let chunk = match self.chunks.entry(number) {
                Entry::Occupied(chunk) => chunk.into_mut(),
                Entry::Vacant(place) if room => place.insert(Chunk::new()),
                Entry::Vacant(_) => {
                    tracing::warn!("the DMA log is full: everything counts as dirty");
                    self.everything_dirty = true;
                    self.chunks.clear();
                    return;
                }
            };
            chunk.mark(&part(number * CHUNK_PAGES, first, last));
        }
    }
}

/// A piece of the bitmap. One thread has the log, so that these are plain words.
struct Chunk {
    /// Bit `n % 64` of word `n / 64` is page `n` of the chunk.
    words: Box<[u64]>,
    /// Bit `n` is set where one of the words of line `n` is not 0, so that nobody looks
    /// at those of a device that does little.
    lines: u64,
}

/// What is asked for, and where it goes.
struct Asked<'a> {
    range: IovaRange,
    page: PageSize,
    /// As many words as it takes, and what other chunks had.
    out: &'a mut [u64],
}

impl Chunk {
    fn new() -> Chunk {
        Chunk { words: vec![0; WORDS].into_boxed_slice(), lines: 0 }
    }

    fn mark(&mut self, pages: &Range<usize>) {
        for word in pages.start / 64..pages.end.div_ceil(64) {
            self.words[word] |= mask(word, pages);
            self.lines |= 1 << (word / LINE);
        }
    }

    /// Gives what was asked for of a chunk that starts with page `first`, of `own` bytes
    /// each. A page that sticks out of the range is given, but kept for whoever asks for
    /// the rest of it.
    fn report(&mut self, first: u64, own: PageSize, asked: Asked<'_>) {
        if self.lines == 0 {
            return;
        }
        let Asked { range, page, out } = asked;
        let shift = own.shift();
        let pages = part(first, range.start() >> shift, range.last() >> shift);
        let aligned = own.floor(range.start()) == range.start();
        let head = !aligned && first + pages.start as u64 == range.start() >> shift;
        // The last byte of the address space is in no range.
        let end = (range.last() | (own.bytes() - 1)).min(u64::MAX - 1);
        let tail =
            end != range.last() && first + pages.end as u64 > range.last() >> shift;
        let given = pages.start + usize::from(head)..pages.end - usize::from(tail);
        // How many pages were asked for before the first one here, where all are.
        let before = first.wrapping_sub(range.start() >> shift);
        let whole = given.len() == CHUNK_PAGES as usize;
        if page == own && aligned && whole && before.is_multiple_of(64) {
            self.give(&mut out[(before / 64) as usize..]);
            return;
        }
        for line in runs(self.lines).flatten().map(|line| line as usize) {
            let mut left = 0;
            for word in line * LINE..(line + 1) * LINE {
                let found = self.words[word] & mask(word, &pages);
                self.words[word] &= !(found & mask(word, &given));
                left |= self.words[word];
                for run in runs(found) {
                    let number = first + word as u64 * 64;
                    let start = (number + u64::from(run.start)) << shift;
                    let end = (number + u64::from(run.end) - 1) << shift;
                    let end = (end | (own.bytes() - 1)).min(range.last());
                    let bit = |address: u64| (address - range.start()) >> page.shift();
                    let start = bit(start.max(range.start())) as usize;
                    set(out, &(start..bit(end) as usize + 1));
                }
            }
            if left == 0 {
                self.lines &= !(1 << line);
            }
        }
    }

    /// Moves all of it to the start of `out`, where nothing is set yet.
    fn give(&mut self, out: &mut [u64]) {
        for lines in runs(std::mem::take(&mut self.lines)) {
            let words = lines.start as usize * LINE..lines.end as usize * LINE;
            out[words.clone()].copy_from_slice(&self.words[words.clone()]);
            self.words[words].fill(0);
        }
    }
}

/// Which pages from `first` to `last`, both inclusive, a chunk has that starts with page
/// `start`, as bits. At least one.
fn part(start: u64, first: u64, last: u64) -> Range<usize> {
    let end = (last - start).min(CHUNK_PAGES - 1) + 1;
    first.saturating_sub(start) as usize..end as usize
}

/// The bits of word `word` that lie in `bits`.
fn mask(word: usize, bits: &Range<usize>) -> u64 {
    let low = bits.start.saturating_sub(word * 64).min(64) as u32;
    let high = bits.end.saturating_sub(word * 64).min(64) as u32;
    let below = |count| !u64::MAX.checked_shl(count).unwrap_or(0);
    below(high) & !below(low)
}

/// Sets bits, which lie in `words`.
fn set(words: &mut [u64], bits: &Range<usize>) {
    let touched = bits.start / 64..bits.end.div_ceil(64);
    for (word, at) in words[touched.clone()].iter_mut().zip(touched) {
        *word |= mask(at, bits);
    }
}

/// The longest runs of bits that are set, in order.
fn runs(mut word: u64) -> impl Iterator<Item = Range<u32>> {
    std::iter::from_fn(move || {
        (word != 0).then(|| {
            let start = word.trailing_zeros();
            let end = start + (word >> start).trailing_ones();
            word &= u64::MAX.checked_shl(end).unwrap_or(0);
            start..end
        })
    })
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
