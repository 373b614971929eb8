//! `device`, where nobody can reach into the stopped device: a byte of what it saves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use port::{Device, DeviceError, Identity, Opened, PrecopyInfo, Read, SaveSession};
use states::v2::State;

/// Where in its saved state the byte is, once the guest is stopped.
type Place = Arc<dyn Fn() -> Option<u64> + Send + Sync>;

/// One byte that a device saves, after its digest was taken and before the stream's
/// checksums are.
pub(in crate::guest) struct DamageSave {
    inner: Box<dyn Device>,
    done: Arc<AtomicBool>,
    place: Place,
}

impl DamageSave {
    /// Changes the byte at `place`, unless another was changed already.
    pub(in crate::guest) fn new(
        inner: Box<dyn Device>,
        done: Arc<AtomicBool>,
        place: impl Fn() -> Option<u64> + Send + Sync + 'static,
    ) -> DamageSave {
        DamageSave { inner, done, place: Arc::new(place) }
    }
}

impl Device for DamageSave {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn identity(&self) -> &Identity {
        self.inner.identity()
    }

    fn state(&mut self) -> Result<State, DeviceError> {
        self.inner.state()
    }

    fn set_state(&mut self, target: State) -> Result<Opened, DeviceError> {
        Ok(match self.inner.set_state(target)? {
            Opened::Save(inner) => Opened::Save(Box::new(Damaged {
                inner,
                read: 0,
                done: Arc::clone(&self.done),
                place: Arc::clone(&self.place),
            })),
            other => other,
        })
    }

    fn stop_copy_bytes(&mut self) -> Result<Option<u64>, DeviceError> {
        self.inner.stop_copy_bytes()
    }

    fn longest_transaction(&self) -> Option<u64> {
        self.inner.longest_transaction()
    }

    fn validated_at_start(&self) -> bool {
        self.inner.validated_at_start()
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.inner.reset()
    }
}

/// Its save session.
struct Damaged {
    inner: Box<dyn SaveSession>,
    /// Bytes that went by.
    read: u64,
    done: Arc<AtomicBool>,
    place: Place,
}

impl SaveSession for Damaged {
    fn read(&mut self, into: &mut [u8]) -> Result<Read, DeviceError> {
        let read = self.inner.read(into)?;
        let Read::Data { bytes, .. } = read else { return Ok(read) };
        let start = self.read;
        self.read += bytes as u64;
        if self.done.load(Ordering::Acquire) {
            return Ok(read);
        }
        let at = (self.place)().and_then(|place| place.checked_sub(start));
        let at = at.and_then(|at| usize::try_from(at).ok()).filter(|at| *at < bytes);
        if let Some(byte) = at.and_then(|at| into.get_mut(at))
            && !self.done.swap(true, Ordering::AcqRel)
        {
            *byte ^= 0x40;
            tracing::info!("changed a byte of a saved device");
        }
        Ok(read)
    }

    fn precopy_info(&mut self) -> Result<Option<PrecopyInfo>, DeviceError> {
        self.inner.precopy_info()
    }
}
