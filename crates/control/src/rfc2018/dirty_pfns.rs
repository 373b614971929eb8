//! The dirty pages that an rfc2018 device tells in its region, as a source of dirty bits.
//!
//! ```text
//!   dirty_pfns = { start, total, 0 }      once a query
//!   dirty_pfns -> copied                  as often as it takes: each answer is about the
//!   bitmap     -> copied bits             pages after those of the one before
//! ```
//!
//! The document leaves open where the bitmap lies, what it counts in and what 0 means.
//! Here: at the place where the device puts its data, in pages of 4 KiB, `start` in
//! bytes; and a device that copies nothing, several times, has not said that nothing is
//! dirty: what it did not tell is dirty. So is everything while the device is outside
//! pre-copy and stop-and-copy, where it need not log; which is judged for each device by
//! itself.

use abi::rfc2018::{DirtyPfns, RfcField};
use dirty::{IovaRange, PageSize};
use port::{DirtyReport, DirtySource, SourceError, Space};
use states::v2::State;
use thiserror::Error;
use zerocopy::{FromBytes, IntoBytes};

use super::Rfc2018;
use crate::region::buffers::{Inner, Shared, lock};
use crate::region::{Piece, Trouble};

/// What one bit stands for.
const PAGE: PageSize = PageSize::FOUR_K;
/// The most pages of one query: 4 GiB.
const MOST_PAGES: u64 = 1 << 20;
/// The most bytes of bits that are read or reported at a time.
const MOST_BYTES: usize = 64 << 10;
/// Answers without a page, in a row, before the rest is taken for dirty.
const EMPTY: u32 = 8;
/// Answers of less than 4096 pages that one query may have.
const SMALL: u64 = 256;

/// The dirty pages of an rfc2018 device.
pub(crate) struct DirtyQuery {
    shared: Shared<Rfc2018>,
    name: String,
}

impl DirtyQuery {
    pub(crate) fn new(shared: Shared<Rfc2018>, device: &str) -> DirtyQuery {
        DirtyQuery { shared, name: format!("{device} dirty pages") }
    }

    fn error(&self, operation: &str, trouble: NotTold) -> SourceError {
        SourceError::new(&self.name, operation, trouble)
    }
}

/// Why dirty pages were not told.
#[derive(Debug, Error)]
enum NotTold {
    #[error("a page of the range lies past the end of the address space")]
    PastTheEnd,
    #[error("there is no range to log")]
    NoRange,
    #[error(transparent)]
    Trouble(#[from] Trouble),
}

type Found<'a> = &'a mut dyn FnMut(DirtyReport<'_>);

impl DirtySource for DirtyQuery {
    fn name(&self) -> &str {
        &self.name
    }

    fn space(&self) -> Space {
        Space::Iova
    }

    /// The device logs by itself, from pre-copy on.
    fn goes_with_mappings(&self) -> Option<PageSize> {
        None
    }

    fn start(&mut self, ranges: &[IovaRange], _: PageSize) -> Result<(), SourceError> {
        if ranges.is_empty() {
            return Err(self.error("start", NotTold::NoRange));
        }
        Ok(())
    }

    fn collect(&mut self, range: IovaRange, found: Found<'_>) -> Result<(), SourceError> {
        let inner = &mut *lock(&self.shared);
        let told = match range.align_out(PAGE) {
            Ok(pages) => inner.dirty_pages(pages, found).map_err(|trouble| {
                // Nobody knows what it forgot of pages that stick out of the range.
                if pages != range {
                    found(DirtyReport::lost(pages));
                }
                NotTold::from(trouble)
            }),
            Err(_) => Err(NotTold::PastTheEnd),
        };
        told.map_err(|trouble| self.error("collect", trouble))
    }

    fn stop(&mut self) -> Result<(), SourceError> {
        Ok(())
    }
}

impl Inner<Rfc2018> {
    /// Tells the dirty pages among `pages`, which are whole ones.
    fn dirty_pages(&mut self, pages: IovaRange, found: Found<'_>) -> Result<(), Trouble> {
        let logs = matches!(self.state()?, State::PreCopy | State::StopCopy);
        let Some(place) = self.place.filter(|_| logs) else {
            let device = self.line.name();
            tracing::debug!(device, %pages, "not logged, so dirty");
            all_dirty(Some(pages), found);
            return Ok(());
        };
        // The bitmap may be put where data is that was not read yet.
        self.keep()?;
        self.region.prepare()?;
        for piece in pages.pieces(MOST_PAGES * PAGE.bytes()) {
            self.query(piece, place, found)?;
        }
        Ok(())
    }

    fn query(
        &mut self,
        range: IovaRange,
        place: u64,
        found: Found<'_>,
    ) -> Result<(), Trouble> {
        let total = range.length() / PAGE.bytes();
        let asked = DirtyPfns { start_addr: range.start(), total, copied: 0 };
        self.region.set_register(RfcField::DirtyPfns.at(), asked.as_bytes())?;
        let (mut told, mut empty, mut answers) = (0, 0, 0);
        while told < total {
            let copied = self.copied(asked, total - told)?;
            (empty, answers) = (if copied == 0 { empty + 1 } else { 0 }, answers + 1);
            if empty >= EMPTY || answers > SMALL + told / 4096 {
                let device = self.line.name();
                tracing::warn!(device, told, total, answers, "the rest is dirty");
                all_dirty(pages_of(range, told, total - told)?, found);
                return Ok(());
            }
            self.bitmap(place, pages_of(range, told, copied)?, found)?;
            told += copied;
        }
        Ok(())
    }

    /// For how many more pages the device copied its bitmap.
    fn copied(&self, asked: DirtyPfns, left: u64) -> Result<u64, Trouble> {
        let bytes: [u8; size_of::<DirtyPfns>()] =
            self.region.register(RfcField::DirtyPfns.at())?;
        let answer = DirtyPfns::read_from_bytes(&bytes)
            .map_err(|_| Trouble::Lie("its dirty pages cannot be read".to_owned()))?;
        let DirtyPfns { start_addr, total, copied } = answer;
        if (start_addr, total) != (asked.start_addr, asked.total) {
            return Trouble::lie(format!(
                "it was asked for {} dirty pages from {:#x}, and answers {total} from \
                 {start_addr:#x}",
                asked.total, asked.start_addr
            ));
        }
        if copied > left {
            return Trouble::lie(format!(
                "{left} dirty pages were left to tell, and it told {copied}"
            ));
        }
        Ok(copied)
    }

    /// Reads the bits of `pages`, exactly as many words as they need.
    fn bitmap(
        &mut self,
        place: u64,
        pages: Option<IovaRange>,
        found: Found<'_>,
    ) -> Result<(), Trouble> {
        let Some(pages) = pages else { return Ok(()) };
        let words = (pages.length() / PAGE.bytes()).div_ceil(64);
        self.region.check(Piece { offset: place, size: words * 8 })?;
        let mut at = place;
        let mut bytes =
            vec![0; MOST_BYTES.min(usize::try_from(words * 8).unwrap_or(MOST_BYTES))];
        for range in pages.pieces(MOST_BYTES as u64 * 8 * PAGE.bytes()) {
            let words = (range.length() / PAGE.bytes()).div_ceil(64);
            let length = usize::try_from(words * 8).unwrap_or(MOST_BYTES).min(MOST_BYTES);
            let part = &mut bytes[..length];
            self.region.read(at, part)?;
            at += length as u64;
            let (chunks, _) = part.as_chunks::<8>();
            let words: Vec<u64> =
                chunks.iter().map(|word| u64::from_le_bytes(*word)).collect();
            found(DirtyReport { range, page: PAGE, words: &words });
        }
        Ok(())
    }
}

/// `count` pages of a range, from page `first` on; `None` for none of them.
fn pages_of(
    range: IovaRange,
    first: u64,
    count: u64,
) -> Result<Option<IovaRange>, Trouble> {
    if count == 0 {
        return Ok(None);
    }
    let start = range.start() + first * PAGE.bytes();
    match IovaRange::new(start, count * PAGE.bytes()) {
        Ok(pages) => Ok(Some(pages)),
        Err(error) => Trouble::lie(error.to_string()),
    }
}

fn all_dirty(pages: Option<IovaRange>, found: Found<'_>) {
    const BITS: u64 = 1 << 15;
    const ALL: [u64; BITS as usize / 64] = [u64::MAX; BITS as usize / 64];
    for range in pages.into_iter().flat_map(|all| all.pieces(BITS * PAGE.bytes())) {
        let words = (range.length() / PAGE.bytes()).div_ceil(64);
        let words = usize::try_from(words).unwrap_or(ALL.len()).min(ALL.len());
        found(DirtyReport { range, page: PAGE, words: &ALL[..words] });
    }
}
