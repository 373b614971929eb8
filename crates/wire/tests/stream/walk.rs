//! The walker says of every stream what a reader would, and where.

use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::{prop_assert, prop_assert_eq, proptest};

use crate::samples::{self, BYTES};
use crate::wire::device::{DeviceEnd, DeviceRecord};
use crate::wire::memory::{RunKind, RunTable};
use crate::wire::message::{Hello, MAX_DEVICES, MemoryRegion};
use crate::wire::preamble::{PageSize, Preamble, PreambleError, Role};
use crate::wire::walk::{Contradiction, Damage, Item, Summary, Walker, Wrong};
use crate::wire::{Flags, Frame, FrameError, FrameType, Header, Message};
use crate::writing::{Writing, end, hello, whole};

/// Walks a stream given in pieces: each item as text, and the summary. No frame may be
/// larger than the largest ceiling.
fn walk<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<String>, Summary) {
    let mut walker = Walker::new();
    let mut items = vec![];
    for mut piece in pieces {
        while let Some(item) = walker.next(&mut piece) {
            if let Item::Frame(frame) = &item {
                assert!(frame.header.length <= frame.header.kind.ceiling());
            }
            items.push(format!("{item:?}"));
        }
        assert!(piece.is_empty());
    }
    (items, walker.finish())
}

fn damage(stream: &[u8]) -> Option<Damage> {
    walk([stream]).1.first_damage
}

fn contradiction(writing: &Writing) -> (usize, Contradiction) {
    let damage = damage(&writing.bytes).expect("it contradicts itself");
    match damage.wrong {
        Wrong::Contradiction(what) => {
            let frame = writing.frames.iter().position(|at| *at as u64 == damage.offset);
            (frame.unwrap_or(writing.frames.len()), what)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_whole_file_is_whole() {
    let file = whole();
    let (items, summary) = walk([&file.bytes[..]]);
    assert!(summary.is_whole(), "{summary:#?}");
    assert_eq!(items.len(), 1 + file.frames.len());
    assert_eq!(summary.frames, file.frames.len() as u64);
    assert_eq!(summary.bytes, file.bytes.len() as u64);
    assert_eq!((summary.data_pages, summary.zero_pages), (3, 300));
    let [device] = &summary.devices[..] else { panic!("{summary:?}") };
    assert_eq!(device.identity, Some(samples::identity()));
    assert_eq!((device.attempt, device.so_far.bytes), (1, 84));
    assert_eq!(device.so_far.crc.value(), end(2).crc);
    assert!(device.ended && device.intact);
    let [section] = &summary.sections[..] else { panic!("{summary:?}") };
    assert_eq!((section.bytes, section.ended), (84, true));
}

#[test]
fn a_control_stream_needs_no_end_and_a_data_stream_does() {
    let hello = Message::Hello(hello());
    let control = Writing::new(Role::Control).message(&hello).message(&Message::Commit);
    assert_eq!(damage(&control.bytes), None);
    let data = Writing::new(samples::data_role());
    let offset = data.bytes.len() as u64;
    let no_end = Damage { offset, wrong: Wrong::NoEnd };
    assert_eq!(damage(&data.bytes), Some(no_end));
    assert_eq!(damage(&data.close().bytes), None);
}

#[test]
fn a_cut_anywhere_is_found_where_it_is() {
    let file = whole();
    for length in 0..file.bytes.len() {
        let (_, summary) = walk([&file.bytes[..length]]);
        let damage = summary.first_damage.expect("it is cut off");
        assert_eq!(damage.offset, length as u64, "{damage:?}");
        assert_eq!(summary.damages, 1, "{length}: {:?}", summary.at_end);
        let frame = file.frames.iter().rev().find(|at| **at < length);
        let ends = file.frames.iter().find(|at| **at >= length);
        let ends = *ends.unwrap_or(&file.bytes.len());
        match damage.wrong {
            Wrong::Empty => assert_eq!(length, 0),
            Wrong::CutPreamble { missing } => {
                assert_eq!(missing as usize, Preamble::SIZE - length);
            }
            Wrong::CutHeader { frame: at, missing } => {
                assert_eq!(Some(&(at as usize)), frame);
                assert_eq!(missing as usize, at as usize + Header::SIZE - length);
            }
            Wrong::CutPayload { frame: at, missing, .. } => {
                assert_eq!(Some(&(at as usize)), frame);
                assert_eq!(missing as usize, ends - length);
            }
            Wrong::NoEnd => assert_eq!(length, ends),
            other => panic!("{length}: {other:?}"),
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_is_found_in_its_frame() {
    let mut file = whole();
    let len = file.bytes.len();
    for at in 0..len {
        let mask = 1 << (at % 8);
        file.bytes[at] ^= mask;
        let found = damage(&file.bytes).expect("a bit was flipped").offset;
        let frame = file.frames.iter().rev().find(|frame| **frame <= at);
        let frame = *frame.unwrap_or(&0) as u64;
        // A length that grew may only be noticed at the end of the stream.
        let length = (frame + 16..frame + 20).contains(&(at as u64)) && frame > 0;
        assert!(found == frame || (length && found == len as u64), "{at}: {found}");
        file.bytes[at] ^= mask;
    }
}

#[test]
fn a_damaged_payload_does_not_hide_what_follows_it() {
    let file = whole();
    let (good, _) = walk([&file.bytes[..]]);
    for (n, at) in file.frames.iter().enumerate().take(file.frames.len() - 1) {
        let mut bytes = file.bytes.clone();
        bytes[at + Header::SIZE] ^= 0x80;
        let (items, summary) = walk([&bytes[..]]);
        assert_eq!(items.len(), good.len(), "frame {n}");
        assert!(items[1 + n].contains("Checksum"), "{}", items[1 + n]);
        assert!(items.last().unwrap().contains("ChannelEnd("), "the digest fits");
        assert_eq!(summary.unread, 0);
        // What follows from it is said once, not for each frame.
        assert!(summary.damages <= 4, "frame {n}: {summary:#?}");
    }
}

#[test]
fn a_length_that_cannot_be_followed_stops_the_walk() {
    let file = whole();
    let at = file.frames[3];
    let mut bytes = file.bytes.clone();
    bytes[at + 16] -= 1;
    let (items, summary) = walk([&bytes[..]]);
    assert!(items.last().unwrap().contains("Lost"), "{items:?}");
    assert_eq!(summary.damages, 2);
    assert_eq!(summary.first_damage.unwrap().offset, at as u64);
    assert!(summary.unread > 0);

    bytes[at + 19] = 0xff;
    let (items, summary) = walk([&bytes[..]]);
    assert_eq!(summary.damages, 1);
    assert!(matches!(summary.first_damage.unwrap().wrong, Wrong::Length(_)));
    let last = items.last().unwrap();
    assert!(last.contains("Stopped") && last.contains("TooLong"), "{last}");
}

#[test]
fn a_frame_lost_doubled_or_moved_is_marked_and_the_rest_is_read() {
    let file = whole();
    let frame = |n: usize| {
        let next = file.frames.get(n + 1).copied().unwrap_or(file.bytes.len());
        &file.bytes[file.frames[n]..next]
    };
    let order = |order: &[usize]| {
        let frames = order.iter().map(|n| frame(*n));
        [&file.bytes[..64]].into_iter().chain(frames).collect::<Vec<_>>().concat()
    };
    for (name, frames, wrong) in [
        ("lost", &[0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11][..], 7),
        ("doubled", &[0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], 1),
        ("moved", &[0, 2, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11], 2),
    ] {
        let bytes = order(frames);
        let (items, summary) = walk([&bytes[..]]);
        assert_eq!(items.len(), 1 + frames.len(), "{name}");
        let first = summary.first_damage.expect(name);
        let Wrong::Frame(FrameError::Sequence { found, .. }) = first.wrong else {
            panic!("{name}: {first:?}");
        };
        assert_eq!(found, wrong, "{name}");
        // The digest at the end does not fit either.
        assert!(items.last().unwrap().contains("Digest"), "{name}");
        assert_eq!(summary.unread, 0, "{name}");
    }
}

#[test]
fn the_last_sequence_number_does_not_end_the_counting() {
    for sequence in [u64::MAX, u64::MAX - 1, 1 << 62] {
        let kind = FrameType::ROUND_END;
        let mut header = Header {
            kind,
            flags: Flags::CRITICAL,
            channel: 0,
            sequence,
            length: 8,
            crc: 0,
        };
        let mut crc = header.start_crc();
        crc.add(&[0; 8]);
        header.crc = crc.value();
        let frame = [&header.encode()[..], &[0; 8]].concat();
        let writing = Writing::file().raw(&frame).raw(&frame).raw(&frame);
        let (items, summary) = walk([&writing.bytes[..]]);
        assert_eq!((items.len(), summary.damages), (4, 4), "{summary:#?}");
    }
}

#[test]
fn a_stream_of_something_else_is_not_called_cut_off() {
    for stream in [&b"#!/bin/sh\n"[..], &[0; 4096], b"\x89PNG\r\n\x1a\n"] {
        let magic = Wrong::Preamble(PreambleError::Magic);
        assert_eq!(damage(stream), Some(Damage { offset: 0, wrong: magic }));
    }
    assert_eq!(damage(&[]).unwrap().wrong, Wrong::Empty);
}

#[test]
fn bytes_behind_the_end_are_counted() {
    let mut file = whole().bytes;
    let offset = file.len() as u64;
    file.extend([0; 5000]);
    let trailing = Damage { offset, wrong: Wrong::Trailing { bytes: 5000 } };
    assert_eq!(damage(&file), Some(trailing));
}

#[test]
fn a_device_that_contradicts_itself_is_found_at_the_frame_that_does() {
    use Contradiction as C;
    let device = 0;
    let n = BYTES.len();
    let cases = [
        (Writing::file().data(0).close(), 0, C::NotBegun { device }),
        (Writing::file().end(end(0)).close(), 0, C::NotBegun { device }),
        (
            Writing::file().begin(1).close(),
            0,
            C::Attempt { device, expected: 0, found: 1 },
        ),
        (
            Writing::file().begin(0).begin(0).close(),
            1,
            C::Attempt { device, expected: 1, found: 0 },
        ),
        (
            Writing::file().begin(0).data(0).data(0).close(),
            2,
            C::Offset { device, expected: n as u64, found: 0 },
        ),
        (
            Writing::file().begin(0).data(0).end(end(2)).close(),
            2,
            C::Bytes {
                device,
                sent: 2 * n as u64,
                sent_crc: end(2).crc,
                found: n as u64,
                found_crc: end(1).crc,
            },
        ),
        (Writing::file().begin(0).end(end(0)).data(0).close(), 2, C::AfterEnd { device }),
        (
            Writing::file().begin(0).end(end(0)).end(end(0)).close(),
            2,
            C::AfterEnd { device },
        ),
        (Writing::file().begin(0).data(0).close(), 3, C::Unfinished { device }),
    ];
    for (writing, frame, what) in cases {
        assert_eq!(contradiction(&writing), (frame, what));
    }
}

#[test]
fn a_gap_is_said_once_however_many_frames_follow() {
    let n = BYTES.len();
    let mut writing = Writing::file().begin(0);
    for piece in 1..100 {
        writing = writing.data(piece * n);
    }
    let crc = 0x1234;
    let length = 100 * n as u64;
    let writing = writing.end(DeviceEnd { device: 0, length, crc }).close();
    let (_, summary) = walk([&writing.bytes[..]]);
    assert_eq!(summary.damages, 1, "{summary:#?}");
    assert!(!summary.devices[0].intact);

    let orphan = Writing::file().data(0).data(n).data(2 * n).close();
    let (_, summary) = walk([&orphan.bytes[..]]);
    // That it has not begun, and that it did not end.
    assert_eq!(summary.damages, 2, "{summary:#?}");
}

#[test]
fn what_hello_announces_has_to_come() {
    use Contradiction as C;
    let nothing = Writing::file().message(&Message::Hello(hello())).close();
    let (_, summary) = walk([&nothing.bytes[..]]);
    let missing: Vec<_> = summary.at_end.into_iter().map(|damage| damage.wrong).collect();
    let device = Wrong::Contradiction(C::Unfinished { device: 0 });
    let section_0 = Wrong::Contradiction(C::SectionUnfinished { section: 0 });
    let memory = C::MemoryMissing { gpa: 0x1000, bytes: 2 * 4096 };
    assert_eq!(missing, [device, section_0, Wrong::Contradiction(memory)]);

    let bare = Hello { devices: vec![], sections: vec![], ..hello() };
    let bare = || Writing::file().message(&Message::Hello(bare.clone()));
    let stranger = bare().begin(0).end(end(0)).close();
    let not_announced = C::NotAnnounced { device: 0, announced: 0 };
    assert_eq!(contradiction(&stranger), (1, not_announced));
    let stranger = bare().section().piece(0, 0, true).close();
    assert_eq!(contradiction(&stranger), (1, C::OtherSection { section: 0 }));

    let mut other = hello();
    other.devices[0].slot = "elsewhere".into();
    let other = Writing::file().message(&Message::Hello(other)).begin(0);
    assert_eq!(contradiction(&other.close()), (1, C::OtherDevice { device: 0 }));
}

/// A file of memory alone: 16 pages at 0x10000, 16 more right behind them, and a frame
/// for each list of zero pages.
fn pages(frames: &[&Runs]) -> Writing {
    let region = |gpa| MemoryRegion { gpa, length: 16 * 4096, page_size: PAGE };
    let memory = vec![region(16 * PAGE), region(32 * PAGE)];
    let hello = Hello { devices: vec![], sections: vec![], memory, ..hello() };
    let mut writing = Writing::file().message(&Message::Hello(hello));
    for runs in frames {
        let mut table = RunTable::new(PageSize::KIB_4);
        for (page, pages) in *runs {
            table.push(page * PAGE, *pages, RunKind::Zero).unwrap();
        }
        writing = writing.frame(FrameType::MEMORY_RUNS, Flags::CRITICAL, table.prefix());
    }
    writing.close()
}

const PAGE: u64 = 4096;

/// Runs of zero pages: the number of the first, and how many.
type Runs = [(u64, u32)];

#[test]
fn a_file_without_all_of_the_memory_is_not_whole_and_no_guest_runs_on_zeros() {
    use Contradiction as C;
    let whole: [&[&Runs]; 4] = [
        &[&[(16, 16), (32, 16)]],
        &[&[(32, 16)], &[(16, 16)]],
        &[&[(17, 1), (19, 1)], &[(16, 1), (18, 1), (20, 12), (32, 15)], &[(47, 1)]],
        &[&[], &[(40, 8)], &[(16, 8)], &[(32, 8)], &[(24, 8)]],
    ];
    for frames in whole {
        assert_eq!(damage(&pages(frames).bytes), None, "{frames:?}");
    }
    let gaps: [(&[&Runs], u64, u64); 6] = [
        (&[], 16, 16),
        (&[&[(16, 16)]], 32, 16),
        (&[&[(32, 16)]], 16, 16),
        (&[&[(16, 15), (32, 16)]], 31, 1),
        (&[&[(17, 15), (32, 16)]], 16, 1),
        (&[&[(16, 16), (32, 3), (37, 2), (41, 7)]], 35, 2),
    ];
    for (frames, page, pages_missing) in gaps {
        let writing = pages(frames);
        let (_, what) = contradiction(&writing);
        let (gpa, bytes) = (page * PAGE, pages_missing * PAGE);
        assert_eq!(what, C::MemoryMissing { gpa, bytes }, "{frames:?}");
    }
}

#[test]
fn a_page_that_comes_twice_or_from_nowhere_is_found() {
    use Contradiction as C;
    let twice: [(&[&Runs], u64); 5] = [
        (&[&[(16, 16)], &[(16, 1)]], 16),
        (&[&[(16, 16)], &[(31, 1)]], 31),
        (&[&[(20, 2)], &[(18, 3)]], 20),
        (&[&[(20, 2)], &[(18, 9)]], 20),
        (&[&[(20, 2), (24, 2)], &[(22, 3)]], 24),
    ];
    for (frames, page) in twice {
        let what = C::MemoryTwice { gpa: page * PAGE };
        assert_eq!(contradiction(&pages(frames)), (2, what), "{frames:?}");
    }
    for (page, pages_there) in
        [(15, 1), (15, 2), (48, 1), (47, 2), (16, 33), (1 << 50, 1)]
    {
        let runs = [(page, pages_there)];
        let what = C::Memory { gpa: page * PAGE, pages: pages_there };
        assert_eq!(contradiction(&pages(&[&runs])), (1, what));
    }
}

#[test]
fn pages_in_more_pieces_than_are_remembered_end_the_remembering() {
    let region = MemoryRegion { gpa: 0, length: 1 << 40, page_size: PAGE };
    let hello =
        Hello { devices: vec![], sections: vec![], memory: vec![region], ..hello() };
    let mut writing = Writing::file().message(&Message::Hello(hello));
    for frame in 0..70 {
        let mut table = RunTable::new(PageSize::KIB_4);
        for page in 0..1000 {
            table.push((frame * 1000 + page) * 2 * PAGE, 1, RunKind::Zero).unwrap();
        }
        writing = writing.frame(FrameType::MEMORY_RUNS, Flags::CRITICAL, table.prefix());
    }
    let (_, summary) = walk([&writing.close().bytes[..]]);
    assert_eq!(summary.damages, 1, "{:?}", summary.first_damage);
    let what = Wrong::Contradiction(Contradiction::MemoryScattered);
    assert_eq!(summary.first_damage.map(|damage| damage.wrong), Some(what));
}

#[test]
fn a_section_that_contradicts_itself_is_found() {
    use Contradiction as C;
    let section = 0;
    let n = BYTES.len() as u64;
    let file = Writing::file;
    let cases = [
        (file().piece(0, 0, true).close(), 0, C::SectionNotBegun { section }),
        (file().section().section().close(), 1, C::SectionTwice { section }),
        (
            file().section().piece(0, n, true).close(),
            1,
            C::SectionOffset { section, expected: 0, found: n },
        ),
        (
            file().section().piece(0, 0, true).piece(0, n, true).close(),
            2,
            C::SectionAfterLast { section },
        ),
        (file().section().close(), 2, C::SectionUnfinished { section }),
        (
            file().piece(u32::MAX, 0, true).close(),
            0,
            C::SectionNotBegun { section: u32::MAX },
        ),
    ];
    for (writing, frame, what) in cases {
        assert_eq!(contradiction(&writing), (frame, what));
    }
}

#[test]
fn a_stream_of_any_length_is_remembered_in_bounded_memory() {
    let mut writing = Writing::file();
    for index in 0..1000 {
        writing = writing.piece(index, 0, false).begin(index);
    }
    let (_, summary) = walk([&writing.close().bytes[..]]);
    assert_eq!(summary.sections.len(), 64);
    assert!(summary.devices.len() <= MAX_DEVICES);
}

#[test]
fn what_is_not_known_and_not_critical_is_no_damage() {
    let kind = FrameType(0x7777);
    let writing = Writing::file().frame(kind, Flags::NONE, BYTES).close();
    let mut walker = Walker::new();
    let mut bytes = &writing.bytes[..];
    assert!(matches!(walker.next(&mut bytes), Some(Item::Preamble(_))));
    let Some(Item::Frame(frame)) = walker.next(&mut bytes) else { panic!("a frame") };
    assert_eq!(frame.frame, Some(Frame::Skipped(kind)));
    assert_eq!(frame.damage, None);

    let critical = Writing::file().frame(kind, Flags::CRITICAL, BYTES).close();
    let (items, summary) = walk([&critical.bytes[..]]);
    assert_eq!((items.len(), summary.damages), (3, 1), "the walk goes on");
}

/// Inputs to begin with for the fuzz target `stream`: streams of which the frames belong
/// together. Free to be replaced.
#[test]
#[ignore = "writes the seeds of the fuzz target"]
fn write_fuzz_seeds_of_whole_streams() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = folder.join("../../fuzz/corpus/stream");
    let n = BYTES.len();
    let device = Writing::file().begin(0).data(0).data(n).end(end(2)).close();
    let bare = Hello { memory: vec![], source_uri: None, ..hello() };
    let whole = Writing::file()
        .message(&Message::Hello(bare))
        .begin(0)
        .end(end(0))
        .section()
        .piece(0, 0, false)
        .piece(0, n as u64, true)
        .close();
    for (name, writing) in [("whole-device", device), ("whole-file", whole)] {
        assert_eq!(damage(&writing.bytes), None);
        std::fs::write(folder.join(name), writing.bytes).unwrap();
    }
}

fn pieces() -> impl Strategy<Value = Vec<usize>> {
    vec(prop_oneof![1..5usize, 1..5000usize], 1..40)
}

/// Cuts into pieces of these sizes, over and over.
fn cut<'a>(mut bytes: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let mut all = vec![];
    for size in sizes.iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let (piece, rest) = bytes.split_at((*size).min(bytes.len()));
        all.push(piece);
        bytes = rest;
    }
    all
}

proptest! {
    #[test]
    fn pieces_change_nothing(sizes in pieces(), at in any::<usize>(), mask: u8) {
        let mut file = whole().bytes;
        let at = at % file.len();
        file[at] ^= mask;
        prop_assert_eq!(walk(cut(&file, &sizes)), walk([&file[..]]));
    }

    #[test]
    fn a_changed_byte_or_a_cut_never_passes(
        at in any::<usize>(),
        mask in 1..=255u8,
        keep in any::<usize>(),
    ) {
        let file = whole().bytes;
        let (at, keep) = (at % file.len(), keep % file.len());
        let mut changed = file.clone();
        changed[at] ^= mask;
        prop_assert!(damage(&changed).is_some());
        prop_assert!(damage(&file[..keep]).is_some());
        prop_assert!(damage(&changed[..keep]).is_some());
    }

    #[test]
    fn random_bytes_neither_panic_nor_pass(
        bytes in vec(any::<u8>(), 0..3000),
        with_preamble: bool,
    ) {
        let preamble = samples::preamble(Role::File).encode();
        let bytes =
            if with_preamble { [&preamble[..], &bytes].concat() } else { bytes };
        let (_, summary) = walk([&bytes[..]]);
        prop_assert!(!summary.is_whole());
        prop_assert_eq!(summary.bytes, bytes.len() as u64);
    }
}

#[test]
fn what_a_saved_file_cannot_hold_is_found_at_its_frame() {
    use Contradiction as C;
    let (table, pages) = samples::memory();
    let memory = [table.prefix(), &pages].concat();
    let file = |hello: Hello| Writing::file().message(&Message::Hello(hello));
    // The last of its pages lies behind the end of this memory.
    let mut small = hello();
    small.memory.truncate(2);
    let pages = file(small).frame(FrameType::MEMORY_RUNS, Flags::CRITICAL, &memory);
    let outside = C::Memory { gpa: 0x1_0000_0000, pages: 1 };
    assert_eq!(contradiction(&pages.close()), (1, outside));
    let none = Hello { memory: vec![], ..hello() };
    let pages = file(none).frame(FrameType::MEMORY_RUNS, Flags::CRITICAL, &memory);
    let outside = C::Memory { gpa: 0x1000, pages: 2 };
    assert_eq!(contradiction(&pages.close()), (1, outside));

    let again = file(hello()).message(&Message::Hello(hello())).close();
    let kind = FrameType::CONTROL;
    assert_eq!(contradiction(&again), (1, C::NotInAFile { kind }));
    let mut round = file(hello());
    let frame = round.encoder.round_end(1).unwrap();
    let kind = FrameType::ROUND_END;
    assert_eq!(contradiction(&round.raw(&frame).close()), (1, C::NotInAFile { kind }));

    let record = DeviceRecord { device: 1, schema: 1, bytes: BYTES };
    let mut config = file(hello());
    let head = config.encoder.config(&record).unwrap();
    let config = config.raw(&[&head[..], BYTES].concat()).close();
    assert_eq!(contradiction(&config), (1, C::NotAnnounced { device: 1, announced: 1 }));
}
