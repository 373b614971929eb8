//! The device side of VFIO migration: what a device author writes, and what drives it.
//!
//! An author implements [`Migratable`]: registers, arcs between migration states, and
//! a state that is streamed out and in. Everything that devices get wrong together is
//! the [`Runner`]'s: the state machine, sessions and their generations, access gated by
//! state, the drain before a device counts as stopped, the DMA log, reset.
//!
//! ```text
//!   a server (vfio-user)          one thread calls all of this
//!        | set_state, read_data, write_region, complete, work, ...
//!        v
//!   [Runner] -- enter(arc), save, load, read, write, work --> [Migratable]
//!        |                                                        |
//!        `---- DMA windows, log, triggers <---- [Bus] <-----------'
//! ```
//!
//! A model can also stand behind a migration region, as before v2: [`front`].
//!
//! Nothing here does I/O, opens a socket or starts a thread: a server owns the runner
//! and lends it the time. A device outlives its connections ([`Runner::disconnect`]).
//!
//! `docs/device.md` shows how to write a device; `examples/counter.rs` is one.

mod bus;
#[cfg(feature = "contract")]
mod contract;
mod description;
pub mod front;
mod log;
mod model;
mod runner;
mod window;
mod wires;

pub use bus::{Bus, BusError, Dma, Token};
#[cfg(feature = "contract")]
pub use contract::{Contract, Report, Violation, contract};
pub use description::{
    Description, Identity, InvalidDescription, Irq, PciIds, Region, Window,
};
pub use log::{DmaLog, PAGE_LARGEST, PAGE_SMALLEST, RANGES_MAX};
pub use model::{Digest, Migratable, PrecopyInfo, Settle, StateArc, Work};
pub use runner::{Direction, Moved, QUIESCE_DEADLINE, Runner, Session};
pub use window::{DmaTarget, DmaWindow, Trigger};
pub use wires::{
    ACCESS_MAX, Counters, MESSAGE_LIMIT, REQUESTS_MAX, Request, RequestKind, WINDOWS_MAX,
};
