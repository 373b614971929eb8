//! The report of `save` and `restore`, as JSON and as text.

use std::fmt::Write;
use std::path::Path;

use engine::drive::{FileDevice, RestoreReport, SaveReport};
use serde::Serialize;
use serde_json::{Value, json};

use super::text::{identity, late_validation, millis};
use super::{IdentitySummary, ms};
use crate::units::Size;

/// What went between devices and a file.
#[derive(Clone, Debug, Serialize)]
pub struct FileReport {
    /// `saved` or `restored`.
    pub outcome: &'static str,
    /// The file; `-` is standard output or input.
    pub file: String,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Frames in it.
    pub frames: u64,
    /// From the first change of a device to the last.
    pub total_ms: f64,
    /// How long the devices did not run; null where they stay stopped, or were, and
    /// after a restore.
    pub stopped_ms: Option<f64>,
    /// `running` or `stopped`: how the devices were left.
    pub left: &'static str,
    /// Each device, in its order.
    pub devices: Vec<FileDeviceSummary>,
}

/// One device's part.
#[derive(Clone, Debug, Serialize)]
pub struct FileDeviceSummary {
    /// Its name in the file.
    pub name: String,
    /// Who it is.
    pub identity: IdentitySummary,
    /// Bytes of its data.
    pub bytes: u64,
    /// CRC32C of its data, eight hexadecimal digits.
    pub crc32c: String,
    /// Reading or writing its data.
    pub ms: f64,
    /// After a restore: whether what it loaded is validated only when it starts.
    pub validated_at_start: bool,
}

impl FileReport {
    /// Of a save into `file`.
    pub fn saved(file: &Path, report: &SaveReport) -> FileReport {
        FileReport {
            outcome: "saved",
            file: file.display().to_string(),
            file_bytes: report.bytes,
            frames: report.frames,
            total_ms: ms(report.total),
            stopped_ms: report.stopped.map(ms),
            left: left(report.running),
            devices: report.devices.iter().map(FileDeviceSummary::from).collect(),
        }
    }

    /// Of a restore from `file`.
    pub fn restored(file: &Path, report: &RestoreReport) -> FileReport {
        FileReport {
            outcome: "restored",
            file: file.display().to_string(),
            file_bytes: report.bytes,
            frames: report.frames,
            total_ms: ms(report.total),
            stopped_ms: None,
            left: left(report.running),
            devices: report.devices.iter().map(FileDeviceSummary::from).collect(),
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
        let (count, s) = match self.devices.len() {
            1 => (1, ""),
            count => (count, "s"),
        };
        let way = if self.outcome == "saved" { "to" } else { "from" };
        let file = match self.file.as_str() {
            "-" if self.outcome == "saved" => "standard output",
            "-" => "standard input",
            file => file,
        };
        line(format_args!("{} {count} device{s} {way} {file}", self.outcome));
        line(format_args!(
            "  file        {} in {} frames",
            Size::from_bytes(self.file_bytes),
            self.frames
        ));
        line(format_args!("  total       {}", millis(self.total_ms)));
        line(format_args!(
            "  devices     {}",
            match (self.left, self.stopped_ms) {
                ("running", Some(stopped)) =>
                    format!("run on, after a stop of {}", millis(stopped)),
                ("running", None) => "run".to_owned(),
                _ => "are stopped".to_owned(),
            }
        ));
        let widest = self.devices.iter().map(|device| device.name.chars().count()).max();
        let widest = widest.unwrap_or(0).max("device".len());
        line(format_args!(
            "  {:<widest$} {:>10} {:>10}  {:<8}  identity",
            "device", "bytes", "took", "crc32c"
        ));
        for device in &self.devices {
            line(format_args!(
                "  {:<widest$} {:>10} {:>10}  {}  {}",
                device.name,
                Size::from_bytes(device.bytes).to_string(),
                millis(device.ms),
                device.crc32c,
                identity(&device.identity)
            ));
        }
        let late = self.devices.iter().filter(|device| device.validated_at_start);
        late_validation(late.map(|device| device.name.as_str()), &mut text);
        text
    }
}

impl From<&FileDevice> for FileDeviceSummary {
    fn from(device: &FileDevice) -> FileDeviceSummary {
        FileDeviceSummary {
            name: device.name.clone(),
            identity: IdentitySummary::from(&device.identity),
            bytes: device.bytes,
            crc32c: format!("{:08x}", device.crc),
            ms: ms(device.took),
            validated_at_start: device.validated_at_start,
        }
    }
}

fn left(running: bool) -> &'static str {
    if running { "running" } else { "stopped" }
}

#[cfg(test)]
mod tests {
    use super::{FileReport, SaveReport};
    use engine::drive::FileDevice;
    use std::path::Path;
    use std::time::Duration;

    fn report() -> SaveReport {
        let device = super::super::tests::report().devices.remove(0);
        SaveReport {
            devices: vec![FileDevice {
                name: device.name,
                identity: device.identity,
                bytes: 32 << 20,
                crc: 0xbeef,
                took: Duration::from_millis(40),
                validated_at_start: false,
            }],
            bytes: 33 << 20,
            frames: 37,
            stopped: Some(Duration::from_millis(50)),
            total: Duration::from_millis(60),
            running: true,
        }
    }

    #[test]
    fn the_whole_save_at_a_glance() {
        let expected = "\
saved 1 device to a.vfm
  file        33 MiB in 37 frames
  total       60.0 ms
  devices     run on, after a stop of 50.0 ms
  device      bytes       took  crc32c    identity
  accel0     32 MiB    40.0 ms  0000beef  \
accel (data version 1), pci 1de5:acc1, v2, capabilities 7
";
        assert_eq!(FileReport::saved(Path::new("a.vfm"), &report()).text(), expected);
    }

    #[test]
    fn a_device_that_was_left_stopped_is_said_to_be() {
        let stopped = SaveReport { stopped: None, running: false, ..report() };
        let report = FileReport::saved(Path::new("-"), &stopped);
        assert!(report.text().contains("to standard output\n"));
        assert!(report.text().contains("are stopped\n"));
        let json = report.to_json();
        assert_eq!(json["left"], "stopped");
        assert!(json["stopped_ms"].is_null());
        assert_eq!(json["devices"][0]["crc32c"], "0000beef");
    }
}
