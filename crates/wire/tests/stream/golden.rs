//! What version 1 wrote, forever.
//!
//! `tests/golden/v1/NAME.bin` is a preamble or a frame as the first release wrote it,
//! `NAME.txt` what it means. Neither is ever written again: the decoder reads them or
//! the test fails. A new kind of frame adds files.

use std::fmt::Debug;
use std::fs;
use std::path::PathBuf;

use crate::samples;
use crate::wire::preamble::{PageSize, Preamble, Role};
use crate::wire::{Decoder, Encoder, Header, Message};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1")
}

/// What this version would write: name, bytes.
fn written() -> Vec<(String, Vec<u8>)> {
    let mut all = vec![];
    for (name, role) in
        [("control", Role::Control), ("data", samples::data_role()), ("file", Role::File)]
    {
        let bytes = samples::preamble(role).encode().to_vec();
        all.push((format!("preamble-{name}"), bytes));
    }
    for (name, message) in samples::messages() {
        let frame = Encoder::new(Role::Control).message(&message).unwrap();
        all.push((format!("message-{name}"), frame));
    }
    let mut encoder = Encoder::new(samples::data_role());
    for (name, frame) in samples::frames(&mut encoder).unwrap() {
        all.push((format!("frame-{name}"), frame));
    }
    all
}

fn text(value: &dyn Debug) -> String {
    format!("{value:#?}\n")
}

/// What a file means: of a frame its header, then its payload. The frames of a data
/// channel stand in files of their own, so the order in which to read them is that
/// of their sequence numbers.
fn meaning(name: &str, bytes: &[u8], data: &mut Decoder) -> String {
    if name.starts_with("preamble-") {
        return text(&Preamble::decode(bytes.try_into().unwrap()).unwrap());
    }
    let mut control = Decoder::new(Role::Control, PageSize::KIB_4);
    let decoder = if name.starts_with("message-") { &mut control } else { data };
    let (header, payload) = samples::split(bytes);
    let header = decoder.header(header).unwrap();
    let frame = decoder.payload(&header, payload).unwrap();
    text(&header) + &text(&frame)
}

fn data_decoder() -> Decoder {
    Decoder::new(samples::data_role(), PageSize::KIB_4)
}

/// The golden files, those of the data channel in the order in which they were sent.
fn golden() -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "bin"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, fs::read(path).unwrap())
        })
        .collect();
    files.sort_by_key(|(name, bytes)| {
        let frame = name.starts_with("frame-");
        (frame.then(|| Header::decode(samples::split(bytes).0).sequence), name.clone())
    });
    files
}

#[test]
fn a_stream_of_version_1_is_read_as_on_the_day_it_was_written() {
    let files = golden();
    assert!(files.len() >= 31, "golden files are missing: {}", files.len());
    let mut data = data_decoder();
    for (name, bytes) in files {
        let expected = fs::read_to_string(folder().join(&name).with_extension("txt"));
        assert_eq!(meaning(&name, &bytes, &mut data), expected.unwrap(), "{name}");
    }
    assert!(data.ended());
}

#[test]
fn what_is_written_today_is_what_version_1_wrote() {
    let golden = golden();
    for (name, bytes) in written() {
        let file = golden.iter().find(|(found, _)| *found == name);
        assert!(file.is_some_and(|(_, golden)| *golden == bytes), "{name} differs");
    }
}

#[test]
fn every_kind_of_message_has_a_golden_file() {
    let kinds: Vec<_> =
        samples::messages().iter().map(|(_, m)| Message::kind(m)).collect();
    for number in 0..=u16::MAX {
        let payload = [number.to_le_bytes(), [0, 0]].concat();
        let unknown = matches!(
            Message::decode(&payload),
            Err(crate::wire::message::MessageError::UnknownKind(_))
        );
        let known = kinds.iter().any(|kind| kind.0 == number);
        assert_eq!(known, !unknown, "message kind {number}");
    }
}

/// `cargo test -p vfio-migrate-wire --test stream -- --ignored write_golden`: writes
/// the files that are missing, and none that are there.
#[test]
#[ignore = "writes the golden files of what is new"]
fn write_golden_files_that_do_not_exist() {
    let mut data = data_decoder();
    for (name, bytes) in written() {
        let text = meaning(&name, &bytes, &mut data);
        for (extension, content) in [("bin", &bytes[..]), ("txt", text.as_bytes())] {
            let path = folder().join(&name).with_extension(extension);
            let file = fs::OpenOptions::new().write(true).create_new(true).open(path);
            if let Ok(mut file) = file {
                std::io::Write::write_all(&mut file, content).unwrap();
            }
        }
    }
}

/// Inputs to begin with for the fuzz target `stream`: a saved stream of one frame
/// each. Written like the golden files, and free to be replaced.
#[test]
#[ignore = "writes the seeds of the fuzz target"]
fn write_fuzz_seeds() {
    let folder =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/stream");
    fs::create_dir_all(&folder).unwrap();
    let preamble = samples::preamble(Role::File).encode();
    let mut seeds = vec![];
    for (name, message) in samples::messages() {
        seeds.push((name, Encoder::new(Role::File).message(&message).unwrap()));
    }
    // The target puts sequence numbers and checksums right.
    for (name, frame) in samples::frames(&mut Encoder::new(Role::File)).unwrap() {
        let frame = if name == "memory-runs" { samples::one_page() } else { frame };
        seeds.push((name, frame));
    }
    for (name, frame) in seeds {
        fs::write(folder.join(name), [&preamble[..], &frame].concat()).unwrap();
    }
}
