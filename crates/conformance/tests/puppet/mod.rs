//! A transport as the kernel's to a uart in this process, which breaks one thing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod fault;
mod opened;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use abi::errno::Errno;
use abi::feature::{Feature, FeatureFlags, FeatureHeader};
use abi::v2::{DeviceMigState, DeviceState};
use abi::vfio_user::{LoggingControl, LoggingReport};
use control::{
    DataSession, DeviceInfo, Direction, DmaTarget, IrqInfo, MappedArea, Raw, RegionInfo,
    Transport, TransportError,
};
use device::{Moved, Runner, Session};
use dirty::IovaRange;
use models::uart::{Parameters, Uart};
use rustix::pipe::{PipeFlags, pipe_with};
use states::v2::{Capabilities, State};
use sys::EventFd;
use zerocopy::{FromBytes, IntoBytes};

pub(crate) use fault::Fault;
use opened::Opened;

struct Inner {
    runner: Runner,
    opted_in: bool,
    calls: usize,
    gets: usize,
    restless: u8,
    crossed: bool,
    refusals: usize,
    forgiven: bool,
    writes: usize,
    log_broken: bool,
    /// What was read in STOP_COPY, and what of it is given once more.
    told: Vec<u8>,
    again: Vec<u8>,
    /// What GET of the state says instead of the truth.
    shown: Option<State>,
    /// Requests of PRE_COPY from STOP_COPY.
    backs: usize,
    stale_writes: usize,
}

/// The device; a session holds on to it.
#[derive(Clone)]
pub(crate) struct Puppet {
    inner: Arc<Mutex<Inner>>,
    fault: Fault,
    kernel: bool,
}

fn refused(errno: Errno) -> TransportError {
    TransportError::Errno { operation: "asked", errno }
}

fn runner(capabilities: Capabilities) -> Runner {
    let uart = Uart::new(Parameters { ports: 2, capabilities }).unwrap();
    Runner::new(Box::new(uart)).unwrap()
}

impl Puppet {
    pub(crate) fn new(fault: Fault, kernel: bool) -> Puppet {
        let mut runner = runner(Capabilities::ALL);
        if fault == Fault::BeginsStopped {
            let _ = runner.set_state(State::Stop, Instant::now()).unwrap();
        }
        let inner = Inner {
            runner,
            opted_in: false,
            calls: 0,
            gets: 0,
            restless: 0,
            crossed: false,
            refusals: 0,
            forgiven: false,
            writes: 0,
            log_broken: false,
            told: Vec::new(),
            again: Vec::new(),
            shown: (fault == Fault::LeavesError).then_some(State::Error),
            backs: 0,
            stale_writes: 0,
        };
        Puppet { inner: Arc::new(Mutex::new(inner)), fault, kernel }
    }

    /// How often it was asked for PRE_COPY in STOP_COPY.
    pub(crate) fn backs(&self) -> usize {
        self.inner.lock().unwrap().backs
    }

    /// How often a session was written to that is over.
    pub(crate) fn stale_writes(&self) -> usize {
        self.inner.lock().unwrap().stale_writes
    }

    fn call(&self) -> Result<MutexGuard<'_, Inner>, TransportError> {
        let mut inner = self.inner.lock().unwrap();
        inner.calls += 1;
        match self.fault {
            Fault::Gone(after) if inner.calls > after => {
                Err(TransportError::Gone { operation: "asked", source: None })
            }
            _ => Ok(inner),
        }
    }

    /// What can be done with a feature; `None` where it is not there.
    fn operations(&self, feature: Feature) -> Option<FeatureFlags> {
        match feature {
            Feature::MIGRATION | Feature::MIG_DATA_SIZE | Feature::DMA_LOGGING_REPORT => {
                Some(FeatureFlags::GET)
            }
            Feature::MIG_DEVICE_STATE => Some(FeatureFlags::GET | FeatureFlags::SET),
            Feature::DMA_LOGGING_START
            | Feature::DMA_LOGGING_STOP
            | Feature::MIG_PRECOPY_INFO_V2 => Some(FeatureFlags::SET),
            _ if self.fault == Fault::AnyFeature => Some(FeatureFlags::GET),
            _ => None,
        }
    }

    fn session(&self, session: Session, writes: bool) -> Box<dyn DataSession> {
        let flags = match self.fault {
            Fault::Inherited => PipeFlags::empty(),
            _ => PipeFlags::CLOEXEC,
        };
        let (read, write) = pipe_with(flags).unwrap();
        let descriptor = if writes { write } else { read };
        Box::new(Opened { puppet: self.clone(), session, writes, descriptor })
    }
}

impl Inner {
    /// Sets the state as a driver that takes everything would.
    fn take_all(&mut self, target: State) {
        self.runner.reset();
        let _ = self.runner.set_state(target, Instant::now()).unwrap();
    }

    fn set(&mut self, fault: Fault, target: State) -> Result<Option<Session>, Errno> {
        let from = self.runner.state();
        let blocked = matches!(target, State::PreCopy | State::PreCopyP2p);
        if from == State::StopCopy && blocked {
            self.backs += 1;
            if fault == Fault::GoesBack {
                return Ok(None);
            }
        }
        if let Some(State::Error) = self.shown {
            self.shown = None;
            return Ok(None);
        }
        match (from, target) {
            (State::StopCopy, State::StopCopy) => self.again = self.told.clone(),
            _ => self.told.clear(),
        }
        match fault {
            Fault::Ignores(ignored) if ignored == from => return Ok(None),
            Fault::TakesError if target == State::Error => return Ok(None),
            _ => {}
        }
        let was_saving = from.is_saving();
        match self.runner.set_state(target, Instant::now()) {
            Ok(Moved::Done(session)) => {
                self.crossed = was_saving && target == State::StopCopy;
                Ok(session)
            }
            Ok(Moved::Pending) => panic!("a uart needs no time"),
            Err(errno) => {
                let resuming = from == State::Resuming;
                self.refusals += 1;
                match fault {
                    Fault::TakesAll if resuming => self.take_all(target),
                    Fault::Moody if resuming && self.refusals.is_multiple_of(2) => {
                        self.take_all(target);
                    }
                    Fault::Forgives if resuming && self.forgiven => self.take_all(target),
                    Fault::FailsOnward => {
                        self.shown = Some(State::Running);
                        return Err(errno);
                    }
                    _ => return Err(errno),
                }
                Ok(None)
            }
        }
    }
}

impl Transport for Puppet {
    fn name(&self) -> &str {
        "puppet"
    }

    fn device_info(&self) -> Result<DeviceInfo, TransportError> {
        drop(self.call()?);
        Ok(DeviceInfo { flags: 3, regions: 9, irqs: 5 })
    }

    fn region_info(&self, _: u32) -> Result<RegionInfo, TransportError> {
        Err(refused(Errno::EINVAL))
    }

    fn irq_info(&self, _: u32) -> Result<IrqInfo, TransportError> {
        Err(refused(Errno::EINVAL))
    }

    fn region_read(
        &self,
        index: u32,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), TransportError> {
        let mut inner = self.call()?;
        if self.fault == Fault::NoConfig && inner.runner.state() == State::Stop {
            return Err(refused(Errno::EIO));
        }
        inner.runner.read_region(index, offset, into).map_err(refused)
    }

    fn region_write(&self, _: u32, _: u64, _: &[u8]) -> Result<(), TransportError> {
        Err(refused(Errno::EINVAL))
    }

    fn region_map(&self, _: u32, _: u64) -> Result<MappedArea, TransportError> {
        Err(refused(Errno::EINVAL))
    }

    fn feature_probe(&self, feature: Feature) -> Result<(), TransportError> {
        drop(self.call()?);
        if self.fault == Fault::ProbeHides && feature == Feature::MIGRATION {
            return Err(refused(Errno::ENOTTY));
        }
        match self.operations(feature) {
            Some(_) => Ok(()),
            None => Err(refused(Errno::ENOTTY)),
        }
    }

    fn feature_get(
        &self,
        feature: Feature,
        input: &[u8],
        _: usize,
    ) -> Result<Vec<u8>, TransportError> {
        let mut inner = self.call()?;
        inner.gets += 1;
        let Inner { runner, gets, shown, .. } = &mut *inner;
        match feature {
            Feature::MIGRATION if self.fault == Fault::Flags => {
                Ok(vec![4, 0, 0, 0, 0, 0, 0, 0])
            }
            Feature::MIGRATION => {
                Ok(runner.description().capabilities.flags().as_bytes().to_vec())
            }
            Feature::MIG_DEVICE_STATE => {
                let mut state = shown.unwrap_or(runner.state());
                if self.fault == Fault::Wanders
                    && state == State::PreCopy
                    && *gets % 20 == 0
                {
                    state = State::Running;
                }
                let state = DeviceMigState { device_state: state.number(), data_fd: -1 };
                Ok(state.as_bytes().to_vec())
            }
            Feature::MIG_DATA_SIZE => {
                let bytes = match self.fault {
                    Fault::ErrnoSize => -5_i64 as u64,
                    Fault::SmallSize => 1,
                    _ => runner.stop_copy_bytes(),
                };
                Ok(bytes.as_bytes().to_vec())
            }
            Feature::DMA_LOGGING_REPORT => {
                let asked = LoggingReport::read_from_bytes(input).unwrap();
                let words = match self.fault {
                    Fault::NoReport => return Err(refused(Errno::EIO)),
                    Fault::ReportsAll => vec![0],
                    _ => runner
                        .log_report(asked.iova, asked.length, asked.page_size, 64)
                        .map_err(refused)?,
                };
                let mut answer = asked.as_bytes().to_vec();
                answer.extend(words.as_bytes());
                Ok(answer)
            }
            _ if self.fault == Fault::AnyFeature => Ok(vec![0; 8]),
            _ => Err(refused(Errno::ENOTTY)),
        }
    }

    fn feature_set(
        &self,
        feature: Feature,
        payload: &[u8],
    ) -> Result<Vec<u8>, TransportError> {
        let mut inner = self.call()?;
        match feature {
            Feature::DMA_LOGGING_START => {
                let (mut control, ranges) =
                    LoggingControl::read_from_prefix(payload).unwrap();
                if self.fault == Fault::LogsAll {
                    return Ok(payload.to_vec());
                }
                if inner.log_broken {
                    return Err(refused(Errno::EBUSY));
                }
                let (words, _) = ranges.as_chunks::<8>();
                let words: Vec<_> =
                    words.iter().map(|word| u64::from_le_bytes(*word)).collect();
                let ranges: Vec<_> =
                    words.chunks(2).map(|pair| (pair[0], pair[1])).collect();
                if ranges.is_empty() {
                    return Err(refused(Errno::EINVAL));
                }
                let chosen = inner.runner.log_start(control.page_size, &ranges);
                control.page_size = chosen.map_err(refused)?.bytes();
                Ok(control.as_bytes().to_vec())
            }
            Feature::DMA_LOGGING_STOP => {
                inner.log_broken = self.fault == Fault::StopBreaks;
                inner.runner.log_stop();
                Ok(Vec::new())
            }
            Feature::MIG_PRECOPY_INFO_V2 => {
                inner.opted_in = true;
                Ok(Vec::new())
            }
            _ => Err(refused(Errno::ENOTTY)),
        }
    }

    fn set_migration_state(
        &self,
        target: DeviceState,
        _: Option<Direction>,
    ) -> Result<Option<Box<dyn DataSession>>, TransportError> {
        let mut inner = self.call()?;
        let target = State::from_number(target.0).ok_or(refused(Errno::EINVAL))?;
        if self.fault == Fault::Wedged && target == State::StopCopy {
            drop(inner);
            loop {
                std::thread::park();
            }
        }
        let from = inner.runner.state();
        let again = from == target && from.is_saving();
        let session = inner.set(self.fault, target).map_err(refused)?;
        let session = match session {
            None if self.fault == Fault::Reopens && again => inner.runner.session(),
            session => session,
        };
        let Some(session) = session else { return Ok(None) };
        inner.writes = 0;
        inner.forgiven = false;
        inner.restless = inner.restless.wrapping_add(1);
        drop(inner);
        // What the kernel does where a process has no descriptor left.
        if pipe_with(PipeFlags::CLOEXEC).is_err() {
            return match self.fault {
                Fault::NoDescriptor => Ok(None),
                _ => Err(refused(Errno::EMFILE)),
            };
        }
        Ok(Some(self.session(session, target == State::Resuming)))
    }

    fn set_irqs(&self, _: u32, _: u32, _: &[&EventFd]) -> Result<(), TransportError> {
        Err(refused(Errno::EINVAL))
    }

    fn dma_map(&self, _: IovaRange, _: DmaTarget<'_>) -> Result<(), TransportError> {
        Err(refused(Errno::EINVAL))
    }

    fn dma_unmap(&self, _: IovaRange) -> Result<(), TransportError> {
        Err(refused(Errno::EINVAL))
    }

    fn reset(&self) -> Result<(), TransportError> {
        let mut inner = self.call()?;
        if self.fault == Fault::WedgedReset {
            drop(inner);
            loop {
                std::thread::park();
            }
        }
        if self.fault == Fault::NoReset && inner.runner.state() == State::Stop {
            return Ok(());
        }
        inner.shown = None;
        inner.runner.reset();
        Ok(())
    }

    fn raw(&self) -> Option<&dyn Raw> {
        Some(self)
    }
}

impl Raw for Puppet {
    fn is_kernel(&self) -> bool {
        self.kernel
    }

    fn feature(
        &self,
        header: FeatureHeader,
        _: &[u8],
    ) -> Result<Vec<u8>, TransportError> {
        let inner = self.call()?;
        let (feature, operation) = (header.feature(), header.operation());
        let both = FeatureFlags::GET | FeatureFlags::SET;
        let probe = operation.contains(FeatureFlags::PROBE);
        let wanted = operation & both;
        let einval = || Err(refused(Errno::EINVAL));
        if header.argsz < 8
            || operation.bits() & !FeatureFlags::KNOWN != 0
            || (wanted == both && !probe)
        {
            return einval();
        }
        let Some(allowed) = self.operations(feature) else {
            return Err(refused(Errno::ENOTTY));
        };
        if probe && self.fault == Fault::ProbeBoasts {
            return Ok(Vec::new());
        }
        if !allowed.contains(wanted) || (wanted.is_empty() && !probe) {
            return einval();
        }
        if probe {
            return Ok(Vec::new());
        }
        if header.argsz < 16 && self.fault != Fault::AnyArgsz {
            return einval();
        }
        Ok(inner.runner.state().number().as_bytes().to_vec())
    }

    fn data(
        &self,
        _: Direction,
        bytes: &mut [u8],
    ) -> Result<Option<usize>, TransportError> {
        drop(self.call()?);
        match (self.kernel, self.fault) {
            (true, _) => Ok(None),
            (false, Fault::Sessionless) => Ok(Some(bytes.len())),
            (false, _) => Err(refused(Errno::EINVAL)),
        }
    }
}
