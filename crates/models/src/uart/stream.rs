//! The saved state, byte for byte that of the kernel's mtty (`samples/vfio-mdev`, from
//! Linux 6.7 on), which knows no other way to tell a good one from a bad one than its
//! header.
//!
//! ```text
//!   header  24 | port one  36 | port two  36, where there is one
//!   `-- all of pre-copy      `-- stop-copy
//!
//!   header:  magic u64, major u32 = 1, minor u32 = 0, ports u32, flags u32 = 0
//!
//!   port:    0 registers  8 FIFO     24 head   27 DLAB     30 divisor u16   33 room
//!              8 bytes      16 bytes 25 tail   28 overrun  32 FCR           34 trigger
//!                                    26 count  29 0                         35 0
//! ```
//!
//! Little-endian: mtty uses the host's order, and all hosts with VFIO have this one. Of
//! the eight registers mtty uses IER (1), LCR (3), MCR (4) and SCR (7), and copies the
//! others as they are. Two of them have here what a 16550 knows and mtty does not, so
//! that 0 says what mtty means:
//!
//! - 2: bit 1, that the guest was told of an empty transmitter; bit 3, that the time of
//!   four bytes is over.
//! - 6: the upper half is the modem status as the guest last read it, a line that changed
//!   twice since turned round.
//!
//! A reader refuses what neither of the two can have written. There is no checksum: a
//! wrong byte in the middle of the FIFO is a byte in the FIFO.

use super::port::{FIFO, Fifo, Port, TRIGGERS};
use super::registers as reg;
use abi::errno::Errno;
use thiserror::Error;

const MAGIC: u64 = 0x7e9d_0989_8c3e_2c4e;
const MAJOR: u32 = 1;
const MINOR: u32 = 0;

const HEADER: usize = 24;
const PORT: usize = 36;
/// Where the FIFO of port one begins, from the start of the state.
pub(super) const FIFO_AT: usize = HEADER + RING;

const RING: usize = 8;
const HEAD: usize = 24;
const TAIL: usize = 25;
const COUNT: usize = 26;
const DLAB: usize = 27;
const OVERRUN: usize = 28;
const DIVISOR: usize = 30;
const FCR: usize = 32;
const ROOM: usize = 33;
const TRIGGER: usize = 34;
const PADDING: [usize; 2] = [29, 35];

const IER: usize = reg::IER as usize;
const TOLD: usize = reg::IIR as usize;
const LCR: usize = reg::LCR as usize;
const MCR: usize = reg::MCR as usize;
const SEEN: usize = reg::MSR as usize;
const SCR: usize = reg::SCR as usize;
/// The registers that nobody keeps anything in.
const EMPTY: [usize; 2] = [reg::DATA as usize, reg::LSR as usize];

const EMPTY_TOLD: u8 = 1 << 1;
const TIMED_OUT: u8 = 1 << 3;

/// Why a saved state is not one of this device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum StateError {
    /// It does not begin as mtty's.
    #[error("the state begins with {0:#018x}, which is not that of a uart")]
    Magic(u64),
    /// It is of another version.
    #[error("the state has version {0}.{1}, and only {MAJOR}.{MINOR} is known")]
    Version(u32, u32),
    /// It has flags, and none is known.
    #[error("the state has unknown flags {0:#x}")]
    Flags(u32),
    /// It is of a device with another number of ports.
    #[error("the state is of a device with {saved} ports, and this one has {here}")]
    Ports {
        /// How many the state has.
        saved: u32,
        /// How many the device has.
        here: u32,
    },
    /// It goes on where it should be over.
    #[error("the state goes on behind its {0} bytes")]
    TooLong(usize),
    /// It is over where it should go on.
    #[error("the state is cut off after {got} of {len} bytes")]
    Truncated {
        /// How many bytes came.
        got: usize,
        /// How many there have to be.
        len: usize,
    },
    /// A field of a port has a value that no port can have.
    #[error("port {port} cannot have {field} {value:#x}")]
    Field {
        /// The port, counted from 1.
        port: usize,
        /// The field.
        field: &'static str,
        /// What the state has there.
        value: u8,
    },
}

/// Bytes of the whole state.
pub(super) fn state_bytes(ports: usize) -> usize {
    HEADER + ports * PORT
}

/// A save session.
#[derive(Debug)]
pub(super) struct Saver {
    /// What there is so far.
    data: Vec<u8>,
    at: usize,
}

impl Saver {
    /// One that has the header, which a destination can judge long before the rest.
    pub(super) fn new(ports: usize) -> Saver {
        let mut data = Vec::with_capacity(state_bytes(ports));
        data.extend_from_slice(&MAGIC.to_le_bytes());
        for field in [MAJOR, MINOR, ports as u32, 0] {
            data.extend_from_slice(&field.to_le_bytes());
        }
        Saver { data, at: 0 }
    }

    /// Adds the ports, which do not change any more.
    pub(super) fn stopped(&mut self, ports: &[Port]) {
        self.data.extend(ports.iter().flat_map(encode));
    }

    pub(super) fn fill(&mut self, into: &mut [u8]) -> usize {
        let left = &self.data[self.at..];
        let len = left.len().min(into.len());
        into[..len].copy_from_slice(&left[..len]);
        self.at += len;
        len
    }

    /// Bytes that were not read yet of what there is.
    pub(super) fn left(&self) -> usize {
        self.data.len() - self.at
    }

    /// Bytes that were read.
    pub(super) fn read(&self) -> usize {
        self.at
    }
}

/// A resume session.
#[derive(Debug)]
pub(super) struct Loader {
    ports: usize,
    data: Vec<u8>,
    /// Why nothing more is taken.
    refused: Option<StateError>,
}

impl Loader {
    pub(super) fn new(ports: usize) -> Loader {
        Loader { ports, data: Vec::with_capacity(state_bytes(ports)), refused: None }
    }

    /// Takes the next bytes. The header is judged when it is there.
    pub(super) fn take(&mut self, data: &[u8]) -> Result<(), StateError> {
        let taken = match self.refused {
            Some(error) => Err(error),
            None => self.append(data),
        };
        taken.inspect_err(|error| self.refused = Some(*error))
    }

    /// The ports, of a state that is complete.
    pub(super) fn finish(&self) -> Result<Vec<Port>, StateError> {
        if let Some(error) = self.refused {
            return Err(error);
        }
        let (got, len) = (self.data.len(), state_bytes(self.ports));
        if got < len {
            return Err(StateError::Truncated { got, len });
        }
        let (ports, _) = self.data[HEADER..].as_chunks::<PORT>();
        ports.iter().zip(1..).map(|(bytes, port)| decode(bytes, port)).collect()
    }

    fn append(&mut self, data: &[u8]) -> Result<(), StateError> {
        let len = state_bytes(self.ports);
        let before = self.data.len();
        let fits = data.len().min(len - before);
        self.data.extend_from_slice(&data[..fits]);
        // First, because it tells more than the length of a state of something else.
        if before < HEADER && self.data.len() >= HEADER {
            self.check_header()?;
        }
        if fits < data.len() { Err(StateError::TooLong(len)) } else { Ok(()) }
    }

    fn check_header(&self) -> Result<(), StateError> {
        let (words, _) = self.data.as_chunks::<4>();
        let word = |n: usize| words.get(n).map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let magic = u64::from(word(1)) << 32 | u64::from(word(0));
        let (major, minor, saved, flags) = (word(2), word(3), word(4), word(5));
        let here = self.ports as u32;
        if magic != MAGIC {
            Err(StateError::Magic(magic))
        } else if (major, minor) != (MAJOR, MINOR) {
            Err(StateError::Version(major, minor))
        } else if saved != here {
            Err(StateError::Ports { saved, here })
        } else if flags != 0 {
            Err(StateError::Flags(flags))
        } else {
            Ok(())
        }
    }
}

/// What the client gets; the reason is in the log.
pub(super) fn refusal(error: StateError) -> Errno {
    tracing::warn!(%error, "the saved state is refused");
    Errno::EINVAL
}

/// A port as it is saved.
pub(super) fn encode(port: &Port) -> [u8; PORT] {
    let mut out = [0; PORT];
    out[IER] = port.ier;
    out[TOLD] = if port.empty_told { EMPTY_TOLD } else { 0 }
        | if port.timed_out { TIMED_OUT } else { 0 };
    out[LCR] = port.lcr;
    out[MCR] = port.mcr;
    out[SEEN] = port.seen_lines();
    out[SCR] = port.scr;
    out[RING..RING + FIFO].copy_from_slice(&port.fifo.bytes);
    out[HEAD] = port.fifo.head();
    out[TAIL] = port.fifo.tail;
    out[COUNT] = port.fifo.count;
    out[DLAB] = port.dlab().into();
    out[OVERRUN] = port.overrun.into();
    out[DIVISOR..FCR].copy_from_slice(&port.divisor.to_le_bytes());
    out[FCR] = port.fcr;
    out[ROOM] = port.fifo.room;
    out[TRIGGER] = port.fifo.trigger;
    out
}

fn decode(bytes: &[u8; PORT], port: usize) -> Result<Port, StateError> {
    let check = |holds: bool, field, at: usize| {
        let wrong = StateError::Field { port, field, value: bytes[at] };
        if holds { Ok(()) } else { Err(wrong) }
    };
    for at in EMPTY {
        check(bytes[at] == 0, "a register that is never kept with", at)?;
    }
    check(bytes[TOLD] & !(EMPTY_TOLD | TIMED_OUT) == 0, "interrupts told", TOLD)?;
    check(bytes[SEEN] & 0x0f == 0, "a modem status seen of", SEEN)?;
    check(bytes[HEAD] < FIFO as u8, "a FIFO head at", HEAD)?;
    check(bytes[TAIL] < FIFO as u8, "a FIFO tail at", TAIL)?;
    check(bytes[COUNT] <= FIFO as u8, "a FIFO count of", COUNT)?;
    let fifo = Fifo {
        bytes: std::array::from_fn(|n| bytes[RING + n]),
        tail: bytes[TAIL],
        count: bytes[COUNT],
        room: bytes[ROOM],
        trigger: bytes[TRIGGER],
    };
    check(fifo.head() == bytes[HEAD], "a FIFO head that its count contradicts at", HEAD)?;
    check(bytes[DLAB] == bytes[LCR] >> 7, "a DLAB that LCR contradicts of", DLAB)?;
    check(bytes[OVERRUN] <= 1, "an overrun of", OVERRUN)?;
    for at in PADDING {
        check(bytes[at] == 0, "padding of", at)?;
    }
    let (rooms, triggers) = fifo_choices(bytes[FCR]);
    check(rooms.contains(&fifo.room), "by its FCR a FIFO with room for", ROOM)?;
    // While it is off, the first byte is the only one.
    let triggers = if fifo.room == 1 { [TRIGGERS[0]; 2] } else { triggers };
    check(triggers.contains(&fifo.trigger), "by its FCR a trigger level of", TRIGGER)?;
    let mut port = Port::new();
    port.ier = bytes[IER];
    port.fcr = bytes[FCR];
    port.lcr = bytes[LCR];
    port.mcr = bytes[MCR];
    port.scr = bytes[SCR];
    port.divisor = u16::from_le_bytes([bytes[DIVISOR], bytes[DIVISOR + 1]]);
    port.fifo = fifo;
    port.overrun = bytes[OVERRUN] == 1;
    port.empty_told = bytes[TOLD] & EMPTY_TOLD != 0;
    port.timed_out = bytes[TOLD] & TIMED_OUT != 0;
    port.forget_lines(bytes[SEEN]);
    Ok(port)
}

/// The rooms and trigger levels that go with an FCR. mtty leaves the level at 1, and at
/// 0 before FCR was written, when its FIFO is on all the same.
fn fifo_choices(fcr: u8) -> ([u8; 2], [u8; 2]) {
    match fcr {
        0 => ([FIFO as u8, 1], [0, TRIGGERS[0]]),
        _ if fcr & reg::FCR_ENABLE == 0 => ([1; 2], [TRIGGERS[0]; 2]),
        _ => ([FIFO as u8; 2], [TRIGGERS[0], TRIGGERS[usize::from(fcr >> 6)]]),
    }
}

#[cfg(test)]
mod tests {
    use super::{HEADER, Loader, Saver, StateError, state_bytes};
    use crate::uart::port::Port;

    fn saved(ports: usize) -> Vec<u8> {
        let mut saver = Saver::new(ports);
        saver.stopped(&vec![Port::new(); ports]);
        let mut data = vec![0; 1000];
        let len = saver.fill(&mut data);
        data.truncate(len);
        data
    }

    fn load(data: &[u8]) -> Result<(), String> {
        let mut loader = Loader::new(2);
        let text = |error: StateError| error.to_string();
        loader.take(data).map_err(text)?;
        loader.finish().map(drop).map_err(text)
    }

    #[test]
    fn a_refused_state_says_what_is_wrong_with_it() {
        let good = saved(2);
        assert_eq!((good.len(), load(&good)), (state_bytes(2), Ok(())));
        let changed = |at: usize, value: u8| {
            let mut data = good.clone();
            data[at] = value;
            load(&data).unwrap_err()
        };
        for (at, value, message) in [
            (
                0,
                0,
                "the state begins with 0x7e9d09898c3e2c00, which is not that of a uart",
            ),
            (8, 2, "the state has version 2.0, and only 1.0 is known"),
            (12, 1, "the state has version 1.1, and only 1.0 is known"),
            (16, 1, "the state is of a device with 1 ports, and this one has 2"),
            (20, 1, "the state has unknown flags 0x1"),
            (HEADER + 36 + 25, 16, "port 2 cannot have a FIFO tail at 0x10"),
            (HEADER + 33, 8, "port 1 cannot have by its FCR a FIFO with room for 0x8"),
        ] {
            assert_eq!(changed(at, value), message);
        }
        assert_eq!(
            load(&good[..95]).unwrap_err(),
            "the state is cut off after 95 of 96 bytes"
        );
        let twice = [&good[..], &good[..]].concat();
        assert_eq!(load(&twice).unwrap_err(), "the state goes on behind its 96 bytes");
    }

    #[test]
    fn a_state_that_was_refused_is_accepted_after_all() {
        let good = saved(2);
        let mut loader = Loader::new(2);
        let mut first = good.clone();
        first.push(0);
        assert_eq!(loader.take(&first), Err(StateError::TooLong(96)));
        // All 96 bytes are there and right; that does not count any more.
        assert!(loader.finish().is_err() && loader.take(&[]).is_err());
        let mut loader = Loader::new(2);
        assert_eq!(loader.take(&saved(1)), Err(StateError::Ports { saved: 1, here: 2 }));
        assert!(loader.take(&good).is_err() && loader.finish().is_err());
    }
}
