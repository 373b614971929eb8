//! The tracker against a model that records every write: never a miss, and no page more
//! than pages of a source, a change of mappings or a counted failure demand.

mod source;

use std::collections::BTreeSet;
use std::sync::Arc;

use dirty::{IovaRange, PageSize};
use port::{DirtySource, Gpa, GuestMemory, Mapping, MemoryError, MemoryRegion, Space};
use proptest::collection::vec;
use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop_assert, prop_oneof, proptest,
};
use proptest::sample::Index;
use proptest::test_runner::TestCaseError;
use testkit::FakeDmaMap;

use self::source::{Fake, Manner, manners, numbers};
use super::Tracker;

/// The finest that anything here is aligned to.
const GRAIN: u64 = 512;
/// Device addresses of one mapping at most; each has a place of its own, and the largest
/// pages speak of several.
const PLACE: u64 = 0x8000;
const PLACES: u64 = 8;

fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(start, length).unwrap()
}

/// Guest memory that nobody reads.
struct Layout(Vec<MemoryRegion>);

impl GuestMemory for Layout {
    fn regions(&self) -> Vec<MemoryRegion> {
        self.0.clone()
    }

    fn generation(&self) -> u64 {
        0
    }

    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        Err(MemoryError { at, length: into.len() as u64 })
    }

    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), MemoryError> {
        Err(MemoryError { at, length: from.len() as u64 })
    }

    fn zero(&self, at: Gpa, length: u64) -> Result<(), MemoryError> {
        Err(MemoryError { at, length })
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Somebody whom this source watches writes: through a mapping, or as the guest.
    Write(Index, Index, u64, u64),
    /// Maps in a place: where it leads, and how long it is.
    Map(u64, u64, u64),
    Unmap(Index),
    /// The mapping leads elsewhere and back between two looks.
    Away(Index, u64),
    Collect,
    Drain,
    Acknowledge,
    Restore,
    Fail(Index),
    /// The record is gone, until it is started again.
    Lose(Index),
}

/// Guest-physical addresses, in memory and beside it.
fn gpas() -> impl Strategy<Value = u64> {
    (0_u64..0x8_0000 / GRAIN).prop_map(|n| n * GRAIN)
}

fn steps() -> impl Strategy<Value = Step> {
    let index = any::<Index>;
    let length = || (1..=PLACE / GRAIN).prop_map(|n| n * GRAIN);
    prop_oneof![
        8 => (index(), index(), any::<u64>(), any::<u64>())
            .prop_map(|(source, mapping, at, length)| Step::Write(source, mapping, at, length)),
        3 => (0..PLACES, gpas(), length()).prop_map(|(place, gpa, l)| Step::Map(place, gpa, l)),
        2 => index().prop_map(Step::Unmap),
        1 => (index(), gpas()).prop_map(|(mapping, gpa)| Step::Away(mapping, gpa)),
        5 => Just(Step::Collect),
        2 => Just(Step::Drain),
        1 => Just(Step::Acknowledge),
        1 => Just(Step::Restore),
        1 => index().prop_map(Step::Fail),
        1 => index().prop_map(Step::Lose),
    ]
}

/// Pages of guest memory: region and number.
type Pages = BTreeSet<(usize, u64)>;

/// What somebody wrote: what its source calls it.
type Written = (usize, IovaRange);

struct World {
    regions: Vec<MemoryRegion>,
    dma: FakeDmaMap,
    mapped: Vec<Mapping>,
    fakes: Vec<Fake>,
    tracker: Tracker,
    /// Written, and to be found when somebody asks.
    pending: Pages,
    /// Found, and not drained.
    held: Pages,
    /// Drained, and not acknowledged.
    out: Pages,
    /// What each source was told of since it was asked last.
    told: Vec<Written>,
    /// Mappings that are or were there since somebody looked last.
    seen: Vec<Mapping>,
    /// Which of them changed.
    changed: Vec<Mapping>,
    /// Some came and went meanwhile.
    unseen: bool,
}

impl World {
    fn new(shapes: &[(u64, u64, PageSize)], manners: Vec<Manner>) -> World {
        let mut at = 0;
        let mut regions = Vec::new();
        for (gap, pages, page) in shapes {
            let start = (at + gap * GRAIN).next_multiple_of(page.bytes());
            let length = pages * page.bytes();
            regions.push(MemoryRegion { start: Gpa(start), length, page: *page });
            at = start + length;
        }
        let fakes: Vec<Fake> = manners.into_iter().map(Fake::new).collect();
        let dma = FakeDmaMap::new();
        let sources =
            fakes.iter().map(|fake| Box::new(fake.clone()) as Box<dyn DirtySource>);
        let memory = Arc::new(Layout(regions.clone()));
        let tracker = Tracker::new(memory, Arc::new(dma.clone()), sources.collect());
        let none = Pages::new;
        World {
            regions,
            dma,
            mapped: Vec::new(),
            fakes,
            tracker,
            pending: none(),
            held: none(),
            out: none(),
            told: Vec::new(),
            seen: Vec::new(),
            changed: Vec::new(),
            unseen: false,
        }
    }

    /// The pages of guest memory that a range of guest-physical addresses touches.
    fn pages(&self, of: IovaRange) -> Pages {
        let mut pages = Pages::new();
        for (n, region) in self.regions.iter().enumerate() {
            let whole = range(region.start.0, region.length);
            if let Some(inside) = whole.intersection(of) {
                pages.extend(numbers(inside, region.page).map(|page| (n, page)));
            }
        }
        pages
    }

    fn all(&self) -> Pages {
        self.pages(range(0, 1 << 40))
    }

    fn through(&self, mapping: &Mapping, iova: IovaRange) -> Pages {
        let Some(part) = mapping.iova.intersection(iova) else { return Pages::new() };
        let start = mapping.gpa.0 + (part.start() - mapping.iova.start());
        self.pages(range(start, part.length()))
    }

    fn led(&self, mapping: &Mapping) -> Pages {
        self.through(mapping, mapping.iova)
    }

    /// What the tracker holds for dirty.
    fn dirty(&self) -> Pages {
        let mut pages = Pages::new();
        for (n, bitmap) in self.tracker.dirty.iter().enumerate() {
            let drained = bitmap.drain();
            bitmap.restore(&drained);
            let page = bitmap.page_size();
            let found = drained.runs().flat_map(|run| numbers(run, page));
            pages.extend(found.map(|number| (n, number)));
        }
        pages
    }

    fn write(&mut self, source: Index, mapping: Index, at: u64, length: u64) {
        let number = source.index(self.fakes.len());
        let fake = self.fakes[number].clone();
        let space = fake.space();
        let of = match space {
            Space::Iova if self.mapped.is_empty() => return,
            Space::Iova => mapping.get(&self.mapped).iova,
            Space::GuestPhysical => {
                let region = mapping.get(&self.regions);
                range(region.start.0, region.length)
            }
        };
        let start = of.start() + at % of.length();
        let most = (of.end() - start).min(0x3000);
        let written = range(start, 1 + length % most);
        let pages = match space {
            Space::Iova => {
                let mapping = mapping.get(&self.mapped);
                self.through(mapping, written)
            }
            Space::GuestPhysical => self.pages(written),
        };
        self.pending.extend(pages);
        fake.write(written);
        self.tell(number, written);
    }

    /// A source sees pages of its own.
    fn tell(&mut self, number: usize, written: IovaRange) {
        let page = self.fakes[number].inner().manner.page;
        let blocks = written.align_out(page).unwrap().pieces(page.bytes());
        self.told.extend(blocks.map(|block| (number, block)));
    }

    fn map(&mut self, mapping: Mapping) {
        self.dma.add(mapping);
        self.mapped.push(mapping);
        self.seen.push(mapping);
        self.changed.push(mapping);
    }

    fn unmap(&mut self, mapping: Mapping) {
        self.dma.remove(mapping);
        self.mapped.retain(|one| *one != mapping);
        self.fakes.iter().for_each(|fake| fake.forget(mapping.iova));
        self.changed.push(mapping);
    }

    /// Asks, and compares.
    fn collect(&mut self, last: bool) -> Result<(), TestCaseError> {
        let before = self.dirty();
        let records: Vec<bool> =
            self.fakes.iter().map(|fake| fake.inner().covers.is_some()).collect();
        let starts: Vec<u32> = self.fakes.iter().map(|f| f.inner().starts).collect();
        let known: Vec<Vec<IovaRange>> =
            self.fakes.iter().map(|f| std::mem::take(&mut f.inner().lost)).collect();
        let failures = self.tracker.failures();
        self.tracker.collect(last).unwrap();
        let after = self.dirty();

        self.held.append(&mut self.pending);
        let missed: Vec<_> = self.held.difference(&after).collect();
        prop_assert!(missed.is_empty(), "missed {missed:x?}");

        // What may be dirty besides: what sources saw, by their pages.
        let mut may = before;
        for (number, written) in &self.told {
            let fake = self.fakes[*number].inner();
            match fake.manner.space {
                Space::GuestPhysical => may.extend(self.pages(*written)),
                Space::Iova => {
                    for mapping in &self.mapped {
                        may.extend(self.through(mapping, *written));
                    }
                }
            }
        }
        // What changed mappings lead to, where anybody speaks of mappings.
        if self.fakes.iter().any(|fake| fake.space() == Space::Iova) {
            for mapping in &self.changed {
                may.extend(self.led(mapping));
            }
            if self.unseen {
                may.extend(self.all());
            }
        }
        // And what was not told: all, unless it was not told before either.
        let mut failed = 0;
        for (n, fake) in self.fakes.iter().enumerate() {
            let inner = fake.inner();
            let space = inner.manner.space;
            let again = records[n]
                && inner.starts == starts[n]
                && inner.lost.iter().all(|lost| known[n].contains(lost));
            let lost = inner.lost.clone();
            drop(inner);
            if records[n] && self.fakes[n].inner().starts == starts[n] && lost.is_empty()
            {
                continue;
            }
            failed += 1;
            match (space, again) {
                (Space::GuestPhysical, true) => {
                    lost.iter().for_each(|lost| may.extend(self.pages(*lost)));
                }
                (Space::GuestPhysical, false) => may.extend(self.all()),
                (Space::Iova, true) => {
                    for (mapping, lost) in self
                        .mapped
                        .iter()
                        .flat_map(|mapping| lost.iter().map(move |lost| (mapping, lost)))
                    {
                        may.extend(self.through(mapping, *lost));
                    }
                }
                (Space::Iova, false) => {
                    for mapping in &self.mapped {
                        may.extend(self.led(mapping));
                    }
                }
            }
        }
        let over: Vec<_> = after.difference(&may).collect();
        prop_assert!(over.is_empty(), "made up {over:x?}");
        let counted = self.tracker.failures() - failures;
        prop_assert!(counted <= failed, "{counted} failures of {failed}");

        // What nobody asked for, or was not told, may come later.
        let told = std::mem::take(&mut self.told);
        let mapped =
            |block: IovaRange| self.mapped.iter().any(|m| m.iova.overlaps(block));
        let kept = |(number, block): &Written| {
            let fake = self.fakes[*number].inner();
            let asked = fake.manner.space == Space::GuestPhysical || mapped(*block);
            fake.manner.keeps || !asked || !fake.lost.is_empty()
        };
        self.told = told.into_iter().filter(kept).collect();
        self.changed.clear();
        self.seen.clone_from(&self.mapped);
        self.unseen = false;
        Ok(())
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Write(source, mapping, at, length) => {
                self.write(source, mapping, at, length);
            }
            Step::Map(place, gpa, length) => {
                let iova = range(place * PLACE, length);
                if !self.mapped.iter().any(|one| one.iova.overlaps(iova)) {
                    let mapping = Mapping { iova, gpa: Gpa(gpa) };
                    self.unseen |= self.changed.contains(&mapping);
                    self.map(mapping);
                }
            }
            Step::Unmap(index) if !self.mapped.is_empty() => {
                let mapping = *index.get(&self.mapped);
                self.unseen |= self.changed.contains(&mapping);
                self.unmap(mapping);
            }
            Step::Away(index, gpa) if !self.mapped.is_empty() => {
                let mapping = *index.get(&self.mapped);
                let away = Mapping { gpa: Gpa(gpa), ..mapping };
                self.unmap(mapping);
                self.map(away);
                for (number, fake) in self.fakes.clone().into_iter().enumerate() {
                    if fake.space() == Space::Iova {
                        fake.write(away.iova);
                        self.tell(number, away.iova);
                        self.pending.extend(self.led(&away));
                    }
                }
                self.unmap(away);
                self.map(mapping);
                self.unseen = true;
            }
            Step::Unmap(_) | Step::Away(..) => {}
            Step::Collect => self.collect(false)?,
            Step::Drain => {
                let mut drained = Pages::new();
                for (n, (region, bits)) in self.tracker.drain().into_iter().enumerate() {
                    let found = bits.runs().flat_map(|run| numbers(run, region.page));
                    drained.extend(found.map(|page| (n, page)));
                }
                prop_assert!(self.held.is_subset(&drained));
                prop_assert!(self.dirty().is_empty());
                self.out.append(&mut drained);
                self.held.clear();
            }
            Step::Acknowledge => {
                self.tracker.acknowledge();
                self.out.clear();
            }
            Step::Restore => {
                let before = self.dirty();
                self.tracker.restore();
                let back: Pages = before.union(&self.out).copied().collect();
                prop_assert!(self.dirty() == back);
                self.held.append(&mut self.out);
            }
            Step::Fail(index) => index.get(&self.fakes).inner().fails = true,
            Step::Lose(index) => {
                let fake = index.get(&self.fakes);
                let inner = &mut *fake.inner();
                inner.pages.clear();
                // It says so to every question, and to a stop that nothing is wrong.
                inner.covers = inner.covers.take().map(|_| Vec::new());
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.max(400),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_write_is_missed_and_none_is_made_up(
        shapes in vec((0_u64..40, 1_u64..20, (9_u32..=14).prop_map(|s| PageSize::new(1 << s).unwrap())), 1..4),
        manners in vec(manners(), 1..4),
        first in vec((0..PLACES, gpas(), 1..=PLACE / GRAIN), 0..8),
        steps in vec(steps(), 1..60),
    ) {
        let mut world = World::new(&shapes, manners);
        for (place, gpa, length) in first {
            world.step(Step::Map(place, gpa, length * GRAIN))?;
        }
        world.tracker.start().unwrap();
        prop_assert!(world.dirty() == world.all());
        world.changed.clear();
        world.seen.clone_from(&world.mapped);
        world.unseen = false;
        for step in steps {
            world.step(step)?;
        }
        world.collect(true)?;
    }
}
