//! The log that a device keeps of its own writes to guest memory.

use std::sync::Arc;

use abi::dma_logging::{MAX_RANGES, MIN_REPORT_PAGE, Range};
use abi::errno::Errno;
use abi::feature::Feature;
use abi::vfio_user::{LoggingControl, LoggingReport};
use dirty::{IovaRange, PageSize};
use port::{DirtyReport, DirtySource, SourceError, Space};
use thiserror::Error;
use zerocopy::{FromBytes, IntoBytes};

use crate::probe::{ProbeError, failed};
use crate::transport::{Transport, TransportError};

/// Words of a report before its bits.
const FIELDS: usize = size_of::<LoggingReport>() / size_of::<u64>();

/// The dirty log of a device (features 6, 7 and 8, Linux 6.1), as a source of dirty
/// bits.
///
/// The log is asked in pieces, so that no answer is larger than a transport takes; or a
/// mapping at a time, where the device reports nothing else (libvfio-user).
/// Every error means that all it covers is dirty; where the log is lost altogether,
/// collecting goes on to fail until it is started again.
pub struct DmaLog {
    transport: Arc<dyn Transport>,
    name: String,
    most_words: usize,
    active: Option<Active>,
    /// Whether the device may log because this one asked for it.
    ours: bool,
    /// The last report: its fields and its bits, which together are whole words. As long
    /// as the longest so far, and reused.
    answer: Vec<u64>,
}

struct Active {
    /// What one bit of a report stands for.
    page: PageSize,
    /// What the device was asked to log, in rising order.
    ranges: Vec<IovaRange>,
    /// The mappings, as they were given.
    mappings: Vec<IovaRange>,
    /// Whether the device reports nothing but all of a mapping.
    whole: bool,
    /// What the report that tried the log out had found, until it is collected.
    early: Option<(IovaRange, Vec<u64>)>,
}

impl DmaLog {
    /// The most bytes of bits in one answer, unless somebody says otherwise: 512 KiB,
    /// which are 16 GiB of 4 KiB pages, and well inside the 1 MiB that vfio-user peers
    /// take by default.
    pub const MOST_BYTES: usize = 512 << 10;

    /// The most bytes of bits in one answer of a device that reports its mappings as a
    /// whole: 32 MiB, which are 1 TiB of 4 KiB pages.
    const MOST_WHOLE: usize = 32 << 20;

    /// The log of a device, or `None` where it keeps none.
    ///
    /// # Errors
    /// When the device does not answer.
    pub fn open(transport: Arc<dyn Transport>) -> Result<Option<DmaLog>, ProbeError> {
        for feature in [
            Feature::DMA_LOGGING_START,
            Feature::DMA_LOGGING_STOP,
            Feature::DMA_LOGGING_REPORT,
        ] {
            match transport.feature_probe(feature) {
                Ok(()) => {}
                Err(TransportError::Errno { .. }) => return Ok(None),
                Err(source) => {
                    return Err(failed(&*transport, "whether it logs its writes")(
                        source,
                    ));
                }
            }
        }
        let name = format!("{} DMA log", transport.name());
        let log = DmaLog {
            transport,
            name,
            most_words: 1,
            active: None,
            ours: false,
            answer: Vec::new(),
        };
        Ok(Some(log.with_most_bytes(Self::MOST_BYTES)))
    }

    /// The same log, asked for at most `bytes` bytes of bits at a time, and at least 8;
    /// for no more than the transport takes ([`Transport::most_report_bytes`]).
    #[must_use]
    pub fn with_most_bytes(self, bytes: usize) -> DmaLog {
        let bytes = bytes.min(self.transport.most_report_bytes());
        DmaLog { most_words: (bytes / 8).max(1), ..self }
    }

    /// Starts the log on `ranges`, on fewer and larger ones where the device cannot
    /// have as many. Returns the page size that it chose.
    fn ask_to_start(
        &mut self,
        ranges: &mut Vec<IovaRange>,
        page: PageSize,
    ) -> Result<PageSize, Trouble> {
        let mut most = MAX_RANGES as usize;
        loop {
            combine(ranges, most);
            let control = LoggingControl {
                page_size: page.bytes(),
                num_ranges: u32::try_from(ranges.len()).unwrap_or(u32::MAX),
                reserved: 0,
            };
            let mut payload = control.as_bytes().to_vec();
            for range in ranges.iter() {
                let range = Range { iova: range.start(), length: range.length() };
                payload.extend(range.as_bytes());
            }
            self.ours = true;
            match self.transport.feature_set(Feature::DMA_LOGGING_START, &payload) {
                // Some say no more than that it was done. A report names its page size
                // itself, and a server that has another refuses it.
                Ok(answer) if answer.is_empty() => return Ok(page),
                Ok(answer) => return chosen(&answer),
                Err(error) if error.errno() == Some(Errno::E2BIG) && ranges.len() > 1 => {
                    most = ranges.len() / 2;
                }
                Err(error) if error.errno().is_none() => return Err(error.into()),
                Err(error) => {
                    self.ours = false;
                    return Err(Trouble::Refused(error));
                }
            }
        }
    }

    fn report(&mut self, range: IovaRange, page: PageSize) -> Result<&[u64], Trouble> {
        let question = LoggingReport {
            iova: range.start(),
            length: range.length(),
            page_size: page.bytes(),
        };
        let words = (range.length().div_ceil(page.bytes())).div_ceil(64);
        let words = usize::try_from(words).map_err(|_| Trouble::Answer("too long"))?;
        let words = FIELDS + words;
        if self.answer.len() < words {
            self.answer.resize(words, 0);
        }
        let answer = &mut self.answer[..words];
        let (feature, bytes) = (Feature::DMA_LOGGING_REPORT, answer.as_mut_bytes());
        let len = self.transport.feature_get_into(feature, question.as_bytes(), bytes)?;
        if len < size_of::<LoggingReport>() {
            return Err(Trouble::Answer("shorter than its header"));
        }
        // libvfio-user answers some ranges with success and no bits at all.
        if len != bytes.len() {
            return Err(Trouble::Answer("not as many bits as pages"));
        }
        let (echo, bits) = answer.split_at_mut(FIELDS);
        if echo.as_bytes() != question.as_bytes() {
            return Err(Trouble::Answer("about another range than was asked for"));
        }
        if cfg!(target_endian = "big") {
            bits.iter_mut().for_each(|word| *word = u64::from_le(*word));
        }
        Ok(bits)
    }

    fn ask_to_stop(&mut self) -> Result<(), Trouble> {
        // The kernel takes no payload and ignores a longer one, vfio-user's text wants
        // the shape of START.
        let control = LoggingControl { page_size: 0, num_ranges: 0, reserved: 0 };
        let stop = Feature::DMA_LOGGING_STOP;
        let stopped = self.transport.feature_set(stop, control.as_bytes());
        // A device that was reset may say that there is none.
        self.ours = stopped.as_ref().is_err_and(|error| error.errno().is_none());
        stopped.map(drop).map_err(Trouble::from)
    }

    fn error(&self, operation: &str, trouble: Trouble) -> SourceError {
        SourceError::new(&self.name, operation, trouble)
    }

    fn try_to_start(
        &mut self,
        ranges: &[IovaRange],
        page: PageSize,
    ) -> Result<(), Trouble> {
        let outward = |page: PageSize| {
            let outward = |range: &IovaRange| range.align_out(page);
            let ranges: Result<Vec<IovaRange>, _> = ranges.iter().map(outward).collect();
            ranges.map_err(|_| Trouble::PastTheEnd)
        };
        let mut page = page;
        let mut logged = outward(page)?;
        loop {
            let chosen = self.ask_to_start(&mut logged, page)?;
            let whole = logged.iter().all(|range| range.is_aligned(chosen));
            page = chosen;
            if whole {
                break;
            }
            // Its pages are larger, and a report would end inside of one: that is
            // forgotten there as a whole, and would be told by half.
            self.ask_to_stop()?;
            logged = outward(page)?;
        }
        let mappings = outward(page)?;
        // A part of a mapping, where any has more than a page: whoever reports that is never
        // asked again for what it forgot with a report that failed.
        let larger = mappings.iter().find(|mapping| mapping.length() > page.bytes());
        let Some(first) = larger.or(logged.first()) else { return Err(Trouble::NoRange) };
        // Kernels without IOMMUFD offer the log, start it, and fail every report.
        let tried = IovaRange::new(first.start(), page.bytes().min(first.length()))
            .map_err(|_| Trouble::PastTheEnd)?;
        let (tried, words, whole) = match self.report(tried, page) {
            Ok(words) => (tried, found(words), false),
            Err(trouble) if trouble.refuses_a_part() => {
                let (tried, words) = self.try_mappings(&mappings, page, trouble)?;
                (tried, words, true)
            }
            Err(trouble) => return Err(trouble),
        };
        let early = words.map(|words| (tried, words));
        self.active = Some(Active { page, ranges: logged, mappings, whole, early });
        Ok(())
    }

    fn try_to_collect(
        &mut self,
        range: IovaRange,
        found: &mut dyn FnMut(DirtyReport<'_>),
    ) -> Result<(), Trouble> {
        let Some(active) = &mut self.active else { return Err(Trouble::NotStarted) };
        let page = active.page;
        let pages = range.align_out(page).map_err(|_| Trouble::PastTheEnd)?;
        covering(pages, &active.ranges).ok_or(Trouble::NotCovered)?;
        if let Some((range, words)) =
            active.early.take_if(|(early, _)| early.overlaps(pages))
        {
            found(DirtyReport { range, page, words: &words });
        }
        if !active.whole {
            return self.report_pieces(pages, page, found);
        }
        // What a report tells is forgotten there, so nothing may be in it that was not
        // asked for.
        if !active.mappings.contains(&pages) {
            return Err(Trouble::Part);
        }
        let words = self.report_whole(pages, page)?;
        found(DirtyReport { range: pages, page, words });
        Ok(())
    }

    fn report_pieces(
        &mut self,
        range: IovaRange,
        page: PageSize,
        found: &mut dyn FnMut(DirtyReport<'_>),
    ) -> Result<(), Trouble> {
        let most =
            (self.most_words as u64).saturating_mul(64).saturating_mul(page.bytes());
        for range in range.pieces(most) {
            let words = self.report(range, page)?;
            found(DirtyReport { range, page, words });
        }
        Ok(())
    }

    /// libvfio-user reports a mapping as a whole, and nothing else: the first that it
    /// does report. Of memory without a descriptor it says nothing.
    fn try_mappings(
        &mut self,
        mappings: &[IovaRange],
        page: PageSize,
        mut trouble: Trouble,
    ) -> Result<(IovaRange, Option<Vec<u64>>), Trouble> {
        for mapping in mappings.iter().take(MAX_RANGES as usize) {
            match self.report_whole(*mapping, page) {
                Ok(words) => return Ok((*mapping, found(words))),
                Err(refused) if refused.refuses_a_part() => trouble = refused,
                Err(Trouble::TooLarge) => trouble = Trouble::TooLarge,
                Err(other) => return Err(other),
            }
        }
        Err(trouble)
    }

    /// All of a mapping in one report, where its bits fit into one.
    fn report_whole(
        &mut self,
        range: IovaRange,
        page: PageSize,
    ) -> Result<&[u64], Trouble> {
        let words = range.length().div_ceil(page.bytes()).div_ceil(64);
        let most = self.transport.most_report_bytes().min(Self::MOST_WHOLE) / 8;
        if words > most as u64 {
            return Err(Trouble::TooLarge);
        }
        self.report(range, page)
    }
}

impl std::fmt::Debug for DmaLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DmaLog")
            .field("name", &self.name)
            .field("started", &self.active.is_some())
            .finish_non_exhaustive()
    }
}

impl DirtySource for DmaLog {
    fn name(&self) -> &str {
        &self.name
    }

    fn space(&self) -> Space {
        Space::Iova
    }

    fn goes_with_mappings(&self) -> Option<PageSize> {
        None
    }

    fn start(&mut self, ranges: &[IovaRange], page: PageSize) -> Result<(), SourceError> {
        const OPERATION: &str = "start";
        if ranges.is_empty() {
            // The kernel says EINVAL, vfio-user would log everything.
            return Err(self.error(OPERATION, Trouble::NoRange));
        }
        self.active = None;
        // Drivers differ in what they make of a second START.
        if self.ours
            && let Err(trouble) = self.ask_to_stop()
            && self.ours
        {
            return Err(self.error(OPERATION, trouble));
        }
        let asked = page.max(PageSize::FOUR_K);
        self.try_to_start(ranges, asked).map_err(|trouble| {
            // Whether it runs or not, nobody will ask for it; but where the device
            // refused, what runs is somebody else's, and STOP would end that.
            if self.ours
                && let Err(also) = self.ask_to_stop()
            {
                tracing::debug!(log = self.name, %also, "cannot be stopped either");
            }
            self.error(OPERATION, trouble)
        })
    }

    fn collect(
        &mut self,
        range: IovaRange,
        found: &mut dyn FnMut(DirtyReport<'_>),
    ) -> Result<(), SourceError> {
        self.try_to_collect(range, found).map_err(|trouble| {
            // Its pages may stick out of the range, and nobody knows what it forgot.
            let page = self.active.as_ref().map(|active| active.page);
            let pages = page.and_then(|page| range.align_out(page).ok());
            if let Some(pages) = pages.filter(|pages| *pages != range) {
                found(DirtyReport::lost(pages));
            }
            self.error("collect", trouble)
        })
    }

    /// Where this one has not started it, nothing happens: it is somebody else's.
    fn stop(&mut self) -> Result<(), SourceError> {
        self.active = None;
        if !self.ours {
            return Ok(());
        }
        self.ask_to_stop().map_err(|trouble| self.error("stop", trouble))
    }
}

/// Bits to be kept, where any is set.
fn found(words: &[u64]) -> Option<Vec<u64>> {
    words.iter().any(|word| *word != 0).then(|| words.to_vec())
}

/// The page size in the answer to START.
fn chosen(answer: &[u8]) -> Result<PageSize, Trouble> {
    let Ok((control, _)) = LoggingControl::read_from_prefix(answer) else {
        return Err(Trouble::Answer("shorter than its header"));
    };
    let page = PageSize::new(control.page_size.max(MIN_REPORT_PAGE));
    page.map_err(|_| Trouble::Page(control.page_size))
}

/// Puts ranges in order and joins those that touch; while there are more than `most`,
/// the two with the smallest gap between them too. What lies in a gap is logged as
/// well, which costs nothing but room in the device.
fn combine(ranges: &mut Vec<IovaRange>, most: usize) {
    ranges.sort_unstable();
    join(ranges, |gap| gap == 0);
    let gap = |two: &[IovaRange]| two[1].start() - two[0].end();
    let mut gaps: Vec<u64> = ranges.windows(2).map(gap).collect();
    let surplus = ranges.len().saturating_sub(most.max(1));
    if surplus == 0 {
        return;
    }
    gaps.sort_unstable();
    let limit = gaps[surplus - 1];
    // Of several gaps as large as the limit, only as many as have to go.
    let below = gaps.iter().filter(|gap| **gap < limit).count();
    let mut equal = surplus - below;
    join(ranges, |gap| {
        gap < limit
            || (gap == limit && equal > 0 && {
                equal -= 1;
                true
            })
    });
}

/// Joins neighbours whose gap is to go. Overlapping ranges have a gap of 0.
fn join(ranges: &mut Vec<IovaRange>, mut goes: impl FnMut(u64) -> bool) {
    let mut joined: Vec<IovaRange> = Vec::with_capacity(ranges.len());
    for range in ranges.drain(..) {
        if let Some(last) = joined.last_mut()
            && goes(range.start().saturating_sub(last.end()))
        {
            let end = last.end().max(range.end());
            if let Ok(both) = IovaRange::new(last.start(), end - last.start()) {
                *last = both;
                continue;
            }
        }
        joined.push(range);
    }
    *ranges = joined;
}

fn covering(range: IovaRange, ranges: &[IovaRange]) -> Option<IovaRange> {
    ranges.iter().copied().find(|one| one.covers(range))
}

/// What went wrong with a log.
#[derive(Debug, Error)]
enum Trouble {
    #[error("there is no range to log")]
    NoRange,
    #[error("a page of the range lies past the end of the address space")]
    PastTheEnd,
    #[error("the log was not started")]
    NotStarted,
    #[error("the log was started on other ranges")]
    NotCovered,
    #[error("the device reports a mapping as a whole, and a part of one was asked for")]
    Part,
    #[error("the device reports a mapping as a whole, and this one has too many pages")]
    TooLarge,
    #[error("the device chose {0} as a page size")]
    Page(u64),
    #[error("the answer is {0}")]
    Answer(&'static str),
    /// What the device says to START. It has one log, with one reader.
    #[error("the device refuses{}", if may_be_on(.0) { MAY_BE_ON } else { "" })]
    Refused(#[source] TransportError),
    #[error(transparent)]
    Transport(#[from] TransportError),
}

const MAY_BE_ON: &str = ", most likely because its log is on already: somebody else \
                         reads it, as a migration does, and it is left alone; wait \
                         until they have ended";

/// Whether a device that logs already may say so to START.
fn may_be_on(refusal: &TransportError) -> bool {
    matches!(refusal.errno(), Some(Errno::EINVAL | Errno::EBUSY | Errno::EALREADY))
}

impl Trouble {
    /// Whether a device may say so to a report of a part of a mapping. EIO is what an
    /// error without a number comes to.
    fn refuses_a_part(&self) -> bool {
        matches!(self, Trouble::Transport(error)
            if matches!(error.errno(), Some(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::EIO)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert, proptest};

    fn range(start: u64, length: u64) -> IovaRange {
        IovaRange::new(start, length).unwrap()
    }

    #[test]
    fn the_smallest_gaps_go_first() {
        let all =
            [range(100, 10), range(0, 10), range(12, 8), range(50, 10), range(20, 1)];
        for (most, expected) in [
            (9, vec![range(0, 10), range(12, 9), range(50, 10), range(100, 10)]),
            (3, vec![range(0, 21), range(50, 10), range(100, 10)]),
            (2, vec![range(0, 60), range(100, 10)]),
            (1, vec![range(0, 110)]),
            (0, vec![range(0, 110)]),
        ] {
            let mut ranges = all.to_vec();
            combine(&mut ranges, most);
            assert_eq!(ranges, expected, "at most {most}");
        }
    }

    #[test]
    fn of_equal_gaps_no_more_go_than_must() {
        let mut ranges: Vec<_> = (0..9).map(|n| range(n * 20, 10)).collect();
        combine(&mut ranges, 7);
        assert_eq!(ranges.len(), 7);
    }

    proptest! {
        #[test]
        fn no_address_is_lost_by_combining(
            pieces in proptest::collection::vec((0..1u64 << 40, 1..1u64 << 30), 1..40),
            most in 1..40usize,
            probe in any::<proptest::sample::Index>(),
        ) {
            let all: Vec<_> = pieces.iter().map(|(s, l)| range(*s, *l)).collect();
            let mut combined = all.clone();
            combine(&mut combined, most);
            prop_assert!(combined.len() <= most);
            prop_assert!(combined.windows(2).all(|two| two[0].end() < two[1].start()));
            prop_assert!(covering(*probe.get(&all), &combined).is_some());
        }
    }
}
