//! The kernel's own device that migrates: mtty, a serial port with its FIFO.
//!
//! ```text
//!   /init --- /sys: makes ports
//!     |--- vfio-migrate probe, save, restore, send, receive, serve, conform
//!     |       vfio:<uuid>, as a user would run them
//!     '--- the rooms host and control: what a user cannot say by a command
//!             contents of a port, written before and read after
//! ```
//!
//! mtty needs no IOMMU and no hardware; what it does is the kernel's business, and so
//! these checks tell what our side and a real kernel make of each other.

use std::fs;

use crate::report::Report;
use crate::{Found, modules, said};

mod command;
mod conform;
mod dirty;
mod edu;
mod iommu;
mod irq;
mod loopback;
mod moves;
mod port;
mod probe;
mod type1;
mod uart;
mod ways;

/// What is loaded where it is not built in, in this order.
const MODULES: [&str; 7] = [
    "irqbypass",
    "vfio",
    "vfio_iommu_type1",
    "vfio-pci-core",
    "vfio-pci",
    "mdev",
    "mtty",
];

/// Where a check ends early.
#[derive(Debug)]
enum Stop {
    /// It cannot be made here.
    Skip(String),
    /// It failed.
    Fail(String),
}

impl From<String> for Stop {
    fn from(error: String) -> Stop {
        Stop::Fail(error)
    }
}

/// What came of a check.
type Checked = Result<String, Stop>;

/// A check, by its name.
type Check = (&'static str, fn() -> Checked);

/// All but those of `conform`, in order.
const CHECKS: &[Check] = &[
    ("ports", port::check),
    ("probe-1", probe::check_one),
    ("probe-2", probe::check_two),
    ("probe-nothing", probe::check_nothing),
    ("probe-busy", probe::check_busy),
    ("probe-stopped", probe::check_stopped),
    ("debugfs", probe::check_debugfs),
    ("ways", ways::check_each),
    ("ways-mixed", ways::check_mixed),
    ("ways-launcher", ways::check_launcher),
    ("dma-memory", ways::check_memory),
    ("file-1", moves::check_file_one),
    ("file-2", moves::check_file_two),
    ("file-other", moves::check_other_file),
    ("file-broken", moves::check_broken_file),
    ("compat", moves::check_compat),
    ("send-tcp", moves::check_tcp),
    ("send-other", moves::check_other_port),
    ("send-nowhere", moves::check_lost_destination),
    ("user-space-and-back", moves::check_through_user_space),
    ("dirty", dirty::check),
    ("irq-intx-bytes", irq::check_intx_bytes),
    ("irq-msi-bytes", irq::check_msi_bytes),
    ("irq-intx-moves", irq::check_intx_moves),
    ("irq-msi-moves", irq::check_msi_moves),
    ("irq-function-moves", irq::check_function_moves),
    ("irq-intx-returns", irq::check_intx_returns),
    ("irq-msi-returns", irq::check_msi_returns),
    ("irq-function-returns", irq::check_function_returns),
    ("irq-intx-user-space", irq::check_intx_user_space),
    ("irq-msi-user-space", irq::check_msi_user_space),
    ("irq-function-user-space", irq::check_function_user_space),
    ("type1-capability", type1::check_capability),
    ("type1-errnos", type1::check_errnos),
    ("type1-clean", type1::check_clean),
    ("type1-unmap", type1::check_unmap),
    ("type1-source", type1::check_source),
    ("pci-container", edu::check_container),
    ("iommu-capability", iommu::check_capability),
    ("iommu-exact", iommu::check_exact),
    ("iommu-pages", iommu::check_pages),
    ("iommu-windows", iommu::check_windows),
    ("iommu-off", iommu::check_off),
    ("iommu-holes", iommu::check_holes),
    ("iommu-unmap", iommu::check_unmap),
    ("iommu-large", iommu::check_large),
    ("iommu-gone", iommu::check_gone),
    ("iommu-random", iommu::check_random),
];

/// The checks around them.
const BEFORE: [&str; 2] = ["kernel", "modules"];
const AFTER: &str = "kernel-log";

/// The names of all checks, which the host expects to hear.
pub(crate) fn names() -> Vec<String> {
    let own = BEFORE.into_iter().chain(CHECKS.iter().map(|(name, _)| *name));
    let own = own.chain([AFTER]).map(str::to_owned);
    own.chain(conform::names()).collect()
}

/// Makes all checks.
pub(crate) fn run(report: &mut Report) {
    report.check("modules", prepare());
    for (name, check) in CHECKS {
        match check() {
            Ok(seen) => report.check(name, Ok(seen)),
            Err(Stop::Skip(reason)) => report.skip(name, &reason),
            Err(Stop::Fail(error)) => report.check(name, Err(error)),
        }
    }
    conform::all(report);
    report.check(AFTER, untainted());
}

fn prepare() -> Found {
    modules::load(&MODULES)?;
    fs::metadata(port::TYPES).map_err(said(port::TYPES))?;
    loopback::up()?;
    Ok("vfio with mtty, and a loopback network".to_owned())
}

/// Whether the kernel complained: a warning or an oops leaves its mark.
fn untainted() -> Found {
    let path = "/proc/sys/kernel/tainted";
    let text = fs::read_to_string(path).map_err(said(path))?;
    let taint: u64 = text.trim().parse().map_err(said(path))?;
    // Bits 7 and 9, TAINT_DIE and TAINT_WARN; 14, TAINT_SOFTLOCKUP.
    match taint & (1 << 7 | 1 << 9 | 1 << 14) {
        0 => Ok("no warning, no oops".to_owned()),
        marks => {
            Err(format!("the kernel warned or broke: taint {marks:#x}, see its log"))
        }
    }
}
