//! Law 5: devices stop and start in waves, and nobody writes into one that is stopped.

mod rig;

use port::Progress;
use rig::{Rig, Wires, assert_moved, laws, migrate};
use states::v2::Capabilities;
use testkit::{DeviceHandle, Side};

const ALL: Capabilities = Capabilities::ALL;
const P2P: Capabilities = Capabilities::P2P;
const STOP_COPY: Capabilities = Capabilities::STOP_COPY;

fn sides(set: &[Capabilities]) -> (Rig, Rig) {
    let (near, far) = Side::pair();
    let (source, destination) = (Rig::source(&near, set), Rig::destination(&far, set));
    source.dma.set_peer_to_peer(true);
    destination.dma.set_peer_to_peer(true);
    (source, destination)
}

/// Every device writes into every other, as far as its state lets it.
fn write_to_peers(devices: &[DeviceHandle]) {
    for (n, writer) in devices.iter().enumerate() {
        for (m, peer) in devices.iter().enumerate() {
            // A device that no guest has programmed writes nowhere.
            if n != m && writer.holds_guest() {
                writer.write_to_peer(peer, 100 + n, &[n as u8]);
            }
        }
    }
}

#[test]
fn a_peer_that_still_runs_writes_into_a_stopped_device() {
    for set in [&[ALL, ALL][..], &[ALL, STOP_COPY, P2P], &[STOP_COPY, ALL], &[P2P, ALL]] {
        let (mut source, mut destination) = sides(set);
        // After every transition of any device, on both sides.
        let writes = |devices: &[DeviceHandle]| {
            let devices = devices.to_vec();
            let watcher: rig::Watcher = Box::new(move |progress| {
                if matches!(progress, Progress::Transition { .. }) {
                    write_to_peers(&devices);
                }
            });
            Some(watcher)
        };
        let watchers = (writes(&source.devices), writes(&destination.devices));
        let wires = Wires { watchers, ..Wires::default() };
        let went = migrate(&mut source, &mut destination, wires, |_, _| {});
        went.sent.result.expect("completed");
        for (n, device) in source.devices.iter().chain(&destination.devices).enumerate() {
            assert_eq!(device.touched_while_stopped(), 0, "{set:?}: device {n}");
        }
        assert!(source.side.witness().violations().is_empty());
    }
}

#[test]
fn a_set_stops_and_starts_in_three_waves_around_the_device_without_p2p() {
    let (mut source, mut destination) = sides(&[ALL, STOP_COPY, P2P]);
    let went = migrate(&mut source, &mut destination, Wires::default(), |_, _| {});
    went.sent.result.expect("completed");
    assert_moved(&source, &destination);
    let journal = source.side.journal();
    for order in [
        [
            "source dev0: PRE_COPY to PRE_COPY_P2P",
            "source dev1: RUNNING to STOP_COPY",
            "source dev0: PRE_COPY_P2P to STOP_COPY",
        ],
        [
            "source dev2: RUNNING to RUNNING_P2P",
            "source dev1: RUNNING to STOP_COPY",
            "source dev2: RUNNING_P2P to STOP_COPY",
        ],
        [
            "destination dev0: STOP to RUNNING_P2P",
            "destination dev1: STOP to RUNNING",
            "destination dev0: RUNNING_P2P to RUNNING",
        ],
        [
            "destination dev2: STOP to RUNNING_P2P",
            "destination dev1: STOP to RUNNING",
            "destination dev2: RUNNING_P2P to RUNNING",
        ],
    ] {
        assert!(journal.in_order(&order), "{order:?} in {:#?}", journal.entries());
    }
}

#[test]
fn a_device_restored_before_its_guest_is_asked_loses_an_interrupt() {
    // Config after the vCPUs and before STOP_COPY; interrupts after the devices; sections
    // last. On the other side: config and vectors while the device still resumes, power
    // after that, interrupts before the sections that come after devices.
    let (mut source, mut destination) = sides(&[ALL]);
    source.busy_guest();
    let went = migrate(&mut source, &mut destination, Wires::default(), |_, _| {});
    went.sent.result.as_ref().expect("completed");
    assert_eq!(laws::broken(&source, &destination, &went, None), [""; 0]);
    assert_eq!(destination.interrupts[0].pending(), [0, 1, 0, 0]);
    let journal = source.side.journal();
    let there = [
        "source vCPUs: pause",
        "source config of dev0: save",
        "source dev0: PRE_COPY to PRE_COPY_P2P",
        "source dev0: PRE_COPY_P2P to STOP_COPY",
        "source interrupts of dev0: drain",
        "source cpu: save",
        "source timer: save",
        "destination cpu: load",
        "destination config of dev0: load",
        "destination interrupts of dev0: bind",
        "destination dev0: RESUMING to STOP",
        "destination config of dev0: load power",
        "destination interrupts of dev0: deliver",
        "destination timer: load",
        "destination dev0: STOP to RUNNING_P2P",
        "destination dev0: RUNNING_P2P to RUNNING",
        "destination vCPUs: resume",
    ];
    assert!(journal.in_order(&there), "{:#?}", journal.entries());
}

#[test]
fn error_17_configuration_is_loaded_before_data() {
    let (mut source, mut destination) = sides(&[ALL, ALL]);
    source.busy_guest();
    let went = migrate(&mut source, &mut destination, Wires::default(), |_, _| {});
    went.sent.result.as_ref().expect("completed");
    let entries = source.side.journal().entries();
    for device in ["dev0", "dev1"] {
        let data = format!("destination {device}: takes data");
        let last = entries.iter().rposition(|entry| *entry == data).expect("data");
        let config = format!("destination config of {device}: load");
        let config = entries.iter().position(|entry| *entry == config).expect("config");
        let stop = format!("destination {device}: RESUMING to STOP");
        let stop = entries.iter().position(|entry| *entry == stop).expect("a stop");
        assert!(last < config && config < stop, "{device}: {entries:#?}");
    }
}

#[test]
fn a_log_that_is_dropped_with_stop_copy_is_read_before_it() {
    // Some drivers forget their log when the device leaves STOP_COPY.
    let (mut source, mut destination) = sides(&[ALL]);
    let went = migrate(&mut source, &mut destination, Wires::default(), |_, _| {});
    went.sent.result.expect("completed");
    let entries = source.side.journal().entries();
    let stopped = entries.iter().position(|e| e.ends_with("to STOP_COPY"));
    let tidied = entries.iter().position(|e| e == "source dev0: STOP_COPY to STOP");
    let last = entries.iter().rposition(|e| e == "source vCPU log: collect");
    assert!(stopped < last && last < tidied, "{entries:#?}");
}
