//! The data of a fake device: what it is saved as, and how it is taken back.
//!
//! ```text
//!   record     offset u64 | length u32 | bytes       one chunk of the contents
//!   the end    u64::MAX   | 8          | digest u64  once, in STOP_COPY
//! ```
//!
//! Every multi-byte number is little-endian. The digest covers all contents, so that a
//! byte that was lost or changed on the way fails RESUMING to STOP.

use std::collections::{BTreeSet, VecDeque};

/// The contents of a fake device are read ahead in pieces of this many bytes.
pub const CHUNK: usize = 4096;

const HEADER: usize = 12;
const END: u64 = u64::MAX;

/// A save session under way.
#[derive(Debug)]
pub(crate) struct Saving {
    /// Chunks that were not read yet since the session, or a REINIT, began.
    initial: BTreeSet<usize>,
    /// Chunks that changed since they were read.
    changed: BTreeSet<usize>,
    under_way: VecDeque<u8>,
    ended: bool,
    reinit: bool,
}

impl Saving {
    pub(crate) fn new(contents: &[u8]) -> Saving {
        Saving {
            initial: (0..contents.len().div_ceil(CHUNK)).collect(),
            changed: BTreeSet::new(),
            under_way: VecDeque::new(),
            ended: false,
            reinit: false,
        }
    }

    pub(crate) fn begin_again(&mut self, contents: &[u8]) {
        self.initial = Saving::new(contents).initial;
        self.changed.clear();
        self.reinit = true;
    }

    pub(crate) fn changed(&mut self, offset: usize, length: usize) {
        if length > 0 {
            let chunks = offset / CHUNK..=(offset + length - 1) / CHUNK;
            self.changed.extend(chunks.filter(|chunk| !self.initial.contains(chunk)));
        }
    }

    /// Fills `into` from the record under way, or from the next one: the number of
    /// bytes, and whether the record ended with them. 0 is an end.
    pub(crate) fn read(
        &mut self,
        contents: &[u8],
        last: bool,
        into: &mut [u8],
    ) -> (usize, bool) {
        if self.under_way.is_empty() {
            let chunk = self.initial.pop_first().or_else(|| self.changed.pop_first());
            if let Some(chunk) = chunk {
                let offset = chunk * CHUNK;
                let end = contents.len().min(offset + CHUNK);
                self.record(offset as u64, &contents[offset..end]);
            } else if last && !self.ended {
                self.ended = true;
                self.record(END, &digest(contents).to_le_bytes());
            }
        }
        let bytes = self.under_way.len().min(into.len());
        for (to, byte) in into.iter_mut().zip(self.under_way.drain(..bytes)) {
            *to = byte;
        }
        (bytes, self.under_way.is_empty())
    }

    /// Bytes to read before the contents were read once, bytes to read since, and
    /// whether the former began again since this was asked last.
    pub(crate) fn left(&mut self, contents: &[u8]) -> (u64, u64, bool) {
        let initial = size(&self.initial, contents);
        let under_way = self.under_way.len() as u64;
        let reinit = std::mem::take(&mut self.reinit);
        if self.initial.is_empty() {
            (0, under_way + size(&self.changed, contents), reinit)
        } else {
            (under_way + initial, size(&self.changed, contents), reinit)
        }
    }

    /// Bytes that stop-copy has to read if it began now.
    pub(crate) fn rest(&self, contents: &[u8]) -> u64 {
        let end = if self.ended { 0 } else { (HEADER + 8) as u64 };
        let chunks = size(&self.initial, contents) + size(&self.changed, contents);
        self.under_way.len() as u64 + chunks + end
    }

    fn record(&mut self, offset: u64, bytes: &[u8]) {
        self.under_way.extend(offset.to_le_bytes());
        self.under_way.extend((bytes.len() as u32).to_le_bytes());
        self.under_way.extend(bytes);
    }
}

fn size(chunks: &BTreeSet<usize>, contents: &[u8]) -> u64 {
    let record =
        |chunk| (HEADER + contents.len().min((chunk + 1) * CHUNK) - chunk * CHUNK) as u64;
    chunks.iter().copied().map(record).sum()
}

/// A resume session under way.
#[derive(Debug, Default)]
pub(crate) struct Resuming {
    header: Vec<u8>,
    offset: u64,
    left: usize,
    end: Vec<u8>,
    ended: bool,
}

/// Bytes that are no data of a fake device, or not of one this large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unfit;

impl Resuming {
    /// Takes bytes in, however they are cut.
    pub(crate) fn write(
        &mut self,
        contents: &mut [u8],
        mut from: &[u8],
    ) -> Result<(), Unfit> {
        while !from.is_empty() {
            if self.left == 0 {
                if self.ended {
                    return Err(Unfit);
                }
                let some = (HEADER - self.header.len()).min(from.len());
                self.header.extend(&from[..some]);
                from = &from[some..];
                if self.header.len() == HEADER {
                    self.begin(contents.len())?;
                }
                continue;
            }
            let some = self.left.min(from.len());
            if self.ended {
                self.end.extend(&from[..some]);
            } else {
                let at = self.offset as usize;
                contents[at..at + some].copy_from_slice(&from[..some]);
                self.offset += some as u64;
            }
            self.left -= some;
            from = &from[some..];
        }
        Ok(())
    }

    /// Whether the last record is complete.
    pub(crate) fn between_records(&self) -> bool {
        self.left == 0 && self.header.is_empty()
    }

    /// Whether everything came and is what was saved.
    pub(crate) fn complete(&self, contents: &[u8]) -> bool {
        self.ended && self.left == 0 && self.end == digest(contents).to_le_bytes()
    }

    fn begin(&mut self, size: usize) -> Result<(), Unfit> {
        let number = |at: usize, bytes: usize| {
            let bytes = self.header[at..at + bytes].iter().rev();
            bytes.fold(0, |number, byte| number << 8 | u64::from(*byte))
        };
        let (offset, length) = (number(0, 8), number(8, 4));
        self.ended = offset == END && length == 8;
        let fits = offset.checked_add(length).is_some_and(|end| end <= size as u64);
        if length == 0 || !(self.ended || fits) {
            return Err(Unfit);
        }
        self.offset = offset;
        self.left = length as usize;
        self.header.clear();
        Ok(())
    }
}

/// FNV-1a, 64 bits.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(contents: &[u8]) -> Vec<u8> {
        let mut saving = Saving::new(contents);
        let mut all = Vec::new();
        let mut some = [0; 1000];
        loop {
            let (bytes, _) = saving.read(contents, true, &mut some);
            if bytes == 0 {
                return all;
            }
            all.extend(&some[..bytes]);
        }
    }

    #[test]
    fn data_is_taken_back_however_it_is_cut() {
        let contents: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        let stream = saved(&contents);
        for cut in [1, 7, 12, 4108, stream.len()] {
            let mut taken = vec![0; contents.len()];
            let mut resuming = Resuming::default();
            for piece in stream.chunks(cut) {
                resuming.write(&mut taken, piece).unwrap();
            }
            assert!(resuming.complete(&taken) && taken == contents);
            assert_eq!(resuming.write(&mut taken, &[0]), Err(Unfit));
        }
    }

    #[test]
    fn a_stream_cut_or_changed_anywhere_is_not_complete() {
        let contents: Vec<u8> = (0..300u32).map(|n| n as u8).collect();
        let stream = saved(&contents);
        for at in 0..stream.len() {
            let mut taken = vec![0; contents.len()];
            let mut resuming = Resuming::default();
            resuming.write(&mut taken, &stream[..at]).unwrap();
            assert!(!resuming.complete(&taken));
            let mut wrong = stream.clone();
            wrong[at] ^= 0x40;
            let mut taken = vec![0; contents.len()];
            let mut resuming = Resuming::default();
            let refused = resuming.write(&mut taken, &wrong).is_err();
            assert!(refused || !resuming.complete(&taken), "byte {at}");
        }
    }

    #[test]
    fn what_changes_after_it_was_read_is_read_again() {
        let mut contents = vec![0; 3 * CHUNK];
        let mut saving = Saving::new(&contents);
        let mut record = vec![0; HEADER + CHUNK];
        assert_eq!(saving.left(&contents), (3 * record.len() as u64, 0, false));
        for _ in 0..3 {
            assert_eq!(saving.read(&contents, false, &mut record), (record.len(), true));
        }
        assert_eq!(saving.read(&contents, false, &mut record), (0, true));
        contents[CHUNK - 1..=CHUNK].fill(1);
        saving.changed(CHUNK - 1, 2);
        assert_eq!(saving.left(&contents), (0, 2 * record.len() as u64, false));
        saving.begin_again(&contents);
        assert_eq!(saving.left(&contents), (3 * record.len() as u64, 0, true));
        assert_eq!(saving.left(&contents), (3 * record.len() as u64, 0, false));
    }
}
