//! The side that serves one device: an accelerator over vfio-user, and beside it bare
//! bytes over a socket of the same kind, with as little as possible around them.
//!
//! ```text
//!   arguments    VFIO_USER_SOCKET BARE_SOCKET BYTES
//!
//!   bare         READ offset         -> 16 bytes and a chunk, as MIG_DATA_READ has it
//!                WRITE offset, chunk -> 16 bytes
//!                SUM                 -> 16 bytes with the checksum of all
//!                every message begins with 16 bytes: kind u64, value u64
//! ```

use std::io::{IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use device::Runner;
use models::accel::{Accel, Parameters};
use states::v2::Capabilities;
use sys::SharedMemory;
use sys::socket::Listener;
use vfio_user::{Server, ServerOptions, Stop};

use super::guest::{self, CHUNK};
use super::side;
use super::text;

const SIZE: u64 = 0;
const READ: u64 = 1;
const WRITE: u64 = 2;
const SUM: u64 = 3;

/// Is it, until nobody has anything more to ask.
pub(super) fn run(arguments: &[String]) -> Result<(), String> {
    let [socket, bare, bytes] = arguments else {
        return Err("not two sockets and a size".into());
    };
    let memory_bytes = bytes.parse().map_err(text)?;
    let parameters = Parameters {
        memory_bytes,
        capabilities: Capabilities::try_from_flags(1).map_err(text)?,
        ..Parameters::default()
    };
    let accel = Accel::new(parameters).map_err(text)?;
    let runner = Runner::new(Box::new(accel)).map_err(text)?;
    let mut server = Server::new(runner, ServerOptions::default()).map_err(text)?;
    let listener = Listener::bind(Path::new(socket)).map_err(text)?;
    let stop = Stop::new().map_err(text)?;
    let stopped = stop.clone();
    let device = std::thread::spawn(move || server.serve(listener, &stopped));

    let memory = guest::touched(memory_bytes)?;
    guest::fill(&memory, u64::from(std::process::id()))?;
    let listener = Listener::bind(Path::new(bare)).map_err(text)?;
    std::thread::spawn(move || {
        while let Ok(client) = listener.accept() {
            // A client that goes away has said why, or has all it wants.
            let _ = serve(client.into(), &memory);
        }
    });
    side::answer("", |command| Err(format!("what is `{command}`?")))?;
    stop.stop();
    match device.join() {
        Ok(served) => served.map_err(text),
        Err(_) => Err("the server panicked".into()),
    }
}

fn serve(mut client: UnixStream, memory: &SharedMemory) -> Result<(), String> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let (kind, value) = hear(&mut client)?;
        match kind {
            SIZE => say(&mut client, SIZE, memory.len(), &[])?,
            READ => {
                memory.read(value, &mut chunk).map_err(text)?;
                say(&mut client, READ, value, &chunk)?;
            }
            WRITE => {
                client.read_exact(&mut chunk).map_err(text)?;
                memory.write(value, &chunk).map_err(text)?;
                say(&mut client, WRITE, value, &[])?;
            }
            SUM => {
                let sum = guest::checksum(memory)?;
                say(&mut client, SUM, u64::from(sum), &[])?;
            }
            other => return Err(format!("a message of kind {other}")),
        }
    }
}

/// One message, its bytes not copied once more.
fn say(to: &mut UnixStream, kind: u64, value: u64, bytes: &[u8]) -> Result<(), String> {
    let mut head = [0; 16];
    head[..8].copy_from_slice(&kind.to_le_bytes());
    head[8..].copy_from_slice(&value.to_le_bytes());
    let mut parts = [IoSlice::new(&head), IoSlice::new(bytes)];
    let mut parts = &mut parts[..];
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        let sent = to.write_vectored(parts).map_err(text)?;
        IoSlice::advance_slices(&mut parts, sent);
    }
    Ok(())
}

fn hear(from: &mut UnixStream) -> Result<(u64, u64), String> {
    let mut head = [[0; 8]; 2];
    from.read_exact(head.as_flattened_mut()).map_err(text)?;
    Ok((u64::from_le_bytes(head[0]), u64::from_le_bytes(head[1])))
}

/// A connection to the bare bytes.
#[derive(Debug)]
pub(super) struct Bare {
    socket: UnixStream,
    /// How many there are.
    pub(super) bytes: u64,
}

impl Bare {
    pub(super) fn connect(path: &Path) -> Result<Bare, String> {
        let socket = sys::socket::connect(path).map_err(text)?.into();
        let mut bare = Bare { socket, bytes: 0 };
        bare.bytes = bare.ask(SIZE, 0, &[])?;
        Ok(bare)
    }

    /// Reads a chunk.
    pub(super) fn read(&mut self, at: u64, chunk: &mut [u8]) -> Result<(), String> {
        self.ask(READ, at, &[])?;
        self.socket.read_exact(chunk).map_err(text)
    }

    /// Writes a chunk.
    pub(super) fn write(&mut self, at: u64, chunk: &[u8]) -> Result<(), String> {
        self.ask(WRITE, at, chunk).map(drop)
    }

    /// The checksum of all of it.
    pub(super) fn sum(&mut self) -> Result<u64, String> {
        self.ask(SUM, 0, &[])
    }

    fn ask(&mut self, kind: u64, value: u64, bytes: &[u8]) -> Result<u64, String> {
        say(&mut self.socket, kind, value, bytes)?;
        match hear(&mut self.socket)? {
            (answered, value) if answered == kind => Ok(value),
            (other, _) => Err(format!("kind {other} for an answer to {kind}")),
        }
    }
}
