//! What a device author writes.

use crate::{Bus, Description, Token};
use abi::errno::Errno;
use states::v2::State;
use std::time::Instant;

/// A device that can be migrated.
///
/// Every method is called by the one thread that owns the [`Runner`](crate::Runner),
/// never by two at once and never from inside a [`Bus`] call, so a model needs no lock.
/// No method may block: what takes time is cut into slices ([`work`](Self::work)) or
/// answered later ([`Settle::Later`], [`dma_done`](Self::dma_done)).
///
/// There is no default that claims success: methods whose "nothing" could be a lie have
/// to be written, the others refuse.
pub trait Migratable: Send {
    /// What the device is and has. Asked once, before anything else.
    fn describe(&self) -> Description;

    /// Reads a region: `into.len()` bytes at `offset`, which lie inside the region. In
    /// STOP, `STOP_COPY` and RESUMING only config space (index 7) is read.
    ///
    /// # Errors
    ///
    /// What the client gets as the errno of the access.
    fn read(&mut self, region: u32, offset: u64, into: &mut [u8]) -> Result<(), Errno>;

    /// Writes a region: `data` at `offset`, which lie inside the region. In STOP,
    /// `STOP_COPY` and RESUMING only config space (index 7) is written.
    ///
    /// # Errors
    ///
    /// What the client gets as the errno of the access.
    fn write(
        &mut self,
        region: u32,
        offset: u64,
        data: &[u8],
        bus: &mut dyn Bus,
    ) -> Result<(), Errno>;

    /// Puts everything back to how the device started, in any state, at once. Data
    /// sessions and DMA on its way are gone already. The state is RUNNING afterwards.
    fn reset(&mut self);

    /// Takes one arc of the state machine; the runner plans and never asks for
    /// anything but a legal arc. When an arc ends in a P2P state or stops the device,
    /// no message is on its way any more.
    ///
    /// A session begins on an arc from a state without one into `PRE_COPY`,
    /// `PRE_COPY_P2P` or `STOP_COPY` (the same session covers all three) or into
    /// RESUMING: forget what an earlier one left. `states::v2::session` tells.
    ///
    /// # Errors
    ///
    /// The device then is where it was, with nothing changed. What cannot promise that
    /// answers [`Settle::Later`] and never settles: it ends in ERROR.
    fn enter(&mut self, arc: StateArc, bus: &mut dyn Bus) -> Result<Settle, Errno>;

    /// After [`Settle::Later`]: whether the arc is done now.
    ///
    /// # Errors
    ///
    /// As [`enter`](Self::enter).
    fn settled(&mut self, bus: &mut dyn Bus) -> Result<Settle, Errno> {
        let _ = bus;
        Err(Errno::EIO)
    }

    /// Fills `into` with the next bytes of the state, in order, and returns how many.
    /// 0 means: nothing for now in `PRE_COPY` and `PRE_COPY_P2P`, the end in `STOP_COPY`. What
    /// was not read in pre-copy still comes in `STOP_COPY`.
    ///
    /// # Errors
    ///
    /// The session is dead then, and answers the same errno from there on.
    fn save(&mut self, into: &mut [u8]) -> Result<usize, Errno>;

    /// As [`save`](Self::save), for a model whose state lies in memory as it is saved: it
    /// lends the next bytes, at most as many as `room` has, and none is copied. By
    /// default they are saved into `room`.
    ///
    /// # Errors
    ///
    /// As [`save`](Self::save).
    fn save_lent<'a>(&'a mut self, room: &'a mut [u8]) -> Result<&'a [u8], Errno> {
        let len = self.save(room)?;
        // A model that claims more than there was room for cannot be believed.
        room.get(..len).ok_or(Errno::EIO)
    }

    /// What pre-copy has left. Only devices with `PRE_COPY` are asked.
    ///
    /// # Errors
    ///
    /// Refuses by default.
    fn precopy_info(&mut self) -> Result<PrecopyInfo, Errno> {
        Err(Errno::ENOTTY)
    }

    /// How many bytes [`save`](Self::save) would give from now to the end if the device
    /// stopped now, in any state; an estimate, but never below the truth by much.
    fn stop_copy_bytes(&self) -> u64;

    /// Takes the next bytes of a saved state, cut anywhere. Hostile: the lengths and
    /// counts in it are checked before they are used.
    ///
    /// # Errors
    ///
    /// The data is not what this device takes; the session is dead then.
    fn load(&mut self, data: &[u8]) -> Result<(), Errno>;

    /// RESUMING ends: whether a complete, valid state was loaded. Nothing loaded at all
    /// is a truncated state.
    ///
    /// # Errors
    ///
    /// Keeps the device in RESUMING with a dead session; only a reset leads on.
    fn loaded(&mut self) -> Result<(), Errno>;

    /// One bounded slice of what the device does by itself, only while it runs and no
    /// arc is pending. A device that only answers says [`Work::Idle`].
    fn work(&mut self, bus: &mut dyn Bus, now: Instant) -> Work;

    /// DMA that was [`Dma::Later`](crate::Dma::Later) came back: the bytes of a read,
    /// nothing for a write, or the errno. May be called while an arc is pending.
    ///
    /// # Errors
    ///
    /// Refuses by default; a refused completion is counted.
    fn dma_done(
        &mut self,
        token: Token,
        result: Result<&[u8], Errno>,
        bus: &mut dyn Bus,
    ) -> Result<(), Errno> {
        let _ = (token, result, bus);
        Err(Errno::ENOTTY)
    }

    /// A digest of the contents, made by the model from its own memory, so that two
    /// devices can be compared without trusting any stream. `None` where it has none.
    fn digest(&self) -> Option<Digest> {
        None
    }
}

/// One arc of the state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateArc {
    /// The state before.
    pub from: State,
    /// The state after.
    pub to: State,
}

/// Whether an arc is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an arc that is not done yet has to be asked for again"]
pub enum Settle {
    /// It is.
    Now,
    /// Not yet; [`Migratable::settled`] will tell.
    Later,
}

/// What a device that works by itself wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a device with work to do has to be called again"]
pub enum Work {
    /// Nothing, until it is accessed or DMA comes back.
    Idle,
    /// Another slice, as soon as others had their turn.
    Again,
    /// Another slice at that time.
    At(Instant),
}

/// What is left to read in pre-copy (`struct vfio_precopy_info`, Linux 6.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrecopyInfo {
    /// Bytes of initial data not read yet: above 0 at the start, and only falls, except
    /// with `reinit`.
    pub initial_bytes: u64,
    /// Bytes that changed since they were read; 0 while initial data is unread at the
    /// start or after `reinit`.
    pub dirty_bytes: u64,
    /// New initial data appeared, and the test for readiness starts over
    /// (`VFIO_PRECOPY_INFO_REINIT`, Linux 7.1).
    pub reinit: bool,
}

/// A digest of a device's contents: one checksum a chunk, and counters by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// Bytes that each checksum covers; the last one may cover fewer.
    pub chunk_bytes: u64,
    /// CRC32C of each chunk of the device's memory, in order.
    pub chunks: Vec<u32>,
    /// What the device counts, by name, in a fixed order.
    pub counters: Vec<(String, u64)>,
}

impl Digest {
    /// The first place where two digests differ, for people; `None` when they agree.
    pub fn difference(&self, other: &Digest) -> Option<String> {
        if self.chunk_bytes != other.chunk_bytes
            || self.chunks.len() != other.chunks.len()
        {
            return Some(format!(
                "{} chunks of {} bytes against {} of {}",
                self.chunks.len(),
                self.chunk_bytes,
                other.chunks.len(),
                other.chunk_bytes
            ));
        }
        if let Some(at) =
            (0..self.chunks.len()).find(|n| self.chunks[*n] != other.chunks[*n])
        {
            return Some(format!(
                "device memory at {:#x}: {:08x} against {:08x}",
                at as u64 * self.chunk_bytes,
                self.chunks[at],
                other.chunks[at]
            ));
        }
        if self.counters.len() != other.counters.len() {
            return Some(format!(
                "{} counters against {}",
                self.counters.len(),
                other.counters.len()
            ));
        }
        self.counters.iter().zip(&other.counters).find(|(a, b)| a != b).map(
            |((name, value), (other_name, other_value))| {
                format!("counter {name} {value} against {other_name} {other_value}")
            },
        )
    }
}
