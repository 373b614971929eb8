//! What all fakes of one side share.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use port::{Clock, Observer, Phase, Progress};

use crate::locked;

/// One side of a migration: its name, and what its fakes report to.
#[derive(Clone, Debug)]
pub struct Side {
    name: String,
    journal: Journal,
    witness: Witness,
    clock: VirtualClock,
}

impl Side {
    /// Two sides, `source` and `destination`, with one journal, witness and clock.
    pub fn pair() -> (Side, Side) {
        let source = Side::alone("source");
        let destination = Side { name: "destination".to_owned(), ..source.clone() };
        (source, destination)
    }

    /// A side by itself.
    pub fn alone(name: &str) -> Side {
        Side {
            name: name.to_owned(),
            journal: Journal::default(),
            witness: Witness::default(),
            clock: VirtualClock::default(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Who was asked what.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Who runs.
    pub fn witness(&self) -> &Witness {
        &self.witness
    }

    /// What time it is.
    pub fn clock(&self) -> &VirtualClock {
        &self.clock
    }

    pub(crate) fn note(&self, who: &str, what: impl std::fmt::Display) {
        self.journal.note(format!("{} {who}: {what}", self.name));
    }

    pub(crate) fn runs(&self, who: &str, runs: bool) {
        self.witness.runs(&self.name, who, runs);
    }
}

/// What was asked of all fakes, in order, as `SIDE WHO: WHAT`.
#[derive(Clone, Debug, Default)]
pub struct Journal(Arc<Mutex<Vec<String>>>);

impl Journal {
    /// Adds an entry.
    pub fn note(&self, entry: String) {
        locked(&self.0).push(entry);
    }

    /// All entries so far.
    pub fn entries(&self) -> Vec<String> {
        locked(&self.0).clone()
    }

    /// Whether there is such an entry.
    pub fn has(&self, entry: &str) -> bool {
        self.position(entry).is_some()
    }

    /// Where the first such entry stands.
    pub fn position(&self, entry: &str) -> Option<usize> {
        locked(&self.0).iter().position(|one| one == entry)
    }

    /// Whether all these entries are there, the first of each in this order.
    pub fn in_order(&self, entries: &[&str]) -> bool {
        let positions: Vec<_> = entries.iter().map(|e| self.position(e)).collect();
        positions.iter().all(Option::is_some) && positions.is_sorted()
    }
}

/// Sees to law 1: at most one side runs.
///
/// A side runs while a vCPU does, or while a device that holds guest state is outside
/// STOP, STOP_COPY and RESUMING.
#[derive(Clone, Debug, Default)]
pub struct Witness(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    running: BTreeSet<(String, String)>,
    violations: Vec<String>,
}

impl Witness {
    /// Tells that `who` on `side` runs, or does not.
    pub fn runs(&self, side: &str, who: &str, runs: bool) {
        let seen = &mut *locked(&self.0);
        let one = (side.to_owned(), who.to_owned());
        if !runs {
            seen.running.remove(&one);
        } else if seen.running.insert(one)
            && let Some((other, by)) =
                seen.running.iter().find(|(other, _)| other != side)
        {
            let text = format!("{who} runs on {side} while {by} runs on {other}");
            seen.violations.push(text);
        }
    }

    /// The sides that run now.
    pub fn running(&self) -> Vec<String> {
        let mut sides: Vec<String> =
            locked(&self.0).running.iter().map(|(side, _)| side.clone()).collect();
        sides.dedup();
        sides
    }

    /// Every time that two sides ran at once.
    pub fn violations(&self) -> Vec<String> {
        locked(&self.0).violations.clone()
    }
}

/// A clock that goes when it is told to.
#[derive(Clone, Debug, Default)]
pub struct VirtualClock(Arc<Times>);

#[derive(Debug, Default)]
struct Times {
    now: AtomicU64,
    step: AtomicU64,
}

impl VirtualClock {
    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        self.0.now.fetch_add(nanos(by), Ordering::SeqCst);
    }

    /// Lets `step` pass each time that somebody asks for the time, so that whoever
    /// waits for a moment by asking sees it come.
    pub fn tick_when_asked(&self, step: Duration) {
        self.0.step.store(nanos(step), Ordering::SeqCst);
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Duration {
        let step = self.0.step.load(Ordering::SeqCst);
        Duration::from_nanos(self.0.now.fetch_add(step, Ordering::SeqCst))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// An observer that keeps what it heard.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Arc<Mutex<Vec<Progress>>>);

impl Recorder {
    /// All that it heard so far.
    pub fn heard(&self) -> Vec<Progress> {
        locked(&self.0).clone()
    }

    /// The phases, in order.
    pub fn phases(&self) -> Vec<Phase> {
        let phase = |progress: &Progress| match progress {
            Progress::Phase(phase) => Some(*phase),
            _ => None,
        };
        locked(&self.0).iter().filter_map(phase).collect()
    }

    /// The notes, in order.
    pub fn notes(&self) -> Vec<String> {
        let note = |progress: &Progress| match progress {
            Progress::Note(note) => Some(note.clone()),
            _ => None,
        };
        locked(&self.0).iter().filter_map(note).collect()
    }
}

impl Observer for Recorder {
    fn progress(&self, progress: &Progress) {
        locked(&self.0).push(progress.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sides_that_run_at_once_are_seen() {
        let (source, destination) = Side::pair();
        source.runs("vCPUs", true);
        source.runs("fake0", true);
        destination.runs("fake0", false);
        assert!(source.witness().violations().is_empty());
        assert_eq!(source.witness().running(), ["source"]);
        destination.runs("vCPUs", true);
        assert_eq!(source.witness().violations().len(), 1);
        destination.runs("vCPUs", false);
        source.runs("fake0", false);
        source.runs("vCPUs", false);
        destination.runs("vCPUs", true);
        assert_eq!(source.witness().violations().len(), 1);
    }

    #[test]
    fn virtual_time_stands_still_until_told() {
        let clock = VirtualClock::default();
        assert_eq!(clock.now(), clock.now());
        clock.advance(Duration::from_secs(3));
        assert_eq!(clock.now(), Duration::from_secs(3));
        clock.tick_when_asked(Duration::from_secs(1));
        clock.now();
        assert_eq!(clock.now(), Duration::from_secs(4));
    }

    #[test]
    fn a_journal_knows_what_came_first() {
        let journal = Journal::default();
        journal.note("a".to_owned());
        journal.note("b".to_owned());
        assert!(journal.in_order(&["a", "b"]) && !journal.in_order(&["b", "a"]));
        assert!(!journal.in_order(&["a", "c"]));
    }
}
