//! The 24 bytes in front of every payload, and what can be wrong with a frame.
//!
//! ```text
//! 0      2       4         8            16       20      24
//! | type | flags | channel | sequence   | length | crc   | payload ...
//! ```
//!
//! All fields are little-endian. `crc` covers the header, with `crc` itself zero,
//! and the payload. `sequence` counts the frames of one direction of one connection
//! from 0, so a frame lost, doubled or moved is found at the next header.

use std::fmt;

use crate::bytes::{join, u16_at, u32_at, u64_at};
use crate::device::DeviceError;
use crate::digest::{ChannelDigest, Crc};
use crate::memory::RunError;
use crate::message::MessageError;
use crate::section::SectionError;
use crate::{device, memory, message, section};

/// The fields of a frame's header. Reading one checks nothing; a
/// [`Decoder`](crate::Decoder) does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the payload is.
    pub kind: FrameType,
    /// How to take it.
    pub flags: Flags,
    /// The connection's channel number, [`Role::channel`](crate::preamble::Role::channel).
    pub channel: u32,
    /// The number of frames before this one in this direction of the connection.
    pub sequence: u64,
    /// Length of the payload in bytes.
    pub length: u32,
    /// Checksum of header and payload.
    pub crc: u32,
}

impl Header {
    /// Length in bytes.
    pub const SIZE: usize = 24;

    /// The bytes as they are sent.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        join(&[
            &self.kind.0.to_le_bytes(),
            &self.flags.0.to_le_bytes(),
            &self.channel.to_le_bytes(),
            &self.sequence.to_le_bytes(),
            &self.length.to_le_bytes(),
            &self.crc.to_le_bytes(),
        ])
    }

    /// The fields of 24 bytes, whatever they are.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            kind: FrameType(u16_at(bytes, 0).unwrap_or(0)),
            flags: Flags(u16_at(bytes, 2).unwrap_or(0)),
            channel: u32_at(bytes, 4).unwrap_or(0),
            sequence: u64_at(bytes, 8).unwrap_or(0),
            length: u32_at(bytes, 16).unwrap_or(0),
            crc: u32_at(bytes, 20).unwrap_or(0),
        }
    }

    /// The checksum over this header, `crc` taken as zero; add the payload to it and
    /// compare with `crc`.
    #[must_use]
    pub fn start_crc(&self) -> Crc {
        Crc::of(&Self { crc: 0, ..*self }.encode())
    }
}

/// What a frame holds; open, so that a reader can name what it does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameType(pub u16);

impl FrameType {
    /// One [`Message`](crate::Message).
    pub const CONTROL: Self = Self(0x01);
    /// [`MemoryRuns`](crate::memory::MemoryRuns).
    pub const MEMORY_RUNS: Self = Self(0x10);
    /// [`DeviceBegin`](crate::device::DeviceBegin).
    pub const DEVICE_BEGIN: Self = Self(0x20);
    /// [`DeviceData`](crate::device::DeviceData).
    pub const DEVICE_DATA: Self = Self(0x21);
    /// [`DeviceEnd`](crate::device::DeviceEnd).
    pub const DEVICE_END: Self = Self(0x22);
    /// A device's config space, [`DeviceRecord`](crate::device::DeviceRecord).
    pub const CONFIG: Self = Self(0x28);
    /// A device's interrupts, [`DeviceRecord`](crate::device::DeviceRecord).
    pub const INTERRUPTS: Self = Self(0x29);
    /// [`SectionInfo`](crate::section::SectionInfo).
    pub const SECTION_BEGIN: Self = Self(0x30);
    /// [`SectionData`](crate::section::SectionData).
    pub const SECTION_DATA: Self = Self(0x31);
    /// The end of a pre-copy round on this channel.
    pub const ROUND_END: Self = Self(0x40);
    /// The end of this channel, with its [`ChannelDigest`].
    pub const CHANNEL_END: Self = Self(0x41);

    /// Every type that this room knows.
    pub const KNOWN: [Self; 11] = [
        Self::CONTROL,
        Self::MEMORY_RUNS,
        Self::DEVICE_BEGIN,
        Self::DEVICE_DATA,
        Self::DEVICE_END,
        Self::CONFIG,
        Self::INTERRUPTS,
        Self::SECTION_BEGIN,
        Self::SECTION_DATA,
        Self::ROUND_END,
        Self::CHANNEL_END,
    ];

    /// The greatest length of such a payload in bytes. A reader compares it before
    /// it makes room; an unknown type has a small one, so that it can be skipped.
    #[must_use]
    pub const fn ceiling(self) -> u32 {
        match self {
            Self::CONTROL => message::MAX_MESSAGE_BYTES,
            Self::MEMORY_RUNS => memory::MAX_FRAME_BYTES,
            Self::DEVICE_BEGIN => device::MAX_BEGIN_BYTES,
            Self::DEVICE_DATA => device::DATA_PREFIX as u32 + device::MAX_DATA_BYTES,
            Self::DEVICE_END => device::END_SIZE as u32,
            Self::CONFIG | Self::INTERRUPTS => {
                device::RECORD_PREFIX as u32 + device::MAX_RECORD_BYTES
            }
            Self::SECTION_BEGIN => section::MAX_INFO_BYTES,
            Self::SECTION_DATA => section::DATA_PREFIX as u32 + section::MAX_DATA_BYTES,
            Self::ROUND_END => ROUND_END_SIZE as u32,
            Self::CHANNEL_END => ChannelDigest::SIZE as u32,
            _ => UNKNOWN_CEILING,
        }
    }

    /// The name in `docs/stream.md`, or `None` for a type that is not known.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::CONTROL => "CONTROL",
            Self::MEMORY_RUNS => "MEMORY_RUNS",
            Self::DEVICE_BEGIN => "DEVICE_BEGIN",
            Self::DEVICE_DATA => "DEVICE_DATA",
            Self::DEVICE_END => "DEVICE_END",
            Self::CONFIG => "CONFIG",
            Self::INTERRUPTS => "INTERRUPTS",
            Self::SECTION_BEGIN => "SECTION_BEGIN",
            Self::SECTION_DATA => "SECTION_DATA",
            Self::ROUND_END => "ROUND_END",
            Self::CHANNEL_END => "CHANNEL_END",
            _ => return None,
        })
    }
}

impl fmt::Display for FrameType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "frame type {:#06x}", self.0),
        }
    }
}

/// Ceiling for the payload of a type that is not known, in bytes.
pub const UNKNOWN_CEILING: u32 = 64 << 10;

/// Length of the payload of a `ROUND_END` frame: the round, four bytes of zero.
pub const ROUND_END_SIZE: usize = 8;

/// Flags of a frame. Bits 0 to 7 change how a frame is taken, and an unknown one
/// makes it unreadable; bits 8 to 15 are hints, and an unknown one is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(pub u16);

impl Flags {
    /// No flags.
    pub const NONE: Self = Self(0);
    /// A reader that does not know the frame's type, or the kind of message in it,
    /// must stop. Without it, such a frame is skipped.
    pub const CRITICAL: Self = Self(1 << 0);
    /// Of `DEVICE_DATA` alone: the last byte ends a transaction, the unit in which a
    /// v1 device takes its data back.
    pub const ENDS_TRANSACTION: Self = Self(1 << 1);

    /// The flags that must be understood.
    const MEANINGFUL: Self = Self(0x00ff);

    /// Whether all of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The set ones among bits 0 to 7 that a frame of this type does not have.
    pub(crate) const fn unknown_for(self, kind: FrameType) -> u16 {
        let known = match kind {
            FrameType::DEVICE_DATA => Self::CRITICAL.union(Self::ENDS_TRANSACTION),
            _ => Self::CRITICAL,
        };
        self.0 & Self::MEANINGFUL.0 & !known.0
    }
}

/// Why a frame, or its place in the stream, is refused. Each of them ends the
/// connection: there is no way to find the next frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Longer than its type can be.
    #[error("{kind} of {length} bytes is over the ceiling of {ceiling}")]
    TooLong {
        /// The frame's type.
        kind: FrameType,
        /// The length it has or claims.
        length: u64,
        /// The greatest one.
        ceiling: u32,
    },
    /// A frame of another connection.
    #[error("{kind} is for channel {found}, this connection is channel {expected}")]
    Channel {
        /// The frame's type.
        kind: FrameType,
        /// This connection's channel.
        expected: u32,
        /// The frame's channel.
        found: u32,
    },
    /// A frame is missing, doubled or out of order.
    #[error("{kind} has sequence number {found}, the next is {expected}")]
    Sequence {
        /// The frame's type.
        kind: FrameType,
        /// The number of frames that arrived.
        expected: u64,
        /// The number in the frame.
        found: u64,
    },
    /// A type that must be understood and is not.
    #[error("{kind} is critical and not known")]
    UnknownCritical {
        /// The frame's type.
        kind: FrameType,
    },
    /// Flags that must be understood and are not.
    #[error("{kind} has unknown flags {unknown:#06x}")]
    UnknownFlags {
        /// The frame's type.
        kind: FrameType,
        /// The unknown flags alone.
        unknown: u16,
    },
    /// Data on the control connection, or a message on a data connection.
    #[error("{kind} does not belong on channel {channel}")]
    Misplaced {
        /// The frame's type.
        kind: FrameType,
        /// The connection's channel.
        channel: u32,
    },
    /// Something follows the end of the channel.
    #[error("{kind} follows the end of the channel")]
    AfterEnd {
        /// The frame's type.
        kind: FrameType,
    },
    /// The caller read another number of bytes than the header says.
    #[error("{kind} has a payload of {expected} bytes, {found} were given")]
    Length {
        /// The frame's type.
        kind: FrameType,
        /// What the header says.
        expected: u32,
        /// What was given.
        found: usize,
    },
    /// The bytes changed on their way.
    #[error(
        "{kind} number {sequence} has checksum {found:08x}, its bytes {computed:08x}"
    )]
    Checksum {
        /// The frame's type.
        kind: FrameType,
        /// Its sequence number.
        sequence: u64,
        /// The checksum in the header.
        found: u32,
        /// The checksum of the bytes that arrived.
        computed: u32,
    },
    /// The payload has a length or a reserved byte that this type cannot have.
    #[error("{kind} with a payload of {length} bytes is malformed")]
    Malformed {
        /// The frame's type.
        kind: FrameType,
        /// Length of its payload.
        length: usize,
    },
    /// The sender counted other frames than arrived.
    #[error("the channel ends with {sent} sent and {received} received")]
    Digest {
        /// What the sender says.
        sent: ChannelDigest,
        /// What arrived.
        received: ChannelDigest,
    },
    /// A control message.
    #[error("the control message cannot be taken")]
    Message(#[from] MessageError),
    /// Runs of memory.
    #[error("the memory runs cannot be taken")]
    Memory(#[from] RunError),
    /// A device's frame.
    #[error("the device frame cannot be taken")]
    Device(#[from] DeviceError),
    /// A section's frame.
    #[error("the section frame cannot be taken")]
    Section(#[from] SectionError),
}
