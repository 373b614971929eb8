//! A guest's file, read from its beginning to its end before anything is done with it.

use std::time::Duration;

use port::{AttemptId, Receive};
use wire::message::RunState;
use wire::preamble::Role;
use wire::walk::Story;
use wire::{Frame, Message};

use super::Extent;
use crate::drive::file::read::{Head, Reader, Transactions};
use crate::drive::file::{FileCause, FileError};

/// What the file of a guest holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestFile {
    /// The id that the copy was given.
    pub id: AttemptId,
    /// The program that wrote it, for people.
    pub software: String,
    /// Whether the guest was paused.
    pub paused: bool,
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// The devices, by what they were called, in their order.
    pub devices: Vec<String>,
    /// The longest transaction of each device, in bytes: a device that takes its data in
    /// transactions has to have room for it. None where its data has none.
    pub transactions: Vec<Option<u64>>,
    /// How long it is.
    pub extent: Extent,
}

/// Reads a whole file of a guest and checks everything that can be checked without a
/// machine: every checksum, every count, its order, its end, that all of what it
/// announces is there. Where the source can be read twice, this comes before
/// [`Playing`](super::Playing) opens anything.
///
/// # Errors
/// Where the file is damaged, ends early, holds no guest, or cannot be read.
pub fn verify_guest(
    from: &mut dyn Receive,
    patience: Duration,
) -> Result<GuestFile, FileError> {
    let mut reader = Reader::new(from, patience);
    all(&mut reader).map_err(FileError::untouched)
}

fn all(reader: &mut Reader<'_>) -> Result<GuestFile, FileCause> {
    let head = reader.guest_head()?;
    let mut check = Check::new(&head);
    let mut payload = Vec::new();
    while !reader.ended() {
        let (_, _, frame) = reader.whole(&mut payload)?;
        let heard = check.hear(&frame);
        heard.map_err(|what| reader.damaged(&what))?;
    }
    let transactions = check.end().map_err(|what| reader.damaged(&what))?;
    reader.end()?;
    let hello = head.hello;
    let lengths = hello.memory.iter().map(|region| region.length);
    Ok(GuestFile {
        id: AttemptId(head.preamble.migration.0),
        software: hello.software,
        paused: hello.run_state == RunState::Paused,
        memory_bytes: lengths.fold(0, u64::saturating_add),
        devices: hello.devices.into_iter().map(|device| device.slot).collect(),
        transactions,
        extent: reader.extent(),
    })
}

/// What the frames of a guest's file have to be together.
pub(super) struct Check {
    story: Story,
    transactions: Vec<Transactions>,
}

impl Check {
    pub(super) fn new(head: &Head) -> Check {
        let mut story = Story::new(Role::File);
        story.hear(&Frame::Message(Message::Hello(head.hello.clone())));
        let transactions = vec![Transactions::default(); head.hello.devices.len()];
        Check { story, transactions }
    }

    /// The next frame; or what is wrong with it.
    pub(super) fn hear(&mut self, frame: &Frame<'_>) -> Result<(), String> {
        match frame {
            // Nothing is void in a file.
            Frame::DeviceBegin(begin) if begin.attempt > 0 => {
                return Err("a device's data begins twice".to_owned());
            }
            Frame::DeviceData(data) => {
                if let Some(device) = self.transactions.get_mut(data.device as usize) {
                    device.add(data.bytes.len() as u64, data.ends_transaction);
                }
            }
            _ => {}
        }
        self.story.hear(frame).map_or(Ok(()), |wrong| Err(wrong.to_string()))
    }

    /// After the last: the longest transaction of each device, or what did not come.
    pub(super) fn end(self) -> Result<Vec<Option<u64>>, String> {
        match self.story.missing().first() {
            Some(missing) => Err(missing.to_string()),
            None => Ok(self.transactions.iter().map(|one| one.longest).collect()),
        }
    }
}
