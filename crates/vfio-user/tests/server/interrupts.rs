//! `SET_IRQS` in all its forms.

use std::os::fd::{AsFd, BorrowedFd};

use abi::errno::Errno;
use abi::irq::{IrqInfo, IrqInfoFlags, IrqSet};
use abi::vfio_user::Command;
use device::Irq;
use states::v2::Capabilities;
use sys::EventFd;
use vfio_migrate_vfio_user::ServerOptions;
use vfio_migrate_vfio_user::codec::{Reply, Request};

use super::support::{Raw, Served, Toy, register, until};
use super::{connected, errno, set};

const NONE: u32 = 1;
const BOOL: u32 = 2;
const EVENTFD: u32 = 4;
const MASK: u32 = 8;
const UNMASK: u32 = 16;
const TRIGGER: u32 = 32;

const MSI: Irq = Irq {
    index: 1,
    count: 8,
    flags: IrqInfoFlags::EVENTFD.union(IrqInfoFlags::MASKABLE),
};

/// A function with every index of PCI, whose MSI vectors can be masked.
fn served() -> Served {
    let mut toy = Toy::new(Capabilities::ALL);
    let others = [0, 3, 4].map(|index| Irq::new(index, 1));
    toy.irqs = [vec![MSI, Irq::new(2, 40)], others.to_vec()].concat();
    Served::with(toy, ServerOptions::default())
}

fn irqs(raw: &mut Raw, flags: u32, index: u32, start: u32, count: u32) -> Errno {
    with(raw, flags, index, start, count, &[], &[])
}

fn bools(raw: &mut Raw, action: u32, index: u32, bools: &[u8]) -> Errno {
    with(raw, BOOL | action, index, 0, bools.len() as u32, bools, &[])
}

fn events(raw: &mut Raw, action: u32, index: u32, start: u32, fds: &[&EventFd]) -> Errno {
    let fds: Vec<_> = fds.iter().map(|event| event.as_fd()).collect();
    with(raw, EVENTFD | action, index, start, fds.len() as u32, &[], &fds)
}

fn with(
    raw: &mut Raw,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
    data: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Errno {
    let set = IrqSet { argsz: 20 + data.len() as u32, flags, index, start, count };
    raw.send_with(&Request::SetIrqs(set, data).message(4).bytes(), fds);
    raw.errno(4)
}

fn raise(raw: &mut Raw, index: u32, vector: u32) -> Errno {
    set(raw, register::RAISE, u64::from(index + 1) << 32 | u64::from(vector))
}

fn counts<const N: usize>(events: &[EventFd; N]) -> [u64; N] {
    events.each_ref().map(|event| event.take().unwrap())
}

fn bells<const N: usize>() -> [EventFd; N] {
    [(); N].map(|()| EventFd::new().unwrap())
}

#[test]
fn every_index_tells_what_can_be_done_with_it() {
    let served = served();
    let mut raw = connected(&served);
    let all: Vec<_> = (0..5)
        .map(|index| {
            let info = IrqInfo { argsz: 16, flags: 0, index, count: 0 };
            raw.ask(1, &Request::IrqInfo(info));
            let (_, body) = raw.receive();
            match Reply::parse(Command::DEVICE_GET_IRQ_INFO, &body) {
                Ok(Reply::IrqInfo(info)) => (info.flags, info.count),
                other => panic!("{other:?}"),
            }
        })
        .collect();
    assert_eq!(all, [(7, 1), (3, 8), (9, 40), (9, 1), (9, 1)]);
}

#[test]
fn what_is_raised_behind_a_mask_is_heard_once_when_it_is_gone() {
    let served = served();
    let mut raw = connected(&served);
    let bell = bells::<2>();
    assert_eq!(events(&mut raw, TRIGGER, 1, 3, &[&bell[0], &bell[1]]), Errno(0));
    assert_eq!(irqs(&mut raw, NONE | MASK, 1, 3, 1), Errno(0));
    for _ in 0..5 {
        assert_eq!(raise(&mut raw, 1, 3), Errno(0));
        assert_eq!(raise(&mut raw, 1, 4), Errno(0));
    }
    assert_eq!(counts(&bell), [0, 5]);
    assert_eq!(irqs(&mut raw, NONE | UNMASK, 1, 3, 2), Errno(0));
    assert_eq!(counts(&bell), [1, 0]);
    assert_eq!(irqs(&mut raw, NONE | UNMASK, 1, 3, 1), Errno(0));
    assert_eq!(raise(&mut raw, 1, 3), Errno(0));
    assert_eq!(counts(&bell), [1, 0]);
    // By a byte a vector.
    assert_eq!(bools(&mut raw, MASK, 1, &[0, 0, 0, 1, 1]), Errno(0));
    assert_eq!((raise(&mut raw, 1, 3), raise(&mut raw, 1, 4)), (Errno(0), Errno(0)));
    assert_eq!(bools(&mut raw, UNMASK, 1, &[0, 0, 0, 0, 7]), Errno(0));
    assert_eq!(counts(&bell), [0, 1]);
    // The client's own fire goes past a mask, as in the kernel.
    assert_eq!(bools(&mut raw, TRIGGER, 1, &[0, 0, 0, 1, 0]), Errno(0));
    assert_eq!(irqs(&mut raw, NONE | TRIGGER, 1, 4, 1), Errno(0));
    assert_eq!(counts(&bell), [1, 1]);
    // What waits goes with a reset, the mask does not.
    raw.check_in_step();
    assert_eq!(irqs(&mut raw, NONE | UNMASK, 1, 3, 1), Errno(0));
    assert_eq!(counts(&bell), [0, 0]);
    drop(raw);
    let counters = served.stop().runner().counters();
    assert_eq!((counters.interrupts, counters.interrupts_masked), (5 + 1 + 1 + 1, 5 + 2));
}

#[test]
fn a_vector_that_is_unbound_or_disabled_loses_its_mask() {
    let served = served();
    let mut raw = connected(&served);
    let bell = bells::<1>();
    for index in 0..2 {
        assert_eq!(irqs(&mut raw, NONE | MASK, 1, 0, 1), Errno(0));
        assert_eq!(events(&mut raw, TRIGGER, 1, 0, &[&bell[0]]), Errno(0));
        // It was masked before it was bound.
        assert_eq!(raise(&mut raw, 1, 0), Errno(0));
        assert_eq!(counts(&bell), [0]);
        let gone = match index {
            0 => with(&mut raw, EVENTFD | TRIGGER, 1, 0, 1, &[], &[]),
            _ => irqs(&mut raw, NONE | TRIGGER, 1, 0, 0),
        };
        assert_eq!(gone, Errno(0));
        assert_eq!(raise(&mut raw, 1, 0), Errno::ENXIO);
        assert_eq!(events(&mut raw, TRIGGER, 1, 0, &[&bell[0]]), Errno(0));
        assert_eq!(counts(&bell), [0]);
        assert_eq!(raise(&mut raw, 1, 0), Errno(0));
        assert_eq!(counts(&bell), [1]);
    }
}

#[test]
fn a_line_masks_itself_and_is_heard_again_only_while_it_is_up() {
    let served = served();
    let mut raw = connected(&served);
    let bell = bells::<1>();
    // Up before anybody listens.
    assert_eq!(set(&mut raw, register::LEVEL, 1), Errno(0));
    assert_eq!(events(&mut raw, TRIGGER, 0, 0, &[&bell[0]]), Errno(0));
    assert_eq!(counts(&bell), [1]);
    // Still up when the guest has looked, and down the next time.
    assert_eq!(set(&mut raw, register::LEVEL, 1), Errno(0));
    assert_eq!(counts(&bell), [0]);
    assert_eq!(irqs(&mut raw, NONE | UNMASK, 0, 0, 1), Errno(0));
    assert_eq!(counts(&bell), [1]);
    assert_eq!(set(&mut raw, register::LEVEL, 0), Errno(0));
    assert_eq!(irqs(&mut raw, NONE | UNMASK, 0, 0, 1), Errno(0));
    assert_eq!(counts(&bell), [0]);
    // Down and up behind the mask, and gone with a reset.
    assert_eq!(irqs(&mut raw, NONE | MASK, 0, 0, 1), Errno(0));
    for level in [1, 0, 1] {
        assert_eq!(set(&mut raw, register::LEVEL, level), Errno(0));
    }
    assert_eq!(bools(&mut raw, UNMASK, 0, &[1]), Errno(0));
    assert_eq!(counts(&bell), [1]);
    raw.check_in_step();
    assert_eq!(irqs(&mut raw, NONE | UNMASK, 0, 0, 1), Errno(0));
    assert_eq!(counts(&bell), [0]);
    assert_eq!(served.stop().runner().counters().interrupts_while_stopped, 0);
}

#[test]
fn a_line_that_is_up_is_heard_by_the_next_client() {
    let served = served();
    let mut raw = connected(&served);
    assert_eq!(set(&mut raw, register::LEVEL, 1), Errno(0));
    assert_eq!(irqs(&mut raw, NONE | MASK, 0, 0, 1), Errno(0));
    drop(raw);
    let mut raw = connected(&served);
    let bell = bells::<1>();
    assert_eq!(events(&mut raw, TRIGGER, 0, 0, &[&bell[0]]), Errno(0));
    assert_eq!(counts(&bell), [1]);
}

#[test]
fn a_line_is_unmasked_by_an_eventfd() {
    let served = served();
    let mut raw = connected(&served);
    let bell = bells::<1>();
    let unmask = EventFd::new().unwrap();
    assert_eq!(events(&mut raw, TRIGGER, 0, 0, &[&bell[0]]), Errno(0));
    assert_eq!(events(&mut raw, UNMASK, 0, 0, &[&unmask]), Errno(0));
    assert_eq!(set(&mut raw, register::LEVEL, 1), Errno(0));
    assert_eq!(counts(&bell), [1]);
    for _ in 0..3 {
        unmask.signal(1).unwrap();
        until(|| counts(&bell) == [1]);
    }
    // Bound anew, then no more.
    assert_eq!(events(&mut raw, UNMASK, 0, 0, &[&unmask]), Errno(0));
    unmask.signal(1).unwrap();
    until(|| counts(&bell) == [1]);
    assert_eq!(with(&mut raw, EVENTFD | UNMASK, 0, 0, 1, &[], &[]), Errno(0));
    unmask.signal(1).unwrap();
    raw.check_in_step();
    assert_eq!((counts(&bell), unmask.take().unwrap()), ([0], 1));
    // Disabling the index lets go of it as well, and so does the end.
    assert_eq!(events(&mut raw, UNMASK, 0, 0, &[&unmask]), Errno(0));
    assert_eq!(irqs(&mut raw, NONE | TRIGGER, 0, 0, 0), Errno(0));
    unmask.signal(1).unwrap();
    raw.check_in_step();
    assert_eq!(unmask.take().unwrap(), 1);
    assert_eq!(events(&mut raw, UNMASK, 0, 0, &[&unmask]), Errno(0));
    drop(raw);
    let mut raw = connected(&served);
    unmask.signal(1).unwrap();
    raw.check_in_step();
    assert_eq!(unmask.take().unwrap(), 1);
}

#[test]
fn something_that_is_no_eventfd_does_not_keep_the_server_busy() {
    let served = served();
    let mut raw = connected(&served);
    // It can be waited for, is ready at once, and cannot be read.
    let inner = sys::Epoll::new().unwrap();
    let ready = EventFd::new().unwrap();
    ready.signal(1).unwrap();
    inner.add(&ready, 1, sys::Interest::READ).unwrap();
    let set = IrqSet { argsz: 20, flags: EVENTFD | UNMASK, index: 0, start: 0, count: 1 };
    raw.send_with(&Request::SetIrqs(set, &[]).message(4).bytes(), &[inner.as_fd()]);
    assert_eq!(raw.errno(4), Errno(0));
    raw.check_in_step();
    raw.check_in_step();
    drop(raw);
    // All copies but ours are closed, so it was let go of.
    let mut server = served.stop();
    let idle = |server: &mut vfio_migrate_vfio_user::Server| {
        server.process().unwrap();
        let fd = server.poll_fd();
        let soon = Some(std::time::Duration::ZERO);
        !sys::wait(fd, sys::Interest::READ, soon).unwrap().any()
    };
    until(|| idle(&mut server));
}

#[test]
fn what_an_index_cannot_do_is_refused_and_nothing_is_done() {
    let served = served();
    let mut raw = connected(&served);
    let bell = bells::<2>();
    assert_eq!(events(&mut raw, TRIGGER, 2, 0, &[&bell[0], &bell[1]]), Errno(0));
    for index in [2, 3, 4] {
        for data in [NONE, BOOL, EVENTFD] {
            for action in [MASK, UNMASK] {
                let asked = irqs(&mut raw, data | action, index, 0, 1);
                assert_eq!(asked, Errno::ENOTTY, "{index} {data} {action}");
            }
        }
    }
    // The kernel has no eventfd that masks either.
    assert_eq!(events(&mut raw, MASK, 0, 0, &[&bell[0]]), Errno::ENOTTY);
    // ERR and REQ: to be bound, one vector each.
    for index in [3, 4] {
        assert_eq!(events(&mut raw, TRIGGER, index, 0, &[&bell[1]]), Errno(0));
        assert_eq!(raise(&mut raw, index, 0), Errno(0));
        assert_eq!(irqs(&mut raw, NONE | TRIGGER, index, 0, 2), Errno::EINVAL);
        assert_eq!(irqs(&mut raw, NONE | TRIGGER, index, 1, 1), Errno::EINVAL);
    }
    assert_eq!(counts(&bell), [0, 2]);
    // A byte for each vector, within argsz.
    let set = IrqSet { argsz: 21, flags: BOOL | TRIGGER, index: 2, start: 0, count: 2 };
    assert_eq!(errno(&mut raw, &Request::SetIrqs(set, &[1, 1])), Errno::EINVAL);
    let set = IrqSet { argsz: 22, ..set };
    assert_eq!(errno(&mut raw, &Request::SetIrqs(set, &[1])), Errno::EINVAL);
    assert_eq!(counts(&bell), [0, 0]);
    assert_eq!(raise(&mut raw, 2, 1), Errno(0));
    assert_eq!(counts(&bell), [0, 1]);
}

#[test]
fn interrupts_are_bound_and_masked_while_the_device_is_stopped() {
    let served = served();
    let client = served.client();
    use control::Transport;
    client.set_migration_state(abi::v2::DeviceState::STOP, None).unwrap();
    let bell = bells::<1>();
    client.set_irqs(1, 0, &[&bell[0]]).unwrap();
    drop(client);
    let mut raw = connected(&served);
    assert_eq!(irqs(&mut raw, NONE | MASK, 1, 0, 8), Errno(0));
    assert_eq!(bools(&mut raw, UNMASK, 1, &[1; 8]), Errno(0));
}
