//! Devices from a file.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use port::{Device, Observer, Phase, Progress, Receive};

use super::read::{Head, Reader};
use super::{
    FileCause, FileDevice, FileError, PATIENCE, Shared, Standing, check, phase, ready,
};
use crate::devices::{DeviceId, DeviceSet, Goal};
use crate::drive::receiving::Offered;
use crate::drive::tracker::chain;
use crate::migration::{Recovery, compat};

/// How devices are restored.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// Whether they run afterwards; they are in STOP otherwise. Default `false`.
    pub start: bool,
    /// Whether a device may reach another's memory, see
    /// [`check_p2p`](crate::devices::check_p2p). Default `true`.
    pub peer_to_peer: bool,
    /// How long one read may take without a byte coming. Default 30 s.
    pub patience: Duration,
    /// Set from another thread, it ends the restore with the devices fresh.
    pub cancel: Arc<AtomicBool>,
}

impl Default for RestoreOptions {
    fn default() -> RestoreOptions {
        RestoreOptions {
            start: false,
            peer_to_peer: true,
            patience: PATIENCE,
            cancel: Arc::default(),
        }
    }
}

/// How a restore went, and the devices, where it came to opening them.
pub struct Restored {
    /// The devices.
    pub devices: Vec<Box<dyn Device>>,
    /// What they hold now, or why they hold nothing.
    pub result: Result<RestoreReport, FileError>,
}

impl std::fmt::Debug for Restored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Restored").field("result", &self.result).finish_non_exhaustive()
    }
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreReport {
    /// The devices, in the order in which they were saved.
    pub devices: Vec<FileDevice>,
    /// Bytes of the whole file.
    pub bytes: u64,
    /// Frames in it.
    pub frames: u64,
    /// From the first byte until the devices were where they are.
    pub total: Duration,
    /// Whether they run now.
    pub running: bool,
}

/// Restores devices from a file that [`save`](super::save) wrote.
///
/// `open` opens them, once it is known which devices the file holds, or tells why that
/// cannot be. They have to run or be stopped; what they hold is lost. A file that does
/// not fit them is refused before they are touched. Where anything fails after that,
/// each device is reset from where it is: none ever runs with a part of its data. A
/// file that can be read twice is better checked first, with [`verify`](super::verify).
pub fn restore(
    from: &mut dyn Receive,
    open: impl FnOnce(&[Offered]) -> Result<Vec<Box<dyn Device>>, Vec<String>>,
    options: &RestoreOptions,
    observer: Arc<dyn Observer>,
) -> Restored {
    let began = Instant::now();
    phase(&*observer, Phase::Negotiate);
    let mut reader = Reader::new(from, options.patience);
    let (head, offered) = match offer(&mut reader) {
        Ok(offered) => offered,
        Err(cause) => return early(Vec::new(), cause),
    };
    let mut devices = match open(&offered) {
        Ok(devices) => devices,
        Err(reasons) => return early(Vec::new(), FileCause::Refused(reasons)),
    };
    let mut reasons = Vec::new();
    compat::check_devices(
        &head.hello.devices,
        devices.iter().map(|device| &**device),
        "in the file",
        &mut |_, text| reasons.push(text),
    );
    let standing = ready(&mut devices, options.peer_to_peer);
    let Standing { states, stopped } = match standing {
        Ok(standing) if reasons.is_empty() => standing,
        standing => {
            reasons.extend(standing.err().into_iter().flatten());
            return early(devices, FileCause::Refused(reasons));
        }
    };
    let names: Vec<String> =
        devices.iter().map(|device| device.name().to_owned()).collect();
    let mut set = DeviceSet::known(devices, &states)
        .with_observer(Box::new(Shared(Arc::clone(&observer))));
    let loaded = load(&mut set, &mut reader, &head, options, &*observer);
    let result = match loaded {
        Ok(()) => reader.contents(&head).map(|contents| RestoreReport {
            devices: contents.devices,
            bytes: contents.bytes,
            frames: contents.frames,
            total: began.elapsed(),
            running: options.start,
        }),
        Err(cause) => Err(cause),
    };
    let mut result = result.map_err(|cause| discard(&mut set, &names, stopped, cause));
    let devices = set.into_devices();
    if let Ok(report) = &mut result {
        for (report, device) in report.devices.iter_mut().zip(&devices) {
            report.validated_at_start = device.validated_at_start();
        }
    }
    Restored { devices, result }
}

fn early(devices: Vec<Box<dyn Device>>, cause: FileCause) -> Restored {
    Restored { devices, result: Err(FileError::untouched(cause)) }
}

/// Who the devices in the file are.
fn offer(reader: &mut Reader<'_>) -> Result<(Head, Vec<Offered>), FileCause> {
    let head = reader.head()?;
    let mut reasons: Vec<String> =
        compat::check_preamble(&head.preamble).into_iter().map(|one| one.text).collect();
    let mut offered = Vec::new();
    for device in &head.hello.devices {
        match compat::offered(device) {
            Ok(identity) => offered.push(Offered { name: device.slot.clone(), identity }),
            Err(refusal) => reasons.push(refusal.text),
        }
    }
    if reasons.is_empty() {
        Ok((head, offered))
    } else {
        Err(FileCause::Refused(reasons))
    }
}

fn load(
    set: &mut DeviceSet,
    reader: &mut Reader<'_>,
    head: &Head,
    options: &RestoreOptions,
    observer: &dyn Observer,
) -> Result<(), FileCause> {
    let failed = |error| FileCause::Device(chain(&error));
    check(&options.cancel)?;
    phase(observer, Phase::Setup);
    set.load().map_err(failed)?;
    phase(observer, Phase::Devices);
    let total = head.hello.expected_bytes.unwrap_or(0);
    let mut done = 0u64;
    reader.pieces(head, |device, bytes, ends_transaction| {
        check(&options.cancel)?;
        set.write(DeviceId(device), bytes, ends_transaction).map_err(failed)?;
        done = done.saturating_add(bytes.len() as u64);
        observer.progress(&Progress::Bytes { done, total: total.max(done) });
        Ok(())
    })?;
    // Every checksum was right: now the devices say whether they can take it.
    phase(observer, Phase::Prepare);
    set.loaded().map_err(failed)?;
    if options.start {
        phase(observer, Phase::Start);
        set.start().map_err(failed)?;
    }
    Ok(())
}

/// Nothing of a half-loaded device stays, and nothing of it runs.
fn discard(
    set: &mut DeviceSet,
    names: &[String],
    stopped: bool,
    cause: FileCause,
) -> FileError {
    let mut lost = set.discard().lost;
    if stopped && lost.is_empty() {
        lost = set.recover(Goal::Stop).lost;
    }
    let recovery =
        if lost.is_empty() { Recovery::SourceResumed } else { Recovery::DeviceLost };
    FileError {
        recovery,
        devices: lost.iter().map(|DeviceId(n)| names[*n].clone()).collect(),
        restoring: true,
        ..FileError::untouched(cause)
    }
}
