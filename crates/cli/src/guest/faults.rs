//! What the guest finds wrong while it works.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// The most faults that are kept with their text.
const FAULTS_KEPT: usize = 32;

/// What the guest found wrong with what it read.
#[derive(Debug, Default)]
pub(super) struct Faults {
    count: AtomicU64,
    texts: Mutex<Vec<String>>,
}

impl Faults {
    /// One more.
    pub(super) fn add(&self, text: impl FnOnce() -> String) {
        if self.count.fetch_add(1, Ordering::Relaxed) < FAULTS_KEPT as u64 {
            let text = text();
            tracing::error!(text, "the guest found a fault");
            self.texts.lock().unwrap_or_else(PoisonError::into_inner).push(text);
        }
    }

    /// How many.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The first of them.
    pub(super) fn texts(&self) -> Vec<String> {
        self.texts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
