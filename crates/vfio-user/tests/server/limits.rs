//! VERSION: what both sides can do, and what follows from it.

use abi::errno::Errno;
use abi::feature::{Feature, FeatureFlags, FeatureHeader};
use abi::region::{RegionFlags, RegionInfo};
use abi::v2::DeviceMigState;
use abi::vfio_user::{Command, DmaMap, MigData, RegionAccess};
use vfio_migrate_vfio_user::ServerOptions;
use vfio_migrate_vfio_user::codec::{
    Capabilities, Migration, Reply, Request, TwinSocket, Version,
};
use zerocopy::IntoBytes;

use super::support::Served;
use super::{agree_to, agree_with_fds, connected, errno, plain};

fn map(addr: u64, size: u64) -> Request<'static> {
    Request::DmaMap(DmaMap { argsz: 32, flags: 3, offset: 0, addr, size })
}

#[test]
fn the_answer_has_what_both_have_and_nothing_more() {
    let served = Served::start(ServerOptions::default());
    for (asked, answered) in [(0, 0), (1, 1), (2, 2), (3, 2), (u16::MAX, 2)] {
        let mut raw = served.raw();
        let (minor, ours) = agree_to(&mut raw, asked, &plain());
        assert_eq!(minor, answered);
        // Whoever names none of these is not told of them.
        assert_eq!((ours.write_multiple, ours.twin_socket), (false, None));
        assert_eq!((ours.migration, ours.vfio_migrate), (None, None));
    }
    let all = Capabilities {
        max_msg_fds: 1000,
        max_data_xfer_size: 100 << 20,
        max_dma_maps: u64::MAX,
        pgsizes: u64::MAX,
        write_multiple: true,
        twin_socket: Some(TwinSocket { supported: false, fd_index: None }),
        migration: Some(Migration::default()),
        ..Capabilities::default()
    };
    let (_, ours) = agree_to(&mut served.raw(), 2, &all);
    // As QEMU wants it: 16 descriptors, 64 MiB, 65535 maps, 256 MiB, 4 KiB at most.
    let migration = Migration { pgsize: 4096, max_bitmap_size: 16 << 20 };
    let expected = Capabilities {
        max_msg_fds: 16,
        max_data_xfer_size: 1 << 20,
        max_dma_maps: 65535,
        pgsizes: 4096,
        twin_socket: None,
        write_multiple: true,
        migration: Some(migration),
        vfio_migrate: None,
    };
    assert_eq!(ours, expected);
}

#[test]
fn no_more_is_sent_than_the_client_takes_and_no_more_taken_than_we_said() {
    let served = Served::start(ServerOptions {
        max_data_xfer_size: 8192,
        ..ServerOptions::default()
    });
    let mut raw = served.raw();
    agree_to(&mut raw, 0, &Capabilities { max_data_xfer_size: 1024, ..plain() });
    let access = |count| RegionAccess { offset: 0, region: 2, count };
    let bytes = vec![1; 8193];
    for (count, expected) in [(1024, Errno(0)), (1025, Errno::EINVAL)] {
        let read = Request::RegionRead(access(count));
        assert_eq!(errno_of(&mut raw, &read), expected, "{count}");
    }
    for (count, expected) in [(8192, Errno(0)), (8193, Errno::EINVAL)] {
        let data = &bytes[..count as usize];
        let write = Request::RegionWrite(access(count), data);
        assert_eq!(errno(&mut raw, &write), expected, "{count}");
    }
    let go = |raw: &mut _, target| {
        let header = FeatureHeader::new(Feature::MIG_DEVICE_STATE, FeatureFlags::SET, 8);
        let state = DeviceMigState { device_state: target, data_fd: -1 };
        let request = Request::Feature(header, state.as_bytes());
        assert_eq!(errno_of(raw, &request), Errno(0));
    };
    go(&mut raw, 3);
    for (size, expected) in [(1024, Errno(0)), (1025, Errno::EINVAL)] {
        let read = Request::MigDataRead(MigData { argsz: 8 + size, size });
        assert_eq!(errno_of(&mut raw, &read), expected, "{size}");
    }
    go(&mut raw, 4);
    for (size, expected) in [(8192, Errno(0)), (8193, Errno::EINVAL)] {
        let fixed = MigData { argsz: 8 + size, size };
        let write = Request::MigDataWrite(fixed, &bytes[..size as usize]);
        assert_eq!(errno_of(&mut raw, &write), expected, "{size}");
    }
}

/// The errno of an answer that may have a body.
fn errno_of(raw: &mut super::support::Raw, request: &Request<'_>) -> Errno {
    raw.ask(7, request);
    let (header, _) = raw.receive();
    assert_eq!(header.msg_id, 7);
    Errno(header.error as i32)
}

#[test]
fn no_more_maps_are_made_than_were_agreed_to() {
    let served = Served::start(ServerOptions::default());
    let mut raw = served.raw();
    agree_to(&mut raw, 0, &Capabilities { max_dma_maps: 2, ..plain() });
    assert_eq!(errno(&mut raw, &map(0, 4096)), Errno(0));
    assert_eq!(errno(&mut raw, &map(4096, 4096)), Errno(0));
    assert_eq!(errno(&mut raw, &map(8192, 4096)), Errno::ENOSPC);
    drop(raw);
    // The next client agrees for itself.
    let mut raw = connected(&served);
    for n in 0..100 {
        assert_eq!(errno(&mut raw, &map(4096 * n, 4096)), Errno(0));
    }
}

#[test]
fn a_client_with_larger_pages_is_held_to_them() {
    let served = Served::start(ServerOptions::default());
    let mut raw = served.raw();
    let pgsizes = 0x1_0000 | 0x20_0000 | 512;
    let (_, ours) = agree_to(&mut raw, 0, &Capabilities { pgsizes, ..plain() });
    assert_eq!(ours.pgsizes, 0x1_0000 | 0x20_0000);
    assert_eq!(errno(&mut raw, &map(0, 4096)), Errno::EINVAL);
    assert_eq!(errno(&mut raw, &map(0x8000, 0x1_0000)), Errno::EINVAL);
    assert_eq!(errno(&mut raw, &map(0x1_0000, 0x3_0000)), Errno(0));
    drop(raw);
    let mut raw = served.raw();
    let text = Capabilities { pgsizes: 512, ..plain() }.text();
    let version = Version { major: 0, minor: 0, text: &text };
    assert_eq!(errno(&mut raw, &Request::Version(version)), Errno::EINVAL);
    raw.agree(false);
}

#[test]
fn a_client_that_takes_no_descriptors_is_sent_none() {
    let served = Served::start(ServerOptions::default());
    for (max_msg_fds, mapped) in [(0, false), (1, true)] {
        let mut raw = served.raw();
        let twin_socket = Some(TwinSocket { supported: true, fd_index: None });
        let theirs = Capabilities { max_msg_fds, twin_socket, ..plain() };
        let (ours, fds) = agree_with_fds(&mut raw, &theirs);
        assert_eq!((ours.twin_socket.is_some(), fds.len()), (mapped, mapped.into()));
        let info = RegionInfo {
            argsz: 4096,
            flags: 0,
            index: 2,
            cap_offset: 0,
            size: 0,
            offset: 0,
        };
        raw.ask(1, &Request::RegionInfo(info));
        let (_, body) = raw.receive();
        match Reply::parse(Command::DEVICE_GET_REGION_INFO, &body) {
            Ok(Reply::Region(region)) => {
                let flags = RegionFlags::from_bits_retain(region.info.flags);
                assert_eq!(flags.contains(RegionFlags::MMAP), mapped);
                assert_eq!(region.areas.is_some(), mapped);
            }
            other => panic!("{other:?}"),
        }
    }
}
