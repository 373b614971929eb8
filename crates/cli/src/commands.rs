//! One module a command, and what goes for all of them: the log, errors, the status.

mod compat;
mod conform;
pub mod ctl;
mod decode;
pub mod demo;
mod dirty;
mod guest;
pub mod probe;
mod receive;
mod saved;
mod send;
pub mod serve;
mod start;
mod states;

use std::ffi::OsString;
use std::fs::File;
use std::io::IsTerminal;
use std::sync::Mutex;

use anyhow::{Context, Result};
use clap::Parser;
use clap::error::ErrorKind;
use serde_json::json;
use tracing::level_filters::LevelFilter;

use crate::args::{Cli, Command, Global};
use crate::devices::distinct;
use crate::exit::{Exit, Found, status};
use crate::{output, signals};

/// Runs the command that `arguments` ask for (the first is the program's name) and says
/// how the process ends.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    signals::outlive_long_files();
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, arguments.iter().any(|a| a == "--json")),
    };
    let json = cli.global.json;
    if json {
        output::speak_json();
    }
    let done = prepare(&cli.global).and_then(|()| run(cli)).unwrap_or_else(|error| {
        output::note(&format!("vfio-migrate: {error:#}"));
        if json {
            // There is nothing left to be told where this fails.
            let _ = output::json(&error_json(&error));
        }
        status(Found::Error(&error))
    });
    tracing::debug!(status = done as u8, "the command ends");
    done
}

fn run(cli: Cli) -> Result<Exit> {
    let global = &cli.global;
    distinct(cli.command.devices())?;
    match cli.command {
        Command::Demo(demo) => demo::run(&demo, global),
        Command::Serve(serve) => serve::run(&serve, global.json),
        Command::Guest(guest) => guest::run(guest.command, global),
        Command::Save(save) => saved::save(&save, global),
        Command::Restore(restore) => saved::restore(&restore, global),
        Command::Send(send) => send::run(&send, global),
        Command::Receive(receive) => receive::run(&receive, global),
        Command::Start(start) => start::run(&start, global),
        Command::Probe(probe) => probe::run(&probe, global.json),
        Command::Compat(compat) => compat::run(&compat, global.json),
        Command::Conform(conform) => conform::run(&conform, global.json),
        Command::Dirty(dirty) => dirty::run(&dirty),
        Command::Decode(decode) => decode::run(&decode, global),
        Command::States(states) => states::run(states, global.json),
    }
}

/// Help and version are answers; anything else that clap says is a usage error.
fn usage(error: &clap::Error, json: bool) -> Exit {
    let shown =
        matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    // Nobody reading it changes nothing.
    let _ = error.print();
    if shown {
        return status(Found::Done);
    }
    if json {
        let text = error.to_string();
        let text = text.trim().strip_prefix("error: ").unwrap_or(text.trim());
        let _ = output::json(&json!({ "error": { "text": text, "code": "usage" } }));
    }
    status(Found::Usage)
}

fn error_json(error: &anyhow::Error) -> serde_json::Value {
    let code = match status(Found::Error(error)) {
        Exit::InDoubt => "in-doubt",
        Exit::DeviceLost => "device-lost",
        Exit::Usage => "usage",
        Exit::Done | Exit::Failed => match error.downcast_ref::<ctl::Refused>() {
            Some(refused) => refused.code.as_str(),
            None if error.is::<decode::Damaged>() => "damaged",
            None => "failed",
        },
    };
    json!({ "error": { "text": format!("{error:#}"), "code": code } })
}

fn prepare(global: &Global) -> Result<()> {
    if let Some(parent) = global.with_parent {
        die_with(parent)?;
    }
    let level = match (global.verbose, &global.log) {
        (0, None) => LevelFilter::WARN,
        // Every state change is told at this level.
        (0 | 1, _) => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let log = tracing_subscriber::fmt()
        .with_max_level(level)
        // Where a log cannot be written it would say so on standard error, and panic
        // where that is full too: a device is worth more than its log.
        .log_internal_errors(false);
    match &global.log {
        Some(path) => {
            let file =
                File::options().create(true).append(true).open(path).with_context(
                    || format!("cannot write the log {}", path.display()),
                )?;
            log.with_ansi(false).with_writer(Mutex::new(file)).init();
        }
        None => log
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr)
            .init(),
    }
    Ok(())
}

/// Ends this process when `parent` ends, however that was: a demo that is killed leaves
/// nothing behind.
fn die_with(parent: u32) -> Result<()> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::KILL))
        .context("cannot follow the parent process")?;
    // It may have gone before that.
    let alive =
        getppid().is_some_and(|pid| pid.as_raw_nonzero().get().unsigned_abs() == parent);
    anyhow::ensure!(alive, "the parent process {parent} is gone");
    Ok(())
}
