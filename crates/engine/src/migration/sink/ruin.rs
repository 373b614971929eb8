//! What happens when something fails: a guest that was decided about stays decided, and
//! one that was not is returned or thrown away.

use port::{Decision, Phase};

use states::v2::State;

use super::{Action, At, DeviceId, Discard, Ending, Member, Sink};
use crate::devices::{self, Goal};
use crate::migration::error::Cause;
use crate::migration::source::Patience;

impl Sink {
    pub(super) fn fail(&mut self, cause: Cause, out: &mut Vec<Action>) {
        match &self.at {
            At::Ended | At::Discarding(..) => {
                // The reset of a device that is thrown away may fail: it holds nothing
                // that anybody needs, and does not run by itself.
                if matches!(cause, Cause::TimedOut { .. })
                    && let At::Discarding(cause) = &self.at
                {
                    let cause = (**cause).clone();
                    self.at = At::Ended;
                    out.push(Action::End(Ending::Discarded(cause)));
                }
            }
            // The guest is ours: it stays paused here, and the source is told.
            At::Starting | At::Resuming => {
                let stuck = |member: &Member| {
                    member.lost || member.state.is_none_or(State::is_stopped)
                };
                let device = self.set.members().iter().position(stuck).unwrap_or(0);
                let (device, text) = (DeviceId(device), cause.to_string());
                self.at = At::Halting { device, text };
                out.push(Action::PauseVcpus);
                out.push(Action::Patience(Patience::Answer(self.patience)));
                // A device that does not answer may still write into the others: then
                // none is stopped before it, and none is reset with a guest in it.
                self.devices(devices::Event::Go(Goal::Stop), out);
            }
            At::Halting { .. } => self.halted(out),
            At::Holding { .. } | At::Rechecking => self.returning(cause, out),
            At::RecordingRan | At::RecordingReturned(_) => {
                self.at = At::Ended;
                out.push(Action::End(Ending::InDoubt(cause)));
            }
            _ => {
                out.push(Action::SayFailed(cause.clone()));
                self.discard(cause, Discard::Quiet, out);
            }
        }
    }

    pub(super) fn source_gone(&mut self, cause: Cause, out: &mut Vec<Action>) {
        match &mut self.at {
            At::Holding { alone } => {
                if !std::mem::replace(alone, true) {
                    out.push(Action::Hold(cause.to_string()));
                }
            }
            // It was decided, or is being decided: finish that.
            At::Rechecking
            | At::RecordingRan
            | At::Starting
            | At::Resuming
            | At::Halting { .. }
            | At::RecordingReturned(_)
            | At::RecordingPrepared
            | At::Discarding(..)
            | At::Ended => {
                if self.at == At::RecordingPrepared {
                    self.fail(cause, out);
                }
            }
            _ => self.discard(cause, Discard::Quiet, out),
        }
    }

    pub(super) fn abort(&mut self, text: String, out: &mut Vec<Action>) {
        let cause = Cause::Peer { side: "source", text };
        match self.at {
            At::Holding { .. } => self.returning(cause, out),
            At::RecordingPrepared => self.discard(cause, Discard::Quiet, out),
            At::Ended | At::Discarding(..) => {}
            // After COMMIT the source has nothing to abort any more.
            At::Rechecking
            | At::RecordingRan
            | At::Starting
            | At::Resuming
            | At::Halting { .. } => {}
            At::RecordingReturned(_) => {}
            _ => self.discard(cause, Discard::Quiet, out),
        }
    }

    pub(super) fn returning(&mut self, cause: Cause, out: &mut Vec<Action>) {
        self.at = At::RecordingReturned(Box::new(cause));
        out.push(Action::Patience(Patience::Answer(self.patience)));
        out.push(Action::Record(Decision::Returned));
    }

    pub(super) fn unrecorded(&mut self, text: String, out: &mut Vec<Action>) {
        match self.at {
            // PREPARED is not a decision: without it we simply are not prepared.
            At::RecordingPrepared => {
                let cause = Cause::Store(text);
                out.push(Action::SayFailed(cause.clone()));
                self.discard(cause, Discard::Quiet, out);
            }
            // Whether RAN or RETURNED stands is not known: neither run nor answer.
            At::RecordingRan | At::RecordingReturned(_) => {
                self.at = At::Ended;
                out.push(Action::End(Ending::InDoubt(Cause::Store(text))));
            }
            _ => {}
        }
    }

    /// Whatever did start is stopped again: the guest is this side's, and paused.
    pub(super) fn halted(&mut self, out: &mut Vec<Action>) {
        if let At::Halting { device, text } = &self.at {
            let (device, text) = (*device, text.clone());
            self.at = At::Ended;
            out.push(Action::SayNotStarted(device, text.clone()));
            out.push(Action::End(Ending::NotStarted(text)));
        }
    }

    /// RETURNED is said as soon as it is durable: the source waits for it, and what is
    /// thrown away here does not run.
    pub(super) fn discard(&mut self, cause: Cause, how: Discard, out: &mut Vec<Action>) {
        if how == Discard::Returned {
            out.push(Action::SayReturned(cause.to_string()));
        }
        self.at = At::Discarding(Box::new(cause));
        self.enter(Phase::Cleanup, out);
        out.push(Action::Discard);
    }
}
