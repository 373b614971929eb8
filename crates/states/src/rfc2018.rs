//! The steps of the RFC of November 2018 (document 001): ten of them, told to a device by
//! a VMM that goes through its migration.
//!
//! ```text
//!            .--------- RUNNING <------- CANCELLED, FAILED <-- (any step of a migration)
//!            |             |  ^
//!          SETUP         RESUME '--------------------.
//!          |    |           |                        |
//!     PRECOPY   | (paused)  '--> RESUME_COMPLETED ---'
//!          |    |
//!          STOPNCOPY --> SAVE_COMPLETED
//! ```
//!
//! The document has no table of transitions, only the chart of its cover letter
//! ([`SAVE_CHART`], [`RESUME_CHART`]) and the VMM of its patch 3/5. [`act`] is the table
//! we take from them: what each step means to a device, or that it is refused.
//!
//! There is no step for a device that is merely stopped. The VMM side
//! ([`Position::route`]) stops a running one by SETUP and STOPNCOPY and reads nothing; so
//! a paused guest's device can be saved from there without running again. Nor can the
//! state be read: it is tracked in [`Position`], and a write that fails ends in reset.
//!
//! ```
//! use vfio_migrate_states::mapping::{Ending, Position};
//! use vfio_migrate_states::rfc2018::RfcState;
//! use vfio_migrate_states::v2::State;
//!
//! let running = Position::<RfcState>::start();
//! let route = running.route(State::PreCopy, Ending::Complete)?;
//! assert_eq!(route.writes(), [RfcState::Setup, RfcState::PreCopy]);
//! let back = route.then().route(State::Running, Ending::Failed)?;
//! assert_eq!(back.writes(), [RfcState::Failed, RfcState::Running]);
//! # Ok::<(), vfio_migrate_states::mapping::NoRoute>(())
//! ```

use crate::mapping::{Ending, NoRoute, Position, Route, offered, refuse};
use crate::v2::{self, Capabilities};
use abi::rfc2018::FlowState;
use std::fmt;

/// A state of document 001, patch 1/5. A closed set: what a VMM writes is a
/// [`FlowState`] and becomes one by [`RfcState::from_number`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RfcState {
    /// 0: before anything was written. Treated as running, and never asked for.
    None = 0,
    /// 1: works.
    Running = 1,
    /// 2: prepares for a migration; works or stands still as before.
    Setup = 2,
    /// 3: works while its state is read ahead.
    PreCopy = 3,
    /// 4: stopped, its state is read.
    StopNCopy = 4,
    /// 5: stopped, its state was read.
    SaveCompleted = 5,
    /// 6: stopped, its state is written.
    Resume = 6,
    /// 7: stopped, its state was written.
    ResumeCompleted = 7,
    /// 8: the migration failed.
    Failed = 8,
    /// 9: the migration was cancelled.
    Cancelled = 9,
}

impl RfcState {
    /// Every state, by number.
    pub const ALL: [RfcState; 10] = [
        RfcState::None,
        RfcState::Running,
        RfcState::Setup,
        RfcState::PreCopy,
        RfcState::StopNCopy,
        RfcState::SaveCompleted,
        RfcState::Resume,
        RfcState::ResumeCompleted,
        RfcState::Failed,
        RfcState::Cancelled,
    ];

    /// The document's number for it.
    pub const fn number(self) -> FlowState {
        FlowState(self as u32)
    }

    /// The state with the number `number`, or `None` for one that the document does not
    /// define.
    pub const fn from_number(number: FlowState) -> Option<RfcState> {
        if (number.0 as usize) < Self::ALL.len() {
            Some(Self::ALL[number.0 as usize])
        } else {
            None
        }
    }

    /// The document's name without its prefixes, such as `SAVE_COMPLETED`.
    pub const fn name(self) -> &'static str {
        match self.number().name() {
            Some(name) => name,
            None => "",
        }
    }
}

impl fmt::Display for RfcState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A line of the chart of document 001's cover letter: (VM state, migration state,
/// device state), under the names it has there.
pub type ChartLine = (&'static str, &'static str, RfcState);

/// "Live migration save path" of document 001's cover letter.
pub const SAVE_CHART: [ChartLine; 7] = [
    ("RUNNING", "_NONE", RfcState::Running),
    ("RUNNING", "_SETUP", RfcState::Setup),
    ("RUNNING", "_ACTIVE", RfcState::PreCopy),
    ("FINISH_MIGRATE", "_DEVICE", RfcState::StopNCopy),
    ("FINISH_MIGRATE", "_DEVICE", RfcState::SaveCompleted),
    ("FINISH_MIGRATE", "_COMPLETED", RfcState::SaveCompleted),
    ("POST_MIGRATE", "_COMPLETED", RfcState::SaveCompleted),
];

/// "Live migration resume path" of document 001's cover letter, with the
/// `RESUME_COMPLETED` that patch 3/5 writes in its `load_cleanup`.
pub const RESUME_CHART: [ChartLine; 3] = [
    ("RESTORE_VM", "_ACTIVE", RfcState::Resume),
    ("RESTORE_VM", "_ACTIVE", RfcState::ResumeCompleted),
    ("RUNNING", "_NONE", RfcState::Running),
];

/// What a step asks of the model behind the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// Nothing: only the step is remembered.
    Nothing,
    /// A state of its v2 runner. The runner may be in it already.
    Enter(v2::State),
    /// A reset: a load that was given up leaves part of a state, which must never run.
    Reset,
}

/// What the step from `from` to `to` asks of the model, or `None` where it is refused.
///
/// | to | from | asks |
/// | --- | --- | --- |
/// | NONE | | refused: it is what a device is before |
/// | RUNNING | any | `Running` |
/// | SETUP | NONE, RUNNING, `SAVE_COMPLETED`, `RESUME_COMPLETED`, FAILED, CANCELLED | nothing: a device that stands still goes on standing |
/// | PRECOPY | SETUP | `PreCopy` |
/// | STOPNCOPY | SETUP, PRECOPY | `StopCopy` |
/// | `SAVE_COMPLETED` | STOPNCOPY | `Stop` |
/// | RESUME | as SETUP: never in the middle of a save | `Resuming` |
/// | `RESUME_COMPLETED` | RESUME | `Stop` |
/// | FAILED, CANCELLED | PRECOPY, STOPNCOPY, `SAVE_COMPLETED` | `Running` |
/// | FAILED, CANCELLED | RESUME, `RESUME_COMPLETED` | a reset |
/// | FAILED, CANCELLED | any other | nothing |
///
/// Writing the present step again does nothing.
pub const fn act(from: RfcState, to: RfcState) -> Option<Act> {
    use RfcState::{
        Cancelled, Failed, None as Before, PreCopy, Resume, ResumeCompleted, Running,
        SaveCompleted, Setup, StopNCopy,
    };
    if from as u8 == to as u8 {
        return Some(Act::Nothing);
    }
    match (from, to) {
        (_, Running) => Some(Act::Enter(v2::State::Running)),
        (
            Before | Running | SaveCompleted | ResumeCompleted | Failed | Cancelled,
            Setup,
        ) => Some(Act::Nothing),
        (Setup, PreCopy) => Some(Act::Enter(v2::State::PreCopy)),
        (Setup | PreCopy, StopNCopy) => Some(Act::Enter(v2::State::StopCopy)),
        (StopNCopy, SaveCompleted) => Some(Act::Enter(v2::State::Stop)),
        (
            Before | Running | SaveCompleted | ResumeCompleted | Failed | Cancelled,
            Resume,
        ) => Some(Act::Enter(v2::State::Resuming)),
        (Resume, ResumeCompleted) => Some(Act::Enter(v2::State::Stop)),
        (PreCopy | StopNCopy | SaveCompleted, Failed | Cancelled) => {
            Some(Act::Enter(v2::State::Running))
        }
        (Resume | ResumeCompleted, Failed | Cancelled) => Some(Act::Reset),
        (Before | Running | Setup | Failed | Cancelled, Failed | Cancelled) => {
            Some(Act::Nothing)
        }
        _ => None,
    }
}

/// What a write of `device_state` means to the model behind the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stepped {
    /// The step that the region is in when the model has done it.
    pub then: RfcState,
    /// What to ask of the model.
    pub act: Act,
}

/// What it means that `written` is written into `device_state` at step `current`, before
/// a model that has `model`.
///
/// A model without pre-copy goes on running in PRECOPY and has nothing pending.
///
/// # Errors
///
/// [`StepRefusal`], and nothing changes.
pub const fn front(
    model: Capabilities,
    current: RfcState,
    written: FlowState,
) -> Result<Stepped, StepRefusal> {
    let Some(then) = RfcState::from_number(written) else {
        return Err(StepRefusal::Unknown(written));
    };
    match act(current, then) {
        Some(Act::Enter(target)) => {
            Ok(Stepped { then, act: Act::Enter(offered(model, target)) })
        }
        Some(act) => Ok(Stepped { then, act }),
        None => Err(StepRefusal::NoStep { from: current, to: then }),
    }
}

/// Why a write of `device_state` changes nothing. `EINVAL` to whoever wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepRefusal {
    /// A number above 9.
    #[error("{0} is not one of the ten states 0 to 9")]
    Unknown(FlowState),
    /// Out of the order of the flow.
    #[error("there is no step from {from} to {to}")]
    NoStep {
        /// The step it is in.
        from: RfcState,
        /// The step asked for.
        to: RfcState,
    },
}

impl Position<RfcState> {
    /// After opening or reset: NONE, which is running.
    pub const fn start() -> Self {
        Position { engine: v2::State::Running, written: RfcState::None }
    }

    /// What to write to bring the device to `to`.
    ///
    /// [`Ending`] tells CANCELLED from FAILED where something is undone, and both from a
    /// guest that goes on after it was saved completely.
    ///
    /// # Errors
    ///
    /// [`NoRoute`] where there is none.
    pub const fn route(
        &self,
        to: v2::State,
        ending: Ending,
    ) -> Result<Route<RfcState>, NoRoute> {
        use v2::State as E;
        if let Err(refusal) = refuse(self.engine, to, ending) {
            return Err(refusal);
        }
        let loaded = matches!(self.written, RfcState::ResumeCompleted)
            && !matches!(ending, Ending::Complete);
        let writes: &'static [RfcState] = match (self.engine, to) {
            (E::Stop, E::Stop)
            | (E::Running, E::Running)
            | (E::PreCopy, E::PreCopy)
            | (E::StopCopy, E::StopCopy)
            | (E::Resuming, E::Resuming) => {
                return Ok(Route { writes: &[], then: *self, if_refused: None });
            }
            (E::Stop, E::Running | E::PreCopy) if loaded => {
                return Err(NoRoute::LoadGivenUp);
            }
            (from, E::Running) => to_running(from, self.written, ending),
            (_, E::PreCopy) => to_precopy(self.written, ending),
            (_, E::StopCopy) => to_stopncopy(self.written),
            (_, E::Stop) => to_stop(self.written),
            (_, E::Resuming) => to_resume(self.written),
            (_, E::Error | E::RunningP2p | E::PreCopyP2p) => {
                return Err(NoRoute::NotOffered { state: to });
            }
        };
        // With nothing to write, the device stands where the engine wants it already.
        let written = match writes {
            [.., last] => *last,
            [] => self.written,
        };
        Ok(Route { writes, then: Position { engine: to, written }, if_refused: None })
    }
}

const fn to_running(
    from: v2::State,
    at: RfcState,
    ending: Ending,
) -> &'static [RfcState] {
    use RfcState::{Cancelled, Failed, Resume, ResumeCompleted, Running, SaveCompleted};
    match (at, ending) {
        (Resume, _) => &[ResumeCompleted, Running],
        (ResumeCompleted, _) | (SaveCompleted, Ending::Complete) => &[Running],
        (_, Ending::Failed) => &[Failed, Running],
        // A guest that goes on after a snapshot.
        (_, Ending::Complete) if matches!(from, v2::State::StopCopy) => {
            &[SaveCompleted, Running]
        }
        // What was read ahead only, or not at all, is not completed.
        (_, Ending::Cancelled | Ending::Complete) => &[Cancelled, Running],
    }
}

const fn to_precopy(at: RfcState, ending: Ending) -> &'static [RfcState] {
    use RfcState::{
        Cancelled, Failed, None as Before, PreCopy, Resume, ResumeCompleted, Running,
        SaveCompleted, Setup,
    };
    match (at, ending) {
        (Before | Running, _) => &[Setup, PreCopy],
        (Resume, _) => &[ResumeCompleted, Running, Setup, PreCopy],
        (ResumeCompleted, _) | (SaveCompleted, Ending::Complete) => {
            &[Running, Setup, PreCopy]
        }
        (_, Ending::Failed) => &[Failed, Running, Setup, PreCopy],
        (_, Ending::Cancelled | Ending::Complete) => {
            &[Cancelled, Running, Setup, PreCopy]
        }
    }
}

const fn to_stopncopy(at: RfcState) -> &'static [RfcState] {
    use RfcState::{PreCopy, Resume, ResumeCompleted, Setup, StopNCopy};
    match at {
        PreCopy => &[StopNCopy],
        // Stopped by SETUP and STOPNCOPY, and nothing was read: it is there.
        StopNCopy => &[],
        Resume => &[ResumeCompleted, Setup, StopNCopy],
        _ => &[Setup, StopNCopy],
    }
}

const fn to_stop(at: RfcState) -> &'static [RfcState] {
    use RfcState::{PreCopy, Resume, ResumeCompleted, SaveCompleted, Setup, StopNCopy};
    match at {
        // Something was read, and cannot be read again: the session is over.
        PreCopy => &[StopNCopy, SaveCompleted],
        StopNCopy => &[SaveCompleted],
        Resume => &[ResumeCompleted],
        _ => &[Setup, StopNCopy],
    }
}

const fn to_resume(at: RfcState) -> &'static [RfcState] {
    use RfcState::{PreCopy, Resume, SaveCompleted, StopNCopy};
    match at {
        PreCopy => &[StopNCopy, SaveCompleted, Resume],
        StopNCopy => &[SaveCompleted, Resume],
        _ => &[Resume],
    }
}
