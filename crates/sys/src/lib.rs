//! The only room with unsafe code: mapped memory, descriptors, sockets with descriptors.
//!
//! What the operating system gives, in the shape the other rooms want it, and nothing
//! decided here:
//!
//! ```text
//!   guest RAM, device windows    [`SharedMemory`]   a mapped file, copied in and out
//!   interrupts, wake-ups         [`EventFd`]        a counter that can be waited for
//!   waiting                      [`wait_readable`], [`wait`], [`Epoll`], [`Timer`]
//!   messages with descriptors    [`socket`]         sendmsg and recvmsg with SCM_RIGHTS
//!   devices of the kernel        [`vfio`]           the ioctls of VFIO and iommufd
//!   which CPU                    [`set_affinity`]   for measurements
//! ```
//!
//! ```
//! use vfio_migrate_sys::{EventFd, SharedMemory};
//!
//! let memory = SharedMemory::create("example", 8192)?;
//! memory.write(4096, b"hello")?;
//! let mut back = [0; 5];
//! memory.read(4096, &mut back)?;
//! assert_eq!(&back, b"hello");
//!
//! let event = EventFd::new()?;
//! event.signal(2)?;
//! event.signal(1)?;
//! assert_eq!(event.take()?, 3);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cpu;
mod event;
mod memory;
pub mod socket;
pub mod vfio;
mod wait;

pub use cpu::set_affinity;
pub use event::EventFd;
pub use memory::{AccessError, SharedMemory};
pub use wait::{Epoll, Interest, Readiness, Timer, wait, wait_readable};
