//! GET_IRQ_INFO and SET_IRQS: every form of data, every action, every index.

use super::super::device::RAISE;
use super::super::errno::{EINVAL, ENOTTY, ENXIO};
use super::super::row::Defect::{
    Absent, Argsz, Fields, Limit, Long, NoFds, NoReply, Short, State, StrayFds, Twice,
    Valid,
};
use super::super::row::{Fd, Row};
use super::super::valid::{
    self, BOOL, EVENTFD, MASK, MSIX, NONE, TRIGGER, UNMASK, VECTORS, act, irq_info,
    set_irqs, words,
};

const INTX: u32 = 0;
const MSI: u32 = 1;
const ERR: u32 = 3;
const REQ: u32 = 4;

/// Flags of `GET_IRQ_INFO`.
const EVENTFD_INFO: u32 = 1;
const MASKABLE: u32 = 2;
const AUTOMASKED: u32 = 4;
const NORESIZE: u32 = 8;

/// Binds the first vector of an index to the first eventfd.
fn bind(index: u32) -> Row {
    set_irqs().u32(8, index).u32(12, 0).u32(16, 1).fds(&[Fd::Event(0)])
}

/// Something to the first vector of an index.
fn first(index: u32, flags: u32) -> Row {
    act(flags).u32(8, index).u32(12, 0).u32(16, 1)
}

/// The device raises a vector.
fn raise(index: u32, vector: u32) -> Row {
    valid::register_write(RAISE, u64::from(index << 8 | vector))
}

fn is(index: u32, flags: u32, count: u32) -> Row {
    irq_info()
        .u32(8, index)
        .says(0, &words(&[16, flags]))
        .says(8, &words(&[index, count]))
}

pub fn rows() -> Vec<Row> {
    [infos(), triggers(), masks(), refusals()].concat()
}

fn infos() -> Vec<Row> {
    vec![
        is(INTX, EVENTFD_INFO | MASKABLE | AUTOMASKED, 1).why(Valid, "INTx"),
        is(MSI, EVENTFD_INFO | NORESIZE, 4).why(Valid, "MSI"),
        is(MSIX, EVENTFD_INFO | NORESIZE, VECTORS).why(Valid, "MSI-X"),
        is(ERR, EVENTFD_INFO | NORESIZE, 1).why(Valid, "ERR"),
        is(REQ, EVENTFD_INFO | NORESIZE, 1).why(Valid, "REQ"),
        irq_info().u32(8, 5).refused(EINVAL).why(Absent, "index 5"),
        irq_info().u32(8, u32::MAX).refused(EINVAL).why(Absent, "the last index of all"),
        irq_info().u32(0, 15).refused(EINVAL).why(Argsz, "15"),
        irq_info().u32(0, 0).refused(EINVAL).why(Argsz, "0"),
        irq_info().u32(0, 4096).why(Argsz, "4096"),
        irq_info().u32(12, 7).why(Fields, "a count in the request"),
    ]
}

fn triggers() -> Vec<Row> {
    let mut rows = vec![
        set_irqs()
            .then([raise(MSIX, 3), raise(MSIX, 4), raise(MSIX, 4)])
            .fires(1, 2)
            .why(Valid, "bound and raised"),
        set_irqs()
            .silent()
            .then([raise(MSIX, 3)])
            .fires(1, 0)
            .why(NoReply, "is carried out"),
        set_irqs()
            .given([set_irqs().fds(&[Fd::Event(1), Fd::Event(0)])])
            .then([raise(MSIX, 3)])
            .fires(1, 0)
            .why(Twice, "bound to another"),
        act(EVENTFD | TRIGGER)
            .given([set_irqs()])
            .then([raise(MSIX, 3).refused(ENXIO)])
            .why(NoFds, "takes the vectors away"),
        act(EVENTFD | TRIGGER)
            .u32(16, 1)
            .given([set_irqs()])
            .then([raise(MSIX, 3).refused(ENXIO), raise(MSIX, 4)])
            .fires(0, 1)
            .why(NoFds, "takes one vector away"),
        act(NONE | TRIGGER)
            .u32(12, 0)
            .u32(16, 0)
            .given([set_irqs(), bind(MSI)])
            .then([
                raise(MSIX, 3).refused(ENXIO),
                raise(MSIX, 4).refused(ENXIO),
                raise(MSI, 0),
            ])
            .fires(1, 0)
            .why(Valid, "takes the whole index away, and no other"),
        act(NONE | TRIGGER)
            .given([set_irqs()])
            .fires(1, 1)
            .why(Valid, "fired by the client"),
        act(NONE | TRIGGER).why(Valid, "fired where nothing is bound"),
        act(NONE | TRIGGER)
            .silent()
            .given([set_irqs()])
            .fires(1, 1)
            .why(NoReply, "fires"),
        act(BOOL | TRIGGER)
            .u32(0, 22)
            .tail(&[0, 1])
            .given([set_irqs()])
            .fires(0, 1)
            .why(Valid, "fired where the byte is set"),
        act(BOOL | TRIGGER)
            .u32(0, 22)
            .tail(&[255, 0])
            .given([set_irqs()])
            .fires(1, 0)
            .why(Valid, "any byte but 0 is set"),
        act(BOOL | TRIGGER)
            .u32(0, 22)
            .tail(&[0, 1, 1, 1, 1])
            .given([set_irqs()])
            .fires(0, 1)
            .why(Long, "bytes behind the bytes"),
        set_irqs()
            .u32(12, 0)
            .u32(16, 16)
            .fds(&[Fd::Event(0); 16])
            .then([raise(MSIX, 0), raise(MSIX, 15)])
            .fires(2, 0)
            .why(Limit, "16 at once"),
        set_irqs()
            .u32(12, VECTORS - 2)
            .then([raise(MSIX, VECTORS - 1)])
            .fires(0, 1)
            .why(Limit, "the last vectors"),
    ];
    for index in [INTX, MSI, MSIX, ERR, REQ] {
        let row = bind(index).then([raise(index, 0), first(index, NONE | TRIGGER)]);
        rows.push(
            row.fires(2, 0).why(Valid, format!("index {index} bound, raised, fired")),
        );
    }
    for state in [valid::STOP, valid::RESUMING] {
        let row =
            bind(MSIX).given([valid::go(state)]).then([first(MSIX, NONE | TRIGGER)]);
        rows.push(
            row.fires(1, 0).why(State, format!("bound and fired in state {state}")),
        );
    }
    rows
}

fn masks() -> Vec<Row> {
    let mut rows = vec![
        // INTx masks itself when it fires.
        bind(INTX)
            .then([raise(INTX, 0), raise(INTX, 0)])
            .fires(1, 0)
            .why(Valid, "INTx is heard once"),
        first(INTX, NONE | UNMASK)
            .given([bind(INTX), raise(INTX, 0), raise(INTX, 0)])
            .fires(2, 0)
            .why(Valid, "INTx unmasked with one waiting"),
        first(INTX, NONE | UNMASK)
            .given([bind(INTX), raise(INTX, 0)])
            .fires(1, 0)
            .why(Valid, "INTx unmasked with none waiting"),
        first(INTX, NONE | UNMASK)
            .given([bind(INTX)])
            .why(Valid, "INTx unmasked that is not masked"),
        first(INTX, NONE | MASK)
            .given([bind(INTX)])
            .then([raise(INTX, 0)])
            .why(Valid, "INTx masked"),
        first(INTX, NONE | MASK)
            .given([bind(INTX), first(INTX, NONE | MASK)])
            .then([raise(INTX, 0), first(INTX, NONE | UNMASK)])
            .fires(1, 0)
            .why(Twice, "INTx masked twice, unmasked once"),
        first(INTX, BOOL | MASK)
            .u32(0, 21)
            .tail(&[1])
            .given([bind(INTX)])
            .then([raise(INTX, 0)])
            .why(Valid, "INTx masked by a byte"),
        first(INTX, BOOL | MASK)
            .u32(0, 21)
            .tail(&[0])
            .given([bind(INTX)])
            .then([raise(INTX, 0)])
            .fires(1, 0)
            .why(Valid, "INTx not masked by a 0"),
        first(INTX, BOOL | UNMASK)
            .u32(0, 21)
            .tail(&[1])
            .given([bind(INTX), raise(INTX, 0), raise(INTX, 0)])
            .fires(2, 0)
            .why(Valid, "INTx unmasked by a byte"),
        first(INTX, NONE | UNMASK)
            .silent()
            .given([bind(INTX), raise(INTX, 0), raise(INTX, 0)])
            .fires(2, 0)
            .why(NoReply, "INTx unmasked"),
        first(INTX, NONE | TRIGGER)
            .given([bind(INTX), first(INTX, NONE | MASK)])
            .fires(1, 0)
            .why(Valid, "the client fires INTx though it is masked"),
        first(INTX, NONE | MASK)
            .u32(16, 0)
            .refused(EINVAL)
            .why(Fields, "masks no vector"),
        first(INTX, NONE | UNMASK)
            .u32(16, 0)
            .refused(EINVAL)
            .why(Fields, "unmasks no vector"),
        first(INTX, NONE | MASK)
            .u32(16, 2)
            .refused(EINVAL)
            .why(Limit, "masks two of one"),
        first(INTX, BOOL | MASK)
            .given([bind(INTX)])
            .refused(EINVAL)
            .why(Short, "masks without a byte"),
    ];
    // As the kernel: only INTx can be masked.
    for index in [MSI, MSIX, ERR, REQ] {
        for (action, name) in [(MASK, "mask"), (UNMASK, "unmask")] {
            let row = first(index, NONE | action).refused(ENOTTY);
            rows.push(row.why(Absent, format!("no {name} for index {index}")));
        }
    }
    rows
}

fn refusals() -> Vec<Row> {
    let nothing = [raise(MSIX, 3).refused(ENXIO)];
    let no = |row: Row| row.refused(EINVAL).then(nothing.clone());
    vec![
        no(set_irqs()).u32(0, 19).why(Argsz, "19"),
        no(set_irqs()).u32(0, 0).why(Argsz, "0"),
        no(set_irqs()).u32(8, 5).why(Absent, "index 5"),
        no(set_irqs()).u32(8, u32::MAX).why(Absent, "the last index of all"),
        no(set_irqs()).u32(8, MSI).u32(12, 3).why(Absent, "a vector too many of MSI"),
        no(set_irqs()).u32(12, VECTORS - 1).why(Limit, "one vector too many"),
        no(set_irqs()).u32(12, VECTORS).why(Limit, "behind the last vector"),
        no(set_irqs()).u32(12, u32::MAX - 1).why(Limit, "a start that wraps"),
        no(set_irqs()).u32(16, u32::MAX).why(Limit, "a count of 4 billion"),
        no(set_irqs()).u32(16, 0).why(Fields, "eventfds for no vector"),
        no(set_irqs()).u32(16, 1).why(NoFds, "two descriptors for one vector"),
        no(set_irqs()).u32(16, 3).why(NoFds, "two descriptors for three vectors"),
        no(set_irqs()).fds(&[Fd::Event(0)]).why(NoFds, "one descriptor for two vectors"),
        no(set_irqs())
            .fds(&[Fd::Event(0), Fd::File])
            .why(NoFds, "a file as the second: none is bound"),
        no(set_irqs()).fds(&[Fd::Memory; 2]).why(NoFds, "memory"),
        no(set_irqs()).u32(4, TRIGGER).why(Fields, "no form of data"),
        no(set_irqs()).u32(4, EVENTFD).why(Fields, "no action"),
        no(set_irqs()).u32(4, 0).why(Fields, "no flags"),
        no(set_irqs()).u32(4, EVENTFD | BOOL | TRIGGER).why(Fields, "two forms of data"),
        no(set_irqs()).u32(4, EVENTFD | NONE | TRIGGER).why(Fields, "none and eventfds"),
        no(set_irqs()).u32(4, EVENTFD | TRIGGER | MASK).why(Fields, "two actions"),
        no(set_irqs()).u32(4, EVENTFD | TRIGGER | 64).why(Fields, "an unknown flag"),
        no(set_irqs())
            .u32(4, EVENTFD | TRIGGER | 1 << 31)
            .why(Fields, "the highest flag"),
        act(BOOL | TRIGGER)
            .given([set_irqs()])
            .refused(EINVAL)
            .why(Short, "no bytes for two vectors"),
        act(BOOL | TRIGGER)
            .tail(&[1])
            .given([set_irqs()])
            .refused(EINVAL)
            .why(Short, "one byte for two vectors"),
        act(BOOL | TRIGGER)
            .tail(&[1])
            .u32(16, 0)
            .refused(EINVAL)
            .why(Fields, "bytes for no vector"),
        act(NONE | TRIGGER)
            .u32(16, 0)
            .refused(EINVAL)
            .why(Fields, "takes away from the middle"),
        act(NONE | TRIGGER).u32(12, 39).refused(EINVAL).why(Limit, "fires one too many"),
        act(NONE | TRIGGER)
            .given([set_irqs()])
            .fds(&[Fd::Event(0), Fd::Event(1)])
            .fires(1, 1)
            .why(StrayFds, "fires with descriptors that mean nothing"),
    ]
}
