//! A runner with a model that does what the test says.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests, and what they share")]
#![allow(unreachable_pub, reason = "a module of several test binaries")]
#![allow(dead_code, reason = "every test file uses a part of it")]
#![allow(missing_docs, missing_debug_implementations, reason = "helpers of tests")]

use abi::errno::Errno;
use abi::irq::IrqInfoFlags;
use dirty::{Iova, IovaRange};
use states::v2::{Capabilities, State};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use sys::SharedMemory;
use vfio_migrate_device::{
    Bus, BusError, Description, Dma, DmaTarget, Identity, Irq, Migratable, Moved,
    PrecopyInfo, Region, Runner, Session, Settle, StateArc, Token, Work,
};

/// What the puppet does next, and what was done to it.
#[derive(Default)]
pub struct Script {
    pub enter: VecDeque<Result<Settle, Errno>>,
    pub settled: VecDeque<Result<Settle, Errno>>,
    pub load: Option<Errno>,
    pub loaded: Option<Errno>,
    pub arcs: Vec<(State, State)>,
    pub works: u32,
    pub completions: Vec<(Token, Result<Vec<u8>, Errno>)>,
    pub resets: u32,
    /// What to do with the bus at the next write to region 0.
    pub dma: Option<Act>,
    pub did: Option<Result<Dma, BusError>>,
}

#[derive(Clone, Copy)]
pub enum Act {
    Read(u64, usize),
    Write(u64, usize),
    Raise(u32),
    /// An index and a vector.
    RaiseOn(u32, u32),
    /// The level of index 0.
    Level(bool),
}

/// An index whose vectors can be masked one by one.
pub const MASKABLE: Irq = Irq {
    index: 5,
    count: 3,
    flags: IrqInfoFlags::EVENTFD.union(IrqInfoFlags::MASKABLE),
};

#[derive(Clone)]
pub struct Puppet(pub Arc<Mutex<Script>>, pub Capabilities);

impl Migratable for Puppet {
    fn describe(&self) -> Description {
        let region =
            |index, size, writable| Region { index, size, writable, windows: vec![] };
        Description {
            identity: Identity { pci: None, model: "puppet".to_owned(), data_version: 1 },
            capabilities: self.1,
            regions: vec![region(0, 64, true), region(1, 8, false), region(7, 256, true)],
            irqs: vec![Irq::new(2, 2), Irq::new(0, 1), MASKABLE],
        }
    }
    fn read(&mut self, _: u32, _: u64, into: &mut [u8]) -> Result<(), Errno> {
        into.fill(0x5a);
        Ok(())
    }
    fn write(
        &mut self,
        region: u32,
        _: u64,
        _: &[u8],
        bus: &mut dyn Bus,
    ) -> Result<(), Errno> {
        let mut script = self.0.lock().unwrap();
        // Config space takes writes in every state: the way to misbehave while stopped.
        let act = if region == 1 { None } else { script.dma };
        script.did = act.map(|act| match act {
            Act::Read(at, len) => bus.read(Iova(at), &mut vec![0; len]),
            Act::Write(at, len) => bus.write(Iova(at), &vec![7; len]),
            Act::Raise(vector) => bus.raise(2, vector).map(|()| Dma::Done),
            Act::RaiseOn(index, vector) => bus.raise(index, vector).map(|()| Dma::Done),
            Act::Level(up) => {
                bus.set_level(0, 0, up);
                Ok(Dma::Done)
            }
        });
        Ok(())
    }
    fn reset(&mut self) {
        self.0.lock().unwrap().resets += 1;
    }
    fn enter(&mut self, arc: StateArc, bus: &mut dyn Bus) -> Result<Settle, Errno> {
        if arc.to.is_p2p_quiescent() {
            assert_eq!(bus.outstanding(), 0, "{arc:?} before the messages came back");
        }
        let mut script = self.0.lock().unwrap();
        let answer = script.enter.pop_front().unwrap_or(Ok(Settle::Now));
        script.arcs.push((arc.from, arc.to));
        answer
    }
    fn settled(&mut self, _: &mut dyn Bus) -> Result<Settle, Errno> {
        self.0.lock().unwrap().settled.pop_front().unwrap_or(Ok(Settle::Later))
    }
    fn save(&mut self, into: &mut [u8]) -> Result<usize, Errno> {
        into[0] = 1;
        Ok(1)
    }
    fn precopy_info(&mut self) -> Result<PrecopyInfo, Errno> {
        Ok(PrecopyInfo { initial_bytes: 1, dirty_bytes: 0, reinit: false })
    }
    fn stop_copy_bytes(&self) -> u64 {
        1
    }
    fn load(&mut self, _: &[u8]) -> Result<(), Errno> {
        self.0.lock().unwrap().load.map_or(Ok(()), Err)
    }
    fn loaded(&mut self) -> Result<(), Errno> {
        self.0.lock().unwrap().loaded.map_or(Ok(()), Err)
    }
    fn work(&mut self, _: &mut dyn Bus, _: Instant) -> Work {
        self.0.lock().unwrap().works += 1;
        Work::Again
    }
    fn dma_done(
        &mut self,
        token: Token,
        result: Result<&[u8], Errno>,
        _: &mut dyn Bus,
    ) -> Result<(), Errno> {
        let mut script = self.0.lock().unwrap();
        script.completions.push((token, result.map(<[u8]>::to_vec)));
        Ok(())
    }
}

pub struct Rig {
    pub runner: Runner,
    pub script: Arc<Mutex<Script>>,
    pub now: Instant,
}

pub const MEMORY: u64 = 8192;
pub const PEER: u64 = 1 << 32;

pub fn rig(capabilities: Capabilities) -> Rig {
    let script = Arc::new(Mutex::new(Script::default()));
    let mut runner =
        Runner::new(Box::new(Puppet(Arc::clone(&script), capabilities))).unwrap();
    // Two windows side by side, so that accesses can span them.
    let memory = SharedMemory::create("test", MEMORY).unwrap();
    for at in [0, 4096] {
        let window = Box::new(memory.slice(at, 4096).unwrap());
        let range = IovaRange::new(at, 4096).unwrap();
        runner.map(range, true, DmaTarget::Window(window)).unwrap();
    }
    let readonly = Box::new(memory.slice(0, 4096).unwrap());
    let range = IovaRange::new(1 << 20, 4096).unwrap();
    runner.map(range, false, DmaTarget::Window(readonly)).unwrap();
    let range = IovaRange::new(PEER, 4096).unwrap();
    runner.map(range, true, DmaTarget::Messages).unwrap();
    Rig { runner, script, now: Instant::now() }
}

impl Rig {
    pub fn act(&mut self, act: Act) -> Result<Dma, BusError> {
        self.act_at(0, act)
    }
    pub fn act_at(&mut self, region: u32, act: Act) -> Result<Dma, BusError> {
        self.script.lock().unwrap().dma = Some(act);
        self.runner.write_region(region, 0, &[0]).unwrap();
        let mut script = self.script.lock().unwrap();
        script.dma = None;
        script.did.take().unwrap()
    }
    pub fn go(&mut self, state: State) -> Option<Session> {
        match self.runner.set_state(state, self.now) {
            Ok(Moved::Done(session)) => session,
            other => panic!("{state}: {other:?}"),
        }
    }
    pub fn ask(&mut self, state: State) -> Result<Moved, Errno> {
        self.runner.set_state(state, self.now)
    }
}
