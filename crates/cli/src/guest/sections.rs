//! State of the VMM's own, as it travels: registers, the interrupt controller, the timer.
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
use super::controller::State;
use super::vcpu::{Registers, locked};

/// The version of the registers: since 3, they have what the guest made of its bus, since 4
/// when a vector was masked and something came.
const REGISTERS: u32 = 4;
/// The version of the interrupt controller: since 3, it is one.
const CONTROLLER: u32 = 3;
/// The version of the timer.
const TIMER: u32 = 2;
/// The longest section, in bytes.
const LONGEST: u64 = 64 << 10;

/// The sections of a machine, in the order in which both sides have them.
pub(super) fn all(board: &Arc<Board>) -> Vec<Box<dyn Section>> {
    let mut sections: Vec<Box<dyn Section>> = Vec::new();
    for vcpu in 0..board.vcpus.len() {
        let name = format!("vcpu{vcpu}");
        sections.push(Box::new(Vcpu { board: Arc::clone(board), vcpu, name }));
    }
    sections.push(Box::new(Interrupts(Arc::clone(board))));
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
        REGISTERS
    }

    fn order(&self) -> Order {
        Order::BeforeDevices
    }

    fn save(&mut self, into: &mut dyn Write) -> Result<(), VmmError> {
        write(&self.name, &*locked(&self.board.vcpus[self.vcpu]), into)
    }

    fn load(&mut self, version: u32, from: &mut dyn Read) -> Result<(), VmmError> {
        let registers: Registers = read(&self.name, (version, REGISTERS), from)?;
        fits(&self.board, self.vcpu, &registers)
            .map_err(|error| VmmError::new(self.name.as_str(), "load", error))?;
        let shown = &self.board.shown[self.vcpu];
        shown.next.store(registers.next, Ordering::Release);
        shown.gap_ns.store(0, Ordering::Release);
        // Another host's clock may be ahead of this one's: then there is no gap to see.
        let left = registers.active_ns.clamp(1, now_ns());
        shown.arrived_ns.store(left, Ordering::Release);
        for driver in &registers.drivers {
            self.board.devices[driver.device].show(driver);
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
    if !registers.drivers.iter().map(|driver| driver.device).eq(mine) {
        return Err(Bad::Unfit("other devices"));
    }
    for driver in &registers.drivers {
        if !board.devices[driver.device].fits(driver, most) {
            return Err(Bad::Unfit("a driver that is not this device's"));
        }
    }
    Ok(())
}

/// The interrupt controller: which message is which, and what was handled.
struct Interrupts(Arc<Board>);

impl Section for Interrupts {
    fn name(&self) -> &str {
        "interrupts"
    }

    fn version(&self) -> u32 {
        CONTROLLER
    }

    fn order(&self) -> Order {
        Order::BeforeDevices
    }

    fn save(&mut self, into: &mut dyn Write) -> Result<(), VmmError> {
        write(self.name(), &self.0.controller.state(), into)
    }

    fn load(&mut self, version: u32, from: &mut dyn Read) -> Result<(), VmmError> {
        let state: State = read(self.name(), (version, CONTROLLER), from)?;
        if self.0.controller.restore(state) {
            return Ok(());
        }
        let bad = Bad::Unfit("interrupts of another machine");
        Err(VmmError::new(self.name(), "load", bad))
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
        TIMER
    }

    fn order(&self) -> Order {
        Order::AfterDevices
    }

    fn save(&mut self, into: &mut dyn Write) -> Result<(), VmmError> {
        write(self.name(), &Nanoseconds { ran: self.0.timer.now() }, into)
    }

    fn load(&mut self, version: u32, from: &mut dyn Read) -> Result<(), VmmError> {
        let Nanoseconds { ran } = read(self.name(), (version, TIMER), from)?;
        self.0.timer.set(ran);
        Ok(())
    }
}

/// A section that is not taken.
#[derive(Debug, Error)]
enum Bad {
    #[error("version {0}, and this side knows version {1}")]
    Version(u32, u32),
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
    (version, known): (u32, u32),
    from: &mut dyn Read,
) -> Result<T, VmmError> {
    if version != known {
        return Err(VmmError::new(name, "load", Bad::Version(version, known)));
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
    use crate::guest::bus::Bus;
    use crate::guest::device::{Driver, ModelDriver};
    use crate::guest::faults::Faults;
    use crate::guest::layout::Layout;
    use crate::guest::memory::Ram;
    use crate::guest::options::MachineOptions;
    use crate::guest::pci::Pci;

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
        let faults = Arc::<Faults>::default();
        let bus = Bus::new(Vec::new(), Arc::default(), Arc::clone(&faults), |_, _| {});
        Arc::new(Board::new(ram, Vec::new(), bus, faults, &options))
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
            into.load(from.version(), &mut bytes.as_slice()).unwrap();
            assert!(into.load(from.version() + 1, &mut bytes.as_slice()).is_err());
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
            section.load(REGISTERS, &mut bytes.as_slice()).unwrap_err().to_string()
        };
        load(&bad);
        bad = locked(&source.vcpus[0]).clone();
        bad.next = u64::MAX;
        load(&bad);
        bad.next = 3;
        load(&bad);
        bad = locked(&source.vcpus[0]).clone();
        bad.drivers.push(Driver {
            device: 9,
            pci: Pci::default(),
            model: ModelDriver::Accel(AccelDriver {
                window: 0,
                commands: 0,
                stage: Stage::Idle,
                checked: 0,
            }),
        });
        load(&bad);
        assert_eq!(*locked(&destination.vcpus[0]), before);
    }

    #[test]
    fn a_section_without_end_is_refused_at_its_ceiling() {
        let destination = board(1);
        for section in &mut all(&destination) {
            let version = section.version();
            assert!(section.load(version, &mut std::io::repeat(b'[')).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_a_section(bytes in any::<Vec<u8>>(), cut in 0usize..300) {
            let destination = board(1);
            for section in &mut all(&destination) {
                let version = section.version();
                let _ = section.load(version, &mut bytes.as_slice());
                let mut good = saved(&mut **section);
                good.truncate(cut);
                let _ = section.load(version, &mut good.as_slice());
            }
        }
    }
}
