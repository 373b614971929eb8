//! The report of a snapshot, as JSON and as text.

use std::fmt::Write;
use std::path::Path;

use engine::drive::Recorded;
use engine::migration::{Error, Recovery};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::text::{identity, millis, partition_lines};
use super::{IdentitySummary, PhaseMs, ms, name, outcome, partition, recovery};
use crate::exit::Found;
use crate::units::Size;

/// How a guest was copied into a file. Times are milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotReport {
    /// `completed`, `refused`, `failed` or `cancelled`.
    pub outcome: String,
    /// The file.
    pub file: String,
    /// Bytes of the file; null where there is none.
    pub file_bytes: Option<u64>,
    /// Frames in it; null where there is none.
    pub frames: Option<u64>,
    /// From the first word until the file was durable.
    pub total_ms: f64,
    /// How long the guest did not run; null where it was paused, or stays stopped.
    pub stopped_ms: Option<f64>,
    /// The phases of that, in their order; they sum to it.
    pub stopped: Vec<PhaseMs>,
    /// Bytes of guest memory in the file, zero pages not counted.
    pub memory_bytes: u64,
    /// Bytes of device data in it.
    pub device_bytes: u64,
    /// `running` or `paused`: how the guest was left.
    pub left: String,
    /// Each device's part, in their order.
    pub devices: Vec<SnapshotDevice>,
    /// Why there is no snapshot, or what happened after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What there is after a failure: `retry`, `source-resumed` or `device-lost`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<String>,
    /// The devices that were lost or reset, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost_devices: Vec<String>,
}

/// One device's part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotDevice {
    /// The name in this VM.
    pub name: String,
    /// Who it is.
    pub identity: IdentitySummary,
    /// Bytes of its data.
    pub bytes: u64,
    /// Until it was in `STOP_COPY`.
    pub stop_ms: f64,
    /// Reading its data.
    pub save_ms: f64,
}

impl SnapshotReport {
    /// Of a copy into `file`.
    pub fn new(file: &Path, recorded: &Recorded) -> SnapshotReport {
        let Recorded { machine, report, result, file: extent, .. } = recorded;
        let (stopped, phases) = partition(report);
        let error = result.as_ref().err();
        let devices = report.devices.iter().map(|device| SnapshotDevice {
            name: device.name.clone(),
            identity: IdentitySummary::from(&device.identity),
            bytes: device.bytes,
            stop_ms: ms(device.stop),
            save_ms: ms(device.save),
        });
        SnapshotReport {
            outcome: report.outcome.name().to_owned(),
            file: file.display().to_string(),
            file_bytes: extent.map(|extent| extent.bytes),
            frames: extent.map(|extent| extent.frames),
            total_ms: ms(report.total),
            stopped_ms: stopped,
            stopped: phases,
            memory_bytes: report.memory_bytes,
            device_bytes: report.device_bytes,
            left: if machine.vcpus.paused() { "paused" } else { "running" }.to_owned(),
            devices: devices.collect(),
            error: error.map(|error| consequence(error, extent.is_some())),
            recovery: error.map(|error| name(error.recovery).to_owned()),
            lost_devices: error.map(|error| error.devices.clone()).unwrap_or_default(),
        }
    }

    /// What the exit status follows from.
    pub fn found(&self) -> Found<'static> {
        Found::Migration {
            outcome: outcome(&self.outcome),
            recovery: self.recovery.as_deref().and_then(recovery),
            verified: None,
        }
    }

    /// The JSON, one object.
    pub fn to_json(&self) -> Value {
        json!(self)
    }

    /// Lines for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |arguments: std::fmt::Arguments<'_>| {
            writeln!(text, "{arguments}").expect("writing to a String cannot fail");
        };
        line(format_args!("snapshot {}", self.outcome));
        if let Some(error) = &self.error {
            line(format_args!("  {error}"));
        }
        if let (Some(bytes), Some(frames)) = (self.file_bytes, self.frames) {
            let size = Size::from_bytes(bytes);
            line(format_args!("  file        {}, {size} in {frames} frames", self.file));
            let (memory, devices) = (
                Size::from_bytes(self.memory_bytes),
                Size::from_bytes(self.device_bytes),
            );
            line(format_args!(
                "  holds       {memory} of memory, {devices} of device data"
            ));
        }
        line(format_args!("  total       {}", millis(self.total_ms)));
        line(format_args!(
            "  guest       {}",
            match (self.left.as_str(), self.stopped_ms) {
                ("running", Some(stopped)) =>
                    format!("runs on, after a stop of {}", millis(stopped)),
                ("running", None) => "runs".to_owned(),
                _ => "is paused".to_owned(),
            }
        ));
        partition_lines(&self.stopped).iter().for_each(|one| line(format_args!("{one}")));
        let widest = self.devices.iter().map(|device| device.name.chars().count()).max();
        let widest = widest.unwrap_or(0).max("device".len());
        if !self.devices.is_empty() {
            line(format_args!(
                "  {:<widest$} {:>10} {:>10} {:>10}  identity",
                "device", "bytes", "stop", "save"
            ));
        }
        for device in &self.devices {
            line(format_args!(
                "  {:<widest$} {:>10} {:>10} {:>10}  {}",
                device.name,
                Size::from_bytes(device.bytes).to_string(),
                millis(device.stop_ms),
                millis(device.save_ms),
                identity(&device.identity)
            ));
        }
        text
    }
}

/// Why it did not work out, and what there is now.
fn consequence(error: &Error, whole: bool) -> String {
    let Error { cause, recovery, devices } = error;
    let guest = match recovery {
        Recovery::Retry => "; the guest was not touched".to_owned(),
        Recovery::SourceResumed => "; the guest is as before".to_owned(),
        Recovery::DeviceLost if devices.is_empty() => {
            "; the VMM did not bring the guest back, and it stays paused".to_owned()
        }
        _ => format!(
            "; {} did not come back with what it held, and the guest stays paused",
            devices.join(", ")
        ),
    };
    let file =
        if whole { ". The file is whole: the guest can be run from it" } else { "" };
    format!("{cause}{guest}{file}")
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::{Recorded, SnapshotReport};
    use crate::exit::{Exit, status};
    use engine::Machine;
    use engine::drive::Extent;
    use engine::migration::{Cause, Error, Outcome, Recovery};
    use std::path::Path;

    fn recorded(paused: bool, result: Result<(), Error>) -> Recorded {
        let mut report = report();
        if let Err(error) = &result {
            report.outcome = Outcome::of(&error.cause, error.recovery);
            report.downtime = None;
        }
        Recorded {
            machine: Machine::devices_only(Vec::new(), paused, false),
            report,
            file: result.is_ok().then_some(Extent { bytes: 129 << 20, frames: 300 }),
            result,
            pause_pending: false,
        }
    }

    #[test]
    fn the_whole_snapshot_at_a_glance() {
        let expected = "\
snapshot completed
  file        a.vfm, 129 MiB in 300 frames
  holds       96 MiB of memory, 32 MiB of device data
  total       2000.0 ms
  guest       runs on, after a stop of 43.0 ms
    vcpu_stop      1.0 ms  #
    p2p            2.0 ms  ###
    memory        40.0 ms  ########################################
  device      bytes       stop       save  identity
  accel0     32 MiB     1.0 ms     2.0 ms  \
accel (data version 1), pci 1de5:acc1, v2, capabilities 7
";
        let report = SnapshotReport::new(Path::new("a.vfm"), &recorded(false, Ok(())));
        assert_eq!(report.text(), expected);
        let json = report.to_json();
        let there: SnapshotReport = serde_json::from_value(json).expect("a report");
        assert_eq!(there, report);
        assert_eq!(status(there.found()), Exit::Done);
    }

    #[test]
    fn a_snapshot_that_failed_says_what_the_guest_does() {
        let cases = [
            (Recovery::SourceResumed, Exit::Failed, "the guest is as before"),
            (Recovery::DeviceLost, Exit::DeviceLost, "accel0 did not come back"),
        ];
        for (recovery, exit, says) in cases {
            let cause = Cause::File("the disk is full".into());
            let error = Error { cause, recovery, devices: vec!["accel0".into()] };
            let report = SnapshotReport::new(Path::new("a"), &recorded(true, Err(error)));
            assert_eq!(status(report.found()), exit);
            let text = report.text();
            assert!(text.starts_with("snapshot failed\n  the disk is full; "), "{text}");
            assert!(text.contains(says), "{text}");
            assert!(!text.contains("  file "), "{text}");
        }
    }
}
