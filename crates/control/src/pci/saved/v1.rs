//! Version 1 of what is saved: 96 bytes, little-endian. It has no sizes of BARs, no table
//! of MSI-X, no masks but those of MSI, and nothing of what waited. Never written again.

use abi::pci::capability::{CapabilityId, msi, msix, pcie, pm};
use abi::pci::config;
use port::{MsiLayout, PciBar, PciIds, PciLayout};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{Saved, Value, same};
use crate::pci::intx::Level;
use crate::pci::registers::Register;
use crate::pci::seen::{capability_of, msi_data, msi_mask};
use crate::pci::shadow::register_of;
use crate::pci::unfit::Unfit;
use crate::pci::vectors::{Entry, Heard};
use crate::pci::view::Message;

/// Where the capabilities lie that were saved, 0 for one that was not there.
#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Places {
    power: u8,
    msi: u8,
    msix: u8,
    pcie: u8,
}

/// Offsets are in the comments. What a device did not have is 0.
#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Layout {
    /// 0: 1.
    version: U16,
    /// 2.
    vendor: U16,
    /// 4.
    device: U16,
    /// 6.
    command: U16,
    /// 8.
    places: Places,
    /// 12.
    cache_line_size: u8,
    /// 13.
    latency_timer: u8,
    /// 14.
    interrupt_line: u8,
    /// 15: 0.
    reserved: u8,
    /// 16: as they read, with the bits that say what kind they are.
    bars: [U32; 6],
    /// 40.
    rom: U32,
    /// 44: power management control, without the status bit.
    power_control: U16,
    /// 46.
    msi_control: U16,
    /// 48.
    msi_address_low: U32,
    /// 52.
    msi_address_high: U32,
    /// 56.
    msi_mask: U32,
    /// 60.
    msi_data: U16,
    /// 62.
    msix_control: U16,
    /// 64: where the table lies.
    msix_table: U32,
    /// 68: where the pending bits lie.
    msix_pending: U32,
    /// 72: device control, without the bit that resets.
    pcie_control: U16,
    /// 74: device control 2, where there is one.
    pcie_control_2: U16,
    /// 76: 0.
    rest: [u8; 20],
}

const _: () = assert!(size_of::<Layout>() == 96);

/// Reads what was saved of a function like this one.
pub(super) fn read(
    bytes: &[u8],
    ids: &PciIds,
    layout: &PciLayout,
    carried: &[Register],
) -> Result<Saved, Unfit> {
    let old = Layout::read_from_bytes(bytes).map_err(|_| Unfit::Length(bytes.len()))?;
    let number = |n: u16| format!("{n:#06x}");
    same("the vendor", old.vendor.get(), ids.vendor, number)?;
    same("the device", old.device.get(), ids.device, number)?;
    old.check(layout)?;
    let registers = carried.iter().map(|one| Value {
        at: one.at,
        width: one.width,
        value: old.value(one.at, layout) & one.mask,
    });
    let heard = |vectors: u32| vec![Heard::default(); vectors as usize];
    let msix = layout.msix.map_or(0, |msix| msix.vectors);
    Ok(Saved {
        vendor: ids.vendor,
        device: ids.device,
        bars: layout.bars.clone(),
        msi: layout.msi,
        msix: layout.msix,
        registers: registers.collect(),
        // Who saved it knew of no masks.
        entries: vec![
            Entry { message: Message::default(), masked: false };
            msix as usize
        ],
        msi_heard: heard(layout.msi.map_or(0, |msi| msi.vectors)),
        msix_heard: heard(msix),
        line: Level::default(),
    })
}

impl Layout {
    fn check(&self, layout: &PciLayout) -> Result<(), Unfit> {
        let place = |id| capability_of(layout, id).unwrap_or(0);
        let hex = |at: u16| format!("{at:#x}");
        let Places { power, msi, msix, pcie } = self.places;
        for (id, saved) in [
            (CapabilityId::POWER_MANAGEMENT, power),
            (CapabilityId::MSI, msi),
            (CapabilityId::MSIX, msix),
            (CapabilityId::PCI_EXPRESS, pcie),
        ] {
            same("the place of a capability", saved.into(), place(id), hex)?;
        }
        for (n, saved) in self.bars.iter().enumerate() {
            let saved = saved.get();
            let bar = layout.bars.iter().find(|bar| usize::from(bar.number) == n);
            let upper = layout
                .bars
                .iter()
                .any(|bar| bar.kind.is_wide() && usize::from(bar.number) + 1 == n);
            let kind = match saved {
                io if io & config::BAR_IO != 0 => io & 1,
                memory => memory & 0xf,
            };
            let show = |kind: u32| format!("{kind:#x}");
            match bar {
                _ if upper => {}
                Some(bar) => same("the kind of a BAR", kind, bar.kind.0.into(), show)?,
                None => same("the kind of a BAR", saved, 0, show)?,
            }
        }
        if let Some(here) = layout.msi {
            let control = self.msi_control.get();
            let saved = MsiLayout {
                wide: control & msi::CONTROL_64_BIT != 0,
                maskable: control & msi::CONTROL_MASKABLE != 0,
                ..here
            };
            same("MSI", saved, here, |msi| msi.to_string())?;
        }
        if let Some(here) = layout.msix {
            let size = self.msix_control.get() & msix::CONTROL_TABLE_SIZE;
            let saved = port::MsixLayout {
                vectors: u32::from(size) + 1,
                table: self.msix_table.get(),
                pending: self.msix_pending.get(),
            };
            same("MSI-X", saved, here, |msix| msix.to_string())?;
        }
        Ok(())
    }

    /// What a register held; 0 for one that was not saved then.
    fn value(&self, at: u16, layout: &PciLayout) -> u32 {
        let start = |id| capability_of(layout, id);
        let is = |id, offset: u16| start(id).is_some_and(|start| start + offset == at);
        if (config::BAR0..config::BAR0 + 4 * config::BARS).contains(&at) {
            return self.bars[usize::from(at - config::BAR0) / 4].get();
        }
        let msi =
            layout.msi.unwrap_or(MsiLayout { vectors: 0, wide: false, maskable: false });
        match at {
            config::COMMAND => self.command.get().into(),
            config::CACHE_LINE_SIZE => self.cache_line_size.into(),
            config::LATENCY_TIMER => self.latency_timer.into(),
            config::INTERRUPT_LINE => self.interrupt_line.into(),
            _ if at == register_of(PciBar::ROM) => self.rom.get(),
            _ if is(CapabilityId::POWER_MANAGEMENT, pm::CONTROL) => {
                self.power_control.get().into()
            }
            _ if is(CapabilityId::PCI_EXPRESS, pcie::DEVICE_CONTROL) => {
                self.pcie_control.get().into()
            }
            _ if is(CapabilityId::PCI_EXPRESS, pcie::DEVICE_CONTROL_2) => {
                self.pcie_control_2.get().into()
            }
            _ if is(CapabilityId::MSIX, msix::CONTROL) => self.msix_control.get().into(),
            _ if is(CapabilityId::MSI, msi::CONTROL) => self.msi_control.get().into(),
            _ if is(CapabilityId::MSI, msi::ADDRESS_LOW) => self.msi_address_low.get(),
            _ if is(CapabilityId::MSI, msi_data(&msi)) => self.msi_data.get().into(),
            _ if is(CapabilityId::MSI, msi::ADDRESS_HIGH) => self.msi_address_high.get(),
            _ if is(CapabilityId::MSI, msi_mask(&msi)) => self.msi_mask.get(),
            _ => 0,
        }
    }
}
