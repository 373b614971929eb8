//! The PCI bus: the only way on which the guest reaches its devices.
//!
//! ```text
//!   vCPU -- slot, offset ----> config space of a function
//!        -- address, port ---> [map] the BARs as they are decoded now
//!                                |-- a mapped window: memory, directly
//!                                |-- another part of a BAR: the function, its device
//!                                '-- nobody: all ones, and a fault of the guest's
//! ```
//!
//! What a guest is shown of a device is a [`Function`]; that also knows who answers where,
//! and says so after each change: whoever made it, the guest or a migration.

mod map;

use std::sync::Arc;

use anyhow::{Context, Result};
use control::Transport;
use control::pci::{BarPlace, Function, FunctionError};
use port::MsixLayout;
use sys::SharedMemory;

pub(super) use map::{Map, Space};

use super::faults::Faults;

/// All ones, which is what a bus reads where nobody answers.
pub(super) const NOBODY: u8 = 0xff;

/// The bus.
pub(super) struct Bus {
    slots: Vec<Slot>,
    map: Arc<Map>,
    faults: Arc<Faults>,
}

/// A place on the bus, with what sits there.
pub(super) struct Slot {
    function: Function,
    /// The parts of its BARs that are memory to the guest.
    windows: Vec<Window>,
}

struct Window {
    bar: u8,
    offset: u64,
    memory: SharedMemory,
}

impl Slot {
    /// A place for a function, with everything mapped of it that can be, but for its MSI-X
    /// table and pending bits: those are the VMM's.
    pub(super) fn new(function: Function, transport: &dyn Transport) -> Result<Slot> {
        let mut windows = Vec::new();
        for place in function.bars() {
            let info = transport.region_info(place.bar.into());
            let info = info.with_context(|| format!("ask for BAR{}", place.bar))?;
            for (offset, length) in info.areas {
                if holds_vectors(function.layout().msix, place.bar, offset, length) {
                    continue;
                }
                let mapped = transport.region_map(place.bar.into(), offset);
                let mapped =
                    mapped.with_context(|| format!("map a part of BAR{}", place.bar))?;
                let (offset, memory) = (mapped.offset, mapped.memory);
                windows.push(Window { bar: place.bar, offset, memory });
            }
        }
        Ok(Slot { function, windows })
    }

    /// The memory that is mapped at an offset of a BAR, and where in it, if all of
    /// `bytes` bytes are.
    fn window(&self, bar: u8, offset: u64, bytes: u64) -> Option<(&SharedMemory, u64)> {
        self.windows.iter().filter(|window| window.bar == bar).find_map(|window| {
            let within = offset.checked_sub(window.offset)?;
            let inside = within.checked_add(bytes)? <= window.memory.len();
            inside.then_some((&window.memory, within))
        })
    }
}

/// Whether a part of a BAR has any of the MSI-X table or of its pending bits.
fn holds_vectors(msix: Option<MsixLayout>, bar: u8, offset: u64, length: u64) -> bool {
    let Some(MsixLayout { vectors, table, pending }) = msix else { return false };
    let vectors = u64::from(vectors);
    [(table, vectors * 16), (pending, vectors.div_ceil(64) * 8)].iter().any(
        |(place, bytes)| {
            let (its, start) = ((place & 7) as u8, u64::from(place & !7));
            its == bar && start < offset.saturating_add(length) && offset < start + bytes
        },
    )
}

impl Bus {
    /// A bus with these functions in its slots, in order. `map` follows what they decode
    /// from now on; `moved` is told after that, with the slot and its BARs.
    pub(super) fn new(
        slots: Vec<Slot>,
        map: Arc<Map>,
        faults: Arc<Faults>,
        moved: impl Fn(usize, &[BarPlace]) + Clone + Send + Sync + 'static,
    ) -> Bus {
        for (number, slot) in slots.iter().enumerate() {
            let (map, moved) = (Arc::clone(&map), moved.clone());
            let bars = slot.function.layout().bars.iter();
            let ports = bars.filter(|bar| bar.kind.is_io()).map(|bar| bar.number);
            let ports: Vec<u8> = ports.collect();
            map.set(number, &slot.function.bars(), |bar| ports.contains(&bar));
            slot.function.on_bars(Box::new(move |places| {
                map.set(number, places, |bar| ports.contains(&bar));
                moved(number, places);
            }));
        }
        Bus { slots, map, faults }
    }

    /// What sits in a slot.
    pub(super) fn function(&self, slot: usize) -> &Function {
        &self.slots[slot].function
    }

    /// Reads config space. A slot that is empty answers as nobody does.
    pub(super) fn config_read(
        &self,
        slot: usize,
        at: u16,
        into: &mut [u8],
    ) -> Result<(), FunctionError> {
        match self.slots.get(slot) {
            Some(slot) => slot.function.config_read(at, into),
            None => {
                into.fill(NOBODY);
                Ok(())
            }
        }
    }

    /// Writes config space.
    pub(super) fn config_write(
        &self,
        slot: usize,
        at: u16,
        from: &[u8],
    ) -> Result<(), FunctionError> {
        self.slots.get(slot).map_or(Ok(()), |slot| slot.function.config_write(at, from))
    }

    /// Reads at an address.
    pub(super) fn read(
        &self,
        space: Space,
        at: u64,
        into: &mut [u8],
    ) -> Result<(), FunctionError> {
        let Some(found) = self.map.find(space, at, into.len() as u64) else {
            into.fill(NOBODY);
            self.nobody("a read", space, at, into.len());
            return Ok(());
        };
        let slot = &self.slots[found.slot];
        match slot.window(found.bar, found.offset, into.len() as u64) {
            Some((memory, offset)) => {
                memory.read(offset, into).expect("invariant: it is inside the window");
                Ok(())
            }
            None => slot.function.bar_read(found.bar, found.offset, into),
        }
    }

    /// Writes at an address.
    pub(super) fn write(
        &self,
        space: Space,
        at: u64,
        from: &[u8],
    ) -> Result<(), FunctionError> {
        let Some(found) = self.map.find(space, at, from.len() as u64) else {
            self.nobody("a write", space, at, from.len());
            return Ok(());
        };
        let slot = &self.slots[found.slot];
        match slot.window(found.bar, found.offset, from.len() as u64) {
            Some((memory, offset)) => {
                memory.write(offset, from).expect("invariant: it is inside the window");
                Ok(())
            }
            None => slot.function.bar_write(found.bar, found.offset, from),
        }
    }

    /// Writes several times, in order, from an address on.
    pub(super) fn write_all(
        &self,
        space: Space,
        at: u64,
        writes: &[(u64, &[u8])],
    ) -> Result<(), FunctionError> {
        let end = writes.iter().map(|(offset, from)| offset + from.len() as u64).max();
        let bytes = end.unwrap_or(0);
        let Some(found) = self.map.find(space, at, bytes) else {
            self.nobody("writes", space, at, bytes as usize);
            return Ok(());
        };
        let slot = &self.slots[found.slot];
        if slot.windows.iter().any(|window| window.bar == found.bar) {
            let each =
                |(offset, from): &(u64, &[u8])| self.write(space, at + offset, from);
            return writes.iter().try_for_each(each);
        }
        let writes: Vec<(u64, &[u8])> =
            writes.iter().map(|(offset, from)| (found.offset + offset, *from)).collect();
        slot.function.bar_write_many(found.bar, &writes)
    }

    /// Changes a byte of a device behind everybody's back, where it is mapped; whether it
    /// is.
    pub(super) fn damage(&self, slot: usize, bar: u8, offset: u64) -> bool {
        let Some((memory, at)) = self.slots[slot].window(bar, offset, 1) else {
            return false;
        };
        let mut byte = [0];
        let read = memory.read(at, &mut byte);
        byte[0] ^= 0x40;
        read.and_then(|()| memory.write(at, &byte)).is_ok()
    }

    fn nobody(&self, what: &str, space: Space, at: u64, bytes: usize) {
        let space = match space {
            Space::Memory => "memory",
            Space::Ports => "ports",
        };
        self.faults.add(|| {
            format!(
                "{what} of {bytes} bytes at {at:#x} of the {space}, where no device answers"
            )
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_reaches_the_table_of_vectors_behind_its_vmm() {
        let msix = Some(MsixLayout { vectors: 8, table: 4, pending: 0x804 });
        for (bar, offset, length, holds) in [
            (4, 0, 0x1000, true),
            (4, 0x70, 0x10, true),
            (4, 0x80, 0x780, false),
            (4, 0x80, 0x781, true),
            (4, 0x807, 1, true),
            (4, 0x808, u64::MAX, false),
            (2, 0, 0x1000, false),
        ] {
            assert_eq!(holds_vectors(msix, bar, offset, length), holds, "{offset:#x}");
        }
        assert!(!holds_vectors(None, 4, 0, 0x1000));
    }
}
