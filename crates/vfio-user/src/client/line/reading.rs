//! Reading the socket, for everybody: who may, and where what comes goes.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{MutexGuard, PoisonError};

use abi::errno::Errno;
use abi::vfio_user::{Command, Header};
use sys::Interest;

use super::{
    ASTRAY, Answer, Call, Dead, Deposit, ECHO, Failed, Foreign, Limit, Line, MAX_FDS,
    POSTED, QUEUE, QUEUE_BYTES, Sink,
};
use crate::codec::{HEADER, Kind, kind};
use crate::stream::{Mode, Receiver};

/// The reading role. When it is given up, a caller that waits takes it over.
#[derive(Debug)]
pub(in crate::client) struct Role<'a> {
    line: &'a Line,
    reader: MutexGuard<'a, Reader>,
    /// Whether this is the worker, who need not be told of what it reads itself.
    worker: bool,
}

impl<'a> Role<'a> {
    /// For whoever has set the flag.
    pub(super) fn of(line: &'a Line) -> Role<'a> {
        let reader = line.reader.lock().unwrap_or_else(PoisonError::into_inner);
        Role { line, reader, worker: false }
    }
}

impl Drop for Role<'_> {
    fn drop(&mut self) {
        let mut state = self.line.state();
        state.reading = false;
        let sleeps = |call: &&Call| call.waiting.is_some() && call.answer.is_none();
        if let Some(call) = state.calls.iter().find(sleeps) {
            call.wake();
        }
    }
}

#[derive(Debug)]
pub(super) struct Reader {
    receiver: Receiver,
    partial: Option<Partial>,
}

impl Reader {
    /// For messages up to `limit` bytes.
    pub(super) fn new(limit: usize) -> Reader {
        Reader { receiver: Receiver::new(MAX_FDS, limit), partial: None }
    }
}

/// A message for somebody else that has not come in full yet.
#[derive(Debug)]
struct Partial {
    header: Header,
    fds: Vec<OwnedFd>,
    body: Vec<u8>,
    filled: usize,
}

/// What was read.
enum Next {
    /// Not enough has come.
    Nothing,
    /// A reply, left with its call.
    Reply(u16),
    /// A message of the server, left to the worker.
    Foreign,
    /// The header of the reply that was asked about; its body is still to be read.
    Own(Header, Vec<OwnedFd>),
}

impl Line {
    /// Reads until the reply to `id` is there. `None` where it was left with the call.
    pub(super) fn read_for(
        &self,
        role: &mut Role<'_>,
        id: u16,
        sink: &mut Sink<'_>,
        limit: Limit,
    ) -> Result<Option<Result<Answer, Errno>>, Failed> {
        let found = loop {
            match self.next(role, Mode::Wait, Some(id))? {
                Next::Own(header, fds) => {
                    break Some(self.read_own(role, &header, fds, sink, limit)?);
                }
                Next::Reply(other) if other == id => break None,
                Next::Nothing if self.state().dead.is_some() => return Ok(None),
                Next::Nothing | Next::Reply(_) | Next::Foreign => {}
            }
            // Whatever came instead: a server that keeps talking has no more time than
            // one that says nothing.
            self.check_time(limit)?;
        };
        // What is in the buffer already is seen by nobody who waits for the socket. The
        // reply is good, whatever becomes of what came after it. The beginning of a
        // header may stay, as the rest of it has still to be received; so this ends,
        // however fast the server talks.
        while role.reader.receiver.has_header() {
            match self.next(role, Mode::Poll, None) {
                Ok(Next::Reply(_) | Next::Foreign) => {}
                _ => break,
            }
        }
        Ok(found)
    }

    /// Waits for one receive, and reads what it brought. For the one thread that has a
    /// line to itself.
    pub(in crate::client) fn read_question(
        &self,
        role: &mut Role<'_>,
    ) -> Result<(), Failed> {
        role.worker = true;
        if let Next::Nothing = self.next(role, Mode::Wait, None)? {
            // Part of a message; or the other end has made its socket one that never
            // waits, which it shares with ours.
            sys::wait(self.socket.as_fd(), Interest::READ, None)
                .map_err(|error| self.die(Dead::Io(error.kind(), error.to_string())))?;
        }
        while role.reader.receiver.has_header() {
            self.next(role, Mode::Poll, None)?;
        }
        Ok(())
    }

    /// Reads what one receive brings, or a few, as long as `limit` says: for the worker,
    /// whom the socket wakes again where more has come.
    pub(in crate::client) fn read_come(
        &self,
        role: &mut Role<'_>,
        limit: Limit,
    ) -> Result<(), Failed> {
        role.worker = true;
        while !matches!(self.next(role, Mode::Poll, None)?, Next::Nothing)
            && role.reader.receiver.has_buffered()
        {
            self.check_time(limit)?;
        }
        Ok(())
    }

    /// Reads everything that has come, without waiting, as long as `limit` says.
    pub(super) fn read_available(
        &self,
        role: &mut Role<'_>,
        limit: Limit,
    ) -> Result<(), Failed> {
        while !matches!(self.next(role, Mode::Poll, None)?, Next::Nothing) {
            self.check_time(limit)?;
        }
        Ok(())
    }

    fn check_time(&self, limit: Limit) -> Result<(), Failed> {
        if limit.passed() {
            return Err(self.die(Dead::TimedOut(limit.deadline)));
        }
        Ok(())
    }

    /// Reads one message and gives it to whom it is for. The body of the reply to `own`
    /// is left to the caller. It waits for one receive at most.
    fn next(
        &self,
        role: &mut Role<'_>,
        mode: Mode,
        own: Option<u16>,
    ) -> Result<Next, Failed> {
        let fd = self.socket.as_fd();
        let Reader { receiver, partial } = &mut *role.reader;
        let mut message = match partial.take() {
            Some(partial) => partial,
            None => {
                let header = receiver.header(fd, mode);
                let Some((header, fds)) =
                    header.map_err(|error| self.die(error.into()))?
                else {
                    return Ok(Next::Nothing);
                };
                self.check(&header, own)?;
                let reply = matches!(kind(&header), Kind::Reply { .. });
                if reply && own == Some(header.msg_id) {
                    return Ok(Next::Own(header, fds));
                }
                // Below the receiver's limit, and a reply's own.
                let body = vec![0; header.msg_size as usize - HEADER];
                Partial { header, fds, body, filled: 0 }
            }
        };
        while message.filled < message.body.len() {
            let into = &mut message.body[message.filled..];
            match receiver.body(fd, into, mode) {
                Ok(0) => {
                    *partial = Some(message);
                    return Ok(Next::Nothing);
                }
                Ok(more) => message.filled += more,
                Err(error) => return Err(self.die(error.into())),
            }
            if mode == Mode::Wait && message.filled < message.body.len() {
                // It may come byte by byte, and somebody has to look at the time.
                *partial = Some(message);
                return Ok(Next::Nothing);
            }
        }
        let told = role.worker;
        self.dispatch(message, told)
    }

    /// A reply's body, straight to where it belongs.
    fn read_own(
        &self,
        role: &mut Role<'_>,
        header: &Header,
        fds: Vec<OwnedFd>,
        sink: &mut Sink<'_>,
        limit: Limit,
    ) -> Result<Result<Answer, Errno>, Failed> {
        let len = header.msg_size as usize - HEADER;
        if let Kind::Reply { error: Some(errno) } = kind(header) {
            // No longer than `ECHO`, or what the call takes.
            self.read_all(role, &mut vec![0; len], limit)?;
            return Ok(Err(errno));
        }
        let mut fixed = vec![0; len.min(sink.fixed)];
        self.read_all(role, &mut fixed, limit)?;
        let data = len - fixed.len();
        self.read_all(role, &mut sink.data[..data], limit)?;
        Ok(Ok(Answer { fixed, data, fds }))
    }

    fn read_all(
        &self,
        role: &mut Role<'_>,
        into: &mut [u8],
        limit: Limit,
    ) -> Result<(), Failed> {
        let mut filled = 0;
        while filled < into.len() {
            let fd = self.socket.as_fd();
            match role.reader.receiver.body(fd, &mut into[filled..], Mode::Wait) {
                Ok(more) => filled += more,
                Err(error) => return Err(self.die(error.into())),
            }
            if filled < into.len() {
                self.check_time(limit)?;
            }
        }
        Ok(())
    }

    /// Whether a message can be: a reply answers something, as that command, in a
    /// possible length. That to `own` is then taken.
    fn check(&self, header: &Header, own: Option<u16>) -> Result<(), Failed> {
        let command = Command(header.command);
        let len = header.msg_size as usize - HEADER;
        let error = match kind(header) {
            Kind::Command { .. } if self.state().questions => return Ok(()),
            Kind::Command { .. } => {
                return Err(self.die(Dead::Broken(ASTRAY.to_owned())));
            }
            Kind::Reply { error } => error,
            Kind::Unknown => {
                let what = format!("a message with flags {:#x}", header.flags);
                return Err(self.die(Dead::Broken(what)));
            }
        };
        let mut state = self.state();
        let call = state.calls.iter_mut().find(|call| call.id == header.msg_id);
        let what = match call {
            Some(call) if call.taken || call.answer.is_some() => {
                "a second reply to one message"
            }
            Some(call) if call.command != command => "a reply as another command",
            // What comes with an error says nothing, and is dropped.
            Some(call) if len > call.most && (error.is_none() || len > ECHO) => {
                "a reply that is too long"
            }
            Some(call) => {
                call.taken = own == Some(header.msg_id);
                return Ok(());
            }
            None if header.msg_id == POSTED && len <= ECHO => return Ok(()),
            None => "a reply to a message that was not sent",
        };
        drop(state);
        Err(self.die(Dead::Broken(format!("{what} ({command}, {len} bytes)"))))
    }

    /// Gives a message to whom it is for, which may be `told` already.
    fn dispatch(&self, message: Partial, told: bool) -> Result<Next, Failed> {
        let Partial { header, fds, body, .. } = message;
        let mut state = self.state();
        if let Kind::Reply { error } = kind(&header) {
            let id = header.msg_id;
            // Its caller does not leave before it is there, unless all is over.
            if let Some(call) = state.calls.iter_mut().find(|call| call.id == id) {
                call.answer = Some(Deposit { error, body, fds });
                call.wake();
            }
            return Ok(Next::Reply(id));
        }
        state.queued_bytes += body.len();
        if state.queue.len() >= QUEUE || state.queued_bytes > QUEUE_BYTES {
            let messages = state.queue.len();
            drop(state);
            let what = format!("{messages} messages wait for an answer already");
            return Err(self.die(Dead::Broken(what)));
        }
        state.queue.push_back(Foreign { header, body });
        state.asked += 1;
        drop(state);
        if !told {
            // It can only be full, and then the worker is awake.
            let _ = self.wake.signal(1);
        }
        Ok(Next::Foreign)
    }

    /// The reading role, where nobody has it and nobody calls: for the worker.
    pub(in crate::client) fn take_idle_role(&self) -> Option<Role<'_>> {
        let mut state = self.state();
        if state.reading || state.callers > 0 || state.dead.is_some() {
            return None;
        }
        state.reading = true;
        drop(state);
        Some(Role::of(self))
    }

    /// The reading role, where nobody has it.
    pub(in crate::client) fn take_role(&self) -> Option<Role<'_>> {
        let mut state = self.state();
        if state.reading || state.dead.is_some() {
            return None;
        }
        state.reading = true;
        drop(state);
        Some(Role::of(self))
    }
}
