//! What the threads tell the main loops.

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
