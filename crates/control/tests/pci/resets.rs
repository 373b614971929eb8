//! Resets and sleep: the guest sees of its device what is there, and nothing that was.

use std::sync::{Arc, Mutex};

use crate::control::{Function, InterruptMode};
use crate::rig::{
    AF, Access, MSI, MSIX, PCIE, PM, TABLE, connected, device, function, move_to,
};
use crate::scripted::Scripted;

/// A device that has lost everything when it wakes up from D3hot, or that says so and has
/// it put back.
fn forgetful(forgets: bool) -> Arc<Scripted> {
    let device = device();
    let script = &mut *device.script();
    script.config[PM + 4] = 0;
    script.wakes_as = forgets.then(|| (PM, Box::new(script.config)));
    if let Some((power, _)) = &mut script.wakes_as {
        *power += 4;
    }
    Arc::clone(&device)
}

/// A guest uses it, by MSI-X.
fn in_use(device: &Arc<Scripted>) -> Function {
    let function = Function::open(Arc::<Scripted>::clone(device)).unwrap().unwrap();
    function.interrupts().bind().unwrap();
    function.set_u32(0x18, 0xfd20_4000);
    function.set_u16(4, 6);
    (0..4).for_each(|vector| function.set_vector(vector, false));
    function.set_u16(MSIX + 2, 0x8000);
    function
}

fn table(function: &Function) -> [u8; 16] {
    let (mut low, mut high) = ([0; 8], [0; 8]);
    function.bar_read(TABLE, 0, &mut low).unwrap();
    function.bar_read(TABLE, 8, &mut high).unwrap();
    [low, high].concat().try_into().unwrap()
}

const FRESH: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];

#[test]
fn a_reset_by_the_guest_reaches_the_device_and_clears_its_view() {
    for (at, bytes) in [(PCIE + 8, [0, 0x80]), (AF + 4, [1, 0])] {
        let device = device();
        let function = in_use(&device);
        device.script().config = self::device().script().config;
        function.config_write(at as u16, &bytes).unwrap();
        let wrote = device.script().config_writes.last().cloned();
        assert_eq!(wrote, Some((at as u64, bytes.to_vec())));
        assert_eq!(function.mode(), InterruptMode::Intx);
        assert_eq!(function.u32(0x18), 0);
        assert_eq!(table(&function), FRESH, "masked, as after a reset");
    }
}

#[test]
fn a_bit_that_resets_nothing_clears_nobodys_masks() {
    let device = device();
    // Neither says that it can be reset by itself.
    device.script().config[AF + 3] = 1;
    device.script().config[PCIE + 7] = 0;
    let function = in_use(&device);
    function.set_u8(AF + 4, 1);
    function.set_u16(PCIE + 8, 0x8000);
    assert_eq!(function.mode(), InterruptMode::Msix);
    device.script().raise(2, 1, 1);
    assert_eq!(function.taken(), [(1, 0x41, 1)]);
}

#[test]
fn a_host_that_puts_config_space_back_leaves_messages_on_that_nobody_has() {
    // As vfio-pci after a reset of any kind: all is back, MSI-X on as long as it is bound.
    for by in [MSI, MSIX] {
        let device = device();
        let function = in_use(&device);
        if by == MSI {
            function.set_u16(MSIX + 2, 0);
            function.set_u16(MSI + 2, 1);
        }
        function.reset().unwrap();
        assert_eq!(function.mode(), InterruptMode::Intx);
        assert_eq!(device.script().config[MSI + 2] & 1, 0);
        assert_eq!(device.script().config[MSIX + 3] & 0x80, 0);
        assert_eq!(function.u32(0x18), 0xfd20_4000, "as the device says");
        device.script().set_level(true);
        assert!(function.line().unwrap());
    }
}

#[test]
fn a_device_that_lost_its_config_space_in_its_sleep_decodes_nothing_and_says_so() {
    let device = forgetful(true);
    let function = in_use(&device);
    let heard: Arc<Mutex<Vec<bool>>> = Arc::default();
    let hook = Arc::clone(&heard);
    function.on_bars(Box::new(move |bars| {
        let table = bars.iter().find(|bar| bar.bar == TABLE).unwrap();
        hook.lock().unwrap().push(table.decoded);
    }));
    device.script().raise(2, 1, 1);
    function.set_u16(PM + 4, 3);
    assert_eq!(*heard.lock().unwrap(), [false]);
    assert_eq!(function.mode(), InterruptMode::Msix, "nothing is lost yet");
    function.set_u16(PM + 4, 0);
    // A driver that reads what it wrote before would not write it again.
    assert_eq!((function.u16(4), function.u32(0x18)), (0, 0));
    assert_eq!((function.u16(MSIX + 2), function.mode()), (3, InterruptMode::Intx));
    assert_eq!(table(&function), FRESH);
    assert!(function.taken().is_empty());
    assert!(!heard.lock().unwrap().contains(&true));
    // It does, and all is as it was.
    function.set_u32(0x18, 0xfd20_4000);
    function.set_u16(4, 6);
    function.set_vector(1, false);
    function.set_u16(MSIX + 2, 0x8000);
    device.script().raise(2, 1, 2);
    assert_eq!(function.taken(), [(1, 0x41, 2)]);
    assert_eq!(heard.lock().unwrap().last(), Some(&true));
}

#[test]
fn a_device_whose_host_restores_it_after_its_sleep_is_as_the_host_says() {
    // vfio-pci saves such a function before D3hot, and puts it back in D0.
    let device = forgetful(false);
    let function = in_use(&device);
    function.set_u16(PM + 4, 3);
    function.set_u16(PM + 4, 0);
    assert_eq!((function.u16(4), function.u32(0x18)), (6, 0xfd20_4000));
    assert!(function.bars().iter().any(|bar| bar.bar == TABLE && bar.decoded));
    assert_eq!(function.mode(), InterruptMode::Intx);
    assert_eq!(device.script().config[MSIX + 3], 0);
    function.set_vector(0, false);
    function.set_u16(MSIX + 2, 0x8000);
    device.script().raise(2, 0, 1);
    assert_eq!(function.taken(), [(0, 0x40, 1)]);
}

#[test]
fn a_sleep_that_is_no_reset_loses_no_interrupt() {
    // It says so; or it was not as deep.
    for (nothing_lost, depth) in [(0x08, 3), (0, 1), (0, 2)] {
        let (device, _) = function();
        device.script().config[PM + 4] = nothing_lost;
        let function = in_use(&device);
        function.mask_vector(1, true);
        device.script().raise(2, 0, 2);
        device.script().raise(2, 1, 1);
        function.set_u16(PM + 4, depth);
        assert!(function.bars().iter().all(|bar| !bar.decoded));
        function.set_u16(PM + 4, 0);
        assert!(function.bars().iter().any(|bar| bar.decoded));
        assert_eq!(function.taken(), [(0, 0x40, 2)]);
        function.mask_vector(1, false);
        assert_eq!(function.taken(), [(1, 0x41, 1)]);
    }
}

#[test]
fn a_device_that_wakes_up_slowly_is_not_asleep_for_ever() {
    let (device, function) = connected();
    function.set_u32(0x18, 0xfd20_4000);
    function.set_u16(4, 2);
    function.set_u16(PM + 4, 3);
    let heard: Arc<Mutex<usize>> = Arc::default();
    let hook = Arc::clone(&heard);
    function.on_bars(Box::new(move |_| *hook.lock().unwrap() += 1));
    // It is told, and is not there yet.
    device.script().writable[PM + 4] = 0;
    function.set_u16(PM + 4, 0);
    assert!(function.bars().iter().all(|bar| !bar.decoded));
    device.script().config[PM + 4] &= !3;
    assert_eq!(function.u16(PM + 4) & 3, 0);
    assert!(function.bars().iter().any(|bar| bar.decoded));
    assert_eq!(*heard.lock().unwrap(), 1);
}

#[test]
fn a_device_that_cannot_be_looked_at_right_after_its_sleep_is_looked_at_again() {
    let device = forgetful(true);
    let function = in_use(&device);
    function.set_u16(PM + 4, 3);
    // All ones but the power state, as while it still comes up.
    let fresh = device.script().wakes_as.take();
    let mut ones = Box::new([0xff; 4096]);
    ones[PM + 4..PM + 6].fill(0);
    device.script().wakes_as = Some((PM + 4, ones));
    assert!(function.config_write(PM as u16 + 4, &[0, 0]).is_err());
    device.script().config = *fresh.unwrap().1;
    assert_eq!(function.u16(PM + 4) & 3, 0);
    assert_eq!((function.u16(4), function.mode()), (0, InterruptMode::Intx));
    device.script().set_level(true);
    assert!(function.line().unwrap(), "and it is heard again");
}

#[test]
fn a_guest_that_is_woken_on_another_host_finds_what_its_device_lost_there() {
    let (source, destination) = (forgetful(true), forgetful(true));
    let from = in_use(&source);
    from.set_u16(PM + 4, 3);
    let to = Function::open(destination.clone()).unwrap().unwrap();
    move_to((&source, &from), (&destination, &to), || ());
    assert_eq!((to.u16(PM + 4) & 3, to.u32(0x18)), (3, 0xfd20_4000));
    assert_eq!(to.mode(), InterruptMode::Msix);
    to.set_u16(PM + 4, 0);
    assert_eq!((to.u16(4), to.u32(0x18)), (0, 0));
    assert_eq!(to.mode(), InterruptMode::Intx);
}
