//! DEVICE_FEATURE: states, the DMA log, probes, and our additions.

use super::super::errno::{E2BIG, EINVAL, ENOTTY, EOVERFLOW};
use super::super::row::Defect::{
    Absent, Argsz, Fields, Limit, Long, NoReply, Short, State, Twice, Valid,
};
use super::super::row::{Link, Row};
use super::super::support::register;
use super::super::valid::{
    self, GET, PRE_COPY, PRE_COPY_P2P, PROBE, RESUMING, RUNNING, RUNNING_P2P, SET, STOP,
    STOP_COPY, feature, go, is_in, log_report, log_start, log_stop, longs, migration,
    words,
};

/// Our additions.
const PRECOPY_INFO: u32 = 0xff00;
const IDENTITY: u32 = 0xff01;
const DIGEST: u32 = 0xff02;

pub fn rows() -> Vec<Row> {
    [general(), states(), logs(), additions()].concat()
}

fn general() -> Vec<Row> {
    let mut rows = vec![
        migration().u32(0, 4096).why(Argsz, "more than enough"),
        migration().u32(0, 15).refused(EINVAL).why(Argsz, "the flags with 15"),
        migration().u32(0, 8).refused(EINVAL).why(Argsz, "no room for the flags"),
        migration().u32(0, 7).refused(EINVAL).why(Argsz, "no room for the header"),
        migration().u32(0, 0).refused(EINVAL).why(Argsz, "the flags with 0"),
        migration().u32(4, 1).refused(EINVAL).why(Fields, "no operation"),
        migration().u32(4, 1 | GET | SET).refused(EINVAL).why(Fields, "GET and SET"),
        migration()
            .u32(4, 1 | SET)
            .refused(EINVAL)
            .why(Fields, "SET of what is only read"),
        migration()
            .u32(4, 1 | GET | 1 << 19)
            .refused(EINVAL)
            .why(Fields, "an unknown flag"),
        migration()
            .u32(4, 1 | GET | 1 << 31)
            .refused(EINVAL)
            .why(Fields, "the highest flag"),
    ];
    for index in [0, 3, 4, 5, 10, 11, 13, 0x7fff, 0xfeff, 0xffff] {
        for (operation, name) in [(PROBE, "PROBE"), (GET, "GET"), (SET, "SET")] {
            let row = feature(index, operation, &[0; 24]).refused(ENOTTY);
            rows.push(row.why(Absent, format!("{name} of feature {index:#x}")));
        }
    }
    for (index, allowed) in [(1, GET), (2, GET | SET), (6, SET), (7, SET), (8, GET)] {
        let probe = |operation: u32| feature(index, PROBE | operation, &[]).answer(8);
        rows.push(probe(0).why(Valid, format!("PROBE of feature {index}")));
        for (operation, name) in [(GET, "GET"), (SET, "SET")] {
            let what = format!("PROBE and {name} of feature {index}");
            if allowed & operation == 0 {
                rows.push(probe(operation).refused(EINVAL).why(Fields, what));
            } else {
                rows.push(probe(operation).why(Valid, what));
            }
        }
        let row = probe(0).u32(0, 7).refused(EINVAL);
        rows.push(row.why(Argsz, format!("PROBE of feature {index} with 7")));
    }
    rows
}

fn states() -> Vec<Row> {
    let mut rows = vec![
        go(STOP).then([is_in(STOP)]).why(Valid, "to STOP"),
        go(RUNNING).why(Twice, "to RUNNING, where it is"),
        go(STOP).given([go(STOP)]).why(Twice, "to STOP, where it is"),
        go(STOP).u32(12, 77).says_u32(12, 77).why(Valid, "the descriptor is echoed"),
        go(STOP).silent().then([is_in(STOP)]).why(NoReply, "is carried out"),
        go(STOP).tail(&[0; 40]).then([is_in(STOP)]).why(Long, "a request that is padded"),
        go(STOP)
            .u32(0, 15)
            .refused(EINVAL)
            .then([is_in(RUNNING)])
            .why(Argsz, "to STOP with 15"),
        go(STOP)
            .u32(0, 8)
            .refused(EINVAL)
            .then([is_in(RUNNING)])
            .why(Argsz, "to STOP with 8"),
        go(STOP)
            .cut(1)
            .refused(EINVAL)
            .then([is_in(RUNNING)])
            .why(Short, "half a descriptor"),
        go(STOP)
            .cut(4)
            .refused(EINVAL)
            .then([is_in(RUNNING)])
            .why(Short, "no descriptor"),
        go(STOP).cut(8).refused(EINVAL).then([is_in(RUNNING)]).why(Short, "no state"),
        go(0).refused(EINVAL).then([is_in(RUNNING)]).why(Fields, "to ERROR"),
        go(8).refused(EINVAL).then([is_in(RUNNING)]).why(Limit, "to state 8"),
        go(u32::MAX)
            .refused(EINVAL)
            .then([is_in(RUNNING)])
            .why(Limit, "to the last state of all"),
        is_in(RUNNING)
            .says(12, &[255; 4])
            .why(Valid, "where it is, without a descriptor"),
        is_in(RUNNING).u32(0, 15).refused(EINVAL).why(Argsz, "where it is, 15"),
        go(STOP)
            .given([go(RESUMING)])
            .refused(EINVAL)
            .then([is_in(RESUMING), valid::reset(), is_in(RUNNING)])
            .why(State, "out of RESUMING with nothing loaded"),
        go(PRE_COPY)
            .given([go(STOP_COPY)])
            .refused(EINVAL)
            .then([is_in(STOP_COPY)])
            .why(State, "back to PRE_COPY"),
    ];
    for target in [STOP, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P] {
        let row = valid::reset().given([go(target)]).then([is_in(RUNNING)]);
        rows.push(row.why(State, format!("a reset in state {target}")));
        let row = go(target).then([is_in(target)]);
        rows.push(row.why(State, format!("to state {target}")));
    }
    rows
}

fn logs() -> Vec<Row> {
    /// 8 page size, 16 count, 20 reserved, 24 ranges of 16 bytes.
    fn ranges(ranges: &[(u64, u64)]) -> Row {
        let fixed = [longs(&[4096]), words(&[ranges.len() as u32, 0])].concat();
        let all = ranges.iter().flat_map(|(start, length)| longs(&[*start, *length]));
        let data: Vec<u8> = fixed.into_iter().chain(all).collect();
        feature(6, SET, &data).answer(8 + data.len()).says(8, &data)
    }
    let refused =
        |row: Row, errno| row.refused(errno).then([log_report().refused(EINVAL)]);
    let written = [
        valid::dma_map(),
        valid::register_write(register::ADDRESS, 0x11000),
        valid::register_write(register::WRITE, 8),
    ];
    let on = || log_report().given([log_start()]);
    let many: Vec<(u64, u64)> = (0..257).map(|n| (n << 20, 4096)).collect();
    vec![
        on().given(written.clone())
            .says_u64(32, 2)
            .then([log_report()])
            .why(Valid, "once"),
        log_report()
            .given([ranges(&[(0x11000, 4096)])])
            .given(written.clone())
            .says_u64(32, 2)
            .why(Valid, "of what is logged"),
        log_report()
            .given([ranges(&[(0x10000, 4096)])])
            .given(written.clone())
            .why(Valid, "of what is not logged"),
        on().given(written)
            .u64(24, 8192)
            .says_u64(24, 8192)
            .says_u64(32, 1)
            .why(Valid, "in larger pages"),
        log_start()
            .given([log_start()])
            .refused(EINVAL)
            .then([log_report()])
            .why(Twice, "started twice"),
        log_start()
            .given([log_start(), log_stop()])
            .why(Twice, "started, stopped, started"),
        log_stop().why(Twice, "stopped, where it does not run"),
        log_stop()
            .given([log_start()])
            .then([log_report().refused(EINVAL)])
            .why(Valid, "stopped"),
        log_stop()
            .given([log_start()])
            .tail(&[0; 16])
            .answer(8)
            .why(Long, "stopped, with data"),
        log_start().silent().then([log_report()]).why(NoReply, "started"),
        log_start()
            .u64(8, 64 << 20)
            .says_u64(8, 2 << 20)
            .why(Limit, "pages of 64 MiB: 2 MiB"),
        log_start().u64(8, 512).says_u64(8, 4096).why(Limit, "pages of 512 bytes: 4 KiB"),
        refused(log_start().u64(8, 0), EINVAL).why(Fields, "pages of 0 bytes"),
        refused(log_start().u64(8, 4097), EINVAL).why(Fields, "odd pages"),
        refused(log_start().u32(0, 23), EINVAL).why(Argsz, "a start with 23"),
        refused(log_start().u32(0, 8), EINVAL).why(Argsz, "a start with 8"),
        refused(log_start().cut(16), EINVAL).why(Short, "without its structure"),
        refused(log_start().u32(16, 1), EINVAL)
            .why(Limit, "one range, of which nothing came"),
        refused(ranges(&[(0, 4096), (8192, 4096)]).cut(1), EINVAL)
            .why(Short, "one range and a half"),
        refused(log_start().u32(16, u32::MAX), E2BIG).why(Limit, "4 billion ranges"),
        refused(ranges(&many), E2BIG).why(Limit, "257 ranges"),
        ranges(&many[..256]).why(Limit, "256 ranges"),
        refused(ranges(&[(0, 4096), (0, 4096)]), EINVAL).why(Fields, "one range twice"),
        refused(ranges(&[(0, 8192), (4096, 4096)]), EINVAL)
            .why(Fields, "ranges that overlap"),
        refused(ranges(&[(1, 4096)]), EINVAL).why(Fields, "a range that is not aligned"),
        refused(ranges(&[(0, 0)]), EINVAL).why(Fields, "an empty range"),
        refused(ranges(&[(!4095, 8192)]), EOVERFLOW).why(Limit, "a range that wraps"),
        log_report().refused(EINVAL).why(State, "while nothing is logged"),
        on().u32(0, 39).refused(EINVAL).why(Argsz, "no room for the bits"),
        on().u32(0, 32).refused(EINVAL).why(Argsz, "room for the structure only"),
        on().u32(0, 31).refused(EINVAL).why(Argsz, "no room for the structure"),
        on().u32(0, 8).refused(EINVAL).why(Argsz, "a report with 8"),
        on().cut(1).refused(EINVAL).why(Short, "23 bytes of 24"),
        on().cut(24).refused(EINVAL).why(Short, "no structure"),
        on().u64(16, 0).refused(EINVAL).why(Fields, "of an empty range"),
        on().u64(24, 0).refused(EINVAL).why(Fields, "in pages of 0 bytes"),
        on().u64(24, 2048).refused(EINVAL).why(Fields, "in pages of 2 KiB"),
        on().u64(24, 5000).refused(EINVAL).why(Fields, "in odd pages"),
        on().u64(8, u64::MAX - 4095)
            .refused(EOVERFLOW)
            .why(Limit, "of a range that wraps"),
        on().u64(16, 65 * 4096)
            .refused(EINVAL)
            .why(Limit, "one page more than there is room for"),
        on().u32(0, u32::MAX)
            .u64(16, 1 << 50)
            .refused(EINVAL)
            .why(Limit, "of 1 PiB, with room for 4 GiB"),
        on().u64(16, 4096).says_u64(16, 4096).why(Valid, "of one page: a whole word"),
    ]
}

fn additions() -> Vec<Row> {
    let info = || feature(PRECOPY_INFO, GET, &[]).u32(0, 32);
    let identity = || feature(IDENTITY, GET, &[]).u32(0, 80);
    let digest = || feature(DIGEST, GET, &[0; 16]).u32(0, 8192);
    let reinit = || feature(12, SET, &[]).answer(8);
    let size = || feature(9, GET, &[]).u32(0, 16).answer(16).says_u64(8, 1 << 20);
    let mut rows = vec![
        size().why(Valid, "MIG_DATA_SIZE"),
        size().u32(0, 15).refused(EINVAL).why(Argsz, "MIG_DATA_SIZE with 15"),
        size().u32(4, 9 | SET).refused(EINVAL).why(Fields, "SET of MIG_DATA_SIZE"),
        reinit().why(Valid, "PRECOPY_INFOv2"),
        reinit().u32(4, 12 | GET).refused(EINVAL).why(Fields, "GET of PRECOPY_INFOv2"),
        info()
            .given([go(PRE_COPY)])
            .answer(32)
            .says_u32(8, 0)
            .says_u64(16, 1 << 20)
            .why(Valid, "PRECOPY_INFO"),
        info()
            .given([reinit(), go(PRE_COPY)])
            .answer(32)
            .says_u32(8, 1)
            .why(Valid, "PRECOPY_INFO, that knows REINIT"),
        info()
            .given([go(PRE_COPY)])
            .u32(0, 31)
            .refused(EINVAL)
            .why(Argsz, "PRECOPY_INFO with 31"),
        info().refused(EINVAL).why(State, "PRECOPY_INFO in RUNNING"),
        info()
            .given([go(STOP_COPY)])
            .refused(EINVAL)
            .why(State, "PRECOPY_INFO in STOP_COPY"),
        info()
            .u32(4, PRECOPY_INFO | SET)
            .refused(EINVAL)
            .why(Fields, "SET of PRECOPY_INFO"),
        // data version 7, order 1, 3 bytes of name
        identity()
            .answer(19)
            .says(8, &[7, 0, 0, 0, 1, 0, 3, 0])
            .says(16, b"toy")
            .why(Valid, "IDENTITY"),
        identity().u32(0, 18).refused(EINVAL).why(Argsz, "IDENTITY with 18"),
        identity().u32(4, IDENTITY | SET).refused(EINVAL).why(Fields, "SET of IDENTITY"),
        digest().answered().says_u64(8, 0).why(Valid, "DIGEST"),
        digest().u32(0, 24).refused(EINVAL).why(Argsz, "DIGEST with room for no byte"),
        digest().u32(0, 23).refused(EINVAL).why(Argsz, "DIGEST with 23"),
        digest().cut(1).refused(EINVAL).why(Short, "DIGEST with 15 bytes"),
        digest().cut(16).refused(EINVAL).why(Short, "DIGEST without its structure"),
        digest().u64(8, 1 << 40).refused(EINVAL).why(Limit, "DIGEST from behind its end"),
        digest()
            .u64(8, u64::MAX)
            .refused(EINVAL)
            .why(Limit, "DIGEST from the end of all"),
        // A session that is not there: PRE_COPY was left by a reset.
        info()
            .given([go(PRE_COPY), valid::reset()])
            .refused(EINVAL)
            .why(State, "PRECOPY_INFO after a reset"),
    ];
    for index in [9, 12, PRECOPY_INFO, IDENTITY, DIGEST] {
        let probe = feature(index, PROBE, &[]).answer(8);
        rows.push(probe.clone().why(Valid, format!("PROBE of feature {index:#x}")));
        let row = probe.over(Link::Foreign).refused(ENOTTY);
        rows.push(
            row.why(State, format!("PROBE of feature {index:#x}, without agreement")),
        );
        for (operation, name) in [(GET, "GET"), (SET, "SET")] {
            let row =
                feature(index, operation, &[0; 24]).over(Link::Foreign).refused(ENOTTY);
            rows.push(row.why(State, format!("{name} of {index:#x}, without agreement")));
        }
    }
    rows
}
