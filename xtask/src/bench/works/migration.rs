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

use std::sync::Arc;
use std::time::Instant;

use super::destination::PIECE;
use super::guest::{self, Ram};
use super::outgoing::There;
use super::text;
use crate::bench::row::{Reach, Row, Runs};

/// Bytes of guest memory.
const MEMORY: u64 = 2 << 30;

/// Measures the row.
pub(super) fn measure(runs: Runs) -> Result<Row, String> {
    let samples = runs.interleave(&mut Rig::new()?, Rig::migrate, Rig::copy)?;
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
    there: There,
}

impl Rig {
    fn new() -> Result<Rig, String> {
        let there = There::start(MEMORY, [])?;
        let ram = Ram::new(MEMORY)?;
        guest::fill(ram.shared(), 2)?;
        let sum = format!("{:08x}", guest::checksum(ram.shared())?);
        Ok(Rig { ram, sum, there })
    }

    fn migrate(&mut self) -> Result<f64, String> {
        self.there.side.ask("scrub")?;
        self.there.side.tell("receive")?;
        let started = Instant::now();
        let machine = guest::machine(&self.ram, &[], false)?;
        self.there.migrate(machine, 1)?;
        let took = started.elapsed();
        self.arrived()?;
        Ok(speed(took.as_secs_f64()))
    }

    fn copy(&mut self) -> Result<f64, String> {
        self.there.side.ask("scrub")?;
        self.there.side.tell("take-memory")?;
        let started = Instant::now();
        let mut bytes = self.there.bare()?;
        let mut piece = vec![0; PIECE];
        for at in (0..MEMORY).step_by(PIECE) {
            self.ram.shared().read(at, &mut piece).map_err(text)?;
            bytes.send(&piece)?;
        }
        bytes.arrived()?;
        let took = started.elapsed();
        self.arrived()?;
        Ok(speed(took.as_secs_f64()))
    }

    fn arrived(&mut self) -> Result<(), String> {
        let there = self.there.side.hear()?;
        if there == self.sum {
            return Ok(());
        }
        Err(format!("memory is {there} over there, and {} here", self.sum))
    }
}

fn speed(seconds: f64) -> f64 {
    (MEMORY >> 20) as f64 / seconds
}
