//! The header of configuration space, type 0.

/// Bytes of configuration space without extended capabilities.
pub const SIZE: u16 = 0x100;
/// Bytes of a PCI Express function's configuration space.
pub const EXTENDED_SIZE: u16 = 0x1000;

/// u16: vendor.
pub const VENDOR_ID: u16 = 0x00;
/// u16: device.
pub const DEVICE_ID: u16 = 0x02;
/// u16: [`Command`].
pub const COMMAND: u16 = 0x04;
/// u16: [`Status`].
pub const STATUS: u16 = 0x06;
/// u8: revision.
pub const REVISION_ID: u16 = 0x08;
/// u8: programming interface, the first of three bytes of class code.
pub const PROG_IF: u16 = 0x09;
/// u8: subclass.
pub const SUBCLASS: u16 = 0x0a;
/// u8: base class.
pub const CLASS: u16 = 0x0b;
/// u8: cache line size, in 32-bit words.
pub const CACHE_LINE_SIZE: u16 = 0x0c;
/// u8: latency timer.
pub const LATENCY_TIMER: u16 = 0x0d;
/// u8: 0 for an ordinary function, bit 7 for several functions.
pub const HEADER_TYPE: u16 = 0x0e;
/// u8: built-in self-test.
pub const BIST: u16 = 0x0f;
/// u32: the first of [`BARS`] base address registers.
pub const BAR0: u16 = 0x10;
/// The number of base address registers.
pub const BARS: u16 = 6;
/// u32: pointer of the card bus.
pub const CARDBUS_CIS: u16 = 0x28;
/// u16: subsystem vendor.
pub const SUBSYSTEM_VENDOR_ID: u16 = 0x2c;
/// u16: subsystem.
pub const SUBSYSTEM_ID: u16 = 0x2e;
/// u32: expansion ROM.
pub const ROM_ADDRESS: u16 = 0x30;
/// u8: where the first capability lies.
pub const CAPABILITY_LIST: u16 = 0x34;
/// u8: the line, written by firmware, read by the system.
pub const INTERRUPT_LINE: u16 = 0x3c;
/// u8: 0 none, 1 to 4 for A to D.
pub const INTERRUPT_PIN: u16 = 0x3d;
/// u8: minimum grant.
pub const MIN_GNT: u16 = 0x3e;
/// u8: maximum latency.
pub const MAX_LAT: u16 = 0x3f;
/// The first byte after the header, where capabilities may lie.
pub const HEADER_END: u16 = 0x40;

/// Bit 0 of a BAR: an I/O BAR.
pub const BAR_IO: u32 = 1 << 0;
/// Bits 1 and 2 of a memory BAR: 2 in them makes it 64 bits wide, with the next BAR
/// as its upper half.
pub const BAR_MEMORY_64: u32 = 2 << 1;
/// Bit 3 of a memory BAR: reads have no side effects.
pub const BAR_PREFETCHABLE: u32 = 1 << 3;
/// The address bits of a memory BAR.
pub const BAR_MEMORY_MASK: u32 = !0xf;
/// The address bits of an I/O BAR.
pub const BAR_IO_MASK: u32 = !0x3;
/// Bit 0 of the expansion ROM register: it decodes.
pub const ROM_ENABLE: u32 = 1 << 0;
/// The address bits of the expansion ROM register.
pub const ROM_ADDRESS_MASK: u32 = !0x7ff;

bitflags::bitflags! {
    /// The command register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Command: u16 {
        /// I/O BARs decode.
        const IO = 1 << 0;
        /// Memory BARs decode.
        const MEMORY = 1 << 1;
        /// The device may start DMA and raise MSI.
        const BUS_MASTER = 1 << 2;
        /// Parity errors are acted upon.
        const PARITY = 1 << 6;
        /// System errors are reported.
        const SERR = 1 << 8;
        /// The legacy line stays quiet.
        const INTX_DISABLE = 1 << 10;
        const _ = !0;
    }
}

bitflags::bitflags! {
    /// The status register. Those marked so are cleared by writing one, which must
    /// never happen while state is restored.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Status: u16 {
        /// The legacy line is asserted. Read-only.
        const INTERRUPT = 1 << 3;
        /// There is a list of capabilities. Read-only.
        const CAPABILITY_LIST = 1 << 4;
        /// Write one to clear.
        const MASTER_PARITY = 1 << 8;
        /// Write one to clear.
        const SIGNALED_TARGET_ABORT = 1 << 11;
        /// Write one to clear.
        const RECEIVED_TARGET_ABORT = 1 << 12;
        /// Write one to clear.
        const RECEIVED_MASTER_ABORT = 1 << 13;
        /// Write one to clear.
        const SIGNALED_SYSTEM_ERROR = 1 << 14;
        /// Write one to clear.
        const DETECTED_PARITY = 1 << 15;
        const _ = !0;
    }
}

impl Status {
    /// The bits that are cleared by writing one.
    pub const WRITE_ONE_TO_CLEAR: u16 = 0xf900;
}
