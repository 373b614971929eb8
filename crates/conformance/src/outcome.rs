//! How a check ends, for the one that runs it.

use abi::errno::Errno;
use control::TransportError;

/// What was seen where all was well; else why not.
pub(crate) type Outcome = Result<String, Stop>;

/// Why a check ends early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The device broke the rule, or something that the check needs. Holds what was seen.
    Fail(String),
    /// It cannot be checked here. Holds the reason.
    Skip(String),
    /// The device does not answer any more. Holds what it was asked last.
    Lost(String),
}

/// The device broke the rule.
pub(crate) fn fail<T>(saw: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Fail(saw.into()))
}

/// It cannot be checked here.
pub(crate) fn skip<T>(reason: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Skip(reason.into()))
}

/// An errno is an answer, which the check judges; anything else ends the check.
pub(crate) fn answer<T>(
    result: Result<T, TransportError>,
) -> Result<Result<T, Errno>, Stop> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(TransportError::Errno { errno, .. }) => Ok(Err(errno)),
        Err(error @ TransportError::Broken { .. }) => fail(error.to_string()),
        Err(error @ (TransportError::TimedOut { .. } | TransportError::Gone { .. })) => {
            Err(Stop::Lost(error.to_string()))
        }
    }
}
