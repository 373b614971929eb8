//! The v1 generation (document 000, Linux 5.8 to 5.17): how its registers are used.
//!
//! | engine | `device_state` | |
//! | --- | --- | --- |
//! | `Running` | 001 | |
//! | `PreCopy` | 011 | |
//! | `StopCopy` | 010 | straight from 001, 011 or 000 |
//! | `Stop` | 000 | after a load also 100, of a device that refuses 000 there: all its data is consumed, and checked when it starts |
//! | `Resuming` | 100 | |
//! | `Error` | 110 | left by a reset alone |
//!
//! ```text
//!  save    pending_bytes  data_offset  data_size  data  pending_bytes  data_offset ...
//!  resume  data_offset  data  data_size    data_offset ...
//! ```
//!
//! Every access is of one field, at its own width. A write of `device_state` changes its
//! three bits in what was just read, and is read back; after a failure too, since the
//! device may have kept its state, or be in error.

use abi::errno::Errno;
use abi::v1::{StateBits, V1Field};
use states::mapping::{Ending, Position};
use states::v1::V1State;
use states::v2::State;

use crate::region::buffers::{Pending, Protocol};
use crate::region::device::RegionDevice;
use crate::region::{MigrationRegion, Piece, Trouble};

/// A device of the v1 generation.
pub(crate) type V1Device = RegionDevice<V1>;

/// Where such a device is.
pub(crate) struct V1 {
    position: Position<V1State>,
    /// Whether it leaves 100 for 000, once that was tried.
    loads_to_stop: Option<bool>,
}

impl V1 {
    pub(crate) fn new() -> V1 {
        V1 { position: Position::<V1State>::start(), loads_to_stop: None }
    }

    fn bits(region: &MigrationRegion) -> Result<StateBits, Trouble> {
        let bytes = region.register(V1Field::DeviceState.at())?;
        Ok(StateBits::from_bits_retain(u32::from_ne_bytes(bytes)))
    }

    fn number(region: &MigrationRegion, field: V1Field) -> Result<u64, Trouble> {
        Ok(u64::from_ne_bytes(region.register(field.at())?))
    }

    /// Where the device is: what it says, and of a 100 what became of its load.
    fn look(&mut self, region: &MigrationRegion) -> Result<(), Trouble> {
        let bits = Self::bits(region)?;
        let read = Position::<V1State>::read(bits)
            .map_err(|invalid| Trouble::Lie(invalid.to_string()))?;
        let waits = self.position.validates_at_start();
        if !(waits && read.written() == V1State::Resuming) {
            self.position = read;
        }
        Ok(())
    }

    /// One write, read back.
    fn write(region: &MigrationRegion, to: V1State) -> Result<(), Trouble> {
        let read = Self::bits(region)?;
        let bytes = to.onto(read).bits().to_ne_bytes();
        region.set_state(V1Field::DeviceState.at(), &bytes)?;
        let now = Self::bits(region)?;
        let device = region.transport().name();
        tracing::debug!(device, before = read.bits(), %to, after = now.bits(), "written");
        if now.defined() == to.bits() {
            return Ok(());
        }
        if now.defined() == V1State::Running.bits() && read.defined() != now.defined() {
            return Err(Trouble::WasReset);
        }
        Trouble::lie(format!(
            "its state was set to {to}, and reads back as {:#05b}",
            now.defined().bits()
        ))
    }
}

/// Whether an errno says that there is no such transition, rather than that it failed.
fn says_no_way(trouble: &Trouble) -> bool {
    let Trouble::Transport(error) = trouble else { return false };
    matches!(
        error.errno(),
        Some(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::ENOSYS)
    )
}

impl Protocol for V1 {
    fn state(&mut self, region: &MigrationRegion) -> Result<State, Trouble> {
        self.look(region)?;
        Ok(self.position.engine())
    }

    fn go(
        &mut self,
        region: &MigrationRegion,
        to: State,
        ending: Ending,
    ) -> Result<(), Trouble> {
        let route = self.position.route(to, ending)?;
        let loaded = (self.position.engine(), to) == (State::Resuming, State::Stop);
        for write in route.writes() {
            let Err(trouble) = Self::write(region, *write) else { continue };
            if let Some(waits) = route.if_refused().filter(|_| says_no_way(&trouble))
                && Self::bits(region)?.defined() == V1State::Resuming.bits()
            {
                let device = region.transport().name();
                tracing::info!(device, %trouble, "its load is validated at start");
                self.position = waits;
                self.loads_to_stop = Some(false);
                return Ok(());
            }
            return Err(trouble);
        }
        self.position = route.then();
        if loaded {
            self.loads_to_stop = Some(true);
        }
        Ok(())
    }

    fn was_reset(&mut self, region: &MigrationRegion) -> Result<(), Trouble> {
        self.position = Position::<V1State>::start();
        self.look(region)?;
        match self.position.written() {
            V1State::Running => Ok(()),
            V1State::Error => Trouble::lie("it is in error (110) after a reset"),
            // What it held is gone, so running runs nothing of a guest's.
            _ => {
                Self::write(region, V1State::Running)?;
                self.look(region)
            }
        }
    }

    fn validated_at_start(&self) -> bool {
        // Not known before it was tried: it may be so.
        self.loads_to_stop != Some(true)
    }

    fn pending(&mut self, region: &MigrationRegion, _: u64) -> Result<Pending, Trouble> {
        let bytes = Self::number(region, V1Field::PendingBytes)?;
        Ok(Pending { running: bytes, stopped: bytes })
    }

    fn buffer(&mut self, region: &MigrationRegion) -> Result<Piece, Trouble> {
        Ok(Piece {
            offset: Self::number(region, V1Field::DataOffset)?,
            size: Self::number(region, V1Field::DataSize)?,
        })
    }

    fn was_read(&mut self, region: &MigrationRegion) -> Result<Option<Pending>, Trouble> {
        self.pending(region, 0).map(Some)
    }

    fn place(&mut self, region: &MigrationRegion) -> Result<u64, Trouble> {
        Self::number(region, V1Field::DataOffset)
    }

    fn was_written(
        &mut self,
        region: &MigrationRegion,
        piece: Piece,
    ) -> Result<(), Trouble> {
        region.set_register(V1Field::DataSize.at(), &piece.size.to_ne_bytes())
    }
}
