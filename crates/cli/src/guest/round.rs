//! What a device or its driver writes again and again, by which it is known when all of it
//! has changed.

/// Places that a device or its driver writes one after the other, again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Round {
    /// Writes so far, of which each goes to the next place.
    pub(super) count: u64,
    /// Writes that may have been under way when somebody began to count.
    pub(super) lag: u64,
    /// How many of the places are pages of RAM.
    pub(super) pages: u64,
    /// How many are blocks of the device.
    pub(super) blocks: u64,
}
