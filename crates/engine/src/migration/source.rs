//! The source: gives the guest away, or keeps it.

use std::time::Duration;

use port::{Phase, PrecopyInfo};

use super::budget::{Budget, Estimate};
use super::error::{Cause, Recovery};
use super::options::{Finish, OnTimeout, Options};
use super::report::Ledger;
use crate::devices::{self, DeviceId, Member, Set};

mod rounds;
mod ruin;
mod steps;

/// The source of one migration.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    options: Options,
    /// Somebody wants to look at the stopped guest.
    inspects: bool,
    set: Set,
    at: At,
    /// The guest was paused by its operator before the migration (or during pre-copy).
    paused: bool,
    pause_asked: bool,
    began: Duration,
    asked: Duration,
    round: Round,
    restarts: Vec<u32>,
    initial_done: Vec<bool>,
    ledger: Ledger,
    budget: Budget,
    estimate: Option<Estimate>,
    undo: Undo,
    /// How it ends once everything is tidied up.
    verdict: Ending,
}

/// Where the source is.
#[derive(Clone, Debug, PartialEq)]
enum At {
    New,
    Negotiating,
    Opening,
    Tracking,
    Setup,
    /// A round is under way.
    Round,
    /// A round is over; the counts of what is left come in.
    Counting {
        last_look: bool,
        pending: Option<Vec<DevicePending>>,
        dirty: Option<u64>,
        gate: bool,
    },
    /// Devices that the guest reset go to PRE_COPY again.
    Restarting,
    Pacing,
    Switching,
    PausingVcpus,
    SavingConfig,
    Stopping,
    LastDirty,
    Draining,
    Inspecting,
    Moving {
        memory: bool,
        devices: bool,
    },
    SavingSections,
    EndingChannels,
    Preparing,
    Rereading,
    Yielding,
    Committed,
    Tidying,
    RollingBack(Box<Ruin>),
    Ended,
}

#[derive(Clone, Debug, PartialEq)]
struct Ruin {
    /// `None` where nothing went wrong: the source keeps its guest.
    cause: Option<Cause>,
    devices: Vec<DeviceId>,
    /// The operator's pause comes first; the devices go back after it.
    pausing: bool,
}

/// One round of pre-copy.
#[derive(Clone, Debug, Default, PartialEq)]
struct Round {
    number: u32,
    started: Duration,
    applied: bool,
    sent: Option<u64>,
    devices: Option<u64>,
    /// When its end was sent.
    ended: Option<Duration>,
    reset: Vec<DeviceId>,
}

/// What has to be undone if the source keeps the guest.
#[derive(Clone, Debug, Default, PartialEq)]
struct Undo {
    talked: bool,
    tracking: bool,
    devices: bool,
    vcpus: bool,
    interrupts: bool,
}

/// What one device has left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DevicePending {
    /// Pre-copy, where the device is in pre-copy and tells.
    pub precopy: Option<PrecopyInfo>,
    /// Whether a read of this session ended for now at least once.
    pub ended: bool,
    /// Whether the session is gone: the guest reset the device, and its pre-copy starts
    /// over with the next round.
    pub reset: bool,
    /// What stop-copy would move, where the device tells.
    pub stop_copy_bytes: Option<u64>,
}

/// What happened to the source.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Start. `paused` tells whether the guest is.
    Begin {
        /// Whether the guest is paused.
        paused: bool,
    },
    /// The destination accepted. `load` is what its slowest device took to change its
    /// state.
    Accepted {
        /// The slowest transition over there.
        load: Duration,
    },
    /// The destination refused.
    Refused(Vec<String>),
    /// All data connections are open.
    ChannelsOpen,
    /// Dirty tracking is on.
    Tracking,
    /// Something of the devices.
    Devices(devices::Event, Duration),
    /// All memory of the round was sent: that many bytes.
    RoundSent(u64),
    /// How fast the link may send now, in bytes a second; heard before every count of
    /// what is left.
    Limited(Option<u64>),
    /// Every device gave what it had for this round: bytes, and those whose session
    /// died because the guest reset them.
    Iterated {
        /// Bytes of device data.
        bytes: u64,
        /// Devices that were reset.
        reset: Vec<DeviceId>,
    },
    /// The destination applied a round.
    Applied(u32),
    /// What the devices have left.
    Pending(Vec<DevicePending>),
    /// The dirty bits were collected: what is dirty now, and whether the VMM lets its
    /// guest be stopped.
    Collected {
        /// Bytes of dirty memory.
        dirty: u64,
        /// Whether the gate is open.
        gate: bool,
    },
    /// The pace allows the next round.
    Paced,
    /// The destination is ready for the stop.
    Ready,
    /// The vCPUs stopped.
    VcpusPaused,
    /// The config spaces were saved and sent.
    ConfigSaved,
    /// The interrupts were drained and sent.
    InterruptsDrained,
    /// The stopped guest was looked at.
    Inspected,
    /// The last memory was sent.
    MemorySent,
    /// The last device data was sent.
    DevicesDrained,
    /// The sections were saved and sent.
    SectionsSaved,
    /// Every data connection was ended with its count and digest.
    ChannelsEnded,
    /// The destination is prepared; it spent `verify` on looking.
    Prepared {
        /// Time that it spent on looking at the loaded guest.
        verify: Duration,
    },
    /// YIELDED is durable.
    Yielded,
    /// The guest runs over there.
    Running,
    /// The destination decided RETURNED.
    Returned(String),
    /// The destination has the guest and could not start it.
    NotStarted(String),
    /// Something failed.
    Failed(Cause),
    /// The operator cancels.
    Cancel,
    /// The operator pauses the guest: it takes effect with the stop.
    Pause,
    /// The operator takes a pause back that has not taken effect.
    Resume,
    /// What was waited for did not come in time.
    Deadline,
    /// Pre-copy has had all the time that it may take.
    OutOfTime,
    /// The guest and its tracking are as before, or as far as they could be.
    Undone,
    /// The operator chose another downtime limit.
    DowntimeLimit(Duration),
}

/// What the source does.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// The source is in a phase now (for spans and observers).
    Phase(Phase),
    /// Say who we are and what we bring.
    SayHello,
    /// Open the data connections.
    OpenChannels,
    /// Record writes to memory; everything is dirty once.
    Track,
    /// Something for the devices.
    Devices(devices::Action),
    /// Send what is dirty now.
    SendRound(u32),
    /// Everything of a round was sent, memory and devices: end it on every data
    /// connection.
    EndRound(u32),
    /// Let every device in PRE_COPY give what it has.
    Iterate(u32),
    /// Ask every device what it has left.
    AskPending,
    /// Collect dirty bits; `last` after the devices stopped.
    Collect {
        /// Whether nothing can write any more.
        last: bool,
    },
    /// Come back after that long.
    Pace(Duration),
    /// A round is over: tell those who watch.
    Tell {
        /// Its number.
        round: u32,
        /// Bytes of memory it moved.
        memory: u64,
        /// Bytes of device data it moved.
        devices: u64,
        /// What is dirty now, in bytes.
        remaining: u64,
        /// The estimate now.
        estimate: Estimate,
    },
    /// Something the operator should read.
    Note(String),
    /// Ask whether the destination is ready.
    SaySwitchover,
    /// Stop the vCPUs.
    PauseVcpus,
    /// Save the config spaces and send them.
    SaveConfig,
    /// Drain the interrupts and send them.
    DrainInterrupts,
    /// Look at the stopped guest.
    Inspect,
    /// Send the last memory.
    SendLast,
    /// Let every device give the rest of its data.
    Drain,
    /// Save the sections and send them.
    SaveSections,
    /// End the data connections with counts and digests.
    EndChannels,
    /// Say that everything was sent, and whether the guest is paused.
    SayEnd {
        /// Whether the guest arrives paused.
        paused: bool,
    },
    /// Record YIELDED.
    Yield,
    /// Give the guest away. The first byte of this is the point of no return.
    SayCommit,
    /// Tell the destination to give up.
    SayAbort(Cause),
    /// The destination has had its say: bits that were drained but not acknowledged go
    /// back, tracking stops, drained interrupts go back, and the vCPUs run if `resume`.
    Undo {
        /// Whether interrupts were drained.
        interrupts: bool,
        /// Whether tracking was on.
        tracking: bool,
        /// Whether the vCPUs are to run again.
        resume: bool,
    },
    /// The guest is the destination's: stop tracking.
    Untrack,
    /// Wait no longer than this for the next event that moves things.
    Patience(Patience),
    /// The migration is over.
    End(Ending),
}

/// What a wait is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// The answer has to come within this.
    Answer(Duration),
    /// Bulk data goes on as long as it likes, as long as some of it moves within this.
    Progress(Duration),
}

/// How the source ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest is the destination's.
    Completed,
    /// The other side has a copy, and the guest is here as it was, or stopped as asked.
    Kept,
    /// It did not complete.
    Failed {
        /// Why.
        cause: Cause,
        /// What the caller has.
        recovery: Recovery,
        /// Devices that were lost or reset.
        devices: Vec<DeviceId>,
    },
}

impl Source {
    /// A source with these devices.
    pub fn new(options: Options, members: Vec<Member>) -> Source {
        let count = members.len();
        Source {
            options,
            inspects: true,
            set: Set::new(members),
            at: At::New,
            paused: false,
            pause_asked: false,
            began: Duration::ZERO,
            asked: Duration::ZERO,
            round: Round::default(),
            restarts: vec![0; count],
            initial_done: vec![false; count],
            ledger: Ledger::default(),
            budget: Budget::default(),
            estimate: None,
            undo: Undo::default(),
            verdict: Ending::Completed,
        }
    }

    /// The same where nobody wants to look at the stopped guest.
    #[must_use]
    pub fn without_inspection(mut self) -> Source {
        self.inspects = false;
        self
    }

    /// The billing of the downtime.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The estimate taken before the stop, or the latest one.
    pub fn estimate(&self) -> Option<&Estimate> {
        self.estimate.as_ref()
    }

    /// Rounds of pre-copy so far.
    pub fn rounds(&self) -> u32 {
        self.round.number
    }

    /// Whether the operator asked for a pause that did not take effect, because the
    /// migration ended before its stop.
    pub fn pause_pending(&self) -> bool {
        self.pause_asked && !self.paused
    }

    /// Whether the guest arrives (or stays) paused.
    pub fn paused(&self) -> bool {
        self.paused
    }

    /// Whether the guest may still be paused, resumed and cancelled by its operator.
    pub fn interruptible(&self) -> bool {
        matches!(
            self.at,
            At::New
                | At::Negotiating
                | At::Opening
                | At::Tracking
                | At::Setup
                | At::Round
                | At::Counting { .. }
                | At::Restarting
                | At::Pacing
                | At::Switching
        )
    }

    /// Whether the guest stays here whatever happens.
    fn keeps(&self) -> bool {
        matches!(self.options.finish, Finish::Keep { .. })
    }

    /// When pre-copy has had all the time that it may take, where that ends it.
    pub fn out_of_time(&self) -> Option<Duration> {
        let pre_copying = matches!(
            self.at,
            At::Round | At::Counting { .. } | At::Restarting | At::Pacing
        );
        let fails = self.options.on_timeout == OnTimeout::Fail;
        (pre_copying && fails).then(|| self.began.saturating_add(self.options.max_time))
    }

    /// Whether the right to run was given away, or may have been.
    pub fn yielded(&self) -> bool {
        matches!(self.at, At::Committed | At::Tidying)
    }

    /// Takes one event.
    pub fn step(mut self, now: Duration, event: Event) -> (Source, Vec<Action>) {
        let mut out = Vec::new();
        self.take(now, event, &mut out);
        (self, out)
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
