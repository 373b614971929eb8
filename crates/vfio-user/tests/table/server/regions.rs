//! GET_INFO, GET_REGION_INFO, GET_REGION_IO_FDS, REGION_READ and REGION_WRITE.

use super::super::errno::EINVAL;
use super::super::row::Defect::{
    Absent, Argsz, Fields, Limit, Long, NoReply, Short, State, Valid,
};
use super::super::row::Row;
use super::super::valid::{
    self, MOST, device_info, go, longs, memory_read, memory_write, region_info,
    region_io_fds, region_read, region_write, words,
};

/// A region's size and flags, without capabilities.
fn plain(index: u32, flags: u32, size: u64) -> Row {
    let fields = [words(&[32, flags, index, 0]), longs(&[size, 0])].concat();
    region_info().u32(8, index).says(0, &fields)
}

/// Region 2, with room for `argsz` bytes. Its capability is 32 bytes long.
fn window(argsz: u32) -> Row {
    region_info().u32(0, argsz).u32(8, 2).says_u32(0, 64).says_u64(16, 1 << 20)
}

pub fn rows() -> Vec<Row> {
    let mut rows = infos();
    rows.extend(accesses());
    rows
}

fn infos() -> Vec<Row> {
    // One area: id 1, version 1, no next; one of 64 KiB at 0.
    let capability = [words(&[1 | 1 << 16, 0, 1, 0]), longs(&[0, 64 << 10])].concat();
    let whole = |row: Row| row.answer(64).says(32, &capability).brings(1);
    vec![
        device_info().u32(0, 15).refused(EINVAL).why(Argsz, "15"),
        device_info().u32(0, 0).refused(EINVAL).why(Argsz, "0"),
        device_info().u32(0, u32::MAX).why(Argsz, "4 GiB"),
        device_info().u32(8, 77).u32(12, 77).why(Fields, "what only an answer has"),
        plain(7, 3, 256).why(Valid, "config space"),
        plain(6, 1, 4096).why(Valid, "the ROM, which is read-only"),
        plain(1, 0, 0).why(Absent, "a BAR that is not there"),
        plain(8, 0, 0).why(Absent, "no VGA"),
        region_info().u32(8, 9).refused(EINVAL).why(Absent, "region 9"),
        region_info()
            .u32(8, u32::MAX)
            .refused(EINVAL)
            .why(Absent, "the last index of all"),
        region_info().u32(0, 31).refused(EINVAL).why(Argsz, "31"),
        region_info().u32(0, 0).refused(EINVAL).why(Argsz, "0"),
        window(32)
            .answer(32)
            .says_u32(12, 0)
            .why(Argsz, "no room for capabilities: the size of all"),
        window(63).answer(32).says_u32(12, 0).why(Argsz, "room for half a capability"),
        whole(window(64))
            .says_u32(12, 32)
            .why(Valid, "with its capability and a descriptor"),
        whole(window(4096)).why(Valid, "with more room than needed"),
        // libvfio-user's client sends as many bytes as argsz says.
        whole(window(80).tail(&[0; 48])).why(Long, "a request of 80 bytes"),
        region_io_fds().u32(8, 2).says_u32(8, 2).why(Valid, "of the memory"),
        region_io_fds().u32(0, 4096).why(Argsz, "4096"),
        region_io_fds().u32(0, 15).refused(EINVAL).why(Argsz, "15"),
        region_io_fds().u32(0, 0).refused(EINVAL).why(Argsz, "0"),
        region_io_fds().u32(4, 1).refused(EINVAL).why(Fields, "flags"),
        region_io_fds().u32(8, 9).refused(EINVAL).why(Absent, "of region 9"),
        region_io_fds().u32(12, 3).refused(EINVAL).why(Fields, "a count in the request"),
    ]
}

fn accesses() -> Vec<Row> {
    let stale = || memory_read(0x200, 8).says(16, b"thisdata");
    let empty = || memory_read(0x200, 8).says_u64(16, 0);
    let config = || region_read().answer(20);
    let mut rows = vec![
        region_write().then([stale()]).why(Valid, "is there"),
        region_write().silent().then([stale()]).why(NoReply, "is carried out"),
        region_write().tail(&[1; 100]).then([stale()]).why(Long, "data behind the data"),
        region_write().cut(1).then([empty()]).refused(EINVAL).why(Short, "does nothing"),
        region_write().cut(8).then([empty()]).refused(EINVAL).why(Short, "no data"),
        region_write()
            .u32(12, 9)
            .then([empty()])
            .refused(EINVAL)
            .why(Limit, "a count above its data"),
        region_write().u32(12, u32::MAX).refused(EINVAL).why(Limit, "a count of 4 GiB"),
        region_write().u32(12, 0).refused(EINVAL).why(Limit, "a count of 0"),
        memory_write((1 << 20) - 8, &[1; 8]).why(Valid, "at the end"),
        memory_write((1 << 20) - 7, &[1; 8]).refused(EINVAL).why(Limit, "over the end"),
        memory_write(1 << 20, &[1; 8]).refused(EINVAL).why(Limit, "behind the end"),
        memory_write(u64::MAX, &[1; 8]).refused(EINVAL).why(Limit, "at the last address"),
        memory_write(0, &vec![1; MOST as usize]).why(Limit, "as long as possible"),
        memory_write(0, &vec![1; MOST as usize + 1])
            .refused(EINVAL)
            .why(Limit, "one byte over the limit"),
        region_write()
            .u32(8, 1)
            .refused(EINVAL)
            .why(Absent, "a region that is not there"),
        region_write().u32(8, 9).refused(EINVAL).why(Absent, "region 9"),
        region_write()
            .u32(8, u32::MAX)
            .refused(EINVAL)
            .why(Absent, "the last index of all"),
        memory_read(0, MOST).why(Limit, "as long as possible"),
        memory_read(0, MOST + 1).refused(EINVAL).why(Limit, "one byte over the limit"),
        memory_read(0, u32::MAX).refused(EINVAL).why(Limit, "a count of 4 GiB"),
        memory_read(0, 0).refused(EINVAL).why(Limit, "a count of 0"),
        memory_read((1 << 20) - 8, 8).why(Valid, "at the end"),
        memory_read((1 << 20) - 7, 8).refused(EINVAL).why(Limit, "over the end"),
        memory_read(u64::MAX, 1).refused(EINVAL).why(Limit, "at the last address"),
        memory_read(u64::MAX - 3, 8).refused(EINVAL).why(Limit, "wrapping"),
        region_read()
            .u32(8, 6)
            .answer(20)
            .says(8, &words(&[6]))
            .says(16, &[0x66; 4])
            .why(Valid, "the ROM"),
        region_write().u32(8, 6).refused(EINVAL).why(Fields, "to the ROM"),
        region_read()
            .u64(0, 253)
            .refused(EINVAL)
            .why(Limit, "over the end of config space"),
        region_read().u64(0, 4096).refused(EINVAL).why(Limit, "behind config space"),
        region_read().u32(8, 3).refused(EINVAL).why(Absent, "a region that is not there"),
        region_read().u32(8, 9).refused(EINVAL).why(Absent, "region 9"),
        region_read()
            .u32(8, u32::MAX)
            .refused(EINVAL)
            .why(Absent, "the last index of all"),
        memory_read(0, 8)
            .u32(8, 0)
            .refused(EINVAL)
            .why(Absent, "a register that is not there"),
    ];
    for state in [valid::STOP, valid::STOP_COPY, valid::RESUMING, valid::PRE_COPY] {
        let row = config().given([go(state)]);
        rows.push(row.why(State, format!("config space in state {state}")));
    }
    for state in [valid::RUNNING_P2P, valid::PRE_COPY_P2P] {
        let row = region_write().given([go(state)]).then([stale()]);
        rows.push(row.why(State, format!("memory in state {state}")));
    }
    rows
}
