//! Puts a machine together, and lends it to the engine.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use control::DmaTarget;
use control::pci::Function;
use dirty::IovaRange;
use engine::{Machine, Slot};
use port::{ConfigSpace, DirtySource, DmaMap, Everything, GuestMemory, Inspect, Vcpus};
use vfio_user::DmaHandler;

use super::board::{AllVcpus, Board, Threads};
use super::bus::{Bus, Map, Slot as BusSlot};
use super::changes::{Changes, Idle};
use super::device::{Device, Kind, Model, ModelDriver};
use super::faults::Faults;
use super::inject::{
    DamageDevice, DamageSave, DropUnheard, FlipPage, LatePeer, LetPend, WriteOn,
    forget_bit,
};
use super::inspect::Looker;
use super::layout::Layout;
use super::memory::{IdentityMap, Ram, WriteLog, Writer};
use super::options::{Inject, InterruptKind, MachineOptions};
use super::pci::Addresses;
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
        let map = Arc::<Map>::default();
        let late = inject == Some(Inject::P2pLate);
        let peers = Arc::new(Peers::new(Arc::clone(&map), late));
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
        let mut slots = Vec::new();
        for (number, (uri, kind, client)) in found.into_iter().enumerate() {
            let cannot = || format!("cannot use {uri}");
            let device = Device::open(number, kind, client, &mut areas, options.p2p)
                .with_context(cannot)?;
            // Whatever a guest before left there is not ours.
            device.transport.reset().with_context(|| format!("cannot reset {uri}"))?;
            slots.push(slot_of(&device).with_context(cannot)?);
            devices.push(device);
        }
        for device in devices.iter().filter(|device| device.does_dma()) {
            map_memory(device, &ram)
                .with_context(|| format!("map memory to {}", device.name()))?;
        }
        if options.p2p {
            let accels = devices.iter().filter_map(|device| {
                Some((Arc::clone(&device.transport), device.accel()?.memory()))
            });
            accels.for_each(|(transport, bar)| peers.add(transport, bar));
        }
        let faults = Arc::<Faults>::default();
        let (to, told) = (Arc::clone(&peers), Arc::clone(&faults));
        let bus = Bus::new(slots, map, Arc::clone(&faults), move |slot, places| {
            to.moved(slot, places, &told);
        });
        let board = Arc::new(Board::new(ram, devices, bus, faults, options));
        let threads = Threads::start(&board).context("cannot start vCPU threads")?;
        let changes =
            Arc::new(Changes::new(Arc::clone(&board), hold, Idle::new(options)));
        Ok(Vm { board, changes, p2p: options.p2p, peers, _threads: threads })
    }

    /// The guest boots: it writes its memory, finds its devices and starts them. Its
    /// vCPUs do not run yet. The devices interrupt it by `interrupts`, where that is said.
    pub(super) fn boot(
        &self,
        options: &MachineOptions,
        interrupts: Option<InterruptKind>,
    ) -> Result<()> {
        let board = &self.board;
        board.boot();
        let mut addresses = Addresses::new(board.ram.layout().above());
        let mut drivers = Vec::new();
        for device in &board.devices {
            board.bus.function(device.number).interrupts().bind()?;
            drivers.push(device.boot(board, &mut addresses, interrupts)?);
        }
        // A device that starts first must not write into one that is not set up.
        for (device, driver) in board.devices.iter().zip(&drivers) {
            let next = (device.number + 1) % board.devices.len();
            let peer = board.devices[next].accel().filter(|_| options.p2p);
            let peer = peer.and_then(|peer| peer.peer_address(&drivers[next].pci));
            device.start(board, &driver.pci, options.dma_rate, peer)?;
            board.remember(driver);
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
            let (mut slot, log) = slot(device, &board.bus)?;
            match lending.inject {
                Some(Inject::Interrupt) => {
                    let done = Arc::clone(&done);
                    let function = board.bus.function(device.number).clone();
                    slot.config = slot.config.map(|inner| {
                        Box::new(DropUnheard { inner, function, done })
                            as Box<dyn ConfigSpace>
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

/// A place on the bus for a device that was just reset.
fn slot_of(device: &Device) -> Result<BusSlot> {
    let function = Function::open(Arc::clone(&device.transport))?;
    let function = function.context("it is not on PCI")?;
    BusSlot::new(function, &*device.transport)
}

/// A device as the engine drives it, and its log. One that no memory is mapped to writes
/// none, and needs no log; of one that keeps none, everything is dirty.
fn slot(device: &Device, bus: &Bus) -> Result<(Slot, Option<Box<dyn DirtySource>>)> {
    let name = device.name();
    let opened = control::open_any(Arc::clone(&device.transport))?;
    let log = match device.does_dma() {
        true => Some(opened.dirty_source()?.unwrap_or_else(|| no_log(name))),
        false => None,
    };
    let function = bus.function(device.number);
    let slot = Slot {
        device: Box::new(opened),
        config: Some(function.config_space()),
        interrupts: Some(function.interrupts()),
    };
    Ok((slot, log))
}

/// The log of a device that keeps none.
fn no_log(name: &str) -> Box<dyn DirtySource> {
    tracing::warn!(
        device = name,
        "keeps no log of its writes: all memory that it reaches is dirty in every round, \
         and is sent while the guest is stopped"
    );
    Box::new(Everything::of(name))
}

/// Where a stopped uart saves the oldest byte in the FIFO of its first port.
fn oldest_saved(board: &Board, device: usize) -> Option<u64> {
    match (&board.devices[device].model, board.driver(device)?.model) {
        (Model::Uart(uart), ModelDriver::Uart(driver)) => {
            Some(uart.oldest_saved(&driver))
        }
        _ => None,
    }
}

/// The device reaches all of RAM.
fn map_memory(device: &Device, ram: &Ram) -> Result<()> {
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
