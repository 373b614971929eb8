//! A server that is not ours: libvfio-user's ways, each of which can be changed.
#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use abi::errno::Errno;
use abi::feature::{Feature, FeatureFlags, FeatureHeader};
use abi::irq::IrqSet;
use abi::v2::DeviceMigState;
use abi::vfio_user::{Command, DmaMap, DmaUnmap, Header, MigData, RegionAccess};
use states::v2::{Capabilities, State, plan};
use vfio_migrate_vfio_user::codec::{parse_header, parse_log_report, parse_log_start};
use zerocopy::{FromBytes, IntoBytes};

type Answer = Result<Vec<u8>, Errno>;

/// What it does its own way. The default is libvfio-user's samples.
#[derive(Clone, Debug)]
pub(crate) struct Ways {
    /// Of its VERSION.
    pub(crate) minor: u16,
    /// The `capabilities` of its VERSION.
    pub(crate) says: String,
    /// `MIG_DATA_READ` is answered with as many bytes as were asked for.
    pub(crate) pads: bool,
    /// What it says `argsz` is in replies to `MIG_DATA_READ`, beside the truth.
    pub(crate) argsz_more: u32,
    /// In STOP it takes nothing but region accesses, features and data.
    pub(crate) refuses_in_stop: bool,
    /// `STOP_COPY` starts the data over.
    pub(crate) restarts: bool,
    /// Answers by a header alone wherever nothing is asked for.
    pub(crate) bare: bool,
    /// The body of the request comes back with an error.
    pub(crate) error_body: bool,
    /// Errors have no number.
    pub(crate) no_errno: bool,
    /// What it says to features that it does not know.
    pub(crate) unknown: Errno,
    /// Its dirty log reports whole mappings only.
    pub(crate) whole_reports: bool,
    /// The page size that its dirty log chooses.
    pub(crate) log_page: u64,
    /// Its dirty log answers a report with success and nothing else.
    pub(crate) empty_reports: bool,
}

impl Default for Ways {
    fn default() -> Ways {
        Ways {
            minor: 2,
            says: r#""max_msg_fds":8,"max_data_xfer_size":1048576,
                     "migration":{"pgsize":4096}"#
                .to_owned(),
            pads: true,
            argsz_more: 0,
            refuses_in_stop: true,
            restarts: true,
            bare: false,
            error_body: false,
            no_errno: false,
            unknown: Errno::EINVAL,
            whole_reports: true,
            log_page: 4096,
            empty_reports: false,
        }
    }
}

/// What became of it.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The device's data: its length in 8 bytes first.
    pub(crate) device: Vec<u8>,
    /// Whether it is a guest's that came by migration, and was not reset since.
    pub(crate) loaded: bool,
    /// Whether it ran so.
    pub(crate) ran_loaded: bool,
    pub(crate) state: u32,
    /// Commands and lengths of their bodies, in order.
    pub(crate) asked: Vec<(Command, usize)>,
    /// Ways through PRE_COPY.
    pub(crate) pre_copies: usize,
    /// Start, length, and whether a descriptor came with it.
    pub(crate) maps: Vec<(u64, u64, bool)>,
    /// Vectors that were bound, in one message each.
    pub(crate) bound: Vec<u32>,
    /// Pages that the device wrote.
    pub(crate) dirty: Vec<u64>,
    pub(crate) logging: bool,
    /// It lost its place in a message that was too long for it.
    pub(crate) lost: bool,
    received: Vec<u8>,
    cursor: usize,
}

/// The server.
pub(crate) struct Foreign {
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

/// More in one body, and libvfio-user loses its place.
const MOST_BODY: usize = 36520;

impl Foreign {
    /// Starts one whose device holds `content`, and gives the other end of its socket.
    pub(crate) fn start(ways: Ways, content: &[u8]) -> (Foreign, OwnedFd) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let device = [&(content.len() as u64).to_ne_bytes(), content].concat();
        let state = State::Running.number();
        let seen = Arc::new(Mutex::new(Seen { device, state, ..Seen::default() }));
        let mut server = Server { ways, socket: near, seen: Arc::clone(&seen) };
        let thread = std::thread::spawn(move || while server.serve().is_some() {});
        (Foreign { seen, thread: Some(thread) }, far.into())
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    /// The device's data, without the length.
    pub(crate) fn content(&self) -> Vec<u8> {
        self.seen().device[8..].to_vec()
    }

    /// How often it was asked that.
    pub(crate) fn times(&self, command: Command) -> usize {
        self.seen().asked.iter().filter(|(asked, _)| *asked == command).count()
    }
}

impl Drop for Foreign {
    /// Its client has to be gone.
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            thread.join().unwrap();
        }
    }
}

struct Server {
    ways: Ways,
    socket: UnixStream,
    seen: Arc<Mutex<Seen>>,
}

impl Server {
    /// Serves one message; `None` when there are no more.
    fn serve(&mut self) -> Option<()> {
        let mut header = [0; 16];
        let mut fds = Vec::new();
        let socket = self.socket.as_fd();
        let len = sys::socket::recv_with_fds(socket, &mut header, 64, &mut fds, false);
        let len = len.ok().filter(|len| *len > 0)?;
        self.socket.read_exact(&mut header[len..]).ok()?;
        let header = parse_header(&header);
        let mut body = vec![0; header.msg_size as usize - 16];
        self.socket.read_exact(&mut body).ok()?;
        let command = Command(header.command);
        let mut seen = self.seen.lock().unwrap();
        seen.asked.push((command, body.len()));
        if body.len() > MOST_BODY {
            seen.lost = true;
            return None;
        }
        let answer = handle(&self.ways, &mut seen, command, &body, fds.len());
        drop(seen);
        if header.flags & 0x10 != 0 {
            return Some(());
        }
        self.socket.write_all(&self.reply(&header, &body, answer)).ok()
    }

    fn reply(&self, header: &Header, asked: &[u8], answer: Answer) -> Vec<u8> {
        let (flags, error, body) = match answer {
            Ok(body) => (1, 0, body),
            Err(errno) => {
                let error = if self.ways.no_errno { 0 } else { errno.0 as u32 };
                let body = if self.ways.error_body { asked } else { &[] };
                (0x21, error, body.to_vec())
            }
        };
        let msg_size = 16 + body.len() as u32;
        let header = Header { msg_size, flags, error, ..*header };
        [header.as_bytes(), &body].concat()
    }
}

fn handle(
    ways: &Ways,
    seen: &mut Seen,
    command: Command,
    body: &[u8],
    fds: usize,
) -> Answer {
    let state = State::from_number(seen.state).unwrap();
    let taken = match command {
        Command::REGION_READ | Command::REGION_WRITE => state != State::StopCopy,
        Command::DEVICE_FEATURE | Command::MIG_DATA_READ => true,
        _ => !matches!(state, State::Stop | State::StopCopy),
    };
    if ways.refuses_in_stop && !taken {
        return Err(Errno::EINVAL);
    }
    let unless_bare = |reply: Vec<u8>| Ok(if ways.bare { Vec::new() } else { reply });
    match command {
        Command::VERSION => {
            let text = format!("{{\"capabilities\":{{{}}}}}\0", ways.says);
            Ok([[0, ways.minor].as_bytes(), text.as_bytes()].concat())
        }
        Command::DEVICE_GET_INFO => Ok([16_u32, 3, 9, 5].as_bytes().to_vec()),
        Command::DEVICE_RESET => {
            seen.device = 0_u64.to_ne_bytes().to_vec();
            seen.loaded = false;
            Ok(Vec::new())
        }
        Command::DMA_MAP => {
            let map = DmaMap::read_from_bytes(body).unwrap();
            seen.maps.push((map.addr, map.size, fds > 0));
            Ok(Vec::new())
        }
        Command::DMA_UNMAP => {
            let (unmap, _) = DmaUnmap::read_from_prefix(body).unwrap();
            let before = seen.maps.len();
            seen.maps
                .retain(|(addr, size, _)| (*addr, *size) != (unmap.addr, unmap.size));
            if unmap.flags != 0 {
                return Err(Errno::EINVAL);
            }
            if seen.maps.len() == before {
                return Err(Errno::ENOENT);
            }
            unless_bare(body.to_vec())
        }
        Command::DEVICE_SET_IRQS => {
            let (set, _) = IrqSet::read_from_prefix(body).unwrap();
            if fds > 8 || fds > 0 && fds != set.count as usize {
                return Err(Errno::EINVAL);
            }
            seen.bound.push(set.count);
            Ok(Vec::new())
        }
        Command::REGION_READ => {
            let access = RegionAccess::read_from_bytes(body).unwrap();
            let mut data = vec![0; access.count as usize];
            if access.region == 7 && access.offset == 0 {
                data[..4].copy_from_slice(&[0x36, 0x1b, 0x4e, 0xfa]);
            }
            Ok([body, &data].concat())
        }
        Command::REGION_WRITE => unless_bare(body[..16].to_vec()),
        Command::DEVICE_FEATURE => feature(ways, seen, body),
        Command::MIG_DATA_READ => read(ways, seen, state, body),
        Command::MIG_DATA_WRITE if state == State::Resuming => {
            seen.received.extend(&body[8..]);
            Ok(Vec::new())
        }
        _ => Err(Errno::EINVAL),
    }
}

fn read(ways: &Ways, seen: &mut Seen, state: State, body: &[u8]) -> Answer {
    let asked = MigData::read_from_bytes(body).unwrap();
    let end = match state {
        State::PreCopy => seen.device.len() / 2,
        State::StopCopy => seen.device.len(),
        _ => return Err(Errno::EINVAL),
    };
    let left = seen.device.get(seen.cursor..end).unwrap_or_default();
    let size = left.len().min(asked.size as usize);
    let mut data = left[..size].to_vec();
    seen.cursor += size;
    if ways.pads {
        data.resize(asked.size as usize, 0xee);
    }
    let fixed = [8 + data.len() as u32 + ways.argsz_more, size as u32];
    Ok([fixed.as_bytes(), &data].concat())
}

fn feature(ways: &Ways, seen: &mut Seen, body: &[u8]) -> Answer {
    let (header, data) = FeatureHeader::read_from_prefix(body).unwrap();
    let flags = FeatureFlags::from_bits_retain(header.flags);
    let known = [
        Feature::MIGRATION,
        Feature::MIG_DEVICE_STATE,
        Feature::DMA_LOGGING_START,
        Feature::DMA_LOGGING_STOP,
        Feature::DMA_LOGGING_REPORT,
    ];
    if !known.contains(&header.feature()) {
        return Err(ways.unknown);
    }
    let nothing = || Ok(if ways.bare { Vec::new() } else { body.to_vec() });
    if flags.contains(FeatureFlags::PROBE) {
        return nothing();
    }
    let with = |data: &[u8]| Ok([header.as_bytes(), data].concat());
    match header.feature() {
        Feature::MIGRATION => with(5_u64.as_bytes()),
        Feature::MIG_DEVICE_STATE if flags.contains(FeatureFlags::GET) => {
            with([seen.state, u32::MAX].as_bytes())
        }
        Feature::MIG_DEVICE_STATE => {
            let target = DeviceMigState::read_from_bytes(data).unwrap().device_state;
            walk(ways, seen, target)?;
            nothing()
        }
        Feature::DMA_LOGGING_START => {
            let (mut control, _) = parse_log_start(data).unwrap();
            control.page_size = ways.log_page;
            seen.logging = true;
            if ways.bare { nothing() } else { with(control.as_bytes()) }
        }
        Feature::DMA_LOGGING_STOP => {
            seen.logging = false;
            nothing()
        }
        _ => report(ways, seen, &header, data),
    }
}

fn report(ways: &Ways, seen: &mut Seen, header: &FeatureHeader, data: &[u8]) -> Answer {
    let (report, _) = parse_log_report(data).unwrap();
    if !seen.logging || report.page_size != ways.log_page {
        return Err(Errno::EINVAL);
    }
    let mapping = seen.maps.iter().find(|(start, size, _)| {
        if ways.whole_reports {
            (*start, *size) == (report.iova, report.length)
        } else {
            (*start..start + size).contains(&report.iova)
        }
    });
    match mapping {
        None => return Err(Errno::EOPNOTSUPP),
        Some((_, _, false)) => return Err(Errno::EINVAL),
        Some(_) => {}
    }
    if ways.empty_reports {
        return Ok(Vec::new());
    }
    let pages = report.length.div_ceil(ways.log_page);
    let mut words = vec![0_u64; pages.div_ceil(64) as usize];
    seen.dirty.retain(|at| {
        let here = (report.iova..report.iova + report.length).contains(at);
        if here {
            let bit = (at - report.iova) / ways.log_page;
            words[bit as usize / 64] |= 1 << (bit % 64);
        }
        !here
    });
    Ok([header.as_bytes(), &data[..24], words.as_bytes()].concat())
}

/// Arc by arc, as `vfu_migr_set_state` goes.
fn walk(ways: &Ways, seen: &mut Seen, target: u32) -> Result<(), Errno> {
    let from = State::from_number(seen.state).unwrap();
    let target = State::from_number(target).ok_or(Errno::EINVAL)?;
    let path = plan(Capabilities::PRE_COPY, from, target).map_err(|_| Errno::EINVAL)?;
    let mut before = from;
    for state in path.iter() {
        match (before, state) {
            (_, State::PreCopy) => {
                seen.cursor = 0;
                seen.pre_copies += 1;
            }
            (State::PreCopy, State::StopCopy) if !ways.restarts => {}
            (_, State::StopCopy) => seen.cursor = 0,
            (_, State::Resuming) => seen.received.clear(),
            (State::Resuming, State::Stop) if !seen.received.is_empty() => {
                let length =
                    seen.received.first_chunk().map(|it| u64::from_ne_bytes(*it));
                if length != Some(seen.received.len() as u64 - 8) {
                    return Err(Errno::EINVAL);
                }
                seen.device = std::mem::take(&mut seen.received);
                seen.loaded = true;
            }
            (_, State::Running) => seen.ran_loaded |= seen.loaded,
            _ => {}
        }
        seen.state = state.number();
        before = state;
    }
    Ok(())
}
