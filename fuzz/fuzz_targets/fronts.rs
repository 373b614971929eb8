//! The migration regions of v1 and rfc2018, against a client that reads and writes
//! anything, anywhere, in any width, and a guest that resets the device at any time.
//!
//! Two bytes choose the generation, the way to the data and the model; then come steps.
//! Whatever they were: what v1's `device_state` reads is where the device is; a device in
//! error leaves it by a reset only; and after a reset the device is saved through the
//! region, and loaded again, as if nothing had been.

#![no_main]

use abi::errno::Errno;
use device::front::{DataSection, Front, FrontOptions, Generation};
use device::{Digest, DmaTarget, Migratable, Moved, Runner};
use dirty::IovaRange;
use models::accel::{self, Accel};
use models::uart::{self, Uart};
use states::v1::V1State;
use states::v2::{Capabilities, State};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use sys::SharedMemory;

/// The most steps of one input.
const STEPS: usize = 96;
/// Memory that the device can reach, from 0.
const MEMORY: u64 = 1 << 20;
/// The most buffers of one save here: the accelerator's memory through 4 KiB.
const BUFFERS: usize = 1 << 14;
/// Where registers begin in either generation, and one place in their middle.
const REGISTERS: [u64; 16] =
    [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 44, 52, 60, 68, 76, 80];

static SHARED: OnceLock<SharedMemory> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let mut device = Device::new(input.byte(), input.byte());
    for _ in 0..STEPS {
        if input.0.is_empty() {
            break;
        }
        device.step(&mut input);
        device.says_where_it_is();
    }
    device.recover();
});

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn word(&mut self) -> u64 {
        let mut word = [0; 8];
        let taken = self.take(8);
        word[..taken.len()].copy_from_slice(taken);
        u64::from_le_bytes(word)
    }

    /// A register, a place near the data, or any.
    fn place(&mut self) -> u64 {
        match self.byte() {
            place @ 0..=159 => REGISTERS[usize::from(place % 16)],
            place @ 160..=199 => 4096 * u64::from(place % 5),
            200..=239 => self.word() % 20_000,
            _ => self.word(),
        }
    }

    fn width(&mut self) -> usize {
        match self.byte() {
            width @ 0..=199 => [4, 8, 16, 24, 32][usize::from(width % 5)],
            _ => (self.word() % 9000) as usize,
        }
    }
}

struct Device {
    runner: Runner,
    front: Front,
    options: FrontOptions,
    capabilities: Capabilities,
    now: Instant,
    /// v1 was seen in error, after so many resets.
    error: Option<u64>,
}

impl Device {
    fn new(kind: u8, model: u8) -> Device {
        let generation = [Generation::V1, Generation::Rfc2018][usize::from(kind & 1)];
        let data_section = match kind >> 1 & 3 {
            0 | 1 => DataSection::Trapped,
            2 => DataSection::Mapped,
            _ => DataSection::Split,
        };
        let options = FrontOptions {
            data_section,
            section_bytes: 8192 << (kind >> 3 & 1),
            // rfc2018 has none.
            reserved_bits: if kind & 1 == 0 { u32::from(kind >> 4) << 3 } else { 0 },
            ..FrontOptions::new(generation)
        };
        let capabilities = Capabilities::EVERY[usize::from(model >> 1 & 3)];
        let model: Box<dyn Migratable> = if model & 1 == 0 {
            let parameters = uart::Parameters { ports: 2, capabilities };
            Box::new(Uart::new(parameters).expect("two ports are possible"))
        } else {
            let parameters = accel::Parameters { capabilities, ..Default::default() };
            Box::new(Accel::new(parameters).expect("the default size is possible"))
        };
        let mut runner = Runner::new(model).expect("the models are valid");
        let memory = SHARED.get_or_init(|| {
            SharedMemory::create("guest", MEMORY).expect("a mebibyte of memory")
        });
        let range = IovaRange::new(0, MEMORY).expect("a range");
        let target = DmaTarget::Window(Box::new(memory.clone()));
        runner.map(range, true, target).expect("nothing is mapped yet");
        let front = Front::new(&runner, options).expect("the options are valid");
        let now = Instant::now();
        Device { runner, front, options, capabilities, now, error: None }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 16 {
            0..=3 => {
                let (at, width) = (input.place(), input.width());
                let _ = self.front.read(&mut self.runner, at, &mut vec![0; width]);
            }
            4..=6 => {
                let (at, width, word) = (input.place(), input.width(), input.word());
                let mut data = vec![0; width];
                for part in data.chunks_mut(8) {
                    part.copy_from_slice(&word.to_ne_bytes()[..part.len()]);
                }
                self.write(at, &data);
            }
            7..=9 => {
                let state = u32::from(input.byte() % 12) | self.options.reserved_bits;
                self.write(0, &state.to_ne_bytes());
            }
            10 => {
                // A sequence of a load: data, then its size.
                let data = input.take(100);
                let at = self.front.region().size - self.options.section_bytes;
                self.write(at, data);
                if self.options.generation == Generation::V1 {
                    self.write(24, &(data.len() as u64).to_ne_bytes());
                } else {
                    let size = data.len() as u64;
                    self.write(36, &[at.to_ne_bytes(), size.to_ne_bytes()].concat());
                }
            }
            11 => {
                let (at, byte) = (input.word() % 20_000, input.byte());
                if let Some(window) = self.front.region().windows.first() {
                    let _ = window.memory.write(at, &[byte; 64]);
                }
            }
            12 => {
                let (region, at) = (u32::from(input.byte() % 8), input.word() % 8192);
                let _ = self.runner.write_region(region, at, input.take(8));
            }
            13 => {
                self.now += Duration::from_millis(input.word() % 20_000);
                let _ = self.front.settle(&mut self.runner, self.now);
                let _ = self.runner.work(self.now);
            }
            14 if input.byte().is_multiple_of(2) => self.runner.reset(),
            14 => {
                self.runner.disconnect();
                self.front.disconnect();
            }
            _ => {
                let _ = self.runner.log_start(4096 << (input.byte() % 4), &[(0, MEMORY)]);
            }
        }
    }

    fn write(&mut self, at: u64, data: &[u8]) {
        let moved = self.front.write(&mut self.runner, at, data, self.now);
        let state = (at, data.len()) == (0, 4);
        assert!(state || moved != Ok(Moved::Pending), "only a state takes its time");
    }

    fn register(&mut self, at: u64) -> Result<u64, Errno> {
        let mut word = [0; 8];
        self.front.read(&mut self.runner, at, &mut word)?;
        Ok(u64::from_ne_bytes(word))
    }

    fn says_where_it_is(&mut self) {
        if self.options.generation != Generation::V1 || self.runner.pending().is_some() {
            return;
        }
        let mut read = [0; 4];
        let told = self.front.read(&mut self.runner, 0, &mut read);
        told.expect("the state is readable in every state");
        let read = abi::v1::StateBits::from_bits_retain(u32::from_ne_bytes(read));
        assert_eq!(read.bits() & !7, self.options.reserved_bits, "reserved bits");
        let shown = V1State::from_bits(read).expect("a state of the documents");
        let state = self.runner.state();
        // A device without pre-copy stays running while it is said to be in it; a load
        // that failed is an error at once.
        let others = match shown.engine() {
            State::PreCopy => !self.capabilities.pre_copy() && state == State::Running,
            State::Error => state == State::Resuming,
            _ => false,
        };
        assert!(shown.engine() == state || others, "{shown:?} in {state}");
        let resets = self.runner.resets();
        let error = shown.engine() == State::Error;
        assert!(error || self.error != Some(resets), "it left an error without a reset");
        self.error = error.then_some(resets);
    }

    /// After a reset it is as new, and goes through the region to another one.
    fn recover(&mut self) {
        self.runner.reset();
        let _ = self.front.settle(&mut self.runner, self.now);
        self.runner.log_stop();
        let data = self.save();
        let digest = self.holds();
        let kind = u8::from(self.options.generation == Generation::Rfc2018);
        let model = u8::from(self.runner.description().identity.model.starts_with("acc"));
        let mut other = Device::new(kind, model);
        other.load(&data);
        assert_eq!(digest.difference(&other.holds()), None, "another device");
    }

    /// What it holds, without what it counts of others.
    fn holds(&self) -> Digest {
        let mut digest = self.runner.digest().expect("both models tell");
        digest.counters.retain(|(name, _)| !name.ends_with("_while_stopped"));
        digest
    }

    /// A write of the state that has to be carried out.
    fn go(&mut self, state: u32) {
        let state = (state | self.options.reserved_bits).to_ne_bytes();
        let mut moved = self.front.write(&mut self.runner, 0, &state, self.now);
        for _ in 0..64 {
            if moved != Ok(Moved::Pending) {
                break;
            }
            self.now += Duration::from_secs(1);
            moved = match self.front.settle(&mut self.runner, self.now) {
                Some(done) => done.map(|()| Moved::Done(None)),
                None => Ok(Moved::Pending),
            };
        }
        assert_eq!(moved, Ok(Moved::Done(None)), "a fresh device goes there");
    }

    fn save(&mut self) -> Vec<Vec<u8>> {
        let old = self.options.generation == Generation::Rfc2018;
        if old {
            self.go(2);
        }
        self.go(if old { 4 } else { 0b010 });
        // What is pending, where the next buffer is, and how long.
        let (pending, at, size) = if old { (20, 36, 44) } else { (8, 16, 24) };
        let mut buffers = Vec::new();
        while self.register(pending).expect("a device is saved") > 0 {
            assert!(buffers.len() < BUFFERS, "what it has does not end");
            let at = self.register(at).expect("a buffer");
            let size = self.register(size).expect("its size") as usize;
            assert!((1..=self.options.section_bytes as usize).contains(&size));
            let mut buffer = vec![0; size];
            let read = self.front.read(&mut self.runner, at, &mut buffer);
            read.expect("data lies in the section");
            buffers.push(buffer);
        }
        buffers
    }

    /// Here the section is trapped, and no smaller than any.
    fn load(&mut self, buffers: &[Vec<u8>]) {
        let old = self.options.generation == Generation::Rfc2018;
        self.go(if old { 6 } else { 0b100 });
        let place = if old { 36 } else { 16 };
        for part in buffers.iter().flat_map(|buffer| buffer.chunks(8192)) {
            let at = self.register(place).expect("where data is wanted");
            self.write(at, part);
            let size = (part.len() as u64).to_ne_bytes();
            let whole = [at.to_ne_bytes(), size].concat();
            let (to, what) = if old { (36, &whole[..]) } else { (24, &size[..]) };
            let taken = self.front.write(&mut self.runner, to, what, self.now);
            assert_eq!(taken, Ok(Moved::Done(None)), "what was saved is accepted");
        }
        if old {
            self.go(7);
        }
        self.go(1);
    }
}
