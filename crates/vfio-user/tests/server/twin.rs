//! The twin socket: what the device asks, and its answers, apart from everything else.

use std::os::unix::net::UnixStream;

use abi::errno::Errno;
use abi::vfio_user::{Command, DmaAccess, DmaMap, DmaUnmap, RegionAccess};
use vfio_migrate_vfio_user::codec::{Capabilities, Request, TwinSocket, Version};
use vfio_migrate_vfio_user::{DisconnectReason, ServerOptions};
use zerocopy::IntoBytes;

use super::support::{Raw, Served, message, register};
use super::{agree_with_fds, connected, errno, get, plain, set};

/// A client with a twin socket, and memory at 0 that only messages reach.
fn twins(served: &Served) -> (Raw, Raw) {
    let mut raw = served.raw();
    let twin_socket = Some(TwinSocket { supported: true, fd_index: None });
    let theirs = Capabilities { twin_socket, max_data_xfer_size: 4096, ..plain() };
    let (ours, mut fds) = agree_with_fds(&mut raw, &theirs);
    let twin = Some(TwinSocket { supported: true, fd_index: Some(0) });
    assert_eq!((ours.twin_socket, fds.len()), (twin, 1));
    let twin = Raw(UnixStream::from(fds.remove(0)));
    let map = DmaMap { argsz: 32, flags: 3, offset: 0, addr: 0, size: 1 << 20 };
    assert_eq!(errno(&mut raw, &Request::DmaMap(map)), Errno(0));
    (raw, twin)
}

#[test]
fn the_device_asks_on_the_twin_socket_whatever_happens_on_the_other() {
    let served = Served::start(ServerOptions::default());
    let (mut raw, mut twin) = twins(&served);
    // Nothing of that comes between a question and its answer.
    set(&mut raw, register::READ, 10_000);
    assert_eq!(get(&mut raw, register::DONE), 0);
    assert_eq!(get(&mut raw, register::FAILED), 0);
    for (addr, count) in [(0, 4096), (4096, 4096), (8192, 1808)] {
        let (header, body) = twin.receive();
        let access = DmaAccess { addr, count };
        assert_eq!((header.command, &body[..]), (Command::DMA_READ.0, access.as_bytes()));
        let answer = [access.as_bytes(), &vec![9; count as usize]].concat();
        twin.send(&message(header.msg_id, Command::DMA_READ, 1, &answer));
    }
    super::support::until(|| get(&mut raw, register::DONE) == 1);
    raw.ask(1, &Request::RegionRead(RegionAccess { offset: 9000, region: 2, count: 4 }));
    assert_eq!(raw.receive().1[16..], [9; 4]);
    // It goes with the memory, not with the socket.
    let all = DmaUnmap { argsz: 24, flags: 2, addr: 0, size: 0 };
    assert_eq!(errno(&mut raw, &Request::DmaUnmap(all)), Errno(0));
    set(&mut raw, register::READ, 8);
    assert_eq!(get(&mut raw, register::FAILED), u64::MAX);
}

#[test]
fn a_twin_socket_that_is_not_read_is_waited_for() {
    let served = Served::start(ServerOptions::default());
    let (mut raw, mut twin) = twins(&served);
    set(&mut raw, register::WRITE, 1 << 20);
    for _ in 0..100 {
        assert_eq!(get(&mut raw, register::DONE), 0);
    }
    for _ in 0..256 {
        let (header, body) = twin.receive();
        assert_eq!((header.command, body.len()), (Command::DMA_WRITE.0, 16 + 4096));
        twin.send(&message(header.msg_id, Command::DMA_WRITE, 1, &body[..16]));
    }
    super::support::until(|| get(&mut raw, register::DONE) == 1);
}

#[test]
fn who_mixes_the_two_sockets_up_is_disconnected_and_the_next_one_served() {
    type Wrong = fn(&mut Raw, &mut Raw);
    let served = Served::start(ServerOptions::default());
    let wrongs: [Wrong; 7] = [
        // A question where only answers go, ...
        |_, twin| twin.ask(1, &Request::Reset),
        |_, twin| twin.send(&message(1, Command::REGION_WRITE, 0x10, &[0; 20])),
        // ... an answer on the other socket, ...
        |raw, twin| {
            set(raw, register::READ, 8);
            let (header, body) = twin.receive();
            let answer = [&body[..], &[0; 8]].concat();
            raw.send(&message(header.msg_id, Command::DMA_READ, 1, &answer));
        },
        // ... to nothing, of another command, no size at all, and the end.
        |_, twin| twin.send(&message(7, Command::DMA_READ, 1, &[0; 16])),
        |raw, twin| {
            set(raw, register::READ, 8);
            let (header, body) = twin.receive();
            twin.send(&message(header.msg_id, Command::DMA_WRITE, 1, &body));
        },
        |_, twin| twin.send(&[0; 16]),
        |_, twin| twin.0.shutdown(std::net::Shutdown::Both).unwrap(),
    ];
    for wrong in wrongs {
        let (mut raw, mut twin) = twins(&served);
        wrong(&mut raw, &mut twin);
        assert!(raw.ended());
        let mut next = connected(&served);
        next.check_in_step();
    }
    let (mut raw, mut twin) = twins(&served);
    twin.ask(3, &Request::Reset);
    assert!(raw.ended());
    let server = served.stop();
    let reason = server.last_disconnect();
    assert!(
        matches!(reason, Some(DisconnectReason::NotAReply { id: 3, .. })),
        "{reason:?}"
    );
}

#[test]
fn a_twin_socket_is_only_there_for_who_asked() {
    let served = Served::start(ServerOptions::default());
    let mut raw = served.raw();
    let twin_socket = Some(TwinSocket { supported: true, fd_index: None });
    // Without an answer there is no way to give it.
    let text = Capabilities { twin_socket, ..plain() }.text();
    let mut version =
        Request::Version(Version { major: 0, minor: 0, text: &text }).message(0).bytes();
    version[8] |= 0x10;
    raw.send(&version);
    let map = DmaMap { argsz: 32, flags: 3, offset: 0, addr: 0, size: 4096 };
    assert_eq!(errno(&mut raw, &Request::DmaMap(map)), Errno(0));
    set(&mut raw, register::READ, 8);
    let (header, body) = raw.receive();
    assert_eq!(header.command, Command::DMA_READ.0);
    let answer = [&body[..], &[5; 8]].concat();
    raw.send(&message(header.msg_id, Command::DMA_READ, 1, &answer));
    assert_eq!(get(&mut raw, register::DONE), 1);
}
