//! A wire between two guests that reads along and breaks where a test wants it to.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use wire::message::MessageKind;
use wire::{FrameType, Header, Preamble};

use super::LONGEST;

/// Where it breaks: at the first of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// A message on the control connection, whoever says it.
    Message(MessageKind),
    /// A frame on a data connection.
    Frame(FrameType),
}

impl At {
    /// Whether a frame of a connection is such.
    fn is(self, control: bool, header: &Header, payload: &[u8]) -> bool {
        match self {
            At::Message(kind) => control && payload.starts_with(&kind.0.to_le_bytes()),
            At::Frame(kind) => !control && header.kind == kind,
        }
    }
}

impl From<MessageKind> for At {
    fn from(kind: MessageKind) -> At {
        At::Message(kind)
    }
}

impl From<FrameType> for At {
    fn from(kind: FrameType) -> At {
        At::Frame(kind)
    }
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// It is lost, and the connection with it.
    CutBefore,
    /// It arrives, and then the connection is lost.
    CutAfter,
    /// Half of it arrives, and then the connection is lost.
    Truncate,
    /// It arrives with one bit changed.
    Corrupt,
    /// It does not arrive, until one of the two sides is gone.
    Hold,
}

/// A relay to a destination.
pub(crate) struct Relay {
    /// Where a source has to go.
    pub(crate) place: String,
    reached: Receiver<()>,
}

/// One side's way to the other.
struct Way {
    from: TcpStream,
    to: TcpStream,
    control: bool,
    at: At,
    then: Then,
    all: All,
    reached: Sender<()>,
}

/// Every connection that was made, to be cut together.
type All = Arc<Mutex<Vec<TcpStream>>>;

impl Relay {
    /// Relays to `to`; `then` happens to the first of `at`.
    pub(crate) fn start(to: &str, at: impl Into<At>, then: Then) -> Relay {
        let at = at.into();
        let to = to.strip_prefix("tcp:").expect("TCP").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let place = format!("tcp:{}", listener.local_addr().expect("an address"));
        let (said, reached) = channel();
        std::thread::spawn(move || {
            let all: All = Arc::default();
            // The first is the control connection; a source that was cut off does not
            // come again. The thread ends with the test.
            for (number, near) in listener.incoming().enumerate() {
                let (Ok(near), Ok(far)) = (near, TcpStream::connect(&to)) else { return };
                let control = number == 0;
                let clone =
                    |stream: &TcpStream| stream.try_clone().expect("a descriptor");
                for stream in [&near, &far] {
                    stream.set_nodelay(true).expect("a socket");
                    stream.set_read_timeout(Some(LONGEST)).expect("a socket");
                    all.lock().expect("no panic").push(clone(stream));
                }
                for (from, to) in [(clone(&near), clone(&far)), (far, near)] {
                    let (all, reached) = (Arc::clone(&all), said.clone());
                    let way = Way { from, to, control, at, then, all, reached };
                    std::thread::spawn(move || way.relay());
                }
            }
        });
        Relay { place, reached }
    }

    /// Waits until the message came by.
    pub(crate) fn reached(&self) {
        self.reached.recv_timeout(LONGEST).expect("the message in time");
    }
}

impl Way {
    fn relay(mut self) {
        let whole = self.frames().is_some();
        if self.control || !whole {
            for stream in self.all.lock().expect("no panic").iter() {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        let _ = self.to.shutdown(Shutdown::Write);
    }

    /// `None` where the connection was cut here, not where it came to its end.
    fn frames(&mut self) -> Option<()> {
        let mut preamble = [0; Preamble::SIZE];
        if self.from.read_exact(&mut preamble).is_err() {
            return Some(());
        }
        self.to.write_all(&preamble).ok()?;
        loop {
            let mut frame = vec![0; Header::SIZE];
            if self.from.read_exact(&mut frame).is_err() {
                return Some(());
            }
            let head = frame.as_slice().try_into().expect("as many bytes");
            let header = Header::decode(head);
            frame.resize(Header::SIZE + header.length as usize, 0);
            self.from.read_exact(&mut frame[Header::SIZE..]).ok()?;
            if !self.at.is(self.control, &header, &frame[Header::SIZE..]) {
                self.to.write_all(&frame).ok()?;
                continue;
            }
            // The test may not wait for it.
            let _ = self.reached.send(());
            match self.then {
                Then::CutBefore => return None,
                Then::CutAfter => {
                    self.to.write_all(&frame).ok()?;
                    return None;
                }
                Then::Truncate => {
                    self.to.write_all(&frame[..frame.len() / 2]).ok()?;
                    return None;
                }
                Then::Corrupt => {
                    *frame.last_mut()? ^= 1;
                    self.to.write_all(&frame).ok()?;
                }
                Then::Hold => {
                    // Until whoever said it is gone; the other way ends otherwise.
                    let _ = std::io::copy(&mut self.from, &mut std::io::sink());
                    return None;
                }
            }
        }
    }
}
