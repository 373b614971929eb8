//! What a preamble or a frame means: one line, what belongs under it, and JSON.

use serde_json::{Value, json};
use wire::Frame;
use wire::Message;
use wire::Preamble;
use wire::device::{DeviceBegin, DeviceData, DeviceEnd, DeviceRecord, Phase};
use wire::memory::{MemoryRuns, RunKind};
use wire::message::{
    Accept, DeviceIdentity, Hello, MessageKind, Prepared, Reason, RunState, Running,
};
use wire::preamble::{Role, VERSION};
use wire::section::{SectionData, SectionInfo, SectionOrder};
use wire::walk::SoFar;

use super::{count, crc};

/// What something means.
#[derive(Debug)]
pub(super) struct Meaning {
    pub(super) line: String,
    pub(super) details: Vec<String>,
    pub(super) json: Value,
}

impl Meaning {
    pub(super) fn new(line: impl Into<String>, json: Value) -> Self {
        Self { line: line.into(), details: Vec::new(), json }
    }

    fn with(self, details: Vec<String>) -> Self {
        Self { details, ..self }
    }
}

pub(super) fn preamble(preamble: &Preamble) -> Meaning {
    let Preamble { byte_order, architecture, page_size, migration, role, .. } = preamble;
    let (is, name, channel) = match role {
        Role::Control => ("a control connection".to_owned(), "control", None),
        Role::File => ("a file".to_owned(), "file", None),
        Role::Data { channel, .. } => {
            let channel = channel.get();
            (format!("data connection {channel}"), "data", Some(channel))
        }
    };
    let line = format!(
        "{is} of version {VERSION}, {architecture}, {byte_order}, pages of {} bytes, \
         migration {migration}",
        page_size.get()
    );
    let mut object = json!({
        "version": VERSION,
        "role": name,
        "architecture": architecture.to_string(),
        "byte_order": byte_order.to_string(),
        "page_size": page_size.get(),
        "required_features": preamble.required.0,
        "optional_features": preamble.optional.0,
        "migration": migration.to_string(),
    });
    // The token is not told: it would open a connection.
    if let Some(channel) = channel {
        object["channel"] = json!(channel);
    }
    Meaning::new(line, object)
}

pub(super) fn frame(frame: &Frame<'_>, so_far: Option<SoFar>, verbose: bool) -> Meaning {
    match frame {
        Frame::Message(message) => self::message(message),
        Frame::Memory(runs) => memory(runs, verbose),
        Frame::DeviceBegin(begin) => device_begin(begin),
        Frame::DeviceData(data) => device_data(data, so_far, verbose),
        Frame::DeviceEnd(end) => device_end(*end),
        Frame::Config(record) => device_record("config space", record),
        Frame::Interrupts(record) => device_record("interrupts", record),
        Frame::SectionBegin(info) => {
            let line = format!("section {} begins: {}", info.section, section_line(info));
            Meaning::new(line, section_json(info))
        }
        Frame::SectionData(data) => section_data(data),
        Frame::RoundEnd { round } => {
            Meaning::new(format!("round {round} ends"), json!({ "round": round }))
        }
        Frame::ChannelEnd(digest) => Meaning::new(
            format!("the end, after {digest}"),
            json!({
                "frames": digest.frames,
                "bytes": digest.bytes,
                "crc": crc(digest.crc.value()),
            }),
        ),
        Frame::Skipped(_) => Meaning::new("not known, and may be skipped", Value::Null),
        // A frame that a later version of the library knows.
        other => Meaning::new(format!("{other:?}"), Value::Null),
    }
}

/// When a piece was read.
pub(super) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::PreCopy => "pre-copy",
        Phase::StopCopy => "stop-copy",
    }
}

/// A device in one line: `accel0, pci 1af4:10f0, v2, set 7, model accel, data version 1`.
pub(super) fn identity_line(identity: &DeviceIdentity) -> String {
    let DeviceIdentity { slot, bus, pci, generation, capabilities, model, .. } = identity;
    let mut text = format!("{slot}, {bus}");
    if let Some(ids) = pci {
        text += &format!(" {:04x}:{:04x}", ids.vendor, ids.device);
    }
    text += &format!(", {generation}, set {capabilities}");
    if let Some(model) = model {
        text += &format!(", model {}, data version {}", model.name, model.data_version);
    }
    text
}

pub(super) fn identity_json(identity: &DeviceIdentity) -> Value {
    json!({
        "slot": identity.slot,
        "bus": identity.bus.to_string(),
        "pci": identity.pci.map(|ids| json!({
            "vendor": ids.vendor,
            "device": ids.device,
            "subsystem_vendor": ids.subsystem_vendor,
            "subsystem": ids.subsystem,
            "class": ids.class,
            "revision": ids.revision,
        })),
        "generation": identity.generation.to_string(),
        "capabilities": identity.capabilities,
        "model": identity.model.as_ref().map(|model| json!({
            "name": model.name,
            "data_version": model.data_version,
        })),
        "stop_copy_bytes": identity.stop_copy_bytes,
    })
}

/// What a line on the identity leaves out.
fn identity_details(identity: &DeviceIdentity) -> Vec<String> {
    let mut details = Vec::new();
    if let Some(ids) = &identity.pci {
        details.push(format!(
            "subsystem {:04x}:{:04x}, class {:06x}, revision {:02x}",
            ids.subsystem_vendor, ids.subsystem, ids.class, ids.revision
        ));
    }
    if let Some(bytes) = identity.stop_copy_bytes {
        details.push(format!("about {bytes} bytes left to stop-copy"));
    }
    details
}

pub(super) fn section_line(info: &SectionInfo) -> String {
    let order = order(info.order);
    format!("{}, version {}, loaded {order} the devices", info.name, info.version)
}

pub(super) fn section_json(info: &SectionInfo) -> Value {
    json!({
        "section": info.section,
        "name": info.name,
        "version": info.version,
        "loaded": format!("{} devices", order(info.order)),
    })
}

fn order(order: SectionOrder) -> &'static str {
    match order {
        SectionOrder::BeforeDevices => "before",
        SectionOrder::AfterDevices => "after",
    }
}

fn run_state(state: RunState) -> &'static str {
    match state {
        RunState::Running => "running",
        RunState::Paused => "paused",
    }
}

fn memory(memory: &MemoryRuns<'_>, verbose: bool) -> Meaning {
    let runs = memory.runs();
    let (mut data, mut zero) = (0u64, 0u64);
    for run in runs.iter() {
        let pages = match run.kind {
            RunKind::Data => &mut data,
            RunKind::Zero => &mut zero,
        };
        *pages += u64::from(run.pages);
    }
    let first = runs.iter().next().map(|run| run.gpa);
    let bytes = memory.data().len();
    let mut line = format!(
        "{}: {data} pages with {bytes} bytes, {zero} of zeros",
        count(runs.len(), "run")
    );
    if let Some(first) = first {
        line += &format!(", from {first:#x} on");
    }
    let mut object = json!({
        "runs": runs.len(),
        "data_pages": data,
        "zero_pages": zero,
        "bytes": bytes,
        "first_address": first,
    });
    if !verbose {
        return Meaning::new(line, object);
    }
    let kind = |kind| match kind {
        RunKind::Data => "data",
        RunKind::Zero => "zero",
    };
    let list = runs.iter().map(
        |run| json!({ "address": run.gpa, "pages": run.pages, "kind": kind(run.kind) }),
    );
    object["list"] = list.collect();
    let details = runs
        .iter()
        .map(|run| format!("{:#x}: {} pages, {}", run.gpa, run.pages, kind(run.kind)));
    Meaning::new(line, object).with(details.collect())
}

fn device_begin(begin: &DeviceBegin) -> Meaning {
    let DeviceBegin { device, attempt, identity, expected_bytes } = begin;
    let again = match attempt {
        0 => String::new(),
        again => format!(" again, for the {again}. time after its first"),
    };
    let line = format!("device {device} begins{again}: {}", identity_line(identity));
    let mut details = identity_details(identity);
    if let Some(bytes) = expected_bytes {
        details.push(format!("about {bytes} bytes will come"));
    }
    let object = json!({
        "device": device,
        "attempt": attempt,
        "identity": identity_json(identity),
        "expected_bytes": expected_bytes,
    });
    Meaning::new(line, object).with(details)
}

fn device_data(data: &DeviceData<'_>, so_far: Option<SoFar>, verbose: bool) -> Meaning {
    let DeviceData { device, offset, ends_transaction, bytes, .. } = *data;
    let (when, length) = (phase(data.phase), bytes.len());
    let mut line = format!("device {device}, {when}: {length} bytes at {offset}");
    if ends_transaction {
        line += ", the end of a transaction";
    }
    let mut object = json!({
        "device": device,
        "phase": when,
        "offset": offset,
        "bytes": length,
        "ends_transaction": ends_transaction,
    });
    let mut details = Vec::new();
    if let Some(SoFar { bytes, crc: sum }) = so_far {
        let sum = crc(sum.value());
        object["so_far"] = json!({ "bytes": bytes, "crc": sum });
        if verbose {
            details.push(format!("so far {bytes} bytes, crc {sum}"));
        }
    }
    Meaning::new(line, object).with(details)
}

fn device_end(end: DeviceEnd) -> Meaning {
    let DeviceEnd { device, length, crc: sum } = end;
    let sum = crc(sum);
    let line = format!("device {device} ends, with {length} bytes, crc {sum}");
    Meaning::new(line, json!({ "device": device, "bytes": length, "crc": sum }))
}

fn device_record(what: &str, record: &DeviceRecord<'_>) -> Meaning {
    let DeviceRecord { device, schema, bytes } = *record;
    let length = bytes.len();
    Meaning::new(
        format!("device {device}: its {what}, schema {schema}, {length} bytes"),
        json!({ "device": device, "schema": schema, "bytes": length }),
    )
}

fn section_data(data: &SectionData<'_>) -> Meaning {
    let SectionData { section, last, offset, bytes } = *data;
    let (length, end) = (bytes.len(), if last { ", the last" } else { "" });
    Meaning::new(
        format!("section {section}: {length} bytes at {offset}{end}"),
        json!({ "section": section, "offset": offset, "bytes": length, "last": last }),
    )
}

fn message(message: &Message) -> Meaning {
    let kind = message.kind();
    let (line, details, mut object) = match message {
        Message::Hello(hello) => hello_fields(hello),
        Message::Accept(accept) => accept_fields(accept),
        Message::Refuse(refuse) => {
            let reasons = &refuse.reasons;
            let list: Vec<_> = reasons
                .iter()
                .map(|reason| json!({ "code": reason.code.0, "text": reason.text }))
                .collect();
            let details = reasons
                .iter()
                .map(|reason| format!("{}: {}", reason.code, reason.text))
                .collect();
            (count(reasons.len(), "reason"), details, json!({ "reasons": list }))
        }
        Message::RoundApplied { round } => {
            (format!("round {round}"), vec![], json!({ "round": round }))
        }
        Message::RunState(state) => {
            let state = run_state(*state);
            (state.to_owned(), vec![], json!({ "run_state": state }))
        }
        Message::NotReady { reason } => {
            (reason.clone(), vec![], json!({ "reason": reason }))
        }
        Message::Prepared(prepared) => prepared_fields(prepared),
        Message::Running(running) => running_fields(running),
        Message::NotStarted(not) => (
            format!("device {}: {}", not.device, not.text),
            vec![],
            json!({ "device": not.device, "text": not.text }),
        ),
        Message::Abort(Reason { code, text })
        | Message::Failed(Reason { code, text }) => {
            (format!("{code}: {text}"), vec![], json!({ "code": code.0, "text": text }))
        }
        // Without fields, or not known here.
        _ => (String::new(), vec![], json!({})),
    };
    object["message"] = json!(kind.to_string());
    Meaning::new(headline(kind, &line), object).with(details)
}

fn headline(kind: MessageKind, fields: &str) -> String {
    if fields.is_empty() { kind.to_string() } else { format!("{kind}: {fields}") }
}

type Fields = (String, Vec<String>, Value);

fn hello_fields(hello: &Hello) -> Fields {
    let Hello { software, store, source_uri, data_channels, memory, .. } = hello;
    let state = run_state(hello.run_state);
    let line = format!(
        "{software}, {state}, {}, {}, {}, {}",
        count(hello.devices.len(), "device"),
        count(hello.sections.len(), "section"),
        count(memory.len(), "memory region"),
        count(usize::from(*data_channels), "data connection"),
    );
    let mut details = vec![format!("store {store}")];
    details.extend(source_uri.iter().map(|uri| format!("asked back at {uri}")));
    details.extend(memory.iter().map(|region| {
        let (gpa, length, page) = (region.gpa, region.length, region.page_size);
        format!("memory at {gpa:#x}: {length} bytes, pages of {page}")
    }));
    for (n, identity) in hello.devices.iter().enumerate() {
        details.push(format!("device {n}: {}", identity_line(identity)));
        let more = identity_details(identity).into_iter();
        details.extend(more.map(|detail| format!("  {detail}")));
    }
    details.extend(
        hello
            .sections
            .iter()
            .map(|s| format!("section {}: {}", s.section, section_line(s))),
    );
    details.extend(
        hello.expected_bytes.map(|bytes| format!("about {bytes} bytes will come")),
    );
    let regions: Vec<_> = memory
        .iter()
        .map(|region| {
            json!({
                "address": region.gpa,
                "bytes": region.length,
                "page_size": region.page_size,
            })
        })
        .collect();
    let object = json!({
        "software": software,
        "store": store.to_string(),
        "source_uri": source_uri,
        "data_channels": data_channels,
        "run_state": state,
        "memory": regions,
        "devices": hello.devices.iter().map(identity_json).collect::<Vec<_>>(),
        "sections": hello.sections.iter().map(section_json).collect::<Vec<_>>(),
        "expected_bytes": hello.expected_bytes,
    });
    (line, details, object)
}

fn accept_fields(accept: &Accept) -> Fields {
    let Accept { store, devices, prepare_us, .. } = accept;
    let mut details = vec![format!("store {store}")];
    details.extend(devices.iter().enumerate().map(|(n, device)| {
        let when = if device.validated_at_start { "when it starts" } else { "before" };
        let most = device.max_transaction.map_or("any".to_owned(), |n| n.to_string());
        format!("device {n}: validated {when}, longest transaction {most}")
    }));
    details.extend(prepare_us.map(|us| format!("about {us} µs until Prepared")));
    let list: Vec<_> = devices
        .iter()
        .map(|device| {
            json!({
                "validated_at_start": device.validated_at_start,
                "max_transaction": device.max_transaction,
            })
        })
        .collect();
    // The token is not told: it would open a connection.
    let object = json!({
        "store": store.to_string(),
        "devices": list,
        "prepare_us": prepare_us,
    });
    (count(devices.len(), "device"), details, object)
}

fn prepared_fields(prepared: &Prepared) -> Fields {
    let Prepared { devices, verify_us } = prepared;
    let mut details: Vec<_> = devices
        .iter()
        .enumerate()
        .map(|(n, device)| {
            let (bytes, sum, us) = (device.bytes, crc(device.crc), device.load_us);
            format!("device {n}: took {bytes} bytes, crc {sum}, loaded in {us} µs")
        })
        .collect();
    details.extend(verify_us.map(|us| format!("{us} µs of verification")));
    let list: Vec<_> = devices
        .iter()
        .map(|device| {
            json!({
                "bytes": device.bytes,
                "crc": crc(device.crc),
                "load_us": device.load_us,
            })
        })
        .collect();
    let object = json!({ "devices": list, "verify_us": verify_us });
    (count(devices.len(), "device"), details, object)
}

fn running_fields(running: &Running) -> Fields {
    let Running { devices, guest_running_us } = running;
    let guest = match guest_running_us {
        Some(us) => format!("the vCPUs ran {us} µs after Commit"),
        None => "the guest is paused".to_owned(),
    };
    let details = devices
        .iter()
        .enumerate()
        .map(|(n, device)| format!("device {n}: started in {} µs", device.start_us))
        .collect();
    let list: Vec<_> =
        devices.iter().map(|device| json!({ "start_us": device.start_us })).collect();
    let object = json!({ "devices": list, "guest_running_us": guest_running_us });
    (format!("{}, {guest}", count(devices.len(), "device")), details, object)
}
