//! The side that a guest, or bare bytes, arrive at.
//!
//! ```text
//!   arguments    MEMORY_BYTES [VFIO_USER_SOCKET BARE_SOCKET]...
//!   ready        URI BARE_PORT
//!   scrub        overwrite memory and devices
//!   receive      take one migration in; answers the checksum of memory
//!   take-memory  take bare bytes into memory; answers its checksum
//!   take-devices take bare bytes for the bare servers, each over a connection of its own
//! ```

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use control::Transport;
use engine::drive::{Incoming, Offered, Received};
use engine::migration::sink::Ending;
use models::accel::BAR2;

use super::guest::{self, CHUNK, Ram};
use super::server::Bare;
use super::side;
use super::text;

/// How long anything may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// What says that bare bytes have arrived.
pub(super) const ARRIVED: u8 = 0x06;

/// How much of memory bare bytes take at a time: the plain stream is fastest so, on the
/// machines where 256 KiB and 1 MiB were tried as well. A limit that is not the best there
/// is would be none.
pub(super) const PIECE: usize = 512 << 10;

struct Destination {
    ram: Arc<Ram>,
    /// Of each device: its vfio-user socket, its bare one.
    devices: Vec<(PathBuf, PathBuf)>,
    link: link::Listener,
    bare: TcpListener,
}

/// Is it, until nobody has anything more to ask.
pub(super) fn run(arguments: &[String]) -> Result<(), String> {
    let [memory, sockets @ ..] = arguments else { return Err("no memory".into()) };
    let bytes = memory.parse().map_err(text)?;
    let (pairs, _) = sockets.as_chunks::<2>();
    let bare = TcpListener::bind(("127.0.0.1", 0)).map_err(text)?;
    let port = bare.local_addr().map_err(text)?.port();
    let here = link::Uri::tcp("127.0.0.1", 0).map_err(text)?;
    let destination = Destination {
        ram: Ram::new(bytes)?,
        devices: pairs.iter().map(|[one, two]| (one.into(), two.into())).collect(),
        link: link::listen(&here).map_err(text)?,
        bare,
    };
    let ready = format!("{} {port}", destination.link.local());
    side::answer(&ready, |command| match command {
        "scrub" => destination.scrub(),
        "receive" => destination.receive(),
        "take-memory" => destination.take_memory(),
        "take-devices" => destination.take_devices(),
        other => Err(format!("what is `{other}`?")),
    })
}

impl Destination {
    fn scrub(&self) -> Result<String, String> {
        guest::scrub(self.ram.shared())?;
        for (socket, _) in &self.devices {
            let client = guest::connect(socket, "scrubbed", &self.ram)?;
            let size = client.region_info(BAR2).map_err(text)?.size;
            let chunk = vec![0xff; CHUNK];
            for at in (0..size).step_by(CHUNK) {
                client.region_write(BAR2, at, &chunk).map_err(text)?;
            }
        }
        Ok(String::new())
    }

    fn receive(&self) -> Result<String, String> {
        let (control, accept) = self.link.accept(PATIENCE).map_err(text)?;
        let (ram, devices) = (Arc::clone(&self.ram), self.devices.clone());
        let open = move |_: &[Offered]| {
            let clients = devices.iter().enumerate().map(|(n, (socket, _))| {
                guest::connect(socket, &format!("accel{n}"), &ram)
            });
            let clients: Result<Vec<_>, String> = clients.collect();
            clients
                .and_then(|clients| guest::machine(&ram, &clients, true))
                .map_err(|error| vec![error])
        };
        let store = store::Memory::new().map_err(text)?;
        let (control, accept) = (Box::new(control), Box::new(accept));
        let incoming = Incoming::new(
            control,
            accept,
            Box::new(store),
            *b"a bench!",
            PATIENCE,
            Box::new(open),
        );
        let Received { ending, .. } = incoming.run();
        match ending {
            Ending::Running { .. } => self.checksum(),
            other => Err(format!("the migration ended as {other:?}")),
        }
    }

    fn take_memory(&self) -> Result<String, String> {
        let (mut stream, _) = self.bare.accept().map_err(text)?;
        stream.set_nodelay(true).map_err(text)?;
        let memory = self.ram.shared();
        let mut piece = vec![0; PIECE];
        for at in (0..memory.len()).step_by(PIECE) {
            stream.read_exact(&mut piece).map_err(text)?;
            memory.write(at, &piece).map_err(text)?;
        }
        stream.write_all(&[ARRIVED]).map_err(text)?;
        self.checksum()
    }

    fn take_devices(&self) -> Result<String, String> {
        let mut streams = Vec::new();
        for _ in &self.devices {
            let (mut stream, _) = self.bare.accept().map_err(text)?;
            stream.set_nodelay(true).map_err(text)?;
            let mut which = [0];
            stream.read_exact(&mut which).map_err(text)?;
            streams.push((stream, usize::from(which[0])));
        }
        std::thread::scope(|scope| {
            let threads: Vec<_> = streams
                .into_iter()
                .map(|(stream, which)| {
                    scope.spawn(move || self.take_device(stream, which))
                })
                .collect();
            threads.into_iter().try_for_each(|thread| {
                thread.join().map_err(|_| "a device's thread panicked")?
            })
        })?;
        Ok(String::new())
    }

    fn take_device(&self, mut stream: TcpStream, which: usize) -> Result<(), String> {
        let (_, socket) = self.devices.get(which).ok_or("no such device")?;
        let mut bare = Bare::connect(socket)?;
        let mut chunk = vec![0; CHUNK];
        for at in (0..bare.bytes).step_by(CHUNK) {
            stream.read_exact(&mut chunk).map_err(text)?;
            bare.write(at, &chunk)?;
        }
        stream.write_all(&[ARRIVED]).map_err(text)
    }

    fn checksum(&self) -> Result<String, String> {
        guest::checksum(self.ram.shared()).map(|sum| format!("{sum:08x}"))
    }
}
