//! What a VMM lends to the engine for the time of a migration.

use std::sync::Arc;

use port::{
    ConfigSpace, Device, DirtySource, DmaMap, Gate, GuestMemory, Inspect, Interrupts,
    Section, Vcpus,
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
