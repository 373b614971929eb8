//! The calls of VFIO and iommufd, one safe function each.
//!
//! ```text
//!   [`container`]   /dev/vfio/vfio, /dev/vfio/N     the way by group
//!   [`iommufd`]     /dev/vfio/devices/vfioN         the way without; page tables
//!   [`DmaSpace`]    what devices reach: memory stays mapped here as long as there
//!   [`device`]      what a device consists of, its features, interrupts and state
//!   [`data`]        the descriptor of a migration session
//! ```
//!
//! Each function is one ioctl with one argument of the right size, so that nothing a
//! caller passes lets the kernel read or write outside of it. What an errno means is
//! for others to say.

mod call;
pub mod container;
pub mod data;
pub mod device;
pub mod iommufd;
#[cfg(feature = "mock")]
pub mod mock;
mod space;

pub use space::{DirtyQuery, DmaSpace};

use std::io;

use call::{call, exchange, exchange_bytes};

/// The size of a structure, as it is told to the kernel.
const fn size<T>() -> u32 {
    size_of::<T>() as u32
}

/// Has the kernel set bits by its `iova_bitmap`, which takes an address alone, and says
/// nothing when something is wrong there.
///
/// It pins the pages of the bits when it finds the first for them, and where that fails
/// the bit is forgotten: memory that was never touched may be to be had then or not, and
/// what was just written to is there. And a page of an IOMMU or a device of which the
/// range has the begin alone is told whole, behind the end of the bits, as far as the
/// pages that it pinned reach: so there is room for as many.
fn with_bits(
    bits: &mut [u64],
    call: impl FnOnce(u64) -> io::Result<()>,
) -> io::Result<()> {
    let room = bits.len() + 2 * rustix::param::page_size() / size_of::<u64>();
    let mut place = vec![!0_u64; room];
    std::hint::black_box(&mut place).fill(0);
    call(place.as_mut_ptr().expose_provenance() as u64)?;
    bits.copy_from_slice(&place[..bits.len()]);
    Ok(())
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::{DirtyQuery, DmaSpace, container, data, device, iommufd};

    /// What is no device of VFIO says so to every call, and nothing is written.
    #[test]
    fn a_file_that_is_no_device_is_told_by_enotty_and_not_by_garbage() {
        const ENOTTY: Option<i32> = Some(25);
        let null = || File::options().read(true).write(true).open("/dev/null").unwrap();
        let fd = null();
        let asked = abi::v2::PrecopyInfo {
            argsz: 24,
            flags: 0,
            initial_bytes: 0,
            dirty_bytes: 0,
        };
        fn told<T: std::fmt::Debug>(answer: std::io::Result<T>) -> Option<i32> {
            answer.unwrap_err().raw_os_error()
        }
        assert_eq!(told(container::api_version(&fd)), ENOTTY);
        assert_eq!(told(container::check_extension(&fd, 3)), ENOTTY);
        assert_eq!(told(container::set_iommu(&fd, 3)), ENOTTY);
        assert_eq!(told(container::group_status(&fd)), ENOTTY);
        assert_eq!(told(container::join(&fd, &fd)), ENOTTY);
        assert_eq!(told(container::device(&fd, c"name")), ENOTTY);
        assert_eq!(told(device::info(&fd)), ENOTTY);
        assert_eq!(told(device::region_info(&fd, 0, &mut [0; 8])), ENOTTY);
        assert_eq!(told(device::irq_info(&fd, 0)), ENOTTY);
        assert_eq!(told(device::reset(&fd)), ENOTTY);
        assert_eq!(told(device::set_state(&fd, 1)), ENOTTY);
        assert_eq!(told(device::log_start(&fd, 4096, &[])), ENOTTY);
        assert_eq!(told(device::log_report(&fd, 0, 4096, 4096, &mut [0])), ENOTTY);
        assert_eq!(told(device::feature(&fd, 8, 1 << 18 | 1, &mut [])), ENOTTY);
        assert_eq!(told(data::precopy_info(&fd, asked)), ENOTTY);
        assert_eq!(told(iommufd::bind(&fd, &fd)), ENOTTY);
        assert_eq!(told(iommufd::attach(&fd, 1)), ENOTTY);
        assert_eq!(told(iommufd::detach(&fd)), ENOTTY);
        assert_eq!(told(iommufd::capabilities(&fd, 1)), ENOTTY);
        let flags = abi::iommufd::HwptAllocFlags::DIRTY_TRACKING;
        assert_eq!(told(iommufd::page_table(&fd, 1, 2, flags)), ENOTTY);
        assert_eq!(told(iommufd::destroy(&fd, 1)), ENOTTY);
        assert_eq!(told(iommufd::set_dirty_tracking(&fd, 1, true)), ENOTTY);
        let asked = iommufd::DirtyRange { iova: 0, length: 4096, page: 4096 };
        let none = abi::iommufd::GetDirtyBitmapFlags::empty();
        assert_eq!(told(iommufd::dirty_bitmap(&fd, 1, asked, none, &mut [0])), ENOTTY);
        assert_eq!(told(DmaSpace::ioas(null().into())), ENOTTY);
        let memory = crate::SharedMemory::create("test", 8192).unwrap();
        let space = DmaSpace::container(null().into());
        assert_eq!(told(space.map(0, &memory, true)), ENOTTY);
        assert_eq!(told(space.info()), ENOTTY);
        assert_eq!(told(space.unmap(0, 8192)), ENOTTY);
        assert_eq!(told(space.unmap_all()), ENOTTY);
        assert_eq!(told(space.unmap_dirty(0, 8192, 4096, &mut [0])), ENOTTY);
        assert_eq!(told(space.dirty_pages(DirtyQuery::plain(1))), ENOTTY);
        assert_eq!(told(space.make_page_table(1)), ENOTTY);
    }

    /// The kernel refuses none of these, sets bits far behind the words that are there,
    /// or forgets what it noted.
    #[test]
    fn a_dirty_bitmap_without_room_for_the_range_is_never_asked_for() {
        let fd = File::open("/dev/null").unwrap();
        let told = |length, page, words: usize| {
            let asked = iommufd::DirtyRange { iova: 0, length, page };
            let none = abi::iommufd::GetDirtyBitmapFlags::empty();
            let mut bits = vec![0; words];
            let answer = iommufd::dirty_bitmap(&fd, 1, asked, none, &mut bits);
            answer.unwrap_err().raw_os_error()
        };
        const EINVAL: Option<i32> = Some(22);
        assert_eq!(told(65 * 4096, 4096, 1), EINVAL);
        assert_eq!(told(0, 4096, 1), EINVAL);
        assert_eq!(told(4096, 3, 100), EINVAL);
        assert_eq!(told(4096, 0, 100), EINVAL);
        assert_eq!(told(u64::MAX, 4096, 100), EINVAL);
        assert_eq!(told(64 * 4096, 4096, 1), Some(25), "this one is");
    }

    /// What would let the kernel write where nobody said it may is never asked.
    #[test]
    fn a_pointer_in_the_data_of_a_feature_does_not_reach_the_kernel() {
        const EOPNOTSUPP: Option<i32> = Some(95);
        const EINVAL: Option<i32> = Some(22);
        const GET: u32 = 1 << 16;
        const SET: u32 = 1 << 17;
        let fd = File::open("/dev/null").unwrap();
        let told = |flags, data: &mut [u8]| {
            device::feature(&fd, 8 + 32, flags, data).unwrap_err().raw_os_error()
        };
        for flags in [GET | 8, SET | 6, GET | 13, GET | 11, SET | 4] {
            assert_eq!(told(flags, &mut [0; 32]), EOPNOTSUPP, "{flags:#x}");
        }
        // One that nobody knows yet, and on a container a query with a pointer.
        for flags in [GET | 99, 4] {
            assert_eq!(told(flags, &mut [1; 32]), EOPNOTSUPP, "{flags:#x}");
        }
        let short = device::log_report(&fd, 0, 65 * 4096, 4096, &mut [0]).unwrap_err();
        assert_eq!(short.raw_os_error(), EINVAL);
        let query = DirtyQuery { size: 16, bits: Some(&mut [0]), ..DirtyQuery::plain(4) };
        let space = DmaSpace::container(File::open("/dev/null").unwrap().into());
        assert_eq!(space.dirty_pages(query).unwrap_err().raw_os_error(), EINVAL);
    }

    /// On a device the number of the container's query is that of a feature, and the size
    /// of the bits lies where the address of a report's bits does.
    #[test]
    fn a_query_of_a_container_is_no_report_of_a_device_to_an_address_of_choice() {
        const EINVAL: Option<i32> = Some(22);
        const ENOTTY: Option<i32> = Some(25);
        let space = DmaSpace::container(File::open("/dev/null").unwrap().into());
        let told = |query| space.dirty_pages(query).unwrap_err().raw_os_error();
        let whole =
            |flags| DirtyQuery { argsz: DirtyQuery::WHOLE, ..DirtyQuery::plain(flags) };
        for flags in [1 << 16 | 8, 1 << 17 | 6, 1 << 18 | 8, 1 << 31] {
            assert_eq!(told(whole(flags)), EINVAL, "{flags:#x}");
        }
        // Nowhere ends where a process may have memory.
        assert_eq!(told(DirtyQuery { size: 4096, ..whole(4) }), ENOTTY);
        assert_eq!(told(DirtyQuery { size: 4104, ..whole(4) }), EINVAL);
        assert_eq!(told(DirtyQuery { size: 256 << 20, ..whole(4) }), EINVAL);
        assert_eq!(told(DirtyQuery { size: (256 << 20) + 8, ..whole(4) }), ENOTTY);
    }
}
