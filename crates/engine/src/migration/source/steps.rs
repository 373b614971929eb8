//! What each event means in each state.

use std::time::Duration;

use port::Phase;

use super::ruin::ending;
use super::{Action, At, Ending, Event, Patience, Ruin, Source, ms};
use crate::devices::{self, Goal, Set, Wave};
use crate::migration::error::{Cause, Recovery};
use crate::migration::options::Finish;

/// How long a copy may take to become durable.
const DURABLE: Duration = Duration::from_secs(24 * 60 * 60);

impl Source {
    pub(super) fn take(&mut self, now: Duration, event: Event, out: &mut Vec<Action>) {
        match event {
            // What changes here is of no account once the guest is not here any more.
            Event::Failed(Cause::Changed(_)) if !self.before_commit() => return,
            Event::Failed(cause) => return self.fail(now, cause, out),
            Event::Cancel if self.interruptible() || self.before_commit() => {
                return self.fail(now, Cause::Cancelled, out);
            }
            Event::Cancel => return,
            Event::Deadline if matches!(self.at, At::RollingBack(_)) => {
                return self.give_up(now, out);
            }
            Event::Deadline => {
                let millis = ms(self.options.patience);
                let what = self.awaited().to_owned();
                return self.fail(now, Cause::TimedOut { what, millis }, out);
            }
            Event::OutOfTime => {
                if self.out_of_time().is_some() {
                    let cause = self.not_converged(now);
                    self.fail(now, cause, out);
                }
                return;
            }
            Event::Pause => {
                self.pause_asked |= self.interruptible() && !self.paused;
                return;
            }
            Event::Resume => {
                if self.interruptible() {
                    self.pause_asked = false;
                }
                return;
            }
            Event::DowntimeLimit(limit) => {
                self.options.downtime_limit = limit;
                return;
            }
            Event::Limited(limit) => return self.budget.limited(limit),
            Event::Devices(event, took) => {
                if matches!(event, devices::Event::Moved(..)) {
                    self.budget.transition(took);
                }
                return self.devices(now, event, out);
            }
            _ => {}
        }
        match (&mut self.at, event) {
            (At::New, Event::Begin { paused }) => {
                self.paused = paused;
                self.pause_asked &= !paused;
                self.began = now;
                self.asked = now;
                self.at = At::Negotiating;
                self.undo.talked = true;
                self.enter(Phase::Negotiate, now, out);
                out.push(Action::SayHello);
            }
            (At::Negotiating, Event::Refused(reasons)) => {
                // It has ended over there. What is left is a pause that was asked for.
                self.undo.talked = false;
                self.ruin(now, Cause::Refused(reasons), out);
            }
            (At::Negotiating, Event::Accepted { load }) => {
                self.budget.load(load);
                self.at = At::Opening;
                out.push(Action::OpenChannels);
            }
            (At::Opening, Event::ChannelsOpen) => {
                self.at = At::Tracking;
                self.undo.tracking = true;
                self.enter(Phase::Setup, now, out);
                out.push(Action::Track);
            }
            (At::Tracking, Event::Tracking) => {
                self.undo.devices = true;
                if self.paused || self.keeps() {
                    // Nothing changes any more, or a copy is made all at once: no
                    // pre-copy.
                    self.count(false, out);
                } else {
                    self.at = At::Setup;
                    self.go(now, Goal::PreCopy, out);
                }
            }
            (At::Round, Event::RoundSent(bytes)) => {
                self.round.sent = Some(bytes);
                self.round_over(now, out);
            }
            (At::Round, Event::Applied(number)) if number == self.round.number => {
                self.round.applied = true;
                self.round_over(now, out);
            }
            (At::Round, Event::Iterated { bytes, reset }) => {
                self.round.devices = Some(bytes);
                self.round.reset = reset;
                self.round_over(now, out);
            }
            (At::Counting { pending, .. }, Event::Pending(left)) => {
                *pending = Some(left);
                self.decide(now, out);
            }
            (
                At::Counting { dirty, gate, .. },
                Event::Collected { dirty: d, gate: g },
            ) => {
                *dirty = Some(d);
                *gate = g;
                self.decide(now, out);
            }
            (At::Pacing, Event::Paced) => self.next_round(now, out),
            (At::Switching, Event::Ready) => {
                self.budget.round_trip(now.saturating_sub(self.asked));
                // The test is made once more right before the stop: a device may have
                // started over (REINIT), the guest may have written a lot.
                self.count(true, out);
            }
            (At::PausingVcpus, Event::VcpusPaused) => {
                self.at = At::SavingConfig;
                self.enter(Phase::Config, now, out);
                out.push(Action::SaveConfig);
            }
            (At::SavingConfig, Event::ConfigSaved) => {
                self.at = At::Stopping;
                self.enter(Phase::Stop, now, out);
                self.go(now, Goal::StopCopy, out);
            }
            (At::LastDirty, Event::Collected { .. }) => {
                self.at = At::Draining;
                self.undo.interrupts = true;
                self.enter(Phase::Config, now, out);
                out.push(Action::DrainInterrupts);
            }
            (At::Draining, Event::InterruptsDrained) => {
                if self.inspects {
                    self.at = At::Inspecting;
                    self.enter(Phase::Verify, now, out);
                    out.push(Action::Inspect);
                } else {
                    self.send_rest(now, out);
                }
            }
            (At::Inspecting, Event::Inspected) => self.send_rest(now, out),
            (At::Moving { memory, .. }, Event::MemorySent) => {
                *memory = true;
                self.moved(now, out);
            }
            (At::Moving { devices, .. }, Event::DevicesDrained) => {
                *devices = true;
                self.moved(now, out);
            }
            (At::SavingSections, Event::SectionsSaved) => {
                // Sections travel on a data connection too: it ends after them.
                self.at = At::EndingChannels;
                out.push(Action::EndChannels);
            }
            (At::EndingChannels, Event::ChannelsEnded) => {
                self.at = At::Preparing;
                self.enter(Phase::Prepare, now, out);
                out.push(Action::SayEnd { paused: self.paused });
            }
            (At::Preparing, Event::Prepared { verify })
                if let Finish::Keep { stopped } = self.options.finish =>
            {
                self.ledger.shift(Phase::Prepare, Phase::Verify, verify);
                self.keep(now, stopped, out);
            }
            (At::Preparing, Event::Prepared { verify }) => {
                self.at = At::Rereading;
                self.enter(Phase::Commit, now, out);
                self.ledger.shift(Phase::Prepare, Phase::Verify, verify);
                self.devices(now, devices::Event::Reread, out);
            }
            (At::Yielding, Event::Yielded) => self.commit(now, out),
            (At::Committed, Event::Running) => {
                self.ledger.end(now);
                self.tidy(now, out);
            }
            (At::Committed, Event::Returned(text)) => {
                self.ruin(now, Cause::Returned(text), out);
            }
            (At::Committed, Event::NotStarted(text)) => {
                // It is the destination's all the same: nothing comes back here.
                self.verdict = Ending::Failed {
                    cause: Cause::NotStarted(text),
                    recovery: Recovery::Moved,
                    devices: Vec::new(),
                };
                self.tidy(now, out);
            }
            (At::RollingBack(ruin), Event::VcpusPaused) if ruin.pausing => {
                ruin.pausing = false;
                self.paused = true;
                self.undo.devices = true;
                self.roll_back(now, out);
            }
            (At::RollingBack(ruin), Event::Undone) => {
                let Ruin { cause, devices, .. } = (**ruin).clone();
                self.at = At::Ended;
                let recovery = self.recovery(&devices);
                if cause.is_none() {
                    self.ledger.end(now);
                }
                out.push(Action::End(ending(cause, recovery, devices)));
            }
            // A peer that answers what nobody asked breaks the protocol; what our own
            // workers still report while the source rolls back or has ended is stale.
            (At::RollingBack(_) | At::Ended | At::Tidying, _) => {}
            (_, event) => {
                let text =
                    format!("{} while waiting for {}", name(&event), self.awaited());
                self.fail(now, Cause::Protocol(text), out);
            }
        }
    }

    /// The point of no return. From here on the destination has the right to run.
    pub(super) fn commit(&mut self, now: Duration, out: &mut Vec<Action>) {
        self.at = At::Committed;
        out.push(Action::SayCommit);
        self.enter(Phase::Start, now, out);
    }

    /// The guest is the destination's: this side's devices leave STOP_COPY.
    fn tidy(&mut self, now: Duration, out: &mut Vec<Action>) {
        self.at = At::Tidying;
        self.enter(Phase::Cleanup, now, out);
        out.push(Action::Untrack);
        self.go(now, Goal::Stop, out);
    }

    pub(super) fn enter(&mut self, phase: Phase, now: Duration, out: &mut Vec<Action>) {
        self.ledger.turn(phase, now);
        out.push(Action::Phase(phase));
        let patience = self.options.patience;
        out.push(Action::Patience(match phase {
            Phase::Precopy | Phase::Memory | Phase::Devices => {
                Patience::Progress(patience)
            }
            // A copy is made durable now: a disk takes its time, and none of its answers
            // come sooner for being given up. Whoever does not want to wait cancels.
            Phase::Prepare if self.options.finish == (Finish::Keep { stopped: true }) => {
                Patience::Answer(DURABLE)
            }
            // The destination does several things before it answers, each of which may
            // take its own patience.
            Phase::Prepare | Phase::Start => Patience::Answer(patience * 4),
            _ => Patience::Answer(patience),
        }));
    }

    pub(super) fn go(&mut self, now: Duration, goal: Goal, out: &mut Vec<Action>) {
        self.devices(now, devices::Event::Go(goal), out);
    }

    pub(super) fn set_event(
        &mut self,
        event: devices::Event,
        out: &mut Vec<Action>,
    ) -> Vec<devices::Action> {
        let set = std::mem::replace(&mut self.set, Set::new(Vec::new()));
        let (set, actions) = devices::step(set, event);
        self.set = set;
        let mut ends = Vec::new();
        for action in actions {
            match action {
                devices::Action::Move(..) | devices::Action::Read(_) => {
                    out.push(Action::Devices(action));
                }
                devices::Action::Reset(_) => {
                    self.hold(out);
                    out.push(Action::Devices(action));
                }
                end => ends.push(end),
            }
        }
        ends
    }

    pub(super) fn devices(
        &mut self,
        now: Duration,
        event: devices::Event,
        out: &mut Vec<Action>,
    ) {
        // The wave's name must stand before its moves.
        let at = out.len();
        let ends = self.set_event(event, out);
        for end in ends {
            match end {
                devices::Action::Wave(wave) if self.at == At::Stopping => {
                    let phase = match wave {
                        Wave::P2p => Phase::P2p,
                        Wave::Move => Phase::Stop,
                    };
                    self.ledger.turn(phase, now);
                    out.insert(at, Action::Phase(phase));
                }
                devices::Action::Wave(_) => {}
                devices::Action::Reached(goal) => self.reached(now, goal, out),
                devices::Action::Failed(_, failures) => {
                    let texts: Vec<String> =
                        failures.into_iter().map(|f| f.reason).collect();
                    if self.at == At::Tidying {
                        // The guest runs elsewhere; this is only untidy.
                        out.push(Action::Note(texts.join("; ")));
                        self.at = At::Ended;
                        out.push(Action::End(self.verdict.clone()));
                    } else {
                        self.fail(now, Cause::Device(texts.join("; ")), out);
                    }
                }
                devices::Action::Recovered { reset, lost } => {
                    let lost = reset.into_iter().chain(lost).collect();
                    self.recovered(lost, out);
                }
                devices::Action::States(states) => self.reread(now, &states, out),
                devices::Action::Move(..)
                | devices::Action::Read(_)
                | devices::Action::Reset(_) => {}
            }
        }
    }

    pub(super) fn reached(&mut self, now: Duration, goal: Goal, out: &mut Vec<Action>) {
        match (&self.at, goal) {
            (At::Setup, Goal::PreCopy) => {
                self.enter(Phase::Precopy, now, out);
                self.next_round(now, out);
            }
            (At::Restarting, Goal::PreCopy) => self.next_round(now, out),
            (At::Stopping, Goal::StopCopy) => {
                self.at = At::LastDirty;
                self.enter(Phase::Dirty, now, out);
                out.push(Action::Collect { last: true });
            }
            (At::Tidying, Goal::Stop) => {
                self.at = At::Ended;
                out.push(Action::End(self.verdict.clone()));
            }
            _ => {}
        }
    }

    pub(super) fn stop(&mut self, now: Duration, out: &mut Vec<Action>) {
        if self.pause_asked {
            // The operator's pause takes effect with the stop, and travels.
            self.paused = true;
        }
        self.at = At::PausingVcpus;
        self.undo.vcpus = true;
        self.ledger.begin(Phase::VcpuStop, now);
        self.enter(Phase::VcpuStop, now, out);
        out.push(Action::PauseVcpus);
    }

    pub(super) fn send_rest(&mut self, now: Duration, out: &mut Vec<Action>) {
        self.at = At::Moving { memory: false, devices: false };
        self.enter(Phase::Memory, now, out);
        out.extend([Action::SendLast, Action::Drain]);
    }

    pub(super) fn moved(&mut self, now: Duration, out: &mut Vec<Action>) {
        match self.at {
            At::Moving { memory: true, devices: true } => {
                self.at = At::SavingSections;
                self.enter(Phase::Config, now, out);
                out.push(Action::SaveSections);
            }
            At::Moving { memory: true, .. } => self.enter(Phase::Devices, now, out),
            _ => {}
        }
    }

    pub(super) fn reread(
        &mut self,
        now: Duration,
        states: &[Option<states::v2::State>],
        out: &mut Vec<Action>,
    ) {
        if self.at != At::Rereading {
            return;
        }
        let wrong: Vec<String> = states
            .iter()
            .enumerate()
            .filter(|(_, state)| **state != Some(states::v2::State::StopCopy))
            .map(|(n, state)| {
                let state = state.map_or("an unknown state", |s| s.name());
                format!("device {n} is in {state} where it should be in STOP_COPY")
            })
            .collect();
        if wrong.is_empty() {
            self.at = At::Yielding;
            out.push(Action::Yield);
        } else {
            self.fail(now, Cause::Device(wrong.join("; ")), out);
        }
    }

    /// What the source waits for, for errors.
    pub(super) fn awaited(&self) -> &'static str {
        match self.at {
            At::New => "the start",
            At::Negotiating => "the destination's answer to the negotiation",
            At::Opening => "the data connections",
            At::Tracking => "dirty tracking to start",
            At::Setup | At::Restarting => "the devices to enter PRE_COPY",
            At::Round => "a round of pre-copy",
            At::Counting { .. } => "the devices to tell what is left",
            At::Pacing => "the next round",
            At::Switching => "the destination to be ready for the switchover",
            At::PausingVcpus => "the vCPUs to stop",
            At::SavingConfig => "the config spaces",
            At::Stopping => "the devices to stop",
            At::LastDirty => "the last dirty bits",
            At::Draining => "the pending interrupts",
            At::Inspecting => "the look at the stopped guest",
            At::Moving { .. } => "the rest of the data to be sent",
            At::SavingSections => "the VMM's sections",
            At::EndingChannels => "the data connections to end",
            At::Preparing => "the destination's PREPARED",
            At::Rereading => "the devices to confirm that they are stopped",
            At::Yielding => "the record YIELDED",
            At::Committed => "the destination's RUNNING",
            At::Tidying => "the devices to leave STOP_COPY",
            At::RollingBack(_) => "the rollback",
            At::Ended => "nothing",
        }
    }
}

fn name(event: &Event) -> &'static str {
    match event {
        Event::Accepted { .. } => "an acceptance",
        Event::Refused(_) => "a refusal",
        Event::Applied(_) => "the acknowledgement of a round",
        Event::Ready => "a readiness",
        Event::Prepared { .. } => "PREPARED",
        Event::Running => "RUNNING",
        Event::Returned(_) => "RETURNED",
        Event::NotStarted(_) => "NOT_STARTED",
        _ => "an event out of turn",
    }
}
