//! Guest RAM, how devices reach it, and who wrote to it on this side.

use std::io;
use std::sync::Arc;

use dirty::{Bitmap, IovaRange, PageSize};
use port::{
    DirtyReport, DirtySource, DmaMap, Gpa, GuestMemory, Mapping, Mappings, MemoryError,
    MemoryRegion, SourceError, Space,
};
use sys::SharedMemory;

use super::layout::{Layout, PAGE};
use super::page::Page;

/// The most bits in one report of a [`WriteLog`]: 64 MiB of pages.
const REPORT_WORDS: usize = 256;

/// Guest RAM: one memfd, shared with the devices.
pub(super) struct Ram {
    memory: SharedMemory,
    layout: Layout,
    /// What the vCPUs wrote.
    by_vcpus: Bitmap,
    /// What the VMM wrote itself, on behalf of devices that asked by message.
    by_vmm: Bitmap,
}

impl Ram {
    /// RAM for a layout, all of it there from the start.
    pub(super) fn new(layout: Layout) -> io::Result<Ram> {
        let memory = SharedMemory::create("vfio-migrate guest", layout.memory())?;
        // A page that is faulted in during the downtime would be billed to the engine.
        memory.prefault()?;
        let log =
            || Bitmap::new(layout.span(), PageSize::FOUR_K).map_err(io::Error::other);
        let (by_vcpus, by_vmm) = (log()?, log()?);
        Ok(Ram { memory, layout, by_vcpus, by_vmm })
    }

    /// The memory, to be shared with devices.
    pub(super) fn shared(&self) -> &SharedMemory {
        &self.memory
    }

    /// Where things are in it.
    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A vCPU reads a page, by its number in RAM.
    pub(super) fn load(&self, page: u64, into: &mut Page) {
        self.memory
            .read(page * PAGE, into)
            .expect("invariant: vCPUs touch pages of the layout only");
    }

    /// A vCPU writes a page, by its number in RAM.
    pub(super) fn store(&self, page: u64, bytes: &Page) {
        self.memory
            .write(page * PAGE, bytes)
            .expect("invariant: vCPUs touch pages of the layout only");
        // Written first, marked then: whoever drains the bit sees the bytes.
        self.mark(&self.by_vcpus, self.layout.address(page * PAGE), PAGE);
    }

    /// A device reads by message.
    pub(super) fn dma_read(&self, at: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        GuestMemory::read(self, Gpa(at), into)
    }

    /// A device writes by message: the VMM does it, and says so.
    pub(super) fn dma_write(&self, at: u64, from: &[u8]) -> Result<(), MemoryError> {
        GuestMemory::write(self, Gpa(at), from)?;
        self.mark(&self.by_vmm, at, from.len() as u64);
        Ok(())
    }

    /// Pages that vCPUs wrote since their log was last asked.
    pub(super) fn fresh(&self) -> u64 {
        self.by_vcpus.count()
    }

    fn mark(&self, log: &Bitmap, at: u64, length: u64) {
        if let Ok(range) = IovaRange::new(at, length) {
            log.mark(range);
        }
    }

    fn at(&self, at: Gpa, length: u64) -> Result<u64, MemoryError> {
        self.layout.offset(at.0, length).ok_or(MemoryError { at, length })
    }
}

impl GuestMemory for Ram {
    fn regions(&self) -> Vec<MemoryRegion> {
        self.layout.regions()
    }

    fn generation(&self) -> u64 {
        0
    }

    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        let length = into.len() as u64;
        let offset = self.at(at, length)?;
        self.memory.read(offset, into).map_err(|_| MemoryError { at, length })
    }

    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), MemoryError> {
        let length = from.len() as u64;
        let offset = self.at(at, length)?;
        self.memory.write(offset, from).map_err(|_| MemoryError { at, length })
    }

    fn zero(&self, at: Gpa, length: u64) -> Result<(), MemoryError> {
        let offset = self.at(at, length)?;
        self.memory.zero(offset, length).map_err(|_| MemoryError { at, length })
    }
}

/// The devices' addresses are the guest's.
pub(super) struct IdentityMap {
    /// Where RAM is.
    pub(super) layout: Layout,
    /// Whether devices reach each other.
    pub(super) peer_to_peer: bool,
}

impl DmaMap for IdentityMap {
    fn mappings(&self) -> Mappings {
        let regions = self.layout.regions();
        let mapping = |region: &MemoryRegion| {
            let iova = IovaRange::new(region.start.0, region.length).ok()?;
            Some(Mapping { iova, gpa: region.start })
        };
        Mappings::new(regions.iter().filter_map(mapping).collect(), 0)
    }

    fn virtual_iommu(&self) -> bool {
        false
    }

    fn peer_to_peer(&self) -> bool {
        self.peer_to_peer
    }
}

/// Who writes to RAM on this side of the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writer {
    /// The vCPUs.
    Vcpus,
    /// The VMM, for devices that ask by message.
    Vmm,
}

/// What one of them wrote, as a source of dirty bits.
pub(super) struct WriteLog {
    ram: Arc<Ram>,
    writer: Writer,
}

impl WriteLog {
    /// The log of a writer. It is always kept: to mark a bit costs next to nothing.
    pub(super) fn new(ram: Arc<Ram>, writer: Writer) -> WriteLog {
        WriteLog { ram, writer }
    }

    fn log(&self) -> &Bitmap {
        match self.writer {
            Writer::Vcpus => &self.ram.by_vcpus,
            Writer::Vmm => &self.ram.by_vmm,
        }
    }
}

impl DirtySource for WriteLog {
    fn name(&self) -> &str {
        match self.writer {
            Writer::Vcpus => "vCPUs",
            Writer::Vmm => "VMM",
        }
    }

    fn space(&self) -> Space {
        Space::GuestPhysical
    }

    fn goes_with_mappings(&self) -> Option<PageSize> {
        None
    }

    fn start(&mut self, _: &[IovaRange], _: PageSize) -> Result<(), SourceError> {
        // What came before the start is nobody's: whoever starts takes all for dirty.
        let _before = self.log().drain();
        Ok(())
    }

    fn collect(
        &mut self,
        range: IovaRange,
        found: &mut dyn FnMut(DirtyReport<'_>),
    ) -> Result<(), SourceError> {
        let page = PageSize::FOUR_K;
        for range in range.pieces(REPORT_WORDS as u64 * 64 * page.bytes()) {
            let mut words = [0; REPORT_WORDS];
            let count = range.length().div_ceil(page.bytes()).div_ceil(64) as usize;
            let words = &mut words[..count];
            self.log()
                .report(range, page, words)
                .map_err(|error| SourceError::new(self.name(), "collect", error))?;
            if words.iter().any(|word| *word != 0) {
                found(DirtyReport { range, page, words });
            }
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), SourceError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::page::BYTES;

    fn pages(source: &mut WriteLog, range: IovaRange) -> Vec<u64> {
        let mut pages = Vec::new();
        source
            .collect(range, &mut |report| {
                for bit in 0..report.words.len() * 64 {
                    if report.words[bit / 64] >> (bit % 64) & 1 == 1 {
                        pages.push(report.range.start() / PAGE + bit as u64);
                    }
                }
            })
            .unwrap();
        pages
    }

    #[test]
    fn a_write_is_reported_once_by_who_made_it() {
        let ram = Arc::new(Ram::new(Layout::new(128 << 20, 1)).unwrap());
        let mut vcpus = WriteLog::new(Arc::clone(&ram), Writer::Vcpus);
        let mut vmm = WriteLog::new(Arc::clone(&ram), Writer::Vmm);
        let all = ram.layout().span();
        ram.store(3, &[1; BYTES]);
        vcpus.start(&[all], PageSize::FOUR_K).unwrap();
        ram.store(20_000, &[1; BYTES]);
        ram.dma_write(5 * PAGE - 1, &[1, 2]).unwrap();
        assert_eq!(pages(&mut vcpus, all), [20_000]);
        assert_eq!(pages(&mut vcpus, all), [0; 0]);
        assert_eq!(pages(&mut vmm, all), [4, 5]);
        assert!(ram.dma_write(128 << 20, &[1]).is_err());
        assert_eq!(pages(&mut vmm, all), [0; 0]);
    }
}
