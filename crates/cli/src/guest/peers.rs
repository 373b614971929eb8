//! What devices ask for by message: guest memory that is not mapped, and each other.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use abi::errno::Errno;
use control::{Transport, TransportError};
use models::accel::BAR2;
use vfio_user::DmaHandler;

use super::memory::Ram;

/// Carries a device's accesses to where they lead.
pub(super) struct Peers {
    ram: OnceLock<Arc<Ram>>,
    windows: RwLock<Vec<Window>>,
    /// With `p2p-late`: peer writes go one behind.
    late: Option<Mutex<Option<Held>>>,
}

/// A device's memory in the address space.
struct Window {
    start: u64,
    bytes: u64,
    target: Arc<dyn Transport>,
}

/// A peer write that was acknowledged and not made yet.
struct Held {
    target: Arc<dyn Transport>,
    offset: u64,
    data: Vec<u8>,
}

impl Peers {
    /// Leads nowhere yet. With `late` the last peer write is always held back, until the
    /// next one or [`Peers::release`].
    pub(super) fn new(late: bool) -> Peers {
        let late = late.then(Mutex::default);
        Peers { ram: OnceLock::new(), windows: RwLock::default(), late }
    }

    /// From now on, the guest's memory is there: how much of it the devices use was known
    /// only when they were found.
    pub(super) fn attach(&self, ram: Arc<Ram>) {
        // A second one is nobody's.
        let _ = self.ram.set(ram);
    }

    /// From now on, the memory of a device is there.
    pub(super) fn add(&self, start: u64, bytes: u64, target: Arc<dyn Transport>) {
        let window = Window { start, bytes, target };
        self.windows.write().unwrap_or_else(PoisonError::into_inner).push(window);
    }

    /// Forgets all devices. They hold this, and this holds them.
    pub(super) fn clear(&self) {
        self.windows.write().unwrap_or_else(PoisonError::into_inner).clear();
        if let Some(late) = &self.late {
            *held(late) = None;
        }
    }

    /// Makes the write that is held back, whatever its target says.
    pub(super) fn release(&self) {
        let Some(late) = &self.late else { return };
        let Some(write) = held(late).take() else { return };
        let made = write.target.region_write(BAR2, write.offset, &write.data);
        tracing::info!(target = write.target.name(), ?made, "a late peer write");
    }

    fn find(&self, at: u64, length: usize) -> Option<(Arc<dyn Transport>, u64)> {
        let windows = self.windows.read().unwrap_or_else(PoisonError::into_inner);
        windows.iter().find_map(|window| {
            let offset = at.checked_sub(window.start)?;
            let inside = offset.checked_add(length as u64)? <= window.bytes;
            inside.then(|| (Arc::clone(&window.target), offset))
        })
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
        let (target, offset) = self.find(iova, into.len()).ok_or(Errno::EFAULT)?;
        target.region_read(BAR2, offset, into).map_err(|error| errno(&error))
    }

    fn write(&self, iova: u64, data: &[u8]) -> Result<(), Errno> {
        if self.ram.get().is_some_and(|ram| ram.dma_write(iova, data).is_ok()) {
            return Ok(());
        }
        let (target, offset) = self.find(iova, data.len()).ok_or(Errno::EFAULT)?;
        let (target, offset, data) = match &self.late {
            None => (target, offset, data.to_vec()),
            Some(late) => {
                let write = Held { target, offset, data: data.to_vec() };
                let Some(before) = held(late).replace(write) else { return Ok(()) };
                (before.target, before.offset, before.data)
            }
        };
        target.region_write(BAR2, offset, &data).map_err(|error| errno(&error))
    }
}
