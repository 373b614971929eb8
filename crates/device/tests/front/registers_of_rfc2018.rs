//! The registers of document 001: field by field, sub-structure by sub-structure.

use crate::bench::{Bench, GUEST, SECTION, bench, options, plain, rfc};
use abi::errno::Errno;
use abi::rfc2018::{DataSection as Data, DirtyPfns, PendingBytes, RfcField};
use states::v2::Capabilities;
use vfio_migrate_device::Moved;
use vfio_migrate_device::front::{DataSection, Generation};
use zerocopy::IntoBytes;

fn device() -> Bench {
    plain(Generation::Rfc2018)
}

fn tracked() -> Bench {
    let mut bench = device();
    bench.go(rfc::SETUP).unwrap();
    bench
}

/// Lets the device write to a page of the guest.
fn dma(bench: &mut Bench, at: u64) {
    bench.runner.write_region(1, 0, &at.to_ne_bytes()).unwrap();
}

#[test]
fn a_part_of_a_register_is_read() {
    for at in 0..90 {
        for width in 1..=80 {
            let mut bench = device();
            let field = RfcField::find(at, width);
            let data = at >= 80;
            let mut into = vec![0; width];
            let read = bench.read(at, &mut into);
            let readable = field.is_some_and(|field| field != RfcField::DeviceState);
            assert_eq!(read.is_ok(), readable || data, "read {width} at {at}");
            assert!(read.is_ok() || read == Err(Errno::EINVAL));
            let into = vec![if at == 0 { 0xff } else { 0 }; width];
            let written = bench.write(at, &into);
            let writable =
                matches!(field, Some(RfcField::ThresholdSize | RfcField::StartAddr));
            // No such state, and a query has pages.
            assert_eq!(
                written,
                if writable { Ok(Moved::Done(None)) } else { Err(Errno::EINVAL) },
                "write {width} at {at}"
            );
        }
    }
    assert_eq!(device().front.kind(), (1 << 30, 1));
}

#[test]
fn the_fields_say_something_else_than_the_structure() {
    let mut bench = tracked();
    bench.put_word(rfc::THRESHOLD, 77).unwrap();
    let before = bench.pending();
    assert_eq!(
        (before.precopy_only, before.compatible, before.threshold_size),
        (0, 0, 77)
    );
    assert!(before.postcopy_only > 0, "what a save would move");
    for state in [rfc::PRECOPY, rfc::STOPNCOPY] {
        bench.go(state).unwrap();
        while bench.buffer().is_some() {
            let whole: PendingBytes = bench.structure(rfc::PENDING);
            let fields = [4, 12, 20, 28].map(|at| bench.word(at));
            assert_eq!(
                fields,
                [
                    whole.precopy_only,
                    whole.compatible,
                    whole.postcopy_only,
                    whole.threshold_size
                ]
            );
            assert_eq!(bench.word(rfc::SIZE), 0, "not asked for yet");
            let offset = bench.word(rfc::DATA);
            let size = bench.word(rfc::SIZE);
            let data: Data = bench.structure(rfc::DATA);
            assert_eq!((data.offset, data.size), (offset, size));
        }
    }
}

#[test]
fn pending_data_is_called_what_it_is_not() {
    let mut bench = tracked();
    bench.go(rfc::PRECOPY).unwrap();
    let first = bench.pending();
    let state: u64 = first.precopy_only + first.compatible + first.postcopy_only;
    let initial = (40 * 504) as u64;
    assert_eq!((first.precopy_only, first.compatible), (initial, 0));
    assert_eq!(state, initial + 12, "the sum is the whole");
    let read = bench.buffers().concat().len() as u64;
    assert_eq!(read, initial);
    assert_eq!(bench.pending().precopy_only, 0);
    bench.runner.write_region(0, 0, &[1]).unwrap();
    let changed = bench.pending();
    assert_eq!((changed.precopy_only, changed.compatible), (0, 504));
    bench.go(rfc::STOPNCOPY).unwrap();
    let stopped = bench.pending();
    assert_eq!((stopped.precopy_only, stopped.compatible), (0, 0));
    // That stop-and-copy of patch 3/5 drains while this one is not 0 and ends when the
    // others and it are: so it neither ends early nor spins.
    assert_eq!(stopped.postcopy_only, 504 + 12);
    bench.buffers();
    assert_eq!(bench.pending().postcopy_only, 0);
}

#[test]
fn reading_a_buffer_again_gives_the_next_one() {
    let mut bench = tracked();
    bench.runner.write_region(0, 0, &[0xff]).unwrap();
    bench.go(rfc::STOPNCOPY).unwrap();
    bench.pending();
    let data: Data = bench.structure(rfc::DATA);
    let bytes = bench.section(data.offset, data.size as usize);
    // A query in between takes the section, and the buffer comes back.
    assert_eq!(bench.dirty(0, 8).copied, 8);
    assert_ne!(bench.section(data.offset, data.size as usize), bytes);
    let again: Data = bench.structure(rfc::DATA);
    assert_eq!(again, data);
    assert_eq!(bench.section(data.offset, data.size as usize), bytes);
    bench.pending();
    let next: Data = bench.structure(rfc::DATA);
    assert_ne!(bench.section(next.offset, next.size as usize), bytes);
}

#[test]
fn data_is_announced_before_it_is_there() {
    let state = device().save();
    // Anywhere in the section, by structure or by field.
    for fields in [false, true] {
        let mut bench = device();
        bench.go(rfc::RESUME).unwrap();
        let start = bench.word(rfc::DATA);
        for transaction in &state {
            let at = start + SECTION - transaction.len() as u64;
            let size = transaction.len() as u64;
            bench.put(at, transaction).unwrap();
            if fields {
                bench.put_word(rfc::DATA, at).unwrap();
                bench.put_word(rfc::SIZE, size).unwrap();
            } else {
                let data = Data { offset: at, size };
                bench.put(rfc::DATA, data.as_bytes()).unwrap();
            }
        }
        bench.go(rfc::RESUME_COMPLETED).unwrap();
    }
    let mut bench = device();
    let start = bench.word(rfc::DATA);
    let impossible = [
        (0, 8),
        (start - 1, 8),
        (start, 0),
        (start, SECTION + 1),
        (start + SECTION, 1),
        (start + 8, SECTION - 7),
        (u64::MAX, 1),
        (start, u64::MAX),
        (u64::MAX - 8, 16),
    ];
    for resumes in [false, true] {
        if resumes {
            bench.go(rfc::RESUME).unwrap();
        }
        for (offset, size) in impossible {
            let data = Data { offset, size };
            assert_eq!(bench.put(rfc::DATA, data.as_bytes()), Err(Errno::EINVAL));
        }
        assert_eq!(bench.put_word(rfc::DATA, 8), Err(Errno::EINVAL));
        assert_eq!(bench.put_word(rfc::SIZE, SECTION + 1), Err(Errno::EINVAL));
    }
    // None of that was a load.
    assert_eq!(bench.go(rfc::RESUME_COMPLETED), Err(Errno::EINVAL));
}

#[test]
fn a_dirty_page_is_forgotten_between_two_parts() {
    // A section of 8 KiB has 65536 bits: 256 MiB at a time.
    let part = SECTION * 8;
    let mut bench = tracked();
    for page in [0, 1, 63, 64, 200] {
        dma(&mut bench, page * 4096);
    }
    let total = part * 2 + 10;
    let first = bench.dirty(0, total);
    assert_eq!((first.start_addr, first.total, first.copied), (0, total, part));
    let at = bench.word(rfc::DATA);
    let words: Vec<u64> = bench
        .section(at, 32)
        .chunks(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
        .collect();
    assert_eq!(words, [1 | 2 | 1 << 63, 1, 0, 1 << 8]);
    // Each answer is the next part; the addresses are only echoed.
    assert_eq!(bench.word(52), 0);
    assert_eq!(bench.word(60), total);
    let second: DirtyPfns = bench.structure(rfc::DIRTY);
    assert_eq!(second.copied, part);
    assert_eq!(bench.section(at, SECTION as usize), vec![0; SECTION as usize]);
    assert_eq!(bench.word(68), 10, "by the field alone");
    assert_eq!(bench.word(68), 0, "no more until it is asked again");
    // They are drained.
    bench.dirty(0, 256);
    assert_eq!(bench.section(at, 32), vec![0; 32]);
    // By fields, and from an address.
    dma(&mut bench, 65 * 4096);
    bench.put_word(52, 64 * 4096).unwrap();
    bench.put_word(60, 3).unwrap();
    assert_eq!(bench.word(68), 3);
    assert_eq!(bench.section(at, 8), [2, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_query_for_nothing_or_beyond_all_addresses_is_answered() {
    let mut bench = tracked();
    for (start_addr, total) in [
        (0, 0),
        (1, 8),
        (4095, 8),
        (0, u64::MAX),
        (0, 1 << 52),
        (u64::MAX - 4095, 1),
        (1 << 63, 1 << 51),
    ] {
        let asked = DirtyPfns { start_addr, total, copied: 0 };
        let refused = bench.put(rfc::DIRTY, asked.as_bytes());
        assert_eq!(refused, Err(Errno::EINVAL), "{start_addr:#x} {total:#x}");
    }
    // The widest one costs no more than a section.
    assert_eq!(bench.dirty(0, (1 << 52) - 1).copied, SECTION * 8);
}

#[test]
fn the_last_dirty_pages_are_dropped_with_the_session() {
    let mut bench = device();
    let asked = DirtyPfns { start_addr: 0, total: GUEST / 4096, copied: 0 };
    let refused = bench.put(rfc::DIRTY, asked.as_bytes());
    assert_eq!(refused, Err(Errno::EINVAL), "nothing is logged yet");
    bench.go(rfc::SETUP).unwrap();
    bench.go(rfc::PRECOPY).unwrap();
    dma(&mut bench, 4096 * 5);
    bench.go(rfc::STOPNCOPY).unwrap();
    bench.buffers();
    assert_eq!(bench.dirty(0, 8).copied, 8);
    let at = bench.word(rfc::DATA);
    assert_eq!(bench.section(at, 1), [1 << 5]);
    bench.go(rfc::SAVE_COMPLETED).unwrap();
    assert_eq!(bench.runner.log_page_size(), None);
    // A log that the client has by a feature is the client's.
    bench.go(rfc::RUNNING).unwrap();
    bench.runner.log_start(8192, &[]).unwrap();
    for state in [rfc::SETUP, rfc::CANCELLED, rfc::RUNNING] {
        bench.go(state).unwrap();
        assert_eq!(bench.runner.log_page_size().unwrap().bytes(), 8192);
    }
    dma(&mut bench, 0);
    bench.dirty(0, 8);
    assert_eq!(bench.section(at, 1), [0b11], "two pages of ours are one of the log's");
}

#[test]
fn a_reset_of_the_guest_forgets_dirty_pages() {
    let mut bench = tracked();
    bench.go(rfc::PRECOPY).unwrap();
    dma(&mut bench, 4096 * 3);
    bench.runner.reset();
    assert_eq!(bench.dirty(0, 8).copied, 8);
    let at = bench.word(rfc::DATA);
    assert_eq!(bench.section(at, 1), [1 << 3]);
    bench.go(rfc::SETUP).unwrap();
    bench.go(rfc::CANCELLED).unwrap();
    assert_eq!(bench.runner.log_page_size(), None);
}

#[test]
fn the_offset_of_the_section_is_guessed() {
    for (section, at) in [
        (DataSection::Trapped, 80),
        (DataSection::Mapped, 4096),
        (DataSection::Split, 4096),
    ] {
        let mut bench =
            bench(options(Generation::Rfc2018, section), Capabilities::PRE_COPY);
        for state in [rfc::SETUP, rfc::PRECOPY, rfc::STOPNCOPY, rfc::SAVE_COMPLETED] {
            assert_eq!(bench.word(rfc::DATA), at, "the same in every state");
            bench.go(state).unwrap();
        }
    }
}
