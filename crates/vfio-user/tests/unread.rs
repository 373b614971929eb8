//! Clients that do not read: what waits for them is bounded, in bytes as the process
//! pays them and in descriptors. Alone in its binary, one test at a time, since it
//! measures the process.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::io::Write;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use abi::errno::Errno;
use abi::feature::{Feature, FeatureFlags, FeatureHeader};
use abi::irq::IrqSet;
use abi::region::RegionInfo;
use abi::v2::DeviceMigState;
use abi::vfio_user::{Command, MigData, RegionAccess};
use support::{Raw, Served, message};
use sys::EventFd;
use vfio_migrate_vfio_user::codec::{Capabilities, Request, Version};
use vfio_migrate_vfio_user::{DisconnectReason, ServerOptions};
use zerocopy::IntoBytes;

static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory that this process holds, in bytes.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn read(count: u32) -> Vec<u8> {
    let access = RegionAccess { offset: 0, region: 2, count };
    Request::RegionRead(access).message(1).bytes()
}

/// A client whose socket takes nothing more.
fn stuffed(served: &Served) -> Raw {
    let mut raw = served.raw();
    raw.agree(true);
    raw.0.set_write_timeout(Some(support::SOON)).unwrap();
    (0..6).for_each(|_| raw.send(&read(1 << 20)));
    raw
}

/// An eventfd on vector 0: how far the server has come shows nowhere else.
fn bell(raw: &mut Raw) -> EventFd {
    let bell = EventFd::new().unwrap();
    let set = IrqSet { argsz: 20, flags: 4 | 32, index: 2, start: 0, count: 1 };
    raw.send_with(&Request::SetIrqs(set, &[]).message(2).bytes(), &[bell.as_fd()]);
    bell
}

fn ring(raw: &mut Raw, bell: &EventFd) {
    let set = IrqSet { argsz: 20, flags: 1 | 32, index: 2, start: 0, count: 1 };
    raw.ask(3, &Request::SetIrqs(set, &[]));
    assert!(sys::wait_readable(&[bell.as_fd()], support::SOON).unwrap()[0]);
    assert_eq!(bell.take().unwrap(), 1);
}

#[test]
fn a_short_answer_that_waits_does_not_keep_the_buffer_of_a_long_one() {
    let _alone = alone();
    let served = Served::start(ServerOptions::default());
    let mut raw = stuffed(&served);
    let bell = bell(&mut raw);
    ring(&mut raw, &bell);
    let before = resident();
    // A buffer is made long for an access that is refused then, ...
    let past = RegionAccess { offset: 1, region: 2, count: 1 << 20 };
    let past = Request::RegionRead(past).message(1).bytes();
    // ... is made to look short by another answer, and used for a third.
    let header = FeatureHeader::new(Feature::MIG_DEVICE_STATE, FeatureFlags::GET, 8);
    let state = Request::Feature(header, &[]).message(1).bytes();
    for _ in 0..200 {
        raw.send(&[&past[..], &state, &read(8)].concat());
    }
    ring(&mut raw, &bell);
    let more = resident().saturating_sub(before);
    assert!(more < 50 << 20, "{} MiB for 20 KiB of answers", more >> 20);
}

#[test]
fn short_answers_that_wait_count_for_what_they_cost() {
    let _alone = alone();
    let served = Served::start(ServerOptions::default());
    let mut raw = stuffed(&served);
    let before = resident();
    let many = message(1, Command(99), 0, &[]).repeat(1000);
    // Each is answered with as many bytes.
    let ended = (0..2000).any(|_| raw.0.write_all(&many).is_err());
    let more = resident().saturating_sub(before);
    assert!(ended && more < 100 << 20, "{ended}, {} MiB", more >> 20);
    let server = served.stop();
    assert!(matches!(server.last_disconnect(), Some(DisconnectReason::NotReading(_))));
}

#[test]
fn answers_that_wait_do_not_take_all_descriptors() {
    let _alone = alone();
    let served = Served::start(ServerOptions::default());
    let mut raw = stuffed(&served);
    let info =
        RegionInfo { argsz: 4096, flags: 0, index: 2, cap_offset: 0, size: 0, offset: 0 };
    let ask = Request::RegionInfo(info).message(5).bytes();
    for _ in 0..300 {
        if raw.0.write_all(&ask).is_err() {
            break;
        }
    }
    support::until(|| raw.0.write_all(&ask).is_err());
    let server = served.stop();
    assert!(matches!(server.last_disconnect(), Some(DisconnectReason::NotReading(_))));
}

#[test]
fn one_answer_that_is_longer_than_all_that_may_wait_is_still_sent() {
    let _alone = alone();
    let max_data_xfer_size = 64 << 20;
    let served =
        Served::start(ServerOptions { max_data_xfer_size, ..ServerOptions::default() });
    let mut raw = served.raw();
    let text = Capabilities { max_data_xfer_size, ..Capabilities::default() }.text();
    raw.ask(0, &Request::Version(Version { major: 0, minor: 0, text: &text }));
    assert_eq!(errno(&mut raw, 0), Errno(0));
    let header = FeatureHeader::new(Feature::MIG_DEVICE_STATE, FeatureFlags::SET, 8);
    let state = DeviceMigState { device_state: 3, data_fd: -1 };
    raw.ask(1, &Request::Feature(header, state.as_bytes()));
    assert_eq!(errno(&mut raw, 1), Errno(0));
    // Padded to what was asked for.
    let size = 48 << 20;
    raw.ask(2, &Request::MigDataRead(MigData { argsz: 8 + size, size }));
    let (header, body) = raw.receive();
    assert_eq!((header.msg_id, header.error), (2, 0));
    assert_eq!(body.len(), 8 + size as usize);
    raw.check_in_step();
}

/// The errno of the next message, which answers `id` and may have a body.
fn errno(raw: &mut Raw, id: u16) -> Errno {
    let (header, _) = raw.receive();
    assert_eq!(header.msg_id, id);
    Errno(header.error as i32)
}
