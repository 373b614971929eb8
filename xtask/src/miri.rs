//! `cargo xtask miri`: the rooms that hold layouts and bits, interpreted.

use std::process::{Command, Stdio};

use crate::arguments::Arguments;
use crate::{Failure, Outcome, process};

/// Help of this command.
pub(crate) const USAGE: &str = "\
Usage: cargo xtask miri

Runs the tests of abi, states, dirty and wire in Miri, which finds undefined behaviour
in what they are built of. Needs a nightly toolchain with Miri:
`rustup toolchain install nightly --component miri,rust-src`. Everything is interpreted,
so property tests make one case each, and tests that compare pages of docs/ with the
code are left out of wire. abi, states and dirty take some twelve minutes on two cores;
wire, whose tests move megabytes, takes much longer. Not part of CI.
";

/// The rooms. The others make system calls that Miri does not know.
const ROOMS: [&str; 4] = ["abi", "states", "dirty", "wire"];

/// Runs it.
///
/// # Errors
///
/// There is no Miri, or a test failed in it.
pub(crate) fn run(arguments: Arguments) -> Outcome {
    arguments.finish()?;
    let root = process::root();
    // Cargo sets variables that would make rustup choose the toolchain that runs us.
    let miri = || -> Command {
        let mut command = Command::new("cargo");
        command
            .current_dir(&root)
            .env_remove("RUSTUP_TOOLCHAIN")
            .args(["+nightly", "miri"]);
        command
    };
    let known = miri()
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !known {
        return Err(Failure::failed(
            "there is no Miri: `rustup toolchain install nightly --component \
             miri,rust-src`",
        ));
    }
    for room in ROOMS {
        let mut command = miri();
        command
            .args(["test", "--tests", "--package", &format!("vfio-migrate-{room}")])
            .arg("--target-dir")
            .arg(root.join("target").join("miri"))
            // Tests read the pages of docs/ and their own golden files.
            .env("MIRIFLAGS", "-Zmiri-disable-isolation")
            .env("PROPTEST_CASES", "1")
            .args(["--", "--skip", "documented::"]);
        process::step(room, &mut command)?;
    }
    Ok(())
}
