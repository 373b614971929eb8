//! The calls of [`Transport`] as messages.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use abi::errno::Errno;
use abi::feature::{Feature, FeatureFlags, FeatureHeader};
use abi::irq::{IrqInfo as RawIrqInfo, IrqSet, IrqSetFlags};
use abi::region::{RegionFlags, RegionInfo as RawRegionInfo};
use abi::v2::{DeviceMigState, DeviceState};
use abi::vfio_user::{
    DeviceInfo as RawDeviceInfo, DmaMap, DmaMapFlags, DmaUnmap, RegionAccess,
};
use control::{
    DataSession, DeviceInfo, Direction, DmaTarget, IrqInfo, MappedArea, RegionInfo,
    Transport, TransportError,
};
use dirty::IovaRange;
use sys::{EventFd, SharedMemory};
use zerocopy::{FromBytes, IntoBytes};

use super::Client;
use super::line::{Answer, Sink};
use super::session::Session;
use crate::codec::{Region, Reply, Request};

/// Room for the capabilities of a region.
const REGION_MOST: usize = 4096;

impl Client {
    /// A call whose answer is small.
    fn small(
        &self,
        operation: &'static str,
        request: &Request<'_>,
        most: usize,
    ) -> Result<Answer, TransportError> {
        self.small_within(operation, request, most, self.inner.options.call_deadline)
    }

    fn small_within(
        &self,
        operation: &'static str,
        request: &Request<'_>,
        most: usize,
        deadline: Duration,
    ) -> Result<Answer, TransportError> {
        let mut sink = Sink { fixed: most, data: &mut [] };
        self.inner.line.call(operation, request, &[], &mut sink, deadline)
    }

    /// The server answered something impossible: it is not listened to any more.
    pub(super) fn broken(&self, operation: &'static str, what: &str) -> TransportError {
        self.inner.line.give_up(what);
        TransportError::Broken { operation, what: what.to_owned() }
    }

    fn region(
        &self,
        operation: &'static str,
        index: u32,
    ) -> Result<(Region, Option<OwnedFd>), TransportError> {
        let request = Request::RegionInfo(RawRegionInfo {
            argsz: REGION_MOST as u32,
            flags: 0,
            index,
            cap_offset: 0,
            size: 0,
            offset: 0,
        });
        let mut answer = self.small(operation, &request, REGION_MOST)?;
        let fds = std::mem::take(&mut answer.fds);
        let region = match answer.parse(request.command()) {
            Ok(Reply::Region(region)) if region.info.index == index => region,
            _ => return Err(self.broken(operation, "not this region's information")),
        };
        let size = region.info.size;
        let inside = |(offset, length): &(u64, u64)| {
            *length > 0 && offset.checked_add(*length).is_some_and(|end| end <= size)
        };
        if !region.areas.iter().flatten().all(inside) {
            return Err(self.broken(operation, "an area outside of its region"));
        }
        Ok((region, fds.into_iter().next()))
    }

    /// The features that only exist by agreement.
    fn check_agreed(
        &self,
        operation: &'static str,
        feature: Feature,
    ) -> Result<(), TransportError> {
        let ours =
            matches!(feature, Feature::MIG_DATA_SIZE | Feature::MIG_PRECOPY_INFO_V2)
                || feature >= Feature::VFIO_MIGRATE_PRECOPY_INFO;
        if ours && !self.inner.additions {
            return Err(TransportError::Errno { operation, errno: Errno::ENOTTY });
        }
        Ok(())
    }

    fn feature(
        &self,
        operation: &'static str,
        header: FeatureHeader,
        input: &[u8],
        most: usize,
        deadline: Duration,
    ) -> Result<Vec<u8>, TransportError> {
        self.check_agreed(operation, header.feature())?;
        let request = Request::Feature(header, input);
        let most = FeatureHeader::SIZE + most;
        let mut answer = self.small_within(operation, &request, most, deadline)?;
        match FeatureHeader::read_from_prefix(&answer.fixed) {
            Ok((reply, _)) if reply.feature() == header.feature() => {
                answer.fixed.drain(..FeatureHeader::SIZE);
                Ok(answer.fixed)
            }
            _ => Err(self.broken(operation, "not this feature's answer")),
        }
    }
}

/// The areas that can be mapped, whichever way they are told.
fn areas(region: &Region) -> Vec<(u64, u64)> {
    let flags = RegionFlags::from_bits_retain(region.info.flags);
    match &region.areas {
        _ if !flags.contains(RegionFlags::MMAP) => Vec::new(),
        Some(areas) => areas.clone(),
        None if region.info.size > 0 => vec![(0, region.info.size)],
        None => Vec::new(),
    }
}

impl Transport for Client {
    fn name(&self) -> &str {
        &self.inner.options.name
    }

    fn device_info(&self) -> Result<DeviceInfo, TransportError> {
        const OPERATION: &str = "ask for the device";
        let size = size_of::<RawDeviceInfo>();
        let request = Request::DeviceInfo(RawDeviceInfo {
            argsz: size as u32,
            flags: 0,
            num_regions: 0,
            num_irqs: 0,
        });
        let answer = self.small(OPERATION, &request, size)?;
        match answer.parse(request.command()) {
            Ok(Reply::DeviceInfo(info)) => Ok(DeviceInfo {
                flags: info.flags,
                regions: info.num_regions,
                irqs: info.num_irqs,
            }),
            _ => Err(self.broken(OPERATION, "not the device's information")),
        }
    }

    fn region_info(&self, index: u32) -> Result<RegionInfo, TransportError> {
        let (region, _) = self.region("ask for a region", index)?;
        Ok(RegionInfo {
            index,
            flags: region.info.flags,
            size: region.info.size,
            areas: areas(&region),
            kind: region.kind,
        })
    }

    fn irq_info(&self, index: u32) -> Result<IrqInfo, TransportError> {
        const OPERATION: &str = "ask for an interrupt";
        let size = size_of::<RawIrqInfo>();
        let request = Request::IrqInfo(RawIrqInfo {
            argsz: size as u32,
            flags: 0,
            index,
            count: 0,
        });
        let answer = self.small(OPERATION, &request, size)?;
        match answer.parse(request.command()) {
            Ok(Reply::IrqInfo(info)) if info.index == index => {
                Ok(IrqInfo { flags: info.flags, count: info.count })
            }
            _ => Err(self.broken(OPERATION, "not this interrupt's information")),
        }
    }

    fn region_read(
        &self,
        index: u32,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), TransportError> {
        const OPERATION: &str = "read a region";
        let fixed = size_of::<RegionAccess>();
        let mut offset = offset;
        for piece in into.chunks_mut(self.inner.max_data) {
            let count = piece.len() as u32;
            let access = RegionAccess { offset, region: index, count };
            let request = Request::RegionRead(access);
            let wanted = piece.len();
            let mut sink = Sink { fixed, data: piece };
            let deadline = self.inner.options.call_deadline;
            let answer =
                self.inner.line.call(OPERATION, &request, &[], &mut sink, deadline)?;
            match RegionAccess::read_from_bytes(&answer.fixed) {
                Ok(reply) if reply.count == count && answer.data == wanted => {}
                _ => return Err(self.broken(OPERATION, "not as many bytes as asked")),
            }
            offset = offset.wrapping_add(u64::from(count));
        }
        Ok(())
    }

    fn region_write(
        &self,
        index: u32,
        offset: u64,
        from: &[u8],
    ) -> Result<(), TransportError> {
        const OPERATION: &str = "write a region";
        let mut offset = offset;
        for piece in from.chunks(self.inner.max_data) {
            let count = piece.len() as u32;
            let access = RegionAccess { offset, region: index, count };
            let request = Request::RegionWrite(access, piece);
            let answer = self.small(OPERATION, &request, size_of::<RegionAccess>())?;
            match answer.parse(request.command()) {
                Ok(Reply::RegionWrite(reply)) if reply.count == count => {}
                _ => return Err(self.broken(OPERATION, "not as many bytes as sent")),
            }
            offset = offset.wrapping_add(u64::from(count));
        }
        Ok(())
    }

    fn region_map(&self, index: u32, offset: u64) -> Result<MappedArea, TransportError> {
        const OPERATION: &str = "map a region";
        let errno = |errno| TransportError::Errno { operation: OPERATION, errno };
        let (region, fd) = self.region(OPERATION, index)?;
        let area = areas(&region)
            .into_iter()
            .find(|(start, size)| (*start..start + size).contains(&offset))
            .ok_or_else(|| errno(Errno::EINVAL))?;
        let fd = fd.ok_or_else(|| self.broken(OPERATION, "no descriptor to map"))?;
        let flags = RegionFlags::from_bits_retain(region.info.flags);
        let writable = flags.contains(RegionFlags::WRITE);
        let at = region.info.offset.wrapping_add(area.0);
        let memory =
            SharedMemory::from_fd(fd, at, area.1, writable).map_err(|error| {
                TransportError::Broken {
                    operation: OPERATION,
                    what: format!("its descriptor cannot be mapped: {error}"),
                }
            })?;
        Ok(MappedArea { offset: area.0, memory })
    }

    fn feature_probe(&self, feature: Feature) -> Result<(), TransportError> {
        let header = FeatureHeader::new(feature, FeatureFlags::PROBE, 0);
        let deadline = self.inner.options.call_deadline;
        self.feature("probe a feature", header, &[], 64, deadline).map(drop)
    }

    fn feature_get(
        &self,
        feature: Feature,
        input: &[u8],
        most: usize,
    ) -> Result<Vec<u8>, TransportError> {
        let most = most.min(self.inner.max_data);
        let header = FeatureHeader::new(feature, FeatureFlags::GET, most as u32);
        let deadline = self.inner.options.call_deadline;
        self.feature("get a feature", header, input, most, deadline)
    }

    fn feature_set(
        &self,
        feature: Feature,
        payload: &[u8],
    ) -> Result<Vec<u8>, TransportError> {
        let most = payload.len();
        let header = FeatureHeader::new(feature, FeatureFlags::SET, most as u32);
        let deadline = match feature {
            Feature::MIG_DEVICE_STATE => self.inner.options.state_deadline,
            _ => self.inner.options.call_deadline,
        };
        self.feature("set a feature", header, payload, most, deadline)
    }

    fn set_migration_state(
        &self,
        target: DeviceState,
        due: Option<Direction>,
    ) -> Result<Option<Box<dyn DataSession>>, TransportError> {
        const OPERATION: &str = "set the migration state";
        let has_session = matches!(
            target,
            DeviceState::STOP_COPY
                | DeviceState::RESUMING
                | DeviceState::PRE_COPY
                | DeviceState::PRE_COPY_P2P
        );
        let payload = DeviceMigState { device_state: target.0, data_fd: -1 };
        let size = size_of::<DeviceMigState>();
        let header =
            FeatureHeader::new(Feature::MIG_DEVICE_STATE, FeatureFlags::SET, size as u32);
        let deadline = self.inner.options.state_deadline;
        self.feature(OPERATION, header, payload.as_bytes(), size, deadline)?;
        if let Some(direction) = due {
            return Ok(Some(Box::new(Session::new(self.clone(), direction))));
        }
        if !has_session {
            self.end_session();
        }
        Ok(None)
    }

    fn set_irqs(
        &self,
        index: u32,
        start: u32,
        vectors: &[&EventFd],
    ) -> Result<(), TransportError> {
        const OPERATION: &str = "set interrupts";
        let argsz = size_of::<IrqSet>() as u32;
        let deadline = self.inner.options.call_deadline;
        let invalid =
            TransportError::Errno { operation: OPERATION, errno: Errno::EINVAL };
        if vectors.is_empty() {
            if start != 0 {
                return Err(invalid);
            }
            let flags = (IrqSetFlags::DATA_NONE | IrqSetFlags::ACTION_TRIGGER).bits();
            let set = IrqSet { argsz, flags, index, start: 0, count: 0 };
            return self.small(OPERATION, &Request::SetIrqs(set, &[]), 0).map(drop);
        }
        let flags = (IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER).bits();
        let mut start = start;
        for batch in vectors.chunks(self.inner.max_fds) {
            let count = batch.len() as u32;
            let set = IrqSet { argsz, flags, index, start, count };
            let fds: Vec<_> = batch.iter().map(|event| event.as_fd()).collect();
            let request = Request::SetIrqs(set, &[]);
            let mut sink = Sink { fixed: 0, data: &mut [] };
            self.inner.line.call(OPERATION, &request, &fds, &mut sink, deadline)?;
            let Some(next) = start.checked_add(count) else { return Err(invalid) };
            start = next;
        }
        Ok(())
    }

    fn dma_map(
        &self,
        range: IovaRange,
        target: DmaTarget<'_>,
    ) -> Result<(), TransportError> {
        const OPERATION: &str = "map DMA";
        let mut map = DmaMap {
            argsz: size_of::<DmaMap>() as u32,
            flags: DmaMapFlags::READ.bits(),
            offset: 0,
            addr: range.start(),
            size: range.length(),
        };
        let (writable, memory) = match target {
            DmaTarget::Messages { writable } => (writable, None),
            DmaTarget::Memory { memory, offset, writable } => {
                let part = memory.slice(offset, range.length()).map_err(|_| {
                    TransportError::Errno { operation: OPERATION, errno: Errno::EINVAL }
                })?;
                map.offset = part.offset();
                (writable, Some(part))
            }
        };
        if writable {
            map.flags |= DmaMapFlags::WRITE.bits();
        }
        let fds: Vec<_> = memory.iter().map(SharedMemory::fd).collect();
        let mut sink = Sink { fixed: 0, data: &mut [] };
        let deadline = self.inner.options.call_deadline;
        let request = Request::DmaMap(map);
        self.inner.line.call(OPERATION, &request, &fds, &mut sink, deadline)?;
        Ok(())
    }

    fn dma_unmap(&self, range: IovaRange) -> Result<(), TransportError> {
        let size = size_of::<DmaUnmap>();
        let request = Request::DmaUnmap(DmaUnmap {
            argsz: size as u32,
            flags: 0,
            addr: range.start(),
            size: range.length(),
        });
        self.small("unmap DMA", &request, size).map(drop)
    }

    fn reset(&self) -> Result<(), TransportError> {
        let deadline = self.inner.options.state_deadline;
        let answer = self.small_within("reset", &Request::Reset, 0, deadline);
        self.end_session();
        answer.map(drop)
    }
}
