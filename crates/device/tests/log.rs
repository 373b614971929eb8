//! The DMA log, against a set of pages.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests, and what they share")]

use abi::errno::Errno;
use proptest::prelude::{Just, Strategy, any, prop, prop_oneof, proptest};
use proptest::{prop_assert, prop_assert_eq};
use std::collections::BTreeSet;
use vfio_migrate_device::{
    Bus, Description, DmaLog, DmaTarget, DmaWindow, Identity, Migratable, PAGE_LARGEST,
    RANGES_MAX, Runner, Settle, StateArc, Work,
};

/// Takes every write and keeps nothing.
struct Sink;

impl DmaWindow for Sink {
    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), Errno> {
        Ok(())
    }
    fn write(&self, _: u64, _: &[u8]) -> Result<(), Errno> {
        Ok(())
    }
}

/// Writes where it is told to: region 0 takes an address and a length.
struct Scribe;

impl Migratable for Scribe {
    fn describe(&self) -> Description {
        Description {
            identity: Identity { pci: None, model: "scribe".to_owned(), data_version: 1 },
            capabilities: states::v2::Capabilities::STOP_COPY,
            regions: vec![vfio_migrate_device::Region {
                index: 0,
                size: 16,
                writable: true,
                windows: vec![],
            }],
            irqs: vec![],
        }
    }
    fn read(&mut self, _: u32, _: u64, _: &mut [u8]) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }
    fn write(
        &mut self,
        _: u32,
        _: u64,
        data: &[u8],
        bus: &mut dyn Bus,
    ) -> Result<(), Errno> {
        let (at, len) = data.split_at(8);
        let at = u64::from_le_bytes(at.try_into().unwrap());
        let len = u64::from_le_bytes(len.try_into().unwrap());
        let _ =
            bus.write(at.into(), &vec![1; len as usize]).map_err(|_| Errno::EFAULT)?;
        Ok(())
    }
    fn reset(&mut self) {}
    fn enter(&mut self, _: StateArc, _: &mut dyn Bus) -> Result<Settle, Errno> {
        Ok(Settle::Now)
    }
    fn save(&mut self, _: &mut [u8]) -> Result<usize, Errno> {
        Ok(0)
    }
    fn stop_copy_bytes(&self) -> u64 {
        0
    }
    fn load(&mut self, _: &[u8]) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }
    fn loaded(&mut self) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }
    fn work(&mut self, _: &mut dyn Bus, _: std::time::Instant) -> Work {
        Work::Idle
    }
}

fn runner() -> Runner {
    let mut runner = Runner::new(Box::new(Scribe)).unwrap();
    let all = dirty::IovaRange::new(0, u64::MAX).unwrap();
    runner.map(all, true, DmaTarget::Window(Box::new(Sink))).unwrap();
    runner
}

fn dma(runner: &mut Runner, at: u64, len: u64) {
    let mut command = at.to_le_bytes().to_vec();
    command.extend_from_slice(&len.to_le_bytes());
    runner.write_region(0, 0, &command).unwrap();
}

const AREA: u64 = 1 << 30;

fn page() -> impl Strategy<Value = u64> {
    (12_u32..=24).prop_map(|shift| 1 << shift)
}

proptest! {
    /// No write is lost at any page size, and nothing is reported that no page of the
    /// log that was written touches.
    #[test]
    fn no_write_is_lost_at_any_page_size(
        hint in prop_oneof![Just(4096_u64), Just(8192), Just(65536), Just(1 << 21), Just(1 << 30)],
        writes in prop::collection::vec((0..AREA - 9000, 1_u64..9000), 0..40),
        page in page(),
        start in 0..AREA / 4096,
        base in prop_oneof![Just(0_u64), Just(1 << 40)],
    ) {
        let mut runner = runner();
        let chosen = runner.log_start(hint, &[]).unwrap().bytes();
        prop_assert_eq!(chosen, hint.min(PAGE_LARGEST));
        for (at, len) in &writes {
            dma(&mut runner, base + at, *len);
        }
        let start = start * 4096;
        let length = AREA - start;
        let report = runner.log_report(base + start, length, page, 1 << 16).unwrap();
        let dirty = |n: u64| report[(n / 64) as usize] >> (n % 64) & 1 == 1;
        let mut expected = BTreeSet::new();
        for (at, len) in &writes {
            // The pages of the log that were written, as bits of the report.
            let first = at / chosen * chosen;
            let last = (at + len - 1) / chosen * chosen + chosen - 1;
            if last >= start {
                let last = last.min(AREA - 1);
                let bits = (first.max(start) - start) / page..=(last - start) / page;
                expected.extend(bits);
            }
        }
        for n in 0..length.div_ceil(page) {
            prop_assert_eq!(dirty(n), expected.contains(&n), "bit {}", n);
        }
        let again = runner.log_report(base + start, length, page, 1 << 16).unwrap();
        prop_assert!(
            start % chosen != 0 || again.iter().all(|word| *word == 0),
            "reading does not clear"
        );
    }

    /// Hostile arguments are refused, never a panic.
    #[test]
    fn absurd_arguments_are_refused(
        page in any::<u64>(), start in any::<u64>(), length in any::<u64>(),
    ) {
        let mut log = DmaLog::default();
        let _ = log.start(page, &[(start, length)]);
        let _ = log.report(start, length, page, 1024);
        log.stop();
        let _ = log.start(4096, &[]);
        let _ = log.report(start, length, page, 1024);
    }
}

/// What happens to a log of pages of 4 KiB, all of it in pages from the start of an area.
#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64),
    /// A report of as many pages from the first on, asked for in pieces of as many.
    Report(u64, u64, u64),
    /// The same, but neither end is that of a page.
    Ragged(u64, u64),
}

/// A few pages around the places where a chunk, a line of it or a word ends.
fn pages_around_ends() -> impl Strategy<Value = (u64, u64)> {
    let near =
        prop_oneof![Just(0_u64), Just(64), Just(4096), Just(1 << 18), Just(3 << 18)];
    let start =
        (near, 0..130_u64).prop_map(|(end, before)| (end + 64).saturating_sub(before));
    let count = prop_oneof![1..4_u64, 1..300_u64, Just(1 << 18), Just(600_000)];
    (start, count)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (pages_around_ends(), 1..200_u64)
            .prop_map(|((start, _), count)| Step::Write(start, count)),
        2 => (pages_around_ends(), prop_oneof![1..200_u64, Just(64), Just(1 << 18)])
            .prop_map(|((start, count), most)| Step::Report(start, count, most.max(count / 40))),
        1 => pages_around_ends().prop_map(|(start, count)| Step::Ragged(start, count)),
    ]
}

proptest! {
    /// The device writes between reports, which begin and end anywhere and come in
    /// pieces: each write is told once, by the next report that has its page.
    #[test]
    fn no_write_between_two_reports_is_lost_or_told_twice(
        steps in prop::collection::vec(step(), 1..12),
        base in prop_oneof![Just(0_u64), Just(40 << 12), Just((1 << 40) + (64 << 12))],
    ) {
        let mut runner = runner();
        runner.log_start(4096, &[]).unwrap();
        let mut dirty = BTreeSet::new();
        // Used again and again, as by a server.
        let mut words = Vec::new();
        for step in steps {
            match step {
                Step::Write(start, count) => {
                    dma(&mut runner, base + start * 4096 + 1, count * 4096 - 2);
                    dirty.extend(start..start + count);
                }
                Step::Report(start, count, most) => {
                    for piece in (start..start + count).step_by(most as usize) {
                        let pages = most.min(start + count - piece);
                        words.clear();
                        words.push(u64::MAX);
                        let at = base + piece * 4096;
                        let most = pages.div_ceil(64) as usize;
                        let length = pages * 4096;
                        runner.log_report_into(at, length, 4096, most, &mut words).unwrap();
                        prop_assert_eq!(words[0], u64::MAX);
                        let mut expected = vec![0; most];
                        for page in dirty.range(piece..piece + pages) {
                            let bit = page - piece;
                            expected[(bit / 64) as usize] |= 1_u64 << (bit % 64);
                        }
                        prop_assert!(words[1..] == expected, "{pages} pages from {piece}");
                        dirty.retain(|page| !(piece..piece + pages).contains(page));
                    }
                }
                Step::Ragged(start, count) => {
                    // From the middle of a page to the middle of the last one: bit n is
                    // the second half of one page and the first half of the next.
                    let (at, length) = (base + start * 4096 + 2048, count * 4096);
                    let report = runner.log_report(at, length, 4096, 1 << 16).unwrap();
                    let mut expected = vec![0; report.len()];
                    for page in dirty.range(start..=start + count) {
                        let first = (page - start).saturating_sub(1);
                        for bit in first..=(page - start).min(count - 1) {
                            expected[(bit / 64) as usize] |= 1_u64 << (bit % 64);
                        }
                    }
                    prop_assert!(report == expected, "{count} pages from within {start}");
                    // Those at the ends are kept for whoever asks for their rest.
                    dirty.retain(|page| !(start + 1..start + count).contains(page));
                }
            }
        }
        for page in dirty {
            let report = runner.log_report(base + page * 4096, 4096, 4096, 1);
            prop_assert_eq!(report, Ok(vec![1]), "page {} was lost", page);
        }
    }
}

#[test]
fn start_refuses_as_the_kernel_does() {
    let mut log = DmaLog::default();
    let page = 4096;
    for (ranges, errno) in [
        (vec![(1, page)], Errno::EINVAL),
        (vec![(0, page + 1)], Errno::EINVAL),
        (vec![(0, 0)], Errno::EINVAL),
        (vec![(page, 2 * page), (0, 2 * page)], Errno::EINVAL),
        (vec![(u64::MAX - page + 1, page)], Errno::EOVERFLOW),
        (vec![(u64::MAX - page + 1, 2 * page)], Errno::EOVERFLOW),
        ((0..=RANGES_MAX as u64).map(|n| (n * page, page)).collect(), Errno::E2BIG),
    ] {
        assert_eq!(log.start(page, &ranges), Err(errno), "{ranges:?}");
        assert_eq!(log.page_size(), None);
    }
    for hint in [0, 3, 4097] {
        assert_eq!(log.start(hint, &[]), Err(Errno::EINVAL), "{hint}");
    }
    assert_eq!(log.report(0, page, page, 8), Err(Errno::EINVAL), "not started");
    assert_eq!(log.start(1, &[(0, page), (2 * page, page)]).unwrap().bytes(), 4096);
    assert_eq!(log.start(page, &[]), Err(Errno::EINVAL), "a second start");
    for (start, length, page, errno) in [
        (0, page, 2048, Errno::EINVAL),
        (0, page, 12288, Errno::EINVAL),
        (0, 0, page, Errno::EINVAL),
        (u64::MAX - page + 1, page, page, Errno::EOVERFLOW),
        (0, 64 * 9 * page, page, Errno::E2BIG),
    ] {
        assert_eq!(log.report(start, length, page, 8), Err(errno));
    }
    log.stop();
    log.stop();
    log.start(page, &[]).unwrap();
}

#[test]
fn only_what_is_to_be_logged_is_logged() {
    let mut runner = runner();
    runner.log_start(4096, &[(8 * 4096, 4096), (2 * 4096, 2 * 4096)]).unwrap();
    dma(&mut runner, 0, 20 * 4096);
    let report = runner.log_report(0, 64 * 4096, 4096, 1).unwrap();
    assert_eq!(report, [0b1_0000_1100]);
}

#[test]
fn the_end_of_the_address_space_is_logged() {
    let mut runner = runner();
    runner.log_start(4096, &[]).unwrap();
    dma(&mut runner, u64::MAX - 10, 10);
    let start = u64::MAX - 8191;
    assert_eq!(runner.log_report(start, 8191, 4096, 1).unwrap(), [0b10]);
}

#[test]
fn a_guest_that_resets_the_device_loses_no_dirty_page() {
    let mut runner = runner();
    runner.log_start(4096, &[]).unwrap();
    dma(&mut runner, 4096, 1);
    runner.reset();
    dma(&mut runner, 8192, 1);
    assert_eq!(runner.log_report(0, 16384, 4096, 1).unwrap(), [0b110]);
    runner.disconnect();
    assert_eq!(runner.log_report(0, 16384, 4096, 1), Err(Errno::EINVAL));
}

#[test]
fn a_device_that_writes_everywhere_fills_no_memory() {
    let mut runner = runner();
    runner.log_start(4096, &[]).unwrap();
    // One write for each piece that the log could make, and more.
    for n in 0..(1 << 11) + 10 {
        dma(&mut runner, n << 30, 1);
    }
    let report = runner.log_report(1 << 60, 64 * 4096, 4096, 1).unwrap();
    assert_eq!(report, [u64::MAX], "everything counts as dirty");
}
