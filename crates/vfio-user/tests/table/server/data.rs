//! MIG_DATA_READ and MIG_DATA_WRITE.

use super::super::errno::{EBADF, EINVAL, ENODEV};
use super::super::row::Defect::{
    Argsz, Fields, Limit, Long, NoReply, Short, State, Twice, Valid,
};
use super::super::row::{Link, Row};
use super::super::valid::{
    self, MOST, PRE_COPY, RESUMING, RUNNING, RUNNING_P2P, STOP, STOP_COPY, data_read,
    data_write, go, is_in, words,
};

/// A read of that many bytes.
fn read(size: u32) -> Row {
    data_read().u32(0, 8 + size).u32(4, size).answer(8 + size as usize).says_u32(4, size)
}

/// The same, but not the first of its session.
fn next(size: u32) -> Row {
    Row { given: Vec::new(), ..read(size) }
}

/// A write of that many bytes.
fn write(size: u32) -> Row {
    let bytes = [words(&[8 + size, size]), vec![9; size as usize]].concat();
    data_write().body(bytes)
}

fn more(size: u32) -> Row {
    Row { given: Vec::new(), ..write(size) }
}

/// Without what went before.
fn anew(row: Row) -> Row {
    Row { given: Vec::new(), ..row }
}

pub fn rows() -> Vec<Row> {
    [reads(), writes(), sessions()].concat()
}

fn reads() -> Vec<Row> {
    // The whole state is 1 MiB: 16 reads as long as possible.
    let all = || (0..16).map(|_| next(MOST));
    let end = |row: Row| row.says(0, &words(&[8, 0])).answer(8).says_u32(4, 0);
    vec![
        read(1).why(Valid, "one byte"),
        read(MOST).why(Limit, "as much as possible"),
        read(MOST + 1).refused(EINVAL).why(Limit, "one byte over the limit"),
        read(u32::MAX - 8).refused(EINVAL).why(Limit, "4 GiB"),
        data_read().u32(4, u32::MAX).refused(EINVAL).why(Limit, "a size that wraps"),
        read(0).refused(EINVAL).why(Fields, "nothing"),
        read(64)
            .u32(0, 71)
            .refused(EINVAL)
            .then([next(64)])
            .why(Argsz, "one byte too little room"),
        read(64).u32(0, 8).refused(EINVAL).why(Argsz, "room for the structure only"),
        read(64).u32(0, 0).refused(EINVAL).why(Argsz, "0"),
        read(64).u32(0, 4096).why(Argsz, "more room than needed"),
        read(64).silent().then([next(64)]).why(NoReply, "nobody gets those bytes"),
        end(next(64).given([go(STOP_COPY)]).given(all())).why(Valid, "behind the end"),
        next(MOST)
            .given([go(STOP_COPY), next(1)])
            .given((0..15).map(|_| next(MOST)))
            .answer(8 + MOST as usize - 1)
            .says_u32(4, MOST - 1)
            .why(Valid, "the last bytes, no more of them than there are"),
        next(MOST)
            .given([go(STOP_COPY), next(1)])
            .given((0..15).map(|_| next(MOST)))
            .over(Link::Foreign)
            .answer(8 + MOST as usize)
            .says_u32(4, MOST - 1)
            .says(8 + MOST as usize - 1, &[0])
            .why(Valid, "the last bytes, padded for those who do not know us"),
        next(64)
            .given([go(STOP_COPY)])
            .given(all())
            .over(Link::Foreign)
            .answer(72)
            .says_u32(4, 0)
            .why(Valid, "behind the end, padded"),
    ]
}

fn writes() -> Vec<Row> {
    vec![
        write(1).why(Valid, "one byte"),
        write(MOST).why(Limit, "as much as possible"),
        write(MOST + 1).refused(EINVAL).why(Limit, "one byte over the limit"),
        write(8).u32(4, 9).refused(EINVAL).why(Limit, "a size above its data"),
        write(8).u32(4, u32::MAX).refused(EINVAL).why(Limit, "a size of 4 GiB"),
        write(0).refused(EINVAL).why(Fields, "nothing"),
        write(8).u32(4, 0).refused(EINVAL).why(Fields, "a size of 0 with data"),
        write(8).u32(0, 15).refused(EINVAL).why(Argsz, "one below its data"),
        write(8).u32(0, 8).refused(EINVAL).why(Argsz, "that of the structure"),
        write(8).u32(0, 0).refused(EINVAL).why(Argsz, "0"),
        write(8).u32(0, 4096).why(Argsz, "more than needed"),
        write(8).cut(1).refused(EINVAL).why(Short, "one byte missing"),
        write(8).cut(8).refused(EINVAL).why(Short, "no data"),
        // The state is exactly 1 MiB, so 8 bytes of padding would be too many.
        write(MOST)
            .given((0..15).map(|_| more(MOST)))
            .tail(&[1; 8])
            .then([go(STOP), is_in(STOP), go(RUNNING)])
            .why(Long, "padding is no data, and the whole state is taken"),
        write(MOST)
            .given((0..15).map(|_| more(MOST)))
            .silent()
            .then([go(STOP), is_in(STOP), go(RUNNING)])
            .why(NoReply, "is carried out"),
        more(1)
            .given([go(RESUMING)])
            .given((0..16).map(|_| more(MOST)))
            .refused(EINVAL)
            .then([more(1).refused(EINVAL), go(STOP).refused(EINVAL), is_in(RESUMING)])
            .why(Limit, "more than the device has room for, which sticks"),
        write(MOST)
            .given((0..14).map(|_| more(MOST)))
            .then([go(STOP).refused(EINVAL), is_in(RESUMING)])
            .why(State, "a state that is truncated"),
    ]
}

fn sessions() -> Vec<Row> {
    let mut rows = vec![
        anew(read(64)).given([go(RESUMING)]).refused(EBADF).why(State, "in RESUMING"),
        anew(write(8)).given([go(STOP_COPY)]).refused(EBADF).why(State, "in STOP_COPY"),
        anew(write(8)).given([go(PRE_COPY)]).refused(EBADF).why(State, "in PRE_COPY"),
        read(64).given([go(STOP)]).refused(ENODEV).why(State, "after STOP_COPY"),
        read(64).given([valid::reset()]).refused(ENODEV).why(State, "after a reset"),
        write(8).given([valid::reset()]).refused(ENODEV).why(State, "after a reset"),
        read(64)
            .given([next(64), go(STOP), go(STOP_COPY)])
            .why(Twice, "in a second session"),
        anew(read(64))
            .given([go(PRE_COPY), next(64), go(STOP_COPY)])
            .why(Valid, "on from PRE_COPY"),
    ];
    for state in [STOP, RUNNING, RUNNING_P2P] {
        let row = anew(read(64)).given([go(state)]).refused(ENODEV);
        rows.push(row.why(State, format!("a read in state {state}")));
        let row = anew(write(8)).given([go(state)]).refused(ENODEV);
        rows.push(row.why(State, format!("a write in state {state}")));
    }
    rows
}
