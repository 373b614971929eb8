//! Words of bits: masks and the search for runs.
//!
//! Bit `n` is bit `n % 64` of word `n / 64`, as in every uAPI bitmap on a
//! little-endian machine.

use std::iter;
use std::ops::Range;

/// The bits of word `word` that lie in `bits`.
pub(crate) fn mask(word: usize, bits: &Range<usize>) -> u64 {
    let base = word * 64;
    let low = bits.start.saturating_sub(base).min(64);
    let high = bits.end.saturating_sub(base).min(64);
    below(high) & !below(low)
}

/// The words that `bits`, if any, lie in.
pub(crate) fn words(bits: &Range<usize>) -> Range<usize> {
    if bits.is_empty() { 0..0 } else { bits.start / 64..bits.end.div_ceil(64) }
}

/// The next run of set bits at or after `from`; it may end with the last word.
pub(crate) fn next_run(words: &[u64], from: usize) -> Option<Range<usize>> {
    let start = next(words, from, 0)?;
    let end = next(words, start, u64::MAX).unwrap_or(words.len() * 64);
    Some(start..end)
}

/// Sets the bits of `bits`, which lie in `words`.
pub(crate) fn set(words: &mut [u64], bits: &Range<usize>) {
    for word in self::words(bits) {
        words[word] |= mask(word, bits);
    }
}

/// 64 bits from `position` on; what lies past the end of `words` is clear.
pub(crate) fn gather(words: &[u64], position: usize) -> u64 {
    let word = |index: usize| words.get(index).copied().unwrap_or(0);
    let (index, shift) = (position / 64, position % 64);
    if shift == 0 {
        word(index)
    } else {
        word(index) >> shift | word(index + 1) << (64 - shift)
    }
}

/// The numbers of the bits that are set, in order.
pub(crate) fn ones(mut word: u64) -> impl Iterator<Item = usize> {
    iter::from_fn(move || {
        let lowest = word.checked_sub(1)?;
        let n = word.trailing_zeros() as usize;
        word &= lowest;
        Some(n)
    })
}

/// The first bit at or after `from` that differs from `skipped`, a word of nothing
/// but bits to skip.
fn next(words: &[u64], from: usize, skipped: u64) -> Option<usize> {
    let mut index = from / 64;
    let mut found = (words.get(index)? ^ skipped) & !below(from % 64);
    while found == 0 {
        index += 1;
        found = words.get(index)? ^ skipped;
    }
    Some(index * 64 + found.trailing_zeros() as usize)
}

/// The lowest `count` bits, 0 to 64.
fn below(count: usize) -> u64 {
    if count == 64 { u64::MAX } else { (1 << count) - 1 }
}
