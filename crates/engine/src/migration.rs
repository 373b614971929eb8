//! One migration, decided: source and sink as pure state machines.
//!
//! Each side is a `step(now, event) -> actions`. Nothing here waits, sends or reads a
//! clock: [`crate::drive`] performs the actions and reports what came of them.
//!
//! ```text
//! source                                        destination
//!  negotiate  ------------------------------->   refuse or accept
//!  setup: dirty tracking on, PRE_COPY            RESUMING
//!  rounds     ------------------------------->   apply, acknowledge each round
//!  switchover ------------------------------->   ready
//!  stop vCPUs; P2P barrier; STOP_COPY; last dirty bits
//!  rest of memory, devices, config, sections ->  apply; RESUMING to STOP
//!                                           <-   PREPARED, recorded
//!  re-read devices; record YIELDED
//!  commit()  -------------------------------->   re-read devices; record RAN; start
//!                                           <-   RUNNING
//! ```
//!
//! Until [`source`] enters its `commit`, every way out leads back to a running source.
//! After it, only a recorded RETURNED does; anything else is *in doubt*. A source that
//! keeps its guest ([`Finish::Keep`]) turns back at PREPARED, the way of every failure.

mod budget;
pub mod compat;
mod error;
mod options;
mod report;
pub mod sink;
pub mod source;

pub use budget::{Budget, Estimate};
pub use error::{Cause, Error, Recovery};
pub use options::{Finish, OnTimeout, Options};
pub use report::{DeviceReport, Ledger, Outcome, PhaseTime, Report};
