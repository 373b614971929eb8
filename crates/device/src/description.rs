//! What a device is and has.

use abi::irq::IrqInfoFlags;
use abi::pci::irq_index;
use states::v2::Capabilities;
use sys::SharedMemory;
use thiserror::Error;

/// What a device tells of itself, once.
#[derive(Clone, Debug)]
pub struct Description {
    /// Who it is.
    pub identity: Identity,
    /// Which optional migration states it has.
    pub capabilities: Capabilities,
    /// Its regions; an index that is not listed has size 0.
    pub regions: Vec<Region>,
    /// Its interrupts; an index that is not listed has no vector.
    pub irqs: Vec<Irq>,
}

/// Who a device is, as far as that decides whether its state fits another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its ids as a PCI function; `None` for a device on no PCI bus.
    pub pci: Option<PciIds>,
    /// The model's name, 1 to 64 bytes.
    pub model: String,
    /// The version of the data that it saves.
    pub data_version: u32,
}

/// The ids of a PCI function, as in its config space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciIds {
    /// Vendor id, offset 0x00.
    pub vendor: u16,
    /// Device id, offset 0x02.
    pub device: u16,
    /// Subsystem vendor id, offset 0x2c.
    pub subsystem_vendor: u16,
    /// Subsystem id, offset 0x2e.
    pub subsystem: u16,
    /// Class code, 24 bits, offset 0x09.
    pub class: u32,
    /// Revision, offset 0x08.
    pub revision: u8,
}

/// A region of a device.
#[derive(Clone, Debug)]
pub struct Region {
    /// Its index: 0 to 5 are BARs, 7 is config space (`VFIO_PCI_*_REGION_INDEX`).
    pub index: u32,
    /// Size in bytes, at least 1.
    pub size: u64,
    /// Whether it may be written.
    pub writable: bool,
    /// The parts that a client may map; everything else is trapped.
    pub windows: Vec<Window>,
}

/// A part of a region that clients map. What they write there nobody sees, so the model
/// has to save all of it in stop-copy.
#[derive(Clone, Debug)]
pub struct Window {
    /// Where in the region it starts, in bytes, a multiple of 4096.
    pub offset: u64,
    /// The memory behind it, all of it: a multiple of 4096 bytes, and at a multiple of
    /// 4096 in its file.
    pub memory: SharedMemory,
}

/// One interrupt index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Irq {
    /// The index: 0 `INTx`, 1 MSI, 2 MSI-X, 3 ERR, 4 REQ (`VFIO_PCI_*_IRQ_INDEX`).
    pub index: u32,
    /// How many vectors, 1 to 2048.
    pub count: u32,
    /// What the client can do with them. A vector of an `AUTOMASKED` index masks itself
    /// when it fires, and what is raised before it is unmasked again waits.
    pub flags: IrqInfoFlags,
}

impl Irq {
    /// An index of a PCI function with the kernel's flags: `INTx` can be masked and masks
    /// itself, the others have to be disabled before their number changes.
    pub fn new(index: u32, count: u32) -> Irq {
        let flags = match index {
            irq_index::INTX => IrqInfoFlags::MASKABLE | IrqInfoFlags::AUTOMASKED,
            _ => IrqInfoFlags::NORESIZE,
        };
        Irq { index, count, flags: flags | IrqInfoFlags::EVENTFD }
    }

    /// Whether the flags and the number of vectors can be what they say.
    fn makes_sense(&self, pci: bool) -> bool {
        let maskable = self.flags.contains(IrqInfoFlags::MASKABLE);
        let single = [irq_index::INTX, irq_index::ERR, irq_index::REQ];
        self.flags.contains(IrqInfoFlags::EVENTFD)
            && (maskable || !self.flags.contains(IrqInfoFlags::AUTOMASKED))
            && !(pci && single.contains(&self.index) && self.count > 1)
    }
}

/// A description that no device can have.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidDescription {
    /// The model's name is empty or longer than 64 bytes.
    #[error("the model's name has {0} bytes, not 1 to 64")]
    Name(usize),
    /// A region is listed twice, empty, or its index is above 63.
    #[error("region {0} is listed twice, empty or out of range")]
    Region(u32),
    /// A window is empty, not page-aligned, outside its region or its memory, or
    /// overlaps another.
    #[error("region {0} has an impossible window")]
    Window(u32),
    /// An interrupt index is listed twice, has no vector or too many (for `INTx`, ERR and
    /// REQ of a PCI function more than one), is above 63, or has flags that no index
    /// has: without `EVENTFD`, or `AUTOMASKED` without `MASKABLE`.
    #[error("interrupt index {0} is listed twice, empty, out of range or has odd flags")]
    Irq(u32),
}

const INDEX_MAX: u32 = 63;
const VECTORS_MAX: u32 = 2048;
const PAGE: u64 = 4096;

impl Description {
    /// The region with that index.
    pub fn region(&self, index: u32) -> Option<&Region> {
        self.regions.iter().find(|region| region.index == index)
    }

    /// The interrupt with that index.
    pub fn irq(&self, index: u32) -> Option<&Irq> {
        self.irqs.iter().find(|irq| irq.index == index)
    }

    /// Checks what everything after it relies on.
    ///
    /// # Errors
    ///
    /// [`InvalidDescription`], with the first thing that is wrong.
    pub fn validate(&self) -> Result<(), InvalidDescription> {
        let name = self.identity.model.len();
        if name == 0 || name > 64 {
            return Err(InvalidDescription::Name(name));
        }
        for (n, region) in self.regions.iter().enumerate() {
            let twice = self.regions[..n].iter().any(|r| r.index == region.index);
            if twice || region.size == 0 || region.index > INDEX_MAX {
                return Err(InvalidDescription::Region(region.index));
            }
            let mut free = 0;
            for window in &region.windows {
                if !window.fits(free, region.size) {
                    return Err(InvalidDescription::Window(region.index));
                }
                free = window.end();
            }
        }
        for (n, irq) in self.irqs.iter().enumerate() {
            let twice = self.irqs[..n].iter().any(|i| i.index == irq.index);
            if twice
                || irq.count == 0
                || irq.count > VECTORS_MAX
                || irq.index > INDEX_MAX
                || !irq.makes_sense(self.identity.pci.is_some())
            {
                return Err(InvalidDescription::Irq(irq.index));
            }
        }
        Ok(())
    }
}

impl Window {
    /// The address in the region after its last byte.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.memory.len())
    }

    /// Whether it is a window of a region of `size` bytes, at or behind `free`.
    fn fits(&self, free: u64, size: u64) -> bool {
        let aligned = [self.offset, self.memory.len(), self.memory.offset()]
            .iter()
            .all(|n| n.is_multiple_of(PAGE));
        aligned && !self.memory.is_empty() && self.offset >= free && self.end() <= size
    }
}
