//! The record, by itself.

use abi::pci::region_index;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::{Strategy, any, prop_assert_eq, proptest};

use super::{
    ACCOUNT_SIZE, BAR_SIZE, ENTRY_SIZE, MOST_REGISTERS, MOST_VECTORS, REGISTER_SIZE,
    Saved, VERSION, Value,
};
use crate::pci::intx::Level;
use crate::pci::vectors::{Entry, Heard};
use crate::pci::view::Message;
use port::{BarKind, MsiLayout, MsixLayout, PciBar};

fn heard() -> impl Strategy<Value = Heard> {
    (any::<[u64; 4]>(), any::<bool>()).prop_map(
        |([due, delivered, absorbed, windows], pending)| Heard {
            due,
            pending,
            delivered,
            absorbed,
            windows,
        },
    )
}

fn saved() -> impl Strategy<Value = Saved> {
    let bar = (0..7u8, any::<u8>(), any::<u64>())
        .prop_map(|(number, kind, size)| PciBar { number, kind: BarKind(kind), size });
    let msi =
        (any::<[bool; 2]>(), vec(heard(), 1..=32)).prop_map(|([wide, maskable], all)| {
            (MsiLayout { vectors: all.len() as u32, wide, maskable }, all)
        });
    let entry =
        (any::<u64>(), any::<u32>(), any::<bool>()).prop_map(|(at, data, masked)| {
            Entry { message: Message { address: at & !3, data }, masked }
        });
    let msix = (any::<[u32; 2]>(), vec((entry, heard()), 1..100));
    let register = (1..40u16, any::<u8>(), any::<u32>());
    let line = (any::<[bool; 3]>(), any::<u64>()).prop_map(
        |([asserted, latched, again], rises)| Level { asserted, latched, again, rises },
    );
    let rest = (any::<[u16; 2]>(), vec(bar, 0..=7), vec(register, 0..60), line);
    (rest, of(msi), of(msix)).prop_map(|((ids, bars, registers, line), msi, msix)| {
        let mut at = 0;
        let registers = registers.into_iter().map(|(gap, width, value)| {
            at += gap;
            Value { at, width, value }
        });
        let (msi, msi_heard) = msi.unzip();
        let (place, vectors) = msix.unzip();
        let (entries, msix_heard): (Vec<_>, Vec<_>) =
            vectors.unwrap_or_default().into_iter().unzip();
        let vectors = entries.len() as u32;
        Saved {
            vendor: ids[0],
            device: ids[1],
            bars,
            msi,
            msix: place.map(|[table, pending]| MsixLayout { vectors, table, pending }),
            registers: registers.collect(),
            entries,
            msi_heard: msi_heard.unwrap_or_default(),
            msix_heard,
            line,
        }
    })
}

proptest! {
    #[test]
    fn a_record_is_read_as_it_was_written(saved in saved()) {
        let bytes = saved.encode().unwrap();
        prop_assert_eq!(Saved::decode(&bytes).unwrap(), saved);
        for length in [0, 3, bytes.len() / 2, bytes.len() - 1] {
            assert!(Saved::decode(&bytes[..length]).is_err());
        }
    }

    #[test]
    fn no_record_breaks_the_reader(mut bytes in vec(any::<u8>(), 4..400)) {
        bytes[..4].copy_from_slice(&[2, 0, 0, 0]);
        if let Ok(saved) = Saved::decode(&bytes) {
            prop_assert_eq!(Saved::decode(&saved.encode().unwrap()).unwrap(), saved);
        }
    }
}

/// As large as one can be.
fn largest(vectors: usize) -> Saved {
    let heard = Heard { due: 1, pending: true, delivered: 1, absorbed: 1, windows: 1 };
    let entry = Entry { message: Message { address: !3, data: 1 }, masked: true };
    let registers = (0..MOST_REGISTERS as u16).map(|at| Value { at, width: 1, value: 1 });
    Saved {
        vendor: 1,
        device: 2,
        bars: vec![PciBar { number: 0, kind: BarKind(0), size: 16 }; 7],
        msi: Some(MsiLayout { vectors: 32, wide: true, maskable: true }),
        msix: Some(MsixLayout { vectors: 2048, table: 0, pending: 0 }),
        registers: registers.collect(),
        entries: vec![entry; 2048],
        msi_heard: vec![heard; 32],
        msix_heard: (0..2048)
            .map(|n| if n < vectors { heard } else { Heard::default() })
            .collect(),
        line: Level { rises: u64::MAX, ..Level::default() },
    }
}

#[test]
fn the_largest_record_fits_its_frame() {
    let bytes = largest(MOST_VECTORS).encode().unwrap();
    assert!(bytes.len() <= wire::device::MAX_RECORD_BYTES as usize, "{}", bytes.len());
    Saved::decode(&bytes).unwrap();
}

#[test]
fn the_accounts_of_many_vectors_are_not_lost_for_want_of_room() {
    for vectors in [0, 1, 32, 700, 701, 2047, 2048] {
        let saved = largest(vectors);
        let bytes = saved.encode().unwrap();
        assert_eq!(Saved::decode(&bytes).unwrap(), saved, "{vectors} vectors");
        // Where they are few, an older reader takes them too.
        let before = wire::device::MAX_RECORD_BYTES as usize / 2;
        assert!(vectors > 700 || bytes.len() <= before, "{}", bytes.len());
    }
    // Each of them in another way, and the last one alone.
    let mut saved = largest(0);
    for (n, one) in saved.msix_heard.iter_mut().enumerate() {
        let n = n as u64;
        match n % 5 {
            0 => one.due = n,
            1 => one.delivered = u64::MAX - n,
            2 => one.absorbed = n,
            3 => one.windows = n,
            _ => one.pending = true,
        }
    }
    assert_eq!(Saved::decode(&saved.encode().unwrap()).unwrap(), saved);
    saved.msix_heard.fill(Heard::default());
    saved.msix_heard[2047] = Heard { absorbed: 1, ..Heard::default() };
    assert_eq!(Saved::decode(&saved.encode().unwrap()).unwrap(), saved);
}

#[test]
fn an_account_of_a_vector_that_is_not_there_is_refused() {
    let saved = largest(2048);
    let good = saved.encode().unwrap();
    // The last account: its vector, and four numbers, right before the line.
    let at = good.len() - (wire::tlv::FIELD_HEAD + 9) - ACCOUNT_SIZE;
    assert_eq!(good[at..at + 4], 2047_u32.to_le_bytes());
    for wrong in [2048_u32, u32::MAX, 2046, 0] {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&wrong.to_le_bytes());
        assert!(Saved::decode(&bytes).is_err(), "vector {wrong}");
    }
}

#[test]
fn the_page_has_the_record() {
    let page = include_str!("../../../../../docs/stream.md");
    let start = page.find("\n#### A PCI function\n").expect("the heading exists");
    let part = &page[start..];
    let part = &part[..part.find("\n### ").unwrap_or(part.len())];
    for text in [
        format!("version {VERSION}"),
        format!("at most 7 of {BAR_SIZE} bytes"),
        format!("at most {MOST_REGISTERS} of {REGISTER_SIZE} bytes"),
        format!("at most {MOST_VECTORS} of {ENTRY_SIZE} bytes"),
        format!("at most {MOST_VECTORS} of {ACCOUNT_SIZE} bytes"),
    ] {
        assert!(part.contains(&text), "{text}");
    }
    for tag in super::TAGS {
        assert!(part.contains(&format!("\n| {tag} | ")), "field {tag}");
    }
    assert_eq!(region_index::ROM, 6);
}
