//! A migratable device and its two kinds of session.

use abi::errno::Errno;
use states::v2::{Capabilities, State};
use thiserror::Error;

use crate::pci::{PciIds, PciLayout};

/// A device as the engine sees it, whatever its generation and whatever it is behind.
///
/// One thread drives a device. Calls may block: drivers differ in how long a
/// transition takes, and data sessions of the kernel do not poll. An implementation
/// bounds every wait and reports [`Fault::TimedOut`]; a device that did is *lost* and
/// is never driven again except by [`Device::reset`].
pub trait Device: Send {
    /// What people call this device in this VM, such as `accel0`. Used in messages.
    fn name(&self) -> &str;

    /// Who the device is. Read once when the device was opened, and never changes.
    fn identity(&self) -> &Identity;

    /// The state, asked from the device itself and never remembered (law 6).
    ///
    /// # Errors
    /// When the device does not answer, or answers with a number that is no state.
    fn state(&mut self) -> Result<State, DeviceError>;

    /// Moves the device to `target`, over as many arcs as that takes, and returns once
    /// it is there. The session that the last arc opened comes back with it.
    ///
    /// # Errors
    /// When the device refuses or fails. The state is then unknown: read it again
    /// (`VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE` may stop on any state of the path).
    fn set_state(&mut self, target: State) -> Result<Opened, DeviceError>;

    /// An estimate of the bytes that stop-copy will move, in every state
    /// (`VFIO_DEVICE_FEATURE_MIG_DATA_SIZE`, Linux 6.2). `None` where there is no such
    /// information.
    ///
    /// # Errors
    /// When the device fails to answer.
    fn stop_copy_bytes(&mut self) -> Result<Option<u64>, DeviceError>;

    /// The longest transaction that the device may give, and the longest that it takes,
    /// in bytes: the size of its data section. `None` by default: its data is a stream
    /// without transactions, and it takes any. Where a device knows it exactly only once
    /// a session was opened, it is an upper bound before.
    fn longest_transaction(&self) -> Option<u64> {
        None
    }

    /// Whether what the device loads is checked only when it starts, because it has no
    /// state between RESUMING and RUNNING (a v1 device that refuses 000). It stays in
    /// RESUMING then, and says STOP. Before a load: whether that may be so. `false` by
    /// default.
    fn validated_at_start(&self) -> bool {
        false
    }

    /// Resets the device. On success it is in RUNNING and every session is dead; what
    /// it held is gone.
    ///
    /// # Errors
    /// When the device does not come back.
    fn reset(&mut self) -> Result<(), DeviceError>;
}

/// What a transition opened.
pub enum Opened {
    /// No session: the last arc opens none, or the device was there already.
    None,
    /// The save session that PRE_COPY, PRE_COPY_P2P and STOP_COPY share.
    Save(Box<dyn SaveSession>),
    /// The resume session of RESUMING.
    Resume(Box<dyn ResumeSession>),
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Opened::None => "None",
            Opened::Save(_) => "Save",
            Opened::Resume(_) => "Resume",
        })
    }
}

/// The bytes that a device gives while it is saved.
pub trait SaveSession: Send {
    /// Reads the next bytes, in order, without holding more than `into` has room for.
    ///
    /// # Errors
    /// When the device fails, or when the session died because the guest reset the
    /// device ([`Fault::SessionGone`]).
    fn read(&mut self, into: &mut [u8]) -> Result<Read, DeviceError>;

    /// What is still to be read in pre-copy. Asking also makes some drivers produce
    /// more. `None` where the device has no such information.
    ///
    /// # Errors
    /// When the device fails, or is not in PRE_COPY or PRE_COPY_P2P.
    fn precopy_info(&mut self) -> Result<Option<PrecopyInfo>, DeviceError>;
}

/// What one read of a save session gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// That many bytes, at least one.
    Data {
        /// How many bytes of the buffer were filled.
        bytes: usize,
        /// Whether a transaction of the v1 protocol ends with them; such a device must
        /// be given the same transactions when it resumes.
        ends_transaction: bool,
    },
    /// Nothing more: for now in PRE_COPY and PRE_COPY_P2P, for good in STOP_COPY.
    End,
}

/// How much is left to read in pre-copy (`struct vfio_precopy_info`, Linux 6.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrecopyInfo {
    /// Bytes of initial data that should be moved before the device is stopped.
    pub initial_bytes: u64,
    /// Bytes that changed since they were read.
    pub dirty_bytes: u64,
    /// New initial data appeared and the test for readiness starts over
    /// (`VFIO_PRECOPY_INFO_REINIT`, Linux 7.1).
    pub reinit: bool,
}

/// The bytes that a device takes while it resumes.
pub trait ResumeSession: Send {
    /// Gives the device the next bytes, all of them, in order.
    ///
    /// # Errors
    /// When the device refuses them or fails.
    fn write(&mut self, data: &[u8], ends_transaction: bool) -> Result<(), DeviceError>;
}

/// Who a device is, as far as that decides whether its state fits another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The ids that its bus knows it by.
    pub bus: Bus,
    /// The generation of the migration interface it speaks, as data.
    pub generation: Generation,
    /// The optional states it has.
    pub capabilities: Capabilities,
    /// The device model and the version of its data, where known. Kernel drivers do
    /// not tell.
    pub model: Option<Model>,
    /// Where everything lies in a PCI function. `None` on any other bus, and where
    /// nobody has told.
    pub layout: Option<PciLayout>,
}

/// The ids of a device on its bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bus {
    /// A PCI function.
    Pci(PciIds),
    /// Any other bus (platform, ccw, ap), by the name of the bus and of the device.
    Other(String),
}

/// Which generation of the migration interface a device speaks. The engine carries the
/// number and never branches on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation(pub u16);

impl Generation {
    /// The 2018 RFC.
    pub const RFC2018: Generation = Generation(1);
    /// The migration region of Linux 5.8.
    pub const V1: Generation = Generation(2);
    /// The state machine of Linux 5.18.
    pub const V2: Generation = Generation(3);
}

impl std::fmt::Display for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Generation::RFC2018 => f.write_str("rfc2018"),
            Generation::V1 => f.write_str("v1"),
            Generation::V2 => f.write_str("v2"),
            Generation(other) => write!(f, "generation {other}"),
        }
    }
}

/// A device model and the version of the data that it saves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// The model's name, at most 64 bytes.
    pub name: String,
    /// The version of the data it saves.
    pub data_version: u32,
}

/// A device did not do what it was asked.
#[derive(Debug, Error)]
#[error("{device}: {operation}: {fault}")]
pub struct DeviceError {
    /// The device, by the name it has in this VM.
    pub device: String,
    /// What was asked of it.
    pub operation: String,
    /// What kind of failure it was: what the engine branches on.
    pub fault: Fault,
    /// What lies beneath, where something does.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The kinds of failure of a device.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// The device answered with an errno and is still there.
    #[error("refused with {0}")]
    Refused(Errno),
    /// The session is no more: the guest reset the device (state RUNNING).
    #[error("its data session is gone, the device was reset")]
    SessionGone,
    /// No answer within the deadline. The device is lost.
    #[error("no answer within {0} ms")]
    TimedOut(u64),
    /// The device, or the process that serves it, is gone.
    #[error("the device is gone")]
    Gone,
    /// The device answered something that its interface does not allow.
    #[error("it broke its protocol: {0}")]
    Broken(String),
    /// The device has no such thing.
    #[error("not supported by this device")]
    Unsupported,
}

impl Fault {
    /// Whether the device can no longer be driven, except by a reset.
    pub fn is_lost(&self) -> bool {
        matches!(self, Fault::TimedOut(_) | Fault::Gone)
    }
}

impl DeviceError {
    /// An error without anything beneath it.
    pub fn new(
        device: impl Into<String>,
        operation: impl Into<String>,
        fault: Fault,
    ) -> DeviceError {
        DeviceError {
            device: device.into(),
            operation: operation.into(),
            fault,
            source: None,
        }
    }
}
