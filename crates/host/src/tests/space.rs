//! Memory that devices reach, and the dirty pages of a container.

use std::sync::Arc;
use std::time::Duration;

use abi::errno::Errno;
use abi::feature::Feature;
use control::{DmaTarget, DmaWrites, Transport, TransportError};
use dirty::{IovaRange, PageSize};
use port::{DirtyReport, DirtySource};
use sys::SharedMemory;

use super::fake::{Fake, SOON, options};
use crate::{Deadlines, Host, HostOptions, RawQuery};

const PAGE: PageSize = PageSize::FOUR_K;

fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(start, length).unwrap()
}

fn by_group(fake: &Fake) -> Host {
    by_group_within(fake, options().deadlines)
}

fn by_group_within(fake: &Fake, deadlines: Deadlines) -> Host {
    let place = "/dev/vfio/7?device=uuid".parse().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let device = folder.path().join("kernel/iommu_groups/7/devices/uuid");
    std::fs::create_dir_all(device).unwrap();
    let mut options = options();
    options.deadlines = deadlines;
    options.roots.sys = folder.path().to_owned();
    Host::open_with(Arc::new(fake.clone()), &place, options).unwrap()
}

#[test]
fn guest_memory_is_mapped_where_it_lies_and_nothing_else() {
    let fake = Fake::new();
    let host = fake.open();
    let memory = SharedMemory::create("ram", 1 << 20).unwrap();
    let target = |offset| DmaTarget::Memory { memory: &memory, offset, writable: true };
    host.dma_map(range(0x10_0000, 0x8000), target(0x1000)).unwrap();
    assert!(fake.was_asked("dma_map 0x100000+0x8000 true"));
    let beyond = host.dma_map(range(0, 1 << 20), target(4096)).unwrap_err();
    assert_eq!(beyond.errno(), Some(Errno::EINVAL));
    let messages = DmaTarget::Messages { writable: true };
    let refused = host.dma_map(range(0, 4096), messages).unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::EOPNOTSUPP));

    host.dma_unmap(range(0x10_0000, 0x8000)).unwrap();
    let nothing = host.dma_unmap(range(0x10_0000, 0x8000)).unwrap_err();
    assert_eq!(nothing.errno(), Some(Errno::ENOENT));
    host.dma_map(range(0, 4096), target(0)).unwrap();
    host.dma_unmap_all().unwrap();
    assert!(fake.script().mapped.is_empty());
    fake.script().fails.insert("dma_unmap_all", Errno::ENOENT);
    host.dma_unmap_all().expect("there is nothing, which is what was asked for");
    assert!(host.container().is_none(), "iommufd counts no dirty pages so");
}

#[test]
fn a_launcher_that_bound_the_device_maps_its_memory_too() {
    let fake = Fake::new();
    let (device, _end) = std::os::unix::net::UnixStream::pair().unwrap();
    let kernel = Arc::new(fake.clone());
    let host = Host::from_fds_with(kernel, device.into(), None, options()).unwrap();
    let memory = SharedMemory::create("ram", 4096).unwrap();
    let target = DmaTarget::Memory { memory: &memory, offset: 0, writable: true };
    let refused = host.dma_map(range(0, 4096), target).unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::ENOTTY));
    assert!(!fake.was_asked("bind") && !fake.was_asked("attach"), "left as it is");
    assert!(host.about().forgets().is_none());
}

#[test]
fn the_dirty_pages_of_a_container_are_collected_and_its_errors_told() {
    let fake = Fake::new();
    let host = by_group(&fake);
    let container = host.container().unwrap();
    let tracking = container.tracking().unwrap().unwrap();
    assert_eq!((tracking.page, tracking.most_bytes), (PAGE, 256 << 20));

    let all = range(0, 1 << 20);
    let mut source = container.source().unwrap().unwrap();
    source.start(&[all], PAGE).unwrap();
    fake.script().mapped = vec![(0x4_0000, 0xc_0000), (0, 0x4_0000)];
    fake.script().bits = vec![0b101];
    let mut found = Vec::new();
    let mut collect = |source: &mut dyn DirtySource, range| {
        found.clear();
        source.collect(range, &mut |report| {
            let (start, length) = (report.range.start(), report.range.length());
            found.push((start, length, report.words.to_vec()));
        })?;
        Ok::<_, port::SourceError>(found.clone())
    };
    let (first, second) = ((0, 0x4_0000, vec![0b101]), (0x4_0000, 0xc_0000, vec![0; 3]));
    assert_eq!(collect(&mut source, all).unwrap(), [first, second]);

    // A part of a mapping: it is forgotten as a whole, and so it is told.
    fake.script().bits = vec![0, 1];
    let part = collect(&mut source, range(0x5_0000, 0x1000)).unwrap();
    assert_eq!(part, [(0x4_0000, 0xc_0000, vec![0, 1, 0])]);
    // A hole: whatever was there before it went, nobody knows what was written.
    collect(&mut source, range(0x5_0000, 1 << 20)).unwrap_err();

    // The query cuts a mapping in two, or tracking was never started.
    fake.script().fails.insert("dirty_pages", Errno::EINVAL);
    source.collect(all, &mut |_| ()).unwrap_err();
    let refused = container.dirty(all, PAGE).unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::EINVAL));
    fake.script().fails.clear();
    source.stop().unwrap();
    assert!(fake.was_asked("dirty_pages 0x1 ") && fake.was_asked("dirty_pages 0x2 "));
    let asked = RawQuery {
        argsz: 8,
        flags: 3,
        iova: 0,
        length: 0,
        page: 0,
        size: 0,
        words: None,
    };
    container.raw(asked).unwrap();
    assert!(fake.was_asked("dirty_pages 0x3 "), "misuse reaches the kernel");
}

#[test]
fn a_device_whose_iommu_tracks_is_attached_so_that_it_can() {
    let fake = Fake::new();
    fake.script().iommu = true;
    let host = fake.open();
    assert!(fake.was_asked("make_page_table 1") && fake.was_asked("attach 9"));
    assert!(!fake.was_asked("attach 2"));
    let mut log = host.memory_log().unwrap().unwrap();
    assert_eq!(log.name(), "uart0 IOMMU");
    assert!(host.container().is_none());

    // The kernel would say that nothing was written.
    fake.script().mapped = vec![(0x1_0000, 0x1_0000), (0x2_0000, 0x1_3000)];
    let large = PageSize::new(1 << 16).unwrap();
    log.collect(range(0x1_0000, 0x1000), &mut |_| ()).unwrap_err();
    log.start(&[range(0x1_0000, 0x2_3000)], large).unwrap();
    assert!(fake.was_asked("set_tracking true"));

    let mut found = Vec::new();
    let mut collect = |start, length| {
        found.clear();
        log.collect(range(start, length), &mut |report| {
            let DirtyReport { range, page, words } = report;
            found.push((range.start(), range.length(), page.bytes(), words.to_vec()));
        })?;
        Ok::<_, port::SourceError>(found.clone())
    };
    // Whole mappings, by pages as large as fit.
    fake.script().bits = vec![0b11];
    let one = (0x1_0000, 0x1_0000, 0x1_0000, vec![0b11]);
    assert_eq!(collect(0x1_0000, 0x1_0000).unwrap(), [one]);
    fake.script().bits = vec![0b101];
    let odd = (0x2_0000, 0x1_3000, 0x1000, vec![5]);
    assert_eq!(collect(0x2_2010, 0xff0).unwrap(), [odd]);
    let both = (0x1_0000, 0x2_3000, 0x1000, vec![0]);
    assert_eq!(collect(0x1_0000, 0x1_1000).unwrap(), [both]);
    // A hole, and a kernel that says no.
    collect(0x2_0000, 0x2_0000).unwrap_err();
    fake.script().fails.insert("dirty", Errno::ENOENT);
    collect(0x1_0000, 0x1000).unwrap_err();
    fake.script().fails.clear();
    collect(0x1_0000, 0x1000).unwrap();
    log.stop().unwrap();
    assert!(fake.was_asked("set_tracking false"));
    log.collect(range(0x1_0000, 0x1000), &mut |_| ()).unwrap_err();
}

#[test]
fn small_pages_are_chosen_before_anything_is_mapped_by_large_ones() {
    let fake = Fake::new();
    fake.script().iommu = true;
    let place = "/dev/vfio/devices/vfio0".parse().unwrap();
    let options = HostOptions { small_pages: true, ..options() };
    Host::open_with(Arc::new(fake.clone()), &place, options).unwrap();
    let calls = fake.script().calls.clone();
    let at = |call: &str| calls.iter().position(|known| known.starts_with(call));
    assert!(at("use_small_pages").unwrap() < at("make_page_table").unwrap());
    assert!(!fake.was_asked("dma_map"));
}

#[test]
fn no_bitmap_grows_with_the_memory_that_it_is_about() {
    let fake = Fake::new();
    fake.script().iommu = true;
    fake.script().mapped = vec![(1 << 39, 3 << 40)];
    let host = fake.open();
    let mut log = host.memory_log().unwrap().unwrap();
    let all = range(1 << 39, 3 << 40);
    log.start(&[all], PAGE).unwrap();
    let (mut reached, mut count) = (1 << 39, 0);
    log.collect(all, &mut |report| {
        assert_eq!(report.range.start(), reached);
        assert!(report.words.len() <= (32 << 20) / 8);
        reached = report.range.end();
        count += 1;
    })
    .unwrap();
    assert_eq!((reached, count), (7 << 39, 4));
}

#[test]
fn an_iommu_that_cannot_is_no_reason_not_to_open_the_device() {
    let fake = Fake::new();
    let host = fake.open();
    assert!(fake.was_asked("attach 2"));
    assert!(host.memory_log().unwrap().is_none());

    // It says that it can, and then refuses the device.
    let fake = Fake::new();
    fake.script().iommu = true;
    fake.script().refuses = Some(9);
    let host = fake.open();
    assert!(fake.was_asked("attach 9") && fake.was_asked("drop_page_table"));
    assert!(fake.was_asked("attach 2"));
    assert!(host.memory_log().unwrap().is_none());
}

#[test]
fn a_log_without_reports_leaves_the_container_to_count() {
    // Debian's kernel: mtty offers a log, and without IOMMUFD no report ever comes.
    let fake = Fake::new();
    for feature in [Feature::DMA_LOGGING_START, Feature::DMA_LOGGING_STOP] {
        fake.script().features.insert(feature, Ok(Vec::new()));
    }
    fake.script().features.insert(Feature::DMA_LOGGING_REPORT, Ok(Vec::new()));
    fake.script().fails.insert("log_report", Errno::EOPNOTSUPP);
    let device = control::open_any(Arc::new(by_group(&fake))).unwrap();
    let mut source = device.dirty_source().unwrap().unwrap();
    assert_eq!(source.name(), "uart0 DMA log");
    source.start(&[range(0, 4096)], PAGE).unwrap();
    assert_eq!(source.name(), "uart0 container");
    assert!(fake.was_asked("log_report") && fake.was_asked("dirty_pages 0x1 "));
}

#[test]
fn what_was_written_until_the_unmap_is_not_lost_with_the_mapping() {
    let fake = Fake::new();
    let host = by_group(&fake);
    let memory = SharedMemory::create("ram", 65 * 4096).unwrap();
    let target = DmaTarget::Memory { memory: &memory, offset: 0, writable: true };
    let all = range(0, 65 * 4096);
    host.dma_map(all, target).unwrap();
    fake.script().bits = vec![2, 1];
    assert_eq!(host.dma_unmap_dirty(all, PAGE, DmaWrites::MayGoOn).unwrap(), [2, 1]);
    assert!(fake.was_asked("unmap_dirty 0x1000 2"));
    let gone = host.dma_unmap_dirty(all, PAGE, DmaWrites::MayGoOn).unwrap_err();
    assert_eq!(gone.errno(), Some(Errno::ENOENT));
}

#[test]
fn what_a_device_writes_between_the_question_and_the_unmap_goes_with_the_mapping() {
    let all = range(0, 65 * 4096);
    let memory = SharedMemory::create("ram", 65 * 4096).unwrap();
    let mapped = |iommu| {
        let fake = Fake::new();
        fake.script().iommu = iommu;
        let host = if iommu { fake.open() } else { by_group(&fake) };
        let target = DmaTarget::Memory { memory: &memory, offset: 0, writable: true };
        host.dma_map(all, target).unwrap();
        fake.script().bits = vec![2, 1];
        fake.script().late = vec![0x80, 0];
        (fake, host)
    };
    let (_fake, host) = mapped(false);
    assert_eq!(host.dma_unmap_dirty(all, PAGE, DmaWrites::MayGoOn).unwrap(), [0x82, 1]);
    // iommufd has no such call, and so nobody knows.
    let (fake, host) = mapped(true);
    assert_eq!(
        host.dma_unmap_dirty(all, PAGE, DmaWrites::MayGoOn).unwrap(),
        [u64::MAX, u64::MAX]
    );
    assert!(!fake.was_asked("unmap_dirty") && fake.script().mapped.is_empty());
    let gone = host.dma_unmap_dirty(all, PAGE, DmaWrites::MayGoOn).unwrap_err();
    assert_eq!(gone.errno(), Some(Errno::ENOENT));
    // But that they stand still.
    let (fake, host) = mapped(true);
    fake.script().late.clear();
    assert_eq!(host.dma_unmap_dirty(all, PAGE, DmaWrites::Ended).unwrap(), [2, 1]);
    assert!(fake.script().mapped.is_empty());
}

#[test]
fn an_iommu_that_does_not_track_is_believed_to_count() {
    let fake = Fake::new();
    let host = fake.open();
    fake.script().mapped = vec![(0, 4096)];
    let untold =
        host.dma_unmap_dirty(range(0, 4096), PAGE, DmaWrites::MayGoOn).unwrap_err();
    assert_eq!(untold.errno(), Some(Errno::ENOTTY));
    assert_eq!(fake.script().mapped, [(0, 4096)]);
}

/// Both ask for whole mappings, which is more than somebody asked for.
#[test]
fn what_a_failed_question_forgot_beside_the_range_is_clean() {
    let part = range(0x1_0000, 0x1000);
    let lost = |source: &mut dyn DirtySource| {
        let mut lost = Vec::new();
        let failed = source.collect(part, &mut |report| {
            assert!(report.is_lost());
            lost.push(report.range);
        });
        failed.unwrap_err();
        lost
    };
    let mapped = vec![(0x1_0000, 0x1_0000)];
    let fake = Fake::new();
    fake.script().iommu = true;
    fake.script().mapped = mapped.clone();
    let mut log = fake.open().memory_log().unwrap().unwrap();
    log.start(&[part], PAGE).unwrap();
    fake.script().fails.insert("dirty", Errno::EFAULT);
    assert_eq!(lost(&mut *log), [range(0x1_0000, 0x1_0000)]);

    let fake = Fake::new();
    fake.script().mapped = mapped;
    let mut log = by_group(&fake).memory_log().unwrap().unwrap();
    log.start(&[part], PAGE).unwrap();
    fake.script().fails.insert("dirty_pages", Errno::EFAULT);
    assert_eq!(lost(&mut *log), [range(0x1_0000, 0x1_0000)]);
}

/// An unmapping that hangs in the kernel holds what is mapped, and what tracks.
#[test]
fn whoever_asks_for_dirty_pages_waits_for_a_kernel_that_hangs() {
    let soon = Deadlines { call: SOON, slow: Duration::from_millis(50) };
    for (hangs, iommu) in [("mappings", true), ("mappings", false), ("page_table", true)]
    {
        let fake = Fake::new();
        fake.script().iommu = iommu;
        fake.script().mapped = vec![(0, 0x1000)];
        let host = match iommu {
            true => {
                let place = "/dev/vfio/devices/vfio0".parse().unwrap();
                let options = HostOptions { deadlines: soon, ..options() };
                Host::open_with(Arc::new(fake.clone()), &place, options).unwrap()
            }
            false => by_group_within(&fake, soon),
        };
        if hangs == "page_table" {
            let _held = fake.hang(hangs);
            assert!(matches!(host.memory_log(), Err(TransportError::TimedOut { .. })));
            continue;
        }
        let mut log = host.memory_log().unwrap().unwrap();
        log.start(&[range(0, 0x1000)], PAGE).unwrap();
        let _held = fake.hang(hangs);
        let failed = log.collect(range(0, 0x1000), &mut |_| ()).unwrap_err();
        let why = failed.source.to_string();
        assert!(why.contains("ask what is mapped"), "{why}");
    }
}
