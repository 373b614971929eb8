//! A v2 device that does not do as it should.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]

mod scripted;

use std::sync::Arc;

use abi::errno::Errno;
use abi::feature::Feature;
use abi::v2::PrecopyInfo;
use port::{
    Bus, Device, Fault, Generation, Model, Opened, Read, ResumeSession, SaveSession,
};
use scripted::{Quirk, Scripted};
use states::v2::{Capabilities, State};
use vfio_migrate_control::{ProbeError, SaveStream, V2Device, identity, open};

fn opened(capabilities: u64) -> (Arc<Scripted>, V2Device) {
    let transport = Scripted::new(capabilities);
    let device = open(transport.clone()).unwrap();
    (transport, device)
}

fn save(device: &mut V2Device, target: State) -> Box<dyn SaveSession> {
    match device.set_state(target).unwrap() {
        Opened::Save(session) => session,
        other => panic!("{other:?}"),
    }
}

fn resume(device: &mut V2Device) -> Box<dyn ResumeSession> {
    match device.set_state(State::Resuming).unwrap() {
        Opened::Resume(session) => session,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_device_is_known_by_what_it_says() {
    let transport = Scripted::new(7);
    let model = Model { name: "accel".to_owned(), data_version: 2 };
    let payload = identity::encode(&model).unwrap();
    let feature = Feature::VFIO_MIGRATE_IDENTITY;
    transport.script().gets.insert(feature, [Ok(payload)].into());
    transport.script().config[8..12].copy_from_slice(&[3, 0x10, 0x20, 0x30]);
    transport.script().config[0x2c..0x30].copy_from_slice(&[1, 2, 3, 4]);
    let device = open(transport).unwrap();
    let identity = device.identity();
    let Bus::Pci(ids) = identity.bus else { panic!("{identity:?}") };
    assert_eq!((ids.vendor, ids.device, ids.revision), (0x1b36, 0xfa4e, 3));
    assert_eq!(
        (ids.class, ids.subsystem_vendor, ids.subsystem),
        (0x30_2010, 0x201, 0x403)
    );
    assert_eq!(identity.generation, Generation::V2);
    assert_eq!(identity.capabilities, Capabilities::ALL);
    assert_eq!(identity.model, Some(model));
}

#[test]
fn a_device_off_pci_has_no_ids() {
    let transport = Scripted::new(1);
    transport.script().flags = 1 << 4 | 1;
    let device = open(transport).unwrap();
    assert_eq!(device.identity().bus, Bus::Other("ccw".to_owned()));
    assert_eq!(device.identity().model, None);
}

#[test]
fn sets_that_nobody_defined_are_refused_with_the_number() {
    for flags in [0, 2, 4, 6, 8, 9, u64::MAX] {
        let error = open(Scripted::new(flags)).unwrap_err();
        let ProbeError::Capabilities { source, .. } = error else { panic!("{error}") };
        assert!(source.to_string().contains(&format!("capabilities {flags} ")));
    }
}

#[test]
fn a_device_that_cannot_migrate_says_why() {
    for errno in [Errno::ENOTTY, Errno::EINVAL, Errno::EIO] {
        let transport = Scripted::new(7);
        transport.script().gets.insert(Feature::MIGRATION, [Err(errno)].into());
        let error = open(transport).unwrap_err().to_string();
        assert!(error.starts_with("dev0 cannot migrate: "), "{error}");
        assert!(error.ends_with(&format!("({errno})")), "{error}");
    }
}

#[test]
fn an_answer_of_the_wrong_length_is_refused() {
    for answer in [vec![], vec![7; 7], vec![7; 9]] {
        let transport = Scripted::new(7);
        transport.script().gets.insert(Feature::MIGRATION, [Ok(answer.clone())].into());
        assert!(matches!(open(transport), Err(ProbeError::Broken { .. })));
        let (transport, mut device) = opened(7);
        for feature in [Feature::MIG_DEVICE_STATE, Feature::MIG_DATA_SIZE] {
            transport.script().gets.insert(feature, [Ok(answer.clone())].into());
        }
        assert!(matches!(device.state().unwrap_err().fault, Fault::Broken(_)));
        assert!(matches!(device.stop_copy_bytes().unwrap_err().fault, Fault::Broken(_)));
    }
}

#[test]
fn one_request_takes_a_device_to_any_state() {
    for capabilities in Capabilities::EVERY {
        for from in capabilities.states() {
            for to in capabilities.states() {
                let (transport, mut device) = opened(capabilities.flags());
                transport.script().state = from.number();
                let before = transport.script().calls.len();
                let answer = device.set_state(to);
                let calls = transport.script().calls[before..].to_vec();
                let asked =
                    calls.iter().filter(|call| call.starts_with("set state")).count();
                match states::v2::plan(capabilities, from, to) {
                    Ok(path) => {
                        let opened = answer.unwrap();
                        assert_eq!(asked, usize::from(!path.is_empty()));
                        assert_eq!(transport.script().state, to.number());
                        assert_eq!(!matches!(opened, Opened::None), path.opens_session());
                    }
                    Err(_) => {
                        assert_eq!(
                            answer.unwrap_err().fault,
                            Fault::Refused(Errno::EINVAL)
                        );
                        assert_eq!(asked, 0);
                    }
                }
            }
        }
    }
}

#[test]
fn after_a_failure_the_state_is_read_and_told() {
    let (transport, mut device) = opened(7);
    let quirk = Quirk {
        lands: Some(State::Stop.number()),
        errno: Some(Errno::EIO),
        ..Quirk::default()
    };
    transport.script().sets.push_back(quirk);
    let error = device.set_state(State::StopCopy).unwrap_err();
    assert_eq!(error.fault, Fault::Refused(Errno::EIO));
    assert_eq!(
        error.to_string(),
        "dev0: RUNNING to STOP_COPY, now STOP: refused with EIO"
    );
    assert_eq!(device.state().unwrap(), State::Stop);
}

#[test]
fn a_failure_that_arrived_is_still_a_failure() {
    // EMFILE after the arc: the device is there, and its descriptor is lost.
    let (transport, mut device) = opened(7);
    transport
        .script()
        .sets
        .push_back(Quirk { errno: Some(Errno::EMFILE), ..Quirk::default() });
    let error = device.set_state(State::PreCopy).unwrap_err();
    assert_eq!(error.operation, "RUNNING to PRE_COPY, now PRE_COPY");
}

#[test]
fn a_session_that_is_due_and_does_not_come_is_lost() {
    let (transport, mut device) = opened(7);
    transport.script().sets.push_back(Quirk { wrong_session: true, ..Quirk::default() });
    let error = device.set_state(State::PreCopy).unwrap_err();
    let Fault::Broken(what) = &error.fault else { panic!("{error}") };
    assert!(what.contains("session was lost"), "{error}");
}

#[test]
fn a_session_that_nobody_asked_for_is_closed() {
    let (transport, mut device) = opened(7);
    transport.script().sets.push_back(Quirk { wrong_session: true, ..Quirk::default() });
    assert!(matches!(device.set_state(State::Stop).unwrap(), Opened::None));
    assert_eq!(transport.script().sessions, 0);
}

#[test]
fn a_success_that_did_not_happen_is_no_success() {
    let (transport, mut device) = opened(7);
    let lands = |state: State| Quirk { lands: Some(state.number()), ..Quirk::default() };
    transport.script().sets.extend([lands(State::RunningP2p), lands(State::Running)]);
    let fault = device.set_state(State::StopCopy).unwrap_err().fault;
    assert!(matches!(fault, Fault::Broken(_)));
    // A reset raced the request.
    assert_eq!(device.set_state(State::Stop).unwrap_err().fault, Fault::SessionGone);
    assert_eq!(transport.script().sessions, 0);
}

#[test]
fn a_state_that_nobody_knows_is_no_state() {
    let (transport, mut device) = opened(7);
    transport.script().state = 8;
    let error = device.state().unwrap_err();
    assert!(error.to_string().contains("8 is no state"), "{error}");
    assert!(device.set_state(State::Running).is_err());
}

#[test]
fn a_lost_device_is_not_waited_for_twice() {
    let (transport, mut device) = opened(7);
    transport.script().sets.push_back(Quirk { silent: true, ..Quirk::default() });
    let error = device.set_state(State::Stop).unwrap_err();
    assert_eq!(error.fault, Fault::TimedOut(7));
    assert_eq!(transport.script().calls.last().unwrap(), "set state STOP");
}

#[test]
fn both_kinds_of_temporary_end_are_ends() {
    let (transport, mut device) = opened(7);
    let mut session = save(&mut device, State::PreCopy);
    transport.script().reads.extend([
        Ok(vec![1, 2]),
        Err(Errno::ENOMSG),
        Ok(vec![]),
        Ok(vec![3]),
    ]);
    let mut into = [0; 8];
    let data = |bytes| Read::Data { bytes, ends_transaction: false };
    for expected in [data(2), Read::End, Read::End, data(1), Read::End] {
        assert_eq!(session.read(&mut into).unwrap(), expected);
    }
}

#[test]
fn the_session_goes_on_into_stop_copy_where_only_0_is_an_end() {
    let (transport, mut device) = opened(7);
    let mut session = save(&mut device, State::PreCopy);
    assert!(matches!(device.set_state(State::StopCopy).unwrap(), Opened::None));
    transport.script().reads.extend([Ok(vec![1]), Err(Errno::ENOMSG), Ok(vec![])]);
    assert!(matches!(session.read(&mut [0; 8]).unwrap(), Read::Data { bytes: 1, .. }));
    let fault = session.read(&mut [0; 8]).unwrap_err().fault;
    assert!(matches!(fault, Fault::Broken(_)), "{fault}");
    assert_eq!(session.read(&mut [0; 8]).unwrap(), Read::End);
}

#[test]
fn more_bytes_than_there_is_room_for_are_refused() {
    let (transport, mut device) = opened(7);
    let mut session = save(&mut device, State::PreCopy);
    transport.script().reads.push_back(Ok(vec![0; 9]));
    assert!(matches!(session.read(&mut [0; 8]).unwrap_err().fault, Fault::Broken(_)));
    assert!(session.read(&mut []).is_err());
}

#[test]
fn a_guest_that_resets_its_device_ends_the_session() {
    let (transport, mut device) = opened(7);
    let mut session = save(&mut device, State::PreCopy);
    transport.script().state = State::Running.number();
    // The kernel says ENODEV, servers say EINVAL, a session at its end may say ENOMSG.
    for errno in [Errno::ENODEV, Errno::EINVAL, Errno::ENOMSG] {
        transport.script().reads.push_back(Err(errno));
        assert_eq!(session.read(&mut [0; 8]).unwrap_err().fault, Fault::SessionGone);
    }
    transport.script().info = Err(Errno::EINVAL);
    assert_eq!(session.precopy_info().unwrap_err().fault, Fault::SessionGone);
    // The same errno of a device that was not reset is its own matter.
    transport.script().state = State::PreCopy.number();
    transport.script().reads.push_back(Err(Errno::EIO));
    let fault = session.read(&mut [0; 8]).unwrap_err().fault;
    assert_eq!(fault, Fault::Refused(Errno::EIO));
}

#[test]
fn reinit_counts_only_for_those_who_opted_in() {
    let info =
        PrecopyInfo { argsz: 24, flags: u32::MAX, initial_bytes: 5, dirty_bytes: 6 };
    for offered in [false, true] {
        let transport = Scripted::new(7);
        if offered {
            let feature = Feature::MIG_PRECOPY_INFO_V2;
            transport.script().puts.insert(feature, [Ok(Vec::new())].into());
        }
        let mut device = open(transport.clone()).unwrap();
        let mut session = save(&mut device, State::PreCopy);
        assert_eq!(session.precopy_info().unwrap(), None);
        transport.script().info = Ok(Some(info));
        let heard = session.precopy_info().unwrap().unwrap();
        assert_eq!((heard.initial_bytes, heard.dirty_bytes), (5, 6));
        assert_eq!(heard.reinit, offered);
        transport.script().info = Err(Errno::ENOTTY);
        assert_eq!(session.precopy_info().unwrap(), None);
    }
}

#[test]
fn a_device_without_pre_copy_is_not_asked_about_it() {
    let (transport, _device) = opened(3);
    let calls = transport.script().calls.clone();
    assert!(!calls.iter().any(|call| call.starts_with("set ")), "{calls:?}");
}

#[test]
fn an_errno_in_disguise_is_no_size() {
    let (transport, mut device) = opened(7);
    assert_eq!(device.stop_copy_bytes().unwrap(), None);
    let feature = Feature::MIG_DATA_SIZE;
    for (answer, expected) in [
        (65_536, Some(65_536)),
        (0, Some(0)),
        (-5i64 as u64, None),
        (i64::MAX as u64, Some(i64::MAX as u64)),
    ] {
        let answer = answer.to_ne_bytes().to_vec();
        transport.script().gets.insert(feature, [Ok(answer)].into());
        assert_eq!(device.stop_copy_bytes().unwrap(), expected);
    }
    transport.script().gets.insert(feature, [Err(Errno::EIO)].into());
    assert_eq!(device.stop_copy_bytes().unwrap_err().fault, Fault::Refused(Errno::EIO));
}

#[test]
fn short_writes_lose_no_byte() {
    let (transport, mut device) = opened(7);
    let mut session = resume(&mut device);
    transport.script().takes.extend([Ok(1), Ok(3)]);
    session.write(&[1, 2, 3, 4, 5, 6, 7], false).unwrap();
    session.write(&[8], true).unwrap();
    session.write(&[], false).unwrap();
    assert_eq!(transport.script().written, [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn a_device_that_takes_nothing_does_not_hang_the_writer() {
    let (transport, mut device) = opened(7);
    let mut session = resume(&mut device);
    for taken in [0, 4] {
        transport.script().takes.push_back(Ok(taken));
        let fault = session.write(&[1, 2, 3], false).unwrap_err().fault;
        assert!(matches!(fault, Fault::Broken(_)), "{fault}");
    }
    transport.script().takes.push_back(Err(Errno::EINVAL));
    let fault = session.write(&[1], false).unwrap_err().fault;
    assert_eq!(fault, Fault::Refused(Errno::EINVAL));
}

#[test]
fn after_a_reset_a_device_runs_whatever_the_server_makes_of_it() {
    for left in [State::Running, State::PreCopy, State::Stop, State::Resuming] {
        let (transport, mut device) = opened(7);
        device.set_state(State::Resuming).unwrap();
        transport.script().reset_to = left.number();
        device.reset().unwrap();
        assert_eq!(device.state().unwrap(), State::Running);
    }
    let (transport, mut device) = opened(7);
    transport.script().reset_to = State::Error.number();
    assert!(device.reset().is_err());
}

#[test]
fn a_session_keeps_its_device_open_and_closes_before_it() {
    let (transport, mut device) = opened(7);
    let session = save(&mut device, State::PreCopy);
    drop(device);
    // Whoever holds the script, and the session, hold the transport.
    assert_eq!(Arc::strong_count(&transport), 2);
    drop(session);
    assert_eq!((Arc::strong_count(&transport), transport.script().sessions), (1, 0));
}

#[test]
fn a_stream_that_starts_over_is_forwarded_twice() {
    for (capabilities, used) in [(5, 1), (7, 3), (1, 1), (3, 3)] {
        let transport = Scripted::new(capabilities);
        transport.script().stream = SaveStream::Restarts("somebody said so");
        let mut device = open(transport.clone()).unwrap();
        assert_eq!(device.identity().capabilities.flags(), used);
        let withheld = device.withheld().to_vec();
        if capabilities == used {
            assert_eq!(withheld, []);
        } else {
            let [one] = withheld[..] else { panic!("{withheld:?}") };
            assert_eq!((one.what, one.why), ("PRE_COPY", "somebody said so"));
        }
        assert!(device.set_state(State::PreCopy).is_err());
        save(&mut device, State::StopCopy);
        let asked = transport.script().calls.clone();
        assert!(!asked.iter().any(|call| call.contains("PRE_COPY")), "{asked:?}");
    }
}

#[test]
fn a_device_found_in_a_state_that_is_not_used_cannot_be_led_out_of_it() {
    let transport = Scripted::new(7);
    transport.script().stream = SaveStream::Restarts("somebody said so");
    let mut device = open(transport.clone()).unwrap();
    for found in [State::PreCopy, State::PreCopyP2p] {
        transport.script().state = found.number();
        device.set_state(State::Running).unwrap();
        assert_eq!(device.state().unwrap(), State::Running);
    }
}

#[test]
fn a_stopped_device_that_refuses_its_reset_runs_on_its_way_to_it() {
    for from in [State::Stop, State::StopCopy] {
        let (transport, mut device) = opened(7);
        drop(device.set_state(from).unwrap());
        let mut script = transport.script();
        (script.stopped_is_not_reset, script.reset_to) = (true, State::Resuming.number());
        script.calls.clear();
        drop(script);
        device.reset().unwrap();
        let calls = transport.script().calls.clone();
        let done: Vec<_> = calls.iter().filter(|call| !call.starts_with("get")).collect();
        let running = "set state RUNNING";
        assert_eq!(done, ["reset", "set state RESUMING", "reset", running]);
        // A device that does not go there either is not reset.
        let (transport, mut device) = opened(7);
        drop(device.set_state(from).unwrap());
        let refusal = || Quirk { errno: Some(Errno::EINVAL), ..Quirk::default() };
        let mut script = transport.script();
        script.stopped_is_not_reset = true;
        script.sets = [Quirk { lands: Some(from.number()), ..refusal() }].into();
        drop(script);
        assert!(device.reset().is_err());
        assert_eq!(device.state().unwrap(), from);
    }
}
