//! Which command is allowed when: commands obey the right to run.
//!
//! | | status, counters | pause, resume | migrate, snapshot | receive | cancel | set-rate | freeze | quit |
//! | --- | --- | --- | --- | --- | --- | --- | --- | --- |
//! | running, paused | yes | yes | yes | no | no migration | no migration | yes | yes |
//! | copying to a file | yes | no | one at a time | no | yes | no migration | no | cancel first |
//! | migrating, until the stop | yes | yes | one at a time | no | yes | yes | no | cancel first |
//! | migrating, until commit | yes | no | one at a time | no | yes | yes | no | cancel first |
//! | migrating, given away | yes | no | no | no | no | no | no | no |
//! | waiting | status | no guest | no guest | already | where it was asked for | no guest | no guest | yes |
//! | receiving | status | no guest | no guest | already | yes | no guest | no guest | yes |
//! | moved | yes | no | no | yes | no | no | no | with `--discard` |
//! | empty | status | no guest | no guest | yes | no migration | no guest | no guest | yes |
//! | holding, in doubt | yes | no | no | no | no | no | no | with `--discard` |
//!
//! A process whose guest has moved away takes one in again with `receive`: it throws away
//! what the guest left behind, and from there on is a destination as any other. Only a
//! guest that is known to be another host's leaves something that may be thrown away
//! without `--discard`.

use thiserror::Error;

/// What an operator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// What is going on.
    Status,
    /// The guest's own totals.
    Counters,
    /// Move the guest to another host.
    Migrate,
    /// Copy it to a file.
    Snapshot,
    /// Take a guest in.
    Receive,
    /// Give the migration up.
    Cancel,
    /// Let it send faster or slower.
    SetRate,
    /// Stop the guest.
    Pause,
    /// Let it run.
    Resume,
    /// Stop it and check everything.
    Freeze,
    /// End the process.
    Quit {
        /// Even where that may destroy the only copy.
        discard: bool,
    },
}

/// What this process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Situation {
    /// The guest runs here.
    Running,
    /// The guest is here, and paused.
    Paused,
    /// The guest is here, and is copied to a file.
    Copying,
    /// The guest is on its way out.
    Migrating {
        /// Before the stop.
        interruptible: bool,
        /// After it was given away.
        yielded: bool,
    },
    /// No source has come yet.
    Waiting {
        /// By the command `receive`, in a process that had a guest before.
        again: bool,
    },
    /// A guest is on its way in.
    Receiving,
    /// A whole guest is here, its source is gone, and nothing is decided.
    Holding,
    /// The guest is another host's.
    Moved,
    /// It is, and what it left behind was thrown away.
    Empty,
    /// The guest may be another host's.
    InDoubt,
}

impl Situation {
    /// The name in `status`.
    pub fn name(self) -> &'static str {
        match self {
            Situation::Running => "running",
            Situation::Paused => "paused",
            Situation::Copying => "copying",
            Situation::Migrating { .. } => "migrating",
            Situation::Waiting { .. } => "waiting",
            Situation::Receiving => "receiving",
            Situation::Holding => "holding",
            Situation::Moved => "moved",
            Situation::Empty => "empty",
            Situation::InDoubt => "in-doubt",
        }
    }
}

/// Why a command is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// There is none yet.
    #[error("no guest is here yet")]
    NoGuest,
    /// There is one that would be lost.
    #[error(
        "a guest is here: this process takes one in when that has moved away; another \
         one does at once, with guest receive"
    )]
    HasGuest,
    /// It does already.
    #[error(
        "this process waits for a guest already, or one is coming in: the status says \
         where, and cancel or quit ends that"
    )]
    Awaited,
    /// There is none to be cancelled.
    #[error("no migration is under way")]
    NoMigration,
    /// One at a time.
    #[error("a migration is under way already")]
    Busy,
    /// A snapshot has to end first.
    #[error("a snapshot is under way: wait for its end, or cancel it")]
    Copying,
    /// The guest is between the stop and the end.
    #[error("the guest is stopped by its migration, which is about to end")]
    Stopped,
    /// The right to run was given away.
    #[error("the guest was given to the destination, and its answer is not here yet")]
    Yielded,
    /// A migration has to end first.
    #[error("a migration is under way: cancel it first")]
    CancelFirst,
    /// The guest is held.
    #[error(
        "this host holds the guest for a source that is gone: nobody has decided who \
         runs it. If the source runs it, discard this copy with quit --discard"
    )]
    Holding,
    /// The guest is elsewhere.
    #[error(
        "the guest runs on the destination: what is here is what it left behind. receive \
         takes a guest in again, quit --discard ends this process"
    )]
    Moved,
    /// It is not known where the guest is.
    #[error(
        "the guest was given to the destination, which did not say that it runs: look \
         there first. If it does not run there and cannot, nothing here may start it; \
         quit --discard destroys this copy"
    )]
    InDoubt,
}

/// Whether a command is allowed now.
///
/// # Errors
/// Why it is not.
pub fn allowed(command: Command, situation: Situation) -> Result<(), Refusal> {
    use Command::{
        Cancel, Counters, Freeze, Migrate, Pause, Quit, Receive, Resume, SetRate,
        Snapshot, Status,
    };
    use Situation::{
        Copying, Empty, Holding, InDoubt, Migrating, Moved, Paused, Receiving, Running,
        Waiting,
    };
    match (situation, command) {
        (_, Status) | (Moved | Empty, Receive) => Ok(()),
        (Waiting { .. } | Receiving | Empty, Counters) => Err(Refusal::NoGuest),
        (_, Counters) => Ok(()),
        (Running | Paused, Cancel | SetRate) => Err(Refusal::NoMigration),
        (Running | Paused | Copying, Receive) => Err(Refusal::HasGuest),
        (Migrating { yielded: false, .. }, Receive) => Err(Refusal::HasGuest),
        (Running | Paused, _) => Ok(()),
        (Waiting { again: true } | Receiving, Cancel) => Ok(()),
        (Waiting { .. } | Empty, Cancel | SetRate) => Err(Refusal::NoMigration),
        (Waiting { .. } | Receiving | Empty, Quit { .. }) => Ok(()),
        (Waiting { .. } | Receiving, Receive) => Err(Refusal::Awaited),
        (Waiting { .. } | Receiving | Empty, _) => Err(Refusal::NoGuest),
        (Copying, Cancel) => Ok(()),
        (Copying, SetRate) => Err(Refusal::NoMigration),
        (Copying, _) => Err(Refusal::Copying),
        (Migrating { yielded: true, .. }, _) => Err(Refusal::Yielded),
        (Migrating { .. }, Cancel | SetRate) => Ok(()),
        (Migrating { .. }, Quit { .. }) => Err(Refusal::CancelFirst),
        (Migrating { interruptible: true, .. }, Pause | Resume) => Ok(()),
        (Migrating { .. }, Pause | Resume) => Err(Refusal::Stopped),
        (Migrating { .. }, Migrate | Snapshot | Freeze) => Err(Refusal::Busy),
        (Holding | Moved | InDoubt, Quit { discard: true }) => Ok(()),
        (Holding, _) => Err(Refusal::Holding),
        (Moved, _) => Err(Refusal::Moved),
        (InDoubt, _) => Err(Refusal::InDoubt),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMANDS: [Command; 12] = [
        Command::Status,
        Command::Counters,
        Command::Pause,
        Command::Resume,
        Command::Migrate,
        Command::Cancel,
        Command::Freeze,
        Command::Quit { discard: false },
        Command::Quit { discard: true },
        Command::SetRate,
        Command::Snapshot,
        Command::Receive,
    ];

    /// One row a situation, one letter a command of [`COMMANDS`], `y` for yes.
    const TABLE: [(Situation, &str); 13] = [
        (Situation::Running, "yyyyynyyynyn"),
        (Situation::Paused, "yyyyynyyynyn"),
        (Situation::Copying, "yynnnynnnnnn"),
        (Situation::Migrating { interruptible: true, yielded: false }, "yyyynynnnynn"),
        (Situation::Migrating { interruptible: false, yielded: false }, "yynnnynnnynn"),
        (Situation::Migrating { interruptible: false, yielded: true }, "yynnnnnnnnnn"),
        (Situation::Waiting { again: false }, "ynnnnnnyynnn"),
        (Situation::Waiting { again: true }, "ynnnnynyynnn"),
        (Situation::Receiving, "ynnnnynyynnn"),
        (Situation::Holding, "yynnnnnnynnn"),
        (Situation::Moved, "yynnnnnnynny"),
        (Situation::Empty, "ynnnnnnyynny"),
        (Situation::InDoubt, "yynnnnnnynnn"),
    ];

    #[test]
    fn every_command_obeys_the_token_in_every_situation() {
        for (situation, row) in TABLE {
            for (command, expected) in COMMANDS.iter().zip(row.chars()) {
                let answer = allowed(*command, situation);
                let yes = expected == 'y';
                assert_eq!(answer.is_ok(), yes, "{command:?} while {situation:?}");
            }
        }
    }

    #[test]
    fn nothing_starts_a_guest_that_may_run_elsewhere() {
        for situation in [Situation::Holding, Situation::Moved, Situation::InDoubt] {
            for command in [Command::Resume, Command::Pause, Command::Migrate] {
                let refusal = allowed(command, situation).unwrap_err().to_string();
                assert!(refusal.contains("--discard"), "{refusal}");
            }
        }
    }
}
