//! A PCI card with one or two serial ports, each a 16550 with a loopback plug: the
//! device of the kernel's mtty sample.
//!
//! ```text
//!   config space (region 7)   ids of mtty, two I/O BARs, no capability
//!   BAR0  8 bytes             port one ([`registers`])
//!   BAR1  8 bytes             port two, where there is one
//!
//!   port one  [FIFO 16]  IER & waiting --.
//!   port two  [FIFO 16]  IER & waiting --+--> INTx (a level), MSI (one message)
//! ```
//!
//! It is all that the accelerator is not: no DMA, no memory, nothing to copy before it
//! stops, and a state of 60 or 96 bytes that everything else has to carry without
//! padding, rounding or a wait. And that state is the kernel's: what mtty saved is
//! loaded here, and the other way round (`stream.rs` has the format).
//!
//! To a guest it is mtty, too, where that is a 16550 at all. What it does otherwise, as
//! the data sheet says:
//!
//! - A FIFO with 16 bytes is full. In mtty it reads as empty, and stays so.
//! - Trigger levels work, and fewer bytes interrupt after the time of four; in mtty each
//!   byte does. Whether that time is over is saved, how much of it went by is not.
//! - A divisor is replaced and stays. mtty mixes its new bits into what is there, and
//!   forgets it with each DLAB.
//! - Each interrupt can be acknowledged, so the line goes down: reading LSR, IIR and MSR
//!   clears what they tell. IIR has the most urgent one, not all of them mixed.
//! - MSR shows the port's outputs in [`registers::MCR_LOOP`], and what changed.
//! - Several bytes accessed at once are several registers.
//!
//! An interrupt is told by both ways that mtty has; a VMM listens to one. By MSI each
//! cause of a port is told when it comes up, and again later if nobody heard it. A reset
//! takes all of it back, where mtty leaves its ports as they are.

mod config_space;
mod port;
pub mod registers;
mod stream;

pub use config_space::IDS;

use abi::errno::Errno;
use abi::pci::{irq_index, region_index};
use config_space::ConfigSpace;
use crc32c::crc32c;
use device::{
    Bus, Description, Digest, Identity, Irq, Migratable, PrecopyInfo, Region, Settle,
    StateArc, Work,
};
use port::{Port, Waiting};
use states::v2::{Capabilities, Session, State, session};
use std::time::Instant;
use stream::{Loader, Saver};
use thiserror::Error;

/// The index of the registers of port one.
pub const BAR0: u32 = region_index::BAR0;
/// The index of the registers of port two.
pub const BAR1: u32 = region_index::BAR1;
/// The index of config space.
pub const CONFIG: u32 = region_index::CONFIG;

/// Bytes of each BAR: one for each register.
pub const BAR_BYTES: u64 = 8;
/// The most ports.
pub const PORTS_MAX: u32 = 2;
/// Bytes of the FIFO of each port.
pub const FIFO_BYTES: u64 = port::FIFO as u64;
/// Where the FIFO of port one is in the saved state, in bytes: a ring, in which the byte
/// that was sent as number `n` since the FIFO was last cleared is at `n` modulo
/// [`FIFO_BYTES`].
pub const FIFO_SAVED_AT: u64 = stream::FIFO_AT as u64;
/// The version of the data that it saves: the major version of mtty's.
pub const DATA_VERSION: u32 = 1;

/// How to build a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// How many ports it has, 1 or 2.
    pub ports: u32,
    /// Which optional migration states it has; mtty has all.
    pub capabilities: Capabilities,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters { ports: PORTS_MAX, capabilities: Capabilities::ALL }
    }
}

/// No card can be built so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UartError {
    /// The number of ports.
    #[error("{0} ports: a uart has 1 or 2")]
    Ports(u32),
}

/// The card.
#[derive(Debug)]
pub struct Uart {
    parameters: Parameters,
    config: ConfigSpace,
    ports: Vec<Port>,
    /// What was told by MSI, for each port.
    told: [Waiting; PORTS_MAX as usize],
    saver: Option<Saver>,
    loader: Option<Loader>,
}

impl Uart {
    /// A new card.
    ///
    /// # Errors
    ///
    /// [`UartError`] where it has no port, or too many.
    pub fn new(parameters: Parameters) -> Result<Uart, UartError> {
        let Parameters { ports, .. } = parameters;
        if ports == 0 || ports > PORTS_MAX {
            return Err(UartError::Ports(ports));
        }
        let count = ports as usize;
        Ok(Uart {
            parameters,
            config: ConfigSpace::new(count, BAR_BYTES),
            ports: vec![Port::new(); count],
            told: [0; PORTS_MAX as usize],
            saver: None,
            loader: None,
        })
    }

    fn port(&mut self, region: u32) -> Result<&mut Port, Errno> {
        // The BARs are the first regions.
        self.ports.get_mut(region as usize).ok_or(Errno::EINVAL)
    }

    /// Says whether the line is up, and shows in config space whether it should be.
    fn drive_line(&mut self, bus: &mut dyn Bus) {
        let waits = self.ports.iter().any(|port| port.waiting() != 0);
        let up = self.config.line(waits);
        bus.set_level(irq_index::INTX, 0, up);
    }

    /// Tells of what waits, by both ways. Only for a device that runs.
    fn tell(&mut self, bus: &mut dyn Bus) {
        self.drive_line(bus);
        for (port, told) in self.ports.iter().zip(&mut self.told) {
            let waiting = port.waiting();
            *told &= waiting;
            // Where nobody listens it stays untold.
            if *told != waiting && bus.raise(irq_index::MSI, 0).is_ok() {
                *told = waiting;
            }
        }
    }
}

impl Migratable for Uart {
    fn describe(&self) -> Description {
        let region =
            |index, size| Region { index, size, writable: true, windows: vec![] };
        let bars = (BAR0..).take(self.ports.len()).map(|bar| region(bar, BAR_BYTES));
        let config = region(CONFIG, config_space::SIZE as u64);
        Description {
            identity: Identity {
                pci: Some(IDS),
                // The state fits only a device with as many ports.
                model: format!("uart-{}", self.ports.len()),
                data_version: DATA_VERSION,
            },
            capabilities: self.parameters.capabilities,
            regions: bars.chain([config]).collect(),
            irqs: vec![Irq::new(irq_index::INTX, 1), Irq::new(irq_index::MSI, 1)],
        }
    }

    fn read(&mut self, region: u32, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        if region == CONFIG {
            self.config.read(offset as usize, into);
            return Ok(());
        }
        let port = self.port(region)?;
        for (register, byte) in (offset..).zip(into) {
            *byte = port.read(register);
        }
        Ok(())
    }

    fn write(
        &mut self,
        region: u32,
        offset: u64,
        data: &[u8],
        bus: &mut dyn Bus,
    ) -> Result<(), Errno> {
        if region == CONFIG {
            self.config.write(offset as usize, data);
            // Also while it is stopped, so nothing else is told here.
            self.drive_line(bus);
            return Ok(());
        }
        let port = self.port(region)?;
        for (register, byte) in (offset..).zip(data) {
            port.write(register, *byte);
        }
        self.tell(bus);
        Ok(())
    }

    fn reset(&mut self) {
        let count = self.ports.len();
        self.config = ConfigSpace::new(count, BAR_BYTES);
        self.ports = vec![Port::new(); count];
        self.told = [0; PORTS_MAX as usize];
        self.saver = None;
        self.loader = None;
    }

    fn enter(&mut self, arc: StateArc, bus: &mut dyn Bus) -> Result<Settle, Errno> {
        match session(arc.from, arc.to) {
            Session::OpensSave => self.saver = Some(Saver::new(self.ports.len())),
            Session::OpensResume => self.loader = Some(Loader::new(self.ports.len())),
            Session::EndsSave => self.saver = None,
            Session::EndsResume => self.loader = None,
            Session::None | Session::KeepsSave => {}
        }
        if let (State::StopCopy, Some(saver)) = (arc.to, &mut self.saver) {
            saver.stopped(&self.ports);
        }
        if !arc.from.is_running() || !arc.to.is_running() {
            self.ports.iter_mut().for_each(Port::restart_clock);
        }
        // Another state may have been loaded. What it waits for is heard when it runs.
        self.drive_line(bus);
        Ok(Settle::Now)
    }

    fn save(&mut self, into: &mut [u8]) -> Result<usize, Errno> {
        let saver = self.saver.as_mut().ok_or(Errno::ENODEV)?;
        Ok(saver.fill(into))
    }

    fn precopy_info(&mut self) -> Result<PrecopyInfo, Errno> {
        let saver = self.saver.as_ref().ok_or(Errno::ENODEV)?;
        Ok(PrecopyInfo { initial_bytes: saver.left() as u64, ..PrecopyInfo::default() })
    }

    fn stop_copy_bytes(&self) -> u64 {
        let read = self.saver.as_ref().map_or(0, Saver::read);
        (stream::state_bytes(self.ports.len()) - read) as u64
    }

    fn load(&mut self, data: &[u8]) -> Result<(), Errno> {
        let loader = self.loader.as_mut().ok_or(Errno::ENODEV)?;
        loader.take(data).map_err(stream::refusal)
    }

    fn loaded(&mut self) -> Result<(), Errno> {
        let loader = self.loader.as_ref().ok_or(Errno::ENODEV)?;
        self.ports = loader.finish().map_err(stream::refusal)?;
        self.told = [0; PORTS_MAX as usize];
        Ok(())
    }

    fn work(&mut self, bus: &mut dyn Bus, now: Instant) -> Work {
        let next = self.ports.iter_mut().filter_map(|port| port.tick(now)).min();
        // Reads clear interrupts, and cannot say so.
        self.tell(bus);
        next.map_or(Work::Idle, Work::At)
    }

    fn digest(&self) -> Option<Digest> {
        let mut digest = Digest::default();
        for (port, number) in self.ports.iter().zip(1..) {
            let mut count = |name, value| {
                digest.counters.push((format!("port{number}_{name}"), value));
            };
            count("waiting", port.fifo.count.into());
            count("fifo", crc32c(&port.fifo.waiting()).into());
            count("divisor", port.divisor.into());
            count("lcr", port.lcr.into());
            count("mcr", port.mcr.into());
            count("scr", port.scr.into());
            count("ier", port.ier.into());
            count("state", crc32c(&stream::encode(port)).into());
        }
        let waits = self.ports.iter().any(|port| port.waiting() != 0);
        digest.counters.push(("irq_waits_0".to_owned(), waits.into()));
        Some(digest)
    }
}
