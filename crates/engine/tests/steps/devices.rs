//! The set of devices: in order whatever happens, and always back to rest.

use states::v2::{Capabilities, State};
use vfio_migrate_engine::devices::{
    Action, DeviceId, Event, Goal, Member, Set, check_p2p, step,
};

use super::explorer::{Model, explore};

/// Devices as they are, and what the law of their order says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Devices {
    pub(crate) capabilities: Vec<Capabilities>,
    /// Where each is; `None` where it does not answer.
    pub(crate) states: Vec<Option<State>>,
    /// Whether each lost what it held.
    pub(crate) reset: Vec<bool>,
    pub(crate) wrong: Option<String>,
}

fn stopped(state: State) -> bool {
    matches!(state, State::Stop | State::StopCopy | State::Resuming)
}

/// Whether a device in this state may start accesses to its peers.
fn starts(state: State) -> bool {
    matches!(state, State::Running | State::PreCopy)
}

impl Devices {
    pub(crate) fn new(capabilities: &[Capabilities], state: State) -> Devices {
        Devices {
            capabilities: capabilities.to_vec(),
            states: vec![Some(state); capabilities.len()],
            reset: vec![false; capabilities.len()],
            wrong: None,
        }
    }

    pub(crate) fn members(&self) -> Vec<Member> {
        let each = self.capabilities.iter().zip(&self.states);
        each.map(|(set, state)| Member::new(*set, state.expect("it answers"))).collect()
    }

    pub(crate) fn all_in(&self, state: State) -> bool {
        self.states.iter().all(|one| *one == Some(state))
    }

    fn others(&self, id: DeviceId) -> impl Iterator<Item = State> + '_ {
        let others = self.states.iter().enumerate().filter(move |(n, _)| *n != id.0);
        others.filter_map(|(_, state)| *state)
    }

    /// A move is asked for: law 5.
    pub(crate) fn ask(&mut self, id: DeviceId, to: State) {
        let Some(from) = self.states[id.0] else { return };
        let stops = stopped(to) && !stopped(from);
        if stops && self.others(id).any(starts) {
            self.wrong =
                Some(format!("device {} goes to {to} while a peer writes into it", id.0));
        }
        if starts(to) && stopped(from) && self.others(id).any(stopped) {
            self.wrong =
                Some(format!("device {} goes to {to} while a peer is stopped", id.0));
        }
    }

    /// The answers to an action, the good one first: what the set hears, and how the
    /// devices are then.
    pub(crate) fn answers(&self, action: &Action) -> Vec<(Event, Devices)> {
        let with = |id: DeviceId, state: Option<State>| {
            let mut then = self.clone();
            then.states[id.0] = state;
            then
        };
        match *action {
            Action::Move(id, to) => vec![
                (Event::Moved(id, to), with(id, Some(to))),
                (Event::Refused(id, "refused".into()), self.clone()),
                (Event::Refused(id, "half".into()), with(id, Some(to))),
                (Event::Refused(id, "error".into()), with(id, Some(State::Error))),
                (Event::Lost(id, "lost".into()), with(id, None)),
            ],
            Action::Read(id) => match self.states[id.0] {
                Some(state) => vec![
                    (Event::State(id, Some(state)), self.clone()),
                    (Event::State(id, None), self.clone()),
                    (Event::Lost(id, "lost".into()), with(id, None)),
                ],
                None => vec![(Event::Lost(id, "lost".into()), self.clone())],
            },
            Action::Reset(id) => {
                let mut done = with(id, Some(State::Running));
                done.reset[id.0] = true;
                vec![
                    (Event::Reset(id, true), done),
                    (Event::Reset(id, false), with(id, None)),
                ]
            }
            _ => Vec::new(),
        }
    }
}

/// A set that walks to one goal and, if that fails, back.
#[derive(Clone, Debug)]
struct Walk {
    set: Set,
    devices: Devices,
    pending: Vec<Action>,
    faults: u32,
    goal: Goal,
    home: State,
    end: Option<Action>,
    path: Vec<String>,
    wrong: Option<String>,
}

impl Walk {
    fn new(capabilities: &[Capabilities], from: State, goal: Goal, faults: u32) -> Walk {
        let devices = Devices::new(capabilities, from);
        let walk = Walk {
            set: Set::new(devices.members()),
            devices,
            pending: Vec::new(),
            faults,
            goal,
            home: from,
            end: None,
            path: Vec::new(),
            wrong: None,
        };
        walk.after(Event::Go(goal))
    }

    fn after(mut self, event: Event) -> Walk {
        self.path.push(format!("{event:?}"));
        let (set, actions) = step(self.set, event);
        self.set = set;
        let mut again = None;
        for action in actions {
            match &action {
                Action::Move(id, to) => {
                    self.devices.ask(*id, *to);
                    self.pending.push(action);
                }
                Action::Read(_) | Action::Reset(_) => self.pending.push(action),
                Action::Wave(_) if !self.pending.is_empty() => {
                    self.wrong = Some("a wave begins before the last one is over".into());
                }
                Action::Wave(_) => {}
                Action::Failed(..) => again = Some(Event::Recover(Goal::Running)),
                _ if self.end.is_some() => self.wrong = Some("a second end".into()),
                _ => self.end = Some(action),
            }
        }
        match again {
            Some(event) => self.after(event),
            None => self,
        }
    }
}

impl Model for Walk {
    fn next(&self) -> Vec<Walk> {
        let mut all = Vec::new();
        for (n, action) in self.pending.iter().enumerate() {
            for (k, (event, devices)) in
                self.devices.answers(action).into_iter().enumerate()
            {
                let forced = k == 0;
                if !forced && self.faults == 0 {
                    continue;
                }
                let mut then = self.clone();
                then.faults -= u32::from(!forced);
                then.pending.remove(n);
                then.devices = devices;
                all.push(then.after(event));
            }
        }
        all
    }

    fn wrong(&self) -> Option<String> {
        if self.wrong.is_some() || self.devices.wrong.is_some() {
            return self.wrong.clone().or_else(|| self.devices.wrong.clone());
        }
        if !self.pending.is_empty() {
            return None;
        }
        let text = match &self.end {
            None => "it waits for nothing, and has not ended".to_owned(),
            Some(Action::Reached(goal)) if *goal == self.goal => {
                let home = self.home;
                let fits =
                    self.devices.states.iter().zip(&self.devices.capabilities).all(
                        |(state, set)| {
                            *state
                                == Some(match goal {
                                    Goal::PreCopy if !set.pre_copy() => home,
                                    Goal::PreCopy => State::PreCopy,
                                    Goal::StopCopy => State::StopCopy,
                                    Goal::Stop => State::Stop,
                                    Goal::Resuming => State::Resuming,
                                    Goal::Running => State::Running,
                                })
                        },
                    );
                if fits {
                    return None;
                }
                "it says that the goal is reached".to_owned()
            }
            Some(Action::Recovered { reset, lost }) => {
                let all = 0..self.devices.states.len();
                let told = |n: &usize| {
                    reset.contains(&DeviceId(*n)) || lost.contains(&DeviceId(*n))
                };
                let sound = |n: &usize| {
                    self.devices.states[*n] == Some(State::Running)
                        && !self.devices.reset[*n]
                };
                match all.clone().find(|n| !told(n) && !sound(n)) {
                    None => return None,
                    Some(n) => format!("device {n} passes for one that is as it was"),
                }
            }
            Some(other) => format!("it ends with {other:?}"),
        };
        Some(text)
    }

    fn path(&self) -> &[String] {
        &self.path
    }

    fn key(&self) -> String {
        let Walk { set, devices, pending, faults, end, .. } = self;
        format!("{set:?}{devices:?}{pending:?}{faults}{end:?}")
    }
}

const ALL: Capabilities = Capabilities::ALL;
const STOP_COPY: Capabilities = Capabilities::STOP_COPY;

#[test]
fn no_device_stops_while_a_peer_may_write_into_it_whatever_fails() {
    let mut states = 0;
    for set in [&[ALL, ALL][..], &[ALL, STOP_COPY], &[ALL, STOP_COPY, ALL]] {
        for (from, goal) in [
            (State::Running, Goal::PreCopy),
            (State::Running, Goal::StopCopy),
            (State::Running, Goal::Stop),
            (State::Running, Goal::Resuming),
            (State::Stop, Goal::Running),
            (State::StopCopy, Goal::Running),
            (State::StopCopy, Goal::Stop),
            (State::Resuming, Goal::Stop),
        ] {
            let faults = if set.len() > 2 { 1 } else { 2 };
            states += explore(Walk::new(set, from, goal, faults), 200_000);
        }
        let precopy: Vec<_> = set
            .iter()
            .map(|set| if set.pre_copy() { State::PreCopy } else { State::Running })
            .collect();
        let mut walk = Walk::new(set, State::Running, Goal::PreCopy, 0);
        while let Some(next) = walk.next().pop() {
            walk = next;
        }
        assert_eq!(
            walk.devices.states.iter().map(|s| s.unwrap()).collect::<Vec<_>>(),
            precopy
        );
        let stop = Walk { goal: Goal::StopCopy, end: None, faults: 2, ..walk };
        states += explore(stop.after(Event::Go(Goal::StopCopy)), 200_000);
    }
    assert!(states > 5_000, "{states}");
}

#[test]
fn a_device_that_was_given_up_does_not_pass_for_sound_when_its_reset_comes_late() {
    let devices = Devices::new(&[ALL, ALL], State::Running);
    let one = DeviceId(0);
    let (set, _) = step(Set::new(devices.members()), Event::Recover(Goal::Running));
    let (set, _) = step(set, Event::State(one, None));
    let (set, actions) = step(set, Event::State(DeviceId(1), Some(State::Running)));
    assert_eq!(actions, [Action::Reset(one)]);
    let (set, actions) = step(set, Event::Lost(one, "no answer".into()));
    assert_eq!(actions, [Action::Recovered { reset: vec![], lost: vec![one] }]);
    let (set, actions) = step(set, Event::Reset(one, true));
    assert!(actions.is_empty() && set.members()[0].lost);
}

#[test]
fn a_device_that_arrived_although_it_failed_is_not_reset_for_that() {
    let devices = Devices::new(&[ALL], State::Stop);
    let one = DeviceId(0);
    let (set, _) = step(Set::new(devices.members()), Event::Recover(Goal::Running));
    let (set, _) = step(set, Event::State(one, Some(State::Stop)));
    let (set, _) = step(set, Event::Moved(one, State::RunningP2p));
    let (set, _) = step(set, Event::Refused(one, "no descriptor".into()));
    let (_, actions) = step(set, Event::State(one, Some(State::Running)));
    assert_eq!(actions, [Action::Recovered { reset: vec![], lost: vec![] }]);
}

#[test]
fn two_devices_that_cannot_be_quieted_are_refused_unless_nobody_maps_a_bar() {
    for (set, refused) in [
        (&[STOP_COPY, Capabilities::PRE_COPY][..], true),
        (&[STOP_COPY, STOP_COPY, ALL], true),
        (&[STOP_COPY, ALL, ALL], false),
        (&[ALL, ALL], false),
        (&[], false),
    ] {
        assert_eq!(check_p2p(set.iter().copied(), true).is_err(), refused, "{set:?}");
        assert!(check_p2p(set.iter().copied(), false).is_ok());
    }
}
