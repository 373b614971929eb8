//! What was taken out of a bitmap at one moment.

use crate::bits;
use crate::{IovaRange, PageSize};
use std::iter::FusedIterator;
use std::ops::Range;

/// The range that a bitmap covers and the pages it is made of.
///
/// Bit 0 is the page that the range starts in. The pages at both ends may stick out
/// of the range; as addresses they are always cut to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) range: IovaRange,
    pub(crate) page: PageSize,
}

impl Geometry {
    /// The number of pages touched.
    pub(crate) fn pages(&self) -> u64 {
        self.number(self.range.last()) - self.number(self.range.start()) + 1
    }

    /// The bits of the pages that `range` touches. The bitmap exists, so that its
    /// number of pages is a `usize`.
    pub(crate) fn bits(&self, range: IovaRange) -> Range<usize> {
        self.range.intersection(range).map_or(0..0, |inside| {
            let first = self.number(self.range.start());
            let bit = |address| (self.number(address) - first) as usize;
            bit(inside.start())..bit(inside.last()) + 1
        })
    }

    /// The addresses of `bits`, which are not empty and in the bitmap.
    pub(crate) fn addresses(&self, bits: &Range<usize>) -> IovaRange {
        let first = self.number(self.range.start());
        let shift = self.page.shift();
        let start = (first + bits.start as u64) << shift;
        // The last page may end where the address space does.
        let last = (first + bits.end as u64 - 1) << shift | (self.page.bytes() - 1);
        let end = last.saturating_add(1).min(self.range.end());
        IovaRange::between(start.max(self.range.start()), end)
            .expect("a page of the bitmap has a byte in common with its range")
    }

    /// The addresses of `bits` in `range`, which touches every one of them.
    pub(crate) fn addresses_in(
        &self,
        bits: &Range<usize>,
        range: IovaRange,
    ) -> IovaRange {
        self.addresses(bits)
            .intersection(range)
            .expect("the range touches the pages of these bits")
    }

    /// The absolute number of the page that `address` is in.
    pub(crate) const fn number(&self, address: u64) -> u64 {
        address >> self.page.shift()
    }
}

/// The dirty pages that [`Bitmap::drain`](crate::Bitmap::drain) or
/// [`drain_range`](crate::Bitmap::drain_range) took out. Owned: nothing that happens
/// to the bitmap afterwards changes it.
///
/// Whoever holds it owes these pages to somebody. When what they were drained for
/// fails, they go back by [`Bitmap::restore`](crate::Bitmap::restore).
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "drained bits are acted upon or restored, else they are lost"]
pub struct Drained {
    pub(crate) geometry: Geometry,
    /// The index of `words[0]` in the bitmap.
    pub(crate) first_word: usize,
    pub(crate) words: Vec<u64>,
}

impl Drained {
    /// The maximal runs of dirty pages, in order, cut to the range of the bitmap.
    /// Clean stretches cost a comparison per 64 pages.
    pub fn runs(&self) -> Runs<'_> {
        Runs { drained: self, position: 0 }
    }

    /// The runs, in pieces of at most `bytes` bytes: whole pages, as many as fit, but
    /// at least one.
    pub fn runs_of_at_most(&self, bytes: u64) -> impl Iterator<Item = IovaRange> {
        let page = self.page_size();
        let bytes = page.floor(bytes).max(page.bytes());
        self.runs().flat_map(move |run| {
            // The first piece ends on a page boundary, even if the run starts inside
            // a page, so that the others start on one.
            let head =
                (bytes - (run.start() - page.floor(run.start()))).min(run.length());
            let tail = IovaRange::between(run.start() + head, run.end());
            IovaRange::between(run.start(), run.start() + head)
                .into_iter()
                .chain(tail.into_iter().flat_map(move |tail| tail.pieces(bytes)))
        })
    }

    /// The number of dirty pages.
    pub fn pages(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The number of bytes in dirty pages, inside the range of the bitmap.
    pub fn bytes(&self) -> u64 {
        self.runs().map(|run| run.length()).sum()
    }

    /// Whether nothing was dirty.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The page size of the bitmap it comes from.
    pub fn page_size(&self) -> PageSize {
        self.geometry.page
    }

    /// The range of the bitmap it comes from.
    pub fn range(&self) -> IovaRange {
        self.geometry.range
    }

    /// The same without the pages that `range` touches: for what was dealt with, and
    /// for tests that lose a bit on purpose.
    pub fn without(mut self, range: IovaRange) -> Drained {
        let bits = self.geometry.bits(range);
        for word in bits::words(&bits) {
            let kept = word
                .checked_sub(self.first_word)
                .and_then(|index| self.words.get_mut(index));
            if let Some(kept) = kept {
                *kept &= !bits::mask(word, &bits);
            }
        }
        self
    }
}

impl<'a> IntoIterator for &'a Drained {
    type Item = IovaRange;
    type IntoIter = Runs<'a>;

    fn into_iter(self) -> Runs<'a> {
        self.runs()
    }
}

/// Iterator over the maximal runs of a [`Drained`].
#[derive(Clone, Debug)]
pub struct Runs<'a> {
    drained: &'a Drained,
    position: usize,
}

impl Iterator for Runs<'_> {
    type Item = IovaRange;

    fn next(&mut self) -> Option<IovaRange> {
        let run = bits::next_run(&self.drained.words, self.position)?;
        self.position = run.end;
        let offset = self.drained.first_word * 64;
        Some(self.drained.geometry.addresses(&(run.start + offset..run.end + offset)))
    }
}

impl FusedIterator for Runs<'_> {}
