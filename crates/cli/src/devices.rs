//! Devices that others serve, or the kernel has: where they are, and how they are opened.

use std::collections::HashSet;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use crate::exit::Nonsense;
use anyhow::{Context, Result, anyhow, bail};
use control::{AnyDevice, ProbeError, Transport, TransportError};
use engine::drive::all_stopped;
use host::{Host, HostOptions, Place, PlaceError};
use port::Device;
use states::v2::State;
use thiserror::Error;
use vfio_user::client::{Client, ClientOptions, DeviceStream, DmaHandler, NoDma};

/// Where a device is: `vfio-user:PATH` where a server has it, and behind it what is known
/// of a foreign server, such as `?stream=restarts`; `vfio:` and a path, an address or a
/// UUID where the kernel has it.
///
/// ```
/// use vfio_migrate_cli::devices::DeviceUri;
///
/// let uri: DeviceUri = "vfio-user:/run/a.sock?stream=restarts".parse()?;
/// assert_eq!(uri.socket().and_then(|path| path.to_str()), Some("/run/a.sock"));
/// let uri: DeviceUri = "vfio:01:00.3".parse()?;
/// assert_eq!(uri.to_string(), "vfio:0000:01:00.3");
/// # Ok::<(), vfio_migrate_cli::devices::UriError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceUri(Target);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Server { path: PathBuf, stream: DeviceStream },
    Kernel(Place),
}

/// Not a place of a device.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UriError {
    /// No path, or nothing that is known.
    #[error(
        "`{0}` is no device: write vfio-user:PATH for one that is served, or vfio: and \
         /dev/vfio/devices/vfioN, a PCI address or a UUID for one of the kernel's"
    )]
    Scheme(String),
    /// Something else behind the path.
    #[error("`{0}` says nothing of a device: write stream=continuous or stream=restarts")]
    Option(String),
    /// Nothing that the kernel could have.
    #[error(transparent)]
    Place(#[from] PlaceError),
}

/// A device that is open, and not looked into yet.
#[derive(Clone, Debug)]
pub enum Reached {
    /// Behind a server.
    Server(Client),
    /// The kernel's.
    Kernel(Host),
}

impl Reached {
    /// The way to it.
    pub fn transport(&self) -> Arc<dyn Transport> {
        match self {
            Reached::Server(client) => Arc::new(client.clone()),
            Reached::Kernel(host) => Arc::new(host.clone()),
        }
    }

    /// Opens it for migration, whatever generation it is of.
    ///
    /// # Errors
    /// When it cannot migrate: with the reason, and of the kernel's with the remedy.
    pub fn device(&self) -> Result<AnyDevice> {
        control::open_any(self.transport()).map_err(|error| match (self, &error) {
            (Reached::Kernel(host), ProbeError::NotMigratable { .. }) => {
                // The remedy last, for it is what is to be done.
                anyhow!("{error}; {}", host.about().without_migration())
            }
            _ => error.into(),
        })
    }
}

impl Reached {
    /// Whether it is reset before it takes something in, where it is found in `state`.
    fn is_emptied(&self, state: State) -> bool {
        match self {
            Reached::Server(_) => state == State::Resuming,
            Reached::Kernel(host) => {
                found_in_the_middle(host.about().way.is_some(), state)
            }
        }
    }
}

/// Whether a device of the kernel's is reset: never one that was handed in.
fn found_in_the_middle(opened_here: bool, state: State) -> bool {
    opened_here && !matches!(state, State::Running | State::Stop)
}

impl DeviceUri {
    /// The device that is served at a socket.
    pub fn new(path: impl Into<PathBuf>) -> DeviceUri {
        let stream = DeviceStream::Detect;
        DeviceUri(Target::Server { path: path.into(), stream })
    }

    /// The socket, of one that is served.
    pub fn socket(&self) -> Option<&Path> {
        match &self.0 {
            Target::Server { path, .. } => Some(path),
            Target::Kernel(_) => None,
        }
    }

    /// Opens it. `name` is what the device is called in this process. Nothing of it is
    /// changed.
    ///
    /// # Errors
    /// As [`DeviceUri::connect`], and what is in the way of one of the kernel's: with the
    /// remedy.
    pub fn reach(&self, name: impl Into<String>) -> Result<Reached> {
        match &self.0 {
            Target::Server { .. } => {
                self.connect(name, Arc::new(NoDma)).map(Reached::Server)
            }
            Target::Kernel(place) => {
                let name = Some(name.into());
                let options = HostOptions { name, ..HostOptions::default() };
                let host = Host::open(place, options).map_err(|error| {
                    // The remedy last, for it is what is to be done.
                    let remedy = error.remedy();
                    anyhow!("cannot open {self}: {:#}; {remedy}", anyhow!(error))
                })?;
                Ok(Reached::Kernel(host))
            }
        }
    }

    /// Connects to its server. `name` is what the device is called in this process, and
    /// `handler` answers what it reads and writes by message.
    ///
    /// # Errors
    /// When nobody listens there, or does not speak as it should: with the remedy. When
    /// it is one of the kernel's.
    pub fn connect(
        &self,
        name: impl Into<String>,
        handler: Arc<dyn DmaHandler>,
    ) -> Result<Client> {
        let (path, stream) = match &self.0 {
            Target::Server { path, stream } => (path, *stream),
            Target::Kernel(_) => bail!(
                "the guest has drivers for devices over vfio-user alone, and {self} is one \
                 of the kernel's: serve it a device, or move this one with `send`"
            ),
        };
        let options = ClientOptions { stream, ..ClientOptions::new(name, handler) };
        Client::connect(path, options).map_err(|error| {
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
    let place = |uri: &DeviceUri| match &uri.0 {
        Target::Server { path, .. } => {
            path.canonicalize().unwrap_or_else(|_| path.to_owned())
        }
        Target::Kernel(place) => place.to_string().into(),
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
    let open = |uri, name| -> Result<Box<dyn Device>> {
        let (_, device) = open(uri, name)?;
        Ok(Box::new(device))
    };
    uris.iter().zip(names(uris)).map(|(uri, name)| open(uri, name)).collect()
}

/// As [`open_all`], for what is left in a device to be there when this process has ended.
///
/// # Errors
/// As there, and for devices that the kernel resets then.
pub fn open_lasting(uris: &[DeviceUri]) -> Result<Vec<Box<dyn Device>>> {
    let open = |uri, name| -> Result<Box<dyn Device>> {
        let (reached, device) = open(uri, name)?;
        keeps(uri, &reached)?;
        Ok(Box::new(device))
    };
    uris.iter().zip(names(uris)).map(|(uri, name)| open(uri, name)).collect()
}

fn open(uri: &DeviceUri, name: String) -> Result<(Reached, AnyDevice)> {
    let reached = uri.reach(name)?;
    let device = reached.device().with_context(|| format!("cannot migrate {uri}"))?;
    Ok((reached, device))
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
/// another is emptied: whoever loaded it has gone. So is one of the kernel's that was left
/// in the middle of something, since drivers differ in what they open a device with; but
/// not one that a launcher handed in, which may know what for.
///
/// # Errors
/// When these are not as many, as [`open_all`], or as [`stopped`], and where what they
/// take in would be gone with this process: reasons that the source may read.
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
        let mut devices: Vec<Box<dyn Device>> = Vec::new();
        for (uri, name) in uris.iter().zip(names(uris)) {
            let (reached, mut device) = open(uri, name)?;
            keeps(uri, &reached)?;
            let state = device.state()?;
            if reached.is_emptied(state) {
                let (device_name, state) = (device.name(), state.name());
                tracing::warn!(device = device_name, state, "found so, and reset");
                device.reset()?;
            }
            devices.push(Box::new(device));
        }
        stopped(&mut devices)?;
        Ok(devices)
    };
    open().map_err(|error| vec![format!("{error:#}")])
}

/// Whether a device keeps what is in it when this process ends.
fn keeps(uri: &DeviceUri, reached: &Reached) -> Result<()> {
    let forgets = match reached {
        Reached::Kernel(host) => host.about().forgets(),
        Reached::Server(_) => None,
    };
    match forgets {
        None => Ok(()),
        Some(why) => bail!(
            "nothing is left in {uri} to stay there: {why}; have a launcher that keeps \
             the device open hand it in (vfio:unix:PATH)"
        ),
    }
}

/// What devices are called: as their sockets, and where that says too little as their
/// sockets' paths.
fn names(uris: &[DeviceUri]) -> Vec<String> {
    let short = |uri: &DeviceUri| match &uri.0 {
        Target::Server { path, .. } => {
            path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
        }
        Target::Kernel(place) => place.short(),
    };
    let name = |uri| match uris.iter().filter(|other| short(other) == short(uri)).count()
    {
        1 => short(uri),
        _ => match &uri.0 {
            Target::Server { path, .. } => path.display().to_string(),
            Target::Kernel(place) => place.to_string(),
        },
    };
    uris.iter().map(name).collect()
}

impl FromStr for DeviceUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<DeviceUri, UriError> {
        if let Some(place) = text.strip_prefix("vfio:") {
            return Ok(DeviceUri(Target::Kernel(place.parse()?)));
        }
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
        Ok(DeviceUri(Target::Server { path: path.into(), stream }))
    }
}

impl fmt::Display for DeviceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, stream) = match &self.0 {
            Target::Server { path, stream } => (path, stream),
            Target::Kernel(place) => return write!(f, "vfio:{place}"),
        };
        write!(f, "vfio-user:{}", path.display())?;
        f.write_str(match stream {
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
    use super::{DeviceUri, State, found_in_the_middle, names};

    #[test]
    fn a_device_is_read_as_it_is_written() {
        for text in [
            "vfio-user:/run/a.sock",
            "vfio-user:a.sock?stream=continuous",
            "vfio-user:a?stream=restarts",
            "vfio:/dev/vfio/devices/vfio0",
            "vfio:0000:01:00.3",
            "vfio:83b8f4f2-509f-382f-3c1e-e6bfe0fa1001?by=group",
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
            ("vfio:", "a PCI address such as 0000:01:00.3"),
            ("vfio:/run/a.sock", "a PCI address such as 0000:01:00.3"),
        ] {
            let error = text.parse::<DeviceUri>().expect_err("no device").to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_device_that_a_launcher_handed_in_is_not_reset_under_it() {
        for state in State::ALL {
            assert!(!found_in_the_middle(false, state), "{state}");
            let left = !matches!(state, State::Running | State::Stop);
            assert_eq!(found_in_the_middle(true, state), left, "{state}");
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
