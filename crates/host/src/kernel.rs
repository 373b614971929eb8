//! What is asked of the kernel, one method a call, so that tests can answer in its place.

use std::ffi::CStr;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use abi::device_info::DeviceInfo;
use abi::dma_logging::Range;
use abi::group::GroupStatus;
use abi::irq::{IrqInfo, IrqSetFlags};
use abi::v2::PrecopyInfo;
use dirty::IovaRange;
use sys::SharedMemory;
use sys::vfio::device::IrqData;
use sys::vfio::iommufd::DirtyRange;
use sys::vfio::{DirtyQuery, DmaSpace, container, data, device, iommufd};

/// The kernel. Every call may block, and is made by a worker thread.
pub(crate) trait Kernel: Send + Sync {
    fn open(&self, path: &Path) -> io::Result<OwnedFd>;

    fn api_version(&self, container: BorrowedFd<'_>) -> io::Result<i32>;
    fn check_extension(
        &self,
        container: BorrowedFd<'_>,
        extension: u32,
    ) -> io::Result<i32>;
    fn set_iommu(&self, container: BorrowedFd<'_>, extension: u32) -> io::Result<()>;
    fn group_status(&self, group: BorrowedFd<'_>) -> io::Result<GroupStatus>;
    fn join(&self, group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()>;
    fn device(&self, group: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd>;
    fn container(&self, container: OwnedFd) -> Box<dyn Space>;

    fn bind(&self, device: BorrowedFd<'_>, iommu: BorrowedFd<'_>) -> io::Result<u32>;
    fn attach(&self, device: BorrowedFd<'_>, page_table: u32) -> io::Result<()>;
    fn ioas(&self, iommu: OwnedFd) -> io::Result<Box<dyn Space>>;

    fn info(&self, device: BorrowedFd<'_>) -> io::Result<DeviceInfo>;
    fn region_info(
        &self,
        device: BorrowedFd<'_>,
        index: u32,
        buffer: &mut [u64],
    ) -> io::Result<()>;
    fn irq_info(&self, device: BorrowedFd<'_>, index: u32) -> io::Result<IrqInfo>;
    fn set_irqs(
        &self,
        device: BorrowedFd<'_>,
        index: u32,
        start: u32,
        action: IrqSetFlags,
        data: IrqData<'_>,
    ) -> io::Result<()>;
    fn reset(&self, device: BorrowedFd<'_>) -> io::Result<()>;
    fn feature(
        &self,
        device: BorrowedFd<'_>,
        argsz: u32,
        flags: u32,
        data: &mut [u8],
    ) -> io::Result<()>;
    fn set_state(
        &self,
        device: BorrowedFd<'_>,
        target: u32,
    ) -> io::Result<(u32, Option<OwnedFd>)>;
    fn log_start(
        &self,
        device: BorrowedFd<'_>,
        page: u64,
        ranges: &[Range],
    ) -> io::Result<u64>;
    fn log_report(
        &self,
        device: BorrowedFd<'_>,
        asked: LogQuestion,
        bits: &mut [u64],
    ) -> io::Result<()>;

    fn read_at(
        &self,
        device: BorrowedFd<'_>,
        into: &mut [u8],
        at: u64,
    ) -> io::Result<usize>;
    fn write_at(&self, device: BorrowedFd<'_>, from: &[u8], at: u64)
    -> io::Result<usize>;
    fn map(
        &self,
        device: BorrowedFd<'_>,
        at: u64,
        length: u64,
        writable: bool,
    ) -> io::Result<SharedMemory>;

    fn read(&self, session: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<usize>;
    fn write(&self, session: BorrowedFd<'_>, from: &[u8]) -> io::Result<usize>;
    fn precopy_info(
        &self,
        session: BorrowedFd<'_>,
        asked: PrecopyInfo,
    ) -> io::Result<PrecopyInfo>;
}

/// A range of a report of the DMA log, and what a bit stands for, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogQuestion {
    pub(crate) iova: u64,
    pub(crate) length: u64,
    pub(crate) page: u64,
}

/// What devices reach.
pub(crate) trait Space: Send + Sync {
    fn ioas_id(&self) -> Option<u32>;
    /// The mappings that a range touches, whole, in rising order.
    fn mappings(&self, range: IovaRange) -> Vec<IovaRange>;
    fn map(&self, iova: u64, memory: &SharedMemory, writable: bool) -> io::Result<()>;
    fn unmap(&self, iova: u64, length: u64) -> io::Result<u64>;
    fn unmap_all(&self) -> io::Result<u64>;
    fn unmap_dirty(
        &self,
        iova: u64,
        length: u64,
        page: u64,
        bits: &mut [u64],
    ) -> io::Result<u64>;
    fn info(&self) -> io::Result<Vec<u8>>;
    fn dirty_pages(&self, query: DirtyQuery<'_>) -> io::Result<()>;

    /// The page table that can track, for a device of this iommufd: where it could be
    /// made, with its number to attach the device to.
    fn make_page_table(&self, device: u32) -> io::Result<u32>;
    fn page_table(&self) -> Option<u32>;
    fn use_small_pages(&self) -> io::Result<()>;
    fn drop_page_table(&self) -> io::Result<()>;
    fn set_tracking(&self, on: bool) -> io::Result<()>;
    fn dirty(&self, asked: DirtyRange, keep: bool, bits: &mut [u64]) -> io::Result<()>;
}

/// The kernel of this machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Linux;

impl Kernel for Linux {
    fn open(&self, path: &Path) -> io::Result<OwnedFd> {
        OpenOptions::new().read(true).write(true).open(path).map(OwnedFd::from)
    }

    fn api_version(&self, container: BorrowedFd<'_>) -> io::Result<i32> {
        container::api_version(container)
    }

    fn check_extension(
        &self,
        container: BorrowedFd<'_>,
        extension: u32,
    ) -> io::Result<i32> {
        container::check_extension(container, extension)
    }

    fn set_iommu(&self, container: BorrowedFd<'_>, extension: u32) -> io::Result<()> {
        container::set_iommu(container, extension)
    }

    fn group_status(&self, group: BorrowedFd<'_>) -> io::Result<GroupStatus> {
        container::group_status(group)
    }

    fn join(&self, group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()> {
        container::join(group, container)
    }

    fn device(&self, group: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
        container::device(group, name)
    }

    fn container(&self, container: OwnedFd) -> Box<dyn Space> {
        Box::new(DmaSpace::container(container))
    }

    fn bind(&self, device: BorrowedFd<'_>, iommu: BorrowedFd<'_>) -> io::Result<u32> {
        iommufd::bind(device, iommu)
    }

    fn attach(&self, device: BorrowedFd<'_>, page_table: u32) -> io::Result<()> {
        iommufd::attach(device, page_table)
    }

    fn ioas(&self, iommu: OwnedFd) -> io::Result<Box<dyn Space>> {
        Ok(Box::new(DmaSpace::ioas(iommu)?))
    }

    fn info(&self, device: BorrowedFd<'_>) -> io::Result<DeviceInfo> {
        device::info(device)
    }

    fn region_info(
        &self,
        device: BorrowedFd<'_>,
        index: u32,
        buffer: &mut [u64],
    ) -> io::Result<()> {
        device::region_info(device, index, buffer)
    }

    fn irq_info(&self, device: BorrowedFd<'_>, index: u32) -> io::Result<IrqInfo> {
        device::irq_info(device, index)
    }

    fn set_irqs(
        &self,
        device: BorrowedFd<'_>,
        index: u32,
        start: u32,
        action: IrqSetFlags,
        data: IrqData<'_>,
    ) -> io::Result<()> {
        device::set_irqs(device, index, start, action, data)
    }

    fn reset(&self, device: BorrowedFd<'_>) -> io::Result<()> {
        device::reset(device)
    }

    fn feature(
        &self,
        device: BorrowedFd<'_>,
        argsz: u32,
        flags: u32,
        data: &mut [u8],
    ) -> io::Result<()> {
        device::feature(device, argsz, flags, data)
    }

    fn set_state(
        &self,
        device: BorrowedFd<'_>,
        target: u32,
    ) -> io::Result<(u32, Option<OwnedFd>)> {
        device::set_state(device, target)
    }

    fn log_start(
        &self,
        device: BorrowedFd<'_>,
        page: u64,
        ranges: &[Range],
    ) -> io::Result<u64> {
        device::log_start(device, page, ranges)
    }

    fn log_report(
        &self,
        device: BorrowedFd<'_>,
        asked: LogQuestion,
        bits: &mut [u64],
    ) -> io::Result<()> {
        device::log_report(device, asked.iova, asked.length, asked.page, bits)
    }

    fn read_at(
        &self,
        device: BorrowedFd<'_>,
        into: &mut [u8],
        at: u64,
    ) -> io::Result<usize> {
        device::read_at(device, into, at)
    }

    fn write_at(
        &self,
        device: BorrowedFd<'_>,
        from: &[u8],
        at: u64,
    ) -> io::Result<usize> {
        device::write_at(device, from, at)
    }

    fn map(
        &self,
        device: BorrowedFd<'_>,
        at: u64,
        length: u64,
        writable: bool,
    ) -> io::Result<SharedMemory> {
        SharedMemory::of_device(device.try_clone_to_owned()?, at, length, writable)
    }

    fn read(&self, session: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<usize> {
        data::read(session, into)
    }

    fn write(&self, session: BorrowedFd<'_>, from: &[u8]) -> io::Result<usize> {
        data::write(session, from)
    }

    fn precopy_info(
        &self,
        session: BorrowedFd<'_>,
        asked: PrecopyInfo,
    ) -> io::Result<PrecopyInfo> {
        data::precopy_info(session, asked)
    }
}

impl Space for DmaSpace {
    fn ioas_id(&self) -> Option<u32> {
        DmaSpace::ioas_id(self)
    }

    fn mappings(&self, range: IovaRange) -> Vec<IovaRange> {
        DmaSpace::mappings(self, range.start(), range.last())
            .into_iter()
            .filter_map(|(start, length)| IovaRange::new(start, length).ok())
            .collect()
    }

    fn map(&self, iova: u64, memory: &SharedMemory, writable: bool) -> io::Result<()> {
        DmaSpace::map(self, iova, memory, writable)
    }

    fn unmap(&self, iova: u64, length: u64) -> io::Result<u64> {
        DmaSpace::unmap(self, iova, length)
    }

    fn unmap_all(&self) -> io::Result<u64> {
        DmaSpace::unmap_all(self)
    }

    fn unmap_dirty(
        &self,
        iova: u64,
        length: u64,
        page: u64,
        bits: &mut [u64],
    ) -> io::Result<u64> {
        DmaSpace::unmap_dirty(self, iova, length, page, bits)
    }

    fn info(&self) -> io::Result<Vec<u8>> {
        DmaSpace::info(self)
    }

    fn dirty_pages(&self, query: DirtyQuery<'_>) -> io::Result<()> {
        DmaSpace::dirty_pages(self, query)
    }

    fn make_page_table(&self, device: u32) -> io::Result<u32> {
        DmaSpace::make_page_table(self, device)
    }

    fn use_small_pages(&self) -> io::Result<()> {
        DmaSpace::use_small_pages(self)
    }

    fn page_table(&self) -> Option<u32> {
        DmaSpace::page_table(self)
    }

    fn drop_page_table(&self) -> io::Result<()> {
        DmaSpace::drop_page_table(self)
    }

    fn set_tracking(&self, on: bool) -> io::Result<()> {
        DmaSpace::set_tracking(self, on)
    }

    fn dirty(&self, asked: DirtyRange, keep: bool, bits: &mut [u64]) -> io::Result<()> {
        DmaSpace::dirty(self, asked, keep, bits)
    }
}
