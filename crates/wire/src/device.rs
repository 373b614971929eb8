//! A device's data and what the VMM keeps for it.
//!
//! A device's bytes are opaque and streamed: a begin that says whose they are, any
//! number of pieces, an end that says how many there were and their checksum. All
//! frames of one device travel on one channel. Where a guest resets a device during
//! pre-copy, its data begins again with the next attempt number, and what came
//! before is void.
//!
//! ```text
//! DEVICE_BEGIN   metadata fields                                  -> DeviceBegin
//!
//!                0        4       5   8        16
//! DEVICE_DATA    | device | phase | 0 | offset | bytes ...        -> DeviceData
//!
//!                0        4        8        16       20
//! DEVICE_END     | device | 0      | length | crc32c | 0 |        -> DeviceEnd
//!
//!                0        4        8
//! CONFIG         | device | schema | bytes ...                    -> DeviceRecord
//! INTERRUPTS     | device | schema | bytes ...                    -> DeviceRecord
//! ```
//!
//! `device` is the device's place in [`Hello::devices`](crate::message::Hello), from 0.

use std::fmt;

use crate::bytes::{array, join, u32_at, u64_at};
use crate::digest::Bulk;
use crate::message::record::{Reader, Record, RecordWriter};
use crate::message::{DeviceIdentity, MAX_DEVICES, MessageError};

/// Most device bytes in one `DEVICE_DATA` frame.
pub const MAX_DATA_BYTES: u32 = 1 << 20;

/// Most bytes of a device's config space or interrupts: a full MSI-X table is a quarter
/// of it, and the accounts of all its vectors are more than half.
pub const MAX_RECORD_BYTES: u32 = 128 << 10;

/// Greatest payload of a `DEVICE_BEGIN` frame.
pub const MAX_BEGIN_BYTES: u32 = 4 << 10;

/// Length of what precedes the bytes in a `DEVICE_DATA` frame.
pub const DATA_PREFIX: usize = 16;

/// Length of what precedes the bytes in a `CONFIG` or `INTERRUPTS` frame.
pub const RECORD_PREFIX: usize = 8;

/// Length of the payload of a `DEVICE_END` frame.
pub const END_SIZE: usize = 24;

/// Why a device's frame is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// A payload of another length than its type has, or reserved bytes not zero.
    #[error("a payload of {length} bytes is malformed")]
    Malformed {
        /// Its length.
        length: usize,
    },
    /// An index beyond any device.
    #[error("there is no device {0}, a migration has at most {MAX_DEVICES}")]
    Device(u32),
    /// Neither pre-copy nor stop-copy.
    #[error("data of device {device} in unknown phase {phase}")]
    Phase {
        /// The device's index.
        device: u32,
        /// The number.
        phase: u8,
    },
    /// The offset leaves no room for the bytes.
    #[error("data of device {device} at {offset} goes beyond the last offset")]
    Offset {
        /// The device's index.
        device: u32,
        /// The offset.
        offset: u64,
    },
    /// The metadata of a begin.
    #[error("the device's metadata cannot be taken")]
    Metadata(#[from] MessageError),
}

/// When the source read a piece of a device's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// While the device ran.
    PreCopy,
    /// After it stopped.
    StopCopy,
}

impl Phase {
    const PRE_COPY: u8 = 1;
    const STOP_COPY: u8 = 2;
}

/// A device's data begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceBegin {
    /// The device's index, under [`MAX_DEVICES`].
    pub device: u32,
    /// How often its data began before: 0 at first, more after the guest reset it.
    /// Everything of an earlier attempt is void. Absent in the stream: 0.
    pub attempt: u32,
    /// What it is; as in the `Hello`, repeated so that a saved stream explains itself.
    pub identity: DeviceIdentity,
    /// About how many bytes will come, where the device says. Absent: not known.
    pub expected_bytes: Option<u64>,
}

impl DeviceBegin {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, DeviceError> {
        Ok(self.to_bytes()?)
    }

    /// Reads a payload.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Metadata`] and [`DeviceError::Device`].
    pub fn decode(payload: &[u8]) -> Result<Self, DeviceError> {
        let begin = Self::from_bytes(payload)?;
        check_device(begin.device)?;
        Ok(begin)
    }
}

impl Record for DeviceBegin {
    const NAME: &'static str = "device begin";
    const TAGS: &'static [u16] = &[1, 2, 3, 4];

    fn write(&self, w: &mut RecordWriter) -> Result<(), MessageError> {
        w.u32(1, self.device);
        w.u32(2, self.attempt);
        w.record(3, &self.identity)?;
        w.optional_u64(4, self.expected_bytes);
        Ok(())
    }

    fn read(r: &Reader<'_>) -> Result<Self, MessageError> {
        Ok(Self {
            device: r.u32(1)?,
            attempt: r.optional_u32(2)?.unwrap_or(0),
            identity: r.record(3)?,
            expected_bytes: r.optional_u64(4)?,
        })
    }

    fn broken_rule(&self) -> Option<&'static str> {
        (self.device as usize >= MAX_DEVICES).then_some("the index is beyond any device")
    }
}

/// A piece of a device's data, in the order in which the device gave it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DeviceData<'a> {
    /// The device's index, under [`MAX_DEVICES`].
    pub device: u32,
    /// When it was read.
    pub phase: Phase,
    /// Bytes of this device, in this attempt, before these.
    pub offset: u64,
    /// The last byte ends a transaction of a v1 source. A transaction longer than a
    /// frame goes in several, the flag on the last.
    pub ends_transaction: bool,
    /// At most [`MAX_DATA_BYTES`], and opaque.
    pub bytes: &'a [u8],
}

impl<'a> DeviceData<'a> {
    pub(crate) fn prefix(&self) -> Result<[u8; DATA_PREFIX], DeviceError> {
        self.check()?;
        let phase = match self.phase {
            Phase::PreCopy => Phase::PRE_COPY,
            Phase::StopCopy => Phase::STOP_COPY,
        };
        Ok(join(&[
            &self.device.to_le_bytes(),
            &[phase, 0, 0, 0],
            &self.offset.to_le_bytes(),
        ]))
    }

    /// Reads a payload; the flag is in the frame's header. Who reads the bytes straight
    /// to where they belong gives the first [`DATA_PREFIX`] alone.
    ///
    /// # Errors
    ///
    /// Every [`DeviceError`] but that of metadata.
    pub fn decode(
        payload: &'a [u8],
        ends_transaction: bool,
    ) -> Result<Self, DeviceError> {
        let malformed = DeviceError::Malformed { length: payload.len() };
        let fields = || {
            let [phase, reserved @ ..] = array::<4>(payload, 4)?;
            let (device, offset) = (u32_at(payload, 0)?, u64_at(payload, 8)?);
            Some((device, phase, reserved, offset, payload.get(DATA_PREFIX..)?))
        };
        let Some((device, phase, [0, 0, 0], offset, bytes)) = fields() else {
            return Err(malformed);
        };
        let phase = match phase {
            Phase::PRE_COPY => Phase::PreCopy,
            Phase::STOP_COPY => Phase::StopCopy,
            phase => return Err(DeviceError::Phase { device, phase }),
        };
        let data = Self { device, phase, offset, ends_transaction, bytes };
        data.check()?;
        Ok(data)
    }

    fn check(&self) -> Result<(), DeviceError> {
        let Self { device, offset, bytes, .. } = *self;
        check_device(device)?;
        match offset.checked_add(bytes.len() as u64) {
            Some(_) => Ok(()),
            None => Err(DeviceError::Offset { device, offset }),
        }
    }
}

impl fmt::Debug for DeviceData<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceData")
            .field("device", &self.device)
            .field("phase", &self.phase)
            .field("offset", &self.offset)
            .field("ends_transaction", &self.ends_transaction)
            .field("bytes", &Bulk(self.bytes))
            .finish()
    }
}

/// A device's data is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceEnd {
    /// The device's index, under [`MAX_DEVICES`].
    pub device: u32,
    /// Bytes of the last attempt, all phases together.
    pub length: u64,
    /// Their CRC32C, [`Crc::value`](crate::Crc::value).
    pub crc: u32,
}

impl DeviceEnd {
    pub(crate) fn encode(&self) -> Result<[u8; END_SIZE], DeviceError> {
        check_device(self.device)?;
        Ok(join(&[
            &self.device.to_le_bytes(),
            &[0; 4],
            &self.length.to_le_bytes(),
            &self.crc.to_le_bytes(),
        ]))
    }

    /// Reads a payload.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Malformed`] and [`DeviceError::Device`].
    pub fn decode(payload: &[u8]) -> Result<Self, DeviceError> {
        let malformed = DeviceError::Malformed { length: payload.len() };
        let payload: &[u8; END_SIZE] =
            payload.try_into().map_err(|_| malformed.clone())?;
        let fields = || {
            let reserved = (u32_at(payload, 4)?, u32_at(payload, 20)?);
            let end = Self {
                device: u32_at(payload, 0)?,
                length: u64_at(payload, 8)?,
                crc: u32_at(payload, 16)?,
            };
            (reserved == (0, 0)).then_some(end)
        };
        let end = fields().ok_or(malformed)?;
        check_device(end.device)?;
        Ok(end)
    }
}

/// What the VMM keeps for a device: its config space, or its interrupts. The bytes
/// are the VMM's; `schema` is theirs too, and not a version of this stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DeviceRecord<'a> {
    /// The device's index, under [`MAX_DEVICES`].
    pub device: u32,
    /// Version of the layout of `bytes`.
    pub schema: u32,
    /// At most [`MAX_RECORD_BYTES`].
    pub bytes: &'a [u8],
}

impl<'a> DeviceRecord<'a> {
    pub(crate) fn prefix(&self) -> Result<[u8; RECORD_PREFIX], DeviceError> {
        check_device(self.device)?;
        Ok(join(&[&self.device.to_le_bytes(), &self.schema.to_le_bytes()]))
    }

    /// Reads a payload.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Malformed`] and [`DeviceError::Device`].
    pub fn decode(payload: &'a [u8]) -> Result<Self, DeviceError> {
        let fields = || {
            let (device, schema) = (u32_at(payload, 0)?, u32_at(payload, 4)?);
            Some(Self { device, schema, bytes: payload.get(RECORD_PREFIX..)? })
        };
        let malformed = DeviceError::Malformed { length: payload.len() };
        let record = fields().ok_or(malformed)?;
        check_device(record.device)?;
        Ok(record)
    }
}

impl fmt::Debug for DeviceRecord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceRecord")
            .field("device", &self.device)
            .field("schema", &self.schema)
            .field("bytes", &Bulk(self.bytes))
            .finish()
    }
}

fn check_device(device: u32) -> Result<(), DeviceError> {
    if (device as usize) < MAX_DEVICES {
        Ok(())
    } else {
        Err(DeviceError::Device(device))
    }
}
