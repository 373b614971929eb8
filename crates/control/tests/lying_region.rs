//! Migration regions that lie: each is refused, with the reason, in bounded time.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]

mod fronted;

use std::sync::{Arc, Mutex};

use device::front::{DataSection, Generation};
use dirty::{Bitmap, IovaRange, PageSize};
use fronted::{
    Access, Fronted, Jar, Kind, Seen, broken, drain, empty, full, resume, rfc2018, save,
    v1,
};
use port::{Device, Fault, Read};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use states::v2::State;
use vfio_migrate_control::{ProbeError, RegionInfo, Transport, open_any};

const BOTH: [Kind; 2] = [v1(DataSection::Trapped), rfc2018(DataSection::Trapped)];

/// The registers of one generation, by what they are for.
struct Registers {
    pending: u64,
    /// Of what is read at `pending`.
    pending_in: usize,
    data: u64,
    size: u64,
    size_in: usize,
}

fn registers(kind: Kind) -> Registers {
    match kind.generation {
        Some(Generation::V1) => {
            Registers { pending: 8, pending_in: 0, data: 16, size: 24, size_in: 0 }
        }
        _ => Registers { pending: 4, pending_in: 16, data: 36, size: 36, size_in: 8 },
    }
}

/// A device whose region information is not what it should be.
fn misshapen(kind: Kind, change: impl FnOnce(&mut RegionInfo)) -> String {
    let transport = Fronted::new(kind, Jar::new(vec![1; 100]));
    let mut region = transport.region_info(9).unwrap();
    change(&mut region);
    transport.inner().region = Some(region);
    match open_any(transport).unwrap_err() {
        error @ ProbeError::Broken { .. } => error.to_string(),
        other => panic!("{other}"),
    }
}

#[test]
fn a_region_that_cannot_be_one_is_refused_before_anything_is_asked_of_it() {
    type Change = Box<dyn Fn(&mut RegionInfo)>;
    let cases: [(&str, Change); 9] = [
        ("no room for data", Box::new(|region| region.size = 0)),
        ("no room for data", Box::new(|region| region.size = 32)),
        ("both read and written", Box::new(|region| region.flags = 1)),
        ("over its registers", Box::new(|region| region.areas = vec![(0, 4096)])),
        ("over its registers", Box::new(|region| region.areas = vec![(31, 4096)])),
        ("not inside", Box::new(|region| region.areas = vec![(1 << 40, 4096)])),
        ("not inside", Box::new(|region| region.areas = vec![(4096, u64::MAX)])),
        ("not inside", Box::new(|region| region.areas = vec![(4096, 0)])),
        (
            "overlap",
            Box::new(|region| {
                region.size = 1 << 20;
                region.areas = vec![(8192, 4096), (4096, 4097)];
            }),
        ),
    ];
    for kind in BOTH {
        for (expected, change) in &cases {
            let error = misshapen(kind, change);
            assert!(error.contains(expected), "{error}, and not {expected}");
            assert!(
                error.starts_with("jar0 broke its protocol: its migration region, 9")
            );
        }
    }
}

/// What saving says, from the state on, to whoever reads to the end.
fn reading(
    kind: Kind,
    state: State,
    lie: impl FnMut(&mut Seen<'_>) + Send + 'static,
) -> String {
    let mut lie = lie;
    let (source, mut device) = full(kind, 100_000);
    let mut session = save(&mut device, state);
    source.lie(move |seen| {
        lie(seen);
        Ok(())
    });
    source.accesses();
    let error = drain(&mut *session, 1 << 16).unwrap_err();
    assert!(source.accesses().len() < 1 << 18, "it took too many accesses");
    broken(&error).to_owned()
}

#[test]
fn data_outside_the_region_or_inside_its_registers_is_not_read() {
    for kind in BOTH {
        let Registers { data, size, size_in, .. } = registers(kind);
        let info = if kind.generation == Some(Generation::V1) { 32 } else { 76 };
        for (offset, expected) in [
            (0, "inside its registers"),
            (info - 1, "inside its registers"),
            (1 << 20, "outside its region"),
            (u64::MAX, "outside its region"),
            (8192, "outside its region"),
        ] {
            for state in [State::PreCopy, State::StopCopy] {
                let what = reading(kind, state, move |seen| {
                    if seen.reads(data) {
                        seen.set_u64(0, offset);
                    }
                });
                assert!(what.contains(expected), "{offset:#x}: {what}");
            }
        }
        for bytes in [8193 + 80, 1 << 40, u64::MAX] {
            let what = reading(kind, State::PreCopy, move |seen| {
                if seen.reads(size) {
                    seen.set_u64(size_in, bytes);
                }
            });
            assert!(what.contains("outside its region"), "{bytes}: {what}");
        }
    }
}

#[test]
fn data_that_is_wanted_outside_the_region_is_not_written() {
    for kind in BOTH {
        let place = registers(kind).data;
        for offset in [0, 31, 1 << 20, u64::MAX] {
            let (destination, mut receiver) = empty(kind);
            destination.lie(move |seen| {
                if seen.reads(place) {
                    seen.set_u64(0, offset);
                }
                Ok(())
            });
            destination.inner().written.clear();
            let error = receiver.set_state(State::Resuming).unwrap_err();
            let what = broken(&error);
            assert!(what.contains("registers") || what.contains("outside"), "{what}");
            let written = destination.inner().written.len();
            assert_eq!(written, 1, "the state, and no data");
            receiver.reset().unwrap();
        }
    }
}

#[test]
fn a_stopped_device_with_more_data_than_it_had_is_refused() {
    for kind in BOTH {
        let Registers { pending, pending_in, .. } = registers(kind);
        let what = reading(kind, State::StopCopy, move |seen| {
            if seen.reads(pending) {
                seen.set_u64(pending_in, 100);
            }
        });
        assert!(what.contains("100 bytes left, and gives 8192"), "{what}");
    }
}

#[test]
fn a_device_whose_pending_bytes_never_end_is_given_up() {
    for kind in BOTH {
        let Registers { pending, pending_in, size, size_in, .. } = registers(kind);
        // Data, again and again.
        let what = reading(kind, State::StopCopy, move |seen| {
            if seen.reads(pending) {
                seen.set_u64(pending_in, 5000);
            }
            if seen.reads(size) {
                seen.set_u64(size_in, 10);
            }
        });
        assert!(what.contains("still has 5000 bytes left"), "{what}");
        // No data.
        let what = reading(kind, State::StopCopy, move |seen| {
            if seen.reads(pending) {
                seen.set_u64(pending_in, 5000);
            }
            if seen.reads(size) {
                seen.set_u64(size_in, 0);
            }
        });
        assert!(what.contains("gave none of them"), "{what}");
    }
}

#[test]
fn a_device_that_counts_its_stopped_data_in_pre_copy_is_at_a_temporary_end() {
    for kind in BOTH {
        let Registers { pending, size, size_in, .. } = registers(kind);
        let (source, mut device) = full(kind, 50_000);
        let mut session = save(&mut device, State::PreCopy);
        source.lie(move |seen| {
            if seen.reads(pending) {
                seen.set_u64(0, 1 << 30);
            }
            if seen.reads(size) {
                seen.set_u64(size_in, 0);
            }
            Ok(())
        });
        assert_eq!(session.read(&mut [0; 100]).unwrap(), Read::End);
        let info = session.precopy_info().unwrap().unwrap();
        assert_eq!((info.initial_bytes, info.dirty_bytes), (0, 1 << 30));
    }
}

#[test]
fn more_than_2_to_the_64_bytes_are_no_amount() {
    let what = reading(rfc2018(DataSection::Trapped), State::StopCopy, |seen| {
        if seen.reads(4) {
            seen.set_u64(0, u64::MAX);
            seen.set_u64(8, 1);
        }
    });
    assert!(what.contains("2^64"), "{what}");
}

#[test]
fn a_state_that_reads_back_as_another_is_refused() {
    // v1: the write is lost.
    let (source, mut device) = full(v1(DataSection::Trapped), 100);
    source.lie(|seen| {
        if seen.writes(0) {
            seen.bytes[0] = seen.bytes[0] & !7 | 1;
        }
        Ok(())
    });
    let error = device.set_state(State::StopCopy).unwrap_err();
    assert!(broken(&error).contains("reads back as 0b001"), "{error}");
    // v1: combinations that do not exist.
    for bits in [0b101, 0b111] {
        source.lie(move |seen| {
            if seen.reads(0) {
                seen.bytes[0] = seen.bytes[0] & !7 | bits;
            }
            Ok(())
        });
        let error = device.state().unwrap_err();
        assert!(broken(&error).contains("invalid combinations"), "{error}");
        assert!(device.set_state(State::Stop).is_err());
    }
    // rfc2018: the state need not be readable, but where it is, it is right.
    let (source, mut device) = full(rfc2018(DataSection::Trapped), 100);
    source.lie(|seen| {
        if seen.reads(0) {
            seen.bytes.copy_from_slice(&6u32.to_ne_bytes());
        }
        Ok(())
    });
    let error = device.set_state(State::PreCopy).unwrap_err();
    assert!(broken(&error).contains("told"), "{error}");
    source.inner().lie = None;
    // One step of two, and the other is not asked for.
    let (source, mut half) = full(rfc2018(DataSection::Trapped), 100);
    let mut reads = 0;
    source.lie(move |seen| {
        if seen.reads(0) {
            reads += 1;
            let said = if reads == 2 { 6u32 } else { 0 };
            seen.bytes.copy_from_slice(&said.to_ne_bytes());
        }
        Ok(())
    });
    let error = half.set_state(State::PreCopy).unwrap_err();
    assert!(broken(&error).contains("set to SETUP, and reads back"), "{error}");
    assert_eq!(source.inner().written.len(), 1);
    // Nothing is known of it then, and nothing leads on but a reset.
    assert_eq!(device.state().unwrap(), State::Error);
    assert!(device.set_state(State::Running).is_err());
    device.reset().unwrap();
    drop(save(&mut device, State::PreCopy));
}

#[test]
fn what_is_mapped_has_to_be_what_was_asked_for() {
    for kind in [v1(DataSection::Mapped), rfc2018(DataSection::Mapped)] {
        for (map, expected) in [
            ((8192, 4096), "what is mapped there covers"),
            ((0, 16384), "over its registers"),
        ] {
            let (source, mut device) = full(kind, 10_000);
            source.inner().map = Some(Ok(map));
            let said = match device.set_state(State::StopCopy) {
                Err(error) => broken(&error).to_owned(),
                Ok(port::Opened::Save(mut session)) => {
                    broken(&session.read(&mut [0; 100]).unwrap_err()).to_owned()
                }
                other => panic!("{other:?}"),
            };
            assert!(said.contains(expected), "{said}");
        }
        // Less than was said: the rest goes by another way, or nowhere.
        let (source, mut device) = full(kind, 10_000);
        source.inner().map = Some(Ok((4096, 4096)));
        let mut session = save(&mut device, State::StopCopy);
        let error = drain(&mut *session, 1 << 16).unwrap_err();
        assert!(broken(&error).contains("what is mapped there covers"), "{error}");
    }
}

#[test]
fn a_transaction_that_does_not_fit_is_refused_before_any_of_it_is_written() {
    for kind in [
        v1(DataSection::Trapped),
        v1(DataSection::Mapped),
        rfc2018(DataSection::Trapped),
        rfc2018(DataSection::Split),
    ] {
        let (destination, mut receiver) = empty(kind);
        let mut session = resume(&mut receiver);
        assert_eq!(receiver.longest_transaction(), Some(8192));
        destination.inner().written.clear();
        let error = session.write(&[0; 8193], true).unwrap_err();
        let what = broken(&error);
        assert!(what.contains("transaction of 8193") && what.contains("8192"), "{what}");
        assert_eq!(destination.inner().written.len(), 0);
        // Nothing of it passes for a load.
        assert!(broken(&session.write(&[0; 8], true).unwrap_err()).contains("complete"));
        assert!(receiver.set_state(State::Stop).is_err());
        assert!(receiver.set_state(State::Running).is_err());
        receiver.reset().unwrap();
    }
}

#[test]
fn a_transaction_that_comes_in_pieces_is_given_in_one_or_not_at_all() {
    for kind in BOTH {
        let (_, mut receiver) = empty(kind);
        let mut session = resume(&mut receiver);
        session.write(&[0; 8], true).unwrap();
        session.write(&[0; 8000], false).unwrap();
        let error = session.write(&[0; 193], false).unwrap_err();
        assert!(broken(&error).contains("8193 bytes or more"), "{error}");
        // One that does not end.
        let (_, mut receiver) = empty(kind);
        let mut session = resume(&mut receiver);
        session.write(&[0; 8], true).unwrap();
        session.write(&[0; 8], false).unwrap();
        drop(session);
        let error = receiver.set_state(State::Stop).unwrap_err();
        assert!(broken(&error).contains("in the middle of a transaction"), "{error}");
        // The first one, of which nobody knew that it is one until it was cut.
        let (_, mut receiver) = empty(kind);
        let mut session = resume(&mut receiver);
        session.write(&[0; 8192], false).unwrap();
        session.write(&[0; 8192], false).unwrap();
        let error = session.write(&[0; 8], true).unwrap_err();
        assert!(broken(&error).contains("does not fit"), "{error}");
    }
}

#[test]
fn a_device_that_does_not_answer_is_lost_and_not_asked_again() {
    for kind in BOTH {
        let (source, mut device) = full(kind, 100);
        source.lie(|seen| match seen.access {
            Access::Write(..) => Err(vfio_migrate_control::TransportError::TimedOut {
                operation: "write a region",
                millis: 7,
            }),
            Access::Read(..) => Ok(()),
        });
        let error = device.set_state(State::StopCopy).unwrap_err();
        assert_eq!(error.fault, Fault::TimedOut(7));
        let last = source.accesses().pop();
        assert_eq!(last, Some(Access::Write(0, 4)), "the last thing that it was asked");
    }
}

/// The dirty pages that a device tells of 8 MiB, how many there are, and how often it was
/// asked; `None` where it failed.
fn dirty(lie: impl FnMut(&mut Seen<'_>) + Send + 'static) -> (Option<u64>, u64) {
    let mut lie = lie;
    let (source, mut device) = full(rfc2018(DataSection::Trapped), 100);
    let mut log = device.dirty_source().unwrap().unwrap();
    let range = IovaRange::new(0, 8 << 20).unwrap();
    log.start(&[range], PageSize::FOUR_K).unwrap();
    drop(device.set_state(State::PreCopy).unwrap());
    source.dma(0x3000);
    source.dma(0x4000);
    let asked = Arc::new(Mutex::new(0));
    let count = Arc::clone(&asked);
    source.lie(move |seen| {
        *count.lock().unwrap() += u64::from(seen.reads(52));
        lie(seen);
        Ok(())
    });
    let bitmap = Bitmap::new(range, PageSize::FOUR_K).unwrap();
    let done = log.collect(range, &mut |report| {
        bitmap.merge(report.range, report.page, report.words);
    });
    let asked = *asked.lock().unwrap();
    (done.is_ok().then(|| bitmap.count()), asked)
}

#[test]
fn no_dirty_page_is_lost_to_a_device_that_tells_them_oddly() {
    assert_eq!(dirty(|_| {}), (Some(2), 1));
    // A page at a time: after a while the rest is dirty.
    let (pages, asked) = dirty(|seen| {
        if seen.reads(52) {
            seen.set_u64(16, 1);
        }
    });
    assert!(pages.unwrap() > 1500 && asked < 600, "{pages:?} {asked}");
    // Some, and then nothing any more.
    let mut first = true;
    let (pages, asked) = dirty(move |seen| {
        if seen.reads(52) {
            seen.set_u64(16, if std::mem::take(&mut first) { 64 } else { 0 });
        }
    });
    assert_eq!(pages, Some(2 + 2048 - 64));
    assert!(asked < 20, "{asked}");
    // More than were asked for, and about others.
    for (at, value) in [(16, 2049), (16, u64::MAX), (0, 4096), (8, 7)] {
        let (pages, _) = dirty(move |seen| {
            if seen.reads(52) {
                seen.set_u64(at, value);
            }
        });
        assert_eq!(pages, None, "{at} {value}");
    }
    // The same pages again, which a device may not: they overlap what was told.
    let mut told = 0;
    let (pages, _) = dirty(move |seen| {
        if seen.reads(52) {
            told += 1;
            seen.set_u64(16, if told == 1 { 2048 - 64 } else { 128 });
        }
    });
    assert_eq!(pages, None);
}

#[test]
fn a_bitmap_that_does_not_fit_into_the_region_is_not_read() {
    // 2^20 pages are 128 KiB of bits, and there are 8 KiB.
    let (source, mut device) = full(rfc2018(DataSection::Trapped), 100);
    let mut log = device.dirty_source().unwrap().unwrap();
    let range = IovaRange::new(0, 4 << 30).unwrap();
    log.start(&[range], PageSize::FOUR_K).unwrap();
    drop(device.set_state(State::PreCopy).unwrap());
    source.lie(|seen| {
        if seen.reads(52) {
            seen.set_u64(16, 1 << 20);
        }
        Ok(())
    });
    let error = log.collect(range, &mut |_| {}).unwrap_err();
    let beneath = std::error::Error::source(&error).unwrap().to_string();
    assert!(beneath.contains("outside its region"), "{beneath}");
}

#[test]
fn a_query_for_dirty_pages_does_not_tear_the_buffer_that_is_being_read() {
    for section in fronted::SECTIONS {
        let (source, mut device) = full(rfc2018(section), 30_000);
        let contents = source.contents();
        let mut log = device.dirty_source().unwrap().unwrap();
        let range = IovaRange::new(0, fronted::MEMORY).unwrap();
        let mut session = save(&mut device, State::PreCopy);
        let mut bytes = vec![0; 10];
        session.read(&mut bytes).unwrap();
        source.dma(0x3000);
        let mut words = 0;
        log.collect(range, &mut |report| words += report.words.len()).unwrap();
        assert_eq!(words, 4);
        device.set_state(State::StopCopy).unwrap();
        for (more, _) in drain(&mut *session, 1000).unwrap() {
            bytes.extend(more);
        }
        assert!(bytes[8..] == contents, "{section:?}");
    }
}

/// Numbers that lengths and offsets go wrong by.
fn odd() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..100_000u64,
        (0..64u32).prop_map(|bit| 1 << bit),
        (0..64u32).prop_map(|bit| (1u64 << bit).wrapping_sub(1)),
        Just(u64::MAX),
        Just(32),
        Just(76),
        Just(4096),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn no_region_breaks_the_adapter_or_keeps_it(
        lies in proptest::collection::vec((0..3usize, odd(), any::<bool>()), 1..60),
        v1_region in any::<bool>(),
        room in 1..10_000usize,
    ) {
        let kind = BOTH[usize::from(!v1_region)];
        let (source, mut device) = full(kind, 20_000);
        let mut log = device.dirty_source().unwrap();
        let mut lies = lies.into_iter().cycle();
        source.lie(move |seen| {
            let registers = matches!(seen.access, Access::Read(..76, 8 | 16 | 24 | 32));
            if registers && let Some((word, number, true)) = lies.next() {
                let at = word * 8 % seen.bytes.len();
                seen.set_u64(at, number);
            }
            Ok(())
        });
        let mut buffer = vec![0; room];
        let mut session = None;
        for target in [State::PreCopy, State::StopCopy, State::Stop, State::Resuming] {
            match device.set_state(target) {
                Ok(port::Opened::Save(opened)) => session = Some(opened),
                Ok(port::Opened::Resume(mut opened)) => {
                    let _ = opened.write(&buffer, false);
                    let _ = opened.write(&buffer, true);
                }
                Ok(port::Opened::None) | Err(_) => {}
            }
            let _ = device.stop_copy_bytes();
            if let Some(log) = &mut log {
                let range = IovaRange::new(0, fronted::MEMORY).unwrap();
                let _ = log.collect(range, &mut |report| {
                    assert!(range.covers(report.range));
                });
            }
            // As often as a round of pre-copy would; once stopped it ends by itself.
            let most = if target == State::PreCopy { 100 } else { usize::MAX };
            if let Some(session) = session.as_mut().filter(|_| target.is_saving()) {
                let _ = session.precopy_info();
                for _ in 0..most {
                    match session.read(&mut buffer) {
                        Ok(Read::Data { bytes, .. }) => {
                            assert!((1..=room).contains(&bytes));
                        }
                        Ok(Read::End) | Err(_) => break,
                    }
                }
            }
        }
        source.inner().lie = None;
        device.reset().unwrap();
        assert_eq!(device.state().unwrap(), State::Running);
    }
}
