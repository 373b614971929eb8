//! What each event means in each state.

use std::time::Duration;

use port::{ConfigStage, Decision, Order, Phase};
use states::v2::State;

use super::{Action, At, Discard, Ending, Event, Load, Sink};
use crate::devices::{self, Goal, Set};
use crate::migration::error::Cause;
use crate::migration::source::Patience;

impl Sink {
    pub(super) fn take(&mut self, now: Duration, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Failed(cause) => return self.fail(cause, out),
            Event::SourceGone(cause) => return self.source_gone(cause, out),
            Event::Abort(text) => return self.abort(text, out),
            // A deadline here may not end in an action that destroys what may be the only
            // copy: hold, and say so, until somebody decides.
            Event::Deadline if matches!(self.at, At::Holding { .. }) => {
                let text = "it was silent after PREPARED".to_owned();
                return self.source_gone(Cause::Peer { side: "source", text }, out);
            }
            Event::Deadline => {
                let millis = u64::try_from(self.patience.as_millis()).unwrap_or(u64::MAX);
                let what = self.awaited().to_owned();
                return self.fail(Cause::TimedOut { what, millis }, out);
            }
            Event::Devices(event) => return self.devices(event, out),
            Event::Unrecorded(text) => return self.unrecorded(text, out),
            Event::Cancel => {
                let ours = matches!(
                    self.at,
                    At::Rechecking
                        | At::RecordingRan
                        | At::Starting
                        | At::Resuming
                        | At::Halting { .. }
                );
                if !ours {
                    self.fail(Cause::Cancelled, out);
                }
                return;
            }
            Event::Discard => {
                if matches!(self.at, At::Holding { alone: true }) {
                    self.returning(Cause::Cancelled, out);
                }
                return;
            }
            _ => {}
        }
        match (&mut self.at, event) {
            (At::Listening, Event::Hello) => {
                self.at = At::Considering;
                self.enter(Phase::Negotiate, out);
                out.push(Action::Consider);
            }
            (At::Considering, Event::Unfit(reasons)) => {
                self.at = At::Ended;
                out.push(Action::SayRefuse(reasons.clone()));
                out.push(Action::End(Ending::Refused(reasons)));
            }
            (At::Considering, Event::Considered(members)) => {
                self.set = Set::new(members);
                self.at = At::Opening;
                self.loaded = true;
                self.go(Goal::Resuming, out);
            }
            (At::Connecting, Event::ChannelsOpen) => {
                self.at = At::Receiving;
                out.push(Action::Phase(Phase::Precopy));
                // The source gives up on itself sooner than this.
                out.push(Action::Patience(Patience::Progress(self.patience * 4)));
                out.push(Action::Receive);
            }
            (At::Receiving, Event::RoundEnded(number)) => {
                out.push(Action::SayApplied(number));
            }
            (At::Receiving, Event::Switchover) => {
                // A round is acknowledged when it is applied, the devices' initial data
                // with it, and the source asks after an acknowledgement.
                out.push(Action::SayReady);
            }
            (At::Receiving, Event::AllReceived { paused }) => {
                self.paused = paused;
                self.load(Load::SectionsBefore, now, out);
            }
            (At::Loading(Load::SectionsBefore), Event::SectionsLoaded) => {
                self.load(Load::Config, now, out);
            }
            (At::Loading(Load::Config), Event::ConfigLoaded) => {
                self.load(Load::Bind, now, out);
            }
            (At::Loading(Load::Bind), Event::Bound) => {
                self.load(Load::Devices, now, out);
            }
            (At::Loading(Load::Power), Event::ConfigLoaded) => {
                self.load(Load::Deliver, now, out);
            }
            (At::Loading(Load::Deliver), Event::Delivered) => {
                self.load(Load::SectionsAfter, now, out);
            }
            (At::Loading(Load::SectionsAfter), Event::SectionsLoaded) => {
                if self.inspects {
                    self.load(Load::Inspect, now, out);
                } else {
                    self.check(out);
                }
            }
            (At::Loading(Load::Inspect), Event::Inspected) => {
                self.verify = now.saturating_sub(self.inspecting);
                self.check(out);
            }
            (At::RecordingPrepared, Event::Recorded(Decision::Prepared)) => {
                self.at = At::Holding { alone: false };
                self.prepared = true;
                out.push(Action::SayPrepared(self.verify));
                out.push(Action::Patience(Patience::Answer(self.patience)));
            }
            (At::Holding { .. }, Event::Commit) => {
                self.at = At::Rechecking;
                self.enter(Phase::Commit, out);
                self.devices(devices::Event::Reread, out);
            }
            (At::RecordingRan, Event::Recorded(Decision::Ran)) => {
                self.enter(Phase::Start, out);
                if self.paused {
                    self.at = At::Ended;
                    out.push(Action::SayRunning);
                    out.push(Action::End(Ending::Running { paused: true }));
                } else {
                    self.at = At::Starting;
                    self.go(Goal::Running, out);
                }
            }
            (At::RecordingRan, Event::Recorded(_)) => {
                let cause = Cause::Store("RETURNED stands already".into());
                self.discard(cause, Discard::Returned, out);
            }
            (At::Resuming, Event::VcpusRun) => {
                self.at = At::Ended;
                out.push(Action::SayRunning);
                out.push(Action::End(Ending::Running { paused: false }));
            }
            (At::RecordingReturned(cause), Event::Recorded(Decision::Returned)) => {
                let cause = (**cause).clone();
                self.discard(cause, Discard::Returned, out);
            }
            (At::RecordingReturned(_), Event::Recorded(_)) => {
                // RAN stands: the loser obeys.
                self.at = At::RecordingRan;
                self.take(now, Event::Recorded(Decision::Ran), out);
            }
            (At::Discarding(cause), Event::Discarded) => {
                let cause = (**cause).clone();
                self.at = At::Ended;
                out.push(Action::End(Ending::Discarded(cause)));
            }
            // The vCPUs were told to stop; the devices' answer decides.
            (At::Halting { .. }, _) => {}
            (At::Discarding(..) | At::Ended, _) => {}
            (_, event) => {
                let text =
                    format!("{} while waiting for {}", name(&event), self.awaited());
                self.fail(Cause::Protocol(text), out);
            }
        }
    }

    pub(super) fn check(&mut self, out: &mut Vec<Action>) {
        self.at = At::Checking;
        self.devices(devices::Event::Reread, out);
    }

    pub(super) fn enter(&mut self, phase: Phase, out: &mut Vec<Action>) {
        out.push(Action::Phase(phase));
        out.push(Action::Patience(Patience::Answer(self.patience)));
    }

    pub(super) fn load(&mut self, what: Load, now: Duration, out: &mut Vec<Action>) {
        self.at = At::Loading(what);
        match what {
            Load::SectionsBefore => {
                self.enter(Phase::Prepare, out);
                out.push(Action::LoadSections(Order::BeforeDevices));
            }
            Load::Config => out.push(Action::LoadConfig(ConfigStage::Resuming)),
            Load::Bind => out.push(Action::Bind),
            Load::Devices => self.go(Goal::Stop, out),
            Load::Power => out.push(Action::LoadConfig(ConfigStage::Power)),
            Load::Deliver => out.push(Action::Deliver),
            Load::SectionsAfter => {
                out.push(Action::LoadSections(Order::AfterDevices));
            }
            Load::Inspect => {
                self.inspecting = now;
                out.push(Action::Inspect);
            }
        }
    }

    pub(super) fn go(&mut self, goal: Goal, out: &mut Vec<Action>) {
        self.devices(devices::Event::Go(goal), out);
    }

    pub(super) fn devices(&mut self, event: devices::Event, out: &mut Vec<Action>) {
        let set = std::mem::replace(&mut self.set, Set::new(Vec::new()));
        let (set, actions) = devices::step(set, event);
        self.set = set;
        for action in actions {
            match action {
                devices::Action::Move(..)
                | devices::Action::Read(_)
                | devices::Action::Reset(_) => out.push(Action::Devices(action)),
                devices::Action::Wave(_) | devices::Action::Recovered { .. } => {}
                devices::Action::Reached(goal) => self.reached(goal, out),
                devices::Action::Failed(_, failures) => {
                    let texts: Vec<String> =
                        failures.into_iter().map(|f| f.reason).collect();
                    self.fail(Cause::Device(texts.join("; ")), out);
                }
                devices::Action::States(states) => self.reread(&states, out),
            }
        }
    }

    pub(super) fn reached(&mut self, goal: Goal, out: &mut Vec<Action>) {
        match (&self.at, goal) {
            (At::Opening, Goal::Resuming) => {
                self.at = At::Connecting;
                self.enter(Phase::Setup, out);
                out.extend([Action::SayAccept, Action::AcceptChannels]);
            }
            (At::Halting { .. }, Goal::Stop) => self.halted(out),
            (At::Loading(Load::Devices), Goal::Stop) => {
                self.at = At::Loading(Load::Power);
                out.push(Action::LoadConfig(ConfigStage::Power));
            }
            (At::Starting, Goal::Running) => {
                self.at = At::Resuming;
                out.push(Action::ResumeVcpus);
            }
            _ => {}
        }
    }

    pub(super) fn reread(&mut self, states: &[Option<State>], out: &mut Vec<Action>) {
        let wrong: Vec<String> = states
            .iter()
            .enumerate()
            .filter(|(_, state)| **state != Some(State::Stop))
            .map(|(n, state)| {
                let state = state.map_or("an unknown state", |s| s.name());
                format!("device {n} is in {state} where it should be in STOP")
            })
            .collect();
        let wrong = (!wrong.is_empty()).then(|| Cause::Device(wrong.join("; ")));
        match (&self.at, wrong) {
            (At::Checking, None) => {
                self.at = At::RecordingPrepared;
                out.push(Action::Record(Decision::Prepared));
            }
            (At::Rechecking, None) => {
                self.at = At::RecordingRan;
                out.push(Action::Record(Decision::Ran));
            }
            (At::Checking | At::Rechecking, Some(cause)) => self.fail(cause, out),
            _ => {}
        }
    }

    pub(super) fn awaited(&self) -> &'static str {
        match self.at {
            At::Listening => "a source",
            At::Considering => "the VMM to open its devices",
            At::Opening => "the devices to enter RESUMING",
            At::Connecting => "the data connections",
            At::Receiving => "the source's data",
            At::Loading(Load::SectionsBefore | Load::SectionsAfter) => "the sections",
            At::Loading(Load::Config | Load::Power) => "the config spaces",
            At::Loading(Load::Bind | Load::Deliver) => "the interrupts",
            At::Loading(Load::Devices) => "the devices to accept their data",
            At::Loading(Load::Inspect) => "the look at the loaded guest",
            At::Checking | At::Rechecking => {
                "the devices to confirm that they are stopped"
            }
            At::RecordingPrepared | At::RecordingRan | At::RecordingReturned(_) => {
                "the decision store"
            }
            At::Holding { .. } => "the source's decision",
            At::Starting => "the devices to start",
            At::Resuming => "the vCPUs to start",
            At::Halting { .. } => "the devices to stop again",
            At::Discarding(..) => "the devices to be reset",
            At::Ended => "nothing",
        }
    }
}

fn name(event: &Event) -> &'static str {
    match event {
        Event::Hello => "a hello",
        Event::RoundEnded(_) => "the end of a round",
        Event::Switchover => "a switchover request",
        Event::AllReceived { .. } => "the end of the data",
        Event::Commit => "COMMIT",
        _ => "an event out of turn",
    }
}
