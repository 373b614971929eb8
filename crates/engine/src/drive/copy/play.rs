//! A guest out of a file: the peer of a destination.

use std::io::IoSlice;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use port::{Channel, Clock, Dial as _, Observer, Receive, Transmit};
use wire::message::{FailureCode, Hello, Reason, RunState};
use wire::preamble::{DataChannel, Preamble, Role, Token};
use wire::{Encoder, Frame, Message};

use super::pipe::{self, PipeDial, PipeEnd};
use super::verify::{Check, GuestFile};
use super::{Extent, Own};
use crate::drive::control::{Listener, Speaker};
use crate::drive::file::FileCause;
use crate::drive::file::read::Reader;
use crate::drive::handle::SinkHandle;
use crate::drive::receive::Incoming;
use crate::drive::receiving::{Open, Received};
use crate::drive::tracker::chain;
use crate::machine::Machine;
use crate::migration::sink::Ending;
use crate::migration::{Cause, compat};

/// A guest in a file, about to be taken in.
pub struct Playing {
    incoming: Incoming,
    player: Player,
}

/// How it went, and everything that was lent.
#[derive(Debug)]
pub struct Played {
    /// The machine, where it came to opening one.
    pub machine: Option<Machine>,
    /// How it ended: a guest from a file is never held and never in doubt.
    pub ending: Ending,
    /// How much of the file was read, or what is wrong with it: then that is why it
    /// ended so.
    pub file: Result<Extent, FileCause>,
}

impl std::fmt::Debug for Playing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Playing")
            .field("incoming", &self.incoming)
            .finish_non_exhaustive()
    }
}

impl Playing {
    /// A guest from a file. `open` opens the machine once it is known which devices
    /// come, or tells why that cannot be; what does not fit is refused before a device
    /// is touched. The guest runs at the end where it ran when it was recorded, unless
    /// it is to stay `paused`. No single read or answer may take longer than
    /// `patience`.
    ///
    /// A file that can be read twice is better checked first, with
    /// [`verify_guest`](super::verify_guest): where it comes by a pipe, the devices hold
    /// what it says until its end is seen, and are reset when something was wrong.
    pub fn new(
        from: Box<dyn Receive>,
        patience: Duration,
        open: Open,
        paused: bool,
    ) -> Playing {
        let (near, far) = pipe::pair();
        let (dial, accept) = pipe::place();
        let store = Box::<Own>::default();
        let incoming =
            Incoming::new(Box::new(far), Box::new(accept), store, TOKEN, patience, open);
        Playing {
            incoming,
            player: Player {
                from,
                control: near,
                dial,
                patience,
                paused,
                transactions: Vec::new(),
            },
        }
    }

    /// What [`verify_guest`](super::verify_guest) found in the file: a device that has
    /// no room for its transactions is refused before it is given any data.
    #[must_use]
    pub fn verified(mut self, found: &GuestFile) -> Playing {
        self.player.transactions.clone_from(&found.transactions);
        self
    }

    /// Somebody who watches.
    #[must_use]
    pub fn observer(self, observer: Arc<dyn Observer>) -> Playing {
        Playing { incoming: self.incoming.observer(observer), ..self }
    }

    /// Another clock than the system's.
    #[must_use]
    pub fn clock(self, clock: Arc<dyn Clock>) -> Playing {
        Playing { incoming: self.incoming.clock(clock), ..self }
    }

    /// Steers it from other threads: [`SinkHandle::cancel`].
    pub fn handle(&self) -> SinkHandle {
        self.incoming.handle()
    }

    /// Runs it to its end, however that is.
    pub fn run(self) -> Played {
        let Playing { incoming, player } = self;
        // Without this thread the other end is gone, and the destination says so.
        let player =
            thread::Builder::new().name("play".into()).spawn(move || player.work());
        let Received { machine, ending, .. } = incoming.run();
        let file = match player.map(thread::JoinHandle::join) {
            Ok(Ok(Ok(extent))) => Ok(extent),
            Ok(Ok(Err(Failed::File(cause)))) => Err(cause),
            // The destination's own word is nearer.
            Ok(Ok(Err(Failed::Talk(cause)))) => {
                tracing::debug!(%cause, "the player ended");
                Ok(Extent::default())
            }
            Ok(Err(_)) => Err(FileCause::File("its reader panicked".into())),
            Err(error) => Err(FileCause::File(format!("no thread to read it: {error}"))),
        };
        Played { machine, ending, file }
    }
}

/// What a data connection shows: anything, nobody else can open one.
const TOKEN: [u8; 8] = [1; 8];

/// Why the player ended.
enum Failed {
    /// The file.
    File(FileCause),
    /// The conversation; mostly because the destination ended it.
    Talk(Cause),
}

impl From<FileCause> for Failed {
    fn from(cause: FileCause) -> Failed {
        Failed::File(cause)
    }
}

impl From<Cause> for Failed {
    fn from(cause: Cause) -> Failed {
        Failed::Talk(cause)
    }
}

/// Says what a source says, and sends what it reads.
struct Player {
    from: Box<dyn Receive>,
    control: PipeEnd,
    dial: PipeDial,
    patience: Duration,
    paused: bool,
    /// The longest of each device, where the file was read before.
    transactions: Vec<Option<u64>>,
}

impl Player {
    fn work(self) -> Result<Extent, Failed> {
        let Player { mut from, control, mut dial, patience, paused, transactions } = self;
        let mut reader = Reader::new(&mut *from, patience);
        let head = reader.guest_head()?;
        let preamble = Preamble { role: Role::Control, ..head.preamble };
        let (transmit, mut receive, _close) = halves(Box::new(control))?;
        let mut speaker = Speaker::open(transmit, &preamble, patience)?;
        Listener::preamble(&mut *receive, patience)?;
        let mut listener = Listener::new(receive, preamble.page_size);
        let run_state = if paused { RunState::Paused } else { head.hello.run_state };
        let check = Check::new(&head);
        let hello = Hello { data_channels: 1, run_state, ..head.hello };
        speaker.say(&Message::Hello(hello.clone()))?;
        let token = match listener.hear()? {
            Message::Accept(accept) => {
                let (devices, takes) = (&hello.devices, &accept.devices);
                let reasons = compat::check_transactions(devices, &transactions, takes);
                if !reasons.is_empty() {
                    let cause = FileCause::Refused(reasons);
                    return Err(give_up(&mut speaker, FailureCode::OTHER, cause));
                }
                accept.token
            }
            Message::Refuse(refuse) => {
                let reasons = refuse.reasons.into_iter().map(|reason| reason.text);
                return Err(Failed::Talk(Cause::Refused(reasons.collect())));
            }
            other => return Err(unasked(&other)),
        };
        let data = dial.dial(patience).map_err(|error| Cause::Channel(chain(&error)))?;
        let (mut data, _, _close) = halves(data)?;
        data.set_deadline(patience);
        match relay(&mut reader, check, &mut *data, token, &preamble) {
            Err(Failed::File(cause)) => {
                return Err(give_up(&mut speaker, FailureCode::STREAM, cause));
            }
            relayed => relayed?,
        }
        speaker.say(&Message::RunState(run_state))?;
        match listener.hear()? {
            Message::Prepared(_) => speaker.say(&Message::Commit)?,
            other => return Err(unasked(&other)),
        }
        // It says how it went to whoever gave it the machine, too.
        listener.hear()?;
        Ok(reader.extent())
    }
}

/// Tells the destination, too.
fn give_up(speaker: &mut Speaker, code: FailureCode, cause: FileCause) -> Failed {
    let text = compat::text(&cause.to_string());
    let _ = speaker.say(&Message::Abort(Reason { code, text }));
    Failed::File(cause)
}

/// All that the file has, checked and numbered anew, to its end.
fn relay(
    reader: &mut Reader<'_>,
    mut check: Check,
    data: &mut dyn Transmit,
    token: Token,
    preamble: &Preamble,
) -> Result<(), Failed> {
    let channel = DataChannel::new(1).expect("the first of the data connections");
    let role = Role::Data { channel, token };
    let mut send = |parts: &[&[u8]]| {
        let slices: Vec<IoSlice<'_>> =
            parts.iter().map(|part| IoSlice::new(part)).collect();
        data.send(&slices).map_err(|error| Failed::Talk(Cause::Channel(chain(&error))))
    };
    send(&[&Preamble { role, ..*preamble }.encode()])?;
    let mut encoder = Encoder::new(role);
    let mut buffer = Vec::new();
    let fits = |error: wire::FrameError| Failed::Talk(Cause::Protocol(chain(&error)));
    loop {
        let (header, payload, frame) = reader.whole(&mut buffer)?;
        check.hear(&frame).map_err(|what| reader.damaged(&what))?;
        match frame {
            Frame::ChannelEnd(_) => break,
            Frame::Skipped(_) => {}
            _ => {
                let head = encoder
                    .header(header.kind, header.flags, &[payload])
                    .map_err(fits)?;
                send(&[&head, payload])?;
            }
        }
    }
    check.end().map_err(|what| reader.damaged(&what))?;
    // Before the destination can take it for whole.
    reader.end()?;
    send(&[&encoder.channel_end().map_err(fits)?])
}

fn halves(channel: Box<dyn Channel>) -> Result<port::Halves, Failed> {
    channel.split().map_err(|error| Failed::Talk(Cause::Channel(chain(&error))))
}

fn unasked(message: &Message) -> Failed {
    Failed::Talk(match message {
        Message::Failed(reason) | Message::Abort(reason) => {
            Cause::Peer { side: "destination", text: reason.text.clone() }
        }
        other => Cause::Protocol(format!("{} from a destination", other.kind())),
    })
}
