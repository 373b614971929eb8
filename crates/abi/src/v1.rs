//! The migration region of Linux 5.8 to 5.17 (document 000), deprecated since 5.18.
//!
//! A region of type [`V1_REGION_TYPE`], subtype [`V1_REGION_SUBTYPE`], starts with a
//! [`V1Info`]; the data section follows it, where `data_offset` says.
//!
//! ```text
//!  0              4          8               16            24          32
//!  | device_state | reserved | pending_bytes | data_offset | data_size | ...  data section
//!    u32 rw         u32        u64 ro          u64 ro        u64 rw
//! ```
//!
//! "Field accesses from this structure are only supported at their native width and
//! alignment": [`V1Field`].
//!
//! No driver in the kernel ever implemented it; drivers outside of it and user-space
//! devices did. Its macro `VFIO_DEVICE_STATE_STOP` is 0, and that of
//! [`v2`](crate::v2) is 1: document 004 is the compiler's view of that.

use core::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VFIO_REGION_TYPE_MIGRATION` of document 000, today
/// `VFIO_REGION_TYPE_MIGRATION_DEPRECATED`.
pub const V1_REGION_TYPE: u32 = 3;

/// `VFIO_REGION_SUBTYPE_MIGRATION` of document 000, today
/// `VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED`.
pub const V1_REGION_SUBTYPE: u32 = 1;

bitflags::bitflags! {
    /// `device_state` of document 000: three bits, and 29 reserved ones, which whoever
    /// writes takes from what was read.
    ///
    /// | bits | meaning |
    /// | --- | --- |
    /// | 000 | stopped |
    /// | 001 | running, the default |
    /// | 010 | stop-and-copy |
    /// | 011 | pre-copy |
    /// | 100 | resuming |
    /// | 101 | invalid |
    /// | 110 | error |
    /// | 111 | invalid |
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct StateBits: u32 {
        /// The device works; without it, it has stopped before the write returns.
        const RUNNING = 1 << 0;
        /// Its state is read.
        const SAVING = 1 << 1;
        /// Its state is written.
        const RESUMING = 1 << 2;
        const _ = !0;
    }
}

impl StateBits {
    /// `VFIO_DEVICE_STATE_STOP` of document 000: none of the three bits.
    pub const STOPPED: StateBits = StateBits::empty();

    /// `VFIO_DEVICE_STATE_MASK` of document 000: the three bits that are defined.
    pub const MASK: StateBits = StateBits::from_bits_retain(0b111);

    /// The three bits that are defined.
    pub const fn defined(self) -> StateBits {
        StateBits::from_bits_retain(self.bits() & Self::MASK.bits())
    }

    /// Bits 3 to 31.
    pub const fn reserved(self) -> StateBits {
        StateBits::from_bits_retain(self.bits() & !Self::MASK.bits())
    }

    /// `VFIO_DEVICE_STATE_VALID` of document 000: 000, 001, 010, 011 and 100, whatever
    /// the reserved bits are.
    pub const fn is_valid(self) -> bool {
        self.bits() & Self::RESUMING.bits() == 0
            || self.defined().bits() == Self::RESUMING.bits()
    }

    /// `VFIO_DEVICE_STATE_IS_ERROR` of document 000: 110, which only a reset leaves.
    pub const fn is_error(self) -> bool {
        self.defined().bits() == Self::SAVING.bits() | Self::RESUMING.bits()
    }

    /// `VFIO_DEVICE_STATE_SET_ERROR` of document 000: these reserved bits with 110. (The
    /// document's macro names `VFIO_DEVICE_SATE_SAVING`, so that whoever uses it cannot
    /// compile; Linux 5.8 to 5.17 have it so too.)
    #[must_use]
    pub const fn with_error(self) -> StateBits {
        self.with(StateBits::from_bits_retain(
            Self::SAVING.bits() | Self::RESUMING.bits(),
        ))
    }

    /// The read-modify-write that document 000 asks for: these reserved bits, and of
    /// `defined` the three defined ones.
    #[must_use]
    pub const fn with(self, defined: StateBits) -> StateBits {
        StateBits::from_bits_retain(self.reserved().bits() | defined.defined().bits())
    }
}

/// `struct vfio_device_migration_info` of document 000, at offset 0 of the region. 32
/// bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct V1Info {
    /// 0: [`StateBits`], read and written. A write is the transition, and returns its
    /// failure.
    pub device_state: u32,
    /// 4: reads are 0, writes are ignored.
    pub reserved: u32,
    /// 8: read only; bytes that are still to be read. Reading it says that the data
    /// before was read.
    pub pending_bytes: u64,
    /// 16: read only; where in the region the data is or is wanted, in bytes; never 0.
    /// While saving, reading it asks for data.
    pub data_offset: u64,
    /// 24: bytes of data. Read while saving, written after the data while resuming.
    pub data_size: u64,
}

layout!(V1Info, size 32, align 8, device_state at 0, reserved at 4, pending_bytes at 8,
    data_offset at 16, data_size at 24);

impl V1Info {
    /// The size, in bytes; no data section starts below it.
    pub const SIZE: usize = size_of::<V1Info>();
}

/// A field of [`V1Info`]: what can be accessed, one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum V1Field {
    /// [`V1Info::device_state`].
    DeviceState,
    /// [`V1Info::reserved`].
    Reserved,
    /// [`V1Info::pending_bytes`].
    PendingBytes,
    /// [`V1Info::data_offset`].
    DataOffset,
    /// [`V1Info::data_size`].
    DataSize,
}

impl V1Field {
    /// Every one, by offset.
    pub const ALL: [V1Field; 5] = [
        V1Field::DeviceState,
        V1Field::Reserved,
        V1Field::PendingBytes,
        V1Field::DataOffset,
        V1Field::DataSize,
    ];

    /// Where it lies in the region, in bytes.
    pub const fn at(self) -> u64 {
        (match self {
            V1Field::DeviceState => offset_of!(V1Info, device_state),
            V1Field::Reserved => offset_of!(V1Info, reserved),
            V1Field::PendingBytes => offset_of!(V1Info, pending_bytes),
            V1Field::DataOffset => offset_of!(V1Info, data_offset),
            V1Field::DataSize => offset_of!(V1Info, data_size),
        }) as u64
    }

    /// Its native width: 4 or 8 bytes.
    pub const fn width(self) -> usize {
        match self {
            V1Field::DeviceState | V1Field::Reserved => 4,
            V1Field::PendingBytes | V1Field::DataOffset | V1Field::DataSize => 8,
        }
    }

    /// The field that an access of `length` bytes at `offset` of the region is exactly
    /// to, or `None`.
    pub fn find(offset: u64, length: usize) -> Option<V1Field> {
        Self::ALL
            .into_iter()
            .find(|field| (field.at(), field.width()) == (offset, length))
    }
}

/// The capability of document 000 by which type1 tells that it tracks dirty pages. Never
/// sent to anyone: released kernels have capability 1 for something else, and say it by
/// [`type1::CapMigration`](crate::type1::CapMigration). The rest of document 000's
/// type1 was released as it stands, and is in [`type1`](crate::type1).
pub mod type1_draft {
    use crate::region::CapHeader;
    use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

    /// `VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION` then. Released as 2: 1 is
    /// [`Type1Cap::IOVA_RANGE`](crate::type1::Type1Cap::IOVA_RANGE).
    pub const INFO_CAP_MIGRATION: u16 = 1;

    /// `VFIO_IOMMU_INFO_DIRTY_PGS` then, in `flags` of the answer. Released kernels do
    /// not define the bit.
    pub const INFO_DIRTY_PGS: u32 = 1 << 2;

    /// `VFIO_IOMMU_INFO_CAPS_MIGRATION_DIRTY_PAGE_TRACK` then, in
    /// [`DraftCapMigration::flags`]. In released kernels these flags are 0, and the
    /// capability is there or not.
    pub const DIRTY_PAGE_TRACK: u32 = 1 << 0;

    /// `struct vfio_iommu_type1_info_cap_migration` then.
    #[derive(
        Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
    )]
    #[repr(C)]
    pub struct DraftCapMigration {
        /// 0: [`INFO_CAP_MIGRATION`], version 1.
        pub header: CapHeader,
        /// 8: [`DIRTY_PAGE_TRACK`].
        pub flags: u32,
    }

    layout!(DraftCapMigration, size 12, align 4, header at 0, flags at 8);
}
