//! The part of config space that is the VMM's: what the guest wrote there is kept here,
//! and is what it reads, whatever the device makes of it.
//!
//! Some devices keep less than a guest needs (the kernel's mtty sample has no command
//! register), some more than they should show (the host's own MSI). Everything that is
//! not kept here is the device's to answer.
//!
//! A guest is promised nothing that a migration would take away again, as far as it is
//! known here: no data of MSI beyond 16 bits, no other size of a BAR, no virtual functions,
//! no interrupt that nobody serves.

use std::ops::Range;

use abi::pci::capability::{self, CapabilityId, msi, msix};
use abi::pci::config::{self, Command};
use abi::pci::extended::{self, ExtendedId, resizable_bar, sr_iov};
use port::{BarKind, PciBar, PciExtended, PciLayout};

use super::seen::{Seen, capability_of, msi_data, msi_mask};
use super::view::{BarPlace, Message};

/// Bits of MSI's control register that no guest sees or sets: data of 32 bits.
const EXTENDED_DATA: u16 = msi::CONTROL_EXTENDED_DATA | msi::CONTROL_EXTENDED_DATA_ENABLE;

/// Bits of the command register that a guest may write.
pub(super) const COMMAND: u16 = 0x0547;

#[derive(Clone)]
pub(super) struct Shadow {
    /// As long as the device's config space.
    bytes: Vec<u8>,
    /// Which bits are read from `bytes`.
    kept: Vec<u8>,
    /// Which of those a guest can write.
    writable: Vec<u8>,
    /// Which bits are zero in whatever the device is told.
    withheld: Vec<u8>,
    /// What no guest writes.
    closed: Vec<Range<u16>>,
}

impl Shadow {
    /// What the device says, from where on it is kept.
    pub(super) fn new(seen: &Seen) -> Shadow {
        let length = seen.bytes.len();
        let mut shadow = Shadow {
            bytes: seen.bytes.clone(),
            kept: vec![0; length],
            writable: vec![0; length],
            withheld: vec![0; length],
            closed: seen
                .layout
                .extended
                .iter()
                .filter_map(|one| closed(seen, one))
                .collect(),
        };
        shadow.keep(config::COMMAND, &0xffff_u16.to_le_bytes(), &COMMAND.to_le_bytes());
        for at in [config::CACHE_LINE_SIZE, config::LATENCY_TIMER, config::INTERRUPT_LINE]
        {
            shadow.keep(at, &[0xff], &[0xff]);
        }
        for bar in 0..config::BARS {
            shadow.keep(config::BAR0 + 4 * bar, &[0xff; 4], &[0; 4]);
        }
        shadow.keep(config::ROM_ADDRESS, &[0xff; 4], &[0; 4]);
        let layout = &seen.layout;
        let mut absent: Vec<u16> = (0..config::BARS).collect();
        for bar in &layout.bars {
            shadow.keep_bar(bar);
            let halves = 1 + u16::from(bar.kind.is_wide());
            let first = u16::from(bar.number);
            absent.retain(|one| !(first..first + halves).contains(one));
        }
        for bar in absent {
            shadow.put_u32(config::BAR0 + 4 * bar, 0);
        }
        if !layout.bars.iter().any(|bar| bar.number == PciBar::ROM) {
            shadow.put_u32(config::ROM_ADDRESS, 0);
        }
        if !layout.intx {
            // A driver would wait for a line that nobody serves.
            shadow.keep(config::INTERRUPT_PIN, &[0xff], &[0]);
            shadow.put(config::INTERRUPT_PIN, &[0]);
        }
        if let Some(at) = seen.capability(CapabilityId::MSI) {
            shadow.keep_msi(at, layout);
        }
        if let Some(at) = seen.capability(CapabilityId::MSIX) {
            let writable = msix::CONTROL_ENABLE | msix::CONTROL_MASK_ALL;
            shadow.keep(at + msix::CONTROL, &[0xff; 2], &writable.to_le_bytes());
        }
        shadow
    }

    fn keep_bar(&mut self, bar: &PciBar) {
        let at = register_of(bar.number);
        let address = !(bar.size - 1);
        let low = match bar.number {
            PciBar::ROM => address as u32 | config::ROM_ENABLE,
            _ => address as u32 & !mask_of(bar.kind),
        };
        self.keep(at, &[0xff; 4], &low.to_le_bytes());
        if bar.kind.is_wide() {
            let high = (address >> 32) as u32;
            self.keep(at + 4, &[0xff; 4], &high.to_le_bytes());
        }
    }

    fn keep_msi(&mut self, at: u16, layout: &PciLayout) {
        self.keep(at + msi::CONTROL, &[0xff; 2], &[0; 2]);
        // What is not carried is not shown, nor turned on: data has 16 bits.
        let shown = self.u16(at + msi::CONTROL) & !EXTENDED_DATA;
        self.put(at + msi::CONTROL, &shown.to_le_bytes());
        self.withhold(at + msi::CONTROL, &EXTENDED_DATA.to_le_bytes());
        let Some(kind) = layout.msi else {
            // Without a vector that is served it cannot be turned on, at the device
            // neither, and nobody finds it: id 0 is that of no capability.
            let off = EXTENDED_DATA | msi::CONTROL_ENABLE;
            self.withhold(at + msi::CONTROL, &off.to_le_bytes());
            self.keep(at + capability::ID, &[0xff], &[0]);
            return self.put(at + capability::ID, &[0]);
        };
        let shift = msi::CONTROL_CAPABLE_SHIFT;
        let shown = self.u16(at + msi::CONTROL) & !(msi::CONTROL_VECTORS_MASK << shift);
        let capable = (kind.vectors.ilog2() as u16) << shift;
        self.put(at + msi::CONTROL, &(shown | capable).to_le_bytes());
        let in_use = msi::CONTROL_VECTORS_MASK << msi::CONTROL_IN_USE_SHIFT;
        let control = msi::CONTROL_ENABLE | in_use;
        self.keep(at + msi::CONTROL, &[0xff; 2], &control.to_le_bytes());
        self.keep(at + msi::ADDRESS_LOW, &[0xff; 4], &[0xfc, 0xff, 0xff, 0xff]);
        if kind.wide {
            self.keep(at + msi::ADDRESS_HIGH, &[0xff; 4], &[0xff; 4]);
        }
        let data = at + msi_data(&kind);
        self.keep(data, &[0xff; 4], &[0xff, 0xff, 0, 0]);
        self.put(data + 2, &[0; 2]);
        self.withhold(data + 2, &[0xff; 2]);
        if kind.maskable {
            let vectors = u32::MAX >> (32 - kind.vectors.clamp(1, 32));
            self.keep(at + msi_mask(&kind), &[0xff; 4], &vectors.to_le_bytes());
        }
    }

    fn keep(&mut self, at: u16, kept: &[u8], writable: &[u8]) {
        let at = usize::from(at);
        self.kept[at..at + kept.len()].copy_from_slice(kept);
        self.writable[at..at + writable.len()].copy_from_slice(writable);
    }

    fn withhold(&mut self, at: u16, bits: &[u8]) {
        let at = usize::from(at);
        self.withheld[at..at + bits.len()].copy_from_slice(bits);
    }

    /// Bytes of it.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether a guest's write there goes nowhere.
    pub(super) fn is_closed(&self, at: u16) -> bool {
        self.closed.iter().any(|range| range.contains(&at))
    }

    /// Whether all of an access is answered here.
    pub(super) fn answers(&self, at: u16, length: usize) -> bool {
        let at = usize::from(at);
        self.kept.get(at..at + length).is_some_and(|kept| kept.iter().all(|k| *k == 0xff))
    }

    /// Puts what is kept over what the device answered.
    pub(super) fn overlay(&self, at: u16, into: &mut [u8]) {
        let at = usize::from(at);
        let ours = self.bytes[at..].iter().zip(&self.kept[at..]);
        for (byte, (ours, kept)) in into.iter_mut().zip(ours) {
            *byte = *byte & !kept | ours & kept;
        }
    }

    /// What the guest writes, as far as it is kept.
    pub(super) fn write(&mut self, at: u16, from: &[u8]) {
        let start = usize::from(at);
        let ours = self.bytes[start..].iter_mut().zip(&self.writable[start..]);
        for (new, (ours, writable)) in from.iter().zip(ours) {
            *ours = *ours & !writable | new & writable;
        }
    }

    /// What the device is told of a guest's write.
    pub(super) fn told(&self, at: u16, from: &mut [u8]) {
        let withheld = &self.withheld[usize::from(at)..];
        from.iter_mut().zip(withheld).for_each(|(byte, bits)| *byte &= !bits);
    }

    fn put(&mut self, at: u16, bytes: &[u8]) {
        let at = usize::from(at);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_u32(&mut self, at: u16, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    pub(super) fn command(&self) -> Command {
        Command::from_bits_retain(self.u16(config::COMMAND))
    }

    /// Where each BAR is and whether it decodes, in a function that is awake or not.
    pub(super) fn places(&self, layout: &PciLayout, awake: bool) -> Vec<BarPlace> {
        layout.bars.iter().map(|bar| self.place(bar, awake)).collect()
    }

    fn place(&self, bar: &PciBar, awake: bool) -> BarPlace {
        let at = register_of(bar.number);
        let low = self.u32(at);
        let command = self.command();
        let (address, most, on) = if bar.number == PciBar::ROM {
            let on = low & config::ROM_ENABLE != 0 && command.contains(Command::MEMORY);
            (u64::from(low & config::ROM_ADDRESS_MASK), u64::from(u32::MAX), on)
        } else if bar.kind.is_io() {
            let address = u64::from(low & config::BAR_IO_MASK);
            (address, u64::from(u32::MAX), command.contains(Command::IO))
        } else {
            let low = u64::from(low & config::BAR_MEMORY_MASK);
            let wide = bar.kind.is_wide();
            let high = if wide { u64::from(self.u32(at + 4)) << 32 } else { 0 };
            let most = if wide { u64::MAX } else { u64::from(u32::MAX) };
            (low | high, most, command.contains(Command::MEMORY))
        };
        // The size is being asked for, or nothing was written yet: no place to decode.
        let last = address.checked_add(bar.size - 1);
        let decoded = on && awake && address != 0 && last.is_some_and(|last| last < most);
        BarPlace { bar: bar.number, address, size: bar.size, decoded }
    }

    /// Nothing sends messages any more.
    pub(super) fn messages_off(&mut self, layout: &PciLayout) {
        for (id, control, enable) in [
            (CapabilityId::MSI, msi::CONTROL, msi::CONTROL_ENABLE),
            (CapabilityId::MSIX, msix::CONTROL, msix::CONTROL_ENABLE),
        ] {
            if let Some(at) = capability_of(layout, id) {
                let off = self.u16(at + control) & !enable;
                self.put(at + control, &off.to_le_bytes());
            }
        }
    }

    /// How many vectors of MSI are on; `None` while it is off.
    pub(super) fn msi(&self, layout: &PciLayout) -> Option<u32> {
        let kind = layout.msi?;
        let control = self.u16(capability_of(layout, CapabilityId::MSI)? + msi::CONTROL);
        let in_use = control >> msi::CONTROL_IN_USE_SHIFT & msi::CONTROL_VECTORS_MASK;
        let on = control & msi::CONTROL_ENABLE != 0;
        on.then(|| (1 << in_use.min(5)).min(kind.vectors))
    }

    /// What MSI vector `number` of `on` sends.
    pub(super) fn msi_message(
        &self,
        layout: &PciLayout,
        number: u32,
        on: u32,
    ) -> Message {
        let (Some(kind), Some(at)) =
            (layout.msi, capability_of(layout, CapabilityId::MSI))
        else {
            return Message::default();
        };
        let low = u64::from(self.u32(at + msi::ADDRESS_LOW));
        let high = if kind.wide { self.u32(at + msi::ADDRESS_HIGH) } else { 0 };
        // The vectors are told apart by the lowest bits of the data (PCI 3.0, 6.8.1.6).
        let data = u32::from(self.u16(at + msi_data(&kind)));
        let bits = on.next_power_of_two() - 1;
        Message {
            address: low | u64::from(high) << 32,
            data: data & !bits | number & bits,
        }
    }

    /// The masked vectors of MSI, a bit each.
    pub(super) fn msi_masks(&self, layout: &PciLayout) -> u32 {
        match (layout.msi, capability_of(layout, CapabilityId::MSI)) {
            (Some(kind), Some(at)) if kind.maskable => self.u32(at + msi_mask(&kind)),
            _ => 0,
        }
    }

    /// Whether MSI-X is on, and whether all its vectors are masked.
    pub(super) fn msix(&self, layout: &PciLayout) -> (bool, bool) {
        let Some(at) = capability_of(layout, CapabilityId::MSIX) else {
            return (false, false);
        };
        let control = self.u16(at + msix::CONTROL);
        (control & msix::CONTROL_ENABLE != 0, control & msix::CONTROL_MASK_ALL != 0)
    }

    pub(super) fn u16(&self, at: u16) -> u16 {
        let at = usize::from(at);
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    pub(super) fn u32(&self, at: u16) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }
}

/// What a guest must not change, since it is not carried and other places follow from it:
/// the sizes of BARs, and virtual functions. Made of whole registers of 4 bytes.
fn closed(seen: &Seen, one: &PciExtended) -> Option<Range<u16>> {
    let size = match ExtendedId(one.id) {
        ExtendedId::RESIZABLE_BAR => {
            let control = seen.u32(one.at.saturating_add(resizable_bar::CONTROL));
            let count = control >> resizable_bar::CONTROL_COUNT_SHIFT
                & resizable_bar::CONTROL_COUNT_MASK;
            extended::HEAD_SIZE + resizable_bar::STRIDE * count.max(1) as u16
        }
        ExtendedId::SR_IOV => sr_iov::SIZE,
        _ => return None,
    };
    Some(one.at..one.at.saturating_add(size))
}

/// The bits of a BAR's lower register that are no address.
fn mask_of(kind: BarKind) -> u32 {
    if kind.is_io() { !config::BAR_IO_MASK } else { !config::BAR_MEMORY_MASK }
}

/// Where the register of a BAR lies, or that of the ROM.
pub(super) fn register_of(bar: u8) -> u16 {
    match bar {
        PciBar::ROM => config::ROM_ADDRESS,
        bar => config::BAR0 + 4 * u16::from(bar),
    }
}
