//! What the two sides say to each other on the control connection.
//!
//! ```text
//! source                                    destination
//! Hello            what there is   ---->
//!                                  <----    Accept, or Refuse with every reason
//!                  (a round ends on every data connection)
//!                                  <----    RoundApplied
//! SwitchoverRequest                ---->
//!                                  <----    SwitchoverReady or NotReady
//!                  (the data connections end)
//! RunState         that was all    ---->
//!                                  <----    Prepared
//! Commit           the token       ---->
//!                                  <----    Running, or NotStarted
//!
//! Abort (before Commit)            ---->
//!                                  <----    Returned: the token is the source's
//! Failed           either way, at any time
//! ```
//!
//! A message is its kind, two bytes of zero, and [fields](crate::tlv). New kinds get
//! new numbers, new fields new tags; neither is ever given a second meaning.

use std::fmt;

use crate::bytes::u16_at;
use crate::tlv::TlvError;

mod answer;
mod handoff;
mod hello;
mod identity;
mod layout;
pub(crate) mod record;

pub use answer::{Accept, AcceptedDevice, Refusal, RefusalCode, Refuse};
pub use handoff::{
    FailureCode, LoadedDevice, NotStarted, Prepared, Reason, Running, StartedDevice,
};
pub use hello::{Hello, MemoryRegion, RunState, StoreId};
pub use identity::{Bus, DeviceIdentity, Generation, Model, PciIds};
pub use layout::{
    MAX_BARS, MAX_CAPABILITIES, MAX_EXTENDED, MsiLayout, MsixLayout, PciBar,
    PciCapability, PciExtended, PciLayout,
};

use record::{Reader, Record, RecordWriter};

/// Greatest payload of a `CONTROL` frame. The longest message that keeps all other
/// limits is under it.
pub const MAX_MESSAGE_BYTES: u32 = 128 << 10;
/// Most devices in one migration.
pub const MAX_DEVICES: usize = 64;
/// Most regions of guest memory.
pub const MAX_REGIONS: usize = 64;
/// Most sections of the VMM's state.
pub const MAX_SECTIONS: usize = 64;
/// Most reasons in a refusal.
pub const MAX_REASONS: usize = 64;
/// Longest name: of a slot, a model, a section, a program, in bytes.
pub const MAX_NAME_BYTES: usize = 256;
/// Longest text: a reason, a URI, in bytes.
pub const MAX_TEXT_BYTES: usize = 1024;

/// Length of what precedes a message's fields.
const HEAD: usize = 4;

/// One control message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// Source: what is to be migrated.
    Hello(Hello),
    /// Destination: it can be done.
    Accept(Accept),
    /// Destination: it cannot be done, and nothing was touched.
    Refuse(Refuse),
    /// Destination: everything of a round has arrived and is applied.
    RoundApplied {
        /// The round.
        round: u32,
    },
    /// Source: everything was sent; the guest arrives running or paused.
    RunState(RunState),
    /// Source: about to stop; is the destination ready?
    SwitchoverRequest,
    /// Destination: every device has its initial data, the stop may begin.
    SwitchoverReady,
    /// Destination: not yet.
    NotReady {
        /// What is missing.
        reason: String,
    },
    /// Destination: all that can fail has been done.
    Prepared(Prepared),
    /// Source: the right to run passes to the destination.
    Commit,
    /// Destination: the guest runs here.
    Running(Running),
    /// Destination: durably, it never runs here; the source may resume.
    Returned,
    /// Destination: the guest is here, and a device did not start.
    NotStarted(NotStarted),
    /// Source: this attempt is over, before `Commit`.
    Abort(Reason),
    /// Either side: something failed here.
    Failed(Reason),
}

impl Message {
    /// The number of its kind.
    #[must_use]
    pub const fn kind(&self) -> MessageKind {
        match self {
            Self::Hello(_) => MessageKind::HELLO,
            Self::Accept(_) => MessageKind::ACCEPT,
            Self::Refuse(_) => MessageKind::REFUSE,
            Self::RoundApplied { .. } => MessageKind::ROUND_APPLIED,
            Self::RunState(_) => MessageKind::RUN_STATE,
            Self::SwitchoverRequest => MessageKind::SWITCHOVER_REQUEST,
            Self::SwitchoverReady => MessageKind::SWITCHOVER_READY,
            Self::NotReady { .. } => MessageKind::NOT_READY,
            Self::Prepared(_) => MessageKind::PREPARED,
            Self::Commit => MessageKind::COMMIT,
            Self::Running(_) => MessageKind::RUNNING,
            Self::Returned => MessageKind::RETURNED,
            Self::NotStarted(_) => MessageKind::NOT_STARTED,
            Self::Abort(_) => MessageKind::ABORT,
            Self::Failed(_) => MessageKind::FAILED,
        }
    }

    /// The payload of its frame.
    ///
    /// # Errors
    ///
    /// A value is outside its limits. Text that comes from elsewhere goes through
    /// [`plain_text`](crate::tlv::plain_text) first.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        let fields = match self {
            Self::Hello(hello) => hello.to_bytes(),
            Self::Accept(accept) => accept.to_bytes(),
            Self::Refuse(refuse) => refuse.to_bytes(),
            Self::RoundApplied { round } => Round { round: *round }.to_bytes(),
            Self::RunState(state) => state.to_bytes(),
            Self::NotReady { reason } => Waiting { reason: reason.clone() }.to_bytes(),
            Self::Prepared(prepared) => prepared.to_bytes(),
            Self::Running(running) => running.to_bytes(),
            Self::NotStarted(device) => device.to_bytes(),
            Self::Abort(reason) | Self::Failed(reason) => reason.to_bytes(),
            Self::SwitchoverRequest
            | Self::SwitchoverReady
            | Self::Commit
            | Self::Returned => Empty.to_bytes(),
        }?;
        let [low, high] = self.kind().0.to_le_bytes();
        Ok([&[low, high, 0, 0], &fields[..]].concat())
    }

    /// Reads a payload.
    ///
    /// # Errors
    ///
    /// The kind is not known, or the fields are not what it has.
    pub fn decode(payload: &[u8]) -> Result<Self, MessageError> {
        let short = MessageError::Short { length: payload.len() };
        let (kind, reserved) = (u16_at(payload, 0), u16_at(payload, 2));
        let (Some(kind), Some(reserved), Some(fields)) =
            (kind, reserved, payload.get(HEAD..))
        else {
            return Err(short);
        };
        if reserved != 0 {
            return Err(MessageError::Reserved);
        }
        Ok(match MessageKind(kind) {
            MessageKind::HELLO => Self::Hello(Hello::from_bytes(fields)?),
            MessageKind::ACCEPT => Self::Accept(Accept::from_bytes(fields)?),
            MessageKind::REFUSE => Self::Refuse(Refuse::from_bytes(fields)?),
            MessageKind::ROUND_APPLIED => {
                let Round { round } = Round::from_bytes(fields)?;
                Self::RoundApplied { round }
            }
            MessageKind::RUN_STATE => Self::RunState(RunState::from_bytes(fields)?),
            MessageKind::SWITCHOVER_REQUEST => {
                Empty::from_bytes(fields)?;
                Self::SwitchoverRequest
            }
            MessageKind::SWITCHOVER_READY => {
                Empty::from_bytes(fields)?;
                Self::SwitchoverReady
            }
            MessageKind::NOT_READY => {
                let Waiting { reason } = Waiting::from_bytes(fields)?;
                Self::NotReady { reason }
            }
            MessageKind::PREPARED => Self::Prepared(Prepared::from_bytes(fields)?),
            MessageKind::COMMIT => {
                Empty::from_bytes(fields)?;
                Self::Commit
            }
            MessageKind::RUNNING => Self::Running(Running::from_bytes(fields)?),
            MessageKind::RETURNED => {
                Empty::from_bytes(fields)?;
                Self::Returned
            }
            MessageKind::NOT_STARTED => Self::NotStarted(NotStarted::from_bytes(fields)?),
            MessageKind::ABORT => Self::Abort(Reason::from_bytes(fields)?),
            MessageKind::FAILED => Self::Failed(Reason::from_bytes(fields)?),
            kind => return Err(MessageError::UnknownKind(kind)),
        })
    }
}

/// The number of a kind of message; open, so that an unknown one can be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageKind(pub u16);

impl MessageKind {
    /// [`Message::Hello`].
    pub const HELLO: Self = Self(1);
    /// [`Message::Accept`].
    pub const ACCEPT: Self = Self(2);
    /// [`Message::Refuse`].
    pub const REFUSE: Self = Self(3);
    /// [`Message::RoundApplied`].
    pub const ROUND_APPLIED: Self = Self(17);
    /// [`Message::RunState`].
    pub const RUN_STATE: Self = Self(18);
    /// [`Message::SwitchoverRequest`].
    pub const SWITCHOVER_REQUEST: Self = Self(32);
    /// [`Message::SwitchoverReady`].
    pub const SWITCHOVER_READY: Self = Self(33);
    /// [`Message::NotReady`].
    pub const NOT_READY: Self = Self(34);
    /// [`Message::Prepared`].
    pub const PREPARED: Self = Self(48);
    /// [`Message::Commit`].
    pub const COMMIT: Self = Self(49);
    /// [`Message::Running`].
    pub const RUNNING: Self = Self(50);
    /// [`Message::Returned`].
    pub const RETURNED: Self = Self(51);
    /// [`Message::NotStarted`].
    pub const NOT_STARTED: Self = Self(52);
    /// [`Message::Abort`].
    pub const ABORT: Self = Self(64);
    /// [`Message::Failed`].
    pub const FAILED: Self = Self(65);
    /// Reserved: asks who has the token.
    pub const QUERY: Self = Self(80);
    /// Reserved: the answer to [`QUERY`](Self::QUERY).
    pub const ANSWER: Self = Self(81);

    /// The name in `docs/stream.md`, or `None` for a kind that is not known.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::HELLO => "Hello",
            Self::ACCEPT => "Accept",
            Self::REFUSE => "Refuse",
            Self::ROUND_APPLIED => "RoundApplied",
            Self::RUN_STATE => "RunState",
            Self::SWITCHOVER_REQUEST => "SwitchoverRequest",
            Self::SWITCHOVER_READY => "SwitchoverReady",
            Self::NOT_READY => "NotReady",
            Self::PREPARED => "Prepared",
            Self::COMMIT => "Commit",
            Self::RUNNING => "Running",
            Self::RETURNED => "Returned",
            Self::NOT_STARTED => "NotStarted",
            Self::ABORT => "Abort",
            Self::FAILED => "Failed",
            Self::QUERY => "Query",
            Self::ANSWER => "Answer",
            _ => return None,
        })
    }
}

impl fmt::Display for MessageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "message kind {}", self.0),
        }
    }
}

/// Why a message, or other metadata made of fields, is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// No room for the kind.
    #[error("a message of {length} bytes is too short to have a kind")]
    Short {
        /// Its length.
        length: usize,
    },
    /// Reserved bytes that are not zero.
    #[error("the reserved bytes of a message are not zero")]
    Reserved,
    /// A kind that is not known or not yet used.
    #[error("{0} is not known here")]
    UnknownKind(MessageKind),
    /// A field is wrong by itself.
    #[error("a field of the {record} cannot be taken")]
    Field {
        /// What it is part of.
        record: &'static str,
        /// What is wrong with it.
        #[source]
        source: TlvError,
    },
    /// The values contradict the rules of what they describe.
    #[error("the {record} is not valid: {rule}")]
    Invalid {
        /// What it is.
        record: &'static str,
        /// The rule that it breaks.
        rule: &'static str,
    },
}

/// The fields of a message without fields.
struct Empty;

impl Record for Empty {
    const NAME: &'static str = "message";
    const TAGS: &'static [u16] = &[];

    fn write(&self, _: &mut RecordWriter) -> Result<(), MessageError> {
        Ok(())
    }

    fn read(_: &Reader<'_>) -> Result<Self, MessageError> {
        Ok(Self)
    }
}

/// The fields of `RoundApplied`.
struct Round {
    round: u32,
}

impl Record for Round {
    const NAME: &'static str = "round";
    const TAGS: &'static [u16] = &[1];

    fn write(&self, w: &mut RecordWriter) -> Result<(), MessageError> {
        w.u32(1, self.round);
        Ok(())
    }

    fn read(r: &Reader<'_>) -> Result<Self, MessageError> {
        Ok(Self { round: r.u32(1)? })
    }
}

/// The fields of `NotReady`.
struct Waiting {
    reason: String,
}

impl Record for Waiting {
    const NAME: &'static str = "answer that it is not ready";
    const TAGS: &'static [u16] = &[1];

    fn write(&self, w: &mut RecordWriter) -> Result<(), MessageError> {
        w.string(1, &self.reason, MAX_TEXT_BYTES)
    }

    fn read(r: &Reader<'_>) -> Result<Self, MessageError> {
        Ok(Self { reason: r.string(1, MAX_TEXT_BYTES)? })
    }
}
