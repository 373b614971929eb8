//! What the source has.

use std::fmt;

use super::MessageError;
use super::identity::DeviceIdentity;
use super::record::{Reader, Record, RecordWriter};
use super::{MAX_DEVICES, MAX_NAME_BYTES, MAX_REGIONS, MAX_SECTIONS, MAX_TEXT_BYTES};
use crate::preamble::{MAX_DATA_CHANNELS, PageSize};
use crate::section::SectionInfo;

/// Everything by which the destination decides whether this migration can be done.
/// Architecture, byte order and page size are in the preamble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The program and its version, for people; nothing depends on it. At most
    /// [`MAX_NAME_BYTES`].
    pub software: String,
    /// The store in which the source records its decisions.
    pub store: StoreId,
    /// Where the destination can ask back, at most [`MAX_TEXT_BYTES`]. Absent: it
    /// cannot.
    pub source_uri: Option<String>,
    /// Data connections that the source will open, 1 to [`MAX_DATA_CHANNELS`].
    pub data_channels: u16,
    /// Whether the guest runs.
    pub run_state: RunState,
    /// Guest memory in ascending order, without overlap, at most [`MAX_REGIONS`].
    pub memory: Vec<MemoryRegion>,
    /// The devices, at most [`MAX_DEVICES`]; a device's place here is its index.
    pub devices: Vec<DeviceIdentity>,
    /// The VMM's sections, at most [`MAX_SECTIONS`]; each has its place as its index.
    pub sections: Vec<SectionInfo>,
    /// About how many bytes will be sent. Absent: not known.
    pub expected_bytes: Option<u64>,
}

impl Record for Hello {
    const NAME: &'static str = "hello";
    const TAGS: &'static [u16] = &[1, 2, 3, 4, 5, 6, 7, 8, 9];

    fn write(&self, w: &mut RecordWriter) -> Result<(), MessageError> {
        w.string(1, &self.software, MAX_NAME_BYTES)?;
        w.bytes(2, &self.store.0);
        if let Some(uri) = &self.source_uri {
            w.string(3, uri, MAX_TEXT_BYTES)?;
        }
        w.u16(4, self.data_channels);
        w.u8(5, self.run_state.number());
        w.list(6, &self.memory, MAX_REGIONS)?;
        w.list(7, &self.devices, MAX_DEVICES)?;
        w.list(8, &self.sections, MAX_SECTIONS)?;
        w.optional_u64(9, self.expected_bytes);
        Ok(())
    }

    fn read(r: &Reader<'_>) -> Result<Self, MessageError> {
        Ok(Self {
            software: r.string(1, MAX_NAME_BYTES)?,
            store: StoreId(r.array(2)?),
            source_uri: r.optional_string(3, MAX_TEXT_BYTES)?,
            data_channels: r.u16(4)?,
            run_state: RunState::from_number(r.u8(5)?)
                .ok_or_else(|| r.invalid(RunState::RULE))?,
            memory: r.list(6, MAX_REGIONS)?,
            devices: r.list(7, MAX_DEVICES)?,
            sections: r.list(8, MAX_SECTIONS)?,
            expected_bytes: r.optional_u64(9)?,
        })
    }

    fn broken_rule(&self) -> Option<&'static str> {
        if !(1..=MAX_DATA_CHANNELS).contains(&self.data_channels) {
            return Some("there are between 1 and 64 data connections");
        }
        // Each region was checked by itself, so the sums cannot overflow.
        let overlap = |pair: &[MemoryRegion]| matches!(pair, [a, b] if b.gpa < a.gpa.saturating_add(a.length));
        if self.memory.windows(2).any(overlap) {
            return Some("memory regions ascend and do not overlap");
        }
        let mut numbered = self.sections.iter().zip(0..);
        if numbered.any(|(section, place)| section.section != place) {
            return Some("each section has its place as its index");
        }
        None
    }
}

/// Consecutive guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MemoryRegion {
    /// Guest-physical address of its first byte, a multiple of the page size.
    pub gpa: u64,
    /// Length in bytes, a multiple of the page size and not 0.
    pub length: u64,
    /// Size of the pages that back it on the source, in bytes: a power of two from
    /// 4 KiB. Larger ones are information; runs count the preamble's pages.
    pub page_size: u64,
}

impl Record for MemoryRegion {
    const NAME: &'static str = "memory region";
    const TAGS: &'static [u16] = &[1, 2, 3];

    fn write(&self, w: &mut RecordWriter) -> Result<(), MessageError> {
        w.u64(1, self.gpa);
        w.u64(2, self.length);
        w.u64(3, self.page_size);
        Ok(())
    }

    fn read(r: &Reader<'_>) -> Result<Self, MessageError> {
        Ok(Self { gpa: r.u64(1)?, length: r.u64(2)?, page_size: r.u64(3)? })
    }

    fn broken_rule(&self) -> Option<&'static str> {
        let smallest = u64::from(PageSize::KIB_4.get());
        if !self.page_size.is_power_of_two() || self.page_size < smallest {
            return Some("the page size is a power of two from 4 KiB");
        }
        if self.length == 0 || self.gpa.checked_add(self.length).is_none() {
            return Some("it is not empty and within the address space");
        }
        let aligned = (self.gpa | self.length).is_multiple_of(self.page_size);
        (!aligned).then_some("it begins and ends on a page")
    }
}

/// Whether the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunState {
    /// Its vCPUs run.
    Running,
    /// They do not, and will not when it arrives.
    Paused,
}

impl RunState {
    const RULE: &'static str = "the run state is neither running nor paused";

    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Running => 1,
            Self::Paused => 2,
        }
    }

    pub(super) const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Running),
            2 => Some(Self::Paused),
            _ => None,
        }
    }
}

impl Record for RunState {
    const NAME: &'static str = "run state";
    const TAGS: &'static [u16] = &[1];

    fn write(&self, w: &mut RecordWriter) -> Result<(), MessageError> {
        w.u8(1, self.number());
        Ok(())
    }

    fn read(r: &Reader<'_>) -> Result<Self, MessageError> {
        Self::from_number(r.u8(1)?).ok_or_else(|| r.invalid(Self::RULE))
    }
}

/// The 16 bytes that name a store of decisions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(pub [u8; 16]);

/// 32 hexadecimal digits.
impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreId({self})")
    }
}
