//! Frames that arrive whole and say what cannot be: run tables, device frames, sections,
//! fields and messages.

use crate::hostile::take_payload;
use crate::samples;
use crate::wire::device::{DeviceData, DeviceError};
use crate::wire::memory::{MAX_RUNS, MemoryRuns, RunError, RunKind, RunTable};
use crate::wire::message::{Hello, MessageError};
use crate::wire::preamble::{PageSize, Role};
use crate::wire::section::{self, Assembler, SectionData, SectionError};
use crate::wire::tlv::{self, Fields, TlvError, Writer};
use crate::wire::{Encoder, FrameError, FrameType, Message};

/// A `MEMORY_RUNS` payload, unchecked.
fn table(runs: &[(u64, u32, u16, u16)], data: &[u8]) -> Vec<u8> {
    let mut bytes = (runs.len() as u32).to_le_bytes().to_vec();
    bytes.extend((data.len() as u32).to_le_bytes());
    for (gpa, pages, kind, reserved) in runs {
        bytes.extend(gpa.to_le_bytes());
        bytes.extend(pages.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(reserved.to_le_bytes());
    }
    bytes.extend(data);
    bytes
}

#[test]
fn runs_that_would_write_where_they_must_not_are_refused() {
    let page = [5; 4096];
    let decode = |runs: &[_], data: &[u8]| {
        MemoryRuns::decode(&table(runs, data), PageSize::KIB_4).map(|_| ())
    };
    decode(&[(0x1000, 1, 1, 0), (0x2000, 9, 2, 0)], &page).unwrap();
    decode(&[], &[]).unwrap();

    let gpa = 0x1000;
    assert_eq!(decode(&[(gpa, 0, 2, 0)], &[]), Err(RunError::Empty { gpa }));
    let overflow = RunError::Overflow { gpa: u64::MAX - 4095, pages: 2 };
    assert_eq!(decode(&[(u64::MAX - 4095, 2, 2, 0)], &[]), Err(overflow));
    let unaligned = RunError::Unaligned { gpa: 0x1800, page_size: 4096 };
    assert_eq!(decode(&[(0x1800, 1, 1, 0)], &page), Err(unaligned));
    for kind in [0, 3, 0x101] {
        assert_eq!(
            decode(&[(gpa, 1, kind, 0)], &page),
            Err(RunError::Kind { gpa, kind })
        );
    }
    assert_eq!(decode(&[(gpa, 1, 1, 1)], &page), Err(RunError::Kind { gpa, kind: 1 }));
    let order = RunError::Order { gpa, end: 0x3000 };
    assert_eq!(decode(&[(gpa, 2, 2, 0), (gpa, 1, 1, 0)], &page), Err(order));
    let short = RunError::DataLength { expected: 8192, found: 4096 };
    assert_eq!(decode(&[(gpa, 2, 1, 0)], &page), Err(short));
    let long = RunError::DataLength { expected: 0, found: 4096 };
    assert_eq!(decode(&[(gpa, 1, 2, 0)], &page), Err(long));
    assert_eq!(decode(&[(gpa, u32::MAX, 1, 0)], &page), Err(RunError::TooMuchData));
}

#[test]
fn a_run_table_with_an_absurd_count_is_refused() {
    for (count, data) in [(1, 0), (MAX_RUNS, 0), (0, 1), (0, 1 << 20)] {
        let payload = [u32::to_le_bytes(count), u32::to_le_bytes(data)].concat();
        let refused = MemoryRuns::decode(&payload, PageSize::KIB_4);
        assert!(matches!(refused, Err(RunError::Size { .. })), "{count} {data}");
    }
    for (count, error) in
        [(MAX_RUNS + 1, RunError::TooManyRuns), (u32::MAX, RunError::TooManyRuns)]
    {
        let payload = [count.to_le_bytes(), [0; 4]].concat();
        assert_eq!(MemoryRuns::decode(&payload, PageSize::KIB_4), Err(error));
    }
    let payload = [[0; 4], u32::MAX.to_le_bytes()].concat();
    assert_eq!(MemoryRuns::decode(&payload, PageSize::KIB_4), Err(RunError::TooMuchData));
}

#[test]
fn a_sender_cannot_overfill_a_table() {
    let mut table = RunTable::new(PageSize::KIB_4);
    for page in 0..u64::from(MAX_RUNS) {
        table.push(page * 0x2000, 1, RunKind::Zero).unwrap();
    }
    let full = table.push(1 << 40, 1, RunKind::Zero);
    assert_eq!(full, Err(RunError::TooManyRuns));
    // The last run still grows.
    table.push(u64::from(MAX_RUNS) * 0x2000 - 0x1000, 1, RunKind::Zero).unwrap();

    table.clear();
    assert!(table.is_empty() && table.room() == 1 << 20);
    assert_eq!(table.push(0, 256, RunKind::Data).unwrap(), 0..1 << 20);
    let before = table.prefix().to_vec();
    assert_eq!(table.push(1 << 20, 1, RunKind::Data), Err(RunError::TooMuchData));
    assert_eq!(table.prefix(), before);
    let order = RunError::Order { gpa: 0, end: 1 << 20 };
    assert_eq!(table.push(0, 1, RunKind::Zero), Err(order));
    let mut encoder = Encoder::new(Role::File);
    let refused = encoder.memory(&table, &[0; 4096]);
    assert!(matches!(refused, Err(FrameError::Memory(RunError::DataLength { .. }))));
    assert_eq!(encoder.digest().frames, 0);
}

#[test]
fn every_device_frame_with_a_wrong_field_is_refused() {
    let mut encoder = Encoder::new(Role::File);
    let data = |device, offset| DeviceData {
        device,
        phase: crate::wire::device::Phase::PreCopy,
        offset,
        ends_transaction: false,
        bytes: samples::BYTES,
    };
    let error = |r: Result<String, FrameError>| match r {
        Err(FrameError::Device(error)) => error,
        other => panic!("{other:?}"),
    };
    // By the sender, and by the receiver.
    encoder.device_data(&data(64, 0)).unwrap_err();
    encoder.device_data(&data(0, u64::MAX)).unwrap_err();
    encoder
        .device_end(&crate::wire::device::DeviceEnd {
            device: 64,
            ..samples::device_end()
        })
        .unwrap_err();
    let mut payload = vec![0; 20];
    payload[4] = 3;
    let refused = error(take_payload(FrameType::DEVICE_DATA, &payload));
    assert_eq!(refused, DeviceError::Phase { device: 0, phase: 3 });
    payload[4] = 1;
    take_payload(FrameType::DEVICE_DATA, &payload).unwrap();
    payload[7] = 1;
    let refused = error(take_payload(FrameType::DEVICE_DATA, &payload));
    assert_eq!(refused, DeviceError::Malformed { length: 20 });
    payload[7] = 0;
    payload[8..16].fill(0xff);
    let refused = error(take_payload(FrameType::DEVICE_DATA, &payload));
    assert_eq!(refused, DeviceError::Offset { device: 0, offset: u64::MAX });
    payload[0] = 64;
    let refused = error(take_payload(FrameType::DEVICE_DATA, &payload));
    assert_eq!(refused, DeviceError::Device(64));

    for kind in [FrameType::CONFIG, FrameType::INTERRUPTS] {
        let refused = error(take_payload(kind, &[0; 7]));
        assert_eq!(refused, DeviceError::Malformed { length: 7 });
        let refused = error(take_payload(kind, &[0xff; 8]));
        assert_eq!(refused, DeviceError::Device(u32::MAX));
    }
    for payload in [
        &[0; 23][..],
        &[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ] {
        let refused = error(take_payload(FrameType::DEVICE_END, payload));
        assert_eq!(refused, DeviceError::Malformed { length: payload.len() });
    }
}

#[test]
fn a_section_longer_than_a_frame_arrives_whole_and_nothing_else_does() {
    let bytes: Vec<u8> = (0..(5 << 19) + 3).map(|i| (i % 251) as u8).collect();
    let info = section::SectionInfo {
        section: 0,
        name: "cpus".into(),
        version: 1,
        order: section::SectionOrder::AfterDevices,
    };
    let pieces: Vec<_> = section::pieces(0, &bytes).collect();
    assert_eq!(pieces.len(), 3);
    let mut whole = Assembler::new(info.clone(), u64::MAX);
    for piece in &pieces {
        assert_eq!(whole.push(piece).unwrap(), piece.last);
    }
    assert_eq!(whole.push(&pieces[2]), Err(SectionError::AfterLast { section: 0 }));
    assert_eq!(whole.finish().unwrap(), (info.clone(), bytes.clone()));

    let mut broken = Assembler::new(info.clone(), 2 << 20);
    let offset = SectionError::Offset { section: 0, expected: 0, found: 1 << 20 };
    assert_eq!(broken.push(&pieces[1]), Err(offset));
    let other = SectionData { section: 1, ..pieces[0] };
    let refused = broken.push(&other);
    assert_eq!(refused, Err(SectionError::Other { expected: 0, found: 1 }));
    broken.push(&pieces[0]).unwrap();
    broken.push(&pieces[1]).unwrap();
    let long = SectionError::TooLong { section: 0, limit: 2 << 20 };
    assert_eq!(broken.push(&pieces[2]), Err(long));
    assert_eq!(broken.finish(), None);

    let empty: Vec<_> = section::pieces(7, &[]).collect();
    assert_eq!(empty, [SectionData { section: 7, last: true, offset: 0, bytes: &[] }]);
    for payload in [&[0; 15][..], &[0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
        let refused = take_payload(FrameType::SECTION_DATA, payload);
        assert!(matches!(
            refused,
            Err(FrameError::Section(SectionError::Malformed { .. }))
        ));
    }
}

#[test]
fn every_length_in_every_message_may_be_absurd() {
    for (name, message) in samples::messages() {
        let good = message.encode().unwrap();
        for at in 0..good.len() {
            // As a length, count, tag, kind, number or text: never a panic, and what
            // is taken is something that can be sent again.
            for absurd in [[0xff; 4], [0, 0, 0, 0x80], [0, 0, 0, 0], [0xff, 0xff, 0, 0]] {
                let mut bytes = good.clone();
                let end = bytes.len().min(at + 4);
                bytes[at..end].copy_from_slice(&absurd[..end - at]);
                if let Ok(taken) = Message::decode(&bytes) {
                    let again = Message::decode(&taken.encode().unwrap());
                    assert_eq!(again.unwrap(), taken, "{name} at {at}");
                }
            }
        }
        for length in 0..good.len() {
            // Optional fields at the end can be cut off, but not unnoticed.
            if let Ok(taken) = Message::decode(&good[..length]) {
                assert_ne!(taken, message, "{name} cut to {length}");
            }
        }
    }
}

fn invalid(message: &Message) -> &'static str {
    match message.encode() {
        Err(MessageError::Invalid { rule, .. }) => rule,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_hello_that_contradicts_itself_is_refused() {
    let hello = samples::hello;
    let mut bad = hello();
    bad.memory[1].gpa = 0x9_0000;
    assert!(invalid(&Message::Hello(bad)).contains("overlap"));
    let mut bad = hello();
    bad.memory.reverse();
    assert!(invalid(&Message::Hello(bad)).contains("ascend"));
    let mut bad = hello();
    bad.memory[0].length = 0;
    assert!(invalid(&Message::Hello(bad)).contains("empty"));
    let mut bad = hello();
    bad.memory[1].gpa = u64::MAX - 4095;
    assert!(invalid(&Message::Hello(bad)).contains("address space"));
    let mut bad = hello();
    bad.memory[1].gpa += 1;
    assert!(invalid(&Message::Hello(bad)).contains("page"));
    let mut bad = hello();
    bad.memory[1].page_size = 12288;
    assert!(invalid(&Message::Hello(bad)).contains("power of two"));
    for channels in [0, 65] {
        let bad = Hello { data_channels: channels, ..hello() };
        assert!(invalid(&Message::Hello(bad)).contains("64 data connections"));
    }
    let mut bad = hello();
    bad.devices[0].pci = None;
    assert!(invalid(&Message::Hello(bad)).contains("PCI"));
    let mut bad = hello();
    bad.sections.swap(0, 1);
    assert!(invalid(&Message::Hello(bad)).contains("index"));
    let mut bad = hello();
    bad.devices = vec![samples::identity(); 65];
    let refused = Message::Hello(bad).encode();
    let source = TlvError::TooManyItems { tag: 7, count: 65, limit: 64 };
    assert_eq!(refused, Err(MessageError::Field { record: "hello", source }));
}

#[test]
fn text_from_a_peer_cannot_steer_a_terminal() {
    let reason = |text: &str| Message::NotReady { reason: text.into() };
    for text in ["\x1b[2J", "two\nlines", "\u{9b}31m", "nul\0"] {
        reason(text).encode().unwrap_err();
        let plain = tlv::plain_text(text, 1024);
        let payload = reason(&plain).encode().unwrap();
        assert_eq!(Message::decode(&payload), Ok(reason(&plain)));
    }
    reason(&"x".repeat(1024)).encode().unwrap();
    reason(&"x".repeat(1025)).encode().unwrap_err();
    let long = tlv::plain_text(&"\u{20ac}".repeat(1000), 1024);
    assert_eq!(long.len(), 1023);

    let mut payload = reason("bad").encode().unwrap();
    *payload.last_mut().unwrap() = 0x80;
    Message::decode(&payload).unwrap_err();
}

#[test]
fn a_field_that_is_doubled_moved_or_critical_is_refused() {
    let field = |tag: u16, value: &[u8]| {
        let mut writer = Writer::new();
        writer.bytes(tag, value);
        writer.finish()
    };
    let parse = |fields: &[Vec<u8>]| Fields::parse(&fields.concat(), &[1, 2]).map(|_| ());
    let (one, two) = (field(1, b"a"), field(2, b"b"));
    parse(&[one.clone(), two.clone(), field(0x7fff, b"later")]).unwrap();
    let order = |tag, previous| Err(TlvError::Order { tag, previous });
    assert_eq!(parse(&[two.clone(), one.clone()]), order(1, 2));
    assert_eq!(parse(&[one.clone(), one.clone()]), order(1, 1));
    assert_eq!(parse(&[one.clone(), field(tlv::CRITICAL | 1, b"a")]), order(1, 1));
    parse(&[field(tlv::CRITICAL | 1, b"a")]).unwrap();
    let unknown = parse(&[one, field(tlv::CRITICAL | 3, b"a")]);
    assert_eq!(unknown, Err(TlvError::UnknownCritical { tag: 3 }));
    let many: Vec<_> = (0..65).map(|tag| field(tag, b"")).collect();
    parse(&many[..64]).unwrap();
    assert_eq!(parse(&many), Err(TlvError::TooManyFields));
}

#[test]
fn a_message_with_a_later_version_s_fields_is_still_read() {
    let mut payload = Message::RoundApplied { round: 5 }.encode().unwrap();
    let mut later = Writer::new();
    later.string(900, "from the future", 100).unwrap();
    payload.extend(later.finish());
    assert_eq!(Message::decode(&payload), Ok(Message::RoundApplied { round: 5 }));
}

#[test]
fn a_list_that_lies_about_its_length_is_refused() {
    let list = |count: u32, rest: &[u8]| {
        let mut writer = Writer::new();
        writer.bytes(1, &[&count.to_le_bytes()[..], rest].concat());
        writer.finish()
    };
    let read = |bytes: &[u8]| {
        let list = Fields::parse(bytes, &[1]).unwrap().list(1, 2)?;
        Ok(list.map(|list| list.map(<[u8]>::len).collect::<Vec<_>>()))
    };
    assert_eq!(read(&list(2, &[1, 0, 0, 0, 9, 0, 0, 0, 0])), Ok(Some(vec![1, 0])));
    assert_eq!(read(&[]), Ok(None));
    assert_eq!(read(&list(1, &[2, 0, 0, 0, 9])), Err(TlvError::Truncated { tag: 1 }));
    assert_eq!(read(&list(1, &[0xff; 8])), Err(TlvError::Truncated { tag: 1 }));
    assert_eq!(read(&list(2, &[])), Err(TlvError::Truncated { tag: 1 }));
    assert_eq!(read(&list(0, &[0])), Err(TlvError::Trailing { tag: 1 }));
    let many = TlvError::TooManyItems { tag: 1, count: 3, limit: 2 };
    assert_eq!(read(&list(3, &[])), Err(many));
    let absurd = read(&list(u32::MAX, &[]));
    assert!(matches!(absurd, Err(TlvError::TooManyItems { .. })));
}

#[test]
fn a_bar_that_no_function_has_is_compared_by_nobody() {
    let hello = |numbers: [u8; 2]| {
        let mut device = samples::identity();
        let mut layout = samples::longest_layout();
        layout.bars.truncate(2);
        for (bar, number) in layout.bars.iter_mut().zip(numbers) {
            bar.number = number;
        }
        device.layout = Some(layout);
        let hello = Hello { devices: vec![device], ..samples::hello() };
        Message::Hello(hello).encode()
    };
    // What cannot be written is made of what can.
    let bytes = hello([0x5, 0x6]).unwrap();
    let bar = [5, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 6];
    let at = bytes.windows(11).position(|window| window == bar).unwrap();
    Message::decode(&bytes).unwrap();
    for (numbers, rule) in
        [([5, 7], "no function"), ([6, 5], "do not ascend"), ([5, 5], "do not ascend")]
    {
        let mut bytes = bytes.clone();
        (bytes[at], bytes[at + 10]) = (numbers[0], numbers[1]);
        let error = Message::decode(&bytes).unwrap_err().to_string();
        assert!(error.contains(rule), "{error}");
        assert!(hello(numbers).is_err());
    }
}

#[test]
fn the_longest_messages_fit_their_frame() {
    let name = "n".repeat(256);
    let text = "t".repeat(1024);
    let mut hello = samples::hello();
    hello.software = name.clone();
    hello.source_uri = Some(text.clone());
    let mut device = samples::identity();
    device.slot = name.clone();
    device.model =
        Some(crate::wire::message::Model { name: name.clone(), data_version: 1 });
    device.layout = Some(samples::longest_layout());
    hello.devices = vec![device.clone(); 64];
    hello.memory = (0..64)
        .map(|i| crate::wire::message::MemoryRegion {
            gpa: i << 30,
            length: 1 << 30,
            page_size: 1 << 30,
        })
        .collect();
    hello.sections = (0..64)
        .map(|section| section::SectionInfo {
            section,
            name: name.clone(),
            version: u32::MAX,
            order: section::SectionOrder::BeforeDevices,
        })
        .collect();
    let mut encoder = Encoder::new(Role::File);
    encoder.message(&Message::Hello(hello.clone())).unwrap();
    encoder.section_begin(&hello.sections[63]).unwrap();
    let begin = crate::wire::device::DeviceBegin {
        device: 63,
        attempt: u32::MAX,
        identity: device,
        expected_bytes: Some(u64::MAX),
    };
    encoder.device_begin(&begin).unwrap();
    let code = crate::wire::message::RefusalCode::OTHER;
    let reasons = vec![crate::wire::message::Refusal { code, text }; 64];
    let refuse = crate::wire::message::Refuse { reasons };
    encoder.message(&Message::Refuse(refuse)).unwrap();
}
