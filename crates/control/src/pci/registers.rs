//! Which registers are saved of a config space, and in what order they are put back.
//!
//! The rule: a register is carried when a guest may write it, when what it holds is the
//! guest's choice alone, and when writing it does nothing but set it. So these are not:
//!
//! - status registers, whose bits are cleared by writing one;
//! - bits that do something once: function-level reset of PCI Express and of the
//!   advanced features, the reset of page requests, the power state's wake-up bit;
//! - data of MSI beyond 16 bits, which a guest is not shown either;
//! - what is the link's or the host's: link control, slot and root control, the size of
//!   resizable BARs, virtual functions;
//! - everything of vendor specific and unknown capabilities: what writing there does
//!   nobody here knows, and what they hold is the device's own data to carry.
//!
//! Of the extended space that leaves the masks, severities and checksums of advanced
//! error reporting, access control, address translation, process address spaces, hints
//! and the tolerated latencies.

use abi::pci::capability::{CapabilityId, msi, msix, pcie, pm};
use abi::pci::config;
use abi::pci::extended::{ExtendedId, acs, aer, ats, ltr, pasid, tph};
use port::{PciBar, PciExtended, PciLayout};

use super::seen::{capability_of, msi_data, msi_mask};
use super::shadow::{COMMAND, register_of};

/// A register that is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Register {
    /// Where it lies in config space.
    pub(super) at: u16,
    /// Its width in bytes: 1, 2 or 4. An access has it, so that no neighbour is touched.
    pub(super) width: u8,
    /// The bits that are carried; the others are written as zero.
    pub(super) mask: u32,
    /// When it is put back.
    pub(super) step: Step,
}

/// When a register is put back: in this order, each while the ones after it are off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// Where something is decoded.
    Address,
    /// A value without consequences.
    Value,
    /// What a message says.
    Message,
    /// Messages are on.
    MessageControl,
    /// Decoding and bus mastering.
    Command,
    /// The power state, in a stage of its own.
    Power,
}

/// All registers that are carried of a function, ascending.
pub(super) fn carried(layout: &PciLayout, pcie_control_2: bool) -> Vec<Register> {
    let mut all = vec![
        Register {
            at: config::COMMAND,
            width: 2,
            mask: COMMAND.into(),
            step: Step::Command,
        },
        value(config::CACHE_LINE_SIZE, 1, 0xff),
        value(config::LATENCY_TIMER, 1, 0xff),
        value(config::INTERRUPT_LINE, 1, 0xff),
    ];
    for bar in &layout.bars {
        let at = register_of(bar.number);
        // The other bits say what kind it is; of the ROM, one says whether it decodes.
        let mask = match bar.number {
            PciBar::ROM => config::ROM_ADDRESS_MASK | config::ROM_ENABLE,
            _ if bar.kind.is_io() => config::BAR_IO_MASK,
            _ => config::BAR_MEMORY_MASK,
        };
        all.push(Register { at, width: 4, mask, step: Step::Address });
        if bar.kind.is_wide() {
            let upper =
                Register { at: at + 4, width: 4, mask: u32::MAX, step: Step::Address };
            all.push(upper);
        }
    }
    for one in &layout.capabilities {
        let (id, at) = (CapabilityId(one.id), u16::from(one.at));
        // What is known of an id is known of the first: a second one may have less room.
        if capability_of(layout, id) != Some(at) {
            continue;
        }
        capability(id, at, layout, &mut all);
        if pcie_control_2 && id == CapabilityId::PCI_EXPRESS {
            all.push(value(at + pcie::DEVICE_CONTROL_2, 2, 0xffff));
        }
    }
    for one in &layout.extended {
        extended(one, &mut all);
    }
    all.sort_by_key(|one| one.at);
    // A list may name the same place twice.
    all.dedup_by_key(|one| one.at);
    all
}

fn capability(id: CapabilityId, at: u16, layout: &PciLayout, all: &mut Vec<Register>) {
    match id {
        CapabilityId::POWER_MANAGEMENT => {
            let mask = u32::from(pm::CONTROL_STATE_MASK | pm::CONTROL_PME_ENABLE);
            all.push(Register {
                at: at + pm::CONTROL,
                width: 2,
                mask,
                step: Step::Power,
            });
        }
        CapabilityId::PCI_EXPRESS => {
            let mask = u32::from(!pcie::DEVICE_CONTROL_FLR);
            all.push(value(at + pcie::DEVICE_CONTROL, 2, mask));
        }
        CapabilityId::MSI => {
            let Some(kind) = layout.msi else { return };
            let in_use = msi::CONTROL_VECTORS_MASK << msi::CONTROL_IN_USE_SHIFT;
            let mask = u32::from(msi::CONTROL_ENABLE | in_use);
            let control = at + msi::CONTROL;
            all.push(Register {
                at: control,
                width: 2,
                mask,
                step: Step::MessageControl,
            });
            let mut message = |at, width, mask| {
                all.push(Register { at, width, mask, step: Step::Message });
            };
            message(at + msi::ADDRESS_LOW, 4, !3);
            if kind.wide {
                message(at + msi::ADDRESS_HIGH, 4, u32::MAX);
            }
            message(at + msi_data(&kind), 2, 0xffff);
            if kind.maskable {
                message(at + msi_mask(&kind), 4, u32::MAX);
            }
        }
        CapabilityId::MSIX => {
            let mask = u32::from(msix::CONTROL_ENABLE | msix::CONTROL_MASK_ALL);
            let at = at + msix::CONTROL;
            all.push(Register { at, width: 2, mask, step: Step::MessageControl });
        }
        _ => {}
    }
}

fn extended(one: &PciExtended, all: &mut Vec<Register>) {
    let at = one.at;
    match ExtendedId(one.id) {
        ExtendedId::ERROR_REPORTING => {
            let checksums = aer::CONTROL_ECRC_MAKE | aer::CONTROL_ECRC_CHECK;
            all.extend([
                value(at + aer::UNCORRECTABLE_MASK, 4, u32::MAX),
                value(at + aer::UNCORRECTABLE_SEVERITY, 4, u32::MAX),
                value(at + aer::CORRECTABLE_MASK, 4, u32::MAX),
                value(at + aer::CONTROL, 4, checksums),
            ]);
        }
        ExtendedId::ACCESS_CONTROL => {
            all.push(value(at + acs::CONTROL, 2, acs::CONTROL_MASK.into()));
        }
        ExtendedId::ADDRESS_TRANSLATION => {
            all.push(value(at + ats::CONTROL, 2, ats::CONTROL_MASK.into()));
        }
        ExtendedId::PROCESSING_HINTS => {
            all.push(value(at + tph::CONTROL, 4, tph::CONTROL_MASK));
        }
        ExtendedId::LATENCY_TOLERANCE => all.extend([
            value(at + ltr::MAX_SNOOP, 2, ltr::LATENCY_MASK.into()),
            value(at + ltr::MAX_NO_SNOOP, 2, ltr::LATENCY_MASK.into()),
        ]),
        ExtendedId::PROCESS_ADDRESS_SPACES => {
            all.push(value(at + pasid::CONTROL, 2, pasid::CONTROL_MASK.into()));
        }
        _ => {}
    }
}

fn value(at: u16, width: u8, mask: u32) -> Register {
    Register { at, width, mask, step: Step::Value }
}
