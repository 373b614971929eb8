//! A device saved through the migration region of an earlier generation, beside the same
//! device saved as v2: what the older interface costs.
//!
//! ```text
//!   figure   open_any --[registers, data in a section]---> Server, Front, runner, accel
//!   limit    open_any --[features, MIG_DATA_READ]--------> Server, runner, accel
//! ```
//!
//! Both go from `RUNNING` to `STOP_COPY`, are read to the end in pieces of 1 MiB, and back.
//! Nothing is asked of the ratio: it is there to be known.

use std::sync::Arc;
use std::time::Instant;

use control::{AnyDevice, Transport, open_any};
use device::front::{DataSection, FrontOptions, Generation};
use models::accel::{Accel, BAR2, Parameters};
use port::{Device, Opened, Read};
use states::v2::State;
use vfio_user::{NoDma, ServerOptions};

use super::guest::{self, CHUNK};
use super::one_cpu::{self, Served};
use super::text;
use crate::bench::row::{Reach, Row, Runs};

/// Bytes of the device's memory, all of them used.
const MEMORY: usize = 32 << 20;

/// Saved through a v1 region by reads.
pub(super) fn v1_trapped(runs: Runs) -> Result<Row, String> {
    let work = "save an accel through a v1 region, trapped, beside v2";
    measure(work, runs, Generation::V1, DataSection::Trapped)
}

/// Saved through a v1 region by a mapping.
pub(super) fn v1_mapped(runs: Runs) -> Result<Row, String> {
    let work = "save an accel through a v1 region, mapped, beside v2";
    measure(work, runs, Generation::V1, DataSection::Mapped)
}

/// Saved through an rfc2018 region by reads.
pub(super) fn rfc2018_trapped(runs: Runs) -> Result<Row, String> {
    let work = "save an accel through an rfc2018 region, trapped, beside v2";
    measure(work, runs, Generation::Rfc2018, DataSection::Trapped)
}

/// Saved through an rfc2018 region by a mapping.
pub(super) fn rfc2018_mapped(runs: Runs) -> Result<Row, String> {
    let work = "save an accel through an rfc2018 region, mapped, beside v2";
    measure(work, runs, Generation::Rfc2018, DataSection::Mapped)
}

fn measure(
    work: &'static str,
    runs: Runs,
    generation: Generation,
    data_section: DataSection,
) -> Result<Row, String> {
    let samples = one_cpu::measure(move || {
        let front = FrontOptions { data_section, ..FrontOptions::new(generation) };
        let mut rig = Rig { old: Side::new(Some(front))?, v2: Side::new(None)? };
        runs.interleave(&mut rig, |rig| rig.old.save(), |rig| rig.v2.save())
    })?;
    Row::new(work, "MiB/s", Reach::Any, &samples)
}

/// The same device twice.
struct Rig {
    old: Side,
    v2: Side,
}

/// A device that is served, and driven.
struct Side {
    device: AnyDevice,
    piece: Vec<u8>,
    /// It goes last: it ends once its client is gone.
    _served: Served,
}

impl Side {
    fn new(front: Option<FrontOptions>) -> Result<Side, String> {
        let memory_bytes = MEMORY as u64;
        let accel = Accel::new(Parameters { memory_bytes, ..Parameters::default() });
        let options = ServerOptions { front, ..ServerOptions::default() };
        let accel = Box::new(accel.map_err(text)?);
        let served = Served::with(accel, Arc::new(NoDma), options)?;
        let client = served.client()?.clone();
        let mut piece = vec![0; CHUNK];
        for (at, seed) in (0..MEMORY as u64).step_by(CHUNK).zip(1..) {
            guest::noise(seed, &mut piece);
            client.region_write(BAR2, at, &piece).map_err(text)?;
        }
        let device = open_any(Arc::new(client)).map_err(text)?;
        Ok(Side { device, piece, _served: served })
    }

    /// Saves it once: the speed of all of it.
    fn save(&mut self) -> Result<f64, String> {
        let started = Instant::now();
        let Opened::Save(mut session) =
            self.device.set_state(State::StopCopy).map_err(text)?
        else {
            return Err("there is no save session".into());
        };
        let mut all = 0;
        while let Read::Data { bytes, .. } =
            session.read(&mut self.piece).map_err(text)?
        {
            all += bytes;
        }
        let took = started.elapsed();
        drop(session);
        self.device.set_state(State::Running).map_err(text)?;
        if all < MEMORY {
            return Err(format!("{all} bytes were saved of a device of {MEMORY}"));
        }
        Ok(all as f64 / f64::from(1 << 20) / took.as_secs_f64())
    }
}
