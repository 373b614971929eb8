//! Memory that devices reach, and the dirty pages of a container.

use std::sync::Arc;

use abi::errno::Errno;
use control::{DmaTarget, Transport};
use dirty::{IovaRange, PageSize};
use port::DirtySource;
use sys::SharedMemory;

use super::fake::{Fake, options};
use crate::{Host, RawQuery};

const PAGE: PageSize = PageSize::FOUR_K;

fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(start, length).unwrap()
}

fn by_group(fake: &Fake) -> Host {
    let place = "/dev/vfio/7?device=uuid".parse().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let device = folder.path().join("kernel/iommu_groups/7/devices/uuid");
    std::fs::create_dir_all(device).unwrap();
    let mut options = options();
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

    let mut source = container.source().unwrap().unwrap();
    source.start(&[range(0, 1 << 20)], PAGE).unwrap();
    fake.script().bits = vec![0b101, 0, 0, 1];
    let mut found = Vec::new();
    let all = range(0, 1 << 20);
    source.collect(all, &mut |report| found.extend_from_slice(report.words)).unwrap();
    assert_eq!(found, [0b101, 0, 0, 1]);

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
fn what_was_written_until_the_unmap_is_not_lost_with_the_mapping() {
    let fake = Fake::new();
    let host = by_group(&fake);
    let memory = SharedMemory::create("ram", 65 * 4096).unwrap();
    let target = DmaTarget::Memory { memory: &memory, offset: 0, writable: true };
    let all = range(0, 65 * 4096);
    host.dma_map(all, target).unwrap();
    fake.script().bits = vec![2, 1];
    assert_eq!(host.dma_unmap_dirty(all, PAGE).unwrap(), [2, 1]);
    assert!(fake.was_asked("unmap_dirty 0x1000 2"));
    let gone = host.dma_unmap_dirty(all, PAGE).unwrap_err();
    assert_eq!(gone.errno(), Some(Errno::ENOENT));
}
