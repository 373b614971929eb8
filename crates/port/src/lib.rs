//! What the migration engine needs from the world, as small traits.
//!
//! The engine decides; somebody else owns the devices, the memory, the vCPUs, the
//! connection and the clock. Each trait here is one such thing, said the way the
//! engine *uses* it, never the way it is provided, so that any VMM fits:
//!
//! ```text
//!   a VMM lends                      the engine sees
//!   ------------------------------   ---------------------------------------
//!   an assigned device               [`Device`], [`SaveSession`], [`ResumeSession`]
//!   its view of config space         [`ConfigSpace`]
//!   its interrupt routing            [`Interrupts`]
//!   guest RAM and its DMA mappings   [`GuestMemory`], [`DmaMap`]
//!   who wrote which page             [`DirtySource`], ready: [`SlotLog`], [`Everything`]
//!   the vCPUs                        [`Vcpus`]
//!   state of its own                 [`Section`]
//!   a way to the other host          [`Channel`], [`Dial`], [`Accept`]
//!   a place for a saved stream       [`Archive`]
//!   a durable memory of decisions    [`DecisionStore`]
//!   time, and somebody who watches   [`Clock`], [`Observer`], [`Gate`], [`Inspect`]
//! ```
//!
//! Methods are required wherever "nothing to do" could be a lie: a device that forgot
//! to say what it wrote must not compile, rather than migrate silently wrong. The
//! devices' answers are hostile input like a peer's: the engine checks them, an
//! implementation passes them on as they came.

mod channel;
mod device;
mod mapping;
mod memory;
mod observe;
mod pci;
mod slots;
mod source;
mod store;
mod vmm;

pub use channel::{
    Accept, Archive, Channel, ChannelError, Close, Dial, Halves, Receive, Transmit,
};
pub use device::{
    Bus, Device, DeviceError, Fault, Generation, Identity, Model, Opened, PrecopyInfo,
    Read, ResumeSession, SaveSession,
};
pub use mapping::{DmaMap, Mapping, Mappings};
pub use memory::{Gpa, GuestMemory, MemoryError, MemoryRegion};
pub use observe::{Clock, Gate, Inspect, Observer, Phase, Progress, Silent, SystemClock};
pub use pci::{
    BarKind, MsiLayout, MsixLayout, PciBar, PciCapability, PciExtended, PciIds, PciLayout,
};
pub use slots::{Slot, SlotLog};
pub use source::{DirtyReport, DirtySource, Everything, SourceError, Space};
pub use store::{AttemptId, Decision, DecisionStore, StoreError, StoreId};
pub use vmm::{ConfigSpace, ConfigStage, Interrupts, Order, Section, Vcpus, VmmError};
