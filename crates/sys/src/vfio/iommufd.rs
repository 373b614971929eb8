//! A device without its group.

#![expect(unsafe_code, reason = "ioctls")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use abi::iommufd::{
    AttachIommufd, BindIommufd, DEVICE_ATTACH_IOMMUFD_PT, DEVICE_BIND_IOMMUFD,
    DEVICE_DETACH_IOMMUFD_PT, DetachIommufd,
};

use super::{exchange, size};

/// `VFIO_DEVICE_BIND_IOMMUFD`: the device's id there.
///
/// # Errors
/// As every function here: the errno. EINVAL where it is bound already, EBUSY where its
/// group is open.
pub fn bind(device: impl AsFd, iommu: impl AsFd) -> io::Result<u32> {
    let mut bind = BindIommufd {
        argsz: size::<BindIommufd>(),
        flags: 0,
        iommufd: iommu.as_fd().as_raw_fd(),
        out_devid: 0,
        token_uuid_ptr: 0,
    };
    // SAFETY: its structure; the pointer in it is 0 and, without the flag, not looked at.
    unsafe { exchange(device, DEVICE_BIND_IOMMUFD, &mut bind) }?;
    Ok(bind.out_devid)
}

/// `VFIO_DEVICE_ATTACH_IOMMUFD_PT`, to an address space.
///
/// # Errors
/// The errno.
pub fn attach(device: impl AsFd, page_table: u32) -> io::Result<()> {
    let mut attach = AttachIommufd {
        argsz: size::<AttachIommufd>(),
        flags: 0,
        pt_id: page_table,
        pasid: 0,
    };
    // SAFETY: its structure, which points nowhere.
    unsafe { exchange(device, DEVICE_ATTACH_IOMMUFD_PT, &mut attach) }.map(drop)
}

/// `VFIO_DEVICE_DETACH_IOMMUFD_PT`.
///
/// # Errors
/// The errno.
pub fn detach(device: impl AsFd) -> io::Result<()> {
    let mut detach = DetachIommufd { argsz: size::<DetachIommufd>(), flags: 0, pasid: 0 };
    // SAFETY: its structure, which points nowhere.
    unsafe { exchange(device, DEVICE_DETACH_IOMMUFD_PT, &mut detach) }.map(drop)
}
