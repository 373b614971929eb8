//! Walks every path of a model, each state once.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::fmt::Debug;
use std::hash::{Hash, Hasher};

/// Something with states and moves between them.
pub(crate) trait Model: Clone + Debug {
    /// Every state that may come next. None where it has ended.
    fn next(&self) -> Vec<Self>;

    /// What is wrong with this state.
    fn wrong(&self) -> Option<String>;

    /// How it got here, for a failure.
    fn path(&self) -> &[String];

    /// What makes two states the same: everything but the path.
    fn key(&self) -> String;
}

/// Visits every state that is reached from `start`; returns how many there are.
///
/// # Panics
/// When one is wrong, or when there are more than `most`.
pub(crate) fn explore<M: Model>(start: M, most: usize) -> usize {
    let mut seen = HashSet::new();
    let mut open = vec![start];
    while let Some(state) = open.pop() {
        let mut hasher = DefaultHasher::new();
        state.key().hash(&mut hasher);
        if !seen.insert(hasher.finish()) {
            continue;
        }
        let wrong = state.wrong();
        let path = || state.path().join("\n  ");
        assert!(wrong.is_none(), "{}, after\n  {}", wrong.unwrap_or_default(), path());
        assert!(seen.len() <= most, "more than {most} states: {:#?}", state.path());
        open.extend(state.next());
    }
    seen.len()
}
