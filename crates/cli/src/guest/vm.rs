//! Puts a machine together, and lends it to the engine.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use control::{DmaTarget, PciConfig};
use dirty::IovaRange;
use engine::{Machine, Slot};
use port::{DirtySource, DmaMap, GuestMemory, Inspect, Interrupts, Vcpus};
use vfio_user::DmaHandler;

use super::accel::Accel;
use super::board::{AllVcpus, Board, Threads};
use super::changes::{Changes, Idle};
use super::device::{Device, Driver, Kind, Model};
use super::inject::{
    DamageDevice, DamageSave, DropCount, FlipPage, LatePeer, LetPend, WriteOn, forget_bit,
};
use super::inspect::Looker;
use super::layout::Layout;
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
    /// BAR2 of each device that has one.
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
        let peers = Arc::new(Peers::new(inject == Some(Inject::P2pLate)));
        let mut found = Vec::new();
        for uri in &options.devices {
            let handler: Arc<dyn DmaHandler> = Arc::clone(&peers) as Arc<dyn DmaHandler>;
            let client = uri.connect("device", handler)?;
            let kind = Kind::of(&client).with_context(|| format!("cannot use {uri}"))?;
            found.push((uri, kind, client));
        }
        let dma = found.iter().filter(|(_, kind, _)| *kind == Kind::Accel).count();
        let layout = Layout::new(options.memory, dma);
        let ram = Ram::new(layout.clone()).with_context(|| {
            format!("cannot get {} bytes of guest memory", options.memory)
        })?;
        let ram = Arc::new(ram);
        peers.attach(Arc::clone(&ram));
        let mut areas = (0..dma).map(|n| layout.area(n));
        let mut devices = Vec::new();
        for (number, (uri, kind, client)) in found.into_iter().enumerate() {
            let device = Device::open(number, kind, client, &mut areas, options.p2p)
                .with_context(|| format!("cannot use {uri}"))?;
            // Whatever a guest before left there is not ours.
            device.transport.reset().with_context(|| format!("cannot reset {uri}"))?;
            devices.push(device);
        }
        let sizes = devices.iter().map(|d| d.accel().map_or(0, Accel::memory_bytes));
        let sizes: Vec<u64> = sizes.collect();
        let bars = layout.big_bars(&sizes);
        for device in devices.iter().filter(|device| device.does_dma()) {
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
            device.configure(layout, self.bars[device.number])?;
            let mut interrupts =
                Routed::new(Arc::clone(&device.transport), Arc::clone(&device.lines));
            interrupts.bind()?;
        }
        // A device that starts first must not write into one that is not set up.
        for device in &self.board.devices {
            let next = (device.number + 1) % self.board.devices.len();
            let peer = self.board.devices[next].accel().filter(|_| options.p2p);
            let peer = peer.map(|peer| self.bars[next] + peer.plan.peer_offset());
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
        let done = Arc::new(AtomicBool::new(false));
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
            // A device without a window is damaged below.
            Some(Inject::Device) if board.devices.iter().all(|d| !d.does_dma()) => {}
            Some(Inject::Device) => {
                let board = Arc::clone(board);
                inspect = Some(Box::new(DamageDevice { inner: inspect, board }));
                done.store(true, Ordering::Release);
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
            let (mut slot, log) = slot(device)?;
            match lending.inject {
                Some(Inject::Interrupt) => {
                    let done = Arc::clone(&done);
                    slot.interrupts = slot.interrupts.map(|inner| {
                        Box::new(DropCount { inner, done }) as Box<dyn Interrupts>
                    });
                }
                Some(Inject::Device) => {
                    let (number, board) = (device.number, Arc::clone(board));
                    let done = Arc::clone(&done);
                    let at = move || oldest_saved(&board, number);
                    slot.device = Box::new(DamageSave::new(slot.device, done, at));
                }
                _ => {}
            }
            devices.push(slot);
            dirty.extend(log);
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

/// A device as the engine drives it, and its log. One that no memory is mapped to writes
/// none, and needs no log.
fn slot(device: &Device) -> Result<(Slot, Option<Box<dyn DirtySource>>)> {
    let transport = || Arc::clone(&device.transport);
    let name = device.name();
    let opened = control::open_any(transport())?;
    let config = PciConfig::open(transport())?;
    let log = if device.does_dma() { opened.dirty_source()? } else { None };
    if device.does_dma() && log.is_none() {
        bail!(
            "{name} keeps no log of its writes to guest memory: everything would be \
             dirty all the time, and this guest does not do that"
        );
    }
    let interrupts: Box<dyn Interrupts> =
        Box::new(Routed::new(transport(), Arc::clone(&device.lines)));
    let slot = Slot {
        device: Box::new(opened),
        config: config.map(|config| Box::new(config) as _),
        interrupts: Some(interrupts),
    };
    Ok((slot, log))
}

/// Where a stopped uart saves the oldest byte in the FIFO of its first port.
fn oldest_saved(board: &Board, device: usize) -> Option<u64> {
    match (&board.devices[device].model, board.driver(device)?) {
        (Model::Uart(uart), Driver::Uart(driver)) => Some(uart.oldest_saved(&driver)),
        _ => None,
    }
}

/// The device reaches all of RAM.
fn map(device: &Device, ram: &Ram) -> Result<()> {
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
    devices: &[Device],
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
