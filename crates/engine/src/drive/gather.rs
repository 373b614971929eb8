//! Answers of all devices, until the last is there.

use super::device::Answer;
use crate::devices::DeviceId;
use crate::migration::source::{DevicePending, Event};

/// What each device has answered so far.
pub(super) struct Gather {
    iterated: Vec<Option<(u64, bool)>>,
    pending: Vec<Option<DevicePending>>,
    drained: Vec<bool>,
}

impl Gather {
    pub(super) fn new(devices: usize) -> Gather {
        Gather {
            iterated: vec![None; devices],
            pending: vec![None; devices],
            drained: vec![false; devices],
        }
    }

    /// Takes one device's answer; an event when it was the last that was waited for.
    pub(super) fn device(&mut self, id: DeviceId, answer: Answer) -> Option<Event> {
        match answer {
            Answer::Set(event, took) => Some(Event::Devices(event, took)),
            Answer::Iterated { bytes, reset } => {
                self.iterated[id.0] = Some((bytes, reset));
                self.iterated()
            }
            Answer::Pending(left) => {
                self.pending[id.0] = Some(left);
                self.pending()
            }
            Answer::Drained => {
                self.drained[id.0] = true;
                self.drained()
            }
            Answer::Failed(cause) => Some(Event::Failed(cause)),
        }
    }

    /// Every device gave what it had for this round.
    pub(super) fn iterated(&mut self) -> Option<Event> {
        let all: Option<Vec<(u64, bool)>> = self.iterated.iter().copied().collect();
        let all = all?;
        self.iterated.fill(None);
        let reset = all.iter().enumerate().filter(|(_, (_, reset))| *reset);
        Some(Event::Iterated {
            bytes: all.iter().map(|(bytes, _)| bytes).sum(),
            reset: reset.map(|(n, _)| DeviceId(n)).collect(),
        })
    }

    /// Every device told what it has left.
    pub(super) fn pending(&mut self) -> Option<Event> {
        let all: Option<Vec<DevicePending>> = self.pending.iter().copied().collect();
        let all = all?;
        self.pending.fill(None);
        Some(Event::Pending(all))
    }

    /// Every device gave the rest of its data.
    pub(super) fn drained(&mut self) -> Option<Event> {
        self.drained.iter().all(|done| *done).then_some(Event::DevicesDrained)
    }
}
