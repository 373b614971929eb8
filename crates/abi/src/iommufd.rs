//! A device without its group, and its memory without a container, Linux 6.6 and later
//! (`include/uapi/linux/iommufd.h`, and `vfio.h` for the device's side).
//!
//! ```text
//!   /dev/iommu                 IOAS_ALLOC ----> an address space: IOAS_MAP, IOAS_UNMAP
//!        ^ BIND                                      ^
//!   /dev/vfio/devices/vfio0    ATTACH ---------------'
//! ```
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
