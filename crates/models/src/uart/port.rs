//! One port: a 16550 with a loopback plug in it.
//!
//! ```text
//!   DATA write --> [16-byte FIFO] --> DATA read
//!                   |         |
//!        LSR_EMPTY, |         | LSR_DATA, trigger level,
//!        IIR_EMPTY -'         `- time of four bytes without one
//! ```
//!
//! Sender and receiver have one FIFO between them: what is sent can be read at once, and
//! the sender is empty when all of it was. A driver that waits for that loses nothing.

use super::registers as reg;
use std::time::{Duration, Instant};

/// Bytes of the FIFO.
pub(super) const FIFO: usize = 16;

/// The trigger levels that [`reg::FCR_TRIGGER`] chooses from, in bytes.
pub(super) const TRIGGERS: [u8; 4] = [1, 4, 8, 14];

/// What the divisor divides, in steps a second; 16 of them make a bit.
const CLOCK: u64 = 1_843_200;

/// The interrupts of a port that wait, as bits of [`reg::IER`].
pub(super) type Waiting = u8;

/// A port. What is in here, but for the timer, is its whole state.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub(super) ier: u8,
    /// As last written, bits that are not kept included.
    pub(super) fcr: u8,
    pub(super) lcr: u8,
    pub(super) mcr: u8,
    pub(super) scr: u8,
    pub(super) divisor: u16,
    pub(super) fifo: Fifo,
    /// A byte was lost since [`reg::LSR`] was read.
    pub(super) overrun: bool,
    /// The lines that changed since [`reg::MSR`] was read, as its lower four bits.
    pub(super) changed: u8,
    /// The driver was told that the transmitter is empty.
    pub(super) empty_told: bool,
    /// The time of four bytes went by.
    pub(super) timed_out: bool,
    /// When it will have. Nothing where no access changed the FIFO since it was asked.
    deadline: Option<Instant>,
}

/// Bytes on their way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fifo {
    /// The ring; what was read stays until it is overwritten.
    pub(super) bytes: [u8; FIFO],
    /// Where the oldest byte is, below 16.
    pub(super) tail: u8,
    /// How many there are, at most 16.
    pub(super) count: u8,
    /// How many it takes: 16, or 1 while it is off.
    pub(super) room: u8,
    /// How many of them interrupt at once; 0 before it was ever set, which means 1.
    pub(super) trigger: u8,
}

impl Fifo {
    /// Where the next byte goes.
    pub(super) fn head(&self) -> u8 {
        (self.tail + self.count) % FIFO as u8
    }

    /// Whether there was room.
    fn push(&mut self, byte: u8) -> bool {
        let fits = self.count < self.room;
        if fits {
            self.bytes[usize::from(self.head())] = byte;
            self.count += 1;
        }
        fits
    }

    fn pop(&mut self) -> Option<u8> {
        self.count = self.count.checked_sub(1)?;
        let byte = self.bytes[usize::from(self.tail)];
        self.tail = (self.tail + 1) % FIFO as u8;
        Some(byte)
    }

    fn clear(&mut self) {
        self.tail = 0;
        self.count = 0;
    }

    /// The bytes, oldest first.
    pub(super) fn waiting(&self) -> Vec<u8> {
        let mut copy = self.clone();
        std::iter::from_fn(|| copy.pop()).collect()
    }

    fn reached(&self) -> bool {
        self.count >= self.trigger.max(1)
    }
}

impl Port {
    /// As after a reset: as a new port of mtty, but with a trigger level, whose lack has
    /// mtty tell of data where there is none.
    pub(super) fn new() -> Port {
        let fifo = Fifo {
            bytes: [0; FIFO],
            tail: 0,
            count: 0,
            room: FIFO as u8,
            trigger: TRIGGERS[0],
        };
        let mut port = Port {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            scr: 0,
            divisor: 0,
            fifo,
            overrun: false,
            changed: 0,
            empty_told: false,
            timed_out: false,
            deadline: None,
        };
        // Nobody knows yet what is plugged in.
        port.forget_lines(0);
        port
    }

    /// What was seen of the lines, as a modem status: those that changed since are the
    /// other way round in it.
    pub(super) fn seen_lines(&self) -> u8 {
        self.lines() ^ (self.changed << 4)
    }

    /// The opposite: what differs from `seen` has changed.
    pub(super) fn forget_lines(&mut self, seen: u8) {
        self.changed = (self.lines() ^ seen) >> 4;
    }

    pub(super) fn read(&mut self, register: u64) -> u8 {
        self.watching_lines(|port| match register {
            reg::DATA if port.dlab() => port.divisor.to_le_bytes()[0],
            reg::IER if port.dlab() => port.divisor.to_le_bytes()[1],
            reg::DATA => port.receive(),
            reg::IER => port.ier & 0x0f,
            reg::IIR => port.identify(),
            reg::LCR => port.lcr,
            reg::MCR => port.mcr,
            reg::LSR => port.line_status(),
            reg::MSR => port.lines() | std::mem::take(&mut port.changed),
            reg::SCR => port.scr,
            _ => 0,
        })
    }

    pub(super) fn write(&mut self, register: u64, value: u8) {
        self.watching_lines(|port| match register {
            reg::DATA if port.dlab() => {
                port.divisor = port.divisor & 0xff00 | u16::from(value);
            }
            reg::IER if port.dlab() => {
                port.divisor = port.divisor & 0x00ff | u16::from(value) << 8;
            }
            reg::DATA => port.send(value),
            reg::IER => {
                // Who asks to be told gets told, even if it was once.
                port.empty_told &= value & !port.ier & reg::IER_EMPTY == 0;
                port.ier = value;
            }
            reg::FCR => port.control_fifo(value),
            reg::LCR => port.lcr = value,
            reg::MCR => port.mcr = value,
            reg::SCR => port.scr = value,
            // The status registers say how it is.
            _ => {}
        });
    }

    /// The interrupts that wait.
    pub(super) fn waiting(&self) -> Waiting {
        let timed_out = self.timed_out && self.fifo.count > 0;
        let mut all = 0;
        for (waits, bit) in [
            (self.overrun, reg::IER_LINE),
            (self.fifo.reached() || timed_out, reg::IER_DATA),
            (self.fifo.count == 0 && !self.empty_told, reg::IER_EMPTY),
            (self.changed != 0, reg::IER_MODEM),
        ] {
            if waits {
                all |= bit;
            }
        }
        all & self.ier
    }

    /// Lets time pass. When it wants to be asked again, if nothing changes before.
    pub(super) fn tick(&mut self, now: Instant) -> Option<Instant> {
        if self.timed_out || self.fifo.count == 0 || self.fifo.reached() {
            return None;
        }
        let deadline = *self.deadline.get_or_insert(now + self.four_bytes());
        self.timed_out = now >= deadline;
        (!self.timed_out).then_some(deadline)
    }

    /// Forgets when the time of four bytes began; it begins again.
    pub(super) fn restart_clock(&mut self) {
        self.deadline = None;
    }

    pub(super) fn dlab(&self) -> bool {
        self.lcr & reg::LCR_DLAB != 0
    }

    fn send(&mut self, byte: u8) {
        if self.fifo.push(byte) {
            self.empty_told = false;
            self.fifo_changed();
        } else {
            self.overrun = true;
        }
    }

    fn receive(&mut self) -> u8 {
        let Some(byte) = self.fifo.pop() else { return 0 };
        self.empty_told = false;
        self.fifo_changed();
        byte
    }

    fn control_fifo(&mut self, value: u8) {
        let on = value & reg::FCR_ENABLE != 0;
        let room = if on { FIFO as u8 } else { 1 };
        let clear = reg::FCR_CLEAR_RECEIVER | reg::FCR_CLEAR_TRANSMITTER;
        if value & clear != 0 || room != self.fifo.room {
            self.empty_told &= self.fifo.count == 0;
            self.fifo.clear();
        }
        self.fcr = value;
        self.fifo.room = room;
        self.fifo.trigger = TRIGGERS[if on { usize::from(value >> 6) } else { 0 }];
        self.fifo_changed();
    }

    fn fifo_changed(&mut self) {
        self.timed_out = false;
        self.deadline = None;
    }

    /// The interrupt with the highest priority.
    fn identify(&mut self) -> u8 {
        let waiting = self.waiting();
        let first = if waiting & reg::IER_LINE != 0 {
            reg::IIR_LINE
        } else if waiting & reg::IER_DATA != 0 {
            if self.fifo.reached() { reg::IIR_DATA } else { reg::IIR_TIMEOUT }
        } else if waiting & reg::IER_EMPTY != 0 {
            self.empty_told = true;
            reg::IIR_EMPTY
        } else if waiting & reg::IER_MODEM != 0 {
            reg::IIR_MODEM
        } else {
            reg::IIR_NONE
        };
        if self.fifo.room == 1 { first } else { first | reg::IIR_FIFO }
    }

    fn line_status(&mut self) -> u8 {
        let mut status = match self.fifo.count {
            0 => reg::LSR_THR_EMPTY | reg::LSR_EMPTY,
            _ => reg::LSR_DATA,
        };
        if std::mem::take(&mut self.overrun) {
            status |= reg::LSR_OVERRUN;
        }
        status
    }

    /// The upper half of the modem status: what is plugged in, or with
    /// [`reg::MCR_LOOP`] the port's own outputs.
    fn lines(&self) -> u8 {
        let on = |when: bool, line| if when { line } else { 0 };
        if self.mcr & reg::MCR_LOOP != 0 {
            return on(self.mcr & reg::MCR_RTS != 0, reg::MSR_CTS)
                | on(self.mcr & reg::MCR_DTR != 0, reg::MSR_DSR)
                | on(self.mcr & reg::MCR_OUT1 != 0, reg::MSR_RI)
                | on(self.mcr & reg::MCR_OUT2 != 0, reg::MSR_DCD);
        }
        let full = self.mcr & reg::MCR_AFE != 0 && self.fifo.count >= self.fifo.room;
        reg::MSR_DSR | reg::MSR_DCD | on(!full, reg::MSR_CTS)
    }

    /// Does something, and keeps what it changed of the modem's lines until that is
    /// read. The end of a ring counts, not its beginning.
    fn watching_lines<T>(&mut self, act: impl FnOnce(&mut Port) -> T) -> T {
        let before = self.lines();
        let result = act(self);
        let differ = before ^ self.lines();
        let counts = differ & (before | !reg::MSR_RI);
        self.changed |= counts >> 4;
        result
    }

    /// How long four bytes take on the line, with start, parity and stop bits.
    fn four_bytes(&self) -> Duration {
        let bit = |mask: u8| u64::from(self.lcr & mask != 0);
        let bits = 1 + 5 + u64::from(self.lcr & 3) + bit(1 << 3) + 1 + bit(1 << 2);
        let steps = 4 * bits * 16 * u64::from(self.divisor.max(1));
        Duration::from_nanos(steps * 1_000_000_000 / CLOCK)
    }
}
