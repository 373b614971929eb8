//! Where devices find memory, in a kernel that does as it is told.

use std::io;
use std::os::fd::OwnedFd;

use abi::errno::Errno;
use dirty::IovaRange;
use sys::SharedMemory;
use sys::vfio::DirtyQuery;
use sys::vfio::iommufd::DirtyRange;
use zerocopy::IntoBytes;

use super::{Fake, raw};
use crate::kernel::Space;

/// The page table that tracks.
const TABLE: u32 = 9;

/// What devices reach, as the script has it.
pub(super) struct FakeSpace {
    pub(super) fake: Fake,
    pub(super) ioas: Option<u32>,
    pub(super) _fd: OwnedFd,
}

impl FakeSpace {
    /// The bits of the script, once.
    fn bits(&self, bits: &mut [u64]) {
        let known = std::mem::take(&mut self.fake.script().bits);
        bits.fill(0);
        bits.iter_mut().zip(known).for_each(|(bit, known)| *bit = known);
    }
}

impl Space for FakeSpace {
    fn ioas_id(&self) -> Option<u32> {
        self.ioas
    }

    fn mappings(&self, range: IovaRange) -> Vec<IovaRange> {
        // As the kernel's, behind whoever maps and unmaps.
        drop(self.fake.ask("mappings", String::new()));
        let mut mapped = self.fake.script().mapped.clone();
        mapped.sort_unstable();
        let ranges = mapped.into_iter();
        let ranges = ranges.map(|(start, length)| IovaRange::new(start, length).unwrap());
        ranges.filter(|mapping| mapping.overlaps(range)).collect()
    }

    fn map(&self, iova: u64, memory: &SharedMemory, writable: bool) -> io::Result<()> {
        let what = format!("{iova:#x}+{:#x} {writable}", memory.len());
        let mut script = self.fake.ask("dma_map", what)?;
        script.mapped.push((iova, memory.len()));
        Ok(())
    }

    fn unmap(&self, iova: u64, length: u64) -> io::Result<u64> {
        let mut script = self.fake.ask("dma_unmap", format!("{iova:#x}+{length:#x}"))?;
        script.late.clear();
        let before = script.mapped.len();
        script.mapped.retain(|known| *known != (iova, length));
        Ok(if script.mapped.len() < before { length } else { 0 })
    }

    fn unmap_all(&self) -> io::Result<u64> {
        let mut script = self.fake.ask("dma_unmap_all", String::new())?;
        Ok(script.mapped.drain(..).map(|(_, length)| length).sum())
    }

    fn unmap_dirty(
        &self,
        iova: u64,
        length: u64,
        page: u64,
        bits: &mut [u64],
    ) -> io::Result<u64> {
        drop(self.fake.ask("unmap_dirty", format!("{page:#x} {}", bits.len()))?);
        if self.ioas.is_none() {
            let script = &mut *self.fake.script();
            let late = std::mem::take(&mut script.late);
            script.bits.iter_mut().zip(late).for_each(|(bits, late)| *bits |= late);
        }
        // The others' are read before.
        self.bits(bits);
        self.unmap(iova, length)
    }

    fn info(&self) -> io::Result<Vec<u8>> {
        drop(self.fake.ask("space_info", String::new())?);
        let mut bytes = Vec::new();
        bytes.extend_from_slice([56_u32, 0b11].as_bytes());
        bytes.extend_from_slice(0xffff_f000_u64.as_bytes());
        bytes.extend_from_slice([24_u32, 0].as_bytes());
        // The capability of migration: id 2, version 1, the last.
        bytes.extend_from_slice([2_u16, 1].as_bytes());
        bytes.extend_from_slice([0_u32, 0, 0].as_bytes());
        bytes.extend_from_slice([0x1000_u64, 256 << 20].as_bytes());
        Ok(bytes)
    }

    fn dirty_pages(&self, query: DirtyQuery<'_>) -> io::Result<()> {
        let what = format!("{:#x} {:#x}+{:#x}", query.flags, query.iova, query.length);
        drop(self.fake.ask("dirty_pages", what)?);
        self.bits(query.bits.unwrap_or_default());
        Ok(())
    }

    fn make_page_table(&self, device: u32) -> io::Result<u32> {
        let script = self.fake.ask("make_page_table", device.to_string())?;
        match script.iommu {
            true => Ok(TABLE),
            false => Err(raw(Errno::EOPNOTSUPP)),
        }
    }

    fn use_small_pages(&self) -> io::Result<()> {
        self.fake.ask("use_small_pages", String::new()).map(drop)
    }

    fn page_table(&self) -> Option<u32> {
        drop(self.fake.ask("page_table", String::new()));
        (self.ioas.is_some() && self.fake.script().iommu).then_some(TABLE)
    }

    fn drop_page_table(&self) -> io::Result<()> {
        let mut script = self.fake.ask("drop_page_table", String::new())?;
        script.iommu = false;
        Ok(())
    }

    fn set_tracking(&self, on: bool) -> io::Result<()> {
        self.fake.ask("set_tracking", on.to_string()).map(drop)
    }

    fn dirty(&self, asked: DirtyRange, keep: bool, bits: &mut [u64]) -> io::Result<()> {
        let DirtyRange { iova, length, page } = asked;
        let what = format!("{iova:#x}+{length:#x} by {page:#x} {keep} {}", bits.len());
        drop(self.fake.ask("dirty", what)?);
        self.bits(bits);
        Ok(())
    }
}
