//! The bus as it really is: windows, messages on their way, interrupts and the log.

mod irqs;
mod messages;
mod windows;

pub use messages::{ACCESS_MAX, MESSAGE_LIMIT, REQUESTS_MAX, Request, RequestKind};
pub use windows::WINDOWS_MAX;

use crate::{Bus, BusError, Description, Dma, DmaLog, Token, Trigger};
use abi::errno::Errno;
use dirty::{Iova, IovaRange};
use irqs::{Irqs, Raised};
use messages::{Back, Messages};
use states::v2::State;
use std::borrow::Cow;
use windows::Windows;

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
    /// Interrupts that were heard: at once, or when their vector was unmasked.
    pub interrupts: u64,
    /// Interrupts raised while their vector was masked. However many they are, one is
    /// heard when it is unmasked.
    pub interrupts_masked: u64,
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

/// Everything outside of the model that the model can touch.
pub(crate) struct Wires {
    pub(crate) gate: Gate,
    pub(crate) log: DmaLog,
    pub(crate) counters: Counters,
    pub(crate) irqs: Irqs,
    pub(crate) messages: Messages,
    pub(crate) windows: Windows,
}

impl Wires {
    pub(crate) fn new(description: &Description) -> Wires {
        Wires {
            gate: Gate::Open,
            log: DmaLog::default(),
            counters: Counters::default(),
            irqs: Irqs::new(description),
            messages: Messages::new(),
            windows: Windows::new(),
        }
    }

    /// Lets another part of what the model does through. Lines whose level is up are
    /// heard when it opens.
    pub(crate) fn set_gate(&mut self, gate: Gate) {
        let opens = self.gate == Gate::Shut && gate != Gate::Shut;
        self.gate = gate;
        if opens {
            self.counters.interrupts += self.irqs.assert_all();
        }
    }

    /// Tells of a line whose level is up, where it is to be heard.
    fn assert(&mut self, line: (u32, u32)) {
        if self.gate != Gate::Shut && self.irqs.assert(line) {
            self.counters.interrupts += 1;
        }
    }

    /// Binds a trigger or takes it away.
    pub(crate) fn bind(&mut self, line: (u32, u32), trigger: Option<Box<dyn Trigger>>) {
        self.irqs.bind(line, trigger);
        self.assert(line);
    }

    /// Unmasks a vector: what waited is heard, in every state, since it was raised while
    /// the device ran; so is a line whose level is up, if the device runs.
    pub(crate) fn unmask(&mut self, line: (u32, u32)) {
        if self.irqs.unmask(line) {
            self.counters.interrupts += 1;
        } else {
            self.assert(line);
        }
    }

    /// Takes a window away, and gives back the accesses that end with it. Messages that
    /// were sent are the client's to answer.
    pub(crate) fn unmap(&mut self, range: IovaRange) -> Result<Vec<Token>, Errno> {
        self.windows.unmap(range)?;
        Ok(self.messages.unmapped(Some(range)))
    }

    /// Takes all windows away; accesses as [`unmap`](Self::unmap).
    pub(crate) fn unmap_all(&mut self) -> Vec<Token> {
        self.windows.clear();
        self.messages.unmapped(None)
    }

    /// What an answer came to: the access that is over, if one is.
    pub(crate) fn returned<'a>(
        &mut self,
        token: Token,
        result: Result<&'a [u8], Errno>,
    ) -> Result<Option<Answer<'a>>, Errno> {
        match self.messages.returned(token, result) {
            Back::Late => {
                self.counters.late_completions += 1;
                Err(Errno::ENOENT)
            }
            Back::Partly => Ok(None),
            Back::Done { token, len, writes, result } => {
                match (&result, writes) {
                    (Ok(_), true) => self.counters.dma_bytes_written += len as u64,
                    (Ok(_), false) => self.counters.dma_bytes_read += len as u64,
                    (Err(_), _) => {}
                }
                Ok(Some((token, result)))
            }
        }
    }

    fn check(&mut self, at: Iova, len: usize) -> Result<IovaRange, BusError> {
        if self.gate == Gate::Shut {
            self.counters.dma_while_stopped += 1;
            tracing::warn!(%at, len, "the model tried DMA while it is stopped");
            return Err(BusError::Stopped);
        }
        IovaRange::new(at.0, len as u64).map_err(|_| BusError::Unmapped)
    }

    /// Whether an access of `len` bytes may be taken that needs messages.
    fn may_send(&self, len: usize) -> Result<(), BusError> {
        if self.gate != Gate::Open {
            Err(BusError::Quiescing)
        } else if len > ACCESS_MAX {
            Err(BusError::TooLong(ACCESS_MAX))
        } else if !self.messages.has_room(len) {
            Err(BusError::Busy)
        } else {
            Ok(())
        }
    }
}

/// An access that is over, and the bytes of a read.
pub(crate) type Answer<'a> = (Token, Result<Cow<'a, [u8]>, Errno>);

impl Bus for Wires {
    fn read(&mut self, at: Iova, into: &mut [u8]) -> Result<Dma, BusError> {
        let range = self.check(at, into.len())?;
        if !self.windows.cover(range, false)? {
            self.windows.read(range, into)?;
            self.counters.dma_bytes_read += range.length();
            return Ok(Dma::Done);
        }
        self.may_send(into.len())?;
        let (first, later) = self.windows.by_message(range);
        let mut data = Vec::new();
        if first.len() < into.len() {
            data.resize(into.len(), 0);
            self.windows.read(range, &mut data)?;
        }
        let token = self.messages.submit(at, into.len(), false, data, first, later);
        Ok(Dma::Later(token))
    }

    fn write(&mut self, at: Iova, data: &[u8]) -> Result<Dma, BusError> {
        let range = self.check(at, data.len())?;
        let messages = self.windows.cover(range, true)?;
        if messages {
            self.may_send(data.len())?;
        }
        self.windows.write(range, data, &mut self.log)?;
        if messages {
            let (first, later) = self.windows.by_message(range);
            let data = data.to_vec();
            let token = self.messages.submit(at, data.len(), true, data, first, later);
            return Ok(Dma::Later(token));
        }
        self.counters.dma_bytes_written += range.length();
        Ok(Dma::Done)
    }

    fn raise(&mut self, index: u32, vector: u32) -> Result<(), BusError> {
        if self.gate == Gate::Shut {
            self.counters.interrupts_while_stopped += 1;
            tracing::warn!(index, vector, "the model raised an interrupt while stopped");
            return Err(BusError::Stopped);
        }
        match self.irqs.raise((index, vector)) {
            Raised::Unbound => return Err(BusError::Unbound),
            Raised::Heard => self.counters.interrupts += 1,
            Raised::Waits => self.counters.interrupts_masked += 1,
        }
        Ok(())
    }

    fn set_level(&mut self, index: u32, vector: u32, up: bool) {
        let line = (index, vector);
        if self.irqs.set_level(line, up) {
            self.assert(line);
        }
    }

    fn message_limit(&self) -> usize {
        self.messages.limit
    }

    fn outstanding(&self) -> usize {
        self.messages.outstanding()
    }
}
