//! The software guest: a small VMM with vCPUs, memory and real vfio-user devices, in one
//! process and without KVM.
//!
//! ```text
//!     control socket (control)                 engine (departure, arrival)
//!           |                                    |  Machine: the ports
//!        [process] ---- has, lends --> [vm] -----'
//!                                        |
//!       [board]  vCPU threads (vcpu) -- [memory] -- [accel] x N -- vfio-user
//!                  registers            pages       driver          |
//!                  [sections]           [page]      [lines] <-- interrupts
//!                                       [sweep]     [peers] <-- DMA by message
//! ```
//!
//! Everything that the guest writes follows from its registers, and those are nowhere in
//! the memory that migrates. So whether every page, every block of a device and every
//! interrupt is what it should be can be told on either side: by the vCPUs while they
//! work, by [`digests`] of the stopped guest that [`check`] compares, and by a guest that
//! is frozen later and held against its own registers alone.
//!
//! [`options`] is what an operator chooses; [`token`] says which command is allowed when.

mod accel;
mod arrival;
mod barrier;
mod board;
mod changes;
pub mod check;
mod control;
mod departure;
pub mod digests;
mod inject;
mod inspect;
mod layout;
mod lines;
mod memory;
pub mod options;
mod page;
mod peers;
mod process;
mod sections;
mod signals;
mod sweep;
pub mod token;
mod vcpu;
mod verify;
mod vm;

use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::json;

use crate::{output, socket};
use options::{ReceiveOptions, RunOptions};
use process::Guest;
use signals::Caught;
use vm::Vm;

/// What the control socket is made for, in errors.
const CONTROL: &str = "make the control socket";

/// Boots a guest and runs it until it is told to quit. Returns the exit status.
///
/// SIGINT, SIGTERM and SIGHUP tell it to quit, too, and are refused where that is.
///
/// # Errors
/// When the machine cannot be made: a device that is not there or cannot migrate, no
/// memory, a control socket that cannot be had.
pub fn run(options: RunOptions) -> Result<u8> {
    let RunOptions { machine, control, digests, inject, hold, paused } = options;
    let signals = Caught::new()?;
    let listener = socket::listen(&control, CONTROL)?;
    let vm = Vm::build(&machine, hold, inject)?;
    vm.boot(&machine)?;
    let guest = Arc::new(Guest::here(vm, digests, inject)?);
    let _quitting = signals.quit(&guest)?;
    if paused {
        guest.pause()?;
    } else {
        guest.begin()?;
    }
    let text = format!(
        "the guest {} in process {}; its control socket is {}",
        if paused { "is paused" } else { "runs" },
        std::process::id(),
        control.display()
    );
    let ready = json!({ "ready": {
        "guest": if paused { "paused" } else { "running" },
        "control": control,
        "pid": std::process::id(),
    }});
    output::say(&text, &ready)?;
    control::serve(&guest, &listener)?;
    Ok(guest.status_code())
}

/// Waits for a guest from another host, and runs it until it is told to quit. Returns
/// the exit status: 1 where what came was thrown away. Signals are as in [`run`].
///
/// # Errors
/// When it cannot listen, or a control socket cannot be had. A machine that cannot be
/// made is a refusal that the source hears.
pub fn receive(options: ReceiveOptions) -> Result<u8> {
    let ReceiveOptions { machine, control, digests, from } = options;
    machine.validate()?;
    let signals = Caught::new()?;
    let listener = socket::listen(&control, CONTROL)?;
    let place = link::listen(&from)
        .with_context(|| format!("cannot wait for a guest at {from}"))?;
    let from = place.local().to_string();
    let guest = Arc::new(Guest::waiting(digests, from.clone())?);
    let _quitting = signals.quit(&guest)?;
    let text = format!(
        "waiting for a guest at {from} in process {}; the control socket is {}",
        std::process::id(),
        control.display()
    );
    let ready = json!({ "ready": {
        "guest": "waiting",
        "from": from,
        "control": control,
        "pid": std::process::id(),
    }});
    output::say(&text, &ready)?;
    let arriving = Arc::clone(&guest);
    let thread = std::thread::Builder::new().name("arrival".to_owned());
    let arrival = thread
        .spawn(move || {
            if let Err(error) = arrival::receive(&arriving, &place, &machine) {
                output::note(&format!("cannot receive a guest: {error:#}"));
                arriving.end(1);
            }
        })
        .context("cannot start a thread")?;
    control::serve(&guest, &listener)?;
    drop(arrival);
    Ok(guest.status_code())
}
