//! The mock IOMMU of a kernel with `CONFIG_IOMMUFD_TEST`, for tests of page tables that
//! track (`drivers/iommu/iommufd/iommufd_test.h`).
//!
//! Its devices are no devices of VFIO and write nothing by themselves: [`write`] marks
//! pages as written. Everything else is done to them as to any other.

#![expect(unsafe_code, reason = "ioctls")]

use std::io;
use std::os::fd::AsFd;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::iommufd::DirtyRange;
use super::{exchange, size};

/// `IOMMU_TEST_CMD`.
const TEST_CMD: u32 = 0x3ba0;
/// `IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE`.
const REPLACE: u32 = 10;
/// `IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS`.
const DEVICE: u32 = 12;
/// `IOMMU_TEST_OP_DIRTY`.
const DIRTY: u32 = 13;
/// `MOCK_FLAGS_DEVICE_NO_DIRTY`.
const NO_DIRTY: u64 = 1;

/// `struct iommu_test_cmd`.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Command {
    size: u32,
    op: u32,
    id: u32,
    reserved: u32,
    /// A union, as long as the one that is longest: that of `DIRTY`.
    body: [u64; 6],
    last: u32,
    pad: u32,
}

const _: () = assert!(size_of::<Command>() == 72);

impl Command {
    fn new(op: u32, id: u32, body: [u64; 6]) -> Command {
        Command { size: size::<Command>(), op, id, reserved: 0, body, last: 0, pad: 0 }
    }
}

/// A device behind the mock IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MockDevice {
    /// Its id as a device of the iommufd, as [`bind`](super::iommufd::bind) gives one.
    pub id: u32,
    /// What [`attach`] knows it by.
    attachment: u32,
}

/// Makes a device, attached to an address space; one whose IOMMU cannot track, where
/// `tracks` is `false`.
///
/// # Errors
/// As every function here: the errno. ENOTTY on a kernel without the mock.
pub fn device(iommu: impl AsFd, ioas: u32, tracks: bool) -> io::Result<MockDevice> {
    let flags = if tracks { 0 } else { NO_DIRTY };
    let mut command = Command::new(DEVICE, ioas, [0, flags << 32, 0, 0, 0, 0]);
    // SAFETY: its structure, which points nowhere.
    unsafe { exchange(iommu, TEST_CMD, &mut command) }?;
    let [attachment, id] = [command.body[0], command.body[1]].map(|word| word as u32);
    Ok(MockDevice { id, attachment })
}

/// Attaches it to an address space or a page table, in place of what it had.
///
/// # Errors
/// The errno.
pub fn attach(iommu: impl AsFd, device: MockDevice, page_table: u32) -> io::Result<()> {
    let body = [u64::from(page_table), 0, 0, 0, 0, 0];
    let mut command = Command::new(REPLACE, device.attachment, body);
    // SAFETY: its structure, which points nowhere.
    unsafe { exchange(iommu, TEST_CMD, &mut command) }.map(drop)
}

/// Marks the pages of a range whose bits are set as written, as DMA would; says how many
/// of them are mapped, and so were.
///
/// # Errors
/// The errno: EINVAL while the page table does not track, and, without asking, where
/// there are fewer bits than pages.
pub fn write(
    iommu: impl AsFd,
    page_table: u32,
    written: DirtyRange,
    bits: &[u64],
) -> io::Result<u64> {
    let DirtyRange { iova, length, page } = written;
    if page == 0 || length.div_ceil(page) > bits.len() as u64 * 64 {
        return Err(rustix::io::Errno::INVAL.into());
    }
    let place = bits.as_ptr().expose_provenance() as u64;
    let mut command = Command::new(DIRTY, page_table, [0, iova, length, page, place, 0]);
    // SAFETY: its structure; the kernel reads a bit for each page, and writes none.
    unsafe { exchange(iommu, TEST_CMD, &mut command) }?;
    Ok(command.body[5])
}
