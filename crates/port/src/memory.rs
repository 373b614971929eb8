//! Guest memory, the addresses devices know it by, and who wrote to it.

use dirty::{IovaRange, PageSize};
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

/// How the devices' addresses (IOVA) reach guest memory.
pub trait DmaMap: Send + Sync {
    /// Every mapping there is. Several may reach the same memory (aliases).
    fn mappings(&self) -> Vec<Mapping>;

    /// Whether the guest controls a virtual IOMMU. Such a guest is refused.
    fn virtual_iommu(&self) -> bool;

    /// Whether any device may reach another's memory (peer-to-peer). `false` is the
    /// VMM's declaration that no device maps another's BAR, which law 5 asks for before
    /// it lets several devices without a P2P state migrate.
    fn peer_to_peer(&self) -> bool;
}

/// One range of device addresses and where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The device addresses.
    pub iova: IovaRange,
    /// The guest-physical address of the first of them.
    pub gpa: Gpa,
}

/// In which addresses a source of dirty bits speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Guest-physical addresses: vCPUs and the VMM itself.
    GuestPhysical,
    /// Device addresses: the engine translates them by [`DmaMap`].
    Iova,
}

/// Somebody who knows which memory was written.
///
/// Bits that were collected are gone from the source: the engine acknowledges or
/// restores them (law 3). An error of any call means that everything the source covers
/// is dirty.
pub trait DirtySource: Send {
    /// What people call it, such as `accel0 DMA log`.
    fn name(&self) -> &str;

    /// The addresses it speaks in.
    fn space(&self) -> Space;

    /// Starts to record writes to `ranges`, ideally by pages of `page`.
    ///
    /// # Errors
    /// When the source cannot record.
    fn start(&mut self, ranges: &[IovaRange], page: PageSize) -> Result<(), SourceError>;

    /// Gives what was written inside `range` since the last time, and forgets it.
    /// `found` may be called several times, with pages of any size.
    ///
    /// # Errors
    /// When the record is lost; all of `range` is then dirty.
    fn collect(
        &mut self,
        range: IovaRange,
        found: &mut dyn FnMut(DirtyReport<'_>),
    ) -> Result<(), SourceError>;

    /// Stops recording.
    ///
    /// # Errors
    /// When the source does not answer.
    fn stop(&mut self) -> Result<(), SourceError>;
}

/// Dirty bits as the uAPI lays them out: bit n of the little-endian words stands for
/// the page at `range.start() + n * page`.
#[derive(Clone, Copy, Debug)]
pub struct DirtyReport<'a> {
    /// The addresses that the words speak of.
    pub range: IovaRange,
    /// How much one bit stands for.
    pub page: PageSize,
    /// The bits.
    pub words: &'a [u64],
}

/// A source of dirty bits failed.
#[derive(Debug, Error)]
#[error("{name}: {operation} failed")]
pub struct SourceError {
    /// The source, by its name.
    pub name: String,
    /// What was asked of it.
    pub operation: String,
    /// What lies beneath.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}
