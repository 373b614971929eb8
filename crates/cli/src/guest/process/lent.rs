//! The machine goes to whoever moves or copies the guest, and comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use engine::Machine;
use engine::drive::SourceHandle;
use link::RateLimit;

use super::{At, Guest};
use crate::guest::token::Command;
use crate::guest::vm::Vm;

impl Guest {
    /// Looks at a machine that stays where it is, for a migration that is not even begun.
    pub(in crate::guest) fn untouched<T>(
        &self,
        look: impl FnOnce(&Machine) -> T,
    ) -> Result<T> {
        let mut taken = self.take(Command::Migrate)?;
        Ok(look(taken.machine()?))
    }

    /// Lends the machine to a migration; `handle` makes the handle from it.
    pub(in crate::guest) fn depart<T>(
        &self,
        limit: RateLimit,
        prepare: impl FnOnce(Machine) -> (T, SourceHandle),
    ) -> Result<(T, Arc<Vm>)> {
        let mut taken = self.take(Command::Migrate)?;
        let vm = Arc::clone(&taken.vm);
        vm.changes.begin();
        let mut inner = self.locked();
        // Nobody else took it: the machine is away meanwhile.
        self.permit(&inner, Command::Migrate)?;
        let Some(machine) = taken.machine.take() else {
            bail!("the machine is gone");
        };
        let (prepared, handle) = prepare(machine);
        let paused = !vm.board.barrier.is_open();
        inner.at = At::Out { handle, limit, paused };
        inner.note = None;
        drop(inner);
        // Nothing is put back: the migration has it.
        drop(taken);
        Ok((prepared, vm))
    }

    /// Lends the machine to whoever copies it, unless the flag is set; `prepare` makes
    /// the handle from it.
    pub(in crate::guest) fn copied<T>(
        &self,
        unless: Arc<AtomicBool>,
        prepare: impl FnOnce(Machine) -> (T, SourceHandle),
    ) -> Result<(T, Arc<Vm>)> {
        let mut taken = self.take(Command::Snapshot)?;
        let vm = Arc::clone(&taken.vm);
        let mut inner = self.locked();
        self.permit(&inner, Command::Snapshot)?;
        if unless.load(Ordering::Acquire) {
            bail!("cancelled");
        }
        let Some(machine) = taken.machine.take() else {
            bail!("the machine is gone");
        };
        let (prepared, handle) = prepare(machine);
        inner.at = At::Copied(handle, unless);
        inner.note = None;
        drop(inner);
        drop(taken);
        Ok((prepared, vm))
    }

    /// Takes back what was lent to something that did not work out. A device whose
    /// thread is stuck did not come back: there is no machine then.
    pub(in crate::guest) fn back(
        &self,
        vm: &Vm,
        machine: Machine,
        error: &engine::migration::Error,
        note: String,
        pause_pending: bool,
    ) {
        self.lost(error.devices.iter().map(String::as_str), &error.cause.to_string());
        let whole = machine.devices.len() == vm.board.devices.len();
        self.arrived(whole.then_some(machine), Some(note));
        if pause_pending && let Err(error) = self.pause() {
            tracing::warn!(error = format!("{error:#}"), "cannot pause the guest");
        }
    }
}
