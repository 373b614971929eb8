//! What one guest process has, and the commands that change it.

mod awaiting;
mod lent;
mod opening;
mod taken;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use engine::Machine;
use engine::drive::{Outgoing, SinkHandle, SourceHandle};
use link::RateLimit;
use port::{Observer, Progress};
use serde_json::{Value, json};
use sys::EventFd;

use super::counts;
use super::inspect::digests;
use super::options::{Inject, MachineOptions};
use super::token::{Command, Refusal, Situation, allowed};
use super::verify;
use super::vm::{Lending, Vm};
use crate::{progress, report};

/// How long a process that is told to end waits for a migration to end first.
const ENDING: Duration = Duration::from_secs(30);

/// How long a command waits for another one to be over.
const TURN: Duration = Duration::from_secs(5);

/// What is said where the machine is nobody's any more.
const GONE: &str = "the machine did not come back, and nothing can be done with this \
                    guest but quit";

/// One guest process.
pub(super) struct Guest {
    inner: Mutex<Inner>,
    changed: Condvar,
    chosen: Chosen,
    /// Where decisions are remembered.
    pub(super) store: store::Memory,
    /// Readable once the process is to end.
    pub(super) over: EventFd,
    status: AtomicU8,
    /// An operator ends it, and says with what status.
    quitting: AtomicBool,
}

/// What an operator chose for a process, whatever guest it has.
pub(super) struct Chosen {
    /// The machine.
    pub(super) machine: MachineOptions,
    /// See [`RunOptions::hold`](super::options::RunOptions::hold).
    pub(super) hold: bool,
    /// Where digests of the stopped guest go.
    pub(super) digests: Option<PathBuf>,
    /// What is broken in the first migration.
    pub(super) inject: Option<Inject>,
}

struct Inner {
    at: At,
    vm: Option<Arc<Vm>>,
    /// Away while the engine or a command has it.
    machine: Option<Machine>,
    progress: Option<Value>,
    /// What the operator should know of the last thing that ended.
    note: Option<String>,
    /// What the engine would refuse the machine for.
    blockers: Vec<String>,
    /// Devices that did not come back from something, with the reason.
    lost: Vec<String>,
    /// Why there is no machine here, where nobody will give it back.
    gone: Option<String>,
    /// Where a destination listens.
    from: Option<String>,
    /// What is still to be broken.
    inject: Option<Inject>,
    /// A snapshot waits for its file to be opened; the flag ends that.
    opening: Option<Arc<AtomicBool>>,
}

/// Whose the guest is.
enum At {
    Here,
    Out {
        handle: SourceHandle,
        limit: RateLimit,
        paused: bool,
    },
    /// Its copy is being made; the flag ends every wait for the file.
    Copied(SourceHandle, Arc<AtomicBool>),
    /// Nobody has come yet; the flag ends the wait.
    Waiting {
        unless: Arc<AtomicBool>,
        again: bool,
    },
    /// One comes in; the flag ends every wait for another, or for the file that it comes
    /// from.
    In(SinkHandle, Arc<AtomicBool>),
    Moved,
    Empty,
    InDoubt,
}

/// The machine, taken for one command. It comes back when this is dropped.
struct Taken<'a> {
    guest: &'a Guest,
    vm: Arc<Vm>,
    machine: Option<Machine>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut inner = self.guest.locked();
        inner.machine = self.machine.take();
        // A migration that took it gives it back.
        if inner.machine.is_none() && matches!(inner.at, At::Here) {
            inner.gone.get_or_insert_with(|| GONE.to_owned());
        }
        drop(inner);
        self.guest.changed.notify_all();
    }
}

impl Guest {
    /// A process without a guest: a destination, or one that reads a guest from a file.
    /// The flag ends the wait.
    pub(super) fn waiting(
        chosen: Chosen,
        from: String,
        unless: Arc<AtomicBool>,
    ) -> Result<Guest> {
        let mut guest = Guest::new(chosen, At::Waiting { unless, again: false })?;
        let inner = guest.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        inner.from = Some(from);
        Ok(guest)
    }

    /// A process with a guest that has booted and does not run yet.
    pub(super) fn here(vm: Vm, chosen: Chosen) -> Result<Guest> {
        let guest = Guest::new(chosen, At::Here)?;
        let machine = vm.machine(&guest.lending())?;
        guest.settle(At::Here, Some(Arc::new(vm)), Some(machine), None);
        Ok(guest)
    }

    fn new(chosen: Chosen, at: At) -> Result<Guest> {
        Ok(Guest {
            inner: Mutex::new(Inner {
                at,
                vm: None,
                machine: None,
                progress: None,
                note: None,
                blockers: Vec::new(),
                lost: Vec::new(),
                gone: None,
                from: None,
                inject: chosen.inject,
                opening: None,
            }),
            changed: Condvar::new(),
            chosen,
            store: store::Memory::new()?,
            over: EventFd::new()?,
            status: AtomicU8::new(0),
            quitting: AtomicBool::new(false),
        })
    }

    fn locked(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an operator chose for this process.
    pub(super) fn chosen(&self) -> &Chosen {
        &self.chosen
    }

    /// How the engine gets the machine of a VM here.
    pub(super) fn lending(&self) -> Lending {
        let inject = self.locked().inject;
        Lending { digests: self.chosen.digests.clone(), inject }
    }

    /// The exit status.
    pub(super) fn status_code(&self) -> u8 {
        self.status.load(Ordering::Acquire)
    }

    /// Ends the process with that exit status.
    pub(super) fn end(&self, status: u8) {
        self.status.store(status, Ordering::Release);
        // A counter that is full is readable as well.
        let _ = self.over.signal(1);
    }

    /// Ends the process, unless an operator is about to.
    pub(super) fn end_unless_quitting(&self, status: u8) {
        if !self.quitting.load(Ordering::Acquire) {
            self.end(status);
        }
    }

    /// Something ended: this is what there is now.
    fn settle(
        &self,
        at: At,
        vm: Option<Arc<Vm>>,
        machine: Option<Machine>,
        note: Option<String>,
    ) {
        let mut inner = self.locked();
        inner.at = at;
        if vm.is_some() {
            inner.vm = vm;
        }
        inner.gone = None;
        if let Some(machine) = &machine {
            inner.blockers = Outgoing::blockers(machine);
        } else if matches!(inner.at, At::Here) {
            inner.blockers = Vec::new();
            inner.gone = Some(
                note.clone()
                    .map_or_else(|| GONE.to_owned(), |note| format!("{GONE}: {note}")),
            );
        }
        inner.machine = machine;
        inner.progress = None;
        // Who has only come changes nothing of what ended before.
        if note.is_some() || !matches!(inner.at, At::In(..)) {
            inner.note = note;
        }
        self.changed.notify_all();
    }

    /// The guest is this process's.
    pub(super) fn arrived(&self, machine: Option<Machine>, note: Option<String>) {
        self.settle(At::Here, None, machine, note);
    }

    /// Devices did not come back, or not with what they held.
    pub(super) fn lost<'a>(&self, names: impl IntoIterator<Item = &'a str>, why: &str) {
        let blocker = |name| format!("{name} did not come back with what it held: {why}");
        self.locked().lost.extend(names.into_iter().map(blocker));
    }

    /// Nobody knows whose the guest is.
    pub(super) fn in_doubt(&self, machine: Option<Machine>, note: String) {
        self.settle(At::InDoubt, None, machine, Some(note));
    }

    /// The guest is the destination's.
    pub(super) fn moved(&self, machine: Machine, note: Option<String>) {
        self.settle(At::Moved, None, Some(machine), note);
    }

    /// What this process has, by the token.
    fn situation(&self, inner: &Inner) -> Situation {
        match &inner.at {
            At::Here => {
                let runs = inner.vm.as_ref().is_some_and(|vm| vm.board.barrier.is_open());
                if runs { Situation::Running } else { Situation::Paused }
            }
            At::Out { handle, .. } => Situation::Migrating {
                interruptible: handle.interruptible(),
                yielded: handle.yielded(),
            },
            At::Copied(..) => Situation::Copying,
            At::Waiting { again, .. } => Situation::Waiting { again: *again },
            At::In(handle, _) if handle.holding() => Situation::Holding,
            At::In(..) => Situation::Receiving,
            At::Moved => Situation::Moved,
            At::Empty => Situation::Empty,
            At::InDoubt => Situation::InDoubt,
        }
    }

    /// Whether a command is allowed now.
    fn permit(&self, inner: &Inner, command: Command) -> Result<(), Refusal> {
        allowed(command, self.situation(inner))
    }

    /// Takes the machine for a command that is allowed now.
    fn take(&self, command: Command) -> Result<Taken<'_>> {
        let until = Instant::now() + TURN;
        let mut inner = self.locked();
        loop {
            self.permit(&inner, command)?;
            let vm = inner.vm.clone().ok_or(Refusal::NoGuest)?;
            if let Some(gone) = &inner.gone {
                bail!("{gone}");
            }
            let leaves = matches!(command, Command::Migrate | Command::Snapshot);
            if leaves && !inner.lost.is_empty() {
                bail!("{}", inner.lost.join("; "));
            }
            if let Some(machine) = inner.machine.take() {
                return Ok(Taken { guest: self, vm, machine: Some(machine) });
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!(inner.note.clone().unwrap_or_else(|| {
                    "another command is under way: try again".to_owned()
                }));
            }
            let waited = self.changed.wait_timeout(inner, left);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// `status`.
    pub(super) fn status(&self) -> Value {
        let inner = self.locked();
        let mut status = json!({
            "state": self.situation(&inner).name(),
            "pid": std::process::id(),
            "blockers": inner.blockers.iter().chain(&inner.lost).chain(&inner.gone)
                .collect::<Vec<&String>>(),
            "progress": inner.progress,
            "note": inner.note,
        });
        if let (Some(from), At::Waiting { .. } | At::In(..)) = (&inner.from, &inner.at) {
            status["from"] = from.as_str().into();
        }
        if let Some(vm) = &inner.vm {
            status["faults"] = vm.board.faults.count().into();
            if let Some(seen) = vm.changes.seen() {
                let percent =
                    |changed: report::Changed| changed.changed * 100 / changed.of.max(1);
                status["pages_changed_percent"] = percent(seen.pages).into();
                status["blocks_changed_percent"] = percent(seen.blocks).into();
            }
        }
        json!({ "status": status })
    }

    /// `counters`: what the guest did so far.
    pub(super) fn counters(&self) -> Result<Value> {
        let vm = {
            let inner = self.locked();
            self.permit(&inner, Command::Counters)?;
            inner.vm.clone().ok_or(Refusal::NoGuest)?
        };
        // While the engine has the devices nobody else asks them: an access that
        // reaches one just after it stopped would be taken for a peer's.
        let taken = self.take(Command::Freeze).ok();
        let running = vm.board.barrier.is_open();
        let devices: Result<Vec<Value>> = vm
            .board
            .devices
            .iter()
            .map(|device| {
                let blocks = match &taken {
                    None => None,
                    Some(_) => Some(device.moved(running)?),
                };
                let mut counted = counts::device(&vm.board, device);
                counted["name"] = device.name().into();
                counted["blocks"] = blocks.into();
                counted["commands"] = device.commands_over().into();
                Ok(counted)
            })
            .collect();
        drop(taken);
        let vcpus = vm.board.shown.iter().map(|shown| {
            let next = shown.next.load(Ordering::Acquire);
            json!({ "pages": next.saturating_sub(shown.pages) })
        });
        let (interrupts, masks, moves) = counts::all(&vm.board);
        Ok(json!({ "counters": {
            "vcpus": vcpus.collect::<Vec<Value>>(),
            "devices": devices?,
            "interrupts": interrupts,
            "masks": masks,
            "moves": moves,
            "timer_ms": vm.board.timer.now() / 1_000_000,
            "downtime_guest_ms": vm.board.gap().map(|gap| gap.as_secs_f64() * 1000.0),
            "faults": vm.board.faults.count(),
            "fault_texts": vm.board.faults.texts(),
        }}))
    }

    /// `pause`: the guest and its devices stop.
    pub(super) fn pause(&self) -> Result<()> {
        {
            let inner = self.locked();
            self.permit(&inner, Command::Pause)?;
            if let At::Out { handle, .. } = &inner.at {
                handle.pause();
                return Ok(());
            }
        }
        self.take(Command::Pause)?.stop()
    }

    /// `resume`: devices and guest go on.
    pub(super) fn resume(&self) -> Result<()> {
        {
            let inner = self.locked();
            self.permit(&inner, Command::Resume)?;
            if let At::Out { handle, paused, .. } = &inner.at {
                if *paused {
                    bail!(
                        "the guest was paused and migrates so: resume it where it \
                         arrives, or cancel the migration first"
                    );
                }
                // A pause that was asked for meanwhile has not taken effect.
                handle.resume();
                return Ok(());
            }
        }
        self.take(Command::Resume)?.start()
    }

    /// A guest that has just booted begins to run. Its devices run already, whether or
    /// not they could be stopped in order.
    pub(super) fn begin(&self) -> Result<()> {
        let mut taken = self.take(Command::Resume)?;
        Ok(taken.machine()?.vcpus.resume()?)
    }

    /// `freeze`: stops the guest, writes its digests again, and checks them against
    /// what its own workers did.
    pub(super) fn freeze(&self, path: Option<PathBuf>) -> Result<Value> {
        let mut taken = self.take(Command::Freeze)?;
        taken.stop()?;
        let vm = Arc::clone(&taken.vm);
        let digests = digests(&vm.board, vm.p2p)?;
        if let Some(path) = path.or_else(|| self.chosen.digests.clone()) {
            let written = digests.write(&path);
            written.with_context(|| format!("write {}", path.display()))?;
        }
        let problems = verify::problems(&vm.board, &digests);
        Ok(json!({ "frozen": true, "problems": problems }))
    }

    /// `cancel`.
    pub(super) fn cancel(&self) -> Result<()> {
        let mut inner = self.locked();
        if let Some(opening) = &inner.opening {
            opening.store(true, Ordering::Release);
        }
        match self.permit(&inner, Command::Cancel) {
            Err(Refusal::NoMigration) if inner.opening.is_some() => return Ok(()),
            permitted => permitted?,
        }
        match &inner.at {
            At::Out { handle, .. } => handle.cancel(),
            At::Copied(handle, unless) => {
                handle.cancel();
                unless.store(true, Ordering::Release);
            }
            At::In(handle, unless) => {
                handle.cancel();
                unless.store(true, Ordering::Release);
            }
            At::Waiting { .. } => inner = self.unawait(inner),
            _ => {}
        }
        drop(inner);
        Ok(())
    }

    /// `set-rate`: from now on.
    pub(super) fn set_rate(&self, rate: Option<u64>) -> Result<()> {
        let inner = self.locked();
        self.permit(&inner, Command::SetRate)?;
        if let At::Out { limit, .. } = &inner.at {
            limit.set(rate);
        }
        Ok(())
    }

    /// `quit`: whether it may; whoever asked calls [`Guest::end`] then.
    pub(super) fn quit(&self, discard: bool) -> Result<()> {
        let mut inner = self.locked();
        self.permit(&inner, Command::Quit { discard })?;
        if matches!(inner.at, At::Waiting { .. }) {
            self.quitting.store(true, Ordering::Release);
            inner = self.unawait(inner);
        }
        if let At::In(handle, unless) = &inner.at {
            self.quitting.store(true, Ordering::Release);
            unless.store(true, Ordering::Release);
            if handle.holding() {
                // RETURNED is recorded before anything is thrown away.
                handle.discard();
            } else {
                handle.cancel();
            }
            let until = Instant::now() + ENDING;
            while matches!(inner.at, At::In(..)) {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    self.quitting.store(false, Ordering::Release);
                    bail!("the migration does not end: ask for the status");
                }
                let waited = self.changed.wait_timeout(inner, left);
                inner = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            if matches!(inner.at, At::Here | At::InDoubt) {
                self.quitting.store(false, Ordering::Release);
                bail!("the guest came in meanwhile: ask for the status");
            }
        }
        Ok(())
    }

    /// Whether the process is to end.
    pub(super) fn is_over(&self) -> Result<bool> {
        let ready = sys::wait_readable(&[self.over.as_fd()], Duration::ZERO)?;
        Ok(ready == [true])
    }
}

/// Remembers the latest progress, and passes it on.
pub(super) struct Remember<F> {
    /// Whose progress it is.
    pub(super) guest: Arc<Guest>,
    /// Who hears it as well.
    pub(super) tell: F,
}

impl<F: Fn(Value) + Send + Sync> Observer for Remember<F> {
    fn progress(&self, progress: &Progress) {
        let event = progress::to_json(progress);
        // A transition among rounds says less than the round.
        if !matches!(progress, Progress::Transition { .. }) {
            self.guest.locked().progress = Some(event.clone());
        }
        (self.tell)(event);
    }
}
