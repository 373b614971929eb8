//! Stops and starts the threads of the vCPUs, all together.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;

/// Where vCPU threads park. Starts out closed.
pub(super) struct Barrier {
    state: Mutex<State>,
    changed: Condvar,
    /// A copy of what `state` says, for the fast way through.
    open: AtomicBool,
}

struct State {
    open: bool,
    over: bool,
    threads: u32,
    parked: u32,
}

/// Not every vCPU stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{running} of {threads} vCPUs did not stop within {millis} ms")]
pub(super) struct StillRunning {
    running: u32,
    threads: u32,
    millis: u64,
}

impl Barrier {
    /// A closed barrier for that many threads.
    pub(super) fn new(threads: u32) -> Barrier {
        let state = State { open: false, over: false, threads, parked: 0 };
        Barrier {
            state: Mutex::new(state),
            changed: Condvar::new(),
            open: AtomicBool::new(false),
        }
    }

    /// A thread asks to go on, and is parked while it may not; then `woken` is called
    /// before it counts as running again. `false` when it is to end.
    pub(super) fn enter(&self, woken: impl FnOnce()) -> bool {
        if self.open.load(Ordering::Acquire) {
            return true;
        }
        let mut state = self.locked();
        state.parked += 1;
        self.changed.notify_all();
        while !state.open && !state.over {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        woken();
        state.parked -= 1;
        self.changed.notify_all();
        !state.over
    }

    /// A thread has nothing to do for that long, unless the barrier closes.
    pub(super) fn nap(&self, most: Duration) {
        let state = self.locked();
        if state.open && !most.is_zero() {
            let _woken = self.changed.wait_timeout(state, most);
        }
    }

    /// Closes it, and waits until every thread is parked.
    pub(super) fn close(&self, within: Duration) -> Result<(), StillRunning> {
        let until = Instant::now() + within;
        let mut state = self.locked();
        state.open = false;
        self.open.store(false, Ordering::Release);
        self.changed.notify_all();
        while state.parked < state.threads {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(StillRunning {
                    running: state.threads - state.parked,
                    threads: state.threads,
                    millis: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
                });
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Opens it, and waits until the threads that were parked go on: they may, whether
    /// or not that takes longer than `within`.
    pub(super) fn open(&self, within: Duration) {
        let until = Instant::now() + within;
        let mut state = self.locked();
        state.open = true;
        self.open.store(true, Ordering::Release);
        self.changed.notify_all();
        while state.parked > 0 && !state.over {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether it is open.
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Ends all threads.
    pub(super) fn end(&self) {
        let mut state = self.locked();
        state.over = true;
        state.open = false;
        self.open.store(false, Ordering::Release);
        self.changed.notify_all();
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn nobody_runs_between_a_pause_and_the_next_resume() {
        let barrier = Barrier::new(3);
        let steps = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while barrier.enter(|| ()) {
                        steps.fetch_add(1, Ordering::Relaxed);
                        barrier.nap(LONG);
                    }
                });
            }
            for round in 0..200 {
                barrier.open(LONG);
                if round % 2 == 0 {
                    while steps.load(Ordering::Relaxed) < round {
                        std::thread::yield_now();
                    }
                }
                barrier.close(LONG).unwrap();
                let before = steps.load(Ordering::Relaxed);
                std::thread::yield_now();
                assert_eq!(steps.load(Ordering::Relaxed), before);
            }
            barrier.end();
        });
    }

    #[test]
    fn a_vcpu_that_does_not_stop_is_an_error_and_no_hang() {
        let barrier = Barrier::new(1);
        barrier.open(Duration::ZERO);
        let error = barrier.close(Duration::from_millis(1)).unwrap_err();
        assert!(error.to_string().contains("1 of 1 vCPUs"), "{error}");
        assert!(!barrier.is_open());
    }
}
