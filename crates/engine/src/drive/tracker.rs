//! Everybody who knows of a write to guest memory, as one bitmap for each region.

use std::sync::Arc;

use dirty::{Bitmap, Drained, IovaRange};
use port::{
    DirtyReport, DirtySource, DmaMap, Gpa, GuestMemory, Mapping, MemoryRegion, Space,
};

use crate::migration::Cause;

/// The dirty pages of the whole guest.
pub(super) struct Tracker {
    memory: Arc<dyn GuestMemory>,
    dma: Arc<dyn DmaMap>,
    sources: Vec<Box<dyn DirtySource>>,
    /// Which of them refused to record, and are not asked.
    refused: Vec<bool>,
    regions: Vec<Tracked>,
    generation: u64,
    /// The mappings as they were when the sources were last asked.
    known: Vec<Mapping>,
    /// Bits that were drained and not acknowledged (law 3).
    unacknowledged: Vec<Drained>,
    failures: u64,
    running: bool,
}

struct Tracked {
    region: MemoryRegion,
    dirty: Bitmap,
}

impl Tracker {
    /// A tracker that does not track yet.
    pub(super) fn new(
        memory: Arc<dyn GuestMemory>,
        dma: Arc<dyn DmaMap>,
        sources: Vec<Box<dyn DirtySource>>,
    ) -> Tracker {
        let generation = memory.generation();
        Tracker {
            memory,
            dma,
            refused: vec![false; sources.len()],
            sources,
            regions: Vec::new(),
            generation,
            known: Vec::new(),
            unacknowledged: Vec::new(),
            failures: 0,
            running: false,
        }
    }

    /// Records from now on; everything is dirty once.
    ///
    /// A source that refuses to record is not a failure of the migration either: what it
    /// covers stays dirty, and the budget says what that costs.
    pub(super) fn start(&mut self) -> Result<(), Cause> {
        let regions = self.memory.regions();
        let mut tracked = Vec::new();
        for region in regions {
            let range = range_of(region)?;
            let dirty = Bitmap::new(range, region.page).map_err(|error| {
                Cause::Vmm(format!("guest memory at {}: {error}", region.start))
            })?;
            tracked.push(Tracked { region, dirty });
        }
        self.regions = tracked;
        self.generation = self.memory.generation();
        self.running = true;
        let guest: Vec<IovaRange> =
            self.regions.iter().map(|t| t.dirty.range()).collect();
        let device: Vec<IovaRange> =
            self.dma.mappings().iter().map(|mapping| mapping.iova).collect();
        let page = self.regions.first().map(|t| t.region.page);
        for (source, refused) in self.sources.iter_mut().zip(&mut self.refused) {
            *refused = false;
            let ranges = match source.space() {
                Space::GuestPhysical => &guest,
                Space::Iova => &device,
            };
            let Some(page) = page.filter(|_| !ranges.is_empty()) else { continue };
            if let Err(error) = source.start(ranges, page) {
                *refused = true;
                tracing::warn!(
                    source = source.name(),
                    error = chain(&error),
                    "a dirty source does not record: everything it covers stays dirty"
                );
            }
        }
        self.known = self.dma.mappings();
        // After the sources run, so that no write falls between.
        for tracked in &self.regions {
            tracked.dirty.mark_all();
        }
        Ok(())
    }

    /// Takes every source's bits in; returns how many bytes are dirty.
    ///
    /// A source that fails is not a failure of the migration: everything that it
    /// covers is dirty, and the report counts it.
    pub(super) fn collect(&mut self) -> Result<u64, Cause> {
        if self.memory.generation() != self.generation {
            return Err(Cause::Changed("the layout of guest memory".into()));
        }
        let mappings = self.dma.mappings();
        // What was written through a mapping that is gone, or through a new one before
        // its source knew of it, nobody tells: it is all dirty.
        let changed = |a: &[Mapping], b: &[Mapping]| {
            let regions = &self.regions;
            for one in a.iter().filter(|one| !b.contains(one)) {
                mark(regions, one.gpa.0, one.iova.length());
            }
        };
        changed(&self.known, &mappings);
        changed(&mappings, &self.known);
        self.known.clone_from(&mappings);
        for (source, refused) in self.sources.iter_mut().zip(&self.refused) {
            let regions = &self.regions;
            let result = match source.space() {
                // What it would say now stands for nothing.
                _ if *refused => Err("it does not record".to_owned()),
                Space::GuestPhysical => regions.iter().try_for_each(|tracked| {
                    let range = tracked.dirty.range();
                    let collected = source.collect(range, &mut |report| {
                        tracked.dirty.merge(report.range, report.page, report.words);
                    });
                    collected.map_err(|error| chain(&error))
                }),
                Space::Iova => mappings.iter().try_for_each(|mapping| {
                    let collected = source.collect(mapping.iova, &mut |report| {
                        translate(regions, mapping.iova, mapping.gpa, report);
                    });
                    collected.map_err(|error| chain(&error))
                }),
            };
            let Err(error) = result else { continue };
            self.failures += 1;
            tracing::warn!(
                source = source.name(),
                error,
                "a dirty source failed: everything it covers is dirty"
            );
            match source.space() {
                Space::GuestPhysical => regions.iter().for_each(|t| t.dirty.mark_all()),
                Space::Iova => mappings.iter().for_each(|mapping| {
                    mark(regions, mapping.gpa.0, mapping.iova.length());
                }),
            }
        }
        Ok(self.dirty_bytes())
    }

    /// Takes the dirty pages out, for sending. They come back by [`Tracker::restore`]
    /// unless [`Tracker::acknowledge`] is called first.
    pub(super) fn drain(&mut self) -> Vec<(MemoryRegion, Drained)> {
        let drained: Vec<_> =
            self.regions.iter().map(|t| (t.region, t.dirty.drain())).collect();
        self.unacknowledged.extend(drained.iter().map(|(_, bits)| bits.clone()));
        drained
    }

    /// The other side has what was drained so far.
    pub(super) fn acknowledge(&mut self) {
        self.unacknowledged.clear();
    }

    /// What was drained and not acknowledged is dirty again.
    pub(super) fn restore(&mut self) {
        for bits in std::mem::take(&mut self.unacknowledged) {
            for tracked in &self.regions {
                if tracked.dirty.range() == bits.range() {
                    tracked.dirty.restore(&bits);
                }
            }
        }
    }

    /// How often a source failed.
    pub(super) fn failures(&self) -> u64 {
        self.failures
    }

    /// Stops recording, and gives the sources back.
    pub(super) fn stop(&mut self) {
        if !std::mem::take(&mut self.running) {
            return;
        }
        for source in &mut self.sources {
            if let Err(error) = source.stop() {
                tracing::warn!(
                    source = source.name(),
                    error = chain(&error),
                    "a dirty source did not stop"
                );
            }
        }
    }

    /// Gives the sources back.
    pub(super) fn into_sources(mut self) -> Vec<Box<dyn DirtySource>> {
        self.stop();
        self.sources
    }

    fn dirty_bytes(&self) -> u64 {
        let bytes = |t: &Tracked| t.dirty.count().saturating_mul(t.region.page.bytes());
        self.regions.iter().map(bytes).sum()
    }
}

/// Merges a report over device addresses into the memory behind them.
fn translate(regions: &[Tracked], iova: IovaRange, gpa: Gpa, report: DirtyReport<'_>) {
    // Bit n stands for iova + n pages, so the same words stand for gpa + n pages, as
    // long as both start the mapping alike.
    let offset = gpa.0.wrapping_sub(iova.start());
    let start = report.range.start().wrapping_add(offset);
    let Ok(range) = IovaRange::new(start, report.range.length()) else {
        // An answer that leaves the address space covers nothing that we know: what
        // was asked for is dirty.
        return mark(regions, gpa.0, iova.length());
    };
    for tracked in regions {
        if tracked.dirty.range().overlaps(range) {
            tracked.dirty.merge(range, report.page, report.words);
        }
    }
}

fn mark(regions: &[Tracked], start: u64, length: u64) {
    let Ok(range) = IovaRange::new(start, length) else {
        return regions.iter().for_each(|tracked| tracked.dirty.mark_all());
    };
    regions.iter().for_each(|tracked| tracked.dirty.mark(range));
}

fn range_of(region: MemoryRegion) -> Result<IovaRange, Cause> {
    IovaRange::new(region.start.0, region.length)
        .map_err(|error| Cause::Vmm(format!("guest memory at {}: {error}", region.start)))
}

/// An error with everything beneath it, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use dirty::PageSize;
    use port::{Mapping, Space};
    use testkit::{FakeDmaMap, FakeMemory, FakeSource, Side};

    use super::*;

    const LENGTH: u64 = 64 * 4096;

    fn tracked(page: PageSize) -> (Tracker, FakeMemory, testkit::SourceHandle) {
        let memory = FakeMemory::new(&[(0, LENGTH), (1 << 20, LENGTH)]);
        let side = Side::alone("source");
        let log = FakeSource::new(&side, "log", Space::GuestPhysical).with_page(page);
        memory.mark_in(log.handle());
        let (dma, handle) = (FakeDmaMap::identity(&memory), log.handle());
        let sources: Vec<Box<dyn DirtySource>> = vec![Box::new(log)];
        let tracker = Tracker::new(Arc::new(memory.clone()), Arc::new(dma), sources);
        (tracker, memory, handle)
    }

    fn pages(drained: &[(MemoryRegion, Drained)]) -> u64 {
        drained.iter().map(|(_, bits)| bits.bytes() / 4096).sum()
    }

    /// Everything was dirty once, and has arrived.
    fn settled(tracker: &mut Tracker) {
        assert_eq!(pages(&tracker.drain()), 128);
        tracker.acknowledge();
        assert_eq!(tracker.collect(), Ok(0));
    }

    #[test]
    fn a_bit_that_was_drained_and_not_acknowledged_is_forgotten() {
        let (mut tracker, memory, _) = tracked(PageSize::FOUR_K);
        tracker.start().unwrap();
        settled(&mut tracker);
        memory.guest_write(Gpa(5 * 4096), &[1]).unwrap();
        assert_eq!(tracker.collect(), Ok(4096));
        assert_eq!(pages(&tracker.drain()), 1);
        memory.guest_write(Gpa((1 << 20) + 4096), &[1]).unwrap();
        assert_eq!(tracker.collect(), Ok(4096));
        assert_eq!(pages(&tracker.drain()), 1);
        // Both rounds come back, and what was written meanwhile stays.
        memory.guest_write(Gpa(0), &[1]).unwrap();
        assert_eq!(tracker.collect(), Ok(4096));
        tracker.restore();
        assert_eq!(tracker.collect(), Ok(3 * 4096));
        // Once only.
        tracker.drain();
        tracker.acknowledge();
        tracker.restore();
        assert_eq!(tracker.collect(), Ok(0));
    }

    #[test]
    fn a_source_with_larger_pages_loses_the_rest_of_them() {
        let (mut tracker, memory, _) = tracked(PageSize::new(1 << 16).unwrap());
        tracker.start().unwrap();
        settled(&mut tracker);
        memory.guest_write(Gpa(20 * 4096), &[1]).unwrap();
        assert_eq!(tracker.collect(), Ok(1 << 16));
    }

    #[test]
    fn a_source_that_fails_is_believed_to_have_seen_nothing() {
        let (mut tracker, _, log) = tracked(PageSize::FOUR_K);
        tracker.start().unwrap();
        settled(&mut tracker);
        log.lose();
        assert_eq!(tracker.collect(), Ok(2 * LENGTH));
        assert_eq!(tracker.failures(), 1);
    }

    #[test]
    fn a_source_that_refuses_to_record_is_asked_and_believed() {
        let memory = FakeMemory::new(&[(0, LENGTH), (1 << 20, LENGTH)]);
        let side = Side::alone("source");
        let mut log = FakeSource::new(&side, "dma log", Space::Iova);
        let dma = FakeDmaMap::new();
        let iova = IovaRange::new(0x80_0000, LENGTH).unwrap();
        dma.add(Mapping { iova, gpa: Gpa(1 << 20) });
        // It records for somebody else: asked, it would say that nothing was written.
        log.start(&[iova], PageSize::FOUR_K).unwrap();
        let mut tracker =
            Tracker::new(Arc::new(memory), Arc::new(dma), vec![Box::new(log)]);
        tracker.start().unwrap();
        tracker.drain();
        tracker.acknowledge();
        // All that it covers and nothing else, each time: also the last.
        for failures in 1..4 {
            assert_eq!(tracker.collect(), Ok(LENGTH));
            let drained = tracker.drain();
            assert_eq!(drained[1].1.bytes(), LENGTH);
            tracker.acknowledge();
            assert_eq!(tracker.failures(), failures);
        }
    }

    #[test]
    fn an_alias_of_a_page_is_another_page() {
        let memory = FakeMemory::new(&[(0, LENGTH)]);
        let log = FakeSource::new(&Side::alone("source"), "dma log", Space::Iova);
        let handle = log.handle();
        let dma = FakeDmaMap::new();
        for iova in [0x10_0000, 0x80_0000] {
            let iova = IovaRange::new(iova, LENGTH).unwrap();
            dma.add(Mapping { iova, gpa: Gpa(0) });
        }
        let mut tracker =
            Tracker::new(Arc::new(memory), Arc::new(dma.clone()), vec![Box::new(log)]);
        tracker.start().unwrap();
        tracker.drain();
        tracker.acknowledge();
        handle.mark(IovaRange::new(0x10_0000 + 3 * 4096, 1).unwrap());
        handle.mark(IovaRange::new(0x80_0000 + 3 * 4096, 1).unwrap());
        handle.mark(IovaRange::new(0x80_0000 + 9 * 4096, 1).unwrap());
        assert_eq!(tracker.collect(), Ok(2 * 4096));
        let runs: Vec<_> = tracker.drain()[0].1.runs().map(|run| run.start()).collect();
        assert_eq!(runs, [3 * 4096, 9 * 4096]);
    }

    #[test]
    fn memory_that_changed_its_regions_is_tracked_on() {
        let (mut tracker, memory, log) = tracked(PageSize::FOUR_K);
        tracker.start().unwrap();
        memory.change_layout();
        assert!(matches!(tracker.collect(), Err(Cause::Changed(_))));
        assert!(log.started());
        tracker.stop();
        assert!(!log.started());
        assert_eq!(tracker.into_sources().len(), 1);
    }
}
