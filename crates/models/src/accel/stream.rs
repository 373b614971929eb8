//! The saved state of the accelerator, written and read.
//!
//! ```text
//!  preamble | PASS ... PASS | AGAIN ... | WINDOW ... | ENGINE | END
//!           `-- pre-copy may read up to here --'
//!                           `-- stop-copy: whatever is left, then the rest --'
//! ```
//!
//! The preamble has 48 bytes: magic (8), version u32, block size u32, bytes of memory
//! u64, bytes of the window u64, vectors u32, words of engine state u32, 0 u32, CRC32C
//! of all that u32. Records follow, each with a header of 24 bytes: kind u16, flags
//! u16, payload length u32, first block u64, number of blocks u32, CRC32C of the 20
//! bytes before it and the payload u32. All little-endian.
//!
//! PASS goes through all memory behind the window once, in order; AGAIN repeats blocks
//! that changed since; WINDOW goes through the window in order. Blocks that are 0 have
//! the flag ZERO and no payload. ENGINE has the words of the engine, END the number of
//! records before it and a digest of their headers. A reader refuses what it does not
//! know, what is out of order, and what is missing.

mod load;
mod save;

pub(super) use load::Loader;
pub(super) use save::Saver;

use super::block::BLOCK;
use super::engine::WORDS;
use super::memory::DeviceMemory;
use crc32c::{crc32c, crc32c_append};

const MAGIC: [u8; 8] = *b"VMACCEL\0";
const PREAMBLE: usize = 48;
const HEADER: usize = 24;
const BLOCK_BYTES: u64 = BLOCK as u64;

/// Most blocks with data in one record.
const RUN: u64 = 16;

/// Most bytes of one record, header included.
const RECORD: usize = HEADER + RUN as usize * BLOCK;

const PASS: u16 = 1;
const AGAIN: u16 = 2;
const WINDOW: u16 = 3;
const ENGINE: u16 = 4;
const END: u16 = 5;

const ZERO: u16 = 1;

/// Bytes of everything that is not memory.
const FIXED: u64 = (PREAMBLE + 3 * HEADER + 8 * WORDS + 16) as u64;

/// Bytes that a device without a session would save.
pub(super) fn stop_copy_bytes(memory: &DeviceMemory) -> u64 {
    FIXED + memory_bytes(memory.touched().count() + memory.window_blocks())
}

/// Bytes of that many blocks at the worst: each with a header of its own, and with one
/// for a run of zeros before it.
fn memory_bytes(blocks: u64) -> u64 {
    blocks * (BLOCK_BYTES + 2 * HEADER as u64)
}

/// What a state has to agree in beside the memory.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    /// Of the data.
    pub(super) version: u32,
    /// How many vectors the device has; counters there are for the most.
    pub(super) vectors: u32,
}

fn preamble(shape: Shape, memory: &DeviceMemory) -> [u8; PREAMBLE] {
    let mut out = [0; PREAMBLE];
    out[0..8].copy_from_slice(&MAGIC);
    out[8..12].copy_from_slice(&shape.version.to_le_bytes());
    out[12..16].copy_from_slice(&(BLOCK as u32).to_le_bytes());
    out[16..24].copy_from_slice(&memory.bytes().to_le_bytes());
    let window = memory.window_blocks() * BLOCK_BYTES;
    out[24..32].copy_from_slice(&window.to_le_bytes());
    out[32..36].copy_from_slice(&shape.vectors.to_le_bytes());
    out[36..40].copy_from_slice(&(WORDS as u32).to_le_bytes());
    let sum = crc32c(&out[..44]);
    out[44..].copy_from_slice(&sum.to_le_bytes());
    out
}

/// The header of a record, without its checksum.
#[derive(Clone, Copy)]
struct Header {
    kind: u16,
    flags: u16,
    len: u32,
    first: u64,
    count: u32,
}

impl Header {
    fn encode(self, payload: &[u8]) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[0..2].copy_from_slice(&self.kind.to_le_bytes());
        out[2..4].copy_from_slice(&self.flags.to_le_bytes());
        out[4..8].copy_from_slice(&self.len.to_le_bytes());
        out[8..16].copy_from_slice(&self.first.to_le_bytes());
        out[16..20].copy_from_slice(&self.count.to_le_bytes());
        let sum = crc32c_append(crc32c(&out[..20]), payload);
        out[20..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; HEADER]) -> Header {
        let number = |range: std::ops::Range<usize>| {
            bytes[range].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        };
        Header {
            kind: number(0..2) as u16,
            flags: number(2..4) as u16,
            len: number(4..8) as u32,
            first: number(8..16),
            count: number(16..20) as u32,
        }
    }
}

impl Header {
    /// Whether the fields that only runs use are 0.
    fn is_plain(self) -> bool {
        self.flags == 0 && self.first == 0 && self.count == 0
    }
}
