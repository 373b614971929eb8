//! Performs the set's actions one at a time, for a VMM that keeps its own loop.

use port::{
    Device, DeviceError, Fault, Observer, Opened, PrecopyInfo, Read, ResumeSession,
    SaveSession,
};
use states::v2::State;
use thiserror::Error;

use super::step::{
    Action, DeviceId, Event, Failure, Goal, Member, P2pRefusal, Set, check_p2p, step,
};
use super::transition::{due, transition};

/// The devices of one VM, driven in order on the caller's thread.
///
/// The calls are those that the 2018 RFC gave its VMM, and may be made in this order:
///
/// ```text
///   source       setup  (pending iterate)*  quiesce  complete*  finish
///   destination  load   write*  loaded  start
///   pause        pause  start
///   any failure  rollback (a load: discard)
/// ```
///
/// A failed call leaves the set where it got to; [`DeviceSet::rollback`] brings every
/// device back to RUNNING from there. What was loaded by half must not run:
/// [`DeviceSet::discard`] resets it.
pub struct DeviceSet {
    entries: Vec<Entry>,
    set: Set,
    observer: Option<Box<dyn Observer>>,
}

struct Entry {
    device: Box<dyn Device>,
    save: Option<Box<dyn SaveSession>>,
    resume: Option<Box<dyn ResumeSession>>,
}

/// What a device still has to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Which device.
    pub device: DeviceId,
    /// What pre-copy has left, where the device is in pre-copy and tells.
    pub precopy: Option<PrecopyInfo>,
    /// Bytes that stop-copy would move, where the device tells.
    pub stop_copy_bytes: Option<u64>,
}

/// What [`DeviceSet::rollback`] could not save.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rollback {
    /// Devices that were reset: they run, and what they held is gone.
    pub reset: Vec<DeviceId>,
    /// Devices that do not answer.
    pub lost: Vec<DeviceId>,
}

/// The set could not do what it was asked.
#[derive(Debug, Error)]
pub enum SetError {
    /// It cannot be stopped in order.
    #[error(transparent)]
    PeerToPeer(#[from] P2pRefusal),
    /// One device failed at something.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Some devices did not arrive at the goal.
    #[error("{}", describe(.goal, .failures))]
    Stuck {
        /// Where the set should have gone.
        goal: Goal,
        /// Who did not get there.
        failures: Vec<(String, Failure)>,
    },
    /// There is no such session now.
    #[error("{device} has no {which} session open")]
    NoSession {
        /// The device.
        device: String,
        /// Save or resume.
        which: &'static str,
    },
}

fn describe(goal: &Goal, failures: &[(String, Failure)]) -> String {
    let each: Vec<String> = failures
        .iter()
        .map(|(name, failure)| {
            let state = failure.state.map_or("an unknown state", |s| s.name());
            format!("{name} stayed in {state}: {}", failure.reason)
        })
        .collect();
    format!("not all devices reached {goal:?}: {}", each.join("; "))
}

impl std::fmt::Debug for DeviceSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceSet").field("set", &self.set).finish_non_exhaustive()
    }
}

impl DeviceSet {
    /// Takes the devices in, asking each for its state.
    ///
    /// # Errors
    /// When a device does not answer, or when the set cannot be stopped in order (see
    /// [`check_p2p`]; `peer_to_peer` is whether a device may reach another's memory).
    pub fn new(
        devices: Vec<Box<dyn Device>>,
        peer_to_peer: bool,
    ) -> Result<DeviceSet, SetError> {
        check_p2p(devices.iter().map(|d| d.identity().capabilities), peer_to_peer)?;
        let mut devices = devices;
        let states: Result<Vec<State>, DeviceError> =
            devices.iter_mut().map(|device| device.state()).collect();
        Ok(DeviceSet::known(devices, &states?))
    }

    /// Devices whose states were just asked, and which may be stopped in order.
    pub(crate) fn known(devices: Vec<Box<dyn Device>>, states: &[State]) -> DeviceSet {
        let sets = devices.iter().map(|device| device.identity().capabilities);
        let members = sets.zip(states).map(|(set, state)| Member::new(set, *state));
        let members = members.collect();
        let entry = |device| Entry { device, save: None, resume: None };
        let entries = devices.into_iter().map(entry).collect();
        DeviceSet { entries, set: Set::new(members), observer: None }
    }

    /// Somebody who hears of every transition.
    #[must_use]
    pub fn with_observer(mut self, observer: Box<dyn Observer>) -> DeviceSet {
        self.observer = Some(observer);
        self
    }

    /// The devices as last heard.
    pub fn members(&self) -> &[Member] {
        self.set.members()
    }

    /// Gives the devices back. Sessions end with this call.
    pub fn into_devices(self) -> Vec<Box<dyn Device>> {
        self.entries.into_iter().map(|entry| entry.device).collect()
    }

    /// Begins to save: devices with PRE_COPY open their session while they run.
    ///
    /// # Errors
    /// When a device refuses.
    pub fn setup(&mut self) -> Result<(), SetError> {
        self.go(Goal::PreCopy)
    }

    /// What each device still has to give, asked now.
    ///
    /// # Errors
    /// When a device fails to answer.
    pub fn pending(&mut self) -> Result<Vec<Pending>, SetError> {
        let mut all = Vec::new();
        for (n, entry) in self.entries.iter_mut().enumerate() {
            let precopy = match &mut entry.save {
                Some(session) if self.set.members()[n].state == Some(State::PreCopy) => {
                    session.precopy_info()?
                }
                _ => None,
            };
            let stop_copy_bytes = entry.device.stop_copy_bytes()?;
            all.push(Pending { device: DeviceId(n), precopy, stop_copy_bytes });
        }
        Ok(all)
    }

    /// Reads the next bytes of one device's save session: in pre-copy what there is,
    /// after [`DeviceSet::quiesce`] the rest, until [`Read::End`].
    ///
    /// # Errors
    /// When the device fails, or has no save session.
    ///
    /// A device that claims to have read nothing, or more than there is room for, has
    /// broken its protocol.
    pub fn iterate(
        &mut self,
        device: DeviceId,
        into: &mut [u8],
    ) -> Result<Read, SetError> {
        let entry = &mut self.entries[device.0];
        let Some(session) = &mut entry.save else {
            let device = entry.device.name().to_owned();
            return Err(SetError::NoSession { device, which: "save" });
        };
        match session.read(into)? {
            Read::Data { bytes, .. } if bytes == 0 || bytes > into.len() => {
                let claim = format!("it claims to have read {bytes} bytes");
                let device = entry.device.name();
                Err(DeviceError::new(device, "read", Fault::Broken(claim)).into())
            }
            read => Ok(read),
        }
    }

    /// Stops all devices through the peer-to-peer barrier, into STOP_COPY.
    ///
    /// # Errors
    /// When a device does not stop.
    pub fn quiesce(&mut self) -> Result<(), SetError> {
        self.go(Goal::StopCopy)
    }

    /// Reads everything that one stopped device has left, through `buffer`.
    ///
    /// # Errors
    /// When the device fails, or `take` does.
    pub fn complete<E: From<SetError>>(
        &mut self,
        device: DeviceId,
        buffer: &mut [u8],
        mut take: impl FnMut(&[u8], bool) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Read::Data { bytes, ends_transaction } = self.iterate(device, buffer)? {
            take(&buffer[..bytes], ends_transaction)?;
        }
        Ok(())
    }

    /// After the other side runs: STOP_COPY to STOP, sessions closed.
    ///
    /// # Errors
    /// When a device refuses.
    pub fn finish(&mut self) -> Result<(), SetError> {
        self.go(Goal::Stop)
    }

    /// Stops all devices into STOP, as a pause does. Sessions end.
    ///
    /// # Errors
    /// When a device does not stop.
    pub fn pause(&mut self) -> Result<(), SetError> {
        self.go(Goal::Stop)
    }

    /// Opens every device's resume session.
    ///
    /// # Errors
    /// When a device refuses.
    pub fn load(&mut self) -> Result<(), SetError> {
        self.go(Goal::Resuming)
    }

    /// Gives one device its next bytes.
    ///
    /// # Errors
    /// When the device refuses them, or has no resume session.
    pub fn write(
        &mut self,
        device: DeviceId,
        data: &[u8],
        ends_transaction: bool,
    ) -> Result<(), SetError> {
        let entry = &mut self.entries[device.0];
        let Some(session) = &mut entry.resume else {
            let device = entry.device.name().to_owned();
            return Err(SetError::NoSession { device, which: "resume" });
        };
        Ok(session.write(data, ends_transaction)?)
    }

    /// Everything was written: RESUMING to STOP, where devices check what they got.
    ///
    /// # Errors
    /// When a device refuses its data.
    pub fn loaded(&mut self) -> Result<(), SetError> {
        self.go(Goal::Stop)
    }

    /// Lets all devices run, through the peer-to-peer barrier.
    ///
    /// # Errors
    /// When a device does not start.
    pub fn start(&mut self) -> Result<(), SetError> {
        self.go(Goal::Running)
    }

    /// Brings every device back to RUNNING, by legal arcs where they lead there and by
    /// reset where they do not. Never fails: what could not be saved is named.
    pub fn rollback(&mut self) -> Rollback {
        self.recover(Goal::Running)
    }

    /// The same, back to `goal`: [`Goal::Stop`] for devices that were stopped before.
    pub fn recover(&mut self, goal: Goal) -> Rollback {
        match self.run(Event::Recover(goal)) {
            Some(Action::Recovered { reset, lost }) => Rollback { reset, lost },
            _ => Rollback::default(),
        }
    }

    /// Resets every device, from wherever it is: what it holds is gone, and nothing of
    /// it ran. For a load that failed.
    pub fn discard(&mut self) -> Rollback {
        let mut told = Rollback::default();
        let mut members = self.set.members().to_vec();
        for (n, member) in members.iter_mut().enumerate() {
            let id = DeviceId(n);
            let done =
                matches!(self.perform(&Action::Reset(id)), Some(Event::Reset(_, true)));
            member.lost = !done;
            member.state = done.then_some(State::Running);
            if done { told.reset.push(id) } else { told.lost.push(id) }
        }
        self.set = Set::new(members);
        told
    }

    fn go(&mut self, goal: Goal) -> Result<(), SetError> {
        match self.run(Event::Go(goal)) {
            Some(Action::Failed(goal, failures)) => {
                let named = failures.into_iter().map(|failure| {
                    (self.entries[failure.device.0].device.name().to_owned(), failure)
                });
                Err(SetError::Stuck { goal, failures: named.collect() })
            }
            _ => Ok(()),
        }
    }

    /// Performs actions until the set is idle; the last one says how it ended.
    fn run(&mut self, event: Event) -> Option<Action> {
        let mut events = std::collections::VecDeque::from([event]);
        let mut end = None;
        while let Some(event) = events.pop_front() {
            let set = std::mem::replace(&mut self.set, Set::new(Vec::new()));
            let (set, actions) = step(set, event);
            self.set = set;
            for action in actions {
                match self.perform(&action) {
                    Some(event) => events.push_back(event),
                    None => end = Some(action),
                }
            }
        }
        end
    }

    fn perform(&mut self, action: &Action) -> Option<Event> {
        match *action {
            Action::Wave(_) => None,
            Action::Move(id, target) => Some(self.change(id, target)),
            Action::Read(id) => {
                let state = self.entries[id.0].device.state();
                Some(match state {
                    Err(error) if error.fault.is_lost() => {
                        Event::Lost(id, error.to_string())
                    }
                    state => Event::State(id, state.ok()),
                })
            }
            Action::Reset(id) => {
                let entry = &mut self.entries[id.0];
                // One owner a session, closed before its device is reset.
                entry.save = None;
                entry.resume = None;
                Some(Event::Reset(id, entry.device.reset().is_ok()))
            }
            _ => None,
        }
    }

    fn change(&mut self, id: DeviceId, target: State) -> Event {
        let before = self.set.members()[id.0].state;
        let entry = &mut self.entries[id.0];
        let moved =
            transition(entry.device.as_mut(), before, target, self.observer.as_deref());
        let opened = match moved.result {
            Ok(opened) => opened,
            Err(error) if error.fault.is_lost() => {
                return Event::Lost(id, error.to_string());
            }
            Err(error) => return Event::Refused(id, error.to_string()),
        };
        if let Err(error) = due(entry.device.name(), target, &opened, before) {
            return Event::Refused(id, error.to_string());
        }
        match opened {
            Opened::Save(session) => entry.save = Some(session),
            Opened::Resume(session) => entry.resume = Some(session),
            Opened::None => {}
        }
        if !target.is_saving() {
            entry.save = None;
        }
        if target != State::Resuming {
            entry.resume = None;
        }
        Event::Moved(id, target)
    }
}
