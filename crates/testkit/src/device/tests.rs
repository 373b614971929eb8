//! What a fake device promises.

use super::*;
use crate::FakeSource;
use dirty::PageSize;
use port::{DirtySource, Space};

fn save(opened: Opened) -> Box<dyn SaveSession> {
    match opened {
        Opened::Save(session) => session,
        other => panic!("{other:?}"),
    }
}

fn move_all(from: &mut dyn SaveSession, to: &mut dyn ResumeSession) -> usize {
    let mut some = [0; 1000];
    let mut all = 0;
    while let Read::Data { bytes, ends_transaction } = from.read(&mut some).unwrap() {
        to.write(&some[..bytes], ends_transaction).unwrap();
        all += bytes;
    }
    all
}

#[test]
fn a_device_moves_whole_however_much_it_changed_meanwhile() {
    for capabilities in Capabilities::EVERY {
        let (source, destination) = Side::pair();
        let contents = (0..50_000u32).map(|n| (n / 7) as u8).collect();
        let mut from = FakeDevice::new(&source, "fake0", capabilities, contents)
            .with_transactions()
            .busy(3);
        let mut to = FakeDevice::blank(&destination, "fake0", capabilities, 50_000)
            .with_transactions();
        let Opened::Resume(mut resume) = to.set_state(State::Resuming).unwrap() else {
            panic!("no session")
        };
        if capabilities.pre_copy() {
            let mut session = save(from.set_state(State::PreCopy).unwrap());
            let info = session.precopy_info().unwrap().unwrap();
            assert!(info.initial_bytes > 50_000 && info.dirty_bytes == 0);
            let mut some = [0; 5000];
            for _ in 0..40 {
                if let Read::Data { bytes, ends_transaction } =
                    session.read(&mut some).unwrap()
                {
                    resume.write(&some[..bytes], ends_transaction).unwrap();
                }
            }
            let info = session.precopy_info().unwrap().unwrap();
            assert!(info.initial_bytes == 0 && info.dirty_bytes > 0);
            let rest = from.stop_copy_bytes().unwrap().unwrap();
            assert!(matches!(from.set_state(State::StopCopy).unwrap(), Opened::None));
            assert_eq!(move_all(&mut *session, &mut *resume) as u64, rest);
        } else {
            let rest = from.stop_copy_bytes().unwrap().unwrap();
            let mut session = save(from.set_state(State::StopCopy).unwrap());
            assert_eq!(move_all(&mut *session, &mut *resume) as u64, rest);
        }
        to.set_state(State::Stop).unwrap();
        assert!(to.handle().contents() == from.handle().contents());
        from.set_state(State::Stop).unwrap();
        assert!(source.witness().violations().is_empty());
        to.set_state(State::Running).unwrap();
        assert!(source.witness().violations().is_empty());
        from.set_state(State::Running).unwrap();
        assert_eq!(source.witness().violations().len(), 1);
    }
}

#[test]
fn a_device_with_half_its_data_does_not_start() {
    let side = Side::alone("destination");
    let mut device = FakeDevice::blank(&side, "fake0", Capabilities::ALL, 100);
    let opened = device.set_state(State::Resuming).unwrap();
    assert!(device.set_state(State::Running).is_err());
    assert_eq!(device.state().unwrap(), State::Resuming);
    device.reset().unwrap();
    let Opened::Resume(mut session) = opened else { panic!("no session") };
    let fault = session.write(&[0], false).unwrap_err().fault;
    assert_eq!(fault, Fault::SessionGone);
}

#[test]
fn a_failure_comes_when_and_where_the_script_says() {
    let side = Side::alone("source");
    let mut device = FakeDevice::new(&side, "fake0", Capabilities::ALL, vec![1]);
    let eio = Fault::Refused(Errno::EIO);
    let when = When::SetState(State::StopCopy);
    let handle = device.handle();
    handle.fail(Failure::of(when, eio.clone()).after(1).landing_in(State::Stop));
    device.set_state(State::StopCopy).unwrap();
    device.set_state(State::Running).unwrap();
    assert!(!handle.has_failed());
    assert_eq!(device.set_state(State::StopCopy).unwrap_err().fault, eio);
    assert_eq!(device.state().unwrap(), State::Stop);
    assert!(handle.has_failed());
    device.set_state(State::StopCopy).unwrap();
    handle.fail(Failure::of(When::Read, Fault::TimedOut(5)));
    device.set_state(State::Stop).unwrap();
    let mut session = save(device.set_state(State::StopCopy).unwrap());
    assert!(session.read(&mut [0]).unwrap_err().fault.is_lost());
    assert!(device.state().unwrap_err().fault.is_lost());
    device.reset().unwrap();
    assert_eq!(device.state().unwrap(), State::Running);
}

#[test]
fn a_reset_by_the_guest_ends_the_session() {
    let side = Side::alone("source");
    let mut device = FakeDevice::new(&side, "fake0", Capabilities::ALL, vec![1; 9]);
    let mut session = save(device.set_state(State::PreCopy).unwrap());
    device.handle().guest_reset();
    assert_eq!(session.read(&mut [0]).unwrap_err().fault, Fault::SessionGone);
    assert_eq!(device.state().unwrap(), State::Running);
    assert!(device.handle().holds_guest());
}

#[test]
fn a_stopped_device_counts_who_touches_it() {
    let side = Side::alone("source");
    let mut one = FakeDevice::new(&side, "fake0", Capabilities::ALL, vec![0; 9]);
    let two = FakeDevice::new(&side, "fake1", Capabilities::ALL, vec![0; 9]);
    let (first, second) = (one.handle(), two.handle());
    assert!(first.write_to_peer(&second, 0, &[1]));
    assert!(second.write_to_peer(&first, 0, &[1]));
    one.set_state(State::RunningP2p).unwrap();
    assert!(!first.write_to_peer(&second, 0, &[1]));
    assert!(second.write_to_peer(&first, 0, &[1]));
    one.set_state(State::Stop).unwrap();
    assert!(!second.write_to_peer(&first, 0, &[2]));
    assert_eq!(first.touched_while_stopped(), 1);
    assert_eq!(first.contents()[0], 1);
}

#[test]
fn a_log_that_drops_with_the_session_cannot_be_collected_late() {
    let side = Side::alone("source");
    let memory = FakeMemory::new(&[(0, 0x4000)]);
    let mut log = FakeSource::new(&side, "fake0 log", Space::Iova);
    let mut device = FakeDevice::new(&side, "fake0", Capabilities::P2P, vec![0; 9])
        .with_log(log.handle(), true);
    let all = IovaRange::new(0, 0x4000).unwrap();
    log.start(&[all], PageSize::FOUR_K).unwrap();
    assert!(device.handle().dma(&memory, Gpa(0x1000), &[1]));
    assert_eq!(log.handle().pages(), 1);
    device.set_state(State::StopCopy).unwrap();
    assert!(!device.handle().dma(&memory, Gpa(0x1000), &[1]));
    assert_eq!(device.handle().worked_while_stopped(), 1);
    assert!(log.collect(all, &mut |_| {}).is_ok());
    device.set_state(State::Stop).unwrap();
    assert!(log.collect(all, &mut |_| {}).is_err());
}
