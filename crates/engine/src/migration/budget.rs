//! How long a stop would take, before anything is stopped.

use std::time::Duration;

/// What was measured while the guest ran, and what follows for a stop.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Budget {
    bytes_per_second: f64,
    /// A round was large enough to tell the speed of the link.
    told: bool,
    round_trip: Duration,
    stop: Duration,
    load: Duration,
    limit: Option<u64>,
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
    /// The part that further rounds cannot shrink.
    pub fixed: Duration,
}

/// The smallest round whose speed says something about the link, in bytes.
const TELLING: u64 = 4 << 20;

/// What is taken for the speed of a link over which nothing large has gone yet, in
/// bytes a second: 1 Gbit/s.
const ASSUMED: f64 = 125e6;

impl Budget {
    /// A round (or a part of one) moved `bytes` in `took`, from its first byte to the
    /// word that they were applied.
    pub fn moved(&mut self, bytes: u64, took: Duration) {
        let took = took.max(Duration::from_nanos(1));
        let known = self.bytes_per_second;
        let rate = bytes as f64 / took.as_secs_f64();
        self.bytes_per_second = if bytes < TELLING {
            // A small round is mostly latency, and says only that the link is at least
            // that fast. A guest without much to move would otherwise never go.
            known.max(rate).max(ASSUMED)
        } else if !std::mem::replace(&mut self.told, true) {
            rate
        } else {
            0.5 * known + 0.5 * rate
        };
    }

    /// A question to the peer and its answer took that long.
    pub fn round_trip(&mut self, took: Duration) {
        self.round_trip =
            if self.round_trip.is_zero() { took } else { self.round_trip.min(took) };
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

    /// The bandwidth, in bytes a second; 0 while it is not known.
    pub fn bandwidth(&self) -> u64 {
        self.rate() as u64
    }

    fn rate(&self) -> f64 {
        self.limit.map_or(f64::MAX, |limit| limit as f64).min(self.bytes_per_second)
    }

    /// What a stop now would cost: `dirty` bytes of memory, `device` bytes of device
    /// data of which `fixed` would be left whatever pre-copy does.
    ///
    /// Stopping is two waves of transitions here and two there; the switch itself is
    /// three questions to the peer (end of data, commit, running).
    pub fn estimate(&self, dirty: u64, device: u64, fixed: u64) -> Estimate {
        let remaining = dirty.saturating_add(device);
        let constant = self.stop * 2 + self.load * 2 + self.round_trip * 3;
        let moving = |bytes: u64| {
            if bytes == 0 {
                Duration::ZERO
            } else if self.rate() <= 0.0 {
                Duration::MAX / 4
            } else {
                Duration::try_from_secs_f64(bytes as f64 / self.rate())
                    .unwrap_or(Duration::MAX / 4)
            }
        };
        Estimate {
            downtime: moving(remaining).saturating_add(constant),
            remaining,
            bandwidth: self.bandwidth(),
            fixed: moving(fixed).saturating_add(constant),
        }
    }
}
