//! Decisions for as long as the process lives.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use port::{AttemptId, Decision, DecisionStore, StoreError, StoreId};
use thiserror::Error;

use crate::{failed, random};

/// A decision store in memory. Clones share what is recorded: one may be lent to the
/// engine while another answers `status`.
#[derive(Clone, Debug)]
pub struct Memory {
    id: StoreId,
    decisions: Arc<Mutex<HashMap<AttemptId, Decision>>>,
}

impl Memory {
    /// The most attempts that are remembered at once. Each is the operator's or an
    /// authenticated peer's; the bound is there for a peer that goes mad.
    pub const MOST: usize = 65_536;

    /// An empty store with an id of its own.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn new() -> Result<Memory, StoreError> {
        Ok(Memory { id: StoreId(random()?), decisions: Arc::default() })
    }

    /// Forgets an attempt: once the other side has acknowledged the decision, or when
    /// the operator says so. Returns what stood.
    pub fn forget(&self, attempt: AttemptId) -> Option<Decision> {
        self.lock().remove(&attempt)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AttemptId, Decision>> {
        // Every change is a single insert, so a panic elsewhere leaves the map whole.
        self.decisions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DecisionStore for Memory {
    fn id(&self) -> StoreId {
        self.id
    }

    fn record(
        &mut self,
        attempt: AttemptId,
        decision: Decision,
    ) -> Result<Decision, StoreError> {
        let mut decisions = self.lock();
        let before = decisions.get(&attempt).copied();
        let stands = after(before, decision)
            .map_err(|error| failed(format!("record {decision}"), error))?;
        if before.is_none() && decisions.len() >= Memory::MOST {
            return Err(failed(format!("record {decision}"), TooMany));
        }
        decisions.insert(attempt, stands);
        Ok(stands)
    }

    fn read(&self, attempt: AttemptId) -> Result<Option<Decision>, StoreError> {
        Ok(self.lock().get(&attempt).copied())
    }
}

/// What stands once `decision` is recorded over `before`.
///
/// RETURNED is taken without a PREPARED (a refusal or an ABORT before it): it leaves
/// the guest where it is, and bars any later RAN. It is taken after YIELDED too, as
/// the source's note that the guest came back.
fn after(before: Option<Decision>, decision: Decision) -> Result<Decision, OutOfOrder> {
    use Decision::{Prepared, Ran, Returned, Yielded};
    match (before, decision) {
        (Some(stands), again) if stands == again => Ok(stands),
        (None, Prepared | Yielded | Returned) => Ok(decision),
        (Some(Prepared), Ran | Returned) | (Some(Yielded), Returned) => Ok(decision),
        (Some(first @ (Ran | Returned)), Ran | Returned) => Ok(first),
        (before, _) => Err(OutOfOrder { before, decision }),
    }
}

/// A decision was to be recorded that cannot follow the one that stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{decision} cannot follow {}", before.map_or("no record".to_owned(), |d| d.to_string()))]
pub struct OutOfOrder {
    /// What stood.
    pub before: Option<Decision>,
    /// What was to be recorded.
    pub decision: Decision,
}

/// The store remembers as many attempts as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("it already holds {} attempts", Memory::MOST)]
pub struct TooMany;

#[cfg(test)]
mod tests {
    use super::*;
    use Decision::{Prepared, Ran, Returned, Yielded};

    const ATTEMPT: AttemptId = AttemptId([7; 16]);

    fn recorded(decisions: &[Decision]) -> Result<Decision, StoreError> {
        let mut store = Memory::new().unwrap();
        let mut last = None;
        for decision in decisions {
            last = Some(store.record(ATTEMPT, *decision)?);
        }
        assert_eq!(store.read(ATTEMPT).unwrap(), last);
        Ok(last.unwrap())
    }

    #[test]
    fn a_guest_never_runs_and_returns() {
        assert_eq!(recorded(&[Prepared, Ran, Returned]).unwrap(), Ran);
        assert_eq!(recorded(&[Prepared, Returned, Ran]).unwrap(), Returned);
        assert_eq!(recorded(&[Returned, Ran]).unwrap(), Returned);
    }

    #[test]
    fn two_who_decide_at_once_obey_one_decision() {
        for _ in 0..64 {
            let mut store = Memory::new().unwrap();
            store.record(ATTEMPT, Prepared).unwrap();
            let heard = std::thread::scope(|scope| {
                let decide = |decision| {
                    let mut store = store.clone();
                    scope.spawn(move || store.record(ATTEMPT, decision).unwrap())
                };
                [decide(Ran), decide(Returned)].map(|thread| thread.join().unwrap())
            });
            assert_eq!(heard[0], heard[1]);
            assert_eq!(store.read(ATTEMPT).unwrap(), Some(heard[0]));
        }
    }

    #[test]
    fn a_guest_does_not_run_unprepared() {
        assert!(recorded(&[Ran]).is_err());
        assert!(recorded(&[Prepared, Ran, Prepared]).is_err());
        assert!(recorded(&[Returned, Prepared]).is_err());
    }

    #[test]
    fn a_source_that_yielded_does_not_run_again_by_itself() {
        assert_eq!(recorded(&[Yielded]).unwrap(), Yielded);
        assert_eq!(recorded(&[Yielded, Yielded]).unwrap(), Yielded);
        assert_eq!(recorded(&[Yielded, Returned]).unwrap(), Returned);
        assert!(recorded(&[Yielded, Ran]).is_err());
        assert!(recorded(&[Yielded, Prepared]).is_err());
        assert!(recorded(&[Prepared, Yielded]).is_err());
        assert!(recorded(&[Ran, Yielded]).is_err());
    }

    #[test]
    fn a_refused_record_changes_nothing_and_says_why() {
        let mut store = Memory::new().unwrap();
        store.record(ATTEMPT, Yielded).unwrap();
        let error = store.record(ATTEMPT, Ran).unwrap_err();
        assert_eq!(error.to_string(), "the decision store failed to record RAN");
        assert_eq!(error.source.to_string(), "RAN cannot follow YIELDED");
        assert_eq!(store.read(ATTEMPT).unwrap(), Some(Yielded));
    }

    #[test]
    fn stores_and_attempts_are_not_taken_for_one_another() {
        let (one, two) = (Memory::new().unwrap(), Memory::new().unwrap());
        assert_ne!(one.id(), two.id());
        assert_eq!(one.clone().id(), one.id());
        assert_ne!(crate::new_attempt().unwrap(), crate::new_attempt().unwrap());
    }

    #[test]
    fn a_mad_peer_cannot_fill_memory() {
        let mut store = Memory::new().unwrap();
        for n in 0..Memory::MOST as u128 {
            store.record(AttemptId(n.to_le_bytes()), Prepared).unwrap();
        }
        let one_more = AttemptId(u128::MAX.to_le_bytes());
        assert!(store.record(one_more, Prepared).is_err());
        assert_eq!(store.forget(AttemptId([0; 16])), Some(Prepared));
        store.record(one_more, Prepared).unwrap();
    }
}
