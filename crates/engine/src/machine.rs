//! What a VMM lends to the engine for the time of a migration.

use std::sync::Arc;

use port::{
    ConfigSpace, Device, DirtySource, DmaMap, Gate, Gpa, GuestMemory, Inspect,
    Interrupts, Mappings, MemoryError, MemoryRegion, Section, Vcpus, VmmError,
};

/// One VM: everything that moves. It comes back when the migration ends, however that
/// was.
pub struct Machine {
    /// Guest RAM.
    pub memory: Arc<dyn GuestMemory>,
    /// How devices reach it.
    pub dma: Arc<dyn DmaMap>,
    /// The vCPUs.
    pub vcpus: Box<dyn Vcpus>,
    /// The assigned devices, in the same order on both sides.
    pub devices: Vec<Slot>,
    /// Everybody who knows of writes to guest RAM: the vCPUs' log, each device's. What
    /// nobody covers must not be written while a migration goes on.
    pub dirty: Vec<Box<dyn DirtySource>>,
    /// State of the VMM's own.
    pub sections: Vec<Box<dyn Section>>,
    /// The VMM's word on when the guest may be stopped, if it wants one.
    pub gate: Option<Arc<dyn Gate>>,
    /// Looks at the stopped guest, where somebody wants to.
    pub inspect: Option<Box<dyn Inspect>>,
}

/// One assigned device and the VMM's view of it.
pub struct Slot {
    /// The device.
    pub device: Box<dyn Device>,
    /// Its config space as the VMM shows it. A device off PCI has none.
    pub config: Option<Box<dyn ConfigSpace>>,
    /// Its interrupts as the VMM routes them. A device without any has none.
    pub interrupts: Option<Box<dyn Interrupts>>,
}

impl Machine {
    /// Devices without a guest: no memory, no vCPUs, nothing of a VMM's own. They move
    /// as a guest's devices do, with pre-copy, the handoff and all.
    ///
    /// `paused` is what the run state of a guest would be: whether the devices are in
    /// STOP ([`all_stopped`](crate::drive::all_stopped) asks them), and arrive so. The
    /// side that takes them in is always paused. `peer_to_peer` is whether a device may
    /// reach another's memory.
    pub fn devices_only(
        devices: Vec<Box<dyn Device>>,
        paused: bool,
        peer_to_peer: bool,
    ) -> Machine {
        let slot = |device| Slot { device, config: None, interrupts: None };
        Machine {
            memory: Arc::new(NoMemory),
            dma: Arc::new(NoDma { peer_to_peer }),
            vcpus: Box::new(NoVcpus { paused }),
            devices: devices.into_iter().map(slot).collect(),
            dirty: Vec::new(),
            sections: Vec::new(),
            gate: None,
            inspect: None,
        }
    }
}

/// There is no guest memory: every address is outside of it.
struct NoMemory;

impl GuestMemory for NoMemory {
    fn regions(&self) -> Vec<MemoryRegion> {
        Vec::new()
    }

    fn generation(&self) -> u64 {
        0
    }

    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        Err(MemoryError { at, length: into.len() as u64 })
    }

    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), MemoryError> {
        Err(MemoryError { at, length: from.len() as u64 })
    }

    fn zero(&self, at: Gpa, length: u64) -> Result<(), MemoryError> {
        Err(MemoryError { at, length })
    }
}

/// Nothing that a device could reach.
struct NoDma {
    peer_to_peer: bool,
}

impl DmaMap for NoDma {
    fn mappings(&self) -> Mappings {
        Mappings::default()
    }

    fn virtual_iommu(&self) -> bool {
        false
    }

    fn peer_to_peer(&self) -> bool {
        self.peer_to_peer
    }
}

/// There are no vCPUs to stop: what is kept is whether they would run.
struct NoVcpus {
    paused: bool,
}

impl Vcpus for NoVcpus {
    fn pause(&mut self) -> Result<(), VmmError> {
        self.paused = true;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), VmmError> {
        self.paused = false;
        Ok(())
    }

    fn paused(&self) -> bool {
        self.paused
    }
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("memory", &self.memory.regions())
            .field("devices", &self.devices)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Slot").field(&self.device.name()).finish()
    }
}
