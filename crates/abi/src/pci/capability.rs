//! Capabilities in configuration space: a list of entries that start with an id and
//! the offset of the next one. Register offsets are from the start of the entry.

open_number! {
    /// The id of a capability.
    CapabilityId(u8), "capability";
    /// Power management, [`pm`].
    POWER_MANAGEMENT = 0x01,
    /// MSI, [`msi`].
    MSI = 0x05,
    /// Vendor specific.
    VENDOR_SPECIFIC = 0x09,
    /// PCI Express, [`pcie`].
    PCI_EXPRESS = 0x10,
    /// MSI-X, [`msix`].
    MSIX = 0x11,
    /// Advanced features, among them function level reset.
    ADVANCED_FEATURES = 0x13,
}

/// u8: a [`CapabilityId`].
pub const ID: u16 = 0;
/// u8: where the next entry lies in configuration space, or 0. A foreign list may run
/// in circles; the lowest two bits are to be ignored.
pub const NEXT: u16 = 1;

/// Power management, PCI Bus Power Management 1.2.
pub mod pm {
    /// Bytes of the capability.
    pub const SIZE: u16 = 8;
    /// u16: what it can do; the lowest three bits are the version, 3.
    pub const CAPABILITIES: u16 = 2;
    /// u16: control and status.
    pub const CONTROL: u16 = 4;
    /// In CONTROL: D0 to D3hot, 0 to 3.
    pub const CONTROL_STATE_MASK: u16 = 0x0003;
    /// D3hot, for `CONTROL_STATE_MASK`.
    pub const CONTROL_D3_HOT: u16 = 3;
    /// In CONTROL: the way from D3hot to D0 is no reset. Read-only.
    pub const CONTROL_NO_SOFT_RESET: u16 = 1 << 3;
    /// In CONTROL: wake-up is enabled.
    pub const CONTROL_PME_ENABLE: u16 = 1 << 8;
    /// In CONTROL: wake-up is pending. Write one to clear.
    pub const CONTROL_PME_STATUS: u16 = 1 << 15;
}

/// MSI, PCI Local Bus 3.0, section 6.8.1.
pub mod msi {
    /// u16: message control.
    pub const CONTROL: u16 = 2;
    /// u32: the low half of the address.
    pub const ADDRESS_LOW: u16 = 4;
    /// u32: the high half, where CONTROL has [`CONTROL_64_BIT`].
    pub const ADDRESS_HIGH: u16 = 8;
    /// u16: the data, without [`CONTROL_64_BIT`].
    pub const DATA_32: u16 = 8;
    /// u16: the data, with [`CONTROL_64_BIT`].
    pub const DATA_64: u16 = 12;
    /// In CONTROL: on.
    pub const CONTROL_ENABLE: u16 = 1 << 0;
    /// In CONTROL, bits 1 to 3: the number of vectors there are, as a power of two.
    /// Read-only.
    pub const CONTROL_CAPABLE_SHIFT: u16 = 1;
    /// In CONTROL, bits 4 to 6: the number of vectors in use, as a power of two.
    pub const CONTROL_IN_USE_SHIFT: u16 = 4;
    /// The bits of such a number, after the shift.
    pub const CONTROL_VECTORS_MASK: u16 = 0x7;
    /// The most vectors.
    pub const MAX_VECTORS: u16 = 32;
    /// In CONTROL: the address has 64 bits.
    pub const CONTROL_64_BIT: u16 = 1 << 7;
    /// In CONTROL: vectors can be masked one by one.
    pub const CONTROL_MASKABLE: u16 = 1 << 8;
    /// In CONTROL: the data can have 32 bits. Read-only. This and the next are of PCI
    /// Express Base 5.0, section 7.7.1.2.
    pub const CONTROL_EXTENDED_DATA: u16 = 1 << 9;
    /// In CONTROL: the data has 32 bits, the upper half right behind the lower one.
    pub const CONTROL_EXTENDED_DATA_ENABLE: u16 = 1 << 10;
}

/// MSI-X, PCI Local Bus 3.0, section 6.8.2.
pub mod msix {
    /// Bytes of the capability.
    pub const SIZE: u16 = 12;
    /// u16: message control.
    pub const CONTROL: u16 = 2;
    /// u32: where the table lies: bits 0 to 2 the BAR, the others the offset in it.
    pub const TABLE: u16 = 4;
    /// u32: where the pending bits lie, like [`TABLE`].
    pub const PBA: u16 = 8;
    /// In CONTROL: the number of vectors, less one. Read-only.
    pub const CONTROL_TABLE_SIZE: u16 = 0x07ff;
    /// In CONTROL: all vectors are masked.
    pub const CONTROL_MASK_ALL: u16 = 1 << 14;
    /// In CONTROL: on.
    pub const CONTROL_ENABLE: u16 = 1 << 15;
    /// The bits of TABLE and PBA that hold the number of the BAR.
    pub const BAR_MASK: u32 = 0x7;
    /// The most vectors.
    pub const MAX_VECTORS: u16 = 2048;

    /// Bytes of an entry of the table.
    pub const ENTRY_SIZE: u16 = 16;
    /// In an entry, u32: the low half of the address.
    pub const ENTRY_ADDRESS_LOW: u16 = 0;
    /// In an entry, u32: the high half of the address.
    pub const ENTRY_ADDRESS_HIGH: u16 = 4;
    /// In an entry, u32: the data.
    pub const ENTRY_DATA: u16 = 8;
    /// In an entry, u32: vector control.
    pub const ENTRY_CONTROL: u16 = 12;
    /// In `ENTRY_CONTROL`: the vector is masked, as it is after a reset.
    pub const ENTRY_CONTROL_MASKED: u32 = 1 << 0;
}

/// PCI Express, PCI Express Base 5.0, section 7.5.3.
pub mod pcie {
    /// Bytes of the capability, version 2.
    pub const SIZE: u16 = 0x3c;
    /// u16: bits 0 to 3 the version, 4 to 7 the type of the port.
    pub const FLAGS: u16 = 0x02;
    /// Version 2 of an endpoint, for FLAGS.
    pub const FLAGS_ENDPOINT_V2: u16 = 0x0002;
    /// Version 2 of an endpoint integrated into the root complex, for FLAGS.
    pub const FLAGS_INTEGRATED_ENDPOINT_V2: u16 = 0x0092;
    /// u32: device capabilities.
    pub const DEVICE_CAPABILITIES: u16 = 0x04;
    /// In `DEVICE_CAPABILITIES`: errors are reported by role.
    pub const DEVICE_CAPABILITIES_ROLE_ERRORS: u32 = 1 << 15;
    /// In `DEVICE_CAPABILITIES`: the function can be reset by itself.
    pub const DEVICE_CAPABILITIES_FLR: u32 = 1 << 28;
    /// u16: device control.
    pub const DEVICE_CONTROL: u16 = 0x08;
    /// In `DEVICE_CONTROL`: resets the function when written as one; reads as zero.
    pub const DEVICE_CONTROL_FLR: u16 = 1 << 15;
    /// u16: device status; bits 0 to 3 are cleared by writing one.
    pub const DEVICE_STATUS: u16 = 0x0a;
    /// In `DEVICE_STATUS`: requests of its own are not completed yet. Read-only.
    pub const DEVICE_STATUS_PENDING: u16 = 1 << 5;
    /// u32: link capabilities.
    pub const LINK_CAPABILITIES: u16 = 0x0c;
    /// u16: link control.
    pub const LINK_CONTROL: u16 = 0x10;
    /// u16: link status.
    pub const LINK_STATUS: u16 = 0x12;
    /// u32: device capabilities 2.
    pub const DEVICE_CAPABILITIES_2: u16 = 0x24;
    /// u16: device control 2.
    pub const DEVICE_CONTROL_2: u16 = 0x28;
}

/// Advanced features, PCI Engineering Change Notice of July 2006.
pub mod advanced_features {
    /// u8: what it can do.
    pub const CAPABILITIES: u16 = 3;
    /// In CAPABILITIES: the function can be reset by itself.
    pub const CAPABILITIES_FLR: u8 = 1 << 1;
    /// u8: control.
    pub const CONTROL: u16 = 4;
    /// In CONTROL: resets the function when written as one; reads as zero.
    pub const CONTROL_FLR: u8 = 1 << 0;
}
