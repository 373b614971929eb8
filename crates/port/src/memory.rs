//! Guest memory.

use dirty::PageSize;
use thiserror::Error;

/// A guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

impl std::fmt::Display for Gpa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// One piece of guest RAM, whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRegion {
    /// Where it starts, aligned to its page size.
    pub start: Gpa,
    /// Its length in bytes, a multiple of the page size and not 0.
    pub length: u64,
    /// The page size that dirty tracking and the stream count in.
    pub page: PageSize,
}

/// Guest RAM. The guest and its devices write to it while the engine reads.
pub trait GuestMemory: Send + Sync {
    /// The pieces, in rising order, without overlap.
    fn regions(&self) -> Vec<MemoryRegion>;

    /// A number that changes whenever [`GuestMemory::regions`] does. A change after
    /// setup ends the migration, with the source running.
    fn generation(&self) -> u64;

    /// Copies bytes out. What is written meanwhile is seen or not, byte by byte: the
    /// engine makes its tests and checksums on the copy.
    ///
    /// # Errors
    /// When the range is not inside one region.
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), MemoryError>;

    /// Copies bytes in.
    ///
    /// # Errors
    /// When the range is not inside one region.
    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), MemoryError>;

    /// Makes bytes zero, without touching pages that are.
    ///
    /// # Errors
    /// When the range is not inside one region.
    fn zero(&self, at: Gpa, length: u64) -> Result<(), MemoryError>;
}

/// An access to guest memory that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("guest memory: {length} bytes at {at} are not inside one region")]
pub struct MemoryError {
    /// The address that was asked for.
    pub at: Gpa,
    /// The length that was asked for, in bytes.
    pub length: u64,
}
