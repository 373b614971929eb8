//! The first 64 bytes of every connection and every saved file.
//!
//! Decodable alone, forever: these bytes never change their places, so any version
//! can say of any other's stream what it is and why it is refused. The checks go in
//! the order in which they make sense: magic (is it ours), checksum (did it arrive),
//! version (can it be read), features (can it be understood).
//!
//! ```text
//!  0        8  10 11 12  14  16    20               28               36
//!  | magic  |ver|bo|ro|arch|chan| page |required bits | optional bits |
//! 36                              52              60    64
//!  | migration id (16)            | token (8)     | crc |
//! ```
//!
//! Each direction of the control connection begins with one, and so does the
//! source's direction of a data connection and a file.

use std::fmt;

use crate::bytes::{array, join, u16_at, u32_at, u64_at};
use crate::digest::Crc;

/// The container version that this room writes and reads.
pub const VERSION: u16 = 1;

/// The first eight bytes. As in PNG (section 5.2 of its specification), the high
/// bit and the line ending show at once a transfer that mangles either.
pub const MAGIC: [u8; 8] = *b"\x89VFMIG\r\n";

/// Most data connections of one migration.
pub const MAX_DATA_CHANNELS: u16 = 64;

/// What a connection says of itself before the first frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preamble {
    /// Byte order of what the devices write into their streams.
    pub byte_order: ByteOrder,
    /// Architecture of the source host.
    pub architecture: Architecture,
    /// Guest page size: the unit of memory runs.
    pub page_size: PageSize,
    /// Features without which the stream cannot be read.
    pub required: Features,
    /// Features that a reader may use or ignore.
    pub optional: Features,
    /// The attempt that this connection belongs to.
    pub migration: MigrationId,
    /// What this connection is for.
    pub role: Role,
}

impl Preamble {
    /// Length in bytes.
    pub const SIZE: usize = 64;

    /// Where the checksum lies: the last four bytes, over all that precede them.
    const CRC_AT: usize = 60;

    /// The bytes to send.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let (role, channel, token) = match self.role {
            Role::Control => (Role::CONTROL, 0, Token::NONE),
            Role::Data { channel, token } => (Role::DATA, channel.get(), token),
            Role::File => (Role::FILE, 0, Token::NONE),
        };
        let body: [u8; Self::CRC_AT] = join(&[
            &MAGIC,
            &VERSION.to_le_bytes(),
            &[self.byte_order.0, role],
            &self.architecture.0.to_le_bytes(),
            &channel.to_le_bytes(),
            &self.page_size.get().to_le_bytes(),
            &self.required.0.to_le_bytes(),
            &self.optional.0.to_le_bytes(),
            &self.migration.0,
            &token.0,
        ]);
        join(&[&body, &Crc::of(&body).value().to_le_bytes()])
    }

    /// Reads what [`encode`](Self::encode) wrote, of this version or any other.
    ///
    /// # Errors
    ///
    /// The first check that fails, in the order of [`PreambleError`]'s variants.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self, PreambleError> {
        Self::check_container(bytes)?;
        Self::fields(bytes).unwrap_or(Err(PreambleError::Checksum))
    }

    fn check_container(bytes: &[u8; Self::SIZE]) -> Result<(), PreambleError> {
        let (magic, body) = (array(bytes, 0), array::<{ Self::CRC_AT }>(bytes, 0));
        if magic != Some(MAGIC) {
            return Err(PreambleError::Magic);
        }
        if body.map(|b| Crc::of(&b).value()) != u32_at(bytes, Self::CRC_AT) {
            return Err(PreambleError::Checksum);
        }
        match u16_at(bytes, 8) {
            Some(VERSION) => Ok(()),
            found => Err(PreambleError::Version { found: found.unwrap_or(0) }),
        }
    }

    /// The fields of version 1; `None` only if the array were too short.
    fn fields(bytes: &[u8; Self::SIZE]) -> Option<Result<Self, PreambleError>> {
        let required = Features(u64_at(bytes, 20)?);
        let page_size = u32_at(bytes, 16)?;
        let (role, channel) = (*bytes.get(11)?, u16_at(bytes, 14)?);
        let token = Token(array(bytes, 52)?);

        let unknown = required.0 & !Features::SUPPORTED.0;
        if unknown != 0 {
            return Some(Err(PreambleError::Features { unknown: Features(unknown) }));
        }
        let Some(page_size) = PageSize::new(page_size) else {
            return Some(Err(PreambleError::PageSize(page_size)));
        };
        let role = match (role, DataChannel::new(channel), channel, token) {
            (Role::CONTROL, _, 0, Token::NONE) => Role::Control,
            (Role::FILE, _, 0, Token::NONE) => Role::File,
            (Role::DATA, Some(channel), _, token) => Role::Data { channel, token },
            _ => return Some(Err(PreambleError::Role { role, channel })),
        };
        Some(Ok(Self {
            byte_order: ByteOrder(*bytes.get(10)?),
            architecture: Architecture(u16_at(bytes, 12)?),
            page_size,
            required,
            optional: Features(u64_at(bytes, 28)?),
            migration: MigrationId(array(bytes, 36)?),
            role,
        }))
    }
}

/// Why 64 bytes are not a preamble that can be gone on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PreambleError {
    /// The first eight bytes are another protocol's.
    #[error("not a migration stream: the magic is missing")]
    Magic,
    /// The bytes changed on their way.
    #[error("the preamble's checksum does not match")]
    Checksum,
    /// Another container version.
    #[error("the stream has container version {found}, this side reads {VERSION}")]
    Version {
        /// The version that the stream has; this side's is [`VERSION`].
        found: u16,
    },
    /// Required features that this side does not know.
    #[error("the stream requires unknown features {unknown}")]
    Features {
        /// The unknown bits alone.
        unknown: Features,
    },
    /// Not a page size that a guest can have.
    #[error("guest page size {0} is not a power of two from 4 KiB to 1 MiB")]
    PageSize(u32),
    /// An unknown role, or one with a channel or token that it does not have.
    #[error("role {role} with channel {channel} is not a connection of a migration")]
    Role {
        /// The role's number.
        role: u8,
        /// The channel's number.
        channel: u16,
    },
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The control connection: messages, both ways.
    Control,
    /// A data connection, opened after the control connection was accepted.
    Data {
        /// Which one.
        channel: DataChannel,
        /// What the destination's `Accept` asked the source to show here.
        token: Token,
    },
    /// A saved stream: messages and data in one sequence, no answers.
    File,
}

impl Role {
    const CONTROL: u8 = 1;
    const DATA: u8 = 2;
    const FILE: u8 = 3;

    /// The channel number in the frames of such a connection: 0 for control and
    /// file, the data channel's otherwise.
    #[must_use]
    pub const fn channel(self) -> u32 {
        match self {
            Self::Control | Self::File => 0,
            Self::Data { channel, .. } => channel.0 as u32,
        }
    }
}

/// The number of a data connection, from 1 to [`MAX_DATA_CHANNELS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DataChannel(u16);

impl DataChannel {
    /// `None` unless `number` is in `1..=MAX_DATA_CHANNELS`.
    #[must_use]
    pub const fn new(number: u16) -> Option<Self> {
        if number == 0 || number > MAX_DATA_CHANNELS { None } else { Some(Self(number)) }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// What ties a data connection to the control connection that asked for it: chosen
/// at random by the destination for each migration. It keeps strangers and stale
/// connections out; it is not authentication.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token(pub [u8; 8]);

impl Token {
    /// The eight zero bytes of a connection that has no token.
    pub const NONE: Self = Self([0; 8]);
}

/// Shows that there is one, not what it is: it would open a connection.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::NONE { "Token(none)" } else { "Token(..)" })
    }
}

/// The 16 bytes that name one attempt to migrate, chosen at random by the source.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MigrationId(pub [u8; 16]);

/// 32 hexadecimal digits.
impl fmt::Display for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MigrationId({self})")
    }
}

/// A guest page size: a power of two from 4 KiB to 1 MiB, so that a memory frame
/// holds at least one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize(u32);

impl PageSize {
    /// 4 KiB.
    pub const KIB_4: Self = Self(4096);
    /// 64 KiB.
    pub const KIB_64: Self = Self(65536);

    /// `None` unless `bytes` is a power of two from 4 KiB to 1 MiB.
    #[must_use]
    pub const fn new(bytes: u32) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= 4096 && bytes <= 1 << 20 {
            Some(Self(bytes))
        } else {
            None
        }
    }

    /// The size in bytes.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// Byte order of the device streams; open, since the reader compares it with its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteOrder(pub u8);

impl ByteOrder {
    /// Least significant byte first.
    pub const LITTLE: Self = Self(1);
    /// Most significant byte first.
    pub const BIG: Self = Self(2);
    /// This host's.
    pub const HOST: Self =
        if cfg!(target_endian = "little") { Self::LITTLE } else { Self::BIG };
}

impl fmt::Display for ByteOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::LITTLE => f.write_str("little-endian"),
            Self::BIG => f.write_str("big-endian"),
            Self(other) => write!(f, "byte order {other}"),
        }
    }
}

/// A processor architecture, by the machine number of the ELF specification
/// (`e_machine`), which someone else already keeps unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Architecture(pub u16);

impl Architecture {
    /// `EM_X86_64`.
    pub const X86_64: Self = Self(62);
    /// `EM_AARCH64`.
    pub const AARCH64: Self = Self(183);
    /// `EM_RISCV`.
    pub const RISCV: Self = Self(243);
    /// `EM_PPC64`.
    pub const PPC64: Self = Self(21);
    /// `EM_S390`.
    pub const S390: Self = Self(22);
    /// `EM_LOONGARCH`.
    pub const LOONGARCH: Self = Self(258);
    /// `EM_NONE`: not known.
    pub const UNKNOWN: Self = Self(0);
    /// This host's.
    pub const HOST: Self = if cfg!(target_arch = "x86_64") {
        Self::X86_64
    } else if cfg!(target_arch = "aarch64") {
        Self::AARCH64
    } else if cfg!(target_arch = "riscv64") {
        Self::RISCV
    } else if cfg!(target_arch = "powerpc64") {
        Self::PPC64
    } else if cfg!(target_arch = "s390x") {
        Self::S390
    } else if cfg!(target_arch = "loongarch64") {
        Self::LOONGARCH
    } else {
        Self::UNKNOWN
    };
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::X86_64 => "x86_64",
            Self::AARCH64 => "aarch64",
            Self::RISCV => "riscv",
            Self::PPC64 => "ppc64",
            Self::S390 => "s390",
            Self::LOONGARCH => "loongarch",
            Self(other) => return write!(f, "architecture {other}"),
        })
    }
}

/// A set of feature bits. None is defined yet: what version 1 has, it always has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Features(pub u64);

impl Features {
    /// No features.
    pub const NONE: Self = Self(0);
    /// What this room can read.
    pub const SUPPORTED: Self = Self::NONE;
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
