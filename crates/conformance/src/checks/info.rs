//! Rules 17, 18 and 19: what the device says of its data.

use abi::errno::Errno;
use abi::feature::Feature;
use abi::v2::{MigDataSize, PrecopyFlags, PrecopyInfo};
use states::v2::State;
use zerocopy::FromBytes;

use super::features::need;
use crate::bench::{Bench, Session};
use crate::outcome::{Outcome, Stop, answer, fail, skip};

/// How many steps initial data is read in.
const STEPS: u64 = 64;

/// The most that is read at once, in bytes.
const CHUNK: u64 = 1 << 20;

/// What pre-copy has left, where the transport has the question.
fn ask(session: &mut Session) -> Result<PrecopyInfo, Stop> {
    match session.info()? {
        Ok(Some(info)) => Ok(info),
        Ok(None) => skip("this transport has no such question"),
        Err(errno) => fail(format!("what pre-copy has left: {errno}")),
    }
}

pub(super) fn start(bench: &Bench) -> Outcome {
    let capabilities = bench.with(&[State::PreCopy])?;
    let mut session = bench.open(State::PreCopy)?;
    let info = ask(&mut session)?;
    if info.initial_bytes == 0 {
        return fail("no initial bytes");
    }
    if info.dirty_bytes != 0 {
        return fail(format!(
            "{} dirty bytes before anything was read",
            info.dirty_bytes
        ));
    }
    if capabilities.supports(State::PreCopyP2p) {
        bench.go(State::PreCopyP2p)?;
        ask(&mut session)?;
    }
    Ok(format!("{} initial bytes, 0 dirty", info.initial_bytes))
}

pub(super) fn falls(bench: &Bench) -> Outcome {
    bench.with(&[State::PreCopy])?;
    let mut session = bench.open(State::PreCopy)?;
    let first = ask(&mut session)?.initial_bytes;
    let mut left = first;
    let chunk = usize::try_from((first / STEPS).clamp(1, CHUNK)).unwrap_or(1);
    let mut read = 0;
    loop {
        let (data, end) = bench.read_ahead(&mut session, chunk, chunk)?;
        read += data.len();
        let now = ask(&mut session)?.initial_bytes;
        if now > left {
            return fail(format!("from {left} to {now} after {read} bytes"));
        }
        left = now;
        if left == 0 {
            return Ok(format!("from {first} to 0 in {read} bytes"));
        }
        if end.is_some() {
            return fail(format!("the end for now, and {left} initial bytes left"));
        }
        if read > bench.most_bytes() {
            return skip(format!("{left} initial bytes are left after {read} were read"));
        }
    }
}

pub(super) fn elsewhere(bench: &Bench) -> Outcome {
    let capabilities = bench.capabilities()?;
    let mut session = bench.open(State::StopCopy)?;
    let info = session.info()?;
    match info {
        Ok(None) => skip("this transport has no such question"),
        // Whoever has no pre-copy may not know the question.
        Err(Errno::ENOTTY) if !capabilities.pre_copy() => Ok("ENOTTY".to_owned()),
        Err(Errno::EINVAL) => Ok("EINVAL in STOP_COPY".to_owned()),
        Err(errno) => fail(format!("{errno} instead of EINVAL in STOP_COPY")),
        Ok(Some(info)) => fail(format!("{} initial bytes", info.initial_bytes)),
    }
}

pub(super) fn argsz(bench: &Bench) -> Outcome {
    bench.with(&[State::PreCopy])?;
    let mut session = bench.open(State::PreCopy)?;
    for argsz in [0, 8, 16, 23] {
        match session.raw_info(argsz, 0)? {
            Ok(None) => return skip("this transport has no such structure"),
            Err(Errno::EINVAL) => {}
            Err(errno) => return fail(format!("argsz {argsz}: {errno}, not EINVAL")),
            Ok(Some(_)) => return fail(format!("argsz {argsz}: done, not EINVAL")),
        }
    }
    match session.raw_info(24, 0)? {
        Ok(_) => Ok("EINVAL below 24".to_owned()),
        Err(errno) => fail(format!("argsz 24: {errno}")),
    }
}

pub(super) fn silent(bench: &Bench) -> Outcome {
    bench.with(&[State::PreCopy])?;
    let mut session = bench.open(State::PreCopy)?;
    let flags = flags(&mut session, 0)?;
    if flags.contains(PrecopyFlags::REINIT) {
        return fail("REINIT, which nobody asked for");
    }
    Ok(format!("flags {:#x}", flags.bits()))
}

pub(super) fn asked(bench: &Bench) -> Outcome {
    bench.with(&[State::PreCopy])?;
    need(bench, Feature::MIG_PRECOPY_INFO_V2)?;
    let set = bench.transport().feature_set(Feature::MIG_PRECOPY_INFO_V2, &[]);
    if let Err(errno) = answer(set)? {
        return fail(format!("asked for it: {errno}"));
    }
    let mut session = bench.open(State::PreCopy)?;
    let flags = flags(&mut session, u32::MAX)?;
    if !PrecopyFlags::REINIT.contains(flags) {
        return fail(format!("flags {:#x}: bits that nobody defined", flags.bits()));
    }
    Ok(format!("flags {:#x}", flags.bits()))
}

/// The flags of the answer, with these going in where that can be said.
fn flags(session: &mut Session, given: u32) -> Result<PrecopyFlags, Stop> {
    let info = match session.raw_info(24, given)? {
        Ok(Some(info)) => info,
        Ok(None) => ask(session)?,
        Err(errno) => return fail(format!("what pre-copy has left: {errno}")),
    };
    Ok(PrecopyFlags::from_bits_retain(info.flags))
}

/// The size of the data, where it is one.
pub(super) fn size(bench: &Bench, state: State) -> Result<u64, Stop> {
    let feature = Feature::MIG_DATA_SIZE;
    let bytes = match bench.get(feature, &[], size_of::<MigDataSize>())? {
        Ok(bytes) => bytes,
        Err(errno) => return fail(format!("{state}: {errno}")),
    };
    let Ok(size) = MigDataSize::read_from_bytes(&bytes) else {
        return fail(format!("{state}: {} bytes instead of 8", bytes.len()));
    };
    let size = size.stop_copy_length;
    if i64::try_from(size).is_err() {
        let errno = size.wrapping_neg();
        return fail(format!("{state}: {size} bytes, which is -{errno}: an errno?"));
    }
    Ok(size)
}

pub(super) fn size_everywhere(bench: &Bench) -> Outcome {
    need(bench, Feature::MIG_DATA_SIZE)?;
    let mut sizes = Vec::new();
    for state in bench.states()? {
        bench.home()?;
        let session = bench.go(state)?;
        sizes.push(format!("{state} {}", size(bench, state)?));
        drop(session);
    }
    Ok(sizes.join(", "))
}

pub(super) fn size_bound(bench: &Bench) -> Outcome {
    need(bench, Feature::MIG_DATA_SIZE)?;
    let mut session = bench.open(State::StopCopy)?;
    let said = size(bench, State::StopCopy)?;
    let data = bench.read_out(&mut session, CHUNK as usize)?.len() as u64;
    if data > said {
        return fail(format!("{said} bytes were said, and {data} came"));
    }
    Ok(format!("{said} bytes were said, {data} came"))
}
