//! The server against clients that are wrong, absurd or malicious: it answers, stays in
//! step, holds no more than it has to, and serves the next one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::io::Write;
use std::os::fd::AsFd;

use abi::errno::Errno;
use abi::feature::{Feature, FeatureFlags, FeatureHeader};
use abi::irq::IrqSet;
use abi::v2::DeviceMigState;
use abi::vfio_user::{
    Command, DmaAccess, DmaMap, DmaUnmap, LoggingControl, LoggingReport, MigData,
    RegionAccess,
};
use support::{Raw, Served, Toy, message, register};
use sys::{EventFd, SharedMemory};
use vfio_migrate_vfio_user::codec::{Request, Version};
use vfio_migrate_vfio_user::{DisconnectReason, ServerOptions};
use zerocopy::IntoBytes;

const NO_REPLY: u32 = 0x10;
/// Operations of a feature.
const GET: u32 = 1 << 16;
const SET: u32 = 1 << 17;

fn connected() -> (Served, Raw) {
    let served = Served::start(ServerOptions::default());
    let mut raw = served.raw();
    raw.agree(true);
    (served, raw)
}

fn refused(raw: &mut Raw, request: &Request<'_>) -> Errno {
    raw.ask(9, request);
    raw.errno(9)
}

fn version(text: &[u8]) -> Request<'_> {
    Request::Version(Version { major: 0, minor: 0, text })
}

fn state(target: u32) -> Vec<u8> {
    DeviceMigState { device_state: target, data_fd: -1 }.as_bytes().to_vec()
}

fn feature(feature: Feature, flags: FeatureFlags, most: u32) -> FeatureHeader {
    FeatureHeader::new(feature, flags, most)
}

#[test]
fn a_version_without_json_or_without_nul_kills_nobody() {
    let served = Served::start(ServerOptions::default());
    let mut raw = served.raw();
    let absurd: [&[u8]; 9] = [
        b"{}",
        b"{}\0{}\0",
        b"no json\0",
        b"[]\0",
        b"\0",
        b"{\"capabilities\": 7}\0",
        b"{\"capabilities\": {\"max_msg_fds\": -1}}\0",
        b"{\"capabilities\": {\"max_data_xfer_size\": \"big\"}}\0",
        b"{\"capabilities\": {\"vfio_migrate\": {}}}\0",
    ];
    for text in absurd {
        assert_eq!(refused(&mut raw, &version(text)), Errno::EINVAL);
    }
    let deep = [vec![b'['; 20_000], vec![0]].concat();
    assert_eq!(refused(&mut raw, &version(&deep)), Errno::EINVAL);
    let major = Version { major: 1, minor: 0, text: b"{}\0" };
    assert_eq!(refused(&mut raw, &Request::Version(major)), Errno::EINVAL);
    raw.send(&message(1, Command::VERSION, 0, &[0, 0]));
    assert_eq!(raw.errno(1), Errno::EINVAL);
    // Nothing is served before it is agreed, and it is agreed once.
    assert_eq!(refused(&mut raw, &Request::Reset), Errno::EINVAL);
    assert_eq!(refused(&mut raw, &version(b"")), Errno(0));
    assert_eq!(refused(&mut raw, &version(b"{}\0")), Errno::EINVAL);
    raw.check_in_step();
}

#[test]
fn the_key_is_answered_only_where_it_was_offered() {
    let served = Served::start(ServerOptions::default());
    for (offered, minor) in [(true, 5), (false, 1)] {
        let mut raw = served.raw();
        let text = support::agreement(offered);
        let version = Version { major: 0, minor, text: &text };
        raw.ask(3, &Request::Version(version));
        let (_, body) = raw.receive();
        let text = std::str::from_utf8(&body[4..body.len() - 1]).unwrap();
        assert_eq!(text.contains("vfio_migrate"), offered, "{text}");
        assert_eq!(body[2..4], minor.min(2).to_ne_bytes());
        assert_eq!(*body.last().unwrap(), 0);
    }
}

#[test]
fn unknown_and_refused_commands_leave_the_stream_in_step() {
    let (_served, mut raw) = connected();
    for (command, errno) in [
        (Command(0), Errno::ENOSYS),
        (Command(14), Errno::ENOSYS),
        (Command(999), Errno::ENOSYS),
        (Command::DMA_READ, Errno::EINVAL),
        (Command::DMA_WRITE, Errno::EINVAL),
    ] {
        for body in [0, 1, 16, 4000, 70_000] {
            raw.send(&message(4, command, 0, &vec![0; body]));
            assert_eq!(raw.errno(4), errno, "{command}");
        }
    }
    // A type that is neither command nor reply.
    raw.send(&message(5, Command::DEVICE_RESET, 7, &[1, 2, 3]));
    assert_eq!(raw.errno(5), Errno::EINVAL);
    raw.check_in_step();
}

#[test]
fn every_command_cut_short_is_refused_and_leaves_the_stream_in_step() {
    let (_served, mut raw) = connected();
    for command in 1..=18 {
        if command == Command::DEVICE_RESET.0 {
            continue;
        }
        for len in 0..16 {
            raw.send(&message(6, Command(command), 0, &vec![0xff; len]));
            assert_ne!(raw.errno(6), Errno(0), "command {command} of {len} bytes");
        }
    }
    raw.check_in_step();
}

#[test]
fn a_message_one_byte_at_a_time_is_a_message() {
    let (_served, mut raw) = connected();
    let access = RegionAccess { offset: 0, region: 7, count: 4 };
    for byte in Request::RegionRead(access).message(3).bytes() {
        raw.send(&[byte]);
        std::thread::yield_now();
    }
    assert_eq!(raw.errno(3), Errno(0));
    // And many in one piece are as many.
    let mut all = Vec::new();
    for id in 0..200 {
        all.extend(Request::RegionRead(access).message(id).bytes());
    }
    raw.send(&all);
    for id in 0..200 {
        assert_eq!(raw.errno(id), Errno(0));
    }
}

#[test]
fn a_request_padded_to_the_length_of_its_reply_is_served() {
    let (_served, mut raw) = connected();
    let mut body = [80_u32, 0, 2, 0, 0, 0, 0, 0].as_bytes().to_vec();
    body.resize(80, 0);
    raw.send(&message(3, Command::DEVICE_GET_REGION_INFO, 0, &body));
    let (header, body) = raw.receive();
    assert_eq!((header.error, body.len()), (0, 64));
}

#[test]
fn a_reply_that_does_not_fit_is_cut_to_its_fixed_part() {
    let (_served, mut raw) = connected();
    let body = [32_u32, 0, 2, 0, 0, 0, 0, 0];
    raw.send(&message(3, Command::DEVICE_GET_REGION_INFO, 0, body.as_bytes()));
    let (_, reply) = raw.receive();
    assert_eq!(reply.len(), 32);
    assert_eq!(reply[..4], 64_u32.to_ne_bytes());
    assert_eq!(reply[12..16], 0_u32.to_ne_bytes());
}

#[test]
fn absurd_sizes_are_answered_and_end_the_connection() {
    for (size, errno) in [
        (0_u32, Errno::EINVAL),
        (15, Errno::EINVAL),
        (2 << 20, Errno::EMSGSIZE),
        (u32::MAX, Errno::EMSGSIZE),
    ] {
        let (served, mut raw) = connected();
        let mut bytes = message(8, Command::REGION_READ, 0, &[]);
        bytes[4..8].copy_from_slice(&size.to_ne_bytes());
        raw.send(&bytes);
        assert_eq!(raw.errno(8), errno);
        assert!(raw.ended());
        // The next one is served.
        served.raw().agree(true);
    }
}

#[test]
fn counts_that_would_take_all_memory_are_refused() {
    let (_served, mut raw) = connected();
    for count in [0, (1 << 20) + 1, u32::MAX] {
        let access = RegionAccess { offset: 0, region: 2, count };
        assert_eq!(refused(&mut raw, &Request::RegionRead(access)), Errno::EINVAL);
        let fixed = MigData { argsz: u32::MAX, size: count };
        assert_eq!(refused(&mut raw, &Request::MigDataRead(fixed)), Errno::EINVAL);
    }
    let short = RegionAccess { offset: 0, region: 2, count: 100 };
    let write = Request::RegionWrite(short, &[1; 99]);
    assert_eq!(refused(&mut raw, &write), Errno::EINVAL);
    let cut = Request::MigDataWrite(MigData { argsz: 18, size: 10 }, &[0; 9]);
    assert_eq!(refused(&mut raw, &cut), Errno::EINVAL);
    for ranges in [257, u32::MAX] {
        let control = LoggingControl { page_size: 4096, num_ranges: ranges, reserved: 0 };
        let header = feature(Feature::DMA_LOGGING_START, FeatureFlags::SET, 16);
        let start = Request::Feature(header, control.as_bytes());
        assert_eq!(refused(&mut raw, &start), Errno::E2BIG);
    }
    let lying = LoggingControl { page_size: 4096, num_ranges: 2, reserved: 0 };
    let header = feature(Feature::DMA_LOGGING_START, FeatureFlags::SET, 16);
    let start = Request::Feature(header, lying.as_bytes());
    assert_eq!(refused(&mut raw, &start), Errno::EINVAL);
    raw.check_in_step();
}

#[test]
fn feature_calls_are_checked_as_the_kernel_checks_them() {
    let (_served, mut raw) = connected();
    let mut call = |argsz: u32, flags: u32, data: &[u8]| {
        refused(&mut raw, &Request::Feature(FeatureHeader { argsz, flags }, data))
    };
    let (get, set, probe) = (1 << 16, 1 << 17, 1 << 18);
    assert_eq!(call(7, get | 1, &[]), Errno::EINVAL);
    assert_eq!(call(16, get | 1 | 1 << 19, &[]), Errno::EINVAL);
    assert_eq!(call(16, get | set | 2, &state(1)), Errno::EINVAL);
    assert_eq!(call(16, get | 3, &[]), Errno::ENOTTY);
    assert_eq!(call(16, set | 1, &[0; 8]), Errno::EINVAL);
    assert_eq!(call(16, probe | set | 1, &[]), Errno::EINVAL);
    assert_eq!(call(16, 1, &[]), Errno::EINVAL);
    assert_eq!(call(15, get | 1, &[]), Errno::EINVAL);
    assert_eq!(call(4096, get | 1, &[]), Errno(0));
    assert_eq!(call(8, probe | get | set | 2, &[]), Errno(0));
    assert_eq!(call(16, set | 2, &[1, 0, 0]), Errno::EINVAL);
    for target in [0, 8, u32::MAX] {
        assert_eq!(call(16, set | 2, &state(target)), Errno::EINVAL);
    }
    assert_eq!(call(16, set | 2, &state(3)), Errno(0));
    assert_eq!(call(16, set | 2, &state(6)), Errno::EINVAL);
    assert_eq!(call(32, get | 8, &[0; 8]), Errno::EINVAL);
}

#[test]
fn data_outside_of_its_session_is_refused() {
    let (_served, mut raw) = connected();
    let read = Request::MigDataRead(MigData { argsz: 24, size: 16 });
    let write = Request::MigDataWrite(MigData { argsz: 9, size: 1 }, &[1]);
    assert_eq!(refused(&mut raw, &read), Errno::ENODEV);
    assert_eq!(refused(&mut raw, &write), Errno::ENODEV);
    let header = feature(Feature::MIG_DEVICE_STATE, FeatureFlags::SET, 8);
    assert_eq!(refused(&mut raw, &Request::Feature(header, &state(4))), Errno(0));
    assert_eq!(refused(&mut raw, &read), Errno::EBADF);
    let tight = Request::MigDataRead(MigData { argsz: 23, size: 16 });
    assert_eq!(refused(&mut raw, &tight), Errno::EINVAL);
    // More than the device has room for is the model's to refuse, and sticks.
    let long = vec![0; support::MEMORY as usize];
    let argsz = 8 + support::MEMORY as u32;
    let whole = MigData { argsz, size: support::MEMORY as u32 };
    assert_eq!(refused(&mut raw, &Request::MigDataWrite(whole, &long)), Errno(0));
    assert_eq!(refused(&mut raw, &write), Errno::EINVAL);
    assert_eq!(refused(&mut raw, &Request::Feature(header, &state(1))), Errno::EINVAL);
}

#[test]
fn without_our_key_the_last_data_comes_padded_as_others_expect_it() {
    for (additions, expected) in [(false, 8 + 700_000), (true, 8 + 348_576)] {
        let served = Served::start(ServerOptions::default());
        let mut raw = served.raw();
        raw.agree(additions);
        let header = feature(Feature::MIG_DEVICE_STATE, FeatureFlags::SET, 8);
        assert_eq!(refused(&mut raw, &Request::Feature(header, &state(3))), Errno(0));
        let read = Request::MigDataRead(MigData { argsz: 700_008, size: 700_000 });
        raw.ask(1, &read);
        assert_eq!(raw.receive().1.len(), 700_008);
        raw.ask(2, &read);
        let (_, body) = raw.receive();
        assert_eq!(body.len(), expected);
        assert_eq!(body[4..8], 348_576_u32.to_ne_bytes());
    }
}

#[test]
fn mappings_that_make_no_sense_are_refused() {
    let (_served, mut raw) = connected();
    let memory = SharedMemory::create("guest", 8192).unwrap();
    let map = DmaMap { argsz: 32, flags: 3, offset: 0, addr: 0x1000, size: 8192 };
    let mut send = |map: DmaMap, fds: usize| {
        let fds = vec![memory.fd(); fds];
        raw.send_with(&Request::DmaMap(map).message(2).bytes(), &fds);
        raw.errno(2)
    };
    for (wrong, fds) in [
        (DmaMap { argsz: 31, ..map }, 1),
        (DmaMap { flags: 0, ..map }, 1),
        (DmaMap { flags: 8 | 3, ..map }, 0),
        (DmaMap { flags: 8 | 4 | 3, ..map }, 1),
        (DmaMap { flags: 1 << 20 | 3, ..map }, 1),
        (DmaMap { size: 0, ..map }, 1),
        (DmaMap { size: 16384, ..map }, 1),
        (DmaMap { offset: 4096, ..map }, 1),
        (DmaMap { offset: 1, size: 4096, ..map }, 1),
        (DmaMap { offset: u64::MAX - 4095, ..map }, 1),
        (DmaMap { addr: 1, ..map }, 1),
        (DmaMap { addr: u64::MAX - 4095, ..map }, 1),
        (map, 2),
    ] {
        assert_eq!(send(wrong, fds), Errno::EINVAL, "{wrong:?}");
    }
    assert_eq!(send(map, 1), Errno(0));
    assert_eq!(send(map, 1), Errno::EEXIST);
    let mut unmap = |flags, addr, size| {
        refused(&mut raw, &Request::DmaUnmap(DmaUnmap { argsz: 24, flags, addr, size }))
    };
    assert_eq!(unmap(0, 0x1000, 4096), Errno::ENOENT);
    assert_eq!(unmap(1, 0x1000, 8192), Errno::EINVAL);
    assert_eq!(unmap(2, 0x1000, 8192), Errno::EINVAL);
    assert_eq!(unmap(2, 0, 0), Errno(0));
    assert_eq!(unmap(0, 0x1000, 8192), Errno::ENOENT);
}

#[test]
fn interrupts_that_make_no_sense_are_refused_and_none_is_bound() {
    let (_served, mut raw) = connected();
    let event = EventFd::new().unwrap();
    let file = tempfile::tempfile().unwrap();
    let set = IrqSet { argsz: 20, flags: 4 | 32, index: 2, start: 0, count: 2 };
    let mut send = |set: IrqSet, fds: &[std::os::fd::BorrowedFd<'_>]| {
        raw.send_with(&Request::SetIrqs(set, &[]).message(2).bytes(), fds);
        raw.errno(2)
    };
    let two = [event.as_fd(), event.as_fd()];
    for (wrong, errno) in [
        (IrqSet { argsz: 19, ..set }, Errno::EINVAL),
        (IrqSet { index: 5, ..set }, Errno::EINVAL),
        (IrqSet { index: 1, ..set }, Errno::EINVAL),
        (IrqSet { start: 39, ..set }, Errno::EINVAL),
        (IrqSet { start: u32::MAX, ..set }, Errno::EINVAL),
        (IrqSet { count: 3, ..set }, Errno::EINVAL),
        (IrqSet { count: 0, ..set }, Errno::EINVAL),
        (IrqSet { flags: 4 | 2 | 32, ..set }, Errno::EINVAL),
        (IrqSet { flags: 4 | 32 | 8, ..set }, Errno::EINVAL),
        (IrqSet { flags: 1 << 9 | 4 | 32, ..set }, Errno::EINVAL),
        (IrqSet { flags: 1 | 8, ..set }, Errno::ENOTTY),
        (IrqSet { flags: 1 | 8, count: 0, ..set }, Errno::EINVAL),
        (IrqSet { flags: 1 | 32, start: 1, count: 0, ..set }, Errno::EINVAL),
        (IrqSet { flags: 2 | 16, ..set }, Errno::ENOTTY),
        (IrqSet { flags: 4 | 16, ..set }, Errno::ENOTTY),
        (IrqSet { flags: 16, ..set }, Errno::EINVAL),
        (IrqSet { flags: 2 | 32, ..set }, Errno::EINVAL),
    ] {
        assert_eq!(send(wrong, &two), errno, "{wrong:?}");
    }
    assert_eq!(send(set, &[event.as_fd(), file.as_fd()]), Errno::EINVAL);
    let raise = |vector: u64| {
        let access = RegionAccess { offset: register::RAISE, region: 0, count: 8 };
        (access, vector.to_ne_bytes())
    };
    let (access, bytes) = raise(0);
    assert_eq!(refused(&mut raw, &Request::RegionWrite(access, &bytes)), Errno::ENXIO);
    // The client may fire them itself.
    raw.send_with(&Request::SetIrqs(set, &[]).message(2).bytes(), &two);
    assert_eq!(raw.errno(2), Errno(0));
    let fire = IrqSet { argsz: 22, flags: 2 | 32, ..set };
    assert_eq!(refused(&mut raw, &Request::SetIrqs(fire, &[0, 1])), Errno(0));
    assert_eq!(event.take().unwrap(), 1);
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed_and_harm_nobody() {
    let (served, mut raw) = connected();
    let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
    let fds = vec![writer.as_fd(); 16];
    raw.send_with(&Request::Reset.message(3).bytes(), &fds);
    assert_eq!(raw.errno(3), Errno(0));
    drop(writer);
    // All copies are gone, or this would wait.
    reader.set_read_timeout(Some(support::SOON)).unwrap();
    assert_eq!(std::io::Read::read(&mut &reader, &mut [0]).unwrap(), 0);
    // More than were agreed cannot even be received.
    let event = EventFd::new().unwrap();
    raw.send_with(&Request::Reset.message(3).bytes(), &vec![event.as_fd(); 200]);
    assert!(raw.ended());
    served.raw().agree(true);
}

#[test]
fn a_command_that_wants_no_reply_gets_none() {
    let (_served, mut raw) = connected();
    let access = RegionAccess { offset: 0, region: 2, count: 2 };
    let body = [access.as_bytes(), b"ok"].concat();
    raw.send(&message(1, Command::REGION_WRITE, NO_REPLY, &body));
    raw.send(&message(2, Command(77), NO_REPLY, &body));
    raw.send(&message(3, Command::REGION_READ, 0, access.as_bytes()));
    let (header, body) = raw.receive();
    assert_eq!((header.msg_id, &body[16..]), (3, &b"ok"[..]));
}

#[test]
fn an_answer_to_nothing_ends_the_connection() {
    let (served, mut raw) = connected();
    raw.send(&message(1, Command::DMA_READ, 1, &[0; 16]));
    assert!(raw.ended());
    served.raw().agree(true);
    let server = served.stop();
    assert!(matches!(
        server.last_disconnect(),
        Some(DisconnectReason::UnknownReply { id: 1, .. } | DisconnectReason::Closed)
    ));
}

#[test]
fn a_client_that_never_reads_is_cut_off_before_it_takes_all_memory() {
    let (served, mut raw) = connected();
    let access = RegionAccess { offset: 0, region: 2, count: 1 << 20 };
    let ask = Request::RegionRead(access).message(1).bytes();
    let mut sent = 0;
    raw.0.set_write_timeout(Some(support::SOON)).unwrap();
    while raw.0.write_all(&ask).is_ok() {
        sent += 1;
        assert!(sent < 100_000);
    }
    let server = served.stop();
    assert!(matches!(server.last_disconnect(), Some(DisconnectReason::NotReading(_))));
}

/// From now on the device takes for ever to change its state.
fn never_settles(raw: &mut Raw) {
    let access = RegionAccess { offset: register::LAZY, region: 0, count: 8 };
    let lazy = u64::MAX.to_ne_bytes();
    assert_eq!(refused(raw, &Request::RegionWrite(access, &lazy)), Errno(0));
}

#[test]
fn a_reset_ends_a_state_change_that_waits_and_a_second_one_is_refused() {
    let (_served, mut raw) = connected();
    never_settles(&mut raw);
    let header = feature(Feature::MIG_DEVICE_STATE, FeatureFlags::SET, 8);
    let stop = state(1);
    raw.ask(1, &Request::Feature(header, &stop));
    raw.ask(2, &Request::Feature(header, &stop));
    assert_eq!(raw.errno(2), Errno::EBUSY);
    raw.ask(3, &Request::Reset);
    assert_eq!(raw.errno(3), Errno(0));
    assert_eq!(raw.errno(1), Errno::ENODEV);
    raw.ask(4, &Request::Feature(header, &stop));
    assert_eq!(raw.errno(4), Errno(0));
}

#[test]
fn an_answer_of_the_wrong_length_fails_the_access_and_not_the_device() {
    let (_served, mut raw) = connected();
    let map = DmaMap { argsz: 32, flags: 3, offset: 0, addr: 0, size: 8192 };
    assert_eq!(refused(&mut raw, &Request::DmaMap(map)), Errno(0));
    let access = RegionAccess { offset: register::READ, region: 0, count: 8 };
    for (flags, body) in [
        (1, vec![0; 3]),
        (1, [0_u64, 7].as_bytes().to_vec()),
        (1, [[0_u64, 7].as_bytes(), &[1; 7]].concat()),
        (0x21, Vec::new()),
    ] {
        let read = 8_u64.to_ne_bytes();
        raw.ask(1, &Request::RegionWrite(access, &read));
        assert_eq!(raw.errno(1), Errno(0));
        let (asked, fixed) = raw.receive();
        assert_eq!(asked.command, Command::DMA_READ.0);
        assert_eq!(fixed, DmaAccess { addr: 0, count: 8 }.as_bytes());
        raw.send(&message(asked.msg_id, Command::DMA_READ, flags, &body));
        let failed = RegionAccess { offset: register::FAILED, region: 0, count: 8 };
        raw.ask(2, &Request::RegionRead(failed));
        assert_ne!(raw.receive().1[16..], [0; 8]);
        raw.check_in_step();
        assert_eq!(refused(&mut raw, &Request::DmaMap(map)), Errno::EEXIST);
    }
    // As another command it is no answer at all.
    let read = 8_u64.to_ne_bytes();
    raw.ask(1, &Request::RegionWrite(access, &read));
    assert_eq!(raw.errno(1), Errno(0));
    let (asked, _) = raw.receive();
    raw.send(&message(asked.msg_id, Command::DMA_WRITE, 1, &[0; 16]));
    assert!(raw.ended());
}

#[test]
fn a_client_that_connects_and_goes_holds_up_nobody() {
    let served =
        Served::with(Toy::new(states::v2::Capabilities::ALL), ServerOptions::default());
    for _ in 0..50 {
        drop(served.raw());
    }
    let mut half = served.raw();
    half.send(&[1, 2, 3]);
    drop(half);
    served.raw().agree(true);
}

#[test]
fn a_feature_without_room_for_its_structure_is_refused_before_anything_happens() {
    let (_served, mut raw) = connected();
    let call = |raw: &mut Raw, argsz: u32, flags: u32, data: &[u8]| {
        refused(raw, &Request::Feature(FeatureHeader { argsz, flags }, data))
    };
    let now = |raw: &mut Raw| {
        let header = FeatureHeader { argsz: 16, flags: GET | 2 };
        raw.ask(5, &Request::Feature(header, &[]));
        let (header, body) = raw.receive();
        assert_eq!((header.msg_id, header.error, body.len()), (5, 0, 16));
        u32::from_ne_bytes(body[8..12].try_into().unwrap())
    };
    let start = LoggingControl { page_size: 4096, num_ranges: 0, reserved: 0 };
    let report = LoggingReport { iova: 0, length: 4096, page_size: 4096 };
    // The state does not change, ...
    for argsz in [8, 12, 15] {
        for target in [1, 3, 4, 6] {
            assert_eq!(call(&mut raw, argsz, SET | 2, &state(target)), Errno::EINVAL);
            assert_eq!(now(&mut raw), 2);
        }
    }
    // ... logging does not start, so there is nothing to report, ...
    for argsz in [8, 16, 23] {
        assert_eq!(call(&mut raw, argsz, SET | 6, start.as_bytes()), Errno::EINVAL);
    }
    assert_ne!(call(&mut raw, 4096, GET | 8, report.as_bytes()), Errno(0));
    // ... and with room for the structure it does.
    assert_eq!(call(&mut raw, 24, SET | 6, start.as_bytes()), Errno(0));
    assert_eq!(call(&mut raw, 4096, GET | 8, report.as_bytes()), Errno(0));
    // Whatever has an input or an answer of a fixed length.
    let digest = 0xff02;
    for (flags, least) in [(GET | 1, 8), (GET | 2, 8), (GET | 9, 8), (GET | 8, 24)] {
        for argsz in [8, 8 + least - 1] {
            let data = report.as_bytes();
            assert_eq!(call(&mut raw, argsz, flags, data), Errno::EINVAL, "{flags:#x}");
        }
    }
    assert_eq!(call(&mut raw, 23, GET | digest, &[0; 16]), Errno::EINVAL);
    // What has none needs no room, and more than enough is no harm.
    assert_eq!(call(&mut raw, 8, SET | 7, &[]), Errno(0));
    assert_eq!(call(&mut raw, 8, SET | 12, &[]), Errno(0));
    assert_eq!(call(&mut raw, 4096, SET | 2, &state(1)), Errno(0));
    assert_eq!(now(&mut raw), 1);
}

#[test]
fn a_state_asked_for_behind_a_reset_is_not_refused_for_the_one_that_it_ended() {
    let (_served, mut raw) = connected();
    never_settles(&mut raw);
    let header = feature(Feature::MIG_DEVICE_STATE, FeatureFlags::SET, 8);
    let stop = state(1);
    // All of them in one receive of the server's.
    let set = |id| Request::Feature(header, &stop).message(id).bytes();
    raw.send(&[set(1), Request::Reset.message(2).bytes(), set(3)].concat());
    let mut answers: Vec<_> = (0..3)
        .map(|_| raw.receive().0)
        .map(|header| (header.msg_id, Errno(header.error as i32)))
        .collect();
    answers.sort_unstable_by_key(|(id, _)| *id);
    assert_eq!(answers, [(1, Errno::ENODEV), (2, Errno(0)), (3, Errno(0))]);
}
