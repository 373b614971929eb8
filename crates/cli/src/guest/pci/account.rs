//! The guest's own account of when a vector was masked, and of what came then.
//!
//! ```text
//!   asked   mask   asked . . . . masked . . . .   asked   unmask   asked
//!     |              |--- came while masked ------->|                |
//!     |----------- may have come while masked ---------------------->|
//! ```
//!
//! Whoever stands between device and guest counts those times too, and makes one interrupt
//! of all that came in one. Who delivers something twice and says that it was masked once
//! more has sums that are whole; but it was the guest that masked the vector, so it knows
//! what there can have been. It asks the device what it has sent on both sides of every
//! change: only what comes right then is not known to the last one.

use serde::{Deserialize, Serialize};

use crate::guest::digests::Own;

/// How often a vector was masked and something came, as far as its guest knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Account {
    /// It is masked.
    closed: Option<Asked>,
    /// Its device could not be asked once: nothing is known.
    blind: bool,
    /// Without the time that still lasts.
    own: Own,
}

/// What the device had sent, right before and right after a change; `None` for a device
/// that cannot be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    pub(super) before: Option<u64>,
    pub(super) after: Option<u64>,
}

impl Asked {
    /// Of a device that does nothing any more, so that before is after.
    fn at_rest(sent: Option<u64>) -> Asked {
        Asked { before: sent, after: sent }
    }

    /// What came from then until `end`: as little and as much as it can have been.
    fn came(self, end: Asked) -> Option<(u64, u64)> {
        let least = end.before?.saturating_sub(self.after?);
        Some((least, end.after?.saturating_sub(self.before?)))
    }
}

impl Account {
    /// It was masked.
    pub(super) fn close(&mut self, asked: Asked) {
        self.closed = Some(asked);
    }

    /// It is masked no more; whether something surely came meanwhile.
    pub(super) fn open(&mut self, asked: Asked) -> bool {
        let Some(began) = self.closed.take() else { return false };
        let Some((least, most)) = began.came(asked) else {
            self.blind = true;
            return false;
        };
        // All that came at one time is one interrupt.
        let add = |sum: &mut (u64, u64), of: fn(u64) -> u64| {
            *sum = (sum.0.saturating_add(of(least)), sum.1.saturating_add(of(most)));
        };
        add(&mut self.own.windows, |came| came.min(1));
        add(&mut self.own.swallowed, |came| came.saturating_sub(1));
        least > 0
    }

    /// What there can have been until now, of a device that is stopped and has sent so
    /// much.
    pub(super) fn own(mut self, sent: Option<u64>) -> Own {
        self.open(Asked::at_rest(sent));
        if self.blind { Own::ANY } else { self.own }
    }

    /// Whether it could be one.
    pub(super) fn fits(&self, most: u64) -> bool {
        let Own { windows, swallowed } = self.own;
        [windows, swallowed].iter().all(|(low, high)| low <= high && *high <= most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(before: u64, after: u64) -> Asked {
        Asked { before: Some(before), after: Some(after) }
    }

    #[test]
    fn a_time_in_which_nothing_came_is_one() {
        let mut account = Account::default();
        for (masked, unmasked, surely, windows, swallowed) in [
            // Nothing, something, and something at its edges, which may be outside.
            (asked(3, 3), asked(3, 3), false, (0, 0), (0, 0)),
            (asked(3, 3), asked(4, 4), true, (1, 1), (0, 0)),
            (asked(4, 5), asked(5, 5), false, (1, 2), (0, 0)),
            (asked(5, 5), asked(5, 6), false, (1, 3), (0, 0)),
            (asked(6, 7), asked(8, 9), true, (2, 4), (0, 2)),
            (asked(9, 9), asked(14, 14), true, (3, 5), (4, 6)),
        ] {
            account.close(masked);
            assert_eq!(account.open(unmasked), surely);
            assert_eq!(account.own(unmasked.after), Own { windows, swallowed });
        }
        // The one that lasts, with the device stopped.
        account.close(asked(14, 14));
        assert_eq!(account.own(Some(14)).windows, (3, 5));
        assert_eq!(account.own(Some(16)), Own { windows: (4, 6), swallowed: (5, 7) });
        assert!(account.fits(6) && !account.fits(5));
    }

    #[test]
    fn a_device_that_cannot_be_asked_is_believed_to_have_sent_nothing() {
        let nothing = Asked::at_rest(None);
        let mut account = Account::default();
        account.close(nothing);
        assert!(!account.open(nothing));
        assert_eq!(account.own(None), Own::ANY);
        assert!(account.fits(0));
    }
}
