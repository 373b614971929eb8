//! A small model with pre-copy: blocks of memory, and a counter.

use abi::errno::Errno;
use dirty::Iova;
use states::v2::{Capabilities, Session, State, session};
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use vfio_migrate_device::{
    Bus, Description, Digest, Identity, Migratable, PrecopyInfo, Region, Settle,
    StateArc, Work,
};

pub(crate) const BLOCK: usize = 500;
pub(crate) const BLOCKS: usize = 40;
const RECORD: usize = 4 + BLOCK;
const END: u32 = 0xe11d;
const TRAILER: usize = 12;

/// What goes wrong, or slowly, next.
#[derive(Default)]
pub(crate) struct Fate {
    /// Arcs that end in this state fail with that.
    pub(crate) refuse: Vec<(State, Errno)>,
    /// How often an arc answers "later".
    pub(crate) lazy: u32,
    /// Which arcs do; all where it is `None`.
    pub(crate) lazy_to: Option<State>,
    pub(crate) save: Option<Errno>,
    pub(crate) arcs: Vec<(State, State)>,
    pub(crate) resets: u32,
}

/// Region 0: write to a block changes it and is counted. Region 1: a write of an address
/// writes 8 bytes there by DMA.
pub(crate) struct Scribe {
    memory: Vec<u8>,
    writes: u64,
    capabilities: Capabilities,
    fate: Arc<Mutex<Fate>>,
    state: State,
    initial: BTreeSet<usize>,
    dirty: BTreeSet<usize>,
    out: VecDeque<u8>,
    /// What is in `out` is initial data.
    first: bool,
    ended: bool,
    incoming: Vec<u8>,
    complete: bool,
}

impl Scribe {
    pub(crate) fn new(capabilities: Capabilities) -> (Scribe, Arc<Mutex<Fate>>) {
        let fate = Arc::new(Mutex::new(Fate::default()));
        let scribe = Scribe {
            memory: vec![0; BLOCK * BLOCKS],
            writes: 0,
            capabilities,
            fate: Arc::clone(&fate),
            state: State::Running,
            initial: BTreeSet::new(),
            dirty: BTreeSet::new(),
            out: VecDeque::new(),
            first: true,
            ended: false,
            incoming: Vec::new(),
            complete: false,
        };
        (scribe, fate)
    }

    fn arrived(&mut self, arc: StateArc) {
        self.state = arc.to;
        match session(arc.from, arc.to) {
            Session::OpensSave => {
                self.initial = (0..BLOCKS).collect();
                self.dirty.clear();
                self.out.clear();
                self.ended = false;
            }
            Session::OpensResume => {
                self.incoming.clear();
                self.complete = false;
            }
            _ => {}
        }
    }
}

impl Migratable for Scribe {
    fn describe(&self) -> Description {
        let region =
            |index, size| Region { index, size, writable: true, windows: vec![] };
        Description {
            identity: Identity { pci: None, model: "scribe".to_owned(), data_version: 1 },
            capabilities: self.capabilities,
            regions: vec![region(0, (BLOCK * BLOCKS) as u64), region(1, 8)],
            irqs: vec![],
        }
    }

    fn read(&mut self, region: u32, at: u64, into: &mut [u8]) -> Result<(), Errno> {
        match region {
            0 => into.copy_from_slice(&self.memory[at as usize..][..into.len()]),
            _ => into.fill(0),
        }
        Ok(())
    }

    fn write(
        &mut self,
        region: u32,
        at: u64,
        data: &[u8],
        bus: &mut dyn Bus,
    ) -> Result<(), Errno> {
        if region == 1 {
            let to = u64::from_ne_bytes(data.try_into().map_err(|_| Errno::EINVAL)?);
            return bus.write(Iova(to), &[7; 8]).map(|_| ()).map_err(|_| Errno::EFAULT);
        }
        let at = at as usize;
        self.memory[at..][..data.len()].copy_from_slice(data);
        self.writes += 1;
        for block in at / BLOCK..=(at + data.len() - 1) / BLOCK {
            if !self.initial.contains(&block) {
                self.dirty.insert(block);
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        let (fresh, _) = Scribe::new(self.capabilities);
        self.fate.lock().unwrap().resets += 1;
        *self = Scribe { fate: Arc::clone(&self.fate), ..fresh };
    }

    fn enter(&mut self, arc: StateArc, bus: &mut dyn Bus) -> Result<Settle, Errno> {
        {
            let mut fate = self.fate.lock().unwrap();
            if let Some((_, errno)) = fate.refuse.iter().find(|no| no.0 == arc.to) {
                return Err(*errno);
            }
            if fate.lazy > 0 && fate.lazy_to.is_none_or(|to| to == arc.to) {
                fate.lazy -= 1;
                fate.arcs.push((arc.from, arc.to));
                return Ok(Settle::Later);
            }
            fate.arcs.push((arc.from, arc.to));
        }
        let _ = bus;
        self.arrived(arc);
        Ok(Settle::Now)
    }

    fn settled(&mut self, _: &mut dyn Bus) -> Result<Settle, Errno> {
        let mut fate = self.fate.lock().unwrap();
        if fate.lazy > 0 {
            fate.lazy -= 1;
            return Ok(Settle::Later);
        }
        let (from, to) = *fate.arcs.last().unwrap();
        drop(fate);
        self.arrived(StateArc { from, to });
        Ok(Settle::Now)
    }

    fn save(&mut self, into: &mut [u8]) -> Result<usize, Errno> {
        if let Some(errno) = self.fate.lock().unwrap().save {
            return Err(errno);
        }
        while self.out.len() < into.len() {
            let first = self.initial.pop_first();
            self.first = first.is_some();
            let next = first.or_else(|| self.dirty.pop_first());
            if let Some(block) = next {
                self.out.extend((block as u32).to_le_bytes());
                self.out.extend(&self.memory[block * BLOCK..][..BLOCK]);
            } else if self.state == State::StopCopy && !self.ended {
                self.ended = true;
                self.out.extend(END.to_le_bytes());
                self.out.extend(self.writes.to_le_bytes());
            } else {
                break;
            }
        }
        let count = self.out.len().min(into.len());
        for (to, from) in into.iter_mut().zip(self.out.drain(..count)) {
            *to = from;
        }
        Ok(count)
    }

    fn precopy_info(&mut self) -> Result<PrecopyInfo, Errno> {
        let (first, then) =
            if self.first { (self.out.len(), 0) } else { (0, self.out.len()) };
        let initial_bytes = (self.initial.len() * RECORD + first) as u64;
        let dirty = self.dirty.len() * RECORD + then;
        let dirty_bytes = if initial_bytes == 0 { dirty as u64 } else { 0 };
        Ok(PrecopyInfo { initial_bytes, dirty_bytes, reinit: false })
    }

    fn stop_copy_bytes(&self) -> u64 {
        if !matches!(self.state, State::PreCopy | State::PreCopyP2p | State::StopCopy) {
            return (BLOCKS * RECORD + TRAILER) as u64;
        }
        let blocks = self.initial.len() + self.dirty.len();
        let trailer = if self.ended { 0 } else { TRAILER };
        (blocks * RECORD + self.out.len() + trailer) as u64
    }

    fn load(&mut self, data: &[u8]) -> Result<(), Errno> {
        self.incoming.extend(data);
        let mut rest = &self.incoming[..];
        while let Some((kind, body)) = rest.split_first_chunk::<4>() {
            let kind = u32::from_le_bytes(*kind);
            if self.complete {
                return Err(Errno::EINVAL);
            }
            if kind == END {
                let Some((writes, after)) = body.split_first_chunk::<8>() else { break };
                self.writes = u64::from_le_bytes(*writes);
                self.complete = true;
                rest = after;
                continue;
            }
            let at = kind as usize * BLOCK;
            let to = self.memory.get_mut(at..at + BLOCK).ok_or(Errno::EINVAL)?;
            let Some((block, after)) = body.split_first_chunk::<BLOCK>() else { break };
            to.copy_from_slice(block);
            rest = after;
        }
        self.incoming = rest.to_vec();
        Ok(())
    }

    fn loaded(&mut self) -> Result<(), Errno> {
        let whole = self.complete && self.incoming.is_empty();
        if whole { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn work(&mut self, _: &mut dyn Bus, _: Instant) -> Work {
        Work::Idle
    }

    fn digest(&self) -> Option<Digest> {
        let sum = |block: &[u8]| {
            block.iter().fold(7_u32, |sum, byte| {
                sum.wrapping_mul(31).wrapping_add(u32::from(*byte))
            })
        };
        Some(Digest {
            chunk_bytes: BLOCK as u64,
            chunks: self.memory.chunks(BLOCK).map(sum).collect(),
            counters: vec![("writes".to_owned(), self.writes)],
        })
    }
}
