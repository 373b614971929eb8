//! The command `vfio-migrate`: faces for people over the library's rooms.
//!
//! ```text
//!   main      reads the arguments, runs one command, ends with one exit status
//!   args      what can be asked for, and in which units
//!   commands  one module a command; they print, and decide nothing that a user of
//!             the library would miss
//!   devices   where devices are served, and how they are opened
//!   guest     the software guest: a small VMM with vCPUs, a control socket, and the
//!             engine's ports over real devices
//!   report    the report of a migration, as JSON and as text
//!   progress  an observer's events, as JSON lines, plain lines and bars
//!   signals   what Ctrl-C does
//!   socket    sockets that a command makes, for this user alone
//!   exit      the exit status, decided in one function
//!   output    standard output: lines for people, or JSON lines
//!   pages     the man pages and shell completions, for `cargo xtask gen`
//! ```

pub mod args;
pub mod commands;
pub mod devices;
pub mod exit;
pub mod guest;
pub mod output;
pub mod pages;
pub mod progress;
pub mod report;
mod signals;
mod socket;
pub mod units;
