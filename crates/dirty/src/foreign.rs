//! Bitmaps of others: what their bits stand for.

use crate::bits;
use crate::{IovaRange, PageSize};

/// The ranges that the set bits of a foreign bitmap stand for, in order, as far as they
/// lie in `within`: bit `n` of `words` is the `page` bytes at `from.start() + n * page`.
///
/// A set bit counts for its whole page, past the end of `from` too. Bits past that page
/// are ignored. Words that are missing count as set, so that no words at all stand for
/// all of `from`. [`Bitmap::merge`](crate::Bitmap::merge) counts alike, and is faster.
pub fn set_runs(
    from: IovaRange,
    page: PageSize,
    words: &[u64],
    within: IovaRange,
) -> impl Iterator<Item = IovaRange> {
    let (bits, missing) = known(from, page, words);
    // Bits before `within` and after it are not looked at.
    let skipped = within.start().saturating_sub(from.start()) >> page.shift();
    let mut position = skipped.min(bits as u64) as usize;
    let told = std::iter::from_fn(move || {
        let run = bits::next_run(words, position).filter(|run| run.start < bits)?;
        position = run.end.min(bits);
        // The address of a page whose bit is in `from` does not overflow; that of its
        // end may.
        let first = from.start() + ((run.start as u64) << page.shift());
        let last = from.start() + ((position as u64 - 1) << page.shift());
        IovaRange::between(first, last.saturating_add(page.bytes()))
            .filter(|run| run.start() < within.end())
    });
    told.chain(missing).filter_map(move |run| run.intersection(within))
}

/// How many bits of `words` stand for something of `from`, and what words that are
/// missing would stand for.
pub(crate) fn known(
    from: IovaRange,
    page: PageSize,
    words: &[u64],
) -> (usize, Option<IovaRange>) {
    let wanted = from.length().div_ceil(page.bytes());
    let given = (words.len() as u64).saturating_mul(64);
    let missing = (given < wanted).then(|| {
        // `given` pages are fewer than `from` has, so their end is in it.
        let start = from.start() + given * page.bytes();
        let end = from.start().saturating_add(wanted.saturating_mul(page.bytes()));
        IovaRange::between(start, end)
    });
    // Not more than `words` has bits, so it is a `usize`.
    (wanted.min(given) as usize, missing.flatten())
}
