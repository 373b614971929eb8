//! States, features, interrupts and regions.

use std::sync::Arc;

use abi::errno::Errno;
use abi::feature::{Feature, FeatureFlags, FeatureHeader};
use control::{DmaLog, IrqAction, IrqForm, Raw, SaveStream, Transport, TransportError};
use dirty::{IovaRange, PageSize};
use port::{Device, DirtySource, Fault, Opened};
use states::v2::State;
use sys::EventFd;

use super::fake::{Fake, Read1, Set};

fn fault(error: port::DeviceError) -> Fault {
    error.fault
}

/// mtty: what is left in STOP is in STOP when it is opened again. All variant drivers of
/// PCI devices begin in RUNNING.
#[test]
fn a_device_found_stopped_is_told_so_and_what_it_holds_is_not_reset_away() {
    let fake = Fake::new();
    fake.script().state = State::Stop;
    let mut device = fake.device();
    assert_eq!(device.state().unwrap(), State::Stop);
    let Opened::Save(session) = device.set_state(State::StopCopy).unwrap() else {
        panic!("no session");
    };
    drop(session);
    device.set_state(State::Stop).unwrap();
    assert!(!fake.was_asked("reset"));
}

/// RAN: with no descriptor left SET gives EMFILE, and the device is in PRE_COPY.
#[test]
fn a_set_that_failed_and_changed_the_state_all_the_same_is_found_out_and_led_back() {
    let fake = Fake::new();
    fake.script().sets.push_back(Set::Fails(Errno::EMFILE, State::PreCopy));
    let mut device = fake.device();
    let failed = device.set_state(State::PreCopy).unwrap_err();
    assert!(failed.to_string().contains("now PRE_COPY"), "{failed}");
    assert!(matches!(fault(failed), Fault::Refused(Errno::EMFILE)));
    // By a legal arc, and then once more.
    device.set_state(State::Running).unwrap();
    assert!(matches!(device.set_state(State::PreCopy).unwrap(), Opened::Save(_)));
    assert!(!fake.was_asked("reset"));
}

#[test]
fn a_success_without_a_descriptor_is_a_lost_session_and_no_empty_stream() {
    let fake = Fake::new();
    fake.script().sets.push_back(Set::LosesSession);
    let mut device = fake.device();
    let failed = device.set_state(State::StopCopy).unwrap_err();
    assert!(failed.to_string().contains("data session was lost"), "{failed}");
}

/// The deferred reset of mlx5, virtio, xe and mtty: a guest's reset races the request.
#[test]
fn a_reset_that_races_a_set_is_no_success() {
    let fake = Fake::new();
    fake.script().sets.push_back(Set::Reset);
    let failed = fake.device().set_state(State::StopCopy).unwrap_err();
    assert!(matches!(fault(failed), Fault::SessionGone));
}

/// SET in ERROR: EINVAL from the core (with a warning in its log), EIO from pds.
#[test]
fn a_device_in_error_is_asked_for_nothing_and_left_by_reset_alone() {
    for errno in [Errno::EINVAL, Errno::EIO] {
        let fake = Fake::new();
        fake.script().sets.push_back(Set::Fails(errno, State::Error));
        let mut device = fake.device();
        let failed = device.set_state(State::Stop).unwrap_err();
        assert!(failed.to_string().contains("now ERROR"), "{failed}");
        let sets = |fake: &Fake| {
            let script = fake.script();
            script.calls.iter().filter(|call| call.starts_with("set_state")).count()
        };
        let before = sets(&fake);
        device.set_state(State::Running).unwrap_err();
        assert_eq!(sets(&fake), before, "the kernel warns of a SET in ERROR");
        device.reset().unwrap();
        assert_eq!(device.state().unwrap(), State::Running);
    }
}

/// xe of Linux 7.3.
#[test]
fn a_size_that_is_an_errno_in_disguise_is_no_downtime_of_centuries() {
    let fake = Fake::new();
    let size = Ok((-22_i64).to_ne_bytes().to_vec());
    fake.script().features.insert(Feature::MIG_DATA_SIZE, size);
    assert_eq!(fake.device().stop_copy_bytes().unwrap(), None);
    assert_eq!(Fake::new().device().stop_copy_bytes().unwrap(), Some(5));
}

/// Debian's kernels: no iommufd, so nothing reports, and the probes say otherwise.
#[test]
fn a_log_that_starts_and_never_reports_is_found_out_before_it_is_relied_on() {
    let fake = Fake::new();
    let log = [
        Feature::DMA_LOGGING_START,
        Feature::DMA_LOGGING_STOP,
        Feature::DMA_LOGGING_REPORT,
    ];
    for feature in log {
        fake.script().features.insert(feature, Ok(Vec::new()));
    }
    let range = IovaRange::new(0, 1 << 20).unwrap();
    let mut log = DmaLog::open(Arc::new(fake.open())).unwrap().unwrap();
    fake.script().fails.insert("log_report", Errno::EOPNOTSUPP);
    log.start(&[range], PageSize::FOUR_K).unwrap_err();
    assert!(fake.was_asked("feature DMA_LOGGING_STOP 0x20000"), "it is stopped again");

    fake.script().fails.clear();
    log.start(&[range], PageSize::FOUR_K).unwrap();
    fake.script().bits = vec![0, 1 << 63];
    let mut found = Vec::new();
    log.collect(range, &mut |report| found.extend_from_slice(report.words)).unwrap();
    assert_eq!(found, [0, 1 << 63, 0, 0]);
}

#[test]
fn no_kernel_is_asked_for_what_only_vfio_user_has() {
    let fake = Fake::new();
    let host = fake.open();
    let refused = host.feature_get(Feature::VFIO_MIGRATE_IDENTITY, &[], 64).unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::ENOTTY));
    assert!(!fake.was_asked("feature VFIO"));
    assert_eq!(host.save_stream(), SaveStream::Continuous);
}

#[test]
fn the_operations_of_a_feature_are_asked_for_one_by_one() {
    let fake = Fake::new();
    let host = fake.open();
    let all = FeatureFlags::GET | FeatureFlags::SET;
    assert_eq!(host.feature_operations(Feature::MIGRATION).unwrap(), Some(all));
    assert_eq!(host.feature_operations(Feature::BUS_MASTER).unwrap(), None);
    let raw = host.raw().unwrap();
    assert!(raw.is_kernel());
    let header = FeatureHeader::new(Feature::BUS_MASTER, FeatureFlags::SET, 4);
    let refused = Raw::feature(raw, header, &[1, 0, 0, 0]).unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::ENOTTY));
}

/// The regions of a device lie in one descriptor, one behind the other.
#[test]
fn an_access_behind_a_region_does_not_reach_the_next_one() {
    let fake = Fake::new();
    let host = fake.open();
    host.region_write(0, 4090, &[1, 2, 3, 4, 5, 6]).unwrap();
    let mut back = [0; 6];
    host.region_read(0, 4090, &mut back).unwrap();
    assert_eq!(back, [1, 2, 3, 4, 5, 6]);
    for (offset, length) in [(4091, 6), (4096, 1), (u64::MAX, 2), (0, 4097)] {
        let mut back = vec![0; length];
        let refused = host.region_read(0, offset, &mut back).unwrap_err();
        assert_eq!(refused.errno(), Some(Errno::EINVAL));
        let refused = host.region_write(0, offset, &back).unwrap_err();
        assert_eq!(refused.errno(), Some(Errno::EINVAL));
    }
    assert_eq!(host.region_info(1).unwrap_err().errno(), Some(Errno::EINVAL));
    assert_eq!(host.region_map(0, 0).unwrap_err().errno(), Some(Errno::EINVAL));
}

#[test]
fn a_signal_in_the_middle_of_an_access_does_not_end_it() {
    let fake = Fake::new();
    let host = fake.open();
    fake.script().reads.push_back(Read1::Errno(Errno::EINTR));
    host.region_read(0, 0, &mut [0; 8]).unwrap();
    fake.script().reads.push_back(Read1::Errno(Errno::EIO));
    let failed = host.region_read(0, 0, &mut [0; 8]).unwrap_err();
    assert_eq!(failed.errno(), Some(Errno::EIO));
}

#[test]
fn interrupts_are_bound_fired_masked_and_disabled_as_the_kernel_has_it() {
    let fake = Fake::new();
    let host = fake.open();
    let event = EventFd::new().unwrap();
    host.set_irqs(2, 1, &[&event, &event]).unwrap();
    host.set_irqs(2, 0, &[]).unwrap();
    host.act_on_irqs(2, 0, IrqAction::Trigger, IrqForm::All(1)).unwrap();
    host.act_on_irqs(2, 3, IrqAction::Mask, IrqForm::Each(&[true, false])).unwrap();
    host.act_on_irqs(2, 3, IrqAction::Unmask, IrqForm::Unbind(4)).unwrap();
    let script = fake.script();
    let calls: Vec<&str> =
        script.calls.iter().filter_map(|call| call.strip_prefix("set_irqs ")).collect();
    assert_eq!(
        calls,
        [
            "2:1 0x20 2 events",
            "2:0 0x20 none 0",
            "2:0 0x20 none 1",
            "2:3 0x8 [true, false]",
            "2:3 0x10 unbind 4",
        ]
    );
}

#[test]
fn a_device_that_cannot_be_reset_says_so() {
    let fake = Fake::new();
    fake.script().fails.insert("reset", Errno::EINVAL);
    let failed = fake.open().reset().unwrap_err();
    assert!(matches!(failed, TransportError::Errno { errno: Errno::EINVAL, .. }));
}
