//! The registers of an engine that writes blocks, and its pace.

use super::BLOCK_BYTES;
use crate::accel::block::BLOCK;
use crate::accel::registers as reg;
use abi::errno::Errno;
use std::time::{Duration, Instant};

/// Words of its saved state.
pub(super) const WRITER_WORDS: usize = 11;

/// Engines are not woken more often than this.
const PACE: Duration = Duration::from_micros(200);

/// An engine that writes blocks at a steady rate.
#[derive(Clone, Copy, Default)]
pub(super) struct Writer {
    pub(super) iova: u64,
    pub(super) slots: u64,
    pub(super) rate: u64,
    pub(super) vector: u64,
    pub(super) batch: u64,
    pub(super) control: u64,
    pub(super) sent: u64,
    pub(super) acknowledged: u64,
    pub(super) errors: u64,
    pub(super) own_offset: u64,
    pub(super) own_slots: u64,
    pub(super) pace: Pace,
}

impl Writer {
    pub(super) fn read_register(&self, register: u64) -> u64 {
        match register {
            reg::IOVA => self.iova,
            reg::SLOTS => self.slots,
            reg::RATE => self.rate,
            reg::VECTOR => self.vector,
            reg::BATCH => self.batch,
            reg::CONTROL => self.control,
            reg::SENT => self.sent,
            reg::ACKNOWLEDGED => self.acknowledged,
            reg::ERRORS => self.errors,
            reg::OWN_OFFSET => self.own_offset,
            reg::OWN_SLOTS => self.own_slots,
            _ => 0,
        }
    }

    pub(super) fn write_register(
        &mut self,
        register: u64,
        value: u64,
        has_own: bool,
        vectors: u64,
    ) -> Result<(), Errno> {
        let field = match register {
            reg::IOVA => &mut self.iova,
            reg::SLOTS => &mut self.slots,
            reg::RATE => &mut self.rate,
            reg::VECTOR if value < vectors => &mut self.vector,
            reg::BATCH => &mut self.batch,
            reg::CONTROL if value & !reg::RUN == 0 => &mut self.control,
            reg::OWN_OFFSET if has_own => &mut self.own_offset,
            reg::OWN_SLOTS if has_own => &mut self.own_slots,
            _ => return Err(Errno::EINVAL),
        };
        *field = value;
        Ok(())
    }

    pub(super) fn words(&self) -> [u64; WRITER_WORDS] {
        [
            self.iova,
            self.slots,
            self.rate,
            self.vector,
            self.batch,
            self.control,
            self.sent,
            self.acknowledged,
            self.errors,
            self.own_offset,
            self.own_slots,
        ]
    }

    pub(super) fn load(&mut self, take: &mut impl FnMut() -> u64) {
        self.iova = take();
        self.slots = take();
        self.rate = take();
        self.vector = take();
        self.batch = take();
        self.control = take();
        self.sent = take();
        self.acknowledged = take();
        self.errors = take();
        self.own_offset = take();
        self.own_slots = take();
    }

    pub(super) fn is_sound(&self, vectors: u64) -> bool {
        self.vector < vectors && self.control & !reg::RUN == 0
    }
}

/// Turns a rate into blocks. Not saved: a device that stops loses what it had earned.
#[derive(Clone, Copy, Default)]
pub(super) struct Pace {
    pub(super) last: Option<Instant>,
    /// In bytes times nanoseconds, so that no fraction is lost.
    pub(super) credit: u128,
}

const SECOND: u128 = 1_000_000_000;
pub(super) const BLOCK_COST: u128 = BLOCK as u128 * SECOND;

impl Pace {
    pub(super) fn earn(&mut self, rate: u64, now: Instant) {
        if let Some(last) = self.last {
            let nanos = now.saturating_duration_since(last).as_nanos();
            // A device that had no turn for long does not catch up in one burst.
            let most = u128::from((rate / 50).max(16 * BLOCK_BYTES)) * SECOND;
            let earned = nanos.saturating_mul(u128::from(rate));
            self.credit = self.credit.saturating_add(earned).min(most);
        }
        self.last = Some(now);
    }

    /// When there is enough for a block.
    pub(super) fn due(&self, rate: u64, now: Instant) -> Instant {
        let missing = BLOCK_COST.saturating_sub(self.credit) / u128::from(rate.max(1));
        // At one byte a second a block takes over an hour; nobody needs to wait longer.
        let nanos = u64::try_from(missing).unwrap_or(u64::MAX).min(3600 * 1_000_000_000);
        now + Duration::from_nanos(nanos).max(PACE)
    }
}
