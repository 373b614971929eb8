//! Data in pieces: what is read, acknowledged and written through the section.

use super::Reach;
use super::section::Section;
use crate::{Direction, Runner, Session};
use abi::errno::Errno;
use states::v2::State;

/// The buffer between a session and the section.
///
/// What is saved is kept here until it is acknowledged, so that it can be shown as often
/// as it is asked for, whatever else was in the section meanwhile (rfc2018 puts bitmaps
/// there, and a client that maps it may write to it).
#[derive(Default)]
pub(super) struct Transfer {
    /// Whose bytes these are.
    session: Option<Session>,
    buffer: Vec<u8>,
    /// How much of it is data of the session, in bytes.
    length: usize,
    /// How much of that was initial data, in bytes.
    initial: u64,
    /// It was asked for: the next question for what is pending acknowledges it.
    shown: bool,
}

/// What is still to be read, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pending {
    /// The buffer that is ready. 0 says that there is nothing for now, and in
    /// stop-and-copy the end.
    pub(super) ready: u64,
    /// Of the buffer and the model, in pre-copy: initial data.
    pub(super) initial: u64,
    /// Of the buffer and the model, in pre-copy: what changed.
    pub(super) dirty: u64,
    /// All of it, as far as the model knows: never 0 while something is ready.
    pub(super) whole: u64,
}

impl Reach<'_> {
    /// Whether the device is in a state in which it is read.
    pub(super) fn saves(&self) -> bool {
        let state = self.runner.state();
        matches!(state, State::PreCopy | State::PreCopyP2p | State::StopCopy)
    }

    /// Acknowledges the buffer that was asked for, looks ahead for the next one, and
    /// tells what is left. All 0 in a state in which nothing is read.
    pub(super) fn pending(&mut self) -> Result<Pending, Errno> {
        if !self.saves() {
            return Ok(Pending::default());
        }
        if self.transfer.is_of(self.runner) && self.transfer.shown {
            self.transfer.length = 0;
        }
        self.transfer.fill(self.runner, self.section)?;
        let ready = self.transfer.length as u64;
        let stopped = self.runner.stop_copy_bytes();
        if self.runner.state() == State::StopCopy {
            // An estimate of the rest must not look like data when it was all read.
            let whole = if ready == 0 { 0 } else { ready.saturating_add(stopped) };
            return Ok(Pending { ready, initial: 0, dirty: 0, whole });
        }
        let info = precopy_info(self.runner)?;
        let initial = info.0.saturating_add(self.transfer.initial);
        let dirty = info.1.saturating_add(ready - self.transfer.initial);
        let whole = initial.saturating_add(dirty).max(ready.saturating_add(stopped));
        Ok(Pending { ready, initial, dirty, whole })
    }

    /// Puts the current buffer into the section, where there is one, and says how long
    /// it is. Nothing happens in a state in which nothing is read.
    pub(super) fn show(&mut self) -> Result<u64, Errno> {
        if !self.saves() {
            return Ok(0);
        }
        self.transfer.fill(self.runner, self.section)?;
        let data = &self.transfer.buffer[..self.transfer.length];
        if !data.is_empty() {
            self.section.write(self.section.at(), data)?;
            self.transfer.shown = true;
        }
        Ok(data.len() as u64)
    }

    /// How long the buffer is that was asked for, in bytes; 0 where none was.
    pub(super) fn shown(&self) -> u64 {
        let current = self.saves() && self.transfer.is_of(self.runner);
        if current && self.transfer.shown { self.transfer.length as u64 } else { 0 }
    }

    /// Hands `length` bytes at `offset` of the region to the model, as one transaction.
    pub(super) fn load(&mut self, offset: u64, length: u64) -> Result<(), Errno> {
        // Sized only after it was found to be inside the section.
        let size = usize::try_from(length).map_err(|_| Errno::EINVAL)?;
        if self.runner.state() != State::Resuming || !self.section.holds(offset, size) {
            return Err(Errno::EINVAL);
        }
        let session = self.runner.session().ok_or(Errno::ENODEV)?;
        self.transfer.begin(session);
        let buffer = &mut self.transfer.buffer;
        buffer.resize(size.max(buffer.len()), 0);
        // A copy: a client that maps the section may go on writing to it.
        self.section.read(offset, &mut buffer[..size])?;
        self.runner.write_data(session, &buffer[..size])
    }
}

impl Transfer {
    fn is_of(&self, runner: &Runner) -> bool {
        self.session.is_some() && self.session == runner.session()
    }

    /// Forgets what an earlier session left.
    fn begin(&mut self, session: Session) {
        if self.session != Some(session) {
            *self = Transfer { session: Some(session), ..Transfer::default() };
        }
    }

    /// Reads the next buffer from the model, unless there is one.
    fn fill(&mut self, runner: &mut Runner, section: &Section) -> Result<(), Errno> {
        let session = runner.session().ok_or(Errno::ENODEV)?;
        if session.direction() != Direction::Save {
            return Err(Errno::EBADF);
        }
        self.begin(session);
        if self.length > 0 {
            return Ok(());
        }
        self.shown = false;
        self.initial = 0;
        let (before, _) = precopy_info(runner)?;
        self.buffer.resize(section.length() as usize, 0);
        let mut length = 0;
        while length < self.buffer.len() {
            match runner.read_data(session, &mut self.buffer[length..]) {
                Ok(0) | Err(Errno::ENOMSG) => break,
                Ok(more) => length += more,
                Err(errno) => return Err(errno),
            }
        }
        let (after, _) = precopy_info(runner)?;
        self.length = length;
        self.initial = before.saturating_sub(after).min(length as u64);
        Ok(())
    }
}

/// What the model says of pre-copy, initial and dirty bytes; nothing outside of it.
fn precopy_info(runner: &mut Runner) -> Result<(u64, u64), Errno> {
    match runner.session() {
        Some(session) if matches!(runner.state(), State::PreCopy | State::PreCopyP2p) => {
            let info = runner.precopy_info(session)?;
            Ok((info.initial_bytes, info.dirty_bytes))
        }
        _ => Ok((0, 0)),
    }
}
