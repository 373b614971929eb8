//! What was taken out of a bitmap at one moment.

use crate::bits;
use crate::{IovaRange, PageSize};
use std::iter::FusedIterator;
use std::ops::Range;
use std::slice;

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
///
/// Memory: one bit for 4096 pages, and eight bytes for every 64 of which one is dirty.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "drained bits are acted upon or restored, else they are lost"]
pub struct Drained {
    pub(crate) geometry: Geometry,
    /// The word of the bitmap that bit 0 of `blocks[0]` stands for.
    first_word: usize,
    /// Which words there are: bit `n` of block `k` is word `first_word + 64 * k + n`.
    blocks: Vec<u64>,
    /// These words, and no others, in order. None is zero.
    words: Vec<u64>,
}

impl Drained {
    /// Nothing yet, of `words` words from `first_word` on.
    pub(crate) fn new(geometry: Geometry, first_word: usize, words: usize) -> Drained {
        let blocks = Vec::with_capacity(words.div_ceil(64));
        Drained { geometry, first_word, blocks, words: Vec::new() }
    }

    /// Adds the next 64 words: those in `block` are taken one by one, and some may turn
    /// out to be clean.
    pub(crate) fn push(&mut self, block: u64, mut take: impl FnMut(usize) -> u64) {
        let mut found = block;
        for n in bits::ones(block) {
            match take(n) {
                0 => found &= !(1 << n),
                word => self.words.push(word),
            }
        }
        self.blocks.push(found);
    }

    /// The words that are not zero, each with its index in the bitmap.
    pub(crate) fn words(&self) -> Words<'_> {
        Words {
            blocks: self.blocks.iter(),
            block: 0,
            // The first block is still to come.
            base: self.first_word.wrapping_sub(64),
            words: self.words.iter(),
        }
    }

    /// The maximal runs of dirty pages, in order, cut to the range of the bitmap.
    /// Clean stretches cost a comparison per 4096 pages.
    pub fn runs(&self) -> Runs<'_> {
        Runs { geometry: self.geometry, words: self.words(), start: 0, word: 0 }
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
        self.words.is_empty()
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
    pub fn without(self, range: IovaRange) -> Drained {
        let bits = self.geometry.bits(range);
        let Drained { geometry, first_word, ref blocks, ref words } = self;
        let mut rest = Drained::new(geometry, first_word, blocks.len() * 64);
        let mut words = words.iter();
        for (k, block) in blocks.iter().enumerate() {
            rest.push(*block, |n| {
                let word = words.next().copied().unwrap_or(0);
                word & !bits::mask(first_word + 64 * k + n, &bits)
            });
        }
        rest
    }
}

impl<'a> IntoIterator for &'a Drained {
    type Item = IovaRange;
    type IntoIter = Runs<'a>;

    fn into_iter(self) -> Runs<'a> {
        self.runs()
    }
}

/// Iterator over the words of a [`Drained`] that are not zero.
#[derive(Clone, Debug)]
pub(crate) struct Words<'a> {
    blocks: slice::Iter<'a, u64>,
    /// What is left of the block.
    block: u64,
    /// The word of the bitmap that its bit 0 stands for.
    base: usize,
    words: slice::Iter<'a, u64>,
}

impl Iterator for Words<'_> {
    type Item = (usize, u64);

    fn next(&mut self) -> Option<(usize, u64)> {
        while self.block == 0 {
            self.block = *self.blocks.next()?;
            self.base = self.base.wrapping_add(64);
        }
        let index = self.base + self.block.trailing_zeros() as usize;
        self.block &= self.block - 1;
        self.words.next().map(|word| (index, *word))
    }
}

/// Iterator over the maximal runs of a [`Drained`].
#[derive(Clone, Debug)]
pub struct Runs<'a> {
    geometry: Geometry,
    words: Words<'a>,
    /// The bit of the bitmap that bit 0 of `word` is.
    start: usize,
    /// What is left of the word; 0 for another one.
    word: u64,
}

impl Runs<'_> {
    fn next_word(&mut self) -> Option<()> {
        let (index, word) = self.words.next()?;
        (self.start, self.word) = (index * 64, word);
        Some(())
    }

    /// Takes the `count` lowest bits out of the word.
    fn skip(&mut self, count: u32) {
        self.word &= u64::MAX.checked_shl(count).unwrap_or(0);
    }
}

impl Iterator for Runs<'_> {
    type Item = IovaRange;

    fn next(&mut self) -> Option<IovaRange> {
        if self.word == 0 {
            self.next_word()?;
        }
        let first = self.word.trailing_zeros();
        let mut last = first + (self.word >> first).trailing_ones();
        self.skip(last);
        let start = self.start + first as usize;
        let mut end = self.start + last as usize;
        // A run to the end of a word goes on in the next one, if that follows.
        while last == 64 && self.next_word().is_some() && self.start == end {
            last = self.word.trailing_ones();
            self.skip(last);
            end += last as usize;
        }
        Some(self.geometry.addresses(&(start..end)))
    }
}

impl FusedIterator for Runs<'_> {}
