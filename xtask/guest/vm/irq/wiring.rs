//! One interrupt of a device, as a VMM routes it: an eventfd on the one side, a line or
//! messages on the other. By hand, which counts every signal; or by `control::Function`,
//! where the guest chose it in config space, as it can mtty's line.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use abi::pci::irq_index;
use control::{Function, IrqAction, IrqForm, Transport};
use port::{ConfigSpace, Interrupts, VmmError};
use sys::EventFd;

use crate::said;

/// Which kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A line, which stays up until it is acknowledged.
    Intx,
    /// Messages, each of which counts.
    Msi,
}

impl Kind {
    fn index(self) -> u32 {
        match self {
            Kind::Intx => irq_index::INTX,
            Kind::Msi => irq_index::MSI,
        }
    }

    /// For names.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Kind::Intx => "intx",
            Kind::Msi => "msi",
        }
    }
}

/// The wiring of one device; clones are the same one.
#[derive(Clone)]
pub(crate) struct Wiring {
    device: Arc<dyn Transport>,
    kind: Kind,
    event: Arc<EventFd>,
    seen: Arc<Mutex<Seen>>,
    /// Who routes it, if not we.
    function: Option<Function>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Messages that the guest has not taken; 1 while the line is up.
    waiting: u64,
    /// Whether the guest has taken the interrupt and not acknowledged it yet.
    in_service: bool,
    counts: Counts,
}

/// What went through, for the account.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counts {
    /// What the device signalled.
    pub(crate) signals: u64,
    /// Messages that came, or times that the line went up. What was delivered after a
    /// migration is not among them.
    pub(crate) raised: u64,
    /// What the last drain took, and what was delivered to the guest altogether.
    pub(crate) drained: u64,
    pub(crate) delivered: u64,
}

impl Wiring {
    pub(crate) fn new(device: Arc<dyn Transport>, kind: Kind) -> Result<Wiring, String> {
        let event = Arc::new(EventFd::new().map_err(said("eventfd"))?);
        Ok(Wiring { device, kind, event, seen: Arc::default(), function: None })
    }

    /// The line of a function, as the library routes it.
    pub(crate) fn of_function(device: Arc<dyn Transport>) -> Result<Wiring, String> {
        let function =
            Function::open(Arc::clone(&device)).map_err(said("its function"))?;
        let function = function.ok_or("it is not on PCI")?;
        Ok(Wiring { function: Some(function), ..Wiring::new(device, Kind::Intx)? })
    }

    /// What the engine gets.
    pub(crate) fn ports(&self) -> (Option<Box<dyn ConfigSpace>>, Box<dyn Interrupts>) {
        match &self.function {
            Some(function) => (Some(function.config_space()), function.interrupts()),
            None => (None, Box::new(self.clone())),
        }
    }

    /// Whether every signal is counted here.
    pub(crate) fn by_hand(&self) -> bool {
        self.function.is_none()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the device signal from now on.
    pub(crate) fn connect(&self) -> Result<(), String> {
        if let Some(function) = &self.function {
            return function.interrupts().bind().map_err(said("bind the function"));
        }
        self.device
            .set_irqs(self.kind.index(), 0, &[&self.event])
            .map_err(said("bind the interrupt"))
    }

    /// Lets it signal no more.
    pub(crate) fn disconnect(&self) -> Result<(), String> {
        if let Some(function) = &self.function {
            return function.interrupts().unbind().map_err(said("unbind the function"));
        }
        self.device
            .set_irqs(self.kind.index(), 0, &[])
            .map_err(said("unbind the interrupt"))
    }

    /// How often the line of a function rose, and whether it is up.
    fn account(function: &Function) -> Result<(u64, u64), String> {
        let counts = function.counts().map_err(said("its account"))?;
        let line = counts.first().ok_or("it has no line")?;
        Ok((line.rises, line.pending))
    }

    /// Hears what the device has signalled, and says how often.
    pub(crate) fn look(&self) -> Result<u64, String> {
        if let Some(function) = &self.function {
            let (rises, pending) = Wiring::account(function)?;
            let mut seen = self.seen();
            seen.waiting = pending;
            let before = std::mem::replace(&mut seen.counts.raised, rises);
            return Ok(rises.saturating_sub(before));
        }
        let signals = self.event.take().map_err(said("read the eventfd"))?;
        let mut seen = self.seen();
        seen.counts.signals += signals;
        match self.kind {
            Kind::Msi => {
                seen.waiting += signals;
                seen.counts.raised += signals;
            }
            Kind::Intx if signals > 0 && seen.waiting == 0 => {
                seen.waiting = 1;
                seen.counts.raised += 1;
            }
            // It is up already.
            Kind::Intx => {}
        }
        Ok(signals)
    }

    /// The guest takes an interrupt, where there is one that it has not taken.
    pub(crate) fn take(&self) -> Result<bool, String> {
        if let Some(function) = &self.function {
            // Whoever looks at the line has it rise; the account says when.
            function.line().map_err(said("the line"))?;
        }
        self.look()?;
        let mut seen = self.seen();
        let there = seen.waiting > 0 && !seen.in_service;
        if there {
            seen.in_service = true;
            if self.kind == Kind::Msi {
                seen.waiting -= 1;
            }
        }
        Ok(there)
    }

    /// The guest has handled what it took.
    pub(crate) fn acknowledge(&self) -> Result<(), String> {
        let mut seen = self.seen();
        seen.in_service = false;
        if self.kind == Kind::Msi {
            return Ok(());
        }
        if let Some(function) = &self.function {
            return function.end_of_interrupt().map_err(said("end of interrupt"));
        }
        seen.waiting = 0;
        drop(seen);
        self.mask(false)
    }

    /// A guest goes on here. Its interrupt controller is its own: what it is about to
    /// handle moves with it. Says whether the device was told to keep the line back.
    pub(crate) fn arrive(&self, in_service: bool) -> Result<bool, String> {
        self.seen().in_service = in_service;
        if self.by_hand() {
            return Ok(false);
        }
        self.look()?;
        Ok(self.waiting() > 0)
    }

    /// Whether it is the same one.
    pub(crate) fn is(&self, other: &Wiring) -> bool {
        Arc::ptr_eq(&self.seen, &other.seen)
    }

    pub(crate) fn mask(&self, masked: bool) -> Result<(), String> {
        let action = if masked { IrqAction::Mask } else { IrqAction::Unmask };
        self.device
            .act_on_irqs(self.kind.index(), 0, action, IrqForm::All(1))
            .map_err(said("mask or unmask the interrupt"))
    }

    /// Messages that were not taken; 1 while the line is up.
    pub(crate) fn waiting(&self) -> u64 {
        self.seen().waiting
    }

    pub(crate) fn counts(&self) -> Counts {
        self.seen().counts
    }

    fn failed(&self, operation: &str, why: String) -> VmmError {
        VmmError::new(format!("interrupt of {}", self.device.name()), operation, why)
    }
}

impl Interrupts for Wiring {
    fn bind(&mut self) -> Result<(), VmmError> {
        self.connect().map_err(|why| self.failed("bind", why))
    }

    fn unbind(&mut self) -> Result<(), VmmError> {
        self.disconnect().map_err(|why| self.failed("unbind", why))
    }

    fn drain(&mut self) -> Result<Vec<u64>, VmmError> {
        self.look().map_err(|why| self.failed("drain", why))?;
        let mut seen = self.seen();
        seen.counts.drained = std::mem::take(&mut seen.waiting);
        Ok(vec![seen.counts.drained])
    }

    fn deliver(&mut self, pending: &[u64]) -> Result<(), VmmError> {
        let [pending] = *pending else {
            let why = format!("{} vectors instead of one", pending.len());
            return Err(self.failed("deliver", why));
        };
        let mut seen = self.seen();
        seen.counts.delivered += pending;
        match self.kind {
            Kind::Msi => seen.waiting += pending,
            Kind::Intx => seen.waiting = seen.waiting.max(pending.min(1)),
        }
        Ok(())
    }
}
