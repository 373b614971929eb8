//! A device of the v2 generation (Linux 5.18 and later, vfio-user since 2023).

use std::sync::Arc;
use std::time::Instant;

use abi::errno::Errno;
use abi::feature::Feature;
use abi::v2::{DeviceMigState, DeviceState, MigDataSize};
use port::{Device, DeviceError, Fault, Identity, Opened};
use states::v2::{Capabilities, Path, State, plan};
use zerocopy::FromBytes;

use crate::probe::says_absent;
use crate::session::{Resume, Save};
use crate::transport::{DataSession, Direction, Transport, TransportError};

/// A device that is driven by `VFIO_DEVICE_FEATURE`, over any transport.
pub struct V2Device {
    line: Line,
    identity: Identity,
    /// What the device has, used or not: it may be found in any of these states.
    has: Capabilities,
    withheld: Vec<Withheld>,
    reinit: bool,
}

/// Something that a device offers and that is not used, with the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Withheld {
    /// What, as the uAPI calls it.
    pub what: &'static str,
    /// Why.
    pub why: &'static str,
}

impl V2Device {
    pub(crate) fn new(
        transport: Arc<dyn Transport>,
        identity: Identity,
        has: Capabilities,
        withheld: Vec<Withheld>,
        reinit: bool,
    ) -> V2Device {
        V2Device { line: Line { transport }, identity, has, withheld, reinit }
    }

    /// What the device offers and its [`Identity`] leaves out, with the reasons: for
    /// whoever has to explain what a migration will not do.
    pub fn withheld(&self) -> &[Withheld] {
        &self.withheld
    }

    /// The way to the device.
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.line.transport
    }

    /// The one place that asks a device for a transition (law 6): one request, which
    /// the device walks arc by arc, and the state read again whatever it answered.
    fn transition(&mut self, path: &Path, from: State) -> Result<Opened, DeviceError> {
        let Some(target) = path.iter().last() else { return Ok(Opened::None) };
        let due = path.opens_session().then_some(match target {
            State::Resuming => Direction::Resume,
            _ => Direction::Save,
        });
        let asked = Instant::now();
        let number = DeviceState(target.number());
        let answer = self.line.transport.set_migration_state(number, due);
        let micros = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
        let lost = answer.as_ref().is_err_and(|error| fault(error).is_lost());
        // A lost device would only be waited for once more.
        let now = if lost { None } else { self.line.state().ok() };
        let device = self.line.transport.name();
        let after = now.map_or("unknown", State::name);
        let ok = answer.is_ok() && now == Some(target);
        tracing::debug!(
            device,
            before = from.name(),
            target = target.name(),
            after,
            micros,
            ok,
            "transition"
        );
        let operation = format!("{from} to {target}, now {after}");
        let session = answer.map_err(|error| self.line.error(&operation, error))?;
        if now != Some(target) {
            // A reset may race a request that succeeded.
            let fault = match now {
                Some(State::Running) => Fault::SessionGone,
                _ => Fault::Broken("it said that it was done, and was not".to_owned()),
            };
            return Err(DeviceError::new(device, operation, fault));
        }
        match (due, session) {
            (None, None) => Ok(Opened::None),
            (None, Some(unexpected)) => {
                tracing::warn!(
                    device,
                    target = target.name(),
                    "a session nobody asked for"
                );
                drop(unexpected);
                Ok(Opened::None)
            }
            (Some(_), None) => {
                let what = "it is there, and its data session was lost".to_owned();
                Err(DeviceError::new(device, operation, Fault::Broken(what)))
            }
            (Some(direction), Some(session)) => Ok(self.opened(direction, session)),
        }
    }

    fn opened(&self, direction: Direction, session: Box<dyn DataSession>) -> Opened {
        let line = self.line.clone();
        match direction {
            Direction::Save => {
                Opened::Save(Box::new(Save::new(line, session, self.reinit)))
            }
            Direction::Resume => Opened::Resume(Box::new(Resume::new(line, session))),
        }
    }
}

impl std::fmt::Debug for V2Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("V2Device")
            .field("name", &self.line.transport.name())
            .field("identity", &self.identity)
            .field("reinit", &self.reinit)
            .finish_non_exhaustive()
    }
}

impl Device for V2Device {
    fn name(&self) -> &str {
        self.line.transport.name()
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn state(&mut self) -> Result<State, DeviceError> {
        self.line.state()
    }

    fn set_state(&mut self, target: State) -> Result<Opened, DeviceError> {
        let from = self.line.state()?;
        // It may be found in a state that is not used, and is led out of it.
        let used = self.identity.capabilities;
        let known = if used.supports(target) { self.has } else { used };
        let path = plan(known, from, target).map_err(|refusal| DeviceError {
            source: Some(Box::new(refusal)),
            ..DeviceError::new(
                self.name(),
                format!("{from} to {target}"),
                Fault::Refused(Errno::EINVAL),
            )
        })?;
        self.transition(&path, from)
    }

    fn stop_copy_bytes(&mut self) -> Result<Option<u64>, DeviceError> {
        const OPERATION: &str = "ask for the size of its data";
        let feature = Feature::MIG_DATA_SIZE;
        let answer =
            self.line.transport.feature_get(feature, &[], size_of::<MigDataSize>());
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if error.errno().is_some_and(says_absent) => return Ok(None),
            Err(error) => return Err(self.line.error(OPERATION, error)),
        };
        let size = MigDataSize::read_from_bytes(&answer).map_err(|_| {
            self.line.broken(OPERATION, format!("{} bytes instead of 8", answer.len()))
        })?;
        // xe of Linux 7.3 hands out a negative errno this way.
        if i64::try_from(size.stop_copy_length).is_err() {
            let bytes = size.stop_copy_length;
            tracing::warn!(device = self.name(), bytes, "no such size can be");
            return Ok(None);
        }
        Ok(Some(size.stop_copy_length))
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        let before = self.line.state().ok();
        let asked = Instant::now();
        let mut answer = self.line.transport.reset();
        if let (Err(TransportError::Errno { .. }), Some(State::Stop | State::StopCopy)) =
            (&answer, before)
        {
            // libvfio-user resets no stopped device. It does in RESUMING, which runs
            // nothing, whatever the device still holds; the way by RUNNING would.
            tracing::debug!(device = self.name(), "no reset in STOP, so in RESUMING");
            drop(self.set_state(State::Resuming)?);
            answer = self.line.transport.reset();
        }
        let micros = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
        let name = |state: Option<State>| state.map_or("unknown", State::name);
        let lost = answer.as_ref().is_err_and(|error| fault(error).is_lost());
        let after = if lost { None } else { self.line.state().ok() };
        tracing::debug!(
            device = self.name(),
            before = name(before),
            after = name(after),
            micros,
            ok = answer.is_ok(),
            "reset"
        );
        answer.map_err(|error| self.line.error("reset", error))?;
        match after {
            Some(State::Running) => Ok(()),
            // libvfio-user since May 2026 resets the device and leaves the state as it
            // is. What the device held is gone, so RUNNING runs nothing of a guest's.
            Some(other) => match self.set_state(State::Running)? {
                Opened::None => Ok(()),
                opened => {
                    let what = format!("from {other}, {opened:?} session");
                    Err(self.line.broken("reset", what))
                }
            },
            None => Err(self.line.broken("reset", "its state is unknown".to_owned())),
        }
    }
}

/// The way to a device, for the device and its sessions alike: a session keeps its
/// device open, since some kernels fail when a data descriptor outlives it.
#[derive(Clone)]
pub(crate) struct Line {
    transport: Arc<dyn Transport>,
}

impl Line {
    pub(crate) fn new(transport: Arc<dyn Transport>) -> Line {
        Line { transport }
    }

    pub(crate) fn name(&self) -> &str {
        self.transport.name()
    }

    pub(crate) fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    /// The state, from the device.
    pub(crate) fn state(&self) -> Result<State, DeviceError> {
        const OPERATION: &str = "ask for its state";
        let feature = Feature::MIG_DEVICE_STATE;
        let answer = self
            .transport
            .feature_get(feature, &[], size_of::<DeviceMigState>())
            .map_err(|error| self.error(OPERATION, error))?;
        let state = DeviceMigState::read_from_bytes(&answer).map_err(|_| {
            self.broken(OPERATION, format!("{} bytes instead of 8", answer.len()))
        })?;
        State::from_number(state.device_state).ok_or_else(|| {
            let number = state.device_state;
            self.broken(OPERATION, format!("{number} is no state that is known"))
        })
    }

    /// An error of a session: ENODEV and its like mean that the guest reset the
    /// device, if it is running again.
    pub(crate) fn session_error(
        &self,
        operation: &str,
        error: TransportError,
    ) -> DeviceError {
        if error.errno().is_some() && matches!(self.state(), Ok(State::Running)) {
            return self.session_gone(operation);
        }
        self.error(operation, error)
    }

    pub(crate) fn session_gone(&self, operation: &str) -> DeviceError {
        DeviceError::new(self.transport.name(), operation, Fault::SessionGone)
    }

    pub(crate) fn error(&self, operation: &str, error: TransportError) -> DeviceError {
        let fault = fault(&error);
        let source = match error {
            TransportError::Gone { source: Some(source), .. } => Some(source.into()),
            // The fault says all there is to say.
            _ => None,
        };
        let device = self.transport.name().to_owned();
        DeviceError { device, operation: operation.to_owned(), fault, source }
    }

    pub(crate) fn broken(&self, operation: &str, what: String) -> DeviceError {
        DeviceError::new(self.transport.name(), operation, Fault::Broken(what))
    }
}

pub(crate) fn fault(error: &TransportError) -> Fault {
    match error {
        TransportError::Errno { errno, .. } => Fault::Refused(*errno),
        TransportError::Broken { what, .. } => Fault::Broken(what.clone()),
        TransportError::TimedOut { millis, .. } => Fault::TimedOut(*millis),
        TransportError::Gone { .. } => Fault::Gone,
    }
}
