//! `vfio-migrate guest`: from arguments to the options of the software guest.

use anyhow::Result;

use super::ctl;
use crate::args::{Global, GuestCommand, MachineArgs};
use crate::exit::{Exit, Found, status};
use crate::guest;
use crate::guest::options::{MachineOptions, ReceiveOptions, RunOptions};

/// Runs, receives or controls a guest.
pub(super) fn run(command: GuestCommand, global: &Global) -> Result<Exit> {
    match command {
        GuestCommand::Run { machine, from, paused, hold, inject, interrupts } => {
            let options = RunOptions {
                control: machine.control.clone(),
                digests: machine.digests.clone(),
                machine: options(machine),
                inject,
                hold,
                paused,
                interrupts,
            };
            let ended = match from {
                Some(file) => guest::run_from(options, &file)?,
                None => guest::run(options)?,
            };
            Ok(status(Found::Guest(ended)))
        }
        GuestCommand::Receive { from, machine, hold } => {
            let options = ReceiveOptions {
                control: machine.control.clone(),
                digests: machine.digests.clone(),
                machine: options(machine),
                from,
                hold,
            };
            Ok(status(Found::Guest(guest::receive(options)?)))
        }
        GuestCommand::Ctl(control) => ctl::run(&control, global),
    }
}

fn options(machine: MachineArgs) -> MachineOptions {
    MachineOptions {
        memory: machine.memory.bytes(),
        devices: machine.devices,
        vcpus: machine.vcpus,
        dirty_rate: machine.dirty_rate.bytes_per_second(),
        dma_rate: machine.dma_rate.bytes_per_second(),
        p2p: machine.p2p,
        seed: machine.seed,
    }
}
