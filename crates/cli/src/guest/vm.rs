//! Puts a machine together, and lends it to the engine.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};
use control::{DmaTarget, PciConfig};
use dirty::IovaRange;
use engine::{Machine, Slot};
use port::{DirtySource, DmaMap, GuestMemory, Inspect, Interrupts, Vcpus};
use vfio_user::DmaHandler;

use super::accel::Accel;
use super::board::{AllVcpus, Board, Threads};
use super::changes::{Changes, Idle};
use super::inject::{
    DamageDevice, DropCount, FlipPage, LatePeer, LetPend, WriteOn, forget_bit,
};
use super::inspect::Looker;
use super::layout::{Layout, PAGE};
use super::lines::Routed;
use super::memory::{IdentityMap, Ram, WriteLog, Writer};
use super::options::{Inject, MachineOptions};
use super::peers::Peers;
use super::sections;

/// A machine: the board that the guest sees, and what is behind it.
pub(super) struct Vm {
    /// What the guest runs on.
    pub(super) board: Arc<Board>,
    /// How much of it changed.
    pub(super) changes: Arc<Changes>,
    /// Whether devices write into each other.
    pub(super) p2p: bool,
    peers: Arc<Peers>,
    /// BAR2 of each device.
    bars: Vec<u64>,
    _threads: Threads,
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.peers.clear();
    }
}

/// How a machine is lent.
#[derive(Clone, Debug, Default)]
pub(super) struct Lending {
    /// Where digests of the stopped guest go.
    pub(super) digests: Option<PathBuf>,
    /// What is broken.
    pub(super) inject: Option<Inject>,
}

impl Vm {
    /// Memory, vCPUs that do not run, and devices that are reset and reach memory. The
    /// guest was not booted.
    pub(super) fn build(
        options: &MachineOptions,
        hold: bool,
        inject: Option<Inject>,
    ) -> Result<Vm> {
        options.validate()?;
        let layout = Layout::new(options.memory, options.devices.len());
        let ram = Ram::new(layout.clone()).with_context(|| {
            format!("cannot get {} bytes of guest memory", options.memory)
        })?;
        let ram = Arc::new(ram);
        let late = inject == Some(Inject::P2pLate);
        let peers = Arc::new(Peers::new(Arc::clone(&ram), late));
        let mut devices = Vec::new();
        for (number, uri) in options.devices.iter().enumerate() {
            let name = format!("accel{number}");
            let handler: Arc<dyn DmaHandler> = Arc::clone(&peers) as Arc<dyn DmaHandler>;
            let client = uri.connect(name, handler)?;
            let area = layout.area(number);
            let device = Accel::open(number, client, area, options.p2p)
                .with_context(|| format!("cannot use {uri}"))?;
            // Whatever a guest before left there is not ours.
            device.transport.reset().with_context(|| format!("cannot reset {uri}"))?;
            devices.push(device);
        }
        let sizes: Vec<u64> = devices.iter().map(|d| d.plan.blocks * PAGE).collect();
        let bars = layout.big_bars(&sizes);
        for device in &devices {
            map(device, &ram)
                .with_context(|| format!("map memory to {}", device.name()))?;
        }
        if options.p2p {
            connect_peers(&devices, &bars, &sizes, &peers)?;
        }
        let board = Arc::new(Board::new(ram, devices, options));
        let threads = Threads::start(&board).context("cannot start vCPU threads")?;
        let changes =
            Arc::new(Changes::new(Arc::clone(&board), hold, Idle::new(options)));
        Ok(Vm { board, changes, p2p: options.p2p, peers, bars, _threads: threads })
    }

    /// The guest boots: it writes its memory, finds its devices and starts them. Its
    /// vCPUs do not run yet.
    pub(super) fn boot(&self, options: &MachineOptions) -> Result<()> {
        let layout = self.board.ram.layout();
        self.board.boot();
        for device in &self.board.devices {
            let small = layout.small_bars(device.number);
            device.configure(small, self.bars[device.number])?;
            let mut interrupts =
                Routed::new(Arc::clone(&device.transport), Arc::clone(&device.lines));
            interrupts.bind()?;
        }
        // A device that starts first must not write into one that is not set up.
        for device in &self.board.devices {
            let next = (device.number + 1) % self.board.devices.len();
            let peer = options
                .p2p
                .then(|| self.bars[next] + self.board.devices[next].plan.peer_offset());
            device.start(options.dma_rate, peer)?;
        }
        Ok(())
    }

    /// What the engine gets of it.
    pub(super) fn machine(&self, lending: &Lending) -> Result<Machine> {
        let board = &self.board;
        let mut memory: Arc<dyn GuestMemory> = Arc::clone(&board.ram) as _;
        let mut written: Box<dyn DirtySource> =
            Box::new(WriteLog::new(Arc::clone(&board.ram), Writer::Vcpus));
        let mut vcpus: Box<dyn Vcpus> = Box::new(AllVcpus(Arc::clone(board)));
        let mut inspect = lending.digests.clone().map(|path| {
            let looker = Looker { board: Arc::clone(board), p2p: self.p2p, path };
            Box::new(looker) as Box<dyn Inspect>
        });
        let dropped = Arc::new(AtomicBool::new(false));
        match lending.inject {
            None => {}
            Some(Inject::Page) => {
                memory = Arc::new(FlipPage::new(memory, Arc::clone(board)));
            }
            Some(Inject::DirtyBit) => {
                let (reads, source) = forget_bit(memory, written, Arc::clone(board));
                memory = Arc::new(reads);
                written = Box::new(source);
                vcpus = Box::new(WriteOn { inner: vcpus, board: Arc::clone(board) });
            }
            Some(Inject::Interrupt) => {
                vcpus = Box::new(LetPend { inner: vcpus, board: Arc::clone(board) });
            }
            Some(Inject::Device) => {
                let board = Arc::clone(board);
                inspect = Some(Box::new(DamageDevice { inner: inspect, board }));
            }
            Some(Inject::P2pLate) => {
                let peers = Arc::clone(&self.peers);
                inspect = Some(Box::new(LatePeer { inner: inspect, peers }));
            }
        }
        let mut dirty: Vec<Box<dyn DirtySource>> =
            vec![written, Box::new(WriteLog::new(Arc::clone(&board.ram), Writer::Vmm))];
        let mut devices = Vec::new();
        for device in &board.devices {
            let (slot, log) = slot(device)?;
            let interrupts = slot.interrupts.map(|inner| {
                let done = Arc::clone(&dropped);
                match lending.inject {
                    Some(Inject::Interrupt) => Box::new(DropCount { inner, done }),
                    _ => inner,
                }
            });
            devices.push(Slot { interrupts, ..slot });
            dirty.push(log);
        }
        Ok(Machine {
            memory,
            dma: self.dma_map(),
            vcpus,
            devices,
            dirty,
            sections: sections::all(board),
            gate: Some(Arc::clone(&self.changes) as _),
            inspect,
        })
    }

    fn dma_map(&self) -> Arc<dyn DmaMap> {
        let layout = self.board.ram.layout().clone();
        Arc::new(IdentityMap { layout, peer_to_peer: self.p2p })
    }
}

/// A device as the engine drives it, and its log.
fn slot(device: &Accel) -> Result<(Slot, Box<dyn DirtySource>)> {
    let transport = || Arc::clone(&device.transport);
    let name = device.name();
    let opened = control::open_any(transport())?;
    let config = PciConfig::open(transport())?;
    let Some(log) = opened.dirty_source()? else {
        bail!(
            "{name} keeps no log of its writes to guest memory: everything would be \
             dirty all the time, and this guest does not do that"
        );
    };
    let interrupts: Box<dyn Interrupts> =
        Box::new(Routed::new(transport(), Arc::clone(&device.lines)));
    let slot = Slot {
        device: Box::new(opened),
        config: config.map(|config| Box::new(config) as _),
        interrupts: Some(interrupts),
    };
    Ok((slot, log))
}

/// The device reaches all of RAM.
fn map(device: &Accel, ram: &Ram) -> Result<()> {
    let layout = ram.layout();
    for region in layout.regions() {
        let range = IovaRange::new(region.start.0, region.length)?;
        let offset = layout
            .offset(region.start.0, region.length)
            .expect("invariant: a region of RAM is RAM");
        let target = DmaTarget::Memory { memory: ram.shared(), offset, writable: true };
        device.transport.dma_map(range, target)?;
    }
    Ok(())
}

/// Each device reaches the memory of all others, by messages.
fn connect_peers(
    devices: &[Accel],
    bars: &[u64],
    sizes: &[u64],
    peers: &Peers,
) -> Result<()> {
    for device in devices {
        for other in devices.iter().filter(|other| other.number != device.number) {
            let range = IovaRange::new(bars[other.number], sizes[other.number])?;
            let target = DmaTarget::Messages { writable: true };
            device.transport.dma_map(range, target).with_context(|| {
                format!("map the memory of {} to {}", other.name(), device.name())
            })?;
        }
        let at = device.number;
        peers.add(bars[at], sizes[at], Arc::clone(&device.transport));
    }
    Ok(())
}
