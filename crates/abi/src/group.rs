//! Containers and groups: how a device was reached before Linux 6.6, and still is.
//!
//! ```text
//!   /dev/vfio/vfio   container   SET_IOMMU, then type1's calls
//!        ^ SET_CONTAINER
//!   /dev/vfio/7      group       GET_DEVICE_FD by name ----> device
//! ```
//!
//! The other way is [`iommufd`](crate::iommufd). A group that is open one way cannot be
//! opened the other way: EBUSY.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VFIO_GET_API_VERSION`, on the container, without data: the answer is [`API_VERSION`].
pub const GET_API_VERSION: u32 = 0x3b64;
/// `VFIO_CHECK_EXTENSION`, on the container, with an [`Extension`] in place of a pointer:
/// the answer is 1 where it is there, and 0 where not.
pub const CHECK_EXTENSION: u32 = 0x3b65;
/// `VFIO_SET_IOMMU`, on the container, with an [`Extension`] in place of a pointer, after
/// the first group joined.
pub const SET_IOMMU: u32 = 0x3b66;
/// `VFIO_GROUP_GET_STATUS`, on the group, with a [`GroupStatus`].
pub const GROUP_GET_STATUS: u32 = 0x3b67;
/// `VFIO_GROUP_SET_CONTAINER`, on the group, with a pointer to the container's descriptor
/// (i32).
pub const GROUP_SET_CONTAINER: u32 = 0x3b68;
/// `VFIO_GROUP_UNSET_CONTAINER`, on the group, without data.
pub const GROUP_UNSET_CONTAINER: u32 = 0x3b69;
/// `VFIO_GROUP_GET_DEVICE_FD`, on the group, with the device's name, ended by a 0: the
/// answer is a descriptor. ENODEV where no driver of VFIO has such a device.
pub const GROUP_GET_DEVICE_FD: u32 = 0x3b6a;

/// The only version that there has been.
pub const API_VERSION: i32 = 0;

open_number! {
    /// What a container can be, or can do.
    Extension(u32), "extension";
    /// The IOMMU driver "type1", whose unmap may cut mappings in two.
    TYPE1_IOMMU = 1,
    /// Its second version, the only one that tracks dirty pages.
    TYPE1V2_IOMMU = 3,
    /// No IOMMU: the device reaches all memory of the host.
    NOIOMMU_IOMMU = 8,
    /// [`DmaUnmapFlags::ALL`](crate::type1::DmaUnmapFlags::ALL). Linux 5.12.
    UNMAP_ALL = 9,
    /// [`DmaUnmapFlags::VADDR`](crate::type1::DmaUnmapFlags::VADDR). Linux 5.12.
    UPDATE_VADDR = 10,
}

/// `struct vfio_group_status`, for [`GROUP_GET_STATUS`].
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct GroupStatus {
    /// 0: the size of this structure.
    pub argsz: u32,
    /// 4: [`GroupFlags`].
    pub flags: u32,
}

bitflags::bitflags! {
    /// Flags of [`GroupStatus`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct GroupFlags: u32 {
        /// Every device of the group has a driver of VFIO, or none.
        const VIABLE = 1 << 0;
        /// It is in a container.
        const CONTAINER_SET = 1 << 1;
        const _ = !0;
    }
}
