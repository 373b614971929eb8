//! The destination: holds what it was sent, and decides once.

use std::time::Duration;

use port::{ConfigStage, Decision, Order, Phase};
use states::v2::State;

use super::error::{Cause, Recovery};
use super::source::Patience;
use crate::devices::{self, DeviceId, Goal, Member, Set};

/// The destination of one migration.
#[derive(Clone, Debug, PartialEq)]
pub struct Sink {
    patience: Duration,
    /// Somebody wants to look at the loaded guest.
    inspects: bool,
    set: Set,
    at: At,
    paused: bool,
    verify: Duration,
    inspecting: Duration,
    /// Devices that may hold guest state and have to be reset when it is thrown away.
    loaded: bool,
    prepared: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum At {
    Listening,
    Considering,
    /// Devices to RESUMING.
    Opening,
    Connecting,
    Receiving,
    Loading(Load),
    Checking,
    RecordingPrepared,
    /// PREPARED was said. Nothing is decided.
    Holding {
        alone: bool,
    },
    Rechecking,
    RecordingRan,
    Starting,
    Resuming,
    RecordingReturned(Box<Cause>),
    Discarding(Box<Cause>, Discard),
    Ended,
}

/// The order of loading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    SectionsBefore,
    Config,
    Bind,
    Devices,
    Power,
    Deliver,
    SectionsAfter,
    Inspect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Discard {
    /// Nobody else has it: never decided, or never prepared.
    Quiet,
    /// RETURNED is durable and was or will be said.
    Returned,
}

/// What happened to the sink.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The source said hello.
    Hello,
    /// The VMM compared and opened its devices: here they are.
    Considered(Vec<Member>),
    /// Something does not fit: each reason names the fields of both sides.
    Unfit(Vec<String>),
    /// All data connections are open.
    ChannelsOpen,
    /// Something of the devices.
    Devices(devices::Event),
    /// A round has ended on every data connection and is applied.
    RoundEnded(u32),
    /// The source asks whether we are ready.
    Switchover,
    /// Every data connection ended as announced, and the source said that this is all.
    AllReceived {
        /// Whether the guest arrives paused.
        paused: bool,
    },
    /// Sections of one order were loaded.
    SectionsLoaded,
    /// One stage of the config spaces was loaded.
    ConfigLoaded,
    /// The interrupts are bound.
    Bound,
    /// The pending interrupts were delivered.
    Delivered,
    /// The loaded guest was looked at.
    Inspected,
    /// The store says which decision stands.
    Recorded(Decision),
    /// The store does not know whether it recorded.
    Unrecorded(String),
    /// The source gave the guest away.
    Commit,
    /// The source gives up.
    Abort(String),
    /// The vCPUs run.
    VcpusRun,
    /// The guest's contents were thrown away.
    Discarded,
    /// Something failed.
    Failed(Cause),
    /// The connection to the source is gone.
    SourceGone(Cause),
    /// What was waited for did not come in time.
    Deadline,
    /// The operator throws a held guest away.
    Discard,
    /// The operator gives up. A guest that is this side's already stays that.
    Cancel,
}

/// What the sink does.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// The sink is in a phase now.
    Phase(Phase),
    /// Compare identities, memory and sections; let the VMM open its devices.
    Consider,
    /// Say why not.
    SayRefuse(Vec<String>),
    /// Say yes.
    SayAccept,
    /// Take the data connections in.
    AcceptChannels,
    /// Something for the devices.
    Devices(devices::Action),
    /// Start to receive on the data connections.
    Receive,
    /// Acknowledge a round.
    SayApplied(u32),
    /// Ready for the stop.
    SayReady,
    /// Load the sections of one order.
    LoadSections(Order),
    /// Load one stage of every config space.
    LoadConfig(ConfigStage),
    /// Bind the interrupts.
    Bind,
    /// Deliver the pending interrupts.
    Deliver,
    /// Look at the loaded guest.
    Inspect,
    /// Record a decision.
    Record(Decision),
    /// PREPARED; that much time went into looking.
    SayPrepared(Duration),
    /// The source is gone and nothing is decided: say so, and hold.
    Hold(String),
    /// Let the vCPUs run.
    ResumeVcpus,
    /// The guest runs here.
    SayRunning,
    /// The guest is here and did not start.
    SayNotStarted(String),
    /// The guest is the source's.
    SayReturned(String),
    /// Tell the source why it failed here.
    SayFailed(Cause),
    /// Throw the guest's contents away: unbind interrupts, reset every device. Never by
    /// way of RUNNING with guest mappings in place.
    Discard,
    /// Wait no longer than this.
    Patience(Patience),
    /// The migration is over here.
    End(Ending),
}

/// How the sink ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest runs here, or is paused here as it was there.
    Running {
        /// Whether it arrived paused.
        paused: bool,
    },
    /// Refused before anything was touched.
    Refused(Vec<String>),
    /// The guest's contents were thrown away; the source has it.
    Discarded(Cause),
    /// The guest is this side's, and stays paused: something did not start.
    NotStarted(String),
    /// It is not known which decision stands: neither run nor thrown away.
    InDoubt(Cause),
}

impl Ending {
    /// What the caller has.
    pub fn recovery(&self) -> Option<Recovery> {
        match self {
            Ending::Running { .. } => None,
            Ending::Refused(_) | Ending::Discarded(_) => Some(Recovery::Retry),
            Ending::NotStarted(_) => Some(Recovery::DeviceLost),
            Ending::InDoubt(_) => Some(Recovery::InDoubt),
        }
    }
}

impl Sink {
    /// A destination that waits for a source; no answer may take longer than
    /// `patience`.
    pub fn new(patience: Duration) -> Sink {
        Sink {
            patience,
            inspects: true,
            set: Set::new(Vec::new()),
            at: At::Listening,
            paused: false,
            verify: Duration::ZERO,
            inspecting: Duration::ZERO,
            loaded: false,
            prepared: false,
        }
    }

    /// From now on nobody wants to look at the loaded guest.
    #[must_use]
    pub fn without_inspection(mut self) -> Sink {
        self.inspects = false;
        self
    }

    /// Whether PREPARED was said and nothing is decided.
    pub fn holding(&self) -> bool {
        matches!(self.at, At::Holding { .. })
    }

    /// Whether the guest arrives paused.
    pub fn paused(&self) -> bool {
        self.paused
    }

    /// Takes one event.
    pub fn step(mut self, now: Duration, event: Event) -> (Sink, Vec<Action>) {
        let mut out = Vec::new();
        self.take(now, event, &mut out);
        (self, out)
    }

    fn take(&mut self, now: Duration, event: Event, out: &mut Vec<Action>) {
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
                    At::Rechecking | At::RecordingRan | At::Starting | At::Resuming
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
            (At::Discarding(cause, how), Event::Discarded) => {
                let (cause, how) = ((**cause).clone(), *how);
                self.at = At::Ended;
                if how == Discard::Returned {
                    out.push(Action::SayReturned(cause.to_string()));
                }
                out.push(Action::End(Ending::Discarded(cause)));
            }
            (At::Discarding(..) | At::Ended, _) => {}
            (_, event) => {
                let text =
                    format!("{} while waiting for {}", name(&event), self.awaited());
                self.fail(Cause::Protocol(text), out);
            }
        }
    }

    fn check(&mut self, out: &mut Vec<Action>) {
        self.at = At::Checking;
        self.devices(devices::Event::Reread, out);
    }

    fn enter(&mut self, phase: Phase, out: &mut Vec<Action>) {
        out.push(Action::Phase(phase));
        out.push(Action::Patience(Patience::Answer(self.patience)));
    }

    fn load(&mut self, what: Load, now: Duration, out: &mut Vec<Action>) {
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

    fn go(&mut self, goal: Goal, out: &mut Vec<Action>) {
        self.devices(devices::Event::Go(goal), out);
    }

    fn devices(&mut self, event: devices::Event, out: &mut Vec<Action>) {
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

    fn reached(&mut self, goal: Goal, out: &mut Vec<Action>) {
        match (&self.at, goal) {
            (At::Opening, Goal::Resuming) => {
                self.at = At::Connecting;
                self.enter(Phase::Setup, out);
                out.extend([Action::SayAccept, Action::AcceptChannels]);
            }
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

    fn reread(&mut self, states: &[Option<State>], out: &mut Vec<Action>) {
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

    fn fail(&mut self, cause: Cause, out: &mut Vec<Action>) {
        match &self.at {
            At::Ended | At::Discarding(..) => {
                // The reset of a device that is thrown away may fail: it holds nothing
                // that anybody needs, and does not run by itself.
                if matches!(cause, Cause::TimedOut { .. })
                    && let At::Discarding(cause, how) = &self.at
                {
                    let (cause, how) = ((**cause).clone(), *how);
                    self.at = At::Ended;
                    if how == Discard::Returned {
                        out.push(Action::SayReturned(cause.to_string()));
                    }
                    out.push(Action::End(Ending::Discarded(cause)));
                }
            }
            // The guest is ours: it stays paused here, and the source is told.
            At::Starting | At::Resuming => {
                self.at = At::Ended;
                out.push(Action::SayNotStarted(cause.to_string()));
                out.push(Action::End(Ending::NotStarted(cause.to_string())));
            }
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

    fn source_gone(&mut self, cause: Cause, out: &mut Vec<Action>) {
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

    fn abort(&mut self, text: String, out: &mut Vec<Action>) {
        let cause = Cause::Peer { side: "source", text };
        match self.at {
            At::Holding { .. } => self.returning(cause, out),
            At::RecordingPrepared => self.discard(cause, Discard::Quiet, out),
            At::Ended | At::Discarding(..) => {}
            // After COMMIT the source has nothing to abort any more.
            At::Rechecking | At::RecordingRan | At::Starting | At::Resuming => {}
            At::RecordingReturned(_) => {}
            _ => self.discard(cause, Discard::Quiet, out),
        }
    }

    fn returning(&mut self, cause: Cause, out: &mut Vec<Action>) {
        self.at = At::RecordingReturned(Box::new(cause));
        out.push(Action::Patience(Patience::Answer(self.patience)));
        out.push(Action::Record(Decision::Returned));
    }

    fn unrecorded(&mut self, text: String, out: &mut Vec<Action>) {
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

    fn discard(&mut self, cause: Cause, how: Discard, out: &mut Vec<Action>) {
        self.at = At::Discarding(Box::new(cause), how);
        self.enter(Phase::Cleanup, out);
        out.push(Action::Discard);
    }

    /// The devices, as last heard.
    pub fn members(&self) -> &[Member] {
        self.set.members()
    }

    /// The devices that something waits for.
    pub fn waiting(&self) -> Vec<DeviceId> {
        self.set.waiting()
    }

    fn awaited(&self) -> &'static str {
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
