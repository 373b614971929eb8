//! The registers of document 000: 32 bytes, each at its width and alignment.

use super::{Reach, asked, word};
use abi::errno::Errno;
use abi::v1::{StateBits, V1Field};
use states::rfc2018::Act;
use states::v1::{V1State, front};
use states::v2::State;

/// The registers of a v1 region.
pub(super) struct V1Front {
    state: V1State,
    /// What the state will be when the write that is being carried out is done.
    then: V1State,
    /// Bits 3 to 31 of `device_state`.
    reserved: StateBits,
}

impl V1Front {
    pub(super) fn new(reserved: u32) -> V1Front {
        V1Front {
            state: V1State::Running,
            then: V1State::Running,
            reserved: StateBits::from_bits_retain(reserved).reserved(),
        }
    }

    /// What `device_state` reads.
    fn bits(&self) -> StateBits {
        self.state.onto(self.reserved)
    }

    /// What was written came true.
    pub(super) fn arrived(&mut self) {
        self.state = self.then;
    }

    /// The device was found in `state` without having been asked.
    pub(super) fn found(&mut self, state: State) {
        self.state = match state {
            State::Error | State::RunningP2p | State::PreCopyP2p => V1State::Error,
            State::Stop => V1State::Stop,
            State::StopCopy => V1State::StopCopy,
            State::Resuming => V1State::Resuming,
            State::PreCopy => V1State::PreCopy,
            State::Running => V1State::Running,
        };
    }

    pub(super) fn read(
        &mut self,
        reach: &mut Reach<'_>,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), Errno> {
        let field = V1Field::find(offset, into.len()).ok_or(Errno::EINVAL)?;
        let value = match field {
            V1Field::DeviceState => {
                into.copy_from_slice(&self.bits().bits().to_ne_bytes());
                return Ok(());
            }
            V1Field::Reserved => {
                into.fill(0);
                return Ok(());
            }
            V1Field::PendingBytes => {
                let pending = reach.pending()?;
                // In pre-copy only what can be read now, and so what will change no more
                // is not waited for.
                let more = pending.initial.saturating_add(pending.dirty);
                match pending.ready {
                    0 => 0,
                    _ if reach.runner.state() == State::StopCopy => pending.whole,
                    ready => more.max(ready),
                }
            }
            V1Field::DataOffset => {
                reach.show()?;
                reach.section.at()
            }
            V1Field::DataSize => reach.shown(),
        };
        into.copy_from_slice(&value.to_ne_bytes());
        Ok(())
    }

    /// What a write asks of the device; `None` where it is done.
    pub(super) fn write(
        &mut self,
        reach: &mut Reach<'_>,
        offset: u64,
        data: &[u8],
        busy: bool,
    ) -> Result<Option<Act>, Errno> {
        match V1Field::find(offset, data.len()).ok_or(Errno::EINVAL)? {
            V1Field::DeviceState => {
                let model = reach.runner.description().capabilities;
                let written = asked(data, busy, |bits| {
                    front(model, self.bits(), StateBits::from_bits_retain(bits))
                })?;
                self.then = written.then;
                Ok(Some(written.enter.map_or(Act::Nothing, Act::Enter)))
            }
            V1Field::Reserved => Ok(None),
            V1Field::DataSize => {
                reach.load(reach.section.at(), word(data)?)?;
                Ok(None)
            }
            V1Field::PendingBytes | V1Field::DataOffset => Err(Errno::EINVAL),
        }
    }
}
