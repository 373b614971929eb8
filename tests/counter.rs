//! The easy path: the state of `examples/counter.rs` moves from one instance into
//! another, save session to resume session, through `control`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests, and what they share")]

#[allow(dead_code, unreachable_pub, reason = "an example is a program of its own")]
#[path = "../examples/counter.rs"]
mod counter;

use control::{Transport, V2Device};
use counter::Counter;
use device::Runner;
use port::{Device, Opened, Read, ResumeSession};
use states::v2::State;
use std::sync::Arc;
use std::thread::JoinHandle;
use vfio_user::{Client, ClientOptions, NoDma, Server, ServerOptions, Stop};

/// A counter behind a socket, and the way to it.
struct Instance {
    device: V2Device,
    stop: Stop,
    server: Option<JoinHandle<()>>,
}

impl Instance {
    fn start(name: &str) -> Instance {
        let (ours, theirs) = sys::socket::pair().unwrap();
        let stop = Stop::new().unwrap();
        let server = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let runner = Runner::new(Box::new(Counter::default())).unwrap();
                let mut server = Server::new(runner, ServerOptions::default()).unwrap();
                server.adopt(theirs).unwrap();
                server.serve_until(&stop).unwrap();
            }
        });
        let options = ClientOptions::new(name, Arc::new(NoDma));
        let client = Client::over(ours, options).unwrap();
        let device = control::open(Arc::new(client)).unwrap();
        Instance { device, stop, server: Some(server) }
    }

    fn transport(&self) -> &dyn Transport {
        &**self.device.transport()
    }

    fn value(&self) -> u64 {
        let mut bytes = [0; 8];
        self.transport().region_read(0, 0, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn add(&self, value: u64) {
        self.transport().region_write(0, 0, &value.to_le_bytes()).unwrap();
    }

    /// Goes to a state that opens no session.
    fn go(&mut self, state: State) {
        assert!(matches!(self.device.set_state(state).unwrap(), Opened::None));
    }

    fn saved(&mut self) -> Vec<u8> {
        let Opened::Save(mut session) = self.device.set_state(State::StopCopy).unwrap()
        else {
            panic!("STOP_COPY opened no save session")
        };
        let mut state = Vec::new();
        let mut buffer = [0; 7];
        while let Read::Data { bytes, .. } = session.read(&mut buffer).unwrap() {
            state.extend_from_slice(&buffer[..bytes]);
        }
        state
    }

    fn resume(&mut self) -> Box<dyn ResumeSession> {
        match self.device.set_state(State::Resuming).unwrap() {
            Opened::Resume(session) => session,
            other => panic!("RESUMING opened {other:?}"),
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(server) = self.server.take() {
            server.join().unwrap();
        }
    }
}

#[test]
fn a_counter_moves_and_counts_on() {
    let mut source = Instance::start("source");
    let mut destination = Instance::start("destination");
    assert_eq!(source.device.identity(), destination.device.identity());
    source.add(40);
    source.add(2);
    destination.add(1000);

    let state = source.saved();
    let mut session = destination.resume();
    for part in state.chunks(5) {
        session.write(part, false).unwrap();
    }
    drop(session);
    destination.go(State::Stop);
    destination.go(State::Running);

    assert_eq!(destination.value(), 42);
    destination.add(1);
    assert_eq!(destination.value(), 43);
    // The source has not moved since, and could be taken back.
    source.go(State::Running);
    assert_eq!(source.value(), 42);
}

#[test]
fn a_damaged_counter_does_not_run() {
    let mut source = Instance::start("source");
    let mut destination = Instance::start("destination");
    source.add(42);
    let mut state = source.saved();
    state[20] ^= 1;
    destination.resume().write(&state, false).unwrap();
    assert!(destination.device.set_state(State::Running).is_err());
    assert_eq!(destination.device.state().unwrap(), State::Resuming);
    destination.device.reset().unwrap();
    assert_eq!(destination.value(), 0);
}
