//! Models behind migration regions: the rules of documents 000 and 001, from the client's
//! side.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod bench;
mod chart_of_v1;
mod failures;
mod hostile;
mod matrix;
mod registers_of_rfc2018;
mod registers_of_v1;
mod scribe;
mod steps_of_rfc2018;
