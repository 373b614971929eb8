//! A guest comes in from another host.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use engine::Machine;
use engine::drive::{GuestFile, Incoming, Offered, Played, Playing, Received};
use engine::migration::Options;
use engine::migration::sink::Ending;
use link::{Acceptor, Connection, Listener};
use port::{ChannelError, Receive};

use super::options::{Inject, MachineOptions};
use super::process::{Guest, Remember};
use super::vm::Vm;
use crate::output;

/// How long one look for a source takes, before it is asked whether to go on.
const LOOK: Duration = Duration::from_millis(500);

/// Takes sources in until a guest is here, or what came with one was thrown away: the
/// process then ends with status 1. Whoever only knocks changes nothing.
pub(super) fn receive(
    guest: &Arc<Guest>,
    listener: &Listener,
    machine: &MachineOptions,
) -> Result<()> {
    loop {
        let (control, accept) = match listener.accept(LOOK) {
            Ok(connection) => connection,
            Err(ChannelError::TimedOut(_)) => {
                if guest.is_over()? {
                    return Ok(());
                }
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if one(guest, control, accept, machine)? {
            return Ok(());
        }
    }
}

/// One source, from its first word to the last. Whether there is nothing more to wait
/// for.
fn one(
    guest: &Arc<Guest>,
    control: Connection,
    accept: Acceptor,
    machine: &MachineOptions,
) -> Result<bool> {
    let opened = Arc::new(AtomicBool::new(false));
    let open = {
        let (guest, machine) = (Arc::clone(guest), machine.clone());
        let opened = Arc::clone(&opened);
        Box::new(move |offered: &[Offered]| {
            let (vm, lent) = build(&guest, &machine, false, None, offered)?;
            opened.store(true, Ordering::Release);
            guest.opened(vm);
            Ok(lent)
        })
    };
    let mut token = [0; 8];
    token.copy_from_slice(&store::new_attempt()?.0[..8]);
    let store = Box::new(guest.store.clone());
    let patience = Options::default().patience;
    let observer = Remember { guest: Arc::clone(guest), tell: |_| {} };
    let incoming =
        Incoming::new(Box::new(control), Box::new(accept), store, token, patience, open)
            .observer(Arc::new(observer));
    guest.receiving(incoming.handle(), Arc::default());
    let Received { machine, store: _, ending } = incoming.run();
    Ok(settle(guest, machine, ending, opened.load(Ordering::Acquire)))
}

/// How a guest from a file is run.
pub(super) struct Playback {
    /// The machine that it comes into.
    pub(super) machine: MachineOptions,
    /// See [`RunOptions::hold`](super::options::RunOptions::hold).
    pub(super) hold: bool,
    /// What is to be broken in its next migration.
    pub(super) inject: Option<Inject>,
    /// Whether it stays paused.
    pub(super) paused: bool,
    /// What was found in the file, where it could be read before.
    pub(super) found: Option<GuestFile>,
    /// Ends every wait for the file.
    pub(super) unless: Arc<AtomicBool>,
}

/// Takes the guest in that is in a file called `name`; whether it is paused. `None`
/// where none came: the process then ends with status 1.
pub(super) fn play(
    guest: &Arc<Guest>,
    from: Box<dyn Receive>,
    how: &Playback,
    name: &Path,
) -> Option<bool> {
    let open = {
        let (guest, machine) = (Arc::clone(guest), how.machine.clone());
        let (hold, inject) = (how.hold, how.inject);
        Box::new(move |offered: &[Offered]| {
            let (vm, lent) = build(&guest, &machine, hold, inject, offered)?;
            guest.opened(vm);
            Ok(lent)
        })
    };
    let patience = Options::default().patience;
    let observer = Remember { guest: Arc::clone(guest), tell: |_| {} };
    let playing =
        Playing::new(from, patience, open, how.paused).observer(Arc::new(observer));
    let playing = match &how.found {
        Some(found) => playing.verified(found),
        None => playing,
    };
    guest.receiving(playing.handle(), Arc::clone(&how.unless));
    let Played { machine, ending, file } = playing.run();
    let why = match (&ending, file) {
        (Ending::Running { paused }, _) => {
            let paused = *paused;
            guest.arrived(machine, None);
            return Some(paused);
        }
        (Ending::NotStarted(why), _) => {
            let note = format!("the guest is here and stays paused: {why}");
            output::note(&note);
            guest.arrived(machine, Some(note));
            return Some(true);
        }
        (_, Err(cause)) => cause.to_string(),
        (Ending::Refused(reasons), _) => reasons.join("; "),
        (Ending::Discarded(cause) | Ending::InDoubt(cause), _) => cause.to_string(),
    };
    let note = format!("cannot run a guest from {}: {why}", name.display());
    output::note(&format!("vfio-migrate: {note}"));
    guest.listening(Some(note));
    guest.end_unless_quitting(1);
    None
}

/// Makes the machine that the guest moves into.
fn build(
    guest: &Guest,
    options: &MachineOptions,
    hold: bool,
    inject: Option<Inject>,
    offered: &[Offered],
) -> Result<(Arc<Vm>, Machine), Vec<String>> {
    if offered.len() != options.devices.len() {
        return Err(vec![format!(
            "the source has {} devices, the destination was given {}: give as many with \
             --device, in the same order",
            offered.len(),
            options.devices.len()
        )]);
    }
    let text = |error: anyhow::Error| vec![format!("the destination: {error:#}")];
    let vm = Vm::build(options, hold, inject).map_err(text)?;
    let machine = vm.machine(guest.lending()).map_err(text)?;
    Ok((Arc::new(vm), machine))
}

/// Whether there is nothing more to wait for.
fn settle(guest: &Guest, machine: Option<Machine>, ending: Ending, opened: bool) -> bool {
    match ending {
        Ending::Running { .. } => {
            guest.arrived(machine, None);
            true
        }
        Ending::NotStarted(why) => {
            let note = format!("the guest is here and stays paused: {why}");
            output::note(&note);
            guest.arrived(machine, Some(note));
            true
        }
        Ending::InDoubt(cause) => {
            let note = format!("whether the guest was taken over is not known: {cause}");
            output::note(&note);
            guest.in_doubt(machine, note);
            true
        }
        Ending::Refused(reasons) => {
            let note = format!("refused a guest: {}", reasons.join("; "));
            output::note(&note);
            guest.listening(Some(note));
            false
        }
        Ending::Discarded(cause) if opened => {
            let note = format!("discarded what was received: {cause}");
            output::note(&note);
            guest.listening(Some(note));
            guest.end_unless_quitting(1);
            true
        }
        Ending::Discarded(cause) => {
            let note = format!("a connection that brought no guest: {cause}");
            tracing::warn!("{note}");
            guest.listening(Some(note));
            false
        }
    }
}
