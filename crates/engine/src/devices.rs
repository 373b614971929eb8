//! The set of devices of one VM: what moves in which order, and what to do when one
//! does not.
//!
//! Devices that write into each other's memory may not stop one after the other: a peer
//! that still runs would write into one that does not. So every change of the whole set
//! is a list of *waves*. All devices of a wave move at once; the next wave begins when
//! all have arrived (law 5 of `ARCHITECTURE.md`):
//!
//! ```text
//!   stop                                      start
//!   1  P2P-capable: to their P2P state        1  P2P-capable: to RUNNING_P2P
//!   2  the one without P2P: to STOP(_COPY)    2  the one without P2P: to RUNNING
//!   3  P2P-capable: to STOP(_COPY)            3  P2P-capable: to RUNNING
//! ```
//!
//! [`step`] is pure: events in, actions out. [`DeviceSet`] performs it for a VMM that
//! has a loop of its own; [`crate::drive`] performs it with a thread for each device.

mod set;
mod step;
pub(crate) mod transition;

pub use set::{DeviceSet, Pending, Rollback, SetError};
pub use step::{
    Action, DeviceId, Event, Failure, Goal, Member, P2pRefusal, Set, Wave, check_p2p,
    step,
};
