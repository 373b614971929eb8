//! The main loop of a source: hears events, takes steps, performs actions.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use port::{
    AttemptId, Clock, Close, Decision, DecisionStore, Dial, Observer, Phase, Progress,
};
use wire::Message;
use wire::message::{FailureCode, Hello, Prepared, Reason, RunState, Running};
use wire::preamble::{Preamble, Token};
use wire::tlv::plain_text;

use super::control::Speaker;
use super::device::{Command as DeviceCommand, Measured};
use super::gather::Gather;
use super::handle::SourceFlags;
use super::heard::{Backlog, FromSource as Heard};
use super::lane::Lane;
use super::memory::{Command as MemoryCommand, MemorySender};
use super::spread::{Spread, no_thread};
use super::tracker::{Tracker, chain};
use super::vmm::{Answer as VmmAnswer, Command as VmmCommand};
use super::watch::Watch;
use super::worker::Worker;
use crate::devices::{self, DeviceId, Member};
use crate::machine::Machine;
use crate::migration::source::{Action, Ending, Event, Source};
use crate::migration::{Cause, DeviceReport, Error, Options, Outcome, Report, compat};

/// An outgoing migration whose preamble was said.
pub(super) struct Wired {
    pub(super) hello: Hello,
    pub(super) devices: Vec<DeviceReport>,
    /// The longest transaction that each device may give.
    pub(super) transactions: Vec<Option<u64>>,
    pub(super) paused: bool,
    pub(super) members: Vec<Member>,
    pub(super) preamble: Preamble,
    pub(super) speaker: Speaker,
    pub(super) close: Box<dyn Close>,
    pub(super) dial: Box<dyn Dial>,
    pub(super) attempt: AttemptId,
    pub(super) options: Options,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) events: Sender<Heard>,
    pub(super) inbox: Receiver<Heard>,
    pub(super) backlog: Backlog,
    pub(super) flags: Arc<SourceFlags>,
}

/// Two workers undo something; the source hears when both have.
struct Undoing {
    tracking: bool,
    vmm: bool,
}

/// The main loop of a source.
pub(super) struct Sending {
    /// `None` only inside a step.
    source: Option<Source>,
    pub(super) spread: Spread,
    pub(super) memory: Worker<MemoryCommand, Tracker>,
    pub(super) wired: Wired,
    pub(super) token: Token,
    pub(super) lanes: Arc<Vec<Lane>>,
    pub(super) closers: Vec<Box<dyn Close>>,
    gather: Gather,
    span: Option<tracing::span::EnteredSpan>,
    watch: Watch,
    pace: Option<Duration>,
    prepared: Option<Prepared>,
    running: Option<Running>,
    memory_bytes: u64,
    dirty_failures: u64,
    undoing: Option<Undoing>,
}

impl Sending {
    /// Starts the threads.
    pub(super) fn start(
        machine: Machine,
        wired: Wired,
    ) -> Result<Sending, Box<(Machine, Cause)>> {
        let (memory, dma) = (Arc::clone(&machine.memory), Arc::clone(&machine.dma));
        let started = Spread::new(
            machine,
            &wired.members,
            &wired.events,
            &wired.observer,
            Heard::Device,
            Heard::Vmm,
        );
        let mut spread = match started {
            Ok(spread) => spread,
            Err(cause) => {
                return Err(Box::new((Spread::stuck(memory, dma), cause)));
            }
        };
        let sources = std::mem::take(&mut spread.dirty);
        let sender = MemorySender {
            tracker: Tracker::new(Arc::clone(&memory), dma, sources),
            memory,
            gate: spread.gate.clone(),
            page: wired.preamble.page_size,
            observer: Arc::clone(&wired.observer),
        };
        let source = Source::new(wired.options.clone(), wired.members.clone());
        let out = wired.events.clone();
        match Worker::start("memory", move |inbox| sender.work(&inbox, &out)) {
            Ok(memory) => Ok(Sending {
                source: Some(if spread.inspects {
                    source
                } else {
                    source.without_inspection()
                }),
                gather: Gather::new(spread.devices.len()),
                spread,
                memory,
                wired,
                token: Token::NONE,
                lanes: Arc::new(Vec::new()),
                closers: Vec::new(),
                span: None,
                watch: Watch::default(),
                pace: None,
                prepared: None,
                running: None,
                memory_bytes: 0,
                dirty_failures: 0,
                undoing: None,
            }),
            Err(error) => {
                let machine = spread.finish(wired.options.patience);
                Err(Box::new((machine, no_thread(&error))))
            }
        }
    }

    /// Runs to the end.
    pub(super) fn run(&mut self, store: &mut dyn DecisionStore) -> Ending {
        let ending = self.all_steps(store);
        self.wired.close.close();
        self.closers.iter().for_each(|close| close.close());
        ending
    }

    /// What happened, and what the caller has.
    pub(super) fn report(
        &self,
        ending: Ending,
        total: Duration,
    ) -> (Report, Result<(), Error>) {
        let devices = self.device_reports();
        let names =
            |ids: &[DeviceId]| ids.iter().map(|id| devices[id.0].name.clone()).collect();
        let (outcome, result) = match ending {
            Ending::Completed | Ending::Kept => (Outcome::Completed, Ok(())),
            Ending::Failed { cause, recovery, devices } => {
                let devices = names(&devices);
                let outcome = Outcome::of(&cause, recovery);
                (outcome, Err(Error { cause, recovery, devices }))
            }
        };
        // A paused guest has no downtime.
        let source = self.source();
        let ledger = source.ledger();
        let stopped = ledger.downtime().filter(|_| !source.paused());
        let report = Report {
            downtime: stopped,
            downtime_estimate: stopped.and(source.estimate().copied()),
            phases: stopped.map_or(Vec::new(), |_| ledger.phases().to_vec()),
            rounds: source.rounds(),
            memory_bytes: self.memory_bytes,
            device_bytes: devices.iter().map(|device| device.bytes).sum(),
            dirty_failures: self.dirty_failures,
            devices,
            ..Report::nothing(outcome, total)
        };
        (report, result)
    }

    /// Ends the threads and gives the machine back.
    pub(super) fn finish(self, patience: Duration) -> Machine {
        let tracker = self.memory.finish(patience);
        let mut machine = self.spread.finish(patience);
        machine.dirty = tracker.map_or(Vec::new(), Tracker::into_sources);
        machine
    }

    /// Whether the operator's pause came too late to take effect.
    pub(super) fn pause_pending(&self) -> bool {
        self.source().pause_pending()
    }

    fn source(&self) -> &Source {
        self.source.as_ref().expect("a step gives the source back")
    }

    fn all_steps(&mut self, store: &mut dyn DecisionStore) -> Ending {
        let mut queue = VecDeque::from([Event::Begin { paused: self.wired.paused }]);
        loop {
            while let Some(event) = queue.pop_front() {
                let source = self.source.take().expect("a step gives the source back");
                let (source, actions) = source.step(self.now(), event);
                let flags = &self.wired.flags;
                flags.locked.store(!source.interruptible(), Ordering::Release);
                if source.yielded() {
                    flags.yielded.store(true, Ordering::Release);
                }
                self.source = Some(source);
                for action in actions {
                    if let Action::End(ending) = action {
                        return ending;
                    }
                    queue.extend(self.perform(action, store));
                }
            }
            queue.extend(self.hear());
        }
    }

    fn now(&self) -> Duration {
        self.wired.clock.now()
    }

    /// A number that changes when bulk data moves.
    fn moved(&self) -> u64 {
        self.lanes.iter().map(Lane::sent).sum()
    }

    /// Waits for the next thing that matters.
    fn hear(&mut self) -> Option<Event> {
        let now = self.now();
        let next = [self.watch.until(), self.pace, self.source().out_of_time()]
            .into_iter()
            .flatten()
            .min();
        let wait = next.map_or(Duration::from_secs(3600), |at| at.saturating_sub(now));
        let heard = match self.wired.inbox.recv_timeout(wait) {
            Ok(heard) => heard,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                let now = self.now();
                if self.pace.is_some_and(|at| at <= now) {
                    self.pace = None;
                    return Some(Event::Paced);
                }
                if self.source().out_of_time().is_some_and(|at| at <= now) {
                    return Some(Event::OutOfTime);
                }
                let moved = self.moved();
                return self.watch.is_over(now, moved).then_some(Event::Deadline);
            }
        };
        match heard {
            Heard::Event(Event::RoundSent(bytes)) => {
                self.memory_bytes += bytes;
                Some(Event::RoundSent(bytes))
            }
            Heard::Event(event) => Some(event),
            Heard::Device(id, answer) => self.gather.device(id, answer),
            Heard::Vmm(answer) => self.vmm(answer),
            Heard::Message(message) => {
                self.wired.backlog.leave();
                self.message(message)
            }
            Heard::ControlGone(Cause::Refused(reasons)) => Some(Event::Refused(reasons)),
            Heard::ControlGone(cause) => Some(Event::Failed(cause)),
            Heard::DirtyFailures(count) => {
                self.dirty_failures = count;
                None
            }
            Heard::LastMemory(bytes) => {
                self.memory_bytes += bytes;
                None
            }
            Heard::TrackingUndone => {
                if let Some(undoing) = &mut self.undoing {
                    undoing.tracking = true;
                }
                self.undone()
            }
        }
    }

    fn undone(&mut self) -> Option<Event> {
        let done = self.undoing.as_ref().is_some_and(|u| u.tracking && u.vmm);
        done.then(|| {
            self.undoing = None;
            Event::Undone
        })
    }

    fn vmm(&mut self, answer: VmmAnswer) -> Option<Event> {
        Some(match answer {
            VmmAnswer::VcpusPaused => Event::VcpusPaused,
            VmmAnswer::ConfigSaved => Event::ConfigSaved,
            VmmAnswer::InterruptsDrained => Event::InterruptsDrained,
            VmmAnswer::Inspected => Event::Inspected,
            VmmAnswer::SectionsSaved => Event::SectionsSaved,
            VmmAnswer::Undone => {
                if let Some(undoing) = &mut self.undoing {
                    undoing.vmm = true;
                }
                return self.undone();
            }
            VmmAnswer::Failed(cause) => Event::Failed(cause),
            // The destination's part.
            VmmAnswer::VcpusRun
            | VmmAnswer::ConfigLoaded
            | VmmAnswer::Bound
            | VmmAnswer::Delivered
            | VmmAnswer::SectionsLoaded
            | VmmAnswer::Unbound => return None,
        })
    }

    fn message(&mut self, message: Message) -> Option<Event> {
        let micros = Duration::from_micros;
        Some(match message {
            Message::Accept(accept) => {
                if accept.devices.len() != self.wired.hello.devices.len() {
                    let text = "it accepts another number of devices than it was offered";
                    return Some(Event::Failed(Cause::Protocol(text.to_owned())));
                }
                let too_long = compat::check_transactions(
                    &self.wired.hello.devices,
                    &self.wired.transactions,
                    &accept.devices,
                );
                if !too_long.is_empty() {
                    return Some(Event::Failed(Cause::Refused(too_long)));
                }
                self.token = accept.token;
                Event::Accepted { load: micros(accept.prepare_us.unwrap_or(0)) }
            }
            Message::Refuse(refuse) => {
                Event::Refused(refuse.reasons.into_iter().map(|r| r.text).collect())
            }
            Message::RoundApplied { round } => {
                self.memory.tell(MemoryCommand::Acknowledge);
                Event::Applied(round)
            }
            Message::SwitchoverReady => Event::Ready,
            Message::NotReady { reason } => {
                Event::Failed(Cause::Peer { side: "destination", text: reason })
            }
            Message::Prepared(prepared) => {
                if let Err(cause) = self.check_prepared(&prepared) {
                    return Some(Event::Failed(cause));
                }
                let verify = micros(prepared.verify_us.unwrap_or(0));
                self.prepared = Some(prepared);
                Event::Prepared { verify }
            }
            Message::Running(running) => {
                self.running = Some(running);
                Event::Running
            }
            Message::Returned => Event::Returned("it recorded RETURNED".to_owned()),
            Message::NotStarted(not) => Event::NotStarted(not.text),
            Message::Failed(reason) | Message::Abort(reason) => {
                Event::Failed(Cause::Peer { side: "destination", text: reason.text })
            }
            other => Event::Failed(Cause::Protocol(format!(
                "{} from a destination",
                other.kind()
            ))),
        })
    }

    /// Every device over there has taken what this side gave.
    fn check_prepared(&self, prepared: &Prepared) -> Result<(), Cause> {
        let text = "PREPARED names another number of devices than there are";
        let given = &self.spread.measured;
        if prepared.devices.len() != given.len() {
            return Err(Cause::Protocol(text.to_owned()));
        }
        Ok(())
    }

    fn perform(
        &mut self,
        action: Action,
        store: &mut dyn DecisionStore,
    ) -> Option<Event> {
        match action {
            Action::Phase(phase) => self.phase(phase),
            Action::SayHello => {
                return self.say(&Message::Hello(self.wired.hello.clone()));
            }
            Action::OpenChannels => {
                let opened = self.dial().map(|()| Event::ChannelsOpen);
                return Some(opened.unwrap_or_else(Event::Failed));
            }
            Action::Track => self.memory.tell(MemoryCommand::Track),
            Action::Devices(action) => self.tell_device(&action),
            Action::SendRound(_) => self.memory.tell(MemoryCommand::SendRound),
            Action::EndRound(round) => {
                self.memory.tell(MemoryCommand::EndRound(round));
            }
            Action::Iterate(_) => {
                self.tell_all(|| DeviceCommand::Iterate);
                return self.without_devices(Gather::iterated);
            }
            Action::AskPending => {
                self.tell_all(|| DeviceCommand::Pending);
                return self.without_devices(Gather::pending);
            }
            Action::Collect { last } => {
                self.memory.tell(MemoryCommand::Collect { last });
                return Some(Event::Limited(self.wired.dial.limit()));
            }
            Action::Pace(wait) => self.pace = Some(self.now() + wait),
            Action::Tell { round, memory, devices, remaining, estimate } => {
                self.wired.observer.progress(&Progress::Round {
                    number: round,
                    memory_bytes: memory,
                    device_bytes: devices,
                    remaining_bytes: remaining,
                    downtime_estimate_ms: estimate.downtime.as_secs_f64() * 1e3,
                });
            }
            Action::Note(text) => {
                tracing::warn!("{text}");
                self.wired.observer.progress(&Progress::Note(text));
            }
            Action::SaySwitchover => return self.say(&Message::SwitchoverRequest),
            Action::PauseVcpus => self.spread.vmm.tell(VmmCommand::PauseVcpus),
            Action::SaveConfig => self.spread.vmm.tell(VmmCommand::SaveConfig),
            Action::DrainInterrupts => {
                self.spread.vmm.tell(VmmCommand::DrainInterrupts);
            }
            Action::Inspect => self.spread.vmm.tell(VmmCommand::InspectStopped),
            Action::SendLast => self.memory.tell(MemoryCommand::SendLast),
            Action::Drain => {
                self.tell_all(|| DeviceCommand::Drain);
                return self.without_devices(Gather::drained);
            }
            Action::SaveSections => self.spread.vmm.tell(VmmCommand::SaveSections),
            Action::EndChannels => {
                self.memory.tell(MemoryCommand::EndChannels);
            }
            Action::SayEnd { paused } => {
                let state = if paused { RunState::Paused } else { RunState::Running };
                return self.say(&Message::RunState(state));
            }
            Action::Yield => {
                let recorded = store.record(self.wired.attempt, Decision::Yielded);
                return Some(match recorded {
                    Ok(Decision::Yielded) => Event::Yielded,
                    Ok(other) => Event::Failed(Cause::Store(format!(
                        "the store has {other} for this attempt"
                    ))),
                    Err(error) => Event::Failed(Cause::Store(chain(&error))),
                });
            }
            Action::SayCommit => return self.say(&Message::Commit),
            Action::SayAbort(cause) => {
                // What is still being sent is pointless, and may be stuck.
                self.closers.iter().for_each(|close| close.close());
                let code = match cause {
                    Cause::Cancelled => FailureCode::CANCELLED,
                    Cause::Changed(_) => FailureCode::CHANGED,
                    Cause::NotConverged { .. } => FailureCode::CONVERGENCE,
                    _ => FailureCode::OTHER,
                };
                let text = plain_text(&cause.to_string(), wire::message::MAX_TEXT_BYTES);
                // It may be the connection that failed.
                let _ = self.wired.speaker.say(&Message::Abort(Reason { code, text }));
            }
            Action::Undo { interrupts, tracking, resume } => {
                // The guest is this side's again: a YIELDED that stayed would keep a
                // restarted source from starting it.
                if let Ok(Some(Decision::Yielded)) = store.read(self.wired.attempt)
                    && let Err(error) =
                        store.record(self.wired.attempt, Decision::Returned)
                {
                    tracing::warn!(error = chain(&error), "RETURNED was not recorded");
                }
                self.undoing = Some(Undoing { tracking: !tracking, vmm: false });
                if tracking {
                    self.memory.tell(MemoryCommand::Undo);
                }
                self.spread.vmm.tell(VmmCommand::Undo { interrupts, resume });
            }
            Action::Untrack => self.memory.tell(MemoryCommand::Untrack),
            Action::Patience(patience) => {
                self.watch = Watch::new(patience, self.now(), self.moved());
            }
            Action::End(_) => {}
        }
        None
    }

    fn phase(&mut self, phase: Phase) {
        // The phase before ends first: they follow each other, none is in another.
        self.span = None;
        self.span = Some(tracing::info_span!("phase", name = phase.name()).entered());
        tracing::info!(phase = phase.name(), "phase");
        self.wired.observer.progress(&Progress::Phase(phase));
    }

    fn say(&mut self, message: &Message) -> Option<Event> {
        self.wired.speaker.say(message).err().map(Event::Failed)
    }

    fn tell_device(&self, action: &devices::Action) {
        let (id, command) = match *action {
            devices::Action::Move(id, state) => (id, DeviceCommand::Move(state)),
            devices::Action::Read(id) => (id, DeviceCommand::Read),
            devices::Action::Reset(id) => (id, DeviceCommand::Reset),
            _ => return,
        };
        self.spread.devices[id.0].tell(command);
    }

    pub(super) fn tell_all(&self, command: impl Fn() -> DeviceCommand) {
        self.spread.devices.iter().for_each(|worker| worker.tell(command()));
    }

    /// With no device at all there is no answer to wait for.
    fn without_devices(
        &mut self,
        gathered: impl FnOnce(&mut Gather) -> Option<Event>,
    ) -> Option<Event> {
        if self.spread.devices.is_empty() { gathered(&mut self.gather) } else { None }
    }

    /// What was measured of each device.
    fn device_reports(&self) -> Vec<DeviceReport> {
        let nanos = |n: &std::sync::atomic::AtomicU64| {
            Duration::from_nanos(n.load(Ordering::Relaxed))
        };
        let one = |(n, measured): (usize, &Arc<Measured>)| DeviceReport {
            bytes: measured.bytes.load(Ordering::Relaxed),
            stop: nanos(&measured.stop),
            save: nanos(&measured.save),
            load: (self.prepared.as_ref())
                .and_then(|prepared| prepared.devices.get(n))
                .map_or(Duration::ZERO, |d| Duration::from_micros(d.load_us)),
            start: (self.running.as_ref())
                .and_then(|running| running.devices.get(n))
                .map_or(Duration::ZERO, |d| Duration::from_micros(d.start_us)),
            validated_at_start: (self.prepared.as_ref())
                .and_then(|prepared| prepared.devices.get(n))
                .is_some_and(|device| device.validated_at_start),
            ..self.wired.devices[n].clone()
        };
        self.spread.measured.iter().enumerate().map(one).collect()
    }
}
