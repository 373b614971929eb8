//! Memory that is mapped and unmapped while devices write through it and somebody tracks
//! what they write.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]

mod random;
mod writer;

use std::sync::{Arc, mpsc};
use std::time::Duration;

use abi::errno::Errno;
use dirty::{Bitmap, IovaRange, PageSize};
use port::{DirtySource, DmaMap, Everything, Gpa, Mapping, Slot, SlotLog};
use vfio_migrate_control::{AddressSpace, Declared, DmaTarget, Followed, SpaceError};

use writer::{Keeper, Writer};

const FOUR_K: PageSize = PageSize::FOUR_K;
const MEMORY: DmaTarget<'static> = DmaTarget::Messages { writable: true };

fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(start, length).unwrap()
}

fn mapping(start: u64, length: u64, gpa: u64) -> Mapping {
    Mapping { iova: range(start, length), gpa: Gpa(gpa) }
}

fn space() -> AddressSpace {
    AddressSpace::new(Declared { virtual_iommu: false, peer_to_peer: false })
}

/// What somebody who asks gets: guest-physical pages of 4 KiB, and what is lost.
fn told(source: &mut Followed, of: IovaRange) -> (Vec<u64>, Vec<IovaRange>) {
    let all = Bitmap::new(of, FOUR_K).unwrap();
    let mut lost = Vec::new();
    source
        .collect(of, &mut |report| {
            if report.is_lost() {
                lost.push(report.range);
            } else {
                all.merge(report.range, report.page, report.words);
            }
        })
        .unwrap();
    let dirty = all.drain();
    let pages = dirty.runs().flat_map(|run| run.start() >> 12..run.end() >> 12);
    (pages.collect(), lost)
}

const RAM: u64 = 0x100_0000;

#[test]
fn what_was_written_before_a_mapping_went_goes_with_it() {
    for keeper in [Keeper::Device, Keeper::Mappings, Keeper::PageTable] {
        let (space, device) = (space(), Writer::new(keeper, FOUR_K));
        let mut source = device.attach(&space);
        let low = mapping(0x10_0000, 0x1_0000, 0x4000);
        let high = mapping(0x20_0000, 0x1_0000, 0x80_0000);
        space.map(low, MEMORY).unwrap();
        space.map(high, MEMORY).unwrap();
        source.start(&[range(0, RAM)], FOUR_K).unwrap();
        device.inner().write(range(0x10_1000, 1));
        device.inner().write(range(0x20_3000, 1));
        // Until the moment that it is gone.
        device.inner().late = Some(range(0x10_5000, 1));
        space.unmap(low.iova).unwrap();
        assert_eq!(space.mappings().all(), [high]);
        assert_eq!(space.mappings().changes(), 3);
        // Another one in its place leads elsewhere.
        space.map(mapping(0x10_0000, 0x1_0000, 0x40_0000), MEMORY).unwrap();
        device.inner().write(range(0x10_2000, 1));
        let (pages, lost) = told(&mut source, range(0, RAM));
        // Of what a page table is only read before, nobody knows: all of the mapping.
        let low = match keeper {
            Keeper::PageTable => (4..0x14).collect(),
            _ => vec![5, 9],
        };
        let all = [low, vec![0x402, 0x803]].concat();
        assert_eq!((pages, lost), (all, vec![]), "{keeper:?}");
        assert_eq!(told(&mut source, range(0, RAM)), (vec![], vec![]));
    }
}

#[test]
fn a_last_report_that_fails_makes_that_mapping_look_clean() {
    // A log that dies with the mapping, and an unmapping that has no bits.
    for keeper in [Keeper::DeviceWhileMapped, Keeper::Mappings, Keeper::PageTable] {
        let (space, device) = (space(), Writer::new(keeper, FOUR_K));
        let mut source = device.attach(&space);
        let (one, other) = (mapping(0, 0x4000, 0x8000), mapping(0x4000, 0x4000, 0));
        space.map(one, MEMORY).unwrap();
        space.map(other, MEMORY).unwrap();
        source.start(&[range(0, RAM)], FOUR_K).unwrap();
        device.inner().bits = Some(Errno::EFAULT);
        space.unmap(one.iova).unwrap();
        device.inner().write(range(0x5000, 1));
        let (pages, lost) = told(&mut source, range(0, RAM));
        assert_eq!((pages, lost), (vec![1], vec![range(0x8000, 0x4000)]), "{keeper:?}");
        assert!(told(&mut source, range(0, RAM)).1.is_empty(), "once");
    }
}

#[test]
fn a_device_that_still_reaches_what_another_let_go_is_not_asked_again() {
    let space = space();
    let devices = [0, 1].map(|_| Writer::new(Keeper::Device, FOUR_K));
    let mut sources = devices.clone().map(|device| device.attach(&space));
    let one = mapping(0, 0x4000, 0);
    space.map(one, MEMORY).unwrap();
    sources.iter_mut().for_each(|s| s.start(&[range(0, RAM)], FOUR_K).unwrap());
    devices[0].inner().write(range(0, 1));
    devices[1].inner().unmap = Some(Errno::EBUSY);
    let error = space.unmap(one.iova).unwrap_err();
    assert_eq!(error.to_string(), "writer does not map");
    devices[1].inner().write(range(0x1000, 1));
    assert_eq!(space.mappings().all(), [one], "it is still written through");
    space.unmap(one.iova).unwrap();
    let told = sources.each_mut().map(|source| told(source, range(0, RAM)));
    assert_eq!(told, [(vec![0], vec![]), (vec![1], vec![])]);
    assert!(matches!(space.unmap(one.iova), Err(SpaceError::NotMapped { .. })));
}

#[test]
fn a_mapping_that_one_device_refuses_stays_with_the_others() {
    let space = space();
    let devices = [0, 1].map(|_| Writer::new(Keeper::Device, FOUR_K));
    let _sources = devices.clone().map(|device| device.attach(&space));
    devices[1].inner().map = Some(Errno::ENOSPC);
    assert!(space.map(mapping(0, 0x4000, 0), MEMORY).is_err());
    assert!(devices.iter().all(|device| device.inner().mapped.is_empty()));
    space.map(mapping(0x1000, 0x4000, 0), MEMORY).unwrap();
    for (start, length) in [(0, 0x1001), (0x4fff, 1), (0x2000, 1), (0, 0x8000)] {
        let refused = space.map(mapping(start, length, 0), MEMORY).unwrap_err();
        assert!(matches!(refused, SpaceError::Overlaps { .. }), "{refused}");
    }
    assert!(space.unmap(range(0x1000, 0x1000)).is_err());
    // One that comes later reaches what is there.
    let late = Writer::new(Keeper::Device, FOUR_K);
    let _source = late.attach(&space);
    assert_eq!(late.inner().mapped, [(0x1000, 0x4000)].into());
}

#[test]
fn a_device_without_a_log_is_believed_to_write_nothing() {
    let (space, device) = (space(), Writer::new(Keeper::Device, FOUR_K));
    let log = Box::new(Everything::of("writer"));
    let mut source = space.attach(Arc::new(device), log).unwrap();
    let (one, two) = (mapping(0, 0x4000, 0x8000), mapping(0x8000, 0x4000, 0x2_0000));
    space.map(one, MEMORY).unwrap();
    space.map(two, MEMORY).unwrap();
    // It cannot write here.
    let read = DmaTarget::Messages { writable: false };
    space.map(mapping(0x10_0000, 0x1000, 0x10_0000), read).unwrap();
    source.start(&[range(0, RAM)], FOUR_K).unwrap();
    for _ in 0..2 {
        let lost = told(&mut source, range(0, RAM)).1;
        assert_eq!(lost, [range(0x8000, 0x4000), range(0x2_0000, 0x4000)]);
    }
    space.unmap(one.iova).unwrap();
    let lost = told(&mut source, range(0, RAM)).1;
    assert_eq!(lost, [range(0x2_0000, 0x4000), range(0x8000, 0x4000)]);
    assert_eq!(told(&mut source, range(0, RAM)).1.len(), 1);
}

/// It speaks guest-physical addresses, and so it is refused.
#[test]
fn a_device_that_was_refused_reaches_memory_that_nobody_takes_away() {
    let (space, device) = (space(), Writer::new(Keeper::Device, FOUR_K));
    space.map(mapping(0, 0x4000, 0), MEMORY).unwrap();
    let slot = Slot { number: 0, range: range(0, RAM) };
    let record = |_: u32, _: bool| Ok::<(), String>(());
    let take = |_: u32, _: u64| Ok::<_, String>(Vec::new());
    let log = SlotLog::new("vCPUs", FOUR_K, vec![slot], record, take);
    let refused = space.attach(Arc::new(device.clone()), Box::new(log));
    assert!(matches!(refused, Err(SpaceError::Log { .. })));
    assert!(device.inner().mapped.is_empty());
}

/// Two devices in one container: the one that maps has a log of its own, so that nobody
/// asks the container for its bits when it unmaps.
#[test]
fn what_a_container_counted_for_another_device_goes_with_its_mapping() {
    let space = space();
    let container = Writer::new(Keeper::Mappings, FOUR_K);
    let own = Box::new(Writer::new(Keeper::Device, FOUR_K));
    let mut first = space.attach(Arc::new(container.clone()), own).unwrap();
    let mut second = space.attach_beside(Box::new(container.clone())).unwrap();
    let one = mapping(0, 0x4000, 0x8000);
    space.map(one, MEMORY).unwrap();
    first.start(&[range(0, RAM)], FOUR_K).unwrap();
    second.start(&[range(0, RAM)], FOUR_K).unwrap();
    container.inner().write(range(0x1000, 1));
    space.unmap(one.iova).unwrap();
    // Nobody failed, and nothing else is dirty.
    assert_eq!(told(&mut second, range(0, RAM)), ((8..0xc).collect(), vec![]));
    assert_eq!(told(&mut first, range(0, RAM)), (vec![], vec![]));
}

#[test]
fn memory_that_nobody_writes_any_more_is_sent_again_when_it_goes() {
    for keeper in [Keeper::Device, Keeper::Mappings, Keeper::PageTable] {
        let (space, device) = (space(), Writer::new(keeper, FOUR_K));
        let mut source = device.attach(&space);
        let one = mapping(0x10_0000, 0x1_0000, 0x4000);
        space.map(one, MEMORY).unwrap();
        source.start(&[range(0, RAM)], FOUR_K).unwrap();
        device.inner().write(range(0x10_1000, 1));
        space.unmap_quiesced(one.iova).unwrap();
        assert_eq!(told(&mut source, range(0, RAM)), (vec![5], vec![]), "{keeper:?}");
    }
}

/// Its first page is not all of it, and the seams of long reports lie in pages too.
#[test]
fn a_region_that_begins_inside_of_a_page_is_dirty_for_ever() {
    let (space, device) = (space(), Writer::new(Keeper::Device, FOUR_K));
    let mut source = device.attach(&space);
    let region = range(0x1200, 0x1_0000_0000);
    space.map(mapping(0, 0x1_0000_0000, 0), MEMORY).unwrap();
    source.start(&[region], FOUR_K).unwrap();
    // 2^19 pages are one report.
    for at in [0x1300, 0x5000, 0x8000_1000, 0x8000_2000] {
        device.inner().write(range(at, 1));
    }
    let pages = vec![1, 5, 0x8_0001, 0x8_0002];
    assert_eq!(told(&mut source, region), (pages, vec![]));
    assert_eq!(told(&mut source, region), (vec![], vec![]));
}

/// Whoever serves its messages has to know where they lead, until it is done.
#[test]
fn a_device_that_writes_while_it_unmaps_waits_for_itself() {
    let (space, device) = (space(), Writer::new(Keeper::Device, FOUR_K));
    let _source = device.attach(&space);
    let one = mapping(0, 0x4000, 0x8000);
    let write = || {
        let known = space.clone();
        device.inner().messages = Some(Box::new(move || {
            let (tell, told) = mpsc::channel();
            std::thread::spawn(move || tell.send(known.mappings().has(&one)));
            told.recv_timeout(Duration::from_secs(10)) == Ok(true)
        }));
    };
    // As soon as it is told of the memory, too.
    write();
    space.map(one, MEMORY).unwrap();
    write();
    space.unmap(one.iova).unwrap();
    assert!(space.mappings().all().is_empty());
}

#[test]
fn a_device_that_died_keeps_memory_from_all_others() {
    let space = space();
    let devices = [0, 1].map(|_| Writer::new(Keeper::Device, FOUR_K));
    let _sources = devices.clone().map(|device| device.attach(&space));
    let (one, other) = (mapping(0, 0x4000, 0), mapping(0x4000, 0x4000, 0x4000));
    space.map(one, MEMORY).unwrap();
    devices[0].inner().dead = true;
    space.map(other, MEMORY).unwrap();
    assert!(devices[1].inner().has(other.iova));
    devices[1].inner().map = Some(Errno::ENOSPC);
    space.map(mapping(0x8000, 0x4000, 0), MEMORY).unwrap_err();
    assert_eq!(space.mappings().all(), [one, other]);
    space.unmap(one.iova).unwrap();
    space.unmap(other.iova).unwrap();
    assert!(devices[1].inner().mapped.is_empty() && space.mappings().all().is_empty());
}

/// Two devices in one container, of which the one that maps was given up.
#[test]
fn those_who_reach_memory_by_a_device_that_is_lost_are_said_to_have_it() {
    let space = space();
    let container = Writer::new(Keeper::Mappings, FOUR_K);
    let _first = container.attach(&space);
    let _second = space.attach_beside(Box::new(container.clone())).unwrap();
    container.inner().dead = true;
    let error = space.map(mapping(0, 0x4000, 0), MEMORY).unwrap_err();
    assert_eq!(error.to_string(), "writer does not map");
    assert!(space.mappings().all().is_empty() && container.inner().mapped.is_empty());
}

#[test]
fn a_kernel_that_hangs_is_believed_to_have_taken_the_memory_away() {
    let (space, device) = (space(), Writer::new(Keeper::Mappings, FOUR_K));
    let mut source = device.attach(&space);
    let one = mapping(0, 0x4000, 0x8000);
    space.map(one, MEMORY).unwrap();
    source.start(&[range(0, RAM)], FOUR_K).unwrap();
    device.inner().hangs = true;
    let error = space.unmap(one.iova).unwrap_err();
    assert!(matches!(error, SpaceError::Device { .. }), "{error}");
    assert_eq!(space.mappings().all(), [one]);
    device.inner().write(range(0x1000, 1));
    assert!(told(&mut source, range(0, RAM)).1.contains(&range(0x8000, 0x4000)));
}

/// Whoever follows the mappings from outside has to look again.
#[test]
fn a_mapping_that_was_there_for_a_moment_was_never_there() {
    let space = space();
    let devices = [0, 1].map(|_| Writer::new(Keeper::Device, FOUR_K));
    let _sources = devices.clone().map(|device| device.attach(&space));
    devices[1].inner().map = Some(Errno::ENOSPC);
    let before = space.mappings().changes();
    space.map(mapping(0, 0x4000, 0), MEMORY).unwrap_err();
    assert!(space.mappings().all().is_empty());
    assert_eq!(space.mappings().changes(), before + 2);
}

/// It was there for a moment, and no log was started on it.
#[test]
fn what_one_device_wrote_before_another_refused_the_mapping_is_clean() {
    let space = space();
    let devices = [0, 1].map(|_| Writer::new(Keeper::Device, FOUR_K));
    let mut sources = devices.clone().map(|device| device.attach(&space));
    space.map(mapping(0x10_0000, 0x1000, 0), MEMORY).unwrap();
    sources.iter_mut().for_each(|s| s.start(&[range(0, RAM)], FOUR_K).unwrap());
    devices[1].inner().map = Some(Errno::ENOSPC);
    space.map(mapping(0, 0x4000, 0x8000), MEMORY).unwrap_err();
    // That, and nothing else: no log failed.
    let told = sources.each_mut().map(|source| told(source, range(0, RAM)));
    assert_eq!(told, [((8..0xc).collect(), vec![]), (vec![], vec![])]);
}

#[test]
fn a_device_that_keeps_what_others_could_not_map_writes_unseen() {
    let space = space();
    let devices = [0, 1].map(|_| Writer::new(Keeper::Device, FOUR_K));
    let mut sources = devices.clone().map(|device| device.attach(&space));
    sources.iter_mut().for_each(|s| s.start(&[range(0, RAM)], FOUR_K).unwrap());
    let one = mapping(0, 0x4000, 0x8000);
    devices[0].inner().unmap = Some(Errno::EBUSY);
    devices[1].inner().map = Some(Errno::ENOSPC);
    space.map(one, MEMORY).unwrap_err();
    assert_eq!(space.mappings().all(), [one]);
    // It is not logged, and so it is dirty.
    devices[0].inner().write(range(0, 1));
    assert_eq!(told(&mut sources[0], range(0, RAM)).1[0], range(0x8000, 0x4000));
    space.unmap(one.iova).unwrap();
    assert!(devices.iter().all(|device| device.inner().mapped.is_empty()));

    // It mapped, and did not say so in time.
    devices[1].inner().late_answer = true;
    space.map(one, MEMORY).unwrap_err();
    assert!(devices.iter().all(|device| device.inner().mapped.is_empty()));
    assert!(space.mappings().all().is_empty());
}
