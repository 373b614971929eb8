//! One state set for three generations: how the v2 states that the engine knows are
//! reached on a device that has a migration region instead.
//!
//! ```text
//!   VMM side                                    device side
//!   engine: "to StopCopy"                       v2 runner of the model: "to StopCopy"
//!      |  Position::route                          ^  v1::front, rfc2018::front
//!      v                                           |
//!   writes of device_state  - - - - - - - - ->  one write of device_state
//! ```
//!
//! | engine | [`v1`](crate::v1) | [`rfc2018`](crate::rfc2018) |
//! | --- | --- | --- |
//! | `Running` | 001 | RUNNING, or NONE before anything was written |
//! | `PreCopy` | 011 | SETUP, PRECOPY |
//! | `StopCopy` | 010 | STOPNCOPY |
//! | `Stop` | 000, or 100 of a device that checks at its start | STOPNCOPY with nothing read, `SAVE_COMPLETED` or `RESUME_COMPLETED` |
//! | `Resuming` | 100 | RESUME |
//! | `Error` | 110 | none: a failed write ends in reset |
//! | `RunningP2p`, `PreCopyP2p` | not offered | not offered |
//!
//! Both offer [`CAPABILITIES`]. A [`Position`] is where a device is, for the engine and
//! in its own terms, since several of the device's may be one of the engine's; a
//! [`Route`] is what to write to get it elsewhere. No route passes RUNNING unless it ends
//! there or in pre-copy: the device of a paused guest is saved and loaded without running
//! for a moment.

use crate::v2::{Capabilities, State};

/// What a migration region offers of v2: pre-copy, always, and no peer-to-peer states.
///
/// "Vendor drivers must support the pre-copy state even for implementations where no
/// data is provided to the user before the stop-and-copy state" (document 000); document
/// 001 has no device without it either.
pub const CAPABILITIES: Capabilities = Capabilities::PRE_COPY;

/// How what goes on comes to its end, where that makes a difference to what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// As it should: nothing is being undone.
    Complete,
    /// The operator cancelled.
    Cancelled,
    /// Something failed.
    Failed,
}

impl Ending {
    /// Every one.
    pub const ALL: [Ending; 3] = [Ending::Complete, Ending::Cancelled, Ending::Failed];
}

/// Where a device with a migration region is: for the engine, and in the last state that
/// it took, `W` ([`V1State`](crate::v1::V1State) or
/// [`RfcState`](crate::rfc2018::RfcState)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position<W> {
    pub(crate) engine: State,
    pub(crate) written: W,
}

impl<W: Copy> Position<W> {
    /// What the engine takes it for. ERROR is only ever read from a v1 device.
    pub const fn engine(&self) -> State {
        self.engine
    }

    /// The last state that it took.
    pub const fn written(&self) -> W {
        self.written
    }
}

/// What to write into `device_state`, one after the other, to get a device from one
/// position to another.
///
/// Every write must succeed. After one that failed, the v1 device is read
/// ([`Position::read`](crate::v1)) and the rfc2018 device reset, with one exception:
/// [`if_refused`](Self::if_refused).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route<W: 'static> {
    pub(crate) writes: &'static [W],
    pub(crate) then: Position<W>,
    pub(crate) if_refused: Option<Position<W>>,
}

impl<W: Copy> Route<W> {
    /// The states to write, in order; none where the device is there already.
    pub const fn writes(&self) -> &'static [W] {
        self.writes
    }

    /// Where the device is after the last of them.
    pub const fn then(&self) -> Position<W> {
        self.then
    }

    /// Where it is when it refuses the only write and is left as it was: a v1 device that
    /// takes 100 to 001 alone, with all its data consumed. It is "validated at start".
    pub const fn if_refused(&self) -> Option<Position<W>> {
        self.if_refused
    }
}

/// Why there is no route. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// The device is in ERROR, which only a reset leaves.
    #[error("the device is in ERROR, which only a reset leaves")]
    FromError,
    /// ERROR cannot be asked for.
    #[error("ERROR cannot be asked for")]
    ToError,
    /// Migration regions have no peer-to-peer states.
    #[error("a migration region does not offer {state}")]
    NotOffered {
        /// The state asked for, `RUNNING_P2P` or `PRE_COPY_P2P`.
        state: State,
    },
    /// From stop-and-copy back into pre-copy: the session cannot go back.
    #[error("there is no way from STOP_COPY to PRE_COPY inside one session")]
    BackToPreCopy,
    /// A load that was given up: the device holds part of a state, which must never run.
    #[error("the device was not loaded to the end; reset it")]
    LoadGivenUp,
    /// A device that is validated at its start has consumed its data: it can only start.
    #[error(
        "the device holds loaded state that it checks at its start; \
         start it, or reset it to go to {state}"
    )]
    OnlyStart {
        /// The state asked for.
        state: State,
    },
}

/// What both generations refuse alike; `Ok` is no promise.
pub(crate) const fn refuse(
    from: State,
    to: State,
    ending: Ending,
) -> Result<(), NoRoute> {
    match (from, to, ending) {
        (State::Error, _, _) => Err(NoRoute::FromError),
        (_, State::Error, _) => Err(NoRoute::ToError),
        (_, State::RunningP2p | State::PreCopyP2p, _) => {
            Err(NoRoute::NotOffered { state: to })
        }
        (State::StopCopy, State::PreCopy, _) => Err(NoRoute::BackToPreCopy),
        (State::Resuming, State::Resuming, _) => Ok(()),
        (State::Resuming, _, Ending::Cancelled | Ending::Failed) => {
            Err(NoRoute::LoadGivenUp)
        }
        _ => Ok(()),
    }
}

/// What the front of a model asks of its runner instead of pre-copy where the model has
/// none: the region offers pre-copy all the same, without data.
pub(crate) const fn offered(model: Capabilities, target: State) -> State {
    match target {
        State::PreCopy if !model.pre_copy() => State::Running,
        _ => target,
    }
}
