//! Our programs for the guest, and the archive they are put in.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::initramfs::Archive;
use super::kernel::Kernel;
use super::{INITRAMFS, failed};
use crate::{Failure, Outcome, process};

/// The guest is built for this; named, so that its flags do not reach build scripts.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// The programs.
#[derive(Debug)]
pub(crate) struct Programs {
    /// `/init` of the guest, which makes the checks.
    pub(crate) guest: PathBuf,
    /// The command that it tests, static as well.
    pub(crate) command: PathBuf,
}

/// Where cargo puts what it builds.
///
/// # Errors
///
/// When cargo cannot tell.
pub(crate) fn target(root: &Path) -> Result<PathBuf, Failure> {
    let mut cargo = process::cargo(root);
    let text =
        process::output(cargo.args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&text)
        .map_err(|error| Failure::Failed(format!("cargo metadata: {error}")))?;
    let folder = metadata["target_directory"].as_str().map(PathBuf::from);
    folder.ok_or_else(|| Failure::failed("cargo metadata: no target directory"))
}

/// Builds both programs into a target folder of their own, so that their flags make
/// nothing else old: static, since there is no library in the guest; with assertions, as
/// tests are; small, since a guest of 2 MB boots faster than one of 90.
///
/// # Errors
///
/// When they do not build.
pub(crate) fn build(root: &Path, target: &Path) -> Result<Programs, Failure> {
    let folder = target.join("guest");
    let mut cargo = process::cargo(root);
    cargo.args(["build", "--quiet", "--target", TRIPLE]);
    cargo.args(["--package", "xtask", "--bin", "guest", "--features", "guest"]);
    cargo.args(["--package", "vfio-migrate-cli", "--bin", "vfio-migrate"]);
    cargo.arg("--target-dir").arg(&folder);
    cargo.env("RUSTFLAGS", "-Ctarget-feature=+crt-static -Crelocation-model=static");
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS");
    cargo.env("CARGO_PROFILE_DEV_STRIP", "symbols");
    cargo.env("CARGO_PROFILE_DEV_DEBUG", "none");
    cargo.env("CARGO_INCREMENTAL", "0");
    process::step("guest", &mut cargo)?;
    let built = folder.join(TRIPLE).join("debug");
    Ok(Programs { guest: built.join("guest"), command: built.join("vfio-migrate") })
}

/// Puts the guest's file system together, in the folder of a run: `init`, the modules of
/// the kernel, and `files`, by their places in the guest.
///
/// # Errors
///
/// When a file cannot be read or written.
pub(crate) fn pack(
    programs: &Programs,
    kernel: &Kernel,
    files: &[(String, PathBuf)],
    folder: &Path,
) -> Outcome {
    let read = |path: &Path| fs::read(path).map_err(|error| failed("read", path, &error));
    let mut archive = Archive::default();
    for name in ["bin", "dev", "modules", "proc", "run", "sys", "tmp"] {
        archive.folder(name);
    }
    archive.file("init", &read(&programs.guest)?);
    for (name, path) in kernel.modules.iter().chain(files) {
        archive.file(name, &read(path)?);
    }
    let into = folder.join(INITRAMFS);
    fs::write(&into, archive.finish()).map_err(|error| failed("write", &into, &error))
}
