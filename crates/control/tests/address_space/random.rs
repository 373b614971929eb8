//! Whoever keeps the log, whatever its pages, and whatever is mapped when.

use std::collections::BTreeSet;

use abi::errno::Errno;
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
use super::{MEMORY, mapping, range, space};

#[derive(Clone, Debug)]
enum Step {
    Write {
        device: Index,
        mapping: Index,
        at: u64,
        length: u64,
        late: bool,
    },
    Map {
        place: u64,
        gpa: u64,
        length: u64,
    },
    /// Where nobody writes any more, as the VMM says, or not.
    Unmap(Index, bool),
    /// A device refuses the next call of a kind.
    Refuse(Index, Call),
    Collect,
}

#[derive(Clone, Copy, Debug)]
enum Call {
    Map,
    Unmap,
    UnmapWithBits,
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
        3 => (any::<Index>(), any::<bool>()).prop_map(|(at, quiesced)| {
            Step::Unmap(at, quiesced)
        }),
        1 => (any::<Index>(), prop_oneof![
            Just(Call::Map), Just(Call::Unmap), Just(Call::UnmapWithBits),
        ]).prop_map(|(device, call)| Step::Refuse(device, call)),
        3 => Just(Step::Collect),
    ]
}

struct World {
    space: AddressSpace,
    devices: Vec<Writer>,
    sources: Vec<Followed>,
    mapped: Vec<Mapping>,
    /// In which the guest's pages are counted.
    page: PageSize,
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
        for mapping in self.mapped.clone() {
            // One that lost it already cannot tell of it.
            for (n, device) in self.devices.iter().enumerate() {
                let inner = device.inner();
                if inner.manner.keeper != Keeper::Device && !inner.has(mapping.iova) {
                    self.loses.insert(n);
                }
            }
            // Nor one that was started before.
            self.unknown(mapping);
        }
        let page = self.page;
        // What nobody asks for may come later.
        let mapped = &self.mapped;
        self.seen.retain(|(_, block)| !mapped.iter().any(|m| m.iova.overlaps(*block)));
        let may = std::mem::take(&mut self.may);
        let mut loses = std::mem::take(&mut self.loses);
        let written = std::mem::take(&mut self.written);
        for (n, source) in self.sources.iter_mut().enumerate() {
            let found: Vec<Bitmap> =
                regions.iter().map(|r| Bitmap::new(*r, page).unwrap()).collect();
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
                let whole = runs.iter().map(|run| run.align_out(page).unwrap());
                for page in whole.flat_map(|run| run.pieces(page.bytes())) {
                    let by = |may: &IovaRange| may.overlaps(page);
                    prop_assert!(may.iter().any(by), "made up {page}");
                }
            } else {
                let expected = loses.remove(&n);
                prop_assert!(expected, "lost {lost:?} for nothing");
                // As the engine does, which takes everything for dirty.
                source.stop().unwrap();
                source.start(regions, page).unwrap();
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
                if !self.devices[n].inner().has(mapping.iova) {
                    return Ok(());
                }
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
                let made = self.space.map(mapping, MEMORY);
                self.devices.iter().for_each(|device| device.inner().late = None);
                if made.is_err() {
                    // Some had it for a moment.
                    self.may.push(range(mapping.gpa.0, mapping.iova.length()));
                }
                // Some may keep it, too.
                if made.is_ok() || self.space.mappings().has(&mapping) {
                    self.mapped.push(mapping);
                }
            }
            Step::Unmap(index, quiesced) => {
                if self.mapped.is_empty() {
                    return Ok(());
                }
                self.unmap(*index.get(&self.mapped), quiesced);
            }
            Step::Refuse(device, call) => {
                let mut inner = device.get(&self.devices).inner();
                match call {
                    Call::Map => inner.map = Some(Errno::ENOSPC),
                    Call::Unmap => inner.unmap = Some(Errno::EBUSY),
                    Call::UnmapWithBits => inner.bits = Some(Errno::EFAULT),
                }
            }
            Step::Collect => self.collect(regions)?,
        }
        prop_assert_eq!(self.space.mappings().all().len(), self.mapped.len());
        Ok(())
    }

    fn unmap(&mut self, mapping: Mapping, quiesced: bool) {
        let guest = range(mapping.gpa.0, mapping.iova.length());
        let late: Vec<Option<IovaRange>> = (self.devices.iter())
            .map(|device| device.inner().late.filter(|late| mapping.iova.covers(*late)))
            .collect();
        let had: Vec<bool> =
            self.devices.iter().map(|device| device.inner().has(mapping.iova)).collect();
        let fails: Vec<bool> = (self.devices.iter())
            .map(|device| device.inner().bits.is_some() || device.inner().unmap.is_some())
            .collect();
        self.unknown(mapping);
        let done = match quiesced {
            true => {
                for (device, _) in
                    self.devices.iter().zip(&late).filter(|(_, l)| l.is_some())
                {
                    device.inner().late = None;
                }
                self.space.unmap_quiesced(mapping.iova)
            }
            false => self.space.unmap(mapping.iova),
        };
        for n in 0..self.devices.len() {
            if let Some(late) = late[n].filter(|_| !quiesced)
                && self.devices[n].inner().late.is_none()
            {
                self.written.push((n, Self::through(&mapping, late).unwrap()));
                self.saw(n, late);
            }
            let keeper = self.devices[n].inner().manner.keeper;
            if keeper == Keeper::DeviceWhileMapped || keeper.goes() && had[n] && fails[n]
            {
                self.loses.insert(n);
            }
            if keeper == Keeper::PageTable && had[n] && !quiesced {
                // It is read before it goes, and so nobody knows.
                self.may.push(guest);
            }
        }
        self.may_be_told();
        if done.is_ok() {
            self.mapped.retain(|one| *one != mapping);
        }
    }

    /// What the logs were not started on they cannot know.
    fn unknown(&mut self, mapping: Mapping) {
        for (n, device) in self.devices.iter().enumerate() {
            let inner = device.inner();
            let all = inner.manner.keeper.goes() && inner.covers.is_some();
            let covers = &mut inner.covers.iter().flatten();
            if !all && !covers.any(|one| one.covers(mapping.iova)) {
                self.loses.insert(n);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.max(400),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whoever keeps the log, whatever its pages, and whatever is mapped when.
    #[test]
    fn a_write_is_told_of_the_page_that_it_went_to(
        manners in vec((prop_oneof![
            3 => Just(Keeper::Device), 1 => Just(Keeper::DeviceWhileMapped),
            2 => Just(Keeper::Mappings), 2 => Just(Keeper::PageTable),
        ], 9_u32..=17), 1..4),
        page in (9_u32..=14).prop_map(|shift| PageSize::new(1 << shift).unwrap()),
        begin in 0..16_u64,
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
        let begin = 0x4000 + begin * GRAIN;
        let regions = [range(begin, 0x3_4000 - begin), range(0x3_4000, 0x2_0000)];
        for source in &mut sources {
            source.start(&regions, page).unwrap();
        }
        let mut world = World {
            space, devices, sources, mapped: vec![first], page, written: Vec::new(),
            seen: Vec::new(), may: Vec::new(), loses: BTreeSet::new(),
        };
        for step in steps {
            world.step(step, &regions)?;
        }
        world.collect(&regions)?;
    }
}
