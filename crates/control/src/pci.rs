//! What the guest made of a PCI device's config space, saved and put back.
//!
//! A device's own data holds none of this (document 004): without it a migrated
//! device decodes nothing and raises nothing. Saved is what a guest can write and a
//! device keeps, register by register; never a whole config space, for a byte written
//! back blindly may reset the function or clear an error.
//!
//! ```text
//!   ConfigStage::Resuming   decoding and bus mastering off
//!                           BARs, ROM, read back: an address that does not hold is
//!                             that of another device
//!                           cache line, latency, line; PCIe control, without FLR
//!                           MSI address, data, mask and control; MSI-X control
//!                           command
//!   ConfigStage::Power      power state, without the status bit of wake-up
//! ```
//!
//! Every write has the width of its register: status registers, whose bits are cleared
//! by writing one, lie beside control registers and are never touched.

mod saved;

use std::sync::Arc;

use abi::device_info::DeviceFlags;
use abi::pci::capability::{self, CapabilityId, msi, pcie, pm};
use abi::pci::{config, region_index};
use port::{ConfigSpace, ConfigStage, VmmError};
use thiserror::Error;

use crate::probe::{ProbeError, failed};
use crate::transport::{Transport, TransportError};
use saved::Saved;

/// Bytes of config space that are looked at.
const SIZE: usize = config::SIZE as usize;
/// The most capabilities that fit behind the header, 4 bytes each.
const MOST_CAPABILITIES: usize = (SIZE - config::HEADER_END as usize) / 4;

/// The config space of a PCI device, over its transport's config region.
pub struct PciConfig {
    transport: Arc<dyn Transport>,
    part: String,
}

impl PciConfig {
    /// The config space of a device, or `None` for one that is not on PCI.
    ///
    /// # Errors
    /// When the device does not answer.
    pub fn open(transport: Arc<dyn Transport>) -> Result<Option<PciConfig>, ProbeError> {
        let info = transport.device_info().map_err(failed(&*transport, "what it is"))?;
        let part = format!("config space of {}", transport.name());
        let pci = DeviceFlags::from_bits_retain(info.flags).contains(DeviceFlags::PCI);
        Ok(pci.then_some(PciConfig { transport, part }))
    }

    fn read(&self) -> Result<View, Unfit> {
        let mut bytes = [0; SIZE];
        self.transport.region_read(region_index::CONFIG, 0, &mut bytes)?;
        View::new(bytes)
    }

    fn write(&self, at: u16, bytes: &[u8]) -> Result<(), Unfit> {
        Ok(self.transport.region_write(region_index::CONFIG, u64::from(at), bytes)?)
    }

    fn write_u16(&self, at: u16, value: u16) -> Result<(), Unfit> {
        self.write(at, &value.to_le_bytes())
    }

    fn write_u32(&self, at: u16, value: u32) -> Result<(), Unfit> {
        self.write(at, &value.to_le_bytes())
    }

    fn load_resuming(&self, saved: &Saved) -> Result<(), Unfit> {
        let now = self.read()?;
        saved.check(&now)?;
        let power = now.capability(CapabilityId::POWER_MANAGEMENT);
        if let Some(at) = power
            && now.u16(at + pm::CONTROL) & pm::CONTROL_STATE_MASK != 0
        {
            // Going to D0 may reset what was just loaded.
            return Err(Unfit::Asleep);
        }
        let on =
            config::Command::IO | config::Command::MEMORY | config::Command::BUS_MASTER;
        self.write_u16(config::COMMAND, now.u16(config::COMMAND) & !on.bits())?;
        self.load_addresses(saved)?;
        self.write(config::CACHE_LINE_SIZE, &[saved.cache_line_size])?;
        self.write(config::LATENCY_TIMER, &[saved.latency_timer])?;
        self.write(config::INTERRUPT_LINE, &[saved.interrupt_line])?;
        if let Some(at) = now.capability(CapabilityId::PCI_EXPRESS) {
            let control = saved.pcie_control.get() & !pcie::DEVICE_CONTROL_FLR;
            self.write_u16(at + pcie::DEVICE_CONTROL, control)?;
            if now.pcie_version(at) >= 2 {
                self.write_u16(at + pcie::DEVICE_CONTROL_2, saved.pcie_control_2.get())?;
            }
        }
        if let Some(at) = now.capability(CapabilityId::MSI) {
            self.load_msi(at, saved)?;
        }
        if let Some(at) = now.capability(CapabilityId::MSIX) {
            self.write_u16(at + capability::msix::CONTROL, saved.msix_control.get())?;
        }
        self.write_u16(config::COMMAND, saved.command.get())?;
        let held = self.read()?.u16(config::COMMAND);
        if (held ^ saved.command.get()) & on.bits() != 0 {
            return Err(Unfit::Command { saved: saved.command.get(), held });
        }
        Ok(())
    }

    fn load_addresses(&self, saved: &Saved) -> Result<(), Unfit> {
        for (bar, value) in saved.bars.iter().enumerate() {
            self.write_u32(View::bar(bar), value.get())?;
        }
        self.write_u32(config::ROM_ADDRESS, saved.rom.get())?;
        let held = self.read()?;
        for (bar, value) in saved.bars.iter().enumerate() {
            let (saved, held) = (value.get(), held.u32(View::bar(bar)));
            if saved != held {
                return Err(Unfit::Bar { bar, saved, held });
            }
        }
        Ok(())
    }

    fn load_msi(&self, at: u16, saved: &Saved) -> Result<(), Unfit> {
        let control = saved.msi_control.get();
        // The message must be complete before it may be sent.
        self.write_u16(at + msi::CONTROL, control & !msi::CONTROL_ENABLE)?;
        self.write_u32(at + msi::ADDRESS_LOW, saved.msi_address_low.get())?;
        if control & msi::CONTROL_64_BIT != 0 {
            self.write_u32(at + msi::ADDRESS_HIGH, saved.msi_address_high.get())?;
        }
        self.write_u16(at + View::msi_data(control), saved.msi_data.get())?;
        if control & msi::CONTROL_MASKABLE != 0 {
            self.write_u32(at + View::msi_mask(control), saved.msi_mask.get())?;
        }
        self.write_u16(at + msi::CONTROL, control)
    }

    fn load_power(&self, saved: &Saved) -> Result<(), Unfit> {
        let now = self.read()?;
        saved.check(&now)?;
        let Some(at) = now.capability(CapabilityId::POWER_MANAGEMENT) else {
            return Ok(());
        };
        let kept = pm::CONTROL_STATE_MASK | pm::CONTROL_PME_ENABLE;
        let wanted = saved.power_control.get() & kept;
        if now.u16(at + pm::CONTROL) & kept == wanted {
            return Ok(());
        }
        self.write_u16(at + pm::CONTROL, wanted)
    }

    fn error(&self, operation: &str, why: Unfit) -> VmmError {
        VmmError::new(self.part.clone(), operation, why)
    }
}

impl std::fmt::Debug for PciConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PciConfig").field("part", &self.part).finish_non_exhaustive()
    }
}

impl ConfigSpace for PciConfig {
    fn save(&mut self) -> Result<Vec<u8>, VmmError> {
        let view = self.read().map_err(|why| self.error("save", why))?;
        Ok(Saved::new(&view).encode())
    }

    fn load(&mut self, saved: &[u8], stage: ConfigStage) -> Result<(), VmmError> {
        let loaded = Saved::decode(saved).and_then(|saved| match stage {
            ConfigStage::Resuming => self.load_resuming(&saved),
            ConfigStage::Power => self.load_power(&saved),
        });
        loaded.map_err(|why| match stage {
            ConfigStage::Resuming => self.error("load", why),
            ConfigStage::Power => self.error("load the power state", why),
        })
    }
}

/// The bytes of a config space, and where its capabilities lie.
struct View {
    bytes: [u8; SIZE],
    capabilities: Vec<(CapabilityId, u16)>,
}

impl View {
    fn new(bytes: [u8; SIZE]) -> Result<View, Unfit> {
        let mut view = View { bytes, capabilities: Vec::new() };
        if view.u16(config::VENDOR_ID) == 0xffff {
            return Err(Unfit::NotThere);
        }
        let header = view.bytes[usize::from(config::HEADER_TYPE)] & 0x7f;
        if header != 0 {
            return Err(Unfit::Header(header));
        }
        let status = config::Status::from_bits_retain(view.u16(config::STATUS));
        if !status.contains(config::Status::CAPABILITY_LIST) {
            return Ok(view);
        }
        let mut at = view.u8(config::CAPABILITY_LIST) & !3;
        while at != 0 {
            let start = u16::from(at);
            if start < config::HEADER_END || view.capabilities.len() == MOST_CAPABILITIES
            {
                return Err(Unfit::Capabilities(at));
            }
            let id = CapabilityId(view.u8(start + capability::ID));
            let end = usize::from(start + view.reach(id, start));
            if end > SIZE {
                return Err(Unfit::Capabilities(at));
            }
            view.capabilities.push((id, start));
            at = view.u8(start + capability::NEXT) & !3;
        }
        Ok(view)
    }

    /// How many bytes of a capability are read or written at most.
    fn reach(&self, id: CapabilityId, start: u16) -> u16 {
        match id {
            CapabilityId::POWER_MANAGEMENT => pm::CONTROL + 2,
            CapabilityId::MSI => {
                let control = self.u16(start + msi::CONTROL);
                if control & msi::CONTROL_MASKABLE == 0 {
                    View::msi_data(control) + 2
                } else {
                    View::msi_mask(control) + 4
                }
            }
            CapabilityId::MSIX => capability::msix::SIZE,
            CapabilityId::PCI_EXPRESS => pcie::DEVICE_STATUS + 2,
            _ => 2,
        }
    }

    fn capability(&self, id: CapabilityId) -> Option<u16> {
        self.capabilities.iter().find(|(one, _)| *one == id).map(|(_, at)| *at)
    }

    fn pcie_version(&self, at: u16) -> u16 {
        // Version 2 has registers that version 1 leaves to somebody else.
        let fits = usize::from(at + pcie::DEVICE_CONTROL_2) + 2 <= SIZE;
        if fits { self.u16(at + pcie::FLAGS) & 0xf } else { 1 }
    }

    fn bar(number: usize) -> u16 {
        config::BAR0 + 4 * number as u16
    }

    fn msi_data(control: u16) -> u16 {
        if control & msi::CONTROL_64_BIT == 0 { msi::DATA_32 } else { msi::DATA_64 }
    }

    /// Two bytes behind the data, which has a reserved neighbour (PCI 3.0, 6.8.1).
    fn msi_mask(control: u16) -> u16 {
        View::msi_data(control) + 4
    }

    fn u8(&self, at: u16) -> u8 {
        self.bytes.get(usize::from(at)).copied().unwrap_or(0)
    }

    fn u16(&self, at: u16) -> u16 {
        u16::from_le_bytes([self.u8(at), self.u8(at + 1)])
    }

    fn u32(&self, at: u16) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }
}

/// Why a config space cannot be saved, or what was saved not be put back.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Unfit {
    /// The device did not take an access.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// It reads as all ones.
    #[error("the device does not answer in its config space")]
    NotThere,
    /// It is no ordinary function. Holds the header type.
    #[error("header type {0} is not supported")]
    Header(u8),
    /// The list of capabilities leaves its place or runs in circles. Holds an offset.
    #[error("the list of capabilities is broken at {0:#x}")]
    Capabilities(u8),
    /// What was saved cannot be read. Holds its length in bytes.
    #[error("what was saved has {0} bytes, which is no config space")]
    Length(usize),
    /// What was saved is of a version that is not known. Holds the version.
    #[error("what was saved is of version {0}, only version 1 is known")]
    Version(u16),
    /// It was saved on another kind of device.
    #[error("it was saved where {what} is {saved:#x}, here it is {here:#x}")]
    Another {
        /// What differs.
        what: &'static str,
        /// What it was there.
        saved: u32,
        /// What it is here.
        here: u32,
    },
    /// The device is not in D0.
    #[error("the device sleeps, and waking it may reset it")]
    Asleep,
    /// A BAR does not hold its address.
    #[error("BAR {bar} was {saved:#x} and holds {held:#x}")]
    Bar {
        /// Its number, 0 to 5.
        bar: usize,
        /// What was saved.
        saved: u32,
        /// What the register holds after it was written.
        held: u32,
    },
    /// The command register does not take decoding or bus mastering.
    #[error("the command register was {saved:#x} and holds {held:#x}")]
    Command {
        /// What was saved.
        saved: u16,
        /// What the register holds after it was written.
        held: u16,
    },
}
