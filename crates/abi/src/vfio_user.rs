//! vfio-user: messages between a client and the process that has the device.
//!
//! ```text
//!  0        16                       msg_size
//!  | Header | payload of the command |            descriptors travel beside byte 0
//! ```
//!
//! Byte order is the host's. `GET_REGION_INFO`, `GET_IRQ_INFO` and `SET_IRQS` carry the
//! kernel's [`RegionInfo`](crate::region::RegionInfo),
//! [`IrqInfo`](crate::irq::IrqInfo) and [`IrqSet`](crate::irq::IrqSet), `DEVICE_FEATURE`
//! a [`FeatureHeader`](crate::feature::FeatureHeader) and data; migration state is the
//! kernel's [`DeviceMigState`](crate::v2::DeviceMigState), and what the log of a
//! device covers its [`Range`](crate::dma_logging::Range)s. Everything else is here.
//!
//! Where the text of the protocol contradicts itself, the choice is written at the
//! item, and in `docs/vfio-user.md`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The major version that both sides must have.
pub const MAJOR: u16 = 0;
/// The minor version of the text that this follows.
pub const MINOR: u16 = 2;

/// The start of every message.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Header {
    /// 0: chosen by the sender of the command, may repeat; the reply has the same.
    pub msg_id: u16,
    /// 2: a [`Command`]; the reply has the same.
    pub command: u16,
    /// 4: bytes of the whole message, this header included.
    pub msg_size: u32,
    /// 8: [`HeaderFlags`].
    pub flags: u32,
    /// 12: an [`Errno`](crate::errno::Errno) if [`HeaderFlags::ERROR`] is set; even
    /// then it may be 0. An error reply has no payload.
    pub error: u32,
}

impl Header {
    /// The size of the header, in bytes.
    pub const SIZE: usize = size_of::<Header>();
}

layout!(Header, size 16, align 4,
    msg_id at 0, command at 2, msg_size at 4, flags at 8, error at 12);

bitflags::bitflags! {
    /// Flags of [`Header`]; bits 0 to 3 are a number, the type of the message.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct HeaderFlags: u32 {
        /// Type 1: a reply. Without it: a command.
        const REPLY = 1;
        /// No reply is wanted.
        const NO_REPLY = 1 << 4;
        /// A reply that says no; see [`Header::error`].
        const ERROR = 1 << 5;
        const _ = !0;
    }
}

impl HeaderFlags {
    /// Type 0: a command.
    pub const COMMAND: HeaderFlags = HeaderFlags::empty();
    /// The bits of the type.
    pub const TYPE_MASK: u32 = 0xf;
    /// The bits that the protocol defines.
    pub const KNOWN: u32 = 0x3f;
}

open_number! {
    /// What a message is about.
    Command(u16), "command";
    /// Client: [`Version`] and JSON, the first message; the reply alike.
    VERSION = 1,
    /// Client: [`DmaMap`], 0 or 1 descriptor; an empty reply.
    DMA_MAP = 2,
    /// Client: [`DmaUnmap`]; the reply alike.
    DMA_UNMAP = 3,
    /// Client: [`DeviceInfo`]; the reply alike.
    DEVICE_GET_INFO = 4,
    /// Client: [`RegionInfo`](crate::region::RegionInfo); the reply with capabilities,
    /// and a descriptor if it can be mapped.
    DEVICE_GET_REGION_INFO = 5,
    /// Client: [`RegionIoFds`]; the reply with [`IoFdSubRegion`]s and descriptors.
    DEVICE_GET_REGION_IO_FDS = 6,
    /// Client: [`IrqInfo`](crate::irq::IrqInfo); the reply alike.
    DEVICE_GET_IRQ_INFO = 7,
    /// Client: [`IrqSet`](crate::irq::IrqSet), descriptors; an empty reply.
    DEVICE_SET_IRQS = 8,
    /// Client: [`RegionAccess`]; the reply with the data.
    REGION_READ = 9,
    /// Client: [`RegionAccess`] and data; the reply without.
    REGION_WRITE = 10,
    /// Server: [`DmaAccess`]; the reply with the data.
    DMA_READ = 11,
    /// Server: [`DmaAccess`] and data; the reply without.
    DMA_WRITE = 12,
    /// Client: nothing; an empty reply.
    DEVICE_RESET = 13,
    /// Not used since 2023: it was part of the v1 migration interface.
    DIRTY_PAGES_RETIRED = 14,
    /// Client: [`WriteMulti`] and [`WriteMultiEntry`]s; the reply is [`WriteMulti`].
    REGION_WRITE_MULTI = 15,
    /// Client: [`FeatureHeader`](crate::feature::FeatureHeader) and data; the reply
    /// alike.
    DEVICE_FEATURE = 16,
    /// Client: [`MigData`]; the reply with the data.
    MIG_DATA_READ = 17,
    /// Client: [`MigData`] and data; an empty reply.
    MIG_DATA_WRITE = 18,
}

/// The payload of VERSION, before a JSON text that ends with a NUL byte, if there is
/// one.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Version {
    /// 0: must be the same on both sides.
    pub major: u16,
    /// 2: the reply has this one or a lower one.
    pub minor: u16,
}

layout!(Version, size 4, align 2, major at 0, minor at 2);

/// The names in VERSION's JSON object.
pub mod key {
    /// The object in which all others are.
    pub const CAPABILITIES: &str = "capabilities";
    /// Number: descriptors that the sender takes in one message.
    pub const MAX_MSG_FDS: &str = "max_msg_fds";
    /// Number: bytes of data that the sender takes in one message.
    pub const MAX_DATA_XFER_SIZE: &str = "max_data_xfer_size";
    /// Number: DMA mappings at a time.
    pub const MAX_DMA_MAPS: &str = "max_dma_maps";
    /// Number: a bit a page size, for DMA mappings.
    pub const PGSIZES: &str = "pgsizes";
    /// Object: a second socket for what the server sends.
    pub const TWIN_SOCKET: &str = "twin_socket";
    /// In `twin_socket`, boolean.
    pub const SUPPORTED: &str = "supported";
    /// In `twin_socket` of the reply, number: which descriptor it is.
    pub const FD_INDEX: &str = "fd_index";
    /// Boolean: `REGION_WRITE_MULTI` may be used.
    pub const WRITE_MULTIPLE: &str = "write_multiple";
    /// Object, no longer in the text but sent by everybody.
    pub const MIGRATION: &str = "migration";
    /// In `migration`, number: the page size of the dirty log.
    pub const PGSIZE: &str = "pgsize";
    /// In `migration`, number: bytes of a bitmap.
    pub const MAX_BITMAP_SIZE: &str = "max_bitmap_size";
    /// Object, ours: what the protocol lacks may be used. See `docs/vfio-user.md`.
    pub const VFIO_MIGRATE: &str = "vfio_migrate";
    /// In `vfio_migrate`, number: the version of our additions.
    pub const VERSION: &str = "version";
}

/// What holds for a peer that names no limit of its own.
pub mod default {
    /// [`key::MAX_MSG_FDS`](super::key::MAX_MSG_FDS).
    pub const MAX_MSG_FDS: u32 = 1;
    /// [`key::MAX_DATA_XFER_SIZE`](super::key::MAX_DATA_XFER_SIZE), in bytes.
    pub const MAX_DATA_XFER_SIZE: u32 = 1 << 20;
    /// [`key::MAX_DMA_MAPS`](super::key::MAX_DMA_MAPS).
    pub const MAX_DMA_MAPS: u32 = 65535;
    /// [`key::PGSIZES`](super::key::PGSIZES).
    pub const PGSIZES: u64 = 4096;
    /// [`key::MAX_BITMAP_SIZE`](super::key::MAX_BITMAP_SIZE), in bytes, as in QEMU and
    /// libvfio-user.
    pub const MAX_BITMAP_SIZE: u64 = 256 << 20;
}

/// The payload of `DMA_MAP`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct DmaMap {
    /// 0: the size of this structure.
    pub argsz: u32,
    /// 4: [`DmaMapFlags`].
    pub flags: u32,
    /// 8: where the memory lies in the descriptor.
    pub offset: u64,
    /// 16: the first address for the device.
    pub addr: u64,
    /// 24: bytes.
    pub size: u64,
}

layout!(DmaMap, size 32, align 8,
    argsz at 0, flags at 4, offset at 8, addr at 16, size at 24);

bitflags::bitflags! {
    /// Flags of [`DmaMap`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct DmaMapFlags: u32 {
        /// The device may read.
        const READ = 1 << 0;
        /// The device may write.
        const WRITE = 1 << 1;
        /// The descriptor can be mapped; libvfio-user since 2026-06.
        const MMAP = 1 << 2;
        /// The descriptor is to be read and written; libvfio-user since 2026-06.
        const FILE_IO = 1 << 3;
        const _ = !0;
    }
}

/// The payload of `DMA_UNMAP`; with [`DmaUnmapFlags::GET_DIRTY_BITMAP`] a [`DirtyBitmap`]
/// follows.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct DmaUnmap {
    /// 0: the largest reply that is taken.
    pub argsz: u32,
    /// 4: [`DmaUnmapFlags`].
    pub flags: u32,
    /// 8: the first address, of exactly one mapping.
    pub addr: u64,
    /// 16: bytes, of exactly one mapping.
    pub size: u64,
}

layout!(DmaUnmap, size 24, align 8, argsz at 0, flags at 4, addr at 8, size at 16);

bitflags::bitflags! {
    /// Flags of [`DmaUnmap`]: none in the text, these in practice.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct DmaUnmapFlags: u32 {
        /// The dirty bits with the reply, a remainder of v1.
        const GET_DIRTY_BITMAP = 1 << 0;
        /// Everything; address and size are 0.
        const ALL = 1 << 1;
        const _ = !0;
    }
}

/// Follows [`DmaUnmap`] with [`DmaUnmapFlags::GET_DIRTY_BITMAP`].
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct DirtyBitmap {
    /// 0: bytes that a bit stands for.
    pub pgsize: u64,
    /// 8: bytes of the bitmap.
    pub size: u64,
}

layout!(DirtyBitmap, size 16, align 8, pgsize at 0, size at 8);

/// The payload of `DEVICE_GET_INFO`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct DeviceInfo {
    /// 0: the largest reply that is taken; in the reply, the size that is needed.
    pub argsz: u32,
    /// 4: RESET and PCI of [`DeviceFlags`](crate::device_info::DeviceFlags).
    pub flags: u32,
    /// 8: one more than the largest region index.
    pub num_regions: u32,
    /// 12: one more than the largest interrupt index.
    pub num_irqs: u32,
}

layout!(DeviceInfo, size 16, align 4,
    argsz at 0, flags at 4, num_regions at 8, num_irqs at 12);

/// The payload of `DEVICE_GET_REGION_IO_FDS`, before the [`IoFdSubRegion`]s of a reply.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct RegionIoFds {
    /// 0: the largest reply that is taken; in the reply, the size that is needed.
    pub argsz: u32,
    /// 4: 0.
    pub flags: u32,
    /// 8: which region.
    pub index: u32,
    /// 12: the number of sub-regions; 0 in the request.
    pub count: u32,
}

layout!(RegionIoFds, size 16, align 4, argsz at 0, flags at 4, index at 8, count at 12);

/// A part of a region that has a descriptor of its own, as the text has it: 40 bytes,
/// one after the other. (libvfio-user's is 48 bytes, with `datamatch` at 40.)
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct IoFdSubRegion {
    /// 0: in the region.
    pub offset: u64,
    /// 8: bytes.
    pub size: u64,
    /// 16: which of the descriptors beside the message.
    pub fd_index: u32,
    /// 20: 0 ioeventfd, 1 ioregionfd.
    pub kind: u32,
    /// 24: as in KVM.
    pub flags: u32,
    /// 28: 0.
    pub padding: u32,
    /// 32: the value to match, or what the ioregionfd passes on.
    pub datamatch: u64,
}

layout!(IoFdSubRegion, size 40, align 8,
    offset at 0, size at 8, fd_index at 16, kind at 20, flags at 24, padding at 28,
    datamatch at 32);

/// The payload of `REGION_READ` and `REGION_WRITE`, before the data.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct RegionAccess {
    /// 0: in the region.
    pub offset: u64,
    /// 8: which region.
    pub region: u32,
    /// 12: bytes.
    pub count: u32,
}

layout!(RegionAccess, size 16, align 8, offset at 0, region at 8, count at 12);

/// The payload of `REGION_WRITE_MULTI`, before the [`WriteMultiEntry`]s of a request.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct WriteMulti {
    /// 0: how many; in the reply, how many were done.
    pub wr_cnt: u64,
}

layout!(WriteMulti, size 8, align 8, wr_cnt at 0);

/// One write of `REGION_WRITE_MULTI`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct WriteMultiEntry {
    /// 0: where, in which region, how many bytes: at most 8.
    pub access: RegionAccess,
    /// 16: the data, from the first byte on.
    pub data: [u8; 8],
}

layout!(WriteMultiEntry, size 24, align 8, access at 0, data at 16);

/// The payload of `DMA_READ` and `DMA_WRITE`, before the data.
///
/// The reply to `DMA_WRITE` has it too, with a count of 8 bytes as in libvfio-user; the
/// text's table has 4 there.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct DmaAccess {
    /// 0: the first address.
    pub addr: u64,
    /// 8: bytes.
    pub count: u64,
}

layout!(DmaAccess, size 16, align 8, addr at 0, count at 8);

/// The payload of `MIG_DATA_READ` and `MIG_DATA_WRITE`, before the data.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct MigData {
    /// 0: of a request, the largest reply that is taken.
    pub argsz: u32,
    /// 4: bytes; in a reply to `MIG_DATA_READ` less than asked for when there is no more.
    pub size: u32,
}

layout!(MigData, size 8, align 4, argsz at 0, size at 4);

/// `DEVICE_FEATURE` data of `DMA_LOGGING_START` and `DMA_LOGGING_STOP`, before the
/// [`Range`](crate::dma_logging::Range)s.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct LoggingControl {
    /// 0: in, the page size that is wished for; out, the one that was chosen. Bytes.
    pub page_size: u64,
    /// 8: the number of ranges that follow; 0 means everything.
    pub num_ranges: u32,
    /// 12: 0.
    pub reserved: u32,
}

layout!(LoggingControl, size 16, align 8,
    page_size at 0, num_ranges at 8, reserved at 12);

/// `DEVICE_FEATURE` data of `DMA_LOGGING_REPORT`; in the reply 64-bit words follow, bit `n`
/// for the page at `iova + n * page_size`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct LoggingReport {
    /// 0: the first address.
    pub iova: u64,
    /// 8: bytes.
    pub length: u64,
    /// 16: bytes that a bit stands for, a power of two.
    pub page_size: u64,
}

layout!(LoggingReport, size 24, align 8, iova at 0, length at 8, page_size at 16);

/// Ours: `DEVICE_FEATURE` data of
/// [`VFIO_MIGRATE_PRECOPY_INFO`](crate::feature::Feature::VFIO_MIGRATE_PRECOPY_INFO),
/// the kernel's [`PrecopyInfo`](crate::v2::PrecopyInfo) without a size of its own.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct MigratePrecopyInfo {
    /// 0: [`PrecopyFlags`](crate::v2::PrecopyFlags).
    pub flags: u32,
    /// 4: 0.
    pub reserved: u32,
    /// 8: an estimate of the initial bytes that are still to be read.
    pub initial_bytes: u64,
    /// 16: an estimate of the bytes that changed after they were read.
    pub dirty_bytes: u64,
}

layout!(MigratePrecopyInfo, size 24, align 8,
    flags at 0, reserved at 4, initial_bytes at 8, dirty_bytes at 16);
