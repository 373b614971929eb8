//! What happened, with every millisecond of downtime billed to one phase.

use std::time::Duration;

use port::{Identity, Phase};

use super::budget::Estimate;
use super::error::{Cause, Recovery};

/// How a migration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest runs (or is paused, if it was) at the destination.
    Completed,
    /// Refused before the guest was touched.
    Refused,
    /// Failed; the error says who has the guest.
    Failed,
    /// Cancelled; the guest goes on at the source.
    Cancelled,
    /// The guest may run at the destination; it is paused here.
    InDoubt,
}

impl Outcome {
    /// How a migration that did not complete ended, from why and from what the caller
    /// has.
    pub fn of(cause: &Cause, recovery: Recovery) -> Outcome {
        match (cause, recovery) {
            (_, Recovery::InDoubt) => Outcome::InDoubt,
            (Cause::Refused(_), _) => Outcome::Refused,
            (Cause::Cancelled, Recovery::Retry | Recovery::SourceResumed) => {
                Outcome::Cancelled
            }
            _ => Outcome::Failed,
        }
    }

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Completed => "completed",
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
            Outcome::Cancelled => "cancelled",
            Outcome::InDoubt => "in-doubt",
        }
    }
}

/// A phase and the time billed to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhaseTime {
    /// The phase.
    pub phase: Phase,
    /// The sum of its stretches.
    pub took: Duration,
}

/// One device's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceReport {
    /// The name in this VM.
    pub name: String,
    /// Who it is.
    pub identity: Identity,
    /// Bytes of its data, pre-copy and stop-copy.
    pub bytes: u64,
    /// From the first transition of the stop until it was in STOP_COPY.
    pub stop: Duration,
    /// Reading and sending its stop-copy data.
    pub save: Duration,
    /// The destination: from RESUMING to STOP. Zero where it did not come to that.
    pub load: Duration,
    /// The destination: from STOP to RUNNING. Zero where it did not come to that.
    pub start: Duration,
    /// The destination: whether what it loaded could be validated only when it started,
    /// since it has no state between RESUMING and RUNNING. `false` where it did not come
    /// to loading.
    pub validated_at_start: bool,
}

/// What happened, all of it measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// From the first word to the last.
    pub total: Duration,
    /// From the request to pause the vCPUs until RUNNING was heard; `None` for a guest
    /// that was paused, or where it did not come to that.
    pub downtime: Option<Duration>,
    /// The estimate taken before the stop; `None` where nothing was stopped.
    pub downtime_estimate: Option<Estimate>,
    /// The phases of the downtime; they sum to it.
    pub phases: Vec<PhaseTime>,
    /// Rounds of pre-copy.
    pub rounds: u32,
    /// Bytes of guest memory that went out, zero pages not counted.
    pub memory_bytes: u64,
    /// Bytes of device data that went out.
    pub device_bytes: u64,
    /// How many times a dirty source failed and everything it covers was taken for
    /// dirty.
    pub dirty_failures: u64,
    /// The devices, in their order.
    pub devices: Vec<DeviceReport>,
}

impl Report {
    /// A migration that touched nothing.
    pub fn nothing(outcome: Outcome, total: Duration) -> Report {
        Report {
            outcome,
            total,
            downtime: None,
            downtime_estimate: None,
            phases: Vec::new(),
            rounds: 0,
            memory_bytes: 0,
            device_bytes: 0,
            dirty_failures: 0,
            devices: Vec::new(),
        }
    }
}

/// Bills each moment to one phase.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    running: Option<(Phase, Duration)>,
    started: Option<Duration>,
    ended: Option<Duration>,
    billed: Vec<PhaseTime>,
}

impl Ledger {
    /// The downtime begins, waiting in `phase`.
    pub fn begin(&mut self, phase: Phase, now: Duration) {
        self.started = Some(now);
        self.running = Some((phase, now));
    }

    /// From now on the source waits in another phase. Nothing before
    /// [`Ledger::begin`].
    pub fn turn(&mut self, phase: Phase, now: Duration) {
        if let Some((before, since)) = self.running.replace((phase, now)) {
            self.bill(before, now.saturating_sub(since));
        } else {
            self.running = None;
        }
    }

    /// Moves time from one phase to another, at most what is billed there: the peer
    /// told what it did while the source waited.
    pub fn shift(&mut self, from: Phase, to: Phase, took: Duration) {
        let Some(entry) = self.billed.iter_mut().find(|e| e.phase == from) else {
            return;
        };
        let took = took.min(entry.took);
        if took.is_zero() {
            return;
        }
        entry.took -= took;
        self.bill(to, took);
    }

    /// The downtime ends.
    pub fn end(&mut self, now: Duration) {
        if let Some((phase, since)) = self.running.take() {
            self.bill(phase, now.saturating_sub(since));
            self.ended = Some(now);
        }
    }

    /// The downtime, once it ended.
    pub fn downtime(&self) -> Option<Duration> {
        Some(self.ended?.saturating_sub(self.started?))
    }

    /// The phases, in the order in which they first came.
    pub fn phases(&self) -> &[PhaseTime] {
        &self.billed
    }

    fn bill(&mut self, phase: Phase, took: Duration) {
        match self.billed.iter_mut().find(|entry| entry.phase == phase) {
            Some(entry) => entry.took += took,
            None => self.billed.push(PhaseTime { phase, took }),
        }
    }
}
