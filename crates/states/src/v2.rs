//! The v2 state machine: eight states, four capability sets, one planner.
//!
//! ```text
//!            PRE_COPY <-----> PRE_COPY_P2P ----.       one save session covers
//!               ^                  ^            \      PRE_COPY, PRE_COPY_P2P
//!               |                  |             v     and STOP_COPY
//!               v                  v         STOP_COPY
//!            RUNNING <------> RUNNING_P2P        ^
//!                                  ^             |
//!                                  |             v
//!                                  `--------->  STOP <-----> RESUMING
//! ```
//!
//! A driver carries out single arcs ([`arcs`]). Whoever asks may ask for any
//! target; the request is then walked as the shortest chain of arcs ([`plan`],
//! [`next`]), by these rules (document 002 and `include/uapi/linux/vfio.h`):
//!
//! * the path is the shortest one;
//! * a saving state is never interior, unless both ends are saving states (then the
//!   session simply goes on);
//! * `STOP_COPY` to `PRE_COPY` or `PRE_COPY_P2P` is refused, reserved by the kernel for a
//!   future flag;
//! * ERROR is neither asked for nor left by a request: only a reset leaves it;
//! * a state that the device does not support is skipped inside a path and refused
//!   as an end of one.
//!
//! The tables are worked out from the arcs and these rules while compiling, and
//! tested pair by pair against what the kernel does (`tests/v2-transitions.json`).

mod capabilities;
mod path;

pub use capabilities::{Capabilities, UnknownCapabilities};
pub use path::{Path, Refusal, Session, arcs, next, plan, session};

use std::fmt;
use std::str::FromStr;

/// A migration state of a device, `enum vfio_device_mig_state`.
///
/// A closed set: what a device answers is a foreign number and becomes a `State` by
/// [`State::from_number`], which refuses numbers of kernels newer than this table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum State {
    /// 0: the device failed a transition and could not keep any state. Left only by
    /// reset.
    Error = 0,
    /// 1: no DMA, no interrupts, no change of state; config space still answers.
    Stop = 1,
    /// 2: the device works. The initial state, and the one after a reset.
    Running = 2,
    /// 3: stopped, and its state can be read to the end.
    StopCopy = 3,
    /// 4: stopped, and takes the state that was saved elsewhere.
    Resuming = 4,
    /// 5: works and accepts peer-to-peer access, starts none itself. Optional (P2P).
    RunningP2p = 5,
    /// 6: works while its state is read ahead. Optional (`PRE_COPY`).
    PreCopy = 6,
    /// 7: both of the above. Optional (P2P and `PRE_COPY`).
    PreCopyP2p = 7,
}

impl State {
    /// Every state, by number.
    pub const ALL: [State; 8] = [
        State::Error,
        State::Stop,
        State::Running,
        State::StopCopy,
        State::Resuming,
        State::RunningP2p,
        State::PreCopy,
        State::PreCopyP2p,
    ];

    /// The kernel's number for it, 0 to 7.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The state with the kernel's number `number`, or `None` for a number that
    /// Linux 7.3 does not define.
    pub const fn from_number(number: u32) -> Option<State> {
        if number < Self::ALL.len() as u32 {
            Some(Self::ALL[number as usize])
        } else {
            None
        }
    }

    /// The kernel's name without its prefix, such as `RUNNING_P2P`.
    pub const fn name(self) -> &'static str {
        match self {
            State::Error => "ERROR",
            State::Stop => "STOP",
            State::Running => "RUNNING",
            State::StopCopy => "STOP_COPY",
            State::Resuming => "RESUMING",
            State::RunningP2p => "RUNNING_P2P",
            State::PreCopy => "PRE_COPY",
            State::PreCopyP2p => "PRE_COPY_P2P",
        }
    }

    /// Whether a save session is open in it: `PRE_COPY`, `PRE_COPY_P2P` and `STOP_COPY`,
    /// which share one session.
    pub const fn is_saving(self) -> bool {
        matches!(self, State::PreCopy | State::PreCopyP2p | State::StopCopy)
    }

    /// Whether the device works in it: RUNNING, `RUNNING_P2P`, `PRE_COPY` and
    /// `PRE_COPY_P2P`. It may do DMA, raise interrupts and change its state.
    ///
    /// ERROR is not among them, and not among [`is_stopped`](Self::is_stopped)
    /// either. A device model asks this one before it works; whoever has to know
    /// that nothing runs any more asks `is_stopped`.
    pub const fn is_running(self) -> bool {
        matches!(
            self,
            State::Running | State::RunningP2p | State::PreCopy | State::PreCopyP2p
        )
    }

    /// Whether the device is proved to be still: STOP, `STOP_COPY` and RESUMING. A
    /// device that holds guest state and guest mappings outside these counts as
    /// running for the rule that at most one side runs, in ERROR too, where nothing
    /// is known about it.
    pub const fn is_stopped(self) -> bool {
        matches!(self, State::Stop | State::StopCopy | State::Resuming)
    }

    /// Whether the device starts no peer-to-peer access in it: every stopped state,
    /// `RUNNING_P2P` and `PRE_COPY_P2P`.
    pub const fn is_p2p_quiescent(self) -> bool {
        self.is_stopped() || matches!(self, State::RunningP2p | State::PreCopyP2p)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A text that names no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a migration state")]
pub struct UnknownState;

impl FromStr for State {
    type Err = UnknownState;

    /// Reads a name as [`Display`](fmt::Display) writes it.
    ///
    /// # Errors
    ///
    /// [`UnknownState`] for anything else; case matters.
    fn from_str(text: &str) -> Result<State, UnknownState> {
        State::ALL.into_iter().find(|state| state.name() == text).ok_or(UnknownState)
    }
}
