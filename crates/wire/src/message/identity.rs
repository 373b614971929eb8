//! What a device is, as far as the destination can compare it.

use std::fmt;

use super::layout::PciLayout;
use super::record::{Reader, Record, RecordWriter};
use super::{MAX_NAME_BYTES, MessageError};

/// A device that is to be migrated. Its state is opaque, so this is all there is to
/// judge by whether another device can take it.
#[derive(Clone, PartialEq, Eq)]
pub struct DeviceIdentity {
    /// The VMM's name for the place where it is plugged in, the same on both sides,
    /// 1 to [`MAX_NAME_BYTES`] bytes.
    pub slot: String,
    /// The bus that it is on.
    pub bus: Bus,
    /// Its ids, if and only if it is a PCI device.
    pub pci: Option<PciIds>,
    /// The generation of the migration interface that it has.
    pub generation: Generation,
    /// The v2 capability set (`VFIO_MIGRATION_STOP_COPY` 1, `P2P` 2, `PRE_COPY` 4).
    pub capabilities: u64,
    /// The model and the version of its data. Absent: not known, so that only an
    /// equal capability set is accepted.
    pub model: Option<Model>,
    /// About how many bytes are left to stop-copy (`DATA_SIZE`). Absent: not known.
    pub stop_copy_bytes: Option<u64>,
    /// Where everything lies in it, of a PCI device. Absent: not told, so that it is not
    /// compared beforehand.
    pub layout: Option<PciLayout>,
}

impl fmt::Debug for DeviceIdentity {
    /// What is not told is not shown, so that what a stream of an earlier day means reads
    /// as it did then.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("DeviceIdentity");
        shown
            .field("slot", &self.slot)
            .field("bus", &self.bus)
            .field("pci", &self.pci)
            .field("generation", &self.generation)
            .field("capabilities", &self.capabilities)
            .field("model", &self.model)
            .field("stop_copy_bytes", &self.stop_copy_bytes);
        if let Some(layout) = &self.layout {
            shown.field("layout", layout);
        }
        shown.finish()
    }
}

impl Record for DeviceIdentity {
    const NAME: &'static str = "device identity";
    const TAGS: &'static [u16] = &[1, 2, 3, 4, 5, 6, 7, 8];

    fn write(&self, w: &mut RecordWriter) -> Result<(), MessageError> {
        w.string(1, &self.slot, MAX_NAME_BYTES)?;
        w.u16(2, self.bus.0);
        w.optional_record(3, self.pci.as_ref())?;
        w.u16(4, self.generation.0);
        w.u64(5, self.capabilities);
        w.optional_record(6, self.model.as_ref())?;
        w.optional_u64(7, self.stop_copy_bytes);
        w.optional_record(8, self.layout.as_ref())
    }

    fn read(r: &Reader<'_>) -> Result<Self, MessageError> {
        Ok(Self {
            slot: r.string(1, MAX_NAME_BYTES)?,
            bus: Bus(r.u16(2)?),
            pci: r.optional_record(3)?,
            generation: Generation(r.u16(4)?),
            capabilities: r.u64(5)?,
            model: r.optional_record(6)?,
            stop_copy_bytes: r.optional_u64(7)?,
            layout: r.optional_record(8)?,
        })
    }

    fn broken_rule(&self) -> Option<&'static str> {
        if self.slot.is_empty() {
            return Some("the slot has no name");
        }
        let has_ids = self.pci.is_some() == (self.bus == Bus::PCI);
        let strange = self.layout.is_some() && self.bus != Bus::PCI;
        (!has_ids)
            .then_some("PCI ids and a PCI bus come together")
            .or(strange.then_some("the layout of a PCI device on another bus"))
    }
}

/// The bus that a device is on; open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bus(pub u16);

impl Bus {
    /// PCI, with [`PciIds`].
    pub const PCI: Self = Self(1);
    /// A platform device.
    pub const PLATFORM: Self = Self(2);
    /// s390 channel I/O.
    pub const CCW: Self = Self(3);
    /// s390 adjunct processors.
    pub const AP: Self = Self(4);
}

impl fmt::Display for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::PCI => "pci",
            Self::PLATFORM => "platform",
            Self::CCW => "ccw",
            Self::AP => "ap",
            Self(other) => return write!(f, "bus {other}"),
        })
    }
}

/// The generation of the migration interface; open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u16);

impl Generation {
    /// The region of the 2018 RFC.
    pub const RFC2018: Self = Self(1);
    /// The region of protocol v1.
    pub const V1: Self = Self(2);
    /// The features and data streams of protocol v2.
    pub const V2: Self = Self(3);
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::RFC2018 => "rfc2018",
            Self::V1 => "v1",
            Self::V2 => "v2",
            Self(other) => return write!(f, "generation {other}"),
        })
    }
}

/// What a PCI device says of itself in its config space (PCI 3.0, section 6.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PciIds {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
    /// Class code, 24 bits: base class, subclass, programming interface.
    pub class: u32,
    /// Revision.
    pub revision: u8,
}

impl Record for PciIds {
    const NAME: &'static str = "PCI ids";
    const TAGS: &'static [u16] = &[1, 2, 3, 4, 5, 6];

    fn write(&self, w: &mut RecordWriter) -> Result<(), MessageError> {
        w.u16(1, self.vendor);
        w.u16(2, self.device);
        w.u16(3, self.subsystem_vendor);
        w.u16(4, self.subsystem);
        w.u32(5, self.class);
        w.u8(6, self.revision);
        Ok(())
    }

    fn read(r: &Reader<'_>) -> Result<Self, MessageError> {
        Ok(Self {
            vendor: r.u16(1)?,
            device: r.u16(2)?,
            subsystem_vendor: r.u16(3)?,
            subsystem: r.u16(4)?,
            class: r.u32(5)?,
            revision: r.u8(6)?,
        })
    }

    fn broken_rule(&self) -> Option<&'static str> {
        (self.class > 0x00ff_ffff).then_some("a class code has 24 bits")
    }
}

/// What a device's maker calls it, and the layout of its data.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Model {
    /// The model, 1 to [`MAX_NAME_BYTES`] bytes.
    pub name: String,
    /// The device's own version of its data.
    pub data_version: u32,
}

impl Record for Model {
    const NAME: &'static str = "model";
    const TAGS: &'static [u16] = &[1, 2];

    fn write(&self, w: &mut RecordWriter) -> Result<(), MessageError> {
        w.string(1, &self.name, MAX_NAME_BYTES)?;
        w.u32(2, self.data_version);
        Ok(())
    }

    fn read(r: &Reader<'_>) -> Result<Self, MessageError> {
        Ok(Self { name: r.string(1, MAX_NAME_BYTES)?, data_version: r.u32(2)? })
    }

    fn broken_rule(&self) -> Option<&'static str> {
        self.name.is_empty().then_some("the name is empty")
    }
}
