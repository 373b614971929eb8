//! Ranges and page sizes at their limits.

use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};
use vfio_migrate_dirty::{Iova, IovaRange, PageSize, PageSizeError, RangeError};

fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(start, length).expect("a range")
}

#[test]
fn a_range_to_the_end_of_the_address_space_overflows_as_in_the_kernel() {
    assert_eq!(IovaRange::new(5, 0), Err(RangeError::Empty { start: 5 }));
    for (start, length) in [(u64::MAX, 1), (1, u64::MAX), (1 << 63, 1 << 63)] {
        let refused = IovaRange::new(start, length);
        assert_eq!(refused, Err(RangeError::Overflow { start, length }));
    }
    assert_eq!(range(0, u64::MAX).last(), u64::MAX - 1);
    assert_eq!(range(u64::MAX - 1, 1).end(), u64::MAX);
}

#[test]
fn a_range_knows_what_is_in_it() {
    let whole = range(0x1000, 0x2000);
    assert_eq!((whole.start(), whole.length()), (0x1000, 0x2000));
    assert_eq!((whole.last(), whole.end()), (0x2fff, 0x3000));
    assert!(whole.contains(0x1000) && whole.contains(Iova(0x2fff)));
    assert!(!whole.contains(0xfff) && !whole.contains(0x3000));
    assert!(whole.covers(range(0x2000, 0x1000)));
    assert!(!whole.covers(range(0x2000, 0x1001)));
    assert_eq!(whole.intersection(range(0x2fff, 9)), Some(range(0x2fff, 1)));
    assert!(!whole.overlaps(range(0x3000, 1)));
    assert_eq!(whole.to_string(), "0x1000..0x3000");
    assert_eq!(Iova(0x2fff).to_string(), "0x2fff");
    assert_eq!(whole.pieces(0).count(), 1);
    let pieces: Vec<_> = range(0, 5).pieces(2).collect();
    assert_eq!(pieces, [range(0, 2), range(2, 2), range(4, 1)]);
    assert_eq!(range(u64::MAX - 3, 3).pieces(u64::MAX).count(), 1);
}

#[test]
fn a_number_that_is_no_page_size_is_refused() {
    for bytes in [0, 1, 3, 256, 513, 4095, 1 << 63, u64::MAX] {
        assert_eq!(PageSize::new(bytes), Err(PageSizeError(bytes)));
    }
    for shift in 9..=62 {
        let page = PageSize::new(1 << shift).expect("a page size");
        assert_eq!((page.bytes(), page.shift()), (1 << shift, shift));
    }
    assert_eq!(PageSize::new(4096), Ok(PageSize::FOUR_K));
    assert_eq!(PageSize::FOUR_K.to_string(), "4096");
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn align_out_is_the_smallest_range_of_whole_pages(
        start in any::<u64>(), length in any::<u64>(), shift in 9u32..=62,
    ) {
        let page = PageSize::new(1 << shift).expect("a page size");
        let Ok(inner) = IovaRange::new(start, length) else { return Ok(()) };
        if let Ok(outer) = inner.align_out(page) {
            prop_assert!(outer.covers(inner));
            prop_assert!(outer.is_aligned(page));
            prop_assert!(inner.start() - outer.start() < page.bytes());
            prop_assert!(outer.end() - inner.end() < page.bytes());
            prop_assert_eq!(outer.align_out(page), Ok(outer));
        } else {
            prop_assert_eq!(page.floor(inner.last()), page.floor(u64::MAX));
        }
    }
}
