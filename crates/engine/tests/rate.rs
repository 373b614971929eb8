//! A limited link: what is estimated before the stop is what the stop takes.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use link::{RateLimit, Uri, dial, listen};
use port::{AttemptId, Observer, Progress};
use states::v2::{Capabilities, State};
use testkit::{FakeDevice, Recorder, Side};
use vfio_migrate_engine::Machine;
use vfio_migrate_engine::drive::{Incoming, Outgoing, Received, Sent};
use vfio_migrate_engine::migration::{OnTimeout, Options, sink::Ending};

const PATIENCE: Duration = Duration::from_secs(10);

/// Keeps what it heard, and does something after each round.
struct Hears {
    told: Recorder,
    limit: RateLimit,
    at_round: fn(&RateLimit),
}

impl Observer for Hears {
    fn progress(&self, progress: &Progress) {
        self.told.progress(progress);
        if matches!(progress, Progress::Round { .. }) {
            (self.at_round)(&self.limit);
        }
    }
}

/// Moves a device of `bytes` over a UNIX socket.
fn moved(
    set: Capabilities,
    bytes: usize,
    limit: &RateLimit,
    options: Options,
    at_round: fn(&RateLimit),
) -> (Sent, Received, Recorder) {
    let folder = tempfile::tempdir().expect("a folder");
    let place = Uri::unix(folder.path().join("link")).expect("a place");
    let listener = listen(&place).expect("a listener");
    let (near, far) = Side::pair();
    let machine = |fake: FakeDevice, paused| {
        Machine::devices_only(vec![Box::new(fake)], paused, true)
    };
    let contents = (0..bytes).map(|i| (i * 7) as u8).collect();
    let here = machine(FakeDevice::new(&near, "dev0", set, contents), false);
    let there = machine(FakeDevice::blank(&far, "dev0", set, bytes), true);
    let receiving = thread::spawn(move || {
        let (control, accept) = listener.accept(PATIENCE).expect("a connection");
        let store = Box::new(store::Memory::new().expect("random bytes"));
        let open = Box::new(move |_: &[_]| Ok(there));
        let (control, accept) = (Box::new(control), Box::new(accept));
        Incoming::new(control, accept, store, [9; 8], PATIENCE, open).run()
    });
    let (control, data) = dial(&place, PATIENCE).expect("a connection");
    let store = Box::new(store::Memory::new().expect("random bytes"));
    let told = Recorder::default();
    let hears = Hears { told: told.clone(), limit: limit.clone(), at_round };
    let sent = Outgoing::new(
        here,
        Box::new(control),
        Box::new(data.limited(limit)),
        store,
        AttemptId([7; 16]),
        options,
    )
    .observer(Arc::new(hears))
    .run();
    (sent, receiving.join().expect("no panic"), told)
}

#[test]
fn a_limited_link_is_taken_for_a_fast_one() {
    // A device without pre-copy: nothing was measured when it has to be estimated.
    let limit = RateLimit::new(Some(4_000_000));
    let options = Options {
        downtime_limit: Duration::from_millis(1),
        max_time: Duration::from_millis(100),
        on_timeout: OnTimeout::Switch,
        ..Options::default()
    };
    let (sent, received, _) =
        moved(Capabilities::STOP_COPY, 2_000_000, &limit, options, |_| {});
    sent.result.expect("completed");
    assert_eq!(received.ending, Ending::Running { paused: false });
    let estimate = sent.report.downtime_estimate.expect("an estimate");
    let downtime = sent.report.downtime.expect("a downtime");
    assert_eq!(estimate.bandwidth, 4_000_000);
    // Half a second. The first turn is free, and the machine is not always quick.
    for took in [estimate.downtime, downtime] {
        assert!(took >= Duration::from_millis(440), "{took:?} of {estimate:?}");
    }
    assert!(estimate.downtime < Duration::from_millis(700), "{estimate:?}");
}

#[test]
fn a_limit_that_the_stop_cannot_meet_stops_a_device() {
    let limit = RateLimit::new(Some(1_000_000));
    let options = Options {
        downtime_limit: Duration::from_millis(300),
        max_time: Duration::from_millis(200),
        ..Options::default()
    };
    let set = Capabilities::STOP_COPY;
    let (mut sent, received, told) = moved(set, 2_000_000, &limit, options, |_| {});
    let error = sent.result.expect_err("it takes two seconds");
    assert!(error.to_string().contains("at 1000000 bytes/s"), "{error}");
    assert!(matches!(received.ending, Ending::Discarded(_)), "{:?}", received.ending);
    let state = sent.machine.devices[0].device.state();
    assert_eq!(state.expect("an answer"), State::Running);
    let stopped = told.heard().into_iter().any(
        |one| matches!(one, Progress::Transition { to: Some(to), .. } if to.is_stopped()),
    );
    assert!(!stopped);
    assert!(told.notes().iter().any(|note| note.contains("cannot shrink")));
}

#[test]
fn a_limit_that_is_raised_meanwhile_is_not_seen() {
    let limit = RateLimit::new(Some(RateLimit::LEAST));
    let options = Options {
        downtime_limit: Duration::from_millis(500),
        max_time: Duration::from_secs(20),
        ..Options::default()
    };
    let set = Capabilities::STOP_COPY;
    let raise = |limit: &RateLimit| limit.set(None);
    let (sent, received, _) = moved(set, 2_000_000, &limit, options, raise);
    sent.result.expect("completed");
    assert_eq!(received.ending, Ending::Running { paused: false });
}
