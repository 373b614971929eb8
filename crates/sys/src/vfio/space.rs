//! What devices reach: memory by device address.

#![expect(unsafe_code, reason = "ioctls that let devices reach memory")]

mod mapped;

use std::collections::BTreeMap;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use abi::feature::FeatureFlags;
use abi::iommufd::{
    GetDirtyBitmapFlags, HwCapabilities, HwptAllocFlags, IOAS_ALLOC, IOAS_MAP,
    IOAS_UNMAP, IoasAlloc, IoasMap, IoasMapFlags, IoasUnmap, IommuOption, OPTION,
};
use abi::type1::{
    BitmapBuffer, DirtyBitmap, DirtyBitmapGet, DmaMap, DmaMapFlags, DmaUnmap,
    DmaUnmapFlags, IOMMU_DIRTY_PAGES, IOMMU_GET_INFO, IOMMU_MAP_DMA, IOMMU_UNMAP_DMA,
    MAX_BITMAP_SIZE, Type1Info,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use self::mapped::{covered, cuts, forget, touched};
use super::iommufd::{self, DirtyRange};
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
    /// Locked behind `mapped`, never before it.
    table: Mutex<Option<PageTable>>,
}

/// A page table that can track.
#[derive(Clone, Copy, Debug)]
struct PageTable {
    id: u32,
    /// The kernel does not tell whether it tracks, and answers queries where it does not.
    tracks: bool,
}

#[derive(Debug)]
enum Kind {
    Container(OwnedFd),
    Ioas { iommu: OwnedFd, id: u32 },
}

impl DmaSpace {
    /// What no page of an IOMMU is larger than, in bytes: 1 TiB, where architectures end
    /// at 1 GiB and AMD's tables at what lies together in the machine's memory.
    pub const LARGEST_PAGE: u64 = 1 << 40;

    /// That of a container. Calls fail until a group joined and type1 was set.
    pub fn container(container: OwnedFd) -> DmaSpace {
        DmaSpace::of(Kind::Container(container))
    }

    /// A new one of `/dev/iommu`.
    ///
    /// # Errors
    /// As every method: the errno. ENOTTY on what is no `/dev/iommu`.
    pub fn ioas(iommu: OwnedFd) -> io::Result<DmaSpace> {
        let mut alloc = IoasAlloc { size: size::<IoasAlloc>(), flags: 0, out_ioas_id: 0 };
        // SAFETY: its structure, which points nowhere.
        unsafe { exchange(&iommu, IOAS_ALLOC, &mut alloc) }?;
        Ok(DmaSpace::of(Kind::Ioas { iommu, id: alloc.out_ioas_id }))
    }

    fn of(kind: Kind) -> DmaSpace {
        DmaSpace { kind, mapped: Mutex::default(), table: Mutex::default() }
    }

    /// The number of the address space of iommufd.
    pub fn ioas_id(&self) -> Option<u32> {
        match &self.kind {
            Kind::Container(_) => None,
            Kind::Ioas { id, .. } => Some(*id),
        }
    }

    /// Maps by the smallest pages from now on, so that a write makes no more dirty than
    /// one of them; before anything is mapped. ENOTTY for a container, which has no such
    /// choice.
    ///
    /// # Errors
    /// The errno: EINVAL where something is mapped already.
    pub fn use_small_pages(&self) -> io::Result<()> {
        let Kind::Ioas { iommu, id } = &self.kind else {
            return Err(rustix::io::Errno::NOTTY.into());
        };
        let mut option = IommuOption {
            size: size::<IommuOption>(),
            option_id: IommuOption::HUGE_PAGES,
            op: IommuOption::SET,
            reserved: 0,
            object_id: *id,
            val64: 0,
        };
        // SAFETY: its structure, which points nowhere.
        unsafe { exchange(iommu, OPTION, &mut option) }.map(drop)
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

    /// The mappings that have an address from `first` to `last`, whole, in rising order:
    /// their first addresses and bytes.
    pub fn mappings(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        let mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        touched(&mapped, first, last).collect()
    }

    /// Makes a page table that can track dirty pages, for a device of the iommufd by the
    /// id that [`bind`](iommufd::bind) gave; the number to attach it to. An address space
    /// has one at most: EEXIST. ENOTTY for a container.
    ///
    /// # Errors
    /// The errno: EOPNOTSUPP where the device's IOMMU cannot, ENOENT where it has none.
    pub fn make_page_table(&self, device: u32) -> io::Result<u32> {
        let Kind::Ioas { iommu, id } = &self.kind else {
            return Err(rustix::io::Errno::NOTTY.into());
        };
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.is_some() {
            return Err(rustix::io::Errno::EXIST.into());
        }
        let can = iommufd::capabilities(iommu, device)?;
        if !can.contains(HwCapabilities::DIRTY_TRACKING) {
            return Err(rustix::io::Errno::OPNOTSUPP.into());
        }
        let flags = HwptAllocFlags::DIRTY_TRACKING;
        let made = iommufd::page_table(iommu, device, *id, flags)?;
        *table = Some(PageTable { id: made, tracks: false });
        Ok(made)
    }

    /// The page table that can track, where one was made.
    pub fn page_table(&self) -> Option<u32> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.map(|table| table.id)
    }

    /// Takes the page table away that nothing is attached to.
    ///
    /// # Errors
    /// The errno: EBUSY while a device is attached to it, ENOENT where there is none.
    pub fn drop_page_table(&self) -> io::Result<()> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let (iommu, id) = self.tracker(&table)?;
        iommufd::destroy(iommu, id)?;
        *table = None;
        Ok(())
    }

    /// Starts to track, which forgets all that was noted before, or stops. ENOENT without
    /// a page table that can.
    ///
    /// # Errors
    /// The errno. Whether it tracks is not known then, and [`DmaSpace::dirty`] says
    /// EINVAL until a start succeeds.
    pub fn set_tracking(&self, on: bool) -> io::Result<()> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let (iommu, id) = self.tracker(&table)?;
        *table = Some(PageTable { id, tracks: false });
        iommufd::set_dirty_tracking(iommu, id, on)?;
        *table = Some(PageTable { id, tracks: on });
        Ok(())
    }

    /// What was written in a range, a bit for each `page` bytes, and forgets it, or keeps
    /// it noted (`keep`). `bits` is cleared before. For a page table; a container has
    /// [`DmaSpace::dirty_pages`].
    ///
    /// # Errors
    /// The errno: EINVAL, as a container says it, for a range that cuts a mapping in two
    /// (but at a multiple of [`DmaSpace::LARGEST_PAGE`], where no page of an IOMMU is
    /// cut), and while it does not track; ENOENT where a part of the range is not mapped,
    /// and where there is no page table. To all of these the kernel would say that
    /// nothing was written.
    pub fn dirty(
        &self,
        asked: DirtyRange,
        keep: bool,
        bits: &mut [u64],
    ) -> io::Result<()> {
        // No mapping comes or goes before the answer is there.
        let mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        self.dirty_of(&mapped, asked, keep, bits)
    }

    fn dirty_of(
        &self,
        mapped: &BTreeMap<u64, SharedMemory>,
        asked: DirtyRange,
        keep: bool,
        bits: &mut [u64],
    ) -> io::Result<()> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let (iommu, id) = self.tracker(&table)?;
        if !table.is_some_and(|table| table.tracks) {
            return Err(rustix::io::Errno::INVAL.into());
        }
        if !covered(mapped, asked.iova, asked.length) {
            return Err(rustix::io::Errno::NOENT.into());
        }
        // What is mapped was added to without an overflow.
        let ends = [asked.iova, asked.iova.wrapping_add(asked.length)];
        if ends.iter().any(|end| cuts(mapped, *end)) {
            return Err(rustix::io::Errno::INVAL.into());
        }
        let mut flags = GetDirtyBitmapFlags::empty();
        flags.set(GetDirtyBitmapFlags::NO_CLEAR, keep);
        iommufd::dirty_bitmap(iommu, id, asked, flags, bits)
    }

    fn tracker(&self, table: &Option<PageTable>) -> io::Result<(&OwnedFd, u32)> {
        match (&self.kind, table) {
            (Kind::Ioas { iommu, .. }, Some(table)) => Ok((iommu, table.id)),
            _ => Err(rustix::io::Errno::NOENT.into()),
        }
    }

    /// Takes every mapping inside a range away, with its dirty bits: one for each `page`
    /// bytes. `bits` is cleared before.
    ///
    /// A container gives them at the moment of the unmap. An iommufd has no such call:
    /// they are read right before, without being forgotten, so that a refusal loses none.
    ///
    /// # Errors
    /// The errno: EINVAL while no dirty pages are tracked, for a page size other than the
    /// smallest (a container), and for a range that cuts a mapping in two; ENOTTY for an
    /// iommufd without a page table that tracks.
    pub fn unmap_dirty(
        &self,
        iova: u64,
        length: u64,
        page: u64,
        bits: &mut [u64],
    ) -> io::Result<u64> {
        let Kind::Container(fd) = &self.kind else {
            return self.read_and_unmap(DirtyRange { iova, length, page }, bits);
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

    fn read_and_unmap(&self, asked: DirtyRange, bits: &mut [u64]) -> io::Result<u64> {
        let Kind::Ioas { iommu, id } = &self.kind else {
            return Err(rustix::io::Errno::NOTTY.into());
        };
        if self.page_table().is_none() {
            return Err(rustix::io::Errno::NOTTY.into());
        }
        let DirtyRange { iova, length, .. } = asked;
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        self.dirty_of(&mapped, asked, true, bits)?;
        let mut unmap =
            IoasUnmap { size: size::<IoasUnmap>(), ioas_id: *id, iova, length };
        // SAFETY: its structure, which points nowhere.
        unsafe { exchange(iommu, IOAS_UNMAP, &mut unmap) }?;
        forget(&mut mapped, iova, length);
        Ok(unmap.length)
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
