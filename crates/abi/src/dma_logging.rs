//! The dirty log that a device keeps of its own DMA writes, Linux 6.1 and later.
//!
//! Independent of the migration state. Bit `n` of a report, in 64-bit little-endian
//! words, stands for the page at `iova + n * page_size`; reading clears. (The formula
//! in the header's comment is wrong.) Any error means that the log is lost.
//!
//! vfio-user has layouts of its own, [`vfio_user::LoggingControl`] and
//! [`vfio_user::LoggingReport`]: without pointers.
//!
//! [`vfio_user::LoggingControl`]: crate::vfio_user::LoggingControl
//! [`vfio_user::LoggingReport`]: crate::vfio_user::LoggingReport

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The most ranges of a START on a machine with 4 KiB pages: what fits into a page.
/// The kernel answers E2BIG to more.
pub const MAX_RANGES: u32 = 256;

/// The smallest page size that REPORT takes; EINVAL below it.
pub const MIN_REPORT_PAGE: u64 = 4096;

/// `struct vfio_device_feature_dma_logging_control`, for SET of
/// [`Feature::DMA_LOGGING_START`](crate::feature::Feature::DMA_LOGGING_START).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Control {
    /// 0: in, the page size that is wished for; out, the one that was chosen. Bytes.
    pub page_size: u64,
    /// 8: the number of ranges, 1 to [`MAX_RANGES`]. (0 means EINVAL in the kernel and
    /// "all" in vfio-user.)
    pub num_ranges: u32,
    /// 12: 0.
    pub reserved: u32,
    /// 16: a pointer to that many [`Range`]s.
    pub ranges: u64,
}

/// `struct vfio_device_feature_dma_logging_range`, in both interfaces.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Range {
    /// 0: the first address, a multiple of the page size.
    pub iova: u64,
    /// 8: bytes, a multiple of the page size.
    pub length: u64,
}

/// `struct vfio_device_feature_dma_logging_report`, for GET of
/// [`Feature::DMA_LOGGING_REPORT`](crate::feature::Feature::DMA_LOGGING_REPORT).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Report {
    /// 0: the first address.
    pub iova: u64,
    /// 8: bytes.
    pub length: u64,
    /// 16: bytes that a bit stands for: a power of two from [`MIN_REPORT_PAGE`] up,
    /// larger or smaller than that of the log.
    pub page_size: u64,
    /// 24: a pointer to the words, in which bits are set and never cleared.
    pub bitmap: u64,
}

/// The numbers of the RFC of May 2022 (document 003). Never sent to anyone: released
/// kernels use them for low power, where 3 with SET lets the device sleep. They are
/// no [`Feature`](crate::feature::Feature)s on purpose.
pub mod rfc {
    /// `VFIO_DEVICE_FEATURE_DMA_LOGGING_START` then; released as 6.
    pub const START: u16 = 3;
    /// `VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP` then; released as 7.
    pub const STOP: u16 = 4;
    /// `VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT` then; released as 8.
    pub const REPORT: u16 = 5;
}
