//! A device that writes, and the log of its writes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use abi::errno::Errno;
use abi::feature::Feature;
use abi::v2::DeviceState;
use dirty::{IovaRange, PageSize};
use port::{DirtyReport, DirtySource, SourceError, Space};
use sys::EventFd;
use vfio_migrate_control::{
    AddressSpace, DataSession, DeviceInfo, Direction, DmaTarget, DmaWrites, Followed,
    IrqInfo, MappedArea, RegionInfo, Transport, TransportError,
};

use super::range;

/// A device that writes, and the log of its writes.
#[derive(Clone)]
pub(crate) struct Writer(Arc<Mutex<Inner>>);

pub(crate) struct Inner {
    pub(crate) manner: Manner,
    pub(crate) mapped: BTreeMap<u64, u64>,
    /// What it logs, while it does.
    pub(crate) covers: Option<Vec<IovaRange>>,
    /// Pages by number.
    pub(crate) pages: BTreeSet<u64>,
    /// What to answer to the next call that unmaps.
    pub(crate) unmap: Option<Errno>,
    /// What to answer to the next call that maps.
    pub(crate) map: Option<Errno>,
    /// The next unmapping with bits fails.
    pub(crate) bits: Option<Errno>,
    /// A write to make while nothing is mapped any more is impossible; this one is made
    /// at the last moment.
    pub(crate) late: Option<IovaRange>,
    /// Before it answers to the next call that maps or unmaps it writes by messages;
    /// whether somebody serves them.
    pub(crate) messages: Option<Box<dyn FnOnce() -> bool + Send>>,
    /// The next call that maps does so, and does not answer in time.
    pub(crate) late_answer: bool,
    /// Nobody serves it any more.
    pub(crate) dead: bool,
    /// The next call that unmaps with bits is not answered, and no other after it.
    pub(crate) hangs: bool,
}

/// Who keeps the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeper {
    /// The device: it tells of what is not mapped any more.
    Device,
    /// The device, of what is mapped (libvfio-user).
    DeviceWhileMapped,
    /// The container, which tells at the moment of the unmapping.
    Mappings,
    /// The page table of an IOMMU (iommufd): it is read, and then the mapping goes.
    PageTable,
}

impl Keeper {
    /// Whether the bits go with their mapping, and new mappings are covered.
    pub(crate) fn goes(self) -> bool {
        matches!(self, Keeper::Mappings | Keeper::PageTable)
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) keeper: Keeper,
    pub(crate) page: PageSize,
}

fn failed<T>(operation: &'static str, errno: Errno) -> Result<T, TransportError> {
    Err(TransportError::Errno { operation, errno })
}

impl Writer {
    pub(crate) fn new(keeper: Keeper, page: PageSize) -> Writer {
        let inner = Inner {
            manner: Manner { keeper, page },
            mapped: BTreeMap::new(),
            covers: None,
            pages: BTreeSet::new(),
            unmap: None,
            map: None,
            bits: None,
            late: None,
            messages: None,
            late_answer: false,
            dead: false,
            hangs: false,
        };
        Writer(Arc::new(Mutex::new(inner)))
    }

    pub(crate) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    pub(crate) fn attach(&self, space: &AddressSpace) -> Followed {
        space.attach(Arc::new(self.clone()), Box::new(self.clone())).unwrap()
    }
}

impl Writer {
    fn messages_served(&self) -> bool {
        let messages = self.inner().messages.take();
        messages.is_none_or(|served| served())
    }
}

impl Inner {
    pub(crate) fn numbers(&self, at: IovaRange) -> std::ops::RangeInclusive<u64> {
        let shift = self.manner.page.shift();
        at.start() >> shift..=at.last() >> shift
    }

    pub(crate) fn has(&self, mapping: IovaRange) -> bool {
        self.mapped.get(&mapping.start()) == Some(&mapping.length())
    }

    pub(crate) fn write(&mut self, at: IovaRange) {
        let there =
            self.mapped.iter().any(|(start, length)| range(*start, *length).covers(at));
        assert!(there, "{at} is not mapped");
        let all = self.manner.keeper.goes() && self.covers.is_some();
        let covered = |n: &u64| {
            let whole = range(n << self.manner.page.shift(), self.manner.page.bytes());
            all || self.covers.iter().flatten().any(|one| one.overlaps(whole))
        };
        let pages: Vec<u64> = self.numbers(at).filter(covered).collect();
        self.pages.extend(pages);
    }

    /// The bits of some pages.
    fn read(&self, at: IovaRange) -> Vec<u64> {
        let (first, last) = self.numbers(at).into_inner();
        let mut words = vec![0_u64; (last - first + 1).div_ceil(64) as usize];
        for n in self.pages.range(first..=last) {
            words[((n - first) / 64) as usize] |= 1 << ((n - first) % 64);
        }
        words
    }

    /// The bits of some pages, which are gone with that.
    fn take(&mut self, at: IovaRange) -> Vec<u64> {
        let (words, numbers) = (self.read(at), self.numbers(at));
        self.pages.retain(|n| !numbers.contains(n));
        words
    }

    fn go(&mut self, at: IovaRange) -> Result<(), Errno> {
        if let Some(late) = self.late.take_if(|late| at.covers(*late)) {
            self.write(late);
        }
        if let Some(errno) = self.unmap.take() {
            return Err(errno);
        }
        match self.mapped.get(&at.start()) {
            Some(length) if *length == at.length() => {
                self.mapped.remove(&at.start());
                Ok(())
            }
            _ => Err(Errno::ENOENT),
        }
    }
}

impl DirtySource for Writer {
    fn name(&self) -> &str {
        "writer log"
    }

    fn space(&self) -> Space {
        Space::Iova
    }

    fn goes_with_mappings(&self) -> Option<PageSize> {
        let Manner { keeper, page } = self.inner().manner;
        keeper.goes().then_some(page)
    }

    fn start(&mut self, ranges: &[IovaRange], _: PageSize) -> Result<(), SourceError> {
        let inner = &mut *self.inner();
        assert!(!ranges.is_empty());
        inner.pages.clear();
        inner.covers = Some(ranges.to_vec());
        Ok(())
    }

    fn collect(
        &mut self,
        asked: IovaRange,
        found: &mut dyn FnMut(DirtyReport<'_>),
    ) -> Result<(), SourceError> {
        let inner = &mut *self.inner();
        let all = inner.manner.keeper.goes() && inner.covers.is_some();
        let covered = all || inner.covers.iter().flatten().any(|one| one.covers(asked));
        let there = inner.has(asked);
        if !covered || !there && inner.manner.keeper != Keeper::Device {
            return Err(SourceError::new("writer log", "collect", "not logged"));
        }
        let (page, words) = (inner.manner.page, inner.take(asked));
        let start = page.floor(asked.start());
        let range = range(start, page.floor(asked.last()) + page.bytes() - start);
        found(DirtyReport { range, page, words: &words });
        Ok(())
    }

    fn stop(&mut self) -> Result<(), SourceError> {
        self.inner().covers = None;
        Ok(())
    }
}

impl Transport for Writer {
    fn name(&self) -> &str {
        "writer"
    }
    fn device_info(&self) -> Result<DeviceInfo, TransportError> {
        failed("ask", Errno::ENOTTY)
    }
    fn region_info(&self, _: u32) -> Result<RegionInfo, TransportError> {
        failed("ask", Errno::ENOTTY)
    }
    fn irq_info(&self, _: u32) -> Result<IrqInfo, TransportError> {
        failed("ask", Errno::ENOTTY)
    }
    fn region_read(&self, _: u32, _: u64, _: &mut [u8]) -> Result<(), TransportError> {
        failed("read", Errno::ENOTTY)
    }
    fn region_write(&self, _: u32, _: u64, _: &[u8]) -> Result<(), TransportError> {
        failed("write", Errno::ENOTTY)
    }
    fn region_map(&self, _: u32, _: u64) -> Result<MappedArea, TransportError> {
        failed("map", Errno::ENOTTY)
    }
    fn feature_probe(&self, _: Feature) -> Result<(), TransportError> {
        failed("probe", Errno::ENOTTY)
    }
    fn feature_get(
        &self,
        _: Feature,
        _: &[u8],
        _: usize,
    ) -> Result<Vec<u8>, TransportError> {
        failed("get", Errno::ENOTTY)
    }
    fn feature_set(&self, _: Feature, _: &[u8]) -> Result<Vec<u8>, TransportError> {
        failed("set", Errno::ENOTTY)
    }
    fn set_migration_state(
        &self,
        _: DeviceState,
        _: Option<Direction>,
    ) -> Result<Option<Box<dyn DataSession>>, TransportError> {
        failed("state", Errno::ENOTTY)
    }
    fn set_irqs(&self, _: u32, _: u32, _: &[&EventFd]) -> Result<(), TransportError> {
        failed("irqs", Errno::ENOTTY)
    }
    fn dma_map(&self, at: IovaRange, _: DmaTarget<'_>) -> Result<(), TransportError> {
        if !self.messages_served() {
            return failed("map", Errno::ETIMEDOUT);
        }
        let inner = &mut *self.inner();
        if inner.dead {
            return Err(TransportError::Gone { operation: "map", source: None });
        }
        if let Some(errno) = inner.map.take() {
            return failed("map", errno);
        }
        inner.mapped.insert(at.start(), at.length());
        if std::mem::take(&mut inner.late_answer) {
            return Err(TransportError::TimedOut { operation: "map", millis: 1 });
        }
        Ok(())
    }
    fn dma_unmap(&self, at: IovaRange) -> Result<(), TransportError> {
        if !self.messages_served() {
            return failed("unmap", Errno::ETIMEDOUT);
        }
        let inner = &mut *self.inner();
        if inner.dead {
            return Err(TransportError::Gone { operation: "unmap", source: None });
        }
        inner.go(at).or_else(|errno| failed("unmap", errno))?;
        if inner.manner.keeper != Keeper::Device {
            let page = inner.manner.page;
            inner.pages.retain(|n| !at.overlaps(range(n << page.shift(), page.bytes())));
        }
        Ok(())
    }
    fn dma_unmap_dirty(
        &self,
        at: IovaRange,
        page: PageSize,
        writes: DmaWrites,
    ) -> Result<Vec<u64>, TransportError> {
        const OPERATION: &str = "unmap with bits";
        let inner = &mut *self.inner();
        if !inner.manner.keeper.goes() || page != inner.manner.page {
            return failed(OPERATION, Errno::ENOTTY);
        }
        if inner.covers.is_none() {
            return failed(OPERATION, Errno::EINVAL);
        }
        if std::mem::take(&mut inner.hangs) {
            inner.dead = true;
            return Err(TransportError::TimedOut { operation: OPERATION, millis: 1 });
        }
        if let Some(errno) = inner.bits.take() {
            return failed(OPERATION, errno);
        }
        if inner.manner.keeper == Keeper::Mappings {
            inner.go(at).or_else(|errno| failed(OPERATION, errno))?;
            return Ok(inner.take(at));
        }
        // What is written last is not in what was read, and goes. A refusal loses none.
        let mut read = inner.read(at);
        inner.go(at).or_else(|errno| failed(OPERATION, errno))?;
        inner.take(at);
        if writes == DmaWrites::MayGoOn {
            read.fill(u64::MAX);
        }
        Ok(read)
    }
    fn reset(&self) -> Result<(), TransportError> {
        failed("reset", Errno::ENOTTY)
    }
}
