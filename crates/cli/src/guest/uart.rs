//! The guest's driver of a card with serial ports.
//!
//! ```text
//!   sent --> [ FIFO: bytes received .. sent, 1 to 16 of them ] --> received, checked
//!                |
//!                '--> interrupt: 8 bytes or more, or fewer and no other for a while
//! ```
//!
//! What is sent to a port comes back out of it, so each byte follows from its number and
//! is checked when it is read. The driver acts only when the card interrupts it, and
//! always leaves bytes behind, in another number each time: so a port goes on as long as
//! the card loses neither a byte nor an interrupt, and there is no moment at which a
//! migration finds an empty FIFO. Every [`EPOCH`] exchanges the divisor and the format of
//! the line change too.
//!
//! It has no DMA: no memory is mapped to it, so it needs no log of what it wrote.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use control::Transport;
use control::pci::FunctionError;
use models::uart::registers as reg;
use models::uart::{BAR0, FIFO_BYTES, FIFO_SAVED_AT, PORTS_MAX};
use serde::{Deserialize, Serialize};

use super::board::Board;
use super::digests::Digests;
use super::page::mix;
use super::pci::{Came, Pci, Reach};
use super::round::Round;
use crate::report::Problem;

/// Exchanges after which the settings of a line change.
const EPOCH: u64 = 32;
/// As many bytes interrupt at once.
const TRIGGER: u64 = 8;
/// The FIFO is on, and interrupts with [`TRIGGER`] bytes.
const FCR: u8 = reg::FCR_ENABLE | 0x80;
/// What the driver's ports put out. Flow control makes a full FIFO seen on the line.
const MCR: u8 = reg::MCR_DTR | reg::MCR_RTS | reg::MCR_OUT2 | reg::MCR_AFE;

/// A card as the guest drives it.
pub(super) struct Uart {
    number: usize,
    transport: Arc<dyn Transport>,
    /// A copy of [`Line::sent`] of each port, readable at any time.
    sent: Vec<AtomicU64>,
}

/// What the driver of one card remembers; part of its vCPU's registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UartDriver {
    /// Its ports.
    ports: Vec<Line>,
}

/// One port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// How often bytes were read and others written.
    exchanges: u64,
    /// Bytes that were sent.
    sent: u64,
    /// Bytes that were read again. The others are in the FIFO.
    received: u64,
}

impl Line {
    /// As it is when it was just started: the FIFO is full.
    const STARTED: Line = Line { exchanges: 0, sent: FIFO_BYTES, received: 0 };

    fn held(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }

    /// How many bytes the next exchange of a port reads, and how many it writes then. At
    /// least one is left. No two ports do the same, or what goes wrong only with some
    /// number of bytes would go wrong in all of them or in none.
    fn next(&self, device: usize, port: usize) -> (u64, u64) {
        let random = mix(self.exchanges ^ of(device, port));
        let reads = 1 + random % self.held().max(1);
        let room = FIFO_BYTES - (self.held() - reads);
        (reads, 1 + (random >> 32) % room)
    }

    fn divisor(&self) -> u16 {
        1 + (self.exchanges / EPOCH % 3) as u16
    }

    /// Eight bits, with or without parity and a second stop bit.
    fn lcr(&self) -> u8 {
        [0x03, 0x0b, 0x07, 0x1f][(self.exchanges / EPOCH % 4) as usize]
    }

    fn scr(&self) -> u8 {
        self.exchanges as u8
    }

    fn fits(&self, most: u64) -> bool {
        let held = self.sent.checked_sub(self.received);
        held.is_some_and(|held| (1..=FIFO_BYTES).contains(&held))
            && self.sent <= most
            && self.exchanges <= most
    }
}

/// What makes a port another than all others, in bits that nothing is counted up to.
fn of(device: usize, port: usize) -> u64 {
    (device as u64) << 56 ^ (port as u64) << 48
}

/// The byte with that number. Which device and port it is for is part of it, so that
/// bytes of another are seen at once.
fn byte(device: usize, port: usize, number: u64) -> u8 {
    mix(number ^ of(device, port)) as u8
}

impl Uart {
    /// Opens the driver's way to a card, changing nothing.
    pub(super) fn open(number: usize, transport: Arc<dyn Transport>) -> Result<Uart> {
        let mut sent = Vec::new();
        for bar in (BAR0..).take(PORTS_MAX as usize) {
            let info = transport.region_info(bar).context("ask for its ports")?;
            if info.size > 0 {
                sent.push(AtomicU64::new(Line::STARTED.sent));
            }
        }
        if sent.is_empty() {
            bail!("it has no port");
        }
        Ok(Uart { number, transport, sent })
    }

    /// The driver sets all ports up and fills their FIFOs. Only a `busy` guest has
    /// itself interrupted.
    pub(super) fn start(&self, reach: Reach<'_>, busy: bool) -> Result<()> {
        let line = Line::STARTED;
        for port in 0..self.sent.len() {
            let mut writes = line_settings(&line);
            let clear = reg::FCR_CLEAR_RECEIVER | reg::FCR_CLEAR_TRANSMITTER;
            writes.push((reg::FCR, FCR | clear));
            writes.extend([(reg::FCR, FCR), (reg::MCR, MCR), (reg::SCR, line.scr())]);
            let bytes = line.received..line.sent;
            writes.extend(bytes.map(|n| (reg::DATA, byte(self.number, port, n))));
            writes.push((reg::IER, if busy { reg::IER_DATA } else { 0 }));
            write(reach, port, &writes)
                .with_context(|| format!("{}: registers", self.transport.name()))?;
        }
        Ok(())
    }

    /// What its driver knows once it was started.
    pub(super) fn driver(&self) -> UartDriver {
        UartDriver { ports: vec![Line::STARTED; self.sent.len()] }
    }

    /// Whether registers could be those of this card's driver.
    pub(super) fn fits(&self, driver: &UartDriver, most: u64) -> bool {
        driver.ports.len() == self.sent.len()
            && driver.ports.iter().all(|line| line.fits(most))
    }

    /// Lets everybody see how far the driver is.
    pub(super) fn show(&self, driver: &UartDriver) {
        for (shown, line) in self.sent.iter().zip(&driver.ports) {
            shown.store(line.sent, Ordering::Release);
        }
    }

    /// Bytes that were sent to all ports together.
    pub(super) fn moved(&self) -> u64 {
        self.sent.iter().map(|sent| sent.load(Ordering::Acquire)).sum()
    }

    /// What counts the bytes of each FIFO.
    pub(super) fn rounds(&self) -> Vec<Round> {
        let count = |sent: &AtomicU64| sent.load(Ordering::Acquire);
        let round =
            |sent| Round { count: count(sent), lag: 0, pages: 0, blocks: FIFO_BYTES };
        self.sent.iter().map(round).collect()
    }

    /// Where in the card's saved state the oldest byte is that waits in port one, in
    /// bytes.
    pub(super) fn oldest_saved(&self, driver: &UartDriver) -> u64 {
        let received = driver.ports.first().map_or(0, |line| line.received);
        FIFO_SAVED_AT + received % FIFO_BYTES
    }

    /// A vCPU handles an interrupt: every port that has one gets its exchange.
    pub(super) fn drive(
        &self,
        board: &Board,
        pci: &mut Pci,
        driver: &mut UartDriver,
        busy: bool,
    ) -> Result<(), FunctionError> {
        let came = pci.hear(board)?;
        if came == Came::Nothing || !busy {
            return Ok(());
        }
        let reach = pci.reach(&board.bus);
        for (port, line) in driver.ports.iter_mut().enumerate() {
            self.exchange(board, reach, port, line)?;
        }
        // Where a port wants more the line is up again at once.
        if came == Came::Line { pci.end_of_line(board, busy) } else { Ok(()) }
    }

    fn exchange(
        &self,
        board: &Board,
        reach: Reach<'_>,
        port: usize,
        line: &mut Line,
    ) -> Result<(), FunctionError> {
        let iir = read(reach, port, reg::IIR)?;
        if iir == reg::IIR_FIFO | reg::IIR_NONE {
            return Ok(());
        }
        let expect = |what: &str, found: u8, expected: u8| {
            if found != expected {
                let name = self.transport.name();
                board.faults.add(|| {
                    format!(
                        "{name}: port {}, exchange {}: {what} {found:#04x} instead of \
                         {expected:#04x}",
                        port + 1,
                        line.exchanges
                    )
                });
            }
        };
        let reached = line.held() >= TRIGGER;
        let reason = if reached { reg::IIR_DATA } else { reg::IIR_TIMEOUT };
        expect("IIR", iir, reg::IIR_FIFO | reason);
        expect("LSR", read(reach, port, reg::LSR)?, reg::LSR_DATA);
        expect("SCR", read(reach, port, reg::SCR)?, line.scr());
        let (reads, writes) = line.next(self.number, port);
        for number in line.received..line.received + reads {
            let found = read(reach, port, reg::DATA)?;
            expect(&format!("byte {number}"), found, byte(self.number, port, number));
        }
        let next = Line {
            exchanges: line.exchanges + 1,
            sent: line.sent + writes,
            received: line.received + reads,
        };
        let mut out: Vec<(u64, u8)> = (line.sent..next.sent)
            .map(|number| (reg::DATA, byte(self.number, port, number)))
            .collect();
        out.push((reg::SCR, next.scr()));
        if next.exchanges.is_multiple_of(EPOCH) {
            expect("LCR", read(reach, port, reg::LCR)?, line.lcr());
            expect("MCR", read(reach, port, reg::MCR)?, MCR);
            write(reach, port, &[(reg::LCR, line.lcr() | reg::LCR_DLAB)])?;
            let [low, high] = line.divisor().to_le_bytes();
            expect("divisor, low half,", read(reach, port, reg::DATA)?, low);
            expect("divisor, high half,", read(reach, port, reg::IER)?, high);
            out.splice(0..0, line_settings(&next));
        }
        write(reach, port, &out)?;
        *line = next;
        Ok(())
    }

    /// Where the stopped card is not what its driver's registers say.
    pub(super) fn problems(
        &self,
        driver: &UartDriver,
        digests: &Digests,
    ) -> Vec<Problem> {
        let seen = &digests.header.devices[self.number];
        let mut found = Vec::new();
        for (port, line) in driver.ports.iter().enumerate() {
            let bytes: Vec<u8> = (line.received..line.sent)
                .map(|number| byte(self.number, port, number))
                .collect();
            for (what, expected) in [
                ("waiting", line.held()),
                ("fifo", crc32c::crc32c(&bytes).into()),
                ("divisor", line.divisor().into()),
                ("lcr", line.lcr().into()),
                ("mcr", MCR.into()),
                ("scr", line.scr().into()),
            ] {
                let port = port + 1;
                let value = seen.counter(&format!("port{port}_{what}"));
                if value != expected {
                    let place = format!("{what} of port {port} of {}", seen.name);
                    let text = format!("{value:#x} instead of {expected:#x}");
                    found.push(Problem { place, text });
                }
            }
        }
        found
    }
}

fn read(reach: Reach<'_>, port: usize, register: u64) -> Result<u8, FunctionError> {
    let mut byte = [0];
    reach.read(BAR0 as u8 + port as u8, register, &mut byte)?;
    Ok(byte[0])
}

/// Writes registers, in order.
fn write(
    reach: Reach<'_>,
    port: usize,
    writes: &[(u64, u8)],
) -> Result<(), FunctionError> {
    let writes: Vec<(u64, &[u8])> =
        writes.iter().map(|(at, value)| (*at, std::slice::from_ref(value))).collect();
    reach.write_all(BAR0 as u8 + port as u8, &writes)
}

/// The writes that set divisor and format of a line.
fn line_settings(line: &Line) -> Vec<(u64, u8)> {
    let [low, high] = line.divisor().to_le_bytes();
    let dlab = (reg::LCR, line.lcr() | reg::LCR_DLAB);
    vec![dlab, (reg::DATA, low), (reg::IER, high), (reg::LCR, line.lcr())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifo_runs_empty_or_over_between_two_exchanges() {
        for (device, port) in [(0, 0), (0, 1), (15, 1)] {
            let mut levels = std::collections::BTreeSet::new();
            for level in held(device, port).take(10_000) {
                assert!((1..=FIFO_BYTES).contains(&level));
                levels.insert(level);
            }
            // Full, one byte, and all between: below the trigger level and above it.
            assert_eq!(levels.len() as u64, FIFO_BYTES);
        }
    }

    /// How many bytes a port holds after each exchange.
    fn held(device: usize, port: usize) -> impl Iterator<Item = u64> {
        let after = move |line: &Line| {
            let (reads, writes) = line.next(device, port);
            assert!(reads >= 1 && reads <= line.held() && writes >= 1);
            Some(Line {
                exchanges: line.exchanges + 1,
                sent: line.sent + writes,
                received: line.received + reads,
            })
        };
        std::iter::successors(Some(Line::STARTED), after)
            .inspect(|line| assert!(line.fits(u64::MAX), "{line:?}"))
            .map(|line| line.held())
    }

    #[test]
    fn all_fifos_are_full_at_the_same_time() {
        let ports = [(0, 0), (0, 1), (1, 0), (1, 1)];
        let mut all = ports.map(|(device, port)| held(device, port).skip(1));
        let alike = (0..1_000).filter(|_| {
            let levels = all.each_mut().map(|port| port.next().expect("endless"));
            levels.iter().all(|level| *level == levels[0])
        });
        assert!(alike.count() < 10);
    }

    #[test]
    fn registers_that_no_port_can_have_are_taken() {
        let bad = [
            Line { sent: 0, ..Line::STARTED },
            Line { sent: 17, ..Line::STARTED },
            Line { sent: 3, received: 4, ..Line::STARTED },
            Line { sent: u64::MAX, received: u64::MAX - 2, ..Line::STARTED },
            Line { exchanges: u64::MAX, ..Line::STARTED },
        ];
        assert!(Line::STARTED.fits(1 << 40));
        assert!(bad.iter().all(|line| !line.fits(1 << 40)));
    }

    #[test]
    fn bytes_of_two_ports_or_cards_are_alike() {
        let stream = |device, port| (0..64).map(move |n| byte(device, port, n));
        for (device, port) in [(0, 1), (1, 0), (1, 1)] {
            let same = stream(0, 0).zip(stream(device, port)).filter(|(a, b)| a == b);
            assert!(same.count() < 8);
        }
    }
}
