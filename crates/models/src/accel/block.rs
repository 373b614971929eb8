//! The blocks that the engine writes: who wrote them, which one, and whether it is
//! whole.
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 4 | [`MAGIC`] |
//! | 4 | 4 | [`Kind`] |
//! | 8 | 8 | sequence number, from 0 |
//! | 16 | 8 | index of the slot that it was written to |
//! | 24 | 4 | CRC32C of the block with this field 0 |
//! | 28 | 4 | 0 |
//! | 32 | 4064 | pseudo-random bytes that depend on the fields above |
//!
//! All numbers are little-endian. Whoever reads a block (the guest, a peer, a test)
//! calls [`check`]; a block that is torn, old bytes under a new header or the other way
//! round, does not pass.

use std::fmt;

/// Bytes of a block.
pub const BLOCK: usize = 4096;

/// The first four bytes of a block, `ACBK`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"ACBK");

const CHECKSUM: std::ops::Range<usize> = 24..28;
const PAYLOAD: usize = 32;

/// What a block was written for. Open: another number is another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(pub u32);

impl Kind {
    /// Into the device's own memory.
    pub const DEVICE: Kind = Kind(1);
    /// Into the ring in guest memory.
    pub const GUEST: Kind = Kind(2);
    /// Into a peer.
    pub const PEER: Kind = Kind(3);
}

/// What a block says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// What it was written for.
    pub kind: Kind,
    /// Its number among the blocks of its engine, from 0.
    pub sequence: u64,
    /// The slot that it was written to.
    pub index: u64,
}

impl Block {
    /// Writes the block out.
    pub fn make(self, into: &mut [u8; BLOCK]) {
        into[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        into[4..8].copy_from_slice(&self.kind.0.to_le_bytes());
        into[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        into[16..24].copy_from_slice(&self.index.to_le_bytes());
        into[24..PAYLOAD].fill(0);
        let mut seed =
            self.sequence ^ self.index.rotate_left(32) ^ u64::from(self.kind.0);
        for word in into[PAYLOAD..].chunks_exact_mut(8) {
            // splitmix64: cheap, and no two blocks look alike.
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word.copy_from_slice(&(mixed ^ (mixed >> 27)).to_le_bytes());
        }
        let checksum = crc32c::crc32c(&into[..]);
        into[CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// Reads a block; `None` unless it is whole, by its magic, length and checksum.
pub fn check(bytes: &[u8]) -> Option<Block> {
    if bytes.len() != BLOCK {
        return None;
    }
    let u32_at = |at: usize| u32::from_le_bytes(fixed(&bytes[at..at + 4]));
    let u64_at = |at: usize| u64::from_le_bytes(fixed(&bytes[at..at + 8]));
    let sum = crc32c::crc32c(&bytes[..CHECKSUM.start]);
    let sum = crc32c::crc32c_append(sum, &[0; 4]);
    let sum = crc32c::crc32c_append(sum, &bytes[CHECKSUM.end..]);
    (u32_at(0) == MAGIC && u32_at(CHECKSUM.start) == sum).then(|| Block {
        kind: Kind(u32_at(4)),
        sequence: u64_at(8),
        index: u64_at(16),
    })
}

fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(bytes);
    out
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "block {} of kind {} in slot {}",
            self.sequence, self.kind.0, self.index
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, Block, Kind, check};

    #[test]
    fn a_flipped_bit_anywhere_is_seen() {
        let block = Block { kind: Kind::PEER, sequence: 77, index: 3 };
        let mut bytes = [0; BLOCK];
        block.make(&mut bytes);
        assert_eq!(check(&bytes), Some(block));
        for bit in (0..BLOCK * 8).step_by(13) {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(check(&bytes), None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(check(&bytes[1..]), None);
    }

    #[test]
    fn a_torn_block_is_seen() {
        let (mut old, mut new) = ([0; BLOCK], [0; BLOCK]);
        Block { kind: Kind::GUEST, sequence: 1, index: 9 }.make(&mut old);
        Block { kind: Kind::GUEST, sequence: 2, index: 9 }.make(&mut new);
        for cut in [16, 512, 2048, 4088] {
            let mut torn = old;
            torn[..cut].copy_from_slice(&new[..cut]);
            assert_eq!(check(&torn), None, "cut at {cut}");
        }
    }
}
