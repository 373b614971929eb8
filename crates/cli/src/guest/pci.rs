//! What the guest makes of a function on its bus, and remembers of it: the part of a
//! driver that is the same for every device.
//!
//! ```text
//!   boot:  [sizes] how large each BAR is --> [addresses] where it goes --> decoding on
//!          [vectors] messages or a line --> the interrupt controller
//!   work:  [vectors] masks and unmasks what interrupts it, [moves] gives BARs new places
//! ```
//!
//! All of it is done by accesses to the bus, and what is known of addresses is here, in
//! the vCPU's registers: a device that arrives with other addresses, masks or messages
//! than it left with is a device that its driver does not find.

mod account;
mod addresses;
mod moves;
mod sizes;
#[cfg(test)]
mod tests;
mod vectors;

use abi::pci::config;
use anyhow::{Context, Result, bail};
use control::pci::FunctionError;
use serde::{Deserialize, Serialize};

pub(super) use addresses::Addresses;
pub(super) use vectors::{Came, Vectors};

use super::board::Board;
use super::bus::{Bus, Space};
use super::options::InterruptKind;

/// How many places each BAR has to go round.
const PLACES: u64 = 4;

/// What the driver of one function remembers of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pci {
    /// Where it sits on the bus.
    slot: usize,
    /// Its BARs, by their numbers.
    bars: Vec<Bar>,
    /// How it interrupts.
    pub(super) vectors: Vectors,
    /// When a BAR moves next, by the guest's timer, in nanoseconds.
    move_at: u64,
    /// How often one has moved.
    pub(super) moves: u64,
}

/// One BAR, and where it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bar {
    number: u8,
    /// Whether it is in the space of ports.
    ports: bool,
    /// Whether its address has 64 bits, and a second register.
    wide: bool,
    bytes: u64,
    /// The first of its places, which lie one behind the other.
    base: u64,
    /// Which of them it is at.
    place: u64,
}

impl Bar {
    fn address(&self) -> u64 {
        self.base + self.place * self.bytes
    }

    /// What its register holds at an address.
    fn write(&self, bus: &Bus, slot: usize) -> Result<(), FunctionError> {
        let at = config::BAR0 + 4 * u16::from(self.number);
        let [low, high] = halves(self.address());
        bus.config_write(slot, at, &low.to_le_bytes())?;
        if self.wide {
            bus.config_write(slot, at + 4, &high.to_le_bytes())?;
        }
        Ok(())
    }

    fn fits(&self) -> bool {
        let end =
            self.bytes.checked_mul(PLACES).and_then(|all| all.checked_add(self.base));
        u16::from(self.number) < config::BARS
            && self.bytes.is_power_of_two()
            && self.place < PLACES
            && end.is_some()
    }
}

/// The halves of an address, the lower one first.
fn halves(address: u64) -> [u32; 2] {
    [address as u32, (address >> 32) as u32]
}

/// What a driver has to be told to boot a function.
pub(super) struct Boot<'a> {
    /// The machine.
    pub(super) board: &'a Board,
    /// Where the function sits.
    pub(super) slot: usize,
    /// How it is to interrupt, where that was asked for.
    pub(super) kind: Option<InterruptKind>,
    /// The most vectors that its driver has a use for.
    pub(super) vectors: usize,
}

impl Pci {
    /// The guest finds a function: addresses, decoding, bus mastering, interrupts.
    pub(super) fn boot(boot: &Boot<'_>, addresses: &mut Addresses) -> Result<Pci> {
        let Boot { board, slot, .. } = *boot;
        let bus = &board.bus;
        let command = read_u16(bus, slot, config::COMMAND)?;
        let mut command = config::Command::from_bits_retain(command);
        command.remove(config::Command::IO | config::Command::MEMORY);
        bus.config_write(slot, config::COMMAND, &command.bits().to_le_bytes())?;
        let mut bars = sizes::find(bus, slot)?;
        for bar in &mut bars {
            bar.base =
                addresses.take(bar.ports, bar.wide, bar.bytes).with_context(|| {
                    format!(
                        "no address is left for its BAR{} of {} bytes",
                        bar.number, bar.bytes
                    )
                })?;
            bar.write(bus, slot)?;
            command.insert(match bar.ports {
                true => config::Command::IO,
                false => config::Command::MEMORY,
            });
        }
        command.insert(config::Command::BUS_MASTER);
        let kind = vectors::choose(bus, slot, boot.kind)?;
        // Who interrupts by messages leaves the line alone.
        command.set(config::Command::INTX_DISABLE, kind != InterruptKind::Intx);
        bus.config_write(slot, config::COMMAND, &command.bits().to_le_bytes())?;
        let mut pci =
            Pci { slot, bars, vectors: Vectors::default(), move_at: 0, moves: 0 };
        pci.vectors = vectors::program(boot, &pci, kind)?;
        Ok(pci)
    }

    /// Whether it could be what a driver of the function in that slot remembers, with as
    /// many vectors at most: the guest indexes by it. `most` is more than anything was
    /// ever counted to.
    pub(super) fn fits(&self, slot: usize, vectors: usize, most: u64) -> bool {
        self.slot == slot
            && self.bars.len() <= usize::from(config::BARS)
            && self.bars.iter().all(Bar::fits)
            && self.vectors.fits(vectors, most)
            && self.moves <= most
            && self.move_at <= most
    }

    fn bar(&self, number: u8) -> Option<&Bar> {
        self.bars.iter().find(|bar| bar.number == number)
    }

    /// Where a BAR is.
    pub(super) fn address(&self, number: u8) -> Option<u64> {
        self.bar(number).map(Bar::address)
    }

    /// The guest's way to the BARs.
    pub(super) fn reach<'a>(&'a self, bus: &'a Bus) -> Reach<'a> {
        Reach { bus, pci: self }
    }
}

/// How a driver reaches the BARs of its function: by the addresses that it knows.
#[derive(Clone, Copy)]
pub(super) struct Reach<'a> {
    bus: &'a Bus,
    pci: &'a Pci,
}

impl Reach<'_> {
    /// Where in which space an offset of a BAR is; a BAR that was never found is nowhere.
    fn at(&self, bar: u8, offset: u64) -> (Space, u64) {
        match self.pci.bar(bar) {
            Some(bar) if bar.ports => (Space::Ports, bar.address().wrapping_add(offset)),
            Some(bar) => (Space::Memory, bar.address().wrapping_add(offset)),
            None => (Space::Memory, u64::MAX),
        }
    }

    /// Reads.
    pub(super) fn read(
        &self,
        bar: u8,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), FunctionError> {
        let (space, at) = self.at(bar, offset);
        self.bus.read(space, at, into)
    }

    /// Writes.
    pub(super) fn write(
        &self,
        bar: u8,
        offset: u64,
        from: &[u8],
    ) -> Result<(), FunctionError> {
        let (space, at) = self.at(bar, offset);
        self.bus.write(space, at, from)
    }

    /// Writes several times, in order.
    pub(super) fn write_all(
        &self,
        bar: u8,
        writes: &[(u64, &[u8])],
    ) -> Result<(), FunctionError> {
        let (space, at) = self.at(bar, 0);
        self.bus.write_all(space, at, writes)
    }
}

fn read_u8(bus: &Bus, slot: usize, at: u16) -> Result<u8, FunctionError> {
    let mut bytes = [0];
    bus.config_read(slot, at, &mut bytes)?;
    Ok(bytes[0])
}

fn read_u16(bus: &Bus, slot: usize, at: u16) -> Result<u16, FunctionError> {
    let mut bytes = [0; 2];
    bus.config_read(slot, at, &mut bytes)?;
    Ok(u16::from_le_bytes(bytes))
}

fn read_u32(bus: &Bus, slot: usize, at: u16) -> Result<u32, FunctionError> {
    let mut bytes = [0; 4];
    bus.config_read(slot, at, &mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// Where a capability is, if the function has it.
fn capability(
    bus: &Bus,
    slot: usize,
    wanted: abi::pci::capability::CapabilityId,
) -> Result<Option<u16>> {
    use abi::pci::capability;
    let status = read_u16(bus, slot, config::STATUS)?;
    let list = config::Status::from_bits_retain(status);
    if !list.contains(config::Status::CAPABILITY_LIST) {
        return Ok(None);
    }
    let mut at = read_u8(bus, slot, config::CAPABILITY_LIST)? & !3;
    // As many as there is room for.
    for _ in 0..(config::SIZE - config::HEADER_END) / 4 {
        let here = u16::from(at);
        if here == 0 {
            return Ok(None);
        }
        if read_u8(bus, slot, here + capability::ID)? == wanted.0 {
            return Ok(Some(here));
        }
        at = read_u8(bus, slot, here + capability::NEXT)? & !3;
    }
    bail!("its list of capabilities runs in circles");
}
