//! `vfio-migrate send`: devices without a guest go to another host.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use engine::Machine;
use engine::drive::Outgoing;
use engine::migration::{Cause, Recovery};
use link::RateLimit;

use super::ctl::tell;
use crate::args::{Global, Send};
use crate::devices::{open_all, stopped};
use crate::exit::Exit;
use crate::output;
use crate::progress::Show;
use crate::report::{Extras, Summary};
use crate::signals::cancel_once;
use crate::units::Rate;

/// How long it may take until the destination takes the connection.
const CONNECT: Duration = Duration::from_secs(10);

/// Sends devices, and hands the right to run them over.
///
/// A device that runs is running at the destination then, and one that is stopped is
/// stopped there. Here all of them are stopped at the end, and keep what they hold until
/// somebody resets them.
pub(super) fn run(send: &Send, global: &Global) -> Result<Exit> {
    let mut devices = open_all(&send.devices.devices)?;
    let paused = stopped(&mut devices)?;
    let machine = Machine::devices_only(devices, paused, !send.devices.independent);
    let blockers = Outgoing::blockers(&machine);
    anyhow::ensure!(blockers.is_empty(), "cannot send: {}", blockers.join("; "));
    let (control, dialer) = link::dial(&send.to, CONNECT)
        .with_context(|| format!("cannot reach {}", send.to))?;
    let limit = RateLimit::new(send.budget.rate.map(Rate::bytes_per_second));
    let show = Arc::new(Show::new(global.json, global.verbose > 0));
    let outgoing = Outgoing::new(
        machine,
        Box::new(control),
        Box::new(dialer.limited(&limit)),
        Box::new(store::Memory::new()?),
        store::new_attempt()?,
        send.budget.options(),
    )
    .observer(Arc::clone(&show) as _);
    let handle = outgoing.handle();
    let watching = cancel_once(move || {
        if handle.interruptible() {
            handle.cancel();
            output::note("cancelling");
        } else {
            output::note("the devices are being handed over: this cannot be cancelled");
        }
    })?;
    let sent = outgoing.run();
    drop(watching);
    drop(show);
    let source_pid = Some(std::process::id());
    let extras = Extras { source_pid, alone: true, ..Extras::default() };
    let extras = match &sent.result {
        Ok(()) => extras,
        Err(error) => {
            let mut extras = extras.failed(error);
            if let (true, Some(failure)) = (unanswered(error), &mut extras.failure) {
                failure.text = format!(
                    "{}; does a `vfio-migrate receive` listen at {}?",
                    failure.text, send.to
                );
            }
            extras
        }
    };
    tell(&Summary::new(&sent.report, &extras), global.json)
}

/// Whether it came to nothing because what listens there does not speak as it should.
fn unanswered(error: &engine::migration::Error) -> bool {
    let nothing = matches!(
        error.cause,
        Cause::Channel(_) | Cause::TimedOut { .. } | Cause::Protocol(_)
    );
    nothing && error.recovery() == Recovery::Retry
}
