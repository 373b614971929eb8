//! A kernel that does as it is told.

mod space;

use std::collections::{HashMap, VecDeque};
use std::ffi::CStr;
use std::io::{self, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use abi::device_info::DeviceInfo;
use abi::dma_logging::Range;
use abi::errno::Errno;
use abi::feature::{Feature, FeatureFlags, FeatureHeader};
use abi::group::GroupStatus;
use abi::irq::{IrqInfo, IrqSetFlags};
use abi::region::{RegionFlags, RegionInfo};
use abi::v2::PrecopyInfo;
use control::{AnyDevice, open_any};
use states::v2::{Capabilities, State, plan};
use sys::SharedMemory;
use sys::vfio::device::IrqData;
use zerocopy::IntoBytes;

use self::space::FakeSpace;
use crate::device::Deadlines;
use crate::kernel::{Kernel, LogQuestion, Space};
use crate::{Host, HostOptions, Roots};

/// How long tests wait for what comes soon.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Waits until something holds, which it will soon.
pub(crate) fn wait_until(holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < SOON, "it never came");
        std::thread::yield_now();
    }
}

/// The kernel of a test: everything works, but what its script says otherwise.
#[derive(Clone)]
pub(super) struct Fake(Arc<Mutex<Script>>);

#[derive(Debug)]
pub(super) enum Set {
    /// An errno, and the state that the device is in then.
    Fails(Errno, State),
    /// Success without a descriptor.
    LosesSession,
    /// Success, and the guest resets the device at that moment.
    Reset,
}

#[derive(Debug)]
pub(super) enum Read1 {
    Data(Vec<u8>),
    Errno(Errno),
}

pub(super) struct Script {
    /// What was asked, in order.
    pub(super) calls: Vec<String>,
    /// What opening a file of this name, or a call of this name, fails with.
    pub(super) fails: HashMap<&'static str, Errno>,
    pub(super) group_flags: u32,
    pub(super) capabilities: u64,
    pub(super) state: State,
    pub(super) sets: VecDeque<Set>,
    pub(super) reads: VecDeque<Read1>,
    /// How many bytes each write takes, or why none; what is not said is taken whole.
    pub(super) writes: VecDeque<Result<usize, Errno>>,
    pub(super) written: Vec<u8>,
    /// Features other than those of the state, by their answers to GET and SET.
    pub(super) features: HashMap<Feature, Result<Vec<u8>, Errno>>,
    pub(super) precopy: VecDeque<Result<PrecopyInfo, Errno>>,
    /// What is there to read once somebody has asked what pre-copy has left.
    pub(super) produced: VecDeque<Vec<u8>>,
    /// Region 0, behind 1 MiB of the descriptor that are another's.
    pub(super) region: Vec<u8>,
    /// The bits of the next report, of the device's log or the container's.
    pub(super) bits: Vec<u64>,
    /// What a device writes at the last moment before the next unmapping.
    pub(super) late: Vec<u64>,
    pub(super) mapped: Vec<(u64, u64)>,
    /// Whether the device's IOMMU tracks dirty pages.
    pub(super) iommu: bool,
    /// The page table that no device can be attached to.
    pub(super) refuses: Option<u32>,
    /// What the next call of this name waits for.
    hangs: HashMap<&'static str, Receiver<()>>,
    /// The other ends of descriptors, by what they were called.
    ends: Vec<(&'static str, UnixStream)>,
    /// Whether no session was open any more, each time that a device let go of the kernel.
    pub(super) data_was_closed: Vec<bool>,
}

pub(super) const REGION_AT: u64 = 1 << 20;

fn raw(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno.0)
}

impl Fake {
    pub(super) fn new() -> Fake {
        let size = 5_u64.to_ne_bytes().to_vec();
        Fake(Arc::new(Mutex::new(Script {
            calls: Vec::new(),
            fails: HashMap::new(),
            group_flags: 1,
            capabilities: 7,
            state: State::Running,
            sets: VecDeque::new(),
            reads: VecDeque::new(),
            writes: VecDeque::new(),
            written: Vec::new(),
            features: [
                (Feature::MIG_DATA_SIZE, Ok(size)),
                (Feature::MIG_PRECOPY_INFO_V2, Ok(Vec::new())),
            ]
            .into(),
            precopy: VecDeque::new(),
            produced: VecDeque::new(),
            region: vec![0; 4096],
            bits: Vec::new(),
            late: Vec::new(),
            mapped: Vec::new(),
            iommu: false,
            refuses: None,
            hangs: HashMap::new(),
            ends: Vec::new(),
            data_was_closed: Vec::new(),
        })))
    }

    pub(super) fn script(&self) -> MutexGuard<'_, Script> {
        self.0.lock().unwrap()
    }

    /// The next call of this name does not come back before the sender is used or gone.
    pub(super) fn hang(&self, call: &'static str) -> Sender<()> {
        let (go_on, wait) = channel();
        self.script().hangs.insert(call, wait);
        go_on
    }

    /// A call: it is noted, may hang, and may fail.
    fn ask(
        &self,
        call: &'static str,
        what: String,
    ) -> io::Result<MutexGuard<'_, Script>> {
        let mut script = self.script();
        script.calls.push(format!("{call} {what}").trim_end().to_owned());
        if let Some(wait) = script.hangs.remove(call) {
            drop(script);
            let _ = wait.recv_timeout(SOON);
            script = self.script();
        }
        match script.fails.get(call) {
            Some(errno) => Err(raw(*errno)),
            None => Ok(script),
        }
    }

    fn descriptor(script: &mut Script, name: &'static str) -> io::Result<OwnedFd> {
        let (near, far) = UnixStream::pair()?;
        far.set_nonblocking(true)?;
        script.ends.push((name, far));
        Ok(near.into())
    }

    /// Whether every descriptor of this name that was given out is closed.
    pub(super) fn closed(&self, name: &str) -> bool {
        self.script().closed(name)
    }

    /// The device of the group 7, opened.
    pub(super) fn open(&self) -> Host {
        let place = "/dev/vfio/devices/vfio0".parse().unwrap();
        Host::open_with(Arc::new(self.clone()), &place, options()).unwrap()
    }

    pub(super) fn device(&self) -> AnyDevice {
        open_any(Arc::new(self.open())).unwrap()
    }

    pub(super) fn was_asked(&self, call: &str) -> bool {
        self.script().calls.iter().any(|known| known.starts_with(call))
    }
}

/// Nowhere in the system, and with deadlines that no test runs into by chance.
pub(super) fn options() -> HostOptions {
    HostOptions {
        name: Some("uart0".to_owned()),
        deadlines: Deadlines { call: SOON, slow: SOON },
        roots: Roots {
            dev: "/nonexistent/dev".into(),
            sys: "/nonexistent/sys".into(),
            proc: "/nonexistent/proc".into(),
        },
        small_pages: false,
    }
}

impl Script {
    fn closed(&mut self, name: &str) -> bool {
        let ends = self.ends.iter_mut().filter(|(known, _)| *known == name);
        ends.into_iter().all(|(_, end)| matches!(end.read(&mut [0]), Ok(0)))
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        // A device has one for itself, which goes after its descriptor.
        if let Ok(mut script) = self.0.lock() {
            let closed = script.closed("data");
            script.data_was_closed.push(closed);
        }
    }
}

impl Kernel for Fake {
    fn open(&self, path: &Path) -> io::Result<OwnedFd> {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let mut script = self.ask("open", path.display().to_string())?;
        if let Some(errno) = script.fails.get(name.as_str()) {
            return Err(raw(*errno));
        }
        let name = if name.starts_with("vfio0") { "device" } else { "node" };
        Fake::descriptor(&mut script, name)
    }

    fn api_version(&self, _: BorrowedFd<'_>) -> io::Result<i32> {
        self.ask("api_version", String::new()).map(|_| 0)
    }

    fn check_extension(&self, _: BorrowedFd<'_>, extension: u32) -> io::Result<i32> {
        self.ask("check_extension", extension.to_string()).map(|_| 1)
    }

    fn set_iommu(&self, _: BorrowedFd<'_>, extension: u32) -> io::Result<()> {
        self.ask("set_iommu", extension.to_string()).map(drop)
    }

    fn group_status(&self, _: BorrowedFd<'_>) -> io::Result<GroupStatus> {
        let script = self.ask("group_status", String::new())?;
        Ok(GroupStatus { argsz: 8, flags: script.group_flags })
    }

    fn join(&self, _: BorrowedFd<'_>, _: BorrowedFd<'_>) -> io::Result<()> {
        self.ask("join", String::new()).map(drop)
    }

    fn device(&self, _: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
        let mut script = self.ask("device", name.to_str().unwrap().to_owned())?;
        Fake::descriptor(&mut script, "device")
    }

    fn container(&self, container: OwnedFd) -> Box<dyn Space> {
        Box::new(FakeSpace { fake: self.clone(), ioas: None, _fd: container })
    }

    fn bind(&self, _: BorrowedFd<'_>, _: BorrowedFd<'_>) -> io::Result<u32> {
        let mut script = self.ask("bind", String::new())?;
        script.fails.remove("info");
        Ok(1)
    }

    fn attach(&self, _: BorrowedFd<'_>, page_table: u32) -> io::Result<()> {
        let script = self.ask("attach", page_table.to_string())?;
        match script.refuses == Some(page_table) {
            true => Err(raw(Errno::EINVAL)),
            false => Ok(()),
        }
    }

    fn ioas(&self, iommu: OwnedFd) -> io::Result<Box<dyn Space>> {
        drop(self.ask("ioas", String::new())?);
        Ok(Box::new(FakeSpace { fake: self.clone(), ioas: Some(2), _fd: iommu }))
    }

    fn info(&self, _: BorrowedFd<'_>) -> io::Result<DeviceInfo> {
        drop(self.ask("info", String::new())?);
        // On no bus, which asks for less of a config space.
        Ok(DeviceInfo {
            argsz: 24,
            flags: 4,
            num_regions: 1,
            num_irqs: 1,
            cap_offset: 0,
            pad: 0,
        })
    }

    fn region_info(
        &self,
        _: BorrowedFd<'_>,
        index: u32,
        buffer: &mut [u64],
    ) -> io::Result<()> {
        let script = self.ask("region_info", index.to_string())?;
        if index > 0 {
            return Err(raw(Errno::EINVAL));
        }
        let info = RegionInfo {
            argsz: 32,
            flags: (RegionFlags::READ | RegionFlags::WRITE).bits(),
            index,
            cap_offset: 0,
            size: script.region.len() as u64,
            offset: REGION_AT,
        };
        info.write_to_prefix(buffer.as_mut_bytes()).unwrap();
        Ok(())
    }

    fn irq_info(&self, _: BorrowedFd<'_>, index: u32) -> io::Result<IrqInfo> {
        drop(self.ask("irq_info", index.to_string())?);
        Ok(IrqInfo { argsz: 16, flags: 1, index, count: 2 })
    }

    fn set_irqs(
        &self,
        _: BorrowedFd<'_>,
        index: u32,
        start: u32,
        action: IrqSetFlags,
        data: IrqData<'_>,
    ) -> io::Result<()> {
        let data = match data {
            IrqData::None(count) => format!("none {count}"),
            IrqData::Bools(bools) => format!("{bools:?}"),
            IrqData::Events(fds) => format!("{} events", fds.len()),
            IrqData::Unbind(count) => format!("unbind {count}"),
        };
        let action = action.bits();
        self.ask("set_irqs", format!("{index}:{start} {action:#x} {data}")).map(drop)
    }

    fn reset(&self, _: BorrowedFd<'_>) -> io::Result<()> {
        let mut script = self.ask("reset", String::new())?;
        script.state = State::Running;
        Ok(())
    }

    fn feature(
        &self,
        _: BorrowedFd<'_>,
        argsz: u32,
        flags: u32,
        data: &mut [u8],
    ) -> io::Result<()> {
        let header = FeatureHeader { argsz, flags };
        let (feature, operation) = (header.feature(), header.operation());
        let script = self.ask("feature", format!("{feature} {:#x}", operation.bits()))?;
        let answer = match feature {
            // As a driver without migration.
            Feature::MIGRATION if script.capabilities == 0 => {
                return Err(raw(Errno::ENOTTY));
            }
            Feature::MIGRATION => Ok(script.capabilities.to_ne_bytes().to_vec()),
            Feature::MIG_DEVICE_STATE => {
                Ok([script.state.number(), u32::MAX].as_bytes().to_vec())
            }
            feature => match script.features.get(&feature) {
                Some(answer) => answer.clone(),
                None => return Err(raw(Errno::ENOTTY)),
            },
        };
        if operation.contains(FeatureFlags::PROBE) {
            return Ok(());
        }
        let answer = answer.map_err(raw)?;
        data[..answer.len()].copy_from_slice(&answer);
        Ok(())
    }

    fn set_state(
        &self,
        _: BorrowedFd<'_>,
        target: u32,
    ) -> io::Result<(u32, Option<OwnedFd>)> {
        let target = State::from_number(target).unwrap();
        let mut script = self.ask("set_state", target.name().to_owned())?;
        let set = script.sets.pop_front();
        let capabilities = Capabilities::try_from_flags(script.capabilities).unwrap();
        let Ok(path) = plan(capabilities, script.state, target) else {
            return Err(raw(Errno::EINVAL));
        };
        if let Some(Set::Fails(errno, state)) = set {
            script.state = state;
            return Err(raw(errno));
        }
        script.state = target;
        if let Some(Set::Reset) = set {
            script.state = State::Running;
        }
        let opens = path.opens_session() && !matches!(set, Some(Set::LosesSession));
        let data = match opens {
            true => Some(Fake::descriptor(&mut script, "data")?),
            false => None,
        };
        Ok((target.number(), data))
    }

    fn log_start(
        &self,
        _: BorrowedFd<'_>,
        page: u64,
        ranges: &[Range],
    ) -> io::Result<u64> {
        self.ask("log_start", format!("{page:#x} {}", ranges.len())).map(|_| page)
    }

    fn log_report(
        &self,
        _: BorrowedFd<'_>,
        asked: LogQuestion,
        bits: &mut [u64],
    ) -> io::Result<()> {
        let mut script =
            self.ask("log_report", format!("{:#x}+{:#x}", asked.iova, asked.length))?;
        let known = std::mem::take(&mut script.bits);
        bits.iter_mut().zip(known).for_each(|(bit, known)| *bit = known);
        Ok(())
    }

    fn read_at(&self, _: BorrowedFd<'_>, into: &mut [u8], at: u64) -> io::Result<usize> {
        let mut script = self.ask("read_at", format!("{at:#x}+{}", into.len()))?;
        if let Some(Read1::Errno(errno)) = script.reads.pop_front() {
            return Err(raw(errno));
        }
        // Four bytes at a time, as trapping drivers do.
        let at = usize::try_from(at - REGION_AT).unwrap();
        let length = into.len().min(4);
        into[..length].copy_from_slice(&script.region[at..at + length]);
        Ok(length)
    }

    fn write_at(&self, _: BorrowedFd<'_>, from: &[u8], at: u64) -> io::Result<usize> {
        let mut script = self.ask("write_at", format!("{at:#x}+{}", from.len()))?;
        let at = usize::try_from(at - REGION_AT).unwrap();
        let length = from.len().min(4);
        script.region[at..at + length].copy_from_slice(&from[..length]);
        Ok(length)
    }

    fn map(
        &self,
        _: BorrowedFd<'_>,
        at: u64,
        length: u64,
        _: bool,
    ) -> io::Result<SharedMemory> {
        drop(self.ask("map", format!("{at:#x}+{length:#x}"))?);
        SharedMemory::create("region", length)
    }

    fn read(&self, _: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<usize> {
        let mut script = self.ask("read", into.len().to_string())?;
        match script.reads.pop_front() {
            Some(Read1::Data(data)) => {
                let length = data.len().min(into.len());
                into[..length].copy_from_slice(&data[..length]);
                Ok(length)
            }
            Some(Read1::Errno(errno)) => Err(raw(errno)),
            None => Ok(0),
        }
    }

    fn write(&self, _: BorrowedFd<'_>, from: &[u8]) -> io::Result<usize> {
        let mut script = self.ask("write", from.len().to_string())?;
        let taken = match script.writes.pop_front() {
            Some(Ok(most)) => most.min(from.len()),
            Some(Err(errno)) => return Err(raw(errno)),
            None => from.len(),
        };
        script.written.extend_from_slice(&from[..taken]);
        Ok(taken)
    }

    fn precopy_info(
        &self,
        _: BorrowedFd<'_>,
        asked: PrecopyInfo,
    ) -> io::Result<PrecopyInfo> {
        let mut script = self.ask("precopy_info", format!("{:#x}", asked.flags))?;
        if let Some(data) = script.produced.pop_front() {
            script.reads.push_back(Read1::Data(data));
        }
        match script.precopy.pop_front() {
            Some(answer) => answer.map_err(raw),
            // As kernels before the opt-in: the flags come back as they were.
            None => Ok(asked),
        }
    }
}
