//! Runs checks, one after the other, and never waits for a device for ever.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use control::Transport;

use crate::bench::{Bench, Options};
use crate::check::{Check, Effect};
use crate::outcome::Stop;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The device obeys.
    Pass,
    /// It does not.
    Fail,
    /// It could not be found out.
    Skipped,
}

impl Verdict {
    /// One word for it.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::Skipped => "skipped",
        }
    }
}

/// What came of a check.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The check.
    pub check: &'static Check,
    /// How it ended.
    pub verdict: Verdict,
    /// What was seen; of a skipped check the reason.
    pub saw: String,
    /// How long it took.
    pub took: Duration,
}

/// Runs `checks` in their order, tells each as it ends, and gives all of them back: one for
/// each check.
///
/// The device is brought to RUNNING before each check that changes its state, and after the
/// last one.
///
/// # Errors
/// When no thread can be had.
pub fn run(
    transport: Arc<dyn Transport>,
    checks: &[&'static Check],
    options: &Options,
    tell: &mut dyn FnMut(&Finding),
) -> io::Result<Vec<Finding>> {
    let (sender, findings) = channel();
    let work = checks.to_vec();
    let limit = options.deadline + options.patience;
    let options = options.clone();
    let worker = thread::Builder::new()
        .name("conformance".to_owned())
        .spawn(move || perform(&transport, &work, &options, &sender))?;
    let (all, ended) = listen(checks, &findings, limit, tell);
    // One that waits for a device that never answers is not waited for.
    if ended && worker.join().is_err() {
        tracing::error!("a check panicked");
    }
    Ok(all)
}

/// Hears of the checks; whether the worker got through.
fn listen(
    checks: &[&'static Check],
    findings: &Receiver<Finding>,
    limit: Duration,
    tell: &mut dyn FnMut(&Finding),
) -> (Vec<Finding>, bool) {
    let mut all: Vec<Finding> = Vec::with_capacity(checks.len());
    let mut lost: Option<&'static str> = None;
    let mut ended = true;
    for check in checks {
        let finding = match lost {
            Some(id) => Finding {
                check,
                verdict: Verdict::Skipped,
                saw: format!("the device was lost in {id}"),
                took: Duration::ZERO,
            },
            None => findings.recv_timeout(limit).unwrap_or_else(|error| {
                ended = error == RecvTimeoutError::Disconnected;
                lost = Some(check.id);
                let saw = match error {
                    RecvTimeoutError::Timeout => {
                        format!("no answer within {} s", limit.as_secs())
                    }
                    RecvTimeoutError::Disconnected => "the check itself broke".to_owned(),
                };
                Finding { check, verdict: Verdict::Fail, saw, took: limit }
            }),
        };
        tell(&finding);
        all.push(finding);
    }
    // The way back to RUNNING.
    if lost.is_none() {
        let end = findings.recv_timeout(limit).err();
        ended = end == Some(RecvTimeoutError::Disconnected);
    }
    (all, ended)
}

fn perform(
    transport: &Arc<dyn Transport>,
    checks: &[&'static Check],
    options: &Options,
    findings: &Sender<Finding>,
) {
    let mut lost: Option<String> = None;
    for check in checks {
        let began = Instant::now();
        let bench = Bench::new(Arc::clone(transport), options, began);
        let outcome = match &lost {
            Some(why) => Err(Stop::Skip(why.clone())),
            None => prepare(&bench, check).and_then(|()| (check.run)(&bench)),
        };
        let (verdict, saw) = match outcome {
            Ok(saw) => (Verdict::Pass, saw),
            Err(Stop::Fail(saw)) => (Verdict::Fail, saw),
            Err(Stop::Skip(reason)) => (Verdict::Skipped, reason),
            Err(Stop::Lost(what)) => {
                lost = Some(format!("the device was lost in {}", check.id));
                (Verdict::Fail, format!("the device is lost: {what}"))
            }
        };
        let finding = Finding { check, verdict, saw, took: began.elapsed() };
        if findings.send(finding).is_err() {
            // Given up.
            return;
        }
    }
    if lost.is_none() && checks.iter().any(|check| check.effect != Effect::Asks) {
        let bench = Bench::new(Arc::clone(transport), options, Instant::now());
        if let Err(stop) = bench.home() {
            tracing::warn!(?stop, "the device is not back in RUNNING");
        }
    }
}

/// Brings the device to RUNNING. One that does not come there is of no use to any check.
fn prepare(bench: &Bench, check: &Check) -> Result<(), Stop> {
    if check.effect == Effect::Asks {
        return Ok(());
    }
    bench.capabilities()?;
    bench.home().map_err(|stop| match stop {
        Stop::Fail(saw) => Stop::Lost(saw),
        other => other,
    })
}
