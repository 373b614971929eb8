//! Regions: what is known of them, reads, and writes of three kinds.

use std::os::fd::OwnedFd;
use std::time::Duration;

use abi::errno::Errno;
use abi::region::{RegionFlags, RegionInfo as RawRegionInfo};
use abi::vfio_user::{
    IoFdSubRegion, RegionAccess, RegionIoFds as RawIoFds, WriteMulti, WriteMultiEntry,
};
use control::{IoFd, MappedArea, RegionIoFds, RegionWrite, Transport, TransportError};
use sys::SharedMemory;
use zerocopy::FromBytes;

use super::Client;
use super::line::{ECHO, Sink};
use crate::codec::{Region, Reply, Request, Writes};

/// Room for the capabilities of a region, and for its descriptors, in bytes.
const MOST: usize = 4096;

/// The most writes in one message, as QEMU's.
const WRITES: usize = 200;

impl Client {
    pub(super) fn region(
        &self,
        operation: &'static str,
        index: u32,
    ) -> Result<(Region, Option<OwnedFd>), TransportError> {
        let request = Request::RegionInfo(RawRegionInfo {
            argsz: MOST as u32,
            flags: 0,
            index,
            cap_offset: 0,
            size: 0,
            offset: 0,
        });
        let mut answer = self.small(operation, &request, MOST)?;
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

    pub(super) fn map_area(
        &self,
        index: u32,
        offset: u64,
    ) -> Result<MappedArea, TransportError> {
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
        let unmappable = |error: &dyn std::fmt::Display| TransportError::Broken {
            operation: OPERATION,
            what: format!("its descriptor cannot be mapped: {error}"),
        };
        let at = region.info.offset.checked_add(area.0);
        let at = at.ok_or_else(|| unmappable(&"an offset past the end of every file"))?;
        let memory = SharedMemory::from_fd(fd, at, area.1, writable)
            .map_err(|error| unmappable(&error))?;
        Ok(MappedArea { offset: area.0, memory })
    }

    pub(super) fn read_region(
        &self,
        index: u32,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), TransportError> {
        const OPERATION: &str = "read a region";
        let fixed = size_of::<RegionAccess>();
        let mut offset = offset;
        for piece in into.chunks_mut(self.inner.agreed.max_data) {
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

    pub(super) fn write_region(
        &self,
        index: u32,
        offset: u64,
        from: &[u8],
        deadline: Duration,
    ) -> Result<(), TransportError> {
        const OPERATION: &str = "write a region";
        self.pieces(index, offset, from, |access, piece| {
            let request = Request::RegionWrite(access, piece);
            let most = size_of::<RegionAccess>();
            let answer = self.small_within(OPERATION, &request, most, deadline)?;
            match RegionAccess::read_from_bytes(&answer.fixed) {
                Ok(reply) if reply.count == access.count => Ok(()),
                // A header says that it was written.
                Err(_) if answer.fixed.is_empty() => Ok(()),
                _ => Err(self.broken(OPERATION, "not as many bytes as sent")),
            }
        })
    }

    pub(super) fn post_region(
        &self,
        index: u32,
        offset: u64,
        from: &[u8],
    ) -> Result<(), TransportError> {
        let deadline = self.inner.options.call_deadline;
        self.pieces(index, offset, from, |access, piece| {
            self.inner.line.post("post a write to a region", &access, piece, deadline)
        })
    }

    fn pieces(
        &self,
        index: u32,
        offset: u64,
        from: &[u8],
        mut write: impl FnMut(RegionAccess, &[u8]) -> Result<(), TransportError>,
    ) -> Result<(), TransportError> {
        let mut offset = offset;
        for piece in from.chunks(self.inner.agreed.max_write) {
            let count = piece.len() as u32;
            write(RegionAccess { offset, region: index, count }, piece)?;
            offset = offset.wrapping_add(u64::from(count));
        }
        Ok(())
    }

    pub(super) fn write_regions(
        &self,
        writes: &[RegionWrite<'_>],
    ) -> Result<(), TransportError> {
        let agreed = &self.inner.agreed;
        let room = agreed.max_write.saturating_sub(size_of::<WriteMulti>());
        let most = (room / size_of::<WriteMultiEntry>()).min(WRITES);
        let short = |write: &RegionWrite<'_>| write.data.len() <= size_of::<[u8; 8]>();
        let mut left = writes;
        while let [first, rest @ ..] = left {
            let count = left.iter().take(most).take_while(|write| short(write)).count();
            if count < 2 || !agreed.write_multiple {
                self.region_write(first.index, first.offset, first.data)?;
                left = rest;
                continue;
            }
            let (batch, rest) = left.split_at(count);
            self.write_batch(batch)?;
            left = rest;
        }
        Ok(())
    }

    fn write_batch(&self, batch: &[RegionWrite<'_>]) -> Result<(), TransportError> {
        const OPERATION: &str = "write regions";
        let mut bytes = Vec::with_capacity(batch.len() * size_of::<WriteMultiEntry>());
        let some = batch.iter().filter(|write| !write.data.is_empty());
        for write in some {
            Writes::encode(&mut bytes, write.index, write.offset, write.data);
        }
        // No write at all is none of the protocol's.
        let Ok(writes) = Writes::new(&bytes) else { return Ok(()) };
        let count = writes.len() as u64;
        let request = Request::WriteMulti(writes);
        let answer = self.small(OPERATION, &request, ECHO)?;
        match WriteMulti::read_from_prefix(&answer.fixed) {
            Ok((done, _)) if done.wr_cnt == count => Ok(()),
            // It stopped at one that failed, and there is no place for its errno.
            Ok((done, _)) if done.wr_cnt < count => Err(TransportError::Errno {
                operation: "write regions, of which not all were done",
                errno: Errno::EIO,
            }),
            Err(_) if answer.fixed.is_empty() => Ok(()),
            _ => Err(self.broken(OPERATION, "more writes than were asked for")),
        }
    }

    pub(super) fn io_fds(&self, index: u32) -> Result<RegionIoFds, TransportError> {
        const OPERATION: &str = "ask for the descriptors of a region";
        let request =
            Request::IoFds(RawIoFds { argsz: MOST as u32, flags: 0, index, count: 0 });
        let mut answer = self.small(OPERATION, &request, MOST)?;
        let fds = std::mem::take(&mut answer.fds);
        let parts = match RawIoFds::read_from_prefix(&answer.fixed) {
            Ok((info, _)) if info.index != index => None,
            // More than there was room for: nothing came but how much it is.
            Ok((info, [])) if info.count > 0 => {
                tracing::debug!(device = %self.inner.options.name, info.argsz, "no room");
                return Err(TransportError::Errno {
                    operation: OPERATION,
                    errno: Errno::E2BIG,
                });
            }
            Ok((info, rest)) => parts(info.count, rest),
            Err(_) => None,
        };
        match parts {
            Some(parts) if parts.iter().all(|part| part.fd < fds.len()) => {
                Ok(RegionIoFds { parts, fds })
            }
            _ => Err(self.broken(OPERATION, "not this region's descriptors")),
        }
    }
}

/// The sub-regions of a reply: of 40 bytes as in the text, or of 48 as libvfio-user has
/// them, with the value to match 8 bytes further on.
fn parts(count: u32, bytes: &[u8]) -> Option<Vec<IoFd>> {
    const WIDE: usize = size_of::<IoFdSubRegion>() + 8;
    let count = count as usize;
    if count == 0 {
        return Some(Vec::new());
    }
    let wide = count.checked_mul(WIDE) == Some(bytes.len());
    let stride = if wide { WIDE } else { size_of::<IoFdSubRegion>() };
    // No more than came.
    let bytes = bytes.get(..count.checked_mul(stride)?)?;
    let part = |bytes: &[u8]| {
        let (part, rest) = IoFdSubRegion::read_from_prefix(bytes).ok()?;
        let datamatch =
            if wide { u64::read_from_bytes(rest).ok()? } else { part.datamatch };
        Some(IoFd {
            offset: part.offset,
            size: part.size,
            fd: part.fd_index as usize,
            kind: part.kind,
            flags: part.flags,
            datamatch,
        })
    };
    bytes.chunks_exact(stride).map(part).collect()
}

/// The areas that can be mapped, whichever way they are told.
pub(super) fn areas(region: &Region) -> Vec<(u64, u64)> {
    let flags = RegionFlags::from_bits_retain(region.info.flags);
    match &region.areas {
        _ if !flags.contains(RegionFlags::MMAP) => Vec::new(),
        Some(areas) => areas.clone(),
        None if region.info.size > 0 => vec![(0, region.info.size)],
        None => Vec::new(),
    }
}
