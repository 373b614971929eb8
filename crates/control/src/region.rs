//! The migration region that v1 and rfc2018 devices have, and the way to its bytes.
//!
//! ```text
//!  0            info                place                      size
//!  | registers | ...               | data section             |
//!    trapped,    trapped, mapped or split: [`MigrationRegion::read`] and
//!    by field    [`MigrationRegion::write`] take each byte the way that its offset has
//! ```
//!
//! Where the data lies is what the device says, each time, never a constant; and the
//! mapped area that is used is the one that holds that offset, never the first that is
//! large enough (document 001, patch 3, does both). An area that cannot be mapped is
//! read and written trapped: a client may always decline to map.

pub(crate) mod buffers;
pub(crate) mod device;
mod loading;
mod patience;
mod saving;

use std::sync::Arc;

use abi::region::RegionFlags;
use states::mapping::NoRoute;
use thiserror::Error;

use crate::probe::ProbeError;
use crate::transport::{MappedArea, RegionInfo, Transport, TransportError};

/// The migration region of one device.
pub(crate) struct MigrationRegion {
    transport: Arc<dyn Transport>,
    index: u32,
    size: u64,
    /// How long the registers at its start are, in bytes.
    info: u64,
    /// In rising order, without overlap, behind the registers.
    areas: Vec<Area>,
}

/// A part of the region that can be mapped.
struct Area {
    start: u64,
    end: u64,
    way: Way,
}

/// How the bytes of an area are reached.
enum Way {
    /// Not asked for yet.
    Unasked,
    Mapped(MappedArea),
    /// It cannot be mapped.
    Trapped,
}

/// Bytes in the data section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

/// What goes wrong with a migration region.
#[derive(Debug, Error)]
pub(crate) enum Trouble {
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// It answered something that cannot be.
    #[error("{0}")]
    Lie(String),
    #[error(transparent)]
    NoRoute(#[from] NoRoute),
    /// It runs, where it was told to do something else: it was reset.
    #[error("the device was reset")]
    WasReset,
}

impl Trouble {
    pub(crate) fn lie<T>(what: impl Into<String>) -> Result<T, Trouble> {
        Err(Trouble::Lie(what.into()))
    }
}

impl MigrationRegion {
    /// Takes a region whose registers are `info` bytes long.
    ///
    /// # Errors
    /// Where it cannot be one: no room for data, an area that maps its registers, lies
    /// outside or overlaps another, no access.
    pub(crate) fn new(
        transport: Arc<dyn Transport>,
        region: &RegionInfo,
        info: usize,
    ) -> Result<MigrationRegion, ProbeError> {
        let info = info as u64;
        let broken = |what: String| ProbeError::Broken {
            device: transport.name().to_owned(),
            what: format!("its migration region, {}, {what}", region.index),
        };
        if region.size <= info {
            let size = region.size;
            return Err(broken(format!("has {size} bytes and no room for data")));
        }
        let flags = RegionFlags::from_bits_retain(region.flags);
        if !flags.contains(RegionFlags::READ | RegionFlags::WRITE) {
            return Err(broken("cannot be both read and written".to_owned()));
        }
        let mut areas = Vec::with_capacity(region.areas.len());
        for &(start, size) in &region.areas {
            let end = start.checked_add(size).filter(|end| *end <= region.size);
            let Some(end) = end.filter(|end| *end > start) else {
                return Err(broken(format!(
                    "maps {size} bytes at {start:#x}, which are not inside its {} bytes",
                    region.size
                )));
            };
            if start < info {
                return Err(broken(format!(
                    "maps an area from {start:#x} over its registers, 0 to {info:#x}, \
                     which are never mapped"
                )));
            }
            areas.push(Area { start, end, way: Way::Unasked });
        }
        areas.sort_by_key(|area| area.start);
        if areas.windows(2).any(|two| two[0].end > two[1].start) {
            return Err(broken("maps areas that overlap".to_owned()));
        }
        let (index, size) = (region.index, region.size);
        Ok(MigrationRegion { transport, index, size, info, areas })
    }

    pub(crate) fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    /// The most bytes that a data section can have, before its place is known.
    pub(crate) fn most(&self) -> u64 {
        self.size - self.info
    }

    /// How many bytes there are from `offset` to the end of the region.
    pub(crate) fn room(&self, offset: u64) -> Result<u64, Trouble> {
        self.check(Piece { offset, size: 1 })?;
        Ok(self.size - offset)
    }

    /// Whether a piece lies where data may lie.
    pub(crate) fn check(&self, piece: Piece) -> Result<(), Trouble> {
        let Piece { offset, size } = piece;
        if offset < self.info {
            return Trouble::lie(format!(
                "its data lies at {offset:#x}, inside its registers, 0 to {:#x}",
                self.info
            ));
        }
        if offset.checked_add(size).is_none_or(|end| end > self.size) {
            return Trouble::lie(format!(
                "{size} bytes of data at {offset:#x} are outside its region of {} bytes",
                self.size
            ));
        }
        Ok(())
    }

    /// Maps what can be mapped, before the device is told to do anything.
    pub(crate) fn prepare(&mut self) -> Result<(), Trouble> {
        let Self { transport, index, info, areas, .. } = self;
        areas.iter_mut().try_for_each(|area| area.open(&**transport, *index, *info))
    }

    /// One register, or one group of them, in one trapped access.
    pub(crate) fn register<const N: usize>(&self, at: u64) -> Result<[u8; N], Trouble> {
        let mut bytes = [0; N];
        self.transport.region_read(self.index, at, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes one register, or one group of them, in one trapped access.
    pub(crate) fn set_register(&self, at: u64, bytes: &[u8]) -> Result<(), Trouble> {
        Ok(self.transport.region_write(self.index, at, bytes)?)
    }

    /// Writes the register that moves the device to another state.
    pub(crate) fn set_state(&self, at: u64, bytes: &[u8]) -> Result<(), Trouble> {
        Ok(self.transport.region_write_state(self.index, at, bytes)?)
    }

    /// Reads data. The caller has checked the piece.
    pub(crate) fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), Trouble> {
        let (mut at, mut left) = (at, into);
        while !left.is_empty() {
            let (mapped, length) = self.stretch(at, left.len())?;
            let (now, later) = left.split_at_mut(length);
            match mapped {
                Some(area) => {
                    let read = area.memory.read(at - area.offset, now);
                    read.map_err(|error| Trouble::Lie(error.to_string()))?;
                }
                None => self.transport.region_read(self.index, at, now)?,
            }
            (at, left) = (at + length as u64, later);
        }
        Ok(())
    }

    /// Writes data. The caller has checked the piece.
    pub(crate) fn write(&mut self, at: u64, from: &[u8]) -> Result<(), Trouble> {
        let (mut at, mut left) = (at, from);
        while !left.is_empty() {
            let (mapped, length) = self.stretch(at, left.len())?;
            let (now, later) = left.split_at(length);
            match mapped {
                Some(area) if area.memory.writable() => {
                    let written = area.memory.write(at - area.offset, now);
                    written.map_err(|error| Trouble::Lie(error.to_string()))?;
                }
                _ => self.transport.region_write(self.index, at, now)?,
            }
            (at, left) = (at + length as u64, later);
        }
        Ok(())
    }

    /// How far one way of access goes from `at` on, at most `most` bytes, and the
    /// mapping where it goes by one.
    fn stretch(
        &mut self,
        at: u64,
        most: usize,
    ) -> Result<(Option<&MappedArea>, usize), Trouble> {
        let Self { transport, index, info, areas, .. } = self;
        let up_to = |end: u64| usize::try_from(end - at).unwrap_or(most).min(most);
        let Some(area) = areas.iter_mut().find(|area| area.end > at) else {
            return Ok((None, most));
        };
        if at < area.start {
            return Ok((None, up_to(area.start)));
        }
        area.open(&**transport, *index, *info)?;
        Ok(match &area.way {
            Way::Mapped(mapped) => {
                let end = mapped.offset.saturating_add(mapped.memory.len());
                if !(mapped.offset..end).contains(&at) {
                    return Trouble::lie(format!(
                        "its data lies at {at:#x}, and what is mapped there covers \
                         {:#x} to {end:#x}",
                        mapped.offset
                    ));
                }
                (Some(mapped), up_to(end.min(area.end)))
            }
            _ => (None, up_to(area.end)),
        })
    }
}

impl Area {
    /// Maps it, unless that was tried before.
    fn open(
        &mut self,
        transport: &dyn Transport,
        index: u32,
        info: u64,
    ) -> Result<(), Trouble> {
        if !matches!(self.way, Way::Unasked) {
            return Ok(());
        }
        self.way = match transport.region_map(index, self.start) {
            Ok(mapped) if mapped.offset < info => {
                return Trouble::lie(format!(
                    "what is mapped for {:#x} starts at {:#x}, over its registers",
                    self.start, mapped.offset
                ));
            }
            Ok(mapped) => Way::Mapped(mapped),
            Err(error @ TransportError::Errno { .. }) => {
                let device = transport.name();
                tracing::debug!(device, at = self.start, %error, "trapped, not mapped");
                Way::Trapped
            }
            Err(error) => return Err(error.into()),
        };
        Ok(())
    }
}
