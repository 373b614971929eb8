//! The protocol as a table: every command with everything that can be wrong about it,
//! and what comes back, over a real socket.
//!
//! ```text
//!   server/*.rs   rows for our server: one message each, built byte by byte here and
//!                 not by our codec, and the answer that docs/vfio-user.md promises
//!   client/*.rs   rows for our client: one call each, and the lie that a server tells;
//!                 and what a server asks, with the same rows as above
//! ```
//!
//! A row of the server says what is sent, after what, and what has to come back. After
//! each row the same connection still works (where the row does not say that it ends,
//! in which case a new one does), and all rows of one kind share one server, so that
//! whatever a row leaves behind falls on the next. To add one, start from a valid
//! message of [`valid`] and say what differs:
//!
//! ```text
//!   dma_map().why(Argsz, "one below the structure").u32(0, 31).refused(EINVAL)
//! ```

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]
#![allow(dead_code, reason = "the rows use a part of what rows can say")]
#![allow(unreachable_pub, reason = "modules of one test")]

#[path = "../support/mod.rs"]
mod support;

mod client;
mod device;
mod errno;
mod row;
mod server;
mod valid;
mod wire;
