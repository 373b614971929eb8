//! In which order a vCPU rewrites its pages, and what each of them holds at any moment.
//!
//! The pages of `n` vCPUs are interleaved over all of memory. A vCPU goes through its own
//! again and again, each time in the same scattered order:
//!
//! ```text
//!   write s:  sweep k = s / pages, position i = s % pages
//!             the page at position i is  (start + i * stride) mod pages
//! ```
//!
//! So any `pages` writes in a row touch every page exactly once, and the number of the
//! next write alone (a register) says which write each page holds: the one of this
//! sweep before its position, the one of the sweep before behind it.

use serde::{Deserialize, Serialize};

use super::page::{Random, Stamp, mix};

/// The order of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sweep {
    /// The vCPU.
    vcpu: u32,
    /// How many vCPUs there are.
    vcpus: u32,
    /// The first page that belongs to vCPUs.
    first: u64,
    /// Pages of this vCPU.
    pages: u64,
    /// Where a sweep starts.
    start: u64,
    /// From one position to the next; has no divisor in common with `pages`.
    stride: u64,
}

impl Sweep {
    /// The order of `vcpu` of `vcpus` over the pages from `first` up to `end`.
    pub(super) fn new(
        vcpu: u32,
        vcpus: u32,
        first: u64,
        end: u64,
        random: &mut Random,
    ) -> Sweep {
        let mine = (end - first).saturating_sub(u64::from(vcpu));
        let pages = mine.div_ceil(u64::from(vcpus));
        let start = random.next() % pages.max(1);
        let mut stride = random.next() % pages.max(1);
        while gcd(stride, pages) != 1 {
            stride += 1;
        }
        Sweep { vcpu, vcpus, first, pages, start, stride }
    }

    /// Whether this order came out of [`Sweep::new`] with the same shape of machine.
    /// What comes from another host may be anything.
    pub(super) fn fits(&self, vcpu: u32, vcpus: u32, first: u64, end: u64) -> bool {
        let like = Sweep::new(vcpu, vcpus, first, end, &mut Random(0));
        (self.vcpu, self.vcpus, self.first, self.pages)
            == (like.vcpu, like.vcpus, like.first, like.pages)
            && self.start < self.pages.max(1)
            && self.stride <= self.pages.max(1)
            && gcd(self.stride, self.pages) == 1
    }

    /// How many pages it goes through.
    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    /// The page (by offset in RAM) at a position below [`Sweep::pages`].
    pub(super) fn page(&self, position: u64) -> u64 {
        let pages = u128::from(self.pages.max(1));
        let own = (u128::from(self.start)
            + u128::from(position) * u128::from(self.stride))
            % pages;
        self.first + u64::from(self.vcpu) + own as u64 * u64::from(self.vcpus)
    }

    /// The write with that number, from 0.
    pub(super) fn write(&self, sequence: u64) -> Stamp {
        let pages = self.pages.max(1);
        let page = self.page(sequence % pages);
        // Every 64th page, in every second sweep: freed, and used again.
        let blank = (sequence / pages) % 2 == 1 && mix(page).is_multiple_of(64);
        Stamp { writer: self.vcpu, page, sequence, blank }
    }

    /// What the page at a position holds while `next` is the next write; at least one
    /// sweep is over.
    pub(super) fn holds(&self, position: u64, next: u64) -> Stamp {
        let pages = self.pages.max(1);
        let (sweep, at) = (next / pages, next % pages);
        let sweep = if position < at { sweep } else { sweep.saturating_sub(1) };
        self.write(sweep * pages + position)
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    proptest! {
        #[test]
        fn all_vcpus_together_write_every_page_exactly_once_a_sweep(
            vcpus in 1u32..8, first in 0u64..20, count in 1u64..400, seed: u64,
        ) {
            let mut seen = HashMap::new();
            for vcpu in 0..vcpus {
                let mut random = Random(seed ^ u64::from(vcpu));
                let sweep = Sweep::new(vcpu, vcpus, first, first + count, &mut random);
                prop_assert!(sweep.fits(vcpu, vcpus, first, first + count));
                // Any stretch of that length, not only one that starts with a sweep.
                for sequence in 17..17 + sweep.pages() {
                    *seen.entry(sweep.write(sequence).page).or_insert(0) += 1;
                }
            }
            prop_assert_eq!(seen.len() as u64, count);
            let all = first..first + count;
            let once = seen.iter().all(|(page, times)| all.contains(page) && *times == 1);
            prop_assert!(once);
        }

        #[test]
        fn the_next_write_alone_says_what_every_page_holds(
            count in 1u64..100, more in 0u64..300, seed: u64,
        ) {
            let sweep = Sweep::new(0, 1, 0, count, &mut Random(seed));
            let mut pages = HashMap::new();
            let next = sweep.pages() + more;
            for sequence in 0..next {
                let stamp = sweep.write(sequence);
                pages.insert(stamp.page, stamp);
            }
            for position in 0..sweep.pages() {
                let stamp = sweep.holds(position, next);
                prop_assert_eq!(pages.get(&sweep.page(position)), Some(&stamp));
            }
        }
    }

    #[test]
    fn an_order_that_would_leave_pages_out_is_refused() {
        let sweep = Sweep::new(0, 2, 10, 50, &mut Random(1));
        assert!(sweep.fits(0, 2, 10, 50));
        assert!(!sweep.fits(1, 2, 10, 50) && !sweep.fits(0, 2, 10, 90));
        for bad in [
            Sweep { stride: 5, ..sweep.clone() },
            Sweep { stride: 0, ..sweep.clone() },
            Sweep { stride: u64::MAX, ..sweep.clone() },
            Sweep { start: 20, ..sweep.clone() },
            Sweep { pages: u64::MAX, ..sweep.clone() },
        ] {
            assert!(!bad.fits(0, 2, 10, 50), "{bad:?}");
        }
    }

    #[test]
    fn a_page_is_blank_at_most_every_second_time() {
        let sweep = Sweep::new(0, 1, 0, 1000, &mut Random(3));
        let blanks =
            |k: u64| (0..1000).filter(|n| sweep.write(k * 1000 + n).blank).count();
        assert!(blanks(1) > 0);
        assert_eq!((blanks(0), blanks(2)), (0, 0));
    }
}
