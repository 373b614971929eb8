//! One valid message of each command, with the answer to it: where every row starts.
//!
//! The numbers in comments are the offsets of the fields, for those who change them.

use super::row::{Fd, Row};

/// The device: a toy with registers (region 0), memory (region 2, 1 MiB, of which 64 KiB
/// can be mapped), a ROM (region 6, 4096 bytes of 0x66), config space (region 7, 256 bytes
/// of 0x77), and INTx, 4 vectors of MSI, 40 of MSI-X, ERR and REQ.
pub const REGIONS: u32 = 9;
pub const IRQS: u32 = 5;
pub const MSIX: u32 = 2;
pub const VECTORS: u32 = 40;

/// What the server takes as data in one message, in bytes.
pub const MOST: u32 = 64 << 10;
/// The longest message that it takes: header, data, fixed fields.
pub const LONGEST: u32 = 16 + MOST + (8 << 10);

/// Flags of `SET_IRQS`.
pub const NONE: u32 = 1;
pub const BOOL: u32 = 2;
pub const EVENTFD: u32 = 4;
pub const MASK: u32 = 8;
pub const UNMASK: u32 = 16;
pub const TRIGGER: u32 = 32;

/// Flags of `DEVICE_FEATURE`.
pub const GET: u32 = 1 << 16;
pub const SET: u32 = 1 << 17;
pub const PROBE: u32 = 1 << 18;

/// Migration states.
pub const STOP: u32 = 1;
pub const RUNNING: u32 = 2;
pub const STOP_COPY: u32 = 3;
pub const RESUMING: u32 = 4;
pub const RUNNING_P2P: u32 = 5;
pub const PRE_COPY: u32 = 6;
pub const PRE_COPY_P2P: u32 = 7;

/// Fields of 32 bits, one after the other.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Fields of 64 bits, one after the other.
pub fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

/// 0 major, 2 minor, 4 the text and a NUL.
pub fn version() -> Row {
    version_saying(
        r#"{"capabilities":{"max_msg_fds":16,"write_multiple":true,
            "migration":{"pgsize":4096},"vfio_migrate":{"version":1}}}"#,
    )
}

/// VERSION with that text.
pub fn version_saying(text: &str) -> Row {
    let body = [&[0, 0, 0, 0], text.as_bytes(), &[0]].concat();
    Row::new(1, body).answered().says(0, &[0; 4])
}

/// 0 argsz, 4 flags, 8 offset, 16 address, 24 size.
pub fn dma_map() -> Row {
    let body = [words(&[32, 3]), longs(&[4096, 0x10000, 8192])].concat();
    Row::new(2, body).fds(&[Fd::Memory])
}

/// A mapping without a descriptor, elsewhere.
pub fn dma_map_bare() -> Row {
    dma_map().u64(8, 0).u64(16, 0x80000).fds(&[])
}

/// 0 argsz, 4 flags, 8 address, 16 size; what [`dma_map`] mapped.
pub fn dma_unmap() -> Row {
    let body = [words(&[24, 0]), longs(&[0x10000, 8192])].concat();
    Row::new(3, body.clone()).answer(24).says(8, &body[8..])
}

/// 0 argsz, 4 flags, 8 regions, 12 irqs.
pub fn device_info() -> Row {
    let answer = words(&[16, 3, REGIONS, IRQS]);
    Row::new(4, words(&[16, 0, 0, 0])).answer(16).says(0, &answer)
}

/// 0 argsz, 4 flags, 8 index, 12 `cap_offset`, 16 size, 24 offset; of the registers.
pub fn region_info() -> Row {
    let answer = [words(&[32, 3, 0, 0]), longs(&[4096, 0])].concat();
    Row::new(5, [words(&[32, 0, 0, 0]), longs(&[0, 0])].concat())
        .answer(32)
        .says(0, &answer)
}

/// 0 argsz, 4 flags, 8 index, 12 count; there are none.
pub fn region_io_fds() -> Row {
    Row::new(6, words(&[16, 0, 0, 0])).answer(16).says(0, &words(&[16, 0, 0, 0]))
}

/// 0 argsz, 4 flags, 8 index, 12 count.
pub fn irq_info() -> Row {
    Row::new(7, words(&[16, 0, MSIX, 0]))
        .answer(16)
        .says_u32(0, 16)
        .says(8, &words(&[MSIX, VECTORS]))
}

/// 0 argsz, 4 flags, 8 index, 12 start, 16 count; binds vectors 3 and 4.
pub fn set_irqs() -> Row {
    Row::new(8, words(&[20, EVENTFD | TRIGGER, MSIX, 3, 2]))
        .fds(&[Fd::Event(0), Fd::Event(1)])
}

/// `SET_IRQS` of vectors 3 and 4 without descriptors.
pub fn act(flags: u32) -> Row {
    set_irqs().u32(4, flags).fds(&[])
}

/// 0 offset, 8 region, 12 count; of config space.
pub fn region_read() -> Row {
    Row::new(9, [longs(&[0]), words(&[7, 4])].concat())
        .answer(20)
        .says(8, &[&words(&[7, 4])[..], &[0x77; 4]].concat())
}

/// A read of the device's memory, where all is 0 after a reset.
pub fn memory_read(offset: u64, count: u32) -> Row {
    region_read().u64(0, offset).u32(8, 2).u32(12, count).answer(16 + count as usize)
}

/// 0 offset, 8 region, 12 count, 16 data; of the device's memory.
pub fn region_write() -> Row {
    memory_write(0x200, b"thisdata")
}

pub fn memory_write(offset: u64, data: &[u8]) -> Row {
    let body = [&longs(&[offset])[..], &words(&[2, data.len() as u32]), data].concat();
    Row::new(10, body.clone()).answer(16).says(0, &body[..16])
}

/// A write of 8 bytes to a register.
pub fn register_write(register: u64, value: u64) -> Row {
    memory_write(register, &value.to_ne_bytes()).u32(8, 0).says_u32(8, 0)
}

/// A read of 8 bytes of a register.
pub fn register_read(register: u64, value: u64) -> Row {
    memory_read(register, 8).u32(8, 0).says_u64(16, value)
}

/// 0 address, 8 count. The server's to ask.
pub fn dma_read() -> Row {
    Row::new(11, longs(&[0x10000, 8])).refused(super::errno::EINVAL)
}

/// 0 address, 8 count, 16 data. The server's to ask.
pub fn dma_write() -> Row {
    Row::new(12, [longs(&[0x10000, 8]), vec![1; 8]].concat())
        .refused(super::errno::EINVAL)
}

pub fn reset() -> Row {
    Row::new(13, Vec::new())
}

/// A command that nobody has, with a body.
pub fn unknown(command: u16) -> Row {
    Row::new(command, vec![0; 24]).refused(super::errno::ENOSYS)
}

/// 0 count, then for each write 24 bytes: offset, region, count, data. Two of them.
pub fn write_multi() -> Row {
    let entry = |offset: u64, data: &[u8; 8]| {
        [&longs(&[offset])[..], &words(&[2, 8]), data].concat()
    };
    let body = [longs(&[2]), entry(0x300, b"firstone"), entry(0x308, b"theother")];
    Row::new(15, body.concat()).answer(8).says_u64(0, 2)
}

/// 0 argsz, 4 flags, 8 data.
pub fn feature(index: u32, operation: u32, data: &[u8]) -> Row {
    let argsz = 8 + data.len() as u32;
    Row::new(16, [&words(&[argsz, index | operation])[..], data].concat()).answered()
}

/// Asks for the migration flags: every one there is.
pub fn migration() -> Row {
    feature(1, GET, &[]).u32(0, 16).answer(16).says(4, &words(&[1 | GET])).says_u64(8, 7)
}

/// Goes to a state.
pub fn go(state: u32) -> Row {
    let data = words(&[state, u32::MAX]);
    feature(2, SET, &data).answer(16).says(0, &words(&[16, 2 | SET])).says(8, &data)
}

/// The state is that one.
pub fn is_in(state: u32) -> Row {
    feature(2, GET, &[]).u32(0, 16).answer(16).says_u32(8, state)
}

/// Starts the log of everything, with pages of 4 KiB.
pub fn log_start() -> Row {
    let data = [longs(&[4096]), words(&[0, 0])].concat();
    feature(6, SET, &data).answer(24).says(8, &data)
}

pub fn log_stop() -> Row {
    feature(7, SET, &[]).answer(8)
}

/// Asks for 64 pages from address 0x10000 on. 8 address, 16 length, 24 page size.
pub fn log_report() -> Row {
    let data = longs(&[0x10000, 64 * 4096, 4096]);
    feature(8, GET, &data).u32(0, 40).answer(40).says(8, &data).says_u64(32, 0)
}

/// 0 argsz, 4 size; the first 64 bytes, which are 0.
pub fn data_read() -> Row {
    Row::new(17, words(&[72, 64]))
        .given([go(STOP_COPY)])
        .answer(72)
        .says(0, &words(&[72, 64]))
        .says(8, &[0; 64])
}

/// 0 argsz, 4 size, 8 data.
pub fn data_write() -> Row {
    Row::new(18, [words(&[16, 8]), vec![9; 8]].concat()).given([go(RESUMING)])
}
