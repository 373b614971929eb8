//! The guest's driver of an accelerator.
//!
//! ```text
//!   memory  0 ............ window ............. end - peer - 1 ... end - 1
//!           | written by   | written by the     | written by     | written by
//!           | the guest,   | device itself      | the other      | commands
//!           | mapped       | (its ring)         | device         |
//! ```
//!
//! Which of its BARs is the memory, and which the registers, follows from their sizes.
//! What each part holds follows from sequence numbers: the guest's own for window and
//! commands, the devices' counters for the rest.

mod driving;
mod expected;
mod moving;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use abi::pci::irq_index;
use anyhow::{Context, Result, bail};
use control::pci::FunctionError;
use control::{Transport, TransportError};
use models::accel::registers as reg;
use models::accel::{BAR0, BAR2};
use serde::{Deserialize, Serialize};

use super::bus::Bus;
use super::controller::{self, VECTORS};
use super::layout::{Area, PAGE};
use super::page::{BYTES, Page, Stamp};
use super::pci::Pci;
use super::round::Round;

/// Who writes windows: this and the number of the device.
const WINDOW_WRITER: u32 = 0x1_0000;
/// Who writes command pages: this and the number of the device.
const COMMAND_WRITER: u32 = 0x2_0000;
/// Blocks that a peer writes.
const PEER_SLOTS: u64 = 256;
/// Blocks for one interrupt.
const BATCH: u64 = 64;

/// One accelerator as the guest drives it.
pub(super) struct Accel {
    number: usize,
    transport: Arc<dyn Transport>,
    /// The BAR of its registers.
    registers: u8,
    /// The BAR of its memory.
    memory: u8,
    /// How many vectors its driver uses.
    vectors: usize,
    /// What is where in its memory.
    pub(super) plan: Plan,
    /// What it uses of RAM.
    area: Area,
    /// A copy of [`AccelDriver::window`], readable at any time.
    window_written: AtomicU64,
    /// A copy of [`AccelDriver::commands`], readable at any time.
    commands_over: AtomicU64,
}

/// What is where in a device's memory, in blocks of 4096 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// All of them.
    pub(super) blocks: u64,
    /// Those at the start that the guest has mapped.
    pub(super) window: u64,
    /// Those behind the window that the device's ring goes through.
    pub(super) own: u64,
    /// Those behind that a peer writes.
    pub(super) peer: u64,
}

impl Plan {
    /// The plan for a memory and its window, sizes in bytes.
    pub(super) fn new(memory: u64, window: u64, peer: bool) -> Result<Plan> {
        let (blocks, window) = (memory / PAGE, window / PAGE);
        let peer = if peer { PEER_SLOTS } else { 0 };
        let Some(own) = blocks.checked_sub(window + peer + 1).filter(|own| *own > 0)
        else {
            bail!("its memory of {memory} bytes is too small for the guest");
        };
        Ok(Plan { blocks, window, own, peer })
    }

    /// Where a peer's blocks go, in bytes.
    pub(super) fn peer_offset(&self) -> u64 {
        (self.window + self.own) * PAGE
    }

    /// Where a command copies to, in bytes.
    pub(super) fn command_offset(&self) -> u64 {
        (self.blocks - 1) * PAGE
    }
}

/// What the driver of one device remembers; part of its vCPU's registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AccelDriver {
    /// Window blocks written so far.
    pub(super) window: u64,
    /// Pairs of commands that are over.
    pub(super) commands: u64,
    /// Where the pair under way is.
    pub(super) stage: Stage,
    /// Ring blocks that were checked.
    pub(super) checked: u64,
}

/// A page goes to the device and comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stage {
    /// Nothing under way.
    Idle,
    /// The copy to the device is.
    Out,
    /// The copy back is.
    Back,
}

impl AccelDriver {
    /// The driver of a device that was just started.
    pub(super) fn new(plan: &Plan) -> AccelDriver {
        let window = plan.window;
        AccelDriver { window, commands: 0, stage: Stage::Idle, checked: 0 }
    }

    /// Commands that were started.
    pub(super) fn started(&self) -> u64 {
        2 * self.commands
            + match self.stage {
                Stage::Idle => 0,
                Stage::Out => 1,
                Stage::Back => 2,
            }
    }

    /// What a window block of a device holds.
    pub(super) fn window_block(&self, device: usize, block: u64, plan: &Plan) -> Stamp {
        let sequence = last_before(self.window, block, plan.window);
        window_write(device, sequence, plan)
    }
}

/// What the page of the pair of commands with that number holds.
fn command_stamp(device: usize, number: u64) -> Stamp {
    let writer = COMMAND_WRITER + device as u32;
    Stamp { writer, page: 0, sequence: number, blank: false }
}

/// The last of the numbers below `next` that leave `slot` when divided by `slots`, or
/// `slot` itself where there is none yet.
pub(super) fn last_before(next: u64, slot: u64, slots: u64) -> u64 {
    if next <= slot { slot } else { slot + (next - 1 - slot) / slots * slots }
}

fn window_write(device: usize, sequence: u64, plan: &Plan) -> Stamp {
    let page = sequence % plan.window.max(1);
    Stamp { writer: WINDOW_WRITER + device as u32, page, sequence, blank: false }
}

impl Accel {
    /// The name that the device's digest has for the blocks of its ring.
    pub(super) const SENT: &str = "ring_sent";

    /// Opens the driver's way to a device, changing nothing.
    pub(super) fn open(
        number: usize,
        transport: Arc<dyn Transport>,
        area: Area,
        peer: bool,
    ) -> Result<Accel> {
        let size = |bar: u32| transport.region_info(bar).map(|info| info.size);
        let sizes = (size(BAR0), size(BAR2));
        let first = sizes.0.context("ask for BAR0")? > sizes.1.context("ask for BAR2")?;
        let (registers, memory) = if first { (BAR2, BAR0) } else { (BAR0, BAR2) };
        let info = transport.region_info(memory).context("ask for its memory")?;
        let window = info.areas.first().map_or(0, |(_, size)| *size);
        if info.areas.iter().any(|(offset, _)| *offset != 0) {
            bail!("it has a mapped window that is not at the start of its memory");
        }
        let plan = Plan::new(info.size, window, peer)?;
        // It may be stopped, so that its registers cannot be asked.
        let irqs = transport.irq_info(irq_index::MSIX).context("ask for its vectors")?;
        let vectors = irqs.count.clamp(1, VECTORS as u32) as usize;
        Ok(Accel {
            number,
            transport,
            registers: registers as u8,
            memory: memory as u8,
            vectors,
            plan,
            area,
            window_written: AtomicU64::new(plan.window),
            commands_over: AtomicU64::new(0),
        })
    }

    fn name(&self) -> &str {
        self.transport.name()
    }

    /// The BAR of its memory.
    pub(super) fn memory(&self) -> u8 {
        self.memory
    }

    /// How many vectors its driver uses.
    pub(super) fn vectors(&self) -> usize {
        self.vectors
    }

    /// Where a peer finds its part of the memory.
    pub(super) fn peer_address(&self, pci: &Pci) -> Option<u64> {
        Some(pci.address(self.memory)? + self.plan.peer_offset())
    }

    /// The VMM looks at a register, which is nothing that the guest does.
    fn look(&self, at: u64) -> Result<u64, TransportError> {
        let mut bytes = [0; 8];
        self.transport.region_read(self.registers.into(), at, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn register(&self, bus: &Bus, pci: &Pci, at: u64) -> Result<u64, FunctionError> {
        let mut bytes = [0; 8];
        pci.reach(bus).read(self.registers, at, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn set(
        &self,
        bus: &Bus,
        pci: &Pci,
        at: u64,
        value: u64,
    ) -> Result<(), FunctionError> {
        pci.reach(bus).write(self.registers, at, &value.to_le_bytes())
    }

    /// Whether registers could be those of this device's driver.
    pub(super) fn fits(&self, driver: &AccelDriver, most: u64) -> bool {
        (self.plan.window..most).contains(&driver.window)
            && [driver.commands, driver.checked].iter().all(|count| *count <= most)
    }

    /// Lets everybody see how far the driver is.
    pub(super) fn show(&self, driver: &AccelDriver) {
        self.window_written.store(driver.window, Ordering::Release);
        self.commands_over.store(driver.commands, Ordering::Release);
    }

    /// Pairs of commands that are over.
    pub(super) fn commands_over(&self) -> u64 {
        self.commands_over.load(Ordering::Acquire)
    }

    /// Blocks that it wrote by itself. It has to run.
    pub(super) fn sent(&self) -> Result<u64, TransportError> {
        self.look(reg::RING + reg::SENT)
    }

    /// Everything that counts writes to RAM and to its memory. It has to run.
    pub(super) fn rounds(&self) -> Result<Vec<Round>, TransportError> {
        let Plan { own, window, peer, .. } = self.plan;
        let round = |count, pages, blocks| Round { count, lag: 0, pages, blocks };
        // The pair that was under way may have written before.
        let over = |blocks| Round { lag: 1, ..round(self.commands_over(), 1, blocks) };
        Ok(vec![
            round(self.sent()?, self.area.slots, own),
            round(self.window_written.load(Ordering::Acquire), 0, window),
            round(self.look(reg::RECEIVED)?, 0, peer),
            // Out to the device, and back.
            over(1),
            over(0),
        ])
    }

    /// The driver starts the device: it writes `rate` bytes a second by itself, and
    /// where `peer` is an address, as much to there.
    pub(super) fn start(
        &self,
        bus: &Bus,
        pci: &Pci,
        rate: u64,
        peer: Option<u64>,
    ) -> Result<()> {
        let name = self.name();
        let failed = || format!("{name}: registers");
        let id = self.register(bus, pci, reg::ID).with_context(failed)?;
        if id != reg::ID_VALUE {
            bail!("{name} has the ids of an accelerator and is none (id {id:#x})");
        }
        let mut page = [0; BYTES];
        for sequence in 0..self.plan.window {
            self.write_window(bus, pci, sequence, &mut page).with_context(failed)?;
        }
        let vector = |cause| pci.vectors.of(cause) as u64;
        let run = if rate > 0 { reg::RUN } else { 0 };
        let ring = [
            (reg::IOVA, self.area.ring),
            (reg::SLOTS, self.area.slots),
            (reg::RATE, rate),
            (reg::VECTOR, vector(controller::RING)),
            (reg::BATCH, BATCH),
            (reg::OWN_OFFSET, self.plan.window * PAGE),
            (reg::OWN_SLOTS, self.plan.own),
            (reg::CONTROL, run),
        ];
        for (register, value) in ring {
            self.set(bus, pci, reg::RING + register, value).with_context(failed)?;
        }
        if let Some(iova) = peer {
            let peer = [
                (reg::IOVA, iova),
                (reg::SLOTS, PEER_SLOTS),
                (reg::RATE, rate),
                (reg::VECTOR, vector(controller::PEER)),
                (reg::BATCH, BATCH),
                (reg::CONTROL, run),
            ];
            for (register, value) in peer {
                self.set(bus, pci, reg::PEER + register, value).with_context(failed)?;
            }
        }
        Ok(())
    }

    /// The guest writes the next block of the window, which is mapped.
    fn write_window(
        &self,
        bus: &Bus,
        pci: &Pci,
        sequence: u64,
        page: &mut Page,
    ) -> Result<(), FunctionError> {
        let stamp = window_write(self.number, sequence, &self.plan);
        stamp.fill(page);
        pci.reach(bus).write(self.memory, stamp.page * PAGE, page)
    }

    /// Changes one byte of the device's memory behind everybody's back.
    pub(super) fn damage(&self, bus: &Bus) -> bool {
        bus.damage(self.number, self.memory, self.plan.window * PAGE / 2 + 100)
    }

    /// Starts one command of a pair.
    fn command(&self, bus: &Bus, pci: &Pci, stage: Stage) -> Result<(), FunctionError> {
        let (kind, iova) = match stage {
            Stage::Idle => return Ok(()),
            Stage::Out => (reg::COPY_TO_DEVICE, self.area.outgoing),
            Stage::Back => (reg::COPY_TO_GUEST, self.area.incoming),
        };
        for (register, value) in [
            (reg::COMMAND_KIND, kind),
            (reg::COMMAND_IOVA, iova),
            (reg::COMMAND_OFFSET, self.plan.command_offset()),
            (reg::COMMAND_BYTES, PAGE),
            (reg::COMMAND_VECTOR, pci.vectors.of(controller::COMMAND) as u64),
            (reg::COMMAND_DOORBELL, 1),
        ] {
            self.set(bus, pci, register, value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_of_a_device_belongs_to_one_writer() {
        let plan = Plan::new(16 << 20, 64 << 10, true).unwrap();
        assert_eq!(plan.window + plan.own + plan.peer + 1, plan.blocks);
        assert_eq!(plan.peer_offset() + plan.peer * PAGE, plan.command_offset());
        assert!(Plan::new(1 << 20, 1 << 20, false).is_err());
        let alone = Plan::new(16 << 20, 0, false).unwrap();
        assert_eq!((alone.window, alone.own), (0, alone.blocks - 1));
    }

    #[test]
    fn the_last_write_of_a_slot_follows_from_the_next_one() {
        for slots in 1..9 {
            let mut held = vec![None; slots as usize];
            for next in 0..60 {
                for slot in 0..slots {
                    let last = held[slot as usize].unwrap_or(slot);
                    assert_eq!(last_before(next, slot, slots), last, "{next} {slots}");
                }
                held[(next % slots) as usize] = Some(next);
            }
        }
    }
}
