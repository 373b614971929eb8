//! The set of devices as a pure state machine.

use states::v2::{Capabilities, State};
use thiserror::Error;

/// A device's place in the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub usize);

/// Where the whole set should go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Devices with PRE_COPY begin to save while they run; others stay as they are.
    PreCopy,
    /// Everything stops, each device in STOP_COPY.
    StopCopy,
    /// Everything stops, each device in STOP: a pause, the end of a save or of a load.
    Stop,
    /// Everything opens its resume session.
    Resuming,
    /// Everything runs.
    Running,
}

/// What moves together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wave {
    /// The peer-to-peer barrier: nobody starts new peer accesses after it.
    P2p,
    /// The move itself.
    Move,
}

/// One device of the set, as far as the set knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its optional states.
    pub capabilities: Capabilities,
    /// The last state that the device itself confirmed; `None` where that is unknown
    /// (a failed transition, an answer that is no state).
    pub state: Option<State>,
    /// It stopped answering, and is driven no more except by a reset.
    pub lost: bool,
}

impl Member {
    /// A device that was just asked for its state.
    pub fn new(capabilities: Capabilities, state: State) -> Member {
        Member { capabilities, state: Some(state), lost: false }
    }
}

/// The set and what it is busy with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    members: Vec<Member>,
    job: Job,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Job {
    Idle,
    /// Walking the waves to a goal. `recovering` carries what a recovery had to reset.
    Walking {
        goal: Goal,
        waves: Vec<Planned>,
        waiting: Vec<DeviceId>,
        failures: Vec<Failure>,
        recovering: Option<Vec<DeviceId>>,
    },
    /// Reading every state again, to know where a recovery starts.
    Reading {
        waiting: Vec<DeviceId>,
        then: AfterReading,
    },
    /// Resetting what cannot come back otherwise.
    Resetting {
        goal: Goal,
        waiting: Vec<DeviceId>,
        reset: Vec<DeviceId>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum AfterReading {
    Report,
    Recover(Goal),
    Fail { goal: Goal, failures: Vec<Failure>, recovering: Option<Vec<DeviceId>> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Planned {
    kind: Wave,
    moves: Vec<(DeviceId, State)>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants the set at a goal. Only while it is idle.
    Go(Goal),
    /// Something failed: bring every device to a goal from wherever it is, by reset where
    /// no legal arc leads there. [`Goal::Running`], or [`Goal::Stop`] for a paused guest.
    Recover(Goal),
    /// Ask every device for its state.
    Reread,
    /// A device arrived where it was sent.
    Moved(DeviceId, State),
    /// A device refused or failed on the way; the reason for the report.
    Refused(DeviceId, String),
    /// A device stopped answering.
    Lost(DeviceId, String),
    /// A device told its state; `None` where its answer is no state or it failed.
    State(DeviceId, Option<State>),
    /// A reset ended, well or not.
    Reset(DeviceId, bool),
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A wave begins; its moves follow, and may be made at the same time.
    Wave(Wave),
    /// Move a device; answer with `Moved`, `Refused` or `Lost`.
    Move(DeviceId, State),
    /// Ask a device for its state; answer with `State` or `Lost`.
    Read(DeviceId),
    /// Reset a device; answer with `Reset`.
    Reset(DeviceId),
    /// The whole set is at the goal.
    Reached(Goal),
    /// The goal is out of reach. Nothing moves any more; the states of those that
    /// failed were read again.
    Failed(Goal, Vec<Failure>),
    /// Every device that can be is where it should be. `reset` lost what they held;
    /// `lost` did not come back at all.
    Recovered {
        /// Devices that were reset: usable, with the guest's contents gone.
        reset: Vec<DeviceId>,
        /// Devices that no longer answer or would not come back.
        lost: Vec<DeviceId>,
    },
    /// The states as they are now, one for each member.
    States(Vec<Option<State>>),
}

/// One device that did not do its part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which.
    pub device: DeviceId,
    /// Why, as the device or its transport said it.
    pub reason: String,
    /// Where it was when it was asked again.
    pub state: Option<State>,
}

/// A set that cannot be stopped in order.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{count} devices without the P2P state, and devices may map each other's memory: \
     at most one such device can be stopped in order. Use devices with capability 2 \
     (P2P), or declare that no device maps another's BAR"
)]
pub struct P2pRefusal {
    /// How many devices lack the P2P state.
    pub count: usize,
}

/// Whether the set can be stopped without a peer access to a stopped device (law 5).
///
/// # Errors
/// When two or more devices lack the P2P state and the VMM did not declare that none
/// maps another's BAR (`peer_to_peer` is `false` then).
pub fn check_p2p(
    capabilities: impl IntoIterator<Item = Capabilities>,
    peer_to_peer: bool,
) -> Result<(), P2pRefusal> {
    let count = capabilities.into_iter().filter(|set| !set.p2p()).count();
    if peer_to_peer && count > 1 { Err(P2pRefusal { count }) } else { Ok(()) }
}

impl Set {
    /// A set that is idle.
    pub fn new(members: Vec<Member>) -> Set {
        Set { members, job: Job::Idle }
    }

    /// The devices, as last heard.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The devices whose answer something waits for.
    pub fn waiting(&self) -> Vec<DeviceId> {
        match &self.job {
            Job::Idle => Vec::new(),
            Job::Walking { waiting, .. }
            | Job::Reading { waiting, .. }
            | Job::Resetting { waiting, .. } => waiting.clone(),
        }
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.job == Job::Idle
    }
}

/// Takes one event.
pub fn step(mut set: Set, event: Event) -> (Set, Vec<Action>) {
    let mut actions = Vec::new();
    set.take(event, &mut actions);
    (set, actions)
}

impl Set {
    fn take(&mut self, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Go(goal) => {
                let missing = self.missing(goal);
                if !missing.is_empty() {
                    self.job = Job::Idle;
                    return out.push(Action::Failed(goal, missing));
                }
                let waves = self.waves(goal);
                self.job = Job::Walking {
                    goal,
                    waves,
                    waiting: Vec::new(),
                    failures: Vec::new(),
                    recovering: None,
                };
                self.advance(out);
            }
            Event::Recover(goal) => self.read_all(AfterReading::Recover(goal), out),
            Event::Reread => self.read_all(AfterReading::Report, out),
            Event::Moved(id, state) => {
                self.members[id.0].state = Some(state);
                self.arrived(id, out);
            }
            Event::Refused(id, reason) => {
                self.members[id.0].state = None;
                self.failed(id, reason, out);
            }
            Event::Lost(id, reason) => {
                self.members[id.0].state = None;
                self.members[id.0].lost = true;
                match self.job {
                    Job::Walking { .. } => self.failed(id, reason, out),
                    Job::Reading { .. } => self.read(id, out),
                    Job::Resetting { .. } => self.reset_done(id, out),
                    Job::Idle => {}
                }
            }
            Event::State(id, state) => {
                self.members[id.0].state = state;
                self.read(id, out);
            }
            // A reset that comes back after it was given up: the device lost what it
            // held, and stays lost. Taken for a state like any other, it would pass for
            // one that is as it was.
            Event::Reset(id, _) if !self.resetting(id) => {}
            Event::Reset(id, done) => {
                let member = &mut self.members[id.0];
                member.lost = !done;
                member.state = done.then_some(State::Running);
                self.reset_done(id, out);
            }
        }
    }

    /// The devices that no wave can take along: then nobody moves.
    fn missing(&self, goal: Goal) -> Vec<Failure> {
        let away = |m: &Member| m.lost || m.state.is_none();
        let failure = |device: DeviceId| {
            let reason = format!("device {} does not answer", device.0);
            Failure { device, reason, state: None }
        };
        let ids = behind(&self.members, goal).into_iter();
        ids.filter(|id| away(&self.members[id.0])).map(failure).collect()
    }

    /// Starts the next wave when the one under way is over.
    fn advance(&mut self, out: &mut Vec<Action>) {
        let Job::Walking { goal, waves, waiting, failures, recovering } = &mut self.job
        else {
            return;
        };
        if !waiting.is_empty() {
            return;
        }
        if !failures.is_empty() {
            let then = AfterReading::Fail {
                goal: *goal,
                failures: std::mem::take(failures),
                recovering: recovering.take(),
            };
            self.read_all(then, out);
            return;
        }
        if waves.is_empty() {
            let end = match recovering.take() {
                None => Action::Reached(*goal),
                Some(reset) => {
                    Action::Recovered { reset, lost: behind(&self.members, *goal) }
                }
            };
            self.job = Job::Idle;
            out.push(end);
            return;
        }
        let wave = waves.remove(0);
        *waiting = wave.moves.iter().map(|(id, _)| *id).collect();
        out.push(Action::Wave(wave.kind));
        out.extend(wave.moves.into_iter().map(|(id, to)| Action::Move(id, to)));
    }

    /// A word that nobody waits for (one that a failure overtook) changes nothing.
    fn arrived(&mut self, device: DeviceId, out: &mut Vec<Action>) {
        if let Job::Walking { waiting, .. } = &mut self.job
            && take(waiting, device)
        {
            self.advance(out);
        }
    }

    fn failed(&mut self, device: DeviceId, reason: String, out: &mut Vec<Action>) {
        if let Job::Walking { failures, waiting, .. } = &mut self.job
            && waiting.contains(&device)
        {
            failures.push(Failure { device, reason, state: None });
        }
        self.arrived(device, out);
    }

    fn read_all(&mut self, then: AfterReading, out: &mut Vec<Action>) {
        let waiting: Vec<DeviceId> = (0..self.members.len())
            .filter(|&n| !self.members[n].lost)
            .map(DeviceId)
            .collect();
        out.extend(waiting.iter().map(|&id| Action::Read(id)));
        self.job = Job::Reading { waiting, then };
        self.all_read(out);
    }

    fn read(&mut self, device: DeviceId, out: &mut Vec<Action>) {
        if let Job::Reading { waiting, .. } = &mut self.job
            && take(waiting, device)
        {
            self.all_read(out);
        }
    }

    fn all_read(&mut self, out: &mut Vec<Action>) {
        let Job::Reading { waiting, then } = &mut self.job else { return };
        if !waiting.is_empty() {
            return;
        }
        match std::mem::replace(then, AfterReading::Report) {
            AfterReading::Report => {
                self.job = Job::Idle;
                out.push(Action::States(self.members.iter().map(|m| m.state).collect()));
            }
            AfterReading::Fail { goal, failures, recovering: None } => {
                let failures = failures
                    .into_iter()
                    .map(|f| Failure { state: self.members[f.device.0].state, ..f })
                    .collect();
                self.job = Job::Idle;
                out.push(Action::Failed(goal, failures));
            }
            AfterReading::Fail { goal, failures, recovering: Some(reset) } => {
                // What would not walk back by legal arcs is reset, once: a device that
                // was reset already and fails again is lost.
                // One that failed and is there all the same has nothing to mend.
                let (again, first): (Vec<_>, Vec<_>) = failures
                    .into_iter()
                    .map(|f| f.device)
                    .filter(|id| !self.arrived_anyway(*id, goal))
                    .partition(|id| reset.contains(id));
                for id in again {
                    self.members[id.0].lost = true;
                }
                self.reset(goal, first, reset, out);
            }
            AfterReading::Recover(goal) => {
                let broken = (0..self.members.len())
                    .filter(|&n| {
                        let m = &self.members[n];
                        m.lost || matches!(m.state, None | Some(State::Error))
                    })
                    .map(DeviceId)
                    .collect();
                self.reset(goal, broken, Vec::new(), out);
            }
        }
    }

    fn arrived_anyway(&self, device: DeviceId, goal: Goal) -> bool {
        let member = &self.members[device.0];
        !member.lost && member.state == target(goal, member.capabilities)
    }

    fn reset(
        &mut self,
        goal: Goal,
        ids: Vec<DeviceId>,
        already: Vec<DeviceId>,
        out: &mut Vec<Action>,
    ) {
        out.extend(ids.iter().map(|&id| Action::Reset(id)));
        let reset = already.into_iter().chain(ids.iter().copied()).collect();
        self.job = Job::Resetting { goal, waiting: ids, reset };
        self.all_reset(out);
    }

    fn resetting(&self, device: DeviceId) -> bool {
        matches!(&self.job, Job::Resetting { waiting, .. } if waiting.contains(&device))
    }

    fn reset_done(&mut self, device: DeviceId, out: &mut Vec<Action>) {
        if let Job::Resetting { waiting, .. } = &mut self.job
            && take(waiting, device)
        {
            self.all_reset(out);
        }
    }

    fn all_reset(&mut self, out: &mut Vec<Action>) {
        let Job::Resetting { goal, waiting, reset } = &mut self.job else { return };
        if !waiting.is_empty() {
            return;
        }
        let goal = *goal;
        let mut reset = std::mem::take(reset);
        reset.retain(|id| !self.members[id.0].lost);
        self.job = Job::Walking {
            goal,
            waves: self.waves(goal),
            waiting: Vec::new(),
            failures: Vec::new(),
            recovering: Some(reset),
        };
        self.advance(out);
    }

    /// The waves from where each device is to the goal.
    fn waves(&self, goal: Goal) -> Vec<Planned> {
        let mut barrier = Vec::new();
        let mut without = Vec::new();
        let mut rest = Vec::new();
        for (n, member) in self.members.iter().enumerate() {
            let id = DeviceId(n);
            let (false, Some(from)) = (member.lost, member.state) else { continue };
            let Some(target) = target(goal, member.capabilities) else { continue };
            if from == target {
                continue;
            }
            if let Some(p2p) = p2p_state(goal, from, member.capabilities) {
                barrier.push((id, p2p));
            }
            // Only a change between running and stopped needs the order.
            if goal != Goal::PreCopy && member.capabilities.p2p() {
                rest.push((id, target));
            } else {
                without.push((id, target));
            }
        }
        [(Wave::P2p, barrier), (Wave::Move, without), (Wave::Move, rest)]
            .into_iter()
            .filter(|(_, moves)| !moves.is_empty())
            .map(|(kind, moves)| Planned { kind, moves })
            .collect()
    }
}

/// Where a goal puts one device; `None` leaves it where it is.
fn target(goal: Goal, capabilities: Capabilities) -> Option<State> {
    match goal {
        Goal::PreCopy => capabilities.pre_copy().then_some(State::PreCopy),
        Goal::StopCopy => Some(State::StopCopy),
        Goal::Stop => Some(State::Stop),
        Goal::Resuming => Some(State::Resuming),
        Goal::Running => Some(State::Running),
    }
}

/// The P2P state that the barrier of a goal sends a device to, if it has to go there.
fn p2p_state(goal: Goal, from: State, capabilities: Capabilities) -> Option<State> {
    if !capabilities.p2p() {
        return None;
    }
    match (goal, from) {
        (Goal::StopCopy, State::PreCopy) => Some(State::PreCopyP2p),
        (
            Goal::StopCopy | Goal::Stop | Goal::Resuming,
            State::Running | State::PreCopy,
        )
        | (Goal::Running, State::Stop | State::StopCopy | State::Resuming) => {
            Some(State::RunningP2p)
        }
        _ => None,
    }
}

/// The devices that are not where a goal has them.
fn behind(members: &[Member], goal: Goal) -> Vec<DeviceId> {
    let gone = |m: &Member| {
        let target = target(goal, m.capabilities);
        m.lost || target.is_some_and(|target| m.state != Some(target))
    };
    let ids = members.iter().enumerate().filter(|(_, m)| gone(m));
    ids.map(|(n, _)| DeviceId(n)).collect()
}

/// Removes a device from a list; whether it was there.
fn take(waiting: &mut Vec<DeviceId>, device: DeviceId) -> bool {
    let before = waiting.len();
    waiting.retain(|id| *id != device);
    waiting.len() < before
}
