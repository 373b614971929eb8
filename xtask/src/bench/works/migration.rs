//! A whole migration of an idle guest: how much of a plain TCP stream's speed is left.
//!
//! ```text
//!   figure   memory -> Outgoing --[TCP]--> Incoming -> memory
//!   limit    memory -> write_all --[TCP]--> read_exact -> memory
//! ```
//!
//! Between two processes, from the connecting until the other side has said that the
//! guest runs (or that all bytes arrived). The guest's memory has no page that is zero.
//! After each run the checksums of both sides are compared.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;

use super::destination::{ARRIVED, PIECE};
use super::guest::{self, Ram};
use super::outgoing;
use super::side::Side;
use super::text;
use crate::bench::row::{Reach, Row, Runs};

/// Bytes of guest memory.
const MEMORY: u64 = 2 << 30;

/// Measures the row.
pub(super) fn measure(runs: Runs) -> Result<Row, String> {
    let mut rig = Rig::new()?;
    // What is done for the first time is slower: buffers grow, code is read in.
    rig.migrate()?;
    rig.copy()?;
    let samples = runs.interleave(&mut rig, Rig::migrate, Rig::copy)?;
    Row::new(
        "whole migration, 2 GiB of non-zero memory, idle guest",
        "MiB/s",
        Reach::AtLeast { factor: 0.7 },
        &samples,
    )
}

struct Rig {
    ram: Arc<Ram>,
    sum: String,
    side: Side,
    to: String,
    port: u16,
}

impl Rig {
    fn new() -> Result<Rig, String> {
        let side = Side::start("destination", &[MEMORY.to_string()])?;
        let (to, port) = side.ready.split_once(' ').ok_or("no place to migrate to")?;
        let (to, port) = (to.to_owned(), port.parse().map_err(text)?);
        let ram = Ram::new(MEMORY)?;
        guest::fill(ram.shared(), 2)?;
        let sum = format!("{:08x}", guest::checksum(ram.shared())?);
        Ok(Rig { ram, sum, side, to, port })
    }

    fn migrate(&mut self) -> Result<f64, String> {
        self.side.ask("scrub")?;
        self.side.tell("receive")?;
        let started = Instant::now();
        let machine = guest::machine(&self.ram, &[], false)?;
        outgoing::run(machine, &self.to, 1)?;
        let took = started.elapsed();
        self.arrived()?;
        Ok(speed(took.as_secs_f64()))
    }

    fn copy(&mut self) -> Result<f64, String> {
        self.side.ask("scrub")?;
        self.side.tell("take-memory")?;
        let started = Instant::now();
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).map_err(text)?;
        stream.set_nodelay(true).map_err(text)?;
        let mut piece = vec![0; PIECE];
        for at in (0..MEMORY).step_by(PIECE) {
            self.ram.shared().read(at, &mut piece).map_err(text)?;
            stream.write_all(&piece).map_err(text)?;
        }
        let mut answer = [0];
        stream.read_exact(&mut answer).map_err(text)?;
        let took = started.elapsed();
        if answer != [ARRIVED] {
            return Err(format!("the other side answered {answer:?}"));
        }
        self.arrived()?;
        Ok(speed(took.as_secs_f64()))
    }

    fn arrived(&mut self) -> Result<(), String> {
        let there = self.side.hear()?;
        if there == self.sum {
            return Ok(());
        }
        Err(format!("memory is {there} over there, and {} here", self.sum))
    }
}

fn speed(seconds: f64) -> f64 {
    (MEMORY >> 20) as f64 / seconds
}
