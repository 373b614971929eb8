//! The saved state: mtty's to the byte, and nothing else.
//!
//! The golden states are put together by hand from the layout that the kernel's sample
//! has on 64-bit hosts, not from what this code saves.

use super::{INTX, Rig};
use states::v2::State;
use vfio_migrate_models::uart::registers as reg;
use vfio_migrate_models::uart::{BAR0, BAR1};

/// `struct mtty_data` up to its ports.
fn header(ports: u8) -> Vec<u8> {
    let mut out = vec![0x4e, 0x2c, 0x3e, 0x8c, 0x89, 0x09, 0x9d, 0x7e];
    out.extend([1, 0, 0, 0]);
    out.extend([0, 0, 0, 0]);
    out.extend([ports, 0, 0, 0]);
    out.extend([0, 0, 0, 0]);
    out
}

/// A port of mtty that nobody used: all 0 but for the FIFO's size.
fn untouched() -> [u8; 36] {
    let mut port = [0; 36];
    port[33] = 16;
    port
}

/// A port of mtty at work: 9600 baud, 8 bits, data and line interrupts, FIFO on with a
/// level of 14 (which mtty leaves at 1), RTS and DTR, `0x5a` in the scratch register;
/// `ABCDEFGHIJ` was sent from place 12 on and `AB` was read.
fn at_work() -> [u8; 36] {
    let mut port = [0; 36];
    // IER, LCR, MCR, SCR; mtty keeps nothing in the others.
    port[1] = 0x05;
    port[3] = 0x03;
    port[4] = 0x0b;
    port[7] = 0x5a;
    for (n, byte) in (b'A'..=b'J').enumerate() {
        port[8 + (12 + n) % 16] = byte;
    }
    // Head, tail, count, DLAB, overrun, and a byte of padding.
    port[24..30].copy_from_slice(&[6, 14, 8, 0, 0, 0]);
    // Divisor 12, FCR, FIFO size, trigger level, padding.
    port[30..36].copy_from_slice(&[12, 0, 0xc7, 16, 1, 0]);
    port
}

fn golden(ports: &[[u8; 36]]) -> Vec<u8> {
    let mut out = header(ports.len() as u8);
    ports.iter().for_each(|port| out.extend(port));
    out
}

#[test]
fn a_state_that_mtty_saved_is_another_here() {
    let (mut rig, line) = Rig::heard_by(2, INTX);
    let state = golden(&[at_work(), untouched()]);
    assert_eq!(state.len(), 96);
    assert!(rig.load(&state));
    assert_eq!(line.heard(), 1);
    for (register, value) in [
        (reg::IER, 0x05),
        (reg::IIR, 0xc4),
        (reg::LCR, 0x03),
        (reg::MCR, 0x0b),
        (reg::LSR, 0x01),
        (reg::MSR, 0xbb),
        (reg::SCR, 0x5a),
    ] {
        assert_eq!(rig.read(register), value, "register {register}");
    }
    rig.write(reg::LCR, 0x83);
    assert_eq!((rig.read(0), rig.read(1)), (12, 0));
    rig.write(reg::LCR, 0x03);
    assert_eq!(rig.receive(8), b"CDEFGHIJ");
    assert_eq!(rig.read(reg::LSR), 0x60);
    // The other port is as good as new.
    rig.write_of(BAR1, 0, b'x');
    assert_eq!(rig.read_of(BAR1, 0), b'x');
    // And with one port.
    let mut rig = Rig::new(1);
    let state = golden(&[at_work()]);
    assert_eq!(state.len(), 60);
    assert!(rig.load(&state));
    assert_eq!(rig.receive(8), b"CDEFGHIJ");
}

#[test]
fn a_state_of_mtty_is_saved_again_with_another_byte() {
    for ports in [vec![untouched()], vec![at_work()], vec![untouched(), at_work()]] {
        let state = golden(&ports);
        let mut rig = Rig::new(ports.len() as u32);
        assert!(rig.load(&state));
        assert_eq!(rig.save(), state);
    }
}

#[test]
fn mtty_finds_fields_elsewhere() {
    // The same by registers. What mtty never has are the levels above 1, and in two
    // registers that it does not look at: the lines as they were seen.
    let mut rig = Rig::new(2);
    rig.write(reg::LCR, 0x80);
    rig.write(0, 12);
    rig.write(1, 0);
    rig.write(reg::LCR, 0x03);
    rig.send(&[0; 12]);
    rig.receive(12);
    rig.send(b"ABCDEFGHIJ");
    rig.receive(2);
    rig.write(reg::IER, 0x05);
    rig.write(reg::MCR, 0x0b);
    rig.write(reg::SCR, 0x5a);
    let _ = rig.read(reg::MSR);
    let mut expected = at_work();
    expected[6] = 0xb0;
    expected[32] = 0;
    let mut other = untouched();
    other[34] = 1;
    assert_eq!(rig.save(), golden(&[expected, other]));
    // Of FCR all is kept that was written; a level is what it says.
    let mut rig = Rig::new(1);
    rig.write(reg::FCR, 0xc7);
    rig.send(&[9; 17]);
    rig.write(reg::LCR, 0x80);
    let mut expected = untouched();
    expected[3] = 0x80;
    expected[8..24].fill(9);
    expected[24..29].copy_from_slice(&[0, 0, 16, 1, 1]);
    expected[32..35].copy_from_slice(&[0xc7, 16, 14]);
    assert_eq!(rig.save(), golden(&[expected]));
}

#[test]
fn what_mtty_does_not_understand_comes_back_as_nonsense() {
    // It carries the two registers along while its guest goes on, so they say what was
    // true before: that nothing was in the FIFO, and that RTS was on in a loop.
    let mut port = at_work();
    port[1] = 0x0a;
    port[2] = 0x0a;
    port[4] = reg::MCR_LOOP;
    port[6] = reg::MSR_CTS;
    let mut rig = Rig::new(1);
    assert!(rig.load(&golden(&[port])));
    // A line changed since, and nothing times out where the level is reached.
    assert_eq!(rig.read(reg::IIR), 0xc0 | reg::IIR_MODEM);
    assert_eq!(rig.read(reg::MSR), reg::MSR_CTS >> 4);
    assert_eq!(rig.read(reg::IIR), 0xc1);
    // The guest that empties it was told before, but not of this.
    rig.write(reg::FCR, reg::FCR_ENABLE | reg::FCR_CLEAR_RECEIVER);
    assert_eq!(rig.read(reg::IIR), 0xc0 | reg::IIR_EMPTY);
    // A timeout of bytes that are gone.
    let mut port = untouched();
    port[1] = 0x01;
    port[2] = 0x08;
    let (mut rig, line) = Rig::heard_by(1, INTX);
    assert!(rig.load(&golden(&[port])));
    assert_eq!((line.heard(), rig.read(reg::IIR)), (0, 0xc1));
}

#[test]
fn bytes_in_the_fifo_are_lost_at_some_place_in_it() {
    for tail in 0..16_u8 {
        for count in 0..=16_u8 {
            let mut rig = Rig::new(2);
            let bytes: Vec<u8> = (0..count).map(|n| n * 16 + tail).collect();
            rig.send(&vec![0xee; tail.into()]);
            rig.receive(tail.into());
            rig.send(&bytes);
            rig.write_of(BAR1, 0, tail);
            let digest = rig.runner.digest();
            let saved = rig.save();
            assert_eq!(saved[48..51], [(tail + count) % 16, tail, count]);
            let mut other = Rig::new(2);
            assert!(other.load(&saved), "{count} from {tail} on");
            assert_eq!(other.runner.digest(), digest);
            assert_eq!(other.receive(count.into()), bytes);
            assert_eq!(other.read(reg::LSR), 0x60);
            assert_eq!(other.read_of(BAR1, 0), tail);
        }
    }
}

#[test]
fn a_byte_that_stays_in_the_fifo_is_in_no_digest() {
    let mut rig = Rig::new(2);
    let fresh = rig.runner.digest().unwrap();
    rig.write_of(BAR1, 0, 7);
    let one = rig.runner.digest().unwrap();
    assert_eq!(
        fresh.difference(&one).unwrap(),
        "counter port2_waiting 0 against port2_waiting 1"
    );
    let _ = rig.read_of(BAR1, 0);
    rig.write_of(BAR1, 0, 8);
    let two = rig.runner.digest().unwrap();
    assert!(one.difference(&two).unwrap().starts_with("counter port2_fifo "));
    rig.write(reg::SCR, 1);
    let three = rig.runner.digest().unwrap();
    assert_eq!(
        two.difference(&three).unwrap(),
        "counter port1_scr 0 against port1_scr 1"
    );
    // Even where in the FIFO the next byte will go.
    rig.send(&[1]);
    rig.receive(1);
    let four = rig.runner.digest().unwrap();
    assert!(three.difference(&four).unwrap().starts_with("counter port1_state "));
}

#[test]
fn a_state_that_no_port_can_be_in_is_loaded() {
    let good = golden(&[at_work(), at_work()]);
    assert!(Rig::new(2).load(&good));
    let magic: Vec<_> = (0..8).map(|at| (at, good[at] ^ 1)).collect();
    let ports = [24, 24 + 36].into_iter().flat_map(|port| {
        [
            // Registers that nobody keeps anything in, and padding.
            (0, 1),
            (0, 0x80),
            (5, 0x60),
            (29, 1),
            (35, 1),
            // What is told: bits that do not exist, and half a modem status too much.
            (2, 0x01),
            (2, 0xc2),
            (6, 0xb1),
            // Head, tail, count: out of range, and not what the others say.
            (24, 16),
            (24, 7),
            (24, 0xff),
            (25, 16),
            (25, 30),
            (25, 13),
            (25, 0xff),
            (26, 17),
            (26, 24),
            (26, 7),
            (26, 0),
            (26, 0xff),
            // DLAB and overrun: neither yes nor no, and not what LCR says.
            (27, 1),
            (27, 2),
            (27, 0xff),
            (3, 0x83),
            (28, 2),
            (28, 0xff),
            // FIFO size and level: impossible, and not what FCR says.
            (33, 0),
            (33, 1),
            (33, 15),
            (33, 17),
            (33, 0xff),
            (34, 0),
            (34, 2),
            (34, 4),
            (34, 15),
            (34, 16),
            (34, 0xff),
            (32, 0xc6),
        ]
        .map(|(at, value)| (port + at, value))
    });
    let fields = [
        // Versions, ports, flags.
        (8, 0),
        (8, 2),
        (11, 1),
        (12, 1),
        (15, 0x80),
        (16, 0),
        (16, 1),
        (16, 3),
        (19, 1),
        (20, 1),
        (23, 0x80),
    ];
    for (at, value) in magic.into_iter().chain(fields).chain(ports) {
        for whole in [true, false] {
            let mut state = good.clone();
            assert_ne!(state[at], value);
            state[at] = value;
            let mut rig = Rig::new(2);
            rig.send(b"mine");
            let before = rig.runner.digest();
            let session = rig.set(State::Resuming).unwrap();
            // However it is cut, and a header right behind it changes nothing.
            let size = if whole { 96 } else { 1 };
            let taken = state
                .chunks(size)
                .try_for_each(|part| rig.runner.write_data(session, part));
            assert_eq!(taken.is_err(), at < 24, "byte {at} as {value:#x}");
            let stopped = rig.runner.set_state(State::Stop, rig.now);
            assert!(stopped.is_err(), "byte {at} as {value:#x}");
            assert_eq!(rig.runner.state(), State::Resuming);
            // Nothing of it is in the device.
            assert_eq!(rig.runner.digest(), before);
            rig.runner.reset();
            assert!(rig.load(&good));
        }
    }
}

#[test]
fn fifo_settings_that_no_write_leads_to_are_loaded() {
    let legal = |fcr: u8, room: u8, trigger: u8| match (fcr, room) {
        // Never written (mtty: level 0), or written with 0.
        (0, 16) => trigger <= 1,
        (0, 1) => trigger == 1,
        (_, 1) => fcr & 1 == 0 && trigger == 1,
        (_, 16) => {
            fcr & 1 == 1 && (trigger == 1 || trigger == [1, 4, 8, 14][fcr as usize >> 6])
        }
        _ => false,
    };
    for fcr in [0x00, 0x01, 0x06, 0x40, 0x41, 0x87, 0xb9, 0xc0, 0xc1, 0xfe, 0xff] {
        for room in [0, 1, 2, 15, 16, 17, 255] {
            for trigger in [0, 1, 2, 4, 8, 14, 15, 16, 255] {
                let mut port = untouched();
                port[32..35].copy_from_slice(&[fcr, room, trigger]);
                assert_eq!(
                    Rig::new(1).load(&golden(&[port])),
                    legal(fcr, room, trigger),
                    "FCR {fcr:#x}, room {room}, trigger {trigger}"
                );
            }
        }
    }
}

#[test]
fn half_a_state_or_more_than_one_is_loaded() {
    for ports in [1, 2] {
        let good = golden(&vec![at_work(); ports]);
        let mut rig = Rig::new(ports as u32);
        for len in 0..good.len() {
            assert!(!rig.load(&good[..len]), "{len} bytes");
            rig.runner.reset();
        }
        for more in [1, 36, 1 << 20] {
            let mut longer = good.clone();
            longer.resize(good.len() + more, 0);
            assert!(!rig.load(&longer), "{more} bytes too many");
            rig.runner.reset();
            // Behind all of it, when nothing is missing any more.
            let session = rig.set(State::Resuming).unwrap();
            rig.runner.write_data(session, &good).unwrap();
            assert!(rig.runner.write_data(session, &longer[good.len()..]).is_err());
            assert!(rig.runner.set_state(State::Stop, rig.now).is_err());
            rig.runner.reset();
        }
        assert!(rig.load(&good));
    }
    // The state of a card with another number of ports.
    assert!(!Rig::new(1).load(&golden(&[at_work(), at_work()])));
    assert!(!Rig::new(2).load(&golden(&[at_work()])));
}

#[test]
fn a_flipped_bit_is_refused_or_changes_something_else() {
    // There is no checksum to find it, so what is accepted has to be content: it is
    // saved again as it came, and it is seen in the digest.
    let good = golden(&[at_work(), untouched()]);
    let mut same = Rig::new(2);
    assert!(same.load(&good));
    let digest = same.runner.digest();
    let mut accepted = 0;
    for bit in 0..8 * good.len() {
        let mut state = good.clone();
        state[bit / 8] ^= 1 << (bit % 8);
        let mut rig = Rig::new(2);
        if rig.load(&state) {
            accepted += 1;
            assert!(bit >= 8 * 24, "bit {bit} of the header");
            assert_ne!(rig.runner.digest(), digest, "bit {bit}");
            assert_eq!(rig.save(), state, "bit {bit}");
        }
    }
    // Of each port: IER, MCR, SCR, the FIFO and the divisor as a whole, LCR without
    // DLAB, half of the modem status, two bits of what was told, and the overrun. Of
    // the port at work FCR without its lowest bit, which contradicts the FIFO's size.
    // Of the other one a level of 1, and a FIFO that is full where it was empty.
    let port = 3 * 8 + 16 * 8 + 16 + 7 + 4 + 2 + 1;
    assert_eq!(accepted, 2 * port + 7 + 1 + 1);
}

#[test]
fn pre_copy_gives_what_changes_or_stop_copy_gives_it_twice() {
    for read in [0, 1, 23, 24] {
        let mut rig = Rig::new(2);
        let session = rig.set(State::PreCopy).unwrap();
        assert_eq!(rig.runner.stop_copy_bytes(), 96);
        let info = rig.runner.precopy_info(session).unwrap();
        assert_eq!((info.initial_bytes, info.dirty_bytes, info.reinit), (24, 0, false));
        let mut data = vec![0; read];
        if read > 0 {
            assert_eq!(rig.runner.read_data(session, &mut data), Ok(read));
        }
        let info = rig.runner.precopy_info(session).unwrap();
        assert_eq!((info.initial_bytes, info.dirty_bytes), (24 - read as u64, 0));
        assert_eq!(rig.runner.stop_copy_bytes(), 96 - read as u64);
        // It is told nothing of this, and goes on.
        rig.write(reg::LCR, 0x80);
        rig.write(0, 12);
        rig.write(reg::LCR, 0x03);
        rig.send(b"late");
        if read == 24 {
            assert_eq!(rig.runner.read_data(session, &mut [0; 50]), Ok(0));
            rig.set(State::PreCopyP2p);
            assert_eq!(rig.runner.read_data(session, &mut [0; 50]), Ok(0));
        }
        rig.set(State::StopCopy);
        data.extend(rig.read_data(session));
        assert_eq!(data.len(), 96);
        assert_eq!(data[..24], header(2));
        let mut other = Rig::new(2);
        // The header alone is judged, long before the rest comes.
        let session = other.set(State::Resuming).unwrap();
        other.runner.write_data(session, &data[..24]).unwrap();
        other.runner.write_data(session, &data[24..]).unwrap();
        other.set(State::Stop);
        other.set(State::Running);
        assert_eq!(other.receive(4), b"late");
    }
}

#[test]
fn a_reset_leaves_bytes_behind() {
    let mut rig = Rig::new(2);
    let fresh = rig.save();
    rig.set(State::Running);
    rig.write(reg::FCR, 0x81);
    rig.write(reg::SCR, 3);
    rig.send(b"gone");
    rig.write_of(BAR1, reg::LCR, 0x80);
    rig.runner.reset();
    assert_eq!(rig.save(), fresh);
    rig.set(State::Running);
    assert_eq!(rig.read_of(BAR0, 0), 0);
}
