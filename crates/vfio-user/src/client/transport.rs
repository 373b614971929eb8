//! The calls of [`Transport`] as messages.

use std::time::Duration;

use abi::errno::Errno;
use abi::feature::{Feature, FeatureFlags, FeatureHeader};
use abi::irq::IrqInfo as RawIrqInfo;
use abi::v2::{DeviceMigState, DeviceState};
use abi::vfio_user::DeviceInfo as RawDeviceInfo;
use control::{
    DataSession, DeviceInfo, Direction, DmaTarget, DmaWrites, IrqAction, IrqForm,
    IrqInfo, MappedArea, Raw, RegionInfo, RegionIoFds, RegionWrite, SaveStream,
    Transport, TransportError,
};
use dirty::{IovaRange, PageSize};
use sys::EventFd;
use zerocopy::{FromBytes, IntoBytes};

use super::Client;
use super::agreement::SMALL;
use super::line::{Answer, ECHO, Sink};
use super::regions::areas;
use super::session::Session;
use crate::codec::{Reply, Request};

impl Client {
    /// A call whose answer is small.
    pub(super) fn small(
        &self,
        operation: &'static str,
        request: &Request<'_>,
        most: usize,
    ) -> Result<Answer, TransportError> {
        self.small_within(operation, request, most, self.inner.options.call_deadline)
    }

    pub(super) fn small_within(
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

    /// The features that only exist by agreement.
    fn check_agreed(
        &self,
        operation: &'static str,
        feature: Feature,
    ) -> Result<(), TransportError> {
        let ours =
            matches!(feature, Feature::MIG_DATA_SIZE | Feature::MIG_PRECOPY_INFO_V2)
                || feature >= Feature::VFIO_MIGRATE_PRECOPY_INFO;
        if ours && !self.inner.agreed.additions {
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
        let mut sink = Sink { fixed: FeatureHeader::SIZE + most, data: &mut [] };
        let answer =
            self.feature_through(operation, header, input, &mut sink, deadline)?;
        let mut data = answer.fixed;
        data.drain(..FeatureHeader::SIZE.min(data.len()));
        Ok(data)
    }

    /// The same, by way of a sink. The answer begins with the feature's header, or there
    /// is nothing at all.
    fn feature_through(
        &self,
        operation: &'static str,
        header: FeatureHeader,
        input: &[u8],
        sink: &mut Sink<'_>,
        deadline: Duration,
    ) -> Result<Answer, TransportError> {
        self.check_agreed(operation, header.feature())?;
        let request = Request::Feature(header, input);
        let answer = self.inner.line.call(operation, &request, &[], sink, deadline)?;
        match FeatureHeader::read_from_prefix(&answer.fixed) {
            Ok((reply, _)) if reply.feature() == header.feature() => Ok(answer),
            // A header says that it was done. Where something was asked for, that there
            // is nothing is for the caller to judge.
            Err(_) if answer.fixed.is_empty() => Ok(answer),
            _ => Err(self.broken(operation, "not this feature's answer")),
        }
    }
}

impl Transport for Client {
    fn name(&self) -> &str {
        &self.name
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
        self.read_region(index, offset, into)
    }

    fn region_write(
        &self,
        index: u32,
        offset: u64,
        from: &[u8],
    ) -> Result<(), TransportError> {
        self.write_region(index, offset, from, self.inner.options.call_deadline)
    }

    fn region_write_state(
        &self,
        index: u32,
        offset: u64,
        from: &[u8],
    ) -> Result<(), TransportError> {
        // A change of state, and so as slow as one.
        self.write_region(index, offset, from, self.inner.options.state_deadline)?;
        self.dma_is_over("set the migration state")
    }

    fn region_write_posted(
        &self,
        index: u32,
        offset: u64,
        from: &[u8],
    ) -> Result<(), TransportError> {
        self.post_region(index, offset, from)
    }

    fn region_write_many(
        &self,
        writes: &[RegionWrite<'_>],
    ) -> Result<(), TransportError> {
        self.write_regions(writes)
    }

    fn region_map(&self, index: u32, offset: u64) -> Result<MappedArea, TransportError> {
        self.map_area(index, offset)
    }

    fn region_io_fds(&self, index: u32) -> Result<RegionIoFds, TransportError> {
        self.io_fds(index)
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
        // Only data is limited, and a small structure is none.
        let most = most.min(self.inner.agreed.max_data.max(SMALL));
        let header = FeatureHeader::new(feature, FeatureFlags::GET, most as u32);
        let deadline = self.inner.options.call_deadline;
        self.feature("get a feature", header, input, most, deadline)
    }

    fn feature_get_into(
        &self,
        feature: Feature,
        input: &[u8],
        into: &mut [u8],
    ) -> Result<usize, TransportError> {
        const OPERATION: &str = "get a feature";
        let most = into.len().min(self.inner.agreed.max_data.max(SMALL));
        let header = FeatureHeader::new(feature, FeatureFlags::GET, most as u32);
        let mut sink = Sink { fixed: FeatureHeader::SIZE, data: &mut into[..most] };
        let deadline = self.inner.options.call_deadline;
        let answer =
            self.feature_through(OPERATION, header, input, &mut sink, deadline)?;
        Ok(answer.data)
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
        self.dma_is_over(OPERATION)?;
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
        let form = IrqForm::binding(start, vectors);
        self.set(index, start, IrqAction::Trigger, form)
    }

    fn act_on_irqs(
        &self,
        index: u32,
        start: u32,
        action: IrqAction,
        form: IrqForm<'_>,
    ) -> Result<(), TransportError> {
        self.set(index, start, action, form)
    }

    fn dma_map(
        &self,
        range: IovaRange,
        target: DmaTarget<'_>,
    ) -> Result<(), TransportError> {
        self.map(range, target)
    }

    fn dma_unmap(&self, range: IovaRange) -> Result<(), TransportError> {
        self.unmap(range)
    }

    fn dma_unmap_all(&self) -> Result<(), TransportError> {
        self.unmap_all()
    }

    fn dma_unmap_dirty(
        &self,
        range: IovaRange,
        page: PageSize,
        // It says so in the answer to the one message that ends them.
        _: DmaWrites,
    ) -> Result<Vec<u64>, TransportError> {
        self.unmap_dirty(range, page)
    }

    fn most_report_bytes(&self) -> usize {
        self.inner.agreed.max_report
    }

    fn save_stream(&self) -> SaveStream {
        self.stream()
    }

    fn reset(&self) -> Result<(), TransportError> {
        const OPERATION: &str = "reset";
        let deadline = self.inner.options.state_deadline;
        let answer = self.small_within(OPERATION, &Request::Reset, ECHO, deadline);
        self.end_session();
        answer?;
        self.dma_is_over(OPERATION)
    }

    fn raw(&self) -> Option<&dyn Raw> {
        Some(self)
    }
}
