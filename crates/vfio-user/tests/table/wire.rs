//! One end of a connection, as bytes and descriptors.

use std::io::{ErrorKind, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long anything may take before a row fails.
const SOON: Duration = Duration::from_secs(5);

/// Bytes of a header.
pub const HEADER: usize = 16;

/// Flags of a header.
pub const REPLY: u32 = 1;
pub const NO_REPLY: u32 = 0x10;
pub const ERROR: u32 = 0x20;

/// A message, as sent or received.
#[derive(Debug)]
pub struct Message {
    pub id: u16,
    pub command: u16,
    /// What its header says; the body may be another matter.
    pub size: u32,
    pub flags: u32,
    pub error: u32,
    pub body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// Header and body.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.body.len());
        bytes.extend(self.id.to_ne_bytes());
        bytes.extend(self.command.to_ne_bytes());
        bytes.extend(self.size.to_ne_bytes());
        bytes.extend(self.flags.to_ne_bytes());
        bytes.extend(self.error.to_ne_bytes());
        bytes.extend(&self.body);
        bytes
    }
}

/// One end.
pub struct Wire(UnixStream);

impl Wire {
    pub fn new(socket: UnixStream) -> Wire {
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.set_write_timeout(Some(SOON)).unwrap();
        Wire(socket)
    }

    pub fn connect(path: &Path) -> Wire {
        Wire::new(UnixStream::connect(path).unwrap())
    }

    /// Sends all of it, the descriptors with the first byte.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), String> {
        let mut sent = 0;
        while sent < bytes.len() {
            let fds = if sent == 0 { fds } else { &[] };
            let part = [IoSlice::new(&bytes[sent..])];
            sent += sys::socket::send_with_fds(self.0.as_fd(), &part, fds, false)
                .map_err(|error| format!("it takes no message: {error}"))?;
        }
        Ok(())
    }

    /// The next message, whole.
    pub fn receive(&self) -> Result<Message, String> {
        let mut fds = Vec::new();
        let mut header = [0; HEADER];
        self.fill(&mut header, &mut fds)?;
        let u16_at = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let u32_at =
            |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let size = u32_at(4);
        if !(HEADER as u32..64 << 20).contains(&size) {
            return Err(format!("a message of {size} bytes"));
        }
        let mut body = vec![0; size as usize - HEADER];
        self.fill(&mut body, &mut fds)?;
        let (id, command) = (u16_at(0), u16_at(2));
        Ok(Message { id, command, size, flags: u32_at(8), error: u32_at(12), body, fds })
    }

    fn fill(&self, into: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<(), String> {
        let mut filled = 0;
        while filled < into.len() {
            let rest = &mut into[filled..];
            match sys::socket::recv_with_fds(self.0.as_fd(), rest, 253, fds, false) {
                Ok(0) => return Err("the connection ended".to_owned()),
                Ok(more) => filled += more,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err("no answer".to_owned());
                }
                Err(error) => return Err(format!("no answer: {error}")),
            }
        }
        Ok(())
    }

    /// Whether the other end has hung up, with nothing more to say.
    pub fn ended(&self) -> Result<(), String> {
        let mut fds = Vec::new();
        match sys::socket::recv_with_fds(self.0.as_fd(), &mut [0], 253, &mut fds, false) {
            Ok(0) => Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
            Ok(_) => Err("more came where the connection had to end".to_owned()),
            Err(_) => Err("the connection did not end".to_owned()),
        }
    }
}
