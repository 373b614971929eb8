//! What a device with a migration region, its sessions and its dirty log share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use port::{DeviceError, Fault};
use states::mapping::Ending;
use states::v2::State;

use super::loading::Loading;
use super::saving::Saving;
use super::{MigrationRegion, Piece, Trouble};
use crate::device::{Line, fault};

/// How one generation uses the registers of its region. All that v1 and rfc2018 differ
/// in; sessions, limits and the way to the data are the same.
pub(crate) trait Protocol: Send + 'static {
    /// The state, as far as the device tells.
    fn state(&mut self, region: &MigrationRegion) -> Result<State, Trouble>;

    /// Walks to `to` from where [`Protocol::state`] just said that it is, write by
    /// write, each checked.
    fn go(
        &mut self,
        region: &MigrationRegion,
        to: State,
        ending: Ending,
    ) -> Result<(), Trouble>;

    /// The device was reset: it is in its first state.
    fn was_reset(&mut self, region: &MigrationRegion) -> Result<(), Trouble>;

    /// See [`port::Device::validated_at_start`].
    fn validated_at_start(&self) -> bool;

    /// What is left to read. `room` is what the caller could take, in bytes.
    fn pending(
        &mut self,
        region: &MigrationRegion,
        room: u64,
    ) -> Result<Pending, Trouble>;

    /// Asks for the next buffer.
    fn buffer(&mut self, region: &MigrationRegion) -> Result<Piece, Trouble>;

    /// Says that the buffer was read; what is left then, where that says so too.
    fn was_read(&mut self, region: &MigrationRegion) -> Result<Option<Pending>, Trouble>;

    /// Where the data is wanted, as an offset in the region.
    fn place(&mut self, region: &MigrationRegion) -> Result<u64, Trouble>;

    /// Says that a buffer was written.
    fn was_written(
        &mut self,
        region: &MigrationRegion,
        piece: Piece,
    ) -> Result<(), Trouble>;
}

/// What a device has left, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pending {
    /// What can be read while it runs.
    pub(crate) running: u64,
    /// What can be read once it has stopped.
    pub(crate) stopped: u64,
}

/// The one owner of a region.
pub(crate) struct Inner<P> {
    pub(crate) region: MigrationRegion,
    pub(crate) protocol: P,
    pub(crate) session: Session,
    /// Counts the sessions: an old one must not reach into a new one's data.
    pub(crate) epoch: u64,
    /// Where the device last put or wanted data.
    pub(crate) place: Option<u64>,
    pub(crate) line: Line,
}

/// What goes on.
pub(crate) enum Session {
    None,
    Saving(Saving),
    Loading(Loading),
}

/// The region, shared by its device, its sessions and its dirty log.
pub(crate) type Shared<P> = Arc<Mutex<Inner<P>>>;

pub(crate) fn lock<P>(shared: &Shared<P>) -> MutexGuard<'_, Inner<P>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<P: Protocol> Inner<P> {
    pub(crate) fn new(region: MigrationRegion, mut protocol: P) -> Inner<P> {
        let line = Line::new(Arc::clone(region.transport()));
        // Outside of every session this consumes nothing. Whoever does not answer it
        // tells by its first buffer.
        let place = protocol.place(&region).ok();
        let place = place.filter(|place| region.room(*place).is_ok());
        Inner { region, protocol, session: Session::None, epoch: 0, place, line }
    }

    pub(crate) fn state(&mut self) -> Result<State, Trouble> {
        self.protocol.state(&self.region)
    }

    /// Ends what goes on.
    pub(crate) fn close(&mut self) {
        self.session = Session::None;
        self.epoch += 1;
    }

    /// Opens a session; its number.
    pub(crate) fn open(&mut self, session: Session) -> u64 {
        self.close();
        self.session = session;
        self.epoch
    }

    /// How the session ends, as the device has to be told: one that failed or was given
    /// up before everything was read is never complete.
    pub(crate) fn ending(&self) -> Ending {
        match &self.session {
            Session::Saving(saving) if saving.failed.is_some() => Ending::Failed,
            Session::Saving(saving) if !saving.complete => Ending::Cancelled,
            Session::Loading(loading) if loading.failed.is_some() => Ending::Failed,
            Session::None | Session::Saving(_) | Session::Loading(_) => Ending::Complete,
        }
    }

    /// Why a session of an earlier epoch is no more.
    pub(crate) fn over(&mut self, operation: &str) -> DeviceError {
        if matches!(self.state(), Ok(State::Running)) {
            return self.line.session_gone(operation);
        }
        self.line.broken(operation, "its session is over".to_owned())
    }

    /// An error of a session. The device may have been reset by its guest, which ends
    /// every session; asked again, since nothing remembered is trusted.
    pub(crate) fn session_error(
        &mut self,
        operation: &str,
        trouble: Trouble,
    ) -> DeviceError {
        let lost = matches!(&trouble, Trouble::Transport(e) if fault(e).is_lost());
        if !lost && matches!(self.state(), Ok(State::Running)) {
            return self.line.session_gone(operation);
        }
        self.error(operation, trouble)
    }

    pub(crate) fn error(&self, operation: &str, trouble: Trouble) -> DeviceError {
        match trouble {
            Trouble::Transport(error) => self.line.error(operation, error),
            Trouble::Lie(what) => self.line.broken(operation, what),
            Trouble::WasReset => self.line.session_gone(operation),
            Trouble::NoRoute(source) => DeviceError {
                source: Some(Box::new(source)),
                ..DeviceError::new(
                    self.line.name(),
                    operation,
                    Fault::Refused(abi::errno::Errno::EINVAL),
                )
            },
        }
    }
}
