//! A process without descriptors: its device goes on, and nobody spins. Alone in its
//! binary, since it takes all of them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::fs::File;
use std::time::Duration;

use abi::errno::Errno;
use device::Runner;
use states::v2::Capabilities;
use support::{SOON, Toy, agreement};
use sys::socket::Listener;
use vfio_migrate_vfio_user::codec::{Request, Version};
use vfio_migrate_vfio_user::{Server, ServerOptions};

#[test]
fn a_client_that_cannot_be_accepted_is_tried_again_and_not_all_the_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("toy");
    let runner = Runner::new(Box::new(Toy::new(Capabilities::ALL))).unwrap();
    let mut server = Server::new(runner, ServerOptions::default()).unwrap();
    server.listen(Listener::bind(&path).unwrap()).unwrap();
    let mut raw = support::Raw(std::os::unix::net::UnixStream::connect(&path).unwrap());
    let text = agreement(false);
    raw.ask(1, &Request::Version(Version { major: 0, minor: 0, text: &text }));

    let mut all = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        all.push(file);
    }
    let wait =
        |server: &Server, long| sys::wait_readable(&[server.poll_fd()], long).unwrap()[0];
    assert!(wait(&server, SOON));
    server.process().unwrap();
    assert!(!server.connected());
    let busy = (0..50).filter(|_| {
        let ready = wait(&server, Duration::from_millis(2));
        if ready {
            server.process().unwrap();
        }
        ready
    });
    let busy = busy.count();
    assert!(busy < 20, "{busy} of 50 times");

    drop(all);
    while !server.connected() {
        assert!(wait(&server, SOON));
        server.process().unwrap();
    }
    assert!(wait(&server, SOON));
    server.process().unwrap();
    let (header, _) = raw.receive();
    assert_eq!((header.msg_id, header.error), (1, Errno(0).0 as u32));
}
