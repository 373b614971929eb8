//! PCI: the indexes by which VFIO names the parts of a device, and configuration
//! space.
//!
//! Offsets are `u16`, which becomes a `usize` or a `u64` without loss. Multi-byte
//! registers are little-endian (PCI Local Bus 3.0, PCI Express Base 5.0; names as in
//! `include/uapi/linux/pci_regs.h`).

pub mod capability;
pub mod config;
pub mod extended;

/// Region indexes of a PCI device. Indexes from [`NUM`](region_index::NUM) on are of
/// the driver's making, with a type capability.
pub mod region_index {
    /// The first base address register; BAR `n` is region `n`, 0 to 5.
    pub const BAR0: u32 = 0;
    /// The second.
    pub const BAR1: u32 = 1;
    /// The third.
    pub const BAR2: u32 = 2;
    /// The fourth.
    pub const BAR3: u32 = 3;
    /// The fifth.
    pub const BAR4: u32 = 4;
    /// The sixth.
    pub const BAR5: u32 = 5;
    /// The expansion ROM.
    pub const ROM: u32 = 6;
    /// Configuration space.
    pub const CONFIG: u32 = 7;
    /// The legacy VGA ranges.
    pub const VGA: u32 = 8;
    /// The number of fixed indexes.
    pub const NUM: u32 = 9;
}

/// Interrupt indexes of a PCI device.
pub mod irq_index {
    /// The legacy line.
    pub const INTX: u32 = 0;
    /// MSI vectors.
    pub const MSI: u32 = 1;
    /// MSI-X vectors.
    pub const MSIX: u32 = 2;
    /// Tells of an uncorrectable error.
    pub const ERR: u32 = 3;
    /// Asks for the device back.
    pub const REQ: u32 = 4;
    /// The number of indexes.
    pub const NUM: u32 = 5;
}
