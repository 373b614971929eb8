//! A device without its group, and its memory without a container, Linux 6.6 and later
//! (`include/uapi/linux/iommufd.h`, and `vfio.h` for the device's side).
//!
//! ```text
//!   /dev/iommu                 IOAS_ALLOC ----> an address space: IOAS_MAP, IOAS_UNMAP
//!        ^ BIND                                      ^      ^
//!        |                     HWPT_ALLOC ----> a page table of it, which tracks
//!        |                                           ^         SET_DIRTY_TRACKING
//!   /dev/vfio/devices/vfio0    ATTACH ---------------'         GET_DIRTY_BITMAP
//! ```
//!
//! A page table of one's own is needed for nothing but dirty tracking (Linux 6.7): the
//! device is attached to it in place of the address space, whose mappings it has.
//!
//! Every call on a device that is not bound yet, but BIND, is EINVAL. Calls on
//! `/dev/iommu` begin with their size, where VFIO's begin with `argsz`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VFIO_DEVICE_BIND_IOMMUFD`, on the device, with a [`BindIommufd`].
pub const DEVICE_BIND_IOMMUFD: u32 = 0x3b76;
/// `VFIO_DEVICE_ATTACH_IOMMUFD_PT`, on the device, with an [`AttachIommufd`]. Once more
/// replaces what was attached, in one step.
pub const DEVICE_ATTACH_IOMMUFD_PT: u32 = 0x3b77;
/// `VFIO_DEVICE_DETACH_IOMMUFD_PT`, on the device, with a [`DetachIommufd`].
pub const DEVICE_DETACH_IOMMUFD_PT: u32 = 0x3b78;
/// `IOMMU_DESTROY`, on `/dev/iommu`, with a [`Destroy`].
pub const DESTROY: u32 = 0x3b80;
/// `IOMMU_IOAS_ALLOC`, on `/dev/iommu`, with an [`IoasAlloc`].
pub const IOAS_ALLOC: u32 = 0x3b81;
/// `IOMMU_IOAS_MAP`, on `/dev/iommu`, with an [`IoasMap`].
pub const IOAS_MAP: u32 = 0x3b85;
/// `IOMMU_IOAS_UNMAP`, on `/dev/iommu`, with an [`IoasUnmap`].
pub const IOAS_UNMAP: u32 = 0x3b86;
/// `IOMMU_OPTION`, on `/dev/iommu`, with an [`IommuOption`].
pub const OPTION: u32 = 0x3b87;
/// `IOMMU_HWPT_ALLOC`, on `/dev/iommu`, with a [`HwptAlloc`]. Linux 6.6.
pub const HWPT_ALLOC: u32 = 0x3b89;
/// `IOMMU_GET_HW_INFO`, on `/dev/iommu`, with a [`HwInfo`]. Linux 6.6.
pub const GET_HW_INFO: u32 = 0x3b8a;
/// `IOMMU_HWPT_SET_DIRTY_TRACKING`, on `/dev/iommu`, with a [`SetDirtyTracking`].
/// Linux 6.7.
pub const HWPT_SET_DIRTY_TRACKING: u32 = 0x3b8b;
/// `IOMMU_HWPT_GET_DIRTY_BITMAP`, on `/dev/iommu`, with a [`GetDirtyBitmap`]. Linux 6.7.
pub const HWPT_GET_DIRTY_BITMAP: u32 = 0x3b8c;

/// `struct vfio_device_bind_iommufd`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct BindIommufd {
    /// 0: the size of this structure; 16 before the token came.
    pub argsz: u32,
    /// 4: bit 0: `token_uuid_ptr` points to a token (after Linux 6.12).
    pub flags: u32,
    /// 8: the descriptor of `/dev/iommu`.
    pub iommufd: i32,
    /// 12: out, the device's id there.
    pub out_devid: u32,
    /// 16: a pointer to 16 bytes, or 0.
    pub token_uuid_ptr: u64,
}

/// `struct vfio_device_attach_iommufd_pt`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct AttachIommufd {
    /// 0: the size of this structure; 12 before `pasid` came.
    pub argsz: u32,
    /// 4: bit 0: `pasid` is meant.
    pub flags: u32,
    /// 8: in, an address space or a page table; out, the page table that is used.
    pub pt_id: u32,
    /// 12: the PASID.
    pub pasid: u32,
}

/// `struct vfio_device_detach_iommufd_pt`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct DetachIommufd {
    /// 0: the size of this structure; 8 before `pasid` came.
    pub argsz: u32,
    /// 4: bit 0: `pasid` is meant.
    pub flags: u32,
    /// 8: the PASID.
    pub pasid: u32,
}

/// `struct iommu_destroy`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Destroy {
    /// 0: the size of this structure.
    pub size: u32,
    /// 4: what goes; EBUSY while something uses it.
    pub id: u32,
}

/// `struct iommu_ioas_alloc`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct IoasAlloc {
    /// 0: the size of this structure.
    pub size: u32,
    /// 4: 0.
    pub flags: u32,
    /// 8: out, the address space.
    pub out_ioas_id: u32,
}

/// `struct iommu_ioas_map`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct IoasMap {
    /// 0: the size of this structure.
    pub size: u32,
    /// 4: [`IoasMapFlags`].
    pub flags: u32,
    /// 8: the address space.
    pub ioas_id: u32,
    /// 12: 0.
    pub reserved: u32,
    /// 16: where the memory lies in this process.
    pub user_va: u64,
    /// 24: bytes.
    pub length: u64,
    /// 32: where the device sees it.
    pub iova: u64,
}

bitflags::bitflags! {
    /// Flags of [`IoasMap`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct IoasMapFlags: u32 {
        /// `iova` is given, and not chosen by the kernel.
        const FIXED_IOVA = 1 << 0;
        /// The device may write it.
        const WRITEABLE = 1 << 1;
        /// The device may read it.
        const READABLE = 1 << 2;
        const _ = !0;
    }
}

/// `struct iommu_ioas_unmap`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct IoasUnmap {
    /// 0: the size of this structure.
    pub size: u32,
    /// 4: the address space.
    pub ioas_id: u32,
    /// 8: the first address; with `length` 2^64 - 1 and 0 here, everything.
    pub iova: u64,
    /// 16: in, bytes; out, the bytes that were unmapped.
    pub length: u64,
}

/// `struct iommu_option`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct IommuOption {
    /// 0: the size of this structure.
    pub size: u32,
    /// 4: which one.
    pub option_id: u32,
    /// 8: 0 to set it, 1 to get it.
    pub op: u16,
    /// 10: 0.
    pub reserved: u16,
    /// 12: of what.
    pub object_id: u32,
    /// 16: in or out, its value.
    pub val64: u64,
}

impl IommuOption {
    /// `IOMMU_OPTION_HUGE_PAGES`, of an address space: 1, or with 0 everything is mapped
    /// by pages of the system's size. EINVAL where something is mapped already.
    pub const HUGE_PAGES: u32 = 1;
    /// `IOMMU_OPTION_OP_SET`.
    pub const SET: u16 = 0;
}

/// `struct iommu_hw_info`: what the IOMMU in front of a device can do. ENOENT for a
/// device that has none, as mediated ones.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct HwInfo {
    /// 0: the size of this structure.
    pub size: u32,
    /// 4: bit 0 (Linux 6.18): `data_type` says which data are wanted.
    pub flags: u32,
    /// 8: the device, by the id that BIND gave.
    pub dev_id: u32,
    /// 12: in, the room behind `data_uptr`; out, what the driver has to tell.
    pub data_len: u32,
    /// 16: a pointer to room for what the driver tells, or 0.
    pub data_uptr: u64,
    /// 24: in or out, what it tells: a number of its own for each kind of IOMMU.
    pub data_type: u32,
    /// 28: out, the bits of a PASID (Linux 6.15).
    pub out_max_pasid_log2: u8,
    /// 29: 0.
    pub reserved: [u8; 3],
    /// 32: out, [`HwCapabilities`].
    pub out_capabilities: u64,
}

bitflags::bitflags! {
    /// What an IOMMU can do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct HwCapabilities: u64 {
        /// Its page tables can note which pages were written.
        const DIRTY_TRACKING = 1 << 0;
        const _ = !0;
    }
}

/// `struct iommu_hwpt_alloc`: a page table for a device.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct HwptAlloc {
    /// 0: the size of this structure; 40 before `fault_id` came.
    pub size: u32,
    /// 4: [`HwptAllocFlags`].
    pub flags: u32,
    /// 8: the device, by the id that BIND gave.
    pub dev_id: u32,
    /// 12: the address space whose mappings it has.
    pub pt_id: u32,
    /// 16: out, the page table.
    pub out_hwpt_id: u32,
    /// 20: 0.
    pub reserved: u32,
    /// 24: 0: of no particular kind.
    pub data_type: u32,
    /// 28: 0, with that kind.
    pub data_len: u32,
    /// 32: 0, with that kind.
    pub data_uptr: u64,
    /// 40: 0, without its flag.
    pub fault_id: u32,
    /// 44: 0.
    pub reserved2: u32,
}

bitflags::bitflags! {
    /// Flags of [`HwptAlloc`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct HwptAllocFlags: u32 {
        /// It can track dirty pages; EOPNOTSUPP where the IOMMU cannot, and EINVAL when
        /// a device behind another one that cannot is attached to it.
        const DIRTY_TRACKING = 1 << 1;
        const _ = !0;
    }
}

/// `struct iommu_hwpt_set_dirty_tracking`. Starting forgets what was noted before, also
/// where it tracks already.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct SetDirtyTracking {
    /// 0: the size of this structure.
    pub size: u32,
    /// 4: [`SetDirtyTrackingFlags`].
    pub flags: u32,
    /// 8: the page table.
    pub hwpt_id: u32,
    /// 12: 0.
    pub reserved: u32,
}

bitflags::bitflags! {
    /// Flags of [`SetDirtyTracking`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct SetDirtyTrackingFlags: u32 {
        /// Tracking is on; off without it.
        const ENABLE = 1 << 0;
        const _ = !0;
    }
}

/// `struct iommu_hwpt_get_dirty_bitmap`: which pages of a range were written. Bit `n`, in
/// 64-bit words, is the page at `iova + n * page_size`.
///
/// It succeeds, and sets no bit, while tracking is off; behind the first hole of the
/// range; and where the bits cannot be written, in which case what was noted is lost.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct GetDirtyBitmap {
    /// 0: the size of this structure.
    pub size: u32,
    /// 4: the page table.
    pub hwpt_id: u32,
    /// 8: [`GetDirtyBitmapFlags`].
    pub flags: u32,
    /// 12: 0.
    pub reserved: u32,
    /// 16: the first address: a multiple of `page_size` and of the alignment of the
    /// address space, which is no more than a page of the system.
    pub iova: u64,
    /// 24: bytes, not 0; the end is such a multiple, too.
    pub length: u64,
    /// 32: bytes that a bit stands for. That only their lowest bit counts is for nobody
    /// to rely on.
    pub page_size: u64,
    /// 40: a pointer to the words, which the caller has zeroed: bits are set only.
    pub data: u64,
}

bitflags::bitflags! {
    /// Flags of [`GetDirtyBitmap`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct GetDirtyBitmapFlags: u32 {
        /// What was noted stays noted: for a range that is unmapped next, which spares
        /// the IOMMU a flush.
        const NO_CLEAR = 1 << 0;
        const _ = !0;
    }
}
