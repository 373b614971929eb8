//! Which BAR answers at an address, as the guest's devices decode now.

use std::sync::{PoisonError, RwLock};

use control::pci::BarPlace;

/// An address space that BARs are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::guest) enum Space {
    /// Memory, by guest-physical address.
    Memory,
    /// Ports.
    Ports,
}

/// What is found at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::guest) struct Found {
    /// The device's slot.
    pub(in crate::guest) slot: usize,
    /// The BAR that decodes the address.
    pub(in crate::guest) bar: u8,
    /// Where in it, in bytes.
    pub(in crate::guest) offset: u64,
}

/// All BARs that decode. It changes when the guest, or a load, changes an address or
/// turns decoding on or off.
#[derive(Debug, Default)]
pub(in crate::guest) struct Map(RwLock<Vec<Decoded>>);

#[derive(Clone, Copy, Debug)]
struct Decoded {
    space: Space,
    start: u64,
    bytes: u64,
    slot: usize,
    bar: u8,
}

impl Map {
    /// Who answers for all of `bytes` bytes. Where two do, which is the guest's mistake,
    /// one of them.
    pub(in crate::guest) fn find(
        &self,
        space: Space,
        at: u64,
        bytes: u64,
    ) -> Option<Found> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|one| one.space == space).find_map(|one| {
            let offset = at.checked_sub(one.start)?;
            let inside = offset.checked_add(bytes)? <= one.bytes;
            inside.then_some(Found { slot: one.slot, bar: one.bar, offset })
        })
    }

    /// The BARs of a slot are these from now on; `ports` says which of them are in the
    /// space of ports.
    pub(super) fn set(
        &self,
        slot: usize,
        places: &[BarPlace],
        ports: impl Fn(u8) -> bool,
    ) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|one| one.slot != slot);
        all.extend(places.iter().filter(|place| place.decoded).map(|place| Decoded {
            space: if ports(place.bar) { Space::Ports } else { Space::Memory },
            start: place.address,
            bytes: place.size,
            slot,
            bar: place.bar,
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(bar: u8, address: u64, decoded: bool) -> BarPlace {
        BarPlace { bar, address, size: 0x1000, decoded }
    }

    #[test]
    fn an_address_reaches_the_bar_that_was_there_before() {
        let map = Map::default();
        let memory = |at, bytes| map.find(Space::Memory, at, bytes);
        map.set(0, &[place(0, 0x1000, true), place(4, 0x3000, true)], |_| false);
        map.set(1, &[place(0, 0x5000, true)], |_| false);
        let found = Found { slot: 0, bar: 4, offset: 8 };
        assert_eq!(memory(0x3008, 8), Some(found));
        assert_eq!(memory(0x3ff8, 8), Some(Found { offset: 0xff8, ..found }));
        // Across an edge, between two, and in the other space.
        for (at, bytes) in [(0x3ffc, 8), (0x2000, 1), (0xfff, 2), (u64::MAX, 8)] {
            assert_eq!(memory(at, bytes), None, "{at:#x}");
        }
        assert_eq!(map.find(Space::Ports, 0x3008, 1), None);
        // Off, moved, and on again; the other slot stays.
        map.set(0, &[place(0, 0x1000, false), place(4, 0x3000, false)], |_| false);
        assert_eq!(memory(0x3008, 8), None);
        map.set(0, &[place(0, 0x1000, true), place(4, 0x9000, true)], |_| false);
        assert_eq!(memory(0x3008, 8), None);
        assert_eq!(memory(0x9008, 8), Some(found));
        assert_eq!(memory(0x5000, 1), Some(Found { slot: 1, bar: 0, offset: 0 }));
    }

    #[test]
    fn ports_and_memory_at_the_same_number_are_two_places() {
        let map = Map::default();
        let places = [place(0, 0xc000, true), place(1, 0xc000, true)];
        map.set(3, &places, |bar| bar == 1);
        let found = |space| map.find(space, 0xc004, 1).map(|found| found.bar);
        assert_eq!((found(Space::Memory), found(Space::Ports)), (Some(0), Some(1)));
    }
}
