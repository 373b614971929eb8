//! Containers and groups.

#![expect(unsafe_code, reason = "ioctls")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use abi::group::{
    CHECK_EXTENSION, GET_API_VERSION, GROUP_GET_DEVICE_FD, GROUP_GET_STATUS,
    GROUP_SET_CONTAINER, GroupStatus, SET_IOMMU,
};

use super::{call, exchange, size};

/// `VFIO_GET_API_VERSION`.
///
/// # Errors
/// As every function here: the errno. ENOTTY on what is no container.
pub fn api_version(container: impl AsFd) -> io::Result<i32> {
    // SAFETY: it takes no argument.
    unsafe { call(container, GET_API_VERSION, std::ptr::null_mut()) }
}

/// `VFIO_CHECK_EXTENSION`: what it answers, 0 for no.
///
/// # Errors
/// The errno.
pub fn check_extension(container: impl AsFd, extension: u32) -> io::Result<i32> {
    let number = std::ptr::without_provenance_mut(extension as usize);
    // SAFETY: it takes a number, and follows it nowhere.
    unsafe { call(container, CHECK_EXTENSION, number) }
}

/// `VFIO_SET_IOMMU`, once a group joined.
///
/// # Errors
/// The errno: EINVAL without a group, ENODEV where there is no such driver.
pub fn set_iommu(container: impl AsFd, extension: u32) -> io::Result<()> {
    let number = std::ptr::without_provenance_mut(extension as usize);
    // SAFETY: it takes a number, and follows it nowhere.
    unsafe { call(container, SET_IOMMU, number) }.map(drop)
}

/// `VFIO_GROUP_GET_STATUS`.
///
/// # Errors
/// The errno.
pub fn group_status(group: impl AsFd) -> io::Result<GroupStatus> {
    let mut status = GroupStatus { argsz: size::<GroupStatus>(), flags: 0 };
    // SAFETY: its structure, which points nowhere.
    unsafe { exchange(group, GROUP_GET_STATUS, &mut status) }?;
    Ok(status)
}

/// `VFIO_GROUP_SET_CONTAINER`.
///
/// # Errors
/// The errno: EINVAL where the group is in one already, or the container takes none.
pub fn join(group: impl AsFd, container: impl AsFd) -> io::Result<()> {
    let mut number: i32 = container.as_fd().as_raw_fd();
    // SAFETY: a pointer to a descriptor, which lives as long as the call.
    unsafe { exchange(group, GROUP_SET_CONTAINER, &mut number) }.map(drop)
}

/// `VFIO_GROUP_GET_DEVICE_FD`: the device that is called so.
///
/// # Errors
/// The errno: ENODEV where the group has no such device with a driver of VFIO.
pub fn device(group: impl AsFd, name: &CStr) -> io::Result<OwnedFd> {
    let name = name.as_ptr().cast_mut().cast();
    // SAFETY: a string with its end, which the kernel reads and never writes.
    let fd = unsafe { call(group, GROUP_GET_DEVICE_FD, name) }?;
    // SAFETY: the kernel has just made it, and for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
