//! `cargo xtask qemu-test`: a Linux guest in QEMU on a device of our server.
//!
//! ```text
//!   target/qemu-test/qemu, kernel   fetched where they are not installed
//!   target/guest                    the guest's only program (`xtask/guest`), built
//!   target/qemu-test/run            socket, archive and logs of this run
//!
//!   vfio-migrate serve --model accel         one server for all
//!     |- QEMU, memory shared by descriptor   boots, checks, powers off
//!     |- vfio-migrate probe                  the device runs on, with its contents
//!     |- QEMU, killed                        while its guest drives the device
//!     |- vfio-migrate probe
//!     |- QEMU, memory not shared             the same by message
//!     '- vfio-migrate probe
//! ```
//!
//! QEMU's client was written by others, and so was the kernel in the guest: what they do
//! with a device is what our own client and tests cannot tell. Everything is emulated,
//! so no hardware and no rights are needed.

use std::fs;

use crate::arguments::Arguments;
use crate::machine::table::{self, Found, Row};
use crate::machine::{guest, make_folder};
use crate::{Failure, Outcome, process};

mod boot;
mod parts;
mod server;
mod trace;

use boot::Sharing;
use server::Server;

/// Help of this command.
pub(crate) const USAGE: &str = "\
Usage: cargo xtask qemu-test [--fetch] [--keep] [-v]

Serves an accelerator and boots a Linux guest on it, in QEMU's emulation, by its device
vfio-user-pci: once with guest memory that is shared by descriptor, once with memory
that is not, so that all DMA goes by message. From inside, the guest reads config space
and BARs, writes device memory, has the device read and write guest memory, and takes
interrupts by MSI-X, MSI and INTx. In between, one guest is killed with its QEMU. Each
time the device must still run, with what the guest wrote.

It takes a qemu-system-x86_64 of 11.1 or newer from the search path, and the newest
readable /boot/vmlinuz-* that has uio_pci_generic as a module.

  --fetch  get what is missing by package name from a newer Debian suite, through the
           machine's own package sources, and unpack it under target/qemu-test; nothing
           is installed, and it is done once
  --keep   keep socket folder and logs of a run that succeeded; those of one that failed
           are always kept, in target/qemu-test/run
  -v       show the guest's lines as they come

Exit status 1 when a check fails, or when QEMU or a kernel is missing.
";

/// What of the device's memory a guest leaves written, in bytes, at the least: what its
/// first copy brought there.
const LEFT: u64 = 300_001;

/// Runs the command.
///
/// # Errors
///
/// When a check fails, or something that is needed is missing.
pub(crate) fn run(mut arguments: Arguments) -> Outcome {
    let fetch = arguments.flag("--fetch");
    let keep = arguments.flag("--keep");
    let verbose = arguments.flag("-v");
    arguments.finish()?;
    if std::env::consts::ARCH != "x86_64" {
        return Err(Failure::failed(
            "the guest is an x86-64 one, with a program that is built here: this works \
             on x86-64 only",
        ));
    }
    let root = process::root();
    let target = guest::target(&root)?;
    let cache = target.join("qemu-test");
    make_folder(&cache)?;
    let (qemu, kernel) = parts::find(&cache, fetch)?;
    println!("== {}, kernel {}", qemu.version, kernel.image.display());
    let programs = guest::build(&root, &target)?;

    let folder = cache.join("run");
    let _ = fs::remove_dir_all(&folder);
    make_folder(&folder)?;
    guest::pack(&programs, &kernel, &[], &folder)?;
    let mut server = Server::start(&programs.command, &folder)?;
    let mut rows = Vec::new();
    for sharing in [Sharing::Shared, Sharing::Unshared] {
        println!("== guest with {} memory", sharing.name());
        rows.extend(boot::boot(&qemu, &kernel, &folder, sharing, verbose)?);
        rows.push(timed(sharing.name(), "device-after", || server.check_device(LEFT)));
        if sharing == Sharing::Shared {
            println!("== guest that is killed");
            rows.push(boot::boot_and_kill(&qemu, &kernel, &folder)?);
            rows.push(timed("killed", "device-after", || server.check_device(LEFT)));
        }
    }
    rows.push(timed("all", "server-end", || server.end()));
    print!("{}", table::text(&rows));
    match table::counts(&rows) {
        (0, _) => {
            println!("qemu-test: {} checks, all ok", rows.len());
            if !keep {
                let _ = fs::remove_dir_all(&folder);
            }
            Ok(())
        }
        (count, _) => Err(Failure::Failed(format!(
            "{count} of {} checks failed; logs are in {}",
            rows.len(),
            folder.display()
        ))),
    }
}

fn timed(
    run: &'static str,
    check: &str,
    work: impl FnOnce() -> Result<String, String>,
) -> Row {
    let start = std::time::Instant::now();
    let found = work();
    let seconds = start.elapsed().as_secs_f64();
    Row { run, check: check.to_owned(), seconds, found: Found::of(found) }
}
