//! `INTx` as the guest's kernel takes it, by the driver `uio_pci_generic`.
//!
//! The driver's handler asks the status register whether the interrupt is the device's,
//! and turns `INTx` off in the command register; whoever reads `/dev/uio0` acknowledges
//! at the device and turns it on again. So the line has to behave as a level: it comes
//! again while the device has something, and never when it has not.

use std::fs::{self, File, OpenOptions};
use std::io::Read;

use abi::pci::config::{Command, Status};
use models::accel::IDS;
use models::accel::registers as reg;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use super::device::Device;
use super::memory::Memory;
use crate::{Found, PATIENCE, expect, modules, said};

/// What the kernel does not have built in, in this order.
const MODULES: [&str; 2] = ["uio", "uio_pci_generic"];
const DRIVER: &str = "/sys/bus/pci/drivers/uio_pci_generic";

/// How long an interrupt that must not come is listened for, in milliseconds.
const SILENCE: i64 = 300;

pub(crate) fn check(device: &Device, memory: &Memory) -> Found {
    modules::load(&MODULES)?;
    let mut line = Line::bind(device)?;
    // Nothing yet.
    acknowledge(device)?;
    line.enable(device)?;
    line.silent("before anything happened")?;

    device.interrupt(memory, 3)?;
    line.take("the first one")?;
    expect("INTERRUPTS", device.register(reg::INTERRUPTS)?, 1 << 3)?;
    pending(device, true)?;
    if !device.command()?.contains(Command::INTX_DISABLE) {
        return Err("the driver's handler did not turn it off".to_owned());
    }
    // Not acknowledged: it is still there.
    line.enable(device)?;
    line.take("the same again")?;
    acknowledge(device)?;
    pending(device, false)?;
    line.enable(device)?;
    line.silent("after it was acknowledged")?;

    // Two of them while it is off come as one, and go one by one.
    device.set_command(Command::INTX_DISABLE, Command::empty())?;
    device.interrupt(memory, 1)?;
    device.interrupt(memory, 6)?;
    line.silent("while it is off")?;
    expect("INTERRUPTS", device.register(reg::INTERRUPTS)?, 1 << 1 | 1 << 6)?;
    line.enable(device)?;
    line.take("both")?;
    device.set_register(reg::INTERRUPTS, 1 << 1)?;
    pending(device, true)?;
    line.enable(device)?;
    line.take("the other")?;
    acknowledge(device)?;
    line.enable(device)?;
    line.silent("at the end")?;

    // Many in a row: none is lost, none is stuck.
    for n in 0..20 {
        device.interrupt(memory, n % 8)?;
        line.take(&format!("number {n} in a row"))?;
        acknowledge(device)?;
        line.enable(device)?;
    }
    line.silent("after many")?;
    // One that the driver's handler did not take for the device's, only the kernel saw.
    expect("interrupts that the kernel saw", seen(device)?, u64::from(line.taken))?;
    Ok(format!("{} taken by the kernel, level and acknowledgement", line.taken))
}

/// Interrupts on the device's line, as the kernel counts them: those that nobody wanted
/// as well.
fn seen(device: &Device) -> Result<u64, String> {
    let path = "/proc/interrupts";
    let text = fs::read_to_string(path).map_err(said(path))?;
    let name = format!("{}:", device.irq()?);
    let line = text.lines().find_map(|line| line.trim().strip_prefix(&name));
    let line = line.ok_or_else(|| format!("{path} has no {name}"))?;
    // A number for each CPU, then words.
    Ok(line.split_whitespace().map_while(|word| word.parse::<u64>().ok()).sum())
}

/// Clears what is there.
fn acknowledge(device: &Device) -> Result<(), String> {
    device.set_register(reg::INTERRUPTS, u64::MAX)?;
    expect("INTERRUPTS", device.register(reg::INTERRUPTS)?, 0)
}

/// What the status register says.
fn pending(device: &Device, expected: bool) -> Result<(), String> {
    let bit = Status::INTERRUPT.bits();
    expect("status", device.status()? & bit, if expected { bit } else { 0 })
}

/// `/dev/uio0`.
struct Line {
    file: File,
    taken: u32,
}

impl Line {
    fn bind(device: &Device) -> Result<Line, String> {
        let ids = format!("{:04x} {:04x}", IDS.vendor, IDS.device);
        fs::write(format!("{DRIVER}/new_id"), ids).map_err(said(DRIVER))?;
        let bound = format!("{DRIVER}/{}", device.name());
        fs::metadata(&bound)
            .map_err(said(format!("the driver did not take it: {bound}")))?;
        let path = "/dev/uio0";
        let file = OpenOptions::new().read(true).write(true).open(path);
        Ok(Line { file: file.map_err(said(path))?, taken: 0 })
    }

    fn enable(&self, device: &Device) -> Result<(), String> {
        device.set_command(Command::empty(), Command::INTX_DISABLE)
    }

    fn comes_within(&self, milliseconds: i64) -> Result<bool, String> {
        let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
        let timeout = Timespec {
            tv_sec: milliseconds / 1000,
            tv_nsec: milliseconds % 1000 * 1_000_000,
        };
        Ok(poll(&mut fds, Some(&timeout)).map_err(said("poll"))? > 0)
    }

    /// Takes one interrupt, which has to be exactly one.
    fn take(&mut self, which: &str) -> Result<(), String> {
        let patience = PATIENCE.as_millis() as i64;
        if !self.comes_within(patience)? {
            return Err(format!("no interrupt: {which}"));
        }
        let mut count = [0; 4];
        self.file.read_exact(&mut count).map_err(said("read"))?;
        self.taken += 1;
        expect(
            format!("interrupts counted: {which}"),
            u32::from_le_bytes(count),
            self.taken,
        )
    }

    fn silent(&self, when: &str) -> Result<(), String> {
        if self.comes_within(SILENCE)? {
            return Err(format!("an interrupt {when}"));
        }
        Ok(())
    }
}
