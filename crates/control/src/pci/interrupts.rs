//! What a function hears of its device: eventfds, bound as the guest chose.

use abi::pci::irq_index;
use port::{Interrupts, VmmError};
use sys::EventFd;

use super::state::{Binding, State};
use super::unfit::Unfit;
use super::view::InterruptMode;
use super::{Function, Inner};
use crate::transport::{IrqAction, IrqForm, TransportError};

impl Inner {
    /// Binds what should be bound, and nothing else.
    pub(super) fn connect(&self, state: &mut State) -> Result<(), Unfit> {
        let wanted = match state.connected {
            true => state.binding(&self.layout),
            false => Binding::NONE,
        };
        if state.bound != wanted {
            // A device has one kind at a time (vfio-pci refuses a second).
            self.disconnect(state)?;
            self.bind(state, wanted)?;
        }
        Ok(())
    }

    fn bind(&self, state: &mut State, wanted: Binding) -> Result<(), Unfit> {
        let Binding { mode, vectors } = wanted;
        let Some(index) = index(mode) else { return Ok(()) };
        let mut events: Vec<&EventFd> = Vec::with_capacity(vectors);
        let of = match mode {
            InterruptMode::Msi => &mut state.msi,
            InterruptMode::Msix => &mut state.msix,
            _ => &mut Vec::new(),
        };
        for vector in of.iter_mut().take(vectors) {
            events.push(vector.signals.event().map_err(Unfit::Event)?);
        }
        if mode == InterruptMode::Intx {
            events.push(state.line.signals.event().map_err(Unfit::Event)?);
        }
        // From here on something may be bound, whatever the answer is; it is never what
        // is wanted, so that the next attempt is one.
        state.bound = Binding { mode, vectors: 0 };
        self.transport.set_irqs(index, 0, &events)?;
        if mode == InterruptMode::Intx && state.line.heard.quiet() {
            // It was heard already, and is heard again when it is acknowledged.
            self.act_on_line(IrqAction::Mask)?;
        }
        state.bound = wanted;
        Ok(())
    }

    /// Unbinds everything. What was signalled until then is not lost.
    pub(super) fn disconnect(&self, state: &mut State) -> Result<(), Unfit> {
        if let Some(index) = index(state.bound.mode) {
            self.transport.set_irqs(index, 0, &[])?;
        }
        state.bound = Binding::NONE;
        state.sort(&self.layout).map_err(Unfit::Event)
    }

    pub(super) fn end_of_interrupt(&self) -> Result<(), Unfit> {
        let mut state = self.state();
        let off = state.line_is_off();
        state.line.sort(off).map_err(Unfit::Event)?;
        if !state.line.heard.asserted {
            return Ok(());
        }
        if state.bound.mode == InterruptMode::Intx {
            self.act_on_line(IrqAction::Unmask)?;
        }
        state.line.acknowledge();
        state.line.let_through(off);
        Ok(())
    }

    /// Some devices cannot be masked, or not in every state: they say twice what they
    /// have to say.
    fn act_on_line(&self, action: IrqAction) -> Result<(), Unfit> {
        let done =
            self.transport.act_on_irqs(irq_index::INTX, 0, action, IrqForm::All(1));
        match done {
            Err(TransportError::Errno { errno, .. }) => {
                let device = self.transport.name();
                tracing::debug!(device, ?action, %errno, "not done to the line");
                Ok(())
            }
            done => Ok(done?),
        }
    }
}

fn index(mode: InterruptMode) -> Option<u32> {
    match mode {
        InterruptMode::Off => None,
        InterruptMode::Intx => Some(irq_index::INTX),
        InterruptMode::Msi => Some(irq_index::MSI),
        InterruptMode::Msix => Some(irq_index::MSIX),
    }
}

/// The engine's way to the interrupts of a function.
#[derive(Debug)]
pub(super) struct Routed {
    function: Function,
}

impl Routed {
    pub(super) fn new(function: Function) -> Routed {
        Routed { function }
    }

    fn error(&self, operation: &str, why: Unfit) -> VmmError {
        VmmError::new(format!("interrupts of {}", self.function.name()), operation, why)
    }
}

impl Interrupts for Routed {
    fn bind(&mut self) -> Result<(), VmmError> {
        let inner = &self.function.inner;
        let mut state = inner.state();
        state.connected = true;
        inner.connect(&mut state).map_err(|why| self.error("bind", why))
    }

    fn unbind(&mut self) -> Result<(), VmmError> {
        let inner = &self.function.inner;
        let mut state = inner.state();
        state.connected = false;
        inner.connect(&mut state).map_err(|why| self.error("unbind", why))
    }

    /// The signals of the kind of interrupts that is on: of nothing else any are left. A
    /// masked vector may have several, which become its one pending bit where they are
    /// delivered, so that the accounts stay exact.
    fn drain(&mut self) -> Result<Vec<u64>, VmmError> {
        let inner = &self.function.inner;
        let mut state = inner.state();
        // All is asked before anything is taken.
        let collected = state.collect();
        collected.map_err(|why| self.error("drain", Unfit::Event(why)))?;
        Ok(state.drain(&inner.layout))
    }

    fn deliver(&mut self, pending: &[u64]) -> Result<(), VmmError> {
        let inner = &self.function.inner;
        let mut state = inner.state();
        let vectors = state.binding(&inner.layout).vectors;
        if pending.len() > vectors {
            let why = Unfit::Counts { counts: pending.len(), vectors };
            return Err(self.error("deliver", why));
        }
        state.deliver(&inner.layout, pending);
        // Its level is still up: said once is enough.
        let spoke = pending.first().is_some_and(|signals| *signals != 0);
        if state.bound.mode == InterruptMode::Intx && spoke {
            let masked = inner.act_on_line(IrqAction::Mask);
            masked.map_err(|why| self.error("mask", why))?;
        }
        Ok(())
    }
}
