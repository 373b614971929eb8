//! MSI without a driver: one address and one number for all vectors, of which the vector
//! is the lowest bits. It is pointed at the reserved memory, where it shows.
//!
//! QEMU keeps masks and pending bits by itself, as for MSI-X.

use abi::pci::capability::msi;
use abi::pci::config::Command;
use models::accel::registers as reg;
use models::accel::{MSI, VECTORS};

use super::device::Device;
use super::memory::Memory;
use crate::{Found, expect, wait_for};

/// Where all vectors write, in the reserved memory.
const PLACE: u64 = 0xf1_0000;
/// What vector n writes is this and n.
const DATA: u16 = 0x6160;

const AT: u16 = MSI as u16;
const CONTROL: u16 = AT + msi::CONTROL;
/// The mask of each vector, behind an address of 64 bits and the data.
const MASKS: u16 = AT + 16;

/// On, with room for so many vectors as a power of two, for as long as `during` takes.
fn enabled(
    device: &Device,
    memory: &Memory,
    room: u16,
    during: impl FnOnce() -> Found,
) -> Found {
    let address = memory.address(PLACE);
    for (at, value) in [
        (msi::ADDRESS_LOW, address as u16),
        (msi::ADDRESS_LOW + 2, (address >> 16) as u16),
        (msi::ADDRESS_HIGH, (address >> 32) as u16),
        (msi::ADDRESS_HIGH + 2, (address >> 48) as u16),
        (msi::DATA_64, DATA),
    ] {
        device.set_config_u16(AT + at, value)?;
        expect(format!("MSI at {at:#x}"), device.config_u16(AT + at)?, value)?;
    }
    // The driver of the line takes this away when it is closed.
    device.set_command(Command::BUS_MASTER, Command::empty())?;
    // What came while messages were off.
    device.set_register(reg::INTERRUPTS, u64::MAX)?;
    memory.write(PLACE, &[0; 4])?;
    let on = room << 4 | msi::CONTROL_ENABLE;
    device.set_config_u16(CONTROL, on)?;
    expect("MSI control", device.config_u16(CONTROL)? & 0x71, on)?;
    let found = during();
    device.set_config_u16(CONTROL, 0)?;
    found
}

/// Waits for what a vector writes, and clears it.
fn take(memory: &Memory, vector: u64) -> Result<(), String> {
    wait_for(&format!("vector {vector}"), || Ok(memory.word(PLACE)? != 0))?;
    expect(
        format!("what vector {vector} wrote"),
        memory.word(PLACE)?,
        u32::from(DATA) | vector as u32,
    )?;
    memory.write(PLACE, &[0; 4])
}

/// Raises a vector, and takes the message it goes by.
fn goes_by(
    device: &Device,
    memory: &Memory,
    vector: u64,
    sent: u64,
) -> Result<(), String> {
    let before = device.register(reg::IRQ_SENT + 8 * sent)?;
    device.interrupt(memory, vector)?;
    take(memory, sent)?;
    let after = device.register(reg::IRQ_SENT + 8 * sent)?;
    expect(format!("IRQ_SENT of {sent}"), after, before + 1)
}

/// Every vector arrives as itself.
pub(crate) fn check_vectors(device: &Device, memory: &Memory) -> Found {
    enabled(device, memory, 3, || {
        for vector in [0, 5, 0, VECTORS - 1] {
            goes_by(device, memory, vector, vector)?;
        }
        expect("INTERRUPTS", device.register(reg::INTERRUPTS)?, 0)?;
        Ok(format!("vectors 0, 5, 0, {}", VECTORS - 1))
    })
}

/// With room for two vectors and for one, the others go by the first.
pub(crate) fn check_room(device: &Device, memory: &Memory) -> Found {
    for (room, vectors) in [(1, 2), (0, 1)] {
        enabled(device, memory, room, || {
            for vector in [1, 0, 6] {
                let sent = if vector < vectors { vector } else { 0 };
                goes_by(device, memory, vector, sent)?;
            }
            Ok(String::new())
        })?;
    }
    Ok("what has no room goes by vector 0".to_owned())
}

/// A masked vector is kept, and comes once when it is unmasked.
pub(crate) fn check_mask(device: &Device, memory: &Memory) -> Found {
    enabled(device, memory, 3, || {
        goes_by(device, memory, 5, 5)?;
        device.set_config_u16(MASKS, 1 << 5)?;
        device.interrupt(memory, 5)?;
        device.interrupt(memory, 5)?;
        // Another one comes after it, so it would have come by now.
        goes_by(device, memory, 2, 2)?;
        device.set_config_u16(MASKS, 0)?;
        take(memory, 5)?;
        // It came once for both, and comes again for the next.
        goes_by(device, memory, 5, 5)?;
        expect("the word of all", memory.word(PLACE)?, 0)?;
        Ok("kept while masked, delivered when unmasked".to_owned())
    })
}
