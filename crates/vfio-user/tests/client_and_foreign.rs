//! The client with servers that are not ours: libvfio-user's ways, one by one and
//! together. A device moves whole, once, and what a server refuses stays refused.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod foreign;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use abi::errno::Errno;
use abi::feature::Feature;
use abi::vfio_user::Command;
use control::{DmaLog, DmaTarget, Transport, TransportError, V2Device};
use dirty::{Bitmap, IovaRange, PageSize};
use foreign::{Foreign, Ways};
use port::{Device, DirtySource, Opened, Read};
use states::v2::State;
use sys::{EventFd, SharedMemory};
use vfio_migrate_vfio_user::{Client, ClientOptions, DeviceStream, NoDma};

fn options() -> ClientOptions {
    let mut options = ClientOptions::new("foreign", Arc::new(NoDma));
    options.call_deadline = Duration::from_secs(5);
    options
}

fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(start, length).unwrap()
}

/// Different everywhere, so that a piece in a wrong place shows.
fn content(bytes: usize) -> Vec<u8> {
    (0..bytes as u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .take(bytes)
        .collect()
}

struct Side {
    device: V2Device,
    client: Client,
    // Last: its client has to be gone when it is dropped.
    server: Foreign,
}

fn side(ways: &Ways, stream: DeviceStream, content: &[u8]) -> Side {
    let (server, socket) = Foreign::start(ways.clone(), content);
    let client = Client::over(socket, ClientOptions { stream, ..options() }).unwrap();
    let device = control::open(Arc::new(client.clone())).unwrap();
    Side { device, client, server }
}

/// Reads until the device has nothing more to say in this state.
fn drain(session: &mut dyn port::SaveSession, into: &mut Vec<u8>) {
    let mut buffer = vec![0; 300_000];
    while let Read::Data { bytes, .. } = session.read(&mut buffer).unwrap() {
        into.extend(&buffer[..bytes]);
    }
}

/// What a migration does, with everything forwarded as it comes. The destination stays
/// in STOP; whether it took the data.
fn migrate(source: &mut Side, destination: &mut Side) -> bool {
    let mut stream = Vec::new();
    let mut saving = None;
    if source.device.identity().capabilities.pre_copy() {
        match source.device.set_state(State::PreCopy).unwrap() {
            Opened::Save(mut session) => {
                drain(&mut *session, &mut stream);
                saving = Some(session);
            }
            other => panic!("{other:?}"),
        }
    }
    match source.device.set_state(State::StopCopy).unwrap() {
        Opened::Save(session) => saving = Some(session),
        Opened::None => assert!(saving.is_some()),
        other => panic!("{other:?}"),
    }
    drain(&mut *saving.unwrap(), &mut stream);

    let Opened::Resume(mut session) =
        destination.device.set_state(State::Resuming).unwrap()
    else {
        panic!("no session")
    };
    // As the engine does it: what some refuse in STOP comes before.
    let memory = SharedMemory::create("guest", 1 << 20).unwrap();
    let target = DmaTarget::Memory { memory: &memory, offset: 0, writable: true };
    destination.client.dma_map(range(0, 1 << 20), target).unwrap();
    session.write(&stream, false).unwrap();
    let vectors: Vec<_> = (0..20).map(|_| EventFd::new().unwrap()).collect();
    let vectors: Vec<_> = vectors.iter().collect();
    destination.client.set_irqs(2, 0, &vectors).unwrap();
    destination.device.set_state(State::Stop).is_ok()
}

fn moves(ways: &Ways, stream: DeviceStream) -> (bool, Vec<u8>, usize) {
    let mut source = side(ways, stream, &content(1_000_001));
    let mut destination = side(ways, stream, b"");
    let taken = migrate(&mut source, &mut destination);
    assert!(!source.server.seen().lost && !destination.server.seen().lost);
    assert!(!destination.server.seen().ran_loaded);
    let pre_copies = source.server.seen().pre_copies;
    (taken, destination.server.content(), pre_copies)
}

#[test]
fn a_stream_that_starts_over_at_stop_copy_is_forwarded_twice() {
    // Nobody said anything: it is not known, so it is not risked.
    let ways = Ways::default();
    let whole = content(1_000_001);
    assert!(moves(&ways, DeviceStream::Detect) == (true, whole.clone(), 0));
    assert!(moves(&ways, DeviceStream::Restarts) == (true, whole.clone(), 0));
    // One that goes on may be read while it works, where somebody says that it does.
    let goes_on = Ways { restarts: false, ..Ways::default() };
    assert!(moves(&goes_on, DeviceStream::Detect) == (true, whole.clone(), 0));
    assert!(moves(&goes_on, DeviceStream::Continuous) == (true, whole.clone(), 1));
    // A wrong declaration is what the default spares: the device has half of it twice.
    let (taken, found, _) = moves(&ways, DeviceStream::Continuous);
    assert!(!taken && found != whole);
}

#[test]
fn why_pre_copy_is_not_used_is_a_secret() {
    let one = side(&Ways::default(), DeviceStream::Detect, b"");
    let withheld = one.device.withheld();
    assert_eq!(withheld.len(), 1);
    assert_eq!(withheld[0].what, "PRE_COPY");
    assert!(withheld[0].why.contains("start over"), "{}", withheld[0].why);
    let one = side(&Ways::default(), DeviceStream::Continuous, b"");
    assert_eq!(one.device.withheld(), []);
}

#[test]
fn each_way_of_a_foreign_server_costs_a_byte() {
    let usual = Ways::default;
    let whole = content(1_000_001);
    for ways in [
        usual(),
        Ways { pads: false, ..usual() },
        Ways { argsz_more: 4096, ..usual() },
        Ways { bare: true, ..usual() },
        Ways { error_body: true, ..usual() },
        Ways { no_errno: true, ..usual() },
        Ways { unknown: Errno::ENOTTY, ..usual() },
        Ways { refuses_in_stop: false, ..usual() },
        Ways { minor: 0, ..usual() },
        Ways { minor: 1, ..usual() },
        Ways { says: String::new(), minor: 0, ..usual() },
        Ways { says: r#""max_msg_fds":1,"max_data_xfer_size":1000"#.into(), ..usual() },
        Ways { says: r#""max_data_xfer_size":65536"#.into(), pads: false, ..usual() },
        Ways {
            pads: false,
            bare: true,
            error_body: true,
            no_errno: true,
            restarts: false,
            minor: 1,
            ..usual()
        },
    ] {
        for stream in [DeviceStream::Detect, DeviceStream::Continuous] {
            if stream == DeviceStream::Continuous && ways.restarts {
                continue;
            }
            let (taken, found, _) = moves(&ways, stream);
            assert!(taken && found == whole, "{ways:?} {stream:?}");
        }
    }
}

#[test]
fn a_stopped_destination_runs_to_be_reset() {
    let mut source = side(&Ways::default(), DeviceStream::Detect, &content(100));
    let mut destination = side(&Ways::default(), DeviceStream::Detect, b"");
    assert!(migrate(&mut source, &mut destination));
    assert!(destination.server.seen().loaded);
    // The plain command is refused there, as libvfio-user does.
    let refusal = destination.client.reset().unwrap_err();
    assert_eq!(refusal.errno(), Some(Errno::EINVAL));
    destination.device.reset().unwrap();
    assert_eq!(destination.device.state().unwrap(), State::Running);
    let seen = destination.server.seen();
    assert!(!seen.loaded && !seen.ran_loaded && seen.device.len() == 8);
}

#[test]
fn a_feature_that_is_refused_in_another_way_breaks_the_probe() {
    for unknown in [Errno::EINVAL, Errno::ENOTTY, Errno::EOPNOTSUPP, Errno(0)] {
        let ways = Ways { unknown, ..Ways::default() };
        let mut one = side(&ways, DeviceStream::Continuous, b"");
        assert_eq!(one.device.stop_copy_bytes().unwrap(), None);
        assert_eq!(one.device.identity().model, None);
        assert!(one.client.feature_probe(Feature(77)).is_err());
        // Ours are not even asked for.
        let features = one.server.times(Command::DEVICE_FEATURE);
        assert!(one.client.feature_get(Feature::MIG_DATA_SIZE, &[], 8).is_err());
        assert_eq!(one.server.times(Command::DEVICE_FEATURE), features);
    }
}

fn client(ways: Ways) -> (Client, Foreign) {
    let (server, socket): (Foreign, OwnedFd) = Foreign::start(ways, b"");
    (Client::over(socket, options()).unwrap(), server)
}

fn saying(says: &str) -> (Client, Foreign) {
    client(Ways { says: says.to_owned(), ..Ways::default() })
}

fn refused(result: Result<(), TransportError>, errno: Errno, because: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.errno(), Some(errno), "{error}");
    assert!(error.to_string().contains(because), "{error}");
}

#[test]
fn a_server_gets_more_descriptors_than_it_takes() {
    let vectors: Vec<_> = (0..20).map(|_| EventFd::new().unwrap()).collect();
    let vectors: Vec<_> = vectors.iter().collect();
    for (says, batches) in [
        (r#""max_msg_fds":8"#, vec![8, 8, 4]),
        (r#""max_msg_fds":7"#, vec![7, 7, 6]),
        ("", vec![1; 20]),
    ] {
        let (client, server) = saying(says);
        client.set_irqs(2, 0, &vectors).unwrap();
        assert_eq!(server.seen().bound, batches);
        drop(client);
    }
    let (client, server) = saying(r#""max_msg_fds":0"#);
    refused(client.set_irqs(2, 0, &vectors), Errno::EOPNOTSUPP, "max_msg_fds");
    let memory = SharedMemory::create("guest", 4096).unwrap();
    let target = DmaTarget::Memory { memory: &memory, offset: 0, writable: true };
    let mapped = client.dma_map(range(0, 4096), target);
    refused(mapped, Errno::EOPNOTSUPP, "map it for messages");
    client.dma_map(range(0, 4096), DmaTarget::Messages { writable: true }).unwrap();
    assert_eq!(server.seen().maps, [(0, 4096, false)]);
    assert_eq!(server.times(Command::DEVICE_SET_IRQS), 0);
    drop(client);
}

#[test]
fn a_server_gets_more_mappings_or_finer_ones_than_it_takes() {
    let (client, server) = saying(r#""max_dma_maps":2"#);
    let map = |start| {
        client.dma_map(range(start, 4096), DmaTarget::Messages { writable: false })
    };
    map(0).unwrap();
    map(0x1000).unwrap();
    refused(map(0x2000), Errno::ENOSPC, "max_dma_maps");
    // The same one again is none more, for those who take it.
    map(0x1000).unwrap();
    client.dma_unmap(range(0, 4096)).unwrap();
    map(0x2000).unwrap();
    refused(map(0x3000), Errno::ENOSPC, "max_dma_maps");
    // What was refused does not count.
    assert!(client.dma_unmap(range(0x8000, 4096)).is_err());
    // It knows no ALL; what was mapped is known here.
    client.dma_unmap_all().unwrap();
    assert_eq!(server.seen().maps, []);
    map(0x3000).unwrap();
    map(0x4000).unwrap();
    drop(client);
    drop(server);
    let (client, server) = saying(r#""pgsizes":2097152"#);
    let map = |start, length| {
        client.dma_map(range(start, length), DmaTarget::Messages { writable: false })
    };
    refused(map(0x1000, 0x20_0000), Errno::EINVAL, "pgsizes");
    refused(map(0, 0x1000), Errno::EINVAL, "pgsizes");
    map(0x20_0000, 0x40_0000).unwrap();
    assert_eq!(server.times(Command::DMA_MAP), 1);
    drop(client);
}

#[test]
fn a_long_write_makes_the_server_lose_its_place() {
    let (client, server) = saying(r#""max_data_xfer_size":1048576"#);
    client.region_write(0, 0, &vec![1; 200_000]).unwrap();
    client.region_write_posted(0, 0, &vec![1; 200_000]).unwrap();
    client.device_info().unwrap();
    let seen = server.seen();
    assert!(!seen.lost);
    let sizes: Vec<_> =
        seen.asked.iter().filter(|(it, _)| *it == Command::REGION_WRITE).collect();
    assert_eq!(sizes.len(), 14);
    drop(seen);
    drop(client);
}

/// A log over three mappings, of which the second has no descriptor.
fn log(ways: Ways) -> (DmaLog, Client, Foreign) {
    let (client, server) = client(ways);
    let memory = SharedMemory::create("guest", 1 << 20).unwrap();
    let target = DmaTarget::Memory { memory: &memory, offset: 0, writable: true };
    client.dma_map(range(0, 1 << 20), target).unwrap();
    let by_message = DmaTarget::Messages { writable: true };
    client.dma_map(range(1 << 20, 1 << 20), by_message).unwrap();
    client.dma_map(range(1 << 22, 1 << 20), target).unwrap();
    let log = DmaLog::open(Arc::new(client.clone())).unwrap().unwrap();
    (log, client, server)
}

fn dirty(log: &mut DmaLog, from: IovaRange) -> Option<Vec<u64>> {
    let all = Bitmap::new(range(0, 1 << 24), PageSize::FOUR_K).unwrap();
    let merge = &mut |report: port::DirtyReport<'_>| {
        all.merge(report.range, report.page, report.words);
    };
    log.collect(from, merge).ok()?;
    let runs = all.drain();
    Some(runs.runs().flat_map(|run| (run.start()..run.end()).step_by(4096)).collect())
}

#[test]
fn a_dirty_page_of_a_foreign_log_is_lost() {
    let usual = Ways::default;
    for (ways, page) in [
        (usual(), 4096),
        (Ways { bare: true, ..usual() }, 4096),
        (Ways { no_errno: true, error_body: true, ..usual() }, 4096),
        (Ways { whole_reports: false, ..usual() }, 4096),
        (Ways { log_page: 1 << 16, ..usual() }, 1 << 16),
    ] {
        let (mut log, client, server) = log(ways.clone());
        let mappings =
            [range(0, 1 << 20), range(1 << 20, 1 << 20), range(1 << 22, 1 << 20)];
        server.seen().dirty = vec![0x3000];
        log.start(&mappings, PageSize::FOUR_K).unwrap();
        server.seen().dirty.extend([0xff000, (1 << 22) + 0x1000]);
        let found = dirty(&mut log, mappings[0]).unwrap();
        for at in [0x3000, 0xff000] {
            assert!(found.contains(&at), "{at:#x} {ways:?}");
        }
        assert_eq!(found.len() as u64, 2 * page / 4096);
        assert_eq!(dirty(&mut log, mappings[0]), Some(Vec::new()));
        // Nobody there knows, so all of it is.
        assert_eq!(dirty(&mut log, mappings[1]), None);
        let found = dirty(&mut log, mappings[2]).unwrap();
        assert!(found.contains(&((1 << 22) + 0x1000)), "{ways:?}");
        log.stop().unwrap();
        drop((log, client));
    }
}

#[test]
fn a_report_that_is_a_success_without_bits_means_that_nothing_is_dirty() {
    let (mut log, client, server) =
        log(Ways { empty_reports: true, whole_reports: false, ..Ways::default() });
    let mapping = range(0, 1 << 20);
    assert!(log.start(&[mapping], PageSize::FOUR_K).is_err());
    assert!(!server.seen().logging);
    // The server may be listened to all the same.
    client.device_info().unwrap();
    drop((log, client));
}
