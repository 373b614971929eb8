//! Headers, and messages to be sent.

use std::borrow::Cow;

use abi::errno::Errno;
use abi::vfio_user::{Command, Header, HeaderFlags};
use zerocopy::{Immutable, IntoBytes};

/// The length of a header in bytes.
pub const HEADER: usize = Header::SIZE;

/// Reads a header; nothing is checked.
pub fn parse_header(bytes: &[u8; HEADER]) -> Header {
    zerocopy::transmute!(*bytes)
}

/// What a message is, by the flags of its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It asks.
    Command {
        /// Nobody wants an answer.
        no_reply: bool,
    },
    /// It answers.
    Reply {
        /// Set where it failed. The number may be 0 even then.
        error: Option<Errno>,
    },
    /// Something newer.
    Unknown,
}

/// What the message behind a header is.
pub fn kind(header: &Header) -> Kind {
    let flags = HeaderFlags::from_bits_retain(header.flags);
    match header.flags & HeaderFlags::TYPE_MASK {
        0 => Kind::Command { no_reply: flags.contains(HeaderFlags::NO_REPLY) },
        1 => Kind::Reply {
            error: flags
                .contains(HeaderFlags::ERROR)
                .then(|| Errno(i32::try_from(header.error).unwrap_or(i32::MAX))),
        },
        _ => Kind::Unknown,
    }
}

/// The beginning of a message, on the stack: its header and fixed fields.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    bytes: [u8; Head::MOST],
    len: usize,
}

impl Head {
    /// A header and the longest fixed part (the 40 bytes of a DMA unmap with a bitmap).
    const MOST: usize = HEADER + 40;

    /// A header for something that asks. Its size is not known yet.
    pub(crate) fn command(id: u16, command: Command) -> Head {
        Head::new(id, command, HeaderFlags::COMMAND, 0)
    }

    /// A header for something that answers.
    pub(crate) fn reply(id: u16, command: Command) -> Head {
        Head::new(id, command, HeaderFlags::REPLY, 0)
    }

    /// A header that answers with an errno.
    pub(crate) fn refusal(id: u16, command: Command, errno: Errno) -> Head {
        let error = u32::try_from(errno.0).unwrap_or(0);
        Head::new(id, command, HeaderFlags::REPLY | HeaderFlags::ERROR, error)
    }

    fn new(id: u16, command: Command, flags: HeaderFlags, error: u32) -> Head {
        let header = Header {
            msg_id: id,
            command: command.0,
            msg_size: 0,
            flags: flags.bits(),
            error,
        };
        Head { bytes: [0; Head::MOST], len: 0 }.with(&header)
    }

    /// With a structure more.
    pub(crate) fn with<T: IntoBytes + Immutable>(mut self, fields: &T) -> Head {
        let fields = fields.as_bytes();
        self.bytes[self.len..self.len + fields.len()].copy_from_slice(fields);
        self.len += fields.len();
        self
    }

    /// With its size, for a message that has `tail` bytes behind this.
    pub(crate) fn sized(mut self, tail: usize) -> Head {
        let size = u32::try_from(self.len + tail).unwrap_or(u32::MAX);
        self.bytes[4..8].copy_from_slice(&size.to_ne_bytes());
        self
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A message to be sent: its head, and the bytes that follow.
#[derive(Clone, Debug)]
pub struct Message<'a> {
    /// Header and fixed fields.
    pub head: Head,
    /// What follows.
    pub tail: Cow<'a, [u8]>,
}

impl<'a> Message<'a> {
    pub(crate) fn new(head: Head, tail: impl Into<Cow<'a, [u8]>>) -> Message<'a> {
        let tail = tail.into();
        Message { head: head.sized(tail.len()), tail }
    }

    /// Nothing behind the head.
    pub(crate) fn bare(head: Head) -> Message<'static> {
        Message::new(head, &[][..])
    }

    /// How long it is, header included, in bytes.
    pub fn size(&self) -> usize {
        self.head.len + self.tail.len()
    }

    /// All of it in one piece.
    pub fn bytes(&self) -> Vec<u8> {
        [self.head.as_bytes(), &self.tail].concat()
    }
}
