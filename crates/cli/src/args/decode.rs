//! What `decode` can be asked.

use std::path::PathBuf;

use clap::Args;

/// `decode`.
#[derive(Args, Clone, Debug)]
pub struct Decode {
    /// A saved file, or one direction of a connection as it was captured; - is standard
    /// input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// One line for consecutive frames of a device's data, of guest memory or of a
    /// section, instead of one for each
    #[arg(long)]
    pub summary: bool,
}
