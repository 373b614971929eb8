//! DMA in both directions, and where it must not go.

use abi::pci::config::Command;
use models::accel::block::{self, BLOCK, Kind};
use models::accel::registers as reg;
use models::accel::{MAPPED_WINDOW, MEMORY_MIN};

use super::device::{Copy, Device};
use super::memory::Memory;
use crate::{Found, expect, pattern, said, same, wait_for};

/// Odd, and more than any message carries at once.
const BYTES: usize = 300_001;
/// Where in BAR2 it goes: neither aligned nor in the window.
const PLACE: u64 = 1_000_001;

fn copy(kind: u64, iova: u64, offset: u64, bytes: usize) -> Copy {
    Copy { kind, iova, offset, bytes, vector: 7 }
}

/// The device reads guest memory; the CPU looks at BAR2.
pub(crate) fn check_read(device: &Device, memory: &Memory) -> Found {
    let data = pattern(1, BYTES);
    memory.write(13, &data)?;
    device.copy(copy(reg::COPY_TO_DEVICE, memory.address(13), PLACE, BYTES))?;
    // Every byte comes back by DMA below; the first and last ones are looked at here.
    for start in [0, BYTES - 64] {
        for (at, expected) in (start..).zip(&data[start..start + 64]) {
            let found = device.bar2.load_u8(PLACE + at as u64).map_err(said("BAR2"))?;
            expect(format!("byte {at}"), found, *expected)?;
        }
    }
    Ok(format!("{BYTES} bytes"))
}

/// The device writes guest memory, exactly as much as it was told.
pub(crate) fn check_write(device: &Device, memory: &Memory) -> Found {
    let at = 0x20_0003;
    memory.write(at - 16, &[0xee; BYTES + 32])?;
    device.copy(copy(reg::COPY_TO_GUEST, memory.address(at), PLACE, BYTES))?;
    let found = memory.read(at - 16, BYTES + 32)?;
    same("before it", &found[..16], &[0xee; 16])?;
    same("data", &found[16..16 + BYTES], &pattern(1, BYTES))?;
    same("behind it", &found[16 + BYTES..], &[0xee; 16])?;
    Ok(format!("{BYTES} bytes, and none beside them"))
}

/// What the guest writes by its own mapping of the window is what the device has.
pub(crate) fn check_window(device: &Device, memory: &Memory) -> Found {
    let data = pattern(2, 8192);
    let offset = MAPPED_WINDOW - 4096;
    for (n, word) in data.chunks_exact(8).enumerate() {
        let word = u64::from_le_bytes(word.try_into().map_err(said("pattern"))?);
        device.bar2.store_u64(offset + 8 * n as u64, word).map_err(said("BAR2"))?;
    }
    device.copy(copy(
        reg::COPY_TO_GUEST,
        memory.address(0x40_0000),
        offset,
        data.len(),
    ))?;
    same("data", &memory.read(0x40_0000, data.len())?, &data)?;
    Ok("4 KiB inside and 4 KiB behind it".to_owned())
}

/// An address that leads nowhere fails the command and nothing else.
pub(crate) fn check_nowhere(device: &Device) -> Found {
    for (kind, iova) in
        [(reg::COPY_TO_GUEST, 0xf000_0000_0000), (reg::COPY_TO_DEVICE, 0xffff_0000_0000)]
    {
        device.start(copy(kind, iova, MEMORY_MIN - 4096, 4096))?;
        expect(format!("status at {iova:#x}"), device.finish()?, reg::FAILED)?;
    }
    Ok("refused both ways".to_owned())
}

/// A device that may not master the bus waits until it may.
pub(crate) fn check_bus_master(device: &Device, memory: &Memory) -> Found {
    let data = pattern(3, 4096);
    memory.write(0, &data)?;
    device.set_command(Command::empty(), Command::BUS_MASTER)?;
    device.start(copy(reg::COPY_TO_DEVICE, memory.address(0), PLACE, data.len()))?;
    expect("status without", device.register(reg::COMMAND_STATUS)?, reg::BUSY)?;
    device.set_command(Command::BUS_MASTER, Command::empty())?;
    expect("status with", device.finish()?, reg::DONE)?;
    Ok("gates DMA".to_owned())
}

/// The free-running engine fills a ring in guest memory with whole blocks.
pub(crate) fn check_ring(device: &Device, memory: &Memory) -> Found {
    const SLOTS: u64 = 64;
    const BLOCKS: u64 = 200;
    let at = 0x80_0000;
    let ring = |register| reg::RING + register;
    for (register, value) in [
        (reg::IOVA, memory.address(at)),
        (reg::SLOTS, SLOTS),
        (reg::RATE, 16 << 20),
        (reg::BATCH, 0),
        (reg::CONTROL, reg::RUN),
    ] {
        device.set_register(ring(register), value)?;
    }
    wait_for("blocks", || Ok(device.register(ring(reg::SENT))? >= BLOCKS))?;
    device.set_register(ring(reg::CONTROL), 0)?;
    let sent = device.register(ring(reg::SENT))?;
    wait_for("the last blocks", || {
        let arrived = device.register(ring(reg::ACKNOWLEDGED))?;
        Ok(arrived + device.register(ring(reg::ERRORS))? == sent)
    })?;
    expect("errors", device.register(ring(reg::ERRORS))?, 0)?;
    expect("sent after the end", device.register(ring(reg::SENT))?, sent)?;
    for sequence in sent - SLOTS..sent {
        let slot = sequence % SLOTS;
        let bytes = memory.read(at + slot * BLOCK as u64, BLOCK)?;
        let found = block::check(&bytes)
            .ok_or_else(|| format!("the block in slot {slot} is torn or not there"))?;
        if found.kind != Kind::GUEST {
            return Err(format!("slot {slot} has {found}"));
        }
        expect(format!("slot {slot}"), found.sequence, sequence)?;
    }
    Ok(format!("{sent} blocks, the last {SLOTS} looked at"))
}
