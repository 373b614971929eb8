//! Saved files that this version does not write: in another order, with what does not
//! belong there, and the one that the first version wrote.

use std::sync::Arc;
use std::time::Duration;

use port::{AttemptId, Device, Silent};
use states::v2::{Capabilities, State};
use testkit::{FakeDevice, FakeFile, FakeStored, Side};
use vfio_migrate_engine::drive::{
    FileCause, FileError, RestoreOptions, Restored, SaveOptions, restore, save, verify,
};
use vfio_migrate_engine::migration::Recovery;
use wire::device::{DeviceBegin, DeviceData, DeviceEnd, Phase};
use wire::message::{DeviceIdentity, Hello, MemoryRegion, RunState, StoreId};
use wire::preamble::{
    Architecture, ByteOrder, DataChannel, Features, MigrationId, PageSize, Preamble,
    Role, Token,
};
use wire::{Crc, Decoder, Encoder, Frame, Header, Message};

const PATIENCE: Duration = Duration::from_secs(5);
const BYTES: usize = 9000;

fn contents(n: usize) -> Vec<u8> {
    (0..BYTES).map(|i| (i * 7 + n * 13) as u8).collect()
}

/// A file as `save` writes it, taken apart.
#[derive(Clone)]
struct Parts {
    preamble: Preamble,
    hello: Hello,
    /// What each device gives.
    data: Vec<Vec<u8>>,
}

impl Parts {
    fn saved() -> Parts {
        let side = Side::alone("here");
        let device = |n: usize| -> Box<dyn Device> {
            let name = format!("dev{n}");
            Box::new(FakeDevice::new(&side, &name, Capabilities::ALL, contents(n)))
        };
        let file = FakeFile::new();
        let handle = file.handle();
        let id = AttemptId([7; 16]);
        let options = SaveOptions::default();
        let devices = vec![device(0), device(1)];
        let saved = save(devices, id, &mut { file }, &options, Arc::new(Silent));
        saved.result.expect("saved");
        let bytes = handle.contents().expect("a file");
        let (head, mut rest) = bytes.split_first_chunk().expect("a preamble");
        let preamble = Preamble::decode(head).expect("a preamble");
        let mut decoder = Decoder::new(Role::File, preamble.page_size);
        let (mut hello, mut data) = (None, vec![Vec::new(); 2]);
        while let Some((head, more)) = rest.split_first_chunk::<{ Header::SIZE }>() {
            let header = decoder.header(head).expect("a header");
            let (payload, more) = more.split_at(header.length as usize);
            match decoder.payload(&header, payload).expect("a frame") {
                Frame::Message(Message::Hello(one)) => hello = Some(one),
                Frame::DeviceData(one) => {
                    data[one.device as usize].extend_from_slice(one.bytes);
                }
                _ => {}
            }
            rest = more;
        }
        Parts { preamble, hello: hello.expect("a hello"), data }
    }

    /// The file that these frames make, after preamble and `Hello`.
    fn file(&self, frames: impl FnOnce(&Parts, &mut Encoder, &mut Vec<u8>)) -> Vec<u8> {
        let mut encoder = Encoder::new(self.preamble.role);
        let mut file = self.preamble.encode().to_vec();
        let hello = Message::Hello(self.hello.clone());
        file.extend(encoder.message(&hello).expect("a hello"));
        frames(self, &mut encoder, &mut file);
        file
    }

    fn begin(&self, n: usize, attempt: u32, encoder: &mut Encoder, file: &mut Vec<u8>) {
        let begin = DeviceBegin {
            device: n as u32,
            attempt,
            identity: self.hello.devices[n].clone(),
            expected_bytes: None,
        };
        file.extend(encoder.device_begin(&begin).expect("a begin"));
    }

    fn piece(
        &self,
        n: usize,
        at: std::ops::Range<usize>,
        encoder: &mut Encoder,
        file: &mut Vec<u8>,
    ) {
        let data = DeviceData {
            device: n as u32,
            phase: Phase::StopCopy,
            offset: at.start as u64,
            ends_transaction: false,
            bytes: &self.data[n][at],
        };
        file.extend(encoder.device_data(&data).expect("a piece"));
        file.extend(data.bytes);
    }

    fn end(&self, n: usize, encoder: &mut Encoder, file: &mut Vec<u8>) {
        let (length, crc) = (self.data[n].len() as u64, Crc::of(&self.data[n]).value());
        let end = DeviceEnd { device: n as u32, length, crc };
        file.extend(encoder.device_end(&end).expect("an end"));
    }
}

fn loaded(file: Vec<u8>) -> (Restored, Vec<testkit::DeviceHandle>) {
    let side = Side::alone("there");
    let fakes = [0, 1]
        .map(|n| FakeDevice::blank(&side, &format!("dev{n}"), Capabilities::ALL, BYTES));
    let handles = fakes.iter().map(FakeDevice::handle).collect();
    let devices = fakes.into_iter().map(|fake| Box::new(fake) as Box<dyn Device>);
    let devices = devices.collect();
    let options = RestoreOptions::default();
    let mut from = FakeStored::new(file);
    let restored = restore(&mut from, |_| Ok(devices), &options, Arc::new(Silent));
    (restored, handles)
}

/// The file is refused, by both ways of reading it, and the devices hold nothing of it.
fn refused(file: Vec<u8>, says: &str) {
    let error = verify(&mut FakeStored::new(file.clone()), PATIENCE).expect_err(says);
    assert!(error.to_string().contains(says), "{says}: {error}");
    let (restored, handles) = loaded(file);
    let error = restored.result.expect_err(says);
    assert!(error.to_string().contains(says), "{says}: {error}");
    for handle in handles {
        assert_eq!(handle.state(), State::Running);
        assert!(handle.contents().iter().all(|byte| *byte == 0));
    }
}

#[test]
fn devices_in_another_order_are_taken_for_each_other() {
    let parts = Parts::saved();
    let length = [parts.data[0].len(), parts.data[1].len()];
    let file = parts.file(|parts, encoder, file| {
        // The second first, then both by turns, in pieces of other sizes.
        parts.begin(1, 0, encoder, file);
        parts.piece(1, 0..100, encoder, file);
        parts.begin(0, 0, encoder, file);
        parts.piece(0, 0..4000, encoder, file);
        parts.piece(1, 100..length[1], encoder, file);
        parts.end(1, encoder, file);
        parts.piece(0, 4000..length[0], encoder, file);
        parts.end(0, encoder, file);
        file.extend(encoder.channel_end().expect("an end"));
    });
    verify(&mut FakeStored::new(file.clone()), PATIENCE).expect("whole");
    let (restored, handles) = loaded(file);
    restored.result.expect("restored");
    for (n, handle) in handles.iter().enumerate() {
        assert_eq!((handle.state(), handle.contents()), (State::Stop, contents(n)));
    }
}

#[test]
fn a_file_that_lies_about_its_devices_is_loaded() {
    let parts = Parts::saved();
    let length = parts.data[0].len();
    let whole = |parts: &Parts, n, encoder: &mut Encoder, file: &mut Vec<u8>| {
        parts.begin(n, 0, encoder, file);
        parts.piece(n, 0..parts.data[n].len(), encoder, file);
        parts.end(n, encoder, file);
    };
    let closed = |frames: &dyn Fn(&Parts, &mut Encoder, &mut Vec<u8>)| {
        parts.file(|parts, encoder, file| {
            frames(parts, encoder, file);
            file.extend(encoder.channel_end().expect("an end"));
        })
    };
    let one_missing = closed(&|parts, encoder, file| whole(parts, 0, encoder, file));
    refused(one_missing, "it ends without all of the data of dev1");
    let twice = closed(&|parts, encoder, file| {
        whole(parts, 0, encoder, file);
        whole(parts, 0, encoder, file);
    });
    refused(twice, "a device's data begins twice");
    let again = closed(&|parts, encoder, file| parts.begin(0, 1, encoder, file));
    refused(again, "a device's data begins twice");
    let gap = closed(&|parts, encoder, file| {
        parts.begin(0, 0, encoder, file);
        parts.piece(0, 1..length, encoder, file);
    });
    refused(gap, "out of place");
    let unbegun = closed(&|parts, encoder, file| parts.piece(0, 0..9, encoder, file));
    refused(unbegun, "out of place");
    let short = closed(&|parts, encoder, file| {
        parts.begin(0, 0, encoder, file);
        parts.piece(0, 0..length - 1, encoder, file);
        parts.end(0, encoder, file);
    });
    refused(short, "were saved");
    let unknown = closed(&|parts, encoder, file| {
        let end = DeviceEnd { device: 2, length: 0, crc: 0 };
        let _ = parts;
        file.extend(encoder.device_end(&end).expect("an end"));
    });
    refused(unknown, "there is no device 2");
    let other = closed(&|parts, encoder, file| {
        let identity =
            DeviceIdentity { slot: "dev9".into(), ..parts.hello.devices[0].clone() };
        let begin = DeviceBegin { device: 0, attempt: 0, identity, expected_bytes: None };
        file.extend(encoder.device_begin(&begin).expect("a begin"));
    });
    refused(other, "another device's");
    let memory = closed(&|parts, encoder, file| {
        whole(parts, 0, encoder, file);
        file.extend(encoder.round_end(1).expect("a round"));
    });
    refused(memory, "a frame that a saved file does not have");
}

#[test]
fn a_stream_that_is_no_file_of_devices_is_loaded() {
    let parts = Parts::saved();
    let none = |_: &Parts, _: &mut Encoder, _: &mut Vec<u8>| {};
    for role in [
        Role::Control,
        Role::Data {
            channel: DataChannel::new(1).expect("a channel"),
            token: Token([1; 8]),
        },
    ] {
        let mut other = parts.clone();
        other.preamble.role = role;
        let mut file = other.preamble.encode().to_vec();
        file.resize(1000, 0);
        refused(file, "a connection of a migration, and not a saved file");
    }
    let mut guest = parts.clone();
    guest.hello.memory = vec![MemoryRegion { gpa: 0, length: 4096, page_size: 4096 }];
    refused(guest.file(none), "this file holds a whole guest");
    let mut empty = parts.clone();
    empty.hello.devices.clear();
    refused(empty.file(none), "this file holds no device");
    refused(b"#!/bin/sh\n".repeat(10), "the magic is missing");

    // What only this host can tell: before a device is touched.
    let mut foreign = parts;
    foreign.preamble.architecture = Architecture(0x7777);
    let (restored, _) = loaded(foreign.file(none));
    let FileError { cause, recovery, .. } = restored.result.expect_err("foreign");
    assert!(matches!(&cause, FileCause::Refused(why) if why[0].contains("architecture")));
    assert_eq!(recovery, Recovery::Retry);
    assert!(restored.devices.is_empty());
}

#[test]
fn a_file_of_version_1_is_read_as_on_the_day_it_was_written() {
    // Never written again: see rule 11 of ARCHITECTURE.md.
    let file = include_bytes!("golden/v1/saved.bin").to_vec();
    let found = verify(&mut FakeStored::new(file.clone()), PATIENCE).expect("whole");
    assert_eq!((found.bytes, found.frames), (file.len() as u64, 14));
    assert_eq!(found.id, AttemptId([7; 16]));
    assert_eq!(found.software, "vfio-migrate 0.1.0");
    let names: Vec<&str> = found.devices.iter().map(|one| &*one.name).collect();
    assert_eq!(names, ["dev0", "dev1"]);

    // The host that wrote it was of one architecture; the devices' data is of any.
    let (head, _) = file.split_first_chunk().expect("a preamble");
    let preamble = Preamble::decode(head).expect("a preamble");
    assert_eq!(
        preamble,
        Preamble {
            byte_order: ByteOrder::LITTLE,
            architecture: Architecture::X86_64,
            page_size: PageSize::KIB_4,
            required: Features::NONE,
            optional: Features::NONE,
            migration: MigrationId([7; 16]),
            role: Role::File,
        }
    );
    if preamble.architecture == Architecture::HOST {
        let (restored, handles) = loaded(file);
        restored.result.expect("restored");
        for (n, handle) in handles.iter().enumerate() {
            assert_eq!((handle.state(), handle.contents()), (State::Stop, contents(n)));
        }
    }
}

#[test]
fn what_a_file_says_of_its_origin_is_not_true() {
    let hello = Parts::saved().hello;
    assert_eq!(hello.store, StoreId([0; 16]));
    assert_eq!((hello.source_uri, hello.data_channels), (None, 1));
    assert_eq!(hello.run_state, RunState::Running);
    assert!(hello.memory.is_empty() && hello.sections.is_empty());
    assert!(hello.expected_bytes.is_some());
}
