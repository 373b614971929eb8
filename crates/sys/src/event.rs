//! Counters that can be waited for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{FileType, fstat};

use crate::wait::{Interest, wait};

/// An eventfd(2): a 64-bit counter behind a descriptor, readable while it is not 0.
///
/// Interrupts travel as these: the device signals, the VMM takes.
#[derive(Debug)]
pub struct EventFd {
    fd: OwnedFd,
    /// Whether somebody else made it. They can have it block at any time, and a full
    /// counter would then stop us.
    foreign: bool,
}

impl EventFd {
    /// A new counter at 0, non-blocking, closed on exec.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<EventFd> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(EventFd { fd, foreign: false })
    }

    /// Takes over a descriptor that somebody else made, as it came.
    ///
    /// # Errors
    /// EINVAL where it is a file, a socket or a pipe and so cannot be an eventfd.
    pub fn from_fd(fd: OwnedFd) -> io::Result<EventFd> {
        // Anonymous inodes show no file type; writing to any of them but an eventfd
        // fails without harm, while a pipe or a file would silently take the bytes.
        if FileType::from_raw_mode(fstat(&fd)?.st_mode) != FileType::Unknown {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(EventFd { fd, foreign: true })
    }

    /// Adds `count` to the counter; 0 does nothing. Never blocks.
    ///
    /// # Errors
    /// `WouldBlock` where the counter is full (2^64 - 2), and whatever a descriptor
    /// that is no eventfd says.
    pub fn signal(&self, count: u64) -> io::Result<()> {
        if count == 0 {
            return Ok(());
        }
        // Whether it blocks is theirs to say, and to change: we ask first, each time.
        if self.foreign
            && !wait(self.fd.as_fd(), Interest::WRITE, Some(Duration::ZERO))?.writable
        {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        loop {
            match rustix::io::write(&self.fd, &count.to_ne_bytes()) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Takes the counter and leaves 0. Never blocks.
    ///
    /// # Errors
    /// Whatever a descriptor that is no eventfd says.
    pub fn take(&self) -> io::Result<u64> {
        if self.foreign
            && !wait(self.fd.as_fd(), Interest::READ, Some(Duration::ZERO))?.readable
        {
            return Ok(0);
        }
        let mut count = [0; 8];
        loop {
            match rustix::io::read(&self.fd, &mut count) {
                Ok(_) => return Ok(u64::from_ne_bytes(count)),
                Err(rustix::io::Errno::AGAIN) => return Ok(0),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Another descriptor of the same counter.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<EventFd> {
        Ok(EventFd { fd: self.fd.try_clone()?, foreign: self.foreign })
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<EventFd> for OwnedFd {
    fn from(event: EventFd) -> OwnedFd {
        event.fd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_added_up_and_taken_once() {
        let event = EventFd::new().unwrap();
        assert_eq!(event.take().unwrap(), 0);
        event.signal(0).unwrap();
        event.signal(3).unwrap();
        event.try_clone().unwrap().signal(4).unwrap();
        assert_eq!(event.take().unwrap(), 7);
        assert_eq!(event.take().unwrap(), 0);
    }

    #[test]
    fn a_full_counter_of_a_blocking_eventfd_does_not_hang_the_device() {
        let raw = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let event = EventFd::from_fd(raw).unwrap();
        assert_eq!(event.take().unwrap(), 0);
        event.signal(u64::MAX - 1).unwrap();
        assert_eq!(event.signal(1).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(event.take().unwrap(), u64::MAX - 1);
    }

    #[test]
    fn an_eventfd_that_its_owner_makes_blocking_later_does_not_hang_the_device() {
        let owner = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let event = EventFd::from_fd(owner.try_clone().unwrap()).unwrap();
        rustix::fs::fcntl_setfl(&owner, rustix::fs::OFlags::empty()).unwrap();
        event.signal(u64::MAX - 1).unwrap();
        // In a thread, which a test that fails leaves behind.
        let (done, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let full = event.signal(1).unwrap_err().kind();
            event.take().unwrap();
            done.send((full, event.take().unwrap())).unwrap();
        });
        let found = wait.recv_timeout(Duration::from_secs(20));
        assert_eq!(found, Ok((io::ErrorKind::WouldBlock, 0)));
    }

    #[test]
    fn a_pipe_a_socket_or_a_file_in_place_of_an_eventfd_is_refused() {
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        assert!(EventFd::from_fd(writer).is_err());
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(EventFd::from_fd(socket.into()).is_err());
        let file = tempfile::tempfile().unwrap();
        assert!(EventFd::from_fd(file.into()).is_err());
    }
}
