//! Interrupts as the client hears them: triggers, masks, and what waits behind a mask.

use crate::{Description, Trigger};
use abi::irq::IrqInfoFlags;
use std::collections::{BTreeMap, BTreeSet};

/// Interrupt index and vector.
type Line = (u32, u32);

/// What became of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Raised {
    /// Somebody was told.
    Heard,
    /// The vector is masked: it is heard once, when it is unmasked.
    Waits,
    /// Nobody listens.
    Unbound,
}

/// All interrupts of a device.
pub(crate) struct Irqs {
    triggers: BTreeMap<Line, Box<dyn Trigger>>,
    /// The vectors that are masked, and whether one was raised meanwhile.
    masked: BTreeMap<Line, bool>,
    /// The lines whose level is up.
    up: BTreeSet<Line>,
    /// The indexes that mask themselves when they fire.
    automasked: Vec<u32>,
}

impl Irqs {
    pub(crate) fn new(description: &Description) -> Irqs {
        let automasked = description
            .irqs
            .iter()
            .filter(|irq| irq.flags.contains(IrqInfoFlags::AUTOMASKED));
        Irqs {
            triggers: BTreeMap::new(),
            masked: BTreeMap::new(),
            up: BTreeSet::new(),
            automasked: automasked.map(|irq| irq.index).collect(),
        }
    }

    /// Binds a trigger, or takes it away together with the mask and what waits there.
    pub(crate) fn bind(&mut self, line: Line, trigger: Option<Box<dyn Trigger>>) {
        match trigger {
            Some(trigger) => {
                self.triggers.insert(line, trigger);
            }
            None => {
                self.triggers.remove(&line);
                self.masked.remove(&line);
            }
        }
    }

    /// Takes the triggers and masks of an index away.
    pub(crate) fn unbind_index(&mut self, index: u32) {
        self.triggers.retain(|(of, _), _| *of != index);
        self.masked.retain(|(of, _), _| *of != index);
    }

    pub(crate) fn unbind_all(&mut self) {
        self.triggers.clear();
        self.masked.clear();
    }

    /// The device was reset: nothing waits any more, and all lines are down. Triggers
    /// and masks are the client's and stay.
    pub(crate) fn reset(&mut self) {
        self.masked.values_mut().for_each(|waits| *waits = false);
        self.up.clear();
    }

    pub(crate) fn mask(&mut self, line: Line) {
        self.masked.entry(line).or_insert(false);
    }

    /// Takes a mask away. Whether an interrupt that waited was heard now.
    pub(crate) fn unmask(&mut self, line: Line) -> bool {
        self.masked.remove(&line) == Some(true) && self.raise(line) == Raised::Heard
    }

    /// The device raises one.
    pub(crate) fn raise(&mut self, line: Line) -> Raised {
        let Some(trigger) = self.triggers.get(&line) else { return Raised::Unbound };
        if let Some(waits) = self.masked.get_mut(&line) {
            *waits = true;
            return Raised::Waits;
        }
        trigger.fire();
        if self.automasked.contains(&line.0) {
            self.masked.insert(line, false);
        }
        Raised::Heard
    }

    /// Sets the level of a line. Whether it went up.
    pub(crate) fn set_level(&mut self, line: Line, up: bool) -> bool {
        if !up {
            self.up.remove(&line);
        }
        up && self.up.insert(line)
    }

    /// Tells of a line that is up and neither masked nor unbound. Nothing waits behind
    /// the mask of another: whether it is up is asked again when that is gone.
    pub(crate) fn assert(&mut self, line: Line) -> bool {
        self.up.contains(&line)
            && !self.masked.contains_key(&line)
            && self.raise(line) == Raised::Heard
    }

    /// Tells of all lines that are up. How many were heard.
    pub(crate) fn assert_all(&mut self) -> u64 {
        let up: Vec<Line> = self.up.iter().copied().collect();
        up.into_iter().filter(|line| self.assert(*line)).count() as u64
    }

    /// Fires a trigger on the client's demand, whatever the mask, as the kernel does.
    pub(crate) fn fire(&self, line: Line) {
        if let Some(trigger) = self.triggers.get(&line) {
            trigger.fire();
        }
    }
}
