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
//! * A server that gives a twin socket asks there, and the worker alone reads and writes
//!   it. The main socket then has nothing but calls and their replies.
//! * Reading never waits for writing: whoever finds the socket full reads while it
//!   waits for room.
//! * Every call has a deadline. A server that misses one, or breaks the protocol, is
//!   given up: that call says what happened, and every later one that the device is
//!   gone.

mod agreement;
mod irqs;
mod line;
mod memory;
mod raw;
mod regions;
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
use abi::vfio_user::default;
use control::{SaveStream, Transport, TransportError};
use device::Digest;

use crate::codec::{DigestPart, decode_digest};
use agreement::{Agreed, LEAST_DATA, MOST_DATA};
use line::{Limit, Line};
use memory::Mappings;

/// `MIG_DATA_WRITE` and `REGION_WRITE` to a server that does not know us: libvfio-user
/// loses its place in longer messages.
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
    /// Whether a twin socket is asked for: what the device asks then has a connection of
    /// its own, where the server has one to give.
    pub twin_socket: bool,
    /// What is known of the device's data in PRE_COPY and STOP_COPY.
    pub stream: DeviceStream,
}

/// Whether the data that a device gives in STOP_COPY goes on where PRE_COPY ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceStream {
    /// It does where the server knows our additions; of any other it is not known, so
    /// PRE_COPY is not used: libvfio-user's own samples start over.
    #[default]
    Detect,
    /// It does: somebody who knows the device says so.
    Continuous,
    /// It starts over. PRE_COPY is not used.
    Restarts,
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
            twin_socket: true,
            stream: DeviceStream::default(),
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
            .field("twin_socket", &self.twin_socket)
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

/// A device behind a vfio-user server. Clones share the connection, which ends with the
/// last of them and of its data sessions.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    /// What it is called by whoever has this handle.
    name: Arc<str>,
}

struct Inner {
    options: ClientOptions,
    line: Arc<Line>,
    /// Where the device asks, if it has a connection of its own for that.
    twin: Option<Arc<Line>>,
    agreed: Agreed,
    mappings: Mappings,
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
        let max_data = options.max_data_xfer_size.clamp(LEAST_DATA, MOST_DATA);
        let setup =
            |error| TransportError::Gone { operation: "connect", source: Some(error) };
        let line = Arc::new(Line::new(socket, max_data).map_err(setup)?);
        let (agreed, twin) = agreement::agree(&line, &options)?;
        let twin = match twin {
            None => None,
            Some(socket) => {
                let twin = Arc::new(Line::twin(socket, max_data).map_err(setup)?);
                line.leave_questions_to(&twin);
                Some(twin)
            }
        };
        let worker = worker::start(&line, twin.as_ref(), &options).map_err(setup)?;
        let inner = Inner {
            options,
            line,
            twin,
            agreed,
            mappings: Mappings::default(),
            sessions: AtomicU64::new(0),
            worker: Some(worker),
        };
        let name = inner.options.name.as_str().into();
        Ok(Client { inner: Arc::new(inner), name })
    }

    /// The same device by another name: for who learns only from the device what to call
    /// it. What this handle and its clones say of it has the new name.
    #[must_use]
    pub fn named(self, name: &str) -> Client {
        Client { name: name.into(), ..self }
    }

    /// Whether the server knows our additions to the protocol.
    pub fn additions(&self) -> bool {
        self.inner.agreed.additions
    }

    /// Whether what the device asks comes over a socket of its own.
    pub fn has_twin_socket(&self) -> bool {
        self.inner.twin.is_some()
    }

    /// Asks the device's model for the digest of what it holds; `None` where it has
    /// none, or the server does not know the question. All of its parts together take no
    /// longer than a change of state.
    ///
    /// # Errors
    /// As every call.
    pub fn digest(&self) -> Result<Option<Digest>, TransportError> {
        const OPERATION: &str = "ask for a digest";
        let broken = |what| self.broken(OPERATION, what);
        let mut whole = Vec::new();
        let limit = Limit::of(self.inner.options.state_deadline);
        loop {
            // It may come byte by byte.
            if limit.passed() {
                return Err(self.inner.line.time_out(OPERATION, limit));
            }
            let asked = DigestPart { offset: whole.len() as u64, total: 0 };
            let feature = Feature::VFIO_MIGRATE_DIGEST;
            let answer =
                self.feature_get(feature, &asked.bytes(), self.inner.agreed.max_data);
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

    /// What the device asked before it answered is done when this returns: memory that was
    /// taken from it, and all of it after a reset, is the guest's own then, and a device that
    /// stopped writes no more, by nobody's hand. The handler
    /// itself has that by its order. (A twin socket has an order of its own.)
    fn dma_is_over(&self, operation: &'static str) -> Result<(), TransportError> {
        let inner = &self.inner;
        let worker = inner.worker.as_ref().map(|worker| worker.thread().id());
        if worker == Some(std::thread::current().id()) {
            return Ok(());
        }
        inner.line.catch_up(operation, inner.options.call_deadline)
    }

    fn stream(&self) -> SaveStream {
        match self.inner.options.stream {
            DeviceStream::Continuous => SaveStream::Continuous,
            DeviceStream::Restarts => {
                SaveStream::Restarts("its data is declared to start over in STOP_COPY")
            }
            DeviceStream::Detect if self.inner.agreed.additions => SaveStream::Continuous,
            DeviceStream::Detect => SaveStream::Restarts(
                "its server does not say whether STOP_COPY goes on where PRE_COPY ended, \
                 and some start over",
            ),
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
            .field("agreed", &self.inner.agreed)
            .field("twin", &self.inner.twin.is_some())
            .finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The twin goes with it.
        self.line.give_up("the client was dropped");
        if let Some(worker) = self.worker.take() {
            // The handler may hold the last clone; a thread cannot wait for itself.
            if worker.thread().id() != std::thread::current().id() {
                let _ = worker.join();
            }
        }
    }
}
