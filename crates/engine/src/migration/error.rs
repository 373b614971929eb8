//! Why a migration did not complete, and what the caller has now.
//!
//! The words fit a guest with its devices, and devices without a guest.

use thiserror::Error;

/// A migration that did not complete.
#[derive(Debug, Error)]
#[error("{cause}{}", consequence(self.recovery, &self.devices))]
pub struct Error {
    /// Why.
    pub cause: Cause,
    /// What the caller has now.
    pub recovery: Recovery,
    /// The devices that were lost or reset, by name.
    pub devices: Vec<String>,
}

impl Error {
    /// What the caller has now: the question after any failure.
    pub fn recovery(&self) -> Recovery {
        self.recovery
    }
}

fn consequence(recovery: Recovery, devices: &[String]) -> String {
    match recovery {
        Recovery::Retry => String::new(),
        Recovery::SourceResumed => "; all goes on at the source as before".into(),
        Recovery::DeviceLost if devices.is_empty() => {
            "; the VMM did not bring the guest back, and it stays paused".into()
        }
        Recovery::DeviceLost => {
            format!(
                "; {} did not come back with what it held, and all stays stopped here",
                devices.join(", ")
            )
        }
        Recovery::InDoubt => {
            "; the right to run was given away and the destination did not say that it \
             returned it: all stays stopped here, look at the destination"
                .into()
        }
        Recovery::Moved => "; the right to run is the destination's".into(),
    }
}

/// What the caller of a failed migration has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// The guest was never touched: mend the cause and try again.
    Retry,
    /// The guest was stopped or tracked, and goes on at the source as before.
    SourceResumed,
    /// A device of this side was lost or reset; the guest is left paused.
    DeviceLost,
    /// The guest may run on the other side. It stays paused here.
    InDoubt,
    /// The guest belongs to the other side.
    Moved,
}

/// Why a migration did not complete.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Cause {
    /// Somebody cancelled it.
    #[error("cancelled")]
    Cancelled,
    /// One of the two sides refused before the guest was touched; each reason names the
    /// thing and the remedy.
    #[error("refused: {}", .0.join("; "))]
    Refused(Vec<String>),
    /// A device failed.
    #[error("{0}")]
    Device(String),
    /// The VMM failed at its part.
    #[error("{0}")]
    Vmm(String),
    /// The connection failed.
    #[error("{0}")]
    Channel(String),
    /// The peer failed, in its own words.
    #[error("the {side} failed: {text}")]
    Peer {
        /// `source` or `destination`.
        side: &'static str,
        /// What it said, bounded.
        text: String,
    },
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
    /// Something did not answer in time.
    #[error("waited {millis} ms in vain for {what}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long, in milliseconds.
        millis: u64,
    },
    /// Pre-copy did not converge.
    #[error(
        "pre-copy did not converge in {seconds} s: a stop now would take about \
         {estimate_ms} ms, {over_ms} ms over the limit ({remaining} bytes of memory and \
         device data at {bandwidth} bytes/s). Raise the downtime limit, give \
         the source less to do, or let it switch on timeout"
    )]
    NotConverged {
        /// How long pre-copy went on, in seconds.
        seconds: u64,
        /// The estimate, in milliseconds.
        estimate_ms: u64,
        /// By how much that is over the limit, in milliseconds.
        over_ms: u64,
        /// What was left to move, in bytes.
        remaining: u64,
        /// The measured bandwidth, in bytes a second.
        bandwidth: u64,
    },
    /// The stop would have fitted, and was not allowed.
    #[error(
        "a stop would have fitted the downtime limit, and within {seconds} s either the \
         VMM did not let its guest be stopped or a device did not give its initial data"
    )]
    Held {
        /// How long pre-copy went on, in seconds.
        seconds: u64,
    },
    /// The devices or the memory changed under the migration.
    #[error("the virtual machine changed during the migration: {0}")]
    Changed(String),
    /// A device keeps being reset by the guest.
    #[error("{0} was reset more than three times during pre-copy")]
    ResetTooOften(String),
    /// The decision store failed.
    #[error("{0}")]
    Store(String),
    /// The destination has the guest, and it did not start there.
    #[error("the right to run is the destination's, and all stays stopped there: {0}")]
    NotStarted(String),
    /// The file that a copy is written to failed, or the one that it is read from.
    #[error("{0}")]
    File(String),
    /// Nothing failed: the source keeps its guest, and tells the other side so.
    #[error("the source keeps its guest: this is a copy")]
    Kept,
    /// The destination decided RETURNED.
    #[error("the destination returned the right to run: {0}")]
    Returned(String),
}
