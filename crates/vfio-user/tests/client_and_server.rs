//! The client and the server together: every command, and what a client leaves behind.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::sync::{Arc, Mutex};

use abi::errno::Errno;
use abi::feature::Feature;
use abi::v2::DeviceState;
use abi::vfio_user::{LoggingControl, LoggingReport};
use control::{DataSession, Direction, DmaLog, DmaTarget, Transport, TransportError};
use device::Runner;
use dirty::{IovaRange, PageSize};
use port::DirtySource;
use states::v2::{Capabilities, State};
use support::{MEMORY, SOON, Served, Toy, WINDOW, get, register, set, until};
use sys::{EventFd, SharedMemory};
use vfio_migrate_vfio_user::codec::parse_log_report;
use vfio_migrate_vfio_user::{
    Client, ClientOptions, DisconnectReason, DmaHandler, NoDma, Server, ServerError,
    ServerOptions,
};
use zerocopy::IntoBytes;

fn errno<T: std::fmt::Debug>(result: Result<T, TransportError>) -> Errno {
    result.unwrap_err().errno().expect("an errno")
}

fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(start, length).unwrap()
}

fn state(client: &Client) -> u32 {
    let state = client.feature_get(Feature::MIG_DEVICE_STATE, &[], 8).unwrap();
    u32::from_ne_bytes(state[..4].try_into().unwrap())
}

fn go(
    client: &Client,
    target: DeviceState,
    due: Option<Direction>,
) -> Option<Box<dyn DataSession>> {
    client.set_migration_state(target, due).unwrap()
}

#[test]
fn what_the_device_has_is_told_with_its_window() {
    let served = Served::start(ServerOptions::default());
    let client = served.client();
    let info = client.device_info().unwrap();
    assert_eq!((info.flags, info.regions, info.irqs), (3, 9, 5));
    let memory = client.region_info(2).unwrap();
    assert_eq!((memory.size, memory.flags), (MEMORY, 1 | 2 | 4 | 8));
    assert_eq!(memory.areas, [(0, WINDOW)]);
    let plain = client.region_info(0).unwrap();
    assert_eq!((plain.size, plain.flags, plain.areas.len()), (4096, 3, 0));
    assert_eq!(client.region_info(8).unwrap().size, 0);
    assert_eq!(errno(client.region_info(9)), Errno::EINVAL);
    assert_eq!(client.irq_info(2).unwrap().count, 40);
    assert_eq!(client.irq_info(0).unwrap().count, 0);
    assert_eq!(errno(client.irq_info(5)), Errno::EINVAL);

    let area = client.region_map(2, 4097).unwrap();
    assert_eq!((area.offset, area.memory.len()), (0, WINDOW));
    area.memory.write(4097, b"by the window").unwrap();
    let mut back = [0; 13];
    client.region_read(2, 4097, &mut back).unwrap();
    assert_eq!(&back, b"by the window");
    assert_eq!(errno(client.region_map(2, WINDOW)), Errno::EINVAL);
    assert_eq!(errno(client.region_map(0, 0)), Errno::EINVAL);
}

#[test]
fn a_region_is_read_and_written_whole_and_never_outside() {
    let served = Served::start(ServerOptions::default());
    let client = served.client();
    let whole: Vec<u8> = (0..MEMORY).map(|n| (n % 251) as u8).collect();
    client.region_write(2, 0, &whole).unwrap();
    let mut back = vec![0; whole.len()];
    client.region_read(2, 0, &mut back).unwrap();
    assert!(back == whole);
    assert_eq!(errno(client.region_read(2, MEMORY - 1, &mut [0; 2])), Errno::EINVAL);
    assert_eq!(errno(client.region_read(2, u64::MAX, &mut [0; 2])), Errno::EINVAL);
    assert_eq!(errno(client.region_write(1, 0, &[0; 4])), Errno::EINVAL);
}

#[test]
fn dma_reaches_mapped_memory_and_nothing_else() {
    let served = Served::start(ServerOptions::default());
    let client = served.client();
    let memory = SharedMemory::create("guest", 1 << 20).unwrap();
    let target = |writable| DmaTarget::Memory { memory: &memory, offset: 8192, writable };
    client.dma_map(range(0x10000, 8192), target(true)).unwrap();
    assert_eq!(errno(client.dma_map(range(0x11000, 4096), target(true))), Errno::EEXIST);
    assert_eq!(errno(client.dma_map(range(0x20001, 4096), target(true))), Errno::EINVAL);

    client.region_write(2, 0, b"from the device").unwrap();
    set(&client, register::ADDRESS, 0x10ff8);
    set(&client, register::WRITE, 15);
    assert_eq!(get(&client, register::DONE), 1);
    let mut back = [0; 15];
    memory.read(8192 + 0xff8, &mut back).unwrap();
    assert_eq!(&back, b"from the device");
    memory.write(8192, b"from the guest").unwrap();
    set(&client, register::ADDRESS, 0x10000);
    set(&client, register::READ, 14);
    let mut back = [0; 14];
    client.region_read(2, 0, &mut back).unwrap();
    assert_eq!(&back, b"from the guest");

    assert_eq!(errno(client.dma_unmap(range(0x10000, 4096))), Errno::ENOENT);
    client.dma_unmap(range(0x10000, 8192)).unwrap();
    set(&client, register::WRITE, 4);
    assert_eq!(get(&client, register::FAILED), u64::MAX);
    // Read-only is read-only.
    client.dma_map(range(0x10000, 4096), target(false)).unwrap();
    set(&client, register::WRITE, 4);
    assert_eq!(get(&client, register::DONE), 2);
}

#[test]
fn interrupts_reach_the_eventfd_they_were_bound_to_in_batches_too() {
    let served = Served::start(ServerOptions::default());
    let client = served.client();
    let events: Vec<EventFd> = (0..40).map(|_| EventFd::new().unwrap()).collect();
    let all: Vec<&EventFd> = events.iter().collect();
    client.set_irqs(2, 0, &all).unwrap();
    for vector in [0, 15, 16, 39, 39] {
        set(&client, register::RAISE, vector);
    }
    let counts: Vec<u64> = events.iter().map(|event| event.take().unwrap()).collect();
    assert_eq!((counts[0], counts[15], counts[16], counts[39]), (1, 1, 1, 2));
    assert_eq!(counts.iter().sum::<u64>(), 5);
    assert_eq!(errno(client.set_irqs(2, 39, &all[..2])), Errno::EINVAL);
    assert_eq!(errno(client.set_irqs(1, 0, &all[..1])), Errno::EINVAL);
    client.set_irqs(2, 0, &[]).unwrap();
    let nobody = client.region_write(0, register::RAISE, &0_u64.to_ne_bytes());
    assert_eq!(errno(nobody), Errno::ENXIO);
}

#[test]
fn a_device_moves_from_one_server_to_another_to_the_byte() {
    let (from, to) = (
        Served::start(ServerOptions::default()),
        Served::start(ServerOptions::default()),
    );
    let (source, destination) = (from.client(), to.client());
    assert!(source.additions());
    let contents: Vec<u8> = (0..MEMORY).map(|n| (n / 7 % 253) as u8).collect();
    source.region_write(2, 0, &contents).unwrap();
    let digest = source.digest().unwrap().unwrap();
    assert_eq!(digest.chunks.len(), 256);

    let mut save = go(&source, DeviceState::PRE_COPY, Some(Direction::Save)).unwrap();
    let info = save.precopy_info().unwrap().unwrap();
    assert_eq!((info.flags, info.initial_bytes), (0, MEMORY));
    source.feature_set(Feature::MIG_PRECOPY_INFO_V2, &[]).unwrap();
    assert_eq!(save.precopy_info().unwrap().unwrap().flags, 1);
    let mut resume =
        go(&destination, DeviceState::RESUMING, Some(Direction::Resume)).unwrap();
    let mut buffer = vec![0; 300_000];
    let mut moved = 0;
    let mut piece = |save: &mut Box<dyn DataSession>| {
        let read = save.read(&mut buffer).unwrap();
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            let taken = resume.write(rest).unwrap();
            rest = &rest[taken..];
        }
        moved += read;
        read
    };
    assert_eq!(piece(&mut save), 300_000);
    // PRE_COPY and STOP_COPY are one session.
    go(&source, DeviceState::STOP_COPY, None);
    while piece(&mut save) > 0 {}
    assert_eq!(moved as u64, MEMORY);
    assert_eq!(errno(save.precopy_info()), Errno::EINVAL);
    assert_eq!(errno(save.write(&[1])), Errno::EBADF);
    go(&source, DeviceState::STOP, None);
    assert_eq!(errno(save.read(&mut [0; 16])), Errno::ENODEV);
    go(&destination, DeviceState::STOP, None);
    assert_eq!(errno(resume.write(&[1])), Errno::ENODEV);
    go(&destination, DeviceState::RUNNING, None);
    let moved = destination.digest().unwrap().unwrap();
    assert_eq!(moved.chunks, digest.chunks);
    let mut back = vec![0; contents.len()];
    destination.region_read(2, 0, &mut back).unwrap();
    assert!(back == contents);
}

#[test]
fn a_session_of_an_earlier_transition_is_dead_and_not_mistaken_for_the_new_one() {
    let served = Served::start(ServerOptions::default());
    let client = served.client();
    let mut old = go(&client, DeviceState::STOP_COPY, Some(Direction::Save)).unwrap();
    client.reset().unwrap();
    let mut new = go(&client, DeviceState::STOP_COPY, Some(Direction::Save)).unwrap();
    assert_eq!(errno(old.read(&mut [0; 16])), Errno::ENODEV);
    assert_eq!(new.read(&mut [0; 16]).unwrap(), 16);
}

#[test]
fn a_truncated_state_is_refused_when_it_is_to_be_used() {
    let served = Served::start(ServerOptions::default());
    let client = served.client();
    let mut resume = go(&client, DeviceState::RESUMING, Some(Direction::Resume)).unwrap();
    resume.write(&[1; 1000]).unwrap();
    let stop = client.set_migration_state(DeviceState::STOP, None);
    assert_eq!(errno(stop.map(drop)), Errno::EINVAL);
    assert_eq!(state(&client), 4);
    client.reset().unwrap();
    assert_eq!(state(&client), 2);
}

#[test]
fn the_dma_log_tells_every_page_once_at_the_page_size_asked_for() {
    let served = Served::start(ServerOptions::default());
    let client = served.client();
    let memory = SharedMemory::create("guest", 1 << 20).unwrap();
    let target = DmaTarget::Memory { memory: &memory, offset: 0, writable: true };
    client.dma_map(range(0x100000, 1 << 20), target).unwrap();
    let control = LoggingControl { page_size: 4096, num_ranges: 0, reserved: 0 };
    let started =
        client.feature_set(Feature::DMA_LOGGING_START, control.as_bytes()).unwrap();
    assert_eq!(&started[..8], &4096_u64.to_ne_bytes());
    for page in [0_u64, 63, 64, 255] {
        set(&client, register::ADDRESS, 0x100000 + page * 4096);
        set(&client, register::WRITE, 16);
    }
    let report = |page_size: u64| {
        let asked = LoggingReport { iova: 0x100000, length: 1 << 20, page_size };
        let words = (1 << 20) / page_size / 64;
        let most = 24 + 8 * (words.max(1) as usize);
        let feature = Feature::DMA_LOGGING_REPORT;
        client
            .feature_get(feature, asked.as_bytes(), most)
            .map(|data| parse_log_report(&data).unwrap().1)
    };
    assert_eq!(report(4096).unwrap(), [1 | 1 << 63, 1, 0, 1 << 63]);
    assert_eq!(report(4096).unwrap(), [0; 4]);
    set(&client, register::WRITE, 16);
    assert_eq!(report(65536).unwrap(), [1 << 15]);
    assert_eq!(errno(report(3)), Errno::EINVAL);
    client.feature_set(Feature::DMA_LOGGING_STOP, &[]).unwrap();
    assert_eq!(errno(report(4096)), Errno::EINVAL);
}

#[test]
fn bits_of_an_earlier_piece_of_a_report_are_not_told_again() {
    let served = Served::start(ServerOptions::default());
    let client = served.client();
    let memory = SharedMemory::create("guest", 1 << 20).unwrap();
    let target = DmaTarget::Memory { memory: &memory, offset: 0, writable: true };
    let all = range(0x100000, 1 << 20);
    client.dma_map(all, target).unwrap();
    // Pieces of 64 pages, and of 192, of which the last is shorter than the others.
    for bytes in [8, 24] {
        let log = DmaLog::open(Arc::new(client.clone())).unwrap().unwrap();
        let mut log = log.with_most_bytes(bytes);
        log.start(&[all], PageSize::FOUR_K).unwrap();
        let mut collect = |expected: &[u64]| {
            let mut found = vec![0; 4];
            log.collect(all, &mut |report| {
                let at = (report.range.start() - all.start()) / 4096 / 64;
                let words = report.range.length().div_ceil(64 * 4096);
                assert_eq!(words, report.words.len() as u64);
                found[at as usize..][..report.words.len()].copy_from_slice(report.words);
            })
            .unwrap();
            assert_eq!(found, expected);
        };
        for page in [0_u64, 63, 128] {
            set(&client, register::ADDRESS, 0x100000 + page * 4096);
            set(&client, register::WRITE, 16);
        }
        collect(&[1 | 1 << 63, 0, 1, 0]);
        collect(&[0; 4]);
        set(&client, register::ADDRESS, 0x100000 + 255 * 4096);
        set(&client, register::WRITE, 16);
        collect(&[0, 0, 0, 1 << 63]);
        log.stop().unwrap();
    }
}

#[test]
fn features_that_are_only_by_agreement_are_not_asked_for_without_it() {
    let options = ServerOptions { additions: false, ..ServerOptions::default() };
    let served = Served::start(options);
    let client = served.client();
    assert!(!client.additions());
    let stop_copy = client.feature_get(Feature::MIG_DATA_SIZE, &[], 8);
    assert_eq!(errno(stop_copy), Errno::ENOTTY);
    assert_eq!(client.digest().unwrap(), None);
    client.region_write(2, 0, &[9; 100_000]).unwrap();
    // Stop-copy data arrives to the byte all the same, padded or not.
    let mut save = go(&client, DeviceState::PRE_COPY, Some(Direction::Save)).unwrap();
    assert_eq!(save.precopy_info().unwrap(), None);
    let mut buffer = vec![1; 700_000];
    assert_eq!(save.read(&mut buffer).unwrap(), 700_000);
    assert_eq!(save.read(&mut buffer).unwrap(), MEMORY as usize - 700_000);
    assert_eq!(save.read(&mut buffer).unwrap(), 0);
}

#[test]
fn a_probe_says_what_is_there() {
    let toy = Toy::new(Capabilities::STOP_COPY);
    let served = Served::with(toy, ServerOptions::default());
    let client = served.client();
    for there in [1, 2, 6, 7, 8, 9, 0xff01, 0xff02] {
        client.feature_probe(Feature(there)).unwrap();
    }
    for missing in [0, 3, 10, 13, 0xff00, 0xffff] {
        assert_eq!(errno(client.feature_probe(Feature(missing))), Errno::ENOTTY);
    }
    // As the kernel, which says EINVAL even to a probe.
    assert_eq!(errno(client.feature_probe(Feature(12))), Errno::EINVAL);
    let flags = client.feature_get(Feature::MIGRATION, &[], 8).unwrap();
    assert_eq!(flags, 1_u64.to_ne_bytes());
    let identity = client.feature_get(Feature::VFIO_MIGRATE_IDENTITY, &[], 100).unwrap();
    let model = control::identity::decode(&identity).unwrap();
    assert_eq!((model.name.as_str(), model.data_version), ("toy", 7));
    let precopy = client.set_migration_state(DeviceState::PRE_COPY, None);
    assert_eq!(errno(precopy.map(drop)), Errno::EINVAL);
}

/// Memory that is reached by messages, with a gate.
#[derive(Default)]
struct ByMessage {
    memory: Mutex<Vec<u8>>,
    shut: Mutex<bool>,
}

impl ByMessage {
    fn new() -> Arc<ByMessage> {
        Arc::new(ByMessage { memory: Mutex::new(vec![0; 8192]), shut: Mutex::default() })
    }

    fn wait(&self) {
        until(|| !*self.shut.lock().unwrap());
    }
}

impl DmaHandler for ByMessage {
    fn read(&self, iova: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.wait();
        let memory = self.memory.lock().unwrap();
        let from = memory.get(iova as usize..).and_then(|rest| rest.get(..into.len()));
        into.copy_from_slice(from.ok_or(Errno::EFAULT)?);
        Ok(())
    }

    fn write(&self, iova: u64, data: &[u8]) -> Result<(), Errno> {
        self.wait();
        let mut memory = self.memory.lock().unwrap();
        let into =
            memory.get_mut(iova as usize..).and_then(|rest| rest.get_mut(..data.len()));
        into.ok_or(Errno::EFAULT)?.copy_from_slice(data);
        Ok(())
    }
}

#[test]
fn dma_by_message_is_served_while_nobody_calls_and_errors_come_back() {
    let served = Served::start(ServerOptions::default());
    let handler = ByMessage::new();
    let client = served.client_with(handler.clone());
    client.dma_map(range(0, 16384), DmaTarget::Messages { writable: true }).unwrap();
    client.region_write(2, 0, b"by message").unwrap();
    set(&client, register::ADDRESS, 100);
    set(&client, register::WRITE, 10);
    // Nobody calls now.
    until(|| handler.memory.lock().unwrap()[100..110] == *b"by message");
    until(|| get(&client, register::DONE) == 1);
    handler.memory.lock().unwrap()[200..208].copy_from_slice(b"answered");
    set(&client, register::ADDRESS, 200);
    set(&client, register::READ, 8);
    until(|| get(&client, register::DONE) == 2);
    let mut back = [0; 8];
    client.region_read(2, 0, &mut back).unwrap();
    assert_eq!(&back, b"answered");
    set(&client, register::ADDRESS, 8190);
    set(&client, register::READ, 8);
    until(|| get(&client, register::FAILED) == Errno::EFAULT.0 as u64);
}

#[test]
fn a_state_change_that_waits_for_dma_holds_up_nobody_else() {
    let served = Served::start(ServerOptions::default());
    let handler = ByMessage::new();
    let client = served.client_with(handler.clone());
    client.dma_map(range(0, 8192), DmaTarget::Messages { writable: true }).unwrap();
    *handler.shut.lock().unwrap() = true;
    set(&client, register::WRITE, 10);
    let other = client.clone();
    let stopping = std::thread::spawn(move || {
        other.set_migration_state(DeviceState::STOP, None).map(drop)
    });
    // The device does not stop while its message is on its way, and answers all else.
    for _ in 0..1000 {
        assert_ne!(state(&client), 1);
        assert_eq!(get(&client, register::DONE), 0);
    }
    *handler.shut.lock().unwrap() = false;
    stopping.join().unwrap().unwrap();
    assert_eq!(state(&client), 1);
    assert_eq!(handler.memory.lock().unwrap()[0], 0);
}

#[test]
fn a_client_that_went_away_leaves_no_mapping_no_interrupt_and_no_session() {
    let served = Served::start(ServerOptions::default());
    let memory = SharedMemory::create("guest", 1 << 20).unwrap();
    let event = EventFd::new().unwrap();
    let client = served.client();
    let target = DmaTarget::Memory { memory: &memory, offset: 0, writable: true };
    client.dma_map(range(0, 1 << 20), target).unwrap();
    client.set_irqs(2, 0, &[&event]).unwrap();
    client.region_write(2, 0, b"kept").unwrap();
    let session = go(&client, DeviceState::STOP_COPY, Some(Direction::Save));
    drop((client, session));

    let next = served.client();
    // The device kept its contents and its state.
    assert_eq!(state(&next), 3);
    let mut raw = next.set_migration_state(DeviceState::STOP_COPY, None).unwrap();
    assert!(raw.is_none());
    raw = next.set_migration_state(DeviceState::RUNNING, None).unwrap();
    assert!(raw.is_none());
    let mut back = [0; 4];
    next.region_read(2, 0, &mut back).unwrap();
    assert_eq!(&back, b"kept");
    // Nothing reaches the first client's memory or eventfd.
    set(&next, register::WRITE, 16);
    assert_eq!(get(&next, register::FAILED), u64::MAX);
    let raised = next.region_write(0, register::RAISE, &0_u64.to_ne_bytes());
    assert_eq!(errno(raised), Errno::ENXIO);
    assert_eq!(event.take().unwrap(), 0);
    let mut byte = [1];
    memory.read(0, &mut byte).unwrap();
    assert_eq!(byte, [0]);
    drop(next);
    let server = served.stop();
    assert_eq!(server.runner().state(), State::Running);
}

#[test]
fn reset_on_disconnect_gives_the_next_client_a_fresh_device() {
    let options = ServerOptions { reset_on_disconnect: true, ..ServerOptions::default() };
    let served = Served::start(options);
    let client = served.client();
    client.region_write(2, 0, b"secret").unwrap();
    go(&client, DeviceState::STOP, None);
    drop(client);
    let next = served.client();
    assert_eq!(state(&next), 2);
    let mut back = [1; 6];
    next.region_read(2, 0, &mut back).unwrap();
    assert_eq!(back, [0; 6]);
}

#[test]
fn a_second_client_waits_for_its_turn() {
    let served = Served::start(ServerOptions::default());
    let first = served.client();
    let path = served.path();
    let waiting = std::thread::spawn(move || {
        let options = ClientOptions::new("second", Arc::new(NoDma));
        Client::connect(&path, options).unwrap().device_info().unwrap()
    });
    for _ in 0..100 {
        first.device_info().unwrap();
    }
    assert!(!waiting.is_finished());
    drop(first);
    waiting.join().unwrap();
}

#[test]
fn many_threads_share_one_connection_without_mixing_their_answers() {
    let served = Served::start(ServerOptions::default());
    let client = served.client();
    std::thread::scope(|scope| {
        for thread in 0..6_u64 {
            let client = client.clone();
            scope.spawn(move || {
                let at = thread * 100_000;
                for round in 0..60_u64 {
                    let len = [8, 4096, 90_000][(round % 3) as usize];
                    let bytes = vec![(thread * 40 + round) as u8; len];
                    client.region_write(2, at, &bytes).unwrap();
                    let mut back = vec![0; len];
                    client.region_read(2, at, &mut back).unwrap();
                    assert!(back == bytes);
                }
            });
        }
    });
}

#[test]
fn a_server_that_stops_ends_its_clients_calls() {
    let served = Served::start(ServerOptions::default());
    let client = served.client();
    client.device_info().unwrap();
    drop(served.stop());
    let started = std::time::Instant::now();
    let error = client.device_info().unwrap_err();
    assert!(matches!(error, TransportError::Gone { .. }), "{error:?}");
    assert!(started.elapsed() < SOON);
    assert!(client.reset().is_err());
}

#[test]
fn the_server_works_inside_a_foreign_event_loop() {
    let (near, far) = sys::socket::pair().unwrap();
    let runner = Runner::new(Box::new(Toy::new(Capabilities::ALL))).unwrap();
    let mut server = Server::new(runner, ServerOptions::default()).unwrap();
    server.adopt(far).unwrap();
    let (second, _kept) = sys::socket::pair().unwrap();
    assert!(server.adopt(second).is_err());
    let looping = std::thread::spawn(move || {
        // Whoever waits waits for the descriptor alone, however long the model takes.
        while server.connected() {
            let ready = sys::wait_readable(&[server.poll_fd()], SOON).unwrap();
            assert!(ready[0], "the server forgot to say that it has something to do");
            server.process().unwrap();
        }
        server
    });
    let options = ClientOptions::new("toy", Arc::new(NoDma));
    let client = Client::over(near, options).unwrap();
    set(&client, register::LAZY, 20);
    go(&client, DeviceState::STOP, None);
    assert_eq!(state(&client), 1);
    let mut memory = vec![0; MEMORY as usize];
    client.reset().unwrap();
    client.region_read(2, 0, &mut memory).unwrap();
    drop(client);
    let server = looping.join().unwrap();
    assert!(matches!(server.last_disconnect(), Some(DisconnectReason::Closed)));
}

#[test]
fn a_model_whose_windows_no_single_descriptor_reaches_is_not_served() {
    let start = |toy: Toy| {
        let runner = Runner::new(Box::new(toy)).unwrap();
        Server::new(runner, ServerOptions::default()).map(drop)
    };
    let mut toy = Toy::new(Capabilities::ALL);
    toy.second_window = Some(SharedMemory::create("other", 4096).unwrap());
    assert!(matches!(start(toy), Err(ServerError::Windows(2))));
    assert!(start(Toy::new(Capabilities::ALL)).is_ok());
    let runner = Runner::new(Box::new(Toy::new(Capabilities::ALL))).unwrap();
    let options = ServerOptions { max_data_xfer_size: 0, ..ServerOptions::default() };
    assert!(matches!(Server::new(runner, options), Err(ServerError::Limit(0))));
}
