//! Small metadata as fields: tag, length, value.
//!
//! The rule that lets it grow: a field that is absent means a stated default, one
//! that is not known is skipped, and one that must not be skipped has bit 15 of its
//! tag set. Fields are in ascending order of their numbers, each at most once, so
//! there is one way to write a set of them and nothing to remember while reading.
//!
//! ```text
//! 0     2         6
//! | tag | length  | value ... |      tag: bit 15 critical, bits 0..=14 the number
//!
//! list: | count u32 | length u32, item ... | length u32, item ... |
//! ```
//!
//! Integers are little-endian and of exactly their size; text is UTF-8 without
//! control characters, since it ends up on somebody's terminal. A value may be a set
//! of fields again; how deep is written in the code that reads it, never in the data.

use std::str;

use crate::bytes::{array, u16_at, u32_at};

/// The bit of a tag that forbids to skip the field.
pub const CRITICAL: u16 = 1 << 15;

/// Most fields in one set.
pub const MAX_FIELDS: usize = 64;

/// Length of a field's tag and length.
pub const FIELD_HEAD: usize = 6;

/// Why a set of fields, or one field in it, is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlvError {
    /// A field, list or item claims more bytes than there are.
    #[error("field {tag} ends before its length")]
    Truncated {
        /// The field's number; 0 where the bytes end before it.
        tag: u16,
    },
    /// A field twice, or not in ascending order.
    #[error("field {tag} follows field {previous}")]
    Order {
        /// The field's number.
        tag: u16,
        /// The number of the one in front of it.
        previous: u16,
    },
    /// More fields than [`MAX_FIELDS`].
    #[error("more than {MAX_FIELDS} fields")]
    TooManyFields,
    /// A field that must be understood and is not.
    #[error("field {tag} is critical and not known")]
    UnknownCritical {
        /// The field's number.
        tag: u16,
    },
    /// A field without which the rest means nothing.
    #[error("field {tag} is missing")]
    Missing {
        /// The field's number.
        tag: u16,
    },
    /// A value of another size than its type.
    #[error("field {tag} has {found} bytes instead of {expected}")]
    Size {
        /// The field's number.
        tag: u16,
        /// The size of its type.
        expected: usize,
        /// The size it has.
        found: usize,
    },
    /// Text or bytes over their limit.
    #[error("field {tag} of {length} bytes is over its limit of {limit}")]
    TooLong {
        /// The field's number.
        tag: u16,
        /// Its length.
        length: usize,
        /// The greatest one.
        limit: usize,
    },
    /// A list over its limit.
    #[error("field {tag} with {count} items is over its limit of {limit}")]
    TooManyItems {
        /// The field's number.
        tag: u16,
        /// Its items.
        count: usize,
        /// The most.
        limit: usize,
    },
    /// Text that is not UTF-8, or has control characters.
    #[error("field {tag} is not plain text")]
    Text {
        /// The field's number.
        tag: u16,
    },
    /// A list goes on after its last item.
    #[error("field {tag} goes on after its last item")]
    Trailing {
        /// The field's number.
        tag: u16,
    },
}

/// A set of fields whose structure was checked.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Checks the structure of a whole set. `known` are the numbers that the reader
    /// understands; others are skipped, unless they are critical.
    ///
    /// # Errors
    ///
    /// Everything that can be wrong before a value is looked at.
    pub fn parse(bytes: &'a [u8], known: &[u16]) -> Result<Self, TlvError> {
        let mut rest = bytes;
        let mut previous = None;
        for _ in 0..MAX_FIELDS {
            if rest.is_empty() {
                return Ok(Self { bytes });
            }
            let (tag, _, after) = split_field(rest)?;
            let number = tag & !CRITICAL;
            if let Some(previous) = previous.filter(|previous| *previous >= number) {
                return Err(TlvError::Order { tag: number, previous });
            }
            if tag & CRITICAL != 0 && !known.contains(&number) {
                return Err(TlvError::UnknownCritical { tag: number });
            }
            previous = Some(number);
            rest = after;
        }
        if rest.is_empty() { Ok(Self { bytes }) } else { Err(TlvError::TooManyFields) }
    }

    /// The value of a field, or `None` if it is absent.
    #[must_use]
    pub fn get(&self, tag: u16) -> Option<&'a [u8]> {
        let mut rest = self.bytes;
        while let Ok((found, value, after)) = split_field(rest) {
            if found & !CRITICAL == tag {
                return Some(value);
            }
            rest = after;
        }
        None
    }

    /// A value of exactly `N` bytes.
    ///
    /// # Errors
    ///
    /// [`TlvError::Size`].
    pub fn array<const N: usize>(&self, tag: u16) -> Result<Option<[u8; N]>, TlvError> {
        let Some(value) = self.get(tag) else { return Ok(None) };
        let size = TlvError::Size { tag, expected: N, found: value.len() };
        value.try_into().map(Some).map_err(|_| size)
    }

    /// A value of one byte.
    ///
    /// # Errors
    ///
    /// [`TlvError::Size`].
    pub fn u8(&self, tag: u16) -> Result<Option<u8>, TlvError> {
        Ok(self.array(tag)?.map(u8::from_le_bytes))
    }

    /// A value of two bytes.
    ///
    /// # Errors
    ///
    /// [`TlvError::Size`].
    pub fn u16(&self, tag: u16) -> Result<Option<u16>, TlvError> {
        Ok(self.array(tag)?.map(u16::from_le_bytes))
    }

    /// A value of four bytes.
    ///
    /// # Errors
    ///
    /// [`TlvError::Size`].
    pub fn u32(&self, tag: u16) -> Result<Option<u32>, TlvError> {
        Ok(self.array(tag)?.map(u32::from_le_bytes))
    }

    /// A value of eight bytes.
    ///
    /// # Errors
    ///
    /// [`TlvError::Size`].
    pub fn u64(&self, tag: u16) -> Result<Option<u64>, TlvError> {
        Ok(self.array(tag)?.map(u64::from_le_bytes))
    }

    /// Bytes, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`TlvError::TooLong`].
    pub fn bytes(&self, tag: u16, limit: usize) -> Result<Option<&'a [u8]>, TlvError> {
        match self.get(tag) {
            Some(value) if value.len() > limit => {
                Err(TlvError::TooLong { tag, length: value.len(), limit })
            }
            value => Ok(value),
        }
    }

    /// Text, at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// [`TlvError::TooLong`] and [`TlvError::Text`].
    pub fn string(&self, tag: u16, limit: usize) -> Result<Option<&'a str>, TlvError> {
        let Some(value) = self.bytes(tag, limit)? else { return Ok(None) };
        let text = str::from_utf8(value).map_err(|_| TlvError::Text { tag })?;
        check_text(tag, text, limit)?;
        Ok(Some(text))
    }

    /// The items of a list, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`TlvError::TooManyItems`] before anything else is looked at, then
    /// [`TlvError::Truncated`] and [`TlvError::Trailing`].
    pub fn list(&self, tag: u16, limit: usize) -> Result<Option<List<'a>>, TlvError> {
        let Some(value) = self.get(tag) else { return Ok(None) };
        let truncated = TlvError::Truncated { tag };
        let count = u32_at(value, 0).ok_or(truncated)? as usize;
        if count > limit {
            return Err(TlvError::TooManyItems { tag, count, limit });
        }
        let items = value.get(4..).ok_or(truncated)?;
        let mut rest = items;
        for _ in 0..count {
            (_, rest) = split_item(rest).ok_or(truncated)?;
        }
        if !rest.is_empty() {
            return Err(TlvError::Trailing { tag });
        }
        Ok(Some(List { items }))
    }
}

/// The items of a list whose structure was checked.
#[derive(Debug, Clone, Copy)]
pub struct List<'a> {
    items: &'a [u8],
}

impl<'a> Iterator for List<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (item, rest) = split_item(self.items)?;
        self.items = rest;
        Some(item)
    }
}

/// Writes a set of fields, which are to be given in ascending order.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    last: Option<u16>,
}

impl Writer {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A field of any bytes; `tag` may have [`CRITICAL`] set. All other methods end
    /// here.
    pub fn bytes(&mut self, tag: u16, value: &[u8]) {
        let number = tag & !CRITICAL;
        debug_assert!(self.last.is_none_or(|last| last < number), "tags ascend");
        self.last = Some(number);
        self.bytes.extend_from_slice(&tag.to_le_bytes());
        self.length(value.len());
        self.bytes.extend_from_slice(value);
    }

    /// A field of text.
    ///
    /// # Errors
    ///
    /// [`TlvError::TooLong`] and [`TlvError::Text`], as the reader's.
    pub fn string(&mut self, tag: u16, text: &str, limit: usize) -> Result<(), TlvError> {
        check_text(tag & !CRITICAL, text, limit)?;
        self.bytes(tag, text.as_bytes());
        Ok(())
    }

    /// A field of one byte.
    pub fn u8(&mut self, tag: u16, value: u8) {
        self.bytes(tag, &value.to_le_bytes());
    }

    /// A field of two bytes.
    pub fn u16(&mut self, tag: u16, value: u16) {
        self.bytes(tag, &value.to_le_bytes());
    }

    /// A field of four bytes.
    pub fn u32(&mut self, tag: u16, value: u32) {
        self.bytes(tag, &value.to_le_bytes());
    }

    /// A field of eight bytes.
    pub fn u64(&mut self, tag: u16, value: u64) {
        self.bytes(tag, &value.to_le_bytes());
    }

    /// A list of items.
    ///
    /// # Errors
    ///
    /// [`TlvError::TooManyItems`], as the reader's.
    pub fn list(
        &mut self,
        tag: u16,
        items: &[Vec<u8>],
        limit: usize,
    ) -> Result<(), TlvError> {
        let count = items.len();
        if count > limit {
            return Err(TlvError::TooManyItems { tag: tag & !CRITICAL, count, limit });
        }
        let mut value = Self::new();
        value.length(count);
        for item in items {
            value.length(item.len());
            value.bytes.extend_from_slice(item);
        }
        self.bytes(tag, &value.bytes);
        Ok(())
    }

    /// The set's bytes.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    /// Every value has a ceiling far below `u32::MAX`; one that had none would be
    /// refused by the ceiling of its frame.
    fn length(&mut self, length: usize) {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&length.to_le_bytes());
    }
}

/// Makes any text fit a field: control characters become spaces, and what is over
/// `limit` bytes is cut off between characters.
///
/// ```
/// # use vfio_migrate_wire as wire;
/// assert_eq!(wire::tlv::plain_text("no\tmem\u{f3}ry", 7), "no mem");
/// ```
#[must_use]
pub fn plain_text(text: &str, limit: usize) -> String {
    let text = &text[..text.floor_char_boundary(limit)];
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn check_text(tag: u16, text: &str, limit: usize) -> Result<(), TlvError> {
    if text.len() > limit {
        return Err(TlvError::TooLong { tag, length: text.len(), limit });
    }
    if text.chars().any(char::is_control) {
        return Err(TlvError::Text { tag });
    }
    Ok(())
}

/// The first field of `bytes`: tag, value, and what follows it.
fn split_field(bytes: &[u8]) -> Result<(u16, &[u8], &[u8]), TlvError> {
    let tag = u16_at(bytes, 0).ok_or(TlvError::Truncated { tag: 0 })?;
    let truncated = TlvError::Truncated { tag: tag & !CRITICAL };
    let length = array::<4>(bytes, 2).map(u32::from_le_bytes).ok_or(truncated)?;
    let value = bytes.get(FIELD_HEAD..).ok_or(truncated)?;
    let (value, rest) = value.split_at_checked(length as usize).ok_or(truncated)?;
    Ok((tag, value, rest))
}

fn split_item(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32_at(bytes, 0)? as usize;
    bytes.get(4..)?.split_at_checked(length)
}
