//! Writes the saved state.

use super::{
    AGAIN, BLOCK_BYTES, END, ENGINE, FIXED, HEADER, Header, PASS, PREAMBLE, RECORD, RUN,
    Shape, WINDOW, ZERO, memory_bytes, preamble,
};
use crate::accel::block::BLOCK;
use crate::accel::engine::{Engine, WORDS};
use crate::accel::memory::{Blocks, DeviceMemory};
use crc32c::crc32c_append;
use device::PrecopyInfo;
use dirty::IovaRange;
use std::collections::VecDeque;

/// Blocks looked through at once for changes.
const SCAN: u64 = 8192;

/// What the writer is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Preamble,
    Pass,
    Again,
    Window,
    Engine,
    End,
    Over,
}

/// A save session.
pub(in crate::accel) struct Saver {
    shape: Shape,
    phase: Phase,
    /// The next block of the pass, or of the window.
    cursor: u64,
    /// What had been written when the session began. What is written later is dirty,
    /// so the pass may call it 0: it comes again. That keeps the initial bytes falling.
    initial: Blocks,
    initial_left: u64,
    /// Blocks that changed and are taken off the bitmap, but not read yet.
    changed: VecDeque<(u64, u64)>,
    /// Where to look for changes next.
    scan: u64,
    records: u64,
    digest: u32,
    /// A record that did not fit into the reader's buffer, from `staged_at` on.
    staged: Vec<u8>,
    staged_at: usize,
}

impl Saver {
    /// Begins: what changes from now on is noted.
    pub(in crate::accel) fn new(shape: Shape, memory: &DeviceMemory) -> Saver {
        memory.forget_changes();
        Saver {
            shape,
            phase: Phase::Preamble,
            cursor: memory.window_blocks(),
            initial: memory.touched().clone(),
            initial_left: memory.touched().count(),
            changed: VecDeque::new(),
            scan: 0,
            records: 0,
            digest: 0,
            staged: Vec::new(),
            staged_at: 0,
        }
    }

    /// What pre-copy has left.
    pub(in crate::accel) fn precopy_info(&self, memory: &DeviceMemory) -> PrecopyInfo {
        let staged = (self.staged.len() - self.staged_at) as u64;
        let initial_bytes = match self.phase {
            Phase::Preamble => PREAMBLE as u64 + memory_bytes(self.initial_left + 1),
            Phase::Pass if staged > 0 || self.cursor < memory.blocks() => {
                memory_bytes(self.initial_left + 1)
            }
            _ => 0,
        };
        let dirty_bytes = match initial_bytes {
            0 => staged + memory_bytes(self.changed_blocks(memory)),
            _ => 0,
        };
        PrecopyInfo { initial_bytes, dirty_bytes, reinit: false }
    }

    /// What would still come if the device stopped now.
    pub(in crate::accel) fn left(&self, memory: &DeviceMemory) -> u64 {
        if self.phase == Phase::Over {
            return (self.staged.len() - self.staged_at) as u64;
        }
        let blocks =
            self.initial_left + self.changed_blocks(memory) + memory.window_blocks();
        FIXED + memory_bytes(blocks)
    }

    fn changed_blocks(&self, memory: &DeviceMemory) -> u64 {
        let taken: u64 = self.changed.iter().map(|(_, count)| count).sum();
        memory.dirty().count() + taken
    }

    /// Fills `into` as far as there is something to say.
    pub(in crate::accel) fn fill(
        &mut self,
        memory: &DeviceMemory,
        engine: &Engine,
        stopped: bool,
        into: &mut [u8],
    ) -> usize {
        let mut filled = 0;
        while filled < into.len() {
            let room = &mut into[filled..];
            if self.staged_at < self.staged.len() {
                let len = room.len().min(self.staged.len() - self.staged_at);
                room[..len].copy_from_slice(&self.staged[self.staged_at..][..len]);
                self.staged_at += len;
                filled += len;
            } else if let Some(room) = room.first_chunk_mut::<RECORD>() {
                let len = self.produce(memory, engine, stopped, room);
                if len == 0 {
                    break;
                }
                filled += len;
            } else {
                let mut record = Box::new([0; RECORD]);
                let len = self.produce(memory, engine, stopped, &mut record);
                if len == 0 {
                    break;
                }
                self.staged.clear();
                self.staged.extend_from_slice(&record[..len]);
                self.staged_at = 0;
            }
        }
        filled
    }

    /// The next record, or none.
    fn produce(
        &mut self,
        memory: &DeviceMemory,
        engine: &Engine,
        stopped: bool,
        out: &mut [u8; RECORD],
    ) -> usize {
        loop {
            match self.phase {
                Phase::Preamble => {
                    self.phase = Phase::Pass;
                    out[..PREAMBLE].copy_from_slice(&preamble(self.shape, memory));
                    return PREAMBLE;
                }
                Phase::Pass if self.cursor < memory.blocks() => {
                    return self.pass(memory, out);
                }
                Phase::Pass => self.phase = Phase::Again,
                Phase::Again => match self.next_changed(memory) {
                    Some((first, count)) => {
                        let (len, done) = self.run(AGAIN, first, count, memory, out);
                        if done < count {
                            self.changed.push_front((first + done, count - done));
                        }
                        return len;
                    }
                    None if stopped => {
                        self.phase = Phase::Window;
                        self.cursor = 0;
                    }
                    None => return 0,
                },
                Phase::Window if self.cursor < memory.window_blocks() => {
                    let count = memory.window_blocks() - self.cursor;
                    let (len, done) = self.run(WINDOW, self.cursor, count, memory, out);
                    self.cursor += done;
                    return len;
                }
                Phase::Window => self.phase = Phase::Engine,
                Phase::Engine => {
                    self.phase = Phase::End;
                    for (bytes, word) in
                        out[HEADER..].chunks_exact_mut(8).zip(engine.words())
                    {
                        bytes.copy_from_slice(&word.to_le_bytes());
                    }
                    return self.record(ENGINE, 0, 0, 0, 8 * WORDS, out);
                }
                Phase::End => {
                    self.phase = Phase::Over;
                    out[HEADER..][..8].copy_from_slice(&self.records.to_le_bytes());
                    let digest = u64::from(self.digest).to_le_bytes();
                    out[HEADER + 8..][..8].copy_from_slice(&digest);
                    return self.record(END, 0, 0, 0, 16, out);
                }
                Phase::Over => return 0,
            }
        }
    }

    /// The next record of the pass through memory.
    fn pass(&mut self, memory: &DeviceMemory, out: &mut [u8; RECORD]) -> usize {
        let first = self.cursor;
        let zeros = self.zeros(first, memory);
        let (len, done) = if zeros > 0 {
            (self.record(PASS, ZERO, first, zeros as u32, 0, out), zeros)
        } else {
            let count = self.initial.run(first, RUN);
            self.run(PASS, first, count, memory, out)
        };
        self.initial_left -= self.initial.count_in(first, done);
        self.cursor += done;
        len
    }

    /// How many blocks in a row the pass calls 0, up to the next multiple of [`SCAN`].
    ///
    /// Blocks that were written with 0 and blocks that never were make one run, so that
    /// the same contents always give the same stream.
    fn zeros(&self, first: u64, memory: &DeviceMemory) -> u64 {
        let end = ((first / SCAN + 1) * SCAN).min(memory.blocks());
        let mut at = first;
        while at < end {
            let touched = self.initial.next_set(at).min(end);
            if touched > at {
                at = touched;
                continue;
            }
            let mut block = [0; BLOCK];
            memory.read(at * BLOCK_BYTES, &mut block);
            if !is_zero(&block) {
                break;
            }
            memory.saved(at, 1);
            at += 1;
        }
        at - first
    }

    /// A record about the first blocks of a run, as far as they are all 0 or all not.
    fn run(
        &mut self,
        kind: u16,
        first: u64,
        count: u64,
        memory: &DeviceMemory,
        out: &mut [u8; RECORD],
    ) -> (usize, u64) {
        let count = count.min(RUN);
        let bytes = count as usize * BLOCK;
        memory.read(first * BLOCK_BYTES, &mut out[HEADER..HEADER + bytes]);
        let mut blocks = out[HEADER..HEADER + bytes].chunks_exact(BLOCK).map(is_zero);
        let zero = blocks.next().unwrap_or(false);
        let same = 1 + blocks.take_while(|other| *other == zero).count();
        let (flags, len) = if zero { (ZERO, 0) } else { (0, same * BLOCK) };
        // Read just now, and nothing can have written since.
        memory.saved(first, same as u64);
        (self.record(kind, flags, first, same as u32, len, out), same as u64)
    }

    /// Puts the header before a payload that is in place.
    fn record(
        &mut self,
        kind: u16,
        flags: u16,
        first: u64,
        count: u32,
        len: usize,
        out: &mut [u8; RECORD],
    ) -> usize {
        let header = Header { kind, flags, len: len as u32, first, count };
        let header = header.encode(&out[HEADER..HEADER + len]);
        out[..HEADER].copy_from_slice(&header);
        self.records += 1;
        self.digest = crc32c_append(self.digest, &header);
        HEADER + len
    }

    /// The next run of blocks that changed, taken off the bitmap.
    fn next_changed(&mut self, memory: &DeviceMemory) -> Option<(u64, u64)> {
        if self.changed.is_empty() && !memory.dirty().is_empty() {
            for _ in 0..memory.blocks().div_ceil(SCAN) {
                let start = self.scan;
                let count = SCAN.min(memory.blocks() - start);
                self.scan =
                    if start + count == memory.blocks() { 0 } else { start + count };
                let range =
                    IovaRange::new(start * BLOCK_BYTES, count * BLOCK_BYTES).ok()?;
                let drained = memory.dirty().drain_range(range);
                self.changed.extend(
                    drained.runs().map(|run| {
                        (run.start() / BLOCK_BYTES, run.length() / BLOCK_BYTES)
                    }),
                );
                if !self.changed.is_empty() {
                    break;
                }
            }
        }
        self.changed.pop_front()
    }
}

fn is_zero(block: &[u8]) -> bool {
    block.chunks_exact(16).all(|part| part == [0; 16])
}
