//! Devices to a file.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use port::{Archive, AttemptId, Device, Observer, Phase, Progress};
use wire::device::{DeviceBegin, DeviceData, DeviceEnd};
use wire::message::{DeviceIdentity, Hello, RunState, StoreId};
use wire::preamble::{
    Architecture, ByteOrder, Features, MigrationId, PageSize, Preamble, Role,
};
use wire::{Crc, Encoder, FrameError, Message};

use super::{
    CHUNK, FileCause, FileDevice, FileError, PATIENCE, Shared, Standing, check, phase,
    ready, ruined,
};
use crate::devices::{DeviceId, DeviceSet, Goal, Rollback, SetError};
use crate::drive::tracker::chain;
use crate::migration::{Recovery, compat};

/// The most that one device may give: one that never ends would be stopped for ever.
const MOST_BYTES: u64 = 1 << 40;

/// How devices are saved.
#[derive(Clone, Debug)]
pub struct SaveOptions {
    /// What the devices do afterwards. Default [`Leave::AsBefore`].
    pub leave: Leave,
    /// Whether a device may reach another's memory, see
    /// [`check_p2p`](crate::devices::check_p2p). Default `true`.
    pub peer_to_peer: bool,
    /// How long one write may take without a byte moving. Default 30 s.
    pub patience: Duration,
    /// Set from another thread, it ends the save with the devices as before.
    pub cancel: Arc<AtomicBool>,
}

/// What saved devices do afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Devices that ran run on, those that were stopped stay stopped.
    AsBefore,
    /// They stay in STOP, once the file is durable.
    Stopped,
}

impl Default for SaveOptions {
    fn default() -> SaveOptions {
        SaveOptions {
            leave: Leave::AsBefore,
            peer_to_peer: true,
            patience: PATIENCE,
            cancel: Arc::default(),
        }
    }
}

/// How a save went, and the devices that were lent.
pub struct Saved {
    /// The devices.
    pub devices: Vec<Box<dyn Device>>,
    /// What is in the file, or why there is none.
    pub result: Result<SaveReport, FileError>,
}

impl std::fmt::Debug for Saved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saved").field("result", &self.result).finish_non_exhaustive()
    }
}

/// What was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaveReport {
    /// The devices, in the order in which they were given.
    pub devices: Vec<FileDevice>,
    /// Bytes of the whole file.
    pub bytes: u64,
    /// Frames in it.
    pub frames: u64,
    /// From the request to stop the first device until the last one ran again. `None`
    /// where they had been stopped, or stay so.
    pub stopped: Option<Duration>,
    /// From the beginning until the file was durable.
    pub total: Duration,
    /// Whether the devices run now.
    pub running: bool,
}

/// What would keep these devices from being saved; empty when nothing does. Asks each
/// for its state and touches nothing.
pub fn save_blockers(devices: &mut [Box<dyn Device>], peer_to_peer: bool) -> Vec<String> {
    ready(devices, peer_to_peer).err().unwrap_or_default()
}

/// Saves devices, without a guest, as one stream. `id` is new for each save.
///
/// Devices that run are stopped through the peer-to-peer barrier, read one after the
/// other, and run on before the file is made durable: what is slow about a disk is not
/// part of the stop. With [`Leave::Stopped`] everything that can fail comes before the
/// commit, so a device is left stopped only when its data is safe. Whatever fails, the
/// devices are as before and nothing is committed; only where a device did not come
/// back with what it held, and its data was read whole, the file is committed all the
/// same ([`FileError::kept`]).
pub fn save(
    mut devices: Vec<Box<dyn Device>>,
    id: AttemptId,
    into: &mut dyn Archive,
    options: &SaveOptions,
    observer: Arc<dyn Observer>,
) -> Saved {
    let began = Instant::now();
    let Standing { states, stopped } = match ready(&mut devices, options.peer_to_peer) {
        Ok(standing) => standing,
        Err(reasons) => {
            let error = FileError::untouched(FileCause::Refused(reasons));
            return Saved { devices, result: Err(error) };
        }
    };
    into.set_deadline(options.patience);
    let saving = Saving {
        identities: devices.iter().map(|device| compat::identity(&**device)).collect(),
        names: devices.iter().map(|device| device.name().to_owned()).collect(),
        reports: Vec::new(),
        set: DeviceSet::known(devices, &states)
            .with_observer(Box::new(Shared(Arc::clone(&observer)))),
        writer: Writer { encoder: Encoder::new(Role::File), into, bytes: 0, frames: 0 },
        stopped,
        options,
        observer: &*observer,
    };
    let (set, result) = saving.run(id, began);
    Saved { devices: set.into_devices(), result }
}

struct Saving<'a> {
    identities: Vec<DeviceIdentity>,
    names: Vec<String>,
    reports: Vec<FileDevice>,
    set: DeviceSet,
    writer: Writer<'a>,
    /// Whether they were stopped before.
    stopped: bool,
    options: &'a SaveOptions,
    observer: &'a dyn Observer,
}

impl Saving<'_> {
    fn run(
        mut self,
        id: AttemptId,
        began: Instant,
    ) -> (DeviceSet, Result<SaveReport, FileError>) {
        let result = self.all(id).map(|stopped| SaveReport {
            devices: std::mem::take(&mut self.reports),
            bytes: self.writer.bytes,
            frames: self.writer.frames,
            stopped,
            total: began.elapsed(),
            running: !self.stopped && self.options.leave == Leave::AsBefore,
        });
        (self.set, result)
    }

    fn all(&mut self, id: AttemptId) -> Result<Option<Duration>, FileError> {
        phase(self.observer, Phase::Setup);
        // What can fail without a stop fails before it: a full disk, a device that
        // does not answer.
        let expected = match self.head(id) {
            Ok(expected) => expected,
            Err(cause) => return Err(FileError::untouched(cause)),
        };
        phase(self.observer, Phase::Stop);
        let stop = Instant::now();
        if let Err(cause) = self.read(&expected) {
            return Err(self.undo(cause, false));
        }
        let runs_on = !self.stopped && self.options.leave == Leave::AsBefore;
        phase(self.observer, if runs_on { Phase::Start } else { Phase::Stop });
        let left = if runs_on { self.set.start() } else { self.set.finish() };
        if let Err(error) = left {
            return Err(self.undo(FileCause::Device(chain(&error)), true));
        }
        let stopped = runs_on.then(|| stop.elapsed());
        phase(self.observer, Phase::Commit);
        match self.writer.into.commit() {
            Ok(()) => Ok(stopped),
            Err(error) => Err(self.undo(FileCause::channel(&error), false)),
        }
    }

    /// Preamble and `Hello`. Returns what each device expects to give.
    fn head(&mut self, id: AttemptId) -> Result<Vec<Option<u64>>, FileCause> {
        let expected: Vec<Option<u64>> = self
            .set
            .pending()
            .map_err(|error| FileCause::Device(chain(&error)))?
            .iter()
            .map(|pending| pending.stop_copy_bytes)
            .collect();
        let preamble = Preamble {
            byte_order: ByteOrder::HOST,
            architecture: Architecture::HOST,
            // There is no memory, and so no page of it.
            page_size: PageSize::KIB_4,
            required: Features::NONE,
            optional: Features::NONE,
            migration: MigrationId(id.0),
            role: Role::File,
        };
        let hello = Hello {
            software: compat::SOFTWARE.to_owned(),
            // Nobody is asked back about a file.
            store: StoreId([0; 16]),
            source_uri: None,
            data_channels: 1,
            run_state: if self.stopped { RunState::Paused } else { RunState::Running },
            memory: Vec::new(),
            devices: self.identities.clone(),
            sections: Vec::new(),
            expected_bytes: expected
                .iter()
                .try_fold(0u64, |sum, bytes| Some(sum.saturating_add((*bytes)?))),
        };
        self.writer.raw(&[&preamble.encode()])?;
        self.writer.whole(|encoder| encoder.message(&Message::Hello(hello)))?;
        Ok(expected)
    }

    /// Stops everything and reads it.
    fn read(&mut self, expected: &[Option<u64>]) -> Result<(), FileCause> {
        check(&self.options.cancel)?;
        let stopped = self.set.quiesce();
        stopped.map_err(|error| FileCause::Device(chain(&error)))?;
        phase(self.observer, Phase::Devices);
        let total: u64 =
            expected.iter().fold(0, |sum, bytes| sum.saturating_add(bytes.unwrap_or(0)));
        let mut buffer = vec![0; CHUNK];
        for (n, expected) in expected.iter().enumerate() {
            self.device(n, *expected, total, &mut buffer)?;
        }
        self.writer.whole(Encoder::channel_end)
    }

    fn device(
        &mut self,
        n: usize,
        expected_bytes: Option<u64>,
        total: u64,
        buffer: &mut [u8],
    ) -> Result<(), FileCause> {
        let started = Instant::now();
        let device = u32::try_from(n).unwrap_or(u32::MAX);
        let identity = self.identities[n].clone();
        let begin = DeviceBegin { device, attempt: 0, identity, expected_bytes };
        self.writer.whole(|encoder| encoder.device_begin(&begin))?;
        let Saving { set, writer, options, observer, .. } = self;
        let before: u64 = self.reports.iter().map(|report| report.bytes).sum();
        let (mut bytes, mut crc) = (0, Crc::new());
        let read = set.complete(DeviceId(n), buffer, |chunk, ends_transaction| {
            check(&options.cancel)?;
            if bytes >= MOST_BYTES {
                let name = &self.names[n];
                return Err(Failed(FileCause::Device(format!(
                    "{name} gave {bytes} bytes and did not come to an end"
                ))));
            }
            crc.add(chunk);
            let data = DeviceData {
                device,
                phase: wire::device::Phase::StopCopy,
                offset: bytes,
                ends_transaction,
                bytes: chunk,
            };
            writer.data(&data)?;
            bytes += chunk.len() as u64;
            let done = before + bytes;
            observer.progress(&Progress::Bytes { done, total: total.max(done) });
            Ok(())
        });
        read.map_err(|Failed(cause)| cause)?;
        let end = DeviceEnd { device, length: bytes, crc: crc.value() };
        writer.whole(|encoder| encoder.device_end(&end))?;
        let identity = compat::offered(&self.identities[n])
            .map_err(|refusal| FileCause::Refused(vec![refusal.text]))?;
        self.reports.push(FileDevice {
            name: self.names[n].clone(),
            identity,
            bytes,
            crc: crc.value(),
            took: started.elapsed(),
            validated_at_start: false,
        });
        Ok(())
    }

    /// Puts the devices back. `whole`: the file has everything that they held.
    fn undo(&mut self, cause: FileCause, whole: bool) -> FileError {
        phase(self.observer, Phase::Cleanup);
        let goal = if self.stopped { Goal::Stop } else { Goal::Running };
        let rollback = self.set.recover(goal);
        if rollback == Rollback::default() {
            let recovery = Recovery::SourceResumed;
            return FileError { recovery, ..FileError::untouched(cause) };
        }
        // What it held is nowhere but in the file now.
        let kept = whole && self.writer.into.commit().is_ok();
        FileError {
            recovery: Recovery::DeviceLost,
            devices: ruined(&self.names, &rollback),
            kept,
            ..FileError::untouched(cause)
        }
    }
}

/// What [`DeviceSet::complete`] may fail with.
struct Failed(FileCause);

impl From<SetError> for Failed {
    fn from(error: SetError) -> Failed {
        Failed(FileCause::Device(chain(&error)))
    }
}

impl From<FileCause> for Failed {
    fn from(cause: FileCause) -> Failed {
        Failed(cause)
    }
}

/// Frames into an archive.
struct Writer<'a> {
    encoder: Encoder,
    into: &'a mut dyn Archive,
    bytes: u64,
    frames: u64,
}

impl Writer<'_> {
    fn whole(
        &mut self,
        encode: impl FnOnce(&mut Encoder) -> Result<Vec<u8>, FrameError>,
    ) -> Result<(), FileCause> {
        let frame = encode(&mut self.encoder).map_err(|error| unfit(&error))?;
        self.frames += 1;
        self.raw(&[&frame])
    }

    fn data(&mut self, data: &DeviceData<'_>) -> Result<(), FileCause> {
        let head = self.encoder.device_data(data).map_err(|error| unfit(&error))?;
        self.frames += 1;
        self.raw(&[&head, data.bytes])
    }

    fn raw(&mut self, parts: &[&[u8]]) -> Result<(), FileCause> {
        let slices: Vec<IoSlice<'_>> =
            parts.iter().map(|part| IoSlice::new(part)).collect();
        self.into.send(&slices).map_err(|error| FileCause::channel(&error))?;
        self.bytes += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        Ok(())
    }
}

/// A device whose identity does not fit the stream's limits.
fn unfit(error: &FrameError) -> FileCause {
    FileCause::Refused(vec![format!("this cannot be written: {}", chain(error))])
}
