//! Whoever keeps the log, whatever its pages, and whatever is mapped when.

use std::collections::BTreeSet;

use dirty::{Bitmap, IovaRange, PageSize};
use port::{DirtyReport, DirtySource, DmaMap, Mapping};
use proptest::collection::vec;
use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof,
    proptest,
};
use proptest::sample::Index;
use proptest::test_runner::TestCaseError;
use vfio_migrate_control::{AddressSpace, Followed};

use super::writer::{Keeper, Writer};
use super::{FOUR_K, MEMORY, mapping, range, space};

#[derive(Clone, Debug)]
enum Step {
    Write { device: Index, mapping: Index, at: u64, length: u64, late: bool },
    Map { place: u64, gpa: u64, length: u64 },
    Unmap(Index),
    Collect,
}

const GRAIN: u64 = 512;
const PLACE: u64 = 0x8000;
const PLACES: u64 = 8;

fn steps() -> impl Strategy<Value = Step> {
    let write =
        (any::<Index>(), any::<Index>(), any::<u64>(), any::<u64>(), any::<bool>());
    // Into guest memory, and some past its end.
    let map = (0..PLACES, 0_u64..0x46, 1..=PLACE / GRAIN);
    prop_oneof![
        8 => write.prop_map(|(device, mapping, at, length, late)| {
            Step::Write { device, mapping, at, length, late }
        }),
        3 => map.prop_map(|(place, gpa, length)| {
            Step::Map { place, gpa: 0x4000 + gpa * GRAIN * 9, length: length * GRAIN }
        }),
        3 => any::<Index>().prop_map(Step::Unmap),
        3 => Just(Step::Collect),
    ]
}

struct World {
    space: AddressSpace,
    devices: Vec<Writer>,
    sources: Vec<Followed>,
    mapped: Vec<Mapping>,
    /// Bytes that were written, by guest-physical addresses, and not found yet.
    written: Vec<(usize, IovaRange)>,
    /// What each log saw since it was asked, by device addresses.
    seen: Vec<(usize, IovaRange)>,
    /// Guest-physical addresses that may be dirty.
    may: Vec<IovaRange>,
    /// Devices whose log cannot know all.
    loses: BTreeSet<usize>,
}

impl World {
    /// Where a part of device addresses leads, by one mapping.
    fn through(mapping: &Mapping, iova: IovaRange) -> Option<IovaRange> {
        let part = mapping.iova.intersection(iova)?;
        let start = mapping.gpa.0 + (part.start() - mapping.iova.start());
        Some(range(start, part.length()))
    }

    /// A log sees pages of its own.
    fn saw(&mut self, device: usize, written: IovaRange) {
        let page = self.devices[device].inner().manner.page;
        let blocks = written.align_out(page).unwrap().pieces(page.bytes());
        self.seen.extend(blocks.map(|block| (device, block)));
    }

    /// What the logs have seen may be told now, by their pages.
    fn may_be_told(&mut self) {
        for (_, block) in &self.seen {
            self.may.extend(self.mapped.iter().filter_map(|m| Self::through(m, *block)));
        }
    }

    fn collect(&mut self, regions: &[IovaRange]) -> Result<(), TestCaseError> {
        self.may_be_told();
        // What nobody asks for may come later.
        let mapped = &self.mapped;
        self.seen.retain(|(_, block)| !mapped.iter().any(|m| m.iova.overlaps(*block)));
        let may = std::mem::take(&mut self.may);
        let mut loses = std::mem::take(&mut self.loses);
        let written = std::mem::take(&mut self.written);
        for (n, source) in self.sources.iter_mut().enumerate() {
            let found: Vec<Bitmap> =
                regions.iter().map(|r| Bitmap::new(*r, FOUR_K).unwrap()).collect();
            let mut lost = Vec::new();
            for region in regions {
                let asked = source.collect(*region, &mut |report| {
                    let DirtyReport { range, page, words } = report;
                    found.iter().for_each(|bitmap| bitmap.merge(range, page, words));
                    if report.is_lost() {
                        lost.push(range);
                    }
                });
                prop_assert!(asked.is_ok());
            }
            let runs: Vec<IovaRange> =
                found.iter().flat_map(|b| b.drain().runs().collect::<Vec<_>>()).collect();
            for (_, bytes) in written.iter().filter(|(device, _)| *device == n) {
                for region in regions {
                    let Some(bytes) = region.intersection(*bytes) else { continue };
                    for at in
                        [bytes.start(), bytes.start() + bytes.length() / 2, bytes.last()]
                    {
                        prop_assert!(
                            runs.iter().any(|run| run.contains(at)),
                            "missed {at:#x}"
                        );
                    }
                }
            }
            if lost.is_empty() {
                for page in runs.iter().flat_map(|run| run.pieces(4096)) {
                    let by = |may: &IovaRange| may.overlaps(page);
                    prop_assert!(may.iter().any(by), "made up {page}");
                }
            } else {
                let expected = loses.remove(&n);
                prop_assert!(expected, "lost {lost:?} for nothing");
                // As the engine does, which takes everything for dirty.
                source.stop().unwrap();
                source.start(regions, FOUR_K).unwrap();
                self.seen.retain(|(device, _)| *device != n);
            }
        }
        Ok(())
    }

    fn step(&mut self, step: Step, regions: &[IovaRange]) -> Result<(), TestCaseError> {
        match step {
            Step::Write { device, mapping, at, length, late } => {
                if self.mapped.is_empty() {
                    return Ok(());
                }
                let mapping = *mapping.get(&self.mapped);
                let n = device.index(self.devices.len());
                let start = mapping.iova.start() + at % mapping.iova.length();
                let most = (mapping.iova.end() - start).min(0x3000);
                let written = range(start, 1 + length % most);
                let guest = Self::through(&mapping, written).unwrap();
                if late {
                    // Made when it is unmapped next, if it is.
                    self.devices[n].inner().late = Some(written);
                    return Ok(());
                }
                self.devices[n].inner().write(written);
                self.written.push((n, guest));
                self.saw(n, written);
            }
            Step::Map { place, gpa, length } => {
                let mapping = mapping(place * PLACE, length, gpa);
                if self.mapped.iter().any(|one| one.iova.overlaps(mapping.iova)) {
                    return Ok(());
                }
                self.space.map(mapping, MEMORY).unwrap();
                self.mapped.push(mapping);
                self.devices.iter().for_each(|device| device.inner().late = None);
                self.unknown(mapping);
            }
            Step::Unmap(index) => {
                if self.mapped.is_empty() {
                    return Ok(());
                }
                let mapping = *index.get(&self.mapped);
                let late: Vec<(usize, IovaRange)> = (self.devices.iter().enumerate())
                    .filter_map(|(n, device)| Some((n, device.inner().late?)))
                    .filter(|(_, late)| mapping.iova.covers(*late))
                    .collect();
                for (n, late) in late {
                    self.written.push((n, Self::through(&mapping, late).unwrap()));
                    self.saw(n, late);
                }
                self.may_be_told();
                self.unknown(mapping);
                for (n, device) in self.devices.iter().enumerate() {
                    if device.inner().manner.keeper == Keeper::DeviceWhileMapped {
                        self.loses.insert(n);
                    }
                }
                self.space.unmap(mapping.iova).unwrap();
                self.mapped.retain(|one| *one != mapping);
            }
            Step::Collect => self.collect(regions)?,
        }
        prop_assert_eq!(self.space.mappings().all().len(), self.mapped.len());
        Ok(())
    }

    /// What the logs were not started on they cannot know.
    fn unknown(&mut self, mapping: Mapping) {
        for (n, device) in self.devices.iter().enumerate() {
            let inner = device.inner();
            let all = inner.manner.keeper == Keeper::Mappings && inner.covers.is_some();
            let covers = &mut inner.covers.iter().flatten();
            if !all && !covers.any(|one| one.covers(mapping.iova)) {
                self.loses.insert(n);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400, failure_persistence: None, ..ProptestConfig::default()
    })]

    /// Whoever keeps the log, whatever its pages, and whatever is mapped when.
    #[test]
    fn a_write_is_told_of_the_page_that_it_went_to(
        manners in vec((prop_oneof![
            3 => Just(Keeper::Device), 1 => Just(Keeper::DeviceWhileMapped), 3 => Just(Keeper::Mappings),
        ], 9_u32..=17), 1..4),
        steps in vec(steps(), 1..60),
    ) {
        let space = space();
        let devices: Vec<Writer> = manners.iter().map(|(keeper, shift)| {
            // The bits of a mapping are in pages that it is made of.
            let shift = if *keeper == Keeper::Device { *shift } else { 9 };
            Writer::new(*keeper, PageSize::new(1 << shift).unwrap())
        }).collect();
        let mut sources: Vec<Followed> = devices.iter().map(|d| d.attach(&space)).collect();
        let first = mapping(0, PLACE, 0x4000);
        space.map(first, MEMORY).unwrap();
        // The second begins where the first ends, and some mappings lead beside them.
        let regions = [range(0x4000, 0x3_0000), range(0x3_4000, 0x2_0000)];
        for source in &mut sources {
            source.start(&regions, FOUR_K).unwrap();
        }
        let mut world = World {
            space, devices, sources, mapped: vec![first], written: Vec::new(),
            seen: Vec::new(), may: Vec::new(), loses: BTreeSet::new(),
        };
        for step in steps {
            world.step(step, &regions)?;
        }
        world.collect(&regions)?;
    }
}
