//! The one place where a device is asked to change its state.

use std::time::{Duration, Instant};

use port::{Device, DeviceError, Fault, Observer, Opened, Progress};
use states::v2::State;

/// How a transition went.
#[derive(Debug)]
pub(crate) struct Transition {
    /// What it opened, or why it failed.
    pub(crate) result: Result<Opened, DeviceError>,
    /// The state after it: the target on success, what the device itself said after a
    /// failure, `None` where it did not say.
    pub(crate) state: Option<State>,
    /// How long it took.
    pub(crate) took: Duration,
}

/// Asks `device` to go to `target`, traces it, and after a failure reads the state
/// again: a failed change of several arcs may stop on any state of its path, and one
/// that ran out of descriptors may even have arrived.
pub(crate) fn transition(
    device: &mut dyn Device,
    before: Option<State>,
    target: State,
    observer: Option<&dyn Observer>,
) -> Transition {
    let started = Instant::now();
    let result = device.set_state(target);
    let took = started.elapsed();
    let state = match &result {
        Ok(_) => Some(target),
        Err(error) if error.fault.is_lost() => None,
        Err(_) => device.state().ok(),
    };
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let shown = |state: Option<State>| state.map_or("unknown", State::name);
    match &result {
        Ok(_) => tracing::info!(
            device = device.name(),
            before = shown(before),
            after = shown(state),
            micros,
            "transition"
        ),
        Err(error) => tracing::warn!(
            device = device.name(),
            before = shown(before),
            after = shown(state),
            micros,
            target = %target,
            %error,
            "transition failed"
        ),
    }
    if let (Some(observer), Some(from)) = (observer, before) {
        observer.progress(&Progress::Transition {
            device: device.name().to_owned(),
            from,
            to: state,
            micros,
        });
    }
    Transition { result, state, took }
}

/// Checks that a transition opened the session that was due, and no other.
pub(crate) fn due(
    device: &str,
    target: State,
    opened: &Opened,
    before: Option<State>,
) -> Result<(), DeviceError> {
    let wrong = |what: &str| {
        Err(DeviceError::new(
            device,
            format!("change to {target}"),
            Fault::Broken(what.to_owned()),
        ))
    };
    let saving = |state: State| state.is_saving();
    let fresh = before.is_some_and(|from| from != target);
    match (target, opened) {
        (State::Resuming, Opened::None) if fresh => {
            wrong("it opened no session to write to")
        }
        (State::Resuming, Opened::Resume(_)) => Ok(()),
        (_, Opened::Resume(_)) => wrong("it opened a session to write to"),
        (_, Opened::Save(_)) if !saving(target) => {
            wrong("it opened a session to read from")
        }
        // PRE_COPY, PRE_COPY_P2P and STOP_COPY share one session.
        (_, Opened::None)
            if saving(target) && fresh && !before.is_some_and(State::is_saving) =>
        {
            wrong("it opened no session to read from")
        }
        _ => Ok(()),
    }
}
