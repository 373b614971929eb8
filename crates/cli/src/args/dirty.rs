//! What `dirty` can be asked.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::DMA_RATE;
use crate::devices::DeviceUri;
use crate::units::{Rate, Size, time};

/// The shortest interval: below it a line would tell more of the asking than of the
/// device.
const SHORTEST: Duration = Duration::from_millis(10);
/// The most memory that is watched, in bytes: 32 MiB of bits.
const MOST: u64 = 1 << 40;
/// What addresses and sizes are multiples of, in bytes: no log tells finer.
const PAGE: u64 = 4096;

/// `dirty`.
#[derive(Args, Clone, Debug)]
pub struct Dirty {
    /// The device: vfio-user:PATH, or vfio: and a path, a PCI address or a UUID
    #[arg(value_name = "DEVICE")]
    pub device: DeviceUri,
    /// How often its log is asked, such as 10ms or 2s: a line each time
    #[arg(long, default_value = "500ms", value_name = "TIME", value_parser = interval)]
    pub interval: Duration,
    /// How long, such as 30s, 5m or 24h
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = duration)]
    pub duration: Duration,
    /// Draw what was written by address and time into this file (SVG); a picture that is
    /// there already is replaced at the end
    #[arg(long, value_name = "FILE")]
    pub picture: Option<PathBuf>,
    /// How much memory is lent to the device and watched
    #[arg(long, default_value = "64M", value_name = "SIZE", value_parser = memory)]
    pub memory: Size,
    /// The address (IOVA) at which the device finds it
    #[arg(long, default_value = "0x0", value_name = "ADDRESS", value_parser = address)]
    pub iova: u64,
    /// Lend no memory and start nothing: only watch these addresses, of a device whose
    /// memory a launcher has mapped
    #[arg(long)]
    pub watch_only: bool,
    /// How fast an accelerator (`serve --model accel`) that no driver runs is made to
    /// write; 0 leaves it as it is
    #[arg(long, default_value = DMA_RATE, value_name = "RATE")]
    pub rate: Rate,
}

fn interval(text: &str) -> Result<Duration, String> {
    match time(text, None)? {
        interval if interval < SHORTEST => Err("write 10ms or more".to_owned()),
        interval => Ok(interval),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    match time(text, None)? {
        duration if duration < SHORTEST => Err("write 10ms or more".to_owned()),
        duration => Ok(duration),
    }
}

fn memory(text: &str) -> Result<Size, String> {
    let size: Size = text.parse().map_err(|error| format!("{error}"))?;
    if size.bytes() == 0 || size.bytes() > MOST || !size.bytes().is_multiple_of(PAGE) {
        return Err("write a multiple of 4K, up to 1T".to_owned());
    }
    Ok(size)
}

fn address(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or_default();
    // `from_str_radix` would take a sign.
    let hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    match u64::from_str_radix(digits, 16) {
        Ok(address) if hex && address.is_multiple_of(PAGE) => Ok(address),
        _ => {
            Err("write a multiple of 0x1000 in hexadecimal, such as 0x100000000"
                .to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, address, duration, interval, memory};

    #[test]
    fn times_have_a_unit_and_a_limit() {
        assert_eq!(interval("10ms"), Ok(Duration::from_millis(10)));
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        for text in ["", "5", "s", "1.5s", "-1s", "+1s", "9ms", "25h", "99999999999s"] {
            interval(text).expect_err(text);
            duration(text).expect_err(text);
        }
    }

    #[test]
    fn memory_is_whole_pages_and_not_endless() {
        assert_eq!(memory("1T").map(|size| size.bytes()), Ok(1 << 40));
        assert_eq!(address("0x100000000"), Ok(1 << 32));
        for text in ["0", "4095", "2T", "x"] {
            memory(text).expect_err(text);
        }
        for text in ["0", "4096", "0x", "0x1", "0x+1000", "1000", "0x1000000000000000f"] {
            address(text).expect_err(text);
        }
    }
}
