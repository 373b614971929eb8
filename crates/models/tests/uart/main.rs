//! The serial card, driven as a server drives it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests, and what they share")]

mod contract;
mod interrupts;
mod registers;
mod state;
mod traffic;

use device::{Moved, Runner, Session, Trigger, Work};
use states::v2::State;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use vfio_migrate_models::uart::{BAR0, Parameters, Uart};

const INTX: u32 = 0;
const MSI: u32 = 1;

fn uart(ports: u32) -> Box<Uart> {
    Box::new(Uart::new(Parameters { ports, ..Parameters::default() }).unwrap())
}

#[derive(Clone, Default)]
struct Count(Arc<AtomicU64>);

impl Trigger for Count {
    fn fire(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Count {
    fn heard(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A card whose time is made up. Accesses are to port one unless another is named.
struct Rig {
    runner: Runner,
    now: Instant,
}

impl Rig {
    fn new(ports: u32) -> Rig {
        Rig { runner: Runner::new(uart(ports)).unwrap(), now: Instant::now() }
    }

    /// A card whose client listens to one of its two interrupts.
    fn heard_by(ports: u32, index: u32) -> (Rig, Count) {
        let mut rig = Rig::new(ports);
        let count = Count::default();
        rig.runner.bind(index, 0, Some(Box::new(count.clone()))).unwrap();
        (rig, count)
    }

    fn read(&mut self, register: u64) -> u8 {
        self.read_of(BAR0, register)
    }

    fn read_of(&mut self, bar: u32, register: u64) -> u8 {
        let mut byte = [0xaa];
        self.runner.read_region(bar, register, &mut byte).unwrap();
        // As a server does after each access.
        let _ = self.runner.work(self.now);
        byte[0]
    }

    fn write(&mut self, register: u64, value: u8) {
        self.write_of(BAR0, register, value);
    }

    fn write_of(&mut self, bar: u32, register: u64, value: u8) {
        self.runner.write_region(bar, register, &[value]).unwrap();
        let _ = self.runner.work(self.now);
    }

    fn send(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write(0, *byte));
    }

    fn receive(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.read(0)).collect()
    }

    /// Lets time pass.
    fn wait(&mut self, time: Duration) {
        let _ = self.passes(time);
    }

    /// As [`Rig::wait`]; what the card wants next.
    fn passes(&mut self, time: Duration) -> Work {
        self.now += time;
        self.runner.work(self.now)
    }

    fn set(&mut self, state: State) -> Option<Session> {
        match self.runner.set_state(state, self.now) {
            Ok(Moved::Done(session)) => session,
            other => panic!("{state}: {other:?}"),
        }
    }

    /// What a session gives until it has nothing more.
    fn read_data(&mut self, session: Session) -> Vec<u8> {
        let mut data = Vec::new();
        let mut buffer = [0; 50];
        while let read @ 1.. = self.runner.read_data(session, &mut buffer).unwrap() {
            data.extend_from_slice(&buffer[..read]);
        }
        data
    }

    /// Stops the card and saves it.
    fn save(&mut self) -> Vec<u8> {
        let session = self.set(State::StopCopy).unwrap();
        self.read_data(session)
    }

    /// Whether the state was accepted; then the card runs.
    fn load(&mut self, data: &[u8]) -> bool {
        let session = self.set(State::Resuming).unwrap();
        let taken = self.runner.write_data(session, data);
        let stopped = self.runner.set_state(State::Stop, self.now);
        assert!(taken.is_ok() || stopped.is_err(), "accepted after an error");
        if stopped.is_ok() {
            self.set(State::Running);
            let _ = self.runner.work(self.now);
        }
        stopped.is_ok()
    }
}
