//! One of everything that travels, and the bytes of it.

use crate::wire::device::{DeviceBegin, DeviceData, DeviceEnd, DeviceRecord, Phase};
use crate::wire::memory::{MAX_RUN_BYTES, RunKind, RunTable};
use crate::wire::message::{
    Accept, AcceptedDevice, Bus, DeviceIdentity, FailureCode, Generation, Hello,
    LoadedDevice, MAX_CAPABILITIES, MAX_EXTENDED, MemoryRegion, Message, Model,
    MsiLayout, MsixLayout, NotStarted, PciBar, PciCapability, PciExtended, PciIds,
    PciLayout, Prepared, Reason, Refusal, RefusalCode, Refuse, RunState, Running,
    StartedDevice, StoreId,
};
use crate::wire::preamble::{
    Architecture, ByteOrder, DataChannel, Features, MigrationId, PageSize, Preamble,
    Role, Token,
};
use crate::wire::section::{SectionData, SectionInfo, SectionOrder};
use crate::wire::{Crc, Decoder, Encoder, Flags, FrameError, FrameType, Header};

pub(crate) fn data_role() -> Role {
    let channel = DataChannel::new(3).unwrap();
    Role::Data { channel, token: Token([1, 2, 3, 4, 5, 6, 7, 8]) }
}

pub(crate) fn preamble(role: Role) -> Preamble {
    Preamble {
        byte_order: ByteOrder::LITTLE,
        architecture: Architecture::X86_64,
        page_size: PageSize::KIB_4,
        required: Features::NONE,
        optional: Features(1 << 40),
        migration: MigrationId(*b"0123456789abcdef"),
        role,
    }
}

pub(crate) fn identity() -> DeviceIdentity {
    DeviceIdentity {
        slot: "accel0".into(),
        bus: Bus::PCI,
        pci: Some(PciIds {
            vendor: 0x1af4,
            device: 0x10f0,
            subsystem_vendor: 0x1af4,
            subsystem: 1,
            class: 0x12_00_00,
            revision: 2,
        }),
        generation: Generation::V2,
        capabilities: 7,
        model: Some(Model { name: "accel".into(), data_version: 1 }),
        stop_copy_bytes: Some(64 << 20),
        layout: None,
    }
}

fn platform_identity() -> DeviceIdentity {
    DeviceIdentity {
        slot: "dma@1000".into(),
        bus: Bus::PLATFORM,
        pci: None,
        generation: Generation::V1,
        capabilities: 1,
        model: None,
        stop_copy_bytes: None,
        layout: None,
    }
}

/// A device that tells where everything lies in it.
fn laid_out() -> DeviceIdentity {
    let layout = PciLayout {
        bars: vec![
            PciBar { number: 0, kind: 0, size: 4096 },
            PciBar { number: 2, kind: 0xc, size: 16 << 20 },
            PciBar { number: 6, kind: 0, size: 2048 },
        ],
        capabilities: vec![
            PciCapability { id: 0x01, at: 0x40 },
            PciCapability { id: 0x05, at: 0xa0 },
            PciCapability { id: 0x11, at: 0x50 },
        ],
        extended: vec![
            PciExtended { id: 0x0001, version: 2, at: 0x100 },
            PciExtended { id: 0x0018, version: 1, at: 0x148 },
        ],
        intx: true,
        msi: Some(MsiLayout { vectors: 8, wide: true, maskable: true }),
        msix: Some(MsixLayout { vectors: 8, table: 4, pending: 0x804 }),
    };
    DeviceIdentity { layout: Some(layout), ..identity() }
}

/// As long as one can be.
pub(crate) fn longest_layout() -> PciLayout {
    PciLayout {
        bars: (0..7).map(|number| PciBar { number, kind: 0, size: 4096 }).collect(),
        capabilities: vec![PciCapability { id: 9, at: 0xfc }; MAX_CAPABILITIES],
        extended: vec![PciExtended { id: 0xb, version: 1, at: 0xffc }; MAX_EXTENDED],
        intx: true,
        msi: Some(MsiLayout { vectors: 32, wide: true, maskable: true }),
        msix: Some(MsixLayout { vectors: 2048, table: 4, pending: 0x8004 }),
    }
}

fn section(section: u32) -> SectionInfo {
    let (name, order) = match section {
        0 => ("registers", SectionOrder::BeforeDevices),
        _ => ("timer", SectionOrder::AfterDevices),
    };
    SectionInfo { section, name: name.into(), version: 4, order }
}

pub(crate) fn hello() -> Hello {
    Hello {
        software: "vfio-migrate 0.1.0".into(),
        store: StoreId(*b"fedcba9876543210"),
        source_uri: Some("tcp:192.0.2.1:4444".into()),
        data_channels: 2,
        run_state: RunState::Running,
        memory: vec![
            MemoryRegion { gpa: 0, length: 0xa_0000, page_size: 4096 },
            MemoryRegion { gpa: 0x10_0000, length: 512 << 20, page_size: 4096 },
        ],
        devices: vec![identity(), platform_identity()],
        sections: vec![section(0), section(1)],
        expected_bytes: Some(640 << 20),
    }
}

/// One of each kind, and each with everything optional left out.
pub(crate) fn messages() -> Vec<(&'static str, Message)> {
    let text = |text: &str| text.to_owned();
    let accepted =
        AcceptedDevice { validated_at_start: true, max_transaction: Some(4096) };
    vec![
        ("hello", Message::Hello(hello())),
        (
            "hello-bare",
            Message::Hello(Hello {
                software: String::new(),
                store: StoreId([0; 16]),
                source_uri: None,
                data_channels: 1,
                run_state: RunState::Paused,
                memory: vec![],
                devices: vec![],
                sections: vec![],
                expected_bytes: None,
            }),
        ),
        ("hello-layout", Message::Hello(Hello { devices: vec![laid_out()], ..hello() })),
        (
            "accept",
            Message::Accept(Accept {
                store: StoreId(*b"destinationstore"),
                token: Token(*b"8 bytes!"),
                devices: vec![accepted, AcceptedDevice::default()],
                prepare_us: Some(1500),
            }),
        ),
        (
            "refuse",
            Message::Refuse(Refuse {
                reasons: vec![
                    Refusal { code: RefusalCode::MEMORY, text: text("1 GiB, not 2") },
                    Refusal { code: RefusalCode(999), text: text("a later reason") },
                ],
            }),
        ),
        ("round-applied", Message::RoundApplied { round: 3 }),
        ("run-state", Message::RunState(RunState::Paused)),
        ("switchover-request", Message::SwitchoverRequest),
        ("switchover-ready", Message::SwitchoverReady),
        ("not-ready", Message::NotReady { reason: text("accel0 has initial data left") }),
        (
            "prepared",
            Message::Prepared(Prepared {
                devices: vec![LoadedDevice {
                    bytes: 9000,
                    crc: 0xdead_beef,
                    load_us: 77,
                    validated_at_start: false,
                }],
                verify_us: Some(12_000),
            }),
        ),
        ("commit", Message::Commit),
        (
            "running",
            Message::Running(Running {
                devices: vec![StartedDevice { start_us: 42 }],
                guest_running_us: Some(900),
            }),
        ),
        ("returned", Message::Returned),
        (
            "not-started",
            Message::NotStarted(NotStarted { device: 1, text: text("EIO in RUNNING") }),
        ),
        (
            "abort",
            Message::Abort(Reason {
                code: FailureCode::CANCELLED,
                text: text("by the operator"),
            }),
        ),
        (
            "failed",
            Message::Failed(Reason {
                code: FailureCode(77),
                text: text("a later failure"),
            }),
        ),
    ]
}

/// A table of three runs, the pages of which hold 1 and 2.
pub(crate) fn memory() -> (RunTable, Vec<u8>) {
    let mut table = RunTable::new(PageSize::KIB_4);
    table.push(0x1000, 2, RunKind::Data).unwrap();
    table.push(0x8000, 300, RunKind::Zero).unwrap();
    table.push(0x1_0000_0000, 1, RunKind::Data).unwrap();
    let mut data = vec![1; 2 * 4096];
    data.resize(3 * 4096, 2);
    (table, data)
}

/// A frame with a page of data and one of zeros.
pub(crate) fn one_page() -> Vec<u8> {
    let mut table = RunTable::new(PageSize::KIB_4);
    table.push(0x1000, 1, RunKind::Data).unwrap();
    table.push(0x2000, 1, RunKind::Zero).unwrap();
    let header = Encoder::new(Role::File).memory(&table, &[3; 4096]).unwrap();
    [&header, table.prefix(), &[3; 4096]].concat()
}

pub(crate) const BYTES: &[u8] = b"forty-two opaque bytes of a device's state";

/// One of each type of frame for a data channel, in an order that a decoder takes.
/// Closed with version 1, as its golden files are: what is new gets a list of its own.
pub(crate) fn frames(
    encoder: &mut Encoder,
) -> Result<Vec<(&'static str, Vec<u8>)>, FrameError> {
    let data = |offset, phase, ends_transaction| DeviceData {
        device: 1,
        phase,
        offset,
        ends_transaction,
        bytes: BYTES,
    };
    let record = DeviceRecord { device: 1, schema: 1, bytes: BYTES };
    let begin = DeviceBegin {
        device: 1,
        attempt: 0,
        identity: identity(),
        expected_bytes: Some(2 * BYTES.len() as u64),
    };
    let (table, pages) = memory();
    let both = |head: &[u8], bytes: &[u8]| [head, bytes].concat();
    let mut crc = Crc::of(BYTES);
    crc.add(BYTES);

    Ok(vec![
        ("memory-runs", {
            let header = encoder.memory(&table, &pages)?;
            [&header, table.prefix(), &pages].concat()
        }),
        ("round-end-frame", encoder.round_end(7)?),
        ("device-begin", encoder.device_begin(&begin)?),
        (
            "device-data",
            both(&encoder.device_data(&data(0, Phase::PreCopy, false))?, BYTES),
        ),
        (
            "device-data-transaction",
            both(&encoder.device_data(&data(42, Phase::StopCopy, true))?, BYTES),
        ),
        ("device-end", {
            let (length, crc) = (2 * BYTES.len() as u64, crc.value());
            encoder.device_end(&DeviceEnd { device: 1, length, crc })?
        }),
        ("config", both(&encoder.config(&record)?, BYTES)),
        ("interrupts", both(&encoder.interrupts(&record)?, BYTES)),
        ("section-begin", encoder.section_begin(&section(1))?),
        ("section-data", {
            let data = SectionData { section: 1, last: true, offset: 0, bytes: BYTES };
            both(&encoder.section_data(&data)?, BYTES)
        }),
        ("unknown", {
            let header = encoder.header(FrameType(0x7777), Flags::NONE, &[BYTES])?;
            both(&header, BYTES)
        }),
        ("channel-end", encoder.channel_end()?),
    ])
}

/// A whole saved stream: preamble, a message, one of each frame.
pub(crate) fn file() -> Vec<u8> {
    let mut encoder = Encoder::new(Role::File);
    let mut bytes = preamble(Role::File).encode().to_vec();
    bytes.extend(encoder.message(&Message::Hello(hello())).unwrap());
    for (_, frame) in frames(&mut encoder).unwrap() {
        bytes.extend(frame);
    }
    bytes
}

/// Reads a stream to its end as a receiver would: the `Debug` text of each frame, or
/// the first error. Never takes more than a frame's ceiling.
pub(crate) fn read_stream(bytes: &[u8]) -> Result<Vec<String>, String> {
    let (preamble, mut rest) = bytes.split_first_chunk().ok_or("no preamble")?;
    let preamble = Preamble::decode(preamble).map_err(|e| e.to_string())?;
    let mut decoder = Decoder::new(preamble.role, preamble.page_size);
    let mut frames = vec![];
    while !rest.is_empty() {
        let (header, after) = rest.split_first_chunk().ok_or("a header is cut off")?;
        let header = decoder.header(header).map_err(|e| e.to_string())?;
        assert!(header.length <= MAX_RUN_BYTES + (32 << 10));
        let length = header.length as usize;
        let (payload, after) =
            after.split_at_checked(length).ok_or("a payload is cut off")?;
        let frame = decoder.payload(&header, payload).map_err(|e| e.to_string())?;
        frames.push(format!("{frame:#?}"));
        rest = after;
    }
    if decoder.ended() { Ok(frames) } else { Err("the stream has no end".into()) }
}

/// The header and the payload of one frame.
pub(crate) fn split(frame: &[u8]) -> (&[u8; Header::SIZE], &[u8]) {
    frame.split_first_chunk().unwrap()
}

pub(crate) fn device_end() -> DeviceEnd {
    DeviceEnd { device: 1, length: 84, crc: 5 }
}
