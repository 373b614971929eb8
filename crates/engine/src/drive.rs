//! Performs what source and sink decide, over the ports.
//!
//! ```text
//!  source                                          destination
//!  device worker x D --+                     +--> data receiver x N --> resume session
//!  memory worker ------+--> lanes ===========+--> data receiver x N --> guest memory
//!  vmm worker ---------+
//!  control reader --> main loop --> control  ==   control <-- main loop <-- control reader
//!                        |  step                                 | step
//! ```
//!
//! The main loop hears events, takes a step and hands out the actions. Whatever may
//! block has a thread of its own: one for each device, one for guest memory and its
//! dirty sources, one for the VMM's part, one for each data connection that is read.
//! Bulk bytes go from a device or from memory to a lane, and never through an event.
//!
//! Devices without a guest need none of that to be kept in a file: [`save`] and
//! [`restore`] drive them one after the other on the caller's thread. A whole guest goes
//! to a file and back as between two hosts: [`Recording`], [`Playing`].

mod control;
mod copy;
mod device;
mod dialling;
mod file;
mod gather;
mod handle;
mod heard;
mod joining;
mod lane;
mod memory;
mod receive;
mod receiver;
mod receiving;
mod send;
mod sending;
mod spread;
mod tracker;
mod vmm;
mod watch;
mod worker;

pub use copy::{
    Extent, GuestFile, Played, Playing, RecordOptions, Recorded, Recording, verify_guest,
};
pub use file::{
    FileCause, FileContents, FileDevice, FileError, Leave, RestoreOptions, RestoreReport,
    Restored, SaveOptions, SaveReport, Saved, all_stopped, restore, save, save_blockers,
    saved_sides, verify,
};
pub use handle::{SinkHandle, SourceHandle};
pub use receive::Incoming;
pub use receiving::{Offered, Open, Received};
pub use send::{Outgoing, Sent};
