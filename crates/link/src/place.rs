//! Connecting and listening.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use port::{Accept, Channel, ChannelError, Dial};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use thiserror::Error;

use crate::connection::{Connection, millis, waitable};
use crate::rate::RateLimit;
use crate::uri::{Kind, Uri};

/// Connects to whoever listens at `to`: the control connection, and a [`Dialer`] for
/// the data connections beside it.
///
/// A host name is resolved by the system, which has deadlines of its own; `deadline`
/// covers the connecting, over all addresses of the name together.
///
/// # Errors
/// When the name is not known, nothing listens there, or nobody answers in time.
pub fn dial(to: &Uri, deadline: Duration) -> Result<(Connection, Dialer), LinkError> {
    match to.kind() {
        Kind::Unix(_) => {
            let mut dialer = Dialer { to: to.clone(), peer: None, limit: None };
            Ok((dialer.connect(deadline)?, dialer))
        }
        Kind::Tcp { host, port } => {
            let until = Instant::now() + waitable(deadline);
            let addresses = (host.as_str(), *port)
                .to_socket_addrs()
                .map_err(|source| LinkError::Resolve { host: host.clone(), source })?;
            let mut last = None;
            for peer in addresses {
                let mut dialer = Dialer { to: to.clone(), peer: Some(peer), limit: None };
                match dialer.connect(until.saturating_duration_since(Instant::now())) {
                    Ok(connection) => return Ok((connection, dialer)),
                    Err(error) => last = Some(error),
                }
            }
            Err(last.unwrap_or_else(|| LinkError::Resolve {
                host: host.clone(),
                source: io::Error::from(io::ErrorKind::NotFound),
            }))
        }
    }
}

/// Opens data connections to the peer of a control connection.
#[derive(Clone, Debug)]
pub struct Dialer {
    to: Uri,
    /// The address that answered, so that a name with several addresses does not
    /// lead data elsewhere than control.
    peer: Option<SocketAddr>,
    limit: Option<RateLimit>,
}

impl Dialer {
    /// The same dialer, whose connections send together no faster than `limit`. The
    /// control connection it belongs to is not one of them.
    #[must_use]
    pub fn limited(self, limit: &RateLimit) -> Dialer {
        Dialer { limit: Some(limit.clone()), ..self }
    }

    fn connect(&mut self, deadline: Duration) -> Result<Connection, LinkError> {
        let connected = match (self.to.kind(), self.peer) {
            (Kind::Tcp { .. }, Some(peer)) => {
                TcpStream::connect_timeout(&peer, waitable(deadline))
                    .and_then(Connection::try_from)
            }
            (Kind::Unix(path), _) => connect_unix(path, deadline),
            (Kind::Tcp { .. }, None) => Err(io::ErrorKind::AddrNotAvailable.into()),
        };
        connected.map_err(|source| match source.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
                LinkError::NobodyListens { at: self.to.clone(), source }
            }
            _ => LinkError::Connect { to: self.to.clone(), source },
        })
    }
}

impl Dial for Dialer {
    fn dial(&mut self, deadline: Duration) -> Result<Box<dyn Channel>, ChannelError> {
        match self.connect(deadline) {
            Ok(connection) => Ok(Box::new(connection.limited(self.limit.clone()))),
            Err(LinkError::Connect { source, .. })
                if matches!(
                    source.kind(),
                    io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
                ) =>
            {
                Err(ChannelError::TimedOut(millis(deadline)))
            }
            Err(error) => Err(ChannelError::Io(io::Error::other(error))),
        }
    }

    fn limit(&self) -> Option<u64> {
        self.limit.as_ref().and_then(RateLimit::get)
    }
}

/// Connects a UNIX socket; a listener whose queue is full makes that wait.
fn connect_unix(path: &Path, deadline: Duration) -> io::Result<Connection> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(waitable(deadline)))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(Connection::from(UnixStream::from(socket)))
}

/// Listens at `at`. Port 0 lets the system choose; [`Listener::local`] says which. A
/// UNIX socket is this user's alone (mode 0600), goes with the listener, and replaces
/// one that a dead process left there; whether it is dead is found out by connecting,
/// so a living listener sees a connection come and go.
///
/// # Errors
/// When the place is taken, not this host's, or not permitted.
pub fn listen(at: &Uri) -> Result<Listener, LinkError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse if in_the_way(at) => {
            LinkError::InTheWay { at: at.clone() }
        }
        io::ErrorKind::AddrInUse => LinkError::Taken { at: at.clone(), source },
        _ => LinkError::Listen { at: at.clone(), source },
    };
    let (socket, local) = match at.kind() {
        Kind::Tcp { host, port } => {
            let socket = TcpListener::bind((host.as_str(), *port)).map_err(failed)?;
            let chosen = socket.local_addr().map_err(failed)?.port();
            socket.set_nonblocking(true).map_err(failed)?;
            let local = at.with_port(chosen);
            (Socket::Tcp(socket), local)
        }
        Kind::Unix(path) => {
            let socket = sys::socket::Listener::bind(path).map_err(failed)?;
            rustix::io::ioctl_fionbio(&socket, true)
                .map_err(|errno| failed(errno.into()))?;
            (Socket::Unix(socket), at.clone())
        }
    };
    Ok(Listener { socket: Arc::new(socket), local })
}

/// Whether something is at a place of a socket that is none: nobody listens there, and
/// nothing replaces it.
fn in_the_way(at: &Uri) -> bool {
    match at.kind() {
        Kind::Unix(path) => {
            path.symlink_metadata().is_ok_and(|found| !found.file_type().is_socket())
        }
        Kind::Tcp { .. } => false,
    }
}

/// A place where migrations come in. It goes on after any connection, good or bad.
#[derive(Debug)]
pub struct Listener {
    socket: Arc<Socket>,
    local: Uri,
}

impl Listener {
    /// Where it listens, with the port that the system chose.
    pub fn local(&self) -> &Uri {
        &self.local
    }

    /// Takes the next connection, to be a control connection, and an [`Acceptor`] for
    /// the data connections beside it. Who it is has to be found out by talking.
    ///
    /// # Errors
    /// [`ChannelError::TimedOut`] when none came within `deadline`. The listener is
    /// good for another try after any error.
    pub fn accept(
        &self,
        deadline: Duration,
    ) -> Result<(Connection, Acceptor), ChannelError> {
        let connection = self.socket.accept(deadline)?;
        Ok((connection, Acceptor { socket: Arc::clone(&self.socket) }))
    }
}

/// Takes data connections in. Shares the place with its [`Listener`]: while a migration
/// takes its data connections, nobody should take control connections there.
#[derive(Clone, Debug)]
pub struct Acceptor {
    socket: Arc<Socket>,
}

impl Accept for Acceptor {
    fn accept(&mut self, deadline: Duration) -> Result<Box<dyn Channel>, ChannelError> {
        Ok(Box::new(self.socket.accept(deadline)?))
    }
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(sys::socket::Listener),
}

impl Socket {
    fn accept(&self, deadline: Duration) -> Result<Connection, ChannelError> {
        let until = Instant::now() + waitable(deadline);
        loop {
            match self.take() {
                Ok(connection) => return Ok(connection),
                Err(error) => match error.kind() {
                    // Whoever came is gone again, or was somebody else's.
                    io::ErrorKind::WouldBlock
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::Interrupted => {}
                    _ => return Err(ChannelError::Io(error)),
                },
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ChannelError::TimedOut(millis(deadline)));
            }
            self.wait(left)?;
        }
    }

    fn take(&self) -> io::Result<Connection> {
        match self {
            Socket::Tcp(listener) => Connection::try_from(listener.accept()?.0),
            Socket::Unix(listener) => {
                Ok(Connection::from(UnixStream::from(listener.accept()?)))
            }
        }
    }

    fn wait(&self, left: Duration) -> Result<(), ChannelError> {
        let mut one = [PollFd::from_borrowed_fd(self.as_fd(), PollFlags::IN)];
        let left = Timespec::try_from(left).ok();
        match poll(&mut one, left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(ChannelError::Io(errno.into())),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(listener) => listener.as_fd(),
            Socket::Unix(listener) => listener.as_fd(),
        }
    }
}

/// A place could not be reached or taken.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The host is not known.
    #[error("cannot find the host `{host}`")]
    Resolve {
        /// The host.
        host: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Nothing listens there.
    #[error("nothing listens at {at}: start the destination first")]
    NobodyListens {
        /// The place.
        at: Uri,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Connecting failed, or took too long.
    #[error("cannot connect to {to}")]
    Connect {
        /// The place.
        to: Uri,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something that is no socket is at the place of one.
    #[error(
        "cannot listen at {at}: what is there is no socket; remove it, or name another place"
    )]
    InTheWay {
        /// The place.
        at: Uri,
    },
    /// Somebody listens there already.
    #[error(
        "cannot listen at {at}: it is taken; end whoever listens there, or name another \
         place"
    )]
    Taken {
        /// The place.
        at: Uri,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The place cannot be listened at.
    #[error("cannot listen at {at}")]
    Listen {
        /// The place.
        at: Uri,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}
