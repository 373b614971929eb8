//! Extended capabilities: a list from offset 0x100 of a PCI Express function's
//! configuration space on (PCI Express Base 5.0, section 7.6). Register offsets are from
//! the start of the entry.

open_number! {
    /// The id of an extended capability.
    ExtendedId(u16), "extended capability";
    /// Advanced error reporting, [`aer`].
    ERROR_REPORTING = 0x0001,
    /// The serial number of the device.
    SERIAL_NUMBER = 0x0003,
    /// Vendor specific.
    VENDOR_SPECIFIC = 0x000b,
    /// Access control services, [`acs`].
    ACCESS_CONTROL = 0x000d,
    /// Address translation services, [`ats`].
    ADDRESS_TRANSLATION = 0x000f,
    /// Single root I/O virtualization.
    SR_IOV = 0x0010,
    /// Page request interface.
    PAGE_REQUEST = 0x0013,
    /// BARs whose size can be chosen.
    RESIZABLE_BAR = 0x0015,
    /// Hints for the processing of requests, [`tph`].
    PROCESSING_HINTS = 0x0017,
    /// Latency tolerance reporting, [`ltr`].
    LATENCY_TOLERANCE = 0x0018,
    /// Process address space ids, [`pasid`].
    PROCESS_ADDRESS_SPACES = 0x001b,
}

/// Where the list begins.
pub const FIRST: u16 = 0x100;

/// The head of an entry, u32: bits 0 to 15 an [`ExtendedId`], 16 to 19 the version of
/// the entry, 20 to 31 the offset of the next one, 0 at the end. All zero, or all ones,
/// where there is no entry.
pub const HEAD_SIZE: u16 = 4;
/// How far to the right the version is in a head.
pub const HEAD_VERSION_SHIFT: u32 = 16;
/// The bits of the version, after the shift.
pub const HEAD_VERSION_MASK: u32 = 0xf;
/// How far to the right the offset of the next entry is in a head.
pub const HEAD_NEXT_SHIFT: u32 = 20;

/// Advanced error reporting, section 7.8.4.
pub mod aer {
    /// u32: errors that cannot be corrected; write one to clear.
    pub const UNCORRECTABLE_STATUS: u16 = 0x04;
    /// u32: which of them are not told.
    pub const UNCORRECTABLE_MASK: u16 = 0x08;
    /// u32: which of them are fatal.
    pub const UNCORRECTABLE_SEVERITY: u16 = 0x0c;
    /// u32: errors that can be corrected; write one to clear.
    pub const CORRECTABLE_STATUS: u16 = 0x10;
    /// u32: which of them are not told.
    pub const CORRECTABLE_MASK: u16 = 0x14;
    /// u32: capabilities and control.
    pub const CONTROL: u16 = 0x18;
    /// In CONTROL: end-to-end checksums are made.
    pub const CONTROL_ECRC_MAKE: u32 = 1 << 6;
    /// In CONTROL: end-to-end checksums are checked.
    pub const CONTROL_ECRC_CHECK: u32 = 1 << 8;
}

/// BARs whose size can be chosen, section 7.8.6: a capability and a control register, u32
/// each, for every one of them.
pub mod resizable_bar {
    /// u32: the first control register.
    pub const CONTROL: u16 = 0x08;
    /// In the first CONTROL, bits 5 to 7: how many such BARs there are, 1 to 6.
    pub const CONTROL_COUNT_SHIFT: u32 = 5;
    /// The bits of that number, after the shift.
    pub const CONTROL_COUNT_MASK: u32 = 0x7;
    /// Bytes from one control register to the next.
    pub const STRIDE: u16 = 8;
}

/// Single root I/O virtualization, section 9.3.3.
pub mod sr_iov {
    /// Bytes of the capability.
    pub const SIZE: u16 = 0x40;
}

/// Access control services, section 7.7.8.
pub mod acs {
    /// u16: control.
    pub const CONTROL: u16 = 0x06;
    /// The bits of CONTROL.
    pub const CONTROL_MASK: u16 = 0x007f;
}

/// Address translation services, section 10.5.1.
pub mod ats {
    /// u16: control.
    pub const CONTROL: u16 = 0x06;
    /// The bits of CONTROL: the smallest unit, and on.
    pub const CONTROL_MASK: u16 = 0x801f;
}

/// Hints for the processing of requests, section 7.9.13.
pub mod tph {
    /// u32: control.
    pub const CONTROL: u16 = 0x08;
    /// The bits of CONTROL: which mode, and on.
    pub const CONTROL_MASK: u32 = 0x0307;
}

/// Latency tolerance reporting, section 7.8.2.
pub mod ltr {
    /// u16: the longest latency of requests that are snooped.
    pub const MAX_SNOOP: u16 = 0x04;
    /// u16: the longest latency of those that are not.
    pub const MAX_NO_SNOOP: u16 = 0x06;
    /// The bits of both: value and scale.
    pub const LATENCY_MASK: u16 = 0x1fff;
}

/// Process address space ids, section 7.8.8.
pub mod pasid {
    /// u16: control.
    pub const CONTROL: u16 = 0x06;
    /// The bits of CONTROL: on, execute, privileged.
    pub const CONTROL_MASK: u16 = 0x0007;
}
