//! `VFIO_DEVICE_GET_REGION_INFO`: a region of a device, and what of it can be mapped.
//!
//! ```text
//!  0           32 = cap_offset        48               64
//!  | RegionInfo | SparseMmap { next } | SparseMmapArea | SparseMmapArea | ...
//! ```
//!
//! vfio-user's message has the same layout.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VFIO_DEVICE_GET_REGION_INFO`, with a [`RegionInfo`].
pub const DEVICE_GET_REGION_INFO: u32 = 0x3b6c;

/// `struct vfio_region_info`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct RegionInfo {
    /// 0: in, the size that may be written; out, the size that is needed.
    pub argsz: u32,
    /// 4: [`RegionFlags`].
    pub flags: u32,
    /// 8: which region.
    pub index: u32,
    /// 12: where the first capability lies, from the start of this structure, or 0.
    pub cap_offset: u32,
    /// 16: bytes; 0 for a region that is not there.
    pub size: u64,
    /// 24: where it lies in the descriptor, to be read, written and mapped.
    pub offset: u64,
}

impl RegionInfo {
    /// The size without capabilities, in bytes.
    pub const SIZE: usize = size_of::<RegionInfo>();
}

bitflags::bitflags! {
    /// Flags of [`RegionInfo`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct RegionFlags: u32 {
        /// It can be read.
        const READ = 1 << 0;
        /// It can be written.
        const WRITE = 1 << 1;
        /// It can be mapped: all of it, or the areas of the sparse mmap capability.
        const MMAP = 1 << 2;
        /// There are capabilities.
        const CAPS = 1 << 3;
        const _ = !0;
    }
}

/// `struct vfio_info_cap_header`, the start of every capability.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct CapHeader {
    /// 0: a [`RegionCap`].
    pub id: u16,
    /// 2: the version of its layout.
    pub version: u16,
    /// 4: where the next one lies, from the start of [`RegionInfo`], or 0. A foreign
    /// chain may run in circles.
    pub next: u32,
}

open_number! {
    /// What a capability of a region is about.
    RegionCap(u16), "region capability";
    /// [`SparseMmap`].
    SPARSE_MMAP = 1,
    /// [`TypeCap`]: type and subtype of a region without a fixed index.
    TYPE = 2,
    /// The MSI-X table may be mapped; no data.
    MSIX_MAPPABLE = 3,
}

/// `struct vfio_region_info_cap_sparse_mmap`, without the areas that follow: only
/// these can be mapped.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct SparseMmap {
    /// 0: [`RegionCap::SPARSE_MMAP`], version 1.
    pub header: CapHeader,
    /// 8: how many [`SparseMmapArea`]s follow.
    pub nr_areas: u32,
    /// 12: 0.
    pub reserved: u32,
}

/// `struct vfio_region_sparse_mmap_area`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct SparseMmapArea {
    /// 0: in the region; in the descriptor it lies at [`RegionInfo::offset`] plus this.
    pub offset: u64,
    /// 8: bytes.
    pub size: u64,
}

/// `struct vfio_region_info_cap_type`: what a region without a fixed index is.
///
/// The migration regions are [`v1::V1_REGION_TYPE`](crate::v1::V1_REGION_TYPE) and
/// [`rfc2018::RFC_REGION_TYPE`](crate::rfc2018::RFC_REGION_TYPE).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct TypeCap {
    /// 0: [`RegionCap::TYPE`], version 1.
    pub header: CapHeader,
    /// 8: `type`. Its top bit marks a PCI vendor's own, whose id is in the low 16 bits.
    pub region_type: u32,
    /// 12: `subtype`, in the numbers of the type.
    pub subtype: u32,
}
