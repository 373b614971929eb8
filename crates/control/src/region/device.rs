//! A device with a migration region, as the engine sees it.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use port::{Device, DeviceError, Fault, Identity, Opened};
use states::mapping::NoRoute;
use states::v2::State;

use super::buffers::{Inner, Protocol, Session, Shared, lock};
use super::loading::Resume;
use super::saving::{Save, Saving};
use super::{MigrationRegion, Trouble};
use crate::device::{Line, Withheld, fault};
use crate::transport::Transport;

/// A device that is driven by a migration region of one generation, over any transport.
pub(crate) struct RegionDevice<P: Protocol> {
    shared: Shared<P>,
    line: Line,
    identity: Identity,
    withheld: Vec<Withheld>,
}

impl<P: Protocol> RegionDevice<P> {
    pub(crate) fn new(
        region: MigrationRegion,
        protocol: P,
        identity: Identity,
        withheld: Vec<Withheld>,
    ) -> RegionDevice<P> {
        let line = Line::new(Arc::clone(region.transport()));
        let shared = Arc::new(Mutex::new(Inner::new(region, protocol)));
        RegionDevice { shared, line, identity, withheld }
    }

    pub(crate) fn transport(&self) -> &Arc<dyn Transport> {
        self.line.transport()
    }

    pub(crate) fn withheld(&self) -> &[Withheld] {
        &self.withheld
    }

    pub(crate) fn shared(&self) -> &Shared<P> {
        &self.shared
    }

    /// What is to be done before the device is told anything.
    fn prepare(inner: &mut Inner<P>, from: State, target: State) -> Result<(), Trouble> {
        if matches!(inner.session, Session::Saving(_)) && !from.is_saving() {
            // The guest reset it; what was read is void.
            inner.close();
        }
        if from == State::Resuming && target != State::Resuming {
            inner.finish_load()?;
        }
        if from.is_saving() && target.is_saving() {
            inner.keep()?;
        }
        if target.is_saving() || target == State::Resuming {
            inner.region.prepare()?;
        }
        Ok(())
    }

    /// What is to be done after the device arrived.
    fn arrive(
        &self,
        inner: &mut Inner<P>,
        from: State,
        target: State,
    ) -> Result<Opened, Trouble> {
        match target {
            State::PreCopy | State::StopCopy => {
                if from.is_saving()
                    && let Session::Saving(saving) = &mut inner.session
                {
                    saving.stopped();
                    return Ok(Opened::None);
                }
                let epoch = inner.open(Session::Saving(Saving::new(target)));
                let shared = Arc::clone(&self.shared);
                Ok(Opened::Save(Box::new(Save::new(shared, epoch))))
            }
            State::Resuming => {
                let epoch = inner.begin_load()?;
                let shared = Arc::clone(&self.shared);
                Ok(Opened::Resume(Box::new(Resume::new(shared, epoch))))
            }
            _ => {
                inner.close();
                Ok(Opened::None)
            }
        }
    }

    /// The one place that asks for a transition (law 6): its writes one after the other,
    /// and the state read again whatever became of them.
    fn transition(
        &self,
        inner: &mut Inner<P>,
        from: State,
        target: State,
    ) -> Result<Opened, DeviceError> {
        let asked = Instant::now();
        let answer = match Self::prepare(inner, from, target) {
            Ok(()) => {
                let ending = inner.ending();
                let Inner { region, protocol, .. } = inner;
                protocol.go(region, target, ending)
            }
            Err(trouble) => Err(trouble),
        };
        let micros = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
        let lost = matches!(
            &answer,
            Err(Trouble::Transport(error)) if fault(error).is_lost()
        );
        let now = if lost { None } else { inner.state().ok() };
        let after = now.map_or("unknown", State::name);
        let device = self.line.name();
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
        answer.map_err(|trouble| inner.error(&operation, trouble))?;
        if now != Some(target) {
            let fault = match now {
                Some(State::Running) if from != State::Running => Fault::SessionGone,
                _ => Fault::Broken("it said that it was done, and was not".to_owned()),
            };
            return Err(DeviceError::new(device, operation, fault));
        }
        self.arrive(inner, from, target)
            .map_err(|trouble| inner.error(&operation, trouble))
    }
}

impl<P: Protocol> std::fmt::Debug for RegionDevice<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegionDevice")
            .field("name", &self.line.name())
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

impl<P: Protocol> Device for RegionDevice<P> {
    fn name(&self) -> &str {
        self.line.name()
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn state(&mut self) -> Result<State, DeviceError> {
        let inner = &mut *lock(&self.shared);
        let state = inner.state();
        state.map_err(|trouble| inner.error("ask for its state", trouble))
    }

    fn set_state(&mut self, target: State) -> Result<Opened, DeviceError> {
        let inner = &mut *lock(&self.shared);
        let from = inner.state();
        let from = from.map_err(|trouble| inner.error("ask for its state", trouble))?;
        if from == target {
            return Ok(Opened::None);
        }
        if !self.identity.capabilities.supports(target) {
            let operation = format!("{from} to {target}");
            let refusal = NoRoute::NotOffered { state: target };
            return Err(inner.error(&operation, refusal.into()));
        }
        let answer = self.transition(inner, from, target);
        match &answer {
            // The guest reset it while it was read ahead: another session, from the
            // start.
            Err(error)
                if error.fault == Fault::SessionGone
                    && from.is_saving()
                    && target.is_saving() =>
            {
                inner.close();
                self.transition(inner, State::Running, target)
            }
            _ => answer,
        }
    }

    fn stop_copy_bytes(&mut self) -> Result<Option<u64>, DeviceError> {
        let inner = &mut *lock(&self.shared);
        match inner.left() {
            Ok(left) => Ok(left.map(|left| left.stopped)),
            Err(trouble) => {
                Err(inner.session_error("ask for the size of its data", trouble))
            }
        }
    }

    fn longest_transaction(&self) -> Option<u64> {
        let inner = &*lock(&self.shared);
        let room = inner.place.and_then(|place| inner.region.room(place).ok());
        Some(room.unwrap_or_else(|| inner.region.most()))
    }

    fn validated_at_start(&self) -> bool {
        lock(&self.shared).protocol.validated_at_start()
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        let inner = &mut *lock(&self.shared);
        inner.close();
        let asked = Instant::now();
        let answer = self.line.transport().reset();
        let micros = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
        tracing::debug!(device = self.line.name(), micros, ok = answer.is_ok(), "reset");
        answer.map_err(|error| self.line.error("reset", error))?;
        let Inner { region, protocol, .. } = inner;
        protocol.was_reset(region).map_err(|trouble| inner.error("reset", trouble))
    }
}
