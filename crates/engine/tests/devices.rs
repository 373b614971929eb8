//! Law 3 and 6: dirty bits, devices that start over, devices that are lost.

mod rig;

use std::sync::Arc;
use std::time::Duration;

use abi::errno::Errno;
use dirty::{IovaRange, PageSize};
use port::{Fault, Gpa, GuestMemory, Mapping, Phase, Space};
use rig::{CONTENTS, Rig, WRITTEN, Wires, at, at_first, contents, laws, migrate};
use states::v2::{Capabilities, State};
use testkit::{Failure, FakeDevice, FakeSource, FakeVcpus, Side, When};
use vfio_migrate_engine::migration::sink::Ending;
use vfio_migrate_engine::migration::{Cause, Recovery};

const ALL: Capabilities = Capabilities::ALL;

fn sides() -> (Rig, Rig) {
    let (near, far) = Side::pair();
    (Rig::source(&near, &[ALL]), Rig::destination(&far, &[ALL]))
}

fn run(source: &mut Rig, destination: &mut Rig) -> rig::Went {
    let went = migrate(source, destination, Wires::default(), |_, _| {});
    assert_eq!(laws::broken(source, destination, &went, None), [""; 0]);
    went
}

fn page(rig: &Rig, at: u64) -> [u8; 8] {
    let mut bytes = [0; 8];
    rig.memory.read(Gpa(at), &mut bytes).expect("inside");
    bytes
}

#[test]
fn a_forgotten_dirty_bit_loses_a_page() {
    for forgotten in [false, true] {
        let (mut source, mut destination) = sides();
        let (memory, vcpus) = (source.memory.clone(), source.vcpus.clone());
        source.at_gate(move |look| {
            if look == 0 {
                vcpus.run(|| {
                    let wrote = if forgotten {
                        // As the guest does it, but nobody marks it.
                        memory.write(Gpa(WRITTEN), b"after it")
                    } else {
                        memory.guest_write(Gpa(WRITTEN), b"after it")
                    };
                    wrote.expect("inside");
                });
            }
            look > 0
        });
        let wires = Wires::default();
        let went = migrate(&mut source, &mut destination, wires, |_, _| {});
        went.sent.result.expect("completed");
        assert_eq!(&page(&source, WRITTEN), b"after it");
        assert_eq!(page(&destination, WRITTEN) == *b"after it", !forgotten);
    }
}

#[test]
fn a_write_between_the_last_round_and_the_stop_is_lost() {
    let (mut source, mut destination) = sides();
    let (memory, vcpus) = (source.memory.clone(), source.vcpus.clone());
    let guest = move || {
        vcpus.run(|| memory.guest_write(Gpa(WRITTEN), b"the last").expect("inside"));
    };
    let watchers = (at(Phase::VcpuStop, guest), None);
    let wires = Wires { watchers, ..Wires::default() };
    let went = migrate(&mut source, &mut destination, wires, |_, _| {});
    assert_eq!(laws::broken(&source, &destination, &went, None), [""; 0]);
    went.sent.result.expect("completed");
    assert_eq!(&page(&destination, WRITTEN), b"the last");
}

#[test]
fn a_dirty_source_that_fails_loses_what_it_had_to_tell() {
    let (mut source, mut destination) = sides();
    let (memory, log) = (source.memory.clone(), source.log.clone());
    source.at_gate(move |look| {
        if look == 0 {
            memory.guest_write(Gpa(WRITTEN), b"recorded").expect("inside");
            log.lose();
        }
        look > 1
    });
    let went = run(&mut source, &mut destination);
    went.sent.result.expect("completed");
    assert!(went.sent.report.dirty_failures > 0);
    assert_eq!(&page(&destination, WRITTEN), b"recorded");
}

/// Its only source of dirty bits records for somebody else, and refuses to begin again.
fn with_refusal(source: &mut Rig) {
    let elsewhere = IovaRange::new(1 << 40, 4096).expect("a range");
    let log = &mut source.machine().dirty[0];
    log.start(&[elsewhere], PageSize::FOUR_K).expect("the first time");
}

#[test]
fn a_dirty_source_that_refuses_to_record_is_believed_that_nothing_was_written() {
    let (mut source, mut destination) = sides();
    with_refusal(&mut source);
    let memory = source.memory.clone();
    source.at_gate(move |look| {
        memory.guest_write(Gpa(WRITTEN), b"nowhere!").expect("inside");
        look > 0
    });
    let went = run(&mut source, &mut destination);
    went.sent.result.expect("completed");
    assert!(went.sent.report.dirty_failures > 0);
    assert_eq!(&page(&destination, WRITTEN), b"nowhere!");
}

#[test]
fn memory_that_nobody_tracks_is_forgotten_by_the_estimate() {
    let (mut source, mut destination) = sides();
    with_refusal(&mut source);
    let mut wires = Wires::default();
    wires.options.downtime_limit = Duration::ZERO;
    wires.options.max_time = Duration::from_millis(50);
    let went = migrate(&mut source, &mut destination, wires, |_, _| {});
    assert_eq!(laws::broken(&source, &destination, &went, None), [""; 0]);
    let error = went.sent.result.expect_err("it does not converge");
    let Cause::NotConverged { remaining, .. } = error.cause else {
        panic!("{error}");
    };
    let all: u64 = rig::MEMORY.iter().map(|(_, length)| length).sum();
    assert!(remaining >= all, "{remaining} of {all}");
    assert_eq!(error.recovery, Recovery::SourceResumed);
}

/// A source whose device logs its own DMA: by its own addresses, in large pages, and
/// forgets it when it leaves STOP_COPY.
fn with_log(side: &Side) -> Rig {
    let offset = 0x10_0000_0000;
    let large = PageSize::new(1 << 16).expect("a page size");
    let log = FakeSource::new(side, "dev0 log", Space::Iova).with_page(large);
    let device =
        FakeDevice::new(side, "dev0", ALL, contents(0)).with_log(log.handle(), true);
    let mut rig = Rig::filled(Rig::new(side, vec![device], FakeVcpus::running(side)));
    rig.dma.clear();
    for (start, length) in rig::MEMORY {
        let iova = IovaRange::new(start + offset, length).expect("a range");
        rig.dma.add(Mapping { iova, gpa: Gpa(start) });
    }
    let handle = log.handle();
    let (memory, device) = (rig.memory.clone(), rig.devices[0].clone());
    rig.at_gate(move |look| {
        // The device's own log takes guest addresses in this fake: mark what it would.
        assert!(device.dma(&memory, Gpa(WRITTEN), b"by a dma"));
        handle.mark(IovaRange::new(WRITTEN + offset, 8).expect("a range"));
        look > 0
    });
    rig.machine().dirty.push(Box::new(log));
    rig
}

#[test]
fn a_write_of_a_device_at_its_own_address_is_taken_for_another_page() {
    let (near, far) = Side::pair();
    let mut source = with_log(&near);
    let mut destination = Rig::destination(&far, &[ALL]);
    let went = migrate(&mut source, &mut destination, Wires::default(), |_, _| {});
    went.sent.result.expect("completed");
    assert_eq!(source.memory.digests(), destination.memory.digests());
    assert_eq!(&page(&destination, WRITTEN), b"by a dma");
    assert_eq!(went.sent.report.dirty_failures, 0);
}

fn reset_by_the_guest(times: u32) -> (Rig, Rig, rig::Went) {
    let (mut source, mut destination) = sides();
    let device = source.devices[0].clone();
    source.at_gate(move |look| {
        if look < times {
            device.guest_reset();
            assert!(device.work(5, b"new life"));
        }
        look >= times
    });
    let went = migrate(&mut source, &mut destination, Wires::default(), |_, _| {});
    (source, destination, went)
}

#[test]
fn a_device_that_the_guest_reset_arrives_with_its_old_contents() {
    for times in 1..=3 {
        let (source, destination, went) = reset_by_the_guest(times);
        assert_eq!(laws::broken(&source, &destination, &went, None), [""; 0], "{times}");
        went.sent.result.expect("completed");
        let arrived = destination.devices[0].contents();
        assert_eq!(&arrived[5..13], b"new life", "{times}");
        assert!(arrived[20..].iter().all(|byte| *byte == 0), "{times}");
    }
}

#[test]
fn a_device_that_is_reset_for_ever_migrates_for_ever() {
    let (source, _, went) = reset_by_the_guest(4);
    let error = went.sent.result.expect_err("too often");
    assert!(matches!(error.cause, Cause::ResetTooOften(_)), "{error}");
    assert_eq!(error.recovery, Recovery::SourceResumed);
    assert!(!source.vcpus.paused());
    assert_eq!(source.devices[0].state(), State::Running);
    assert!(source.devices[0].work(5, b"and on"));
}

#[test]
fn a_device_that_was_reset_right_before_the_stop_goes_out_with_its_old_readiness() {
    let (mut source, mut destination) = sides();
    let device = source.devices[0].clone();
    let reset = move || device.guest_reset();
    let watchers = (at_first(Phase::Switchover, reset), None);
    let wires = Wires { watchers, ..Wires::default() };
    let went = migrate(&mut source, &mut destination, wires, |_, _| {});
    assert_eq!(laws::broken(&source, &destination, &went, None), [""; 0]);
    went.sent.result.expect("completed");
    // Seen at the last look: rounds went on, and the switchover was asked for again.
    let asked = went.told.0.phases();
    let asked = asked.iter().filter(|phase| **phase == Phase::Switchover).count();
    assert!(asked >= 2, "{:?}", went.told.0.phases());
    assert!(destination.devices[0].contents().iter().all(|byte| *byte == 0));
}

#[test]
fn initial_data_that_began_anew_is_left_to_the_stop() {
    let (mut source, mut destination) = sides();
    let device = source.devices[0].clone();
    source.at_gate(|_| true);
    let reinit = move || device.reinit();
    let watchers = (at_first(Phase::Switchover, reinit), None);
    let wires = Wires { watchers, ..Wires::default() };
    let went = migrate(&mut source, &mut destination, wires, |_, _| {});
    assert_eq!(laws::broken(&source, &destination, &went, None), [""; 0]);
    went.sent.result.expect("completed");
    // Readiness was tested once more right before the stop, and found gone.
    assert!(went.sent.report.rounds >= 2, "{}", went.sent.report.rounds);
}

#[test]
fn a_lost_device_is_driven_on_and_its_guest_with_it() {
    for when in [When::PrecopyInfo, When::Read, When::StopCopyBytes] {
        let (mut source, mut destination) = sides();
        source.devices[0].fail(Failure::of(when, Fault::TimedOut(5)).after(1));
        let went = run(&mut source, &mut destination);
        let error = went.sent.result.expect_err("lost");
        assert_eq!(
            (error.recovery, error.devices),
            (Recovery::DeviceLost, vec!["dev0".to_owned()])
        );
        assert!(source.vcpus.paused(), "{when:?}");
        let entries = source.side.journal().entries();
        let failed = entries.iter().position(|e| e.contains("failed")).expect("it did");
        let later: Vec<_> =
            entries[failed + 1..].iter().filter(|e| e.contains("source dev0")).collect();
        assert_eq!(later, ["source dev0: reset"], "{when:?}");
    }
}

#[test]
fn a_device_that_will_not_stop_takes_the_guest_down() {
    for state in [State::PreCopy, State::PreCopyP2p, State::StopCopy] {
        let (mut source, mut destination) = sides();
        let fault = Fault::Refused(Errno::EBUSY);
        source.devices[0].fail(Failure::of(When::SetState(state), fault));
        let went = run(&mut source, &mut destination);
        let error = went.sent.result.expect_err("refused");
        assert_eq!(error.recovery, Recovery::SourceResumed, "{state}");
        assert!(matches!(error.cause, Cause::Device(_)), "{error}");
    }
}

#[test]
fn a_device_that_went_to_error_passes_for_one_that_rolled_back() {
    let (mut source, mut destination) = sides();
    let fault = Fault::Refused(Errno::EIO);
    let fails = Failure::of(When::SetState(State::StopCopy), fault);
    source.devices[0].fail(fails.landing_in(State::Error));
    let went = run(&mut source, &mut destination);
    let error = went.sent.result.expect_err("broken");
    assert_eq!(error.recovery, Recovery::DeviceLost);
    assert_eq!(error.devices, ["dev0"]);
    assert!(error.to_string().contains("dev0"), "{error}");
}

#[test]
fn a_device_over_there_that_refuses_its_data_costs_the_guest() {
    let (mut source, mut destination) = sides();
    let fault = Fault::Refused(Errno::EINVAL);
    destination.devices[0].fail(Failure::of(When::SetState(State::Stop), fault));
    let went = run(&mut source, &mut destination);
    let error = went.sent.result.expect_err("refused");
    assert_eq!(error.recovery, Recovery::SourceResumed);
    assert!(matches!(went.received.ending, Ending::Discarded(_)));
}

#[test]
fn a_device_that_never_settles_keeps_the_round_from_ending() {
    let (near, far) = Side::pair();
    // It changes as fast as it is read.
    let device = FakeDevice::new(&near, "dev0", ALL, contents(0)).busy(64);
    let mut source = Rig::used(&near, vec![device]);
    let mut destination = Rig::destination(&far, &[ALL]);
    let went = migrate(&mut source, &mut destination, Wires::default(), |_, _| {});
    went.sent.result.expect("completed");
    assert_eq!(source.devices[0].contents(), destination.devices[0].contents());
    assert_eq!(source.devices[0].contents().len(), CONTENTS);
}

#[test]
fn a_device_that_tells_nothing_of_itself_never_becomes_ready() {
    let (near, far) = Side::pair();
    let device = FakeDevice::new(&near, "dev0", ALL, contents(0))
        .without_precopy_info()
        .with_estimate(None)
        .with_transactions();
    let mut source = Rig::used(&near, vec![device]);
    let device = FakeDevice::blank(&far, "dev0", ALL, CONTENTS).with_transactions();
    let mut destination = Rig::new(&far, vec![device], FakeVcpus::paused(&far));
    let went = run(&mut source, &mut destination);
    went.sent.result.expect("completed");
}

#[test]
fn a_machine_without_devices_has_nobody_to_wait_for() {
    let (near, far) = Side::pair();
    let mut source = Rig::source(&near, &[]);
    let mut destination = Rig::destination(&far, &[]);
    source.busy_guest();
    let went = run(&mut source, &mut destination);
    went.sent.result.expect("completed");
    let memory: Arc<dyn GuestMemory> = went.sent.machine.memory;
    assert_eq!(memory.regions().len(), 2);
}
