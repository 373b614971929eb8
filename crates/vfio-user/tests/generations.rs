//! A device of a generation before v2 over vfio-user: an extra region stands for the
//! migration features.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use std::sync::Arc;

use abi::errno::Errno;
use abi::feature::{Feature, FeatureFlags, FeatureHeader};
use abi::rfc2018::{DataSection as Data, DirtyPfns};
use abi::vfio_user::{MigData, RegionAccess, WriteMulti};
use control::{DmaTarget, MappedArea, RegionWrite, Transport, TransportError};
use device::front::{DataSection, FrontOptions, Generation};
use dirty::IovaRange;
use states::v2::{Capabilities, State};
use support::{MEMORY, Served, Toy, register, set};
use sys::SharedMemory;
use vfio_migrate_vfio_user::codec::Request;
use vfio_migrate_vfio_user::{Client, ClientOptions, NoDma, ServerOptions};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Where the region is, behind those of a PCI function.
const REGION: u32 = 9;
const SECTION: u64 = 256 << 10;
const SECTIONS: [DataSection; 3] =
    [DataSection::Trapped, DataSection::Mapped, DataSection::Split];

fn front(generation: Generation, data_section: DataSection) -> FrontOptions {
    FrontOptions { data_section, section_bytes: SECTION, ..FrontOptions::new(generation) }
}

fn options(generation: Generation, data_section: DataSection) -> ServerOptions {
    ServerOptions {
        front: Some(front(generation, data_section)),
        // Less than a transaction: what is trapped goes in pieces.
        max_data_xfer_size: 64 << 10,
        ..ServerOptions::default()
    }
}

fn serve(generation: Generation, data_section: DataSection) -> Served {
    Served::with(Toy::new(Capabilities::ALL), options(generation, data_section))
}

fn errno<T>(result: Result<T, TransportError>) -> Errno {
    match result {
        Ok(_) => Errno(0),
        Err(TransportError::Errno { errno, .. }) => errno,
        Err(error) => panic!("{error}"),
    }
}

fn word(client: &Client, at: u64) -> u64 {
    let mut word = [0; 8];
    client.region_read(REGION, at, &mut word).unwrap();
    u64::from_ne_bytes(word)
}

fn structure<T: FromBytes + IntoBytes + FromZeros>(client: &Client, at: u64) -> T {
    let mut value = T::new_zeroed();
    client.region_read(REGION, at, value.as_mut_bytes()).unwrap();
    value
}

fn go(client: &Client, state: u32) -> Result<(), TransportError> {
    client.region_write(REGION, 0, &state.to_ne_bytes())
}

fn fill(client: &Client, value: u8) {
    for at in (0..MEMORY).step_by(32 << 10) {
        let part = vec![value.wrapping_add((at >> 15) as u8); 32 << 10];
        client.region_write(2, at, &part).unwrap();
    }
}

/// The section, with what can be mapped of it mapped.
struct Section<'a> {
    client: &'a Client,
    area: Option<MappedArea>,
}

impl<'a> Section<'a> {
    fn of(client: &'a Client) -> Section<'a> {
        let areas = client.region_info(REGION).unwrap().areas;
        let area = areas.first().map(|area| client.region_map(REGION, area.0).unwrap());
        Section { client, area }
    }

    fn split(&self, at: u64, length: usize) -> usize {
        let first = self.area.as_ref().map_or(u64::MAX, |area| area.offset);
        first.saturating_sub(at).min(length as u64) as usize
    }

    fn read(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let split = self.split(at, length);
        self.client.region_read(REGION, at, &mut bytes[..split]).unwrap();
        if split < length {
            let area = self.area.as_ref().unwrap();
            let from = at + split as u64 - area.offset;
            area.memory.read(from, &mut bytes[split..]).unwrap();
        }
        bytes
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let split = self.split(at, bytes.len());
        self.client.region_write(REGION, at, &bytes[..split]).unwrap();
        if split < bytes.len() {
            let area = self.area.as_ref().unwrap();
            let to = at + split as u64 - area.offset;
            area.memory.write(to, &bytes[split..]).unwrap();
        }
    }
}

#[test]
fn a_device_of_another_generation_says_that_it_is_v2() {
    for (generation, kind) in
        [(Generation::V1, (3, 1)), (Generation::Rfc2018, (1 << 30, 1))]
    {
        for section in SECTIONS {
            let served = serve(generation, section);
            let client = served.client();
            assert_eq!(client.device_info().unwrap().regions, REGION + 1);
            let info = client.region_info(REGION).unwrap();
            assert_eq!(info.kind, Some(kind));
            let start = info.size - SECTION;
            let areas = match section {
                DataSection::Trapped => vec![],
                DataSection::Mapped => vec![(start, SECTION)],
                DataSection::Split => vec![(start + 4096, SECTION - 4096)],
            };
            assert_eq!(info.areas, areas);
            assert_eq!(info.flags & 3, 3, "read and write");
            for feature in [
                Feature::MIGRATION,
                Feature::MIG_DEVICE_STATE,
                Feature::MIG_DATA_SIZE,
                Feature::MIG_PRECOPY_INFO_V2,
                Feature::VFIO_MIGRATE_PRECOPY_INFO,
            ] {
                assert_eq!(errno(client.feature_probe(feature)), Errno::ENOTTY);
                let get = client.feature_get(feature, &[0; 8], 64);
                assert_eq!(errno(get), Errno::ENOTTY, "{feature:?}");
            }
            let set = client.feature_set(Feature::MIG_DEVICE_STATE, &[0; 8]);
            assert_eq!(errno(set), Errno::ENOTTY);
            // What is of no generation stays.
            for feature in [
                Feature::DMA_LOGGING_START,
                Feature::DMA_LOGGING_STOP,
                Feature::DMA_LOGGING_REPORT,
                Feature::VFIO_MIGRATE_IDENTITY,
                Feature::VFIO_MIGRATE_DIGEST,
            ] {
                assert_eq!(errno(client.feature_probe(feature)), Errno(0), "{feature:?}");
            }
        }
    }
    // And v2 has no such region.
    let served = Served::start(ServerOptions::default());
    let client = served.client();
    assert_eq!(client.device_info().unwrap().regions, REGION);
    assert_eq!(errno(client.region_info(REGION)), Errno::EINVAL);
}

#[test]
fn data_goes_past_the_region() {
    let served = serve(Generation::V1, DataSection::Trapped);
    let mut raw = served.raw();
    raw.agree(true);
    go_raw(&mut raw, 1, 0b010);
    assert_eq!(raw.errno(1), Errno(0));
    raw.ask(2, &Request::MigDataRead(MigData { argsz: 16, size: 8 }));
    assert_eq!(raw.errno(2), Errno::ENOTTY);
    raw.ask(3, &Request::MigDataWrite(MigData { argsz: 16, size: 8 }, &[0; 8]));
    assert_eq!(raw.errno(3), Errno::ENOTTY);
    let header = FeatureHeader::new(Feature::MIG_DEVICE_STATE, FeatureFlags::SET, 8);
    raw.ask(4, &Request::Feature(header, &[0; 8]));
    assert_eq!(raw.errno(4), Errno::ENOTTY);
    raw.check_in_step();
}

#[test]
fn a_state_changes_on_its_way_through_a_socket() {
    for section in SECTIONS {
        for into in SECTIONS {
            let source = serve(Generation::V1, section);
            let client = source.client();
            fill(&client, 3);
            let out = Section::of(&client);
            go(&client, 0b011).unwrap();
            let mut transactions = Vec::new();
            for state in [0b011, 0b010] {
                go(&client, state).unwrap();
                while word(&client, 8) > 0 {
                    let (at, size) = (word(&client, 16), word(&client, 24));
                    transactions.push(out.read(at, size as usize));
                }
            }
            go(&client, 0).unwrap();
            assert_eq!(transactions.len() as u64, MEMORY / SECTION);

            let target = serve(Generation::Rfc2018, into);
            let other = target.client();
            let section = Section::of(&other);
            go(&other, 6).unwrap();
            for bytes in &transactions {
                let data: Data = structure(&other, 36);
                section.write(data.offset, bytes);
                let data = Data { size: bytes.len() as u64, ..data };
                other.region_write(REGION, 36, data.as_bytes()).unwrap();
            }
            go(&other, 7).unwrap();
            go(&other, 1).unwrap();
            drop((out, section));
            drop((client, other));
            let (was, is) = (source.stop(), target.stop());
            assert_eq!(is.runner().state(), State::Running);
            let (was, is) =
                (was.runner().digest().unwrap(), is.runner().digest().unwrap());
            assert_eq!(was.chunks, is.chunks);
        }
    }
}

#[test]
fn a_client_that_takes_no_descriptor_is_told_to_map() {
    let served = serve(Generation::V1, DataSection::Mapped);
    let mut raw = served.raw();
    // Without descriptors.
    let text = vfio_migrate_vfio_user::codec::Capabilities {
        max_msg_fds: 0,
        ..Default::default()
    }
    .text();
    let version =
        vfio_migrate_vfio_user::codec::Version { major: 0, minor: 0, text: &text };
    raw.ask(0, &Request::Version(version));
    assert_eq!(raw.errno(0), Errno(0));
    let info = abi::region::RegionInfo {
        argsz: 4096,
        flags: 0,
        index: REGION,
        cap_offset: 0,
        size: 0,
        offset: 0,
    };
    raw.ask(1, &Request::RegionInfo(info));
    let (_, body) = raw.receive();
    let (info, rest) = abi::region::RegionInfo::read_from_prefix(&body).unwrap();
    assert_eq!(info.flags & 0b1111, 0b1011, "read, write and capabilities: no mmap");
    assert_eq!(rest.len(), 16, "type and subtype alone");
    // What could be mapped is read all the same.
    go_raw(&mut raw, 2, 0b010);
    assert_eq!(raw.errno(2), Errno(0));
    for (id, at, count) in [(3, 8, 8), (4, 16, 8), (5, 4096, 4096)] {
        let access = RegionAccess { offset: at, region: REGION, count };
        raw.ask(id, &Request::RegionRead(access));
        assert_eq!(raw.receive().1.len() as u32, 16 + count);
    }
}

fn go_raw(raw: &mut support::Raw, id: u16, state: u32) {
    let access = RegionAccess { offset: 0, region: REGION, count: 4 };
    raw.ask(id, &Request::RegionWrite(access, &state.to_ne_bytes()));
}

#[test]
fn a_state_that_takes_its_time_is_answered_before_it_is_reached() {
    for (generation, state) in [(Generation::V1, 0b100), (Generation::Rfc2018, 6)] {
        let served = serve(generation, DataSection::Trapped);
        let mut raw = served.raw();
        raw.agree(true);
        let lazy = RegionAccess { offset: register::LAZY, region: 0, count: 8 };
        raw.ask(1, &Request::RegionWrite(lazy, &50_u64.to_ne_bytes()));
        assert_eq!(raw.errno(1), Errno(0));
        go_raw(&mut raw, 2, state);
        // Others are answered meanwhile, a second change of state with EBUSY.
        let config = RegionAccess { offset: 0, region: 7, count: 4 };
        raw.ask(3, &Request::RegionRead(config));
        go_raw(&mut raw, 4, state);
        let order: Vec<_> = (0..3).map(|_| raw.receive().0.msg_id).collect();
        assert_eq!(order, [3, 4, 2]);
        // A reset ends it.
        raw.ask(5, &Request::Reset);
        assert_eq!(raw.errno(5), Errno(0));
        raw.ask(6, &Request::RegionWrite(lazy, &1_000_000_000_u64.to_ne_bytes()));
        assert_eq!(raw.errno(6), Errno(0));
        go_raw(&mut raw, 7, state);
        raw.ask(8, &Request::Reset);
        let mut answers = [raw.receive().0, raw.receive().0];
        answers.sort_unstable_by_key(|header| header.msg_id);
        assert_eq!(answers.map(|header| header.msg_id), [7, 8]);
        assert_eq!(answers[0].error, Errno::ENODEV.0 as u32);
        // And one that goes away leaves nothing to answer.
        raw.ask(9, &Request::RegionWrite(lazy, &3_u64.to_ne_bytes()));
        assert_eq!(raw.errno(9), Errno(0));
        go_raw(&mut raw, 10, state);
        drop(raw);
        let client = served.client();
        client.reset().unwrap();
        drop(client);
        assert_eq!(served.stop().runner().state(), State::Running);
    }
}

#[test]
fn a_write_that_nobody_waits_for_is_answered() {
    let served = serve(Generation::V1, DataSection::Trapped);
    let client = served.client();
    // No reply: the first fails, the second takes its time.
    client.region_write_posted(REGION, 0, &0b111_u32.to_ne_bytes()).unwrap();
    set(&client, register::LAZY, 3);
    client.region_write_posted(REGION, 0, &0b011_u32.to_ne_bytes()).unwrap();
    support::until(|| {
        let mut state = [0; 4];
        client.region_read(REGION, 0, &mut state).unwrap();
        u32::from_ne_bytes(state) == 0b011
    });
    drop(client);
    assert_eq!(served.stop().unanswered_errors(), 1);
}

#[test]
fn several_writes_with_one_answer_change_a_state() {
    let served = serve(Generation::V1, DataSection::Trapped);
    let options = ClientOptions::new("toy", Arc::new(NoDma));
    let client = Client::connect(&served.path(), options).unwrap();
    let state = 0b011_u32.to_ne_bytes();
    let address = [0; 8];
    let some = RegionWrite { index: 0, offset: register::ADDRESS, data: &address };
    let one = RegionWrite { index: REGION, offset: 0, data: &state };
    // The first is done, and there the message ends.
    assert_eq!(errno(client.region_write_many(&[some, one])), Errno::EIO);
    assert_eq!(errno(client.region_write_many(&[one, some])), Errno::EINVAL);
    let mut read = [0; 4];
    client.region_read(REGION, 0, &mut read).unwrap();
    assert_eq!(u32::from_ne_bytes(read), 0b001);
    assert_eq!(size_of::<WriteMulti>(), 8);
}

#[test]
fn a_wrong_access_is_taken_for_a_right_one() {
    let served = serve(Generation::Rfc2018, DataSection::Split);
    let client = served.client();
    let size = client.region_info(REGION).unwrap().size;
    for (at, length) in [(0, 8), (8, 8), (4, 4), (36, 24), (76, 4), (size - 4, 8)] {
        let mut bytes = vec![0; length];
        let read = client.region_read(REGION, at, &mut bytes);
        assert_eq!(errno(read), Errno::EINVAL, "{at} {length}");
        let written = client.region_write(REGION, at, &bytes);
        assert_eq!(errno(written), Errno::EINVAL, "{at} {length}");
    }
    assert_eq!(errno(client.region_write(REGION, 28, &[0; 8])), Errno(0));
    // A whole sub-structure is one message.
    assert_eq!(structure::<Data>(&client, 36).size, 0);
}

#[test]
fn dirty_pages_are_asked_for_in_vain() {
    let served = serve(Generation::Rfc2018, DataSection::Mapped);
    let client = served.client();
    let memory = SharedMemory::create("guest", 1 << 20).unwrap();
    let range = IovaRange::new(1 << 20, 1 << 20).unwrap();
    let target = DmaTarget::Memory { memory: &memory, offset: 0, writable: true };
    client.dma_map(range, target).unwrap();
    let section = Section::of(&client);
    for step in [2, 3] {
        go(&client, step).unwrap();
    }
    set(&client, register::ADDRESS, (1 << 20) + 4096 * 9 + 100);
    set(&client, register::WRITE, 4096);
    go(&client, 4).unwrap();
    let asked = DirtyPfns { start_addr: 1 << 20, total: 256, copied: 0 };
    client.region_write(REGION, 52, asked.as_bytes()).unwrap();
    assert_eq!(structure::<DirtyPfns>(&client, 52).copied, 256);
    assert_eq!(section.read(4096, 32)[..3], [0, 0b110, 0]);
}

#[test]
fn a_client_that_never_touches_migration_cannot_work() {
    for generation in [Generation::V1, Generation::Rfc2018] {
        let served = serve(generation, DataSection::Mapped);
        let client = served.client();
        let memory = SharedMemory::create("guest", 1 << 20).unwrap();
        let range = IovaRange::new(0, 1 << 20).unwrap();
        let target = DmaTarget::Memory { memory: &memory, offset: 0, writable: true };
        client.dma_map(range, target).unwrap();
        memory.write(100, b"something").unwrap();
        set(&client, register::ADDRESS, 100);
        set(&client, register::READ, 9);
        set(&client, register::ADDRESS, 5000);
        set(&client, register::WRITE, 9);
        let mut back = [0; 9];
        memory.read(5000, &mut back).unwrap();
        assert_eq!(&back, b"something");
        drop(client);
        let server = served.stop();
        assert_eq!(server.runner().state(), State::Running);
        let counters = server.runner().counters();
        assert_eq!(counters.accesses_while_stopped + counters.dma_while_stopped, 0);
    }
}

#[test]
fn what_one_client_saved_is_read_by_the_next() {
    let served = serve(Generation::V1, DataSection::Mapped);
    let client = served.client();
    fill(&client, 9);
    go(&client, 0b010).unwrap();
    let (at, size) = (word(&client, 16), word(&client, 24));
    assert_eq!(size, SECTION);
    assert_ne!(Section::of(&client).read(at, 64), vec![0; 64]);
    drop(client);
    let next = served.client();
    assert_eq!(Section::of(&next).read(at, 64), vec![0; 64]);
    assert_eq!(errno(next.region_read(REGION, 8, &mut [0; 8])), Errno::ENODEV);
    // It stays stopped until somebody decides.
    go(&next, 0b001).unwrap();
}

#[test]
fn a_region_that_cannot_be_made_is_served() {
    let runner = device::Runner::new(Box::new(Toy::new(Capabilities::ALL))).unwrap();
    let options = ServerOptions {
        front: Some(FrontOptions {
            section_bytes: 100,
            ..FrontOptions::new(Generation::V1)
        }),
        ..ServerOptions::default()
    };
    let error = vfio_migrate_vfio_user::Server::new(runner, options).unwrap_err();
    assert!(matches!(error, vfio_migrate_vfio_user::ServerError::Front(_)), "{error}");
}
