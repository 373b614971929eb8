//! An accelerator as a PCI device, with memory of its own and a DMA engine.
//!
//! ```text
//!   config space (region 7)   power management, MSI-X, PCIe, MSI; AER and LTR; bus
//!                             master gates all DMA
//!   BAR0  4 KiB               registers ([`registers`])
//!   BAR2  16 MiB to 16 GiB    own memory; a window at its start can be mapped
//!   BAR4  4 KiB               MSI-X table and pending bits: the VMM's, never the device's
//!
//!   interrupts                0 INTx, 1 MSI, 2 MSI-X
//!
//!   [command] copies between guest memory and BAR2
//!   [ring]    writes blocks into guest memory and BAR2, at a steady rate
//!   [peer]    writes blocks into another device; never in a P2P state
//! ```
//!
//! With pre-copy its memory is read while it works, followed by the blocks that changed;
//! the window, whose writes nobody sees, and everything that is not memory come in
//! stop-copy. `stream.rs` has the format.
//!
//! Config space is not part of the saved state: the VMM carries its view of it. The
//! MSI-X table in BAR4 reads 0 and refuses writes, because with VFIO a VMM keeps the
//! table and binds eventfds; whether a vector is masked, by MSI as by MSI-X, is the VMM's
//! to know as well.
//!
//! An interrupt goes by what the guest has turned on in config space: MSI-X before MSI
//! before `INTx`. A message that nobody is bound to is lost, as on any device, so a VMM
//! binds before it turns messages on and unbinds after it turned them off. Where MSI has
//! room for fewer vectors than there are (Multiple Message Enable), those above go by
//! vector 0. With no messages on, an interrupt waits in [`registers::INTERRUPTS`] and has
//! `INTx` up until it is acknowledged there.
//!
//! What MSI there is, how many vectors and where the BARs are can be chosen, so that a
//! VMM has another device to refuse; none of it is in the model's name.

pub mod block;
mod config_space;
mod engine;
mod memory;
pub mod registers;
mod stream;

pub use config_space::{AER, IDS, LTR, MSI, MSIX, PCIE, PM};
pub use engine::VECTORS;

use abi::errno::Errno;
use abi::pci::irq_index;
use block::BLOCK;
use config_space::ConfigSpace;
use device::{
    Bus, Description, Digest, Identity, Irq, Migratable, PrecopyInfo, Region, Settle,
    StateArc, Token, Window, Work,
};
use engine::Engine;
use memory::DeviceMemory;
use states::v2::{Capabilities, Session, State, session};
use std::time::Instant;
use stream::{Loader, Saver, Shape};
use thiserror::Error;

/// The index of the registers, unless another order of BARs is asked for.
pub const BAR0: u32 = 0;
/// The index of the device's memory, unless another order of BARs is asked for.
pub const BAR2: u32 = 2;
/// The index of the MSI-X table.
pub const BAR4: u32 = 4;
/// The index of config space.
pub const CONFIG: u32 = 7;

/// Bytes of BAR0.
pub const REGISTER_BYTES: u64 = 4096;
/// Bytes of BAR4.
const TABLE_BYTES: u64 = 4096;

/// The least memory, in bytes.
pub const MEMORY_MIN: u64 = 16 << 20;
/// The most memory, in bytes.
pub const MEMORY_MAX: u64 = 16 << 30;
/// The window's size unless something else is asked for, in bytes.
pub const MAPPED_WINDOW: u64 = 64 << 10;
/// The version of the data that it saves. Since 2, it has [`registers::IRQ_WAITED`].
pub const DATA_VERSION: u32 = 2;

/// Bytes that one checksum of the digest covers.
pub const DIGEST_CHUNK: u64 = 64 << 10;

/// How to build an accelerator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// Bytes of own memory: a power of two from [`MEMORY_MIN`] to [`MEMORY_MAX`].
    pub memory_bytes: u64,
    /// Bytes at the start of it that clients may map: a multiple of 4096, at most half.
    pub mapped_window: u64,
    /// Bytes behind the window that hold its firmware after power-on and after a reset: a
    /// fixed pattern, so that a device that nobody used yet has something to save. A
    /// multiple of 4096, at most what is behind the window.
    pub firmware: u64,
    /// Vectors of MSI-X, 1 to [`VECTORS`]. MSI has as many, up to the next power of two.
    pub vectors: u32,
    /// What MSI it has; `None` for no such capability.
    pub msi: Option<Msi>,
    /// Which BAR is what.
    pub bars: BarOrder,
    /// Which optional migration states it has.
    pub capabilities: Capabilities,
    /// The version of data that it announces, writes and accepts. Another one than
    /// [`DATA_VERSION`] stands for a model from another release.
    pub data_version: u32,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters {
            memory_bytes: MEMORY_MIN,
            mapped_window: MAPPED_WINDOW,
            firmware: 0,
            vectors: VECTORS as u32,
            msi: Some(Msi { wide: true, masks: true }),
            bars: BarOrder::RegistersFirst,
            capabilities: Capabilities::ALL,
            data_version: DATA_VERSION,
        }
    }
}

impl Parameters {
    /// Vectors of MSI, whose number is a power of two.
    fn msi_vectors(&self) -> u32 {
        self.vectors.next_power_of_two()
    }
}

/// What a capability of MSI has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Addresses of 64 bits.
    pub wide: bool,
    /// A mask for each vector. It is kept, and the VMM's to obey.
    pub masks: bool,
}

/// Which BAR is what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BarOrder {
    /// Registers in BAR0, memory in BAR2 and BAR3, the table of MSI-X in BAR4: what
    /// whoever drives it expects.
    #[default]
    RegistersFirst,
    /// Memory in BAR0 and BAR1, registers in BAR2, the table in BAR4: for a device that
    /// is another one to a guest.
    MemoryFirst,
}

impl BarOrder {
    fn places(self) -> Bars {
        match self {
            BarOrder::RegistersFirst => {
                Bars { registers: BAR0, memory: BAR2, table: BAR4 }
            }
            BarOrder::MemoryFirst => Bars { registers: BAR2, memory: BAR0, table: BAR4 },
        }
    }

    /// What a region is.
    fn part(self, region: u32) -> Option<Part> {
        let Bars { registers, memory, table } = self.places();
        match region {
            CONFIG => Some(Part::Config),
            region if region == registers => Some(Part::Registers),
            region if region == memory => Some(Part::Memory),
            region if region == table => Some(Part::Table),
            _ => None,
        }
    }
}

/// The number of the BAR of each part.
#[derive(Clone, Copy)]
struct Bars {
    registers: u32,
    memory: u32,
    table: u32,
}

/// What a region can be.
#[derive(Clone, Copy)]
enum Part {
    Registers,
    Memory,
    Table,
    Config,
}

/// No accelerator can be built so.
#[derive(Debug, Error)]
pub enum AccelError {
    /// The size of the memory.
    #[error("{0} bytes of memory: not a power of two from 16 MiB to 16 GiB")]
    Memory(u64),
    /// The size of the window.
    #[error(
        "a mapped window of {0} bytes: not a multiple of 4096, or over half the memory"
    )]
    Window(u64),
    /// The size of the firmware.
    #[error(
        "firmware of {0} bytes: not a multiple of 4096, or more than is behind the window"
    )]
    Firmware(u64),
    /// The number of vectors.
    #[error("{0} vectors: an accelerator has 1 to {VECTORS}")]
    Vectors(u32),
    /// The memory cannot be had.
    #[error("cannot get memory for the device")]
    Allocate(#[source] std::io::Error),
}

/// The accelerator.
pub struct Accel {
    parameters: Parameters,
    config: ConfigSpace,
    memory: DeviceMemory,
    engine: Engine,
    /// Whether the device may start peer writes.
    peer_allowed: bool,
    /// Whether it is in `STOP_COPY`.
    stop_copy: bool,
    saver: Option<Saver>,
    loader: Option<Loader>,
}

impl Accel {
    /// A new accelerator, all 0 but for its firmware. Its memory is not allocated before
    /// it is written.
    ///
    /// # Errors
    ///
    /// [`AccelError`] for sizes that are not possible.
    pub fn new(parameters: Parameters) -> Result<Accel, AccelError> {
        let Parameters { memory_bytes, mapped_window, firmware, .. } = parameters;
        let sizes = MEMORY_MIN..=MEMORY_MAX;
        if !memory_bytes.is_power_of_two() || !sizes.contains(&memory_bytes) {
            return Err(AccelError::Memory(memory_bytes));
        }
        if !mapped_window.is_multiple_of(BLOCK as u64) || mapped_window > memory_bytes / 2
        {
            return Err(AccelError::Window(mapped_window));
        }
        if !firmware.is_multiple_of(BLOCK as u64)
            || firmware > memory_bytes - mapped_window
        {
            return Err(AccelError::Firmware(firmware));
        }
        if !(1..=VECTORS as u32).contains(&parameters.vectors) {
            return Err(AccelError::Vectors(parameters.vectors));
        }
        let mut memory = DeviceMemory::new(memory_bytes, mapped_window)
            .map_err(AccelError::Allocate)?;
        memory.boot(firmware);
        Ok(Accel {
            parameters,
            config: ConfigSpace::new(&parameters),
            engine: Engine::new(&memory, parameters.vectors),
            memory,
            peer_allowed: true,
            stop_copy: false,
            saver: None,
            loader: None,
        })
    }

    fn register_read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        let (register, part) = register_part(offset, into.len())?;
        let value = self.engine.read_register(register, &self.memory).to_le_bytes();
        into.copy_from_slice(&value[part]);
        Ok(())
    }

    /// Shows in config space whether an interrupt waits, and on the line whether the
    /// guest wants to hear of it there.
    fn drive_line(&mut self, bus: &mut dyn Bus) {
        let up = self.config.line(self.engine.has_interrupts());
        bus.set_level(irq_index::INTX, 0, up);
    }

    /// Shows outside what the engine has come to.
    fn show(&mut self, bus: &mut dyn Bus) {
        if self.engine.take_dma_failed() {
            self.config.dma_failed();
        }
        self.drive_line(bus);
    }

    fn register_write(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let (register, part) = register_part(offset, data.len())?;
        // Ones written there clear, so a half that is not written has none.
        let before = match register {
            registers::INTERRUPTS => 0,
            register => self.engine.read_register(register, &self.memory),
        };
        let mut value = before.to_le_bytes();
        value[part].copy_from_slice(data);
        self.engine.write_register(register, u64::from_le_bytes(value), &self.memory)
    }
}

/// Which register an access is to, and which bytes of it.
fn register_part(
    offset: u64,
    len: usize,
) -> Result<(u64, std::ops::Range<usize>), Errno> {
    let start = (offset % 8) as usize;
    match (start, len) {
        (0, 8) | (0 | 4, 4) => Ok((offset - start as u64, start..start + len)),
        _ => Err(Errno::EINVAL),
    }
}

impl Migratable for Accel {
    fn describe(&self) -> Description {
        let Parameters {
            memory_bytes,
            mapped_window,
            vectors,
            msi,
            bars,
            capabilities,
            data_version,
            ..
        } = self.parameters;
        let Bars { registers, memory, table } = bars.places();
        let region =
            |index, size, windows| Region { index, size, writable: true, windows };
        let window = self.memory.window().map(|memory| Window { offset: 0, memory });
        let msi = msi.map(|_| Irq::new(irq_index::MSI, self.parameters.msi_vectors()));
        let irqs = [
            Some(Irq::new(irq_index::INTX, 1)),
            msi,
            Some(Irq::new(irq_index::MSIX, vectors)),
        ];
        Description {
            identity: Identity {
                pci: Some(IDS),
                // The state fits only a device with the same memory and window, so
                // they are in the name, as in a machine type.
                model: format!("accel-{}M-w{}K", memory_bytes >> 20, mapped_window >> 10),
                data_version,
            },
            capabilities,
            regions: vec![
                region(registers, REGISTER_BYTES, vec![]),
                region(memory, memory_bytes, window.into_iter().collect()),
                region(table, TABLE_BYTES, vec![]),
                region(CONFIG, config_space::SIZE as u64, vec![]),
            ],
            irqs: irqs.into_iter().flatten().collect(),
        }
    }

    fn read(&mut self, region: u32, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        match self.parameters.bars.part(region).ok_or(Errno::EINVAL)? {
            Part::Registers => self.register_read(offset, into)?,
            Part::Memory => self.memory.read(offset, into),
            Part::Table => into.fill(0),
            Part::Config => self.config.read(offset as usize, into),
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
        match self.parameters.bars.part(region).ok_or(Errno::EINVAL)? {
            Part::Registers => {
                self.register_write(offset, data)?;
                // Before the answer: an interrupt that the guest has acknowledged must
                // not come again when its VMM unmasks the line.
                self.drive_line(bus);
            }
            Part::Memory => {
                self.memory.write(offset, data);
                self.engine.received(data);
            }
            Part::Config => {
                self.config.write(offset as usize, data);
                self.engine.set_interrupts(self.config.interrupts());
                self.drive_line(bus);
            }
            Part::Table => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.config = ConfigSpace::new(&self.parameters);
        self.memory.reset();
        self.memory.boot(self.parameters.firmware);
        self.engine = Engine::new(&self.memory, self.parameters.vectors);
        self.peer_allowed = true;
        self.stop_copy = false;
        self.saver = None;
        self.loader = None;
    }

    fn enter(&mut self, arc: StateArc, bus: &mut dyn Bus) -> Result<Settle, Errno> {
        let Parameters { data_version: version, vectors, .. } = self.parameters;
        let shape = Shape { version, vectors };
        match session(arc.from, arc.to) {
            Session::OpensSave => self.saver = Some(Saver::new(shape, &self.memory)),
            Session::OpensResume => {
                self.loader = Some(Loader::new(shape, &self.memory));
            }
            Session::EndsSave => self.saver = None,
            Session::EndsResume => self.loader = None,
            Session::None | Session::KeepsSave => {}
        }
        self.stop_copy = arc.to == State::StopCopy;
        self.peer_allowed = !arc.to.is_p2p_quiescent();
        if !arc.from.is_running() || !arc.to.is_running() {
            self.engine.restart_clocks();
        }
        // Another state may have been loaded: a line that was up for the one before must
        // not be heard when the device runs.
        self.drive_line(bus);
        // Everything is done in slices between which nothing is half done, and the
        // runner has waited for the messages.
        Ok(Settle::Now)
    }

    fn save(&mut self, into: &mut [u8]) -> Result<usize, Errno> {
        let saver = self.saver.as_mut().ok_or(Errno::ENODEV)?;
        Ok(saver.fill(&self.memory, &self.engine, self.stop_copy, into))
    }

    fn precopy_info(&mut self) -> Result<PrecopyInfo, Errno> {
        let saver = self.saver.as_ref().ok_or(Errno::ENODEV)?;
        Ok(saver.precopy_info(&self.memory))
    }

    fn stop_copy_bytes(&self) -> u64 {
        match &self.saver {
            Some(saver) => saver.left(&self.memory),
            None => stream::stop_copy_bytes(&self.memory),
        }
    }

    fn load(&mut self, data: &[u8]) -> Result<(), Errno> {
        let loader = self.loader.as_mut().ok_or(Errno::ENODEV)?;
        loader.take(data, &mut self.memory)
    }

    fn loaded(&mut self) -> Result<(), Errno> {
        let loader = self.loader.as_mut().ok_or(Errno::ENODEV)?;
        self.engine = loader.finish()?;
        self.engine.set_interrupts(self.config.interrupts());
        Ok(())
    }

    fn work(&mut self, bus: &mut dyn Bus, now: Instant) -> Work {
        let work = match self.config.may_master() {
            true => self.engine.work(&mut self.memory, self.peer_allowed, bus, now),
            false => Work::Idle,
        };
        self.show(bus);
        work
    }

    fn dma_done(
        &mut self,
        token: Token,
        result: Result<&[u8], Errno>,
        bus: &mut dyn Bus,
    ) -> Result<(), Errno> {
        let done = self.engine.dma_done(token, result, &mut self.memory, bus);
        self.show(bus);
        done
    }

    fn digest(&self) -> Option<Digest> {
        let zero = crc32c::crc32c(&vec![0; DIGEST_CHUNK as usize]);
        let per_chunk = DIGEST_CHUNK / BLOCK as u64;
        let mut bytes = vec![0; DIGEST_CHUNK as usize];
        let chunks = (0..self.memory.bytes() / DIGEST_CHUNK).map(|chunk| {
            let first = chunk * per_chunk;
            let end = first + per_chunk;
            if first >= self.memory.window_blocks()
                && self.memory.touched().next_set(first) >= end
            {
                return zero;
            }
            self.memory.read(chunk * DIGEST_CHUNK, &mut bytes);
            crc32c::crc32c(&bytes)
        });
        let chunks = chunks.collect();
        let mut counters = self.engine.counters();
        let words = self.engine.words();
        let registers = words
            .iter()
            .fold(0, |sum, word| crc32c::crc32c_append(sum, &word.to_le_bytes()));
        counters.push(("registers".to_owned(), u64::from(registers)));
        Some(Digest { chunk_bytes: DIGEST_CHUNK, chunks, counters })
    }
}

impl std::fmt::Debug for Accel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accel")
            .field("parameters", &self.parameters)
            .finish_non_exhaustive()
    }
}
