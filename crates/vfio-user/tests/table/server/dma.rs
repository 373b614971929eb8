//! DMA_MAP and DMA_UNMAP, and what the device reaches then.

use vfio_migrate_vfio_user::ServerOptions;

use super::super::device::Device;
use super::super::errno::{EEXIST, EINVAL, ENOENT, ENOSPC};
use super::super::row::Defect::{
    Absent, Argsz, Fields, Limit, Long, NoFds, NoReply, Short, State, Twice, Valid,
};
use super::super::row::{Fd, Link, Row};
use super::super::support::{Served, register};
use super::super::valid::{self, dma_map, dma_map_bare, dma_unmap, longs, words};
use super::super::wire::Wire;

/// Flags of `DMA_MAP`.
const READ: u32 = 1;
const WRITE: u32 = 2;
const MMAP: u32 = 4;
const FILE_IO: u32 = 8;

/// Flags of `DMA_UNMAP`.
const DIRTY: u32 = 1;
const ALL: u32 = 2;

/// `DMA_UNMAP` of everything.
fn unmap_all() -> Row {
    dma_unmap().u32(4, ALL).u64(8, 0).u64(16, 0).answer(24)
}

/// 0 argsz, 4 flags, 8 address, 16 size, 24 page size, 32 bytes of the bitmap.
fn unmap_dirty() -> Row {
    let body = [words(&[48, DIRTY]), longs(&[0x10000, 8192, 4096, 8])].concat();
    Row::new(3, body).answer(48).says(8, &longs(&[0x10000, 8192, 4096, 8]))
}

/// The device writes 8 bytes at `address`.
fn device_writes(address: u64) -> [Row; 2] {
    [
        valid::register_write(register::ADDRESS, address),
        valid::register_write(register::WRITE, 8),
    ]
}

fn done(count: u64) -> Row {
    valid::register_read(register::DONE, count)
}

fn failed() -> Row {
    valid::register_read(register::FAILED, u64::MAX)
}

pub fn rows() -> Vec<Row> {
    let mut rows = maps();
    rows.extend(unmaps());
    rows.extend(bitmaps());
    rows
}

fn maps() -> Vec<Row> {
    let write = || device_writes(0x10000);
    vec![
        dma_map().then(write()).then([done(1)]).why(Valid, "and the device writes"),
        dma_map().u32(4, READ).then(write()).then([failed()]).why(Valid, "read-only"),
        dma_map().u32(4, WRITE).then(write()).then([done(1)]).why(Valid, "write-only"),
        dma_map().u32(4, MMAP | READ | WRITE).why(Valid, "the flag for mapping it"),
        dma_map().u32(0, 1000).why(Valid, "a large argsz"),
        dma_map().silent().then(write()).then([done(1)]).why(NoReply, "is carried out"),
        dma_map_bare().why(NoFds, "without descriptor: by messages"),
        dma_map_bare()
            .u64(8, 1)
            .why(NoFds, "without descriptor the offset means nothing"),
        dma_map().u64(16, u64::MAX - 8191).refused(EINVAL).why(Limit, "up to 2^64"),
        dma_map().u32(0, 31).refused(EINVAL).why(Argsz, "31"),
        dma_map().u32(0, 0).refused(EINVAL).why(Argsz, "0"),
        dma_map().u32(4, 0).refused(EINVAL).why(Fields, "neither read nor write"),
        dma_map()
            .u32(4, 3 | FILE_IO)
            .then(write())
            .then([done(1)])
            .why(Valid, "by reads and writes of the file"),
        dma_map()
            .u32(4, READ | FILE_IO)
            .then(write())
            .then([failed()])
            .why(Valid, "by reads of the file"),
        dma_map()
            .u32(4, 3 | FILE_IO)
            .fds(&[])
            .refused(EINVAL)
            .why(NoFds, "by reads of no file"),
        dma_map()
            .u32(4, 3 | FILE_IO)
            .fds(&[Fd::Event(0)])
            .refused(EINVAL)
            .why(NoFds, "by reads of an eventfd"),
        dma_map()
            .u32(4, 3 | FILE_IO)
            .u64(8, 1 << 63)
            .refused(EINVAL)
            .why(Limit, "a file offset of 8 EiB"),
        dma_map()
            .u32(4, 3 | MMAP | FILE_IO)
            .refused(EINVAL)
            .why(Fields, "both by mapping and by reads"),
        dma_map().u32(4, 3 | 1 << 4).refused(EINVAL).why(Fields, "an unknown flag"),
        dma_map().u32(4, 3 | 1 << 31).refused(EINVAL).why(Fields, "the highest flag"),
        dma_map().u64(24, 0).refused(EINVAL).why(Fields, "of no size"),
        dma_map().u64(24, 100).refused(EINVAL).why(Fields, "a size of no whole pages"),
        dma_map().u64(16, 0x10001).refused(EINVAL).why(Fields, "an address in a page"),
        dma_map().u64(8, 1).refused(EINVAL).why(Fields, "an offset in a page"),
        dma_map().u64(8, 1 << 20).refused(EINVAL).why(Limit, "behind the file"),
        dma_map().u64(24, 2 << 20).refused(EINVAL).why(Limit, "longer than the file"),
        dma_map()
            .u64(8, u64::MAX - 4095)
            .refused(EINVAL)
            .why(Limit, "an offset near 2^64"),
        dma_map().u64(24, 1 << 63).refused(EINVAL).why(Limit, "of 8 EiB"),
        dma_map().u64(24, !4095).refused(EINVAL).why(Limit, "of nearly 2^64"),
        dma_map()
            .u64(16, !4095)
            .refused(EINVAL)
            .why(Limit, "over the end of the addresses"),
        dma_map_bare()
            .u64(16, !4095)
            .u64(24, 8192)
            .refused(EINVAL)
            .why(Limit, "wrapping"),
        dma_map().fds(&[Fd::Memory; 2]).refused(EINVAL).why(NoFds, "two descriptors"),
        dma_map().fds(&[Fd::File]).refused(EINVAL).why(NoFds, "an empty file"),
        dma_map()
            .given([dma_map()])
            .u64(16, 0x11000)
            .refused(EEXIST)
            .why(Twice, "over the end of another"),
        dma_map()
            .given([dma_map()])
            .u64(16, 0xf000)
            .refused(EEXIST)
            .why(Twice, "over the start of another"),
        dma_map()
            .given([dma_map()])
            .u64(16, 0x11000)
            .u64(24, 4096)
            .refused(EEXIST)
            .why(Twice, "inside of another"),
        dma_map().given([dma_map()]).u64(16, 0x12000).why(Valid, "right behind another"),
        dma_map_bare()
            .given([dma_map()])
            .u64(16, 0x10000)
            .refused(EEXIST)
            .why(Twice, "by messages over one with a descriptor"),
        dma_map().given([valid::go(valid::RUNNING_P2P)]).why(State, "in RUNNING_P2P"),
    ]
}

fn unmaps() -> Vec<Row> {
    let given = |row: Row| row.given([dma_map()]);
    let still = [device_writes(0x10000), [done(1), dma_unmap()]].concat();
    vec![
        given(dma_unmap())
            .then(device_writes(0x10000))
            .then([failed()])
            .why(Valid, "is gone"),
        given(dma_unmap()).then([dma_map()]).why(Valid, "and mapped again"),
        given(dma_unmap()).u32(0, 4096).why(Valid, "a large argsz"),
        dma_unmap()
            .given([dma_map_bare()])
            .u64(8, 0x80000)
            .says_u64(8, 0x80000)
            .why(Valid, "of messages"),
        given(dma_unmap()).silent().then([dma_map()]).why(NoReply, "is carried out"),
        unmap_all().why(Valid, "of all, where there is nothing"),
        unmap_all()
            .given([dma_map(), dma_map_bare()])
            .then([dma_map(), dma_map_bare()])
            .why(Valid, "of all"),
        given(dma_unmap())
            .u32(0, 23)
            .refused(EINVAL)
            .then(still.clone())
            .why(Argsz, "23"),
        given(dma_unmap()).u32(0, 0).refused(EINVAL).then(still.clone()).why(Argsz, "0"),
        given(dma_unmap())
            .u32(4, 4)
            .refused(EINVAL)
            .then(still.clone())
            .why(Fields, "flag 4, the published crate's ALL"),
        given(dma_unmap()).u32(4, 1 << 31).refused(EINVAL).why(Fields, "an unknown flag"),
        given(dma_unmap())
            .u32(4, ALL)
            .refused(EINVAL)
            .then(still.clone())
            .why(Fields, "of all, but with a range"),
        given(unmap_all())
            .u64(8, 0x10000)
            .refused(EINVAL)
            .why(Fields, "of all, but with an address"),
        given(unmap_all())
            .u64(16, 8192)
            .refused(EINVAL)
            .why(Fields, "of all, but with a size"),
        given(dma_unmap())
            .u32(4, ALL | DIRTY)
            .refused(EINVAL)
            .why(Fields, "of all, with the bitmap"),
        dma_unmap().refused(ENOENT).why(Absent, "where there is nothing"),
        given(dma_unmap())
            .u64(16, 4096)
            .refused(ENOENT)
            .then(still.clone())
            .why(Limit, "of its first page"),
        given(dma_unmap())
            .u64(8, 0x11000)
            .u64(16, 4096)
            .refused(ENOENT)
            .why(Limit, "of its last page"),
        given(dma_unmap()).u64(16, 16384).refused(ENOENT).why(Limit, "of more than it"),
        given(dma_unmap())
            .u64(8, 0xf000)
            .u64(16, 12288)
            .refused(ENOENT)
            .why(Limit, "around it"),
        given(dma_unmap())
            .u64(16, 0)
            .refused(EINVAL)
            .then(still.clone())
            .why(Fields, "of no size"),
        given(dma_unmap()).u64(16, u64::MAX).refused(EINVAL).why(Limit, "wrapping"),
        dma_unmap()
            .given([dma_map(), dma_map().u64(16, 0x12000)])
            .u64(16, 16384)
            .refused(ENOENT)
            .why(Limit, "of two at once"),
    ]
}

fn bitmaps() -> Vec<Row> {
    let refused = |row: Row| row.given([dma_map()]).refused(EINVAL).then([dma_unmap()]);
    let logged = |row: Row| {
        row.given([dma_map(), valid::log_start()]).given(device_writes(0x11000))
    };
    let on = |row: Row| row.given([valid::log_start()]);
    let gone = [dma_unmap().refused(ENOENT)];
    let second = longs(&[0x10000, 8192, 4096, 8, 2]);
    vec![
        logged(unmap_dirty())
            .says(8, &second)
            .then(gone.clone())
            .why(Valid, "with the bitmap"),
        logged(unmap_dirty())
            .u32(0, 4096)
            .u64(32, 4096)
            .says(8, &second)
            .why(Valid, "with room for more of a bitmap than there is"),
        logged(unmap_dirty()).silent().then(gone.clone()).why(NoReply, "with the bitmap"),
        logged(unmap_dirty())
            .u64(24, 8192)
            .says(8, &longs(&[0x10000, 8192, 8192, 8, 1]))
            .why(Valid, "with the bitmap of larger pages"),
        logged(unmap_dirty())
            .over(Link::Foreign)
            .says(8, &second)
            .why(Valid, "with the bitmap, where nobody spoke of it"),
        logged(unmap_dirty())
            .tail(&[0; 64])
            .says(8, &second)
            .then(gone)
            .why(Long, "with the bitmap"),
        refused(unmap_dirty()).why(State, "with the bitmap, where nothing is logged"),
        on(refused(unmap_dirty())).cut(1).why(Short, "half of the bitmap's structure"),
        on(refused(unmap_dirty())).cut(16).why(Short, "without the bitmap's structure"),
        on(refused(unmap_dirty())).u32(0, 47).why(Argsz, "no room for the bitmap"),
        on(refused(unmap_dirty())).u32(0, 39).why(Argsz, "no room for its structure"),
        on(refused(unmap_dirty())).u32(0, 24).why(Argsz, "room for the fixed part only"),
        on(refused(unmap_dirty())).u64(24, 0).why(Fields, "a bitmap of pages of 0 bytes"),
        on(refused(unmap_dirty())).u64(24, 3000).why(Fields, "a bitmap of odd pages"),
        on(refused(unmap_dirty())).u64(24, 2048).why(Fields, "a bitmap of small pages"),
        on(refused(unmap_dirty())).u64(32, 0).why(Limit, "a bitmap of 0 bytes"),
        on(refused(unmap_dirty())).u64(32, 7).why(Limit, "a bitmap of 7 bytes"),
        unmap_dirty()
            .given([valid::log_start()])
            .refused(ENOENT)
            .why(Absent, "with the bitmap, where there is nothing"),
        on(refused(unmap_dirty()))
            .u64(16, 4096)
            .refused(ENOENT)
            .why(Limit, "with the bitmap, of its first page"),
    ]
}

#[test]
fn a_mapping_above_the_limit_is_refused_and_makes_room_when_others_go() {
    let served = Served::with(Device::new(), ServerOptions::default());
    let wire = Wire::connect(&served.path());
    let exchange = |row: &Row| {
        wire.send(&row.message(3).bytes(), &[]).unwrap();
        row.check(3, &wire.receive().unwrap()).unwrap();
    };
    exchange(&valid::version());
    let one = |n: u64| dma_map_bare().u64(16, n << 13);
    // As many as there may be, all in one go and without an answer.
    let most = 65535;
    let all: Vec<u8> =
        (0..most).flat_map(|n| one(n).silent().message(1).bytes()).collect();
    wire.send(&all, &[]).unwrap();
    exchange(&one(most).refused(ENOSPC));
    exchange(&dma_unmap().u64(8, 5 << 13).says_u64(8, 5 << 13));
    exchange(&one(most));
    exchange(&one(5).refused(ENOSPC));
    exchange(&unmap_all());
    exchange(&one(5));
}
