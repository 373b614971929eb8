//! The calls of [`Transport`] as ioctls.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use abi::dma_logging::Range;
use abi::errno::Errno;
use abi::feature::{Feature, FeatureFlags, FeatureHeader};
use abi::irq::IrqSetFlags;
use abi::v2::{DeviceMigState, DeviceState};
use abi::vfio_user::{LoggingControl, LoggingReport};
use control::{
    DataSession, DeviceInfo, Direction, DmaTarget, DmaWrites, IrqAction, IrqForm,
    IrqInfo, MappedArea, Raw, RegionInfo, Transport, TransportError, identity,
};
use dirty::{IovaRange, PageSize};
use port::DirtySource;
use sys::EventFd;
use sys::vfio::device::{IrqData, MOST_FEATURE};
use zerocopy::{FromBytes, IntoBytes};

use crate::device::{Host, refused};
use crate::kernel::LogQuestion;
use crate::session::{Data, Session};

/// The most bytes of bits that one report has: 1 TiB of pages of 4 KiB.
const MOST_REPORT: usize = 32 << 20;

impl Transport for Host {
    fn name(&self) -> &str {
        &self.inner.name
    }

    fn device_info(&self) -> Result<DeviceInfo, TransportError> {
        let info = self.quick("ask for the device", |it| it.kernel.info(it.device()))?;
        let (flags, regions, irqs) = (info.flags, info.num_regions, info.num_irqs);
        Ok(DeviceInfo { flags, regions, irqs })
    }

    fn region_info(&self, index: u32) -> Result<RegionInfo, TransportError> {
        Ok(self.region("ask for a region", index)?.info)
    }

    fn irq_info(&self, index: u32) -> Result<IrqInfo, TransportError> {
        let info = self.quick("ask for an interrupt", move |it| {
            it.kernel.irq_info(it.device(), index)
        })?;
        Ok(IrqInfo { flags: info.flags, count: info.count })
    }

    fn region_read(
        &self,
        index: u32,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), TransportError> {
        const OPERATION: &str = "read a region";
        let at = self.within(OPERATION, index, offset, into.len())?;
        let mut bytes = vec![0; into.len()];
        let lost = self.lost();
        let bytes = self.quick(OPERATION, move |it| {
            let mut done = 0;
            while done < bytes.len() {
                let here = at + done as u64;
                match it.kernel.read_at(it.device(), &mut bytes[done..], here) {
                    Ok(0) => return Err(io::Error::from_raw_os_error(Errno::EIO.0)),
                    Ok(read) => done += read.min(bytes.len() - done),
                    Err(error) if again(&error) && !lost.is_lost() => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(bytes)
        })?;
        into.copy_from_slice(&bytes);
        Ok(())
    }

    fn region_write(
        &self,
        index: u32,
        offset: u64,
        from: &[u8],
    ) -> Result<(), TransportError> {
        self.write_within(index, offset, from, self.inner.deadlines.call)
    }

    fn region_write_state(
        &self,
        index: u32,
        offset: u64,
        from: &[u8],
    ) -> Result<(), TransportError> {
        self.write_within(index, offset, from, self.inner.deadlines.slow)
    }

    fn region_map(&self, index: u32, offset: u64) -> Result<MappedArea, TransportError> {
        const OPERATION: &str = "map a region";
        let region = self.region(OPERATION, index)?;
        let holds =
            |(start, size): &&(u64, u64)| *start <= offset && offset - start < *size;
        let Some(&(start, size)) = region.info.areas.iter().find(holds) else {
            return Err(TransportError::Errno {
                operation: OPERATION,
                errno: Errno::EINVAL,
            });
        };
        let flags = abi::region::RegionFlags::from_bits_retain(region.info.flags);
        let writable = flags.contains(abi::region::RegionFlags::WRITE);
        let at = region.offset + start;
        let memory = self
            .quick(OPERATION, move |it| it.kernel.map(it.device(), at, size, writable))?;
        Ok(MappedArea { offset: start, memory })
    }

    fn feature_probe(&self, feature: Feature) -> Result<(), TransportError> {
        let header = FeatureHeader::new(feature, FeatureFlags::PROBE, 0);
        self.feature("probe a feature", header, Vec::new()).map(drop)
    }

    fn feature_get(
        &self,
        feature: Feature,
        input: &[u8],
        most: usize,
    ) -> Result<Vec<u8>, TransportError> {
        if feature == Feature::DMA_LOGGING_REPORT {
            return self.report(input, most);
        }
        if feature == Feature::VFIO_MIGRATE_IDENTITY
            && let Some(model) = self.about().model()
            && let Some(identity) = identity::encode(&model)
        {
            // No kernel is asked for it, but what it is may be known.
            return Ok(identity);
        }
        let room = most.max(input.len()).min(MOST_FEATURE - FeatureHeader::SIZE);
        let mut data = vec![0; room];
        let known = input.len().min(room);
        data[..known].copy_from_slice(&input[..known]);
        let header = FeatureHeader::new(feature, FeatureFlags::GET, room as u32);
        self.feature("get a feature", header, data)
    }

    fn feature_set(
        &self,
        feature: Feature,
        payload: &[u8],
    ) -> Result<Vec<u8>, TransportError> {
        match feature {
            Feature::DMA_LOGGING_START => self.start_log(payload),
            // The kernel takes none.
            Feature::DMA_LOGGING_STOP => self.set(feature, &[]),
            feature => self.set(feature, payload),
        }
    }

    fn set_migration_state(
        &self,
        target: DeviceState,
        _due: Option<Direction>,
    ) -> Result<Option<Box<dyn DataSession>>, TransportError> {
        let data = self.slow("set the migration state", move |it| {
            let (_, fd) = it.kernel.set_state(it.device(), target.0)?;
            // With its device from the start: nobody may wait for the answer any more.
            Ok(fd.map(|fd| Data { fd, device: Arc::clone(it) }))
        })?;
        // Whatever was due: what the kernel opened has an owner, or is closed.
        Ok(data.map(|data| {
            Box::new(Session::new(self.clone(), data)) as Box<dyn DataSession>
        }))
    }

    fn set_irqs(
        &self,
        index: u32,
        start: u32,
        vectors: &[&EventFd],
    ) -> Result<(), TransportError> {
        let form = IrqForm::binding(start, vectors);
        self.act_on_irqs(index, start, IrqAction::Trigger, form)
    }

    fn act_on_irqs(
        &self,
        index: u32,
        start: u32,
        action: IrqAction,
        form: IrqForm<'_>,
    ) -> Result<(), TransportError> {
        const OPERATION: &str = "act on interrupts";
        let action = match action {
            IrqAction::Trigger => IrqSetFlags::ACTION_TRIGGER,
            IrqAction::Mask => IrqSetFlags::ACTION_MASK,
            IrqAction::Unmask => IrqSetFlags::ACTION_UNMASK,
        };
        // Without a descriptor left here nothing is wrong with the device.
        let form = Vectors::of(form).map_err(|error| refused(OPERATION, &error))?;
        self.quick(OPERATION, move |it| {
            form.with(|data| it.kernel.set_irqs(it.device(), index, start, action, data))
        })
    }

    fn dma_map(
        &self,
        range: IovaRange,
        target: DmaTarget<'_>,
    ) -> Result<(), TransportError> {
        const OPERATION: &str = "map memory";
        let refused = |errno| TransportError::Errno { operation: OPERATION, errno };
        let DmaTarget::Memory { memory, offset, writable } = target else {
            // Nobody can answer what a device of the kernel asks for.
            return Err(refused(Errno::EOPNOTSUPP));
        };
        let memory =
            memory.slice(offset, range.length()).map_err(|_| refused(Errno::EINVAL))?;
        let space = self.space(OPERATION)?;
        self.slow(OPERATION, move |_| space.map(range.start(), &memory, writable))
    }

    fn dma_unmap(&self, range: IovaRange) -> Result<(), TransportError> {
        const OPERATION: &str = "unmap memory";
        let space = self.space(OPERATION)?;
        let bytes =
            self.slow(OPERATION, move |_| space.unmap(range.start(), range.length()))?;
        match bytes {
            0 => {
                let errno = Errno::ENOENT;
                Err(TransportError::Errno { operation: OPERATION, errno })
            }
            _ => Ok(()),
        }
    }

    fn dma_unmap_all(&self) -> Result<(), TransportError> {
        const OPERATION: &str = "unmap all memory";
        let space = self.space(OPERATION)?;
        match self.slow(OPERATION, move |_| space.unmap_all()) {
            // Some kernels' iommufd, where there is nothing.
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(()),
            other => other.map(drop),
        }
    }

    fn dma_unmap_dirty(
        &self,
        range: IovaRange,
        page: PageSize,
        writes: DmaWrites,
    ) -> Result<Vec<u64>, TransportError> {
        const OPERATION: &str = "unmap memory with its dirty bits";
        let errno = |errno: Errno| io::Error::from_raw_os_error(errno.0);
        let space = self.space(OPERATION)?;
        let words =
            crate::container::words(range, page).ok_or(TransportError::Errno {
                operation: OPERATION,
                errno: Errno::EINVAL,
            })?;
        self.slow(OPERATION, move |_| {
            let mut bits = vec![0; words];
            let (start, length) = (range.start(), range.length());
            // A container has one call for both. iommufd has two, and what is written
            // between them is in neither's answer.
            let bytes = if space.ioas_id().is_none() || writes == DmaWrites::Ended {
                space.unmap_dirty(start, length, page.bytes(), &mut bits)?
            } else if space.page_table().is_some() {
                bits.fill(u64::MAX);
                space.unmap(start, length)?
            } else {
                return Err(errno(Errno::ENOTTY));
            };
            match bytes {
                0 => Err(errno(Errno::ENOENT)),
                _ => Ok(bits),
            }
        })
    }

    fn memory_log(&self) -> Result<Option<Box<dyn DirtySource>>, TransportError> {
        if let Some(log) = self.iommu_log()? {
            return Ok(Some(Box::new(log)));
        }
        let container = self.container().map(|container| container.source());
        let log = container.transpose()?.flatten();
        Ok(log.map(|log| Box::new(log) as Box<dyn DirtySource>))
    }

    fn most_report_bytes(&self) -> usize {
        MOST_REPORT
    }

    fn reset(&self) -> Result<(), TransportError> {
        self.slow("reset", |it| it.kernel.reset(it.device()))
    }

    fn raw(&self) -> Option<&dyn Raw> {
        Some(self)
    }
}

impl Raw for Host {
    fn is_kernel(&self) -> bool {
        true
    }

    fn feature(
        &self,
        header: FeatureHeader,
        data: &[u8],
    ) -> Result<Vec<u8>, TransportError> {
        let promised = (header.argsz as usize).saturating_sub(FeatureHeader::SIZE);
        let mut data = data.to_vec();
        data.resize(data.len().max(promised.min(MOST_FEATURE)), 0);
        Host::feature(self, "a feature as it is given", header, data)
    }

    fn data(
        &self,
        _direction: Direction,
        _bytes: &mut [u8],
    ) -> Result<Option<usize>, TransportError> {
        Ok(None)
    }
}

impl Host {
    fn write_within(
        &self,
        index: u32,
        offset: u64,
        from: &[u8],
        limit: std::time::Duration,
    ) -> Result<(), TransportError> {
        const OPERATION: &str = "write a region";
        let at = self.within(OPERATION, index, offset, from.len())?;
        let bytes = from.to_vec();
        let lost = self.lost();
        self.call(OPERATION, limit, move |it| {
            let mut done = 0;
            while done < bytes.len() {
                let here = at + done as u64;
                match it.kernel.write_at(it.device(), &bytes[done..], here) {
                    Ok(0) => return Err(io::Error::from_raw_os_error(Errno::EIO.0)),
                    Ok(written) => done += written,
                    Err(error) if again(&error) && !lost.is_lost() => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
    }

    fn set(&self, feature: Feature, payload: &[u8]) -> Result<Vec<u8>, TransportError> {
        let header = FeatureHeader::new(feature, FeatureFlags::SET, payload.len() as u32);
        let mut payload = payload.to_vec();
        if feature == Feature::MIG_DEVICE_STATE {
            // A session that is opened this way is nobody's, and closed.
            if let Ok((state, _)) = DeviceMigState::mut_from_prefix(&mut payload) {
                state.data_fd = -1;
            }
        }
        self.feature("set a feature", header, payload)
    }

    /// Starts the log, whose ranges lie behind a pointer here.
    fn start_log(&self, payload: &[u8]) -> Result<Vec<u8>, TransportError> {
        const OPERATION: &str = "start the DMA log";
        let misshapen =
            || TransportError::Errno { operation: OPERATION, errno: Errno::EINVAL };
        let (control, rest) =
            LoggingControl::read_from_prefix(payload).map_err(|_| misshapen())?;
        let count = rest.len() / size_of::<Range>();
        if count != control.num_ranges as usize {
            return Err(misshapen());
        }
        let ranges: Vec<Range> = rest
            .chunks_exact(size_of::<Range>())
            .filter_map(|range| Range::read_from_bytes(range).ok())
            .collect();
        let page_size = self.slow(OPERATION, move |it| {
            it.kernel.log_start(it.device(), control.page_size, &ranges)
        })?;
        Ok(LoggingControl { page_size, ..control }.as_bytes().to_vec())
    }

    /// Asks the log, whose bits lie behind a pointer here.
    fn report(&self, input: &[u8], most: usize) -> Result<Vec<u8>, TransportError> {
        const OPERATION: &str = "ask the DMA log";
        let misshapen =
            || TransportError::Errno { operation: OPERATION, errno: Errno::EINVAL };
        let asked = LoggingReport::read_from_bytes(input).map_err(|_| misshapen())?;
        let room = most.saturating_sub(size_of::<LoggingReport>());
        if room > MOST_REPORT {
            return Err(misshapen());
        }
        let LoggingReport { iova, length, page_size: page } = asked;
        let bits = self.slow(OPERATION, move |it| {
            let mut bits = vec![0_u64; room / 8];
            let question = LogQuestion { iova, length, page };
            it.kernel.log_report(it.device(), question, &mut bits)?;
            Ok(bits)
        })?;
        let mut answer = asked.as_bytes().to_vec();
        answer.extend(bits.iter().flat_map(|word| word.to_le_bytes()));
        Ok(answer)
    }
}

/// An interruption, after which the same call goes on.
pub(crate) fn again(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted
}

/// What interrupts are about, with descriptors of its own.
enum Vectors {
    All(u32),
    Each(Vec<bool>),
    Events(Vec<OwnedFd>),
    Unbind(u32),
}

impl Vectors {
    fn of(form: IrqForm<'_>) -> io::Result<Vectors> {
        Ok(match form {
            IrqForm::All(count) => Vectors::All(count),
            IrqForm::Each(each) => Vectors::Each(each.to_vec()),
            IrqForm::Unbind(count) => Vectors::Unbind(count),
            IrqForm::Events(events) => {
                let own = |event: &&EventFd| event.as_fd().try_clone_to_owned();
                Vectors::Events(events.iter().map(own).collect::<io::Result<_>>()?)
            }
        })
    }

    fn with<T>(&self, call: impl FnOnce(IrqData<'_>) -> T) -> T {
        match self {
            Vectors::All(count) => call(IrqData::None(*count)),
            Vectors::Each(each) => call(IrqData::Bools(each)),
            Vectors::Unbind(count) => call(IrqData::Unbind(*count)),
            Vectors::Events(fds) => {
                let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                call(IrqData::Events(&fds))
            }
        }
    }
}
