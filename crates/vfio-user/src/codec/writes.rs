//! The writes of `REGION_WRITE_MULTI`.

use abi::vfio_user::{RegionAccess, WriteMultiEntry};
use zerocopy::{FromBytes, IntoBytes};

use super::{Malformed, SHORT};

/// The length of one write in the message, in bytes.
const ENTRY: usize = size_of::<WriteMultiEntry>();

/// Writes to regions, in order, as they lie in a message: at least one, each of 1 to 8
/// bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writes<'a>(&'a [u8]);

impl<'a> Writes<'a> {
    /// The most bytes that one of them writes.
    pub const BYTES_MOST: u32 = 8;

    /// Those that lie in `entries`, 24 bytes each and nothing else, as
    /// [`Writes::encode`] puts them there.
    ///
    /// # Errors
    /// [`Malformed`] for none at all, a part of one, and one that does not write 1 to
    /// 8 bytes.
    pub fn new(entries: &'a [u8]) -> Result<Writes<'a>, Malformed> {
        Writes::parse((entries.len() / ENTRY) as u64, entries).and_then(|writes| {
            if writes.0.len() == entries.len() { Ok(writes) } else { Err(SHORT) }
        })
    }

    /// The first `count` of what follows the fixed part of a message.
    pub(super) fn parse(count: u64, entries: &'a [u8]) -> Result<Writes<'a>, Malformed> {
        if count == 0 {
            return Err(Malformed("no write at all"));
        }
        let len = usize::try_from(count)
            .ok()
            .and_then(|count| count.checked_mul(ENTRY))
            .ok_or(SHORT)?;
        let writes = Writes(entries.get(..len).ok_or(SHORT)?);
        let possible =
            |access: RegionAccess| (1..=Self::BYTES_MOST).contains(&access.count);
        if writes.iter().all(|(access, _)| possible(access)) {
            Ok(writes)
        } else {
            Err(Malformed("a write that is not of 1 to 8 bytes"))
        }
    }

    /// Adds a write of 1 to 8 bytes to `entries`, which [`Writes::new`] takes. Only the
    /// first 8 bytes of longer data are kept.
    pub fn encode(entries: &mut Vec<u8>, region: u32, offset: u64, data: &[u8]) {
        let count = data.len().min(Self::BYTES_MOST as usize);
        let mut entry = WriteMultiEntry {
            access: RegionAccess { offset, region, count: count as u32 },
            data: [0; 8],
        };
        entry.data[..count].copy_from_slice(&data[..count]);
        entries.extend_from_slice(entry.as_bytes());
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len() / ENTRY
    }

    /// Never: there is at least one.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each of them: where, and the data, of which the first `count` bytes count.
    pub fn iter(&self) -> impl Iterator<Item = (RegionAccess, [u8; 8])> + use<'a> {
        self.0.chunks_exact(ENTRY).filter_map(|bytes| {
            let entry = WriteMultiEntry::read_from_bytes(bytes).ok()?;
            Some((entry.access, entry.data))
        })
    }

    /// As bytes, as they lie in a message.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }
}
