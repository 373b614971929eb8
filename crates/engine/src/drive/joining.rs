//! Takes the data connections in.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use port::{Channel, ChannelError, Close, Receive};
use wire::Message;
use wire::preamble::{Preamble, Role};

use super::control::Listener;
use super::heard::FromSink as Heard;
use super::receive::GREETING;
use super::receiver;
use super::receiving::Receiving;
use super::spread::no_thread;
use super::tracker::chain;
use super::worker::Worker;
use crate::migration::Cause;
use crate::migration::sink::Event;

/// Connections that are asked at a time who they are.
const MOST_ASKED: usize = 128;

/// Those without the token. They are put up with, and take no place.
#[derive(Default)]
struct Strangers {
    asked: usize,
    told: bool,
}

impl Strangers {
    /// One had no token. Said once, or a flood of them would fill the log.
    fn refused(&mut self) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!("strangers on the port for data connections");
        }
    }
}

/// How long a data connection may be silent: a device at the source may take its time
/// between two chunks, the source's own deadlines bound that, and the control
/// connection tells when it is gone.
const SILENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// How long one look for a new connection takes, while others say who they are.
const LOOK: Duration = Duration::from_millis(5);

/// A connection that said who it is, or did not.
struct Greeting {
    preamble: Option<[u8; Preamble::SIZE]>,
    receive: Box<dyn Receive>,
    close: Box<dyn Close>,
}

/// Listens to a connection's preamble in a thread of its own: a stranger that says
/// nothing keeps nobody else out.
fn greet(
    channel: Box<dyn Channel>,
    patience: Duration,
    greeted: Sender<Greeting>,
) -> Result<(), Cause> {
    let halves = channel.split().map_err(|error| Cause::Channel(chain(&error)))?;
    let (_, mut receive, close) = halves;
    let greeting = move || {
        let preamble = Listener::preamble(&mut *receive, patience).ok();
        // Nobody waits any more: the connection ends with this.
        let _ = greeted.send(Greeting { preamble, receive, close });
    };
    thread::Builder::new()
        .name("greeting".into())
        .spawn(greeting)
        .map_err(|error| no_thread(&error))?;
    Ok(())
}

/// Whether something came that ends the wait. Everything that came is kept.
fn ended(inbox: &Receiver<Heard>, waiting: &mut VecDeque<Heard>) -> bool {
    waiting.extend(inbox.try_iter());
    waiting.iter().any(|heard| {
        matches!(
            heard,
            Heard::Event(Event::Cancel)
                | Heard::ControlGone(_)
                | Heard::Message(Message::Abort(_) | Message::Failed(_))
        )
    })
}

impl Receiving {
    /// Takes in as many as were announced, and starts a thread for each. `false` where
    /// there is nothing to wait for any more: a cancel, or the source is gone.
    pub(super) fn join(&mut self) -> Result<bool, Cause> {
        let count = self.hello.as_ref().map_or(1, |hello| hello.data_channels);
        let count = usize::from(count);
        let (Some(spread), Some(arrived)) = (&self.spread, &self.loaded.arrived) else {
            return Err(Cause::Protocol("data connections without a machine".into()));
        };
        self.lanes.round = vec![0; count];
        self.lanes.ended = vec![false; count];
        let mut taken: Vec<Option<(Role, Box<dyn Receive>)>> =
            (0..count).map(|_| None).collect();
        let until = self.now() + self.wired.patience;
        let (greeted, greetings) = channel();
        let mut strangers = Strangers::default();
        while taken.iter().any(Option::is_none) {
            if ended(&self.wired.inbox, &mut self.waiting) {
                return Ok(false);
            }
            let left = until.saturating_sub(self.wired.clock.now());
            match self.wired.accept.accept(left.min(LOOK)) {
                // Too many who say nothing: this one is not even asked.
                Ok(_) if strangers.asked >= MOST_ASKED => {}
                Ok(channel) => {
                    strangers.asked += 1;
                    greet(channel, left.min(GREETING), greeted.clone())?;
                }
                Err(ChannelError::TimedOut(_)) if !left.is_zero() => {}
                Err(error) => return Err(Cause::Channel(chain(&error))),
            }
            for Greeting { preamble, mut receive, close } in greetings.try_iter() {
                strangers.asked -= 1;
                let role = preamble.and_then(|bytes| self.expected(&bytes));
                let slot = role.and_then(|(role, n)| Some((role, taken.get_mut(n)?)));
                if let Some((role, slot @ None)) = slot {
                    receive.set_deadline(SILENCE);
                    *slot = Some((role, receive));
                    self.closers.push(close);
                    continue;
                }
                // Whoever connects without the token does not get to break anything.
                close.close();
                strangers.refused();
            }
        }
        for (number, entry) in taken.into_iter().enumerate() {
            let Some((role, receive)) = entry else { continue };
            let receiver = receiver::Receiver {
                number,
                of: count,
                role,
                page: self.wired.preamble.page_size,
                receive,
                memory: Arc::clone(&spread.memory),
                resumes: spread.resumes.clone(),
                devices: spread.devices.iter().filter_map(Worker::another).collect(),
                arrived: Arc::clone(arrived),
                received: Arc::clone(&self.received),
                patience: self.wired.patience,
                _alive: self.alive.0.clone(),
            };
            let out = self.wired.events.clone();
            thread::Builder::new()
                .name(format!("data {number}"))
                .spawn(move || receiver.work(&out))
                .map_err(|error| no_thread(&error))?;
        }
        Ok(true)
    }

    /// The role of a data connection of this migration that shows the token, and its
    /// place.
    fn expected(&self, bytes: &[u8; Preamble::SIZE]) -> Option<(Role, usize)> {
        let preamble = Preamble::decode(bytes).ok()?;
        let Role::Data { channel, token } = preamble.role else { return None };
        let ours = preamble.migration == self.wired.preamble.migration
            && token == self.wired.token;
        ours.then(|| (preamble.role, usize::from(channel.get()) - 1))
    }
}
