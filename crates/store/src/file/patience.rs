//! Waiting: with an end, and with somebody who may end it sooner.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use port::ChannelError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// How long a pipe may be silent, until somebody says otherwise.
const DEADLINE: Duration = Duration::from_secs(30);

/// How long the flag is not looked at.
const LOOK: Duration = Duration::from_millis(50);

/// How long to wait for others, and the flag that ends every wait.
#[derive(Debug)]
pub(super) struct Patience {
    pub(super) deadline: Duration,
    cancel: Arc<AtomicBool>,
}

impl Patience {
    pub(super) fn new(cancel: &Arc<AtomicBool>) -> Patience {
        Patience { deadline: DEADLINE, cancel: Arc::clone(cancel) }
    }

    /// Whether it is still wanted.
    pub(super) fn check(&self) -> Result<(), ChannelError> {
        if self.cancel.load(Ordering::Acquire) {
            return Err(ChannelError::Cancelled);
        }
        Ok(())
    }

    /// Waits until the file can do that, or its other end is gone.
    pub(super) fn wait(&self, file: &File, what: PollFlags) -> Result<(), ChannelError> {
        self.until(|slice| {
            let slice = Timespec::try_from(slice).ok();
            match poll(&mut [PollFd::new(file, what)], slice.as_ref()) {
                Ok(0) | Err(Errno::INTR) => Ok(None),
                Ok(_) => Ok(Some(())),
                Err(errno) => Err(ChannelError::Io(errno.into())),
            }
        })
    }

    /// Asks again and again until there is something, or the time is over. One question
    /// takes at most the time that it is given.
    pub(super) fn until<T>(
        &self,
        mut ask: impl FnMut(Duration) -> Result<Option<T>, ChannelError>,
    ) -> Result<T, ChannelError> {
        let began = Instant::now();
        loop {
            self.check()?;
            let left = self.deadline.saturating_sub(began.elapsed());
            if let Some(found) = ask(left.min(LOOK))? {
                return Ok(found);
            }
            if left.is_zero() {
                let millis = u64::try_from(self.deadline.as_millis()).unwrap_or(u64::MAX);
                return Err(ChannelError::TimedOut(millis));
            }
        }
    }
}
