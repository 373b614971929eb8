//! The addresses that the guest has for BARs.
//!
//! Each BAR gets a few places, one behind the other, so that it can move without anybody
//! else having to.

use super::PLACES;

/// BARs of 32 bits: a hole of RAM, below where interrupts are.
const LOW: std::ops::Range<u64> = 0xe000_0000..0xfec0_0000;
/// Ports.
const PORTS: std::ops::Range<u64> = 0xc000..0x1_0000;
/// The end of addresses that a small CPU can put out.
const HIGH_END: u64 = 1 << 46;

/// What is free.
#[derive(Clone, Debug)]
pub(in crate::guest) struct Addresses {
    ports: std::ops::Range<u64>,
    low: std::ops::Range<u64>,
    high: std::ops::Range<u64>,
}

impl Addresses {
    /// All there are; those of 64 bits start at `above`, behind RAM.
    pub(in crate::guest) fn new(above: u64) -> Addresses {
        Addresses { ports: PORTS, low: LOW, high: above..HIGH_END }
    }

    /// The first place of a BAR of that size, a power of two: all its places lie at
    /// multiples of it. `None` where not all of them fit.
    pub(super) fn take(&mut self, ports: bool, wide: bool, bytes: u64) -> Option<u64> {
        let pool = match (ports, wide) {
            (true, _) => &mut self.ports,
            (false, true) => &mut self.high,
            (false, false) => &mut self.low,
        };
        let base = pool.start.checked_next_multiple_of(bytes)?;
        let end = bytes.checked_mul(PLACES)?.checked_add(base)?;
        if end > pool.end {
            return None;
        }
        pool.start = end;
        Some(base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_two_bars_overlap() {
        let mut free = Addresses::new(5 << 30);
        let mut taken: Vec<std::ops::Range<u64>> = Vec::new();
        for bytes in [0x1000, 16 << 20, 0x1000, 1 << 30, 1 << 34, 8] {
            let base = free.take(false, true, bytes).expect("room");
            assert!(base >= 5 << 30 && base.is_multiple_of(bytes));
            let all = base..base + PLACES * bytes;
            assert!(taken.iter().all(|one| one.end <= all.start || all.end <= one.start));
            taken.push(all);
        }
    }

    #[test]
    fn a_bar_that_does_not_fit_gets_an_address_of_something_else() {
        let mut free = Addresses::new(4 << 30);
        assert_eq!(free.take(false, false, 1 << 31), None);
        assert_eq!(free.take(false, true, 1 << 45), None);
        assert_eq!(free.take(false, true, 1 << 63), None);
        let cards = (0..).take_while(|_| free.take(true, false, 0x400).is_some());
        assert_eq!(cards.count() as u64, 0x4000 / 0x400 / PLACES);
        // What did not fit took nothing away.
        assert_eq!(free.take(false, false, 0x1000), Some(LOW.start));
    }
}
