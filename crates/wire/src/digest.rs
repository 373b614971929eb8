//! Checksums: of a frame, of a channel, of a device's bytes.
//!
//! All of them are CRC32C (Castagnoli, RFC 3720 appendix B.4), which processors
//! compute at memory speed. It finds broken links and broken software; it is no
//! defence against an attacker, that is what TLS is for.

use std::fmt;

use crate::bytes::{join, u32_at, u64_at};
use crate::frame::Header;

/// A CRC32C that grows with what is added to it.
///
/// ```
/// # use vfio_migrate_wire as wire;
/// let mut crc = wire::Crc::new();
/// crc.add(b"1234");
/// crc.add(b"56789");
/// assert_eq!(crc.value(), 0xe306_9283); // the check value of CRC-32C
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Crc(u32);

impl Crc {
    /// The checksum of no bytes.
    #[must_use]
    pub const fn new() -> Self {
        Self(0)
    }

    /// The checksum of one slice.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(crc32c::crc32c(bytes))
    }

    /// Adds bytes at the end.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0 = crc32c::crc32c_append(self.0, bytes);
    }

    /// The checksum of what was added so far.
    #[must_use]
    pub const fn value(self) -> u32 {
        self.0
    }
}

/// What went over one channel so far; both sides keep one, and `CHANNEL_END`
/// carries the sender's.
///
/// The checksum runs over the 24-byte headers in order. Each of those holds the
/// checksum of its payload, so two equal digests mean that the same frames arrived
/// in the same order, at a cost that does not depend on how much data there was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChannelDigest {
    /// Frames, the closing `CHANNEL_END` not counted.
    pub frames: u64,
    /// Bytes of their payloads, headers not counted.
    pub bytes: u64,
    /// Checksum of their headers as sent.
    pub crc: Crc,
}

impl ChannelDigest {
    /// Length of the payload of a `CHANNEL_END` frame, in bytes.
    pub const SIZE: usize = 24;

    /// Counts one frame.
    pub fn add(&mut self, header: &Header) {
        self.frames = self.frames.saturating_add(1);
        self.bytes = self.bytes.saturating_add(u64::from(header.length));
        self.crc.add(&header.encode());
    }

    pub(crate) fn encode(&self) -> [u8; Self::SIZE] {
        join(&[
            &self.frames.to_le_bytes(),
            &self.bytes.to_le_bytes(),
            &self.crc.value().to_le_bytes(),
        ])
    }

    /// Reads a payload of exactly [`Self::SIZE`] bytes with its reserved bytes zero.
    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        if payload.len() != Self::SIZE || u32_at(payload, 20)? != 0 {
            return None;
        }
        Some(Self {
            frames: u64_at(payload, 0)?,
            bytes: u64_at(payload, 8)?,
            crc: Crc(u32_at(payload, 16)?),
        })
    }
}

impl fmt::Display for ChannelDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { frames, bytes, crc } = self;
        write!(f, "{frames} frames, {bytes} bytes, crc {:08x}", crc.value())
    }
}

/// Bulk bytes in a `Debug` text: how many, and their checksum, never the bytes.
pub(crate) struct Bulk<'a>(pub(crate) &'a [u8]);

impl fmt::Debug for Bulk<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, crc {:08x}", self.0.len(), Crc::of(self.0).value())
    }
}
