//! Memory that is taken away from a device is the guest's own from then on, and memory is
//! as it was when a device stopped: what the device had asked for by then is done before
//! the call returns.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use abi::errno::Errno;
use abi::v2::DeviceState;
use abi::vfio_user::Command;
use control::{DmaWrites, Transport, TransportError};
use dirty::{IovaRange, PageSize};
use support::{Raw, SOON, agreement, message};
use vfio_migrate_vfio_user::codec::{Reply, Version};
use vfio_migrate_vfio_user::{Client, ClientOptions, DmaHandler};
use zerocopy::IntoBytes;

/// Holds every write until the call is over, for a while.
#[derive(Default)]
struct Gate {
    /// The call is over; how many writes were done, and how many after that.
    state: Mutex<(bool, u32, u32)>,
    changed: Condvar,
}

impl Gate {
    fn over(&self) {
        self.state.lock().unwrap().0 = true;
        self.changed.notify_all();
    }
}

impl DmaHandler for Gate {
    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), Errno> {
        Err(Errno::EFAULT)
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), Errno> {
        let state = self.state.lock().unwrap();
        let long = Duration::from_millis(150);
        let waited = self.changed.wait_timeout_while(state, long, |(over, ..)| !*over);
        let (mut state, _) = waited.unwrap();
        state.1 += 1;
        state.2 += u32::from(state.0);
        Ok(())
    }
}

/// Agrees to everything.
fn agree(raw: &mut Raw) {
    let (header, _) = raw.receive();
    let text = agreement(true);
    let version = Version { major: 0, minor: 0, text: &text };
    raw.send(&Reply::Version(version).message(header.msg_id, Command::VERSION).bytes());
}

type Call = fn(&Client) -> Result<(), TransportError>;

/// A server that writes by DMA twice before it answers the call.
fn call_with(command: Command, body: &'static [u8], call: Call) {
    let (mut raw, far) = Raw::pair();
    let thread = std::thread::spawn(move || {
        agree(&mut raw);
        let (header, _) = raw.receive();
        assert_eq!(header.command, command.0);
        let write = [[0_u64, 8].as_bytes(), &[7; 8]].concat();
        let write = |id| message(id, Command::DMA_WRITE, 0, &write);
        let answer = message(header.msg_id, command, 1, body);
        raw.send(&[write(1), write(2), answer].concat());
        for id in [1, 2] {
            assert_eq!(raw.receive().0.msg_id, id);
        }
        assert!(raw.ended());
    });
    let gate = Arc::new(Gate::default());
    let handler = Arc::clone(&gate);
    let options =
        ClientOptions { call_deadline: SOON, ..ClientOptions::new("gate", handler) };
    let client = Client::over(far, options).unwrap();
    call(&client).unwrap();
    gate.over();
    assert_eq!(*gate.state.lock().unwrap(), (true, 2, 0), "{command}");
    drop(client);
    thread.join().unwrap();
}

fn all() -> IovaRange {
    IovaRange::new(0, 4096).unwrap()
}

#[test]
fn no_write_comes_after_a_reset() {
    call_with(Command::DEVICE_RESET, &[], |client| client.reset());
}

/// It would be in nobody's last report, and its page was sent.
#[test]
fn no_write_comes_after_a_device_has_stopped() {
    /// 16 bytes, SET of feature 2, the state, and no descriptor.
    const fn answer(state: u8) -> [u8; 16] {
        [16, 0, 0, 0, 2, 0, 2, 0, state, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]
    }
    static STOP: [u8; 16] = answer(1);
    static P2P: [u8; 16] = answer(5);
    let feature = Command::DEVICE_FEATURE;
    call_with(feature, &STOP, |client| {
        client.set_migration_state(DeviceState::STOP, None).map(drop)
    });
    call_with(feature, &P2P, |client| {
        client.set_migration_state(DeviceState::RUNNING_P2P, None).map(drop)
    });
    // By a register, as devices of 2018 to 2021 have it.
    static WROTE: [u8; 16] = {
        let mut body = [0; 16];
        body[12] = 4;
        body
    };
    call_with(Command::REGION_WRITE, &WROTE, |client| {
        client.region_write_state(0, 0, &[0; 4])
    });
}

#[test]
fn no_write_comes_after_memory_was_unmapped() {
    let unmap = Command::DMA_UNMAP;
    call_with(unmap, &[0; 24], |client| client.dma_unmap(all()));
    call_with(unmap, &[0; 24], |client| client.dma_unmap_all());
    // With its dirty bits: 24 bytes, the page size, the length of the bits, and them.
    static DIRTY: [u8; 48] = {
        let mut body = [0; 48];
        body[25] = 0x10;
        body[32] = 8;
        body
    };
    call_with(unmap, &DIRTY, |client| {
        client.dma_unmap_dirty(all(), PageSize::FOUR_K, DmaWrites::MayGoOn).map(drop)
    });
}

#[test]
fn a_device_that_is_reset_by_the_thread_that_answers_it_does_not_wait_for_itself() {
    #[derive(Default)]
    struct Resets(Mutex<Option<Client>>);
    impl DmaHandler for Resets {
        fn read(&self, _: u64, _: &mut [u8]) -> Result<(), Errno> {
            Err(Errno::EFAULT)
        }

        fn write(&self, _: u64, _: &[u8]) -> Result<(), Errno> {
            let client = self.0.lock().unwrap().take();
            client.unwrap().reset().map_err(|_| Errno::EIO)
        }
    }
    let (mut raw, far) = Raw::pair();
    let thread = std::thread::spawn(move || {
        agree(&mut raw);
        let (header, _) = raw.receive();
        raw.send(&message(header.msg_id, Command::DEVICE_RESET, 1, &[]));
        let write = [[0_u64, 8].as_bytes(), &[7; 8]].concat();
        raw.send(&message(1, Command::DMA_WRITE, 0, &write));
        let (header, _) = raw.receive();
        raw.send(&message(header.msg_id, Command::DEVICE_RESET, 1, &[]));
        let (header, _) = raw.receive();
        assert_eq!((header.msg_id, header.error), (1, 0));
    });
    let resets = Arc::new(Resets::default());
    let handler: Arc<dyn DmaHandler> = resets.clone();
    let options =
        ClientOptions { call_deadline: SOON, ..ClientOptions::new("self", handler) };
    let client = Client::over(far, options).unwrap();
    *resets.0.lock().unwrap() = Some(client.clone());
    client.reset().unwrap();
    thread.join().unwrap();
}
