//! VMM side of VFIO migration: any generation, over any transport, as a port device.
//!
//! ```text
//!      engine                what it asks for, by the traits of `port`
//!        |
//!   [AnyDevice]  states, sessions, sizes, reset      port::Device
//!   [DmaLog]     what the device wrote to memory     port::DirtySource
//!   [AddressSpace]  where, while it is mapped anew   port::DmaMap, port::DirtySource
//!   [Function]   what the guest made of it on PCI    port::ConfigSpace, port::Interrupts
//!        |
//!    v2: features         v1, rfc2018: a migration region, data trapped or mapped
//!        |                         |
//!   [Transport]  one method a call of the uAPI, errors carry the errno
//!        |
//!    kernel descriptors, or a vfio-user connection
//! ```
//!
//! Drivers and servers differ where the uAPI is uniform, and lie where it is silent.
//! This room knows how: a failed transition may have changed the state, a success may
//! have lost the session, 0 and ENOMSG both end pre-copy for now, a size may be an
//! errno in disguise. What leaves it upwards is checked or an error.
//!
//! [`open_any`] takes a device of any generation; nobody above has to know which it is.
//! How v1 and rfc2018 become the states and sessions of v2 is in
//! `states::mapping`; this room adds the accesses, in the order that documents 000 and
//! 001 have them, and the limits: an offset outside the region, more data than was
//! announced, an end that never comes are refused, named, in bounded time.

mod address_space;
mod any;
mod device;
mod dma_log;
mod first;
pub mod identity;
pub mod pci;
mod probe;
mod raw;
mod region;
mod rfc2018;
mod session;
mod transport;
mod v1;

pub use address_space::{AddressSpace, Declared, Followed, SpaceError};
pub use any::{AnyDevice, open_any};
pub use device::{V2Device, Withheld};
pub use dma_log::DmaLog;
pub use pci::{
    BarHook, BarPlace, Function, FunctionError, InterruptMode, Message, Unfit,
    VectorCounts,
};

pub use probe::{ProbeError, open};
pub use raw::Raw;
pub use transport::{
    DataSession, DeviceInfo, Direction, DmaTarget, DmaWrites, IoFd, IrqAction, IrqForm,
    IrqInfo, MappedArea, RegionInfo, RegionIoFds, RegionWrite, SaveStream, Transport,
    TransportError,
};
