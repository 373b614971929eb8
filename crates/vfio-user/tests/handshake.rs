//! Clients that do not agree on a version in time: each has its turn, and no more.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use support::Served;
use vfio_migrate_vfio_user::codec::{Request, Version};
use vfio_migrate_vfio_user::{DisconnectReason, ServerOptions};

fn version(text: &[u8]) -> Request<'_> {
    Request::Version(Version { major: 0, minor: 0, text })
}

/// A server that waits `millis` for a VERSION.
fn impatient(millis: u64) -> Served {
    let handshake_deadline = Duration::from_millis(millis);
    Served::start(ServerOptions { handshake_deadline, ..ServerOptions::default() })
}

#[test]
fn a_client_that_never_says_version_does_not_keep_all_others_out() {
    let served = impatient(300);
    let mut mute = served.raw();
    let mut next = served.raw();
    let began = Instant::now();
    assert!(mute.ended());
    assert!(began.elapsed() >= Duration::from_millis(200));
    next.agree(true);
    next.check_in_step();
}

#[test]
fn a_client_that_is_refused_or_drips_for_ever_does_not_keep_all_others_out() {
    let served = impatient(300);
    let mut refused = served.raw();
    let end = Instant::now() + support::SOON;
    let wrong = version(b"no json\0").message(1).bytes();
    while refused.0.write_all(&wrong).is_ok() {
        let mut answer = [0; 16];
        if refused.0.read(&mut answer).unwrap_or(0) == 0 {
            break;
        }
        assert!(Instant::now() < end);
    }
    let mut slow = served.raw();
    slow.send(&wrong[..10]);
    slow.0.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    for byte in version(&[b' '; 30_000]).message(1).bytes() {
        let ended = slow.0.write_all(&[byte]).is_err();
        if ended || matches!(slow.0.read(&mut [0]), Ok(0)) {
            break;
        }
        assert!(Instant::now() < end);
    }
    served.raw().agree(true);
}

#[test]
fn a_client_that_agreed_in_time_may_be_silent_as_long_as_it_likes() {
    let served = impatient(300);
    let mut raw = served.raw();
    raw.agree(true);
    raw.0.set_read_timeout(Some(Duration::from_millis(600))).unwrap();
    let nothing = raw.0.read(&mut [0]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    raw.check_in_step();
    // One that cannot be reckoned is none.
    let handshake_deadline = Duration::MAX;
    let options = ServerOptions { handshake_deadline, ..ServerOptions::default() };
    Served::start(options).raw().agree(true);
}

#[test]
fn the_reason_for_a_handshake_that_never_came_is_told() {
    let served = impatient(50);
    let mut mute = served.raw();
    assert!(mute.ended());
    let server = served.stop();
    let Some(DisconnectReason::Handshake(time)) = server.last_disconnect() else {
        panic!("{:?}", server.last_disconnect());
    };
    assert_eq!(*time, Duration::from_millis(50));
}
