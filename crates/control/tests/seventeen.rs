//! The errors of the source documents that a VMM can make, one test each, by the numbers
//! of the list in `docs/generations.md`.
//!
//! Not here: 2 (the guest's side), 9 and 10 (`abi` and `dirty`), 17 (the engine's order).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]

mod fronted;

use std::sync::{Arc, Mutex};

use abi::errno::Errno;
use device::front::DataSection;
use dirty::{Bitmap, IovaRange, PageSize};
use fronted::{
    Access, Fronted, V2, broken, drain, empty, errno, full, give, resume, rfc2018, save,
    v1,
};
use port::{Device, DirtySource, Fault, Opened};
use states::v2::State;
use vfio_migrate_control::AnyDevice;

/// The states that an rfc2018 device was told, in order.
fn told(transport: &Fronted) -> Vec<u32> {
    let written = std::mem::take(&mut transport.inner().written);
    let states = written.into_iter().filter(|(at, _)| *at == 0);
    states.map(|(_, bytes)| u32::from_ne_bytes(bytes[..].try_into().unwrap())).collect()
}

fn data_of(device: &mut AnyDevice) -> Vec<u8> {
    let mut session = save(device, State::StopCopy);
    let chunks = drain(&mut *session, 4096).unwrap();
    chunks.into_iter().flat_map(|(bytes, _)| bytes).collect()
}

#[test]
fn error_03_data_lies_where_the_device_says_and_not_behind_the_registers() {
    // The fronts trap the sections of both generations at different places, and those
    // of a split one a page further on.
    for (kind, place) in [
        (v1(DataSection::Trapped), 32),
        (rfc2018(DataSection::Trapped), 80),
        (v1(DataSection::Split), 4096),
        (rfc2018(DataSection::Split), 4096),
    ] {
        let (source, mut device) = full(kind, 1_000);
        let contents = source.contents();
        let data = data_of(&mut device);
        assert!(data[8..] == contents);
        assert!(source.accesses().contains(&Access::Read(place, 1008)), "{kind:?}");
        let (destination, mut receiver) = empty(kind);
        resume(&mut receiver).write(&data, true).unwrap();
        assert!(destination.accesses().contains(&Access::Write(place, 1008)));
        receiver.set_state(State::Stop).unwrap();
        receiver.set_state(State::Running).unwrap();
        assert!(destination.contents() == contents);
    }
}

#[test]
fn error_04_the_mapped_area_is_the_one_that_holds_the_data() {
    // There is one in front of it and one behind it, both large enough.
    for kind in [v1(DataSection::Mapped), rfc2018(DataSection::Mapped)] {
        let contents: Vec<u8> = (0..3_000).map(|n| n as u8 | 1).collect();
        let transport = Fronted::new(kind, fronted::Jar::new(contents.clone()));
        let mut region =
            vfio_migrate_control::Transport::region_info(&*transport, 9).unwrap();
        region.size += 1 << 20;
        region.areas.insert(0, (4096 + (1 << 19), 1 << 19));
        region.areas.insert(0, (80, 4016));
        transport.inner().region = Some(region);
        let mut device = vfio_migrate_control::open_any(transport.clone()).unwrap();
        transport.accesses();
        assert!(data_of(&mut device)[8..] == contents);
        let trapped = |access: &Access| match access {
            Access::Read(offset, _) | Access::Write(offset, _) => *offset >= 4096,
        };
        assert!(!transport.accesses().iter().any(trapped), "it was mapped");
    }
}

#[test]
fn error_05_the_data_is_written_before_its_size() {
    for (kind, data, size) in [
        (v1(DataSection::Trapped), 32, (24, 8)),
        (rfc2018(DataSection::Trapped), 80, (36, 16)),
    ] {
        let (destination, mut receiver) = empty(kind);
        let mut session = resume(&mut receiver);
        destination.accesses();
        session.write(&[1; 300], false).unwrap();
        session.write(&[2; 200], true).unwrap();
        assert_eq!(
            destination.accesses(),
            [
                Access::Write(data, 300),
                Access::Write(data + 300, 200),
                Access::Write(size.0, size.1)
            ]
        );
    }
}

#[test]
fn error_06_the_region_is_set_up_before_the_device_resumes() {
    for kind in [v1(DataSection::Split), rfc2018(DataSection::Mapped)] {
        // An area that cannot be: the device is not told to resume at all.
        let (destination, mut receiver) = empty(kind);
        destination.inner().map = Some(Ok((0, 4096)));
        destination.inner().written.clear();
        let error = receiver.set_state(State::Resuming).unwrap_err();
        assert!(broken(&error).contains("over its registers"), "{error}");
        assert_eq!(told(&destination), []);
        assert_eq!(receiver.state().unwrap(), State::Running);
        assert_eq!(destination.inner().maps.len(), 1);
    }
}

#[test]
fn error_07_stop_and_copy_goes_on_until_nothing_of_any_kind_is_pending() {
    // All that is left is "compatible", where the document's VMM looks at postcopy_only.
    let (source, mut device) = full(rfc2018(DataSection::Trapped), 20_000);
    let contents = source.contents();
    source.lie(|seen| {
        if seen.reads(4) {
            let all = seen.u64(0) + seen.u64(8) + seen.u64(16);
            seen.set_u64(0, all / 2);
            seen.set_u64(8, all - all / 2);
            seen.set_u64(16, 0);
        }
        Ok(())
    });
    assert!(data_of(&mut device)[8..] == contents);
    // And a device that never comes to its end does not keep anybody for ever.
    let (source, mut device) = full(rfc2018(DataSection::Trapped), 20_000);
    source.lie(|seen| {
        if seen.reads(4) {
            seen.set_u64(8, 7);
        }
        Ok(())
    });
    let mut session = save(&mut device, State::StopCopy);
    let error = drain(&mut *session, 4096).unwrap_err();
    assert!(broken(&error).contains("gave none of them"), "{error}");
}

fn log(device: &AnyDevice) -> Box<dyn DirtySource> {
    device.dirty_source().unwrap().unwrap()
}

/// The pages that a source tells of `range`, by their addresses.
fn dirty(source: &mut dyn DirtySource, range: IovaRange) -> Vec<u64> {
    let bitmap = Bitmap::new(range, PageSize::FOUR_K).unwrap();
    source
        .collect(range, &mut |report| {
            bitmap.merge(report.range, report.page, report.words);
        })
        .unwrap();
    let drained = bitmap.drain();
    let pages = drained.runs().flat_map(|run| run.pieces(4096));
    pages.map(|page| page.start()).collect()
}

fn all(range: IovaRange) -> Vec<u64> {
    range.pieces(4096).map(|page| page.start()).collect()
}

fn memory() -> IovaRange {
    IovaRange::new(0, fronted::MEMORY).unwrap()
}

#[test]
fn error_08_one_device_that_does_not_migrate_does_not_stop_the_others() {
    let (one, mut migrating) = full(rfc2018(DataSection::Mapped), 5_000);
    let (other, idle) = full(rfc2018(DataSection::Mapped), 5_000);
    let mut logs = [log(&migrating), log(&idle)];
    for log in &mut logs {
        log.start(&[memory()], PageSize::FOUR_K).unwrap();
    }
    drop(migrating.set_state(State::PreCopy).unwrap());
    one.dma(0x5000);
    one.dma(0xff000);
    other.dma(0x1000);
    assert_eq!(dirty(&mut *logs[0], memory()), [0x5000, 0xff000]);
    assert_eq!(dirty(&mut *logs[0], memory()), [0u64; 0], "told once");
    // A device that does not log yet has not said that it wrote nothing.
    assert_eq!(dirty(&mut *logs[1], memory()), all(memory()));
}

#[test]
fn error_11_after_a_failed_transition_the_state_is_read_again() {
    let (source, mut device) = full(v1(DataSection::Trapped), 100);
    source.lie(|seen| match (seen.writes(0), seen.number) {
        // It stops, and then says that it did not work.
        (true, _) => Err(errno(Errno::EIO)),
        _ => Ok(()),
    });
    let error = device.set_state(State::StopCopy).unwrap_err();
    assert_eq!(error.operation, "RUNNING to STOP_COPY, now RUNNING");
    assert_eq!(error.fault, Fault::Refused(Errno::EIO));
    // In error: nothing but a reset.
    source.lie(|seen| {
        if seen.reads(0) {
            seen.bytes[0] = seen.bytes[0] & !7 | 0b110;
        }
        Ok(())
    });
    assert_eq!(device.state().unwrap(), State::Error);
    for target in [State::Running, State::Stop, State::Resuming] {
        assert!(device.set_state(target).is_err());
    }
    source.inner().lie = None;
    device.reset().unwrap();
    assert_eq!(device.state().unwrap(), State::Running);
}

#[test]
fn error_12_a_state_that_was_set_is_not_taken_for_a_failure() {
    // The document's VMM saves nothing then, and says that it is done.
    for kind in [v1(DataSection::Trapped), rfc2018(DataSection::Trapped)] {
        let (source, mut device) = full(kind, 3_000);
        let contents = source.contents();
        assert!(data_of(&mut device)[8..] == contents);
        device.set_state(State::Stop).unwrap();
    }
}

#[test]
fn error_13_a_buffer_that_failed_never_ends_as_a_success() {
    for kind in [v1(DataSection::Trapped), rfc2018(DataSection::Trapped)] {
        let (source, mut device) = full(kind, 20_000);
        let mut session = save(&mut device, State::StopCopy);
        let mut buffer = [0; 8192];
        session.read(&mut buffer).unwrap();
        source.lie(|seen| match seen.access {
            Access::Read(_, 33..) => Err(errno(Errno::EIO)),
            _ => Ok(()),
        });
        let error = session.read(&mut buffer).unwrap_err();
        assert_eq!(error.fault, Fault::Refused(Errno::EIO));
        source.inner().lie = None;
        for _ in 0..10 {
            let error = session.read(&mut buffer).unwrap_err();
            assert!(broken(&error).contains("not complete"), "{error}");
        }
        // The device hears of the failure, where it can.
        source.inner().written.clear();
        drop(session);
        device.set_state(State::Running).unwrap();
        if kind.generation != v1(DataSection::Trapped).generation {
            assert_eq!(told(&source), [8, 1], "FAILED, RUNNING");
        }
    }
}

#[test]
fn error_14_a_query_for_dirty_pages_begins_at_0_and_never_spins() {
    let (source, mut device) = full(rfc2018(DataSection::Trapped), 100);
    let mut log = log(&device);
    log.start(&[memory()], PageSize::FOUR_K).unwrap();
    drop(device.set_state(State::PreCopy).unwrap());
    source.inner().written.clear();
    source.dma(0x7000);
    assert_eq!(dirty(&mut *log, memory()), [0x7000]);
    let asked = source.inner().written[0].clone();
    assert_eq!((asked.0, asked.1.len()), (52, 24));
    assert_eq!(asked.1[16..], [0; 8], "copied");
    // Nothing copied, again and again: what is not told is dirty.
    let reads = Arc::new(Mutex::new(0));
    let count = Arc::clone(&reads);
    source.lie(move |seen| {
        if seen.reads(52) {
            seen.set_u64(16, 0);
            *count.lock().unwrap() += 1;
        }
        Ok(())
    });
    assert_eq!(dirty(&mut *log, memory()), all(memory()));
    assert!((2..=16).contains(&*reads.lock().unwrap()));
}

#[test]
fn error_15_no_page_and_no_count_of_a_failed_question_is_used() {
    let (source, mut device) = full(rfc2018(DataSection::Trapped), 20_000);
    let mut log = log(&device);
    log.start(&[memory()], PageSize::FOUR_K).unwrap();
    let mut session = save(&mut device, State::PreCopy);
    source.dma(0x7000);
    // A failed query is an error, which means that everything is dirty: never an end.
    source.lie(|seen| if seen.reads(52) { Err(errno(Errno::EIO)) } else { Ok(()) });
    let mut found = 0;
    log.collect(memory(), &mut |_| found += 1).unwrap_err();
    assert_eq!(found, 0);
    // And a failed read of what is pending is not the one before.
    source.lie(|seen| if seen.reads(4) { Err(errno(Errno::EIO)) } else { Ok(()) });
    assert_eq!(session.precopy_info().unwrap_err().fault, Fault::Refused(Errno::EIO));
    assert_eq!(device.stop_copy_bytes().unwrap_err().fault, Fault::Refused(Errno::EIO));
    assert!(session.read(&mut [0; 100]).is_err());
}

#[test]
fn error_16_a_source_is_never_told_to_resume() {
    let (source, mut device) = full(rfc2018(DataSection::Trapped), 5_000);
    for target in [State::PreCopy, State::StopCopy, State::Stop, State::Running] {
        drop(device.set_state(target).unwrap());
    }
    drop(device.set_state(State::PreCopy).unwrap());
    drop(device.set_state(State::Running).unwrap());
    let told = told(&source);
    assert_eq!(told, [2, 3, 4, 5, 1, 2, 3, 9, 1]);
    // And a destination is told before it gets its data.
    let (destination, mut receiver) = empty(rfc2018(DataSection::Trapped));
    let (_, mut sender) = full(V2, 100);
    let chunks = drain(&mut *save(&mut sender, State::StopCopy), 100).unwrap();
    let mut session = match receiver.set_state(State::Resuming).unwrap() {
        Opened::Resume(session) => session,
        other => panic!("{other:?}"),
    };
    give(&mut *session, &chunks).unwrap();
    receiver.set_state(State::Stop).unwrap();
    let written = std::mem::take(&mut destination.inner().written);
    let order: Vec<u64> = written.into_iter().map(|(at, _)| at).collect();
    assert_eq!(order, [0, 80, 180, 36, 0]);
}
