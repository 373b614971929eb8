//! What a guest's driver sees.

use super::Rig;
use abi::errno::Errno;
use states::v2::Capabilities;
use vfio_migrate_models::uart::registers as reg;
use vfio_migrate_models::uart::{BAR0, BAR1, CONFIG, IDS, Parameters, Uart, UartError};

fn config(rig: &mut Rig, at: u64) -> u32 {
    let mut bytes = [0; 4];
    rig.runner.read_region(CONFIG, at, &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

#[test]
fn every_register_reads_what_a_new_port_has() {
    let mut rig = Rig::new(2);
    for (register, value) in [
        (reg::DATA, 0x00),
        (reg::IER, 0x00),
        (reg::IIR, 0xc1),
        (reg::LCR, 0x00),
        (reg::MCR, 0x00),
        (reg::LSR, 0x60),
        // Nobody looked at the lines yet, so they changed: DSR, DCD and CTS.
        (reg::MSR, 0xbb),
        (reg::SCR, 0x00),
    ] {
        for bar in [BAR0, BAR1] {
            assert_eq!(rig.read_of(bar, register), value, "register {register}");
        }
    }
}

#[test]
fn every_register_keeps_what_it_should_and_nothing_else() {
    // Register, what is written, and what is read back.
    for (register, value, back) in [
        (reg::IER, 0xff, 0x0f),
        (reg::FCR, 0x00, 0x01),
        (reg::FCR, 0x01, 0xc1),
        (reg::LCR, 0x7f, 0x7f),
        (reg::LCR, 0xff, 0xff),
        (reg::MCR, 0xff, 0xff),
        (reg::LSR, 0xff, 0x60),
        (reg::MSR, 0x00, 0xbb),
        (reg::SCR, 0xff, 0xff),
    ] {
        let mut rig = Rig::new(2);
        rig.write(register, value);
        assert_eq!(rig.read(register), back, "{value:#x} in register {register}");
        // The other port is none the wiser.
        let mut fresh = Rig::new(2);
        for register in 0..8 {
            let other = rig.read_of(BAR1, register);
            assert_eq!(other, fresh.read_of(BAR1, register), "register {register}");
        }
    }
}

#[test]
fn a_divisor_is_mixed_with_the_one_before() {
    let mut rig = Rig::new(1);
    rig.send(b"kept");
    rig.write(reg::IER, reg::IER_LINE);
    for divisor in [0xffff_u16, 0x0000, 0x1234, 0x00c0] {
        rig.write(reg::LCR, reg::LCR_DLAB | 3);
        let [low, high] = divisor.to_le_bytes();
        rig.write(0, low);
        rig.write(1, high);
        assert_eq!((rig.read(0), rig.read(1)), (low, high));
        rig.write(reg::LCR, 3);
    }
    rig.write(reg::LCR, reg::LCR_DLAB);
    assert_eq!((rig.read(0), rig.read(1)), (0xc0, 0));
    // Behind it are the registers as they were.
    rig.write(reg::LCR, 0);
    assert_eq!(rig.read(reg::IER), reg::IER_LINE);
    assert_eq!(rig.receive(4), b"kept");
}

#[test]
fn the_sixteenth_byte_makes_the_fifo_look_empty() {
    let mut rig = Rig::new(1);
    rig.write(reg::FCR, reg::FCR_ENABLE);
    let sent: Vec<u8> = (1..=16).collect();
    for byte in &sent {
        assert_eq!(rig.read(reg::LSR) & reg::LSR_OVERRUN, 0);
        rig.write(0, *byte);
        assert_eq!(rig.read(reg::LSR), reg::LSR_DATA);
    }
    // What does not fit is lost, is told once, and displaces nothing.
    rig.send(&[17, 18]);
    assert_eq!(rig.read(reg::LSR), reg::LSR_DATA | reg::LSR_OVERRUN);
    assert_eq!(rig.read(reg::LSR), reg::LSR_DATA);
    assert_eq!(rig.receive(16), sent);
    assert_eq!(rig.read(reg::LSR), reg::LSR_EMPTY | reg::LSR_THR_EMPTY);
    // Nothing is behind it.
    assert_eq!(rig.receive(2), [0, 0]);
    rig.send(b"again");
    assert_eq!(rig.receive(5), b"again");
}

#[test]
fn fifo_control_empties_what_it_should_not() {
    let mut rig = Rig::new(1);
    for clear in [reg::FCR_CLEAR_RECEIVER, reg::FCR_CLEAR_TRANSMITTER] {
        rig.send(b"gone");
        rig.write(reg::FCR, reg::FCR_ENABLE | clear);
        assert_eq!((rig.read(reg::LSR), rig.read(0)), (0x60, 0));
    }
    // A trigger level alone empties nothing; switching the FIFO off or on does.
    rig.send(b"kept");
    rig.write(reg::FCR, reg::FCR_ENABLE | reg::FCR_TRIGGER);
    assert_eq!(rig.read(reg::LSR), reg::LSR_DATA);
    rig.write(reg::FCR, 0);
    assert_eq!(rig.read(reg::LSR), 0x60);
    // Off, it has room for one.
    rig.send(b"12");
    assert_eq!(rig.read(reg::LSR), reg::LSR_DATA | reg::LSR_OVERRUN);
    rig.write(reg::FCR, 0);
    assert_eq!(rig.receive(2), [b'1', 0]);
}

#[test]
fn bytes_go_around_whether_or_not_the_loop_is_on() {
    let mut rig = Rig::new(2);
    for mcr in [0, reg::MCR_LOOP] {
        rig.write(reg::MCR, mcr);
        rig.send(b"one");
        rig.write_of(BAR1, 0, b'2');
        assert_eq!(rig.receive(3), b"one");
        assert_eq!(rig.read_of(BAR1, 0), b'2');
    }
}

#[test]
fn a_driver_that_probes_with_the_loop_finds_no_modem() {
    let mut rig = Rig::new(1);
    let _ = rig.read(reg::MSR);
    assert_eq!(rig.read(reg::MSR), reg::MSR_DSR | reg::MSR_DCD | reg::MSR_CTS);
    for (outputs, lines) in [
        (0, 0),
        (reg::MCR_OUT2 | reg::MCR_RTS, reg::MSR_DCD | reg::MSR_CTS),
        (reg::MCR_DTR, reg::MSR_DSR),
        (reg::MCR_OUT1, reg::MSR_RI),
        (0, 0),
    ] {
        rig.write(reg::MCR, reg::MCR_LOOP | outputs);
        assert_eq!(rig.read(reg::MSR) & 0xf0, lines, "{outputs:#x}");
        assert_eq!(rig.read(reg::MSR), lines, "{outputs:#x} a second time");
    }
    // A ring counts when it is over.
    rig.write(reg::MCR, reg::MCR_LOOP | reg::MCR_OUT1);
    assert_eq!(rig.read(reg::MSR), reg::MSR_RI);
    rig.write(reg::MCR, reg::MCR_LOOP);
    assert_eq!(rig.read(reg::MSR), reg::MSR_RI >> 4);
    // A line that went there and back has changed.
    rig.write(reg::MCR, reg::MCR_LOOP | reg::MCR_RTS);
    rig.write(reg::MCR, reg::MCR_LOOP);
    assert_eq!(rig.read(reg::MSR), reg::MSR_CTS >> 4);
    assert_eq!(rig.read(reg::MSR), 0);
}

#[test]
fn flow_control_stops_a_sender_while_there_is_room() {
    let mut rig = Rig::new(1);
    rig.write(reg::MCR, reg::MCR_AFE);
    let _ = rig.read(reg::MSR);
    rig.send(&[7; 15]);
    assert_eq!(rig.read(reg::MSR), 0xb0);
    rig.send(&[7]);
    assert_eq!(rig.read(reg::MSR), 0xa0 | reg::MSR_CTS >> 4);
    let _ = rig.read(0);
    assert_eq!(rig.read(reg::MSR), 0xb0 | reg::MSR_CTS >> 4);
}

#[test]
fn a_wide_access_is_several_registers() {
    let mut rig = Rig::new(1);
    rig.runner.write_region(BAR0, 3, &[0x1b, 0x0b, 0, 0, 0x5a]).unwrap();
    let mut bytes = [0; 8];
    rig.runner.read_region(BAR0, 0, &mut bytes).unwrap();
    assert_eq!(bytes, [0, 0, 0xc1, 0x1b, 0x0b, 0x60, 0xbb, 0x5a]);
    for (offset, len) in [(8, 1), (7, 2), (0, 9), (u64::MAX, 1)] {
        let read = rig.runner.read_region(BAR0, offset, &mut vec![0; len]);
        assert_eq!(read, Err(Errno::EINVAL), "{len} at {offset}");
    }
}

#[test]
fn config_space_is_not_that_of_mtty() {
    for ports in [1, 2] {
        let mut rig = Rig::new(ports);
        for (at, value) in [
            (0x00, 0x3253_4348),
            (0x04, 0x0200_0001),
            (0x08, 0x0700_0210),
            (0x10, 0x0000_0001),
            (0x14, u32::from(ports == 2)),
            (0x18, 0),
            (0x2c, 0x3253_4348),
            (0x30, 0),
            (0x34, 0),
            (0x3c, 0x0000_0100),
            (0x40, 0x8000_0023),
            (0x60, u32::from_le_bytes(*b"PCI ")),
            (0x6c, u32::from_le_bytes(*b"ART\0")),
            (0xfc, 0),
        ] {
            assert_eq!(config(&mut rig, at), value, "{at:#x} with {ports} ports");
        }
        assert_eq!(IDS.class, config(&mut rig, 8) >> 8);
        // All of it is written: BARs have 8 bytes, two bits of the command and the
        // interrupt line are kept, and nothing else.
        rig.runner.write_region(CONFIG, 0, &[0xff; 256]).unwrap();
        for (at, value) in [
            (0x00, 0x3253_4348),
            (0x04, 0x0200_0401),
            (0x08, 0x0700_0210),
            (0x10, 0xffff_fff9),
            (0x14, if ports == 2 { 0xffff_fff9 } else { 0 }),
            (0x18, 0),
            (0x30, 0),
            (0x3c, 0x0000_01ff),
            (0x40, 0x8000_0023),
            (0xfc, 0),
        ] {
            assert_eq!(config(&mut rig, at), value, "{at:#x} with {ports} ports");
        }
        rig.runner.reset();
        assert_eq!(config(&mut rig, 0x10), 1);
    }
}

#[test]
fn a_card_has_ports_that_nobody_asked_for() {
    for ports in [0, 3, u32::MAX] {
        let parameters = Parameters { ports, ..Parameters::default() };
        assert_eq!(Uart::new(parameters).unwrap_err(), UartError::Ports(ports));
    }
    assert_eq!(UartError::Ports(3).to_string(), "3 ports: a uart has 1 or 2");
    for ports in [1, 2] {
        let mut rig = Rig::new(ports);
        let description = rig.runner.description().clone();
        assert_eq!(description.identity.model, format!("uart-{ports}"));
        assert_eq!(description.identity.pci, Some(IDS));
        assert_eq!(description.capabilities, Capabilities::ALL);
        let sizes: Vec<_> = [BAR0, BAR1, 2, CONFIG]
            .map(|index| description.region(index).map_or(0, |region| region.size))
            .into();
        assert_eq!(sizes, [8, if ports == 2 { 8 } else { 0 }, 0, 256]);
        // A line that can be masked, and one message that needs no capability.
        let irqs: Vec<_> = description
            .irqs
            .iter()
            .map(|irq| (irq.index, irq.count, irq.flags.bits()))
            .collect();
        assert_eq!(irqs, [(0, 1, 7), (1, 1, 9)]);
        let other = rig.runner.read_region(BAR1, 0, &mut [0]);
        assert_eq!(other.is_ok(), ports == 2);
    }
}
