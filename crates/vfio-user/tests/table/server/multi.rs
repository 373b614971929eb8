//! REGION_WRITE_MULTI: writes in order, up to the first that fails.

use super::super::errno::{EINVAL, ENOSYS};
use super::super::row::Defect::{
    Absent, Empty, Fields, Limit, Long, NoReply, Short, State, Valid,
};
use super::super::row::{Link, Row};
use super::super::valid::{MOST, longs, memory_read, words, write_multi};

/// One write: offset, region, count, data.
fn entry(offset: u64, region: u32, count: u32) -> Vec<u8> {
    [&longs(&[offset])[..], &words(&[region, count]), b"datadata"].concat()
}

/// Those writes.
fn multi(entries: &[Vec<u8>]) -> Row {
    let count = entries.len() as u64;
    write_multi()
        .body([longs(&[count]), entries.concat()].concat())
        .answer(8)
        .says_u64(0, count)
}

fn good(n: u64) -> Vec<u8> {
    entry(0x300 + 8 * n, 2, 8)
}

pub fn rows() -> Vec<Row> {
    let written = |count: u32| {
        memory_read(0x300, 16).says(
            16,
            &[&b"datadatadatadata"[..count as usize], &vec![0; 16 - count as usize]]
                .concat(),
        )
    };
    let mut rows = vec![
        write_multi()
            .then([memory_read(0x300, 16).says(16, b"firstonetheother")])
            .why(Valid, "are there"),
        write_multi()
            .silent()
            .then([memory_read(0x300, 16).says(16, b"firstonetheother")])
            .why(NoReply, "is carried out"),
        multi(&[good(0)]).then([written(8)]).why(Valid, "one"),
        multi(&vec![good(0); 200]).why(Valid, "200, as QEMU sends"),
        multi(&[entry(0x300, 2, 1), entry(0x301, 2, 2)])
            .then([memory_read(0x300, 4).says(16, b"dda\0")])
            .why(Valid, "of 1 and 2 bytes"),
        multi(&[good(0), good(1)])
            .tail(&[1; 24])
            .then([written(16)])
            .why(Long, "a write that is not counted"),
        multi(&[good(0), good(1)])
            .cut(1)
            .refused(EINVAL)
            .then([written(0)])
            .why(Short, "nothing is written"),
        multi(&[good(0), good(1)])
            .cut(24)
            .refused(EINVAL)
            .then([written(0)])
            .why(Short, "one write missing"),
        multi(&[good(0)]).cut(24).refused(EINVAL).why(Empty, "no write at all"),
        multi(&[good(0)])
            .u64(0, 0)
            .refused(EINVAL)
            .then([written(0)])
            .why(Fields, "none of one"),
        multi(&[good(0)])
            .u64(0, 2)
            .refused(EINVAL)
            .then([written(0)])
            .why(Limit, "a count above its writes"),
        multi(&[good(0)])
            .u64(0, u64::MAX)
            .refused(EINVAL)
            .then([written(0)])
            .why(Limit, "a count of 2^64"),
        // 24 times this is 24, in 64 bits.
        multi(&[good(0)])
            .u64(0, 0xaaaa_aaaa_aaaa_aaab)
            .refused(EINVAL)
            .why(Limit, "a count that wraps"),
        multi(&[good(0), entry(0, 9, 8)])
            .says_u64(0, 1)
            .then([written(8)])
            .why(Absent, "the second fails"),
        multi(&[good(0), entry(0, 9, 8), good(1)])
            .says_u64(0, 1)
            .then([written(8)])
            .why(Absent, "the second of three fails"),
        multi(&[entry(0, 9, 8), good(0)])
            .refused(EINVAL)
            .then([written(0)])
            .why(Absent, "the first fails"),
        multi(&[entry(0x300, 2, 9), good(1)])
            .refused(EINVAL)
            .then([written(0)])
            .why(Limit, "9 bytes"),
        multi(&[entry(0x300, 2, u32::MAX), good(1)]).refused(EINVAL).why(Limit, "4 GiB"),
        multi(&[entry(0x300, 2, 0), good(1)]).refused(EINVAL).why(Fields, "0 bytes"),
        multi(&[entry((1 << 20) - 7, 2, 8)]).refused(EINVAL).why(Limit, "over the end"),
        multi(&[entry(u64::MAX, 2, 8)]).refused(EINVAL).why(Limit, "at the last address"),
        multi(&[good(0), entry(u64::MAX, 2, 8)])
            .says_u64(0, 1)
            .why(Limit, "the second at the last address"),
        multi(&[entry(0, 1, 8)])
            .refused(EINVAL)
            .why(Absent, "a region that is not there"),
    ];
    let without = Row { given: Vec::new(), ..write_multi() };
    let without = without.over(Link::Foreign).refused(ENOSYS).then([written(0)]);
    rows.push(without.why(State, "where nobody agreed to it"));
    // As many as there is room for in one message.
    let most = (MOST / 24) as usize;
    rows.push(
        multi(&vec![good(0); most]).why(Limit, "as many as a message has room for"),
    );
    rows
}
