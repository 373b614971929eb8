//! What an operator chooses for one migration.

use std::time::Duration;

/// How one migration should go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The longest downtime that is aimed at. The guest is stopped when the estimate
    /// is at most this. Default 300 ms.
    pub downtime_limit: Duration,
    /// How long pre-copy may go on. Default 300 s.
    pub max_time: Duration,
    /// What happens when pre-copy did not converge in [`Options::max_time`].
    pub on_timeout: OnTimeout,
    /// Data connections, 1 to 64. Default 1.
    pub channels: u16,
    /// How long any single answer of the peer, a device or the VMM may take. Default
    /// 30 s. Moving bulk data has no limit as long as it moves, which is 512 KiB within
    /// this time: a peer that drips less keeps no guest stopped.
    pub patience: Duration,
    /// The shortest time from the start of one round of pre-copy to the next while
    /// only the VMM's gate keeps the guest from being stopped. Default 50 ms.
    pub pace: Duration,
    /// The source's own address, for a destination that has to ask it back.
    pub source_uri: Option<String>,
    /// Who has the guest once the other side is prepared. Default [`Finish::Yield`].
    pub finish: Finish,
}

/// What the source does once the other side has everything and said PREPARED.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// It gives the guest away: a migration.
    Yield,
    /// It keeps the guest, and the other side has a copy that nobody may start while it
    /// runs here: a snapshot. A copy is made of the stopped guest at once, without
    /// pre-copy.
    Keep {
        /// Whether the guest stays stopped here. Otherwise it is as it was before.
        stopped: bool,
    },
}

/// What to do when pre-copy ran out of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnTimeout {
    /// Give up: the source runs on, and the report names the shortfall.
    Fail,
    /// Stop the guest all the same, whatever the downtime.
    Switch,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            downtime_limit: Duration::from_millis(300),
            max_time: Duration::from_secs(300),
            on_timeout: OnTimeout::Fail,
            channels: 1,
            patience: Duration::from_secs(30),
            pace: Duration::from_millis(50),
            source_uri: None,
            finish: Finish::Yield,
        }
    }
}
