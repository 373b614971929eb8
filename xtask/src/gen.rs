//! `cargo xtask gen`: writes what is made from the code and checked in.
//!
//! The man pages and the shell completions are made from the arguments of the command, so
//! this links it, with the feature `gen`, which [`run`] turns on. A test of the command
//! (`crates/cli/tests/pages.rs`) fails where the files are not what would be written.

use crate::arguments::Arguments;
use crate::{Failure, Outcome, process};

/// Help of this command.
pub(crate) const USAGE: &str = "\
Usage: cargo xtask gen [--check]

Writes the man pages (docs/man) and shell completions (docs/completions), made from the
arguments of the command, and removes pages of commands that are gone.

  --check  write nothing, and end with exit status 1 if anything would be written
";

/// Says to ourselves that we are the build that is linked with the command.
const LINKED: &str = "--linked";

/// Runs the command.
///
/// # Errors
///
/// When a file cannot be written, or with `--check` when one differs.
pub(crate) fn run(mut arguments: Arguments) -> Outcome {
    let check = arguments.flag("--check");
    let linked = arguments.flag(LINKED);
    arguments.finish()?;
    if linked {
        return generate(check);
    }
    let root = process::root();
    let mut cargo = process::cargo(&root);
    cargo.args(["run", "--quiet", "--package", "xtask", "--features", "gen"]);
    cargo.args(["--", "gen", LINKED]);
    if check {
        cargo.arg("--check");
    }
    let status = cargo
        .status()
        .map_err(|error| Failure::Failed(format!("cannot run cargo: {error}")))?;
    if status.success() { Ok(()) } else { Err(Failure::failed("failed, see above")) }
}

#[cfg(not(feature = "gen"))]
fn generate(_: bool) -> Outcome {
    Err(Failure::failed("this build is not linked with the command"))
}

#[cfg(feature = "gen")]
fn generate(check: bool) -> Outcome {
    use std::fs;

    let docs = process::root().join("docs");
    let failed = |what: &str, path: &std::path::Path, error: std::io::Error| {
        Failure::Failed(format!("cannot {what} {}: {error}", path.display()))
    };
    let differences = cli::pages::differences(&docs)
        .map_err(|error| failed("compare", &docs, error))?;
    for (path, contents) in &differences {
        let file = docs.join(path);
        if check {
            println!("docs/{path} is not what would be written");
            continue;
        }
        match contents {
            Some(contents) => {
                if let Some(folder) = file.parent() {
                    fs::create_dir_all(folder)
                        .map_err(|error| failed("make", folder, error))?;
                }
                fs::write(&file, contents)
                    .map_err(|error| failed("write", &file, error))?;
                println!("wrote docs/{path}");
            }
            None => {
                fs::remove_file(&file).map_err(|error| failed("remove", &file, error))?;
                println!("removed docs/{path}");
            }
        }
    }
    match (check, differences.len()) {
        (true, n @ 1..) => {
            Err(Failure::Failed(format!("{n} files differ, run cargo xtask gen")))
        }
        (_, 0) => {
            println!("everything is as it would be written");
            Ok(())
        }
        _ => Ok(()),
    }
}
