//! What a vCPU does with an accelerator: it rewrites the window, sends pages there and
//! back, and checks what the device wrote.

use std::time::{Duration, Instant};

use control::TransportError;
use models::accel::block::{self, Block, Kind};
use models::accel::registers as reg;

use super::{Accel, AccelDriver, Stage};
use crate::guest::board::Board;
use crate::guest::layout::PAGE;
use crate::guest::lines::{self, Lines};
use crate::guest::page::Page;
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
        lines: &Lines,
        driver: &mut AccelDriver,
        hands: &mut Hands,
        busy: bool,
    ) -> Result<(), TransportError> {
        let came = lines.handle().unwrap_or_default();
        let page = &mut hands.page;
        if came[lines::RING] > 0 {
            self.check_ring(board, driver, page)?;
        }
        if driver.stage != Stage::Idle {
            let over = lines.handled()[lines::COMMAND];
            if over >= driver.started() {
                self.finish(board, driver, page)?;
            }
        }
        if !busy {
            return Ok(());
        }
        if self.plan.window > 0 {
            for _ in 0..self.plan.window.div_ceil(WINDOW_TICKS) {
                self.write_window(driver.window, page);
                driver.window += 1;
            }
        }
        let due = hands.ordered.is_none_or(|at| at.elapsed() >= COMMANDS);
        if driver.stage == Stage::Idle && due {
            driver.command_page(driver.commands).fill(page);
            board.ram.store(self.area.outgoing / PAGE, page);
            self.command(Stage::Out)?;
            driver.stage = Stage::Out;
            hands.ordered = Some(Instant::now());
        }
        Ok(())
    }

    /// A command is over: on to the way back, or a look at what came back.
    fn finish(
        &self,
        board: &Board,
        driver: &mut AccelDriver,
        page: &mut Page,
    ) -> Result<(), TransportError> {
        let status = self.register(reg::COMMAND_STATUS)?;
        if status != reg::DONE {
            let (name, number) = (self.name(), driver.started());
            board.faults.add(|| format!("{name}: command {number} ended with {status}"));
        }
        if driver.stage == Stage::Out {
            self.command(Stage::Back)?;
            driver.stage = Stage::Back;
            return Ok(());
        }
        board.ram.load(self.area.incoming / PAGE, page);
        if let Err(fault) = driver.command_page(driver.commands).check(page) {
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
        driver: &mut AccelDriver,
        page: &mut Page,
    ) -> Result<(), TransportError> {
        let sent = self.register(reg::RING + reg::SENT)?;
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
            let now = self.register(reg::RING + reg::SENT)?;
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
