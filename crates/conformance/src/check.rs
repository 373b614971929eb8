//! What a check is, and how one is chosen.

use abi::errno::Errno;
use control::TransportError;
use thiserror::Error;

use crate::bench::Bench;
use crate::checks::CHECKS;

/// One check of a device.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// Its name, which never changes: the rule, a dot, and a word or two.
    pub id: &'static str,
    /// The rule that it is of (`docs/conform.md`).
    pub rule: u8,
    /// What is done to the device.
    pub did: &'static str,
    /// What that does to what it holds.
    pub effect: Effect,
    pub(crate) run: fn(&Bench) -> Outcome,
}

/// What a check does to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It only asks.
    Asks,
    /// It changes the state and may reset: what was going on is over, and many devices
    /// lose what they hold.
    Moves,
    /// It loads data into the device as well, good and bad.
    Loads,
}

impl Effect {
    /// One word for it.
    pub fn word(self) -> &'static str {
        match self {
            Effect::Asks => "asks",
            Effect::Moves => "moves",
            Effect::Loads => "loads",
        }
    }
}

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

/// Neither a rule nor the id of a check. Holds what it was.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is no check: write the number of a rule, such as 4, or an id of --list")]
pub struct UnknownCheck(pub String);

/// The checks of these rules or with these ids, in their order; all of them where none is
/// named.
///
/// # Errors
/// What is neither a rule nor an id.
pub fn select(only: &[String]) -> Result<Vec<&'static Check>, UnknownCheck> {
    let names =
        |check: &Check, name: &str| check.id == name || name.parse() == Ok(check.rule);
    let unknown = only.iter().find(|name| !CHECKS.iter().any(|check| names(check, name)));
    if let Some(name) = unknown {
        return Err(UnknownCheck(name.clone()));
    }
    let wanted =
        |check: &&Check| only.is_empty() || only.iter().any(|name| names(check, name));
    Ok(CHECKS.iter().filter(wanted).collect())
}
