//! `vfio-migrate probe`: who a device is, and what a migration will do with it.

use std::fmt::Write;

use ::states::v2::{Capabilities, State};
use abi::feature::{Feature, FeatureFlags};
use abi::irq::IrqInfoFlags;
use abi::pci::capability::CapabilityId;
use abi::pci::extended::ExtendedId;
use abi::pci::{irq_index, region_index};
use abi::region::RegionFlags;
use anyhow::{Result, anyhow};
use control::{DmaLog, IrqInfo, RegionInfo, Withheld};
use device::Digest;
use dirty::{IovaRange, PageSize};
use host::{About, Way};
use port::{Bus, Device, DirtySource, Identity, PciBar, PciLayout};
use serde_json::{Map, Value, json};

use crate::args::Probe;
use crate::devices::Reached;
use crate::exit::{Exit, Found, status};
use crate::output;
use crate::report::{self, IdentitySummary};
use crate::units::Size;

/// More regions and interrupts than any device has are not asked for one by one.
const MOST: u32 = 64;

/// Asks, and says.
pub(super) fn run(probe: &Probe, json: bool) -> Result<Exit> {
    let device = &probe.device;
    let reached = device.reach(device.to_string())?;
    let kernel = KernelSide::ask(&reached)?;
    let found = match (Findings::ask(&reached, probe.digest), kernel) {
        (Ok(found), kernel) => Findings { kernel, ..found },
        (Err(error), kernel) => {
            // What it is, though it cannot migrate.
            if let (Some(kernel), false) = (kernel, json) {
                output::line(&format!("{device}\n{}", kernel.text()))?;
            }
            return Err(error.context(format!("{device} cannot be probed")));
        }
    };
    if json {
        output::json(&found.to_json())?;
    } else {
        output::line(&found.text(&device.to_string()))?;
    }
    Ok(status(Found::Done))
}

/// Everything that was found out.
struct Findings {
    identity: Identity,
    state: State,
    stop_copy_bytes: Option<u64>,
    longest_transaction: Option<u64>,
    validated_at_start: bool,
    dma_log: Option<String>,
    regions: Vec<RegionInfo>,
    irqs: Vec<(u32, IrqInfo)>,
    /// What it offers and is not used, with the reason.
    withheld: Vec<Withheld>,
    /// Where it was asked for, and the device has one.
    digest: Option<Digest>,
    /// Of a device of the kernel's.
    kernel: Option<KernelSide>,
}

/// What the system says of a device that the kernel has, and what its driver offers.
struct KernelSide {
    about: About,
    features: Vec<(Feature, FeatureFlags)>,
    /// Why the log that it offers is of no use.
    silent_log: Option<String>,
}

/// What the log of a device is tried out on.
const TRIED: u64 = 1 << 20;

impl KernelSide {
    fn ask(reached: &Reached) -> Result<Option<KernelSide>> {
        let Reached::Kernel(host) = reached else { return Ok(None) };
        let about = host.about().clone();
        let mut features = Vec::new();
        for feature in Feature::NAMED {
            if *feature >= Feature::VFIO_MIGRATE_PRECOPY_INFO {
                continue;
            }
            if let Some(operations) = host.feature_operations(*feature)? {
                features.push((*feature, operations));
            }
        }
        // Kernels without iommufd offer a log that no report comes from. It is tried
        // where nobody else can have it running.
        let mut silent_log = None;
        if about.way.is_some()
            && let Some(mut log) = DmaLog::open(reached.transport())?
        {
            let range = IovaRange::new(0, TRIED)?;
            let tried = log.start(&[range], PageSize::FOUR_K).and_then(|()| log.stop());
            silent_log = tried.err().map(|error| format!("{:#}", anyhow!(error)));
        }
        Ok(Some(KernelSide { about, features, silent_log }))
    }

    fn text(&self) -> String {
        let About { driver, group, way, mediated, kernel, .. } = &self.about;
        let unknown = || "not known".to_owned();
        let mut lines = vec![
            format!(
                "  driver   {}{}",
                driver.clone().unwrap_or_else(unknown),
                if *mediated { ", which makes the device up (mdev)" } else { "" }
            ),
            format!("  group    {}", group.clone().unwrap_or_else(unknown)),
            match way {
                Some(Way::Group) => "  opened   by its group".to_owned(),
                Some(Way::Cdev) => "  opened   by cdev and iommufd".to_owned(),
                None => "  opened   by whoever handed it in".to_owned(),
            },
            format!("  kernel   {}", kernel.clone().unwrap_or_else(unknown)),
            "  features".to_owned(),
        ];
        for (feature, operations) in &self.features {
            let operations = verbs(*operations).join(", ");
            lines.push(format!("    {:<28} {operations}", feature.to_string()));
        }
        if self.features.is_empty() {
            lines.push("    none".to_owned());
        }
        lines.join("\n")
    }

    fn to_json(&self) -> Value {
        let features: Vec<Value> = self
            .features
            .iter()
            .map(|(feature, operations)| {
                json!({
                    "feature": feature.0,
                    "name": feature.name(),
                    "operations": verbs(*operations),
                })
            })
            .collect();
        json!({
            "driver": self.about.driver,
            "group": self.about.group,
            "cdev": self.about.cdev,
            "mediated": self.about.mediated,
            "opened_by": self.about.way.map(|way| way.to_string()),
            "release": self.about.kernel,
            "features": features,
        })
    }
}

/// The operations of a feature, in words.
fn verbs(operations: FeatureFlags) -> Vec<&'static str> {
    let words = [(FeatureFlags::GET, "get"), (FeatureFlags::SET, "set")];
    words.iter().filter(|(flag, _)| operations.contains(*flag)).map(|it| it.1).collect()
}

impl Findings {
    fn ask(reached: &Reached, digest: bool) -> Result<Findings> {
        let transport = reached.transport();
        let mut device = reached.device()?;
        let info = transport.device_info()?;
        let mut regions = Vec::new();
        for index in 0..info.regions.min(MOST) {
            // An index without a region may be an error, or a region of size 0.
            match transport.region_info(index) {
                Ok(region) if region.size > 0 => regions.push(region),
                Err(error) if error.errno().is_none() => return Err(error.into()),
                Ok(_) | Err(_) => {}
            }
        }
        let mut irqs = Vec::new();
        for index in 0..info.irqs.min(MOST) {
            match transport.irq_info(index) {
                Ok(irq) if irq.count > 0 => irqs.push((index, irq)),
                Err(error) if error.errno().is_none() => return Err(error.into()),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(Findings {
            identity: device.identity().clone(),
            state: device.state()?,
            stop_copy_bytes: device.stop_copy_bytes()?,
            longest_transaction: device.longest_transaction(),
            validated_at_start: device.validated_at_start(),
            dma_log: device.own_log()?.map(|log| log.name().to_owned()),
            regions,
            irqs,
            withheld: device.withheld().to_vec(),
            digest: match reached {
                Reached::Server(client) if digest => client.digest()?,
                _ => None,
            },
            kernel: None,
        })
    }

    /// Whether it tells which memory it wrote.
    fn has_log(&self) -> bool {
        self.dma_log.is_some() && self.silent_log().is_none()
    }

    fn silent_log(&self) -> Option<&str> {
        self.kernel.as_ref()?.silent_log.as_deref()
    }

    fn to_json(&self) -> Value {
        let regions: Vec<Value> = self
            .regions
            .iter()
            .map(|region| {
                let areas: Vec<Value> = region
                    .areas
                    .iter()
                    .map(|(offset, size)| json!({ "offset": offset, "bytes": size }))
                    .collect();
                json!({
                    "index": region.index,
                    "name": self.region_name(region.index),
                    "bytes": region.size,
                    "access": access(region),
                    "mapped": areas,
                })
            })
            .collect();
        let irqs: Vec<Value> = self
            .irqs
            .iter()
            .map(|(index, irq)| {
                json!({
                    "index": index,
                    "name": self.irq_name(*index),
                    "vectors": irq.count,
                })
            })
            .collect();
        let mut found = json!({
            "identity": IdentitySummary::from(&self.identity),
            "state": self.state.name(),
            "states": words(self.identity.capabilities),
            "stop_copy_bytes": self.stop_copy_bytes,
            "longest_transaction": self.longest_transaction,
            "validated_at_start": self.validated_at_start,
            "dma_log": self.has_log(),
            "regions": regions,
            "irqs": irqs,
            "layout": self.identity.layout.as_ref().map(layout_to_json),
            "migration": { "will": self.will(), "will_not": self.will_not() },
        });
        if let Some(kernel) = &self.kernel {
            found["kernel"] = kernel.to_json();
        }
        if !self.withheld.is_empty() {
            let each = self.withheld.iter();
            let each = each.map(|it| json!({ "what": it.what, "why": it.why }));
            found["withheld"] = each.collect();
        }
        if let Some(digest) = &self.digest {
            let counters = digest.counters.iter();
            let counters: Map<String, Value> =
                counters.map(|(name, count)| (name.clone(), (*count).into())).collect();
            found["digest"] = json!({
                "crc32c": checksum(digest),
                "chunk_bytes": digest.chunk_bytes,
                "chunks": digest.chunks.len(),
                "counters": counters,
            });
        }
        found
    }

    fn text(&self, device: &str) -> String {
        let mut text = String::new();
        let mut line = |arguments: std::fmt::Arguments<'_>| {
            writeln!(text, "{arguments}").expect("writing to a String cannot fail");
        };
        let identity = IdentitySummary::from(&self.identity);
        line(format_args!("{device}: {}", report::identity(&identity)));
        if let Some(kernel) = &self.kernel {
            line(format_args!("{}", kernel.text()));
        }
        line(format_args!("  state    {}", self.state));
        let capabilities = self.identity.capabilities;
        line(format_args!("  can be   {}", words(capabilities).join(", ")));
        line(format_args!("  regions"));
        for region in &self.regions {
            let mapped: u64 = region.areas.iter().map(|(_, size)| size).sum();
            let mapped = match mapped {
                0 => "trapped".to_owned(),
                mapped => format!("{} mapped", Size::from_bytes(mapped)),
            };
            line(format_args!(
                "    {:<10} {:>10}  {:<10}  {mapped}",
                self.region_name(region.index),
                Size::from_bytes(region.size).to_string(),
                access(region),
            ));
        }
        line(format_args!("  interrupts"));
        for (index, irq) in &self.irqs {
            let flags = IrqInfoFlags::from_bits_retain(irq.flags);
            let level = flags.contains(IrqInfoFlags::AUTOMASKED);
            line(format_args!(
                "    {:<10} {:>10}{}",
                self.irq_name(*index),
                format!("{} vectors", irq.count),
                if level { "  masked when raised" } else { "" },
            ));
        }
        if let Some(layout) = &self.identity.layout {
            line(format_args!("  layout, the same on both hosts"));
            for what in layout_in_words(layout) {
                line(format_args!("    {what}"));
            }
        }
        line(format_args!("  a migration will"));
        for sentence in self.will() {
            line(format_args!("    - {sentence}"));
        }
        line(format_args!("  a migration will not"));
        for sentence in self.will_not() {
            line(format_args!("    - {sentence}"));
        }
        if let Some(digest) = &self.digest {
            line(format_args!("  digest   {}", checksum(digest)));
            for (name, count) in &digest.counters {
                line(format_args!("    {name:<18} {count}"));
            }
        }
        text
    }

    fn will(&self) -> Vec<String> {
        let capabilities = self.identity.capabilities;
        let mut will = Vec::new();
        if capabilities.pre_copy() {
            will.push("copy most of its data while it works (pre-copy)".to_owned());
        }
        match self.stop_copy_bytes {
            Some(bytes) => will.push(format!(
                "move about {} of its data while the guest is stopped, as things are now",
                Size::from_bytes(bytes)
            )),
            None => will.push(
                "stop the guest for a time that cannot be estimated: the device does not \
                 say how much data it has"
                    .to_owned(),
            ),
        }
        if let Some(longest) = self.longest_transaction {
            will.push(format!(
                "move its data in transactions of at most {}, each of which the other \
                 side must take in one",
                Size::from_bytes(longest)
            ));
        }
        if self.has_log() {
            will.push("ask it which guest memory it wrote".to_owned());
        } else {
            will.push(
                "send all memory that it can reach again while the guest is stopped: it \
                 does not tell what it wrote"
                    .to_owned(),
            );
        }
        if capabilities.p2p() {
            will.push(
                "keep it reachable for its peers until they have stopped too".to_owned(),
            );
        }
        match &self.identity.model {
            Some(model) => will.push(format!(
                "move it to any {} with data version {}, whatever its capabilities",
                model.name, model.data_version
            )),
            None => will.push(
                "move it only to a device with the same ids and capabilities: its model \
                 is not known"
                    .to_owned(),
            ),
        }
        will
    }

    fn will_not(&self) -> Vec<String> {
        let capabilities = self.identity.capabilities;
        let mut not = Vec::new();
        for Withheld { what, why } in &self.withheld {
            not.push(format!("use {what}, which it offers: {why}"));
        }
        if let Some(why) = self.silent_log() {
            not.push(format!("use the log of its writes, which it offers: {why}"));
        }
        if let Some(why) = self.kernel.as_ref().and_then(|it| it.about.forgets()) {
            not.push(format!("put anything into it to stay: {why}"));
        }
        if !capabilities.pre_copy() {
            not.push("move anything of it before the guest is stopped".to_owned());
        }
        if !capabilities.p2p() {
            not.push(
                "take it together with another device without P2P, unless the VMM \
                 declares that no device maps another's memory"
                    .to_owned(),
            );
        }
        if matches!(self.identity.bus, Bus::Pci(_)) {
            not.push(
                "find config space and interrupt routing in its data: they are the VMM's \
                 to carry"
                    .to_owned(),
            );
        }
        if self.validated_at_start {
            not.push(
                "hear before it runs here whether it can take what it was given, if it \
                 cannot stop after a load: that is known only then"
                    .to_owned(),
            );
        }
        if !matches!(self.state, State::Running) {
            not.push(format!(
                "start as long as it is in {}: it has to be in RUNNING",
                self.state
            ));
        }
        not
    }

    fn region_name(&self, index: u32) -> String {
        match (&self.identity.bus, index) {
            (Bus::Pci(_), 0..=5) => format!("BAR{index}"),
            (Bus::Pci(_), region_index::CONFIG) => "config".to_owned(),
            _ => format!("region {index}"),
        }
    }

    fn irq_name(&self, index: u32) -> String {
        match (&self.identity.bus, index) {
            (Bus::Pci(_), irq_index::INTX) => "INTx".to_owned(),
            (Bus::Pci(_), irq_index::MSI) => "MSI".to_owned(),
            (Bus::Pci(_), irq_index::MSIX) => "MSI-X".to_owned(),
            _ => format!("index {index}"),
        }
    }
}

/// What a guest sees of a PCI function, and the destination's must have likewise.
fn layout_in_words(layout: &PciLayout) -> Vec<String> {
    let PciLayout { bars, capabilities, extended, intx, msi, msix } = layout;
    let mut words: Vec<String> = bars.iter().map(ToString::to_string).collect();
    if !capabilities.is_empty() {
        let named = |one: &port::PciCapability| match CapabilityId(one.id).name() {
            Some(name) => format!("{} at {:#x}", name.replace('_', " "), one.at),
            None => format!("{:#x} at {:#x}", one.id, one.at),
        };
        let each = capabilities.iter().map(named);
        words.push(each.collect::<Vec<_>>().join(", "));
    }
    if !extended.is_empty() {
        let named = |one: &port::PciExtended| match ExtendedId(one.id).name() {
            Some(name) => format!("{} at {:#x}", name.replace('_', " "), one.at),
            None => format!("{:#x} at {:#x}", one.id, one.at),
        };
        let each = extended.iter().map(named);
        words.push(each.collect::<Vec<_>>().join(", "));
    }
    words.extend(intx.then(|| "a line (INTx)".to_owned()));
    words.extend(msi.map(|msi| msi.to_string()));
    words.extend(msix.map(|msix| msix.to_string()));
    words
}

fn layout_to_json(layout: &PciLayout) -> Value {
    let PciLayout { bars, capabilities, extended, intx, msi, msix } = layout;
    let bars = bars.iter().map(|bar| {
        json!({
            "bar": bar.number,
            "kind": if bar.number == PciBar::ROM { "ROM".to_owned() } else { bar.kind.to_string() },
            "bytes": bar.size,
        })
    });
    let capabilities = capabilities.iter().map(
        |one| json!({ "id": one.id, "name": CapabilityId(one.id).name(), "at": one.at }),
    );
    let extended = extended.iter().map(|one| {
        let name = ExtendedId(one.id).name();
        json!({ "id": one.id, "name": name, "version": one.version, "at": one.at })
    });
    json!({
        "bars": bars.collect::<Vec<_>>(),
        "capabilities": capabilities.collect::<Vec<_>>(),
        "extended_capabilities": extended.collect::<Vec<_>>(),
        "intx": intx,
        "msi": msi.map(|msi| json!({
            "vectors": msi.vectors,
            "wide": msi.wide,
            "masks": msi.maskable,
        })),
        "msix": msix.map(|msix| json!({
            "vectors": msix.vectors,
            "table": { "bar": msix.table & 7, "offset": msix.table & !7 },
            "pending": { "bar": msix.pending & 7, "offset": msix.pending & !7 },
        })),
    })
}

/// One number for all of a device's memory: the CRC32C of its chunks' CRC32Cs.
fn checksum(digest: &Digest) -> String {
    let sum = digest
        .chunks
        .iter()
        .fold(0, |sum, chunk| crc32c::crc32c_append(sum, &chunk.to_le_bytes()));
    format!("{sum:08x}")
}

fn access(region: &RegionInfo) -> &'static str {
    let flags = RegionFlags::from_bits_retain(region.flags);
    match (flags.contains(RegionFlags::READ), flags.contains(RegionFlags::WRITE)) {
        (true, true) => "read-write",
        (true, false) => "read",
        (false, true) => "write",
        (false, false) => "none",
    }
}

fn words(capabilities: Capabilities) -> Vec<&'static str> {
    let mut words = vec!["stopped and copied"];
    if capabilities.p2p() {
        words.push("quiesced while its peers still reach it (P2P)");
    }
    if capabilities.pre_copy() {
        words.push("read while it works (pre-copy)");
    }
    words
}
