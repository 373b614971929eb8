//! What a check is.

use crate::bench::Bench;
use crate::outcome::Outcome;

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
