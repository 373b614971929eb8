//! A device under test, with everything that it can reach.

use super::{Checked, Contract, STATE_MAX, Violation, difference};
use crate::{
    Digest, DmaTarget, DmaWindow, Migratable, Moved, PrecopyInfo, RequestKind, Runner,
    Session, Trigger, Work,
};
use abi::errno::Errno;
use dirty::IovaRange;
use states::v2::State;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How often a device gets time after it was put to work.
const TURNS: usize = 200;

/// How often a pending request is asked for.
const SETTLES: usize = 10_000;

/// How much time passes with each turn.
const TICK: Duration = Duration::from_millis(1);

/// A state that was saved, and what the device said of itself then.
pub(super) struct Stream {
    pub(super) data: Vec<u8>,
    pub(super) digest: Option<Digest>,
}

/// A device under test. Its time is made up, so nothing is waited for.
pub(super) struct Bench {
    pub(super) runner: Runner,
    pub(super) rounds: u32,
    check: &'static str,
    now: Instant,
    /// Whether the last read was of what the model lends.
    lent: bool,
}

/// Memory that nobody else looks at.
struct Memory(Mutex<Vec<u8>>);

impl DmaWindow for Memory {
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        let bytes = self.0.lock().map_err(|_| Errno::EIO)?;
        into.copy_from_slice(&bytes[offset as usize..][..into.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        let mut bytes = self.0.lock().map_err(|_| Errno::EIO)?;
        bytes[offset as usize..][..from.len()].copy_from_slice(from);
        Ok(())
    }
}

/// A listener that does not care.
struct Deaf;

impl Trigger for Deaf {
    fn fire(&self) {}
}

impl Bench {
    pub(super) fn new(
        check: &'static str,
        model: Box<dyn Migratable>,
    ) -> Result<Bench, Violation> {
        let fault = |what: String| Violation { check, what };
        let mut runner =
            Runner::new(model).map_err(|invalid| fault(invalid.to_string()))?;
        for irq in runner.description().irqs.clone() {
            for vector in 0..irq.count {
                runner
                    .bind(irq.index, vector, Some(Box::new(Deaf)))
                    .map_err(|errno| fault(format!("interrupts: {errno}")))?;
            }
        }
        let memory = Memory(Mutex::new(vec![0; Contract::WINDOW as usize]));
        for (start, target) in [
            (0, DmaTarget::Window(Box::new(memory))),
            (Contract::MESSAGES, DmaTarget::Messages),
        ] {
            IovaRange::new(start, Contract::WINDOW)
                .map_err(|_| Errno::EINVAL)
                .and_then(|range| runner.map(range, true, target))
                .map_err(|errno| fault(format!("DMA windows: {errno}")))?;
        }
        Ok(Bench { runner, rounds: 0, check, now: Instant::now(), lent: false })
    }

    pub(super) fn violation(&self, what: String) -> Violation {
        Violation { check: self.check, what }
    }

    pub(super) fn expect(&self, holds: bool, what: impl FnOnce() -> String) -> Checked {
        if holds { Ok(()) } else { Err(self.violation(what())) }
    }

    /// Gives the device some time. The last messages are left unanswered, so that a
    /// stop has something to wait for.
    pub(super) fn run(&mut self) {
        for _ in 0..TURNS {
            self.answer();
            self.now += TICK;
            if self.runner.work(self.now) == Work::Idle && self.runner.outstanding() == 0
            {
                break;
            }
        }
    }

    /// Answers all messages.
    fn answer(&mut self) {
        while let Some(request) = self.runner.next_request() {
            let answer = match request.kind {
                RequestKind::Read(len) => vec![0; len],
                RequestKind::Write(_) => Vec::new(),
            };
            // The token comes straight from the runner.
            let _ = self.runner.complete(request.token, Ok(&answer));
        }
    }

    /// Asks for a state, and sees it through.
    pub(super) fn set_state(&mut self, target: State) -> Result<Option<Session>, Errno> {
        match self.runner.set_state(target, self.now)? {
            Moved::Done(opened) => return Ok(opened),
            Moved::Pending => {}
        }
        for _ in 0..SETTLES {
            self.answer();
            self.now += TICK;
            if let Some(outcome) = self.runner.settle(self.now) {
                return outcome;
            }
        }
        Err(Errno::ETIMEDOUT)
    }

    /// Brings the device into a state; what RESUMING needs to be left is loaded.
    pub(super) fn reach(&mut self, state: State, stream: Option<&Stream>) -> Checked {
        self.set_state(state)
            .map_err(|errno| self.violation(format!("cannot reach {state}: {errno}")))?;
        match (stream, self.runner.session()) {
            (Some(stream), Some(session)) if state == State::Resuming => {
                self.write(session, &stream.data, 1 << 16)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn open_save(&mut self, state: State) -> Result<Session, Violation> {
        match self.set_state(state) {
            Ok(Some(session)) => Ok(session),
            other => Err(self.violation(format!("{state} opened no session: {other:?}"))),
        }
    }

    pub(super) fn open_resume(&mut self) -> Result<Session, Violation> {
        self.open_save(State::Resuming)
    }

    /// The whole state, read in pieces of at most `size` bytes.
    pub(super) fn saved(
        &mut self,
        check: &'static str,
        state: State,
        size: usize,
    ) -> Result<Vec<u8>, Violation> {
        self.check = check;
        let session = self.open_save(state)?;
        let estimate = self.runner.stop_copy_bytes();
        let mut data = Vec::new();
        self.read_to_end(session, size, &mut data)?;
        self.expect(data.len() as u64 <= estimate.saturating_add(4096), || {
            format!("{estimate} bytes announced, but {} saved", data.len())
        })?;
        Ok(data)
    }

    pub(super) fn read_to_end(
        &mut self,
        session: Session,
        size: usize,
        data: &mut Vec<u8>,
    ) -> Checked {
        while self.read(session, size, data)? > 0 {
            self.expect(data.len() <= STATE_MAX, || "the state has no end".to_owned())?;
        }
        // The end stays the end.
        let more = self.read(session, size, data)?;
        self.expect(more == 0, || format!("{more} bytes behind the end"))
    }

    /// Reads once, at most `size` bytes.
    pub(super) fn read(
        &mut self,
        session: Session,
        size: usize,
        data: &mut Vec<u8>,
    ) -> Result<usize, Violation> {
        let mut buffer = vec![0; size.min(1 << 20)];
        self.lent = !self.lent;
        let read = if self.lent {
            // One stream, whichever way it is read.
            self.runner.lend_data(session, &mut buffer).map(|bytes| {
                data.extend_from_slice(bytes);
                bytes.len()
            })
        } else {
            let read = self.runner.read_data(session, &mut buffer);
            read.inspect(|read| data.extend_from_slice(&buffer[..*read]))
        };
        read.map_err(|errno| self.violation(format!("cannot be saved: {errno}")))
    }

    /// Loads a state in pieces of `size` bytes.
    pub(super) fn load(&mut self, data: &[u8], size: usize) -> Checked {
        let session = self.open_resume()?;
        self.write(session, data, size)
    }

    fn write(&mut self, session: Session, data: &[u8], size: usize) -> Checked {
        for part in data.chunks(size) {
            self.runner
                .write_data(session, part)
                .map_err(|errno| self.violation(format!("cannot be loaded: {errno}")))?;
        }
        Ok(())
    }

    pub(super) fn info(&mut self, session: Session) -> Result<PrecopyInfo, Violation> {
        self.runner
            .precopy_info(session)
            .map_err(|errno| self.violation(format!("no pre-copy information: {errno}")))
    }

    /// The device holds what `digest` says.
    pub(super) fn same(&self, digest: &Option<Digest>, when: &str) -> Checked {
        match difference(digest, &self.runner.digest()) {
            None => Ok(()),
            Some(place) => Err(self.violation(format!("{when}: {place}"))),
        }
    }

    /// Rule 13: whatever it did, it did no DMA and raised no interrupt while stopped.
    pub(super) fn quiet(&self) -> Checked {
        let counters = self.runner.counters();
        let tried = counters.dma_while_stopped + counters.interrupts_while_stopped;
        self.expect(tried == 0, || format!("it did not keep still: {counters:?}"))
    }
}
