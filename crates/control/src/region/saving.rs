//! The save session of a device with a migration region.
//!
//! ```text
//!   what is left? -- 0 ------------------------------> an end: check the state, say so
//!        | more
//!   next buffer: where, how long -> checked
//!        |
//!   its bytes, in as many reads as the caller makes;
//!   the last one ends a transaction
//!        |
//!   "it was read" (v1: what is left then) -> the same again
//! ```
//!
//! PRE_COPY and STOP_COPY share it. A buffer that is partly read when the device is
//! told to stop is read to its end first, since the device may use its place again; a
//! dirty query does the same.

use abi::errno::Errno;
use port::{DeviceError, Fault, PrecopyInfo, Read, SaveSession};
use states::v2::State;

use super::buffers::{Inner, Pending, Protocol, Session, Shared, lock};
use super::patience::Patience;
use super::{Piece, Trouble};

/// The most bytes of a partly read buffer that are kept: 64 MiB.
const MOST_KEPT: u64 = 64 << 20;

/// The most buffers of less than 4 KiB on average that one run of pre-copy takes before
/// it is at a temporary end, whatever the device says.
const MOST_SMALL: u64 = 1 << 14;

/// What is read.
pub(crate) struct Saving {
    /// PRE_COPY or STOP_COPY.
    phase: State,
    /// The buffer that is being read, and how much of it was.
    buffer: Option<(Piece, u64)>,
    /// The rest of a buffer that had to be read ahead, given from `kept_from` on.
    kept: Vec<u8>,
    kept_from: usize,
    /// What was left when the last buffer was given back.
    next: Option<Pending>,
    /// What the device said last.
    last: Pending,
    /// Whether a read was at an end.
    ended: bool,
    /// Whether all was read that the stopped device has.
    pub(crate) complete: bool,
    /// What was pending at first, and how much was taken since, in bytes.
    initial: Option<u64>,
    taken: u64,
    /// Buffers and bytes since the last end in pre-copy.
    run: (u64, u64),
    patience: Patience,
    /// Why nothing of this session is to be used.
    pub(crate) failed: Option<String>,
}

impl Saving {
    pub(crate) fn new(phase: State) -> Saving {
        Saving {
            phase,
            buffer: None,
            kept: Vec::new(),
            kept_from: 0,
            next: None,
            last: Pending::default(),
            ended: false,
            complete: false,
            initial: None,
            taken: 0,
            run: (0, 0),
            patience: Patience::new(),
            failed: None,
        }
    }

    /// The device went from PRE_COPY to STOP_COPY.
    pub(crate) fn stopped(&mut self) {
        self.phase = State::StopCopy;
        self.next = None;
    }

    fn readable(&self, pending: Pending) -> u64 {
        if self.phase == State::PreCopy { pending.running } else { pending.stopped }
    }

    /// How much of a buffer was not given yet.
    fn unread(&self) -> u64 {
        let buffer = self.buffer.map_or(0, |(piece, taken)| piece.size - taken);
        buffer + (self.kept.len() - self.kept_from) as u64
    }
}

impl<P: Protocol> Inner<P> {
    fn read(&mut self, into: &mut [u8]) -> Result<Read, Trouble> {
        let Self { region, protocol, session: Session::Saving(saving), place, .. } = self
        else {
            return Trouble::lie("it has no save session");
        };
        if saving.kept_from < saving.kept.len() {
            let left = &saving.kept[saving.kept_from..];
            let bytes = left.len().min(into.len());
            into[..bytes].copy_from_slice(&left[..bytes]);
            saving.kept_from += bytes;
            let ends_transaction = saving.kept_from == saving.kept.len();
            if ends_transaction {
                saving.kept = Vec::new();
                saving.kept_from = 0;
            }
            return Ok(Read::Data { bytes, ends_transaction });
        }
        while saving.buffer.is_none() {
            let pending = match saving.next.take() {
                Some(pending) => pending,
                None => protocol.pending(region, into.len() as u64)?,
            };
            saving.last = pending;
            let left = saving.readable(pending);
            let running = saving.phase == State::PreCopy;
            saving.initial.get_or_insert(left);
            let (buffers, bytes) = saving.run;
            let small = running && buffers >= MOST_SMALL + bytes / 4096;
            if left == 0 || small {
                saving.next = (left != 0).then_some(pending);
                return self.end(left == 0);
            }
            let piece = protocol.buffer(region)?;
            region.check(piece)?;
            if !running {
                saving.patience.take(left, piece.size).map_err(Trouble::Lie)?;
            }
            saving.run = (buffers + 1, bytes.saturating_add(piece.size));
            saving.taken = saving.taken.saturating_add(piece.size);
            *place = Some(piece.offset);
            if piece.size > 0 {
                saving.buffer = Some((piece, 0));
                break;
            }
            let after = protocol.was_read(region)?;
            if running {
                // Some count what they will have once they are stopped.
                return self.end(true);
            }
            saving.next = after;
        }
        let Some((piece, taken)) = &mut saving.buffer else {
            return Trouble::lie("it has no buffer");
        };
        let bytes = usize::try_from(piece.size - *taken).unwrap_or(usize::MAX);
        let bytes = bytes.min(into.len());
        region.read(piece.offset + *taken, &mut into[..bytes])?;
        *taken += bytes as u64;
        let ends_transaction = *taken == piece.size;
        if ends_transaction {
            saving.buffer = None;
            saving.next = protocol.was_read(region)?;
        }
        Ok(Read::Data { bytes, ends_transaction })
    }

    /// An end, if the device is still where it was: one that was reset has nothing left
    /// either.
    fn end(&mut self, ended: bool) -> Result<Read, Trouble> {
        let now = self.state()?;
        let Session::Saving(saving) = &mut self.session else {
            return Trouble::lie("it has no save session");
        };
        saving.run = (0, 0);
        if now == saving.phase {
            saving.ended |= ended;
            saving.complete = ended && now == State::StopCopy;
            return Ok(Read::End);
        }
        if now == State::Running {
            return Err(Trouble::WasReset);
        }
        Trouble::lie(format!("it is at an end in {now}, and was in {}", saving.phase))
    }

    /// Reads the buffer that is under way to its end, since what comes next may use its
    /// place.
    pub(crate) fn keep(&mut self) -> Result<(), Trouble> {
        let Self { region, protocol, session: Session::Saving(saving), .. } = self else {
            return Ok(());
        };
        let Some((piece, taken)) = saving.buffer else { return Ok(()) };
        let left = piece.size - taken;
        if left > MOST_KEPT {
            return Trouble::lie(format!(
                "{left} bytes of a buffer are not read yet; read it to its end first"
            ));
        }
        let mut rest = vec![0; usize::try_from(left).unwrap_or(0)];
        region.read(piece.offset + taken, &mut rest)?;
        saving.kept = rest;
        saving.kept_from = 0;
        saving.buffer = None;
        saving.next = protocol.was_read(region)?;
        Ok(())
    }

    /// What is left, where a session is open for it.
    pub(crate) fn left(&mut self) -> Result<Option<Pending>, Trouble> {
        let Self { region, protocol, session: Session::Saving(saving), .. } = self else {
            return Ok(None);
        };
        let unread = saving.unread();
        if saving.buffer.is_some() {
            // Asking would say that the buffer was read.
            let left = |all: u64| all.saturating_sub(saving.run_taken()).max(unread);
            let Pending { running, stopped } = saving.last;
            return Ok(Some(Pending { running: left(running), stopped: left(stopped) }));
        }
        let pending = protocol.pending(region, 0)?;
        (saving.last, saving.next) = (pending, None);
        let Pending { running, stopped } = pending;
        let with = |all: u64| all.saturating_add(unread);
        Ok(Some(Pending { running: with(running), stopped: with(stopped) }))
    }
}

impl Saving {
    /// How much of the buffer under way was read.
    fn run_taken(&self) -> u64 {
        self.buffer.map_or(0, |(_, taken)| taken)
    }
}

/// A save session, for whoever reads it.
pub(crate) struct Save<P> {
    shared: Shared<P>,
    epoch: u64,
}

impl<P: Protocol> Save<P> {
    pub(crate) fn new(shared: Shared<P>, epoch: u64) -> Save<P> {
        Save { shared, epoch }
    }
}

impl<P: Protocol> SaveSession for Save<P> {
    fn read(&mut self, into: &mut [u8]) -> Result<Read, DeviceError> {
        const OPERATION: &str = "read its data";
        let inner = &mut *lock(&self.shared);
        if inner.epoch != self.epoch {
            return Err(inner.over(OPERATION));
        }
        if into.is_empty() {
            let what = "asked for no bytes".to_owned();
            return Err(inner.line.broken(OPERATION, what));
        }
        if let Session::Saving(Saving { failed: Some(why), .. }) = &inner.session {
            let what = format!("its data is not complete: {why}");
            return Err(inner.line.broken(OPERATION, what));
        }
        inner.read(into).map_err(|trouble| {
            // What was given so far is a part, and never passes for all of it.
            if let Session::Saving(saving) = &mut inner.session {
                saving.failed = Some(trouble.to_string());
            }
            inner.session_error(OPERATION, trouble)
        })
    }

    fn precopy_info(&mut self) -> Result<Option<PrecopyInfo>, DeviceError> {
        const OPERATION: &str = "ask what pre-copy has left";
        let inner = &mut *lock(&self.shared);
        if inner.epoch != self.epoch {
            return Err(inner.over(OPERATION));
        }
        if !matches!(&inner.session, Session::Saving(s) if s.phase == State::PreCopy) {
            let fault = Fault::Refused(Errno::EINVAL);
            return Err(DeviceError::new(inner.line.name(), OPERATION, fault));
        }
        let left = inner.left().map_err(|why| inner.session_error(OPERATION, why))?;
        let (Some(left), Session::Saving(saving)) = (left, &mut inner.session) else {
            return Ok(None);
        };
        // Nobody tells which bytes are the initial ones. They are as many as were pending
        // at first: a device that works may never come to an end.
        let initial = *saving.initial.get_or_insert(left.running);
        let given = saving.taken.saturating_sub(saving.unread());
        let initial = if saving.ended { 0 } else { initial.saturating_sub(given) };
        Ok(Some(PrecopyInfo {
            initial_bytes: initial.min(left.running),
            dirty_bytes: left.running.saturating_sub(initial),
            reinit: false,
        }))
    }
}
