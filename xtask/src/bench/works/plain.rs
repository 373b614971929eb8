//! A device with nothing in it that would take time, so that the way to it is what is
//! measured.
//!
//! ```text
//!   region 0   0x00  COUNT  u32: how often it was written
//!              0x04  GO     u32: writing n starts n rounds of DMA by message, each a read
//!                           of 4 KiB at 0 and then a write of them at 4096
//!   state      a buffer, given from where it lies and taken to where it lies
//! ```

use std::io::Read;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use abi::errno::Errno;
use device::{
    Bus, Description, Dma, Identity, Migratable, Region, Settle, StateArc, Token, Work,
};
use dirty::Iova;
use states::v2::Capabilities;

/// The region of the registers.
pub(super) const REGISTERS: u32 = 0;

/// How often it was written.
pub(super) const COUNT: u64 = 0;

/// Starts DMA.
pub(super) const GO: u64 = 4;

/// Bytes of one DMA access.
pub(super) const ACCESS: usize = 4096;

/// The device.
pub(super) struct Plain {
    state: Vec<u8>,
    /// How far the session is.
    at: usize,
    count: u32,
    dma: Option<Rounds>,
    done: Sender<Result<Vec<Duration>, Errno>>,
}

/// DMA on its way.
struct Rounds {
    left: u32,
    reading: bool,
    started: Instant,
    took: Vec<Duration>,
}

impl Plain {
    /// With a state, and with somebody to tell how long each round of DMA took.
    pub(super) fn new(
        state: Vec<u8>,
        done: Sender<Result<Vec<Duration>, Errno>>,
    ) -> Plain {
        Plain { state, at: 0, count: 0, dma: None, done }
    }

    fn start(&mut self, rounds: u32, bus: &mut dyn Bus) -> Result<(), Errno> {
        if rounds == 0 || self.dma.is_some() {
            return Err(Errno::EBUSY);
        }
        let took = Vec::with_capacity(rounds as usize);
        let started = Instant::now();
        self.dma = Some(Rounds { left: rounds, reading: true, started, took });
        ask(bus, None)
    }

    /// Goes on after an access. When all is done: what there is to tell.
    fn go_on(
        &mut self,
        data: &[u8],
        bus: &mut dyn Bus,
    ) -> Result<Option<Vec<Duration>>, Errno> {
        let rounds = self.dma.as_mut().ok_or(Errno::ENOENT)?;
        if rounds.reading {
            rounds.reading = false;
            return ask(bus, Some(data)).map(|()| None);
        }
        let now = Instant::now();
        rounds.took.push(now - rounds.started);
        rounds.left -= 1;
        if rounds.left == 0 {
            return Ok(self.dma.take().map(|rounds| rounds.took));
        }
        (rounds.started, rounds.reading) = (now, true);
        ask(bus, None).map(|()| None)
    }
}

/// Asks for bytes, or for bytes to be written.
fn ask(bus: &mut dyn Bus, write: Option<&[u8]>) -> Result<(), Errno> {
    let asked = match write {
        Some(data) => bus.write(Iova(ACCESS as u64), data),
        None => bus.read(Iova(0), &mut [0; ACCESS]),
    };
    match asked {
        Ok(Dma::Later(_)) => Ok(()),
        // Without a message there is nothing to measure.
        Ok(Dma::Done) | Err(_) => Err(Errno::EIO),
    }
}

impl Migratable for Plain {
    fn describe(&self) -> Description {
        let identity = Identity { pci: None, model: "plain".to_owned(), data_version: 1 };
        let registers =
            Region { index: REGISTERS, size: 8, writable: true, windows: vec![] };
        let capabilities = Capabilities::STOP_COPY;
        Description { identity, capabilities, regions: vec![registers], irqs: vec![] }
    }

    fn read(&mut self, _region: u32, at: u64, into: &mut [u8]) -> Result<(), Errno> {
        let count = self.count.to_le_bytes();
        if at != COUNT || into.len() != count.len() {
            return Err(Errno::EINVAL);
        }
        into.copy_from_slice(&count);
        Ok(())
    }

    fn write(
        &mut self,
        _region: u32,
        at: u64,
        data: &[u8],
        bus: &mut dyn Bus,
    ) -> Result<(), Errno> {
        let value = u32::from_le_bytes(data.try_into().map_err(|_| Errno::EINVAL)?);
        match at {
            COUNT => self.count = self.count.wrapping_add(1),
            GO => self.start(value, bus)?,
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    fn reset(&mut self) {
        (self.at, self.count, self.dma) = (0, 0, None);
    }

    fn enter(&mut self, _arc: StateArc, _bus: &mut dyn Bus) -> Result<Settle, Errno> {
        self.at = 0;
        Ok(Settle::Now)
    }

    fn save(&mut self, into: &mut [u8]) -> Result<usize, Errno> {
        let mut left = &self.state[self.at..];
        let len = left.read(into).map_err(|_| Errno::EIO)?;
        self.at += len;
        Ok(len)
    }

    fn save_lent<'a>(&'a mut self, room: &'a mut [u8]) -> Result<&'a [u8], Errno> {
        let left = &self.state[self.at..];
        let len = left.len().min(room.len());
        self.at += len;
        Ok(&left[..len])
    }

    fn stop_copy_bytes(&self) -> u64 {
        self.state.len() as u64
    }

    fn load(&mut self, data: &[u8]) -> Result<(), Errno> {
        let room = self.state[self.at..].get_mut(..data.len()).ok_or(Errno::EINVAL)?;
        room.copy_from_slice(data);
        self.at += data.len();
        Ok(())
    }

    fn loaded(&mut self) -> Result<(), Errno> {
        if self.at == self.state.len() { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn work(&mut self, _bus: &mut dyn Bus, _now: Instant) -> Work {
        Work::Idle
    }

    fn dma_done(
        &mut self,
        _token: Token,
        result: Result<&[u8], Errno>,
        bus: &mut dyn Bus,
    ) -> Result<(), Errno> {
        let told = match result.and_then(|data| self.go_on(data, bus)) {
            Ok(None) => return Ok(()),
            Ok(Some(took)) => Ok(took),
            Err(errno) => Err(errno),
        };
        self.dma = None;
        // Nobody listens when the measurement is over.
        let _ = self.done.send(told);
        Ok(())
    }
}
