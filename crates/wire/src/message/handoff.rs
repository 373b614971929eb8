//! The handoff: prepared, committed, running or returned; and failures.

use std::fmt;

use super::record::{Reader, Record, RecordWriter};
use super::{MAX_DEVICES, MAX_TEXT_BYTES, MessageError};

/// All that can fail has been done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// What each device took, in the order of the `Hello`, at most [`MAX_DEVICES`].
    pub devices: Vec<LoadedDevice>,
    /// Microseconds spent on comparing contents, where that was asked for; the
    /// source bills them apart. Absent: none.
    pub verify_us: Option<u64>,
}

impl Record for Prepared {
    const NAME: &'static str = "prepared";
    const TAGS: &'static [u16] = &[1, 2];

    fn write(&self, w: &mut RecordWriter) -> Result<(), MessageError> {
        w.list(1, &self.devices, MAX_DEVICES)?;
        w.optional_u64(2, self.verify_us);
        Ok(())
    }

    fn read(r: &Reader<'_>) -> Result<Self, MessageError> {
        Ok(Self { devices: r.list(1, MAX_DEVICES)?, verify_us: r.optional_u64(2)? })
    }
}

/// A device that has taken its data.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LoadedDevice {
    /// Bytes that it took.
    pub bytes: u64,
    /// Their CRC32C.
    pub crc: u32,
    /// Microseconds from its last byte to STOP.
    pub load_us: u64,
    /// It stayed in RESUMING, since it has no other state before it runs: its data is
    /// validated only when it starts. Absent: it was validated, and is in STOP.
    pub validated_at_start: bool,
}

/// A field that may be absent is shown where it is there: the text of a message that
/// an older version wrote stays what it was.
impl fmt::Debug for LoadedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("LoadedDevice");
        text.field("bytes", &self.bytes)
            .field("crc", &self.crc)
            .field("load_us", &self.load_us);
        if self.validated_at_start {
            text.field("validated_at_start", &true);
        }
        text.finish()
    }
}

impl Record for LoadedDevice {
    const NAME: &'static str = "loaded device";
    const TAGS: &'static [u16] = &[1, 2, 3, 4];

    fn write(&self, w: &mut RecordWriter) -> Result<(), MessageError> {
        w.u64(1, self.bytes);
        w.u32(2, self.crc);
        w.u64(3, self.load_us);
        if self.validated_at_start {
            w.u8(4, 1);
        }
        Ok(())
    }

    fn read(r: &Reader<'_>) -> Result<Self, MessageError> {
        Ok(Self {
            bytes: r.u64(1)?,
            crc: r.u32(2)?,
            load_us: r.u64(3)?,
            validated_at_start: match r.optional_u8(4)? {
                None | Some(0) => false,
                Some(1) => true,
                Some(_) => return Err(r.invalid("a truth value is 0 or 1")),
            },
        })
    }
}

/// The guest runs at the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// What each device needed, in the order of the `Hello`, at most
    /// [`MAX_DEVICES`].
    pub devices: Vec<StartedDevice>,
    /// Microseconds from `Commit` until the vCPUs ran. Absent: the guest is paused.
    pub guest_running_us: Option<u64>,
}

impl Record for Running {
    const NAME: &'static str = "running";
    const TAGS: &'static [u16] = &[1, 2];

    fn write(&self, w: &mut RecordWriter) -> Result<(), MessageError> {
        w.list(1, &self.devices, MAX_DEVICES)?;
        w.optional_u64(2, self.guest_running_us);
        Ok(())
    }

    fn read(r: &Reader<'_>) -> Result<Self, MessageError> {
        let devices = r.list(1, MAX_DEVICES)?;
        Ok(Self { devices, guest_running_us: r.optional_u64(2)? })
    }
}

/// A device that has started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StartedDevice {
    /// Microseconds from STOP to RUNNING.
    pub start_us: u64,
}

impl Record for StartedDevice {
    const NAME: &'static str = "started device";
    const TAGS: &'static [u16] = &[1];

    fn write(&self, w: &mut RecordWriter) -> Result<(), MessageError> {
        w.u64(1, self.start_us);
        Ok(())
    }

    fn read(r: &Reader<'_>) -> Result<Self, MessageError> {
        Ok(Self { start_us: r.u64(1)? })
    }
}

/// The guest is the destination's and stays paused there: a device did not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotStarted {
    /// The device's index, under [`MAX_DEVICES`].
    pub device: u32,
    /// Why, at most [`MAX_TEXT_BYTES`].
    pub text: String,
}

impl Record for NotStarted {
    const NAME: &'static str = "device that did not start";
    const TAGS: &'static [u16] = &[1, 2];

    fn write(&self, w: &mut RecordWriter) -> Result<(), MessageError> {
        w.u32(1, self.device);
        w.string(2, &self.text, MAX_TEXT_BYTES)
    }

    fn read(r: &Reader<'_>) -> Result<Self, MessageError> {
        Ok(Self { device: r.u32(1)?, text: r.string(2, MAX_TEXT_BYTES)? })
    }

    fn broken_rule(&self) -> Option<&'static str> {
        (self.device as usize >= MAX_DEVICES).then_some("the index is beyond any device")
    }
}

/// Why an attempt ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// For programs.
    pub code: FailureCode,
    /// For people, at most [`MAX_TEXT_BYTES`].
    pub text: String,
}

impl Record for Reason {
    const NAME: &'static str = "reason";
    const TAGS: &'static [u16] = &[1, 2];

    fn write(&self, w: &mut RecordWriter) -> Result<(), MessageError> {
        w.u16(1, self.code.0);
        w.string(2, &self.text, MAX_TEXT_BYTES)
    }

    fn read(r: &Reader<'_>) -> Result<Self, MessageError> {
        Ok(Self { code: FailureCode(r.u16(1)?), text: r.string(2, MAX_TEXT_BYTES)? })
    }
}

/// What failed; open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FailureCode(pub u16);

impl FailureCode {
    /// Something without a number of its own.
    pub const OTHER: Self = Self(0);
    /// An operator or the VMM cancelled it.
    pub const CANCELLED: Self = Self(1);
    /// A deadline passed.
    pub const DEADLINE: Self = Self(2);
    /// The other side sent what cannot be taken.
    pub const STREAM: Self = Self(3);
    /// The other side sent it at the wrong time.
    pub const PROTOCOL: Self = Self(4);
    /// A connection broke.
    pub const CONNECTION: Self = Self(5);
    /// A device failed.
    pub const DEVICE: Self = Self(6);
    /// Guest memory could not be read or written.
    pub const MEMORY: Self = Self(7);
    /// The VMM's own state could not be saved or loaded.
    pub const VMM: Self = Self(8);
    /// A decision could not be recorded.
    pub const STORE: Self = Self(9);
    /// The set of devices or the memory layout changed.
    pub const CHANGED: Self = Self(10);
    /// Pre-copy does not get under the downtime limit.
    pub const CONVERGENCE: Self = Self(11);
}

impl fmt::Display for FailureCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::OTHER => "other",
            Self::CANCELLED => "cancelled",
            Self::DEADLINE => "deadline",
            Self::STREAM => "stream",
            Self::PROTOCOL => "protocol",
            Self::CONNECTION => "connection",
            Self::DEVICE => "device",
            Self::MEMORY => "memory",
            Self::VMM => "vmm",
            Self::STORE => "store",
            Self::CHANGED => "changed",
            Self::CONVERGENCE => "convergence",
            Self(other) => return write!(f, "failure code {other}"),
        })
    }
}
