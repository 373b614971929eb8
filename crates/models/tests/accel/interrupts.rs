//! Interrupts of a guest that listens to the line, and of one that listens to MSI-X.

use abi::errno::Errno;
use device::Runner;
use states::v2::State;
use std::sync::atomic::Ordering;
use vfio_migrate_models::accel::registers as reg;
use vfio_migrate_models::accel::{
    Accel, AccelError, BAR0, BAR2, BarOrder, CONFIG, MSI, MSIX, Parameters,
};

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
    rig.config(MSIX + 2, &[0, 0]);
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
    // What is heard by MSI-X is not told a second time.
    let vector = Count::default();
    rig.runner.bind(2, 1, Some(Box::new(vector.clone()))).unwrap();
    interrupt(&mut rig, 1);
    assert_eq!((heard(), vector.0.load(Ordering::Relaxed)), (1, 1));
    assert_eq!(read(&mut rig.runner, reg::INTERRUPTS), 0);
    // Off, it is the line's again, whoever is still bound.
    rig.config(MSIX + 2, &[7, 0]);
    interrupt(&mut rig, 1);
    assert_eq!((heard(), vector.0.load(Ordering::Relaxed)), (2, 1));
    assert_eq!(read(&mut rig.runner, reg::INTERRUPTS), 1 << 1);
    write(&mut rig.runner, reg::INTERRUPTS, u64::MAX);
    rig.runner.unmask(0, 0).unwrap();
    // A reset takes everything back.
    interrupt(&mut rig, 2);
    assert_eq!(heard(), 3);
    rig.runner.reset();
    rig.runner.unmask(0, 0).unwrap();
    rig.turns(3);
    assert_eq!((heard(), shows_interrupt(&mut rig.runner)), (3, false));
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

/// A device that tells by MSI, with listeners for all its vectors and room for some.
fn with_msi(parameters: Parameters, room: u8) -> (Rig, Vec<Count>) {
    let mut rig = Rig::new(parameters);
    rig.runner.unbind_index(2);
    rig.config(MSIX + 2, &[0, 0]);
    let messages: Vec<Count> = (0..8).map(|_| Count::default()).collect();
    for (vector, message) in messages.iter().enumerate() {
        let _ = rig.runner.bind(1, vector as u32, Some(Box::new(message.clone())));
    }
    rig.config(MSI + 2, &[room << 4 | 1]);
    (rig, messages)
}

fn counts(counts: &[Count]) -> Vec<u64> {
    counts.iter().map(|count| count.0.load(Ordering::Relaxed)).collect()
}

fn sent(rig: &mut Rig) -> Vec<u64> {
    (0..8).map(|vector| read(&mut rig.runner, reg::IRQ_SENT + 8 * vector)).collect()
}

#[test]
fn every_vector_of_msi_is_heard_as_itself_and_what_has_no_room_as_the_first() {
    for (room, vectors) in [(3, 8), (1, 2), (0, 1), (7, 8)] {
        let (mut rig, messages) = with_msi(Parameters::default(), room);
        let line = Count::default();
        rig.runner.bind(0, 0, Some(Box::new(line.clone()))).unwrap();
        let mut expected = vec![0; 8];
        for vector in [0, 1, 2, 7, 7] {
            interrupt(&mut rig, vector);
            expected[if vector < vectors { vector as usize } else { 0 }] += 1;
            assert_eq!(counts(&messages), expected, "vector {vector}, room {room}");
        }
        assert_eq!(sent(&mut rig), expected, "room {room}");
        assert_eq!(read(&mut rig.runner, reg::INTERRUPTS), 0);
        assert_eq!(counts(&[line]), [0], "told by the line as well");
    }
}

#[test]
fn an_interrupt_is_told_once_by_what_the_guest_turned_on_last() {
    let (mut rig, messages) = with_msi(Parameters::default(), 3);
    let line = Count::default();
    rig.runner.bind(0, 0, Some(Box::new(line.clone()))).unwrap();
    let msix = rig.irqs[4].clone();
    rig.runner.bind(2, 4, Some(Box::new(msix.clone()))).unwrap();
    let heard = |rig: &mut Rig| {
        let waits = read(&mut rig.runner, reg::INTERRUPTS);
        ([&line, &messages[4], &msix].map(|one| one.0.load(Ordering::Relaxed)), waits)
    };
    interrupt(&mut rig, 4);
    assert_eq!(heard(&mut rig), ([0, 1, 0], 0));
    // Both on: MSI-X.
    rig.config(MSIX + 2, &[0, 0x80]);
    interrupt(&mut rig, 4);
    assert_eq!(heard(&mut rig), ([0, 1, 1], 0));
    // None: the line.
    rig.config(MSIX + 2, &[0, 0]);
    rig.config(MSI + 2, &[0x30]);
    interrupt(&mut rig, 4);
    interrupt(&mut rig, 4);
    assert_eq!(heard(&mut rig), ([1, 1, 1], 1 << 4));
    // What waits for an acknowledgement goes by no message, and is not forgotten.
    rig.config(MSI + 2, &[0x31]);
    assert_eq!(heard(&mut rig), ([1, 1, 1], 1 << 4));
    rig.runner.unmask(0, 0).unwrap();
    assert_eq!(heard(&mut rig), ([1, 1, 1], 1 << 4));
    rig.config(MSI + 2, &[0x30]);
    assert_eq!(heard(&mut rig), ([2, 1, 1], 1 << 4));
    assert_eq!(sent(&mut rig)[4], 2);
    assert_eq!(read(&mut rig.runner, reg::IRQ_UNHEARD + 8 * 4), 2);
}

#[test]
fn a_message_that_nobody_is_bound_to_is_counted_and_not_sent_to_another() {
    let (mut rig, messages) = with_msi(Parameters::default(), 3);
    rig.runner.bind(1, 5, None).unwrap();
    interrupt(&mut rig, 5);
    assert_eq!(counts(&messages), [0; 8]);
    assert_eq!((sent(&mut rig)[5], read(&mut rig.runner, reg::INTERRUPTS)), (0, 0));
    assert_eq!(read(&mut rig.runner, reg::IRQ_UNHEARD + 8 * 5), 1);
    // Bound again while it works, to somebody else.
    let other = Count::default();
    rig.runner.bind(1, 5, Some(Box::new(other.clone()))).unwrap();
    interrupt(&mut rig, 5);
    assert_eq!((counts(&messages), counts(&[other])), (vec![0; 8], vec![1]));
}

#[test]
fn every_acknowledgement_is_one_interrupt_that_came_to_wait() {
    let (mut rig, _line) = with_line(Parameters::default());
    let mut acknowledged = [0; 8];
    for round in 0..20_u64 {
        interrupt(&mut rig, round % 3);
        interrupt(&mut rig, round * 5 % 8);
        if round % 4 != 0 {
            let bits = read(&mut rig.runner, reg::INTERRUPTS);
            write(&mut rig.runner, reg::INTERRUPTS, bits);
            (0..8).for_each(|vector| acknowledged[vector] += bits >> vector & 1);
        }
    }
    interrupt(&mut rig, 6);
    let data = saved(&mut rig);
    let (mut other, _line) = with_line(Parameters::default());
    loaded(&mut other, &data);
    other.set(State::Running);
    let bits = read(&mut other.runner, reg::INTERRUPTS);
    assert_eq!(bits, 1 << 6);
    for (vector, acknowledged) in acknowledged.into_iter().enumerate() {
        let waited = read(&mut other.runner, reg::IRQ_WAITED + 8 * vector as u64);
        assert_eq!(waited, acknowledged + (bits >> vector & 1), "{vector}");
    }
}

#[test]
fn a_device_with_fewer_vectors_has_no_more_and_takes_no_state_of_more() {
    let fewer = Parameters { vectors: 3, ..Parameters::default() };
    let (mut rig, messages) = with_msi(fewer, 3);
    let description = rig.runner.description();
    let irqs: Vec<_> =
        description.irqs.iter().map(|irq| (irq.index, irq.count)).collect();
    assert_eq!(irqs, [(0, 1), (1, 4), (2, 3)]);
    assert_eq!(read(&mut rig.runner, reg::VECTORS), 3);
    for register in [reg::RING + reg::VECTOR, reg::PEER + reg::VECTOR] {
        let taken = rig.runner.write_region(BAR0, register, &3_u64.to_le_bytes());
        assert_eq!(taken, Err(Errno::EINVAL));
    }
    interrupt(&mut rig, 2);
    assert_eq!(counts(&messages), [0, 0, 1, 0, 0, 0, 0, 0]);
    write(&mut rig.runner, reg::COMMAND_VECTOR, 3);
    let rung = rig.runner.write_region(BAR0, reg::COMMAND_DOORBELL, &[1; 8]);
    assert_eq!(rung, Err(Errno::EINVAL));
    let mut all = Rig::new(Parameters::default());
    let data = saved(&mut all);
    let session = rig.set(State::Resuming).unwrap();
    assert_eq!(rig.runner.write_data(session, &data), Err(Errno::EINVAL));
    for vectors in [0, 9] {
        let built = Accel::new(Parameters { vectors, ..Parameters::default() });
        assert!(matches!(built, Err(AccelError::Vectors(n)) if n == vectors));
    }
    let without = Parameters { msi: None, ..Parameters::default() };
    let rig = Rig::new(without);
    assert!(rig.runner.description().irq(1).is_none());
}

#[test]
fn a_device_with_another_order_of_bars_is_the_same_elsewhere() {
    let bars = BarOrder::MemoryFirst;
    let mut other = Rig::new(Parameters { bars, ..Parameters::default() });
    let mut usual = Rig::new(Parameters::default());
    usual.runner.write_region(BAR2, 70_000, b"here").unwrap();
    let data = saved(&mut usual);
    loaded(&mut other, &data);
    assert_eq!(usual.runner.digest(), other.runner.digest());
    other.set(State::Running);
    let mut bytes = [0; 4];
    other.runner.read_region(0, 70_000, &mut bytes).unwrap();
    assert_eq!(&bytes, b"here");
    other.runner.read_region(2, reg::ID, &mut bytes).unwrap();
    assert_eq!(&bytes, b"ACCE");
    let region = |rig: &Rig, index| rig.runner.description().region(index).unwrap().size;
    assert_eq!(region(&other, 0), region(&usual, 2));
    assert_eq!(region(&other, 2), region(&usual, 0));
}

#[test]
fn dma_that_leads_nowhere_is_shown_until_the_guest_clears_it() {
    let mut rig = Rig::new(Parameters::default());
    let aborted = |rig: &mut Rig| {
        let mut status = [0; 2];
        rig.runner.read_region(CONFIG, 6, &mut status).unwrap();
        status[1] & 0x20 != 0
    };
    interrupt(&mut rig, 0);
    assert!(!aborted(&mut rig));
    write(&mut rig.runner, reg::COMMAND_IOVA, 1 << 40);
    write(&mut rig.runner, reg::COMMAND_DOORBELL, 1);
    rig.turns(2);
    assert_eq!(read(&mut rig.runner, reg::COMMAND_STATUS), reg::FAILED);
    assert!(aborted(&mut rig));
    rig.config(6, &[0, 0x20]);
    rig.turns(2);
    assert!(!aborted(&mut rig));
    write(&mut rig.runner, reg::RING + reg::IOVA, 1 << 40);
    write(&mut rig.runner, reg::RING + reg::SLOTS, 1);
    write(&mut rig.runner, reg::RING + reg::RATE, 1 << 20);
    write(&mut rig.runner, reg::RING + reg::CONTROL, reg::RUN);
    rig.turns(20);
    assert!(aborted(&mut rig));
}

#[test]
fn a_line_of_the_state_before_is_not_heard_after_a_load() {
    // It has given its guest away while the line was up, and takes one in again.
    let (mut rig, _line) = with_line(Parameters::default());
    interrupt(&mut rig, 2);
    let _ = saved(&mut rig);
    rig.set(State::Stop);
    rig.runner.unbind_index(0);
    let line = Count::default();
    for waits in [false, true, false] {
        let (mut other, _line) = with_line(Parameters::default());
        if waits {
            interrupt(&mut other, 5);
        }
        let data = saved(&mut other);
        let session = rig.set(State::Resuming).unwrap();
        rig.runner.write_data(session, &data).unwrap();
        // As a VMM binds it: neither masked nor told before the device runs.
        rig.runner.bind(0, 0, Some(Box::new(line.clone()))).unwrap();
        rig.set(State::Stop);
        assert_eq!(line.0.load(Ordering::Relaxed), 0);
        rig.set(State::Running);
        rig.turns(2);
        assert_eq!(line.0.swap(0, Ordering::Relaxed), u64::from(waits));
        assert_eq!(read(&mut rig.runner, reg::INTERRUPTS) != 0, waits);
        rig.set(State::Stop);
        rig.runner.unbind_index(0);
    }
    assert_eq!(rig.runner.counters().interrupts_while_stopped, 0);
}

#[test]
fn messages_that_were_sent_before_a_stop_are_neither_lost_nor_sent_again() {
    let (mut rig, messages) = with_msi(Parameters::default(), 3);
    write(&mut rig.runner, reg::RING + reg::SLOTS, 16);
    write(&mut rig.runner, reg::RING + reg::RATE, 8 << 20);
    write(&mut rig.runner, reg::RING + reg::BATCH, 1);
    write(&mut rig.runner, reg::RING + reg::VECTOR, 6);
    write(&mut rig.runner, reg::RING + reg::CONTROL, reg::RUN);
    let mut heard = 0;
    for _ in 0..5 {
        rig.turns(7);
        let data = saved(&mut rig);
        heard += counts(&messages)[6];
        messages[6].0.store(0, Ordering::Relaxed);
        let (mut other, there) = with_msi(Parameters::default(), 3);
        loaded(&mut other, &data);
        other.set(State::Running);
        assert_eq!(sent(&mut other)[6], heard);
        assert_eq!(counts(&there), [0; 8], "raised by the load");
        other.turns(7);
        assert_eq!(sent(&mut other)[6], heard + counts(&there)[6]);
        assert!(counts(&there)[6] > 0);
        rig.set(State::Running);
    }
    assert!(heard > 10, "{heard}");
}
