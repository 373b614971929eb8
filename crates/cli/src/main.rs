//! The `vfio-migrate` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    vfio_migrate_cli::commands::main(std::env::args_os()).into()
}
