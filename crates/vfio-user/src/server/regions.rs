//! Regions: what there are, and access to them.

use std::os::fd::OwnedFd;
use std::time::Instant;

use abi::device_info::DeviceFlags;
use abi::errno::Errno;
use abi::pci::region_index;
use abi::region::{RegionFlags, RegionInfo};
use abi::vfio_user::{DeviceInfo, RegionAccess, RegionIoFds, WriteMulti};
use device::front::Front;
use device::{Moved, Region, Window};

use super::Server;
use super::commands::{Asked, Served, errno_of, room};
use super::peer::{Agreed, AskedBy, Deferred};
use crate::codec::{Region as RegionReply, Reply, Writes};

impl Server {
    pub(super) fn is_pci(&self) -> bool {
        self.runner.description().identity.pci.is_some()
    }

    fn num_regions(&self) -> u32 {
        let regions = self.runner.description().regions.iter();
        let front = self.front.as_ref().map(Front::region);
        let most = regions.chain(front).map(|region| region.index + 1).max().unwrap_or(0);
        if self.is_pci() { most.max(region_index::NUM) } else { most }
    }

    pub(super) fn device_info(&self, info: DeviceInfo) -> Result<Reply<'static>, Errno> {
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

    pub(super) fn region_info(
        &self,
        agreed: Agreed,
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
        let region = match self.front(info.index) {
            Some(front) => {
                reply.kind = Some(front.kind());
                Some(front.region())
            }
            None => self.runner.description().region(info.index),
        };
        let Some(region) = region else { return Ok(Reply::Region(reply)) };
        let mut flags = RegionFlags::READ;
        flags.set(RegionFlags::WRITE, region.writable);
        reply.info.size = region.size;
        // Who takes no descriptor cannot map anything.
        if let Some(first) = region.windows.first().filter(|_| agreed.fds > 0) {
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

    /// No part of a region has a descriptor of its own here.
    pub(super) fn io_fds(&self, info: RegionIoFds) -> Result<Reply<'static>, Errno> {
        let size = size_of::<RegionIoFds>();
        if (info.argsz as usize) < size
            || info.flags != 0
            || info.count != 0
            || info.index >= self.num_regions()
        {
            return Err(Errno::EINVAL);
        }
        let none = RegionIoFds { argsz: size as u32, ..info };
        Ok(Reply::IoFds(none, Vec::new()))
    }

    pub(super) fn region_read<'a>(
        &mut self,
        agreed: Agreed,
        access: RegionAccess,
        data: &'a mut Vec<u8>,
    ) -> Result<Served<'a>, Errno> {
        let into = room(data, access.count, agreed.send)?;
        match &mut self.front {
            Some(front) if front.region().index == access.region => {
                front.read(&mut self.runner, access.offset, into)?;
            }
            _ => self.runner.read_region(access.region, access.offset, into)?,
        }
        Ok(Served::InData(Reply::RegionRead(access, into)))
    }

    pub(super) fn region_write(
        &mut self,
        agreed: Agreed,
        asked: Asked,
        access: RegionAccess,
        bytes: &[u8],
    ) -> Result<Served<'static>, Errno> {
        if bytes.len() > agreed.take {
            return Err(Errno::EINVAL);
        }
        match self.write(access, bytes)? {
            Moved::Done(_) => Ok(Served::Reply(Reply::RegionWrite(access))),
            Moved::Pending => Ok(Served::Deferred(Deferred {
                id: asked.id,
                no_reply: asked.no_reply,
                by: AskedBy::Region(access),
            })),
        }
    }

    /// A write to the migration region can take its time; all others are done at once.
    fn write(&mut self, access: RegionAccess, bytes: &[u8]) -> Result<Moved, Errno> {
        let RegionAccess { offset, region, .. } = access;
        match &mut self.front {
            Some(front) if front.region().index == region => {
                front.write(&mut self.runner, offset, bytes, Instant::now())
            }
            _ => {
                self.runner.write_region(region, offset, bytes)?;
                Ok(Moved::Done(None))
            }
        }
    }

    /// The migration region, where that is the one with this index.
    fn front(&self, index: u32) -> Option<&Front> {
        self.front.as_ref().filter(|front| front.region().index == index)
    }

    /// In order, until one fails: the answer says how many were done. Where that is none
    /// at all, the answer is its errno.
    pub(super) fn write_multi(
        &mut self,
        agreed: Agreed,
        writes: Writes<'_>,
    ) -> Result<Reply<'static>, Errno> {
        if !agreed.write_multiple {
            return Err(Errno::ENOSYS);
        }
        let mut done = 0;
        for (access, data) in writes.iter() {
            let bytes = &data[..access.count as usize];
            // Several writes have one answer, and none of them can wait.
            let written = match self.front(access.region) {
                Some(_) => Err(Errno::EINVAL),
                None => self.runner.write_region(access.region, access.offset, bytes),
            };
            match written {
                Ok(()) => done += 1,
                Err(errno) if done == 0 => return Err(errno),
                Err(errno) => {
                    tracing::debug!(device = %self.options.name, done, %errno, "stopped");
                    break;
                }
            }
        }
        Ok(Reply::WriteMulti(WriteMulti { wr_cnt: done }))
    }
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
