//! What the device reaches: `DMA_MAP` and `DMA_UNMAP`.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use abi::errno::Errno;
use abi::vfio_user::{DirtyBitmap, DmaMap, DmaMapFlags, DmaUnmap, DmaUnmapFlags};
use control::{DmaTarget, TransportError};
use dirty::{IovaRange, PageSize};
use sys::SharedMemory;
use zerocopy::{FromBytes, IntoBytes};

use super::Client;
use super::line::{ECHO, Sink};
use crate::codec::Request;

/// The ranges that are mapped, as far as this client knows: start and length in bytes.
#[derive(Debug, Default)]
pub(super) struct Mappings(Mutex<BTreeSet<(u64, u64)>>);

impl Mappings {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<(u64, u64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is new; `None` where there is no room for it. Some servers take the
    /// same mapping twice, which is one.
    fn add(&self, range: IovaRange, most: u64) -> Option<bool> {
        let mut all = self.lock();
        let key = (range.start(), range.length());
        if !all.contains(&key) && all.len() as u64 >= most {
            return None;
        }
        Some(all.insert(key))
    }

    fn remove(&self, range: IovaRange) {
        self.lock().remove(&(range.start(), range.length()));
    }
}

impl Client {
    pub(super) fn map(
        &self,
        range: IovaRange,
        target: DmaTarget<'_>,
    ) -> Result<(), TransportError> {
        const OPERATION: &str = "map DMA";
        let refused = |operation, errno| TransportError::Errno { operation, errno };
        let inner = &self.inner;
        let mut map = DmaMap {
            argsz: size_of::<DmaMap>() as u32,
            flags: DmaMapFlags::READ.bits(),
            offset: 0,
            addr: range.start(),
            size: range.length(),
        };
        let (writable, memory) = match target {
            DmaTarget::Messages { writable } => (writable, None),
            DmaTarget::Memory { memory, offset, writable } => {
                let part = memory
                    .slice(offset, range.length())
                    .map_err(|_| refused(OPERATION, Errno::EINVAL))?;
                map.offset = part.offset();
                (writable, Some(part))
            }
        };
        if writable {
            map.flags |= DmaMapFlags::WRITE.bits();
        }
        let fds: Vec<_> = memory.iter().map(SharedMemory::fd).collect();
        if fds.len() > inner.agreed.max_fds {
            return Err(refused(
                "map memory by its descriptor, of a server that takes none (max_msg_fds \
                 0): map it for messages",
                Errno::EOPNOTSUPP,
            ));
        }
        // 4 KiB are everybody's, and what of less is taken the server says itself.
        let page = inner.agreed.page;
        if page > 4096 && !(range.start() | range.length()).is_multiple_of(page) {
            return Err(refused(
                "map DMA, of a server that has larger pages (pgsizes)",
                Errno::EINVAL,
            ));
        }
        let Some(new) = inner.mappings.add(range, inner.agreed.max_maps) else {
            return Err(refused(
                "map DMA, of a server that takes no more mappings (max_dma_maps)",
                Errno::ENOSPC,
            ));
        };
        let mut sink = Sink { fixed: ECHO, data: &mut [] };
        let deadline = inner.options.call_deadline;
        let request = Request::DmaMap(map);
        let answer = inner.line.call(OPERATION, &request, &fds, &mut sink, deadline);
        if answer.is_err() && new {
            inner.mappings.remove(range);
        }
        answer.map(drop)
    }

    pub(super) fn unmap(&self, range: IovaRange) -> Result<(), TransportError> {
        const OPERATION: &str = "unmap DMA";
        let size = size_of::<DmaUnmap>();
        let request = Request::DmaUnmap(DmaUnmap {
            argsz: size as u32,
            flags: 0,
            addr: range.start(),
            size: range.length(),
        });
        self.small(OPERATION, &request, ECHO)?;
        self.inner.mappings.remove(range);
        self.dma_is_over(OPERATION)
    }

    pub(super) fn unmap_all(&self) -> Result<(), TransportError> {
        const OPERATION: &str = "unmap all DMA";
        let size = size_of::<DmaUnmap>();
        let request = Request::DmaUnmap(DmaUnmap {
            argsz: size as u32,
            flags: DmaUnmapFlags::ALL.bits(),
            addr: 0,
            size: 0,
        });
        match self.small(OPERATION, &request, ECHO) {
            Ok(_) => {
                self.inner.mappings.lock().clear();
                self.dma_is_over(OPERATION)
            }
            // The text has no such flag. What this client mapped it knows itself.
            Err(TransportError::Errno { errno, .. }) => {
                tracing::debug!(device = %self.inner.options.name, %errno, "one by one");
                let all: Vec<_> = self.inner.mappings.lock().iter().copied().collect();
                for (start, length) in all {
                    // It was a range when it was mapped.
                    let Ok(range) = IovaRange::new(start, length) else { continue };
                    self.unmap(range)?;
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn unmap_dirty(
        &self,
        range: IovaRange,
        page: PageSize,
    ) -> Result<Vec<u64>, TransportError> {
        const OPERATION: &str = "unmap DMA with its dirty bits";
        let inner = &self.inner;
        let words = range.length().div_ceil(page.bytes()).div_ceil(64);
        let bytes = words.saturating_mul(8);
        if bytes > inner.agreed.max_report as u64 {
            return Err(TransportError::Errno {
                operation: "unmap DMA with more dirty bits than a message holds \
                            (max_bitmap_size, max_data_xfer_size)",
                errno: Errno::E2BIG,
            });
        }
        let fixed = size_of::<DmaUnmap>() + size_of::<DirtyBitmap>();
        let unmap = DmaUnmap {
            argsz: (fixed as u64 + bytes) as u32,
            flags: DmaUnmapFlags::GET_DIRTY_BITMAP.bits(),
            addr: range.start(),
            size: range.length(),
        };
        let wanted = DirtyBitmap { pgsize: page.bytes(), size: bytes };
        let request = Request::DmaUnmapDirty(unmap, wanted);
        let mut bits = vec![0_u64; words as usize];
        let mut sink = Sink { fixed, data: bits.as_mut_bytes() };
        let deadline = inner.options.call_deadline;
        let answer = inner.line.call(OPERATION, &request, &[], &mut sink, deadline)?;
        // It did unmap, whatever it says of the bits.
        inner.mappings.remove(range);
        self.dma_is_over(OPERATION)?;
        let found = answer.fixed.get(size_of::<DmaUnmap>()..);
        let found = found.and_then(|rest| DirtyBitmap::read_from_bytes(rest).ok());
        if found != Some(wanted) || answer.data as u64 != bytes {
            // The caller takes it all for dirty; the server may be listened to.
            let what = "not the bitmap that was asked for".to_owned();
            return Err(TransportError::Broken { operation: OPERATION, what });
        }
        bits.iter_mut().for_each(|word| *word = u64::from_le(*word));
        Ok(bits)
    }
}
