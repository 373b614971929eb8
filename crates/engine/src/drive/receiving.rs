//! The main loop of a destination: hears events, takes steps, performs actions.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use port::{
    Accept, AttemptId, Clock, Close, DecisionStore, Identity, Observer, Order, Progress,
};
use wire::Message;
use wire::message::{
    AcceptedDevice, FailureCode, Hello, LoadedDevice, NotStarted, Prepared, Reason,
    Refusal, Refuse, RunState, Running, StartedDevice,
};
use wire::preamble::{Preamble, Token};

use super::control::Speaker;
use super::device::{Answer as DeviceAnswer, Command as DeviceCommand, Says};
use super::heard::{Backlog, FromSink as Heard};
use super::receiver::Arrived;
use super::spread::{Spread, members};
use super::tracker::chain;
use super::vmm::{Answer as VmmAnswer, Command as VmmCommand};
use super::watch::Watch;
use crate::devices::{self, DeviceId};
use crate::machine::Machine;
use crate::migration::sink::{Action, Ending, Event, Sink};
use crate::migration::source::Patience;
use crate::migration::{Cause, compat};

/// A device that a source offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offered {
    /// What the source calls it.
    pub name: String,
    /// Who it is.
    pub identity: Identity,
}

/// Opens the machine that takes the guest in, once it is known which devices come.
/// Reasons why that cannot be go to the source.
pub type Open = Box<dyn FnOnce(&[Offered]) -> Result<Machine, Vec<String>> + Send>;

/// How it went, and everything that was lent.
pub struct Received {
    /// The machine, where it came to opening one.
    pub machine: Option<Machine>,
    /// The store.
    pub store: Box<dyn DecisionStore>,
    /// How it ended.
    pub ending: Ending,
}

impl std::fmt::Debug for Received {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Received")
            .field("machine", &self.machine)
            .field("ending", &self.ending)
            .finish_non_exhaustive()
    }
}

/// An incoming migration whose preamble was read and answered.
pub(super) struct Wired {
    pub(super) speaker: Speaker,
    pub(super) events: Sender<Heard>,
    pub(super) inbox: Receiver<Heard>,
    pub(super) backlog: Backlog,
    pub(super) preamble: Preamble,
    pub(super) token: Token,
    pub(super) patience: Duration,
    pub(super) accept: Box<dyn Accept>,
    pub(super) open: Option<Open>,
    pub(super) store: Box<dyn DecisionStore>,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) holding: Arc<AtomicBool>,
}

/// What arrived, ready to be loaded.
#[derive(Default)]
pub(super) struct Loaded {
    pub(super) arrived: Option<Arc<Mutex<Arrived>>>,
    configs: Arc<Vec<Option<Vec<u8>>>>,
    pending: Arc<Vec<Option<Vec<u64>>>>,
    sections: Arc<Vec<(u32, Vec<u8>)>>,
    taken: Vec<LoadedDevice>,
}

/// The data connections, together.
#[derive(Default)]
pub(super) struct Lanes {
    pub(super) round: Vec<u32>,
    pub(super) ended: Vec<bool>,
    run_state: Option<RunState>,
}

/// Time that a device took on its way.
#[derive(Clone, Copy, Default)]
struct Times {
    load: Duration,
    start: Duration,
}

/// The main loop of a destination.
pub(super) struct Receiving {
    /// `None` only inside a step.
    sink: Option<Sink>,
    pub(super) wired: Wired,
    pub(super) hello: Option<Hello>,
    pub(super) spread: Option<Spread>,
    pub(super) loaded: Loaded,
    pub(super) closers: Vec<Box<dyn Close>>,
    pub(super) lanes: Lanes,
    /// What was heard while data connections were waited for.
    pub(super) waiting: VecDeque<Heard>,
    span: Option<tracing::span::EnteredSpan>,
    watch: Watch,
    /// Bytes that all data connections received.
    pub(super) received: Arc<AtomicU64>,
    refusals: Vec<Refusal>,
    /// Held by every thread that receives data.
    pub(super) alive: (Sender<()>, Receiver<()>),
    slowest: Duration,
    times: Vec<Times>,
    committed: Option<Duration>,
    vcpus_ran: Option<Duration>,
}

impl Receiving {
    /// A loop that waits for the source's hello.
    pub(super) fn new(wired: Wired) -> Receiving {
        Receiving {
            sink: Some(Sink::new(wired.patience)),
            span: None,
            watch: Watch::new(Patience::Answer(wired.patience), wired.clock.now(), 0),
            received: Arc::default(),
            refusals: Vec::new(),
            alive: channel(),
            wired,
            hello: None,
            spread: None,
            loaded: Loaded::default(),
            closers: Vec::new(),
            lanes: Lanes::default(),
            waiting: VecDeque::new(),
            slowest: Duration::ZERO,
            times: Vec::new(),
            committed: None,
            vcpus_ran: None,
        }
    }

    /// Runs to the end, and gives everything back.
    pub(super) fn run(mut self) -> Received {
        let ending = self.all_steps();
        self.wired.holding.store(false, Ordering::Release);
        self.closers.iter().for_each(|close| close.close());
        // Nobody may write into memory that the VMM has again.
        let Receiving { alive: (ours, all), .. } = self;
        drop(ours);
        let _ = all.recv_timeout(self.wired.patience);
        let machine = self.spread.map(|spread| spread.finish(self.wired.patience));
        Received { machine, store: self.wired.store, ending }
    }

    fn all_steps(&mut self) -> Ending {
        let mut queue = VecDeque::new();
        loop {
            while let Some(event) = queue.pop_front() {
                let sink = self.sink.take().expect("a step gives the sink back");
                let (sink, actions) = sink.step(self.now(), event);
                self.sink = Some(sink);
                for action in actions {
                    if let Action::End(ending) = action {
                        return ending;
                    }
                    queue.extend(self.perform(action));
                }
            }
            queue.extend(self.hear());
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.wired.clock.now()
    }

    fn moved(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    fn hear(&mut self) -> Option<Event> {
        let now = self.now();
        let until = self.watch.until();
        let wait = until.map_or(Duration::from_secs(3600), |at| at.saturating_sub(now));
        let first = self.waiting.pop_front().map(Ok);
        let heard = match first.unwrap_or_else(|| self.wired.inbox.recv_timeout(wait)) {
            Ok(heard) => heard,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                let (now, moved) = (self.now(), self.moved());
                return self.watch.is_over(now, moved).then_some(Event::Deadline);
            }
        };
        match heard {
            Heard::Event(event) => Some(event),
            Heard::Device(id, answer) => self.device(id, answer),
            Heard::Vmm(answer) => self.vmm(answer),
            Heard::Message(message) => {
                self.wired.backlog.leave();
                self.message(message)
            }
            Heard::ControlGone(cause) => Some(Event::SourceGone(cause)),
            Heard::LaneRound(lane, round) => self.lane_round(lane, round),
            Heard::LaneEnded(lane) => {
                self.lanes.ended[lane] = true;
                self.all_received()
            }
            Heard::LaneFailed(cause) => Some(Event::Failed(cause)),
        }
    }

    fn device(&mut self, id: DeviceId, answer: DeviceAnswer) -> Option<Event> {
        match answer {
            DeviceAnswer::Set(event, took) => {
                self.slowest = self.slowest.max(took);
                if let (devices::Event::Moved(_, state), Some(times)) =
                    (&event, self.times.get_mut(id.0))
                {
                    if *state == states::v2::State::Stop {
                        times.load += took;
                    } else if state.is_running() {
                        times.start += took;
                    }
                }
                Some(Event::Devices(event))
            }
            DeviceAnswer::Failed(cause) => Some(Event::Failed(cause)),
            // A destination asks for none of these.
            DeviceAnswer::Iterated { .. }
            | DeviceAnswer::Pending(_)
            | DeviceAnswer::Drained => None,
        }
    }

    fn vmm(&mut self, answer: VmmAnswer) -> Option<Event> {
        Some(match answer {
            VmmAnswer::VcpusRun => {
                self.vcpus_ran = Some(self.now());
                Event::VcpusRun
            }
            VmmAnswer::Inspected => Event::Inspected,
            VmmAnswer::ConfigLoaded => Event::ConfigLoaded,
            VmmAnswer::Bound => Event::Bound,
            VmmAnswer::Delivered => Event::Delivered,
            VmmAnswer::SectionsLoaded => Event::SectionsLoaded,
            VmmAnswer::Failed(cause) => Event::Failed(cause),
            VmmAnswer::Unbound => return Some(self.reset_devices()),
            // The source's part.
            VmmAnswer::VcpusPaused
            | VmmAnswer::ConfigSaved
            | VmmAnswer::InterruptsDrained
            | VmmAnswer::SectionsSaved
            | VmmAnswer::Undone => return None,
        })
    }

    fn message(&mut self, message: Message) -> Option<Event> {
        Some(match message {
            Message::Hello(hello) => {
                if self.hello.is_some() {
                    let text = "a second hello".to_owned();
                    return Some(Event::Failed(Cause::Protocol(text)));
                }
                self.hello = Some(hello);
                Event::Hello
            }
            Message::SwitchoverRequest => Event::Switchover,
            Message::RunState(state) => {
                self.lanes.run_state = Some(state);
                return self.all_received();
            }
            Message::Commit => {
                self.committed = Some(self.now());
                Event::Commit
            }
            Message::Abort(reason) => Event::Abort(reason.text),
            Message::Failed(reason) => {
                Event::SourceGone(Cause::Peer { side: "source", text: reason.text })
            }
            other => {
                Event::Failed(Cause::Protocol(format!("{} from a source", other.kind())))
            }
        })
    }

    fn lane_round(&mut self, lane: usize, round: u32) -> Option<Event> {
        let rounds = &mut self.lanes.round;
        if rounds[lane].checked_add(1) != Some(round) {
            let text = format!("round {round} ends after round {}", rounds[lane]);
            return Some(Event::Failed(Cause::Protocol(text)));
        }
        rounds[lane] = round;
        rounds.iter().all(|done| *done == round).then_some(Event::RoundEnded(round))
    }

    /// Whether every connection ended and the source said that this is all.
    fn all_received(&mut self) -> Option<Event> {
        let state = self.lanes.run_state?;
        if self.lanes.ended.is_empty() || !self.lanes.ended.iter().all(|ended| *ended) {
            return None;
        }
        let hello = self.hello.as_ref()?;
        let arrived = self.loaded.arrived.as_ref()?;
        let mut arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = arrived.missing(hello) {
            return Some(Event::Failed(Cause::Protocol(text)));
        }
        self.loaded.configs = Arc::new(std::mem::take(&mut arrived.configs));
        self.loaded.pending = Arc::new(std::mem::take(&mut arrived.pending));
        let sections = std::mem::take(&mut arrived.sections);
        let sections = sections.into_values().map(|(info, bytes)| (info.version, bytes));
        self.loaded.sections = Arc::new(sections.collect());
        self.loaded.taken = arrived
            .devices
            .iter()
            .map(|t| LoadedDevice {
                bytes: t.bytes,
                crc: t.crc.value(),
                load_us: 0,
                validated_at_start: false,
            })
            .collect();
        Some(Event::AllReceived { paused: state == RunState::Paused })
    }

    fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Phase(phase) => {
                self.span = None;
                let span = tracing::info_span!("phase", name = phase.name());
                self.span = Some(span.entered());
                tracing::info!(phase = phase.name(), "phase");
                self.wired.observer.progress(&Progress::Phase(phase));
            }
            Action::Consider => return Some(self.consider()),
            Action::SayRefuse(reasons) => {
                let mut refusals = std::mem::take(&mut self.refusals);
                if refusals.is_empty() {
                    refusals = reasons.iter().map(|text| compat::refusal(text)).collect();
                }
                refusals.truncate(wire::message::MAX_REASONS);
                let refuse = Refuse { reasons: refusals };
                let _ = self.wired.speaker.say(&Message::Refuse(refuse));
            }
            Action::SayAccept => {
                // They are in RESUMING: what they say of their sessions is exact.
                let devices = self.says().map(|says| AcceptedDevice {
                    validated_at_start: says.validated_at_start,
                    max_transaction: says.longest,
                });
                return self.say(&Message::Accept(wire::message::Accept {
                    store: compat::store_id(&*self.wired.store),
                    token: self.wired.token,
                    devices: devices.collect(),
                    prepare_us: Some(micros(self.slowest)),
                }));
            }
            Action::AcceptChannels => return self.accept_channels(),
            Action::Devices(action) => self.tell_device(&action),
            Action::Receive => {}
            Action::SayApplied(round) => {
                return self.say(&Message::RoundApplied { round });
            }
            Action::SayReady => return self.say(&Message::SwitchoverReady),
            Action::LoadSections(order) => self.load_sections(order),
            Action::LoadConfig(stage) => {
                let configs = Arc::clone(&self.loaded.configs);
                self.tell_vmm(VmmCommand::LoadConfig(stage, configs));
            }
            Action::Bind => self.tell_vmm(VmmCommand::Bind),
            Action::Deliver => {
                let pending = Arc::clone(&self.loaded.pending);
                self.tell_vmm(VmmCommand::Deliver(pending));
            }
            Action::Inspect => self.tell_vmm(VmmCommand::InspectLoaded),
            Action::Record(decision) => {
                return Some(
                    match self
                        .wired
                        .store
                        .record(AttemptId(self.wired.preamble.migration.0), decision)
                    {
                        Ok(stands) => Event::Recorded(stands),
                        Err(error) => Event::Unrecorded(chain(&error)),
                    },
                );
            }
            Action::SayPrepared(verify) => {
                let devices = self.loaded.taken.iter().zip(&self.times).zip(self.says());
                let devices = devices
                    .map(|((taken, times), says)| LoadedDevice {
                        load_us: micros(times.load),
                        validated_at_start: says.validated_at_start,
                        ..*taken
                    })
                    .collect();
                let verify_us = Some(micros(verify));
                let prepared = Prepared { devices, verify_us };
                // It may be the connection that is gone: then this side holds, and the
                // control reader says so.
                let _ = self.wired.speaker.say(&Message::Prepared(prepared));
            }
            Action::Hold(why) => {
                tracing::warn!(%why, "prepared and holding: the source is gone");
                self.wired.holding.store(true, Ordering::Release);
                self.wired.observer.progress(&Progress::Note(format!(
                    "holding: everything is loaded and the source is gone ({why}); \
                     nothing is decided. If the source still has its guest, throw this \
                     one away"
                )));
            }
            Action::ResumeVcpus => self.tell_vmm(VmmCommand::ResumeVcpus),
            Action::SayRunning => {
                let since = |at: Duration| {
                    micros(at.saturating_sub(self.committed.unwrap_or(at)))
                };
                let devices = self.times.iter();
                let devices =
                    devices.map(|t| StartedDevice { start_us: micros(t.start) });
                let running = Running {
                    devices: devices.collect(),
                    guest_running_us: self.vcpus_ran.map(since),
                };
                let _ = self.wired.speaker.say(&Message::Running(running));
            }
            Action::SayNotStarted(device, text) => {
                let device = u32::try_from(device.0).unwrap_or(0);
                let not = NotStarted { device, text: compat::text(&text) };
                let _ = self.wired.speaker.say(&Message::NotStarted(not));
            }
            Action::PauseVcpus => self.tell_vmm(VmmCommand::PauseVcpus),
            Action::SayReturned(why) => {
                tracing::warn!(%why, "returned the right to run to the source");
                let _ = self.wired.speaker.say(&Message::Returned);
            }
            Action::SayFailed(cause) => {
                let text = compat::text(&cause.to_string());
                let reason = Reason { code: FailureCode::OTHER, text };
                let _ = self.wired.speaker.say(&Message::Failed(reason));
            }
            Action::Discard => return self.discard(),
            Action::Patience(patience) => {
                self.watch = Watch::new(patience, self.now(), self.moved());
            }
            Action::End(_) => {}
        }
        None
    }

    fn consider(&mut self) -> Event {
        let Some(hello) = self.hello.clone() else {
            return Event::Unfit(vec!["no hello".to_owned()]);
        };
        let offered: Result<Vec<Offered>, Refusal> = hello
            .devices
            .iter()
            .map(|device| {
                let identity = compat::offered(device)?;
                Ok(Offered { name: device.slot.clone(), identity })
            })
            .collect();
        let offered = match offered {
            Ok(offered) => offered,
            Err(refusal) => return Event::Unfit(vec![refusal.text]),
        };
        let Some(open) = self.wired.open.take() else {
            return Event::Unfit(vec!["this place is taken".to_owned()]);
        };
        let mut machine = match open(&offered) {
            Ok(machine) => machine,
            Err(reasons) => return Event::Unfit(reasons),
        };
        let mut refusals = compat::check(&hello, &self.wired.preamble, &machine);
        if !machine.vcpus.paused() {
            let text = "the machine that should take this in is running";
            refusals.push(compat::refusal(text));
        }
        let members = members(&mut machine).unwrap_or_else(|cause| {
            refusals.push(compat::refusal(&cause.to_string()));
            Vec::new()
        });
        self.times = vec![Times::default(); machine.devices.len()];
        self.loaded.arrived =
            Some(Arc::new(Mutex::new(Arrived::new(machine.devices.len()))));
        let spread = self.spread_out(machine, &members);
        if !refusals.is_empty() {
            // Given back as it came: nothing was asked of its devices but their state.
            self.spread = spread.ok();
            let texts = refusals.iter().map(|refusal| refusal.text.clone()).collect();
            self.refusals = refusals;
            return Event::Unfit(texts);
        }
        match spread {
            Ok(spread) => {
                if !spread.inspects {
                    self.sink = self.sink.take().map(Sink::without_inspection);
                }
                self.spread = Some(spread);
                Event::Considered(members)
            }
            Err(cause) => Event::Unfit(vec![cause.to_string()]),
        }
    }

    fn spread_out(
        &self,
        machine: Machine,
        members: &[devices::Member],
    ) -> Result<Spread, Cause> {
        let Wired { events, observer, .. } = &self.wired;
        Spread::new(machine, members, events, observer, Heard::Device, Heard::Vmm)
    }

    /// No event where something else came first: it is heard next.
    fn accept_channels(&mut self) -> Option<Event> {
        match self.join() {
            Ok(true) => Some(Event::ChannelsOpen),
            Ok(false) => None,
            Err(cause) => Some(Event::Failed(cause)),
        }
    }

    fn load_sections(&mut self, order: Order) {
        let sections = Arc::clone(&self.loaded.sections);
        self.tell_vmm(VmmCommand::LoadSections(order, sections));
    }

    /// Interrupts are unbound, then every device is reset: what it held is gone, and
    /// nothing of it ran.
    fn discard(&mut self) -> Option<Event> {
        self.closers.iter().for_each(|close| close.close());
        if self.spread.is_none() {
            return Some(Event::Discarded);
        }
        self.tell_vmm(VmmCommand::Unbind);
        None
    }

    fn reset_devices(&mut self) -> Event {
        // The answers go nowhere: each thread resets its device before it gives it
        // back, and what does not reset holds nothing that anybody needs.
        if let Some(machine) = &self.spread {
            machine.devices.iter().for_each(|worker| worker.tell(DeviceCommand::Reset));
        }
        Event::Discarded
    }

    fn tell_device(&self, action: &devices::Action) {
        let (id, command) = match *action {
            devices::Action::Move(id, state) => (id, DeviceCommand::Move(state)),
            devices::Action::Read(id) => (id, DeviceCommand::Read),
            devices::Action::Reset(id) => (id, DeviceCommand::Reset),
            _ => return,
        };
        if let Some(machine) = &self.spread {
            machine.devices[id.0].tell(command);
        }
    }

    /// What the devices say of how they take their data.
    fn says(&self) -> impl Iterator<Item = Says> + '_ {
        let measured = self.spread.iter().flat_map(|spread| &spread.measured);
        measured.map(|measured| measured.says())
    }

    fn tell_vmm(&self, command: VmmCommand) {
        if let Some(machine) = &self.spread {
            machine.vmm.tell(command);
        }
    }

    fn say(&mut self, message: &Message) -> Option<Event> {
        self.wired.speaker.say(message).err().map(Event::SourceGone)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
