//! The device's side: serves one device to one client at a time.
//!
//! ```text
//!                 poll_fd (epoll)
//!        .-----------+-----------+----------.
//!     listener    socket       timer       stop
//!        |           |           |
//!     accept     messages   model's time       one thread, nothing blocks
//!        |           v           v
//!        |       [commands] -> device::Runner -> the model
//!        |           |           |
//!        `-----> [peer] <--------'  replies; DMA by message, and its answers
//! ```
//!
//! * One thread calls everything. [`Server::serve`] is a loop of its own;
//!   [`Server::poll_fd`] and [`Server::process`] fit it into a foreign one.
//! * Everything is answered while something else is outstanding: a change of state that
//!   takes time defers only its own reply, and the device's own DMA by message is sent
//!   between messages and finished when its answer comes. None is sent, and nothing is
//!   waited for, inside a region access.
//! * Reading never waits for writing: what the socket does not take is queued, up to a
//!   bound, above which the client is disconnected.
//! * A client that does not agree on a version in time is disconnected: it would keep
//!   all others out.
//! * When a client goes away its session, mappings, eventfds and messages are dropped
//!   before the next one is taken, which waits in the listener's backlog. The device
//!   keeps its contents and its migration state, unless
//!   [`ServerOptions::reset_on_disconnect`] says otherwise.

mod commands;
mod features;
mod peer;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use abi::vfio_user::default;
use device::{Runner, Work};
use sys::socket::Listener;
use sys::{Epoll, EventFd, Interest, Timer};
use thiserror::Error;

pub use peer::DisconnectReason;
use peer::Peer;

/// How many messages are served before the model and the timer have their turn.
const MESSAGES_A_TURN: usize = 16;

/// How long a client may take to agree on a version, unless the options say otherwise.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Keys of the epoll set.
const LISTENER: u64 = 0;
const SOCKET: u64 = 1;
const TIMER: u64 = 2;
const STOP: u64 = 3;

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
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            name: "device".to_owned(),
            reset_on_disconnect: false,
            max_data_xfer_size: default::MAX_DATA_XFER_SIZE as usize,
            additions: true,
            handshake_deadline: HANDSHAKE,
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
    /// The operating system refused something.
    #[error("cannot set the server up")]
    Io(#[from] io::Error),
}

/// Ends [`Server::serve`] from any thread.
#[derive(Clone, Debug)]
pub struct Stop {
    inner: Arc<(AtomicBool, EventFd)>,
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

    fn stopped(&self) -> bool {
        self.inner.0.load(Ordering::SeqCst)
    }
}

/// Serves one device; see the [module](self).
pub struct Server {
    runner: Runner,
    options: ServerOptions,
    peer: Option<Peer>,
    last_disconnect: Option<DisconnectReason>,
    listener: Option<Listener>,
    epoll: Epoll,
    timer: Timer,
    /// What the timer is set to.
    due: Option<Instant>,
    /// What the socket is waited for.
    interest: Interest,
}

/// When the next turn is due, if nothing comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Now,
    At(Instant),
    Never,
}

impl Server {
    /// A server for a device, without a client yet.
    ///
    /// # Errors
    /// [`ServerError`], where the device's windows or the options make no sense.
    pub fn new(runner: Runner, options: ServerOptions) -> Result<Server, ServerError> {
        let limit = options.max_data_xfer_size;
        if !(4096..=64 << 20).contains(&limit) {
            return Err(ServerError::Limit(limit));
        }
        for region in &runner.description().regions {
            if !commands::one_stretch(region) {
                return Err(ServerError::Windows(region.index));
            }
        }
        let epoll = Epoll::new()?;
        let timer = Timer::new()?;
        epoll.add(&timer, TIMER, Interest::READ)?;
        Ok(Server {
            runner,
            options,
            peer: None,
            last_disconnect: None,
            listener: None,
            epoll,
            timer,
            due: None,
            interest: Interest::NONE,
        })
    }

    /// The device, to be looked at (state, counters, digest).
    pub fn runner(&self) -> &Runner {
        &self.runner
    }

    /// Whether a client is connected.
    pub fn connected(&self) -> bool {
        self.peer.is_some()
    }

    /// Why the last client that went away did.
    pub fn last_disconnect(&self) -> Option<&DisconnectReason> {
        self.last_disconnect.as_ref()
    }

    /// Takes clients from a listener, one at a time; the others wait.
    ///
    /// # Errors
    /// What epoll says.
    pub fn listen(&mut self, listener: Listener) -> io::Result<()> {
        self.epoll.add(&listener, LISTENER, Interest::READ)?;
        if self.peer.is_some() {
            self.epoll.modify(&listener, LISTENER, Interest::NONE)?;
        }
        self.listener = Some(listener);
        Ok(())
    }

    /// Takes a client that is connected already.
    ///
    /// # Errors
    /// `AlreadyExists` while there is another; what epoll says.
    pub fn adopt(&mut self, socket: OwnedFd) -> io::Result<()> {
        if self.peer.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.epoll.add(&socket, SOCKET, Interest::READ)?;
        self.interest = Interest::READ;
        if let Some(listener) = &self.listener {
            self.epoll.modify(listener, LISTENER, Interest::NONE)?;
        }
        tracing::debug!(device = %self.options.name, "a client connected");
        self.peer = Some(Peer::new(socket, self.options.handshake_deadline));
        Ok(())
    }

    /// Readable when [`Server::process`] has something to do.
    pub fn poll_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Does what there is to do, without waiting. To be called when
    /// [`Server::poll_fd`] is readable, and once after a client was
    /// [adopted](Server::adopt).
    ///
    /// # Errors
    /// When the event loop itself fails. A client that fails is only disconnected.
    pub fn process(&mut self) -> io::Result<()> {
        let ready = self.wait(Some(Duration::ZERO))?;
        let next = self.turn(ready)?;
        let due = match next {
            Next::Now => Some(Instant::now()),
            Next::At(at) => Some(at),
            Next::Never => None,
        };
        self.set_timer(due)
    }

    /// Serves clients of `listener` until it is stopped. The device stays as it is
    /// then, and so does a client that is connected.
    ///
    /// # Errors
    /// When the event loop itself fails.
    pub fn serve(&mut self, listener: Listener, stop: &Stop) -> io::Result<()> {
        self.listen(listener)?;
        self.serve_until(stop)
    }

    /// Serves whoever is connected or comes by the listener, until it is stopped.
    ///
    /// # Errors
    /// When the event loop itself fails.
    pub fn serve_until(&mut self, stop: &Stop) -> io::Result<()> {
        self.epoll.add(&stop.inner.1, STOP, Interest::READ)?;
        let result = self.run(stop);
        self.epoll.remove(&stop.inner.1)?;
        result
    }

    fn run(&mut self, stop: &Stop) -> io::Result<()> {
        let mut next = Next::Now;
        while !stop.stopped() {
            let timeout = match next {
                Next::Now => Some(Duration::ZERO),
                Next::At(at) => {
                    self.set_timer(Some(at))?;
                    None
                }
                Next::Never => {
                    self.set_timer(None)?;
                    None
                }
            };
            let ready = self.wait(timeout)?;
            next = self.turn(ready)?;
        }
        Ok(())
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Ready> {
        let mut ready = Ready::default();
        for (key, _) in self.epoll.wait(timeout)? {
            match key {
                LISTENER => ready.listener = true,
                SOCKET => ready.socket = true,
                // Its time has come; it stays readable until it is set again.
                TIMER => ready.timer = true,
                _ => {}
            }
        }
        if ready.timer {
            self.due = None;
            self.timer.set(None)?;
        }
        Ok(ready)
    }

    /// One round: a bounded number of messages, then the model's own time.
    fn turn(&mut self, ready: Ready) -> io::Result<Next> {
        if ready.listener && self.peer.is_none() {
            self.accept()?;
        }
        let mut more = false;
        if let Some(mut peer) = self.peer.take() {
            match self.serve_peer(&mut peer, ready.socket) {
                Ok(unfinished) => {
                    more = unfinished;
                    self.peer = Some(peer);
                }
                Err(reason) => self.disconnect(peer, reason)?,
            }
        } else if self.runner.pending().is_some() {
            // Nobody waits for it any more, but it goes on.
            let _ = self.runner.settle(Instant::now());
        }
        let work = self.runner.work(Instant::now());
        if let Some(mut peer) = self.peer.take() {
            match peer.send_requests(&mut self.runner) {
                Ok(()) => {
                    self.watch(&peer)?;
                    self.peer = Some(peer);
                }
                Err(reason) => self.disconnect(peer, reason)?,
            }
        }
        let agree_by = self.peer.as_ref().and_then(Peer::agree_by);
        Ok(match (work, agree_by) {
            _ if more => Next::Now,
            (Work::Again, _) => Next::Now,
            (Work::At(at), Some(by)) => Next::At(at.min(by)),
            (Work::At(at), None) | (Work::Idle, Some(at)) => Next::At(at),
            (Work::Idle, None) => Next::Never,
        })
    }

    /// Serves what has come. Whether more is there already.
    fn serve_peer(
        &mut self,
        peer: &mut Peer,
        readable: bool,
    ) -> Result<bool, DisconnectReason> {
        peer.flush()?;
        let mut served = 0;
        while (readable || peer.has_buffered()) && served < MESSAGES_A_TURN {
            let Some(message) = peer.receive()? else { break };
            self.serve_message(peer, message)?;
            served += 1;
            // What came later will show in the next wait, which costs less than asking
            // for it in vain.
            if !peer.has_buffered() {
                break;
            }
        }
        if peer.agree_by().is_some_and(|by| by <= Instant::now()) {
            return Err(DisconnectReason::Handshake(self.options.handshake_deadline));
        }
        self.settle(peer)?;
        Ok(peer.has_buffered() && served == MESSAGES_A_TURN)
    }

    fn accept(&mut self) -> io::Result<()> {
        let Some(listener) = &self.listener else { return Ok(()) };
        match listener.accept() {
            Ok(socket) => self.adopt(socket),
            // It went away before its turn came, or the process is out of descriptors:
            // the device goes on, the client tries again.
            Err(error) => {
                tracing::warn!(device = %self.options.name, %error, "accept failed");
                Ok(())
            }
        }
    }

    fn disconnect(&mut self, peer: Peer, reason: DisconnectReason) -> io::Result<()> {
        match &reason {
            DisconnectReason::Closed => {
                tracing::debug!(device = %self.options.name, "the client went away");
            }
            reason => {
                let reason: &dyn std::error::Error = reason;
                tracing::warn!(device = %self.options.name, reason, "client disconnected");
            }
        }
        self.runner.disconnect();
        if self.options.reset_on_disconnect {
            self.runner.reset();
        }
        self.epoll.remove(peer.fd())?;
        drop(peer);
        self.last_disconnect = Some(reason);
        if let Some(listener) = &self.listener {
            self.epoll.modify(listener, LISTENER, Interest::READ)?;
        }
        Ok(())
    }

    /// Waits for room in the socket only while something is queued.
    fn watch(&mut self, peer: &Peer) -> io::Result<()> {
        let interest = if peer.has_queued() { Interest::BOTH } else { Interest::READ };
        if interest != self.interest {
            self.epoll.modify(peer.fd(), SOCKET, interest)?;
            self.interest = interest;
        }
        Ok(())
    }

    fn set_timer(&mut self, due: Option<Instant>) -> io::Result<()> {
        if due != self.due {
            self.timer.set(due.map(|at| at.saturating_duration_since(Instant::now())))?;
            self.due = due;
        }
        Ok(())
    }
}

/// What an event loop was woken for.
#[derive(Clone, Copy, Default)]
struct Ready {
    listener: bool,
    socket: bool,
    timer: bool,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("options", &self.options)
            .field("runner", &self.runner)
            .field("connected", &self.connected())
            .finish_non_exhaustive()
    }
}
