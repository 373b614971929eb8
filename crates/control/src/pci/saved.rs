//! What is saved of a config space: 96 bytes, little-endian, version 1.

use abi::pci::capability::{CapabilityId, msi, msix, pcie, pm};
use abi::pci::config;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Unfit, View};

const VERSION: u16 = 1;

/// Where the capabilities lie that are saved, 0 for one that is not there.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub(super) struct Places {
    power: u8,
    msi: u8,
    msix: u8,
    pcie: u8,
}

/// Offsets are in the comments. What a device does not have is 0.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub(super) struct Saved {
    /// 0: 1.
    version: U16,
    /// 2: the vendor, to tell devices apart.
    vendor: U16,
    /// 4: the device.
    device: U16,
    /// 6: all of it; it has no status bits.
    pub(super) command: U16,
    /// 8.
    places: Places,
    /// 12.
    pub(super) cache_line_size: u8,
    /// 13.
    pub(super) latency_timer: u8,
    /// 14.
    pub(super) interrupt_line: u8,
    /// 15: 0.
    reserved: u8,
    /// 16: as they read, with the bits that say what kind they are.
    pub(super) bars: [U32; 6],
    /// 40.
    pub(super) rom: U32,
    /// 44: power management control, without the status bit.
    pub(super) power_control: U16,
    /// 46.
    pub(super) msi_control: U16,
    /// 48.
    pub(super) msi_address_low: U32,
    /// 52.
    pub(super) msi_address_high: U32,
    /// 56.
    pub(super) msi_mask: U32,
    /// 60.
    pub(super) msi_data: U16,
    /// 62.
    pub(super) msix_control: U16,
    /// 64: where the table lies.
    msix_table: U32,
    /// 68: where the pending bits lie.
    msix_pba: U32,
    /// 72: device control, without the bit that resets.
    pub(super) pcie_control: U16,
    /// 74: device control 2, where there is one.
    pub(super) pcie_control_2: U16,
    /// 76: 0.
    rest: [u8; 20],
}

const _: () = assert!(size_of::<Saved>() == 96);

impl Saved {
    pub(super) fn new(view: &View) -> Saved {
        let place = |id| view.capability(id).map_or(0, |at| at as u8);
        let u16_in =
            |id, at: u16| view.capability(id).map_or(0, |start| view.u16(start + at));
        let u32_in =
            |id, at: u16| view.capability(id).map_or(0, |start| view.u32(start + at));
        let (power, pcie_id) =
            (CapabilityId::POWER_MANAGEMENT, CapabilityId::PCI_EXPRESS);
        let msi_control = u16_in(CapabilityId::MSI, msi::CONTROL);
        let when =
            |flag: u16, value: u32| if msi_control & flag == 0 { 0 } else { value };
        let mask = u32_in(CapabilityId::MSI, View::msi_mask(msi_control));
        let high = u32_in(CapabilityId::MSI, msi::ADDRESS_HIGH);
        let second = view.capability(pcie_id).filter(|at| view.pcie_version(*at) >= 2);
        let control = u16_in(pcie_id, pcie::DEVICE_CONTROL) & !pcie::DEVICE_CONTROL_FLR;
        Saved {
            version: VERSION.into(),
            vendor: view.u16(config::VENDOR_ID).into(),
            device: view.u16(config::DEVICE_ID).into(),
            command: view.u16(config::COMMAND).into(),
            places: Places {
                power: place(power),
                msi: place(CapabilityId::MSI),
                msix: place(CapabilityId::MSIX),
                pcie: place(pcie_id),
            },
            cache_line_size: view.u8(config::CACHE_LINE_SIZE),
            latency_timer: view.u8(config::LATENCY_TIMER),
            interrupt_line: view.u8(config::INTERRUPT_LINE),
            reserved: 0,
            bars: std::array::from_fn(|bar| view.u32(View::bar(bar)).into()),
            rom: view.u32(config::ROM_ADDRESS).into(),
            power_control: (u16_in(power, pm::CONTROL) & !pm::CONTROL_PME_STATUS).into(),
            msi_control: msi_control.into(),
            msi_address_low: u32_in(CapabilityId::MSI, msi::ADDRESS_LOW).into(),
            msi_address_high: when(msi::CONTROL_64_BIT, high).into(),
            msi_mask: when(msi::CONTROL_MASKABLE, mask).into(),
            msi_data: u16_in(CapabilityId::MSI, View::msi_data(msi_control)).into(),
            msix_control: u16_in(CapabilityId::MSIX, msix::CONTROL).into(),
            msix_table: u32_in(CapabilityId::MSIX, msix::TABLE).into(),
            msix_pba: u32_in(CapabilityId::MSIX, msix::PBA).into(),
            pcie_control: control.into(),
            pcie_control_2: second
                .map_or(0, |at| view.u16(at + pcie::DEVICE_CONTROL_2))
                .into(),
            rest: [0; 20],
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Saved, Unfit> {
        let version = bytes.first_chunk().map(|first| u16::from_le_bytes(*first));
        match version {
            Some(VERSION) => {}
            Some(other) => return Err(Unfit::Version(other)),
            None => return Err(Unfit::Length(bytes.len())),
        }
        Saved::read_from_bytes(bytes).map_err(|_| Unfit::Length(bytes.len()))
    }

    /// Whether this was saved on a device like the one in `view`: the same ids, the
    /// same kinds of BAR, the same capabilities in the same places.
    pub(super) fn check(&self, view: &View) -> Result<(), Unfit> {
        let here = Saved::new(view);
        let same = |what, saved: u32, here: u32| {
            if saved == here { Ok(()) } else { Err(Unfit::Another { what, saved, here }) }
        };
        same("the vendor", self.vendor.get().into(), here.vendor.get().into())?;
        same("the device", self.device.get().into(), here.device.get().into())?;
        let places = |places: Places| {
            u32::from_be_bytes([places.power, places.msi, places.msix, places.pcie])
        };
        same("the place of capabilities", places(self.places), places(here.places))?;
        let kinds = [&self.bars, &here.bars].map(kinds);
        for (saved, here) in kinds[0].iter().zip(&kinds[1]) {
            same("the kind of a BAR", *saved, *here)?;
        }
        let wide = u32::from(msi::CONTROL_64_BIT | msi::CONTROL_MASKABLE);
        let msi = |saved: &Saved| u32::from(saved.msi_control.get()) & wide;
        same("the kind of MSI", msi(self), msi(&here))?;
        let vectors = |saved: &Saved| {
            u32::from(saved.msix_control.get() & msix::CONTROL_TABLE_SIZE)
        };
        same("the number of MSI-X vectors", vectors(self), vectors(&here))?;
        same("the MSI-X table", self.msix_table.get(), here.msix_table.get())?;
        same("the place of MSI-X pending bits", self.msix_pba.get(), here.msix_pba.get())
    }
}

/// The bits of each BAR that say what kind it is; none for the upper half of a wide
/// one, which is all address.
fn kinds(bars: &[U32; 6]) -> [u32; 6] {
    let mut upper = false;
    bars.map(|bar| {
        let bar = bar.get();
        if std::mem::take(&mut upper) {
            0
        } else if bar & config::BAR_IO != 0 {
            bar & !config::BAR_IO_MASK
        } else {
            upper = bar & 0b110 == config::BAR_MEMORY_64;
            bar & !config::BAR_MEMORY_MASK
        }
    })
}
