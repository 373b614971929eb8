//! Where a device of the kernel is, as people write it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

/// Where a device is, and which way it is to be opened.
///
/// ```
/// use vfio_migrate_host::Place;
///
/// let place: Place = "0000:01:00.3?by=group".parse()?;
/// assert_eq!(place.to_string(), "0000:01:00.3?by=group");
/// assert_eq!("01:00.3".parse::<Place>()?.to_string(), "0000:01:00.3");
/// # Ok::<(), vfio_migrate_host::PlaceError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub(crate) target: Target,
    pub(crate) way: Option<Way>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    /// `/dev/vfio/devices/vfio0`.
    Cdev(PathBuf),
    /// `/dev/vfio/7`, and which device of the group.
    Group(PathBuf, Option<String>),
    /// `0000:01:00.3`.
    Pci(String),
    /// The UUID of a mediated device.
    Mdev(String),
    /// A socket whose listener hands descriptors to whoever connects.
    Launcher(PathBuf),
}

/// The two ways to a device, which exclude each other for its whole group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// By `/dev/vfio/N` and a container with type1.
    Group,
    /// By `/dev/vfio/devices/vfioN` and iommufd.
    Cdev,
}

/// Not a place of a device.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{0}` is no device of the kernel: write /dev/vfio/devices/vfioN, /dev/vfio/N, a PCI \
     address such as 0000:01:00.3, the UUID of a mediated device, or unix:PATH of a \
     launcher; ?by=group or ?by=cdev behind an address or a UUID chooses the way, \
     ?device=NAME behind /dev/vfio/N the device"
)]
pub struct PlaceError(String);

impl Place {
    /// The device's address, UUID or path, without options.
    pub(crate) fn plain(&self) -> String {
        match &self.target {
            Target::Cdev(path) | Target::Group(path, _) => path.display().to_string(),
            Target::Pci(name) | Target::Mdev(name) => name.clone(),
            Target::Launcher(path) => format!("unix:{}", path.display()),
        }
    }

    /// A short name: the last part of a path, an address or a UUID.
    pub fn short(&self) -> String {
        match &self.target {
            Target::Cdev(path) | Target::Group(path, _) | Target::Launcher(path) => {
                let name = path.file_stem().unwrap_or(path.as_os_str());
                name.to_string_lossy().into_owned()
            }
            Target::Pci(name) | Target::Mdev(name) => name.clone(),
        }
    }
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Place, PlaceError> {
        let wrong =
            || PlaceError(text.chars().take(80).flat_map(char::escape_debug).collect());
        let (place, option) = match text.split_once('?') {
            Some((place, option)) => (place, Some(option)),
            None => (text, None),
        };
        let mut target = target(place).ok_or_else(wrong)?;
        let mut way = None;
        match (&mut target, option) {
            (_, None) => {}
            (Target::Pci(_) | Target::Mdev(_), Some("by=group")) => {
                way = Some(Way::Group);
            }
            (Target::Pci(_) | Target::Mdev(_), Some("by=cdev")) => way = Some(Way::Cdev),
            (Target::Group(_, device), Some(option)) => {
                let name = option.strip_prefix("device=").filter(|name| plain(name));
                *device = Some(name.ok_or_else(wrong)?.to_owned());
            }
            (_, Some(_)) => return Err(wrong()),
        }
        Ok(Place { target, way })
    }
}

fn target(text: &str) -> Option<Target> {
    if let Some(path) = text.strip_prefix("unix:") {
        return (!path.is_empty()).then(|| Target::Launcher(path.into()));
    }
    let path = Path::new(text);
    if path.is_absolute() {
        let name = path.file_name()?.to_str()?;
        let is_number =
            |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let device = name.strip_prefix("noiommu-").unwrap_or(name);
        return match device.strip_prefix("vfio") {
            Some(number) if is_number(number) => Some(Target::Cdev(path.into())),
            None if is_number(device) => Some(Target::Group(path.into(), None)),
            _ => None,
        };
    }
    let text = text.to_ascii_lowercase();
    if is_uuid(&text) {
        return Some(Target::Mdev(text));
    }
    pci_address(&text).map(Target::Pci)
}

/// Groups of hexadecimal digits of these lengths.
fn digits(text: &str, separators: &[char], lengths: &[usize]) -> bool {
    let parts: Vec<&str> = text.split(separators).collect();
    parts.len() == lengths.len()
        && parts.iter().zip(lengths).all(|(part, length)| {
            part.len() == *length && part.bytes().all(|b| b.is_ascii_hexdigit())
        })
}

fn is_uuid(text: &str) -> bool {
    digits(text, &['-'], &[8, 4, 4, 4, 12])
}

/// An address with its domain, which may be left out where it is 0.
fn pci_address(text: &str) -> Option<String> {
    let whole = match text.matches(':').count() {
        1 => format!("0000:{text}"),
        _ => text.to_owned(),
    };
    let (address, function) = whole.split_once('.')?;
    let known = digits(address, &[':'], &[4, 2, 2])
        // VMD's domains are longer.
        || digits(address, &[':'], &[5, 2, 2]);
    let function_known = function.len() == 1 && function.bytes().all(|b| b < b'8');
    (known && function_known && function.bytes().all(|b| b.is_ascii_digit()))
        .then_some(whole)
}

/// A name that is no path and no option.
fn plain(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Way::Group => "group",
            Way::Cdev => "cdev",
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.plain())?;
        if let Target::Group(_, Some(device)) = &self.target {
            write!(f, "?device={device}")?;
        }
        match self.way {
            Some(way) => write!(f, "?by={way}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_as_it_is_written() {
        for text in [
            "/dev/vfio/devices/vfio0",
            "/dev/vfio/devices/noiommu-vfio0",
            "/dev/vfio/12",
            "/dev/vfio/12?device=0000:01:00.3",
            "0000:01:00.3",
            "10000:01:00.3",
            "0000:01:00.3?by=cdev",
            "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001",
            "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001?by=group",
            "unix:/run/launcher.sock",
        ] {
            assert_eq!(text.parse::<Place>().map(|p| p.to_string()), Ok(text.to_owned()));
        }
        assert_eq!("0A:00.3".parse::<Place>().unwrap().to_string(), "0000:0a:00.3");
    }

    #[test]
    fn what_is_no_device_says_what_to_write() {
        for text in [
            "",
            "vfio0",
            "/dev/vfio/vfio",
            "/dev/vfio/devices/",
            "0000:01:00.8",
            "0000:01:00",
            "83b8f4f2-509f-382f-3c1e",
            "unix:",
            "unix:/run/a?by=group",
            "/dev/vfio/7?device=",
            "/dev/vfio/7?device=../../x",
            "0000:01:00.3?by=magic",
        ] {
            let error = text.parse::<Place>().expect_err(text).to_string();
            assert!(error.contains("a PCI address such as 0000:01:00.3"), "{error}");
        }
    }
}
