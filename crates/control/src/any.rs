//! A device of whichever generation it is.

use std::sync::Arc;

use abi::errno::Errno;
use abi::rfc2018::{RFC_REGION_SUBTYPE, RFC_REGION_TYPE, RfcInfo};
use abi::v1::{V1_REGION_SUBTYPE, V1_REGION_TYPE, V1Info};
use port::{Device, DeviceError, DirtySource, Generation, Identity, Opened};
use states::mapping::CAPABILITIES;
use states::v2::State;

use crate::device::{V2Device, Withheld};
use crate::dma_log::DmaLog;
use crate::first::FirstThatStarts;
use crate::probe::{ProbeError, bus, failed, model, open, used};
use crate::region::MigrationRegion;
use crate::region::device::RegionDevice;
use crate::rfc2018::{DirtyQuery, Rfc2018, Rfc2018Device};
use crate::transport::{RegionInfo, Transport, TransportError};
use crate::v1::{V1, V1Device};

/// The most regions that are looked at.
const MOST_REGIONS: u32 = 256;

/// Opens a device for migration, whatever generation it is of: the migration feature
/// (v2), or else a region of type 3, subtype 1 (v1), or else one of type 2^30, subtype 1
/// (rfc2018).
///
/// # Errors
/// When the device has none of them, with the reason; when it has one that cannot be;
/// when it does not answer.
pub fn open_any(transport: Arc<dyn Transport>) -> Result<AnyDevice, ProbeError> {
    let refused = match open(Arc::clone(&transport)) {
        Ok(device) => return Ok(AnyDevice(Kind::V2(device))),
        Err(ProbeError::NotMigratable { errno, .. }) => errno,
        Err(error) => return Err(error),
    };
    let (v1, rfc2018) = migration_regions(&*transport)?;
    if let Some(region) = v1 {
        let (identity, withheld) = identity(&*transport, Generation::V1)?;
        let region = MigrationRegion::new(transport, &region, V1Info::SIZE)?;
        let device = RegionDevice::new(region, V1::new(), identity, withheld);
        return Ok(AnyDevice(Kind::V1(device)));
    }
    if let Some(region) = rfc2018 {
        let (identity, withheld) = identity(&*transport, Generation::RFC2018)?;
        let region = MigrationRegion::new(transport, &region, RfcInfo::SIZE)?;
        let device = RegionDevice::new(region, Rfc2018::new(), identity, withheld);
        return Ok(AnyDevice(Kind::Rfc2018(device)));
    }
    Err(ProbeError::NotMigratable {
        device: transport.name().to_owned(),
        why: match refused {
            Errno::ENOTTY => {
                "its driver does not support migration, and it has no migration region"
            }
            Errno::EINVAL => {
                "its server does not know the migration feature, and it has no migration \
                 region"
            }
            _ => {
                "asking for the migration feature failed, and it has no migration region"
            }
        },
        errno: refused,
    })
}

/// The migration regions of a device, v1 and rfc2018.
fn migration_regions(
    transport: &dyn Transport,
) -> Result<(Option<RegionInfo>, Option<RegionInfo>), ProbeError> {
    let info = transport.device_info().map_err(failed(transport, "what it is"))?;
    let (mut v1, mut rfc2018) = (None, None);
    for index in 0..info.regions.min(MOST_REGIONS) {
        let region = match transport.region_info(index) {
            Ok(region) => region,
            // Some indexes have nothing, and say so by an errno.
            Err(TransportError::Errno { .. }) => continue,
            Err(source) => {
                return Err(failed(transport, "which regions it has")(source));
            }
        };
        let place = match region.kind {
            Some((V1_REGION_TYPE, V1_REGION_SUBTYPE)) => &mut v1,
            Some((RFC_REGION_TYPE, RFC_REGION_SUBTYPE)) => &mut rfc2018,
            _ => continue,
        };
        place.get_or_insert(region);
    }
    Ok((v1, rfc2018))
}

fn identity(
    transport: &dyn Transport,
    generation: Generation,
) -> Result<(Identity, Vec<Withheld>), ProbeError> {
    let (capabilities, withheld) = used(CAPABILITIES, transport.save_stream());
    let (bus, layout) = bus(transport)?;
    let model = model(transport)?;
    Ok((Identity { bus, generation, capabilities, model, layout }, withheld))
}

/// A device of any generation, opened by [`open_any`]: one [`port::Device`] for whoever
/// does not want to know.
#[derive(Debug)]
pub struct AnyDevice(Kind);

#[derive(Debug)]
enum Kind {
    V2(V2Device),
    V1(V1Device),
    Rfc2018(Rfc2018Device),
}

impl AnyDevice {
    /// What the device offers and its [`Identity`] leaves out, with the reasons.
    pub fn withheld(&self) -> &[Withheld] {
        match &self.0 {
            Kind::V2(device) => device.withheld(),
            Kind::V1(device) => device.withheld(),
            Kind::Rfc2018(device) => device.withheld(),
        }
    }

    /// The way to the device.
    pub fn transport(&self) -> &Arc<dyn Transport> {
        match &self.0 {
            Kind::V2(device) => device.transport(),
            Kind::V1(device) => device.transport(),
            Kind::Rfc2018(device) => device.transport(),
        }
    }

    /// Who tells of the device's writes to memory; `None` where nobody does, and
    /// everything that it can reach counts as dirty. What comes first in this order and
    /// starts is asked, and nothing else:
    ///
    /// 1. what the device itself tells ([`AnyDevice::own_log`]): it knows its writes and
    ///    nobody else's, by pages as small as it can;
    /// 2. what its way to memory tells ([`Transport::memory_log`]): the page table of an
    ///    IOMMU that notes writes, by pages as large as it maps; or a container that
    ///    counts pages, for which all that is mapped is dirty unless every device in it
    ///    pins what it writes.
    ///
    /// That a log is offered does not say that it works: a driver has none without
    /// firmware, and a kernel without IOMMUFD starts logs and never reports from them.
    /// Only starting it shows that, and the next one is started then.
    ///
    /// # Errors
    /// When the device does not answer.
    pub fn dirty_source(&self) -> Result<Option<Box<dyn DirtySource>>, ProbeError> {
        let below = self.transport().memory_log();
        let below = below.map_err(failed(&**self.transport(), "what it may reach"))?;
        Ok(FirstThatStarts::of(self.own_log()?.into_iter().chain(below)))
    }

    /// What the device itself tells of its writes to memory: the query of an rfc2018
    /// region, or a DMA log.
    ///
    /// # Errors
    /// When the device does not answer.
    pub fn own_log(&self) -> Result<Option<Box<dyn DirtySource>>, ProbeError> {
        if let Kind::Rfc2018(device) = &self.0 {
            let shared = Arc::clone(device.shared());
            return Ok(Some(Box::new(DirtyQuery::new(shared, device.name()))));
        }
        let log = DmaLog::open(Arc::clone(self.transport()))?;
        Ok(log.map(|log| Box::new(log) as Box<dyn DirtySource>))
    }

    fn device(&self) -> &dyn Device {
        match &self.0 {
            Kind::V2(device) => device,
            Kind::V1(device) => device,
            Kind::Rfc2018(device) => device,
        }
    }

    fn driven(&mut self) -> &mut dyn Device {
        match &mut self.0 {
            Kind::V2(device) => device,
            Kind::V1(device) => device,
            Kind::Rfc2018(device) => device,
        }
    }
}

impl Device for AnyDevice {
    fn name(&self) -> &str {
        self.device().name()
    }

    fn identity(&self) -> &Identity {
        self.device().identity()
    }

    fn state(&mut self) -> Result<State, DeviceError> {
        self.driven().state()
    }

    fn set_state(&mut self, target: State) -> Result<Opened, DeviceError> {
        self.driven().set_state(target)
    }

    fn stop_copy_bytes(&mut self) -> Result<Option<u64>, DeviceError> {
        self.driven().stop_copy_bytes()
    }

    fn longest_transaction(&self) -> Option<u64> {
        self.device().longest_transaction()
    }

    fn validated_at_start(&self) -> bool {
        self.device().validated_at_start()
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.driven().reset()
    }
}
