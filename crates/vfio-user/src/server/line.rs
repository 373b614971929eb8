//! One socket of a client, both ways: messages in, and what still has to go out.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use abi::errno::Errno;
use abi::vfio_user::{Command, Header};

use super::disconnect::DisconnectReason;
use crate::codec::{HEADER, Head, Kind, Message, Reply, kind};
use crate::stream::{Mode, Receiver, StreamError, send};

/// The most bytes that wait for the socket, as long as it is not one message. A client
/// that does not read its answers gets no more of them.
const OUTBOX: usize = 32 << 20;

/// What a message that waits counts for beside its bytes, and what each of its
/// descriptors does: of those a process has few.
const WAITS: usize = size_of::<Queued>();
const FD_WAITS: usize = 512 << 10;

/// Above so many bytes that wait, nothing is sent that can wait as well.
const CONGESTED: usize = 1 << 20;

/// Descriptors in one message.
pub(super) const MAX_FDS: usize = 16;

/// A message that has come in full.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) header: Header,
    pub(super) fds: Vec<OwnedFd>,
    /// To be given back by [`Line::recycle`].
    body: Vec<u8>,
}

impl Incoming {
    /// What follows the header.
    pub(super) fn body(&self) -> &[u8] {
        &self.body[..self.header.msg_size as usize - HEADER]
    }
}

/// A socket.
#[derive(Debug)]
pub(super) struct Line {
    socket: OwnedFd,
    receiver: Receiver,
    partial: Option<Partial>,
    /// As long as the longest body so far, and reused.
    body: Vec<u8>,
    outbox: VecDeque<Queued>,
    /// What all of that counts for, in bytes.
    queued: usize,
    spare: Vec<u8>,
    /// Bytes of all messages, both ways.
    traffic: u64,
}

#[derive(Debug)]
struct Partial {
    header: Header,
    fds: Vec<OwnedFd>,
    filled: usize,
}

impl Line {
    /// A socket with messages of at most `limit` bytes.
    pub(super) fn new(socket: OwnedFd, limit: usize) -> Line {
        Line {
            socket,
            receiver: Receiver::new(MAX_FDS, limit),
            partial: None,
            body: Vec::new(),
            outbox: VecDeque::new(),
            queued: 0,
            spare: Vec::new(),
            traffic: 0,
        }
    }

    /// Messages may be as long from the next one on.
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.receiver.set_limit(limit);
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether received bytes wait to be looked at.
    pub(super) fn has_buffered(&self) -> bool {
        self.receiver.has_buffered()
    }

    /// Whether something waits for the socket.
    pub(super) fn has_queued(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Whether so much waits for the socket that more had better come later.
    pub(super) fn is_congested(&self) -> bool {
        self.queued >= CONGESTED
    }

    /// Bytes of all messages so far, both ways.
    pub(super) fn traffic(&self) -> u64 {
        self.traffic
    }

    /// The next message, where all of it has come.
    pub(super) fn receive(&mut self) -> Result<Option<Incoming>, DisconnectReason> {
        let fd = self.socket.as_fd();
        let mut partial = match self.partial.take() {
            Some(partial) => partial,
            None => match self.receiver.header(fd, Mode::Poll) {
                Ok(Some((header, fds))) => Partial { header, fds, filled: 0 },
                Ok(None) => return Ok(None),
                Err(error) => return Err(self.refuse_size(error)),
            },
        };
        let len = partial.header.msg_size as usize - HEADER;
        if self.body.len() < len {
            // Below the receiver's limit.
            self.body.resize(len, 0);
        }
        while partial.filled < len {
            let into = &mut self.body[partial.filled..len];
            match self.receiver.body(fd, into, Mode::Poll)? {
                0 => {
                    self.partial = Some(partial);
                    return Ok(None);
                }
                more => partial.filled += more,
            }
        }
        self.traffic += u64::from(partial.header.msg_size);
        let body = std::mem::take(&mut self.body);
        Ok(Some(Incoming { header: partial.header, fds: partial.fds, body }))
    }

    /// Takes the buffer of a message back.
    pub(super) fn recycle(&mut self, message: Incoming) {
        self.body = message.body;
    }

    /// A size that nobody can follow is answered, where it can be, before the end.
    fn refuse_size(&mut self, error: StreamError) -> DisconnectReason {
        if let StreamError::Size { header, .. } = &error {
            let errno = match header.msg_size as usize {
                0..HEADER => Errno::EINVAL,
                _ => Errno::EMSGSIZE,
            };
            if kind(header) == (Kind::Command { no_reply: false }) {
                let message =
                    Reply::refusal(header.msg_id, Command(header.command), errno);
                // The connection ends either way.
                let _ = self.send(&message, &[]);
            }
        }
        error.into()
    }

    /// Sends a message, or queues what the socket does not take.
    pub(super) fn send(
        &mut self,
        message: &Message<'_>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), DisconnectReason> {
        let sent = self.offer(message, fds)?;
        if sent == message.size() {
            return Ok(());
        }
        let tail = message.tail.to_vec();
        self.keep(message.head, tail, message.tail.len(), fds, sent)
    }

    /// Sends of a message what the socket takes; how many bytes. The rest has to be
    /// [kept](Line::keep) before anything else is sent.
    pub(super) fn offer(
        &mut self,
        message: &Message<'_>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<usize, DisconnectReason> {
        self.traffic += message.size() as u64;
        let (head, tail) = (message.head.as_bytes(), &message.tail[..]);
        if self.has_queued() {
            return Ok(0);
        }
        // Less than all means that the socket is full: to try again would be in vain.
        match send(self.socket.as_fd(), head, tail, fds, 0) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            sent => sent.map_err(broken),
        }
    }

    /// Queues what is left of a message after `sent` bytes: its head, and the first
    /// `len` bytes of `tail`. Long data is not copied for that: its buffer comes back
    /// through [`Line::spare`].
    pub(super) fn keep(
        &mut self,
        head: Head,
        tail: Vec<u8>,
        len: usize,
        fds: &[BorrowedFd<'_>],
        sent: usize,
    ) -> Result<(), DisconnectReason> {
        let fds = if sent == 0 { fds } else { &[] };
        let left = head.as_bytes().len() + len - sent;
        let queued = self.queued + left + WAITS + fds.len() * FD_WAITS;
        // A single one may be longer, where that was agreed to.
        if queued > OUTBOX && self.has_queued() {
            return Err(DisconnectReason::NotReading(queued));
        }
        let fds = fds
            .iter()
            .map(BorrowedFd::try_clone_to_owned)
            .collect::<io::Result<_>>()
            .map_err(broken)?;
        self.queued = queued;
        self.outbox.push_back(Queued { head, tail, len, fds, sent });
        Ok(())
    }

    /// A buffer that is not needed any more, if there is one.
    pub(super) fn spare(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.spare)
    }

    /// Sends what was queued, as far as the socket takes it.
    pub(super) fn flush(&mut self) -> Result<(), DisconnectReason> {
        while let Some(first) = self.outbox.front_mut() {
            let (head, tail) = (first.head.as_bytes(), &first.tail[..first.len]);
            let fds: Vec<BorrowedFd<'_>> = first.fds.iter().map(AsFd::as_fd).collect();
            match send(self.socket.as_fd(), head, tail, &fds, first.sent) {
                Ok(sent) => {
                    self.queued -= sent - first.sent;
                    first.sent = sent;
                    if sent < head.len() + tail.len() {
                        break;
                    }
                    self.queued -= WAITS + first.fds.len() * FD_WAITS;
                    self.spare = self.outbox.pop_front().map_or(Vec::new(), |it| it.tail);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(broken(error)),
            }
        }
        Ok(())
    }
}

/// A message that the socket did not take yet.
#[derive(Debug)]
struct Queued {
    head: Head,
    /// Of which the first `len` bytes are sent.
    tail: Vec<u8>,
    len: usize,
    fds: Vec<OwnedFd>,
    sent: usize,
}

fn broken(error: io::Error) -> DisconnectReason {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            DisconnectReason::Closed
        }
        _ => DisconnectReason::Stream(StreamError::Io(error)),
    }
}
