//! Sends guest memory: a thread that owns the dirty tracking, and one more for each
//! further data connection while a round goes out.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::thread;

use dirty::{Drained, IovaRange};
use port::{Gate, Gpa, GuestMemory, MemoryRegion, Observer, Progress};
use wire::memory::{MAX_RUN_BYTES, RunKind, RunTable};
use wire::preamble::PageSize;

use super::heard::FromSource as Heard;
use super::lane::Lane;
use super::tracker::{Tracker, chain};
use crate::migration::Cause;
use crate::migration::source::Event;

/// What the memory worker does.
pub(super) enum Command {
    /// The data connections are open.
    Lanes(Arc<Vec<Lane>>),
    /// Record writes from now on.
    Track,
    /// Collect dirty bits and count; `last` after the devices stopped, when nobody asks
    /// any more whether the guest may be stopped.
    Collect { last: bool },
    /// Send what is dirty.
    SendRound,
    /// Everything of a round was sent: end it on every connection.
    EndRound(u32),
    /// Send what is dirty for the last time.
    SendLast,
    /// Count and digest on every connection.
    EndChannels,
    /// The other side applied what was drained.
    Acknowledge,
    /// Give the bits that nobody acknowledged back, and stop recording.
    Undo,
    /// Stop recording.
    Untrack,
}

/// Which stripe of the address space a connection carries, in bytes. An address has
/// its connection for the whole migration, so that a page of one round can never
/// overtake the same page of the next.
const STRIPE: u64 = 4 << 20;

/// Bytes between two words to the observer.
const TELL_EVERY: u64 = 16 << 20;

pub(super) struct MemorySender {
    pub(super) tracker: Tracker,
    pub(super) memory: Arc<dyn GuestMemory>,
    pub(super) gate: Option<Arc<dyn Gate>>,
    pub(super) page: PageSize,
    pub(super) observer: Arc<dyn Observer>,
}

impl MemorySender {
    /// Works until the commands end; gives the tracker back.
    pub(super) fn work(
        mut self,
        commands: &Receiver<Command>,
        out: &Sender<Heard>,
    ) -> Tracker {
        let mut lanes: Arc<Vec<Lane>> = Arc::new(Vec::new());
        for command in commands {
            let result = match command {
                Command::Lanes(open) => {
                    lanes = open;
                    continue;
                }
                Command::EndRound(round) => {
                    let ended = lanes.iter().try_for_each(|lane| lane.round_end(round));
                    if let Err(error) = ended {
                        let cause = Cause::Channel(chain(&error));
                        let _ = out.send(Heard::Event(Event::Failed(cause)));
                    }
                    continue;
                }
                Command::Acknowledge => {
                    self.tracker.acknowledge();
                    continue;
                }
                Command::Untrack => {
                    self.tracker.acknowledge();
                    self.tracker.stop();
                    continue;
                }
                Command::Undo => {
                    self.tracker.restore();
                    self.tracker.stop();
                    let _ = out.send(Heard::TrackingUndone);
                    continue;
                }
                Command::Track => self.tracker.start().map(|()| Event::Tracking),
                Command::Collect { last } => self.tracker.collect(last).map(|dirty| {
                    let asked = self.gate.as_ref().filter(|_| !last);
                    let gate = asked.is_none_or(|gate| gate.open());
                    Event::Collected { dirty, gate }
                }),
                Command::SendRound => self.send(&lanes).map(Event::RoundSent),
                Command::SendLast => self.send(&lanes).map(|bytes| {
                    let _ = out.send(Heard::LastMemory(bytes));
                    Event::MemorySent
                }),
                Command::EndChannels => lanes
                    .iter()
                    .try_for_each(Lane::channel_end)
                    .map(|()| Event::ChannelsEnded)
                    .map_err(|error| Cause::Channel(chain(&error))),
            };
            let _ = out.send(Heard::DirtyFailures(self.tracker.failures()));
            let event = result.unwrap_or_else(Event::Failed);
            let _ = out.send(Heard::Event(event));
        }
        self.tracker
    }

    /// Sends everything that is dirty; returns how many bytes of it were not zero.
    fn send(&mut self, lanes: &[Lane]) -> Result<u64, Cause> {
        let drained = self.tracker.drain();
        let before: u64 = lanes.iter().map(Lane::sent).sum();
        let dirty: u64 = drained.iter().map(|(_, bits)| bits.bytes()).sum();
        let total = before.saturating_add(dirty);
        let one = |n: usize| {
            let lane = Stream {
                lane: &lanes[n],
                lanes,
                stripe: Stripe { number: n as u64, of: lanes.len() as u64 },
                memory: &*self.memory,
                observer: &*self.observer,
                page: self.page,
                total,
            };
            lane.send(&drained)
        };
        if lanes.len() == 1 {
            return one(0);
        }
        thread::scope(|scope| {
            let others: Vec<_> =
                (1..lanes.len()).map(|n| scope.spawn(move || one(n))).collect();
            let mut sum = one(0);
            for other in others {
                let sent = other.join().unwrap_or_else(|_| {
                    Err(Cause::Vmm("a thread that sends memory panicked".into()))
                });
                sum = sum.and_then(|sum| Ok(sum + sent?));
            }
            sum
        })
    }
}

/// The addresses of one connection.
#[derive(Clone, Copy)]
struct Stripe {
    number: u64,
    of: u64,
}

impl Stripe {
    /// The parts of a run that are this connection's.
    fn cut(self, run: IovaRange) -> impl Iterator<Item = IovaRange> {
        // One connection: a run is not cut at all.
        let length = if self.of == 1 { u64::MAX } else { STRIPE };
        let mut at = Some(run.start());
        std::iter::from_fn(move || {
            let start = at?;
            let end = (start / length)
                .checked_add(1)
                .and_then(|next| next.checked_mul(length))
                .map_or(run.end(), |end| end.min(run.end()));
            at = (end < run.end()).then_some(end);
            Some((start, end))
        })
        .filter(move |(start, _)| (start / length) % self.of == self.number)
        .filter_map(|(start, end)| IovaRange::new(start, end - start).ok())
    }
}

struct Stream<'a> {
    lane: &'a Lane,
    lanes: &'a [Lane],
    stripe: Stripe,
    memory: &'a dyn GuestMemory,
    observer: &'a dyn Observer,
    page: PageSize,
    total: u64,
}

impl Stream<'_> {
    fn send(&self, drained: &[(MemoryRegion, Drained)]) -> Result<u64, Cause> {
        let mut frame = Frame::new(self.page);
        let mut sent = 0;
        let mut told = 0;
        for (_, bits) in drained {
            for part in bits.runs().flat_map(|run| self.stripe.cut(run)) {
                let mut at = part.start();
                while at < part.end() {
                    at += frame.fill(self.memory, at, part.end() - at)?;
                    if frame.is_full() {
                        sent += frame.flush(self.lane)?;
                    }
                    if sent - told >= TELL_EVERY {
                        told = sent;
                        let done = self.lanes.iter().map(Lane::sent).sum();
                        // Headers count too, so the last word may overshoot.
                        let total = self.total.max(done);
                        self.observer.progress(&Progress::Bytes { done, total });
                    }
                }
            }
        }
        Ok(sent + frame.flush(self.lane)?)
    }
}

/// One frame in the making. Its buffer is small enough to stay in a core's cache
/// between the copy, the zero test, the checksum and the send.
struct Frame {
    table: RunTable,
    buffer: Vec<u8>,
    page: usize,
    full: bool,
}

/// How many bytes of pages go into one frame. By `cargo xtask bench migration` on two
/// cores, 256 KiB cost a third of the speed, and 1 MiB a tenth.
const FRAME_BYTES: usize = 512 << 10;
const _: () = assert!(FRAME_BYTES <= MAX_RUN_BYTES as usize);

impl Frame {
    fn new(page: PageSize) -> Frame {
        let bytes = page.get() as usize;
        Frame {
            table: RunTable::new(page),
            buffer: vec![0; FRAME_BYTES.max(bytes)],
            page: bytes,
            full: false,
        }
    }

    fn is_full(&self) -> bool {
        self.full
    }

    /// Copies pages in, from `at`, as many as fit of `length` bytes; returns how many
    /// bytes were dealt with. Tests and checksums are made on the copy: the guest
    /// writes on.
    fn fill(
        &mut self,
        memory: &dyn GuestMemory,
        at: u64,
        length: u64,
    ) -> Result<u64, Cause> {
        let used = self.table.data_len();
        let room = self.buffer.len() - used;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let copied = room.min(length) / self.page * self.page;
        if copied == 0 {
            self.full = true;
            return Ok(0);
        }
        let copy = &mut self.buffer[used..used + copied];
        memory.read(Gpa(at), copy).map_err(|error| Cause::Vmm(chain(&error)))?;
        let mut dealt = 0;
        let mut kept = 0;
        while dealt < copied {
            let zero = is_zero(&copy[dealt..dealt + self.page]);
            let mut end = dealt + self.page;
            while end < copied && is_zero(&copy[end..end + self.page]) == zero {
                end += self.page;
            }
            let pages = u32::try_from((end - dealt) / self.page).unwrap_or(u32::MAX);
            let kind = if zero { RunKind::Zero } else { RunKind::Data };
            // The table is full, or this address lies before the last: a new frame.
            if self.table.push(at + dealt as u64, pages, kind).is_err() {
                self.full = true;
                break;
            }
            if !zero {
                if kept < dealt {
                    copy.copy_within(dealt..end, kept);
                }
                kept += end - dealt;
            }
            dealt = end;
        }
        self.full |= used + kept == self.buffer.len();
        Ok(dealt as u64)
    }

    fn flush(&mut self, lane: &Lane) -> Result<u64, Cause> {
        if self.table.is_empty() {
            self.full = false;
            return Ok(0);
        }
        let data = &self.buffer[..self.table.data_len()];
        lane.memory(&self.table, data).map_err(|error| Cause::Channel(chain(&error)))?;
        let sent = data.len() as u64;
        self.table.clear();
        self.full = false;
        Ok(sent)
    }
}

/// Whether a page is all zero; mostly told by its first words.
fn is_zero(page: &[u8]) -> bool {
    page.chunks(64).all(|chunk| chunk.iter().fold(0, |or, byte| or | byte) == 0)
}
