//! The bitmaps that a hypervisor keeps of what its vCPUs wrote.

use dirty::{IovaRange, PageSize};

use crate::{DirtyReport, DirtySource, SourceError, Space};

/// A piece of guest RAM as a hypervisor knows it: its dirty pages come all at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its number.
    pub number: u32,
    /// Its guest-physical addresses.
    pub range: IovaRange,
}

/// The dirty bitmaps of a hypervisor, slot by slot, as a source: KVM's
/// `KVM_GET_DIRTY_LOG`, or anything like it.
///
/// ```
/// # use dirty::{IovaRange, PageSize};
/// # use port::{DirtySource, Slot, SlotLog, SourceError};
/// # use vfio_migrate_port as port;
/// # struct Vm;
/// # impl Vm {
/// #     fn set_logging(&self, _: u32, _: bool) -> std::io::Result<()> { Ok(()) }
/// #     fn get_dirty_log(&self, _: u32, _: usize) -> std::io::Result<Vec<u64>> { Ok(vec![2]) }
/// # }
/// # let (vm, vm2) = (Vm, Vm);
/// // With kvm-ioctls, `set_logging` is `set_user_memory_region` with or without
/// // KVM_MEM_LOG_DIRTY_PAGES.
/// let slots = vec![Slot { number: 0, range: IovaRange::new(0, 0x8000)? }];
/// let record = move |slot, on| vm.set_logging(slot, on);
/// let take = move |slot, bytes| vm2.get_dirty_log(slot, bytes as usize);
/// let mut vcpus = SlotLog::new("vCPUs", PageSize::FOUR_K, slots, record, take);
/// # vcpus.start(&[IovaRange::new(0, 0x8000)?], PageSize::FOUR_K)?;
/// # let mut pages = 0;
/// # vcpus.collect(IovaRange::new(0x1000, 0x1000)?, &mut |report| {
/// #     pages += report.words[0].count_ones();
/// # })?;
/// # assert_eq!(pages, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// `record(slot, on)` switches the record of a slot on or off. `take(slot, bytes)` gives
/// a bit for each page of the slot, which has that many bytes, and forgets them; with
/// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` it has to clear them itself. Each may fail in any
/// way: whatever was not told is dirty. Slots must not change while it records.
pub struct SlotLog<R, T> {
    name: String,
    page: PageSize,
    slots: Vec<Slot>,
    record: R,
    take: T,
    on: bool,
}

impl<R, T, A, B> SlotLog<R, T>
where
    R: FnMut(u32, bool) -> Result<(), A>,
    T: FnMut(u32, u64) -> Result<Vec<u64>, B>,
    A: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// The log of some slots, in any order, of which a bit stands for `page`.
    pub fn new(
        name: &str,
        page: PageSize,
        mut slots: Vec<Slot>,
        record: R,
        take: T,
    ) -> SlotLog<R, T> {
        slots.sort_unstable_by_key(|slot| slot.range);
        SlotLog { name: name.to_owned(), page, slots, record, take, on: false }
    }

    fn error(
        &self,
        operation: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> SourceError {
        SourceError::new(&self.name, operation, source)
    }

    /// Whether the slots have all of `range`, together.
    fn covers(&self, range: IovaRange) -> bool {
        let mut at = range.start();
        for slot in &self.slots {
            if slot.range.contains(at) {
                at = slot.range.end();
            }
        }
        at >= range.end()
    }
}

impl<R, T> std::fmt::Debug for SlotLog<R, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlotLog")
            .field("name", &self.name)
            .field("slots", &self.slots)
            .field("on", &self.on)
            .finish_non_exhaustive()
    }
}

impl<R, T, A, B> DirtySource for SlotLog<R, T>
where
    R: FnMut(u32, bool) -> Result<(), A> + Send,
    T: FnMut(u32, u64) -> Result<Vec<u64>, B> + Send,
    A: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn space(&self) -> Space {
        Space::GuestPhysical
    }

    fn goes_with_mappings(&self) -> Option<PageSize> {
        None
    }

    fn start(&mut self, ranges: &[IovaRange], _: PageSize) -> Result<(), SourceError> {
        // A start that fails half-way ends the record that there was.
        self.on = false;
        if !ranges.iter().all(|range| self.covers(*range)) {
            return Err(self.error("start", "guest RAM lies outside of its slots"));
        }
        for at in 0..self.slots.len() {
            if let Err(error) = (self.record)(self.slots[at].number, true) {
                for slot in &self.slots[..at] {
                    // What it says of that changes nothing.
                    let _ = (self.record)(slot.number, false);
                }
                return Err(self.error("start", error));
            }
        }
        self.on = true;
        Ok(())
    }

    fn collect(
        &mut self,
        range: IovaRange,
        found: &mut dyn FnMut(DirtyReport<'_>),
    ) -> Result<(), SourceError> {
        const OPERATION: &str = "collect";
        if !self.on {
            return Err(self.error(OPERATION, "it records nothing"));
        }
        if !self.covers(range) {
            return Err(self.error(OPERATION, "there is no such slot"));
        }
        let mut first = None;
        for slot in self.slots.iter().filter(|slot| slot.range.overlaps(range)) {
            match (self.take)(slot.number, slot.range.length()) {
                // All of the slot: nobody will tell it again.
                Ok(words) => found(DirtyReport {
                    range: slot.range,
                    page: self.page,
                    words: &words,
                }),
                Err(error) => {
                    found(DirtyReport::lost(slot.range));
                    first = first.or(Some(error));
                }
            }
        }
        first.map_or(Ok(()), |error| Err(self.error(OPERATION, error)))
    }

    fn stop(&mut self) -> Result<(), SourceError> {
        self.on = false;
        let mut first = None;
        for slot in &self.slots {
            let stopped = (self.record)(slot.number, false);
            first = first.or(stopped.err());
        }
        first.map_or(Ok(()), |error| Err(self.error("stop", error)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    const PAGE: PageSize = PageSize::FOUR_K;

    fn range(start: u64, length: u64) -> IovaRange {
        IovaRange::new(start, length).unwrap()
    }

    fn slots() -> Vec<Slot> {
        let slot = |number, start, length| Slot { number, range: range(start, length) };
        vec![slot(1, 0x4000, 0x4000), slot(0, 0, 0x4000)]
    }

    #[test]
    fn a_slot_that_is_cleared_as_a_whole_is_told_in_part() {
        let on = Arc::new(Mutex::new([false; 2]));
        let known = Arc::clone(&on);
        let record = move |slot: u32, record: bool| {
            known.lock().unwrap()[slot as usize] = record;
            Ok::<(), String>(())
        };
        let take = |slot: u32, bytes: u64| match slot {
            0 => {
                assert_eq!(bytes, 0x4000);
                Ok(vec![0b1001])
            }
            _ => Err("gone"),
        };
        let mut log = SlotLog::new("vCPUs", PAGE, slots(), record, take);
        assert!(log.collect(range(0, 0x1000), &mut |_| {}).is_err());
        assert!(log.start(&[range(0, 0x8001)], PAGE).is_err());
        log.start(&[range(0, 0x8000)], PAGE).unwrap();
        assert_eq!(*on.lock().unwrap(), [true; 2]);

        let mut told = Vec::new();
        log.collect(range(0, 0x1000), &mut |report| {
            told.push((report.range, report.words.to_vec()));
        })
        .unwrap();
        assert_eq!(told, [(range(0, 0x4000), vec![0b1001])]);

        // One that fails does not take the other's bits with it.
        told.clear();
        let failed = log.collect(range(0x3000, 0x2000), &mut |report| {
            assert_eq!(report.is_lost(), report.range.start() == 0x4000);
            told.push((report.range, report.words.to_vec()));
        });
        assert_eq!(failed.unwrap_err().to_string(), "vCPUs: collect failed");
        assert_eq!(told.len(), 2);
        assert!(log.collect(range(0x7000, 0x2000), &mut |_| {}).is_err());
        log.stop().unwrap();
        assert_eq!(*on.lock().unwrap(), [false; 2]);
    }

    #[test]
    fn a_slot_that_does_not_record_leaves_the_others_recording() {
        let on = Arc::new(Mutex::new([false; 2]));
        let known = Arc::clone(&on);
        let record = move |slot: u32, record: bool| {
            if slot == 1 {
                return Err("no memory for its bitmap");
            }
            known.lock().unwrap()[slot as usize] = record;
            Ok(())
        };
        let take = |_: u32, _: u64| Ok::<_, String>(Vec::new());
        let mut log = SlotLog::new("vCPUs", PAGE, slots(), record, take);
        assert!(log.start(&[range(0, 0x8000)], PAGE).is_err());
        assert_eq!(*on.lock().unwrap(), [false; 2]);
        assert!(log.collect(range(0, 0x1000), &mut |_| {}).is_err());
    }

    #[test]
    fn slots_that_a_second_start_switched_off_are_asked_as_if_they_recorded() {
        let full = Arc::new(Mutex::new(false));
        let known = Arc::clone(&full);
        let record = move |slot: u32, record: bool| match record
            && slot == 1
            && *known.lock().unwrap()
        {
            true => Err("no memory for its bitmap"),
            false => Ok(()),
        };
        // What does not record has no page to tell.
        let take = |_: u32, _: u64| Ok::<_, String>(vec![0]);
        let mut log = SlotLog::new("vCPUs", PAGE, slots(), record, take);
        log.start(&[range(0, 0x8000)], PAGE).unwrap();
        log.collect(range(0, 0x1000), &mut |_| {}).unwrap();
        *full.lock().unwrap() = true;
        assert!(log.start(&[range(0, 0x8000)], PAGE).is_err());
        assert!(log.collect(range(0, 0x1000), &mut |_| {}).is_err());
    }
}
