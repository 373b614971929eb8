//! An open device: its descriptors, and the calls of [`Transport`] on them.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use abi::errno::Errno;
use abi::feature::{Feature, FeatureFlags, FeatureHeader};
use abi::region::RegionInfo as RawRegion;
use control::TransportError;
use zerocopy::IntoBytes;

use crate::about::About;
use crate::kernel::{Kernel, Space};
use crate::region::{self, Region};
use crate::workers::{Lost, Workers, let_go};

/// The descriptors of a device. A field goes before those it needs: what devices reach
/// is taken from it while it is there, and the group goes after its device.
pub(crate) struct Descriptors {
    pub(crate) space: Option<Arc<dyn Space>>,
    pub(crate) device: OwnedFd,
    pub(crate) group: Option<OwnedFd>,
    pub(crate) kernel: Arc<dyn Kernel>,
}

impl Descriptors {
    pub(crate) fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl fmt::Debug for Descriptors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Descriptors")
            .field("device", &self.device)
            .field("group", &self.group)
            .field("space", &self.space.as_ref().map(|space| space.ioas_id()))
            .finish_non_exhaustive()
    }
}

/// How long calls may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// A call that changes nothing that takes time.
    pub call: Duration,
    /// Opening and closing, a change of state, a reset, a read or write of migration
    /// data, and mapping memory, which is pinned: some drivers wait for their firmware.
    pub slow: Duration,
}

impl Default for Deadlines {
    /// 5 and 60 seconds.
    fn default() -> Deadlines {
        Deadlines { call: Duration::from_secs(5), slow: Duration::from_secs(60) }
    }
}

/// A device of the kernel, as a [`Transport`](control::Transport). Clones share it; it is
/// closed with the last of them and of its data sessions.
#[derive(Clone, Debug)]
pub struct Host {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) name: String,
    pub(crate) about: About,
    pub(crate) deadlines: Deadlines,
    pub(crate) workers: Workers,
    regions: Mutex<HashMap<u32, Region>>,
    /// `None` only while it is dropped.
    descriptors: Option<Arc<Descriptors>>,
}

/// The most regions that are remembered; a device with more is asked each time.
const MOST_REGIONS: usize = 256;

impl Host {
    pub(crate) fn new(
        name: String,
        about: About,
        deadlines: Deadlines,
        workers: Workers,
        descriptors: Descriptors,
    ) -> Host {
        let inner = Inner {
            name,
            about,
            deadlines,
            workers,
            regions: Mutex::default(),
            descriptors: Some(Arc::new(descriptors)),
        };
        Host { inner: Arc::new(inner) }
    }

    /// How it was reached, and what the system says of it.
    pub fn about(&self) -> &About {
        &self.inner.about
    }

    /// What may be done with a feature: [`FeatureFlags::GET`], [`FeatureFlags::SET`],
    /// both; `None` where the device does not have it.
    ///
    /// # Errors
    /// When the device does not answer.
    pub fn feature_operations(
        &self,
        feature: Feature,
    ) -> Result<Option<FeatureFlags>, TransportError> {
        let probe = |operation: FeatureFlags| {
            let header = FeatureHeader::new(feature, operation | FeatureFlags::PROBE, 0);
            match self.feature("probe a feature", header, Vec::new()) {
                Ok(_) => Ok(true),
                Err(TransportError::Errno { .. }) => Ok(false),
                Err(error) => Err(error),
            }
        };
        if !probe(FeatureFlags::empty())? {
            return Ok(None);
        }
        let mut has = FeatureFlags::empty();
        for operation in [FeatureFlags::GET, FeatureFlags::SET] {
            has.set(operation, probe(operation)?);
        }
        Ok(Some(has))
    }

    /// Makes a call within `limit`, with the descriptors.
    pub(crate) fn call<T: Send + 'static>(
        &self,
        operation: &'static str,
        limit: Duration,
        job: impl FnOnce(&Arc<Descriptors>) -> io::Result<T> + Send + 'static,
    ) -> Result<T, TransportError> {
        let descriptors = self.inner.descriptors();
        let answer = self.inner.workers.run(operation, limit, move || job(&descriptors));
        answer?.map_err(|error| refused(operation, &error))
    }

    /// A call that takes no time.
    pub(crate) fn quick<T: Send + 'static>(
        &self,
        operation: &'static str,
        job: impl FnOnce(&Arc<Descriptors>) -> io::Result<T> + Send + 'static,
    ) -> Result<T, TransportError> {
        self.call(operation, self.inner.deadlines.call, job)
    }

    /// A call that may take its time.
    pub(crate) fn slow<T: Send + 'static>(
        &self,
        operation: &'static str,
        job: impl FnOnce(&Arc<Descriptors>) -> io::Result<T> + Send + 'static,
    ) -> Result<T, TransportError> {
        self.call(operation, self.inner.deadlines.slow, job)
    }

    /// Whether it was given up, for jobs that would go on for ever.
    pub(crate) fn lost(&self) -> Lost {
        self.inner.workers.lost()
    }

    /// One call on a feature, and what the kernel left behind the header.
    pub(crate) fn feature(
        &self,
        operation: &'static str,
        header: FeatureHeader,
        mut data: Vec<u8>,
    ) -> Result<Vec<u8>, TransportError> {
        // Ours are for vfio-user, and no kernel is asked for them.
        if header.feature() >= Feature::VFIO_MIGRATE_PRECOPY_INFO
            && !header.operation().contains(FeatureFlags::PROBE)
        {
            return Err(TransportError::Errno { operation, errno: Errno::ENOTTY });
        }
        self.slow(operation, move |it| {
            it.kernel.feature(it.device(), header.argsz, header.flags, &mut data)?;
            Ok(data)
        })
    }

    /// What devices reach through this one's container or address space.
    pub(crate) fn space(
        &self,
        operation: &'static str,
    ) -> Result<Arc<dyn Space>, TransportError> {
        let space = self.inner.descriptors().space.clone();
        // Whoever handed the descriptors in maps, too.
        space.ok_or(TransportError::Errno { operation, errno: Errno::ENOTTY })
    }

    pub(crate) fn region(
        &self,
        operation: &'static str,
        index: u32,
    ) -> Result<Region, TransportError> {
        let known = || self.inner.regions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(region) = known().get(&index) {
            return Ok(region.clone());
        }
        let bytes = self.quick(operation, move |it| {
            let mut room = size_of::<RawRegion>();
            loop {
                let mut buffer = vec![0_u64; room.div_ceil(8)];
                it.kernel.region_info(it.device(), index, &mut buffer)?;
                match region::wanted(buffer.as_bytes()) {
                    // Twice as much at least, so that this ends soon.
                    Some(more) if more <= region::MOST_BYTES => room = more.max(2 * room),
                    _ => return Ok(buffer.as_bytes().to_vec()),
                }
            }
        })?;
        let region = region::parse(index, &bytes).map_err(|what| {
            TransportError::Broken { operation, what: what.to_owned() }
        })?;
        let mut known = known();
        if known.len() < MOST_REGIONS {
            known.insert(index, region.clone());
        }
        Ok(region)
    }

    /// Where in the descriptor an access to a region begins; EINVAL where it leaves it.
    pub(crate) fn within(
        &self,
        operation: &'static str,
        index: u32,
        offset: u64,
        length: usize,
    ) -> Result<u64, TransportError> {
        let region = self.region(operation, index)?;
        // The next region is behind, and the kernel does not mind.
        let inside =
            offset.checked_add(length as u64).is_some_and(|end| end <= region.info.size);
        match inside {
            true => Ok(region.offset + offset),
            false => Err(TransportError::Errno { operation, errno: Errno::EINVAL }),
        }
    }
}

impl Inner {
    pub(crate) fn descriptors(&self) -> Arc<Descriptors> {
        let descriptors = self.descriptors.as_ref();
        Arc::clone(descriptors.expect("they are there until the last handle goes"))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let descriptors = self.descriptors.take();
        // A device that is lost is closed by the thread that is stuck, when it comes back.
        if self.workers.lost().is_lost() {
            let_go(descriptors);
            return;
        }
        let limit = self.deadlines.slow;
        if let Err(error) = self.workers.run("close", limit, move || drop(descriptors)) {
            tracing::warn!(device = self.name, "{error}");
        }
    }
}

/// What the kernel said, or what this side says in its place.
pub(crate) fn refused(operation: &'static str, error: &io::Error) -> TransportError {
    TransportError::Errno { operation, errno: errno(error) }
}

pub(crate) fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EINVAL, Errno)
}
