//! Wrappers that break any port at any call.
//!
//! An explorer runs a migration once with [`Breaker::never`], learns from
//! [`Breaker::calls`] every call that was made, and then runs it again for each of
//! them and each [`Break`], with a fresh breaker that breaks just that one.

use std::io::IoSlice;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use abi::errno::Errno;
use dirty::{IovaRange, PageSize};
use port::{
    Accept, Archive, AttemptId, Channel, ChannelError, ConfigSpace, ConfigStage,
    Decision, DecisionStore, Device, DeviceError, Dial, DirtyReport, DirtySource, Fault,
    Gpa, GuestMemory, Halves, Identity, Inspect, Interrupts, MemoryError, MemoryRegion,
    Opened, Order, PrecopyInfo, Read, Receive, ResumeSession, SaveSession, Section,
    SourceError, Space, StoreError, StoreId, Transmit, Vcpus, VmmError,
};
use states::v2::State;
use thiserror::Error;

use crate::locked;

/// Decides which call breaks, over all the wrappers that share it.
#[derive(Clone, Debug)]
pub struct Breaker(Arc<Mutex<Plan>>);

/// How a call breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// It fails and nothing was done.
    Before,
    /// It is done and then fails, as a transition that changed the state, or a record
    /// of which nobody knows whether it was written.
    After,
    /// It fails, and so does every later call by the same label, as with a device that
    /// is lost. A device's reset succeeds and ends that.
    ForGood,
}

#[derive(Debug)]
struct Plan {
    calls: Vec<String>,
    target: Option<Target>,
    how: Break,
    broken: Option<String>,
    lost: Option<String>,
}

#[derive(Clone, Debug)]
enum Target {
    Nth(usize),
    Call(String, usize),
}

impl Breaker {
    /// Breaks nothing, and counts.
    pub fn never() -> Breaker {
        Breaker::new(None, Break::Before)
    }

    /// Breaks the call with this number, counted from 0 over all wrappers.
    pub fn nth(number: usize, how: Break) -> Breaker {
        Breaker::new(Some(Target::Nth(number)), how)
    }

    /// Breaks the `occurrence`-th call (from 0) that [`Breaker::calls`] would name so.
    /// Unlike a number it says the same thing when threads come in another order.
    pub fn call(name: &str, occurrence: usize, how: Break) -> Breaker {
        Breaker::new(Some(Target::Call(name.to_owned(), occurrence)), how)
    }

    fn new(target: Option<Target>, how: Break) -> Breaker {
        let calls = Vec::new();
        let plan = Plan { calls, target, how, broken: None, lost: None };
        Breaker(Arc::new(Mutex::new(plan)))
    }

    /// Every call so far, as `LABEL: OPERATION`, in order.
    pub fn calls(&self) -> Vec<String> {
        locked(&self.0).calls.clone()
    }

    /// Every call so far by name and occurrence, in order: what [`Breaker::call`]
    /// takes.
    pub fn targets(&self) -> Vec<(String, usize)> {
        let mut seen = std::collections::HashMap::new();
        let target = |name: String| {
            let count: &mut usize = seen.entry(name.clone()).or_default();
            *count += 1;
            (name, *count - 1)
        };
        self.calls().into_iter().map(target).collect()
    }

    /// The call that broke, once it has.
    pub fn broken(&self) -> Option<String> {
        locked(&self.0).broken.clone()
    }

    fn verdict(&self, label: &str, operation: &str) -> Verdict {
        let plan = &mut *locked(&self.0);
        let name = format!("{label}: {operation}");
        plan.calls.push(name.clone());
        if plan.lost.as_deref() == Some(label) {
            return Verdict::Lost;
        }
        let hit = match &plan.target {
            None => false,
            Some(Target::Nth(number)) => plan.calls.len() - 1 == *number,
            Some(Target::Call(call, occurrence)) => {
                *call == name
                    && plan.calls.iter().filter(|one| *one == call).count()
                        == occurrence + 1
            }
        };
        if !hit {
            return Verdict::Go;
        }
        plan.broken = Some(name);
        match plan.how {
            Break::Before => Verdict::Fail,
            Break::After => Verdict::DoThenFail,
            Break::ForGood => {
                plan.lost = Some(label.to_owned());
                Verdict::Lost
            }
        }
    }

    fn found(&self, label: &str) {
        let plan = &mut *locked(&self.0);
        plan.lost.take_if(|lost| lost == label);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Go,
    Fail,
    DoThenFail,
    Lost,
}

/// The error that a fake or a wrapper makes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Injected(pub &'static str);

impl Injected {
    pub(crate) fn because(why: &'static str) -> Box<dyn std::error::Error + Send + Sync> {
        Box::new(Injected(why))
    }
}

const INJECTED: &str = "broken on purpose";

/// Something whose calls break when its [`Breaker`] says so. Works for every port.
pub struct Faulty<T: ?Sized> {
    label: String,
    breaker: Breaker,
    inner: Box<T>,
}

impl<T: ?Sized> Faulty<T> {
    /// Wraps `inner`, whose calls will be named after `label`.
    pub fn new(label: &str, breaker: &Breaker, inner: Box<T>) -> Faulty<T> {
        Faulty { label: label.to_owned(), breaker: breaker.clone(), inner }
    }

    fn around<R, E>(
        &mut self,
        operation: &str,
        error: impl FnOnce(&str, &str, bool) -> E,
        act: impl FnOnce(&mut T) -> Result<R, E>,
    ) -> Result<R, E> {
        let verdict = self.breaker.verdict(&self.label, operation);
        if matches!(verdict, Verdict::Go | Verdict::DoThenFail) {
            let done = act(&mut self.inner)?;
            if verdict == Verdict::Go {
                return Ok(done);
            }
        }
        Err(error(&self.label, operation, verdict == Verdict::Lost))
    }

    fn beside<R, E>(
        &self,
        operation: &str,
        error: impl FnOnce() -> E,
        act: impl FnOnce(&T) -> Result<R, E>,
    ) -> Result<R, E> {
        let verdict = self.breaker.verdict(&self.label, operation);
        if matches!(verdict, Verdict::Go | Verdict::DoThenFail) {
            let done = act(&self.inner)?;
            if verdict == Verdict::Go {
                return Ok(done);
            }
        }
        Err(error())
    }

    fn wrap<U: ?Sized>(&self, inner: Box<U>) -> Box<Faulty<U>> {
        Box::new(Faulty::new(&self.label, &self.breaker, inner))
    }
}

impl<T: ?Sized> std::fmt::Debug for Faulty<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Faulty").field("label", &self.label).finish_non_exhaustive()
    }
}

fn device(label: &str, operation: &str, lost: bool) -> DeviceError {
    let fault = if lost { Fault::TimedOut(1000) } else { Fault::Refused(Errno::EIO) };
    DeviceError::new(label, operation, fault)
}

fn vmm(label: &str, operation: &str, _lost: bool) -> VmmError {
    VmmError::new(label, operation, Injected(INJECTED))
}

fn source(label: &str, operation: &str, _lost: bool) -> SourceError {
    SourceError::new(label, operation, Injected::because(INJECTED))
}

fn channel(_label: &str, _operation: &str, lost: bool) -> ChannelError {
    if lost {
        ChannelError::TimedOut(1000)
    } else {
        ChannelError::Io(std::io::Error::other(Injected(INJECTED)))
    }
}

fn store(_label: &str, operation: &str, _lost: bool) -> StoreError {
    StoreError { operation: operation.to_owned(), source: Injected::because(INJECTED) }
}

impl<T: Device + ?Sized> Device for Faulty<T> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn identity(&self) -> &Identity {
        self.inner.identity()
    }

    fn state(&mut self) -> Result<State, DeviceError> {
        self.around("state", device, T::state)
    }

    fn set_state(&mut self, target: State) -> Result<Opened, DeviceError> {
        let operation = format!("set state {target}");
        let opened = self.around(&operation, device, |inner| inner.set_state(target))?;
        Ok(match opened {
            Opened::None => Opened::None,
            Opened::Save(session) => Opened::Save(self.wrap(session)),
            Opened::Resume(session) => Opened::Resume(self.wrap(session)),
        })
    }

    fn stop_copy_bytes(&mut self) -> Result<Option<u64>, DeviceError> {
        self.around("stop copy bytes", device, T::stop_copy_bytes)
    }

    fn longest_transaction(&self) -> Option<u64> {
        self.inner.longest_transaction()
    }

    fn validated_at_start(&self) -> bool {
        self.inner.validated_at_start()
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.breaker.found(&self.label);
        self.around("reset", device, T::reset)
    }
}

impl<T: SaveSession + ?Sized> SaveSession for Faulty<T> {
    fn read(&mut self, into: &mut [u8]) -> Result<Read, DeviceError> {
        self.around("read", device, |inner| inner.read(into))
    }

    fn precopy_info(&mut self) -> Result<Option<PrecopyInfo>, DeviceError> {
        self.around("precopy info", device, T::precopy_info)
    }
}

impl<T: ResumeSession + ?Sized> ResumeSession for Faulty<T> {
    fn write(&mut self, data: &[u8], ends_transaction: bool) -> Result<(), DeviceError> {
        self.around("write", device, |inner| inner.write(data, ends_transaction))
    }
}

impl<T: DirtySource + ?Sized> DirtySource for Faulty<T> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn space(&self) -> Space {
        self.inner.space()
    }

    fn goes_with_mappings(&self) -> Option<PageSize> {
        self.inner.goes_with_mappings()
    }

    fn start(&mut self, ranges: &[IovaRange], page: PageSize) -> Result<(), SourceError> {
        self.around("start", source, |inner| inner.start(ranges, page))
    }

    fn collect(
        &mut self,
        range: IovaRange,
        found: &mut dyn FnMut(DirtyReport<'_>),
    ) -> Result<(), SourceError> {
        self.around("collect", source, |inner| inner.collect(range, found))
    }

    fn stop(&mut self) -> Result<(), SourceError> {
        self.around("stop", source, T::stop)
    }
}

impl<T: GuestMemory + ?Sized> GuestMemory for Faulty<T> {
    fn regions(&self) -> Vec<MemoryRegion> {
        self.inner.regions()
    }

    fn generation(&self) -> u64 {
        self.inner.generation()
    }

    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        let length = into.len() as u64;
        self.beside("read", || MemoryError { at, length }, |inner| inner.read(at, into))
    }

    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), MemoryError> {
        let length = from.len() as u64;
        self.beside("write", || MemoryError { at, length }, |inner| inner.write(at, from))
    }

    fn zero(&self, at: Gpa, length: u64) -> Result<(), MemoryError> {
        self.beside("zero", || MemoryError { at, length }, |inner| inner.zero(at, length))
    }
}

impl<T: Vcpus + ?Sized> Vcpus for Faulty<T> {
    fn pause(&mut self) -> Result<(), VmmError> {
        self.around("pause", vmm, T::pause)
    }

    fn resume(&mut self) -> Result<(), VmmError> {
        self.around("resume", vmm, T::resume)
    }

    fn paused(&self) -> bool {
        self.inner.paused()
    }
}

impl<T: ConfigSpace + ?Sized> ConfigSpace for Faulty<T> {
    fn save(&mut self) -> Result<Vec<u8>, VmmError> {
        self.around("save", vmm, T::save)
    }

    fn load(&mut self, saved: &[u8], stage: ConfigStage) -> Result<(), VmmError> {
        let operation = match stage {
            ConfigStage::Resuming => "load",
            ConfigStage::Power => "load power",
        };
        self.around(operation, vmm, |inner| inner.load(saved, stage))
    }
}

impl<T: Interrupts + ?Sized> Interrupts for Faulty<T> {
    fn bind(&mut self) -> Result<(), VmmError> {
        self.around("bind", vmm, T::bind)
    }

    fn unbind(&mut self) -> Result<(), VmmError> {
        self.around("unbind", vmm, T::unbind)
    }

    fn drain(&mut self) -> Result<Vec<u64>, VmmError> {
        self.around("drain", vmm, T::drain)
    }

    fn deliver(&mut self, pending: &[u64]) -> Result<(), VmmError> {
        self.around("deliver", vmm, |inner| inner.deliver(pending))
    }
}

impl<T: Section + ?Sized> Section for Faulty<T> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn version(&self) -> u32 {
        self.inner.version()
    }

    fn order(&self) -> Order {
        self.inner.order()
    }

    fn save(&mut self, into: &mut dyn std::io::Write) -> Result<(), VmmError> {
        self.around("save", vmm, |inner| inner.save(into))
    }

    fn load(
        &mut self,
        version: u32,
        from: &mut dyn std::io::Read,
    ) -> Result<(), VmmError> {
        self.around("load", vmm, |inner| inner.load(version, from))
    }
}

impl<T: Inspect + ?Sized> Inspect for Faulty<T> {
    fn stopped(&mut self) -> Result<(), VmmError> {
        self.around("stopped", vmm, T::stopped)
    }

    fn loaded(&mut self) -> Result<(), VmmError> {
        self.around("loaded", vmm, T::loaded)
    }
}

impl<T: DecisionStore + ?Sized> DecisionStore for Faulty<T> {
    fn id(&self) -> StoreId {
        self.inner.id()
    }

    fn record(
        &mut self,
        attempt: AttemptId,
        decision: Decision,
    ) -> Result<Decision, StoreError> {
        let operation = format!("record {decision}");
        self.around(&operation, store, |inner| inner.record(attempt, decision))
    }

    fn read(&self, attempt: AttemptId) -> Result<Option<Decision>, StoreError> {
        self.beside("read", || store("", "read", false), |inner| inner.read(attempt))
    }
}

impl<T: Channel + ?Sized> Channel for Faulty<T> {
    fn split(self: Box<Self>) -> Result<Halves, ChannelError> {
        let Faulty { label, breaker, inner } = *self;
        let (transmit, receive, close) = inner.split()?;
        Ok((
            Box::new(Faulty::new(&label, &breaker, transmit)),
            Box::new(Faulty::new(&label, &breaker, receive)),
            close,
        ))
    }
}

impl<T: Transmit + ?Sized> Transmit for Faulty<T> {
    fn send(&mut self, parts: &[IoSlice<'_>]) -> Result<(), ChannelError> {
        self.around("send", channel, |inner| inner.send(parts))
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.inner.set_deadline(deadline);
    }
}

impl<T: Archive + ?Sized> Archive for Faulty<T> {
    fn commit(&mut self) -> Result<(), ChannelError> {
        self.around("commit", channel, T::commit)
    }
}

impl<T: Receive + ?Sized> Receive for Faulty<T> {
    fn receive(&mut self, into: &mut [u8]) -> Result<(), ChannelError> {
        self.around("receive", channel, |inner| inner.receive(into))
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.inner.set_deadline(deadline);
    }
}

impl<T: Dial + ?Sized> Dial for Faulty<T> {
    fn dial(&mut self, deadline: Duration) -> Result<Box<dyn Channel>, ChannelError> {
        let opened = self.around("dial", channel, |inner| inner.dial(deadline))?;
        Ok(self.wrap(opened))
    }

    fn limit(&self) -> Option<u64> {
        self.inner.limit()
    }
}

impl<T: Accept + ?Sized> Accept for Faulty<T> {
    fn accept(&mut self, deadline: Duration) -> Result<Box<dyn Channel>, ChannelError> {
        let taken = self.around("accept", channel, |inner| inner.accept(deadline))?;
        Ok(self.wrap(taken))
    }
}

#[cfg(test)]
mod tests;
