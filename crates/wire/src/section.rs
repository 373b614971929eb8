//! Sections of the VMM's own state: CPUs, interrupt controller, emulated devices.
//!
//! The bytes are the VMM's. A section goes as a begin that names it and pieces of at
//! most [`MAX_DATA_BYTES`], the last of which says so; so it may be longer than a
//! frame, up to [`MAX_SECTION_BYTES`].
//!
//! ```text
//! SECTION_BEGIN   metadata fields                            -> SectionInfo
//!
//!                 0         4      5   8        16
//! SECTION_DATA    | section | last | 0 | offset | bytes ...  -> SectionData
//! ```
//!
//! [`pieces`] cuts a section, an [`Assembler`] puts it together.

use std::fmt;

use crate::bytes::{array, join, u32_at, u64_at};
use crate::digest::Bulk;
use crate::message::record::{Reader, Record, RecordWriter};
use crate::message::{MAX_NAME_BYTES, MAX_SECTIONS, MessageError};

/// Most bytes of a section in one frame.
pub const MAX_DATA_BYTES: u32 = 1 << 20;

/// Most bytes of a whole section.
pub const MAX_SECTION_BYTES: u64 = 64 << 20;

/// Greatest payload of a `SECTION_BEGIN` frame.
pub const MAX_INFO_BYTES: u32 = 1 << 10;

/// Length of what precedes the bytes in a `SECTION_DATA` frame.
pub const DATA_PREFIX: usize = 16;

/// Why a section's frame is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SectionError {
    /// A payload too short, or reserved bytes that are not zero.
    #[error("a payload of {length} bytes is malformed")]
    Malformed {
        /// Its length.
        length: usize,
    },
    /// A piece of another section than the one that began.
    #[error("a piece of section {found} where section {expected} is awaited")]
    Other {
        /// The section that began.
        expected: u32,
        /// The one in the frame.
        found: u32,
    },
    /// A piece is missing or doubled.
    #[error("a piece of section {section} begins at {found} instead of {expected}")]
    Offset {
        /// The section's index.
        section: u32,
        /// Bytes that arrived.
        expected: u64,
        /// The offset in the frame.
        found: u64,
    },
    /// Longer than the reader takes.
    #[error("section {section} is longer than {limit} bytes")]
    TooLong {
        /// The section's index.
        section: u32,
        /// The reader's limit.
        limit: u64,
    },
    /// A piece follows the last one.
    #[error("section {section} goes on after its last piece")]
    AfterLast {
        /// The section's index.
        section: u32,
    },
    /// The metadata of a begin.
    #[error("the section's metadata cannot be taken")]
    Metadata(#[from] MessageError),
}

/// When a section is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SectionOrder {
    /// Before the devices' data.
    BeforeDevices,
    /// After it.
    AfterDevices,
}

impl SectionOrder {
    const BEFORE: u8 = 1;
    const AFTER: u8 = 2;
}

/// What a section is called, and in which version its bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionInfo {
    /// Its place in [`Hello::sections`](crate::message::Hello), from 0, under
    /// [`MAX_SECTIONS`].
    pub section: u32,
    /// The VMM's name for it, 1 to [`MAX_NAME_BYTES`] bytes.
    pub name: String,
    /// Version of its schema, which is neither the container's nor any device's.
    pub version: u32,
    /// When it is loaded.
    pub order: SectionOrder,
}

impl SectionInfo {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, SectionError> {
        Ok(self.to_bytes()?)
    }

    /// Reads a payload.
    ///
    /// # Errors
    ///
    /// [`SectionError::Metadata`].
    pub fn decode(payload: &[u8]) -> Result<Self, SectionError> {
        Ok(Self::from_bytes(payload)?)
    }
}

impl Record for SectionInfo {
    const NAME: &'static str = "section";
    const TAGS: &'static [u16] = &[1, 2, 3, 4];

    fn write(&self, w: &mut RecordWriter) -> Result<(), MessageError> {
        w.u32(1, self.section);
        w.string(2, &self.name, MAX_NAME_BYTES)?;
        w.u32(3, self.version);
        w.u8(
            4,
            match self.order {
                SectionOrder::BeforeDevices => SectionOrder::BEFORE,
                SectionOrder::AfterDevices => SectionOrder::AFTER,
            },
        );
        Ok(())
    }

    fn read(r: &Reader<'_>) -> Result<Self, MessageError> {
        Ok(Self {
            section: r.u32(1)?,
            name: r.string(2, MAX_NAME_BYTES)?,
            version: r.u32(3)?,
            order: match r.u8(4)? {
                SectionOrder::BEFORE => SectionOrder::BeforeDevices,
                SectionOrder::AFTER => SectionOrder::AfterDevices,
                _ => return Err(r.invalid("the order is neither before nor after")),
            },
        })
    }

    fn broken_rule(&self) -> Option<&'static str> {
        if self.section as usize >= MAX_SECTIONS {
            return Some("the index is beyond any section");
        }
        self.name.is_empty().then_some("the name is empty")
    }
}

/// A piece of a section.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SectionData<'a> {
    /// The section's index.
    pub section: u32,
    /// Whether the section ends with it.
    pub last: bool,
    /// Bytes of the section before these.
    pub offset: u64,
    /// At most [`MAX_DATA_BYTES`].
    pub bytes: &'a [u8],
}

impl<'a> SectionData<'a> {
    pub(crate) fn prefix(&self) -> [u8; DATA_PREFIX] {
        join(&[
            &self.section.to_le_bytes(),
            &[u8::from(self.last), 0, 0, 0],
            &self.offset.to_le_bytes(),
        ])
    }

    /// Reads a payload.
    ///
    /// # Errors
    ///
    /// [`SectionError::Malformed`].
    pub fn decode(payload: &'a [u8]) -> Result<Self, SectionError> {
        let fields = || {
            let last = match array::<4>(payload, 4)? {
                [0, 0, 0, 0] => false,
                [1, 0, 0, 0] => true,
                _ => return None,
            };
            let (section, offset) = (u32_at(payload, 0)?, u64_at(payload, 8)?);
            Some(Self { section, last, offset, bytes: payload.get(DATA_PREFIX..)? })
        };
        fields().ok_or(SectionError::Malformed { length: payload.len() })
    }
}

impl fmt::Debug for SectionData<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SectionData")
            .field("section", &self.section)
            .field("last", &self.last)
            .field("offset", &self.offset)
            .field("bytes", &Bulk(self.bytes))
            .finish()
    }
}

/// Cuts a section's bytes into pieces of at most [`MAX_DATA_BYTES`]; an empty
/// section is one empty piece.
pub fn pieces(section: u32, bytes: &[u8]) -> impl Iterator<Item = SectionData<'_>> {
    let size = MAX_DATA_BYTES as usize;
    let count = bytes.len().div_ceil(size).max(1);
    (0..count).map(move |i| {
        let start = i * size;
        let end = bytes.len().min(start + size);
        let bytes = bytes.get(start..end).unwrap_or(&[]);
        SectionData { section, last: i + 1 == count, offset: start as u64, bytes }
    })
}

/// Puts a section together again, and holds it whole: sections are small, and the
/// VMM's loader wants all of one.
#[derive(Debug)]
pub struct Assembler {
    info: SectionInfo,
    limit: u64,
    bytes: Vec<u8>,
    complete: bool,
}

impl Assembler {
    /// For a section that began. `limit` is what the reader is willing to hold, at
    /// most [`MAX_SECTION_BYTES`].
    #[must_use]
    pub fn new(info: SectionInfo, limit: u64) -> Self {
        let limit = limit.min(MAX_SECTION_BYTES);
        Self { info, limit, bytes: Vec::new(), complete: false }
    }

    /// Takes the next piece; `true` once it was the last.
    ///
    /// # Errors
    ///
    /// The piece is another section's, out of place, over the limit, or after the
    /// last. Nothing was taken of it.
    pub fn push(&mut self, piece: &SectionData<'_>) -> Result<bool, SectionError> {
        let section = self.info.section;
        if piece.section != section {
            let found = piece.section;
            return Err(SectionError::Other { expected: section, found });
        }
        if self.complete {
            return Err(SectionError::AfterLast { section });
        }
        let expected = self.bytes.len() as u64;
        if piece.offset != expected {
            let found = piece.offset;
            return Err(SectionError::Offset { section, expected, found });
        }
        if expected + piece.bytes.len() as u64 > self.limit {
            return Err(SectionError::TooLong { section, limit: self.limit });
        }
        self.bytes.extend_from_slice(piece.bytes);
        self.complete = piece.last;
        Ok(self.complete)
    }

    /// The section and its bytes, or `None` if the last piece has not arrived.
    #[must_use]
    pub fn finish(self) -> Option<(SectionInfo, Vec<u8>)> {
        self.complete.then_some((self.info, self.bytes))
    }
}
