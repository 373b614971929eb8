//! The v1 state machine (document 000): three bits, eight combinations, five states.
//!
//! ```text
//!              _RESUMING   _RUNNING   Pre-copy   Stop-and-copy   _STOP
//!                (100)      (001)      (011)         (010)       (000)
//!  1 shutdown                 |--------------------------------->|
//!  2 save                     |--------------------->|---------->|
//!  3 live migration           |--------->|---------->|---------->|
//!  4 resuming      |<---------|
//!  5 resumed       |--------->|
//! ```
//!
//! That is all that the document draws ([`CHART`]). It also says that a user "may attempt
//! to transition the device to any valid state reachable from the current state", and
//! leaves open which these are. [`arc`] says which ours are: those of the chart, those
//! that a rollback, a pause, a paused guest's save and a load that is checked before the
//! start need, and no others.
//!
//! The VMM side asks [`Position::route`] what to write; the device side asks [`front`]
//! what a write means.
//!
//! ```
//! use vfio_migrate_states::mapping::{Ending, Position};
//! use vfio_migrate_states::v1::V1State;
//! use vfio_migrate_states::v2::State;
//!
//! let running = Position::<V1State>::start();
//! let route = running.route(State::StopCopy, Ending::Complete)?;
//! assert_eq!(route.writes(), [V1State::StopCopy], "never through 000");
//! # Ok::<(), vfio_migrate_states::mapping::NoRoute>(())
//! ```

use crate::mapping::{Ending, NoRoute, Position, Route, offered, refuse};
use crate::v2::{self, Capabilities};
use abi::v1::StateBits;
use std::fmt;

/// A state of a v1 device: a combination of `device_state` that means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum V1State {
    /// 000: stopped, neither saving nor resuming.
    Stop = 0b000,
    /// 001: works. The default, and the state after a reset.
    Running = 0b001,
    /// 010: stopped, its state is read.
    StopCopy = 0b010,
    /// 011: works while its state is read ahead.
    PreCopy = 0b011,
    /// 100: stopped, its state is written.
    Resuming = 0b100,
    /// 110: failed; left only by a reset.
    Error = 0b110,
}

/// The eight combinations of the three bits, by number, and what each is. `None` is
/// invalid: neither a state nor the error (document 000, comment of `device_state`).
pub const COMBINATIONS: [Option<V1State>; 8] = [
    Some(V1State::Stop),
    Some(V1State::Running),
    Some(V1State::StopCopy),
    Some(V1State::PreCopy),
    Some(V1State::Resuming),
    None,
    Some(V1State::Error),
    None,
];

impl V1State {
    /// Every state, by bits.
    pub const ALL: [V1State; 6] = [
        V1State::Stop,
        V1State::Running,
        V1State::StopCopy,
        V1State::PreCopy,
        V1State::Resuming,
        V1State::Error,
    ];

    /// The three bits.
    pub const fn bits(self) -> StateBits {
        StateBits::from_bits_retain(self as u32)
    }

    /// What to write to a device from which `read` was read: these bits, with its
    /// reserved ones (document 000, "read-modify-write").
    pub const fn onto(self, read: StateBits) -> StateBits {
        read.with(self.bits())
    }

    /// The state that `bits` stand for, whatever the reserved bits are.
    ///
    /// # Errors
    ///
    /// [`InvalidCombination`] for 101 and 111.
    pub const fn from_bits(bits: StateBits) -> Result<V1State, InvalidCombination> {
        match COMBINATIONS[bits.defined().bits() as usize] {
            Some(state) => Ok(state),
            None => Err(InvalidCombination(bits)),
        }
    }

    /// The state of the engine that it is.
    pub const fn engine(self) -> v2::State {
        match self {
            V1State::Stop => v2::State::Stop,
            V1State::Running => v2::State::Running,
            V1State::StopCopy => v2::State::StopCopy,
            V1State::PreCopy => v2::State::PreCopy,
            V1State::Resuming => v2::State::Resuming,
            V1State::Error => v2::State::Error,
        }
    }

    /// The document's name and its bits.
    pub const fn name(self) -> &'static str {
        match self {
            V1State::Stop => "_STOP (000)",
            V1State::Running => "_RUNNING (001)",
            V1State::StopCopy => "stop-and-copy (010)",
            V1State::PreCopy => "pre-copy (011)",
            V1State::Resuming => "_RESUMING (100)",
            V1State::Error => "error (110)",
        }
    }
}

impl fmt::Display for V1State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A `device_state` of 101 or 111, which document 000 calls invalid. Holds all its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("device_state {:#x} is one of the invalid combinations 101 and 111", .0.bits())]
pub struct InvalidCombination(pub StateBits);

/// The state transitions 0 to 5 of document 000, each as the states it passes.
pub const CHART: [&[V1State]; 6] = [
    &[V1State::Running],
    &[V1State::Running, V1State::Stop],
    &[V1State::Running, V1State::StopCopy, V1State::Stop],
    &[V1State::Running, V1State::PreCopy, V1State::StopCopy, V1State::Stop],
    &[V1State::Running, V1State::Resuming],
    &[V1State::Resuming, V1State::Running],
];

/// What the document says of an arc, and what we make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arc {
    /// The state that it is in: nothing happens.
    Same,
    /// In [`CHART`].
    Charted,
    /// Not drawn, but needed; a device of others may refuse it.
    Tolerated,
    /// Not drawn and not needed: our front refuses it, our adapter never asks for it.
    Refused,
}

/// What the single arc from `from` to `to` is.
pub const fn arc(from: V1State, to: V1State) -> Arc {
    use V1State::{Error, PreCopy, Resuming, Running, Stop, StopCopy};
    match (from, to) {
        (Error, _) | (_, Error) => Arc::Refused,
        (Stop, Stop)
        | (Running, Running)
        | (StopCopy, StopCopy)
        | (PreCopy, PreCopy)
        | (Resuming, Resuming) => Arc::Same,
        (Running, Stop | StopCopy | PreCopy | Resuming)
        | (PreCopy, StopCopy)
        | (StopCopy, Stop)
        | (Resuming, Running) => Arc::Charted,
        // Rollback, and the start after a stop.
        (PreCopy | StopCopy | Stop, Running)
        // A shutdown in the middle of pre-copy.
        | (PreCopy, Stop)
        // A load that is checked before the start.
        | (Resuming, Stop)
        // A paused guest, whose device must not run for a moment to be saved or loaded.
        | (Stop, StopCopy | Resuming) => Arc::Tolerated,
        (Stop, PreCopy)
        | (StopCopy, PreCopy | Resuming)
        | (PreCopy, Resuming)
        | (Resuming, StopCopy | PreCopy) => Arc::Refused,
    }
}

/// What a write of `device_state` means to the model behind the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The state that the region is in when the model has done it.
    pub then: V1State,
    /// What to ask of the model's v2 runner, or `None` where nothing changes.
    pub enter: Option<v2::State>,
}

/// What it means that `written` is written into `device_state` when it reads `current`,
/// before a model that has `model`.
///
/// A model without pre-copy goes on running in 011 and has nothing pending. The reserved
/// bits stay what they are.
///
/// # Errors
///
/// [`WriteRefusal`], and nothing changes.
pub fn front(
    model: Capabilities,
    current: StateBits,
    written: StateBits,
) -> Result<Written, WriteRefusal> {
    let from = V1State::from_bits(current)?;
    if from == V1State::Error {
        return Err(WriteRefusal::FromError);
    }
    let to = V1State::from_bits(written)?;
    if to == V1State::Error {
        return Err(WriteRefusal::ToError);
    }
    if current.reserved() != written.reserved() {
        return Err(WriteRefusal::ReservedBits { current, written });
    }
    match arc(from, to) {
        Arc::Same => Ok(Written { then: to, enter: None }),
        Arc::Charted | Arc::Tolerated => {
            Ok(Written { then: to, enter: Some(offered(model, to.engine())) })
        }
        Arc::Refused => Err(WriteRefusal::NoArc { from, to }),
    }
}

/// Why a write of `device_state` changes nothing. `EINVAL` to whoever wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteRefusal {
    /// 101 or 111.
    #[error(transparent)]
    Invalid(#[from] InvalidCombination),
    /// The device is in the error state.
    #[error("the device is in the error state (110), which only a reset leaves")]
    FromError,
    /// 110 is what a device says, never what it is asked for.
    #[error("the error state (110) cannot be asked for")]
    ToError,
    /// Bits 3 to 31 differ from those that are read: a request for something unknown,
    /// or a write without the read before it.
    #[error(
        "device_state {:#x} changes reserved bits of {:#x}; read it, modify bits 0 to 2, \
         write it", .written.bits(), .current.bits()
    )]
    ReservedBits {
        /// What `device_state` reads.
        current: StateBits,
        /// What was written.
        written: StateBits,
    },
    /// An arc that neither the document draws nor anybody needs.
    #[error("there is no transition from {from} to {to}")]
    NoArc {
        /// The state it is in.
        from: V1State,
        /// The state asked for.
        to: V1State,
    },
}

impl Position<V1State> {
    /// After opening or reset: 001.
    pub const fn start() -> Self {
        Position { engine: v2::State::Running, written: V1State::Running }
    }

    /// Where a device is from which `bits` were read; 100 is taken for a load that is
    /// going on.
    ///
    /// # Errors
    ///
    /// [`InvalidCombination`] where it answers 101 or 111.
    pub const fn read(bits: StateBits) -> Result<Self, InvalidCombination> {
        match V1State::from_bits(bits) {
            Ok(written) => Ok(Position { engine: written.engine(), written }),
            Err(invalid) => Err(invalid),
        }
    }

    /// Whether it is in 100 with all data consumed, having refused 000: what it was
    /// given is checked when it starts.
    pub const fn validates_at_start(&self) -> bool {
        matches!((self.engine, self.written), (v2::State::Stop, V1State::Resuming))
    }

    /// What to write to bring the device to `to`.
    ///
    /// 010 is reached straight from 001, 011 or 000. After a load, `Stop` is tried as
    /// 000; a device that refuses it stays in 100 ([`Route::if_refused`]).
    ///
    /// # Errors
    ///
    /// [`NoRoute`] where there is none.
    pub const fn route(
        &self,
        to: v2::State,
        ending: Ending,
    ) -> Result<Route<V1State>, NoRoute> {
        use V1State::{PreCopy, Resuming, Running, Stop, StopCopy};
        use v2::State as E;
        if let Err(refusal) = refuse(self.engine, to, ending) {
            return Err(refusal);
        }
        let writes: &'static [V1State] = match (self.engine, to) {
            (E::Stop, E::Stop)
            | (E::Running, E::Running)
            | (E::PreCopy, E::PreCopy)
            | (E::StopCopy, E::StopCopy)
            | (E::Resuming, E::Resuming) => {
                return Ok(Route { writes: &[], then: *self, if_refused: None });
            }
            // A load that was given up must not start either, wherever it waits.
            (E::Stop, E::Running | E::PreCopy)
                if self.validates_at_start() && !matches!(ending, Ending::Complete) =>
            {
                return Err(NoRoute::LoadGivenUp);
            }
            (E::Stop, E::StopCopy | E::Resuming) if self.validates_at_start() => {
                return Err(NoRoute::OnlyStart { state: to });
            }
            (_, E::Running) => &[Running],
            (E::Running, E::PreCopy) => &[PreCopy],
            (_, E::PreCopy) => &[Running, PreCopy],
            (E::Resuming, E::StopCopy) => &[Stop, StopCopy],
            (_, E::StopCopy) => &[StopCopy],
            (E::PreCopy, E::Stop) => &[StopCopy, Stop],
            (_, E::Stop) => &[Stop],
            (E::PreCopy, E::Resuming) => &[StopCopy, Stop, Resuming],
            (E::StopCopy, E::Resuming) => &[Stop, Resuming],
            (_, E::Resuming) => &[Resuming],
            (_, E::Error | E::RunningP2p | E::PreCopyP2p) => {
                return Err(NoRoute::NotOffered { state: to });
            }
        };
        let if_refused = match (self.engine, to) {
            (E::Resuming, E::Stop) => {
                Some(Position { engine: E::Stop, written: Resuming })
            }
            _ => None,
        };
        let written = writes[writes.len() - 1];
        Ok(Route { writes, then: Position { engine: to, written }, if_refused })
    }
}
