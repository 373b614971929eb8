//! The VMM's side of v1 and rfc2018, against a device whose region lies.
//!
//! A real device answers, and the input changes some of the answers: other numbers in what
//! is read, errnos, writes that come to nothing, resets that nobody asked for, regions and
//! areas that cannot be. Whatever it was: no call makes more than a bounded number of
//! accesses, data and dirty pages are those that were asked for, and once the device is
//! honest, opened again and reset, it is saved to its end.

#![no_main]

use abi::errno::Errno;
use abi::feature::Feature;
use abi::v2::DeviceState;
use control::{
    AnyDevice, DataSession, DeviceInfo, Direction, DmaTarget, IrqInfo, MappedArea,
    RegionInfo, Transport, TransportError, open_any,
};
use device::front::{DataSection, Front, FrontOptions, Generation};
use device::{DmaTarget as Target, Moved, Runner};
use dirty::{IovaRange, PageSize};
use models::uart::{Parameters, Uart};
use port::{Device, Opened, Read, ResumeSession, SaveSession};
use states::v2::State;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Instant;
use sys::{EventFd, SharedMemory};

/// The most steps of one input.
const STEPS: usize = 64;
/// The most accesses that one call may make: a dirty query is the longest.
const ACCESSES: usize = 2048;
/// Memory that the device can reach, and that dirty pages are asked of.
const MEMORY: u64 = 1 << 20;

static SHARED: OnceLock<SharedMemory> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let liar = Arc::new(Liar::new(*kind, data));
    let Ok(device) = open_any(Arc::<Liar>::clone(&liar)) else { return };
    let mut client = Client { liar, device, save: None, resume: None };
    for _ in 0..STEPS {
        let Some(step) = client.liar.lock().byte() else { break };
        client.step(step);
        let accesses = std::mem::take(&mut client.liar.lock().accesses);
        assert!(accesses <= ACCESSES, "{accesses} accesses for one call");
    }
    client.honest();
});

/// Who drives the device.
struct Client {
    liar: Arc<Liar>,
    device: AnyDevice,
    save: Option<Box<dyn SaveSession>>,
    resume: Option<Box<dyn ResumeSession>>,
}

impl Client {
    fn step(&mut self, step: u8) {
        match step % 16 {
            0..=4 => {
                let state = [
                    State::Running,
                    State::PreCopy,
                    State::StopCopy,
                    State::Stop,
                    State::Resuming,
                ][usize::from(step % 16)];
                let opened = self.device.set_state(state);
                self.keep(opened.unwrap_or(Opened::None));
            }
            5..=8 => self.read(1 << (step >> 4)),
            9..=10 => {
                let liar = self.liar.lock();
                let data = vec![step; liar.rest.len() * 70];
                drop(liar);
                if let Some(session) = &mut self.resume {
                    let _ = session.write(&data, step >> 4 & 1 == 0);
                }
            }
            11 => {
                if let Some(session) = &mut self.save {
                    let _ = session.precopy_info();
                }
            }
            12 => {
                let _ = self.device.stop_copy_bytes();
                let _ = self.device.longest_transaction();
                let _ = self.device.validated_at_start();
            }
            13 => self.dirty(u64::from(step >> 4)),
            14 => {
                let _ = self.device.state();
            }
            _ => {
                let _ = self.device.reset();
            }
        }
    }

    fn keep(&mut self, opened: Opened) {
        match opened {
            Opened::Save(session) => self.save = Some(session),
            Opened::Resume(session) => self.resume = Some(session),
            Opened::None => {}
        }
    }

    fn read(&mut self, room: usize) {
        let Some(session) = &mut self.save else { return };
        let mut into = vec![0; room];
        if let Ok(Read::Data { bytes, .. }) = session.read(&mut into) {
            assert!((1..=room).contains(&bytes), "{bytes} bytes in {room}");
        }
    }

    fn dirty(&mut self, shift: u64) {
        let Ok(Some(mut source)) = self.device.dirty_source() else { return };
        let range = IovaRange::new(4096 * shift, MEMORY >> 1).expect("a range");
        let _ = source.start(&[range], PageSize::FOUR_K);
        let _ = source.collect(range, &mut |report| {
            let inside = report.range.start() >= range.start()
                && report.range.last() <= range.last();
            assert!(inside, "{} of {range}", report.range);
            let bits = report.range.length().div_ceil(report.page.bytes());
            assert!(report.words.len() as u64 <= bits.div_ceil(64).max(1));
        });
        let _ = source.stop();
    }

    /// The device lies no more. What it said before of itself and of its mappings is
    /// believed once, so it is opened again.
    fn honest(self) {
        self.liar.lock().rest = Vec::new();
        self.liar.lock().honest = true;
        let liar = Arc::<Liar>::clone(&self.liar);
        drop(self);
        let mut device = open_any(liar).expect("it is opened");
        device.reset().expect("it is reset");
        let opened = device.set_state(State::StopCopy).expect("it stops");
        let Opened::Save(mut session) = opened else { panic!("no session") };
        let (mut all, mut into) = (0, [0; 50]);
        let mut read = || session.read(&mut into).expect("an honest device is saved");
        while let Read::Data { bytes, .. } = read() {
            all += bytes;
        }
        assert_eq!(all, 96, "the whole state of the card");
    }
}

/// A device, and what it says instead of the truth.
struct Liar(Mutex<Inner>);

struct Inner {
    runner: Runner,
    front: Front,
    /// What is left of the input, the next byte last.
    rest: Vec<u8>,
    honest: bool,
    accesses: usize,
}

impl Liar {
    fn new(kind: u8, data: &[u8]) -> Liar {
        let generation = [Generation::V1, Generation::Rfc2018][usize::from(kind & 1)];
        let data_section = match kind >> 1 & 3 {
            0 | 1 => DataSection::Trapped,
            2 => DataSection::Mapped,
            _ => DataSection::Split,
        };
        let options = FrontOptions {
            data_section,
            section_bytes: 8192,
            ..FrontOptions::new(generation)
        };
        let uart = Uart::new(Parameters::default()).expect("two ports are possible");
        let mut runner = Runner::new(Box::new(uart)).expect("the card is valid");
        let memory = SHARED.get_or_init(|| {
            SharedMemory::create("guest", MEMORY).expect("a mebibyte of memory")
        });
        let range = IovaRange::new(0, MEMORY).expect("a range");
        let target = Target::Window(Box::new(memory.clone()));
        runner.map(range, true, target).expect("nothing is mapped yet");
        let front = Front::new(&runner, options).expect("the options are valid");
        let rest = data.iter().rev().copied().collect();
        Liar(Mutex::new(Inner { runner, front, rest, honest: false, accesses: 0 }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no call panics")
    }
}

impl Inner {
    fn byte(&mut self) -> Option<u8> {
        self.rest.pop()
    }

    fn word(&mut self) -> u64 {
        // Small, near the section, or anything.
        match self.byte().unwrap_or(0) {
            small @ 0..=99 => small.into(),
            place @ 100..=199 => 4096 * u64::from(place - 100),
            _ => u64::from_le_bytes([0; 8].map(|_: u8| self.byte().unwrap_or(0xff))),
        }
    }

    /// What an access becomes, and an errno where that is the answer.
    fn lies(&mut self) -> Result<Lie, TransportError> {
        self.accesses += 1;
        if self.honest {
            return Ok(Lie::None);
        }
        Ok(match self.byte().unwrap_or(0) {
            0..=199 => Lie::None,
            200..=229 => Lie::Number,
            230..=239 => Lie::Nothing,
            240..=247 => Lie::Reset,
            _ => return Err(errno(Errno::EIO)),
        })
    }

    fn shape(&self) -> RegionInfo {
        let region = self.front.region();
        let windows = &region.windows;
        RegionInfo {
            index: region.index,
            flags: 0b1011 | u32::from(!windows.is_empty()) << 2,
            size: region.size,
            areas: windows.iter().map(|one| (one.offset, one.memory.len())).collect(),
            kind: Some(self.front.kind()),
        }
    }
}

/// What an access becomes.
#[derive(PartialEq)]
enum Lie {
    None,
    /// One number in it is another.
    Number,
    /// Nothing comes of it.
    Nothing,
    /// The guest resets the device right before it.
    Reset,
}

fn errno(errno: Errno) -> TransportError {
    TransportError::Errno { operation: "fuzz", errno }
}

impl Transport for Liar {
    fn name(&self) -> &str {
        "liar"
    }

    fn device_info(&self) -> Result<DeviceInfo, TransportError> {
        Ok(DeviceInfo { flags: 3, regions: 10, irqs: 0 })
    }

    fn region_info(&self, index: u32) -> Result<RegionInfo, TransportError> {
        let inner = &mut *self.lock();
        let mut shape = inner.shape();
        if index != shape.index {
            return Err(errno(Errno::EINVAL));
        }
        match inner.byte().unwrap_or(0) {
            0..=239 => {}
            240..=243 => shape.size = inner.word(),
            244..=247 => shape.areas.push((inner.word(), inner.word())),
            248..=251 => shape.areas = vec![(inner.word(), inner.word())],
            _ => shape.flags = inner.byte().unwrap_or(0).into(),
        }
        Ok(shape)
    }

    fn irq_info(&self, _: u32) -> Result<IrqInfo, TransportError> {
        Err(errno(Errno::EINVAL))
    }

    fn region_read(
        &self,
        index: u32,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), TransportError> {
        let inner = &mut *self.lock();
        let Inner { front, runner, .. } = inner;
        if index != front.region().index {
            return runner.read_region(index, offset, into).map_err(errno);
        }
        let lie = inner.lies()?;
        if lie == Lie::Reset {
            inner.runner.reset();
        }
        let read = inner.front.read(&mut inner.runner, offset, into).map_err(errno);
        match lie {
            Lie::Number => {
                let at = 4 * usize::from(inner.byte().unwrap_or(0) % 8);
                let word = inner.word().to_ne_bytes();
                for (byte, other) in into.iter_mut().skip(at).zip(word) {
                    *byte = other;
                }
                Ok(())
            }
            Lie::Nothing => Ok(()),
            Lie::None | Lie::Reset => read,
        }
    }

    fn region_write(
        &self,
        index: u32,
        offset: u64,
        from: &[u8],
    ) -> Result<(), TransportError> {
        let inner = &mut *self.lock();
        let Inner { front, runner, .. } = inner;
        if index != front.region().index {
            return runner.write_region(index, offset, from).map_err(errno);
        }
        let lie = inner.lies()?;
        match lie {
            Lie::Nothing => return Ok(()),
            Lie::Reset => inner.runner.reset(),
            Lie::None | Lie::Number => {}
        }
        let mut data = from.to_vec();
        if lie == Lie::Number {
            let at = 4 * usize::from(inner.byte().unwrap_or(0) % 8);
            let word = inner.word().to_ne_bytes();
            for (byte, other) in data.iter_mut().skip(at).zip(word) {
                *byte = other;
            }
        }
        let Inner { front, runner, .. } = inner;
        match front.write(runner, offset, &data, Instant::now()).map_err(errno)? {
            Moved::Done(_) => Ok(()),
            Moved::Pending => panic!("the card takes no time"),
        }
    }

    fn region_map(&self, _: u32, offset: u64) -> Result<MappedArea, TransportError> {
        let inner = &mut *self.lock();
        inner.accesses += 1;
        match inner.byte().unwrap_or(0) {
            200..=219 => return Err(errno(Errno::EINVAL)),
            220..=255 => {
                let offset = inner.word();
                let memory = SHARED.get().expect("it is made").clone();
                return Ok(MappedArea { offset, memory });
            }
            _ => {}
        }
        let windows = &inner.front.region().windows;
        let window = windows
            .iter()
            .find(|one| (one.offset..one.offset + one.memory.len()).contains(&offset));
        let area = |one: &device::Window| MappedArea {
            offset: one.offset,
            memory: one.memory.clone(),
        };
        window.map(area).ok_or_else(|| errno(Errno::EINVAL))
    }

    fn feature_probe(&self, _: Feature) -> Result<(), TransportError> {
        Err(errno(Errno::ENOTTY))
    }

    fn feature_get(
        &self,
        _: Feature,
        _: &[u8],
        _: usize,
    ) -> Result<Vec<u8>, TransportError> {
        Err(errno(Errno::ENOTTY))
    }

    fn feature_set(&self, _: Feature, _: &[u8]) -> Result<Vec<u8>, TransportError> {
        Err(errno(Errno::ENOTTY))
    }

    fn set_migration_state(
        &self,
        _: DeviceState,
        _: Option<Direction>,
    ) -> Result<Option<Box<dyn DataSession>>, TransportError> {
        Err(errno(Errno::ENOTTY))
    }

    fn set_irqs(&self, _: u32, _: u32, _: &[&EventFd]) -> Result<(), TransportError> {
        Ok(())
    }

    fn dma_map(&self, _: IovaRange, _: DmaTarget<'_>) -> Result<(), TransportError> {
        Ok(())
    }

    fn dma_unmap(&self, _: IovaRange) -> Result<(), TransportError> {
        Ok(())
    }

    fn reset(&self) -> Result<(), TransportError> {
        self.lock().runner.reset();
        Ok(())
    }
}
