//! Three generations beside each other: document 001 and document 000 number by number,
//! and no name in two of them.

use std::collections::BTreeMap;
use vfio_migrate_abi::rfc2018::{
    self, DataSection, DirtyPfns, FlowState, PendingBytes, RfcField, RfcInfo,
};
use vfio_migrate_abi::v1::{StateBits, V1Field, V1Info};
use vfio_migrate_abi::{v1, v2};
use zerocopy::{FromBytes, IntoBytes};

#[test]
fn the_ten_states_of_document_001_count_from_none() {
    let names = "NONE RUNNING SETUP PRECOPY STOPNCOPY SAVE_COMPLETED RESUME \
                 RESUME_COMPLETED FAILED CANCELLED";
    for (number, name) in (0..).zip(names.split(' ')) {
        assert_eq!(FlowState(number).name(), Some(name));
    }
    assert_eq!(FlowState::NAMED.len(), 10);
    assert_eq!(FlowState(10).to_string(), "step 10");
}

#[test]
fn a_packed_structure_is_read_field_by_field_and_as_a_whole() {
    let bytes: Vec<u8> = (0..76).collect();
    let info = RfcInfo::read_from_bytes(&bytes).expect("76 bytes");
    assert_eq!(info.as_bytes(), bytes);
    assert!(RfcInfo::read_from_bytes(&bytes[..75]).is_err());
    let word = |field: RfcField| {
        let at = usize::try_from(field.at()).expect("small");
        u64::read_from_bytes(&bytes[at..at + field.width()]).expect("8 bytes")
    };
    let part = |field: RfcField| {
        let at = usize::try_from(field.at()).expect("small");
        &bytes[at..at + field.width()]
    };
    let pending = PendingBytes::read_from_bytes(part(RfcField::Pending)).expect("32");
    assert_eq!({ info.pending }, pending);
    assert_eq!(pending.precopy_only, word(RfcField::PrecopyOnly));
    assert_eq!(pending.compatible, word(RfcField::Compatible));
    assert_eq!(pending.postcopy_only, word(RfcField::PostcopyOnly));
    assert_eq!(pending.threshold_size, word(RfcField::ThresholdSize));
    let data = DataSection::read_from_bytes(part(RfcField::Data)).expect("16");
    assert_eq!({ info.data }, data);
    assert_eq!((data.offset, data.size), (word(RfcField::Offset), word(RfcField::Size)));
    let dirty = DirtyPfns::read_from_bytes(part(RfcField::DirtyPfns)).expect("24");
    assert_eq!({ info.dirty_pfns }, dirty);
    assert_eq!(dirty.start_addr, word(RfcField::StartAddr));
    assert_eq!(dirty.total, word(RfcField::Total));
    assert_eq!(dirty.copied, word(RfcField::Copied));
}

/// Every offset and length there is, so that no access reaches half of a field.
#[test]
fn no_access_between_fields_is_taken_for_one() {
    let (mut rfc, mut v1) = (0, 0);
    for offset in 0..100_u64 {
        for length in 0..100_usize {
            if let Some(field) = RfcField::find(offset, length) {
                assert_eq!((field.at(), field.width()), (offset, length));
                rfc += 1;
            }
            if let Some(field) = V1Field::find(offset, length) {
                assert_eq!((field.at(), field.width()), (offset, length));
                assert_eq!(offset % length as u64, 0, "native alignment");
                v1 += 1;
            }
        }
    }
    assert_eq!((rfc, v1), (RfcField::ALL.len(), V1Field::ALL.len()));
    assert_eq!(V1Field::find(u64::MAX, 8), None);
    assert_eq!(RfcField::find(u64::MAX, usize::MAX), None);
    let end = |at: u64, width: usize| at + width as u64;
    let last = V1Field::DataSize;
    assert_eq!(end(last.at(), last.width()), V1Info::SIZE as u64);
    let last = RfcField::Copied;
    assert_eq!(end(last.at(), last.width()), RfcInfo::SIZE as u64);
}

#[test]
fn the_eight_combinations_of_document_000_and_any_reserved_bits() {
    // 000, 001, 010, 011, 100 valid; 101 and 111 invalid; 110 error.
    let valid = [true, true, true, true, true, false, false, false];
    for reserved in [0, 1 << 3, 0x8000_0000, 0xffff_fff8, 0x1234_5678 & !7] {
        for (bits, valid) in (0..8).zip(valid) {
            let state = StateBits::from_bits_retain(reserved | bits);
            assert_eq!(state.is_valid(), valid, "{bits:03b}");
            assert_eq!(state.is_error(), bits == 0b110, "{bits:03b}");
            assert_eq!(state.defined().bits(), bits);
            assert_eq!(state.reserved().bits(), reserved);
            assert_eq!(state.with(StateBits::RUNNING).bits(), reserved | 1);
            let polluted = StateBits::from_bits_retain(0x40 | bits);
            assert_eq!(StateBits::STOPPED.with(polluted).bits(), bits);
        }
    }
}

#[test]
fn error_09_set_error_is_misspelt() {
    for bits in (0..16).chain([u32::MAX, 0x8000_0001]) {
        let state = StateBits::from_bits_retain(bits).with_error();
        assert!(state.is_error() && !state.is_valid());
        assert_eq!(state.bits(), bits & !0b111 | 0b110, "the reserved bits stay");
    }
}

/// The same word, another number: why no generation may borrow from another.
#[test]
fn stop_and_running_are_other_numbers_in_each_generation() {
    assert_eq!((StateBits::STOPPED.bits(), v2::DeviceState::STOP.0), (0, 1));
    let running =
        (FlowState::RUNNING.0, StateBits::RUNNING.bits(), v2::DeviceState::RUNNING.0);
    assert_eq!(running, (1, 1, 2));
    assert_ne!(rfc2018::RFC_REGION_TYPE, v1::V1_REGION_TYPE);
}

/// The names of the public items in the source of a module and of the modules in it.
/// What belongs to a type (fields, methods, constants) is always written with its type
/// and is left out.
fn public_items(source: &str) -> Vec<String> {
    let mut items = Vec::new();
    let mut open: Vec<String> = Vec::new();
    for line in source.lines() {
        let code = line.split("//").next().unwrap_or_default().trim();
        let counted = open.iter().all(|block| {
            ["pub mod ", "open_number!", "bitflags::bitflags!"]
                .iter()
                .any(|kind| block.starts_with(kind))
        });
        let words: Vec<&str> =
            code.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
        if counted && words.first() == Some(&"pub") {
            let name = words[1..].iter().find(|word| {
                !["const", "fn", "struct", "enum", "mod", "type", "static", "trait"]
                    .contains(word)
            });
            items.push((*name.expect("a public item has a name")).to_owned());
        }
        let in_open_number = open.last().is_some_and(|b| b.starts_with("open_number!"));
        if in_open_number && code.contains("), \"") {
            items.push(words[0].to_owned());
        }
        for character in code.chars() {
            match character {
                '{' => open.push(code.to_owned()),
                '}' => drop(open.pop().expect("braces are balanced")),
                _ => {}
            }
        }
    }
    assert!(open.is_empty(), "braces are balanced");
    items
}

#[test]
fn a_name_of_two_generations_breaks_no_build() {
    let sample = "pub const A: u8 = 1; // { pub const NOT: u8\nimpl B {\n    pub const \
                  NOT: u8 = 1;\n}\npub mod c {\n    pub const fn d() {}\n}\n\
                  open_number! {\n    E(u32), \"e\";\n    NOT = 1,\n}\n\
                  bitflags::bitflags! {\n    pub struct F: u32 {\n    }\n}";
    assert_eq!(public_items(sample), ["A", "c", "d", "E", "F"]);
    let sources = [
        ("rfc2018", include_str!("../src/rfc2018.rs"), "FlowState"),
        ("v1", include_str!("../src/v1.rs"), "StateBits"),
        ("v2", include_str!("../src/v2.rs"), "DeviceState"),
    ];
    let mut owner: BTreeMap<String, &str> = BTreeMap::new();
    for (generation, source, known) in sources {
        let items = public_items(source);
        assert!(items.iter().any(|item| item == known), "{generation}: {items:?}");
        for item in items {
            if let Some(other) = owner.insert(item.clone(), generation) {
                panic!("{item} is a name of {other} and of {generation}");
            }
        }
    }
    assert!(owner.len() > 20, "the sources were not understood: {owner:?}");
    // And nobody takes all names of a module without saying so.
    let lints = include_str!("../../../Cargo.toml");
    for lint in ["wildcard_imports", "enum_glob_use"] {
        assert!(lints.contains(&format!("{lint} = \"deny\"")), "{lint}");
    }
}

#[test]
fn no_error_of_the_documents_is_without_a_test_that_names_it() {
    let page = include_str!("../../../docs/generations.md");
    let (_, table) = page.split_once("# Where the documents are wrong").expect("a table");
    let mut number = 0;
    for row in table.lines().filter(|line| line.starts_with("| ")).skip(2) {
        number += 1;
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [at, wrong, here, test] = cells[..] else { panic!("{row}") };
        assert_eq!(at, number.to_string());
        assert!(!wrong.is_empty() && !here.is_empty(), "{row}");
        let (room, name) = test.trim_matches('`').split_once(": ").expect("room: test");
        assert!(name.starts_with(&format!("error_{number:02}_")), "{row}");
        if room == "abi" {
            assert!(include_str!("generations.rs").contains(&format!("fn {name}()")));
        }
    }
    assert_eq!(number, 17);
}
