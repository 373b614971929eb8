//! What the accelerator does: one command at a time, two engines that write blocks.

mod command;
mod writer;

use super::block::{BLOCK, Block, Kind as BlockKind, check};
use super::config_space::Kind;
use super::memory::DeviceMemory;
use super::registers as reg;
use abi::errno::Errno;
use abi::pci::irq_index;
use command::Command;
use device::{Bus, BusError, Dma, Token, Work};
use dirty::Iova;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use writer::{BLOCK_COST, Pace, WRITER_WORDS, Writer};

/// The most vectors, and what there are unless fewer are asked for.
pub const VECTORS: u64 = 8;

/// Words of the saved state.
pub(super) const WORDS: usize = 8 + 2 * WRITER_WORDS + 3 + 3 * VECTORS as usize;

const BLOCK_BYTES: u64 = BLOCK as u64;

/// Bytes that a command moves in one slice.
const COMMAND_SLICE: usize = 32 << 10;

/// Blocks that an engine writes in one slice.
const WRITER_SLICE: u32 = 8;

/// Messages of one engine on their way at once.
const IN_FLIGHT: usize = 4;

/// When the bus takes nothing now, how soon it is tried again.
const RETRY: Duration = Duration::from_millis(1);

/// Everything that works by itself, and what it counts.
#[derive(Clone)]
pub(super) struct Engine {
    command: Command,
    ring: Writer,
    peer: Writer,
    received: u64,
    received_sum: u64,
    /// By vector: interrupts that came while messages were off and were not acknowledged.
    interrupts: u64,
    irq_sent: [u64; VECTORS as usize],
    irq_unheard: [u64; VECTORS as usize],
    irq_waited: [u64; VECTORS as usize],
    /// How many vectors there are.
    vectors: u64,
    /// What the guest has turned on: config space's to know, so never saved.
    kind: Kind,
    /// Whether DMA failed and config space does not show it yet.
    dma_failed: bool,
    /// Messages on their way, with their length; none when the device is stopped, so never saved.
    in_flight: BTreeMap<Token, (Flight, usize)>,
}

/// What a message was sent for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flight {
    Ring,
    Peer,
    Command,
}

/// Why an engine does not go on right now.
enum Stall {
    /// Something has to come back first.
    Wait,
    /// To be tried again.
    Retry,
}

impl Engine {
    pub(super) fn new(memory: &DeviceMemory, vectors: u32) -> Engine {
        let ring = Writer {
            own_offset: memory.window_blocks() * BLOCK_BYTES,
            own_slots: memory.blocks() - memory.window_blocks(),
            ..Writer::default()
        };
        Engine {
            command: Command::default(),
            ring,
            peer: Writer::default(),
            received: 0,
            received_sum: 0,
            interrupts: 0,
            irq_sent: [0; VECTORS as usize],
            irq_unheard: [0; VECTORS as usize],
            irq_waited: [0; VECTORS as usize],
            vectors: u64::from(vectors).min(VECTORS),
            kind: Kind::default(),
            dma_failed: false,
            in_flight: BTreeMap::new(),
        }
    }

    // Registers.

    pub(super) fn read_register(&self, register: u64, memory: &DeviceMemory) -> u64 {
        match register {
            reg::ID => reg::ID_VALUE,
            reg::MEMORY_BYTES => memory.bytes(),
            reg::WINDOW_BYTES => memory.window_blocks() * BLOCK_BYTES,
            reg::VECTORS => self.vectors,
            reg::COMMAND_KIND => self.command.kind,
            reg::COMMAND_IOVA => self.command.iova,
            reg::COMMAND_OFFSET => self.command.offset,
            reg::COMMAND_BYTES => self.command.bytes,
            reg::COMMAND_VECTOR => self.command.vector,
            reg::COMMAND_STATUS => self.command.status,
            reg::COMMAND_COUNT => self.command.count,
            reg::RECEIVED => self.received,
            reg::RECEIVED_SUM => self.received_sum,
            reg::INTERRUPTS => self.interrupts,
            reg::RING..reg::PEER => self.ring.read_register(register - reg::RING),
            reg::PEER..reg::RECEIVED => self.peer.read_register(register - reg::PEER),
            reg::IRQ_SENT..reg::IRQ_UNHEARD => {
                counter(&self.irq_sent, register - reg::IRQ_SENT)
            }
            reg::IRQ_UNHEARD..reg::IRQ_WAITED => {
                counter(&self.irq_unheard, register - reg::IRQ_UNHEARD)
            }
            _ => counter(&self.irq_waited, register.wrapping_sub(reg::IRQ_WAITED)),
        }
    }

    pub(super) fn write_register(
        &mut self,
        register: u64,
        value: u64,
        memory: &DeviceMemory,
    ) -> Result<(), Errno> {
        let vectors = self.vectors;
        match register {
            reg::RING..reg::PEER => {
                self.ring.write_register(register - reg::RING, value, true, vectors)
            }
            reg::PEER..reg::RECEIVED => {
                self.peer.write_register(register - reg::PEER, value, false, vectors)
            }
            reg::COMMAND_KIND..=reg::COMMAND_DOORBELL => {
                self.command.write_register(register, value, memory.bytes(), vectors)
            }
            reg::INTERRUPTS => {
                self.interrupts &= !value;
                Ok(())
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// A region access wrote into own memory: counts it where it is a peer's block.
    pub(super) fn received(&mut self, data: &[u8]) {
        if let Some(block) = check(data).filter(|block| block.kind == BlockKind::PEER) {
            self.received += 1;
            self.received_sum = self.received_sum.wrapping_add(block.sequence);
        }
    }

    // Interrupts.

    /// What the guest has turned on.
    pub(super) fn set_interrupts(&mut self, kind: Kind) {
        self.kind = kind;
    }

    /// Whether there is something that `INTx` has to tell.
    pub(super) fn has_interrupts(&self) -> bool {
        self.interrupts != 0
    }

    /// Whether DMA failed since this was last asked.
    pub(super) fn take_dma_failed(&mut self) -> bool {
        std::mem::take(&mut self.dma_failed)
    }

    // Work.

    /// The device starts or stops: time that passed meanwhile earns nothing.
    pub(super) fn restart_clocks(&mut self) {
        self.ring.pace = Pace::default();
        self.peer.pace = Pace::default();
    }

    pub(super) fn work(
        &mut self,
        memory: &mut DeviceMemory,
        peer_allowed: bool,
        bus: &mut dyn Bus,
        now: Instant,
    ) -> Work {
        let command = self.work_command(memory, bus, now);
        let ring = self.work_writer(Flight::Ring, memory, bus, now);
        let peer = match peer_allowed {
            true => self.work_writer(Flight::Peer, memory, bus, now),
            false => Work::Idle,
        };
        soonest(soonest(command, ring), peer)
    }

    fn work_command(
        &mut self,
        memory: &mut DeviceMemory,
        bus: &mut dyn Bus,
        now: Instant,
    ) -> Work {
        let command = self.command;
        if command.status != reg::BUSY || self.flying(Flight::Command) > 0 {
            return Work::Idle;
        }
        let left = command.bytes - command.copied;
        let most = COMMAND_SLICE.min(bus.message_limit());
        let len = usize::try_from(left).unwrap_or(most).min(most);
        let at = Iova(command.iova + command.copied);
        let offset = command.offset + command.copied;
        let mut buffer = vec![0; len];
        let moved = if command.kind == reg::COPY_TO_DEVICE {
            let moved = bus.read(at, &mut buffer);
            if moved == Ok(Dma::Done) {
                memory.write(offset, &buffer);
            }
            moved
        } else {
            memory.read(offset, &mut buffer);
            bus.write(at, &buffer)
        };
        match moved {
            Ok(Dma::Done) => self.command_moved(len as u64, bus),
            Ok(Dma::Later(token)) => {
                self.in_flight.insert(token, (Flight::Command, len));
                Work::Idle
            }
            Err(BusError::Busy | BusError::Quiescing | BusError::Stopped) => {
                Work::At(now + RETRY)
            }
            Err(error) => {
                tracing::debug!(%at, %error, "command failed");
                self.command_over(reg::FAILED, bus);
                Work::Idle
            }
        }
    }

    fn command_moved(&mut self, len: u64, bus: &mut dyn Bus) -> Work {
        self.command.copied += len;
        if self.command.copied < self.command.bytes {
            return Work::Again;
        }
        self.command_over(reg::DONE, bus);
        Work::Idle
    }

    fn command_over(&mut self, status: u64, bus: &mut dyn Bus) {
        self.dma_failed |= status == reg::FAILED;
        self.command.status = status;
        self.command.count += 1;
        self.raise(self.command.vector, bus);
    }

    fn work_writer(
        &mut self,
        which: Flight,
        memory: &mut DeviceMemory,
        bus: &mut dyn Bus,
        now: Instant,
    ) -> Work {
        let writer = self.writer(which);
        let rate = writer.rate;
        if writer.control & reg::RUN == 0 || rate == 0 {
            writer.pace = Pace::default();
            return Work::Idle;
        }
        writer.pace.earn(rate, now);
        for _ in 0..WRITER_SLICE {
            if self.writer(which).pace.credit < BLOCK_COST {
                return Work::At(self.writer(which).pace.due(rate, now));
            }
            match self.write_block(which, memory, bus) {
                Ok(()) => self.writer(which).pace.credit -= BLOCK_COST,
                Err(Stall::Wait) => return Work::Idle,
                Err(Stall::Retry) => return Work::At(now + RETRY),
            }
        }
        Work::Again
    }

    /// Writes the next block of an engine to where it goes.
    fn write_block(
        &mut self,
        which: Flight,
        memory: &mut DeviceMemory,
        bus: &mut dyn Bus,
    ) -> Result<(), Stall> {
        if self.flying(which) >= IN_FLIGHT {
            return Err(Stall::Wait);
        }
        let writer = *self.writer(which);
        let mut bytes = [0; BLOCK];
        let mut arrived = Ok(true);
        if writer.slots > 0 {
            let kind =
                if which == Flight::Peer { BlockKind::PEER } else { BlockKind::GUEST };
            let index = writer.sent % writer.slots;
            Block { kind, sequence: writer.sent, index }.make(&mut bytes);
            let at = slot(writer.iova, index, u64::MAX);
            let written = match at {
                Some(at) => bus.write(Iova(at), &bytes),
                None => Err(BusError::Unmapped),
            };
            arrived = match written {
                Ok(Dma::Done) => Ok(true),
                Ok(Dma::Later(token)) => {
                    self.in_flight.insert(token, (which, BLOCK));
                    Ok(false)
                }
                Err(BusError::Busy | BusError::Quiescing | BusError::Stopped) => {
                    return Err(Stall::Retry);
                }
                Err(error) => Err(error),
            };
        }
        if writer.own_slots > 0 {
            let index = writer.sent % writer.own_slots;
            Block { kind: BlockKind::DEVICE, sequence: writer.sent, index }
                .make(&mut bytes);
            match slot(writer.own_offset, index, memory.bytes()) {
                Some(at) => memory.write(at, &bytes),
                None => arrived = arrived.and(Err(BusError::Unmapped)),
            }
        }
        self.writer(which).sent += 1;
        match arrived {
            Ok(true) => self.arrived(which, bus),
            Ok(false) => {}
            Err(error) => {
                tracing::debug!(sequence = writer.sent, %error, "block failed");
                self.block_failed(which);
            }
        }
        Ok(())
    }

    /// A block is where it should be.
    fn arrived(&mut self, which: Flight, bus: &mut dyn Bus) {
        let writer = self.writer(which);
        writer.acknowledged += 1;
        if writer.batch > 0 && writer.acknowledged.is_multiple_of(writer.batch) {
            let vector = writer.vector;
            self.raise(vector, bus);
        }
    }

    /// A block is not where it should be.
    fn block_failed(&mut self, which: Flight) {
        self.writer(which).errors += 1;
        self.dma_failed = true;
    }

    /// A message came back.
    pub(super) fn dma_done(
        &mut self,
        token: Token,
        result: Result<&[u8], Errno>,
        memory: &mut DeviceMemory,
        bus: &mut dyn Bus,
    ) -> Result<(), Errno> {
        let (which, len) = self.in_flight.remove(&token).ok_or(Errno::ENOENT)?;
        match (which, result) {
            (Flight::Command, Ok(data)) => {
                if self.command.kind == reg::COPY_TO_DEVICE {
                    memory.write(self.command.offset + self.command.copied, data);
                }
                let _ = self.command_moved(len as u64, bus);
            }
            (Flight::Command, Err(_)) => self.command_over(reg::FAILED, bus),
            (which, Ok(_)) => self.arrived(which, bus),
            (which, Err(_)) => self.block_failed(which),
        }
        Ok(())
    }

    /// Tells of something by what the guest has turned on. Every vector that gets here
    /// is one that there is.
    fn raise(&mut self, vector: u64, bus: &mut dyn Bus) {
        let (index, sent) = match self.kind {
            Kind::Line => return self.wait(vector),
            Kind::Msix => (irq_index::MSIX, vector),
            // What the guest has no room for goes by the first.
            Kind::Msi(room) if vector >= room.into() => (irq_index::MSI, 0),
            Kind::Msi(_) => (irq_index::MSI, vector),
        };
        match bus.raise(index, sent as u32) {
            Ok(()) => count(&mut self.irq_sent, sent),
            Err(_) => count(&mut self.irq_unheard, vector),
        }
    }

    /// Without messages an interrupt waits, for the line to tell of it.
    fn wait(&mut self, vector: u64) {
        count(&mut self.irq_unheard, vector);
        if self.interrupts & 1 << vector == 0 {
            self.interrupts |= 1 << vector;
            count(&mut self.irq_waited, vector);
        }
    }

    fn writer(&mut self, which: Flight) -> &mut Writer {
        if which == Flight::Peer { &mut self.peer } else { &mut self.ring }
    }

    fn flying(&self, which: Flight) -> usize {
        self.in_flight.values().filter(|(flight, _)| *flight == which).count()
    }

    // The saved state.

    pub(super) fn words(&self) -> [u64; WORDS] {
        let command = &self.command;
        let mut words = [0; WORDS];
        let parts = [
            command.kind,
            command.iova,
            command.offset,
            command.bytes,
            command.vector,
            command.status,
            command.count,
            command.copied,
        ]
        .into_iter()
        .chain(self.ring.words())
        .chain(self.peer.words())
        .chain([self.received, self.received_sum, self.interrupts])
        .chain(self.irq_sent)
        .chain(self.irq_unheard)
        .chain(self.irq_waited);
        for (word, part) in words.iter_mut().zip(parts) {
            *word = part;
        }
        words
    }

    /// From a saved state, which may come from anywhere.
    pub(super) fn from_words(
        words: &[u64; WORDS],
        memory: &DeviceMemory,
        vectors: u32,
    ) -> Result<Engine, Errno> {
        let mut engine = Engine::new(memory, vectors);
        let vectors = engine.vectors;
        let mut next = words.iter().copied();
        let mut take = || next.next().unwrap_or(0);
        engine.command = Command {
            kind: take(),
            iova: take(),
            offset: take(),
            bytes: take(),
            vector: take(),
            status: take(),
            count: take(),
            copied: take(),
        };
        engine.ring.load(&mut take);
        engine.peer.load(&mut take);
        engine.received = take();
        engine.received_sum = take();
        engine.interrupts = take();
        engine.irq_sent = std::array::from_fn(|_| take());
        engine.irq_unheard = std::array::from_fn(|_| take());
        engine.irq_waited = std::array::from_fn(|_| take());
        let command = &engine.command;
        let sound = command.status <= reg::FAILED
            && (command.status != reg::BUSY
                || (command.is_possible(memory.bytes(), vectors)
                    && command.copied < command.bytes))
            && [engine.ring, engine.peer].iter().all(|writer| writer.is_sound(vectors))
            && engine.peer.own_slots == 0
            && engine.interrupts >> vectors == 0;
        if sound { Ok(engine) } else { Err(Errno::EINVAL) }
    }

    /// What is counted, for a digest.
    pub(super) fn counters(&self) -> Vec<(String, u64)> {
        let mut counters: Vec<(String, u64)> = [
            ("commands", self.command.count),
            ("ring_sent", self.ring.sent),
            ("ring_acknowledged", self.ring.acknowledged),
            ("ring_errors", self.ring.errors),
            ("peer_sent", self.peer.sent),
            ("peer_acknowledged", self.peer.acknowledged),
            ("peer_errors", self.peer.errors),
            ("received", self.received),
            ("received_sum", self.received_sum),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        for vector in 0..VECTORS as usize {
            counters.push((format!("irq_sent_{vector}"), self.irq_sent[vector]));
            counters.push((format!("irq_unheard_{vector}"), self.irq_unheard[vector]));
            counters.push((format!("irq_waited_{vector}"), self.irq_waited[vector]));
        }
        counters
    }
}

/// The address of a slot, where all of it lies below `end`.
fn slot(base: u64, index: u64, end: u64) -> Option<u64> {
    let at = index.checked_mul(BLOCK_BYTES)?.checked_add(base)?;
    (at.checked_add(BLOCK_BYTES)? <= end).then_some(at)
}

fn count(counters: &mut [u64], vector: u64) {
    if let Some(counter) = counters.get_mut(vector as usize) {
        *counter = counter.wrapping_add(1);
    }
}

fn counter(counters: &[u64], offset: u64) -> u64 {
    usize::try_from(offset / 8).ok().and_then(|n| counters.get(n).copied()).unwrap_or(0)
}

/// Whichever comes first.
fn soonest(a: Work, b: Work) -> Work {
    match (a, b) {
        (Work::Again, _) | (_, Work::Again) => Work::Again,
        (Work::At(a), Work::At(b)) => Work::At(a.min(b)),
        (Work::At(at), Work::Idle) | (Work::Idle, Work::At(at)) => Work::At(at),
        (Work::Idle, Work::Idle) => Work::Idle,
    }
}
