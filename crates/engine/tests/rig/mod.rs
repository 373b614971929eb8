//! Two sides made of fakes, a network between them, and one whole migration.

#![allow(dead_code, reason = "each test binary uses its own part of the rig")]

mod alone;
pub(crate) mod laws;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use port::{
    Accept, AttemptId, Channel, ChannelError, Close, Decision, DecisionStore,
    Device as _, Dial, Gate, Gpa, Halves, Observer, Order, Phase, Progress, Space,
};
use states::v2::{Capabilities, State};
use testkit::{
    Breaker, ConfigHandle, Damage, Damaged, DeviceHandle, FakeConfig, FakeDevice,
    FakeDial, FakeDmaMap, FakeInterrupts, FakeMemory, FakeSection, FakeSource, FakeVcpus,
    Faulty, InterruptsHandle, Recorder, SectionHandle, Side, SourceHandle, VcpusHandle,
    network, pair,
};
use vfio_migrate_engine::drive::{self, Incoming, Offered, Outgoing, Received, Sent};
use vfio_migrate_engine::migration::Options;
use vfio_migrate_engine::{Machine, Slot};

/// Guest memory in these tests: two regions with a hole. The second lies in another
/// stripe than the first, so that two data connections have something to do.
pub(crate) const MEMORY: [(u64, u64); 2] = [(0, 16 * 4096), (4 << 20, 16 * 4096)];

/// How many bytes each device holds: three records of a fake.
pub(crate) const CONTENTS: usize = 10_000;

/// Where the guest writes in [`Rig::busy_guest`].
pub(crate) const WRITTEN: u64 = (4 << 20) + 5 * 4096;

/// No test waits longer than this for a migration.
pub(crate) const BOUND: Duration = Duration::from_secs(60);

/// One side: its machine, and what a test looks at it by.
pub(crate) struct Rig {
    pub(crate) side: Side,
    pub(crate) machine: Option<Machine>,
    pub(crate) memory: FakeMemory,
    pub(crate) dma: FakeDmaMap,
    pub(crate) vcpus: VcpusHandle,
    pub(crate) log: SourceHandle,
    pub(crate) devices: Vec<DeviceHandle>,
    pub(crate) configs: Vec<ConfigHandle>,
    pub(crate) interrupts: Vec<InterruptsHandle>,
    pub(crate) sections: Vec<SectionHandle>,
    /// How many dirty sources are lent.
    pub(crate) tracked: usize,
}

impl Rig {
    /// A side whose guest has run: memory, devices and sections hold something.
    pub(crate) fn source(side: &Side, capabilities: &[Capabilities]) -> Rig {
        let devices = capabilities
            .iter()
            .enumerate()
            .map(|(n, set)| FakeDevice::new(side, &format!("dev{n}"), *set, contents(n)));
        Rig::used(side, devices.collect())
    }

    /// A side whose guest has run with these devices.
    pub(crate) fn used(side: &Side, devices: Vec<FakeDevice>) -> Rig {
        Rig::filled(Rig::new(side, devices, FakeVcpus::running(side)))
    }

    /// Memory and sections of a guest that has run.
    pub(crate) fn filled(rig: Rig) -> Rig {
        for (start, length) in MEMORY {
            for page in 0..length / 4096 {
                // Every fourth page stays zero.
                if page % 4 != 3 {
                    let at = start + page * 4096;
                    let bytes = [(page as u8) | 1; 4096];
                    rig.memory.guest_write(Gpa(at), &bytes).expect("inside");
                }
            }
        }
        rig.sections[0].set(b"registers".to_vec());
        rig.sections[1].set(b"ticks".to_vec());
        rig
    }

    /// A side whose guest was paused: its devices went to STOP with it.
    pub(crate) fn paused(side: &Side, capabilities: &[Capabilities]) -> Rig {
        let devices = capabilities.iter().enumerate().map(|(n, set)| {
            let mut device = FakeDevice::new(side, &format!("dev{n}"), *set, contents(n));
            device.set_state(State::Stop).expect("a legal arc");
            device
        });
        Rig::filled(Rig::new(side, devices.collect(), FakeVcpus::paused(side)))
    }

    /// A side that waits for a guest.
    pub(crate) fn destination(side: &Side, capabilities: &[Capabilities]) -> Rig {
        let devices = capabilities
            .iter()
            .enumerate()
            .map(|(n, set)| FakeDevice::blank(side, &format!("dev{n}"), *set, CONTENTS));
        Rig::new(side, devices.collect(), FakeVcpus::paused(side))
    }

    /// A side of these devices.
    pub(crate) fn new(side: &Side, fakes: Vec<FakeDevice>, vcpus: FakeVcpus) -> Rig {
        let memory = FakeMemory::new(&MEMORY);
        let dma = FakeDmaMap::identity(&memory);
        let source = FakeSource::new(side, "vCPU log", Space::GuestPhysical);
        memory.mark_in(source.handle());
        let log = source.handle();
        let before = FakeSection::new(side, "cpu", Order::BeforeDevices, Vec::new());
        let after = FakeSection::new(side, "timer", Order::AfterDevices, Vec::new());
        let sections = vec![before.handle(), after.handle()];
        let (mut devices, mut configs, mut interrupts) = (vec![], vec![], vec![]);
        let mut slots = Vec::new();
        for (n, fake) in fakes.into_iter().enumerate() {
            devices.push(fake.handle());
            let config = FakeConfig::new(side, &format!("dev{n}"), vec![n as u8; 64]);
            configs.push(config.handle());
            let lines = FakeInterrupts::new(side, &format!("dev{n}"), 4);
            interrupts.push(lines.handle());
            slots.push(Slot {
                device: Box::new(fake),
                config: Some(Box::new(config)),
                interrupts: Some(Box::new(lines)),
            });
        }
        let handle = vcpus.handle();
        let machine = Machine {
            memory: Arc::new(memory.clone()),
            dma: Arc::new(dma.clone()),
            vcpus: Box::new(vcpus),
            devices: slots,
            dirty: vec![Box::new(source)],
            sections: vec![Box::new(before), Box::new(after)],
            gate: None,
            inspect: Some(Box::new(Looker)),
        };
        let tracked = machine.dirty.len();
        let machine = Some(machine);
        let side = side.clone();
        Rig {
            side,
            machine,
            memory,
            dma,
            vcpus: handle,
            log,
            devices,
            configs,
            interrupts,
            sections,
            tracked,
        }
    }

    /// The part that is the machine's.
    pub(crate) fn machine(&mut self) -> &mut Machine {
        self.machine.as_mut().expect("a machine")
    }

    /// Does `each` at every look at the VMM's gate, with the number of the look from 0;
    /// what it says is whether the gate is open. Looks come after each round's bits were
    /// collected, so this is the guest between two rounds.
    pub(crate) fn at_gate(&mut self, each: impl FnMut(u32) -> bool + Send + 'static) {
        let hook = Hook { looks: AtomicU32::new(0), each: Mutex::new(Box::new(each)) };
        self.machine().gate = Some(Arc::new(hook));
    }

    /// A guest that between the first two rounds writes a page, has its first device
    /// change, and raises an interrupt; the gate opens at the second look.
    pub(crate) fn busy_guest(&mut self) {
        let (vcpus, memory) = (self.vcpus.clone(), self.memory.clone());
        let (device, lines) = (self.devices.first().cloned(), self.interrupts.clone());
        self.at_gate(move |look| {
            if look == 0 {
                vcpus.run(|| {
                    memory.guest_write(Gpa(WRITTEN), b"between the rounds").expect("in");
                    if let Some(device) = &device {
                        device.work(5000, b"worked");
                    }
                    lines.iter().for_each(|lines| assert!(lines.raise(1)));
                });
            }
            look > 0
        });
    }

    /// Every call to this side's parts goes by a breaker.
    pub(crate) fn broken_by(&mut self, breaker: &Breaker) {
        let name = self.side.name().to_owned();
        let machine = self.machine.take().expect("a machine");
        let label = |what: &str| format!("{name} {what}");
        let Machine { memory, dma, vcpus, devices, dirty, sections, gate, inspect } =
            machine;
        let memory = if self.tracked == 0 {
            memory
        } else {
            let memory = Box::new(self.memory.clone());
            Arc::new(Faulty::new(&label("memory"), breaker, memory))
        };
        let devices = devices.into_iter().enumerate().map(|(n, slot)| {
            let label = |what: &str| format!("{name} {what}{n}");
            Slot {
                device: Box::new(Faulty::new(&label("dev"), breaker, slot.device)),
                config: slot.config.map(|config| {
                    Box::new(Faulty::new(&label("config"), breaker, config)) as Box<_>
                }),
                interrupts: slot.interrupts.map(|lines| {
                    Box::new(Faulty::new(&label("interrupts"), breaker, lines)) as Box<_>
                }),
            }
        });
        let devices = devices.collect();
        let dirty = dirty.into_iter().map(|source| {
            Box::new(Faulty::new(&label("log"), breaker, source)) as Box<_>
        });
        let dirty = dirty.collect();
        let sections = sections.into_iter().map(|section| {
            Box::new(Faulty::new(&label("section"), breaker, section)) as Box<_>
        });
        self.machine = Some(Machine {
            memory,
            dma,
            vcpus: Box::new(Faulty::new(&label("vcpus"), breaker, vcpus)),
            devices,
            dirty,
            sections: sections.collect(),
            gate,
            inspect,
        });
    }
}

/// What the `n`-th device of a source holds.
pub(crate) fn contents(n: usize) -> Vec<u8> {
    (0..CONTENTS).map(|i| (i * 7 + n * 13) as u8).collect()
}

struct Hook {
    looks: AtomicU32,
    each: Mutex<Box<dyn FnMut(u32) -> bool + Send>>,
}

impl Gate for Hook {
    fn open(&self) -> bool {
        let look = self.looks.fetch_add(1, Ordering::SeqCst);
        (self.each.lock().unwrap_or_else(PoisonError::into_inner))(look)
    }
}

/// How the two sides are joined, and what goes wrong between them.
pub(crate) struct Wires {
    pub(crate) options: Options,
    /// Of the control connection: what the source sends, what the destination sends.
    pub(crate) control: (Damage, Damage),
    /// Of the data connections, in the order in which they are opened.
    pub(crate) data: Vec<Damage>,
    pub(crate) breaker: Breaker,
    /// Called with everything that a side tells, on the thread that tells it: phases on
    /// the main thread, transitions on the device's.
    pub(crate) watchers: (Option<Watcher>, Option<Watcher>),
    pub(crate) dialled: Option<Dialled>,
    pub(crate) cutter: Cutter,
}

/// Hears of progress.
pub(crate) type Watcher = Box<dyn Fn(&Progress) + Send + Sync>;

/// Does something whenever a phase begins.
pub(crate) fn at(
    phase: Phase,
    act: impl Fn() + Send + Sync + 'static,
) -> Option<Watcher> {
    Some(Box::new(move |progress| {
        if *progress == Progress::Phase(phase) {
            act();
        }
    }))
}

/// Uses the destination's port for data connections before the source does.
pub(crate) type Dialled = Box<dyn FnOnce(&FakeDial)>;

impl Default for Wires {
    fn default() -> Wires {
        let options = Options {
            patience: Duration::from_secs(5),
            pace: Duration::from_millis(1),
            // However slow the machine is just now, the stop fits.
            downtime_limit: Duration::from_secs(20),
            max_time: Duration::from_secs(20),
            ..Options::default()
        };
        Wires {
            options,
            control: (Damage::None, Damage::None),
            data: Vec::new(),
            breaker: Breaker::never(),
            watchers: (None, None),
            dialled: None,
            cutter: Cutter::default(),
        }
    }
}

impl Wires {
    /// With a short patience, for tests in which something never answers.
    pub(crate) fn impatient() -> Wires {
        let mut wires = Wires::default();
        wires.options.patience = Duration::from_secs(2);
        wires
    }

    /// With as many data connections.
    pub(crate) fn channels(mut self, channels: u16) -> Wires {
        self.options.channels = channels;
        self
    }
}

/// Breaks every connection of a migration, as when the host of one side is gone.
#[derive(Clone, Default)]
pub(crate) struct Cutter(Arc<Mutex<Vec<Arc<dyn Close>>>>);

impl Cutter {
    pub(crate) fn cut(&self) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().for_each(|close| close.close());
    }

    fn wrap(&self, inner: impl Channel + 'static) -> Box<dyn Channel> {
        Box::new(Tapped { inner: Box::new(inner), cutter: self.clone() })
    }
}

struct Tapped {
    inner: Box<dyn Channel>,
    cutter: Cutter,
}

impl Channel for Tapped {
    fn split(self: Box<Self>) -> Result<Halves, ChannelError> {
        let (transmit, receive, close) = self.inner.split()?;
        let close: Arc<dyn Close> = Arc::from(close);
        let all = &self.cutter.0;
        all.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&close));
        Ok((transmit, receive, Box::new(Shared(close))))
    }
}

struct Shared(Arc<dyn Close>);

impl Close for Shared {
    fn close(&self) {
        self.0.close();
    }
}

/// Opens data connections that are damaged, one after the other.
struct Dialler {
    inner: FakeDial,
    damage: std::vec::IntoIter<Damage>,
    sent: Arc<Mutex<Vec<Arc<AtomicU64>>>>,
    cutter: Cutter,
}

impl Dial for Dialler {
    fn dial(&mut self, _deadline: Duration) -> Result<Box<dyn Channel>, ChannelError> {
        let damage = self.damage.next().unwrap_or(Damage::None);
        let channel = Damaged::new(self.inner.open()?, damage);
        let sent = channel.sent();
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).push(sent);
        Ok(self.cutter.wrap(channel))
    }
}

/// Does something when a phase begins for the first time.
pub(crate) fn at_first(
    phase: Phase,
    act: impl Fn() + Send + Sync + 'static,
) -> Option<Watcher> {
    let once = Once::new();
    at(phase, move || once.call_once(&act))
}

/// Keeps what one side tells, and passes it on.
struct Watch {
    recorder: Recorder,
    watcher: Option<Watcher>,
}

impl Observer for Watch {
    fn progress(&self, progress: &Progress) {
        self.recorder.progress(progress);
        if let Some(watcher) = &self.watcher {
            watcher(progress);
        }
    }
}

/// How one migration went on both sides.
#[derive(Debug)]
pub(crate) struct Went {
    pub(crate) sent: Sent,
    pub(crate) received: Received,
    /// What stands in each side's store.
    pub(crate) decisions: (Option<Decision>, Option<Decision>),
    /// What each side told of its progress.
    pub(crate) told: (Recorder, Recorder),
    /// Whether the destination held before it came to its end.
    pub(crate) held: bool,
    /// Bytes on the control connection, either way, and on each data connection.
    pub(crate) bytes: ((u64, u64), Vec<u64>),
}

impl Went {
    /// Whether the source entered its commit.
    pub(crate) fn committed(&self) -> bool {
        self.told.0.phases().contains(&Phase::Start)
    }
}

/// The attempt of every migration in these tests.
pub(crate) const ATTEMPT: AttemptId = AttemptId([7; 16]);

/// The token that the destination gives out.
pub(crate) const TOKEN: [u8; 8] = [9; 8];

/// Migrates once; `meanwhile` gets the handles while it runs.
///
/// # Panics
/// When a side does not come to its end.
pub(crate) fn migrate(
    source: &mut Rig,
    destination: &mut Rig,
    wires: Wires,
    meanwhile: impl FnOnce(drive::SourceHandle, drive::SinkHandle),
) -> Went {
    let here = destination.machine.take().expect("a machine");
    migrate_into(source, Box::new(move |_| Ok(here)), wires, meanwhile)
        .expect("both sides come to an end")
}

/// What opens the destination's machine.
pub(crate) type Opening =
    Box<dyn FnOnce(&[Offered]) -> Result<Machine, Vec<String>> + Send>;

/// Migrates once into whatever `open` opens.
///
/// # Errors
/// Which side did not come to its end.
pub(crate) fn migrate_into(
    source: &mut Rig,
    open: Opening,
    wires: Wires,
    meanwhile: impl FnOnce(drive::SourceHandle, drive::SinkHandle),
) -> Result<Went, &'static str> {
    let (near, far) = pair(1 << 20);
    let (dial, accept) = network(1 << 20);
    if let Some(dialled) = wires.dialled {
        dialled(&dial);
    }
    let breaker = &wires.breaker;
    let patience = wires.options.patience;
    let near = Damaged::new(near, wires.control.0);
    let far = Damaged::new(far, wires.control.1);
    let control_sent = (near.sent(), far.sent());
    let data_sent = Arc::new(Mutex::new(Vec::new()));
    let dialler = Dialler {
        inner: dial,
        damage: wires.data.into_iter(),
        sent: Arc::clone(&data_sent),
        cutter: wires.cutter.clone(),
    };
    let stores = [0, 1].map(|_| store::Memory::new().expect("random bytes"));
    let faulty_store = |label: &str, n: usize| -> Box<dyn DecisionStore> {
        let store: Box<dyn DecisionStore> = Box::new(stores[n].clone());
        Box::new(Faulty::new(label, breaker, store))
    };
    let told = (Recorder::default(), Recorder::default());
    let watch = |recorder: &Recorder, watcher| {
        Arc::new(Watch { recorder: recorder.clone(), watcher })
    };
    let control = |label: &str, channel: Box<dyn Channel>| -> Box<dyn Channel> {
        Box::new(Faulty::new(label, breaker, channel))
    };
    let outgoing = Outgoing::new(
        source.machine.take().expect("a machine"),
        control("source control", wires.cutter.wrap(near)),
        Box::new(Faulty::new("source data", breaker, Box::new(dialler) as Box<dyn Dial>)),
        faulty_store("source store", 0),
        ATTEMPT,
        wires.options,
    )
    .observer(watch(&told.0, wires.watchers.0));
    let accept: Box<dyn Accept> = Box::new(accept);
    let incoming = Incoming::new(
        control("destination control", wires.cutter.wrap(far)),
        Box::new(Faulty::new("destination data", breaker, accept)),
        faulty_store("destination store", 1),
        TOKEN,
        patience,
        open,
    )
    .observer(watch(&told.1, wires.watchers.1));
    let (source_handle, sink_handle) = (outgoing.handle(), incoming.handle());
    let (to_sent, sent) = channel();
    let (to_received, received) = channel();
    thread::spawn(move || drop(to_sent.send(outgoing.run())));
    let holding = sink_handle.clone();
    thread::spawn(move || drop(to_received.send(incoming.run())));
    meanwhile(source_handle, sink_handle);
    let until = Instant::now() + BOUND;
    let sent = sent.recv_timeout(BOUND).map_err(|_| "the source hangs")?;
    // A destination that holds waits for its operator: here that is the test.
    let mut held = false;
    let received = loop {
        match received.recv_timeout(Duration::from_millis(2)) {
            Ok(received) => break received,
            Err(_) if holding.holding() => {
                held = true;
                holding.discard();
                thread::sleep(Duration::from_millis(1));
            }
            Err(RecvTimeoutError::Timeout) if Instant::now() < until => {}
            Err(_) => return Err("the destination hangs"),
        }
    };
    let count = |sent: &Arc<AtomicU64>| sent.load(Ordering::SeqCst);
    let data = data_sent.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Went {
        sent,
        received,
        decisions: (
            stores[0].read(ATTEMPT).expect("in memory"),
            stores[1].read(ATTEMPT).expect("in memory"),
        ),
        told,
        held,
        bytes: (
            (count(&control_sent.0), count(&control_sent.1)),
            data.iter().map(count).collect(),
        ),
    })
}

/// Writes into guest memory as the guest does.
pub(crate) fn scribble(rig: &Rig, at: u64, byte: u8) {
    let wrote = rig.vcpus.run(|| rig.memory.guest_write(Gpa(at), &[byte; 64]));
    if let Some(result) = wrote {
        result.expect("inside");
    }
}

/// What both sides have to agree on after a migration that completed.
pub(crate) fn assert_moved(source: &Rig, destination: &Rig) {
    assert_eq!(source.memory.digests(), destination.memory.digests(), "memory");
    for (n, (here, there)) in source.devices.iter().zip(&destination.devices).enumerate()
    {
        assert_eq!(here.contents(), there.contents(), "device {n}");
        assert_eq!(there.touched_while_stopped(), 0, "device {n} was touched");
    }
    for (here, there) in source.sections.iter().zip(&destination.sections) {
        assert_eq!(here.bytes(), there.bytes(), "sections");
    }
    for (here, there) in source.configs.iter().zip(&destination.configs) {
        assert_eq!(here.bytes(), there.bytes(), "config spaces");
    }
}

/// Somebody who looks at the stopped guest, so that there is such a phase.
struct Looker;

impl port::Inspect for Looker {
    fn stopped(&mut self) -> Result<(), port::VmmError> {
        Ok(())
    }

    fn loaded(&mut self) -> Result<(), port::VmmError> {
        Ok(())
    }
}
