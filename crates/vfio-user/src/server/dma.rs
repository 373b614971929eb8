//! The memory that a client lends: `DMA_MAP` and `DMA_UNMAP`.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use abi::errno::Errno;
use abi::vfio_user::{DirtyBitmap, DmaMap, DmaMapFlags, DmaUnmap, DmaUnmapFlags};
use device::{DmaTarget, DmaWindow};
use dirty::IovaRange;
use sys::SharedMemory;
use zerocopy::IntoBytes;

use super::Server;
use super::commands::errno_of;
use super::peer::Agreed;
use crate::codec::Reply;

/// Bytes of a reply to `DMA_UNMAP` before the bitmap.
const DIRTY_FIXED: usize = size_of::<DmaUnmap>() + size_of::<DirtyBitmap>();

impl Server {
    pub(super) fn dma_map(
        &mut self,
        agreed: Agreed,
        map: DmaMap,
        fds: Vec<OwnedFd>,
    ) -> Result<Reply<'static>, Errno> {
        let flags = DmaMapFlags::from_bits_retain(map.flags);
        let access = DmaMapFlags::READ | DmaMapFlags::WRITE;
        let ways = DmaMapFlags::MMAP | DmaMapFlags::FILE_IO;
        let file = flags.contains(DmaMapFlags::FILE_IO);
        if (map.argsz as usize) < size_of::<DmaMap>()
            || !(flags - access - ways).is_empty()
            || !flags.intersects(access)
            || flags.contains(ways)
            || fds.len() > 1
            || (file && fds.is_empty())
            || !(map.addr | map.size).is_multiple_of(agreed.page)
        {
            return Err(Errno::EINVAL);
        }
        let range = IovaRange::new(map.addr, map.size).map_err(|_| Errno::EINVAL)?;
        let writable = flags.contains(DmaMapFlags::WRITE);
        let target = match fds.into_iter().next() {
            None => DmaTarget::Messages,
            Some(fd) if file => {
                DmaTarget::Window(Box::new(FileWindow::new(fd, map.offset, map.size)?))
            }
            Some(fd) => {
                let memory = SharedMemory::from_fd(fd, map.offset, map.size, writable)
                    .map_err(|error| errno_of(&error))?;
                DmaTarget::Window(Box::new(memory))
            }
        };
        self.runner.map(range, writable, target)?;
        Ok(Reply::Done)
    }

    pub(super) fn dma_unmap(&mut self, unmap: DmaUnmap) -> Result<Reply<'static>, Errno> {
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
            return Err(Errno::EINVAL);
        }
        Ok(Reply::DmaUnmap(unmap))
    }

    /// As type1 does it: the bits of the mapping go with it. Nothing happens where they
    /// do not fit, or nothing is logged.
    pub(super) fn dma_unmap_dirty<'a>(
        &mut self,
        agreed: Agreed,
        unmap: DmaUnmap,
        wanted: DirtyBitmap,
        words: &'a mut Vec<u64>,
    ) -> Result<Reply<'a>, Errno> {
        let only = DmaUnmapFlags::GET_DIRTY_BITMAP.bits();
        let room = (unmap.argsz as usize).checked_sub(DIRTY_FIXED);
        let (Some(room), true) = (room, unmap.flags == only) else {
            return Err(Errno::EINVAL);
        };
        let range = IovaRange::new(unmap.addr, unmap.size).map_err(|_| Errno::EINVAL)?;
        let bytes = (room as u64).min(wanted.size).min(agreed.bitmap);
        words.clear();
        self.runner
            .unmap_dirty(range, wanted.pgsize, (bytes / 8) as usize, words)
            .map_err(|errno| if errno == Errno::E2BIG { Errno::EINVAL } else { errno })?;
        let bits = as_sent(words);
        let argsz = (DIRTY_FIXED + bits.len()) as u32;
        let found = DirtyBitmap { pgsize: wanted.pgsize, size: bits.len() as u64 };
        Ok(Reply::DmaUnmapDirty(DmaUnmap { argsz, ..unmap }, found, bits))
    }
}

/// The words of a bitmap as a message has them, little-endian, in their own place.
pub(super) fn as_sent(words: &mut [u64]) -> &[u8] {
    if cfg!(target_endian = "big") {
        words.iter_mut().for_each(|word| *word = word.to_le());
    }
    words.as_bytes()
}

/// Memory behind a file that cannot be mapped (`/proc/PID/mem`): it is read and written.
#[derive(Debug)]
struct FileWindow {
    file: File,
    /// Where the window starts in it, in bytes.
    offset: u64,
}

impl FileWindow {
    /// A window of `size` bytes from `offset` on.
    fn new(fd: OwnedFd, offset: u64, size: u64) -> Result<FileWindow, Errno> {
        let file = File::from(fd);
        let regular = file.metadata().map_err(|error| errno_of(&error))?.is_file();
        let end = offset.checked_add(size).filter(|end| i64::try_from(*end).is_ok());
        // A pipe, a socket or a terminal would make the device wait for somebody.
        if !regular || end.is_none() {
            return Err(Errno::EINVAL);
        }
        Ok(FileWindow { file, offset })
    }
}

impl DmaWindow for FileWindow {
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.file.read_exact_at(into, self.offset + offset).map_err(|_| Errno::EFAULT)
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        self.file.write_all_at(from, self.offset + offset).map_err(|_| Errno::EFAULT)
    }
}
