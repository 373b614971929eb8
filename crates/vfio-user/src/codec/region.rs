//! What is told about a region, with its capabilities.

use abi::region::{
    CapHeader, RegionCap, RegionFlags, RegionInfo, SparseMmap, SparseMmapArea,
};
use zerocopy::IntoBytes;

use super::message::{Head, Message};
use super::{Malformed, take};

/// The most areas and the most capabilities that are looked at: nothing real comes near.
const MOST: usize = 256;

/// [`RegionInfo`] and the capabilities that matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// The fixed part. Its `cap_offset` and `argsz` are made when it is sent.
    pub info: RegionInfo,
    /// The areas that can be mapped, offset and size in bytes; `None` where they are
    /// not told.
    pub areas: Option<Vec<(u64, u64)>>,
    /// Type and subtype.
    pub kind: Option<(u32, u32)>,
}

impl Region {
    /// How long all of it is, without header, in bytes.
    pub fn needed(&self) -> usize {
        let sparse = |areas: &Vec<_>| {
            size_of::<SparseMmap>() + areas.len() * size_of::<SparseMmapArea>()
        };
        let kind = self.kind.map_or(0, |_| size_of::<CapHeader>() + 8);
        RegionInfo::SIZE + self.areas.as_ref().map_or(0, sparse) + kind
    }

    /// Whether the `argsz` of the info has room for all of it.
    pub fn fits(&self) -> bool {
        self.needed() <= self.info.argsz as usize
    }

    pub(crate) fn parse(body: &[u8]) -> Result<Region, Malformed> {
        let (info, _) = take::<RegionInfo>(body)?;
        let mut region = Region { info, areas: None, kind: None };
        let flags = RegionFlags::from_bits_retain(info.flags);
        // Where the asker had no room for capabilities only the fixed part comes.
        if !flags.contains(RegionFlags::CAPS) || body.len() == RegionInfo::SIZE {
            return Ok(region);
        }
        let mut at = info.cap_offset as usize;
        let mut seen = 0;
        while at != 0 {
            seen += 1;
            if seen > MOST || at < RegionInfo::SIZE {
                return Err(Malformed("capabilities that do not end"));
            }
            let here = body.get(at..).ok_or(Malformed("a capability lies outside"))?;
            let (header, data) = take::<CapHeader>(here)?;
            match RegionCap(header.id) {
                RegionCap::SPARSE_MMAP => region.areas = Some(areas(here)?),
                RegionCap::TYPE => region.kind = Some(take::<[u32; 2]>(data)?.0.into()),
                _ => {}
            }
            at = header.next as usize;
        }
        Ok(region)
    }

    /// The message, with whatever fits into the `argsz` of the info: where that is too
    /// small the fixed part alone, saying how much is needed.
    pub(crate) fn message(&self, head: Head) -> Message<'static> {
        let mut info = self.info;
        let mut tail = Vec::new();
        if let Some(areas) = &self.areas {
            let length =
                size_of::<SparseMmap>() + areas.len() * size_of::<SparseMmapArea>();
            let next = self.kind.map_or(0, |_| RegionInfo::SIZE + length);
            let capability = SparseMmap {
                header: capability(RegionCap::SPARSE_MMAP, next),
                nr_areas: areas.len() as u32,
                reserved: 0,
            };
            tail.extend_from_slice(capability.as_bytes());
            for (offset, size) in areas {
                let area = SparseMmapArea { offset: *offset, size: *size };
                tail.extend_from_slice(area.as_bytes());
            }
        }
        if let Some((kind, subtype)) = self.kind {
            tail.extend_from_slice(capability(RegionCap::TYPE, 0).as_bytes());
            tail.extend_from_slice([kind, subtype].as_bytes());
        }
        // Without the flag where they are cut off (the kernel sets it): QEMU refuses
        // capabilities at offset 0 before it looks at `argsz`.
        (info.flags, info.cap_offset) = (info.flags & !RegionFlags::CAPS.bits(), 0);
        if !self.fits() {
            tail.clear();
        }
        if !tail.is_empty() {
            info.flags |= RegionFlags::CAPS.bits();
            info.cap_offset = RegionInfo::SIZE as u32;
        }
        info.argsz = self.needed() as u32;
        Message::new(head.with(&info), tail)
    }
}

fn areas(here: &[u8]) -> Result<Vec<(u64, u64)>, Malformed> {
    let (sparse, mut rest) = take::<SparseMmap>(here)?;
    if sparse.nr_areas as usize > MOST {
        return Err(Malformed("too many areas"));
    }
    let mut areas = Vec::new();
    for _ in 0..sparse.nr_areas {
        let (area, after) = take::<SparseMmapArea>(rest)?;
        areas.push((area.offset, area.size));
        rest = after;
    }
    Ok(areas)
}

fn capability(id: RegionCap, next: usize) -> CapHeader {
    CapHeader { id: id.0, version: 1, next: next as u32 }
}
