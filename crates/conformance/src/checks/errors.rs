//! Rules 12 and 22: what is left after something failed.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use states::v2::{State, plan};

use super::streams::{half_of, reload};
use crate::bench::{Bench, Refused};
use crate::outcome::{Outcome, fail, skip};

pub(super) fn failed_set(bench: &Bench) -> Outcome {
    bench.keeping(|data| {
        let path = match plan(bench.capabilities()?, State::Resuming, State::Running) {
            Ok(path) => path,
            Err(refusal) => return fail(refusal.to_string()),
        };
        let mut session = bench.open(State::Resuming)?;
        let half = half_of(data);
        if let Err(Refused::Write { at, errno }) =
            bench.write_in(&mut session, half, half.len().max(1))?
        {
            return skip(format!(
                "it refuses half of its data at once ({errno} at {at})"
            ));
        }
        let set = bench.ask(State::Running.number(), None)?;
        let now = bench.state()?;
        drop(session);
        let Err(errno) = set else {
            reload(bench, data)?;
            return skip("it takes half of its data for all of it; see 21.truncated");
        };
        let legal = matches!(now, State::Resuming | State::Error)
            || path.iter().any(|state| state == now && state != State::Running);
        if !legal {
            return fail(format!("{errno}, and now in {now}"));
        }
        if let Err(reset) = bench.reset()? {
            return fail(format!("{errno}, now in {now}, and reset: {reset}"));
        }
        match bench.state()? {
            State::Running => Ok(format!("{errno}, {now}, and a reset leads out of it")),
            after => fail(format!("{errno}, now in {now}, and after a reset in {after}")),
        }
    })
}

pub(super) fn no_descriptors(bench: &Bench) -> Outcome {
    // Only the kernel hands out descriptors here.
    let session = bench.open(State::StopCopy)?;
    session.descriptor()?;
    drop(session);
    bench.go(State::Stop)?;
    let due = bench.due(State::Stop, State::StopCopy)?;
    let limit = Limited::to_nothing()?;
    let set = bench.ask(State::StopCopy.number(), due);
    drop(limit);
    let set = set?;
    let now = bench.state()?;
    let errno = match set {
        Err(errno) => errno,
        Ok(Some(_)) => return fail("a session without a descriptor for it"),
        Ok(None) => return fail("it says that it was done, and no session is there"),
    };
    if !matches!(now, State::Stop | State::StopCopy | State::Error) {
        return fail(format!("{errno}, and now in {now}"));
    }
    bench.home()?;
    let data = bench.save()?;
    Ok(format!("{errno}, now in {now}; afterwards {} bytes are saved", data.len()))
}

/// No descriptor can be had in this process while this is there.
struct Limited(Rlimit);

impl Limited {
    fn to_nothing() -> Result<Limited, crate::outcome::Stop> {
        let before = getrlimit(Resource::Nofile);
        match setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before }) {
            Ok(()) => Ok(Limited(before)),
            Err(error) => skip(format!("the limit of descriptors stays: {error}")),
        }
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        if let Err(error) = setrlimit(Resource::Nofile, self.0) {
            tracing::error!(%error, "the limit of descriptors cannot be put back");
        }
    }
}

pub(super) fn in_error(bench: &Bench) -> Outcome {
    if bench.state()? != State::Error {
        return skip("nothing here brings a device into ERROR");
    }
    match bench.ask(State::Running.number(), None)? {
        Ok(_) => fail("RUNNING from ERROR: done"),
        Err(errno) => match bench.state()? {
            State::Error => Ok(format!("{errno}, and still in ERROR")),
            now => fail(format!("{errno}, and now in {now}")),
        },
    }
}

pub(super) fn races(_: &Bench) -> Outcome {
    skip(
        "two writers on one session can bring real kernels down: only in a VM of its own",
    )
}
