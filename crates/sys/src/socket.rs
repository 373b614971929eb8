//! UNIX stream sockets whose messages carry descriptors.
//!
//! [`send_with_fds`] and [`recv_with_fds`] are one system call each. The descriptors of
//! one send arrive together with its first byte, and the kernel ends a receive at the
//! end of a send that carried descriptors, so those of one receive all belong to one
//! send: the last one whose first byte that receive has returned.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};

/// The most descriptors that one send can carry (the kernel's `SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;

/// How many connections wait for their turn.
const BACKLOG: i32 = 16;

/// Sends from `parts`, in order, with descriptors attached to the first byte. Says how
/// many bytes were taken; descriptors go with the first of them, so the rest is sent
/// without. With `nonblocking` it never waits.
///
/// # Errors
/// `WouldBlock` where the socket is full, `BrokenPipe` where the other end is gone
/// (without a signal), `InvalidInput` for more than [`MAX_FDS`] descriptors.
pub fn send_with_fds(
    fd: impl AsFd,
    parts: &[IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
    nonblocking: bool,
) -> io::Result<usize> {
    let mut flags = SendFlags::NOSIGNAL;
    flags.set(SendFlags::DONTWAIT, nonblocking);
    if fds.len() > MAX_FDS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if fds.is_empty()
        && let [only] = parts
    {
        // The common case of a short message, for less.
        loop {
            match rustix::net::send(&fd, only, flags) {
                Err(rustix::io::Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    loop {
        let mut control = if fds.is_empty() {
            SendAncillaryBuffer::default()
        } else {
            SendAncillaryBuffer::new(&mut space)
        };
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match rustix::net::sendmsg(&fd, parts, &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Receives what is there, at most as much as `into` holds, and adds the descriptors
/// that came with it to `fds` (closed on exec). 0 is the end of the stream (or `into`
/// is empty). With `nonblocking` it never waits.
///
/// # Errors
/// `WouldBlock` where nothing is there; `InvalidData` where more than `max_fds`
/// descriptors came, or the kernel could not hand all of them over: those that came are
/// closed, and the bytes are lost, so the connection cannot go on.
pub fn recv_with_fds(
    fd: impl AsFd,
    into: &mut [u8],
    max_fds: usize,
    fds: &mut Vec<OwnedFd>,
    nonblocking: bool,
) -> io::Result<usize> {
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    flags.set(RecvFlags::DONTWAIT, nonblocking);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let parts = &mut [IoSliceMut::new(into)];
        match rustix::net::recvmsg(&fd, parts, &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let before = fds.len();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) || fds.len() - before > max_fds {
        fds.truncate(before);
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "more descriptors with a message than agreed",
        ));
    }
    Ok(received.bytes)
}

/// Ends waits of blocking receives on this socket after `limit` with `WouldBlock`.
///
/// # Errors
/// What setsockopt(2) says.
pub fn set_receive_timeout(fd: impl AsFd, limit: Duration) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_timeout(
        fd,
        rustix::net::sockopt::Timeout::Recv,
        Some(limit),
    )?)
}

/// Gives sends on this socket room for `bytes`, as far as the system allows that
/// (`net.core.wmem_max`; it tells nobody where it does not).
///
/// # Errors
/// What setsockopt(2) says.
pub fn set_send_buffer(fd: impl AsFd, bytes: usize) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_send_buffer_size(fd, bytes)?)
}

/// Ends both directions, so that whoever waits on the socket in another thread stops.
///
/// # Errors
/// `NotConnected` where the other end is gone already.
pub fn shutdown(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::shutdown(fd, rustix::net::Shutdown::Both)?)
}

/// Two sockets connected to each other.
///
/// # Errors
/// When the process has no descriptor left.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (near, far) = UnixStream::pair()?;
    Ok((near.into(), far.into()))
}

/// Connects to a listener.
///
/// # Errors
/// `NotFound` where there is no such path, `ConnectionRefused` where nobody listens.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    Ok(UnixStream::connect(path)?.into())
}

/// A socket in the file system that takes connections. Its path goes with it.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`, for this user alone (mode 0600). A socket that a dead process
    /// left there is replaced; whether it is dead is found out by connecting, so a
    /// living one sees a connection come and go.
    ///
    /// # Errors
    /// `AddrInUse` where somebody listens there, or there is something that is no
    /// socket; else what socket(2), bind(2) and listen(2) say.
    pub fn bind(path: &Path) -> io::Result<Listener> {
        match Listener::bind_once(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let nobody = matches!(
                    UnixStream::connect(path),
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused
                );
                if !nobody || !is_socket(path) {
                    return Err(error);
                }
                std::fs::remove_file(path)?;
                Listener::bind_once(path)
            }
            other => other,
        }
    }

    fn bind_once(path: &Path) -> io::Result<Listener> {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        // The mode of the unbound socket becomes that of the path: no moment passes in
        // which others could connect, and the process's umask is left alone.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        let listener =
            Listener { socket: UnixListener::from(socket), path: path.to_owned() };
        rustix::net::listen(&listener.socket, BACKLOG)?;
        Ok(listener)
    }

    /// Takes the next connection; waits for it.
    ///
    /// # Errors
    /// What accept(2) says.
    pub fn accept(&self) -> io::Result<OwnedFd> {
        Ok(self.socket.accept()?.0.into())
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Nothing to be done where somebody else removed it first.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::event::EventFd;

    fn receive(fd: &OwnedFd, len: usize, fds: &mut Vec<OwnedFd>) -> Vec<u8> {
        let mut into = vec![0; len];
        let bytes = recv_with_fds(fd, &mut into, MAX_FDS, fds, true).unwrap();
        into.truncate(bytes);
        into
    }

    #[test]
    fn a_socket_with_more_room_takes_no_less() {
        let taken = |bytes: Option<usize>| {
            let (near, _far) = pair().unwrap();
            if let Some(bytes) = bytes {
                set_send_buffer(&near, bytes).unwrap();
            }
            let data = vec![0; 8 << 20];
            send_with_fds(&near, &[IoSlice::new(&data)], &[], true).unwrap()
        };
        let (small, usual, large) =
            (taken(Some(4096)), taken(None), taken(Some(4 << 20)));
        assert!(small < usual && usual <= large, "{small} {usual} {large}");
    }

    #[test]
    fn descriptors_come_with_the_send_they_were_attached_to() {
        let (near, far) = pair().unwrap();
        let event = EventFd::new().unwrap();
        let plain = |text: &[u8]| {
            send_with_fds(&near, &[IoSlice::new(text)], &[], true).unwrap();
        };
        plain(b"one");
        let parts = [IoSlice::new(b"tw"), IoSlice::new(b"o")];
        send_with_fds(&near, &parts, &[event.as_fd()], true).unwrap();
        plain(b"three");

        let mut fds = Vec::new();
        assert_eq!(receive(&far, 100, &mut fds), b"onetwo");
        assert_eq!(fds.len(), 1);
        EventFd::from_fd(fds.remove(0)).unwrap().signal(5).unwrap();
        assert_eq!(event.take().unwrap(), 5);
        assert_eq!(receive(&far, 100, &mut fds), b"three");
        assert!(fds.is_empty());
    }

    #[test]
    fn a_flood_of_descriptors_is_refused_and_closed() {
        let (near, far) = pair().unwrap();
        let event = EventFd::new().unwrap();
        let many: Vec<_> = (0..20).map(|_| event.as_fd()).collect();
        send_with_fds(&near, &[IoSlice::new(b"x")], &many, true).unwrap();
        let mut fds = Vec::new();
        let error = recv_with_fds(&far, &mut [0; 8], 8, &mut fds, true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(fds.is_empty());
    }

    #[test]
    fn a_dead_peer_is_an_error_and_no_signal() {
        let (near, far) = pair().unwrap();
        drop(far);
        let sent = send_with_fds(&near, &[IoSlice::new(b"x")], &[], true);
        assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let got = recv_with_fds(&near, &mut [0; 8], 0, &mut Vec::new(), false);
        assert_eq!(got.unwrap(), 0);
    }

    #[test]
    fn a_silent_peer_does_not_hold_a_receive_for_ever() {
        let (near, _far) = pair().unwrap();
        set_receive_timeout(&near, Duration::from_millis(1)).unwrap();
        let got = recv_with_fds(&near, &mut [0; 8], 0, &mut Vec::new(), false);
        assert_eq!(got.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_socket_left_behind_is_replaced_a_living_one_and_a_file_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(Listener::bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        // The attempt to bind has asked whether anybody listens.
        drop(listener.accept().unwrap());
        let near = connect(&path).unwrap();
        let far = listener.accept().unwrap();
        send_with_fds(&near, &[IoSlice::new(b"x")], &[], true).unwrap();
        assert_eq!(receive(&far, 8, &mut Vec::new()), b"x");
        drop(listener);
        assert!(!path.exists());

        std::fs::write(&path, "precious").unwrap();
        assert!(Listener::bind(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
