//! PCI config space: identity, BARs, capabilities, and two of the extended ones.
//!
//! ```text
//!   0x040 power management    0x0a0 MSI, unless it is built without
//!   0x050 MSI-X               0x100 advanced error reporting
//!   0x060 PCIe                0x148 latency tolerance reporting
//! ```
//!
//! The VMM shows the guest its own view and carries that through a migration; this is
//! what the device itself holds. It decides four things only: whether the device is bus
//! master, whether it is in D0, by which kind of interrupt it tells of something, and
//! whether `INTx` is off. Masks of vectors and the addresses of messages are kept and
//! mean nothing here, as they are the VMM's.
//!
//! It shows whether `INTx` has something to tell, and whether DMA led nowhere: in three
//! registers whose bits are cleared by writing ones, which nobody can put back. So they
//! do not travel.

use super::{Bars, Msi, Parameters, REGISTER_BYTES, TABLE_BYTES};
use abi::pci::capability::CapabilityId;
use device::PciIds;

/// Bytes of config space, extended space included.
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
/// Where the MSI capability is, in a device that has it.
pub const MSI: usize = 0xa0;
/// Where the extended capability of advanced error reporting is.
pub const AER: usize = 0x100;
/// Where the extended capability of latency tolerance reporting is.
pub const LTR: usize = 0x148;

const COMMAND: usize = 0x04;
const BUS_MASTER: u8 = 1 << 2;
/// In the second byte of the command register.
const INTX_DISABLE: u8 = 1 << 2;
const STATUS: usize = 0x06;
/// In the first byte of the status register.
const INTERRUPT: u8 = 1 << 3;
/// In the second byte of the status register: nobody answered the device's DMA.
const MASTER_ABORT: u8 = 1 << 5;
/// In the first byte of PCIe's device status: an error that is not fatal.
const NON_FATAL: u8 = 1 << 1;
/// In the second byte of AER's uncorrectable status: a completion timed out.
const TIMEOUT: u8 = 1 << 6;
/// In the second byte of the MSI-X control register.
const MSIX_ENABLE: u8 = 1 << 7;
/// In the first byte of the MSI control register.
const MSI_ENABLE: u8 = 1 << 0;
const BARS: usize = 0x10;
/// `INTA`, the only line of a function of its own.
const PIN: u8 = 1;

/// By what the device tells of something: what the guest has turned on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kind {
    /// No messages: by the line, unless that is off.
    #[default]
    Line,
    /// MSI, with so many vectors.
    Msi(u32),
    /// MSI-X, before everything else.
    Msix,
}

/// Config space, with what may be written of it.
#[derive(Clone)]
pub(super) struct ConfigSpace {
    bytes: Box<[u8; SIZE]>,
    writable: Box<[u8; SIZE]>,
    /// What is cleared by writing ones.
    clears: Box<[u8; SIZE]>,
    has_msi: bool,
}

impl ConfigSpace {
    /// As after a reset.
    pub(super) fn new(parameters: &Parameters) -> ConfigSpace {
        let mut space = ConfigSpace {
            bytes: Box::new([0; SIZE]),
            writable: Box::new([0; SIZE]),
            clears: Box::new([0; SIZE]),
            has_msi: parameters.msi.is_some(),
        };
        space.put(0x00, &IDS.vendor.to_le_bytes());
        space.put(0x02, &IDS.device.to_le_bytes());
        // Memory decoding, bus master, parity response, SERR, INTx off.
        space.allow(COMMAND, &0x0546_u16.to_le_bytes());
        space.put(STATUS, &0x0010_u16.to_le_bytes());
        space.clear(STATUS, &0xf900_u16.to_le_bytes());
        space.put(0x08, &[IDS.revision]);
        space.put(0x09, &IDS.class.to_le_bytes()[..3]);
        space.allow(0x0c, &[0xff]);
        space.put(0x2c, &IDS.subsystem_vendor.to_le_bytes());
        space.put(0x2e, &IDS.subsystem.to_le_bytes());
        space.put(0x34, &[PM as u8]);
        space.allow(0x3c, &[0xff]);
        space.put(0x3d, &[PIN]);
        let Bars { registers, memory, table } = parameters.bars.places();
        space.bar(registers, REGISTER_BYTES, 0x0);
        // 64 bits wide and prefetchable; its upper half is the next BAR.
        space.bar(memory, parameters.memory_bytes, 0xc);
        space.bar(table, TABLE_BYTES, 0x0);
        space.power_management();
        space.msix(parameters.vectors, table);
        space.pcie();
        if let Some(msi) = parameters.msi {
            space.msi(msi, parameters.msi_vectors());
        }
        space.extended();
        space
    }

    /// Version 3, D0 and D3hot without losing state.
    fn power_management(&mut self) {
        self.capability(PM, CapabilityId::POWER_MANAGEMENT, MSIX);
        self.put(PM + 2, &[0x03, 0x00, 0x08, 0x00]);
        self.allow(PM + 4, &[0x03, 0x01]);
    }

    /// Table and pending bits lie in a BAR. The guest's view of both is the VMM's.
    fn msix(&mut self, vectors: u32, table: u32) {
        self.capability(MSIX, CapabilityId::MSIX, PCIE);
        self.put(MSIX + 2, &(vectors as u16 - 1).to_le_bytes());
        self.allow(MSIX + 2, &0xc000_u16.to_le_bytes());
        self.put(MSIX + 4, &table.to_le_bytes());
        self.put(MSIX + 8, &(0x0800 | table).to_le_bytes());
    }

    /// An endpoint, version 2, no function-level reset; latency reports.
    fn pcie(&mut self) {
        self.capability(
            PCIE,
            CapabilityId::PCI_EXPRESS,
            if self.has_msi { MSI } else { 0 },
        );
        self.put(PCIE + 2, &[0x02, 0x00]);
        self.put(PCIE + 4, &0x0000_8001_u32.to_le_bytes());
        self.put(PCIE + 8, &0x2810_u16.to_le_bytes());
        self.allow(PCIE + 8, &0x7fff_u16.to_le_bytes());
        self.clear(PCIE + 10, &0x000f_u16.to_le_bytes());
        self.put(PCIE + 12, &0x0000_0011_u32.to_le_bytes());
        self.allow(PCIE + 16, &0x0043_u16.to_le_bytes());
        self.put(PCIE + 18, &0x0011_u16.to_le_bytes());
        // Completion timeouts of range A, or none; latency tolerance reports.
        self.put(PCIE + 0x24, &0x0000_0811_u32.to_le_bytes());
        self.allow(PCIE + 0x28, &0x041f_u16.to_le_bytes());
    }

    /// Vectors are a power of two up to 32.
    fn msi(&mut self, msi: Msi, vectors: u32) {
        self.capability(MSI, CapabilityId::MSI, 0);
        let control = (vectors.ilog2() << 1) as u16
            | u16::from(msi.wide) << 7
            | u16::from(msi.masks) << 8;
        self.put(MSI + 2, &control.to_le_bytes());
        // On, and how many vectors the guest has room for.
        self.allow(MSI + 2, &0x0071_u16.to_le_bytes());
        self.allow(MSI + 4, &0xffff_fffc_u32.to_le_bytes());
        if msi.wide {
            self.allow(MSI + 8, &[0xff; 4]);
        }
        let data = if msi.wide { MSI + 12 } else { MSI + 8 };
        self.allow(data, &[0xff; 2]);
        if msi.masks {
            let mask = u32::MAX >> (32 - vectors);
            self.allow(data + 4, &mask.to_le_bytes());
        }
    }

    /// Error reporting, whose status is cleared by ones, and latency reporting.
    fn extended(&mut self) {
        // Version 2.
        self.put(AER, &(0x0002_0001 | (LTR as u32) << 20).to_le_bytes());
        self.clear(AER + 0x04, &0x005f_f030_u32.to_le_bytes());
        self.put(AER + 0x08, &0x0040_0000_u32.to_le_bytes());
        self.allow(AER + 0x08, &0x005f_f030_u32.to_le_bytes());
        self.put(AER + 0x0c, &0x0046_2030_u32.to_le_bytes());
        self.allow(AER + 0x0c, &0x005f_f030_u32.to_le_bytes());
        self.clear(AER + 0x10, &0x0000_71c1_u32.to_le_bytes());
        self.put(AER + 0x14, &0x0000_6000_u32.to_le_bytes());
        self.allow(AER + 0x14, &0x0000_71c1_u32.to_le_bytes());
        // Checksums end to end can be made and checked.
        self.put(AER + 0x18, &0x0000_00a0_u32.to_le_bytes());
        self.allow(AER + 0x18, &0x0000_0140_u32.to_le_bytes());
        self.put(LTR, &0x0001_0018_u32.to_le_bytes());
        // Snooped and not: value and scale of each.
        self.allow(LTR + 4, &0x1fff_1fff_u32.to_le_bytes());
    }

    pub(super) fn read(&self, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.bytes[offset..offset + into.len()]);
    }

    pub(super) fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, new) in (offset..).zip(data) {
            let (mask, clears) = (self.writable[at], self.clears[at] & new);
            self.bytes[at] = ((self.bytes[at] & !mask) | (new & mask)) & !clears;
        }
    }

    /// Whether the device may do DMA: bus master, and in D0.
    pub(super) fn may_master(&self) -> bool {
        self.bytes[COMMAND] & BUS_MASTER != 0 && self.bytes[PM + 4] & 3 == 0
    }

    /// What the guest has turned on: MSI-X before MSI before the line.
    pub(super) fn interrupts(&self) -> Kind {
        let msi = self.bytes[MSI + 2];
        if self.bytes[MSIX + 3] & MSIX_ENABLE != 0 {
            Kind::Msix
        } else if self.has_msi && msi & MSI_ENABLE != 0 {
            // More than there are is a number that no guest may write.
            let (can, may) = (msi >> 1 & 7, msi >> 4 & 7);
            Kind::Msi(1 << can.min(may))
        } else {
            Kind::Line
        }
    }

    /// Shows whether an interrupt waits, and says whether the line is up for it: not
    /// where the guest has turned it off, or uses messages instead.
    pub(super) fn line(&mut self, waits: bool) -> bool {
        self.bytes[STATUS] &= !INTERRUPT;
        if waits {
            self.bytes[STATUS] |= INTERRUPT;
        }
        waits
            && self.bytes[COMMAND + 1] & INTX_DISABLE == 0
            && self.interrupts() == Kind::Line
    }

    /// Shows that nobody answered the device's DMA.
    pub(super) fn dma_failed(&mut self) {
        self.bytes[STATUS + 1] |= MASTER_ABORT;
        self.bytes[PCIE + 10] |= NON_FATAL;
        self.bytes[AER + 5] |= TIMEOUT;
    }

    fn capability(&mut self, at: usize, id: CapabilityId, next: usize) {
        self.put(at, &[id.0, next as u8]);
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    fn clear(&mut self, at: usize, mask: &[u8]) {
        self.clears[at..at + mask.len()].copy_from_slice(mask);
    }

    /// A BAR: its type bits are fixed, and address bits below its size read 0, which is
    /// how a guest finds its size.
    fn bar(&mut self, index: u32, size: u64, kind: u8) {
        let at = BARS + 4 * index as usize;
        let mask = (!(size - 1)).to_le_bytes();
        let wide = kind & 4 != 0;
        self.allow(at, &mask[..if wide { 8 } else { 4 }]);
        self.put(at, &[kind]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BarOrder, Msi as Kinds, Parameters};
    use super::{
        AER, BARS, COMMAND, ConfigSpace, IDS, Kind, LTR, MSI, MSIX, PCIE, PM, SIZE,
        STATUS,
    };

    fn space() -> ConfigSpace {
        ConfigSpace::new(&Parameters::default())
    }

    fn u32_at(space: &ConfigSpace, at: usize) -> u32 {
        let mut bytes = [0; 4];
        space.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn a_guest_that_sizes_bars_finds_them() {
        for (bars, expected) in [
            (
                BarOrder::RegistersFirst,
                [0xffff_f000, 0, 0xff00_000c, 0xffff_ffff, 0xffff_f000, 0],
            ),
            (
                BarOrder::MemoryFirst,
                [0xff00_000c, 0xffff_ffff, 0xffff_f000, 0, 0xffff_f000, 0],
            ),
        ] {
            let mut space =
                ConfigSpace::new(&Parameters { bars, ..Parameters::default() });
            for (bar, expected) in expected.into_iter().enumerate() {
                space.write(BARS + 4 * bar, &[0xff; 4]);
                assert_eq!(u32_at(&space, BARS + 4 * bar), expected, "{bars:?} BAR{bar}");
            }
        }
    }

    #[test]
    fn writes_all_over_it_leave_what_is_fixed() {
        let mut space = space();
        let before = space.clone();
        space.write(0, &[0xff; SIZE]);
        assert_eq!(u32_at(&space, 0), 0x0acc_1b36);
        for at in [
            0x00,
            0x08,
            0x2c,
            0x34,
            PM,
            MSIX + 4,
            PCIE,
            PCIE + 0x24,
            MSI + 20,
            AER,
            AER + 4,
            AER + 16,
            AER + 0x1c,
            LTR,
            0x150,
            SIZE - 4,
        ] {
            assert_eq!(u32_at(&space, at), u32_at(&before, at), "{at:#x}");
        }
        assert_eq!(u32_at(&space, MSIX) >> 16, 0xc007);
        assert_eq!(u32_at(&space, MSI) >> 16, 0x01f7);
        assert_eq!(u32_at(&space, MSI + 16), 0xff);
        assert_eq!(u32_at(&space, PCIE + 8) & 0xffff, 0x7fff);
        assert_eq!(u32_at(&space, LTR + 4), 0x1fff_1fff);
        assert_eq!(IDS.class, u32_at(&space, 8) >> 8);
    }

    /// As a guest and a VMM walk it: each entry once, in its place, then the end.
    #[test]
    fn the_lists_of_capabilities_end_and_have_everything() {
        for (msi, ids) in [
            (Parameters::default().msi, vec![0x01, 0x11, 0x10, 0x05]),
            (None, vec![0x01, 0x11, 0x10]),
        ] {
            let space = ConfigSpace::new(&Parameters { msi, ..Parameters::default() });
            let (mut at, mut found) = (u32_at(&space, 0x34) & 0xff, Vec::new());
            while at != 0 && found.len() < 16 {
                let entry = u32_at(&space, at as usize);
                found.push(entry & 0xff);
                at = entry >> 8 & 0xff;
            }
            assert_eq!(found, ids);
            let (mut at, mut found) = (AER, Vec::new());
            while at != 0 && found.len() < 16 {
                let entry = u32_at(&space, at);
                found.push(entry & 0xffff);
                at = (entry >> 20) as usize;
            }
            assert_eq!(found, [0x0001, 0x0018]);
        }
    }

    #[test]
    fn every_kind_of_msi_has_its_registers_where_the_standard_has_them() {
        for (wide, masks, control, data, mask) in [
            (false, false, 0x0006, 8, None),
            (false, true, 0x0106, 8, Some(12)),
            (true, false, 0x0086, 12, None),
            (true, true, 0x0186, 12, Some(16)),
        ] {
            let msi = Some(Kinds { wide, masks });
            let mut space =
                ConfigSpace::new(&Parameters { msi, ..Parameters::default() });
            assert_eq!(u32_at(&space, MSI) >> 16, control);
            space.write(MSI + 2, &[0xff; 22]);
            assert_eq!(u32_at(&space, MSI + 4), 0xffff_fffc);
            assert_eq!(u32_at(&space, MSI + data), 0xffff, "{msi:?}");
            if wide {
                assert_eq!(u32_at(&space, MSI + 8), u32::MAX);
            }
            if let Some(mask) = mask {
                assert_eq!(u32_at(&space, MSI + mask), 0xff, "{msi:?}");
            }
            let end = mask.map_or(data + 4, |mask| mask + 4);
            assert_eq!(u32_at(&space, MSI + end), 0, "{msi:?}: pending, or nothing");
        }
    }

    #[test]
    fn messages_are_msix_before_msi_and_no_more_than_the_guest_has_room_for() {
        let mut space = space();
        assert_eq!(space.interrupts(), Kind::Line);
        for (room, vectors) in [(0, 1), (1, 2), (2, 4), (3, 8), (4, 8), (7, 8)] {
            space.write(MSI + 2, &[room << 4 | 1]);
            assert_eq!(space.interrupts(), Kind::Msi(vectors));
        }
        assert!(!space.line(true));
        space.write(MSIX + 2, &0x8000_u16.to_le_bytes());
        assert_eq!(space.interrupts(), Kind::Msix);
        space.write(MSI + 2, &[0]);
        space.write(MSIX + 2, &[0, 0]);
        assert!(space.line(true));
        // A device of three vectors asks for four; one without MSI has none.
        for (vectors, msi, kind) in [
            (3, Parameters::default().msi, Kind::Msi(4)),
            (1, Parameters::default().msi, Kind::Msi(1)),
            (8, None, Kind::Line),
        ] {
            let parameters = Parameters { vectors, msi, ..Parameters::default() };
            let mut space = ConfigSpace::new(&parameters);
            space.write(MSI + 2, &[0x71]);
            assert_eq!(space.interrupts(), kind);
        }
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
        assert!(space.interrupts() == Kind::Msix && !space.line(true));
        assert!(!space.line(false));
        assert_eq!(u32_at(&space, COMMAND), 0x0010_0006);
        // Nobody else clears or sets it.
        space.write(STATUS, &[0xff; 2]);
        assert_eq!(u32_at(&space, COMMAND) >> 16, 0x0010);
    }

    #[test]
    fn an_error_stays_until_its_bit_is_written_and_nothing_else_clears_it() {
        let mut space = space();
        space.dma_failed();
        let shown = |space: &ConfigSpace| {
            [STATUS - 2, PCIE + 8, AER + 4].map(|at| u32_at(space, at))
        };
        let failed = [0x2010_0000, 0x0002_2810, 0x4000];
        assert_eq!(shown(&space), failed);
        // Zeros, and the other bits.
        space.write(STATUS, &0xdfff_u16.to_le_bytes());
        space.write(PCIE + 10, &0xfffd_u16.to_le_bytes());
        space.write(AER + 4, &0xffff_bfff_u32.to_le_bytes());
        assert_eq!(shown(&space), failed);
        space.write(STATUS, &0x2000_u16.to_le_bytes());
        space.write(PCIE + 10, &0x0002_u16.to_le_bytes());
        space.write(AER + 4, &0x4000_u32.to_le_bytes());
        assert_eq!(shown(&space), [0x0010_0000, 0x2810, 0]);
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
