//! Interrupts: what there are, and `SET_IRQS` in all its forms.
//!
//! | | NONE | BOOL | EVENTFD |
//! | --- | --- | --- | --- |
//! | TRIGGER | fire; with start and count 0 disable the index | fire those set | bind; without descriptors unbind |
//! | MASK | mask | mask those set | ENOTTY |
//! | UNMASK | unmask | unmask those set | unmask whenever it is signalled; without descriptors no more |

use std::os::fd::OwnedFd;

use abi::errno::Errno;
use abi::irq::{IrqInfo, IrqInfoFlags, IrqSet, IrqSetFlags};
use abi::pci::irq_index;
use device::Trigger;
use sys::{EventFd, Interest};

use super::Server;
use crate::codec::Reply;

/// The lowest key of the epoll set for an eventfd that unmasks.
pub(super) const UNMASK: u64 = 1 << 32;

/// What a vector's eventfd goes by in the epoll set.
fn key(index: u32, vector: u32) -> u64 {
    UNMASK | u64::from(index) << 16 | u64::from(vector)
}

/// What to do with vectors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Trigger,
    Mask,
    Unmask,
}

impl Server {
    pub(super) fn num_irqs(&self) -> u32 {
        let irqs = &self.runner.description().irqs;
        let most = irqs.iter().map(|irq| irq.index + 1).max().unwrap_or(0);
        if self.is_pci() { most.max(irq_index::NUM) } else { most }
    }

    pub(super) fn irq_info(&self, info: IrqInfo) -> Result<Reply<'static>, Errno> {
        if (info.argsz as usize) < size_of::<IrqInfo>() || info.index >= self.num_irqs() {
            return Err(Errno::EINVAL);
        }
        let irq = self.runner.description().irq(info.index);
        Ok(Reply::IrqInfo(IrqInfo {
            argsz: size_of::<IrqInfo>() as u32,
            flags: irq.map_or(IrqInfoFlags::empty(), |irq| irq.flags).bits(),
            index: info.index,
            count: irq.map_or(0, |irq| irq.count),
        }))
    }

    /// As `vfio_set_irqs_validate_and_prepare`, with descriptors beside the message.
    pub(super) fn set_irqs(
        &mut self,
        set: IrqSet,
        bools: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<Reply<'static>, Errno> {
        let known = IrqSetFlags::DATA_TYPE_MASK | IrqSetFlags::ACTION_TYPE_MASK;
        let irq = self.runner.description().irq(set.index).copied();
        let vectors = irq.map_or(0, |irq| irq.count);
        let end = set.start.checked_add(set.count).ok_or(Errno::EINVAL)?;
        if (set.argsz as usize) < size_of::<IrqSet>()
            || set.flags & !known != 0
            || set.index >= self.num_irqs()
            || end > vectors
        {
            return Err(Errno::EINVAL);
        }
        let flag = |bits| IrqSetFlags::from_bits_retain(bits);
        let data = flag(set.flags & IrqSetFlags::DATA_TYPE_MASK);
        let action = match flag(set.flags & IrqSetFlags::ACTION_TYPE_MASK) {
            IrqSetFlags::ACTION_TRIGGER => Action::Trigger,
            IrqSetFlags::ACTION_MASK => Action::Mask,
            IrqSetFlags::ACTION_UNMASK => Action::Unmask,
            _ => return Err(Errno::EINVAL),
        };
        let disable = data == IrqSetFlags::DATA_NONE && action == Action::Trigger;
        if set.count == 0 && !(disable && set.start == 0) {
            return Err(Errno::EINVAL);
        }
        let maskable = irq.is_some_and(|irq| irq.flags.contains(IrqInfoFlags::MASKABLE));
        let masks = action != Action::Trigger;
        match data {
            IrqSetFlags::DATA_NONE
            | IrqSetFlags::DATA_BOOL
            | IrqSetFlags::DATA_EVENTFD
                if masks && !maskable =>
            {
                return Err(Errno::ENOTTY);
            }
            IrqSetFlags::DATA_NONE if set.count == 0 => self.disable(set.index),
            IrqSetFlags::DATA_NONE => {
                for vector in set.start..end {
                    self.act(action, set.index, vector)?;
                }
            }
            IrqSetFlags::DATA_BOOL => {
                let room = set.argsz as usize - size_of::<IrqSet>();
                let bools = bools
                    .get(..set.count as usize)
                    .filter(|bools| bools.len() <= room)
                    .ok_or(Errno::EINVAL)?;
                for (vector, wanted) in (set.start..).zip(bools) {
                    if *wanted != 0 {
                        self.act(action, set.index, vector)?;
                    }
                }
            }
            IrqSetFlags::DATA_EVENTFD => {
                let events = events(set.count, fds)?;
                let vectors = set.start..end;
                match action {
                    Action::Trigger => self.bind(set.index, vectors, events)?,
                    Action::Unmask => self.bind_unmask(set.index, vectors, events)?,
                    // Nor has the kernel this one.
                    Action::Mask => return Err(Errno::ENOTTY),
                }
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(Reply::Done)
    }

    fn act(&mut self, action: Action, index: u32, vector: u32) -> Result<(), Errno> {
        match action {
            Action::Trigger => self.runner.trigger(index, vector),
            Action::Mask => self.runner.mask(index, vector),
            Action::Unmask => self.runner.unmask(index, vector),
        }
    }

    fn disable(&mut self, index: u32) {
        self.runner.unbind_index(index);
        self.forget_unmask(key(index, 0)..key(index + 1, 0));
    }

    fn bind(
        &mut self,
        index: u32,
        vectors: std::ops::Range<u32>,
        events: Vec<Option<EventFd>>,
    ) -> Result<(), Errno> {
        for (vector, event) in vectors.zip(events) {
            let trigger = event.map(|event| Box::new(event) as Box<dyn Trigger>);
            self.runner.bind(index, vector, trigger)?;
        }
        Ok(())
    }

    fn bind_unmask(
        &mut self,
        index: u32,
        vectors: std::ops::Range<u32>,
        events: Vec<Option<EventFd>>,
    ) -> Result<(), Errno> {
        for (vector, event) in vectors.zip(events) {
            let key = key(index, vector);
            self.forget_unmask(key..key + 1);
            if let Some(event) = event {
                // Whatever cannot be waited for is no eventfd.
                let added = self.epoll.add(&event, key, Interest::READ);
                added.map_err(|_| Errno::EINVAL)?;
                self.unmasks.insert(key, event);
            }
        }
        Ok(())
    }

    /// Lets go of eventfds that unmask. They may live on in the client, so that the
    /// epoll set would not forget them by itself.
    pub(super) fn forget_unmask(&mut self, keys: std::ops::Range<u64>) {
        while let Some((key, _)) = self.unmasks.range(keys.clone()).next() {
            let key = *key;
            if let Some(event) = self.unmasks.remove(&key) {
                let _ = self.epoll.remove(&event);
            }
        }
    }

    /// A client signalled that it wants a vector unmasked.
    pub(super) fn unmask_by_event(&mut self, signalled: u64) {
        let Some(event) = self.unmasks.get(&signalled) else { return };
        match event.take() {
            Ok(1..) => {
                let (index, vector) = (signalled >> 16 & 0xffff, signalled & 0xffff);
                // It was checked when it was bound.
                let _ = self.runner.unmask(index as u32, vector as u32);
            }
            // It would be ready for ever.
            other => {
                tracing::warn!(device = %self.options.name, ?other, "no eventfd");
                self.forget_unmask(signalled..signalled + 1);
            }
        }
    }
}

/// An eventfd a vector, or none of them where no descriptor came. All of them are
/// looked at before the first is bound.
fn events(count: u32, fds: Vec<OwnedFd>) -> Result<Vec<Option<EventFd>>, Errno> {
    if fds.is_empty() {
        return Ok((0..count).map(|_| None).collect());
    }
    if fds.len() != count as usize {
        return Err(Errno::EINVAL);
    }
    fds.into_iter()
        .map(|fd| EventFd::from_fd(fd).map(Some).map_err(|_| Errno::EINVAL))
        .collect()
}
