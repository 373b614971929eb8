//! Two ends on one CPU: a device behind a vfio-user server in this process, and beside it
//! a bare socket of the same kind.
//!
//! ```text
//!   figure   Client ----[socket pair]---- Server, runner, model
//!   limit    bench  ----[socket pair]---- a thread with a loop of its own
//! ```
//!
//! All threads are pinned to the same CPU, so that what is measured is the path and not
//! where the scheduler put the other end.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use device::{Migratable, Runner};
use vfio_user::{Client, ClientOptions, DmaHandler, Server, ServerOptions, Stop};

use super::text;
use crate::bench::row::Samples;

/// Room in a bare socket, in bytes: that for a message of vfio-user by default.
const ROOM: usize = 1 << 20;

/// Measures in a thread of its own, for what is pinned stays pinned.
pub(super) fn measure(
    samples: impl FnOnce() -> Result<Samples, String> + Send + 'static,
) -> Result<Samples, String> {
    let measured = std::thread::spawn(move || {
        pin()?;
        samples()
    });
    measured.join().map_err(|_| "the measuring thread panicked")?
}

/// Pins this thread, and those it starts, to the first CPU that it may use.
fn pin() -> Result<(), String> {
    let mut last = None;
    for cpu in 0..1024 {
        match sys::set_affinity(cpu) {
            Ok(()) => return Ok(()),
            Err(error) => last = Some(error),
        }
    }
    Err(format!("cannot pin to a CPU: {last:?}"))
}

/// The median time that `work` takes, in microseconds.
pub(super) fn median(
    times: usize,
    mut work: impl FnMut() -> Result<(), String>,
) -> Result<f64, String> {
    let mut took = Vec::with_capacity(times);
    for _ in 0..times {
        let started = Instant::now();
        work()?;
        took.push(started.elapsed());
    }
    middle(&mut took)
}

/// The median of some times, in microseconds.
pub(super) fn middle(took: &mut [Duration]) -> Result<f64, String> {
    if took.is_empty() {
        return Err("nothing was timed".into());
    }
    let (_, median, _) = took.select_nth_unstable(took.len() / 2);
    Ok(Duration::as_secs_f64(median) * 1e6)
}

/// A device that is served, and a client of it.
pub(super) struct Served {
    client: Option<Client>,
    stop: Stop,
    server: Option<JoinHandle<()>>,
}

impl Served {
    /// Serves `model` to a client that answers its DMA with `handler`.
    pub(super) fn new(
        model: Box<dyn Migratable>,
        handler: Arc<dyn DmaHandler>,
    ) -> Result<Served, String> {
        Served::with(model, handler, ServerOptions::default())
    }

    /// The same, served in another way than by default.
    pub(super) fn with(
        model: Box<dyn Migratable>,
        handler: Arc<dyn DmaHandler>,
        options: ServerOptions,
    ) -> Result<Served, String> {
        let (near, far) = sys::socket::pair().map_err(text)?;
        let runner = Runner::new(model).map_err(text)?;
        let mut server = Server::new(runner, options).map_err(text)?;
        server.adopt(far).map_err(text)?;
        let stop = Stop::new().map_err(text)?;
        let stopped = stop.clone();
        let server = std::thread::spawn(move || {
            if let Err(error) = server.serve_until(&stopped) {
                eprintln!("the server ended: {error}");
            }
        });
        let mut served = Served { client: None, stop, server: Some(server) };
        let options = ClientOptions::new("bench", handler);
        served.client = Some(Client::over(near, options).map_err(text)?);
        Ok(served)
    }

    /// The client.
    pub(super) fn client(&self) -> Result<&Client, String> {
        self.client.as_ref().ok_or_else(|| "there is no client".to_owned())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.client = None;
        self.stop.stop();
        // What it had to say it said itself.
        let _ = self.server.take().map(JoinHandle::join);
    }
}

/// A bare socket with somebody at its other end.
pub(super) struct Bare {
    socket: Option<UnixStream>,
    other: Option<JoinHandle<()>>,
}

impl Bare {
    /// With a thread that does `other` at the other end, until the socket ends. Sockets
    /// have as much room as the client and the server ask for.
    pub(super) fn new(
        other: impl FnOnce(UnixStream) -> std::io::Result<()> + Send + 'static,
    ) -> Result<Bare, String> {
        let (near, far) = UnixStream::pair().map_err(text)?;
        for socket in [&near, &far] {
            sys::socket::set_send_buffer(socket, ROOM).map_err(text)?;
        }
        let other = std::thread::spawn(move || {
            // It ends with the other side, or that one misses an answer.
            let _ = other(far);
        });
        Ok(Bare { socket: Some(near), other: Some(other) })
    }

    /// This end.
    pub(super) fn socket(&mut self) -> Result<&mut UnixStream, String> {
        self.socket.as_mut().ok_or_else(|| "there is no socket".to_owned())
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.socket = None;
        let _ = self.other.take().map(JoinHandle::join);
    }
}
