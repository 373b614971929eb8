//! The bitmap itself.

use crate::bits;
use crate::drained::{Drained, Geometry};
use crate::foreign;
use crate::sync::{AtomicU64, Ordering};
use crate::{IovaRange, PageSize};
use std::fmt;
use std::ops::Range;

/// Which pages of one range changed.
///
/// Every method takes `&self`; any number of threads may mark, merge and drain at
/// once. Who marks has written the bytes before (`Release`), who drains reads them
/// after (`Acquire`), so that a drained page shows at least the write that marked it.
///
/// The range need not be aligned to the page size: pages at its ends count as far as
/// they lie in it. Whatever lies outside is ignored by every method.
///
/// Memory: one bit a page, 2 MiB for 64 GiB of 4 KiB pages.
pub struct Bitmap {
    geometry: Geometry,
    words: Box<[AtomicU64]>,
}

impl Bitmap {
    /// The most words a bitmap may have: 2 GiB of them, for 64 TiB of 4 KiB pages.
    pub const MAX_WORDS: usize = 1 << 28;

    /// A clean bitmap over `range`.
    ///
    /// # Errors
    ///
    /// [`BitmapError::TooLarge`] above [`MAX_WORDS`](Self::MAX_WORDS), checked before
    /// anything is allocated; [`BitmapError::NoMemory`].
    pub fn new(range: IovaRange, page: PageSize) -> Result<Bitmap, BitmapError> {
        let geometry = Geometry { range, page };
        let count = geometry.pages().div_ceil(64);
        let count = usize::try_from(count)
            .ok()
            .filter(|count| *count <= Self::MAX_WORDS)
            .ok_or(BitmapError::TooLarge { range, page })?;
        let mut words = Vec::new();
        words
            .try_reserve_exact(count)
            .map_err(|_| BitmapError::NoMemory { words: count })?;
        words.extend((0..count).map(|_| AtomicU64::new(0)));
        Ok(Bitmap { geometry, words: words.into_boxed_slice() })
    }

    /// Marks every page that `range` touches.
    pub fn mark(&self, range: IovaRange) {
        let bits = self.geometry.bits(range);
        for word in bits::words(&bits) {
            // Even if the bits are set already: this write has to be seen by whoever
            // drains them.
            self.words[word].fetch_or(bits::mask(word, &bits), Ordering::Release);
        }
    }

    /// Marks every page.
    pub fn mark_all(&self) {
        self.mark(self.geometry.range);
    }

    /// Takes over a foreign bitmap in the uAPI layout: bit `n` of `words` stands for
    /// the `page` bytes at `from.start() + n * page`.
    ///
    /// The page sizes may differ either way, and `from` may start anywhere: every page
    /// here that a set bit touches is marked. A set bit counts for its whole page,
    /// past the end of `from` too, since the sender may have cleared all of it. Bits
    /// past that page are ignored. Words that are missing count as set: a short answer
    /// proves nothing.
    pub fn merge(&self, from: IovaRange, page: PageSize, words: &[u64]) {
        if page == self.geometry.page && page.floor(from.start()) == from.start() {
            let (bits, missing) = foreign::known(from, page, words);
            self.merge_words(self.geometry.number(from.start()), bits, words);
            missing.into_iter().for_each(|rest| self.mark(rest));
        } else {
            let runs = foreign::set_runs(from, page, words, self.geometry.range);
            runs.for_each(|run| self.mark(run));
        }
    }

    /// Takes all dirty bits out.
    pub fn drain(&self) -> Drained {
        self.drain_range(self.geometry.range)
    }

    /// Takes out the dirty bits of all pages that `range` touches. A page that sticks
    /// out of `range` is taken, and is in the answer as a whole.
    pub fn drain_range(&self, range: IovaRange) -> Drained {
        let bits = self.geometry.bits(range);
        let words = bits::words(&bits);
        let mut drained = Drained::new(self.geometry, words.start, words.len());
        let mut first = words.start;
        for block in self.words[words].chunks(64) {
            // Most words are clean, and loads cost much less than swaps. What is set
            // right after them is found the next time.
            let dirty = block.iter().enumerate().fold(0, |dirty, (n, word)| {
                dirty | u64::from(word.load(Ordering::Relaxed) != 0) << n
            });
            drained.push(dirty, |n| self.take(first + n, bits::mask(first + n, &bits)));
            first += block.len();
        }
        drained
    }

    /// Puts back what was drained, here or from another bitmap. Bits set meanwhile
    /// stay.
    pub fn restore(&self, drained: &Drained) {
        if drained.geometry == self.geometry {
            for (word, bits) in drained.words() {
                self.words[word].fetch_or(bits, Ordering::Release);
            }
        } else {
            drained.runs().for_each(|run| self.mark(run));
        }
    }

    /// Reads and clears the dirty bits of `range`, and sets them in `out` in the uAPI
    /// layout: bit `n` stands for the `page` bytes at `range.start() + n * page`. Bits
    /// that `out` has already stay set.
    ///
    /// `page` may be smaller or larger than the page size here, and `range` need not be
    /// aligned to either. A page here that sticks out of `range` is reported, but stays
    /// dirty for whoever asks for the rest of it. What of `range` lies outside of the
    /// bitmap is clean.
    ///
    /// # Errors
    ///
    /// [`ReportError`] when `out` is too short; nothing is cleared then.
    pub fn report(
        &self,
        range: IovaRange,
        page: PageSize,
        out: &mut [u64],
    ) -> Result<(), ReportError> {
        let needed = range.length().div_ceil(page.bytes()).div_ceil(64);
        if (out.len() as u64) < needed {
            return Err(ReportError { range, page, needed, given: out.len() });
        }
        let Some(inside) = self.geometry.range.intersection(range) else {
            return Ok(());
        };
        let bits = self.geometry.bits(inside);
        let cleared = self.whole(inside, &bits);
        for word in bits::words(&bits) {
            // As in `drain_range`: most words are clean.
            if self.words[word].load(Ordering::Relaxed) == 0 {
                continue;
            }
            let asked = bits::mask(word, &bits);
            let taken = asked & bits::mask(word, &cleared);
            let mut found = self.take(word, taken);
            if taken != asked {
                found |= self.words[word].load(Ordering::Acquire) & asked & !taken;
            }
            let mut position = 0;
            while let Some(run) = bits::next_run(&[found], position) {
                position = run.end;
                let run = word * 64 + run.start..word * 64 + run.end;
                let dirty = self.geometry.addresses_in(&run, inside);
                let bit =
                    |address: u64| ((address - range.start()) >> page.shift()) as usize;
                bits::set(out, &(bit(dirty.start())..bit(dirty.last()) + 1));
            }
        }
        Ok(())
    }

    /// The number of dirty pages. With others marking and draining, a number that was
    /// never quite true.
    pub fn count(&self) -> u64 {
        self.words
            .iter()
            .map(|word| u64::from(word.load(Ordering::Acquire).count_ones()))
            .sum()
    }

    /// Whether nothing is dirty.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| word.load(Ordering::Acquire) == 0)
    }

    /// The range that it covers, as given.
    pub fn range(&self) -> IovaRange {
        self.geometry.range
    }

    /// The page size.
    pub fn page_size(&self) -> PageSize {
        self.geometry.page
    }

    /// The number of pages that the range touches.
    pub fn pages(&self) -> u64 {
        self.geometry.pages()
    }

    /// Merges words of the same page size: the first of `count` bits is the page with
    /// the absolute number `first`.
    fn merge_words(&self, first: u64, count: usize, words: &[u64]) {
        let own = self.geometry.number(self.geometry.range.start());
        let skipped = own.saturating_sub(first);
        let start = first.saturating_sub(own);
        if skipped >= count as u64 || start >= self.pages() {
            return;
        }
        let (skipped, start) = (skipped as usize, start as usize);
        let end = (start as u64 + (count - skipped) as u64).min(self.pages()) as usize;
        let target = start..end;
        // The words that lie in the target as a whole, and those at its ends.
        let touched = bits::words(&target);
        let first = start.div_ceil(64);
        let whole = first..first.max(end / 64);
        for word in (touched.start..whole.start).chain(whole.end..touched.end) {
            // Where bit 0 of this word lies in `words`; it may lie before its start.
            let found = if word * 64 >= start {
                bits::gather(words, word * 64 - start + skipped)
            } else {
                bits::gather(words, skipped) << (start - word * 64)
            };
            let found = found & bits::mask(word, &target);
            if found != 0 {
                self.words[word].fetch_or(found, Ordering::Release);
            }
        }
        if whole.is_empty() {
            return;
        }
        let mut from = whole.start * 64 - start + skipped;
        let mut moved = [0; BLOCK];
        for block in self.words[whole].chunks(BLOCK) {
            if from.is_multiple_of(64) {
                merge_block(block, &words[from / 64..]);
            } else {
                for (n, word) in moved.iter_mut().enumerate() {
                    *word = bits::gather(words, from + n * 64);
                }
                merge_block(block, &moved);
            }
            from += block.len() * 64;
        }
    }

    /// Takes the bits of `mask` out of a word.
    fn take(&self, word: usize, mask: u64) -> u64 {
        let word = &self.words[word];
        if mask == u64::MAX {
            word.swap(0, Ordering::AcqRel)
        } else {
            word.fetch_and(!mask, Ordering::AcqRel) & mask
        }
    }

    /// Those of `bits`, the pages that `inside` touches, that do not stick out of it.
    fn whole(&self, inside: IovaRange, bits: &Range<usize>) -> Range<usize> {
        let head = self.geometry.addresses(&(bits.start..bits.start + 1));
        let tail = self.geometry.addresses(&(bits.end - 1..bits.end));
        let start = bits.start + usize::from(!inside.covers(head));
        let end = bits.end - usize::from(!inside.covers(tail));
        start..end.max(start)
    }
}

/// Words that are merged together: a page of memory of them.
const BLOCK: usize = 512;

/// Words of a cache line.
const LINE: usize = 8;

/// Sets the bits of the first words of `from` in as many words, at most [`BLOCK`].
fn merge_block(into: &[AtomicU64], from: &[u64]) {
    // Most words are clean: no branch for each of them, as nobody can foresee it.
    let (lines, rest) = from[..into.len()].as_chunks::<LINE>();
    let dirty = lines.iter().enumerate().fold(0, |dirty, (n, line)| {
        dirty | u64::from(line.iter().fold(0, |all, word| all | word) != 0) << n
    });
    if dirty != 0 {
        // Atomic operations wait for memory one after the other, loads do so together.
        for line in into.iter().step_by(LINE) {
            line.load(Ordering::Relaxed);
        }
    }
    for n in bits::ones(dirty) {
        let (into, line) = (&into[n * LINE..], &lines[n]);
        let set = line
            .iter()
            .enumerate()
            .fold(0, |set, (n, word)| set | u64::from(*word != 0) << n);
        for n in bits::ones(set) {
            into[n].fetch_or(line[n], Ordering::Release);
        }
    }
    for (into, from) in into[lines.len() * LINE..].iter().zip(rest) {
        if *from != 0 {
            into.fetch_or(*from, Ordering::Release);
        }
    }
}

impl fmt::Debug for Bitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bitmap")
            .field("range", &self.range())
            .field("page_size", &self.page_size().bytes())
            .field("dirty_pages", &self.count())
            .finish()
    }
}

/// A bitmap that cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BitmapError {
    /// It would have more than [`Bitmap::MAX_WORDS`] words.
    #[error("a dirty bitmap of {page}-byte pages over {range} would be too large")]
    TooLarge {
        /// What it should have covered.
        range: IovaRange,
        /// In pages of this size.
        page: PageSize,
    },
    /// There is not enough memory.
    #[error("no memory for a dirty bitmap of {words} words")]
    NoMemory {
        /// The number of 64-bit words asked for.
        words: usize,
    },
}

/// Too few words for the bits of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a report of {page}-byte pages over {range} needs {needed} words, not {given}")]
pub struct ReportError {
    /// What was asked for.
    pub range: IovaRange,
    /// In pages of this size.
    pub page: PageSize,
    /// The number of 64-bit words it takes.
    pub needed: u64,
    /// The number of words there were.
    pub given: usize,
}
