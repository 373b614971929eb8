//! `cargo xtask check`: everything that must hold before a commit.

use std::process::Command;

use crate::arguments::Arguments;
use crate::{Outcome, layers, process};

/// Help of this command.
pub(crate) const USAGE: &str = "\
Usage: cargo xtask check

Runs, and stops at the first failure: rustfmt in check mode, clippy and rustdoc with
warnings denied, `cargo xtask layers`, and the tests (with nextest and the doctests, or
with `cargo test` where nextest is missing). Each step is timed.
";

/// Runs the checks.
///
/// # Errors
///
/// The first check that fails.
pub(crate) fn run(arguments: Arguments) -> Outcome {
    arguments.finish()?;
    let root = process::root();
    let cargo = |words: &[&str]| -> Command {
        let mut command = process::cargo(&root);
        command.args(words);
        command
    };
    process::step("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    let fuzz = ["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"];
    process::step("format of fuzz", &mut cargo(&fuzz))?;
    let deny = ["--", "-D", "warnings"];
    let clippy = ["clippy", "--workspace", "--all-targets"];
    process::step("lints", cargo(&clippy).args(deny))?;
    let bench = [
        "clippy",
        "--package",
        "xtask",
        "--all-targets",
        "--features",
        "bench,gen,guest",
    ];
    process::step("lints of bench", cargo(&bench).args(deny))?;
    let mut doc = cargo(&["doc", "--workspace", "--no-deps"]);
    process::step("documentation", doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    layers::check(&root)?;
    if process::has_nextest(&root) {
        process::step("tests", &mut cargo(&["nextest", "run", "--workspace"]))?;
        process::step("doctests", &mut cargo(&["test", "--workspace", "--doc"]))
    } else {
        process::step("tests", &mut cargo(&["test", "--workspace"]))
    }
}
