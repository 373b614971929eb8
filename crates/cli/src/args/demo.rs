//! `demo`.

use clap::{Args, ValueEnum};
use states::v2::Capabilities;

use super::{
    Budget, DIRTY_RATE, DMA_RATE, Generation, ServedModel, capabilities, inject,
    interrupts,
};
use crate::guest::options::{Inject, InterruptKind, MOST_VCPUS};
use crate::units::{Rate, Size};

/// `demo`.
#[derive(Args, Clone, Debug)]
pub struct Demo {
    /// The model of the devices
    #[arg(long, default_value = "accel")]
    pub model: ServedModel,
    /// Migrate each model from each generation to each, one migration after the other,
    /// and report each (with --json, one a line). Exit status 1 where not all of them
    /// were verified
    #[arg(long, conflicts_with_all = ["model", "generation"])]
    pub matrix: bool,
    /// Migrate so many times, there and back again in the same two guest processes; each
    /// is checked, and the first that is not verified ends it. With --json every report
    /// is a line, and the last line is what they all come to
    #[arg(long, default_value_t = 1, value_name = "N", conflicts_with = "matrix",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub repeat: u32,
    /// Devices of the guest, 1 to 8 [default: 2] [in the matrix: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=8))]
    pub devices: Option<u8>,
    /// Ports of each uart
    #[arg(long, default_value_t = 2, value_name = "N",
          value_parser = clap::value_parser!(u8).range(1..=2))]
    pub ports: u8,
    /// The devices' migration capabilities: 1 stop-copy, 3 and P2P, 5 and pre-copy,
    /// 7 all
    #[arg(long, default_value = "7", value_name = "SET", value_parser = capabilities)]
    pub capabilities: Capabilities,
    /// The generation of the devices' migration interface, v2, v1 or rfc2018, or that
    /// of the source's and the destination's: SOURCE:DESTINATION
    #[arg(long, default_value = "v2", value_name = "GENERATION", value_parser = generations)]
    pub generation: (Generation, Generation),
    /// Guest memory [default: 512M] [with --repeat: 128M] [in the matrix: 16M]
    #[arg(long, value_name = "SIZE")]
    pub guest_memory: Option<Size>,
    /// Memory of each accelerator, a power of two from 16M to 16G [default: 64M] [with
    /// --repeat: 32M] [in the matrix: 16M]
    #[arg(long, value_name = "SIZE")]
    pub device_memory: Option<Size>,
    /// How much memory the guest rewrites a second
    #[arg(long, default_value = DIRTY_RATE, value_name = "RATE")]
    pub dirty_rate: Rate,
    /// How much each accelerator copies a second; 0 leaves devices of any model idle
    #[arg(long, default_value = DMA_RATE, value_name = "RATE")]
    pub dma_rate: Rate,
    /// Let accelerators write into each other; devices without P2P (sets 1 and 5, and
    /// all of v1 and rfc2018) are then refused where there are two or more
    #[arg(long)]
    pub p2p: bool,
    /// vCPUs of the guest, 1 to 62
    #[arg(long, default_value_t = 2, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_VCPUS)))]
    pub vcpus: u32,
    /// How the devices interrupt the guest [default: the best way that each one has]
    #[arg(long, value_name = "HOW", value_parser = interrupts())]
    pub interrupts: Option<InterruptKind>,
    /// How each migration should go.
    #[command(flatten)]
    pub budget: Budget,
    /// Break one thing, which the check must then find (exit status 1): a byte of a
    /// page, before it is checksummed for the stream; a byte that a device holds, before
    /// or in its save; a dirty bit, forgotten; interrupts that wait, dropped; or let one
    /// peer write through after its target stopped (implies --p2p). With --repeat, in the
    /// first migration
    #[arg(long, value_name = "WHAT", value_parser = inject())]
    pub inject: Option<Inject>,
}

/// `SOURCE` or `SOURCE:DESTINATION`.
fn generations(text: &str) -> Result<(Generation, Generation), String> {
    let one = |name: &str| {
        Generation::from_str(name, false).map_err(|_| {
            let name: String = name.chars().take(40).flat_map(char::escape_debug).collect();
            format!(
                "`{name}` is no generation: write v2, v1 or rfc2018, or two of them with a \
                 colon between"
            )
        })
    };
    match text.split_once(':') {
        Some((source, destination)) => Ok((one(source)?, one(destination)?)),
        None => one(text).map(|both| (both, both)),
    }
}
