//! Rules 7, 8, 9, 15 and 16: sessions, their bytes and their ends.

use abi::errno::Errno;
use abi::feature::Feature;
use control::Direction;
use rustix::fs::{OFlags, SeekFrom, fcntl_getfl, seek};
use rustix::io::{FdFlags, fcntl_getfd};
use states::v2::State;

use super::features::need;
use super::info::size;
use super::states::difference;
use crate::bench::{Bench, Session, Temporary};
use crate::outcome::{Outcome, Stop, answer, fail, skip};

/// What is read at once where it does not matter, in bytes.
const CHUNK: usize = 64 << 10;

/// How often the end of STOP_COPY is read.
const AGAIN: usize = 16;

pub(super) fn descriptor(bench: &Bench) -> Outcome {
    for (state, access) in
        [(State::StopCopy, OFlags::RDONLY), (State::Resuming, OFlags::WRONLY)]
    {
        let mut session = bench.open(state)?;
        let descriptor = session.descriptor()?;
        let asked = |error: rustix::io::Errno| Stop::Fail(format!("{state}: {error}"));
        if !fcntl_getfd(descriptor).map_err(asked)?.contains(FdFlags::CLOEXEC) {
            return fail(format!("{state}: not closed on exec"));
        }
        let flags = fcntl_getfl(descriptor).map_err(asked)?;
        if flags & OFlags::RWMODE != access {
            return fail(format!("{state}: opened as {flags:?}"));
        }
        match seek(descriptor, SeekFrom::Start(0)) {
            Err(rustix::io::Errno::SPIPE) => {}
            other => return fail(format!("{state}: lseek: {other:?} instead of ESPIPE")),
        }
        let wrong = match state {
            State::Resuming => session.read(&mut [0; 8])?,
            _ => session.write(&[0; 8])?,
        };
        if wrong != Err(Errno::EBADF) {
            return fail(format!("{state}: the other way round: {}", word(wrong)));
        }
    }
    Ok("closed on exec, one way, not to be sought in".to_owned())
}

pub(super) fn one_stream(bench: &Bench) -> Outcome {
    let capabilities = bench.with(&[State::PreCopy])?;
    bench.keeping(|data| {
        let quiet = is_quiet(bench, data)?;
        bench.home()?;
        let mut session = bench.open(State::PreCopy)?;
        let (mut stream, _) = bench.read_ahead(&mut session, 5, 5)?;
        let mut way = vec![State::StopCopy];
        if capabilities.supports(State::PreCopyP2p) {
            way.splice(0..0, [State::PreCopyP2p, State::PreCopy, State::PreCopyP2p]);
        }
        for state in way {
            // It opens none, or this fails.
            if bench.go(state)?.is_some() {
                return fail(format!("{state}: a session of its own"));
            }
            let more = match state {
                State::StopCopy => bench.read_out(&mut session, CHUNK)?,
                _ => bench.read_ahead(&mut session, 7, 7)?.0,
            };
            stream.extend(more);
        }
        drop(session);
        bench.go(State::Stop)?;
        compare(bench, &stream, data, quiet)?;
        Ok(format!("{} bytes, and they are one state", stream.len()))
    })
}

pub(super) fn any_amount(bench: &Bench) -> Outcome {
    bench.with(&[State::PreCopy])?;
    bench.keeping(|data| {
        let quiet = is_quiet(bench, data)?;
        let mut ahead = Vec::new();
        for amount in [0, data.len() / 3 + 1, bench.most_bytes()] {
            bench.home()?;
            let mut session = bench.open(State::PreCopy)?;
            let (mut stream, _) = bench.read_ahead(&mut session, CHUNK, amount)?;
            ahead.push(stream.len().to_string());
            bench.go(State::StopCopy)?;
            stream.extend(bench.read_out(&mut session, CHUNK)?);
            drop(session);
            bench.go(State::Stop)?;
            compare(bench, &stream, data, quiet)?;
        }
        Ok(format!("complete after {} bytes", ahead.join(", ")))
    })
}

/// Whether a device that nobody uses saves the same again after it ran.
fn is_quiet(bench: &Bench, data: &[u8]) -> Result<bool, Stop> {
    bench.home()?;
    Ok(bench.save()? == data)
}

/// Loads `stream` and saves: that is `data`, if nothing changes while the device runs, and
/// the state either way.
fn compare(bench: &Bench, stream: &[u8], data: &[u8], quiet: bool) -> Result<(), Stop> {
    if let Err(refused) = bench.load(stream)? {
        return fail(format!("{} bytes are no state: {refused}", stream.len()));
    }
    let saved = bench.save()?;
    if quiet && saved != data {
        let saw = difference(data, &saved);
        return fail(format!("{} bytes make another state: {saw}", stream.len()));
    }
    Ok(())
}

pub(super) fn stale(bench: &Bench) -> Outcome {
    let capabilities = bench.capabilities()?;
    let ways = [
        (State::PreCopy, Some(State::Running)),
        (State::PreCopy, Some(State::Stop)),
        (State::PreCopy, None),
        (State::PreCopyP2p, Some(State::RunningP2p)),
        (State::PreCopyP2p, None),
        (State::StopCopy, Some(State::Stop)),
        (State::StopCopy, Some(State::Running)),
        (State::StopCopy, None),
        (State::Resuming, Some(State::Stop)),
        (State::Resuming, Some(State::Running)),
        (State::Resuming, None),
    ];
    let data = bench.save()?;
    let mut tried = 0;
    let spared = bench.dies_of_stale_writes();
    for (from, to) in ways {
        if from == State::Resuming && spared.is_some() {
            continue;
        }
        if !capabilities.supports(from) || to.is_some_and(|to| !capabilities.supports(to))
        {
            continue;
        }
        let Some(mut session) = bench.place(from, &data)? else {
            return fail(format!("{from}: no session"));
        };
        let way = match to {
            Some(to) => {
                bench.go(to)?;
                format!("{from} to {to}")
            }
            None => {
                if let Err(errno) = bench.reset()? {
                    return fail(format!("reset in {from}: {errno}"));
                }
                format!("reset in {from}")
            }
        };
        check_dead(&mut session, from, &way)?;
        tried += 1;
    }
    let note = spared.map_or(String::new(), |driver| {
        format!("; no write was tried, which {driver} may not survive")
    });
    Ok(format!("ENODEV after {tried} ways to end it{note}"))
}

/// A session that is over answers ENODEV, and says nothing of pre-copy.
fn check_dead(session: &mut Session, was: State, way: &str) -> Result<(), Stop> {
    let used = match was {
        State::Resuming => session.write(&[0])?,
        _ => session.read(&mut [0; 64])?,
    };
    if used != Err(Errno::ENODEV) {
        return fail(format!("{way}: {} instead of ENODEV", word(used)));
    }
    match session.info()? {
        Ok(None) | Err(Errno::EINVAL | Errno::ENODEV) => Ok(()),
        Err(Errno::ENOTTY | Errno::EBADF) if was == State::Resuming => Ok(()),
        Err(errno) => fail(format!("{way}: what pre-copy has left: {errno}")),
        Ok(Some(_)) => fail(format!("{way}: it still says what pre-copy has left")),
    }
}

pub(super) fn one_session(bench: &Bench) -> Outcome {
    let data = bench.save()?;
    bench.home()?;
    let mut first = bench.open(State::StopCopy)?;
    drop(bench.read_ahead(&mut first, 1, 1)?);
    let mut second = bench.open(State::Resuming)?;
    check_dead(&mut first, State::StopCopy, "STOP_COPY to RESUMING")?;
    if let Err(refused) = bench.write_in(&mut second, &data, CHUNK)? {
        return fail(format!("the new session: {refused}"));
    }
    let mut third = bench.open(State::StopCopy)?;
    if bench.dies_of_stale_writes().is_none() {
        check_dead(&mut second, State::Resuming, "RESUMING to STOP_COPY")?;
    }
    check_dead(&mut first, State::StopCopy, "another save session")?;
    let again = bench.read_out(&mut third, CHUNK)?;
    if again != data {
        return fail(format!("the last session: {}", difference(&data, &again)));
    }
    drop((first, second, third));
    if bench.capabilities()?.supports(State::PreCopy) {
        bench.home()?;
        let mut older = bench.open(State::PreCopy)?;
        bench.go(State::Running)?;
        let newer = bench.open(State::PreCopy)?;
        // In PRE_COPY there is an answer to give, but not to this one.
        check_dead(&mut older, State::PreCopy, "PRE_COPY, RUNNING and PRE_COPY")?;
        drop(newer);
    }
    Ok("the older ones are dead, and the new one is whole".to_owned())
}

pub(super) fn closed(bench: &Bench) -> Outcome {
    for state in [State::StopCopy, State::Resuming] {
        bench.home()?;
        drop(bench.open(state)?);
        let now = bench.state()?;
        if now != state {
            return fail(format!("from {state} to {now}"));
        }
    }
    Ok("still in STOP_COPY, and in RESUMING".to_owned())
}

pub(super) fn no_session(bench: &Bench) -> Outcome {
    let raw = bench.raw()?;
    if bench.is_kernel() {
        return skip("without a descriptor there is no way to ask; see 9.stale");
    }
    let states = bench.states()?;
    for state in &states {
        for direction in [Direction::Save, Direction::Resume] {
            let legal = match direction {
                Direction::Save => state.is_saving(),
                Direction::Resume => *state == State::Resuming,
            };
            if legal {
                continue;
            }
            bench.home()?;
            let session = bench.go(*state)?;
            let what = match direction {
                Direction::Save => "read",
                Direction::Resume => "write",
            };
            match answer(raw.data(direction, &mut [0; 16]))? {
                Err(_) => {}
                Ok(Some(bytes)) => {
                    return fail(format!("{state}: a {what} of {bytes} bytes succeeds"));
                }
                Ok(None) => return skip("this transport has no such messages"),
            }
            drop(session);
        }
    }
    Ok(format!("refused in {} states", states.len()))
}

pub(super) fn temporary(bench: &Bench) -> Outcome {
    bench.with(&[State::PreCopy])?;
    let mut session = bench.open(State::PreCopy)?;
    let (data, end) = bench.read_ahead(&mut session, CHUNK, usize::MAX)?;
    let Some(end) = end else { return skip("PRE_COPY does not end") };
    if bench.is_kernel() && end == Temporary::Zero {
        return fail(format!("0 after {} bytes, and not ENOMSG", data.len()));
    }
    if bench.go(State::StopCopy)?.is_some() {
        return fail("a new session for STOP_COPY");
    }
    let rest = bench.read_out(&mut session, CHUNK)?;
    let word = match end {
        Temporary::Zero => "0",
        Temporary::NoMessage => "ENOMSG",
    };
    Ok(format!("{word} after {} bytes, then {} by STOP_COPY", data.len(), rest.len()))
}

pub(super) fn last(bench: &Bench) -> Outcome {
    let mut session = bench.open(State::StopCopy)?;
    let data = match bench.read_out(&mut session, CHUNK) {
        Ok(data) => data,
        Err(stop) => return too_much(bench, stop),
    };
    for _ in 0..AGAIN {
        match session.read(&mut [0; 64])? {
            Ok(0) => {}
            other => {
                let len = data.len();
                return fail(format!("{} after the end at {len} bytes", word(other)));
            }
        }
    }
    Ok(format!("{} bytes, then {AGAIN} times 0", data.len()))
}

/// A device may have more data than is taken here, but not more than it says itself.
fn too_much(bench: &Bench, stop: Stop) -> Outcome {
    let Stop::Skip(reason) = &stop else { return Err(stop) };
    match need(bench, Feature::MIG_DATA_SIZE).and_then(|()| size(bench, State::StopCopy))
    {
        Ok(said) if said <= bench.most_bytes() as u64 => {
            fail(format!("{reason}, and {said} were said"))
        }
        _ => Err(stop),
    }
}

fn word(result: Result<usize, Errno>) -> String {
    match result {
        Ok(bytes) => format!("{bytes} bytes"),
        Err(errno) => errno.to_string(),
    }
}
