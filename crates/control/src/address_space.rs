//! The addresses that devices reach memory by, which a VMM maps and unmaps while they
//! write and somebody tracks what they wrote.
//!
//! ```text
//!   VMM: map, unmap                            engine: collect
//!          |                                          |
//!          v                                          v
//!    [AddressSpace] -- one table of mappings -- [Followed], one a device
//!          |                                          |
//!          |  DMA_MAP, DMA_UNMAP                      |  its log, by device addresses
//!          v                                          v
//!       devices ------------------------------------ log
//! ```
//!
//! A log speaks of device addresses, and what they lead to changes. Here each report is
//! translated while nothing can be mapped or unmapped, and before a mapping is forgotten
//! its log is asked for the last time. So a write is told of the page that it went to,
//! and of no other, whatever is mapped when; and the engine, which gets guest-physical
//! addresses, need not know.
//!
//! To unmap takes as long as the devices need for it and for one report. It waits for the
//! engine only while that asks for the report of one mapping, and never for what the
//! engine does between.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use control::{AddressSpace, Declared, DmaTarget, Transport};
//! # use dirty::IovaRange;
//! # use port::{DirtySource, Everything, Gpa, Mapping};
//! # use vfio_migrate_control as control;
//! # fn example(device: Arc<dyn Transport>, ram: &sys::SharedMemory)
//! # -> Result<(), Box<dyn std::error::Error>> {
//! let space = AddressSpace::new(Declared { virtual_iommu: false, peer_to_peer: false });
//! let log = control::open_any(device.clone())?.dirty_source()?;
//! let log = log.unwrap_or_else(|| Box::new(Everything::of(device.name())));
//! let source: Box<dyn DirtySource> = Box::new(space.attach(device, log)?);
//! let low = Mapping { iova: IovaRange::new(0, 0x10_0000)?, gpa: Gpa(0) };
//! space.map(low, DmaTarget::Memory { memory: ram, offset: 0, writable: true })?;
//! // Machine { dma: Arc::new(space.clone()), dirty: vec![source, ..], .. }
//! // and at any time:
//! space.unmap(low.iova)?;
//! # Ok(())
//! # }
//! ```

mod log;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use abi::errno::Errno;
use dirty::IovaRange;
use port::{DirtyReport, DirtySource, DmaMap, Mapping, Mappings, Space};
use sys::SharedMemory;
use thiserror::Error;

pub use self::log::Followed;
use self::log::Log;
use crate::transport::{DmaTarget, DmaWrites, Transport, TransportError};

/// Where devices find memory. Clones are the same.
#[derive(Clone)]
pub struct AddressSpace {
    declared: Declared,
    state: Arc<Mutex<State>>,
    shown: Arc<Mutex<Mappings>>,
}

/// What a VMM says of an address space; see [`DmaMap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Declared {
    /// Whether the guest controls it by a virtual IOMMU.
    pub virtual_iommu: bool,
    /// Whether a device may reach another's memory.
    pub peer_to_peer: bool,
}

struct State {
    mapped: BTreeMap<u64, Entry>,
    /// The mappings that devices can write through.
    table: Mappings,
    /// The same for others, locked behind the rest and never for longer than a copy takes:
    /// whoever serves the messages of a device asks while that device unmaps, which may
    /// wait for the answer.
    shown: Arc<Mutex<Mappings>>,
    changes: u64,
    devices: Vec<Device>,
}

/// A mapping, by where it starts.
struct Entry {
    mapping: Mapping,
    target: Target,
    /// The devices that it was taken away from, where others refused.
    gone: Vec<usize>,
}

enum Target {
    Memory { memory: SharedMemory, offset: u64, writable: bool },
    Messages { writable: bool },
}

struct Device {
    name: String,
    transport: Option<Arc<dyn Transport>>,
    log: Arc<Mutex<Log>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic left behind is as good as before: every change is one step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AddressSpace {
    /// One in which nothing is mapped.
    pub fn new(declared: Declared) -> AddressSpace {
        let shown = Arc::<Mutex<Mappings>>::default();
        let state = State {
            mapped: BTreeMap::new(),
            table: Mappings::default(),
            shown: Arc::clone(&shown),
            changes: 0,
            devices: Vec::new(),
        };
        AddressSpace { declared, state: Arc::new(Mutex::new(state)), shown }
    }

    /// Adds a device, and maps to it what is mapped. The answer is the source of its
    /// writes for the engine, in guest-physical addresses.
    ///
    /// # Errors
    /// [`SpaceError::Log`], and [`SpaceError::Device`], after which it reaches nothing; but
    /// what it does not let go of again, which is logged.
    pub fn attach(
        &self,
        transport: Arc<dyn Transport>,
        log: Box<dyn DirtySource>,
    ) -> Result<Followed, SpaceError> {
        by_device_addresses(&*log)?;
        let state = &mut *lock(&self.state);
        for (n, entry) in state.mapped.values().enumerate() {
            let Err(source) = transport.dma_map(entry.mapping.iova, entry.target.lent())
            else {
                continue;
            };
            for entry in state.mapped.values().take(n + usize::from(unclear(&source))) {
                undo(&*transport, entry.mapping.iova);
            }
            let device = transport.name().to_owned();
            return Err(SpaceError::Device { device, source });
        }
        let name = transport.name().to_owned();
        Ok(self.add(state, name, Some(transport), log))
    }

    /// Adds the log of a device that another one maps for: several in one container of
    /// the kernel. Where it [goes with mappings](DirtySource::goes_with_mappings), all of
    /// one is dirty when that goes: the other one's unmapping takes the bits with it.
    ///
    /// # Errors
    /// [`SpaceError::Log`].
    pub fn attach_beside(
        &self,
        log: Box<dyn DirtySource>,
    ) -> Result<Followed, SpaceError> {
        by_device_addresses(&*log)?;
        let name = log.name().to_owned();
        Ok(self.add(&mut lock(&self.state), name, None, log))
    }

    fn add(
        &self,
        state: &mut State,
        name: String,
        transport: Option<Arc<dyn Transport>>,
        log: Box<dyn DirtySource>,
    ) -> Followed {
        let called = log.name().to_owned();
        let log = Arc::new(Mutex::new(Log { source: log, on: None }));
        state.devices.push(Device { name, transport, log: Arc::clone(&log) });
        Followed { name: called, space: Arc::clone(&self.state), log }
    }

    /// Lets all devices reach memory, but those that are gone; while some reach it by what
    /// others map, one that is gone refuses, since it may be the one that maps. A log that
    /// was started without it will say so, and the engine starts it anew.
    ///
    /// # Errors
    /// [`SpaceError::Overlaps`]; [`SpaceError::Device`], after which none reaches it. Where
    /// one does not let go of it again, the mapping stays, to be unmapped.
    pub fn map(&self, mapping: Mapping, target: DmaTarget<'_>) -> Result<(), SpaceError> {
        let state = &mut *lock(&self.state);
        let range = mapping.iova;
        let before = state.mapped.range(..range.end()).next_back();
        if let Some((_, other)) =
            before.filter(|(_, other)| other.mapping.iova.overlaps(range))
        {
            return Err(SpaceError::Overlaps { range, with: other.mapping.iova });
        }
        // Known before a device has it, which may write by messages at once.
        let entry = Entry { mapping, target: Target::of(target), gone: Vec::new() };
        let (writable, mut gone) = (entry.target.writable(), Vec::new());
        state.mapped.insert(range.start(), entry);
        state.changed();
        let beside = state.devices.iter().any(|device| device.transport.is_none());
        let refused = state.devices.iter().enumerate().find_map(|(n, device)| {
            match device.transport.as_ref()?.dma_map(range, target) {
                Ok(()) => None,
                // It reaches nothing any more, and keeps nothing from the others, unless
                // it is the one by which they reach it.
                Err(TransportError::Gone { .. }) if !beside => {
                    gone.push(n);
                    None
                }
                Err(error) => Some((n, error)),
            }
        });
        if let Some((refused, error)) = &refused {
            let reach = refused + usize::from(unclear(error));
            for (n, device) in state.devices.iter().enumerate() {
                let Some(transport) = &device.transport else { continue };
                if !gone.contains(&n) && (n >= reach || undo(&**transport, range)) {
                    gone.push(n);
                }
            }
            // No log was started on it, and it was there for a moment, which is over.
            for (n, device) in state.devices.iter().enumerate() {
                if writable && (n < reach || device.transport.is_none()) {
                    lock(&device.log).on.iter().for_each(|on| on.mark(mapping));
                }
            }
        }
        let with = state.devices.iter().filter(|device| device.transport.is_some());
        if refused.is_some() && gone.len() == with.count() {
            state.mapped.remove(&range.start());
            state.changed();
        } else if let Some(entry) = state.mapped.get_mut(&range.start()) {
            entry.gone = gone;
        }
        let Some((n, source)) = refused else { return Ok(()) };
        let device = state.devices[n].name.clone();
        Err(SpaceError::Device { device, source })
    }

    /// Takes a mapping away from all devices, which may write to the last. While their
    /// writes are tracked, what they wrote through it stays known: the log of each is
    /// asked for it last. All of the mapping is dirty where a log cannot tell until that
    /// moment (iommufd).
    ///
    /// A log that does not answer is an error like any other of a source: the engine
    /// counts it, takes all that the source covers for dirty once, not only the mapping,
    /// and starts it anew.
    ///
    /// # Errors
    /// [`SpaceError::NotMapped`]; [`SpaceError::Device`] where one refuses, or does not
    /// answer in time: it may still write there, and the mapping stays, until this is
    /// asked again. One that is gone is taken to have let go.
    pub fn unmap(&self, range: IovaRange) -> Result<(), SpaceError> {
        self.take_away(range, DmaWrites::MayGoOn)
    }

    /// As [`AddressSpace::unmap`], where the VMM knows that no device writes there any
    /// more: its driver has let go of that memory, or the devices stand still. Every log
    /// tells exactly what was written then, but those [beside](AddressSpace::attach_beside)
    /// whose bits went with the mapping.
    ///
    /// # Errors
    /// See [`AddressSpace::unmap`].
    pub fn unmap_quiesced(&self, range: IovaRange) -> Result<(), SpaceError> {
        self.take_away(range, DmaWrites::Ended)
    }

    fn take_away(&self, range: IovaRange, writes: DmaWrites) -> Result<(), SpaceError> {
        let state = &mut *lock(&self.state);
        let State { mapped, table, devices, .. } = state;
        let Some(entry) = mapped.get_mut(&range.start()) else {
            return Err(SpaceError::NotMapped { range });
        };
        if entry.mapping.iova != range {
            return Err(SpaceError::NotMapped { range });
        }
        // Nobody is asked for the last time while another may still write.
        for (n, device) in devices.iter().enumerate() {
            if entry.gone.contains(&n) {
                continue;
            }
            let writable = entry.target.writable().then_some(&*table);
            device.unmap(entry.mapping, writable, writes)?;
            entry.gone.push(n);
        }
        if entry.target.writable() {
            devices.iter().for_each(|device| device.ask_last(entry.mapping, table));
        }
        mapped.remove(&range.start());
        state.changed();
        Ok(())
    }
}

impl std::fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AddressSpace")
            .field("declared", &self.declared)
            .field("mappings", &lock(&self.shown))
            .finish_non_exhaustive()
    }
}

impl DmaMap for AddressSpace {
    fn mappings(&self) -> Mappings {
        lock(&self.shown).clone()
    }

    fn virtual_iommu(&self) -> bool {
        self.declared.virtual_iommu
    }

    fn peer_to_peer(&self) -> bool {
        self.declared.peer_to_peer
    }
}

impl State {
    fn changed(&mut self) {
        let writable = self.mapped.values().filter(|entry| entry.target.writable());
        let all: Vec<Mapping> = writable.map(|entry| entry.mapping).collect();
        // One that nobody can write through comes and goes unnoticed.
        self.changes += u64::from(all != self.table.all());
        self.table = Mappings::new(all, self.changes);
        self.table.clone_into(&mut lock(&self.shown));
    }
}

impl Target {
    fn of(target: DmaTarget<'_>) -> Target {
        match target {
            DmaTarget::Memory { memory, offset, writable } => {
                Target::Memory { memory: memory.clone(), offset, writable }
            }
            DmaTarget::Messages { writable } => Target::Messages { writable },
        }
    }

    fn lent(&self) -> DmaTarget<'_> {
        match self {
            Target::Memory { memory, offset, writable } => {
                DmaTarget::Memory { memory, offset: *offset, writable: *writable }
            }
            Target::Messages { writable } => DmaTarget::Messages { writable: *writable },
        }
    }

    fn writable(&self) -> bool {
        match self {
            Target::Memory { writable, .. } | Target::Messages { writable } => *writable,
        }
    }
}

impl Device {
    /// Takes a mapping away from it. Where it can write through that, a log that goes
    /// with the mapping tells its bits.
    fn unmap(
        &self,
        mapping: Mapping,
        writable: Option<&Mappings>,
        writes: DmaWrites,
    ) -> Result<(), SpaceError> {
        let Some(transport) = &self.transport else { return Ok(()) };
        let range = mapping.iova;
        let log = &mut *lock(&self.log);
        if let (Some(page), Some(on), Some(table)) =
            (log.source.goes_with_mappings(), &mut log.on, writable)
        {
            match transport.dma_unmap_dirty(range, page, writes) {
                Ok(words) if !words.is_empty() => {
                    let report = DirtyReport { range, page, words: &words };
                    table.merge(report, &on.dirty);
                    return Ok(());
                }
                Ok(_) => {
                    on.lose(mapping);
                    return Ok(());
                }
                // Where the device refused, the mapping is still there; otherwise nobody
                // knows.
                Err(error) => {
                    tracing::warn!(device = self.name, %range, %error, "bits lost");
                    on.lose(mapping);
                    // It was given up with that, and says that it is gone from now on.
                    if matches!(error, TransportError::TimedOut { .. }) {
                        let device = self.name.clone();
                        return Err(SpaceError::Device { device, source: error });
                    }
                }
            }
        }
        let_go(&**transport, range)
            .map_err(|source| SpaceError::Device { device: self.name.clone(), source })
    }

    /// The last report of a mapping that no device has any more.
    fn ask_last(&self, mapping: Mapping, table: &Mappings) {
        let log = &mut *lock(&self.log);
        if log.on.is_none() {
            return;
        }
        if log.source.goes_with_mappings().is_none() {
            let lost = log.ask(mapping, table);
            let on = &mut log.on;
            lost.into_iter()
                .for_each(|lost| on.iter_mut().for_each(|on| on.lose_guest(lost)));
        } else if self.transport.is_none() {
            // The bits went with what another device had.
            log.on.iter().for_each(|on| on.mark(mapping));
        }
    }
}

fn by_device_addresses(log: &dyn DirtySource) -> Result<(), SpaceError> {
    match log.space() {
        Space::Iova => Ok(()),
        Space::GuestPhysical => Err(SpaceError::Log { log: log.name().to_owned() }),
    }
}

/// Whether a device that could not map a range may reach it all the same: only an errno
/// is an answer.
fn unclear(error: &TransportError) -> bool {
    error.errno().is_none()
}

/// Takes a range away from a device. One that is gone reaches nothing any more.
fn let_go(transport: &dyn Transport, range: IovaRange) -> Result<(), TransportError> {
    match transport.dma_unmap(range) {
        Err(TransportError::Gone { .. }) => Ok(()),
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(()),
        told => told,
    }
}

/// Takes a range away that others do not map; whether the device did let go of it.
fn undo(transport: &dyn Transport, range: IovaRange) -> bool {
    let_go(transport, range)
        .inspect_err(|error| {
            tracing::warn!(device = transport.name(), %range, %error, "stays mapped");
        })
        .is_ok()
}

/// A mapping that cannot be made or taken away.
#[derive(Debug, Error)]
pub enum SpaceError {
    /// Something is mapped there.
    #[error("cannot map {range}: {with} is mapped")]
    Overlaps {
        /// What was to be mapped.
        range: IovaRange,
        /// What is.
        with: IovaRange,
    },
    /// Nothing is mapped there, or not exactly that.
    #[error("cannot unmap {range}: there is no such mapping")]
    NotMapped {
        /// What was to be taken away.
        range: IovaRange,
    },
    /// A device does not do it.
    #[error("{device} does not map")]
    Device {
        /// Its name.
        device: String,
        /// What it says.
        #[source]
        source: TransportError,
    },
    /// It speaks guest-physical addresses, in which there is nothing to follow: give it to
    /// the engine as it is.
    #[error("{log} does not speak of device addresses: lend it to the engine itself")]
    Log {
        /// Its name.
        log: String,
    },
}
