//! The codec: what is written is read back, and no bytes at all break the reader.

use abi::errno::Errno;
use abi::feature::FeatureHeader;
use abi::irq::{IrqInfo, IrqSet};
use abi::region::RegionInfo;
use abi::vfio_user::{
    Command, DeviceInfo, DirtyBitmap, DmaAccess, DmaMap, DmaUnmap, IoFdSubRegion,
    MigData, RegionAccess, RegionIoFds, WriteMulti,
};
use device::Digest;
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, proptest};
use proptest::prop_oneof;
use vfio_migrate_vfio_user::codec::{
    Capabilities, DigestPart, Kind, Migration, Region, Reply, Request, TwinSocket,
    Version, VersionError, Writes, decode_digest, encode_digest, kind, parse_header,
    parse_log_report, parse_log_start,
};

const DATA: &[u8] = &[7; 300];

fn access() -> impl Strategy<Value = RegionAccess> {
    (any::<u64>(), any::<u32>(), 0..300_u32)
        .prop_map(|(offset, region, count)| RegionAccess { offset, region, count })
}

fn dma() -> impl Strategy<Value = DmaAccess> {
    (any::<u64>(), 0..300_u64).prop_map(|(addr, count)| DmaAccess { addr, count })
}

fn four() -> impl Strategy<Value = [u32; 4]> {
    any::<[u32; 4]>()
}

fn unmap() -> impl Strategy<Value = DmaUnmap> {
    (four(), any::<[u64; 2]>()).prop_map(|([argsz, flags, ..], [addr, size])| DmaUnmap {
        argsz,
        flags: flags & !1,
        addr,
        size,
    })
}

/// Writes as a message has them, for good: tests may leak a few bytes.
fn writes() -> impl Strategy<Value = Writes<'static>> {
    vec((any::<u32>(), any::<u64>(), vec(any::<u8>(), 1..=8)), 1..250).prop_map(|list| {
        let mut entries = Vec::new();
        for (region, offset, data) in list {
            Writes::encode(&mut entries, region, offset, &data);
        }
        Writes::new(entries.leak()).expect("each of 1 to 8 bytes")
    })
}

fn request() -> impl Strategy<Value = Request<'static>> {
    let data = 0..DATA.len();
    prop_oneof![
        (any::<u16>(), any::<u16>(), data.clone()).prop_map(|(major, minor, len)| {
            Request::Version(Version { major, minor, text: &DATA[..len] })
        }),
        (four(), any::<[u64; 3]>()).prop_map(
            |([argsz, flags, ..], [offset, addr, size])| {
                Request::DmaMap(DmaMap { argsz, flags, offset, addr, size })
            }
        ),
        unmap().prop_map(Request::DmaUnmap),
        (unmap(), any::<[u64; 2]>()).prop_map(|(unmap, [pgsize, size])| {
            let unmap = DmaUnmap { flags: unmap.flags | 1, ..unmap };
            Request::DmaUnmapDirty(unmap, DirtyBitmap { pgsize, size })
        }),
        four().prop_map(|[argsz, flags, index, count]| {
            Request::IoFds(RegionIoFds { argsz, flags, index, count })
        }),
        writes().prop_map(Request::WriteMulti),
        four().prop_map(|[argsz, flags, num_regions, num_irqs]| {
            Request::DeviceInfo(DeviceInfo { argsz, flags, num_regions, num_irqs })
        }),
        (four(), any::<[u64; 2]>()).prop_map(
            |([argsz, flags, index, cap_offset], [size, offset])| {
                let info = RegionInfo { argsz, flags, index, cap_offset, size, offset };
                Request::RegionInfo(info)
            }
        ),
        four().prop_map(|[argsz, flags, index, count]| {
            Request::IrqInfo(IrqInfo { argsz, flags, index, count })
        }),
        (four(), any::<u32>(), data.clone()).prop_map(
            |([argsz, flags, index, start], count, len)| {
                let set = IrqSet { argsz, flags, index, start, count };
                Request::SetIrqs(set, &DATA[..len])
            }
        ),
        access().prop_map(Request::RegionRead),
        access().prop_map(|at| Request::RegionWrite(at, &DATA[..at.count as usize])),
        dma().prop_map(Request::DmaRead),
        dma().prop_map(|at| Request::DmaWrite(at, &DATA[..at.count as usize])),
        Just(Request::Reset),
        (four(), data).prop_map(|([argsz, flags, ..], len)| {
            Request::Feature(FeatureHeader { argsz, flags }, &DATA[..len])
        }),
        four()
            .prop_map(|[argsz, size, ..]| Request::MigDataRead(MigData { argsz, size })),
        (any::<u32>(), 0..300_u32).prop_map(|(argsz, size)| {
            Request::MigDataWrite(MigData { argsz, size }, &DATA[..size as usize])
        }),
    ]
}

fn io_fd(
    ([offset, size, datamatch], [fd_index, kind, flags]): ([u64; 3], [u32; 3]),
) -> IoFdSubRegion {
    IoFdSubRegion { offset, size, fd_index, kind, flags, padding: 0, datamatch }
}

fn reply() -> impl Strategy<Value = (Command, Reply<'static>)> {
    let areas = vec(any::<(u64, u64)>(), 0..20);
    prop_oneof![
        access().prop_map(|at| {
            (Command::REGION_READ, Reply::RegionRead(at, &DATA[..at.count as usize]))
        }),
        access().prop_map(|at| (Command::REGION_WRITE, Reply::RegionWrite(at))),
        dma().prop_map(|at| {
            (Command::DMA_READ, Reply::DmaRead(at, &DATA[..at.count as usize]))
        }),
        dma().prop_map(|at| (Command::DMA_WRITE, Reply::DmaWrite(Some(at)))),
        Just((Command::DMA_WRITE, Reply::DmaWrite(None))),
        Just((Command::DEVICE_RESET, Reply::Done)),
        unmap().prop_map(|unmap| (Command::DMA_UNMAP, Reply::DmaUnmap(unmap))),
        (unmap(), any::<u64>(), 0..30_usize).prop_map(|(unmap, pgsize, words)| {
            let unmap = DmaUnmap { flags: unmap.flags | 1, ..unmap };
            let found = DirtyBitmap { pgsize, size: 8 * words as u64 };
            let bitmap = &DATA[..8 * words];
            (Command::DMA_UNMAP, Reply::DmaUnmapDirty(unmap, found, bitmap))
        }),
        any::<u64>().prop_map(|wr_cnt| {
            (Command::REGION_WRITE_MULTI, Reply::WriteMulti(WriteMulti { wr_cnt }))
        }),
        (four(), vec(any::<([u64; 3], [u32; 3])>(), 0..20)).prop_map(
            |([argsz, flags, index, _], parts)| {
                let parts: Vec<_> = parts.into_iter().map(io_fd).collect();
                let count = parts.len() as u32;
                let info = RegionIoFds { argsz, flags, index, count };
                (Command::DEVICE_GET_REGION_IO_FDS, Reply::IoFds(info, parts))
            }
        ),
        (any::<u32>(), 0..300_u32).prop_map(|(argsz, size)| {
            let fixed = MigData { argsz, size };
            let data = &DATA[..size as usize];
            (Command::MIG_DATA_READ, Reply::MigDataRead(fixed, data))
        }),
        (areas, any::<Option<(u32, u32)>>(), any::<[u64; 2]>()).prop_map(
            |(areas, kind, [size, offset])| {
                let info = RegionInfo {
                    argsz: 4096,
                    flags: 4,
                    index: 3,
                    cap_offset: 0,
                    size,
                    offset,
                };
                let areas = (!areas.is_empty()).then_some(areas);
                let region = Region { info, areas, kind };
                (Command::DEVICE_GET_REGION_INFO, Reply::Region(region))
            }
        ),
    ]
}

fn split(bytes: &[u8]) -> (abi::vfio_user::Header, &[u8]) {
    let (header, body) = bytes.split_first_chunk().expect("a whole header");
    (parse_header(header), body)
}

proptest! {
    #[test]
    fn a_request_is_read_as_it_was_written(request in request(), id: u16) {
        let bytes = request.message(id).bytes();
        let (header, body) = split(&bytes);
        prop_assert_eq!(header.msg_id, id);
        prop_assert_eq!(header.msg_size as usize, bytes.len());
        prop_assert_eq!(kind(&header), Kind::Command { no_reply: false });
        let command = Command(header.command);
        prop_assert_eq!(Request::parse(command, body), Ok(request));
    }

    #[test]
    fn a_reply_is_read_as_it_was_written((command, reply) in reply(), id: u16) {
        let bytes = reply.message(id, command).bytes();
        let (header, body) = split(&bytes);
        prop_assert_eq!((header.msg_id, header.command), (id, command.0));
        prop_assert_eq!(kind(&header), Kind::Reply { error: None });
        let read = Reply::parse(command, body);
        if let (Reply::Region(sent), Ok(Reply::Region(read))) = (&reply, &read) {
            // Length and place of the capabilities are filled in.
            prop_assert_eq!((&sent.areas, sent.kind), (&read.areas, read.kind));
            prop_assert_eq!(sent.needed(), body.len());
            prop_assert_eq!(read.info.argsz as usize, body.len());
        } else {
            prop_assert_eq!(read, Ok(reply));
        }
    }

    #[test]
    fn no_bytes_break_the_reader(command in 0..20_u16, body: Vec<u8>) {
        let _ = Request::parse(Command(command), &body);
        let _ = Reply::parse(Command(command), &body);
        let _ = parse_log_start(&body);
        let _ = parse_log_report(&body);
        let _ = DigestPart::parse(&body);
        let _ = decode_digest(&body);
        let _ = Version { major: 0, minor: 0, text: &body }.capabilities();
    }

    #[test]
    fn a_digest_is_read_as_it_was_written(
        chunk_bytes: u64,
        chunks: Vec<u32>,
        counters in vec(("[a-z]{1,20}", any::<u64>()), 0..5),
    ) {
        let digest = Digest { chunk_bytes, chunks, counters };
        let bytes = encode_digest(&digest);
        prop_assert_eq!(decode_digest(&bytes), Ok(digest));
        prop_assert!(decode_digest(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn limits_are_read_as_they_were_written(
        max_msg_fds in 0..1024_usize,
        max_data_xfer_size in 1..u32::MAX as usize,
        max_dma_maps: u64,
        pgsizes in 1..u64::MAX,
        twin in proptest::option::of(any::<(bool, Option<u32>)>()),
        write_multiple: bool,
        bitmaps in proptest::option::of((0..64_u32, any::<u64>())),
        vfio_migrate in proptest::option::of(1..u32::MAX),
    ) {
        let capabilities = Capabilities {
            max_msg_fds,
            max_data_xfer_size,
            max_dma_maps,
            pgsizes,
            twin_socket: twin.map(|(supported, fd_index)| TwinSocket { supported, fd_index }),
            write_multiple,
            migration: bitmaps.map(|(bit, max_bitmap_size)| Migration {
                pgsize: 1 << bit,
                max_bitmap_size,
            }),
            vfio_migrate,
        };
        let text = capabilities.text();
        let version = Version { major: 0, minor: 1, text: &text };
        prop_assert_eq!(version.capabilities(), Ok(capabilities));
    }

    #[test]
    fn writes_are_as_many_as_the_message_has_and_never_more(count: u64, spare in 0..24_usize) {
        let mut body = count.to_ne_bytes().to_vec();
        for n in 0..5 {
            Writes::encode(&mut body, n, 8, &[1, 2, 3]);
        }
        body.resize(body.len() + spare, 0xff);
        let parsed = Request::parse(Command::REGION_WRITE_MULTI, &body);
        match parsed {
            Ok(Request::WriteMulti(writes)) => prop_assert_eq!(writes.len() as u64, count),
            Ok(other) => prop_assert!(false, "{:?}", other),
            Err(_) => prop_assert!(count == 0 || count > 5),
        }
    }
}

#[test]
fn a_write_of_no_bytes_or_of_more_than_eight_spoils_all_of_them() {
    for wrong in [0, 9, u32::MAX] {
        let mut body = 2_u64.to_ne_bytes().to_vec();
        Writes::encode(&mut body, 0, 8, &[1; 8]);
        let mut second = Vec::new();
        Writes::encode(&mut second, 0, 8, &[1; 8]);
        second[12..16].copy_from_slice(&wrong.to_ne_bytes());
        body.extend(second);
        let parsed = Request::parse(Command::REGION_WRITE_MULTI, &body);
        assert!(parsed.is_err(), "{wrong}");
    }
    // And alone, as a client builds them.
    assert!(Writes::new(&[]).is_err());
    assert!(Writes::new(&[1; 23]).is_err());
    let mut entries = Vec::new();
    Writes::encode(&mut entries, 3, 16, &[7; 12]);
    let writes = Writes::new(&entries).expect("one write");
    let all: Vec<_> = writes.iter().collect();
    let access = RegionAccess { offset: 16, region: 3, count: 8 };
    assert_eq!((writes.len(), all), (1, vec![(access, [7; 8])]));
}

#[test]
fn a_bitmap_that_does_not_end_with_a_word_or_is_cut_is_no_answer() {
    let unmap = DmaUnmap { argsz: 64, flags: 1, addr: 0, size: 4096 };
    for (says, bytes) in [(4, 4), (12, 16), (16, 8), (u64::MAX - 7, 8)] {
        let found = DirtyBitmap { pgsize: 4096, size: says };
        let reply = Reply::DmaUnmapDirty(unmap, found, &DATA[..bytes]);
        let message = reply.message(1, Command::DMA_UNMAP).bytes();
        assert!(Reply::parse(Command::DMA_UNMAP, &message[16..]).is_err(), "{says}");
    }
}

#[test]
fn sub_regions_that_did_not_fit_are_none_and_a_lying_count_is_refused() {
    let info = RegionIoFds { argsz: 96, flags: 0, index: 2, count: 2 };
    let none = Reply::IoFds(info, Vec::new());
    let bytes = none.message(1, Command::DEVICE_GET_REGION_IO_FDS).bytes();
    let command = Command::DEVICE_GET_REGION_IO_FDS;
    assert_eq!(Reply::parse(command, &bytes[16..]), Ok(none));
    let one = Reply::IoFds(info, vec![io_fd(([0, 8, 0], [0, 0, 0]))]);
    let bytes = one.message(1, command).bytes();
    assert!(Reply::parse(command, &bytes[16..]).is_err());
}

#[test]
fn every_key_of_version_has_a_type() {
    for wrong in [
        r#""pgsizes": "4096""#,
        r#""pgsizes": 0"#,
        r#""twin_socket": true"#,
        r#""twin_socket": {"supported": 1}"#,
        r#""twin_socket": {"supported": true, "fd_index": -1}"#,
        r#""write_multiple": 1"#,
        r#""migration": 4096"#,
        r#""migration": {"pgsize": 4095}"#,
        r#""migration": {"pgsize": 4096, "max_bitmap_size": "all"}"#,
        r#""max_dma_maps": null"#,
    ] {
        let text = format!("{{\"capabilities\": {{{wrong}}}}}\0");
        let version = Version { major: 0, minor: 2, text: text.as_bytes() };
        let found = version.capabilities();
        assert!(matches!(found, Err(VersionError::Capability(_))), "{wrong}: {found:?}");
    }
}

#[test]
fn capabilities_that_run_in_circles_end() {
    // One capability at 32 that names itself as the next.
    let mut body = vec![0_u8; 64];
    body[4..8].copy_from_slice(&8_u32.to_ne_bytes());
    body[12..16].copy_from_slice(&32_u32.to_ne_bytes());
    body[36..40].copy_from_slice(&32_u32.to_ne_bytes());
    assert!(Reply::parse(Command::DEVICE_GET_REGION_INFO, &body).is_err());
    // And one whose list of areas is longer than anything that came.
    body[32..34].copy_from_slice(&1_u16.to_ne_bytes());
    body[40..44].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert!(Reply::parse(Command::DEVICE_GET_REGION_INFO, &body).is_err());
}

#[test]
fn what_others_say_in_version_is_understood() {
    let qemu = br#"{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16,
        "max_dma_maps": 65535, "max_data_xfer_size": 1048576, "migration":
        {"max_bitmap_size": 268435456, "pgsize": 4096}, "write_multiple": true}}"#;
    let text = [&qemu[..], b"\0"].concat();
    let version = Version { major: 0, minor: 0, text: &text };
    let found = version.capabilities().expect("QEMU's own text");
    assert_eq!((found.max_msg_fds, found.vfio_migrate), (16, None));
    assert_eq!((found.write_multiple, found.twin_socket), (true, None));
    assert_eq!(found.migration, Some(Migration::default()));
    let nothing = Version { major: 0, minor: 0, text: b"" };
    assert_eq!(nothing.capabilities(), Ok(Capabilities::default()));
    let other = Version { major: 1, minor: 0, text: b"" };
    assert_eq!(other.capabilities(), Err(VersionError::Major(1)));
}

#[test]
fn a_refusal_is_a_header_alone_with_the_errno() {
    let message = Reply::refusal(9, Command::DMA_MAP, Errno::EEXIST);
    let bytes = message.bytes();
    let (header, body) = split(&bytes);
    assert!(body.is_empty());
    assert_eq!(kind(&header), Kind::Reply { error: Some(Errno::EEXIST) });
    assert_eq!((header.msg_id, header.error), (9, 17));
}
