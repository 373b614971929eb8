//! The migration interface of Linux 5.18 and later (`include/uapi/linux/vfio.h`).
//!
//! The calls are features ([`Feature::MIGRATION`](crate::feature::Feature::MIGRATION)
//! and others) of `VFIO_DEVICE_FEATURE`, and one ioctl on the data descriptor.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VFIO_MIG_GET_PRECOPY_INFO`, on the data descriptor of a save session, with a
/// [`PrecopyInfo`]. Linux 6.2.
pub const MIG_GET_PRECOPY_INFO: u32 = 0x3b79;

open_number! {
    /// `enum vfio_device_mig_state`. What a device answers may be a state that a
    /// newer kernel added.
    DeviceState(u32), "state";
    /// The device failed and must be reset. Cannot be asked for.
    ERROR = 0,
    /// Does nothing, changes nothing.
    STOP = 1,
    /// Works. The state after a reset.
    RUNNING = 2,
    /// Stopped, its state is read.
    STOP_COPY = 3,
    /// Stopped, its state is written.
    RESUMING = 4,
    /// Works, but starts no peer-to-peer access. Linux 5.18, optional.
    RUNNING_P2P = 5,
    /// Works while its state is read ahead. Linux 6.2, optional.
    PRE_COPY = 6,
    /// Both. Linux 6.2, optional.
    PRE_COPY_P2P = 7,
}

bitflags::bitflags! {
    /// Flags of `struct vfio_device_feature_migration`: what the device can do. Only
    /// the sets 1, 3, 5 and 7 are defined.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct MigrationFlags: u64 {
        /// `STOP_COPY` and RESUMING; every device with migration has it.
        const STOP_COPY = 1 << 0;
        /// `RUNNING_P2P`, and with `PRE_COPY` also `PRE_COPY_P2P`.
        const P2P = 1 << 1;
        /// `PRE_COPY`.
        const PRE_COPY = 1 << 2;
        const _ = !0;
    }
}

/// `struct vfio_device_feature_migration`, the answer to GET of
/// [`Feature::MIGRATION`](crate::feature::Feature::MIGRATION).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Migration {
    /// 0: [`MigrationFlags`].
    pub flags: u64,
}

/// `struct vfio_device_feature_mig_state`, for GET and SET of
/// [`Feature::MIG_DEVICE_STATE`](crate::feature::Feature::MIG_DEVICE_STATE).
///
/// In vfio-user too, where `data_fd` is unsigned and has no meaning; a client sends
/// -1, which is 0xffffffff there.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct DeviceMigState {
    /// 0: a [`DeviceState`], asked for or current.
    pub device_state: u32,
    /// 4: the descriptor of the session that the last arc opened, else -1.
    pub data_fd: i32,
}

/// `struct vfio_precopy_info`, for [`MIG_GET_PRECOPY_INFO`].
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct PrecopyInfo {
    /// 0: the size of this structure, at least 24.
    pub argsz: u32,
    /// 4: [`PrecopyFlags`], but only after a SET of
    /// [`Feature::MIG_PRECOPY_INFO_V2`](crate::feature::Feature::MIG_PRECOPY_INFO_V2):
    /// before, the kernel gives back what was passed in.
    pub flags: u32,
    /// 8: an estimate of the initial bytes that are still to be read.
    pub initial_bytes: u64,
    /// 16: an estimate of the bytes that changed after they were read.
    pub dirty_bytes: u64,
}

bitflags::bitflags! {
    /// Flags of [`PrecopyInfo`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct PrecopyFlags: u32 {
        /// There is new initial data in the stream: `initial_bytes` may be anything,
        /// and `dirty_bytes` counts from 0 again. Linux 7.1.
        const REINIT = 1 << 0;
        const _ = !0;
    }
}

/// `struct vfio_device_feature_mig_data_size`, the answer to GET of
/// [`Feature::MIG_DATA_SIZE`](crate::feature::Feature::MIG_DATA_SIZE).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct MigDataSize {
    /// 0: an estimate of the bytes that it takes to complete stop-copy.
    pub stop_copy_length: u64,
}
