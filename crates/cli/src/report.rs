//! The report of a migration, as JSON and as text.
//!
//! The process that drives a migration makes a [`Summary`] of what the engine measured;
//! it travels as JSON over the control socket, and whoever asked prints it: as it is
//! with `--json`, else as [`text`].

pub mod received;
pub mod repeat;
pub mod saved;
pub mod snapshot;
mod text;

pub use text::{identity, text};

use std::time::Duration;

use engine::migration::{DeviceReport, Error, Outcome, Recovery, Report};
use port::{Bus, Identity};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::exit::Found;

/// What the engine does not know of a migration.
#[derive(Clone, Debug, Default)]
pub struct Extras {
    /// Whether what arrived is what was sent, where that was checked.
    pub verified: Option<bool>,
    /// The gap that the guest's own worker saw.
    pub downtime_guest: Option<Duration>,
    /// The process of the source guest.
    pub source_pid: Option<u32>,
    /// The process of the destination guest.
    pub destination_pid: Option<u32>,
    /// Pages of guest memory that the guest changed during pre-copy.
    pub pages_changed: Option<Changed>,
    /// Blocks of device memory that changed during pre-copy, all devices together.
    pub blocks_changed: Option<Changed>,
    /// Whether devices moved without a guest.
    pub alone: bool,
    /// Why it did not complete.
    pub failure: Option<Failure>,
}

impl Extras {
    /// With the reason why it did not complete.
    #[must_use]
    pub fn failed(mut self, error: &Error) -> Extras {
        self.failure = Some(Failure {
            text: error.to_string(),
            recovery: error.recovery(),
            devices: error.devices.clone(),
        });
        self
    }
}

/// Why a migration did not complete, and what the caller has now.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Why, with what follows from it.
    pub text: String,
    /// What the caller has now.
    pub recovery: Recovery,
    /// The devices that were lost or reset, by name.
    pub devices: Vec<String>,
}

/// How much of something changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// How many changed at least once.
    pub changed: u64,
    /// Of how many.
    pub of: u64,
}

/// The report as it is printed with `--json`. Times are milliseconds; what was not
/// measured is null.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Which it was of several, from 1, where `demo` repeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<u32>,
    /// `completed`, `refused`, `failed`, `cancelled` or `in-doubt`.
    pub outcome: String,
    /// Whether what arrived is what was sent; null where that was not checked.
    pub verified: Option<bool>,
    /// From the first word to the last.
    pub total_ms: f64,
    /// From the request to pause the vCPUs until RUNNING was heard; null for a guest
    /// that was paused, or where it did not come to that.
    pub downtime_ms: Option<f64>,
    /// The gap that the guest's own worker saw.
    pub downtime_guest_ms: Option<f64>,
    /// The estimate taken before the stop.
    pub downtime_estimate_ms: Option<f64>,
    /// The phases of the downtime, in their order; they sum to `downtime_ms`.
    pub downtime: Vec<PhaseMs>,
    /// Rounds of pre-copy.
    pub rounds: u32,
    /// Bytes of guest memory that went out, zero pages not counted.
    pub memory_bytes: u64,
    /// Bytes of device data that went out.
    pub device_bytes: u64,
    /// Both over the whole time.
    pub throughput_bytes_per_s: u64,
    /// How often a dirty source failed and all it covers was sent again.
    pub dirty_failures: u64,
    /// Pages of guest memory that changed during pre-copy.
    pub pages_changed: Option<Changed>,
    /// Blocks of device memory that changed during pre-copy.
    pub blocks_changed: Option<Changed>,
    /// The process of the source guest.
    pub source_pid: Option<u32>,
    /// The process of the destination guest.
    pub destination_pid: Option<u32>,
    /// The model of all devices, where `demo` chose it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// How the devices interrupt, `intx`, `msi` or `msix`, where `demo` chose it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interrupts: Option<String>,
    /// The generation of the source's devices, where `demo` chose it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_generation: Option<String>,
    /// The generation of the destination's devices, where `demo` chose it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_generation: Option<String>,
    /// Whether devices moved without a guest; only the text tells.
    #[serde(skip)]
    pub alone: bool,
    /// Each device's part, in their order.
    pub devices: Vec<DeviceSummary>,
    /// Where the verification found a difference.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
    /// Why it did not complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What the caller has after a failure: `retry`, `source-resumed`, `device-lost`,
    /// `in-doubt` or `moved`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<String>,
    /// The devices that were lost or reset, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost_devices: Vec<String>,
}

/// A phase and the time billed to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseMs {
    /// The phase's name.
    pub phase: String,
    /// Milliseconds.
    pub ms: f64,
}

/// One device's part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceSummary {
    /// The name in this VM.
    pub name: String,
    /// Who it is.
    pub identity: IdentitySummary,
    /// Bytes of its data.
    pub bytes: u64,
    /// Source: until it was in `STOP_COPY`.
    pub stop_ms: f64,
    /// Source: reading and sending its stop-copy data.
    pub save_ms: f64,
    /// Destination: from RESUMING to STOP.
    pub load_ms: f64,
    /// Destination: from STOP to RUNNING.
    pub start_ms: f64,
    /// Destination: whether what it loaded was validated only when it started.
    #[serde(default)]
    pub validated_at_start: bool,
}

/// Who a device is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IdentitySummary {
    /// Its bus: `pci`, or the bus's and the device's name.
    pub bus: String,
    /// PCI: `VVVV:DDDD`, vendor and device id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// PCI: `VVVV:DDDD`, subsystem ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subsystem: Option<String>,
    /// PCI: class code, six hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// PCI: revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u8>,
    /// The generation of the migration interface: `v2`, `v1` or `rfc2018`.
    pub generation: String,
    /// The capability set: 1, 3, 5 or 7.
    pub capabilities: u64,
    /// The model's name, where known.
    pub model: Option<String>,
    /// The version of the model's data, where known.
    pub data_version: Option<u32>,
}

/// A place where the verification found a difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Where: a page, a place in a device, a vector.
    pub place: String,
    /// What is wrong there.
    pub text: String,
}

/// The JSON of a report, one object.
pub fn to_json(report: &Report, extras: &Extras) -> Value {
    Summary::new(report, extras).to_json()
}

impl Summary {
    /// Puts together what the engine measured and what it does not know.
    pub fn new(report: &Report, extras: &Extras) -> Summary {
        let bytes = report.memory_bytes.saturating_add(report.device_bytes);
        let seconds = report.total.as_secs_f64();
        let (downtime, phases) = partition(report);
        let failure = extras.failure.as_ref();
        Summary {
            migration: None,
            outcome: report.outcome.name().to_owned(),
            verified: extras.verified,
            total_ms: ms(report.total),
            downtime_ms: downtime,
            downtime_guest_ms: downtime.and(extras.downtime_guest).map(ms),
            downtime_estimate_ms: downtime
                .and(report.downtime_estimate)
                .map(|estimate| ms(estimate.downtime)),
            downtime: phases,
            rounds: report.rounds,
            memory_bytes: report.memory_bytes,
            device_bytes: report.device_bytes,
            throughput_bytes_per_s: if seconds > 0.0 {
                (bytes as f64 / seconds) as u64
            } else {
                0
            },
            dirty_failures: report.dirty_failures,
            pages_changed: extras.pages_changed,
            blocks_changed: extras.blocks_changed,
            source_pid: extras.source_pid,
            destination_pid: extras.destination_pid,
            model: None,
            interrupts: None,
            source_generation: None,
            destination_generation: None,
            alone: extras.alone,
            devices: report.devices.iter().map(DeviceSummary::from).collect(),
            problems: Vec::new(),
            error: failure.map(|failure| failure.text.clone()),
            recovery: failure.map(|failure| name(failure.recovery).to_owned()),
            lost_devices: failure.map(|f| f.devices.clone()).unwrap_or_default(),
        }
    }

    /// The JSON, one object.
    pub fn to_json(&self) -> Value {
        json!(self)
    }

    /// Whether it completed, and what arrived was found to be what was sent.
    pub fn is_verified(&self) -> bool {
        self.outcome == Outcome::Completed.name() && self.verified == Some(true)
    }

    /// Why it is not what it should be.
    pub fn why(&self) -> String {
        match (&self.error, self.problems.first()) {
            (Some(error), _) => error.clone(),
            (None, Some(problem)) => format!(
                "what arrived is not what was sent: {}: {}",
                problem.place, problem.text
            ),
            (None, None) => format!("the migration ended as {}", self.outcome),
        }
    }

    /// What the exit status follows from.
    pub fn found(&self) -> Found<'static> {
        Found::Migration {
            outcome: outcome(&self.outcome),
            recovery: self.recovery.as_deref().and_then(recovery),
            verified: self.verified,
        }
    }
}

impl From<&DeviceReport> for DeviceSummary {
    fn from(report: &DeviceReport) -> DeviceSummary {
        DeviceSummary {
            name: report.name.clone(),
            identity: IdentitySummary::from(&report.identity),
            bytes: report.bytes,
            stop_ms: ms(report.stop),
            save_ms: ms(report.save),
            load_ms: ms(report.load),
            start_ms: ms(report.start),
            validated_at_start: report.validated_at_start,
        }
    }
}

impl From<&Identity> for IdentitySummary {
    fn from(identity: &Identity) -> IdentitySummary {
        let pci = match &identity.bus {
            Bus::Pci(ids) => Some(ids),
            Bus::Other(_) => None,
        };
        IdentitySummary {
            bus: match &identity.bus {
                Bus::Pci(_) => "pci".to_owned(),
                Bus::Other(name) => name.clone(),
            },
            id: pci.map(|ids| format!("{:04x}:{:04x}", ids.vendor, ids.device)),
            subsystem: pci
                .map(|ids| format!("{:04x}:{:04x}", ids.subsystem_vendor, ids.subsystem)),
            class: pci.map(|ids| format!("{:06x}", ids.class)),
            revision: pci.map(|ids| ids.revision),
            generation: identity.generation.to_string(),
            capabilities: identity.capabilities.flags(),
            model: identity.model.as_ref().map(|model| model.name.clone()),
            data_version: identity.model.as_ref().map(|model| model.data_version),
        }
    }
}

/// The name of a recovery in reports.
pub fn name(recovery: Recovery) -> &'static str {
    match recovery {
        Recovery::Retry => "retry",
        Recovery::SourceResumed => "source-resumed",
        Recovery::DeviceLost => "device-lost",
        Recovery::InDoubt => "in-doubt",
        Recovery::Moved => "moved",
    }
}

fn recovery(text: &str) -> Option<Recovery> {
    [
        Recovery::Retry,
        Recovery::SourceResumed,
        Recovery::DeviceLost,
        Recovery::InDoubt,
        Recovery::Moved,
    ]
    .into_iter()
    .find(|recovery| name(*recovery) == text)
}

/// The outcome by its name; one that nobody knows is a failure.
fn outcome(text: &str) -> Outcome {
    [Outcome::Completed, Outcome::Refused, Outcome::Cancelled, Outcome::InDoubt]
        .into_iter()
        .find(|outcome| outcome.name() == text)
        .unwrap_or(Outcome::Failed)
}

fn ms(duration: Duration) -> f64 {
    micros_as_ms(duration.as_micros())
}

fn micros_as_ms(micros: u128) -> f64 {
    micros as f64 / 1000.0
}

/// How long the guest did not run, where it was stopped and went on, and the phases of
/// that, in whole microseconds whose sum is that of the exact times: each is rounded by
/// where it ends, so that rounding does not add up.
fn partition(report: &Report) -> (Option<f64>, Vec<PhaseMs>) {
    if report.downtime.is_none() {
        return (None, Vec::new());
    }
    let (mut exact, mut told) = (Duration::ZERO, 0);
    let phases = report
        .phases
        .iter()
        .map(|entry| {
            exact += entry.took;
            let micros = exact.as_micros() - told;
            told = exact.as_micros();
            PhaseMs { phase: entry.phase.name().to_owned(), ms: micros_as_ms(micros) }
        })
        .collect();
    (Some(micros_as_ms(told)), phases)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{Changed, Extras, Summary, to_json};
    use crate::exit::{Exit, status};
    use engine::migration::{
        Cause, DeviceReport, Error, Outcome, PhaseTime, Recovery, Report,
    };
    use port::{Bus, Generation, Identity, Model, PciIds, Phase};
    use states::v2::Capabilities;
    use std::time::Duration;

    pub(crate) fn report() -> Report {
        let phase = |phase, nanos| PhaseTime { phase, took: Duration::from_nanos(nanos) };
        let phases = vec![
            phase(Phase::VcpuStop, 1_000_900),
            phase(Phase::P2p, 2_000_900),
            phase(Phase::Memory, 40_000_900),
        ];
        Report {
            outcome: Outcome::Completed,
            total: Duration::from_secs(2),
            downtime: Some(phases.iter().map(|entry| entry.took).sum()),
            downtime_estimate: None,
            phases,
            rounds: 3,
            memory_bytes: 96 << 20,
            device_bytes: 32 << 20,
            dirty_failures: 0,
            devices: vec![DeviceReport {
                name: "accel0".into(),
                identity: Identity {
                    bus: Bus::Pci(PciIds {
                        vendor: 0x1de5,
                        device: 0xacc1,
                        subsystem_vendor: 0x1de5,
                        subsystem: 1,
                        class: 0x12_0000,
                        revision: 1,
                    }),
                    generation: Generation::V2,
                    capabilities: Capabilities::ALL,
                    model: Some(Model { name: "accel".into(), data_version: 1 }),
                    layout: None,
                },
                bytes: 32 << 20,
                stop: Duration::from_millis(1),
                save: Duration::from_millis(2),
                load: Duration::from_millis(3),
                start: Duration::from_millis(4),
                validated_at_start: false,
            }],
        }
    }

    #[test]
    fn phases_sum_to_the_downtime_after_rounding() {
        let json = to_json(&report(), &Extras::default());
        let micros = |value: &serde_json::Value| {
            (value.as_f64().expect("a number") * 1000.0).round() as u64
        };
        let phases = json["downtime"].as_array().expect("a list");
        let sum: u64 = phases.iter().map(|phase| micros(&phase["ms"])).sum();
        assert_eq!(sum, micros(&json["downtime_ms"]));
        assert_eq!(sum, 43_002);
    }

    #[test]
    fn a_paused_guest_has_no_downtime() {
        let paused = Report { downtime: None, ..report() };
        let extras = Extras {
            downtime_guest: Some(Duration::from_millis(1)),
            ..Extras::default()
        };
        let json = to_json(&paused, &extras);
        for key in ["downtime_ms", "downtime_guest_ms", "downtime_estimate_ms"] {
            assert!(json[key].is_null(), "{key}");
        }
        assert_eq!(json["downtime"], serde_json::json!([]));
    }

    #[test]
    fn every_field_of_the_report_is_there_by_its_name() {
        let extras = Extras {
            pages_changed: Some(Changed { changed: 5, of: 5 }),
            source_pid: Some(17),
            ..Extras::default()
        };
        let json = to_json(&report(), &extras);
        for key in [
            "outcome",
            "verified",
            "total_ms",
            "downtime_ms",
            "downtime_guest_ms",
            "downtime_estimate_ms",
            "downtime",
            "rounds",
            "memory_bytes",
            "device_bytes",
            "throughput_bytes_per_s",
            "source_pid",
            "destination_pid",
            "devices",
            "pages_changed",
            "blocks_changed",
        ] {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert_eq!(json["throughput_bytes_per_s"], 64 << 20);
        assert_eq!(json["devices"][0]["identity"]["id"], "1de5:acc1");
        assert_eq!(json["devices"][0]["identity"]["capabilities"], 7);
        assert_eq!(json["devices"][0]["stop_ms"], 1.0);
        assert!(json.get("error").is_none());
    }

    #[test]
    fn a_report_decides_the_same_exit_status_after_its_journey() {
        let error = |recovery| Error {
            cause: Cause::Device("accel0: refused".into()),
            recovery,
            devices: vec!["accel0".into()],
        };
        for (outcome, recovery, exit) in [
            (Outcome::Failed, Recovery::SourceResumed, Exit::Failed),
            (Outcome::Failed, Recovery::DeviceLost, Exit::DeviceLost),
            (Outcome::Failed, Recovery::Moved, Exit::DeviceLost),
            (Outcome::InDoubt, Recovery::InDoubt, Exit::InDoubt),
            (Outcome::Refused, Recovery::Retry, Exit::Failed),
        ] {
            let report = Report { outcome, ..report() };
            let json = to_json(&report, &Extras::default().failed(&error(recovery)));
            let there: Summary = serde_json::from_value(json).expect("a summary");
            assert_eq!(status(there.found()), exit, "{outcome:?} {recovery:?}");
            assert_eq!(there.lost_devices, ["accel0"]);
        }
    }

    #[test]
    fn a_report_from_the_future_is_not_a_success() {
        let mut json = to_json(&report(), &Extras::default());
        json["outcome"] = "half-done".into();
        json["news"] = 1.into();
        let summary: Summary = serde_json::from_value(json).expect("a summary");
        assert_eq!(status(summary.found()), Exit::Failed);
    }
}
