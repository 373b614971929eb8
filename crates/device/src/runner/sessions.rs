//! Data sessions: whose bytes these are, and whether they still count.

use super::Runner;
use crate::PrecopyInfo;
use abi::errno::Errno;
use states::v2::State;

/// A data session. Two are the same only if their numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    pub(super) number: u64,
    pub(super) direction: Direction,
}

impl Session {
    /// Counts the sessions of this device, from 1.
    pub fn number(self) -> u64 {
        self.number
    }

    /// Which way its bytes go.
    pub fn direction(self) -> Direction {
        self.direction
    }
}

/// Which way the bytes of a session go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Out of the device.
    Save,
    /// Into the device.
    Resume,
}

impl Runner {
    /// The session that is open.
    pub fn session(&self) -> Option<Session> {
        self.session.as_ref().map(|open| open.session)
    }

    /// Reads the next bytes of a save session. 0 means nothing for now in `PRE_COPY` and
    /// `PRE_COPY_P2P` (the kernel says `ENOMSG`), and the end for good in `STOP_COPY`.
    ///
    /// # Errors
    ///
    /// `ENODEV` for a session that died, `EBADF` for a resume session, `EINVAL` for an
    /// empty buffer; what the model said, from then on.
    pub fn read_data(
        &mut self,
        session: Session,
        into: &mut [u8],
    ) -> Result<usize, Errno> {
        let open = live(&mut self.session, session, Direction::Save)?;
        if into.is_empty() {
            return Err(Errno::EINVAL);
        }
        if open.ended {
            return Ok(0);
        }
        let read = self.model.save(into).and_then(|read| {
            // A model that claims more than there was room for cannot be believed.
            if read > into.len() { Err(Errno::EIO) } else { Ok(read) }
        });
        open.ended = read == Ok(0) && self.state == State::StopCopy;
        open.failed = read.err();
        read
    }

    /// As [`read_data`](Self::read_data), from where the model has the bytes, if it lends
    /// them; else they are in `room`.
    ///
    /// # Errors
    ///
    /// As [`read_data`](Self::read_data).
    pub fn lend_data<'a>(
        &'a mut self,
        session: Session,
        room: &'a mut [u8],
    ) -> Result<&'a [u8], Errno> {
        let open = live(&mut self.session, session, Direction::Save)?;
        if room.is_empty() {
            return Err(Errno::EINVAL);
        }
        if open.ended {
            return Ok(&[]);
        }
        let most = room.len();
        let lent = self.model.save_lent(room).and_then(|bytes| {
            if bytes.len() > most { Err(Errno::EIO) } else { Ok(bytes) }
        });
        open.ended = lent == Ok(&[]) && self.state == State::StopCopy;
        open.failed = lent.err();
        lent
    }

    /// Gives a resume session the next bytes, all of them.
    ///
    /// # Errors
    ///
    /// `ENODEV` for a session that died, `EBADF` for a save session; what the model
    /// said, from then on.
    pub fn write_data(&mut self, session: Session, data: &[u8]) -> Result<(), Errno> {
        let open = live(&mut self.session, session, Direction::Resume)?;
        if let Some(errno) = self.load_failed {
            return Err(errno);
        }
        let loaded = self.model.load(data);
        open.failed = loaded.err();
        self.load_failed = loaded.err();
        loaded
    }

    /// What pre-copy has left.
    ///
    /// # Errors
    ///
    /// `EINVAL` outside of `PRE_COPY` and `PRE_COPY_P2P`, `ENODEV` for a session that
    /// died.
    pub fn precopy_info(&mut self, session: Session) -> Result<PrecopyInfo, Errno> {
        if !matches!(self.state, State::PreCopy | State::PreCopyP2p) {
            return Err(Errno::EINVAL);
        }
        live(&mut self.session, session, Direction::Save)?;
        self.model.precopy_info()
    }

    /// An estimate of what stop-copy will move (`MIG_DATA_SIZE`), in every state.
    pub fn stop_copy_bytes(&self) -> u64 {
        self.model.stop_copy_bytes()
    }
}

/// A session that is open.
pub(super) struct Open {
    pub(super) session: Session,
    /// The stop-copy data was read to its end.
    pub(super) ended: bool,
    pub(super) failed: Option<Errno>,
}

/// The open session, where it is `session` and of that direction.
fn live(
    open: &mut Option<Open>,
    session: Session,
    direction: Direction,
) -> Result<&mut Open, Errno> {
    match open {
        Some(open) if open.session == session => {
            if session.direction != direction {
                return Err(Errno::EBADF);
            }
            match open.failed {
                Some(errno) => Err(errno),
                None => Ok(open),
            }
        }
        _ => Err(Errno::ENODEV),
    }
}
