//! The side that serves a device which logs what it writes, and beside it bare bytes over
//! a socket of the same kind.
//!
//! ```text
//!   arguments    VFIO_USER_SOCKET BARE_SOCKET
//!
//!   device       region 0, written with a seed: one DMA write to each page that is
//!                drawn by it, of a guest of 1 TiB, which takes them and keeps nothing
//!   bare         how many bytes u64, and as many as a question has -> as many bytes
//! ```
//!
//! The device does nothing but write, so that what is measured is its log.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use abi::errno::Errno;
use device::{
    Bus, Description, Dma, DmaTarget, DmaWindow, Identity, Migratable, Region, Runner,
    Settle, StateArc, Work,
};
use dirty::{Iova, IovaRange};
use states::v2::Capabilities;
use sys::socket::Listener;
use vfio_user::{Server, ServerOptions, Stop};

use super::dirty_bitmap::{MEMORY, pages};
use super::side;
use super::text;

/// The region that takes seeds.
pub(super) const SEEDS: u32 = 0;

/// How many pages are drawn by a seed: one in a thousand.
pub(super) const DRAWN: u64 = (MEMORY >> 12) / 1000;

/// Bytes of a question: a header, that of a feature, and what a report is about.
pub(super) const ASKED: usize = 48;

/// Room in a bare socket, in bytes: that for a message of vfio-user by default.
pub(super) const ROOM: usize = 1 << 20;

/// Is it, until nobody has anything more to ask.
pub(super) fn run(arguments: &[String]) -> Result<(), String> {
    let [socket, bare] = arguments else {
        return Err("not two sockets".into());
    };
    let mut runner = Runner::new(Box::new(Writer)).map_err(text)?;
    let guest = IovaRange::new(0, MEMORY).map_err(text)?;
    // No client could lend as much memory: its page tables alone would be a gigabyte.
    runner.map(guest, true, DmaTarget::Window(Box::new(Nothing))).map_err(text)?;
    let mut server = Server::new(runner, ServerOptions::default()).map_err(text)?;
    let listener = Listener::bind(Path::new(socket)).map_err(text)?;
    let stop = Stop::new().map_err(text)?;
    let stopped = stop.clone();
    let device = std::thread::spawn(move || server.serve(listener, &stopped));
    let listener = Listener::bind(Path::new(bare)).map_err(text)?;
    std::thread::spawn(move || {
        while let Ok(client) = listener.accept() {
            // A client that goes away has said why, or has all it wants.
            let _ = serve(client.into());
        }
    });
    side::answer("", |command| Err(format!("what is `{command}`?")))?;
    stop.stop();
    match device.join() {
        Ok(served) => served.map_err(text),
        Err(_) => Err("the server panicked".into()),
    }
}

/// Answers with bytes from the same buffer, as the socket can have nothing faster.
fn serve(mut client: UnixStream) -> Result<(), String> {
    sys::socket::set_send_buffer(&client, ROOM).map_err(text)?;
    let mut bytes = Vec::new();
    let mut question = [0; ASKED];
    loop {
        client.read_exact(&mut question).map_err(text)?;
        let (wanted, _) = question.split_at(8);
        let wanted = u64::from_le_bytes(wanted.try_into().map_err(text)?) as usize;
        if bytes.len() < wanted {
            bytes.resize(wanted, 0x5a);
        }
        client.write_all(&bytes[..wanted]).map_err(text)?;
    }
}

/// Guest memory that takes everything and keeps nothing.
struct Nothing;

impl DmaWindow for Nothing {
    fn read(&self, _offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        into.fill(0);
        Ok(())
    }

    fn write(&self, _offset: u64, _from: &[u8]) -> Result<(), Errno> {
        Ok(())
    }
}

/// The device.
struct Writer;

impl Migratable for Writer {
    fn describe(&self) -> Description {
        let identity =
            Identity { pci: None, model: "writer".to_owned(), data_version: 1 };
        let seeds = Region { index: SEEDS, size: 8, writable: true, windows: vec![] };
        let capabilities = Capabilities::STOP_COPY;
        Description { identity, capabilities, regions: vec![seeds], irqs: vec![] }
    }

    fn read(&mut self, _region: u32, _at: u64, into: &mut [u8]) -> Result<(), Errno> {
        into.fill(0);
        Ok(())
    }

    fn write(
        &mut self,
        _region: u32,
        _at: u64,
        data: &[u8],
        bus: &mut dyn Bus,
    ) -> Result<(), Errno> {
        let seed = u64::from_le_bytes(data.try_into().map_err(|_| Errno::EINVAL)?);
        for page in pages(seed, DRAWN) {
            match bus.write(Iova(page << 12), &[1]) {
                Ok(Dma::Done) => {}
                Ok(Dma::Later(_)) | Err(_) => return Err(Errno::EIO),
            }
        }
        Ok(())
    }

    fn reset(&mut self) {}

    fn enter(&mut self, _arc: StateArc, _bus: &mut dyn Bus) -> Result<Settle, Errno> {
        Ok(Settle::Now)
    }

    fn save(&mut self, _into: &mut [u8]) -> Result<usize, Errno> {
        Ok(0)
    }

    fn stop_copy_bytes(&self) -> u64 {
        0
    }

    fn load(&mut self, _data: &[u8]) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }

    fn loaded(&mut self) -> Result<(), Errno> {
        Ok(())
    }

    fn work(&mut self, _bus: &mut dyn Bus, _now: Instant) -> Work {
        Work::Idle
    }
}
