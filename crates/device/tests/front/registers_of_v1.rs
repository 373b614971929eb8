//! The registers of document 000, and its sequences for saving and loading.

use crate::bench::{Bench, SECTION, SECTIONS, bench, options, plain, v1};
use abi::errno::Errno;
use abi::v1::V1Field;
use states::v2::Capabilities;
use vfio_migrate_device::Moved;
use vfio_migrate_device::front::{
    DataSection, Front, FrontError, FrontOptions, Generation,
};

fn device() -> Bench {
    plain(Generation::V1)
}

#[test]
fn a_register_is_read_at_another_width_or_alignment() {
    for state in [v1::RUNNING, v1::PRE_COPY, v1::STOP_COPY, v1::RESUMING] {
        for at in 0..40 {
            for width in 1..=33 {
                let mut bench = device();
                bench.go(state).unwrap();
                let field = V1Field::find(at, width);
                let data = at >= 32;
                let mut into = vec![0; width];
                let read = bench.read(at, &mut into);
                let expected = field.is_some() || data;
                assert_eq!(read.is_ok(), expected, "read {width} at {at}: {read:?}");
                assert!(expected || read == Err(Errno::EINVAL));
                let written = bench.write(at, &into);
                let writable = match field {
                    Some(V1Field::Reserved) => true,
                    // It reads what it is.
                    Some(V1Field::DeviceState) => true,
                    // Of no bytes.
                    Some(_) => false,
                    None => data && state == v1::RESUMING,
                };
                assert_eq!(
                    written,
                    if writable { Ok(Moved::Done(None)) } else { Err(Errno::EINVAL) },
                    "write {width} at {at} in {state:03b}"
                );
            }
        }
    }
}

#[test]
fn a_section_reaches_out_of_its_region() {
    for section in SECTIONS {
        let mut bench = bench(options(Generation::V1, section), Capabilities::PRE_COPY);
        bench.go(v1::RESUMING).unwrap();
        let start = bench.word(v1::OFFSET);
        let region = bench.front.region().clone();
        assert_eq!(region.size, start + SECTION);
        assert_eq!(region.index, 9);
        assert_eq!(bench.front.kind(), (3, 1));
        let aligned = section != DataSection::Trapped;
        assert!(start >= 32 && (!aligned || start.is_multiple_of(4096)));
        let mapped: u64 = region.windows.iter().map(|window| window.memory.len()).sum();
        let trapped = match section {
            DataSection::Trapped => SECTION,
            DataSection::Mapped => 0,
            DataSection::Split => 4096,
        };
        assert_eq!(mapped, SECTION - trapped);
        let end = start + SECTION;
        for (at, length) in [
            (start - 1, 2),
            (end - 1, 2),
            (end, 1),
            (end + 1, 1),
            (start, SECTION as usize + 1),
            (u64::MAX, 1),
            (u64::MAX - 3, 8),
            (start, 0),
        ] {
            let mut into = vec![0; length];
            assert_eq!(bench.read(at, &mut into), Err(Errno::EINVAL), "{at} {length}");
            let written = bench.write(at, &into);
            assert_eq!(written, Err(Errno::EINVAL), "{at} {length}");
        }
        bench.put(end - 1, &[1]).unwrap();
        bench.put(start, &vec![0; SECTION as usize]).unwrap();
        // Nothing of that was handed on.
        assert_eq!(bench.go(v1::RUNNING), Err(Errno::EINVAL));
    }
}

#[test]
fn a_size_of_nothing_or_of_more_than_there_is_is_believed() {
    let mut bench = device();
    bench.go(v1::RESUMING).unwrap();
    for size in [0, SECTION + 1, 1 << 32, u64::MAX] {
        assert_eq!(bench.put_word(v1::SIZE, size), Err(Errno::EINVAL), "{size}");
    }
    // The session lives: what was refused was not taken.
    let state = device().save();
    for transaction in &state {
        bench.load(transaction).unwrap();
    }
    bench.go(v1::RUNNING).unwrap();
    // Not while it saves, or runs.
    for state in [v1::RUNNING, v1::PRE_COPY, v1::STOP_COPY, 0] {
        bench.go(state).unwrap();
        assert_eq!(bench.put_word(v1::SIZE, 8), Err(Errno::EINVAL));
        assert_eq!(bench.put(32, &[0; 8]), Err(Errno::EINVAL), "data while not loading");
    }
}

#[test]
fn reading_again_changes_what_is_read() {
    let mut bench = device();
    bench.scribble(1);
    bench.go(v1::PRE_COPY).unwrap();
    let mut all = Vec::new();
    for phase in [v1::PRE_COPY, v1::STOP_COPY] {
        bench.go(phase).unwrap();
        loop {
            let pending = bench.word(v1::PENDING);
            assert_eq!(bench.word(v1::SIZE), 0, "not asked for yet");
            for _ in 0..3 {
                assert_eq!(bench.word(v1::PENDING), pending);
            }
            if pending == 0 {
                break;
            }
            let offset = bench.word(v1::OFFSET);
            let size = bench.word(v1::SIZE);
            assert!(size > 0 && size <= pending);
            let bytes = bench.section(offset, size as usize);
            for _ in 0..3 {
                assert_eq!(
                    (bench.word(v1::OFFSET), bench.word(v1::SIZE)),
                    (offset, size)
                );
                assert_eq!(bench.section(offset, size as usize), bytes);
            }
            all.extend(bytes);
        }
    }
    let mut once = device();
    once.scribble(1);
    once.go(v1::PRE_COPY).unwrap();
    let mut expected = once.buffers().concat();
    once.go(v1::STOP_COPY).unwrap();
    expected.extend(once.buffers().concat());
    assert_eq!(all, expected);
}

#[test]
fn leaving_pre_copy_with_data_pending_loses_it() {
    // After how many buffers, and how far into the next one.
    for buffers in 0..3 {
        for further in 0..3 {
            let mut bench = device();
            bench.scribble(2);
            bench.go(v1::PRE_COPY).unwrap();
            let mut all: Vec<_> = (0..buffers).map_while(|_| bench.buffer()).collect();
            if further > 0 {
                assert!(bench.word(v1::PENDING) > 0, "looked at, and not asked for");
            }
            if further > 1 {
                let at = bench.word(v1::OFFSET);
                let size = bench.word(v1::SIZE) as usize;
                all.push(bench.section(at, size));
            }
            bench.scribble(3);
            bench.go(v1::STOP_COPY).unwrap();
            all.extend(bench.buffers());
            let mut target = device();
            target.restore(&all).unwrap();
            let (was, is) =
                (bench.runner.digest().unwrap(), target.runner.digest().unwrap());
            assert_eq!(was.difference(&is), None, "{buffers} {further}");
        }
    }
}

#[test]
fn pending_bytes_never_end_or_end_too_early() {
    let mut bench = device();
    bench.go(v1::STOP_COPY).unwrap();
    let mut left = bench.word(v1::PENDING);
    let total = left;
    let mut read = 0;
    while left > 0 {
        bench.word(v1::OFFSET);
        read += bench.word(v1::SIZE);
        let now = bench.word(v1::PENDING);
        assert!(now < left, "it only falls when the device stands still");
        left = now;
    }
    assert_eq!(read, total);
    assert_eq!((bench.word(v1::PENDING), bench.word(v1::SIZE)), (0, 0));
    assert_ne!(bench.word(v1::OFFSET), 0);
    assert_eq!(bench.word(v1::SIZE), 0, "asking at the end gives nothing");
}

#[test]
fn data_of_a_client_that_is_gone_is_given_to_the_next() {
    let mut bench = device();
    bench.runner.write_region(0, 0, &[0xff; 64]).unwrap();
    bench.go(v1::STOP_COPY).unwrap();
    let at = bench.word(v1::OFFSET);
    let first = bench.section(at, 64);
    assert_ne!(first, vec![0; 64]);
    bench.runner.disconnect();
    bench.front.disconnect();
    assert_eq!(bench.section(at, 64), vec![0; 64]);
    // It stays where it was, and its session is gone.
    assert_eq!(bench.state(), v1::STOP_COPY);
    let mut word = [0; 8];
    assert_eq!(bench.read(v1::PENDING, &mut word), Err(Errno::ENODEV));
    assert_eq!(bench.read(v1::OFFSET, &mut word), Err(Errno::ENODEV));
    bench.go(v1::RUNNING).unwrap();
    assert!(bench.save().len() > 3);
}

#[test]
fn a_section_of_an_impossible_size_is_made() {
    let bench = device();
    for (data_section, section_bytes) in [
        (DataSection::Trapped, 0),
        (DataSection::Trapped, 4095),
        (DataSection::Mapped, 4097),
        (DataSection::Split, 4096),
        (DataSection::Trapped, (64 << 20) + 4096),
        (DataSection::Mapped, u64::MAX),
    ] {
        let options = FrontOptions {
            data_section,
            section_bytes,
            ..FrontOptions::new(Generation::V1)
        };
        let made = Front::new(&bench.runner, options);
        assert!(
            matches!(made, Err(FrontError::SectionBytes(bytes)) if bytes == section_bytes)
        );
    }
}
