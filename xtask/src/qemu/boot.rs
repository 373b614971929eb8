//! One boot of the guest on the device, and what it reported.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::server::SOCKET;
use super::trace::{DMA_MAP, DMA_READ, DMA_UNMAP, DMA_WRITE, EVENT, Messages};
use crate::machine::child::Running;
use crate::machine::emulator::Qemu;
use crate::machine::kernel::Kernel;
use crate::machine::report::Report;
use crate::machine::table::{Found, Row};
use crate::{Failure, machine};

/// From the start of QEMU to its end. An emulated guest boots in some 6 s.
const DEADLINE: Duration = Duration::from_secs(120);

/// The guest's memory, in MiB.
const MEMORY: u32 = 512;

/// What the guest's kernel is told. The reserved memory is the guest program's; a panic
/// ends the machine.
const KERNEL_OPTIONS: &str =
    "console=ttyS0 quiet panic=-1 mitigations=off memmap=16M$0x10000000";

/// How the device reaches the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sharing {
    /// By descriptors that QEMU sends.
    Shared,
    /// By messages: there are no descriptors.
    Unshared,
}

impl Sharing {
    /// For people, and for the names of files.
    pub(super) fn name(self) -> &'static str {
        match self {
            Sharing::Shared => "shared",
            Sharing::Unshared => "unshared",
        }
    }
}

/// Boots the guest, waits for its end, and returns what was checked by it and of it.
///
/// # Errors
///
/// When QEMU cannot be run at all; everything else is a row that failed.
pub(super) fn boot(
    qemu: &Qemu,
    kernel: &Kernel,
    folder: &Path,
    sharing: Sharing,
    verbose: bool,
) -> Result<Vec<Row>, Failure> {
    let start = Instant::now();
    let log = |what: &str| format!("{}-{what}.log", sharing.name());
    let mut command = command(qemu, kernel, sharing, &log);
    command.current_dir(folder);
    let running = Running::start("QEMU", &command, &folder.join(log("qemu")))?;
    let mut report = Report::new(sharing.name(), start);
    report.listen(running, start + DEADLINE, verbose, &log("console"), &log("qemu"));
    let trace = folder.join(log("trace"));
    let trace = fs::read_to_string(&trace)
        .map_err(|error| format!("cannot read {}: {error}", trace.display()));
    let messages = trace.map(|text| Messages::count(&text));
    report.row("dma-maps", messages.clone().and_then(|messages| maps(&messages)));
    report.row("dma-way", messages.and_then(|messages| way(&messages, sharing)));
    Ok(report.rows)
}

/// Boots the guest, and kills QEMU as soon as the guest drives the device.
///
/// # Errors
///
/// When QEMU cannot be run at all.
pub(super) fn boot_and_kill(
    qemu: &Qemu,
    kernel: &Kernel,
    folder: &Path,
) -> Result<Row, Failure> {
    let start = Instant::now();
    let log = |what: &str| format!("killed-{what}.log");
    let mut command = command(qemu, kernel, Sharing::Shared, &log);
    command.current_dir(folder);
    let mut running = Running::start("QEMU", &command, &folder.join(log("qemu")))?;
    let found = loop {
        match running.line(start + DEADLINE) {
            Ok(Some(line)) if line.starts_with("check dma-read ok") => {
                break Ok("while the guest drove the device".to_owned());
            }
            Ok(Some(_)) => {}
            Ok(None) => break Err("QEMU ended before the guest came so far".to_owned()),
            Err(failure) => break Err(failure.text()),
        }
    };
    // Which kills it.
    drop(running);
    let seconds = start.elapsed().as_secs_f64();
    let (check, found) = ("kill".to_owned(), Found::of(found));
    Ok(Row { run: "killed", check, seconds, found })
}

fn command(
    qemu: &Qemu,
    kernel: &Kernel,
    sharing: Sharing,
    log: &dyn Fn(&str) -> String,
) -> Command {
    let mut command = qemu.command();
    command.args(["-accel", "tcg", "-cpu", "max", "-m", &format!("{MEMORY}M")]);
    match sharing {
        Sharing::Shared => command
            .args(["-machine", "q35,memory-backend=ram", "-object"])
            .arg(format!("memory-backend-memfd,id=ram,size={MEMORY}M,share=on")),
        Sharing::Unshared => command.args(["-machine", "q35"]),
    };
    // No monitor, no display, no network: the two lines and the device, and an end
    // instead of a second boot.
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    command.args(["-run-with", "exit-with-parent=on"]);
    command.args(["-serial", &format!("file:{}", log("console")), "-serial", "stdio"]);
    command.arg("-kernel").arg(&kernel.image);
    command.args(["-initrd", machine::INITRAMFS, "-append", KERNEL_OPTIONS]);
    command.arg("-device").arg(format!(
        r#"{{"driver":"vfio-user-pci","socket":{{"type":"unix","path":"{SOCKET}"}}}}"#
    ));
    command.args(["-D", &log("trace"), "-trace", EVENT]);
    command
}

/// The storm of maps and unmaps that firmware makes of the low megabyte.
fn maps(messages: &Messages) -> Result<String, String> {
    let (maps, unmaps) = (messages.answers(DMA_MAP), messages.answers(DMA_UNMAP));
    let refused = messages.refusals(DMA_MAP) + messages.refusals(DMA_UNMAP);
    let text = format!(
        "{maps} maps and {unmaps} unmaps of {} messages, {refused} refused",
        messages.total()
    );
    if refused == 0 && maps > 2 && unmaps > 0 { Ok(text) } else { Err(text) }
}

/// Whether DMA went the way that this run is about.
fn way(messages: &Messages, sharing: Sharing) -> Result<String, String> {
    let (reads, writes) = (messages.commands(DMA_READ), messages.commands(DMA_WRITE));
    let text = format!("{reads} DMA_READ and {writes} DMA_WRITE by message");
    let expected = match sharing {
        Sharing::Shared => reads + writes == 0,
        Sharing::Unshared => reads > 0 && writes > 0,
    };
    if expected && messages.total() > 0 { Ok(text) } else { Err(text) }
}
