//! `/init` of the Linux guests of `cargo xtask qemu-test` and `cargo xtask vm-test`:
//! checks from inside, and reports what it sees.
//!
//! ```text
//!   accel    the accelerator of our server, which QEMU makes a PCI device of
//!   vm       the kernel's own device that migrates, by our command and by our rooms
//!   report   /dev/ttyS1: one line a check, read by the host
//! ```
//!
//! It needs no library and no shell, and is static. The kernel's command line says which
//! checks are wanted. Every wait has a deadline; the host has one over all. On the host
//! it prints what it is going to check (`--list`), and what `abi` has (`--abi`).

use std::env;
use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::mount::MountFlags;
use rustix::system::{RebootCommand, reboot};

mod abi;
mod accel;
mod modules;
mod report;
mod vm;

use report::Report;

/// What a check says: something for people, or what is wrong.
type Found = Result<String, String>;

/// The longest that anything in here is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() {
    let mode = env::args().nth(1).unwrap_or_default();
    match mode.as_str() {
        "--list" => println!("{}", vm::names().join("\n")),
        "--abi" => print!("{}", abi::ours()),
        "--abi-in-c" => print!("{}", abi::program()),
        // Whoever is not the first process has no business to mount and to power off.
        _ if std::process::id() != 1 => eprintln!("usage: --list | --abi | --abi-in-c"),
        _ => {
            if let Err(error) = run(&mode) {
                // Without the report there is only the kernel's console.
                let _ = fs::write("/dev/kmsg", format!("guest: {error}\n"));
            }
            rustix::fs::sync();
            // A kernel without ACPI cannot power off; QEMU ends at a restart as well.
            let acpi = Path::new("/sys/firmware/acpi").exists();
            let end = if acpi { RebootCommand::PowerOff } else { RebootCommand::Restart };
            let _ = reboot(end);
        }
    }
}

fn run(mode: &str) -> Result<(), String> {
    for (what, place) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        rustix::mount::mount(what, place, what, MountFlags::empty(), None)
            .map_err(said(format!("mount {place}")))?;
    }
    let mut report = Report::open()?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease");
    report.check(
        "kernel",
        release.map_err(said("osrelease")).map(|text| text.trim().to_owned()),
    );
    match mode {
        "vm" => vm::run(&mut report),
        _ => accel::run(&mut report),
    }
    report.end()
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
