//! Every call with every general lie.

use super::super::row::{Fd, Row};
use super::super::wire::{ERROR, HEADER, NO_REPLY, REPLY};
use super::calls::{self, Call};
use super::{After, Lie, Manner, Outcome};

/// A cell: what it comes to.
#[derive(Clone, Copy)]
enum Cell {
    /// Fine: the server said enough.
    Ok,
    /// No answer, and the server is given up.
    No,
    /// No answer, but the server may be listened to.
    Odd,
    /// Less than its caller asked for, which the caller has to see.
    Less,
}

use Cell::{Less, No, Odd, Ok};

/// A call; its answer one byte short, a header alone, 8 bytes longer.
type Line = (&'static Call, [Cell; 3]);

#[rustfmt::skip]
const MATRIX: [Line; 22] = [
    //                         short header long
    (&calls::VERSION,         [No,   No,    No]),
    (&calls::DMA_MAP,         [Ok,   Ok,    Ok]),
    (&calls::DMA_MAP_MEMORY,  [Ok,   Ok,    Ok]),
    (&calls::DMA_UNMAP,       [Ok,   Ok,    Ok]),
    (&calls::DMA_UNMAP_DIRTY, [Odd,  Odd,   No]),
    (&calls::DEVICE_INFO,     [No,   No,    No]),
    (&calls::REGION_INFO,     [No,   No,    Ok]),
    (&calls::REGION_MAP,      [No,   No,    Ok]),
    (&calls::REGION_IO_FDS,   [No,   No,    Ok]),
    (&calls::IRQ_INFO,        [No,   No,    No]),
    (&calls::SET_IRQS,        [Ok,   Ok,    Ok]),
    (&calls::MASK_IRQS,       [Ok,   Ok,    Ok]),
    (&calls::REGION_READ,     [No,   No,    No]),
    (&calls::REGION_WRITE,    [No,   Ok,    No]),
    (&calls::RESET,           [Ok,   Ok,    Ok]),
    (&calls::WRITE_MANY,      [No,   Ok,    Ok]),
    (&calls::FEATURE_GET,     [Less, Less,  No]),
    (&calls::FEATURE_SET,     [No,   Ok,    No]),
    (&calls::FEATURE_PROBE,   [No,   Ok,    Ok]),
    (&calls::SET_STATE,       [Ok,   Ok,    No]),
    (&calls::DATA_READ,       [No,   No,    No]),
    (&calls::DATA_WRITE,      [Ok,   Ok,    Ok]),
];

fn cell(lie: Lie, cell: Cell) -> Lie {
    match cell {
        Ok => lie,
        No => lie.broken(),
        // What the call of the table says then.
        Less => lie.is(Outcome::Gone).after(After::Works),
        Odd => lie.broken().after(After::Works),
    }
}

pub fn lies() -> Vec<Lie> {
    let mut lies = Vec::new();
    for (n, (call, [short, header, long])) in MATRIX.into_iter().enumerate() {
        let mut add = |lie: Lie| lies.push(lie);
        let plain = |what: &str, manner| Lie::new(call, what, |row| row).manner(manner);
        let lie = |what: &str, change: fn(Row) -> Row| Lie::new(call, what, change);

        add(lie("the truth", |row| row));
        add(cell(lie("one byte short", |row| row.cut_at_most(1)), short));
        add(cell(lie("a header alone", |row| row.body(Vec::new())), header));
        add(cell(lie("8 bytes longer", |row| row.tail(&[0; 8])), long));
        add(lie("64 KiB longer", |row| row.tail(&vec![0; 65536])).broken());

        add(lie("another id", |row| row.off(1)).broken());
        add(lie("the id of posted writes", |row| row.off(0x7fff)).broken());
        add(lie("another command", |row| Row { command: row.command ^ 1, ..row })
            .broken());
        let kind = 2 + n as u32 % 14;
        add(Lie::new(call, format!("type {kind}"), move |row| row.flags(kind)).broken());
        add(lie("a command", |row| row.flags(0)).is(Outcome::TimedOut));
        add(lie("a command that wants no reply", |row| row.flags(NO_REPLY))
            .is(Outcome::TimedOut));
        add(lie("flags that a reply does not have", |row| {
            row.flags(REPLY | 0xffff_ff10).unflag(ERROR)
        }));

        let errors = [(0, 5), (22, 22), (4095, 4095), (u32::MAX, i32::MAX)];
        for (errno, outcome) in errors {
            let error =
                move |row: Row| row.body(Vec::new()).flags(REPLY | ERROR).error(errno);
            let what = format!("error {errno}");
            add(Lie::new(call, what, error).is(Outcome::Errno(outcome)));
        }
        let with = |row: Row| row.flags(REPLY | ERROR).error(22);
        add(lie("an error with its payload", with).is(Outcome::Errno(22)));
        let with = |row: Row| row.body(vec![1; 65536]).flags(REPLY | ERROR).error(22);
        add(lie("an error with 64 KiB", with).broken());
        add(lie("an errno without the flag", |row| row.error(22)));

        add(lie("a size of 0", |row| row.size(0)).broken());
        add(lie("a size of 15", |row| row.size(HEADER as u32 - 1)).broken());
        add(lie("a size of 2 MiB", |row| row.size(2 << 20)).broken());
        add(lie("a size of 4 GiB", |row| row.size(u32::MAX)).broken());

        add(lie("8 descriptors more", |row| row.more(&[Fd::Event(0); 8])));
        add(lie("17 descriptors", |row| row.fds(&[Fd::File; 17])).is(Outcome::Gone));

        add(plain("silence", Manner::Silence).is(Outcome::TimedOut));
        add(plain("half an answer", Manner::Half).is(Outcome::TimedOut));
        add(plain("the end", Manner::Close).is(Outcome::Gone));
        add(plain("half an answer and the end", Manner::HalfClose).is(Outcome::Gone));
        add(plain("two answers", Manner::Twice).after(After::Gone));
        add(plain("byte by byte", Manner::Drip));
        if call.command != 1 {
            // Before VERSION nobody asks.
            add(plain("after questions", Manner::Asking));
        }
    }
    lies
}
