//! Addresses, ranges of them, and page sizes.

use std::fmt;

/// An I/O virtual address: what a device puts on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Iova(pub u64);

impl From<u64> for Iova {
    fn from(address: u64) -> Iova {
        Iova(address)
    }
}

impl fmt::Display for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A range of I/O virtual addresses, in bytes: never empty, and its exclusive end is
/// a `u64`.
///
/// So the last byte of the address space is in no range. That is the kernel's rule
/// too: `VFIO_DEVICE_FEATURE_DMA_LOGGING_START` and `_REPORT` answer `EOVERFLOW` when
/// iova + length is exactly 2^64. An empty range some drivers accept there; here it
/// is refused, since it says nothing and is a sign of a mistake.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IovaRange {
    start: u64,
    end: u64,
}

impl IovaRange {
    /// The `length` bytes from `start` on.
    ///
    /// # Errors
    ///
    /// [`RangeError`] when `length` is 0 or the exclusive end is past `u64::MAX`.
    pub const fn new(start: u64, length: u64) -> Result<IovaRange, RangeError> {
        if length == 0 {
            return Err(RangeError::Empty { start });
        }
        match start.checked_add(length) {
            Some(end) => Ok(IovaRange { start, end }),
            None => Err(RangeError::Overflow { start, length }),
        }
    }

    /// The range from `start` up to, but without, `end`; `None` when there is nothing
    /// between them.
    pub(crate) const fn between(start: u64, end: u64) -> Option<IovaRange> {
        if start < end { Some(IovaRange { start, end }) } else { None }
    }

    /// The address of the first byte.
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// The number of bytes, at least 1.
    pub const fn length(&self) -> u64 {
        self.end - self.start
    }

    /// The address after the last byte.
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// The address of the last byte.
    pub const fn last(&self) -> u64 {
        self.end - 1
    }

    /// Whether the byte at `address` is in the range.
    pub fn contains(&self, address: impl Into<Iova>) -> bool {
        let Iova(address) = address.into();
        self.start <= address && address < self.end
    }

    /// Whether all of `other` is in the range.
    pub const fn covers(&self, other: IovaRange) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// What is in both.
    pub fn intersection(&self, other: IovaRange) -> Option<IovaRange> {
        Self::between(self.start.max(other.start), self.end.min(other.end))
    }

    /// Whether the two have a byte in common.
    pub fn overlaps(&self, other: IovaRange) -> bool {
        self.intersection(other).is_some()
    }

    /// The smallest range of whole pages around this one.
    ///
    /// # Errors
    ///
    /// [`RangeError::Overflow`] when the last page is the last of the address space.
    pub const fn align_out(&self, page: PageSize) -> Result<IovaRange, RangeError> {
        let start = page.floor(self.start);
        let length = (page.floor(self.last()) - start).checked_add(page.bytes());
        match length {
            Some(length) => IovaRange::new(start, length),
            None => Err(RangeError::Overflow { start, length: u64::MAX }),
        }
    }

    /// Whether both ends lie on page boundaries.
    pub const fn is_aligned(&self, page: PageSize) -> bool {
        (self.start | self.end) & (page.bytes() - 1) == 0
    }

    /// The range in pieces of `bytes` each, the last one shorter where it must be.
    /// With `bytes` 0 it stays in one piece.
    pub fn pieces(self, bytes: u64) -> impl Iterator<Item = IovaRange> {
        let bytes = if bytes == 0 { self.length() } else { bytes };
        let mut rest = Some(self);
        std::iter::from_fn(move || {
            let whole = rest?;
            let cut = whole.start.saturating_add(bytes).min(whole.end);
            rest = Self::between(cut, whole.end);
            Self::between(whole.start, cut)
        })
    }
}

impl fmt::Display for IovaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

impl fmt::Debug for IovaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A start and a length that are no [`IovaRange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// There is no byte in it.
    #[error("the range at {start:#x} is empty")]
    Empty {
        /// Where it would start.
        start: u64,
    },
    /// It ends past the address space; the kernel says `EOVERFLOW`.
    #[error("the range at {start:#x} of {length:#x} bytes ends past the address space")]
    Overflow {
        /// Where it starts.
        start: u64,
        /// Its length in bytes.
        length: u64,
    },
}

/// A page size: a power of two between 512 bytes and 2^62.
///
/// Devices and IOMMUs use 4 KiB and more, and the kernel's DMA logging reports no
/// finer than that. The lower limit is what keeps a foreign number from asking for
/// bitmaps of absurd size; no tracker is known below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize {
    shift: u8,
}

impl PageSize {
    /// 512 bytes, the smallest.
    pub const MIN: PageSize = PageSize { shift: 9 };
    /// 4 KiB.
    pub const FOUR_K: PageSize = PageSize { shift: 12 };
    /// 2^62 bytes, the largest.
    pub const MAX: PageSize = PageSize { shift: 62 };

    /// The page size of `bytes` bytes.
    ///
    /// # Errors
    ///
    /// [`PageSizeError`] unless it is a power of two in the limits.
    pub const fn new(bytes: u64) -> Result<PageSize, PageSizeError> {
        let shift = bytes.trailing_zeros() as u8;
        if bytes.is_power_of_two() && Self::MIN.shift <= shift && shift <= Self::MAX.shift
        {
            Ok(PageSize { shift })
        } else {
            Err(PageSizeError(bytes))
        }
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.shift
    }

    /// The binary logarithm of the size, 9 to 62.
    pub const fn shift(self) -> u32 {
        self.shift as u32
    }

    /// The start of the page that `address` is in.
    pub const fn floor(self, address: u64) -> u64 {
        address & !(self.bytes() - 1)
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.bytes(), f)
    }
}

/// A number of bytes that is no page size here. Holds the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no page size: not a power of two between 512 and 2^62")]
pub struct PageSizeError(pub u64);
