//! Dirty pages as the page table of an IOMMU notes them: iommufd's own, with a device
//! behind the kernel's mock IOMMU, whose writes are made by a call of that.
//!
//! ```text
//!   memory --- IOAS_MAP ---> address space --- page table that tracks
//!                                                ^           |
//!                             mock device -------'           v
//!                             mock::write         IommuLog, as for any device
//! ```
//!
//! Only the device is another: address space, page table and log are those of a device
//! of VFIO.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use abi::iommufd::GetDirtyBitmapFlags;
use dirty::{Bitmap, IovaRange, PageSize};
use host::{Deadlines, IommuLog};
use port::{DirtySource, Gpa, Mapping, Mappings, SourceError};
use sys::SharedMemory;
use sys::vfio::DmaSpace;
use sys::vfio::iommufd::{self, DirtyRange};
use sys::vfio::mock::{self, MockDevice};

use super::{Checked, Stop};
use crate::said;

const PAGE: u64 = 4096;
/// Where the mock IOMMU begins to translate.
const BASE: u64 = 1 << 24;

/// An address space with a device behind the mock IOMMU, and a page table that tracks.
struct Domain {
    space: Arc<DmaSpace>,
    device: MockDevice,
    table: u32,
}

fn address_space() -> Result<DmaSpace, Stop> {
    if !Path::new("/dev/iommu").exists() {
        return Err(Stop::Skip("this kernel has no IOMMUFD".to_owned()));
    }
    let iommu = File::options().read(true).write(true).open("/dev/iommu");
    let iommu = iommu.map_err(said("/dev/iommu"))?;
    Ok(DmaSpace::ioas(iommu.into()).map_err(said("IOAS_ALLOC"))?)
}

fn ioas(space: &DmaSpace) -> Result<u32, String> {
    space.ioas_id().ok_or_else(|| "no address space".to_owned())
}

impl Domain {
    /// One that maps by pages of 4 KiB, so that what is dirty can be told exactly.
    fn new() -> Result<Domain, Stop> {
        let space = address_space()?;
        space.use_small_pages().map_err(said("IOMMU_OPTION"))?;
        Ok(Domain::of(space)?)
    }

    fn of(space: DmaSpace) -> Result<Domain, String> {
        let device = mock::device(&space, ioas(&space)?, true);
        let device = device.map_err(said("a device behind the mock IOMMU"))?;
        let table = space.make_page_table(device.id).map_err(said("HWPT_ALLOC"))?;
        mock::attach(&space, device, table).map_err(said("attach to the page table"))?;
        Ok(Domain { space: Arc::new(space), device, table })
    }

    fn log(&self) -> Result<IommuLog, String> {
        IommuLog::of("mock", Arc::clone(&self.space), Deadlines::default())
            .ok_or_else(|| "no page table that tracks".to_owned())
    }

    fn started(&self, page: u64) -> Result<IommuLog, String> {
        let mut log = self.log()?;
        log.start(&[], size(page)?).map_err(said("start"))?;
        Ok(log)
    }

    fn map(&self, page: u64, memory: &SharedMemory) -> Result<(), String> {
        self.space.map(BASE + page * PAGE, memory, true).map_err(said("IOAS_MAP"))
    }

    fn unmap(&self, first: u64, pages: u64) -> Result<(), String> {
        let unmapped = self.space.unmap(BASE + first * PAGE, pages * PAGE);
        unmapped.map_err(said("IOAS_UNMAP")).map(drop)
    }

    /// The device writes to pages, by their numbers from the base on.
    fn write(&self, pages: &[u64]) -> Result<(), String> {
        for page in pages {
            let (iova, length) = (BASE + page * PAGE, PAGE);
            let range = DirtyRange { iova, length, page: PAGE };
            let found = mock::write(&self.space, self.table, range, &[1]);
            match found.map_err(said(format!("write page {page}")))? {
                1 => {}
                _ => return Err(format!("page {page} is not mapped")),
            }
        }
        Ok(())
    }

    /// What the kernel itself says.
    fn raw(&self, asked: DirtyRange, bits: &mut [u64]) -> io::Result<()> {
        let flags = GetDirtyBitmapFlags::NO_CLEAR;
        iommufd::dirty_bitmap(&self.space, self.table, asked, flags, bits)
    }
}

fn size(bytes: u64) -> Result<PageSize, String> {
    PageSize::new(bytes).map_err(said("the page size"))
}

fn pages(first: u64, count: u64) -> Result<IovaRange, String> {
    IovaRange::new(BASE + first * PAGE, count * PAGE).map_err(said("the range"))
}

fn asked(first: u64, count: u64) -> DirtyRange {
    DirtyRange { iova: BASE + first * PAGE, length: count * PAGE, page: PAGE }
}

fn memory(pages: u64) -> Result<SharedMemory, String> {
    SharedMemory::create("pages", pages * PAGE).map_err(said("make memory"))
}

/// The numbers of bits that are set.
fn set(words: &[u64]) -> Vec<u64> {
    let words = (0..).zip(words).filter(|(_, word)| **word != 0);
    let bits = |(number, word): (u64, &u64)| {
        let word = *word;
        (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| number * 64 + bit)
    };
    words.flat_map(bits).collect()
}

/// What a log has, by the numbers of its pages from the base on.
fn collect(log: &mut IommuLog, range: IovaRange) -> Result<Vec<u64>, SourceError> {
    let mut found = BTreeSet::new();
    log.collect(range, &mut |report| {
        let (start, page) = (report.range.start() - BASE, report.page.bytes());
        for bit in set(report.words) {
            let first = (start + bit * page) / PAGE;
            found.extend(first..first + page.div_ceil(PAGE));
        }
    })?;
    Ok(found.into_iter().collect())
}

fn collected(log: &mut IommuLog, range: IovaRange) -> Result<Vec<u64>, String> {
    collect(log, range).map_err(|error| chain(&error))
}

fn chain(error: &dyn std::error::Error) -> String {
    let below = error.source().map(|below| format!(": {}", chain(below)));
    format!("{error}{}", below.unwrap_or_default())
}

fn are(what: &str, found: &[u64], expected: &[u64]) -> Result<(), String> {
    match found == expected {
        true => Ok(()),
        false => Err(format!("{what}: dirty are {found:?} instead of {expected:?}")),
    }
}

/// An answer that has to be a refusal, and what it says.
fn refused<T>(what: &str, answer: Result<T, SourceError>) -> Result<String, String> {
    match answer {
        Ok(_) => Err(format!("{what}: not refused")),
        Err(error) => Ok(chain(&error)),
    }
}

fn errno<T>(answer: io::Result<T>) -> String {
    match answer {
        Ok(_) => "0".to_owned(),
        Err(error) => match error.raw_os_error() {
            Some(number) => abi::errno::Errno(number).to_string(),
            None => error.to_string(),
        },
    }
}

/// Who can track, who cannot, and who is refused.
pub(super) fn check_capability() -> Checked {
    let domain = Domain::new()?;
    let space = address_space()?;
    let cannot = mock::device(&space, ioas(&space)?, false);
    let cannot = cannot.map_err(said("a device that cannot"))?;
    let stranger = mock::device(&domain.space, ioas(&domain.space)?, false);
    let stranger = stranger.map_err(said("a device that cannot"))?;
    let found = [
        (
            "a page table for a device that cannot",
            errno(space.make_page_table(cannot.id)),
        ),
        ("for a device that is none", errno(space.make_page_table(9999))),
        ("a second one", errno(domain.space.make_page_table(domain.device.id))),
        ("such a device attached to one", {
            errno(mock::attach(&domain.space, stranger, domain.table))
        }),
        ("one in use taken away", errno(domain.space.drop_page_table())),
    ];
    let expected = ["EOPNOTSUPP", "ENOENT", "EEXIST", "EINVAL", "EBUSY"];
    let wrong: Vec<String> = found
        .iter()
        .zip(expected)
        .filter(|((_, found), expected)| found != expected)
        .map(|((what, found), expected)| format!("{what}: {found}, not {expected}"))
        .collect();
    match wrong.is_empty() {
        true => Ok("a page table where it can, by GET_HW_INFO; 5 refusals".to_owned()),
        false => Err(Stop::Fail(wrong.join("; "))),
    }
}

/// Bits where something was written, once, and nowhere else.
pub(super) fn check_exact() -> Checked {
    let domain = Domain::new()?;
    domain.map(0, &memory(300)?)?;
    let mut log = domain.started(PAGE)?;
    let all = pages(0, 300)?;
    are("at first", &collected(&mut log, all)?, &[])?;
    let written = [0, 1, 63, 64, 65, 128, 200, 299];
    domain.write(&written)?;
    are("written", &collected(&mut log, all)?, &written)?;
    are("read again", &collected(&mut log, all)?, &[])?;
    // A part of the mapping: it is told whole, and forgotten so.
    domain.write(&[7, 250])?;
    are("a part", &collected(&mut log, pages(0, 100)?)?, &[7, 250])?;
    are("the rest", &collected(&mut log, all)?, &[])?;
    domain.write(&[3])?;
    log.start(&[all], size(PAGE)?).map_err(said("start"))?;
    are("started anew", &collected(&mut log, all)?, &[])?;
    log.stop().map_err(said("stop"))?;
    Ok(format!("{} of 300 pages, exactly, and once", written.len()))
}

/// By larger pages no write is lost, and no more is dirty than those.
pub(super) fn check_pages() -> Checked {
    let domain = Domain::new()?;
    domain.map(0, &memory(1024)?)?;
    let all = pages(0, 1024)?;
    for page in [PAGE, 8192, 1 << 16, 2 << 20, 4 << 20] {
        let mut log = domain.started(page)?;
        domain.write(&[5, 700])?;
        let many = page / PAGE;
        let mut expected = BTreeSet::new();
        for written in [5, 700] {
            let first = written / many * many;
            expected.extend(first..first + many);
        }
        let expected: Vec<u64> = expected.into_iter().collect();
        are(&format!("by {page}"), &collected(&mut log, all)?, &expected)?;
        are(&format!("by {page}, again"), &collected(&mut log, all)?, &[])?;
    }
    // A mapping that larger pages do not fit is asked for by those that do, also where
    // no more is wanted of it than some bytes.
    domain.map(1025, &memory(3)?)?;
    let mut log = domain.started(2 << 20)?;
    domain.write(&[1026])?;
    let odd = IovaRange::new(BASE + 1025 * PAGE + 10, 20).map_err(said("the range"))?;
    are("3 pages", &collected(&mut log, odd)?, &[1026])?;
    are("3 pages, again", &collected(&mut log, pages(1025, 3)?)?, &[])?;
    Ok("pages of 4 KiB to 4 MiB; 20 bytes of a mapping of 3 pages".to_owned())
}

/// Bits in several of the windows that the kernel pins them by, and in several queries.
pub(super) fn check_windows() -> Checked {
    let domain = Domain::new()?;
    // The same memory twice, in mappings that touch: 40 MiB.
    let (half, each) = (memory(5120)?, 5120);
    domain.map(0, &half)?;
    domain.map(each, &half)?;
    let mut log = domain.started(PAGE)?;
    let written = [0, 4095, 4096, each - 1, each, 8192, 2 * each - 1];
    domain.write(&written)?;
    // By a bit a byte these are 5 MiB of bits, and the kernel pins 2 MiB at a time.
    let mut bits = vec![0; (5 << 20) / 8];
    let whole = DirtyRange { page: 1, ..asked(0, 2 * each) };
    domain.raw(whole, &mut bits).map_err(said("a bit a byte"))?;
    let bytes = set(&bits);
    let mut found: Vec<u64> = bytes.iter().map(|byte| byte / PAGE).collect();
    found.dedup();
    are("in three windows", &found, &written)?;
    if bytes.len() as u64 != written.len() as u64 * PAGE {
        return Err(Stop::Fail(format!("{} bytes in three windows", bytes.len())));
    }
    let all = pages(0, 2 * each)?;
    are("in one query", &collected(&mut log, all)?, &written)?;
    are("read again", &collected(&mut log, all)?, &[])?;
    Ok("10240 pages by one query; 5 MiB of bits at once".to_owned())
}

/// While it does not track the kernel says that nothing was written; the log says so.
pub(super) fn check_off() -> Checked {
    let domain = Domain::new()?;
    domain.map(0, &memory(64)?)?;
    let all = pages(0, 64)?;
    let kernel = errno(domain.raw(asked(0, 64), &mut [0]));
    let mut log = domain.log()?;
    let before = refused("before the start", collect(&mut log, all))?;
    log.start(&[all], size(PAGE)?).map_err(said("start"))?;
    domain.write(&[9])?;
    log.stop().map_err(said("stop"))?;
    refused("after the stop", collect(&mut log, all))?;
    // Somebody else of this process stopped it: the log does not know, the space does.
    let mut log = domain.started(PAGE)?;
    domain.write(&[9])?;
    domain.space.set_tracking(false).map_err(said("stop"))?;
    let behind = refused("stopped behind its back", collect(&mut log, all))?;
    log.start(&[all], size(PAGE)?).map_err(said("start"))?;
    domain.write(&[11])?;
    are("started again", &collected(&mut log, all)?, &[11])?;
    Ok(format!("the kernel says {kernel}; here: {before} / {behind}"))
}

/// Behind a hole the kernel finds nothing; the log asks for nothing with a hole.
pub(super) fn check_holes() -> Checked {
    let domain = Domain::new()?;
    domain.map(0, &memory(16)?)?;
    domain.map(32, &memory(16)?)?;
    domain.map(48, &memory(16)?)?;
    let mut log = domain.started(PAGE)?;
    domain.write(&[3, 40, 50])?;
    let mut bits = [0];
    let kernel = errno(domain.raw(asked(0, 64), &mut bits));
    let seen = set(&bits);
    let hole = refused("a range with a hole", collect(&mut log, pages(0, 64)?))?;
    refused("a range in a hole", collect(&mut log, pages(20, 4)?))?;
    refused("a range beyond", collect(&mut log, pages(60, 8)?))?;
    are("before the hole", &collected(&mut log, pages(0, 16)?)?, &[3])?;
    are("two mappings", &collected(&mut log, pages(32, 32)?)?, &[40, 50])?;
    Ok(format!("the kernel says {kernel} and {seen:?} of [3, 40, 50]; here: {hole}"))
}

/// Read without forgetting, then unmapped: nothing is lost, and a refusal loses nothing.
pub(super) fn check_unmap() -> Checked {
    let domain = Domain::new()?;
    domain.map(0, &memory(100)?)?;
    let unmap = |first: u64, count: u64| {
        let mut bits = vec![0; (count as usize).div_ceil(64)];
        let (iova, length) = (BASE + first * PAGE, count * PAGE);
        let unmapped = domain.space.unmap_dirty(iova, length, PAGE, &mut bits);
        unmapped.map(|_| bits)
    };
    let untracked = errno(unmap(0, 100));
    let mut log = domain.started(PAGE)?;
    domain.write(&[2, 70, 99])?;
    let mut bits = [0; 2];
    for _ in 0..2 {
        let kept = domain.space.dirty(asked(0, 100), true, &mut bits);
        kept.map_err(said("GET_DIRTY_BITMAP, NO_CLEAR"))?;
        are("kept", &set(&bits), &[2, 70, 99])?;
    }
    // The kernel would refuse it after the bits were read.
    let half = errno(unmap(0, 50));
    are("after a refusal", &collected(&mut log, pages(0, 100)?)?, &[2, 70, 99])?;
    domain.write(&[2, 71, 98])?;
    are("unmapped", &set(&unmap(0, 100).map_err(said("unmap"))?), &[2, 71, 98])?;
    refused("what is gone", collect(&mut log, pages(0, 100)?))?;
    let gone = errno(unmap(0, 100));
    // What comes to lie there is clean, and covered.
    domain.map(0, &memory(100)?)?;
    are("mapped anew", &collected(&mut log, pages(0, 100)?)?, &[])?;
    domain.write(&[4])?;
    are("mapped while it tracks", &collected(&mut log, pages(0, 100)?)?, &[4])?;
    let found = [untracked, half, gone];
    match found.each_ref().map(String::as_str) {
        ["EINVAL", "EINVAL", "ENOENT"] => Ok(format!("{found:?} otherwise")),
        _ => Err(Stop::Fail(format!("before a start, half a mapping, gone: {found:?}"))),
    }
}

/// By large pages too much is dirty, and never too little: of one that a query has not the
/// begin of the kernel tells nothing, and forgets it; so no query cuts a mapping.
pub(super) fn check_large() -> Checked {
    // So many that not all are leftovers.
    const PAGES: u64 = 1 << 14;
    let domain = Domain::of(address_space()?)?;
    let memory = memory(PAGES)?;
    // Pages that are taken one after the other mostly lie so.
    memory.prefault().map_err(said("touch memory"))?;
    domain.map(0, &memory)?;
    let all = pages(0, PAGES)?;
    let mut log = domain.started(PAGE)?;
    let mut large = None;
    for written in (0..PAGES).step_by(397) {
        domain.write(&[written])?;
        let found = collected(&mut log, all)?;
        if !found.contains(&written) {
            return Err(Stop::Fail(format!("page {written} is lost: {found:?}")));
        }
        are("read again", &collected(&mut log, all)?, &[])?;
        if found.len() > 1 {
            large = large.max(Some((found.len(), found[0])));
        }
    }
    let Some((many, first)) = large else {
        return Err(Stop::Skip("no two pages of memory lie together here".to_owned()));
    };
    // A query that has not its begin: the kernel's own answer, and ours.
    let tail = asked(first + 1, PAGES - first - 1);
    domain.write(&[first + 1])?;
    let mut bits = vec![0; PAGES.div_ceil(64) as usize];
    domain.raw(tail, &mut bits).map_err(said("the kernel"))?;
    let kernel = set(&bits).len();
    let refusal = errno(domain.space.dirty(tail, false, &mut bits));
    let part = pages(first + 1, 1)?;
    let found = collected(&mut log, part)?.len();
    match (refusal.as_str(), found == many) {
        ("EINVAL", true) => Ok(format!(
            "one page of {many} dirty by one write; without its begin the kernel tells \
             {kernel} of them, here {found}"
        )),
        _ => Err(Stop::Fail(format!("{refusal}, and {found} of {many} pages"))),
    }
}

/// A page table that is gone is an error, and so everything is dirty.
pub(super) fn check_gone() -> Checked {
    let domain = Domain::new()?;
    domain.map(0, &memory(64)?)?;
    let mut log = domain.started(PAGE)?;
    domain.write(&[1])?;
    let space = ioas(&domain.space)?;
    mock::attach(&domain.space, domain.device, space)
        .map_err(said("attach elsewhere"))?;
    iommufd::destroy(&domain.space, domain.table).map_err(said("IOMMU_DESTROY"))?;
    let gone = refused("a page table that is gone", collect(&mut log, pages(0, 64)?))?;
    refused("its start", log.start(&[], size(PAGE)?))?;
    let misuse = [
        ("an odd address", "EINVAL", DirtyRange { iova: BASE + 1, ..asked(0, 4) }),
        ("an odd length", "EINVAL", DirtyRange { length: PAGE + 1, ..asked(0, 4) }),
        ("half of a bit", "EINVAL", DirtyRange { page: 1 << 20, ..asked(1, 4) }),
        ("the end of addresses", "EOVERFLOW", DirtyRange { iova: !0xfff, ..asked(0, 4) }),
    ];
    let domain = Domain::new()?;
    domain.map(0, &memory(64)?)?;
    domain.started(PAGE)?;
    for (what, expected, asked) in misuse {
        let found = errno(domain.raw(asked, &mut [0; 64]));
        if found != expected {
            return Err(Stop::Fail(format!("{what}: {found} instead of {expected}")));
        }
    }
    Ok(gone)
}

/// The number of steps at random.
const STEPS: u32 = 600;

/// Mappings that come and go, aliases, writes and queries at random, with what the engine
/// makes of the reports: each page of guest memory that was written is dirty, and by
/// small pages no other.
pub(super) fn check_random() -> Checked {
    let small = random(&Domain::new()?, true)?;
    let large = random(&Domain::of(address_space()?)?, false)?;
    Ok(format!("{small}; by large pages {large}"))
}

fn random(domain: &Domain, exact: bool) -> Result<String, String> {
    const GUEST: u64 = 256;
    let guest = memory(GUEST)?;
    guest.prefault().map_err(said("touch memory"))?;
    let mut log = domain.started(PAGE)?;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    // Slots of 128 pages of device addresses: the guest's pages, and how many.
    let mut slots: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    let range = IovaRange::new(0, GUEST * PAGE).map_err(said("guest memory"))?;
    let bitmap = Bitmap::new(range, size(PAGE)?).map_err(said("its bitmap"))?;
    let bitmaps = [bitmap];
    let mut written = BTreeSet::new();
    let (mut writes, mut reads, mut unmaps, mut more) = (0, 0, 0, 0);
    let mut changes = 0;
    for step in 0..STEPS {
        let slot = random.below(6);
        let mappings = |slots: &BTreeMap<u64, (u64, u64)>, changes| {
            let one = |(slot, (first, count)): (&u64, &(u64, u64))| {
                let iova = pages(slot * 128, *count).ok()?;
                Some(Mapping { iova, gpa: Gpa(first * PAGE) })
            };
            Mappings::new(slots.iter().filter_map(one).collect(), changes)
        };
        let known = mappings(&slots, changes);
        match (random.below(10), slots.get(&slot).copied()) {
            (0..4, None) => {
                let first = random.below(GUEST - 1);
                let count = 1 + random.below((GUEST - first).min(128));
                let part = guest.slice(first * PAGE, count * PAGE);
                domain.map(slot * 128, &part.map_err(said("a part"))?)?;
                slots.insert(slot, (first, count));
                changes += 1;
            }
            (0, Some((_, count))) => {
                let iova = pages(slot * 128, count)?;
                let mut bits = vec![0; (count as usize).div_ceil(64)];
                let (start, length) = (iova.start(), iova.length());
                let unmapped = domain.space.unmap_dirty(start, length, PAGE, &mut bits);
                unmapped.map_err(said("unmap"))?;
                let page = size(PAGE)?;
                let report = port::DirtyReport { range: iova, page, words: &bits };
                known.merge(report, &bitmaps);
                slots.remove(&slot);
                changes += 1;
                unmaps += 1;
            }
            (1..8, Some((first, count))) => {
                let page = random.below(count);
                domain.write(&[slot * 128 + page])?;
                written.insert(first + page);
                writes += 1;
            }
            _ => {
                for mapping in known.all() {
                    let merge = &mut |report: port::DirtyReport<'_>| {
                        known.merge(report, &bitmaps);
                    };
                    log.collect(mapping.iova, merge).map_err(|error| chain(&error))?;
                }
                let dirty = bitmaps[0].drain();
                let dirty: Vec<u64> = dirty
                    .runs()
                    .flat_map(|run| run.start() / PAGE..run.end() / PAGE)
                    .collect();
                let expected: Vec<u64> = written.iter().copied().collect();
                let lost = expected.iter().filter(|page| !dirty.contains(page)).count();
                if exact || lost > 0 {
                    are(&format!("step {step}"), &dirty, &expected)?;
                }
                more += dirty.len() - expected.len();
                written.clear();
                reads += 1;
            }
        }
    }
    domain.space.unmap_all().map_err(said("unmap all"))?;
    domain.map(0, &guest)?;
    domain.unmap(0, GUEST)?;
    Ok(format!(
        "{STEPS} steps: {writes} writes, {unmaps} unmaps, {reads} queries, {more} pages too \
         many"
    ))
}

/// The same numbers each time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % end.max(1)
    }
}
