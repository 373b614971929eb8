//! What a vCPU does with an accelerator: it rewrites the window, sends pages there and
//! back, and checks what the device wrote.

use std::time::{Duration, Instant};

use control::pci::FunctionError;
use models::accel::block::{self, Block, Kind};
use models::accel::registers as reg;

use super::{Accel, AccelDriver, Stage, command_stamp};
use crate::guest::board::Board;
use crate::guest::controller::{self, VECTORS};
use crate::guest::layout::PAGE;
use crate::guest::page::Page;
use crate::guest::pci::{Came, Pci};
use crate::guest::vcpu::Hands;

/// The least time between two pairs of commands.
const COMMANDS: Duration = Duration::from_millis(20);
/// Window blocks are rewritten so that all of them are within this many ticks.
const WINDOW_TICKS: u64 = 500;
/// Ring blocks that are checked after an interrupt.
const RING_CHECKS: u64 = 8;
/// Ring slots that the device may be about to write again.
const RING_MARGIN: u64 = 8;

impl Accel {
    /// Handles a device's interrupts and keeps it busy.
    pub(in crate::guest) fn drive(
        &self,
        board: &Board,
        pci: &mut Pci,
        driver: &mut AccelDriver,
        hands: &mut Hands,
        busy: bool,
    ) -> Result<(), FunctionError> {
        let heard = pci.hear(board)?;
        let came = self.causes(board, pci, heard)?;
        let page = &mut hands.page;
        if came[controller::RING] {
            self.check_ring(board, pci, driver, page)?;
        }
        if came[controller::COMMAND] && driver.stage != Stage::Idle {
            // Where vectors are shared, another cause may have come.
            let over = self.register(&board.bus, pci, reg::COMMAND_COUNT)?;
            if over >= driver.started() {
                self.finish(board, pci, driver, page)?;
            }
        }
        if heard == Came::Line {
            pci.end_of_line(board, busy)?;
        }
        if !busy {
            return Ok(());
        }
        if self.plan.window > 0 {
            for _ in 0..self.plan.window.div_ceil(WINDOW_TICKS) {
                self.write_window(&board.bus, pci, driver.window, page)?;
                driver.window += 1;
            }
        }
        let last = hands.ordered.get(&self.number);
        let due = last.is_none_or(|at| at.elapsed() >= COMMANDS);
        if driver.stage == Stage::Idle && due {
            command_stamp(self.number, driver.commands).fill(page);
            board.ram.store(self.area.outgoing / PAGE, page);
            self.command(&board.bus, pci, Stage::Out)?;
            driver.stage = Stage::Out;
            hands.ordered.insert(self.number, Instant::now());
        }
        Ok(())
    }

    /// What an interrupt may be for. By the line that is asked, and acknowledged.
    fn causes(
        &self,
        board: &Board,
        pci: &Pci,
        came: Came,
    ) -> Result<[bool; VECTORS], FunctionError> {
        let vector: [usize; VECTORS] = std::array::from_fn(|cause| pci.vectors.of(cause));
        Ok(match came {
            Came::Nothing => [false; VECTORS],
            Came::Messages(counts) => vector.map(|vector| counts[vector] > 0),
            Came::Line => {
                let bits = self.register(&board.bus, pci, reg::INTERRUPTS)?;
                self.set(&board.bus, pci, reg::INTERRUPTS, bits)?;
                board.controller.handled_by_line(self.number, bits);
                vector.map(|vector| bits >> vector & 1 == 1)
            }
        })
    }

    /// What the device has sent by a vector.
    pub(in crate::guest) fn messages_sent(
        &self,
        board: &Board,
        pci: &Pci,
        vector: usize,
    ) -> Result<u64, FunctionError> {
        self.register(&board.bus, pci, reg::IRQ_SENT + 8 * vector as u64)
    }

    /// A command is over: on to the way back, or a look at what came back.
    fn finish(
        &self,
        board: &Board,
        pci: &Pci,
        driver: &mut AccelDriver,
        page: &mut Page,
    ) -> Result<(), FunctionError> {
        let status = self.register(&board.bus, pci, reg::COMMAND_STATUS)?;
        if status != reg::DONE {
            let (name, number) = (self.name(), driver.started());
            board.faults.add(|| format!("{name}: command {number} ended with {status}"));
        }
        if driver.stage == Stage::Out {
            self.command(&board.bus, pci, Stage::Back)?;
            driver.stage = Stage::Back;
            return Ok(());
        }
        board.ram.load(self.area.incoming / PAGE, page);
        if let Err(fault) = command_stamp(self.number, driver.commands).check(page) {
            let (name, number) = (self.name(), driver.commands);
            board.faults.add(|| format!("{name}: page of command {number}: {fault}"));
        }
        driver.commands += 1;
        driver.stage = Stage::Idle;
        Ok(())
    }

    /// Looks at the newest blocks that the device wrote into guest memory.
    fn check_ring(
        &self,
        board: &Board,
        pci: &Pci,
        driver: &mut AccelDriver,
        page: &mut Page,
    ) -> Result<(), FunctionError> {
        let sent = self.register(&board.bus, pci, reg::RING + reg::SENT)?;
        let slots = self.area.slots;
        for sequence in sent.saturating_sub(RING_CHECKS.min(slots / 2))..sent {
            let index = sequence % slots;
            board.ram.load(self.area.ring / PAGE + index, page);
            let found = block::check(page);
            if found == Some(Block { kind: Kind::GUEST, sequence, index }) {
                driver.checked += 1;
                continue;
            }
            // The device may have come round again meanwhile.
            let now = self.register(&board.bus, pci, reg::RING + reg::SENT)?;
            if now.saturating_add(RING_MARGIN) < sequence.saturating_add(slots) {
                let name = self.name();
                board.faults.add(|| {
                    let found = found.map_or("broken bytes".into(), |b| b.to_string());
                    format!("{name}: ring slot {index}: {found} instead of {sequence}")
                });
            }
        }
        Ok(())
    }
}
