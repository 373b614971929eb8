//! The source: keeps the guest until COMMIT, and gives it away once.

use std::time::Duration;

use port::PrecopyInfo;
use states::v2::{Capabilities, State};
use vfio_migrate_engine::devices::{self, DeviceId};
use vfio_migrate_engine::migration::source::{
    Action, DevicePending, Ending, Event, Source,
};
use vfio_migrate_engine::migration::{Cause, Finish, OnTimeout, Options, Recovery};

use super::devices::Devices;
use super::explorer::{Model, explore};

const NOW: Duration = Duration::from_secs(1);

/// A source and its surroundings.
#[derive(Clone, Debug)]
struct World {
    source: Source,
    devices: Devices,
    /// Answers that may come, the oldest first.
    pending: Vec<Pending>,
    /// Faults and unasked words that may still come.
    faults: u32,
    /// Events that come unasked.
    unasked: &'static [fn() -> Event],
    vcpus_paused: bool,
    was_paused: bool,
    /// The guest is to be kept, stopped or not.
    keeps: Option<bool>,
    tracking: bool,
    resuming: bool,
    yielded: bool,
    committed: bool,
    returned: bool,
    running: bool,
    deadlines: u32,
    rounds: u32,
    end: Option<Ending>,
    wrong: Option<String>,
    path: Vec<String>,
}

/// Something whose answer is outstanding.
#[derive(Clone, Debug, PartialEq)]
enum Pending {
    Device(devices::Action),
    /// One of these events, the good one first.
    Answer(Worker, Vec<Event>),
}

/// Who answers. Each answers in the order in which it was told.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Worker {
    Main,
    Memory,
    Vmm,
    Devices,
    Peer,
    /// The memory's and the VMM's worker, both.
    Undo,
}

impl Pending {
    /// Whether an answer to `self` has to come before one to `later`.
    fn goes_before(&self, later: &Pending) -> bool {
        match (self, later) {
            (Pending::Device(a), Pending::Device(b)) => of(a) == of(b),
            (Pending::Answer(worker, _), Pending::Device(_)) => {
                *worker == Worker::Devices
            }
            (Pending::Device(_), Pending::Answer(worker, _)) => {
                *worker == Worker::Devices
            }
            (Pending::Answer(Worker::Main, _), _) => true,
            (Pending::Answer(a, _), Pending::Answer(b, _)) => {
                let undone = matches!(a, Worker::Memory | Worker::Vmm);
                a == b || (undone && *b == Worker::Undo)
            }
        }
    }
}

impl World {
    fn new(
        capabilities: &[Capabilities],
        paused: bool,
        faults: u32,
        unasked: &'static [fn() -> Event],
    ) -> World {
        World::ending(capabilities, paused, None, faults, unasked)
    }

    /// One that ends with the guest kept, stopped or not, where `keeps` says so.
    fn ending(
        capabilities: &[Capabilities],
        paused: bool,
        keeps: Option<bool>,
        faults: u32,
        unasked: &'static [fn() -> Event],
    ) -> World {
        let finish = keeps.map_or(Finish::Yield, |stopped| Finish::Keep { stopped });
        let on_timeout = OnTimeout::Switch;
        let options = Options { on_timeout, finish, ..Options::default() };
        let home = if paused { State::Stop } else { State::Running };
        let devices = Devices::new(capabilities, home);
        let world = World {
            source: Source::new(options, devices.members()),
            devices,
            pending: Vec::new(),
            faults,
            unasked,
            vcpus_paused: paused,
            was_paused: paused,
            keeps,
            tracking: false,
            resuming: false,
            yielded: false,
            committed: false,
            returned: false,
            running: false,
            deadlines: 0,
            rounds: 0,
            end: None,
            wrong: None,
            path: Vec::new(),
        };
        world.after(Event::Begin { paused })
    }

    fn now(&self) -> Duration {
        // Pre-copy runs out of time after a few rounds.
        NOW + Duration::from_secs(60) * self.rounds
    }

    fn law(&mut self, holds: bool, law: &str) {
        if !holds && self.wrong.is_none() {
            self.wrong = Some(law.to_owned());
        }
    }

    /// What an event means for the surroundings, before the source hears it.
    fn happens(&mut self, event: &Event) {
        match event {
            Event::Yielded => self.yielded = true,
            Event::VcpusPaused => self.vcpus_paused = true,
            Event::Undone => {
                self.tracking = false;
                self.vcpus_paused &= !self.resuming;
            }
            // Once it said RUNNING or NOT_STARTED, what it says of RETURNED is a lie.
            Event::Running | Event::NotStarted(_) => {
                self.running |= self.committed && !self.returned;
            }
            Event::Returned(_) => self.returned |= self.committed && !self.running,
            Event::Pause => self.was_paused |= self.source.interruptible(),
            _ => {}
        }
    }

    fn after(mut self, event: Event) -> World {
        self.path.push(format!("{event:?}"));
        self.happens(&event);
        let (source, actions) = self.source.clone().step(self.now(), event);
        self.source = source;
        for action in actions {
            self.law(self.end.is_none(), "something is done after the end");
            self.does(action);
        }
        self
    }

    fn does(&mut self, action: Action) {
        let committed = self.committed && !self.returned;
        match action {
            Action::Devices(devices::Action::Move(id, to)) => {
                let runs = to.is_running() || matches!(to, State::PreCopy);
                self.law(!(committed && runs), "a device is started after COMMIT");
                let stops = to.is_stopped() || to.is_p2p_quiescent();
                let back = self.devices.states[id.0].is_some_and(State::is_stopped);
                self.law(
                    !stops || back || self.vcpus_paused,
                    "a device is stopped under a guest that runs",
                );
                self.devices.ask(id, to);
                self.pending.push(Pending::Device(devices::Action::Move(id, to)));
            }
            Action::Devices(action) => {
                let reset = matches!(action, devices::Action::Reset(_));
                self.law(!(committed && reset), "a device is reset after COMMIT");
                self.pending.push(Pending::Device(action));
            }
            Action::Yield => {
                self.law(self.vcpus_paused, "YIELDED while the vCPUs run");
                self.law(
                    self.devices.all_in(State::StopCopy),
                    "YIELDED while a device is not in STOP_COPY",
                );
                let fails = Event::Failed(Cause::Store("full".into()));
                self.answer(Worker::Main, vec![Event::Yielded, fails]);
            }
            Action::SayCommit => {
                self.law(self.yielded, "COMMIT before YIELDED");
                self.law(!self.committed, "COMMIT twice");
                self.committed = true;
                self.answer(
                    Worker::Peer,
                    vec![
                        Event::Running,
                        Event::Returned("no".into()),
                        Event::NotStarted("no".into()),
                        gone(),
                    ],
                );
            }
            Action::SayAbort(_) => {
                self.law(!committed, "ABORT after COMMIT");
            }
            Action::Undo { resume, .. } => {
                self.law(!(committed && resume), "the guest is resumed after COMMIT");
                self.resuming = resume;
                self.answer(Worker::Undo, vec![Event::Undone]);
            }
            Action::Untrack => self.tracking = false,
            Action::SayHello => self.answer(
                Worker::Peer,
                vec![
                    Event::Accepted { load: Duration::ZERO },
                    Event::Refused(vec!["no".into()]),
                    gone(),
                ],
            ),
            Action::OpenChannels => {
                self.answer(Worker::Main, vec![Event::ChannelsOpen, gone()]);
            }
            Action::Track => {
                self.tracking = true;
                self.answer(Worker::Memory, vec![Event::Tracking, gone()]);
            }
            Action::SendRound(number) => {
                self.rounds = number;
                self.answer(Worker::Memory, vec![Event::RoundSent(1 << 20), gone()]);
            }
            Action::EndRound(number) => self.answer(
                Worker::Peer,
                vec![Event::Applied(number), Event::Applied(number + 1)],
            ),
            Action::Iterate(_) => self.answer(
                Worker::Devices,
                vec![
                    Event::Iterated { bytes: 9, reset: vec![] },
                    Event::Iterated { bytes: 9, reset: vec![DeviceId(0)] },
                    gone(),
                ],
            ),
            Action::AskPending => {
                let left = |initial_bytes, reinit| DevicePending {
                    precopy: Some(PrecopyInfo { initial_bytes, dirty_bytes: 0, reinit }),
                    stop_copy_bytes: Some(9),
                    ..DevicePending::default()
                };
                let all = |left| Event::Pending(vec![left; self.devices.states.len()]);
                let answers = vec![all(left(0, false)), all(left(5, true)), gone()];
                self.answer(Worker::Devices, answers);
            }
            Action::Collect { last: true } => {
                let wholly = self.devices.all_in(State::StopCopy) && self.vcpus_paused;
                self.law(wholly, "the last dirty bits are taken while something runs");
                let collected = Event::Collected { dirty: 4096, gate: true };
                self.answer(Worker::Memory, vec![collected, gone()]);
            }
            Action::Collect { last: false } => self.answer(
                Worker::Memory,
                vec![
                    Event::Collected { dirty: 4096, gate: true },
                    Event::Collected { dirty: 4096, gate: false },
                    Event::Failed(Cause::Changed("memory".into())),
                ],
            ),
            Action::Pace(_) => self.answer(Worker::Peer, vec![Event::Paced]),
            Action::SaySwitchover => {
                self.answer(Worker::Peer, vec![Event::Ready, gone()]);
            }
            Action::PauseVcpus => self.answer(Worker::Vmm, vec![Event::VcpusPaused]),
            Action::SaveConfig => {
                self.answer(Worker::Vmm, vec![Event::ConfigSaved, gone()]);
            }
            Action::DrainInterrupts => {
                self.answer(Worker::Vmm, vec![Event::InterruptsDrained, gone()]);
            }
            Action::Inspect => self.answer(Worker::Vmm, vec![Event::Inspected, gone()]),
            Action::SendLast => {
                self.answer(Worker::Memory, vec![Event::MemorySent, gone()]);
            }
            Action::Drain => {
                self.answer(Worker::Devices, vec![Event::DevicesDrained, gone()]);
            }
            Action::SaveSections => {
                self.answer(Worker::Vmm, vec![Event::SectionsSaved, gone()]);
            }
            Action::EndChannels => {
                self.answer(Worker::Memory, vec![Event::ChannelsEnded, gone()]);
            }
            Action::SayEnd { paused } => {
                self.law(paused == self.was_paused, "the run state is told wrong");
                self.answer(
                    Worker::Peer,
                    vec![Event::Prepared { verify: Duration::ZERO }, gone()],
                );
            }
            Action::End(ending) => self.ends(ending),
            Action::Phase(_)
            | Action::Patience(_)
            | Action::Tell { .. }
            | Action::Note(_) => {}
        }
    }

    fn answer(&mut self, worker: Worker, answers: Vec<Event>) {
        self.pending.push(Pending::Answer(worker, answers));
    }

    fn ends(&mut self, ending: Ending) {
        let kept = !self.committed || self.returned;
        match &ending {
            Ending::Kept => {
                self.law(self.keeps.is_some(), "kept, and nobody asked for that");
                self.law(!self.yielded && !self.committed, "kept, and given away");
                let stopped = self.was_paused || self.keeps == Some(true);
                self.law(self.vcpus_paused == stopped, "kept, and not as it is to be");
                let home = if stopped { State::Stop } else { State::Running };
                self.law(self.devices.all_in(home), "kept, and a device is not back");
                let silent = self.deadlines > 0;
                self.law(silent || !self.tracking, "kept, and still tracking");
                self.law(
                    !self.devices.reset.contains(&true),
                    "a device that was reset passes for kept",
                );
            }
            Ending::Completed => {
                self.law(self.keeps.is_none(), "given away what was to be kept");
                self.law(self.committed && !self.returned, "completed without COMMIT");
                self.law(self.vcpus_paused, "completed, and the guest runs here");
            }
            Ending::Failed { recovery, devices, .. } => match recovery {
                Recovery::InDoubt | Recovery::Moved => {
                    self.law(!kept, "in doubt although the guest is here");
                    self.law(self.vcpus_paused, "in doubt, and the guest runs here");
                }
                Recovery::DeviceLost => {
                    self.law(kept, "the guest was given away");
                    let silent = self.deadlines > 0;
                    self.law(silent || !devices.is_empty(), "nothing is named");
                    self.law(
                        silent || self.vcpus_paused,
                        "the guest runs on without a device",
                    );
                }
                Recovery::Retry | Recovery::SourceResumed => {
                    self.law(kept, "resumed although the guest was given away");
                    let silent = self.deadlines > 0;
                    self.law(silent || !self.tracking, "resumed, and still tracking");
                    self.law(
                        self.vcpus_paused == self.was_paused,
                        "the guest is not as it was",
                    );
                    let home = if self.was_paused { State::Stop } else { State::Running };
                    let early = *recovery == Recovery::Retry;
                    self.law(early || self.devices.all_in(home), "a device is not back");
                    self.law(
                        !self.devices.reset.contains(&true),
                        "a device that was reset passes for sound",
                    );
                }
            },
        }
        self.end = Some(ending);
    }
}

fn gone() -> Event {
    Event::Failed(Cause::Channel("gone".into()))
}

impl Model for World {
    fn next(&self) -> Vec<World> {
        if self.end.is_some() {
            return Vec::new();
        }
        let mut all = Vec::new();
        for (n, pending) in self.pending.iter().enumerate() {
            if self.pending[..n].iter().any(|earlier| earlier.goes_before(pending)) {
                continue;
            }
            let answers: Vec<(Event, Devices)> = match pending {
                Pending::Device(action) => {
                    let answers = self.devices.answers(action).into_iter();
                    let took = Duration::from_millis(1);
                    answers
                        .map(|(event, devices)| (Event::Devices(event, took), devices))
                        .collect()
                }
                Pending::Answer(_, events) => {
                    events.iter().map(|e| (e.clone(), self.devices.clone())).collect()
                }
            };
            for (k, (event, devices)) in answers.into_iter().enumerate() {
                if k > 0 && self.faults == 0 {
                    continue;
                }
                let mut then = self.clone();
                then.faults -= u32::from(k > 0);
                then.pending.remove(n);
                then.devices = devices;
                all.push(then.after(event));
            }
        }
        if self.pending.is_empty() {
            let mut then = self.clone();
            then.deadlines += 1;
            all.push(then.after(Event::Deadline));
        }
        if self.faults > 0 {
            for unasked in self.unasked {
                let mut then = self.clone();
                then.faults -= 1;
                let event = unasked();
                then.deadlines += u32::from(event == Event::Deadline);
                all.push(then.after(event));
            }
        }
        all
    }

    fn wrong(&self) -> Option<String> {
        let wrong = self.wrong.clone().or_else(|| self.devices.wrong.clone());
        let hangs = self.deadlines > 4 || self.rounds > 12;
        wrong.or_else(|| hangs.then(|| "it does not come to an end".to_owned()))
    }

    fn path(&self) -> &[String] {
        &self.path
    }

    fn key(&self) -> String {
        let World { path: _, unasked: _, ref source, ref devices, ref pending, .. } =
            *self;
        format!(
            "{source:?}{devices:?}{pending:?}{:?}",
            (
                (
                    self.faults,
                    self.vcpus_paused,
                    self.was_paused,
                    self.tracking,
                    self.resuming
                ),
                (
                    self.yielded,
                    self.committed,
                    self.returned,
                    self.running,
                    self.deadlines
                ),
                &self.end,
                &self.wrong,
            )
        )
    }
}

fn of(action: &devices::Action) -> Option<DeviceId> {
    match action {
        devices::Action::Move(id, _)
        | devices::Action::Read(id)
        | devices::Action::Reset(id) => Some(*id),
        _ => None,
    }
}

/// What a destination may say at any time, honest or not.
const HOSTILE: &[fn() -> Event] = &[
    || Event::Accepted { load: Duration::ZERO },
    || Event::Refused(vec!["late".into()]),
    || Event::Applied(1),
    || Event::Ready,
    || Event::Prepared { verify: Duration::from_secs(9) },
    || Event::Running,
    || Event::Returned("unasked".into()),
    || Event::NotStarted("unasked".into()),
    gone,
];

/// What an operator may say at any time, and time itself.
const OPERATOR: &[fn() -> Event] = &[
    || Event::Cancel,
    || Event::Pause,
    || Event::Deadline,
    || Event::DowntimeLimit(Duration::ZERO),
    || Event::Failed(Cause::Changed("devices".into())),
];

const MOST: usize = 400_000;

#[test]
fn the_source_never_runs_after_commit_whatever_it_hears() {
    let states = explore(World::new(&[Capabilities::ALL], false, 2, HOSTILE), MOST);
    assert!(states > 1_000, "{states}");
}

#[test]
fn the_source_keeps_its_guest_whatever_its_operator_does() {
    let states = explore(World::new(&[Capabilities::ALL], false, 2, OPERATOR), MOST);
    assert!(states > 1_000, "{states}");
}

#[test]
fn a_paused_guest_stays_paused_whatever_happens() {
    let set = [Capabilities::ALL];
    explore(World::new(&set, true, 2, OPERATOR), MOST);
    explore(World::new(&set, true, 1, HOSTILE), MOST);
}

#[test]
fn two_devices_stop_and_start_in_order_whatever_one_of_them_does() {
    let set = [Capabilities::ALL, Capabilities::STOP_COPY];
    explore(World::new(&set, false, 1, OPERATOR), MOST);
}

#[test]
fn a_copy_is_made_and_the_guest_is_neither_lost_nor_given_away() {
    let set = [Capabilities::ALL];
    for (paused, stopped) in [(false, false), (false, true), (true, false), (true, true)]
    {
        for unasked in [HOSTILE, OPERATOR] {
            let world = World::ending(&set, paused, Some(stopped), 2, unasked);
            let states = explore(world, MOST);
            assert!(states > 300, "{states}");
        }
    }
    let two = [Capabilities::ALL, Capabilities::STOP_COPY];
    explore(World::ending(&two, false, Some(false), 1, OPERATOR), MOST);
}
