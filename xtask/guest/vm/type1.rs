//! Dirty pages as the container of a group counts them, beside an open port, and what it
//! answers to misuse.

use std::path::Path;
use std::sync::Arc;

use abi::type1::{DirtyPagesFlags, MAX_BITMAP_SIZE};
use control::{DmaTarget, DmaWrites, Transport, TransportError};
use dirty::{Bitmap, IovaRange, PageSize};
use host::{Container, Host, HostOptions, RawQuery};
use port::{DirtyReport, DirtySource, Gpa, Mapping, Mappings};
use sys::SharedMemory;

use super::port::Port;
use super::{Checked, Stop};
use crate::{expect, said};

const PAGE: u64 = 4096;
/// Pages of the mapping that is looked at.
const PAGES: u64 = 100;
/// Where it begins.
const IOVA: u64 = 0x10_0000;
const BYTES: u64 = PAGES * PAGE;
/// Words for its bits.
const WORDS: usize = PAGES.div_ceil(64) as usize;

/// A device by its group, with memory that it may reach. It goes in this order.
struct Group {
    container: Container,
    device: Host,
    _port: Port,
}

impl Group {
    fn new() -> Result<Group, String> {
        let port = Port::new(2)?;
        let place = format!("{}?by=group", port.uuid());
        let place = place.parse().map_err(said("its place"))?;
        let device = Host::open(&place, HostOptions::default()).map_err(said("open"))?;
        let memory = SharedMemory::create("pages", BYTES).map_err(said("make memory"))?;
        let target = DmaTarget::Memory { memory: &memory, offset: 0, writable: true };
        device.dma_map(mapped()?, target).map_err(said("MAP_DMA"))?;
        let container = device.container().ok_or("it is in no container")?;
        Ok(Group { container, device, _port: port })
    }
}

fn mapped() -> Result<IovaRange, String> {
    IovaRange::new(IOVA, BYTES).map_err(said("the range"))
}

fn pages(bytes: u64) -> Result<PageSize, String> {
    PageSize::new(bytes).map_err(said("the page size"))
}

/// What an answer is, as people know it.
fn told<T>(answer: Result<T, TransportError>) -> String {
    match answer.map_err(|error| error.errno().ok_or(error)) {
        Ok(_) => "0".to_owned(),
        Err(Ok(errno)) => errno.to_string(),
        Err(Err(error)) => error.to_string(),
    }
}

/// The capability that says that it can be done, and how.
pub(super) fn check_capability() -> Checked {
    let group = Group::new()?;
    let tracking = group.container.tracking().map_err(said("GET_INFO"))?;
    let tracking = tracking.ok_or_else(|| "no migration capability".to_owned())?;
    expect("its pages", tracking.page.bytes(), PAGE)?;
    expect("its largest bitmap", tracking.most_bytes, MAX_BITMAP_SIZE)?;
    Ok("pages of 4 KiB, bitmaps of up to 256 MiB".to_owned())
}

/// The errno of every misuse.
pub(super) fn check_errnos() -> Checked {
    let group = Group::new()?;
    let start = DirtyPagesFlags::START.bits();
    let stop = DirtyPagesFlags::STOP.bits();
    let plain = |flags| RawQuery {
        argsz: 8,
        flags,
        iova: 0,
        length: 0,
        page: 0,
        size: 0,
        words: None,
    };
    let query = RawQuery {
        argsz: RawQuery::WHOLE,
        flags: DirtyPagesFlags::GET_BITMAP.bits(),
        iova: IOVA,
        length: BYTES,
        page: PAGE,
        size: 8 * WORDS as u64,
        words: Some(WORDS),
    };
    let huge = RawQuery { size: MAX_BITMAP_SIZE + 8, words: None, ..query };
    let before = RawQuery { iova: IOVA - PAGE, ..query };
    let table = [
        ("a query before START", "EINVAL", query),
        ("STOP before START", "0", plain(stop)),
        ("no flag", "EINVAL", plain(0)),
        ("two flags", "EINVAL", plain(start | stop)),
        ("an unknown flag", "EINVAL", plain(1 << 3)),
        ("an argsz of 4", "EINVAL", RawQuery { argsz: 4, ..plain(start) }),
        ("START", "0", plain(start)),
        ("START again", "0", plain(start)),
        ("a query", "0", query),
        ("an argsz of 8", "EINVAL", RawQuery { argsz: 8, ..query }),
        ("pages of 8 KiB", "EINVAL", RawQuery { page: 2 * PAGE, ..query }),
        ("pages of 0", "EINVAL", RawQuery { page: 0, ..query }),
        ("an odd address", "EINVAL", RawQuery { iova: IOVA + 1, ..query }),
        ("an odd length", "EINVAL", RawQuery { length: BYTES - 1, ..query }),
        ("no length", "EINVAL", RawQuery { length: 0, ..query }),
        // Linux 6.12, and 7.3.
        (
            "the end of addresses",
            "EINVAL or EOVERFLOW",
            RawQuery { iova: !0xfff, length: 2 * PAGE, ..query },
        ),
        ("a bitmap of 0", "EINVAL", RawQuery { size: 0, ..query }),
        ("a bitmap too small", "EINVAL", RawQuery { size: 8, ..query }),
        ("a bitmap too large", "EINVAL", huge),
        ("half a mapping", "EINVAL", RawQuery { length: 2 * PAGE, ..before }),
        ("all but its end", "EINVAL", RawQuery { length: BYTES - PAGE, ..query }),
        ("more than it", "0", RawQuery { length: BYTES + 2 * PAGE, ..before }),
        ("a hole", "0", RawQuery { iova: 0, length: 16 * PAGE, ..query }),
        ("no memory for the bits", "EFAULT", RawQuery { words: None, ..query }),
        ("STOP", "0", plain(stop)),
        ("STOP again", "0", plain(stop)),
        ("a query after STOP", "EINVAL", query),
    ];
    let mut wrong = Vec::new();
    for (what, expected, query) in table {
        let found = told(group.container.raw(query));
        if expected.split(" or ").all(|one| one != found) {
            wrong.push(format!("{what}: {found} instead of {expected}"));
        }
    }
    match wrong.is_empty() {
        true => Ok(format!("{} calls", table.len())),
        false => Err(Stop::Fail(wrong.join("; "))),
    }
}

/// A mediated device that pins nothing has written nothing: no page is dirty, by a query,
/// as a source of dirty bits, and by an unmap.
pub(super) fn check_clean() -> Checked {
    let group = Group::new()?;
    let (all, page) = (mapped()?, pages(PAGE)?);
    let source = group.container.source().map_err(said("GET_INFO"))?;
    let mut source = source.ok_or_else(|| "it does not track".to_owned())?;
    source.start(&[all], page).map_err(said("START"))?;
    none(&group.container.dirty(all, page).map_err(said("GET_BITMAP"))?)?;
    let mut reported = Vec::new();
    source
        .collect(all, &mut |report| reported.extend_from_slice(report.words))
        .map_err(said("collect"))?;
    none(&reported)?;
    none(
        &group
            .device
            .dma_unmap_dirty(all, page, DmaWrites::MayGoOn)
            .map_err(said("UNMAP"))?,
    )?;
    source.stop().map_err(said("STOP"))?;
    Ok(format!("{PAGES} pages, none dirty; unmapped with their bits"))
}

fn none(bits: &[u64]) -> Result<(), String> {
    match bits.iter().all(|word| *word == 0) {
        true => Ok(()),
        false => Err(format!("pages that nobody wrote are dirty: {bits:x?}")),
    }
}

/// The container as the engine asks it: mapping by mapping, whatever range it names, with
/// mappings that come and go, through its bitmaps of guest memory.
pub(super) fn check_source() -> Checked {
    let group = Group::new()?;
    let memory = SharedMemory::create("more", 64 * PAGE).map_err(said("make memory"))?;
    let range = |start: u64, pages: u64| {
        IovaRange::new(start, pages * PAGE).map_err(said("the range"))
    };
    let map = |range| {
        let target = DmaTarget::Memory { memory: &memory, offset: 0, writable: true };
        group.device.dma_map(range, target).map_err(said("MAP_DMA"))
    };
    // Right behind the first, and farther away than the bits of one query reach.
    let (near, far) = (range(IOVA + BYTES, 64)?, range(16 << 40, 64)?);
    map(near)?;
    let all = [mapped()?, near, far];
    let device = control::open_any(Arc::new(group.device.clone()));
    let device = device.map_err(said("open the device"))?;
    let first = device.dirty_source().map_err(said("its source"))?;
    let mut first = first.ok_or_else(|| "nobody tells of its writes".to_owned())?;
    first.start(&all[..2], pages(PAGE)?).map_err(said("start its source"))?;
    let chosen = first.name().to_owned();
    first.stop().map_err(said("stop its source"))?;
    // A kernel without IOMMUFD has no reports of the device's own log.
    let expected = match Path::new("/dev/iommu").exists() {
        true => "DMA log",
        false => "container",
    };
    if !chosen.ends_with(expected) {
        return Err(Stop::Fail(format!("{chosen} was chosen, and not the {expected}")));
    }

    let source = group.container.source().map_err(said("GET_INFO"))?;
    let mut source = source.ok_or_else(|| "it does not track".to_owned())?;
    let collect = |source: &mut host::ContainerLog, range| {
        let mut found = Vec::new();
        source
            .collect(range, &mut |report| {
                found.push((report.range, report.words.to_vec()));
            })
            .map_err(said("collect"))?;
        found.iter().try_for_each(|(_, words)| none(words))?;
        Ok::<_, String>(found.into_iter().map(|(range, _)| range).collect::<Vec<_>>())
    };
    let failed = |what: &str, answer: Result<Vec<IovaRange>, String>| match answer {
        Ok(found) => Err(format!("{what}: not refused, but {found:x?}")),
        Err(_) => Ok(()),
    };
    failed("before START", collect(&mut source, near))?;
    for _ in 0..2 {
        source.start(&all, pages(PAGE)?).map_err(said("START"))?;
    }
    map(far)?;
    let both = range(IOVA, PAGES + 64)?;
    let found = [
        collect(&mut source, both)?,
        collect(&mut source, far)?,
        // A part of one, which the kernel refuses.
        collect(&mut source, range(IOVA + 3 * PAGE, 1)?)?,
    ];
    let expected = [vec![all[0], near], vec![far], vec![all[0]]];
    if found != expected {
        let found = format!("asked for were {found:x?} instead of {expected:x?}");
        return Err(Stop::Fail(found));
    }
    failed("a hole", collect(&mut source, range(IOVA - PAGE, 2)?))?;
    let whole = IovaRange::new(IOVA, far.end() - IOVA).map_err(said("the range"))?;
    failed("16 TiB with a hole", collect(&mut source, whole))?;

    // What the engine makes of it: clean, and all dirty where the container refuses.
    let to = |(number, iova): (usize, &IovaRange)| {
        let gpa = Gpa(number as u64 * 128 * PAGE);
        Mapping { iova: *iova, gpa }
    };
    let mappings = Mappings::new(all.iter().enumerate().map(to).collect(), 0);
    let guest = range(0, 3 * 128)?;
    let guest = Bitmap::new(guest, pages(PAGE)?).map_err(said("guest memory"))?;
    let guest = [guest];
    let dirty = |source: &mut host::ContainerLog| {
        for mapping in mappings.all() {
            let merge = &mut |report: DirtyReport<'_>| mappings.merge(report, &guest);
            if source.collect(mapping.iova, merge).is_err() {
                mappings.merge(DirtyReport::lost(mapping.iova), &guest);
            }
        }
        guest[0].drain().pages()
    };
    expect("dirty pages of the guest", dirty(&mut source), 0)?;
    let page = pages(PAGE)?;
    let bits = group
        .device
        .dma_unmap_dirty(near, page, DmaWrites::MayGoOn)
        .map_err(said("UNMAP"))?;
    none(&bits)?;
    expect("dirty pages after an unmap", dirty(&mut source), 64)?;
    source.stop().map_err(said("STOP"))?;
    failed("after STOP", collect(&mut source, far))?;
    expect("dirty pages after STOP", dirty(&mut source), PAGES + 128)?;
    Ok(format!("{chosen} is chosen; 3 mappings, each whole, up to 16 TiB apart"))
}

/// Unmapping with bits, where it is not due, and twice.
pub(super) fn check_unmap() -> Checked {
    let group = Group::new()?;
    let all = mapped()?;
    let (page, other) = (pages(PAGE)?, pages(2 * PAGE)?);
    let unmap = |page| told(group.device.dma_unmap_dirty(all, page, DmaWrites::MayGoOn));
    let before = unmap(page);
    group.container.start().map_err(said("START"))?;
    let found = [before, unmap(other), unmap(page)];
    if found != ["EINVAL", "EINVAL", "0"] {
        let found = format!("before START, pages of 8 KiB, as it should be: {found:?}");
        return Err(Stop::Fail(found));
    }
    let gone = group.container.dirty(all, page).map_err(said("GET_BITMAP"))?;
    none(&gone)?;
    Ok("EINVAL before START and with other pages, and it stays mapped".to_owned())
}
