//! Every command with every general defect.

use super::super::errno::{EBADF, EEXIST, EINVAL, EMSGSIZE, ENODEV, ENOENT};
use super::super::row::Defect::{
    BeforeVersion, Empty, Flags, Long, ManyFds, NoReply, Reply, Short, Size, State,
    StrayFds, Twice, Type, Valid,
};
use super::super::row::{Fd, Link, Row};
use super::super::valid::{self, LONGEST, PRE_COPY, RESUMING, STOP, STOP_COPY};
use super::super::wire::{ERROR, REPLY};

/// As the valid message is answered.
const SAME: i32 = 0;
/// The defect does not exist here.
const NONE: i32 = -1;

/// A command: one byte short, without a body, with 16 descriptors that nobody asked
/// for, sent twice; then in the states STOP, STOP_COPY, RESUMING and PRE_COPY. In a cell
/// is the errno.
type Line = (&'static str, fn() -> Row, [i32; 8]);

#[rustfmt::skip]
const MATRIX: [Line; 22] = [
    //                                           short   empty   16 fds  twice    STOP    S_COPY  RESUM   PRE_C
    ("DMA_MAP",       valid::dma_map,           [EINVAL, EINVAL, EINVAL, EEXIST,  SAME,   SAME,   SAME,   SAME]),
    ("DMA_UNMAP",     unmap,                    [EINVAL, EINVAL, SAME,   ENOENT,  SAME,   SAME,   SAME,   SAME]),
    ("GET_INFO",      valid::device_info,       [EINVAL, EINVAL, SAME,   SAME,    SAME,   SAME,   SAME,   SAME]),
    ("REGION_INFO",   valid::region_info,       [EINVAL, EINVAL, SAME,   SAME,    SAME,   SAME,   SAME,   SAME]),
    ("REGION_IO_FDS", valid::region_io_fds,     [EINVAL, EINVAL, SAME,   SAME,    SAME,   SAME,   SAME,   SAME]),
    ("IRQ_INFO",      valid::irq_info,          [EINVAL, EINVAL, SAME,   SAME,    SAME,   SAME,   SAME,   SAME]),
    ("SET_IRQS",      valid::set_irqs,          [EINVAL, EINVAL, EINVAL, SAME,    SAME,   SAME,   SAME,   SAME]),
    ("REGION_READ",   memory_read,              [EINVAL, EINVAL, SAME,   SAME,    EINVAL, EINVAL, EINVAL, SAME]),
    ("REGION_WRITE",  valid::region_write,      [EINVAL, EINVAL, SAME,   SAME,    EINVAL, EINVAL, EINVAL, SAME]),
    ("DMA_READ",      valid::dma_read,          [EINVAL, EINVAL, SAME,   SAME,    SAME,   SAME,   SAME,   SAME]),
    ("DMA_WRITE",     valid::dma_write,         [EINVAL, EINVAL, SAME,   SAME,    SAME,   SAME,   SAME,   SAME]),
    ("RESET",         valid::reset,             [NONE,   NONE,   SAME,   SAME,    SAME,   SAME,   SAME,   SAME]),
    ("WRITE_MULTI",   valid::write_multi,       [EINVAL, EINVAL, SAME,   SAME,    EINVAL, EINVAL, EINVAL, SAME]),
    ("FEATURE GET",   valid::migration,         [EINVAL, EINVAL, SAME,   SAME,    SAME,   SAME,   SAME,   SAME]),
    ("FEATURE SET",   start_log,                [EINVAL, EINVAL, SAME,   EINVAL,  SAME,   SAME,   SAME,   SAME]),
    ("DATA_READ",     valid::data_read,         [EINVAL, EINVAL, SAME,   SAME,    ENODEV, SAME,   EBADF,  SAME]),
    ("DATA_WRITE",    valid::data_write,        [EINVAL, EINVAL, SAME,   SAME,    ENODEV, EBADF,  SAME,   EBADF]),
    ("command 0",     || valid::unknown(0),     [SAME,   SAME,   SAME,   SAME,    SAME,   SAME,   SAME,   SAME]),
    ("command 14",    || valid::unknown(14),    [SAME,   SAME,   SAME,   SAME,    SAME,   SAME,   SAME,   SAME]),
    ("command 19",    || valid::unknown(19),    [SAME,   SAME,   SAME,   SAME,    SAME,   SAME,   SAME,   SAME]),
    ("command 999",   || valid::unknown(999),   [SAME,   SAME,   SAME,   SAME,    SAME,   SAME,   SAME,   SAME]),
    ("command 65535", || valid::unknown(65535), [SAME,   SAME,   SAME,   SAME,    SAME,   SAME,   SAME,   SAME]),
];

fn unmap() -> Row {
    valid::dma_unmap().given([valid::dma_map()])
}

fn memory_read() -> Row {
    valid::memory_read(0, 8).says_u64(16, 0)
}

fn start_log() -> Row {
    valid::log_start()
}

fn cell(row: Row, errno: i32) -> Option<Row> {
    match errno {
        NONE => None,
        SAME => Some(row),
        errno => Some(row.refused(errno)),
    }
}

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (n, (name, valid, cells)) in MATRIX.iter().enumerate() {
        let [short, empty, many, twice, states @ ..] = *cells;
        let whole = valid();
        let again = Row { given: Vec::new(), ..whole.clone() };
        let length = whole.body.len();
        let mut add = |defect, what: String, row: Option<Row>| {
            rows.extend(row.map(|row| row.why(defect, format!("{name} {what}"))));
        };
        let row = || whole.clone();

        add(Valid, "valid".into(), Some(row()));
        add(Short, "one byte short".into(), cell(row().cut(length.min(1)), short));
        add(Empty, "without a body".into(), cell(row().cut(length), empty));
        // A longer request is one that is padded.
        add(Long, "with 8 bytes more".into(), Some(row().tail(&[0xaa; 8])));
        add(Long, "with 4 KiB more".into(), Some(row().tail(&[0xaa; 4096])));
        add(Twice, "twice".into(), cell(row().given([again.clone()]), twice));

        // Types that are neither command nor reply, in turn, and all for the reset.
        let types = match n {
            11 => (2..16).collect(),
            n => vec![2 + n as u32 % 14, 15 - n as u32 % 14],
        };
        for kind in types {
            let row = row().flags(kind).refused(EINVAL);
            add(Type, format!("of type {kind}"), Some(row));
        }
        add(Reply, "as a reply".into(), Some(row().flags(REPLY).ends(None)));
        let refusal = row().flags(REPLY | ERROR).ends(None);
        add(Reply, "as an error reply".into(), Some(refusal));
        // Bits that mean nothing in a command do no harm.
        add(Flags, "with the error flag".into(), Some(row().flags(ERROR)));
        add(Flags, "with unknown flags".into(), Some(row().flags(0xffff_ffc0)));
        add(NoReply, "without reply".into(), Some(row().silent()));
        let wrong = row().cut(length).silent();
        add(NoReply, "without body and reply".into(), Some(wrong));

        let stray = whole.fds.is_empty().then(|| row().fds(&[Fd::File]));
        add(StrayFds, "with a descriptor".into(), stray);
        add(ManyFds, "with 16 descriptors".into(), {
            cell(row().fds(&[Fd::Event(0); 16]), many)
        });
        let too_many = row().fds(&[Fd::Event(0); 17]).ends(None);
        add(ManyFds, "with 17 descriptors".into(), Some(too_many));

        let early = Row { given: Vec::new(), ..row() };
        let early = early.over(Link::Fresh).refused(EINVAL);
        add(BeforeVersion, "before VERSION".into(), Some(early));
        add(Size, "of 0 bytes".into(), Some(row().size(0).ends(Some(EINVAL))));
        add(Size, "of 15 bytes".into(), Some(row().size(15).ends(Some(EINVAL))));
        let long = row().size(LONGEST + 1).ends(Some(EMSGSIZE));
        add(Size, "one byte over the limit".into(), Some(long));
        let longest = row().size(u32::MAX).ends(Some(EMSGSIZE));
        add(Size, "of 4 GiB".into(), Some(longest));

        for (state, errno) in
            [STOP, STOP_COPY, RESUMING, PRE_COPY].into_iter().zip(states)
        {
            let mut row = Row { given: vec![valid::go(state)], ..row() };
            if whole.command == 3 {
                row = row.given([valid::dma_map()]);
            }
            add(State, format!("in state {state}"), cell(row, errno));
        }
    }
    rows
}
