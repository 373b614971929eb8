//! Little-endian fields at fixed offsets.
//!
//! Reading returns `None` past the end, so that a short slice is an error of the
//! caller's and never a panic.

/// The `N` bytes at `offset`, or `None` if `bytes` ends before them.
pub(crate) fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    array(bytes, offset).map(u16::from_le_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    array(bytes, offset).map(u32::from_le_bytes)
}

pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    array(bytes, offset).map(u64::from_le_bytes)
}

/// Joins fixed parts into one array of `N` bytes, the rest zero. The parts are of
/// constant size at every call site; one that does not fit is left out by the
/// bounds, and the golden files notice.
pub(crate) fn join<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut out = [0; N];
    let mut at = 0;
    for part in parts {
        debug_assert!(at + part.len() <= N, "the parts fit the array");
        if let Some(slot) = out.get_mut(at..at + part.len()) {
            slot.copy_from_slice(part);
        }
        at += part.len();
    }
    out
}
