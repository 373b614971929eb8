//! `/init` of the Linux guest of `cargo xtask qemu-test`: drives the accelerator from
//! inside, by QEMU's `vfio-user-pci`, and reports what it sees.
//!
//! ```text
//!   /init ---- sysfs: config, resource0, 2, 4 ----> QEMU ---- vfio-user ----> our server
//!     |                                               ^
//!     |--- /dev/mem: a reserved 16 MiB: DMA target ---'   and where MSI-X writes to
//!     |--- /dev/uio0: INTx as the kernel takes it
//!     '--- /dev/ttyS1: one line a check, read by the host
//! ```
//!
//! It is the only program of its guest, needs no library and no shell, and is static.
//! Every wait has a deadline; the host has one over all. The lines are
//!
//! ```text
//! check NAME ok DETAIL
//! check NAME FAILED DETAIL
//! done N
//! ```
//!
//! with `N` the number of checks, so that a guest that stops half-way is not taken for
//! one that found nothing.

use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::time::{Duration, Instant};

use rustix::mount::MountFlags;
use rustix::system::{RebootCommand, reboot};

mod device;
mod intx;
mod memory;
mod msix;
mod transfer;

use device::Device;
use memory::Memory;

/// What a check says: something for people, or what is wrong.
type Found = Result<String, String>;

/// The longest that anything in here is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() {
    let ended = run();
    if let Err(error) = ended {
        // Without the report there is only the kernel's console.
        let _ = fs::write("/dev/kmsg", format!("qemu-guest: {error}\n"));
    }
    rustix::fs::sync();
    let _ = reboot(RebootCommand::PowerOff);
}

fn run() -> Result<(), String> {
    for (what, place) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        rustix::mount::mount(what, place, what, MountFlags::empty(), None)
            .map_err(said(format!("mount {place}")))?;
    }
    let line = OpenOptions::new().write(true).open("/dev/ttyS1");
    let mut report = Report { line: line.map_err(said("/dev/ttyS1"))?, checks: 0 };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease");
    report.check(
        "kernel",
        release.map_err(said("osrelease")).map(|text| text.trim().to_owned()),
    );
    match Device::find().and_then(|device| Ok((device, Memory::open()?))) {
        Ok((device, memory)) => checks(&mut report, &device, &memory),
        Err(error) => report.check("device", Err(error)),
    }
    report.end()
}

/// All that is checked, in order: what comes later relies on what came before.
fn checks(report: &mut Report, device: &Device, memory: &Memory) {
    report.check("config", device.check_identity());
    report.check("capabilities", device.check_capabilities());
    report.check("bars", device.check_bars());
    report.check("registers", device.check_registers());
    report.check("reset", device.check_fresh());
    report.check("memory", device.check_memory());
    report.check("dma-read", transfer::check_read(device, memory));
    report.check("dma-write", transfer::check_write(device, memory));
    report.check("dma-window", transfer::check_window(device, memory));
    report.check("dma-nowhere", transfer::check_nowhere(device));
    report.check("bus-master", transfer::check_bus_master(device, memory));
    report.check("ring", transfer::check_ring(device, memory));
    report.check("msix", msix::check_vectors(device, memory));
    report.check("msix-mask", msix::check_mask(device, memory));
    report.check("msix-all", msix::check_function_mask(device, memory));
    report.check("intx", intx::check(device, memory));
    report.check("msix-again", msix::check_vectors(device, memory));
}

/// The line to the host.
struct Report {
    line: File,
    checks: u32,
}

impl Report {
    fn check(&mut self, name: &str, found: Found) {
        self.checks += 1;
        let (word, detail) = match found {
            Ok(detail) => ("ok", detail),
            Err(error) => ("FAILED", error),
        };
        // Whoever does not hear this misses the number at the end.
        let _ = writeln!(self.line, "check {name} {word} {detail}");
    }

    fn end(mut self) -> Result<(), String> {
        writeln!(self.line, "done {}", self.checks).map_err(said("report"))?;
        // What is still in the buffer of the line would be lost with the power.
        rustix::termios::tcdrain(&self.line).map_err(said("report"))
    }
}

/// Puts what failed before why.
fn said<E: Display>(what: impl Display) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {error}")
}

/// Waits for something that comes by itself, looking at it all the time.
fn wait_for(
    what: &str,
    mut there: impl FnMut() -> Result<bool, String>,
) -> Result<(), String> {
    let until = Instant::now() + PATIENCE;
    while !there()? {
        if Instant::now() >= until {
            return Err(format!("{what}: not within {} s", PATIENCE.as_secs()));
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// What was found, where it is what it should be.
fn expect<T: PartialEq + std::fmt::LowerHex>(
    what: impl Display,
    found: T,
    expected: T,
) -> Result<(), String> {
    if found == expected {
        Ok(())
    } else {
        Err(format!("{what}: {found:#x} instead of {expected:#x}"))
    }
}

/// Bytes that look like nothing else, and differ with the seed.
fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed).collect()
}

/// The first byte that differs, for people.
fn same(what: &str, found: &[u8], expected: &[u8]) -> Result<(), String> {
    match found.iter().zip(expected).position(|(a, b)| a != b) {
        None if found.len() == expected.len() => Ok(()),
        None => Err(format!("{what}: {} bytes of {}", found.len(), expected.len())),
        Some(at) => Err(format!(
            "{what}: byte {at} of {} is {:#04x} instead of {:#04x}",
            expected.len(),
            found[at],
            expected[at]
        )),
    }
}
