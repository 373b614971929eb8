//! DMA that needs messages: cut into pieces that a message carries, and put together
//! again, so that the model sees one access whatever its length.
//!
//! ```text
//!   model: write(at, 3 MiB) -> Later(7)           limit 1 MiB
//!            |
//!      [access 7] --> piece 7 --> piece 8 --> piece 9      sent as there is room
//!            ^           |           |           |
//!            `---- dma_done(7), when all of them came back; the first error wins
//! ```

use crate::Token;
use abi::errno::Errno;
use dirty::{Iova, IovaRange};
use std::borrow::Cow;
use std::collections::VecDeque;
use std::ops::Range;

/// Most accesses by message at once, over all that a model does, and most messages.
pub const REQUESTS_MAX: usize = 64;

/// Bytes of one message unless the server says otherwise.
pub const MESSAGE_LIMIT: usize = 64 << 10;

/// Most bytes of one access that needs messages.
pub const ACCESS_MAX: usize = 16 << 20;

/// Most bytes of all accesses that need messages, at once.
const BYTES_MAX: usize = 64 << 20;

/// A message to the client: an access, or a piece of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What [`Runner::complete`](crate::Runner::complete) is called with.
    pub token: Token,
    /// Where.
    pub at: Iova,
    /// What.
    pub kind: RequestKind,
}

/// What a [`Request`] asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// That many bytes, at least one.
    Read(usize),
    /// To write these bytes, at least one.
    Write(Vec<u8>),
}

/// What a model asked for, as far as messages reach it.
#[derive(Debug)]
struct Access {
    at: Iova,
    len: usize,
    writes: bool,
    /// What is to be written; of a read in pieces, what came back so far.
    data: Vec<u8>,
    /// The stretch of the access that is sent now, and those that are sent after it.
    now: Range<usize>,
    later: VecDeque<Range<usize>>,
    /// A piece was sent.
    named: bool,
    /// Pieces that were sent and did not come back.
    flying: usize,
    failed: Option<Errno>,
}

impl Access {
    fn is_sent(&self) -> bool {
        self.now.is_empty()
    }

    /// Nothing more is sent of it.
    fn fail(&mut self, errno: Errno) {
        self.failed.get_or_insert(errno);
        self.now = 0..0;
        self.later.clear();
    }

    /// Whether a stretch that was not sent yet reaches into `range`.
    fn is_to_reach(&self, range: IovaRange) -> bool {
        std::iter::once(&self.now).chain(&self.later).any(|part| {
            let start = self.at.0 + part.start as u64;
            IovaRange::new(start, part.len() as u64).is_ok_and(|to| to.overlaps(range))
        })
    }
}

/// A message that was sent.
#[derive(Debug)]
struct Piece {
    access: Token,
    part: Range<usize>,
}

/// What an answer came to.
pub(crate) enum Back<'a> {
    /// Nobody waits for it (any more).
    Late,
    /// More pieces are on their way.
    Partly,
    /// The access is over: the bytes of a read, none of a write.
    Done { token: Token, len: usize, writes: bool, result: Result<Cow<'a, [u8]>, Errno> },
}

/// The accesses that are on their way.
#[derive(Debug)]
pub(crate) struct Messages {
    /// Bytes that one message carries, at least 1.
    pub(crate) limit: usize,
    /// In order of their tokens; a few at a time, mostly one.
    accesses: Vec<(Token, Access)>,
    pieces: Vec<(Token, Piece)>,
    /// Those with something to be sent, in the order in which they were asked for.
    queue: VecDeque<Token>,
    /// In all accesses.
    bytes: usize,
    next: u64,
}

impl Messages {
    pub(crate) fn new() -> Messages {
        Messages {
            limit: MESSAGE_LIMIT,
            accesses: Vec::new(),
            pieces: Vec::new(),
            queue: VecDeque::new(),
            bytes: 0,
            next: 1,
        }
    }

    /// Accesses that are not over.
    pub(crate) fn outstanding(&self) -> usize {
        self.accesses.len()
    }

    /// Whether there is room for another access of `len` bytes.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        self.accesses.len() < REQUESTS_MAX && self.bytes + len <= BYTES_MAX
    }

    /// Takes an access: what of it needs messages (`parts`, not empty, in order), and
    /// the bytes to write, or those of a read that are there already (all of its
    /// length, or none).
    pub(crate) fn submit(
        &mut self,
        at: Iova,
        len: usize,
        writes: bool,
        data: Vec<u8>,
        now: Range<usize>,
        later: VecDeque<Range<usize>>,
    ) -> Token {
        let token = Token(self.next);
        self.next += 1;
        let access = Access {
            at,
            len,
            writes,
            data,
            now,
            later,
            named: false,
            flying: 0,
            failed: None,
        };
        self.accesses.push((token, access));
        self.queue.push_back(token);
        self.bytes += len;
        token
    }

    /// The next message to be sent, where one may be.
    pub(crate) fn next_request(&mut self) -> Option<Request> {
        if self.pieces.len() >= REQUESTS_MAX {
            return None;
        }
        let token = *self.queue.front()?;
        let access = find(&mut self.accesses, token)?;
        let part = access.now.start..access.now.end.min(access.now.start + self.limit);
        access.now.start = part.end;
        if access.now.is_empty() {
            access.now = access.later.pop_front().unwrap_or(0..0);
        }
        if access.is_sent() {
            self.queue.pop_front();
        }
        let whole = part.len() == access.len;
        let kind = match (access.writes, whole) {
            (true, true) => RequestKind::Write(std::mem::take(&mut access.data)),
            (true, false) => RequestKind::Write(access.data[part.clone()].to_vec()),
            (false, _) => RequestKind::Read(part.len()),
        };
        if !access.writes && !whole && access.data.is_empty() {
            access.data = vec![0; access.len];
        }
        access.flying += 1;
        let at = Iova(access.at.0 + part.start as u64);
        // The first piece goes by the name of its access.
        let name = if std::mem::replace(&mut access.named, true) {
            self.next += 1;
            Token(self.next - 1)
        } else {
            token
        };
        self.pieces.push((name, Piece { access: token, part }));
        Some(Request { token: name, at, kind })
    }

    /// What came back for a message.
    pub(crate) fn returned<'a>(
        &mut self,
        token: Token,
        result: Result<&'a [u8], Errno>,
    ) -> Back<'a> {
        let Some(piece) = take(&mut self.pieces, token) else { return Back::Late };
        let Some(access) = find(&mut self.accesses, piece.access) else {
            return Back::Late;
        };
        access.flying -= 1;
        let whole = piece.part.len() == access.len;
        let mut answer = &[][..];
        match result {
            Err(errno) => access.fail(errno),
            Ok(_) if access.writes => {}
            Ok(data) if data.len() != piece.part.len() => {
                tracing::warn!(
                    at = %access.at,
                    asked = piece.part.len(),
                    got = data.len(),
                    "a DMA read came back with another length"
                );
                access.fail(Errno::EIO);
            }
            Ok(data) if whole => answer = data,
            Ok(data) => access.data[piece.part].copy_from_slice(data),
        }
        if access.failed.is_some() {
            self.queue.retain(|queued| *queued != piece.access);
        } else if !access.is_sent() {
            return Back::Partly;
        }
        if access.flying > 0 {
            return Back::Partly;
        }
        let Some(access) = self.forget(piece.access) else { return Back::Late };
        let result = match access.failed {
            Some(errno) => Err(errno),
            None if access.writes || whole => Ok(Cow::Borrowed(answer)),
            None => Ok(Cow::Owned(access.data)),
        };
        Back::Done { token: piece.access, len: access.len, writes: access.writes, result }
    }

    fn forget(&mut self, token: Token) -> Option<Access> {
        let access = take(&mut self.accesses, token)?;
        self.bytes -= access.len;
        Some(access)
    }

    /// What was not sent yet of accesses to `range` (`None`: anywhere) is not sent any
    /// more, and they fail: those with nothing on its way are over, and given back.
    pub(crate) fn unmapped(&mut self, range: Option<IovaRange>) -> Vec<Token> {
        let mut over = Vec::new();
        for token in std::mem::take(&mut self.queue) {
            let Some(access) = find(&mut self.accesses, token) else { continue };
            if range.is_some_and(|range| !access.is_to_reach(range)) {
                self.queue.push_back(token);
                continue;
            }
            access.fail(Errno::EFAULT);
            if access.flying == 0 {
                over.push(token);
            }
        }
        for token in &over {
            self.forget(*token);
        }
        over
    }

    /// Forgets everything, and gives back the accesses.
    pub(crate) fn clear(&mut self) -> Vec<Token> {
        self.queue.clear();
        self.pieces.clear();
        self.bytes = 0;
        self.accesses.drain(..).map(|(token, _)| token).collect()
    }
}

fn find<T>(all: &mut [(Token, T)], token: Token) -> Option<&mut T> {
    all.iter_mut().find(|(name, _)| *name == token).map(|(_, found)| found)
}

fn take<T>(all: &mut Vec<(Token, T)>, token: Token) -> Option<T> {
    let at = all.iter().position(|(name, _)| *name == token)?;
    Some(all.remove(at).1)
}
