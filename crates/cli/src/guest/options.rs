//! What an operator chooses for a guest.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use wire::message::MAX_SECTIONS;

use crate::devices::DeviceUri;

/// The most vCPUs: each is a section of a migration's stream, which has room for so many,
/// beside the interrupt controller's and the timer's.
pub const MOST_VCPUS: u32 = MAX_SECTIONS as u32 - 2;

/// The machine, which has to be the same on both sides of a migration.
#[derive(Clone, Debug)]
pub struct MachineOptions {
    /// Guest RAM in bytes: a multiple of 4096 from 4 MiB on.
    pub memory: u64,
    /// The devices, in the same order on both sides; at most 16.
    pub devices: Vec<DeviceUri>,
    /// vCPUs, 1 to [`MOST_VCPUS`].
    pub vcpus: u32,
    /// Bytes of pages that the vCPUs rewrite in a second, all together; 0 for an idle
    /// guest. Part of the guest's state: the destination's is not looked at.
    pub dirty_rate: u64,
    /// Bytes that each accelerator writes in a second; 0 for idle devices of any model.
    /// Part of the devices' state: the destination's is not looked at.
    pub dma_rate: u64,
    /// Whether each device also writes into the next one's memory. Without it the guest
    /// declares that no device maps another's BAR.
    pub p2p: bool,
    /// Where the guest's random state starts.
    pub seed: u64,
}

/// A guest that boots here.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The machine.
    pub machine: MachineOptions,
    /// Where the control socket is made.
    pub control: PathBuf,
    /// Where digests of the stopped guest are written, if they are wanted.
    pub digests: Option<PathBuf>,
    /// The one thing to break in a migration.
    pub inject: Option<Inject>,
    /// Whether the guest may be stopped only after every page and every device block
    /// changed since the migration began, but for those that rates of 0 leave idle.
    pub hold: bool,
    /// Whether the guest starts paused.
    pub paused: bool,
    /// How the devices interrupt the guest; `None` is the best way that each one has. Part
    /// of the guest's state: a destination hears it from the guest.
    pub interrupts: Option<InterruptKind>,
}

/// A guest that comes from another host.
#[derive(Clone, Debug)]
pub struct ReceiveOptions {
    /// The machine.
    pub machine: MachineOptions,
    /// Where the control socket is made.
    pub control: PathBuf,
    /// Where digests of the loaded guest are written, if they are wanted.
    pub digests: Option<PathBuf>,
    /// Where to listen for the source.
    pub from: link::Uri,
    /// As in [`RunOptions`], once the guest migrates from here.
    pub hold: bool,
}

/// What to break, where no checksum of the stream can see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inject {
    /// One byte of one page, in the copy that is sent.
    Page,
    /// One byte of the source device's memory, after its digest and before its save; of
    /// one without a mapped window (a uart), in its save.
    Device,
    /// One dirty bit of the last report is forgotten.
    DirtyBit,
    /// What waits of the interrupts of one device is dropped before it is saved.
    Interrupt,
    /// One peer write is let through after its target stopped.
    P2pLate,
}

/// A way in which a PCI device interrupts a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InterruptKind {
    /// By a line, which is a level.
    Intx,
    /// By messages, of one address for all vectors.
    Msi,
    /// By messages, of a table with a row for each vector.
    Msix,
}

impl InterruptKind {
    /// All of them, with the names that the command line has for them.
    pub const ALL: [(&'static str, InterruptKind); 3] = [
        ("intx", InterruptKind::Intx),
        ("msi", InterruptKind::Msi),
        ("msix", InterruptKind::Msix),
    ];
}

impl fmt::Display for InterruptKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = InterruptKind::ALL.iter().find(|(_, kind)| kind == self);
        f.write_str(name.map_or("nothing", |(name, _)| name))
    }
}

impl FromStr for InterruptKind {
    type Err = OptionsError;

    fn from_str(text: &str) -> Result<InterruptKind, OptionsError> {
        let found = InterruptKind::ALL.iter().find(|(name, _)| *name == text);
        found.map(|(_, kind)| *kind).ok_or_else(|| OptionsError::Interrupts(shown(text)))
    }
}

impl Inject {
    /// All of them, with the names that the command line has for them.
    pub const ALL: [(&'static str, Inject); 5] = [
        ("page", Inject::Page),
        ("device", Inject::Device),
        ("dirty-bit", Inject::DirtyBit),
        ("interrupt", Inject::Interrupt),
        ("p2p-late", Inject::P2pLate),
    ];
}

impl fmt::Display for Inject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Inject::ALL.iter().find(|(_, inject)| inject == self);
        f.write_str(name.map_or("nothing", |(name, _)| name))
    }
}

impl FromStr for Inject {
    type Err = OptionsError;

    fn from_str(text: &str) -> Result<Inject, OptionsError> {
        let found = Inject::ALL.iter().find(|(name, _)| *name == text);
        found.map(|(_, inject)| *inject).ok_or_else(|| OptionsError::Inject(shown(text)))
    }
}

impl MachineOptions {
    /// Whether a guest can have so many bytes of memory.
    ///
    /// # Errors
    /// [`OptionsError::Memory`], where not.
    pub fn fits_memory(bytes: u64) -> Result<(), OptionsError> {
        if !bytes.is_multiple_of(4096) || bytes < 4 << 20 {
            return Err(OptionsError::Memory(bytes));
        }
        Ok(())
    }

    /// Checks what everything after it relies on.
    ///
    /// # Errors
    /// The first thing that no machine can have.
    pub fn validate(&self) -> Result<(), OptionsError> {
        MachineOptions::fits_memory(self.memory)?;
        if !(1..=MOST_VCPUS).contains(&self.vcpus) {
            return Err(OptionsError::Vcpus(self.vcpus));
        }
        if self.devices.len() > 16 {
            return Err(OptionsError::Devices(self.devices.len()));
        }
        if self.p2p && self.devices.len() == 1 {
            return Err(OptionsError::NoPeer);
        }
        Ok(())
    }
}

/// Options that make no sense.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OptionsError {
    /// The memory is too small, or no whole number of pages.
    #[error("{0} bytes of memory: give a multiple of 4096 from 4M on")]
    Memory(u64),
    /// Too few or too many vCPUs.
    #[error("{0} vCPUs: give 1 to {MOST_VCPUS}")]
    Vcpus(u32),
    /// Too many devices.
    #[error("{0} devices: give at most 16")]
    Devices(usize),
    /// Peer-to-peer with a single device.
    #[error("peer-to-peer needs at least two devices")]
    NoPeer,
    /// Nothing that can be broken.
    #[error("`{0}` cannot be injected: page, device, dirty-bit, interrupt or p2p-late")]
    Inject(String),
    /// No way to interrupt.
    #[error("`{0}` is no way to interrupt: intx, msi or msix")]
    Interrupts(String),
}

/// Enough of a foreign text to recognise it by.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_injected_is_read_as_it_is_written() {
        for (name, inject) in Inject::ALL {
            assert_eq!(name.parse::<Inject>().unwrap(), inject);
            assert_eq!(inject.to_string(), name);
        }
        assert!("pages".parse::<Inject>().is_err());
    }

    #[test]
    fn an_impossible_machine_is_refused_with_what_to_give() {
        let good = MachineOptions {
            memory: 4 << 20,
            devices: Vec::new(),
            vcpus: 1,
            dirty_rate: 0,
            dma_rate: 0,
            p2p: false,
            seed: 1,
        };
        good.validate().unwrap();
        let device: DeviceUri = "vfio-user:/run/a.sock".parse().unwrap();
        for (bad, says) in [
            (MachineOptions { memory: 4 << 10, ..good.clone() }, "4M"),
            (MachineOptions { memory: (4 << 20) + 1, ..good.clone() }, "4096"),
            (MachineOptions { vcpus: 0, ..good.clone() }, "1 to 62"),
            (MachineOptions { vcpus: 63, ..good.clone() }, "1 to 62"),
            (MachineOptions { devices: vec![device.clone(); 17], ..good.clone() }, "16"),
            (MachineOptions { devices: vec![device], p2p: true, ..good.clone() }, "two"),
        ] {
            assert!(bad.validate().unwrap_err().to_string().contains(says));
        }
    }
}
