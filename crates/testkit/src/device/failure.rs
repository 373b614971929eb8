//! What fails in a device, and when: the script of a test.

use port::Fault;
use states::v2::State;

/// Which call of a [`FakeDevice`](crate::FakeDevice) fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// A transition to this state.
    SetState(State),
    /// Asking for the state.
    State,
    /// Asking how many bytes stop-copy will move.
    StopCopyBytes,
    /// A read of a save session.
    Read,
    /// Asking what pre-copy has left.
    PrecopyInfo,
    /// A write of a resume session.
    Write,
    /// A reset.
    Reset,
}

/// A failure in the script of a [`FakeDevice`](crate::FakeDevice).
#[derive(Clone, Debug)]
pub struct Failure {
    pub(super) when: When,
    pub(super) fault: Fault,
    pub(super) skip: u32,
    pub(super) times: u32,
    pub(super) lands: Option<State>,
}

impl Failure {
    /// The next such call fails, and changes nothing. [`Fault::TimedOut`] and
    /// [`Fault::Gone`] last until a reset.
    pub fn of(when: When, fault: Fault) -> Failure {
        Failure { when, fault, skip: 0, times: 1, lands: None }
    }

    /// The first `calls` such calls succeed.
    #[must_use]
    pub fn after(self, calls: u32) -> Failure {
        Failure { skip: calls, ..self }
    }

    /// As many such calls in a row fail.
    #[must_use]
    pub fn times(self, calls: u32) -> Failure {
        Failure { times: calls, ..self }
    }

    /// The device is in `state` after the failure: on the way, in ERROR, or where it
    /// should be, with the session lost.
    #[must_use]
    pub fn landing_in(self, state: State) -> Failure {
        Failure { lands: Some(state), ..self }
    }
}
