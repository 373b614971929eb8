//! Devices of every generation, from one to another.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]

mod fronted;

use abi::errno::Errno;
use device::front::DataSection;
use engine::devices::{DeviceId, DeviceSet, SetError};
use fronted::{
    Access, Fronted, Kind, SECTIONS, V2, drain, empty, errno, full, give, resume,
    rfc2018, save, v1,
};
use port::{Bus, Device, Fault, Generation, Opened, Read};
use proptest::prelude::{any, prop_assert_eq, proptest};
use states::rfc2018::{ChartLine, RESUME_CHART, RfcState, SAVE_CHART};
use states::v2::{Capabilities, State};
use vfio_migrate_control::{AnyDevice, ProbeError, SaveStream, open_any};

/// Every kind of device there is.
fn kinds() -> Vec<Kind> {
    let mut all = vec![V2];
    for section in SECTIONS {
        all.extend([v1(section), rfc2018(section)]);
    }
    all
}

#[test]
fn a_device_is_opened_as_what_it_is() {
    for (kind, generation) in [
        (V2, Generation::V2),
        (v1(DataSection::Mapped), Generation::V1),
        (rfc2018(DataSection::Trapped), Generation::RFC2018),
    ] {
        let (_, mut device) = full(kind, 10);
        let identity = device.identity().clone();
        assert_eq!(identity.generation, generation);
        assert_eq!(identity.capabilities, Capabilities::PRE_COPY);
        assert!(matches!(identity.bus, Bus::Other(_)));
        assert_eq!(device.state().unwrap(), State::Running);
        assert_eq!(
            device.stop_copy_bytes().unwrap().is_some(),
            generation == Generation::V2
        );
        assert_eq!(
            device.longest_transaction(),
            (generation != Generation::V2).then_some(8192)
        );
        assert_eq!(device.validated_at_start(), generation == Generation::V1);
        assert_eq!(device.withheld(), []);
    }
}

#[test]
fn a_stream_that_may_start_over_is_read_once_it_has_stopped() {
    for kind in [v1(DataSection::Trapped), rfc2018(DataSection::Trapped)] {
        let transport = Fronted::new(kind, fronted::Jar::new(vec![1; 100]));
        transport.inner().stream = SaveStream::Restarts("says a test");
        let mut device = open_any(transport).unwrap();
        assert_eq!(device.identity().capabilities, Capabilities::STOP_COPY);
        assert_eq!(device.withheld()[0].what, "PRE_COPY");
        assert!(device.set_state(State::PreCopy).is_err());
        drop(save(&mut device, State::StopCopy));
    }
}

#[test]
fn the_engine_s_set_of_devices_does_not_know_which_is_which() {
    // One of each on one side, and one of each other on the other.
    let of = [v1(DataSection::Split), rfc2018(DataSection::Mapped), V2];
    let (sources, devices): (Vec<_>, Vec<_>) =
        of.iter().map(|kind| full(*kind, 30_000)).unzip();
    let contents = sources[0].contents();
    let boxed = |devices: Vec<AnyDevice>| -> Vec<Box<dyn Device>> {
        devices.into_iter().map(|device| Box::new(device) as _).collect()
    };
    let mut from = DeviceSet::new(boxed(devices), false).unwrap();
    let mixed = [of[2], of[0], of[1]];
    let (destinations, devices): (Vec<_>, Vec<_>) =
        mixed.iter().map(|kind| empty(*kind)).unzip();
    let mut to = DeviceSet::new(boxed(devices), false).unwrap();
    from.setup().unwrap();
    to.load().unwrap();
    let mut buffer = vec![0; 3_000];
    let pending = from.pending().unwrap();
    assert!(pending.iter().all(|left| left.precopy.unwrap().initial_bytes > 0));
    for phase in [State::PreCopy, State::StopCopy] {
        for n in 0..3 {
            from.complete::<SetError>(DeviceId(n), &mut buffer, |bytes, ends| {
                to.write(DeviceId(n), bytes, ends)
            })
            .unwrap();
        }
        if phase == State::PreCopy {
            from.quiesce().unwrap();
        }
    }
    from.finish().unwrap();
    to.loaded().unwrap();
    to.start().unwrap();
    for destination in destinations {
        assert!(destination.contents() == contents);
    }
    // And all of them come back, from a save that is given up as from one that is done.
    from.start().unwrap();
    from.setup().unwrap();
    from.quiesce().unwrap();
    let rollback = from.rollback();
    assert_eq!((rollback.reset.len(), rollback.lost.len()), (0, 0));
    assert!(sources.iter().all(|source| source.contents() == contents));
}

#[test]
fn a_device_without_any_of_it_is_refused_with_the_reason() {
    let transport = Fronted::new(v1(DataSection::Trapped), fronted::Jar::default());
    let mut region = control_region(&transport);
    region.kind = Some((3, 2));
    transport.inner().region = Some(region);
    let error = open_any(transport).unwrap_err();
    assert!(matches!(error, ProbeError::NotMigratable { errno: Errno::ENOTTY, .. }));
    assert!(error.to_string().contains("no migration region"), "{error}");
}

/// The device states that an rfc2018 device was told since the last time.
fn told(transport: &Fronted) -> Vec<RfcState> {
    let written = std::mem::take(&mut transport.inner().written);
    let states = written.into_iter().filter(|(at, _)| *at == 0);
    let number = |bytes: Vec<u8>| u32::from_ne_bytes(bytes[..].try_into().unwrap());
    states.map(|(_, bytes)| RfcState::ALL[number(bytes) as usize]).collect()
}

/// The device states of the chart's lines with these VM and migration states.
fn charted(chart: &[ChartLine], lines: &[(&str, &str)]) -> Vec<RfcState> {
    let states = chart.iter().filter(|line| lines.contains(&(line.0, line.1)));
    let mut states: Vec<RfcState> = states.map(|line| line.2).collect();
    states.dedup();
    states
}

#[test]
fn a_vm_takes_its_devices_through_another_chart_than_that_of_document_001() {
    let kind = rfc2018(DataSection::Split);
    let set = |device: AnyDevice| DeviceSet::new(vec![Box::new(device)], false).unwrap();
    let mut buffer = vec![0; 3_000];
    // How far a save gets, and how it ends there: in full, cancelled, failed.
    for (last, undo) in [0, 1, 2, 3].into_iter().flat_map(|last| {
        let fails = (last == 1 || last == 2).then_some(RfcState::Failed);
        [Some(RfcState::Cancelled), fails].into_iter().flatten().map(move |u| (last, u))
    }) {
        let (source, device) = full(kind, 20_000);
        let contents = source.contents();
        let (destination, device_there) = empty(kind);
        let (mut from, mut to) = (set(device), set(device_there));
        // (RUNNING, _NONE): it is so by itself, and nobody tells it.
        assert_eq!((told(&source), told(&destination)), (vec![], vec![]));
        assert_eq!(charted(&SAVE_CHART, &[("RUNNING", "_NONE")]), [RfcState::Running]);
        to.load().unwrap();
        let arriving = charted(&RESUME_CHART, &[("RESTORE_VM", "_ACTIVE")]);
        assert_eq!(told(&destination), arriving[..1]);
        let mut read = |from: &mut DeviceSet, to: &mut DeviceSet| {
            from.complete::<SetError>(DeviceId(0), &mut buffer, |bytes, ends| {
                to.write(DeviceId(0), bytes, ends)
            })
        };
        if last >= 1 {
            from.setup().unwrap();
            let lines = [("RUNNING", "_SETUP"), ("RUNNING", "_ACTIVE")];
            assert_eq!(told(&source), charted(&SAVE_CHART, &lines));
        }
        if last >= 2 {
            read(&mut from, &mut to).unwrap();
            from.quiesce().unwrap();
            let stopping = charted(&SAVE_CHART, &[("FINISH_MIGRATE", "_DEVICE")]);
            assert_eq!(told(&source), stopping[..1]);
        }
        if last == 3 {
            read(&mut from, &mut to).unwrap();
            from.finish().unwrap();
            let lines =
                [("FINISH_MIGRATE", "_COMPLETED"), ("POST_MIGRATE", "_COMPLETED")];
            assert_eq!(told(&source), charted(&SAVE_CHART, &lines));
            to.loaded().unwrap();
            assert_eq!(told(&destination), arriving[1..]);
            to.start().unwrap();
            assert_eq!(
                told(&destination),
                charted(&RESUME_CHART, &[("RUNNING", "_NONE")])
            );
            assert!(destination.contents() == contents);
        }
        if undo == RfcState::Failed {
            source.lie(|seen| match seen.access {
                Access::Read(_, 33..) => Err(errno(Errno::EIO)),
                _ => Ok(()),
            });
            read(&mut from, &mut to).unwrap_err();
            source.inner().lie = None;
        }
        // The VM goes on here: whatever it was told, the device runs, with all it had.
        let rollback = from.rollback();
        assert_eq!((rollback.reset.len(), rollback.lost.len()), (0, 0));
        match last {
            0 => assert_eq!(told(&source), []),
            // A save that is complete has nothing to cancel.
            3 => assert_eq!(told(&source).last(), Some(&RfcState::Running)),
            _ => assert_eq!(told(&source), [undo, RfcState::Running]),
        }
        assert!(source.contents() == contents);
        if last < 3 {
            // And what came so far never runs there.
            to.discard();
            assert!(!told(&destination).contains(&RfcState::ResumeCompleted));
            let mut length = [1; 8];
            destination.inner().runner.read_region(0, 8, &mut length).unwrap();
            assert_eq!(length, [0; 8], "it is empty");
        }
    }
}

fn control_region(transport: &Fronted) -> vfio_migrate_control::RegionInfo {
    vfio_migrate_control::Transport::region_info(transport, 9).unwrap()
}

/// Moves what one device holds to another, with pre-copy; `room` bytes at a time.
fn migrate(from: Kind, to: Kind, length: usize, room: usize) {
    let (source, mut sender) = full(from, length);
    let (destination, mut receiver) = empty(to);
    let contents = source.contents();
    let mut saving = save(&mut sender, State::PreCopy);
    let mut loading = resume(&mut receiver);
    let info = saving.precopy_info().unwrap().unwrap();
    assert!(info.initial_bytes > 0, "{info:?}");
    let early = drain(&mut *saving, room).unwrap();
    give(&mut *loading, &early).unwrap();
    assert_eq!(saving.precopy_info().unwrap().unwrap().initial_bytes, 0);
    assert!(matches!(sender.set_state(State::StopCopy).unwrap(), Opened::None));
    let late = drain(&mut *saving, room).unwrap();
    assert_eq!(saving.read(&mut [0]).unwrap(), Read::End, "for good");
    give(&mut *loading, &late).unwrap();
    for chunks in [&early, &late] {
        assert!(chunks.iter().all(|(bytes, _)| bytes.len() <= room));
        let ends = chunks.last().is_some_and(|(_, ends)| *ends);
        assert_eq!(ends, from.generation.is_some() && !chunks.is_empty());
    }
    sender.set_state(State::Stop).unwrap();
    receiver.set_state(State::Stop).unwrap();
    assert_eq!(receiver.state().unwrap(), State::Stop);
    assert!(!receiver.validated_at_start());
    receiver.set_state(State::Running).unwrap();
    assert!(destination.contents() == contents, "{from:?} to {to:?}");
}

#[test]
fn every_kind_of_device_goes_into_every_other() {
    for from in kinds() {
        for to in kinds() {
            // Several buffers, in several pieces each.
            migrate(from, to, 40_000, 3_000);
        }
    }
}

#[test]
fn a_device_with_next_to_nothing_goes_too() {
    for from in kinds() {
        migrate(from, v1(DataSection::Trapped), 8, 1 << 20);
        migrate(from, V2, 9, 1);
    }
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(40))]

    #[test]
    fn no_byte_is_lost_whatever_the_pieces(
        length in 8..60_000usize,
        room in 1..20_000usize,
        from in any::<proptest::sample::Index>(),
        to in any::<proptest::sample::Index>(),
    ) {
        let all = kinds();
        migrate(*from.get(&all), *to.get(&all), length, room.max(length / 64));
    }

    #[test]
    fn a_stop_in_the_middle_of_a_buffer_loses_nothing(
        length in 8..60_000usize,
        cut in 1..8_000usize,
        kind in any::<proptest::sample::Index>(),
    ) {
        let all = kinds();
        let kind = *kind.get(&all);
        let (source, mut device) = full(kind, length);
        let contents = source.contents();
        let mut session = save(&mut device, State::PreCopy);
        let mut first = vec![0; cut];
        let Read::Data { bytes, .. } = session.read(&mut first).unwrap() else {
            panic!("there is something")
        };
        first.truncate(bytes);
        device.set_state(State::StopCopy).unwrap();
        for (more, _) in drain(&mut *session, 4096).unwrap() {
            first.extend(more);
        }
        prop_assert_eq!(&first[8..], &contents[..]);
    }
}

#[test]
fn a_buffer_is_read_to_its_end_before_its_place_is_used_again() {
    for kind in [v1(DataSection::Mapped), rfc2018(DataSection::Mapped)] {
        let (source, mut device) = full(kind, 30_000);
        let contents = source.contents();
        let mut session = save(&mut device, State::PreCopy);
        let mut bytes = vec![0; 10];
        assert_eq!(
            session.read(&mut bytes).unwrap(),
            Read::Data { bytes: 10, ends_transaction: false }
        );
        source.inner().scribbles = true;
        device.set_state(State::StopCopy).unwrap();
        source.inner().scribbles = false;
        // The transaction keeps its size.
        let chunks = drain(&mut *session, 1 << 16).unwrap();
        assert_eq!((chunks[0].0.len(), chunks[0].1), (8182, true));
        bytes.extend(chunks.into_iter().flat_map(|(more, _)| more));
        assert!(bytes[8..] == contents, "{kind:?}");
    }
}

#[test]
fn a_client_that_declines_to_map_reads_the_same() {
    for kind in [v1(DataSection::Mapped), rfc2018(DataSection::Split)] {
        let (source, mut device) = full(kind, 20_000);
        source.inner().map = Some(Err(Errno::EPERM));
        let contents = source.contents();
        let mut session = save(&mut device, State::StopCopy);
        let chunks = drain(&mut *session, 5_000).unwrap();
        let bytes: Vec<u8> = chunks.into_iter().flat_map(|(bytes, _)| bytes).collect();
        assert!(bytes[8..] == contents);
    }
}

#[test]
fn a_v1_save_makes_the_accesses_of_document_000() {
    use Access::{Read as R, Write as W};
    let (source, mut device) = full(v1(DataSection::Trapped), 10_000);
    let mut session = save(&mut device, State::StopCopy);
    // Where it is; read, modify, write, read back; where it is.
    let state = [R(0, 4), R(0, 4), W(0, 4), R(0, 4), R(0, 4)];
    assert_eq!(source.accesses(), state);
    // A buffer is acknowledged when it was read, not when the next one is wanted.
    session.read(&mut [0; 8192]).unwrap();
    let first = source.accesses();
    assert_eq!(first.last(), Some(&R(8, 8)));
    drain(&mut *session, 1 << 20).unwrap();
    let rest = source.accesses();
    assert_eq!(
        [first, rest].concat(),
        [
            // a. pending_bytes, b. data_offset, c. data_size, d. data, f. pending_bytes
            R(8, 8),
            R(16, 8),
            R(24, 8),
            R(32, 8192),
            R(8, 8),
            R(16, 8),
            R(24, 8),
            R(32, 1816),
            R(8, 8),
            // and the device is asked whether it is where it was.
            R(0, 4),
        ]
    );
}

#[test]
fn a_v1_resume_makes_the_accesses_of_document_000() {
    use Access::{Read as R, Write as W};
    let (source, mut sender) = full(v1(DataSection::Trapped), 10_000);
    let chunks = drain(&mut *save(&mut sender, State::StopCopy), 1 << 20).unwrap();
    drop(source);
    let (destination, mut receiver) = empty(v1(DataSection::Trapped));
    let mut session = resume(&mut receiver);
    destination.accesses();
    give(&mut *session, &chunks).unwrap();
    assert_eq!(
        destination.accesses(),
        [
            // a. data_offset (asked when the session was opened), b. data, c. data_size
            W(32, 8192),
            W(24, 8),
            R(16, 8),
            W(32, 1816),
            W(24, 8),
        ]
    );
}

#[test]
fn an_rfc2018_device_is_accessed_by_whole_sub_structures() {
    use Access::{Read as R, Write as W};
    let (source, mut device) = full(rfc2018(DataSection::Trapped), 100);
    let mut session = save(&mut device, State::PreCopy);
    let written: Vec<_> = std::mem::take(&mut source.inner().written);
    assert_eq!(written, [(0, 2u32.to_ne_bytes().into()), (0, 3u32.to_ne_bytes().into())]);
    source.accesses();
    drain(&mut *session, 512).unwrap();
    assert_eq!(
        source.accesses(),
        [W(28, 8), R(4, 32), R(36, 16), R(80, 54), W(28, 8), R(4, 32), R(0, 4),]
    );
    drop(session);
    for (target, writes) in [
        (State::StopCopy, vec![4u32]),
        (State::Stop, vec![5]),
        (State::Running, vec![1]),
        (State::Stop, vec![2, 4]),
        (State::Running, vec![9, 1]),
        (State::Resuming, vec![6]),
    ] {
        source.inner().written.clear();
        drop(device.set_state(target).unwrap());
        let written = std::mem::take(&mut source.inner().written);
        let states: Vec<u32> = written
            .iter()
            .map(|(_, bytes)| u32::from_ne_bytes(bytes[..].try_into().unwrap()))
            .collect();
        assert_eq!(states, writes, "{target}");
    }
}

#[test]
fn reserved_bits_of_a_v1_device_are_written_back_as_they_were_read() {
    let (source, mut device) = full(v1(DataSection::Trapped), 100);
    for target in [State::PreCopy, State::StopCopy, State::Stop, State::Running] {
        source.inner().written.clear();
        drop(device.set_state(target).unwrap());
        for (offset, bytes) in &source.inner().written {
            let value = u32::from_ne_bytes(bytes[..].try_into().unwrap());
            assert_eq!((*offset, value & !7), (0, 0xabcd_1230));
        }
    }
}

#[test]
fn a_device_that_takes_its_time_to_stop_is_given_it() {
    for kind in [v1(DataSection::Trapped), rfc2018(DataSection::Trapped)] {
        let (source, mut device) = full(kind, 100);
        drop(save(&mut device, State::PreCopy));
        drop(device.set_state(State::StopCopy).unwrap());
        let inner = source.inner();
        let states = inner.written.iter().filter(|(at, _)| *at == 0).count();
        assert_eq!((inner.transitions, states), (inner.written.len(), states));
    }
}

#[test]
fn a_guest_that_resets_its_device_starts_its_pre_copy_over() {
    let (source, mut device) = full(v1(DataSection::Trapped), 20_000);
    let mut session = save(&mut device, State::PreCopy);
    let mut buffer = [0; 4096];
    session.read(&mut buffer).unwrap();
    source.inner().runner.reset();
    let gone = loop {
        match session.read(&mut buffer) {
            Ok(Read::Data { .. }) => {}
            Ok(Read::End) => panic!("an end of a session that is gone"),
            Err(error) => break error,
        }
    };
    assert_eq!(gone.fault, Fault::SessionGone);
}

#[test]
fn a_reset_that_nobody_noticed_before_the_stop_opens_another_session() {
    for kind in kinds() {
        let (source, mut device) = full(kind, 20_000);
        let mut old = save(&mut device, State::PreCopy);
        let mut buffer = [0; 4096];
        old.read(&mut buffer).unwrap();
        source.inner().runner.reset();
        // Not the rest of the old one, which would be joined to what was read of it.
        let mut new = save(&mut device, State::StopCopy);
        let chunks = drain(&mut *new, 4096).unwrap();
        let bytes: Vec<u8> = chunks.into_iter().flat_map(|(bytes, _)| bytes).collect();
        assert_eq!(bytes, [0; 8], "an empty jar, from its start: {kind:?}");
        assert!(old.read(&mut buffer).is_err());
    }
}

#[test]
fn a_v1_device_that_refuses_000_is_validated_at_its_start() {
    let (source, mut sender) = full(v1(DataSection::Trapped), 10_000);
    let contents = source.contents();
    let chunks = drain(&mut *save(&mut sender, State::StopCopy), 1 << 20).unwrap();
    let (destination, mut receiver) = empty(v1(DataSection::Mapped));
    assert!(receiver.validated_at_start(), "it may be so");
    let mut session = resume(&mut receiver);
    give(&mut *session, &chunks).unwrap();
    destination.lie(|seen| {
        let stops = seen.writes(0) && seen.bytes[0] & 7 == 0;
        if stops { Err(errno(Errno::EINVAL)) } else { Ok(()) }
    });
    receiver.set_state(State::Stop).unwrap();
    assert_eq!(receiver.state().unwrap(), State::Stop);
    assert!(receiver.validated_at_start());
    drop(session);
    // Nothing but a start or a reset leads on.
    assert!(receiver.set_state(State::StopCopy).is_err());
    receiver.set_state(State::Running).unwrap();
    destination.inner().lie = None;
    assert!(destination.contents() == contents);
}

#[test]
fn a_load_that_failed_is_not_taken_for_one_that_is_validated_at_the_start() {
    for refusal in [Errno::EIO, Errno::ENOMEM, Errno::EBADMSG] {
        let (destination, mut receiver) = empty(v1(DataSection::Trapped));
        drop(resume(&mut receiver));
        destination.lie(move |seen| {
            let stops = seen.writes(0) && seen.bytes[0] & 7 == 0;
            if stops { Err(errno(refusal)) } else { Ok(()) }
        });
        let error = receiver.set_state(State::Stop).unwrap_err();
        assert_eq!(error.fault, Fault::Refused(refusal));
        assert_eq!(receiver.state().unwrap(), State::Resuming);
    }
}

#[test]
fn a_truncated_load_never_starts() {
    for kind in [v1(DataSection::Trapped), rfc2018(DataSection::Trapped), V2] {
        let (source, mut sender) = full(V2, 10_000);
        let mut chunks = drain(&mut *save(&mut sender, State::StopCopy), 4000).unwrap();
        chunks.pop();
        drop(source);
        let (_, mut receiver) = empty(kind);
        let mut session = resume(&mut receiver);
        give(&mut *session, &chunks).unwrap();
        drop(session);
        assert!(receiver.set_state(State::Stop).is_err(), "{kind:?}");
        assert!(receiver.set_state(State::Running).is_err(), "{kind:?}");
        receiver.reset().unwrap();
        assert_eq!(receiver.state().unwrap(), State::Running);
    }
}

#[test]
fn a_paused_device_is_saved_without_running_for_a_moment() {
    for kind in kinds() {
        let (source, mut device) = full(kind, 5_000);
        let contents = source.contents();
        device.set_state(State::Stop).unwrap();
        let mut session = save(&mut device, State::StopCopy);
        let chunks = drain(&mut *session, 4096).unwrap();
        let bytes: Vec<u8> = chunks.into_iter().flat_map(|(bytes, _)| bytes).collect();
        assert!(bytes[8..] == contents, "{kind:?}");
        drop(session);
        device.set_state(State::Stop).unwrap();
        device.set_state(State::Running).unwrap();
    }
}

#[test]
fn a_reset_ends_everything_from_everywhere() {
    for kind in kinds() {
        for target in [State::PreCopy, State::StopCopy, State::Stop, State::Resuming] {
            let (_, mut device) = full(kind, 5_000);
            drop(device.set_state(target).unwrap());
            device.reset().unwrap();
            assert_eq!(device.state().unwrap(), State::Running, "{kind:?} {target}");
        }
    }
}
