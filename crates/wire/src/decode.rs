//! The receiving half: checks a header before its payload is read, and a payload
//! before anything is done with it.

use crate::bytes::u32_at;
use crate::device::{DeviceBegin, DeviceData, DeviceEnd, DeviceRecord};
use crate::digest::{ChannelDigest, Crc};
use crate::frame::{Flags, FrameError, FrameType, Header, ROUND_END_SIZE};
use crate::memory::MemoryRuns;
use crate::message::{Message, MessageError};
use crate::preamble::{PageSize, Role};
use crate::section::{SectionData, SectionInfo};

/// One frame that arrived whole and means something.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Frame<'a> {
    /// A control message.
    Message(Message),
    /// Runs of guest memory.
    Memory(MemoryRuns<'a>),
    /// A device's data begins, or begins again.
    DeviceBegin(DeviceBegin),
    /// A piece of a device's data.
    DeviceData(DeviceData<'a>),
    /// A device's data is complete.
    DeviceEnd(DeviceEnd),
    /// A device's config space as the guest sees it.
    Config(DeviceRecord<'a>),
    /// A device's interrupts: vectors, masks, pending ones.
    Interrupts(DeviceRecord<'a>),
    /// A section of the VMM's state begins.
    SectionBegin(SectionInfo),
    /// A piece of a section.
    SectionData(SectionData<'a>),
    /// A pre-copy round is complete on this channel.
    RoundEnd {
        /// Its number, from 1.
        round: u32,
    },
    /// The channel is complete; the digest was compared with what arrived.
    ChannelEnd(ChannelDigest),
    /// A frame that this side does not know and may ignore.
    Skipped(FrameType),
}

/// The frames of one direction of one connection, as they arrive.
///
/// For each frame: read [`Header::SIZE`] bytes and call [`header`](Self::header);
/// read the `length` that it allows; call [`payload`](Self::payload). Who reads bulk
/// straight to where it belongs computes the checksum from
/// [`Header::start_crc`] on and calls [`verify`](Self::verify) instead.
///
/// After an error the stream cannot be followed any further; every later call fails
/// or means nothing.
#[derive(Debug)]
pub struct Decoder {
    role: Role,
    page_size: PageSize,
    sequence: u64,
    received: ChannelDigest,
    ended: bool,
}

impl Decoder {
    /// For a connection whose preamble has just been read: its role, and the page
    /// size of the source's guest.
    #[must_use]
    pub fn new(role: Role, page_size: PageSize) -> Self {
        let received = ChannelDigest::default();
        Self { role, page_size, sequence: 0, received, ended: false }
    }

    /// What arrived and was verified so far.
    #[must_use]
    pub fn digest(&self) -> ChannelDigest {
        self.received
    }

    /// Whether `CHANNEL_END` has arrived.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Checks a header: the length is under the ceiling of its type, the frame is
    /// the next one of this connection, and its type may be here.
    ///
    /// # Errors
    ///
    /// Every [`FrameError`] that concerns the header alone.
    pub fn header(&mut self, bytes: &[u8; Header::SIZE]) -> Result<Header, FrameError> {
        let header = Header::decode(bytes);
        let Header { kind, flags, channel, sequence, length, .. } = header;
        let ceiling = kind.ceiling();
        if length > ceiling {
            return Err(FrameError::TooLong { kind, length: length.into(), ceiling });
        }
        let expected = self.role.channel();
        if channel != expected {
            return Err(FrameError::Channel { kind, expected, found: channel });
        }
        let expected = self.sequence;
        if sequence != expected {
            return Err(FrameError::Sequence { kind, expected, found: sequence });
        }
        if self.ended {
            return Err(FrameError::AfterEnd { kind });
        }
        if kind.name().is_none() {
            if flags.contains(Flags::CRITICAL) {
                return Err(FrameError::UnknownCritical { kind });
            }
        } else {
            let unknown = flags.unknown_for(kind);
            if unknown != 0 {
                return Err(FrameError::UnknownFlags { kind, unknown });
            }
            let message = kind == FrameType::CONTROL;
            let misplaced = match self.role {
                Role::Control => !message,
                Role::Data { .. } => message,
                Role::File => false,
            };
            if misplaced {
                return Err(FrameError::Misplaced { kind, channel });
            }
        }
        self.sequence += 1;
        Ok(header)
    }

    /// Checks a payload against its header's checksum, counts it, and reads it.
    ///
    /// # Errors
    ///
    /// [`FrameError::Length`], [`FrameError::Checksum`], and everything that can be
    /// wrong with a payload of its type.
    pub fn payload<'a>(
        &mut self,
        header: &Header,
        payload: &'a [u8],
    ) -> Result<Frame<'a>, FrameError> {
        let Header { kind, flags, length: expected, .. } = *header;
        let found = payload.len();
        if found as u64 != u64::from(expected) {
            return Err(FrameError::Length { kind, expected, found });
        }
        let mut crc = header.start_crc();
        crc.add(payload);
        let received = self.received;
        self.verify(header, crc)?;

        let malformed = FrameError::Malformed { kind, length: found };
        Ok(match kind {
            FrameType::CONTROL => match Message::decode(payload) {
                Ok(message) => Frame::Message(message),
                Err(MessageError::UnknownKind(_)) if !flags.contains(Flags::CRITICAL) => {
                    Frame::Skipped(kind)
                }
                Err(error) => return Err(error.into()),
            },
            FrameType::MEMORY_RUNS => {
                Frame::Memory(MemoryRuns::decode(payload, self.page_size)?)
            }
            FrameType::DEVICE_BEGIN => Frame::DeviceBegin(DeviceBegin::decode(payload)?),
            FrameType::DEVICE_DATA => {
                let ends = flags.contains(Flags::ENDS_TRANSACTION);
                Frame::DeviceData(DeviceData::decode(payload, ends)?)
            }
            FrameType::DEVICE_END => Frame::DeviceEnd(DeviceEnd::decode(payload)?),
            FrameType::CONFIG => Frame::Config(DeviceRecord::decode(payload)?),
            FrameType::INTERRUPTS => Frame::Interrupts(DeviceRecord::decode(payload)?),
            FrameType::SECTION_BEGIN => {
                Frame::SectionBegin(SectionInfo::decode(payload)?)
            }
            FrameType::SECTION_DATA => Frame::SectionData(SectionData::decode(payload)?),
            FrameType::ROUND_END => match (u32_at(payload, 0), u32_at(payload, 4)) {
                (Some(round), Some(0)) if found == ROUND_END_SIZE => {
                    Frame::RoundEnd { round }
                }
                _ => return Err(malformed),
            },
            FrameType::CHANNEL_END => {
                let sent = ChannelDigest::decode(payload).ok_or(malformed)?;
                if sent != received {
                    return Err(FrameError::Digest { sent, received });
                }
                self.ended = true;
                Frame::ChannelEnd(sent)
            }
            _ => Frame::Skipped(kind),
        })
    }

    /// Compares a checksum that the caller computed with the header's, and counts
    /// the frame. What was done with the payload before this returns `Ok` was done
    /// with bytes that nobody vouched for.
    ///
    /// # Errors
    ///
    /// [`FrameError::Checksum`].
    pub fn verify(&mut self, header: &Header, crc: Crc) -> Result<(), FrameError> {
        let Header { kind, sequence, crc: found, .. } = *header;
        let computed = crc.value();
        if found != computed {
            return Err(FrameError::Checksum { kind, sequence, found, computed });
        }
        self.received.add(header);
        Ok(())
    }

    /// The sequence number that the next header is to have.
    pub(crate) fn expected(&self) -> u64 {
        self.sequence
    }

    /// What a frame that does not belong here means, for somebody who only looks. Its
    /// checksum must be right; nothing is counted.
    pub(crate) fn aside<'a>(
        &self,
        header: &Header,
        payload: &'a [u8],
    ) -> Option<Frame<'a>> {
        Self::new(self.role, self.page_size).payload(header, payload).ok()
    }

    /// Goes on behind a frame that is refused, for somebody who only looks: counts it
    /// as the sender has, and expects `next` to follow.
    pub(crate) fn step_over(&mut self, header: &Header, next: u64) {
        self.sequence = next;
        self.received.add(header);
    }
}
