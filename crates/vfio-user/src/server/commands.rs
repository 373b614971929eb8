//! What each command does. Errnos are the kernel's, except where vfio-user has its own
//! rules; `docs/vfio-user.md` has the table.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use abi::device_info::DeviceFlags;
use abi::errno::Errno;
use abi::irq::{IrqInfo, IrqInfoFlags, IrqSet, IrqSetFlags};
use abi::pci::{irq_index, region_index};
use abi::region::{RegionFlags, RegionInfo};
use abi::vfio_user::{
    Command, DeviceInfo, DmaMap, DmaMapFlags, DmaUnmap, DmaUnmapFlags, MAJOR, MINOR,
    MigData, RegionAccess,
};
use device::{DmaTarget, Region, Trigger, Window};
use dirty::IovaRange;
use sys::{EventFd, SharedMemory};

use super::peer::{Deferred, DisconnectReason, Incoming, MAX_FDS, Peer};
use super::{Server, features};
use crate::codec::{Capabilities, Kind, Region as RegionReply, Reply, Request, Version};
use crate::codec::{VersionError, kind};

/// DMA addresses and sizes are multiples of this, in bytes.
const PAGE: u64 = 4096;

/// What became of a request.
pub(super) enum Served<'a> {
    /// It is done, and answered so.
    Reply(Reply<'a>),
    /// It is answered when the runner settled.
    Deferred(Deferred),
}

impl Server {
    /// Carries out one message and answers it.
    pub(super) fn serve_message(
        &mut self,
        peer: &mut Peer,
        message: Incoming,
    ) -> Result<(), DisconnectReason> {
        let Incoming { header, fds, body } = message;
        let (id, command) = (header.msg_id, Command(header.command));
        let content = &body[..header.msg_size as usize - crate::codec::HEADER];
        let result = match kind(&header) {
            Kind::Reply { error } => {
                peer.answered(&header, error, content, &mut self.runner)
            }
            // Neither a question nor an answer.
            Kind::Unknown => peer.send(&Reply::refusal(id, command, Errno::EINVAL), &[]),
            Kind::Command { no_reply } => {
                let asked = Asked { id, command, no_reply };
                self.serve_command(peer, asked, content, fds)
            }
        };
        peer.recycle(body);
        result
    }

    fn serve_command(
        &mut self,
        peer: &mut Peer,
        asked: Asked,
        body: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<(), DisconnectReason> {
        let mut data = std::mem::take(&mut peer.data);
        let mut reply_fd = None;
        let served = match Request::parse(asked.command, body) {
            Ok(request) => {
                self.carry_out(peer, asked, request, fds, &mut data, &mut reply_fd)
            }
            Err(_) => Err(Errno::EINVAL),
        };
        let message = match served {
            Ok(Served::Reply(reply)) => reply.message(asked.id, asked.command),
            Ok(Served::Deferred(deferred)) => {
                peer.deferred = Some(deferred);
                peer.data = data;
                return Ok(());
            }
            Err(errno) => {
                let Asked { id, command, .. } = asked;
                tracing::debug!(device = %self.options.name, id, %command, %errno, "refused");
                Reply::refusal(id, command, errno)
            }
        };
        let result = if asked.no_reply {
            Ok(())
        } else {
            let fds: Vec<_> = reply_fd.as_ref().map(AsFd::as_fd).into_iter().collect();
            peer.send(&message, &fds)
        };
        drop(message);
        peer.data = data;
        result
    }

    fn carry_out<'a>(
        &mut self,
        peer: &mut Peer,
        asked: Asked,
        request: Request<'a>,
        fds: Vec<OwnedFd>,
        data: &'a mut Vec<u8>,
        reply_fd: &mut Option<OwnedFd>,
    ) -> Result<Served<'a>, Errno> {
        if peer.agreed.is_none() != matches!(request, Request::Version(_)) {
            return Err(Errno::EINVAL);
        }
        let reply = match request {
            Request::Version(version) => self.version(peer, &version, data)?,
            Request::DmaMap(map) => self.dma_map(map, fds)?,
            Request::DmaUnmap(unmap) => self.dma_unmap(unmap)?,
            Request::DeviceInfo(info) => self.device_info(info)?,
            Request::RegionInfo(info) => self.region_info(info, reply_fd)?,
            Request::IrqInfo(info) => self.irq_info(info)?,
            Request::SetIrqs(set, bools) => self.set_irqs(set, bools, fds)?,
            Request::RegionRead(access) => self.region_read(access, data)?,
            Request::RegionWrite(access, bytes) => {
                self.runner.write_region(access.region, access.offset, bytes)?;
                Reply::RegionWrite(access)
            }
            Request::Reset => {
                self.runner.reset();
                peer.precopy_flags = false;
                Reply::Done
            }
            Request::Feature(header, bytes) => {
                return features::feature(self, peer, asked, header, bytes, data);
            }
            Request::MigDataRead(wanted) => self.data_read(peer, wanted, data)?,
            Request::MigDataWrite(fixed, bytes) => self.data_write(fixed, bytes)?,
            // The client's to answer, not to ask.
            Request::DmaRead(_) | Request::DmaWrite(..) => return Err(Errno::EINVAL),
            Request::Unknown(_) => return Err(Errno::ENOSYS),
        };
        Ok(Served::Reply(reply))
    }

    /// Answers a change of state that took its time, where it is over.
    pub(super) fn settle(&mut self, peer: &mut Peer) -> Result<(), DisconnectReason> {
        if self.runner.pending().is_none() && peer.deferred.is_none() {
            return Ok(());
        }
        let Some(outcome) = self.runner.settle(Instant::now()) else { return Ok(()) };
        let Some(deferred) = peer.deferred.take() else { return Ok(()) };
        if deferred.no_reply {
            return Ok(());
        }
        match outcome {
            Ok(_) => {
                let data = features::state_data(deferred.target, deferred.data_fd);
                let reply = Reply::Feature(features::state_header(), &data);
                peer.send(&reply.message(deferred.id, Command::DEVICE_FEATURE), &[])
            }
            Err(errno) => {
                let (id, command) = (deferred.id, Command::DEVICE_FEATURE);
                peer.send(&Reply::refusal(id, command, errno), &[])
            }
        }
    }

    fn version<'a>(
        &mut self,
        peer: &mut Peer,
        version: &Version<'_>,
        data: &'a mut Vec<u8>,
    ) -> Result<Reply<'a>, Errno> {
        let theirs = version.capabilities().map_err(|error: VersionError| {
            tracing::warn!(device = %self.options.name, %error, "VERSION refused");
            Errno::EINVAL
        })?;
        let ours = self.options.max_data_xfer_size;
        let additions = self.options.additions && theirs.vfio_migrate.is_some();
        let agreed = Capabilities {
            max_msg_fds: MAX_FDS,
            max_data_xfer_size: ours,
            vfio_migrate: additions.then_some(crate::ADDITIONS),
            ..Capabilities::default()
        };
        *data = agreed.text();
        peer.agree(ours, &theirs, additions);
        self.runner.set_message_limit(theirs.max_data_xfer_size.min(ours));
        let minor = version.minor.min(MINOR);
        Ok(Reply::Version(Version { major: MAJOR, minor, text: data }))
    }

    fn dma_map(
        &mut self,
        map: DmaMap,
        fds: Vec<OwnedFd>,
    ) -> Result<Reply<'static>, Errno> {
        let flags = DmaMapFlags::from_bits_retain(map.flags);
        let access = DmaMapFlags::READ | DmaMapFlags::WRITE;
        let unknown = flags - access - DmaMapFlags::MMAP;
        if (map.argsz as usize) < size_of::<DmaMap>()
            || !unknown.is_empty()
            || !flags.intersects(access)
            || fds.len() > 1
            || !(map.addr | map.size).is_multiple_of(PAGE)
        {
            return Err(Errno::EINVAL);
        }
        let range = IovaRange::new(map.addr, map.size).map_err(|_| Errno::EINVAL)?;
        let writable = flags.contains(DmaMapFlags::WRITE);
        let target = match fds.into_iter().next() {
            None => DmaTarget::Messages,
            Some(fd) => {
                let memory = SharedMemory::from_fd(fd, map.offset, map.size, writable)
                    .map_err(|error| errno_of(&error))?;
                DmaTarget::Window(Box::new(memory))
            }
        };
        self.runner.map(range, writable, target)?;
        Ok(Reply::Done)
    }

    fn dma_unmap(&mut self, unmap: DmaUnmap) -> Result<Reply<'static>, Errno> {
        let flags = DmaUnmapFlags::from_bits_retain(unmap.flags);
        if (unmap.argsz as usize) < size_of::<DmaUnmap>() {
            return Err(Errno::EINVAL);
        }
        if flags == DmaUnmapFlags::ALL && unmap.addr == 0 && unmap.size == 0 {
            self.runner.unmap_all();
        } else if flags.is_empty() {
            let range =
                IovaRange::new(unmap.addr, unmap.size).map_err(|_| Errno::EINVAL)?;
            self.runner.unmap(range)?;
        } else {
            // The dirty bitmap of v1 is not kept here.
            return Err(Errno::EINVAL);
        }
        Ok(Reply::DmaUnmap(unmap))
    }

    fn is_pci(&self) -> bool {
        self.runner.description().identity.pci.is_some()
    }

    fn num_regions(&self) -> u32 {
        let regions = &self.runner.description().regions;
        let most = regions.iter().map(|region| region.index + 1).max().unwrap_or(0);
        if self.is_pci() { most.max(region_index::NUM) } else { most }
    }

    fn num_irqs(&self) -> u32 {
        let irqs = &self.runner.description().irqs;
        let most = irqs.iter().map(|irq| irq.index + 1).max().unwrap_or(0);
        if self.is_pci() { most.max(irq_index::NUM) } else { most }
    }

    fn device_info(&self, info: DeviceInfo) -> Result<Reply<'static>, Errno> {
        if (info.argsz as usize) < size_of::<DeviceInfo>() {
            return Err(Errno::EINVAL);
        }
        let mut flags = DeviceFlags::RESET;
        flags.set(DeviceFlags::PCI, self.is_pci());
        Ok(Reply::DeviceInfo(DeviceInfo {
            argsz: size_of::<DeviceInfo>() as u32,
            flags: flags.bits(),
            num_regions: self.num_regions(),
            num_irqs: self.num_irqs(),
        }))
    }

    fn region_info(
        &self,
        info: RegionInfo,
        reply_fd: &mut Option<OwnedFd>,
    ) -> Result<Reply<'static>, Errno> {
        if (info.argsz as usize) < RegionInfo::SIZE || info.index >= self.num_regions() {
            return Err(Errno::EINVAL);
        }
        let mut reply = RegionReply {
            info: RegionInfo {
                argsz: info.argsz,
                flags: 0,
                index: info.index,
                cap_offset: 0,
                size: 0,
                offset: 0,
            },
            areas: None,
            kind: None,
        };
        let Some(region) = self.runner.description().region(info.index) else {
            return Ok(Reply::Region(reply));
        };
        let mut flags = RegionFlags::READ;
        flags.set(RegionFlags::WRITE, region.writable);
        reply.info.size = region.size;
        if let Some(first) = region.windows.first() {
            flags |= RegionFlags::MMAP;
            reply.info.offset = file_offset(first).ok_or(Errno::EIO)?;
            let areas =
                region.windows.iter().map(|window| (window.offset, window.memory.len()));
            reply.areas = Some(areas.collect());
            // As libvfio-user: with the capabilities, and so only where there is room.
            if reply.fits() {
                let fd = first.memory.fd().try_clone_to_owned();
                *reply_fd = Some(fd.map_err(|error| errno_of(&error))?);
            }
        }
        reply.info.flags = flags.bits();
        Ok(Reply::Region(reply))
    }

    fn irq_info(&self, info: IrqInfo) -> Result<Reply<'static>, Errno> {
        if (info.argsz as usize) < size_of::<IrqInfo>() || info.index >= self.num_irqs() {
            return Err(Errno::EINVAL);
        }
        let count = self.runner.description().irq(info.index).map_or(0, |irq| irq.count);
        let flags = if count > 0 { IrqInfoFlags::EVENTFD } else { IrqInfoFlags::empty() };
        Ok(Reply::IrqInfo(IrqInfo {
            argsz: size_of::<IrqInfo>() as u32,
            flags: flags.bits(),
            index: info.index,
            count,
        }))
    }

    /// As `vfio_set_irqs_validate_and_prepare`, with descriptors beside the message.
    fn set_irqs(
        &mut self,
        set: IrqSet,
        bools: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<Reply<'static>, Errno> {
        let flags = IrqSetFlags::from_bits_retain(set.flags);
        let known = IrqSetFlags::DATA_TYPE_MASK | IrqSetFlags::ACTION_TYPE_MASK;
        let vectors = self.runner.description().irq(set.index).map_or(0, |irq| irq.count);
        let end = set.start.checked_add(set.count).ok_or(Errno::EINVAL)?;
        if (set.argsz as usize) < size_of::<IrqSet>()
            || set.flags & !known != 0
            || set.index >= self.num_irqs()
            || end > vectors
            || (set.count > 0 && set.start >= vectors)
        {
            return Err(Errno::EINVAL);
        }
        let data = flags.bits() & IrqSetFlags::DATA_TYPE_MASK;
        match flags.bits() & IrqSetFlags::ACTION_TYPE_MASK {
            action if action == IrqSetFlags::ACTION_TRIGGER.bits() => {}
            // A vector cannot be masked here; the VMM does not listen to it instead.
            action
                if action == IrqSetFlags::ACTION_MASK.bits()
                    || action == IrqSetFlags::ACTION_UNMASK.bits() =>
            {
                return Err(Errno::ENOTTY);
            }
            _ => return Err(Errno::EINVAL),
        }
        let range = set.start..end;
        if data == IrqSetFlags::DATA_EVENTFD.bits() {
            self.bind(set, fds)?;
        } else if data == IrqSetFlags::DATA_NONE.bits() && set.count == 0 {
            if set.start != 0 {
                return Err(Errno::EINVAL);
            }
            self.runner.unbind_index(set.index);
        } else if data == IrqSetFlags::DATA_NONE.bits() {
            for vector in range {
                self.runner.trigger(set.index, vector)?;
            }
        } else if data == IrqSetFlags::DATA_BOOL.bits() {
            let bools = bools.get(..set.count as usize).ok_or(Errno::EINVAL)?;
            for (vector, _) in range.zip(bools).filter(|(_, fire)| **fire != 0) {
                self.runner.trigger(set.index, vector)?;
            }
        } else {
            return Err(Errno::EINVAL);
        }
        Ok(Reply::Done)
    }

    fn bind(&mut self, set: IrqSet, fds: Vec<OwnedFd>) -> Result<(), Errno> {
        if set.count == 0 {
            return Err(Errno::EINVAL);
        }
        // All of them are looked at before the first is bound.
        let triggers: Vec<Option<Box<dyn Trigger>>> = if fds.is_empty() {
            (0..set.count).map(|_| None).collect()
        } else if fds.len() == set.count as usize {
            fds.into_iter()
                .map(|fd| {
                    let event = EventFd::from_fd(fd).map_err(|_| Errno::EINVAL)?;
                    Ok(Some(Box::new(event) as Box<dyn Trigger>))
                })
                .collect::<Result<_, Errno>>()?
        } else {
            return Err(Errno::EINVAL);
        };
        for (vector, trigger) in (set.start..).zip(triggers) {
            self.runner.bind(set.index, vector, trigger)?;
        }
        Ok(())
    }

    fn region_read<'a>(
        &mut self,
        access: RegionAccess,
        data: &'a mut Vec<u8>,
    ) -> Result<Reply<'a>, Errno> {
        let into = room(data, access.count, self.options.max_data_xfer_size)?;
        self.runner.read_region(access.region, access.offset, into)?;
        Ok(Reply::RegionRead(access, into))
    }

    fn data_read<'a>(
        &mut self,
        peer: &Peer,
        wanted: MigData,
        data: &'a mut Vec<u8>,
    ) -> Result<Reply<'a>, Errno> {
        let into = room(data, wanted.size, self.options.max_data_xfer_size)?;
        if wanted.argsz < MIG_DATA.saturating_add(wanted.size) {
            return Err(Errno::EINVAL);
        }
        let session = self.runner.session().ok_or(Errno::ENODEV)?;
        let len = match self.runner.read_data(session, into) {
            // Over vfio-user a temporary end is an empty answer.
            Err(Errno::ENOMSG) => 0,
            other => other?,
        };
        // libvfio-user's own client wants as many bytes as it asked for, whatever `size`
        // says; so whoever does not know us gets them.
        let sent = if peer.agreed.is_some_and(|agreed| agreed.additions) {
            len
        } else {
            into[len..].fill(0);
            into.len()
        };
        let fixed = MigData { argsz: MIG_DATA + sent as u32, size: len as u32 };
        Ok(Reply::MigDataRead(fixed, &into[..sent]))
    }

    fn data_write(
        &mut self,
        fixed: MigData,
        bytes: &[u8],
    ) -> Result<Reply<'static>, Errno> {
        if fixed.argsz < MIG_DATA.saturating_add(fixed.size) || bytes.is_empty() {
            return Err(Errno::EINVAL);
        }
        let session = self.runner.session().ok_or(Errno::ENODEV)?;
        self.runner.write_data(session, bytes)?;
        Ok(Reply::Done)
    }
}

/// What the header of a command says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) id: u16,
    pub(super) command: Command,
    pub(super) no_reply: bool,
}

const MIG_DATA: u32 = size_of::<MigData>() as u32;

/// `count` bytes of the answer's buffer, where the limit allows that many.
fn room(data: &mut Vec<u8>, count: u32, limit: usize) -> Result<&mut [u8], Errno> {
    let count = count as usize;
    if count == 0 || count > limit {
        return Err(Errno::EINVAL);
    }
    if data.len() < count {
        data.resize(count, 0);
    }
    Ok(&mut data[..count])
}

/// Where in its file a region would start, by where one of its windows lies.
fn file_offset(window: &Window) -> Option<u64> {
    window.memory.offset().checked_sub(window.offset)
}

/// Whether one descriptor and one offset reach all windows of a region.
pub(super) fn one_stretch(region: &Region) -> bool {
    let Some(first) = region.windows.first() else { return true };
    file_offset(first).is_some()
        && region.windows.iter().all(|window| {
            window.memory.same_file(&first.memory)
                && file_offset(window) == file_offset(first)
        })
}

fn errno_of(error: &io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::InvalidInput => Errno::EINVAL,
        _ => error.raw_os_error().map_or(Errno::EIO, Errno),
    }
}
