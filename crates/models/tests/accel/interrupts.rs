//! Interrupts of a guest that listens to the line, and of one that listens to MSI-X.

use device::Runner;
use states::v2::State;
use std::sync::atomic::Ordering;
use vfio_migrate_models::accel::registers as reg;
use vfio_migrate_models::accel::{BAR0, CONFIG, MSIX, Parameters};

use super::{Count, Rig, read, write};

/// Config space: what the status register shows of the line.
fn shows_interrupt(runner: &mut Runner) -> bool {
    let mut status = [0; 2];
    runner.read_region(CONFIG, 6, &mut status).unwrap();
    status[0] & 8 != 0
}

/// Lets a device raise a vector by a command that copies a little.
fn interrupt(rig: &mut Rig, vector: u64) {
    for (register, value) in [
        (reg::COMMAND_KIND, reg::COPY_TO_DEVICE),
        (reg::COMMAND_IOVA, 0),
        (reg::COMMAND_BYTES, 64),
        (reg::COMMAND_VECTOR, vector),
        (reg::COMMAND_DOORBELL, 1),
    ] {
        write(&mut rig.runner, register, value);
    }
    rig.turns(2);
    assert_eq!(read(&mut rig.runner, reg::COMMAND_STATUS), reg::DONE);
}

/// Stops a device; all that it saves.
fn saved(rig: &mut Rig) -> Vec<u8> {
    let session = rig.set(State::StopCopy).unwrap();
    let mut data = vec![0; 1 << 20];
    let mut len = 0;
    while let more @ 1.. = rig.runner.read_data(session, &mut data[len..]).unwrap() {
        len += more;
    }
    data.truncate(len);
    data
}

/// Loads a device, which is then stopped.
fn loaded(rig: &mut Rig, data: &[u8]) {
    let session = rig.set(State::Resuming).unwrap();
    rig.runner.write_data(session, data).unwrap();
    rig.set(State::Stop);
}

/// A device whose client listens to the line, and not to MSI-X.
fn with_line(parameters: Parameters) -> (Rig, Count) {
    let mut rig = Rig::new(parameters);
    rig.runner.unbind_index(2);
    let line = Count::default();
    rig.runner.bind(0, 0, Some(Box::new(line.clone()))).unwrap();
    (rig, line)
}

#[test]
fn an_interrupt_that_was_acknowledged_comes_again() {
    let (mut rig, line) = with_line(Parameters::default());
    let heard = || line.0.load(Ordering::Relaxed);
    interrupt(&mut rig, 3);
    assert_eq!((heard(), read(&mut rig.runner, reg::INTERRUPTS)), (1, 1 << 3));
    assert!(shows_interrupt(&mut rig.runner));
    // It masked itself: more of them are no more events.
    interrupt(&mut rig, 0);
    interrupt(&mut rig, 3);
    assert_eq!((heard(), read(&mut rig.runner, reg::INTERRUPTS)), (1, 0b1001));
    // Not all of it is acknowledged: it is told again, once, when it is unmasked.
    rig.runner.write_region(BAR0, reg::INTERRUPTS, &[1, 0, 0, 0]).unwrap();
    rig.runner.write_region(BAR0, reg::INTERRUPTS + 4, &[0xff; 4]).unwrap();
    assert_eq!(read(&mut rig.runner, reg::INTERRUPTS), 1 << 3);
    rig.runner.unmask(0, 0).unwrap();
    assert_eq!(heard(), 2);
    // All of it is: an unmask in the same breath has nothing to tell.
    write(&mut rig.runner, reg::INTERRUPTS, u64::MAX);
    rig.runner.unmask(0, 0).unwrap();
    rig.turns(3);
    assert_eq!((heard(), read(&mut rig.runner, reg::INTERRUPTS)), (2, 0));
    assert!(!shows_interrupt(&mut rig.runner));
    interrupt(&mut rig, 7);
    assert_eq!(heard(), 3);
    assert_eq!(read(&mut rig.runner, reg::IRQ_UNHEARD + 8 * 3), 2);
}

#[test]
fn a_line_that_the_guest_has_turned_off_is_heard() {
    let (mut rig, line) = with_line(Parameters::default());
    let heard = || line.0.load(Ordering::Relaxed);
    // Off in the command register: it waits, and is shown.
    rig.runner.write_region(CONFIG, 4, &[6, 4]).unwrap();
    interrupt(&mut rig, 1);
    assert_eq!((heard(), shows_interrupt(&mut rig.runner)), (0, true));
    rig.runner.write_region(CONFIG, 4, &[6, 0]).unwrap();
    assert_eq!(heard(), 1);
    write(&mut rig.runner, reg::INTERRUPTS, u64::MAX);
    rig.runner.unmask(0, 0).unwrap();
    // With MSI-X on, what nobody listens to is lost, as on any device.
    rig.runner.write_region(CONFIG, MSIX as u64 + 2, &[7, 0x80]).unwrap();
    interrupt(&mut rig, 1);
    assert_eq!((heard(), read(&mut rig.runner, reg::INTERRUPTS)), (1, 0));
    // What is heard by MSI-X is not told a second time, on or off.
    rig.runner.write_region(CONFIG, MSIX as u64 + 2, &[7, 0]).unwrap();
    let vector = Count::default();
    rig.runner.bind(2, 1, Some(Box::new(vector.clone()))).unwrap();
    interrupt(&mut rig, 1);
    assert_eq!((heard(), vector.0.load(Ordering::Relaxed)), (1, 1));
    assert_eq!(read(&mut rig.runner, reg::INTERRUPTS), 0);
    // A reset takes everything back.
    interrupt(&mut rig, 2);
    assert_eq!(heard(), 2);
    rig.runner.reset();
    rig.runner.unmask(0, 0).unwrap();
    rig.turns(3);
    assert_eq!((heard(), shows_interrupt(&mut rig.runner)), (2, false));
}

#[test]
fn an_interrupt_that_waited_is_lost_on_the_way() {
    let (mut rig, line) = with_line(Parameters::default());
    interrupt(&mut rig, 6);
    assert_eq!(line.0.load(Ordering::Relaxed), 1);
    let data = saved(&mut rig);
    let (mut other, line) = with_line(Parameters::default());
    loaded(&mut other, &data);
    assert_eq!(line.0.load(Ordering::Relaxed), 0);
    assert_eq!(rig.runner.digest(), other.runner.digest());
    other.set(State::Running);
    other.turns(2);
    assert_eq!(line.0.load(Ordering::Relaxed), 1);
    assert_eq!(read(&mut other.runner, reg::INTERRUPTS), 1 << 6);
    assert!(shows_interrupt(&mut other.runner));
    assert_eq!(rig.runner.counters().interrupts_while_stopped, 0);
    assert_eq!(other.runner.counters().interrupts_while_stopped, 0);
}

#[test]
fn error_02_msix_is_not_tested() {
    let mut rig = Rig::new(Parameters::default());
    let fired = |rig: &Rig| -> Vec<u64> {
        rig.irqs.iter().map(|irq| irq.0.load(Ordering::Relaxed)).collect()
    };
    for vector in 0..rig.irqs.len() {
        let before = fired(&rig);
        interrupt(&mut rig, vector as u64);
        for (other, (before, now)) in before.iter().zip(fired(&rig)).enumerate() {
            assert_eq!(now - before, u64::from(other == vector), "{vector}: {other}");
        }
        // One that nobody listens to any more is heard by nobody else.
        rig.runner.bind(2, vector as u32, None).unwrap();
        let before = fired(&rig);
        interrupt(&mut rig, vector as u64);
        assert_eq!(fired(&rig), before, "{vector}");
        let again = rig.irqs[vector].clone();
        rig.runner.bind(2, vector as u32, Some(Box::new(again))).unwrap();
        interrupt(&mut rig, vector as u64);
        assert_eq!(fired(&rig)[vector], before[vector] + 1);
    }
    // And where it arrives: the VMM there listens to what the guest has not masked.
    let data = saved(&mut rig);
    let mut other = Rig::new(Parameters::default());
    let masked = |vector: usize| vector % 3 == 1;
    for vector in (0..other.irqs.len()).filter(|vector| masked(*vector)) {
        other.runner.bind(2, vector as u32, None).unwrap();
    }
    loaded(&mut other, &data);
    other.set(State::Running);
    let heard = |rig: &Rig, vector: usize| rig.irqs[vector].0.load(Ordering::Relaxed);
    for vector in 0..other.irqs.len() {
        let before = fired(&other);
        interrupt(&mut other, vector as u64);
        for (listens, before) in before.into_iter().enumerate() {
            let one = listens == vector && !masked(vector);
            assert_eq!(heard(&other, listens) - before, u64::from(one), "{vector}");
        }
        if masked(vector) {
            let again = other.irqs[vector].clone();
            other.runner.bind(2, vector as u32, Some(Box::new(again))).unwrap();
            interrupt(&mut other, vector as u64);
            assert_eq!(heard(&other, vector), 1, "{vector}: unmasked");
        }
    }
}
