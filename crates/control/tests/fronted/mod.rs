//! A device of any generation in this process: a small model, the front of the `device`
//! room before it, and a transport that writes down every access and can lie.
#![allow(dead_code, reason = "each test file uses its own part of it")]

mod jar;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use abi::errno::Errno;
use abi::feature::Feature;
use abi::v2::{DeviceMigState, DeviceState, MigDataSize, PrecopyInfo};
use control::{
    AnyDevice, DataSession, DeviceInfo, Direction, DmaTarget, IrqInfo, MappedArea,
    RegionInfo, SaveStream, Transport, TransportError, open_any,
};
use device::front::{DataSection, Front, FrontOptions, Generation};
use device::{DmaTarget as Target, Moved, Runner, Session};
use dirty::IovaRange;
use port::{Device, DeviceError, Opened, Read, ResumeSession, SaveSession};
use states::v2::State;
use sys::{EventFd, SharedMemory};
use vfio_migrate_control as control;
use zerocopy::{FromBytes, IntoBytes};

pub(crate) use jar::Jar;

/// Guest memory that the device can write to, from 0.
pub(crate) const MEMORY: u64 = 1 << 20;

/// An access to the migration region. Of data, what went by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read(u64, usize),
    Write(u64, usize),
}

/// What a lie makes of an access: it may change what is read, before the client sees it,
/// or what is written, before the device does. An errno instead of `None` is the answer.
pub(crate) type Lie = Box<dyn FnMut(&mut Seen<'_>) -> Result<(), TransportError> + Send>;

/// An access that a lie may change.
pub(crate) struct Seen<'a> {
    pub(crate) access: Access,
    pub(crate) bytes: &'a mut Vec<u8>,
    /// How many accesses there were before.
    pub(crate) number: usize,
}

impl Seen<'_> {
    /// Whether it reads exactly the register at `at`.
    pub(crate) fn reads(&self, at: u64) -> bool {
        matches!(self.access, Access::Read(offset, 4..=32) if offset == at)
    }

    pub(crate) fn writes(&self, at: u64) -> bool {
        matches!(self.access, Access::Write(offset, 4..=32) if offset == at)
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    pub(crate) fn set_u64(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
    }
}

pub(crate) struct Inner {
    pub(crate) runner: Runner,
    front: Option<Front>,
    pub(crate) accesses: Vec<Access>,
    pub(crate) written: Vec<(u64, Vec<u8>)>,
    pub(crate) lie: Option<Lie>,
    /// Region information instead of the true one.
    pub(crate) region: Option<RegionInfo>,
    /// What is mapped instead of what should be.
    pub(crate) map: Option<Result<(u64, u64), Errno>>,
    pub(crate) maps: Vec<u64>,
    pub(crate) stream: SaveStream,
    /// How many writes were given the time that a transition may take.
    pub(crate) transitions: usize,
    /// Whether a transition leaves nothing in the data section as it was.
    pub(crate) scribbles: bool,
}

pub(crate) struct Fronted(Arc<Mutex<Inner>>);

/// What kind of device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) generation: Option<Generation>,
    pub(crate) section: DataSection,
    pub(crate) bytes: u64,
}

pub(crate) const V2: Kind =
    Kind { generation: None, section: DataSection::Trapped, bytes: 0 };

pub(crate) const fn v1(section: DataSection) -> Kind {
    Kind { generation: Some(Generation::V1), section, bytes: 8192 }
}

pub(crate) const fn rfc2018(section: DataSection) -> Kind {
    Kind { generation: Some(Generation::Rfc2018), section, bytes: 8192 }
}

pub(crate) const SECTIONS: [DataSection; 3] =
    [DataSection::Trapped, DataSection::Mapped, DataSection::Split];

impl Fronted {
    /// A device that holds `contents`.
    pub(crate) fn new(kind: Kind, jar: Jar) -> Arc<Fronted> {
        let mut runner = Runner::new(Box::new(jar)).unwrap();
        let memory = SharedMemory::create("guest", MEMORY).unwrap();
        let range = IovaRange::new(0, MEMORY).unwrap();
        runner.map(range, true, Target::Window(Box::new(memory))).unwrap();
        let front = kind.generation.map(|generation| {
            let options = FrontOptions {
                generation,
                data_section: kind.section,
                section_bytes: kind.bytes,
                reserved_bits: 0xabcd_1230,
            };
            Front::new(&runner, options).unwrap()
        });
        Arc::new(Fronted(Arc::new(Mutex::new(Inner {
            runner,
            front,
            accesses: Vec::new(),
            written: Vec::new(),
            lie: None,
            region: None,
            map: None,
            maps: Vec::new(),
            stream: SaveStream::Continuous,
            transitions: 0,
            scribbles: false,
        }))))
    }

    pub(crate) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.try_lock().expect("it is not held during a call")
    }

    pub(crate) fn lie(
        &self,
        lie: impl FnMut(&mut Seen<'_>) -> Result<(), TransportError> + Send + 'static,
    ) {
        self.inner().lie = Some(Box::new(lie));
    }

    /// What was accessed since the last time.
    pub(crate) fn accesses(&self) -> Vec<Access> {
        std::mem::take(&mut self.inner().accesses)
    }

    /// The device writes to guest memory.
    pub(crate) fn dma(&self, at: u64) {
        self.inner().runner.write_region(0, 0, &at.to_ne_bytes()).unwrap();
    }

    /// What the device holds.
    pub(crate) fn contents(&self) -> Vec<u8> {
        let inner = &mut *self.inner();
        let mut length = [0; 8];
        inner.runner.read_region(0, 8, &mut length).unwrap();
        let mut bytes = vec![0; u64::from_ne_bytes(length) as usize];
        inner.runner.read_region(0, 16, &mut bytes).unwrap();
        bytes
    }
}

pub(crate) fn errno(errno: Errno) -> TransportError {
    TransportError::Errno { operation: "test", errno }
}

impl Inner {
    fn index(&self) -> Option<u32> {
        self.front.as_ref().map(|front| front.region().index)
    }

    fn done(&mut self, moved: Result<Moved, Errno>) -> Result<(), Errno> {
        let Moved::Pending = moved? else { return Ok(()) };
        let Some(front) = &mut self.front else { return Err(Errno::EIO) };
        for _ in 0..100 {
            if let Some(done) = front.settle(&mut self.runner, Instant::now()) {
                return done;
            }
        }
        Err(Errno::ETIMEDOUT)
    }

    fn seen(
        &mut self,
        access: Access,
        bytes: &mut Vec<u8>,
    ) -> Result<(), TransportError> {
        let number = self.accesses.len();
        let Some(lie) = &mut self.lie else { return Ok(()) };
        lie(&mut Seen { access, bytes, number })
    }
}

impl Transport for Fronted {
    fn name(&self) -> &str {
        "jar0"
    }

    fn device_info(&self) -> Result<DeviceInfo, TransportError> {
        Ok(DeviceInfo { flags: 1, regions: 10, irqs: 0 })
    }

    fn region_info(&self, index: u32) -> Result<RegionInfo, TransportError> {
        let inner = self.inner();
        if Some(index) != inner.index() {
            return match index {
                0..9 => Ok(RegionInfo {
                    index,
                    flags: 3,
                    size: 4096,
                    areas: Vec::new(),
                    kind: Some((1 << 30 | 1, 1)),
                }),
                _ => Err(errno(Errno::EINVAL)),
            };
        }
        if let Some(region) = &inner.region {
            return Ok(region.clone());
        }
        let front = inner.front.as_ref().unwrap();
        let region = front.region();
        let windows = &region.windows;
        Ok(RegionInfo {
            index,
            flags: 0b1011 | u32::from(!windows.is_empty()) << 2,
            size: region.size,
            areas: windows.iter().map(|one| (one.offset, one.memory.len())).collect(),
            kind: Some(front.kind()),
        })
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
        let inner = &mut *self.inner();
        if Some(index) != inner.index() {
            return inner.runner.read_region(index, offset, into).map_err(errno);
        }
        let access = Access::Read(offset, into.len());
        let Inner { runner, front, .. } = inner;
        let front = front.as_mut().unwrap();
        let mut bytes = into.to_vec();
        let read = front.read(runner, offset, &mut bytes).map_err(errno);
        // A lie may hide a refusal, too.
        let said = inner.seen(access, &mut bytes);
        inner.accesses.push(access);
        said?;
        if inner.lie.is_none() {
            read?;
        }
        into.copy_from_slice(&bytes);
        Ok(())
    }

    fn region_write(
        &self,
        index: u32,
        offset: u64,
        from: &[u8],
    ) -> Result<(), TransportError> {
        let inner = &mut *self.inner();
        if Some(index) != inner.index() {
            return inner.runner.write_region(index, offset, from).map_err(errno);
        }
        let access = Access::Write(offset, from.len());
        let mut bytes = from.to_vec();
        let said = inner.seen(access, &mut bytes);
        inner.accesses.push(access);
        said?;
        let Inner { runner, front, .. } = inner;
        let front = front.as_mut().unwrap();
        let moved = front.write(runner, offset, &bytes, Instant::now());
        if inner.scribbles && offset == 0 {
            for window in &front.region().windows {
                let noise = vec![0xee; window.memory.len() as usize];
                window.memory.write(0, &noise).unwrap();
            }
        }
        inner.written.push((offset, bytes));
        inner.done(moved).map_err(errno)
    }

    fn region_write_state(
        &self,
        index: u32,
        offset: u64,
        from: &[u8],
    ) -> Result<(), TransportError> {
        self.inner().transitions += 1;
        self.region_write(index, offset, from)
    }

    fn region_map(&self, _: u32, offset: u64) -> Result<MappedArea, TransportError> {
        let inner = &mut *self.inner();
        inner.maps.push(offset);
        if let Some(instead) = inner.map {
            let (offset, size) = instead.map_err(errno)?;
            let memory = SharedMemory::create("instead", size).unwrap();
            return Ok(MappedArea { offset, memory });
        }
        let windows = &inner.front.as_ref().unwrap().region().windows;
        windows
            .iter()
            .find(|one| (one.offset..one.offset + one.memory.len()).contains(&offset))
            .map(|one| MappedArea { offset: one.offset, memory: one.memory.clone() })
            .ok_or_else(|| errno(Errno::EINVAL))
    }

    fn feature_probe(&self, _: Feature) -> Result<(), TransportError> {
        Err(errno(Errno::ENOTTY))
    }

    fn feature_get(
        &self,
        feature: Feature,
        _: &[u8],
        _: usize,
    ) -> Result<Vec<u8>, TransportError> {
        let inner = &mut *self.inner();
        if inner.front.is_some() {
            return Err(errno(Errno::ENOTTY));
        }
        match feature {
            Feature::MIGRATION => {
                let set = inner.runner.description().capabilities;
                Ok(set.flags().as_bytes().to_vec())
            }
            Feature::MIG_DEVICE_STATE => {
                let state = inner.runner.state().number();
                let state = DeviceMigState { device_state: state, data_fd: -1 };
                Ok(state.as_bytes().to_vec())
            }
            Feature::MIG_DATA_SIZE => {
                let stop_copy_length = inner.runner.stop_copy_bytes();
                Ok(MigDataSize { stop_copy_length }.as_bytes().to_vec())
            }
            _ => Err(errno(Errno::ENOTTY)),
        }
    }

    fn feature_set(&self, _: Feature, _: &[u8]) -> Result<Vec<u8>, TransportError> {
        Err(errno(Errno::ENOTTY))
    }

    fn set_migration_state(
        &self,
        target: DeviceState,
        due: Option<Direction>,
    ) -> Result<Option<Box<dyn DataSession>>, TransportError> {
        let inner = &mut *self.inner();
        let target = State::from_number(target.0).unwrap();
        let moved = inner.runner.set_state(target, Instant::now()).map_err(errno)?;
        let Moved::Done(session) = moved else { panic!("it takes its time") };
        Ok(session.filter(|_| due.is_some()).map(|session| {
            Box::new(Straight(Arc::clone(&self.0), session)) as Box<dyn DataSession>
        }))
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

    fn save_stream(&self) -> SaveStream {
        self.inner().stream
    }

    fn reset(&self) -> Result<(), TransportError> {
        self.inner().runner.reset();
        Ok(())
    }
}

/// The data session of a v2 device.
struct Straight(Arc<Mutex<Inner>>, Session);

impl DataSession for Straight {
    fn read(&mut self, into: &mut [u8]) -> Result<usize, TransportError> {
        self.0.lock().unwrap().runner.read_data(self.1, into).map_err(errno)
    }

    fn write(&mut self, from: &[u8]) -> Result<usize, TransportError> {
        let written = self.0.lock().unwrap().runner.write_data(self.1, from);
        written.map(|()| from.len()).map_err(errno)
    }

    fn precopy_info(&mut self) -> Result<Option<PrecopyInfo>, TransportError> {
        let info = self.0.lock().unwrap().runner.precopy_info(self.1).map_err(errno)?;
        let bytes = [0; size_of::<PrecopyInfo>()];
        let mut answer = PrecopyInfo::read_from_bytes(&bytes).unwrap();
        answer.initial_bytes = info.initial_bytes;
        answer.dirty_bytes = info.dirty_bytes;
        Ok(Some(answer))
    }
}

/// A device that holds `length` bytes, and the way to it.
pub(crate) fn full(kind: Kind, length: usize) -> (Arc<Fronted>, AnyDevice) {
    let contents = (0..length).map(|n| (n * 7 + n / 251) as u8).collect();
    let transport = Fronted::new(kind, Jar::new(contents));
    let device = open_any(transport.clone()).unwrap();
    transport.accesses();
    (transport, device)
}

/// A device that holds nothing yet.
pub(crate) fn empty(kind: Kind) -> (Arc<Fronted>, AnyDevice) {
    full(kind, 0)
}

pub(crate) fn save(device: &mut dyn Device, target: State) -> Box<dyn SaveSession> {
    match device.set_state(target).unwrap() {
        Opened::Save(session) => session,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn resume(device: &mut dyn Device) -> Box<dyn ResumeSession> {
    match device.set_state(State::Resuming).unwrap() {
        Opened::Resume(session) => session,
        other => panic!("{other:?}"),
    }
}

/// What a session gives until an end: chunks, and whether they end a transaction.
pub(crate) type Chunks = Vec<(Vec<u8>, bool)>;

pub(crate) fn drain(
    session: &mut dyn SaveSession,
    room: usize,
) -> Result<Chunks, DeviceError> {
    let (mut chunks, mut buffer) = (Vec::new(), vec![0; room]);
    while let Read::Data { bytes, ends_transaction } = session.read(&mut buffer)? {
        assert!((1..=room).contains(&bytes));
        chunks.push((buffer[..bytes].to_vec(), ends_transaction));
    }
    Ok(chunks)
}

pub(crate) fn give(
    session: &mut dyn ResumeSession,
    chunks: &Chunks,
) -> Result<(), DeviceError> {
    chunks.iter().try_for_each(|(bytes, ends)| session.write(bytes, *ends))
}

/// What of a device's data is left to say in a fault.
pub(crate) fn broken(error: &DeviceError) -> &str {
    match &error.fault {
        port::Fault::Broken(what) => what,
        _ => panic!("{error}"),
    }
}
