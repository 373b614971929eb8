//! The dirty bitmap of a very large guest, from a device's report to what has to be sent.
//!
//! ```text
//!   figure   words of a device --merge--> Bitmap --drain--> Drained --runs--> counted
//!   limit    words of a device --memcpy--> words
//! ```
//!
//! 1 TiB of pages of 4 KiB is 32 MiB of bits on either side. The dirty pages are drawn at
//! random, which is the worst that they can be: no guest's are so far apart. All is done by
//! one thread on one CPU, and each run gives the median of its turns.

use dirty::{Bitmap, IovaRange, PageSize};

use super::one_cpu::{self, median};
use super::text;
use crate::bench::row::{Reach, Row, Runs};

/// Bytes of guest memory.
pub(super) const MEMORY: u64 = 1 << 40;

/// Words of the bitmap.
pub(super) const WORDS: usize = (MEMORY >> 12 >> 6) as usize;

/// One page in a thousand is dirty.
pub(super) fn measure_sparse(runs: Runs) -> Result<Row, String> {
    let reach = Reach::AtMost { factor: 4.0, plus: 0.0 };
    measure("dirty bitmap of 1 TiB, 0.1 %: merge, drain, runs", reach, 1, 25, runs)
}

/// Sixty in a thousand are.
pub(super) fn measure_some(runs: Runs) -> Result<Row, String> {
    measure("dirty bitmap of 1 TiB, 6 %: merge, drain, runs", Reach::Any, 60, 5, runs)
}

/// All are.
pub(super) fn measure_full(runs: Runs) -> Result<Row, String> {
    measure("dirty bitmap of 1 TiB, 100 %: merge, drain, runs", Reach::Any, 1000, 5, runs)
}

fn measure(
    work: &'static str,
    reach: Reach,
    per_mille: u64,
    turns: usize,
    runs: Runs,
) -> Result<Row, String> {
    let samples = one_cpu::measure(move || {
        runs.interleave(
            &mut Rig::new(per_mille)?,
            |rig| median(turns, || rig.turn()).map(|micros| micros / 1e3),
            |rig| median(turns, || rig.copy()).map(|micros| micros / 1e3),
        )
    })?;
    Row::new(work, "ms", reach, &samples)
}

struct Rig {
    bitmap: Bitmap,
    all: IovaRange,
    words: Vec<u64>,
    dirty: u64,
    copied: Vec<u64>,
}

impl Rig {
    fn new(per_mille: u64) -> Result<Rig, String> {
        let all = IovaRange::new(0, MEMORY).map_err(text)?;
        let bitmap = Bitmap::new(all, PageSize::FOUR_K).map_err(text)?;
        let words = words(per_mille);
        let dirty = words.iter().map(|word| u64::from(word.count_ones())).sum();
        Ok(Rig { bitmap, all, words, dirty, copied: vec![u64::MAX; WORDS] })
    }

    fn turn(&mut self) -> Result<(), String> {
        self.bitmap.merge(self.all, PageSize::FOUR_K, &self.words);
        let drained = self.bitmap.drain();
        let bytes: u64 = drained.runs().map(|run| run.length()).sum();
        if bytes == self.dirty << 12 {
            return Ok(());
        }
        Err(format!("{} pages were dirty, and {bytes} bytes come out", self.dirty))
    }

    fn copy(&mut self) -> Result<(), String> {
        self.copied.copy_from_slice(&self.words);
        if std::hint::black_box(&self.copied).last() == self.words.last() {
            return Ok(());
        }
        Err("the words were not copied".into())
    }
}

/// That many bits in a thousand, drawn at random.
fn words(per_mille: u64) -> Vec<u64> {
    if per_mille == 1000 {
        return vec![u64::MAX; WORDS];
    }
    let mut words = vec![0; WORDS];
    for page in pages(1, WORDS as u64 * 64 * per_mille / 1000) {
        words[page as usize / 64] |= 1_u64 << (page % 64);
    }
    words
}

/// So many pages of the guest, drawn at random: the same ones for the same seed.
pub(super) fn pages(seed: u64, count: u64) -> impl Iterator<Item = u64> {
    // A counter through the mixer of `SplitMix64`.
    let mut state = seed;
    (0..count).map(move |_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % (WORDS as u64 * 64)
    })
}
