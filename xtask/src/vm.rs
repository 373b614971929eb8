//! `cargo xtask vm-test`: a real kernel, with the kernel's own migratable device.
//!
//! ```text
//!   target/vm-test/debian    kernel, headers and source of Debian's packages, unpacked
//!   target/vm-test/mtty      mtty.ko, built of that source
//!   target/vm-test/full      with --kernel full: an image built of the newest source
//!   target/vm-test/qemu      QEMU, where none is installed
//!   target/guest             our programs, static
//!   target/vm-test/run-*     archive and logs of the last run of each kernel
//!
//!   QEMU, all emulated
//!     '- Linux
//!          |- mtty.ko: serial ports that migrate, /dev/vfio
//!          '- /init (xtask/guest)            one line a check, over the second line
//!               '- vfio-migrate ...          the command, as anybody would run it
//! ```
//!
//! What the machine lacks is fetched by the names of packages, so no address of any
//! archive and no version is written down here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::arguments::Arguments;
use crate::machine::child::Running;
use crate::machine::emulator::Qemu;
use crate::machine::guest::Programs;
use crate::machine::kernel::Kernel;
use crate::machine::report::Report;
use crate::machine::{self, guest, make_folder, table};
use crate::{Failure, Outcome, process};

mod debian;
mod full;
mod headers;
mod needs;

/// Help of this command.
pub(crate) const USAGE: &str = "\
Usage: cargo xtask vm-test [--kernel debian|full] [--keep] [-v]

Boots a real kernel in QEMU's emulation, with the kernel's own sample of a device that
migrates (mtty, a serial port), and runs vfio-migrate on it: probe, save, restore, send
and receive, conform, a port that moves from the kernel to user space and back, and dirty
pages. Before that, every number and layout of the room `abi` is compared with the
headers of that kernel, by a C program.

What is missing is fetched by package name through the machine's own package sources and
unpacked under target/vm-test, once: a kernel, its headers and its source, and QEMU.
Compiler and make are installed by apt where they are missing.

  --kernel debian  Debian's 6.12 kernel, with /dev/vfio by group (the default)
  --kernel full    the newest kernel source that can be had, built once with what Debian
                   leaves out: /dev/vfio by device, IOMMUFD; about a quarter of an hour
                   on two CPUs
  --keep           keep the logs of a run that succeeded; those of one that failed are
                   always kept, in target/vm-test/run-debian or run-full
  -v               show the guest's lines as they come

Exit status 1 when a check fails or does not report, or when something is missing.
";

/// From the start of QEMU to its end; some 40 s are usual on a machine that does nothing
/// else.
const DEADLINE: Duration = Duration::from_secs(420);

/// What the guest's kernel is told. Whatever hangs or breaks in it ends the machine.
const KERNEL_OPTIONS: &str = "console=ttyS0 panic=-1 reboot=t softlockup_panic=1 \
                              oops=panic mitigations=off intel_iommu=on loglevel=6 \
                              -- vm";

/// Logs of a run: the kernel's console, and what QEMU has to say.
const CONSOLE: &str = "console.log";
const QEMU_LOG: &str = "qemu.log";

/// A kernel, and the headers of its interface.
#[derive(Debug)]
struct Booted {
    kernel: Kernel,
    /// A folder with `linux/vfio.h` and others.
    headers: PathBuf,
}

/// Runs the command.
///
/// # Errors
///
/// When a check fails, or something that is needed is missing.
pub(crate) fn run(mut arguments: Arguments) -> Outcome {
    let kind: Option<String> = arguments.option("--kernel")?;
    let keep = arguments.flag("--keep");
    let verbose = arguments.flag("-v");
    arguments.finish()?;
    let full = match kind.as_deref() {
        None | Some("debian") => false,
        Some("full") => true,
        Some(other) => {
            return Err(Failure::Usage(format!(
                "`{other}` is no kernel: `debian` or `full`"
            )));
        }
    };
    if std::env::consts::ARCH != "x86_64" {
        return Err(Failure::failed(
            "the guest is an x86-64 one, with programs that are built here: this works \
             on x86-64 only",
        ));
    }
    let root = process::root();
    let target = guest::target(&root)?;
    let cache = target.join("vm-test");
    make_folder(&cache)?;
    let name = if full { "full" } else { "debian" };
    let qemu = {
        let _lock = machine::lock(&cache, "qemu")?;
        needs::qemu(&target)?
    };
    // A kernel that is being built does not keep the other one from running.
    let _lock = machine::lock(&cache, name)?;
    let booted = if full { full::find(&root, &cache)? } else { debian::find(&cache)? };
    println!("== {}, kernel {}", qemu.version, booted.kernel.release);
    let programs = guest::build(&root, &target)?;

    let start = Instant::now();
    let folder = cache.join(format!("run-{name}"));
    machine::remove(&folder)?;
    make_folder(&folder)?;
    let mut report = Report::new(name, Instant::now());
    headers::compare(&programs.guest, &booted.headers, &folder, &mut report)?;
    boot(&qemu, &booted.kernel, &programs, &folder, verbose, &mut report)?;
    print!("{}", table::text(&report.rows));
    let seconds = start.elapsed().as_secs_f64();
    let all = report.rows.len();
    match table::counts(&report.rows) {
        (0, skipped) => {
            println!(
                "vm-test: kernel {}, {all} checks, 0 failed, {skipped} skipped, \
                 {seconds:.1} s",
                booted.kernel.release
            );
            if !keep {
                machine::remove(&folder)?;
            }
            Ok(())
        }
        (failed, _) => Err(Failure::Failed(format!(
            "{}{}{failed} of {all} checks failed in {seconds:.1} s; logs are in {}",
            end_of(&folder.join(QEMU_LOG)),
            end_of(&folder.join(CONSOLE)),
            folder.display()
        ))),
    }
}

/// The last lines of a log, for those who look at nothing but the output.
fn end_of(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    let end = &lines[lines.len().saturating_sub(60)..];
    format!("the end of {}:\n{}\n", log.display(), end.join("\n"))
}

/// Boots the guest, and collects what it says.
fn boot(
    qemu: &Qemu,
    kernel: &Kernel,
    programs: &Programs,
    folder: &Path,
    verbose: bool,
    report: &mut Report,
) -> Outcome {
    let expected = process::output(Command::new(&programs.guest).arg("--list"))?;
    let files = [("bin/vfio-migrate".to_owned(), programs.command.clone())];
    guest::pack(programs, kernel, &files, folder)?;
    let mut command = qemu.command();
    command.current_dir(folder);
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"]);
    command.args(["-m", "512M", "-machine", "q35"]);
    // Two serial lines, an IOMMU with a device behind it that copies, and nothing else;
    // and an end instead of a second boot.
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    command.args(["-serial", &format!("file:{CONSOLE}"), "-serial", "stdio"]);
    command.args(["-device", "intel-iommu", "-device", "edu,addr=4"]);
    command.arg("-kernel").arg(&kernel.image);
    command.args(["-initrd", machine::INITRAMFS, "-append", KERNEL_OPTIONS]);
    let start = Instant::now();
    let running = Running::start("QEMU", &command, &folder.join(QEMU_LOG))?;
    report.listen(running, start + DEADLINE, verbose, CONSOLE, QEMU_LOG);
    report.expect(expected.lines());
    Ok(())
}
