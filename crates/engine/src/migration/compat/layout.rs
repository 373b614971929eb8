//! Where everything lies in a PCI function, compared: a driver that runs has looked once,
//! and writes where it found things.
//!
//! Only what a guest can see and use is compared, and only where both sides have told. The
//! order of a list of capabilities is of no meaning, since a driver looks for an id.

use abi::pci::capability::CapabilityId;
use abi::pci::extended::ExtendedId;
use port::{
    BarKind, MsiLayout, MsixLayout, PciBar, PciCapability, PciExtended, PciLayout,
};
use wire::message;

/// The most differences that are told of one function.
const MOST: usize = 16;

/// What travels of a layout; `None` for one that is too large to travel, which is then
/// compared only when what was saved is loaded.
pub(super) fn told(layout: &PciLayout) -> Option<message::PciLayout> {
    let PciLayout { bars, capabilities, extended, intx, msi, msix } = layout;
    let fits = bars.len() <= message::MAX_BARS
        && capabilities.len() <= message::MAX_CAPABILITIES
        && extended.len() <= message::MAX_EXTENDED;
    let bar = |bar: &PciBar| message::PciBar {
        number: bar.number,
        kind: bar.kind.0,
        size: bar.size,
    };
    let capability =
        |one: &PciCapability| message::PciCapability { id: one.id, at: one.at };
    let more = |one: &PciExtended| message::PciExtended {
        id: one.id,
        version: one.version,
        at: one.at,
    };
    fits.then(|| message::PciLayout {
        bars: bars.iter().map(bar).collect(),
        capabilities: capabilities.iter().map(capability).collect(),
        extended: extended.iter().map(more).collect(),
        intx: *intx,
        msi: msi.map(|MsiLayout { vectors, wide, maskable }| message::MsiLayout {
            vectors,
            wide,
            maskable,
        }),
        msix: msix.map(|MsixLayout { vectors, table, pending }| message::MsixLayout {
            vectors,
            table,
            pending,
        }),
    })
}

/// What a layout that travelled says.
pub(super) fn heard(layout: &message::PciLayout) -> PciLayout {
    let message::PciLayout { bars, capabilities, extended, intx, msi, msix } = layout;
    let bar = |bar: &message::PciBar| PciBar {
        number: bar.number,
        kind: BarKind(bar.kind),
        size: bar.size,
    };
    let capability =
        |one: &message::PciCapability| PciCapability { id: one.id, at: one.at };
    let more = |one: &message::PciExtended| PciExtended {
        id: one.id,
        version: one.version,
        at: one.at,
    };
    PciLayout {
        bars: bars.iter().map(bar).collect(),
        capabilities: capabilities.iter().map(capability).collect(),
        extended: extended.iter().map(more).collect(),
        intx: *intx,
        msi: msi.map(|message::MsiLayout { vectors, wide, maskable }| MsiLayout {
            vectors,
            wide,
            maskable,
        }),
        msix: msix.map(|message::MsixLayout { vectors, table, pending }| MsixLayout {
            vectors,
            table,
            pending,
        }),
    }
}

/// Each difference of two layouts, of a device that is `there` and one that is here.
pub(super) fn differences(
    slot: &str,
    theirs: &PciLayout,
    ours: &PciLayout,
    there: &str,
) -> Vec<String> {
    let mut found = Vec::new();
    let missing = || "not there".to_owned();
    let differ = |what: String, a: Option<String>, b: Option<String>| {
        let (a, b) = (a.unwrap_or_else(missing), b.unwrap_or_else(missing));
        format!("{what} of device {slot} is {a} {there} and {b} here")
    };
    for number in 0..=PciBar::ROM {
        let of = |layout: &PciLayout| {
            layout.bars.iter().find(|bar| bar.number == number).copied()
        };
        let show = |bar: PciBar| match bar.number {
            PciBar::ROM => format!("of {} bytes", bar.size),
            _ => format!("{} of {} bytes", bar.kind, bar.size),
        };
        let (a, b) = (of(theirs), of(ours));
        if a != b {
            let what = match number {
                PciBar::ROM => "the ROM".to_owned(),
                number => format!("BAR {number}"),
            };
            found.push(differ(what, a.map(show), b.map(show)));
        }
    }
    let show = |one: &PciCapability| {
        let id = called(CapabilityId(one.id).name(), one.id.into());
        format!("the capability {id} at {:#x}", one.at)
    };
    found.extend(only(&theirs.capabilities, &ours.capabilities, slot, there, show));
    let show = |one: &PciExtended| {
        let PciExtended { id, version, at } = *one;
        let id = called(ExtendedId(id).name(), id);
        format!("the extended capability {id}, version {version}, at {at:#x}")
    };
    found.extend(only(&theirs.extended, &ours.extended, slot, there, show));
    let line = |layout: &PciLayout| layout.intx.then(|| "there".to_owned());
    if theirs.intx != ours.intx {
        found.push(differ("the line (INTx)".to_owned(), line(theirs), line(ours)));
    }
    // Where the capability itself is missing, that was said.
    let has = |layout: &PciLayout, id: CapabilityId| {
        layout.capabilities.iter().any(|one| one.id == id.0)
    };
    let both = |id| has(theirs, id) && has(ours, id);
    if theirs.msi != ours.msi && both(CapabilityId::MSI) {
        let show = |msi: MsiLayout| msi.to_string();
        found.push(differ("MSI".to_owned(), theirs.msi.map(show), ours.msi.map(show)));
    }
    if theirs.msix != ours.msix && both(CapabilityId::MSIX) {
        let show = |msix: MsixLayout| msix.to_string();
        let (a, b) = (theirs.msix.map(show), ours.msix.map(show));
        found.push(differ("MSI-X".to_owned(), a, b));
    }
    if found.len() > MOST {
        let more = found.len() - MOST;
        found.truncate(MOST);
        found.push(format!("device {slot} differs in {more} more places"));
    }
    found
}

fn called(name: Option<&str>, id: u16) -> String {
    name.map_or_else(|| format!("{id:#x}"), |name| name.replace('_', " "))
}

/// What only one side has, whatever the order.
fn only<T: PartialEq>(
    theirs: &[T],
    ours: &[T],
    slot: &str,
    there: &str,
    show: impl Fn(&T) -> String,
) -> Vec<String> {
    let gone = theirs
        .iter()
        .filter(|one| !ours.contains(one))
        .map(|one| format!("device {slot} has {} {there} and not here", show(one)));
    let new = ours
        .iter()
        .filter(|one| !theirs.contains(one))
        .map(|one| format!("device {slot} has {} here and not {there}", show(one)));
    gone.chain(new).collect()
}

/// A layout in a few words.
pub(super) fn summary(layout: &PciLayout) -> String {
    let bars = layout.bars.iter().map(|bar| match bar.number {
        PciBar::ROM => format!("ROM {}", bar.size),
        number => format!("BAR {number} {}", bar.size),
    });
    let capabilities =
        layout.capabilities.iter().map(|one| format!("{:02x}@{:02x}", one.id, one.at));
    let extended =
        layout.extended.iter().map(|one| format!("{:04x}@{:03x}", one.id, one.at));
    let line = layout.intx.then(|| "INTx".to_owned());
    let msi = layout.msi.map(|msi| format!("MSI {}", msi.vectors));
    let msix = layout.msix.map(|msix| format!("MSI-X {}", msix.vectors));
    let all = bars.chain(capabilities).chain(extended);
    all.chain(line).chain(msi).chain(msix).collect::<Vec<_>>().join(" ")
}
