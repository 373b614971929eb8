//! One PCI function: what its guest makes of it, saved here and put back there.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]

mod accesses;
mod carried;
mod heard;
mod random;
mod refused;
mod resets;
mod rig;
#[path = "../scripted/mod.rs"]
mod scripted;

use vfio_migrate_control as control;
