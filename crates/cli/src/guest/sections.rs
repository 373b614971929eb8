//! State of the VMM's own, as it travels: registers, interrupt counters, the timer.
//!
//! What comes in may be anything: it is bounded, parsed, and held against the machine
//! that is here, before any of it is used.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use port::{Order, Section, VmmError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::board::{Board, now_ns};
use super::device::Driver;
use super::lines::VECTORS;
use super::vcpu::{Registers, locked};

/// The version of all sections here.
const VERSION: u32 = 2;
/// The longest section, in bytes.
const LONGEST: u64 = 64 << 10;

/// The sections of a machine, in the order in which both sides have them.
pub(super) fn all(board: &Arc<Board>) -> Vec<Box<dyn Section>> {
    let mut sections: Vec<Box<dyn Section>> = Vec::new();
    for vcpu in 0..board.vcpus.len() {
        let name = format!("vcpu{vcpu}");
        sections.push(Box::new(Vcpu { board: Arc::clone(board), vcpu, name }));
    }
    sections.push(Box::new(Counters(Arc::clone(board))));
    sections.push(Box::new(GuestTimer(Arc::clone(board))));
    sections
}

/// The registers of one vCPU.
struct Vcpu {
    board: Arc<Board>,
    vcpu: usize,
    name: String,
}

impl Section for Vcpu {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> u32 {
        VERSION
    }

    fn order(&self) -> Order {
        Order::BeforeDevices
    }

    fn save(&mut self, into: &mut dyn Write) -> Result<(), VmmError> {
        write(&self.name, &*locked(&self.board.vcpus[self.vcpu]), into)
    }

    fn load(&mut self, version: u32, from: &mut dyn Read) -> Result<(), VmmError> {
        let registers: Registers = read(&self.name, version, from)?;
        fits(&self.board, self.vcpu, &registers)
            .map_err(|error| VmmError::new(self.name.as_str(), "load", error))?;
        let shown = &self.board.shown[self.vcpu];
        shown.next.store(registers.next, Ordering::Release);
        shown.gap_ns.store(0, Ordering::Release);
        // Another host's clock may be ahead of this one's: then there is no gap to see.
        let left = registers.active_ns.clamp(1, now_ns());
        shown.arrived_ns.store(left, Ordering::Release);
        for driver in &registers.drivers {
            self.board.devices[driver.device()].show(driver);
        }
        *locked(&self.board.vcpus[self.vcpu]) = registers;
        Ok(())
    }
}

/// Whether registers could be those of a vCPU of this machine: the guest indexes by
/// them.
fn fits(board: &Board, vcpu: usize, registers: &Registers) -> Result<(), Bad> {
    let layout = board.ram.layout();
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let (vcpu, vcpus) = (number(vcpu), number(board.vcpus.len()));
    let (first, end) = (layout.first_vcpu_page(), layout.pages());
    if !registers.sweep.fits(vcpu, vcpus, first, end) {
        return Err(Bad::Unfit("another order of pages"));
    }
    // Counters that are about to overflow were never reached by counting.
    let most = u64::MAX / 4;
    if !(registers.sweep.pages()..most).contains(&registers.next) {
        return Err(Bad::Unfit("a write that cannot be the next"));
    }
    let mine = (0..board.devices.len()).filter(|n| number(n % vcpus as usize) == vcpu);
    if !registers.drivers.iter().map(Driver::device).eq(mine) {
        return Err(Bad::Unfit("other devices"));
    }
    for driver in &registers.drivers {
        if !board.devices[driver.device()].fits(driver, most) {
            return Err(Bad::Unfit("a driver that is not this device's"));
        }
    }
    Ok(())
}

/// Handled interrupts, by device and vector.
struct Counters(Arc<Board>);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Handled {
    devices: Vec<[u64; VECTORS]>,
}

impl Section for Counters {
    fn name(&self) -> &str {
        "interrupts"
    }

    fn version(&self) -> u32 {
        VERSION
    }

    fn order(&self) -> Order {
        Order::BeforeDevices
    }

    fn save(&mut self, into: &mut dyn Write) -> Result<(), VmmError> {
        let devices = self.0.devices.iter().map(|device| device.lines.handled());
        write(self.name(), &Handled { devices: devices.collect() }, into)
    }

    fn load(&mut self, version: u32, from: &mut dyn Read) -> Result<(), VmmError> {
        let handled: Handled = read(self.name(), version, from)?;
        if handled.devices.len() != self.0.devices.len() {
            let bad = Bad::Unfit("another number of devices");
            return Err(VmmError::new(self.name(), "load", bad));
        }
        for (device, handled) in self.0.devices.iter().zip(handled.devices) {
            device.lines.restore(handled);
        }
        Ok(())
    }
}

/// The timer, which must not tick while the guest is stopped.
struct GuestTimer(Arc<Board>);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nanoseconds {
    ran: u64,
}

impl Section for GuestTimer {
    fn name(&self) -> &str {
        "timer"
    }

    fn version(&self) -> u32 {
        VERSION
    }

    fn order(&self) -> Order {
        Order::AfterDevices
    }

    fn save(&mut self, into: &mut dyn Write) -> Result<(), VmmError> {
        write(self.name(), &Nanoseconds { ran: self.0.timer.now() }, into)
    }

    fn load(&mut self, version: u32, from: &mut dyn Read) -> Result<(), VmmError> {
        let Nanoseconds { ran } = read(self.name(), version, from)?;
        self.0.timer.set(ran);
        Ok(())
    }
}

/// A section that is not taken.
#[derive(Debug, Error)]
enum Bad {
    #[error("version {0}, and this side knows version {VERSION}")]
    Version(u32),
    #[error("longer than {LONGEST} bytes")]
    Long,
    #[error("it has {0}")]
    Unfit(&'static str),
}

fn write<T: Serialize>(
    name: &str,
    state: &T,
    into: &mut dyn Write,
) -> Result<(), VmmError> {
    let bytes =
        serde_json::to_vec(state).map_err(|error| VmmError::new(name, "save", error))?;
    into.write_all(&bytes).map_err(|error| VmmError::new(name, "save", error))
}

fn read<T: DeserializeOwned>(
    name: &str,
    version: u32,
    from: &mut dyn Read,
) -> Result<T, VmmError> {
    if version != VERSION {
        return Err(VmmError::new(name, "load", Bad::Version(version)));
    }
    let mut bytes = Vec::new();
    from.take(LONGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| VmmError::new(name, "load", error))?;
    if bytes.len() as u64 > LONGEST {
        return Err(VmmError::new(name, "load", Bad::Long));
    }
    serde_json::from_slice(&bytes).map_err(|error| VmmError::new(name, "load", error))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;
    use crate::guest::accel::{AccelDriver, Stage};
    use crate::guest::layout::Layout;
    use crate::guest::memory::Ram;
    use crate::guest::options::MachineOptions;

    fn board(seed: u64) -> Arc<Board> {
        let options = MachineOptions {
            memory: 4 << 20,
            devices: Vec::new(),
            vcpus: 2,
            dirty_rate: 1 << 20,
            dma_rate: 0,
            p2p: false,
            seed,
        };
        let ram = Arc::new(Ram::new(Layout::new(options.memory, 0)).unwrap());
        Arc::new(Board::new(ram, Vec::new(), &options))
    }

    fn saved(section: &mut dyn Section) -> Vec<u8> {
        let mut bytes = Vec::new();
        section.save(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn registers_and_timer_arrive_as_they_left() {
        let (source, destination) = (board(1), board(2));
        source.timer.set(77);
        locked(&source.vcpus[1]).active_ns = 1;
        for (from, into) in all(&source).iter_mut().zip(&mut all(&destination)) {
            assert_eq!(from.name(), into.name());
            let bytes = saved(&mut **from);
            into.load(VERSION, &mut bytes.as_slice()).unwrap();
            assert!(into.load(VERSION + 1, &mut bytes.as_slice()).is_err());
        }
        assert_eq!(destination.timer.now(), 77);
        for (ours, theirs) in source.vcpus.iter().zip(&destination.vcpus) {
            assert_eq!(*locked(ours), *locked(theirs));
        }
        assert!(destination.shown[1].arrived_ns.load(Ordering::Acquire) > 0);
    }

    #[test]
    fn registers_of_another_machine_are_refused_and_change_nothing() {
        let (source, destination) = (board(1), board(2));
        let before = locked(&destination.vcpus[0]).clone();
        let mut bad = locked(&source.vcpus[1]).clone();
        let section = &mut all(&destination)[0];
        let mut load = |registers: &Registers| {
            let bytes = serde_json::to_vec(registers).unwrap();
            section.load(VERSION, &mut bytes.as_slice()).unwrap_err().to_string()
        };
        load(&bad);
        bad = locked(&source.vcpus[0]).clone();
        bad.next = u64::MAX;
        load(&bad);
        bad.next = 3;
        load(&bad);
        bad = locked(&source.vcpus[0]).clone();
        bad.drivers.push(Driver::Accel(AccelDriver {
            device: 9,
            window: 0,
            commands: 0,
            stage: Stage::Idle,
            checked: 0,
        }));
        load(&bad);
        assert_eq!(*locked(&destination.vcpus[0]), before);
    }

    #[test]
    fn a_section_without_end_is_refused_at_its_ceiling() {
        let destination = board(1);
        for section in &mut all(&destination) {
            assert!(section.load(VERSION, &mut std::io::repeat(b'[')).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_a_section(bytes in any::<Vec<u8>>(), cut in 0usize..300) {
            let destination = board(1);
            for section in &mut all(&destination) {
                let _ = section.load(VERSION, &mut bytes.as_slice());
                let mut good = saved(&mut **section);
                good.truncate(cut);
                let _ = section.load(VERSION, &mut good.as_slice());
            }
        }
    }
}
