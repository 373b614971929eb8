//! A register read by a vCPU of a device in another process: what a trapped access
//! costs.
//!
//! ```text
//!   figure   Client::region_read --[24+8 bytes]--> Server, runner, model
//!                                <--[32+4 bytes]--
//!   limit    write(32) ----------> read, write(32)
//!            read      <----------
//! ```
//!
//! Both ends are threads of one CPU, so that what is measured is the path and not where
//! the scheduler put the other end. Each run gives the median of its accesses.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use control::Transport;
use device::Runner;
use models::accel::registers::{ID, ID_VALUE};
use models::accel::{Accel, BAR0, Parameters};
use vfio_user::{Client, ClientOptions, NoDma, Server, ServerOptions, Stop};

use super::text;
use crate::bench::row::{Reach, Row, Runs, Samples};

/// Accesses in one run.
const ACCESSES: usize = 20_000;

/// Accesses before the first run.
const WARM_UP: usize = 2_000;

/// Bytes of the bare message, as of a region read's header and fields.
const BARE: usize = 32;

/// Measures the row.
pub(super) fn measure(runs: Runs) -> Result<Row, String> {
    // A thread of its own, for what is pinned stays pinned.
    let measured = std::thread::spawn(move || samples(runs)).join();
    let samples = measured.map_err(|_| "the measuring thread panicked")??;
    Row::new(
        "region read of 4 bytes over vfio-user, both ends on one CPU",
        "µs",
        Reach::AtMost { factor: 1.35, plus: 0.0 },
        &samples,
    )
}

fn samples(runs: Runs) -> Result<Samples, String> {
    pin()?;
    let mut rig = Rig::new()?;
    median(WARM_UP, || rig.read())?;
    median(WARM_UP, || rig.ping())?;
    runs.interleave(
        &mut rig,
        |rig| median(ACCESSES, || rig.read()),
        |rig| median(ACCESSES, || rig.ping()),
    )
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

/// The median time of an access, in microseconds.
fn median(
    accesses: usize,
    mut access: impl FnMut() -> Result<(), String>,
) -> Result<f64, String> {
    let mut took = Vec::with_capacity(accesses);
    for _ in 0..accesses {
        let started = Instant::now();
        access()?;
        took.push(started.elapsed());
    }
    let middle = took.len() / 2;
    let (_, median, _) = took.select_nth_unstable(middle);
    Ok(Duration::as_secs_f64(median) * 1e6)
}

/// Both ways, each with its other end.
struct Rig {
    client: Option<Client>,
    stop: Stop,
    server: Option<JoinHandle<()>>,
    bare: Option<UnixStream>,
    echo: Option<JoinHandle<()>>,
}

impl Rig {
    fn new() -> Result<Rig, String> {
        let (near, far) = sys::socket::pair().map_err(text)?;
        let accel = Accel::new(Parameters::default()).map_err(text)?;
        let runner = Runner::new(Box::new(accel)).map_err(text)?;
        let mut server = Server::new(runner, ServerOptions::default()).map_err(text)?;
        server.adopt(far).map_err(text)?;
        let stop = Stop::new().map_err(text)?;
        let stopped = stop.clone();
        let server = std::thread::spawn(move || {
            if let Err(error) = server.serve_until(&stopped) {
                eprintln!("the server ended: {error}");
            }
        });
        let options = ClientOptions::new("bench", Arc::new(NoDma));
        let client = Client::over(near, options).map_err(text)?;

        let (bare, mut other) = UnixStream::pair().map_err(text)?;
        let echo = std::thread::spawn(move || {
            let mut message = [0; BARE];
            while other.read_exact(&mut message).is_ok()
                && other.write_all(&message).is_ok()
            {}
        });
        Ok(Rig {
            client: Some(client),
            stop,
            server: Some(server),
            bare: Some(bare),
            echo: Some(echo),
        })
    }

    fn read(&self) -> Result<(), String> {
        let client = self.client.as_ref().ok_or("there is no client")?;
        let mut bytes = [0; 4];
        client.region_read(BAR0, ID, &mut bytes).map_err(text)?;
        if bytes == ID_VALUE.to_le_bytes()[..4] {
            return Ok(());
        }
        Err(format!("the register reads {bytes:x?}"))
    }

    fn ping(&mut self) -> Result<(), String> {
        let bare = self.bare.as_mut().ok_or("there is no socket")?;
        let mut message = [0x5a; BARE];
        bare.write_all(&message).map_err(text)?;
        bare.read_exact(&mut message).map_err(text)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.client = None;
        self.bare = None;
        self.stop.stop();
        for thread in [self.server.take(), self.echo.take()].into_iter().flatten() {
            // What it had to say it said itself.
            let _ = thread.join();
        }
    }
}
