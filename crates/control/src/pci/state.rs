//! What changes of a function: what its guest wrote, and what it is to hear.

use std::io;

use port::{MsixLayout, PciLayout};

use abi::pci::capability::{CapabilityId, pm};
use abi::pci::config::Command;

use super::intx::Line;
use super::seen::Seen;
use super::shadow::Shadow;
use super::vectors::{Entry, Vector};
use super::view::{BarPlace, InterruptMode, Message, VectorCounts};

pub(super) struct State {
    pub(super) shadow: Shadow,
    /// The table of MSI-X.
    pub(super) entries: Vec<Entry>,
    pub(super) msi: Vec<Vector>,
    pub(super) msix: Vec<Vector>,
    pub(super) line: Line,
    /// D0 to D3hot, 0 to 3.
    pub(super) power: u16,
    /// What is to be heard, is: as [`port::Interrupts::bind`] asked.
    pub(super) connected: bool,
    /// What is bound at the device.
    pub(super) bound: Binding,
}

/// A kind of interrupts, and how many vectors of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Binding {
    pub(super) mode: InterruptMode,
    pub(super) vectors: usize,
}

impl Binding {
    pub(super) const NONE: Binding = Binding { mode: InterruptMode::Off, vectors: 0 };
}

impl State {
    /// As the device says it is.
    pub(super) fn new(seen: &Seen) -> State {
        let layout = &seen.layout;
        let vectors = |count: u32| (0..count).map(|_| Vector::default()).collect();
        let msix = layout.msix.map_or(0, |msix| msix.vectors);
        State {
            shadow: Shadow::new(seen),
            entries: vec![Entry::FRESH; msix as usize],
            msi: vectors(layout.msi.map_or(0, |msi| msi.vectors)),
            msix: vectors(msix),
            line: Line::default(),
            power: power(seen),
            connected: false,
            bound: Binding::NONE,
        }
    }

    /// The device was reset, and is as `seen`. What is bound stays so.
    pub(super) fn renew(&mut self, seen: &Seen) -> io::Result<()> {
        self.shadow = Shadow::new(seen);
        self.entries.fill(Entry::FRESH);
        self.power = power(seen);
        self.forget()
    }

    /// Nothing was ever heard.
    pub(super) fn forget(&mut self) -> io::Result<()> {
        self.msi.iter_mut().chain(&mut self.msix).try_for_each(Vector::forget)?;
        self.line.forget()
    }

    pub(super) fn places(&self, layout: &PciLayout) -> Vec<BarPlace> {
        self.shadow.places(layout, !self.asleep())
    }

    /// Not in D0: nothing decodes.
    pub(super) fn asleep(&self) -> bool {
        self.power != 0
    }

    pub(super) fn mode(&self, layout: &PciLayout) -> InterruptMode {
        self.binding(layout).mode
    }

    /// What should be bound for what the guest chose.
    pub(super) fn binding(&self, layout: &PciLayout) -> Binding {
        if self.shadow.msix(layout).0 {
            Binding { mode: InterruptMode::Msix, vectors: self.msix.len() }
        } else if let Some(on) = self.shadow.msi(layout) {
            Binding { mode: InterruptMode::Msi, vectors: on as usize }
        } else if layout.intx {
            Binding { mode: InterruptMode::Intx, vectors: 1 }
        } else {
            Binding::NONE
        }
    }

    /// Whether the guest has turned the line off.
    pub(super) fn line_is_off(&self) -> bool {
        self.shadow.command().contains(Command::INTX_DISABLE)
    }

    /// Which vectors are masked.
    pub(super) fn masks(&self, layout: &PciLayout) -> Masks {
        Masks { msi: self.shadow.msi_masks(layout), all: self.shadow.msix(layout).1 }
    }

    /// Sorts what was signalled, by the masks as they are: to be done before they change,
    /// and before anybody looks at pending bits.
    pub(super) fn sort(&mut self, layout: &PciLayout) -> io::Result<()> {
        let masks = self.masks(layout);
        for (n, vector) in self.msi.iter_mut().enumerate() {
            vector.sort(masks.msi(n))?;
        }
        for (vector, entry) in self.msix.iter_mut().zip(&self.entries) {
            vector.sort(masks.msix(entry))?;
        }
        let off = self.line_is_off();
        self.line.sort(off)
    }

    /// Lets what waited through, where nothing is masked any more.
    pub(super) fn release(&mut self, layout: &PciLayout) {
        let masks = self.masks(layout);
        for (n, vector) in self.msi.iter_mut().enumerate() {
            if !masks.msi(n) {
                vector.unmasked();
            }
        }
        for (vector, entry) in self.msix.iter_mut().zip(&self.entries) {
            if !masks.msix(entry) {
                vector.unmasked();
            }
        }
    }

    pub(super) fn take(
        &mut self,
        layout: &PciLayout,
    ) -> io::Result<Vec<(u32, Message, u64)>> {
        let masks = self.masks(layout);
        let mut taken = Vec::new();
        match self.binding(layout) {
            Binding { mode: InterruptMode::Msi, vectors } => {
                // Nothing is taken off one vector before all others were asked.
                let on = vectors as u32;
                for (n, vector) in self.msi.iter_mut().take(vectors).enumerate() {
                    collect_if_heard(vector, masks.msi(n))?;
                }
                for (n, vector) in self.msi.iter_mut().take(vectors).enumerate() {
                    let count = vector.take(masks.msi(n));
                    if count != 0 {
                        let message = self.shadow.msi_message(layout, n as u32, on);
                        taken.push((n as u32, message, count));
                    }
                }
            }
            Binding { mode: InterruptMode::Msix, .. } => {
                for (vector, entry) in self.msix.iter_mut().zip(&self.entries) {
                    collect_if_heard(vector, masks.msix(entry))?;
                }
                let each = self.msix.iter_mut().zip(&self.entries).enumerate();
                for (n, (vector, entry)) in each {
                    let count = vector.take(masks.msix(entry));
                    if count != 0 {
                        taken.push((n as u32, entry.message, count));
                    }
                }
            }
            _ => {}
        }
        Ok(taken)
    }

    pub(super) fn line(&mut self, layout: &PciLayout) -> io::Result<bool> {
        let off = self.line_is_off();
        self.line.sort(off)?;
        let in_use = self.mode(layout) == InterruptMode::Intx;
        Ok(in_use && !off && self.line.heard.asserted)
    }

    pub(super) fn counts(&mut self, layout: &PciLayout) -> io::Result<Vec<VectorCounts>> {
        self.collect()?;
        let masks = self.masks(layout);
        let lines = usize::from(layout.intx);
        let length = self.msi.len().max(self.msix.len()).max(lines);
        let mut counts = vec![VectorCounts::default(); length];
        let mode = self.mode(layout);
        let mut add = |n: usize, one: VectorCounts, of: InterruptMode| {
            let sum = &mut counts[n];
            for (into, more) in [
                (&mut sum.delivered, one.delivered),
                (&mut sum.absorbed, one.absorbed),
                (&mut sum.windows, one.windows),
                (&mut sum.rises, one.rises),
                (&mut sum.pending, one.pending),
            ] {
                *into = into.saturating_add(more);
            }
            sum.held |= one.held;
            sum.masked |= one.masked && of == mode;
        };
        for (n, vector) in self.msi.iter().enumerate() {
            add(n, vector.counts(masks.msi(n)), InterruptMode::Msi);
        }
        for (n, (vector, entry)) in self.msix.iter().zip(&self.entries).enumerate() {
            add(n, vector.counts(masks.msix(entry)), InterruptMode::Msix);
        }
        if layout.intx {
            add(0, self.line.counts(self.line_is_off()), InterruptMode::Intx);
        }
        Ok(counts)
    }

    /// Takes from the eventfds what was signalled, and sorts nothing.
    pub(super) fn collect(&mut self) -> io::Result<()> {
        self.msi
            .iter_mut()
            .chain(&mut self.msix)
            .try_for_each(|vector| vector.signals.collect())?;
        self.line.signals.collect()
    }

    /// Undoes the sorting of what is the guest's and was not taken, of vectors that are
    /// not masked: sorted again, it is the same.
    pub(super) fn put_back(&mut self, layout: &PciLayout) {
        let masks = self.masks(layout);
        let Binding { mode, vectors } = self.binding(layout);
        match mode {
            InterruptMode::Msi => {
                for (n, vector) in self.msi.iter_mut().take(vectors).enumerate() {
                    vector.put_back(masks.msi(n));
                }
            }
            InterruptMode::Msix => {
                for (vector, entry) in self.msix.iter_mut().zip(&self.entries) {
                    vector.put_back(masks.msix(entry));
                }
            }
            _ => {}
        }
    }

    /// What was collected of the kind that is on and was not sorted.
    pub(super) fn drain(&mut self, layout: &PciLayout) -> Vec<u64> {
        let Binding { mode, vectors } = self.binding(layout);
        match mode {
            InterruptMode::Off => Vec::new(),
            InterruptMode::Intx => vec![self.line.signals.drain()],
            InterruptMode::Msi => self
                .msi
                .iter_mut()
                .take(vectors)
                .map(|vector| vector.signals.drain())
                .collect(),
            InterruptMode::Msix => {
                self.msix.iter_mut().map(|vector| vector.signals.drain()).collect()
            }
        }
    }

    /// What was drained, here or elsewhere; no more of it than there are vectors.
    pub(super) fn deliver(&mut self, layout: &PciLayout, signals: &[u64]) {
        let of = match self.mode(layout) {
            InterruptMode::Off => return,
            InterruptMode::Intx => {
                return signals
                    .first()
                    .into_iter()
                    .for_each(|n| self.line.signals.deliver(*n));
            }
            InterruptMode::Msi => &mut self.msi,
            InterruptMode::Msix => &mut self.msix,
        };
        of.iter_mut().zip(signals).for_each(|(vector, n)| vector.signals.deliver(*n));
    }

    /// The bits of the pending bit array from a multiple of 8 bytes on, of MSI-X.
    pub(super) fn pending_word(&self, word: usize) -> u64 {
        let vectors = self.msix.iter().skip(word.saturating_mul(64)).take(64).enumerate();
        vectors.fold(0, |bits, (n, one)| bits | u64::from(one.heard.pending) << n)
    }

    /// The pending bits of MSI.
    pub(super) fn pending_msi(&self) -> u32 {
        let vectors = self.msi.iter().enumerate();
        vectors.fold(0, |bits, (n, one)| bits | u32::from(one.heard.pending) << n)
    }
}

fn collect_if_heard(vector: &mut Vector, masked: bool) -> io::Result<()> {
    if masked { Ok(()) } else { vector.signals.collect() }
}

fn power(seen: &Seen) -> u16 {
    let power = seen.capability(CapabilityId::POWER_MANAGEMENT);
    power.map_or(0, |at| seen.u16(at + pm::CONTROL) & pm::CONTROL_STATE_MASK)
}

/// Which vectors are masked.
#[derive(Clone, Copy)]
pub(super) struct Masks {
    msi: u32,
    all: bool,
}

impl Masks {
    pub(super) fn msi(self, vector: usize) -> bool {
        self.msi >> (vector % 32) & 1 != 0
    }

    pub(super) fn msix(self, entry: &Entry) -> bool {
        self.all || entry.masked
    }
}

/// A part of the MSI-X tables that an access of a BAR is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// The table, from so many bytes on.
    Entries(u64),
    /// The pending bits, from so many bytes on.
    Pending(u64),
}

impl Table {
    /// Which part of them holds `offset` of `bar`, if one does.
    pub(super) fn at(layout: &MsixLayout, bar: u8, offset: u64) -> Option<Table> {
        let within = |place: u32, length: u64| {
            let inside = offset.checked_sub(u64::from(place & !7))?;
            (place & 7 == u32::from(bar) && inside < length).then_some(inside)
        };
        let vectors = u64::from(layout.vectors);
        within(layout.table, vectors * 16).map(Table::Entries).or_else(|| {
            within(layout.pending, vectors.div_ceil(64) * 8).map(Table::Pending)
        })
    }
}
