//! A guest with a driver of a serial port, and the account of what it saw.

use std::collections::VecDeque;
use std::time::Instant;

use models::uart::registers as reg;

use super::Place;
use super::wiring::Kind;
use crate::{PATIENCE, expect};

/// The most bytes under way: with 16 the FIFO of mtty reads as empty.
const MOST: usize = 15;

/// What a guest leaves undone as it is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// Whatever it was at.
    AsItIs,
    /// An interrupt that it has not taken.
    Pending,
    /// Interrupts whose bytes it has read without them: three messages, or a line that
    /// is up for nothing.
    Overtaken,
    /// A handler that has read one byte of three.
    InService,
}

impl Leave {
    pub(crate) fn of(hop: usize) -> Leave {
        [Leave::Pending, Leave::Overtaken, Leave::InService, Leave::AsItIs][hop % 4]
    }

    /// What a drain must find then.
    pub(crate) fn drained(self, kind: Kind) -> Option<u64> {
        match (self, kind) {
            (Leave::AsItIs, _) => None,
            (Leave::Overtaken, Kind::Msi) => Some(3),
            (Leave::InService, Kind::Msi) => Some(0),
            // The line is up until it is acknowledged.
            (Leave::Pending, _) | (_, Kind::Intx) => Some(1),
        }
    }
}

/// Everything here is the guest's own, and moves with it.
#[derive(Debug)]
pub(crate) struct Guest {
    kind: Kind,
    random: u32,
    /// The bytes in the port, as it must have them.
    fifo: VecDeque<u8>,
    /// Whether mtty keeps its line back.
    masked: bool,
    /// In the middle of a handler.
    in_service: bool,
    /// Steps for which it takes no interrupt.
    deaf: u32,
    sent: u64,
    received: u64,
    /// Bytes that had to be signalled, and were, one by one.
    provoked: u64,
    /// Interrupts that were handled to their end, and those of them without a byte.
    handled: u64,
    empty: u64,
    /// Bytes that this handler has read.
    read: u64,
}

impl Guest {
    pub(crate) fn new(kind: Kind) -> Guest {
        Guest {
            kind,
            random: 1,
            fifo: VecDeque::new(),
            masked: false,
            in_service: false,
            deaf: 0,
            sent: 0,
            received: 0,
            provoked: 0,
            handled: 0,
            empty: 0,
            read: 0,
        }
    }

    /// Turns the FIFO and its interrupts on.
    pub(crate) fn program(&mut self, at: &Place) -> Result<(), String> {
        let line = at.line();
        line.write(reg::IER, 0)?;
        line.write(reg::LCR, 0x03)?;
        let clear = reg::FCR_CLEAR_RECEIVER | reg::FCR_CLEAR_TRANSMITTER;
        line.write(reg::FCR, reg::FCR_ENABLE | clear)?;
        line.write(reg::IER, reg::IER_DATA)?;
        expect("signals before the first byte", at.wiring.look()?, 0)
    }

    /// It goes on somewhere else, where no mask is known of but what the VMM put there.
    pub(crate) fn arrive(&mut self, at: &Place) -> Result<(), String> {
        self.masked = at.wiring.arrive(self.in_service)?;
        Ok(())
    }

    /// Writes a byte. Whether mtty must signal it is known before.
    pub(crate) fn send(&mut self, at: &Place) -> Result<(), String> {
        // The difference between two of them tells how many are missing.
        let byte = (self.sent.wrapping_mul(7) & 0xff) as u8;
        let provokes = self.fifo.is_empty() && !self.masked;
        at.line().write(reg::DATA, byte)?;
        self.fifo.push_back(byte);
        self.sent += 1;
        if at.kernel {
            let what = format!("signals of byte {} of the guest", self.sent);
            expect(what, at.wiring.look()?, u64::from(provokes))?;
            self.provoked += u64::from(provokes);
            self.masked |= provokes && self.kind == Kind::Intx;
        }
        Ok(())
    }

    /// Reads a byte, which must be the next one.
    fn receive(&mut self, at: &Place) -> Result<bool, String> {
        let line = at.line();
        let there = line.read(reg::LSR)? & reg::LSR_DATA != 0;
        let Some(&expected) = self.fifo.front() else {
            return match there {
                false => Ok(false),
                true => Err(format!(
                    "byte {:#04x}, of which all had been read",
                    line.read(reg::DATA)?
                )),
            };
        };
        if !there {
            return Err(format!("{} bytes are gone", self.fifo.len()));
        }
        let what = format!("byte {} that the guest read", self.received + 1);
        expect(what, line.read(reg::DATA)?, expected)?;
        self.fifo.pop_front();
        self.received += 1;
        Ok(true)
    }

    /// Takes an interrupt, where there is one.
    fn enter(&mut self, at: &Place) -> Result<bool, String> {
        if !self.in_service && at.wiring.take()? {
            self.in_service = true;
            self.read = 0;
        }
        Ok(self.in_service)
    }

    /// One step of the handler: a byte, or with the last one the acknowledgement.
    fn handle(&mut self, at: &Place) -> Result<(), String> {
        if self.receive(at)? {
            self.read += 1;
            return Ok(());
        }
        at.wiring.acknowledge()?;
        self.in_service = false;
        self.masked = false;
        self.handled += 1;
        self.empty += u64::from(self.read == 0);
        Ok(())
    }

    /// Does one thing.
    pub(crate) fn step(&mut self, at: &Place) -> Result<(), String> {
        self.deaf = self.deaf.saturating_sub(1);
        // Numerical Recipes' generator: any will do that does not repeat soon.
        self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let dice = self.random >> 24;
        if self.deaf == 0 && dice < 160 && self.enter(at)? {
            return self.handle(at);
        }
        match dice {
            // Interrupts off for a while.
            0..8 => self.deaf = 20,
            // A driver that looks by itself, too.
            8..24 => drop(self.receive(at)?),
            _ if self.fifo.len() < MOST => self.send(at)?,
            _ => self.deaf = 0,
        }
        Ok(())
    }

    /// Handles what is there, by interrupts alone, until nothing is.
    pub(crate) fn settle(&mut self, at: &Place) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        self.deaf = 0;
        loop {
            if self.enter(at)? {
                self.handle(at)?;
            } else if self.fifo.is_empty() {
                return Ok(());
            } else if at.kernel || Instant::now() > until {
                return Err(format!("nobody tells of {} bytes", self.fifo.len()));
            }
        }
    }

    /// Brings it where it shall be stopped.
    pub(crate) fn leave(&mut self, at: &Place, leave: Leave) -> Result<(), String> {
        if leave == Leave::AsItIs {
            return Ok(());
        }
        self.settle(at)?;
        self.send(at)?;
        match leave {
            Leave::AsItIs | Leave::Pending => Ok(()),
            Leave::Overtaken => {
                for _ in 0..2 {
                    self.receive(at)?;
                    self.send(at)?;
                }
                self.receive(at).map(drop)
            }
            Leave::InService => {
                self.send(at)?;
                self.send(at)?;
                let until = Instant::now() + PATIENCE;
                while !self.enter(at)? {
                    if Instant::now() > until {
                        return Err("no interrupt to take".to_owned());
                    }
                }
                self.handle(at)
            }
        }
    }

    /// What it saw, in words.
    pub(crate) fn told(&self) -> String {
        let Guest { sent, provoked, handled, empty, kind, .. } = self;
        format!(
            "{sent} bytes in order, {provoked} provoked an interrupt, {handled} {} \
             handled, {empty} of them late",
            match kind {
                Kind::Intx => "rises of the line",
                Kind::Msi => "messages",
            }
        )
    }

    pub(crate) fn provoked(&self) -> u64 {
        self.provoked
    }

    pub(crate) fn handled(&self) -> u64 {
        self.handled
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }
}
