//! DMA to memory that the server cannot map: one message there and one back.
//!
//! ```text
//!   figure   model, runner, Server --[DMA_READ, 32 bytes]--------> Client, DmaHandler
//!                                  <--[32 + 4096 bytes]----------
//!                                  --[DMA_WRITE, 32 + 4096]------>
//!                                  <--[32 bytes]-----------------
//!   limit    write(32) -----------> read, write(4128)
//!            read      <-----------
//!            write(4128) ---------> read, write(32)
//!            read      <-----------
//! ```
//!
//! Both ends are threads of one CPU, and the client does nothing but answer. Each run
//! gives the median round of one read and one write, as the end that asks has timed it.

use std::io::{Read, Write};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use abi::errno::Errno;
use control::{DmaTarget, Transport};
use dirty::IovaRange;
use vfio_user::DmaHandler;

use super::destination::PATIENCE;
use super::one_cpu::{self, Bare, Served, median, middle};
use super::plain::{ACCESS, GO, Plain, REGISTERS};
use super::text;
use crate::bench::row::{Reach, Row, Runs, Samples};

/// Rounds in one run.
const ROUNDS: u32 = 10_000;

/// Bytes of a message without data.
const BESIDE: usize = 32;

/// Measures the row.
pub(super) fn measure(runs: Runs) -> Result<Row, String> {
    let samples = one_cpu::measure(move || samples(runs))?;
    Row::new(
        "DMA by message, 4 KiB read and written, both ends on one CPU",
        "µs",
        Reach::AtMost { factor: 1.4, plus: 0.0 },
        &samples,
    )
}

fn samples(runs: Runs) -> Result<Samples, String> {
    let mut rig = Rig::new()?;
    rig.dma(1)?;
    let written = rig.memory.pages()[ACCESS..].to_vec();
    if written != rig.memory.pages()[..ACCESS] {
        return Err("DMA arrived otherwise than it left".into());
    }
    runs.interleave(&mut rig, |rig| rig.dma(ROUNDS), |rig| rig.bare(ROUNDS))
}

/// Both ways, each with its other end.
struct Rig {
    served: Served,
    memory: Arc<Memory>,
    done: Receiver<Result<Vec<Duration>, Errno>>,
    bare: Bare,
}

impl Rig {
    fn new() -> Result<Rig, String> {
        let (tell, done) = mpsc::channel();
        let memory = Arc::new(Memory(Mutex::new(vec![0; 2 * ACCESS])));
        super::guest::noise(5, &mut memory.pages()[..ACCESS]);
        let plain = Plain::new(Vec::new(), tell);
        let served = Served::new(Box::new(plain), Arc::clone(&memory) as _)?;
        let both = IovaRange::new(0, 2 * ACCESS as u64).map_err(text)?;
        let target = DmaTarget::Messages { writable: true };
        served.client()?.dma_map(both, target).map_err(text)?;
        let bare = Bare::new(|mut socket| {
            let mut message = [0x5a; BESIDE + ACCESS];
            loop {
                socket.read_exact(&mut message[..BESIDE])?;
                socket.write_all(&message)?;
                socket.read_exact(&mut message)?;
                socket.write_all(&message[..BESIDE])?;
            }
        })?;
        Ok(Rig { served, memory, done, bare })
    }

    fn dma(&mut self, rounds: u32) -> Result<f64, String> {
        let client = self.served.client()?;
        client.region_write(REGISTERS, GO, &rounds.to_le_bytes()).map_err(text)?;
        let told = self.done.recv_timeout(PATIENCE).map_err(text)?;
        middle(&mut told.map_err(|errno| format!("DMA failed: {errno}"))?)
    }

    fn bare(&mut self, rounds: u32) -> Result<f64, String> {
        let socket = self.bare.socket()?;
        let mut message = [0xa5; BESIDE + ACCESS];
        median(rounds as usize, || {
            socket.write_all(&message[..BESIDE]).map_err(text)?;
            socket.read_exact(&mut message).map_err(text)?;
            socket.write_all(&message).map_err(text)?;
            socket.read_exact(&mut message[..BESIDE]).map_err(text)
        })
    }
}

/// Two pages of a guest.
struct Memory(Mutex<Vec<u8>>);

impl Memory {
    fn pages(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(
        &self,
        iova: u64,
        len: usize,
        work: impl FnOnce(&mut [u8]) -> T,
    ) -> Result<T, Errno> {
        let at = usize::try_from(iova).map_err(|_| Errno::EFAULT)?;
        let mut pages = self.pages();
        let end = at.checked_add(len).ok_or(Errno::EFAULT)?;
        pages.get_mut(at..end).map(work).ok_or(Errno::EFAULT)
    }
}

impl DmaHandler for Memory {
    fn read(&self, iova: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.with(iova, into.len(), |pages| into.copy_from_slice(pages))
    }

    fn write(&self, iova: u64, data: &[u8]) -> Result<(), Errno> {
        self.with(iova, data.len(), |pages| pages.copy_from_slice(data))
    }
}
