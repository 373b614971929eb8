//! Our client, against servers that lie.

mod calls;
mod fields;
mod general;
mod questions;
mod setup;

use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use control::{Transport, TransportError};
use sys::{EventFd, SharedMemory};
use vfio_migrate_vfio_user::{Client, ClientOptions, NoDma};

use super::row::{Fd, Row};
use super::wire::{HEADER, Message, REPLY, Wire};
use calls::Call;

/// How long a call may take where it is to run into its deadline, ...
const SHORT: Duration = Duration::from_millis(300);
/// ... where it is not, ...
const LONG: Duration = Duration::from_secs(5);
/// ... and all rows together.
const ALL: Duration = Duration::from_secs(120);

/// A row that did not come to its call.
const EARLY: &str = "VERSION";

/// Rows that run at once: most of them only wait.
const THREADS: usize = 16;

/// How an answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Whole.
    Whole,
    /// Not at all.
    Silence,
    /// Up to half of it, and then nothing.
    Half,
    /// Not at all, and the connection is closed.
    Close,
    /// Up to half of it, and then the connection is closed.
    HalfClose,
    /// Twice.
    Twice,
    /// Byte by byte.
    Drip,
    /// Behind questions of its own, which the client answers.
    Asking,
}

/// What a call has to come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Fine,
    Errno(i32),
    /// An answer that cannot be.
    Broken,
    TimedOut,
    Gone,
}

/// What later calls come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Works,
    Gone,
}

/// A call, how it is answered, and what comes of that.
#[derive(Clone)]
struct Lie {
    call: &'static Call,
    what: String,
    /// Makes the lie of the honest answer.
    change: Arc<dyn Fn(Row) -> Row + Send + Sync>,
    manner: Manner,
    outcome: Outcome,
    after: After,
}

impl Lie {
    /// The honest answer, changed so. What it comes to is said afterwards.
    fn new(
        call: &'static Call,
        what: impl Into<String>,
        change: impl Fn(Row) -> Row + Send + Sync + 'static,
    ) -> Lie {
        Lie {
            call,
            what: what.into(),
            change: Arc::new(change),
            manner: Manner::Whole,
            outcome: Outcome::Fine,
            after: After::Works,
        }
    }

    fn manner(mut self, manner: Manner) -> Lie {
        self.manner = manner;
        self
    }

    fn is(mut self, outcome: Outcome) -> Lie {
        self.outcome = outcome;
        self.after = match outcome {
            Outcome::Fine | Outcome::Errno(_) => After::Works,
            Outcome::Broken | Outcome::TimedOut | Outcome::Gone => After::Gone,
        };
        self
    }

    /// It is no answer, and the server is given up.
    fn broken(self) -> Lie {
        self.is(Outcome::Broken)
    }

    fn after(mut self, after: After) -> Lie {
        self.after = after;
        self
    }

    fn run(&self) -> Result<(), String> {
        let mut result = self.run_once();
        for _ in 0..5 {
            // On a busy machine an honest VERSION may miss the short deadline too.
            if !result.as_ref().is_err_and(|error| error.starts_with(EARLY)) {
                break;
            }
            result = self.run_once();
        }
        result
    }

    fn run_once(&self) -> Result<(), String> {
        let (near, far) = UnixStream::pair().unwrap();
        let liar = {
            let lie = self.clone();
            std::thread::spawn(move || lie.serve(near))
        };
        let began = Instant::now();
        let result = self.call(far);
        let told = liar.join().map_err(|_| "the liar panicked".to_owned())?;
        let took = began.elapsed();
        if took > LONG {
            return Err(format!("it took {took:?}"));
        }
        result.and(told)
    }

    fn call(&self, socket: UnixStream) -> Result<(), String> {
        let mut options = ClientOptions::new("liar", Arc::new(NoDma));
        let deadline = if self.outcome == Outcome::TimedOut { SHORT } else { LONG };
        (options.call_deadline, options.state_deadline) = (deadline, deadline);
        let setup = self.call.command == 1;
        let client = Client::over(socket.into(), options);
        let (client, result) = match client {
            Ok(client) if setup => (Some(client), Ok(())),
            Ok(client) => {
                let result = (self.call.make)(&client);
                (Some(client), result)
            }
            Err(error) if setup => (None, Err(error)),
            Err(error) => return Err(format!("{EARLY}: {error}")),
        };
        let outcome = match &result {
            Ok(()) => Outcome::Fine,
            Err(TransportError::Errno { errno, .. }) => Outcome::Errno(errno.0),
            Err(TransportError::Broken { .. }) => Outcome::Broken,
            Err(TransportError::TimedOut { .. }) => Outcome::TimedOut,
            Err(TransportError::Gone { .. }) => Outcome::Gone,
        };
        if outcome != self.outcome {
            return Err(format!("{outcome:?} ({result:?}), not {:?}", self.outcome));
        }
        let Some(client) = client else { return Ok(()) };
        // Twice, since the first may be the one that finds out.
        let later = client.device_info().and_then(|_| client.device_info());
        match (self.after, later) {
            (After::Works, Ok(_)) => Ok(()),
            (
                After::Gone,
                Err(TransportError::Gone { .. } | TransportError::Broken { .. }),
            ) => Ok(()),
            (after, later) => Err(format!("later {later:?}, where it is {after:?}")),
        }
    }

    /// The server: honest but for the first answer to the call's command.
    fn serve(&self, socket: UnixStream) -> Result<(), String> {
        let stuff = Stuff::new();
        let mut raw = socket.try_clone().map_err(|error| error.to_string())?;
        let wire = Wire::new(socket);
        let mut lied = false;
        // Until the client leaves.
        while let Ok(asked) = wire.receive() {
            if asked.flags & REPLY != 0 {
                // To what was meant as an answer, and looked like a command.
                continue;
            }
            let honest = calls::answer(&asked)?;
            if lied || asked.command != self.call.command {
                let _ = wire.send(&honest.message(asked.id).bytes(), &stuff.of(&honest));
                continue;
            }
            lied = true;
            let lie = (self.change)(honest);
            let bytes = lie.message(asked.id.wrapping_add(lie.off)).bytes();
            let fds = stuff.of(&lie);
            let half = &bytes[..bytes.len() / 2];
            // The client may hang up at any moment.
            let _ = match self.manner {
                Manner::Whole => wire.send(&bytes, &fds),
                Manner::Silence => Ok(()),
                Manner::Half => wire.send(half, &fds),
                Manner::Close => return Ok(()),
                Manner::HalfClose => {
                    let _ = wire.send(half, &fds);
                    return Ok(());
                }
                Manner::Twice => {
                    wire.send(&bytes, &fds).and_then(|()| wire.send(&bytes, &fds))
                }
                Manner::Drip => {
                    let first = wire.send(&bytes[..1], &fds);
                    bytes[1..].iter().try_for_each(|byte| raw.write_all(&[*byte])).ok();
                    first
                }
                Manner::Asking => {
                    ask(&wire)?;
                    wire.send(&bytes, &fds)
                }
            };
        }
        Ok(())
    }
}

/// Asks what a server may, and what it has no right to; both are answered.
fn ask(wire: &Wire) -> Result<(), String> {
    for command in [11, 13, 99] {
        let question = Row::new(command, vec![0; 32]);
        wire.send(&question.message(9).bytes(), &[])?;
        let got = wire.receive()?;
        if (got.id, got.command, got.flags & REPLY) != (9, command, REPLY) {
            return Err(format!("a question got {got:?}"));
        }
    }
    Ok(())
}

/// What goes with messages.
struct Stuff {
    event: EventFd,
    memory: SharedMemory,
    file: std::fs::File,
}

impl Stuff {
    fn new() -> Stuff {
        let event = EventFd::new().unwrap();
        let memory = SharedMemory::create("device", 1 << 20).unwrap();
        Stuff { event, memory, file: tempfile::tempfile().unwrap() }
    }

    fn of(&self, row: &Row) -> Vec<BorrowedFd<'_>> {
        let fd = |fd: &Fd| match fd {
            Fd::Event(_) => self.event.as_fd(),
            Fd::Memory => self.memory.fd(),
            Fd::File => self.file.as_fd(),
        };
        row.fds.iter().map(fd).collect()
    }
}

fn lies() -> Vec<Lie> {
    [general::lies(), fields::lies(), setup::lies()].concat()
}

#[test]
fn every_call_survives_every_lie_with_a_clear_error_in_time() {
    let lies = Arc::new(lies());
    let (next, running) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(BTreeSet::new())));
    let (told, results) = channel();
    for _ in 0..THREADS {
        let (lies, next, running) =
            (Arc::clone(&lies), Arc::clone(&next), Arc::clone(&running));
        let told = told.clone();
        std::thread::spawn(move || {
            while let Some(n) =
                Some(next.fetch_add(1, Ordering::SeqCst)).filter(|n| *n < lies.len())
            {
                running.lock().unwrap().insert(n);
                let result = catch_unwind(AssertUnwindSafe(|| lies[n].run()));
                running.lock().unwrap().remove(&n);
                let result = result.unwrap_or_else(|_| Err("it panicked".to_owned()));
                if told.send((n, result)).is_err() {
                    return;
                }
            }
        });
    }
    drop(told);
    let name = |n: usize| format!("{n:4} {}: {}", lies[n].call.name, lies[n].what);
    let (end, mut failed) = (Instant::now() + ALL, Vec::new());
    loop {
        match results.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok((_, Ok(()))) => {}
            Ok((n, Err(error))) => failed.push(format!("{}: {error}", name(n))),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let hang =
                    running.lock().unwrap().iter().map(|n| name(*n)).collect::<Vec<_>>();
                failed.push(format!("these hang:\n{}", hang.join("\n")));
                break;
            }
        }
    }
    failed.sort();
    assert!(
        failed.is_empty(),
        "{} of {}:\n{}",
        failed.len(),
        lies.len(),
        failed.join("\n")
    );
}

#[test]
fn the_table_has_every_call_with_every_kind_of_lie() {
    let lies = lies();
    assert!(lies.len() >= 800, "{} rows", lies.len());
    for call in calls::CALLS {
        let of: Vec<_> = lies.iter().filter(|lie| lie.call.name == call.name).collect();
        assert!(of.len() >= 20, "{} rows of {}", of.len(), call.name);
        for outcome in [Outcome::Fine, Outcome::Broken, Outcome::TimedOut, Outcome::Gone]
        {
            let there = of.iter().any(|lie| lie.outcome == outcome);
            assert!(there, "no row of {} ends {outcome:?}", call.name);
        }
        assert!(of.iter().any(|lie| matches!(lie.outcome, Outcome::Errno(_))));
    }
    let mut names = BTreeSet::new();
    let twice: Vec<_> = lies
        .iter()
        .map(|lie| (lie.call.name, &lie.what))
        .filter(|name| !names.insert(*name))
        .collect();
    assert!(twice.is_empty(), "rows of one name: {twice:#?}");
}

/// What a message asks, as its fields.
fn u32_at(asked: &Message, at: usize) -> Result<u32, String> {
    let bytes = asked.body.get(at..at + 4);
    let bytes = bytes.ok_or_else(|| {
        format!("command {} of {} bytes", asked.command, HEADER + asked.body.len())
    })?;
    Ok(u32::from_ne_bytes(bytes.try_into().unwrap()))
}
