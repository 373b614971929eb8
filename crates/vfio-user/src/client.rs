//! The VMM's side: a device behind a socket, as a [`control::Transport`].
//!
//! ```text
//!   vCPUs, engine ... any number of threads
//!        |  call: send, then wait for the reply
//!        v
//!      [line]   one of the waiting threads reads the socket, for all of them
//!        |  \
//!        |   `-> what the server asks (DMA) --> [worker] --> DmaHandler
//!        v
//!      socket
//! ```
//!
//! * The thread that waits for a reply reads the socket itself, so that a call costs
//!   one send and one receive and no hand-over between threads. What belongs to other
//!   callers it leaves with them; when its own reply is there another one reads on.
//! * What the server asks is left to a worker thread of the client. Only the worker
//!   ever waits for another device (a peer's BAR), never the thread that reads. While
//!   nobody calls, the worker waits for the socket.
//! * Reading never waits for writing: whoever finds the socket full reads while it
//!   waits for room.
//! * Every call has a deadline. A server that misses one, or breaks the protocol, is
//!   given up: that call says what happened, and every later one that the device is
//!   gone.

mod line;
mod session;
mod transport;
mod worker;

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use abi::errno::Errno;
use abi::feature::Feature;
use abi::vfio_user::{MAJOR, MINOR, default};
use control::{Transport, TransportError};
use device::Digest;

use crate::codec::{Capabilities, DigestPart, Reply, Request, Version, decode_digest};
use line::{Line, Sink};

/// The most bytes of an answer to VERSION and the like.
const SMALL: usize = 32 * 1024;

/// `MIG_DATA_WRITE` to a server that does not know us: libvfio-user loses its place in
/// longer messages.
const CAREFUL: usize = 32 * 1024;

/// The most bytes of a digest in all.
const DIGEST: u64 = 80 << 20;

/// Answers what the device asks by message: DMA to memory that was mapped as
/// [`control::DmaTarget::Messages`].
///
/// Called by the client's worker thread, one at a time. It may wait for another device
/// (a peer's BAR); it marks in the VMM's own dirty bitmap what it writes to memory.
pub trait DmaHandler: Send + Sync {
    /// Reads `into.len()` bytes at `iova`.
    ///
    /// # Errors
    /// What the device gets as the errno.
    fn read(&self, iova: u64, into: &mut [u8]) -> Result<(), Errno>;

    /// Writes at `iova`.
    ///
    /// # Errors
    /// What the device gets as the errno.
    fn write(&self, iova: u64, data: &[u8]) -> Result<(), Errno>;
}

/// Answers nothing: for a VMM that maps no memory for messages.
#[derive(Clone, Copy, Debug)]
pub struct NoDma;

impl DmaHandler for NoDma {
    fn read(&self, _iova: u64, _into: &mut [u8]) -> Result<(), Errno> {
        Err(Errno::EFAULT)
    }

    fn write(&self, _iova: u64, _data: &[u8]) -> Result<(), Errno> {
        Err(Errno::EFAULT)
    }
}

/// How a client behaves.
#[derive(Clone)]
pub struct ClientOptions {
    /// What people call the device in this VM.
    pub name: String,
    /// Who answers its DMA by message.
    pub handler: Arc<dyn DmaHandler>,
    /// How long a call may take.
    pub call_deadline: Duration,
    /// How long a change of state or a reset may take.
    pub state_deadline: Duration,
    /// The most bytes of data in one message, 4096 to 64 MiB.
    pub max_data_xfer_size: usize,
    /// Whether our additions to the protocol are offered.
    pub additions: bool,
}

impl ClientOptions {
    /// 5 seconds for a call, 30 for a change of state, 1 MiB in one message.
    pub fn new(name: impl Into<String>, handler: Arc<dyn DmaHandler>) -> ClientOptions {
        ClientOptions {
            name: name.into(),
            handler,
            call_deadline: Duration::from_secs(5),
            state_deadline: Duration::from_secs(30),
            max_data_xfer_size: default::MAX_DATA_XFER_SIZE as usize,
            additions: true,
        }
    }
}

impl fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientOptions")
            .field("name", &self.name)
            .field("call_deadline", &self.call_deadline)
            .field("state_deadline", &self.state_deadline)
            .field("max_data_xfer_size", &self.max_data_xfer_size)
            .field("additions", &self.additions)
            .finish_non_exhaustive()
    }
}

/// A device behind a vfio-user server. Clones share the connection, which ends with the
/// last of them and of its data sessions.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    options: ClientOptions,
    line: Arc<Line>,
    /// What was agreed: the most bytes of data in one message to the server.
    max_data: usize,
    max_fds: usize,
    additions: bool,
    /// Counts data sessions; one that is not the last is dead. Odd numbers are sessions,
    /// even ones the time between.
    sessions: AtomicU64,
    worker: Option<JoinHandle<()>>,
}

impl Client {
    /// Connects to the server that listens at `path`.
    ///
    /// # Errors
    /// [`TransportError::Gone`] where nobody does; what VERSION came to.
    pub fn connect(
        path: &Path,
        options: ClientOptions,
    ) -> Result<Client, TransportError> {
        let socket = sys::socket::connect(path).map_err(|error| {
            TransportError::Gone { operation: "connect", source: Some(error) }
        })?;
        Client::over(socket, options)
    }

    /// Speaks over a socket that is connected already.
    ///
    /// # Errors
    /// What VERSION came to.
    pub fn over(
        socket: OwnedFd,
        options: ClientOptions,
    ) -> Result<Client, TransportError> {
        const OPERATION: &str = "agree on the version";
        let max_data = options.max_data_xfer_size.clamp(4096, 64 << 20);
        let setup =
            |error| TransportError::Gone { operation: OPERATION, source: Some(error) };
        let line = Arc::new(Line::new(socket, max_data).map_err(setup)?);
        let ours = Capabilities {
            max_msg_fds: line::MAX_FDS,
            max_data_xfer_size: max_data,
            vfio_migrate: options.additions.then_some(crate::ADDITIONS),
            ..Capabilities::default()
        };
        let text = ours.text();
        let version = Version { major: MAJOR, minor: MINOR, text: &text };
        let request = Request::Version(version);
        let mut sink = Sink { fixed: SMALL, data: &mut [] };
        let answer =
            line.call(OPERATION, &request, &[], &mut sink, options.call_deadline)?;
        let broken = |what: String| {
            line.give_up(&what);
            TransportError::Broken { operation: OPERATION, what }
        };
        let theirs = match answer.parse(request.command()) {
            Ok(Reply::Version(version)) if version.minor > MINOR => {
                return Err(broken(format!("minor version {}", version.minor)));
            }
            Ok(Reply::Version(version)) => version.capabilities(),
            _ => return Err(broken("not an answer to VERSION".to_owned())),
        };
        let theirs = theirs.map_err(|error| broken(error.to_string()))?;
        let additions = match theirs.vfio_migrate {
            None => false,
            Some(_) if !options.additions => {
                return Err(broken("additions that were not offered".to_owned()));
            }
            Some(version) if version > crate::ADDITIONS => {
                return Err(broken(format!("additions of version {version}")));
            }
            Some(_) => true,
        };
        tracing::debug!(device = %options.name, ?theirs, additions, "agreed");
        let worker = worker::start(&line, &options).map_err(setup)?;
        let inner = Inner {
            max_data: max_data.min(theirs.max_data_xfer_size),
            max_fds: theirs.max_msg_fds.clamp(1, line::MAX_FDS),
            additions,
            options,
            line,
            sessions: AtomicU64::new(0),
            worker: Some(worker),
        };
        Ok(Client { inner: Arc::new(inner) })
    }

    /// Whether the server knows our additions to the protocol.
    pub fn additions(&self) -> bool {
        self.inner.additions
    }

    /// Asks the device's model for the digest of what it holds; `None` where it has
    /// none, or the server does not know the question.
    ///
    /// # Errors
    /// As every call.
    pub fn digest(&self) -> Result<Option<Digest>, TransportError> {
        const OPERATION: &str = "ask for a digest";
        let broken = |what: &str| TransportError::Broken {
            operation: OPERATION,
            what: what.to_owned(),
        };
        let mut whole = Vec::new();
        loop {
            let asked = DigestPart { offset: whole.len() as u64, total: 0 };
            let feature = Feature::VFIO_MIGRATE_DIGEST;
            let answer = self.feature_get(feature, &asked.bytes(), self.inner.max_data);
            let answer = match answer {
                Err(error) if error.errno() == Some(Errno::ENOTTY) => return Ok(None),
                other => other?,
            };
            let (part, bytes) =
                DigestPart::parse(&answer).map_err(|error| broken(error.0))?;
            if part.offset != asked.offset || part.total > DIGEST || bytes.is_empty() {
                return Err(broken("a part that was not asked for"));
            }
            whole.extend_from_slice(bytes);
            if whole.len() as u64 >= part.total {
                return decode_digest(&whole).map(Some).map_err(|error| broken(error.0));
            }
        }
    }

    /// Ends the running data session, if there is one.
    fn end_session(&self) {
        let sessions = &self.inner.sessions;
        // Only ever moves on; a race between two changes of state is the device's.
        let now = sessions.load(Ordering::SeqCst);
        if !now.is_multiple_of(2) {
            sessions.store(now + 1, Ordering::SeqCst);
        }
    }

    /// Starts a data session, and gives its number.
    fn start_session(&self) -> u64 {
        self.end_session();
        self.inner.sessions.fetch_add(1, Ordering::SeqCst) + 1
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("options", &self.inner.options)
            .field("max_data", &self.inner.max_data)
            .field("additions", &self.inner.additions)
            .finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.line.give_up("the client was dropped");
        if let Some(worker) = self.worker.take() {
            // The handler may hold the last clone; a thread cannot wait for itself.
            if worker.thread().id() != std::thread::current().id() {
                let _ = worker.join();
            }
        }
    }
}
