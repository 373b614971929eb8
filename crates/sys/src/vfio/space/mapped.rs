//! What is mapped where: memory by its first device address.

use std::collections::BTreeMap;

use super::DmaSpace;
use crate::SharedMemory;

/// The mappings that have an address from `first` to `last`.
pub(super) fn touched(
    mapped: &BTreeMap<u64, SharedMemory>,
    first: u64,
    last: u64,
) -> impl Iterator<Item = (u64, u64)> {
    // Of those that begin before it, only the last can reach into it.
    let before = mapped.range(..first).next_back();
    let before =
        before.filter(move |(start, memory)| *start + (memory.len() - 1) >= first);
    let inside = (first <= last).then(|| mapped.range(first..=last));
    before
        .into_iter()
        .chain(inside.into_iter().flatten())
        .map(|(start, memory)| (*start, memory.len()))
}

/// Whether a mapping goes on from below an address to above it, and maybe in one page.
pub(super) fn cuts(mapped: &BTreeMap<u64, SharedMemory>, at: u64) -> bool {
    let below = mapped.range(..at).next_back();
    !at.is_multiple_of(DmaSpace::LARGEST_PAGE)
        && below.is_some_and(|(start, memory)| *start + (memory.len() - 1) >= at)
}

/// Whether all of a range is mapped.
pub(super) fn covered(
    mapped: &BTreeMap<u64, SharedMemory>,
    iova: u64,
    length: u64,
) -> bool {
    let Some(last) = length.checked_sub(1).and_then(|more| iova.checked_add(more)) else {
        return false;
    };
    // The address that the next mapping has to begin at or before.
    let mut next = Some(iova);
    for (start, bytes) in touched(mapped, iova, last) {
        match next {
            Some(next) if start > next => return false,
            _ => next = start.checked_add(bytes),
        }
    }
    next.is_none_or(|next| next > last)
}

/// Lets go of the memory inside a range that the kernel let go of.
pub(super) fn forget(mapped: &mut BTreeMap<u64, SharedMemory>, iova: u64, length: u64) {
    let last = iova.saturating_add(length.saturating_sub(1));
    mapped.retain(|start, memory| {
        let end = start.saturating_add(memory.len() - 1);
        *start < iova || end > last
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_a_device_still_reaches_is_not_let_go_of() {
        let memory = SharedMemory::create("test", 8 * 4096).unwrap();
        let page = |n: u64| (n * 0x1000, memory.slice(n * 0x1000, 0x1000).unwrap());
        let mut mapped: BTreeMap<u64, SharedMemory> = (0..8).map(page).collect();
        // The last page is cut in two: the kernel refuses that, or leaves it mapped.
        forget(&mut mapped, 0x2000, 0x3800);
        let left: Vec<u64> = mapped.keys().map(|iova| iova >> 12).collect();
        assert_eq!(left, [0, 1, 5, 6, 7]);
        forget(&mut mapped, 0x7000, u64::MAX);
        assert_eq!(mapped.len(), 4);
        forget(&mut mapped, 0, u64::MAX);
        assert!(mapped.is_empty());
    }

    /// Behind a hole the kernel finds nothing, and does not say so.
    #[test]
    fn a_range_with_a_hole_is_not_taken_for_one_that_nobody_wrote() {
        let memory = SharedMemory::create("test", 4 * 4096).unwrap();
        let page = |n: u64| (n * 0x1000, memory.slice(0, 0x2000).unwrap());
        let mapped: BTreeMap<u64, SharedMemory> = [2, 4, 8].map(page).into();
        let whole = |start: u64, end: u64| {
            covered(&mapped, start * 0x1000, (end - start) * 0x1000)
        };
        assert!(whole(2, 6) && whole(3, 5) && whole(9, 10) && whole(2, 3));
        assert!(!whole(2, 7) && !whole(1, 3) && !whole(5, 9) && !whole(9, 11));
        assert!(!whole(0, 1) && !whole(20, 21) && !covered(&mapped, 0x2000, 0));
        assert!(!covered(&mapped, !0xfff, 0x2000));
        let cut = |at: u64| cuts(&mapped, at * 0x1000);
        assert!(cut(3) && cut(5) && cut(9), "the kernel forgets what it does not tell");
        assert!(!cut(2) && !cut(4) && !cut(6) && !cut(8) && !cut(10) && !cut(0));
        let of = |start: u64, end: u64| {
            touched(&mapped, start * 0x1000, end * 0x1000 - 1)
                .map(|(start, bytes)| (start >> 12, bytes >> 12))
                .collect::<Vec<_>>()
        };
        assert_eq!(of(3, 9), [(2, 2), (4, 2), (8, 2)]);
        assert_eq!(of(6, 8), []);
        assert_eq!(of(5, 6), [(4, 2)]);
    }
}
