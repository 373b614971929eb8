//! The rfc2018 generation (document 001): how its registers are used.
//!
//! | engine | written |
//! | --- | --- |
//! | `Running` | RUNNING; NONE before anything was written |
//! | `PreCopy` | SETUP, PRECOPY |
//! | `StopCopy` | STOPNCOPY, after SETUP where there was no pre-copy |
//! | `Stop` | SETUP, STOPNCOPY and nothing read; `SAVE_COMPLETED`; `RESUME_COMPLETED` |
//! | `Resuming` | RESUME |
//! | `Error` | none: after a failed write nothing is known, which ends in reset |
//! | back to `Running` | CANCELLED, or FAILED where the session failed; RUNNING |
//!
//! ```text
//!  save    threshold_size  pending{}  data{}  data    threshold_size  pending{} ...
//!  resume  data{}  data  data{offset, size}    data{} ...
//!  dirty   dirty_pfns{start, total, 0}   dirty_pfns{.., copied}  bitmap   dirty_pfns{} ..
//! ```
//!
//! Every access is of one field or one whole sub-structure (`{}`), as in the document's
//! own VMM. `data` is read once a buffer, because reading it may be what makes the
//! next one. The state is tracked, because the document has it as input only; where a
//! device lets it be read all the same, what it says has to agree.

mod dirty_pfns;

pub(crate) use dirty_pfns::DirtyQuery;

use abi::rfc2018::{DataSection, FlowState, PendingBytes, RfcField};
use states::mapping::{Ending, Position};
use states::rfc2018::RfcState;
use states::v2::State;
use zerocopy::{FromBytes, IntoBytes};

use crate::region::buffers::{Pending, Protocol};
use crate::region::device::RegionDevice;
use crate::region::{MigrationRegion, Piece, Trouble};
use crate::transport::TransportError;

/// A device of the rfc2018 generation.
pub(crate) type Rfc2018Device = RegionDevice<Rfc2018>;

/// Where such a device is.
pub(crate) struct Rfc2018 {
    position: Position<RfcState>,
    /// A write failed, or it said something else than it was told: its state is not
    /// known until it is reset.
    unknown: bool,
}

impl Rfc2018 {
    pub(crate) fn new() -> Rfc2018 {
        Rfc2018 { position: Position::<RfcState>::start(), unknown: false }
    }

    /// What the device says of its state; `None` where it says nothing: the document has
    /// the field as input, and 0 is what an unreadable register reads.
    fn said(region: &MigrationRegion) -> Result<Option<FlowState>, Trouble> {
        match region.register(RfcField::DeviceState.at()) {
            Ok(bytes) => {
                let number = FlowState(u32::from_ne_bytes(bytes));
                Ok(Some(number).filter(|number| *number != FlowState::NONE))
            }
            Err(Trouble::Transport(TransportError::Errno { .. })) => Ok(None),
            Err(trouble) => Err(trouble),
        }
    }

    /// Compares what the device says with what it was told. A device that runs, and was
    /// told otherwise, was reset.
    fn look(&mut self, region: &MigrationRegion) -> Result<(), Trouble> {
        if self.unknown {
            return Ok(());
        }
        let told = self.position.written();
        match Self::said(region)? {
            None => Ok(()),
            Some(said) if said == told.number() => Ok(()),
            Some(FlowState::RUNNING) => {
                self.position = Position::<RfcState>::start();
                Ok(())
            }
            Some(said) => {
                self.unknown = true;
                Trouble::lie(format!("it was told {told}, and says {said}"))
            }
        }
    }

    /// One write. Its answer is success or failure: how many bytes were written is not
    /// the point.
    fn write(&mut self, region: &MigrationRegion, to: RfcState) -> Result<(), Trouble> {
        // Until it is proved otherwise.
        self.unknown = true;
        region.set_state(RfcField::DeviceState.at(), to.number().0.as_bytes())?;
        let (device, before) = (region.transport().name(), self.position.written());
        tracing::debug!(device, %before, %to, "written");
        let undone = matches!(to, RfcState::Cancelled | RfcState::Failed);
        match Self::said(region)? {
            Some(FlowState::RUNNING) if undone => {}
            Some(said) if said != to.number() => {
                return Trouble::lie(format!(
                    "its state was set to {to}, and reads back as {said}"
                ));
            }
            _ => {}
        }
        self.unknown = false;
        Ok(())
    }

    /// The device refused to leave pre-copy. If it takes SETUP, it is not in pre-copy:
    /// its guest reset it, and no state that can be read told so. It runs again then.
    fn was_it_reset(&mut self, region: &MigrationRegion) -> Option<Trouble> {
        for step in [RfcState::Setup, RfcState::Cancelled, RfcState::Running] {
            self.write(region, step).ok()?;
        }
        self.position = Position::<RfcState>::start();
        Some(Trouble::WasReset)
    }
}

/// Whether the device answered, and said no.
fn refused(trouble: &Trouble) -> bool {
    matches!(trouble, Trouble::Transport(TransportError::Errno { .. }))
}

impl Protocol for Rfc2018 {
    fn state(&mut self, region: &MigrationRegion) -> Result<State, Trouble> {
        self.look(region)?;
        Ok(if self.unknown { State::Error } else { self.position.engine() })
    }

    fn go(
        &mut self,
        region: &MigrationRegion,
        to: State,
        ending: Ending,
    ) -> Result<(), Trouble> {
        if self.unknown {
            return Err(states::mapping::NoRoute::FromError.into());
        }
        let route = self.position.route(to, ending)?;
        let reads_ahead = self.position.engine() == State::PreCopy;
        for (n, write) in route.writes().iter().enumerate() {
            match self.write(region, *write) {
                Ok(()) => {}
                Err(trouble) if n == 0 && reads_ahead && refused(&trouble) => {
                    return Err(self.was_it_reset(region).unwrap_or(trouble));
                }
                Err(trouble) => return Err(trouble),
            }
        }
        self.position = route.then();
        Ok(())
    }

    fn was_reset(&mut self, region: &MigrationRegion) -> Result<(), Trouble> {
        self.position = Position::<RfcState>::start();
        self.unknown = false;
        match Self::said(region)? {
            None | Some(FlowState::RUNNING) => Ok(()),
            // What it held is gone, so running runs nothing of a guest's.
            Some(_) => self.write(region, RfcState::Running),
        }
    }

    fn validated_at_start(&self) -> bool {
        false
    }

    fn pending(
        &mut self,
        region: &MigrationRegion,
        room: u64,
    ) -> Result<Pending, Trouble> {
        region.set_register(RfcField::ThresholdSize.at(), room.as_bytes())?;
        let bytes: [u8; size_of::<PendingBytes>()] =
            region.register(RfcField::Pending.at())?;
        let pending = PendingBytes::read_from_bytes(&bytes)
            .map_err(|_| Trouble::Lie("its pending bytes cannot be read".to_owned()))?;
        let running = pending.precopy_only.checked_add(pending.compatible);
        let stopped = running.and_then(|some| some.checked_add(pending.postcopy_only));
        match (running, stopped) {
            (Some(running), Some(stopped)) => Ok(Pending { running, stopped }),
            _ => Trouble::lie("it has more than 2^64 bytes left"),
        }
    }

    fn buffer(&mut self, region: &MigrationRegion) -> Result<Piece, Trouble> {
        let bytes: [u8; size_of::<DataSection>()] =
            region.register(RfcField::Data.at())?;
        let data = DataSection::read_from_bytes(&bytes)
            .map_err(|_| Trouble::Lie("its buffer cannot be read".to_owned()))?;
        Ok(Piece { offset: data.offset, size: data.size })
    }

    fn was_read(&mut self, _: &MigrationRegion) -> Result<Option<Pending>, Trouble> {
        // Asking for the next one says it.
        Ok(None)
    }

    fn place(&mut self, region: &MigrationRegion) -> Result<u64, Trouble> {
        Ok(self.buffer(region)?.offset)
    }

    fn was_written(
        &mut self,
        region: &MigrationRegion,
        piece: Piece,
    ) -> Result<(), Trouble> {
        let data = DataSection { offset: piece.offset, size: piece.size };
        region.set_register(RfcField::Data.at(), data.as_bytes())
    }
}
