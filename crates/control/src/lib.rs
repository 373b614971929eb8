//! VMM side of VFIO migration: any generation, over any transport, as a port device.
//!
//! ```text
//!      engine                what it asks for, by the traits of `port`
//!        |
//!   [V2Device]   states, sessions, sizes, reset      port::Device
//!   [DmaLog]     what the device wrote to memory     port::DirtySource
//!   [PciConfig]  what the guest made of its config   port::ConfigSpace
//!        |
//!   [Transport]  one method a call of the uAPI, errors carry the errno
//!        |
//!    kernel descriptors, or a vfio-user connection
//! ```
//!
//! Drivers and servers differ where the uAPI is uniform, and lie where it is silent.
//! This room knows how: a failed transition may have changed the state, a success may
//! have lost the session, 0 and ENOMSG both end pre-copy for now, a size may be an
//! errno in disguise. What leaves it upwards is checked or an error.

mod device;
mod dma_log;
pub mod identity;
mod pci;
mod probe;
mod session;
mod transport;

pub use device::{V2Device, Withheld};
pub use dma_log::DmaLog;
pub use pci::{PciConfig, Unfit};
pub use probe::{ProbeError, open};
pub use transport::{
    DataSession, DeviceInfo, Direction, DmaTarget, IoFd, IrqAction, IrqForm, IrqInfo,
    MappedArea, RegionInfo, RegionIoFds, RegionWrite, SaveStream, Transport,
    TransportError,
};
