//! How the VMM side reaches a device, whatever carries it there.

use std::os::fd::{BorrowedFd, OwnedFd};

use abi::errno::Errno;
use abi::feature::Feature;
use abi::v2::{DeviceState, PrecopyInfo};
use dirty::{IovaRange, PageSize};
use port::DirtySource;
use sys::{EventFd, SharedMemory};
use thiserror::Error;

use crate::raw::Raw;

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

    /// Writes a register of a migration region whose write is a transition of the device:
    /// as [`Transport::region_write`], with as much time as
    /// [`Transport::set_migration_state`] has. The same, where a transport makes no
    /// difference.
    ///
    /// # Errors
    /// See [`Transport::device_info`]. The state may have changed all the same.
    fn region_write_state(
        &self,
        index: u32,
        offset: u64,
        from: &[u8],
    ) -> Result<(), TransportError> {
        self.region_write(index, offset, from)
    }

    /// Writes a region without waiting for the device to have taken it, as a PCI write is
    /// posted. It is done before anything that is asked later over the same transport.
    /// Where the transport has no such thing, this is [`Transport::region_write`].
    ///
    /// # Errors
    /// See [`Transport::device_info`]. What the device itself made of it nobody learns:
    /// an errno of a posted write is lost, as on a bus.
    fn region_write_posted(
        &self,
        index: u32,
        offset: u64,
        from: &[u8],
    ) -> Result<(), TransportError> {
        self.region_write(index, offset, from)
    }

    /// Writes several times, in order, in as few calls as the transport needs; returns
    /// once the device took all of them.
    ///
    /// # Errors
    /// See [`Transport::device_info`]. Any number of the writes may be done then, from
    /// the first on.
    fn region_write_many(
        &self,
        writes: &[RegionWrite<'_>],
    ) -> Result<(), TransportError> {
        writes.iter().try_for_each(|write| {
            self.region_write(write.index, write.offset, write.data)
        })
    }

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

    /// As [`feature_get`](Transport::feature_get), for an answer that is long: it goes
    /// straight into `into`, which says how long it may be. How many bytes it has; what
    /// of `into` lies behind them means nothing.
    ///
    /// # Errors
    /// See [`Transport::device_info`].
    fn feature_get_into(
        &self,
        feature: Feature,
        input: &[u8],
        into: &mut [u8],
    ) -> Result<usize, TransportError> {
        let answer = self.feature_get(feature, input, into.len())?;
        let len = answer.len().min(into.len());
        into[..len].copy_from_slice(&answer[..len]);
        Ok(answer.len())
    }

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

    /// Fires, masks or unmasks interrupts, in every form of `VFIO_DEVICE_SET_IRQS`,
    /// from vector `start` of `index` on. `Trigger` with [`IrqForm::Events`] binds, as
    /// [`Transport::set_irqs`] does, and is all that a transport has to know; everything
    /// else is refused with ENOTTY by default.
    ///
    /// # Errors
    /// See [`Transport::device_info`].
    fn act_on_irqs(
        &self,
        index: u32,
        start: u32,
        action: IrqAction,
        form: IrqForm<'_>,
    ) -> Result<(), TransportError> {
        match (action, form) {
            (IrqAction::Trigger, IrqForm::Events(events)) if !events.is_empty() => {
                self.set_irqs(index, start, events)
            }
            _ => Err(refused("act on interrupts")),
        }
    }

    /// The descriptors that stand for parts of a region (`DEVICE_GET_REGION_IO_FDS` of
    /// vfio-user): a guest's write there can be turned into one without leaving the
    /// kernel. None at all where the device offers none. ENOTTY by default: this
    /// transport has no such question.
    ///
    /// # Errors
    /// See [`Transport::device_info`].
    fn region_io_fds(&self, _index: u32) -> Result<RegionIoFds, TransportError> {
        Err(refused("ask for the descriptors of a region"))
    }

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

    /// Takes every mapping away (`VFIO_DMA_UNMAP_FLAG_ALL`, Linux 5.12). ENOTTY by
    /// default.
    ///
    /// # Errors
    /// See [`Transport::device_info`].
    fn dma_unmap_all(&self) -> Result<(), TransportError> {
        Err(refused("unmap all DMA"))
    }

    /// Takes a mapping away, and tells what the device wrote through it and no report
    /// has told yet, a bit for each `page`
    /// (`VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP`, Linux 5.8): little-endian words of 64
    /// bits, exactly as many as the range needs. Where `writes` may go on and nobody can
    /// tell until the very moment that it is gone (iommufd), all of them are set. ENOTTY by
    /// default.
    ///
    /// # Errors
    /// See [`Transport::device_info`]. EINVAL where writes are not tracked, unless all bits
    /// are set anyway. Where the device refused (an errno), the mapping is still there;
    /// whatever went wrong, what it covers is dirty.
    fn dma_unmap_dirty(
        &self,
        _range: IovaRange,
        _page: PageSize,
        _writes: DmaWrites,
    ) -> Result<Vec<u64>, TransportError> {
        Err(refused("unmap DMA with its dirty bits"))
    }

    /// The most bytes of bits that one report of the DMA log may have, for what the
    /// transport and the device's side can take.
    fn most_report_bytes(&self) -> usize {
        usize::MAX
    }

    /// What the way of the device to its memory tells of its writes, a source of dirty
    /// bits over everything that is mapped here: an IOMMU whose page tables note writes,
    /// or a container that counts pages. `None` where it tells nothing, as by default.
    ///
    /// # Errors
    /// See [`Transport::device_info`].
    fn memory_log(&self) -> Result<Option<Box<dyn DirtySource>>, TransportError> {
        Ok(None)
    }

    /// Whether what a device gives in PRE_COPY and in STOP_COPY is one stream, as the
    /// uAPI has it. Where it is not, [`open`](crate::open) does not use PRE_COPY.
    fn save_stream(&self) -> SaveStream {
        SaveStream::Continuous
    }

    /// Resets the device: RUNNING, all sessions dead.
    ///
    /// # Errors
    /// See [`Transport::device_info`].
    fn reset(&self) -> Result<(), TransportError>;

    /// The calls as they are given, for tests of the device; `None` where this transport
    /// has no way to make wrong ones.
    fn raw(&self) -> Option<&dyn Raw> {
        None
    }
}

/// One write of [`Transport::region_write_many`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionWrite<'a> {
    /// The region.
    pub index: u32,
    /// Where in it, in bytes.
    pub offset: u64,
    /// What.
    pub data: &'a [u8],
}

/// What devices do to memory while that is taken from them, as whoever takes it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaWrites {
    /// They may write until it is gone.
    MayGoOn,
    /// They write there no more: what was written can be read before it goes, and is told
    /// exactly. What they write after all may be lost.
    Ended,
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

/// What is done to interrupts (`VFIO_IRQ_SET_ACTION_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqAction {
    /// Fires them, or says where they go when they fire.
    Trigger,
    /// Keeps them back.
    Mask,
    /// Lets them through again; one that was kept back fires then.
    Unmask,
}

/// Which interrupts, and by what (`VFIO_IRQ_SET_DATA_*`).
#[derive(Clone, Copy, Debug)]
pub enum IrqForm<'a> {
    /// That many, at once (`DATA_NONE`). 0 from vector 0 on, triggered: the index is
    /// disabled.
    All(u32),
    /// Those that are `true` (`DATA_BOOL`).
    Each(&'a [bool]),
    /// By eventfds, from now on (`DATA_EVENTFD`).
    Events(&'a [&'a EventFd]),
    /// No longer by eventfds: that many are unbound (`DATA_EVENTFD` without any).
    Unbind(u32),
}

impl<'a> IrqForm<'a> {
    /// What [`Transport::set_irqs`] asks for: these eventfds from `start` on; none, from
    /// vector 0 on, disables the index.
    pub fn binding(start: u32, vectors: &'a [&'a EventFd]) -> IrqForm<'a> {
        match vectors {
            [] if start == 0 => IrqForm::All(0),
            vectors => IrqForm::Events(vectors),
        }
    }
}

/// The descriptors of a region.
#[derive(Debug, Default)]
pub struct RegionIoFds {
    /// What they stand for.
    pub parts: Vec<IoFd>,
    /// The descriptors; several parts may share one.
    pub fds: Vec<OwnedFd>,
}

/// A part of a region that a descriptor stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoFd {
    /// Where in the region, in bytes.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// Which of [`RegionIoFds::fds`].
    pub fd: usize,
    /// 0 ioeventfd, 1 ioregionfd.
    pub kind: u32,
    /// As in KVM.
    pub flags: u32,
    /// The value to match, or what an ioregionfd passes on.
    pub datamatch: u64,
}

/// What the data of PRE_COPY and of STOP_COPY are to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveStream {
    /// One stream, as the uAPI has it: STOP_COPY goes on where PRE_COPY ended.
    Continuous,
    /// STOP_COPY may give everything from the start again, so that whoever forwards both
    /// forwards data twice. Holds how that is known.
    Restarts(&'static str),
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

    /// The descriptor of the session, where it has one: the kernel's data descriptor.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// As [`DataSession::precopy_info`], with `argsz` and `flags` as given and nothing of
    /// the answer touched, for tests of the device. `None` where there is no such call.
    ///
    /// # Errors
    /// As there, and EINVAL for an `argsz` below 24.
    fn raw_precopy_info(
        &mut self,
        _asked: PrecopyInfo,
    ) -> Result<Option<PrecopyInfo>, TransportError> {
        Ok(None)
    }
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

/// A default that has nothing to fall back on.
fn refused(operation: &'static str) -> TransportError {
    TransportError::Errno { operation, errno: Errno::ENOTTY }
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
