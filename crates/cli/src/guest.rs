//! The software guest: a small VMM with vCPUs, memory and real vfio-user devices, in one
//! process and without KVM.
//!
//! ```text
//!     control socket (control)                 engine (departure, arrival)
//!           |                                    |  Machine: the ports
//!        [process] ---- has, lends --> [vm] -----'
//!                                        |
//!       [board]  vCPU threads (vcpu) -- [memory]   [bus] -- Function x N -- vfio-user
//!                  registers        \-- [device]--/           |              |
//!                  [sections]           [pci]   [controller] <-- interrupts   |
//!                                       pages                  [peers] <-- DMA by message
//!                                       [page] [sweep]
//! ```
//!
//! A driver (`device`, one for each kind) reaches its device by addresses of the guest
//! alone, which it has found and chosen itself (`pci`).
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
mod bus;
mod changes;
pub mod check;
mod control;
mod controller;
mod counts;
mod departure;
mod device;
pub mod digests;
mod faults;
mod inject;
mod inspect;
mod layout;
mod memory;
pub mod options;
mod page;
mod pci;
mod peers;
mod process;
mod round;
mod sections;
mod signals;
mod snapshot;
mod sweep;
pub mod token;
mod uart;
mod vcpu;
mod verify;
mod vm;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use engine::drive;
use engine::migration::Options;
use serde_json::json;

use crate::{output, socket};
use options::{ReceiveOptions, RunOptions};
use process::{Chosen, Guest};
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
    let RunOptions { machine, control, digests, inject, hold, paused, interrupts } =
        options;
    let signals = Caught::new()?;
    let listener = socket::listen(&control, CONTROL)?;
    let vm = Vm::build(&machine, hold, inject)?;
    vm.boot(&machine, interrupts)?;
    let guest = Arc::new(Guest::here(vm, Chosen { machine, hold, digests, inject })?);
    let _quitting = signals.quit(&guest)?;
    if paused {
        guest.pause()?;
    } else {
        guest.begin()?;
    }
    ready(paused, &control)?;
    control::serve(&guest, &listener)?;
    Ok(guest.status_code())
}

/// Runs the guest that a snapshot saved in `file`, until it is told to quit; `-` is
/// standard input. Returns the exit status: 1 where no guest came of it. It runs where it
/// ran when it was saved and is paused where it was, or where `options` say so; the rest
/// is as in [`run`].
///
/// # Errors
/// When the file is damaged or holds no guest, before a device is touched where it can be
/// read twice; when the machine of `options` cannot be, or no control socket can be had.
pub fn run_from(options: RunOptions, file: &Path) -> Result<u8> {
    let RunOptions { machine, control, digests, inject, hold, paused, .. } = options;
    machine.validate()?;
    let named = || format!("cannot run a guest from {}", file.display());
    let unless = Arc::<AtomicBool>::default();
    let mut stored = store::open_unless(file, &unless).with_context(named)?;
    let found = if stored.is_regular() {
        let patience = Options::default().patience;
        let found = drive::verify_guest(&mut stored, patience);
        let found = found.map_err(hinted).with_context(named)?;
        stored.rewind()?;
        Some(found)
    } else {
        None
    };
    let signals = Caught::new()?;
    let listener = socket::listen(&control, CONTROL)?;
    let from = file.display().to_string();
    let chosen = Chosen { machine, hold, digests, inject };
    let guest = Arc::new(Guest::waiting(chosen, from, Arc::clone(&unless))?);
    let _quitting = signals.quit(&guest)?;
    let playing = arrival::Playback { paused, found, unless };
    let arriving = Arc::clone(&guest);
    let name = file.to_owned();
    let thread = std::thread::Builder::new().name("arrival".to_owned());
    let arrival = thread
        .spawn(move || {
            let Some(paused) =
                arrival::play(&arriving, Box::new(stored), &playing, &name)
            else {
                return;
            };
            if let Err(error) = ready(paused, &control) {
                output::note(&format!("{error:#}"));
                arriving.end(1);
            }
        })
        .context("cannot start a thread")?;
    control::serve(&guest, &listener)?;
    drop(arrival);
    Ok(guest.status_code())
}

/// With what the command line has for it.
fn hinted(error: drive::FileError) -> anyhow::Error {
    let alone = error.to_string().contains("restore the devices");
    let error = anyhow::Error::new(error);
    if alone { error.context("this is a file for `vfio-migrate restore`") } else { error }
}

/// Says that the guest is here.
fn ready(paused: bool, control: &Path) -> Result<()> {
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
    Ok(output::say(&text, &ready)?)
}

/// Waits for a guest from another host, and runs it until it is told to quit. Returns
/// the exit status: 1 where what came was thrown away. Signals are as in [`run`].
///
/// # Errors
/// When it cannot listen, or a control socket cannot be had. A machine that cannot be
/// made is a refusal that the source hears.
pub fn receive(options: ReceiveOptions) -> Result<u8> {
    let ReceiveOptions { machine, control, digests, from, hold } = options;
    machine.validate()?;
    let signals = Caught::new()?;
    let listener = socket::listen(&control, CONTROL)?;
    let awaited = arrival::Awaited::at(&from, false)?;
    let from = awaited.from();
    let chosen = Chosen { machine, hold, digests, inject: None };
    let unless = Arc::clone(&awaited.unless);
    let guest = Arc::new(Guest::waiting(chosen, from.clone(), unless)?);
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
        .spawn(move || awaited.receive(&arriving))
        .context("cannot start a thread")?;
    control::serve(&guest, &listener)?;
    drop(arrival);
    Ok(guest.status_code())
}
