//! Migration data.

use std::sync::Arc;
use std::time::Duration;

use abi::errno::Errno;
use abi::feature::Feature;
use abi::v2::{DeviceState, PrecopyInfo};
use control::{Direction, DmaLog, Transport, TransportError};
use dirty::{IovaRange, PageSize};
use port::{Device, DirtySource, Fault, Opened, Read, ResumeSession, SaveSession};
use states::v2::State;

use super::fake::{Fake, Read1, Set, options, wait_until};
use crate::{Deadlines, Host, HostOptions, stuck_threads};

fn save(device: &mut dyn Device, state: State) -> Box<dyn SaveSession> {
    match device.set_state(state).unwrap() {
        Opened::Save(session) => session,
        opened => panic!("{opened:?}"),
    }
}

fn resume(device: &mut dyn Device) -> Box<dyn ResumeSession> {
    match device.set_state(State::Resuming).unwrap() {
        Opened::Resume(session) => session,
        opened => panic!("{opened:?}"),
    }
}

/// The uAPI says ENOMSG; mtty, hisi_acc and qat return 0.
#[test]
fn a_temporary_end_of_either_kind_is_not_taken_for_the_end_of_the_stream() {
    for end in [Read1::Errno(Errno::ENOMSG), Read1::Data(Vec::new())] {
        let fake = Fake::new();
        let mut device = fake.device();
        let mut session = save(&mut device, State::PreCopy);
        fake.script().reads.extend([
            Read1::Data(b"ab".to_vec()),
            end,
            Read1::Data(b"c".to_vec()),
        ]);
        let mut bytes = [0; 8];
        let data = |bytes| Read::Data { bytes, ends_transaction: false };
        assert_eq!(session.read(&mut bytes).unwrap(), data(2));
        assert_eq!(session.read(&mut bytes).unwrap(), Read::End);
        // The same session goes on in STOP_COPY, on the same descriptor.
        assert!(matches!(device.set_state(State::StopCopy).unwrap(), Opened::None));
        assert_eq!(session.read(&mut bytes).unwrap(), data(1));
        assert_eq!(session.read(&mut bytes).unwrap(), Read::End);
        fake.script().reads.push_back(Read1::Errno(Errno::ENOMSG));
        session.read(&mut bytes).expect_err("there is no temporary end in STOP_COPY");
    }
}

#[test]
fn a_signal_or_a_short_write_loses_no_byte() {
    let fake = Fake::new();
    let mut device = fake.device();
    let mut session = resume(&mut device);
    fake.script().writes.extend([Err(Errno::EINTR), Ok(3), Ok(1), Err(Errno::EINTR)]);
    session.write(b"some data", true).unwrap();
    assert_eq!(fake.script().written, b"some data");
    fake.script().writes.push_back(Ok(0));
    session.write(b"more", true).expect_err("a driver that takes nothing would loop");

    let fake = Fake::new();
    let mut device = fake.device();
    let mut session = save(&mut device, State::StopCopy);
    fake.script().reads.extend([
        Read1::Errno(Errno::EINTR),
        Read1::Errno(Errno::EINTR),
        Read1::Data(b"x".to_vec()),
    ]);
    let mut bytes = [0; 4];
    assert!(matches!(session.read(&mut bytes).unwrap(), Read::Data { bytes: 1, .. }));
    assert_eq!(bytes[0], b'x');
}

/// Drivers find a bad stream at a write, or when it should be complete.
#[test]
fn a_stream_that_is_refused_late_is_refused_and_the_device_reset() {
    let fake = Fake::new();
    let mut device = fake.device();
    let mut session = resume(&mut device);
    fake.script().writes.push_back(Err(Errno::EFAULT));
    let refused = session.write(b"bad", true).unwrap_err();
    assert!(matches!(refused.fault, Fault::Refused(Errno::EFAULT)), "{refused}");
    drop(session);
    device.reset().unwrap();

    let mut session = resume(&mut device);
    session.write(b"short", true).unwrap();
    drop(session);
    fake.script().sets.push_back(Set::Fails(Errno::EINVAL, State::Resuming));
    let refused = device.set_state(State::Stop).unwrap_err();
    assert!(refused.to_string().contains("now RESUMING"), "{refused}");
    device.reset().unwrap();
    assert_eq!(device.state().unwrap(), State::Running);
}

/// A guest's reset: the descriptor stays, and says ENODEV.
#[test]
fn a_session_that_the_guest_reset_away_is_told_from_a_device_that_failed() {
    let fake = Fake::new();
    let mut device = fake.device();
    let mut session = save(&mut device, State::PreCopy);
    let mut script = fake.script();
    script.reads.push_back(Read1::Errno(Errno::ENODEV));
    script.state = State::Running;
    drop(script);
    let gone = session.read(&mut [0; 8]).unwrap_err();
    assert!(matches!(gone.fault, Fault::SessionGone), "{gone}");
}

fn info(flags: u32, initial: u64) -> PrecopyInfo {
    PrecopyInfo { argsz: 24, flags, initial_bytes: initial, dirty_bytes: 0 }
}

#[test]
fn flags_that_a_kernel_only_gives_back_are_no_new_beginning() {
    let fake = Fake::new();
    // No feature 12: what comes in flags is whatever a driver left there.
    fake.script().features.remove(&Feature::MIG_PRECOPY_INFO_V2);
    let mut device = fake.device();
    let mut session = save(&mut device, State::PreCopy);
    fake.script().precopy.push_back(Ok(info(1, 24)));
    let told = session.precopy_info().unwrap().unwrap();
    assert!(!told.reinit);
    assert_eq!(told.initial_bytes, 24);
    assert!(fake.was_asked("precopy_info 0x0"), "nothing to give back is passed in");
}

#[test]
fn new_initial_data_is_told_once_it_was_opted_in_to() {
    let fake = Fake::new();
    let mut device = fake.device();
    let mut session = save(&mut device, State::PreCopy);
    fake.script().precopy.extend([Ok(info(1, 9)), Ok(info(0, 0))]);
    assert!(session.precopy_info().unwrap().unwrap().reinit);
    assert!(!session.precopy_info().unwrap().unwrap().reinit);
    fake.script().precopy.push_back(Err(Errno::EINVAL));
    session.precopy_info().unwrap_err();
}

/// mlx5 has its firmware save once more when it is asked what is left, and at no other
/// time; virtio does so once a second.
#[test]
fn data_that_comes_only_when_somebody_asks_is_not_waited_for_in_vain() {
    let fake = Fake::new();
    let mut device = fake.device();
    let mut session = save(&mut device, State::PreCopy);
    fake.script().produced.push_back(b"more".to_vec());
    let mut bytes = [0; 8];
    assert_eq!(session.read(&mut bytes).unwrap(), Read::End);
    assert_eq!(session.read(&mut bytes).unwrap(), Read::End);
    session.precopy_info().unwrap();
    let more = Read::Data { bytes: 4, ends_transaction: false };
    assert_eq!(session.read(&mut bytes).unwrap(), more);
}

/// pds drops its log as it leaves STOP_COPY, and says EINVAL from then on.
#[test]
fn a_log_that_is_dropped_with_the_session_is_an_error_and_not_a_clean_memory() {
    let fake = Fake::new();
    for feature in [
        Feature::DMA_LOGGING_START,
        Feature::DMA_LOGGING_STOP,
        Feature::DMA_LOGGING_REPORT,
    ] {
        fake.script().features.insert(feature, Ok(Vec::new()));
    }
    let host = Arc::new(fake.open());
    let range = IovaRange::new(0, 1 << 20).unwrap();
    let mut log = DmaLog::open(host.clone()).unwrap().unwrap();
    log.start(&[range], PageSize::FOUR_K).unwrap();
    let mut device = control::open_any(host).unwrap();
    drop(save(&mut device, State::StopCopy));
    log.collect(range, &mut |_| ()).expect("it is still there in STOP_COPY");
    device.set_state(State::Stop).unwrap();
    fake.script().fails.insert("log_report", Errno::EINVAL);
    log.collect(range, &mut |_| ()).expect_err("all of it may be dirty");
    // A source that goes on runs with a log again.
    fake.script().fails.clear();
    log.start(&[range], PageSize::FOUR_K).unwrap();
    log.collect(range, &mut |_| ()).unwrap();
}

/// mlx5 reads block until its firmware has saved.
#[test]
fn a_read_that_never_returns_loses_the_device_and_not_the_migration() {
    let fake = Fake::new();
    let deadlines = Deadlines { slow: Duration::from_millis(50), ..Default::default() };
    let place = "/dev/vfio/devices/vfio0".parse().unwrap();
    let host = Host::open_with(
        Arc::new(fake.clone()),
        &place,
        HostOptions { deadlines, ..options() },
    )
    .unwrap();
    let session =
        host.set_migration_state(DeviceState::STOP_COPY, Some(Direction::Save)).unwrap();
    let mut session = session.unwrap();
    let go_on = fake.hang("read");
    let late = session.read(&mut [0; 8]).unwrap_err();
    assert!(matches!(late, TransportError::TimedOut { millis: 50, .. }), "{late}");
    assert!(stuck_threads() > 0);
    // Nothing is asked of it any more, not even in the end.
    let asked = fake.script().calls.len();
    let gone = host.device_info().unwrap_err();
    assert!(matches!(gone, TransportError::Gone { .. }));
    assert!(matches!(host.reset(), Err(TransportError::Gone { .. })));
    assert_eq!(fake.script().calls.len(), asked);
    drop((session, host));
    assert!(!fake.closed("data"), "the thread that is stuck still has both");
    assert!(!fake.closed("device"));
    drop(go_on);
    wait_until(|| fake.closed("data") && fake.closed("device"));
}

/// Some kernels crash when a data descriptor outlives its device.
#[test]
fn a_session_keeps_its_device_open_and_goes_first() {
    let fake = Fake::new();
    let host = fake.open();
    let session =
        host.set_migration_state(DeviceState::PRE_COPY, Some(Direction::Save)).unwrap();
    drop(host);
    assert!(!fake.closed("device"));
    let session = session.unwrap();
    assert!(session.descriptor().is_some());
    drop(session);
    assert!(fake.closed("data") && fake.closed("device"));
}

/// A request that comes back with a session after its device was given up and dropped.
#[test]
fn a_session_that_comes_too_late_does_not_outlive_its_device() {
    let fake = Fake::new();
    let deadlines = Deadlines { slow: Duration::from_millis(50), ..Default::default() };
    let place = "/dev/vfio/devices/vfio0".parse().unwrap();
    let options = HostOptions { deadlines, ..options() };
    let host = Host::open_with(Arc::new(fake.clone()), &place, options).unwrap();
    let go_on = fake.hang("set_state");
    let late = host.set_migration_state(DeviceState::STOP_COPY, Some(Direction::Save));
    assert!(matches!(late, Err(TransportError::TimedOut { millis: 50, .. })));
    drop((late, host));
    assert!(!fake.closed("device"), "the thread that is stuck still has it");
    drop(go_on);
    // What the device had for its space, and it itself.
    wait_until(|| fake.script().data_was_closed.len() == 2);
    assert_eq!(fake.script().data_was_closed, [true, true]);
    assert!(fake.closed("data") && fake.closed("device"));
}

/// Nobody asked for a session, and the kernel opened one: it has to be closed.
#[test]
fn a_descriptor_that_nobody_expected_is_not_leaked() {
    let fake = Fake::new();
    let mut device = fake.device();
    drop(save(&mut device, State::PreCopy));
    assert!(fake.closed("data"));
    let host = fake.open();
    let handed = host.set_migration_state(DeviceState::PRE_COPY, None).unwrap();
    assert!(handed.is_none(), "it is in PRE_COPY already");
    device.set_state(State::Running).unwrap();
    let handed = host.set_migration_state(DeviceState::PRE_COPY, None).unwrap();
    assert!(handed.is_some(), "whatever was due");
    drop(handed);
    assert!(fake.closed("data"));
}
