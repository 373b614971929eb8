//! Reading who a PCI function is and where everything in it lies.
//!
//! The device is believed nothing: its lists of capabilities may run in circles, lie
//! beyond config space or overlap the header, its BARs may claim a size that no address
//! fits. What comes out of here is in bounds, so that nobody above has to look again.

use abi::errno::Errno;
use abi::pci::capability::{self, CapabilityId, msi, msix, pcie, pm};
use abi::pci::extended::{self, ExtendedId, acs, aer, ats, ltr, pasid, tph};
use abi::pci::{config, irq_index, region_index};
use port::{
    BarKind, MsiLayout, MsixLayout, PciBar, PciCapability, PciExtended, PciIds, PciLayout,
};

use super::unfit::Unfit;
use crate::probe::{ProbeError, failed};
use crate::transport::{Transport, TransportError};

/// The most capabilities: as many as fit behind the header, 4 bytes each.
const MOST_CAPABILITIES: usize = (config::SIZE - config::HEADER_END) as usize / 4;
/// The most extended capabilities. More of them would fit, and no device has them.
pub(super) const MOST_EXTENDED: usize = 96;

/// A function as it was found.
pub(crate) struct Seen {
    pub(crate) ids: PciIds,
    pub(crate) layout: PciLayout,
    /// Its config space: 256 or 4096 bytes, zero where the device has none.
    pub(super) bytes: Vec<u8>,
    /// How many bytes of it the device has.
    pub(super) readable: usize,
}

impl Seen {
    /// Asks the device; changes nothing.
    pub(crate) fn of(transport: &dyn Transport) -> Result<Seen, Unfit> {
        let readable = match size_of_region(transport, region_index::CONFIG)? {
            // It does not say; every function has these.
            0 => usize::from(config::SIZE),
            size => size.min(u64::from(config::EXTENDED_SIZE)) as usize,
        };
        let header = usize::from(config::HEADER_END);
        if readable < header {
            return Err(Unfit::Short(readable));
        }
        let whole = if readable > usize::from(config::SIZE) {
            usize::from(config::EXTENDED_SIZE)
        } else {
            usize::from(config::SIZE)
        };
        let mut bytes = vec![0; whole];
        // Not all at once: some devices take an access of this size and no larger.
        let pieces = bytes[..readable].chunks_mut(usize::from(config::SIZE));
        for (n, piece) in pieces.enumerate() {
            let at = n as u64 * u64::from(config::SIZE);
            transport.region_read(region_index::CONFIG, at, piece)?;
        }
        let mut seen =
            Seen { ids: ids(&bytes), layout: PciLayout::default(), bytes, readable };
        if seen.ids.vendor == 0xffff {
            return Err(Unfit::NotThere);
        }
        let header = seen.u8(config::HEADER_TYPE) & 0x7f;
        if header != 0 {
            return Err(Unfit::Header(header));
        }
        seen.layout.bars = seen.find_bars(transport)?;
        seen.layout.capabilities = seen.find_capabilities()?;
        seen.layout.extended = seen.find_extended()?;
        let vectors = |index| vectors_of(transport, index);
        seen.layout.intx =
            seen.u8(config::INTERRUPT_PIN) != 0 && vectors(irq_index::INTX)? != 0;
        seen.layout.msi = match seen.capability(CapabilityId::MSI) {
            Some(at) => seen.msi(at, vectors(irq_index::MSI)?),
            None => None,
        };
        seen.layout.msix = match seen.capability(CapabilityId::MSIX) {
            Some(at) => Some(seen.msix(at, vectors(irq_index::MSIX)?)?),
            None => None,
        };
        Ok(seen)
    }

    /// Where a capability lies.
    pub(super) fn capability(&self, id: CapabilityId) -> Option<u16> {
        capability_of(&self.layout, id)
    }

    fn find_bars(&self, transport: &dyn Transport) -> Result<Vec<PciBar>, Unfit> {
        let mut bars = Vec::new();
        let mut number = 0;
        while number < config::BARS {
            let size = size_of_region(transport, u32::from(number))?;
            let register = self.u32(config::BAR0 + 4 * number);
            let io = register & config::BAR_IO != 0;
            let bits = if io { register & 1 } else { register & 0xf };
            let bar = PciBar { number: number as u8, kind: BarKind(bits as u8), size };
            number += 1;
            if size == 0 {
                continue;
            }
            let last = bar.kind.is_wide() && number == config::BARS;
            let most = if bar.kind.is_wide() { 1 << 63 } else { 1 << 31 };
            if last || size > most {
                return Err(Unfit::Size { bar });
            }
            // A server may have a region of any size; what is decoded is a power of two.
            let least: u64 = if io { 4 } else { 16 };
            let bar = PciBar { size: size.max(least).next_power_of_two(), ..bar };
            number += u16::from(bar.kind.is_wide());
            bars.push(bar);
        }
        let size = size_of_region(transport, region_index::ROM)?;
        if size != 0 {
            let bar = PciBar { number: PciBar::ROM, kind: BarKind(0), size };
            if size > 1 << 31 {
                return Err(Unfit::Size { bar });
            }
            bars.push(PciBar { size: size.max(1 << 11).next_power_of_two(), ..bar });
        }
        Ok(bars)
    }

    fn find_capabilities(&self) -> Result<Vec<PciCapability>, Unfit> {
        let mut found = Vec::new();
        let status = config::Status::from_bits_retain(self.u16(config::STATUS));
        if !status.contains(config::Status::CAPABILITY_LIST) {
            return Ok(found);
        }
        let mut at = self.u8(config::CAPABILITY_LIST) & !3;
        while at != 0 {
            let start = u16::from(at);
            if start < config::HEADER_END || found.len() == MOST_CAPABILITIES {
                return Err(Unfit::Capabilities(start));
            }
            let id = self.u8(start + capability::ID);
            if start + self.reach(CapabilityId(id), start) > config::SIZE {
                return Err(Unfit::Capabilities(start));
            }
            found.push(PciCapability { id, at });
            at = self.u8(start + capability::NEXT) & !3;
        }
        Ok(found)
    }

    fn find_extended(&self) -> Result<Vec<PciExtended>, Unfit> {
        let mut found = Vec::new();
        if self.bytes.len() <= usize::from(extended::FIRST) {
            return Ok(found);
        }
        let mut at = extended::FIRST;
        while at != 0 {
            let head = self.u32(at);
            if found.is_empty() && matches!(head, 0 | u32::MAX) {
                return Ok(found);
            }
            let id = head as u16;
            let version =
                head >> extended::HEAD_VERSION_SHIFT & extended::HEAD_VERSION_MASK;
            let end = usize::from(at) + usize::from(reach_of_extended(ExtendedId(id)));
            let next = (head >> extended::HEAD_NEXT_SHIFT) as u16 & !3;
            let backwards = next != 0 && next < extended::FIRST;
            if found.len() == MOST_EXTENDED || end > self.bytes.len() || backwards {
                return Err(Unfit::Capabilities(at));
            }
            // The head of the list may be an empty entry that only leads to the others.
            if id != 0 {
                found.push(PciExtended { id, version: version as u8, at });
            } else if at != extended::FIRST {
                return Err(Unfit::Capabilities(at));
            }
            if next == extended::FIRST {
                return Err(Unfit::Capabilities(at));
            }
            at = next;
        }
        Ok(found)
    }

    /// How many bytes of a capability are read or written at most.
    fn reach(&self, id: CapabilityId, start: u16) -> u16 {
        match id {
            CapabilityId::POWER_MANAGEMENT => pm::CONTROL + 2,
            CapabilityId::MSI => {
                let control = self.u16(start + msi::CONTROL);
                let kind = MsiLayout {
                    vectors: 0,
                    wide: control & msi::CONTROL_64_BIT != 0,
                    maskable: control & msi::CONTROL_MASKABLE != 0,
                };
                msi_size(&kind)
            }
            CapabilityId::MSIX => msix::SIZE,
            CapabilityId::PCI_EXPRESS => {
                // Version 2 has registers that version 1 leaves to somebody else.
                if self.pcie_version(start) < 2 {
                    pcie::DEVICE_STATUS + 2
                } else {
                    pcie::DEVICE_CONTROL_2 + 2
                }
            }
            CapabilityId::ADVANCED_FEATURES => capability::advanced_features::CONTROL + 1,
            _ => 2,
        }
    }

    fn pcie_version(&self, at: u16) -> u16 {
        self.u16(at + pcie::FLAGS) & 0xf
    }

    /// Whether there is a second control register of PCI Express at `at`.
    pub(super) fn has_pcie_control_2(&self, at: u16) -> bool {
        self.pcie_version(at) >= 2
    }

    /// `None` where the host has no vector to serve it with.
    fn msi(&self, at: u16, served: u32) -> Option<MsiLayout> {
        let control = self.u16(at + msi::CONTROL);
        let capable = control >> msi::CONTROL_CAPABLE_SHIFT & msi::CONTROL_VECTORS_MASK;
        let vectors = (1 << capable.min(5)).min(served);
        (vectors != 0).then_some(MsiLayout {
            vectors,
            wide: control & msi::CONTROL_64_BIT != 0,
            maskable: control & msi::CONTROL_MASKABLE != 0,
        })
    }

    fn msix(&self, at: u16, served: u32) -> Result<MsixLayout, Unfit> {
        let size = self.u16(at + msix::CONTROL) & msix::CONTROL_TABLE_SIZE;
        let vectors = u32::from(size) + 1;
        let table = self.u32(at + msix::TABLE);
        let pending = self.u32(at + msix::PBA);
        let ends = [
            (table, u64::from(vectors) * u64::from(msix::ENTRY_SIZE)),
            (pending, u64::from(vectors.div_ceil(64)) * 8),
        ];
        for (place, length) in ends {
            let (bar, at) = (place & msix::BAR_MASK, place & !msix::BAR_MASK);
            let bar = self.layout.bars.iter().find(|one| u32::from(one.number) == bar);
            let fits = bar.is_some_and(|bar| {
                bar.number != PciBar::ROM && u64::from(at) + length <= bar.size
            });
            if !fits {
                return Err(Unfit::Msix { place });
            }
        }
        // The others would stay silent for ever.
        if served < vectors {
            return Err(Unfit::Vectors { shown: vectors, served });
        }
        Ok(MsixLayout { vectors, table, pending })
    }

    pub(super) fn u8(&self, at: u16) -> u8 {
        self.bytes.get(usize::from(at)).copied().unwrap_or(0)
    }

    pub(super) fn u16(&self, at: u16) -> u16 {
        u16::from_le_bytes([self.u8(at), self.u8(at.saturating_add(1))])
    }

    pub(super) fn u32(&self, at: u16) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at.saturating_add(2))) << 16
    }
}

/// Bytes of an MSI capability that hold registers; masks are followed by pending bits.
pub(super) fn msi_size(kind: &MsiLayout) -> u16 {
    if kind.maskable { msi_mask(kind) + 8 } else { msi_data(kind) + 2 }
}

/// Where the data of MSI lies in its capability.
pub(super) fn msi_data(kind: &MsiLayout) -> u16 {
    if kind.wide { msi::DATA_64 } else { msi::DATA_32 }
}

/// Where the masks lie: two bytes behind the data, which has a reserved neighbour (PCI
/// 3.0, 6.8.1).
pub(super) fn msi_mask(kind: &MsiLayout) -> u16 {
    msi_data(kind) + 4
}

/// Where a capability of a layout lies.
pub(super) fn capability_of(layout: &PciLayout, id: CapabilityId) -> Option<u16> {
    layout.capabilities.iter().find(|one| one.id == id.0).map(|one| u16::from(one.at))
}

/// How many bytes of an extended capability are read or written at most.
fn reach_of_extended(id: ExtendedId) -> u16 {
    match id {
        ExtendedId::ERROR_REPORTING => aer::CONTROL + 4,
        ExtendedId::ACCESS_CONTROL => acs::CONTROL + 2,
        ExtendedId::ADDRESS_TRANSLATION => ats::CONTROL + 2,
        ExtendedId::PROCESSING_HINTS => tph::CONTROL + 4,
        ExtendedId::LATENCY_TOLERANCE => ltr::MAX_NO_SNOOP + 2,
        ExtendedId::PROCESS_ADDRESS_SPACES => pasid::CONTROL + 2,
        _ => extended::HEAD_SIZE,
    }
}

fn ids(bytes: &[u8]) -> PciIds {
    let u8_at = |at: u16| bytes[usize::from(at)];
    let u16_at = |at: u16| u16::from_le_bytes([u8_at(at), u8_at(at + 1)]);
    PciIds {
        vendor: u16_at(config::VENDOR_ID),
        device: u16_at(config::DEVICE_ID),
        subsystem_vendor: u16_at(config::SUBSYSTEM_VENDOR_ID),
        subsystem: u16_at(config::SUBSYSTEM_ID),
        class: u32::from(u8_at(config::CLASS)) << 16
            | u32::from(u8_at(config::SUBCLASS)) << 8
            | u32::from(u8_at(config::PROG_IF)),
        revision: u8_at(config::REVISION_ID),
    }
}

/// Whether a device may say so of an index that it does not have. EIO is what an error
/// without a number comes to, as some servers answer.
fn is_no_such(error: &TransportError) -> bool {
    matches!(error.errno(), Some(Errno::EINVAL | Errno::EIO))
}

/// Bytes of a region; 0 for one that is not there.
fn size_of_region(transport: &dyn Transport, index: u32) -> Result<u64, Unfit> {
    match transport.region_info(index) {
        Ok(info) => Ok(info.size),
        Err(error) if is_no_such(&error) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// Vectors of an interrupt index; 0 for one that is not there.
fn vectors_of(transport: &dyn Transport, index: u32) -> Result<u32, Unfit> {
    match transport.irq_info(index) {
        Ok(info) => Ok(info.count),
        Err(error) if is_no_such(&error) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// Why a device is not opened.
pub(crate) fn broken(transport: &dyn Transport, unfit: Unfit) -> ProbeError {
    match unfit {
        Unfit::Transport(source) => failed(transport, "how it is laid out")(source),
        other => ProbeError::Broken {
            device: transport.name().to_owned(),
            what: other.to_string(),
        },
    }
}
