//! The codec: what is written is read back, and no bytes at all break the reader.

use abi::errno::Errno;
use abi::feature::FeatureHeader;
use abi::irq::{IrqInfo, IrqSet};
use abi::region::RegionInfo;
use abi::vfio_user::{
    Command, DeviceInfo, DmaAccess, DmaMap, DmaUnmap, MigData, RegionAccess,
};
use device::Digest;
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, proptest};
use proptest::prop_oneof;
use vfio_migrate_vfio_user::codec::{
    Capabilities, DigestPart, Kind, Region, Reply, Request, Version, VersionError,
    decode_digest, encode_digest, kind, parse_header, parse_log_report, parse_log_start,
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
        (four(), any::<[u64; 2]>()).prop_map(|([argsz, flags, ..], [addr, size])| {
            Request::DmaUnmap(DmaUnmap { argsz, flags, addr, size })
        }),
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
        ours in proptest::option::of(1..u32::MAX),
    ) {
        let capabilities =
            Capabilities { max_msg_fds, max_data_xfer_size, max_dma_maps, vfio_migrate: ours };
        let text = capabilities.text();
        let version = Version { major: 0, minor: 1, text: &text };
        prop_assert_eq!(version.capabilities(), Ok(capabilities));
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
