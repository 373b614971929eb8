//! The migration region of the RFC of November 2018 (document 001, patch 1/5). Never
//! released.
//!
//! A region of type [`RFC_REGION_TYPE`], subtype [`RFC_REGION_SUBTYPE`], starts with an
//! [`RfcInfo`]; the data section follows it somewhere.
//!
//! ```text
//!  0              4         36      52           76                  size of the region
//!  | device_state | pending | data  | dirty_pfns | ...  data section  |
//!    u32            4 x u64   2 x u64   3 x u64
//! ```
//!
//! The structure is packed, so every `u64` lies at 4 modulo 8. Its VMM (patch 3/5)
//! accesses one field or one whole sub-structure at a time, and so [`RfcField`] knows
//! these accesses and no others: "field accesses are only supported at their native
//! width and alignment" (review, 27 November 2018) cannot be had literally here.
//!
//! What the document leaves open is decided in `docs/generations.md`.

use core::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VFIO_REGION_TYPE_MIGRATION` of document 001, patch 1/5. The review asked for a
/// small number instead, and [`v1`](crate::v1) has one.
pub const RFC_REGION_TYPE: u32 = 1 << 30;

/// `VFIO_REGION_SUBTYPE_MIGRATION` of document 001, patch 1/5.
pub const RFC_REGION_SUBTYPE: u32 = 1;

open_number! {
    /// The states of document 001, patch 1/5 ("VFIO device states"), without the
    /// prefixes `VFIO_DEVICE_STATE_` and `VFIO_DEVICE_STATE_MIGRATION_`: steps of the
    /// VMM's migration rather than states of a device, as the review found.
    FlowState(u32), "step";
    /// Initialised, not yet running. Treated as running: who never touches migration
    /// never leaves it.
    NONE = 0,
    /// Works.
    RUNNING = 1,
    /// Works, and prepares for migration.
    SETUP = 2,
    /// Works while its state is read ahead.
    PRECOPY = 3,
    /// Stopped, its state is read.
    STOPNCOPY = 4,
    /// The state was read; what SETUP made is cleaned up.
    SAVE_COMPLETED = 5,
    /// Stopped, its state is written.
    RESUME = 6,
    /// The state was written.
    RESUME_COMPLETED = 7,
    /// The migration failed: a source goes on, a destination stops restoring.
    FAILED = 8,
    /// The migration was cancelled: the device goes on as it was.
    CANCELLED = 9,
}

/// `struct vfio_device_migration_info` of document 001, patch 1/5, at offset 0 of the
/// region. 76 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C, packed)]
pub struct RfcInfo {
    /// 0: a [`FlowState`], written by the VMM. The document has it as input only.
    pub device_state: u32,
    /// 4: "Action Get pending bytes".
    pub pending: PendingBytes,
    /// 36: "Action Get buffer" and "Action Set buffer".
    pub data: DataSection,
    /// 52: "Action Get dirty pages bitmap".
    pub dirty_pfns: DirtyPfns,
}

/// `pending` of [`RfcInfo`]: what is still to be read, in bytes. The three amounts add
/// up to the whole. (Offsets here and in the next two are those in the region.)
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct PendingBytes {
    /// 4: out, must be read before the target starts.
    pub precopy_only: u64,
    /// 12: out, may be read at any time.
    pub compatible: u64,
    /// 20: out, must be read after the source has stopped.
    pub postcopy_only: u64,
    /// 28: in, the "threshold of buffer" of the VMM, in bytes: below it, it stops.
    pub threshold_size: u64,
}

/// `data` of [`RfcInfo`]: a buffer in the data section.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct DataSection {
    /// 36: where in the region the data lies, in bytes from its start; never 0.
    /// Reading it asks the device for data.
    pub offset: u64,
    /// 44: bytes of data. Read while saving, written after the data while resuming.
    pub size: u64,
}

/// `dirty_pfns` of [`RfcInfo`]: a query for dirty pages.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct DirtyPfns {
    /// 52: in, the address that the bitmap starts at, in bytes.
    pub start_addr: u64,
    /// 60: in, how many pages are asked for.
    pub total: u64,
    /// 68: out, for how many pages the bitmap was copied; the rest is asked for again.
    pub copied: u64,
}

layout!(PendingBytes, size 32, align 8,
    precopy_only at 0, compatible at 8, postcopy_only at 16, threshold_size at 24);
layout!(DataSection, size 16, align 8, offset at 0, size at 8);
layout!(DirtyPfns, size 24, align 8, start_addr at 0, total at 8, copied at 16);
layout!(RfcInfo, size 76, align 1,
    device_state at 0, pending at 4, data at 36, dirty_pfns at 52);

impl RfcInfo {
    /// The size, in bytes; no data section starts below it.
    pub const SIZE: usize = size_of::<RfcInfo>();
}

/// What of [`RfcInfo`] can be accessed in one go: a field, or a whole sub-structure, as
/// patch 3/5 of document 001 does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RfcField {
    /// [`RfcInfo::device_state`].
    DeviceState,
    /// All of [`PendingBytes`].
    Pending,
    /// [`PendingBytes::precopy_only`].
    PrecopyOnly,
    /// [`PendingBytes::compatible`].
    Compatible,
    /// [`PendingBytes::postcopy_only`].
    PostcopyOnly,
    /// [`PendingBytes::threshold_size`].
    ThresholdSize,
    /// All of [`DataSection`].
    Data,
    /// [`DataSection::offset`].
    Offset,
    /// [`DataSection::size`].
    Size,
    /// All of [`DirtyPfns`].
    DirtyPfns,
    /// [`DirtyPfns::start_addr`].
    StartAddr,
    /// [`DirtyPfns::total`].
    Total,
    /// [`DirtyPfns::copied`].
    Copied,
}

impl RfcField {
    /// Every one, a sub-structure before its fields.
    pub const ALL: [RfcField; 13] = [
        RfcField::DeviceState,
        RfcField::Pending,
        RfcField::PrecopyOnly,
        RfcField::Compatible,
        RfcField::PostcopyOnly,
        RfcField::ThresholdSize,
        RfcField::Data,
        RfcField::Offset,
        RfcField::Size,
        RfcField::DirtyPfns,
        RfcField::StartAddr,
        RfcField::Total,
        RfcField::Copied,
    ];

    /// Where it lies in the region, in bytes.
    pub const fn at(self) -> u64 {
        (match self {
            RfcField::DeviceState => offset_of!(RfcInfo, device_state),
            RfcField::Pending => offset_of!(RfcInfo, pending),
            RfcField::PrecopyOnly => offset_of!(RfcInfo, pending.precopy_only),
            RfcField::Compatible => offset_of!(RfcInfo, pending.compatible),
            RfcField::PostcopyOnly => offset_of!(RfcInfo, pending.postcopy_only),
            RfcField::ThresholdSize => offset_of!(RfcInfo, pending.threshold_size),
            RfcField::Data => offset_of!(RfcInfo, data),
            RfcField::Offset => offset_of!(RfcInfo, data.offset),
            RfcField::Size => offset_of!(RfcInfo, data.size),
            RfcField::DirtyPfns => offset_of!(RfcInfo, dirty_pfns),
            RfcField::StartAddr => offset_of!(RfcInfo, dirty_pfns.start_addr),
            RfcField::Total => offset_of!(RfcInfo, dirty_pfns.total),
            RfcField::Copied => offset_of!(RfcInfo, dirty_pfns.copied),
        }) as u64
    }

    /// Its width, in bytes: 4 or 8, and 32, 16 or 24 for a sub-structure.
    pub const fn width(self) -> usize {
        match self {
            RfcField::DeviceState => 4,
            RfcField::Pending => size_of::<PendingBytes>(),
            RfcField::Data => size_of::<DataSection>(),
            RfcField::DirtyPfns => size_of::<DirtyPfns>(),
            _ => 8,
        }
    }

    /// What an access of `length` bytes at `offset` of the region is to, or `None`
    /// where it is exactly to no field and no sub-structure.
    pub fn find(offset: u64, length: usize) -> Option<RfcField> {
        Self::ALL
            .into_iter()
            .find(|field| (field.at(), field.width()) == (offset, length))
    }
}

const _: () = {
    let at = [
        (RfcField::DeviceState, 0),
        (RfcField::Pending, 4),
        (RfcField::PrecopyOnly, 4),
        (RfcField::Compatible, 12),
        (RfcField::PostcopyOnly, 20),
        (RfcField::ThresholdSize, 28),
        (RfcField::Data, 36),
        (RfcField::Offset, 36),
        (RfcField::Size, 44),
        (RfcField::DirtyPfns, 52),
        (RfcField::StartAddr, 52),
        (RfcField::Total, 60),
        (RfcField::Copied, 68),
    ];
    let mut index = 0;
    while index < at.len() {
        assert!(at[index].0 as usize == index && at[index].0.at() == at[index].1);
        // Nothing but the state lies at its natural alignment.
        assert!(index == 0 || at[index].1 % 8 == 4);
        index += 1;
    }
};

/// The marks of the stream of patch 3/5 of document 001 (`VFIO_MIG_FLAG_*`): 64-bit
/// big-endian words between blocks. Documentation: our stream (`docs/stream.md`) has
/// nothing of it. A size of data stands where a mark may stand, which is one reason.
pub mod flow_marks {
    /// `VFIO_MIG_FLAG_END_OF_STATE`: ends every block.
    pub const END_OF_STATE: u64 = 0xffff_ffff_ef10_0001;
    /// `VFIO_MIG_FLAG_DEV_CONFIG_STATE`: configuration space follows. Sent before the
    /// data, and loaded so.
    pub const DEV_CONFIG_STATE: u64 = 0xffff_ffff_ef10_0002;
    /// `VFIO_MIG_FLAG_DEV_SETUP_STATE`: an empty block, first of all.
    pub const DEV_SETUP_STATE: u64 = 0xffff_ffff_ef10_0003;
}

/// What the review of document 001 proposed instead. Documentation: nobody speaks it.
///
/// Its idea, states of the device that can be combined, became [`v1`](crate::v1).
pub mod review_draft {
    /// "`{RUNNING, STOPPED}` with `IN_TRACKING`" (26 November 2018) and "two bits,
    /// STOPPED and LOGGING" (27 November 2018): the device stands still. No numbers were
    /// given; these are in the order of the mail.
    pub const STOPPED: u32 = 1 << 0;
    /// Dirty tracking is on, whether or not there is a migration.
    pub const LOGGING: u32 = 1 << 1;

    /// `struct dirty_pages` of the mail of 27 November 2018: a window of the bitmap that
    /// lies in the region, moved by `segment`; a read that returns 0 bytes would say
    /// "nothing dirty here".
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(C)]
    pub struct DirtySegment {
        /// 0: out, where the bitmap lies in the region, in bytes.
        pub offset: u64,
        /// 8: out, its size in bytes.
        pub size: u64,
        /// 16: out, bytes that a bit stands for.
        pub page_size: u64,
        /// 24: in, which window of `size * 8 * page_size` bytes.
        pub segment: u64,
    }

    layout!(DirtySegment, size 32, align 8,
        offset at 0, size at 8, page_size at 16, segment at 24);
}
