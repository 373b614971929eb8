//! Opens the data connections.

use std::io::IoSlice;
use std::sync::Arc;

use port::Channel;
use wire::preamble::{DataChannel, Preamble, Role};

use super::device::Command as DeviceCommand;
use super::lane::Lane;
use super::memory::Command as MemoryCommand;
use super::sending::Sending;
use super::tracker::chain;
use super::vmm::Command as VmmCommand;
use crate::migration::Cause;

impl Sending {
    /// Opens as many as were announced, and hands them to whoever has bytes for them.
    pub(super) fn dial(&mut self) -> Result<(), Cause> {
        let mut lanes = Vec::new();
        for number in 1..=self.wired.options.channels.max(1) {
            let channel = DataChannel::new(number).ok_or_else(|| {
                Cause::Protocol(format!("{number} is no data connection"))
            })?;
            let role = Role::Data { channel, token: self.token };
            let dialled = self.wired.dial.dial(self.wired.options.patience);
            let halves = dialled.and_then(Channel::split);
            let (mut transmit, _, close) =
                halves.map_err(|error| Cause::Channel(chain(&error)))?;
            transmit.set_deadline(self.wired.options.patience);
            let preamble = Preamble { role, ..self.wired.preamble }.encode();
            transmit
                .send(&[IoSlice::new(&preamble)])
                .map_err(|error| Cause::Channel(chain(&error)))?;
            self.closers.push(close);
            lanes.push(Lane::new(role, transmit));
        }
        self.lanes = Arc::new(lanes);
        self.memory.tell(MemoryCommand::Lanes(Arc::clone(&self.lanes)));
        self.spread.vmm.tell(VmmCommand::Lanes(Arc::clone(&self.lanes)));
        self.tell_all(|| DeviceCommand::Lane(Arc::clone(&self.lanes)));
        Ok(())
    }
}
