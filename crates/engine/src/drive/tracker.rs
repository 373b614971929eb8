//! Everybody who knows of a write to guest memory, as one bitmap for each region.
//!
//! ```text
//!   DMA log of a device -.                  by DmaMap
//!   type1, iommufd ------+- device addresses --------.
//!   rfc2018's query -----'                            v
//!   nobody: everything --'                         [Bitmap] a region --> drain, send
//!   vCPUs' bitmap -------.                            ^                  restore, ack
//!   what the VMM wrote --+- guest-physical addresses -'
//!   followed mappings ---'
//! ```
//!
//! What nobody told is dirty. A source that fails is started anew, so that one failure
//! makes everything dirty once and not for ever.

use std::sync::Arc;

use dirty::{Bitmap, Drained, IovaRange};
use port::{
    DirtyReport, DirtySource, DmaMap, GuestMemory, Mappings, MemoryRegion, Space,
};

use crate::migration::Cause;

/// The dirty pages of the whole guest.
pub(super) struct Tracker {
    memory: Arc<dyn GuestMemory>,
    dma: Arc<dyn DmaMap>,
    sources: Vec<Asked>,
    regions: Vec<MemoryRegion>,
    /// What is dirty of each.
    dirty: Vec<Bitmap>,
    generation: u64,
    /// The mappings as they were when somebody looked last.
    known: Mappings,
    /// Bits that were drained and not acknowledged (law 3).
    unacknowledged: Vec<Drained>,
    failures: u64,
    running: bool,
}

/// A source, and what is known of it.
struct Asked {
    source: Box<dyn DirtySource>,
    record: Record,
}

/// What a source records.
enum Record {
    /// Nothing: it refused, or there was nothing to record. It is not asked, and what
    /// runs there, if anything does, is somebody else's.
    Off,
    /// It was started when mappings had changed so often, and was not asked yet; `again`
    /// where it told nothing at all directly after the start before.
    Since { changes: u64, again: bool },
    /// All but some ranges, which it could not tell of directly after its start, nor since.
    AllBut(Vec<IovaRange>),
}

impl Tracker {
    /// A tracker that does not track yet.
    pub(super) fn new(
        memory: Arc<dyn GuestMemory>,
        dma: Arc<dyn DmaMap>,
        sources: Vec<Box<dyn DirtySource>>,
    ) -> Tracker {
        let generation = memory.generation();
        let asked = |source| Asked { source, record: Record::Off };
        Tracker {
            memory,
            dma,
            sources: sources.into_iter().map(asked).collect(),
            regions: Vec::new(),
            dirty: Vec::new(),
            generation,
            known: Mappings::default(),
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
        self.generation = self.memory.generation();
        self.regions = self.memory.regions();
        self.dirty = self.regions.iter().map(bitmap_of).collect::<Result<_, _>>()?;
        self.running = true;
        self.known = self.dma.mappings();
        for asked in &mut self.sources {
            asked.start(&self.dirty, &self.known, false);
        }
        // After the sources run, so that no write falls between.
        self.mark_all();
        Ok(())
    }

    /// Takes every source's bits in; returns how many bytes are dirty. After the `last`
    /// time nobody asks again.
    ///
    /// A source that fails is not a failure of the migration: everything that it
    /// covers is dirty, and the report counts it.
    pub(super) fn collect(&mut self, last: bool) -> Result<u64, Cause> {
        if self.memory.generation() != self.generation {
            return Err(Cause::Changed("the layout of guest memory".into()));
        }
        self.follow();
        for asked in &mut self.sources {
            if !asked.collect(&self.dirty, &self.known, &*self.dma, last) {
                self.failures += 1;
            }
        }
        // Mappings may have changed while somebody told of them.
        self.follow();
        Ok(self.dirty_bytes())
    }

    /// Takes the dirty pages out, for sending. They come back by [`Tracker::restore`]
    /// unless [`Tracker::acknowledge`] is called first.
    pub(super) fn drain(&mut self) -> Vec<(MemoryRegion, Drained)> {
        let drained = self.regions.iter().zip(&self.dirty);
        let drained: Vec<_> =
            drained.map(|(region, dirty)| (*region, dirty.drain())).collect();
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
            for dirty in self.dirty.iter().filter(|dirty| dirty.range() == bits.range()) {
                dirty.restore(&bits);
            }
        }
    }

    /// How often a source failed.
    pub(super) fn failures(&self) -> u64 {
        self.failures
    }

    /// Stops recording, and gives the sources back.
    pub(super) fn stop(&mut self) {
        if std::mem::take(&mut self.running) {
            self.sources.iter_mut().for_each(Asked::stop);
        }
    }

    /// Gives the sources back.
    pub(super) fn into_sources(mut self) -> Vec<Box<dyn DirtySource>> {
        self.stop();
        self.sources.into_iter().map(|asked| asked.source).collect()
    }

    /// Takes the mappings as they are now. What was written through one that is gone, or
    /// through a new one before its source knew of it, nobody tells: it is all dirty.
    /// Sources that speak of guest memory have followed by themselves.
    fn follow(&mut self) {
        let now = self.dma.mappings();
        let before = std::mem::replace(&mut self.known, now);
        let now = &self.known;
        if self.sources.iter().all(|asked| asked.source.space() == Space::GuestPhysical) {
            return;
        }
        let gone = before.all().iter().filter(|one| !now.has(one));
        let new = now.all().iter().filter(|one| !before.has(one));
        let mut seen = 0;
        for mapping in gone.chain(new) {
            seen += 1;
            let led = mapping.guest();
            led.into_iter().for_each(|led| self.dirty.iter().for_each(|d| d.mark(led)));
        }
        if now.changes().wrapping_sub(before.changes()) != seen {
            // Some came and went meanwhile, and nobody knows where they led.
            self.mark_all();
        }
    }

    fn mark_all(&self) {
        self.dirty.iter().for_each(Bitmap::mark_all);
    }

    fn dirty_bytes(&self) -> u64 {
        let bytes =
            |dirty: &Bitmap| dirty.count().saturating_mul(dirty.page_size().bytes());
        self.dirty.iter().map(bytes).sum()
    }
}

impl Asked {
    /// Starts to record; `again` as in [`Record::Since`].
    fn start(&mut self, dirty: &[Bitmap], mappings: &Mappings, again: bool) {
        let page = dirty.iter().map(Bitmap::page_size).min();
        let ranges = self.ranges(dirty, mappings);
        self.record = Record::Off;
        let Some(page) = page.filter(|_| !ranges.is_empty()) else { return };
        if let Err(error) = self.source.start(&ranges, page) {
            tracing::warn!(
                source = self.source.name(),
                error = chain(&error),
                "a dirty source does not record: everything it covers stays dirty"
            );
            return;
        }
        self.record = Record::Since { changes: mappings.changes(), again };
    }

    fn stop(&mut self) {
        // One that refused too: it knows best what it began.
        if let Err(error) = self.source.stop() {
            tracing::warn!(
                source = self.source.name(),
                error = chain(&error),
                "a dirty source did not stop"
            );
        }
    }

    /// Takes its bits in; returns whether it told all of them. If not, everything that it
    /// covers is dirty and it is started anew; but what it could not tell directly after
    /// a start either is dirty by itself, for as long as it does not tell it.
    fn collect(
        &mut self,
        dirty: &[Bitmap],
        mappings: &Mappings,
        dma: &dyn DmaMap,
        last: bool,
    ) -> bool {
        let lost = match self.record {
            Record::Off if self.ranges(dirty, mappings).is_empty() => return true,
            // What it would say now stands for nothing.
            Record::Off => None,
            _ => Some(self.ask(dirty, mappings)),
        };
        let lost = match (&self.record, lost) {
            (Record::AllBut(before), Some(lost))
                if lost.iter().all(|range| before.contains(range)) =>
            {
                // What it tells again is one of the losses to come.
                let told = lost.is_empty();
                self.record = Record::AllBut(lost);
                return told;
            }
            (_, Some(lost)) if lost.is_empty() => {
                self.record = Record::AllBut(lost);
                return true;
            }
            (_, lost) => lost,
        };
        let now = dma.mappings();
        let fresh = match self.record {
            Record::Since { changes, again } => {
                (changes == now.changes()).then_some(again)
            }
            _ => None,
        };
        match (fresh, lost) {
            // A record that is lost as a whole comes back by a start, if by anything.
            (Some(again), Some(lost))
                if again || !self.is_all(&lost, dirty, mappings) =>
            {
                self.record = Record::AllBut(lost);
            }
            _ if last => {}
            _ => {
                if !matches!(self.record, Record::Off) {
                    self.stop();
                }
                self.start(dirty, &now, fresh.is_some());
            }
        }
        // Once it records again, so that no write falls between.
        self.all_dirty(dirty, &now);
        self.all_dirty(dirty, mappings);
        false
    }

    /// Takes in what it tells, and marks what it does not; returns the latter.
    fn ask(&mut self, dirty: &[Bitmap], mappings: &Mappings) -> Vec<IovaRange> {
        let space = self.source.space();
        let take = |report: DirtyReport<'_>| match space {
            Space::Iova => mappings.merge(report, dirty),
            Space::GuestPhysical => {
                let DirtyReport { range, page, words } = report;
                dirty.iter().for_each(|dirty| dirty.merge(range, page, words));
            }
        };
        let mut lost = Vec::new();
        for range in self.ranges(dirty, mappings) {
            let mut untold = Vec::new();
            let collected = self.source.collect(range, &mut |report| {
                take(report);
                if report.is_lost() {
                    untold.push(report.range);
                }
            });
            let error = collected.err().map(|error| {
                take(DirtyReport::lost(range));
                untold.push(range);
                chain(&error)
            });
            if !untold.is_empty() {
                tracing::warn!(
                    source = self.source.name(),
                    error,
                    "a dirty source failed: what it did not tell is dirty"
                );
            }
            lost.append(&mut untold);
        }
        lost
    }

    /// What there is for it to record, in its own addresses.
    fn ranges(&self, dirty: &[Bitmap], mappings: &Mappings) -> Vec<IovaRange> {
        match self.source.space() {
            Space::GuestPhysical => dirty.iter().map(Bitmap::range).collect(),
            Space::Iova => mappings.all().iter().map(|mapping| mapping.iova).collect(),
        }
    }

    /// Whether it told nothing of what it covers, or of what devices reach.
    fn is_all(&self, lost: &[IovaRange], dirty: &[Bitmap], mappings: &Mappings) -> bool {
        let all = |ranges: &[IovaRange]| {
            ranges.iter().all(|range| lost.iter().any(|lost| lost.covers(*range)))
        };
        let guest = mappings.all().iter().filter_map(|mapping| mapping.guest());
        let follows = self.source.space() == Space::GuestPhysical;
        all(&self.ranges(dirty, mappings)) || (follows && all(&guest.collect::<Vec<_>>()))
    }

    /// Marks everything that it covers.
    fn all_dirty(&self, dirty: &[Bitmap], mappings: &Mappings) {
        match self.source.space() {
            Space::GuestPhysical => dirty.iter().for_each(Bitmap::mark_all),
            Space::Iova => {
                for led in mappings.all().iter().filter_map(|mapping| mapping.guest()) {
                    dirty.iter().for_each(|dirty| dirty.mark(led));
                }
            }
        }
    }
}

fn bitmap_of(region: &MemoryRegion) -> Result<Bitmap, Cause> {
    let bad = |error: &dyn std::fmt::Display| {
        Cause::Vmm(format!("guest memory at {}: {error}", region.start))
    };
    let range = IovaRange::new(region.start.0, region.length).map_err(|e| bad(&e))?;
    Bitmap::new(range, region.page).map_err(|error| bad(&error))
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
mod model;

#[cfg(test)]
mod tests;
