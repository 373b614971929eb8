//! A saved file, frame by frame, with everything checked that it says of itself.

use std::time::{Duration, Instant};

use port::{AttemptId, ChannelError, Receive};
use wire::message::{DeviceIdentity, Hello};
use wire::preamble::{PageSize, Preamble, Role};
use wire::{Crc, Decoder, Frame, Header, Message};

use super::{FileCause, FileContents, FileDevice, FileError};
use crate::drive::copy::Extent;
use crate::drive::tracker::chain;
use crate::migration::compat::{self, Side};

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

/// The devices in a saved file, of devices alone or of a whole guest, to be compared with
/// others: the whole file is read for it, and its checksums are compared, since only its
/// end says how long the transactions of a device are.
///
/// # Errors
/// Those of [`verify`], but for what the file is of.
pub fn saved_sides(
    from: &mut dyn Receive,
    patience: Duration,
) -> Result<Vec<Side>, FileError> {
    let mut reader = Reader::new(from, patience);
    let all = |reader: &mut Reader<'_>| {
        let head = reader.any_head()?;
        let mut transactions = vec![Transactions::default(); head.hello.devices.len()];
        if holds_guest(&head.hello) {
            let mut payload = Vec::new();
            while !reader.ended() {
                if let Frame::DeviceData(data) = reader.next(&mut payload)?
                    && let Some(device) = transactions.get_mut(data.device as usize)
                {
                    device.add(data.bytes.len() as u64, data.ends_transaction);
                }
            }
            reader.end()?;
        } else {
            reader.pieces(&head, |device, bytes, ends| {
                transactions[device].add(bytes.len() as u64, ends);
                Ok(())
            })?;
        }
        let devices = head.hello.devices.iter().zip(&transactions);
        let side = |(identity, transactions): (&DeviceIdentity, &Transactions)| {
            Side::in_file(&head.preamble, identity, transactions.longest)
        };
        Ok(devices.map(side).collect())
    };
    all(&mut reader).map_err(FileError::untouched)
}

/// How long the transactions of one device are, in bytes.
#[derive(Clone, Copy, Default)]
pub(in crate::drive) struct Transactions {
    current: u64,
    /// None before one ended: data without transactions has none.
    pub(in crate::drive) longest: Option<u64>,
}

impl Transactions {
    pub(in crate::drive) fn add(&mut self, bytes: u64, ends: bool) {
        self.current = self.current.saturating_add(bytes);
        if ends {
            let current = std::mem::take(&mut self.current);
            self.longest = self.longest.max(Some(current));
        }
    }
}

/// What comes before the data.
pub(in crate::drive) struct Head {
    pub(in crate::drive) preamble: Preamble,
    pub(in crate::drive) hello: Hello,
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
pub(in crate::drive) struct Reader<'a> {
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
    pub(in crate::drive) fn new(
        from: &'a mut dyn Receive,
        patience: Duration,
    ) -> Reader<'a> {
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

    /// Preamble and `Hello` of a file of devices alone.
    pub(super) fn head(&mut self) -> Result<Head, FileCause> {
        let head = self.any_head()?;
        if holds_guest(&head.hello) {
            return Err(refused(
                "this file holds a whole guest, with its memory: devices alone cannot \
                 be restored from it, run the guest from it",
            ));
        }
        if head.hello.devices.is_empty() {
            return Err(refused("this file holds no device"));
        }
        Ok(head)
    }

    /// Preamble and `Hello` of a file of a whole guest.
    pub(in crate::drive) fn guest_head(&mut self) -> Result<Head, FileCause> {
        let head = self.any_head()?;
        if !holds_guest(&head.hello) {
            return Err(refused(
                "this file holds devices without a guest: no guest can be run from it, \
                 restore the devices",
            ));
        }
        Ok(head)
    }

    fn any_head(&mut self) -> Result<Head, FileCause> {
        let mut bytes = [0; Preamble::SIZE];
        self.fill(&mut bytes)?;
        let preamble =
            Preamble::decode(&bytes).map_err(|error| self.damaged(&chain(&error)))?;
        if preamble.role != Role::File {
            return Err(refused(
                "this is a connection of a migration, and not a saved file: give a file \
                 that was saved",
            ));
        }
        self.decoder = Decoder::new(Role::File, preamble.page_size);
        let mut payload = Vec::new();
        let hello = match self.next(&mut payload)? {
            Frame::Message(Message::Hello(hello)) => hello,
            _ => return Err(self.damaged("it does not begin with who its devices are")),
        };
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
        self.end()
    }

    /// After `CHANNEL_END`: nothing follows.
    pub(in crate::drive) fn end(&mut self) -> Result<(), FileCause> {
        self.offset = self.read;
        match self.from.receive(&mut [0]) {
            Ok(()) => Err(self.damaged("something follows its end")),
            Err(ChannelError::Closed) => Ok(()),
            Err(error) => Err(FileCause::channel(&error)),
        }
    }

    /// Whether `CHANNEL_END` was read.
    pub(in crate::drive) fn ended(&self) -> bool {
        self.decoder.ended()
    }

    /// How much was read so far.
    pub(in crate::drive) fn extent(&self) -> Extent {
        Extent { bytes: self.read, frames: self.frame }
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
                validated_at_start: false,
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

    fn next<'b>(&mut self, payload: &'b mut Vec<u8>) -> Result<Frame<'b>, FileCause> {
        self.whole(payload).map(|(_, _, frame)| frame)
    }

    /// The next frame, checked: its header, its payload, what it means. The buffer grows
    /// to at most the largest ceiling.
    pub(in crate::drive) fn whole<'b>(
        &mut self,
        payload: &'b mut Vec<u8>,
    ) -> Result<(Header, &'b [u8], Frame<'b>), FileCause> {
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
        let payload = &*payload;
        let frame = self
            .decoder
            .payload(&header, payload)
            .map_err(|error| self.damaged(&chain(&error)))?;
        self.frame += 1;
        Ok((header, payload, frame))
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

    /// What was read last is wrong.
    pub(in crate::drive) fn damaged(&self, what: &str) -> FileCause {
        let (offset, frame) = (self.offset, self.frame);
        FileCause::Damaged { offset, frame, what: what.to_owned() }
    }
}

/// Whether a file holds more than devices.
fn holds_guest(hello: &Hello) -> bool {
    !hello.memory.is_empty() || !hello.sections.is_empty()
}

fn refused(text: &str) -> FileCause {
    FileCause::Refused(vec![text.to_owned()])
}
