//! One socket as a stream of messages, for both ends.
//!
//! ```text
//!   recvmsg --> [buffer 16 KiB] --> header --> body, copied
//!      |  `---------------------------------> the rest of a large body, straight
//!      |                                       into the memory it is for
//!      `- descriptors --> the message that they came with
//! ```
//!
//! A small message costs one receive, whatever it is made of; of a large one only what
//! shared a receive with its header is copied twice. Sending is one vectored sendmsg.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{BorrowedFd, OwnedFd};

use abi::vfio_user::Header;
use sys::socket;
use thiserror::Error;

use crate::codec::{HEADER, parse_header};

/// Bytes taken from the socket at once where no body is under way.
const BUFFER: usize = 16 * 1024;

/// Messages up to this length are sent in one part, in bytes.
const SHORT: usize = 128;

/// Whether a receive waits (as long as the socket's own time limit says) or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Wait,
    Poll,
}

/// A connection that cannot go on.
#[derive(Debug, Error)]
pub enum StreamError {
    /// The other end closed it.
    #[error("the peer closed the connection")]
    Closed,
    /// The socket failed.
    #[error("the socket failed")]
    Io(#[from] io::Error),
    /// A message says that it is shorter than a header or longer than agreed, so
    /// nobody knows where the next one starts.
    #[error("a message of {} bytes, where 16 to {limit} are possible", header.msg_size)]
    Size {
        /// The header of that message.
        header: Header,
        /// The longest message possible, in bytes.
        limit: usize,
    },
}

/// The receiving half.
#[derive(Debug)]
pub(crate) struct Receiver {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// How many bytes of the stream came before `buffer[start]`.
    position: u64,
    rights: VecDeque<Rights>,
    max_fds: usize,
    /// The longest message, header included.
    limit: usize,
}

/// Descriptors, with the stretch of the stream that the same receive returned. They
/// belong to the last message that starts in it (see [`sys::socket`]).
#[derive(Debug)]
struct Rights {
    from: u64,
    to: u64,
    fds: Vec<OwnedFd>,
}

impl Receiver {
    pub(crate) fn new(max_fds: usize, limit: usize) -> Receiver {
        Receiver {
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            position: 0,
            rights: VecDeque::new(),
            max_fds,
            limit,
        }
    }

    /// Messages may be longer, or have to be shorter, from the next one on.
    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Whether received bytes wait to be looked at.
    pub(crate) fn has_buffered(&self) -> bool {
        self.start < self.end
    }

    /// Whether a whole header has been received.
    pub(crate) fn has_header(&self) -> bool {
        self.end - self.start >= HEADER
    }

    /// The next message's header and descriptors; `None` where not enough has come.
    /// All of its body has to be taken before the next one is asked for.
    pub(crate) fn header(
        &mut self,
        fd: BorrowedFd<'_>,
        mode: Mode,
    ) -> Result<Option<(Header, Vec<OwnedFd>)>, StreamError> {
        if !self.has_header() {
            // Once only: it may come byte by byte, and the caller has a deadline.
            self.fill(fd, mode)?;
            if !self.has_header() {
                return Ok(None);
            }
        }
        let bytes = self.buffer[self.start..]
            .first_chunk::<HEADER>()
            .expect("a whole header is in the buffer");
        let header = parse_header(bytes);
        let size = header.msg_size as usize;
        if size < HEADER || size > self.limit {
            return Err(StreamError::Size { header, limit: self.limit });
        }
        let fds = self.claim(self.position, self.position + size as u64);
        self.consume(HEADER);
        Ok(Some((header, fds)))
    }

    /// Takes bytes of the body that is under way; how many. 0 where none have come.
    pub(crate) fn body(
        &mut self,
        fd: BorrowedFd<'_>,
        into: &mut [u8],
        mode: Mode,
    ) -> Result<usize, StreamError> {
        if self.has_buffered() {
            let len = into.len().min(self.end - self.start);
            into[..len].copy_from_slice(&self.buffer[self.start..self.start + len]);
            self.consume(len);
            return Ok(len);
        }
        // Descriptors in the middle of a message belong to nobody.
        let mut surplus = Vec::new();
        let len = self.receive(fd, mode, Some(into), &mut surplus)?;
        self.position += len as u64;
        Ok(len)
    }

    /// Receives into the buffer behind what is there, once.
    fn fill(&mut self, fd: BorrowedFd<'_>, mode: Mode) -> Result<(), StreamError> {
        if self.start > 0 {
            // At most the beginning of a header.
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let mut fds = Vec::new();
        let len = self.receive(fd, mode, None, &mut fds)?;
        let from = self.position + self.end as u64;
        if !fds.is_empty() {
            self.rights.push_back(Rights { from, to: from + len as u64, fds });
        }
        self.end += len;
        Ok(())
    }

    /// One receive, into `into` or the buffer. 0 where nothing has come.
    fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        mode: Mode,
        into: Option<&mut [u8]>,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<usize, StreamError> {
        let into = match into {
            Some(into) => into,
            None => &mut self.buffer[self.end..],
        };
        match socket::recv_with_fds(fd, into, self.max_fds, fds, mode == Mode::Poll) {
            Ok(0) => Err(StreamError::Closed),
            Ok(len) => Ok(len),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                Err(StreamError::Closed)
            }
            Err(error) => Err(StreamError::Io(error)),
        }
    }

    fn consume(&mut self, len: usize) {
        self.start += len;
        self.position += len as u64;
    }

    /// The descriptors of the message from `start` to `end`.
    fn claim(&mut self, start: u64, end: u64) -> Vec<OwnedFd> {
        while self.rights.front().is_some_and(|rights| rights.to <= start) {
            self.rights.pop_front();
        }
        match self.rights.front() {
            Some(rights) if rights.from <= start && rights.to <= end => {
                self.rights.pop_front().map(|rights| rights.fds).unwrap_or_default()
            }
            _ => Vec::new(),
        }
    }
}

/// Sends what is left of a message after its first `sent` bytes, without waiting, and
/// says how many bytes have been sent then. Descriptors go with the first byte.
pub(crate) fn send(
    fd: BorrowedFd<'_>,
    head: &[u8],
    tail: &[u8],
    fds: &[BorrowedFd<'_>],
    sent: usize,
) -> io::Result<usize> {
    let fds = if sent == 0 { fds } else { &[] };
    let in_tail = sent.saturating_sub(head.len()).min(tail.len());
    let (head, tail) = (&head[sent.min(head.len())..], &tail[in_tail..]);
    let mut joined = [0; SHORT];
    let taken = if let Some(joined) = joined.get_mut(..head.len() + tail.len()) {
        // Copying a few bytes costs less than a second part.
        joined[..head.len()].copy_from_slice(head);
        joined[head.len()..].copy_from_slice(tail);
        socket::send_with_fds(fd, &[IoSlice::new(joined)], fds, true)?
    } else {
        let parts = [IoSlice::new(head), IoSlice::new(tail)];
        socket::send_with_fds(fd, &parts, fds, true)?
    };
    Ok(sent + taken)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use abi::vfio_user::Command;
    use sys::EventFd;

    use super::*;
    use crate::codec::{Head, Message};

    fn message(id: u16, body: &[u8]) -> Vec<u8> {
        Message::new(Head::command(id, Command::REGION_WRITE), body).bytes()
    }

    fn sockets() -> (UnixStream, UnixStream, Receiver) {
        let (near, far) = UnixStream::pair().unwrap();
        (near, far, Receiver::new(4, 1 << 20))
    }

    /// The next message, which has come in full: its id, body and descriptors.
    fn next(receiver: &mut Receiver, socket: &UnixStream) -> (u16, Vec<u8>, usize) {
        let fd = socket.as_fd();
        let (header, fds) = receiver.header(fd, Mode::Poll).unwrap().unwrap();
        let mut body = vec![0; header.msg_size as usize - HEADER];
        let mut filled = 0;
        while filled < body.len() {
            let more = receiver.body(fd, &mut body[filled..], Mode::Poll).unwrap();
            assert!(more > 0);
            filled += more;
        }
        (header.msg_id, body, fds.len())
    }

    #[test]
    fn descriptors_find_the_message_they_came_with_among_many() {
        let (mut near, far, mut receiver) = sockets();
        let event = EventFd::new().unwrap();
        let with = |socket: &UnixStream, id, body: &[u8], count: usize| {
            let fds = vec![event.as_fd(); count];
            let head = Head::command(id, Command::DMA_MAP);
            let message = Message::new(head, body);
            let sent = send(socket.as_fd(), message.head.as_bytes(), body, &fds, 0);
            assert_eq!(sent.unwrap(), message.size());
        };
        near.write_all(&message(1, b"one")).unwrap();
        near.write_all(&message(2, b"two")).unwrap();
        with(&near, 3, b"three", 2);
        near.write_all(&message(4, b"four")).unwrap();
        with(&near, 5, &[5; 50_000], 1);
        with(&near, 6, b"", 3);
        near.write_all(&message(7, b"")).unwrap();
        let found: Vec<_> = (1..=7)
            .map(|_| next(&mut receiver, &far))
            .map(|(id, body, fds)| (id, body.len(), fds))
            .collect();
        assert_eq!(
            found,
            [
                (1, 3, 0),
                (2, 3, 0),
                (3, 5, 2),
                (4, 4, 0),
                (5, 50_000, 1),
                (6, 0, 3),
                (7, 0, 0)
            ]
        );
        assert!(!receiver.has_buffered());
    }

    #[test]
    fn descriptors_in_the_middle_of_a_message_belong_to_nobody() {
        let (mut near, far, mut receiver) = sockets();
        let event = EventFd::new().unwrap();
        let bytes = message(1, &[1; 100]);
        near.write_all(&bytes[..40]).unwrap();
        let (fd, mut body) = (far.as_fd(), vec![0; 100]);
        let (_, fds) = receiver.header(fd, Mode::Poll).unwrap().unwrap();
        assert!(fds.is_empty());
        assert_eq!(receiver.body(fd, &mut body, Mode::Poll).unwrap(), 24);
        let parts = [IoSlice::new(&bytes[40..])];
        socket::send_with_fds(&near, &parts, &[event.as_fd()], true).unwrap();
        near.write_all(&message(2, b"next")).unwrap();
        assert_eq!(receiver.body(fd, &mut body[24..], Mode::Poll).unwrap(), 76);
        assert_eq!(next(&mut receiver, &far), (2, b"next".to_vec(), 0));
    }

    #[test]
    fn a_header_that_comes_byte_by_byte_is_waited_for() {
        let (mut near, far, mut receiver) = sockets();
        let bytes = message(1, b"body");
        for byte in &bytes[..HEADER - 1] {
            near.write_all(&[*byte]).unwrap();
            assert!(receiver.header(far.as_fd(), Mode::Poll).unwrap().is_none());
        }
        near.write_all(&bytes[HEADER - 1..]).unwrap();
        assert_eq!(next(&mut receiver, &far), (1, b"body".to_vec(), 0));
        drop(near);
        let end = receiver.header(far.as_fd(), Mode::Poll);
        assert!(matches!(end, Err(StreamError::Closed)));
    }

    #[test]
    fn a_size_that_cannot_be_is_told_with_its_header() {
        for size in [0_u32, 15, (1 << 20) + 1, u32::MAX] {
            let (mut near, far, mut receiver) = sockets();
            let mut bytes = message(7, &[]);
            bytes[4..8].copy_from_slice(&size.to_ne_bytes());
            near.write_all(&bytes).unwrap();
            match receiver.header(far.as_fd(), Mode::Poll) {
                Err(StreamError::Size { header, .. }) => assert_eq!(header.msg_id, 7),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_message_goes_on_where_the_socket_was_full() {
        let (near, far, mut receiver) = sockets();
        let head = Head::command(3, Command::REGION_WRITE);
        let body: Vec<u8> = (0..1_000_000_u32).map(|n| n as u8).collect();
        let message = Message::new(head, &body[..]);
        let mut sent = 0;
        let mut got = None;
        let mut back = vec![0; body.len()];
        let mut filled = 0;
        let mut full = 0;
        while filled < back.len() {
            while sent < message.size() {
                match send(near.as_fd(), message.head.as_bytes(), &body, &[], sent) {
                    Ok(so_far) => sent = so_far,
                    Err(error) => {
                        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                        full += 1;
                        break;
                    }
                }
            }
            if got.is_none() {
                got = receiver.header(far.as_fd(), Mode::Poll).unwrap();
            }
            filled +=
                receiver.body(far.as_fd(), &mut back[filled..], Mode::Poll).unwrap();
        }
        assert!(full > 0 && back == body);
    }
}
