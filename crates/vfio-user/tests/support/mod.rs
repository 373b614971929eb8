//! A small device for tests, a server around it, and a peer that speaks raw bytes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]
#![allow(unreachable_pub, reason = "a module of several test binaries")]
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use abi::errno::Errno;
use abi::vfio_user::{Command, Header};
use control::Transport;
use device::{
    Bus, BusError, Description, Digest, Dma, Identity, Irq, Migratable, PciIds,
    PrecopyInfo, Region, Runner, Settle, StateArc, Token, Window, Work,
};
use dirty::Iova;
use states::v2::{Capabilities, State};
use sys::SharedMemory;
use sys::socket::Listener;
use vfio_migrate_vfio_user::codec::{Capabilities as Agreement, Kind, Request, Version};
use vfio_migrate_vfio_user::codec::{kind, parse_header};
use vfio_migrate_vfio_user::{
    Client, ClientOptions, DmaHandler, NoDma, Server, ServerOptions, Stop,
};

/// How long anything here may take before a test fails.
pub const SOON: Duration = Duration::from_secs(20);

/// Size of the toy's memory, region 2.
pub const MEMORY: u64 = 1 << 20;
/// Size of the part of it that can be mapped.
pub const WINDOW: u64 = 64 << 10;
/// Size of one access that the toy floods a peer with.
pub const BLOCK: usize = 1 << 20;

/// Registers of the toy, region 0.
pub mod register {
    /// Write: an address. The next command uses it.
    pub const ADDRESS: u64 = 0;
    /// Write: reads that many bytes by DMA into the memory's start.
    pub const READ: u64 = 8;
    /// Write: writes that many bytes of the memory by DMA.
    pub const WRITE: u64 = 16;
    /// Write: raises that vector of MSI-X; of another index where 1 + that is in the
    /// upper half.
    pub const RAISE: u64 = 24;
    /// Write: 1 floods the address with blocks of 1 MiB, 0 stops that.
    pub const FLOOD: u64 = 32;
    /// Read: DMA that came back well.
    pub const DONE: u64 = 40;
    /// Read: the errno of the last DMA that did not.
    pub const FAILED: u64 = 48;
    /// Write: the level of vector 0 of index 0.
    pub const LEVEL: u64 = 64;
    /// Write: how often an arc is answered with "later".
    pub const LAZY: u64 = 56;
}

/// A device that does what its registers say.
pub struct Toy {
    memory: SharedMemory,
    capabilities: Capabilities,
    address: u64,
    flood: bool,
    done: u64,
    failed: u64,
    lazy: u64,
    waiting: u64,
    /// Reads that are on their way.
    reads: Vec<Token>,
    block: Vec<u8>,
    saved: usize,
    loaded: usize,
    /// A window behind the first one, in memory of its own.
    pub second_window: Option<SharedMemory>,
    /// What interrupts it has.
    pub irqs: Vec<Irq>,
}

impl Toy {
    pub fn new(capabilities: Capabilities) -> Toy {
        Toy {
            memory: SharedMemory::create("toy", MEMORY).unwrap(),
            capabilities,
            address: 0,
            flood: false,
            done: 0,
            failed: 0,
            lazy: 0,
            waiting: 0,
            reads: Vec::new(),
            block: vec![0x5a; BLOCK],
            saved: 0,
            loaded: 0,
            second_window: None,
            irqs: vec![Irq::new(2, 40)],
        }
    }

    fn note(&mut self, dma: Result<Dma, BusError>, read: bool) {
        match dma {
            Ok(Dma::Done) => self.done += 1,
            Ok(Dma::Later(token)) if read => self.reads.push(token),
            Ok(Dma::Later(_)) => {}
            // To be tried again.
            Err(BusError::Quiescing | BusError::Busy) => {}
            Err(BusError::Failed(errno)) => self.failed = errno.0 as u64,
            Err(_) => self.failed = u64::MAX,
        }
    }

    fn later(&mut self) -> Settle {
        if self.waiting == 0 {
            return Settle::Now;
        }
        self.waiting -= 1;
        Settle::Later
    }
}

impl Migratable for Toy {
    fn describe(&self) -> Description {
        let pci = PciIds {
            vendor: 0x1234,
            device: 0x5678,
            subsystem_vendor: 0,
            subsystem: 0,
            class: 0x12_0000,
            revision: 1,
        };
        let region =
            |index, size, windows| Region { index, size, writable: true, windows };
        let window = |offset, memory| Window { offset, memory };
        let mut windows = vec![window(0, self.memory.slice(0, WINDOW).unwrap())];
        let second = self.second_window.clone();
        windows.extend(second.map(|memory| window(WINDOW, memory)));
        Description {
            identity: Identity {
                pci: Some(pci),
                model: "toy".to_owned(),
                data_version: 7,
            },
            capabilities: self.capabilities,
            regions: vec![
                region(0, 4096, Vec::new()),
                region(2, MEMORY, windows),
                region(7, 256, Vec::new()),
            ],
            irqs: self.irqs.clone(),
        }
    }

    fn read(&mut self, region: u32, at: u64, into: &mut [u8]) -> Result<(), Errno> {
        match (region, at) {
            (2, _) => self.memory.read(at, into).map_err(|_| Errno::EFAULT),
            (0, register::DONE | register::FAILED) if into.len() == 8 => {
                let value = if at == register::DONE { self.done } else { self.failed };
                into.copy_from_slice(&value.to_ne_bytes());
                Ok(())
            }
            (7, _) => {
                into.fill(0x77);
                Ok(())
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn write(
        &mut self,
        region: u32,
        at: u64,
        data: &[u8],
        bus: &mut dyn Bus,
    ) -> Result<(), Errno> {
        if region == 2 {
            return self.memory.write(at, data).map_err(|_| Errno::EFAULT);
        }
        let value = u64::from_ne_bytes(data.try_into().map_err(|_| Errno::EINVAL)?);
        let mut bytes = vec![0; (value as usize).min(MEMORY as usize)];
        match (region, at) {
            (0, register::ADDRESS) => self.address = value,
            (0, register::READ) => {
                let dma = bus.read(Iova(self.address), &mut bytes);
                if dma == Ok(Dma::Done) {
                    self.memory.write(0, &bytes).map_err(|_| Errno::EFAULT)?;
                }
                self.note(dma, true);
            }
            (0, register::WRITE) => {
                self.memory.read(0, &mut bytes).map_err(|_| Errno::EFAULT)?;
                let dma = bus.write(Iova(self.address), &bytes);
                self.note(dma, false);
            }
            (0, register::RAISE) => {
                let index = ((value >> 32) as u32).checked_sub(1).unwrap_or(2);
                bus.raise(index, value as u32).map_err(|_| Errno::ENXIO)?;
            }
            (0, register::LEVEL) => bus.set_level(0, 0, value != 0),
            (0, register::FLOOD) => self.flood = value != 0,
            (0, register::LAZY) => self.lazy = value,
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.memory.zero(0, MEMORY).unwrap();
        self.reads.clear();
        (self.address, self.flood, self.done, self.failed) = (0, false, 0, 0);
        (self.lazy, self.waiting) = (0, 0);
    }

    fn enter(&mut self, arc: StateArc, _: &mut dyn Bus) -> Result<Settle, Errno> {
        match arc.to {
            State::PreCopy | State::StopCopy if !arc.from.is_saving() => self.saved = 0,
            State::PreCopyP2p if !arc.from.is_saving() => self.saved = 0,
            State::Resuming => self.loaded = 0,
            _ => {}
        }
        self.waiting = self.lazy;
        Ok(self.later())
    }

    fn settled(&mut self, _: &mut dyn Bus) -> Result<Settle, Errno> {
        Ok(self.later())
    }

    fn save(&mut self, into: &mut [u8]) -> Result<usize, Errno> {
        let len = into.len().min(MEMORY as usize - self.saved);
        self.memory.read(self.saved as u64, &mut into[..len]).unwrap();
        self.saved += len;
        Ok(len)
    }

    fn precopy_info(&mut self) -> Result<PrecopyInfo, Errno> {
        let left = MEMORY - self.saved as u64;
        Ok(PrecopyInfo { initial_bytes: left, dirty_bytes: 0, reinit: true })
    }

    fn stop_copy_bytes(&self) -> u64 {
        MEMORY
    }

    fn load(&mut self, data: &[u8]) -> Result<(), Errno> {
        self.memory.write(self.loaded as u64, data).map_err(|_| Errno::EINVAL)?;
        self.loaded += data.len();
        Ok(())
    }

    fn loaded(&mut self) -> Result<(), Errno> {
        if self.loaded == MEMORY as usize { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn work(&mut self, bus: &mut dyn Bus, _: Instant) -> Work {
        if self.flood && bus.outstanding() == 0 {
            let dma = bus.write(Iova(self.address), &self.block);
            self.note(dma, false);
        }
        Work::Idle
    }

    fn dma_done(
        &mut self,
        token: Token,
        result: Result<&[u8], Errno>,
        _: &mut dyn Bus,
    ) -> Result<(), Errno> {
        let read = self.reads.iter().position(|read| *read == token);
        match result {
            Ok(bytes) => {
                if let Some(at) = read {
                    self.reads.swap_remove(at);
                    self.memory.write(0, bytes).unwrap();
                }
                self.done += 1;
            }
            Err(errno) => self.failed = errno.0 as u64,
        }
        Ok(())
    }

    fn digest(&self) -> Option<Digest> {
        let mut bytes = vec![0; MEMORY as usize];
        self.memory.read(0, &mut bytes).unwrap();
        let chunks = bytes.chunks(4096);
        Some(Digest {
            chunk_bytes: 4096,
            chunks: chunks
                .map(|chunk| chunk.iter().map(|b| u32::from(*b)).sum())
                .collect(),
            counters: vec![("done".to_owned(), self.done)],
        })
    }
}

/// A server with a toy in a thread of its own.
pub struct Served {
    folder: tempfile::TempDir,
    stop: Stop,
    thread: Option<JoinHandle<Server>>,
}

impl Served {
    pub fn start(options: ServerOptions) -> Served {
        Served::with(Toy::new(Capabilities::ALL), options)
    }

    pub fn with(toy: impl Migratable + 'static, options: ServerOptions) -> Served {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&folder.path().join("toy")).unwrap();
        let runner = Runner::new(Box::new(toy)).unwrap();
        let stop = Stop::new().unwrap();
        let mut server = Server::new(runner, options).unwrap();
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            server.serve(listener, &told).unwrap();
            server
        });
        Served { folder, stop, thread: Some(thread) }
    }

    pub fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("toy")
    }

    pub fn client(&self) -> Client {
        self.client_with(Arc::new(NoDma))
    }

    pub fn client_with(&self, handler: Arc<dyn DmaHandler>) -> Client {
        Client::connect(&self.path(), ClientOptions::new("toy", handler)).unwrap()
    }

    pub fn raw(&self) -> Raw {
        Raw(UnixStream::connect(self.path()).unwrap())
    }

    /// Stops the server and hands it over.
    pub fn stop(mut self) -> Server {
        self.stop.stop();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One end of a connection, as bytes.
pub struct Raw(pub UnixStream);

impl Raw {
    /// Two ends, of which the second is for somebody who speaks properly.
    pub fn pair() -> (Raw, OwnedFd) {
        let (near, far) = UnixStream::pair().unwrap();
        (Raw(near), far.into())
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub fn send_with(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let parts = [IoSlice::new(bytes)];
        let sent =
            sys::socket::send_with_fds(self.0.as_fd(), &parts, fds, false).unwrap();
        assert_eq!(sent, bytes.len());
    }

    pub fn ask(&mut self, id: u16, request: &Request<'_>) {
        self.send(&request.message(id).bytes());
    }

    pub fn receive(&mut self) -> (Header, Vec<u8>) {
        self.0.set_read_timeout(Some(SOON)).unwrap();
        let mut header = [0; 16];
        self.0.read_exact(&mut header).unwrap();
        let header = parse_header(&header);
        let mut body = vec![0; header.msg_size as usize - 16];
        self.0.read_exact(&mut body).unwrap();
        (header, body)
    }

    /// The errno of the next message, which answers `id`; 0 for none.
    pub fn errno(&mut self, id: u16) -> Errno {
        let (header, body) = self.receive();
        assert_eq!(header.msg_id, id);
        match kind(&header) {
            Kind::Reply { error } => {
                assert!(error.is_none() || body.is_empty());
                error.unwrap_or(Errno(0))
            }
            other => panic!("{other:?}"),
        }
    }

    /// Whether the other end has closed the connection, soon.
    pub fn ended(&mut self) -> bool {
        self.0.set_read_timeout(Some(SOON)).unwrap();
        let mut byte = [0];
        match self.0.read(&mut byte) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    /// Agrees on the version, as a client; with our additions or without.
    pub fn agree(&mut self, additions: bool) {
        let text = agreement(additions);
        let version = Version { major: 0, minor: 0, text: &text };
        self.ask(0, &Request::Version(version));
        assert_eq!(self.errno(0), Errno(0));
    }

    /// Still in step: a question gets its answer.
    pub fn check_in_step(&mut self) {
        self.ask(0xabcd, &Request::Reset);
        assert_eq!(self.errno(0xabcd), Errno(0));
    }
}

pub fn agreement(additions: bool) -> Vec<u8> {
    Agreement {
        max_data_xfer_size: 1 << 20,
        max_msg_fds: 16,
        vfio_migrate: additions.then_some(1),
        ..Agreement::default()
    }
    .text()
}

/// A header and a body, whatever they are.
pub fn message(id: u16, command: Command, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(id.to_ne_bytes());
    bytes.extend(command.0.to_ne_bytes());
    bytes.extend((16 + body.len() as u32).to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend(body);
    bytes
}

pub fn set(client: &Client, register: u64, value: u64) {
    client.region_write(0, register, &value.to_ne_bytes()).unwrap();
}

pub fn get(client: &Client, register: u64) -> u64 {
    let mut value = [0; 8];
    client.region_read(0, register, &mut value).unwrap();
    u64::from_ne_bytes(value)
}

/// Waits for something that another thread brings about.
pub fn until(mut done: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < end, "it did not come about");
        std::thread::yield_now();
    }
}
