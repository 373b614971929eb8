//! What is the VMM's own: vCPUs, its view of each device, and state it carries itself.

use thiserror::Error;

/// The vCPUs, all together.
pub trait Vcpus: Send {
    /// Stops all of them; returns once none runs guest code.
    ///
    /// # Errors
    /// When one does not stop.
    fn pause(&mut self) -> Result<(), VmmError>;

    /// Lets all of them run; returns once they may.
    ///
    /// # Errors
    /// When one cannot start.
    fn resume(&mut self) -> Result<(), VmmError>;

    /// Whether the guest is paused, by its operator or by the engine.
    fn paused(&self) -> bool;
}

/// The VMM's view of a device's config space. A device off PCI has none.
pub trait ConfigSpace: Send {
    /// What the guest made of it: BARs, command, vectors, masks, power state. Called after
    /// the vCPUs stopped and before STOP_COPY: what the device raises after it is in what
    /// [`Interrupts::drain`] takes.
    ///
    /// # Errors
    /// When the device cannot be read.
    fn save(&mut self) -> Result<Vec<u8>, VmmError>;

    /// Puts one stage of what was saved back. Never resets a function and never writes
    /// a write-one-to-clear bit.
    ///
    /// # Errors
    /// When `saved` does not fit this device, or the device refuses it.
    fn load(&mut self, saved: &[u8], stage: ConfigStage) -> Result<(), VmmError>;
}

/// When a part of the config space is put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigStage {
    /// In RESUMING, after the device's data: BARs with decoding off, then command and
    /// vectors. Some servers refuse such changes in STOP.
    Resuming,
    /// After RESUMING to STOP: the power state, last.
    Power,
}

/// A device's interrupts as the VMM routes them.
pub trait Interrupts: Send {
    /// Binds every vector that the guest uses, while the device is in RESUMING.
    ///
    /// # Errors
    /// When the device refuses them.
    fn bind(&mut self) -> Result<(), VmmError>;

    /// Unbinds all vectors.
    ///
    /// # Errors
    /// When the device refuses.
    fn unbind(&mut self) -> Result<(), VmmError>;

    /// Takes what was raised and not yet handled, one count a vector, after the device
    /// stopped. Counts are exact for unmasked vectors; a masked vector's become its one
    /// pending bit where they are delivered. A device that is stopped raises nothing, so
    /// that nothing can come after it.
    ///
    /// # Errors
    /// When it cannot be told; nothing was taken then.
    fn drain(&mut self) -> Result<Vec<u64>, VmmError>;

    /// Puts drained counts in front of the guest again: on the destination after a
    /// load, on the source after a rollback.
    ///
    /// # Errors
    /// When there are more vectors than this device has.
    fn deliver(&mut self, pending: &[u64]) -> Result<(), VmmError>;
}

/// Where in the stream a section stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Loaded before the devices start to load: CPUs, an interrupt controller.
    BeforeDevices,
    /// Loaded after the devices: what may not tick while they are stopped.
    AfterDevices,
}

/// State of the VMM's own: CPUs, an interrupt controller, emulated devices.
pub trait Section: Send {
    /// The name, the same on both sides, at most 64 bytes.
    fn name(&self) -> &str;

    /// The version of what [`Section::save`] writes.
    fn version(&self) -> u32;

    /// Where in the stream it stands.
    fn order(&self) -> Order;

    /// Writes the state, after the interrupts were drained.
    ///
    /// # Errors
    /// When it cannot be saved, or the writer fails.
    fn save(&mut self, into: &mut dyn std::io::Write) -> Result<(), VmmError>;

    /// Reads the state that version `version` of this section wrote.
    ///
    /// # Errors
    /// When the version is not known or the bytes are not such a state.
    fn load(
        &mut self,
        version: u32,
        from: &mut dyn std::io::Read,
    ) -> Result<(), VmmError>;
}

/// The VMM could not do its part.
#[derive(Debug, Error)]
#[error("{part}: {operation} failed")]
pub struct VmmError {
    /// Which part of the VMM, such as `vCPU 1` or `config space of accel0`.
    pub part: String,
    /// What was asked of it.
    pub operation: String,
    /// What lies beneath.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl VmmError {
    /// An error of `part` at `operation`.
    pub fn new(
        part: impl Into<String>,
        operation: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> VmmError {
        VmmError { part: part.into(), operation: operation.into(), source: source.into() }
    }
}
