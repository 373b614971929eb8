//! How the VMM side reaches a device, whatever carries it there.

use abi::errno::Errno;
use abi::feature::Feature;
use abi::v2::{DeviceState, PrecopyInfo};
use dirty::IovaRange;
use sys::{EventFd, SharedMemory};
use thiserror::Error;

/// A way to one device: the kernel's descriptors, or a vfio-user connection.
///
/// The methods follow the uAPI, one each, and do not interpret. Any number of threads
/// may call at once (vCPUs ring doorbells while the engine moves data). Every call is
/// bounded by the transport's own deadline; after [`TransportError::TimedOut`] and
/// [`TransportError::Gone`] no call succeeds any more.
pub trait Transport: Send + Sync {
    /// What people call the device behind it.
    fn name(&self) -> &str;

    /// How many regions and interrupts there are, and what the device is.
    ///
    /// # Errors
    /// As every method: the device's errno, or the transport's failure.
    fn device_info(&self) -> Result<DeviceInfo, TransportError>;

    /// One region. EINVAL for an index that is not there.
    ///
    /// # Errors
    /// See [`Transport::device_info`].
    fn region_info(&self, index: u32) -> Result<RegionInfo, TransportError>;

    /// One interrupt index. EINVAL for an index that is not there.
    ///
    /// # Errors
    /// See [`Transport::device_info`].
    fn irq_info(&self, index: u32) -> Result<IrqInfo, TransportError>;

    /// Reads a region, trapped. All of `into`, in one access where the width allows.
    ///
    /// # Errors
    /// See [`Transport::device_info`].
    fn region_read(
        &self,
        index: u32,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), TransportError>;

    /// Writes a region, trapped; returns once the device took it.
    ///
    /// # Errors
    /// See [`Transport::device_info`].
    fn region_write(
        &self,
        index: u32,
        offset: u64,
        from: &[u8],
    ) -> Result<(), TransportError>;

    /// Maps the area of a region that holds `offset`. EINVAL where no area does.
    ///
    /// # Errors
    /// See [`Transport::device_info`].
    fn region_map(&self, index: u32, offset: u64) -> Result<MappedArea, TransportError>;

    /// Asks whether a feature is there (`VFIO_DEVICE_FEATURE_PROBE`). ENOTTY (kernel)
    /// or EINVAL (some vfio-user servers) where it is not.
    ///
    /// # Errors
    /// See [`Transport::device_info`].
    fn feature_probe(&self, feature: Feature) -> Result<(), TransportError>;

    /// Gets a feature. `input` is the part of the payload that the caller fills (empty
    /// for most), the whole payload comes back, at most `most` bytes of it. Layouts
    /// with pointers (DMA logging) are those of vfio-user, flat.
    ///
    /// # Errors
    /// See [`Transport::device_info`].
    fn feature_get(
        &self,
        feature: Feature,
        input: &[u8],
        most: usize,
    ) -> Result<Vec<u8>, TransportError>;

    /// Sets a feature; what the device wrote back comes back.
    ///
    /// # Errors
    /// See [`Transport::device_info`].
    fn feature_set(
        &self,
        feature: Feature,
        payload: &[u8],
    ) -> Result<Vec<u8>, TransportError>;

    /// Sets the migration state (feature 2). `due` says which session the last arc
    /// opens by the tables; the transport hands that session over, or `None` where the
    /// device opened none.
    ///
    /// # Errors
    /// See [`Transport::device_info`]. The state may have changed all the same.
    fn set_migration_state(
        &self,
        target: DeviceState,
        due: Option<Direction>,
    ) -> Result<Option<Box<dyn DataSession>>, TransportError>;

    /// Binds, triggers or unbinds interrupts: `vectors[n]` is bound to vector
    /// `start + n` of `index`; an empty list with `start` 0 disables the index.
    ///
    /// # Errors
    /// See [`Transport::device_info`].
    fn set_irqs(
        &self,
        index: u32,
        start: u32,
        vectors: &[&EventFd],
    ) -> Result<(), TransportError>;

    /// Lets the device reach memory at `range`.
    ///
    /// # Errors
    /// See [`Transport::device_info`]. EEXIST where something is mapped there.
    fn dma_map(
        &self,
        range: IovaRange,
        target: DmaTarget<'_>,
    ) -> Result<(), TransportError>;

    /// Takes a mapping away; the device no longer reaches it when this returns.
    ///
    /// # Errors
    /// See [`Transport::device_info`]. ENOENT where nothing is mapped so.
    fn dma_unmap(&self, range: IovaRange) -> Result<(), TransportError>;

    /// Resets the device: RUNNING, all sessions dead.
    ///
    /// # Errors
    /// See [`Transport::device_info`].
    fn reset(&self) -> Result<(), TransportError>;
}

/// What a DMA mapping leads to.
#[derive(Clone, Copy, Debug)]
pub enum DmaTarget<'a> {
    /// Shared memory, from an offset in bytes.
    Memory {
        /// The memory.
        memory: &'a SharedMemory,
        /// Where in it the range starts.
        offset: u64,
        /// Whether the device may write.
        writable: bool,
    },
    /// Nothing that can be mapped: the device asks by messages, and whoever registered
    /// with the transport answers.
    Messages {
        /// Whether the device may write.
        writable: bool,
    },
}

/// Which way the bytes of a data session go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Out of the device.
    Save,
    /// Into the device.
    Resume,
}

/// The bytes of a v2 device.
pub trait DataSession: Send {
    /// Reads; 0 is an end. In pre-copy an end is temporary and may also be ENOMSG.
    ///
    /// # Errors
    /// ENODEV when the session died.
    fn read(&mut self, into: &mut [u8]) -> Result<usize, TransportError>;

    /// Writes; returns how many bytes were taken, at least 1.
    ///
    /// # Errors
    /// The device's errno.
    fn write(&mut self, from: &[u8]) -> Result<usize, TransportError>;

    /// What pre-copy has left, `None` where the transport has no such question.
    ///
    /// # Errors
    /// EINVAL outside PRE_COPY and PRE_COPY_P2P, ENODEV when the session died.
    fn precopy_info(&mut self) -> Result<Option<PrecopyInfo>, TransportError>;
}

/// `struct vfio_device_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Flags: 1 reset, 2 PCI.
    pub flags: u32,
    /// Number of regions.
    pub regions: u32,
    /// Number of interrupt indexes.
    pub irqs: u32,
}

/// `struct vfio_region_info` with its capabilities parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// The index asked for.
    pub index: u32,
    /// Flags: 1 read, 2 write, 4 mmap, 8 capabilities.
    pub flags: u32,
    /// Size in bytes; 0 where the region is not there.
    pub size: u64,
    /// The areas that can be mapped: offset and size in bytes. Where the region says
    /// mmap without naming areas, one area that covers it.
    pub areas: Vec<(u64, u64)>,
    /// Type and subtype, where the region has that capability.
    pub kind: Option<(u32, u32)>,
}

/// `struct vfio_irq_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqInfo {
    /// Flags: 1 eventfd, 2 maskable, 4 automasked, 8 no resize.
    pub flags: u32,
    /// Number of vectors.
    pub count: u32,
}

/// A mapped area of a region.
#[derive(Debug)]
pub struct MappedArea {
    /// Where in the region it starts.
    pub offset: u64,
    /// The memory.
    pub memory: SharedMemory,
}

/// A call to the device failed.
#[derive(Debug, Error)]
pub enum TransportError {
    /// The device answered with an errno.
    #[error("{operation}: {errno}")]
    Errno {
        /// What was asked.
        operation: &'static str,
        /// The answer.
        errno: Errno,
    },
    /// The device's side answered something that the protocol does not allow.
    #[error("{operation}: {what}")]
    Broken {
        /// What was asked.
        operation: &'static str,
        /// What was wrong with the answer.
        what: String,
    },
    /// Nothing came within the deadline.
    #[error("{operation}: no answer within {millis} ms")]
    TimedOut {
        /// What was asked.
        operation: &'static str,
        /// The deadline in milliseconds.
        millis: u64,
    },
    /// The device, or the process that serves it, is gone.
    #[error("{operation}: the device is gone")]
    Gone {
        /// What was asked.
        operation: &'static str,
        /// Why, where known.
        #[source]
        source: Option<std::io::Error>,
    },
}

impl TransportError {
    /// The errno, where the device gave one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            TransportError::Errno { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}
