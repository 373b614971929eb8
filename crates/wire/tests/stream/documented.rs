//! `docs/stream.md` says what the constants say.

use std::fmt::Display;
use std::fs;
use std::path::Path;

use crate::samples;
use crate::wire::message::{
    self, DeviceIdentity, FailureCode, Hello, MAX_DEVICES, MAX_NAME_BYTES, MAX_REASONS,
    MAX_REGIONS, MAX_SECTIONS, MAX_TEXT_BYTES, Message, MessageKind, RefusalCode,
};
use crate::wire::preamble::{MAGIC, MAX_DATA_CHANNELS, Preamble, VERSION};
use crate::wire::tlv::Fields;
use crate::wire::{ChannelDigest, FrameType, Header};
use crate::wire::{device, frame, memory, section, tlv};

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/stream.md");
    fs::read_to_string(path).unwrap()
}

/// The part of the page under a heading, up to the next one.
fn part<'a>(page: &'a str, heading: &str) -> &'a str {
    let start = page.find(&format!("\n{heading}\n")).expect("the heading exists");
    let part = &page[start + 1..];
    part.find("\n#").map_or(part, |end| &part[..=end])
}

#[test]
fn the_page_has_every_type_of_frame_and_its_ceiling() {
    let page = page();
    let part = part(&page, "## Frame");
    for number in 0..=u16::MAX {
        let kind = FrameType(number);
        let row = format!("| 0x{number:02x} | {kind} | {} |\n", kind.ceiling());
        assert_eq!(part.contains(&row), kind.name().is_some(), "{row}");
        assert_eq!(FrameType::KNOWN.contains(&kind), kind.name().is_some(), "{kind}");
    }
    assert!(
        part.contains(&format!("| any other | not known | {} |", frame::UNKNOWN_CEILING))
    );
}

#[test]
fn the_page_has_every_message() {
    let page = page();
    let part = part(&page, "## Messages");
    for number in 0..=u16::MAX {
        let kind = MessageKind(number);
        let row = format!("\n| {number} | {kind} | ");
        assert_eq!(part.contains(&row), kind.name().is_some(), "{row}");
    }
}

#[test]
fn the_page_has_every_code() {
    fn check(part: &str, code: impl Fn(u16) -> String) {
        let rows = part.lines().filter(|line| line.starts_with("| ")).count() - 2;
        for number in 0..rows as u16 {
            let row = format!("\n| {number} | {} |\n", code(number));
            assert!(part.contains(&row), "{row}");
        }
        let next = code(rows as u16);
        assert!(next.contains(&format!("code {rows}")), "{next} is not on the page");
    }
    let page = page();
    check(part(&page, "### Refusal codes"), |code| RefusalCode(code).to_string());
    check(part(&page, "### Failure codes"), |code| FailureCode(code).to_string());
}

#[test]
fn the_page_has_every_limit() {
    let page = page();
    let part = part(&page, "## Fields");
    let limits: [(&str, &dyn Display); 11] = [
        ("MAX_DEVICES", &MAX_DEVICES),
        ("MAX_REGIONS", &MAX_REGIONS),
        ("MAX_SECTIONS", &MAX_SECTIONS),
        ("MAX_REASONS", &MAX_REASONS),
        ("MAX_DATA_CHANNELS", &MAX_DATA_CHANNELS),
        ("MAX_FIELDS", &tlv::MAX_FIELDS),
        ("MAX_NAME_BYTES", &MAX_NAME_BYTES),
        ("MAX_TEXT_BYTES", &MAX_TEXT_BYTES),
        ("MAX_RUNS", &memory::MAX_RUNS),
        ("MAX_RUN_BYTES", &memory::MAX_RUN_BYTES),
        ("MAX_SECTION_BYTES", &section::MAX_SECTION_BYTES),
    ];
    for (name, limit) in limits {
        let row = part.lines().find(|line| line.ends_with(&format!("| `{name}` |")));
        let row = row.unwrap_or_default();
        assert!(row.starts_with(&format!("| {limit} | ")), "{name} is {limit}: {row}");
    }
}

#[test]
fn the_page_has_the_layout_of_a_function_as_it_is_written() {
    let page = page();
    let start = page.find("\nPCI layout: ").expect("the table exists");
    let end = page[start..].find("\n**").expect("another message follows");
    let part = &page[start..start + end];
    let row = |tag: u16| {
        let row = part.lines().find(|line| line.starts_with(&format!("| {tag} | ")));
        row.unwrap_or_else(|| panic!("field {tag} is not on the page"))
    };
    // Hello, its first device, and the layout of that, as they are in the bytes.
    let layout = samples::longest_layout();
    let device = DeviceIdentity { layout: Some(layout.clone()), ..samples::identity() };
    let hello = Hello { devices: vec![device], ..samples::hello() };
    let bytes = Message::Hello(hello).encode().unwrap();
    let hello = Fields::parse(&bytes[4..], &[]).unwrap();
    let device = hello.list(7, 1).unwrap().unwrap().next().unwrap();
    let device = Fields::parse(device, &[]).unwrap();
    let fields = Fields::parse(device.get(8).unwrap(), &[]).unwrap();

    let tags: Vec<u16> =
        (0..=u16::MAX >> 1).filter(|tag| fields.get(*tag).is_some()).collect();
    assert_eq!(tags, [1, 2, 3, 4, 5, 6]);
    let rows = part.lines().filter(|line| line.starts_with("| ")).count();
    assert_eq!(rows, tags.len() + 2, "with the head of the table");
    for (tag, items) in [
        (1, message::MAX_BARS),
        (2, message::MAX_CAPABILITIES),
        (3, message::MAX_EXTENDED),
    ] {
        let size = fields.get(tag).unwrap().len() / items;
        let text = format!("at most {items} of {size} bytes");
        assert!(row(tag).contains(&text), "{text}: {}", row(tag));
    }
    assert!(row(4).contains("u8: 1 if there is a line"));
    assert_eq!(fields.u8(4), Ok(Some(1)));
    let msi = Fields::parse(fields.get(5).unwrap(), &[]).unwrap();
    assert!(row(5).contains("1 u32 vectors, 2 u8: bit 0 64-bit address, bit 1 masks"));
    assert_eq!((msi.u32(1), msi.u8(2)), (Ok(Some(32)), Ok(Some(0b11))));
    let msix = Fields::parse(fields.get(6).unwrap(), &[]).unwrap();
    assert!(row(6).contains("1 u32 vectors, 2 u32 place of the table"));
    assert!(row(6).contains("3 u32 place of the pending bits"));
    let places = layout.msix.map(|msix| (msix.vectors, msix.table, msix.pending));
    let (vectors, table, pending) = places.unwrap();
    assert_eq!(
        (msix.u32(1), msix.u32(2), msix.u32(3)),
        (Ok(Some(vectors)), Ok(Some(table)), Ok(Some(pending)))
    );
}

#[test]
fn the_page_has_the_fixed_sizes() {
    let page = page();
    let magic: Vec<_> = MAGIC.iter().map(|byte| format!("{byte:02x}")).collect();
    for text in [
        format!("# The migration stream, container version {VERSION}\n"),
        format!("| magic | `{}` ", magic.join(" ")),
        format!("\n{} bytes. Their places never change", Preamble::SIZE),
        format!("\nA header of {} bytes", Header::SIZE),
        format!(
            "| {} | at most {} | the device's",
            device::DATA_PREFIX,
            device::MAX_DATA_BYTES
        ),
        format!(
            "| {} | at most {} | bytes |",
            device::RECORD_PREFIX,
            device::MAX_RECORD_BYTES
        ),
        format!(
            "| {} | at most {} | bytes |",
            section::DATA_PREFIX,
            section::MAX_DATA_BYTES
        ),
        format!("| {} | {} each | the runs |", memory::TABLE_HEAD, memory::RUN_SIZE),
    ] {
        assert!(page.contains(&text), "{text}");
    }
    // The tables of fixed payloads end with their last field.
    assert_eq!(
        (device::END_SIZE, ChannelDigest::SIZE, frame::ROUND_END_SIZE),
        (24, 24, 8)
    );
    assert_eq!(message::MAX_MESSAGE_BYTES, FrameType::CONTROL.ceiling());
}
