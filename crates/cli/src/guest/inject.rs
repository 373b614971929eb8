//! Breaks exactly one thing, where no checksum of the stream can see it.
//!
//! Each is a wrapper around one port: neither the engine nor the guest has a branch for
//! it. What they break is found by the digests alone.

mod save;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use control::pci::{Function, FunctionError};
use dirty::{IovaRange, PageSize};
use port::{
    ConfigSpace, ConfigStage, DirtyReport, DirtySource, Gpa, GuestMemory, Inspect,
    MemoryError, MemoryRegion, SourceError, Space, Vcpus, VmmError,
};

pub(super) use save::DamageSave;

use super::board::Board;
use super::device::Device;
use super::layout::PAGE;
use super::peers::Peers;

/// How long something may be waited for that makes an injection matter.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long an interrupt may take that nothing keeps from coming.
const AWHILE: Duration = Duration::from_millis(50);
/// Freshly written pages that make sure that one of them matters.
const FRESH: u64 = 16;

/// `page`: one byte of the first page that is read after the vCPUs stopped.
pub(super) struct FlipPage {
    inner: Arc<dyn GuestMemory>,
    board: Arc<Board>,
    done: AtomicBool,
}

impl FlipPage {
    pub(super) fn new(inner: Arc<dyn GuestMemory>, board: Arc<Board>) -> FlipPage {
        FlipPage { inner, board, done: AtomicBool::new(false) }
    }
}

impl GuestMemory for FlipPage {
    fn regions(&self) -> Vec<MemoryRegion> {
        self.inner.regions()
    }

    fn generation(&self) -> u64 {
        self.inner.generation()
    }

    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        self.inner.read(at, into)?;
        if !self.board.barrier.is_open() && !self.done.swap(true, Ordering::AcqRel) {
            let middle = into.len() / 2;
            if let Some(byte) = into.get_mut(middle) {
                *byte ^= 0x10;
            }
        }
        Ok(())
    }

    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), MemoryError> {
        self.inner.write(at, from)
    }

    fn zero(&self, at: Gpa, length: u64) -> Result<(), MemoryError> {
        self.inner.zero(at, length)
    }
}

/// What the engine was given, page by page: shared by the two halves of `dirty-bit`.
#[derive(Default)]
struct Given(Mutex<GivenPages>);

#[derive(Default)]
struct GivenPages {
    /// The checksum of each page as it was last read.
    sums: HashMap<u64, u32>,
    /// Pages that were reported dirty and not read since.
    due: HashSet<u64>,
    done: bool,
}

impl Given {
    fn locked(&self) -> MutexGuard<'_, GivenPages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `dirty-bit`, first half: remembers what was read.
pub(super) struct RememberReads {
    inner: Arc<dyn GuestMemory>,
    given: Arc<Given>,
}

/// `dirty-bit`, second half: forgets one bit of the last report, of a page that has
/// changed since it was read and that nothing else makes be read again.
pub(super) struct ForgetBit {
    inner: Box<dyn DirtySource>,
    memory: Arc<dyn GuestMemory>,
    given: Arc<Given>,
    board: Arc<Board>,
}

/// Both halves of `dirty-bit`.
pub(super) fn forget_bit(
    memory: Arc<dyn GuestMemory>,
    source: Box<dyn DirtySource>,
    board: Arc<Board>,
) -> (RememberReads, ForgetBit) {
    let given = Arc::new(Given::default());
    let reads = RememberReads { inner: Arc::clone(&memory), given: Arc::clone(&given) };
    (reads, ForgetBit { inner: source, memory, given, board })
}

impl GuestMemory for RememberReads {
    fn regions(&self) -> Vec<MemoryRegion> {
        self.inner.regions()
    }

    fn generation(&self) -> u64 {
        self.inner.generation()
    }

    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        self.inner.read(at, into)?;
        let mut given = self.given.locked();
        for (n, page) in into.chunks(PAGE as usize).enumerate() {
            let at = at.0 + n as u64 * PAGE;
            given.sums.insert(at, crc32c::crc32c(page));
            given.due.remove(&at);
        }
        Ok(())
    }

    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), MemoryError> {
        self.inner.write(at, from)
    }

    fn zero(&self, at: Gpa, length: u64) -> Result<(), MemoryError> {
        self.inner.zero(at, length)
    }
}

impl ForgetBit {
    /// Whether the page has changed since the engine read it, and is not read again
    /// for another reason.
    fn matters(&self, given: &GivenPages, at: u64) -> bool {
        let mut page = [0; PAGE as usize];
        self.memory.read(Gpa(at), &mut page).is_ok()
            && !given.due.contains(&at)
            && given.sums.get(&at).is_some_and(|sum| *sum != crc32c::crc32c(&page))
    }
}

impl DirtySource for ForgetBit {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn space(&self) -> Space {
        self.inner.space()
    }

    fn goes_with_mappings(&self) -> Option<PageSize> {
        self.inner.goes_with_mappings()
    }

    fn start(&mut self, ranges: &[IovaRange], page: PageSize) -> Result<(), SourceError> {
        self.inner.start(ranges, page)
    }

    fn collect(
        &mut self,
        range: IovaRange,
        found: &mut dyn FnMut(DirtyReport<'_>),
    ) -> Result<(), SourceError> {
        let mut reports = Vec::new();
        self.inner.collect(range, &mut |report| {
            reports.push((report.range, report.page, report.words.to_vec()));
        })?;
        let last = !self.board.barrier.is_open();
        for (range, page, mut words) in reports {
            let mut given = self.given.locked();
            for bit in 0..words.len() * 64 {
                let mask = 1 << (bit % 64);
                if words[bit / 64] & mask == 0 {
                    continue;
                }
                let at = range.start() + bit as u64 * page.bytes();
                if last && !given.done && self.matters(&given, at) {
                    words[bit / 64] &= !mask;
                    given.done = true;
                    tracing::info!(page = format!("{at:#x}"), "forgot a dirty bit");
                } else {
                    given.due.insert(at);
                }
            }
            drop(given);
            found(DirtyReport { range, page, words: &words });
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), SourceError> {
        self.inner.stop()
    }
}

/// `dirty-bit`: the vCPUs stop only after they wrote some pages since their log was last
/// asked, so that there is a bit to forget.
pub(super) struct WriteOn {
    pub(super) inner: Box<dyn Vcpus>,
    pub(super) board: Arc<Board>,
}

impl Vcpus for WriteOn {
    fn pause(&mut self) -> Result<(), VmmError> {
        wait_for(|| !self.board.barrier.is_open() || self.board.ram.fresh() >= FRESH);
        self.inner.pause()
    }

    fn resume(&mut self) -> Result<(), VmmError> {
        self.inner.resume()
    }

    fn paused(&self) -> bool {
        self.inner.paused()
    }
}

/// `interrupt`: the guest takes no interrupts right before it stops, so that there is
/// one to drop.
pub(super) struct LetPend {
    pub(super) inner: Box<dyn Vcpus>,
    pub(super) board: Arc<Board>,
}

impl LetPend {
    /// Whether vCPUs drive devices from now on. Once they do not, none still does.
    fn enable(&self, enabled: bool) {
        self.board.controller.enable(enabled);
        drop(self.board.still.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Whether something waits that no mask keeps from the guest.
    fn waits(&self) -> bool {
        let functions = (0..self.board.devices.len()).map(|n| self.board.bus.function(n));
        let mut counts =
            functions.flat_map(|function| function.counts().unwrap_or_default());
        counts.any(|counts| counts.pending > 0 && !counts.masked)
    }
}

impl Vcpus for LetPend {
    fn pause(&mut self) -> Result<(), VmmError> {
        // Where all that could come is masked, somewhat later it is not.
        wait_for(|| {
            self.enable(false);
            let waits = within(AWHILE, || self.waits());
            if !waits {
                self.enable(true);
                std::thread::sleep(AWHILE / 4);
            }
            waits
        });
        self.inner.pause()
    }

    fn resume(&mut self) -> Result<(), VmmError> {
        self.enable(true);
        self.inner.resume()
    }

    fn paused(&self) -> bool {
        self.inner.paused()
    }
}

/// `interrupt`: what waits for the guest is taken and thrown away before all of it is
/// saved, of whichever device has something first.
pub(super) struct DropUnheard {
    pub(super) inner: Box<dyn ConfigSpace>,
    pub(super) function: Function,
    pub(super) done: Arc<AtomicBool>,
}

impl DropUnheard {
    /// Whether there was something.
    fn lose(&self) -> Result<bool, FunctionError> {
        if self.function.line()? {
            self.function.end_of_interrupt()?;
            return Ok(true);
        }
        let mut lost = 0;
        self.function.take(&mut |_, _, count| lost += count)?;
        Ok(lost > 0)
    }
}

impl ConfigSpace for DropUnheard {
    fn save(&mut self) -> Result<Vec<u8>, VmmError> {
        if !self.done.load(Ordering::Acquire) {
            let lost = self.lose();
            let lost = lost.map_err(|error| VmmError::new("inject", "lose it", error))?;
            self.done.store(lost, Ordering::Release);
        }
        self.inner.save()
    }

    fn load(&mut self, saved: &[u8], stage: ConfigStage) -> Result<(), VmmError> {
        self.inner.load(saved, stage)
    }
}

/// `device`: one byte of the memory of a source device with a window, after its digest
/// was taken.
pub(super) struct DamageDevice {
    pub(super) inner: Option<Box<dyn Inspect>>,
    pub(super) board: Arc<Board>,
}

impl Inspect for DamageDevice {
    fn stopped(&mut self) -> Result<(), VmmError> {
        if let Some(inner) = &mut self.inner {
            inner.stopped()?;
        }
        let mut accels = self.board.devices.iter().filter_map(Device::accel);
        if accels.any(|accel| accel.damage(&self.board.bus)) {
            return Ok(());
        }
        Err(VmmError::new("inject", "change a byte of a device", "no mapped window"))
    }

    fn loaded(&mut self) -> Result<(), VmmError> {
        self.inner.as_mut().map_or(Ok(()), |inner| inner.loaded())
    }
}

/// `p2p-late`: the peer write that is held back comes after its target stopped.
pub(super) struct LatePeer {
    pub(super) inner: Option<Box<dyn Inspect>>,
    pub(super) peers: Arc<Peers>,
}

impl Inspect for LatePeer {
    fn stopped(&mut self) -> Result<(), VmmError> {
        self.peers.release();
        self.inner.as_mut().map_or(Ok(()), |inner| inner.stopped())
    }

    fn loaded(&mut self) -> Result<(), VmmError> {
        self.inner.as_mut().map_or(Ok(()), |inner| inner.loaded())
    }
}

/// Waits until something is so, or does not come.
fn wait_for(so: impl FnMut() -> bool) {
    within(PATIENCE, so);
}

/// Whether something becomes so in that time.
fn within(time: Duration, mut so: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + time;
    loop {
        if so() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}
