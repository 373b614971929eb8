//! Guest memory that a test writes to as a guest would.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use dirty::{IovaRange, PageSize};
use port::{DmaMap, Gpa, GuestMemory, Mapping, Mappings, MemoryError, MemoryRegion};

use crate::stream::digest;
use crate::{SourceHandle, locked};

/// Guest memory in some pieces. Clones are the same memory.
#[derive(Clone, Debug)]
pub struct FakeMemory(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    regions: Vec<(MemoryRegion, Mutex<Vec<u8>>)>,
    generation: AtomicU64,
    sources: Mutex<Vec<SourceHandle>>,
}

impl FakeMemory {
    /// Zeroed memory of 4 KiB pages: (start, length) in bytes, rising.
    ///
    /// # Panics
    /// Never for a test that gives whole pages that do not overlap.
    pub fn new(regions: &[(u64, u64)]) -> FakeMemory {
        let page = PageSize::FOUR_K;
        let region = |(start, length): &(u64, u64)| {
            assert!(start % page.bytes() == 0 && length % page.bytes() == 0);
            let region = MemoryRegion { start: Gpa(*start), length: *length, page };
            (region, Mutex::new(vec![0; *length as usize]))
        };
        FakeMemory(Arc::new(Inner {
            regions: regions.iter().map(region).collect(),
            generation: AtomicU64::new(1),
            sources: Mutex::default(),
        }))
    }

    /// Marks guest writes in `source`, which speaks in guest-physical addresses.
    pub fn mark_in(&self, source: SourceHandle) {
        locked(&self.0.sources).push(source);
    }

    /// Writes as a vCPU does: the bytes, and a mark in every source.
    ///
    /// # Errors
    /// When the range is not inside one region.
    pub fn guest_write(&self, at: Gpa, bytes: &[u8]) -> Result<(), MemoryError> {
        self.write(at, bytes)?;
        if let Ok(range) = IovaRange::new(at.0, bytes.len() as u64) {
            locked(&self.0.sources).iter().for_each(|source| source.mark(range));
        }
        Ok(())
    }

    /// Pretends that regions changed.
    pub fn change_layout(&self) {
        self.0.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// A digest of each page, as (address, digest).
    pub fn digests(&self) -> Vec<(Gpa, u64)> {
        let mut all = Vec::new();
        for (region, bytes) in &self.0.regions {
            let page = region.page.bytes();
            for (n, bytes) in locked(bytes).chunks(page as usize).enumerate() {
                all.push((Gpa(region.start.0 + n as u64 * page), digest(bytes)));
            }
        }
        all
    }

    fn with<T>(
        &self,
        at: Gpa,
        length: u64,
        act: impl FnOnce(&mut [u8]) -> T,
    ) -> Result<T, MemoryError> {
        let error = MemoryError { at, length };
        for (region, bytes) in &self.0.regions {
            let Some(offset) = at.0.checked_sub(region.start.0) else { continue };
            let Some(end) = offset.checked_add(length) else { continue };
            if end <= region.length {
                return Ok(act(&mut locked(bytes)[offset as usize..end as usize]));
            }
        }
        Err(error)
    }
}

impl GuestMemory for FakeMemory {
    fn regions(&self) -> Vec<MemoryRegion> {
        self.0.regions.iter().map(|(region, _)| *region).collect()
    }

    fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::SeqCst)
    }

    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        self.with(at, into.len() as u64, |bytes| into.copy_from_slice(bytes))
    }

    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), MemoryError> {
        self.with(at, from.len() as u64, |bytes| bytes.copy_from_slice(from))
    }

    fn zero(&self, at: Gpa, length: u64) -> Result<(), MemoryError> {
        self.with(at, length, |bytes| bytes.fill(0))
    }
}

/// Mappings that a test sets. Clones are the same mappings.
#[derive(Clone, Debug, Default)]
pub struct FakeDmaMap(Arc<Mutex<Map>>);

#[derive(Debug, Default)]
struct Map {
    mappings: Vec<Mapping>,
    changes: u64,
    virtual_iommu: bool,
    peer_to_peer: bool,
}

impl FakeDmaMap {
    /// No mapping, no virtual IOMMU, no peer-to-peer.
    pub fn new() -> FakeDmaMap {
        FakeDmaMap::default()
    }

    /// Every region of `memory` at its own address.
    ///
    /// # Panics
    /// Never: regions of a memory are ranges.
    pub fn identity(memory: &FakeMemory) -> FakeDmaMap {
        let map = FakeDmaMap::default();
        for region in memory.regions() {
            let iova = IovaRange::new(region.start.0, region.length)
                .expect("invariant: a region of memory is a range");
            map.add(Mapping { iova, gpa: region.start });
        }
        map
    }

    /// One more mapping.
    pub fn add(&self, mapping: Mapping) {
        let map = &mut *locked(&self.0);
        map.mappings.push(mapping);
        map.changes += 1;
    }

    /// Takes one mapping away, if it is there.
    pub fn remove(&self, mapping: Mapping) {
        let map = &mut *locked(&self.0);
        if let Some(at) = map.mappings.iter().position(|one| *one == mapping) {
            map.mappings.remove(at);
            map.changes += 1;
        }
    }

    /// Takes every mapping away.
    pub fn clear(&self) {
        let map = &mut *locked(&self.0);
        map.changes += map.mappings.len() as u64;
        map.mappings.clear();
    }

    /// Pretends a virtual IOMMU, or none.
    pub fn set_virtual_iommu(&self, there: bool) {
        locked(&self.0).virtual_iommu = there;
    }

    /// Declares that devices reach each other, or do not.
    pub fn set_peer_to_peer(&self, there: bool) {
        locked(&self.0).peer_to_peer = there;
    }
}

impl DmaMap for FakeDmaMap {
    fn mappings(&self) -> Mappings {
        let map = locked(&self.0);
        Mappings::new(map.mappings.clone(), map.changes)
    }

    fn virtual_iommu(&self) -> bool {
        locked(&self.0).virtual_iommu
    }

    fn peer_to_peer(&self) -> bool {
        locked(&self.0).peer_to_peer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_access_leaves_its_region() {
        let memory = FakeMemory::new(&[(0, 0x2000), (0x10000, 0x1000)]);
        memory.guest_write(Gpa(0x1fff), &[1]).unwrap();
        assert!(memory.guest_write(Gpa(0x1fff), &[1, 2]).is_err());
        assert!(memory.read(Gpa(0x2000), &mut [0]).is_err());
        assert!(memory.write(Gpa(0xffff), &[0, 0]).is_err());
        assert!(memory.zero(Gpa(0x10000), u64::MAX).is_err());
        assert!(memory.read(Gpa(u64::MAX), &mut [0]).is_err());
        let before = memory.digests();
        memory.zero(Gpa(0x1000), 0x1000).unwrap();
        assert_eq!(before.len(), 3);
        assert_ne!(before[1], memory.digests()[1]);
        assert_eq!(before[0], memory.digests()[0]);
    }
}
