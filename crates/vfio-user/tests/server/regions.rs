//! Regions: several writes at once, writes that nobody waits for, descriptors.

use abi::errno::Errno;
use abi::region::RegionInfo;
use abi::vfio_user::{Command, RegionAccess, RegionIoFds, WriteMulti};
use vfio_migrate_vfio_user::ServerOptions;
use vfio_migrate_vfio_user::codec::{Capabilities, Reply, Request, Writes};

use super::support::{MEMORY, Raw, Served, message};
use super::{agree_to, connected, errno, plain};

const NO_REPLY: u32 = 0x10;

fn many(raw: &mut Raw) -> Capabilities {
    agree_to(raw, 2, &Capabilities { write_multiple: true, ..plain() }).1
}

/// `count` writes of 4 bytes, one behind the other, into the toy's memory.
fn writes(count: u32) -> Vec<u8> {
    let mut entries = Vec::new();
    for n in 0..count {
        Writes::encode(&mut entries, 2, 4 * u64::from(n), &n.to_ne_bytes());
    }
    entries
}

fn done(raw: &mut Raw, entries: &[u8]) -> u64 {
    raw.ask(3, &Request::WriteMulti(Writes::new(entries).unwrap()));
    let (header, body) = raw.receive();
    assert_eq!((header.msg_id, header.error), (3, 0));
    match Reply::parse(Command::REGION_WRITE_MULTI, &body) {
        Ok(Reply::WriteMulti(WriteMulti { wr_cnt })) => wr_cnt,
        other => panic!("{other:?}"),
    }
}

fn memory(raw: &mut Raw, offset: u64, count: u32) -> Vec<u8> {
    raw.ask(4, &Request::RegionRead(RegionAccess { offset, region: 2, count }));
    let (header, body) = raw.receive();
    assert_eq!((header.msg_id, header.error), (4, 0));
    body[16..].to_vec()
}

#[test]
fn many_writes_in_one_message_are_done_in_order() {
    let served = Served::start(ServerOptions::default());
    let mut raw = served.raw();
    assert!(many(&mut raw).write_multiple);
    // As many as QEMU sends, and more.
    for count in [1, 200, 10_000] {
        assert_eq!(done(&mut raw, &writes(count)), u64::from(count));
        let last = memory(&mut raw, 4 * u64::from(count - 1), 4);
        assert_eq!(last, (count - 1).to_ne_bytes());
    }
    // The later one wins.
    let mut twice = Vec::new();
    Writes::encode(&mut twice, 2, 0, &[1; 8]);
    Writes::encode(&mut twice, 2, 4, &[2; 1]);
    assert_eq!(done(&mut raw, &twice), 2);
    assert_eq!(memory(&mut raw, 0, 9), [1, 1, 1, 1, 2, 1, 1, 1, 2]);
}

#[test]
fn an_error_among_many_writes_says_how_many_were_done() {
    let served = Served::start(ServerOptions::default());
    let mut raw = served.raw();
    many(&mut raw);
    let mut entries = writes(2);
    Writes::encode(&mut entries, 2, MEMORY, &[1]);
    Writes::encode(&mut entries, 2, 8, &[0xff; 4]);
    assert_eq!(done(&mut raw, &entries), 2);
    assert_eq!(memory(&mut raw, 8, 4), [0; 4]);
    // Where none was, there is nothing to count.
    let wrong = Writes::new(&entries[48..]).unwrap();
    assert_eq!(errno(&mut raw, &Request::WriteMulti(wrong)), Errno::EINVAL);
    // What does not even parse is not begun.
    let mut body = 3_u64.to_ne_bytes().to_vec();
    let mut absurd = Vec::new();
    Writes::encode(&mut absurd, 2, 16, &[0xee; 4]);
    body.extend(&absurd);
    absurd[12] = 9;
    body.extend(&absurd);
    for count in [0, 2, 3, u64::MAX] {
        body[..8].copy_from_slice(&count.to_ne_bytes());
        raw.send(&message(5, Command::REGION_WRITE_MULTI, 0, &body));
        assert_eq!(raw.errno(5), Errno::EINVAL, "{count}");
    }
    assert_eq!(memory(&mut raw, 16, 4), [0; 4]);
}

#[test]
fn many_writes_are_refused_where_they_were_not_agreed_to() {
    let served = Served::start(ServerOptions::default());
    let mut raw = connected(&served);
    let entries = writes(1);
    let request = Request::WriteMulti(Writes::new(&entries).unwrap());
    assert_eq!(errno(&mut raw, &request), Errno::ENOSYS);
    raw.check_in_step();
}

#[test]
fn what_nobody_waits_for_is_done_in_order_and_its_errors_are_counted() {
    let served = Served::start(ServerOptions::default());
    let mut raw = served.raw();
    many(&mut raw);
    let mut all = Vec::new();
    let mut wrong = 0;
    for n in 0..1000_u32 {
        let offset = if n % 100 == 7 { MEMORY } else { 8 * u64::from(n) };
        wrong += u64::from(offset == MEMORY);
        let access = RegionAccess { offset, region: 2, count: 4 };
        let mut posted =
            Request::RegionWrite(access, &n.to_ne_bytes()).message(7).bytes();
        posted[8] |= NO_REPLY as u8;
        all.extend(posted);
    }
    let entries = writes(200);
    let mut posted =
        Request::WriteMulti(Writes::new(&entries).unwrap()).message(7).bytes();
    posted[8] |= NO_REPLY as u8;
    all.extend(posted);
    raw.send(&all);
    // The next answer is that of the next question.
    assert_eq!(memory(&mut raw, 8 * 999, 4), 999_u32.to_ne_bytes());
    assert_eq!(memory(&mut raw, 4 * 199, 4), 199_u32.to_ne_bytes());
    // In every other command too: refused, done, unknown, cut short.
    for (command, body) in [
        (Command::DMA_UNMAP, vec![0; 24]),
        (Command::DEVICE_RESET, vec![]),
        (Command(99), vec![]),
        (Command::DEVICE_FEATURE, vec![1]),
        (Command::DEVICE_GET_INFO, vec![16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (Command::VERSION, vec![0; 4]),
    ] {
        raw.send(&message(8, command, NO_REPLY, &body));
    }
    raw.check_in_step();
    drop(raw);
    assert_eq!(served.stop().unanswered_errors(), wrong + 4);
}

#[test]
fn a_region_has_no_descriptors_of_its_own_and_says_so() {
    let served = Served::start(ServerOptions::default());
    let mut raw = connected(&served);
    let info = RegionIoFds { argsz: 4096, flags: 0, index: 0, count: 0 };
    for index in 0..9 {
        raw.ask(1, &Request::IoFds(RegionIoFds { index, ..info }));
        let (header, body) = raw.receive();
        assert_eq!(header.error, 0);
        let expected = RegionIoFds { argsz: 16, index, ..info };
        let reply = Reply::parse(Command::DEVICE_GET_REGION_IO_FDS, &body);
        assert_eq!(reply, Ok(Reply::IoFds(expected, Vec::new())));
    }
    for wrong in [
        RegionIoFds { index: 9, ..info },
        RegionIoFds { index: u32::MAX, ..info },
        RegionIoFds { flags: 1, ..info },
        RegionIoFds { count: 1, ..info },
        RegionIoFds { argsz: 15, ..info },
    ] {
        assert_eq!(errno(&mut raw, &Request::IoFds(wrong)), Errno::EINVAL, "{wrong:?}");
    }
}

#[test]
fn a_region_that_is_told_without_room_has_no_capabilities_that_qemu_looks_for() {
    let served = Served::start(ServerOptions::default());
    let mut raw = connected(&served);
    for (argsz, flags, length) in [(32, 7, 32), (63, 7, 32), (64, 15, 64)] {
        let info =
            RegionInfo { argsz, flags: 0, index: 2, cap_offset: 0, size: 0, offset: 0 };
        raw.ask(1, &Request::RegionInfo(info));
        let (_, body) = raw.receive();
        match Reply::parse(Command::DEVICE_GET_REGION_INFO, &body) {
            Ok(Reply::Region(region)) => {
                assert_eq!((region.info.argsz, region.info.flags), (64, flags));
                assert_eq!(region.info.cap_offset != 0, length == 64);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(body.len(), length);
    }
}

#[test]
fn answers_that_had_to_wait_for_the_socket_are_whole_and_in_order() {
    let served = Served::start(ServerOptions::default());
    let mut raw = connected(&served);
    let pattern: Vec<u8> = (0..MEMORY as u32).map(|n| (n / 3) as u8).collect();
    for (n, part) in pattern.chunks(1 << 19).enumerate() {
        let access = RegionAccess {
            offset: (n << 19) as u64,
            region: 2,
            count: part.len() as u32,
        };
        assert_eq!(errno(&mut raw, &Request::RegionWrite(access, part)), Errno(0));
    }
    let asked: Vec<_> = [1 << 20, 4, 700_000, 8, 1 << 20, 1, 300_000, 4096]
        .into_iter()
        .cycle()
        .take(40)
        .enumerate()
        .map(|(n, count)| RegionAccess { offset: (n as u64 * 8) % 32, region: 2, count })
        .map(|access| RegionAccess {
            offset: access.offset.min(MEMORY - u64::from(access.count)),
            ..access
        })
        .collect();
    let mut all = Vec::new();
    for (id, access) in asked.iter().enumerate() {
        all.extend(Request::RegionRead(*access).message(id as u16).bytes());
    }
    // 15 MiB of answers, and nobody reads yet.
    raw.send(&all);
    for (id, access) in asked.iter().enumerate() {
        let (header, body) = raw.receive();
        assert_eq!((header.msg_id as usize, header.error), (id, 0));
        let start = access.offset as usize;
        assert!(body[16..] == pattern[start..start + access.count as usize], "{id}");
    }
}
