//! Dirty pages as the container of a group counts them, beside an open port, and what it
//! answers to misuse.

use abi::type1::{DirtyPagesFlags, MAX_BITMAP_SIZE};
use control::{DmaTarget, Transport, TransportError};
use dirty::{IovaRange, PageSize};
use host::{Container, Host, HostOptions, RawQuery};
use port::DirtySource;
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
    none(&group.device.dma_unmap_dirty(all, page).map_err(said("UNMAP"))?)?;
    source.stop().map_err(said("STOP"))?;
    Ok(format!("{PAGES} pages, none dirty; unmapped with their bits"))
}

fn none(bits: &[u64]) -> Result<(), String> {
    match bits {
        [0, 0] => Ok(()),
        _ => Err(format!("pages that nobody wrote are dirty: {bits:x?}")),
    }
}

/// Unmapping with bits, where it is not due, and twice.
pub(super) fn check_unmap() -> Checked {
    let group = Group::new()?;
    let all = mapped()?;
    let (page, other) = (pages(PAGE)?, pages(2 * PAGE)?);
    let unmap = |page| told(group.device.dma_unmap_dirty(all, page));
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
