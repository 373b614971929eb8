//! What the guest writes into a page, so that it can tell its own writes from all else.
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 4 | `GPAG` |
//! | 4 | 4 | who wrote it |
//! | 8 | 8 | the number of the page |
//! | 16 | 8 | the write: the writer's sequence number |
//! | 24 | 4 | CRC32C of the page with this field 0 |
//! | 28 | 4 | 0 |
//! | 32 | 4064 | pseudo-random words that follow from the above |
//!
//! Numbers are little-endian. A *blank* write leaves zeros only: guests free memory.
//! What a page should hold is nowhere in guest memory; it follows from the registers of
//! its writer (see [`super::sweep`]).

use thiserror::Error;

/// Bytes of a page.
pub(super) const BYTES: usize = 4096;

/// A page's bytes.
pub(super) type Page = [u8; BYTES];

const MAGIC: u32 = u32::from_le_bytes(*b"GPAG");
const WORDS: usize = 32;

/// One write of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Who writes.
    pub(super) writer: u32,
    /// The page.
    pub(super) page: u64,
    /// The writer's sequence number.
    pub(super) sequence: u64,
    /// Whether it writes zeros only.
    pub(super) blank: bool,
}

/// A page does not hold what its writer left there.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum Fault {
    /// Zeros where a write should be.
    #[error("zeros instead of write {0}")]
    Zeros(u64),
    /// Something where zeros should be.
    #[error("write {found} instead of the zeros of write {wanted}")]
    NotZeros {
        /// What its header says.
        found: u64,
        /// The write that should be there.
        wanted: u64,
    },
    /// A write of the page, but another one.
    #[error("write {found} instead of write {wanted}")]
    Stale {
        /// What its header says.
        found: u64,
        /// The write that should be there.
        wanted: u64,
    },
    /// A whole write of another page or another writer.
    #[error("page {page} of writer {writer} instead of write {wanted}")]
    Foreign {
        /// The page in its header.
        page: u64,
        /// The writer in its header.
        writer: u32,
        /// The write that should be there.
        wanted: u64,
    },
    /// Bytes that nobody wrote so.
    #[error("broken bytes instead of write {0}")]
    Broken(u64),
}

impl Stamp {
    /// Writes the page out.
    pub(super) fn fill(&self, into: &mut Page) {
        into.fill(0);
        if self.blank {
            return;
        }
        into[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        into[4..8].copy_from_slice(&self.writer.to_le_bytes());
        into[8..16].copy_from_slice(&self.page.to_le_bytes());
        into[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        let mut random =
            Random(self.sequence ^ self.page.rotate_left(32) ^ u64::from(self.writer));
        for word in into[WORDS..].chunks_exact_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes());
        }
        let sum = crc32c::crc32c(into);
        into[24..28].copy_from_slice(&sum.to_le_bytes());
    }

    /// Compares a page with what this write left.
    pub(super) fn check(&self, bytes: &Page) -> Result<(), Fault> {
        let wanted = self.sequence;
        if bytes.iter().all(|byte| *byte == 0) {
            return if self.blank { Ok(()) } else { Err(Fault::Zeros(wanted)) };
        }
        let sum = crc32c::crc32c(&bytes[..24]);
        let sum = crc32c::crc32c_append(sum, &[0; 4]);
        let sum = crc32c::crc32c_append(sum, &bytes[28..]);
        let u32_at = |at: usize| u32::from_le_bytes(array(&bytes[at..at + 4]));
        let u64_at = |at: usize| u64::from_le_bytes(array(&bytes[at..at + 8]));
        if u32_at(0) != MAGIC || u32_at(24) != sum {
            return Err(Fault::Broken(wanted));
        }
        let (writer, page, found) = (u32_at(4), u64_at(8), u64_at(16));
        if (writer, page) != (self.writer, self.page) {
            Err(Fault::Foreign { page, writer, wanted })
        } else if self.blank {
            Err(Fault::NotZeros { found, wanted })
        } else if found != wanted {
            Err(Fault::Stale { found, wanted })
        } else {
            Ok(())
        }
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(bytes);
    out
}

/// splitmix64: all of its state is one word, which a register holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    /// The next word.
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

/// Spreads the bits of a number over all of them.
pub(super) fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp() -> Stamp {
        Stamp { writer: 1, page: 77, sequence: 5, blank: false }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_seen() {
        let mut bytes = [0; BYTES];
        stamp().fill(&mut bytes);
        assert_eq!(stamp().check(&bytes), Ok(()));
        for bit in (0..BYTES * 8).step_by(7) {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(stamp().check(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_stale_a_foreign_and_a_torn_page_are_told_apart() {
        let mut bytes = [0; BYTES];
        let old = Stamp { sequence: 4, ..stamp() };
        old.fill(&mut bytes);
        assert_eq!(stamp().check(&bytes), Err(Fault::Stale { found: 4, wanted: 5 }));
        let blank = Stamp { blank: true, ..stamp() };
        assert_eq!(blank.check(&bytes), Err(Fault::NotZeros { found: 4, wanted: 5 }));
        Stamp { page: 78, ..stamp() }.fill(&mut bytes);
        assert!(matches!(stamp().check(&bytes), Err(Fault::Foreign { page: 78, .. })));
        let mut torn = [0; BYTES];
        stamp().fill(&mut torn);
        torn[2048..].copy_from_slice(&bytes[2048..]);
        assert_eq!(stamp().check(&torn), Err(Fault::Broken(5)));
        assert_eq!(stamp().check(&[0; BYTES]), Err(Fault::Zeros(5)));
        assert_eq!(blank.check(&[0; BYTES]), Ok(()));
    }
}
