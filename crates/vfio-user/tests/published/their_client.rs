//! Their client, our server.

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use sys::{EventFd, SharedMemory};
use vfio_migrate_vfio_user::ServerOptions;
use vfio_user::{Client, Error};

use super::bounded;
use super::support::{MEMORY, SOON, Served, WINDOW, register};

/// Flags of `SET_IRQS`.
const NONE: u32 = 1;
const EVENTFD: u32 = 4;
const TRIGGER: u32 = 32;

/// Does something with their client, connected to a toy of ours; the server lives on.
fn with_client<T: Send + 'static>(
    served: &Served,
    work: impl FnOnce(&mut Client) -> T + Send + 'static,
) -> T {
    let path = served.path();
    bounded(move || work(&mut Client::new(&path).unwrap()))
}

fn set(client: &mut Client, register: u64, value: u64) {
    client.region_write(0, register, &value.to_ne_bytes()).unwrap();
}

fn get(client: &mut Client, register: u64) -> u64 {
    let mut value = [0; 8];
    client.region_read(0, register, &mut value).unwrap();
    u64::from_ne_bytes(value)
}

#[test]
fn a_foreign_client_finds_the_regions_and_maps_the_window() {
    let served = Served::start(ServerOptions::default());
    with_client(&served, |client| {
        let flags: Vec<u32> = (0..9).map(|n| client.region(n).unwrap().flags).collect();
        assert_eq!(flags, [3, 0, 15, 0, 0, 0, 0, 3, 0]);
        assert!(client.region(9).is_none());
        let region = client.region(2).unwrap();
        assert_eq!((region.index, region.size), (2, MEMORY));
        let areas: Vec<(u64, u64)> =
            region.sparse_areas.iter().map(|area| (area.offset, area.size)).collect();
        assert_eq!(areas, [(0, WINDOW)]);
        // By the descriptor it sees what goes by message, and the other way round.
        let window = region.file_offset.clone().unwrap();
        client.region_write(2, 4097, b"by message").unwrap();
        let mut seen = [0; 10];
        window.file().read_exact_at(&mut seen, window.start() + 4097).unwrap();
        assert_eq!(&seen, b"by message");
        window.file().write_all_at(b"by window", window.start() + 8).unwrap();
        let mut seen = [0; 9];
        client.region_read(2, 8, &mut seen).unwrap();
        assert_eq!(&seen, b"by window");
        // Where nothing can be mapped no descriptor comes.
        assert!(client.region(0).unwrap().file_offset.is_none());
    });
}

#[test]
fn a_foreign_client_reads_and_writes_regions_and_the_next_one_is_served() {
    let served = Served::start(ServerOptions::default());
    for round in 0..3_u8 {
        with_client(&served, move |client| {
            let whole = vec![round + 1; 100_000];
            client.region_write(2, 0, &whole).unwrap();
            let mut back = vec![0; whole.len()];
            client.region_read(2, 0, &mut back).unwrap();
            assert!(back == whole);
            let mut config = [0; 64];
            client.region_read(7, 0, &mut config).unwrap();
            assert_eq!(config, [0x77; 64]);
        });
    }
    let mut back = [0; 4];
    control::Transport::region_read(&served.client(), 2, 0, &mut back).unwrap();
    assert_eq!(back, [3; 4]);
}

#[test]
fn dma_reaches_the_memory_of_a_foreign_client_as_long_as_it_is_mapped() {
    let served = Served::start(ServerOptions::default());
    with_client(&served, |client| {
        let memory = SharedMemory::create("guest", 1 << 20).unwrap();
        let fd = memory.fd().as_raw_fd();
        client.dma_map(4096, 0x10000, 8192, fd).unwrap();
        client.region_write(2, 0, b"from the device").unwrap();
        set(client, register::ADDRESS, 0x10ff8);
        set(client, register::WRITE, 15);
        let mut seen = [0; 15];
        memory.read(4096 + 0xff8, &mut seen).unwrap();
        assert_eq!(&seen, b"from the device");
        memory.write(4096, b"from the guest").unwrap();
        set(client, register::ADDRESS, 0x10000);
        set(client, register::READ, 14);
        let mut seen = [0; 14];
        client.region_read(2, 0, &mut seen).unwrap();
        assert_eq!(&seen, b"from the guest");
        assert_eq!(get(client, register::DONE), 2);
        // It does not see that this is refused; the stream is in step all the same.
        client.dma_map(0, 0x11000, 4096, fd).unwrap();
        client.dma_unmap(0x10000, 8192).unwrap();
        set(client, register::WRITE, 4);
        assert_eq!(get(client, register::DONE), 2);
        assert_eq!(get(client, register::FAILED), u64::MAX);
    });
}

#[test]
fn interrupts_reach_the_eventfds_of_a_foreign_client() {
    let served = Served::start(ServerOptions::default());
    with_client(&served, |client| {
        let info = client.get_irq_info(2).unwrap();
        assert_eq!((info.index, info.count, info.flags & 1), (2, 40, 1));
        assert_eq!(client.get_irq_info(1).unwrap().count, 0);
        let events: Vec<EventFd> = (0..16).map(|_| EventFd::new().unwrap()).collect();
        let fds: Vec<i32> = events.iter().map(fd).collect();
        client.set_irqs(2, EVENTFD | TRIGGER, 24, 16, &fds).unwrap();
        set(client, register::RAISE, 24);
        set(client, register::RAISE, 39);
        set(client, register::RAISE, 39);
        // It may fire them itself.
        client.set_irqs(2, NONE | TRIGGER, 30, 2, &[]).unwrap();
        let counts: Vec<u64> = events.iter().map(|event| event.take().unwrap()).collect();
        let mut expected = [0; 16];
        (expected[0], expected[15], expected[6], expected[7]) = (1, 2, 1, 1);
        assert_eq!(counts, expected);
        // None without a descriptor unbinds, and so does disabling the index.
        client.set_irqs(2, EVENTFD | TRIGGER, 24, 1, &[]).unwrap();
        client.set_irqs(2, NONE | TRIGGER, 24, 2, &[]).unwrap();
        assert_eq!([events[0].take().unwrap(), events[1].take().unwrap()], [0, 1]);
        client.set_irqs(2, NONE | TRIGGER, 0, 0, &[]).unwrap();
        client.set_irqs(2, NONE | TRIGGER, 24, 16, &[]).unwrap();
        assert!(events.iter().all(|event| event.take().unwrap() == 0));
    });
}

fn fd(event: &EventFd) -> i32 {
    std::os::fd::AsFd::as_fd(event).as_raw_fd()
}

#[test]
fn a_reset_by_a_foreign_client_empties_the_device() {
    let served = Served::start(ServerOptions::default());
    with_client(&served, |client| {
        client.region_write(2, 0, &[7; 64]).unwrap();
        client.reset().unwrap();
        let mut back = [1; 64];
        client.region_read(2, 0, &mut back).unwrap();
        assert_eq!(back, [0; 64]);
    });
}

#[test]
fn a_foreign_client_that_waits_for_ever_for_what_was_refused_is_let_go_by_our_end() {
    let served = Served::start(ServerOptions::default());
    let path = served.path();
    let (told, waits) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let mut client = Client::new(&path).unwrap();
        told.send(()).unwrap();
        // Refused with a header alone; it wants 16 bytes more.
        client.region_read(2, MEMORY, &mut [0; 4])
    });
    waits.recv_timeout(SOON).unwrap();
    let server = served.stop();
    // The client is still connected, until the server is gone.
    drop(server);
    let result = bounded(move || thread.join().unwrap());
    assert!(matches!(result, Err(Error::StreamRead(_) | Error::StreamWrite(_))));
}
