//! The contract of every model.

use abi::errno::Errno;
use crc32c::crc32c_append;
use device::{
    Bus, Contract, Description, Digest, Migratable, PrecopyInfo, Runner, Settle,
    StateArc, Work, contract,
};
use states::v2::{Capabilities, State};
use std::time::Instant;
use vfio_migrate_models::uart::registers as reg;
use vfio_migrate_models::uart::{BAR0, BAR1, CONFIG, Parameters, Uart};

/// A card whose state has a checksum behind it. The contract wants every flipped bit
/// refused, and mtty's format cannot do that: which ones it refuses is the matter of
/// `state.rs`. All else in the contract is for the card itself.
struct Sealed {
    uart: Uart,
    stopped: bool,
    sum: u32,
    /// Bytes of the checksum that were saved.
    sealed: usize,
    /// What was loaded last: the checksum, if no more comes.
    tail: Vec<u8>,
    /// Whether it may be loaded.
    resuming: bool,
}

const SEAL: usize = 4;

impl Sealed {
    fn boxed(parameters: Parameters) -> Box<dyn Migratable> {
        Box::new(Sealed {
            uart: Uart::new(parameters).unwrap(),
            stopped: false,
            sum: 0,
            sealed: 0,
            tail: Vec::new(),
            resuming: false,
        })
    }
}

impl Migratable for Sealed {
    fn describe(&self) -> Description {
        self.uart.describe()
    }

    fn read(&mut self, region: u32, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.uart.read(region, offset, into)
    }

    fn write(
        &mut self,
        region: u32,
        offset: u64,
        data: &[u8],
        bus: &mut dyn Bus,
    ) -> Result<(), Errno> {
        self.uart.write(region, offset, data, bus)
    }

    fn reset(&mut self) {
        self.stopped = false;
        self.resuming = false;
        self.uart.reset();
    }

    fn enter(&mut self, arc: StateArc, bus: &mut dyn Bus) -> Result<Settle, Errno> {
        let session = states::v2::session(arc.from, arc.to);
        if session == states::v2::Session::OpensSave {
            (self.sum, self.sealed) = (0, 0);
        }
        self.tail.clear();
        self.resuming = arc.to == State::Resuming;
        self.stopped = arc.to == State::StopCopy;
        if self.resuming {
            self.sum = 0;
        }
        self.uart.enter(arc, bus)
    }

    fn save(&mut self, into: &mut [u8]) -> Result<usize, Errno> {
        let saved = self.uart.save(into)?;
        self.sum = crc32c_append(self.sum, &into[..saved]);
        if saved > 0 || !self.stopped {
            return Ok(saved);
        }
        let seal = self.sum.to_le_bytes();
        let len = (SEAL - self.sealed).min(into.len());
        into[..len].copy_from_slice(&seal[self.sealed..self.sealed + len]);
        self.sealed += len;
        // The sum is over what the card saved, which is over.
        Ok(len)
    }

    fn precopy_info(&mut self) -> Result<PrecopyInfo, Errno> {
        self.uart.precopy_info()
    }

    fn stop_copy_bytes(&self) -> u64 {
        self.uart.stop_copy_bytes() + SEAL as u64
    }

    fn load(&mut self, data: &[u8]) -> Result<(), Errno> {
        if !self.resuming {
            return self.uart.load(data);
        }
        self.tail.extend_from_slice(data);
        let rest = self.tail.split_off(self.tail.len().saturating_sub(SEAL));
        let whole = std::mem::replace(&mut self.tail, rest);
        self.sum = crc32c_append(self.sum, &whole);
        self.uart.load(&whole)
    }

    fn loaded(&mut self) -> Result<(), Errno> {
        if self.tail[..] != self.sum.to_le_bytes() {
            return Err(Errno::EINVAL);
        }
        self.uart.loaded()
    }

    fn work(&mut self, bus: &mut dyn Bus, now: Instant) -> Work {
        self.uart.work(bus, now)
    }

    fn digest(&self) -> Option<Digest> {
        self.uart.digest()
    }
}

/// Bytes on their way, both ports with all interrupts on, and registers of all kinds.
fn exercise(runner: &mut Runner, round: u32) {
    let round = round as u8;
    for bar in [BAR0, BAR1] {
        let mut write = |register, value| {
            // The second port is not on every card.
            let _ = runner.write_region(bar, register, &[value]);
        };
        write(reg::FCR, 0x81);
        write(reg::LCR, 0x83);
        write(reg::DATA, 12 + round);
        write(reg::LCR, 0x03);
        write(reg::IER, 0x0f);
        write(reg::SCR, round);
        write(reg::MCR, if round.is_multiple_of(2) { 0x0b } else { 0x1b });
        for n in 0..=round % 20 {
            write(reg::DATA, n ^ 0x55 ^ round);
        }
        let mut bytes = [0; 8];
        let _ = runner.read_region(bar, reg::DATA, &mut bytes[..1 + bar as usize]);
    }
    runner.write_region(CONFIG, 0x10, &[0xff; 4]).unwrap();
}

#[test]
fn the_card_keeps_the_contract_with_every_capability_set() {
    for ports in [1, 2] {
        for (capabilities, pairs) in Capabilities::EVERY.into_iter().zip([32, 40, 40, 56])
        {
            let parameters = Parameters { ports, capabilities };
            let report = Contract::new(|| Sealed::boxed(parameters))
                .exercise(exercise)
                .check()
                .unwrap();
            assert_eq!((report.capabilities, report.pairs), (capabilities, pairs));
            assert_eq!(report.state_bytes, 24 + 36 * ports as usize + SEAL);
            assert_eq!(report.checks.len(), if capabilities.pre_copy() { 6 } else { 5 });
        }
    }
}

#[test]
fn an_idle_card_breaks_the_contract() {
    for capabilities in Capabilities::EVERY {
        let parameters = Parameters { ports: 2, capabilities };
        let report = contract(|| Sealed::boxed(parameters)).unwrap();
        assert_eq!(report.state_bytes, 96 + SEAL);
    }
}

#[test]
fn without_a_checksum_only_flipped_bits_break_the_contract() {
    let parameters = Parameters::default();
    let violation = Contract::new(|| Box::new(Uart::new(parameters).unwrap()))
        .exercise(exercise)
        .check()
        .unwrap_err();
    // Pairs, sessions, round trips and truncations come before; this is what is left.
    assert_eq!(violation.check, "corrupt state", "{violation}");
    assert!(violation.what.ends_with("accepted"), "{violation}");
}
