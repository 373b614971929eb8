//! What the test is made of besides ourselves: a QEMU and a kernel, installed or
//! fetched.

use std::path::Path;

use crate::Failure;
use crate::machine::apt::{Apt, Suites};
use crate::machine::emulator::{Oldest, Qemu};
use crate::machine::kernel::Kernel;

/// Before this version the count in the header of DMA by message has 32 bits where the
/// protocol has 64.
const OLDEST: Oldest = Oldest {
    version: [11, 1],
    reason: "before, vfio-user's DMA by message puts data 4 bytes off",
};

/// What the guest loads.
const MODULES: [&str; 2] = ["drivers/uio/uio", "drivers/uio/uio_pci_generic"];

/// The package that depends on the newest kernel for virtual machines, the smallest one.
const KERNEL: &str = "linux-image-cloud-amd64";

/// Finds both, and fetches what is missing where that is wanted.
///
/// # Errors
///
/// What is missing and how to get it, or why it could not be fetched.
pub(super) fn find(cache: &Path, fetch: bool) -> Result<(Qemu, Kernel), Failure> {
    let (at_qemu, at_kernel) = (cache.join("qemu"), cache.join("kernel"));
    let mut qemu = Qemu::find(OLDEST, &[&at_qemu]);
    let mut kernel = Kernel::in_tree(Path::new("/"), &MODULES)
        .or_else(|reason| Kernel::in_tree(&at_kernel, &MODULES).map_err(|_| reason))
        .map_err(|reason| {
            format!("missing: a kernel for the guest, /boot/vmlinuz-* with {reason}")
        });
    if fetch && (qemu.is_err() || kernel.is_err()) {
        println!("== fetch: into {}", cache.display());
        let start = std::time::Instant::now();
        let apt = Apt::new(&cache.join("apt"), Suites::Newer)?;
        if qemu.is_err() {
            qemu = Ok(Qemu::fetch(OLDEST, &apt, &at_qemu)?);
        }
        if kernel.is_err() {
            let depends = apt.field(KERNEL, "Depends")?;
            let package = depends.split([' ', ',']).next().unwrap_or_default();
            apt.packages(&[package.to_owned()], &at_kernel)?;
            kernel = Kernel::in_tree(&at_kernel, &MODULES);
        }
        println!("== fetch: {:.1} s", start.elapsed().as_secs_f64());
    }
    match (qemu, kernel) {
        (Ok(qemu), Ok(kernel)) => Ok((qemu, kernel)),
        (qemu, kernel) => {
            let missing: Vec<_> = qemu.err().into_iter().chain(kernel.err()).collect();
            Err(Failure::Failed(format!(
                "{}\nremedy: install it, or let `cargo xtask qemu-test --fetch` unpack \
                 it under {} (about 250 MB; nothing is installed)",
                missing.join("\n"),
                cache.display()
            )))
        }
    }
}
