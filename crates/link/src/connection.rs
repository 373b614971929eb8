//! A connected stream socket as a channel.

use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use port::{Channel, ChannelError, Close, Halves, Receive, Transmit};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use crate::rate::RateLimit;

/// How long an operation may go on without a byte moving, until somebody says
/// otherwise.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The most parts that one system call takes (`UIO_MAXIOV` of Linux).
const MOST_PARTS: usize = 1024;

/// A connection to the other host. A VMM that has a connected stream already makes one
/// from it.
#[derive(Debug)]
pub struct Connection {
    socket: Arc<OwnedFd>,
    limit: Option<RateLimit>,
}

impl Connection {
    /// The same connection, whose sending is limited.
    pub(crate) fn limited(self, limit: Option<RateLimit>) -> Connection {
        Connection { limit, ..self }
    }
}

impl From<UnixStream> for Connection {
    fn from(stream: UnixStream) -> Connection {
        Connection { socket: Arc::new(stream.into()), limit: None }
    }
}

impl TryFrom<TcpStream> for Connection {
    type Error = io::Error;

    /// Small frames are not held back for larger ones (`TCP_NODELAY`): each answer of
    /// the handoff is one, and downtime waits for it. The kernel keeps sizing the
    /// buffers, which it does better than a constant.
    fn try_from(stream: TcpStream) -> Result<Connection, io::Error> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(false)?;
        Ok(Connection { socket: Arc::new(stream.into()), limit: None })
    }
}

impl Channel for Connection {
    fn split(self: Box<Self>) -> Result<Halves, ChannelError> {
        let half = |which| Half {
            socket: Arc::clone(&self.socket),
            which,
            deadline: DEADLINE,
            applied: None,
        };
        let ended = Arc::<AtomicBool>::default();
        Ok((
            Box::new(Out {
                half: half(Timeout::Send),
                limit: self.limit.clone(),
                ended: Arc::clone(&ended),
            }),
            Box::new(In(half(Timeout::Recv))),
            Box::new(End { socket: Arc::clone(&self.socket), limit: self.limit, ended }),
        ))
    }
}

/// What both halves are: the socket, and a deadline that the kernel keeps.
#[derive(Debug)]
struct Half {
    socket: Arc<OwnedFd>,
    which: Timeout,
    deadline: Duration,
    applied: Option<Duration>,
}

impl Half {
    /// Tells the kernel of a deadline that changed. Done before an operation, where a
    /// failure can be reported.
    fn arm(&mut self) -> Result<(), ChannelError> {
        if self.applied != Some(self.deadline) {
            let wait = Some(waitable(self.deadline));
            sockopt::set_socket_timeout(&self.socket, self.which, wait)
                .map_err(io::Error::from)?;
            self.applied = Some(self.deadline);
        }
        Ok(())
    }

    fn error(&self, errno: rustix::io::Errno) -> ChannelError {
        use rustix::io::Errno;
        match errno {
            Errno::AGAIN => ChannelError::TimedOut(millis(self.deadline)),
            Errno::PIPE | Errno::CONNRESET => ChannelError::Closed,
            other => ChannelError::Io(other.into()),
        }
    }
}

struct Out {
    half: Half,
    limit: Option<RateLimit>,
    /// Whether this side closed the connection.
    ended: Arc<AtomicBool>,
}

impl Out {
    /// Sends some of the parts, at most as many bytes as there is a turn for.
    fn some(&mut self, left: &[IoSlice<'_>]) -> Result<usize, ChannelError> {
        let batch = &left[..left.len().min(MOST_PARTS)];
        let none = &mut SendAncillaryBuffer::default();
        let Some(limit) = &self.limit else {
            let sent = sendmsg(&self.half.socket, batch, none, SendFlags::NOSIGNAL);
            return self.moved(sent);
        };
        let bytes = batch.iter().map(|part| part.len()).sum();
        // The wait for a turn is this side's own doing: it is no deadline of the peer's.
        let Some(turn) = limit.take(bytes, &self.ended) else {
            return Err(ChannelError::Closed);
        };
        let (mut room, mut parts) = (turn, Vec::new());
        for part in batch {
            let part = &part[..part.len().min(room)];
            room -= part.len();
            parts.push(IoSlice::new(part));
            if room == 0 {
                break;
            }
        }
        // All of the turn, however many calls it takes.
        let mut left = parts.as_mut_slice();
        while !left.is_empty() {
            let none = &mut SendAncillaryBuffer::default();
            let sent = sendmsg(&self.half.socket, left, none, SendFlags::NOSIGNAL);
            let moved = self.moved(sent)?;
            IoSlice::advance_slices(&mut left, moved);
        }
        Ok(turn)
    }

    fn moved(&self, sent: rustix::io::Result<usize>) -> Result<usize, ChannelError> {
        match sent {
            Ok(moved) => Ok(moved),
            Err(rustix::io::Errno::INTR) => Ok(0),
            Err(errno) => Err(self.half.error(errno)),
        }
    }
}

impl Transmit for Out {
    fn send(&mut self, parts: &[IoSlice<'_>]) -> Result<(), ChannelError> {
        self.half.arm()?;
        let mut left: Vec<IoSlice<'_>> =
            parts.iter().filter(|part| !part.is_empty()).copied().collect();
        let mut left = left.as_mut_slice();
        while !left.is_empty() {
            let moved = self.some(left)?;
            IoSlice::advance_slices(&mut left, moved);
        }
        Ok(())
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.half.deadline = deadline;
    }
}

struct In(Half);

impl Receive for In {
    fn receive(&mut self, into: &mut [u8]) -> Result<(), ChannelError> {
        self.0.arm()?;
        let mut have = 0;
        while have < into.len() {
            match rustix::io::read(&self.0.socket, &mut into[have..]) {
                Ok(0) => return Err(ChannelError::Closed),
                Ok(more) => have += more,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(self.0.error(errno)),
            }
        }
        Ok(())
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.0.deadline = deadline;
    }
}

struct End {
    socket: Arc<OwnedFd>,
    limit: Option<RateLimit>,
    ended: Arc<AtomicBool>,
}

impl Close for End {
    fn close(&self) {
        self.ended.store(true, Ordering::Release);
        // A connection that is no longer connected is closed already.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        if let Some(limit) = &self.limit {
            limit.wake();
        }
    }
}

/// A deadline as the kernel takes it: 0 would mean for ever, and there is a longest.
pub(crate) fn waitable(deadline: Duration) -> Duration {
    deadline.clamp(Duration::from_millis(1), Duration::from_secs(24 * 60 * 60))
}

pub(crate) fn millis(deadline: Duration) -> u64 {
    u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX)
}
