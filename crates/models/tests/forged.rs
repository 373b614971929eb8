//! Saved states with checksums that are right and contents that are not.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests, and what they share")]

use crc32c::{crc32c, crc32c_append};
use device::{Moved, Runner, Session};
use states::v2::State;
use std::time::Instant;
use vfio_migrate_models::accel::{Accel, BAR2, Parameters};

const HEADER: usize = 24;
const PASS: u8 = 1;
const AGAIN: u8 = 2;
const WINDOW: u8 = 3;
const ENGINE: u8 = 4;
const END: u8 = 5;

/// A preamble and records, to be taken apart and put together again.
#[derive(Clone)]
struct Stream {
    preamble: Vec<u8>,
    records: Vec<Vec<u8>>,
}

fn runner() -> Runner {
    Runner::new(Box::new(Accel::new(Parameters::default()).unwrap())).unwrap()
}

fn go(runner: &mut Runner, state: State) -> Session {
    match runner.set_state(state, Instant::now()) {
        Ok(Moved::Done(Some(session))) => session,
        other => panic!("{state}: {other:?}"),
    }
}

impl Stream {
    /// With two PASS records of data, one AGAIN, two WINDOW, and zeros between.
    fn saved() -> Stream {
        let mut runner = runner();
        for offset in [100, 65536, 8 << 20] {
            runner.write_region(BAR2, offset, &[1; 4096]).unwrap();
        }
        let session = go(&mut runner, State::PreCopy);
        let mut buffer = vec![0; 1 << 20];
        let mut len = runner.read_data(session, &mut buffer).unwrap();
        runner.write_region(BAR2, 65536, &[2; 10]).unwrap();
        let _ = runner.set_state(State::StopCopy, Instant::now()).unwrap();
        while let read @ 1.. = runner.read_data(session, &mut buffer[len..]).unwrap() {
            len += read;
        }
        let (preamble, mut rest) = buffer[..len].split_at(48);
        let mut records = Vec::new();
        while !rest.is_empty() {
            let payload = u32::from_le_bytes(rest[4..8].try_into().unwrap()) as usize;
            let (record, more) = rest.split_at(HEADER + payload);
            records.push(record.to_vec());
            rest = more;
        }
        Stream { preamble: preamble.to_vec(), records }
    }

    /// The records of a kind, to be changed.
    fn of(&mut self, kind: u8) -> impl Iterator<Item = &mut Vec<u8>> {
        self.records.iter_mut().filter(move |record| record[0] == kind)
    }

    fn place(&self, kind: u8) -> usize {
        self.records.iter().position(|record| record[0] == kind).unwrap()
    }

    /// With every length and checksum made right, END's own included.
    fn join(mut self) -> Vec<u8> {
        let sum = crc32c(&self.preamble[..44]);
        self.preamble[44..].copy_from_slice(&sum.to_le_bytes());
        let mut out = self.preamble;
        let mut digest = 0;
        for (n, mut record) in self.records.into_iter().enumerate() {
            let len = (record.len() - HEADER) as u32;
            record[4..8].copy_from_slice(&len.to_le_bytes());
            if record[0] == END && len == 16 {
                record[24..32].copy_from_slice(&(n as u64).to_le_bytes());
                record[32..40].copy_from_slice(&u64::from(digest).to_le_bytes());
            }
            let sum = crc32c_append(crc32c(&record[..20]), &record[HEADER..]);
            record[20..24].copy_from_slice(&sum.to_le_bytes());
            digest = crc32c_append(digest, &record[..HEADER]);
            out.extend_from_slice(&record);
        }
        out
    }
}

fn accepted(stream: &[u8]) -> bool {
    let mut runner = runner();
    let session = go(&mut runner, State::Resuming);
    let taken = runner.write_data(session, stream);
    let stopped = runner.set_state(State::Stop, Instant::now());
    assert!(taken.is_ok() || stopped.is_err());
    stopped.is_ok()
}

#[test]
fn a_forged_state_with_right_checksums_is_refused() {
    let good = Stream::saved();
    assert!(accepted(&good.clone().join()));
    type Forgery = fn(&mut Stream);
    let forgeries: [(&str, Forgery); 26] = [
        ("a reserved field", |s| s.preamble[40] = 1),
        ("more vectors", |s| s.preamble[32] = 9),
        ("other blocks", |s| s.preamble[13] = 0x20),
        ("a kind that is not known", |s| s.of(AGAIN).for_each(|r| r[0] = 6)),
        ("the upper half of a kind", |s| s.of(AGAIN).for_each(|r| r[1] = 1)),
        ("a flag that is not known", |s| s.of(AGAIN).for_each(|r| r[2] |= 2)),
        ("data that says zero", |s| s.of(AGAIN).for_each(|r| r[2] = 1)),
        ("zero that has no flag", |s| s.of(WINDOW).last().unwrap()[2] ^= 1),
        ("a count of none", |s| s.of(PASS).next().unwrap()[16..20].fill(0)),
        ("a count too high", |s| s.of(AGAIN).for_each(|r| r[16] += 1)),
        ("a pass with a gap", |s| drop(s.records.remove(0))),
        ("a pass twice", |s| s.records.insert(0, s.records[0].clone())),
        ("a pass past the end", |s| {
            s.of(PASS).last().unwrap()[16..20].copy_from_slice(&[0xff; 4]);
        }),
        ("blocks at the end of all", |s| {
            s.of(AGAIN).for_each(|r| r[8..16].fill(0xff));
        }),
        ("again, in the window", |s| s.of(AGAIN).for_each(|r| r[8..16].fill(0))),
        ("again, before it came", |s| {
            let again = s.records.remove(s.place(AGAIN));
            s.records.insert(0, again);
        }),
        ("again, after the window", |s| {
            let again = s.records.remove(s.place(AGAIN));
            let engine = s.place(ENGINE);
            s.records.insert(engine, again);
        }),
        ("a window with a gap", |s| drop(s.records.remove(s.place(WINDOW)))),
        ("a window too long", |s| s.of(WINDOW).last().unwrap()[17] = 1),
        ("no engine", |s| drop(s.records.remove(s.place(ENGINE)))),
        ("two engines", |s| {
            s.records.insert(s.place(END), s.records[s.place(ENGINE)].clone());
        }),
        ("a shorter engine", |s| {
            s.of(ENGINE).for_each(|r| drop(r.split_off(r.len() - 8)));
        }),
        ("an engine with a flag", |s| s.of(ENGINE).for_each(|r| r[2] = 1)),
        ("an engine that copies nothing", |s| {
            // The command is busy, with no bytes.
            s.of(ENGINE).for_each(|r| r[HEADER + 40] = 1);
        }),
        ("an interrupt of a vector that is not there", |s| {
            s.of(ENGINE).for_each(|r| r[HEADER + 8 * 32 + 1] = 1);
        }),
        ("no end", |s| drop(s.records.pop())),
    ];
    for (what, forge) in forgeries {
        let mut stream = good.clone();
        forge(&mut stream);
        assert!(!accepted(&stream.join()), "{what}");
    }
}

#[test]
fn records_that_are_missing_or_changed_places_are_noticed_at_the_end() {
    // Sound records in a sound order, but not those that END was written for.
    let mut good = Stream::saved();
    let again = good.place(AGAIN);
    let mut fewer = good.clone();
    fewer.records.remove(again);
    let end = good.records.pop().unwrap();
    fewer.records.pop();
    let mut forged = fewer.join();
    forged.extend_from_slice(&end);
    assert!(!accepted(&forged));
    let mut whole = good.join();
    whole.extend_from_slice(&end);
    assert!(accepted(&whole));
}
