//! The memory of who has the right to run.

use thiserror::Error;

/// One attempt to migrate one guest. New for each attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttemptId(pub [u8; 16]);

/// A decision store, the same for as long as its contents live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoreId(pub [u8; 16]);

/// What was decided about an attempt. The source records YIELDED; the destination
/// records PREPARED and then exactly one of RAN and RETURNED.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Destination: all that can fail has been done, and nothing is decided.
    Prepared,
    /// Source: the right to run was given away.
    Yielded,
    /// Destination: the guest is this side's.
    Ran,
    /// Destination: the guest is the source's.
    Returned,
}

impl std::fmt::Display for Decision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Decision::Prepared => "PREPARED",
            Decision::Yielded => "YIELDED",
            Decision::Ran => "RAN",
            Decision::Returned => "RETURNED",
        })
    }
}

/// Records decisions so that they outlive what may die.
pub trait DecisionStore: Send {
    /// Which store this is. A RETURNED counts only from the store whose id was
    /// exchanged in negotiation.
    fn id(&self) -> StoreId;

    /// Records a decision, durably, and returns the one that stands. RAN and RETURNED
    /// are first-writer-wins: the loser gets the other's decision and obeys it.
    ///
    /// # Errors
    /// When it is not known whether the decision was recorded: the caller then neither
    /// runs nor answers RETURNED.
    fn record(
        &mut self,
        attempt: AttemptId,
        decision: Decision,
    ) -> Result<Decision, StoreError>;

    /// The latest decision on an attempt, if there is one.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn read(&self, attempt: AttemptId) -> Result<Option<Decision>, StoreError>;
}

/// A decision store failed.
#[derive(Debug, Error)]
#[error("the decision store failed to {operation}")]
pub struct StoreError {
    /// What was asked of it.
    pub operation: String,
    /// What lies beneath.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}
