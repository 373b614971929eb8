//! Fakes of every port, wrappers that break each call once, and an in-memory link.
//!
//! A migration is tested on two [`Side`]s. Everything on a side is a fake that the
//! engine drives by its port and the test looks at by a handle:
//!
//! ```text
//!            Side "source"                          Side "destination"
//!   FakeDevice   FakeMemory  FakeVcpus      FakeDevice   FakeMemory  FakeVcpus
//!   FakeSource   FakeConfig  FakeSection    FakeSource   FakeConfig  FakeSection
//!        |            |          |               |            |          |
//!        `------ Journal: who was asked what, in order, on both sides ---'
//!        `------ Witness: does more than one side run? ------------------'
//!
//!   FakeFile, FakeStored          a saved file and its reading, with a full disk
//!   [Faulty<port>] + [Breaker]    the n-th call fails: before, after, or for good
//!   [Damaged] + [Damage]          the n-th byte is cut, lost or changed
//! ```
//!
//! ```
//! use port::Device;
//! use states::v2::{Capabilities, State};
//! use vfio_migrate_testkit::{FakeDevice, Side};
//!
//! let (source, _destination) = Side::pair();
//! let mut device = FakeDevice::new(&source, "fake0", Capabilities::ALL, vec![7; 10_000]);
//! let handle = device.handle();
//! device.set_state(State::PreCopy)?;
//! assert_eq!(handle.state(), State::PreCopy);
//! assert!(source.journal().has("source fake0: RUNNING to PRE_COPY"));
//! # Ok::<(), port::DeviceError>(())
//! ```

mod channel;
mod damage;
mod device;
mod faulty;
mod file;
mod memory;
mod side;
mod source;
mod stream;
mod vmm;

pub use channel::{FakeAccept, FakeDial, MemoryChannel, network, pair};
pub use damage::{Damage, Damaged};
pub use device::{DeviceHandle, Failure, FakeDevice, When};
pub use faulty::{Break, Breaker, Faulty, Injected};
pub use file::{FakeFile, FakeStored, FileHandle};
pub use memory::{FakeDmaMap, FakeMemory};
pub use side::{Journal, Recorder, Side, VirtualClock, Witness};
pub use source::{FakeSource, SourceHandle};
pub use stream::CHUNK;
pub use vmm::{
    ConfigHandle, FakeConfig, FakeInterrupts, FakeSection, FakeVcpus, InterruptsHandle,
    SectionHandle, VcpusHandle,
};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, also after a panic elsewhere: a test that failed already should tell of its
/// own failure, not of a poisoned lock.
fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
