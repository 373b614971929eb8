//! `DEVICE_SET_IRQS`, in all its forms.

use std::os::fd::{AsFd, BorrowedFd};

use abi::errno::Errno;
use abi::irq::{IrqSet, IrqSetFlags};
use control::{IrqAction, IrqForm, TransportError};

use super::Client;
use super::line::{ECHO, Sink};
use crate::codec::Request;

const OPERATION: &str = "set interrupts";

impl Client {
    /// Vectors of more eventfds or flags than a message can have are set in several.
    pub(super) fn set(
        &self,
        index: u32,
        start: u32,
        action: IrqAction,
        form: IrqForm<'_>,
    ) -> Result<(), TransportError> {
        let action = match action {
            IrqAction::Trigger => IrqSetFlags::ACTION_TRIGGER,
            IrqAction::Mask => IrqSetFlags::ACTION_MASK,
            IrqAction::Unmask => IrqSetFlags::ACTION_UNMASK,
        };
        let agreed = &self.inner.agreed;
        let mut batch = Batch { client: self, index, start, action };
        match form {
            IrqForm::All(count) => batch.set(IrqSetFlags::DATA_NONE, count, &[], &[]),
            IrqForm::Unbind(count) => {
                batch.set(IrqSetFlags::DATA_EVENTFD, count, &[], &[])
            }
            IrqForm::Each([]) | IrqForm::Events([]) => Err(errno(Errno::EINVAL)),
            IrqForm::Each(which) => {
                for which in which.chunks(agreed.max_data) {
                    let bytes: Vec<u8> = which.iter().map(|one| u8::from(*one)).collect();
                    let count = bytes.len() as u32;
                    batch.set(IrqSetFlags::DATA_BOOL, count, &bytes, &[])?;
                }
                Ok(())
            }
            IrqForm::Events(_) if agreed.max_fds == 0 => Err(TransportError::Errno {
                operation: "bind interrupts to eventfds, of a server that takes no \
                            descriptors (max_msg_fds 0)",
                errno: Errno::EOPNOTSUPP,
            }),
            IrqForm::Events(events) => {
                for events in events.chunks(agreed.max_fds) {
                    let fds: Vec<_> = events.iter().map(|event| event.as_fd()).collect();
                    let count = fds.len() as u32;
                    batch.set(IrqSetFlags::DATA_EVENTFD, count, &[], &fds)?;
                }
                Ok(())
            }
        }
    }
}

struct Batch<'a> {
    client: &'a Client,
    index: u32,
    /// The next vector.
    start: u32,
    action: IrqSetFlags,
}

impl Batch<'_> {
    fn set(
        &mut self,
        data: IrqSetFlags,
        count: u32,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), TransportError> {
        let next = self.start.checked_add(count).ok_or_else(|| errno(Errno::EINVAL))?;
        let set = IrqSet {
            argsz: (size_of::<IrqSet>() + bytes.len()) as u32,
            flags: (data | self.action).bits(),
            index: self.index,
            start: self.start,
            count,
        };
        let inner = &self.client.inner;
        let request = Request::SetIrqs(set, bytes);
        let mut sink = Sink { fixed: ECHO, data: &mut [] };
        let deadline = inner.options.call_deadline;
        inner.line.call(OPERATION, &request, fds, &mut sink, deadline)?;
        self.start = next;
        Ok(())
    }
}

fn errno(errno: Errno) -> TransportError {
    TransportError::Errno { operation: OPERATION, errno }
}
