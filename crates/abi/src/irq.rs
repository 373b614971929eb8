//! `VFIO_DEVICE_GET_IRQ_INFO` and `VFIO_DEVICE_SET_IRQS`: interrupts and eventfds.
//!
//! vfio-user's messages have the same layouts; only its eventfds travel beside the
//! message instead of in it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VFIO_DEVICE_GET_IRQ_INFO`, with an [`IrqInfo`].
pub const DEVICE_GET_IRQ_INFO: u32 = 0x3b6d;
/// `VFIO_DEVICE_SET_IRQS`, with an [`IrqSet`] and its data.
pub const DEVICE_SET_IRQS: u32 = 0x3b6e;

/// `struct vfio_irq_info`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct IrqInfo {
    /// 0: in, the size that may be written; out, the size that is needed.
    pub argsz: u32,
    /// 4: [`IrqInfoFlags`].
    pub flags: u32,
    /// 8: which index.
    pub index: u32,
    /// 12: the number of interrupts, vectors, in it.
    pub count: u32,
}

bitflags::bitflags! {
    /// Flags of [`IrqInfo`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct IrqInfoFlags: u32 {
        /// It signals by eventfd.
        const EVENTFD = 1 << 0;
        /// It can be masked and unmasked.
        const MASKABLE = 1 << 1;
        /// It masks itself when it fires.
        const AUTOMASKED = 1 << 2;
        /// The number of enabled vectors changes only by disabling all of them.
        const NORESIZE = 1 << 3;
        const _ = !0;
    }
}

/// `struct vfio_irq_set`, without the data that follows.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct IrqSet {
    /// 0: the size of this structure and its data.
    pub argsz: u32,
    /// 4: [`IrqSetFlags`]: one kind of data and one action.
    pub flags: u32,
    /// 8: which index.
    pub index: u32,
    /// 12: the first vector.
    pub start: u32,
    /// 16: the number of vectors.
    pub count: u32,
}

bitflags::bitflags! {
    /// Flags of [`IrqSet`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct IrqSetFlags: u32 {
        /// No data; with TRIGGER and a count of 0 the index is disabled.
        const DATA_NONE = 1 << 0;
        /// A byte a vector: not 0 where the action applies.
        const DATA_BOOL = 1 << 1;
        /// A descriptor (i32) a vector; -1 takes it away.
        const DATA_EVENTFD = 1 << 2;
        /// Mask.
        const ACTION_MASK = 1 << 3;
        /// Unmask.
        const ACTION_UNMASK = 1 << 4;
        /// Fire, or with `DATA_EVENTFD` bind.
        const ACTION_TRIGGER = 1 << 5;
        const _ = !0;
    }
}

impl IrqSetFlags {
    /// The bits of which exactly one says what data follows.
    pub const DATA_TYPE_MASK: u32 = 0x07;
    /// The bits of which exactly one says what to do.
    pub const ACTION_TYPE_MASK: u32 = 0x38;
}
