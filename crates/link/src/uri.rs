//! Where the other side is, as the operator writes it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

/// A place to listen at or to connect to: `tcp:HOST:PORT` (an IPv6 address in
/// brackets) or `unix:PATH`.
///
/// ```
/// use vfio_migrate_link::Uri;
///
/// let uri: Uri = "tcp:[::1]:7600".parse()?;
/// assert_eq!(uri.to_string(), "tcp:[::1]:7600");
/// # Ok::<(), vfio_migrate_link::UriError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Uri(Kind);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

impl Uri {
    /// The longest path of a UNIX socket in bytes: `sun_path` holds 108 with a NUL.
    pub const LONGEST_PATH: usize = 107;
    /// The longest host name in bytes (RFC 1035, section 2.3.4).
    pub const LONGEST_HOST: usize = 255;

    /// `tcp:HOST:PORT`. Port 0 lets the system choose one to listen at. An IPv6
    /// address stands without brackets here.
    ///
    /// # Errors
    /// When `host` is empty, too long, or has characters that no host name has.
    pub fn tcp(host: &str, port: u16) -> Result<Uri, UriError> {
        let odd = |c: char| {
            !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%'))
        };
        if host.is_empty() || host.len() > Self::LONGEST_HOST || host.contains(odd) {
            return Err(UriError::Host(shown(host)));
        }
        Ok(Uri(Kind::Tcp { host: host.to_owned(), port }))
    }

    /// `unix:PATH`.
    ///
    /// # Errors
    /// When `path` is empty, has a NUL, or is too long for a socket address.
    pub fn unix(path: impl Into<PathBuf>) -> Result<Uri, UriError> {
        let path = path.into();
        let bytes = path.as_os_str().as_encoded_bytes();
        if bytes.is_empty() || bytes.len() > Self::LONGEST_PATH || bytes.contains(&0) {
            return Err(UriError::Path(shown(&path.to_string_lossy())));
        }
        Ok(Uri(Kind::Unix(path)))
    }

    /// The port of a TCP place.
    pub fn port(&self) -> Option<u16> {
        match &self.0 {
            Kind::Tcp { port, .. } => Some(*port),
            Kind::Unix(_) => None,
        }
    }

    /// The path of a UNIX place.
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            Kind::Tcp { .. } => None,
            Kind::Unix(path) => Some(path),
        }
    }

    /// The same place with another port, where it has one.
    pub(crate) fn with_port(&self, port: u16) -> Uri {
        Uri(match &self.0 {
            Kind::Tcp { host, .. } => Kind::Tcp { host: host.clone(), port },
            Kind::Unix(path) => Kind::Unix(path.clone()),
        })
    }

    pub(crate) fn kind(&self) -> &Kind {
        &self.0
    }
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Uri, UriError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Uri::unix(path);
        }
        let Some(rest) = text.strip_prefix("tcp:") else {
            return Err(UriError::Scheme(shown(text)));
        };
        let Some((host, port)) = rest.rsplit_once(':') else {
            return Err(UriError::NoPort(shown(text)));
        };
        let port: u16 = match port.parse() {
            Ok(number) if port.bytes().all(|b| b.is_ascii_digit()) => number,
            _ => return Err(UriError::Port(shown(port))),
        };
        match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) if address.contains(':') => Uri::tcp(address, port),
            None if !host.contains(':') => Uri::tcp(host, port),
            // Without brackets the last part of an IPv6 address reads as a port.
            _ => Err(UriError::Host(shown(host))),
        }
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Tcp { host, port } if host.contains(':') => {
                write!(f, "tcp:[{host}]:{port}")
            }
            Kind::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Kind::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A text that names no place, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UriError {
    /// Neither `tcp:` nor `unix:`.
    #[error("`{0}` is no place to migrate to or from: write tcp:HOST:PORT or unix:PATH")]
    Scheme(String),
    /// No port.
    #[error("`{0}` has no port: write tcp:HOST:PORT")]
    NoPort(String),
    /// A port that is no number from 0 to 65535.
    #[error("`{0}` is no port: write a number from 0 to 65535")]
    Port(String),
    /// A host that cannot be one.
    #[error("`{0}` is no host: write a name, an IPv4 address, or an IPv6 address in []")]
    Host(String),
    /// A path that cannot be a socket's.
    #[error("`{0}` is no path of a socket: write 1 to {most} bytes", most = Uri::LONGEST_PATH)]
    Path(String),
}

/// Enough of a foreign text to recognise it by, and nothing that moves the cursor.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    #[test]
    fn a_place_is_read_as_it_is_written() {
        for text in [
            "tcp:127.0.0.1:7600",
            "tcp:host-2.example.org:1",
            "tcp:[::1]:65535",
            "tcp:[fe80::1%eth0]:0",
            "unix:/run/migrate.sock",
            "unix:a:b",
        ] {
            assert_eq!(text.parse::<Uri>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_wrong_place_says_what_to_write() {
        for (text, says) in [
            ("127.0.0.1:7600", "write tcp:HOST:PORT or unix:PATH"),
            ("", "write tcp:HOST:PORT or unix:PATH"),
            ("tls:host:1", "write tcp:HOST:PORT or unix:PATH"),
            ("tcp:host", "has no port"),
            ("tcp:host:", "`` is no port"),
            ("tcp:host:+5", "`+5` is no port"),
            ("tcp:host:65536", "`65536` is no port"),
            ("tcp::7600", "`` is no host"),
            ("tcp://host:7600", "is no host"),
            ("tcp:::1:7600", "an IPv6 address in []"),
            ("tcp:[host]:7600", "is no host"),
            ("tcp:a b:7600", "is no host"),
            ("unix:", "is no path"),
        ] {
            let error = text.parse::<Uri>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert!(format!("unix:{}", "a".repeat(108)).parse::<Uri>().is_err());
        assert!(format!("unix:{}", "a".repeat(107)).parse::<Uri>().is_ok());
    }

    #[test]
    fn a_wrong_place_does_not_write_to_the_terminal_at_length() {
        let text = format!("\x1b[2J{}", "x".repeat(10_000));
        let error = text.parse::<Uri>().unwrap_err().to_string();
        assert!(!error.contains('\x1b') && error.len() < 200);
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_reader(text in any::<String>(), tail in any::<String>()) {
            for text in [text.clone(), format!("tcp:{text}:{tail}"), format!("unix:{text}")] {
                if let Ok(uri) = text.parse::<Uri>() {
                    prop_assert_eq!(uri.to_string().parse::<Uri>(), Ok(uri));
                }
            }
        }
    }
}
