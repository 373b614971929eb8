//! A transport to a device that does what a test says, and otherwise what it should.
#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use abi::errno::Errno;
use abi::feature::Feature;
use abi::v2::{DeviceMigState, DeviceState, PrecopyInfo};
use control::{
    DataSession, DeviceInfo, Direction, DmaTarget, IrqAction, IrqForm, IrqInfo,
    MappedArea, RegionInfo, SaveStream, Transport, TransportError,
};
use dirty::IovaRange;
use states::v2::{Capabilities, State, plan};
use sys::EventFd;
use vfio_migrate_control as control;
use zerocopy::{FromBytes, IntoBytes};

pub(crate) type Answer<T> = Result<T, Errno>;

/// What a SET does instead of what it should.
#[derive(Debug, Default)]
pub(crate) struct Quirk {
    /// The state it ends in, whatever was asked.
    pub(crate) lands: Option<u32>,
    /// The errno it answers.
    pub(crate) errno: Option<Errno>,
    /// It opens no session where one is due, or one where none is.
    pub(crate) wrong_session: bool,
    /// It never answers.
    pub(crate) silent: bool,
}

pub(crate) struct Inner {
    pub(crate) calls: Vec<String>,
    pub(crate) flags: u32,
    pub(crate) capabilities: u64,
    pub(crate) state: u32,
    pub(crate) sets: VecDeque<Quirk>,
    /// Answers to GET, by feature; the last one stays.
    pub(crate) gets: BTreeMap<Feature, VecDeque<Answer<Vec<u8>>>>,
    /// Answers to SET, by feature; the last one stays.
    pub(crate) puts: BTreeMap<Feature, VecDeque<Answer<Vec<u8>>>>,
    /// Payloads of SET and GET.
    pub(crate) payloads: Vec<(Feature, Vec<u8>)>,
    pub(crate) reads: VecDeque<Answer<Vec<u8>>>,
    /// How many bytes each write takes; all of them once that is empty.
    pub(crate) takes: VecDeque<Answer<usize>>,
    pub(crate) info: Answer<Option<PrecopyInfo>>,
    pub(crate) written: Vec<u8>,
    pub(crate) sessions: usize,
    pub(crate) reset_to: u32,
    pub(crate) config: [u8; 4096],
    /// Which bits of config space can be written.
    pub(crate) writable: [u8; 4096],
    pub(crate) config_writes: Vec<(u64, Vec<u8>)>,
    /// What its config space is once it woke up from D3hot, and where its power state lies.
    pub(crate) wakes_as: Option<(usize, Box<[u8; 4096]>)>,
    /// Bytes of each region.
    pub(crate) regions: BTreeMap<u32, u64>,
    pub(crate) bar_writes: Vec<(u32, u64, Vec<u8>)>,
    /// Vectors of each interrupt index.
    pub(crate) irqs: BTreeMap<u32, u32>,
    /// What is bound, by index and vector; one index at a time, as the kernel has it.
    pub(crate) bound: BTreeMap<(u32, u32), EventFd>,
    pub(crate) irq_calls: Vec<String>,
    /// The level of the line, and whether it was heard and not let through again.
    pub(crate) line: (bool, bool),
    /// It knows no masks.
    pub(crate) unmaskable: bool,
    /// By what index and vector it speaks once more right before it is told otherwise, by a
    /// write of config space at this offset.
    pub(crate) last_word: Option<(u64, u32, u32)>,
    /// DMA log: answers REPORT with these dirty addresses, by 4 KiB.
    pub(crate) dirty: Vec<u64>,
    /// DMA log: reports exactly these ranges and says EOPNOTSUPP to all others.
    pub(crate) whole: Option<Vec<(u64, u64)>>,
    pub(crate) most_report_bytes: usize,
    pub(crate) stream: SaveStream,
    /// It resets nothing that is stopped, as libvfio-user.
    pub(crate) stopped_is_not_reset: bool,
}

pub(crate) struct Scripted(pub(crate) Arc<Mutex<Inner>>);

impl Scripted {
    pub(crate) fn new(capabilities: u64) -> Arc<Scripted> {
        let mut config = [0; 4096];
        config[..4].copy_from_slice(&[0x36, 0x1b, 0x4e, 0xfa]);
        Arc::new(Scripted(Arc::new(Mutex::new(Inner {
            calls: Vec::new(),
            flags: 3,
            capabilities,
            state: State::Running.number(),
            sets: VecDeque::new(),
            gets: BTreeMap::new(),
            puts: BTreeMap::new(),
            payloads: Vec::new(),
            reads: VecDeque::new(),
            takes: VecDeque::new(),
            info: Ok(None),
            written: Vec::new(),
            sessions: 0,
            reset_to: State::Running.number(),
            config,
            writable: [0; 4096],
            config_writes: Vec::new(),
            wakes_as: None,
            regions: BTreeMap::new(),
            bar_writes: Vec::new(),
            irqs: BTreeMap::new(),
            bound: BTreeMap::new(),
            irq_calls: Vec::new(),
            line: (false, false),
            unmaskable: false,
            last_word: None,
            dirty: Vec::new(),
            whole: None,
            most_report_bytes: usize::MAX,
            stream: SaveStream::Continuous,
            stopped_is_not_reset: false,
        }))))
    }

    pub(crate) fn script(&self) -> MutexGuard<'_, Inner> {
        // A test that held on to it during a call would hang.
        self.0.try_lock().expect("the script is not held during a call")
    }
}

impl Inner {
    /// The line goes up or down: heard once, until it is let through again.
    pub(crate) fn set_level(&mut self, up: bool) {
        self.line.0 = up;
        self.speak();
    }

    fn speak(&mut self) {
        let runs = self.state == State::Running.number();
        if let (true, true, false, Some(event)) =
            (runs, self.line.0, self.line.1, self.bound.get(&(0, 0)))
        {
            event.signal(1).unwrap();
            self.line.1 = !self.unmaskable;
        }
    }

    /// The device runs again, or for the first time.
    pub(crate) fn start(&mut self) {
        self.state = State::Running.number();
        self.speak();
    }

    /// A vector is raised so often; heard where it is bound.
    pub(crate) fn raise(&self, index: u32, vector: u32, count: u64) {
        self.bound.get(&(index, vector)).unwrap().signal(count).unwrap();
    }
}

fn failed(operation: &'static str, errno: Errno) -> TransportError {
    TransportError::Errno { operation, errno }
}

fn next(answers: &mut VecDeque<Answer<Vec<u8>>>) -> Option<Answer<Vec<u8>>> {
    if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() }
}

impl Transport for Scripted {
    fn name(&self) -> &str {
        "dev0"
    }

    fn device_info(&self) -> Result<DeviceInfo, TransportError> {
        Ok(DeviceInfo { flags: self.script().flags, regions: 9, irqs: 5 })
    }

    fn region_info(&self, index: u32) -> Result<RegionInfo, TransportError> {
        let size = self.script().regions.get(&index).copied();
        let size = size.ok_or_else(|| failed("region info", Errno::EINVAL))?;
        Ok(RegionInfo { index, flags: 3, size, areas: Vec::new(), kind: None })
    }

    fn irq_info(&self, index: u32) -> Result<IrqInfo, TransportError> {
        let count = self.script().irqs.get(&index).copied();
        let count = count.ok_or_else(|| failed("irq info", Errno::EINVAL))?;
        Ok(IrqInfo { flags: 7, count })
    }

    fn region_read(
        &self,
        index: u32,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), TransportError> {
        if index != 7 {
            into.fill(0xda);
            return Ok(());
        }
        let (at, script) = (offset as usize, self.script());
        into.copy_from_slice(&script.config[at..at + into.len()]);
        Ok(())
    }

    fn region_write(
        &self,
        index: u32,
        offset: u64,
        from: &[u8],
    ) -> Result<(), TransportError> {
        let script = &mut *self.script();
        if index != 7 {
            script.bar_writes.push((index, offset, from.to_vec()));
            return Ok(());
        }
        if let Some((at, index, vector)) = script.last_word
            && at == offset
            && let Some(event) = script.bound.get(&(index, vector))
        {
            event.signal(1).unwrap();
        }
        script.config_writes.push((offset, from.to_vec()));
        let before = script.config;
        for (n, byte) in from.iter().enumerate() {
            let at = offset as usize + n;
            let mask = script.writable[at];
            script.config[at] = script.config[at] & !mask | byte & mask;
        }
        if let Some((power, fresh)) = &script.wakes_as
            && (before[*power] & 3, script.config[*power] & 3) == (3, 0)
        {
            script.config = **fresh;
        }
        Ok(())
    }

    fn region_map(&self, _: u32, _: u64) -> Result<MappedArea, TransportError> {
        Err(failed("region map", Errno::EINVAL))
    }

    fn feature_probe(&self, feature: Feature) -> Result<(), TransportError> {
        let mut script = self.script();
        let here =
            script.gets.contains_key(&feature) || script.puts.contains_key(&feature);
        script.calls.push(format!("probe {feature}"));
        if here { Ok(()) } else { Err(failed("probe", Errno::ENOTTY)) }
    }

    fn feature_get(
        &self,
        feature: Feature,
        input: &[u8],
        most: usize,
    ) -> Result<Vec<u8>, TransportError> {
        let script = &mut *self.script();
        script.calls.push(format!("get {feature}"));
        script.payloads.push((feature, input.to_vec()));
        if let Some(answer) = script.gets.get_mut(&feature).and_then(next) {
            return answer.map_err(|errno| failed("get", errno));
        }
        match feature {
            Feature::MIGRATION => Ok(script.capabilities.as_bytes().to_vec()),
            Feature::MIG_DEVICE_STATE => {
                let state = DeviceMigState { device_state: script.state, data_fd: -1 };
                Ok(state.as_bytes().to_vec())
            }
            Feature::DMA_LOGGING_REPORT => {
                let numbers = <[u64; 3]>::read_from_bytes(input).unwrap();
                let [iova, length, page] = numbers;
                if script.whole.as_ref().is_some_and(|all| !all.contains(&(iova, length)))
                {
                    return Err(failed("get", Errno::EOPNOTSUPP));
                }
                let mut words = vec![0u64; length.div_ceil(page).div_ceil(64) as usize];
                script.dirty.retain(|address| {
                    let hit = (iova..iova + length).contains(address);
                    if hit {
                        let bit = (address - iova) / page;
                        words[(bit / 64) as usize] |= 1 << (bit % 64);
                    }
                    !hit
                });
                let mut answer = input.to_vec();
                answer.extend(words.as_bytes());
                assert!(answer.len() <= most);
                Ok(answer)
            }
            _ => Err(failed("get", Errno::ENOTTY)),
        }
    }

    fn feature_set(
        &self,
        feature: Feature,
        payload: &[u8],
    ) -> Result<Vec<u8>, TransportError> {
        let script = &mut *self.script();
        script.calls.push(format!("set {feature}"));
        script.payloads.push((feature, payload.to_vec()));
        if let Some(answer) = script.puts.get_mut(&feature).and_then(next) {
            return answer.map_err(|errno| failed("set", errno));
        }
        Err(failed("set", Errno::ENOTTY))
    }

    fn set_migration_state(
        &self,
        target: DeviceState,
        due: Option<Direction>,
    ) -> Result<Option<Box<dyn DataSession>>, TransportError> {
        let script = &mut *self.script();
        script.calls.push(format!("set state {target}"));
        let quirk = script.sets.pop_front().unwrap_or_default();
        if quirk.silent {
            return Err(TransportError::TimedOut { operation: "set state", millis: 7 });
        }
        let capabilities = Capabilities::try_from_flags(script.capabilities).unwrap();
        let from = State::from_number(script.state).unwrap();
        let path = plan(capabilities, from, State::from_number(target.0).unwrap());
        let path = path.map_err(|_| failed("set state", Errno::EINVAL))?;
        assert_eq!(due.is_some(), path.opens_session());
        script.state = quirk.lands.unwrap_or(target.0);
        if let Some(errno) = quirk.errno {
            return Err(failed("set state", errno));
        }
        if due.is_some() == quirk.wrong_session {
            return Ok(None);
        }
        script.sessions += 1;
        Ok(Some(Box::new(Session(Arc::clone(&self.0)))))
    }

    fn set_irqs(
        &self,
        index: u32,
        start: u32,
        events: &[&EventFd],
    ) -> Result<(), TransportError> {
        let script = &mut *self.script();
        script.irq_calls.push(format!("bind {index}: {}", events.len()));
        let refused = || failed("set irqs", Errno::EINVAL);
        if events.is_empty() {
            script.bound.retain(|(of, _), _| *of != index);
            script.line.1 = false;
            return Ok(());
        }
        let count = script.irqs.get(&index).copied().unwrap_or(0);
        let other = script.bound.keys().any(|(of, _)| *of != index);
        if other || start as usize + events.len() > count as usize {
            return Err(refused());
        }
        for (vector, event) in (start..).zip(events) {
            script.bound.insert((index, vector), event.try_clone().unwrap());
        }
        script.speak();
        Ok(())
    }

    fn act_on_irqs(
        &self,
        index: u32,
        _: u32,
        action: IrqAction,
        _: IrqForm<'_>,
    ) -> Result<(), TransportError> {
        let script = &mut *self.script();
        script.irq_calls.push(format!("{action:?} {index}"));
        if script.unmaskable || index != 0 {
            return Err(failed("act on irqs", Errno::ENOTTY));
        }
        script.line.1 = action == IrqAction::Mask;
        script.speak();
        Ok(())
    }

    fn dma_map(&self, _: IovaRange, _: DmaTarget<'_>) -> Result<(), TransportError> {
        Ok(())
    }

    fn dma_unmap(&self, _: IovaRange) -> Result<(), TransportError> {
        Ok(())
    }

    fn most_report_bytes(&self) -> usize {
        self.script().most_report_bytes
    }

    fn save_stream(&self) -> SaveStream {
        self.script().stream
    }

    fn reset(&self) -> Result<(), TransportError> {
        let mut script = self.script();
        script.calls.push("reset".to_owned());
        let stopped = [State::Stop.number(), State::StopCopy.number()];
        if script.stopped_is_not_reset && stopped.contains(&script.state) {
            return Err(failed("reset", Errno::EINVAL));
        }
        script.state = script.reset_to;
        Ok(())
    }
}

struct Session(Arc<Mutex<Inner>>);

impl Drop for Session {
    fn drop(&mut self) {
        self.0.lock().unwrap().sessions -= 1;
    }
}

impl DataSession for Session {
    fn read(&mut self, into: &mut [u8]) -> Result<usize, TransportError> {
        let answer = self.0.lock().unwrap().reads.pop_front().unwrap_or(Ok(Vec::new()));
        let bytes = answer.map_err(|errno| failed("read", errno))?;
        let fits = bytes.len().min(into.len());
        into[..fits].copy_from_slice(&bytes[..fits]);
        Ok(bytes.len())
    }

    fn write(&mut self, from: &[u8]) -> Result<usize, TransportError> {
        let script = &mut *self.0.lock().unwrap();
        let taken = script.takes.pop_front().unwrap_or(Ok(from.len()));
        let taken = taken.map_err(|errno| failed("write", errno))?;
        script.written.extend(&from[..taken.min(from.len())]);
        Ok(taken)
    }

    fn precopy_info(&mut self) -> Result<Option<PrecopyInfo>, TransportError> {
        self.0.lock().unwrap().info.map_err(|errno| failed("precopy info", errno))
    }
}
