//! Checks a stopped guest against what its own workers did: every page, every block of
//! every device, every interrupt, without another copy to compare with.

use super::board::Board;
use super::check::consistent;
use super::digests::Digests;
use super::page::BYTES;
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
        if let Some(driver) = board.driver(device.number) {
            found.extend(device.problems(&driver, digests));
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
        let Some(driver) = board.driver(device.number) else { continue };
        for (page, sum) in device.pages(&driver, seen) {
            sums[page as usize] = Some(sum);
        }
    }
    sums
}
