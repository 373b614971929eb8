//! How a function interrupts the guest, and the windows in which it must not.
//!
//! ```text
//!   MSI-X   [vector 0][vector 1][vector 2]   masked one by one, in the table in a BAR
//!           [ all of them                ]   and together, in config space
//!   MSI     [vector 0][vector 1][vector 2]   one by one, where the device can
//!   INTx    [ the line                   ]   between a handler and its end of interrupt
//! ```
//!
//! Each of these is masked for a while and then for a while not, by the guest's timer; so
//! wherever the guest is stopped some are masked, and something waits for some of these.
//! The guest checks what it can see by itself: nothing comes through a mask, and where the
//! device has sent something meanwhile, something comes right after it.

use abi::pci::capability::{CapabilityId, msi, msix};
use abi::pci::config;
use anyhow::{Context, Result, bail};
use control::pci::FunctionError;
use serde::{Deserialize, Serialize};

use super::account::{Account, Asked};
use super::{Boot, Pci, capability, halves, read_u8, read_u16, read_u32};
use crate::guest::board::Board;
use crate::guest::bus::Bus;
use crate::guest::controller::VECTORS;
use crate::guest::digests::Own;
use crate::guest::options::InterruptKind;
use crate::guest::page::mix;

/// The shortest and the longest time that a vector is masked, in nanoseconds.
const CLOSED: (u64, u64) = (1_000_000, 9_000_000);
/// The same for the time between.
const OPEN: (u64, u64) = (2_000_000, 14_000_000);
/// A function is masked as a whole less often: between the two, in nanoseconds.
const ALL_OPEN: (u64, u64) = (20_000_000, 60_000_000);

/// In the control register of MSI: how many messages it has, as a power of two.
const MSI_MESSAGES: u16 = 1;
/// In the control register of MSI: how many it may send, as a power of two.
const MSI_ENABLED: u16 = 4;

/// How a function interrupts, and what of that is masked now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::guest) struct Vectors {
    kind: InterruptKind,
    /// Where the capability is, or 0 for a line.
    capability: u16,
    /// Where vectors are masked one by one.
    masks: Masks,
    pub(super) each: Vec<Vector>,
    /// The function as a whole.
    all: Window,
    /// How often something was masked.
    closed: u64,
}

/// Where a vector is masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Masks {
    /// Nowhere.
    Nowhere,
    /// In a register of config space, which has a bit for each.
    Config(u16),
    /// In the table of MSI-X.
    Table { bar: u8, offset: u32 },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Vector {
    window: Window,
    /// When it was masked and something came.
    pub(super) account: Account,
    /// The device has sent by it while it was masked, and the guest has heard nothing since.
    pub(super) owed: bool,
}

/// Something is masked, or is not, until then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Window {
    closed: bool,
    until: u64,
}

/// What a vCPU has heard of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::guest) enum Came {
    /// Nothing.
    Nothing,
    /// Messages, by vector.
    Messages([u64; VECTORS]),
    /// Its line is up.
    Line,
}

/// How a driver asks its device what it has sent by a vector, where that can be asked.
pub(in crate::guest) type Sent<'a> =
    &'a dyn Fn(&Pci, usize) -> Result<Option<u64>, FunctionError>;

impl Default for Vectors {
    fn default() -> Vectors {
        Vectors {
            kind: InterruptKind::Intx,
            capability: 0,
            masks: Masks::Nowhere,
            each: Vec::new(),
            all: Window::default(),
            closed: 0,
        }
    }
}

/// What a function interrupts by: what was asked for, or the best that it has.
pub(super) fn choose(
    bus: &Bus,
    slot: usize,
    wanted: Option<InterruptKind>,
) -> Result<InterruptKind> {
    let mut has = Vec::new();
    // In the order in which they are wanted where nobody wants any.
    if capability(bus, slot, CapabilityId::MSIX)?.is_some() {
        has.push(InterruptKind::Msix);
    }
    if read_u8(bus, slot, config::INTERRUPT_PIN)? != 0 {
        has.push(InterruptKind::Intx);
    }
    if capability(bus, slot, CapabilityId::MSI)?.is_some() {
        has.push(InterruptKind::Msi);
    }
    let Some(best) = has.first() else { bail!("it has no way to interrupt") };
    match wanted {
        None => Ok(*best),
        Some(wanted) if has.contains(&wanted) => Ok(wanted),
        Some(wanted) => {
            let has: Vec<String> = has.iter().map(InterruptKind::to_string).collect();
            bail!(
                "it does not interrupt by {wanted}: give --interrupts {}, or leave it out \
                 for the best that each device has",
                has.join(" or ")
            )
        }
    }
}

/// Programs a function that decodes its BARs.
pub(super) fn program(
    boot: &Boot<'_>,
    pci: &Pci,
    kind: InterruptKind,
) -> Result<Vectors> {
    let (bus, slot) = (&boot.board.bus, boot.slot);
    let known = "invariant: it was chosen, so it is there";
    match kind {
        InterruptKind::Intx => {
            let each = vec![Vector::default(); boot.vectors];
            Ok(Vectors { each, ..Vectors::default() })
        }
        InterruptKind::Msi => {
            let at = capability(bus, slot, CapabilityId::MSI)?.context(known)?;
            program_msi(boot, at).context("program MSI")
        }
        InterruptKind::Msix => {
            let at = capability(bus, slot, CapabilityId::MSIX)?.context(known)?;
            program_msix(boot, pci, at).context("program MSI-X")
        }
    }
}

fn program_msi(boot: &Boot<'_>, at: u16) -> Result<Vectors> {
    let (bus, slot) = (&boot.board.bus, boot.slot);
    let control = read_u16(bus, slot, at + msi::CONTROL)?;
    let wide = control & msi::CONTROL_64_BIT != 0;
    let maskable = control & msi::CONTROL_MASKABLE != 0;
    let wanted = boot.vectors.next_power_of_two().trailing_zeros() as u16;
    let enabled = wanted.min(control >> MSI_MESSAGES & 7);
    let vectors = boot.vectors.min(1 << enabled);
    let message = boot.board.program(slot, vectors);
    let [low, high] = halves(message.address);
    bus.config_write(slot, at + msi::ADDRESS_LOW, &low.to_le_bytes())?;
    let data = if wide { msi::DATA_64 } else { msi::DATA_32 };
    if wide {
        bus.config_write(slot, at + msi::ADDRESS_HIGH, &high.to_le_bytes())?;
    }
    bus.config_write(slot, at + data, &(message.data as u16).to_le_bytes())?;
    // Two bytes behind the data, which has a reserved neighbour.
    let mask = at + data + 4;
    if maskable {
        bus.config_write(slot, mask, &0_u32.to_le_bytes())?;
    }
    let control = control & !(7 << MSI_ENABLED) | enabled << MSI_ENABLED;
    let control = control | msi::CONTROL_ENABLE;
    bus.config_write(slot, at + msi::CONTROL, &control.to_le_bytes())?;
    Ok(Vectors {
        kind: InterruptKind::Msi,
        capability: at,
        masks: if maskable { Masks::Config(mask) } else { Masks::Nowhere },
        each: vec![Vector::default(); vectors],
        ..Vectors::default()
    })
}

fn program_msix(boot: &Boot<'_>, pci: &Pci, at: u16) -> Result<Vectors> {
    let (bus, slot) = (&boot.board.bus, boot.slot);
    let control = read_u16(bus, slot, at + msix::CONTROL)?;
    let table = read_u32(bus, slot, at + msix::TABLE)?;
    let (bar, offset) = ((table & msix::BAR_MASK) as u8, table & !msix::BAR_MASK);
    let vectors = boot.vectors.min(usize::from(control & msix::CONTROL_TABLE_SIZE) + 1);
    // Nothing is sent before the table is whole.
    let on = control | msix::CONTROL_ENABLE;
    let masked = on | msix::CONTROL_MASK_ALL;
    bus.config_write(slot, at + msix::CONTROL, &masked.to_le_bytes())?;
    let message = boot.board.program(slot, vectors);
    let [low, high] = halves(message.address);
    let reach = pci.reach(bus);
    for vector in 0..vectors {
        let entry = u64::from(offset) + vector as u64 * u64::from(msix::ENTRY_SIZE);
        for (field, value) in [
            (msix::ENTRY_ADDRESS_LOW, low),
            (msix::ENTRY_ADDRESS_HIGH, high),
            (msix::ENTRY_DATA, message.data + vector as u32),
            (msix::ENTRY_CONTROL, 0),
        ] {
            reach.write(bar, entry + u64::from(field), &value.to_le_bytes())?;
        }
    }
    let open = on & !msix::CONTROL_MASK_ALL;
    bus.config_write(slot, at + msix::CONTROL, &open.to_le_bytes())?;
    Ok(Vectors {
        kind: InterruptKind::Msix,
        capability: at,
        masks: Masks::Table { bar, offset },
        each: vec![Vector::default(); vectors],
        ..Vectors::default()
    })
}

impl Vectors {
    /// How often something was masked.
    pub(in crate::guest) fn closed(&self) -> u64 {
        self.closed
    }

    /// The vector that a driver uses for what it calls `cause`, where there may be fewer.
    pub(in crate::guest) fn of(&self, cause: usize) -> usize {
        cause.min(self.each.len().saturating_sub(1))
    }

    /// What the guest itself knows of the times that a vector was masked, of a device that
    /// is stopped and has sent so much by it.
    pub(in crate::guest) fn own(&self, vector: usize, sent: Option<u64>) -> Own {
        let vector = self.each.get(vector).copied().unwrap_or_default();
        vector.account.own(sent)
    }

    /// Whether a vector is masked now, by itself or with all others.
    pub(in crate::guest) fn masked(&self, vector: usize) -> bool {
        let each = self.each.get(vector).is_some_and(|vector| vector.window.closed);
        each || self.all.closed
    }

    pub(super) fn fits(&self, vectors: usize, most: u64) -> bool {
        let window = |window: &Window| window.until <= most;
        (1..=vectors.min(VECTORS)).contains(&self.each.len())
            && self.each.iter().all(|one| window(&one.window) && one.account.fits(most))
            && window(&self.all)
            && self.closed <= most
    }
}

impl Pci {
    /// A vCPU takes what has come, and checks it against what is masked.
    pub(in crate::guest) fn hear(
        &mut self,
        board: &Board,
    ) -> Result<Came, FunctionError> {
        let function = board.bus.function(self.slot);
        if self.vectors.kind == InterruptKind::Intx {
            let up = function.line()?;
            if up && self.vectors.all.closed {
                let name = function.name();
                board.faults.add(|| format!("{name}: its line is up, which is off"));
            }
            return Ok(if up { Came::Line } else { Came::Nothing });
        }
        let came = board.controller.take(self.slot, function, &board.faults)?;
        for (vector, count) in came.into_iter().enumerate() {
            let masked = self.vectors.masked(vector);
            if masked && count > 0 {
                let name = function.name();
                board.faults.add(|| {
                    format!(
                        "{name}: {count} messages of vector {vector}, which is masked"
                    )
                });
            }
            let Some(one) = self.vectors.each.get_mut(vector) else { continue };
            if !masked && std::mem::take(&mut one.owed) && count == 0 {
                let name = function.name();
                board.faults.add(|| {
                    format!(
                        "{name}: nothing of vector {vector}, by which it has sent while \
                         that was masked"
                    )
                });
            }
        }
        let any = came.iter().any(|count| *count > 0);
        Ok(if any { Came::Messages(came) } else { Came::Nothing })
    }

    /// The handler of a line is done. Now and then the line stays off for a while.
    pub(in crate::guest) fn end_of_line(
        &mut self,
        board: &Board,
        busy: bool,
    ) -> Result<(), FunctionError> {
        let now = board.timer.now();
        if busy && !self.vectors.all.closed && now >= self.vectors.all.until {
            self.set_all(&board.bus, true)?;
            self.vectors.all.until = now + self.length(CLOSED);
        }
        board.controller.end(self.slot, board.bus.function(self.slot))
    }

    /// Masks and unmasks what is due. `sent` asks the device.
    pub(in crate::guest) fn mask_and_unmask(
        &mut self,
        bus: &Bus,
        now: u64,
        sent: Sent<'_>,
    ) -> Result<(), FunctionError> {
        if self.vectors.kind == InterruptKind::Intx {
            if self.vectors.all.closed && now >= self.vectors.all.until {
                self.set_all(bus, false)?;
                self.vectors.all.until = now + self.length(OPEN);
            }
            return Ok(());
        }
        if self.vectors.masks == Masks::Nowhere {
            return Ok(());
        }
        for vector in 0..self.vectors.each.len() {
            let window = self.vectors.each[vector].window;
            if now < window.until {
                continue;
            }
            let close = !window.closed;
            self.cover(&[vector], sent, |pci| pci.set_one(bus, vector, close))?;
            let length = self.length(if close { CLOSED } else { OPEN });
            self.vectors.each[vector].window.until = now + length;
        }
        if self.vectors.kind == InterruptKind::Msix && now >= self.vectors.all.until {
            let close = !self.vectors.all.closed;
            let every: Vec<usize> = (0..self.vectors.each.len()).collect();
            self.cover(&every, sent, |pci| pci.set_all(bus, close))?;
            let length = self.length(if close { CLOSED } else { ALL_OPEN });
            self.vectors.all.until = now + length;
        }
        Ok(())
    }

    /// Opens or closes windows by `set`, and notes for each vector whose mask changes with
    /// that what the device had sent before and after it.
    fn cover(
        &mut self,
        vectors: &[usize],
        sent: Sent<'_>,
        set: impl FnOnce(&mut Pci) -> Result<(), FunctionError>,
    ) -> Result<(), FunctionError> {
        let look = |pci: &Pci| -> Result<Vec<(bool, Option<u64>)>, FunctionError> {
            let each =
                vectors.iter().map(|n| Ok((pci.vectors.masked(*n), sent(pci, *n)?)));
            each.collect()
        };
        let before = look(self)?;
        set(self)?;
        let after = look(self)?;
        for ((vector, before), after) in vectors.iter().zip(before).zip(after) {
            let one = &mut self.vectors.each[*vector];
            let asked = Asked { before: before.1, after: after.1 };
            match (before.0, after.0) {
                (false, true) => one.account.close(asked),
                (true, false) => one.owed |= one.account.open(asked),
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn set_one(
        &mut self,
        bus: &Bus,
        vector: usize,
        closed: bool,
    ) -> Result<(), FunctionError> {
        self.vectors.each[vector].window.closed = closed;
        self.vectors.closed += u64::from(closed);
        match self.vectors.masks {
            Masks::Nowhere => Ok(()),
            Masks::Config(at) => {
                let each = self.vectors.each.iter().enumerate();
                let bits =
                    each.fold(0, |bits, (n, v)| bits | u32::from(v.window.closed) << n);
                bus.config_write(self.slot, at, &bits.to_le_bytes())
            }
            Masks::Table { bar, offset } => {
                let entry =
                    u64::from(offset) + vector as u64 * u64::from(msix::ENTRY_SIZE);
                let at = entry + u64::from(msix::ENTRY_CONTROL);
                let control = if closed { msix::ENTRY_CONTROL_MASKED } else { 0 };
                self.reach(bus).write(bar, at, &control.to_le_bytes())
            }
        }
    }

    pub(super) fn set_all(
        &mut self,
        bus: &Bus,
        closed: bool,
    ) -> Result<(), FunctionError> {
        self.vectors.all.closed = closed;
        self.vectors.closed += u64::from(closed);
        let (at, bit) = match self.vectors.kind {
            InterruptKind::Intx => {
                (config::COMMAND, config::Command::INTX_DISABLE.bits())
            }
            _ => (self.vectors.capability + msix::CONTROL, msix::CONTROL_MASK_ALL),
        };
        let before = read_u16(bus, self.slot, at)?;
        let after = if closed { before | bit } else { before & !bit };
        bus.config_write(self.slot, at, &after.to_le_bytes())
    }

    /// How long the next window is, in nanoseconds; it follows from what was done before.
    fn length(&self, (least, most): (u64, u64)) -> u64 {
        let random = mix(self.vectors.closed ^ (self.slot as u64) << 48 ^ least << 24);
        least + random % (most - least)
    }
}
