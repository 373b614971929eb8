//! Dirty pages as a container counts them: type1's own tracking, Linux 5.8 and later.

use std::sync::Arc;

use abi::region::CapHeader;
use abi::type1::{
    CapMigration, DirtyPagesFlags, MAX_BITMAP_SIZE, Type1Cap, Type1Info, Type1InfoFlags,
};
use control::{Transport, TransportError};
use dirty::{IovaRange, PageSize};
use port::{DirtyReport, DirtySource, SourceError, Space as Addresses};
use sys::vfio::DirtyQuery;
use thiserror::Error;
use zerocopy::FromBytes;

use crate::device::Host;
use crate::iommu::reach;
use crate::kernel::Space;

/// How many words the bits of a range have; `None` where the kernel takes no so many.
pub(crate) fn words(range: IovaRange, page: PageSize) -> Option<usize> {
    let words = range.length().div_ceil(page.bytes()).div_ceil(64);
    let fits = words.checked_mul(8)? <= MAX_BITMAP_SIZE;
    usize::try_from(words).ok().filter(|_| fits)
}

/// The container that a device is in, with everything that devices reach through it.
///
/// It tracks pages and not devices. With any device in it whose driver does not pin the
/// pages that it writes (everything but mediated devices), every mapped page is dirty on
/// every query. iommufd has no such thing.
#[derive(Clone)]
pub struct Container {
    // Let go of before the device is: what is mapped can be unmapped only then.
    space: Arc<dyn Space>,
    host: Host,
}

/// What a container says of its tracking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracking {
    /// What one bit stands for: no other page size can be asked for.
    pub page: PageSize,
    /// The most bytes of bits of one query.
    pub most_bytes: u64,
}

/// A query as it is given, right or wrong, for tests of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawQuery {
    /// The size that is claimed of the structure; [`RawQuery::WHOLE`] is right.
    pub argsz: u32,
    /// One of [`DirtyPagesFlags`] is right.
    pub flags: u32,
    /// The first address.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes that a bit stands for.
    pub page: u64,
    /// The size in bytes that is claimed of the bits, at most that of `words`.
    pub size: u64,
    /// How many words there are for bits; `None`: nowhere that could be written.
    pub words: Option<usize>,
}

impl RawQuery {
    /// The size of the structure with its bitmap.
    pub const WHOLE: u32 = DirtyQuery::WHOLE;
}

impl Host {
    /// The container that it is in; `None` for a device that was opened another way.
    pub fn container(&self) -> Option<Container> {
        let space = self.inner.descriptors().space.clone()?;
        let host = self.clone();
        space.ioas_id().is_none().then_some(Container { space, host })
    }
}

impl Container {
    /// Whether it tracks dirty pages, and how.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn tracking(&self) -> Result<Option<Tracking>, TransportError> {
        const OPERATION: &str = "ask the container";
        let space = Arc::clone(&self.space);
        let info = self.host.quick(OPERATION, move |_| space.info())?;
        tracking(&info).map_err(|what| TransportError::Broken {
            operation: OPERATION,
            what: what.to_owned(),
        })
    }

    /// Starts to track. Once more does nothing. Pages that are pinned are dirty from the
    /// start.
    ///
    /// # Errors
    /// The kernel's errno: ENOTTY where it cannot.
    pub fn start(&self) -> Result<(), TransportError> {
        self.plain("track dirty pages", DirtyPagesFlags::START)
    }

    /// Stops to track. Once more does nothing.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn stop(&self) -> Result<(), TransportError> {
        self.plain("track no dirty pages", DirtyPagesFlags::STOP)
    }

    fn plain(
        &self,
        operation: &'static str,
        flags: DirtyPagesFlags,
    ) -> Result<(), TransportError> {
        let space = Arc::clone(&self.space);
        let flags = flags.bits();
        self.host.slow(operation, move |_| space.dirty_pages(DirtyQuery::plain(flags)))
    }

    /// What was written in a range, which must cut no mapping in two: a bit for each
    /// `page`, from its first address on.
    ///
    /// # Errors
    /// The kernel's errno: EINVAL before [`Container::start`], for a page size other than
    /// [`Tracking::page`], and for more bits than it takes. Everything in the range is
    /// dirty then.
    pub fn dirty(
        &self,
        range: IovaRange,
        page: PageSize,
    ) -> Result<Vec<u64>, TransportError> {
        let Some(words) = words(range, page) else {
            let errno = abi::errno::Errno::EINVAL;
            return Err(TransportError::Errno {
                operation: "ask for dirty pages",
                errno,
            });
        };
        self.raw(RawQuery {
            argsz: RawQuery::WHOLE,
            flags: DirtyPagesFlags::GET_BITMAP.bits(),
            iova: range.start(),
            length: range.length(),
            page: page.bytes(),
            size: words as u64 * 8,
            words: Some(words),
        })
    }

    /// A query as it is given.
    ///
    /// # Errors
    /// The kernel's errno; EINVAL, without asking, for an `argsz` or a `size` beyond what
    /// there is.
    pub fn raw(&self, query: RawQuery) -> Result<Vec<u64>, TransportError> {
        let space = Arc::clone(&self.space);
        self.host.slow("ask for dirty pages", move |_| {
            let most = (MAX_BITMAP_SIZE / 8) as usize + 1;
            let mut bits = query.words.map(|words| vec![0; words.min(most)]);
            let RawQuery { argsz, flags, iova, length, page, size, words: _ } = query;
            let bits_there = bits.as_deref_mut();
            space.dirty_pages(DirtyQuery {
                argsz,
                flags,
                iova,
                length,
                page,
                size,
                bits: bits_there,
            })?;
            Ok(bits.unwrap_or_default())
        })
    }

    /// It as a source of dirty bits, for everything that is mapped through it; `None`
    /// where it does not track.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn source(&self) -> Result<Option<ContainerLog>, TransportError> {
        let Some(tracking) = self.tracking()? else { return Ok(None) };
        let name = format!("{} container", self.host.name());
        Ok(Some(ContainerLog { container: self.clone(), tracking, name }))
    }
}

impl std::fmt::Debug for Container {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Container").field("device", &self.host.name()).finish()
    }
}

fn tracking(info: &[u8]) -> Result<Option<Tracking>, &'static str> {
    let (head, _) =
        Type1Info::read_from_prefix(info).map_err(|_| "shorter than its structure")?;
    let mut at = match Type1InfoFlags::from_bits_retain(head.flags) {
        flags if flags.contains(Type1InfoFlags::CAPS) => head.cap_offset as usize,
        _ => 0,
    };
    // No chain is longer than what could hold it.
    for _ in 0..info.len() / size_of::<CapHeader>() {
        if at == 0 {
            return Ok(None);
        }
        let here = info.get(at..).ok_or("a capability lies outside")?;
        let (header, _) =
            CapHeader::read_from_prefix(here).map_err(|_| "a capability is cut off")?;
        if Type1Cap(header.id) == Type1Cap::MIGRATION {
            let (cap, _) = CapMigration::read_from_prefix(here)
                .map_err(|_| "a capability is cut off")?;
            // One bit, and were there more, the smallest is what can be asked for.
            let smallest = 1_u64.checked_shl(cap.pgsize_bitmap.trailing_zeros());
            let page = smallest.and_then(|bytes| PageSize::new(bytes).ok());
            let page = page.ok_or("no page size that could be")?;
            let most_bytes = cap.max_dirty_bitmap_size.min(MAX_BITMAP_SIZE);
            return Ok(Some(Tracking { page, most_bytes }));
        }
        at = header.next as usize;
    }
    Err("capabilities that do not end")
}

/// The tracking of a container, as a source of dirty bits.
#[derive(Clone, Debug)]
pub struct ContainerLog {
    container: Container,
    tracking: Tracking,
    name: String,
}

impl ContainerLog {
    fn error(
        &self,
        operation: &str,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> SourceError {
        SourceError::new(&self.name, operation, source)
    }
}

/// To a range that is not mapped the kernel says that nothing was written.
#[derive(Debug, Error)]
#[error("a part of the range is not mapped")]
struct NotMapped;

impl DirtySource for ContainerLog {
    fn name(&self) -> &str {
        &self.name
    }

    fn space(&self) -> Addresses {
        Addresses::Iova
    }

    fn goes_with_mappings(&self) -> Option<PageSize> {
        Some(self.tracking.page)
    }

    fn start(&mut self, _: &[IovaRange], _: PageSize) -> Result<(), SourceError> {
        // All that is mapped, by pages of its own choice.
        self.container.start().map_err(|error| self.error("start", error))
    }

    fn collect(
        &mut self,
        range: IovaRange,
        found: &mut dyn FnMut(DirtyReport<'_>),
    ) -> Result<(), SourceError> {
        const OPERATION: &str = "collect";
        let page = self.tracking.page;
        // A call that hangs holds what is mapped.
        let space = Arc::clone(&self.container.space);
        let mappings = self
            .container
            .host
            .slow("ask what is mapped", move |_| Ok(space.mappings(range)))
            .map_err(|error| self.error(OPERATION, error))?;
        if reach(range, &mappings).is_none() {
            return Err(self.error(OPERATION, NotMapped));
        }
        // The kernel refuses to cut a mapping in two, so each is asked for whole, and
        // told whole, since it is forgotten there. None has more pages than a query
        // may have bits: the kernel does not map it while it tracks, nor starts to.
        for mapping in mappings {
            let words = self.container.dirty(mapping, page).map_err(|error| {
                // It may be forgotten all the same, and is more than was asked for.
                if !range.covers(mapping) {
                    found(DirtyReport::lost(mapping));
                }
                self.error(OPERATION, error)
            })?;
            found(DirtyReport { range: mapping, page, words: &words });
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), SourceError> {
        self.container.stop().map_err(|error| self.error("stop", error))
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    fn info(caps: &[&[u8]]) -> Vec<u8> {
        let head = Type1Info {
            argsz: 200,
            flags: 0b11,
            iova_pgsizes: 0xffff_f000,
            cap_offset: 24,
            pad: 0,
        };
        let mut bytes = head.as_bytes().to_vec();
        caps.iter().for_each(|cap| bytes.extend_from_slice(cap));
        bytes
    }

    #[test]
    fn the_number_of_the_draft_is_not_taken_for_the_tracking() {
        // 1 was migration in 2018, and is the ranges that can be mapped.
        let ranges = CapHeader { id: 1, version: 1, next: 32 };
        let migration = CapMigration {
            header: CapHeader { id: 2, version: 1, next: 0 },
            flags: 0,
            pad: 0,
            pgsize_bitmap: 0x1000,
            max_dirty_bitmap_size: 268_435_456,
        };
        let bytes = info(&[ranges.as_bytes(), migration.as_bytes()]);
        let page = PageSize::new(4096).unwrap();
        let known = Tracking { page, most_bytes: 268_435_456 };
        assert_eq!(tracking(&bytes), Ok(Some(known)));
        let alone = CapHeader { id: 1, version: 1, next: 0 };
        assert_eq!(tracking(&info(&[alone.as_bytes()])), Ok(None));
    }

    #[test]
    fn capabilities_in_circles_or_without_a_page_size_are_refused() {
        let round = CapHeader { id: 1, version: 1, next: 24 };
        assert!(tracking(&info(&[round.as_bytes()])).is_err());
        let out = CapHeader { id: 1, version: 1, next: 9999 };
        assert!(tracking(&info(&[out.as_bytes()])).is_err());
        let none = CapMigration {
            header: CapHeader { id: 2, version: 1, next: 0 },
            flags: 0,
            pad: 0,
            pgsize_bitmap: 0,
            max_dirty_bitmap_size: 8,
        };
        assert!(tracking(&info(&[none.as_bytes()])).is_err());
        assert!(tracking(&[0; 7]).is_err());
    }

    #[test]
    fn more_bits_than_the_kernel_takes_are_never_allocated() {
        let page = PageSize::new(4096).unwrap();
        let most = IovaRange::new(0, 8 << 40).unwrap();
        assert_eq!(words(most, page), Some(256 << 17));
        assert_eq!(words(IovaRange::new(0, (8 << 40) + 4096).unwrap(), page), None);
    }
}
