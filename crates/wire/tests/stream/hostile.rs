//! What a broken link or a malicious peer can send.

use crate::samples::{self, read_stream, split};
use crate::wire::device::{DeviceData, DeviceError};
use crate::wire::memory::{MAX_RUNS, MemoryRuns, RunError, RunKind, RunTable};
use crate::wire::message::{MessageError, MessageKind};
use crate::wire::preamble::{DataChannel, PageSize, PreambleError, Role, Token};
use crate::wire::section::{self, Assembler, SectionData, SectionError};
use crate::wire::tlv::{self, Fields, TlvError, Writer};
use crate::wire::{
    ChannelDigest, Crc, Decoder, Encoder, Flags, Frame, FrameError, FrameType, Header,
    Message, Preamble,
};

/// One frame with a correct checksum, whatever is in it.
fn frame(
    kind: FrameType,
    flags: Flags,
    channel: u32,
    sequence: u64,
    payload: &[u8],
) -> Vec<u8> {
    let length = payload.len() as u32;
    let mut header = Header { kind, flags, channel, sequence, length, crc: 0 };
    let mut crc = header.start_crc();
    crc.add(payload);
    header.crc = crc.value();
    [&header.encode()[..], payload].concat()
}

/// What a fresh decoder says to a single frame; owned, so that callers can compare.
fn take(role: Role, bytes: &[u8]) -> Result<String, FrameError> {
    let mut decoder = Decoder::new(role, PageSize::KIB_4);
    let (header, payload) = split(bytes);
    let header = decoder.header(header)?;
    decoder.payload(&header, payload).map(|frame| format!("{frame:?}"))
}

fn take_payload(kind: FrameType, payload: &[u8]) -> Result<String, FrameError> {
    take(Role::File, &frame(kind, Flags::CRITICAL, 0, 0, payload))
}

#[test]
fn a_sample_stream_is_read_whole() {
    assert_eq!(read_stream(&samples::file()).unwrap().len(), 13);
}

#[test]
fn a_stream_cut_anywhere_is_never_complete() {
    let file = samples::file();
    for length in 0..file.len() {
        read_stream(&file[..length]).unwrap_err();
    }
}

#[test]
fn a_flipped_bit_anywhere_is_never_accepted() {
    let mut file = samples::file();
    let whole = file.len();
    for at in 0..whole {
        let mask = 1 << (at % 8);
        file[at] ^= mask;
        assert!(read_stream(&file).is_err(), "byte {at}");
        file[at] ^= mask;
    }
    for at in 0..Preamble::SIZE {
        for bit in 0..8 {
            file[at] ^= 1 << bit;
            assert!(read_stream(&file).is_err(), "preamble byte {at} bit {bit}");
            file[at] ^= 1 << bit;
        }
    }
}

#[test]
fn an_absurd_length_is_refused_before_anyone_makes_room() {
    for number in 0..=0x100 {
        let kind = FrameType(number);
        for length in [kind.ceiling() + 1, 1 << 31, u32::MAX] {
            let header = Header {
                kind,
                flags: Flags::NONE,
                channel: 0,
                sequence: 0,
                length,
                crc: 0,
            };
            let refused =
                Decoder::new(Role::File, PageSize::KIB_4).header(&header.encode());
            assert!(matches!(refused, Err(FrameError::TooLong { .. })), "{kind}");
        }
    }
}

#[test]
fn a_frame_lost_doubled_or_moved_is_noticed() {
    let mut encoder = Encoder::new(Role::Control);
    let frames: Vec<_> = (0..3)
        .map(|round| encoder.message(&Message::RoundApplied { round }).unwrap())
        .collect();
    let read = |order: &[usize]| -> Result<(), FrameError> {
        let mut decoder = Decoder::new(Role::Control, PageSize::KIB_4);
        for &place in order {
            let (header, payload) = split(&frames[place]);
            let header = decoder.header(header)?;
            decoder.payload(&header, payload)?;
        }
        Ok(())
    };
    read(&[0, 1, 2]).unwrap();
    for order in [[0, 2, 1], [0, 0, 1], [1, 0, 2]] {
        assert!(matches!(read(&order), Err(FrameError::Sequence { .. })), "{order:?}");
    }
}

#[test]
fn a_frame_of_another_connection_is_refused() {
    let channel = DataChannel::new(4).unwrap();
    let other = Role::Data { channel, token: Token::NONE };
    let round = Encoder::new(samples::data_role()).round_end(0).unwrap();
    let refused = take(other, &round);
    assert!(matches!(refused, Err(FrameError::Channel { expected: 4, found: 3, .. })));

    let message = Encoder::new(other).message(&Message::Commit).unwrap();
    assert!(matches!(take(other, &message), Err(FrameError::Misplaced { .. })));
    let round = Encoder::new(Role::Control).round_end(0).unwrap();
    assert!(matches!(take(Role::Control, &round), Err(FrameError::Misplaced { .. })));
}

#[test]
fn an_unknown_frame_is_skipped_unless_it_is_critical() {
    let kind = FrameType(0x0999);
    let frame = |flags| frame(kind, flags, 0, 0, b"from the future");
    assert_eq!(
        take(Role::Control, &frame(Flags(0xff00))).unwrap(),
        "Skipped(FrameType(2457))"
    );
    let refused = take(Role::Control, &frame(Flags::CRITICAL));
    assert_eq!(refused, Err(FrameError::UnknownCritical { kind }));
    let text = refused.unwrap_err().to_string();
    assert_eq!(text, "frame type 0x0999 is critical and not known");
}

#[test]
fn an_unknown_message_is_skipped_unless_it_is_critical() {
    let payload = [MessageKind::QUERY.0.to_le_bytes(), [0, 0]].concat();
    let frame = |flags| frame(FrameType::CONTROL, flags, 0, 0, &payload);
    let skipped = take(Role::Control, &frame(Flags::NONE));
    assert_eq!(skipped.unwrap(), "Skipped(FrameType(1))");
    let unknown = MessageError::UnknownKind(MessageKind::QUERY);
    let refused = take(Role::Control, &frame(Flags::CRITICAL));
    assert_eq!(refused, Err(FrameError::Message(unknown)));
}

#[test]
fn a_flag_that_changes_the_meaning_is_not_ignored() {
    let round = |flags| frame(FrameType::ROUND_END, Flags(flags), 0, 0, &[0; 8]);
    take(Role::File, &round(0x8001)).unwrap();
    for unknown in [0x02, 0x04, 0x80] {
        let kind = FrameType::ROUND_END;
        let refused = take(Role::File, &round(unknown | 1));
        assert_eq!(refused, Err(FrameError::UnknownFlags { kind, unknown }));
    }
}

#[test]
fn a_payload_of_another_length_than_announced_is_refused() {
    let round = Encoder::new(Role::File).round_end(0).unwrap();
    let mut decoder = Decoder::new(Role::File, PageSize::KIB_4);
    let header = decoder.header(split(&round).0).unwrap();
    let refused = decoder.payload(&header, &[0; 9]);
    assert!(matches!(refused, Err(FrameError::Length { expected: 8, found: 9, .. })));
}

#[test]
fn a_channel_that_ends_with_another_digest_is_not_complete() {
    let mut encoder = Encoder::new(samples::data_role());
    let round = encoder.round_end(0).unwrap();
    let good = encoder.channel_end().unwrap();
    let read = |end: &[u8]| {
        let mut decoder = Decoder::new(samples::data_role(), PageSize::KIB_4);
        for bytes in [&round, end] {
            let (header, payload) = split(bytes);
            let header = decoder.header(header)?;
            decoder.payload(&header, payload)?;
        }
        Ok(decoder)
    };
    let mut decoder = read(&good).unwrap();
    assert!(decoder.ended());
    let next = Header { sequence: 2, ..Header::decode(split(&round).0) }.encode();
    let refused = decoder.header(&next);
    assert_eq!(refused, Err(FrameError::AfterEnd { kind: FrameType::ROUND_END }));

    for at in 0..20 {
        let mut payload = split(&good).1.to_vec();
        payload[at] ^= 0x10;
        let end = frame(FrameType::CHANNEL_END, Flags::CRITICAL, 3, 1, &payload);
        let refused: Result<Decoder, FrameError> = read(&end);
        assert!(matches!(refused, Err(FrameError::Digest { .. })), "byte {at}");
    }
}

#[test]
fn bulk_that_was_read_in_place_is_verified_by_its_checksum() {
    let (table, pages) = samples::memory();
    let header = Encoder::new(Role::File).memory(&table, &pages).unwrap();
    let mut decoder = Decoder::new(Role::File, PageSize::KIB_4);
    let header = decoder.header(&header).unwrap();
    let mut crc = header.start_crc();
    crc.add(table.prefix());
    let broken = crc;
    pages.chunks(100).for_each(|piece| crc.add(piece));
    assert!(matches!(decoder.verify(&header, broken), Err(FrameError::Checksum { .. })));
    assert_eq!(decoder.digest(), ChannelDigest::default());
    decoder.verify(&header, crc).unwrap();
    assert_eq!(decoder.digest().frames, 1);
}

#[test]
fn every_preamble_that_cannot_be_gone_on_from_says_why() {
    // Changes a good preamble, and makes its checksum good again.
    let refused = |change: &dyn Fn(&mut [u8; 64])| {
        let mut bytes = samples::preamble(Role::Control).encode();
        change(&mut bytes);
        let crc = Crc::of(&bytes[..60]).value();
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        Preamble::decode(&bytes).unwrap_err()
    };
    assert_eq!(refused(&|b| b[0] = b'V'), PreambleError::Magic);
    assert_eq!(refused(&|b| b[8] = 2), PreambleError::Version { found: 2 });
    let text = refused(&|b| b[8] = 2).to_string();
    assert_eq!(text, "the stream has container version 2, this side reads 1");
    let unknown = crate::wire::preamble::Features(1 << 63);
    assert_eq!(refused(&|b| b[27] = 0x80), PreambleError::Features { unknown });
    assert_eq!(refused(&|b| b[17] = 0), PreambleError::PageSize(0));
    assert_eq!(refused(&|b| b[16] = 1), PreambleError::PageSize(0x1001));
    assert_eq!(refused(&|b| b[11] = 9), PreambleError::Role { role: 9, channel: 0 });
    assert_eq!(refused(&|b| b[11] = 2), PreambleError::Role { role: 2, channel: 0 });
    assert_eq!(refused(&|b| b[14] = 1), PreambleError::Role { role: 1, channel: 1 });
    assert_eq!(refused(&|b| b[52] = 1), PreambleError::Role { role: 1, channel: 0 });

    let mut broken = samples::preamble(Role::Control).encode();
    broken[8] = 2;
    assert_eq!(Preamble::decode(&broken), Err(PreambleError::Checksum));
}

#[test]
fn a_preamble_does_not_tell_its_token_to_a_log() {
    let text = format!("{:?}", samples::preamble(samples::data_role()));
    assert!(text.contains("Token(..)") && !text.contains("1, 2, 3"), "{text}");
}

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
        let bad = crate::wire::message::Hello { data_channels: channels, ..hello() };
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

#[test]
fn frames_of_a_fresh_decoder_stay_readable_after_a_skipped_one() {
    let mut encoder = Encoder::new(Role::Control);
    let unknown = encoder.header(FrameType(500), Flags::NONE, &[b"?"]).unwrap();
    let commit = encoder.message(&Message::Commit).unwrap();
    let mut decoder = Decoder::new(Role::Control, PageSize::KIB_4);
    let header = decoder.header(&unknown).unwrap();
    let skipped = Frame::Skipped(FrameType(500));
    assert_eq!(decoder.payload(&header, b"?").unwrap(), skipped);
    let (header, payload) = split(&commit);
    let header = decoder.header(header).unwrap();
    assert_eq!(
        decoder.payload(&header, payload).unwrap(),
        Frame::Message(Message::Commit)
    );
    assert_eq!(decoder.digest(), encoder.digest());
}
