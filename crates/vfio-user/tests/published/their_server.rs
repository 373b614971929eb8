//! Our client, their server.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use abi::errno::Errno;
use abi::feature::Feature;
use control::{DmaTarget, ProbeError, Transport, TransportError};
use dirty::IovaRange;
use sys::{EventFd, SharedMemory};
use vfio_bindings::bindings::vfio::{vfio_region_info, vfio_region_sparse_mmap_area};
use vfio_migrate_vfio_user::{Client, ClientOptions, NoDma};
use vfio_user::{
    DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion, SparseArea,
};

use super::bounded;
use super::support::SOON;

/// Bytes of region 2, and where in its file the region starts.
const SIZE: u64 = 256 << 10;
const START: u64 = 4096;
/// The part of it that can be mapped.
const AREA: (u64, u64) = (8192, 65536);
/// Vectors of MSI-X.
const VECTORS: u32 = 20;
/// Registers of region 0. Write: writes that many bytes of region 2 to the mapping.
const DMA: u64 = 0;
/// Write: fires that vector.
const RAISE: u64 = 8;

/// A device as an author who uses that crate writes it.
struct Shelf {
    memory: SharedMemory,
    /// Address, offset in the file, size, and the file.
    mapping: Option<(u64, u64, u64, File)>,
    vectors: Vec<Option<File>>,
    resets: Arc<Mutex<usize>>,
}

fn refused() -> io::Error {
    io::ErrorKind::InvalidInput.into()
}

impl ServerBackend for Shelf {
    fn region_read(&mut self, region: u32, at: u64, into: &mut [u8]) -> io::Result<()> {
        match region {
            2 => self.memory.read(START + at, into).map_err(|_| refused()),
            7 => {
                into.fill(0x77);
                Ok(())
            }
            _ => Err(refused()),
        }
    }

    fn region_write(&mut self, region: u32, at: u64, data: &[u8]) -> io::Result<()> {
        if region == 2 {
            return self.memory.write(START + at, data).map_err(|_| refused());
        }
        let value = u64::from_ne_bytes(data.try_into().map_err(|_| refused())?);
        match (region, at) {
            (0, DMA) => {
                let (_, offset, size, file) =
                    self.mapping.as_ref().ok_or_else(refused)?;
                let mut bytes = vec![0; value.min(*size) as usize];
                self.memory.read(START, &mut bytes).map_err(|_| refused())?;
                file.write_all_at(&bytes, *offset)
            }
            (0, RAISE) => {
                let vector = self.vectors.get(value as usize).and_then(Option::as_ref);
                let mut file = vector.ok_or_else(refused)?;
                io::Write::write_all(&mut file, &1_u64.to_ne_bytes())
            }
            _ => Err(refused()),
        }
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        fd: Option<File>,
    ) -> io::Result<()> {
        let file = fd.ok_or_else(refused)?;
        if self.mapping.is_some() || flags != DmaMapFlags::READ_WRITE {
            return Err(refused());
        }
        self.mapping = Some((address, offset, size, file));
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        match self.mapping.take() {
            Some((at, _, len, _)) if (at, len) == (address, size) => Ok(()),
            _ => Err(refused()),
        }
    }

    fn reset(&mut self) -> io::Result<()> {
        *self.resets.lock().unwrap() += 1;
        self.memory.zero(0, START + SIZE).map_err(|_| refused())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        fds: Vec<File>,
    ) -> io::Result<()> {
        match (index, flags, count) {
            // NONE and TRIGGER, for nothing: all of them off.
            (2, 33, 0) => self.vectors.iter_mut().for_each(|vector| *vector = None),
            (2, 36, count) if count as usize == fds.len() => {
                for (vector, file) in (start as usize..).zip(fds) {
                    *self.vectors.get_mut(vector).ok_or_else(refused)? = Some(file);
                }
            }
            _ => return Err(refused()),
        }
        Ok(())
    }
}

/// Their server in a thread of its own; it takes one client and ends with it.
struct Shelved {
    folder: tempfile::TempDir,
    resets: Arc<Mutex<usize>>,
    thread: Option<JoinHandle<Result<(), vfio_user::Error>>>,
}

impl Shelved {
    fn start() -> Shelved {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("shelf")).unwrap();
        let resets = Arc::new(Mutex::new(0));
        let shelf = Shelf {
            memory: SharedMemory::create("shelf", START + SIZE).unwrap(),
            mapping: None,
            vectors: (0..VECTORS).map(|_| None).collect(),
            resets: Arc::clone(&resets),
        };
        let thread = std::thread::spawn(move || serve(shelf, listener.into()));
        Shelved { folder, resets, thread: Some(thread) }
    }

    fn client(&self) -> Client {
        let mut options = ClientOptions::new("shelf", Arc::new(NoDma));
        options.call_deadline = Duration::from_secs(2);
        options.state_deadline = Duration::from_secs(2);
        Client::connect(&self.folder.path().join("shelf"), options).unwrap()
    }

    /// Waits for its end, once the client has left.
    fn end(mut self) -> Result<(), vfio_user::Error> {
        let thread = self.thread.take().unwrap();
        bounded(move || thread.join().unwrap())
    }
}

fn serve(mut shelf: Shelf, listener: OwnedFd) -> Result<(), vfio_user::Error> {
    let region = |index: u32| {
        let (flags, size, offset) = match index {
            0 => (3, 4096, 0),
            2 => (1 | 2 | 4, SIZE, START),
            7 => (3, 256, 0),
            _ => (0, 0, 0),
        };
        let area = vfio_region_sparse_mmap_area { offset: AREA.0, size: AREA.1 };
        ServerRegion {
            region_info: vfio_region_info {
                argsz: size_of::<vfio_region_info>() as u32,
                flags,
                index,
                cap_offset: 0,
                size,
                offset,
            },
            sparse_areas: (index == 2)
                .then_some(SparseArea { area })
                .into_iter()
                .collect(),
            mmap_fd: (index == 2).then(|| shelf.memory.fd().as_raw_fd()),
        }
    };
    let irq =
        |index| IrqInfo { index, flags: 1, count: if index == 2 { VECTORS } else { 0 } };
    let regions = (0..9).map(region).collect();
    let irqs = (0..5).map(irq).collect();
    Server::from_owned_fd(listener, true, irqs, regions).run(&mut shelf)
}

fn errno<T: std::fmt::Debug>(result: Result<T, TransportError>) -> Errno {
    result.unwrap_err().errno().expect("an errno")
}

fn set(client: &Client, register: u64, value: u64) -> Result<(), TransportError> {
    client.region_write(0, register, &value.to_ne_bytes())
}

#[test]
fn a_foreign_device_is_described_read_written_and_mapped() {
    let shelved = Shelved::start();
    let client = shelved.client();
    assert!(!client.additions());
    let info = client.device_info().unwrap();
    assert_eq!((info.flags, info.regions, info.irqs), (3, 9, 5));
    let region = client.region_info(2).unwrap();
    assert_eq!((region.size, region.flags), (SIZE, 15));
    assert_eq!(region.areas, [AREA]);
    assert_eq!(client.region_info(0).unwrap().areas, []);
    assert_eq!(client.region_info(1).unwrap().size, 0);
    assert_eq!(errno(client.region_info(9)), Errno::EINVAL);
    assert_eq!(client.irq_info(2).unwrap().count, VECTORS);
    assert_eq!(errno(client.irq_info(5)), Errno::EINVAL);

    let whole: Vec<u8> = (0..SIZE).map(|n| (n % 251) as u8).collect();
    client.region_write(2, 0, &whole).unwrap();
    let mut back = vec![0; whole.len()];
    client.region_read(2, 0, &mut back).unwrap();
    assert!(back == whole);
    let area = client.region_map(2, AREA.0 + 5).unwrap();
    assert_eq!((area.offset, area.memory.len()), AREA);
    area.memory.write(5, b"by the window").unwrap();
    let mut back = [0; 13];
    client.region_read(2, AREA.0 + 5, &mut back).unwrap();
    assert_eq!(&back, b"by the window");
    // It says no without a number, and stays in step.
    assert_eq!(errno(client.region_read(2, SIZE, &mut [0; 4])), Errno::EIO);
    client.region_read(7, 0, &mut [0; 4]).unwrap();
    drop((client, area));
    shelved.end().unwrap();
}

#[test]
fn a_foreign_device_writes_the_memory_that_was_mapped_for_it() {
    let shelved = Shelved::start();
    let client = shelved.client();
    let memory = SharedMemory::create("guest", 1 << 20).unwrap();
    let range = IovaRange::new(0x10000, 8192).unwrap();
    let target = DmaTarget::Memory { memory: &memory, offset: 12288, writable: true };
    client.dma_map(range, target).unwrap();
    client.region_write(2, 0, b"by DMA").unwrap();
    set(&client, DMA, 6).unwrap();
    let mut seen = [0; 6];
    memory.read(12288, &mut seen).unwrap();
    assert_eq!(&seen, b"by DMA");
    // Another one it refuses, and one without a descriptor.
    assert_eq!(errno(client.dma_map(range, target)), Errno::EIO);
    client.dma_unmap(range).unwrap();
    assert_eq!(errno(set(&client, DMA, 6)), Errno::EIO);
    let messages = DmaTarget::Messages { writable: true };
    assert_eq!(errno(client.dma_map(range, messages)), Errno::EIO);
    drop(client);
    shelved.end().unwrap();
}

#[test]
fn interrupts_of_a_foreign_device_arrive_though_it_takes_one_descriptor_a_message() {
    let shelved = Shelved::start();
    let client = shelved.client();
    let events: Vec<EventFd> = (0..VECTORS).map(|_| EventFd::new().unwrap()).collect();
    let all: Vec<&EventFd> = events.iter().collect();
    client.set_irqs(2, 0, &all).unwrap();
    for vector in [0, 1, 19, 19] {
        set(&client, RAISE, vector).unwrap();
    }
    let counts: Vec<u64> = events.iter().map(|event| event.take().unwrap()).collect();
    assert_eq!((counts[0], counts[1], counts[19]), (1, 1, 2));
    assert_eq!(counts.iter().sum::<u64>(), 4);
    client.set_irqs(2, 0, &[]).unwrap();
    assert_eq!(errno(set(&client, RAISE, 0)), Errno::EIO);
    drop(client);
    shelved.end().unwrap();
}

#[test]
fn a_foreign_device_is_reset() {
    let shelved = Shelved::start();
    let client = shelved.client();
    client.region_write(2, 0, &[7; 64]).unwrap();
    client.reset().unwrap();
    let mut back = [1; 64];
    client.region_read(2, 0, &mut back).unwrap();
    assert_eq!((back, *shelved.resets.lock().unwrap()), ([0; 64], 1));
    drop(client);
    shelved.end().unwrap();
}

#[test]
fn a_foreign_device_is_found_unable_to_migrate_though_its_server_loses_its_place() {
    let shelved = Shelved::start();
    let client = shelved.client();
    let began = Instant::now();
    let refusal = control::open(Arc::new(client.clone())).unwrap_err();
    assert!(matches!(refusal, ProbeError::NotMigratable { .. }), "{refusal:?}");
    // The body of that question is a header to it, so the next answers are nonsense:
    // an error, whichever, and none that keeps anybody.
    for _ in 0..3 {
        assert!(client.device_info().is_err());
    }
    assert!(began.elapsed() < SOON);
    drop(client);
    let _ = shelved.end();
}

#[test]
fn a_probe_alone_says_that_there_is_no_migration() {
    let shelved = Shelved::start();
    let client = shelved.client();
    let answer = client.feature_probe(Feature::MIGRATION);
    assert!(matches!(answer, Err(TransportError::Errno { .. })), "{answer:?}");
    drop(client);
    let _ = shelved.end();
}
