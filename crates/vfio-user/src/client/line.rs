//! The connection as its callers share it: who sends, who reads, who waits.
//!
//! ```text
//!   writer   mutex, held for one whole message
//!   reading  flag in the state: the one thread that reads the socket, which is
//!            - a caller that waits for its reply (blocking), or
//!            - whoever finds the socket full while it sends, or
//!            - the worker, while nobody calls (it is armed only then)
//! ```
//!
//! The state's mutex is never held while anything waits, and no thread that holds the
//! reading role takes the writer's mutex.

mod ending;
mod reading;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use abi::errno::Errno;
use abi::vfio_user::{Command, Header, HeaderFlags, RegionAccess};
use control::TransportError;
use sys::{Epoll, EventFd, Interest};
use zerocopy::IntoBytes;

use crate::codec::{HEADER, Malformed, Message, Reply, Request};
use crate::stream::send;
use ending::Dead;
pub(super) use ending::{Failed, Limit};
use reading::{Reader, Role};

/// Descriptors in one message.
pub(super) const MAX_FDS: usize = 16;

/// What a message may have beside its data, in bytes.
const BESIDE: usize = 8 * 1024;

/// The least and the most room for what is sent, in bytes.
const SEND_BUFFER: (usize, usize) = (256 << 10, 4 << 20);

/// How long a blocking receive lasts before the deadline is looked at.
const SLICE: Duration = Duration::from_millis(50);

/// How long somebody who cannot send waits for room before it tries to read again.
const SHORT: Duration = Duration::from_millis(5);

/// The most messages of the server that wait for the worker, and the most bytes in them.
/// Ours keeps to 64 at a time.
const QUEUE: usize = 1024;
const QUEUE_BYTES: usize = 80 << 20;

/// The most bytes of a body that says nothing: of an error reply, or of a reply where a
/// header would do.
pub(super) const ECHO: usize = 4096;

/// What a server has no business with once there is a twin socket.
const ASTRAY: &str = "a command on the main socket, where there is a twin socket for it";

/// The number of every message that wants no reply. Some servers reply all the same (the
/// published `vfio_user` crate before April 2026, others to say an errno): whatever they
/// say to this number is dropped.
const POSTED: u16 = u16::MAX;

/// Keys of the worker's epoll set.
pub(super) const SOCKET: u64 = 0;
pub(super) const WAKE: u64 = 1;

/// One connection.
#[derive(Debug)]
pub(super) struct Line {
    socket: OwnedFd,
    writer: Mutex<()>,
    state: Mutex<State>,
    /// Told when one more of the server's messages was dealt with, and at the end.
    progress: Condvar,
    /// Belongs to whoever has the reading role; never waited for.
    reader: Mutex<Reader>,
    /// What the worker waits with.
    pub(super) epoll: Epoll,
    pub(super) wake: EventFd,
    /// The socket for what the server asks, which ends with this one.
    twin: OnceLock<Arc<Line>>,
}

#[derive(Debug)]
struct State {
    calls: Vec<Call>,
    next_id: u16,
    /// Threads between the beginning and the end of a call.
    callers: usize,
    reading: bool,
    /// Whether the worker is woken by the socket.
    armed: bool,
    /// Whether the server may ask here.
    questions: bool,
    queue: VecDeque<Foreign>,
    queued_bytes: usize,
    /// How many messages the server has sent, and how many of them were dealt with.
    asked: u64,
    served: u64,
    dead: Option<Dead>,
}

/// A reply that is waited for.
#[derive(Debug)]
struct Call {
    id: u16,
    command: Command,
    /// The longest body that it can have.
    most: usize,
    /// Its thread, while that sleeps.
    waiting: Option<Thread>,
    /// Whether its thread is reading the reply itself.
    taken: bool,
    answer: Option<Deposit>,
}

impl Call {
    /// Has its thread look again, if it sleeps.
    fn wake(&self) {
        if let Some(thread) = &self.waiting {
            thread.unpark();
        }
    }
}

/// A reply that somebody else read.
#[derive(Debug)]
struct Deposit {
    error: Option<Errno>,
    body: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// A message of the server that is not a reply.
#[derive(Debug)]
pub(super) struct Foreign {
    pub(super) header: Header,
    pub(super) body: Vec<u8>,
}

/// Where the body of a reply goes: its first `fixed` bytes into the answer, the others
/// straight into `data`. A longer one breaks the protocol.
#[derive(Debug)]
pub(super) struct Sink<'a> {
    pub(super) fixed: usize,
    pub(super) data: &'a mut [u8],
}

/// A reply.
#[derive(Debug)]
pub(super) struct Answer {
    /// The first bytes of its body.
    pub(super) fixed: Vec<u8>,
    /// How many of the others went into the sink.
    pub(super) data: usize,
    pub(super) fds: Vec<OwnedFd>,
}

impl Answer {
    /// Reads a body that is all in `fixed`.
    pub(super) fn parse(&self, command: Command) -> Result<Reply<'_>, Malformed> {
        Reply::parse(command, &self.fixed)
    }
}

impl Line {
    /// A line for calls, and for what the server asks while it has no other.
    pub(super) fn new(socket: OwnedFd, max_data: usize) -> io::Result<Line> {
        sys::socket::set_receive_timeout(&socket, SLICE)?;
        let line = Line::twin(socket, max_data)?;
        line.epoll.add(&line.socket, SOCKET, Interest::READ)?;
        line.epoll.add(&line.wake, WAKE, Interest::READ)?;
        line.state().armed = true;
        Ok(line)
    }

    /// A line for what the server asks alone: whoever waits there waits for as long as
    /// it lives.
    pub(super) fn twin(socket: OwnedFd, max_data: usize) -> io::Result<Line> {
        // Room for the longest message, so that it goes out in one piece; where the
        // system does not allow as much, it goes in several.
        let room = max_data.clamp(SEND_BUFFER.0, SEND_BUFFER.1);
        if let Err(error) = sys::socket::set_send_buffer(&socket, room) {
            tracing::debug!(%error, "a small send buffer");
        }
        Ok(Line {
            socket,
            writer: Mutex::new(()),
            state: Mutex::new(State {
                calls: Vec::new(),
                next_id: 0,
                callers: 0,
                reading: false,
                armed: false,
                questions: true,
                queue: VecDeque::new(),
                queued_bytes: 0,
                asked: 0,
                served: 0,
                dead: None,
            }),
            progress: Condvar::new(),
            reader: Mutex::new(Reader::new(HEADER + max_data + BESIDE)),
            epoll: Epoll::new()?,
            wake: EventFd::new()?,
            twin: OnceLock::new(),
        })
    }

    /// From now on the server asks over `twin` alone, and nobody watches this line but
    /// those who call.
    pub(super) fn leave_questions_to(&self, twin: &Arc<Line>) {
        let mut state = self.state();
        self.arm(&mut state, false);
        state.armed = false;
        state.questions = false;
        let early = state.queue.len();
        drop(state);
        let _ = self.twin.set(Arc::clone(twin));
        if early > 0 {
            self.give_up(ASTRAY);
        }
    }

    /// Ends, for the same reason as `other` has.
    pub(super) fn end_with(&self, other: &Line) {
        let dead = other.state().dead.clone();
        let _ = self.die(dead.unwrap_or(Dead::Closed));
    }

    /// Asks, and waits for the reply. An error reply becomes
    /// [`TransportError::Errno`].
    pub(super) fn call(
        &self,
        operation: &'static str,
        request: &Request<'_>,
        fds: &[BorrowedFd<'_>],
        sink: &mut Sink<'_>,
        deadline: Duration,
    ) -> Result<Answer, TransportError> {
        let limit = Limit::of(deadline);
        let id = self.enter(operation, request.command(), sink)?;
        let sent = self.send(&request.message(id), fds, limit);
        let result = sent.and_then(|()| self.wait(id, sink, limit));
        self.leave(id);
        match result {
            Ok(Ok(answer)) => Ok(answer),
            // Some servers forget the number.
            Ok(Err(Errno(0))) => {
                Err(TransportError::Errno { operation, errno: Errno::EIO })
            }
            Ok(Err(errno)) => Err(TransportError::Errno { operation, errno }),
            Err(failed) => Err(failed.error(operation)),
        }
    }

    /// Begins a call: its number.
    fn enter(
        &self,
        operation: &'static str,
        command: Command,
        sink: &Sink<'_>,
    ) -> Result<u16, TransportError> {
        let mut state = self.state();
        if let Some(dead) = &state.dead {
            return Err(dead.clone().later(operation));
        }
        if state.calls.len() > usize::from(u16::MAX) / 2 {
            return Err(TransportError::Errno { operation, errno: Errno::EBUSY });
        }
        let mut id = state.next_id;
        while id == POSTED || state.calls.iter().any(|call| call.id == id) {
            id = id.wrapping_add(1);
        }
        state.next_id = id.wrapping_add(1);
        state.calls.push(Call {
            id,
            command,
            most: sink.fixed + sink.data.len(),
            waiting: None,
            taken: false,
            answer: None,
        });
        state.callers += 1;
        if state.armed {
            // The replies are ours to read; the worker need not wake for them.
            self.arm(&mut state, false);
        }
        Ok(id)
    }

    /// Ends a call, whatever became of it.
    fn leave(&self, id: u16) {
        let mut state = self.state();
        state.calls.retain(|call| call.id != id);
        state.callers -= 1;
        if state.callers == 0 && state.questions && state.dead.is_none() {
            self.arm(&mut state, true);
        }
    }

    fn arm(&self, state: &mut State, armed: bool) {
        let interest = if armed { Interest::READ } else { Interest::NONE };
        // It is in the set as long as the line lives.
        if self.epoll.modify(&self.socket, SOCKET, interest).is_ok() {
            state.armed = armed;
        }
    }

    /// Writes a region and wants no reply. One system call while the socket has room, and
    /// nothing is kept: only the socket bounds how many are under way.
    pub(super) fn post(
        &self,
        operation: &'static str,
        access: &RegionAccess,
        data: &[u8],
        deadline: Duration,
    ) -> Result<(), TransportError> {
        const FIXED: usize = size_of::<RegionAccess>();
        let header = Header {
            msg_id: POSTED,
            command: Command::REGION_WRITE.0,
            // A head, and no more than `max_data_xfer_size`.
            msg_size: (HEADER + FIXED + data.len()) as u32,
            flags: (HeaderFlags::COMMAND | HeaderFlags::NO_REPLY).bits(),
            error: 0,
        };
        let mut head = [0; HEADER + FIXED];
        head[..HEADER].copy_from_slice(header.as_bytes());
        head[HEADER..].copy_from_slice(access.as_bytes());
        // The clock is only asked where there is something to wait for.
        let mut limit = None;
        let limit = || *limit.get_or_insert_with(|| Limit::of(deadline));
        self.send_all(&head, data, &[], limit).map_err(|failed| failed.error(operation))
    }

    /// Sends a message whole. While the socket is full, reads what comes.
    pub(super) fn send(
        &self,
        message: &Message<'_>,
        fds: &[BorrowedFd<'_>],
        limit: Limit,
    ) -> Result<(), Failed> {
        self.send_all(message.head.as_bytes(), &message.tail, fds, || limit)
    }

    fn send_all(
        &self,
        head: &[u8],
        tail: &[u8],
        fds: &[BorrowedFd<'_>],
        mut limit: impl FnMut() -> Limit,
    ) -> Result<(), Failed> {
        let _turn = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sent = 0;
        while sent < head.len() + tail.len() {
            match send(self.socket.as_fd(), head, tail, fds, sent) {
                Ok(so_far) => sent = so_far,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait_for_room(limit())?;
                }
                Err(error) => {
                    let dead = match error.kind() {
                        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                            Dead::Closed
                        }
                        kind => Dead::Io(kind, error.to_string()),
                    };
                    return Err(self.die(dead));
                }
            }
        }
        Ok(())
    }

    fn wait_for_room(&self, limit: Limit) -> Result<(), Failed> {
        if limit.passed() {
            return Err(self.die(Dead::TimedOut(limit.deadline)));
        }
        let mut role = self.take_role();
        let interest = if role.is_some() { Interest::BOTH } else { Interest::WRITE };
        let ready = sys::wait(self.socket.as_fd(), interest, Some(SHORT))
            .map_err(|error| self.die(Dead::Io(error.kind(), error.to_string())))?;
        if let Some(role) = &mut role
            && ready.readable
        {
            self.read_available(role, limit)?;
        }
        Ok(())
    }

    /// Waits for the reply to `id`, reading it itself where nobody else reads.
    fn wait(
        &self,
        id: u16,
        sink: &mut Sink<'_>,
        limit: Limit,
    ) -> Result<Result<Answer, Errno>, Failed> {
        loop {
            let mut state = self.state();
            let Some(at) = state.calls.iter().position(|call| call.id == id) else {
                // It is there from `enter` to `leave`.
                return Err(Failed::Later(Dead::Closed));
            };
            if let Some(deposit) = state.calls[at].answer.take() {
                return Ok(deposit.into_answer(sink));
            }
            if let Some(dead) = &state.dead {
                return Err(Failed::Later(dead.clone()));
            }
            if !state.reading {
                state.reading = true;
                drop(state);
                let mut role = Role::of(self);
                if let Some(answer) = self.read_for(&mut role, id, sink, limit)? {
                    return Ok(answer);
                }
                continue;
            }
            let left = limit.left();
            if left.is_zero() {
                drop(state);
                return Err(self.die(Dead::TimedOut(limit.deadline)));
            }
            state.calls[at].waiting = Some(std::thread::current());
            drop(state);
            // Whoever wakes it between the two lines has done so all the same.
            std::thread::park_timeout(left);
            let mut state = self.state();
            if let Some(call) = state.calls.iter_mut().find(|call| call.id == id) {
                call.waiting = None;
            }
        }
    }

    /// The next message for the worker. `Err` when there is nothing more to wait for.
    pub(super) fn next_foreign(&self) -> Result<Option<Foreign>, ()> {
        let mut state = self.state();
        if state.dead.is_some() {
            state.queue.clear();
            return Err(());
        }
        let message = state.queue.pop_front();
        if let Some(message) = &message {
            state.queued_bytes -= message.body.len();
        }
        Ok(message)
    }

    /// The worker has dealt with a message.
    pub(super) fn served(&self) {
        self.state().served += 1;
        self.progress.notify_all();
    }

    /// Waits until the worker has dealt with all that the server has asked so far. Not for
    /// the worker itself.
    pub(super) fn catch_up(
        &self,
        operation: &'static str,
        deadline: Duration,
    ) -> Result<(), TransportError> {
        let limit = Limit::of(deadline);
        let mut state = self.state();
        let asked = state.asked;
        while state.served < asked {
            if let Some(dead) = &state.dead {
                return Err(dead.clone().later(operation));
            }
            if limit.passed() {
                drop(state);
                return Err(self.time_out(operation, limit));
            }
            let waited = self.progress.wait_timeout(state, limit.left());
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Ends the connection: what took so long had its time.
    pub(super) fn time_out(
        &self,
        operation: &'static str,
        limit: Limit,
    ) -> TransportError {
        self.die(Dead::TimedOut(limit.deadline)).error(operation)
    }

    /// Ends the connection; the first reason stays.
    pub(super) fn give_up(&self, why: &str) {
        let _ = self.die(Dead::Broken(why.to_owned()));
    }

    fn die(&self, dead: Dead) -> Failed {
        let mut state = self.state();
        let failed = match &state.dead {
            Some(earlier) => Failed::Later(earlier.clone()),
            None => {
                state.dead = Some(dead.clone());
                Failed::First(dead)
            }
        };
        state.calls.iter().for_each(Call::wake);
        drop(state);
        self.progress.notify_all();
        // Whoever waits in a receive stops; where the peer is gone it has already.
        let _ = sys::socket::shutdown(&self.socket);
        let _ = self.wake.signal(1);
        if let Some(twin) = self.twin.get() {
            let _ = twin.die(Dead::Closed);
        }
        failed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deposit {
    fn into_answer(self, sink: &mut Sink<'_>) -> Result<Answer, Errno> {
        if let Some(errno) = self.error {
            return Err(errno);
        }
        let mut fixed = self.body;
        let data = fixed.len().saturating_sub(sink.fixed);
        // No longer than the call's own bound, which is that of the sink.
        sink.data[..data].copy_from_slice(&fixed[fixed.len() - data..]);
        fixed.truncate(sink.fixed);
        Ok(Answer { fixed, data, fds: self.fds })
    }
}
