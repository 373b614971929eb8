//! Config space, saved here and put back there.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]

mod scripted;

use std::error::Error;
use std::sync::Arc;

use port::{ConfigSpace, ConfigStage};
use scripted::Scripted;
use vfio_migrate_control::PciConfig;

const PM: usize = 0x40;
const MSIX: usize = 0x50;
const PCIE: usize = 0x60;
const MSI: usize = 0xa0;

fn put(bytes: &mut [u8; 256], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A function with a 64-bit BAR, a 32-bit BAR and four capabilities.
fn function() -> (Arc<Scripted>, PciConfig) {
    let transport = Scripted::new(7);
    {
        let script = &mut *transport.script();
        let (config, writable) = (&mut script.config, &mut script.writable);
        put(config, 6, &[0x10, 0]);
        put(config, 0x10, &[0x0c, 0, 0, 0]);
        put(config, 0x34, &[PM as u8]);
        put(config, PM, &[0x01, MSIX as u8, 3, 0, 0, 0x80]);
        put(config, MSIX, &[0x11, PCIE as u8, 3, 0, 0, 0x20, 0, 0, 0, 0x30, 0, 0]);
        put(config, PCIE, &[0x10, MSI as u8, 2, 0, 0, 0, 0, 0x10]);
        put(config, PCIE + 0xa, &[0x0f, 0]);
        put(config, MSI, &[0x05, 0, 0x80, 0x01]);
        put(writable, 4, &[0x47, 0x05]);
        put(writable, 0x0c, &[0xff, 0xff]);
        put(writable, 0x10, &[0, 0, 0xf0, 0xff, 0xff, 0xff, 0xff, 0xff]);
        put(writable, 0x18, &[0, 0xf0, 0xff, 0xff]);
        put(writable, 0x3c, &[0xff]);
        put(writable, PM + 4, &[0x03, 0x01]);
        put(writable, MSIX + 2, &[0, 0xc0]);
        put(writable, PCIE + 8, &[0xff, 0x7f]);
        put(writable, PCIE + 0x28, &[0xff, 0xff]);
        put(writable, MSI + 2, &[0x01]);
        put(writable, MSI + 4, &[0xff; 16]);
    }
    let config = PciConfig::open(transport.clone()).unwrap().unwrap();
    (transport, config)
}

/// The same function as a guest has set it up.
fn used() -> (Arc<Scripted>, PciConfig) {
    let (transport, config) = function();
    {
        let script = &mut *transport.script();
        let bytes = &mut script.config;
        put(bytes, 4, &[0x06, 0x04]);
        put(bytes, 6, &[0x10, 0xf9]);
        put(bytes, 0x0c, &[16, 32]);
        put(bytes, 0x10, &[0x0c, 0, 0x10, 0xfe, 3, 0, 0, 0]);
        put(bytes, 0x18, &[0, 0x40, 0x20, 0xfd]);
        put(bytes, 0x3c, &[11]);
        put(bytes, PM + 4, &[0x03, 0x81]);
        put(bytes, MSIX + 2, &[3, 0xc0]);
        put(bytes, PCIE + 8, &[0x2f, 0xd1]);
        put(bytes, PCIE + 0x28, &[0x05, 0x00]);
        put(bytes, MSI + 2, &[0x81]);
        put(
            bytes,
            MSI + 4,
            &[0, 0x10, 0xe0, 0xfe, 1, 0, 0, 0, 0x41, 0, 0, 0, 7, 0, 0, 0],
        );
    }
    (transport, config)
}

fn refusal(config: &mut PciConfig, saved: &[u8]) -> String {
    let error = config.load(saved, ConfigStage::Resuming).unwrap_err();
    error.source().unwrap().to_string()
}

#[test]
fn a_device_off_pci_has_no_config_space() {
    let transport = Scripted::new(7);
    transport.script().flags = 1 << 2;
    assert!(PciConfig::open(transport).unwrap().is_none());
}

#[test]
fn what_the_guest_made_of_it_arrives() {
    let (source, mut from) = used();
    let (destination, mut to) = function();
    let saved = from.save().unwrap();
    to.load(&saved, ConfigStage::Resuming).unwrap();
    let power = destination.script().config[PM + 4];
    assert_eq!(power & 3, 0, "the power state comes last");
    to.load(&saved, ConfigStage::Power).unwrap();
    assert_eq!(to.save().unwrap(), saved);
    let (source, destination) = (source.script(), destination.script());
    for at in 0..256 {
        let mask = source.writable[at];
        let (was, is) = (source.config[at], destination.config[at]);
        assert_eq!(was & mask, is & mask, "offset {at:#x}");
    }
}

#[test]
fn no_write_resets_the_function_or_clears_an_error() {
    let (_source, mut from) = used();
    let (destination, mut to) = function();
    let saved = from.save().unwrap();
    to.load(&saved, ConfigStage::Resuming).unwrap();
    to.load(&saved, ConfigStage::Power).unwrap();
    let writes = destination.script().config_writes.clone();
    let bytes_at = |at: usize| {
        writes.iter().flat_map(move |(offset, bytes)| {
            at.checked_sub(*offset as usize).and_then(|n| bytes.get(n))
        })
    };
    assert_eq!(bytes_at(6).chain(bytes_at(7)).count(), 0, "status");
    assert_eq!(
        bytes_at(PCIE + 10).chain(bytes_at(PCIE + 11)).count(),
        0,
        "device status"
    );
    assert!(bytes_at(PCIE + 9).all(|byte| byte & 0x80 == 0), "function level reset");
    assert!(bytes_at(PM + 5).all(|byte| byte & 0x80 == 0), "wake-up status");
}

#[test]
fn addresses_are_written_while_nothing_decodes() {
    let (_source, mut from) = used();
    let (destination, mut to) = function();
    to.load(&from.save().unwrap(), ConfigStage::Resuming).unwrap();
    let writes = destination.script().config_writes.clone();
    let (first, last) = (&writes[0], writes.last().unwrap());
    assert_eq!((first.0, first.1[0] & 7), (4, 0));
    assert_eq!((last.0, last.1[0] & 7), (4, 6));
    let commands = writes.iter().filter(|(at, _)| *at == 4).count();
    assert_eq!(commands, 2);
    // MSI is complete before it is on.
    let msi: Vec<_> = writes.iter().filter(|(at, _)| *at == MSI as u64 + 2).collect();
    assert_eq!((msi[0].1[0] & 1, msi[1].1[0] & 1), (0, 1));
}

#[test]
fn error_01_a_bit_is_cleared_by_a_bitwise_not_and_the_others_stay() {
    // Document 001 clears decoding and MSI with a logical not, and everything with it.
    let (source, mut from) = used();
    // Parity errors are answered and INTx is off, on both sides.
    source.script().config[4..6].copy_from_slice(&[0x46, 0x05]);
    let (destination, mut to) = function();
    destination.script().config[4..6].copy_from_slice(&[0x46, 0x05]);
    to.load(&from.save().unwrap(), ConfigStage::Resuming).unwrap();
    let writes = destination.script().config_writes.clone();
    let commands: Vec<_> = writes.iter().filter(|(at, _)| *at == 4).collect();
    assert_eq!(commands[0].1, [0x40, 0x05], "decoding off, and nothing else");
    assert_eq!(commands[1].1, [0x46, 0x05]);
    let msi: Vec<_> = writes.iter().filter(|(at, _)| *at == MSI as u64 + 2).collect();
    assert_eq!(msi[0].1, [0x80, 0x01], "MSI off, and nothing else");
    assert_eq!(msi[1].1, [0x81, 0x01]);
}

#[test]
fn a_smaller_bar_does_not_take_the_address_of_a_larger_one() {
    let (_source, mut from) = used();
    let (destination, mut to) = function();
    // This one decodes 256 MiB: the lower bits of the address do not hold.
    destination.script().writable[0x12] = 0;
    destination.script().writable[0x13] = 0xf0;
    let why = refusal(&mut to, &from.save().unwrap());
    assert_eq!(why, "BAR 0 was 0xfe10000c and holds 0xf000000c");
}

#[test]
fn another_device_is_refused() {
    type Change = fn(&mut [u8; 256]);
    let changes: [(Change, &str); 9] = [
        (|config| config[0] ^= 1, "the vendor"),
        (|config| config[2] ^= 1, "the device"),
        (|config| config[0x10] = 0, "the kind of a BAR"),
        (|config| config[0x18] = 1, "the kind of a BAR"),
        (|config| config[PCIE + 1] = 0, "the place of capabilities"),
        (|config| config[MSIX + 2] = 4, "the number of MSI-X vectors"),
        (|config| config[MSIX + 5] = 0, "the MSI-X table"),
        (|config| config[MSIX + 9] = 0, "pending bits"),
        (|config| config[MSI + 2] = 0, "the kind of MSI"),
    ];
    let (_source, mut from) = used();
    let saved = from.save().unwrap();
    for (change, what) in changes {
        let (destination, mut to) = function();
        change(&mut destination.script().config);
        let why = refusal(&mut to, &saved);
        assert!(why.contains(what), "{why}");
        assert!(destination.script().config_writes.is_empty());
    }
}

#[test]
fn what_was_not_saved_by_this_is_refused() {
    let (_source, mut from) = used();
    let (destination, mut to) = function();
    let saved = from.save().unwrap();
    for length in 0..saved.len() {
        assert!(to.load(&saved[..length], ConfigStage::Resuming).is_err());
        assert!(to.load(&saved[..length], ConfigStage::Power).is_err());
    }
    let mut longer = saved.clone();
    longer.push(0);
    assert!(to.load(&longer, ConfigStage::Resuming).is_err());
    let mut newer = saved;
    newer[0] = 2;
    assert!(refusal(&mut to, &newer).contains("version 2"));
    assert!(destination.script().config_writes.is_empty());
}

#[test]
fn a_sleeping_function_is_not_woken() {
    let (_source, mut from) = used();
    let (destination, mut to) = function();
    destination.script().config[PM + 4] = 3;
    assert!(refusal(&mut to, &from.save().unwrap()).contains("sleeps"));
    assert!(destination.script().config_writes.is_empty());
}

#[test]
fn a_list_of_capabilities_in_circles_ends() {
    let broken: [(usize, u8); 4] =
        [(MSIX + 1, PM as u8), (PM + 1, 0x3c), (PM + 1, 0xfc), (0x34, 0x10)];
    for (at, value) in broken {
        let (transport, mut config) = function();
        transport.script().config[0xfc] = 0x11;
        transport.script().config[at] = value;
        let error = config.save().unwrap_err();
        assert!(error.source().unwrap().to_string().contains("list of capabilities"));
    }
    let (transport, mut config) = function();
    transport.script().config.fill(0xff);
    assert!(config.save().is_err());
}
