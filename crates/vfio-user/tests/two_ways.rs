//! Both directions of a connection, and two connections, at once: nobody waits for
//! somebody who waits for him.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use abi::errno::Errno;
use abi::feature::Feature;
use abi::v2::DeviceState;
use control::{DmaTarget, Transport};
use dirty::IovaRange;
use support::{BLOCK, SOON, Served, get, register, set, until};
use vfio_migrate_vfio_user::{Client, DmaHandler, ServerOptions};

/// Where each device finds the other's memory.
const PEER: u64 = 0x1_0000_0000;

/// Hands a device's DMA to another device's trapped memory, as a VMM does with BARs.
#[derive(Default)]
struct Peer(OnceLock<Client>);

impl Peer {
    fn pass(
        &self,
        access: impl FnOnce(&Client) -> Result<(), control::TransportError>,
    ) -> Result<(), Errno> {
        let client = self.0.get().ok_or(Errno::ENODEV)?;
        access(client).map_err(|error| error.errno().unwrap_or(Errno::EIO))
    }
}

impl DmaHandler for Peer {
    fn read(&self, iova: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.pass(|client| client.region_read(2, iova - PEER, into))
    }

    fn write(&self, iova: u64, data: &[u8]) -> Result<(), Errno> {
        self.pass(|client| client.region_write(2, iova - PEER, data))
    }
}

#[test]
fn two_devices_that_write_into_each_other_at_full_rate_stop_and_start_without_deadlock() {
    let served = [0, 1].map(|_| Served::start(ServerOptions::default()));
    let peers = [Arc::new(Peer::default()), Arc::new(Peer::default())];
    let clients = [0, 1].map(|n: usize| served[n].client_with(peers[n].clone()));
    for n in [0, 1] {
        peers[n].0.set(clients[1 - n].clone()).unwrap();
        let range = IovaRange::new(PEER, BLOCK as u64).unwrap();
        clients[n].dma_map(range, DmaTarget::Messages { writable: true }).unwrap();
        set(&clients[n], register::ADDRESS, PEER);
        set(&clients[n], register::FLOOD, 1);
    }
    let started = Instant::now();
    until(|| clients.iter().all(|client| get(client, register::DONE) > 3));
    std::thread::scope(|scope| {
        // vCPUs ring doorbells, also of a device that is stopped meanwhile.
        for client in &clients {
            for _ in 0..2 {
                scope.spawn(move || {
                    for _ in 0..200 {
                        let _ = client.region_read(0, register::DONE, &mut [0; 8]);
                    }
                });
            }
        }
        for _ in 0..10 {
            let go = |target| {
                for client in &clients {
                    assert!(client.set_migration_state(target, None).unwrap().is_none());
                }
            };
            // As law 5 wants it: nobody starts an access before anybody stops.
            go(DeviceState::RUNNING_P2P);
            go(DeviceState::STOP);
            let digest = |client: &Client| client.digest().unwrap().unwrap();
            let done = || clients.each_ref().map(|client| digest(client).counters[0].1);
            let stopped = done();
            for client in &clients {
                let state = client.feature_get(Feature::MIG_DEVICE_STATE, &[], 8);
                assert_eq!(state.unwrap()[..4], 1_u32.to_ne_bytes());
            }
            assert_eq!(done(), stopped);
            go(DeviceState::RUNNING_P2P);
            go(DeviceState::RUNNING);
        }
    });
    let before = clients.each_ref().map(|client| get(client, register::DONE));
    until(|| {
        clients.iter().zip(before).all(|(client, n)| get(client, register::DONE) > n)
    });
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    for client in &clients {
        assert_eq!(get(client, register::FAILED), 0);
    }
    // The two keep each other alive through their handlers.
    for (served, client) in served.into_iter().zip(clients) {
        let server = served.stop();
        // Doorbells of a stopped device are the only accesses that were refused.
        assert_eq!(server.runner().counters().dma_while_stopped, 0);
        drop(client);
    }
}

#[test]
fn large_writes_both_ways_on_one_socket_do_not_wait_for_each_other() {
    let served = Served::start(ServerOptions::default());
    let peer = Arc::new(Peer::default());
    let client = served.client_with(peer.clone());
    // The device writes into itself by way of the client: 1 MiB messages each way.
    peer.0.set(client.clone()).unwrap();
    let range = IovaRange::new(PEER, BLOCK as u64).unwrap();
    client.dma_map(range, DmaTarget::Messages { writable: true }).unwrap();
    set(&client, register::ADDRESS, PEER);
    set(&client, register::FLOOD, 1);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let client = &client;
            scope.spawn(move || {
                let mut block = vec![thread; BLOCK];
                for _ in 0..20 {
                    client.region_write(2, 0, &block).unwrap();
                    client.region_read(2, 0, &mut block).unwrap();
                }
            });
        }
    });
    until(|| get(&client, register::DONE) > 10);
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    assert_eq!(get(&client, register::FAILED), 0);
    drop(served.stop());
}
