//! The sending half: numbers and checksums frames, copies no bulk.

use crate::bytes::join;
use crate::device::{self, DeviceBegin, DeviceData, DeviceEnd, DeviceRecord};
use crate::digest::ChannelDigest;
use crate::frame::{Flags, FrameError, FrameType, Header, ROUND_END_SIZE};
use crate::memory::RunTable;
use crate::message::Message;
use crate::preamble::Role;
use crate::section::{self, SectionData, SectionInfo};

/// The frames of one direction of one connection, in order.
///
/// For bulk it returns what goes in front (header, and prefix where that is of fixed
/// size), and the caller writes that and its own buffers with one vectored write;
/// for everything small it returns the whole frame. A frame that was encoded has its
/// place in the sequence, so it must be sent.
#[derive(Debug)]
pub struct Encoder {
    channel: u32,
    digest: ChannelDigest,
}

impl Encoder {
    /// For a connection whose preamble has just been sent.
    #[must_use]
    pub fn new(role: Role) -> Self {
        Self { channel: role.channel(), digest: ChannelDigest::default() }
    }

    /// What was encoded so far.
    #[must_use]
    pub fn digest(&self) -> ChannelDigest {
        self.digest
    }

    /// The header for a payload that lies in several pieces.
    ///
    /// # Errors
    ///
    /// [`FrameError::TooLong`]; the frame then has no place in the sequence.
    pub fn header(
        &mut self,
        kind: FrameType,
        flags: Flags,
        parts: &[&[u8]],
    ) -> Result<[u8; Header::SIZE], FrameError> {
        let ceiling = kind.ceiling();
        let total = parts.iter().fold(0u64, |sum, part| sum + part.len() as u64);
        let length = u32::try_from(total).ok().filter(|length| *length <= ceiling);
        let Some(length) = length else {
            return Err(FrameError::TooLong { kind, length: total, ceiling });
        };
        let (channel, sequence) = (self.channel, self.digest.frames);
        let mut header = Header { kind, flags, channel, sequence, length, crc: 0 };
        let mut crc = header.start_crc();
        parts.iter().for_each(|part| crc.add(part));
        header.crc = crc.value();
        self.digest.add(&header);
        Ok(header.encode())
    }

    /// A whole `CONTROL` frame.
    ///
    /// # Errors
    ///
    /// The message is outside its limits, or too long as a whole.
    pub fn message(&mut self, message: &Message) -> Result<Vec<u8>, FrameError> {
        self.whole(FrameType::CONTROL, &message.encode()?)
    }

    /// The header of a `MEMORY_RUNS` frame; the table's prefix and `data`, the pages
    /// of its data runs one after the other, follow it.
    ///
    /// # Errors
    ///
    /// [`FrameError::Memory`] if `data` has another length than the table asks for.
    pub fn memory(
        &mut self,
        table: &RunTable,
        data: &[u8],
    ) -> Result<[u8; Header::SIZE], FrameError> {
        table.check_data(data.len())?;
        self.header(FrameType::MEMORY_RUNS, Flags::CRITICAL, &[table.prefix(), data])
    }

    /// A whole `DEVICE_BEGIN` frame.
    ///
    /// # Errors
    ///
    /// The identity is outside its limits.
    pub fn device_begin(&mut self, begin: &DeviceBegin) -> Result<Vec<u8>, FrameError> {
        self.whole(FrameType::DEVICE_BEGIN, &begin.encode()?)
    }

    /// Header and prefix of a `DEVICE_DATA` frame; `data.bytes` follow them.
    ///
    /// # Errors
    ///
    /// [`FrameError::TooLong`] over [`device::MAX_DATA_BYTES`], or an index of a
    /// device that cannot be.
    pub fn device_data(
        &mut self,
        data: &DeviceData<'_>,
    ) -> Result<[u8; Header::SIZE + device::DATA_PREFIX], FrameError> {
        let prefix = data.prefix()?;
        let flags = if data.ends_transaction {
            Flags::CRITICAL.union(Flags::ENDS_TRANSACTION)
        } else {
            Flags::CRITICAL
        };
        let header =
            self.header(FrameType::DEVICE_DATA, flags, &[&prefix, data.bytes])?;
        Ok(join(&[&header, &prefix]))
    }

    /// A whole `DEVICE_END` frame.
    ///
    /// # Errors
    ///
    /// An index of a device that cannot be.
    pub fn device_end(&mut self, end: &DeviceEnd) -> Result<Vec<u8>, FrameError> {
        self.whole(FrameType::DEVICE_END, &end.encode()?)
    }

    /// Header and prefix of a `CONFIG` frame; `record.bytes` follow them.
    ///
    /// # Errors
    ///
    /// [`FrameError::TooLong`] over [`device::MAX_RECORD_BYTES`], or an index of a
    /// device that cannot be.
    pub fn config(
        &mut self,
        record: &DeviceRecord<'_>,
    ) -> Result<[u8; Header::SIZE + device::RECORD_PREFIX], FrameError> {
        self.record(FrameType::CONFIG, record)
    }

    /// Header and prefix of an `INTERRUPTS` frame; `record.bytes` follow them.
    ///
    /// # Errors
    ///
    /// As [`config`](Self::config).
    pub fn interrupts(
        &mut self,
        record: &DeviceRecord<'_>,
    ) -> Result<[u8; Header::SIZE + device::RECORD_PREFIX], FrameError> {
        self.record(FrameType::INTERRUPTS, record)
    }

    /// A whole `SECTION_BEGIN` frame.
    ///
    /// # Errors
    ///
    /// The name is outside its limits.
    pub fn section_begin(&mut self, info: &SectionInfo) -> Result<Vec<u8>, FrameError> {
        self.whole(FrameType::SECTION_BEGIN, &info.encode()?)
    }

    /// Header and prefix of a `SECTION_DATA` frame; `data.bytes` follow them.
    ///
    /// # Errors
    ///
    /// [`FrameError::TooLong`] over [`section::MAX_DATA_BYTES`].
    pub fn section_data(
        &mut self,
        data: &SectionData<'_>,
    ) -> Result<[u8; Header::SIZE + section::DATA_PREFIX], FrameError> {
        let prefix = data.prefix();
        let parts = [&prefix[..], data.bytes];
        let header = self.header(FrameType::SECTION_DATA, Flags::CRITICAL, &parts)?;
        Ok(join(&[&header, &prefix]))
    }

    /// A whole `ROUND_END` frame.
    ///
    /// # Errors
    ///
    /// None with the ceilings as they are.
    pub fn round_end(&mut self, round: u32) -> Result<Vec<u8>, FrameError> {
        let payload: [u8; ROUND_END_SIZE] = join(&[&round.to_le_bytes()]);
        self.whole(FrameType::ROUND_END, &payload)
    }

    /// A whole `CHANNEL_END` frame with the digest of what precedes it. Nothing may
    /// follow.
    ///
    /// # Errors
    ///
    /// None with the ceilings as they are.
    pub fn channel_end(&mut self) -> Result<Vec<u8>, FrameError> {
        let payload = self.digest.encode();
        self.whole(FrameType::CHANNEL_END, &payload)
    }

    fn record(
        &mut self,
        kind: FrameType,
        record: &DeviceRecord<'_>,
    ) -> Result<[u8; Header::SIZE + device::RECORD_PREFIX], FrameError> {
        let prefix = record.prefix()?;
        let header = self.header(kind, Flags::CRITICAL, &[&prefix, record.bytes])?;
        Ok(join(&[&header, &prefix]))
    }

    fn whole(&mut self, kind: FrameType, payload: &[u8]) -> Result<Vec<u8>, FrameError> {
        let header = self.header(kind, Flags::CRITICAL, &[payload])?;
        Ok([&header[..], payload].concat())
    }
}
