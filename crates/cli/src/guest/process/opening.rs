//! The time before a snapshot: its file may have to wait for whoever reads it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Result;

use super::Guest;
use crate::guest::token::{Command, Refusal};

/// The file of a snapshot is being opened, and nobody opens another meanwhile. The guest
/// is not touched yet.
pub(in crate::guest) struct Opening<'a> {
    guest: &'a Guest,
    /// Set once it is cancelled.
    pub(in crate::guest) unless: Arc<AtomicBool>,
}

impl Guest {
    /// A snapshot is about to open its file: `cancel` sets the flag while the result
    /// lives.
    pub(in crate::guest) fn opening(&self) -> Result<Opening<'_>> {
        let mut inner = self.locked();
        self.permit(&inner, Command::Snapshot)?;
        if inner.opening.is_some() {
            return Err(Refusal::Copying.into());
        }
        let unless = Arc::<AtomicBool>::default();
        inner.opening = Some(Arc::clone(&unless));
        Ok(Opening { guest: self, unless })
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.guest.locked().opening = None;
    }
}
