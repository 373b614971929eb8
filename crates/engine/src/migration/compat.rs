//! Whether what one side has fits what the other side has, told before anything stops.
//!
//! A migration and a restore compare with what is here. Whoever wants to know it
//! beforehand makes a [`Side`] of each device, and asks [`differences`]: the same
//! comparison, so that it never promises what a migration refuses.

use port::{Bus, DecisionStore, Device, GuestMemory, Identity, Section, StoreId};
use states::v2::Capabilities;
use wire::message::{
    self, AcceptedDevice, DeviceIdentity, Hello, MAX_DEVICES, MAX_NAME_BYTES,
    MAX_REGIONS, MAX_SECTIONS, MAX_TEXT_BYTES, Refusal, RefusalCode, RunState,
};
use wire::preamble::{Architecture, ByteOrder, PageSize, Preamble};
use wire::section::{SectionInfo, SectionOrder};
use wire::tlv::plain_text;

mod layout;
mod side;

pub use side::{Field, Side, differences, not_compared};

use super::error::Cause;
use super::options::Options;
use crate::machine::Machine;

/// The page size that a guest's memory is counted in: the smallest of its regions'.
///
/// # Errors
/// When it is one that the stream does not have.
pub fn page_size(memory: &dyn GuestMemory) -> Result<PageSize, Cause> {
    let smallest = memory.regions().iter().map(|region| region.page.bytes()).min();
    let bytes = smallest.unwrap_or(4096);
    u32::try_from(bytes).ok().and_then(PageSize::new).ok_or_else(|| {
        Cause::Refused(vec![format!(
            "guest memory has pages of {bytes} bytes, and the stream counts in pages of \
             4 KiB to 1 MiB: track its writes by smaller pages"
        )])
    })
}

/// The program, for the people who read a stream.
pub(crate) const SOFTWARE: &str = concat!("vfio-migrate ", env!("CARGO_PKG_VERSION"));

/// What the source says of itself.
pub(crate) fn hello(machine: &Machine, options: &Options, store: StoreId) -> Hello {
    let paused = machine.vcpus.paused();
    Hello {
        software: SOFTWARE.to_owned(),
        store: message::StoreId(store.0),
        source_uri: options.source_uri.clone(),
        data_channels: options.channels.max(1),
        run_state: if paused { RunState::Paused } else { RunState::Running },
        memory: memory(&*machine.memory),
        devices: machine.devices.iter().map(|slot| identity(&*slot.device)).collect(),
        sections: sections(&machine.sections),
        expected_bytes: None,
    }
}

/// What a machine has more of than a stream has room for.
pub(crate) fn too_many(machine: &Machine) -> impl Iterator<Item = String> {
    let counts = [
        ("devices", machine.devices.len(), MAX_DEVICES),
        ("regions of guest memory", machine.memory.regions().len(), MAX_REGIONS),
        ("sections of the VMM's own", machine.sections.len(), MAX_SECTIONS),
    ];
    let too_many = counts.into_iter().filter(|(_, count, most)| count > most);
    too_many.map(|(what, count, most)| {
        format!("the machine has {count} {what}, and a stream has at most {most}")
    })
}

fn memory(memory: &dyn GuestMemory) -> Vec<message::MemoryRegion> {
    let one = |region: &port::MemoryRegion| message::MemoryRegion {
        gpa: region.start.0,
        length: region.length,
        page_size: region.page.bytes(),
    };
    memory.regions().iter().map(one).collect()
}

fn sections(sections: &[Box<dyn Section>]) -> Vec<SectionInfo> {
    sections.iter().enumerate().map(|(n, one)| section(n, &**one)).collect()
}

/// A section as the stream tells of it.
pub(crate) fn section(place: usize, section: &dyn Section) -> SectionInfo {
    SectionInfo {
        section: u32::try_from(place).unwrap_or(u32::MAX),
        name: section.name().to_owned(),
        version: section.version(),
        order: match section.order() {
            port::Order::BeforeDevices => SectionOrder::BeforeDevices,
            port::Order::AfterDevices => SectionOrder::AfterDevices,
        },
    }
}

/// A device as the stream tells of it.
pub(crate) fn identity(device: &dyn Device) -> DeviceIdentity {
    let Identity { bus, generation, capabilities, model, layout } = device.identity();
    DeviceIdentity {
        slot: plain_text(device.name(), MAX_NAME_BYTES),
        bus: match bus {
            Bus::Pci(_) => message::Bus::PCI,
            Bus::Other(name) => match name.as_str() {
                "ccw" => message::Bus::CCW,
                "ap" => message::Bus::AP,
                _ => message::Bus::PLATFORM,
            },
        },
        pci: match bus {
            Bus::Pci(ids) => Some(message::PciIds {
                vendor: ids.vendor,
                device: ids.device,
                subsystem_vendor: ids.subsystem_vendor,
                subsystem: ids.subsystem,
                class: ids.class,
                revision: ids.revision,
            }),
            Bus::Other(_) => None,
        },
        generation: message::Generation(generation.0),
        capabilities: capabilities.flags(),
        model: model.as_ref().map(|model| message::Model {
            name: plain_text(&model.name, MAX_NAME_BYTES),
            data_version: model.data_version,
        }),
        stop_copy_bytes: None,
        layout: layout.as_ref().and_then(layout::told),
    }
}

/// A device's identity as a source offers it.
///
/// # Errors
/// When its capability set is one that nobody has defined.
pub(crate) fn offered(identity: &DeviceIdentity) -> Result<Identity, Refusal> {
    let capabilities =
        Capabilities::try_from_flags(identity.capabilities).map_err(|error| Refusal {
            code: RefusalCode::CAPABILITIES,
            text: text(&format!("device {}: {error}", identity.slot)),
        })?;
    Ok(Identity {
        bus: match identity.pci {
            Some(ids) => Bus::Pci(port::PciIds {
                vendor: ids.vendor,
                device: ids.device,
                subsystem_vendor: ids.subsystem_vendor,
                subsystem: ids.subsystem,
                class: ids.class,
                revision: ids.revision,
            }),
            None => Bus::Other(identity.bus.to_string()),
        },
        generation: port::Generation(identity.generation.0),
        capabilities,
        model: identity.model.as_ref().map(|model| port::Model {
            name: model.name.clone(),
            data_version: model.data_version,
        }),
        layout: identity.layout.as_ref().map(layout::heard),
    })
}

/// What does not fit of a source's preamble, on this host.
pub(crate) fn check_preamble(theirs: &Preamble) -> Vec<Refusal> {
    let mut reasons = Vec::new();
    host(theirs.architecture, theirs.byte_order, &mut |field, text| {
        reasons.push(Refusal { code: field.code(), text });
    });
    reasons
}

fn host(
    architecture: Architecture,
    byte_order: ByteOrder,
    differs: &mut impl FnMut(Field, String),
) {
    if architecture != Architecture::HOST {
        differs(
            Field::Architecture,
            format!(
                "the devices' data is of architecture {architecture}, this host is {}",
                Architecture::HOST
            ),
        );
    }
    if byte_order != ByteOrder::HOST {
        differs(
            Field::ByteOrder,
            format!(
                "the devices' data has byte order {byte_order}, this host has {}",
                ByteOrder::HOST
            ),
        );
    }
}

/// What does not fit of what a source brings, against what is here. Empty when all
/// does.
pub(crate) fn check(
    hello: &Hello,
    preamble: &Preamble,
    machine: &Machine,
) -> Vec<Refusal> {
    let mut reasons = Vec::new();
    let mut refuse =
        |code, what: String| reasons.push(Refusal { code, text: text(&what) });

    match page_size(&*machine.memory) {
        Ok(page) if page == preamble.page_size => {}
        Ok(page) => refuse(
            RefusalCode::PAGE_SIZE,
            format!(
                "the source counts memory in pages of {} bytes, this side in pages of {}",
                preamble.page_size.get(),
                page.get()
            ),
        ),
        Err(cause) => refuse(RefusalCode::PAGE_SIZE, cause.to_string()),
    }
    let here = memory(&*machine.memory);
    let span = |regions: &[message::MemoryRegion]| {
        let each = regions.iter().map(|r| format!("{:#x}+{:#x}", r.gpa, r.length));
        let total: u64 = regions.iter().fold(0, |sum, r| sum.saturating_add(r.length));
        format!("{total} bytes ({})", each.collect::<Vec<_>>().join(", "))
    };
    let same = |a: &message::MemoryRegion, b: &message::MemoryRegion| {
        (a.gpa, a.length) == (b.gpa, b.length)
    };
    if hello.memory.len() != here.len()
        || !hello.memory.iter().zip(&here).all(|(a, b)| same(a, b))
    {
        refuse(
            RefusalCode::MEMORY,
            format!(
                "guest memory is {} at the source and {} here: start this side with the \
                 same memory",
                span(&hello.memory),
                span(&here)
            ),
        );
    }
    check_devices(
        &hello.devices,
        machine.devices.iter().map(|slot| &*slot.device),
        "at the source",
        &mut refuse,
    );
    let here = sections(&machine.sections);
    for theirs in &hello.sections {
        let name = &theirs.name;
        match here.get(theirs.section as usize) {
            Some(ours) if ours.name == *name && ours.order == theirs.order => {
                if ours.version < theirs.version {
                    refuse(
                        RefusalCode::SECTION,
                        format!(
                            "section {name} has version {} at the source, and this side \
                             knows it up to {}",
                            theirs.version, ours.version
                        ),
                    );
                }
            }
            _ => refuse(
                RefusalCode::SECTION,
                format!("the source's section {name} is not in that place here"),
            ),
        }
    }
    if here.len() > hello.sections.len() {
        let missing = here.iter().skip(hello.sections.len()).map(|s| s.name.as_str());
        refuse(
            RefusalCode::SECTION,
            format!(
                "the source does not bring the sections {}",
                missing.collect::<Vec<_>>().join(", ")
            ),
        );
    }
    if let Err(refusal) = crate::devices::check_p2p(
        machine.devices.iter().map(|slot| slot.device.identity().capabilities),
        machine.dma.peer_to_peer(),
    ) {
        refuse(RefusalCode::PEER_TO_PEER, refusal.to_string());
    }
    if machine.dma.virtual_iommu() {
        refuse(RefusalCode::BLOCKED, "this side has a virtual IOMMU".to_owned());
    }
    reasons
}

/// What does not fit of the devices that are `there` (at a source, in a file), against
/// those that are here.
pub(crate) fn check_devices<'a>(
    theirs: &[DeviceIdentity],
    ours: impl ExactSizeIterator<Item = &'a dyn Device>,
    there: &str,
    refuse: &mut impl FnMut(RefusalCode, String),
) {
    if theirs.len() == ours.len() {
        let mut differs = |field: Field, text| refuse(field.code(), text);
        for (theirs, ours) in theirs.iter().zip(ours) {
            device(theirs, &identity(ours), there, &mut differs);
        }
    } else {
        refuse(
            RefusalCode::DEVICE_COUNT,
            format!(
                "there are {} devices {there} and {} here: give this side the same \
                 devices in the same order",
                theirs.len(),
                ours.len()
            ),
        );
    }
}

fn device(
    theirs: &DeviceIdentity,
    ours: &DeviceIdentity,
    there: &str,
    differs: &mut impl FnMut(Field, String),
) {
    let slot = &theirs.slot;
    if (theirs.bus, theirs.pci) != (ours.bus, ours.pci) {
        differs(
            Field::Ids,
            format!("device {slot} is {} {there} and {} here", ids(theirs), ids(ours)),
        );
    }
    if let (Some(a), Some(b)) = (&theirs.layout, &ours.layout)
        && left_out(theirs, ours, Field::Layout).is_none()
        && a != b
    {
        let (a, b) = (layout::heard(a), layout::heard(b));
        for what in layout::differences(slot, &a, &b, there) {
            differs(Field::Layout, what);
        }
    }
    let name = |identity: &DeviceIdentity| {
        identity.model.as_ref().map_or("unknown", |m| m.name.as_str()).to_owned()
    };
    let known = match (&theirs.model, &ours.model) {
        (Some(a), Some(b)) => {
            if a.name != b.name {
                differs(
                    Field::Model,
                    format!(
                        "device {slot} is a model {} {there} and a model {} here",
                        a.name, b.name
                    ),
                );
            } else if a.data_version != b.data_version {
                differs(
                    Field::DataVersion,
                    format!(
                        "device {slot} ({}) saves data of version {} {there}, and \
                         version {} is known here",
                        a.name, a.data_version, b.data_version
                    ),
                );
            }
            a == b
        }
        (None, None) => false,
        _ => {
            differs(
                Field::Model,
                format!(
                    "the model of device {slot} is {} {there} and {} here",
                    name(theirs),
                    name(ours)
                ),
            );
            false
        }
    };
    if !known && theirs.generation != ours.generation {
        differs(
            Field::Generation,
            format!(
                "device {slot} speaks generation {} {there} and {} here, and its \
                 model and data version are not known and equal on both sides",
                theirs.generation, ours.generation
            ),
        );
    }
    if !known && theirs.capabilities != ours.capabilities {
        differs(
            Field::Capabilities,
            format!(
                "device {slot} has capability set {} {there} and {} here, and its \
                 model and data version are not known and equal on both sides",
                theirs.capabilities, ours.capabilities
            ),
        );
    }
}

/// Why a field is not compared, where it is not: what the two have there then says nothing.
fn left_out(
    theirs: &DeviceIdentity,
    ours: &DeviceIdentity,
    field: Field,
) -> Option<&'static str> {
    match field {
        // With other ids nobody expects the rest to be the same.
        Field::Layout if (theirs.bus, theirs.pci) != (ours.bus, ours.pci) => {
            Some("the ids differ")
        }
        Field::Layout if theirs.layout.is_none() || ours.layout.is_none() => {
            Some("not known on both sides")
        }
        // Where only one of the two is known, that is a difference.
        Field::Model if theirs.model.is_none() && ours.model.is_none() => {
            Some("not known on either side")
        }
        Field::DataVersion => match (&theirs.model, &ours.model) {
            (Some(a), Some(b)) if a.name == b.name => None,
            (Some(_), Some(_)) => Some("the models differ"),
            _ => Some("the model is not known on both sides"),
        },
        _ => None,
    }
}

/// The bus and the ids of a device, as people read them.
fn ids(identity: &DeviceIdentity) -> String {
    match identity.pci {
        Some(ids) => format!(
            "{} {:04x}:{:04x} subsystem {:04x}:{:04x} class {:06x} revision {:02x}",
            identity.bus,
            ids.vendor,
            ids.device,
            ids.subsystem_vendor,
            ids.subsystem,
            ids.class,
            ids.revision
        ),
        None => identity.bus.to_string(),
    }
}

/// Devices that may give a longer transaction than the one that takes them in can hold:
/// such a device has to be given its data back as it gave it, transaction by transaction.
pub(crate) fn check_transactions(
    devices: &[DeviceIdentity],
    gives: &[Option<u64>],
    takes: &[AcceptedDevice],
) -> Vec<String> {
    let each = devices.iter().zip(gives).zip(takes);
    each.filter_map(|((device, gives), takes)| {
        too_long(&device.slot, *gives, takes.max_transaction)
    })
    .collect()
}

fn too_long(device: &str, gives: Option<u64>, takes: Option<u64>) -> Option<String> {
    let (gives, takes) = (gives?, takes?);
    (gives > takes).then(|| {
        format!(
            "device {device} gives its data in transactions of up to {gives} bytes, and \
             the destination's takes at most {takes}: give the destination a device \
             whose data section has at least {gives} bytes"
        )
    })
}

/// A reason as it may travel.
pub(crate) fn text(what: &str) -> String {
    plain_text(what, MAX_TEXT_BYTES)
}

/// A reason without a number of its own.
pub(crate) fn refusal(what: &str) -> Refusal {
    Refusal { code: RefusalCode::OTHER, text: text(what) }
}

/// The id of a store as it travels.
pub(crate) fn store_id(store: &dyn DecisionStore) -> message::StoreId {
    message::StoreId(store.id().0)
}
