//! How long a stopped device may go on giving data.
//!
//! It cannot change any more, so what it has is finite and gets less. A device that says
//! otherwise is told from a slow one by counting, never by a clock.

/// What a stopped device has given so far.
#[derive(Debug)]
pub(super) struct Patience {
    transactions: u64,
    bytes: u64,
    /// The least that it said was left, and how many transactions ago.
    least: u64,
    since: u32,
    /// Transactions without data, in a row.
    empty: u32,
}

impl Patience {
    /// The most transactions in a row after which no less is left than before. Devices
    /// that report nothing but their next buffer do that for a while.
    const SINCE: u32 = 1 << 14;
    /// The most transactions in a row without data.
    const EMPTY: u32 = 16;
    /// Transactions of any size, before they must be of [`Patience::SMALL`] on average.
    const TRANSACTIONS: u64 = 1 << 20;
    /// Bytes.
    const SMALL: u64 = 4096;
    /// The most bytes in all: 1 TiB.
    const BYTES: u64 = 1 << 40;

    pub(super) fn new() -> Patience {
        Patience { transactions: 0, bytes: 0, least: u64::MAX, since: 0, empty: 0 }
    }

    /// Takes one transaction of `size` bytes of a device that said that `pending` were
    /// left.
    pub(super) fn take(&mut self, pending: u64, size: u64) -> Result<(), String> {
        if size > pending {
            return Err(format!(
                "it stands still with {pending} bytes left, and gives {size}"
            ));
        }
        if pending < self.least {
            (self.least, self.since) = (pending, 0);
        } else {
            self.since += 1;
        }
        self.empty = if size == 0 { self.empty + 1 } else { 0 };
        self.transactions += 1;
        self.bytes = self.bytes.saturating_add(size);
        if self.empty >= Self::EMPTY {
            return Err(format!(
                "it stands still with {pending} bytes left, and gave none of them {} \
                 times",
                self.empty
            ));
        }
        if self.since >= Self::SINCE {
            return Err(format!(
                "it stands still, and after {} buffers still has {pending} bytes left",
                self.since
            ));
        }
        let most = Self::TRANSACTIONS + self.bytes / Self::SMALL;
        if self.transactions > most || self.bytes > Self::BYTES {
            return Err(format!(
                "it stands still, gave {} bytes in {} buffers, and does not come to an \
                 end",
                self.bytes, self.transactions
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Patience;

    /// Takes until the patience is at its end; how often that was.
    fn until_refused(mut next: impl FnMut(u64) -> (u64, u64)) -> (u64, String) {
        let mut patience = Patience::new();
        for n in 0.. {
            let (pending, size) = next(n);
            if let Err(what) = patience.take(pending, size) {
                return (n, what);
            }
        }
        unreachable!("the test ends by a refusal")
    }

    #[test]
    fn a_device_that_never_ends_is_given_up() {
        let (n, what) = until_refused(|_| (7, 7));
        assert!(n <= 1 << 14 && what.contains("still has 7 bytes left"), "{what}");
        let (n, what) = until_refused(|_| (7, 0));
        assert!(n == 15 && what.contains("gave none of them"), "{what}");
        let (n, what) = until_refused(|n| (u64::MAX - n, 1));
        assert!(n <= 1 << 21 && what.contains("does not come to an end"), "{what}");
        let (_, what) = until_refused(|n| (u64::MAX - n, 1 << 36));
        assert!(what.contains("does not come to an end"), "{what}");
        assert!(until_refused(|_| (7, 8)).1.contains("gives 8"));
    }

    #[test]
    fn a_large_device_is_not_given_up() {
        let mut patience = Patience::new();
        let all = 1u64 << 34;
        for n in 0..all >> 16 {
            patience.take(all - (n << 16), 1 << 16).unwrap();
        }
    }
}
