//! Memory that the client lends, with and without descriptors.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use abi::errno::Errno;
use abi::feature::{Feature, FeatureFlags, FeatureHeader};
use abi::vfio_user::{
    Command, DirtyBitmap, DmaAccess, DmaMap, DmaUnmap, Header, LoggingControl,
    LoggingReport, RegionAccess,
};
use device::REQUESTS_MAX;
use sys::SharedMemory;
use vfio_migrate_vfio_user::ServerOptions;
use vfio_migrate_vfio_user::codec::{Capabilities, Reply, Request};
use zerocopy::{FromBytes, IntoBytes};

use super::support::{Raw, Served, message, register, until};
use super::{agree_to, connected, errno, get, plain, set};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const READ: u32 = 1;
const WRITE: u32 = 2;
const FILE_IO: u32 = 8;
const BITMAP: u32 = 1;
const ALL: u32 = 2;

fn map(
    raw: &mut Raw,
    flags: u32,
    addr: u64,
    size: u64,
    fd: Option<BorrowedFd<'_>>,
) -> Errno {
    let map = DmaMap { argsz: 32, flags, offset: 0, addr, size };
    raw.send_with(&Request::DmaMap(map).message(2).bytes(), fd.as_slice());
    raw.errno(2)
}

fn unmap(raw: &mut Raw, addr: u64, size: u64) -> Errno {
    errno(raw, &Request::DmaUnmap(DmaUnmap { argsz: 24, flags: 0, addr, size }))
}

/// What the device asks for.
fn asked(raw: &mut Raw, command: Command) -> (Header, DmaAccess, Vec<u8>) {
    let (header, body) = raw.receive();
    assert_eq!((header.command, header.flags), (command.0, 0));
    let (access, data) = DmaAccess::read_from_prefix(&body).unwrap();
    (header, access, data.to_vec())
}

fn answer(raw: &mut Raw, header: Header, access: DmaAccess, data: &[u8]) {
    let body = [access.as_bytes(), data].concat();
    raw.send(&message(header.msg_id, Command(header.command), 1, &body));
}

/// A client that takes 4 KiB a message, and lends 1 MiB without a descriptor.
fn small(served: &Served) -> Raw {
    let mut raw = served.raw();
    agree_to(&mut raw, 0, &Capabilities { max_data_xfer_size: 4096, ..plain() });
    assert_eq!(map(&mut raw, READ | WRITE, MIB, MIB, None), Errno(0));
    raw
}

fn fill(raw: &mut Raw, len: usize) -> Vec<u8> {
    let bytes: Vec<u8> = (0..len).map(|n| (n / 7) as u8).collect();
    for (n, part) in bytes.chunks(4096).enumerate() {
        let access =
            RegionAccess { offset: 4096 * n as u64, region: 2, count: part.len() as u32 };
        assert_eq!(errno(raw, &Request::RegionWrite(access, part)), Errno(0));
    }
    bytes
}

#[test]
fn an_access_that_is_longer_than_a_message_goes_in_pieces_and_comes_back_as_one() {
    let served = Served::start(ServerOptions::default());
    let mut raw = small(&served);
    let bytes = fill(&mut raw, 10_000);
    set(&mut raw, register::ADDRESS, MIB + 100);
    set(&mut raw, register::WRITE, 10_000);
    let mut written = Vec::new();
    for (start, len) in [(0, 4096), (4096, 4096), (8192, 1808)] {
        let (header, access, data) = asked(&mut raw, Command::DMA_WRITE);
        assert_eq!(access, DmaAccess { addr: MIB + 100 + start, count: len });
        written.extend(data);
        answer(&mut raw, header, access, &[]);
    }
    assert_eq!(written, bytes);
    assert_eq!(get(&mut raw, register::DONE), 1);
    // And the other way, answered in another order.
    set(&mut raw, register::READ, 9000);
    let pieces: Vec<_> = (0..3).map(|_| asked(&mut raw, Command::DMA_READ)).collect();
    for (header, access, _) in pieces.into_iter().rev() {
        assert_eq!(get(&mut raw, register::DONE), 1);
        let data = vec![access.addr as u8 ^ 0x5a; access.count as usize];
        answer(&mut raw, header, access, &data);
    }
    assert_eq!(get(&mut raw, register::DONE), 2);
    let access = RegionAccess { offset: 4090, region: 2, count: 12 };
    raw.ask(1, &Request::RegionRead(access));
    let (first, second) = (100 ^ 0x5a, (4096 + 100) as u8 ^ 0x5a);
    assert_eq!(first, second);
    assert_eq!(raw.receive().1[16..], [first; 12]);
}

#[test]
fn the_first_error_of_a_piece_is_the_error_of_the_access() {
    let served = Served::start(ServerOptions::default());
    let mut raw = small(&served);
    set(&mut raw, register::ADDRESS, MIB);
    set(&mut raw, register::READ, 3 * PAGE);
    let pieces: Vec<_> = (0..3).map(|_| asked(&mut raw, Command::DMA_READ)).collect();
    let refuse = |raw: &mut Raw, header: &Header, errno: Errno| {
        let mut refusal = message(header.msg_id, Command::DMA_READ, 0x21, &[]);
        refusal[12..16].copy_from_slice(&(errno.0 as u32).to_ne_bytes());
        raw.send(&refusal);
    };
    refuse(&mut raw, &pieces[1].0, Errno::ENODEV);
    assert_eq!(get(&mut raw, register::FAILED), 0, "the others are on their way");
    refuse(&mut raw, &pieces[0].0, Errno::EFAULT);
    answer(&mut raw, pieces[2].0, pieces[2].1, &[1; 4096]);
    assert_eq!(get(&mut raw, register::FAILED), Errno::ENODEV.0 as u64);
    assert_eq!(get(&mut raw, register::DONE), 0);
    // The toy's memory is as it was, and the next access works.
    set(&mut raw, register::READ, 8);
    let (header, access, _) = asked(&mut raw, Command::DMA_READ);
    answer(&mut raw, header, access, &[3; 8]);
    assert_eq!(get(&mut raw, register::DONE), 1);
}

#[test]
fn a_write_that_was_done_in_part_is_not_taken_for_done() {
    let served = Served::start(ServerOptions::default());
    let mut raw = small(&served);
    set(&mut raw, register::ADDRESS, MIB);
    for (n, (count, failed)) in [(7, true), (9, true), (8, false)].into_iter().enumerate()
    {
        set(&mut raw, register::WRITE, 8);
        let (header, access, _) = asked(&mut raw, Command::DMA_WRITE);
        answer(&mut raw, header, DmaAccess { count, ..access }, &[]);
        assert_eq!(get(&mut raw, register::DONE), u64::from(!failed), "{n}");
        assert_eq!(get(&mut raw, register::FAILED), Errno::EIO.0 as u64);
    }
    // Four bytes of count, or nothing, say no more than that it was done.
    for len in [12, 0] {
        set(&mut raw, register::WRITE, 8);
        let (header, access, _) = asked(&mut raw, Command::DMA_WRITE);
        let body = &access.as_bytes()[..len];
        raw.send(&message(header.msg_id, Command::DMA_WRITE, 1, body));
    }
    assert_eq!(get(&mut raw, register::DONE), 3);
}

#[test]
fn no_more_pieces_are_on_their_way_than_a_client_can_be_asked_to_hold() {
    let served = Served::start(ServerOptions::default());
    let mut raw = small(&served);
    set(&mut raw, register::ADDRESS, MIB);
    set(&mut raw, register::WRITE, MIB);
    let mut pieces: std::collections::VecDeque<_> =
        (0..REQUESTS_MAX).map(|_| asked(&mut raw, Command::DMA_WRITE)).collect();
    // Nothing else comes until one was answered, and then one.
    raw.check_in_step();
    // That was a reset, which forgot them all; their answers are taken and dropped.
    while let Some((header, access, _)) = pieces.pop_front() {
        answer(&mut raw, header, access, &[]);
    }
    raw.check_in_step();
    set(&mut raw, register::ADDRESS, MIB);
    set(&mut raw, register::WRITE, MIB);
    for _ in 0..REQUESTS_MAX {
        pieces.push_back(asked(&mut raw, Command::DMA_WRITE));
    }
    let mut next = REQUESTS_MAX as u64 * PAGE;
    while let Some((header, access, _)) = pieces.pop_front() {
        answer(&mut raw, header, access, &[]);
        if next < MIB {
            let piece = asked(&mut raw, Command::DMA_WRITE);
            assert_eq!(piece.1.addr, MIB + next);
            next += PAGE;
            pieces.push_back(piece);
        }
    }
    assert_eq!(get(&mut raw, register::DONE), 1);
}

#[test]
fn an_access_over_memory_and_messages_is_one_access() {
    let served = Served::start(ServerOptions::default());
    let mut raw = small(&served);
    let memory = SharedMemory::create("guest", PAGE).unwrap();
    let below = MIB - PAGE;
    assert_eq!(map(&mut raw, 3, below, PAGE, Some(memory.fd())), Errno(0));
    let above = SharedMemory::create("guest", PAGE).unwrap();
    assert_eq!(map(&mut raw, 3, 2 * MIB, PAGE, Some(above.fd())), Errno(0));
    assert_eq!(map(&mut raw, 3, 2 * MIB + PAGE, PAGE, None), Errno(0));
    let bytes = fill(&mut raw, 6000);
    set(&mut raw, register::ADDRESS, MIB - 1000);
    set(&mut raw, register::WRITE, 6000);
    let mut written = vec![0; 1000];
    memory.read(PAGE - 1000, &mut written).unwrap();
    for count in [4096, 904] {
        let (header, access, data) = asked(&mut raw, Command::DMA_WRITE);
        assert_eq!(access, DmaAccess { addr: MIB + written.len() as u64 - 1000, count });
        written.extend(data);
        answer(&mut raw, header, access, &[]);
    }
    assert_eq!(written, bytes);
    assert_eq!(get(&mut raw, register::DONE), 1);
    // Messages, memory, messages.
    above.write(0, &[7; PAGE as usize]).unwrap();
    set(&mut raw, register::ADDRESS, 2 * MIB - 8);
    set(&mut raw, register::READ, PAGE + 16);
    for addr in [2 * MIB - 8, 2 * MIB + PAGE] {
        let (header, access, _) = asked(&mut raw, Command::DMA_READ);
        assert_eq!(access, DmaAccess { addr, count: 8 });
        answer(&mut raw, header, access, &[1; 8]);
    }
    assert_eq!(get(&mut raw, register::DONE), 2);
    raw.ask(1, &Request::RegionRead(RegionAccess { offset: 0, region: 2, count: 12 }));
    assert_eq!(raw.receive().1[16..], [1, 1, 1, 1, 1, 1, 1, 1, 7, 7, 7, 7]);
}

#[test]
fn what_was_not_sent_yet_fails_when_its_memory_goes() {
    let served = Served::start(ServerOptions::default());
    let mut raw = small(&served);
    set(&mut raw, register::ADDRESS, MIB);
    set(&mut raw, register::WRITE, MIB);
    let pieces: Vec<_> =
        (0..REQUESTS_MAX).map(|_| asked(&mut raw, Command::DMA_WRITE)).collect();
    assert_eq!(unmap(&mut raw, MIB, MIB), Errno(0));
    for (header, access, _) in pieces {
        assert_eq!(get(&mut raw, register::FAILED), 0);
        answer(&mut raw, header, access, &[]);
    }
    assert_eq!(get(&mut raw, register::FAILED), Errno::EFAULT.0 as u64);
}

fn log(raw: &mut Raw) {
    let control = LoggingControl { page_size: PAGE, num_ranges: 0, reserved: 0 };
    let header = FeatureHeader::new(Feature::DMA_LOGGING_START, FeatureFlags::SET, 16);
    let start = Request::Feature(header, control.as_bytes());
    assert_eq!(errno(raw, &start), Errno(0));
}

fn unmap_dirty(
    raw: &mut Raw,
    argsz: u32,
    flags: u32,
    pages: u64,
    size: u64,
) -> Result<Vec<u64>, Errno> {
    let asked = DmaUnmap { argsz, flags, addr: MIB, size: pages * PAGE };
    let wanted = DirtyBitmap { pgsize: PAGE, size };
    raw.ask(5, &Request::DmaUnmapDirty(asked, wanted));
    let (header, body) = raw.receive();
    assert_eq!(header.msg_id, 5);
    if header.error != 0 {
        return Err(Errno(header.error as i32));
    }
    match Reply::parse(Command::DMA_UNMAP, &body) {
        Ok(Reply::DmaUnmapDirty(unmap, found, bitmap)) => {
            assert_eq!(unmap.argsz as usize, body.len());
            assert_eq!((unmap.addr, unmap.size), (asked.addr, asked.size));
            assert_eq!((found.pgsize, found.size), (PAGE, bitmap.len() as u64));
            let (words, rest) = bitmap.as_chunks::<8>();
            assert!(rest.is_empty());
            Ok(words.iter().map(|word| u64::from_le_bytes(*word)).collect())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn memory_goes_with_its_dirty_bits_in_whole_words() {
    let served = Served::start(ServerOptions::default());
    let mut raw = connected(&served);
    let memory = SharedMemory::create("guest", 100 * PAGE).unwrap();
    let mapped = |raw: &mut Raw| map(raw, 3, MIB, 100 * PAGE, Some(memory.fd()));
    assert_eq!(mapped(&mut raw), Errno(0));
    let no_log = unmap_dirty(&mut raw, 4096, BITMAP, 100, 16);
    assert_eq!(no_log, Err(Errno::EINVAL), "nothing is logged");
    log(&mut raw);
    for page in [0, 3, 99] {
        set(&mut raw, register::ADDRESS, MIB + page * PAGE + 8);
        set(&mut raw, register::WRITE, 8);
    }
    // Whatever is wrong, nothing is unmapped and no bit is lost.
    for (argsz, flags, pages, size, wrong) in [
        (40 + 15, BITMAP, 100, 16, Errno::EINVAL),
        (39, BITMAP, 100, 16, Errno::EINVAL),
        (4096, BITMAP, 100, 15, Errno::EINVAL),
        (4096, BITMAP, 100, 8, Errno::EINVAL),
        (4096, BITMAP | ALL, 100, 16, Errno::EINVAL),
        (4096, BITMAP | 4, 100, 16, Errno::EINVAL),
        (4096, BITMAP, 99, 16, Errno::ENOENT),
    ] {
        let refused = unmap_dirty(&mut raw, argsz, flags, pages, size);
        assert_eq!(refused, Err(wrong), "{argsz} {flags} {pages} {size}");
    }
    let dirty = unmap_dirty(&mut raw, 40 + 16, BITMAP, 100, 1 << 40);
    assert_eq!(dirty, Ok(vec![0b1001, 1 << (99 - 64)]));
    assert_eq!(unmap(&mut raw, MIB, 100 * PAGE), Errno::ENOENT);
    // Taken once: they are not in the next report.
    assert_eq!(mapped(&mut raw), Errno(0));
    let report = LoggingReport { iova: MIB, length: 100 * PAGE, page_size: PAGE };
    let header = FeatureHeader::new(Feature::DMA_LOGGING_REPORT, FeatureFlags::GET, 4096);
    raw.ask(6, &Request::Feature(header, report.as_bytes()));
    let (_, body) = raw.receive();
    assert_eq!(body[8 + 24..], [0; 16]);
    assert_eq!(unmap_dirty(&mut raw, 4096, BITMAP, 100, 16), Ok(vec![0, 0]));
}

#[test]
fn a_bitmap_is_no_longer_than_was_agreed() {
    let served = Served::start(ServerOptions::default());
    let mut raw = served.raw();
    let migration = plain().migration.or(Some(Default::default())).map(
        |all: vfio_migrate_vfio_user::codec::Migration| {
            vfio_migrate_vfio_user::codec::Migration { max_bitmap_size: 8, ..all }
        },
    );
    let (_, agreed) = agree_to(&mut raw, 0, &Capabilities { migration, ..plain() });
    assert_eq!(agreed.migration, migration);
    log(&mut raw);
    assert_eq!(map(&mut raw, 3, MIB, 65 * PAGE, None), Errno(0));
    assert_eq!(unmap_dirty(&mut raw, 4096, BITMAP, 65, 16), Err(Errno::EINVAL));
    assert_eq!(unmap(&mut raw, MIB, 65 * PAGE), Errno(0));
    assert_eq!(map(&mut raw, 3, MIB, 64 * PAGE, None), Errno(0));
    assert_eq!(unmap_dirty(&mut raw, 4096, BITMAP, 64, 16), Ok(vec![0]));
}

#[test]
fn memory_that_cannot_be_mapped_is_read_and_written() {
    let served = Served::start(ServerOptions::default());
    let mut raw = connected(&served);
    let file = tempfile::tempfile().unwrap();
    file.set_len(2 * PAGE).unwrap();
    file.write_all_at(b"from the file", 100).unwrap();
    let flags = READ | WRITE | FILE_IO;
    assert_eq!(map(&mut raw, flags, MIB, 4 * PAGE, Some(file.as_fd())), Errno(0));
    log(&mut raw);
    set(&mut raw, register::ADDRESS, MIB + 100);
    set(&mut raw, register::READ, 13);
    assert_eq!(get(&mut raw, register::DONE), 1);
    set(&mut raw, register::ADDRESS, MIB + PAGE);
    set(&mut raw, register::WRITE, 13);
    let mut back = [0; 13];
    file.read_exact_at(&mut back, PAGE).unwrap();
    assert_eq!(&back, b"from the file");
    // Behind its end there is nothing to be read.
    set(&mut raw, register::ADDRESS, MIB + 2 * PAGE);
    set(&mut raw, register::READ, 1);
    assert_eq!(get(&mut raw, register::FAILED), Errno::EFAULT.0 as u64);
    assert_eq!(unmap_dirty(&mut raw, 4096, BITMAP, 4, 8), Ok(vec![0b10]));
    // What could make the device wait is no memory.
    let (_reader, writer) = std::io::pipe().unwrap();
    assert_eq!(map(&mut raw, flags, MIB, PAGE, Some(writer.as_fd())), Errno::EINVAL);
    let zero = std::fs::File::open("/dev/zero").unwrap();
    assert_eq!(map(&mut raw, flags, MIB, PAGE, Some(zero.as_fd())), Errno::EINVAL);
}

#[test]
fn the_storm_of_a_firmware_that_shadows_its_roms_leaves_the_right_memory() {
    let served = Served::start(ServerOptions::default());
    let mut raw = served.raw();
    agree_to(&mut raw, 0, &plain());
    let ram = SharedMemory::create("ram", 16 * MIB).unwrap();
    let at = |raw: &mut Raw, flags, start: u64, end: u64, fd: bool| {
        let map =
            DmaMap { argsz: 32, flags, offset: start, addr: start, size: end - start };
        let fds: Vec<_> = fd.then(|| ram.fd()).into_iter().collect();
        raw.send_with(&Request::DmaMap(map).message(2).bytes(), &fds);
        assert_eq!(raw.errno(2), Errno(0), "{start:#x}");
    };
    // Before anything was asked about the device.
    at(&mut raw, 3, 0, 16 * MIB, true);
    at(&mut raw, READ, 0xfffc_0000, 1 << 32, false);
    assert_eq!(unmap(&mut raw, 0, 16 * MIB), Errno(0));
    at(&mut raw, 3, 0, 0xc_0000, true);
    at(&mut raw, 3, MIB, 16 * MIB, true);
    for round in 0..40 {
        // The 256 KiB below 1 MiB in ever other pieces, as RAM, as ROM, or not at all.
        let pages = 1 + round % 8;
        let mut mapped = Vec::new();
        let mut start = 0xc_0000;
        let mut n = round;
        while start < MIB {
            let end = (start + pages * 0x4000).min(MIB);
            match n % 3 {
                0 => at(&mut raw, 3, start, end, true),
                1 => at(&mut raw, READ, start, end, false),
                _ => {}
            }
            if n % 3 < 2 {
                mapped.push((start, end));
            }
            (start, n) = (end, n + 1);
        }
        for (start, end) in mapped {
            assert_eq!(unmap(&mut raw, start, end - start), Errno(0));
        }
    }
    at(&mut raw, 3, 0xc_0000, MIB, true);
    set(&mut raw, register::ADDRESS, 0xb_f000);
    ram.write(0xb_f000, &[0x42; 0x2000]).unwrap();
    set(&mut raw, register::READ, 0x2000);
    assert_eq!((get(&mut raw, register::DONE), get(&mut raw, register::FAILED)), (1, 0));
    // A ROM without a descriptor is read by message, and not written.
    set(&mut raw, register::ADDRESS, 0xfffc_0000);
    set(&mut raw, register::WRITE, 8);
    assert_eq!(get(&mut raw, register::FAILED), u64::MAX);
    set(&mut raw, register::READ, 8);
    let (header, access, _) = asked(&mut raw, Command::DMA_READ);
    answer(&mut raw, header, access, &[1; 8]);
    until(|| get(&mut raw, register::DONE) == 2);
}
