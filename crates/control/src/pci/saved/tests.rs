//! The record, by itself.

use abi::pci::region_index;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::{Strategy, any, prop_assert_eq, proptest};

use super::{
    ACCOUNT_SIZE, BAR_SIZE, ENTRY_SIZE, MOST_ACCOUNTS, MOST_REGISTERS, REGISTER_SIZE,
    Saved, VERSION, Value,
};
use crate::pci::Message;
use crate::pci::intx::Level;
use crate::pci::vectors::{Entry, Heard};
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
    let bytes = largest(MOST_ACCOUNTS).encode().unwrap();
    assert!(bytes.len() <= wire::device::MAX_RECORD_BYTES as usize, "{}", bytes.len());
    Saved::decode(&bytes).unwrap();
}

#[test]
fn a_pending_bit_is_not_lost_for_want_of_room() {
    let mut saved = largest(2048);
    assert!(saved.encode().is_err(), "2048 interrupts that wait under a mask");
    for one in &mut saved.msix_heard {
        one.due = 0;
    }
    let read = Saved::decode(&saved.encode().unwrap()).unwrap();
    assert!(read.msix_heard.iter().all(|one| one.pending && one.delivered == 0));
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
        format!("at most 2048 of {ENTRY_SIZE} bytes"),
        format!("at most {MOST_ACCOUNTS} of {ACCOUNT_SIZE} bytes"),
    ] {
        assert!(part.contains(&text), "{text}");
    }
    for tag in super::TAGS {
        assert!(part.contains(&format!("\n| {tag} | ")), "field {tag}");
    }
    assert_eq!(region_index::ROM, 6);
}
