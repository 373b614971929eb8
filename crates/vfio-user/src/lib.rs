//! The vfio-user protocol: a device in one process, its VMM in another.
//!
//! ```text
//!   VMM                                             device server
//!   control -> [Client] ==== UNIX socket ==== [Server] -> device::Runner -> model
//!                 |     <- DMA by message ->      |
//!            DmaHandler                       poll_fd, process, serve
//!                       \--- [codec] ---/
//! ```
//!
//! * [`Client`] is a [`control::Transport`]: what the VMM side asks of a device, as
//!   messages, from any number of threads.
//! * [`Server`] gives one client at a time the device behind a [`device::Runner`], on
//!   one thread, in a loop of its own or inside a foreign one.
//! * [`codec`] is the messages themselves, without I/O.
//!
//! What the protocol lacks (the size of stop-copy data, what pre-copy has left, who the
//! device is, a digest to compare) is added under a key that both sides have to name in
//! VERSION. `docs/vfio-user.md` has the layouts and every decision.

pub mod client;
pub mod codec;
pub mod server;
mod stream;

pub use client::{Client, ClientOptions, DeviceStream, DmaHandler, NoDma};
pub use server::{DisconnectReason, Server, ServerError, ServerOptions, Stop};
pub use stream::StreamError;

/// The version of our own additions to the protocol, the number in the `vfio_migrate`
/// key of VERSION.
pub const ADDITIONS: u32 = 1;
