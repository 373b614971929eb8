//! A guest comes in from another host.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, Result};
use engine::Machine;
use engine::drive::{GuestFile, Incoming, Offered, Played, Playing, Received};
use engine::migration::Options;
use engine::migration::sink::Ending;
use link::{Acceptor, Connection, Listener};
use port::{ChannelError, Receive};
use serde::Deserialize;
use serde_json::{Value, json};

use super::departure::place;
use super::process::{Guest, Remember};
use super::vm::Vm;
use crate::output;

/// How long one look for a source takes, before it is asked whether to go on.
const LOOK: Duration = Duration::from_millis(100);

/// What is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    /// Where to listen for a source.
    #[serde(deserialize_with = "place")]
    from: link::Uri,
}

/// Lets a guest come into a process that another one has left; where it is awaited.
/// Nothing of what that one left behind is touched where this fails.
pub(super) fn again(guest: &Arc<Guest>, request: &Request) -> Result<Value> {
    guest.may_receive()?;
    let awaited = Awaited::at(&request.from, true)?;
    let from = awaited.from();
    let (begin, begun) = channel::<()>();
    let (waiting, unless) = (Arc::clone(guest), Arc::clone(&awaited.unless));
    std::thread::Builder::new()
        .name("arrival".to_owned())
        .spawn(move || {
            if begun.recv().is_ok() {
                awaited.receive(&waiting);
            }
        })
        .context("cannot start a thread")?;
    guest.again(from.clone(), unless)?;
    let _ = begin.send(());
    Ok(json!({ "waiting": { "from": from } }))
}

/// A place where a guest is awaited.
pub(super) struct Awaited {
    listener: Listener,
    /// Ends the wait.
    pub(super) unless: Arc<AtomicBool>,
    /// In a process that had a guest before.
    again: bool,
}

/// What one source came to.
enum Came {
    /// There is nothing more to wait for.
    All,
    /// Nothing; with what is to be known of it.
    Nothing(String),
}

impl Awaited {
    /// Listens there.
    pub(super) fn at(from: &link::Uri, again: bool) -> Result<Awaited> {
        let listener = link::listen(from)
            .with_context(|| format!("cannot wait for a guest at {from}"))?;
        Ok(Awaited { listener, unless: Arc::default(), again })
    }

    /// Where that is.
    pub(super) fn from(&self) -> String {
        self.listener.local().to_string()
    }

    /// Takes sources in until a guest is here, or nobody waits for it any more. Whoever
    /// only knocks, or is refused, changes nothing. Where what came with a source was
    /// thrown away, the process ends with status 1; one that had a guest before waits
    /// on.
    pub(super) fn receive(self, guest: &Arc<Guest>) {
        let note = loop {
            let (control, accept) = match self.listener.accept(LOOK) {
                _ if self.unless.load(Ordering::Acquire) => break None,
                Ok(connection) => connection,
                Err(ChannelError::TimedOut(_)) => {
                    // Nobody is asked any more where the process ends otherwise.
                    if guest.is_over().unwrap_or(true) {
                        return;
                    }
                    continue;
                }
                Err(error) => break Some(unable(&error.into())),
            };
            match self.one(guest, control, accept) {
                Ok(Came::All) => return,
                Ok(Came::Nothing(note)) if self.unless.load(Ordering::Acquire) => {
                    break Some(note);
                }
                Ok(Came::Nothing(note)) => {
                    guest.listening(Arc::clone(&self.unless), self.again, note);
                }
                Err(error) => break Some(unable(&error)),
            }
        };
        let again = self.again;
        // Whoever hears that nobody waits may listen there.
        drop(self);
        guest.emptied(note);
        if !again {
            guest.end_unless_quitting(1);
        }
    }

    /// One source, from its first word to the last.
    fn one(
        &self,
        guest: &Arc<Guest>,
        control: Connection,
        accept: Acceptor,
    ) -> Result<Came> {
        let opened = Arc::new(AtomicBool::new(false));
        let open = {
            let (guest, opened) = (Arc::clone(guest), Arc::clone(&opened));
            Box::new(move |offered: &[Offered]| {
                let (vm, lent) = build(&guest, offered)?;
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
        let incoming = Incoming::new(
            Box::new(control),
            Box::new(accept),
            store,
            token,
            patience,
            open,
        )
        .observer(Arc::new(observer));
        if !guest.receiving(incoming.handle(), Arc::clone(&self.unless)) {
            return Ok(Came::Nothing("cancelled".to_owned()));
        }
        let Received { machine, store: _, ending } = incoming.run();
        Ok(self.settle(guest, machine, ending, opened.load(Ordering::Acquire)))
    }

    fn settle(
        &self,
        guest: &Guest,
        machine: Option<Machine>,
        ending: Ending,
        opened: bool,
    ) -> Came {
        match ending {
            Ending::Running { .. } => {
                guest.arrived(machine, None);
                Came::All
            }
            Ending::NotStarted(why) => {
                let note = format!("the guest is here and stays paused: {why}");
                output::note(&note);
                guest.arrived(machine, Some(note));
                Came::All
            }
            Ending::InDoubt(cause) => {
                let note =
                    format!("whether the guest was taken over is not known: {cause}");
                output::note(&note);
                guest.in_doubt(machine, note);
                Came::All
            }
            Ending::Refused(reasons) => {
                let note = format!("refused a guest: {}", reasons.join("; "));
                output::note(&note);
                Came::Nothing(note)
            }
            Ending::Discarded(cause) if opened => {
                let note = format!("discarded what was received: {cause}");
                output::note(&note);
                if !self.again {
                    guest.listening(Arc::clone(&self.unless), false, note);
                    guest.end_unless_quitting(1);
                    return Came::All;
                }
                Came::Nothing(note)
            }
            Ending::Discarded(cause) => {
                let note = format!("a connection that brought no guest: {cause}");
                tracing::warn!("{note}");
                Came::Nothing(note)
            }
        }
    }
}

/// Why nobody can come any more.
fn unable(error: &anyhow::Error) -> String {
    let note = format!("cannot receive a guest: {error:#}");
    output::note(&note);
    note
}

/// How a guest from a file is run.
pub(super) struct Playback {
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
        let guest = Arc::clone(guest);
        Box::new(move |offered: &[Offered]| {
            let (vm, lent) = build(&guest, offered)?;
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
    if !guest.receiving(playing.handle(), Arc::clone(&how.unless)) {
        guest.emptied(None);
        return None;
    }
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
    guest.listening(Arc::clone(&how.unless), false, note);
    guest.end_unless_quitting(1);
    None
}

/// Makes the machine that the guest moves into.
fn build(guest: &Guest, offered: &[Offered]) -> Result<(Arc<Vm>, Machine), Vec<String>> {
    let chosen = guest.chosen();
    if offered.len() != chosen.machine.devices.len() {
        return Err(vec![format!(
            "the source has {} devices, the destination was given {}: give as many with \
             --device, in the same order",
            offered.len(),
            chosen.machine.devices.len()
        )]);
    }
    let text = |error: anyhow::Error| vec![format!("the destination: {error:#}")];
    let lending = guest.lending();
    let vm = Vm::build(&chosen.machine, chosen.hold, lending.inject).map_err(text)?;
    let machine = vm.machine(&lending).map_err(text)?;
    Ok((Arc::new(vm), machine))
}
