//! Who wrote to guest memory.

use dirty::{IovaRange, PageSize};
use thiserror::Error;

/// In which addresses a source of dirty bits speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Guest-physical addresses: vCPUs, the VMM itself, and whoever follows the mappings
    /// of devices by itself.
    GuestPhysical,
    /// Device addresses: the engine translates them by [`DmaMap`](crate::DmaMap). When a
    /// mapping changes, all that it leads to is dirty, since nobody told what was written
    /// through it last.
    Iova,
}

/// Somebody who knows which memory was written.
///
/// Bits that were collected are gone from the source: the engine acknowledges or
/// restores them (law 3). An error of any call means that everything the source covers
/// is dirty, and the source is started anew; the report counts how often. Only what it
/// could not tell directly after a start either is dirty by itself from then on.
pub trait DirtySource: Send {
    /// What people call it, such as `accel0 DMA log`.
    fn name(&self) -> &str;

    /// The addresses it speaks in.
    fn space(&self) -> Space;

    /// What one bit stands for, where the bits of a mapping go with the mapping (type1,
    /// iommufd), so that whoever unmaps has to ask for them with it. `None` for one that
    /// still tells of addresses when nothing is mapped there any more, and for one that
    /// speaks of guest memory. It may change by a start. No default: a log that is asked
    /// too late tells nothing, and nobody would notice.
    fn goes_with_mappings(&self) -> Option<PageSize>;

    /// Starts to record writes to `ranges`, ideally by pages of `page`.
    ///
    /// # Errors
    /// When the source cannot record.
    fn start(&mut self, ranges: &[IovaRange], page: PageSize) -> Result<(), SourceError>;

    /// Gives what was written inside `range` since the last time, and forgets it.
    /// `found` may be called several times, with pages of any size, and with addresses
    /// outside of `range` too: where a source cannot forget less than that, it has to
    /// tell it.
    ///
    /// # Errors
    /// When the record is lost, or never covered all of `range`; all of `range` is then
    /// dirty. What else may be lost with it, as the rest of a page that sticks out of
    /// `range`, is reported as [lost](DirtyReport::lost). Where all of the record is lost,
    /// every range fails until the source is started again.
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
/// the page at `range.start() + n * page`. Words that are missing are set.
#[derive(Clone, Copy, Debug)]
pub struct DirtyReport<'a> {
    /// The addresses that the words speak of.
    pub range: IovaRange,
    /// How much one bit stands for.
    pub page: PageSize,
    /// The bits.
    pub words: &'a [u64],
}

impl DirtyReport<'_> {
    /// Nobody knows what of `range` was written, so all of it is dirty, and it is counted
    /// as an error is: the report of a source that can tell of other ranges.
    pub fn lost(range: IovaRange) -> DirtyReport<'static> {
        DirtyReport { range, page: PageSize::MIN, words: &[] }
    }

    /// Whether it is [`DirtyReport::lost`].
    pub fn is_lost(&self) -> bool {
        self.words.is_empty()
    }
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

impl SourceError {
    /// An error of the source `name` at `operation`.
    pub fn new(
        name: &str,
        operation: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> SourceError {
        let (name, operation) = (name.to_owned(), operation.to_owned());
        SourceError { name, operation, source: source.into() }
    }
}

/// The source of a device that keeps no record of its writes: whatever it can reach is
/// dirty each time that somebody asks.
///
/// Such a device migrates, but pre-copy is of no use to the memory that it reaches: all
/// of that is sent while the guest is stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Everything {
    name: String,
}

impl Everything {
    /// The source of `device`.
    pub fn of(device: &str) -> Everything {
        Everything { name: format!("{device}, which keeps no log of its writes") }
    }
}

impl DirtySource for Everything {
    fn name(&self) -> &str {
        &self.name
    }

    fn space(&self) -> Space {
        Space::Iova
    }

    fn goes_with_mappings(&self) -> Option<PageSize> {
        None
    }

    fn start(&mut self, _: &[IovaRange], _: PageSize) -> Result<(), SourceError> {
        Ok(())
    }

    fn collect(
        &mut self,
        range: IovaRange,
        found: &mut dyn FnMut(DirtyReport<'_>),
    ) -> Result<(), SourceError> {
        found(DirtyReport::lost(range));
        Ok(())
    }

    fn stop(&mut self) -> Result<(), SourceError> {
        Ok(())
    }
}
