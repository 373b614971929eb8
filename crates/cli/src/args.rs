//! What can be asked for on the command line.

mod compat;
mod conform;
mod decode;
mod demo;
mod devices;
mod dirty;
mod guest;

pub use compat::{Compat, Source};
pub use conform::Conform;
pub use decode::Decode;
pub use demo::Demo;
pub use devices::{Devices, Receive, Restore, Save, Send, Start};
pub use dirty::Dirty;
pub use guest::{
    Control, Ctl, Guest, GuestCommand, Limit, MachineArgs, Migrate, OnTimeout, Snapshot,
};

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use device::front::{self, FrontOptions};
use engine::migration::Options;
use link::RateLimit;
use states::v2::Capabilities;

use crate::devices::DeviceUri;
use crate::guest::options::{Inject, InterruptKind};
use crate::units::{Invalid, Rate, Size, time};

/// Live migration of VFIO devices.
#[derive(Debug, Parser)]
#[command(
    name = "vfio-migrate",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = "Sizes: plain bytes, or with K, M, G or T, powers of 1024 (M is MiB); \
                  rates are sizes a second.\n\
                  Exit status: 0 done; 1 failed, refused or cancelled, or a check \
                  failed; 2 usage; 3 in doubt who runs: act; 4 a device was lost or \
                  reset."
)]
pub struct Cli {
    /// What goes for every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// What goes for every command.
#[derive(Args, Debug)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// JSON on standard output, one object a line, on failure too; progress goes to
    /// standard error
    #[arg(long, global = true)]
    pub json: bool,
    /// Show every state change with before, after and microseconds; -vv shows more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Write the log to this file instead of standard error, with every state change
    #[arg(long, global = true, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Die with that parent process: set by the demo for the processes it starts
    #[arg(long, global = true, hide = true, value_name = "PID")]
    pub with_parent: Option<u32>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Migrate a running guest with its devices between processes of this host, and
    /// check every byte
    Demo(Demo),
    /// Serve a device over vfio-user
    Serve(Serve),
    /// The software guest: run it, receive it, control it
    Guest(Guest),
    /// Save devices that no guest uses into a file
    Save(Save),
    /// Restore devices that no guest uses from a file
    Restore(Restore),
    /// Send devices that no guest uses to another host
    Send(Send),
    /// Receive devices that no guest uses from another host, once
    Receive(Receive),
    /// Let devices run that save, restore or a broken migration left stopped
    Start(Start),
    /// Ask a device who it is and what a migration can do with it
    Probe(Probe),
    /// Whether the data of one device, or of a saved file, fits another device
    ///
    /// Answers yes (exit status 0), or each reason why not (exit status 1), with what
    /// both sides have. It is the comparison that a migration and a restore make, and it
    /// goes one way: from SOURCE to DESTINATION. No device is stopped or changed for it.
    Compat(Compat),
    /// Check a device against the rules of the migration interface. THIS DESTROYS WHAT IT
    /// HOLDS
    ///
    /// The device is reset, stopped, and given data that it saved itself, whole and
    /// damaged: never a device that a guest uses, or whose contents anybody needs. Each
    /// check says which rule it is of, what was done, what was seen, and pass, fail or
    /// skipped with the reason. Exit status 1 when one failed or none passed.
    /// docs/conform.md has the rules.
    Conform(Conform),
    /// Show which memory a device writes, without any migration
    ///
    /// A line an interval: when, how many pages and bytes the device wrote since the last
    /// one, how fast, and where most of it lies. A page counts once an interval. Asked is
    /// the first of these that is there and starts: the device's own log of its writes
    /// (DMA logging); for a device of the kernel what lies between it and memory, the page
    /// table of its IOMMU or its container, which may know less and then says that
    /// everything is dirty each time; for a device of the RFC of 2018 its query, which
    /// answers in pre-copy alone: it is taken there, runs on, what it would save is left
    /// unread, and at the end that is cancelled. The state of any other is not changed. As
    /// the only one there, this command lends the device memory (--memory, --iova), which
    /// is watched; a device writes into it only if something makes it write. That is done
    /// for an accelerator (`serve --model accel`) that nobody has programmed: its ring
    /// goes through that memory (--rate). One that somebody programmed who has gone does
    /// what it was told, in that memory too; --watch-only lends none. At the end, also
    /// after Ctrl-C, the log is off, the memory taken back, and the registers are as
    /// before; its counters have gone on. A device of which nobody keeps a log, whose log
    /// is on already, or that is not running is refused, and left alone.
    Dirty(Dirty),
    /// Show a saved file or a captured stream frame by frame, whole or damaged
    ///
    /// Each frame with its place, type, length and meaning, then what there is of each
    /// device and section, then the verdict. What is wrong stands under the frame that it
    /// is wrong with; a wrong checksum is stepped over, and where the next frame begins
    /// cannot be said the rest is only counted. With -v every run of memory and the
    /// running checksum of each device are shown too. A stream that is not whole ends in
    /// exit status 1.
    Decode(Decode),
    /// Show the migration state machine
    States(States),
}

impl Command {
    /// The devices that it opens together.
    pub fn devices(&self) -> &[DeviceUri] {
        match self {
            Command::Save(save) => &save.devices.devices,
            Command::Restore(restore) => &restore.devices.devices,
            Command::Send(send) => &send.devices.devices,
            Command::Receive(receive) => &receive.devices.devices,
            Command::Start(start) => &start.devices.devices,
            Command::Guest(guest) => match &guest.command {
                GuestCommand::Run { machine, .. }
                | GuestCommand::Receive { machine, .. } => &machine.devices,
                GuestCommand::Ctl(_) => &[],
            },
            Command::Demo(_)
            | Command::Serve(_)
            | Command::Probe(_)
            | Command::Conform(_)
            | Command::Dirty(_)
            | Command::Compat(_)
            | Command::Decode(_)
            | Command::States(_) => &[],
        }
    }
}

/// How a migration should go.
#[derive(Args, Clone, Debug)]
pub struct Budget {
    /// Stop the guest when that takes at most so many milliseconds
    #[arg(long, default_value_t = 300, value_name = "MS", value_parser = milliseconds)]
    pub downtime_limit: u64,
    /// How many seconds pre-copy may take
    #[arg(long, default_value_t = 300, value_name = "S", value_parser = seconds)]
    pub max_time: u64,
    /// After that time: give up with the source running, or stop the guest all the same
    #[arg(long, default_value_t = OnTimeout::Fail, value_name = "WHAT")]
    pub on_timeout: OnTimeout,
    /// Data connections
    #[arg(long, default_value_t = 1, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=64))]
    pub channels: u16,
    /// The most that all data connections together send in a second [default: no limit]
    #[arg(long, value_name = "RATE", value_parser = limit)]
    pub rate: Option<Rate>,
}

impl Budget {
    /// The same for the engine; the rate is the link's.
    pub fn options(&self) -> Options {
        Options {
            downtime_limit: Duration::from_millis(self.downtime_limit),
            max_time: Duration::from_secs(self.max_time),
            on_timeout: match self.on_timeout {
                OnTimeout::Fail => engine::migration::OnTimeout::Fail,
                OnTimeout::Switch => engine::migration::OnTimeout::Switch,
            },
            channels: self.channels,
            ..Options::default()
        }
    }
}

/// How fast the guest rewrites its memory, unless it is told.
pub const DIRTY_RATE: &str = "128M";
/// How fast a device copies, unless it is told.
pub const DMA_RATE: &str = "32M";

/// `serve`.
#[derive(Args, Clone, Debug)]
pub struct Serve {
    /// The device model
    #[arg(long, default_value = "accel")]
    pub model: ServedModel,
    /// The generation of the migration interface: features (v2), or a migration region
    /// (v1, rfc2018)
    #[arg(long, default_value_t = Generation::V2)]
    pub generation: Generation,
    /// How clients reach the data of a migration region: every access is trapped, all
    /// of it is mapped, or its first page is trapped and the rest mapped
    #[arg(long, default_value_t = DataSection::Trapped)]
    pub data_section: DataSection,
    /// The socket to listen at; made for this user alone, and removed at the end
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Migration capabilities: 1 stop-copy, 3 and P2P, 5 and pre-copy, 7 all
    #[arg(long, default_value = "7", value_name = "SET", value_parser = capabilities)]
    pub capabilities: Capabilities,
    /// Ports of the uart
    #[arg(long, default_value_t = 2, value_name = "N",
          value_parser = clap::value_parser!(u8).range(1..=2))]
    pub ports: u8,
    /// The accelerator's own memory, a power of two from 16M to 16G
    #[arg(long, default_value = "64M", value_name = "SIZE")]
    pub memory: Size,
    /// The part of that memory which clients map; it always goes in stop-copy
    #[arg(long, default_value = "64K", value_name = "SIZE")]
    pub mapped_window: Size,
    /// The part behind the window that holds firmware (a pattern) from the start and
    /// after a reset; it is saved like everything else
    #[arg(long, default_value = "1M", value_name = "SIZE")]
    pub firmware: Size,
    /// How many vectors the accelerator has, by MSI-X and, up to the next power of two,
    /// by MSI
    #[arg(long, default_value_t = 8, value_name = "N",
          value_parser = clap::value_parser!(u8).range(1..=8))]
    pub vectors: u8,
    /// What MSI the accelerator has, with addresses of 32 or 64 bits
    #[arg(long, default_value = "64-masks", value_name = "KIND")]
    pub msi: ServedMsi,
    /// Which BARs of the accelerator are what: for a destination that has to be refused,
    /// since whoever drives one expects the registers first
    #[arg(long, default_value = "registers-first", value_name = "ORDER")]
    pub bars: ServedBars,
    /// Reset the device whenever its client goes away
    #[arg(long)]
    pub reset_on_disconnect: bool,
    /// What to call the device in the log [default: the socket's file name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

/// Device models that can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ServedModel {
    /// An accelerator: memory of its own, DMA, interrupts, writes to its peers
    Accel,
    /// A card with one or two serial ports (16550), as the kernel's mtty sample
    Uart,
}

/// Kinds of MSI that an accelerator can be served with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ServedMsi {
    /// None, only INTx and MSI-X
    None,
    /// Addresses of 32 bits
    #[value(name = "32")]
    Narrow,
    /// Addresses of 32 bits, and a mask for each vector
    #[value(name = "32-masks")]
    NarrowMasks,
    /// Addresses of 64 bits
    #[value(name = "64")]
    Wide,
    /// Addresses of 64 bits, and a mask for each vector
    #[value(name = "64-masks")]
    WideMasks,
}

impl ServedMsi {
    /// The same for the model.
    pub fn registers(self) -> Option<models::accel::Msi> {
        let (wide, masks) = match self {
            ServedMsi::None => return None,
            ServedMsi::Narrow => (false, false),
            ServedMsi::NarrowMasks => (false, true),
            ServedMsi::Wide => (true, false),
            ServedMsi::WideMasks => (true, true),
        };
        Some(models::accel::Msi { wide, masks })
    }
}

/// Orders of BARs that an accelerator can be served with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ServedBars {
    /// Registers in BAR0, memory in BAR2 and BAR3
    RegistersFirst,
    /// Memory in BAR0 and BAR1, registers in BAR2
    MemoryFirst,
}

impl ServedBars {
    /// The same for the model.
    pub fn order(self) -> models::accel::BarOrder {
        match self {
            ServedBars::RegistersFirst => models::accel::BarOrder::RegistersFirst,
            ServedBars::MemoryFirst => models::accel::BarOrder::MemoryFirst,
        }
    }
}

/// Generations of the migration interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Generation {
    /// The features of Linux 5.18 and later
    V2,
    /// The migration region of Linux 5.8 to 5.17
    V1,
    /// The migration region of the RFC of 2018
    Rfc2018,
}

/// How the data of a migration region is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DataSection {
    /// By reads and writes
    Trapped,
    /// Through a mapping
    Mapped,
    /// The first page by reads and writes, the rest through a mapping
    Split,
}

impl Generation {
    /// The region that shows a model so; none for v2.
    pub fn front(self, data: DataSection) -> Option<FrontOptions> {
        let generation = match self {
            Generation::V2 => return None,
            Generation::V1 => front::Generation::V1,
            Generation::Rfc2018 => front::Generation::Rfc2018,
        };
        let data_section = match data {
            DataSection::Trapped => front::DataSection::Trapped,
            DataSection::Mapped => front::DataSection::Mapped,
            DataSection::Split => front::DataSection::Split,
        };
        Some(FrontOptions { data_section, ..FrontOptions::new(generation) })
    }
}

/// `probe`.
#[derive(Args, Clone, Debug)]
pub struct Probe {
    /// The device: vfio-user:PATH where it is served; vfio: and /dev/vfio/devices/vfioN, a
    /// PCI address, or the UUID of a mediated device, where the kernel has it
    #[arg(value_name = "DEVICE")]
    pub device: DeviceUri,
    /// Also ask it for a digest of what it holds: compare only devices that are stopped
    #[arg(long)]
    pub digest: bool,
}

/// `states`.
#[derive(Args, Clone, Copy, Debug)]
pub struct States {
    /// For devices with these capabilities: 1, 3, 5 or 7
    #[arg(long, default_value = "7", value_name = "SET", value_parser = capabilities)]
    pub capabilities: Capabilities,
    /// A table of paths, or a diagram of arcs for mermaid or Graphviz
    #[arg(long, default_value_t = Format::Table)]
    pub format: Format,
}

/// How to show the state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The path from every state to every other
    Table,
    /// The arcs, as a mermaid diagram
    Mermaid,
    /// The arcs, as a graph for Graphviz (`dot -Tsvg`)
    Dot,
}

/// The names as on the command line.
macro_rules! shown_as_value {
    ($($name:ty),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let value = self.to_possible_value();
                f.write_str(value.as_ref().map_or("", |value| value.get_name()))
            }
        }
    )*};
}
shown_as_value!(ServedModel, Generation, DataSection, Format, OnTimeout);

/// The names of everything that can be broken.
fn inject() -> impl TypedValueParser<Value = Inject> {
    PossibleValuesParser::new(Inject::ALL.map(|(name, _)| name))
        .try_map(|name| name.parse::<Inject>())
}

/// The names of all ways in which a device interrupts.
fn interrupts() -> impl TypedValueParser<Value = InterruptKind> {
    PossibleValuesParser::new(InterruptKind::ALL.map(|(name, _)| name))
        .try_map(|name| name.parse::<InterruptKind>())
}

/// A rate that a link can be limited to.
fn limit(text: &str) -> Result<Rate, String> {
    let rate: Rate = text.parse().map_err(|error: Invalid| error.to_string())?;
    if rate.bytes_per_second() < RateLimit::LEAST {
        return Err(format!("write {} or more", Size::from_bytes(RateLimit::LEAST)));
    }
    Ok(rate)
}

/// Milliseconds, unless another unit is said.
fn milliseconds(text: &str) -> Result<u64, String> {
    Ok(time(text, Some("ms"))?.as_millis() as u64)
}

/// Whole seconds, unless another unit is said.
fn seconds(text: &str) -> Result<u64, String> {
    match time(text, Some("s"))? {
        time if time.subsec_nanos() > 0 => Err("write whole seconds".to_owned()),
        time if time.is_zero() => Err("write 1s or more".to_owned()),
        time => Ok(time.as_secs()),
    }
}

fn capabilities(text: &str) -> Result<Capabilities, String> {
    let flags: u64 = text.parse().map_err(|_| "write one of 1, 3, 5 and 7".to_owned())?;
    Capabilities::try_from_flags(flags).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::{CommandFactory, Parser};

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_go_anywhere() {
        for line in ["vfio-migrate --json states -vv", "vfio-migrate states --json -v -v"]
        {
            let cli = Cli::try_parse_from(line.split(' ')).expect("arguments");
            assert!(cli.global.json);
            assert_eq!(cli.global.verbose, 2);
        }
    }

    #[test]
    fn a_time_with_its_unit_is_an_invalid_digit() {
        let budget = |more: &str| {
            let line = format!("vfio-migrate guest ctl a migrate --to unix:b {more}");
            Cli::try_parse_from(line.split(' ')).map_err(|error| error.to_string())
        };
        let times = ["30", "30s", "5m", "24h"].map(|time| format!("--max-time {time}"));
        let limits =
            ["0", "100", "100ms", "2s"].map(|it| format!("--downtime-limit {it}"));
        for good in times.iter().chain(&limits) {
            budget(good).expect(good);
        }
        for (bad, says) in [
            ("--max-time 30ms", "whole seconds"),
            ("--max-time 0s", "1s or more"),
            ("--max-time s", "of s, or with ms, s, m or h"),
            ("--max-time 25h", "24h or less"),
            ("--downtime-limit 1.5s", "of ms, or with ms, s, m or h"),
        ] {
            let error = budget(bad).expect_err(bad);
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for line in [
            "states --capabilities 2",
            "states --capabilities x",
            "demo --devices 0",
            "demo --guest-memory 1.5G",
            "demo --inject typhoon",
            "demo --on-timeout never",
            "demo --channels 65",
            "demo --rate fast",
            "demo --rate 0",
            "guest ctl /tmp/socket set-rate 1K",
            "save --output a",
            "save vfio-user:/a",
            "save /a --output a",
            "save vfio-user:/a?stream=no --output a",
            "restore vfio-user:/a",
            "send vfio-user:/a",
            "send vfio-user:/a --to file:a",
            "receive vfio-user:/a --from b",
            "start",
            "serve --model accel",
            "probe /tmp/socket",
            "dirty",
            "dirty /tmp/socket",
            "dirty vfio-user:/a --interval 9ms",
            "dirty vfio-user:/a --duration 25h",
            "dirty vfio-user:/a --duration 30",
            "dirty vfio-user:/a --memory 1000",
            "dirty vfio-user:/a --iova 0x10",
            "compat vfio-user:/a",
            "compat vfio-user:/a file",
            "compat vfio-user: vfio-user:/b",
            "guest run",
            "guest ctl",
            "guest ctl /tmp/socket migrate",
            "guest ctl /tmp/socket migrate --to carrier-pigeon",
            "explode",
        ] {
            let line = std::iter::once("vfio-migrate").chain(line.split(' '));
            let error = Cli::try_parse_from(line.clone()).expect_err("nonsense");
            assert_eq!(error.exit_code(), 2, "{:?}", line.collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_walk_through_is_understood() {
        for line in [
            "serve --model accel --socket /tmp/a.sock",
            "guest run --device vfio-user:/tmp/a.sock --control /tmp/c.sock",
            "guest receive --from tcp:127.0.0.1:7600 --device vfio-user:/tmp/b.sock \
             --control /tmp/d.sock",
            "guest ctl /tmp/c.sock migrate --to tcp:127.0.0.1:7600 --downtime-limit 100",
            "guest ctl /tmp/c.sock quit --discard",
            "guest ctl /tmp/c.sock set-rate 100M",
            "guest ctl /tmp/c.sock set-rate none",
            "save vfio-user:/a vfio-user:/b?stream=restarts --output - --stop --replace",
            "restore vfio-user:/a --input - --start --independent",
            "send vfio-user:/a --to unix:/b --rate 10M --channels 4 --max-time 9 \
             --on-timeout switch --downtime-limit 10",
            "receive vfio-user:/a --from tcp:127.0.0.1:0",
            "start vfio-user:/a --reset",
            "probe vfio-user:/tmp/a.sock",
            "compat vfio-user:/a vfio-user:/b --json",
            "compat file vfio-user:/a vfio-user:/b --independent",
        ] {
            let line = std::iter::once("vfio-migrate").chain(line.split_whitespace());
            if let Err(error) = Cli::try_parse_from(line) {
                panic!("{error}");
            }
        }
    }
}
