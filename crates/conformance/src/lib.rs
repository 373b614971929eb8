//! Whether a device obeys the migration uAPI of Linux 5.18 and later: every rule that can
//! be tested from outside as a check, with the evidence.
//!
//! ```text
//!   [CHECKS]  id, rule, what is done           select by rule or by id
//!      |
//!   [run]     one thread, one check after the other, each with a deadline
//!      |          \
//!   [Bench]        `-> Finding: pass, fail, or skipped with the reason
//!   state, set, save, load, reset: bounded, nothing believed
//!      |
//!   control::Transport      a kernel driver, or a vfio-user server
//! ```
//!
//! A driver that fails a check may hold a guest's state tomorrow; a driver that hangs in
//! one must not take the others down with it. So no check waits without end: data is
//! counted, time is looked at, and where a device answers nothing any more the remaining
//! checks are skipped and say why.
//!
//! **It destroys what the device holds**: it resets it, loads what it saved before, and
//! what it never saved. A data session has one owner here, is never written by two at
//! once, and is closed before its device: some kernels do not survive anything else.
//!
//! The rules are those of `docs/conform.md`, by the same numbers.
//!
//! ```
//! use std::sync::Arc;
//! use vfio_migrate_conformance::{Options, Verdict, run, select};
//!
//! # fn test(device: Arc<dyn control::Transport>) -> Result<(), Box<dyn std::error::Error>> {
//! // All of rule 4, and one check of another.
//! let checks = select(&["4".to_owned(), "21.truncated".to_owned()])?;
//! let findings = run(device, &checks, &Options::default(), &mut |finding| {
//!     assert_ne!(finding.verdict, Verdict::Fail, "{}: {}", finding.check.id, finding.saw);
//! })?;
//! assert_eq!(findings.len(), checks.len());
//! # Ok(())
//! # }
//! ```

mod bench;
mod check;
mod checks;
mod kernel;
mod outcome;
mod suite;

pub use bench::Options;
pub use check::{Check, Effect};
pub use checks::{CHECKS, UnknownCheck, select};
pub use kernel::Release;
pub use suite::{Finding, Verdict, run};
