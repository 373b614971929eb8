//! What a row of the server's table says.

use std::collections::BTreeMap;

use super::wire::{ERROR, HEADER, Message, NO_REPLY, REPLY};

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Defect {
    /// Nothing.
    Valid,
    /// Its body lacks bytes.
    Short,
    /// It has no body.
    Empty,
    /// Its body is longer than its fields.
    Long,
    /// It has room for no answer, or less than that.
    Argsz,
    /// Type bits 2 to 15.
    Type,
    /// It is a reply.
    Reply,
    /// Flags that a command does not have.
    Flags,
    /// Nobody wants an answer.
    NoReply,
    /// The device is in a state that forbids it, or the client without agreement.
    State,
    /// More descriptors than there may be.
    ManyFds,
    /// Descriptors where there should be none.
    StrayFds,
    /// No, too few or unfit descriptors where there should be some.
    NoFds,
    /// A count, range or size over its limit.
    Limit,
    /// A header that says another length.
    Size,
    /// Before VERSION.
    BeforeVersion,
    /// Again.
    Twice,
    /// Fields that make no sense.
    Fields,
    /// About something that is not there.
    Absent,
}

/// All of them.
pub const DEFECTS: [Defect; 19] = [
    Defect::Valid,
    Defect::Short,
    Defect::Empty,
    Defect::Long,
    Defect::Argsz,
    Defect::Type,
    Defect::Reply,
    Defect::Flags,
    Defect::NoReply,
    Defect::State,
    Defect::ManyFds,
    Defect::StrayFds,
    Defect::NoFds,
    Defect::Limit,
    Defect::Size,
    Defect::BeforeVersion,
    Defect::Twice,
    Defect::Fields,
    Defect::Absent,
];

/// A descriptor that goes with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fd {
    /// One of two eventfds, 0 and 1, whose counts are looked at after each row.
    Event(usize),
    /// 1 MiB of shared memory.
    Memory,
    /// An empty file.
    File,
}

/// Over which connection a row goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// A client that knows our additions.
    Ours,
    /// One that does not.
    Foreign,
    /// A new one, before VERSION.
    Fresh,
}

/// What has to come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// A reply without error.
    Answer {
        /// The length of its body; `None` for any.
        size: Option<usize>,
        /// What is in it: bytes by their offsets.
        fields: BTreeMap<usize, u8>,
        /// How many descriptors come with it.
        fds: usize,
    },
    /// A header with an errno.
    Refused(i32),
    /// Nothing at all.
    Silence,
    /// The end of the connection, after a refusal or without one.
    End(Option<i32>),
}

/// One message, and what comes of it.
#[derive(Clone, Debug)]
pub struct Row {
    pub defect: Defect,
    pub what: String,
    pub link: Link,
    /// What was sent and answered before.
    pub given: Vec<Row>,
    pub command: u16,
    /// It answers what the server asks: this command with this body, which comes first.
    pub asked: Option<(u16, Vec<u8>)>,
    /// How much its id is off.
    pub off: u16,
    pub flags: u32,
    pub error: u32,
    pub body: Vec<u8>,
    /// What the header says, where that is not the truth.
    pub size: Option<u32>,
    pub fds: Vec<Fd>,
    pub wish: Wish,
    /// What the answer has to contain as text, or must not.
    pub texts: Vec<(bool, &'static str)>,
    /// How often each eventfd has fired afterwards.
    pub fires: [u64; 2],
    /// The eventfd that we signal ourselves when it is answered.
    pub signals: Option<usize>,
    /// What is asked afterwards, and how that is answered.
    pub then: Vec<Row>,
}

impl Row {
    /// A valid command with this body, answered by a header.
    pub fn new(command: u16, body: Vec<u8>) -> Row {
        Row {
            defect: Defect::Valid,
            what: String::new(),
            link: Link::Ours,
            given: Vec::new(),
            command,
            asked: None,
            off: 0,
            flags: 0,
            error: 0,
            body,
            size: None,
            fds: Vec::new(),
            wish: Wish::Answer { size: Some(0), fields: BTreeMap::new(), fds: 0 },
            texts: Vec::new(),
            fires: [0; 2],
            signals: None,
            then: Vec::new(),
        }
    }

    // What it is about.

    pub fn why(mut self, defect: Defect, what: impl Into<String>) -> Row {
        (self.defect, self.what) = (defect, what.into());
        self
    }

    pub fn given(mut self, given: impl IntoIterator<Item = Row>) -> Row {
        self.given.extend(given);
        self
    }

    pub fn then(mut self, then: impl IntoIterator<Item = Row>) -> Row {
        self.then.extend(then);
        self
    }

    pub fn over(mut self, link: Link) -> Row {
        self.link = link;
        self
    }

    // What is sent.

    pub fn u16(self, at: usize, value: u16) -> Row {
        self.put(at, &value.to_ne_bytes())
    }

    pub fn u32(self, at: usize, value: u32) -> Row {
        self.put(at, &value.to_ne_bytes())
    }

    pub fn u64(self, at: usize, value: u64) -> Row {
        self.put(at, &value.to_ne_bytes())
    }

    pub fn put(mut self, at: usize, bytes: &[u8]) -> Row {
        self.body[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Without its last bytes.
    pub fn cut(mut self, bytes: usize) -> Row {
        self.body.truncate(self.body.len() - bytes);
        self
    }

    /// Without its last bytes, where it has any.
    pub fn cut_at_most(self, bytes: usize) -> Row {
        let there = self.body.len().min(bytes);
        self.cut(there)
    }

    /// With bytes behind it.
    pub fn tail(mut self, bytes: &[u8]) -> Row {
        self.body.extend(bytes);
        self
    }

    pub fn body(mut self, body: Vec<u8>) -> Row {
        self.body = body;
        self
    }

    pub fn flags(mut self, flags: u32) -> Row {
        self.flags = flags;
        self
    }

    /// Without those flags.
    pub fn unflag(mut self, flags: u32) -> Row {
        self.flags &= !flags;
        self
    }

    /// With descriptors beside those that it has.
    pub fn more(mut self, fds: &[Fd]) -> Row {
        self.fds.extend(fds);
        self
    }

    pub fn error(mut self, errno: u32) -> Row {
        self.error = errno;
        self
    }

    pub fn size(mut self, size: u32) -> Row {
        self.size = Some(size);
        self
    }

    /// With another id than it should have.
    pub fn off(mut self, by: u16) -> Row {
        self.off = by;
        self
    }

    pub fn fds(mut self, fds: &[Fd]) -> Row {
        self.fds = fds.to_vec();
        self
    }

    // What comes of it.

    pub fn refused(mut self, errno: i32) -> Row {
        self.wish = Wish::Refused(errno);
        self
    }

    pub fn ends(mut self, errno: Option<i32>) -> Row {
        self.wish = Wish::End(errno);
        self
    }

    /// Answered, with a body of that many bytes.
    pub fn answer(mut self, bytes: usize) -> Row {
        self.wish = Wish::Answer { size: Some(bytes), fields: BTreeMap::new(), fds: 0 };
        self
    }

    /// Answered, with a body of whatever length.
    pub fn answered(mut self) -> Row {
        self.wish = Wish::Answer { size: None, fields: BTreeMap::new(), fds: 0 };
        self
    }

    /// With these bytes in the answer; what is said later counts.
    pub fn says(mut self, at: usize, bytes: &[u8]) -> Row {
        if let Wish::Answer { fields, .. } = &mut self.wish {
            fields.extend((at..).zip(bytes.iter().copied()));
        }
        self
    }

    pub fn says_u32(self, at: usize, value: u32) -> Row {
        self.says(at, &value.to_ne_bytes())
    }

    pub fn says_u64(self, at: usize, value: u64) -> Row {
        self.says(at, &value.to_ne_bytes())
    }

    /// With this text in the answer.
    pub fn mentions(mut self, text: &'static str) -> Row {
        self.texts.push((true, text));
        self
    }

    /// Without this text in the answer.
    pub fn omits(mut self, text: &'static str) -> Row {
        self.texts.push((false, text));
        self
    }

    /// With that many descriptors beside the answer.
    pub fn brings(mut self, count: usize) -> Row {
        if let Wish::Answer { fds, .. } = &mut self.wish {
            *fds = count;
        }
        self
    }

    pub fn fires(mut self, first: u64, second: u64) -> Row {
        self.fires = [first, second];
        self
    }

    pub fn signals(mut self, event: usize) -> Row {
        self.signals = Some(event);
        self
    }

    /// Carried out, and not answered.
    pub fn silent(mut self) -> Row {
        self.flags |= NO_REPLY;
        self.wish = Wish::Silence;
        self
    }

    /// The reply to what the server asks, this command with this body, which is not
    /// answered in turn.
    pub fn reply_to(command: u16, asked: Vec<u8>, body: Vec<u8>) -> Row {
        let mut row = Row::new(command, body).flags(REPLY);
        (row.asked, row.wish) = (Some((command, asked)), Wish::Silence);
        row
    }

    // The rest is for whoever runs it.

    /// The message.
    pub fn message(&self, id: u16) -> Message {
        let size = self.size.unwrap_or((HEADER + self.body.len()) as u32);
        let Row { command, flags, error, .. } = *self;
        let body = self.body.clone();
        Message { id, command, size, flags, error, body, fds: Vec::new() }
    }

    /// Whether VERSION was agreed to by this.
    pub fn agrees(&self) -> bool {
        let this =
            self.command == 1 && matches!(self.wish, Wish::Answer { .. } | Wish::Silence);
        this || self.given.iter().any(Row::agrees) || self.then.iter().any(Row::agrees)
    }

    /// Whether an answer is the one that was wished for.
    pub fn check(&self, id: u16, got: &Message) -> Result<(), String> {
        let Message { command, size, flags, error, body, fds, .. } = got;
        if (got.id, *command) != (id, self.command) {
            return Err(format!("message {} of command {command} came", got.id));
        }
        if let Wish::Refused(errno) | Wish::End(Some(errno)) = &self.wish {
            return match (*flags, *error as i32, body.len()) {
                (flags, error, 0) if flags == REPLY | ERROR && error == *errno => Ok(()),
                (REPLY, _, _) => Err(format!("answered, {} bytes", body.len())),
                (flags, error, len) => {
                    Err(format!("errno {error}, flags {flags:#x}, {len} bytes of body"))
                }
            };
        }
        let Wish::Answer { size: wanted, fields, fds: count } = &self.wish else {
            return Err(format!("answered: flags {flags:#x}, errno {error}"));
        };
        if *flags != REPLY || *error != 0 {
            return Err(format!("errno {error}, flags {flags:#x}"));
        }
        if wanted.is_some_and(|wanted| wanted != body.len()) {
            return Err(format!("a body of {} bytes (size {size})", body.len()));
        }
        if let Some((at, byte)) =
            fields.iter().find(|(at, byte)| body.get(**at) != Some(*byte))
        {
            let body = &body[..body.len().min(64)];
            return Err(format!("byte {at} is not {byte:#x}: {body:x?}"));
        }
        let text = String::from_utf8_lossy(body);
        if let Some((there, part)) =
            self.texts.iter().find(|(t, p)| text.contains(p) != *t)
        {
            let has = if *there { "lacks" } else { "has" };
            return Err(format!("the answer {has} {part}: {text}"));
        }
        if fds.len() != *count {
            return Err(format!("{} descriptors", fds.len()));
        }
        Ok(())
    }
}
