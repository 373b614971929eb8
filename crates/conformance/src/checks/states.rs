//! Rules 2 to 6, 13 and 14: the states, and what happens in them.

use abi::device_info::DeviceFlags;
use abi::errno::Errno;
use abi::pci::region_index;
use states::v2::State;

use crate::bench::Bench;
use crate::outcome::{Outcome, answer, fail, skip};

/// How often a state that must not change by itself is asked for.
const AGAIN: usize = 32;

/// What of config space is compared: the ids.
const IDS: usize = 4;

pub(super) fn initial(bench: &Bench) -> Outcome {
    bench.capabilities()?;
    let found = bench.raw_state()?;
    let name = State::from_number(found.device_state).map_or("unknown", State::name);
    if bench.is_kernel() && found.data_fd != -1 {
        return fail(format!("data_fd {} instead of -1", found.data_fd));
    }
    if found.device_state == State::Running.number() {
        return Ok(name.to_owned());
    }
    if bench.is_kernel() {
        return fail(format!("{name}: what somebody left outlives the open"));
    }
    skip(format!("{name}: what a server keeps for its next client is its own matter"))
}

pub(super) fn reset(bench: &Bench) -> Outcome {
    let states = bench.states()?;
    for state in &states {
        bench.home()?;
        let session = bench.go(*state)?;
        if let Err(errno) = bench.reset()? {
            return fail(format!("in {state}: {errno}"));
        }
        let after = bench.raw_state()?;
        if after.device_state != State::Running.number() {
            let name = State::from_number(after.device_state).map_or("?", State::name);
            return fail(format!("in {state}: it is in {name} after it"));
        }
        if bench.is_kernel() && after.data_fd != -1 {
            return fail(format!("in {state}: data_fd {} after it", after.data_fd));
        }
        drop(session);
    }
    Ok(format!("RUNNING, from {} states", states.len()))
}

pub(super) fn steady(bench: &Bench) -> Outcome {
    let states = bench.states()?;
    for state in &states {
        bench.home()?;
        let session = bench.go(*state)?;
        for _ in 0..AGAIN {
            bench.in_time()?;
            let now = bench.state()?;
            if now != *state {
                return fail(format!("from {state} to {now} by itself"));
            }
        }
        drop(session);
    }
    Ok(format!("{AGAIN} times the same in {} states", states.len()))
}

pub(super) fn from_running(bench: &Bench) -> Outcome {
    from(bench, State::Running)
}

pub(super) fn from_running_p2p(bench: &Bench) -> Outcome {
    from(bench, State::RunningP2p)
}

pub(super) fn from_pre_copy(bench: &Bench) -> Outcome {
    from(bench, State::PreCopy)
}

pub(super) fn from_pre_copy_p2p(bench: &Bench) -> Outcome {
    from(bench, State::PreCopyP2p)
}

pub(super) fn from_stop(bench: &Bench) -> Outcome {
    from(bench, State::Stop)
}

pub(super) fn from_stop_copy(bench: &Bench) -> Outcome {
    from(bench, State::StopCopy)
}

pub(super) fn from_resuming(bench: &Bench) -> Outcome {
    from(bench, State::Resuming)
}

/// Every state that the device has, from one of them, but what rule 5 is about.
fn from(bench: &Bench, from: State) -> Outcome {
    let capabilities = bench.with(&[from])?;
    let data = if from == State::Resuming { bench.save()? } else { Vec::new() };
    let (mut wrong, mut pairs) = (Vec::new(), 0);
    for to in capabilities.states() {
        if from == State::StopCopy && blocked(to) {
            continue;
        }
        pairs += 1;
        let session = bench.place(from, &data)?;
        let due = bench.due(from, to)?;
        let set = bench.ask(to.number(), due)?;
        let now = bench.state()?;
        let opened = match &set {
            Ok(opened) => opened.is_some(),
            Err(errno) => {
                wrong.push(format!("{to}: {errno}, now {now}"));
                continue;
            }
        };
        if now != to {
            wrong.push(format!("{to}: done, now {now}"));
        } else if opened != due.is_some() {
            let word = if opened { "a session too many" } else { "no session" };
            wrong.push(format!("{to}: {word}"));
        }
        drop((session, set));
    }
    if wrong.is_empty() {
        return Ok(format!("{pairs} of {pairs} as the tables have it"));
    }
    fail(format!("{} of {pairs} wrong: {}", wrong.len(), wrong.join("; ")))
}

fn blocked(to: State) -> bool {
    matches!(to, State::PreCopy | State::PreCopyP2p)
}

pub(super) fn no_state(bench: &Bench) -> Outcome {
    let capabilities = bench.capabilities()?;
    let mut targets = vec![State::Error.number(), 8, 255, u32::MAX];
    let missing = State::ALL.iter().filter(|state| !capabilities.supports(**state));
    targets.extend(missing.map(|state| state.number()).filter(|number| *number != 0));
    let mut asked = 0;
    for state in capabilities.states() {
        bench.home()?;
        let session = bench.go(state)?;
        for target in &targets {
            asked += 1;
            match bench.ask(*target, None)? {
                Err(Errno::EINVAL) => {}
                Err(errno) => {
                    return fail(format!("{state} to {target}: {errno}, not EINVAL"));
                }
                Ok(_) => return fail(format!("{state} to {target}: done, not EINVAL")),
            }
            let now = bench.state()?;
            if now != state {
                return fail(format!("{state} to {target}: EINVAL, and now in {now}"));
            }
        }
        drop(session);
    }
    Ok(format!("{asked} times EINVAL, and the state as it was"))
}

pub(super) fn back(bench: &Bench) -> Outcome {
    let capabilities = bench.with(&[State::PreCopy])?;
    if let Some(release) = bench.release()
        && release.may_loop()
    {
        return skip(format!(
            "Linux {release} may never come back from it: known to be mended are 7.2 and \
             6.12.96"
        ));
    }
    let whole = bench.save()?;
    let mut session = bench.open(State::StopCopy)?;
    let mut data = vec![0; whole.len() / 2];
    let mut at = 0;
    while at < data.len() {
        bench.in_time()?;
        match session.read(&mut data[at..])? {
            Ok(0) => return fail(format!("the data ends after {at} bytes")),
            Ok(bytes) => at += bytes,
            Err(errno) => return fail(format!("read after {at} bytes: {errno}")),
        }
    }
    for target in capabilities.states().filter(|state| blocked(*state)) {
        match bench.ask(target.number(), None)? {
            Err(Errno::EINVAL) => {}
            Err(errno) => return fail(format!("{target}: {errno} instead of EINVAL")),
            Ok(_) => return fail(format!("{target}: done instead of EINVAL")),
        }
        let now = bench.state()?;
        if now != State::StopCopy {
            return fail(format!("{target}: EINVAL, and now in {now}"));
        }
    }
    data.extend(bench.read_out(&mut session, 4096)?);
    if data == whole {
        return Ok("EINVAL, and the data goes on".to_owned());
    }
    fail("EINVAL, and the data does not go on as it was")
}

pub(super) fn itself(bench: &Bench) -> Outcome {
    let states = bench.states()?;
    let whole = bench.save()?;
    for state in &states {
        // Half of what is loaded or saved comes before.
        bench.home()?;
        let mut session = bench.go(*state)?;
        let (half, rest) = whole.split_at(whole.len() / 2);
        let mut read = Vec::new();
        match (state, &mut session) {
            (State::Resuming, Some(session)) => {
                if let Err(refused) = bench.write_in(session, half, 4096)? {
                    return fail(format!("in {state}: {refused}"));
                }
            }
            (State::StopCopy, Some(session)) => {
                read = bench.read_ahead(session, 4096, half.len())?.0;
            }
            _ => {}
        }
        match bench.ask(state.number(), None)? {
            Ok(None) => {}
            Ok(Some(_)) => return fail(format!("{state}: a second session")),
            Err(errno) => return fail(format!("{state}: {errno}")),
        }
        let now = bench.state()?;
        if now != *state {
            return fail(format!("{state}: now in {now}"));
        }
        let Some(session) = &mut session else { continue };
        match state {
            State::Resuming => {
                if let Err(refused) = bench.write_in(session, rest, 4096)? {
                    return fail(format!("{state}: the session is over: {refused}"));
                }
            }
            State::StopCopy => {
                read.extend(bench.read_out(session, 4096)?);
                if read != whole {
                    let saw = difference(&whole, &read);
                    return fail(format!("{state}: the data does not go on: {saw}"));
                }
            }
            _ => drop(bench.read_ahead(session, 4096, 1)?),
        }
        if *state == State::Resuming {
            bench.go(State::Stop)?;
        }
    }
    Ok(format!("nothing happens in {} states", states.len()))
}

pub(super) fn config(bench: &Bench) -> Outcome {
    let info = match answer(bench.transport().device_info())? {
        Ok(info) => info,
        Err(errno) => return fail(format!("asked what it is: {errno}")),
    };
    if !DeviceFlags::from_bits_retain(info.flags).contains(DeviceFlags::PCI) {
        return skip("it is no PCI device");
    }
    let ids = || {
        let mut ids = [0; IDS];
        let read = bench.transport().region_read(region_index::CONFIG, 0, &mut ids);
        Ok(answer(read)?.map(|()| ids))
    };
    let before = match ids()? {
        Ok(ids) => ids,
        Err(errno) => return fail(format!("RUNNING: {errno}")),
    };
    for state in [State::Stop, State::StopCopy, State::Resuming] {
        bench.home()?;
        let session = bench.go(state)?;
        match ids()? {
            Ok(ids) if ids == before => {}
            Ok(ids) => {
                return fail(format!("{state}: {ids:02x?} instead of {before:02x?}"));
            }
            Err(errno) => return fail(format!("{state}: {errno}")),
        }
        drop(session);
    }
    Ok("the same ids in STOP, STOP_COPY and RESUMING".to_owned())
}

pub(super) fn still(bench: &Bench) -> Outcome {
    let first = bench.save()?;
    let second = bench.save()?;
    if first == second {
        return Ok(format!("the same {} bytes", first.len()));
    }
    fail(format!("{}, though it did not run", difference(&first, &second)))
}

pub(super) fn p2p(_: &Bench) -> Outcome {
    skip("it takes two devices, and one that writes into the other")
}

/// How two saved states differ.
pub(super) fn difference(first: &[u8], second: &[u8]) -> String {
    if first.len() != second.len() {
        return format!("{} bytes, then {}", first.len(), second.len());
    }
    let at = first.iter().zip(second).position(|(one, other)| one != other);
    at.map_or("the same".to_owned(), |at| format!("another byte at {at}"))
}
