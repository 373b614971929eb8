//! The accelerator's saved state, as a hostile peer would write it.
//!
//! A first byte chooses how the input is cut into writes and, from 192 on, a device with
//! fewer vectors; the rest is the stream. Two inputs in three have their checksums made
//! right first, so that what lies behind them is reached as well. Whatever comes, the device must neither panic nor hang; what it
//! accepts, it must save again as a state that it accepts, and hold the same.

#![no_main]

use device::{Moved, Runner};
use models::accel::{Accel, Parameters};
use states::v2::State;
use std::time::Instant;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let mut stream = data.to_vec();
    if choice % 3 != 0 {
        mend(&mut stream);
    }
    let vectors = if *choice < 192 { 8 } else { 3 };
    let size = 1 + usize::from(choice / 3) * 97;
    let Some(runner) = load(vectors, &stream, size) else { return };
    let digest = runner.digest();
    let again = save(runner);
    let second =
        load(vectors, &again, again.len()).expect("a state that was saved is accepted");
    assert_eq!(digest, second.digest(), "save and load change the device");
    assert_eq!(save(second), again, "the same device saves another state");
});

/// A device in STOP with that state; `None` where it was refused.
fn load(vectors: u32, stream: &[u8], size: usize) -> Option<Runner> {
    let parameters = Parameters { vectors, ..Parameters::default() };
    let accel = Accel::new(parameters).expect("these parameters are possible");
    let mut runner = Runner::new(Box::new(accel)).expect("the accelerator is possible");
    let session = go(&mut runner, State::Resuming).expect("RESUMING opens a session");
    let taken = stream.chunks(size).try_for_each(|part| runner.write_data(session, part));
    let stopped = runner.set_state(State::Stop, Instant::now());
    assert!(taken.is_ok() || stopped.is_err(), "accepted after an error");
    stopped.ok().map(|_| runner)
}

fn save(mut runner: Runner) -> Vec<u8> {
    let session = go(&mut runner, State::StopCopy).expect("STOP_COPY opens a session");
    let mut stream = Vec::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = runner.read_data(session, &mut buffer).expect("a device is saved");
        if read == 0 {
            return stream;
        }
        stream.extend_from_slice(&buffer[..read]);
    }
}

fn go(runner: &mut Runner, state: State) -> Option<device::Session> {
    match runner.set_state(state, Instant::now()) {
        Ok(Moved::Done(session)) => session,
        _ => None,
    }
}

/// Makes the checksums of the preamble and of every record right, and what END says of
/// the records before it.
fn mend(stream: &mut [u8]) {
    let Some((preamble, mut rest)) = stream.split_at_mut_checked(48) else { return };
    let sum = crc32c::crc32c(&preamble[..44]);
    preamble[44..].copy_from_slice(&sum.to_le_bytes());
    let (mut records, mut digest) = (0_u64, 0);
    while rest.len() >= 24 {
        let len = u32::from_le_bytes([rest[4], rest[5], rest[6], rest[7]]) as usize;
        let len = len.min(rest.len() - 24);
        if rest[0] == 5 && len == 16 {
            rest[24..32].copy_from_slice(&records.to_le_bytes());
            rest[32..40].copy_from_slice(&u64::from(digest).to_le_bytes());
        }
        let sum = crc32c::crc32c_append(crc32c::crc32c(&rest[..20]), &rest[24..24 + len]);
        rest[20..24].copy_from_slice(&sum.to_le_bytes());
        digest = crc32c::crc32c_append(digest, &rest[..24]);
        records += 1;
        rest = &mut std::mem::take(&mut rest)[24 + len..];
    }
}
