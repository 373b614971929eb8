//! MSI-X without a driver: a message is a write to memory, so the table is pointed at
//! the reserved memory, where it shows.
//!
//! QEMU keeps the table and masks by itself; only its pending bits cannot be seen, since
//! it asks the device for them, which was told of no mask.

use std::time::Duration;

use abi::pci::config::Command;
use models::accel::registers as reg;
use models::accel::{MSIX, VECTORS};

use super::device::Device;
use super::memory::Memory;
use crate::{Found, expect, said, wait_for};

/// Where vector n writes: 4 bytes at this plus `64 * n` in the reserved memory.
const WORDS: u64 = 0xf0_0000;
/// What vector n writes is this and n.
const DATA: u32 = 0x5150_0000;

const CONTROL: u16 = MSIX as u16 + 2;
const ENABLE: u16 = 1 << 15;
const MASK_ALL: u16 = 1 << 14;

fn place(vector: u64) -> u64 {
    WORDS + 64 * vector
}

fn data(vector: u64) -> u32 {
    DATA | vector as u32
}

/// Fills an entry of the table.
fn program(device: &Device, memory: &Memory, vector: u64) -> Result<(), String> {
    memory.write(place(vector), &[0; 4])?;
    let address = memory.address(place(vector));
    for (word, value) in
        [address as u32, (address >> 32) as u32, data(vector), 0].into_iter().enumerate()
    {
        let at = 16 * vector + 4 * word as u64;
        device.bar4.store_u32(at, value).map_err(said("MSI-X table"))?;
        let found = device.bar4.load_u32(at).map_err(said("MSI-X table"))?;
        expect(format!("MSI-X table at {at:#x}"), found, value)?;
    }
    Ok(())
}

fn mask(device: &Device, vector: u64, masked: bool) -> Result<(), String> {
    let at = 16 * vector + 12;
    device.bar4.store_u32(at, masked.into()).map_err(said("MSI-X table"))
}

/// All vectors programmed and enabled for as long as `during` takes.
fn enabled(device: &Device, memory: &Memory, during: impl FnOnce() -> Found) -> Found {
    for vector in 0..VECTORS {
        program(device, memory, vector)?;
    }
    // The driver of the line takes this away when it is closed.
    device.set_command(Command::BUS_MASTER, Command::empty())?;
    // What came while MSI-X was off.
    device.set_register(reg::INTERRUPTS, u64::MAX)?;
    device.set_config_u16(CONTROL, ENABLE)?;
    expect("MSI-X control", device.config_u16(CONTROL)? & ENABLE, ENABLE)?;
    let found = during();
    device.set_config_u16(CONTROL, 0)?;
    found
}

/// Waits for the word of a vector, and clears it.
fn take(memory: &Memory, vector: u64) -> Result<(), String> {
    wait_for(&format!("vector {vector}"), || Ok(memory.word(place(vector))? != 0))?;
    expect(
        format!("what vector {vector} wrote"),
        memory.word(place(vector))?,
        data(vector),
    )?;
    memory.write(place(vector), &[0; 4])
}

fn silent(memory: &Memory) -> Result<(), String> {
    for vector in 0..VECTORS {
        expect(format!("vector {vector}"), memory.word(place(vector))?, 0)?;
    }
    Ok(())
}

/// Every vector arrives as itself, and no other with it.
pub(crate) fn check_vectors(device: &Device, memory: &Memory) -> Found {
    enabled(device, memory, || {
        for vector in [0, 5, 0, VECTORS - 1] {
            let before = device.register(reg::IRQ_SENT + 8 * vector)?;
            device.interrupt(memory, vector)?;
            take(memory, vector)?;
            silent(memory)?;
            let after = device.register(reg::IRQ_SENT + 8 * vector)?;
            expect(format!("IRQ_SENT of {vector}"), after, before + 1)?;
        }
        expect("INTERRUPTS", device.register(reg::INTERRUPTS)?, 0)?;
        Ok(format!("vectors 0, 5, 0, {}", VECTORS - 1))
    })
}

/// A masked vector is kept, and comes once when it is unmasked.
pub(crate) fn check_mask(device: &Device, memory: &Memory) -> Found {
    enabled(device, memory, || {
        let vector = 5;
        device.interrupt(memory, vector)?;
        take(memory, vector)?;
        mask(device, vector, true)?;
        device.interrupt(memory, vector)?;
        device.interrupt(memory, vector)?;
        // Another one comes after it, so it would have come by now.
        device.interrupt(memory, 2)?;
        take(memory, 2)?;
        silent(memory)?;
        mask(device, vector, false)?;
        take(memory, vector)?;
        // It came once for both, and comes again for the next.
        device.interrupt(memory, vector)?;
        take(memory, vector)?;
        silent(memory)?;
        Ok("kept while masked, delivered when unmasked".to_owned())
    })
}

/// The mask over all vectors.
pub(crate) fn check_function_mask(device: &Device, memory: &Memory) -> Found {
    enabled(device, memory, || {
        for vector in [1, 6] {
            device.interrupt(memory, vector)?;
            take(memory, vector)?;
        }
        device.set_config_u16(CONTROL, ENABLE | MASK_ALL)?;
        for vector in [1, 6] {
            device.interrupt(memory, vector)?;
        }
        // Long enough for both to be written where they must not be.
        std::thread::sleep(Duration::from_millis(200));
        silent(memory)?;
        device.set_config_u16(CONTROL, ENABLE)?;
        for vector in [1, 6] {
            take(memory, vector)?;
        }
        silent(memory)?;
        Ok("the same for all vectors at once".to_owned())
    })
}
