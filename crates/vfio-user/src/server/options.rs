//! How a server behaves, what it refuses to start with, and how it is stopped.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use abi::vfio_user::default;
use device::front::{FrontError, FrontOptions};
use sys::EventFd;
use thiserror::Error;

/// How long a client may take to agree on a version, unless the options say otherwise.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// How a server behaves.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// What people call the device; used in the log.
    pub name: String,
    /// Resets the device as soon as a client goes away, instead of leaving that to the
    /// next one.
    pub reset_on_disconnect: bool,
    /// The most bytes of data in one message, 4096 to 64 MiB.
    pub max_data_xfer_size: usize,
    /// Whether our additions to the protocol are agreed to. Off for tests of what
    /// happens without them.
    pub additions: bool,
    /// How long a client may take from the connection to an agreed VERSION, before it
    /// is dropped and the next one has its turn.
    pub handshake_deadline: Duration,
    /// The migration region that stands for the migration features, for a device of a
    /// generation before v2; `None` for v2.
    pub front: Option<FrontOptions>,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            name: "device".to_owned(),
            reset_on_disconnect: false,
            max_data_xfer_size: default::MAX_DATA_XFER_SIZE as usize,
            additions: true,
            handshake_deadline: HANDSHAKE,
            front: None,
        }
    }
}

/// A device that cannot be served.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The windows of a region are not one stretch of one file, as a reply with a single
    /// descriptor needs them: window and memory have to lie at the same distance, and
    /// the memory not before the window.
    #[error("the windows of region {0} are not one stretch of one file")]
    Windows(u32),
    /// A limit is out of its range.
    #[error("max_data_xfer_size of {0} bytes is not between 4096 and 64 MiB")]
    Limit(usize),
    /// Its migration region cannot be made.
    #[error("cannot make a migration region")]
    Front(#[from] FrontError),
    /// The operating system refused something.
    #[error("cannot set the server up")]
    Io(#[from] io::Error),
}

/// Ends [`Server::serve`](super::Server::serve) from any thread.
#[derive(Clone, Debug)]
pub struct Stop {
    pub(super) inner: Arc<(AtomicBool, EventFd)>,
}

impl Stop {
    /// Not stopped yet.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Stop> {
        Ok(Stop { inner: Arc::new((AtomicBool::new(false), EventFd::new()?)) })
    }

    /// Stops the server, now or as soon as it serves.
    pub fn stop(&self) {
        self.inner.0.store(true, Ordering::SeqCst);
        // It can only be full, and then the server is woken anyway.
        let _ = self.inner.1.signal(1);
    }

    pub(super) fn stopped(&self) -> bool {
        self.inner.0.load(Ordering::SeqCst)
    }
}
