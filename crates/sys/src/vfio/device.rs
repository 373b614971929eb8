//! A device: what it consists of, its features, its interrupts, its state.

#![expect(unsafe_code, reason = "ioctls")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use abi::device_info::{DEVICE_GET_INFO, DEVICE_RESET, DeviceInfo};
use abi::dma_logging::{Control, MIN_REPORT_PAGE, Range, Report};
use abi::feature::{DEVICE_FEATURE, Feature, FeatureFlags, FeatureHeader};
use abi::irq::{DEVICE_GET_IRQ_INFO, DEVICE_SET_IRQS, IrqInfo, IrqSet, IrqSetFlags};
use abi::region::{DEVICE_GET_REGION_INFO, RegionInfo};
use abi::v2::DeviceMigState;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{call, exchange, exchange_bytes, invalid, size, with_bits};

/// The most bytes of one feature that go through [`feature`], header included.
pub const MOST_FEATURE: usize = 64 << 10;

/// The last feature that is known to this room; what later ones point to is not.
const LAST_KNOWN: Feature = Feature::ZPCI_ERROR;

/// `VFIO_DEVICE_GET_INFO`, without capabilities.
///
/// # Errors
/// As every function here: the errno. EINVAL on a device that is not bound yet.
pub fn info(device: impl AsFd) -> io::Result<DeviceInfo> {
    let mut info = DeviceInfo {
        argsz: size::<DeviceInfo>(),
        flags: 0,
        num_regions: 0,
        num_irqs: 0,
        cap_offset: 0,
        pad: 0,
    };
    // SAFETY: its structure, which points nowhere.
    unsafe { exchange(device, DEVICE_GET_INFO, &mut info) }?;
    Ok(info)
}

/// `VFIO_DEVICE_GET_REGION_INFO`, with as many capabilities as `buffer` has room for.
/// Its `argsz` then says how many bytes there would be.
///
/// # Errors
/// EINVAL where there is no such region, or no room for a [`RegionInfo`].
pub fn region_info(device: impl AsFd, index: u32, buffer: &mut [u64]) -> io::Result<()> {
    let bytes = buffer.as_mut_bytes();
    let argsz = u32::try_from(bytes.len()).map_err(|_| invalid("too much room"))?;
    let head = RegionInfo { argsz, flags: 0, index, cap_offset: 0, size: 0, offset: 0 };
    head.write_to_prefix(bytes).map_err(|_| invalid("no room for a region's info"))?;
    // SAFETY: it writes no more than `argsz` bytes, which are the buffer's, and they
    // point nowhere.
    unsafe { exchange_bytes(device, DEVICE_GET_REGION_INFO, buffer) }.map(drop)
}

/// `VFIO_DEVICE_GET_IRQ_INFO`.
///
/// # Errors
/// The errno: EINVAL where there is no such index.
pub fn irq_info(device: impl AsFd, index: u32) -> io::Result<IrqInfo> {
    let mut info = IrqInfo { argsz: size::<IrqInfo>(), flags: 0, index, count: 0 };
    // SAFETY: its structure, which points nowhere.
    unsafe { exchange(device, DEVICE_GET_IRQ_INFO, &mut info) }?;
    Ok(info)
}

/// What `VFIO_DEVICE_SET_IRQS` is about, from its first vector on.
#[derive(Clone, Copy, Debug)]
pub enum IrqData<'a> {
    /// That many vectors.
    None(u32),
    /// The vectors that are `true`.
    Bools(&'a [bool]),
    /// By eventfds, one a vector.
    Events(&'a [BorrowedFd<'a>]),
    /// By eventfds no longer, that many.
    Unbind(u32),
}

/// The most vectors of one call: more than the 2048 of MSI-X are nobody's.
const MOST_VECTORS: usize = 4096;

/// `VFIO_DEVICE_SET_IRQS`. `action` is one of the actions of [`IrqSetFlags`].
///
/// # Errors
/// The errno; EINVAL for more vectors than any device has.
pub fn set_irqs(
    device: impl AsFd,
    index: u32,
    start: u32,
    action: IrqSetFlags,
    data: IrqData<'_>,
) -> io::Result<()> {
    let (kind, count, tail) = match data {
        IrqData::None(count) => (IrqSetFlags::DATA_NONE, count as usize, Vec::new()),
        IrqData::Bools(bools) => {
            let bytes = bools.iter().map(|fires| u8::from(*fires)).collect();
            (IrqSetFlags::DATA_BOOL, bools.len(), bytes)
        }
        IrqData::Events(fds) => {
            let bytes = fds.iter().flat_map(|fd| fd.as_raw_fd().to_ne_bytes()).collect();
            (IrqSetFlags::DATA_EVENTFD, fds.len(), bytes)
        }
        IrqData::Unbind(count) => {
            let count = count as usize;
            let bytes = (-1_i32).to_ne_bytes().repeat(count.min(MOST_VECTORS));
            (IrqSetFlags::DATA_EVENTFD, count, bytes)
        }
    };
    if count > MOST_VECTORS {
        return Err(invalid("more vectors than any device has"));
    }
    let bytes = size_of::<IrqSet>() + tail.len();
    let mut buffer = vec![0_u64; bytes.div_ceil(8)];
    let set = IrqSet {
        argsz: bytes as u32,
        flags: (kind | action).bits(),
        index,
        start,
        count: count as u32,
    };
    let (head, rest) = buffer.as_mut_bytes().split_at_mut(size_of::<IrqSet>());
    head.copy_from_slice(set.as_bytes());
    rest[..tail.len()].copy_from_slice(&tail);
    // SAFETY: `argsz` says how long it is, the kernel only reads it, and what it holds
    // are numbers and descriptors that live as long as the call.
    unsafe { exchange_bytes(device, DEVICE_SET_IRQS, &mut buffer) }.map(drop)
}

/// `VFIO_DEVICE_RESET`.
///
/// # Errors
/// The errno: EINVAL where the device cannot be reset.
pub fn reset(device: impl AsFd) -> io::Result<()> {
    // SAFETY: it takes no argument.
    unsafe { call(device, DEVICE_RESET, std::ptr::null_mut()) }.map(drop)
}

/// `VFIO_DEVICE_FEATURE` as such: any `argsz`, any flags, and the data of the feature,
/// which the kernel may write. For features whose data holds neither pointers nor
/// descriptors; for all of them where the flags say PROBE.
///
/// # Errors
/// The errno. EOPNOTSUPP, without asking, for features with pointers or descriptors
/// ([`log_start`] and [`log_report`] are for those), and for data of an unknown one, or
/// without an operation, that is not all 0. A session that a SET of the state opens is lost.
pub fn feature(
    device: impl AsFd,
    argsz: u32,
    flags: u32,
    data: &mut [u8],
) -> io::Result<()> {
    let header = FeatureHeader { argsz, flags };
    let operation = header.operation();
    if !operation.contains(FeatureFlags::PROBE)
        && !harmless(header.feature(), operation, data)
    {
        return Err(rustix::io::Errno::OPNOTSUPP.into());
    }
    let bytes = (argsz as usize).max(FeatureHeader::SIZE + data.len());
    if bytes > MOST_FEATURE {
        return Err(invalid("more data than a feature has"));
    }
    let mut buffer = vec![0_u64; bytes.div_ceil(8)];
    let (head, rest) = buffer.as_mut_bytes().split_at_mut(FeatureHeader::SIZE);
    head.copy_from_slice(header.as_bytes());
    rest[..data.len()].copy_from_slice(data);
    let state = header.feature() == Feature::MIG_DEVICE_STATE
        && header.operation() == FeatureFlags::SET;
    if state && let Some(data_fd) = rest.get_mut(4..8) {
        data_fd.fill(0xff);
    }
    // SAFETY: the kernel goes no further than `argsz`, which the buffer has, and its
    // data points nowhere: `harmless`.
    unsafe { exchange_bytes(device, DEVICE_FEATURE, &mut buffer) }?;
    if state
        && let Ok((answer, _)) =
            DeviceMigState::read_from_prefix(&buffer.as_bytes()[FeatureHeader::SIZE..])
        && answer.data_fd >= 0
    {
        // SAFETY: it was -1 before, so the kernel has just made it, and for nobody else.
        drop(unsafe { OwnedFd::from_raw_fd(answer.data_fd) });
    }
    data.copy_from_slice(&buffer.as_bytes()[FeatureHeader::SIZE..][..data.len()]);
    Ok(())
}

/// Whether the data of a feature can do no harm to this process: no pointer that is
/// written through, and no descriptor that would be lost.
fn harmless(feature: Feature, operation: FeatureFlags, data: &[u8]) -> bool {
    let zeros = data.iter().all(|byte| *byte == 0);
    if !operation.intersects(FeatureFlags::GET | FeatureFlags::SET) {
        // A device refuses it. But on a container the same number is DIRTY_PAGES, whose
        // GET_BITMAP has a pointer, and is told from this by the operation alone.
        return zeros;
    }
    match feature {
        Feature::DMA_LOGGING_START
        | Feature::DMA_LOGGING_REPORT
        | Feature::LOW_POWER_ENTRY_WITH_WAKEUP
        | Feature::DMA_BUF
        | Feature::ZPCI_ERROR => false,
        feature => feature <= LAST_KNOWN || zeros,
    }
}

/// The room for a header and the longest structure of a feature, in words.
const FRAME: usize = (FeatureHeader::SIZE + size_of::<Report>()).div_ceil(8);

/// One operation on a feature, with its structure.
///
/// # Safety
/// `T` must be the structure of `feature`, and what it points to must be valid as far as
/// the kernel goes.
unsafe fn framed<T: FromBytes + IntoBytes + Immutable>(
    device: impl AsFd,
    feature: Feature,
    operation: FeatureFlags,
    data: &mut T,
) -> io::Result<()> {
    const { assert!(size_of::<T>() + FeatureHeader::SIZE <= FRAME * 8) };
    let mut frame = [0_u64; FRAME];
    let (head, rest) = frame.as_mut_bytes().split_at_mut(FeatureHeader::SIZE);
    head.copy_from_slice(FeatureHeader::new(feature, operation, size::<T>()).as_bytes());
    rest[..size_of::<T>()].copy_from_slice(data.as_bytes());
    // SAFETY: the header says how long it is, and the caller promised the rest.
    unsafe { exchange_bytes(device, DEVICE_FEATURE, &mut frame) }?;
    let (_, rest) = frame.as_bytes().split_at(FeatureHeader::SIZE);
    if let Ok((answer, _)) = T::read_from_prefix(rest) {
        *data = answer;
    }
    Ok(())
}

/// Reads a part of a region, once: pread(2), where the descriptor has the region.
///
/// # Errors
/// The errno.
pub fn read_at(device: impl AsFd, into: &mut [u8], at: u64) -> io::Result<usize> {
    Ok(rustix::io::pread(device, into, at)?)
}

/// Writes a part of a region, once: pwrite(2).
///
/// # Errors
/// The errno.
pub fn write_at(device: impl AsFd, from: &[u8], at: u64) -> io::Result<usize> {
    Ok(rustix::io::pwrite(device, from, at)?)
}

/// SET of [`Feature::MIG_DEVICE_STATE`]: the state that the kernel gives back, and the
/// descriptor of the session that the last arc opened.
///
/// # Errors
/// The errno. The state may have changed all the same.
pub fn set_state(device: impl AsFd, target: u32) -> io::Result<(u32, Option<OwnedFd>)> {
    let mut state = DeviceMigState { device_state: target, data_fd: -1 };
    let (feature, set) = (Feature::MIG_DEVICE_STATE, FeatureFlags::SET);
    // SAFETY: its structure, which points nowhere.
    unsafe { framed(device, feature, set, &mut state) }?;
    let DeviceMigState { device_state, data_fd } = state;
    let session = (data_fd >= 0).then(|| {
        // SAFETY: the call succeeded and wrote it, so the kernel has just made it, and
        // for nobody else.
        unsafe { OwnedFd::from_raw_fd(data_fd) }
    });
    Ok((device_state, session))
}

/// SET of [`Feature::DMA_LOGGING_START`]: the page size in bytes that the device chose.
///
/// # Errors
/// The errno: E2BIG for more ranges than the kernel takes.
pub fn log_start(device: impl AsFd, page: u64, ranges: &[Range]) -> io::Result<u64> {
    let mut control = Control {
        page_size: page,
        num_ranges: u32::try_from(ranges.len())
            .map_err(|_| invalid("too many ranges"))?,
        reserved: 0,
        ranges: ranges.as_ptr().expose_provenance() as u64,
    };
    let (feature, set) = (Feature::DMA_LOGGING_START, FeatureFlags::SET);
    // SAFETY: its structure; the kernel reads as many ranges as it says.
    unsafe { framed(device, feature, set, &mut control) }?;
    Ok(control.page_size)
}

/// GET of [`Feature::DMA_LOGGING_REPORT`]: sets the bits of what was written in a range,
/// one for each `page` bytes, and clears them in the device. `bits` is cleared before.
///
/// # Errors
/// The errno; EINVAL, without asking, where `bits` has no room for the range.
pub fn log_report(
    device: impl AsFd,
    iova: u64,
    length: u64,
    page: u64,
    bits: &mut [u64],
) -> io::Result<()> {
    bits.fill(0);
    // What the kernel refuses is left to it, without a place to write to; and so is a
    // range of nothing, which it does not refuse, and whose end it takes for 2^64.
    let senseless = length == 0
        || page < MIN_REPORT_PAGE
        || !page.is_power_of_two()
        || iova.checked_add(length).is_none();
    if !senseless && length.div_ceil(page) > bits.len() as u64 * 64 {
        return Err(rustix::io::Errno::INVAL.into());
    }
    let (feature, get) = (Feature::DMA_LOGGING_REPORT, FeatureFlags::GET);
    with_bits(bits, |place| {
        let bitmap = if senseless { 0 } else { place };
        let mut report = Report { iova, length, page_size: page, bitmap };
        // SAFETY: its structure; there is room for a bit for each page of the range, and
        // for what the kernel sets behind them.
        unsafe { framed(device, feature, get, &mut report) }
    })
}
