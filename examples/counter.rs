//! A migratable device in a page: a counter, served over vfio-user.
//!
//! ```text
//! cargo run -p vfio-migrate --example counter -- /tmp/counter.sock
//! vfio-migrate save vfio-user:/tmp/counter.sock --output /tmp/counter.vfm
//! ```
//!
//! Region 0 has one register of eight bytes; every write adds to it. Its state is the
//! value and its complement, so that a damaged one is refused. No DMA, no interrupt and
//! no pre-copy: capability set 1.

use abi::errno::Errno;
use device::{
    Bus, Description, Identity, Migratable, Region, Runner, Settle, StateArc, Work,
};
use states::v2::{Capabilities, State};
use std::collections::VecDeque;
use std::io::Read;
use std::time::Instant;
use sys::socket::Listener;
use vfio_user::server::{Server, ServerOptions, Stop};

const MAGIC: &[u8] = b"counter state 1\0";
const STATE_BYTES: usize = 32;

/// The device.
#[derive(Debug, Default)]
pub struct Counter {
    value: u64,
    /// What a save session has left to read.
    saving: Option<VecDeque<u8>>,
    /// What a resume session was given.
    loading: Option<Vec<u8>>,
}

impl Counter {
    fn image(value: u64) -> Vec<u8> {
        [MAGIC, &value.to_le_bytes(), &(!value).to_le_bytes()].concat()
    }
}

impl Migratable for Counter {
    fn describe(&self) -> Description {
        let identity =
            Identity { pci: None, model: "counter".to_owned(), data_version: 1 };
        let register = Region { index: 0, size: 8, writable: true, windows: vec![] };
        let capabilities = Capabilities::STOP_COPY;
        Description { identity, capabilities, regions: vec![register], irqs: vec![] }
    }

    fn read(&mut self, _region: u32, at: u64, into: &mut [u8]) -> Result<(), Errno> {
        into.copy_from_slice(&self.value.to_le_bytes()[at as usize..][..into.len()]);
        Ok(())
    }

    fn write(
        &mut self,
        _region: u32,
        _at: u64,
        data: &[u8],
        _bus: &mut dyn Bus,
    ) -> Result<(), Errno> {
        let added = u64::from_le_bytes(data.try_into().map_err(|_| Errno::EINVAL)?);
        self.value = self.value.wrapping_add(added);
        Ok(())
    }

    fn reset(&mut self) {
        *self = Counter::default();
    }

    /// Nothing works by itself here, so every arc is done at once.
    fn enter(&mut self, arc: StateArc, _bus: &mut dyn Bus) -> Result<Settle, Errno> {
        self.saving =
            (arc.to == State::StopCopy).then(|| Counter::image(self.value).into());
        self.loading = (arc.to == State::Resuming).then(Vec::new);
        Ok(Settle::Now)
    }

    fn save(&mut self, into: &mut [u8]) -> Result<usize, Errno> {
        let left = self.saving.as_mut().ok_or(Errno::ENODEV)?;
        left.read(into).map_err(|_| Errno::EIO)
    }

    fn stop_copy_bytes(&self) -> u64 {
        STATE_BYTES as u64
    }

    /// Pieces come in any size; more than a state is never kept.
    fn load(&mut self, data: &[u8]) -> Result<(), Errno> {
        let loading = self.loading.as_mut().ok_or(Errno::ENODEV)?;
        if loading.len() + data.len() > STATE_BYTES {
            return Err(Errno::EINVAL);
        }
        loading.extend_from_slice(data);
        Ok(())
    }

    fn loaded(&mut self) -> Result<(), Errno> {
        let state = self.loading.as_deref().ok_or(Errno::ENODEV)?;
        let value = state.get(16..24).ok_or(Errno::EINVAL)?;
        let value = u64::from_le_bytes(value.try_into().map_err(|_| Errno::EINVAL)?);
        if state != Counter::image(value) {
            return Err(Errno::EINVAL);
        }
        self.value = value;
        Ok(())
    }

    fn work(&mut self, _bus: &mut dyn Bus, _now: Instant) -> Work {
        Work::Idle
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: counter SOCKET")?;
    let runner = Runner::new(Box::new(Counter::default()))?;
    let mut server = Server::new(runner, ServerOptions::default())?;
    Ok(server.serve(Listener::bind(path.as_ref())?, &Stop::new()?)?)
}
