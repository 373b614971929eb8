//! The command `vfio-migrate`: faces for people over the library's rooms.
//!
//! ```text
//!   main      reads the arguments, runs one command, ends with one exit status
//!   args      what can be asked for, and in which units
//!   commands  one module a command; they print, and decide nothing that a user of
//!             the library would miss
//!   guest     the software guest: a small VMM with vCPUs, a control socket, and the
//!             engine's ports over real devices
//!   report    the report of a migration, as JSON and as text
//!   progress  an observer's events, as JSON lines, plain lines and bars
//!   exit      the exit status, decided in one function
//!   output    standard output: lines for people, or JSON lines
//! ```

pub mod args;
pub mod commands;
pub mod exit;
pub mod guest;
pub mod output;
pub mod progress;
pub mod report;
pub mod units;
