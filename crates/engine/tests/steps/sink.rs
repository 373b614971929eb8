//! The sink: runs nothing without COMMIT and RAN, throws nothing away without RETURNED.

use std::time::Duration;

use port::Decision;
use states::v2::{Capabilities, State};
use vfio_migrate_engine::devices;
use vfio_migrate_engine::migration::Cause;
use vfio_migrate_engine::migration::sink::{Action, Ending, Event, Sink};

use super::devices::Devices;
use super::explorer::{Model, explore};

/// A sink and its surroundings.
#[derive(Clone, Debug)]
struct World {
    sink: Sink,
    devices: Devices,
    pending: Vec<Pending>,
    /// What an honest source says next.
    says: Vec<Event>,
    faults: u32,
    unasked: &'static [fn() -> Event],
    /// What stands in the store.
    stands: Option<Decision>,
    /// Whether the last record's outcome is unknown.
    unknown: bool,
    prepared: bool,
    committed: bool,
    vcpus_run: bool,
    holding: bool,
    deadlines: u32,
    discarded: bool,
    end: Option<Ending>,
    wrong: Option<String>,
    path: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
enum Pending {
    Device(devices::Action),
    Record(Decision),
    Answer(Vec<Event>),
}

impl World {
    fn new(
        set: &[Capabilities],
        faults: u32,
        unasked: &'static [fn() -> Event],
    ) -> World {
        World {
            sink: Sink::new(Duration::from_secs(30)),
            devices: Devices::new(set, State::Running),
            pending: Vec::new(),
            says: vec![Event::Hello],
            faults,
            unasked,
            stands: None,
            unknown: false,
            prepared: false,
            committed: false,
            vcpus_run: false,
            holding: false,
            deadlines: 0,
            discarded: false,
            end: None,
            wrong: None,
            path: Vec::new(),
        }
    }

    fn law(&mut self, holds: bool, law: &str) {
        if !holds && self.wrong.is_none() {
            self.wrong = Some(law.to_owned());
        }
    }

    fn after(mut self, event: Event) -> World {
        self.path.push(format!("{event:?}"));
        self.committed |= event == Event::Commit;
        self.vcpus_run |= event == Event::VcpusRun;
        let (sink, actions) = self.sink.clone().step(Duration::ZERO, event);
        self.sink = sink;
        for action in actions {
            self.law(self.end.is_none(), "something is done after the end");
            self.does(action);
        }
        self
    }

    fn ran(&self) -> bool {
        self.stands == Some(Decision::Ran) && !self.unknown
    }

    fn does(&mut self, action: Action) {
        match action {
            Action::Devices(action) => {
                if let devices::Action::Move(id, to) = action {
                    // On its way to RESUMING a device that has no guest yet is quieted.
                    let from = self.devices.states[id.0];
                    let runs = to.is_running() && from.is_some_and(State::is_stopped);
                    self.law(!runs || self.ran(), "a device is started without RAN");
                    self.law(
                        !runs || self.committed,
                        "a device is started without COMMIT",
                    );
                    self.devices.ask(id, to);
                }
                self.pending.push(Pending::Device(action));
            }
            Action::ResumeVcpus => {
                self.law(self.ran() && self.committed, "the guest runs without RAN");
                self.law(
                    self.devices.all_in(State::Running),
                    "the guest runs before its devices",
                );
                self.answer(vec![Event::VcpusRun, failed()]);
            }
            Action::SayRunning => {
                self.law(self.ran(), "RUNNING is said without RAN");
            }
            Action::SayReturned(_) => {
                let returned = self.stands == Some(Decision::Returned) && !self.unknown;
                self.law(returned, "RETURNED is said and not recorded");
                self.law(!self.vcpus_run, "RETURNED is said, and the guest runs");
            }
            Action::SayNotStarted(..) => {
                self.law(self.ran(), "NOT_STARTED is said without RAN");
            }
            Action::SayPrepared(_) => {
                self.law(self.stands == Some(Decision::Prepared), "PREPARED unrecorded");
                self.law(
                    self.devices.all_in(State::Stop),
                    "PREPARED is said while a device is not in STOP",
                );
                self.prepared = true;
                self.says.push(Event::Commit);
            }
            Action::Record(decision) => self.pending.push(Pending::Record(decision)),
            Action::Discard => {
                self.law(!self.unknown, "thrown away while nobody knows who has it");
                self.law(
                    !self.prepared || self.stands == Some(Decision::Returned),
                    "thrown away after PREPARED without RETURNED",
                );
                self.discarded = true;
                self.answer(vec![Event::Discarded]);
            }
            Action::Consider => {
                let here = Event::Considered(self.devices.members());
                self.answer(vec![here, Event::Unfit(vec!["no".into()])]);
            }
            Action::AcceptChannels => self.answer(vec![Event::ChannelsOpen, failed()]),
            Action::Receive => self.says.push(Event::RoundEnded(1)),
            Action::SayApplied(_) => self.says.push(Event::Switchover),
            Action::SayReady => self.says.push(Event::AllReceived { paused: false }),
            Action::LoadSections(_) => self.answer(vec![Event::SectionsLoaded, failed()]),
            Action::LoadConfig(_) => self.answer(vec![Event::ConfigLoaded, failed()]),
            Action::Bind => self.answer(vec![Event::Bound, failed()]),
            Action::Deliver => self.answer(vec![Event::Delivered, failed()]),
            Action::Inspect => self.answer(vec![Event::Inspected, failed()]),
            Action::Hold(_) => self.holding = true,
            Action::End(ending) => {
                let whole = match ending {
                    Ending::Running { .. } => self.ran(),
                    Ending::NotStarted(_) => self.ran(),
                    Ending::Refused(_) => self.stands.is_none(),
                    Ending::Discarded(_) => !self.vcpus_run && !self.ran(),
                    Ending::InDoubt(_) => self.unknown && !self.vcpus_run,
                };
                self.law(whole, "it ends as it should not");
                self.end = Some(ending);
            }
            Action::PauseVcpus => self.vcpus_run = false,
            Action::Phase(_)
            | Action::Patience(_)
            | Action::SayRefuse(_)
            | Action::SayAccept
            | Action::SayFailed(_) => {}
        }
    }

    fn answer(&mut self, answers: Vec<Event>) {
        self.pending.push(Pending::Answer(answers));
    }

    /// The answers of the store: the first writer of a decision wins.
    fn recorded(&self, decision: Decision) -> Vec<(Event, World)> {
        let stands = match self.stands {
            Some(stands @ (Decision::Ran | Decision::Returned)) => stands,
            _ => decision,
        };
        let other = match decision {
            Decision::Ran => Decision::Returned,
            _ => Decision::Ran,
        };
        let with = |stands, unknown| World { stands, unknown, ..self.clone() };
        let error = Event::Unrecorded("no answer".into());
        let decides = decision != Decision::Prepared;
        let mut answers = vec![
            (Event::Recorded(stands), with(Some(stands), false)),
            (error.clone(), with(self.stands, decides)),
            (error, with(Some(stands), decides)),
        ];
        if decides {
            // Somebody else (an operator, a query) was there first.
            let mut then = with(Some(other), false);
            then.committed |= other == Decision::Ran;
            answers.push((Event::Recorded(other), then));
        }
        answers
    }
}

fn failed() -> Event {
    Event::Failed(Cause::Vmm("failed".into()))
}

impl Model for World {
    fn next(&self) -> Vec<World> {
        if self.end.is_some() {
            return Vec::new();
        }
        let mut all = Vec::new();
        for (n, pending) in self.pending.iter().enumerate() {
            let answers: Vec<(Event, World)> = match pending {
                Pending::Device(action) => {
                    let earlier = |one: &Pending| match (one, action) {
                        (
                            Pending::Device(
                                devices::Action::Move(a, _) | devices::Action::Read(a),
                            ),
                            devices::Action::Move(b, _) | devices::Action::Read(b),
                        ) => a == b,
                        _ => false,
                    };
                    if self.pending[..n].iter().any(earlier) {
                        continue;
                    }
                    let answers = self.devices.answers(action).into_iter();
                    let with = |(event, devices)| {
                        (Event::Devices(event), World { devices, ..self.clone() })
                    };
                    answers.map(with).collect()
                }
                Pending::Record(decision) => self.recorded(*decision),
                // The VMM's worker answers in order.
                Pending::Answer(_)
                    if self.pending[..n]
                        .iter()
                        .any(|p| matches!(p, Pending::Answer(_))) =>
                {
                    continue;
                }
                Pending::Answer(events) => {
                    events.iter().map(|event| (event.clone(), self.clone())).collect()
                }
            };
            for (k, (event, mut then)) in answers.into_iter().enumerate() {
                if k > 0 && self.faults == 0 {
                    continue;
                }
                then.faults -= u32::from(k > 0);
                then.pending.remove(n);
                all.push(then.after(event));
            }
            // The store is asked on the main thread: nothing comes between.
            if matches!(pending, Pending::Record(_)) {
                return all;
            }
        }
        if let Some(event) = self.says.first() {
            let mut then = self.clone();
            then.says.remove(0);
            all.push(then.after(event.clone()));
        } else if self.pending.is_empty() {
            // Nobody says anything any more. A held guest waits for its operator.
            let mut then = self.clone();
            then.deadlines += 1;
            let event = if self.holding { Event::Discard } else { Event::Deadline };
            all.push(then.after(event));
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
        wrong.or_else(|| (self.deadlines > 5).then(|| "it does not end".to_owned()))
    }

    fn path(&self) -> &[String] {
        &self.path
    }

    fn key(&self) -> String {
        let World { sink, devices, pending, says, .. } = self;
        format!(
            "{sink:?}{devices:?}{pending:?}{says:?}{:?}",
            (
                (self.faults, self.stands, self.unknown, self.prepared, self.committed),
                (self.vcpus_run, self.holding, self.deadlines, self.discarded),
                &self.end,
                &self.wrong,
            )
        )
    }
}

/// What a source may say or do at any time, honest or not, and time itself.
const HOSTILE: &[fn() -> Event] = &[
    || Event::Hello,
    || Event::Switchover,
    || Event::RoundEnded(7),
    || Event::AllReceived { paused: true },
    || Event::Commit,
    || Event::Abort("no".into()),
    || Event::SourceGone(Cause::Channel("gone".into())),
    || Event::Failed(Cause::Protocol("nonsense".into())),
    || Event::Discard,
    || Event::Deadline,
];

const MOST: usize = 400_000;

#[test]
fn the_destination_runs_nothing_without_commit_and_a_durable_ran() {
    let states = explore(World::new(&[Capabilities::ALL], 2, HOSTILE), MOST);
    assert!(states > 1_000, "{states}");
}

#[test]
fn two_devices_are_loaded_and_started_in_order_or_thrown_away_whole() {
    let set = [Capabilities::ALL, Capabilities::STOP_COPY];
    let states = explore(World::new(&set, 2, HOSTILE), MOST);
    assert!(states > 1_000, "{states}");
}

#[test]
fn a_prepared_destination_throws_nothing_away_by_itself() {
    let mut world = World::new(&[Capabilities::ALL], 0, HOSTILE);
    while !world.prepared {
        world = world.next().remove(0);
    }
    world.says.clear();
    let gone = Event::SourceGone(Cause::Channel("gone".into()));
    for event in [Event::Deadline, gone, Event::Deadline] {
        world = world.after(event);
        assert!(world.end.is_none() && !world.discarded && world.holding);
    }
    // The source may come back to its word, or the operator decides.
    let ran = world.clone().after(Event::Commit);
    assert!(ran.committed && !ran.discarded);
    let returned = world.after(Event::Discard);
    assert_eq!(returned.pending, [Pending::Record(Decision::Returned)]);
}
