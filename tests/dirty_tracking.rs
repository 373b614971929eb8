//! A device writes all the time, its log is on, and the VMM maps and unmaps what it
//! writes to, over a real socket. Whoever copies what is told dirty has every byte.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests, and what they share")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use abi::errno::Errno;
use control::{AddressSpace, Declared, DmaLog, DmaTarget, Transport};
use device::{
    Bus, BusError, Description, Identity, Migratable, Region, Runner, Settle, StateArc,
    Work,
};
use dirty::{Bitmap, Iova, IovaRange, PageSize};
use port::{DirtySource, Gpa, Mapping};
use states::v2::Capabilities;
use sys::SharedMemory;
use vfio_user::{Client, ClientOptions, NoDma, Server, ServerOptions, Stop};

const PAGE: u64 = 4096;
const RAM: u64 = 2 << 20;
/// A third of what the device writes to.
const WINDOW: u64 = 256 << 10;
const WINDOWS: u64 = 3;
const DEADLINE: Duration = Duration::from_secs(60);

/// Writes everywhere, one number after the other: what is not mapped it cannot reach.
#[derive(Default)]
struct Scribbler {
    runs: bool,
    written: u64,
    tried: u64,
}

impl Migratable for Scribbler {
    fn describe(&self) -> Description {
        let identity =
            Identity { pci: None, model: "scribbler".to_owned(), data_version: 1 };
        let register = Region { index: 0, size: 8, writable: true, windows: vec![] };
        let capabilities = Capabilities::STOP_COPY;
        Description { identity, capabilities, regions: vec![register], irqs: vec![] }
    }

    fn read(&mut self, _: u32, _: u64, into: &mut [u8]) -> Result<(), Errno> {
        into.copy_from_slice(&self.written.to_ne_bytes()[..into.len()]);
        Ok(())
    }

    fn write(
        &mut self,
        _: u32,
        _: u64,
        data: &[u8],
        _: &mut dyn Bus,
    ) -> Result<(), Errno> {
        self.runs = data.first().is_some_and(|byte| *byte != 0);
        Ok(())
    }

    fn reset(&mut self) {
        *self = Scribbler::default();
    }

    fn enter(&mut self, _: StateArc, _: &mut dyn Bus) -> Result<Settle, Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn save(&mut self, _: &mut [u8]) -> Result<usize, Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn stop_copy_bytes(&self) -> u64 {
        0
    }

    fn load(&mut self, _: &[u8]) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn loaded(&mut self) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn work(&mut self, bus: &mut dyn Bus, _: Instant) -> Work {
        if !self.runs {
            return Work::Idle;
        }
        for _ in 0..16 {
            self.tried += 1;
            // Across the end of a page too, and over all windows in no order.
            let at = self.tried.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (WINDOWS * WINDOW);
            match bus.write(Iova(at), &self.tried.to_ne_bytes()) {
                Ok(_) => self.written += 1,
                Err(BusError::Busy | BusError::Quiescing) => break,
                // Nothing is mapped there now.
                Err(_) => {}
            }
        }
        Work::Again
    }
}

/// A scribbler behind a socket.
struct Served {
    client: Client,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn start() -> Served {
        let (ours, theirs) = sys::socket::pair().unwrap();
        let stop = Stop::new().unwrap();
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let runner = Runner::new(Box::new(Scribbler::default())).unwrap();
                let mut server = Server::new(runner, ServerOptions::default()).unwrap();
                server.adopt(theirs).unwrap();
                server.serve_until(&stop).unwrap();
            }
        });
        let options = ClientOptions::new("scribbler", Arc::new(NoDma));
        let client = Client::over(ours, options).unwrap();
        Served { client, stop, thread: Some(thread) }
    }

    fn run(&self, runs: bool) {
        self.client.region_write(0, 0, &u64::from(runs).to_ne_bytes()).unwrap();
    }

    /// Waits until it has written so much more.
    fn written(&self, more: u64) {
        let count = || {
            let mut count = [0; 8];
            self.client.region_read(0, 0, &mut count).unwrap();
            u64::from_ne_bytes(count)
        };
        let (enough, deadline) = (count() + more, Instant::now() + DEADLINE);
        while count() < enough {
            assert!(Instant::now() < deadline, "the device does not write");
            std::thread::yield_now();
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// What another host would have by now.
struct Copy {
    ram: SharedMemory,
    source: Box<dyn DirtySource>,
    bytes: Vec<u8>,
    /// Pages that were copied.
    pages: u64,
    /// How often the source did not know.
    lost: u64,
}

impl Copy {
    fn region() -> IovaRange {
        IovaRange::new(0, RAM).unwrap()
    }

    /// Takes what is told dirty, and starts a log anew that does not know all, as the
    /// engine does.
    fn take(&mut self) {
        let dirty = Bitmap::new(Copy::region(), PageSize::FOUR_K).unwrap();
        let mut lost = false;
        let told = self.source.collect(Copy::region(), &mut |report| {
            dirty.merge(report.range, report.page, report.words);
            lost |= report.is_lost();
        });
        if lost || told.is_err() {
            self.lost += 1;
            let _ = self.source.stop();
            self.source.start(&[Copy::region()], PageSize::FOUR_K).unwrap();
            dirty.mark_all();
        }
        let dirty = dirty.drain();
        self.pages += dirty.pages();
        for run in &dirty {
            let (start, end) = (run.start() as usize, run.end() as usize);
            self.ram.read(run.start(), &mut self.bytes[start..end]).unwrap();
        }
    }

    /// Whether all of it is there.
    fn assert_whole(&self) {
        let mut now = vec![0; RAM as usize];
        self.ram.read(0, &mut now).unwrap();
        let differs = |n: &usize| {
            let page = n * PAGE as usize..(n + 1) * PAGE as usize;
            now[page.clone()] != self.bytes[page]
        };
        let pages: Vec<usize> = (0..(RAM / PAGE) as usize).filter(differs).collect();
        assert!(pages.is_empty(), "writes were lost: {pages:?}");
        assert!(now.iter().any(|byte| *byte != 0), "nothing was written");
    }
}

struct Rig {
    served: Served,
    space: AddressSpace,
    ram: SharedMemory,
    copy: Copy,
}

fn window(number: u64, gpa: u64) -> Mapping {
    let iova = IovaRange::new(number * WINDOW, WINDOW).unwrap();
    Mapping { iova, gpa: Gpa(gpa) }
}

impl Rig {
    /// With some of the windows mapped.
    fn new(windows: u64) -> Rig {
        let served = Served::start();
        let ram = SharedMemory::create("ram", RAM).unwrap();
        let declared = Declared { virtual_iommu: false, peer_to_peer: false };
        let space = AddressSpace::new(declared);
        let device: Arc<dyn Transport> = Arc::new(served.client.clone());
        let log = DmaLog::open(Arc::clone(&device)).unwrap().unwrap();
        let source = space.attach(device, Box::new(log)).unwrap();
        let source: Box<dyn DirtySource> = Box::new(source);
        let (bytes, memory) = (vec![0; RAM as usize], ram.clone());
        let copy = Copy { ram: memory, source, bytes, pages: 0, lost: 0 };
        let rig = Rig { served, space, ram, copy };
        (0..windows).for_each(|number| rig.map(window(number, number * WINDOW)));
        rig
    }

    fn map(&self, mapping: Mapping) {
        let (memory, offset) = (&self.ram, mapping.gpa.0);
        let target = DmaTarget::Memory { memory, offset, writable: true };
        self.space.map(mapping, target).unwrap();
    }
}

#[test]
fn a_write_through_a_mapping_that_went_is_lost() {
    let mut rig = Rig::new(WINDOWS);
    rig.copy.source.start(&[Copy::region()], PageSize::FOUR_K).unwrap();
    rig.served.run(true);
    let done = AtomicBool::new(false);
    let Rig { served, space, ram, mut copy } = rig;
    let copy = std::thread::scope(|scope| {
        // The engine, which asks whenever it likes.
        let engine = scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                copy.take();
            }
            copy
        });
        // The VMM, which does not wait for it. Aliases come and go.
        for turn in 0..200_u64 {
            let number = turn % WINDOWS;
            space.unmap(window(number, 0).iova).unwrap();
            let gpa = turn.wrapping_mul(7) % ((RAM - WINDOW) / PAGE) * PAGE;
            let target = DmaTarget::Memory { memory: &ram, offset: gpa, writable: true };
            space.map(window(number, gpa), target).unwrap();
            served.written(30);
        }
        done.store(true, Ordering::Release);
        engine.join().unwrap()
    });
    let mut copy = copy;
    served.run(false);
    copy.take();
    copy.assert_whole();
    // And that was not because all of it was copied every time.
    assert_eq!(copy.lost, 0, "the log was on for all of the windows");
}

#[test]
fn a_mapping_that_its_log_does_not_know_is_written_to_in_secret() {
    let mut rig = Rig::new(1);
    rig.copy.source.start(&[Copy::region()], PageSize::FOUR_K).unwrap();
    rig.served.run(true);
    rig.served.written(100);
    rig.copy.take();
    assert_eq!(rig.copy.lost, 0);
    // Two more, of which one goes before anybody asks.
    rig.map(window(1, WINDOW));
    rig.map(window(2, 2 * WINDOW));
    rig.served.written(300);
    rig.space.unmap(window(1, 0).iova).unwrap();
    rig.served.written(100);
    rig.copy.take();
    assert_eq!(rig.copy.lost, 1);
    // Once, and not for ever: the log knows them all now.
    let before = rig.copy.pages;
    rig.served.written(20);
    rig.served.run(false);
    rig.copy.take();
    rig.copy.take();
    rig.copy.assert_whole();
    assert_eq!(rig.copy.lost, 1);
    assert!(rig.copy.pages - before < 2 * RAM / PAGE);
}
