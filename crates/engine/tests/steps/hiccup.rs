//! The source against a clock: what a slow moment costs, and what a slow link does.

use std::collections::VecDeque;
use std::time::Duration;

use port::PrecopyInfo;
use states::v2::{Capabilities, State};
use vfio_migrate_engine::devices::{self, Member};
use vfio_migrate_engine::migration::source::{Action, DevicePending, Event, Source};
use vfio_migrate_engine::migration::{Cause, Estimate, Options};

const MS: fn(u64) -> Duration = Duration::from_millis;

/// How quick everything is around a source with one device.
#[derive(Clone, Copy)]
struct Around {
    /// The device's way into PRE_COPY.
    entry: Duration,
    /// The destination's device on its way into RESUMING.
    load: Duration,
    /// From a word to the peer to its answer; the first question and all else.
    trips: (Duration, Duration),
    /// Bytes a second.
    speed: u64,
    /// The first round stood still for so long.
    stall: Duration,
    /// Bytes of memory in the first round, and in each one after it.
    memory: (u64, u64),
    /// What the device gives in STOP_COPY.
    stop_copy: u64,
    /// The round from which on the VMM's gate is open.
    gate: u32,
}

/// A quiet guest near its destination.
const QUICK: Around = Around {
    entry: Duration::from_millis(1),
    load: Duration::from_millis(1),
    trips: (Duration::from_millis(1), Duration::from_millis(1)),
    speed: 1 << 30,
    stall: Duration::ZERO,
    memory: (64 << 20, 4096),
    stop_copy: 4096,
    gate: 0,
};

/// What became of it.
#[derive(Debug)]
struct Went {
    /// `Ok` where the guest was stopped.
    result: Result<(), Cause>,
    rounds: u32,
    took: Duration,
    estimate: Estimate,
    /// What the operator could read, and after which round.
    notes: Vec<(u32, String)>,
}

impl Around {
    fn transfer(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.speed as f64)
    }

    fn memory(&self, round: u32) -> u64 {
        if round == 1 { self.memory.0 } else { self.memory.1 }
    }

    /// Runs until the guest is stopped or kept.
    fn run(self) -> Went {
        let members = vec![Member::new(Capabilities::ALL, State::Running)];
        let mut source = Source::new(Options::default(), members);
        let mut now = MS(1000);
        let mut asked = 0;
        let (mut notes, mut told) = (Vec::new(), 0);
        let mut queue = VecDeque::from([(MS(0), Event::Begin { paused: false })]);
        let result = 'run: loop {
            let (after, event) = queue.pop_front().expect("something goes on");
            now += after;
            let late = source.out_of_time().is_some_and(|at| at <= now);
            let event = if late { Event::OutOfTime } else { event };
            let (next, actions) = source.step(now, event);
            source = next;
            for action in actions {
                match action {
                    Action::PauseVcpus => break 'run Ok(()),
                    Action::SayAbort(cause) => break 'run Err(cause),
                    Action::Tell { round, .. } => told = round,
                    Action::Note(text) => notes.push((told, text)),
                    action => queue.extend(self.answers(&source, &action, &mut asked)),
                }
            }
        };
        let (rounds, took) = (source.rounds(), now.saturating_sub(MS(1000)));
        let estimate = *source.estimate().expect("it was estimated");
        Went { result, rounds, took, estimate, notes }
    }

    fn answers(
        &self,
        source: &Source,
        action: &Action,
        asked: &mut u32,
    ) -> Vec<(Duration, Event)> {
        let round = source.rounds();
        let one = |after, event| vec![(after, event)];
        match *action {
            Action::SayHello => one(self.trips.1, Event::Accepted { load: self.load }),
            Action::OpenChannels => one(self.trips.1, Event::ChannelsOpen),
            Action::Track => one(MS(0), Event::Tracking),
            Action::Devices(devices::Action::Move(id, to)) => {
                let moved = devices::Event::Moved(id, to);
                one(self.entry, Event::Devices(moved, self.entry))
            }
            Action::Iterate(_) => {
                one(MS(0), Event::Iterated { bytes: 0, reset: Vec::new() })
            }
            Action::SendRound(round) => {
                let bytes = self.memory(round);
                let stall = if round == 1 { self.stall } else { MS(0) };
                one(self.transfer(bytes) + stall, Event::RoundSent(bytes))
            }
            Action::EndRound(round) => one(self.trips.1, Event::Applied(round)),
            Action::AskPending => {
                let left = DevicePending {
                    precopy: Some(PrecopyInfo::default()),
                    stop_copy_bytes: Some(self.stop_copy),
                    ..DevicePending::default()
                };
                one(MS(0), Event::Pending(vec![left]))
            }
            Action::Collect { last: false } => {
                let (dirty, gate) = (self.memory.1, round >= self.gate);
                let collected = Event::Collected { dirty, gate };
                vec![(MS(0), Event::Limited(None)), (MS(0), collected)]
            }
            Action::Pace(wait) => one(wait, Event::Paced),
            Action::SaySwitchover => {
                *asked += 1;
                let trip = if *asked == 1 { self.trips.0 } else { self.trips.1 };
                one(trip, Event::Ready)
            }
            _ => Vec::new(),
        }
    }
}

#[test]
fn one_hiccup_at_setup_keeps_a_guest_from_ever_moving() {
    let busy = Around { memory: (64 << 20, 1 << 20), ..QUICK };
    let small = Around { memory: (8 << 20, 4096), ..QUICK };
    for (what, around) in [
        ("a slow way into PRE_COPY", Around { entry: MS(160), ..QUICK }),
        ("a very slow one", Around { entry: MS(25_000), ..busy }),
        ("a slow way into RESUMING", Around { load: MS(3_000), ..QUICK }),
        ("both", Around { entry: MS(120), load: MS(120), ..busy }),
        ("a slow first answer", Around { trips: (MS(900), MS(1)), ..QUICK }),
        ("a slow first answer", Around { trips: (MS(900), MS(1)), ..busy }),
        ("a slow first round", Around { stall: MS(8_000), stop_copy: 1 << 20, ..small }),
    ] {
        let went = around.run();
        assert!(went.result.is_ok(), "{what}: {went:?}");
        assert!(went.rounds <= 16, "{what}: {went:?}");
        assert!(went.took < Duration::from_secs(40), "{what}: {went:?}");
    }
}

#[test]
fn a_slow_setup_is_forgotten_although_it_hinders_nobody() {
    // The VMM holds its guest for forty rounds: what was guessed stays as it was.
    let around = Around { entry: MS(40), load: MS(60), gate: 40, ..QUICK };
    let went = around.run();
    assert!(went.result.is_ok() && went.rounds >= 40, "{went:?}");
    assert!(went.estimate.downtime >= MS(2 * 40 + 2 * 60 + 3), "{went:?}");
    // So it does where the guess is over the limit, and is not all that holds it.
    let went = Around { entry: MS(160), gate: 40, ..QUICK }.run();
    assert!(went.result.is_ok() && went.rounds > 40, "{went:?}");
}

#[test]
fn a_guess_gives_way_further_than_it_has_to() {
    for entry in [150, 160, 400, 1_000, 7_000, 29_000] {
        let went = Around { entry: MS(entry), ..QUICK }.run();
        assert!(went.result.is_ok(), "{went:?}");
        let limit = Options::default().downtime_limit;
        let downtime = went.estimate.downtime;
        assert!(downtime <= limit && downtime * 2 > limit - MS(20), "{went:?}");
        // The operator reads at once why the guest waits.
        let told =
            went.notes.iter().any(|(round, text)| *round == 1 && text.contains("guess"));
        assert!(told && went.notes.len() == 1, "{went:?}");
    }
}

#[test]
fn a_peer_that_is_far_away_is_taken_for_a_slow_moment() {
    // Three questions of 150 ms, whether rounds are small enough to tell or not.
    for again in [4096, 3 << 20] {
        let far = Around { trips: (MS(150), MS(150)), memory: (4096, again), ..QUICK };
        let went = far.run();
        let Err(Cause::NotConverged { estimate_ms, .. }) = went.result else {
            panic!("{went:?}");
        };
        assert!(estimate_ms >= 450, "{went:?}");
        let told =
            |(round, text): &(u32, String)| *round == 1 && text.contains("cannot shrink");
        assert!(went.notes.iter().any(told), "{went:?}");
    }
}

#[test]
fn a_link_that_is_slow_all_along_is_taken_for_a_fast_one() {
    // 1 MB/s: no round but the first is large enough to say so again, and the device's
    // last megabyte takes a second.
    let slow = Around {
        speed: 1_000_000,
        memory: (16 << 20, 4096),
        stop_copy: 1 << 20,
        ..QUICK
    };
    let went = slow.run();
    assert!(matches!(went.result, Err(Cause::NotConverged { .. })), "{went:?}");
    assert!(went.estimate.downtime > MS(1_000), "{went:?}");
    assert!(
        went.notes
            .iter()
            .any(|(round, text)| *round == 1 && text.contains("cannot shrink"))
    );
    // A guest that writes much tells it again with every round.
    let slow = Around { speed: 10_000_000, memory: (8 << 20, 5 << 20), ..QUICK };
    let went = slow.run();
    assert!(matches!(went.result, Err(Cause::NotConverged { .. })), "{went:?}");
    assert!(went.estimate.bandwidth < 11_000_000, "{went:?}");
    // Rounds shrink what is left of its memory: nothing is said to be in their way.
    assert_eq!(went.notes, []);
}
