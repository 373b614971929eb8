//! `vfio-migrate receive`: devices without a guest come from another host.
//!
//! ```text
//!   listening --source--> receiving --PREPARED--> handed over: they run, or are stopped
//!       ^                    |          |
//!       '-- refused, --------'          '-- source gone --> in doubt: stopped, and whose
//!           nobody                                          they are is not known
//! ```
//!
//! Where it is in doubt the command ends, with status 3: the devices are stopped, with
//! everything that came, and stay so in their server. Whoever looks at the source
//! decides; nothing is thrown away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use engine::Machine;
use engine::drive::{Incoming, Offered, Received};
use engine::migration::Options;
use engine::migration::sink::Ending;
use link::{Acceptor, Connection, Listener};
use port::ChannelError;
use serde_json::json;

use crate::args::{Devices, Global, Receive};
use crate::devices::open_offered;
use crate::exit::{Exit, status};
use crate::output;
use crate::progress::Show;
use crate::report::received::Arrival;
use crate::signals::cancel_once;

/// How long one look for a source or for the end takes, before signals are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Receives one migration.
pub(super) fn run(receive: &Receive, global: &Global) -> Result<Exit> {
    let cancelled = Arc::new(AtomicBool::new(false));
    let cancel = Arc::clone(&cancelled);
    let _watching = cancel_once(move || cancel.store(true, Ordering::Release))?;
    let listener = link::listen(&receive.from)
        .with_context(|| format!("cannot wait for devices at {}", receive.from))?;
    let from = listener.local().to_string();
    let ready = json!({ "ready": { "from": from, "pid": std::process::id() } });
    output::say(&format!("waiting for devices at {from}"), &ready)?;
    let scene = Scene { listener, cancelled, devices: &receive.devices, global };
    let arrival = scene.next()?;
    if global.json {
        output::json(&arrival.to_json())?;
    } else {
        output::line(&arrival.text())?;
    }
    let exit = status(arrival.found());
    if let (true, Some(error)) = (exit != Exit::Done, &arrival.error) {
        output::note(&format!("vfio-migrate: {error}"));
    }
    Ok(exit)
}

/// What stays the same from one source to the next.
struct Scene<'a> {
    listener: Listener,
    cancelled: Arc<AtomicBool>,
    devices: &'a Devices,
    global: &'a Global,
}

impl Scene<'_> {
    /// Waits for a source that brings something. Whoever only knocks, or is refused,
    /// changes nothing.
    fn next(&self) -> Result<Arrival> {
        loop {
            let (control, accept) = match self.listener.accept(LOOK) {
                Ok(connection) => connection,
                Err(ChannelError::TimedOut(_)) if self.is_cancelled() => {
                    bail!("interrupted: nothing came, and the devices are as they were");
                }
                Err(ChannelError::TimedOut(_)) => continue,
                Err(error) => return Err(error.into()),
            };
            if let Some(arrival) = self.one(control, accept)? {
                return Ok(arrival);
            }
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// One source, from its first word to the last.
    fn one(&self, control: Connection, accept: Acceptor) -> Result<Option<Arrival>> {
        let began = Instant::now();
        let opened = Arc::new(AtomicBool::new(false));
        let open = {
            let (devices, opened) = (self.devices.clone(), Arc::clone(&opened));
            Box::new(move |offered: &[Offered]| {
                let machine = machine(&devices, offered)?;
                opened.store(true, Ordering::Release);
                Ok(machine)
            })
        };
        let mut token = [0; 8];
        token.copy_from_slice(&store::new_attempt()?.0[..8]);
        let show = Show::new(self.global.json, self.global.verbose > 0);
        let incoming = Incoming::new(
            Box::new(control),
            Box::new(accept),
            Box::new(store::Memory::new()?),
            token,
            Options::default().patience,
            open,
        )
        .observer(Arc::new(show));
        let handle = incoming.handle();
        let (over, ended) = channel();
        std::thread::Builder::new()
            .name("arrival".to_owned())
            .spawn(move || {
                // Nobody may listen any more: what is held stays with the servers.
                let _ = over.send(incoming.run());
            })
            .context("cannot start a thread")?;
        let mut told = false;
        loop {
            match ended.recv_timeout(LOOK) {
                Ok(received) => {
                    let opened = opened.load(Ordering::Acquire);
                    return Ok(settle(received, opened, began.elapsed()));
                }
                Err(RecvTimeoutError::Disconnected) => bail!("the engine panicked"),
                // What holds holds on in the devices' servers, without this process.
                Err(RecvTimeoutError::Timeout) if handle.holding() => {
                    return Ok(Some(Arrival::held(began.elapsed())));
                }
                Err(RecvTimeoutError::Timeout) if self.is_cancelled() && !told => {
                    told = true;
                    output::note("cancelling");
                    handle.cancel();
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

fn machine(devices: &Devices, offered: &[Offered]) -> Result<Machine, Vec<String>> {
    let opened = open_offered(&devices.devices, offered.len())?;
    Ok(Machine::devices_only(opened, true, !devices.independent))
}

/// What came of it; nothing where the next source may come.
fn settle(received: Received, opened: bool, took: Duration) -> Option<Arrival> {
    let Received { machine, store: _, ending } = received;
    match &ending {
        Ending::Refused(reasons) => {
            output::note(&format!("refused devices: {}", reasons.join("; ")));
            None
        }
        Ending::Discarded(cause) if !opened => {
            tracing::warn!("a connection that brought nothing: {cause}");
            None
        }
        _ => Some(Arrival::new(machine.as_ref(), &ending, took)),
    }
}
