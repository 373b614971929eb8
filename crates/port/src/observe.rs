//! Time, and those who watch.

use std::time::{Duration, Instant};

use states::v2::State;

use crate::vmm::VmmError;

/// A monotonic clock.
pub trait Clock: Send + Sync {
    /// The time since some fixed moment.
    fn now(&self) -> Duration;
}

/// The system's monotonic clock.
#[derive(Debug)]
pub struct SystemClock(Instant);

impl SystemClock {
    /// A clock that counts from now.
    pub fn new() -> SystemClock {
        SystemClock(Instant::now())
    }
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Hears what happens, as it happens. Called from the engine's threads: return soon.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn progress(&self, progress: &Progress);
}

/// Nobody watches.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Observer for Silent {
    fn progress(&self, _: &Progress) {}
}

/// What an [`Observer`] hears.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Progress {
    /// A phase began.
    Phase(Phase),
    /// A round of pre-copy ended.
    Round {
        /// Its number, from 1.
        number: u32,
        /// Bytes of guest memory it moved.
        memory_bytes: u64,
        /// Bytes of device data it moved.
        device_bytes: u64,
        /// Bytes of guest memory that are dirty again.
        remaining_bytes: u64,
        /// The downtime that a stop now would cost, in milliseconds.
        downtime_estimate_ms: f64,
    },
    /// Bytes moved so far in all, against those known to be there.
    Bytes {
        /// Bytes moved.
        done: u64,
        /// Bytes moved and still to move, as known now.
        total: u64,
    },
    /// A device changed its state.
    Transition {
        /// The device, by name.
        device: String,
        /// The state before.
        from: State,
        /// The state after, read again after a failure; `None` where unknown.
        to: Option<State>,
        /// How long it took, in microseconds.
        micros: u64,
    },
    /// Something the operator should read, such as a limit that cannot be met.
    Note(String),
}

/// The phases of a migration, as both sides name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Agreeing on whether and how.
    Negotiate,
    /// Dirty tracking on, devices to PRE_COPY.
    Setup,
    /// Rounds while the guest runs.
    Precopy,
    /// Asking the destination whether it is ready for the stop.
    Switchover,
    /// Downtime: stopping the vCPUs.
    VcpuStop,
    /// Downtime: the peer-to-peer barrier.
    P2p,
    /// Downtime: devices to STOP or STOP_COPY.
    Stop,
    /// Downtime: the last dirty bits.
    Dirty,
    /// Downtime: the rest of guest memory.
    Memory,
    /// Downtime: the rest of the devices' data.
    Devices,
    /// Downtime: config spaces, interrupts and the VMM's sections.
    Config,
    /// Downtime: waiting for the destination to load everything.
    Prepare,
    /// Downtime: comparing digests, where somebody asked for that.
    Verify,
    /// Downtime: recording YIELDED and giving the guest away.
    Commit,
    /// Downtime: waiting for the guest to run over there.
    Start,
    /// After the guest runs elsewhere, or after a failure: tidying up.
    Cleanup,
}

impl Phase {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Negotiate => "negotiate",
            Phase::Setup => "setup",
            Phase::Precopy => "precopy",
            Phase::Switchover => "switchover",
            Phase::VcpuStop => "vcpu_stop",
            Phase::P2p => "p2p",
            Phase::Stop => "stop",
            Phase::Dirty => "dirty",
            Phase::Memory => "memory",
            Phase::Devices => "devices",
            Phase::Config => "config",
            Phase::Prepare => "prepare",
            Phase::Verify => "verify",
            Phase::Commit => "commit",
            Phase::Start => "start",
            Phase::Cleanup => "cleanup",
        }
    }
}

/// The VMM's own word on when its guest may be stopped, for one that wants to hold the
/// switchover (a maintenance window, a test that wants the guest to have done its work).
pub trait Gate: Send + Sync {
    /// Whether the guest may be stopped now.
    fn open(&self) -> bool;
}

/// Looks at the stopped guest on both sides. Time spent here is billed to
/// [`Phase::Verify`] and left out of the estimate.
pub trait Inspect: Send {
    /// Source: vCPUs and devices are stopped, the last dirty bits are known, and
    /// nothing of the stop-copy was read yet.
    ///
    /// # Errors
    /// When it cannot look; the migration fails with the source running.
    fn stopped(&mut self) -> Result<(), VmmError>;

    /// Destination: everything is applied, the devices are in STOP, and PREPARED was
    /// not said yet.
    ///
    /// # Errors
    /// When it cannot look; the destination refuses.
    fn loaded(&mut self) -> Result<(), VmmError>;
}
