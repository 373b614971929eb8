//! What the frames of one stream say together: the devices and the sections.

use std::collections::BTreeMap;

use super::pages::{MOST, Pages};
use crate::decode::Frame;
use crate::device::{DeviceBegin, DeviceData, DeviceEnd, DeviceRecord, Phase};
use crate::digest::Crc;
use crate::frame::FrameType;
use crate::memory::MemoryRuns;
use crate::message::{DeviceIdentity, Hello, MAX_SECTIONS, Message};
use crate::preamble::Role;
use crate::section::{MAX_SECTION_BYTES, SectionData, SectionInfo};

/// Frames that are in order one by one, and not together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Contradiction {
    /// Data, or an end, of a device whose `DEVICE_BEGIN` did not come.
    #[error("the data of device {device} has not begun")]
    NotBegun {
        /// The device's index.
        device: u32,
    },
    /// Data, or an end, after `DEVICE_END`.
    #[error("the data of device {device} goes on after its DEVICE_END")]
    AfterEnd {
        /// The device's index.
        device: u32,
    },
    /// A piece is missing or doubled.
    #[error("data of device {device} for offset {found}, the next is {expected}")]
    Offset {
        /// The device's index.
        device: u32,
        /// Bytes that came before.
        expected: u64,
        /// The offset in the frame.
        found: u64,
    },
    /// A device begins with a number of its own.
    #[error("device {device} begins with attempt {found}, the next is {expected}")]
    Attempt {
        /// The device's index.
        device: u32,
        /// How often it began before.
        expected: u32,
        /// What the frame says.
        found: u32,
    },
    /// The device's bytes are not those that the sender read.
    #[error(
        "device {device} ends with {sent} bytes of crc {sent_crc:08x}, and the stream \
         has {found} bytes of crc {found_crc:08x}"
    )]
    Bytes {
        /// The device's index.
        device: u32,
        /// How many there were.
        sent: u64,
        /// Their checksum.
        sent_crc: u32,
        /// How many there are.
        found: u64,
        /// Their checksum.
        found_crc: u32,
    },
    /// A device beyond those of the `Hello`.
    #[error("device {device} is not one of the {announced} in Hello")]
    NotAnnounced {
        /// The device's index.
        device: u32,
        /// How many were announced.
        announced: usize,
    },
    /// Another device than the `Hello` has in this place.
    #[error("device {device} is not the one that Hello has in its place")]
    OtherDevice {
        /// The device's index.
        device: u32,
    },
    /// Pages outside of the memory that the `Hello` announced.
    #[error("{pages} pages at {gpa:#x} are outside of the memory in Hello")]
    Memory {
        /// Guest-physical address of the first.
        gpa: u64,
        /// How many.
        pages: u32,
    },
    /// A page that came before: a file has each once.
    #[error("the page at {gpa:#x} comes twice")]
    MemoryTwice {
        /// Its guest-physical address.
        gpa: u64,
    },
    /// Pages in too many places to remember what came.
    #[error("the pages come in more than {MOST} pieces that do not touch")]
    MemoryScattered,
    /// Pages that the `Hello` announced, and that did not come: a guest without them
    /// would run with zeros there.
    #[error("{bytes} bytes of memory at {gpa:#x} did not come")]
    MemoryMissing {
        /// Guest-physical address of the first.
        gpa: u64,
        /// How many bytes follow of which nothing came.
        bytes: u64,
    },
    /// A frame of a conversation.
    #[error("a saved file has no {kind} here")]
    NotInAFile {
        /// Its type.
        kind: FrameType,
    },
    /// A piece of a section whose `SECTION_BEGIN` did not come.
    #[error("section {section} has not begun")]
    SectionNotBegun {
        /// The section's index.
        section: u32,
    },
    /// A section begins a second time.
    #[error("section {section} begins twice")]
    SectionTwice {
        /// The section's index.
        section: u32,
    },
    /// A section goes on after its last piece.
    #[error("section {section} goes on after its last piece")]
    SectionAfterLast {
        /// The section's index.
        section: u32,
    },
    /// A piece is missing or doubled.
    #[error("a piece of section {section} for offset {found}, the next is {expected}")]
    SectionOffset {
        /// The section's index.
        section: u32,
        /// Bytes that came before.
        expected: u64,
        /// The offset in the frame.
        found: u64,
    },
    /// Longer than a section can be.
    #[error("section {section} is longer than {MAX_SECTION_BYTES} bytes")]
    SectionTooLong {
        /// The section's index.
        section: u32,
    },
    /// A section that the `Hello` does not have, or has otherwise.
    #[error("section {section} is not the one that Hello has in its place")]
    OtherSection {
        /// The section's index.
        section: u32,
    },
    /// A device that began, or was announced, and did not end.
    #[error("the data of device {device} did not come to its DEVICE_END")]
    Unfinished {
        /// The device's index.
        device: u32,
    },
    /// A section that began, or was announced, and did not end.
    #[error("section {section} did not come to its last piece")]
    SectionUnfinished {
        /// The section's index.
        section: u32,
    },
}

/// What there is of a device with the frame in question.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SoFar {
    /// Bytes of this attempt.
    pub bytes: u64,
    /// Their checksum; it says nothing once a piece was missing.
    pub crc: Crc,
}

/// A device in a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceStory {
    /// Its index.
    pub device: u32,
    /// What it is; `None` where its `DEVICE_BEGIN` could not be read.
    pub identity: Option<DeviceIdentity>,
    /// The number of its last attempt.
    pub attempt: u32,
    /// Bytes of the last attempt, and their checksum.
    pub so_far: SoFar,
    /// Those of them that were read while the device ran.
    pub pre_copy: u64,
    /// Its `DEVICE_END` came.
    pub ended: bool,
    /// Nothing is known to be missing of it, and its bytes are those that were read.
    pub intact: bool,
}

/// A section in a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionStory {
    /// Its index.
    pub section: u32,
    /// What it is; `None` where its `SECTION_BEGIN` could not be read.
    pub info: Option<SectionInfo>,
    /// Its bytes.
    pub bytes: u64,
    /// Its last piece came.
    pub ended: bool,
}

/// What a frame adds to the story.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) so_far: Option<SoFar>,
    pub(super) contradiction: Option<Contradiction>,
}

/// Everything that is remembered of a stream: at most as many devices and sections as
/// a migration has. A reader of a saved file asks it what a [`Walker`](super::Walker)
/// asks.
///
/// What is said to be wrong with a device once is not said again for each frame: the
/// story goes on from what the frame says.
#[derive(Debug, Default)]
pub struct Story {
    /// The `Hello` of a file. On a connection it is not with the data.
    hello: Option<Hello>,
    file: bool,
    /// Under [`MAX_DEVICES`](crate::message::MAX_DEVICES): the decoder checks it.
    devices: BTreeMap<u32, DeviceStory>,
    sections: BTreeMap<u32, SectionStory>,
    /// Of a file.
    pages: Pages,
}

impl Story {
    /// Of a stream that begins.
    #[must_use]
    pub fn new(role: Role) -> Self {
        Self { file: role == Role::File, ..Self::default() }
    }

    /// The next frame, and what is wrong with it after those before.
    pub fn hear(&mut self, frame: &Frame<'_>) -> Option<Contradiction> {
        self.take(frame).contradiction
    }

    pub(super) fn take(&mut self, frame: &Frame<'_>) -> Told {
        match frame {
            Frame::Message(Message::Hello(hello))
                if self.file && self.hello.is_none() =>
            {
                self.hello = Some(hello.clone());
                Told::default()
            }
            Frame::Message(_) if self.file => {
                Told::only(Some(Contradiction::NotInAFile { kind: FrameType::CONTROL }))
            }
            Frame::RoundEnd { .. } if self.file => {
                Told::only(Some(Contradiction::NotInAFile { kind: FrameType::ROUND_END }))
            }
            Frame::Memory(runs) => Told::only(self.memory(runs)),
            Frame::Config(record) | Frame::Interrupts(record) => {
                Told::only(self.record(record))
            }
            Frame::DeviceBegin(begin) => self.begin(begin),
            Frame::DeviceData(data) => self.data(data),
            Frame::DeviceEnd(end) => self.end(end),
            Frame::SectionBegin(info) => Told::only(self.section_begin(info)),
            Frame::SectionData(piece) => Told::only(self.section_data(piece)),
            _ => Told::default(),
        }
    }

    /// What did not come although the stream is at its end.
    #[must_use]
    pub fn missing(&self) -> Vec<Contradiction> {
        let (devices, sections) = self
            .hello
            .as_ref()
            .map_or((0, 0), |hello| (hello.devices.len(), hello.sections.len()));
        let devices = indices(devices, &self.devices)
            .filter(|n| self.devices.get(n).is_none_or(|device| !device.ended))
            .map(|device| Contradiction::Unfinished { device });
        let sections = indices(sections, &self.sections)
            .filter(|n| self.sections.get(n).is_none_or(|section| !section.ended))
            .map(|section| Contradiction::SectionUnfinished { section });
        let regions = self.hello.as_ref().map_or(&[][..], |hello| &hello.memory);
        devices.chain(sections).chain(self.pages.missing(regions)).collect()
    }

    pub(super) fn tell(self) -> (Vec<DeviceStory>, Vec<SectionStory>) {
        (self.devices.into_values().collect(), self.sections.into_values().collect())
    }

    /// Pages that no region has, or that came before.
    fn memory(&mut self, runs: &MemoryRuns<'_>) -> Option<Contradiction> {
        self.pages.take(runs, &self.hello.as_ref()?.memory)
    }

    fn record(&self, record: &DeviceRecord<'_>) -> Option<Contradiction> {
        let (device, announced) = (record.device, self.hello.as_ref()?.devices.len());
        let known = (device as usize) < announced;
        (!known).then_some(Contradiction::NotAnnounced { device, announced })
    }

    fn begin(&mut self, begin: &DeviceBegin) -> Told {
        let DeviceBegin { device, attempt: found, ref identity, .. } = *begin;
        let before = self.devices.get(&device);
        let expected = before.map_or(0, |before| before.attempt.saturating_add(1));
        // Of a device whose begin was damaged the number is not known.
        let turn = found == expected || before.is_some_and(|d| d.identity.is_none());
        let announced = self.hello.as_ref().map(|hello| &hello.devices);
        let contradiction =
            match announced.map(|all| (all.len(), all.get(device as usize))) {
                Some((announced, None)) => {
                    Some(Contradiction::NotAnnounced { device, announced })
                }
                Some((_, Some(there))) if there != identity => {
                    Some(Contradiction::OtherDevice { device })
                }
                _ if !turn => Some(Contradiction::Attempt { device, expected, found }),
                _ => None,
            };
        let identity = Some(identity.clone());
        let story = DeviceStory { identity, attempt: found, ..DeviceStory::new(device) };
        let so_far = Some(story.so_far);
        self.devices.insert(device, story);
        Told { so_far, contradiction }
    }

    fn data(&mut self, data: &DeviceData<'_>) -> Told {
        let DeviceData { device, phase, offset: found, bytes, .. } = *data;
        let begun = self.devices.contains_key(&device);
        let story =
            self.devices.entry(device).or_insert_with(|| DeviceStory::new(device));
        let expected = story.so_far.bytes;
        let contradiction = if !begun {
            Some(Contradiction::NotBegun { device })
        } else if story.ended {
            Some(Contradiction::AfterEnd { device })
        } else if found != expected {
            Some(Contradiction::Offset { device, expected, found })
        } else {
            None
        };
        story.ended = false;
        story.intact &= contradiction.is_none();
        let length = bytes.len() as u64;
        // The decoder has checked that the sum exists.
        story.so_far.bytes = found.saturating_add(length);
        story.so_far.crc.add(bytes);
        if phase == Phase::PreCopy {
            story.pre_copy = story.pre_copy.saturating_add(length);
        }
        Told { so_far: Some(story.so_far), contradiction }
    }

    fn end(&mut self, end: &DeviceEnd) -> Told {
        let DeviceEnd { device, length: sent, crc: sent_crc } = *end;
        let begun = self.devices.contains_key(&device);
        let story =
            self.devices.entry(device).or_insert_with(|| DeviceStory::new(device));
        let (found, found_crc) = (story.so_far.bytes, story.so_far.crc.value());
        let same = (sent, sent_crc) == (found, found_crc);
        let contradiction = if !begun {
            Some(Contradiction::NotBegun { device })
        } else if story.ended {
            Some(Contradiction::AfterEnd { device })
        } else if !same && (story.intact || sent != found) {
            // Where a piece was missing, the checksum says nothing new.
            Some(Contradiction::Bytes { device, sent, sent_crc, found, found_crc })
        } else {
            None
        };
        story.ended = true;
        story.intact &= same && contradiction.is_none();
        Told { so_far: Some(story.so_far), contradiction }
    }

    fn section_begin(&mut self, info: &SectionInfo) -> Option<Contradiction> {
        let section = info.section;
        let announced = self.hello.as_ref().map(|hello| &hello.sections);
        let other = announced.is_some_and(|all| all.get(section as usize) != Some(info));
        let story =
            SectionStory { info: Some(info.clone()), ..SectionStory::new(section) };
        let twice = self.sections.insert(section, story).is_some();
        if twice {
            Some(Contradiction::SectionTwice { section })
        } else {
            other.then_some(Contradiction::OtherSection { section })
        }
    }

    fn section_data(&mut self, piece: &SectionData<'_>) -> Option<Contradiction> {
        let SectionData { section, last, offset: found, bytes } = *piece;
        let not_begun = Contradiction::SectionNotBegun { section };
        if section as usize >= MAX_SECTIONS {
            // No section has this number: nothing to remember it by.
            return Some(not_begun);
        }
        let begun = self.sections.contains_key(&section);
        let story =
            self.sections.entry(section).or_insert_with(|| SectionStory::new(section));
        let expected = story.bytes;
        let end = found.saturating_add(bytes.len() as u64);
        let contradiction = if !begun {
            Some(not_begun)
        } else if story.ended {
            Some(Contradiction::SectionAfterLast { section })
        } else if found != expected {
            Some(Contradiction::SectionOffset { section, expected, found })
        } else if end > MAX_SECTION_BYTES {
            Some(Contradiction::SectionTooLong { section })
        } else {
            None
        };
        story.bytes = end;
        story.ended = last;
        contradiction
    }
}

/// The first `announced` numbers, and those that came beyond them.
fn indices<T>(announced: usize, there: &BTreeMap<u32, T>) -> impl Iterator<Item = u32> {
    // At most 64: a Hello has no more.
    let announced = announced as u32;
    (0..announced).chain(there.keys().copied().filter(move |n| *n >= announced))
}

impl Told {
    fn only(contradiction: Option<Contradiction>) -> Self {
        Self { so_far: None, contradiction }
    }
}

impl DeviceStory {
    fn new(device: u32) -> Self {
        Self {
            device,
            identity: None,
            attempt: 0,
            so_far: SoFar::default(),
            pre_copy: 0,
            ended: false,
            intact: true,
        }
    }
}

impl SectionStory {
    fn new(section: u32) -> Self {
        Self { section, info: None, bytes: 0, ended: false }
    }
}
