//! What outlives a connection: decisions about who has the right to run, and saved
//! streams.
//!
//! # Decisions
//!
//! A migration is safe because one thing is written down before anything runs: the
//! source records YIELDED before it gives the guest away, the destination records
//! PREPARED and then exactly one of RAN and RETURNED before it acts on it.
//!
//! ```text
//!   source          (nothing) ---> YIELDED ----------------> RETURNED (heard)
//!
//!   destination     (nothing) ---> PREPARED ---.-> RAN       whichever is written
//!                        \_____________________`-> RETURNED  first stands for good
//! ```
//!
//! [`Memory`] keeps this for as long as the process lives: enough for a migration over
//! a live connection, where a process that is gone has lost its guest too.
//!
//! ```
//! use port::{Decision, DecisionStore};
//!
//! let mut store = vfio_migrate_store::Memory::new()?;
//! let attempt = vfio_migrate_store::new_attempt()?;
//! store.record(attempt, Decision::Prepared)?;
//! assert_eq!(store.record(attempt, Decision::Ran)?, Decision::Ran);
//! // The loser is told what stands, and obeys.
//! assert_eq!(store.record(attempt, Decision::Returned)?, Decision::Ran);
//! # Ok::<(), port::StoreError>(())
//! ```
//!
//! # Saved streams
//!
//! [`SavedFile`] is a [`port::Archive`] over a file, and [`open`] reads one back. A file
//! under its final name is whole and durable, or it is not there; where the file system
//! can do it, nothing else is there either, whatever kills the process.

mod file;
mod memory;

pub use file::{FileError, SavedFile, StoredFile, is_standard_output, open, open_unless};
pub use memory::{Memory, OutOfOrder, TooMany};

use port::{AttemptId, StoreError};

/// A new id for an attempt: 16 random bytes from the system.
///
/// # Errors
/// When the system has no randomness to give.
pub fn new_attempt() -> Result<AttemptId, StoreError> {
    random().map(AttemptId)
}

fn random() -> Result<[u8; 16], StoreError> {
    let mut bytes = [0; 16];
    let mut have = 0;
    while have < bytes.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        match rustix::rand::getrandom(&mut bytes[have..], flags) {
            Ok(more) => have += more,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(failed("make a random id", errno)),
        }
    }
    Ok(bytes)
}

fn failed(
    operation: impl Into<String>,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> StoreError {
    StoreError { operation: operation.into(), source: source.into() }
}
