//! Rounds of pre-copy, and when they are enough.

use std::time::Duration;

use port::Phase;

use super::{Action, At, Patience, Round, Source, ms};
use crate::devices::{self, Goal};
use crate::migration::error::Cause;
use crate::migration::options::OnTimeout;

impl Source {
    pub(super) fn next_round(&mut self, now: Duration, out: &mut Vec<Action>) {
        self.at = At::Round;
        self.round =
            Round { number: self.round.number + 1, started: now, ..Round::default() };
        self.budget.round_begins();
        let number = self.round.number;
        out.push(Action::Patience(Patience::Progress(self.options.patience)));
        out.extend([Action::Iterate(number), Action::SendRound(number)]);
    }

    pub(super) fn round_over(&mut self, now: Duration, out: &mut Vec<Action>) {
        let (Some(memory), Some(device)) = (self.round.sent, self.round.devices) else {
            return;
        };
        let ended = self.round.ended.replace(self.round.ended.unwrap_or(now));
        if ended.is_none() {
            // After the devices' data too: the acknowledgement covers all of it.
            out.push(Action::EndRound(self.round.number));
        }
        if !self.round.applied {
            return;
        }
        let bytes = memory.saturating_add(device);
        self.budget.moved(bytes, now.saturating_sub(self.round.started));
        // A peer that acknowledged what had not ended yet said nothing of the link.
        if let Some(ended) = ended {
            self.budget.acknowledged(bytes, now.saturating_sub(ended));
        }
        let reset = std::mem::take(&mut self.round.reset);
        if reset.is_empty() {
            return self.count(false, out);
        }
        for id in reset {
            self.restarts[id.0] += 1;
            self.initial_done[id.0] = false;
            if self.restarts[id.0] > 3 {
                let cause = Cause::ResetTooOften(format!("device {}", id.0));
                return self.fail(now, cause, out);
            }
            let state = devices::Event::Moved(id, states::v2::State::Running);
            self.set_event(state, out);
        }
        self.at = At::Restarting;
        out.push(Action::Patience(Patience::Answer(self.options.patience)));
        self.go(now, Goal::PreCopy, out);
    }

    pub(super) fn count(&mut self, last_look: bool, out: &mut Vec<Action>) {
        self.at = At::Counting { last_look, pending: None, dirty: None, gate: true };
        out.push(Action::Patience(Patience::Answer(self.options.patience)));
        out.extend([Action::AskPending, Action::Collect { last: false }]);
    }

    /// Everything about what is left is known: stop now, ask, go on or give up.
    pub(super) fn decide(&mut self, now: Duration, out: &mut Vec<Action>) {
        let At::Counting { last_look, pending: Some(pending), dirty: Some(dirty), gate } =
            &self.at
        else {
            return;
        };
        let (last_look, dirty, gate) = (*last_look, *dirty, *gate);
        let mut device_bytes = 0u64;
        let mut fixed = 0u64;
        for (n, left) in pending.iter().enumerate() {
            let info = left.precopy.unwrap_or_default();
            let told = left.precopy.is_some();
            if info.reinit || left.reset {
                self.initial_done[n] = false;
            }
            let done = if told { info.initial_bytes == 0 } else { left.ended };
            self.initial_done[n] |= done && !left.reset;
            let shrinkable = info.initial_bytes.saturating_add(info.dirty_bytes);
            let stop = left.stop_copy_bytes.unwrap_or(shrinkable);
            device_bytes = device_bytes.saturating_add(stop.max(info.dirty_bytes));
            fixed = fixed.saturating_add(stop.saturating_sub(shrinkable));
        }
        let estimate = self.budget.estimate(dirty, device_bytes, fixed);
        self.estimate = Some(estimate);
        if !last_look && self.round.number > 0 {
            out.push(Action::Tell {
                round: self.round.number,
                memory: self.round.sent.unwrap_or(0),
                devices: self.round.devices.unwrap_or(0),
                remaining: dirty,
                estimate,
            });
        }
        let limit = self.options.downtime_limit;
        if self.round.number == 1 && !last_look && estimate.floor > limit {
            out.push(Action::Note(if estimate.fixed > limit {
                format!(
                    "the part of the downtime that pre-copy cannot shrink is about {} ms \
                     already, over the limit of {} ms",
                    ms(estimate.fixed),
                    ms(limit)
                )
            } else {
                format!(
                    "setup or the first round was slow, and by that the downtime would \
                     be {} ms or more, over the limit of {} ms: a guess, which weighs \
                     less with each round in which nothing else holds the guest back",
                    ms(estimate.floor),
                    ms(limit)
                )
            }));
        }
        let pre_copying = !self.paused && !self.pause_asked && !self.keeps();
        let members = self.set.members().iter();
        let initial = members
            .zip(&self.initial_done)
            .all(|(member, done)| *done || !member.capabilities.pre_copy());
        let fits = estimate.downtime <= limit && initial;
        let sure = estimate.downtime.saturating_sub(estimate.guessed);
        if !last_look && estimate.downtime > limit && sure <= limit && initial && gate {
            self.budget.doubt();
        }
        let elapsed = now.saturating_sub(self.began);
        let late = elapsed >= self.options.max_time;
        let switch = !pre_copying
            || (fits && gate)
            || (late && self.options.on_timeout == OnTimeout::Switch);
        if switch && last_look {
            self.stop(now, out);
        } else if switch {
            self.at = At::Switching;
            self.asked = now;
            self.enter(Phase::Switchover, now, out);
            out.push(Action::SaySwitchover);
        } else if late {
            let cause = self.not_converged(now);
            self.fail(now, cause, out);
        } else {
            if last_look {
                self.enter(Phase::Precopy, now, out);
            }
            // Memory is not what holds the guest back, but the gate, a device's initial
            // data, or what no round can shrink: rounds without a pause would do nothing
            // but load the machine.
            let since = now.saturating_sub(self.round.started);
            let idle = estimate.downtime <= limit || estimate.floor > limit;
            if idle && since < self.options.pace {
                self.at = At::Pacing;
                out.push(Action::Pace(self.options.pace - since));
            } else {
                self.next_round(now, out);
            }
        }
    }

    /// Why pre-copy that ran out of time did not end in a stop.
    pub(super) fn not_converged(&self, now: Duration) -> Cause {
        let elapsed = now.saturating_sub(self.began);
        let limit = self.options.downtime_limit;
        match &self.estimate {
            None => Cause::TimedOut {
                what: "the first round of pre-copy".to_owned(),
                millis: ms(elapsed),
            },
            Some(estimate) if estimate.downtime <= limit => {
                Cause::Held { seconds: elapsed.as_secs() }
            }
            Some(estimate) => Cause::NotConverged {
                seconds: elapsed.as_secs(),
                estimate_ms: ms(estimate.downtime),
                over_ms: ms(estimate.downtime.saturating_sub(limit)),
                remaining: estimate.remaining,
                bandwidth: estimate.bandwidth,
            },
        }
    }
}
