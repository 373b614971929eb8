//! A copy of a whole guest in a file, made and taken in by the code of a migration.
//!
//! ```text
//!   Recording   machine --> Outgoing ==pipes==> a peer that says what a destination
//!                           (keeps its guest)   says, and writes --> port::Archive
//!
//!   Playing     port::Receive --> a peer that says what a source says
//!                                 ==pipes==> Incoming --> machine
//! ```
//!
//! Refusals, the order of the stop, the barrier, config spaces, interrupts, sections,
//! memory, the way back: all of it is what two hosts do, and only the peer is another.
//! The file is the stream of one data connection (`docs/stream.md`, *Saved files*).
//! [`verify_guest`] reads a file that can be read twice before a device is touched.

mod pipe;
mod play;
mod record;
mod verify;

use port::{AttemptId, Decision, DecisionStore, StoreError, StoreId};

pub use play::{Played, Playing};
pub use record::{RecordOptions, Recorded, Recording};
pub use verify::{GuestFile, verify_guest};

/// How long a saved stream is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Bytes of the whole file.
    pub bytes: u64,
    /// Frames in it.
    pub frames: u64,
}

/// The decisions of one process about a copy: nobody else ever asks for them. Its id is
/// the one that a file has, zero.
#[derive(Debug, Default)]
struct Own(Option<Decision>);

impl DecisionStore for Own {
    fn id(&self) -> StoreId {
        StoreId([0; 16])
    }

    fn record(
        &mut self,
        _: AttemptId,
        decision: Decision,
    ) -> Result<Decision, StoreError> {
        // The first of RAN and RETURNED stands.
        let decided = self.0.filter(|d| matches!(d, Decision::Ran | Decision::Returned));
        Ok(*self.0.insert(decided.unwrap_or(decision)))
    }

    fn read(&self, _: AttemptId) -> Result<Option<Decision>, StoreError> {
        Ok(self.0)
    }
}
