//! PCI config space: what mtty shows, with the writes that a guest needs.
//!
//! There are no capabilities. Different from mtty: it has 256 bytes and not 255; what is
//! at its edge reads as nothing and not as foreign memory; the command register keeps
//! whether I/O decoding is on and `INTx` off, and the status register shows whether an
//! interrupt waits, as PCI 2.3 asks for.

use abi::pci::config;
use device::PciIds;

/// Bytes of config space.
pub(super) const SIZE: usize = config::SIZE as usize;

/// The ids that mtty shows: a WCH CH352, a card with two 16550s.
pub const IDS: PciIds = PciIds {
    vendor: 0x4348,
    device: 0x3253,
    subsystem_vendor: 0x4348,
    subsystem: 0x3253,
    class: 0x07_0002,
    revision: 0x10,
};

const COMMAND: usize = config::COMMAND as usize;
const STATUS: usize = config::STATUS as usize;
const BARS: usize = config::BAR0 as usize;

/// In the first byte of the command register.
const IO: u8 = 1 << 0;
/// In the second byte of the command register.
const INTX_DISABLE: u8 = 1 << 2;
/// In the first byte of the status register.
const INTERRUPT: u8 = 1 << 3;
/// In the second byte of the status register: answers at medium speed.
const MEDIUM: u8 = 1 << 1;
/// `INTA`, the only line of a function of its own.
const PIN: u8 = 1;

/// The vendor's own bytes, of which the last say what this is.
const VENDOR_BYTES: [(usize, &[u8]); 5] = [
    (0x40, &[0x23, 0x00, 0x00, 0x80]),
    (0x44, &[0x23]),
    (0x48, &[0x23]),
    (0x4c, &[0x23]),
    (0x60, b"PCI Serial/UART"),
];

/// Config space, with what may be written of it.
#[derive(Clone, Debug)]
pub(super) struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
}

impl ConfigSpace {
    /// As after a reset, with an I/O BAR of `bar` bytes, a power of two, for each port.
    pub(super) fn new(ports: usize, bar: u64) -> ConfigSpace {
        let mut space = ConfigSpace { bytes: [0; SIZE], writable: [0; SIZE] };
        space.put(config::VENDOR_ID.into(), &IDS.vendor.to_le_bytes());
        space.put(config::DEVICE_ID.into(), &IDS.device.to_le_bytes());
        space.put(COMMAND, &[IO]);
        space.allow(COMMAND, &[IO, INTX_DISABLE]);
        space.put(STATUS, &[0, MEDIUM]);
        space.put(config::REVISION_ID.into(), &[IDS.revision]);
        space.put(config::PROG_IF.into(), &IDS.class.to_le_bytes()[..3]);
        for port in 0..ports {
            let mask = !(bar as u32 - 1);
            space.put(BARS + 4 * port, &config::BAR_IO.to_le_bytes());
            space.allow(BARS + 4 * port, &mask.to_le_bytes());
        }
        let subsystem = usize::from(config::SUBSYSTEM_VENDOR_ID);
        space.put(subsystem, &IDS.subsystem_vendor.to_le_bytes());
        space.put(config::SUBSYSTEM_ID.into(), &IDS.subsystem.to_le_bytes());
        space.allow(config::INTERRUPT_LINE.into(), &[0xff]);
        space.put(config::INTERRUPT_PIN.into(), &[PIN]);
        for (at, bytes) in VENDOR_BYTES {
            space.put(at, bytes);
        }
        space
    }

    pub(super) fn read(&self, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.bytes[offset..offset + into.len()]);
    }

    pub(super) fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, new) in (offset..).zip(data) {
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | new & mask;
        }
    }

    /// Shows whether an interrupt waits, and says whether the line is up for it: not
    /// where the guest has turned it off.
    pub(super) fn line(&mut self, waits: bool) -> bool {
        self.bytes[STATUS] = if waits { INTERRUPT } else { 0 };
        waits && self.bytes[COMMAND + 1] & INTX_DISABLE == 0
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }
}
