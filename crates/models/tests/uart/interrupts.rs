//! Interrupts: what asks for one, in which order, and how it is told.

use super::{Count, INTX, MSI, Rig};
use device::Work;
use states::v2::State;
use std::time::Duration;
use vfio_migrate_models::uart::registers as reg;
use vfio_migrate_models::uart::{BAR1, CONFIG};

/// Longer than four bytes take without a divisor, which are 243 microseconds.
const LATER: Duration = Duration::from_millis(1);

/// The interrupt with the highest priority.
fn first(rig: &mut Rig) -> u8 {
    rig.read(reg::IIR) & 0x0f
}

/// What the client does when it is told: looks, and unmasks.
fn up(rig: &mut Rig, line: &Count) -> bool {
    let before = line.heard();
    rig.runner.unmask(INTX, 0).unwrap();
    line.heard() > before
}

#[test]
fn the_most_urgent_interrupt_is_hidden_by_another() {
    let mut rig = Rig::new(1);
    rig.write(reg::IER, 0x0f);
    // All that can wait at once: the transmitter is not empty while there is data.
    rig.send(&[1; 17]);
    assert_eq!(first(&mut rig), reg::IIR_LINE);
    let _ = rig.read(reg::LSR);
    assert_eq!(first(&mut rig), reg::IIR_DATA);
    rig.receive(16);
    assert_eq!(first(&mut rig), reg::IIR_EMPTY);
    assert_eq!(first(&mut rig), reg::IIR_MODEM);
    assert_eq!(first(&mut rig), reg::IIR_MODEM);
    let _ = rig.read(reg::MSR);
    assert_eq!(first(&mut rig), reg::IIR_NONE);
    // Each only where it is enabled.
    rig.write(reg::IER, 0);
    rig.send(&[1; 17]);
    rig.write(reg::MCR, reg::MCR_LOOP);
    assert_eq!(first(&mut rig), reg::IIR_NONE);
    for (enabled, id) in [
        (reg::IER_MODEM, reg::IIR_MODEM),
        (reg::IER_MODEM | reg::IER_DATA, reg::IIR_DATA),
        (0x0f, reg::IIR_LINE),
        (reg::IER_EMPTY, reg::IIR_NONE),
    ] {
        rig.write(reg::IER, enabled);
        assert_eq!(first(&mut rig), id, "{enabled:#x}");
    }
}

#[test]
fn data_below_the_trigger_level_is_never_told() {
    for (fcr, level) in [(0x01, 1), (0x41, 4), (0x81, 8), (0xc1, 14), (0xc0, 1)] {
        let (mut rig, line) = Rig::heard_by(1, INTX);
        rig.write(reg::IER, reg::IER_DATA);
        rig.write(reg::FCR, fcr);
        rig.send(&vec![5; level - 1]);
        assert_eq!((line.heard(), first(&mut rig)), (0, reg::IIR_NONE));
        // The time of four bytes, once: it begins anew with each byte.
        rig.wait(LATER / 5);
        if level > 1 {
            rig.write(reg::FCR, fcr);
            assert!(matches!(rig.passes(LATER / 5), Work::At(_)));
            assert_eq!(line.heard(), 0);
            assert_eq!(rig.passes(LATER), Work::Idle);
            assert_eq!((line.heard(), first(&mut rig)), (1, reg::IIR_TIMEOUT));
            assert!(up(&mut rig, &line));
            // One byte more, or one less, and it is over.
            let _ = rig.read(0);
            assert_eq!(first(&mut rig), reg::IIR_NONE);
            assert!(!up(&mut rig, &line));
            rig.send(&[5]);
        }
        rig.send(&[6]);
        assert_eq!(first(&mut rig), reg::IIR_DATA, "level {level}");
        assert!(line.heard() > 0);
        let _ = rig.read(0);
        assert_eq!(first(&mut rig), reg::IIR_NONE);
        assert!(!up(&mut rig, &line));
    }
}

#[test]
fn bytes_that_still_come_time_out() {
    let (mut rig, line) = Rig::heard_by(1, INTX);
    rig.write(reg::FCR, 0xc1);
    rig.write(reg::IER, reg::IER_DATA);
    for _ in 0..5 {
        rig.send(&[1]);
        rig.wait(LATER / 5);
        assert_eq!(first(&mut rig), reg::IIR_NONE);
    }
    rig.wait(LATER);
    assert_eq!((line.heard(), first(&mut rig)), (1, reg::IIR_TIMEOUT));
    // One more: they come again.
    rig.send(&[1]);
    assert_eq!(first(&mut rig), reg::IIR_NONE);
    rig.wait(LATER);
    assert_eq!(first(&mut rig), reg::IIR_TIMEOUT);
}

#[test]
fn a_slow_line_times_out_as_fast_as_a_quick_one() {
    // 300 bits a second, 8 data bits, parity, 2 stop bits: 4 times 12 bits are 160 ms.
    let mut rig = Rig::new(1);
    rig.write(reg::LCR, reg::LCR_DLAB);
    rig.write(0, 0x80);
    rig.write(1, 0x01);
    rig.write(reg::LCR, 0x0f);
    rig.write(reg::FCR, 0xc1);
    rig.write(reg::IER, reg::IER_DATA);
    rig.send(&[1]);
    assert!(matches!(rig.passes(Duration::from_micros(159_900)), Work::At(_)));
    assert_eq!(first(&mut rig), reg::IIR_NONE);
    assert_eq!(rig.passes(Duration::from_micros(200)), Work::Idle);
    assert_eq!(first(&mut rig), reg::IIR_TIMEOUT);
}

#[test]
fn an_empty_transmitter_is_told_for_ever() {
    let (mut rig, line) = Rig::heard_by(1, INTX);
    rig.write(reg::IER, reg::IER_EMPTY);
    assert_eq!(line.heard(), 1);
    // Told when asked; then the line is down, though it is as empty as before.
    assert_eq!(first(&mut rig), reg::IIR_EMPTY);
    assert_eq!(first(&mut rig), reg::IIR_NONE);
    assert!(!up(&mut rig, &line));
    // Writing the same again is no new question, asking anew is.
    rig.write(reg::IER, reg::IER_EMPTY);
    assert!(!up(&mut rig, &line));
    rig.write(reg::IER, 0);
    rig.write(reg::IER, reg::IER_EMPTY);
    assert_eq!(line.heard(), 2);
    // A byte that is on its way: not empty. When it was read, it is again.
    rig.send(&[1]);
    assert!(!up(&mut rig, &line));
    let _ = rig.read(0);
    assert_eq!((line.heard(), first(&mut rig)), (3, reg::IIR_EMPTY));
    // Thrown away is gone, too.
    rig.send(&[1]);
    rig.write(reg::FCR, reg::FCR_ENABLE | reg::FCR_CLEAR_TRANSMITTER);
    assert!(up(&mut rig, &line));
    assert_eq!(first(&mut rig), reg::IIR_EMPTY);
}

#[test]
fn a_line_that_stays_up_is_heard_once_and_never_again() {
    let (mut rig, line) = Rig::heard_by(2, INTX);
    rig.write(reg::IER, reg::IER_DATA);
    rig.write_of(BAR1, reg::IER, reg::IER_DATA);
    rig.send(b"a");
    assert_eq!(line.heard(), 1);
    // It masked itself.
    rig.write_of(BAR1, 0, b'b');
    rig.send(b"c");
    assert_eq!(line.heard(), 1);
    // One port is served, the other holds the line.
    rig.receive(2);
    assert!(up(&mut rig, &line));
    assert_eq!(rig.read_of(BAR1, 0), b'b');
    assert!(!up(&mut rig, &line));
    // The guest has it off in the command register: shown, and not heard.
    rig.runner.write_region(CONFIG, 5, &[4]).unwrap();
    rig.send(b"d");
    assert!(!up(&mut rig, &line));
    let mut status = [0];
    rig.runner.read_region(CONFIG, 6, &mut status).unwrap();
    assert_eq!(status, [8]);
    let before = line.heard();
    rig.runner.write_region(CONFIG, 5, &[0]).unwrap();
    assert_eq!(line.heard(), before + 1);
    // A reset takes it down.
    rig.runner.reset();
    assert!(!up(&mut rig, &line));
}

#[test]
fn a_message_is_lost_because_another_cause_was_there_before() {
    let (mut rig, message) = Rig::heard_by(2, MSI);
    rig.write(reg::IER, 0x07);
    assert_eq!(message.heard(), 1);
    // Data beside it, an overrun beside that, and the other port.
    rig.send(&[1; 17]);
    assert_eq!(message.heard(), 3);
    rig.write_of(BAR1, reg::IER, reg::IER_EMPTY);
    assert_eq!(message.heard(), 4);
    // Looking changes nothing; what is over and comes again is told again.
    assert_eq!(first(&mut rig), reg::IIR_LINE);
    rig.wait(LATER);
    assert_eq!(message.heard(), 4);
    let _ = rig.read(reg::LSR);
    rig.send(&[2]);
    assert_eq!(message.heard(), 5);
    // What waits in a state that is loaded, or comes after a reset, is told as well.
    let waits = rig.save();
    rig.set(State::Running);
    assert!(rig.load(&waits));
    assert_eq!(message.heard(), 7);
    for heard in [8, 9] {
        rig.runner.reset();
        rig.write(reg::IER, 0x07);
        assert_eq!(message.heard(), heard);
    }
    rig.send(&[1; 17]);
    // Nobody listens: it is told when somebody does.
    rig.runner.unbind_index(MSI);
    let _ = rig.read(reg::LSR);
    rig.send(&[2]);
    let late = Count::default();
    rig.runner.bind(MSI, 0, Some(Box::new(late.clone()))).unwrap();
    rig.wait(LATER);
    assert_eq!(late.heard(), 1);
}

#[test]
fn what_waited_is_lost_on_the_way() {
    for index in [INTX, MSI] {
        let (mut rig, heard) = Rig::heard_by(2, index);
        rig.write(reg::FCR, 0xc1);
        rig.write(reg::IER, reg::IER_DATA);
        rig.write_of(BAR1, reg::MCR, reg::MCR_LOOP | reg::MCR_RTS);
        rig.write_of(BAR1, reg::IER, reg::IER_EMPTY);
        assert_eq!(rig.read_of(BAR1, reg::IIR), 0xc2);
        assert_eq!(heard.heard(), 1);
        rig.send(b"few");
        rig.wait(LATER);
        assert_eq!(first(&mut rig), reg::IIR_TIMEOUT);
        let saved = rig.save();
        let (mut other, heard) = Rig::heard_by(2, index);
        let session = other.set(State::Resuming).unwrap();
        other.runner.write_data(session, &saved).unwrap();
        other.set(State::Stop);
        // Not while it is stopped, and config space is set up.
        other.runner.write_region(CONFIG, 4, &[1, 0]).unwrap();
        assert_eq!(heard.heard(), 0);
        other.set(State::Running);
        let _ = other.runner.work(other.now);
        assert_eq!(heard.heard(), 1);
        // As it was, to the last latch: a timeout is over, an empty transmitter told.
        assert_eq!(first(&mut other), reg::IIR_TIMEOUT);
        assert_eq!(other.read_of(BAR1, reg::IIR), 0xc1);
        assert_eq!(other.receive(3), b"few");
        assert_eq!(other.runner.counters().interrupts_while_stopped, 0);
    }
}

#[test]
fn a_timeout_that_was_near_is_forgotten_on_the_way() {
    let (mut rig, _) = Rig::heard_by(1, INTX);
    rig.write(reg::FCR, 0xc1);
    rig.write(reg::IER, reg::IER_DATA);
    rig.send(b"few");
    let saved = rig.save();
    let (mut other, line) = Rig::heard_by(1, INTX);
    assert!(other.load(&saved));
    assert_eq!(line.heard(), 0);
    other.wait(LATER);
    assert_eq!((line.heard(), first(&mut other)), (1, reg::IIR_TIMEOUT));
    // A device that was stopped for long counts from when it goes on.
    rig.wait(LATER * 100);
    rig.set(State::Running);
    let _ = rig.runner.work(rig.now);
    assert_eq!(first(&mut rig), reg::IIR_NONE);
    rig.wait(LATER);
    assert_eq!(first(&mut rig), reg::IIR_TIMEOUT);
}

#[test]
fn a_line_is_up_for_what_was_there_before_the_load() {
    let idle = Rig::new(1).save();
    let (mut rig, line) = Rig::heard_by(1, INTX);
    rig.write(reg::IER, reg::IER_DATA);
    rig.send(b"old");
    assert_eq!(line.heard(), 1);
    let session = rig.set(State::Resuming).unwrap();
    rig.runner.unmask(INTX, 0).unwrap();
    rig.runner.write_data(session, &idle).unwrap();
    rig.set(State::Running);
    assert_eq!(line.heard(), 1);
    // The other way round it is up as soon as the card runs.
    rig.write(reg::IER, reg::IER_EMPTY);
    let waits = rig.save();
    let (mut other, line) = Rig::heard_by(1, INTX);
    let session = other.set(State::Resuming).unwrap();
    other.runner.write_data(session, &waits).unwrap();
    other.set(State::Stop);
    assert_eq!(line.heard(), 0);
    other.set(State::Running);
    assert_eq!(line.heard(), 1);
}
