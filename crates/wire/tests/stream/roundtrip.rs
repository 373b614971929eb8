//! What is written is read again, for any value within its limits.

use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::{prop_assert, prop_assert_eq, proptest};

use crate::samples::split;
use crate::wire::device::{DeviceBegin, DeviceData, DeviceEnd, DeviceRecord, Phase};
use crate::wire::memory::{Content, RunKind, RunTable};
use crate::wire::message::{
    Accept, AcceptedDevice, Bus, DeviceIdentity, FailureCode, Generation, Hello,
    LoadedDevice, MAX_BARS, MAX_CAPABILITIES, MAX_EXTENDED, MemoryRegion, Model,
    MsiLayout, MsixLayout, NotStarted, PciBar, PciCapability, PciExtended, PciIds,
    PciLayout, Prepared, Reason, Refusal, RefusalCode, Refuse, RunState, Running,
    StartedDevice, StoreId,
};
use crate::wire::preamble::{
    Architecture, ByteOrder, DataChannel, Features, MigrationId, PageSize, Preamble,
    Role, Token,
};
use crate::wire::section::{SectionData, SectionInfo, SectionOrder};
use crate::wire::{Decoder, Encoder, Frame, Header, Message};

fn text() -> impl Strategy<Value = String> {
    "[^\\p{Cc}]{0,60}"
}

fn name() -> impl Strategy<Value = String> {
    "[^\\p{Cc}]{1,40}"
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![
        Just(Role::Control),
        Just(Role::File),
        (1..=64u16, any::<[u8; 8]>()).prop_map(|(channel, token)| Role::Data {
            channel: DataChannel::new(channel).unwrap(),
            token: Token(token),
        }),
    ]
}

fn identity() -> impl Strategy<Value = DeviceIdentity> {
    let pci = (any::<[u16; 4]>(), 0..1u32 << 24, any::<u8>()).prop_map(
        |([vendor, device, subsystem_vendor, subsystem], class, revision)| PciIds {
            vendor,
            device,
            subsystem_vendor,
            subsystem,
            class,
            revision,
        },
    );
    let model = (name(), any::<u32>())
        .prop_map(|(name, data_version)| Model { name, data_version });
    let numbers = (2..9u16, any::<u16>(), any::<u64>());
    let pci = of((pci, of(layout())));
    (name(), pci, numbers, of(model), of(any::<u64>())).prop_map(
        |(slot, pci, (bus, generation, capabilities), model, stop_copy_bytes)| {
            let (pci, layout) = pci.unzip();
            DeviceIdentity {
                slot,
                bus: if pci.is_some() { Bus::PCI } else { Bus(bus) },
                pci,
                generation: Generation(generation),
                capabilities,
                model,
                stop_copy_bytes,
                layout: layout.flatten(),
            }
        },
    )
}

fn layout() -> impl Strategy<Value = PciLayout> {
    let bars = vec((any::<u8>(), any::<u64>()), 0..=MAX_BARS).prop_map(|bars| {
        let bars = bars.into_iter().enumerate();
        bars.map(|(n, (kind, size))| PciBar { number: n as u8, kind, size }).collect()
    });
    let capability = any::<[u8; 2]>().prop_map(|[id, at]| PciCapability { id, at });
    let extended = (any::<[u16; 2]>(), any::<u8>())
        .prop_map(|([id, at], version)| PciExtended { id, version, at });
    let msi = (any::<u32>(), any::<[bool; 2]>())
        .prop_map(|(vectors, [wide, maskable])| MsiLayout { vectors, wide, maskable });
    let msix = any::<[u32; 3]>().prop_map(|[vectors, table, pending]| MsixLayout {
        vectors,
        table,
        pending,
    });
    let lists = (vec(capability, 0..=MAX_CAPABILITIES), vec(extended, 0..=MAX_EXTENDED));
    (bars, lists, any::<bool>(), of(msi), of(msix)).prop_map(
        |(bars, (capabilities, extended), intx, msi, msix)| PciLayout {
            bars,
            capabilities,
            extended,
            intx,
            msi,
            msix,
        },
    )
}

fn section(section: u32) -> impl Strategy<Value = SectionInfo> {
    let order =
        prop_oneof![Just(SectionOrder::BeforeDevices), Just(SectionOrder::AfterDevices)];
    (name(), any::<u32>(), order).prop_map(move |(name, version, order)| SectionInfo {
        section,
        name,
        version,
        order,
    })
}

fn memory_layout() -> impl Strategy<Value = Vec<MemoryRegion>> {
    vec((0..50u64, 1..50u64), 0..8).prop_map(|regions| {
        let mut gpa = 0;
        let place = |(gap, pages): (u64, u64)| {
            let region = MemoryRegion {
                gpa: gpa + gap * 4096,
                length: pages * 4096,
                page_size: 4096,
            };
            gpa = region.gpa + region.length;
            region
        };
        regions.into_iter().map(place).collect()
    })
}

fn run_state() -> impl Strategy<Value = RunState> {
    prop_oneof![Just(RunState::Running), Just(RunState::Paused)]
}

fn hello() -> impl Strategy<Value = Hello> {
    let start = (text(), any::<[u8; 16]>(), of(text()), 1..=64u16, run_state());
    let sections = prop_oneof![
        Just(vec![]),
        (section(0), section(1)).prop_map(|(first, second)| vec![first, second]),
    ];
    let lists = (memory_layout(), vec(identity(), 0..5), sections);
    (start, lists, of(any::<u64>())).prop_map(|(start, lists, expected_bytes)| {
        let (software, store, source_uri, data_channels, run_state) = start;
        let (memory, devices, sections) = lists;
        Hello {
            software,
            store: StoreId(store),
            source_uri,
            data_channels,
            run_state,
            memory,
            devices,
            sections,
            expected_bytes,
        }
    })
}

fn accept() -> impl Strategy<Value = Accept> {
    let device = (any::<bool>(), of(any::<u64>())).prop_map(
        |(validated_at_start, max_transaction)| AcceptedDevice {
            validated_at_start,
            max_transaction,
        },
    );
    (any::<[u8; 16]>(), any::<[u8; 8]>(), vec(device, 0..=64), of(any::<u64>())).prop_map(
        |(store, token, devices, prepare_us)| Accept {
            store: StoreId(store),
            token: Token(token),
            devices,
            prepare_us,
        },
    )
}

fn prepared() -> impl Strategy<Value = Prepared> {
    let device = any::<(u64, u32, u64, bool)>().prop_map(
        |(bytes, crc, load_us, validated_at_start)| LoadedDevice {
            bytes,
            crc,
            load_us,
            validated_at_start,
        },
    );
    (vec(device, 0..=64), of(any::<u64>()))
        .prop_map(|(devices, verify_us)| Prepared { devices, verify_us })
}

fn running() -> impl Strategy<Value = Running> {
    let device = any::<u64>().prop_map(|start_us| StartedDevice { start_us });
    (vec(device, 0..=64), of(any::<u64>()))
        .prop_map(|(devices, guest_running_us)| Running { devices, guest_running_us })
}

fn refuse() -> impl Strategy<Value = Refuse> {
    let reason = (any::<u16>(), text())
        .prop_map(|(code, text)| Refusal { code: RefusalCode(code), text });
    vec(reason, 1..=64).prop_map(|reasons| Refuse { reasons })
}

fn reason() -> impl Strategy<Value = Reason> {
    (any::<u16>(), text())
        .prop_map(|(code, text)| Reason { code: FailureCode(code), text })
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        hello().prop_map(Message::Hello),
        accept().prop_map(Message::Accept),
        refuse().prop_map(Message::Refuse),
        any::<u32>().prop_map(|round| Message::RoundApplied { round }),
        run_state().prop_map(Message::RunState),
        Just(Message::SwitchoverRequest),
        Just(Message::SwitchoverReady),
        text().prop_map(|reason| Message::NotReady { reason }),
        prepared().prop_map(Message::Prepared),
        Just(Message::Commit),
        running().prop_map(Message::Running),
        Just(Message::Returned),
        (0..64u32, text())
            .prop_map(|(device, text)| Message::NotStarted(NotStarted { device, text })),
        reason().prop_map(Message::Abort),
        reason().prop_map(Message::Failed),
    ]
}

/// Steps over addresses: a gap, a length, zero or data.
fn runs() -> impl Strategy<Value = Vec<(u64, u32, bool)>> {
    vec((0..3u64, 1..6u32, any::<bool>()), 0..60)
}

fn read<T>(role: Role, bytes: &[u8], check: impl FnOnce(Frame<'_>) -> T) -> T {
    let mut decoder = Decoder::new(role, PageSize::KIB_4);
    let (header, payload) = split(bytes);
    let header = decoder.header(header).unwrap();
    check(decoder.payload(&header, payload).unwrap())
}

fn phase() -> impl Strategy<Value = Phase> {
    prop_oneof![Just(Phase::PreCopy), Just(Phase::StopCopy)]
}

proptest! {
    #[test]
    fn preambles(
        role in role(),
        numbers in any::<(u8, u16, u64)>(),
        migration in any::<[u8; 16]>(),
        shift in 12..=20u32,
    ) {
        let preamble = Preamble {
            byte_order: ByteOrder(numbers.0),
            architecture: Architecture(numbers.1),
            page_size: PageSize::new(1 << shift).unwrap(),
            required: Features::NONE,
            optional: Features(numbers.2),
            migration: MigrationId(migration),
            role,
        };
        prop_assert_eq!(Preamble::decode(&preamble.encode()), Ok(preamble));
    }

    #[test]
    fn messages(message in message()) {
        let frame = Encoder::new(Role::Control).message(&message).unwrap();
        read(Role::Control, &frame, |read| {
            prop_assert_eq!(read, Frame::Message(message));
            Ok(())
        })?;
    }

    #[test]
    fn memory(steps in runs()) {
        let mut table = RunTable::new(PageSize::KIB_4);
        let (mut next, mut data, mut expected) = (0, vec![], vec![]);
        for (gap, pages, zero) in steps {
            let gpa = next + gap * 4096;
            next = gpa + u64::from(pages) * 4096;
            let kind = if zero { RunKind::Zero } else { RunKind::Data };
            let place = table.push(gpa, pages, kind).unwrap();
            prop_assert_eq!(place.start, data.len());
            if !zero {
                data.resize(data.len() + pages as usize * 4096, expected.len() as u8);
            }
            prop_assert_eq!(place.end, data.len());
            for page in 0..u64::from(pages) {
                expected.push((gpa + page * 4096, zero, expected.len()));
            }
        }
        let header = Encoder::new(Role::File).memory(&table, &data).unwrap();
        let frame = [&header[..], table.prefix(), &data].concat();
        read(Role::File, &frame, |read| {
            let Frame::Memory(runs) = read else { panic!("{read:?}") };
            let mut pages = vec![];
            let mut bytes = vec![];
            for (run, content) in runs.iter() {
                for page in 0..u64::from(run.pages) {
                    let zero = run.kind == RunKind::Zero;
                    pages.push((run.gpa + page * 4096, zero, pages.len()));
                }
                if let Content::Data(run_bytes) = content {
                    prop_assert_eq!(run_bytes.len(), run.pages as usize * 4096);
                    bytes.extend_from_slice(run_bytes);
                }
            }
            prop_assert_eq!(runs.runs().pages(), expected.len() as u64);
            prop_assert_eq!(pages, expected);
            prop_assert!(bytes == data);
            Ok(())
        })?;
    }

    #[test]
    fn devices(
        identity in identity(),
        numbers in (0..64u32, any::<u32>(), 0..u64::MAX - 3000, any::<u32>()),
        optional in of(any::<u64>()),
        phase in phase(),
        ends_transaction in any::<bool>(),
        bytes in vec(any::<u8>(), 0..2000),
    ) {
        let (device, attempt, offset, crc) = numbers;
        let mut encoder = Encoder::new(Role::File);
        let begin = DeviceBegin { device, attempt, identity, expected_bytes: optional };
        let data = DeviceData { device, phase, offset, ends_transaction, bytes: &bytes };
        let end = DeviceEnd { device, length: offset, crc };
        let record = DeviceRecord { device, schema: crc, bytes: &bytes };
        let frames = [
            (encoder.device_begin(&begin).unwrap(), Frame::DeviceBegin(begin)),
            (
                [&encoder.device_data(&data).unwrap()[..], &bytes].concat(),
                Frame::DeviceData(data),
            ),
            (encoder.device_end(&end).unwrap(), Frame::DeviceEnd(end)),
            (
                [&encoder.config(&record).unwrap()[..], &bytes].concat(),
                Frame::Config(record),
            ),
            (
                [&encoder.interrupts(&record).unwrap()[..], &bytes].concat(),
                Frame::Interrupts(record),
            ),
        ];
        let mut decoder = Decoder::new(Role::File, PageSize::KIB_4);
        for (frame, expected) in frames {
            let (header, payload) = split(&frame);
            let header = decoder.header(header).unwrap();
            prop_assert_eq!(decoder.payload(&header, payload).unwrap(), expected);
        }
        prop_assert_eq!(decoder.digest(), encoder.digest());
    }

    #[test]
    fn sections(
        info in section(63),
        offset in any::<u64>(),
        last in any::<bool>(),
        bytes in vec(any::<u8>(), 0..2000),
    ) {
        let frame = Encoder::new(Role::File).section_begin(&info).unwrap();
        read(Role::File, &frame, |read| {
            prop_assert_eq!(read, Frame::SectionBegin(info));
            Ok(())
        })?;
        let data = SectionData { section: 63, last, offset, bytes: &bytes };
        let head = Encoder::new(Role::File).section_data(&data).unwrap();
        read(Role::File, &[&head[..], &bytes].concat(), |read| {
            prop_assert_eq!(read, Frame::SectionData(data));
            Ok(())
        })?;
    }

    #[test]
    fn any_bytes_are_taken_or_refused_and_never_harm(
        kind in prop_oneof![0..0x42u16, any::<u16>()],
        flags in any::<u16>(),
        payload in vec(any::<u8>(), 0..300),
    ) {
        let mut header = Header::decode(&[0; Header::SIZE]);
        header.kind = crate::wire::FrameType(kind);
        header.flags = crate::wire::Flags(flags);
        header.length = payload.len() as u32;
        let mut crc = header.start_crc();
        crc.add(&payload);
        header.crc = crc.value();
        let mut decoder = Decoder::new(Role::File, PageSize::KIB_4);
        if let Ok(header) = decoder.header(&header.encode()) {
            let _ = decoder.payload(&header, &payload);
        }
    }
}
