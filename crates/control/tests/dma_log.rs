//! A device's DMA log that does not do as it should.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]

mod scripted;

use std::error::Error;
use std::sync::Arc;

use abi::errno::Errno;
use abi::feature::Feature;
use dirty::{Bitmap, IovaRange, PageSize};
use port::{DirtySource, SourceError};
use scripted::Scripted;
use vfio_migrate_control::DmaLog;
use zerocopy::IntoBytes;

const START: Feature = Feature::DMA_LOGGING_START;
const STOP: Feature = Feature::DMA_LOGGING_STOP;
const REPORT: Feature = Feature::DMA_LOGGING_REPORT;

fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(start, length).unwrap()
}

fn control(page: u64) -> Vec<u8> {
    [page, 0].as_bytes().to_vec()
}

fn log() -> (Arc<Scripted>, DmaLog) {
    let transport = Scripted::new(7);
    let mut script = transport.script();
    script.puts.insert(START, [Ok(control(4096))].into());
    script.puts.insert(STOP, [Ok(Vec::new())].into());
    script.gets.insert(REPORT, [].into());
    drop(script);
    let log = DmaLog::open(transport.clone()).unwrap().unwrap();
    (transport, log)
}

fn why(error: &SourceError) -> String {
    error.source().unwrap().to_string()
}

fn collect(log: &mut DmaLog, from: IovaRange) -> Result<Vec<IovaRange>, SourceError> {
    let all = Bitmap::new(range(0, 1 << 34), PageSize::FOUR_K).unwrap();
    log.collect(from, &mut |report| all.merge(report.range, report.page, report.words))?;
    Ok(all.drain().runs().collect())
}

/// The ranges of the last START.
fn started(transport: &Scripted) -> Vec<(u64, u64)> {
    let script = transport.script();
    let (_, payload) = script.payloads.iter().rfind(|(f, _)| *f == START).unwrap();
    let (words, rest) = payload.as_chunks::<8>();
    assert!(rest.is_empty());
    let words: Vec<u64> = words.iter().map(|w| u64::from_ne_bytes(*w)).collect();
    assert_eq!(words[1], (words.len() as u64 - 2) / 2);
    words[2..].as_chunks::<2>().0.iter().map(|[a, b]| (*a, *b)).collect()
}

#[test]
fn a_device_without_a_log_has_none() {
    assert!(DmaLog::open(Scripted::new(7)).unwrap().is_none());
}

#[test]
fn what_was_written_is_reported_once_however_large_the_range() {
    let (transport, log) = log();
    // 64 pages an answer.
    let mut log = log.with_most_bytes(8);
    log.start(&[range(0x1000, 0x40_0000)], PageSize::FOUR_K).unwrap();
    assert_eq!(started(&transport), [(0x1000, 0x40_0000)]);
    transport.script().dirty = vec![0x1000, 0x41_000, 0x40_0000];
    let found = collect(&mut log, range(0x1000, 0x40_0000)).unwrap();
    let page = |at| range(at, 0x1000);
    assert_eq!(found, [page(0x1000), page(0x41_000), page(0x40_0000)]);
    assert_eq!(collect(&mut log, range(0x1000, 0x40_0000)).unwrap(), []);
    transport.script().dirty = vec![0x1000, 0x41_000];
    assert_eq!(collect(&mut log, range(0x41_000, 1)).unwrap(), [page(0x41_000)]);
    assert_eq!(transport.script().dirty, [0x1000]);
}

#[test]
fn what_was_written_before_the_log_was_tried_is_not_lost() {
    let (transport, mut log) = log();
    transport.script().dirty = vec![0x1000];
    log.start(&[range(0x1000, 0x4000)], PageSize::FOUR_K).unwrap();
    assert_eq!(transport.script().dirty, []);
    assert_eq!(collect(&mut log, range(0x3000, 0x1000)).unwrap(), []);
    let all = range(0x1000, 0x4000);
    assert_eq!(collect(&mut log, all).unwrap(), [range(0x1000, 0x1000)]);
    assert_eq!(collect(&mut log, all).unwrap(), []);
}

#[test]
fn a_log_that_starts_and_never_reports_is_found_out_at_once() {
    // Kernels without IOMMUFD.
    let (transport, mut log) = log();
    transport.script().gets.insert(REPORT, [Err(Errno::EOPNOTSUPP)].into());
    let error = log.start(&[range(0, 0x1000)], PageSize::FOUR_K).unwrap_err();
    assert_eq!(error.to_string(), "dev0 DMA log: start failed");
    assert!(why(&error).contains("EOPNOTSUPP"));
    assert_eq!(transport.script().calls.last().unwrap(), "set DMA_LOGGING_STOP");
    assert!(collect(&mut log, range(0, 0x1000)).is_err());
}

#[test]
fn a_log_that_somebody_else_reads_is_stopped_under_them() {
    for (errno, on) in
        [(Errno::EINVAL, true), (Errno::EBUSY, true), (Errno::ENOMEM, false)]
    {
        let (transport, mut log) = log();
        transport.script().puts.insert(START, [Err(errno)].into());
        let error = log.start(&[range(0, 0x1000)], PageSize::FOUR_K).unwrap_err();
        assert_eq!(why(&error).contains("somebody else reads it"), on, "{error:?}");
        assert_eq!(transport.script().calls.last().unwrap(), "set DMA_LOGGING_START");
    }
    // Where nobody knows whether it runs, it is stopped.
    let (transport, mut log) = log();
    transport.script().puts.insert(START, [Ok(control(5000))].into());
    log.start(&[range(0, 0x1000)], PageSize::FOUR_K).unwrap_err();
    assert_eq!(transport.script().calls.last().unwrap(), "set DMA_LOGGING_STOP");
}

#[test]
fn ranges_are_made_fewer_until_the_device_can_have_them() {
    let (transport, mut log) = log();
    let e2big = || Err(Errno::E2BIG);
    let answers = [e2big(), e2big(), Ok(control(4096))];
    transport.script().puts.insert(START, answers.into());
    let ranges: Vec<_> = (0..1000).map(|n| range(n * 0x10000, 0x1000)).collect();
    log.start(&ranges, PageSize::FOUR_K).unwrap();
    let asked = started(&transport);
    assert_eq!(asked.len(), 64);
    assert_eq!(asked[0].0, 0);
    transport.script().dirty = vec![999 * 0x10000];
    let found = collect(&mut log, ranges[999]).unwrap();
    assert_eq!(found, [range(999 * 0x10000, 0x1000)]);
    // One that cannot have a single range cannot be started.
    transport.script().puts.insert(START, [e2big()].into());
    assert!(log.start(&ranges, PageSize::FOUR_K).is_err());
}

#[test]
fn ranges_are_whole_pages_in_order_without_overlap() {
    let (transport, mut log) = log();
    let ranges = [range(0x9800, 0x100), range(0x800, 0x1000), range(0x2000, 0x800)];
    log.start(&ranges, PageSize::FOUR_K).unwrap();
    assert_eq!(started(&transport), [(0, 0x3000), (0x9000, 0x1000)]);
    assert!(log.start(&[], PageSize::FOUR_K).is_err());
    assert!(log.start(&[range(u64::MAX - 1, 1)], PageSize::FOUR_K).is_err());
}

#[test]
fn a_device_may_choose_its_page_but_not_any() {
    let (transport, mut log) = log();
    transport.script().puts.insert(START, [Ok(control(1 << 21))].into());
    log.start(&[range(0x1000, 0x80_0000)], PageSize::FOUR_K).unwrap();
    // Anew, so that no range ends inside a page of its own: it would be told by half.
    assert_eq!(started(&transport), [(0, 0xa0_0000)]);
    let sets = transport.script().calls.clone();
    let sets: Vec<_> = sets.iter().filter(|call| call.starts_with("set")).collect();
    assert_eq!(
        sets,
        ["set DMA_LOGGING_START", "set DMA_LOGGING_STOP", "set DMA_LOGGING_START"]
    );
    transport.script().dirty = vec![0x3000];
    let found = collect(&mut log, range(0x3000, 0x1000)).unwrap();
    assert_eq!(found, [range(0, 0x20_0000)]);
    // What its pages end in and the range does not is lost with it.
    transport.script().gets.insert(REPORT, [Err(Errno::ENODEV)].into());
    let mut lost = Vec::new();
    let asked = range(0x3000, 0x1000);
    log.collect(asked, &mut |report| lost.push((report.range, report.is_lost())))
        .unwrap_err();
    assert_eq!(lost, [(range(0, 0x20_0000), true)]);
    transport.script().gets.insert(REPORT, [].into());
    for answer in [control(0x3000), control(1 << 63), vec![1; 15]] {
        transport.script().puts.insert(START, [Ok(answer)].into());
        assert!(log.start(&[range(0, 0x1000)], PageSize::FOUR_K).is_err());
    }
    // Finer than a report may be: read at the finest that it may.
    transport.script().puts.insert(START, [Ok(control(64))].into());
    log.start(&[range(0, 0x1000)], PageSize::FOUR_K).unwrap();
}

#[test]
fn a_report_that_is_not_what_was_asked_for_means_that_all_is_dirty() {
    let (transport, mut log) = log();
    let all = range(0, 100 * 0x1000);
    log.start(&[all], PageSize::FOUR_K).unwrap();
    let echo = |iova: u64, words: usize| {
        let mut answer = [iova, all.length(), 4096].as_bytes().to_vec();
        answer.resize(24 + words * 8, 0);
        answer
    };
    for answer in
        [vec![], vec![0; 23], echo(0, 0), echo(0, 1), echo(0, 3), echo(0x1000, 2)]
    {
        transport.script().gets.insert(REPORT, [Ok(answer)].into());
        assert!(collect(&mut log, all).is_err());
    }
    transport.script().gets.insert(REPORT, [Ok(echo(0, 2))].into());
    assert!(collect(&mut log, all).is_ok());
    transport.script().gets.insert(REPORT, [Err(Errno::EIO)].into());
    assert!(why(&collect(&mut log, all).unwrap_err()).contains("EIO"));
}

/// The device has forgotten what it would have told, and it does report parts.
#[test]
fn a_report_that_failed_is_asked_for_again_and_believed() {
    let clean = |of: IovaRange| {
        let words = of.length().div_ceil(0x1000).div_ceil(64) as usize;
        let mut answer = [of.start(), of.length(), 4096].as_bytes().to_vec();
        answer.resize(24 + words * 8, 0);
        Ok(answer)
    };
    let (page, rest) = (range(0, 0x1000), range(0x10_0000, 200 * 0x1000));
    let first = range(0x10_0000, 64 * 0x1000);
    for errno in [Errno::EIO, Errno::EINVAL, Errno::EOPNOTSUPP] {
        // All of a mapping at once; and the rest of one, a part of which was told.
        for (most, asked, answers) in [
            (usize::MAX, page, vec![Err(errno), clean(page)]),
            (usize::MAX, rest, vec![Err(errno), clean(rest)]),
            (8, rest, vec![clean(first), Err(errno), clean(rest)]),
            (8, rest, vec![Err(errno), clean(rest)]),
        ] {
            let (transport, log) = log();
            let mut log = log.with_most_bytes(most);
            log.start(&[page, rest], PageSize::FOUR_K).unwrap();
            transport.script().gets.insert(REPORT, answers.into());
            collect(&mut log, asked).unwrap_err();
        }
    }
}

#[test]
fn nothing_is_collected_where_nothing_is_logged() {
    let (_transport, mut log) = log();
    assert!(collect(&mut log, range(0, 1)).is_err());
    log.start(&[range(0, 0x1000), range(0x8000, 0x1000)], PageSize::FOUR_K).unwrap();
    assert!(collect(&mut log, range(0, 0x9000)).is_err());
    assert!(collect(&mut log, range(0x7000, 0x1000)).is_err());
    log.stop().unwrap();
    assert!(collect(&mut log, range(0, 0x1000)).is_err());
}

#[test]
fn a_log_that_runs_is_stopped_before_it_is_started_again() {
    let (transport, mut log) = log();
    log.start(&[range(0, 0x1000)], PageSize::FOUR_K).unwrap();
    log.start(&[range(0, 0x2000)], PageSize::FOUR_K).unwrap();
    let calls = transport.script().calls.clone();
    let sets: Vec<_> = calls.iter().filter(|call| call.starts_with("set")).collect();
    assert_eq!(
        sets,
        ["set DMA_LOGGING_START", "set DMA_LOGGING_STOP", "set DMA_LOGGING_START"]
    );
}

#[test]
fn a_server_that_reports_only_whole_mappings_makes_everything_dirty_for_ever() {
    let (transport, mut log) = log();
    // The first is memory without a descriptor, of which it says nothing.
    let mappings = [range(0, 0x3000), range(0x3000, 0x4000), range(0x10_0000, 0x40_0000)];
    let whole = mappings[1..].iter().map(|one| (one.start(), one.length())).collect();
    transport.script().whole = Some(whole);
    // Read by the report that tries the log out, and told all the same.
    transport.script().dirty = vec![0x4000];
    log.start(&mappings, PageSize::FOUR_K).unwrap();
    transport.script().dirty = vec![0x5000, 0x10_0000, 0x4f_f000];
    let page = |at| range(at, 0x1000);
    let found = collect(&mut log, mappings[1]).unwrap();
    assert_eq!(found, [range(0x4000, 0x2000)]);
    assert_eq!(
        collect(&mut log, mappings[2]).unwrap(),
        [page(0x10_0000), page(0x4f_f000)]
    );
    assert_eq!(collect(&mut log, mappings[2]).unwrap(), []);
    assert!(collect(&mut log, mappings[0]).is_err());
    // A part is not asked for: the rest of the report would be lost.
    transport.script().dirty = vec![0x10_0000, 0x20_0000];
    let error = collect(&mut log, range(0x10_0000, 0x1000)).unwrap_err();
    assert!(why(&error).contains("as a whole"), "{}", why(&error));
    let found = collect(&mut log, mappings[2]).unwrap();
    assert_eq!(found, [page(0x10_0000), page(0x20_0000)]);
}

#[test]
fn a_whole_mapping_with_more_bits_than_a_message_is_not_asked_for() {
    let (transport, log) = log();
    let mappings = [range(0, 0x1000), range(0x10_0000, 0x100_0000)];
    let whole = mappings.iter().map(|one| (one.start(), one.length())).collect();
    transport.script().whole = Some(whole);
    // 4096 pages are 512 bytes of bits.
    transport.script().most_report_bytes = 504;
    let mut log = log.with_most_bytes(usize::MAX);
    // The first mapping is a page, which is no part of it.
    log.start(&mappings, PageSize::FOUR_K).unwrap();
    transport.script().dirty = vec![0, 0x10_0000];
    assert_eq!(collect(&mut log, mappings[0]).unwrap(), [range(0, 0x1000)]);
    let error = collect(&mut log, mappings[1]).unwrap_err();
    assert!(why(&error).contains("too many pages"), "{}", why(&error));
    // Alone there is nothing that could be reported.
    assert!(log.start(&mappings[1..], PageSize::FOUR_K).is_err());
    transport.script().most_report_bytes = 512;
    let mut log = log.with_most_bytes(8);
    log.start(&mappings, PageSize::FOUR_K).unwrap();
    let found = collect(&mut log, mappings[1]).unwrap();
    assert_eq!(found, [range(0x10_0000, 0x1000)]);
}

#[test]
fn no_report_has_more_bits_than_the_transport_takes() {
    let (transport, _) = log();
    transport.script().most_report_bytes = 16;
    let mut log = DmaLog::open(transport.clone()).unwrap().unwrap();
    let all = range(0, 1000 * 0x1000);
    log.start(&[all], PageSize::FOUR_K).unwrap();
    transport.script().dirty = vec![0, 999 * 0x1000];
    transport.script().payloads.clear();
    assert_eq!(collect(&mut log, all).unwrap().len(), 2);
    let script = transport.script();
    let lengths: Vec<_> = script
        .payloads
        .iter()
        .map(|(_, asked)| u64::from_ne_bytes(asked[8..16].try_into().unwrap()))
        .collect();
    assert_eq!(lengths.iter().sum::<u64>(), all.length());
    assert!(lengths.iter().all(|length| *length <= 128 * 0x1000), "{lengths:?}");
}

#[test]
fn a_start_that_is_answered_by_a_header_alone_is_no_broken_log() {
    let (transport, mut log) = log();
    transport.script().puts.insert(START, [Ok(Vec::new())].into());
    log.start(&[range(0, 0x2000)], PageSize::FOUR_K).unwrap();
    transport.script().dirty = vec![0x1000];
    let found = collect(&mut log, range(0, 0x2000)).unwrap();
    assert_eq!(found, [range(0x1000, 0x1000)]);
}
