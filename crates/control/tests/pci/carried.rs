//! What a guest wrote arrives, in an order in which nothing goes wrong meanwhile.

use std::sync::{Arc, Mutex};

use port::ConfigStage;

use crate::control::BarPlace;
use crate::rig::{
    AER, AF, Access, LTR, MSI, MSIX, PCIE, PM, TABLE, connected, function, load, move_to,
    put, save, used,
};

#[test]
fn what_the_guest_made_of_it_arrives() {
    let (source, from) = used();
    let (destination, to) = function();
    let saved = save(&from);
    load(&to, &saved, ConfigStage::Resuming).unwrap();
    load(&to, &saved, ConfigStage::Power).unwrap();
    assert_eq!(save(&to), saved);
    assert_eq!(to.bars(), from.bars());
    let (source, destination) = (source.script(), destination.script());
    for at in 0..4096 {
        let mask = source.writable[at];
        let (was, is) = (source.config[at], destination.config[at]);
        assert_eq!(was & mask, is & mask, "offset {at:#x}");
    }
}

#[test]
fn no_write_resets_the_function_or_clears_an_error() {
    let (source, from) = used();
    // What reads as ones there must not be written back.
    put(&mut source.script().config, PCIE + 8, &[0x2f, 0xd1]);
    put(&mut source.script().config, AF + 4, &[1, 1]);
    put(&mut source.script().config, PM + 4, &[0x00, 0x81]);
    let (destination, to) = function();
    let saved = save(&from);
    load(&to, &saved, ConfigStage::Resuming).unwrap();
    load(&to, &saved, ConfigStage::Power).unwrap();
    let writes = destination.script().config_writes.clone();
    let bytes_at = |at: usize| {
        writes.iter().flat_map(move |(offset, bytes)| {
            at.checked_sub(*offset as usize).and_then(|n| bytes.get(n))
        })
    };
    let untouched = [(6, 2), (PCIE + 10, 2), (AF, 6), (AER + 4, 4), (AER + 0x10, 4)];
    for (start, length) in untouched {
        for at in start..start + length {
            assert_eq!(bytes_at(at).count(), 0, "offset {at:#x}");
        }
    }
    assert!(bytes_at(PCIE + 9).count() != 0);
    assert!(bytes_at(PCIE + 9).all(|byte| byte & 0x80 == 0), "function level reset");
    assert!(bytes_at(PM + 5).all(|byte| byte & 0x80 == 0), "wake-up status");
}

#[test]
fn nothing_decodes_at_a_wrong_place_while_bars_are_written() {
    let (_source, from) = used();
    let (destination, to) = function();
    destination.script().config[4] = 7;
    load(&to, &save(&from), ConfigStage::Resuming).unwrap();
    let writes = destination.script().config_writes.clone();
    let (first, last) = (&writes[0], writes.last().unwrap());
    assert_eq!((first.0, first.1[0] & 7), (4, 0));
    assert_eq!((last.0, last.1[0] & 7), (4, 7));
    let commands = writes.iter().filter(|(at, _)| *at == 4).count();
    assert_eq!(commands, 2);
}

#[test]
fn no_message_is_on_before_it_is_written() {
    // A device that another guest left with MSI on, and half of its message.
    let (_source, from) = connected();
    from.set_u32(MSI + 4, 0xfee0_2000);
    from.set_u16(MSI + 12, 0x51);
    from.set_u32(MSI + 16, 0x0f);
    from.set_u16(MSI + 2, 0x0031);
    let (destination, to) = function();
    destination.script().config[MSI + 2] |= 0x31;
    load(&to, &save(&from), ConfigStage::Resuming).unwrap();
    let mut on = true;
    for (at, bytes) in &destination.script().config_writes {
        if *at == MSI as u64 + 2 {
            on = bytes[0] & 1 != 0;
        } else if (MSI as u64..MSI as u64 + 24).contains(at) {
            assert!(!on, "offset {at:#x} was written while MSI was on");
        }
    }
    assert!(on);
}

#[test]
fn error_01_a_bit_is_cleared_by_a_bitwise_not_and_the_others_stay() {
    // Document 001 clears decoding and MSI with a logical not, and everything with it.
    let (_source, from) = used();
    let (destination, to) = function();
    put(&mut destination.script().config, 4, &[0x46, 0x05]);
    put(&mut destination.script().config, MSI + 2, &[0xb7, 0x01]);
    load(&to, &save(&from), ConfigStage::Resuming).unwrap();
    let writes = destination.script().config_writes.clone();
    let commands: Vec<_> = writes.iter().filter(|(at, _)| *at == 4).collect();
    assert_eq!(commands[0].1, [0x40, 0x05], "decoding off, and nothing else");
    assert_eq!(commands[1].1, [0x47, 0x05]);
    let msi: Vec<_> = writes.iter().filter(|(at, _)| *at == MSI as u64 + 2).collect();
    assert_eq!(msi[0].1, [0xb6, 0x01], "MSI off, and nothing else");
}

#[test]
fn the_power_state_comes_last_and_nothing_decodes_in_it() {
    let (_source, from) = used();
    from.set_u16(PM + 4, 0x0103);
    assert!(from.bars().iter().all(|bar| !bar.decoded));
    let (destination, to) = function();
    let saved = save(&from);
    load(&to, &saved, ConfigStage::Resuming).unwrap();
    assert_eq!(destination.script().config[PM + 4] & 3, 0);
    assert!(to.bars().iter().any(|bar| bar.decoded));
    load(&to, &saved, ConfigStage::Power).unwrap();
    assert_eq!(destination.script().config[PM + 4] & 3, 3);
    assert!(to.bars().iter().all(|bar| !bar.decoded));
}

#[test]
fn the_hook_hears_of_every_move_of_a_bar_and_of_nothing_else() {
    let heard: Arc<Mutex<Vec<Vec<BarPlace>>>> = Arc::default();
    let hook = Arc::clone(&heard);
    let (_device, function) = connected();
    function.on_bars(Box::new(move |bars| hook.lock().unwrap().push(bars.to_vec())));
    let take = || std::mem::take(&mut *heard.lock().unwrap());

    function.set_u32(0x18, 0xfd20_4000);
    assert_eq!(take().len(), 1);
    function.set_u32(0x18, 0xfd20_4fff);
    function.set_u8(0x3c, 9);
    function.set_u16(MSI + 2, 0x0010);
    assert!(take().is_empty(), "nothing moved");
    function.set_u16(4, 2);
    let bars = take().remove(0);
    let table = bars.iter().find(|bar| bar.bar == TABLE).unwrap();
    let place = BarPlace { bar: TABLE, address: 0xfd20_4000, size: 4096, decoded: true };
    assert_eq!(*table, place);
    // Those that were given no address yet decode nothing.
    assert!(!bars[0].decoded);
    function.set_u32(0x18, u32::MAX);
    assert!(!take()[0][1].decoded, "its size is being asked for");
    function.set_u32(0x18, 0xfd20_8000);
    assert!(take()[0][1].decoded);

    let (_other, to) = self::function();
    let hook = Arc::clone(&heard);
    to.on_bars(Box::new(move |bars| hook.lock().unwrap().push(bars.to_vec())));
    load(&to, &save(&function), ConfigStage::Resuming).unwrap();
    assert_eq!(take(), [function.bars()], "once, when all are in their place");
    to.reset().unwrap();
}

#[test]
fn masks_and_pending_bits_of_msix_arrive_vector_by_vector() {
    // Document 001 says that MSI-X is not tested.
    let (source, from) = used();
    source.script().raise(2, 3, 5);
    let (destination, to) = function();
    move_to((&source, &from), (&destination, &to), || ());
    for at in (0..64).step_by(8) {
        let (mut was, mut is) = ([0; 8], [0; 8]);
        from.bar_read(TABLE, at, &mut was).unwrap();
        to.bar_read(TABLE, at, &mut is).unwrap();
        assert_eq!(was, is, "table at {at:#x}");
    }
    let mut pending = [0; 8];
    to.bar_read(TABLE, crate::rig::PENDING, &mut pending).unwrap();
    assert_eq!(pending, [8, 0, 0, 0, 0, 0, 0, 0]);
    to.mask_vector(3, false);
    assert_eq!(to.taken(), [(3, 0x43, 1)]);
}

#[test]
fn a_register_that_the_host_keeps_to_itself_ends_no_migration() {
    // vfio-pci drops most writes of the extended space.
    let (_source, from) = used();
    let (destination, to) = function();
    put(&mut destination.script().writable, LTR + 4, &[0; 4]);
    load(&to, &save(&from), ConfigStage::Resuming).unwrap();
    // And where nothing differs nothing is written.
    let writes = destination.script().config_writes.clone();
    assert!(writes.iter().all(|(at, _)| *at != LTR as u64 + 6));
}

#[test]
fn a_guest_that_slept_when_it_left_does_not_come_back() {
    let (one, here) = used();
    here.set_u16(PM + 4, 0x0103);
    // A wake-up event, which writing a one would clear.
    one.script().config[PM + 5] |= 0x80;
    let (two, there) = function();
    move_to((&one, &here), (&two, &there), || ());
    there.set_u16(PM + 4, 0x0100);
    one.script().config_writes.clear();
    move_to((&two, &there), (&one, &here), || ());
    assert_eq!(here.u16(PM + 4) & 3, 0, "it says that waking resets nothing");
    assert_eq!(here.bars(), there.bars());
    assert!(here.bars().iter().any(|bar| bar.decoded));
    let writes = one.script().config_writes.clone();
    let power: Vec<_> = writes.iter().filter(|(at, _)| *at == PM as u64 + 4).collect();
    assert!(power.iter().all(|(_, bytes)| bytes[1] & 0x80 == 0), "{power:?}");
    assert_eq!(writes[0].0, PM as u64 + 4, "before anything else");
}

#[test]
fn a_guest_that_comes_back_finds_nothing_of_the_one_that_left() {
    let (one, here) = used();
    let (two, there) = function();
    one.script().raise(2, 3, 1);
    move_to((&one, &here), (&two, &there), || ());
    // The first host's function still has everything; it takes the guest back.
    there.set_u16(MSIX + 2, 0x4000);
    there.set_u16(4, 0x0002);
    move_to((&two, &there), (&one, &here), || ());
    assert_eq!(here.bars(), there.bars());
    assert_eq!(here.u16(4), 2);
    let pending: u64 = here.counts().unwrap().iter().map(|one| one.pending).sum();
    assert_eq!(pending, 1, "the pending bit of vector 3, once");
}
