//! Looks at the stopped guest: digests of its memory, its devices and its counters.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use control::pci::{InterruptMode, VectorCounts};
use port::{Inspect, VmmError};

use super::board::Board;
use super::device;
use super::digests::{Device, Digests, Line, Own, Vector};
use super::layout::PAGE;
use super::memory::Ram;
use super::options::InterruptKind;
use super::page::BYTES;
use super::vcpu::locked;

/// Threads that read memory. One CPU more than this rarely helps: memory is the limit.
const THREADS: u64 = 2;
/// Pages that a thread takes at once.
const TAKE: u64 = 4096;

/// Writes digests when the engine says that the guest is stopped.
pub(super) struct Looker {
    /// What is looked at.
    pub(super) board: Arc<Board>,
    /// Whether devices write into each other.
    pub(super) p2p: bool,
    /// Where the digests go.
    pub(super) path: PathBuf,
}

impl Looker {
    fn look(&self, operation: &str) -> Result<(), VmmError> {
        digests(&self.board, self.p2p)
            .and_then(|digests| {
                digests
                    .write(&self.path)
                    .with_context(|| format!("write {}", self.path.display()))
            })
            .map_err(|error| VmmError::new("digests", operation, error))
    }
}

impl Inspect for Looker {
    fn stopped(&mut self) -> Result<(), VmmError> {
        self.look("look at the stopped guest")
    }

    fn loaded(&mut self) -> Result<(), VmmError> {
        self.look("look at the loaded guest")
    }
}

/// Digests of a guest whose vCPUs and devices are stopped.
pub(super) fn digests(board: &Board, p2p: bool) -> Result<Digests> {
    let pages = pages(&board.ram);
    let registers: Result<Vec<u32>> = board
        .vcpus
        .iter()
        .map(|vcpu| Ok(crc32c::crc32c(&serde_json::to_vec(&*locked(vcpu))?)))
        .collect();
    let devices: Result<Vec<_>> = board
        .devices
        .iter()
        .map(|device| {
            let name = device.name();
            let found = device.digest().with_context(|| format!("digest of {name}"))?;
            let chunks = found.chunks.len() as u64;
            let seen = Device {
                name: name.to_owned(),
                chunk_bytes: found.chunk_bytes,
                chunks,
                counters: found.counters,
                ..Device::default()
            };
            let seen = interrupts(board, device, seen)?;
            Ok((seen, found.chunks))
        })
        .collect();
    Ok(Digests::new(registers?, board.timer.now(), p2p, pages, devices?))
}

/// What there is to say of the function of a device that counts this: its interrupts, and
/// where its BARs are.
fn interrupts(board: &Board, device: &device::Device, seen: Device) -> Result<Device> {
    let function = board.bus.function(device.number);
    let kind = match function.mode() {
        InterruptMode::Off => None,
        InterruptMode::Intx => Some(InterruptKind::Intx),
        InterruptMode::Msi => Some(InterruptKind::Msi),
        InterruptMode::Msix => Some(InterruptKind::Msix),
    };
    let heard = board.controller.heard(device.number);
    let counts = function.counts().context("its interrupts")?;
    let handled = heard.handled.into_iter().chain(std::iter::repeat(0));
    let line = counts.first().filter(|_| kind == Some(InterruptKind::Intx));
    let driver = board.driver(device.number);
    let own = |number: usize| {
        let vectors = driver.as_ref().map(|driver| &driver.pci.vectors);
        vectors.map_or(Own::default(), |vectors| vectors.own(number, seen.sent(number)))
    };
    let vector = |(number, (counts, handled)): (usize, (&VectorCounts, u64))| Vector {
        handled,
        pending: counts.pending,
        held: counts.held,
        absorbed: counts.absorbed,
        windows: counts.windows,
        own: own(number),
        masked: counts.masked,
    };
    let vectors = match line {
        None => counts.iter().zip(handled).enumerate().map(vector).collect(),
        Some(_) => handled
            .take(heard.handled.len())
            .map(|handled| Vector { handled, ..Vector::default() })
            .collect(),
    };
    let line = line.map(|line| Line {
        rises: line.rises,
        acknowledged: heard.acknowledged,
        pending: line.pending > 0,
        off: line.masked,
    });
    let bars = function.bars();
    let bars = bars.iter().filter(|place| place.decoded);
    let bars = bars.map(|place| (place.bar, place.address)).collect();
    Ok(Device { interrupts: kind, vectors, line, bars, ..seen })
}

/// The checksum of every page.
fn pages(ram: &Ram) -> Vec<u32> {
    let count = ram.layout().pages();
    let next = AtomicU64::new(0);
    let mut sums = vec![0; count as usize];
    let work = || {
        let mut found = Vec::new();
        let mut bytes = [0; BYTES];
        loop {
            let first = next.fetch_add(TAKE, Ordering::Relaxed);
            if first >= count {
                return found;
            }
            let end = (first + TAKE).min(count);
            let sums = (first..end).map(|page| {
                ram.load(page, &mut bytes);
                crc32c::crc32c(&bytes)
            });
            found.push((first as usize, sums.collect::<Vec<u32>>()));
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            let found = thread.join().expect("invariant: a checksum does not panic");
            for (first, some) in found {
                sums[first..first + some.len()].copy_from_slice(&some);
            }
        }
    });
    debug_assert_eq!(count * PAGE, ram.layout().memory());
    sums
}
