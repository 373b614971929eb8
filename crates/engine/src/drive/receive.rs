//! A migration from another host: what a VMM hands in, and what it gets back.

use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use port::{Accept, Channel, Clock, DecisionStore, Observer, Silent, SystemClock};
use wire::Message;
use wire::message::{Refusal, RefusalCode, Refuse};
use wire::preamble::{Preamble, PreambleError, Role, Token};

use super::control::{Listener, Speaker};
use super::handle::SinkHandle;
use super::heard::{Backlog, FromSink as Heard, too_much};
use super::receiving::{Open, Received, Receiving, Wired};
use super::tracker::chain;
use crate::migration::sink::Ending;
use crate::migration::{Cause, compat};

/// A migration from another host, about to run.
pub struct Incoming {
    control: Box<dyn Channel>,
    accept: Box<dyn Accept>,
    store: Box<dyn DecisionStore>,
    token: [u8; 8],
    patience: Duration,
    open: Open,
    observer: Arc<dyn Observer>,
    clock: Arc<dyn Clock>,
    events: (Sender<Heard>, Receiver<Heard>),
    holding: Arc<AtomicBool>,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming")
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

impl Incoming {
    /// A migration that arrives on a fresh control connection. `token` is a random
    /// secret that data connections have to show; no single answer may take longer
    /// than `patience`.
    pub fn new(
        control: Box<dyn Channel>,
        accept: Box<dyn Accept>,
        store: Box<dyn DecisionStore>,
        token: [u8; 8],
        patience: Duration,
        open: Open,
    ) -> Incoming {
        Incoming {
            control,
            accept,
            store,
            token,
            patience,
            open,
            observer: Arc::new(Silent),
            clock: Arc::new(SystemClock::new()),
            events: channel(),
            holding: Arc::default(),
        }
    }

    /// Somebody who watches.
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Incoming {
        self.observer = observer;
        self
    }

    /// Another clock than the system's.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Incoming {
        self.clock = clock;
        self
    }

    /// Steers it from other threads.
    pub fn handle(&self) -> SinkHandle {
        SinkHandle {
            events: Arc::new(Mutex::new(self.events.0.clone())),
            holding: Arc::clone(&self.holding),
        }
    }

    /// Runs it to its end, however that is.
    pub fn run(self) -> Received {
        let (events, inbox) = (self.events.0, self.events.1);
        let store = self.store;
        let early = |store, cause| Received {
            machine: None,
            store,
            ending: Ending::Discarded(cause),
        };
        let (transmit, mut receive, close) = match self.control.split() {
            Ok(halves) => halves,
            Err(error) => return early(store, Cause::Channel(chain(&error))),
        };
        let bytes = match Listener::preamble(&mut *receive, self.patience.min(GREETING)) {
            Ok(bytes) => bytes,
            Err(cause) => {
                close.close();
                return early(store, cause);
            }
        };
        // A source of another version is answered in this one: it can read a preamble.
        let (theirs, reasons) = read_preamble(&bytes);
        let ours = Preamble {
            byte_order: wire::preamble::ByteOrder::HOST,
            architecture: wire::preamble::Architecture::HOST,
            required: wire::preamble::Features::NONE,
            optional: wire::preamble::Features::NONE,
            role: Role::Control,
            page_size: theirs.map_or(wire::preamble::PageSize::KIB_4, |p| p.page_size),
            migration: theirs
                .map_or(wire::preamble::MigrationId([0; 16]), |p| p.migration),
        };
        let mut speaker = match Speaker::open(transmit, &ours, self.patience) {
            Ok(speaker) => speaker,
            Err(cause) => {
                close.close();
                return early(store, cause);
            }
        };
        if !reasons.is_empty() {
            let texts = reasons.iter().map(|reason| reason.text.clone()).collect();
            let _ = speaker.say(&Message::Refuse(Refuse { reasons }));
            close.close();
            let ending = Ending::Refused(texts);
            return Received { machine: None, store, ending };
        }
        let backlog = Backlog::default();
        let listener = Listener::new(receive, ours.page_size);
        listen(listener, events.clone(), backlog.clone());
        let wired = Wired {
            speaker,
            events,
            inbox,
            backlog,
            preamble: ours,
            token: Token(self.token),
            patience: self.patience,
            accept: self.accept,
            open: Some(self.open),
            store,
            observer: self.observer,
            clock: self.clock,
            holding: self.holding,
        };
        let received = Receiving::new(wired).run();
        // Everything that was said has to reach the source before the connection ends:
        // it is closed by dropping it, not by shutting it down.
        drop(close);
        received
    }
}

fn read_preamble(bytes: &[u8; Preamble::SIZE]) -> (Option<Preamble>, Vec<Refusal>) {
    match Preamble::decode(bytes) {
        Ok(preamble) => {
            let mut reasons = compat::check_preamble(&preamble);
            if preamble.role != Role::Control {
                reasons.push(Refusal {
                    code: RefusalCode::OTHER,
                    text: "a migration starts with a control connection".to_owned(),
                });
            }
            (Some(preamble), reasons)
        }
        Err(error) => {
            let code = match error {
                PreambleError::Magic => RefusalCode::OTHER,
                _ => RefusalCode::VERSION,
            };
            (None, vec![Refusal { code, text: compat::text(&chain(&error)) }])
        }
    }
}

fn listen(mut listener: Listener, events: Sender<Heard>, backlog: Backlog) {
    let listening = move || {
        loop {
            match listener.hear() {
                Ok(_) if !backlog.enter() => {
                    let _ = events.send(Heard::ControlGone(too_much()));
                    return;
                }
                Ok(message) => {
                    if events.send(Heard::Message(message)).is_err() {
                        return;
                    }
                }
                Err(cause) => {
                    let _ = events.send(Heard::ControlGone(cause));
                    return;
                }
            }
        }
    };
    // Without this thread nothing is heard, and the first deadline says so.
    let _ = thread::Builder::new().name("control".into()).spawn(listening);
}

/// How long a stranger may take to say who it is: a source says so at once, and until
/// then nobody else is heard.
pub(super) const GREETING: Duration = Duration::from_secs(3);
