//! The server inside a loop of somebody else's, and devices that outlive their clients.

use std::time::Duration;

use abi::vfio_user::RegionAccess;
use control::Transport;
use device::Runner;
use states::v2::Capabilities as States;
use std::os::fd::AsFd;
use std::sync::Arc;
use sys::EventFd;
use vfio_migrate_vfio_user::codec::{Request, Version};
use vfio_migrate_vfio_user::{Client, ClientOptions, NoDma, Server, ServerOptions};

use super::plain;
use super::support::{Raw, SOON, Toy};

fn server() -> Server {
    let runner = Runner::new(Box::new(Toy::new(States::ALL))).unwrap();
    Server::new(runner, ServerOptions::default()).unwrap()
}

#[test]
fn two_devices_in_one_foreign_loop_serve_clients_that_block() {
    let mut servers = [server(), server()];
    let end = EventFd::new().unwrap();
    std::thread::scope(|scope| {
        for (n, server) in servers.iter_mut().enumerate() {
            let (near, far) = sys::socket::pair().unwrap();
            server.adopt(far).unwrap();
            let end = &end;
            scope.spawn(move || {
                let options = ClientOptions::new("toy", Arc::new(NoDma));
                let client = Client::over(near, options).unwrap();
                let wanted = [n as u8 + 1; 64];
                for at in 0..200 {
                    client.region_write(2, 64 * at, &wanted).unwrap();
                    let mut back = [0; 64];
                    client.region_read(2, 64 * at, &mut back).unwrap();
                    assert_eq!(back, wanted);
                }
                end.signal(1).unwrap();
            });
        }
        let mut ended = 0;
        while ended < 2 {
            let fds = [servers[0].poll_fd(), servers[1].poll_fd(), end.as_fd()];
            let ready = sys::wait_readable(&fds, SOON).unwrap();
            assert!(ready.contains(&true), "nobody did anything for a long time");
            for (server, ready) in servers.iter_mut().zip(&ready) {
                if *ready {
                    server.process().unwrap();
                }
            }
            ended += end.take().unwrap();
        }
    });
    // The clients are gone, and the devices are as they left them.
    for (n, server) in servers.iter_mut().enumerate() {
        while server.connected() {
            assert!(sys::wait_readable(&[server.poll_fd()], SOON).unwrap()[0]);
            server.process().unwrap();
        }
        let (near, far) = sys::socket::pair().unwrap();
        server.adopt(far).unwrap();
        let mut raw = Raw(near.into());
        let text = plain().text();
        raw.ask(0, &Request::Version(Version { major: 0, minor: 0, text: &text }));
        let access = RegionAccess { offset: 64 * 199, region: 2, count: 64 };
        raw.ask(1, &Request::RegionRead(access));
        while !sys::wait_readable(&[raw.0.as_fd()], Duration::ZERO).unwrap()[0] {
            assert!(sys::wait_readable(&[server.poll_fd()], SOON).unwrap()[0]);
            server.process().unwrap();
        }
        assert_eq!(raw.receive().0.error, 0);
        assert_eq!(raw.receive().1[16..], [n as u8 + 1; 64]);
    }
}
