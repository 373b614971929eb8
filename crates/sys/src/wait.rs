//! Waiting for descriptors and for the time, always with an end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create,
    timerfd_settime,
};

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// Until it can be read, or the other end is gone.
    pub readable: bool,
    /// Until it can be written.
    pub writable: bool,
}

impl Interest {
    /// Nothing: disarmed, though an error or a hang-up is still told.
    pub const NONE: Interest = Interest { readable: false, writable: false };
    /// Reading.
    pub const READ: Interest = Interest { readable: true, writable: false };
    /// Writing.
    pub const WRITE: Interest = Interest { readable: false, writable: true };
    /// Both.
    pub const BOTH: Interest = Interest { readable: true, writable: true };
}

/// What a descriptor can do now. An error or a hang-up counts as both, so that the next
/// call on the descriptor tells what it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// A read would not block.
    pub readable: bool,
    /// A write would not block.
    pub writable: bool,
}

impl Readiness {
    /// Whether anything is ready.
    pub fn any(self) -> bool {
        self.readable || self.writable
    }
}

/// Waits for one descriptor, at most `timeout` (`None`: for ever). Nothing is ready in
/// the result where the time ran out.
///
/// # Errors
/// What poll(2) says.
pub fn wait(
    fd: BorrowedFd<'_>,
    interest: Interest,
    timeout: Option<Duration>,
) -> io::Result<Readiness> {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN, interest.readable);
    flags.set(PollFlags::OUT, interest.writable);
    let mut fds = [PollFd::from_borrowed_fd(fd, flags)];
    poll_until(&mut fds, timeout)?;
    Ok(readiness(fds[0].revents()))
}

/// Waits until one of `fds` can be read (or its other end is gone), at most `timeout`.
/// Says for each whether it can; none can where the time ran out.
///
/// # Errors
/// What poll(2) says.
pub fn wait_readable(fds: &[BorrowedFd<'_>], timeout: Duration) -> io::Result<Vec<bool>> {
    let mut polled: Vec<PollFd<'_>> =
        fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    poll_until(&mut polled, Some(timeout))?;
    Ok(polled.iter().map(|fd| !fd.revents().is_empty()).collect())
}

/// Polls on through signals, without losing count of the time.
fn poll_until(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<()> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut left = timeout;
    loop {
        let limit = match deadline {
            Some(_) => left.map(timespec),
            None => None,
        };
        match poll(fds, limit.as_ref()) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {
                left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

fn readiness(flags: PollFlags) -> Readiness {
    let broken = flags.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
    Readiness {
        readable: broken || flags.contains(PollFlags::IN),
        writable: broken || flags.contains(PollFlags::OUT),
    }
}

/// An epoll(7) set: descriptors by keys of the caller's choice. It is itself a
/// descriptor that is readable while one of them is ready, which is how a whole event
/// loop fits inside another.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

/// How many events one [`Epoll::wait`] gives at most.
const EVENTS: usize = 8;

/// The longest single wait of an [`Epoll`] that is not for ever.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Epoll {
    /// An empty set.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Epoll> {
        Ok(Epoll(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Adds a descriptor. It leaves the set by itself when its last copy is closed.
    ///
    /// # Errors
    /// EEXIST where it is in the set already.
    pub fn add(&self, fd: impl AsFd, key: u64, interest: Interest) -> io::Result<()> {
        let data = epoll::EventData::new_u64(key);
        Ok(epoll::add(&self.0, fd, data, flags(interest))?)
    }

    /// Changes what to wait for.
    ///
    /// # Errors
    /// ENOENT where it is not in the set.
    pub fn modify(&self, fd: impl AsFd, key: u64, interest: Interest) -> io::Result<()> {
        let data = epoll::EventData::new_u64(key);
        Ok(epoll::modify(&self.0, fd, data, flags(interest))?)
    }

    /// Takes a descriptor out.
    ///
    /// # Errors
    /// ENOENT where it is not in the set.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.0, fd)?)
    }

    /// Waits at most `timeout` (`None`: for ever) and gives what is ready: keys and
    /// readiness, up to eight at once. Empty where the time ran out or a signal came.
    ///
    /// # Errors
    /// What `epoll_wait(2)` says.
    pub fn wait(
        &self,
        timeout: Option<Duration>,
    ) -> io::Result<impl Iterator<Item = (u64, Readiness)> + use<>> {
        // Older kernels count in 32-bit milliseconds; waking once a day costs nothing.
        let limit = timeout.map(|timeout| timespec(timeout.min(DAY)));
        let mut events: [std::mem::MaybeUninit<epoll::Event>; EVENTS] =
            [const { std::mem::MaybeUninit::uninit() }; EVENTS];
        let ready = match epoll::wait(&self.0, &mut events[..], limit.as_ref()) {
            Ok((ready, _)) => ready,
            Err(rustix::io::Errno::INTR) => &mut [],
            Err(errno) => return Err(errno.into()),
        };
        let mut found = [(0, Readiness::default()); EVENTS];
        for (slot, event) in found.iter_mut().zip(ready.iter()) {
            let flags = event.flags;
            let broken =
                flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
            *slot = (
                event.data.u64(),
                Readiness {
                    readable: broken || flags.contains(epoll::EventFlags::IN),
                    writable: broken || flags.contains(epoll::EventFlags::OUT),
                },
            );
        }
        let count = ready.len();
        Ok(found.into_iter().take(count))
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn flags(interest: Interest) -> epoll::EventFlags {
    let mut flags = epoll::EventFlags::empty();
    flags.set(epoll::EventFlags::IN, interest.readable);
    flags.set(epoll::EventFlags::OUT, interest.writable);
    flags
}

/// A timerfd: readable once its time has come, until it is set again.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Timer> {
        Ok(Timer(timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?))
    }

    /// Sets it to become readable after `delay`, or never. What it said before is
    /// forgotten.
    ///
    /// # Errors
    /// What `timerfd_settime(2)` says.
    pub fn set(&self, delay: Option<Duration>) -> io::Result<()> {
        let value = match delay {
            // A zero would disarm it.
            Some(delay) => timespec(delay.max(Duration::from_nanos(1))),
            None => timespec(Duration::ZERO),
        };
        let spec = Itimerspec { it_interval: timespec(Duration::ZERO), it_value: value };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &spec)?;
        Ok(())
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::event::EventFd;

    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn a_wait_names_the_descriptor_that_is_ready_and_ends_where_none_is() {
        let quiet = EventFd::new().unwrap();
        let loud = EventFd::new().unwrap();
        loud.signal(1).unwrap();
        assert_eq!(
            wait_readable(&[quiet.as_fd(), loud.as_fd()], SOON).unwrap(),
            [false, true]
        );
        assert_eq!(
            wait_readable(&[quiet.as_fd()], Duration::from_millis(1)).unwrap(),
            [false]
        );
    }

    #[test]
    fn a_hang_up_ends_a_wait_for_reading() {
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        let ready = wait(near.as_fd(), Interest::READ, Some(SOON)).unwrap();
        assert!(ready.readable);
    }

    #[test]
    fn a_disarmed_descriptor_is_silent_until_armed_again() {
        let epoll = Epoll::new().unwrap();
        let event = EventFd::new().unwrap();
        epoll.add(&event, 7, Interest::NONE).unwrap();
        event.signal(1).unwrap();
        assert_eq!(epoll.wait(Some(Duration::ZERO)).unwrap().count(), 0);
        epoll.modify(&event, 8, Interest::READ).unwrap();
        let found: Vec<_> = epoll.wait(Some(SOON)).unwrap().collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, 8);
        epoll.remove(&event).unwrap();
        assert_eq!(epoll.wait(Some(Duration::ZERO)).unwrap().count(), 0);
    }

    #[test]
    fn a_timer_comes_and_is_forgotten_when_set_again() {
        let timer = Timer::new().unwrap();
        timer.set(Some(Duration::ZERO)).unwrap();
        assert!(wait(timer.as_fd(), Interest::READ, Some(SOON)).unwrap().readable);
        timer.set(None).unwrap();
        assert!(
            !wait(timer.as_fd(), Interest::READ, Some(Duration::ZERO)).unwrap().any()
        );
    }
}
