//! `conform`.

use clap::Args;

use crate::devices::DeviceUri;
use crate::units::Size;

/// `conform`.
#[derive(Args, Clone, Debug)]
pub struct Conform {
    /// The device: vfio-user:PATH, or vfio: and a path, a PCI address or a UUID
    #[arg(value_name = "DEVICE", required_unless_present = "list")]
    pub device: Option<DeviceUri>,
    /// Show the checks, and run none
    #[arg(long)]
    pub list: bool,
    /// Only the checks of this rule (its number) or the one with this id; may be repeated
    #[arg(long, value_name = "RULE")]
    pub only: Vec<String>,
    /// Skip what needs the data of a device that has more of it
    #[arg(long, default_value = "256M", value_name = "SIZE")]
    pub max_data: Size,
}
