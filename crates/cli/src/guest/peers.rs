//! What devices ask for by message: guest memory that is not mapped, and each other.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use abi::errno::Errno;
use control::pci::BarPlace;
use control::{DmaTarget, Transport, TransportError};
use dirty::IovaRange;
use vfio_user::DmaHandler;

use super::bus::{Map, Space};
use super::faults::Faults;
use super::memory::Ram;

/// Carries a device's accesses to where they lead.
pub(super) struct Peers {
    ram: OnceLock<Arc<Ram>>,
    /// Which BAR is at an address.
    map: Arc<Map>,
    /// The devices that reach each other, by their slots; none where they do not.
    peers: RwLock<Vec<Peer>>,
    /// With `p2p-late`: peer writes go one behind.
    late: Option<Mutex<Option<Held>>>,
}

/// A device among others.
struct Peer {
    transport: Arc<dyn Transport>,
    /// The BAR that others reach.
    bar: u8,
    /// Where they do, now.
    at: Option<IovaRange>,
}

/// A peer write that was acknowledged and not made yet.
struct Held {
    target: Arc<dyn Transport>,
    bar: u8,
    offset: u64,
    data: Vec<u8>,
}

impl Peers {
    /// Leads nowhere yet. With `late` the last peer write is always held back, until the
    /// next one or [`Peers::release`].
    pub(super) fn new(map: Arc<Map>, late: bool) -> Peers {
        let late = late.then(Mutex::default);
        Peers { ram: OnceLock::new(), map, peers: RwLock::default(), late }
    }

    /// From now on, the guest's memory is there: how much of it the devices use was known
    /// only when they were found.
    pub(super) fn attach(&self, ram: Arc<Ram>) {
        // A second one is nobody's.
        let _ = self.ram.set(ram);
    }

    /// From now on, a device and those before it reach each other, once the guest has
    /// given them addresses: `bar` of it is what the others reach.
    pub(super) fn add(&self, transport: Arc<dyn Transport>, bar: u8) {
        let peer = Peer { transport, bar, at: None };
        self.peers.write().unwrap_or_else(PoisonError::into_inner).push(peer);
    }

    /// The BARs of a slot are these now: the others' mappings of it follow. Nobody writes
    /// there meanwhile, which is the guest's to see to.
    pub(super) fn moved(&self, slot: usize, places: &[BarPlace], faults: &Faults) {
        // No lock is held meanwhile: before a device lets go of a mapping it may have to
        // be answered what it asked for.
        let (name, before, now, others) = {
            let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
            let Some(peer) = peers.get_mut(slot) else { return };
            let place = places.iter().find(|one| one.bar == peer.bar && one.decoded);
            let range = |place: &BarPlace| IovaRange::new(place.address, place.size).ok();
            let now = place.and_then(range);
            let before = std::mem::replace(&mut peer.at, now);
            let name = peer.transport.name().to_owned();
            let others = peers.iter().enumerate().filter(|(other, _)| *other != slot);
            let others = others.map(|(_, other)| Arc::clone(&other.transport));
            (name, before, now, others.collect::<Vec<_>>())
        };
        if before == now {
            return;
        }
        for other in others {
            let follow = || -> Result<(), TransportError> {
                if let Some(before) = before {
                    other.dma_unmap(before)?;
                }
                if let Some(now) = now {
                    let target = DmaTarget::Messages { writable: true };
                    other.dma_map(now, target)?;
                }
                Ok(())
            };
            if let Err(error) = follow() {
                let to = other.name();
                faults.add(|| {
                    format!("{to} does not reach {name} where it is now: {error}")
                });
            }
        }
    }

    /// Forgets all devices. They hold this, and this holds them.
    pub(super) fn clear(&self) {
        self.peers.write().unwrap_or_else(PoisonError::into_inner).clear();
        if let Some(late) = &self.late {
            *held(late) = None;
        }
    }

    /// Makes the write that is held back, whatever its target says.
    pub(super) fn release(&self) {
        let Some(late) = &self.late else { return };
        let Some(write) = held(late).take() else { return };
        let made = write.target.region_write(write.bar.into(), write.offset, &write.data);
        tracing::info!(target = write.target.name(), ?made, "a late peer write");
    }

    fn find(&self, at: u64, length: usize) -> Option<(Arc<dyn Transport>, u8, u64)> {
        let found = self.map.find(Space::Memory, at, length as u64)?;
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        let peer = peers.get(found.slot).filter(|peer| peer.bar == found.bar)?;
        Some((Arc::clone(&peer.transport), found.bar, found.offset))
    }
}

fn held(late: &Mutex<Option<Held>>) -> MutexGuard<'_, Option<Held>> {
    late.lock().unwrap_or_else(PoisonError::into_inner)
}

fn errno(error: &TransportError) -> Errno {
    error.errno().unwrap_or(Errno::EIO)
}

impl DmaHandler for Peers {
    fn read(&self, iova: u64, into: &mut [u8]) -> Result<(), Errno> {
        if self.ram.get().is_some_and(|ram| ram.dma_read(iova, into).is_ok()) {
            return Ok(());
        }
        let (target, bar, offset) = self.find(iova, into.len()).ok_or(Errno::EFAULT)?;
        target.region_read(bar.into(), offset, into).map_err(|error| errno(&error))
    }

    fn write(&self, iova: u64, data: &[u8]) -> Result<(), Errno> {
        if self.ram.get().is_some_and(|ram| ram.dma_write(iova, data).is_ok()) {
            return Ok(());
        }
        let (target, bar, offset) = self.find(iova, data.len()).ok_or(Errno::EFAULT)?;
        let mut write = Held { target, bar, offset, data: data.to_vec() };
        if let Some(late) = &self.late {
            let Some(before) = held(late).replace(write) else { return Ok(()) };
            write = before;
        }
        let Held { target, bar, offset, data } = write;
        target.region_write(bar.into(), offset, &data).map_err(|error| errno(&error))
    }
}
