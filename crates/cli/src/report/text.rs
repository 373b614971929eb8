//! The report for people.

use std::fmt::Write;

use port::Phase;

use super::{DeviceSummary, IdentitySummary, PhaseMs, Summary};
use crate::units::Size;

/// The widest bar, in characters.
const BAR: f64 = 40.0;

/// The report as text of several lines, the first of which says how it ended.
pub fn text(summary: &Summary) -> String {
    let mut text = String::new();
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        writeln!(text, "{arguments}").expect("writing to a String cannot fail");
    };
    let verified = match summary.verified {
        Some(true) => ", verified",
        Some(false) => ", but what arrived is NOT what was sent",
        None => "",
    };
    line(format_args!("migration {}{verified}", summary.outcome));
    if let Some(error) = &summary.error {
        line(format_args!("  {error}"));
    }
    for problem in &summary.problems {
        line(format_args!("  {}: {}", problem.place, problem.text));
    }
    line(format_args!(
        "  total       {}, {} {}, {}/s",
        millis(summary.total_ms),
        summary.rounds,
        if summary.rounds == 1 { "round" } else { "rounds" },
        Size::from_bytes(summary.throughput_bytes_per_s)
    ));
    let devices = Size::from_bytes(summary.device_bytes);
    if summary.alone {
        line(format_args!("  moved       {devices} of device data"));
    } else {
        let memory = Size::from_bytes(summary.memory_bytes);
        line(format_args!("  moved       {memory} of memory, {devices} of device data"));
    }
    if let (Some(pages), Some(blocks)) = (summary.pages_changed, summary.blocks_changed) {
        line(format_args!(
            "  changed     {} of {} pages, {} of {} device blocks during pre-copy",
            pages.changed, pages.of, blocks.changed, blocks.of
        ));
    }
    if summary.dirty_failures > 0 {
        line(format_args!(
            "  dirty logs  failed {} times: what they cover was sent again",
            summary.dirty_failures
        ));
    }
    if let Some(downtime) = summary.downtime_ms {
        let mut also = Vec::new();
        if let Some(guest) = summary.downtime_guest_ms {
            also.push(format!("{} seen by the guest", millis(guest)));
        }
        if let Some(estimate) = summary.downtime_estimate_ms {
            also.push(format!("{} estimated", millis(estimate)));
        }
        let also = if also.is_empty() {
            String::new()
        } else {
            format!(" ({})", also.join(", "))
        };
        line(format_args!("  downtime    {}{also}", millis(downtime)));
        for phase in partition_lines(&phases(summary)) {
            line(format_args!("{phase}"));
        }
    }
    if !summary.devices.is_empty() {
        let widest = summary.devices.iter().map(|d| d.name.chars().count()).max();
        let widest = widest.unwrap_or(0).max("device".len());
        line(format_args!(
            "  {:<widest$} {:>10} {:>10} {:>10} {:>10} {:>10}  identity",
            "device", "bytes", "stop", "save", "load", "start"
        ));
        for device in &summary.devices {
            line(format_args!("  {}", row(device, widest)));
        }
        let late = summary.devices.iter().filter(|device| device.validated_at_start);
        late_validation(late.map(|device| device.name.as_str()), &mut text);
    }
    text
}

/// A line for each phase, with a bar.
pub(super) fn partition_lines(phases: &[PhaseMs]) -> Vec<String> {
    let longest = phases.iter().map(|phase| phase.ms).fold(0.0, f64::max);
    let one = |phase: &PhaseMs| {
        let (ms, bar) = (millis(phase.ms), bar(phase.ms, longest));
        format!("    {:<10} {ms:>10}  {bar}", phase.phase).trim_end().to_owned()
    };
    phases.iter().map(one).collect()
}

/// Says which devices could not be asked before they ran whether they took what they
/// were given.
pub(super) fn late_validation<'a>(
    names: impl Iterator<Item = &'a str>,
    into: &mut String,
) {
    let names: Vec<&str> = names.collect();
    if !names.is_empty() {
        let names = names.join(", ");
        let _ = writeln!(
            into,
            "  validated   only at its start: {names} (it has no state between loading \
             and running)"
        );
    }
}

/// The phases that are shown. Those of a guest are empty without one: what passes
/// between their beginning and their end is told as one.
fn phases(summary: &Summary) -> Vec<PhaseMs> {
    let guest = [Phase::VcpuStop, Phase::Dirty, Phase::Memory, Phase::Config];
    let of_guest = |one: &&PhaseMs| guest.iter().any(|phase| phase.name() == one.phase);
    if !summary.alone {
        return summary.downtime.clone();
    }
    let (empty, mut shown): (Vec<PhaseMs>, Vec<PhaseMs>) =
        summary.downtime.iter().cloned().partition(|one| of_guest(&one));
    let ms = empty.iter().map(|phase| phase.ms).sum();
    shown.push(PhaseMs { phase: "other".to_owned(), ms });
    shown
}

fn row(device: &DeviceSummary, widest: usize) -> String {
    format!(
        "{:<widest$} {:>10} {:>10} {:>10} {:>10} {:>10}  {}",
        device.name,
        Size::from_bytes(device.bytes).to_string(),
        millis(device.stop_ms),
        millis(device.save_ms),
        millis(device.load_ms),
        millis(device.start_ms),
        identity(&device.identity)
    )
}

/// Who a device is, in one line.
pub fn identity(identity: &IdentitySummary) -> String {
    let mut text = match (&identity.model, identity.data_version) {
        (Some(model), Some(version)) => format!("{model} (data version {version}), "),
        _ => String::new(),
    };
    text.push_str(&identity.bus);
    if let Some(id) = &identity.id {
        text.push(' ');
        text.push_str(id);
    }
    let _ =
        write!(text, ", {}, capabilities {}", identity.generation, identity.capabilities);
    text
}

/// Milliseconds, in seconds from 10 s on.
pub(super) fn millis(ms: f64) -> String {
    if ms >= 10_000.0 { format!("{:.1} s", ms / 1000.0) } else { format!("{ms:.1} ms") }
}

fn bar(value: f64, longest: f64) -> String {
    if longest <= 0.0 {
        return String::new();
    }
    // What took time at all is seen.
    let width = (value / longest * BAR).clamp(0.0, BAR);
    "#".repeat(if value > 0.0 { width.ceil() as usize } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::super::{Changed, Extras, Problem, Summary};
    use super::text;
    use std::time::Duration;

    #[test]
    fn the_whole_report_at_a_glance() {
        let extras = Extras {
            verified: Some(true),
            downtime_guest: Some(Duration::from_micros(41_500)),
            pages_changed: Some(Changed { changed: 1000, of: 1000 }),
            blocks_changed: Some(Changed { changed: 64, of: 64 }),
            ..Extras::default()
        };
        let expected = "\
migration completed, verified
  total       2000.0 ms, 3 rounds, 64 MiB/s
  moved       96 MiB of memory, 32 MiB of device data
  changed     1000 of 1000 pages, 64 of 64 device blocks during pre-copy
  downtime    43.0 ms (41.5 ms seen by the guest)
    vcpu_stop      1.0 ms  #
    p2p            2.0 ms  ###
    memory        40.0 ms  ########################################
  device      bytes       stop       save       load      start  identity
  accel0     32 MiB     1.0 ms     2.0 ms     3.0 ms     4.0 ms  \
accel (data version 1), pci 1de5:acc1, v2, capabilities 7
";
        assert_eq!(text(&Summary::new(&report(), &extras)), expected);
    }

    #[test]
    fn devices_without_a_guest_are_told_of_its_phases() {
        let extras = Extras { alone: true, ..Extras::default() };
        let summary = Summary::new(&report(), &extras);
        let text = text(&summary);
        assert!(text.contains("\n  moved       32 MiB of device data\n"), "{text}");
        for phase in ["vcpu_stop", "memory", "guest"] {
            assert!(!text.contains(phase), "{text}");
        }
        // And no time is lost.
        assert!(text.contains("\n    other         41.0 ms  ###"), "{text}");
        // The JSON is that of any migration.
        let with = Summary::new(&report(), &Extras::default());
        assert_eq!(summary.to_json(), with.to_json());
    }

    #[test]
    fn a_failed_verification_is_said_first_and_with_the_place() {
        let extras = Extras { verified: Some(false), ..Extras::default() };
        let mut summary = Summary::new(&report(), &extras);
        summary.problems =
            vec![Problem { place: "guest page 0x1000".into(), text: "differs".into() }];
        let text = text(&summary);
        assert!(text.starts_with("migration completed, but what arrived is NOT"));
        assert!(text.contains("\n  guest page 0x1000: differs\n"));
    }
}
