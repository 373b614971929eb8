//! What devices reach: memory by device address.

#![expect(unsafe_code, reason = "ioctls that let devices reach memory")]

use std::collections::BTreeMap;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use abi::feature::FeatureFlags;
use abi::iommufd::{
    IOAS_ALLOC, IOAS_MAP, IOAS_UNMAP, IoasAlloc, IoasMap, IoasMapFlags, IoasUnmap,
};
use abi::type1::{
    BitmapBuffer, DirtyBitmap, DirtyBitmapGet, DmaMap, DmaMapFlags, DmaUnmap,
    DmaUnmapFlags, IOMMU_DIRTY_PAGES, IOMMU_GET_INFO, IOMMU_MAP_DMA, IOMMU_UNMAP_DMA,
    MAX_BITMAP_SIZE, Type1Info,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{exchange, exchange_bytes, invalid, size};
use crate::SharedMemory;

/// The most bytes of capabilities of a container that are read.
const MOST_INFO: usize = 64 << 10;

/// The bytes from address 0 on in which no process has memory: a page.
const NOWHERE: u64 = 4096;

/// The addresses of devices, and the memory they lead to: a container with type1, or an
/// address space of iommufd.
///
/// Memory that is mapped here stays mapped in this process until it is unmapped here: a
/// driver that pins late would otherwise write into whatever came to lie there.
#[derive(Debug)]
pub struct DmaSpace {
    kind: Kind,
    mapped: Mutex<BTreeMap<u64, SharedMemory>>,
}

#[derive(Debug)]
enum Kind {
    Container(OwnedFd),
    Ioas { iommu: OwnedFd, id: u32 },
}

impl DmaSpace {
    /// That of a container. Calls fail until a group joined and type1 was set.
    pub fn container(container: OwnedFd) -> DmaSpace {
        DmaSpace { kind: Kind::Container(container), mapped: Mutex::default() }
    }

    /// A new one of `/dev/iommu`.
    ///
    /// # Errors
    /// As every method: the errno. ENOTTY on what is no `/dev/iommu`.
    pub fn ioas(iommu: OwnedFd) -> io::Result<DmaSpace> {
        let mut alloc = IoasAlloc { size: size::<IoasAlloc>(), flags: 0, out_ioas_id: 0 };
        // SAFETY: its structure, which points nowhere.
        unsafe { exchange(&iommu, IOAS_ALLOC, &mut alloc) }?;
        let kind = Kind::Ioas { iommu, id: alloc.out_ioas_id };
        Ok(DmaSpace { kind, mapped: Mutex::default() })
    }

    /// The number of the address space of iommufd.
    pub fn ioas_id(&self) -> Option<u32> {
        match &self.kind {
            Kind::Container(_) => None,
            Kind::Ioas { id, .. } => Some(*id),
        }
    }

    /// Lets devices reach all of `memory` at `iova`.
    ///
    /// # Errors
    /// The errno: EEXIST where something is there, ENOMEM where more memory would be
    /// locked than the process may (`ulimit -l`).
    pub fn map(
        &self,
        iova: u64,
        memory: &SharedMemory,
        writable: bool,
    ) -> io::Result<()> {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        let address = memory.address() as u64;
        if writable && !memory.writable() {
            return Err(rustix::io::Errno::ACCESS.into());
        }
        match &self.kind {
            Kind::Container(fd) => {
                let mut flags = DmaMapFlags::READ;
                flags.set(DmaMapFlags::WRITE, writable);
                let mut map = DmaMap {
                    argsz: size::<DmaMap>(),
                    flags: flags.bits(),
                    vaddr: address,
                    iova,
                    size: memory.len(),
                };
                // SAFETY: its structure. The memory is mapped in this process, for
                // writing where that is allowed, no reference to it is ever made, and it
                // stays so until the kernel has let go of it: `mapped`.
                unsafe { exchange(fd, IOMMU_MAP_DMA, &mut map) }?;
            }
            Kind::Ioas { iommu, id } => {
                let mut flags = IoasMapFlags::FIXED_IOVA | IoasMapFlags::READABLE;
                flags.set(IoasMapFlags::WRITEABLE, writable);
                let mut map = IoasMap {
                    size: size::<IoasMap>(),
                    flags: flags.bits(),
                    ioas_id: *id,
                    reserved: 0,
                    user_va: address,
                    length: memory.len(),
                    iova,
                };
                // SAFETY: as above.
                unsafe { exchange(iommu, IOAS_MAP, &mut map) }?;
            }
        }
        mapped.insert(iova, memory.clone());
        Ok(())
    }

    /// Takes every mapping inside a range away; says how many bytes that were.
    ///
    /// # Errors
    /// The errno: EINVAL where the range cuts a mapping in two, ENOENT where there is
    /// none (iommufd; a container says 0 bytes).
    pub fn unmap(&self, iova: u64, length: u64) -> io::Result<u64> {
        self.unmap_with(iova, length, DmaUnmapFlags::empty())
    }

    /// Takes all mappings away; says how many bytes that were.
    ///
    /// # Errors
    /// The errno: EINVAL before Linux 5.12.
    pub fn unmap_all(&self) -> io::Result<u64> {
        match &self.kind {
            Kind::Container(_) => self.unmap_with(0, 0, DmaUnmapFlags::ALL),
            Kind::Ioas { .. } => self.unmap_with(0, u64::MAX, DmaUnmapFlags::ALL),
        }
    }

    fn unmap_with(
        &self,
        iova: u64,
        length: u64,
        flags: DmaUnmapFlags,
    ) -> io::Result<u64> {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = match &self.kind {
            Kind::Container(fd) => {
                let mut unmap = DmaUnmap {
                    argsz: size::<DmaUnmap>(),
                    flags: flags.bits(),
                    iova,
                    size: length,
                };
                // SAFETY: its structure, which points nowhere.
                unsafe { exchange(fd, IOMMU_UNMAP_DMA, &mut unmap) }?;
                unmap.size
            }
            Kind::Ioas { iommu, id } => {
                let mut unmap =
                    IoasUnmap { size: size::<IoasUnmap>(), ioas_id: *id, iova, length };
                // SAFETY: its structure, which points nowhere.
                unsafe { exchange(iommu, IOAS_UNMAP, &mut unmap) }?;
                unmap.length
            }
        };
        match flags.contains(DmaUnmapFlags::ALL) {
            true => mapped.clear(),
            false => forget(&mut mapped, iova, length),
        }
        Ok(bytes)
    }

    /// Takes every mapping inside a range away, with its dirty bits: one for each `page`
    /// bytes. `bits` is cleared before. A container's alone; ENOTTY elsewhere.
    ///
    /// # Errors
    /// The errno: EINVAL while no dirty pages are tracked, and for a page size other than
    /// the smallest.
    pub fn unmap_dirty(
        &self,
        iova: u64,
        length: u64,
        page: u64,
        bits: &mut [u64],
    ) -> io::Result<u64> {
        let Kind::Container(fd) = &self.kind else {
            return Err(rustix::io::Errno::NOTTY.into());
        };
        bits.fill(0);
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unmap = UnmapDirty {
            unmap: DmaUnmap {
                argsz: size::<UnmapDirty>(),
                flags: DmaUnmapFlags::GET_DIRTY_BITMAP.bits(),
                iova,
                size: length,
            },
            bitmap: buffer(page, bits),
        };
        // SAFETY: its structure; `bits` is as long as that says.
        unsafe { exchange(fd, IOMMU_UNMAP_DMA, &mut unmap) }?;
        forget(&mut mapped, iova, length);
        Ok(unmap.unmap.size)
    }

    /// `VFIO_IOMMU_GET_INFO`: a [`Type1Info`] and its capabilities, as the kernel wrote
    /// them. A container's alone; ENOTTY elsewhere.
    ///
    /// # Errors
    /// The errno.
    pub fn info(&self) -> io::Result<Vec<u8>> {
        let Kind::Container(fd) = &self.kind else {
            return Err(rustix::io::Errno::NOTTY.into());
        };
        let mut wanted = size_of::<Type1Info>();
        // The kernel says how much it needs; twice is enough, unless it changes its mind.
        for _ in 0..4 {
            let mut buffer = vec![0_u64; wanted.div_ceil(8)];
            let bytes = buffer.as_mut_bytes();
            let room = bytes.len() as u32;
            bytes[..4].copy_from_slice(&room.to_ne_bytes());
            // SAFETY: it writes no more than the length that it begins with, which is
            // the buffer's, and points nowhere.
            unsafe { exchange_bytes(fd, IOMMU_GET_INFO, &mut buffer) }?;
            let bytes = buffer.as_bytes();
            let needed = Type1Info::read_from_prefix(bytes)
                .map_or(0, |(info, _)| info.argsz as usize);
            if needed <= bytes.len() {
                return Ok(bytes.to_vec());
            }
            if needed > MOST_INFO {
                break;
            }
            wanted = needed;
        }
        Err(invalid("more capabilities than any container has"))
    }

    /// `VFIO_IOMMU_DIRTY_PAGES`, as `query` has it. A container's alone; ENOTTY
    /// elsewhere.
    ///
    /// # Errors
    /// The errno; EINVAL, without asking, where `query` claims more than it has, or has
    /// flags of [`device::feature`](super::device::feature): on a device the same number
    /// is that call, and what counts bytes here is an address there.
    pub fn dirty_pages(&self, query: DirtyQuery<'_>) -> io::Result<()> {
        let Kind::Container(fd) = &self.kind else {
            return Err(rustix::io::Errno::NOTTY.into());
        };
        let inside = match &query.bits {
            Some(bits) => query.size <= bits.len() as u64 * 8,
            // The bits of a mapping far behind `iova` go far behind the address, but
            // not beyond this size; and a larger one than it takes the kernel refuses.
            None => query.size <= NOWHERE || query.size > MAX_BITMAP_SIZE,
        };
        let feature = query.flags >= FeatureFlags::GET.bits();
        if query.argsz > size::<DirtyPages>() || !inside || feature {
            return Err(rustix::io::Errno::INVAL.into());
        }
        // Without bits the kernel gets address 0: no process has memory in its first
        // page.
        let mut none: [u64; 0] = [];
        let absent = query.bits.is_none();
        let mut bitmap = buffer(query.page, query.bits.unwrap_or(&mut none));
        bitmap.size = query.size;
        if absent {
            bitmap.data = 0;
        }
        let mut pages = DirtyPages {
            head: DirtyBitmap { argsz: query.argsz, flags: query.flags },
            get: DirtyBitmapGet { iova: query.iova, size: query.length, bitmap },
        };
        // SAFETY: its structure, and to a device none that it takes; the bits are as
        // long as that says, or in the first page of all, where nothing can be written
        // (EFAULT).
        unsafe { exchange(fd, IOMMU_DIRTY_PAGES, &mut pages) }.map(drop)
    }
}

/// What is asked with [`DmaSpace::dirty_pages`], misuse included.
#[derive(Debug)]
pub struct DirtyQuery<'a> {
    /// The size that is claimed of the structure; [`DirtyQuery::WHOLE`] is right.
    pub argsz: u32,
    /// The flags, of which one of [`abi::type1::DirtyPagesFlags`] is right.
    pub flags: u32,
    /// The first address.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes that a bit stands for.
    pub page: u64,
    /// The size in bytes that is claimed of the bits.
    pub size: u64,
    /// Where the bits go. The kernel wants them zeroed. `None` is nowhere, and then
    /// `size` is at most 4096, or more than the kernel takes.
    pub bits: Option<&'a mut [u64]>,
}

impl DirtyQuery<'_> {
    /// The size of the structure with its bitmap.
    pub const WHOLE: u32 = size::<DirtyPages>();

    /// One that asks for nothing: for START and STOP.
    pub fn plain(flags: u32) -> Self {
        let argsz = size::<DirtyBitmap>();
        DirtyQuery { argsz, flags, iova: 0, length: 0, page: 0, size: 0, bits: None }
    }
}

#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct UnmapDirty {
    unmap: DmaUnmap,
    bitmap: BitmapBuffer,
}

#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct DirtyPages {
    head: DirtyBitmap,
    get: DirtyBitmapGet,
}

fn buffer(page: u64, bits: &mut [u64]) -> BitmapBuffer {
    BitmapBuffer {
        pgsize: page,
        size: size_of_val(bits) as u64,
        data: bits.as_mut_ptr().expose_provenance() as u64,
    }
}

/// Lets go of the memory inside a range that the kernel let go of.
fn forget(mapped: &mut BTreeMap<u64, SharedMemory>, iova: u64, length: u64) {
    let last = iova.saturating_add(length.saturating_sub(1));
    mapped.retain(|start, memory| {
        let end = start.saturating_add(memory.len() - 1);
        *start < iova || end > last
    });
}

impl AsFd for DmaSpace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            Kind::Container(fd) => fd.as_fd(),
            Kind::Ioas { iommu, .. } => iommu.as_fd(),
        }
    }
}

impl Drop for DmaSpace {
    fn drop(&mut self) {
        let mapped =
            std::mem::take(self.mapped.get_mut().unwrap_or_else(PoisonError::into_inner));
        for (iova, memory) in mapped {
            // Where the kernel does not let go of it, it stays where it is, for good.
            let memory = ManuallyDrop::new(memory);
            if self.unmap(iova, memory.len()).is_ok() {
                drop(ManuallyDrop::into_inner(memory));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_a_device_still_reaches_is_not_let_go_of() {
        let memory = SharedMemory::create("test", 8 * 4096).unwrap();
        let page = |n: u64| (n * 0x1000, memory.slice(n * 0x1000, 0x1000).unwrap());
        let mut mapped: BTreeMap<u64, SharedMemory> = (0..8).map(page).collect();
        // The last page is cut in two: the kernel refuses that, or leaves it mapped.
        forget(&mut mapped, 0x2000, 0x3800);
        let left: Vec<u64> = mapped.keys().map(|iova| iova >> 12).collect();
        assert_eq!(left, [0, 1, 5, 6, 7]);
        forget(&mut mapped, 0x7000, u64::MAX);
        assert_eq!(mapped.len(), 4);
        forget(&mut mapped, 0, u64::MAX);
        assert!(mapped.is_empty());
    }
}
