//! Drives a model: the state machine, sessions, gates, and everything with a rule.

mod client;
mod sessions;

pub use sessions::{Direction, Session};

use crate::wires::{Gate, Wires};
use crate::{
    Bus, Counters, Description, Digest, InvalidDescription, Migratable, Request, Settle,
    StateArc, Token, Work,
};
use abi::errno::Errno;
use sessions::Open;
use states::v2::{Session as SessionChange, State, next, plan, session};
use std::fmt;
use std::time::{Duration, Instant};

/// How long a request for a state may stay pending.
pub const QUIESCE_DEADLINE: Duration = Duration::from_secs(10);

/// How soon a pending arc is asked for again.
const SETTLE_INTERVAL: Duration = Duration::from_micros(200);

/// Drives one model on behalf of a server.
///
/// One thread calls it; nothing in it blocks. A server loop serves what came in, then
/// calls [`settle`](Self::settle) while a request is pending, hands out what
/// [`next_request`](Self::next_request) has, and gives the model its time with
/// [`work`](Self::work), which says when it wants to be called again.
///
/// * A request for a state walks the planned arcs, one at a time. Where an arc fails
///   the device stays in the state that it starts from, and the errno is returned. A
///   model that said [`Settle::Later`] and did not settle within [`QUIESCE_DEADLINE`]
///   is in an unknown place: the state is then ERROR, and only a reset leads on. A
///   peer that does not answer within it leaves the device running as before.
/// * An arc into a P2P state, and any that stops the device, begins when no message of
///   the device is on its way any more.
/// * A session is known by its number, and dies with the state that it belongs to.
/// * In STOP, `STOP_COPY` and RESUMING config space answers; every other region refuses
///   with `EINVAL` and counts the access, since in a correct peer-to-peer stop there
///   is none.
/// * A reset leads to RUNNING from everywhere, kills the session and forgets messages.
///   DMA windows, triggers and the DMA log stay: they are the client's.
pub struct Runner {
    model: Box<dyn Migratable>,
    description: Description,
    state: State,
    wires: Wires,
    pending: Option<Pending>,
    session: Option<Open>,
    sessions: u64,
    /// A load that failed keeps the device in RESUMING, whatever became of its session.
    load_failed: Option<Errno>,
    /// Outcome of a pending request that a reset ended.
    overtaken: bool,
    resets: u64,
}

/// How far a request for a state got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a pending request has to be settled"]
pub enum Moved {
    /// The device is there; with the session that the last arc opened.
    Done(Option<Session>),
    /// Not yet: [`Runner::settle`] will tell.
    Pending,
}

/// A request that is being carried out.
#[derive(Clone, Copy)]
struct Pending {
    target: State,
    since: Instant,
    /// The model took the arc and said "later".
    entered: bool,
    /// Nobody waits for the outcome any more.
    orphan: bool,
}

impl Runner {
    /// A runner for a model that is as it started: in RUNNING.
    ///
    /// # Errors
    ///
    /// [`InvalidDescription`] where the model's description makes no sense.
    pub fn new(model: Box<dyn Migratable>) -> Result<Runner, InvalidDescription> {
        let description = model.describe();
        description.validate()?;
        let wires = Wires::new(&description);
        Ok(Runner {
            model,
            description,
            state: State::Running,
            wires,
            pending: None,
            session: None,
            sessions: 0,
            load_failed: None,
            overtaken: false,
            resets: 0,
        })
    }

    /// What the device is and has.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The state; while a request is pending, the last one that was reached.
    pub fn state(&self) -> State {
        self.state
    }

    /// The state that is being gone to.
    pub fn pending(&self) -> Option<State> {
        self.pending.map(|pending| pending.target)
    }

    /// How often it was reset since the runner began.
    pub fn resets(&self) -> u64 {
        self.resets
    }

    /// What was counted since the runner began.
    pub fn counters(&self) -> Counters {
        self.wires.counters
    }

    /// The model's digest of its contents, and beside its counters those of this runner
    /// that have to be 0: so a device that was reached while it was stopped differs
    /// from one that was not, wherever the two are compared.
    pub fn digest(&self) -> Option<Digest> {
        let mut digest = self.model.digest()?;
        let counters = self.wires.counters;
        for (name, value) in [
            ("accesses_while_stopped", counters.accesses_while_stopped),
            ("dma_while_stopped", counters.dma_while_stopped),
            ("interrupts_while_stopped", counters.interrupts_while_stopped),
        ] {
            digest.counters.push((name.to_owned(), value));
        }
        Some(digest)
    }

    // The state machine.

    /// Asks for a state (`VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE` SET).
    ///
    /// # Errors
    ///
    /// `EINVAL` where the tables have no way, state unchanged; `EBUSY` while another
    /// request is pending; else what the failing arc said: the device is then in the
    /// state before that arc (or in ERROR, see above).
    pub fn set_state(&mut self, target: State, now: Instant) -> Result<Moved, Errno> {
        if self.pending.is_some() || self.overtaken {
            return Err(Errno::EBUSY);
        }
        let path = plan(self.description.capabilities, self.state, target).map_err(
            |refusal| {
                tracing::debug!(from = %self.state, to = %target, %refusal, "refused");
                Errno::EINVAL
            },
        )?;
        if path.is_empty() {
            return Ok(Moved::Done(None));
        }
        self.pending =
            Some(Pending { target, since: now, entered: false, orphan: false });
        match self.settle(now) {
            Some(outcome) => outcome.map(Moved::Done),
            None => Ok(Moved::Pending),
        }
    }

    /// Carries a pending request on. `Some` once, when it is over; `None` while it is
    /// not, and when none is pending.
    pub fn settle(&mut self, now: Instant) -> Option<Result<Option<Session>, Errno>> {
        if std::mem::take(&mut self.overtaken) {
            return Some(Err(Errno::ENODEV));
        }
        let mut pending = self.pending?;
        let outcome = self.walk(&mut pending, now);
        if let Ok(None) = outcome {
            self.pending = Some(pending);
            return None;
        }
        self.pending = None;
        self.wires.set_gate(Gate::of(self.state));
        if pending.orphan {
            // A session that was opened on the way is nobody's.
            self.session = None;
            return None;
        }
        Some(outcome.map(Option::flatten))
    }

    /// Takes arcs until the target is reached (`Some`) or one needs time (`None`).
    fn walk(
        &mut self,
        pending: &mut Pending,
        now: Instant,
    ) -> Result<Option<Option<Session>>, Errno> {
        let capabilities = self.description.capabilities;
        let mut opened = None;
        while self.state != pending.target {
            let to = next(capabilities, self.state, pending.target)
                .map_err(|_| Errno::EINVAL)?;
            let arc = StateArc { from: self.state, to };
            let late = now.saturating_duration_since(pending.since) >= QUIESCE_DEADLINE;
            if !pending.entered {
                if to.is_p2p_quiescent() && self.wires.gate == Gate::Open {
                    self.wires.set_gate(Gate::NoMessages);
                }
                if to.is_p2p_quiescent() && self.wires.outstanding() > 0 {
                    if late {
                        tracing::warn!(from = %arc.from, to = %arc.to, "messages did not come back");
                        return Err(Errno::ETIMEDOUT);
                    }
                    return Ok(None);
                }
                if arc.from == State::Resuming {
                    self.check_loaded()?;
                }
            }
            let settle = if pending.entered {
                self.model.settled(&mut self.wires)
            } else {
                self.model.enter(arc, &mut self.wires)
            };
            match settle {
                Ok(Settle::Now) => opened = self.arrive(arc, pending.since, now),
                Ok(Settle::Later) if late => {
                    tracing::error!(from = %arc.from, to = %arc.to, "did not settle");
                    self.fail();
                    return Err(Errno::ETIMEDOUT);
                }
                Ok(Settle::Later) => {
                    pending.entered = true;
                    return Ok(None);
                }
                Err(errno) => {
                    tracing::warn!(from = %arc.from, to = %arc.to, %errno, "arc failed");
                    return Err(errno);
                }
            }
            pending.entered = false;
        }
        Ok(Some(opened))
    }

    /// The model has taken an arc.
    fn arrive(&mut self, arc: StateArc, since: Instant, now: Instant) -> Option<Session> {
        let micros = now.saturating_duration_since(since).as_micros() as u64;
        tracing::debug!(from = %arc.from, to = %arc.to, micros, "state");
        self.state = arc.to;
        self.wires.set_gate(Gate::of(arc.to));
        match session(arc.from, arc.to) {
            SessionChange::None | SessionChange::KeepsSave => None,
            SessionChange::OpensSave => Some(self.open(Direction::Save)),
            SessionChange::OpensResume => Some(self.open(Direction::Resume)),
            SessionChange::EndsSave | SessionChange::EndsResume => {
                self.session = None;
                None
            }
        }
    }

    fn open(&mut self, direction: Direction) -> Session {
        self.sessions += 1;
        self.load_failed = None;
        let session = Session { number: self.sessions, direction };
        self.session = Some(Open { session, ended: false, failed: None });
        session
    }

    /// Whether a load failed, so that only a reset leads out of RESUMING.
    pub(crate) fn load_is_lost(&self) -> bool {
        self.load_failed.is_some() && self.state == State::Resuming
    }

    /// The device is lost until it is reset.
    pub(crate) fn fail(&mut self) {
        self.state = State::Error;
        self.session = None;
        self.wires.set_gate(Gate::Shut);
        self.wires.messages.clear();
    }

    fn check_loaded(&mut self) -> Result<(), Errno> {
        let checked = match self.load_failed {
            Some(errno) => Err(errno),
            None => self.model.loaded(),
        };
        checked.inspect_err(|errno| self.load_failed = Some(*errno))
    }

    /// Resets the device: RUNNING, from every state. A pending request fails with
    /// `ENODEV`, to be fetched by [`settle`](Self::settle).
    pub fn reset(&mut self) {
        tracing::debug!(from = %self.state, "reset");
        self.resets += 1;
        self.overtaken |= self.pending.take().is_some_and(|pending| !pending.orphan);
        self.session = None;
        self.load_failed = None;
        self.wires.messages.clear();
        self.wires.irqs.reset();
        self.model.reset();
        self.state = State::Running;
        self.wires.set_gate(Gate::of(State::Running));
    }

    /// The client went away: its session, windows, triggers and messages are dropped,
    /// and its DMA log ends. The device keeps its contents and its migration state; a
    /// pending request goes on without anyone to answer.
    pub fn disconnect(&mut self) {
        self.overtaken = false;
        if let Some(pending) = &mut self.pending {
            pending.orphan = true;
        }
        self.session = None;
        self.wires.irqs.unbind_all();
        let mut over = self.wires.unmap_all();
        self.wires.log.stop();
        over.extend(self.wires.messages.clear());
        for token in over {
            self.deliver(token, Err(Errno::ENODEV));
        }
    }

    // Messages and time.

    /// Sets how many bytes a message carries, as agreed with the client; at least 1.
    /// Longer accesses are sent in pieces of it.
    pub fn set_message_limit(&mut self, bytes: usize) {
        self.wires.messages.limit = bytes.max(1);
    }

    /// The next message, to be sent now; its answer goes to
    /// [`complete`](Self::complete). At most [`REQUESTS_MAX`](crate::REQUESTS_MAX) are
    /// on their way at once; the others come when those came back.
    pub fn next_request(&mut self) -> Option<Request> {
        self.wires.messages.next_request()
    }

    /// Accesses that are not over yet.
    pub fn outstanding(&self) -> usize {
        self.wires.outstanding()
    }

    /// The answer to a message: the bytes of a read, none for a write, or the errno.
    /// The model hears of it when its whole access is over.
    ///
    /// # Errors
    ///
    /// `ENOENT` for a token that is not on its way: it came back already, or a reset
    /// or a disconnect ended it.
    pub fn complete(
        &mut self,
        token: Token,
        result: Result<&[u8], Errno>,
    ) -> Result<(), Errno> {
        if let Some((token, result)) = self.wires.returned(token, result)? {
            self.deliver(token, result.as_deref().map_err(|errno| *errno));
        }
        Ok(())
    }

    fn deliver(&mut self, token: Token, result: Result<&[u8], Errno>) {
        if let Err(errno) = self.model.dma_done(token, result, &mut self.wires) {
            self.wires.counters.refused_completions += 1;
            tracing::warn!(token = token.number(), %errno, "the model refused its DMA");
        }
    }

    /// Gives the model a slice of time, where its state lets it run, and says when it
    /// (or a pending request) wants to be called again. To be called after whatever
    /// else was called: an access may have given the model work.
    pub fn work(&mut self, now: Instant) -> Work {
        if self.pending.is_some() {
            Work::At(now + SETTLE_INTERVAL)
        } else if self.state.is_running() {
            self.model.work(&mut self.wires, now)
        } else {
            Work::Idle
        }
    }
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner")
            .field("identity", &self.description.identity)
            .field("state", &self.state)
            .field("pending", &self.pending())
            .field("session", &self.session())
            .field("counters", &self.wires.counters)
            .finish_non_exhaustive()
    }
}
