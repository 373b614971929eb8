//! `VFIO_DEVICE_FEATURE`: one call, numbered features.
//!
//! The call passes a [`FeatureHeader`] and right after it, at offset 8, the data of
//! the feature. The same bytes are the payload of vfio-user's `DEVICE_FEATURE`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VFIO_DEVICE_FEATURE`, on the device descriptor.
pub const DEVICE_FEATURE: u32 = 0x3b75;

/// `struct vfio_device_feature`, without the data that follows.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct FeatureHeader {
    /// 0: the size of header and data. The kernel takes more than it needs.
    pub argsz: u32,
    /// 4: bits 0 to 15 a [`Feature`], the others [`FeatureFlags`].
    pub flags: u32,
}

impl FeatureHeader {
    /// The size of the header, in bytes.
    pub const SIZE: usize = size_of::<FeatureHeader>();

    /// A header for `operation` on `feature` with `data` bytes after it.
    pub const fn new(feature: Feature, operation: FeatureFlags, data: u32) -> Self {
        FeatureHeader {
            argsz: data.saturating_add(Self::SIZE as u32),
            flags: feature.0 as u32 | operation.bits(),
        }
    }

    /// The feature that it is about.
    pub const fn feature(&self) -> Feature {
        Feature((self.flags & FeatureFlags::INDEX_MASK) as u16)
    }

    /// Everything but the feature: the operation, and bits that nobody defined.
    pub const fn operation(&self) -> FeatureFlags {
        FeatureFlags::from_bits_retain(self.flags & !FeatureFlags::INDEX_MASK)
    }
}

bitflags::bitflags! {
    /// What is to be done with a feature.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct FeatureFlags: u32 {
        /// Read it.
        const GET = 1 << 16;
        /// Write it.
        const SET = 1 << 17;
        /// Only ask whether it exists, or with GET and SET whether these do.
        const PROBE = 1 << 18;
        const _ = !0;
    }
}

impl FeatureFlags {
    /// The bits of [`FeatureHeader::flags`] that hold the number of the feature.
    pub const INDEX_MASK: u32 = 0xffff;
    /// The bits that the kernel defines; it answers EINVAL to any other.
    pub const KNOWN: u32 = 0x7_ffff;
}

open_number! {
    /// The number of a feature: the kernel's up to 13 (Linux 7.3), and, from 0xff00
    /// on, those of this project.
    Feature(u16), "feature";
    /// SET, 16-byte UUID: the token of an SR-IOV function. Linux 5.7.
    PCI_VF_TOKEN = 0,
    /// GET, [`v2::Migration`](crate::v2::Migration). Linux 5.18.
    MIGRATION = 1,
    /// GET and SET, [`v2::DeviceMigState`](crate::v2::DeviceMigState). Linux 5.18.
    MIG_DEVICE_STATE = 2,
    /// SET, no data. Linux 6.1.
    LOW_POWER_ENTRY = 3,
    /// SET, an eventfd (i32) and a reserved u32. Linux 6.1.
    LOW_POWER_ENTRY_WITH_WAKEUP = 4,
    /// SET, no data. Linux 6.1.
    LOW_POWER_EXIT = 5,
    /// SET, [`dma_logging::Control`](crate::dma_logging::Control). Linux 6.1.
    DMA_LOGGING_START = 6,
    /// SET, no data. Linux 6.1.
    DMA_LOGGING_STOP = 7,
    /// GET, [`dma_logging::Report`](crate::dma_logging::Report). Linux 6.1.
    DMA_LOGGING_REPORT = 8,
    /// GET, [`v2::MigDataSize`](crate::v2::MigDataSize). Linux 6.2.
    MIG_DATA_SIZE = 9,
    /// SET, a u32: 0 clears bus mastering, 1 sets it; CDX only. Linux 6.7.
    BUS_MASTER = 10,
    /// GET, returns a dma-buf of parts of a region. Linux 6.19.
    DMA_BUF = 11,
    /// SET, no data: from now on `flags` of
    /// [`v2::PrecopyInfo`](crate::v2::PrecopyInfo) means something. Needs `PRE_COPY`.
    /// `VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2`, Linux 7.1.
    MIG_PRECOPY_INFO_V2 = 12,
    /// GET, a pointer (s390). Linux 7.3.
    ZPCI_ERROR = 13,
    /// Ours, vfio-user only, never sent to a kernel nor to a peer that has not
    /// announced `vfio_migrate`. GET,
    /// [`vfio_user::MigratePrecopyInfo`](crate::vfio_user::MigratePrecopyInfo): what
    /// the ioctl on the data descriptor tells in the kernel.
    VFIO_MIGRATE_PRECOPY_INFO = 0xff00,
    /// Ours, like the one above. GET: model, data version and byte order of the device;
    /// see `docs/vfio-user.md`.
    VFIO_MIGRATE_IDENTITY = 0xff01,
    /// Ours, like the one above. GET: a digest of what the device holds, for
    /// verification; see `docs/vfio-user.md`.
    VFIO_MIGRATE_DIGEST = 0xff02,
}
