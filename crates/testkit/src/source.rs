//! A source of dirty bits that tests mark.

use std::sync::{Arc, Mutex};

use dirty::{Bitmap, IovaRange, PageSize};
use port::{DirtyReport, DirtySource, SourceError, Space};

use crate::{Injected, Side, locked};

/// A source of dirty bits: what its [`SourceHandle`]s marked while it was started.
#[derive(Debug)]
pub struct FakeSource {
    name: String,
    space: Space,
    side: Side,
    page: PageSize,
    log: SourceHandle,
}

/// Marks what was written.
#[derive(Clone, Debug, Default)]
pub struct SourceHandle(Arc<Mutex<Log>>);

#[derive(Debug, Default)]
struct Log {
    started: Option<Vec<Bitmap>>,
    outside: u64,
    never: Vec<IovaRange>,
}

impl FakeSource {
    /// A source that is called `name` and speaks in `space`.
    pub fn new(side: &Side, name: &str, space: Space) -> FakeSource {
        FakeSource {
            name: name.to_owned(),
            space,
            side: side.clone(),
            page: PageSize::FOUR_K,
            log: SourceHandle::default(),
        }
    }

    /// The same source with pages of its own, whatever it is asked to count in.
    #[must_use]
    pub fn with_page(mut self, page: PageSize) -> FakeSource {
        self.page = page;
        self
    }

    /// What marks it.
    pub fn handle(&self) -> SourceHandle {
        self.log.clone()
    }

    fn error(&self, operation: &str, why: &'static str) -> SourceError {
        SourceError::new(&self.name, operation, Injected::because(why))
    }
}

impl SourceHandle {
    /// Records a write to `range`, where it is asked to record any.
    pub fn mark(&self, range: IovaRange) {
        let log = &mut *locked(&self.0);
        let maps = log.started.iter().flatten();
        let mut covered = 0;
        for map in maps {
            if let Some(inside) = map.range().intersection(range) {
                map.mark(inside);
                covered += inside.length();
            }
        }
        if log.started.is_some() && covered < range.length() {
            log.outside += 1;
        }
    }

    /// Whether it records.
    pub fn started(&self) -> bool {
        locked(&self.0).started.is_some()
    }

    /// How many pages are recorded and not collected.
    pub fn pages(&self) -> u64 {
        locked(&self.0).started.iter().flatten().map(Bitmap::count).sum()
    }

    /// How many writes touched what it was not asked to record.
    pub fn outside(&self) -> u64 {
        locked(&self.0).outside
    }

    /// Fails each time that it is asked for exactly `range`.
    pub fn never_tell(&self, range: IovaRange) {
        locked(&self.0).never.push(range);
    }

    /// Tells of everything again, after [`SourceHandle::never_tell`].
    pub fn tell_again(&self) {
        locked(&self.0).never.clear();
    }

    /// Loses the record, as a device that is reset, or one that stops to log when it
    /// leaves STOP_COPY: what was not collected is gone, and collecting fails.
    pub fn lose(&self) {
        locked(&self.0).started = None;
    }
}

impl DirtySource for FakeSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn space(&self) -> Space {
        self.space
    }

    fn goes_with_mappings(&self) -> Option<PageSize> {
        None
    }

    fn start(
        &mut self,
        ranges: &[IovaRange],
        _page: PageSize,
    ) -> Result<(), SourceError> {
        self.side.note(&self.name, "start");
        let map = |range: &IovaRange| {
            let range = range.align_out(self.page).ok()?;
            Bitmap::new(range, self.page).ok()
        };
        let maps: Option<Vec<Bitmap>> = ranges.iter().map(map).collect();
        let maps =
            maps.ok_or_else(|| self.error("start", "such a range has no bitmap"))?;
        let log = &mut *locked(&self.log.0);
        if log.started.is_some() {
            return Err(self.error("start", "it was started before"));
        }
        log.started = Some(maps);
        Ok(())
    }

    fn collect(
        &mut self,
        range: IovaRange,
        found: &mut dyn FnMut(DirtyReport<'_>),
    ) -> Result<(), SourceError> {
        self.side.note(&self.name, "collect");
        let log = &mut *locked(&self.log.0);
        let Some(maps) = &log.started else {
            return Err(self.error("collect", "it records nothing"));
        };
        if !maps.iter().any(|map| map.range().covers(range)) {
            return Err(self.error("collect", "it was started on other ranges"));
        }
        if log.never.contains(&range) {
            return Err(self.error("collect", "it does not tell of this"));
        }
        for map in maps {
            let Some(range) = map.range().intersection(range) else { continue };
            let Ok(range) = range.align_out(self.page) else { continue };
            let pages = range.length() / self.page.bytes();
            let mut words = vec![0; pages.div_ceil(64) as usize];
            map.report(range, self.page, &mut words)
                .map_err(|_| self.error("collect", "such a range has no bitmap"))?;
            found(DirtyReport { range, page: self.page, words: &words });
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), SourceError> {
        self.side.note(&self.name, "stop");
        locked(&self.log.0).started = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, length: u64) -> IovaRange {
        IovaRange::new(start, length).unwrap()
    }

    fn collected(source: &mut FakeSource, from: IovaRange) -> Vec<IovaRange> {
        let whole = Bitmap::new(range(0, 1 << 20), PageSize::FOUR_K).unwrap();
        source
            .collect(from, &mut |report| {
                whole.merge(report.range, report.page, report.words);
            })
            .unwrap();
        whole.drain().runs().collect()
    }

    #[test]
    fn what_was_marked_is_collected_once() {
        let side = Side::alone("source");
        let mut source = FakeSource::new(&side, "log", Space::Iova);
        let handle = source.handle();
        assert!(source.collect(range(0, 4096), &mut |_| {}).is_err());
        let ranges = [range(0, 0x10000), range(0x80000, 0x10000)];
        source.start(&ranges, PageSize::FOUR_K).unwrap();
        handle.mark(range(0x1ffe, 4));
        handle.mark(range(0x81000, 1));
        handle.mark(range(0x40000, 1));
        assert_eq!((handle.pages(), handle.outside()), (3, 1));
        let low = collected(&mut source, range(0, 0x10000));
        assert_eq!(low, [range(0x1000, 0x2000)]);
        let high = collected(&mut source, range(0x80000, 0x10000));
        assert_eq!(high, [range(0x81000, 0x1000)]);
        assert_eq!(collected(&mut source, range(0x80000, 0x10000)), []);
        assert!(source.collect(range(0, 0x90000), &mut |_| {}).is_err(), "not all of it");
        handle.lose();
        assert!(source.collect(range(0, 4096), &mut |_| {}).is_err());
    }
}
