//! A device with a migration region, and a client that goes by the documents.

use crate::scribe::{BLOCK, BLOCKS, Fate, Scribe};
use abi::errno::Errno;
use abi::rfc2018::{DataSection as Data, DirtyPfns, PendingBytes};
use dirty::IovaRange;
use states::v2::Capabilities;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use sys::SharedMemory;
use vfio_migrate_device::front::{DataSection, Front, FrontOptions, Generation};
use vfio_migrate_device::{DmaTarget, Moved, Runner};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Registers of v1.
pub(crate) mod v1 {
    pub(crate) const STATE: u64 = 0;
    pub(crate) const PENDING: u64 = 8;
    pub(crate) const OFFSET: u64 = 16;
    pub(crate) const SIZE: u64 = 24;
    pub(crate) const RUNNING: u32 = 0b001;
    pub(crate) const PRE_COPY: u32 = 0b011;
    pub(crate) const STOP_COPY: u32 = 0b010;
    pub(crate) const RESUMING: u32 = 0b100;
}

/// Registers of rfc2018.
pub(crate) mod rfc {
    pub(crate) const PENDING: u64 = 4;
    pub(crate) const THRESHOLD: u64 = 28;
    pub(crate) const DATA: u64 = 36;
    pub(crate) const SIZE: u64 = 44;
    pub(crate) const DIRTY: u64 = 52;
    pub(crate) const RUNNING: u32 = 1;
    pub(crate) const SETUP: u32 = 2;
    pub(crate) const PRECOPY: u32 = 3;
    pub(crate) const STOPNCOPY: u32 = 4;
    pub(crate) const SAVE_COMPLETED: u32 = 5;
    pub(crate) const RESUME: u32 = 6;
    pub(crate) const RESUME_COMPLETED: u32 = 7;
    pub(crate) const FAILED: u32 = 8;
    pub(crate) const CANCELLED: u32 = 9;
}

pub(crate) const SECTIONS: [DataSection; 3] =
    [DataSection::Trapped, DataSection::Mapped, DataSection::Split];
pub(crate) const GENERATIONS: [Generation; 2] = [Generation::V1, Generation::Rfc2018];
/// Small, so that a state takes several transactions.
pub(crate) const SECTION: u64 = 8192;
pub(crate) const GUEST: u64 = 1 << 20;

pub(crate) struct Bench {
    pub(crate) runner: Runner,
    pub(crate) front: Front,
    pub(crate) fate: Arc<Mutex<Fate>>,
    pub(crate) now: Instant,
    /// Whether what can be mapped is reached so.
    pub(crate) maps: bool,
}

pub(crate) fn bench(options: FrontOptions, capabilities: Capabilities) -> Bench {
    let (scribe, fate) = Scribe::new(capabilities);
    let mut runner = Runner::new(Box::new(scribe)).unwrap();
    let memory = SharedMemory::create("guest", GUEST).unwrap();
    let range = IovaRange::new(0, GUEST).unwrap();
    runner.map(range, true, DmaTarget::Window(Box::new(memory))).unwrap();
    let front = Front::new(&runner, options).unwrap();
    Bench { runner, front, fate, now: Instant::now(), maps: true }
}

pub(crate) fn options(generation: Generation, data_section: DataSection) -> FrontOptions {
    FrontOptions { data_section, section_bytes: SECTION, ..FrontOptions::new(generation) }
}

/// A trapped one, with pre-copy.
pub(crate) fn plain(generation: Generation) -> Bench {
    bench(options(generation, DataSection::Trapped), Capabilities::PRE_COPY)
}

impl Bench {
    pub(crate) fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.front.read(&mut self.runner, at, into)
    }
    pub(crate) fn write(&mut self, at: u64, data: &[u8]) -> Result<Moved, Errno> {
        self.front.write(&mut self.runner, at, data, self.now)
    }
    /// A write that is answered when it is done.
    pub(crate) fn put(&mut self, at: u64, data: &[u8]) -> Result<(), Errno> {
        if let Moved::Done(_) = self.write(at, data)? {
            return Ok(());
        }
        for _ in 0..100 {
            self.now += Duration::from_millis(1);
            if let Some(outcome) = self.front.settle(&mut self.runner, self.now) {
                return outcome;
            }
        }
        panic!("it does not settle");
    }
    pub(crate) fn word(&mut self, at: u64) -> u64 {
        let mut word = [0; 8];
        self.read(at, &mut word).unwrap();
        u64::from_ne_bytes(word)
    }
    pub(crate) fn put_word(&mut self, at: u64, word: u64) -> Result<(), Errno> {
        self.put(at, &word.to_ne_bytes())
    }
    pub(crate) fn state(&mut self) -> u32 {
        let mut state = [0; 4];
        self.read(v1::STATE, &mut state).unwrap();
        u32::from_ne_bytes(state)
    }
    /// Writes `device_state`.
    pub(crate) fn go(&mut self, state: u32) -> Result<(), Errno> {
        self.put(v1::STATE, &state.to_ne_bytes())
    }
    pub(crate) fn structure<T: FromBytes + IntoBytes + FromZeros>(
        &mut self,
        at: u64,
    ) -> T {
        let mut value = T::new_zeroed();
        self.read(at, value.as_mut_bytes()).unwrap();
        value
    }
    pub(crate) fn pending(&mut self) -> PendingBytes {
        self.structure(rfc::PENDING)
    }
    /// Asks for dirty pages, and gives the bits of the first answer.
    pub(crate) fn dirty(&mut self, start_addr: u64, total: u64) -> DirtyPfns {
        let asked = DirtyPfns { start_addr, total, copied: 0xdead };
        self.put(rfc::DIRTY, asked.as_bytes()).unwrap();
        self.structure(rfc::DIRTY)
    }

    /// The data section from `at` on, mapped as far as that goes.
    pub(crate) fn section(&mut self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let mapped = self.mapped(at, length);
        if mapped > 0 {
            self.read(at, &mut bytes[..mapped]).unwrap();
        }
        if let Some(window) = self.front.region().windows.first()
            && mapped < length
        {
            let from = at + mapped as u64 - window.offset;
            window.memory.read(from, &mut bytes[mapped..]).unwrap();
        }
        bytes
    }

    pub(crate) fn fill_section(&mut self, at: u64, bytes: &[u8]) {
        let mapped = self.mapped(at, bytes.len());
        if mapped > 0 {
            self.put(at, &bytes[..mapped]).unwrap();
        }
        if let Some(window) = self.front.region().windows.first()
            && mapped < bytes.len()
        {
            let to = at + mapped as u64 - window.offset;
            window.memory.write(to, &bytes[mapped..]).unwrap();
        }
    }

    /// How much of the section at `at` lies before what is mapped.
    fn mapped(&self, at: u64, length: usize) -> usize {
        let windows = &self.front.region().windows;
        let first = windows.first().filter(|_| self.maps);
        first.map_or(length, |window| {
            (window.offset.saturating_sub(at) as usize).min(length)
        })
    }

    /// One buffer of a save, by the sequence of its document; `None` at the end.
    pub(crate) fn buffer(&mut self) -> Option<Vec<u8>> {
        let (at, size) = match self.front.generation() {
            Generation::V1 => {
                if self.word(v1::PENDING) == 0 {
                    return None;
                }
                (self.word(v1::OFFSET), self.word(v1::SIZE))
            }
            Generation::Rfc2018 => {
                let pending = self.pending();
                let stopped = self.runner.state() == states::v2::State::StopCopy;
                let now = pending.precopy_only + pending.compatible;
                if now == 0 && !(stopped && pending.postcopy_only > 0) {
                    return None;
                }
                let data: Data = self.structure(rfc::DATA);
                (data.offset, data.size)
            }
        };
        assert!(size > 0 && size <= SECTION, "{size}");
        Some(self.section(at, size as usize))
    }

    pub(crate) fn buffers(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.buffer()).collect()
    }

    /// A migration's save: pre-copy with writes meanwhile, stop-and-copy, stop.
    pub(crate) fn save(&mut self) -> Vec<Vec<u8>> {
        let old = self.front.generation() == Generation::Rfc2018;
        if old {
            self.go(rfc::SETUP).unwrap();
        }
        self.go(if old { rfc::PRECOPY } else { v1::PRE_COPY }).unwrap();
        let mut all = Vec::new();
        for round in 0..3 {
            all.extend(self.buffers());
            self.scribble(100 + round);
        }
        self.go(if old { rfc::STOPNCOPY } else { v1::STOP_COPY }).unwrap();
        all.extend(self.buffers());
        self.go(if old { rfc::SAVE_COMPLETED } else { 0 }).unwrap();
        all
    }

    /// One transaction of a load.
    pub(crate) fn load(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        if self.front.generation() == Generation::V1 {
            let at = self.word(v1::OFFSET);
            self.fill_section(at, bytes);
            return self.put_word(v1::SIZE, bytes.len() as u64);
        }
        let data: Data = self.structure(rfc::DATA);
        self.fill_section(data.offset, bytes);
        let data = Data { offset: data.offset, size: bytes.len() as u64 };
        self.put(rfc::DATA, data.as_bytes())
    }

    pub(crate) fn restore(&mut self, transactions: &[Vec<u8>]) -> Result<(), Errno> {
        let old = self.front.generation() == Generation::Rfc2018;
        self.go(if old { rfc::RESUME } else { v1::RESUMING })?;
        for transaction in transactions {
            self.load(transaction)?;
        }
        if old {
            self.go(rfc::RESUME_COMPLETED)?;
        }
        self.go(v1::RUNNING)
    }

    /// Writes into a few blocks, as a guest does.
    pub(crate) fn scribble(&mut self, seed: u64) {
        for n in 0..8 {
            let block = (seed * 7 + n * 5) % BLOCKS as u64;
            let at = block * BLOCK as u64 + seed % 400;
            self.runner.write_region(0, at, &(seed * n + 1).to_le_bytes()).unwrap();
        }
    }
}
