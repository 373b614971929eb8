//! PCI config space: identity, BARs, and the power, MSI-X and PCIe capabilities.
//!
//! The VMM shows the guest its own view and carries that through a migration; this is
//! what the device itself holds. It decides four things only: whether the device is bus
//! master, whether it is in D0, whether it interrupts by MSI-X, and whether `INTx` is
//! off; and it shows whether `INTx` has something to tell.

use device::PciIds;

/// Bytes of config space, extended space included (which is empty).
pub(super) const SIZE: usize = 4096;

/// The ids of the accelerator. Vendor 0x1b36 is QEMU's for devices that exist nowhere
/// else; this device id is not given out by it.
pub const IDS: PciIds = PciIds {
    vendor: 0x1b36,
    device: 0x0acc,
    subsystem_vendor: 0x1b36,
    subsystem: 0x0001,
    class: 0x12_0000,
    revision: 1,
};

/// Where the power-management capability is.
pub const PM: usize = 0x40;
/// Where the MSI-X capability is.
pub const MSIX: usize = 0x50;
/// Where the PCIe capability is.
pub const PCIE: usize = 0x60;

const COMMAND: usize = 0x04;
const BUS_MASTER: u8 = 1 << 2;
/// In the second byte of the command register.
const INTX_DISABLE: u8 = 1 << 2;
const STATUS: usize = 0x06;
/// In the first byte of the status register.
const INTERRUPT: u8 = 1 << 3;
/// In the second byte of the MSI-X control register.
const MSIX_ENABLE: u8 = 1 << 7;
const BARS: usize = 0x10;
/// `INTA`, the only line of a function of its own.
const PIN: u8 = 1;

/// Config space, with what may be written of it.
#[derive(Clone)]
pub(super) struct ConfigSpace {
    bytes: Box<[u8; SIZE]>,
    writable: Box<[u8; SIZE]>,
}

impl ConfigSpace {
    /// As after a reset. Sizes are powers of two.
    pub(super) fn new(bar0: u64, bar2: u64, bar4: u64, vectors: u16) -> ConfigSpace {
        let mut space =
            ConfigSpace { bytes: Box::new([0; SIZE]), writable: Box::new([0; SIZE]) };
        space.put(0x00, &IDS.vendor.to_le_bytes());
        space.put(0x02, &IDS.device.to_le_bytes());
        // Memory decoding, bus master, parity response, SERR, INTx off.
        space.allow(COMMAND, &0x0546_u16.to_le_bytes());
        space.put(STATUS, &0x0010_u16.to_le_bytes());
        space.put(0x08, &[IDS.revision]);
        space.put(0x09, &IDS.class.to_le_bytes()[..3]);
        space.allow(0x0c, &[0xff]);
        space.bar(0, bar0, 0x0);
        // 64 bits wide and prefetchable; its upper half is BAR3.
        space.bar(2, bar2, 0xc);
        space.bar(4, bar4, 0x0);
        space.put(0x2c, &IDS.subsystem_vendor.to_le_bytes());
        space.put(0x2e, &IDS.subsystem.to_le_bytes());
        space.put(0x34, &[PM as u8]);
        space.allow(0x3c, &[0xff]);
        space.put(0x3d, &[PIN]);

        // Power management, version 3, D0 and D3hot without losing state.
        space.put(PM, &[0x01, MSIX as u8, 0x03, 0x00, 0x08, 0x00]);
        space.allow(PM + 4, &[0x03, 0x01]);
        // MSI-X: table and pending bits in BAR4. The guest's view of both is the VMM's.
        space.put(MSIX, &[0x11, PCIE as u8]);
        space.put(MSIX + 2, &(vectors - 1).to_le_bytes());
        space.allow(MSIX + 2, &0xc000_u16.to_le_bytes());
        space.put(MSIX + 4, &4_u32.to_le_bytes());
        space.put(MSIX + 8, &0x0804_u32.to_le_bytes());
        // PCIe endpoint, version 2, no function-level reset.
        space.put(PCIE, &[0x10, 0x00, 0x02, 0x00]);
        space.put(PCIE + 4, &0x0000_8001_u32.to_le_bytes());
        space.allow(PCIE + 8, &0x7fff_u16.to_le_bytes());
        space.put(PCIE + 8, &0x2810_u16.to_le_bytes());
        space.put(PCIE + 12, &0x0000_0011_u32.to_le_bytes());
        space.allow(PCIE + 16, &0x0043_u16.to_le_bytes());
        space.put(PCIE + 18, &0x0011_u16.to_le_bytes());
        space
    }

    pub(super) fn read(&self, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.bytes[offset..offset + into.len()]);
    }

    pub(super) fn write(&mut self, offset: usize, data: &[u8]) {
        let end = offset + data.len();
        let writable = &self.writable[offset..end];
        for ((byte, mask), new) in
            self.bytes[offset..end].iter_mut().zip(writable).zip(data)
        {
            *byte = (*byte & !mask) | (new & mask);
        }
    }

    /// Whether the device may do DMA: bus master, and in D0.
    pub(super) fn may_master(&self) -> bool {
        self.bytes[COMMAND] & BUS_MASTER != 0 && self.bytes[PM + 4] & 3 == 0
    }

    /// Whether interrupts go by MSI-X.
    pub(super) fn msix_enabled(&self) -> bool {
        self.bytes[MSIX + 3] & MSIX_ENABLE != 0
    }

    /// Shows whether an interrupt waits, and says whether the line is up for it: not
    /// where the guest has turned it off, or uses MSI-X instead.
    pub(super) fn line(&mut self, waits: bool) -> bool {
        self.bytes[STATUS] &= !INTERRUPT;
        if waits {
            self.bytes[STATUS] |= INTERRUPT;
        }
        waits && self.bytes[COMMAND + 1] & INTX_DISABLE == 0 && !self.msix_enabled()
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    /// A BAR: its type bits are fixed, and address bits below its size read 0, which is
    /// how a guest finds its size.
    fn bar(&mut self, index: usize, size: u64, kind: u8) {
        let at = BARS + 4 * index;
        let mask = (!(size - 1)).to_le_bytes();
        let wide = kind & 4 != 0;
        self.allow(at, &mask[..if wide { 8 } else { 4 }]);
        self.put(at, &[kind]);
    }
}

#[cfg(test)]
mod tests {
    use super::{BARS, COMMAND, ConfigSpace, IDS, MSIX, PM, SIZE, STATUS};

    fn space() -> ConfigSpace {
        ConfigSpace::new(4096, 16 << 20, 4096, 8)
    }

    fn u32_at(space: &ConfigSpace, at: usize) -> u32 {
        let mut bytes = [0; 4];
        space.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn a_guest_that_sizes_bars_finds_them() {
        let mut space = space();
        for (bar, expected) in [
            (0, 0xffff_f000),
            (1, 0),
            (2, 0xff00_000c),
            (3, 0xffff_ffff),
            (4, 0xffff_f000),
            (5, 0),
        ] {
            space.write(BARS + 4 * bar, &[0xff; 4]);
            assert_eq!(u32_at(&space, BARS + 4 * bar), expected, "BAR{bar}");
        }
    }

    #[test]
    fn writes_all_over_it_leave_what_is_fixed() {
        let mut space = space();
        let before = space.clone();
        space.write(0, &[0xff; SIZE]);
        assert_eq!(u32_at(&space, 0), 0x0acc_1b36);
        for at in [0x00, 0x08, 0x2c, 0x34, PM, MSIX + 4, 0x60, 0x100] {
            assert_eq!(u32_at(&space, at), u32_at(&before, at), "{at:#x}");
        }
        assert_eq!(u32_at(&space, MSIX) >> 16, 0xc007);
        assert_eq!(IDS.class, u32_at(&space, 8) >> 8);
    }

    #[test]
    fn a_line_that_is_off_or_replaced_by_msix_stays_down() {
        let mut space = space();
        assert!(!space.line(false));
        assert!(space.line(true));
        assert_eq!(u32_at(&space, COMMAND) >> 16, 0x0018);
        // What waits is shown even where the line is down for it.
        space.write(COMMAND, &0x0406_u16.to_le_bytes());
        assert!(!space.line(true));
        assert_eq!(u32_at(&space, COMMAND), 0x0018_0406);
        space.write(COMMAND, &0x0006_u16.to_le_bytes());
        space.write(MSIX + 2, &0x8000_u16.to_le_bytes());
        assert!(space.msix_enabled() && !space.line(true));
        assert!(!space.line(false));
        assert_eq!(u32_at(&space, COMMAND), 0x0010_0006);
        // Nobody else clears or sets it.
        space.write(STATUS, &[0xff; 2]);
        assert_eq!(u32_at(&space, COMMAND) >> 16, 0x0010);
    }

    #[test]
    fn a_device_that_is_not_bus_master_or_sleeps_does_no_dma() {
        let mut space = space();
        assert!(!space.may_master());
        space.write(COMMAND, &[0x06]);
        assert!(space.may_master());
        space.write(PM + 4, &[3]);
        assert!(!space.may_master());
    }
}
