//! What an accelerator and its part of RAM should hold, by its driver's registers and the
//! device's own counters.

use models::accel::block::{BLOCK, Block, Kind};

use super::{Accel, AccelDriver, Stage, command_stamp, last_before};
use crate::guest::digests::{Device, Digests};
use crate::guest::layout::PAGE;
use crate::guest::page::{BYTES, Page};
use crate::report::Problem;

impl Accel {
    /// The checksums of its pages of RAM, by their numbers.
    pub(in crate::guest) fn pages(
        &self,
        driver: &AccelDriver,
        seen: &Device,
    ) -> Vec<(u64, u32)> {
        let sent = seen.counter(Accel::SENT);
        let slots = self.area.slots;
        let ring = (0..slots).map(|slot| {
            let page = written(Kind::GUEST, sent, slot, slots);
            (self.area.ring / PAGE + slot, crc32c::crc32c(&page))
        });
        let out = match driver.stage {
            Stage::Idle => driver.commands.checked_sub(1),
            Stage::Out | Stage::Back => Some(driver.commands),
        };
        let back = match driver.stage {
            Stage::Back if is_over(driver, seen) => Some(driver.commands),
            _ => driver.commands.checked_sub(1),
        };
        let commands = [(self.area.outgoing, out), (self.area.incoming, back)];
        let commands = commands.into_iter().map(|(at, number)| {
            (at / PAGE, crc32c::crc32c(&command_page(self.number, number)))
        });
        ring.chain(commands).collect()
    }

    /// Where its memory is not what it should be.
    pub(in crate::guest) fn problems(
        &self,
        driver: &AccelDriver,
        digests: &Digests,
    ) -> Vec<Problem> {
        let seen = &digests.header.devices;
        let per_chunk = seen[self.number].chunk_bytes / PAGE;
        if per_chunk == 0 {
            return Vec::new();
        }
        let mut found = Vec::new();
        for chunk in 0..self.plan.blocks.div_ceil(per_chunk) {
            let block = chunk * per_chunk;
            let end = (block + per_chunk).min(self.plan.blocks);
            let expected = (block..end).try_fold(0, |sum, block| {
                let page = self.block_of(driver, seen, digests.header.p2p, block)?;
                Some(crc32c::crc32c_append(sum, &page))
            });
            let sum = digests.chunks[self.number].get(chunk as usize);
            if let Some(expected) = expected
                && sum != Some(&expected)
            {
                let place = format!("memory of {} at {:#x}", self.name(), block * PAGE);
                let text = format!("digest {sum:08x?} instead of {expected:08x}");
                found.push(Problem { place, text });
            }
        }
        found
    }

    /// What a block of a device's memory should hold, where that is known: what nobody wrote
    /// yet is the device's own affair, such as its firmware.
    fn block_of(
        &self,
        driver: &AccelDriver,
        seen: &[Device],
        p2p: bool,
        block: u64,
    ) -> Option<Page> {
        let (plan, own) = (&self.plan, &seen[self.number]);
        if block < plan.window {
            let mut page = [0; BYTES];
            driver.window_block(self.number, block, plan).fill(&mut page);
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
            let from = &seen[(self.number + seen.len() - 1) % seen.len()];
            let sent = from.counter("peer_sent");
            return (sent > block).then(|| written(Kind::PEER, sent, block, plan.peer));
        }
        let number = match driver.stage {
            Stage::Idle => driver.commands.checked_sub(1),
            Stage::Out if !is_over(driver, own) => driver.commands.checked_sub(1),
            Stage::Out | Stage::Back => Some(driver.commands),
        };
        number.map(|number| command_page(self.number, Some(number)))
    }
}

/// Whether the command that was started last is over.
fn is_over(driver: &AccelDriver, seen: &Device) -> bool {
    seen.counter("commands") >= driver.started()
}

fn command_page(device: usize, number: Option<u64>) -> Page {
    let mut page = [0; BYTES];
    if let Some(number) = number {
        command_stamp(device, number).fill(&mut page);
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
