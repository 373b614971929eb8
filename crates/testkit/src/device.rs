//! A migratable device in memory, which fails where a test says.

mod failure;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use abi::errno::Errno;
use dirty::IovaRange;
use port::{
    Bus, Device, DeviceError, Fault, Generation, Gpa, GuestMemory, Identity, Model,
    Opened, PciIds, PrecopyInfo, Read, ResumeSession, SaveSession,
};
use states::v2::{Capabilities, Session, State, plan, session};

use crate::stream::{Resuming, Saving, digest};
use crate::{FakeMemory, Side, SourceHandle, locked};

pub use failure::{Failure, When};

/// A device whose state is some bytes. In pre-copy they are read ahead by chunks of
/// [`CHUNK`](crate::CHUNK), in STOP_COPY the rest and a digest.
#[derive(Debug)]
pub struct FakeDevice {
    name: String,
    identity: Identity,
    inner: Shared,
}

type Shared = Arc<Mutex<Inner>>;

#[derive(Debug)]
struct Inner {
    name: String,
    side: Side,
    capabilities: Capabilities,
    state: State,
    contents: Vec<u8>,
    holds_guest: bool,
    lost: Option<Fault>,
    /// Changes with every session that begins or ends: a session of another number
    /// is dead.
    epoch: u64,
    saving: Option<Saving>,
    resuming: Option<Resuming>,
    failures: Vec<Failure>,
    costs: Vec<(State, Duration)>,
    estimate: Option<Option<u64>>,
    no_precopy_info: bool,
    transactions: bool,
    longest: Option<u64>,
    validated_at_start: bool,
    changes_a_read: usize,
    reads: usize,
    log: Option<SourceHandle>,
    drops_log: bool,
    touched_while_stopped: u64,
    worked_while_stopped: u64,
}

impl FakeDevice {
    /// A device that a guest has used: `contents` is what it holds.
    pub fn new(
        side: &Side,
        name: &str,
        capabilities: Capabilities,
        contents: Vec<u8>,
    ) -> FakeDevice {
        FakeDevice::holding(side, name, capabilities, contents, true)
    }

    fn holding(
        side: &Side,
        name: &str,
        capabilities: Capabilities,
        contents: Vec<u8>,
        holds_guest: bool,
    ) -> FakeDevice {
        let pci = PciIds {
            vendor: 0x1b36,
            device: 0xfa4e,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            class: 0x12_0000,
            revision: 1,
        };
        side.runs(name, holds_guest);
        FakeDevice {
            name: name.to_owned(),
            identity: Identity {
                bus: Bus::Pci(pci),
                generation: Generation::V2,
                capabilities,
                model: Some(Model { name: "fake".to_owned(), data_version: 1 }),
                layout: None,
            },
            inner: Arc::new(Mutex::new(Inner {
                name: name.to_owned(),
                side: side.clone(),
                capabilities,
                state: State::Running,
                contents,
                holds_guest,
                lost: None,
                epoch: 0,
                saving: None,
                resuming: None,
                failures: Vec::new(),
                costs: Vec::new(),
                estimate: None,
                no_precopy_info: false,
                transactions: false,
                longest: None,
                validated_at_start: false,
                changes_a_read: 0,
                reads: 0,
                log: None,
                drops_log: false,
                touched_while_stopped: 0,
                worked_while_stopped: 0,
            })),
        }
    }

    /// A device that no guest has used, of `size` bytes: one to load into.
    pub fn blank(
        side: &Side,
        name: &str,
        capabilities: Capabilities,
        size: usize,
    ) -> FakeDevice {
        FakeDevice::holding(side, name, capabilities, vec![0; size], false)
    }

    /// The same device that says it is another.
    #[must_use]
    pub fn with_identity(mut self, change: impl FnOnce(&mut Identity)) -> FakeDevice {
        change(&mut self.identity);
        self
    }

    /// The same device with an estimate of its own of the bytes in stop-copy.
    #[must_use]
    pub fn with_estimate(self, estimate: Option<u64>) -> FakeDevice {
        locked(&self.inner).estimate = Some(estimate);
        self
    }

    /// The same device without information on pre-copy.
    #[must_use]
    pub fn without_precopy_info(self) -> FakeDevice {
        locked(&self.inner).no_precopy_info = true;
        self
    }

    /// The same device with the transactions of the v1 protocol: each record is one,
    /// and must be one when it is written.
    #[must_use]
    pub fn with_transactions(self) -> FakeDevice {
        locked(&self.inner).transactions = true;
        self
    }

    /// The same device, which says that its longest transaction has so many bytes.
    #[must_use]
    pub fn with_longest_transaction(self, bytes: u64) -> FakeDevice {
        locked(&self.inner).longest = Some(bytes);
        self
    }

    /// The same device, which says that what it loads is validated only when it starts.
    #[must_use]
    pub fn validated_late(self) -> FakeDevice {
        locked(&self.inner).validated_at_start = true;
        self
    }

    /// The same device, which changes `bytes` bytes of its own after each read in
    /// pre-copy, at places that spread over it.
    #[must_use]
    pub fn busy(self, bytes: usize) -> FakeDevice {
        locked(&self.inner).changes_a_read = bytes;
        self
    }

    /// The same device, which takes `cost` on the side's clock to reach `state`.
    #[must_use]
    pub fn with_cost(self, state: State, cost: Duration) -> FakeDevice {
        locked(&self.inner).costs.push((state, cost));
        self
    }

    /// The same device with a log of its writes to guest memory. `dropped` says
    /// whether it forgets the log when it leaves STOP_COPY, as some drivers do.
    #[must_use]
    pub fn with_log(self, log: SourceHandle, dropped: bool) -> FakeDevice {
        let mut inner = locked(&self.inner);
        inner.log = Some(log);
        inner.drops_log = dropped;
        drop(inner);
        self
    }

    /// What looks at it and plays the guest.
    pub fn handle(&self) -> DeviceHandle {
        DeviceHandle(Arc::clone(&self.inner))
    }
}

/// Looks at a [`FakeDevice`], plays the guest that uses it, and scripts its failures.
#[derive(Clone, Debug)]
pub struct DeviceHandle(Shared);

impl DeviceHandle {
    /// The state it is in.
    pub fn state(&self) -> State {
        locked(&self.0).state
    }

    /// What it holds.
    pub fn contents(&self) -> Vec<u8> {
        locked(&self.0).contents.clone()
    }

    /// A digest of what it holds.
    pub fn digest(&self) -> u64 {
        digest(&locked(&self.0).contents)
    }

    /// Whether it holds the state of a guest.
    pub fn holds_guest(&self) -> bool {
        locked(&self.0).holds_guest
    }

    /// Whether a session is open.
    pub fn in_session(&self) -> bool {
        let inner = locked(&self.0);
        inner.saving.is_some() || inner.resuming.is_some()
    }

    /// How many accesses reached it in STOP, STOP_COPY or RESUMING.
    pub fn touched_while_stopped(&self) -> u64 {
        locked(&self.0).touched_while_stopped
    }

    /// How often it was told to work while it was stopped, and did not.
    pub fn worked_while_stopped(&self) -> u64 {
        locked(&self.0).worked_while_stopped
    }

    /// The guest changes what the device holds. A stopped device counts the access and
    /// does not change.
    pub fn work(&self, offset: usize, bytes: &[u8]) -> bool {
        locked(&self.0).work(offset, bytes)
    }

    /// The device writes to guest memory and logs it, if it runs.
    pub fn dma(&self, memory: &FakeMemory, at: Gpa, bytes: &[u8]) -> bool {
        let mut inner = locked(&self.0);
        if !inner.state.is_running() {
            inner.worked_while_stopped += 1;
            return false;
        }
        let written = memory.write(at, bytes).is_ok();
        if let (Some(log), Ok(range)) =
            (&inner.log, IovaRange::new(at.0, bytes.len() as u64))
        {
            log.mark(range);
        }
        written
    }

    /// The device writes into another, if its state lets it start that.
    pub fn write_to_peer(
        &self,
        peer: &DeviceHandle,
        offset: usize,
        bytes: &[u8],
    ) -> bool {
        // One such write at a time, so that two devices that write into each other do
        // not wait for each other.
        static WRITES: Mutex<()> = Mutex::new(());
        let _one = locked(&WRITES);
        // Held until the write is done: a change to a P2P state waits for what is under
        // way.
        let inner = locked(&self.0);
        let starts = inner.state.is_running() && !inner.state.is_p2p_quiescent();
        starts && peer.work(offset, bytes)
    }

    /// The guest resets the device: RUNNING, contents and sessions gone.
    pub fn guest_reset(&self) {
        let mut inner = locked(&self.0);
        inner.side.note(&inner.name, "reset by the guest");
        inner.contents.fill(0);
        inner.enter(State::Running);
    }

    /// New initial data appears (REINIT): all of it has to be read again.
    pub fn reinit(&self) {
        let inner = &mut *locked(&self.0);
        if let Some(saving) = &mut inner.saving {
            saving.begin_again(&inner.contents);
        }
    }

    /// Adds a failure to the script.
    pub fn fail(&self, failure: Failure) {
        locked(&self.0).failures.push(failure);
    }

    /// Whether every failure of the script has happened.
    pub fn has_failed(&self) -> bool {
        locked(&self.0).failures.iter().all(|failure| failure.times == 0)
    }
}

impl Inner {
    fn called(&mut self, when: When, operation: &str) -> Result<(), DeviceError> {
        if when != When::Reset
            && let Some(fault) = &self.lost
        {
            return Err(self.error(operation, fault.clone()));
        }
        let Some(failure) =
            self.failures.iter_mut().find(|one| one.when == when && one.times > 0)
        else {
            return Ok(());
        };
        if failure.skip > 0 {
            failure.skip -= 1;
            return Ok(());
        }
        failure.times -= 1;
        let Failure { fault, lands, .. } = failure.clone();
        if fault.is_lost() {
            self.lost = Some(fault.clone());
        }
        if let Some(state) = lands {
            self.enter(state);
        }
        self.side.note(&self.name, format_args!("{operation} failed"));
        Err(self.error(operation, fault))
    }

    fn error(&self, operation: &str, fault: Fault) -> DeviceError {
        DeviceError::new(self.name.clone(), operation, fault)
    }

    /// Goes to a state as an arc does, or as a failure that ends there.
    fn enter(&mut self, to: State) {
        let effect = session(self.state, to);
        if effect.opens() || effect.ends() {
            self.epoch += 1;
            self.saving = None;
            self.resuming = None;
        }
        if self.drops_log
            && self.state == State::StopCopy
            && to != State::StopCopy
            && let Some(log) = &self.log
        {
            log.lose();
        }
        match effect {
            Session::OpensSave => self.saving = Some(Saving::new(&self.contents)),
            Session::OpensResume => {
                self.contents.fill(0);
                self.holds_guest = false;
                self.resuming = Some(Resuming::default());
            }
            _ => {}
        }
        let cost = self.costs.iter().find(|(state, _)| *state == to);
        if let Some((_, cost)) = cost {
            self.side.clock().advance(*cost);
        }
        self.state = to;
        self.tell();
    }

    fn tell(&self) {
        self.side.runs(&self.name, self.holds_guest && !self.state.is_stopped());
    }

    fn work(&mut self, offset: usize, bytes: &[u8]) -> bool {
        if !self.state.is_running() {
            self.touched_while_stopped += 1;
            return false;
        }
        let Some(end) = offset.checked_add(bytes.len()) else { return false };
        let Some(place) = self.contents.get_mut(offset..end) else { return false };
        place.copy_from_slice(bytes);
        if let Some(saving) = &mut self.saving {
            saving.changed(offset, bytes.len());
        }
        true
    }

    fn alive(&self, epoch: u64, operation: &str) -> Result<(), DeviceError> {
        if epoch == self.epoch {
            Ok(())
        } else if self.state == State::Running {
            Err(self.error(operation, Fault::SessionGone))
        } else {
            Err(self.error(operation, Fault::Refused(Errno::ENODEV)))
        }
    }
}

impl Device for FakeDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn state(&mut self) -> Result<State, DeviceError> {
        let mut inner = locked(&self.inner);
        inner.called(When::State, "state")?;
        Ok(inner.state)
    }

    fn set_state(&mut self, target: State) -> Result<Opened, DeviceError> {
        let mut inner = locked(&self.inner);
        let operation = format!("set state {target}");
        inner.called(When::SetState(target), &operation)?;
        let from = inner.state;
        let refused = || Fault::Refused(Errno::EINVAL);
        let path = plan(inner.capabilities, from, target)
            .map_err(|_| inner.error(&operation, refused()))?;
        inner.side.note(&self.name, format_args!("{from} to {target}"));
        for (from, to) in path.arcs() {
            if from == State::Resuming {
                let whole = inner.resuming.as_ref();
                if !whole.is_some_and(|one| one.complete(&inner.contents)) {
                    return Err(inner.error(&operation, refused()));
                }
            }
            inner.enter(to);
        }
        let session = Link { inner: Arc::clone(&self.inner), epoch: inner.epoch };
        Ok(match (path.opens_session(), target) {
            (false, _) => Opened::None,
            (true, State::Resuming) => Opened::Resume(Box::new(session)),
            (true, _) => Opened::Save(Box::new(session)),
        })
    }

    fn stop_copy_bytes(&mut self) -> Result<Option<u64>, DeviceError> {
        let mut inner = locked(&self.inner);
        inner.called(When::StopCopyBytes, "stop copy bytes")?;
        if let Some(estimate) = inner.estimate {
            return Ok(estimate);
        }
        let inner = &*inner;
        Ok(Some(match &inner.saving {
            Some(saving) => saving.rest(&inner.contents),
            None => Saving::new(&inner.contents).rest(&inner.contents),
        }))
    }

    fn longest_transaction(&self) -> Option<u64> {
        locked(&self.inner).longest
    }

    fn validated_at_start(&self) -> bool {
        locked(&self.inner).validated_at_start
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        let mut inner = locked(&self.inner);
        inner.called(When::Reset, "reset")?;
        inner.side.note(&self.name, "reset");
        inner.lost = None;
        inner.contents.fill(0);
        // What it held is gone before it runs again.
        inner.holds_guest = false;
        inner.enter(State::Running);
        if let Some(log) = &inner.log {
            log.lose();
        }
        Ok(())
    }
}

/// A session, as long as its device has the same epoch.
struct Link {
    inner: Shared,
    epoch: u64,
}

impl SaveSession for Link {
    fn read(&mut self, into: &mut [u8]) -> Result<Read, DeviceError> {
        let inner = &mut *locked(&self.inner);
        inner.called(When::Read, "read")?;
        inner.alive(self.epoch, "read")?;
        let last = inner.state == State::StopCopy;
        let Some(saving) = &mut inner.saving else {
            return Err(inner.error("read", Fault::Refused(Errno::EINVAL)));
        };
        let (bytes, ended) = saving.read(&inner.contents, last, into);
        if bytes == 0 {
            return Ok(Read::End);
        }
        if !last && inner.changes_a_read > 0 && !inner.contents.is_empty() {
            inner.reads += 1;
            let size = inner.contents.len();
            // A stride that is prime to most sizes, so that all of it is reached.
            for n in 0..inner.changes_a_read {
                let at = (inner.reads * 7919 + n * 104_729) % size;
                let byte = inner.contents[at].wrapping_add(1);
                inner.work(at, &[byte]);
            }
        }
        Ok(Read::Data { bytes, ends_transaction: inner.transactions && ended })
    }

    fn precopy_info(&mut self) -> Result<Option<PrecopyInfo>, DeviceError> {
        let inner = &mut *locked(&self.inner);
        inner.called(When::PrecopyInfo, "precopy info")?;
        inner.alive(self.epoch, "precopy info")?;
        let ahead = matches!(inner.state, State::PreCopy | State::PreCopyP2p);
        let Some(saving) = inner.saving.as_mut().filter(|_| ahead) else {
            return Err(inner.error("precopy info", Fault::Refused(Errno::EINVAL)));
        };
        if inner.no_precopy_info {
            return Ok(None);
        }
        let (initial_bytes, dirty_bytes, reinit) = saving.left(&inner.contents);
        Ok(Some(PrecopyInfo { initial_bytes, dirty_bytes, reinit }))
    }
}

impl ResumeSession for Link {
    fn write(&mut self, data: &[u8], ends_transaction: bool) -> Result<(), DeviceError> {
        let inner = &mut *locked(&self.inner);
        inner.called(When::Write, "write")?;
        inner.alive(self.epoch, "write")?;
        let Some(resuming) = &mut inner.resuming else {
            return Err(inner.error("write", Fault::Refused(Errno::EINVAL)));
        };
        inner.holds_guest = true;
        let unfit = resuming.write(&mut inner.contents, data).is_err();
        let whole = resuming.between_records();
        inner.side.note(&inner.name, "takes data");
        if unfit || (inner.transactions && ends_transaction != whole) {
            return Err(inner.error("write", Fault::Refused(Errno::EINVAL)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
