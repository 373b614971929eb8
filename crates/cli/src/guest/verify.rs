//! Checks a stopped guest against what its own workers did: every page, every block of
//! every device, every interrupt, without another copy to compare with.

use models::accel::block::{BLOCK, Block, Kind};

use super::accel::{Accel, Driver, Stage, last_before};
use super::board::Board;
use super::check::consistent;
use super::digests::{Device, Digests};
use super::layout::PAGE;
use super::page::{BYTES, Page};
use super::vcpu::locked;
use crate::report::Problem;

/// The most problems that are told.
const TOLD: usize = 20;

/// What differs between a stopped guest, by its digests, and what its registers and its
/// devices' counters say.
pub(super) fn problems(board: &Board, digests: &Digests) -> Vec<Problem> {
    let mut found = consistent(digests, "here");
    for text in board.faults.texts() {
        found.push(Problem { place: "what the guest read".to_owned(), text });
    }
    let expected = memory(board, digests);
    for (page, (sum, expected)) in digests.pages.iter().zip(&expected).enumerate() {
        if let Some(expected) = expected
            && expected != sum
        {
            let text = format!("digest {sum:08x} instead of {expected:08x}");
            found.push(Problem { place: format!("page {page:#x}"), text });
        }
    }
    for device in &board.devices {
        let Some(driver) = board.driver(device.number) else { continue };
        let seen = &digests.header.devices;
        for block in 0..device.plan.blocks {
            let per_chunk = seen[device.number].chunk_bytes / PAGE;
            if per_chunk == 0 || block % per_chunk != 0 {
                continue;
            }
            let end = (block + per_chunk).min(device.plan.blocks);
            let expected = (block..end).try_fold(0, |sum, block| {
                let page = block_of(device, &driver, seen, digests.header.p2p, block)?;
                Some(crc32c::crc32c_append(sum, &page))
            });
            let sum = digests.chunks[device.number].get((block / per_chunk) as usize);
            if let Some(expected) = expected
                && sum != Some(&expected)
            {
                let place = format!("memory of {} at {:#x}", device.name(), block * PAGE);
                let text = format!("digest {sum:08x?} instead of {expected:08x}");
                found.push(Problem { place, text });
            }
        }
    }
    let more = found.len().saturating_sub(TOLD);
    found.truncate(TOLD);
    if more > 0 {
        let text = format!("{more} more places are wrong");
        found.push(Problem { place: "elsewhere".to_owned(), text });
    }
    found
}

/// The checksum that each page of RAM should have, where that is known.
fn memory(board: &Board, digests: &Digests) -> Vec<Option<u32>> {
    let mut sums = vec![None; digests.pages.len()];
    let mut page = [0; BYTES];
    for vcpu in &board.vcpus {
        let registers = locked(vcpu);
        for position in 0..registers.sweep.pages() {
            let write = registers.sweep.holds(position, registers.next);
            write.fill(&mut page);
            sums[write.page as usize] = Some(crc32c::crc32c(&page));
        }
    }
    for device in &board.devices {
        let seen = &digests.header.devices[device.number];
        let sent = seen.counter("ring_sent");
        for slot in 0..device.area.slots {
            let page = written(Kind::GUEST, sent, slot, device.area.slots);
            sums[(device.area.ring / PAGE + slot) as usize] = Some(crc32c::crc32c(&page));
        }
        let Some(driver) = board.driver(device.number) else { continue };
        let out = match driver.stage {
            Stage::Idle => driver.commands.checked_sub(1),
            Stage::Out | Stage::Back => Some(driver.commands),
        };
        let back = match driver.stage {
            Stage::Back if is_over(&driver, seen) => Some(driver.commands),
            _ => driver.commands.checked_sub(1),
        };
        for (at, number) in [(device.area.outgoing, out), (device.area.incoming, back)] {
            let page = command_page(&driver, number);
            sums[(at / PAGE) as usize] = Some(crc32c::crc32c(&page));
        }
    }
    sums
}

/// What a block of a device's memory should hold, where that is known: what nobody wrote
/// yet is the device's own affair, such as its firmware.
fn block_of(
    device: &Accel,
    driver: &Driver,
    seen: &[Device],
    p2p: bool,
    block: u64,
) -> Option<Page> {
    let (plan, own) = (&device.plan, &seen[device.number]);
    if block < plan.window {
        let mut page = [0; BYTES];
        driver.window_block(block, plan).fill(&mut page);
        return Some(page);
    }
    let block = block - plan.window;
    if block < plan.own {
        let sent = own.counter("ring_sent");
        return (sent > block).then(|| written(Kind::DEVICE, sent, block, plan.own));
    }
    let block = block - plan.own;
    if block < plan.peer {
        if !p2p {
            return None;
        }
        let from = &seen[(device.number + seen.len() - 1) % seen.len()];
        let sent = from.counter("peer_sent");
        return (sent > block).then(|| written(Kind::PEER, sent, block, plan.peer));
    }
    let number = match driver.stage {
        Stage::Idle => driver.commands.checked_sub(1),
        Stage::Out if !is_over(driver, own) => driver.commands.checked_sub(1),
        Stage::Out | Stage::Back => Some(driver.commands),
    };
    number.map(|number| command_page(driver, Some(number)))
}

/// Whether the command that was started last is over.
fn is_over(driver: &Driver, seen: &Device) -> bool {
    seen.counter("commands") >= driver.started()
}

fn command_page(driver: &Driver, number: Option<u64>) -> Page {
    let mut page = [0; BYTES];
    if let Some(number) = number {
        driver.command_page(number).fill(&mut page);
    }
    page
}

/// The block that a slot holds after `sent` blocks; zeros before the first.
fn written(kind: Kind, sent: u64, slot: u64, slots: u64) -> Page {
    const { assert!(BLOCK == BYTES) };
    let mut page = [0; BYTES];
    if sent > slot {
        let sequence = last_before(sent, slot, slots);
        Block { kind, sequence, index: slot }.make(&mut page);
    }
    page
}
