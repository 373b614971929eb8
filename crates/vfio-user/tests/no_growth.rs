//! A server that thousands of clients visited holds no more than before. Alone in its
//! binary, since it counts the descriptors of the process.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::os::fd::AsFd;

use abi::errno::Errno;
use abi::irq::IrqSet;
use abi::vfio_user::{DmaMap, RegionAccess};
use device::Irq;
use states::v2::Capabilities as States;
use support::{Raw, Served, Toy, agreement, register};
use sys::{EventFd, SharedMemory};
use vfio_migrate_vfio_user::ServerOptions;
use vfio_migrate_vfio_user::codec::{Capabilities, Request, TwinSocket, Version};

/// Everything that a client can leave behind; it goes in the middle of it.
fn visit(served: &Served, event: &EventFd, memory: &SharedMemory, n: u32) {
    let mut raw = served.raw();
    let plain = agreement(false);
    let plain = Version { major: 0, minor: 0, text: &plain }.capabilities().unwrap();
    let twin_socket = Some(TwinSocket { supported: true, fd_index: None });
    let text = Capabilities { twin_socket, ..plain }.text();
    raw.ask(0, &Request::Version(Version { major: 0, minor: 2, text: &text }));
    let (mut bytes, mut fds) = ([0; 4096], Vec::new());
    raw.0.set_read_timeout(Some(support::SOON)).unwrap();
    sys::socket::recv_with_fds(raw.0.as_fd(), &mut bytes, 16, &mut fds, false).unwrap();
    assert_eq!(fds.len(), 1);
    for flags in [4 | 32, 4 | 16] {
        let set = IrqSet { argsz: 20, flags, index: 0, start: 0, count: 1 };
        let bytes = Request::SetIrqs(set, &[]).message(4).bytes();
        raw.send_with(&bytes, &[event.as_fd()]);
        assert_eq!(raw.errno(4), Errno(0));
    }
    let map = DmaMap { argsz: 32, flags: 3, offset: 0, addr: 0, size: 4096 };
    raw.send_with(&Request::DmaMap(map).message(5).bytes(), &[memory.fd()]);
    assert_eq!(raw.errno(5), Errno(0));
    let map = DmaMap { addr: 1 << 20, ..map };
    ask(&mut raw, &Request::DmaMap(map));
    for (offset, value) in [(register::ADDRESS, 1_u64 << 20), (register::READ, 8)] {
        let access = RegionAccess { offset, region: 0, count: 8 };
        ask(&mut raw, &Request::RegionWrite(access, &value.to_ne_bytes()));
    }
    if n.is_multiple_of(2) {
        raw.send(&[1, 2, 3]);
    }
}

fn ask(raw: &mut Raw, request: &Request<'_>) {
    raw.ask(6, request);
    assert_eq!(raw.errno(6), Errno(0));
}

/// Descriptors of this process, when the last visitor is gone for the server too.
fn open(served: &Served) -> usize {
    let mut raw = served.raw();
    raw.agree(true);
    raw.check_in_step();
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn clients_that_come_and_go_leave_nothing_behind() {
    let mut toy = Toy::new(States::ALL);
    toy.irqs = vec![Irq::new(0, 1), Irq::new(2, 40)];
    let served = Served::with(toy, ServerOptions::default());
    let event = EventFd::new().unwrap();
    let memory = SharedMemory::create("guest", 4096).unwrap();
    let before = open(&served);
    (0..2000).for_each(|n| visit(&served, &event, &memory, n));
    assert_eq!(open(&served), before);
    drop(served.stop());
}
