//! What a vCPU does: it rewrites its pages, drives its devices, and checks everything
//! that it reads against what its registers say.
//!
//! Registers are nowhere in guest memory. They live in [`Board::vcpus`], and between two
//! hosts in a section of the VMM.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::board::{Board, now_ns};
use super::device::Driver;
use super::layout::PAGE;
use super::page::{BYTES, Page, Random};
use super::sweep::Sweep;

/// The most pages written between two looks at the barrier.
const SLICE: u64 = 64;
/// The least time between two rounds of an idle vCPU.
const TICK: Duration = Duration::from_millis(1);
/// The registers of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Registers {
    /// The order in which it rewrites its pages.
    pub(super) sweep: Sweep,
    /// The number of its next write; the first sweep was made at boot.
    pub(super) next: u64,
    /// Its random state.
    pub(super) random: u64,
    /// Bytes of pages that it rewrites in a second.
    pub(super) rate: u64,
    /// Whether its devices are to be kept busy.
    pub(super) busy: bool,
    /// Its devices.
    pub(super) drivers: Vec<Driver>,
    /// When it last did anything, in nanoseconds of the host's monotonic clock.
    pub(super) active_ns: u64,
}

/// What others may know of a vCPU at any time, without stopping it.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// How many pages it has.
    pub(super) pages: u64,
    /// A copy of [`Registers::next`].
    pub(super) next: AtomicU64,
    /// The gap before the first activity after a load, in nanoseconds; 0 before that.
    pub(super) gap_ns: AtomicU64,
    /// A load happened, and nothing was done since.
    pub(super) arrived_ns: AtomicU64,
}

/// The thread of a vCPU: runs until the barrier ends it.
pub(super) fn run(board: &Board, vcpu: usize) {
    let mut hands = Hands { page: [0; BYTES], earned: None, ordered: BTreeMap::new() };
    while board.barrier.enter(|| board.arrive(vcpu)) {
        let nap = {
            let mut registers = locked(&board.vcpus[vcpu]);
            let nap = hands.work(board, &mut registers);
            registers.active_ns = now_ns();
            board.shown[vcpu].next.store(registers.next, Ordering::Release);
            nap
        };
        board.barrier.nap(nap);
        if !board.barrier.is_open() {
            // Time in which the guest does not run earns nothing.
            hands.earned = None;
        }
    }
}

/// Registers, whatever became of a thread that had them.
pub(super) fn locked(registers: &Mutex<Registers>) -> MutexGuard<'_, Registers> {
    registers.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    /// Notes how long a vCPU was not active, if it has just come from another host.
    fn arrive(&self, vcpu: usize) {
        let left = self.shown[vcpu].arrived_ns.swap(0, Ordering::AcqRel);
        if left > 0 {
            let gap = now_ns().saturating_sub(left).max(1);
            self.shown[vcpu].gap_ns.store(gap, Ordering::Release);
        }
    }
}

/// What a thread has at hand; nothing of it is the guest's.
pub(super) struct Hands {
    /// Room for a page.
    pub(super) page: Page,
    /// Up to when its rate was paid out, and bytes left over.
    earned: Option<(Instant, u64)>,
    /// When the last pair of commands was started, by device: what one has to do must not
    /// keep another from its turn.
    pub(super) ordered: BTreeMap<usize, Instant>,
}

impl Hands {
    /// One slice of work; how long to wait before the next.
    fn work(&mut self, board: &Board, registers: &mut Registers) -> Duration {
        let budget = self.earn(registers.rate);
        let pages = (budget / PAGE).min(SLICE);
        for _ in 0..pages {
            self.rewrite(board, registers);
        }
        if pages > 0 {
            self.look(board, registers);
        }
        if let Some((_, left)) = &mut self.earned {
            *left -= pages * PAGE;
        }
        let busy = registers.busy;
        for driver in &mut registers.drivers {
            let device = &board.devices[driver.device];
            if let Err(error) = device.drive(board, driver, self, busy) {
                board.faults.add(|| format!("{}: {error}", device.name()));
                break;
            }
        }
        if budget >= 2 * SLICE * PAGE { Duration::ZERO } else { TICK }
    }

    /// Bytes that may be written now.
    fn earn(&mut self, rate: u64) -> u64 {
        let now = Instant::now();
        let (since, left) = self.earned.unwrap_or((now, 0));
        let nanos = now.saturating_duration_since(since).as_nanos();
        let new = nanos * u128::from(rate) / 1_000_000_000;
        // What could not be written in 100 ms is forgone: no burst after a delay.
        let most = (rate / 10).max(2 * PAGE);
        let total = u64::try_from(new).unwrap_or(u64::MAX).saturating_add(left).min(most);
        if new > 0 || self.earned.is_none() {
            self.earned = Some((now, total));
        }
        total
    }

    /// Reads, checks and rewrites the next page.
    fn rewrite(&mut self, board: &Board, registers: &mut Registers) {
        let sweep = &registers.sweep;
        if sweep.pages() == 0 {
            return;
        }
        let write = sweep.write(registers.next);
        board.ram.load(write.page, &mut self.page);
        let held = sweep.holds(registers.next % sweep.pages(), registers.next);
        if let Err(fault) = held.check(&self.page) {
            board.faults.add(|| format!("page {:#x}: {fault}", write.page));
        }
        write.fill(&mut self.page);
        board.ram.store(write.page, &self.page);
        registers.next += 1;
    }

    /// Reads and checks any page.
    fn look(&mut self, board: &Board, registers: &mut Registers) {
        let mut random = Random(registers.random);
        let pages = registers.sweep.pages();
        if let Some(position) = random.next().checked_rem(pages) {
            let held = registers.sweep.holds(position, registers.next);
            board.ram.load(held.page, &mut self.page);
            if let Err(fault) = held.check(&self.page) {
                board.faults.add(|| format!("page {:#x}: {fault}", held.page));
            }
        }
        registers.random = random.0;
    }
}
