//! The migration engine: it decides, and it names no descriptor, socket or ioctl.
//!
//! Three layers, each usable without the ones after it:
//!
//! ```text
//!   devices     a pure `step` over the set of devices: barriers, failures, rollback;
//!               `DeviceSet` performs it one action at a time over `port::Device`
//!   migration   source and sink as pure `step(State, Event) -> Actions`: handoff,
//!               rounds, budget, report
//!   drive       performs the actions over the ports, a thread a device and a channel,
//!               and reports events; `save` and `restore` do it with a file, for
//!               devices without a guest
//! ```
//!
//! A VMM that keeps its own migration loop uses [`devices::DeviceSet`]. A VMM that
//! wants the whole thing hands a [`Machine`] to [`drive::Outgoing`] or
//! [`drive::Incoming`]. Devices without a guest move the same way, as
//! [`Machine::devices_only`], or by way of a file: [`drive::save`], [`drive::restore`].

pub mod devices;
pub mod drive;
mod machine;
pub mod migration;

pub use machine::{Machine, Slot};
