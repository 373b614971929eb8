//! The device's own memory, and what it knows of which parts changed.

use super::block::BLOCK;
use dirty::{Bitmap, IovaRange, PageSize};
use sys::SharedMemory;

const BLOCK_BYTES: u64 = BLOCK as u64;

/// The memory behind BAR2, in blocks of 4096 bytes.
///
/// Nothing is allocated before it is written, and nothing that was never written is
/// read: an empty device of 16 GiB costs its bitmaps. The window at the start is mapped
/// by others, who write to it unseen; it is on no bitmap, and always taken for written.
pub(super) struct DeviceMemory {
    memory: SharedMemory,
    window_blocks: u64,
    /// Blocks ever written since the last reset, without the window.
    touched: Blocks,
    /// Blocks written since they were last saved.
    dirty: Bitmap,
}

impl DeviceMemory {
    pub(super) fn new(bytes: u64, window: u64) -> std::io::Result<DeviceMemory> {
        let memory = SharedMemory::create("vfio-migrate accel", bytes)?;
        let all = IovaRange::new(0, bytes).map_err(std::io::Error::other)?;
        let dirty = Bitmap::new(all, PageSize::FOUR_K).map_err(std::io::Error::other)?;
        Ok(DeviceMemory {
            memory,
            window_blocks: window / BLOCK_BYTES,
            touched: Blocks::new(bytes / BLOCK_BYTES),
            dirty,
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.memory.len()
    }

    pub(super) fn blocks(&self) -> u64 {
        self.memory.len() / BLOCK_BYTES
    }

    pub(super) fn window_blocks(&self) -> u64 {
        self.window_blocks
    }

    /// The window, for clients to map.
    pub(super) fn window(&self) -> Option<SharedMemory> {
        self.memory
            .slice(0, self.window_blocks * BLOCK_BYTES)
            .ok()
            .filter(|window| !window.is_empty())
    }

    /// Copies out; whatever was never written is 0 without being looked at. The caller
    /// has checked the bounds.
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) {
        let (first, count) = blocks_of(offset, into.len());
        if first >= self.window_blocks && self.touched.next_set(first) >= first + count {
            into.fill(0);
        } else if self.memory.read(offset, into).is_err() {
            unreachable_access(offset, into.len());
        }
    }

    /// Copies in and marks. The caller has checked the bounds.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let (first, count) = blocks_of(offset, data.len());
        if self.memory.write(offset, data).is_err() {
            unreachable_access(offset, data.len());
        }
        self.mark(first, count);
    }

    /// Makes whole blocks 0.
    pub(super) fn zero(&mut self, first: u64, count: u64) {
        let end = first + count;
        if first < self.window_blocks {
            self.zero_bytes(first, self.window_blocks.min(end) - first);
        }
        let mut at = self.touched.next_set(first);
        while at < end {
            let run = self.touched.run(at, end - at);
            self.zero_bytes(at, run);
            self.mark(at, run);
            at = self.touched.next_set(at + run);
        }
    }

    /// Back to all 0.
    pub(super) fn reset(&mut self) {
        self.zero(0, self.blocks());
        self.touched = Blocks::new(self.blocks());
        self.forget_changes();
    }

    /// Writes the firmware behind the window: a pattern that no block repeats.
    pub(super) fn boot(&mut self, bytes: u64) {
        let mut block = vec![0; BLOCK];
        for number in self.window_blocks..self.window_blocks + bytes / BLOCK_BYTES {
            let mut word = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            for part in block.chunks_exact_mut(8) {
                // xorshift64: never 0 from a start that is not.
                word ^= word << 13;
                word ^= word >> 7;
                word ^= word << 17;
                part.copy_from_slice(&word.to_le_bytes());
            }
            self.write(number * BLOCK_BYTES, &block);
        }
    }

    /// All of it counts as saved.
    pub(super) fn forget_changes(&self) {
        // A session that reads everything begins, or there is nothing left to read.
        let _ = self.dirty.drain();
    }

    /// Which blocks were ever written.
    pub(super) fn touched(&self) -> &Blocks {
        &self.touched
    }

    /// Which blocks changed since they were last saved.
    pub(super) fn dirty(&self) -> &Bitmap {
        &self.dirty
    }

    /// These blocks were read to be saved.
    pub(super) fn saved(&self, first: u64, count: u64) {
        if let Ok(range) = IovaRange::new(first * BLOCK_BYTES, count * BLOCK_BYTES) {
            // What is taken off is what was just read.
            let _ = self.dirty.drain_range(range);
        }
    }

    fn zero_bytes(&self, first: u64, count: u64) {
        if self.memory.zero(first * BLOCK_BYTES, count * BLOCK_BYTES).is_err() {
            unreachable_access(first * BLOCK_BYTES, 0);
        }
    }

    fn mark(&mut self, first: u64, count: u64) {
        let start = first.max(self.window_blocks);
        let end = first + count;
        if start < end {
            self.touched.set(start, end);
            if let Ok(range) =
                IovaRange::new(start * BLOCK_BYTES, (end - start) * BLOCK_BYTES)
            {
                self.dirty.mark(range);
            }
        }
    }
}

/// Bounds are checked where an access comes in; what gets here is a bug of the model.
fn unreachable_access(offset: u64, len: usize) {
    tracing::error!(offset, len, "access outside of the device's memory");
    debug_assert!(false, "access of {len} bytes at {offset:#x}");
}

/// The first block that an access touches, and how many.
fn blocks_of(offset: u64, len: usize) -> (u64, u64) {
    let first = offset / BLOCK_BYTES;
    let end = (offset + len as u64).div_ceil(BLOCK_BYTES);
    (first, end - first)
}

/// A set of blocks. One owner, so no atomics, and a count that is always known.
#[derive(Clone)]
pub(super) struct Blocks {
    words: Vec<u64>,
    blocks: u64,
    count: u64,
}

impl Blocks {
    pub(super) fn new(blocks: u64) -> Blocks {
        Blocks { words: vec![0; blocks.div_ceil(64) as usize], blocks, count: 0 }
    }

    /// How many are in it.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    fn set(&mut self, start: u64, end: u64) {
        for block in start..end.min(self.blocks) {
            let (word, bit) = (&mut self.words[(block / 64) as usize], 1 << (block % 64));
            self.count += u64::from(*word & bit == 0);
            *word |= bit;
        }
    }

    pub(super) fn contains(&self, block: u64) -> bool {
        block < self.blocks && self.words[(block / 64) as usize] >> (block % 64) & 1 == 1
    }

    /// The first in it at or behind `from`; the number of blocks where there is none.
    pub(super) fn next_set(&self, from: u64) -> u64 {
        if from >= self.blocks {
            return self.blocks;
        }
        let mut word = (from / 64) as usize;
        let mut bits = self.words[word] & (u64::MAX << (from % 64));
        while bits == 0 {
            word += 1;
            if word == self.words.len() {
                return self.blocks;
            }
            bits = self.words[word];
        }
        word as u64 * 64 + u64::from(bits.trailing_zeros())
    }

    /// How many of the `count` from `first` on are in it.
    pub(super) fn count_in(&self, first: u64, count: u64) -> u64 {
        let mut found = 0;
        let mut at = self.next_set(first);
        while at < first + count {
            found += 1;
            at = self.next_set(at + 1);
        }
        found
    }

    /// How many in a row are in it from `first` on, at most `most`.
    pub(super) fn run(&self, first: u64, most: u64) -> u64 {
        (first..first + most).take_while(|block| self.contains(*block)).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, DeviceMemory};

    #[test]
    fn what_was_never_written_is_zero_and_on_no_bitmap() {
        let mut memory = DeviceMemory::new(16 << 20, 65536).unwrap();
        memory.write(65536 + 4095, &[7; 2]);
        memory.write(3, &[9]);
        assert_eq!(memory.touched().count(), 2);
        assert_eq!(memory.dirty().count(), 2);
        let mut back = [0; 3];
        memory.read(65536 + 4094, &mut back);
        assert_eq!(back, [0, 7, 7]);
        memory.reset();
        assert_eq!((memory.touched().count(), memory.dirty().count()), (0, 0));
        memory.read(2, &mut back);
        assert_eq!(back, [0, 0, 0]);
    }

    #[test]
    fn runs_end_where_the_set_does() {
        let mut memory = DeviceMemory::new(16 << 20, 0).unwrap();
        memory.write(62 * BLOCK as u64, &[1; 4 * BLOCK]);
        let touched = memory.touched();
        assert_eq!(touched.next_set(0), 62);
        assert_eq!((touched.run(62, 100), touched.run(62, 3)), (4, 3));
        assert_eq!(touched.next_set(66), 4096);
    }
}
