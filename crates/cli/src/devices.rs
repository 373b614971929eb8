//! Devices that others serve: where they are, and how they are opened.

use std::collections::HashSet;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use crate::exit::Nonsense;
use anyhow::{Context, Result, anyhow};
use control::TransportError;
use engine::drive::all_stopped;
use port::Device;
use states::v2::State;
use thiserror::Error;
use vfio_user::client::{Client, ClientOptions, DeviceStream, DmaHandler, NoDma};

/// Where a device is served: `vfio-user:PATH`, and behind it what is known of a foreign
/// server, such as `?stream=restarts`.
///
/// ```
/// use vfio_migrate_cli::devices::DeviceUri;
///
/// let uri: DeviceUri = "vfio-user:/run/a.sock?stream=restarts".parse()?;
/// assert_eq!(uri.path().to_str(), Some("/run/a.sock"));
/// # Ok::<(), vfio_migrate_cli::devices::UriError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceUri {
    path: PathBuf,
    stream: DeviceStream,
}

/// Not a place of a device.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UriError {
    /// No path, or nothing that is known.
    #[error("`{0}` is no device: write vfio-user:PATH")]
    Scheme(String),
    /// Something else behind the path.
    #[error("`{0}` says nothing of a device: write stream=continuous or stream=restarts")]
    Option(String),
}

impl DeviceUri {
    /// The device that is served at a socket.
    pub fn new(path: impl Into<PathBuf>) -> DeviceUri {
        DeviceUri { path: path.into(), stream: DeviceStream::Detect }
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Connects to its server. `name` is what the device is called in this process, and
    /// `handler` answers what it reads and writes by message.
    ///
    /// # Errors
    /// When nobody listens there, or does not speak as it should: with the remedy.
    pub fn connect(
        &self,
        name: impl Into<String>,
        handler: Arc<dyn DmaHandler>,
    ) -> Result<Client> {
        let stream = self.stream;
        let options = ClientOptions { stream, ..ClientOptions::new(name, handler) };
        Client::connect(&self.path, options).map_err(|error| {
            let remedy = match &error {
                TransportError::TimedOut { .. } => {
                    "it does not answer; a server has one client at a time, which may be \
                     a guest"
                }
                TransportError::Gone { source: Some(source), .. }
                    if source.kind() == ErrorKind::PermissionDenied =>
                {
                    "its socket is another user's"
                }
                TransportError::Gone { .. } => "is a `vfio-migrate serve` running there?",
                TransportError::Errno { .. } | TransportError::Broken { .. } => {
                    "what listens there does not speak vfio-user as it should"
                }
            };
            anyhow!(error).context(format!("cannot reach {self}: {remedy}"))
        })
    }
}

/// Whether each device is named once: a server has one client at a time, and a second
/// one would wait for the first.
///
/// # Errors
/// The one that is named twice.
pub fn distinct(uris: &[DeviceUri]) -> Result<(), Nonsense> {
    let place = |uri: &DeviceUri| {
        let path = uri.path();
        path.canonicalize().unwrap_or_else(|_| path.to_owned())
    };
    let mut known = HashSet::new();
    match uris.iter().find(|uri| !known.insert(place(uri))) {
        Some(twice) => {
            Err(Nonsense(format!("{twice} is named twice: name each device once")))
        }
        None => Ok(()),
    }
}

/// Opens devices that no guest uses, in their order. None of them is touched.
///
/// # Errors
/// When one cannot be reached, or cannot migrate.
pub fn open_all(uris: &[DeviceUri]) -> Result<Vec<Box<dyn Device>>> {
    let open = |(uri, name): (&DeviceUri, String)| -> Result<Box<dyn Device>> {
        let client = uri.connect(name, Arc::new(NoDma))?;
        let device = control::open_any(Arc::new(client))
            .with_context(|| format!("cannot migrate {uri}"))?;
        Ok(Box::new(device))
    };
    uris.iter().zip(names(uris)).map(open).collect()
}

/// Whether devices are all stopped, and not all running.
///
/// # Errors
/// When they are neither, with what to do about it.
pub fn stopped(devices: &mut [Box<dyn Device>]) -> Result<bool> {
    all_stopped(devices).map_err(|reasons| {
        anyhow!(
            "{} (`vfio-migrate start DEVICE` lets one run on, and with --reset empties \
             it first)",
            reasons.join("; ")
        )
    })
}

/// Opens the devices that take in what `offered` others held. One that holds a part of
/// another is emptied: whoever loaded it has gone.
///
/// # Errors
/// When these are not as many, as [`open_all`], or as [`stopped`]: reasons that the
/// source may read.
pub fn open_offered(
    uris: &[DeviceUri],
    offered: usize,
) -> Result<Vec<Box<dyn Device>>, Vec<String>> {
    if offered != uris.len() {
        return Err(vec![format!(
            "devices that come: {offered}, devices that were given to take them: {}; \
             name as many, in the same order",
            uris.len()
        )]);
    }
    let open = || -> Result<Vec<Box<dyn Device>>> {
        let mut devices = open_all(uris)?;
        for device in &mut devices {
            if device.state()? == State::Resuming {
                tracing::warn!(device = device.name(), "half loaded, and reset");
                device.reset()?;
            }
        }
        stopped(&mut devices)?;
        Ok(devices)
    };
    open().map_err(|error| vec![format!("{error:#}")])
}

/// What devices are called: as their sockets, and where that says too little as their
/// sockets' paths.
fn names(uris: &[DeviceUri]) -> Vec<String> {
    let short = |uri: &DeviceUri| {
        let path = uri.path();
        path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
    };
    let name = |uri| match uris.iter().filter(|other| short(other) == short(uri)).count()
    {
        1 => short(uri),
        _ => uri.path().display().to_string(),
    };
    uris.iter().map(name).collect()
}

impl FromStr for DeviceUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<DeviceUri, UriError> {
        let rest = text.strip_prefix("vfio-user:");
        let rest = rest.ok_or_else(|| UriError::Scheme(shown(text)))?;
        let (path, stream) = match rest.split_once('?') {
            None => (rest, DeviceStream::Detect),
            Some((path, "stream=continuous")) => (path, DeviceStream::Continuous),
            Some((path, "stream=restarts")) => (path, DeviceStream::Restarts),
            Some((_, option)) => return Err(UriError::Option(shown(option))),
        };
        if path.is_empty() {
            return Err(UriError::Scheme(shown(text)));
        }
        Ok(DeviceUri { path: path.into(), stream })
    }
}

impl fmt::Display for DeviceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vfio-user:{}", self.path.display())?;
        f.write_str(match self.stream {
            DeviceStream::Detect => "",
            DeviceStream::Continuous => "?stream=continuous",
            DeviceStream::Restarts => "?stream=restarts",
        })
    }
}

/// Enough of a foreign text to recognise it by.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::{DeviceUri, names};

    #[test]
    fn a_device_is_read_as_it_is_written() {
        for text in [
            "vfio-user:/run/a.sock",
            "vfio-user:a.sock?stream=continuous",
            "vfio-user:a?stream=restarts",
        ] {
            let uri: DeviceUri = text.parse().expect("a device");
            assert_eq!(uri.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_device_says_what_to_write() {
        for (text, says) in [
            ("/run/a.sock", "write vfio-user:PATH"),
            ("vfio-user:", "write vfio-user:PATH"),
            ("vfio-user:?stream=restarts", "write vfio-user:PATH"),
            ("vfio-user:a?stream=maybe", "stream=continuous or stream=restarts"),
            ("vfio-user:a?", "stream=continuous or stream=restarts"),
        ] {
            let error = text.parse::<DeviceUri>().expect_err("no device").to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn two_devices_are_never_called_the_same() {
        let uris = ["/x/a.sock", "/x/b.sock"].map(DeviceUri::new);
        assert_eq!(names(&uris), ["a", "b"]);
        let uris = ["/x/a.sock", "/y/a.sock"].map(DeviceUri::new);
        assert_eq!(names(&uris), ["/x/a.sock", "/y/a.sock"]);
    }
}
