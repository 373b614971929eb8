//! Register writes that nobody waits for: what a doorbell costs.
//!
//! ```text
//!   figure   Client::region_write_posted --[REGION_WRITE, No_reply, 36 bytes]--> x 1000
//!            Client::region_read         --[32 bytes]---------------------------> fence
//!                                        <--[32 + 4 bytes]----------------------
//!   limit    write(36) x 1000 -----> read as much as there is, up to 16 KiB at once
//!            write(32)        ----->
//!            read             <----- write(36)
//! ```
//!
//! Both ends are threads of one CPU. Each run gives writes a second in the median burst,
//! fence included. The fence reads how many writes the device has seen.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};

use control::Transport;
use vfio_user::NoDma;

use super::one_cpu::{self, Bare, Served, median};
use super::plain::{COUNT, Plain, REGISTERS};
use super::text;
use crate::bench::row::{Reach, Row, Runs, Samples};

/// Writes in a burst.
const BURST: u32 = 1000;

/// Bursts in one run.
const BURSTS: usize = 100;

/// Bytes of a posted write, of a read, and of its answer: a header, fields, a register.
const POSTED: usize = 36;
const ASKED: usize = 32;
const ANSWERED: usize = 36;

/// What the bare end takes from the socket at once.
const AT_ONCE: usize = 16 << 10;

/// Measures the row.
pub(super) fn measure(runs: Runs) -> Result<Row, String> {
    let samples = one_cpu::measure(move || samples(runs))?;
    Row::new(
        "region write of 4 bytes, posted, 1000 in flight, both ends on one CPU",
        "writes/ms",
        Reach::AtLeast { factor: 0.7 },
        &samples,
    )
}

fn samples(runs: Runs) -> Result<Samples, String> {
    let (done, _) = mpsc::channel();
    let plain = Plain::new(Vec::new(), done);
    let mut rig = Rig {
        served: Served::new(Box::new(plain), Arc::new(NoDma))?,
        seen: 0,
        bare: Bare::new(other)?,
    };
    runs.interleave(
        &mut rig,
        |rig| median(BURSTS, || rig.posted()).map(speed),
        |rig| median(BURSTS, || rig.bare()).map(speed),
    )
}

fn speed(micros: f64) -> f64 {
    f64::from(BURST) / micros * 1e3
}

/// Both ways, each with its other end.
struct Rig {
    served: Served,
    /// Writes that the device has been sent.
    seen: u32,
    bare: Bare,
}

impl Rig {
    fn posted(&mut self) -> Result<(), String> {
        let client = self.served.client()?;
        for n in 0..BURST {
            let value = n.to_le_bytes();
            client.region_write_posted(REGISTERS, COUNT, &value).map_err(text)?;
        }
        let mut seen = [0; 4];
        client.region_read(REGISTERS, COUNT, &mut seen).map_err(text)?;
        self.seen = self.seen.wrapping_add(BURST);
        if u32::from_le_bytes(seen) == self.seen {
            return Ok(());
        }
        Err(format!("{seen:?} were seen of {} writes", self.seen))
    }

    fn bare(&mut self) -> Result<(), String> {
        let socket = self.bare.socket()?;
        for _ in 0..BURST {
            socket.write_all(&[0x5a; POSTED]).map_err(text)?;
        }
        socket.write_all(&[0x5a; ASKED]).map_err(text)?;
        socket.read_exact(&mut [0; ANSWERED]).map_err(text)
    }
}

/// The other end of the bare socket: answers after each burst.
fn other(mut socket: UnixStream) -> io::Result<()> {
    let mut buffer = vec![0; AT_ONCE];
    loop {
        let mut left = BURST as usize * POSTED + ASKED;
        while left > 0 {
            let len = left.min(AT_ONCE);
            match socket.read(&mut buffer[..len])? {
                0 => return Ok(()),
                len => left -= len,
            }
        }
        socket.write_all(&buffer[..ANSWERED])?;
    }
}
