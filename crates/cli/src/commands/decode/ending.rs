//! What a stream was altogether.

use std::fmt::Write as _;

use serde_json::{Value, json};
use wire::walk::{Damage, DeviceStory, SectionStory, Summary};

use super::meaning::{identity_json, identity_line, section_json, section_line};
use super::{cause, count, crc, damage_json};

/// The lines under the last frame.
pub(super) fn text(summary: &Summary) -> String {
    let Summary { bytes, frames, unread, data_pages, zero_pages, .. } = summary;
    let mut lines = vec![String::new(), format!("frames    {frames} in {bytes} bytes")];
    if *unread > 0 {
        lines.push(format!("unread    {unread} bytes, behind where the walk stopped"));
    }
    if (*data_pages, *zero_pages) != (0, 0) {
        lines.push(format!(
            "memory    {data_pages} pages with data, {zero_pages} of zeros"
        ));
    }
    lines.extend(summary.devices.iter().map(device_line));
    lines.extend(summary.sections.iter().map(section_story_line));
    // One alone is the verdict.
    if summary.damages > 1 {
        let at_end = summary.at_end.iter();
        lines.extend(at_end.map(|damage| format!("at end    {}", cause(damage))));
    }
    lines.push(match &summary.first_damage {
        None => "verdict   whole".to_owned(),
        Some(damage) => {
            let Damage { offset, .. } = damage;
            let mut verdict =
                format!("verdict   damaged at byte {offset} ({offset:#x}): ");
            verdict += &cause(damage);
            if summary.damages > 1 {
                let _ = write!(verdict, "; {} damages altogether", summary.damages);
            }
            verdict
        }
    });
    lines.join("\n") + "\n"
}

/// The same as an object.
pub(super) fn json(summary: &Summary) -> Value {
    let devices: Vec<_> = summary
        .devices
        .iter()
        .map(|device| {
            json!({
                "device": device.device,
                "identity": device.identity.as_ref().map(identity_json),
                "attempt": device.attempt,
                "bytes": device.so_far.bytes,
                "pre_copy_bytes": device.pre_copy,
                "crc": crc(device.so_far.crc.value()),
                "state": state(device),
            })
        })
        .collect();
    let sections: Vec<_> = summary
        .sections
        .iter()
        .map(|section| {
            json!({
                "section": section.section,
                "info": section.info.as_ref().map(section_json),
                "bytes": section.bytes,
                "ended": section.ended,
            })
        })
        .collect();
    let at_end: Vec<_> =
        summary.at_end.iter().map(|damage| damage_json(damage, false)).collect();
    let verdict = if summary.is_whole() { "whole" } else { "damaged" };
    json!({
        "verdict": verdict,
        "first_damage": summary
            .first_damage
            .as_ref()
            .map(|damage| json!({ "offset": damage.offset, "text": cause(damage) })),
        "damages": summary.damages,
        "at_end": at_end,
        "bytes": summary.bytes,
        "unread_bytes": summary.unread,
        "frames": summary.frames,
        "data_pages": summary.data_pages,
        "zero_pages": summary.zero_pages,
        "devices": devices,
        "sections": sections,
    })
}

fn device_line(device: &DeviceStory) -> String {
    let DeviceStory { device: n, so_far, pre_copy, .. } = device;
    let what = match &device.identity {
        Some(identity) => identity_line(identity),
        None => "its DEVICE_BEGIN is not here".to_owned(),
    };
    let (bytes, sum) = (so_far.bytes, crc(so_far.crc.value()));
    let state = state(device);
    format!(
        "device {n}  {what}: {bytes} bytes, {pre_copy} of them in pre-copy, crc {sum}, \
         {state}"
    )
}

/// Whether a device can be restored from what there is.
fn state(device: &DeviceStory) -> &'static str {
    match (device.ended, device.intact && device.identity.is_some()) {
        (true, true) => "whole",
        (true, false) => "damaged",
        (false, true) => "incomplete",
        (false, false) => "damaged and incomplete",
    }
}

fn section_story_line(section: &SectionStory) -> String {
    let SectionStory { section: n, info, bytes, ended } = section;
    let what = match info {
        Some(info) => section_line(info),
        None => "its SECTION_BEGIN is not here".to_owned(),
    };
    let ended = if *ended { "to its last piece" } else { "incomplete" };
    format!("section {n} {what}: {}, {ended}", count_bytes(*bytes))
}

fn count_bytes(bytes: u64) -> String {
    count(usize::try_from(bytes).unwrap_or(usize::MAX), "byte")
}
