//! The bitmap against a set of page numbers, and against disasters of others.
#![cfg(not(loom))]

use proptest::collection::vec;
use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof,
    proptest,
};
use std::collections::BTreeSet;
use vfio_migrate_dirty::{Bitmap, BitmapError, Drained, IovaRange, PageSize};

fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(start, length).expect("a range")
}

fn page(bytes: u64) -> PageSize {
    PageSize::new(bytes).expect("a page size")
}

fn bitmap(start: u64, length: u64) -> Bitmap {
    Bitmap::new(range(start, length), PageSize::FOUR_K).expect("a bitmap")
}

fn bit(words: &[u64], n: u64) -> bool {
    words.get((n / 64) as usize).is_none_or(|word| word >> (n % 64) & 1 == 1)
}

#[test]
fn error_10_the_bit_of_an_address_mixes_units() {
    // Page n is (address - iova) / page size; word n / 64, bit n % 64. In the formula of
    // the document the word is counted in pages and the bit in bytes.
    let iova = 0x4000_0000;
    for bytes in [4096, 65536] {
        for n in [0, 1, 63, 64, 65, 127, 200, 255] {
            let pages = range(iova, 256 * bytes);
            let bitmap = Bitmap::new(pages, page(bytes)).expect("a bitmap");
            bitmap.mark(range(iova + n * bytes + 5, 1));
            let mut words = [0; 4];
            bitmap.report(pages, page(bytes), &mut words).expect("room for it");
            let mut expected = [0; 4];
            expected[(n / 64) as usize] = 1 << (n % 64);
            assert_eq!(words, expected, "page {n} of {bytes} bytes");
        }
    }
}

/// The same bitmap as slowly as possible: a set of absolute page numbers.
struct Model {
    range: IovaRange,
    page: PageSize,
    dirty: BTreeSet<u64>,
}

impl Model {
    /// What of page `number` lies in the range.
    fn part(&self, number: u64) -> Option<IovaRange> {
        range(number << self.page.shift(), self.page.bytes()).intersection(self.range)
    }

    fn touched(&self, by: IovaRange) -> BTreeSet<u64> {
        let shift = self.page.shift();
        (self.range.start() >> shift..=self.range.last() >> shift)
            .filter(|number| self.part(*number).is_some_and(|part| part.overlaps(by)))
            .collect()
    }

    fn mark(&mut self, by: IovaRange) {
        self.dirty.extend(self.touched(by));
    }

    fn merge(&mut self, from: IovaRange, page: PageSize, words: &[u64]) {
        for n in 0..from.length().div_ceil(page.bytes()) {
            if bit(words, n) {
                self.mark(range(from.start() + n * page.bytes(), page.bytes()));
            }
        }
    }

    fn report(&mut self, asked: IovaRange, page: PageSize, out: &mut [u64]) {
        for number in self.touched(asked).intersection(&self.dirty.clone()) {
            let part = self.part(*number).expect("touched");
            for n in 0..asked.length().div_ceil(page.bytes()) {
                let stands = range(asked.start() + n * page.bytes(), page.bytes());
                let seen = stands.intersection(asked).and_then(|s| s.intersection(part));
                if seen.is_some() {
                    out[(n / 64) as usize] |= 1 << (n % 64);
                }
            }
            if asked.covers(part) {
                self.dirty.remove(number);
            }
        }
    }

    fn drain(&mut self, by: IovaRange) -> BTreeSet<u64> {
        let taken: BTreeSet<u64> =
            self.touched(by).intersection(&self.dirty).copied().collect();
        self.dirty.retain(|number| !taken.contains(number));
        taken
    }

    /// The maximal runs of `pages`.
    fn runs(&self, pages: &BTreeSet<u64>) -> Vec<IovaRange> {
        let mut runs: Vec<IovaRange> = Vec::new();
        for number in pages {
            let part = self.part(*number).expect("a page of the range");
            match runs.last_mut() {
                Some(last) if last.end() == part.start() => {
                    *last = range(last.start(), last.length() + part.length());
                }
                _ => runs.push(part),
            }
        }
        runs
    }
}

/// Without files of past failures: what fails becomes a test with a name.
fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

#[derive(Clone, Debug)]
enum Step {
    Mark(IovaRange),
    MarkAll,
    Merge(IovaRange, PageSize, Vec<u64>),
    Drain,
    DrainRange(IovaRange),
    Restore,
    Report(IovaRange, PageSize, u64),
}

fn pages() -> impl Strategy<Value = PageSize> {
    (9u32..=15).prop_map(|shift| page(1 << shift))
}

/// Around 300 pages of 4 KiB, at the start of the address space and elsewhere.
fn ranges() -> impl Strategy<Value = IovaRange> {
    let number = || {
        prop_oneof![
            any::<u64>().prop_map(|n| n % 0x12_c000),
            any::<u64>().prop_map(|n| (n % 300) << 12),
        ]
    };
    (number(), number()).prop_map(|(start, length)| range(start, length.max(1)))
}

fn words() -> impl Strategy<Value = Vec<u64>> {
    let word = prop_oneof![Just(0), Just(u64::MAX), any::<u64>(), Just(1), Just(1 << 63)];
    vec(word, 0..40)
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => ranges().prop_map(Step::Mark),
        1 => Just(Step::MarkAll),
        4 => (ranges(), pages(), words()).prop_map(|(r, p, w)| Step::Merge(r, p, w)),
        2 => Just(Step::Drain),
        2 => ranges().prop_map(Step::DrainRange),
        2 => Just(Step::Restore),
        4 => (ranges(), pages(), any::<u64>()).prop_map(|(r, p, o)| Step::Report(r, p, o)),
    ]
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_step_differs_from_the_naive_model(
        covered in ranges(), size in pages(), steps in vec(steps(), 1..20),
    ) {
        let bitmap = Bitmap::new(covered, size).expect("a bitmap");
        let mut model = Model { range: covered, page: size, dirty: BTreeSet::new() };
        let mut held: Option<(Drained, BTreeSet<u64>)> = None;
        for step in steps {
            match step {
                Step::Mark(by) => {
                    bitmap.mark(by);
                    model.mark(by);
                }
                Step::MarkAll => {
                    bitmap.mark_all();
                    model.mark(covered);
                }
                Step::Merge(from, page, words) => {
                    bitmap.merge(from, page, &words);
                    model.merge(from, page, &words);
                }
                Step::Drain => held = Some((bitmap.drain(), model.drain(covered))),
                Step::DrainRange(by) => {
                    held = Some((bitmap.drain_range(by), model.drain(by)));
                }
                Step::Restore => {
                    if let Some((drained, pages)) = held.take() {
                        bitmap.restore(&drained);
                        model.dirty.extend(pages);
                    }
                }
                Step::Report(asked, page, before) => {
                    let bits = asked.length().div_ceil(page.bytes());
                    let mut out = vec![before; bits.div_ceil(64) as usize];
                    let mut expected = out.clone();
                    bitmap.report(asked, page, &mut out).expect("enough words");
                    model.report(asked, page, &mut expected);
                    prop_assert_eq!(out, expected);
                }
            }
            prop_assert_eq!(bitmap.count(), model.dirty.len() as u64);
            prop_assert_eq!(bitmap.is_empty(), model.dirty.is_empty());
            if let Some((drained, pages)) = &held {
                let runs: Vec<_> = drained.runs().collect();
                prop_assert_eq!(&runs, &model.runs(pages));
                prop_assert_eq!(drained.pages(), pages.len() as u64);
                prop_assert_eq!(drained.is_empty(), pages.is_empty());
            }
        }
    }

    /// By bytes, not by pages: whatever the page sizes, a byte that was marked shows
    /// up in what is reported and drained, and a byte that shows up has a marked one
    /// no further away than the pages on its way are large.
    #[test]
    fn no_marked_byte_is_lost_between_page_sizes(
        covered in ranges(), own in pages(), foreign in pages(),
        asked in vec((ranges(), pages()), 0..6), marked in vec(ranges(), 1..4),
    ) {
        let bitmap = Bitmap::new(covered, own).expect("a bitmap");
        for by in &marked {
            // As a device with pages of its own would tell it.
            let tracker = Bitmap::new(covered, foreign).expect("a bitmap");
            tracker.mark(*by);
            let bits = covered.length().div_ceil(foreign.bytes());
            let mut words = vec![0; bits.div_ceil(64) as usize];
            tracker.report(covered, foreign, &mut words).expect("enough words");
            prop_assert!(tracker.is_empty());
            bitmap.merge(covered, foreign, &words);
        }
        let mut found = Vec::new();
        for (asked, page) in asked {
            let bits = asked.length().div_ceil(page.bytes());
            let mut out = vec![0; bits.div_ceil(64) as usize];
            bitmap.report(asked, page, &mut out).expect("enough words");
            for n in (0..bits).filter(|n| bit(&out, *n)) {
                let stands = range(asked.start() + n * page.bytes(), page.bytes());
                found.extend(stands.intersection(asked));
            }
        }
        // One page of the tracker, and one bit of its report that starts inside it.
        let reach = own.bytes() + 2 * foreign.bytes();
        for run in &bitmap.drain() {
            for at in run.pieces(own.bytes()) {
                let around = IovaRange::new(
                    at.start().saturating_sub(reach), at.length() + 2 * reach,
                ).expect("a range");
                prop_assert!(marked.iter().any(|by| by.overlaps(around)));
            }
            found.push(run);
        }
        for byte in marked.iter().filter_map(|by| by.intersection(covered)) {
            for probe in [byte.start(), byte.start() + byte.length() / 2, byte.last()] {
                prop_assert!(found.iter().any(|run| run.contains(probe)), "{probe:#x}");
            }
        }
    }

    #[test]
    fn pieces_of_runs_are_the_runs(
        covered in ranges(), own in pages(), by in vec(ranges(), 1..5),
        most in 0u64..0x2_0000,
    ) {
        let bitmap = Bitmap::new(covered, own).expect("a bitmap");
        by.iter().for_each(|by| bitmap.mark(*by));
        let drained = bitmap.drain();
        let mut joined: Vec<IovaRange> = Vec::new();
        for piece in drained.runs_of_at_most(most) {
            prop_assert!(piece.length() <= most.max(own.bytes()));
            prop_assert!(
                piece.start() == covered.start() || own.floor(piece.start()) == piece.start()
            );
            match joined.last_mut() {
                Some(last) if last.end() == piece.start() => {
                    *last = range(last.start(), last.length() + piece.length());
                }
                _ => joined.push(piece),
            }
        }
        prop_assert_eq!(&joined, &drained.runs().collect::<Vec<_>>());
        prop_assert_eq!(drained.bytes(), joined.iter().map(IovaRange::length).sum::<u64>());
        let gone = drained.runs().fold(drained.clone(), Drained::without);
        prop_assert!(gone.is_empty());
    }
}

/// Words of many pages of words: the small bitmaps above never leave the first one.
fn long(words: usize, bits: &[usize], full: &[(usize, usize)]) -> Vec<u64> {
    let mut long = vec![0; words];
    for n in bits {
        long[n / 64 % words] |= 1 << (n % 64);
    }
    for (at, count) in full {
        long.iter_mut().skip(at % words).take(*count).for_each(|word| *word = u64::MAX);
    }
    long
}

proptest! {
    #![proptest_config(ProptestConfig { cases: config().cases.div_ceil(4), ..config() })]

    /// What is merged in from anywhere is drained in pieces, and nothing else is.
    #[test]
    fn no_bit_of_a_large_bitmap_is_lost_or_made_up(
        start in 0u64..70_000, from in 0u64..70_000, number in 1u64..90_000,
        bits in vec(any::<usize>(), 0..200), full in vec((any::<usize>(), 0usize..700), 0..4),
        cuts in vec(0u64..160_000, 0..6),
    ) {
        let pages = |first: u64, count: u64| range(first << 12, count << 12);
        let bitmap = Bitmap::new(pages(start, number), PageSize::FOUR_K).expect("a bitmap");
        let words = long(1300, &bits, &full);
        let given = pages(from, words.len() as u64 * 64);
        let expected: Vec<u64> = (0..words.len() as u64 * 64)
            .filter(|n| bit(&words, *n))
            .map(|n| from + n)
            .filter(|page| (start..start + number).contains(page))
            .collect();
        // Twice: what is set already changes nothing.
        bitmap.merge(given, PageSize::FOUR_K, &words);
        bitmap.merge(given, PageSize::FOUR_K, &words);
        prop_assert_eq!(bitmap.count(), expected.len() as u64);

        let mut cuts: Vec<u64> = cuts.into_iter().chain([0, 160_000]).collect();
        cuts.sort_unstable();
        let pieces: Vec<Drained> = cuts
            .windows(2)
            .filter(|cut| cut[0] < cut[1])
            .map(|cut| bitmap.drain_range(pages(cut[0], cut[1] - cut[0])))
            .collect();
        prop_assert!(bitmap.is_empty());
        let found: Vec<u64> = pieces
            .iter()
            .flat_map(|drained| drained.runs().collect::<Vec<_>>())
            .flat_map(|run| run.start() >> 12..run.end() >> 12)
            .collect();
        prop_assert_eq!(&found, &expected);
        for drained in &pieces {
            let runs: Vec<_> = drained.runs().collect();
            prop_assert!(runs.windows(2).all(|two| two[0].end() < two[1].start()));
            prop_assert_eq!(drained.bytes(), drained.pages() << 12);
            bitmap.restore(drained);
        }
        let whole = bitmap.drain();
        prop_assert_eq!(whole.pages(), expected.len() as u64);
        let cut = pages(cuts[0], cuts[1].max(cuts[0] + 1) - cuts[0]);
        let rest = whole.clone().without(cut);
        let kept = expected.iter().filter(|page| !cut.contains(*page << 12)).count();
        prop_assert_eq!(rest.pages(), kept as u64);
        prop_assert_eq!(rest.runs().map(|run| run.length() >> 12).sum::<u64>(), kept as u64);
    }
}

#[test]
fn a_failed_attempt_gives_its_bits_back() {
    let bitmap = bitmap(0, 1 << 20);
    bitmap.mark(range(0x3000, 0x2000));
    let drained = bitmap.drain();
    bitmap.mark(range(0x8000, 1));
    bitmap.restore(&drained);
    let again = bitmap.drain();
    let runs: Vec<_> = again.runs().collect();
    assert_eq!(runs, [range(0x3000, 0x2000), range(0x8000, 0x1000)]);
    assert_eq!(drained.pages(), 2, "the snapshot is its own");
}

#[test]
fn bits_drained_from_another_bitmap_are_scaled_not_lost() {
    let fine = Bitmap::new(range(0x1_0000, 0x1_0000), page(512)).expect("a bitmap");
    fine.mark(range(0x1_1200, 1));
    let coarse = bitmap(0, 1 << 20);
    coarse.restore(&fine.drain());
    let runs: Vec<_> = coarse.drain().runs().collect();
    assert_eq!(runs, [range(0x1_1000, 0x1000)]);
}

#[test]
fn a_report_of_half_a_page_does_not_lose_the_other_half() {
    let bitmap = bitmap(0, 0x4000);
    bitmap.mark(range(0x1000, 0x1000));
    let mut out = [0];
    bitmap.report(range(0x1000, 0x800), page(512), &mut out).expect("enough words");
    assert_eq!(out, [0b1111]);
    out = [0];
    bitmap.report(range(0x1800, 0x800), page(512), &mut out).expect("enough words");
    assert_eq!(out, [0b1111]);
    assert_eq!(bitmap.count(), 1, "nobody has seen all of it at once");
    bitmap.report(range(0, 0x4000), page(0x4000), &mut out).expect("enough words");
    assert!(bitmap.is_empty());
}

#[test]
fn a_report_into_too_few_words_clears_nothing() {
    let bitmap = bitmap(0, 65 * 4096);
    bitmap.mark_all();
    let mut out = [0];
    let refused = bitmap
        .report(bitmap.range(), PageSize::FOUR_K, &mut out)
        .expect_err("65 bits do not fit");
    assert_eq!((refused.needed, refused.given), (2, 1));
    assert_eq!((bitmap.count(), out), (65, [0]));
    bitmap.report(range(0, u64::MAX), page(512), &mut out).expect_err("absurd");
}

#[test]
fn a_short_answer_counts_as_dirty() {
    let bitmap = bitmap(0, 130 * 4096);
    bitmap.merge(bitmap.range(), PageSize::FOUR_K, &[1]);
    assert_eq!(bitmap.drain().pages(), 1 + 66);
    bitmap.merge(bitmap.range(), page(8192), &[]);
    assert_eq!(bitmap.drain().pages(), 130);
}

#[test]
fn bits_past_the_range_are_not_believed() {
    let bitmap = bitmap(0x4000, 0x2000);
    bitmap.merge(range(0x4000, 0x2000), PageSize::FOUR_K, &[u64::MAX, u64::MAX]);
    assert_eq!(bitmap.drain().pages(), 2);
    bitmap.mark(range(0x6000, 0x1000));
    bitmap.mark(range(0, 0x4000));
    assert!(bitmap.is_empty());
    assert!(bitmap.drain_range(range(0x6000, 0x1000)).runs().next().is_none());
}

#[test]
fn the_last_pages_of_the_address_space_do_not_overflow() {
    let top = range(u64::MAX - 0x2800, 0x2800);
    let bitmap = Bitmap::new(top, PageSize::FOUR_K).expect("a bitmap");
    assert_eq!(bitmap.pages(), 3);
    bitmap.merge(top, PageSize::MAX, &[1]);
    assert_eq!(bitmap.drain().runs().collect::<Vec<_>>(), [top]);
    bitmap.merge(range(0, u64::MAX), PageSize::MAX, &[0b1000]);
    let mut out = [0];
    bitmap.report(range(0, u64::MAX), PageSize::MAX, &mut out).expect("enough words");
    assert_eq!(out, [0b1000]);
    assert!(bitmap.is_empty());
}

#[test]
fn an_absurd_bitmap_is_refused_before_it_is_allocated() {
    for (length, page) in [
        (u64::MAX, PageSize::MIN),
        (u64::MAX, PageSize::FOUR_K),
        (((Bitmap::MAX_WORDS as u64) << (6 + 12)) + 1, PageSize::FOUR_K),
    ] {
        let refused = Bitmap::new(range(0, length), page).expect_err("too large");
        assert!(matches!(refused, BitmapError::TooLarge { .. }));
    }
    let largest = Bitmap::new(range(0, u64::MAX), page(1 << 40)).expect("2^24 pages");
    assert_eq!(largest.pages(), 1 << 24);
}

#[test]
fn threads_that_mark_and_drain_lose_nothing() {
    let bitmap = bitmap(0, 1 << 24);
    let pages = bitmap.pages();
    let mut found = BTreeSet::new();
    let mut take = |drained: Drained| {
        for run in &drained {
            found.extend(run.pieces(4096).map(|page| page.start()));
        }
    };
    std::thread::scope(|scope| {
        let producers: Vec<_> = (0..3u64)
            .map(|offset| {
                let bitmap = &bitmap;
                scope.spawn(move || {
                    for number in (offset..pages).step_by(3) {
                        bitmap.mark(range(number * 4096, 1));
                    }
                })
            })
            .collect();
        while producers.iter().any(|thread| !thread.is_finished()) {
            take(bitmap.drain());
        }
    });
    take(bitmap.drain());
    assert_eq!(found.len() as u64, pages);
}
