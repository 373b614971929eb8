//! Answers whose fields cannot be.

use super::super::row::{Fd, Row};
use super::super::valid::{longs, words};
use super::calls::{
    self, DATA_READ, DEVICE_INFO, DMA_UNMAP_DIRTY, FEATURE_GET, FEATURE_PROBE,
    FEATURE_SET, IRQ_INFO, REGION_INFO, REGION_IO_FDS, REGION_MAP, REGION_READ,
    REGION_WRITE, SET_IRQS, SET_STATE, WRITE_MANY,
};
use super::{After, Lie, Outcome};

fn lie(call: &'static calls::Call, what: &str, change: fn(Row) -> Row) -> Lie {
    Lie::new(call, what, change)
}

pub fn lies() -> Vec<Lie> {
    [regions(), accesses(), features()].concat()
}

fn regions() -> Vec<Lie> {
    vec![
        lie(&DEVICE_INFO, "4 billion regions", |row| row.u32(8, u32::MAX)),
        lie(&DEVICE_INFO, "an argsz of 0", |row| row.u32(0, 0)),
        lie(&IRQ_INFO, "another index", |row| row.u32(8, 3)).broken(),
        lie(&IRQ_INFO, "an argsz of 4 GiB", |row| row.u32(0, u32::MAX)),
        lie(&REGION_INFO, "another index", |row| row.u32(8, 3)).broken(),
        lie(&REGION_INFO, "capabilities inside of the fixed part", |row| row.u32(12, 8))
            .broken(),
        lie(&REGION_INFO, "capabilities at the last fixed byte", |row| row.u32(12, 31))
            .broken(),
        lie(&REGION_INFO, "capabilities behind the answer", |row| row.u32(12, 64))
            .broken(),
        lie(&REGION_INFO, "capabilities at 4 GiB", |row| row.u32(12, u32::MAX)).broken(),
        lie(&REGION_INFO, "half a capability", |row| row.u32(12, 60)).broken(),
        lie(&REGION_INFO, "a capability that is its own next", |row| row.u32(36, 32))
            .broken(),
        lie(&REGION_INFO, "two capabilities in a circle", |row| {
            row.tail(&words(&[9, 32, 0, 0])).u32(36, 64)
        })
        .broken(),
        lie(&REGION_INFO, "a next inside of the fixed part", |row| row.u32(36, 4))
            .broken(),
        lie(&REGION_INFO, "a next behind the answer", |row| row.u32(36, 4096)).broken(),
        lie(&REGION_INFO, "a capability that nobody knows", |row| {
            row.tail(&words(&[0x7777, 0])).u32(36, 64)
        }),
        lie(&REGION_INFO, "two areas of one", |row| row.u32(40, 2)).broken(),
        lie(&REGION_INFO, "257 areas", |row| row.u32(40, 257)).broken(),
        lie(&REGION_INFO, "4 billion areas", |row| row.u32(40, u32::MAX)).broken(),
        lie(&REGION_INFO, "an area of no size", |row| row.u64(56, 0)).broken(),
        lie(&REGION_INFO, "an area behind the region", |row| row.u64(48, 1 << 20))
            .broken(),
        lie(&REGION_INFO, "an area over the end", |row| row.u64(56, 1 << 20)).broken(),
        lie(&REGION_INFO, "an area that wraps", |row| row.u64(48, u64::MAX)).broken(),
        lie(&REGION_INFO, "areas in a region of no size", |row| row.u64(16, 0)).broken(),
        lie(&REGION_INFO, "no descriptor", |row| row.fds(&[])),
        lie(&REGION_MAP, "no descriptor", |row| row.fds(&[])).broken(),
        lie(&REGION_MAP, "an eventfd", |row| row.fds(&[Fd::Event(0)]))
            .broken()
            .after(After::Works),
        lie(&REGION_MAP, "an empty file", |row| row.fds(&[Fd::File]))
            .broken()
            .after(After::Works),
        lie(&REGION_MAP, "an offset behind the file", |row| row.u64(24, 1 << 30))
            .broken()
            .after(After::Works),
        lie(&REGION_MAP, "an offset at 2^64", |row| row.u64(24, u64::MAX - 4095))
            .broken()
            .after(After::Works),
        lie(&REGION_MAP, "an odd offset", |row| row.u64(24, 1))
            .broken()
            .after(After::Works),
        lie(&REGION_MAP, "nothing that can be mapped", |row| row.u32(4, 3).fds(&[]))
            .is(Outcome::Errno(22)),
        lie(&REGION_MAP, "another area", |row| row.u64(48, 65536)).is(Outcome::Errno(22)),
        lie(&REGION_IO_FDS, "another index", |row| row.u32(8, 3)).broken(),
        lie(&REGION_IO_FDS, "a count of what did not fit", |row| {
            row.u32(0, 9000).u32(12, 200)
        })
        .is(Outcome::Errno(7)),
        lie(&REGION_IO_FDS, "one of 40 bytes", |row| {
            row.u32(12, 1).tail(&io_fd(0)).fds(&[Fd::Event(0)])
        }),
        lie(&REGION_IO_FDS, "one of 48 bytes", |row| {
            row.u32(12, 1).tail(&io_fd(0)).tail(&[0; 8]).fds(&[Fd::Event(0)])
        }),
        lie(&REGION_IO_FDS, "two of one", |row| {
            row.u32(12, 2).tail(&io_fd(0)).fds(&[Fd::Event(0)])
        })
        .broken(),
        lie(&REGION_IO_FDS, "4 billion of one", |row| {
            row.u32(12, u32::MAX).tail(&io_fd(0)).fds(&[Fd::Event(0)])
        })
        .broken(),
        lie(&REGION_IO_FDS, "one without its descriptor", |row| {
            row.u32(12, 1).tail(&io_fd(0))
        })
        .broken(),
        lie(&REGION_IO_FDS, "one with the descriptor of another", |row| {
            row.u32(12, 1).tail(&io_fd(1)).fds(&[Fd::Event(0)])
        })
        .broken(),
        lie(&REGION_IO_FDS, "one with descriptor 4 billion", |row| {
            row.u32(12, 1).tail(&io_fd(u32::MAX)).fds(&[Fd::Event(0)])
        })
        .broken(),
        lie(&SET_IRQS, "the request again", |row| row.body(words(&[20, 36, 2, 0, 2]))),
    ]
}

/// 0 offset, 8 size, 16 descriptor, 20 type, 24 flags, 28 padding, 32 datamatch.
fn io_fd(fd: u32) -> Vec<u8> {
    [longs(&[0, 4]), words(&[fd, 0, 0, 0]), longs(&[0])].concat()
}

fn accesses() -> Vec<Lie> {
    vec![
        lie(&REGION_READ, "a count above what was asked", |row| row.u32(12, 65)).broken(),
        lie(&REGION_READ, "a count below what was asked", |row| row.u32(12, 63)).broken(),
        lie(&REGION_READ, "a count below, and as many bytes", |row| {
            row.u32(12, 63).cut(1)
        })
        .broken(),
        lie(&REGION_READ, "a count of 0", |row| row.u32(12, 0)).broken(),
        lie(&REGION_READ, "a count of 4 GiB", |row| row.u32(12, u32::MAX)).broken(),
        lie(&REGION_READ, "half of the fields", |row| row.body(vec![0; 8])).broken(),
        lie(&REGION_READ, "the fields alone", |row| row.cut(64)).broken(),
        lie(&REGION_WRITE, "a count above what was sent", |row| row.u32(12, 65)).broken(),
        lie(&REGION_WRITE, "a count below what was sent", |row| row.u32(12, 1)).broken(),
        lie(&REGION_WRITE, "half of the fields", |row| row.cut(8)).broken(),
        lie(&WRITE_MANY, "one less", |row| row.u64(0, 2)).is(Outcome::Errno(5)),
        lie(&WRITE_MANY, "none", |row| row.u64(0, 0)).is(Outcome::Errno(5)),
        lie(&WRITE_MANY, "one more", |row| row.u64(0, 4)).broken(),
        lie(&WRITE_MANY, "2^64", |row| row.u64(0, u64::MAX)).broken(),
        lie(&DMA_UNMAP_DIRTY, "a bitmap of larger pages", |row| row.u64(24, 8192))
            .broken()
            .after(After::Works),
        lie(&DMA_UNMAP_DIRTY, "a bitmap of 16 bytes", |row| row.u64(32, 16))
            .broken()
            .after(After::Works),
        lie(&DMA_UNMAP_DIRTY, "a bitmap of 2^64 bytes", |row| row.u64(32, u64::MAX))
            .broken()
            .after(After::Works),
        lie(&DMA_UNMAP_DIRTY, "no bitmap", |row| row.cut(8)).broken().after(After::Works),
        lie(&DMA_UNMAP_DIRTY, "the fixed part alone", |row| row.cut(24))
            .broken()
            .after(After::Works),
        lie(&DATA_READ, "a size above what came", |row| row.u32(4, 65)).broken(),
        lie(&DATA_READ, "4 GiB of data", |row| row.u32(4, u32::MAX)).broken(),
        lie(&DATA_READ, "a size above, cut", |row| row.cut(63)).broken(),
        lie(&DATA_READ, "half of the fields", |row| row.cut(68)).broken(),
        lie(&DATA_READ, "nothing more", |row| row.u32(4, 0).cut(64)),
        lie(&DATA_READ, "nothing more, padded", |row| row.u32(4, 0)),
        lie(&DATA_READ, "a few bytes", |row| row.u32(4, 3).cut(61)),
        lie(&DATA_READ, "a few bytes, padded", |row| row.u32(4, 3)),
        lie(&DATA_READ, "an argsz of 0", |row| row.u32(0, 0)),
    ]
}

fn features() -> Vec<Lie> {
    let mut lies = Vec::new();
    for call in [&FEATURE_GET, &FEATURE_SET, &FEATURE_PROBE, &SET_STATE] {
        lies.extend([
            lie(call, "another feature", |row| row.u32(4, 9)).broken(),
            lie(call, "4 bytes", |row| row.body(vec![0; 4])).broken(),
            lie(call, "an argsz of 0", |row| row.u32(0, 0)),
            lie(call, "an argsz of 4 GiB", |row| row.u32(0, u32::MAX)),
        ]);
    }
    lies.extend([
        lie(&FEATURE_GET, "the header alone", |row| row.cut(8))
            .is(Outcome::Gone)
            .after(After::Works),
        lie(&SET_STATE, "another state", |row| row.u32(8, 3)),
        lie(&SET_STATE, "no state", |row| row.cut(8)),
    ]);
    lies
}
