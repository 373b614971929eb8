//! The guest leaves: one migration to another host, from the request to the report.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use engine::Machine;
use engine::drive::{Outgoing, Sent};
use engine::migration::{
    Cause, DeviceReport, Error, OnTimeout, Options, Outcome, Recovery, Report,
};
use link::RateLimit;
use port::{Channel, Dial};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::process::{Guest, Remember};
use super::vm::Vm;
use crate::report::{self, Extras};

/// How long it may take until the destination takes the connection.
const CONNECT: Duration = Duration::from_secs(10);

/// How often it is looked whether the migration ended without a word.
const LOOK: Duration = Duration::from_millis(200);

/// What is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    /// Where a destination listens.
    #[serde(deserialize_with = "place")]
    to: link::Uri,
    #[serde(default = "downtime_limit")]
    downtime_limit_ms: u64,
    #[serde(default = "max_time")]
    max_time_s: u64,
    #[serde(default)]
    on_timeout: Late,
    #[serde(default = "one")]
    channels: u16,
    /// No limit where it is missing.
    #[serde(default)]
    rate_bytes_per_s: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Late {
    #[default]
    Fail,
    Switch,
}

fn downtime_limit() -> u64 {
    300
}

fn max_time() -> u64 {
    300
}

fn one() -> u16 {
    1
}

pub(super) fn place<'de, D: Deserializer<'de>>(from: D) -> Result<link::Uri, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map_err(serde::de::Error::custom)
}

impl Request {
    fn options(&self) -> Options {
        Options {
            downtime_limit: Duration::from_millis(self.downtime_limit_ms),
            // A year is for ever, and can be added to any time.
            max_time: Duration::from_secs(self.max_time_s.min(365 * 86_400)),
            on_timeout: match self.on_timeout {
                Late::Fail => OnTimeout::Fail,
                Late::Switch => OnTimeout::Switch,
            },
            channels: self.channels.clamp(1, 64),
            ..Options::default()
        }
    }
}

/// Migrates the guest, and gives the report. `tell` hears of progress meanwhile; that it
/// is slow or gone does not hold the migration up.
pub(super) fn migrate(
    guest: &Arc<Guest>,
    request: &Request,
    tell: &dyn Fn(Value),
) -> Result<Value> {
    let attempt = store::new_attempt()?;
    let began = Instant::now();
    let (events, heard) = channel();
    let limit = RateLimit::new(request.rate_bytes_per_s);
    // Before the guest is lent: where there is no thread, it has lost nothing.
    let (lend, lent) = channel::<Outgoing>();
    let driver = std::thread::Builder::new()
        .name("migration".to_owned())
        .spawn(move || lent.recv().map(Outgoing::run))
        .context("cannot start a thread")?;
    let (outgoing, vm) = {
        // Before the guest is touched.
        let dialled = link::dial(&request.to, CONNECT);
        let (control, dialer): (Box<dyn Channel>, Box<dyn Dial>) = match dialled {
            Ok((control, dialer)) => {
                (Box::new(control), Box::new(dialer.limited(&limit)))
            }
            Err(error) => {
                let error = anyhow::Error::new(error);
                return nobody(guest, request, &error, began.elapsed());
            }
        };
        let remember = Remember {
            guest: Arc::clone(guest),
            tell: move |event| {
                let _ = events.send(event);
            },
        };
        let store = Box::new(guest.store.clone());
        let options = request.options();
        guest.depart(limit, move |machine| {
            let outgoing =
                Outgoing::new(machine, control, dialer, store, attempt, options)
                    .observer(Arc::new(remember));
            let handle = outgoing.handle();
            (outgoing, handle)
        })?
    };
    let _ = lend.send(outgoing);
    // A thread that is stuck in a device may keep the observer for ever.
    loop {
        match heard.recv_timeout(LOOK) {
            Ok(event) => tell(event),
            Err(RecvTimeoutError::Timeout) if !driver.is_finished() => {}
            Err(_) => break,
        }
    }
    let Ok(Ok(sent)) = driver.join() else {
        let text = "the engine panicked in a migration";
        guest.in_doubt(None, text.to_owned());
        bail!("{text}");
    };
    if sent.result.is_ok() {
        // The destination said that it runs: nobody will ask whether it may.
        guest.store.forget(attempt);
    }
    Ok(settle(guest, &vm, sent))
}

/// Takes back what was lent, and makes the report.
fn settle(guest: &Guest, vm: &Vm, sent: Sent) -> Value {
    let Sent { machine, store: _, report, result, pause_pending } = sent;
    let extras = extras(Some(vm));
    let error = match result {
        Ok(()) => {
            guest.moved(machine, None);
            return report::to_json(&report, &extras);
        }
        Err(error) => error,
    };
    let note = error.to_string();
    match error.recovery() {
        Recovery::Retry | Recovery::SourceResumed | Recovery::DeviceLost => {
            guest.back(vm, machine, &error, note, pause_pending);
        }
        Recovery::InDoubt => guest.in_doubt(Some(machine), note),
        Recovery::Moved => guest.moved(machine, Some(note)),
    }
    report::to_json(&report, &extras.failed(&error))
}

/// Nobody listens: the guest was not touched.
fn nobody(
    guest: &Guest,
    request: &Request,
    error: &anyhow::Error,
    took: Duration,
) -> Result<Value> {
    let text = format!("cannot reach {}: {error:#}", request.to);
    let cause = Cause::Refused(vec![text]);
    let error = Error { cause, recovery: Recovery::Retry, devices: Vec::new() };
    let report = guest.untouched(|machine| Report {
        devices: devices(machine),
        ..Report::nothing(Outcome::Refused, took)
    })?;
    Ok(report::to_json(&report, &extras(None).failed(&error)))
}

fn devices(machine: &Machine) -> Vec<DeviceReport> {
    let report = |slot: &engine::Slot| DeviceReport {
        name: slot.device.name().to_owned(),
        identity: slot.device.identity().clone(),
        bytes: 0,
        stop: Duration::ZERO,
        save: Duration::ZERO,
        load: Duration::ZERO,
        start: Duration::ZERO,
        validated_at_start: false,
    };
    machine.devices.iter().map(report).collect()
}

fn extras(vm: Option<&Vm>) -> Extras {
    let seen = vm.and_then(|vm| vm.changes.seen());
    Extras {
        source_pid: Some(std::process::id()),
        pages_changed: seen.map(|seen| seen.pages),
        blocks_changed: seen.map(|seen| seen.blocks),
        ..Extras::default()
    }
}
