//! What is not given to a function: what was saved of another, and nonsense.

use std::error::Error;
use std::sync::Arc;

use port::ConfigStage;
use proptest::prelude::{any, proptest};

use crate::control::Function;
use crate::rig::{AER, AF, LTR, MSI, MSIX, PCIE, PM, device, function, load, save, used};
use crate::scripted::Scripted;

fn refusal(function: &Function, saved: &[u8]) -> String {
    let error = load(function, saved, ConfigStage::Resuming).unwrap_err();
    error.source().unwrap().to_string()
}

#[test]
fn another_device_is_refused_with_the_reason_before_anything_is_written() {
    type Change = fn(&Scripted);
    let changes: [(Change, &str); 14] = [
        (|to| to.script().config[0] ^= 1, "the vendor is 0x1b36, here it is 0x1b37"),
        (|to| to.script().config[2] ^= 1, "the device is"),
        (|to| to.script().config[0x10] = 4, "BAR 0, 64-bit memory of 1048576 bytes"),
        (
            |to| _ = to.script().regions.insert(2, 8192),
            "BAR 2, 32-bit memory of 4096 bytes, here it is BAR 2, 32-bit memory of 8192",
        ),
        (
            |to| _ = to.script().regions.insert(4, 64),
            "ROM of 2048 bytes, here it is BAR 4",
        ),
        (|to| _ = to.script().regions.remove(&6), "here it is not there"),
        (|to| to.script().config[PCIE + 1] = AF as u8, "MSI is MSI of 8 vectors"),
        (|to| to.script().config[MSI + 2] = 0x06, "32-bit addresses"),
        (|to| _ = to.script().irqs.insert(1, 2), "MSI of 2 vectors"),
        (|to| to.script().config[MSIX + 2] = 2, "MSI-X of 3 vectors"),
        (|to| to.script().config[MSIX + 9] = 4, "pending bits in BAR 2 at 0x400"),
        (|to| to.script().config[0x34] = MSIX as u8, "a register at 0x44"),
        (|to| to.script().config[PCIE + 2] = 1, "a register at 0x88"),
        (|to| to.script().config[AER + 2..AER + 4].fill(0), "a register at 0x14c"),
    ];
    let (_source, from) = used();
    let saved = save(&from);
    for (change, what) in changes {
        let device = device();
        change(&device);
        let to = Function::open(device.clone()).unwrap().unwrap();
        let why = refusal(&to, &saved);
        assert!(why.contains(what), "{why}");
        assert!(device.script().config_writes.is_empty());
        assert!(device.script().irq_calls.is_empty());
    }
}

#[test]
fn a_bar_that_does_not_hold_its_address_is_found() {
    let (_source, from) = used();
    let (destination, to) = function();
    // It says 1 MiB, and decodes 256 MiB: the lower bits of the address do not hold.
    destination.script().writable[0x12] = 0;
    destination.script().writable[0x13] = 0xf0;
    let why = refusal(&to, &save(&from));
    assert!(why.contains("at 0x10 was 0xfe100000 and holds 0xf0000000"), "{why}");
}

#[test]
fn a_sleeping_function_is_not_woken() {
    let (_source, from) = used();
    let (destination, to) = function();
    destination.script().config[PM + 4] = 3;
    assert!(refusal(&to, &save(&from)).contains("sleeps, and waking it may reset it: "));
    assert!(destination.script().config_writes.is_empty());
}

#[test]
fn what_was_not_saved_by_this_is_refused() {
    let (_source, from) = used();
    let (destination, to) = function();
    let saved = save(&from);
    for length in 0..saved.len() {
        assert!(load(&to, &saved[..length], ConfigStage::Resuming).is_err(), "{length}");
        assert!(load(&to, &saved[..length], ConfigStage::Power).is_err(), "{length}");
    }
    let mut longer = saved.clone();
    longer.push(0);
    assert!(load(&to, &longer, ConfigStage::Resuming).is_err());
    let mut newer = saved;
    newer[0] = 3;
    assert!(refusal(&to, &newer).contains("version 3"));
    assert!(destination.script().config_writes.is_empty());
}

/// A record of version 1, as that version wrote it of the function of the rig.
fn version_1() -> Vec<u8> {
    let mut old = vec![0; 96];
    old[..8].copy_from_slice(&[1, 0, 0x36, 0x1b, 0x4e, 0xfa, 0x06, 0x04]);
    old[8..15]
        .copy_from_slice(&[PM as u8, MSI as u8, MSIX as u8, PCIE as u8, 16, 32, 11]);
    old[16..24].copy_from_slice(&[0x0c, 0, 0x10, 0xfe, 3, 0, 0, 0]);
    old[24..32].copy_from_slice(&[0, 0x40, 0x20, 0xfd, 0xe1, 0xc0, 0, 0]);
    old[40..44].copy_from_slice(&[1, 0, 0x30, 0xfd]);
    old[44..48].copy_from_slice(&[0x03, 0x01, 0xb6, 0x01]);
    old[48..52].copy_from_slice(&[0, 0x10, 0xe0, 0xfe]);
    old[56] = 0xf0;
    old[60..64].copy_from_slice(&[0x41, 0, 3, 0x80]);
    old[64..72].copy_from_slice(&[2, 0, 0, 0, 2, 8, 0, 0]);
    old[72..76].copy_from_slice(&[0x2f, 0x51, 0x05, 0]);
    old
}

#[test]
fn a_file_of_the_first_version_is_still_read() {
    let (destination, to) = function();
    let old = version_1();
    load(&to, &old, ConfigStage::Resuming).unwrap();
    load(&to, &old, ConfigStage::Power).unwrap();
    assert_eq!(to.bars()[0].address, 0x3_fe10_0000);
    assert_eq!(to.bars()[1].address, 0xfd20_4000);
    let config = destination.script().config;
    assert_eq!(config[4..6], [0x06, 0x04]);
    assert_eq!(config[PM + 4] & 3, 3);
    assert_eq!(config[MSI + 12], 0x41);
    assert_eq!(config[MSIX + 3], 0x80);
    assert_eq!(config[LTR + 4..LTR + 8], [0; 4]);
    for (at, wrong) in
        [(2, "the vendor"), (9, "the place of a capability"), (47, "MSI is")]
    {
        let mut other = version_1();
        other[at] ^= 1;
        let why = refusal(&to, &other);
        assert!(why.contains(wrong), "{why}");
    }
    for length in 0..96 {
        assert!(load(&to, &old[..length], ConfigStage::Resuming).is_err());
    }
}

proptest! {
    #[test]
    fn no_record_breaks_the_reader(
        bytes: Vec<u8>,
        changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8),
    ) {
        let (destination, to) = function();
        let _ = load(&to, &bytes, ConfigStage::Resuming);
        let (_source, from) = used();
        let mut saved = save(&from);
        for (at, value) in changes {
            let at = at % saved.len();
            saved[at] = value;
        }
        let _ = load(&to, &saved, ConfigStage::Resuming);
        let _ = load(&to, &saved, ConfigStage::Power);
        let _ = to.interrupts().bind();
        let _ = to.take(&mut |_, _, _| ());
        // Whatever it said, the function was neither reset nor an error cleared.
        let writes = destination.script().config_writes.clone();
        let reset = |at: u64, bytes: &[u8]| {
            at == PCIE as u64 + 8 && bytes.get(1).is_some_and(|byte| byte & 0x80 != 0)
        };
        assert!(!writes.iter().any(|(at, bytes)| *at == 6 || reset(*at, bytes)));
        drop(Arc::clone(&destination));
    }
}
