//! `save`, `restore`, `send`, `receive` and `start`: devices without a guest.

use std::path::PathBuf;

use clap::Args;
use link::Uri;

use super::Budget;
use crate::devices::DeviceUri;

/// Which devices, and how they belong together.
#[derive(Args, Clone, Debug)]
pub struct Devices {
    /// The devices, in the same order as on the other side or in the file: vfio-user:PATH
    /// where they are served; vfio: and /dev/vfio/devices/vfioN, a PCI address, or the UUID
    /// of a mediated device, where the kernel has them, or vfio:unix:PATH of a launcher
    /// that hands them in. ?stream=continuous behind vfio-user:PATH says that the data of a
    /// foreign server goes on where pre-copy ended, ?stream=restarts that it starts over;
    /// ?by=group or ?by=cdev behind an address or a UUID chooses the way
    #[arg(value_name = "DEVICE", required = true, num_args = 1..=16)]
    pub devices: Vec<DeviceUri>,
    /// No device writes into another: several without P2P may then be stopped together
    #[arg(long)]
    pub independent: bool,
}

/// `save`.
#[derive(Args, Clone, Debug)]
pub struct Save {
    /// What is saved.
    #[command(flatten)]
    pub devices: Devices,
    /// The file to make, under its name only once it is whole; - is standard output
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    /// Leave the devices stopped; otherwise they run on
    #[arg(long)]
    pub stop: bool,
    /// Replace a file of that name
    #[arg(long)]
    pub replace: bool,
}

/// `restore`.
#[derive(Args, Clone, Debug)]
pub struct Restore {
    /// What is restored.
    #[command(flatten)]
    pub devices: Devices,
    /// A file that `save` made; - is standard input
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// Let the devices run; otherwise they are left in STOP
    #[arg(long)]
    pub start: bool,
}

/// `send`.
#[derive(Args, Clone, Debug)]
pub struct Send {
    /// What is sent.
    #[command(flatten)]
    pub devices: Devices,
    /// Where a `receive` listens: tcp:HOST:PORT or unix:PATH
    #[arg(long, value_name = "URI")]
    pub to: Uri,
    /// How it should go.
    #[command(flatten)]
    pub budget: Budget,
}

/// `receive`.
#[derive(Args, Clone, Debug)]
pub struct Receive {
    /// What is received into; whatever they hold is gone then.
    #[command(flatten)]
    pub devices: Devices,
    /// Where to listen for one migration: tcp:HOST:PORT (port 0: any free one) or
    /// unix:PATH
    #[arg(long, value_name = "URI")]
    pub from: Uri,
}

/// `start`.
#[derive(Args, Clone, Debug)]
pub struct Start {
    /// What is started.
    #[command(flatten)]
    pub devices: Devices,
    /// Empty them first: what they hold is gone
    #[arg(long)]
    pub reset: bool,
}
