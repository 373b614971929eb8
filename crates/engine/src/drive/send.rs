//! A migration to another host: what a VMM hands in, and what it gets back.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use port::{
    AttemptId, Channel, Clock, DecisionStore, Dial, Observer, Silent, SystemClock,
};
use wire::preamble::{Architecture, ByteOrder, Features, MigrationId, Preamble, Role};

use super::control::{Listener, Speaker};
use super::handle::{SourceFlags, SourceHandle};
use super::heard::{Backlog, FromSource as Heard, too_much};
use super::sending::{Sending, Wired};
use super::spread::members;
use super::tracker::chain;
use crate::devices::check_p2p;
use crate::machine::{Machine, Slot};
use crate::migration::{
    Cause, DeviceReport, Error, Options, Outcome, Recovery, Report, compat,
};

/// A migration to another host, about to run.
pub struct Outgoing {
    machine: Machine,
    control: Box<dyn Channel>,
    dial: Box<dyn Dial>,
    store: Box<dyn DecisionStore>,
    attempt: AttemptId,
    options: Options,
    observer: Arc<dyn Observer>,
    clock: Arc<dyn Clock>,
    events: (Sender<Heard>, Receiver<Heard>),
    flags: Arc<SourceFlags>,
}

/// How it went, and everything that was lent.
pub struct Sent {
    /// The machine. A device whose thread is stuck is missing; the error names it.
    pub machine: Machine,
    /// The store.
    pub store: Box<dyn DecisionStore>,
    /// What happened.
    pub report: Report,
    /// Whether the guest is the destination's and runs (or is paused) there; with
    /// [`Finish::Keep`](crate::migration::Finish::Keep), whether the other side was
    /// prepared and the guest is here as it is to be.
    pub result: Result<(), Error>,
    /// The operator asked for a pause, and the migration ended before its stop: the
    /// guest runs on here, and the VMM should pause it.
    pub pause_pending: bool,
}

impl std::fmt::Debug for Sent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sent")
            .field("machine", &self.machine)
            .field("report", &self.report)
            .field("result", &self.result)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outgoing")
            .field("machine", &self.machine)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Outgoing {
    /// A migration of `machine` over a fresh control connection. Nothing is touched
    /// until [`Outgoing::run`]. `attempt` is new for each attempt.
    pub fn new(
        machine: Machine,
        control: Box<dyn Channel>,
        dial: Box<dyn Dial>,
        store: Box<dyn DecisionStore>,
        attempt: AttemptId,
        options: Options,
    ) -> Outgoing {
        Outgoing {
            machine,
            control,
            dial,
            store,
            attempt,
            options,
            observer: Arc::new(Silent),
            clock: Arc::new(SystemClock::new()),
            events: channel(),
            flags: Arc::default(),
        }
    }

    /// Somebody who watches.
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Outgoing {
        self.observer = observer;
        self
    }

    /// Another clock than the system's.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Outgoing {
        self.clock = clock;
        self
    }

    /// Steers it from other threads.
    pub fn handle(&self) -> SourceHandle {
        SourceHandle {
            events: Arc::new(Mutex::new(self.events.0.clone())),
            flags: Arc::clone(&self.flags),
        }
    }

    /// What would keep this machine from migrating; empty when nothing does. Reads
    /// only, and starts nothing.
    pub fn blockers(machine: &Machine) -> Vec<String> {
        let mut blockers: Vec<String> = compat::too_many(machine).collect();
        let capabilities =
            machine.devices.iter().map(|slot| slot.device.identity().capabilities);
        if let Err(refusal) = check_p2p(capabilities, machine.dma.peer_to_peer()) {
            blockers.push(refusal.to_string());
        }
        if machine.dma.virtual_iommu() {
            blockers.push(
                "the guest controls a virtual IOMMU, and the devices' writes cannot be \
                 traced to guest memory: remove the virtual IOMMU"
                    .to_owned(),
            );
        }
        blockers
    }

    /// Runs it to its end, however that is.
    pub fn run(self) -> Sent {
        let clock = Arc::clone(&self.clock);
        let began = clock.now();
        let patience = self.options.patience;
        match self.assemble() {
            Ok((mut sending, mut store)) => {
                let ending = sending.run(&mut *store);
                let total = clock.now().saturating_sub(began);
                let (report, result) = sending.report(ending, total);
                let pause_pending = sending.pause_pending();
                let machine = sending.finish(patience);
                Sent { machine, store, report, result, pause_pending }
            }
            Err(early) => {
                let Early { recovery, machine, store, cause } = *early;
                let report = Report {
                    devices: device_reports(&machine),
                    ..Report::nothing(Outcome::of(&cause, recovery), clock.now() - began)
                };
                let result = Err(Error { cause, recovery, devices: Vec::new() });
                Sent { machine, store, report, result, pause_pending: false }
            }
        }
    }

    /// Everything that is needed before the first word: the preamble goes out, the
    /// threads start.
    fn assemble(self) -> Result<(Sending, Box<dyn DecisionStore>), Box<Early>> {
        let Outgoing {
            mut machine,
            control,
            dial,
            store,
            attempt,
            options,
            observer,
            clock,
            events: (events, inbox),
            flags,
        } = self;
        let opening = |machine: &mut Machine| {
            let blockers = Outgoing::blockers(machine);
            if !blockers.is_empty() {
                return Err(Cause::Refused(blockers));
            }
            let members = members(machine)?;
            let preamble = Preamble {
                byte_order: ByteOrder::HOST,
                architecture: Architecture::HOST,
                page_size: compat::page_size(&*machine.memory)?,
                required: Features::NONE,
                optional: Features::NONE,
                migration: MigrationId(attempt.0),
                role: Role::Control,
            };
            let halves =
                control.split().map_err(|error| Cause::Channel(chain(&error)))?;
            let (transmit, receive, close) = halves;
            let speaker = Speaker::open(transmit, &preamble, options.patience)?;
            let backlog = Backlog::default();
            let heard = backlog.clone();
            listen(receive, preamble, options.patience, events.clone(), heard);
            Ok((members, preamble, speaker, close, backlog))
        };
        let (members, preamble, speaker, close, backlog) = match opening(&mut machine) {
            Ok(opened) => opened,
            Err(cause) => {
                // Nothing was touched.
                let recovery = Recovery::Retry;
                return Err(Box::new(Early { recovery, machine, store, cause }));
            }
        };
        let wired = Wired {
            hello: compat::hello(&machine, &options, store.id()),
            devices: device_reports(&machine),
            transactions: (machine.devices.iter())
                .map(|slot| slot.device.longest_transaction())
                .collect(),
            paused: machine.vcpus.paused(),
            members,
            preamble,
            speaker,
            close,
            dial,
            attempt,
            options,
            observer,
            clock,
            events,
            inbox,
            backlog,
            flags,
        };
        match Sending::start(machine, wired) {
            Ok(sending) => Ok((sending, store)),
            Err(failed) => {
                let (machine, cause) = *failed;
                // What was handed to a thread that did not start is gone.
                let recovery = Recovery::DeviceLost;
                Err(Box::new(Early { recovery, machine, store, cause }))
            }
        }
    }
}

/// What is left where nothing was started.
struct Early {
    recovery: Recovery,
    machine: Machine,
    store: Box<dyn DecisionStore>,
    cause: Cause,
}

fn device_reports(machine: &Machine) -> Vec<DeviceReport> {
    let one = |slot: &Slot| DeviceReport {
        name: slot.device.name().to_owned(),
        identity: slot.device.identity().clone(),
        bytes: 0,
        stop: Duration::ZERO,
        save: Duration::ZERO,
        load: Duration::ZERO,
        start: Duration::ZERO,
        validated_at_start: false,
    };
    machine.devices.iter().map(one).collect()
}

/// Reads the control connection until it ends.
fn listen(
    mut receive: Box<dyn port::Receive>,
    ours: Preamble,
    patience: Duration,
    events: Sender<Heard>,
    backlog: Backlog,
) {
    let greeted = move || -> Result<Listener, Cause> {
        let bytes = Listener::preamble(&mut *receive, patience)?;
        // Its version or its features are not known here: the same as a refusal.
        let theirs = Preamble::decode(&bytes)
            .map_err(|error| Cause::Refused(vec![chain(&error)]))?;
        if theirs.migration == ours.migration {
            return Ok(Listener::new(receive, ours.page_size));
        }
        Err(Cause::Protocol("the peer answers for another migration".to_owned()))
    };
    let listening = move || {
        let end = match greeted() {
            Err(cause) => cause,
            Ok(mut listener) => loop {
                match listener.hear() {
                    Ok(_) if !backlog.enter() => break too_much(),
                    Ok(message) => {
                        if events.send(Heard::Message(message)).is_err() {
                            return;
                        }
                    }
                    Err(cause) => break cause,
                }
            },
        };
        let _ = events.send(Heard::ControlGone(end));
    };
    // Without this thread nothing is heard, and the first deadline says so.
    let _ = thread::Builder::new().name("control".into()).spawn(listening);
}
