//! What `compat` can be asked.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use crate::devices::DeviceUri;

/// `compat`.
#[derive(Args, Clone, Debug)]
pub struct Compat {
    /// Where the data comes from: a device, vfio-user:PATH, or a file that `save` or
    /// `guest ctl snapshot` made; - is standard input
    #[arg(value_name = "SOURCE", value_parser = source)]
    pub source: Source,
    /// Where it would go: a device; for a file with several devices one for each, in
    /// the order of the file
    #[arg(value_name = "DESTINATION", required = true, num_args = 1..=16,
          value_parser = destination)]
    pub destinations: Vec<DeviceUri>,
    /// No device writes into another: several without P2P may then be moved together
    #[arg(long)]
    pub independent: bool,
}

/// Where data comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A device that can be asked.
    Device(DeviceUri),
    /// A saved file.
    File(PathBuf),
}

/// Whether a text is meant to be a device, and not the name of a file.
fn names_a_device(text: &str) -> bool {
    ["vfio-user:", "vfio:"].iter().any(|scheme| text.starts_with(scheme))
}

fn source(text: &str) -> Result<Source, String> {
    if names_a_device(text) {
        let uri = DeviceUri::from_str(text).map_err(|error| error.to_string())?;
        return Ok(Source::Device(uri));
    }
    Ok(Source::File(PathBuf::from(text)))
}

fn destination(text: &str) -> Result<DeviceUri, String> {
    DeviceUri::from_str(text).map_err(|error| match names_a_device(text) {
        true => error.to_string(),
        false => format!("{error}; a file can only be the SOURCE"),
    })
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Device(uri) => uri.fmt(f),
            Source::File(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Source, destination, source};

    #[test]
    fn a_file_is_told_from_a_device() {
        for (text, is_device) in [
            ("vfio-user:a.sock", true),
            ("./vfio-user:a", false),
            ("a.vfm", false),
            ("-", false),
        ] {
            let found = source(text).expect("a source");
            assert_eq!(matches!(found, Source::Device(_)), is_device, "{text}");
            assert_eq!(found.to_string(), text);
        }
        source("vfio-user:").expect_err("no path");
        let refused = destination("a.vfm").expect_err("a file");
        assert!(refused.starts_with("`a.vfm` is no device"), "{refused}");
    }
}
