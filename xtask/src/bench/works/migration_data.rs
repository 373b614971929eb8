//! A device's state to the VMM and back, in pieces of 1 MiB: what the protocol costs.
//!
//! ```text
//!   figure   DataSession::read  --[MIG_DATA_READ]------------> Server, runner, model
//!                               <--[32 bytes, 1 MiB]---------
//!            DataSession::write --[MIG_DATA_WRITE, 1 MiB]----> Server, runner, model
//!                               <--[16 bytes]----------------
//!   limit    write(24) -------------------------------------> read
//!            read      <------------------------------------- write(1 MiB)
//!            write(24), write(1 MiB) -----------------------> read, read
//!            read      <------------------------------------- write(16)
//! ```
//!
//! Both ends are threads of one CPU, and the far one has the state in a buffer. Asked in
//! messages of the same length, the limit hands that buffer to the kernel, so that nothing
//! is copied but by the socket. So does the model when it saves, as it lends its state; what
//! it loads it has to copy. Each run gives the speed of the median piece.

use std::io::{self, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use abi::v2::DeviceState;
use control::{DataSession, Direction, Transport};
use vfio_user::NoDma;

use super::guest::{self, CHUNK};
use super::one_cpu::{self, Bare, Served, middle};
use super::plain::Plain;
use super::text;
use crate::bench::row::{Reach, Row, Runs};

/// Bytes of the state: more than what caches hold close to the CPU.
const STATE: usize = 64 << 20;

/// Pieces of it.
const PIECES: usize = STATE / CHUNK;

/// How often it is moved in one run.
const TIMES: usize = 4;

/// Bytes of a message without data: one that asks for a piece, and a header alone.
const ASKED: usize = 24;
const ANSWERED: usize = 16;

/// Measures the way out of the device.
pub(super) fn measure_read(runs: Runs) -> Result<Row, String> {
    let work = "MIG_DATA_READ of 1 MiB at a time, both ends on one CPU";
    measure(work, runs, Rig::read, Rig::read_bare)
}

/// Measures the way into the device.
pub(super) fn measure_write(runs: Runs) -> Result<Row, String> {
    let work = "MIG_DATA_WRITE of 1 MiB at a time, both ends on one CPU";
    measure(work, runs, Rig::write, Rig::write_bare)
}

type Side = fn(&mut Rig) -> Result<f64, String>;

fn measure(
    work: &'static str,
    runs: Runs,
    figure: Side,
    limit: Side,
) -> Result<Row, String> {
    let samples = one_cpu::measure(move || {
        let mut rig = Rig::new()?;
        rig.check()?;
        runs.interleave(&mut rig, figure, limit)
    })?;
    Row::new(work, "MiB/s", Reach::AtLeast { factor: 0.9 }, &samples)
}

/// Both ways, each with its other end.
struct Rig {
    served: Served,
    bare: Bare,
    /// The piece that is moved.
    piece: Vec<u8>,
}

impl Rig {
    fn new() -> Result<Rig, String> {
        let (done, _) = mpsc::channel();
        let plain = Plain::new(vec![0; STATE], done);
        Ok(Rig {
            served: Served::new(Box::new(plain), Arc::new(NoDma))?,
            bare: Bare::new(|socket| other(socket, &mut vec![0; STATE]))?,
            piece: vec![0; CHUNK],
        })
    }

    /// What was written is what is read, both ways.
    fn check(&mut self) -> Result<(), String> {
        for seed in [1, 2] {
            let mut sent = vec![0; CHUNK];
            guest::noise(seed, &mut sent);
            self.piece.copy_from_slice(&sent);
            self.write()?;
            self.piece.fill(0);
            self.read()?;
            if self.piece != sent {
                return Err("a piece of state came back otherwise than it went".into());
            }
            self.write_bare()?;
            self.piece.fill(0);
            self.read_bare()?;
            if self.piece != sent {
                return Err("a bare piece came back otherwise than it went".into());
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<f64, String> {
        self.session(DeviceState::STOP_COPY, Direction::Save, |session, piece| {
            match session.read(piece).map_err(text)? {
                CHUNK => Ok(()),
                len => Err(format!("{len} bytes were read at once")),
            }
        })
    }

    fn write(&mut self) -> Result<f64, String> {
        self.session(DeviceState::RESUMING, Direction::Resume, |session, piece| {
            match session.write(piece).map_err(text)? {
                CHUNK => Ok(()),
                len => Err(format!("{len} bytes were written at once")),
            }
        })
    }

    /// Moves the state through sessions: the speed of the median piece.
    fn session(
        &mut self,
        state: DeviceState,
        direction: Direction,
        mut turn: impl FnMut(&mut dyn DataSession, &mut [u8]) -> Result<(), String>,
    ) -> Result<f64, String> {
        let client = self.served.client()?;
        let mut took = Vec::with_capacity(TIMES * PIECES);
        for _ in 0..TIMES {
            let mut session = client
                .set_migration_state(state, Some(direction))
                .map_err(text)?
                .ok_or("there is no data session")?;
            for _ in 0..PIECES {
                let started = Instant::now();
                turn(&mut *session, &mut self.piece)?;
                took.push(started.elapsed());
            }
            client.set_migration_state(DeviceState::STOP, None).map_err(text)?;
        }
        speed(&mut took)
    }

    fn read_bare(&mut self) -> Result<f64, String> {
        self.pieces(|socket, at, piece| {
            socket.write_all(&asked(READ, at))?;
            socket.read_exact(piece)
        })
    }

    fn write_bare(&mut self) -> Result<f64, String> {
        self.pieces(|socket, at, piece| {
            send(socket, &asked(WRITE, at), piece)?;
            socket.read_exact(&mut [0; ANSWERED])
        })
    }

    /// Moves the bare state: the speed of the median piece.
    fn pieces(
        &mut self,
        mut turn: impl FnMut(&mut UnixStream, usize, &mut [u8]) -> io::Result<()>,
    ) -> Result<f64, String> {
        let socket = self.bare.socket()?;
        let mut took = Vec::with_capacity(TIMES * PIECES);
        for _ in 0..TIMES {
            for at in (0..STATE).step_by(CHUNK) {
                let started = Instant::now();
                turn(socket, at, &mut self.piece).map_err(text)?;
                took.push(started.elapsed());
            }
        }
        speed(&mut took)
    }
}

const READ: u64 = 1;
const WRITE: u64 = 2;

/// A bare request.
fn asked(kind: u64, at: usize) -> [u8; ASKED] {
    let mut request = [0; ASKED];
    request[..8].copy_from_slice(&kind.to_le_bytes());
    request[8..16].copy_from_slice(&(at as u64).to_le_bytes());
    request
}

/// One message in two parts, as few system calls as the socket needs.
fn send(socket: &mut UnixStream, head: &[u8], data: &[u8]) -> io::Result<()> {
    let mut parts = &mut [IoSlice::new(head), IoSlice::new(data)][..];
    while !parts.is_empty() {
        let sent = socket.write_vectored(parts)?;
        IoSlice::advance_slices(&mut parts, sent);
    }
    Ok(())
}

/// The other end of the bare socket.
fn other(mut socket: UnixStream, state: &mut [u8]) -> io::Result<()> {
    let mut request = [[0; 8]; ASKED / 8];
    loop {
        socket.read_exact(request.as_flattened_mut())?;
        let [kind, at, _] = request.map(u64::from_le_bytes);
        let piece = &mut state[at as usize..][..CHUNK];
        if kind == READ {
            socket.write_all(piece)?;
        } else {
            socket.read_exact(piece)?;
            socket.write_all(&[0; ANSWERED])?;
        }
    }
}

fn speed(took: &mut [Duration]) -> Result<f64, String> {
    Ok((CHUNK >> 20) as f64 / (middle(took)? / 1e6))
}
