//! What the kernel tells of a region, with its capabilities.

use abi::region::{
    CapHeader, RegionCap, RegionFlags, RegionInfo as RawRegion, SparseMmap,
    SparseMmapArea, TypeCap,
};
use control::RegionInfo;
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// The most bytes of capabilities, capabilities and areas that are looked at: nothing
/// real comes near.
pub(crate) const MOST_BYTES: usize = 64 << 10;
const MOST: usize = 256;

/// A region, and where it lies in the device's descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) info: RegionInfo,
    pub(crate) offset: u64,
}

/// How many bytes the kernel has to tell of it, where that is more than `bytes`.
pub(crate) fn wanted(bytes: &[u8]) -> Option<usize> {
    let (raw, _) = RawRegion::read_from_prefix(bytes).ok()?;
    (raw.argsz as usize > bytes.len()).then_some(raw.argsz as usize)
}

/// Takes apart what the kernel told.
pub(crate) fn parse(index: u32, bytes: &[u8]) -> Result<Region, &'static str> {
    let raw: RawRegion = take(bytes, 0)?;
    if raw.offset.checked_add(raw.size).is_none_or(|end| end > i64::MAX as u64) {
        return Err("a region that is no part of a file");
    }
    let flags = RegionFlags::from_bits_retain(raw.flags);
    if flags.contains(RegionFlags::CAPS) && wanted(bytes).is_some() {
        // They are left out as a whole then, and with them which parts are trapped.
        return Err("more capabilities than any region has");
    }
    let (mut sparse, mut kind) = (None, None);
    let mut at = match flags.contains(RegionFlags::CAPS) {
        true => raw.cap_offset as usize,
        false => 0,
    };
    let mut seen = 0;
    while at != 0 {
        seen += 1;
        if seen > MOST || at < RawRegion::SIZE {
            return Err("capabilities that do not end");
        }
        let header: CapHeader = take(bytes, at)?;
        match RegionCap(header.id) {
            RegionCap::SPARSE_MMAP => sparse = Some(areas(bytes, at, raw.size)?),
            RegionCap::TYPE => {
                let cap: TypeCap = take(bytes, at)?;
                kind = Some((cap.region_type, cap.subtype));
            }
            _ => {}
        }
        at = header.next as usize;
    }
    let areas = match (flags.contains(RegionFlags::MMAP), sparse) {
        (false, _) => Vec::new(),
        (true, Some(areas)) => areas,
        (true, None) if raw.size > 0 => vec![(0, raw.size)],
        (true, None) => Vec::new(),
    };
    let info = RegionInfo { index, flags: raw.flags, size: raw.size, areas, kind };
    Ok(Region { info, offset: raw.offset })
}

fn areas(bytes: &[u8], at: usize, size: u64) -> Result<Vec<(u64, u64)>, &'static str> {
    let sparse: SparseMmap = take(bytes, at)?;
    let count = sparse.nr_areas as usize;
    if count > MOST {
        return Err("too many areas");
    }
    let first = at + size_of::<SparseMmap>();
    let mut areas = Vec::new();
    for number in 0..count {
        let area: SparseMmapArea =
            take(bytes, first + number * size_of::<SparseMmapArea>())?;
        if area.offset.checked_add(area.size).is_none_or(|end| end > size) {
            return Err("an area outside of its region");
        }
        // Drivers leave areas of no bytes where everything is trapped.
        if area.size > 0 {
            areas.push((area.offset, area.size));
        }
    }
    Ok(areas)
}

fn take<T: FromBytes + KnownLayout + Immutable>(
    bytes: &[u8],
    at: usize,
) -> Result<T, &'static str> {
    let here = bytes.get(at..).ok_or("a capability lies outside")?;
    T::read_from_prefix(here)
        .map(|(value, _)| value)
        .map_err(|_| "a capability that is cut off")
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    fn raw(flags: u32, cap_offset: u32) -> RawRegion {
        RawRegion {
            argsz: 200,
            flags,
            index: 0,
            cap_offset,
            size: 0x10000,
            offset: 9 << 40,
        }
    }

    fn chain(parts: &[&[u8]]) -> Vec<u8> {
        let mut bytes = raw(0b1111, 32).as_bytes().to_vec();
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        let argsz = bytes.len() as u32;
        bytes[..4].copy_from_slice(&argsz.to_ne_bytes());
        bytes
    }

    fn header(id: u16, next: u32) -> CapHeader {
        CapHeader { id, version: 1, next }
    }

    #[test]
    fn the_trapped_part_of_a_region_is_not_mapped_with_the_rest() {
        let sparse = SparseMmap { header: header(1, 64), nr_areas: 1, reserved: 0 };
        let area = SparseMmapArea { offset: 0x1000, size: 0x2000 };
        let kind = TypeCap { header: header(2, 0), region_type: 3, subtype: 1 };
        let bytes = chain(&[sparse.as_bytes(), area.as_bytes(), kind.as_bytes()]);
        let region = parse(9, &bytes).unwrap();
        assert_eq!(region.info.areas, [(0x1000, 0x2000)]);
        assert_eq!(region.info.kind, Some((3, 1)));
        assert_eq!((region.offset, region.info.index), (9 << 40, 9));
        assert_eq!(wanted(&bytes), None);
        // Without the capability all of it can be mapped, without the flag nothing.
        assert_eq!(
            parse(0, raw(0b111, 0).as_bytes()).unwrap().info.areas,
            [(0, 0x10000)]
        );
        assert!(parse(0, raw(0b011, 0).as_bytes()).unwrap().info.areas.is_empty());
    }

    /// The kernel leaves them out where they do not fit, and says how much they need.
    #[test]
    fn a_region_with_too_many_capabilities_is_not_mapped_over_its_trapped_part() {
        let left_out = raw(0b1111, 0);
        assert_eq!(wanted(left_out.as_bytes()), Some(200));
        assert!(parse(0, left_out.as_bytes()).is_err());
    }

    #[test]
    fn capabilities_that_run_in_circles_or_outside_end() {
        assert!(parse(0, &chain(&[header(7, 32).as_bytes()])).is_err(), "in circles");
        assert!(parse(0, &chain(&[header(7, 4000).as_bytes()])).is_err(), "outside");
        assert!(parse(0, &chain(&[header(7, 8).as_bytes()])).is_err(), "in the head");
        assert!(parse(0, &chain(&[&[1, 0, 1]])).is_err(), "cut off");
        let many = SparseMmap { header: header(1, 0), nr_areas: !0, reserved: 0 };
        assert!(parse(0, &chain(&[many.as_bytes()])).is_err(), "too many");
        let sparse = SparseMmap { header: header(1, 0), nr_areas: 1, reserved: 0 };
        let area = SparseMmapArea { offset: 0xf000, size: 0x2000 };
        let bytes = chain(&[sparse.as_bytes(), area.as_bytes()]);
        assert!(parse(0, &bytes).is_err(), "outside of the region");
    }
}
