//! What a guest reads and writes, and what a hostile device or guest cannot do.

use port::ConfigStage;
use proptest::prelude::{any, proptest};

use crate::control::{Function, InterruptMode};
use crate::rig::{
    AF, Access, LTR, MSI, MSIX, PM, TABLE, connected, device, function, load, move_to,
    put,
};
use crate::scripted::Scripted;

#[test]
fn a_device_off_pci_is_no_function() {
    let transport = Scripted::new(7);
    transport.script().flags = 1 << 2;
    assert!(Function::open(transport).unwrap().is_none());
}

#[test]
fn opening_changes_nothing_on_the_device() {
    let (device, _function) = function();
    let script = device.script();
    assert!(script.config_writes.is_empty() && script.irq_calls.is_empty());
    assert!(script.bar_writes.is_empty());
}

#[test]
fn a_guest_sizes_every_bar() {
    let (_device, function) = function();
    let sizes = [
        (0x10, 0xfff0_000c),
        (0x14, u32::MAX),
        (0x18, 0xffff_f000),
        (0x1c, 0xffff_ffe1),
        (0x20, 0),
        (0x24, 0),
        (0x30, 0xffff_f801),
    ];
    for (at, size) in sizes {
        function.set_u32(at, u32::MAX);
        assert_eq!(function.u32(at), size, "BAR at {at:#x}");
    }
    let mut wide = [0xff; 8];
    function.config_write(0x10, &0x12_3450_0000_u64.to_le_bytes()).unwrap();
    function.config_read(0x10, &mut wide).unwrap();
    assert_eq!(u64::from_le_bytes(wide), 0x12_3450_000c);
    assert_eq!(function.bars()[0].address, 0x12_3450_0000);
}

#[test]
fn accesses_that_pci_does_not_have_are_refused() {
    let (device, function) = function();
    for (at, length) in [(1, 2), (2, 4), (0, 3), (0, 0), (0x18, 8), (4094, 4), (4096, 1)]
    {
        let mut bytes = vec![0; length];
        assert!(function.config_read(at, &mut bytes).is_err(), "{length} at {at}");
        assert!(function.config_write(at, &bytes).is_err(), "{length} at {at}");
    }
    for (at, length) in [(2, 4), (0, 2), (0, 16), (60, 8), (0x7fc, 8), (u64::MAX, 4)] {
        let mut bytes = vec![0; length];
        assert!(function.bar_read(TABLE, at, &mut bytes).is_err(), "{length} at {at}");
        assert!(function.bar_write(TABLE, at, &bytes).is_err(), "{length} at {at}");
    }
    assert!(function.bar_read(1, 0, &mut [0]).is_err(), "the upper half of BAR 0");
    assert!(function.bar_write(5, 0, &[0]).is_err());
    assert!(device.script().config_writes.is_empty());
    assert!(device.script().bar_writes.is_empty());
}

#[test]
fn the_table_is_the_vmms_and_all_else_of_the_bar_the_devices() {
    let (device, function) = function();
    function
        .bar_write_many(
            TABLE,
            &[(0x100, &[1]), (0x108, &[2, 2]), (16, &[7; 8]), (0x110, &[3; 4])],
        )
        .unwrap();
    let writes = device.script().bar_writes.clone();
    let places: Vec<_> = writes.iter().map(|(bar, at, _)| (*bar, *at)).collect();
    assert_eq!(places, [(2, 0x100), (2, 0x108), (2, 0x110)]);
    let mut bytes = [0; 8];
    function.bar_read(TABLE, 16, &mut bytes).unwrap();
    assert_eq!(bytes, [4, 7, 7, 7, 7, 7, 7, 7], "the lowest address bits are zero");
    function.bar_read(TABLE, 0x100, &mut bytes).unwrap();
    assert_eq!(bytes, [0xda; 8]);
    function.bar_write(TABLE, 0x800, &[0xff; 8]).unwrap();
    function.bar_read(TABLE, 0x800, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 8], "pending bits are read-only");
}

#[test]
fn a_device_that_keeps_no_command_register_shows_the_guest_its_own() {
    // The kernel's mtty sample ignores such writes, and has 255 bytes of config space.
    let device = device();
    {
        let script = &mut *device.script();
        script.writable.fill(0);
        script.regions.insert(7, 255);
        put(&mut script.config, 4, &[1, 0, 0, 0]);
        script.irqs = [(0, 1), (1, 1)].into();
    }
    let function = Function::open(device.clone()).unwrap().unwrap();
    assert!(function.layout().capabilities.is_empty());
    assert_eq!(function.u16(4), 1);
    function.set_u16(4, 0x0402);
    assert_eq!(function.u16(4), 0x0402);
    assert_eq!(function.mode(), InterruptMode::Intx);
    let mut last = [9];
    function.config_read(255, &mut last).unwrap();
    assert_eq!(last, [0]);
}

#[test]
fn more_vectors_than_there_are_cannot_be_turned_on() {
    let device = device();
    device.script().irqs.insert(1, 4);
    let function = Function::open(device.clone()).unwrap().unwrap();
    function.interrupts().bind().unwrap();
    assert_eq!(function.layout().msi.unwrap().vectors, 4);
    assert_eq!(function.u16(MSI + 2) >> 1 & 7, 2, "and no more are shown");
    function.set_u16(MSI + 2, 0x0071);
    assert_eq!(device.script().irq_calls.last().unwrap(), "bind 1: 4");
}

#[test]
fn an_interrupt_that_nobody_serves_is_not_offered() {
    let (device, _) = connected();
    device.script().irqs.remove(&1);
    let function = Function::open(device.clone()).unwrap().unwrap();
    assert_eq!(function.u16(MSI), (AF as u16) << 8, "no id, and the list goes on");
    function.set_u16(MSI + 2, 1);
    assert_eq!(function.mode(), InterruptMode::Intx);
    assert_eq!(device.script().config[MSI + 2] & 1, 0, "its line would fall silent");
    assert_eq!(function.u32(0x3c) >> 8, 1);
    device.script().irqs.remove(&0);
    let function = Function::open(device).unwrap().unwrap();
    assert_eq!((function.u32(0x3c) >> 8, function.mode()), (0, InterruptMode::Off));
    function.set_u32(0x3c, 0x0000_ff0b);
    assert_eq!(function.u32(0x3c), 0x0b, "a line's number may be noted anyway");
}

#[test]
fn a_bar_that_a_guest_made_larger_is_cut_off_on_the_next_host() {
    let device = device();
    {
        let script = &mut *device.script();
        // Two BARs whose size can be chosen, and virtual functions.
        put(&mut script.config, LTR + 2, &[0x01, 0x20]);
        put(&mut script.config, 0x200, &[0x15, 0, 0x01, 0x24]);
        put(&mut script.config, 0x208, &[0x40, 0x00, 0, 0, 0xf0]);
        put(&mut script.config, 0x240, &[0x10, 0, 0x01, 0]);
        script.writable[0x200..0x300].fill(0xff);
    }
    let function = Function::open(device.clone()).unwrap().unwrap();
    assert_eq!(function.layout().extended.len(), 4);
    for at in [0x208, 0x210, 0x248, 0x250, 0x27c] {
        let before = function.u32(at);
        function.set_u32(at, 0x0101);
        function.set_u16(at, 0x0101);
        function.set_u8(at + 1, 1);
        assert_eq!(function.u32(at), before, "{at:#x}");
    }
    assert!(device.script().config_writes.is_empty());
    // What comes right behind is another's.
    function.set_u32(0x214, 1);
    function.set_u32(0x280, 1);
    assert_eq!(device.script().config_writes.len(), 2);
}

#[test]
fn data_of_32_bits_that_would_be_cut_at_a_migration_is_never_promised() {
    // Extended message data: the device can, and somebody left it on.
    let extended = || {
        let device = device();
        device.script().config[MSI + 3] |= 0x06;
        device.script().writable[MSI + 3] = 0x04;
        put(&mut device.script().config, MSI + 14, &[0x77; 2]);
        put(&mut device.script().writable, MSI + 14, &[0xff; 2]);
        device
    };
    let device = extended();
    let function = Function::open(device.clone()).unwrap().unwrap();
    function.interrupts().bind().unwrap();
    assert_eq!(function.u16(MSI + 2), 0x0186);
    function.set_u32(MSI + 12, 0xabcd_0040);
    assert_eq!(function.u32(MSI + 12), 0x40);
    function.set_u16(MSI + 2, 0x0631);
    assert_eq!(function.u16(MSI + 2), 0x01b7);
    // The whole first register, of which the guest may write a part.
    function.set_u32(MSI, 0x0431_0000);
    assert_eq!(device.script().config[MSI + 3], 0x03, "it is off at the device");
    assert_eq!(device.script().config[MSI + 12..MSI + 16], [0x40, 0, 0, 0]);
    device.script().raise(1, 2, 1);
    assert_eq!(function.taken(), [(2, 0x42, 1)]);
    let other = extended();
    let to = Function::open(other.clone()).unwrap().unwrap();
    move_to((&device, &function), (&other, &to), || device.script().raise(1, 3, 1));
    assert_eq!(to.taken(), [(3, 0x43, 1)]);
    assert_eq!(other.script().config[MSI + 3], 0x03);
}

#[test]
fn a_list_of_capabilities_in_circles_ends() {
    let broken: [(usize, &[u8]); 8] = [
        (MSIX + 1, &[PM as u8]),
        (PM + 1, &[0x3c]),
        (PM + 1, &[0xfc]),
        (0x34, &[0x10]),
        // Of the extended ones: to itself, to the first, into the header, to the end.
        (LTR, &[0x18, 0, 0x81, 0x14]),
        (LTR, &[0x18, 0, 0x01, 0x10]),
        (LTR, &[0x18, 0, 0x01, 0x04]),
        (LTR, &[0x18, 0, 0xc1, 0xff]),
    ];
    for (at, value) in broken {
        let device = device();
        device.script().config[0xfc] = 0x11;
        put(&mut device.script().config, 0xffc, &[0x01, 0, 2, 0]);
        put(&mut device.script().config, at, value);
        let error = Function::open(device).unwrap_err();
        assert!(error.to_string().contains("list of capabilities"), "{error}");
    }
}

#[test]
fn a_second_capability_of_a_kind_has_registers_behind_the_end() {
    // The second has room for what it says of itself, and none for what the first has.
    for (id, second) in [(0x05, &[0x05, 0, 0, 0][..]), (0x10, &[0x10, 0, 1, 0])] {
        let device = device();
        {
            let script = &mut *device.script();
            script.regions.insert(7, 256);
            put(&mut script.config, AF, &[0x13, 0xf4]);
            put(&mut script.config, 0xf4, second);
            put(&mut script.writable, 0xf4, &[0xff; 12]);
        }
        let function = Function::open(device.clone()).unwrap().unwrap();
        let all = &function.layout().capabilities;
        assert_eq!(all.iter().filter(|one| one.id == id).count(), 2);
        let saved = function.config_space().save().unwrap();
        load(&function, &saved, ConfigStage::Resuming).unwrap();
        let writes = device.script().config_writes.clone();
        assert!(writes.iter().all(|(at, _)| *at < 0xf4), "{writes:?}");
    }
}

#[test]
fn a_device_that_cannot_be_is_refused_by_name() {
    type Change = fn(&Scripted);
    let changes: [(Change, &str); 7] = [
        (|device| device.script().config.fill(0xff), "all ones"),
        (|device| device.script().config[0x0e] = 1, "header type 1"),
        (|device| device.script().config[MSIX + 5] = 0x10, "in no BAR"),
        (|device| device.script().config[MSIX + 8] = 5, "in no BAR"),
        (|device| _ = device.script().irqs.insert(2, 3), "3 of them are served"),
        (|device| _ = device.script().regions.insert(2, 1 << 40), "BAR 2"),
        (|device| _ = device.script().regions.insert(7, 16), "16 bytes"),
    ];
    for (change, what) in changes {
        let device = device();
        change(&device);
        let error = Function::open(device).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}

proptest! {
    #[test]
    fn no_config_space_and_no_guest_breaks_a_function(
        changes in proptest::collection::vec((0..4096_usize, any::<u8>()), 0..64),
        accesses in proptest::collection::vec(
            (0..0x180_u16, 0..4_u32, any::<u64>(), any::<bool>()), 0..32
        ),
    ) {
        let device = device();
        for (at, value) in changes {
            // Not all of them far away from what is looked at.
            let at = if value & 1 == 0 { at } else { at % 0x180 };
            device.script().config[at] = value;
        }
        if let Ok(Some(function)) = Function::open(device) {
            let _ = function.interrupts().bind();
            for (at, width, value, write) in accesses {
                let mut bytes = value.to_le_bytes();
                let bytes = &mut bytes[..1 << width];
                let _ = match write {
                    true => function.config_write(at, bytes),
                    false => function.config_read(at, bytes),
                };
                let _ = match write {
                    true => function.bar_write(TABLE, u64::from(at) * 4, bytes),
                    false => function.bar_read(TABLE, u64::from(at) * 4, bytes),
                };
                let _ = function.take(&mut |_, _, _| ());
            }
            let saved = function.config_space().save();
            if let Ok(saved) = saved {
                let _ = function.config_space().load(&saved, ConfigStage::Resuming);
            }
        }
    }
}
