//! Everything that the guest runs on, shared by its threads.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use port::{Vcpus, VmmError};

use control::pci::Message;

use super::barrier::Barrier;
use super::bus::Bus;
use super::controller::Controller;
use super::device::{Device, Driver};
use super::faults::Faults;
use super::memory::Ram;
use super::options::MachineOptions;
use super::page::{BYTES, Random};
use super::sweep::Sweep;
use super::vcpu::{self, Registers, Shown, locked};

/// How long vCPUs may take to stop. One may be in a call to a device, which has a
/// deadline of its own below this.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// How long a resume waits for the vCPUs to be seen running.
const START_WITHIN: Duration = Duration::from_secs(1);

/// The machine that vCPU threads run on.
pub(super) struct Board {
    /// RAM.
    pub(super) ram: Arc<Ram>,
    /// The devices, as the guest drives them.
    pub(super) devices: Vec<Device>,
    /// The way to them: the number of each is its slot.
    pub(super) bus: Bus,
    /// Where their interrupts go.
    pub(super) controller: Controller,
    /// Whether each device writes into the next one.
    pub(super) p2p: bool,
    /// Held while a vCPU drives a device; alone by who needs all devices left alone.
    pub(super) still: RwLock<()>,
    /// Where vCPUs park.
    pub(super) barrier: Barrier,
    /// The registers of each vCPU. Its thread has them while it works.
    pub(super) vcpus: Vec<Mutex<Registers>>,
    /// What may be known of each at any time.
    pub(super) shown: Vec<Shown>,
    /// What the guest found wrong.
    pub(super) faults: Arc<Faults>,
    /// The guest's time.
    pub(super) timer: Timer,
}

impl Board {
    /// A machine that was not booted: its registers say what booting would leave, but for
    /// what a guest finds on its bus. `faults` are those that the bus finds, too.
    pub(super) fn new(
        ram: Arc<Ram>,
        devices: Vec<Device>,
        bus: Bus,
        faults: Arc<Faults>,
        options: &MachineOptions,
    ) -> Board {
        let layout = ram.layout();
        let (first, end) = (layout.first_vcpu_page(), layout.pages());
        let mut seed = Random(options.seed);
        let vcpus: Vec<Mutex<Registers>> = (0..options.vcpus)
            .map(|vcpu| {
                let mut random = Random(seed.next());
                let sweep = Sweep::new(vcpu, options.vcpus, first, end, &mut random);
                let mine = devices.iter().filter(|device| {
                    device.number as u64 % u64::from(options.vcpus) == u64::from(vcpu)
                });
                Mutex::new(Registers {
                    next: sweep.pages(),
                    sweep,
                    random: random.0,
                    rate: options.dirty_rate / u64::from(options.vcpus),
                    busy: options.dma_rate > 0,
                    drivers: mine.map(Device::driver).collect(),
                    active_ns: 0,
                })
            })
            .collect();
        let pages = |vcpu: &Mutex<Registers>| locked(vcpu).sweep.pages();
        let shown =
            vcpus.iter().map(|vcpu| Shown { pages: pages(vcpu), ..Shown::default() });
        let shown = shown.collect();
        Board {
            ram,
            controller: Controller::new(devices.len()),
            devices,
            bus,
            p2p: options.p2p,
            still: RwLock::default(),
            barrier: Barrier::new(options.vcpus),
            vcpus,
            shown,
            faults,
            timer: Timer::default(),
        }
    }

    /// The guest writes every page once.
    pub(super) fn boot(&self) {
        std::thread::scope(|scope| {
            for (vcpu, shown) in self.vcpus.iter().zip(&self.shown) {
                scope.spawn(|| {
                    let registers = locked(vcpu);
                    let mut page = [0; BYTES];
                    for sequence in 0..registers.sweep.pages() {
                        let write = registers.sweep.write(sequence);
                        write.fill(&mut page);
                        self.ram.store(write.page, &page);
                    }
                    shown.next.store(registers.next, Ordering::Release);
                });
            }
        });
    }

    /// A driver programs the first messages of its device, for the vCPU that it runs on.
    pub(super) fn program(&self, device: usize, vectors: usize) -> Message {
        let vcpu = device % self.vcpus.len();
        self.controller.program(device, vectors, vcpu as u32)
    }

    /// Takes what the driver of a device remembers for true from now on.
    pub(super) fn remember(&self, driver: &Driver) {
        for registers in &self.vcpus {
            let mut registers = locked(registers);
            let mut drivers = registers.drivers.iter_mut();
            if let Some(old) = drivers.find(|old| old.device == driver.device) {
                *old = driver.clone();
            }
        }
        self.devices[driver.device].show(driver);
    }

    /// The gap that the guest saw when it came here, once every vCPU has run: the
    /// longest of theirs.
    pub(super) fn gap(&self) -> Option<Duration> {
        let gaps = self.shown.iter().map(|shown| shown.gap_ns.load(Ordering::Acquire));
        let gaps: Vec<u64> = gaps.collect();
        let all = gaps.iter().all(|gap| *gap > 0);
        gaps.into_iter().max().filter(|_| all).map(Duration::from_nanos)
    }

    /// Registers of the driver of a device.
    pub(super) fn driver(&self, device: usize) -> Option<Driver> {
        self.vcpus.iter().find_map(|registers| {
            let registers = locked(registers);
            registers.drivers.iter().find(|driver| driver.device == device).cloned()
        })
    }
}

/// The threads of a board; they end when this is dropped.
pub(super) struct Threads {
    board: Arc<Board>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Threads {
    /// Starts them, parked.
    pub(super) fn start(board: &Arc<Board>) -> std::io::Result<Threads> {
        let mut threads = Threads { board: Arc::clone(board), threads: Vec::new() };
        for vcpu in 0..board.vcpus.len() {
            let on = Arc::clone(board);
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{vcpu}"))
                .spawn(move || vcpu::run(&on, vcpu))?;
            threads.threads.push(thread);
        }
        Ok(threads)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.board.barrier.end();
        for thread in self.threads.drain(..) {
            // A vCPU that panicked has ended too.
            let _ = thread.join();
        }
    }
}

/// The engine's way to the vCPUs.
pub(super) struct AllVcpus(pub(super) Arc<Board>);

impl Vcpus for AllVcpus {
    fn pause(&mut self) -> Result<(), VmmError> {
        let closed = self.0.barrier.close(STOP_WITHIN);
        self.0.timer.stop();
        closed.map_err(|error| VmmError::new("vCPUs", "pause", error))
    }

    fn resume(&mut self) -> Result<(), VmmError> {
        self.0.timer.start();
        // On a busy host a thread may take a while to wake up, and until then the guest
        // does not run.
        self.0.barrier.open(START_WITHIN);
        Ok(())
    }

    fn paused(&self) -> bool {
        !self.0.barrier.is_open()
    }
}

/// The guest's timer: counts nanoseconds in which the guest runs, and no others.
#[derive(Debug, Default)]
pub(super) struct Timer(Mutex<(u64, Option<Instant>)>);

impl Timer {
    /// What it shows.
    pub(super) fn now(&self) -> u64 {
        let (counted, since) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counted.saturating_add(since.map_or(0, elapsed))
    }

    /// Sets what it shows. It does not count then.
    pub(super) fn set(&self, counted: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (counted, None);
    }

    fn start(&self) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.1.get_or_insert_with(Instant::now);
    }

    fn stop(&self) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ran = inner.1.take().map_or(0, elapsed);
        inner.0 = inner.0.saturating_add(ran);
    }
}

fn elapsed(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Nanoseconds of the host's monotonic clock, the same for all processes of a host.
pub(super) fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec.unsigned_abs())
}
