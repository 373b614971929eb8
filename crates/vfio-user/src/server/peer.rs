//! One client: its messages, and what it still has to be sent.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use abi::errno::Errno;
use abi::vfio_user::{Command, DmaAccess, Header};
use device::{Request as Dma, RequestKind, Runner, Token};
use thiserror::Error;

use crate::codec::{Capabilities, HEADER, Kind, Message, Reply, Request, kind};
use crate::stream::{Mode, Receiver, StreamError, send};

/// The longest message before VERSION was agreed, in bytes.
const LIMIT_BEFORE: usize = 32 * 1024;

/// What a message may have beside its data, in bytes: header, fixed fields, and the
/// ranges of a DMA log.
pub(super) const LIMIT_BESIDE: usize = 8 * 1024;

/// The most bytes that wait for the socket. A client that does not read its answers
/// gets no more of them.
const OUTBOX: usize = 32 << 20;

/// The most of our own messages that the client did not answer yet. The runner has a
/// bound of its own, but a reset forgets, and an answer may never come.
const UNANSWERED: usize = 1024;

/// Descriptors in one message.
pub(super) const MAX_FDS: usize = 16;

/// Why a client was disconnected.
#[derive(Debug, Error)]
pub enum DisconnectReason {
    /// It closed the connection.
    #[error("it closed the connection")]
    Closed,
    /// The connection cannot go on.
    #[error("the connection cannot go on")]
    Stream(#[source] StreamError),
    /// It did not read its answers.
    #[error("{0} bytes wait for it, and it does not read them")]
    NotReading(usize),
    /// It answered a message that it was not sent, or not as that command.
    #[error("it answered message {id} ({command}), which it was not sent")]
    UnknownReply {
        /// The message's number.
        id: u16,
        /// The command in the reply.
        command: Command,
    },
    /// It did not agree on a version in time.
    #[error("it did not agree on a version within {} ms", .0.as_millis())]
    Handshake(Duration),
    /// It leaves too many of the device's own messages unanswered.
    #[error("it leaves {0} messages unanswered")]
    NotAnswering(usize),
}

impl From<StreamError> for DisconnectReason {
    fn from(error: StreamError) -> DisconnectReason {
        match error {
            StreamError::Closed => DisconnectReason::Closed,
            other => DisconnectReason::Stream(other),
        }
    }
}

/// A message that has come in full.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) header: Header,
    pub(super) fds: Vec<OwnedFd>,
    /// To be given back by [`Peer::recycle`].
    pub(super) body: Vec<u8>,
}

/// What VERSION came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agreed {
    /// Whether our own features may be used.
    pub(super) additions: bool,
}

/// A client.
#[derive(Debug)]
pub(super) struct Peer {
    socket: OwnedFd,
    receiver: Receiver,
    partial: Option<Partial>,
    /// As long as the longest body so far, and reused.
    body: Vec<u8>,
    outbox: Outbox,
    pub(super) agreed: Option<Agreed>,
    /// When that has to be there.
    agree_by: Option<Instant>,
    /// The change of state whose reply is due, and whether anybody wants it.
    pub(super) deferred: Option<Deferred>,
    /// Our own messages that were not answered yet.
    requests: BTreeMap<u16, (Token, Command)>,
    next_id: u16,
    /// As long as the longest answer so far, and reused.
    pub(super) data: Vec<u8>,
    /// A digest that is being read in parts.
    pub(super) digest: Vec<u8>,
    /// Whether feature 12 was set: the flags of pre-copy information mean something.
    pub(super) precopy_flags: bool,
}

/// A reply that is due when the runner settled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deferred {
    pub(super) id: u16,
    pub(super) no_reply: bool,
    /// The bytes of the feature, to be sent back.
    pub(super) data_fd: i32,
    pub(super) target: u32,
}

#[derive(Debug)]
struct Partial {
    header: Header,
    fds: Vec<OwnedFd>,
    filled: usize,
}

impl Peer {
    /// A client that has to agree on a version within `handshake`.
    pub(super) fn new(socket: OwnedFd, handshake: Duration) -> Peer {
        Peer {
            socket,
            receiver: Receiver::new(MAX_FDS, LIMIT_BEFORE),
            partial: None,
            body: Vec::new(),
            outbox: Outbox::default(),
            agreed: None,
            // A time that no clock will show is none.
            agree_by: Instant::now().checked_add(handshake),
            deferred: None,
            requests: BTreeMap::new(),
            next_id: 0,
            data: Vec::new(),
            digest: Vec::new(),
            precopy_flags: false,
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn has_buffered(&self) -> bool {
        self.receiver.has_buffered()
    }

    pub(super) fn has_queued(&self) -> bool {
        !self.outbox.messages.is_empty()
    }

    /// When the client is dropped unless it has agreed on a version by then.
    pub(super) fn agree_by(&self) -> Option<Instant> {
        if self.agreed.is_some() { None } else { self.agree_by }
    }

    /// VERSION was agreed: messages may now be as long as that says.
    pub(super) fn agree(&mut self, ours: usize, theirs: &Capabilities, additions: bool) {
        self.agreed = Some(Agreed { additions });
        // A client takes shorter messages than ours where it says so; it may send as
        // long ones as we take.
        tracing::debug!(?theirs, additions, "agreed");
        self.receiver.set_limit(HEADER + ours + LIMIT_BESIDE);
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
        let body = std::mem::take(&mut self.body);
        Ok(Some(Incoming { header: partial.header, fds: partial.fds, body }))
    }

    /// Takes the buffer of a message back.
    pub(super) fn recycle(&mut self, body: Vec<u8>) {
        self.body = body;
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
        self.outbox.send(self.socket.as_fd(), message, fds)
    }

    /// Sends what was queued, as far as the socket takes it.
    pub(super) fn flush(&mut self) -> Result<(), DisconnectReason> {
        self.outbox.flush(self.socket.as_fd())
    }

    /// Sends the DMA that the model submitted.
    pub(super) fn send_requests(
        &mut self,
        runner: &mut Runner,
    ) -> Result<(), DisconnectReason> {
        while let Some(Dma { token, at, kind }) = runner.next_request() {
            if self.requests.len() >= UNANSWERED {
                return Err(DisconnectReason::NotAnswering(self.requests.len()));
            }
            while self.requests.contains_key(&self.next_id) {
                self.next_id = self.next_id.wrapping_add(1);
            }
            let id = self.next_id;
            self.next_id = self.next_id.wrapping_add(1);
            let (access, command) = match &kind {
                RequestKind::Read(len) => {
                    let access = DmaAccess { addr: at.0, count: *len as u64 };
                    (Request::DmaRead(access), Command::DMA_READ)
                }
                RequestKind::Write(data) => {
                    let access = DmaAccess { addr: at.0, count: data.len() as u64 };
                    (Request::DmaWrite(access, data), Command::DMA_WRITE)
                }
            };
            self.requests.insert(id, (token, command));
            self.send(&access.message(id), &[])?;
        }
        Ok(())
    }

    /// An answer to the device's own DMA.
    pub(super) fn answered(
        &mut self,
        header: &Header,
        error: Option<Errno>,
        body: &[u8],
        runner: &mut Runner,
    ) -> Result<(), DisconnectReason> {
        let (id, command) = (header.msg_id, Command(header.command));
        let token = match self.requests.get(&id) {
            Some((token, sent)) if *sent == command => *token,
            _ => return Err(DisconnectReason::UnknownReply { id, command }),
        };
        self.requests.remove(&id);
        let result = match error {
            Some(Errno(0)) => Err(Errno::EIO),
            Some(errno) => Err(errno),
            None => match Reply::parse(command, body) {
                Ok(Reply::DmaRead(_, data)) => Ok(data),
                Ok(Reply::DmaWrite(_)) => Ok(&[][..]),
                _ => Err(Errno::EPROTO),
            },
        };
        // A reset may have forgotten it; the runner counts that.
        let _ = runner.complete(token, result);
        Ok(())
    }
}

/// What the socket did not take yet.
#[derive(Debug, Default)]
struct Outbox {
    messages: VecDeque<Queued>,
    /// Bytes in all of them.
    bytes: usize,
}

#[derive(Debug)]
struct Queued {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    sent: usize,
}

impl Outbox {
    fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        message: &Message<'_>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), DisconnectReason> {
        let (head, tail) = (message.head.as_bytes(), &message.tail[..]);
        let mut sent = 0;
        if self.messages.is_empty() {
            while sent < message.size() {
                match send(fd, head, tail, fds, sent) {
                    Ok(so_far) => sent = so_far,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(broken(error)),
                }
            }
        }
        if sent == message.size() {
            return Ok(());
        }
        let left = message.size() - sent;
        if self.bytes + left > OUTBOX {
            return Err(DisconnectReason::NotReading(self.bytes + left));
        }
        let fds = if sent == 0 { fds } else { &[] };
        let fds = fds
            .iter()
            .map(BorrowedFd::try_clone_to_owned)
            .collect::<io::Result<_>>()
            .map_err(broken)?;
        let mut bytes = Vec::with_capacity(left);
        bytes.extend_from_slice(&head[sent.min(head.len())..]);
        bytes.extend_from_slice(&tail[sent.saturating_sub(head.len())..]);
        self.bytes += left;
        self.messages.push_back(Queued { bytes, fds, sent: 0 });
        Ok(())
    }

    fn flush(&mut self, fd: BorrowedFd<'_>) -> Result<(), DisconnectReason> {
        while let Some(first) = self.messages.front_mut() {
            let fds: Vec<BorrowedFd<'_>> = first.fds.iter().map(AsFd::as_fd).collect();
            match send(fd, &first.bytes, &[], &fds, first.sent) {
                Ok(sent) => {
                    self.bytes -= sent - first.sent;
                    first.sent = sent;
                    if sent == first.bytes.len() {
                        self.messages.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(broken(error)),
            }
        }
        Ok(())
    }
}

fn broken(error: io::Error) -> DisconnectReason {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            DisconnectReason::Closed
        }
        _ => DisconnectReason::Stream(StreamError::Io(error)),
    }
}
