//! `VFIO_DEVICE_GET_INFO`: how many regions and interrupts, and on what bus.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VFIO_DEVICE_GET_INFO`, with a [`DeviceInfo`].
pub const DEVICE_GET_INFO: u32 = 0x3b6b;
/// `VFIO_DEVICE_RESET`, without data.
pub const DEVICE_RESET: u32 = 0x3b6f;

/// `struct vfio_device_info`. vfio-user's is shorter:
/// [`vfio_user::DeviceInfo`](crate::vfio_user::DeviceInfo).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct DeviceInfo {
    /// 0: in, the size that may be written; out, the size that is needed.
    pub argsz: u32,
    /// 4: [`DeviceFlags`].
    pub flags: u32,
    /// 8: one more than the largest region index.
    pub num_regions: u32,
    /// 12: one more than the largest interrupt index.
    pub num_irqs: u32,
    /// 16: where the first capability lies, from the start of this structure, or 0.
    pub cap_offset: u32,
    /// 20: 0.
    pub pad: u32,
}

bitflags::bitflags! {
    /// Flags of [`DeviceInfo`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct DeviceFlags: u32 {
        /// It can be reset.
        const RESET = 1 << 0;
        /// A PCI device: the indexes of [`pci`](crate::pci) hold.
        const PCI = 1 << 1;
        /// A platform device.
        const PLATFORM = 1 << 2;
        /// An AMBA device.
        const AMBA = 1 << 3;
        /// A channel I/O device (s390).
        const CCW = 1 << 4;
        /// An adjunct processor (s390).
        const AP = 1 << 5;
        /// A device on NXP's management complex.
        const FSL_MC = 1 << 6;
        /// There are capabilities.
        const CAPS = 1 << 7;
        /// A device on AMD's CDX bus.
        const CDX = 1 << 8;
        const _ = !0;
    }
}
