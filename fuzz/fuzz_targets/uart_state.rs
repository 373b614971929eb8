//! The serial card's saved state, as a hostile peer would write it.
//!
//! A first byte chooses the number of ports, how the input is cut into writes, and what
//! the rest is: a stream, or what a stream has behind its header and then accesses to
//! registers, of two bytes each. Whatever comes, the device must neither panic nor hang;
//! what it accepts, it must save again byte for byte, and whatever a guest does then must
//! leave it with a state that it accepts.

#![no_main]

use device::{Moved, Runner};
use models::uart::{Parameters, Uart};
use states::v2::{Capabilities, State};
use std::time::{Duration, Instant};

const HEADER: [u8; 16] =
    [0x4e, 0x2c, 0x3e, 0x8c, 0x89, 0x09, 0x9d, 0x7e, 1, 0, 0, 0, 0, 0, 0, 0];

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let ports = 1 + u32::from(choice & 1);
    let size = 1 + usize::from(choice >> 2);
    let (stream, traffic) = if choice & 2 == 0 {
        (data.to_vec(), &[][..])
    } else {
        let (ports_data, traffic) = data.split_at(data.len().min(36 * ports as usize));
        let fields = [ports.to_le_bytes(), [0; 4]].concat();
        ([&HEADER, &fields[..], ports_data].concat(), traffic)
    };
    let Some(runner) = load(&stream, ports, size) else { return };
    let digest = runner.digest();
    let (again, mut runner) = save(runner);
    assert_eq!(again, stream, "a state is saved as another one");
    let second = load(&again, ports, again.len()).expect("a saved state is accepted");
    assert_eq!(digest, second.digest(), "save and load change the device");

    go(&mut runner, State::Running);
    let mut now = Instant::now();
    for access in traffic.chunks_exact(2) {
        let (bar, register) = (u32::from(access[0] >> 3 & 1), u64::from(access[0] & 7));
        // The second port is not on every card.
        let _ = match access[0] >> 4 & 3 {
            0 => runner.read_region(bar, register, &mut [0]),
            1 => runner.write_region(bar, register, &access[1..]),
            2 => runner.write_region(7, access[1].into(), &[access[0]]),
            _ => {
                now += Duration::from_millis(access[1].into());
                Ok(())
            }
        };
        let _ = runner.work(now);
    }
    let digest = runner.digest();
    let (last, _) = save(runner);
    let third = load(&last, ports, last.len()).expect("a saved state is accepted");
    assert_eq!(digest, third.digest(), "save and load change the device");
});

/// A device in STOP with that state; `None` where it was refused.
fn load(stream: &[u8], ports: u32, size: usize) -> Option<Runner> {
    let uart = Uart::new(Parameters { ports, capabilities: Capabilities::ALL })
        .expect("one port or two are possible");
    let mut runner = Runner::new(Box::new(uart)).expect("the card is possible");
    let session = go(&mut runner, State::Resuming).expect("RESUMING opens a session");
    let taken = stream.chunks(size).try_for_each(|part| runner.write_data(session, part));
    let stopped = runner.set_state(State::Stop, Instant::now());
    assert!(taken.is_ok() || stopped.is_err(), "accepted after an error");
    stopped.ok().map(|_| runner)
}

fn save(mut runner: Runner) -> (Vec<u8>, Runner) {
    let session = go(&mut runner, State::StopCopy).expect("STOP_COPY opens a session");
    let mut stream = Vec::new();
    let mut buffer = [0; 50];
    loop {
        let read = runner.read_data(session, &mut buffer).expect("a device is saved");
        if read == 0 {
            return (stream, runner);
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
