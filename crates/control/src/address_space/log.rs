//! Who tells of a device's writes, and that by guest-physical addresses.

use std::sync::{Arc, Mutex};

use dirty::{Bitmap, IovaRange, PageSize};
use port::{DirtyReport, DirtySource, Mapping, Mappings, SourceError, Space};

use super::{State, lock};

/// The log of a device, and what it told.
pub(super) struct Log {
    /// In device addresses.
    pub(super) source: Box<dyn DirtySource>,
    /// While it records.
    pub(super) on: Option<On>,
}

/// What was told and not collected.
pub(super) struct On {
    pub(super) dirty: Vec<Bitmap>,
    /// Guest-physical addresses of which the last report failed.
    lost: Vec<IovaRange>,
}

/// More than anybody unmaps without the engine asking: beyond that everything is lost.
const MOST_LOST: usize = 1024;

impl Log {
    /// Takes in what it tells of a mapping; returns the guest memory of which it does not
    /// tell.
    pub(super) fn ask(&mut self, mapping: Mapping, table: &Mappings) -> Vec<IovaRange> {
        let Log { source, on: Some(on) } = self else { return Vec::new() };
        let mut lost = Vec::new();
        let asked = source.collect(mapping.iova, &mut |report| {
            // More than the mapping, where pages are larger than that.
            table.merge(report, &on.dirty);
            if report.is_lost() {
                let touched = table.touched_by(report.range);
                lost.extend(touched.filter_map(Mapping::guest));
            }
        });
        if let Err(error) = asked {
            let (log, iova) = (source.name(), mapping.iova);
            let error: &dyn std::error::Error = &error;
            tracing::warn!(log, %iova, error, "a mapping is dirty: its log does not tell");
            lost.extend(mapping.guest());
        }
        lost
    }
}

impl On {
    /// What was written through a mapping is all of it, as far as anybody knows.
    pub(super) fn mark(&self, mapping: Mapping) {
        let guest = mapping.guest();
        guest.into_iter().for_each(|guest| self.dirty.iter().for_each(|d| d.mark(guest)));
    }

    /// Its log failed, which the engine has to know.
    pub(super) fn lose(&mut self, mapping: Mapping) {
        mapping.guest().into_iter().for_each(|guest| self.lose_guest(guest));
    }

    pub(super) fn lose_guest(&mut self, range: IovaRange) {
        // What is no guest memory is not missed.
        let memory = self.dirty.iter().any(|dirty| dirty.range().overlaps(range));
        if memory && !self.lost.contains(&range) {
            self.lost.push(range);
        }
        if self.lost.len() > MOST_LOST {
            self.lost = self.dirty.iter().map(Bitmap::range).collect();
        }
    }
}

/// The writes of one device, in guest-physical addresses, whatever is mapped when.
pub struct Followed {
    pub(super) name: String,
    pub(super) space: Arc<Mutex<State>>,
    pub(super) log: Arc<Mutex<Log>>,
}

impl Followed {
    fn error(
        &self,
        operation: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> SourceError {
        SourceError::new(&self.name, operation, source)
    }

    /// Asks for every mapping that leads into `range`, one at a time, so that others can
    /// be mapped and unmapped between.
    fn ask_all(&self, range: IovaRange) -> Vec<IovaRange> {
        let mut lost = Vec::new();
        let mut at = 0;
        loop {
            let state = lock(&self.space);
            let all = state.table.all();
            let rest = &all[all.partition_point(|one| one.iova.start() < at)..];
            let leads =
                |one: &&Mapping| one.guest().is_some_and(|led| led.overlaps(range));
            let Some(mapping) = rest.iter().find(leads) else { return lost };
            at = mapping.iova.end();
            lost.extend(lock(&self.log).ask(*mapping, &state.table));
        }
    }
}

impl std::fmt::Debug for Followed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Followed").field(&self.name).finish()
    }
}

impl DirtySource for Followed {
    fn name(&self) -> &str {
        &self.name
    }

    fn space(&self) -> Space {
        Space::GuestPhysical
    }

    fn goes_with_mappings(&self) -> Option<PageSize> {
        None
    }

    fn start(&mut self, ranges: &[IovaRange], page: PageSize) -> Result<(), SourceError> {
        let dirty: Result<Vec<Bitmap>, _> =
            ranges.iter().map(|range| Bitmap::new(*range, page)).collect();
        let dirty = dirty.map_err(|error| self.error("start", error))?;
        let state = lock(&self.space);
        let log = &mut *lock(&self.log);
        log.on = None;
        let mapped: Vec<IovaRange> =
            state.table.all().iter().map(|mapping| mapping.iova).collect();
        // Without a mapping there is nothing to log, and logs do not take that. The first
        // one is not covered then, and so is dirty.
        if !mapped.is_empty() {
            log.source.start(&mapped, page)?;
        }
        log.on = Some(On { dirty, lost: Vec::new() });
        Ok(())
    }

    fn collect(
        &mut self,
        range: IovaRange,
        found: &mut dyn FnMut(DirtyReport<'_>),
    ) -> Result<(), SourceError> {
        const WORDS: usize = 1 << 13;
        const OPERATION: &str = "collect";
        let mut lost = self.ask_all(range);
        let mut log = lock(&self.log);
        let Some(on) = &mut log.on else {
            return Err(self.error(OPERATION, "it was not started"));
        };
        lost.extend(on.lost.extract_if(.., |lost| lost.overlaps(range)));
        let mut words = vec![0; WORDS];
        for dirty in on.dirty.iter().filter(|dirty| !dirty.is_empty()) {
            let Some(asked) = dirty.range().intersection(range) else { continue };
            let page = dirty.page_size();
            // From the begin of a page on, so that none is cut by two reports, which would
            // never forget it, and each bit is one page.
            let start = page.floor(asked.start());
            let asked = IovaRange::new(start, asked.end() - start)
                .map_err(|error| self.error(OPERATION, error))?;
            for range in asked.pieces((WORDS as u64 * 64).saturating_mul(page.bytes())) {
                let pages = range.length().div_ceil(page.bytes());
                let words = &mut words[..pages.div_ceil(64) as usize];
                words.fill(0);
                dirty
                    .report(range, page, words)
                    .map_err(|error| self.error(OPERATION, error))?;
                if words.iter().any(|word| *word != 0) {
                    found(DirtyReport { range, page, words });
                }
            }
        }
        drop(log);
        lost.into_iter().for_each(|range| found(DirtyReport::lost(range)));
        Ok(())
    }

    fn stop(&mut self) -> Result<(), SourceError> {
        let log = &mut *lock(&self.log);
        log.on = None;
        log.source.stop()
    }
}
