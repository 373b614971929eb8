//! What the server does for a client that speaks the protocol well, command by command,
//! and with one that has other limits than ours.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod dma;
mod event_loop;
mod interrupts;
mod limits;
mod regions;
#[path = "../support/mod.rs"]
mod support;
mod twin;

use std::os::fd::{AsFd, OwnedFd};

use abi::errno::Errno;
use abi::vfio_user::RegionAccess;
use support::{Raw, SOON, Served, agreement};
use vfio_migrate_vfio_user::codec::{Capabilities, Reply, Request, Version};

/// A request, and the errno of its answer.
fn errno(raw: &mut Raw, request: &Request<'_>) -> Errno {
    raw.ask(9, request);
    raw.errno(9)
}

/// Writes a register of the toy.
fn set(raw: &mut Raw, register: u64, value: u64) -> Errno {
    let access = RegionAccess { offset: register, region: 0, count: 8 };
    errno(raw, &Request::RegionWrite(access, &value.to_ne_bytes()))
}

/// Reads a register of the toy. Nothing else may be on its way.
fn get(raw: &mut Raw, register: u64) -> u64 {
    let access = RegionAccess { offset: register, region: 0, count: 8 };
    raw.ask(10, &Request::RegionRead(access));
    let (header, body) = raw.receive();
    assert_eq!((header.msg_id, header.error), (10, 0));
    u64::from_ne_bytes(body[16..].try_into().unwrap())
}

/// Agrees with what `theirs` says, and gives what the server says.
fn agree_to(raw: &mut Raw, minor: u16, theirs: &Capabilities) -> (u16, Capabilities) {
    let text = theirs.text();
    raw.ask(0, &Request::Version(Version { major: 0, minor, text: &text }));
    let (header, body) = raw.receive();
    assert_eq!((header.msg_id, header.error), (0, 0));
    match Reply::parse(abi::vfio_user::Command::VERSION, &body) {
        Ok(Reply::Version(version)) => (version.minor, version.capabilities().unwrap()),
        other => panic!("{other:?}"),
    }
}

/// The same with descriptors, as a twin socket needs them.
fn agree_with_fds(raw: &mut Raw, theirs: &Capabilities) -> (Capabilities, Vec<OwnedFd>) {
    let text = theirs.text();
    raw.ask(0, &Request::Version(Version { major: 0, minor: 2, text: &text }));
    raw.0.set_read_timeout(Some(SOON)).unwrap();
    let (mut bytes, mut fds) = ([0; 4096], Vec::new());
    let len = sys::socket::recv_with_fds(raw.0.as_fd(), &mut bytes, 16, &mut fds, false);
    let len = len.unwrap();
    assert_eq!(bytes[4..8], (len as u32).to_ne_bytes(), "all of it in one piece");
    let version = Version { major: 0, minor: 2, text: &bytes[20..len] };
    (version.capabilities().unwrap(), fds)
}

/// What a client of ours says, but for our own key.
fn plain() -> Capabilities {
    let text = agreement(false);
    Version { major: 0, minor: 0, text: &text }.capabilities().unwrap()
}

fn connected(served: &Served) -> Raw {
    let mut raw = served.raw();
    raw.agree(true);
    raw
}
