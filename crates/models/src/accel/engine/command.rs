//! The command registers: one copy at a time.

use crate::accel::registers as reg;
use abi::errno::Errno;

/// What was asked for, and how far it got.
#[derive(Clone, Copy, Default)]
pub(super) struct Command {
    pub(super) kind: u64,
    pub(super) iova: u64,
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) vector: u64,
    pub(super) status: u64,
    pub(super) count: u64,
    /// Bytes copied so far.
    pub(super) copied: u64,
}

impl Command {
    pub(super) fn write_register(
        &mut self,
        register: u64,
        value: u64,
        memory: u64,
        vectors: u64,
    ) -> Result<(), Errno> {
        if self.status == reg::BUSY {
            return Err(Errno::EBUSY);
        }
        match register {
            reg::COMMAND_KIND => self.kind = value,
            reg::COMMAND_IOVA => self.iova = value,
            reg::COMMAND_OFFSET => self.offset = value,
            reg::COMMAND_BYTES => self.bytes = value,
            reg::COMMAND_VECTOR => self.vector = value,
            reg::COMMAND_DOORBELL if self.is_possible(memory, vectors) => {
                self.copied = 0;
                self.status = reg::BUSY;
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    /// Whether it could be carried out: everything after this relies on it.
    pub(super) fn is_possible(&self, memory: u64, vectors: u64) -> bool {
        let inside = |start: u64, end: u64| {
            start.checked_add(self.bytes).is_some_and(|stop| stop <= end)
        };
        matches!(self.kind, reg::COPY_TO_DEVICE | reg::COPY_TO_GUEST)
            && self.bytes > 0
            && self.vector < vectors
            && inside(self.offset, memory)
            && inside(self.iova, u64::MAX)
    }
}
