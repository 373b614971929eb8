//! One client: its sockets, what was agreed with it, and what it still has to answer.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use abi::errno::Errno;
use abi::vfio_user::{Command, DmaAccess, Header, RegionAccess};
use device::{Request as Dma, RequestKind, Runner, Token};

use super::disconnect::DisconnectReason;
use super::line::Line;
use crate::codec::{HEADER, Reply, Request};

/// The longest message before VERSION was agreed, in bytes.
const LIMIT_BEFORE: usize = 32 * 1024;

/// What a message may have beside its data, in bytes: header, fixed fields, and the
/// ranges of a DMA log.
const LIMIT_BESIDE: usize = 8 * 1024;

/// The most of our own messages that the client did not answer yet. The runner has a
/// bound of its own, but a reset forgets, and an answer may never come.
const UNANSWERED: usize = 1024;

/// What VERSION came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agreed {
    /// Whether our own features may be used.
    pub(super) additions: bool,
    /// The most bytes of data in a message that we send.
    pub(super) send: usize,
    /// The most bytes of data in a message that we take.
    pub(super) take: usize,
    /// The most descriptors in a message that we send.
    pub(super) fds: usize,
    /// DMA addresses and sizes are multiples of this, in bytes.
    pub(super) page: u64,
    /// The longest bitmap that we send, in bytes.
    pub(super) bitmap: u64,
    /// Whether `REGION_WRITE_MULTI` may be used.
    pub(super) write_multiple: bool,
}

/// Which of a client's sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Socket {
    /// The one that it connected with.
    Main,
    /// The one for what the device asks, where there are two.
    Twin,
}

/// A client.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) main: Line,
    pub(super) twin: Option<Line>,
    pub(super) agreed: Option<Agreed>,
    /// When that has to be there.
    agree_by: Option<Instant>,
    /// The change of state whose reply is due, and whether anybody wants it.
    pub(super) deferred: Option<Deferred>,
    /// Our own messages that were not answered yet.
    requests: BTreeMap<u16, Asked>,
    next_id: u16,
    pub(super) buffers: Buffers,
    /// A digest that is being read in parts.
    pub(super) digest: Vec<u8>,
    /// Whether feature 12 was set: the flags of pre-copy information mean something.
    pub(super) precopy_flags: bool,
}

/// What answers are built in: as long as the longest so far, and reused.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    pub(super) data: Vec<u8>,
    /// For answers with a bitmap, which are words as a whole.
    pub(super) words: Vec<u64>,
}

/// A message of ours: what the model knows it by, and what it asked for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    token: Token,
    command: Command,
    /// In bytes.
    count: u64,
}

/// A reply that is due when the runner settled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deferred {
    pub(super) id: u16,
    pub(super) no_reply: bool,
    /// What asked for it, to be sent back.
    pub(super) by: AskedBy,
}

/// What asked for a change of state.
#[derive(Clone, Copy, Debug)]
pub(super) enum AskedBy {
    /// SET of the feature.
    Feature { data_fd: i32, target: u32 },
    /// A write to the migration region.
    Region(RegionAccess),
}

impl Peer {
    /// A client that has to agree on a version within `handshake`.
    pub(super) fn new(socket: OwnedFd, handshake: Duration) -> Peer {
        Peer {
            main: Line::new(socket, LIMIT_BEFORE),
            twin: None,
            agreed: None,
            // A time that no clock will show is none.
            agree_by: Instant::now().checked_add(handshake),
            deferred: None,
            requests: BTreeMap::new(),
            next_id: 0,
            buffers: Buffers::default(),
            digest: Vec::new(),
            precopy_flags: false,
        }
    }

    /// One of its sockets, where there is that one.
    pub(super) fn line(&mut self, socket: Socket) -> Option<&mut Line> {
        match socket {
            Socket::Main => Some(&mut self.main),
            Socket::Twin => self.twin.as_mut(),
        }
    }

    /// Bytes of all messages so far, both ways.
    pub(super) fn traffic(&self) -> u64 {
        self.main.traffic() + self.twin.as_ref().map_or(0, Line::traffic)
    }

    /// When the client is dropped unless it has agreed on a version by then.
    pub(super) fn agree_by(&self) -> Option<Instant> {
        if self.agreed.is_some() { None } else { self.agree_by }
    }

    /// VERSION was agreed: messages may now be as long as that says.
    pub(super) fn agree(&mut self, agreed: Agreed, twin: Option<OwnedFd>) {
        tracing::debug!(?agreed, twin = twin.is_some(), "agreed");
        let limit = HEADER + agreed.take + LIMIT_BESIDE;
        self.main.set_limit(limit);
        self.twin = twin.map(|socket| Line::new(socket, limit));
        self.agreed = Some(agreed);
    }

    /// Sends what was queued, as far as the sockets take it.
    pub(super) fn flush(&mut self) -> Result<(), DisconnectReason> {
        self.main.flush()?;
        self.twin.as_mut().map_or(Ok(()), Line::flush)
    }

    /// Sends the DMA that the model submitted.
    pub(super) fn send_requests(
        &mut self,
        runner: &mut Runner,
    ) -> Result<(), DisconnectReason> {
        let line = self.twin.as_mut().unwrap_or(&mut self.main);
        while !line.is_congested() {
            let Some(Dma { token, at, kind }) = runner.next_request() else { break };
            if self.requests.len() >= UNANSWERED {
                return Err(DisconnectReason::NotAnswering(self.requests.len()));
            }
            while self.requests.contains_key(&self.next_id) {
                self.next_id = self.next_id.wrapping_add(1);
            }
            let id = self.next_id;
            self.next_id = self.next_id.wrapping_add(1);
            let access = |count: usize| DmaAccess { addr: at.0, count: count as u64 };
            let (count, request) = match &kind {
                RequestKind::Read(len) => (*len, Request::DmaRead(access(*len))),
                RequestKind::Write(data) => {
                    (data.len(), Request::DmaWrite(access(data.len()), data))
                }
            };
            let asked = Asked { token, command: request.command(), count: count as u64 };
            self.requests.insert(id, asked);
            line.send(&request.message(id), &[])?;
        }
        Ok(())
    }

    /// An answer to the device's own DMA, on the socket that it was sent on.
    pub(super) fn answered(
        &mut self,
        socket: Socket,
        header: &Header,
        error: Option<Errno>,
        body: &[u8],
        runner: &mut Runner,
    ) -> Result<(), DisconnectReason> {
        let (id, command) = (header.msg_id, Command(header.command));
        let asked_on = if self.twin.is_some() { Socket::Twin } else { Socket::Main };
        let asked = match self.requests.get(&id) {
            Some(asked) if asked.command == command && socket == asked_on => *asked,
            _ => return Err(DisconnectReason::UnknownReply { id, command }),
        };
        self.requests.remove(&id);
        let result = match error {
            Some(Errno(0)) => Err(Errno::EIO),
            Some(errno) => Err(errno),
            None => match Reply::parse(command, body) {
                Ok(Reply::DmaRead(_, data)) => Ok(data),
                // Done in part: how much of it nobody knows.
                Ok(Reply::DmaWrite(Some(done))) if done.count != asked.count => {
                    Err(Errno::EIO)
                }
                Ok(Reply::DmaWrite(_)) => Ok(&[][..]),
                _ => Err(Errno::EPROTO),
            },
        };
        // A reset may have forgotten it; the runner counts that.
        let _ = runner.complete(asked.token, result);
        Ok(())
    }
}
