//! A device without its group, and the page tables of an IOMMU.

#![expect(unsafe_code, reason = "ioctls")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use abi::iommufd::{
    AttachIommufd, BindIommufd, DESTROY, DEVICE_ATTACH_IOMMUFD_PT, DEVICE_BIND_IOMMUFD,
    DEVICE_DETACH_IOMMUFD_PT, Destroy, DetachIommufd, GET_HW_INFO, GetDirtyBitmap,
    GetDirtyBitmapFlags, HWPT_ALLOC, HWPT_GET_DIRTY_BITMAP, HWPT_SET_DIRTY_TRACKING,
    HwCapabilities, HwInfo, HwptAlloc, HwptAllocFlags, SetDirtyTracking,
    SetDirtyTrackingFlags,
};

use super::{exchange, size, with_bits};

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

/// `VFIO_DEVICE_ATTACH_IOMMUFD_PT`, to an address space, or to a page table of one.
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

/// `IOMMU_GET_HW_INFO`: what the IOMMU in front of a device can do, by the id that
/// [`bind`] gave.
///
/// # Errors
/// The errno: ENOENT for a device without an IOMMU, as mediated ones.
pub fn capabilities(iommu: impl AsFd, device: u32) -> io::Result<HwCapabilities> {
    let mut info = HwInfo {
        size: size::<HwInfo>(),
        flags: 0,
        dev_id: device,
        data_len: 0,
        data_uptr: 0,
        data_type: 0,
        out_max_pasid_log2: 0,
        reserved: [0; 3],
        out_capabilities: 0,
    };
    // SAFETY: its structure; there is no room for more than that, so nothing is written
    // behind the pointer.
    unsafe { exchange(iommu, GET_HW_INFO, &mut info) }?;
    Ok(HwCapabilities::from_bits_retain(info.out_capabilities))
}

/// `IOMMU_HWPT_ALLOC`: a page table for a device, with the mappings of an address space.
///
/// # Errors
/// The errno: EOPNOTSUPP where the IOMMU cannot have one with these flags.
pub fn page_table(
    iommu: impl AsFd,
    device: u32,
    ioas: u32,
    flags: HwptAllocFlags,
) -> io::Result<u32> {
    let mut alloc = HwptAlloc {
        size: size::<HwptAlloc>(),
        flags: flags.bits(),
        dev_id: device,
        pt_id: ioas,
        out_hwpt_id: 0,
        reserved: 0,
        data_type: 0,
        data_len: 0,
        data_uptr: 0,
        fault_id: 0,
        reserved2: 0,
    };
    // SAFETY: its structure, which points nowhere.
    unsafe { exchange(iommu, HWPT_ALLOC, &mut alloc) }?;
    Ok(alloc.out_hwpt_id)
}

/// `IOMMU_DESTROY`: a page table, or another object of iommufd.
///
/// # Errors
/// The errno: EBUSY while something uses it.
pub fn destroy(iommu: impl AsFd, id: u32) -> io::Result<()> {
    let mut destroy = Destroy { size: size::<Destroy>(), id };
    // SAFETY: its structure, which points nowhere.
    unsafe { exchange(iommu, DESTROY, &mut destroy) }.map(drop)
}

/// `IOMMU_HWPT_SET_DIRTY_TRACKING`. Each start forgets what was noted before.
///
/// # Errors
/// The errno: EOPNOTSUPP for a page table that cannot.
pub fn set_dirty_tracking(iommu: impl AsFd, page_table: u32, on: bool) -> io::Result<()> {
    let mut flags = SetDirtyTrackingFlags::empty();
    flags.set(SetDirtyTrackingFlags::ENABLE, on);
    let mut set = SetDirtyTracking {
        size: size::<SetDirtyTracking>(),
        flags: flags.bits(),
        hwpt_id: page_table,
        reserved: 0,
    };
    // SAFETY: its structure, which points nowhere.
    unsafe { exchange(iommu, HWPT_SET_DIRTY_TRACKING, &mut set) }.map(drop)
}

/// `IOMMU_HWPT_GET_DIRTY_BITMAP`: the pages of a range that were written, a bit for each
/// `page` bytes. `bits` is cleared before.
///
/// The kernel tells nothing of what lies behind a hole of the range, nor while tracking is
/// off, nor of a page of the IOMMU whose begin the range does not have, which it forgets;
/// and calls all of that a success. [`DmaSpace::dirty`](super::DmaSpace::dirty) knows
/// better.
///
/// # Errors
/// The errno; EINVAL, without asking, where `bits` has no room for the range, for a
/// length of 0 (which kernels before 7.3 do not refuse), and for a page size that is no
/// power of two (which none refuses).
pub fn dirty_bitmap(
    iommu: impl AsFd,
    page_table: u32,
    asked: DirtyRange,
    flags: GetDirtyBitmapFlags,
    bits: &mut [u64],
) -> io::Result<()> {
    let DirtyRange { iova, length, page } = asked;
    let room = (bits.len() as u64).saturating_mul(64);
    if length == 0 || !page.is_power_of_two() || length.div_ceil(page) > room {
        return Err(rustix::io::Errno::INVAL.into());
    }
    let mut get = GetDirtyBitmap {
        size: size::<GetDirtyBitmap>(),
        hwpt_id: page_table,
        flags: flags.bits(),
        reserved: 0,
        iova,
        length,
        page_size: page,
        data: 0,
    };
    with_bits(bits, |data| {
        get.data = data;
        // SAFETY: its structure; there is room for a bit for each page of the range, and
        // for what the kernel sets behind them.
        unsafe { exchange(iommu, HWPT_GET_DIRTY_BITMAP, &mut get) }.map(drop)
    })
}

/// The range of a query, and what a bit stands for, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyRange {
    /// The first address.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes that a bit stands for.
    pub page: u64,
}
