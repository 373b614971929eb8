//! The downtime of a guest whose devices leave all their data to it.
//!
//! ```text
//!   figure   server -> [vfio-user] -> engine --[TCP]--> engine -> [vfio-user] -> server
//!   limit    server -> [UNIX] -> thread ----[TCP]----> thread -> [UNIX] -> server
//! ```
//!
//! Six processes: two servers a side, the source, the destination. The figure is the
//! downtime that the engine reports. The limit moves as many bytes over the same hops,
//! both devices at once, in chunks of 1 MiB, each asked for and each answered as
//! `MIG_DATA_READ` and `MIG_DATA_WRITE` are, and nothing else. Both have one TCP
//! connection a device. After each run the two sides are compared.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use control::Transport;
use device::Digest;
use models::accel::BAR2;
use tempfile::TempDir;
use vfio_user::{Client, ClientOptions, NoDma};

use super::guest::{self, CHUNK, Ram};
use super::outgoing::{Bytes, There};
use super::server::Bare;
use super::side::Side;
use super::text;
use crate::bench::row::{Reach, Row, Runs};

/// Devices.
const DEVICES: usize = 2;

/// Bytes of each one's memory.
const DEVICE_MEMORY: u64 = 64 << 20;

/// Bytes of the guest's memory: not what is measured here.
const MEMORY: u64 = 16 << 20;

/// Measures the row.
pub(super) fn measure(runs: Runs) -> Result<Row, String> {
    let samples = runs.interleave(&mut Rig::new()?, Rig::migrate, Rig::copy)?;
    Row::new(
        "downtime, 2 devices with 64 MiB each left to stop-copy",
        "ms",
        Reach::AtMost { factor: 1.3, plus: 20.0 },
        &samples,
    )
}

/// Where a server is found.
struct Place {
    socket: PathBuf,
    bare: PathBuf,
}

struct Rig {
    ram: Arc<Ram>,
    here: Vec<Place>,
    places: Vec<Place>,
    there: There,
    _servers: Vec<Side>,
    _folder: TempDir,
}

impl Rig {
    fn new() -> Result<Rig, String> {
        let folder = tempfile::tempdir().map_err(text)?;
        let mut servers = Vec::new();
        let mut start = |name: &str| {
            let place = Place {
                socket: folder.path().join(format!("{name}.sock")),
                bare: folder.path().join(format!("{name}.bare")),
            };
            let bytes = DEVICE_MEMORY.to_string();
            let arguments = [place.socket.as_path(), place.bare.as_path()]
                .map(|path| path.to_string_lossy().into_owned());
            let [socket, bare] = arguments;
            servers.push(Side::start("server", &[socket, bare, bytes])?);
            Ok::<Place, String>(place)
        };
        let mut places = |side: &str| -> Result<Vec<Place>, String> {
            (0..DEVICES).map(|n| start(&format!("{side}{n}"))).collect()
        };
        let (here, places) = (places("source")?, places("destination")?);
        let sockets = places.iter().flat_map(|place| [&*place.socket, &*place.bare]);
        let there = There::start(MEMORY, sockets)?;
        let ram = Ram::new(MEMORY)?;
        // Memory that moves tells the engine how fast the link is.
        guest::fill(ram.shared(), 3)?;
        Ok(Rig { ram, here, places, there, _servers: servers, _folder: folder })
    }

    fn migrate(&mut self) -> Result<f64, String> {
        self.there.side.ask("scrub")?;
        let mut clients = Vec::new();
        for (n, place) in self.here.iter().enumerate() {
            let client = guest::connect(&place.socket, &format!("accel{n}"), &self.ram)?;
            let mut chunk = vec![0; CHUNK];
            for at in (0..DEVICE_MEMORY).step_by(CHUNK) {
                guest::noise(at ^ (n as u64 + 1) << 32, &mut chunk);
                client.region_write(BAR2, at, &chunk).map_err(text)?;
            }
            clients.push(client);
        }
        let before: Vec<_> = clients.iter().map(digest).collect::<Result<_, _>>()?;
        self.there.side.tell("receive")?;
        let machine = guest::machine(&self.ram, &clients, false)?;
        drop(clients);
        let report = self.there.migrate(machine, DEVICES as u16)?;
        self.there.side.hear()?;
        if report.device_bytes < DEVICES as u64 * DEVICE_MEMORY {
            return Err(format!("only {} bytes were moved", report.device_bytes));
        }
        for (place, before) in self.places.iter().zip(before) {
            let options = ClientOptions::new("checked", Arc::new(NoDma));
            let client = Client::connect(&place.socket, options).map_err(text)?;
            if digest(&client)? != before {
                return Err("a device arrived otherwise than it left".into());
            }
        }
        let downtime = report.downtime.ok_or("there was no downtime")?;
        Ok(downtime.as_secs_f64() * 1e3)
    }

    fn copy(&mut self) -> Result<f64, String> {
        self.there.side.tell("take-devices")?;
        let mut ready = Vec::new();
        for (which, place) in (0u8..).zip(&self.here) {
            let mut bytes = self.there.bare()?;
            bytes.send(&[which])?;
            ready.push((bytes, Bare::connect(&place.bare)?));
        }
        let started = Instant::now();
        std::thread::scope(|scope| {
            let threads: Vec<_> = ready
                .into_iter()
                .map(|(bytes, bare)| scope.spawn(move || send(bytes, bare)))
                .collect();
            threads.into_iter().try_for_each(|thread| {
                thread.join().map_err(|_| "a device's thread panicked")?
            })
        })?;
        let took = started.elapsed();
        self.there.side.hear()?;
        for (here, there) in self.here.iter().zip(&self.places) {
            if Bare::connect(&here.bare)?.sum()? != Bare::connect(&there.bare)?.sum()? {
                return Err("bytes arrived otherwise than they left".into());
            }
        }
        Ok(took.as_secs_f64() * 1e3)
    }
}

/// Moves the bytes of one server.
fn send(mut bytes: Bytes, mut bare: Bare) -> Result<(), String> {
    let mut chunk = vec![0; CHUNK];
    for at in (0..bare.bytes).step_by(CHUNK) {
        bare.read(at, &mut chunk)?;
        bytes.send(&chunk)?;
    }
    bytes.arrived()
}

fn digest(client: &Client) -> Result<Digest, String> {
    client.digest().map_err(text)?.ok_or_else(|| "the device has no digest".into())
}
