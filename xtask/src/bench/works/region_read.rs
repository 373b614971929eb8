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
//! Both ends are threads of one CPU. Each run gives the median of its accesses.

use std::io::{Read, Write};
use std::sync::Arc;

use control::Transport;
use models::accel::registers::{ID, ID_VALUE};
use models::accel::{Accel, BAR0, Parameters};
use vfio_user::NoDma;

use super::one_cpu::{self, Bare, Served, median};
use super::text;
use crate::bench::row::{Reach, Row, Runs, Samples};

/// Accesses in one run.
const ACCESSES: usize = 20_000;

/// Bytes of the bare message, as of a region read's header and fields.
const BARE: usize = 32;

/// Measures the row.
pub(super) fn measure(runs: Runs) -> Result<Row, String> {
    let samples = one_cpu::measure(move || samples(runs))?;
    Row::new(
        "region read of 4 bytes over vfio-user, both ends on one CPU",
        "µs",
        Reach::AtMost { factor: 1.35, plus: 0.0 },
        &samples,
    )
}

fn samples(runs: Runs) -> Result<Samples, String> {
    let accel = Accel::new(Parameters::default()).map_err(text)?;
    let mut rig = Rig {
        served: Served::new(Box::new(accel), Arc::new(NoDma))?,
        bare: Bare::new(|mut socket| {
            let mut message = [0; BARE];
            loop {
                socket.read_exact(&mut message)?;
                socket.write_all(&message)?;
            }
        })?,
    };
    runs.interleave(
        &mut rig,
        |rig| median(ACCESSES, || rig.read()),
        |rig| median(ACCESSES, || rig.ping()),
    )
}

/// Both ways, each with its other end.
struct Rig {
    served: Served,
    bare: Bare,
}

impl Rig {
    fn read(&self) -> Result<(), String> {
        let mut bytes = [0; 4];
        self.served.client()?.region_read(BAR0, ID, &mut bytes).map_err(text)?;
        if bytes == ID_VALUE.to_le_bytes()[..4] {
            return Ok(());
        }
        Err(format!("the register reads {bytes:x?}"))
    }

    fn ping(&mut self) -> Result<(), String> {
        let bare = self.bare.socket()?;
        let mut message = [0x5a; BARE];
        bare.write_all(&message).map_err(text)?;
        bare.read_exact(&mut message).map_err(text)
    }
}
