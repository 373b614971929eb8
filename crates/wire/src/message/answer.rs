//! What the destination says to a `Hello`.

use std::fmt;

use super::hello::StoreId;
use super::record::{Reader, Record, RecordWriter};
use super::{MAX_DEVICES, MAX_REASONS, MAX_TEXT_BYTES, MessageError};
use crate::preamble::Token;

/// The migration can be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accept {
    /// The store in which the destination records its decisions: the only one whose
    /// `Returned` the source believes.
    pub store: StoreId,
    /// What every data connection has to show.
    pub token: Token,
    /// What is to be known of each device there, in the order of the `Hello`; as
    /// many, at most [`MAX_DEVICES`].
    pub devices: Vec<AcceptedDevice>,
    /// Microseconds that the destination expects to need between the last byte and
    /// `Prepared`. Absent: not known.
    pub prepare_us: Option<u64>,
}

impl Record for Accept {
    const NAME: &'static str = "accept";
    const TAGS: &'static [u16] = &[1, 2, 3, 4];

    fn write(&self, w: &mut RecordWriter) -> Result<(), MessageError> {
        w.bytes(1, &self.store.0);
        w.bytes(2, &self.token.0);
        w.list(3, &self.devices, MAX_DEVICES)?;
        w.optional_u64(4, self.prepare_us);
        Ok(())
    }

    fn read(r: &Reader<'_>) -> Result<Self, MessageError> {
        Ok(Self {
            store: StoreId(r.array(1)?),
            token: Token(r.array(2)?),
            devices: r.list(3, MAX_DEVICES)?,
            prepare_us: r.optional_u64(4)?,
        })
    }
}

/// A device of the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct AcceptedDevice {
    /// It cannot leave RESUMING before it starts (a v1 device that refuses 000), so
    /// that its data is validated only then. Absent: no.
    pub validated_at_start: bool,
    /// The longest transaction that its data section takes, in bytes (v1). Absent:
    /// any.
    pub max_transaction: Option<u64>,
}

impl Record for AcceptedDevice {
    const NAME: &'static str = "accepted device";
    const TAGS: &'static [u16] = &[1, 2];

    fn write(&self, w: &mut RecordWriter) -> Result<(), MessageError> {
        w.u8(1, self.validated_at_start.into());
        w.optional_u64(2, self.max_transaction);
        Ok(())
    }

    fn read(r: &Reader<'_>) -> Result<Self, MessageError> {
        Ok(Self {
            validated_at_start: match r.optional_u8(1)? {
                None | Some(0) => false,
                Some(1) => true,
                Some(_) => return Err(r.invalid("a truth value is 0 or 1")),
            },
            max_transaction: r.optional_u64(2)?,
        })
    }
}

/// The migration cannot be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refuse {
    /// Every reason, not just the first: 1 to [`MAX_REASONS`].
    pub reasons: Vec<Refusal>,
}

impl Record for Refuse {
    const NAME: &'static str = "refusal";
    const TAGS: &'static [u16] = &[1];

    fn write(&self, w: &mut RecordWriter) -> Result<(), MessageError> {
        w.list(1, &self.reasons, MAX_REASONS)
    }

    fn read(r: &Reader<'_>) -> Result<Self, MessageError> {
        Ok(Self { reasons: r.list(1, MAX_REASONS)? })
    }

    fn broken_rule(&self) -> Option<&'static str> {
        self.reasons.is_empty().then_some("there is no reason")
    }
}

/// One reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people, at most [`MAX_TEXT_BYTES`].
    pub text: String,
}

impl Record for Refusal {
    const NAME: &'static str = "reason";
    const TAGS: &'static [u16] = &[1, 2];

    fn write(&self, w: &mut RecordWriter) -> Result<(), MessageError> {
        w.u16(1, self.code.0);
        w.string(2, &self.text, MAX_TEXT_BYTES)
    }

    fn read(r: &Reader<'_>) -> Result<Self, MessageError> {
        Ok(Self { code: RefusalCode(r.u16(1)?), text: r.string(2, MAX_TEXT_BYTES)? })
    }
}

/// Why a destination refuses; open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RefusalCode(pub u16);

impl RefusalCode {
    /// Something without a number of its own.
    pub const OTHER: Self = Self(0);
    /// The stream's version or features.
    pub const VERSION: Self = Self(1);
    /// The architecture.
    pub const ARCHITECTURE: Self = Self(2);
    /// The byte order of the device streams.
    pub const BYTE_ORDER: Self = Self(3);
    /// The guest's page size.
    pub const PAGE_SIZE: Self = Self(4);
    /// The size or the regions of guest memory.
    pub const MEMORY: Self = Self(5);
    /// The number of devices.
    pub const DEVICE_COUNT: Self = Self(6);
    /// The slot, bus or ids of a device.
    pub const DEVICE: Self = Self(7);
    /// The model of a device.
    pub const MODEL: Self = Self(8);
    /// The version of a device's data.
    pub const DATA_VERSION: Self = Self(9);
    /// The capability set of a device.
    pub const CAPABILITIES: Self = Self(10);
    /// Devices that could write into each other and cannot be stopped together.
    pub const PEER_TO_PEER: Self = Self(11);
    /// A section's name or version.
    pub const SECTION: Self = Self(12);
    /// Transactions larger than a device's data section.
    pub const TRANSACTION: Self = Self(13);
    /// The number of data connections.
    pub const CHANNELS: Self = Self(14);
    /// Another migration is under way, or the place is taken.
    pub const BUSY: Self = Self(15);
    /// A device here cannot be opened or cannot migrate.
    pub const BLOCKED: Self = Self(16);
    /// Where something lies in a PCI function: a BAR, a capability, vectors.
    pub const LAYOUT: Self = Self(17);
}

impl fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::OTHER => "other",
            Self::VERSION => "version",
            Self::ARCHITECTURE => "architecture",
            Self::BYTE_ORDER => "byte order",
            Self::PAGE_SIZE => "page size",
            Self::MEMORY => "memory",
            Self::DEVICE_COUNT => "device count",
            Self::DEVICE => "device",
            Self::MODEL => "model",
            Self::DATA_VERSION => "data version",
            Self::CAPABILITIES => "capabilities",
            Self::PEER_TO_PEER => "peer-to-peer",
            Self::SECTION => "section",
            Self::TRANSACTION => "transaction",
            Self::CHANNELS => "channels",
            Self::BUSY => "busy",
            Self::BLOCKED => "blocked",
            Self::LAYOUT => "layout",
            Self(other) => return write!(f, "refusal code {other}"),
        })
    }
}
