//! A saved file, frame by frame, with everything checked that it says of itself.

use std::time::{Duration, Instant};

use port::{AttemptId, ChannelError, Receive};
use wire::message::{DeviceIdentity, Hello};
use wire::preamble::{PageSize, Preamble, Role};
use wire::{Crc, Decoder, Frame, Header, Message};

use super::{FileCause, FileContents, FileDevice, FileError};
use crate::drive::tracker::chain;
use crate::migration::compat;

/// Reads a whole saved file and checks everything that can be checked without a device:
/// every checksum, every count, its order and its end. Where the source can be read
/// twice, this comes before [`restore`](super::restore) touches anything.
///
/// # Errors
/// Where the file is damaged, ends early, is not a file of devices alone, or cannot be
/// read.
pub fn verify(
    from: &mut dyn Receive,
    patience: Duration,
) -> Result<FileContents, FileError> {
    let mut reader = Reader::new(from, patience);
    let all = |reader: &mut Reader<'_>| {
        let head = reader.head()?;
        reader.pieces(&head, |_, _, _| Ok(()))?;
        reader.contents(&head)
    };
    all(&mut reader).map_err(FileError::untouched)
}

/// What comes before the data.
pub(super) struct Head {
    pub(super) preamble: Preamble,
    pub(super) hello: Hello,
}

/// What was read of one device's data.
#[derive(Clone)]
struct Taken {
    begun: bool,
    ended: bool,
    bytes: u64,
    crc: Crc,
    took: Duration,
}

/// A saved file, read from its beginning.
pub(super) struct Reader<'a> {
    from: &'a mut dyn Receive,
    decoder: Decoder,
    /// Bytes that were read.
    read: u64,
    /// Where the frame at hand begins, and its number.
    offset: u64,
    frame: u64,
    taken: Vec<Taken>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(from: &'a mut dyn Receive, patience: Duration) -> Reader<'a> {
        from.set_deadline(patience);
        Reader {
            from,
            decoder: Decoder::new(Role::File, PageSize::KIB_4),
            read: 0,
            offset: 0,
            frame: 0,
            taken: Vec::new(),
        }
    }

    /// Preamble and `Hello`.
    pub(super) fn head(&mut self) -> Result<Head, FileCause> {
        let mut bytes = [0; Preamble::SIZE];
        self.fill(&mut bytes)?;
        let preamble =
            Preamble::decode(&bytes).map_err(|error| self.damaged(&chain(&error)))?;
        if preamble.role != Role::File {
            return Err(refused(
                "this is a connection of a migration, and not a saved file: give the \
                 file that `save` wrote",
            ));
        }
        self.decoder = Decoder::new(Role::File, preamble.page_size);
        let mut payload = Vec::new();
        let hello = match self.next(&mut payload)? {
            Frame::Message(Message::Hello(hello)) => hello,
            _ => return Err(self.damaged("it does not begin with who its devices are")),
        };
        if !hello.memory.is_empty() || !hello.sections.is_empty() {
            return Err(refused(
                "this file holds a whole guest, with its memory: devices alone cannot \
                 be restored from it",
            ));
        }
        if hello.devices.is_empty() {
            return Err(refused("this file holds no device"));
        }
        let none = Taken {
            begun: false,
            ended: false,
            bytes: 0,
            crc: Crc::new(),
            took: Duration::ZERO,
        };
        self.taken = vec![none; hello.devices.len()];
        Ok(Head { preamble, hello })
    }

    /// The data of all devices, in the order of the file, to its end. `take` gets each
    /// piece (which device, bytes, whether they end a transaction) once the checksum of
    /// its frame was compared; whether it is whole is known only at the end.
    pub(super) fn pieces(
        &mut self,
        head: &Head,
        mut take: impl FnMut(usize, &[u8], bool) -> Result<(), FileCause>,
    ) -> Result<(), FileCause> {
        let mut payload = Vec::new();
        while !self.decoder.ended() {
            match self.next(&mut payload)? {
                Frame::DeviceBegin(begin) => {
                    let taken = self.device(begin.device)?;
                    if taken.begun || begin.attempt != 0 {
                        return Err(self.damaged("a device's data begins twice"));
                    }
                    taken.begun = true;
                    if begin.identity != head.hello.devices[begin.device as usize] {
                        let text = "a device's data says that it is another device's";
                        return Err(self.damaged(text));
                    }
                }
                Frame::DeviceData(data) => {
                    let started = Instant::now();
                    let taken = self.device(data.device)?;
                    if !taken.begun || taken.ended || taken.bytes != data.offset {
                        let text = "a piece of a device's data is out of place";
                        return Err(self.damaged(text));
                    }
                    taken.bytes += data.bytes.len() as u64;
                    taken.crc.add(data.bytes);
                    take(data.device as usize, data.bytes, data.ends_transaction)?;
                    self.device(data.device)?.took += started.elapsed();
                }
                Frame::DeviceEnd(end) => {
                    let taken = self.device(end.device)?;
                    if !taken.begun || taken.ended {
                        let text = "a device's data ends without having begun";
                        return Err(self.damaged(text));
                    }
                    taken.ended = true;
                    let (bytes, crc) = (taken.bytes, taken.crc.value());
                    if (bytes, crc) != (end.length, end.crc) {
                        let name = &head.hello.devices[end.device as usize].slot;
                        return Err(self.damaged(&format!(
                            "{name} has {bytes} bytes with checksum {crc:08x} here, and \
                             {} bytes with checksum {:08x} were saved",
                            end.length, end.crc
                        )));
                    }
                }
                Frame::ChannelEnd(_) | Frame::Skipped(_) => {}
                Frame::Memory(_) | Frame::SectionBegin(_) | Frame::SectionData(_) => {
                    let text = "memory or a section in a file of devices alone";
                    return Err(self.damaged(text));
                }
                _ => return Err(self.damaged("a frame that a saved file does not have")),
            }
        }
        let devices = self.taken.iter().zip(&head.hello.devices);
        if let Some((_, identity)) = devices.into_iter().find(|(taken, _)| !taken.ended) {
            let text = format!("it ends without all of the data of {}", identity.slot);
            return Err(self.damaged(&text));
        }
        self.offset = self.read;
        match self.from.receive(&mut [0]) {
            Ok(()) => Err(self.damaged("something follows its end")),
            Err(ChannelError::Closed) => Ok(()),
            Err(error) => Err(FileCause::channel(&error)),
        }
    }

    /// What was in it, once all pieces were taken.
    pub(super) fn contents(&self, head: &Head) -> Result<FileContents, FileCause> {
        let device = |(taken, identity): (&Taken, &DeviceIdentity)| {
            Ok(FileDevice {
                name: identity.slot.clone(),
                identity: compat::offered(identity)
                    .map_err(|refusal| FileCause::Refused(vec![refusal.text]))?,
                bytes: taken.bytes,
                crc: taken.crc.value(),
                took: taken.took,
            })
        };
        let devices = self.taken.iter().zip(&head.hello.devices).map(device);
        Ok(FileContents {
            id: AttemptId(head.preamble.migration.0),
            software: head.hello.software.clone(),
            devices: devices.collect::<Result<_, FileCause>>()?,
            bytes: self.read,
            frames: self.frame,
        })
    }

    fn device(&mut self, device: u32) -> Result<&mut Taken, FileCause> {
        let n = device as usize;
        if n >= self.taken.len() {
            return Err(self.damaged(&format!("there is no device {device}")));
        }
        Ok(&mut self.taken[n])
    }

    /// The next frame, checked. The buffer grows to at most the largest ceiling.
    fn next<'b>(&mut self, payload: &'b mut Vec<u8>) -> Result<Frame<'b>, FileCause> {
        self.offset = self.read;
        let mut bytes = [0; Header::SIZE];
        self.fill(&mut bytes)?;
        let header =
            self.decoder.header(&bytes).map_err(|error| self.damaged(&chain(&error)))?;
        // The decoder compared the length with the ceiling of its type.
        let length = header.length as usize;
        if payload.len() < length {
            payload.resize(length, 0);
        }
        let payload = &mut payload[..length];
        self.fill(payload)?;
        let frame = self
            .decoder
            .payload(&header, payload)
            .map_err(|error| self.damaged(&chain(&error)))?;
        self.frame += 1;
        Ok(frame)
    }

    fn fill(&mut self, into: &mut [u8]) -> Result<(), FileCause> {
        match self.from.receive(into) {
            Ok(()) => {
                self.read += into.len() as u64;
                Ok(())
            }
            Err(ChannelError::Closed) => {
                Err(self.damaged("the file ends before this frame does"))
            }
            Err(error) => Err(FileCause::channel(&error)),
        }
    }

    fn damaged(&self, what: &str) -> FileCause {
        let (offset, frame) = (self.offset, self.frame);
        FileCause::Damaged { offset, frame, what: what.to_owned() }
    }
}

fn refused(text: &str) -> FileCause {
    FileCause::Refused(vec![text.to_owned()])
}
