//! A stream read for people: every frame with its place, and every damage.
//!
//! A [`Decoder`] serves a reader that acts on what it reads, so the first thing that is
//! wrong ends it. A [`Walker`] acts on nothing. It asks the same decoder about every
//! frame, says where it lies and what it means, and where something is wrong it says
//! what, and goes on as far as that makes sense:
//!
//! ```text
//! a payload that is not what its type has    marked, the walk goes on
//! another sequence number or channel,        marked, the walk goes on from there
//!   under a good checksum
//! a wrong checksum                           marked and stepped over by its length;
//!                                            if the next header then does not fit,
//!                                            the length was wrong too: the walk stops
//! a length over its ceiling                  the walk stops
//! ```
//!
//! Where the walk stopped, no frame is looked for any more: a device's bytes may hold
//! anything, a header too. Beyond single frames it checks what a reader would: offsets,
//! lengths and checksums of devices, sections, what a `Hello` in the same stream
//! announced, the digest at the end, and that there is an end with nothing behind it.
//!
//! It never waits, holds at most one frame, and remembers of a stream of any length no
//! more than its devices and sections.
//!
//! ```
//! # use vfio_migrate_wire as wire;
//! use wire::preamble::{Architecture, ByteOrder, Features, MigrationId, PageSize, Role};
//! use wire::walk::{Item, Walker};
//! use wire::{Encoder, Preamble};
//!
//! let preamble = Preamble {
//!     byte_order: ByteOrder::LITTLE,
//!     architecture: Architecture::X86_64,
//!     page_size: PageSize::KIB_4,
//!     required: Features::NONE,
//!     optional: Features::NONE,
//!     migration: MigrationId([7; 16]),
//!     role: Role::File,
//! };
//! let end = Encoder::new(Role::File).channel_end()?;
//! let mut file = [&preamble.encode()[..], &end].concat();
//! file[70] ^= 1; // in the header of the only frame
//!
//! let mut walker = Walker::new();
//! for piece in file.chunks(10) {
//!     let mut piece = piece;
//!     while let Some(item) = walker.next(&mut piece) {
//!         if let Item::Frame(frame) = item {
//!             assert_eq!(frame.offset, 64);
//!         }
//!     }
//! }
//! let damage = walker.finish().first_damage.expect("it is damaged");
//! assert_eq!(damage.offset, 64);
//! # Ok::<(), wire::FrameError>(())
//! ```

mod pages;
mod story;

pub use story::{Contradiction, DeviceStory, SectionStory, SoFar, Story};

use std::mem;

use crate::decode::{Decoder, Frame};
use crate::frame::{FrameError, FrameType, Header};
use crate::memory::RunKind;
use crate::preamble::{MAGIC, PageSize, Preamble, PreambleError, Role};

/// The walk over one direction of one connection, or over one file.
#[derive(Debug)]
pub struct Walker {
    /// Where the buffer's first byte lies in the stream.
    begin: u64,
    /// What has arrived of the preamble or frame that is next.
    buffer: Vec<u8>,
    /// The buffer was handed out, and is to be emptied.
    shown: bool,
    state: State,
    decoder: Decoder,
    /// The last frame's checksum was wrong: its length may have been too.
    doubtful: bool,
    story: Story,
    summary: Summary,
}

#[derive(Debug)]
enum State {
    Preamble,
    Header,
    /// The header, and why a reader refuses it.
    Payload(Header, Option<FrameError>),
    /// After `CHANNEL_END`.
    Ended,
    /// Where the next frame begins is not known.
    Stopped,
}

/// What the walk has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[allow(
    clippy::large_enum_variant,
    reason = "an item is looked at and dropped: there is one at a time"
)]
pub enum Item<'a> {
    /// The first 64 bytes are a preamble.
    Preamble(Preamble),
    /// A frame, damaged or not.
    Frame(WalkedFrame<'a>),
    /// The walk cannot go on; the rest of the bytes is only counted.
    Stopped(Damage),
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalkedFrame<'a> {
    /// Where its header begins in the stream.
    pub offset: u64,
    /// Its header, as it is.
    pub header: Header,
    /// What it means, unless that cannot be said.
    pub frame: Option<Frame<'a>>,
    /// Of a frame of a device's data: what of the device there is with this frame.
    pub so_far: Option<SoFar>,
    /// What is wrong with it or with its place. The walk goes on.
    pub damage: Option<Damage>,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("damaged at byte {offset}")]
pub struct Damage {
    /// Where: the first byte of the frame, or of what is missing or too much.
    pub offset: u64,
    /// What is wrong, with what was expected.
    #[source]
    pub wrong: Wrong,
}

/// What can be wrong with a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Wrong {
    /// There is nothing.
    #[error("the stream is empty")]
    Empty,
    /// What begins it is no preamble.
    #[error(transparent)]
    Preamble(PreambleError),
    /// A frame, as a reader would refuse it.
    #[error(transparent)]
    Frame(FrameError),
    /// The header does not belong here, and its checksum is wrong.
    #[error("the header is damaged: its checksum is wrong")]
    Header(#[source] FrameError),
    /// The length of the frame in front of this place cannot be right.
    #[error(
        "no frame begins where the damaged one should end, so that the rest cannot be \
         followed"
    )]
    Lost(#[source] FrameError),
    /// A length that no such frame has.
    #[error("where the frame ends cannot be said, so that the rest cannot be followed")]
    Length(#[source] FrameError),
    /// The frames are in order one by one and contradict each other.
    #[error(transparent)]
    Contradiction(Contradiction),
    /// The preamble's last bytes are missing.
    #[error("the stream is cut off in its preamble, {missing} bytes are missing")]
    CutPreamble {
        /// How many.
        missing: u64,
    },
    /// A header's last bytes are missing.
    #[error(
        "the stream is cut off in the header of the frame at byte {frame}, {missing} \
         bytes of it are missing"
    )]
    CutHeader {
        /// Where the header begins.
        frame: u64,
        /// How many, of the header alone.
        missing: u64,
    },
    /// A payload's last bytes are missing.
    #[error(
        "the stream is cut off in the {kind} at byte {frame}, {missing} bytes of it are \
         missing"
    )]
    CutPayload {
        /// Where the frame begins.
        frame: u64,
        /// Its type.
        kind: FrameType,
        /// How many.
        missing: u64,
    },
    /// The stream ends between frames, without `CHANNEL_END`.
    #[error("the stream is cut off between two frames: CHANNEL_END is missing")]
    NoEnd,
    /// Something follows `CHANNEL_END`.
    #[error("{bytes} bytes follow the end of the stream")]
    Trailing {
        /// How many.
        bytes: u64,
    },
}

/// What the walk found altogether.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// The preamble, if it could be read.
    pub preamble: Option<Preamble>,
    /// Bytes of the stream, whether they could be read or not.
    pub bytes: u64,
    /// Frames, damaged ones included.
    pub frames: u64,
    /// Bytes behind the place where the walk stopped.
    pub unread: u64,
    /// Guest pages that came with their bytes; a page that comes again counts again.
    pub data_pages: u64,
    /// Guest pages that came as zeros.
    pub zero_pages: u64,
    /// The devices, by their indices.
    pub devices: Vec<DeviceStory>,
    /// The sections, by their indices.
    pub sections: Vec<SectionStory>,
    /// The first thing that is wrong; without one the stream is whole.
    pub first_damage: Option<Damage>,
    /// How many things are wrong.
    pub damages: u64,
    /// Those among them that only the end of the stream showed.
    pub at_end: Vec<Damage>,
}

impl Default for Walker {
    fn default() -> Self {
        Self::new()
    }
}

impl Walker {
    /// At the first byte of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self {
            begin: 0,
            buffer: Vec::new(),
            shown: false,
            state: State::Preamble,
            // Replaced by the one for the preamble's role.
            decoder: Decoder::new(Role::File, PageSize::KIB_4),
            doubtful: false,
            story: Story::default(),
            summary: Summary::default(),
        }
    }

    /// Takes bytes off the front of `bytes` until the next item is complete. `None`
    /// when it needs more of them; `bytes` is then empty.
    pub fn next<'a>(&'a mut self, bytes: &mut &[u8]) -> Option<Item<'a>> {
        if mem::take(&mut self.shown) {
            self.begin += self.buffer.len() as u64;
            self.buffer.clear();
        }
        loop {
            match mem::replace(&mut self.state, State::Stopped) {
                State::Preamble => {
                    let Some(preamble) = self.fill(bytes) else {
                        self.state = State::Preamble;
                        return None;
                    };
                    self.shown = true;
                    return Some(self.preamble(&preamble));
                }
                State::Header => {
                    let Some(header) = self.fill(bytes) else {
                        self.state = State::Header;
                        return None;
                    };
                    if let Some(damage) = self.header(&header) {
                        self.shown = true;
                        return Some(Item::Stopped(damage));
                    }
                }
                State::Payload(header, refused) => {
                    if !self.fill_to(bytes, Header::SIZE + header.length as usize) {
                        self.state = State::Payload(header, refused);
                        return None;
                    }
                    self.shown = true;
                    return Some(Item::Frame(self.frame(header, refused)));
                }
                rest @ (State::Ended | State::Stopped) => {
                    let more = mem::take(bytes).len() as u64;
                    self.summary.unread += more;
                    self.summary.bytes += more;
                    self.state = rest;
                    return None;
                }
            }
        }
    }

    /// At the last byte of the stream: what was found, and what is missing.
    #[must_use]
    pub fn finish(mut self) -> Summary {
        if mem::take(&mut self.shown) {
            self.begin += self.buffer.len() as u64;
            self.buffer.clear();
        }
        let (frame, held) = (self.begin, self.buffer.len() as u64);
        let end = frame + held;
        let missing = |whole: u64| whole.saturating_sub(held);
        let mut found = Vec::new();
        match self.state {
            State::Preamble if held == 0 => found.push((0, Wrong::Empty)),
            State::Preamble if !MAGIC.iter().zip(&self.buffer).all(|(a, b)| a == b) => {
                found.push((0, Wrong::Preamble(PreambleError::Magic)));
            }
            State::Preamble => {
                let missing = missing(Preamble::SIZE as u64);
                found.push((end, Wrong::CutPreamble { missing }));
            }
            State::Header if held > 0 => {
                let missing = missing(Header::SIZE as u64);
                found.push((end, Wrong::CutHeader { frame, missing }));
            }
            State::Header => {
                let control = |preamble: &Preamble| preamble.role == Role::Control;
                // A conversation ends when it ends.
                if !self.summary.preamble.as_ref().is_some_and(control) {
                    found.push((end, Wrong::NoEnd));
                }
            }
            State::Payload(Header { kind, length, .. }, refused) => {
                // Nothing vouches for the header: it may be damaged rather than cut.
                found.extend(refused.map(|error| (frame, Wrong::Frame(error))));
                let missing = missing(Header::SIZE as u64 + u64::from(length));
                found.push((end, Wrong::CutPayload { frame, kind, missing }));
            }
            State::Ended => {
                let missing = self.story.missing();
                found.extend(
                    missing.into_iter().map(|what| (end, Wrong::Contradiction(what))),
                );
                let bytes = mem::take(&mut self.summary.unread);
                if bytes > 0 {
                    found.push((end, Wrong::Trailing { bytes }));
                }
            }
            // Said when it stopped.
            State::Stopped => {}
        }
        let at_end: Vec<Damage> = found
            .into_iter()
            .map(|(offset, wrong)| self.summary.damage(offset, wrong))
            .collect();
        let (devices, sections) = self.story.tell();
        Summary { at_end, devices, sections, ..self.summary }
    }

    /// The first `N` bytes of the buffer, once they are there.
    fn fill<const N: usize>(&mut self, bytes: &mut &[u8]) -> Option<[u8; N]> {
        if self.fill_to(bytes, N) { self.buffer.first_chunk().copied() } else { None }
    }

    /// Whether the buffer holds `size` bytes, after it took what it can. It grows by
    /// what is there, never by what a length claims.
    fn fill_to(&mut self, bytes: &mut &[u8], size: usize) -> bool {
        let wanted = size.saturating_sub(self.buffer.len()).min(bytes.len());
        let (now, later) = bytes.split_at(wanted);
        self.buffer.extend_from_slice(now);
        self.summary.bytes += wanted as u64;
        *bytes = later;
        self.buffer.len() >= size
    }

    fn preamble(&mut self, bytes: &[u8; Preamble::SIZE]) -> Item<'static> {
        match Preamble::decode(bytes) {
            Ok(preamble) => {
                self.decoder = Decoder::new(preamble.role, preamble.page_size);
                self.story = Story::new(preamble.role);
                self.summary.preamble = Some(preamble);
                self.state = State::Header;
                Item::Preamble(preamble)
            }
            Err(error) => Item::Stopped(self.summary.damage(0, Wrong::Preamble(error))),
        }
    }

    /// Judges a header, and says why the walk stops at it.
    fn header(&mut self, bytes: &[u8; Header::SIZE]) -> Option<Damage> {
        let refused = self.decoder.header(bytes).err();
        let doubtful = mem::take(&mut self.doubtful);
        let stop = match refused.clone() {
            Some(
                error @ (FrameError::TooLong { .. }
                | FrameError::Channel { .. }
                | FrameError::Sequence { .. }),
            ) if doubtful => Wrong::Lost(error),
            Some(error @ FrameError::TooLong { .. }) => Wrong::Length(error),
            _ => {
                self.state = State::Payload(Header::decode(bytes), refused);
                return None;
            }
        };
        Some(self.summary.damage(self.begin, stop))
    }

    /// Judges a frame that is there to its last byte.
    fn frame(&mut self, header: Header, refused: Option<FrameError>) -> WalkedFrame<'_> {
        self.summary.frames += 1;
        let payload = self.buffer.get(Header::SIZE..).unwrap_or(&[]);
        let expected = self.decoder.expected();
        let (frame, mut wrong) = match refused {
            None => match self.decoder.payload(&header, payload) {
                Ok(frame) => (Some(frame), None),
                Err(error) => {
                    if matches!(error, FrameError::Checksum { .. }) {
                        self.doubtful = true;
                        self.decoder.step_over(&header, expected);
                    }
                    (None, Some(Wrong::Frame(error)))
                }
            },
            Some(error) => {
                let mut crc = header.start_crc();
                crc.add(payload);
                if crc.value() == header.crc {
                    // So written: what it means can be said, and where it counts on
                    // from. Nobody sends 2^62 frames, and the next number must exist.
                    let next = match header.sequence {
                        sequence if sequence < 1 << 62 => sequence + 1,
                        _ => expected.saturating_add(1),
                    };
                    let frame = self.decoder.aside(&header, payload);
                    self.decoder.step_over(&header, next);
                    (frame, Some(Wrong::Frame(error)))
                } else {
                    self.doubtful = true;
                    self.decoder.step_over(&header, expected.saturating_add(1));
                    (None, Some(Wrong::Header(error)))
                }
            }
        };
        let mut so_far = None;
        if let Some(frame) = &frame {
            if let Frame::Memory(runs) = frame {
                for run in runs.runs().iter() {
                    let pages = match run.kind {
                        RunKind::Data => &mut self.summary.data_pages,
                        RunKind::Zero => &mut self.summary.zero_pages,
                    };
                    *pages = pages.saturating_add(run.pages.into());
                }
            }
            let told = self.story.take(frame);
            so_far = told.so_far;
            wrong = wrong.or(told.contradiction.map(Wrong::Contradiction));
        }
        // A digest that differs ends the stream too.
        let ends = header.kind == FrameType::CHANNEL_END && !self.doubtful;
        self.state = if ends { State::Ended } else { State::Header };
        let offset = self.begin;
        let damage = wrong.map(|wrong| self.summary.damage(offset, wrong));
        WalkedFrame { offset, header, frame, so_far, damage }
    }
}

impl Summary {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.first_damage.is_none()
    }

    fn damage(&mut self, offset: u64, wrong: Wrong) -> Damage {
        let damage = Damage { offset, wrong };
        self.damages += 1;
        self.first_damage.get_or_insert_with(|| damage.clone());
        damage
    }
}
