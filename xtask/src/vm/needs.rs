//! What the machine has to have: QEMU, a compiler and its like.

use std::env;
use std::path::Path;
use std::process::Command;

use crate::machine::apt::{Apt, Suites};
use crate::machine::emulator::{Oldest, Qemu};
use crate::{Failure, Outcome, process};

/// Any will do that knows the guest's machine well.
const OLDEST: Oldest = Oldest { version: [5, 2], reason: "nothing older was tried" };

/// Finds a QEMU, or unpacks one.
///
/// # Errors
///
/// When there is none to be had.
pub(super) fn qemu(target: &Path) -> Result<Qemu, Failure> {
    let own = target.join("vm-test/qemu");
    // That of `qemu-test` will do as well.
    let other = target.join("qemu-test/qemu");
    Qemu::find(OLDEST, &[&own, &other]).or_else(|_| {
        println!("== fetch: QEMU into {}", own.display());
        let apt = Apt::new(&target.join("vm-test/apt"), Suites::Own)?;
        Qemu::fetch(OLDEST, &apt, &own)
    })
}

/// Makes sure that programs are there, and installs their packages where they are not.
///
/// # Errors
///
/// When they are missing and cannot be installed.
pub(super) fn programs(needed: &[(&str, &str)]) -> Outcome {
    let paths = env::var_os("PATH").unwrap_or_default();
    let there = |file: &str| {
        file.starts_with('/') && Path::new(file).exists()
            || env::split_paths(&paths).any(|folder| folder.join(file).exists())
    };
    let missing = || -> Vec<&str> {
        let missing = needed.iter().filter(|(file, _)| !there(file));
        missing.map(|(_, package)| *package).collect()
    };
    let packages = missing();
    if packages.is_empty() {
        return Ok(());
    }
    println!("== install: {}", packages.join(" "));
    let installed = install(&packages);
    if missing().is_empty() {
        return Ok(());
    }
    let reason = installed.err().map(Failure::text).unwrap_or_default();
    Err(Failure::Failed(format!(
        "missing: {0}\nremedy: install them, as with `apt-get install {0}`\n{reason}",
        packages.join(" ")
    )))
}

/// Only root can; others are told what to do.
fn install(packages: &[&str]) -> Outcome {
    let apt = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").arg("-qq").args(words);
        process::output(&mut command).map(drop)
    };
    let mut words = vec!["install", "--yes", "--no-install-recommends"];
    words.extend(packages);
    // The lists of a machine that was just set up are missing or old.
    apt(&words).or_else(|_| apt(&["update"]).and_then(|()| apt(&words)))
}
