//! What QEMU says it received, counted.
//!
//! QEMU's own trace is the witness: that memory really went by message in one run, and
//! by nothing but descriptors in the other, no message of ours can prove.

use std::collections::BTreeMap;

/// What QEMU is asked to trace: the header of every message that it gets, so also of
/// the answer to every one that it sends and waits for.
pub(super) const EVENT: &str = "vfio_user_recv_hdr";

/// A kind of message (`enum vfio_user_command`).
pub(super) const DMA_MAP: u16 = 2;
/// A kind of message.
pub(super) const DMA_UNMAP: u16 = 3;
/// A kind of message.
pub(super) const DMA_READ: u16 = 11;
/// A kind of message.
pub(super) const DMA_WRITE: u16 = 12;

/// Messages that came from the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Messages {
    /// By command: commands of the server, its answers, and those that were errors.
    by_command: BTreeMap<u16, [u64; 3]>,
}

impl Messages {
    /// Counts the lines `vfio_user_recv_hdr NAME id 0x1 cmd 0x2 size 0x10 flags 0x1`.
    pub(super) fn count(trace: &str) -> Messages {
        let mut messages = Messages::default();
        for line in trace.lines().filter(|line| line.contains(EVENT)) {
            let number = |name: &str| {
                let rest = line.split_once(&format!(" {name} 0x"))?.1;
                let digits = rest.split(' ').next()?;
                u32::from_str_radix(digits, 16).ok()
            };
            let (Some(command), Some(flags)) = (number("cmd"), number("flags")) else {
                continue;
            };
            let counts = messages.by_command.entry(command as u16).or_default();
            // Bits 0 to 3: 0 a command, 1 a reply. Bit 5: an error.
            match (flags & 0xf, flags & 0x20) {
                (0, _) => counts[0] += 1,
                (_, 0) => counts[1] += 1,
                _ => counts[2] += 1,
            }
        }
        messages
    }

    /// Commands that the server sent.
    pub(super) fn commands(&self, command: u16) -> u64 {
        self.by_command.get(&command).map_or(0, |counts| counts[0])
    }

    /// Commands of QEMU that the server carried out.
    pub(super) fn answers(&self, command: u16) -> u64 {
        self.by_command.get(&command).map_or(0, |counts| counts[1])
    }

    /// Commands of QEMU that the server refused.
    pub(super) fn refusals(&self, command: u16) -> u64 {
        self.by_command.get(&command).map_or(0, |counts| counts[2])
    }

    /// All of them.
    pub(super) fn total(&self) -> u64 {
        self.by_command.values().flatten().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::{DMA_MAP, DMA_READ, DMA_UNMAP, Messages};

    #[test]
    fn trace_without_messages_proves_nothing() {
        let trace = "\
            vfio_user_send_write  id 0x1 wrote 0x30\n\
            vfio_user_recv_hdr  (unix:a.sock) id 0x1 cmd 0x2 size 0x10 flags 0x1\n\
            vfio_user_recv_hdr  (unix:a.sock) id 0x2 cmd 0x2 size 0x10 flags 0x21\n\
            vfio_user_recv_hdr  (unix:a.sock) id 0x0 cmd 0xb size 0x20 flags 0x0\n\
            vfio_user_recv_hdr  cut of";
        let messages = Messages::count(trace);
        assert_eq!((messages.answers(DMA_MAP), messages.refusals(DMA_MAP)), (1, 1));
        assert_eq!((messages.commands(DMA_READ), messages.answers(DMA_READ)), (1, 0));
        assert_eq!(messages.answers(DMA_UNMAP), 0);
        assert_eq!((messages.total(), Messages::count("").total()), (3, 0));
    }
}
