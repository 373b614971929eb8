//! A limit to how fast all data connections together may send.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How fast all connections that share it may send together. Clones share it; it can be
/// changed at any time, from any thread.
///
/// It is one queue of turns: whoever wants to send gets a piece of at most 50 ms' worth
/// (and at most 256 KiB) and waits until its turn has come, so that no connection is
/// kept out by others. What was not used counts for 50 ms: no burst is longer than
/// 100 ms' worth. A change is in force after the turns that were given out, which is at
/// most 50 ms for each connection.
///
/// ```
/// use std::time::Duration;
/// use vfio_migrate_link::{RateLimit, dial, listen};
///
/// let second = Duration::from_secs(1);
/// let listener = listen(&"tcp:127.0.0.1:0".parse()?)?;
/// let limit = RateLimit::new(Some(100 << 20)); // 100 MiB/s, over all data connections
/// let (control, data) = dial(listener.local(), second)?;
/// let data = data.limited(&limit); // control is never limited
/// limit.set(None); // and from now on, neither is this
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct RateLimit(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    turns: Mutex<Turns>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Turns {
    /// Bytes a second.
    rate: Option<u64>,
    /// When everything that was given out so far is sent.
    free: Option<Instant>,
}

/// The longest piece, in time.
const TURN: Duration = Duration::from_millis(50);

/// The longest piece, in bytes.
const MOST: u64 = 256 << 10;

impl RateLimit {
    /// The lowest limit, in bytes a second. With less, one frame could take longer than
    /// a peer waits for it.
    pub const LEAST: u64 = 64 << 10;

    /// A limit in bytes a second, at least [`RateLimit::LEAST`] (less is taken for that);
    /// `None` does not limit until it is [set](RateLimit::set).
    pub fn new(bytes_per_second: Option<u64>) -> RateLimit {
        let limit = RateLimit::default();
        limit.set(bytes_per_second);
        limit
    }

    /// Another limit, or none, from now on.
    pub fn set(&self, bytes_per_second: Option<u64>) {
        let mut turns = self.lock();
        turns.rate = bytes_per_second.map(|rate| rate.max(RateLimit::LEAST));
        if turns.rate.is_none() {
            turns.free = None;
        }
        drop(turns);
        self.0.changed.notify_all();
    }

    /// The limit in force, in bytes a second.
    pub fn get(&self) -> Option<u64> {
        self.lock().rate
    }

    /// Waits for a turn to send some of `bytes`, and says how many; `None` once `ended`
    /// says that the connection was closed.
    pub(crate) fn take(&self, bytes: usize, ended: &AtomicBool) -> Option<usize> {
        let mut turns = self.lock();
        let (piece, start) = turns.give(bytes, Instant::now());
        loop {
            if ended.load(Ordering::Acquire) {
                return None;
            }
            let left = start.saturating_duration_since(Instant::now());
            // A limit that was taken away is not waited for.
            if left.is_zero() || turns.rate.is_none() {
                return Some(piece);
            }
            let waited = self.0.changed.wait_timeout(turns, left);
            turns = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Makes those look up who wait for a turn of a connection that ended.
    pub(crate) fn wake(&self) {
        // With the lock held, nobody is between looking and waiting.
        drop(self.lock());
        self.0.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Turns> {
        // Every change is a single assignment, so a panic elsewhere leaves it whole.
        self.0.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turns {
    /// Gives out the next turn: how many bytes, and when they may go.
    fn give(&mut self, bytes: usize, now: Instant) -> (usize, Instant) {
        let Some(rate) = self.rate else { return (bytes, now) };
        let worth = (rate / 1000).saturating_mul(TURN.as_millis() as u64);
        let most = usize::try_from(worth.clamp(1, MOST)).unwrap_or(usize::MAX);
        let piece = bytes.min(most);
        let earliest = now.checked_sub(TURN).unwrap_or(now);
        let start = self.free.map_or(now, |free| free.max(earliest));
        self.free = Some(start + Duration::from_secs_f64(piece as f64 / rate as f64));
        (piece, start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEGA: u64 = 1_000_000;

    /// Sends `bytes` as fast as the turns allow, on a clock of its own.
    fn send(turns: &mut Turns, mut bytes: usize, from: Instant) -> (Instant, usize) {
        let (mut now, mut longest) = (from, 0);
        while bytes > 0 {
            let (piece, start) = turns.give(bytes, now);
            (now, bytes, longest) = (now.max(start), bytes - piece, longest.max(piece));
        }
        (now, longest)
    }

    fn turns(rate: u64) -> Turns {
        Turns { rate: Some(rate.max(RateLimit::LEAST)), free: None }
    }

    #[test]
    fn a_second_at_a_limit_carries_a_second_of_bytes() {
        for rate in [RateLimit::LEAST, 300_000, MEGA, 40 * MEGA, 2000 * MEGA] {
            let from = Instant::now();
            let (end, longest) = send(&mut turns(rate), 2 * rate as usize, from);
            let took = end.duration_since(from).as_secs_f64();
            assert!((1.9..=2.0).contains(&took), "{rate}: {took}");
            assert!(longest as u64 <= (rate / 20).min(MOST), "{rate}: {longest}");
        }
    }

    #[test]
    fn a_connection_that_was_silent_does_not_flood() {
        let (mut turns, from) = (turns(MEGA), Instant::now());
        send(&mut turns, 1000, from);
        let later = from + Duration::from_secs(100);
        let (end, _) = send(&mut turns, MEGA as usize / 2, later);
        // Half a second's worth, of which 50 ms were saved and 50 ms are the first turn.
        assert!(end.duration_since(later) >= Duration::from_millis(399));
    }

    #[test]
    fn a_limit_that_is_too_low_is_not_for_ever() {
        assert_eq!(RateLimit::new(Some(0)).get(), Some(RateLimit::LEAST));
        assert_eq!(RateLimit::new(Some(u64::MAX)).get(), Some(u64::MAX));
        let turn = Turns { rate: Some(u64::MAX), free: None }.give(10, Instant::now());
        assert_eq!(turn.0, 10);
        assert_eq!(RateLimit::new(None).get(), None);
    }
}
