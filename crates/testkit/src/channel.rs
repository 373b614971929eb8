//! Connections inside one process, with a limit of bytes under way.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use port::{Accept, Channel, ChannelError, Close, Dial, Halves, Receive, Transmit};

use crate::locked;

const DEADLINE: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(3600);

/// A connection: what one end sends the other receives. At most `limit` bytes are
/// under way in each direction; a sender waits beyond that, as on a full socket.
///
/// The order of bytes, the deadlines of progress, and the effect of closing are those
/// of a TCP connection.
pub fn pair(limit: usize) -> (MemoryChannel, MemoryChannel) {
    let (there, back) = (Pipe::new(limit), Pipe::new(limit));
    (
        MemoryChannel(Arc::new(Ends {
            out: Arc::clone(&there),
            into: Arc::clone(&back),
        })),
        MemoryChannel(Arc::new(Ends { out: back, into: there })),
    )
}

/// A place where connections come in and somebody who opens them, each of them a
/// [`pair`] with `limit`. Clones of the dialer may play strangers.
pub fn network(limit: usize) -> (FakeDial, FakeAccept) {
    let (sender, receiver) = mpsc::channel();
    let dials = Arc::new(AtomicU64::new(0));
    (FakeDial { limit, sender, dials }, FakeAccept { receiver })
}

/// One end of a connection inside this process.
#[derive(Debug)]
pub struct MemoryChannel(Arc<Ends>);

impl Channel for MemoryChannel {
    fn split(self: Box<Self>) -> Result<Halves, ChannelError> {
        let close = End { out: Arc::clone(&self.0.out), into: Arc::clone(&self.0.into) };
        Ok((
            Box::new(Out { ends: Arc::clone(&self.0), deadline: DEADLINE }),
            Box::new(In { ends: self.0, deadline: DEADLINE }),
            Box::new(close),
        ))
    }
}

/// Opens connections to a [`FakeAccept`].
#[derive(Clone, Debug)]
pub struct FakeDial {
    limit: usize,
    sender: mpsc::Sender<MemoryChannel>,
    dials: Arc<AtomicU64>,
}

impl FakeDial {
    /// Opens a connection.
    ///
    /// # Errors
    /// When the other side is gone.
    pub fn open(&self) -> Result<MemoryChannel, ChannelError> {
        let (here, there) = pair(self.limit);
        self.sender.send(there).map_err(|_| ChannelError::Closed)?;
        self.dials.fetch_add(1, Ordering::SeqCst);
        Ok(here)
    }

    /// How many connections were opened.
    pub fn opened(&self) -> u64 {
        self.dials.load(Ordering::SeqCst)
    }
}

impl Dial for FakeDial {
    fn dial(&mut self, _deadline: Duration) -> Result<Box<dyn Channel>, ChannelError> {
        Ok(Box::new(self.open()?))
    }
}

/// Takes connections of a [`FakeDial`] in.
#[derive(Debug)]
pub struct FakeAccept {
    receiver: mpsc::Receiver<MemoryChannel>,
}

impl FakeAccept {
    /// Takes the next connection.
    ///
    /// # Errors
    /// When none came within `deadline`, or nobody is left who could open one.
    pub fn take(&self, deadline: Duration) -> Result<MemoryChannel, ChannelError> {
        self.receiver.recv_timeout(deadline).map_err(|error| match error {
            RecvTimeoutError::Timeout => timed_out(deadline),
            RecvTimeoutError::Disconnected => ChannelError::Closed,
        })
    }
}

impl Accept for FakeAccept {
    fn accept(&mut self, deadline: Duration) -> Result<Box<dyn Channel>, ChannelError> {
        Ok(Box::new(self.take(deadline)?))
    }
}

/// One direction.
#[derive(Debug)]
struct Pipe {
    limit: usize,
    flow: Mutex<Flow>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct Flow {
    bytes: VecDeque<u8>,
    /// No more is sent: what is under way is still received.
    ended: bool,
    /// No more is received: what is sent has nowhere to go.
    deaf: bool,
}

impl Pipe {
    fn new(limit: usize) -> Arc<Pipe> {
        let limit = limit.max(1);
        Arc::new(Pipe { limit, flow: Mutex::default(), moved: Condvar::new() })
    }

    fn end(&self) {
        locked(&self.flow).ended = true;
        self.moved.notify_all();
    }

    fn deafen(&self) {
        let mut flow = locked(&self.flow);
        flow.deaf = true;
        flow.bytes.clear();
        drop(flow);
        self.moved.notify_all();
    }

    fn send(&self, mut from: &[u8], deadline: Duration) -> Result<(), ChannelError> {
        let mut flow = locked(&self.flow);
        let mut until = Instant::now() + deadline.min(LONGEST);
        while !from.is_empty() {
            if flow.ended || flow.deaf {
                return Err(ChannelError::Closed);
            }
            let room = (self.limit - flow.bytes.len()).min(from.len());
            if room > 0 {
                flow.bytes.extend(&from[..room]);
                from = &from[room..];
                self.moved.notify_all();
                until = Instant::now() + deadline.min(LONGEST);
                continue;
            }
            flow = self.wait(flow, until, deadline)?;
        }
        Ok(())
    }

    fn receive(
        &self,
        mut into: &mut [u8],
        deadline: Duration,
    ) -> Result<(), ChannelError> {
        let mut flow = locked(&self.flow);
        let mut until = Instant::now() + deadline.min(LONGEST);
        while !into.is_empty() {
            if flow.deaf {
                return Err(ChannelError::Closed);
            }
            let some = flow.bytes.len().min(into.len());
            if some > 0 {
                for (to, byte) in into.iter_mut().zip(flow.bytes.drain(..some)) {
                    *to = byte;
                }
                into = &mut into[some..];
                self.moved.notify_all();
                until = Instant::now() + deadline.min(LONGEST);
                continue;
            }
            if flow.ended {
                return Err(ChannelError::Closed);
            }
            flow = self.wait(flow, until, deadline)?;
        }
        Ok(())
    }

    fn wait<'a>(
        &self,
        flow: std::sync::MutexGuard<'a, Flow>,
        until: Instant,
        deadline: Duration,
    ) -> Result<std::sync::MutexGuard<'a, Flow>, ChannelError> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(timed_out(deadline));
        }
        let (flow, _) =
            self.moved.wait_timeout(flow, left).unwrap_or_else(PoisonError::into_inner);
        Ok(flow)
    }
}

fn timed_out(deadline: Duration) -> ChannelError {
    ChannelError::TimedOut(u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX))
}

/// Held by both halves: the connection ends for the peer once both are gone, as a
/// socket does with its last descriptor.
#[derive(Debug)]
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

struct Out {
    ends: Arc<Ends>,
    deadline: Duration,
}

impl Transmit for Out {
    fn send(&mut self, parts: &[IoSlice<'_>]) -> Result<(), ChannelError> {
        parts.iter().try_for_each(|part| self.ends.out.send(part, self.deadline))
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }
}

struct In {
    ends: Arc<Ends>,
    deadline: Duration,
}

impl Receive for In {
    fn receive(&mut self, into: &mut [u8]) -> Result<(), ChannelError> {
        self.ends.into.receive(into, self.deadline)
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }
}

struct End {
    out: Arc<Pipe>,
    into: Arc<Pipe>,
}

impl Close for End {
    fn close(&self) {
        self.out.end();
        self.into.deafen();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    #[test]
    fn more_than_the_limit_goes_through_while_somebody_reads() {
        let (here, there) = pair(10);
        let (mut transmit, ..) = Box::new(here).split().unwrap();
        let (_, mut receive, _) = Box::new(there).split().unwrap();
        let sent: Vec<u8> = (0..=255).collect();
        let mut heard = [0; 256];
        std::thread::scope(|scope| {
            scope.spawn(|| transmit.send(&[IoSlice::new(&sent)]).unwrap());
            receive.receive(&mut heard).unwrap();
        });
        assert_eq!(heard, *sent);
    }

    #[test]
    fn a_full_pipe_and_an_empty_one_time_out() {
        let (here, _there) = pair(10);
        let (mut transmit, mut receive, _) = Box::new(here).split().unwrap();
        transmit.set_deadline(SOON);
        receive.set_deadline(SOON);
        let result = transmit.send(&[IoSlice::new(&[0; 11])]);
        assert!(matches!(result, Err(ChannelError::TimedOut(20))));
        assert!(matches!(receive.receive(&mut [0]), Err(ChannelError::TimedOut(20))));
    }

    #[test]
    fn what_was_sent_before_the_end_is_still_received() {
        let (here, there) = pair(10);
        let (mut transmit, receive, _) = Box::new(here).split().unwrap();
        let (mut back, mut heard, _) = Box::new(there).split().unwrap();
        transmit.send(&[IoSlice::new(b"ab")]).unwrap();
        drop((transmit, receive));
        let mut two = [0; 2];
        heard.receive(&mut two).unwrap();
        assert_eq!(&two, b"ab");
        assert!(matches!(heard.receive(&mut [0]), Err(ChannelError::Closed)));
        assert!(matches!(back.send(&[IoSlice::new(b"x")]), Err(ChannelError::Closed)));
    }

    #[test]
    fn close_wakes_both_ends() {
        let (here, there) = pair(10);
        let (_transmit, mut receive, close) = Box::new(here).split().unwrap();
        let (_back, mut heard, _) = Box::new(there).split().unwrap();
        std::thread::scope(|scope| {
            let one = scope.spawn(move || receive.receive(&mut [0]));
            let two = scope.spawn(move || heard.receive(&mut [0]));
            close.close();
            for thread in [one, two] {
                assert!(matches!(thread.join().unwrap(), Err(ChannelError::Closed)));
            }
        });
    }

    #[test]
    fn connections_are_taken_in_the_order_they_were_opened() {
        let (mut dial, mut accept) = network(10);
        for n in 0..3 {
            let (mut transmit, _r, _) = dial.dial(SOON).unwrap().split().unwrap();
            let (_t, mut receive, _) = accept.accept(SOON).unwrap().split().unwrap();
            transmit.send(&[IoSlice::new(&[n])]).unwrap();
            let mut heard = [9];
            receive.receive(&mut heard).unwrap();
            assert_eq!(heard, [n]);
        }
        assert_eq!(dial.opened(), 3);
        assert!(matches!(accept.accept(SOON), Err(ChannelError::TimedOut(_))));
        drop(dial);
        assert!(matches!(accept.accept(SOON), Err(ChannelError::Closed)));
    }
}
