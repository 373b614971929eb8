//! What is dirty, and what comes back.

use dirty::PageSize;
use port::{Gpa, Mapping};
use testkit::{FakeDmaMap, FakeMemory, FakeSource, Side};

use super::*;

const LENGTH: u64 = 64 * 4096;

fn tracked(page: PageSize) -> (Tracker, FakeMemory, testkit::SourceHandle) {
    let memory = FakeMemory::new(&[(0, LENGTH), (1 << 20, LENGTH)]);
    let side = Side::alone("source");
    let log = FakeSource::new(&side, "log", Space::GuestPhysical).with_page(page);
    memory.mark_in(log.handle());
    let (dma, handle) = (FakeDmaMap::identity(&memory), log.handle());
    let sources: Vec<Box<dyn DirtySource>> = vec![Box::new(log)];
    let tracker = Tracker::new(Arc::new(memory.clone()), Arc::new(dma), sources);
    (tracker, memory, handle)
}

fn pages(drained: &[(MemoryRegion, Drained)]) -> u64 {
    drained.iter().map(|(_, bits)| bits.bytes() / 4096).sum()
}

/// Everything was dirty once, and has arrived.
fn settled(tracker: &mut Tracker) {
    assert_eq!(pages(&tracker.drain()), 128);
    tracker.acknowledge();
    assert_eq!(tracker.collect(false), Ok(0));
}

#[test]
fn a_bit_that_was_drained_and_not_acknowledged_is_forgotten() {
    let (mut tracker, memory, _) = tracked(PageSize::FOUR_K);
    tracker.start().unwrap();
    settled(&mut tracker);
    memory.guest_write(Gpa(5 * 4096), &[1]).unwrap();
    assert_eq!(tracker.collect(false), Ok(4096));
    assert_eq!(pages(&tracker.drain()), 1);
    memory.guest_write(Gpa((1 << 20) + 4096), &[1]).unwrap();
    assert_eq!(tracker.collect(false), Ok(4096));
    assert_eq!(pages(&tracker.drain()), 1);
    // Both rounds come back, and what was written meanwhile stays.
    memory.guest_write(Gpa(0), &[1]).unwrap();
    assert_eq!(tracker.collect(false), Ok(4096));
    tracker.restore();
    assert_eq!(tracker.collect(false), Ok(3 * 4096));
    // Once only.
    tracker.drain();
    tracker.acknowledge();
    tracker.restore();
    assert_eq!(tracker.collect(false), Ok(0));
}

#[test]
fn a_source_with_larger_pages_loses_the_rest_of_them() {
    let (mut tracker, memory, _) = tracked(PageSize::new(1 << 16).unwrap());
    tracker.start().unwrap();
    settled(&mut tracker);
    memory.guest_write(Gpa(20 * 4096), &[1]).unwrap();
    assert_eq!(tracker.collect(false), Ok(1 << 16));
}

#[test]
fn a_source_that_fails_is_believed_to_have_seen_nothing() {
    let (mut tracker, _, log) = tracked(PageSize::FOUR_K);
    tracker.start().unwrap();
    settled(&mut tracker);
    log.lose();
    assert_eq!(tracker.collect(false), Ok(2 * LENGTH));
    assert_eq!(tracker.failures(), 1);
}

#[test]
fn a_source_that_refuses_to_record_is_asked_and_believed() {
    let memory = FakeMemory::new(&[(0, LENGTH), (1 << 20, LENGTH)]);
    let side = Side::alone("source");
    let mut log = FakeSource::new(&side, "dma log", Space::Iova);
    let dma = FakeDmaMap::new();
    let iova = IovaRange::new(0x80_0000, LENGTH).unwrap();
    dma.add(Mapping { iova, gpa: Gpa(1 << 20) });
    // It records for somebody else: asked, it would say that nothing was written.
    log.start(&[iova], PageSize::FOUR_K).unwrap();
    let mut tracker = Tracker::new(Arc::new(memory), Arc::new(dma), vec![Box::new(log)]);
    tracker.start().unwrap();
    tracker.drain();
    tracker.acknowledge();
    // All that it covers and nothing else, each time: also the last.
    for failures in 1..4 {
        assert_eq!(tracker.collect(false), Ok(LENGTH));
        let drained = tracker.drain();
        assert_eq!(drained[1].1.bytes(), LENGTH);
        tracker.acknowledge();
        assert_eq!(tracker.failures(), failures);
    }
}

/// A source of device addresses, and two places to map.
fn mapped() -> (Tracker, FakeDmaMap, testkit::SourceHandle, [Mapping; 2]) {
    let memory = FakeMemory::new(&[(0, LENGTH), (1 << 20, LENGTH)]);
    let log = FakeSource::new(&Side::alone("source"), "dma log", Space::Iova);
    let (dma, handle) = (FakeDmaMap::new(), log.handle());
    let mapping = |iova, gpa| Mapping {
        iova: IovaRange::new(iova, LENGTH).unwrap(),
        gpa: Gpa(gpa),
    };
    let both = [mapping(0x100_0000, 0), mapping(0x800_0000, 1 << 20)];
    let tracker =
        Tracker::new(Arc::new(memory), Arc::new(dma.clone()), vec![Box::new(log)]);
    (tracker, dma, handle, both)
}

fn sent(tracker: &mut Tracker) {
    tracker.drain();
    tracker.acknowledge();
}

#[test]
fn one_failure_makes_everything_dirty_for_ever() {
    let (mut tracker, _, log) = tracked(PageSize::FOUR_K);
    tracker.start().unwrap();
    settled(&mut tracker);
    log.lose();
    assert_eq!(tracker.collect(false), Ok(2 * LENGTH));
    sent(&mut tracker);
    assert_eq!((tracker.collect(false), tracker.failures()), (Ok(0), 1));
    log.mark(IovaRange::new(0x3000, 1).unwrap());
    assert_eq!(tracker.collect(false), Ok(4096));
    // Nobody asks again after the last time.
    log.lose();
    assert_eq!(tracker.collect(true), Ok(2 * LENGTH));
    assert!(!log.started());
}

#[test]
fn a_mapping_that_is_new_to_its_source_is_dirty_for_ever() {
    let (mut tracker, dma, log, [low, high]) = mapped();
    // Nothing to record at first, which no log takes.
    tracker.start().unwrap();
    sent(&mut tracker);
    assert_eq!((tracker.collect(false), tracker.failures()), (Ok(0), 0));
    for (mapping, dirty) in [(low, LENGTH), (high, 2 * LENGTH)] {
        dma.add(mapping);
        assert_eq!(tracker.collect(false), Ok(dirty));
        sent(&mut tracker);
        assert_eq!(tracker.collect(false), Ok(0));
        log.mark(IovaRange::new(mapping.iova.start(), 1).unwrap());
        assert_eq!(tracker.collect(false), Ok(4096));
        sent(&mut tracker);
    }
    assert_eq!(tracker.failures(), 2);
}

#[test]
fn what_a_source_never_tells_makes_all_else_dirty_too() {
    let (mut tracker, dma, log, [low, high]) = mapped();
    dma.add(low);
    dma.add(high);
    log.never_tell(high.iova);
    tracker.start().unwrap();
    sent(&mut tracker);
    // An error like any other at first.
    assert_eq!(tracker.collect(false), Ok(2 * LENGTH));
    for round in 2..5 {
        sent(&mut tracker);
        log.mark(IovaRange::new(low.iova.start() + 0x5000, 1).unwrap());
        assert_eq!(tracker.collect(false), Ok(LENGTH + 4096));
        assert_eq!(tracker.failures(), round);
    }
    // And what else goes wrong is seen.
    log.lose();
    assert_eq!(tracker.collect(false), Ok(2 * LENGTH));
}

#[test]
fn a_record_that_is_lost_before_anybody_asks_is_lost_for_ever() {
    let (mut tracker, dma, log, [low, high]) = mapped();
    dma.add(low);
    dma.add(high);
    tracker.start().unwrap();
    sent(&mut tracker);
    // The guest resets the device in the first round.
    log.lose();
    assert_eq!(tracker.collect(false), Ok(2 * LENGTH));
    sent(&mut tracker);
    log.mark(IovaRange::new(low.iova.start() + 0x5000, 1).unwrap());
    assert_eq!(tracker.collect(false), Ok(4096));
    assert_eq!(tracker.failures(), 1);
}

#[test]
fn what_a_source_did_not_tell_once_it_never_tells_again() {
    let (mut tracker, dma, log, [low, _]) = mapped();
    dma.add(low);
    log.never_tell(low.iova);
    tracker.start().unwrap();
    for _ in 0..3 {
        sent(&mut tracker);
        assert_eq!(tracker.collect(false), Ok(LENGTH));
    }
    log.tell_again();
    sent(&mut tracker);
    assert_eq!((tracker.collect(false), tracker.failures()), (Ok(0), 3));
    // So it is missed when it is lost now.
    log.lose();
    assert_eq!(tracker.collect(false), Ok(LENGTH));
    sent(&mut tracker);
    assert_eq!((tracker.collect(false), tracker.failures()), (Ok(0), 4));
}

#[test]
fn a_device_without_a_log_is_refused_or_believed() {
    let (_, dma, _, [low, _]) = mapped();
    let memory = FakeMemory::new(&[(0, LENGTH), (1 << 20, LENGTH)]);
    let source = Box::new(port::Everything::of("card"));
    dma.add(low);
    let mut tracker = Tracker::new(Arc::new(memory), Arc::new(dma), vec![source]);
    tracker.start().unwrap();
    for round in 1..4 {
        sent(&mut tracker);
        assert_eq!(tracker.collect(round == 3), Ok(LENGTH));
        assert_eq!(tracker.failures(), round);
    }
}

#[test]
fn an_alias_of_a_page_is_another_page() {
    let memory = FakeMemory::new(&[(0, LENGTH)]);
    let log = FakeSource::new(&Side::alone("source"), "dma log", Space::Iova);
    let handle = log.handle();
    let dma = FakeDmaMap::new();
    for iova in [0x10_0000, 0x80_0000] {
        let iova = IovaRange::new(iova, LENGTH).unwrap();
        dma.add(Mapping { iova, gpa: Gpa(0) });
    }
    let mut tracker =
        Tracker::new(Arc::new(memory), Arc::new(dma.clone()), vec![Box::new(log)]);
    tracker.start().unwrap();
    tracker.drain();
    tracker.acknowledge();
    handle.mark(IovaRange::new(0x10_0000 + 3 * 4096, 1).unwrap());
    handle.mark(IovaRange::new(0x80_0000 + 3 * 4096, 1).unwrap());
    handle.mark(IovaRange::new(0x80_0000 + 9 * 4096, 1).unwrap());
    assert_eq!(tracker.collect(false), Ok(2 * 4096));
    let runs: Vec<_> = tracker.drain()[0].1.runs().map(|run| run.start()).collect();
    assert_eq!(runs, [3 * 4096, 9 * 4096]);
}

#[test]
fn memory_that_changed_its_regions_is_tracked_on() {
    let (mut tracker, memory, log) = tracked(PageSize::FOUR_K);
    tracker.start().unwrap();
    memory.change_layout();
    assert!(matches!(tracker.collect(false), Err(Cause::Changed(_))));
    assert!(log.started());
    tracker.stop();
    assert!(!log.started());
    assert_eq!(tracker.into_sources().len(), 1);
}
