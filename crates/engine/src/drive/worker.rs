//! A thread that owns something, does what it is told, and gives it back.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

/// A thread that owns a `T` and takes commands `C`.
#[derive(Debug)]
pub(super) struct Worker<C, T> {
    commands: Option<Sender<C>>,
    back: Receiver<T>,
}

impl<C: Send + 'static, T: Send + 'static> Worker<C, T> {
    /// Starts the thread; `work` returns what it owned when the commands end.
    pub(super) fn start(
        name: &str,
        work: impl FnOnce(Receiver<C>) -> T + Send + 'static,
    ) -> std::io::Result<Worker<C, T>> {
        let (commands, inbox) = channel();
        let (returned, back) = channel();
        // Not joined: what it owned comes back by message, so that a thread that is
        // stuck in a device can be left behind, counted.
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            let owned = work(inbox);
            // Nobody waits any more: then what it owned is dropped here.
            let _ = returned.send(owned);
        })?;
        Ok(Worker { commands: Some(commands), back })
    }

    /// Tells it to do something. A worker that died says so by silence, which the
    /// main loop's deadline notices.
    pub(super) fn tell(&self, command: C) {
        if let Some(commands) = &self.commands {
            let _ = commands.send(command);
        }
    }

    /// Somebody else who may tell it things. It ends when they are gone too.
    pub(super) fn another(&self) -> Option<Sender<C>> {
        self.commands.clone()
    }

    /// Ends it and takes back what it owned; `None` when it is stuck.
    pub(super) fn finish(mut self, patience: Duration) -> Option<T> {
        self.commands = None;
        self.back.recv_timeout(patience).ok()
    }
}
