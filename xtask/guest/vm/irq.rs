//! Interrupts of a port: each byte that provokes one is seen handled, across a migration.
//!
//! ```text
//!   guest    writes bytes, takes interrupts, reads bytes, acknowledges     (`guest.rs`)
//!     |        goes on where the migration left it, in the middle of a handler too
//!   wiring   eventfds, the line or the messages: what a VMM makes of them (`wiring.rs`)
//!     |        drained after the device stopped, delivered before the other one runs
//!   port     mtty in the kernel, or the uart of our server
//!
//!   guest on A  --- engine: pre-copy, stop, drain, load, deliver ---  guest on B
//! ```
//!
//! A guest of a VMM that uses `control::Function` finds only the line, as mtty says in
//! config space; MSI is wired by hand.
//!
//! What mtty does, read in its source and counted here, byte by byte:
//!
//! - With received data on (IER bit 0) a byte that goes into the empty FIFO provokes one
//!   interrupt: the trigger level is always 1, whatever is asked for, and 0 until the
//!   FIFO control register was written. The bytes after it provoke none.
//! - With line status on (bit 2) each byte that finds 16 in the FIFO is lost and provokes
//!   one.
//! - `INTx` is an edge that masks itself. What happens while it is masked is forgotten: an
//!   unmask raises nothing again, so a driver has to empty the FIFO before it
//!   acknowledges. Whether it is masked is not saved.
//! - Before `VFIO_DEVICE_GET_INFO` every interrupt is refused.
//! - There is an MSI vector, but no MSI capability in config space.

mod guest;
mod moving;
mod wiring;

use std::path::Path;
use std::sync::Arc;

use control::Transport;
use models::uart::registers as reg;
use vfio_user::{Client, ClientOptions, NoDma};

use self::guest::{Guest, Leave};
use self::moving::{Refusal, Vm};
use self::wiring::{Kind, Wiring};
use super::command::Running;
use super::port::Port;
use super::uart::{self, Line};
use super::{Checked, Stop};
use crate::{expect, said};

/// Who routes an interrupt.
#[derive(Debug, Clone, Copy)]
enum How {
    /// This test.
    Hand(Kind),
    /// The library, a line.
    Function,
}

impl How {
    fn kind(self) -> Kind {
        match self {
            How::Hand(kind) => kind,
            How::Function => Kind::Intx,
        }
    }
}

/// A device and how its interrupt is wired.
#[derive(Clone)]
pub(super) struct Place {
    device: Arc<dyn Transport>,
    wiring: Wiring,
    /// Whether it is mtty, of which every signal can be told beforehand.
    kernel: bool,
}

impl Place {
    fn new(device: Arc<dyn Transport>, how: How, kernel: bool) -> Result<Place, String> {
        // Until it was asked, mtty knows of no interrupt either (EINVAL).
        device.device_info().map_err(said("what it is"))?;
        let wiring = match how {
            How::Hand(kind) => Wiring::new(Arc::clone(&device), kind)?,
            How::Function => Wiring::of_function(Arc::clone(&device))?,
        };
        Ok(Place { device, wiring, kernel })
    }

    fn of_port(port: &Port, how: How) -> Result<Place, String> {
        Place::new(Arc::new(uart::open(port)?), how, true)
    }

    fn line(&self) -> Line<'_> {
        Line { device: &*self.device, index: 0 }
    }
}

/// Which bytes provoke an interrupt, one by one, and what masks do to that.
fn bytes(kind: Kind) -> Checked {
    let port = Port::new(1)?;
    let place = Place::of_port(&port, How::Hand(kind))?;
    place.wiring.connect()?;
    let mut guest = Guest::new(kind);
    guest.program(&place)?;
    // From the second round on the trigger level is another one, in name.
    for level in 0..4 {
        place.line().write(reg::FCR, reg::FCR_ENABLE | level << 6)?;
        for burst in 1..=15 {
            for _ in 0..burst {
                guest.send(&place)?;
            }
            guest.settle(&place)?;
        }
    }
    let told = guest.told();
    let lost = lost_bytes(&place)?;
    let again = match kind {
        Kind::Msi => String::new(),
        Kind::Intx => masked(&place)?,
    };
    Ok(format!("{told}; {lost} lost bytes, one each{again}"))
}

/// Bytes that find no room are lost, and each says so.
fn lost_bytes(place: &Place) -> Result<u64, String> {
    const LOST: u64 = 3;
    let line = place.line();
    line.write(reg::IER, reg::IER_LINE)?;
    for _ in 0..16 {
        line.write(reg::DATA, 0x55)?;
    }
    expect("signals of bytes that fit", place.wiring.look()?, 0)?;
    for _ in 0..LOST {
        line.write(reg::DATA, 0x66)?;
        expect("signals of a lost byte", place.wiring.look()?, 1)?;
        expect("overrun", line.read(reg::LSR)? & reg::LSR_OVERRUN, reg::LSR_OVERRUN)?;
        expect("interrupts taken", u64::from(place.wiring.take()?), 1)?;
        place.wiring.acknowledge()?;
    }
    line.write(reg::IER, 0)?;
    line.write(reg::FCR, reg::FCR_ENABLE | reg::FCR_CLEAR_RECEIVER)?;
    Ok(LOST)
}

/// A masked line is silent, and what came meanwhile is not told afterwards either.
fn masked(place: &Place) -> Result<String, String> {
    let line = place.line();
    line.write(reg::IER, reg::IER_DATA)?;
    place.wiring.mask(true)?;
    line.write(reg::DATA, 1)?;
    expect("signals while masked", place.wiring.look()?, 0)?;
    place.wiring.mask(false)?;
    let after = place.wiring.look()?;
    // It waits in the FIFO all the time, so the next is no news.
    line.write(reg::DATA, 2)?;
    expect("signals of a second byte", place.wiring.look()?, 0)?;
    Ok(match after {
        0 => "; a masked one is forgotten".to_owned(),
        _ => "; a masked one is raised at the unmask".to_owned(),
    })
}

pub(super) fn check_intx_bytes() -> Checked {
    bytes(Kind::Intx)
}

pub(super) fn check_msi_bytes() -> Checked {
    bytes(Kind::Msi)
}

/// How often a guest moves in one check.
const MOVES: usize = 8;

/// To and fro between two ports, with a guest that never stops but for the move.
fn moves(how: How) -> Checked {
    let ports = [Port::new(1)?, Port::new(1)?];
    let places = [Place::of_port(&ports[0], how)?, Place::of_port(&ports[1], how)?];
    let vm = Vm::start(how.kind(), &places[0])?;
    for hop in 0..MOVES {
        let (from, to) = (&places[hop % 2], &places[(hop + 1) % 2]);
        vm.work()?;
        vm.migrate(from, to, Leave::of(hop), Refusal::No)?;
        vm.work()?;
    }
    Ok(format!("{MOVES} moves: {}", vm.end()?))
}

pub(super) fn check_intx_moves() -> Checked {
    moves(How::Hand(Kind::Intx))
}

pub(super) fn check_msi_moves() -> Checked {
    moves(How::Hand(Kind::Msi))
}

pub(super) fn check_function_moves() -> Checked {
    moves(How::Function)
}

/// A destination that gives up after everything was drained: the source goes on, with
/// what was pending.
fn returns(how: How) -> Checked {
    let ports = [Port::new(1)?, Port::new(1)?];
    let places = [Place::of_port(&ports[0], how)?, Place::of_port(&ports[1], how)?];
    let vm = Vm::start(how.kind(), &places[0])?;
    let mut reasons = Vec::new();
    for hop in 0..8 {
        let refusal =
            if (hop + hop / 4) % 2 == 0 { Refusal::Bind } else { Refusal::Deliver };
        vm.work()?;
        let ended = vm.migrate(&places[0], &places[1], Leave::of(hop), refusal);
        match ended {
            Ok(()) => return Err(Stop::Fail("it migrated all the same".to_owned())),
            Err(reason) if reason.contains(refusal.word()) => reasons.push(reason),
            Err(reason) => return Err(Stop::Fail(reason)),
        }
        vm.work()?;
    }
    // And once in earnest, after all of these.
    vm.migrate(&places[0], &places[1], Leave::Pending, Refusal::No)?;
    vm.work()?;
    Ok(format!("{} refused after the stop, then one move: {}", reasons.len(), vm.end()?))
}

pub(super) fn check_intx_returns() -> Checked {
    returns(How::Hand(Kind::Intx))
}

pub(super) fn check_msi_returns() -> Checked {
    returns(How::Hand(Kind::Msi))
}

pub(super) fn check_function_returns() -> Checked {
    returns(How::Function)
}

/// From the kernel into our server, and back into the kernel.
fn user_space(how: How) -> Checked {
    let socket = format!("/tmp/{}.sock", how.kind().word());
    let words = ["serve", "--model", "uart", "--ports", "1", "--socket", &socket];
    let mut server = Running::start(&words)?;
    server.ready()?;
    let options = ClientOptions::new("uart", Arc::new(NoDma));
    let client = Client::connect(Path::new(&socket), options)
        .map_err(said("connect to the server"))?;
    let ports = [Port::new(1)?, Port::new(1)?];
    let places = [
        Place::of_port(&ports[0], how)?,
        Place::new(Arc::new(client), how, false)?,
        Place::of_port(&ports[1], how)?,
    ];
    let vm = Vm::start(how.kind(), &places[0])?;
    for hop in 0..MOVES {
        let (from, to) = match hop % 4 {
            0 => (&places[0], &places[1]),
            1 => (&places[1], &places[2]),
            2 => (&places[2], &places[1]),
            _ => (&places[1], &places[0]),
        };
        vm.work()?;
        // Another kind of pending in both directions.
        vm.migrate(from, to, Leave::of(hop / 2 + hop), Refusal::No)?;
        vm.work()?;
    }
    let told = vm.end()?;
    drop(places);
    server.terminate()?;
    server.end()?;
    Ok(format!("{MOVES} moves: {told}"))
}

pub(super) fn check_intx_user_space() -> Checked {
    user_space(How::Hand(Kind::Intx))
}

pub(super) fn check_msi_user_space() -> Checked {
    user_space(How::Hand(Kind::Msi))
}

pub(super) fn check_function_user_space() -> Checked {
    user_space(How::Function)
}
