//! What the threads tell the main loops.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wire::Message;

use super::device::Answer as DeviceAnswer;
use super::vmm::Answer as VmmAnswer;
use crate::devices::DeviceId;
use crate::migration::{Cause, sink, source};

/// What the main loop of a source hears.
#[derive(Debug)]
pub(super) enum FromSource {
    Event(source::Event),
    Device(DeviceId, DeviceAnswer),
    Vmm(VmmAnswer),
    Message(Message),
    ControlGone(Cause),
    DirtyFailures(u64),
    LastMemory(u64),
    TrackingUndone,
}

/// What the main loop of a destination hears.
#[derive(Debug)]
pub(super) enum FromSink {
    Event(sink::Event),
    Device(DeviceId, DeviceAnswer),
    Vmm(VmmAnswer),
    Message(Message),
    ControlGone(Cause),
    LaneRound(usize, u32),
    LaneEnded(usize),
    LaneFailed(Cause),
}

/// How many messages of the peer wait to be heard. A peer that says more than it is
/// answered would fill this side's memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Backlog(Arc<AtomicUsize>);

/// More messages than any honest peer has under way.
const MOST_MESSAGES: usize = 64;

impl Backlog {
    /// One more waits; `false` when that is too many.
    pub(super) fn enter(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) < MOST_MESSAGES
    }

    /// One was heard.
    pub(super) fn leave(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a peer that says too much is not listened to any more.
pub(super) fn too_much() -> Cause {
    let text = format!("more than {MOST_MESSAGES} messages that nobody asked for");
    Cause::Protocol(text)
}
