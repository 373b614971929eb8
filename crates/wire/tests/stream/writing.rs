//! Streams written frame by frame, whole and otherwise.

use crate::samples::{self, BYTES};
use crate::wire::device::{DeviceBegin, DeviceData, DeviceEnd, Phase};
use crate::wire::message::{Hello, MemoryRegion};
use crate::wire::preamble::Role;
use crate::wire::section::{SectionData, SectionInfo};
use crate::wire::{Crc, Encoder, Flags, FrameType, Message};

pub(crate) fn begin(attempt: u32) -> DeviceBegin {
    let identity = samples::identity();
    DeviceBegin { device: 0, attempt, identity, expected_bytes: None }
}

pub(crate) fn data(offset: u64) -> DeviceData<'static> {
    let phase = Phase::StopCopy;
    DeviceData { device: 0, phase, offset, ends_transaction: false, bytes: BYTES }
}

pub(crate) fn end(pieces: usize) -> DeviceEnd {
    let mut crc = Crc::new();
    (0..pieces).for_each(|_| crc.add(BYTES));
    let length = (pieces * BYTES.len()) as u64;
    DeviceEnd { device: 0, length, crc: crc.value() }
}

pub(crate) fn hello() -> Hello {
    let mut hello = samples::hello();
    hello.devices.truncate(1);
    hello.sections.truncate(1);
    // The pages that `samples::memory` has.
    let page_size = 4096;
    let region = |gpa, pages| MemoryRegion { gpa, length: pages * page_size, page_size };
    hello.memory = vec![region(0x1000, 2), region(0x8000, 300), region(0x1_0000_0000, 1)];
    hello
}

pub(crate) fn section() -> SectionInfo {
    hello().sections.remove(0)
}

/// A stream written frame by frame, whatever the frames are.
pub(crate) struct Writing {
    pub(crate) encoder: Encoder,
    pub(crate) bytes: Vec<u8>,
    /// Where each frame begins.
    pub(crate) frames: Vec<usize>,
}

impl Writing {
    pub(crate) fn new(role: Role) -> Self {
        let bytes = samples::preamble(role).encode().to_vec();
        Self { encoder: Encoder::new(role), bytes, frames: vec![] }
    }

    pub(crate) fn file() -> Self {
        Self::new(Role::File)
    }

    pub(crate) fn raw(mut self, frame: &[u8]) -> Self {
        self.frames.push(self.bytes.len());
        self.bytes.extend(frame);
        self
    }

    pub(crate) fn message(mut self, message: &Message) -> Self {
        let frame = self.encoder.message(message).unwrap();
        self.raw(&frame)
    }

    pub(crate) fn begin(mut self, attempt: u32) -> Self {
        let frame = self.encoder.device_begin(&begin(attempt)).unwrap();
        self.raw(&frame)
    }

    pub(crate) fn data(mut self, offset: usize) -> Self {
        let head = self.encoder.device_data(&data(offset as u64)).unwrap();
        self.raw(&[&head[..], BYTES].concat())
    }

    pub(crate) fn end(mut self, end: DeviceEnd) -> Self {
        let frame = self.encoder.device_end(&end).unwrap();
        self.raw(&frame)
    }

    pub(crate) fn section(mut self) -> Self {
        let frame = self.encoder.section_begin(&section()).unwrap();
        self.raw(&frame)
    }

    pub(crate) fn piece(mut self, section: u32, offset: u64, last: bool) -> Self {
        let piece = SectionData { section, last, offset, bytes: BYTES };
        let head = self.encoder.section_data(&piece).unwrap();
        self.raw(&[&head[..], BYTES].concat())
    }

    pub(crate) fn frame(mut self, kind: FrameType, flags: Flags, payload: &[u8]) -> Self {
        let header = self.encoder.header(kind, flags, &[payload]).unwrap();
        self.raw(&[&header[..], payload].concat())
    }

    pub(crate) fn close(mut self) -> Self {
        let frame = self.encoder.channel_end().unwrap();
        self.raw(&frame)
    }
}

/// A file as one is saved: everything that is announced, and nothing else.
pub(crate) fn whole() -> Writing {
    let (table, pages) = samples::memory();
    let memory = [table.prefix(), &pages].concat();
    Writing::file()
        .message(&Message::Hello(hello()))
        .frame(FrameType::MEMORY_RUNS, Flags::CRITICAL, &memory)
        .begin(0)
        .data(0)
        .begin(1)
        .data(0)
        .data(BYTES.len())
        .end(end(2))
        .section()
        .piece(0, 0, false)
        .piece(0, BYTES.len() as u64, true)
        .close()
}
