//! How long a stop would take, before anything is stopped.
//!
//! ```text
//!  a stop   = rest / bandwidth + 2 transitions here + 2 there + 3 questions
//!
//!  measured   bandwidth    by each round large enough to tell it, averaged
//!             question     by the last one, and by the acknowledgement of each small round
//!  guessed    transitions  by what setup's took: nothing stops before the stop
//!             bandwidth    by the one large round that there was, if it was short
//!             question     by one asked before the last round
//! ```
//!
//! One slow moment makes a guess that would keep a guest from ever moving. A long memory
//! is of no use there, and neither is a short one: a guess that hinders nobody is the best
//! that is known. So a guess stands until it *alone* holds the guest back, with everything
//! that is measured within the limit; each time it does, all guesses weigh half as much.
//! What is measured never gives way.

use std::time::Duration;

/// What was measured while the guest ran, and what follows for a stop.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Budget {
    bytes_per_second: f64,
    /// A round was large enough to tell the speed of the link.
    told: bool,
    /// More than one moment says so.
    sure: bool,
    round_trip: Duration,
    /// The round trip was measured since the last round began.
    fresh: bool,
    stop: Duration,
    load: Duration,
    limit: Option<u64>,
    /// How many times the guesses were halved.
    doubts: u32,
}

/// An estimate of the downtime, and what it was made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The downtime that a stop now would cost.
    pub downtime: Duration,
    /// Bytes that would move while the guest is stopped.
    pub remaining: u64,
    /// At this many bytes a second.
    pub bandwidth: u64,
    /// The part that further rounds cannot shrink, as far as it was measured.
    pub fixed: Duration,
    /// That part with what is only guessed.
    pub floor: Duration,
    /// How much of the downtime is only guessed, and weighs less where it alone holds
    /// the guest back.
    pub guessed: Duration,
}

/// The smallest round whose speed says something about the link, in bytes.
const TELLING: u64 = 4 << 20;

/// The largest round whose acknowledgement takes no longer than an answer, in bytes.
const SMALL: u64 = 64 << 10;

/// A round that took longer than this was slow for more than one moment.
const MOMENT: Duration = Duration::from_secs(10);

/// What is taken for the speed of a link over which nothing large has gone yet, in
/// bytes a second: 1 Gbit/s.
const ASSUMED: f64 = 125e6;

impl Budget {
    /// A round (or a part of one) moved `bytes` in `took`, from its first byte to the
    /// word that they were applied.
    pub fn moved(&mut self, bytes: u64, took: Duration) {
        let known = self.bytes_per_second;
        let rate = bytes as f64 / took.max(Duration::from_nanos(1)).as_secs_f64();
        if bytes < TELLING {
            // A small round is mostly latency, and says only that the link is at least
            // that fast. A guest without much to move would otherwise never go.
            let least = if self.told { known } else { known.max(ASSUMED) };
            self.bytes_per_second = least.max(rate);
        } else {
            let again = std::mem::replace(&mut self.told, true);
            self.sure |= again || took >= MOMENT;
            self.bytes_per_second = if again { 0.5 * known + 0.5 * rate } else { rate };
        }
    }

    /// A round begins: what a question took before is not news any more.
    pub fn round_begins(&mut self) {
        self.fresh = false;
    }

    /// A question to the peer and its answer took that long. Only the last counts: one
    /// is asked right before every stop.
    pub fn round_trip(&mut self, took: Duration) {
        self.round_trip = took;
        self.fresh = true;
    }

    /// The acknowledgement of a round of `bytes` took that long, from the round's end.
    pub fn acknowledged(&mut self, bytes: u64, took: Duration) {
        // A larger round may still be on its way when its end is sent.
        if bytes <= SMALL {
            self.round_trip(took);
        }
    }

    /// A device took that long to change its state on this side.
    pub fn transition(&mut self, took: Duration) {
        self.stop = self.stop.max(took);
    }

    /// The destination's slowest device took that long to change its state.
    pub fn load(&mut self, took: Duration) {
        self.load = self.load.max(took);
    }

    /// The link may send that many bytes a second now, whatever it could.
    pub fn limited(&mut self, limit: Option<u64>) {
        self.limit = limit;
    }

    /// The guesses alone hold the guest back: they weigh half as much from now on.
    pub fn doubt(&mut self) {
        // More would not fit a factor, and is nothing by then.
        self.doubts = (self.doubts + 1).min(30);
    }

    /// The bandwidth, in bytes a second; 0 while it is not known.
    pub fn bandwidth(&self) -> u64 {
        self.rate(f64::from(1 << self.doubts)) as u64
    }

    /// The bandwidth, where a guess may be that many times too low.
    fn rate(&self, factor: f64) -> f64 {
        let told = self.bytes_per_second;
        let rate = if self.sure || told <= 0.0 {
            told
        } else {
            // Without the slow moment it is no better than any other link.
            (told * factor).min(told.max(ASSUMED))
        };
        self.limit.map_or(f64::MAX, |limit| limit as f64).min(rate)
    }

    /// What a stop now would cost: `dirty` bytes of memory, `device` bytes of device
    /// data of which `fixed` would be left whatever pre-copy does.
    ///
    /// Stopping is two waves of transitions here and two there; the switch itself is
    /// three questions to the peer (end of data, commit, running).
    pub fn estimate(&self, dirty: u64, device: u64, fixed: u64) -> Estimate {
        let remaining = dirty.saturating_add(device);
        let weight = 1 << self.doubts;
        let trips = self.round_trip * 3;
        let (measured, stale) =
            if self.fresh { (trips, Duration::ZERO) } else { (Duration::ZERO, trips) };
        let guesses = (self.stop * 2 + self.load * 2 + stale) / weight;
        let sure = |bytes| moving(bytes, self.rate(f64::MAX)).saturating_add(measured);
        let told = |bytes| {
            let moves = moving(bytes, self.rate(f64::from(weight)));
            moves.saturating_add(measured).saturating_add(guesses)
        };
        let downtime = told(remaining);
        Estimate {
            downtime,
            remaining,
            bandwidth: self.bandwidth(),
            fixed: sure(fixed),
            floor: told(fixed),
            guessed: downtime.saturating_sub(sure(remaining)),
        }
    }
}

/// How long that many bytes take at a rate.
fn moving(bytes: u64, rate: f64) -> Duration {
    let never = Duration::MAX / 4;
    if bytes == 0 {
        Duration::ZERO
    } else if rate <= 0.0 {
        never
    } else {
        Duration::try_from_secs_f64(bytes as f64 / rate).unwrap_or(never)
    }
}
