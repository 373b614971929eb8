//! One device: a thread that owns it and its sessions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use port::{
    Device, DeviceError, Fault, Observer, Opened, Read, ResumeSession, SaveSession,
};
use states::v2::State;
use wire::Crc;
use wire::device::{DeviceBegin, DeviceData, DeviceEnd, Phase};
use wire::message::DeviceIdentity;

use super::lane::Lane;
use super::tracker::chain;
use crate::devices::transition::{due, transition};
use crate::devices::{self, DeviceId};
use crate::migration::Cause;
use crate::migration::source::DevicePending;

/// What a device's thread does. Every command but `Lane` is answered.
pub(super) enum Command {
    /// Its data connection is open (source).
    Lane(Arc<Vec<Lane>>),
    /// Change the state.
    Move(State),
    /// Tell the state.
    Read,
    /// Reset.
    Reset,
    /// Give what pre-copy has now.
    Iterate,
    /// Tell what is left.
    Pending,
    /// Give everything that stop-copy has.
    Drain,
    /// Reset and open a new resume session: the source starts this device over
    /// (destination).
    Restart(Sender<Result<(), String>>),
}

/// What a device's thread says.
#[derive(Debug)]
pub(super) enum Answer {
    /// About its state; how long a transition took.
    Set(devices::Event, Duration),
    /// It gave what it had: bytes; the guest may have reset it.
    Iterated { bytes: u64, reset: bool },
    /// What is left.
    Pending(DevicePending),
    /// It gave the rest.
    Drained,
    /// It failed at something that is not a transition.
    Failed(Cause),
}

/// What was measured of a device, shared with the report.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// Bytes of its data.
    pub(super) bytes: AtomicU64,
    /// Nanoseconds in transitions to a stopped state.
    pub(super) stop: AtomicU64,
    /// Nanoseconds for the stop-copy data.
    pub(super) save: AtomicU64,
    /// What the device says of its transactions and its validation, heard after each
    /// transition: it may know that only once a session is open.
    pub(super) says: Mutex<Says>,
}

/// What a device says of how it takes its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Says {
    /// See [`Device::longest_transaction`].
    pub(super) longest: Option<u64>,
    /// See [`Device::validated_at_start`].
    pub(super) validated_at_start: bool,
}

impl Measured {
    /// What the device said last.
    pub(super) fn says(&self) -> Says {
        *self.says.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The resume session of a device, written to by a data connection's thread.
pub(super) type Resume = Arc<Mutex<Option<Box<dyn ResumeSession>>>>;

/// A device and everything its thread needs.
pub(super) struct Driven {
    pub(super) id: DeviceId,
    pub(super) device: Box<dyn Device>,
    pub(super) identity: DeviceIdentity,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) measured: Arc<Measured>,
    pub(super) resume: Resume,
    pub(super) state: Option<State>,
    pub(super) save: Option<Saving>,
    pub(super) attempts: u32,
}

/// A save session under way.
pub(super) struct Saving {
    session: Box<dyn SaveSession>,
    attempt: u32,
    begun: bool,
    ended: bool,
    bytes: u64,
    crc: Crc,
}

/// How much of a device's data is read at a time, and goes into one frame.
const CHUNK: usize = 1 << 20;

/// The most that one device may give in STOP_COPY: one that never ends would keep its
/// guest stopped for ever.
const MOST_BYTES: u64 = 1 << 40;

/// The most that one round takes from a device, whatever it says that it has.
const ROUND_BYTES: u64 = 1 << 30;

impl Driven {
    /// Works until the commands end; gives the device back.
    pub(super) fn work<E>(
        mut self,
        commands: &Receiver<Command>,
        out: &Sender<E>,
        wrap: impl Fn(DeviceId, Answer) -> E,
    ) -> Box<dyn Device> {
        let mut lanes: Option<Arc<Vec<Lane>>> = None;
        let mut buffer = Vec::new();
        for command in commands {
            let answer = match command {
                Command::Lane(open) => {
                    lanes = Some(open);
                    continue;
                }
                Command::Restart(reply) => {
                    let _ = reply.send(self.restart());
                    continue;
                }
                Command::Move(target) => self.change(target),
                Command::Read => self.read_state(),
                Command::Reset => self.reset(),
                Command::Pending => self.pending(),
                Command::Iterate => match &lanes {
                    Some(lanes) => self.iterate(self.lane(lanes), &mut buffer),
                    None => Answer::Failed(unconnected()),
                },
                Command::Drain => match &lanes {
                    Some(lanes) => self.drain(self.lane(lanes), &mut buffer),
                    None => Answer::Failed(unconnected()),
                },
            };
            let _ = out.send(wrap(self.id, answer));
        }
        // One owner a session, closed before its device goes anywhere else.
        self.close();
        self.device
    }

    fn lane<'a>(&self, lanes: &'a [Lane]) -> &'a Lane {
        &lanes[self.id.0 % lanes.len()]
    }

    fn change(&mut self, target: State) -> Answer {
        let before = self.state;
        let moved = transition(&mut *self.device, before, target, Some(&*self.observer));
        self.state = moved.state;
        if target.is_stopped() || target.is_p2p_quiescent() {
            add(&self.measured.stop, moved.took);
        }
        let opened = match moved.result {
            Ok(opened) => opened,
            Err(error) if error.fault.is_lost() => {
                return Answer::Set(
                    devices::Event::Lost(self.id, chain(&error)),
                    moved.took,
                );
            }
            Err(error) => {
                return Answer::Set(
                    devices::Event::Refused(self.id, chain(&error)),
                    moved.took,
                );
            }
        };
        if let Err(error) = due(self.device.name(), target, &opened, before) {
            let event = devices::Event::Refused(self.id, chain(&error));
            return Answer::Set(event, moved.took);
        }
        if !target.is_saving() {
            self.save = None;
        }
        if target != State::Resuming {
            self.close_resume();
        }
        match opened {
            Opened::Save(session) => {
                self.save = Some(Saving {
                    session,
                    attempt: self.attempts,
                    begun: false,
                    ended: false,
                    bytes: 0,
                    crc: Crc::new(),
                });
                self.attempts += 1;
            }
            Opened::Resume(session) => {
                *self.resume.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(session);
            }
            Opened::None => {}
        }
        *self.measured.says.lock().unwrap_or_else(PoisonError::into_inner) = Says {
            longest: self.device.longest_transaction(),
            validated_at_start: self.device.validated_at_start(),
        };
        Answer::Set(devices::Event::Moved(self.id, target), moved.took)
    }

    fn read_state(&mut self) -> Answer {
        let event = match self.device.state() {
            Err(error) if error.fault.is_lost() => {
                devices::Event::Lost(self.id, chain(&error))
            }
            state => {
                self.state = state.ok();
                devices::Event::State(self.id, self.state)
            }
        };
        Answer::Set(event, Duration::ZERO)
    }

    fn reset(&mut self) -> Answer {
        self.close();
        let done = match self.device.reset() {
            Ok(()) => true,
            Err(error) => {
                let device = self.device.name();
                tracing::warn!(device, error = chain(&error), "the reset failed");
                false
            }
        };
        self.state = done.then_some(State::Running);
        Answer::Set(devices::Event::Reset(self.id, done), Duration::ZERO)
    }

    fn restart(&mut self) -> Result<(), String> {
        if let Answer::Set(devices::Event::Reset(_, false), _) = self.reset() {
            return Err(format!("{} could not be reset", self.device.name()));
        }
        match self.change(State::Resuming) {
            Answer::Set(devices::Event::Moved(..), _) => Ok(()),
            Answer::Set(
                devices::Event::Refused(_, text) | devices::Event::Lost(_, text),
                _,
            ) => Err(text),
            other => Err(format!("{other:?}")),
        }
    }

    fn pending(&mut self) -> Answer {
        let in_precopy = matches!(self.state, Some(State::PreCopy | State::PreCopyP2p));
        let mut left = DevicePending::default();
        if let Some(saving) = self.save.as_mut().filter(|_| in_precopy) {
            left.ended = saving.ended;
            match saving.session.precopy_info() {
                Ok(info) => left.precopy = info,
                // The next round starts this device over.
                Err(error) if error.fault == Fault::SessionGone => left.reset = true,
                Err(error) => return Answer::Failed(Cause::Device(chain(&error))),
            }
        }
        match self.device.stop_copy_bytes() {
            Ok(bytes) => left.stop_copy_bytes = bytes,
            Err(error) => return Answer::Failed(Cause::Device(chain(&error))),
        }
        Answer::Pending(left)
    }

    fn iterate(&mut self, lane: &Lane, buffer: &mut Vec<u8>) -> Answer {
        let nothing = Answer::Iterated { bytes: 0, reset: false };
        if !matches!(self.state, Some(State::PreCopy | State::PreCopyP2p)) {
            return nothing;
        }
        let Some(saving) = &mut self.save else { return nothing };
        // Asking also makes some drivers produce more. A device that dirties its data
        // as fast as it is read must not keep the round from ending.
        let most = match saving.session.precopy_info() {
            Ok(Some(info)) => info.initial_bytes.saturating_add(info.dirty_bytes),
            Ok(None) => ROUND_BYTES,
            Err(error) => return self.gone(error, 0),
        };
        self.copy(lane, buffer, Phase::PreCopy, most.clamp(CHUNK as u64, ROUND_BYTES))
    }

    fn drain(&mut self, lane: &Lane, buffer: &mut Vec<u8>) -> Answer {
        let started = Instant::now();
        let answer = match self.copy(lane, buffer, Phase::StopCopy, MOST_BYTES) {
            Answer::Iterated { bytes, .. } if bytes >= MOST_BYTES => {
                let name = self.device.name();
                Answer::Failed(Cause::Device(format!(
                    "{name} gave {bytes} bytes and did not come to an end"
                )))
            }
            Answer::Iterated { reset: false, .. } => match self.complete(lane) {
                Ok(()) => Answer::Drained,
                Err(cause) => Answer::Failed(cause),
            },
            Answer::Iterated { .. } => Answer::Failed(Cause::Device(format!(
                "{} was reset while it was stopped",
                self.device.name()
            ))),
            other => other,
        };
        add(&self.measured.save, started.elapsed());
        answer
    }

    /// Moves up to about `most` bytes from the session to the connection.
    fn copy(
        &mut self,
        lane: &Lane,
        buffer: &mut Vec<u8>,
        phase: Phase,
        most: u64,
    ) -> Answer {
        buffer.resize(CHUNK, 0);
        let mut bytes = 0;
        loop {
            let Some(saving) = &mut self.save else {
                let name = self.device.name();
                return Answer::Failed(Cause::Device(format!("{name} has no session")));
            };
            if !saving.begun {
                let begin = DeviceBegin {
                    device: index(self.id),
                    attempt: saving.attempt,
                    identity: self.identity.clone(),
                    expected_bytes: None,
                };
                if let Err(error) = lane.device_begin(&begin) {
                    return Answer::Failed(Cause::Channel(chain(&error)));
                }
                saving.begun = true;
            }
            if bytes >= most {
                return Answer::Iterated { bytes, reset: false };
            }
            let (count, ends_transaction) = match saving.session.read(buffer) {
                Ok(Read::Data { bytes, ends_transaction })
                    if bytes > 0 && bytes <= CHUNK =>
                {
                    (bytes, ends_transaction)
                }
                Ok(Read::Data { bytes, .. }) => {
                    let name = self.device.name();
                    return Answer::Failed(Cause::Device(format!(
                        "{name} claims to have read {bytes} bytes"
                    )));
                }
                Ok(Read::End) => {
                    saving.ended = true;
                    return Answer::Iterated { bytes, reset: false };
                }
                Err(error) => return self.gone(error, bytes),
            };
            let data = DeviceData {
                device: index(self.id),
                phase,
                offset: saving.bytes,
                ends_transaction,
                bytes: &buffer[..count],
            };
            if let Err(error) = lane.device_data(&data) {
                return Answer::Failed(Cause::Channel(chain(&error)));
            }
            saving.crc.add(data.bytes);
            saving.bytes += count as u64;
            bytes += count as u64;
            self.measured.bytes.fetch_add(count as u64, Ordering::Relaxed);
        }
    }

    fn gone(&mut self, error: DeviceError, bytes: u64) -> Answer {
        if error.fault == Fault::SessionGone {
            self.save = None;
            self.state = Some(State::Running);
            return Answer::Iterated { bytes, reset: true };
        }
        Answer::Failed(Cause::Device(chain(&error)))
    }

    fn complete(&mut self, lane: &Lane) -> Result<(), Cause> {
        let Some(saving) = &self.save else {
            let name = self.device.name();
            return Err(Cause::Device(format!("{name} has no session")));
        };
        let end = DeviceEnd {
            device: index(self.id),
            length: saving.bytes,
            crc: saving.crc.value(),
        };
        lane.device_end(&end).map_err(|error| Cause::Channel(chain(&error)))
    }

    fn close(&mut self) {
        self.save = None;
        self.close_resume();
    }

    fn close_resume(&self) {
        *self.resume.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn unconnected() -> Cause {
    Cause::Protocol("device data without a data connection".into())
}

fn index(id: DeviceId) -> u32 {
    u32::try_from(id.0).unwrap_or(u32::MAX)
}

fn add(sum: &AtomicU64, took: Duration) {
    let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    sum.fetch_add(nanos, Ordering::Relaxed);
}
