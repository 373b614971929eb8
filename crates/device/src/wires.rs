//! The bus as it really is: windows, messages on their way, triggers and the log.

use crate::{Bus, BusError, Dma, DmaLog, DmaTarget, DmaWindow, Token, Trigger};
use abi::errno::Errno;
use dirty::{Iova, IovaRange};
use states::v2::State;
use std::collections::{BTreeMap, VecDeque};

/// Most messages on their way at once, over all that a model does.
pub const REQUESTS_MAX: usize = 64;

/// Bytes of one access by message unless the server says otherwise.
pub const MESSAGE_LIMIT: usize = 64 << 10;

/// Most DMA windows at once: what vfio-user allows where nothing else is agreed.
pub const WINDOWS_MAX: usize = 65535;

/// An access that needs a message to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What [`Runner::complete`](crate::Runner::complete) is called with.
    pub token: Token,
    /// Where.
    pub at: Iova,
    /// What.
    pub kind: RequestKind,
}

/// What a [`Request`] asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// That many bytes, at least one.
    Read(usize),
    /// To write these bytes, at least one.
    Write(Vec<u8>),
}

/// What a runner counts. Kept through reset and disconnect; never part of the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Region accesses other than to config space that were refused because the device
    /// was in STOP, `STOP_COPY` or RESUMING: what a broken peer-to-peer stop shows up as.
    pub accesses_while_stopped: u64,
    /// DMA that the model tried while it was stopped: refused.
    pub dma_while_stopped: u64,
    /// Interrupts that the model tried to raise while it was stopped: refused.
    pub interrupts_while_stopped: u64,
    /// Interrupts raised and heard.
    pub interrupts: u64,
    /// Bytes read by DMA, messages included once they came back.
    pub dma_bytes_read: u64,
    /// Bytes written by DMA, messages included once they came back.
    pub dma_bytes_written: u64,
    /// Completions for tokens that were not on their way (any more).
    pub late_completions: u64,
    /// Completions that the model refused.
    pub refused_completions: u64,
}

/// What the bus lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Everything.
    Open,
    /// Everything but new messages: P2P states, and while an arc is pending.
    NoMessages,
    /// Nothing.
    Shut,
}

impl Gate {
    /// What the bus lets through in `state`.
    pub(crate) fn of(state: State) -> Gate {
        match state {
            State::Running | State::PreCopy => Gate::Open,
            State::RunningP2p | State::PreCopyP2p => Gate::NoMessages,
            _ => Gate::Shut,
        }
    }
}

/// A range of IOVAs and where it leads.
struct Mapping {
    range: IovaRange,
    writable: bool,
    target: DmaTarget,
}

/// A message that is on its way.
struct Outstanding {
    at: Iova,
    len: usize,
    writes: bool,
}

/// Everything outside of the model that the model can touch.
pub(crate) struct Wires {
    pub(crate) gate: Gate,
    pub(crate) log: DmaLog,
    pub(crate) counters: Counters,
    pub(crate) message_limit: usize,
    windows: BTreeMap<u64, Mapping>,
    triggers: BTreeMap<(u32, u32), Box<dyn Trigger>>,
    queue: VecDeque<Request>,
    outstanding: BTreeMap<Token, Outstanding>,
    next_token: u64,
}

impl Wires {
    pub(crate) fn new() -> Wires {
        Wires {
            gate: Gate::Open,
            log: DmaLog::default(),
            counters: Counters::default(),
            message_limit: MESSAGE_LIMIT,
            windows: BTreeMap::new(),
            triggers: BTreeMap::new(),
            queue: VecDeque::new(),
            outstanding: BTreeMap::new(),
            next_token: 1,
        }
    }

    pub(crate) fn map(
        &mut self,
        range: IovaRange,
        writable: bool,
        target: DmaTarget,
    ) -> Result<(), Errno> {
        // Windows do not overlap, so only the last one that starts before the end can.
        let before = self.windows.range(..range.end()).next_back();
        if before.is_some_and(|(_, mapping)| mapping.range.overlaps(range)) {
            return Err(Errno::EEXIST);
        }
        if self.windows.len() >= WINDOWS_MAX {
            return Err(Errno::ENOSPC);
        }
        self.windows.insert(range.start(), Mapping { range, writable, target });
        Ok(())
    }

    /// Takes a window away, and gives back the tokens of messages to it that were not
    /// sent yet; those that were sent are the client's to answer.
    pub(crate) fn unmap(&mut self, range: IovaRange) -> Result<Vec<Token>, Errno> {
        match self.windows.get(&range.start()) {
            Some(mapping) if mapping.range == range => {}
            _ => return Err(Errno::ENOENT),
        }
        self.windows.remove(&range.start());
        let (gone, kept) =
            self.queue.drain(..).partition(|request| range.contains(request.at));
        self.queue = kept;
        let gone: VecDeque<Request> = gone;
        Ok(gone.into_iter().map(|request| request.token).collect())
    }

    /// Takes all windows away; tokens as [`unmap`](Self::unmap).
    pub(crate) fn unmap_all(&mut self) -> Vec<Token> {
        self.windows.clear();
        self.queue.drain(..).map(|request| request.token).collect()
    }

    pub(crate) fn bind(
        &mut self,
        index: u32,
        vector: u32,
        trigger: Option<Box<dyn Trigger>>,
    ) {
        match trigger {
            Some(trigger) => {
                self.triggers.insert((index, vector), trigger);
            }
            None => {
                self.triggers.remove(&(index, vector));
            }
        }
    }

    pub(crate) fn unbind_index(&mut self, index: u32) {
        self.triggers.retain(|(of, _), _| *of != index);
    }

    pub(crate) fn unbind_all(&mut self) {
        self.triggers.clear();
    }

    /// Fires a trigger on the client's demand, whatever the state.
    pub(crate) fn fire(&self, index: u32, vector: u32) -> bool {
        let trigger = self.triggers.get(&(index, vector));
        trigger.inspect(|trigger| trigger.fire()).is_some()
    }

    pub(crate) fn next_request(&mut self) -> Option<Request> {
        self.queue.pop_front()
    }

    /// Takes a message off the list and checks what came back.
    pub(crate) fn returned<'a>(
        &mut self,
        token: Token,
        result: Result<&'a [u8], Errno>,
    ) -> Option<Result<&'a [u8], Errno>> {
        let Some(request) = self.outstanding.remove(&token) else {
            self.counters.late_completions += 1;
            return None;
        };
        self.queue.retain(|queued| queued.token != token);
        Some(result.and_then(|data| {
            if request.writes {
                self.counters.dma_bytes_written += request.len as u64;
                Ok(&data[..0])
            } else if data.len() == request.len {
                self.counters.dma_bytes_read += request.len as u64;
                Ok(data)
            } else {
                tracing::warn!(
                    at = %request.at,
                    asked = request.len,
                    got = data.len(),
                    "a DMA read came back with another length"
                );
                Err(Errno::EIO)
            }
        }))
    }

    /// Forgets all messages, and gives back their tokens.
    pub(crate) fn forget_messages(&mut self) -> Vec<Token> {
        self.queue.clear();
        std::mem::take(&mut self.outstanding).into_keys().collect()
    }

    /// The windows that cover `range` without a gap, in order; all of them memory, or
    /// a single one that takes messages.
    fn cover(&self, range: IovaRange, writes: bool) -> Result<Vec<&Mapping>, BusError> {
        let mut found = Vec::with_capacity(1);
        let mut at = range.start();
        while at < range.end() {
            let mapping = match self.windows.range(..=at).next_back() {
                Some((_, mapping)) if mapping.range.contains(at) => mapping,
                _ => return Err(BusError::Unmapped),
            };
            if writes && !mapping.writable {
                return Err(BusError::ReadOnly);
            }
            at = mapping.range.end();
            found.push(mapping);
        }
        let messages =
            found.iter().any(|mapping| matches!(mapping.target, DmaTarget::Messages));
        if messages && found.len() > 1 {
            return Err(BusError::Unmapped);
        }
        Ok(found)
    }

    fn check(&mut self, at: Iova, len: usize) -> Result<IovaRange, BusError> {
        if self.gate == Gate::Shut {
            self.counters.dma_while_stopped += 1;
            tracing::warn!(%at, len, "the model tried DMA while it is stopped");
            return Err(BusError::Stopped);
        }
        IovaRange::new(at.0, len as u64).map_err(|_| BusError::Unmapped)
    }

    fn submit(&mut self, at: Iova, kind: RequestKind) -> Result<Dma, BusError> {
        let (len, writes) = match &kind {
            RequestKind::Read(len) => (*len, false),
            RequestKind::Write(data) => (data.len(), true),
        };
        if self.outstanding.len() >= REQUESTS_MAX {
            return Err(BusError::Busy);
        }
        let token = Token(self.next_token);
        self.next_token += 1;
        self.outstanding.insert(token, Outstanding { at, len, writes });
        self.queue.push_back(Request { token, at, kind });
        Ok(Dma::Later(token))
    }

    /// Whether a message of `len` bytes may be sent now.
    fn may_send(&self, len: usize) -> Result<(), BusError> {
        if self.gate != Gate::Open {
            Err(BusError::Quiescing)
        } else if len > self.message_limit {
            Err(BusError::TooLong(self.message_limit))
        } else {
            Ok(())
        }
    }
}

/// Walks an access that is covered by memory windows: `step` gets the window, the
/// offset in it, and the part of the access.
fn each_part(
    range: IovaRange,
    windows: &[&Mapping],
    mut step: impl FnMut(&dyn DmaWindow, u64, std::ops::Range<usize>) -> Result<(), Errno>,
) -> Result<(), BusError> {
    for mapping in windows {
        let DmaTarget::Window(window) = &mapping.target else { continue };
        let Some(part) = mapping.range.intersection(range) else { continue };
        let start = (part.start() - range.start()) as usize;
        let offset = part.start() - mapping.range.start();
        step(window.as_ref(), offset, start..start + part.length() as usize)
            .map_err(BusError::Failed)?;
    }
    Ok(())
}

impl Bus for Wires {
    fn read(&mut self, at: Iova, into: &mut [u8]) -> Result<Dma, BusError> {
        let range = self.check(at, into.len())?;
        let windows = self.cover(range, false)?;
        if matches!(windows[0].target, DmaTarget::Messages) {
            self.may_send(into.len())?;
            return self.submit(at, RequestKind::Read(into.len()));
        }
        each_part(range, &windows, |window, offset, part| {
            window.read(offset, &mut into[part])
        })?;
        self.counters.dma_bytes_read += range.length();
        Ok(Dma::Done)
    }

    fn write(&mut self, at: Iova, data: &[u8]) -> Result<Dma, BusError> {
        let range = self.check(at, data.len())?;
        let windows = self.cover(range, true)?;
        if matches!(windows[0].target, DmaTarget::Messages) {
            self.may_send(data.len())?;
            // The client writes, and marks its own bitmap.
            return self.submit(at, RequestKind::Write(data.to_vec()));
        }
        let written = each_part(range, &windows, |window, offset, part| {
            window.write(offset, &data[part])
        });
        // Marked even if it failed: a part of it may have been written.
        self.log.mark(range);
        written?;
        self.counters.dma_bytes_written += range.length();
        Ok(Dma::Done)
    }

    fn raise(&mut self, index: u32, vector: u32) -> Result<(), BusError> {
        if self.gate == Gate::Shut {
            self.counters.interrupts_while_stopped += 1;
            tracing::warn!(index, vector, "the model raised an interrupt while stopped");
            return Err(BusError::Stopped);
        }
        if !self.fire(index, vector) {
            return Err(BusError::Unbound);
        }
        self.counters.interrupts += 1;
        Ok(())
    }

    fn message_limit(&self) -> usize {
        self.message_limit
    }

    fn outstanding(&self) -> usize {
        self.outstanding.len()
    }
}
