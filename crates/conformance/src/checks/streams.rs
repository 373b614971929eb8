//! Rules 20 and 21: data in any pieces, and data that is none.

use states::v2::State;

use super::states::difference;
use crate::bench::{Bench, Refused};
use crate::outcome::{Outcome, Stop, fail, skip};

/// States up to this size go byte by byte, in bytes.
const SMALL: usize = 16 << 10;

/// What all damaged copies of a state together may have, in bytes.
const EFFORT: usize = 16 << 20;

/// The most damaged copies of a state: more than the bytes of a small one.
const COPIES: usize = 4096;

/// What no driver should take at once without asking what it is, in bytes.
const GARBAGE: usize = 16 << 20;

/// Sizes of reads and writes: odd, around a page, and larger than what there is.
const SIZES: [usize; 5] = [7, 4093, 4096, 65_537, 16 << 20];

pub(super) fn reads(bench: &Bench) -> Outcome {
    let whole = bench.save()?;
    some(&whole)?;
    let mut sizes = SIZES.to_vec();
    if whole.len() <= SMALL {
        sizes.push(1);
    }
    for size in &sizes {
        let data = bench.save_by(*size)?;
        if data != whole {
            return fail(format!("by {size} bytes: {}", difference(&whole, &data)));
        }
    }
    Ok(format!("{} bytes, the same by {}", whole.len(), list(&sizes)))
}

pub(super) fn writes(bench: &Bench) -> Outcome {
    keeping_some(bench, |whole| {
        let mut sizes = SIZES.to_vec();
        if whole.len() <= SMALL {
            sizes.push(1);
        }
        for size in &sizes {
            if let Err(refused) = bench.load_by(whole, *size)? {
                return fail(format!("by {size} bytes: {refused}"));
            }
            let data = bench.save()?;
            if data != whole {
                return fail(format!("by {size} bytes: {}", difference(whole, &data)));
            }
        }
        Ok(format!("{} bytes, saved again as loaded by {}", whole.len(), list(&sizes)))
    })
}

pub(super) fn nothing(bench: &Bench) -> Outcome {
    keeping_some(bench, |whole| {
        let mut session = bench.open(State::Resuming)?;
        let (half, rest) = whole.split_at(whole.len() / 2);
        for part in [half, rest] {
            // What it says does not matter.
            let _ = session.write(&[])?;
            if let Err(refused) = bench.write_in(&mut session, part, 4096)? {
                return fail(format!("after a write of nothing: {refused}"));
            }
        }
        if let Err(refused) = bench.finish_load(session)? {
            return fail(format!("after a write of nothing: {refused}"));
        }
        let mut session = bench.open(State::StopCopy)?;
        let _ = session.read(&mut [])?;
        let mut data = vec![0; whole.len().min(1)];
        if let Err(errno) = session.read(&mut data)? {
            return fail(format!("after a read of nothing: {errno}"));
        }
        let _ = session.read(&mut [])?;
        data.extend(bench.read_out(&mut session, 4096)?);
        drop(session);
        bench.go(State::Stop)?;
        if data != whole {
            return fail(format!("after reads of nothing: {}", difference(whole, &data)));
        }
        Ok("nothing comes of it".to_owned())
    })
}

pub(super) fn empty(bench: &Bench) -> Outcome {
    keeping_some(bench, |whole| match bench.load(&[])? {
        Err(refused) => Ok(refused.to_string()),
        Ok(()) => {
            reload(bench, whole)?;
            fail("nothing is taken for a state")
        }
    })
}

pub(super) fn truncated(bench: &Bench) -> Outcome {
    keeping_some(bench, |whole| {
        let cuts = positions(whole.len(), whole.len());
        let mut taken = Vec::new();
        for cut in &cuts {
            if try_damaged(bench, whole, &whole[..*cut])? {
                taken.push(*cut);
            }
        }
        if taken.is_empty() {
            return Ok(format!("refused at {} lengths of {}", cuts.len(), whole.len()));
        }
        fail(format!(
            "taken at {} of {} lengths, the first {} of {} bytes",
            taken.len(),
            cuts.len(),
            taken[0],
            whole.len()
        ))
    })
}

pub(super) fn extra(bench: &Bench) -> Outcome {
    keeping_some(bench, |whole| {
        let mut seen = Vec::new();
        for more in [1, 4096] {
            let mut data = whole.to_vec();
            data.resize(whole.len() + more, 0);
            // In one piece, and behind what was taken already.
            for chunk in [data.len(), whole.len().max(1)] {
                match bench.load_by(&data, chunk)? {
                    Err(refused) => seen.push(refused.to_string()),
                    Ok(()) => {
                        reload(bench, whole)?;
                        return fail(format!("{more} bytes too many are taken"));
                    }
                }
                bench.home()?;
            }
        }
        seen.dedup();
        Ok(seen.join("; "))
    })
}

pub(super) fn header(bench: &Bench) -> Outcome {
    keeping_some(bench, |whole| {
        let bits = 8 * whole.len().min(8);
        let mut taken = Vec::new();
        for bit in 0..bits {
            if try_damaged(bench, whole, &flip(whole, bit))? {
                taken.push(bit);
            }
        }
        if taken.is_empty() {
            return Ok(format!("refused for each of {bits} bits"));
        }
        fail(format!(
            "taken with {} of {bits} bits wrong, first {}",
            taken.len(),
            taken[0]
        ))
    })
}

pub(super) fn flipped(bench: &Bench) -> Outcome {
    keeping_some(bench, |whole| {
        let places = positions(whole.len(), whole.len() * 2);
        let (mut taken, mut first) = (0, None);
        for at in &places {
            let data = flip(whole, at * 8 + at % 8);
            let answers =
                [try_damaged(bench, whole, &data)?, try_damaged(bench, whole, &data)?];
            if answers[0] != answers[1] {
                return fail(format!("byte {at}: taken once and refused once"));
            }
            if answers[0] {
                taken += 1;
                first = first.or(Some(*at));
            }
        }
        // A state need not have a checksum.
        let note = first.map_or(String::new(), |at| {
            format!("; taken with {taken} others wrong, first byte {at}")
        });
        Ok(format!(
            "refused with {} of {} bytes wrong{note}",
            places.len() - taken,
            places.len()
        ))
    })
}

pub(super) fn after_error(bench: &Bench) -> Outcome {
    keeping_some(bench, |whole| {
        // Somewhere in its head a device notices at once, if it ever does.
        for at in positions((whole.len() / 2).min(256), whole.len()) {
            let data = flip(whole, at * 8);
            let (begin, end) = data.split_at(data.len() / 2);
            let (head, begin) = begin.split_at(at + 1);
            // It goes on where it was refused, or starts over with what is right.
            for rest in [end, whole] {
                let mut session = bench.open(State::Resuming)?;
                let mut refused = None;
                for piece in [head, begin, rest] {
                    if let Err(refusal) =
                        bench.write_in(&mut session, piece, piece.len().max(1))?
                    {
                        refused.get_or_insert(refusal);
                    }
                }
                let Some(Refused::Write { errno, .. }) = refused else { break };
                match bench.finish_load(session)? {
                    Ok(()) => {
                        reload(bench, whole)?;
                        return fail(format!(
                            "byte {at} wrong: {errno} from a write, and the state is \
                             taken all the same"
                        ));
                    }
                    Err(_) if std::ptr::eq(rest, end) => bench.home()?,
                    Err(stop) => {
                        return Ok(format!("byte {at} wrong: {errno}, then {stop}"));
                    }
                }
            }
            bench.home()?;
        }
        skip("no write is refused: it judges when all is there")
    })
}

pub(super) fn garbage(bench: &Bench) -> Outcome {
    keeping_some(bench, |whole| {
        let mut seen = Vec::new();
        for byte in [0x00, 0xff, 0xa5] {
            let data = vec![byte; GARBAGE];
            match bench.load_by(&data, GARBAGE)? {
                Err(refused) => seen.push(refused.to_string()),
                Ok(()) => {
                    reload(bench, whole)?;
                    return fail(format!("{GARBAGE} times {byte:#04x} is taken"));
                }
            }
            bench.home()?;
        }
        seen.dedup();
        Ok(seen.join("; "))
    })
}

/// As [`Bench::keeping`], for a device that saves anything at all.
fn keeping_some(bench: &Bench, work: impl FnOnce(&[u8]) -> Outcome) -> Outcome {
    bench.keeping(|whole| {
        some(whole)?;
        work(whole)
    })
}

/// Of no bytes each can be wrong, and nothing has been tried.
fn some(whole: &[u8]) -> Result<(), Stop> {
    match whole {
        [] => skip("it saves nothing"),
        _ => Ok(()),
    }
}

/// Loads something damaged: whether it was taken. The device holds `whole` then, or is
/// back in RUNNING.
fn try_damaged(bench: &Bench, whole: &[u8], data: &[u8]) -> Result<bool, Stop> {
    match bench.load_by(data, data.len().max(1))? {
        Ok(()) => reload(bench, whole).map(|()| true),
        Err(_) => bench.home().map(|()| false),
    }
}

/// From STOP, where something damaged was taken: it must never run.
pub(super) fn reload(bench: &Bench, whole: &[u8]) -> Result<(), Stop> {
    bench.put_back(whole)
}

/// Half of a state.
pub(super) fn half_of(data: &[u8]) -> &[u8] {
    &data[..data.len() / 2]
}

fn flip(data: &[u8], bit: usize) -> Vec<u8> {
    let mut data = data.to_vec();
    if let Some(byte) = data.get_mut(bit / 8) {
        *byte ^= 1 << (bit % 8);
    }
    data
}

/// Places in `len` bytes, evenly: all of them, or as many as it is worth where each one
/// costs that many bytes.
fn positions(len: usize, cost: usize) -> Vec<usize> {
    let most = (EFFORT / cost.max(1)).clamp(32, COPIES);
    if len <= most {
        return (0..len).collect();
    }
    // The two ends are the most likely to be forgotten.
    let last = len - 1;
    (0..most).map(|n| (last as u128 * n as u128 / (most - 1) as u128) as usize).collect()
}

fn list(sizes: &[usize]) -> String {
    sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}
