//! One data connection at the destination: a thread that checks each frame and puts it
//! where it belongs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use port::{Gpa, GuestMemory, Receive};
use wire::device::{DeviceBegin, DeviceData, DeviceEnd, DeviceRecord};
use wire::memory::Content;
use wire::message::Hello;
use wire::preamble::{PageSize, Role};
use wire::section::{Assembler, MAX_SECTION_BYTES, SectionInfo};
use wire::{Crc, Decoder, Frame, Header};

use super::device::{Command as DeviceCommand, Resume};
use super::heard::FromSink as Heard;
use super::tracker::chain;
use super::vmm::{CONFIG_SCHEMA, PENDING_SCHEMA};
use crate::devices::DeviceId;
use crate::migration::Cause;

/// What arrived that is loaded later, all connections together. Bounded: one config and
/// one interrupt record a device, one section each, [`MAX_HELD_BYTES`] in all.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) configs: Vec<Option<Vec<u8>>>,
    pub(super) pending: Vec<Option<Vec<u64>>>,
    pub(super) sections: BTreeMap<u32, (SectionInfo, Vec<u8>)>,
    assembling: BTreeMap<u32, Assembler>,
    held: u64,
    pub(super) devices: Vec<Taken>,
}

/// How much of a frame is received before it is counted.
const PIECE: usize = 512 << 10;

/// The most that the sections of one guest may hold in memory, in bytes.
const MAX_HELD_BYTES: u64 = 256 << 20;

/// What one device has taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) attempt: Option<u32>,
    pub(super) bytes: u64,
    pub(super) crc: Crc,
    pub(super) ended: bool,
}

impl Arrived {
    pub(super) fn new(devices: usize) -> Arrived {
        let none = Taken { attempt: None, bytes: 0, crc: Crc::new(), ended: false };
        Arrived {
            configs: vec![None; devices],
            pending: vec![None; devices],
            sections: BTreeMap::new(),
            assembling: BTreeMap::new(),
            held: 0,
            devices: vec![none; devices],
        }
    }

    /// What is missing of what the source announced.
    pub(super) fn missing(&self, hello: &Hello) -> Option<String> {
        let unfinished = self.devices.iter().position(|taken| !taken.ended);
        if let Some(n) = unfinished {
            return Some(format!("the data of device {n} did not come to its end"));
        }
        let section = hello.sections.iter().find(|info| {
            self.sections.get(&info.section).is_none_or(|(there, _)| there != *info)
        });
        section.map(|info| format!("section {} did not arrive as announced", info.name))
    }
}

/// One connection and what it needs.
pub(super) struct Receiver {
    pub(super) number: usize,
    pub(super) of: usize,
    pub(super) role: Role,
    pub(super) page: PageSize,
    pub(super) receive: Box<dyn Receive>,
    pub(super) memory: Arc<dyn GuestMemory>,
    pub(super) resumes: Vec<Resume>,
    pub(super) devices: Vec<Sender<DeviceCommand>>,
    pub(super) arrived: Arc<Mutex<Arrived>>,
    pub(super) received: Arc<AtomicU64>,
    pub(super) patience: Duration,
    /// Gone when this thread is.
    pub(super) _alive: Sender<()>,
}

impl Receiver {
    /// Receives until the connection ends as announced, or something is wrong.
    pub(super) fn work(mut self, out: &Sender<Heard>) {
        match self.all(out) {
            Ok(()) => {
                let _ = out.send(Heard::LaneEnded(self.number));
            }
            Err(cause) => {
                let _ = out.send(Heard::LaneFailed(cause));
            }
        }
    }

    fn all(&mut self, out: &Sender<Heard>) -> Result<(), Cause> {
        let mut decoder = Decoder::new(self.role, self.page);
        let mut buffer = Vec::new();
        while !decoder.ended() {
            let mut head = [0; Header::SIZE];
            self.receive
                .receive(&mut head)
                .map_err(|error| Cause::Channel(chain(&error)))?;
            let header =
                decoder.header(&head).map_err(|error| Cause::Protocol(chain(&error)))?;
            // The decoder compared the length with the ceiling of its type. The buffer
            // only grows, to at most the largest of those.
            let length = header.length as usize;
            if buffer.len() < length {
                buffer.resize(length, 0);
            }
            let payload = &mut buffer[..length];
            self.received.fetch_add(Header::SIZE as u64, Ordering::Relaxed);
            // Counted as it comes: a frame moves as long as its pieces do.
            for piece in payload.chunks_mut(PIECE) {
                self.receive
                    .receive(piece)
                    .map_err(|error| Cause::Channel(chain(&error)))?;
                self.received.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
            let frame = decoder
                .payload(&header, payload)
                .map_err(|error| Cause::Protocol(chain(&error)))?;
            match frame {
                Frame::RoundEnd { round } => {
                    let _ = out.send(Heard::LaneRound(self.number, round));
                }
                frame => self.take(frame)?,
            }
        }
        Ok(())
    }

    fn take(&self, frame: Frame<'_>) -> Result<(), Cause> {
        match frame {
            Frame::Memory(runs) => {
                for (run, content) in runs.iter() {
                    let at = Gpa(run.gpa);
                    let done = match content {
                        Content::Data(bytes) => self.memory.write(at, bytes),
                        Content::Zero => {
                            let page = u64::from(self.page.get());
                            self.memory.zero(at, u64::from(run.pages) * page)
                        }
                    };
                    done.map_err(|error| Cause::Protocol(chain(&error)))?;
                }
                Ok(())
            }
            Frame::DeviceBegin(begin) => self.begin(&begin),
            Frame::DeviceData(data) => self.data(&data),
            Frame::DeviceEnd(end) => self.end(&end),
            Frame::Config(record) => self.config(&record),
            Frame::Interrupts(record) => self.interrupts(&record),
            Frame::SectionBegin(info) => {
                let mut arrived = self.arrived();
                let known = arrived.assembling.contains_key(&info.section)
                    || arrived.sections.contains_key(&info.section);
                if known {
                    return Err(protocol("a section begins twice"));
                }
                let limit =
                    MAX_SECTION_BYTES.min(MAX_HELD_BYTES.saturating_sub(arrived.held));
                let assembler = Assembler::new(info.clone(), limit);
                arrived.assembling.insert(info.section, assembler);
                Ok(())
            }
            Frame::SectionData(piece) => {
                let mut arrived = self.arrived();
                arrived.held += piece.bytes.len() as u64;
                if arrived.held > MAX_HELD_BYTES {
                    return Err(protocol("the sections are too long altogether"));
                }
                let Some(assembler) = arrived.assembling.get_mut(&piece.section) else {
                    return Err(protocol("a piece of a section that did not begin"));
                };
                let complete = assembler
                    .push(&piece)
                    .map_err(|error| Cause::Protocol(chain(&error)))?;
                if complete
                    && let Some(assembler) = arrived.assembling.remove(&piece.section)
                    && let Some((info, bytes)) = assembler.finish()
                {
                    arrived.sections.insert(info.section, (info, bytes));
                }
                Ok(())
            }
            Frame::RoundEnd { .. } | Frame::ChannelEnd(_) | Frame::Skipped(_) => Ok(()),
            other => Err(Cause::Protocol(format!("{other:?} on a data connection"))),
        }
    }

    fn begin(&self, begin: &DeviceBegin) -> Result<(), Cause> {
        let n = self.mine(begin.device)?;
        let expected = {
            let mut arrived = self.arrived();
            let taken = &mut arrived.devices[n];
            let expected = taken.attempt.map_or(0, |attempt| attempt + 1);
            *taken = Taken {
                attempt: Some(begin.attempt),
                bytes: 0,
                crc: Crc::new(),
                ended: false,
            };
            expected
        };
        if begin.attempt != expected || begin.attempt > 3 {
            return Err(protocol("a device's data begins out of turn"));
        }
        if begin.attempt == 0 {
            return Ok(());
        }
        // The guest reset the device over there: what arrived of it is void.
        let (reply, answer) = channel();
        let _ = self.devices[n].send(DeviceCommand::Restart(reply));
        match answer.recv_timeout(self.patience) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(text)) => Err(Cause::Device(text)),
            Err(_) => Err(Cause::TimedOut {
                what: format!("the reset of device {n}"),
                millis: u64::try_from(self.patience.as_millis()).unwrap_or(u64::MAX),
            }),
        }
    }

    fn data(&self, data: &DeviceData<'_>) -> Result<(), Cause> {
        let n = self.mine(data.device)?;
        let mut taken = self.arrived().devices[n];
        if taken.attempt.is_none() || taken.ended || taken.bytes != data.offset {
            return Err(protocol("a piece of a device's data is out of place"));
        }
        // A device has one connection, so nobody else writes to this session: the lock
        // keeps it from being closed while it is written to.
        let mut resume = self.resumes[n].lock().unwrap_or_else(PoisonError::into_inner);
        let Some(session) = resume.as_mut() else {
            return Err(Cause::Device(format!("device {n} has no session to write to")));
        };
        let wrote = session.write(data.bytes, data.ends_transaction);
        wrote.map_err(|error| Cause::Device(chain(&error)))?;
        drop(resume);
        // Only this thread changes this entry.
        taken.bytes += data.bytes.len() as u64;
        taken.crc.add(data.bytes);
        self.arrived().devices[n] = taken;
        Ok(())
    }

    fn end(&self, end: &DeviceEnd) -> Result<(), Cause> {
        let n = self.mine(end.device)?;
        let mut arrived = self.arrived();
        let taken = &mut arrived.devices[n];
        if taken.attempt.is_none() || taken.ended {
            return Err(protocol("a device's data ends without having begun"));
        }
        if (taken.bytes, taken.crc.value()) != (end.length, end.crc) {
            return Err(Cause::Protocol(format!(
                "device {n} was given {} bytes with checksum {:#010x}, and the source \
                 read {} bytes with checksum {:#010x}",
                taken.bytes,
                taken.crc.value(),
                end.length,
                end.crc
            )));
        }
        taken.ended = true;
        Ok(())
    }

    fn config(&self, record: &DeviceRecord<'_>) -> Result<(), Cause> {
        let n = self.known(record.device)?;
        if record.schema != CONFIG_SCHEMA {
            return Err(protocol("a config space of an unknown schema"));
        }
        self.arrived().configs[n] = Some(record.bytes.to_vec());
        Ok(())
    }

    fn interrupts(&self, record: &DeviceRecord<'_>) -> Result<(), Cause> {
        let n = self.known(record.device)?;
        let (counts, rest) = record.bytes.as_chunks::<8>();
        if record.schema != PENDING_SCHEMA || !rest.is_empty() {
            return Err(protocol("interrupts of an unknown schema"));
        }
        let counts = counts.iter().map(|count| u64::from_le_bytes(*count)).collect();
        self.arrived().pending[n] = Some(counts);
        Ok(())
    }

    /// A device of this connection.
    fn mine(&self, device: u32) -> Result<usize, Cause> {
        let n = self.known(device)?;
        if n % self.of != self.number {
            return Err(protocol("a device's data on another device's connection"));
        }
        Ok(n)
    }

    fn known(&self, device: u32) -> Result<usize, Cause> {
        let n = device as usize;
        if n >= self.resumes.len() {
            return Err(Cause::Protocol(format!("there is no device {n}")));
        }
        Ok(DeviceId(n).0)
    }

    fn arrived(&self) -> std::sync::MutexGuard<'_, Arrived> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn protocol(text: &str) -> Cause {
    Cause::Protocol(text.to_owned())
}
