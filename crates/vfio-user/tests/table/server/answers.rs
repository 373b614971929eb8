//! What a client answers when the device reads and writes its memory by message.

use super::super::row::Defect::{
    Absent, Empty, Fields, Flags, Limit, Long, Reply, Short, StrayFds, Type, Valid,
};
use super::super::row::{Fd, Row};
use super::super::support::register;
use super::super::valid::{self, dma_map_bare, longs, register_read, register_write};
use super::super::wire::{ERROR, REPLY};

/// Numbers of errors as the toy keeps them.
const EIO: u64 = 5;
const EFAULT: u64 = 14;
const EPROTO: u64 = 71;

/// Where the device reads and writes: 8 bytes.
const AT: [u64; 2] = [0x80008, 8];

fn read_asked() -> [Row; 3] {
    let ask = register_write(register::READ, AT[1]);
    [dma_map_bare(), register_write(register::ADDRESS, AT[0]), ask]
}

fn write_asked() -> [Row; 3] {
    let ask = register_write(register::WRITE, AT[1]);
    [dma_map_bare(), register_write(register::ADDRESS, AT[0]), ask]
}

/// A good answer to a read: 0 address, 8 count, 16 data.
fn read() -> Row {
    let body = [longs(&AT), b"readdata".to_vec()].concat();
    Row::reply_to(11, longs(&AT), body).given(read_asked())
}

/// A good answer to a write: 0 address, 8 count.
fn write() -> Row {
    let asked = [longs(&AT), vec![0; 8]].concat();
    Row::reply_to(12, asked, longs(&AT)).given(write_asked())
}

fn done(row: Row) -> Row {
    row.then([register_read(register::DONE, 1), register_read(register::FAILED, 0)])
}

fn failed(row: Row, errno: u64) -> Row {
    row.then([register_read(register::DONE, 0), register_read(register::FAILED, errno)])
}

pub fn rows() -> Vec<Row> {
    let arrived = [valid::memory_read(0, 8).says(16, b"readdata")];
    let error = |row: Row| row.body(Vec::new()).flags(REPLY | ERROR);
    vec![
        done(read()).then(arrived).why(Valid, "the data, as an answer"),
        failed(read(), EPROTO).cut(1).why(Short, "a byte less than asked, as an answer"),
        failed(read(), EPROTO).cut(8).why(Short, "no data, as an answer"),
        failed(read(), EPROTO).cut(9).why(Short, "half of the fields, as an answer"),
        failed(read(), EPROTO).body(vec![]).why(Empty, "a header, as an answer"),
        done(read()).tail(&[1; 8]).why(Long, "padded data, as an answer"),
        failed(read(), EIO).u64(8, 7).why(Limit, "a count below, as an answer"),
        failed(read(), EPROTO).u64(8, 9).why(Limit, "a count above, as an answer"),
        failed(read(), EPROTO)
            .u64(8, u64::MAX)
            .why(Limit, "a count of 2^64, as an answer"),
        failed(error(read()), EFAULT).error(14).why(Valid, "EFAULT, as an answer"),
        failed(error(read()), EIO).why(Fields, "an error of no number, as an answer"),
        failed(error(read()), 0x7fff_ffff)
            .error(u32::MAX)
            .why(Limit, "an error of a huge number, as an answer"),
        failed(read(), EFAULT)
            .flags(REPLY | ERROR)
            .error(14)
            .why(Flags, "an error with data, as an answer"),
        read().off(1).ends(None).why(Absent, "another id, as an answer"),
        Row { command: 12, ..read() }.ends(None).why(Reply, "an answer as DMA_WRITE"),
        done(read()).fds(&[Fd::File]).why(StrayFds, "an answer with a descriptor"),
        done(write()).why(Valid, "an answer of 16 bytes"),
        done(write()).cut(4).why(Short, "a count of 4 bytes, as the text has it"),
        done(write()).body(vec![]).why(Empty, "a header, as QEMU answers"),
        done(write()).tail(&[0; 8]).why(Long, "a longer answer"),
        failed(error(write()), EFAULT).error(14).why(Valid, "EFAULT for a write"),
        write().off(1).ends(None).why(Absent, "another id for a write"),
        write().flags(REPLY | 2).why(Type, "a write answered with type 3").refused(22),
    ]
}
