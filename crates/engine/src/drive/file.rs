//! Devices without a guest, saved to a file and restored from one.
//!
//! A saved file is the stream of a migration without answers (`docs/stream.md`): who
//! the devices are, then the data of each, then the end with its count and checksum.
//!
//! ```text
//!   save      refuse | stop in order | read each device ---> port::Archive
//!                    | run on, or stay in STOP          ---> commit
//!
//!   restore   port::Receive ---> who they are | open, compare, refuse
//!                           ---> RESUMING | write each device | digests | STOP (run)
//! ```
//!
//! Bytes go from a device to the file and back through one buffer: nothing is held
//! whole. An error anywhere leaves the devices of a save as they were, and those of a
//! restore fresh. What a file says is not believed before its checksums were compared,
//! and [`verify`] compares all of them without touching a device.

mod load;
pub(super) mod read;
mod write;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use port::{AttemptId, ChannelError, Device, Identity, Observer, Phase, Progress};
use states::v2::State;
use thiserror::Error;
use wire::message::MAX_DEVICES;

pub use load::{RestoreOptions, RestoreReport, Restored, restore};
pub use read::{saved_sides, verify};
pub use write::{Leave, SaveOptions, SaveReport, Saved, save, save_blockers};

use super::tracker::chain;
use crate::devices::{DeviceId, Rollback, check_p2p};
use crate::migration::Recovery;

/// How long one read or write of a file, or one wait for a pipe, may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// How much of a device's data is read at a time, and goes into one frame.
const CHUNK: usize = 1 << 20;

/// One device in a saved file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileDevice {
    /// What its owner called it when it was saved.
    pub name: String,
    /// Who it is.
    pub identity: Identity,
    /// Bytes of its data.
    pub bytes: u64,
    /// Their CRC32C.
    pub crc: u32,
    /// How long it took to read or write them; zero where only the file was read.
    pub took: Duration,
    /// After a restore: whether what it loaded is validated only when it starts, since
    /// it has no state between RESUMING and RUNNING.
    pub validated_at_start: bool,
}

/// What a saved file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileContents {
    /// The id that the save was given.
    pub id: AttemptId,
    /// The program that wrote it, for people.
    pub software: String,
    /// The devices, in the order in which they were saved.
    pub devices: Vec<FileDevice>,
    /// Bytes of the whole file.
    pub bytes: u64,
    /// Frames in it.
    pub frames: u64,
}

/// A save, a restore or a check that did not succeed.
#[derive(Debug, Error)]
#[error("{cause}{}", self.consequence())]
pub struct FileError {
    /// Why.
    pub cause: FileCause,
    /// What the caller has now: [`Recovery::Retry`] where no device was touched,
    /// [`Recovery::SourceResumed`] where all are as they were (a save) or fresh (a
    /// restore), [`Recovery::DeviceLost`] where one is not.
    pub recovery: Recovery,
    /// The devices that lost what they held, or do not answer, by name.
    pub devices: Vec<String>,
    kept: bool,
    restoring: bool,
}

/// Why a save, a restore or a check did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FileCause {
    /// Somebody cancelled it.
    #[error("cancelled")]
    Cancelled,
    /// It cannot be done with these devices or this file; each reason names the thing
    /// and the remedy.
    #[error("refused: {}", .0.join("; "))]
    Refused(Vec<String>),
    /// A device failed.
    #[error("{0}")]
    Device(String),
    /// The file is not what was written.
    #[error("the file is damaged at byte {offset} (frame {frame}): {what}")]
    Damaged {
        /// Where the frame begins, in bytes from the start of the file.
        offset: u64,
        /// Its number, from 0.
        frame: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The file cannot be read or written.
    #[error("{0}")]
    File(String),
}

impl FileError {
    /// What the caller has now: the question after any failure.
    pub fn recovery(&self) -> Recovery {
        self.recovery
    }

    /// Whether a save that failed left a whole file all the same: a device did not come
    /// back, and the file is the only copy of what it held.
    pub fn kept(&self) -> bool {
        self.kept
    }

    pub(super) fn untouched(cause: FileCause) -> FileError {
        let recovery = Recovery::Retry;
        FileError { cause, recovery, devices: vec![], kept: false, restoring: false }
    }

    fn consequence(&self) -> String {
        let names = self.devices.join(", ");
        match (self.recovery, self.restoring) {
            (Recovery::DeviceLost, true) => {
                format!("; {names} could not be reset, and is not to be used")
            }
            (Recovery::DeviceLost, false) if self.kept => format!(
                "; {names} did not come back with what it held: the file is whole and \
                 has it, restore it from there"
            ),
            (Recovery::DeviceLost, false) => {
                format!("; {names} did not come back with what it held")
            }
            (Recovery::SourceResumed, true) => "; the devices were reset".into(),
            (Recovery::SourceResumed, false) => "; the devices are as before".into(),
            _ => String::new(),
        }
    }
}

impl FileCause {
    pub(super) fn channel(error: &ChannelError) -> FileCause {
        FileCause::File(match error {
            ChannelError::Cancelled => return FileCause::Cancelled,
            ChannelError::Io(source) => chain(source),
            ChannelError::Closed => "nobody reads what is written".to_owned(),
            other => chain(other),
        })
    }
}

/// Whether these devices run (`false`) or are all in STOP (`true`): what a machine
/// without vCPUs takes for a paused guest ([`crate::Machine::devices_only`]).
///
/// # Errors
/// Reasons, each with its remedy: there is none, one does not answer, one is in another
/// state, or some run and some do not.
pub fn all_stopped(devices: &mut [Box<dyn Device>]) -> Result<bool, Vec<String>> {
    standing(devices).map(|standing| standing.stopped)
}

/// How a set of devices stands.
struct Standing {
    states: Vec<State>,
    stopped: bool,
}

/// Asks every device for its state: all have to run, or all have to be in STOP.
fn standing(devices: &mut [Box<dyn Device>]) -> Result<Standing, Vec<String>> {
    let mut reasons = Vec::new();
    if devices.is_empty() {
        reasons.push("there is no device: name at least one".to_owned());
    }
    if devices.len() > MAX_DEVICES {
        let count = devices.len();
        reasons.push(format!("{count} devices, and a stream has at most {MAX_DEVICES}"));
    }
    let mut states = Vec::new();
    for device in devices.iter_mut() {
        match device.state() {
            Ok(state @ (State::Running | State::Stop)) => states.push(state),
            Ok(state) => reasons.push(format!(
                "{} is in {}, and neither runs nor is stopped: finish what is under way \
                 there, or reset it",
                device.name(),
                state.name()
            )),
            Err(error) => reasons.push(chain(&error)),
        }
    }
    let named = |state| {
        let pairs = devices.iter().zip(&states).filter(move |(_, one)| **one == state);
        pairs.map(|(device, _)| device.name()).collect::<Vec<_>>().join(", ")
    };
    if reasons.is_empty() && states.windows(2).any(|pair| pair[0] != pair[1]) {
        reasons.push(format!(
            "{} runs and {} is stopped: start or stop them all first, or take them apart",
            named(State::Running),
            named(State::Stop)
        ));
    }
    if !reasons.is_empty() {
        return Err(reasons);
    }
    let stopped = states.first() == Some(&State::Stop);
    Ok(Standing { states, stopped })
}

/// The same, for devices that are about to be driven.
fn ready(
    devices: &mut [Box<dyn Device>],
    peer_to_peer: bool,
) -> Result<Standing, Vec<String>> {
    let standing = standing(devices);
    let capabilities = devices.iter().map(|device| device.identity().capabilities);
    match (standing, check_p2p(capabilities, peer_to_peer)) {
        (standing, Ok(())) => standing,
        (Ok(_), Err(refusal)) => Err(vec![refusal.to_string()]),
        (Err(mut reasons), Err(refusal)) => {
            reasons.push(refusal.to_string());
            Err(reasons)
        }
    }
}

/// An observer that several parts share.
struct Shared(Arc<dyn Observer>);

impl Observer for Shared {
    fn progress(&self, progress: &Progress) {
        self.0.progress(progress);
    }
}

fn phase(observer: &dyn Observer, phase: Phase) {
    tracing::info!(phase = phase.name(), "phase");
    observer.progress(&Progress::Phase(phase));
}

fn check(cancel: &AtomicBool) -> Result<(), FileCause> {
    if cancel.load(Ordering::Relaxed) { Err(FileCause::Cancelled) } else { Ok(()) }
}

/// The names of the devices that a rollback could not save.
fn ruined(names: &[String], rollback: &Rollback) -> Vec<String> {
    let ids = rollback.reset.iter().chain(&rollback.lost);
    ids.map(|DeviceId(n)| names[*n].clone()).collect()
}
