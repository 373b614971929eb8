//! Devices of the kernel, as a [`control::Transport`].
//!
//! ```text
//!   vfio:0000:01:00.3   vfio:UUID    /dev/vfio/devices/vfio0    a launcher's descriptors
//!          |                |                  |                          |
//!       [Place] --- sysfs --'                  |                          |
//!          |                                   |                          |
//!     by group: container, type1         by cdev: iommufd                 |
//!          '----------------.------------------'--------------------------'
//!                           v
//!                        [Host]   one ioctl a call, each by a thread with a deadline
//!                           |
//!                        sessions, with their device kept open behind them
//! ```
//!
//! A call into the kernel may block for ever, and nothing can interrupt it: so every one
//! is made by a thread of the device's own, with buffers of its own. Where the answer does
//! not come in time the device is *lost*, its thread is counted ([`stuck_threads`]), and
//! no call is made on it any more.
//!
//! ```no_run
//! use std::sync::Arc;
//! use vfio_migrate_host::{Host, HostOptions, Place};
//!
//! let place: Place = "0000:01:00.3".parse()?;
//! let host = Host::open(&place, HostOptions::default())?;
//! println!("driver {:?}", host.about().driver);
//! let device = control::open_any(Arc::new(host))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod about;
mod container;
mod device;
mod iommu;
mod kernel;
mod launcher;
mod open;
mod place;
mod region;
mod session;
mod transport;
mod workers;

#[cfg(test)]
mod tests;

pub use about::{About, Roots};
pub use container::{Container, ContainerLog, RawQuery, Tracking};
pub use device::{Deadlines, Host};
pub use iommu::IommuLog;
pub use open::{HostOptions, OpenError};
pub use place::{Place, PlaceError, Way};
pub use workers::stuck_threads;
