//! Where things are in the guest's address space.
//!
//! ```text
//!   guest-physical                                      offset in RAM
//!   0            device areas: ring, command pages      0
//!   ...          pages of the vCPUs                     ...
//!   3 GiB        - end of low RAM -                     3 GiB
//!   0xe000_0000  BARs of 32 bits, and the interrupt controller
//!   4 GiB        rest of RAM, if there is more          3 GiB
//!   above        BARs of 64 bits
//! ```
//!
//! A uart uses no RAM. Where which BAR is, the guest decides ([`super::pci`]).
//!
//! Devices use the same addresses: the IOVA of a byte is its guest-physical address.

use dirty::{IovaRange, PageSize};
use port::{Gpa, MemoryRegion};

/// Bytes of a page.
pub(super) const PAGE: u64 = 4096;

/// RAM below the hole that the 32-bit BARs are in.
const LOW: u64 = 3 << 30;
/// Where RAM goes on behind the hole.
const HIGH: u64 = 4 << 30;

/// The address space of one guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    memory: u64,
    /// Devices that use RAM.
    devices: u64,
    ring_slots: u64,
}

/// What one device uses of RAM, as guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Area {
    /// The slots that the device writes by itself.
    pub(super) ring: u64,
    /// How many slots, of a page each.
    pub(super) slots: u64,
    /// What a command copies to the device.
    pub(super) outgoing: u64,
    /// Where a command copies it back to.
    pub(super) incoming: u64,
}

impl Layout {
    /// `memory` is a multiple of the page size from 4 MiB on, `devices` those that use
    /// it: at most 16.
    pub(super) fn new(memory: u64, devices: usize) -> Layout {
        let devices = devices as u64;
        let ring_slots = (memory / 32 / PAGE / devices.max(1)).clamp(8, 1024);
        Layout { memory, devices, ring_slots }
    }

    /// Bytes of RAM.
    pub(super) fn memory(&self) -> u64 {
        self.memory
    }

    /// Pages of RAM.
    pub(super) fn pages(&self) -> u64 {
        self.memory / PAGE
    }

    /// The pieces of RAM.
    pub(super) fn regions(&self) -> Vec<MemoryRegion> {
        let low = self.memory.min(LOW);
        let page = PageSize::FOUR_K;
        let mut regions = vec![MemoryRegion { start: Gpa(0), length: low, page }];
        if self.memory > LOW {
            let length = self.memory - LOW;
            regions.push(MemoryRegion { start: Gpa(HIGH), length, page });
        }
        regions
    }

    /// Everything up to the end of RAM, the hole included.
    pub(super) fn span(&self) -> IovaRange {
        IovaRange::new(0, self.end()).expect("invariant: RAM is not empty")
    }

    fn end(&self) -> u64 {
        if self.memory > LOW { HIGH + (self.memory - LOW) } else { self.memory }
    }

    /// The guest-physical address of an offset in RAM.
    pub(super) fn address(&self, offset: u64) -> u64 {
        if offset < LOW { offset } else { HIGH + (offset - LOW) }
    }

    /// The offset in RAM of `length` bytes at a guest-physical address, where all of
    /// them are in one piece.
    pub(super) fn offset(&self, at: u64, length: u64) -> Option<u64> {
        let low = self.memory.min(LOW);
        let end = at.checked_add(length)?;
        if end <= low {
            Some(at)
        } else if at >= HIGH && end <= self.end() && self.memory > LOW {
            Some(at - HIGH + LOW)
        } else {
            None
        }
    }

    /// The area of a device, counted among those that use RAM.
    pub(super) fn area(&self, device: usize) -> Area {
        let ring = device as u64 * self.area_pages() * PAGE;
        let outgoing = ring + self.ring_slots * PAGE;
        Area { ring, slots: self.ring_slots, outgoing, incoming: outgoing + PAGE }
    }

    /// Pages of one device's area.
    pub(super) fn area_pages(&self) -> u64 {
        self.ring_slots + 2
    }

    /// The first page (by offset) that belongs to the vCPUs; they own all after it.
    pub(super) fn first_vcpu_page(&self) -> u64 {
        self.devices * self.area_pages()
    }

    /// The first address above RAM that 32 bits do not reach.
    pub(super) fn above(&self) -> u64 {
        self.end().max(HIGH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_of_devices_and_vcpus_do_not_overlap() {
        for (memory, devices) in [(4 << 20, 16), (512 << 20, 2), (5 << 30, 3)] {
            let layout = Layout::new(memory, devices);
            let mut free = 0;
            for device in 0..devices {
                let area = layout.area(device);
                assert_eq!(area.ring, free);
                assert_eq!(area.outgoing, area.ring + area.slots * PAGE);
                free = area.incoming + PAGE;
            }
            assert_eq!(layout.first_vcpu_page() * PAGE, free);
            assert!(layout.first_vcpu_page() < layout.pages() / 2);
        }
    }

    #[test]
    fn an_address_in_the_hole_or_across_its_edge_is_no_ram() {
        let layout = Layout::new(4 << 30, 1);
        assert_eq!(layout.offset(LOW - 1, 1), Some(LOW - 1));
        assert_eq!(layout.offset(LOW - 1, 2), None);
        assert_eq!(layout.offset(LOW, 1), None);
        assert_eq!(layout.offset(HIGH - 1, 2), None);
        assert_eq!(layout.offset(HIGH, 1 << 30), Some(LOW));
        assert_eq!(layout.offset(HIGH, (1 << 30) + 1), None);
        assert_eq!(layout.offset(u64::MAX, 2), None);
        assert_eq!(layout.regions().len(), 2);
        for offset in [0, LOW - PAGE, LOW, (4 << 30) - PAGE] {
            assert_eq!(layout.offset(layout.address(offset), PAGE), Some(offset));
        }
    }
}
