//! The exit status.

use anyhow::Error;
use engine::migration::{Outcome, Recovery};

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed, refused or cancelled (a migration's source runs as before), or a check
    /// or verification failed.
    Failed = 1,
    /// The arguments make no sense.
    Usage = 2,
    /// It is in doubt who has the right to run: act.
    InDoubt = 3,
    /// A device was lost or reset: the source's before commit, the destination's after.
    DeviceLost = 4,
}

/// Arguments that are understood one by one and make no sense together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Nonsense(pub String);

/// What a command found out, from which the status follows.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    /// It did what it was asked.
    Done,
    /// The arguments make no sense.
    Usage,
    /// It could not do what it was asked.
    Error(&'a Error),
    /// The guest that ran in this process ended with this status of its own.
    Guest(u8),
    /// A migration ended.
    Migration {
        /// How.
        outcome: Outcome,
        /// What the caller has now, unless it completed.
        recovery: Option<Recovery>,
        /// Whether what arrived is what was sent, where that was checked.
        verified: Option<bool>,
    },
}

/// The exit status of the process: the only place that decides it.
///
/// An [`Error`] decides by the engine's error in its chain, if there is one: of a
/// migration, or of a save or a restore.
pub fn status(found: Found<'_>) -> Exit {
    match found {
        Found::Done => Exit::Done,
        Found::Usage => Exit::Usage,
        Found::Guest(number) => match number {
            0 => Exit::Done,
            2 => Exit::Usage,
            3 => Exit::InDoubt,
            4 => Exit::DeviceLost,
            _ => Exit::Failed,
        },
        Found::Error(error) if error.is::<Nonsense>() => Exit::Usage,
        Found::Error(error) => {
            let recovery = error.chain().find_map(|cause| {
                let migration = cause.downcast_ref::<engine::migration::Error>();
                let file = cause.downcast_ref::<engine::drive::FileError>();
                migration
                    .map(engine::migration::Error::recovery)
                    .or_else(|| file.map(engine::drive::FileError::recovery))
            });
            match recovery {
                Some(Recovery::InDoubt) => Exit::InDoubt,
                Some(Recovery::DeviceLost | Recovery::Moved) => Exit::DeviceLost,
                Some(Recovery::Retry | Recovery::SourceResumed) | None => Exit::Failed,
            }
        }
        Found::Migration { outcome, recovery, verified } => match (outcome, recovery) {
            (Outcome::Completed, _) if verified == Some(false) => Exit::Failed,
            (Outcome::Completed, _) => Exit::Done,
            (Outcome::InDoubt, _) | (_, Some(Recovery::InDoubt)) => Exit::InDoubt,
            // The guest is the destination's and did not start there.
            (_, Some(Recovery::DeviceLost | Recovery::Moved)) => Exit::DeviceLost,
            (Outcome::Refused | Outcome::Failed | Outcome::Cancelled, _) => Exit::Failed,
        },
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::{Exit, Found, status};
    use engine::migration::{Cause, Error, Outcome, Recovery};

    fn migration(
        outcome: Outcome,
        recovery: Option<Recovery>,
        verified: Option<bool>,
    ) -> Exit {
        status(Found::Migration { outcome, recovery, verified })
    }

    #[test]
    fn a_failed_verification_is_no_success() {
        assert_eq!(migration(Outcome::Completed, None, None), Exit::Done);
        assert_eq!(migration(Outcome::Completed, None, Some(true)), Exit::Done);
        assert_eq!(migration(Outcome::Completed, None, Some(false)), Exit::Failed);
    }

    #[test]
    fn doubt_and_loss_are_told_from_plain_failure() {
        let (failed, lost) = (Outcome::Failed, Recovery::DeviceLost);
        assert_eq!(migration(failed, Some(Recovery::SourceResumed), None), Exit::Failed);
        assert_eq!(
            migration(Outcome::Refused, Some(Recovery::Retry), None),
            Exit::Failed
        );
        assert_eq!(migration(failed, Some(lost), None), Exit::DeviceLost);
        assert_eq!(migration(Outcome::Cancelled, Some(lost), None), Exit::DeviceLost);
        assert_eq!(migration(failed, Some(Recovery::Moved), None), Exit::DeviceLost);
        let doubt = Some(Recovery::InDoubt);
        assert_eq!(migration(Outcome::InDoubt, doubt, None), Exit::InDoubt);
    }

    #[test]
    fn an_engine_error_decides_from_inside_a_chain() {
        let error = anyhow::Error::new(Error {
            cause: Cause::Cancelled,
            recovery: Recovery::InDoubt,
            devices: Vec::new(),
        })
        .context("guest ctl migrate");
        assert_eq!(status(Found::Error(&error)), Exit::InDoubt);
        let other = anyhow::anyhow!("no such file");
        assert_eq!(status(Found::Error(&other)), Exit::Failed);
    }
}
