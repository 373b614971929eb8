//! Consecutive frames of bulk as one line, for `--summary`.

use serde_json::{Value, json};
use wire::device::Phase;
use wire::walk::WalkedFrame;
use wire::{Frame, FrameType};

use super::count;
use super::meaning::phase;

/// Undamaged frames of one kind that follow each other.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) offset: u64,
    pub(super) sequence: u64,
    pub(super) kind: FrameType,
    /// Bytes of their payloads.
    pub(super) length: u64,
    frames: u64,
    of: Of,
    /// Where the bulk of the first begins: a device's or section's offset, or an
    /// address.
    from: u64,
    /// Their bulk: bytes of a device or section, or pages.
    amount: u64,
}

/// What the bulk is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Memory,
    Device(u32, Phase),
    Section(u32),
}

/// The group that is not at its end yet.
#[derive(Debug, Default)]
pub(super) struct Groups {
    open: Option<Group>,
}

impl Groups {
    /// Adds a frame. Returns the group that ends in front of it, and whether the frame
    /// belongs to a group itself; otherwise it is shown alone.
    pub(super) fn take(&mut self, frame: &WalkedFrame<'_>) -> (Option<Group>, bool) {
        let Some(next) = Group::of(frame) else { return (self.open.take(), false) };
        match &mut self.open {
            Some(open) if open.of == next.of => {
                open.frames += 1;
                open.length += next.length;
                open.amount += next.amount;
                (None, true)
            }
            open => (open.replace(next), true),
        }
    }

    /// Ends the group that is open.
    pub(super) fn end(&mut self) -> Option<Group> {
        self.open.take()
    }
}

impl Group {
    fn of(frame: &WalkedFrame<'_>) -> Option<Self> {
        if frame.damage.is_some() {
            return None;
        }
        let (of, from, amount) = match frame.frame.as_ref()? {
            Frame::Memory(memory) => {
                let runs = memory.runs();
                let first = runs.iter().next().map_or(0, |run| run.gpa);
                (Of::Memory, first, runs.pages())
            }
            Frame::DeviceData(data) => {
                let of = Of::Device(data.device, data.phase);
                (of, data.offset, data.bytes.len() as u64)
            }
            Frame::SectionData(data) => {
                (Of::Section(data.section), data.offset, data.bytes.len() as u64)
            }
            _ => return None,
        };
        let header = &frame.header;
        Some(Self {
            offset: frame.offset,
            sequence: header.sequence,
            kind: header.kind,
            length: header.length.into(),
            frames: 1,
            of,
            from,
            amount,
        })
    }

    pub(super) fn line(&self) -> String {
        let Self { from, amount, .. } = self;
        let frames = count(usize::try_from(self.frames).unwrap_or(usize::MAX), "frame");
        match self.of {
            Of::Memory => {
                format!("{frames}, {amount} pages, the first at {from:#x}")
            }
            Of::Device(device, when) => format!(
                "device {device}, {}: {frames}, {amount} bytes from {from} on",
                phase(when)
            ),
            Of::Section(section) => {
                format!("section {section}: {frames}, {amount} bytes from {from} on")
            }
        }
    }

    pub(super) fn json(&self) -> Value {
        let mut object = json!({
            "offset": self.offset,
            "sequence": self.sequence,
            "type": self.kind.to_string(),
            "count": self.frames,
            "length": self.length,
        });
        let (from, amount) = match self.of {
            Of::Memory => ("first_address", "pages"),
            Of::Device(device, when) => {
                object["device"] = json!(device);
                object["phase"] = json!(phase(when));
                ("from", "bytes")
            }
            Of::Section(section) => {
                object["section"] = json!(section);
                ("from", "bytes")
            }
        };
        object[from] = json!(self.from);
        object[amount] = json!(self.amount);
        object
    }
}
