//! The project's own tools: `cargo xtask <command>`.
//!
//! Plain std and `cargo metadata`, so that the tools build in seconds and still work
//! when a room does not compile. Each command is one module; each ends in exit status
//! 0 (done), 1 (a check failed, or there was nothing to do) or 2 (usage).

use std::process::ExitCode;

mod arguments;
mod bench;
mod check;
mod commits;
mod fuzz;
mod r#gen;
mod layers;
mod machine;
mod miri;
mod process;
mod qemu;
mod vm;

use arguments::Arguments;

const USAGE: &str = "\
Usage: cargo xtask <command> [options]

Commands:
  check     format, lints, documentation, layers and tests, as .ci/run does
  layers    the rooms obey their levels and their `never` lists
  commits   every commit of a range builds and passes its tests
  fuzz      run the fuzz targets on the stable toolchain
  miri      the tests of four rooms, interpreted by Miri
  bench     measure, with a limit measured beside every figure
  qemu-test boot a Linux guest in QEMU on our server, and check from inside
  vm-test   boot a real kernel in QEMU, and migrate its sample device
  gen       write the man pages and shell completions

`cargo xtask <command> --help` says more. Exit status: 0 done, 1 failed, 2 usage.
";

/// Why a command did not succeed.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// The command line makes no sense: exit status 2.
    Usage(String),
    /// The work was tried and failed, or there was none: exit status 1.
    Failed(String),
}

/// What every command answers.
type Outcome = Result<(), Failure>;

impl Failure {
    fn failed(text: impl Into<String>) -> Self {
        Self::Failed(text.into())
    }
}

fn main() -> ExitCode {
    let mut given = std::env::args().skip(1);
    let command = given.next().unwrap_or_default();
    let rest = Arguments::new(given);
    let (usage, run): (&str, fn(Arguments) -> Outcome) = match command.as_str() {
        "check" => (check::USAGE, check::run),
        "layers" => (layers::USAGE, layers::run),
        "commits" => (commits::USAGE, commits::run),
        "fuzz" => (fuzz::USAGE, fuzz::run),
        "miri" => (miri::USAGE, miri::run),
        "bench" => (bench::USAGE, bench::run),
        "qemu-test" => (qemu::USAGE, qemu::run),
        "vm-test" => (vm::USAGE, vm::run),
        "gen" => (r#gen::USAGE, r#gen::run),
        "--help" | "-h" | "help" => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        "" => return misused("a command is needed", USAGE),
        other => return misused(&format!("unknown command `{other}`"), USAGE),
    };
    if rest.wants_help() {
        print!("{usage}");
        return ExitCode::SUCCESS;
    }
    match run(rest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(text)) => misused(&text, usage),
        Err(Failure::Failed(text)) => {
            eprintln!("xtask {command}: {text}");
            ExitCode::from(1)
        }
    }
}

fn misused(text: &str, usage: &str) -> ExitCode {
    eprint!("xtask: {text}\n\n{usage}");
    ExitCode::from(2)
}
