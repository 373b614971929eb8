//! The container's IOMMU driver "type1" and its dirty tracking, Linux 5.8 and later.
//!
//! It tracks pages and not devices: with any group in the container that does not pin
//! its pages, every mapped page is dirty on every query. Document 000 had it first; the
//! capability that tells of it got another number ([`v1::type1_draft`]).
//!
//! Bit `n` of a bitmap, in 64-bit words, is the page at `iova + n * pgsize`.
//!
//! [`v1::type1_draft`]: crate::v1::type1_draft

use crate::region::CapHeader;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VFIO_IOMMU_GET_INFO`, on the container, with a [`Type1Info`].
pub const IOMMU_GET_INFO: u32 = 0x3b70;

/// `VFIO_IOMMU_MAP_DMA`, on the container, with a [`DmaMap`].
pub const IOMMU_MAP_DMA: u32 = 0x3b71;

/// `VFIO_IOMMU_UNMAP_DMA`, on the container, with a [`DmaUnmap`].
pub const IOMMU_UNMAP_DMA: u32 = 0x3b72;

/// `VFIO_IOMMU_DIRTY_PAGES`, on the container, with a [`DirtyBitmap`]. The same number
/// on a device is [`DEVICE_FEATURE`](crate::feature::DEVICE_FEATURE).
pub const IOMMU_DIRTY_PAGES: u32 = 0x3b75;

/// The largest bitmap of a query, in bytes; the kernel answers EINVAL to more.
pub const MAX_BITMAP_SIZE: u64 = 256 << 20;

/// `struct vfio_iommu_type1_info`, the start of the answer to [`IOMMU_GET_INFO`].
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Type1Info {
    /// 0: in, the size that may be written; out, the size that is needed.
    pub argsz: u32,
    /// 4: [`Type1InfoFlags`].
    pub flags: u32,
    /// 8: page sizes that can be mapped, one bit each.
    pub iova_pgsizes: u64,
    /// 16: where the first capability lies, from the start of this structure, or 0.
    pub cap_offset: u32,
    /// 20: 0.
    pub pad: u32,
}

bitflags::bitflags! {
    /// Flags of [`Type1Info`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Type1InfoFlags: u32 {
        /// `iova_pgsizes` is there.
        const PGSIZES = 1 << 0;
        /// There are capabilities.
        const CAPS = 1 << 1;
        const _ = !0;
    }
}

open_number! {
    /// What a capability of [`Type1Info`] is about.
    Type1Cap(u16), "type1 capability";
    /// The ranges that can be mapped.
    IOVA_RANGE = 1,
    /// [`CapMigration`].
    MIGRATION = 2,
    /// How many more mappings there may be.
    DMA_AVAIL = 3,
}

/// `struct vfio_iommu_type1_info_cap_migration`: dirty pages can be tracked. Linux 5.8.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct CapMigration {
    /// 0: [`Type1Cap::MIGRATION`], version 1.
    pub header: CapHeader,
    /// 8: 0.
    pub flags: u32,
    /// 12: padding.
    pub pad: u32,
    /// 16: page sizes of a bitmap, one bit each; one is set, that of the smallest.
    pub pgsize_bitmap: u64,
    /// 24: the largest bitmap, in bytes; [`MAX_BITMAP_SIZE`] today.
    pub max_dirty_bitmap_size: u64,
}

/// `struct vfio_iommu_type1_dma_map`, for [`IOMMU_MAP_DMA`].
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct DmaMap {
    /// 0: the size of this structure.
    pub argsz: u32,
    /// 4: [`DmaMapFlags`].
    pub flags: u32,
    /// 8: where the memory lies in this process.
    pub vaddr: u64,
    /// 16: where the device sees it.
    pub iova: u64,
    /// 24: bytes.
    pub size: u64,
}

bitflags::bitflags! {
    /// Flags of [`DmaMap`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct DmaMapFlags: u32 {
        /// The device may read it.
        const READ = 1 << 0;
        /// The device may write it.
        const WRITE = 1 << 1;
        /// Only the address in the process is new. Linux 5.12.
        const VADDR = 1 << 2;
        const _ = !0;
    }
}

/// `struct vfio_iommu_type1_dma_unmap`, for [`IOMMU_UNMAP_DMA`]. With
/// [`DmaUnmapFlags::GET_DIRTY_BITMAP`] a [`BitmapBuffer`] follows.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct DmaUnmap {
    /// 0: the size of this structure and what follows.
    pub argsz: u32,
    /// 4: [`DmaUnmapFlags`].
    pub flags: u32,
    /// 8: the first address.
    pub iova: u64,
    /// 16: in, bytes; out, the bytes that were unmapped.
    pub size: u64,
}

bitflags::bitflags! {
    /// Flags of [`DmaUnmap`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct DmaUnmapFlags: u32 {
        /// The bits of what is unmapped are wanted, taken at the moment of the unmap.
        /// Not together with the others.
        const GET_DIRTY_BITMAP = 1 << 0;
        /// Everything is unmapped. Linux 5.12.
        const ALL = 1 << 1;
        /// Only the addresses in the process are dropped. Linux 5.12.
        const VADDR = 1 << 2;
        const _ = !0;
    }
}

/// `struct vfio_bitmap`: where the kernel is to write bits.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct BitmapBuffer {
    /// 0: bytes that a bit stands for: that of [`CapMigration::pgsize_bitmap`].
    pub pgsize: u64,
    /// 8: bytes of the bitmap, whole 64-bit words, at most [`MAX_BITMAP_SIZE`].
    pub size: u64,
    /// 16: a pointer to the words, which the caller has zeroed.
    pub data: u64,
}

/// `struct vfio_iommu_type1_dirty_bitmap`, for [`IOMMU_DIRTY_PAGES`]. With
/// [`DirtyPagesFlags::GET_BITMAP`] a [`DirtyBitmapGet`] follows.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct DirtyBitmap {
    /// 0: the size of this structure and what follows.
    pub argsz: u32,
    /// 4: exactly one of [`DirtyPagesFlags`].
    pub flags: u32,
}

bitflags::bitflags! {
    /// What [`IOMMU_DIRTY_PAGES`] is to do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct DirtyPagesFlags: u32 {
        /// Tracking begins; 0 where it goes on already.
        const START = 1 << 0;
        /// Tracking ends; 0 where there is none.
        const STOP = 1 << 1;
        /// The bits of a range are read and cleared. EINVAL before START.
        const GET_BITMAP = 1 << 2;
        const _ = !0;
    }
}

/// `struct vfio_iommu_type1_dirty_bitmap_get`: the range of a query. It must not cut a
/// mapping in two; it may have holes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct DirtyBitmapGet {
    /// 0: the first address.
    pub iova: u64,
    /// 8: bytes, not 0.
    pub size: u64,
    /// 16: where the bits go.
    pub bitmap: BitmapBuffer,
}
