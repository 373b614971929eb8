//! The destination: holds what it was sent, and decides once.

use std::time::Duration;

use port::{ConfigStage, Decision, Order, Phase};

use super::error::{Cause, Recovery};
use super::source::Patience;
use crate::devices::{self, DeviceId, Member, Set};

mod ruin;
mod steps;

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
    /// Something did not start: everything stops again, and stays.
    Halting {
        device: DeviceId,
        text: String,
    },
    RecordingReturned(Box<Cause>),
    Discarding(Box<Cause>),
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
    /// The guest is here and did not start: which device, and why.
    SayNotStarted(DeviceId, String),
    /// Make sure that no vCPU runs.
    PauseVcpus,
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

    /// The devices, as last heard.
    pub fn members(&self) -> &[Member] {
        self.set.members()
    }

    /// The devices that something waits for.
    pub fn waiting(&self) -> Vec<DeviceId> {
        self.set.waiting()
    }
}
