//! Sizes, rates and times as people write and read them. `M` is MiB throughout.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes: plain, or with `K`, `M`, `G` or `T` (powers of 1024).
///
/// ```
/// use vfio_migrate_cli::units::Size;
///
/// assert_eq!("64M".parse::<Size>()?.bytes(), 64 << 20);
/// assert_eq!(Size::from_bytes(1536 << 10).to_string(), "1.5 MiB");
/// # Ok::<(), vfio_migrate_cli::units::Invalid>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

impl Size {
    /// That many bytes.
    pub const fn from_bytes(bytes: u64) -> Size {
        Size(bytes)
    }

    /// How many bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

/// Bytes a second: a [`Size`], with or without `/s` behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u64);

impl Rate {
    /// How many bytes a second.
    pub const fn bytes_per_second(self) -> u64 {
        self.0
    }
}

/// A time: a whole number with `ms`, `s`, `m` or `h`; without a unit only where `bare`
/// says which it is then. A day at most, so that sums of it are times too.
///
/// # Errors
/// What to write instead.
///
/// ```
/// use std::time::Duration;
///
/// use vfio_migrate_cli::units::time;
///
/// assert_eq!(time("1500ms", None), Ok(Duration::from_millis(1500)));
/// assert_eq!(time("5", Some("m")), Ok(Duration::from_secs(300)));
/// ```
pub fn time(text: &str, bare: Option<&str>) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(24 * 3600);
    let nonsense = || {
        let bare = bare.map_or(String::new(), |unit| format!("of {unit}, or "));
        format!("write a whole number {bare}with ms, s, m or h, such as 500ms or 30s")
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = if unit.is_empty() { bare.unwrap_or(unit) } else { unit };
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 3600 * 1000,
        _ => return Err(nonsense()),
    };
    let number: u32 = number.parse().map_err(|_| nonsense())?;
    match Duration::from_millis(u64::from(number) * millis) {
        time if time > LONGEST => Err("write 24h or less".to_owned()),
        time => Ok(time),
    }
}

/// A text that is no size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid;

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "write a whole number of bytes, or one with K, M, G or T, such as 64M",
        )
    }
}

impl std::error::Error for Invalid {}

impl FromStr for Size {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Size, Invalid> {
        let (digits, shift) = match text.as_bytes().last() {
            Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
            Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
            Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
            Some(b'T' | b't') => (&text[..text.len() - 1], 40),
            _ => (text, 0),
        };
        // `parse` would take a sign.
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Invalid);
        }
        let number: u64 = digits.parse().map_err(|_| Invalid)?;
        number.checked_mul(1 << shift).map(Size).ok_or(Invalid)
    }
}

impl FromStr for Rate {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Rate, Invalid> {
        let size: Size = text.strip_suffix("/s").unwrap_or(text).parse()?;
        Ok(Rate(size.0))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        // 1023.95 would be shown as 1024.0.
        while value >= 1023.95 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        let shown = format!("{value:.1}");
        write!(f, "{} {}", shown.strip_suffix(".0").unwrap_or(&shown), UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::{Invalid, Rate, Size};

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("4K", 4096), ("2g", 2 << 30), ("1T", 1 << 40)]
        {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_no_size_by_accident() {
        let most = u64::MAX.to_string();
        assert_eq!(most.parse(), Ok(Size(u64::MAX)));
        for text in ["", "M", "-1", "+1", "1.5G", "1 M", "16777216T", "1MB", "é", "0x10"]
        {
            assert_eq!(text.parse::<Size>(), Err(Invalid), "{text}");
        }
    }

    #[test]
    fn rates_may_say_per_second() {
        assert_eq!("64M/s".parse(), Ok(Rate(64 << 20)));
        assert_eq!("64M".parse(), Ok(Rate(64 << 20)));
    }

    #[test]
    fn sizes_are_shown_in_a_fitting_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1 << 20, "1 MiB"),
            ((1 << 20) - 1, "1 MiB"),
            (3 << 29, "1.5 GiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }
}
