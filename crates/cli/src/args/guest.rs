//! `guest run`, `guest receive` and `guest ctl`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use link::Uri;

use super::{Budget, DIRTY_RATE, DMA_RATE};
use crate::devices::DeviceUri;
use crate::guest::options::{Inject, InterruptKind, MOST_VCPUS};
use crate::units::{Rate, Size};

/// `guest`.
#[derive(Args, Clone, Debug)]
pub struct Guest {
    /// What about it.
    #[command(subcommand)]
    pub command: GuestCommand,
}

/// What can be done with a guest.
#[derive(Clone, Debug, Subcommand)]
pub enum GuestCommand {
    /// Run a guest here
    Run {
        /// The machine.
        #[command(flatten)]
        machine: MachineArgs,
        /// Do not boot one, but run the one that `guest ctl snapshot` saved in this file,
        /// in the same machine; - is standard input
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
        /// Start it paused
        #[arg(long)]
        paused: bool,
        /// Do not stop the guest in a migration before every page and every device
        /// block changed that its rates do not leave idle
        #[arg(long)]
        hold: bool,
        /// Break one thing in the next migration, for a check to find
        #[arg(long, value_name = "WHAT", value_parser = super::inject())]
        inject: Option<Inject>,
        /// How the devices interrupt the guest [default: the best way that each has]
        #[arg(long, value_name = "HOW", value_parser = super::interrupts(),
              conflicts_with = "from")]
        interrupts: Option<InterruptKind>,
    },
    /// Receive a guest here and run it
    Receive {
        /// Where to listen for it: tcp:HOST:PORT (port 0: any free one) or unix:PATH
        #[arg(long, value_name = "URI")]
        from: Uri,
        /// The machine, as the source has it.
        #[command(flatten)]
        machine: MachineArgs,
        /// As in run, once the guest migrates from here
        #[arg(long)]
        hold: bool,
    },
    /// Ask or tell a guest something, over its control socket
    Ctl(Ctl),
}

/// A machine, the same on both sides.
#[derive(Args, Clone, Debug)]
pub struct MachineArgs {
    /// Guest memory
    #[arg(long, default_value = "512M", value_name = "SIZE")]
    pub memory: Size,
    /// A device, vfio-user:PATH; once for each, in the same order on both sides
    #[arg(long = "device", value_name = "DEVICE")]
    pub devices: Vec<DeviceUri>,
    /// The control socket to make, for this user alone
    #[arg(long, value_name = "PATH")]
    pub control: PathBuf,
    /// vCPUs, 1 to 62
    #[arg(long, default_value_t = 2, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_VCPUS)))]
    pub vcpus: u32,
    /// How much memory the vCPUs rewrite a second
    #[arg(long, default_value = DIRTY_RATE, value_name = "RATE")]
    pub dirty_rate: Rate,
    /// How much each device copies a second
    #[arg(long, default_value = DMA_RATE, value_name = "RATE")]
    pub dma_rate: Rate,
    /// Let the devices write into each other
    #[arg(long)]
    pub p2p: bool,
    /// Where the vCPUs' random numbers start
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Write digests of memory and devices to this file when the guest is stopped for
    /// a migration (source) and before it is taken over (destination)
    #[arg(long, value_name = "FILE")]
    pub digests: Option<PathBuf>,
}

/// `guest ctl`.
#[derive(Args, Clone, Debug)]
pub struct Ctl {
    /// The guest's control socket
    #[arg(value_name = "PATH")]
    pub socket: PathBuf,
    /// What to ask or tell it.
    #[command(subcommand)]
    pub command: Control,
}

/// What a guest can be asked or told.
#[derive(Clone, Debug, Subcommand)]
pub enum Control {
    /// What it does, what would keep it from migrating, and how far a migration is
    Status,
    /// Move it, and wait for the end; Ctrl-C cancels
    Migrate(Migrate),
    /// Save it in a file, for `guest run --from`, and wait for the end; Ctrl-C cancels
    Snapshot(Snapshot),
    /// Take a guest in again, once the one that was here has moved away: what that left
    /// behind is thrown away. Says where it is awaited; cancel ends that
    Receive {
        /// Where to listen for it: tcp:HOST:PORT (port 0: any free one) or unix:PATH
        #[arg(long, value_name = "URI")]
        from: Uri,
    },
    /// Cancel the migration or the snapshot under way, or the wait for a guest
    Cancel,
    /// Let the migration under way send at most so much in a second
    SetRate {
        /// The rate, or none for no limit
        #[arg(value_name = "RATE", value_parser = limit)]
        rate: Limit,
    },
    /// Pause the guest and its devices
    Pause,
    /// Let them go on
    Resume,
    /// End the process
    Quit {
        /// Even though the guest is held here, or it is in doubt where it runs
        #[arg(long)]
        discard: bool,
    },
    /// The guest's own totals
    #[command(hide = true)]
    Counters,
    /// Stop everything and write the digests again
    #[command(hide = true)]
    Freeze,
}

/// The most that a migration sends in a second; none is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(pub Option<Rate>);

fn limit(text: &str) -> Result<Limit, String> {
    if text == "none" {
        return Ok(Limit(None));
    }
    super::limit(text).map(Some).map(Limit)
}

/// `guest ctl PATH migrate`.
#[derive(Args, Clone, Debug)]
pub struct Migrate {
    /// Where a `guest receive` listens: tcp:HOST:PORT or unix:PATH
    #[arg(long, value_name = "URI")]
    pub to: Uri,
    /// How it should go.
    #[command(flatten)]
    pub budget: Budget,
}

/// `guest ctl PATH snapshot`.
#[derive(Args, Clone, Debug)]
pub struct Snapshot {
    /// The file to make, by the guest's process, under its name only once it is whole
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Leave the guest paused (end it with `quit`); otherwise it goes on as before
    #[arg(long)]
    pub stop: bool,
    /// Replace a file of that name
    #[arg(long)]
    pub replace: bool,
}

/// What to do when pre-copy ran out of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnTimeout {
    /// Give up; the source runs on
    Fail,
    /// Stop the guest all the same
    Switch,
}
