//! Connections inside this process, with a bound on what is under way.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use port::{Accept, Channel, ChannelError, Close, Dial, Halves, Receive, Transmit};

/// The most bytes under way in one direction: two of the largest frames.
const MOST: usize = 2 << 20;

/// The most bytes that are handed over at once.
const PIECE: usize = 256 << 10;

/// Until somebody says otherwise.
const DEADLINE: Duration = Duration::from_secs(30);

/// A connection: what one end sends, the other receives.
pub(super) fn pair() -> (PipeEnd, PipeEnd) {
    let (there, back) = (Arc::<Pipe>::default(), Arc::<Pipe>::default());
    let near = Ends { out: Arc::clone(&there), into: Arc::clone(&back) };
    let far = Ends { out: back, into: there };
    (PipeEnd(Arc::new(near)), PipeEnd(Arc::new(far)))
}

/// A place where connections come in, and somebody who opens them.
pub(super) fn place() -> (PipeDial, PipeAccept) {
    let (sender, receiver) = channel();
    (PipeDial(sender), PipeAccept(receiver))
}

/// One end of a connection.
pub(super) struct PipeEnd(Arc<Ends>);

/// Opens connections.
pub(super) struct PipeDial(Sender<PipeEnd>);

/// Takes them in.
pub(super) struct PipeAccept(Receiver<PipeEnd>);

impl Channel for PipeEnd {
    fn split(self: Box<Self>) -> Result<Halves, ChannelError> {
        let close = Hand { out: Arc::clone(&self.0.out), into: Arc::clone(&self.0.into) };
        Ok((
            Box::new(Half { ends: Arc::clone(&self.0), deadline: DEADLINE }),
            Box::new(Half { ends: self.0, deadline: DEADLINE }),
            Box::new(close),
        ))
    }
}

impl Dial for PipeDial {
    fn dial(&mut self, _: Duration) -> Result<Box<dyn Channel>, ChannelError> {
        let (near, far) = pair();
        self.0.send(far).map_err(|_| ChannelError::Closed)?;
        Ok(Box::new(near))
    }
}

impl Accept for PipeAccept {
    fn accept(&mut self, deadline: Duration) -> Result<Box<dyn Channel>, ChannelError> {
        match self.0.recv_timeout(deadline) {
            Ok(end) => Ok(Box::new(end)),
            Err(RecvTimeoutError::Timeout) => Err(timed_out(deadline)),
            Err(RecvTimeoutError::Disconnected) => Err(ChannelError::Closed),
        }
    }
}

/// One direction.
#[derive(Default)]
struct Pipe {
    flow: Mutex<Flow>,
    moved: Condvar,
}

#[derive(Default)]
struct Flow {
    pieces: VecDeque<Vec<u8>>,
    /// Bytes of the first piece that were received.
    taken: usize,
    under_way: usize,
    /// No more is sent: what is under way is still received.
    ended: bool,
    /// No more is received: what is sent has nowhere to go.
    deaf: bool,
}

impl Pipe {
    fn send(&self, part: &[u8], deadline: Duration) -> Result<(), ChannelError> {
        for piece in part.chunks(PIECE) {
            let mut flow = self.locked();
            loop {
                if flow.ended || flow.deaf {
                    return Err(ChannelError::Closed);
                }
                if flow.under_way < MOST {
                    break;
                }
                flow = self.wait(flow, deadline)?;
            }
            flow.under_way += piece.len();
            flow.pieces.push_back(piece.to_vec());
            self.moved.notify_all();
        }
        Ok(())
    }

    fn receive(
        &self,
        mut into: &mut [u8],
        deadline: Duration,
    ) -> Result<(), ChannelError> {
        let mut flow = self.locked();
        while !into.is_empty() {
            if flow.deaf {
                return Err(ChannelError::Closed);
            }
            let Flow { pieces, taken, under_way, ended, .. } = &mut *flow;
            let Some(piece) = pieces.front() else {
                if *ended {
                    return Err(ChannelError::Closed);
                }
                flow = self.wait(flow, deadline)?;
                continue;
            };
            let left = &piece[*taken..];
            let count = left.len().min(into.len());
            let (now, later) = into.split_at_mut(count);
            now.copy_from_slice(&left[..count]);
            into = later;
            *taken += count;
            *under_way -= count;
            if *taken == piece.len() {
                pieces.pop_front();
                *taken = 0;
            }
            self.moved.notify_all();
        }
        Ok(())
    }

    /// Waits until something moves, and no longer than that.
    fn wait<'a>(
        &self,
        flow: MutexGuard<'a, Flow>,
        deadline: Duration,
    ) -> Result<MutexGuard<'a, Flow>, ChannelError> {
        let waited = self.moved.wait_timeout(flow, deadline);
        let (flow, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() { Err(timed_out(deadline)) } else { Ok(flow) }
    }

    fn end(&self) {
        self.locked().ended = true;
        self.moved.notify_all();
    }

    fn deafen(&self) {
        let mut flow = self.locked();
        flow.deaf = true;
        flow.pieces.clear();
        drop(flow);
        self.moved.notify_all();
    }

    fn locked(&self) -> MutexGuard<'_, Flow> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn timed_out(deadline: Duration) -> ChannelError {
    ChannelError::TimedOut(u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX))
}

/// Held by both halves: the connection ends for the peer once both are gone.
struct Ends {
    out: Arc<Pipe>,
    into: Arc<Pipe>,
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.out.end();
        self.into.deafen();
    }
}

/// The half that sends, or the one that receives.
struct Half {
    ends: Arc<Ends>,
    deadline: Duration,
}

impl Transmit for Half {
    fn send(&mut self, parts: &[IoSlice<'_>]) -> Result<(), ChannelError> {
        parts.iter().try_for_each(|part| self.ends.out.send(part, self.deadline))
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }
}

impl Receive for Half {
    fn receive(&mut self, into: &mut [u8]) -> Result<(), ChannelError> {
        self.ends.into.receive(into, self.deadline)
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }
}

/// Ends both directions.
struct Hand {
    out: Arc<Pipe>,
    into: Arc<Pipe>,
}

impl Close for Hand {
    fn close(&self) {
        self.out.end();
        self.into.deafen();
    }
}
