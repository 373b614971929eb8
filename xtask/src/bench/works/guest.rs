//! An idle guest: memory with contents, no vCPU that does anything, and devices behind
//! vfio-user where there are any.

use std::path::Path;
use std::sync::Arc;

use control::{DmaLog, DmaTarget, Function, Transport};
use dirty::{IovaRange, PageSize};
use engine::{Machine, Slot};
use port::{
    DirtySource, DmaMap, Gpa, GuestMemory, Mapping, Mappings, MemoryError, MemoryRegion,
    Vcpus, VmmError,
};
use sys::SharedMemory;
use vfio_user::{Client, ClientOptions, NoDma};

use super::text;

/// How much is filled, checked and copied at a time, in bytes.
pub(super) const CHUNK: usize = 1 << 20;

/// Guest memory from address 0 on, all of it touched.
#[derive(Debug)]
pub(super) struct Ram {
    memory: SharedMemory,
}

impl Ram {
    /// Memory with every page in place. `bytes` is a multiple of [`CHUNK`].
    pub(super) fn new(bytes: u64) -> Result<Arc<Ram>, String> {
        Ok(Arc::new(Ram { memory: touched(bytes)? }))
    }

    /// The bytes.
    pub(super) fn shared(&self) -> &SharedMemory {
        &self.memory
    }
}

/// Shared memory with every page in place.
pub(super) fn touched(bytes: u64) -> Result<SharedMemory, String> {
    let memory = SharedMemory::create("bench", bytes).map_err(text)?;
    memory.prefault().map_err(text)?;
    Ok(memory)
}

/// Fills memory with bytes of which no page is zero or like another.
pub(super) fn fill(memory: &SharedMemory, seed: u64) -> Result<(), String> {
    let mut chunk = vec![0; CHUNK];
    for at in (0..memory.len()).step_by(CHUNK) {
        noise(seed ^ at, &mut chunk);
        memory.write(at, &chunk).map_err(text)?;
    }
    Ok(())
}

/// Pseudo-random bytes (a counter through the mixer of `SplitMix64`).
pub(super) fn noise(seed: u64, into: &mut [u8]) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for word in into.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes()[..word.len()]);
    }
}

/// Overwrites what was there, so that bytes which do not arrive are missed.
pub(super) fn scrub(memory: &SharedMemory) -> Result<(), String> {
    let chunk = vec![0xff; CHUNK];
    (0..memory.len())
        .step_by(CHUNK)
        .try_for_each(|at| memory.write(at, &chunk).map_err(text))
}

/// The checksum of all of it.
pub(super) fn checksum(memory: &SharedMemory) -> Result<u32, String> {
    let mut chunk = vec![0; CHUNK];
    let mut sum = 0;
    for at in (0..memory.len()).step_by(CHUNK) {
        memory.read(at, &mut chunk).map_err(text)?;
        sum = crc32c::crc32c_append(sum, &chunk);
    }
    Ok(sum)
}

impl GuestMemory for Ram {
    fn regions(&self) -> Vec<MemoryRegion> {
        let (length, page) = (self.memory.len(), PageSize::FOUR_K);
        vec![MemoryRegion { start: Gpa(0), length, page }]
    }

    fn generation(&self) -> u64 {
        0
    }

    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        let length = into.len() as u64;
        self.memory.read(at.0, into).map_err(|_| MemoryError { at, length })
    }

    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), MemoryError> {
        let length = from.len() as u64;
        self.memory.write(at.0, from).map_err(|_| MemoryError { at, length })
    }

    fn zero(&self, at: Gpa, length: u64) -> Result<(), MemoryError> {
        self.memory.zero(at.0, length).map_err(|_| MemoryError { at, length })
    }
}

/// The devices' addresses are the guest's.
struct Identity(Arc<Ram>);

impl DmaMap for Identity {
    fn mappings(&self) -> Mappings {
        let all = IovaRange::new(0, self.0.memory.len());
        let all = all.map(|iova| Mapping { iova, gpa: Gpa(0) });
        Mappings::new(all.into_iter().collect(), 0)
    }

    fn virtual_iommu(&self) -> bool {
        false
    }

    fn peer_to_peer(&self) -> bool {
        false
    }
}

/// vCPUs that do nothing while they run.
struct Idle {
    paused: bool,
}

impl Vcpus for Idle {
    fn pause(&mut self) -> Result<(), VmmError> {
        self.paused = true;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), VmmError> {
        self.paused = false;
        Ok(())
    }

    fn paused(&self) -> bool {
        self.paused
    }
}

/// What the engine is lent: `paused` on the side that takes the guest in.
pub(super) fn machine(
    ram: &Arc<Ram>,
    devices: &[Client],
    paused: bool,
) -> Result<Machine, String> {
    let mut slots = Vec::new();
    let mut dirty: Vec<Box<dyn DirtySource>> = Vec::new();
    for client in devices {
        let transport = || Arc::new(client.clone()) as Arc<dyn Transport>;
        let device = control::open(transport()).map_err(text)?;
        let function = Function::open(transport()).map_err(text)?;
        let config = function.map(|function| function.config_space());
        slots.push(Slot { device: Box::new(device), config, interrupts: None });
        let log = DmaLog::open(transport()).map_err(text)?;
        dirty.push(Box::new(log.ok_or("the device has no DMA log")?));
    }
    Ok(Machine {
        memory: Arc::clone(ram) as _,
        dma: Arc::new(Identity(Arc::clone(ram))),
        vcpus: Box::new(Idle { paused }),
        devices: slots,
        dirty,
        sections: Vec::new(),
        gate: None,
        inspect: None,
    })
}

/// Connects to a device, resets it and lets it reach memory.
pub(super) fn connect(socket: &Path, name: &str, ram: &Ram) -> Result<Client, String> {
    let client = Client::connect(socket, ClientOptions::new(name, Arc::new(NoDma)))
        .map_err(text)?;
    client.reset().map_err(text)?;
    let all = IovaRange::new(0, ram.memory.len()).map_err(text)?;
    let target = DmaTarget::Memory { memory: &ram.memory, offset: 0, writable: true };
    client.dma_map(all, target).map_err(text)?;
    Ok(client)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_page_of_the_contents_is_zero_or_like_another() {
        let memory = touched(4 << 20).expect("there is memory");
        fill(&memory, 7).expect("it is inside");
        let mut pages = std::collections::BTreeSet::new();
        for at in (0..memory.len()).step_by(4096) {
            let mut page = [0; 4096];
            memory.read(at, &mut page).expect("it is inside");
            assert!(page.iter().any(|byte| *byte != 0));
            assert!(pages.insert(page.to_vec()), "the page at {at:#x} is there twice");
        }
    }

    #[test]
    fn bytes_that_do_not_arrive_are_missed() {
        let memory = touched(2 << 20).expect("there is memory");
        fill(&memory, 7).expect("it is inside");
        let sent = checksum(&memory).expect("it is inside");
        scrub(&memory).expect("it is inside");
        assert_ne!(checksum(&memory).expect("it is inside"), sent);
    }
}
