//! BARs move while the guest works: decoding off, another address, decoding on.

use abi::pci::config::{self, Command};
use control::pci::FunctionError;

use super::{PLACES, Pci, read_u16};
use crate::guest::bus::Bus;

/// The least time between two moves of one device of a guest that has one, in
/// nanoseconds: about as much for each device more.
const MOVES: u64 = 30_000_000;

impl Pci {
    /// Whether a BAR is to move, at `now` by the guest's timer.
    pub(in crate::guest) fn moves_at(&self, now: u64) -> bool {
        now >= self.move_at && !self.bars.is_empty()
    }

    /// The next BAR goes to its next place; each has its turn. `devices` is how many the
    /// guest has. Nobody may use the function meanwhile: it decodes nothing.
    pub(in crate::guest) fn move_next(
        &mut self,
        bus: &Bus,
        now: u64,
        devices: usize,
    ) -> Result<(), FunctionError> {
        let command = read_u16(bus, self.slot, config::COMMAND)?;
        let off = command & !(Command::IO | Command::MEMORY).bits();
        bus.config_write(self.slot, config::COMMAND, &off.to_le_bytes())?;
        let turn = self.moves % self.bars.len().max(1) as u64;
        if let Some(bar) = self.bars.get_mut(turn as usize) {
            bar.place = (bar.place + 1) % PLACES;
            bar.write(bus, self.slot)?;
        }
        bus.config_write(self.slot, config::COMMAND, &command.to_le_bytes())?;
        self.moves += 1;
        self.move_at = now.saturating_add(MOVES.saturating_mul(devices as u64));
        Ok(())
    }
}
