//! Interrupts: none lost, none doubled, whatever moves or is masked meanwhile.

use std::sync::Arc;

use port::ConfigStage;

use crate::control::{Function, InterruptMode};
use crate::rig::{
    Access, MSI, MSIX, PENDING, TABLE, connected, device, function, load, move_to, put,
    save,
};
use crate::scripted::Scripted;

fn by_msi() -> (Arc<Scripted>, Function) {
    let (device, function) = connected();
    function.set_u32(MSI + 4, 0xfee0_1000);
    function.set_u16(MSI + 12, 0x40);
    function.set_u16(MSI + 2, 0x0031);
    assert_eq!(function.mode(), InterruptMode::Msi);
    (device, function)
}

fn by_msix() -> (Arc<Scripted>, Function) {
    let (device, function) = connected();
    (0..4).for_each(|vector| function.set_vector(vector, false));
    function.set_u16(MSIX + 2, 0x8000);
    assert_eq!(function.mode(), InterruptMode::Msix);
    (device, function)
}

/// What the device sent is accounted for, on every vector.
fn accounts(function: &Function, sent: &[u64]) {
    for (n, counts) in function.counts().unwrap().iter().enumerate() {
        let known = counts.delivered + counts.pending + counts.absorbed - counts.windows;
        assert_eq!(known, sent.get(n).copied().unwrap_or(0), "vector {n}: {counts:?}");
    }
}

#[test]
fn a_pending_bit_is_not_lost_and_fires_once_at_unmask() {
    let (device, function) = by_msix();
    function.mask_vector(1, true);
    device.script().raise(2, 1, 7);
    device.script().raise(2, 2, 3);
    assert_eq!(function.taken(), [(2, 0x42, 3)], "what is masked is not delivered");
    let mut pending = [0; 8];
    function.bar_read(TABLE, PENDING, &mut pending).unwrap();
    assert_eq!(pending[0], 2);
    accounts(&function, &[0, 7, 3]);
    let counts = function.counts().unwrap();
    assert_eq!([0, 1, 2].map(|n| counts[n].held), [false, true, false]);
    function.mask_vector(1, false);
    assert!(!function.counts().unwrap()[1].held);
    assert_eq!(function.taken(), [(1, 0x41, 1)]);
    assert!(function.taken().is_empty());
    function.bar_read(TABLE, PENDING, &mut pending).unwrap();
    assert_eq!(pending[0], 0);
    accounts(&function, &[0, 7, 3]);
    let counts = function.counts().unwrap()[1];
    assert_eq!((counts.delivered, counts.absorbed, counts.windows), (1, 7, 1));
}

#[test]
fn what_was_sent_before_the_mask_is_counted_exactly() {
    let (device, function) = by_msix();
    device.script().raise(2, 0, 3);
    function.set_u16(MSIX + 2, 0xc000);
    device.script().raise(2, 0, 2);
    assert!(function.taken().is_empty(), "all are masked");
    accounts(&function, &[5]);
    function.set_u16(MSIX + 2, 0x8000);
    assert_eq!(function.taken(), [(0, 0x40, 4)], "three, and one of the window");
    accounts(&function, &[5]);
}

#[test]
fn msi_masks_vectors_one_by_one_and_shows_what_waits() {
    let (device, function) = by_msi();
    function.set_u32(MSI + 16, 0b10);
    device.script().raise(1, 1, 2);
    device.script().raise(1, 3, 1);
    // The lowest bits of the data tell the vectors apart.
    assert_eq!(function.taken(), [(3, 0x43, 1)]);
    assert_eq!(function.u32(MSI + 20), 0b10);
    function.set_u32(MSI + 20, 0);
    assert_eq!(function.u32(MSI + 20), 0b10, "pending bits are read-only");
    function.set_u32(MSI + 16, 0);
    assert_eq!(function.taken(), [(1, 0x41, 1)]);
    assert_eq!(function.u32(MSI + 20), 0);
}

#[test]
fn one_that_arrives_between_saving_and_draining_is_not_lost() {
    for by in [by_msi, by_msix] {
        let (source, from) = by();
        let index = if from.mode() == InterruptMode::Msi { 1 } else { 2 };
        let mask = |function: &Function, masked: bool| match index {
            1 => function.set_u32(MSI + 16, u32::from(masked) << 1),
            _ => function.mask_vector(1, masked),
        };
        mask(&from, true);
        source.script().raise(index, 0, 2);
        source.script().raise(index, 1, 2);
        let (destination, to) = function();
        move_to((&source, &from), (&destination, &to), || {
            source.script().raise(index, 0, 3);
            source.script().raise(index, 1, 3);
            source.script().raise(index, 2, 1);
            // Somebody looks at the accounts in between.
            accounts(&from, &[5, 5, 1]);
        });
        accounts(&from, &[5, 5, 1]);
        accounts(&to, &[5, 5, 1]);
        let heard: Vec<_> = to.taken().iter().map(|(n, _, count)| (*n, *count)).collect();
        assert_eq!(heard, [(0, 5), (2, 1)]);
        mask(&to, false);
        let heard: Vec<_> = to.taken().iter().map(|(n, _, count)| (*n, *count)).collect();
        assert_eq!(heard, [(1, 1)], "one of the whole window, on both hosts");
        accounts(&to, &[5, 5, 1]);
        assert_eq!(to.counts().unwrap()[1].windows, 1);
    }
}

#[test]
fn what_waits_under_a_mask_and_was_sent_before_it_arrives_too() {
    let (source, from) = by_msix();
    source.script().raise(2, 0, 3);
    from.mask_vector(0, true);
    source.script().raise(2, 0, 1);
    let (destination, to) = function();
    move_to((&source, &from), (&destination, &to), || ());
    assert!(to.taken().is_empty());
    to.mask_vector(0, false);
    assert_eq!(to.taken(), [(0, 0x40, 4)]);
    accounts(&to, &[4]);
}

#[test]
fn a_failed_migration_gives_back_what_was_drained() {
    let (device, function) = by_msix();
    function.mask_vector(1, true);
    device.script().raise(2, 0, 2);
    device.script().raise(2, 1, 2);
    drop(save(&function));
    device.script().raise(2, 1, 1);
    let pending = function.interrupts().drain().unwrap();
    accounts(&function, &[2, 3]);
    assert!(function.taken().is_empty(), "it is the other side's, until it comes back");
    function.interrupts().deliver(&pending).unwrap();
    assert_eq!(function.taken(), [(0, 0x40, 2)]);
    function.mask_vector(1, false);
    assert_eq!(function.taken(), [(1, 0x41, 1)]);
    accounts(&function, &[2, 3]);
    // And where it ended before anything was drained.
    device.script().raise(2, 2, 1);
    drop(save(&function));
    assert_eq!(function.taken(), [(2, 0x42, 1)]);
}

#[test]
fn intx_stays_up_until_it_is_acknowledged_and_is_not_doubled() {
    let (device, function) = connected();
    assert!(!function.line().unwrap());
    device.script().set_level(true);
    assert!(function.line().unwrap() && function.line().unwrap());
    function.end_of_interrupt().unwrap();
    assert!(function.line().unwrap(), "the device still wants");
    device.script().set_level(false);
    assert!(function.line().unwrap(), "nobody acknowledged the second");
    function.end_of_interrupt().unwrap();
    assert!(!function.line().unwrap());
    function.end_of_interrupt().unwrap();
    assert_eq!(function.counts().unwrap()[0].rises, 2);
}

#[test]
fn intx_that_is_up_moves_as_one_rise() {
    // Seen by the guest before the stop, and not.
    for seen in [true, false] {
        let (source, from) = connected();
        if seen {
            source.script().set_level(true);
            assert!(from.line().unwrap());
        }
        let (destination, to) = function();
        destination.script().line.0 = true;
        move_to((&source, &from), (&destination, &to), || {
            source.script().set_level(true);
        });
        assert!(to.line().unwrap());
        assert_eq!(to.counts().unwrap()[0].rises, 1);
        destination.script().set_level(false);
        to.end_of_interrupt().unwrap();
        assert!(!to.line().unwrap(), "a rise for nothing, seen {seen}");
        destination.script().set_level(true);
        assert!(to.line().unwrap());
        assert_eq!(to.counts().unwrap()[0].rises, 2);
    }
}

#[test]
fn a_device_that_cannot_be_masked_loses_no_interrupt() {
    // The kernel's mtty sample raises no level: unmasking does not fire again.
    let (device, function) = connected();
    device.script().unmaskable = true;
    device.script().raise(0, 0, 1);
    assert!(function.line().unwrap());
    device.script().raise(0, 0, 1);
    assert!(function.line().unwrap());
    function.end_of_interrupt().unwrap();
    assert!(function.line().unwrap(), "the second came while the first was handled");
    function.end_of_interrupt().unwrap();
    assert!(!function.line().unwrap());
    assert_eq!(function.counts().unwrap()[0].rises, 2);
}

#[test]
fn a_line_that_the_guest_turned_off_stays_down_and_rises_after() {
    let (device, function) = connected();
    function.set_u16(4, 0x0400);
    device.script().raise(0, 0, 1);
    assert!(!function.line().unwrap());
    let (other, to) = self::function();
    move_to((&device, &function), (&other, &to), || ());
    assert!(!to.line().unwrap());
    assert_eq!(to.counts().unwrap()[0].rises, 0);
    to.set_u16(4, 0);
    assert!(to.line().unwrap());
    to.end_of_interrupt().unwrap();
    assert!(!to.line().unwrap());
    assert_eq!(to.counts().unwrap()[0].rises, 1);
}

#[test]
fn a_second_kind_is_bound_only_after_the_first_is_gone() {
    let (device, function) = by_msi();
    function.set_vector(0, false);
    device.script().raise(1, 0, 2);
    function.set_u16(MSIX + 2, 0x8000);
    assert_eq!(function.mode(), InterruptMode::Msix);
    function.set_u16(MSIX + 2, 0);
    assert_eq!(function.mode(), InterruptMode::Msi);
    assert_eq!(function.taken(), [(0, 0x40, 2)], "what was sent by it is not lost");
    function.set_u16(MSI + 2, 0);
    assert_eq!(function.mode(), InterruptMode::Intx);
    let calls = device.script().irq_calls.clone();
    let calls: Vec<_> = calls.iter().map(String::as_str).collect();
    assert_eq!(
        calls,
        [
            "bind 0: 1",
            "bind 0: 0",
            "bind 1: 8",
            "bind 1: 0",
            "bind 2: 4",
            "bind 2: 0",
            "bind 1: 8",
            "bind 1: 0",
            "bind 0: 1"
        ]
    );
}

#[test]
fn somebody_listens_before_the_device_may_speak() {
    let (device, function) = connected();
    function.set_u16(MSIX + 2, 0x8000);
    {
        let script = device.script();
        assert_eq!(script.config_writes.last().unwrap().1, [0, 0x80]);
        assert!(script.bound.contains_key(&(2, 0)));
    }
    // The device refuses: it is not told that messages are on.
    let (device, function) = connected();
    device.script().irqs.insert(2, 1);
    assert!(function.config_write(MSIX as u16 + 2, &[0, 0x80]).is_err());
    let writes = device.script().config_writes.clone();
    assert!(writes.iter().all(|(at, _)| *at != MSIX as u64 + 2));
}

#[test]
fn what_a_device_says_before_it_is_told_to_be_quiet_goes_nowhere() {
    for (by, index, control, off) in
        [(by_msi as fn() -> _, 1, MSI + 2, 0x0030), (by_msix, 2, MSIX + 2, 0)]
    {
        let (device, function): (Arc<Scripted>, Function) = by();
        device.script().last_word = Some((control as u64, index, 1));
        function.set_u16(control, off);
        device.script().last_word = None;
        assert_eq!(function.mode(), InterruptMode::Intx);
        accounts(&function, &[0, 1]);
        // The line is heard from then on, and was not before.
        device.script().set_level(true);
        assert!(function.line().unwrap());
    }
}

#[test]
fn nothing_is_heard_before_it_is_bound() {
    let (device, function) = function();
    function.set_u16(MSIX + 2, 0x8000);
    assert!(device.script().irq_calls.is_empty());
    function.interrupts().bind().unwrap();
    assert_eq!(device.script().irq_calls, ["bind 2: 4"]);
    function.interrupts().unbind().unwrap();
    assert!(device.script().bound.is_empty());
    function.set_u16(MSIX + 2, 0);
    assert!(device.script().bound.is_empty());
}

#[test]
fn counts_of_more_vectors_than_there_are_are_refused() {
    let (_device, function) = by_msix();
    assert!(function.interrupts().deliver(&[0; 5]).is_err());
    function.interrupts().deliver(&[u64::MAX, 1]).unwrap();
    function.interrupts().deliver(&[u64::MAX, 1]).unwrap();
    let heard: Vec<_> =
        function.taken().iter().map(|(n, _, count)| (*n, *count)).collect();
    assert_eq!(heard, [(0, u64::MAX), (1, 2)]);
}

#[test]
fn a_reset_forgets_what_waited() {
    let (device, function) = by_msix();
    device.script().raise(2, 0, 2);
    function.mask_vector(1, true);
    device.script().raise(2, 1, 1);
    *device.script().config.first_chunk_mut::<4096>().unwrap() =
        self::device().script().config;
    function.reset().unwrap();
    assert_eq!(function.mode(), InterruptMode::Intx);
    assert!(function.counts().unwrap().iter().all(|one| one.pending == 0));
    assert!(function.bars().iter().all(|bar| !bar.decoded));
    assert!(device.script().bound.contains_key(&(0, 0)));
    // A load binds nothing by itself.
    let saved = save(&function);
    load(&function, &saved, ConfigStage::Resuming).unwrap();
    assert!(device.script().bound.is_empty());
}

#[test]
fn vectors_that_a_host_had_not_for_a_moment_are_silent_for_ever() {
    let (device, function) = connected();
    (0..4).for_each(|vector| function.set_vector(vector, false));
    device.script().irqs.insert(2, 1);
    assert!(function.config_write(MSIX as u16 + 2, &0x8000_u16.to_le_bytes()).is_err());
    // The device was not told: it still has its line, and the guest hears of that.
    assert_eq!(function.mode(), InterruptMode::Intx);
    assert_eq!(function.u16(MSIX + 2) & 0x8000, 0);
    device.script().set_level(true);
    assert!(function.line().unwrap());
    device.script().irqs.insert(2, 4);
    function.set_u16(MSIX + 2, 0x8000);
    device.script().raise(2, 3, 2);
    assert_eq!(function.taken(), [(3, 0x43, 2)]);
    // And where it is bound for a guest that has turned them on before.
    function.interrupts().unbind().unwrap();
    device.script().irqs.insert(2, 1);
    assert!(function.interrupts().bind().is_err());
    device.script().irqs.insert(2, 4);
    function.interrupts().bind().unwrap();
    device.script().raise(2, 2, 1);
    assert_eq!(function.taken(), [(2, 0x42, 1)]);
}

#[test]
fn a_device_that_masks_itself_holds_an_interrupt_back_and_nobody_sees_it() {
    // vfio-pci passes the masks of MSI on, and the device's pending bits back.
    let (device, function) = by_msi();
    function.set_u32(MSI + 16, 0b11);
    device.script().config[MSI + 20] = 0b01;
    device.script().raise(1, 1, 1);
    assert_eq!(function.u32(MSI + 20), 0b11, "its own, and the one that was heard");
}

#[test]
fn a_pending_bit_without_a_mask_waits_for_ever() {
    let (source, from) = by_msix();
    from.mask_vector(1, true);
    source.script().raise(2, 1, 1);
    let mut saved = save(&from);
    // The table is saved as it is in the BAR; vector 1's control is made zero.
    let entry = [0x41, 0, 0, 0, 1, 0, 0, 0];
    let at = saved.windows(8).position(|bytes| bytes == entry).unwrap();
    saved[at + 4] = 0;
    let (_destination, to) = function();
    load(&to, &saved, ConfigStage::Resuming).unwrap();
    assert_eq!(to.taken(), [(1, 0x41, 1)]);
}

#[test]
fn a_message_of_32_bits_lies_elsewhere_and_moves_too() {
    let narrow = || {
        let device = device();
        put(&mut device.script().config, MSI + 2, &[0x06, 0x01]);
        put(
            &mut device.script().writable,
            MSI + 8,
            &[0xff, 0xff, 0, 0, 0xff, 0, 0, 0, 0],
        );
        let function = Function::open(device.clone()).unwrap().unwrap();
        (device, function)
    };
    let (source, from) = narrow();
    from.interrupts().bind().unwrap();
    from.set_u32(MSI + 4, 0xfee0_1000);
    from.set_u16(MSI + 8, 0x40);
    from.set_u32(MSI + 12, 0b10);
    from.set_u16(MSI + 2, 0x0031);
    let (destination, to) = narrow();
    move_to((&source, &from), (&destination, &to), || {
        source.script().raise(1, 1, 2);
        source.script().raise(1, 3, 2);
    });
    assert_eq!(to.taken(), [(3, 0x43, 2)]);
    assert_eq!(to.u32(MSI + 16), 0b10, "pending");
    assert_eq!(destination.script().config[MSI + 8..MSI + 13], [0x40, 0, 0, 0, 2]);
    to.set_u32(MSI + 12, 0);
    let mut heard = Vec::new();
    to.take(&mut |n, message, count| heard.push((n, message.address, count))).unwrap();
    assert_eq!(heard, [(1, 0xfee0_1000, 1)]);
}
