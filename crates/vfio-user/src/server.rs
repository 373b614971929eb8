//! The device's side: serves one device to one client at a time.
//!
//! ```text
//!                 poll_fd (epoll)
//!        .-----------+-----------+----------.
//!     listener    sockets      timer    stop, unmask
//!        |           |           |
//!     accept     messages   model's time       one thread, nothing blocks
//!        |           v           v
//!        |       [commands] -> device::Runner -> the model
//!        |           |           |
//!        `-----> [peer] <--------'  replies; DMA by message, and its answers
//! ```
//!
//! # A device in a loop of one's own
//!
//! A device is a [`device::Migratable`], which `docs/device.md` explains. A
//! [`device::Runner`] drives it, and a server puts it in front of a client.
//!
//! ```
//! use std::collections::VecDeque;
//! use std::io::Read;
//! use std::sync::Arc;
//! use std::time::{Duration, Instant};
//!
//! use abi::errno::Errno;
//! use control::{Transport, TransportError};
//! use device::{
//!     Bus, Description, Identity, Migratable, Region, Runner, Settle, StateArc, Work,
//! };
//! use states::v2::{Capabilities, State};
//! use vfio_migrate_vfio_user::{Client, ClientOptions, NoDma, Server, ServerOptions};
//!
//! /// A register of eight bytes; what is written to it is added up.
//! #[derive(Default)]
//! struct Tally {
//!     sum: u64,
//!     saving: VecDeque<u8>,
//!     loading: Vec<u8>,
//! }
//!
//! impl Migratable for Tally {
//!     fn describe(&self) -> Description {
//!         let name = "tally".to_owned();
//!         Description {
//!             identity: Identity { pci: None, model: name, data_version: 1 },
//!             capabilities: Capabilities::STOP_COPY,
//!             regions: vec![Region { index: 0, size: 8, writable: true, windows: vec![] }],
//!             irqs: vec![],
//!         }
//!     }
//!
//!     // Where an access lies was checked: inside the region.
//!     fn read(&mut self, _region: u32, at: u64, into: &mut [u8]) -> Result<(), Errno> {
//!         into.copy_from_slice(&self.sum.to_ne_bytes()[at as usize..][..into.len()]);
//!         Ok(())
//!     }
//!
//!     fn write(
//!         &mut self,
//!         _region: u32,
//!         _at: u64,
//!         data: &[u8],
//!         _bus: &mut dyn Bus,
//!     ) -> Result<(), Errno> {
//!         let more = u64::from_ne_bytes(data.try_into().map_err(|_| Errno::EINVAL)?);
//!         self.sum = self.sum.wrapping_add(more);
//!         Ok(())
//!     }
//!
//!     fn reset(&mut self) {
//!         *self = Tally::default();
//!     }
//!
//!     // Arcs of the state machine; data sessions begin with them.
//!     fn enter(&mut self, arc: StateArc, _bus: &mut dyn Bus) -> Result<Settle, Errno> {
//!         if arc.to == State::StopCopy {
//!             self.saving = self.sum.to_ne_bytes().into();
//!         }
//!         self.loading.clear();
//!         Ok(Settle::Now)
//!     }
//!
//!     fn save(&mut self, into: &mut [u8]) -> Result<usize, Errno> {
//!         self.saving.read(into).map_err(|_| Errno::EIO)
//!     }
//!
//!     fn stop_copy_bytes(&self) -> u64 {
//!         8
//!     }
//!
//!     fn load(&mut self, data: &[u8]) -> Result<(), Errno> {
//!         self.loading.extend(data);
//!         if self.loading.len() > 8 { Err(Errno::EINVAL) } else { Ok(()) }
//!     }
//!
//!     fn loaded(&mut self) -> Result<(), Errno> {
//!         let bytes = self.loading[..].try_into().map_err(|_| Errno::EINVAL)?;
//!         self.sum = u64::from_ne_bytes(bytes);
//!         Ok(())
//!     }
//!
//!     fn work(&mut self, _bus: &mut dyn Bus, _now: Instant) -> Work {
//!         Work::Idle
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let runner = Runner::new(Box::new(Tally::default()))?;
//! let options = ServerOptions { name: "tally".to_owned(), ..ServerOptions::default() };
//! let mut server = Server::new(runner, options)?;
//!
//! // A client, here in a thread; a VMM has the other end of the socket.
//! let (near, far) = sys::socket::pair()?;
//! let vmm = std::thread::spawn(move || {
//!     let options = ClientOptions::new("tally", Arc::new(NoDma));
//!     let client = Client::over(far, options)?;
//!     client.region_write(0, 0, &5_u64.to_ne_bytes())?;
//!     client.region_write(0, 0, &37_u64.to_ne_bytes())?;
//!     let mut sum = [0; 8];
//!     client.region_read(0, 0, &mut sum)?;
//!     Ok::<u64, TransportError>(u64::from_ne_bytes(sum))
//! });
//!
//! // The loop: whatever else it waits for, this is one descriptor more.
//! server.adopt(near)?;
//! server.process()?;
//! while server.connected() {
//!     let ready = sys::wait_readable(&[server.poll_fd()], Duration::from_secs(10))?;
//!     assert!(ready[0], "nobody did anything for ten seconds");
//!     server.process()?;
//! }
//! assert_eq!(vmm.join().expect("the client's thread")?, 42);
//!
//! // The client is gone and the device is not: it can be looked at, and served again.
//! assert_eq!(server.runner().state(), State::Running);
//! let (near, _far) = sys::socket::pair()?;
//! server.adopt(near)?;
//! # Ok(())
//! # }
//! ```
//!
//! # A loop of its own
//!
//! [`Server::serve`] takes clients from a listening socket, one after the other, until
//! it is told to stop, from any thread.
//!
//! ```no_run
//! use std::path::Path;
//! use sys::socket::Listener;
//! use vfio_migrate_vfio_user::{Server, ServerOptions, Stop};
//!
//! fn serve(runner: device::Runner, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
//!     let mut server = Server::new(runner, ServerOptions::default())?;
//!     let stop = Stop::new()?;
//!     let told = stop.clone();
//!     std::thread::spawn(move || {
//!         let _ = std::io::stdin().read_line(&mut String::new());
//!         told.stop();
//!     });
//!     // For this user alone (mode 0600); the path goes with the listener.
//!     server.serve(Listener::bind(path)?, &stop)?;
//!     Ok(())
//! }
//! ```
//!
//! # What it does
//!
//! * *One thread* calls everything: the model, its bus, the triggers. Nothing blocks, and
//!   nothing may block it: a model that takes its time says so (`Settle::Later`,
//!   `Work::Again`).
//! * *Fair turns.* A round serves what has come, up to 256 messages or about 1 MiB of each
//!   socket, then the model has its slice. [`Server::process`] is one round. It never waits; the timer of
//!   [`Server::poll_fd`] makes that readable when the model wanted to be called again.
//! * *Everything is answered while something else is outstanding*: a change of state that
//!   takes time defers only its own reply, and the device's own DMA by message is sent
//!   between messages and finished when its answer comes. None is sent, and nothing is
//!   waited for, inside a region access. A client that asks for a twin socket gets what
//!   the device asks there.
//! * *Reading never waits for writing*: what a socket does not take is queued, up to a
//!   bound, above which the client is disconnected.
//! * *A client that goes* takes its session, mappings, eventfds and messages with it,
//!   before the next one is taken, which waits in the listener's backlog. The device
//!   keeps its contents and its migration state, unless
//!   [`ServerOptions::reset_on_disconnect`] says otherwise. One that does not agree on a
//!   version in time is disconnected: it would keep all others out.
//! * *A client that breaks the rules* gets an errno where it can be answered, and is
//!   disconnected where nobody knows what it means: [`DisconnectReason`], in the log
//!   and from [`Server::last_disconnect`]. The errors of this module are the server's
//!   own, never a client's.
//!
//! What each command does, and with which errno, is in `docs/vfio-user.md`.

mod commands;
mod disconnect;
mod dma;
mod features;
mod irqs;
mod line;
mod migration;
mod options;
mod peer;
mod regions;
mod visit;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use device::front::Front;
use device::{Runner, Work};
use sys::socket::Listener;
use sys::{Epoll, EventFd, Interest, Timer};

pub use disconnect::DisconnectReason;
pub use options::{ServerError, ServerOptions, Stop};
use peer::{Peer, Socket};

/// How many messages of a socket are served before the model and the timer have their
/// turn, ...
const MESSAGES_A_TURN: usize = 256;

/// ... and about how many bytes of them and their answers.
const BYTES_A_TURN: u64 = 1 << 20;

/// The least and the most room in a socket that is asked for, in bytes.
const SEND_BUFFER: (usize, usize) = (256 << 10, 4 << 20);

/// Keys of the epoll set.
const LISTENER: u64 = 0;
const SOCKET: u64 = 1;
const TIMER: u64 = 2;
const STOP: u64 = 3;
const TWIN: u64 = 4;

/// Serves one device; see the [module](self).
pub struct Server {
    runner: Runner,
    /// The migration region, of a device of a generation before v2.
    front: Option<Front>,
    options: ServerOptions,
    peer: Option<Peer>,
    last_disconnect: Option<DisconnectReason>,
    listener: Option<Listener>,
    /// When it is listened to again, where accepting failed.
    accept_again: Option<Instant>,
    epoll: Epoll,
    timer: Timer,
    /// What the timer is set to.
    due: Option<Instant>,
    /// What the client's sockets are waited for.
    interest: [Interest; 2],
    /// Eventfds of the client that unmask a vector, by their key in the epoll set.
    unmasks: BTreeMap<u64, EventFd>,
    unanswered_errors: u64,
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
            if !regions::one_stretch(region) {
                return Err(ServerError::Windows(region.index));
            }
        }
        let front = options.front.map(|front| Front::new(&runner, front)).transpose()?;
        let epoll = Epoll::new()?;
        let timer = Timer::new()?;
        epoll.add(&timer, TIMER, Interest::READ)?;
        Ok(Server {
            runner,
            front,
            options,
            peer: None,
            last_disconnect: None,
            listener: None,
            accept_again: None,
            epoll,
            timer,
            due: None,
            interest: [Interest::READ; 2],
            unmasks: BTreeMap::new(),
            unanswered_errors: 0,
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

    /// Commands that failed and whose sender wanted no reply, from all clients.
    pub fn unanswered_errors(&self) -> u64 {
        self.unanswered_errors
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
        self.give_room(&socket);
        self.epoll.add(&socket, SOCKET, Interest::READ)?;
        self.interest = [Interest::READ; 2];
        self.hear_others(false)?;
        tracing::debug!(device = %self.options.name, "a client connected");
        self.peer = Some(Peer::new(socket, self.options.handshake_deadline));
        Ok(())
    }

    /// Room in a socket for the longest message, so that it goes out in one piece. Where
    /// the system does not allow as much, it goes in several.
    fn give_room(&self, socket: &OwnedFd) {
        let bytes = self.options.max_data_xfer_size.clamp(SEND_BUFFER.0, SEND_BUFFER.1);
        if let Err(error) = sys::socket::set_send_buffer(socket, bytes) {
            tracing::debug!(device = %self.options.name, %error, "a small send buffer");
        }
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
        for (key, now) in self.epoll.wait(timeout)? {
            match key {
                LISTENER => ready.listener = true,
                // What waits for room in them is sent in every turn.
                SOCKET => ready.main = now.readable,
                TWIN => ready.twin = now.readable,
                // Its time has come; it stays readable until it is set again.
                TIMER => ready.timer = true,
                key if key >= irqs::UNMASK => self.unmask_by_event(key),
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
        } else if self.accept_again.is_some_and(|at| at <= Instant::now()) {
            self.hear_others(true)?;
        }
        let mut more = false;
        if let Some(mut peer) = self.peer.take() {
            match self.serve_peer(&mut peer, ready) {
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
                Err(reason) => {
                    self.disconnect(peer, reason)?;
                    // The model may have more to do than it knew of when it was asked.
                    more = true;
                }
            }
        }
        if more || work == Work::Again {
            return Ok(Next::Now);
        }
        let work = if let Work::At(at) = work { Some(at) } else { None };
        let agree_by = self.peer.as_ref().and_then(Peer::agree_by);
        let first = [work, agree_by, self.accept_again].into_iter().flatten().min();
        Ok(first.map_or(Next::Never, Next::At))
    }

    /// Serves what has come. Whether more is there already that no wait will tell of.
    fn serve_peer(
        &mut self,
        peer: &mut Peer,
        ready: Ready,
    ) -> Result<bool, DisconnectReason> {
        peer.flush()?;
        let mut unfinished = false;
        // Answers first: the model may wait for them. But each has a turn of its own, or
        // nobody would hear a guest whose device does DMA without end.
        let sockets = [(Socket::Twin, ready.twin), (Socket::Main, ready.main)];
        for (socket, mut readable) in sockets {
            let end = peer.traffic() + BYTES_A_TURN;
            let mut left = MESSAGES_A_TURN;
            while left > 0 && peer.traffic() < end {
                let Some(line) = peer.line(socket) else { break };
                // What came later will show in the next wait, which costs less than
                // asking for it in vain.
                if !std::mem::take(&mut readable) && !line.has_buffered() {
                    break;
                }
                let Some(mut message) = line.receive()? else { break };
                self.serve_message(peer, socket, &mut message)?;
                if peer.deferred.is_some() && self.runner.pending().is_none() {
                    // A reset ended it: what comes next finds nothing pending.
                    self.settle(peer)?;
                }
                if let Some(line) = peer.line(socket) {
                    line.recycle(message);
                }
                left -= 1;
            }
            unfinished |= (left == 0 || peer.traffic() >= end)
                && peer.line(socket).is_some_and(|line| line.has_buffered());
        }
        if peer.agree_by().is_some_and(|by| by <= Instant::now()) {
            return Err(DisconnectReason::Handshake(self.options.handshake_deadline));
        }
        self.settle(peer)?;
        Ok(unfinished)
    }

    /// Waits for room in a socket only while something is queued for it.
    fn watch(&mut self, peer: &Peer) -> io::Result<()> {
        let lines = [(Some(&peer.main), SOCKET), (peer.twin.as_ref(), TWIN)];
        for ((line, key), interest) in lines.into_iter().zip(&mut self.interest) {
            let Some(line) = line else { continue };
            let wanted = if line.has_queued() { Interest::BOTH } else { Interest::READ };
            if wanted != *interest {
                self.epoll.modify(line.fd(), key, wanted)?;
                *interest = wanted;
            }
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
    main: bool,
    twin: bool,
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
