//! A device that another one writes into moves: only once that has stopped, and what it
//! sent has arrived.

use std::time::{Duration, Instant};

use abi::pci::config;
use control::pci::FunctionError;
use models::accel::registers as reg;

use super::Accel;
use crate::guest::board::Board;
use crate::guest::bus::Space;

/// How long blocks may take that are on their way.
const ARRIVE: Duration = Duration::from_secs(5);

/// The engine of a device that writes into another; it stands still.
pub(in crate::guest) struct Halted<'a> {
    board: &'a Board,
    /// The address of its registers.
    at: u64,
    control: u64,
}

impl Accel {
    /// Stops the engine of this device that writes into another one, for a vCPU that need
    /// not be its own: where its registers are, config space says. Nothing of it is on its
    /// way any more then.
    pub(in crate::guest) fn halt<'a>(
        &self,
        board: &'a Board,
    ) -> Result<Halted<'a>, FunctionError> {
        let mut bar = [0; 8];
        let at = config::BAR0 + 4 * u16::from(self.registers);
        board.bus.config_read(self.number, at, &mut bar[..4])?;
        let at = u64::from_le_bytes(bar) & u64::from(config::BAR_MEMORY_MASK);
        let mut halted = Halted { board, at, control: 0 };
        halted.control = halted.read(reg::CONTROL)?;
        halted.write(reg::CONTROL, halted.control & !reg::RUN)?;
        let began = Instant::now();
        loop {
            let sent = halted.read(reg::SENT)?;
            let errors = halted.read(reg::ERRORS)?;
            let over = halted.read(reg::ACKNOWLEDGED)?.saturating_add(errors);
            if over >= sent {
                return Ok(halted);
            }
            if began.elapsed() > ARRIVE {
                let name = self.name();
                board.faults.add(|| {
                    format!("{name}: {over} of {sent} blocks for its peer arrived")
                });
                return Ok(halted);
            }
            std::thread::yield_now();
        }
    }
}

impl Halted<'_> {
    /// It goes on, and writes to `iova`.
    pub(in crate::guest) fn go_on(self, iova: u64) -> Result<(), FunctionError> {
        self.write(reg::IOVA, iova)?;
        self.write(reg::CONTROL, self.control)
    }

    fn read(&self, register: u64) -> Result<u64, FunctionError> {
        let mut bytes = [0; 8];
        let at = self.at + reg::PEER + register;
        self.board.bus.read(Space::Memory, at, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn write(&self, register: u64, value: u64) -> Result<(), FunctionError> {
        let at = self.at + reg::PEER + register;
        self.board.bus.write(Space::Memory, at, &value.to_le_bytes())
    }
}
